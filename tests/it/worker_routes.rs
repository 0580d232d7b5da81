//! Routes of the front that take workers of the broker's dialect, beside plain handlers, with what else a handler's entry says: slots,
//! queue, wait, retry, sticky. What the dialect is has tests of its own.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use lurcher::wire::worker::FromBroker;

use crate::support::client::Client;
use crate::support::dealer::{Dealer, whoever};
use crate::support::front::Front;
use crate::support::handler::QUIET;
use crate::support::peer::{Peer, Replies, address};
use crate::support::{PATIENCE, free_port};

/// A front with one route to one handler that takes workers.
struct Site {
    front: Front,
    send: String,
    recv: String,
    workers: String,
}

impl Site {
    /// `more` is what else the handler has, `settings` as they stand in a `.conf`.
    fn start(more: &str, settings: &str) -> Self {
        let [send, recv, workers] = [(); 3].map(|()| format!("tcp://127.0.0.1:{}", free_port()));
        let handler = handler(&send, &recv, &format!("workers='{workers}' {more}"));
        let front = Front::routed(settings, &format!("'/': {handler}"));
        Self {
            front,
            send,
            recv,
            workers,
        }
    }

    fn worker(&self, name: &str) -> Dealer {
        Dealer::connect(&self.workers, name, Some(4))
    }

    /// A plain handler that is ready for its first request.
    fn plain(&self) -> Peer {
        let peer = Peer::connect(&self.send, &self.recv, Replies::Xpub);
        peer.joined();
        peer
    }

    fn ask(&self, request: &str) -> Client {
        let mut client = Client::connect(self.front.address);
        client.send(request.as_bytes()).expect("send");
        client
    }

    /// Puts `new` in place of `old` in the configuration, and waits until it is served.
    fn reload(&mut self, old: &str, new: &str, times: usize) {
        let file = self.front.directory().join("main.conf");
        let text = fs::read_to_string(&file).expect("the configuration");
        assert!(text.contains(old), "{old}: {text}");
        fs::write(&file, text.replace(old, new)).expect("write");
        self.front.program.signal("HUP");
        self.front.program.said("configuration reloaded", times);
    }
}

