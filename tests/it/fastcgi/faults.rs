//! A FastCGI server that does wrong on purpose: what clients get, and what the server is told.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::{ask, handler, text};
use crate::support::client::Client;
use crate::support::front::Front;
use crate::support::program::Program;
use crate::support::servers::{self, Kind};
use crate::support::{PATIENCE, free_port, scratch};

const BEGIN: u8 = 1;
const ABORT: u8 = 2;
const END: u8 = 3;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;

/// A record as the specification has it.
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head = [1, kind, 0, 1, length[0], length[1], 0, 0];
    [&head, content].concat()
}

fn end(protocol: u8) -> Vec<u8> {
    record(END, &[0, 0, 0, 0, protocol, 0, 0, 0])
}

/// One connection of the fake server.
struct Peer {
    stream: TcpStream,
}

impl Peer {
    /// The next record: its kind and content; `None` at the end.
    fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 8];
        self.stream.read_exact(&mut head).ok()?;
        let mut content = vec![0; usize::from(u16::from_be_bytes([head[4], head[5]]))];
        self.stream.read_exact(&mut content).ok()?;
        self.stream.read_exact(&mut vec![0; head[6].into()]).ok()?;
        Some((head[1], content))
    }

    /// Reads a request to the end of its body; whether the connection is to be kept, and the body.
    fn request(&mut self) -> Option<(bool, Vec<u8>)> {
        let (mut keep, mut body) = (false, Vec::new());
        loop {
            match self.next()? {
                (BEGIN, content) => keep = content[2] == 1,
                (STDIN, content) if content.is_empty() => return Some((keep, body)),
                (STDIN, content) => body.extend_from_slice(&content),
                _ => {}
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        // Whether anybody listens is what is tested elsewhere.
        drop(self.stream.write_all(bytes));
    }
}

/// A server that hands its connections to the test.
struct Fake {
    app: String,
    peers: Receiver<Peer>,
}

impl Fake {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let app = format!("fastcgi://{}", listener.local_addr().unwrap());
        let (sender, peers): (Sender<Peer>, _) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                if sender.send(Peer { stream }).is_err() {
                    return;
                }
            }
        });
        Self { app, peers }
    }

    fn peer(&self) -> Peer {
        self.peers.recv_timeout(PATIENCE).expect("a connection")
    }

    fn handler(&self, front: &Front, options: &[&str]) -> Program {
        let options = [&["--remote-root", "/app"], options].concat();
        let specs = [front.send.as_str(), front.recv.as_str()];
        handler(&self.app, specs, &options, front.directory())
    }
}

/// Sends a request that will be answered in time.
fn begin(front: &Front, line: &str, fields: &str, body: &[u8]) -> Client {
    let mut client = Client::connect(front.address);
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    client.send(&[head.as_bytes(), body].concat()).unwrap();
    client
}

#[test]
fn a_server_that_breaks_off_before_it_answers_is_a_502() {
    let (front, fake) = (Front::start(""), Fake::start());
    let mut program = fake.handler(&front, &[]);
    let head = b"Content-Type: text/plain\r\n\r\n".as_slice();
    let broke_off = "Bad Gateway: the FastCGI server broke off";
    let no_response = "Bad Gateway: the script's answer is no response";
    let no_room = "Service Unavailable: the FastCGI server has no room";
    for (said, status, words) in [
        (vec![], 502, broke_off),
        (record(STDOUT, b"Status: 200\r\n"), 502, broke_off),
        (record(STDERR, b"trouble\n"), 502, broke_off),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), 502, broke_off),
        (vec![1, STDOUT, 0, 9, 0, 0, 0, 0], 502, broke_off),
        (end(0), 502, no_response),
        (
            [record(STDOUT, b"no head\n\n"), end(0)].concat(),
            502,
            no_response,
        ),
        (
            [record(STDOUT, b"Status: 200\r\n"), end(0)].concat(),
            502,
            no_response,
        ),
        (
            [
                record(STDOUT, &vec![b'x'; 60_000]),
                record(STDOUT, &vec![b'x'; 60_000]),
            ]
            .concat(),
            502,
            no_response,
        ),
        (
            [record(STDOUT, b"Set-Cookie: a\0b\n\n"), end(0)].concat(),
            502,
            no_response,
        ),
        (end(1), 503, no_room),
        (end(2), 503, no_room),
        (end(3), 502, broke_off),
        ([record(STDOUT, head), end(2)].concat(), 503, no_room),
        (
            [record(STDOUT, head), record(STDOUT, b"good"), end(0)].concat(),
            200,
            "good",
        ),
    ] {
        let mut client = begin(&front, "GET /a.php", "", b"");
        let mut peer = fake.peer();
        assert_eq!(peer.request(), Some((false, vec![])));
        peer.say(&said);
        drop(peer);
        let answer = client.answer();
        assert_eq!(
            (answer.status, text(&answer).as_str()),
            (status, words),
            "{:?}",
            String::from_utf8_lossy(&said)
        );
        assert_eq!(answer.header("retry-after").is_some(), status == 503);
    }
    program.said("/a.php: trouble", 1);
    // Once, not for each request; the rest is for who looks closer.
    program.said(
        "FastCGI server: it closed the connection before it answered",
        1,
    );
    assert!(program.terminate().success());
}

