//! What belongs to one connection goes to the worker that has it: notices, frames, uploads, answers in pieces.

use std::time::Duration;

use lurcher::broker::Settings;

use super::running::Running;
use super::{Plain, feed, message, request};
use crate::support::client::Client;
use crate::support::peer::{Peer, address};
use crate::support::servers::{self, Kind};
use crate::support::{PATIENCE, scratch};

const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A text frame of a client, masked with zeros.
fn frame(text: &str) -> Vec<u8> {
    let length = 0x80 | u8::try_from(text.len()).unwrap();
    [&[0x81, length, 0, 0, 0, 0], text.as_bytes()].concat()
}

fn has(message: &[u8], text: &str) -> bool {
    memchr::memmem::find(message, text.as_bytes()).is_some()
}

#[track_caller]
fn got(worker: &Peer) -> Vec<u8> {
    worker.recv(PATIENCE).expect("a message")
}

/// Nothing has come to this worker, while `other` was seen to get what was sent later.
#[track_caller]
fn got_nothing(worker: &Peer) {
    let message = worker.recv(Duration::ZERO);
    assert_eq!(message.map(|m| m.escape_ascii().to_string()), None);
}

#[test]
fn a_websocket_outlives_the_worker_that_accepted_it() {
    servers::each("", |server| {
        let feed = feed(&server);
        let first = feed.worker();
        let mut client = Client::connect(server.address);
        client.send(HANDSHAKE.as_bytes()).unwrap();
        let handshake = got(&first);
        assert!(has(&handshake, "WEBSOCKET_HANDSHAKE"));
        let (sender, id, ..) = address(&handshake);
        first.reply(sender, id, SWITCHING);
        client.upto(b"\r\n\r\n");
        let second = feed.worker();
        feed.ready(2);
        for text in ["one", "two", "three"] {
            client.send(&frame(text)).unwrap();
            let message = got(&first);
            assert_eq!(address(&message).1, id);
            assert!(
                has(&message, &format!(":{text},")),
                "{}",
                message.escape_ascii()
            );
        }
        got_nothing(&second);
        drop(first);
        feed.until("the first worker is gone", |feed| {
            feed.workers().iter().filter(|w| w.state == "ready").count() == 1
        });
        client.send(&frame("four")).unwrap();
        let message = got(&second);
        assert!(has(&message, ":four,"));
        second.reply(sender, id, b"\x81\x05hello");
        assert_eq!(client.upto(b"hello"), b"\x81\x05hello");
        drop(client);
        let notice = got(&second);
        assert!(has(&notice, "disconnect"));
        assert_eq!(address(&notice).1, id);
    });
}

#[test]
fn a_clients_end_is_told_to_the_worker_that_has_its_request() {
    servers::each("", |server| {
        let feed = feed(&server);
        let workers = [feed.worker(), feed.worker()];
        feed.ready(2);
        for _ in 0..10 {
            let mut client = Client::connect(server.address);
            client
                .send(b"GET /poll HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            feed.until("it is handed over", |feed| {
                feed.workers().iter().any(|worker| worker.open == 1)
            });
            let mut other = Client::connect(server.address);
            other
                .send(b"GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            let messages = workers.each_ref().map(got);
            let poll = usize::from(has(&messages[1], "/poll"));
            drop(client);
            let notice = got(&workers[poll]);
            assert!(has(&notice, "disconnect"));
            assert_eq!(address(&notice).1, address(&messages[poll]).1);
            let (sender, id, ..) = address(&messages[1 - poll]);
            workers[1 - poll].reply(sender, id, &super::answer("x"));
            assert_eq!(other.answer().body, b"x");
            // Idle now: the one that had its request hears of its end all the same.
            drop(other);
            let notice = got(&workers[1 - poll]);
            assert!(has(&notice, "disconnect"));
            for worker in &workers {
                got_nothing(worker);
            }
        }
    });
}

