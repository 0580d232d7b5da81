//! `lurcher serve` as its clients, its handlers and its operator see it: real sockets, real signals, limits made short by
//! settings. What happens to handlers that are killed is in `delivery`.

mod bounds;
mod life;

use std::fs;
use std::time::{Duration, Instant};

use crate::support::client::{Answer, Asked, Client, fetch};
use crate::support::front::{Front, conf};
use crate::support::peer::{Peer, Replies, address};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

/// Nothing more comes for so long: then nothing is taken to come.
const QUIET: Duration = Duration::from_millis(300);

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A handler that is used by hand.
struct Handler {
    peer: Peer,
}

/// A message that it got.
#[derive(Debug)]
struct Got {
    id: String,
    path: String,
    rest: Vec<u8>,
}

impl Got {
    fn has(&self, text: &str) -> bool {
        self.rest
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    }
}

impl Handler {
    fn of(front: &Front) -> Self {
        let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
        peer.subscribed();
        Self { peer }
    }

    fn got(&self) -> Got {
        self.got_within(PATIENCE).expect("a message")
    }

    fn got_within(&self, wait: Duration) -> Option<Got> {
        let message = self.peer.recv(wait)?;
        let (_, id, path, rest) = address(&message);
        Some(Got {
            id: id.to_owned(),
            path: path.to_owned(),
            rest: rest.to_vec(),
        })
    }

    fn reply(&self, id: &str, payload: &[u8]) {
        self.peer.reply("app-ident", id, payload);
    }

    /// The next request, notices left aside.
    fn request(&self, path: &str) -> Got {
        let mut got = self.got();
        while got.path == "@*" {
            got = self.got();
        }
        assert_eq!(got.path, path);
        got
    }

    /// The next message is a request for this path, and is answered so.
    fn answer(&self, path: &str, payload: &[u8]) -> Got {
        let got = self.got();
        assert_eq!(got.path, path);
        self.reply(&got.id, payload);
        got
    }

    /// The next message is the one notice that the connection of `id` has ended.
    fn told_once(&self, id: &str) {
        let got = self.got();
        assert_eq!((got.path.as_str(), got.id.as_str()), ("@*", id), "{got:?}");
        assert!(got.has(r#"{"type":"disconnect"}"#), "{got:?}");
        self.told_nothing();
    }

    fn told_nothing(&self) {
        if let Some(more) = self.got_within(QUIET) {
            panic!("one message too many: {more:?}");
        }
    }
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn send(client: &mut Client, text: impl AsRef<[u8]>) {
    client.send(text.as_ref()).expect("send");
}

fn body(answer: &Answer) -> &str {
    std::str::from_utf8(&answer.body).expect("text")
}

/// Waits until the server has closed; gives what it wrote before.
fn closed(client: &mut Client) -> Vec<u8> {
    let end = Instant::now() + PATIENCE;
    while !client.ended() {
        assert!(
            Instant::now() < end,
            "not closed; read {:?}",
            String::from_utf8_lossy(client.bytes())
        );
        client.read_some(PATIENCE);
    }
    client.bytes().to_vec()
}

#[test]
fn pipelined_requests_are_answered_in_order_one_at_a_time() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let mut client = Client::connect(front.address);
    send(&mut client, get("/1") + &get("/2") + &get("/3"));
    let first = handler.got();
    assert_eq!(first.path, "/1");
    assert!(
        handler.got_within(QUIET).is_none(),
        "the second before the first has its answer"
    );
    // In two pieces: the response ends with the second.
    let (start, end) = HELLO.split_at(HELLO.len() - 2);
    handler.reply(&first.id, start);
    assert!(handler.got_within(QUIET).is_none());
    handler.reply(&first.id, end);
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n";
    let second = handler.answer("/2", chunked);
    assert_eq!(second.id, first.id);
    handler.answer("/3", &ok("three"));
    let bodies: Vec<_> = (0..3).map(|_| body(&client.answer()).to_owned()).collect();
    assert_eq!(bodies, ["hello", "two", "three"]);
    drop(client);
    handler.told_once(&first.id);
}

#[test]
fn handlers_that_answer_out_of_order_answer_the_right_clients() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(front.address)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        send(client, get(&format!("/{number}")));
    }
    let mut got: Vec<_> = (0..8).map(|_| handler.got()).collect();
    got.reverse();
    for message in &got {
        handler.reply(&message.id, &ok(&message.path));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(body(&client.answer()), format!("/{number}"));
    }
    // One payload for all of them.
    for client in &mut clients {
        send(client, get("/all"));
    }
    let ids: Vec<_> = (0..8).map(|_| handler.got().id).collect();
    handler.reply(&ids.join(" "), &ok("all"));
    for client in &mut clients {
        assert_eq!(body(&client.answer()), "all");
    }
}

#[test]
fn what_a_handler_writes_behind_its_response_reaches_nobody() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let mut client = Client::connect(front.address);
    send(&mut client, get("/long") + &get("/next"));
    handler.answer("/long", &[HELLO, b"HTTP/1.1 200 OK\r\n\r\nforged"].concat());
    handler.answer("/next", &ok("next"));
    assert_eq!(body(&client.answer()), "hello");
    assert_eq!(body(&client.answer()), "next");
    // The answer to HEAD ends with its head, whatever follows.
    send(
        &mut client,
        "HEAD /head HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    handler.answer("/head", HELLO);
    let head = client.try_answer(Asked::Head, PATIENCE).expect("a head");
    assert_eq!(head.header("content-length"), Some(b"5".as_slice()));
    send(&mut client, get("/after"));
    let after = handler.answer("/after", &ok("after"));
    assert_eq!(body(&client.answer()), "after");
    // While no request is open, payloads pass as they are.
    handler.reply(&after.id, b"pushed");
    while client.bytes().len() < 6 {
        assert!(client.read_some(PATIENCE), "the pushed bytes");
    }
    assert_eq!(client.bytes(), b"pushed");
}

