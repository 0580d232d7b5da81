//! `lurcher serve` as its clients, its handlers and its operator see it: real sockets, real signals, limits made short by
//! settings. What happens to handlers that are killed is in `delivery`.

use std::fs;
use std::net::{Shutdown, TcpListener};
use std::path::Path;
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
        let requests = std::iter::repeat_with(|| self.got());
        let got = requests
            .skip_while(|got| got.path == "@*")
            .next()
            .expect("endless");
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
fn a_refusal_is_read_even_by_clients_that_send_all_of_a_large_body_first() {
    let front = Front::start("");
    let mut client = Client::connect(front.address);
    let size = 8 << 20;
    send(
        &mut client,
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"),
    );
    let sent = client.send(&vec![b'x'; size]);
    assert!(sent.is_ok(), "{sent:?}");
    assert_eq!(client.answer().status, 413);
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

#[test]
fn deadlines_end_what_does_not_come() {
    let front = Front::start(
        ", 'limits.head_timeout': 1, 'limits.body_grace': 1, 'limits.body_rate': 1000000, 'limits.handler_timeout': 1, \
         'limits.idle_timeout': 2",
    );
    let handler = Handler::of(&front);
    let mut head = Client::connect(front.address);
    send(&mut head, "GET / HTTP/1.1\r\nHost:");
    let mut late = Client::connect(front.address);
    send(
        &mut late,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
    );
    let mut unanswered = Client::connect(front.address);
    send(&mut unanswered, get("/slow"));
    let mut idle = Client::connect(front.address);
    let got = handler.got();
    assert_eq!(got.path, "/slow");
    assert_eq!(head.answer().status, 408);
    assert_eq!(late.answer().status, 408);
    assert_eq!(unanswered.answer().status, 504);
    closed(&mut unanswered);
    handler.told_once(&got.id);
    // Too late: it reaches nobody, and says so.
    handler.reply(&got.id, HELLO);
    handler.told_once(&got.id);
    assert_eq!(closed(&mut idle), b"");
    // A response that has begun has no deadline.
    let mut stream = Client::connect(front.address);
    send(&mut stream, get("/stream"));
    let got = handler.answer("/stream", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
    std::thread::sleep(Duration::from_millis(2500));
    handler.reply(&got.id, b"cd");
    assert_eq!(body(&stream.answer()), "abcd");
}

#[test]
fn a_client_that_comes_after_a_quiet_time_has_all_of_its_own() {
    let front = Front::start(", 'limits.idle_timeout': 2");
    let handler = Handler::of(&front);
    std::thread::sleep(Duration::from_millis(2300));
    let mut client = Client::connect(front.address);
    std::thread::sleep(Duration::from_millis(700));
    send(&mut client, get("/"));
    handler.answer("/", HELLO);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn requests_wait_for_a_handler_within_bounds() {
    let front = Front::start(", 'limits.handler_queue': 2, 'limits.handler_wait': 4");
    let mut waiting: Vec<_> = (0..2)
        .map(|number| {
            let mut client = Client::connect(front.address);
            send(&mut client, get(&format!("/{number}")));
            client
        })
        .collect();
    std::thread::sleep(QUIET);
    let refused = fetch(front.address, &get("/2"));
    assert_eq!(refused.status, 503);
    assert!(body(&refused).contains("too many requests are waiting"));
    assert!(refused.header("retry-after").is_some());
    // Who leaves makes room.
    waiting.pop();
    std::thread::sleep(QUIET);
    let mut third = Client::connect(front.address);
    send(&mut third, get("/3"));
    let handler = Handler::of(&front);
    handler.answer("/0", &ok("0"));
    handler.answer("/3", &ok("3"));
    assert_eq!(body(&waiting[0].answer()), "0");
    assert_eq!(body(&third.answer()), "3");
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_holds_up_nobody() {
    let front = Front::start(", 'limits.mailbox_bytes': 1000000");
    let handler = Handler::of(&front);
    let mut slow = Client::connect(front.address);
    send(&mut slow, get("/slow"));
    let slow_id = handler.got().id;
    let mut other = Client::connect(front.address);
    handler.reply(
        &slow_id,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n",
    );
    let piece = vec![b'x'; 400_000];
    let mut told = false;
    for round in 0..200 {
        handler.reply(&slow_id, &piece);
        send(&mut other, get("/other"));
        let mut got = handler.got();
        while got.path == "@*" {
            assert_eq!(got.id, slow_id);
            told = true;
            got = handler.got();
        }
        handler.reply(&got.id, &ok("other"));
        assert_eq!(body(&other.answer()), "other", "round {round}");
        if told {
            break;
        }
    }
    assert!(told, "80 MB unread and not dropped");
}

#[test]
fn a_slow_reader_gets_every_answer_to_what_it_pipelined() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let mut client = Client::connect(front.address);
    let requests = 12;
    send(&mut client, get("/big").repeat(requests));
    let big = ok(&"x".repeat(1 << 20));
    // The client reads nothing for now: the front goes on as far as the socket takes, and then waits.
    let mut answered = 0;
    while let Some(got) = handler.got_within(QUIET) {
        assert_eq!(got.path, "/big");
        handler.reply(&got.id, &big);
        answered += 1;
    }
    assert!(
        answered < requests,
        "the front waits for a client that does not read"
    );
    for number in 0..requests {
        while answered <= number {
            let got = handler.got();
            handler.reply(&got.id, &big);
            answered += 1;
        }
        assert_eq!(client.answer().body.len(), 1 << 20);
        while let Some(got) = handler.got_within(Duration::ZERO) {
            handler.reply(&got.id, &big);
            answered += 1;
        }
    }
    assert_eq!(answered, requests);
}

#[test]
fn every_end_of_a_connection_is_told_once() {
    let front = Front::start(", 'limits.idle_timeout': 1");
    let handler = Handler::of(&front);
    let known = |path: &str| {
        let mut client = Client::connect(front.address);
        send(&mut client, get(path));
        (client, handler.got())
    };
    // Gone while its request is open.
    let (client, got) = known("/gone");
    drop(client);
    handler.told_once(&got.id);
    // Its sending side shut down: the same.
    let (mut client, got) = known("/half");
    client.shutdown_write();
    handler.told_once(&got.id);
    closed(&mut client);
    // Request and end in one segment; the handler gets the one and then the other.
    let mut client = Client::connect(front.address);
    send(&mut client, get("/both"));
    client.shutdown_write();
    let got = handler.got();
    assert_eq!(got.path, "/both");
    handler.told_once(&got.id);
    // Gone in the middle of a body: the handler knew the connection from before.
    let (mut client, got) = known("/first");
    handler.reply(&got.id, HELLO);
    client.answer();
    send(
        &mut client,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
    );
    drop(client);
    handler.told_once(&got.id);
    // Idle for too long.
    let (mut client, got) = known("/idle");
    handler.reply(&got.id, HELLO);
    client.answer();
    handler.told_once(&got.id);
    closed(&mut client);
    // No proper request after a proper one.
    let (mut client, got) = known("/good");
    handler.reply(&got.id, HELLO);
    client.answer();
    send(&mut client, "nonsense\r\n\r\n");
    assert_eq!(client.answer().status, 400);
    handler.told_once(&got.id);
    // The handler cancels or closes: it knows.
    let (mut client, got) = known("/cancelled");
    handler.peer.send(
        format!(
            "app-ident {}:X {}, 23:3:ctl,13:6:cancel,1:1#}}]",
            got.id.len() + 2,
            got.id
        )
        .as_bytes(),
    );
    closed(&mut client);
    handler.told_nothing();
    // The server stops.
    let (mut client, got) = known("/stopped");
    handler.reply(&got.id, HELLO);
    client.answer();
    let mut program = front.program;
    program.signal("TERM");
    handler.told_once(&got.id);
    drop(client);
    assert!(program.ended().success());
}

#[test]
fn a_stopping_front_finishes_what_is_open_and_takes_no_more() {
    let mut front = Front::start("");
    let handler = Handler::of(&front);
    let mut idle = Client::connect(front.address);
    send(&mut idle, get("/idle"));
    handler.answer("/idle", HELLO);
    idle.answer();
    let mut busy = Client::connect(front.address);
    send(&mut busy, get("/busy"));
    let got = handler.got();
    front.program.signal("TERM");
    assert_eq!(closed(&mut idle), b"");
    assert!(
        Client::try_connect(front.address).is_err(),
        "the listener is closed"
    );
    assert!(front.program.alive());
    handler.reply(&got.id, &ok("done"));
    assert_eq!(body(&busy.answer()), "done");
    assert_eq!(closed(&mut busy), b"");
    drop((idle, busy));
    assert!(front.program.ended().success());
}

#[test]
fn a_stopping_front_ends_when_its_time_is_up_or_it_is_asked_twice() {
    for (settings, twice) in [(", 'limits.drain_timeout': 1", false), ("", true)] {
        let mut front = Front::start(settings);
        let handler = Handler::of(&front);
        let mut busy = Client::connect(front.address);
        send(&mut busy, get("/busy"));
        let got = handler.got();
        front.program.signal("TERM");
        if twice {
            front.program.line("that it drains", |line| {
                line.contains("draining").then_some(())
            });
            assert!(handler.got_within(QUIET).is_none());
            front.program.signal("TERM");
        }
        if !twice {
            handler.told_once(&got.id);
        }
        assert_eq!(closed(&mut busy), b"");
        assert!(front.program.ended().success());
    }
}

/// The fields of an access log's line: status and size last.
fn fields(line: &str) -> Vec<String> {
    let (length, mut rest) = line.split_once(':').expect("a tnetstring");
    assert!(rest.ends_with(']') && rest.len() == length.parse::<usize>().expect("a length") + 1);
    let mut fields = Vec::new();
    while let Some((length, after)) = rest.split_once(':') {
        let (value, after) = after.split_at(length.parse().expect("a length"));
        fields.push(value.to_owned());
        rest = &after[1..];
    }
    fields
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn wait_for_lines(path: &Path, count: usize) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let lines = lines(path);
        if lines.len() >= count {
            return lines;
        }
        assert!(Instant::now() < end, "{}: {lines:?}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_access_log_has_the_true_status_and_size_and_is_reopened_on_hangup() {
    let directory = scratch();
    let [send_spec, recv] =
        [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    conf(
        directory.path(),
        0,
        &send_spec,
        &recv,
        ", 'limits.content_length': 10",
    );
    let mut program = Program::lurcher(&["serve", "main.conf"], directory.path());
    let address = program.listening();
    let peer = Peer::connect(&send_spec, &recv, Replies::Xpub);
    peer.subscribed();
    let handler = Handler { peer };
    let access = directory.path().join("access.log");
    let mut client = Client::connect(address);
    send(
        &mut client,
        get("/a?q") + "HEAD /h HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    handler.answer(
        "/a",
        b"HTTP/1.1 203 Maybe\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
    );
    handler.answer("/h", HELLO);
    assert_eq!(client.answer().status, 203);
    client.try_answer(Asked::Head, PATIENCE).expect("a head");
    drop(client);
    let mut client = Client::connect(address);
    send(
        &mut client,
        "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n",
    );
    assert_eq!(client.answer().status, 413);
    let mut client = Client::connect(address);
    send(&mut client, get("/left"));
    handler.request("/left");
    drop(client);
    let seen: Vec<String> = wait_for_lines(&access, 4)
        .iter()
        .map(|line| fields(line))
        .map(|all| {
            assert_eq!(
                (all.len(), all[0].as_str(), all[1].as_str()),
                (9, "localhost", "127.0.0.1")
            );
            all[4..].join(" ")
        })
        .collect();
    assert_eq!(
        seen,
        [
            "GET /a HTTP/1.1 203 4",
            "HEAD /h HTTP/1.1 200 0",
            "POST /p HTTP/1.1 413 16",
            "GET /left HTTP/1.1 499 0",
        ]
    );
    let error = directory.path().join("error.log");
    wait_for_lines(&error, 1);
    for path in [&access, &error] {
        fs::rename(path, path.with_extension("old")).expect("rename a log");
    }
    program.signal("HUP");
    program.line("that logs are reopened", |line| {
        line.contains("reopening").then_some(())
    });
    let end = Instant::now() + PATIENCE;
    while !access.exists() || !error.exists() {
        assert!(Instant::now() < end, "not reopened");
        std::thread::sleep(Duration::from_millis(10));
    }
    // A line that is written when the server stops is not lost.
    let mut client = Client::connect(address);
    send(&mut client, get("/last"));
    let got = handler.request("/last");
    program.signal("TERM");
    program.line("that it drains", |line| {
        line.contains("draining").then_some(())
    });
    handler.reply(&got.id, HELLO);
    client.answer();
    drop(client);
    assert!(program.ended().success());
    assert_eq!(lines(&access).len(), 1);
    assert_eq!(lines(&access.with_extension("old")).len(), 4);
    assert!(lines(&error).iter().any(|line| line.contains("draining")));
}

#[test]
fn what_cannot_be_served_is_one_line_and_exit_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let [send_spec, recv] =
        [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    let refused = |what: &str, prepare: &dyn Fn(&Path) -> &'static str, expected: &str| {
        let directory = scratch();
        let file = prepare(directory.path());
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_lurcher"))
            .args(["serve", file])
            .current_dir(directory.path())
            .output()
            .expect("run lurcher");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let errors: Vec<_> = stderr
            .lines()
            .filter(|line| !line.contains("WARN") && !line.contains("INFO"))
            .collect();
        assert_eq!(output.status.code(), Some(1), "{what}: {stderr}");
        assert_eq!(errors.len(), 1, "{what}: {stderr}");
        assert!(errors[0].contains(expected), "{what}: {stderr}");
    };
    let write = |directory: &Path, port: u16, from: &str, to: &str| {
        let file = conf(directory, port, &send_spec, &recv, "");
        let text = fs::read_to_string(&file).expect("read");
        fs::write(file, text.replace(from, to)).expect("write");
        "main.conf"
    };
    refused("a port in use", &|d| write(d, port, "", ""), "in use");
    refused(
        "a handler's port in use",
        &|d| write(d, 0, &send_spec, &format!("tcp://127.0.0.1:{port}")),
        "in use",
    );
    refused(
        "an access log that cannot be opened",
        &|d| write(d, 0, "/access.log", "/no/such/access.log"),
        "access log",
    );
    refused(
        "an error log that cannot be opened",
        &|d| write(d, 0, "/error.log", "/no/such/error.log"),
        "error log",
    );
    refused(
        "a mistake in the configuration",
        &|d| write(d, 0, "hosts=[", "hosts=[["),
        "main.conf:",
    );
    refused("no configuration", &|_| "nothing.conf", "nothing.conf");
    refused(
        "a foreign database",
        &|d| {
            let db = rusqlite::Connection::open(d.join("other.sqlite")).expect("a database");
            db.execute_batch("CREATE TABLE t (a)").expect("a table");
            "other.sqlite"
        },
        "other.sqlite",
    );
    // Nothing was left half started: what was free still is.
    let free = TcpListener::bind(send_spec.trim_start_matches("tcp://"));
    assert!(free.is_ok(), "{free:?}");
}

#[test]
fn clients_that_break_off_anywhere_leave_nothing_behind() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let request = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n0123456789";
    for cut in (0..request.len()).step_by(3) {
        let mut client = Client::connect(front.address);
        send(&mut client, &request[..cut]);
        let how = [Shutdown::Write, Shutdown::Both][cut % 2];
        // The server may have closed first.
        drop(client.stream().shutdown(how));
    }
    handler.told_nothing();
    let mut client = Client::connect(front.address);
    send(&mut client, get("/still"));
    handler.answer("/still", HELLO);
    assert_eq!(client.answer().status, 200);
}