#[test]
fn a_server_that_breaks_off_later_leaves_a_response_that_does_not_look_whole() {
    let (front, fake) = (Front::start(""), Fake::start());
    let mut program = fake.handler(&front, &[]);
    for (head, rest) in [
        ("X: y\r\n\r\n", vec![]),
        ("Content-Length: 100\r\n\r\n", vec![]),
        ("X: y\r\n\r\n", end(2)),
        ("Content-Length: 100\r\n\r\n", end(0)),
        ("Content-Length: 2\r\n\r\n", end(0)),
        ("X: y\r\n\r\n", b"garbage".to_vec()),
    ] {
        let mut client = begin(&front, "GET /a.php", "", b"");
        let mut peer = fake.peer();
        peer.request();
        peer.say(&record(STDOUT, head.as_bytes()));
        // The head is on its way without a body.
        client.upto(b"\r\n\r\n");
        peer.say(&[record(STDOUT, b"begun"), rest].concat());
        drop(peer);
        let seen = client.rest();
        assert!(
            !seen.ends_with(b"0\r\n\r\n"),
            "{head}: {:?}",
            String::from_utf8_lossy(&seen)
        );
    }
    assert!(program.terminate().success());
}

#[test]
fn a_server_that_is_not_there_is_a_502() {
    let front = Front::start("");
    let specs = [front.send.as_str(), front.recv.as_str()];
    let folder = scratch();
    let socket = folder.path().join("none.sock");
    let (port, socket) = (free_port(), socket.display());
    for app in [
        format!("fastcgi://127.0.0.1:{port}"),
        format!("fastcgi:{socket}"),
    ] {
        let mut program = handler(&app, specs, &["--remote-root", "/app"], front.directory());
        for _ in 0..2 {
            let answer = ask(front.address, "GET /a.php", "", b"");
            assert_eq!(answer.status, 502);
            assert_eq!(
                text(&answer),
                "Bad Gateway: the FastCGI server cannot be reached"
            );
        }
        assert!(program.terminate().success());
        let said = program
            .lines()
            .iter()
            .filter(|line| line.contains("FastCGI server: connecting"))
            .count();
        assert_eq!(said, 1, "{program}");
    }
}

#[test]
fn a_server_that_is_silent_is_a_504_and_later_the_end() {
    let (front, fake) = (Front::start(""), Fake::start());
    let mut program = fake.handler(&front, &["--timeout", "1"]);
    let mut client = begin(&front, "GET /a.php", "", b"");
    let mut peer = fake.peer();
    peer.request();
    assert_eq!(client.answer().status, 504);
    assert_eq!(peer.next(), Some((ABORT, vec![])), "it is told");
    assert_eq!(peer.next(), None);
    let mut client = begin(&front, "GET /a.php", "", b"");
    let mut peer = fake.peer();
    peer.request();
    peer.say(&record(STDOUT, b"X: y\n\nbegun"));
    assert!(!client.rest().ends_with(b"0\r\n\r\n"));
    assert!(program.terminate().success());
}