#[test]
fn an_upload_is_announced_and_told_to_one_worker() {
    let store = scratch();
    let settings = format!(
        ", 'limits.content_length': 5000, 'upload.temp_store': '{}/u.XXXXXX'",
        store.path().display()
    );
    servers::each(&settings, |server| {
        let feed = feed(&server);
        let workers = [feed.worker(), feed.worker()];
        feed.ready(2);
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = Client::connect(server.address);
            let body = vec![b'u'; 300_000];
            let head = format!(
                "POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            client.send(head.as_bytes()).unwrap();
            client.send(&body[..100_000]).unwrap();
            feed.until("it is announced", |feed| {
                feed.workers().iter().any(|worker| worker.open == 1)
            });
            let (worker, started) = loop {
                let found = workers
                    .iter()
                    .find_map(|worker| worker.recv(Duration::from_millis(5)).map(|m| (worker, m)));
                if let Some(found) = found {
                    break found;
                }
            };
            assert!(has(&started, "x-mongrel2-upload-start"));
            assert!(!has(&started, "x-mongrel2-upload-done"));
            client.send(&body[100_000..]).unwrap();
            let done = got(worker);
            assert!(has(&done, "x-mongrel2-upload-done"));
            let (sender, id, ..) = address(&done);
            worker.reply(sender, id, &super::answer("stored"));
            assert_eq!(client.answer().body, b"stored");
            // Its end would be told too.
            clients.push(client);
        }
        for worker in &workers {
            got_nothing(worker);
        }
    });
}

