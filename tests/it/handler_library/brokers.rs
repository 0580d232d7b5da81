//! Workers of the handler library against a broker made of a plain libzmq ROUTER, which says what its test wants.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use lurcher::handler::{ConnectError, Connection, Event, Options, ReplyError};
use lurcher::wire::ConnId;
use lurcher::wire::worker::{FromBroker, FromWorker, Hello, RequestId};

use super::fake_front::{Front, get, request};
use super::{PATIENCE, end, run};

/// How often this broker wants a sign of life: not within a test.
const SELDOM: Duration = Duration::from_mins(5);

/// A ROUTER, and who spoke last.
struct Broker {
    socket: zmq::Socket,
    endpoint: String,
    peer: Vec<u8>,
    /// Dropping it waits until the socket is closed.
    _context: zmq::Context,
}

impl Broker {
    fn new() -> Self {
        Self::bind("tcp://127.0.0.1:*")
    }

    fn bind(endpoint: &str) -> Self {
        let context = zmq::Context::new();
        let socket = context.socket(zmq::ROUTER).unwrap();
        socket.set_linger(0).unwrap();
        socket.set_rcvtimeo(30_000).unwrap();
        socket.bind(endpoint).unwrap();
        let endpoint = socket.get_last_endpoint().unwrap().unwrap();
        Self {
            socket,
            endpoint,
            peer: Vec::new(),
            _context: context,
        }
    }

    fn options(&self) -> Options {
        let mut options = Options::to(&format!("broker+{}", self.endpoint)).unwrap();
        options.subscription_timeout = PATIENCE;
        options.name = Some("w".to_owned());
        options.slots = Some(2);
        options
    }

    fn hear(&mut self) -> FromWorker {
        let mut frames = self.socket.recv_multipart(0).expect("a word of the worker");
        self.peer = frames.remove(0);
        let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
        FromWorker::decode(&frames).unwrap().expect("a known word")
    }

    fn say(&self, word: &FromBroker) {
        let frames = word.encode();
        let frames = frames.iter().map(|frame| &frame[..]);
        let frames = std::iter::once(&self.peer[..]).chain(frames);
        self.socket.send_multipart(frames, 0).unwrap();
    }

    fn welcome(&mut self, interval: Duration) -> Hello {
        let FromWorker::Hello(hello) = self.hear() else {
            panic!("HELLO comes first");
        };
        self.say(&FromBroker::Welcome {
            version: 1,
            interval,
            patience: 3 * interval,
        });
        hello
    }

    fn give(&self, id: u64, message: Vec<u8>) {
        self.say(&FromBroker::Request {
            id: RequestId(id),
            attempt: 1,
            left: None,
            message: message.into(),
        });
    }

