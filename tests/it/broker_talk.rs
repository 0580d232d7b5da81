//! Workers of both ROUTER dialects as any libzmq program would be one, against the pool that serves them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use lurcher::bus::server::{Options, PeerId};
use lurcher::drain::{self, Signal};
use lurcher::pool::{
    self, Addresses, Caller, Failure, Heartbeats, Pool, Refused, Replies, Retry, Rules, Settings,
    Ticket,
};
use lurcher::wire::worker::RequestId;
use lurcher::wire::{ConnId, Protocol};

use crate::bus_peers::{PATIENCE, Raw, shard, tcp};

/// What reached whoever reads replies.
#[derive(Default)]
struct Ears {
    replies: RefCell<Vec<String>>,
    held: RefCell<Vec<String>>,
}

impl Replies for Ears {
    fn reply(&self, _: &Rc<Pool>, _: PeerId, message: Bytes) {
        let message = String::from_utf8_lossy(&message).into_owned();
        self.replies.borrow_mut().push(message);
    }

    fn held(&self, _: &Rc<Pool>, _: PeerId, _: RequestId, address: &Bytes) {
        let address = String::from_utf8_lossy(address).into_owned();
        self.held.borrow_mut().push(address);
    }
}

/// A client that waits for an answer.
#[derive(Default)]
struct Client {
    id: u32,
    handed: Cell<u32>,
    failed: Cell<Option<Failure>>,
}

impl Caller for Client {
    fn id(self: Rc<Self>) -> ConnId {
        self.handed.set(self.handed.get() + 1);
        ConnId(self.id)
    }

    fn retire_id(&self) {}

    fn has_mail(&self) -> bool {
        false
    }

    fn failed(&self, refused: Refused) {
        self.failed.set(Some(refused.why));
    }
}

/// A pool with an address for workers and one for pings.
struct Broker {
    pool: Rc<Pool>,
    ears: Rc<Ears>,
    workers: String,
    pings: String,
    watch: drain::Watch,
    _signal: Signal,
}

impl Broker {
    async fn start() -> Self {
        let (signal, watch) = drain::channel();
        let ears = Rc::new(Ears::default());
        let addresses = Addresses {
            workers: Some(&tcp()),
            pings: Some(&tcp()),
            ..Addresses::default()
        };
        let options = Options::default();
        let bound = pool::bind(addresses, settings(), &options).await.unwrap();
        let of =
            |endpoint: &Option<lurcher::endpoint::Endpoint>| endpoint.as_ref().unwrap().to_string();
        let (workers, pings) = (of(&bound.endpoints().workers), of(&bound.endpoints().pings));
        let pool = bound.run(Rc::clone(&ears) as Rc<dyn Replies>, &watch);
        pool.set_heartbeats(Heartbeats {
            interval: Duration::from_millis(50),
            ..Heartbeats::default()
        });
        Self {
            pool,
            ears,
            workers,
            pings,
            watch,
            _signal: signal,
        }
    }

    fn worker(&self) -> Dealer {
        Dealer::connect(zmq::DEALER, &self.workers)
    }

    /// A worker of the own dialect that has been welcomed.
    async fn own(&self, slots: &str) -> Dealer {
        let worker = self.worker();
        worker.say(&["HELLO", "1", "", slots, "1", ""]);
        assert_eq!(worker.hear().await[0], "WELCOME");
        worker
    }

    fn submit(&self, id: u32, retry: Retry) -> (Ticket, Rc<Client>) {
        let client = Rc::new(Client {
            id,
            ..Client::default()
        });
        let caller = Rc::clone(&client) as Rc<dyn Caller>;
        let message = Bytes::from_static(b"/ 2:{},0:,");
        let ticket = self.pool.submit(message, retry, caller).unwrap();
        (ticket, client)
    }

    async fn replied(&self, count: usize) -> Vec<String> {
        until(|| self.ears.replies.borrow().len() >= count).await;
        self.ears.replies.borrow().clone()
    }
}

fn settings() -> Settings {
    Settings {
        sender: Bytes::from_static(b"front"),
        protocol: Protocol::Json,
        topic: Vec::new(),
        rules: Rules {
            queue_max: 100,
            queue_bytes_max: 1 << 20,
            wait_max: PATIENCE,
            start_grace: PATIENCE,
            suspect_grace: Duration::from_millis(100),
            ..Rules::for_front()
        },
        raw_payload: false,
    }
}

/// Waits for something that is not told.
async fn until(what: impl Fn() -> bool) {
    let caller = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, caller).await.unwrap();
}