#[test]
fn the_connection_closes_when_http_says_so() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    for (request, response, stays) in [
        ("GET / HTTP/1.0\r\n\r\n", HELLO, false),
        (
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            HELLO,
            true,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            HELLO,
            false,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
            false,
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", HELLO, true),
    ] {
        let mut client = Client::connect(front.address);
        send(&mut client, request);
        let got = handler.answer("/", response);
        assert_eq!(body(&client.answer()), "hello", "{request}");
        if stays {
            send(&mut client, get("/again"));
            handler.answer("/again", HELLO);
            client.answer();
            drop(client);
        } else {
            assert_eq!(closed(&mut client), b"", "{request}");
            // A handler that closes what HTTP has closed already is not told once more.
            handler.reply(&got.id, b"");
        }
        handler.told_once(&got.id);
    }
}

#[test]
fn a_response_without_length_ends_when_its_handler_closes() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let mut client = Client::connect(front.address);
    send(&mut client, get("/stream"));
    let got = handler.answer("/stream", b"HTTP/1.1 200 OK\r\n\r\n");
    for part in [b"one ".as_slice(), b"two ", b"three"] {
        handler.reply(&got.id, part);
    }
    handler.reply(&got.id, b"");
    handler.reply(&got.id, b"behind the close");
    let bytes = closed(&mut client);
    assert!(bytes.ends_with(b"\r\n\r\none two three"), "{bytes:?}");
    // It closed the connection itself; what it sent behind that was for nobody.
    let told: Vec<_> = std::iter::from_fn(|| handler.got_within(QUIET)).collect();
    assert!(told.len() <= 1, "{told:?}");
}

#[test]
fn an_absolute_target_sets_the_host_that_handlers_see() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let mut client = Client::connect(front.address);
    send(
        &mut client,
        "GET http://example.org:81/x?y HTTP/1.1\r\nHost: other\r\n\r\n",
    );
    let got = handler.answer("/x", HELLO);
    assert!(got.has(r#""host":"example.org:81""#), "{got:?}");
    assert!(got.has(r#""URI":"/x?y""#) && !got.has("other"), "{got:?}");
    client.answer();
}

#[test]
fn what_is_no_proper_request_is_answered_by_the_front() {
    let front = Front::start(", 'limits.content_length': 100");
    let handler = Handler::of(&front);
    let long = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n";
    let chunks = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n{}\r\n0\r\n\r\n",
        "x".repeat(101)
    );
    for (request, status) in [
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            501,
        ),
        ("JSON / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (long, 413),
        (&chunks, 413),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n", 417),
    ] {
        let mut client = Client::connect(front.address);
        send(&mut client, request);
        let answer = client.answer();
        assert_eq!(answer.status, status, "{request:?}");
        assert_eq!(answer.header("connection"), Some(b"close".as_slice()));
        assert_eq!(closed(&mut client), b"", "{request:?}");
    }
    handler.told_nothing();
    // Chunks that fit are delivered whole.
    let mut client = Client::connect(front.address);
    send(
        &mut client,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: t\r\n\r\n",
    );
    assert!(handler.answer("/", HELLO).has("5:abcde,"));
    client.answer();
}

#[test]
fn a_client_that_waits_for_leave_to_send_gets_it() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let mut client = Client::connect(front.address);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    send(&mut client, head);
    assert_eq!(client.answer().status, 100);
    send(&mut client, "abc");
    assert!(handler.answer("/", HELLO).has("3:abc,"));
    assert_eq!(client.answer().status, 200);
    // One that did not wait needs none.
    send(&mut client, format!("{head}abc"));
    handler.answer("/", HELLO);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn paths_without_a_route_are_404_and_the_handler_is_told_of_the_end() {
    let directory = scratch();
    let [send_spec, recv] =
        [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    let file = conf(directory.path(), 0, &send_spec, &recv, "");
    let text = fs::read_to_string(&file).expect("the configuration");
    fs::write(
        &file,
        text.replace("{'/': app}", "{'/app': app, '/dir/': Dir(base='static/', index_file='index.html', default_ctype='text/plain')}"),
    )
    .expect("write");
    let mut program = Program::lurcher(&["serve", "main.conf"], directory.path());
    let address = program.listening();
    let peer = Peer::connect(&send_spec, &recv, Replies::Xpub);
    peer.subscribed();
    let handler = Handler { peer };
    assert_eq!(fetch(address, &get("/zzz")).status, 404);
    let head = "HEAD /zzz HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = Client::connect(address);
    send(&mut client, head);
    let answer = client.try_answer(Asked::Head, PATIENCE).expect("a head");
    assert_eq!((answer.status, closed(&mut client).len()), (404, 0));
    // A connection that a handler knows ends with a 404: it is told.
    let mut client = Client::connect(address);
    send(&mut client, get("/app"));
    let got = handler.answer("/app", HELLO);
    client.answer();
    send(&mut client, get("/zzz"));
    assert_eq!(client.answer().status, 404);
    closed(&mut client);
    handler.told_once(&got.id);
}