fn handler(send: &str, recv: &str, more: &str) -> String {
    format!(
        "Handler(send_spec='{send}', send_ident='app-ident', recv_spec='{recv}', recv_ident='' {more})"
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn of_session(session: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: localhost\r\nCookie: a=b; sid={session}\r\n\r\n")
}

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Has the plain handler answer a request that it has or will have; says its path.
fn answer_plainly(peer: &Peer) -> String {
    loop {
        let message = peer.recv(PATIENCE).expect("a request");
        let (sender, id, path, _) = address(&message);
        // Not the end of a client.
        if path != "@*" {
            peer.reply(sender, id, HELLO);
            return path.to_owned();
        }
    }
}

#[test]
fn workers_and_plain_handlers_share_a_route() {
    let site = Site::start("", "");
    let plain = site.plain();
    let mut client = site.ask(&get("/"));
    answer_plainly(&plain);
    assert_eq!(client.answer().status, 200);
    let worker = site.worker("anna");
    // Each takes the one that the other does not have.
    let mut clients = [site.ask(&get("/a")), site.ask(&get("/b"))];
    let given = worker.given();
    assert_eq!((given.attempt, given.left), (1, None));
    let path = answer_plainly(&plain);
    assert_ne!(given.path, path);
    worker.answer(&given, HELLO);
    for client in &mut clients {
        let answer = client.answer();
        assert_eq!((answer.status, &answer.body[..]), (200, &b"hello"[..]));
    }
    // What one has not answered yet goes past it.
    let mut slow = site.ask(&get("/slow"));
    let fast = |number: usize| site.ask(&get(&format!("/{number}")));
    if let Some(given) = worker.given_within(QUIET) {
        for number in 0..5 {
            let mut client = fast(number);
            answer_plainly(&plain);
            assert_eq!(client.answer().status, 200);
        }
        worker.answer(&given, HELLO);
    } else {
        for number in 0..5 {
            let mut client = fast(number);
            worker.answer(&worker.given(), HELLO);
            assert_eq!(client.answer().status, 200);
        }
        assert_eq!(answer_plainly(&plain), "/slow");
    }
    assert_eq!(slow.answer().status, 200);
}

#[test]
fn a_full_queue_refuses_at_once_and_says_when_to_ask_again() {
    let site = Site::start("slots=1, queue=1", "");
    let worker = Dealer::connect(&site.workers, "", None);
    let mut held = vec![site.ask(&get("/"))];
    let given = worker.given();
    worker.begin(&given);
    let refused = loop {
        let mut client = site.ask(&get("/more"));
        if client.read_some(QUIET) {
            break client.answer();
        }
        held.push(client);
        assert!(
            held.len() < 6,
            "one is open, one waits, and some may be underway"
        );
    };
    assert!(held.len() >= 2, "one may wait");
    assert_eq!(refused.status, 503);
    let after = refused.header("retry-after").expect("Retry-After");
    let after: u64 = str::from_utf8(after).unwrap().parse().expect("seconds");
    assert!((1..=600).contains(&after), "{after}");
    assert!(
        refused.body.starts_with(b"Service Unavailable: too many"),
        "{refused:?}"
    );
    worker.answer(&given, HELLO);
    for _ in 1..held.len() {
        worker.answer(&worker.given(), HELLO);
    }
    for client in &mut held {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn a_request_waits_for_as_long_as_its_route_says() {
    let site = Site::start("wait=1", "");
    let began = Instant::now();
    let answer = site.ask(&get("/")).answer();
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert!(began.elapsed() >= Duration::from_secs(1));
    // Far below the thirty seconds of the setting.
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn what_a_lost_worker_had_begun_is_handed_on_where_its_route_says_so() {
    for (retry, method, again) in [
        ("always", "POST", true),
        ("safe", "POST", false),
        ("no", "GET", false),
    ] {
        let site = Site::start(&format!("retry='{retry}'"), "");
        let first = site.worker("first");
        let mut client = site.ask(&format!(
            "{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        ));
        let given = first.given();
        first.begin(&given);
        // Whatever it says comes before its end.
        let second = site.worker("second");
        drop(first);
        if again {
            let given = second.given();
            assert_eq!(given.attempt, 2, "{retry}");
            second.answer(&given, HELLO);
            assert_eq!(client.answer().status, 200, "{retry}");
        } else {
            assert_eq!(client.answer().status, 502, "{retry}");
        }
    }
}

#[test]
fn what_two_workers_died_with_is_given_to_no_third() {
    let site = Site::start("retry='always'", "");
    let first = site.worker("first");
    let mut client = site.ask(&get("/poison"));
    let given = first.given();
    first.begin(&given);
    let second = site.worker("second");
    drop(first);
    let given = second.given();
    second.begin(&given);
    let third = site.worker("third");
    drop(second);
    let answer = client.answer();
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(
        answer
            .body
            .ends_with(b"several handlers were lost while they had the request")
    );
    // Others are as good as ever.
    let mut client = site.ask(&get("/"));
    let given = third.given();
    assert_eq!(given.path, "/");
    third.answer(&given, HELLO);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn what_a_lost_worker_had_not_begun_is_handed_on_whatever_its_route_says() {
    let site = Site::start("retry='no'", "");
    let first = site.worker("first");
    let mut client = site.ask("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx");
    first.given();
    let second = site.worker("second");
    drop(first);
    let given = second.given();
    second.answer(&given, HELLO);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn a_worker_is_told_how_much_time_is_left_and_when_nobody_waits_any_more() {
    let site = Site::start("", ", 'limits.handler_timeout': 1");
    let worker = site.worker("");
    let mut client = site.ask(&get("/"));
    let given = worker.given();
    let left = given.left.expect("a deadline");
    assert!(left <= Duration::from_secs(1), "{left:?}");
    worker.begin(&given);
    let answer = client.answer();
    assert_eq!(answer.status, 504);
    assert!(
        matches!(worker.hear(PATIENCE), Some(FromBroker::Cancel(id)) if id == given.id),
        "it may stop"
    );
    // A response that has begun in time may take its own.
    let mut client = site.ask(&get("/stream"));
    let given = loop {
        let given = worker.given();
        if given.path == "/stream" {
            break given;
        }
    };
    worker.begin(&given);
    let say = |payload: &[u8]| {
        worker.say(&lurcher::wire::worker::FromWorker::Reply {
            id: Some(given.id),
            message: crate::support::peer::reply(&given.sender, &given.connection, payload).into(),
        });
    };
    say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
    // Two seconds in which PINGs are answered and nothing else is heard.
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        let heard = worker.hear(end.saturating_duration_since(Instant::now()));
        assert!(heard.is_none(), "{heard:?}");
    }
    say(b"cd");
    assert_eq!(client.answer().body, b"abcd");
}

#[test]
fn requests_of_one_session_go_to_one_worker_which_gets_them_back_when_it_returns() {
    const SESSIONS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let site = Site::start("sticky='cookie:sid'", "");
    let mut anna = site.worker("anna");
    let bert = site.worker("bert");
    let round = |anna: &Dealer, bert: &Dealer| -> Vec<usize> {
        let whose = |session: &&str| {
            let mut client = site.ask(&of_session(session));
            let both = [anna, bert];
            let (who, given) = whoever(&both);
            both[who].answer(&given, HELLO);
            assert_eq!(client.answer().status, 200);
            who
        };
        SESSIONS.iter().map(whose).collect()
    };
    let first = round(&anna, &bert);
    assert!(first.contains(&0) && first.contains(&1), "{first:?}");
    assert_eq!(round(&anna, &bert), first);
    // While it is away, all go to the other one.
    drop(anna);
    for session in SESSIONS {
        let mut client = site.ask(&of_session(session));
        bert.answer(&bert.given(), HELLO);
        assert_eq!(client.answer().status, 200);
    }
    anna = site.worker("anna");
    assert_eq!(round(&anna, &bert), first);
}

#[test]
fn a_busy_worker_shares_its_sessions_unless_they_are_strict() {
    for (rule, is_strict) in [("cookie:sid", false), ("cookie:sid,strict=60", true)] {
        let site = Site::start(&format!("sticky='{rule}'"), "");
        let workers = [site.worker("anna"), site.worker("bert")];
        let both = [&workers[0], &workers[1]];
        let mut clients = vec![site.ask(&of_session("a"))];
        let (own, first) = whoever(&both);
        let mut given = vec![(own, first)];
        for _ in 1..4 {
            clients.push(site.ask(&of_session("a")));
        }
        for _ in 1..4 {
            if is_strict && given.len() == 4 {
                break;
            }
            given.push(whoever(&both));
        }
        let elsewhere = given.iter().filter(|(who, _)| *who != own).count();
        if is_strict {
            assert_eq!(elsewhere, 0, "it has room for all four");
        } else {
            assert!(elsewhere > 0, "one has no more than its share");
        }
        for (who, given) in &given {
            both[*who].answer(given, HELLO);
        }
        for client in &mut clients {
            assert_eq!(client.answer().status, 200);
        }
    }
}

#[test]
fn a_strict_session_waits_for_its_own_worker() {
    let site = Site::start("sticky='cookie:sid,strict=60'", "");
    let workers = ["anna", "bert"].map(|name| Dealer::connect(&site.workers, name, Some(1)));
    let both = [&workers[0], &workers[1]];
    let mut clients = [site.ask(&of_session("a")), site.ask(&of_session("a"))];
    let (own, first) = whoever(&both);
    both[own].begin(&first);
    assert!(
        both[1 - own].given_within(QUIET).is_none(),
        "the other one is free, and not its own"
    );
    both[own].answer(&first, HELLO);
    both[own].answer(&both[own].given(), HELLO);
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
}

/// Has one of two plain handlers answer a request; says which.
fn either_answers(peers: &[Peer; 2]) -> usize {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        for (index, peer) in peers.iter().enumerate() {
            if let Some(message) = peer.recv(Duration::from_millis(5)) {
                let (sender, id, path, _) = address(&message);
                if path != "@*" {
                    peer.reply(sender, id, HELLO);
                    return index;
                }
            }
        }
    }
    panic!("nobody was given the request");
}

#[test]
fn requests_of_one_connection_go_to_one_plain_handler_too() {
    for (rule, sticks) in [
        ("sticky='conn'", true),
        (r"sticky='regex:^\S+ (\S+ )'", true),
        ("", false),
    ] {
        let site = Site::start(rule, "");
        let peers = [site.plain(), site.plain()];
        let mut took = [0; 2];
        // Any two of so many connections differ in whom they belong to, once both are there.
        while took.contains(&0) {
            assert!(took.iter().sum::<u32>() < 100, "both are asked: {took:?}");
            let mut client = site.ask(&get("/"));
            took[either_answers(&peers)] += 1;
            assert_eq!(client.answer().status, 200);
        }
        let mut client = Client::connect(site.front.address);
        took = [0; 2];
        for _ in 0..6 {
            client.send(get("/").as_bytes()).expect("send");
            took[either_answers(&peers)] += 1;
            assert_eq!(client.answer().status, 200);
        }
        assert_eq!(took.contains(&6), sticks, "{rule}: {took:?}");
    }
}

#[test]
fn a_reload_keeps_workers_whose_address_stays() {
    let mut site = Site::start("slots=1", "");
    let worker = Dealer::connect(&site.workers, "anna", None);
    let mut open = site.ask(&get("/open"));
    let given = worker.given();
    worker.begin(&given);
    site.reload("slots=1", "slots=3, wait=9, sticky='path:1'", 1);
    // It need not say HELLO again, and has two more at once.
    let mut more = [site.ask(&get("/1")), site.ask(&get("/2"))];
    for _ in &more {
        worker.answer(&worker.given(), HELLO);
    }
    for client in &mut more {
        assert_eq!(client.answer().status, 200);
    }
    worker.answer(&given, HELLO);
    assert_eq!(open.answer().status, 200);
}

#[test]
fn a_reload_gives_a_route_workers_and_takes_them_away() {
    let mut site = Site::start("", "");
    let old = format!("workers='{}'", site.workers);
    site.reload(&old, "", 1);
    let port = site.workers.rsplit(':').next().unwrap();
    let free = || TcpListener::bind(format!("127.0.0.1:{port}")).is_ok();
    let end = Instant::now() + PATIENCE;
    while !free() {
        assert!(Instant::now() < end, "the address is left");
        std::thread::sleep(Duration::from_millis(5));
    }
    let plain = site.plain();
    let mut client = site.ask(&get("/"));
    answer_plainly(&plain);
    assert_eq!(client.answer().status, 200);

    // The handler that is there connects to the new sockets by itself.
    site.reload("recv_ident=''  )", &format!("recv_ident='' {old})"), 2);
    let worker = site.worker("anna");
    let end = Instant::now() + PATIENCE;
    let mut took = [0; 2];
    while took.contains(&0) {
        assert!(Instant::now() < end, "both are asked: {took:?}");
        let mut client = site.ask(&get("/"));
        if let Some(given) = worker.given_within(Duration::from_millis(50)) {
            worker.answer(&given, HELLO);
            took[0] += 1;
        } else {
            answer_plainly(&plain);
            took[1] += 1;
        }
        assert_eq!(client.answer().status, 200);
    }
}