#[test]
fn a_client_that_leaves_is_told_to_the_server() {
    let fake = Fake::start();
    servers::each("", |server| {
        let specs = [server.send.as_str(), server.recv.as_str()];
        let mut program = handler(
            &fake.app,
            specs,
            &["--remote-root", "/app"],
            server.directory(),
        );
        let mut client = Client::connect(server.address);
        client
            .send(b"GET /a.php HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut peer = fake.peer();
        peer.request();
        peer.say(&record(STDOUT, b"X: y\n\nbegun"));
        client.upto(b"begun");
        drop(client);
        assert_eq!(peer.next(), Some((ABORT, vec![])));
        assert_eq!(peer.next(), None);
        assert!(program.terminate().success());
    });
}

#[test]
fn an_answer_may_come_before_the_body_has_gone() {
    let (front, fake) = (
        Front::start(", 'limits.content_length': 20000000"),
        Fake::start(),
    );
    let mut program = fake.handler(&front, &[]);
    let body = vec![b'b'; 8_000_000];
    let length = format!("Content-Length: {}\r\n", body.len());
    // The whole answer, and the connection closed, with most of the body unread.
    let mut client = begin(&front, "POST /a.php", &length, &body);
    let mut peer = fake.peer();
    peer.next();
    peer.say(&[record(STDOUT, b"Status: 413 No\n\nenough"), end(0)].concat());
    let answer = client.answer();
    assert_eq!((answer.status, text(&answer).as_str()), (413, "enough"));
    drop(peer);
    // And a server that answers with what it is being sent, piece by piece: neither side waits for the other.
    let mut client = begin(&front, "POST /a.php", &length, &body);
    let mut peer = fake.peer();
    peer.say(&record(STDOUT, b"X: y\n\n"));
    // The client reads meanwhile: what the handler may have under way to it is bounded.
    let reading = thread::spawn(move || client.answer());
    let mut echoed = 0;
    while let Some((kind, content)) = peer.next() {
        match (kind, content.len()) {
            (STDIN, 0) => break,
            (STDIN, length) => {
                echoed += length;
                peer.say(&record(STDOUT, &content));
            }
            _ => {}
        }
    }
    assert_eq!(echoed, body.len());
    peer.say(&end(0));
    assert!(reading.join().unwrap().body == body);
    assert!(program.terminate().success());
}

#[test]
fn kept_connections_are_used_again_and_their_end_is_no_fault() {
    let (front, fake) = (Front::start(""), Fake::start());
    let mut program = fake.handler(&front, &["--keep", "1"]);
    let answer = [record(STDOUT, b"X: y\n\nfine"), end(0)].concat();
    let mut client = begin(&front, "GET /a.php", "", b"");
    let mut peer = fake.peer();
    assert_eq!(peer.request(), Some((true, vec![])));
    peer.say(&answer);
    assert_eq!(text(&client.answer()), "fine");
    // Again on the same, which ends under the request: it is made once more on a new one.
    let mut client = begin(&front, "GET /a.php", "", b"");
    assert!(peer.request().is_some());
    drop(peer);
    let mut peer = fake.peer();
    assert!(peer.request().is_some());
    peer.say(&answer);
    assert_eq!(text(&client.answer()), "fine");
    // Not what may not be done twice: that gets a connection of its own.
    let mut client = begin(&front, "POST /a.php", "Content-Length: 1\r\n", b"x");
    let mut other = fake.peer();
    assert_eq!(other.request(), Some((true, b"x".to_vec())));
    drop(other);
    assert_eq!(client.answer().status, 502);
    // One that says more than was asked for is not used again.
    let mut client = begin(&front, "GET /a.php", "", b"");
    assert!(peer.request().is_some());
    peer.say(&[&answer[..], &answer].concat());
    assert_eq!(text(&client.answer()), "fine");
    let mut client = begin(&front, "GET /a.php", "", b"");
    let mut peer = fake.peer();
    assert!(peer.request().is_some());
    peer.say(&answer);
    assert_eq!(text(&client.answer()), "fine");
    assert!(program.terminate().success());
}

#[test]
fn what_is_open_is_answered_before_the_end() {
    let fake = Fake::start();
    servers::each("", |server| {
        let specs = [server.send.as_str(), server.recv.as_str()];
        let mut program = handler(
            &fake.app,
            specs,
            &["--remote-root", "/app"],
            server.directory(),
        );
        let mut client = Client::connect(server.address);
        client
            .send(b"GET /a.php HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut peer = fake.peer();
        peer.request();
        program.signal("TERM");
        program.said("stopping", 1);
        peer.say(&record(STDOUT, b"X: y\n\nlate, "));
        peer.say(&[record(STDOUT, b"but whole"), end(0)].concat());
        assert_eq!(text(&client.answer()), "late, but whole");
        assert!(program.ended().success());
    });
}

#[test]
fn requests_above_the_limit_wait_for_their_turn() {
    let (front, fake) = (Front::start(""), Fake::start());
    let mut program = fake.handler(&front, &["--concurrency", "2"]);
    let mut clients: Vec<Client> = (0..5)
        .map(|_| begin(&front, "GET /a.php", "", b""))
        .collect();
    let mut open = vec![fake.peer(), fake.peer()];
    for left in (0..5).rev() {
        let mut peer = open.remove(0);
        peer.request();
        assert!(fake.peers.try_recv().is_err(), "two at a time");
        peer.say(&[record(STDOUT, b"X: y\n\nfine"), end(0)].concat());
        if left >= 2 {
            open.push(fake.peer());
        }
    }
    for client in &mut clients {
        assert_eq!(text(&client.answer()), "fine");
    }
    assert!(program.terminate().success());
}

#[test]
fn pipelined_requests_stay_in_order() {
    let fake = Fake::start();
    servers::each("", |server| {
        let specs = [server.send.as_str(), server.recv.as_str()];
        let mut program = handler(
            &fake.app,
            specs,
            &["--remote-root", "/app"],
            server.directory(),
        );
        let mut client = Client::connect(server.address);
        let get = |n: usize| format!("GET /a.php?{n} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let all: String = (0..5).map(get).collect();
        client.send(all.as_bytes()).unwrap();
        for n in 0..5 {
            let mut peer = fake.peer();
            peer.request();
            if server.kind == Kind::Mongrel2 {
                // It has handed over all of them, and only one is asked for at a time.
                assert!(fake.peers.try_recv().is_err());
            }
            let body = format!("X: y\n\n{n}");
            peer.say(&[record(STDOUT, body.as_bytes()), end(0)].concat());
            assert_eq!(text(&client.answer()), n.to_string());
        }
        assert!(program.terminate().success());
    });
}

#[test]
fn mistakes_on_the_command_line_are_told() {
    let folder = scratch();
    for (app, options, expect) in [
        (
            "fastcgi",
            &["--root", "/"][..],
            "it needs to know what it works on: fastcgi://HOST:PORT or fastcgi:/PATH",
        ),
        (
            "fastcgi:relative",
            &["--root", "/"],
            "name the FastCGI server",
        ),
        (
            "fastcgi://host",
            &["--root", "/"],
            "name the FastCGI server",
        ),
        ("fastcgi:/a", &[], "name the document root: --root DIR"),
        (
            "fastcgi:/a",
            &["--root", "/", "--timeout", "0"],
            "--timeout is not a number from 1 to 86400",
        ),
        (
            "fastcgi:/a",
            &["--root", "/", "--param", "x"],
            "--param `x` is not NAME=VALUE",
        ),
        (
            "fastcgi:/a",
            &["--root", "/", "--script", "a.html"],
            "`a.html` does not end in .php, as scripts do",
        ),
        (
            "fastcgi:/a",
            &["--root", "/", "--extension", "php"],
            "--extension is not a dot and a word",
        ),
        (
            "fastcgi:/a",
            &["--root", "/", "--prefix", "blog"],
            "--prefix does not begin with a slash",
        ),
    ] {
        let arguments = [&["run", app, "tcp://127.0.0.1:9999"], options].concat();
        let mut program = Program::lurcher(&arguments, folder.path());
        assert_eq!(program.ended().code(), Some(2));
        program.said(&format!("lurcher: running `{app}`: {expect}"), 1);
    }
}