/// A libzmq socket that is asked without blocking the shard.
struct Dealer {
    socket: zmq::Socket,
}

impl Dealer {
    fn connect(kind: zmq::SocketType, address: &str) -> Self {
        let socket = zmq::Context::new().socket(kind).unwrap();
        socket.set_linger(1000).unwrap();
        socket.set_reconnect_ivl(5).unwrap();
        if kind == zmq::SUB {
            socket.set_subscribe(b"").unwrap();
        }
        socket.connect(address).unwrap();
        Self { socket }
    }

    fn say(&self, frames: &[&str]) {
        self.socket.send_multipart(frames, 0).unwrap();
    }

    /// The next message that is no PING.
    async fn hear(&self) -> Vec<String> {
        loop {
            let frames = self.hear_all().await;
            if frames[0] != "PING" {
                return frames;
            }
        }
    }

    async fn hear_all(&self) -> Vec<String> {
        let heard = async {
            loop {
                match self.socket.recv_multipart(zmq::DONTWAIT) {
                    Ok(frames) => break frames,
                    Err(zmq::Error::EAGAIN) => tokio::time::sleep(Duration::from_millis(1)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let frames = tokio::time::timeout(PATIENCE, heard)
            .await
            .expect("a message in time");
        let text = |frame: Vec<u8>| String::from_utf8(frame).unwrap();
        frames.into_iter().map(text).collect()
    }
}

#[test]
fn a_request_goes_to_a_worker_that_says_when_it_begins_answers_and_is_done() {
    shard(async {
        let broker = Broker::start().await;
        let worker = broker.worker();
        worker.say(&["HELLO", "1", "w1", "4", "1", "", "of a later version"]);
        assert_eq!(worker.hear_all().await, ["WELCOME", "1", "50", "150"]);
        let ping = worker.hear_all().await;
        assert_eq!(ping[0], "PING");
        worker.say(&["PONG", &ping[1], "0"]);
        let (ticket, client) = broker.submit(7, Retry::Never);
        let request = worker.hear().await;
        assert_eq!(request[0], "REQUEST");
        assert_eq!(request[2..], ["1", "", "front 7 / 2:{},0:,"]);
        assert_eq!(client.handed.get(), 1);
        worker.say(&["FIRST", &request[1]]);
        worker.say(&["REPLY", &request[1], "front 1:7, HTTP/1.1 200 OK\r\n\r\n"]);
        worker.say(&["DONE", &request[1], "1200"]);
        worker.say(&["REPLY", "", "front 1:8, to somebody else"]);
        // Nobody has this one.
        worker.say(&["REPLY", "12345678901", "front 1:9, late"]);
        worker.say(&["PING", "99"]);
        assert_eq!(worker.hear().await, ["PONG", "99"]);
        assert_eq!(
            broker.replied(2).await,
            [
                "front 1:7, HTTP/1.1 200 OK\r\n\r\n",
                "front 1:8, to somebody else"
            ]
        );
        let report = broker.pool.report();
        assert_eq!((report.workers.len(), report.workers[0].open), (1, 0));
        drop(ticket);
    });
}

#[test]
fn what_has_not_begun_goes_to_another_whatever_its_method() {
    shard(async {
        let broker = Broker::start().await;
        let dies = broker.own("2").await;
        let (_begun, first) = broker.submit(1, Retry::Never);
        let (_waits, second) = broker.submit(2, Retry::Never);
        let begun = dies.hear().await;
        let other = dies.hear().await;
        dies.say(&["FIRST", &begun[1]]);
        // It is heard before the end of the connection is.
        dies.say(&["PING", "1"]);
        dies.hear().await;
        let lives = broker.own("2").await;
        drop(dies);
        let again = lives.hear().await;
        assert_eq!(again[0], "REQUEST");
        assert_eq!((&again[1], &again[2]), (&other[1], &"2".to_owned()));
        assert_eq!(again[4], "front 2 / 2:{},0:,");
        until(|| first.failed.get().is_some()).await;
        assert_eq!(first.failed.get(), Some(Failure::HandlerLost));
        assert_eq!((second.failed.get(), second.handed.get()), (None, 2));
    });
}

#[test]
fn a_worker_that_is_of_no_use_is_told_why_and_its_connection_ends() {
    shard(async {
        let broker = Broker::start().await;
        let long = "n".repeat(256);
        for (hello, why) in [
            (["HELLO", "0", "w", "", "1", ""], "version"),
            (["HELLO", "1", &long, "", "1", ""], "name"),
            (["HELLO", "1", "w", "", "0", ""], "weight"),
            (["HELLO", "1", "w", "", "1", "nowhere"], "\"nowhere\""),
        ] {
            let worker = broker.worker();
            worker.say(&hello);
            let refused = worker.hear().await;
            assert_eq!(refused[0], "REFUSED");
            assert!(refused[1].contains(why), "{refused:?}");
        }
        // Twice: it is not known what the first one still has.
        let worker = broker.own("1").await;
        let (_ticket, client) = broker.submit(1, Retry::Never);
        worker.hear().await;
        worker.say(&["HELLO", "1", "", "1", "1", ""]);
        assert_eq!(worker.hear().await[0], "REFUSED");
        // Over the new connection that libzmq makes.
        worker.say(&["HELLO", "1", "", "1", "1", ""]);
        assert_eq!(worker.hear().await[0], "WELCOME");
        let again = worker.hear().await;
        assert_eq!((again[0].as_str(), again[2].as_str()), ("REQUEST", "2"));
        assert_eq!(client.failed.get(), None, "it had not begun");
    });
}

#[test]
fn before_hello_nothing_is_accepted_but_a_worker_learns_that_it_should_begin_anew() {
    shard(async {
        let broker = Broker::start().await;
        let worker = broker.worker();
        worker.say(&["REPLY", "", "front 1:1, unheard"]);
        assert_eq!(worker.hear().await, ["BYE"]);
        worker.say(&["HELLO", "1", "", "", "1", ""]);
        assert_eq!(worker.hear().await[0], "WELCOME");
        worker.say(&["REPLY", "", "front 1:1, heard"]);
        assert_eq!(broker.replied(1).await, ["front 1:1, heard"]);
    });
}

#[test]
fn workers_at_one_address_may_work_for_several_pools() {
    shard(async {
        let broker = Broker::start().await;
        let (ears, options) = (Rc::new(Ears::default()), Options::default());
        let images = pool::bind(Addresses::default(), settings(), &options);
        let images = images.await.unwrap();
        let images = images.run(Rc::clone(&ears) as Rc<dyn Replies>, &broker.watch);
        broker.pool.admit("images", &images);
        let (plain, other) = (broker.own("").await, broker.worker());
        other.say(&["HELLO", "1", "", "", "1", "images"]);
        assert_eq!(other.hear().await[0], "WELCOME");
        let client = Rc::new(Client {
            id: 5,
            ..Client::default()
        });
        let message = Bytes::from_static(b"/i 2:{},0:,");
        let ticket = images.submit(message, Retry::Safe, client).unwrap();
        let request = other.hear().await;
        assert_eq!(request[4], "front 5 /i 2:{},0:,");
        other.say(&["REPLY", &request[1], "front 1:5, picture"]);
        until(|| !ears.replies.borrow().is_empty()).await;
        assert!(broker.ears.replies.borrow().is_empty());
        plain.say(&["PING", "1"]);
        assert_eq!(plain.hear().await, ["PONG", "1"], "it got no request");
        drop(ticket);
    });
}

#[test]
fn a_worker_that_drains_is_told_when_it_has_had_its_last_request() {
    shard(async {
        let broker = Broker::start().await;
        let worker = broker.own("4").await;
        let (_first, _) = broker.submit(1, Retry::Never);
        worker.hear().await;
        worker.say(&["DRAIN"]);
        assert_eq!(worker.hear().await, ["DRAIN"]);
        let (_second, second) = broker.submit(2, Retry::Never);
        worker.say(&["DRAIN"]);
        assert_eq!(worker.hear().await, ["DRAIN"], "again if it asks");
        let next = broker.own("4").await;
        assert_eq!(next.hear().await[4], "front 2 / 2:{},0:,");
        assert_eq!(second.handed.get(), 1);
        // What belongs to the one that it has still reaches it, and it is heard.
        worker.say(&["REPLY", "", "front 1:1, last words"]);
        worker.say(&["BYE"]);
        assert_eq!(broker.replied(1).await, ["front 1:1, last words"]);
        until(|| broker.pool.report().workers.len() == 1).await;
    });
}

#[test]
fn a_broker_that_goes_says_so() {
    shard(async {
        let broker = Broker::start().await;
        let worker = broker.own("4").await;
        broker.pool.close();
        assert_eq!(worker.hear().await, ["BYE"]);
    });
}

#[test]
fn what_a_worker_still_has_from_before_is_heard_and_told() {
    shard(async {
        let broker = Broker::start().await;
        let worker = broker.own("4").await;
        worker.say(&["HELD", "4711", "front 9"]);
        until(|| !broker.ears.held.borrow().is_empty()).await;
        assert_eq!(*broker.ears.held.borrow(), ["front 9"]);
        worker.say(&["REPLY", "4711", "front 1:9, answered"]);
        worker.say(&["DONE", "4711", "5"]);
        worker.say(&["REPLY", "4711", "front 1:9, too much"]);
        worker.say(&["REPLY", "", "front 1:1, end"]);
        assert_eq!(
            broker.replied(2).await,
            ["front 1:9, answered", "front 1:1, end"]
        );
    });
}

#[test]
fn what_a_worker_has_from_before_takes_its_slots_until_it_is_done_or_streams() {
    shard(async {
        let broker = Broker::start().await;
        broker
            .pool
            .expect_returns(tokio::time::Instant::now() + PATIENCE);
        // The first is there before anybody comes.
        let (_first, first) = broker.submit(1, Retry::Never);
        let worker = broker.worker();
        worker.say(&["HELLO", "1", "", "2", "1", ""]);
        worker.say(&["HELD", "4711", "front 9"]);
        worker.say(&["HELD", "4712", "front 10"]);
        assert_eq!(worker.hear().await[0], "WELCOME");
        until(|| broker.ears.held.borrow().len() == 2).await;
        until(|| broker.pool.report().workers[0].state == "ready").await;
        assert_eq!((first.handed.get(), broker.pool.report().waiting), (0, 1));
        worker.say(&["DONE", "4711", "5"]);
        until(|| first.handed.get() == 1).await;
        let (_second, second) = broker.submit(2, Retry::Never);
        assert_eq!(second.handed.get(), 0);
        let peer = broker.pool.report().workers[0].peer;
        broker.pool.free_held(peer, RequestId(4712));
        assert_eq!(second.handed.get(), 1);
        // What it says to it is heard still, and its end frees nothing once more.
        worker.say(&["REPLY", "4712", "front 2:10, more"]);
        worker.say(&["DONE", "4712", "5"]);
        worker.say(&["REPLY", "", "front 1:1, end"]);
        assert_eq!(
            broker.replied(2).await,
            ["front 2:10, more", "front 1:1, end"]
        );
        let (_third, third) = broker.submit(3, Retry::Never);
        assert_eq!(third.handed.get(), 0);
    });
}

#[test]
fn a_worker_of_m2wsgi_is_served_pinged_and_let_go() {
    shard(async {
        let broker = Broker::start().await;
        let (worker, pings) = (broker.worker(), Dealer::connect(zmq::SUB, &broker.pings));
        worker.say(&["", ""]);
        let (first, _) = broker.submit(1, Retry::Never);
        assert_eq!(worker.hear().await, ["", "front 1 / 2:{},0:,"]);
        // One at a time.
        let (_second, second) = broker.submit(2, Retry::Never);
        for _ in 0..3 {
            assert_eq!(pings.hear_all().await, [""]);
            worker.say(&["", ""]);
        }
        assert_eq!(second.handed.get(), 0);
        worker.say(&["", "front 1:1, answer"]);
        assert_eq!(broker.replied(1).await, ["front 1:1, answer"]);
        drop(first);
        assert_eq!(worker.hear().await, ["", "front 2 / 2:{},0:,"]);
        worker.say(&["", "X"]);
        assert_eq!(worker.hear().await, ["", "X"]);
        worker.say(&["", "X"]);
        assert_eq!(worker.hear().await, ["", "X"]);
        worker.say(&["", "front 1:2, last"]);
        broker.replied(2).await;
        let (_third, third) = broker.submit(3, Retry::Never);
        drop(worker);
        // What it had may have begun.
        until(|| second.failed.get().is_some()).await;
        assert_eq!(third.handed.get(), 0);
        // Whoever comes by a reply is there too: it may have been with the broker before.
        let back = broker.worker();
        back.say(&["", "front 1:8, from before"]);
        assert_eq!(back.hear().await, ["", "front 3 / 2:{},0:,"]);
        assert_eq!(broker.replied(3).await[2], "front 1:8, from before");
        // And so is whoever came back only to finish what it had.
        let leaves = broker.worker();
        leaves.say(&["", "X"]);
        assert_eq!(leaves.hear().await, ["", "X"]);
        leaves.say(&["", "front 1:9, farewell"]);
        assert_eq!(broker.replied(4).await[3], "front 1:9, farewell");
    });
}

#[test]
fn a_worker_of_m2wsgi_takes_as_many_at_once_as_the_pools_rules_say() {
    shard(async {
        let broker = Broker::start().await;
        let mut two = settings();
        two.rules.slots = Some(2);
        two.rules.prefetch_max = 0;
        broker.pool.reconfigure(two);
        let worker = broker.worker();
        worker.say(&["", ""]);
        let tickets = [1, 2, 3].map(|id| broker.submit(id, Retry::Never));
        for id in [1, 2] {
            assert_eq!(
                worker.hear().await,
                ["", &format!("front {id} / 2:{{}},0:,")]
            );
        }
        worker.say(&["", "front 1:1, answer"]);
        broker.replied(1).await;
        assert_eq!(tickets[2].1.handed.get(), 0);
    });
}

#[test]
fn random_messages_do_not_stop_others_and_a_flood_of_them_is_ended() {
    shard(async {
        let broker = Broker::start().await;
        let steady = broker.own("4").await;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let words = [
            "HELLO",
            "HELD",
            "CREDIT",
            "FIRST",
            "REPLY",
            "DONE",
            "PING",
            "PONG",
            "DRAIN",
            "BYE",
            "X",
            "",
            "0",
            "1",
            "18446744073709551616",
            "-1",
            "\u{ff}",
            "front 1:1, x",
            "MAYBE",
        ];
        for round in 0..40 {
            let noisy = broker.worker();
            if round % 2 == 0 {
                noisy.say(&["HELLO", "1", "", "", "1", ""]);
            } else if round % 3 == 0 {
                noisy.say(&["", ""]);
            }
            for _ in 0..random(100) {
                let count = 1 + random(7);
                let frames: Vec<&str> = (0..count)
                    .map(|_| words[usize::try_from(random(words.len() as u64)).unwrap()])
                    .collect();
                noisy.say(&frames);
            }
            steady.say(&["PING", "7"]);
            assert_eq!(steady.hear().await, ["PONG", "7"]);
        }
        let mut raw = Raw::ready(&broker.workers, "DEALER").await;
        raw.write(&b"\0\x05FIRST".repeat(200)).await;
        let said = raw.rest().await;
        assert!(said.windows(7).any(|word| word == b"REFUSED"));
        until(|| broker.pool.report().workers.len() == 1).await;
        let (_ticket, client) = broker.submit(1, Retry::Never);
        assert_eq!(steady.hear().await[0], "REQUEST");
        assert_eq!(client.failed.get(), None);
    });
}

#[test]
fn a_silent_worker_gets_nothing_until_it_is_heard() {
    shard(async {
        let broker = Broker::start().await;
        let worker = broker.own("4").await;
        let asked = worker.hear_all().await;
        assert_eq!(asked[0], "PING");
        worker.say(&["PONG", &asked[1], "1"]);
        // What it is asked further stays unanswered.
        let state = || broker.pool.report().workers[0].state;
        until(|| state() == "suspect").await;
        let (_ticket, client) = broker.submit(1, Retry::Never);
        assert_eq!(client.handed.get(), 0);
        worker.say(&["PONG", "0", "1"]);
        assert_eq!(worker.hear().await[0], "REQUEST");
        assert_ne!(state(), "suspect");
    });
}

#[test]
fn a_worker_that_stays_silent_is_dead_although_its_connection_stands() {
    shard(async {
        let broker = Broker::start().await;
        let silent = broker.own("4").await;
        let asked = silent.hear_all().await;
        silent.say(&["PONG", &asked[1], "1"]);
        let (_ticket, client) = broker.submit(7, Retry::Never);
        let request = silent.hear().await;
        let lives = broker.own("4").await;
        let again = async {
            loop {
                let said = lives.hear_all().await;
                match said[0].as_str() {
                    "PING" => lives.say(&["PONG", &said[1], "1"]),
                    _ => break said,
                }
            }
        };
        let again = again.await;
        assert_eq!((&again[1], again[2].as_str()), (&request[1], "2"));
        assert_eq!(client.handed.get(), 2);
        // It wakes up, and what it says of that request comes too late, whatever it makes of the end of its connection.
        silent.say(&["HELLO", "1", "", "4", "1", ""]);
        silent.say(&["HELD", &request[1], "front 7"]);
        silent.say(&["REPLY", &request[1], "front 1:7, late"]);
        until_said(&silent, "CANCEL").await;
        lives.say(&["REPLY", &again[1], "front 1:7, in time"]);
        assert_eq!(broker.replied(1).await, ["front 1:7, in time"]);
        assert!(broker.ears.held.borrow().is_empty());
    });
}

async fn until_said(worker: &Dealer, word: &str) {
    while worker.hear_all().await[0] != word {}
}