    /// A reply: the request's number, and the message.
    #[track_caller]
    fn reply(&mut self) -> (Option<u64>, String) {
        match self.hear() {
            FromWorker::Reply { id, message } => (
                id.map(|id| id.0),
                String::from_utf8_lossy(&message).into_owned(),
            ),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn expect(&mut self, word: &FromWorker) {
        assert_eq!(self.hear(), *word);
    }

    #[track_caller]
    fn done(&mut self) -> u64 {
        match self.hear() {
            FromWorker::Done { id, .. } => id.0,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn expect_done(&mut self, id: u64) {
        assert_eq!(self.done(), id);
    }
}

const fn first(id: u64) -> FromWorker {
    FromWorker::First(RequestId(id))
}

/// Answers everything, and says what it was told beside.
async fn answer(mut connection: Connection) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(request) = connection.recv().await {
        match request.into_event() {
            Event::Request(request) => {
                let body = [&request.path[..], &request.body[..]].concat();
                request.respond(200).send(body).await.unwrap();
            }
            Event::Disconnect(client) => told.push(format!("gone {}", client.conn_id())),
            other => told.push(format!("{other:?}")),
        }
    }
    connection.finish().await;
    told
}

#[test]
fn a_worker_says_who_it_is_what_it_begins_and_what_is_done() {
    let mut broker = Broker::new();
    let mut options = broker.options();
    options.weight = 3;
    options.pool = Some("shop".to_owned());
    let handler = run(options, async |mut connection| {
        let request = connection.recv().await.unwrap();
        connection
            .reply(&request, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            .await
            .unwrap();
        connection.reply(&request, "cd").await.unwrap();
        connection.reply(&request, "late").await.unwrap();
        connection.set_slots(5);
        assert!(connection.servers().all(|server| server.is_broker()));
        connection.finish().await;
    });
    let hello = broker.welcome(SELDOM);
    assert_eq!(
        hello,
        Hello {
            version: 1,
            name: "w".into(),
            slots: Some(2),
            weight: 3,
            pool: "shop".into()
        }
    );
    broker.give(70, request(7, "POST", "HTTP/1.1", ""));
    broker.expect(&first(70));
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
    assert_eq!(broker.reply(), (Some(70), format!("front 1:7, {head}ab")));
    assert_eq!(broker.reply(), (Some(70), "front 1:7, cd".to_owned()));
    broker.expect_done(70);
    assert_eq!(broker.reply(), (None, "front 1:7, late".to_owned()));
    broker.expect(&FromWorker::Credit(5));
    broker.expect(&FromWorker::Bye);
    end(handler);
}

#[test]
fn a_broker_that_refuses_is_an_error_with_its_reason() {
    let mut broker = Broker::new();
    let options = broker.options();
    let handler = thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime
            .block_on(Connection::connect(options))
            .map(drop)
            .unwrap_err()
    });
    assert!(matches!(broker.hear(), FromWorker::Hello(_)));
    broker.say(&FromBroker::Refused {
        reason: "there is no pool `shop`".into(),
    });
    let error = end(handler);
    assert!(matches!(error, ConnectError::Refused { .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "the broker at {} refuses: there is no pool `shop`",
            broker.endpoint
        )
    );
}

#[test]
fn a_cancelled_request_is_a_client_that_is_gone_or_was_never_there() {
    let mut broker = Broker::new();
    let (go, gone) = tokio::sync::oneshot::channel();
    let handler = run(broker.options(), async move |mut connection| {
        let first = connection.recv().await.unwrap();
        gone.await.unwrap();
        let Some(Event::Disconnect(client)) = connection.recv().await.map(Event::from) else {
            panic!("its client is gone");
        };
        assert_eq!(client, first.client());
        // The second was taken back before anybody saw it, and the notice of the server is no news.
        let third = connection.recv().await.unwrap();
        assert_eq!(third.conn_id, ConnId(3));
        connection.finish().await;
    });
    broker.welcome(SELDOM);
    broker.give(1, request(1, "POST", "HTTP/1.1", ""));
    broker.expect(&first(1));
    broker.give(2, get(2));
    broker.say(&FromBroker::Cancel(RequestId(2)));
    broker.say(&FromBroker::Cancel(RequestId(1)));
    let notice = br#"front 1 @* 17:{"METHOD":"JSON"},21:{"type":"disconnect"},"#;
    broker.say(&FromBroker::Message {
        message: Bytes::from_static(notice),
    });
    broker.give(3, get(3));
    // Both places are free for others, that of the first when the program has heard of it.
    let mut done = Vec::new();
    // All has arrived when what was said last is answered: else the program may see what is taken back next.
    broker.say(&FromBroker::Ping(7));
    loop {
        match broker.hear() {
            FromWorker::Done { id, .. } => done.push(id.0),
            FromWorker::Pong { number: 7, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    go.send(()).unwrap();
    while done.len() < 2 {
        done.push(broker.done());
    }
    done.sort_unstable();
    assert_eq!(done, [1, 2]);
    broker.expect(&first(3));
    broker.expect(&FromWorker::Bye);
    end(handler);
}

#[test]
fn a_busy_program_is_alive_and_its_progress_stands_still() {
    let mut broker = Broker::new();
    let (go, gone) = mpsc::channel::<()>();
    let handler = run(broker.options(), async move |mut connection| {
        let request = connection.recv().await.unwrap();
        // As a program that computes: its runtime does nothing else.
        gone.recv().unwrap();
        request.respond(200).send("done").await.unwrap();
        connection.finish().await;
    });
    broker.welcome(Duration::from_millis(400));
    broker.give(1, request(1, "POST", "HTTP/1.1", ""));
    broker.expect(&first(1));
    let mut pong = |number| {
        broker.say(&FromBroker::Ping(number));
        loop {
            match broker.hear() {
                FromWorker::Pong {
                    number: of,
                    progress,
                } if of == number => return progress,
                // Its own question, when this test was slow.
                FromWorker::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let progress = [pong(1), pong(2), pong(3)];
    assert_eq!(progress, [progress[0]; 3]);
    go.send(()).unwrap();
    loop {
        match broker.hear() {
            FromWorker::Ping(_) => {}
            FromWorker::Reply { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    end(handler);
}

#[test]
fn a_worker_that_stops_is_answered_and_answers_what_it_has() {
    let mut broker = Broker::new();
    let (tell, told) = mpsc::channel();
    let handler = run(broker.options(), async move |connection| {
        tell.send(connection.stop_handle()).unwrap();
        answer(connection).await
    });
    broker.welcome(SELDOM);
    told.recv().unwrap().stop();
    broker.expect(&FromWorker::Drain);
    // It was on its way.
    broker.give(1, request(1, "PUT", "HTTP/1.1", "b"));
    broker.say(&FromBroker::Drain);
    broker.expect(&first(1));
    let (id, message) = broker.reply();
    assert!(id == Some(1) && message.ends_with("/ab"), "{message}");
    broker.expect_done(1);
    broker.expect(&FromWorker::Bye);
    assert_eq!(end(handler), Vec::<String>::new());
}

#[test]
fn what_a_worker_holds_goes_to_a_broker_that_was_started_anew() {
    let mut broker = Broker::new();
    let endpoint = broker.endpoint.clone();
    let (go, gone) = tokio::sync::oneshot::channel();
    let handler = run(broker.options(), async move |mut connection| {
        let whole = connection.recv().await.unwrap();
        let begun = connection.recv().await.unwrap();
        let mut writer = begun.respond(200).stream().unwrap();
        writer.write("some of it").await.unwrap();
        writer.flush().await.unwrap();
        let Some(Event::Disconnect(client)) = connection.recv().await.map(Event::from) else {
            panic!("nobody knows what of it has arrived");
        };
        assert_eq!(client, begun.client());
        let lost = writer.write(vec![0; 1 << 20]).await;
        assert!(matches!(lost, Err(ReplyError::ClientGone)), "{lost:?}");
        drop(writer);
        gone.await.unwrap();
        whole.respond(200).send("all of it").await.unwrap();
        answer(connection).await
    });
    broker.welcome(SELDOM);
    broker.give(1, request(1, "POST", "HTTP/1.1", ""));
    broker.give(2, request(2, "POST", "HTTP/1.1", ""));
    broker.expect(&first(1));
    broker.expect(&first(2));
    let (id, message) = broker.reply();
    assert!(id == Some(2) && message.contains("some of it"), "{message}");
    drop(broker);

    let mut broker = Broker::bind(&endpoint);
    assert_eq!(broker.welcome(SELDOM).slots, Some(2));
    broker.expect(&FromWorker::Held {
        id: RequestId(1),
        address: "front 1".into(),
    });
    assert_eq!(broker.reply(), (None, "front 1:2, ".to_owned()));
    go.send(()).unwrap();
    let (id, message) = broker.reply();
    assert!(id == Some(1) && message.ends_with("all of it"), "{message}");
    broker.expect_done(1);
    broker.give(4, request(4, "POST", "HTTP/1.1", ""));
    broker.expect(&first(4));
    drop(broker);
    drop(handler);
}

#[test]
fn what_was_not_taken_when_a_connection_is_lost_is_another_workers() {
    let mut broker = Broker::new();
    let endpoint = broker.endpoint.clone();
    let (go, gone) = mpsc::channel::<()>();
    let handler = run(broker.options(), async move |mut connection| {
        // It does not ask for requests: what comes now waits for it.
        gone.recv().unwrap();
        let request = connection.recv().await.unwrap();
        connection.close(&request).await.unwrap();
        connection.finish().await;
    });
    broker.welcome(Duration::from_secs(1));
    broker.give(3, get(3));
    broker.say(&FromBroker::Ping(1));
    while !matches!(broker.hear(), FromWorker::Pong { number: 1, .. }) {}
    drop(broker);

    let mut broker = Broker::bind(&endpoint);
    broker.welcome(SELDOM);
    broker.give(4, get(4));
    go.send(()).unwrap();
    broker.expect(&first(4));
    assert_eq!(broker.reply(), (Some(4), "front 1:4, ".to_owned()));
    broker.expect_done(4);
    end(handler);
}

#[test]
fn a_silent_broker_is_asked_and_then_given_up() {
    let mut broker = Broker::new();
    let handler = run(broker.options(), answer);
    broker.welcome(Duration::from_millis(50));
    // Nothing is said any more, so it says hello on another connection.
    let before = broker.peer.clone();
    let mut pinged = false;
    loop {
        match broker.hear() {
            FromWorker::Ping(_) => pinged = true,
            FromWorker::Hello(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(pinged);
    assert_ne!(broker.peer, before);
    broker.say(&FromBroker::Welcome {
        version: 1,
        interval: SELDOM,
        patience: SELDOM,
    });
    broker.give(1, request(1, "POST", "HTTP/1.1", ""));
    broker.expect(&first(1));
    drop(handler);
}

#[test]
fn brokers_and_servers_go_together() {
    let mut broker = Broker::new();
    let front = Front::new();
    let spec = format!("broker+{},{}", broker.endpoint, front.send_spec);
    let mut options = Options::to(&spec).unwrap();
    options.recv_specs = vec![front.recv_spec.parse().unwrap()];
    options.subscription_timeout = PATIENCE;
    let handler = run(options, async |mut connection| {
        for _ in 0..2 {
            let request = connection.recv().await.unwrap();
            connection.reply(&request, &request.body).await.unwrap();
            connection.close(&request).await.unwrap();
        }
        connection.finish().await;
    });
    broker.welcome(SELDOM);
    broker.give(1, request(1, "POST", "HTTP/1.1", "broker"));
    broker.expect(&first(1));
    assert_eq!(broker.reply(), (Some(1), "front 1:1, broker".to_owned()));
    assert_eq!(broker.reply(), (Some(1), "front 1:1, ".to_owned()));
    broker.expect_done(1);
    front.push(&request(2, "POST", "HTTP/1.1", "front"));
    assert_eq!(front.reply(), "front 1:2, front");
    assert_eq!(front.reply(), "front 1:2, ");
    end(handler);
}

#[test]
fn a_worker_waits_for_its_broker_and_for_one_that_does_not_read() {
    const MANY: usize = 3_000;
    let endpoint = Broker::new().endpoint.clone();
    let mut options = Options::to(&format!("broker+{endpoint}")).unwrap();
    options.subscription_timeout = Duration::from_millis(10);
    options.replies_queued_max = 10;
    let (sent, seen) = mpsc::channel();
    let handler = run(options, async move |mut connection| {
        let request = connection.recv().await.unwrap();
        let piece = vec![b'x'; 10_000];
        for _ in 0..MANY {
            connection.reply(&request, &piece).await.unwrap();
            sent.send(()).unwrap();
        }
        connection.close(&request).await.unwrap();
        connection.finish().await;
    });
    let mut broker = Broker::bind(&endpoint);
    broker.socket.set_rcvhwm(10).unwrap();
    broker.welcome(SELDOM);
    broker.give(1, get(1));
    broker.expect(&first(1));
    // 30 MB are more than all buffers between.
    let mut before = 0;
    loop {
        thread::sleep(Duration::from_millis(100));
        let now = before + seen.try_iter().count();
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    assert!(before < MANY, "{before} were taken");
    for _ in 0..MANY {
        assert_eq!(broker.reply().1.len(), "front 1:1, ".len() + 10_000);
    }
    assert_eq!(broker.reply(), (Some(1), "front 1:1, ".to_owned()));
    broker.expect_done(1);
    end(handler);
}