#[test]
fn parts_of_a_body_go_to_the_worker_that_grants_them() {
    servers::each(
        ", 'limits.content_length': 5000, 'upload.stream': 1",
        |server| {
            let feed = feed(&server);
            let workers = [feed.worker(), feed.worker()];
            feed.ready(2);
            let mut client = Client::connect(server.address);
            let body: Vec<u8> = (0..200_000_u32).map(|n| b'a' + (n % 23) as u8).collect();
            let head = format!(
                "POST /stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            client.send(head.as_bytes()).unwrap();
            let (worker, mut message) = loop {
                let found = workers
                    .iter()
                    .find_map(|worker| worker.recv(Duration::from_millis(5)).map(|m| (worker, m)));
                if let Some(found) = found {
                    break found;
                }
            };
            let sending = std::thread::spawn({
                let body = body.clone();
                move || {
                    client.send(&body).unwrap();
                    client
                }
            });
            let mut seen = Vec::new();
            loop {
                let done = has(&message, "UPLOAD_STREAM_DONE");
                let request =
                    lurcher::wire::request::Request::decode(message.clone().into()).unwrap();
                seen.extend_from_slice(&request.body);
                let (sender, id, ..) = address(&message);
                if done {
                    worker.reply(sender, id, &super::answer("taken"));
                    break;
                }
                let credits = b"28:3:ctl,18:7:credits,5:50000#}]";
                let mut grant = format!("{sender} {}:X {id}, ", id.len() + 2).into_bytes();
                grant.extend_from_slice(credits);
                worker.send(&grant);
                message = got(worker);
            }
            assert!(seen == body, "{} of {} bytes", seen.len(), body.len());
            let mut client = sending.join().unwrap();
            assert_eq!(client.answer().body, b"taken");
            for worker in &workers {
                got_nothing(worker);
            }
        },
    );
}

#[test]
fn answers_of_every_form_end_where_they_end() {
    let server = Plain::bind();
    let feed = server.feed();
    let worker = feed.worker();
    let open = || feed.ask(|feed| feed.workers()[0].open);
    let mut id = 0;
    // Method, the payloads of its answer, and whether the last of them ends it.
    let cases: &[(&str, &[&str], bool)] = &[
        (
            "GET",
            &["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", "cd"],
            true,
        ),
        (
            "HEAD",
            &["HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n"],
            true,
        ),
        (
            "GET",
            &["HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"],
            true,
        ),
        (
            "GET",
            &[
                "HTTP/1.1 100 Continue\r\n\r\n",
                "HTTP/1.1 204 No Content\r\n\r\n",
            ],
            true,
        ),
        (
            "GET",
            &[
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "3\r\nabc\r\n",
                "0\r\n\r\n",
            ],
            true,
        ),
        (
            "GET",
            &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"],
            false,
        ),
        (
            "GET",
            &["HTTP/1.1 200 OK\r\n\r\nuntil", " the close", ""],
            true,
        ),
        ("GET", &["HTTP/1.1 200 OK\r\n\r\nuntil"], false),
        ("GET", &[""], true),
    ];
    for (method, payloads, ends) in cases {
        id += 1;
        let own = id.to_string();
        server.push(&request(id, method, "/", ""));
        got(&worker);
        assert_eq!(open(), 1, "{payloads:?}");
        for payload in *payloads {
            worker.reply("the-sender", &own, payload.as_bytes());
            server.reply();
        }
        if *ends {
            assert_eq!(open(), 0, "{payloads:?}");
            // The next one of the connection goes out.
            server.push(&request(id, "GET", "/next", ""));
            assert!(has(&got(&worker), "/next"));
        }
        worker.reply("the-sender", &own, b"");
        server.reply();
        assert_eq!(open(), 0, "{payloads:?}");
    }
    // One message for several; what is no HTTP makes nobody busy.
    for own in [100, 101, 102] {
        server.push(&request(own, "GET", "/", ""));
        got(&worker);
    }
    assert_eq!(open(), 3);
    worker.reply("the-sender", "100 101", &super::answer("both"));
    server.reply();
    assert_eq!(open(), 1);
    worker.reply("the-sender", "102", b"ICY 200 OK\r\n\r\nnoise");
    server.reply();
    assert_eq!(open(), 0);
}

#[test]
fn requests_ahead_of_their_answers_go_out_one_at_a_time() {
    let server = Plain::bind();
    let feed = server.feed();
    let worker = feed.worker();
    for n in 0..5 {
        server.push(&request(7, "GET", &format!("/{n}"), ""));
    }
    for n in 0..5 {
        let message = got(&worker);
        assert_eq!(address(&message).2, format!("/{n}"));
        // Whatever else is on its way comes first.
        server.push(&request(100 + n, "GET", "/between", ""));
        assert!(has(&got(&worker), "/between"));
        worker.reply("the-sender", "7", &super::answer("x"));
        server.reply();
    }
    // The client leaves with requests that nobody has seen: one notice, and nothing of them.
    server.push(&request(8, "GET", "/a", ""));
    server.push(&request(8, "GET", "/b", ""));
    got(&worker);
    let gone = message(
        8,
        "@*",
        b"{\"METHOD\":\"JSON\"}",
        b',',
        b"{\"type\":\"disconnect\"}",
    );
    server.push(&gone);
    assert_eq!(got(&worker), gone);
    server.push(&request(9, "GET", "/last", ""));
    assert!(has(&got(&worker), "/last"));
}

#[test]
fn a_stream_makes_its_worker_less_busy_and_ends_with_its_client() {
    servers::each("", |server| {
        let feed = feed(&server);
        let worker = feed.worker();
        let mut client = Client::connect(server.address);
        client
            .send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let message = got(&worker);
        let (sender, id, ..) = address(&message);
        worker.reply(
            sender,
            id,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n",
        );
        client.upto(b"one\r\n");
        feed.until("it is a stream", |feed| {
            let worker = feed.workers().remove(0);
            (worker.open, worker.attached) == (0, 1)
        });
        worker.reply(sender, id, b"3\r\ntwo\r\n");
        client.upto(b"two\r\n");
        if server.kind == Kind::Lurcher {
            client.shutdown_write();
        }
        drop(client);
        assert!(has(&got(&worker), "disconnect"));
        feed.until("it has ended", |feed| feed.workers()[0].attached == 0);
    });
}

#[test]
fn what_no_worker_takes_in_time_is_a_503_and_a_websocket_ends_with_1013() {
    servers::each("", |server| {
        let feed = Running::start(&[(&server.send, &server.recv)], || {
            let mut settings = Settings::default();
            settings.wait_max = Duration::from_millis(300);
            settings
        });
        let mut client = Client::connect(server.address);
        client
            .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let answer = client.answer();
        assert_eq!(answer.status, 503);
        // By chance a little more or less, so that not all come back at once.
        let after = answer.header("retry-after").expect("when to come again");
        let after: u64 = String::from_utf8_lossy(after).parse().expect("seconds");
        assert!((1..=60).contains(&after), "{after}");
        client.rest();
        let worker = feed.worker();
        feed.ready(1);
        let mut client = Client::connect(server.address);
        client.send(HANDSHAKE.as_bytes()).unwrap();
        let handshake = got(&worker);
        let (sender, id, ..) = address(&handshake);
        worker.reply(sender, id, SWITCHING);
        client.upto(b"\r\n\r\n");
        drop(worker);
        feed.until("nobody is left", |feed| feed.workers().is_empty());
        client.send(&frame("anybody?")).unwrap();
        let last = client.rest();
        assert!(
            last.starts_with(b"\x88\x02\x03\xf5"),
            "{}",
            last.escape_ascii()
        );
    });
}
