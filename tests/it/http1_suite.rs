//! The raw HTTP/1 suite: 198 requests, honest and hostile, each with the section of RFC 9110 or 9112 that decides it.
//!
//! They are run against the pure core, and over sockets against any server whose route answers 200 and echoes the body for
//! every method ([`run_suite`]). Each is sent whole and byte by byte, and the answers must be the same. How a verdict is
//! reached follows the suite's own rules; what a server answers beyond accepting and refusing is not judged here.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::client;
use crate::support::golden;
use crate::support::peer::{Peer, Replies, address};
use crate::support::program::Program;
use crate::support::scratch;

use lurcher::http1::chunked::{Decoder, Status};
use lurcher::http1::{BodyFraming, Expect, Head, Limits, Parsed, Progress, parse_head};

/// How long an answer that must come is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one more answer is waited for after those that the core predicts.
const QUIET: Duration = Duration::from_millis(60);
/// How long one is waited for when the server did not do as the core predicts.
const UNSURE: Duration = Duration::from_millis(600);
/// Connections at a time.
const LANES: usize = 8;

/// One request of the suite.
pub(crate) struct Vector {
    id: String,
    raw: Vec<u8>,
    expect: Expected,
    /// So many requests may be answered before the one that must be refused.
    ok_before: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Accept,
    Reject,
    Incomplete,
    Any,
}

/// What came back on one connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Answers {
    /// Final statuses in order; 0 stands for bytes that are no response.
    statuses: Vec<u16>,
    closed: bool,
}

/// What a run of the suite found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Vectors run.
    pub(crate) vectors: usize,
    /// Wrong verdicts, one line each.
    pub(crate) wrong: Vec<String>,
    /// Vectors whose answers changed when they were sent byte by byte, one line each.
    pub(crate) split: Vec<String>,
    /// Requests answered below 400 in both ways of sending: as many messages the handler must have got. A body above the
    /// handler's limit for one message is two messages there.
    pub(crate) answered: usize,
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        self.wrong.is_empty() && self.split.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wrong, split) = (self.wrong.len(), self.split.len());
        write!(
            f,
            "{} vectors, {wrong} wrong, {split} depend on how they are cut",
            self.vectors
        )?;
        self.wrong
            .iter()
            .chain(&self.split)
            .try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Reads `tests/data/http1/rfc.jsonl`.
pub(crate) fn vectors() -> Vec<Vector> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/http1/rfc.jsonl");
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            Vector {
                id: field("id"),
                raw: from_base64(&field("raw")),
                expect: match field("expect").as_str() {
                    "accept" => Expected::Accept,
                    "reject" => Expected::Reject,
                    "incomplete" => Expected::Incomplete,
                    "any" => Expected::Any,
                    other => panic!("expectation {other:?}"),
                },
                ok_before: value["ok_before"]
                    .as_u64()
                    .and_then(|n| usize::try_from(n).ok())
                    .unwrap_or_default(),
            }
        })
        .collect()
}

fn from_base64(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => panic!("not base64: {text:?}"),
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).expect("eight bits"));
        }
    }
    out
}

/// `None`: right. Otherwise why it is wrong.
fn judge(vector: &Vector, answers: &Answers) -> Option<&'static str> {
    // What a server may refuse for reasons that are not the syntax's.
    const POLICY: [u16; 10] = [403, 404, 405, 411, 413, 414, 415, 417, 426, 431];
    let good = answers
        .statuses
        .iter()
        .filter(|status| **status < 400)
        .count();
    let bad: Vec<u16> = answers
        .statuses
        .iter()
        .copied()
        .filter(|status| *status >= 400)
        .collect();
    match vector.expect {
        Expected::Reject if good > vector.ok_before => Some("accepted"),
        Expected::Reject if bad.is_empty() && !answers.closed => {
            Some("neither answered nor closed")
        }
        Expected::Accept
            if good > 0 && !bad.iter().any(|status| [400, 501, 505].contains(status)) =>
        {
            None
        }
        Expected::Accept if !bad.is_empty() && bad.iter().all(|status| POLICY.contains(status)) => {
            None
        }
        Expected::Accept => Some("not accepted"),
        Expected::Incomplete if good > vector.ok_before => Some("accepted before it was whole"),
        _ => None,
    }
}

/// A server's side of one connection, made of nothing but the core: what an HTTP/1 driver does, without the waiting.
#[derive(Default)]
struct Server {
    input: Vec<u8>,
    progress: Progress,
    body: Option<Body>,
    output: Vec<u8>,
    answers: Answers,
}

struct Body {
    left: Left,
    received: Vec<u8>,
    keep_alive: bool,
    head_request: bool,
}

enum Left {
    Length(u64),
    Chunked(Decoder),
}

impl Server {
    fn handle_bytes(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        while !self.answers.closed && self.step() {}
    }

    /// Whether there was anything to do.
    fn step(&mut self) -> bool {
        let Some(body) = &mut self.body else {
            return self.head();
        };
        let (used, done) = match &mut body.left {
            Left::Length(left) => {
                let used = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(self.input.len());
                body.received.extend_from_slice(&self.input[..used]);
                *left -= used as u64;
                (used, *left == 0)
            }
            Left::Chunked(decoder) => {
                let decoded = decoder.decode(&self.input, &mut body.received);
                match decoded.status {
                    Status::More => (decoded.consumed, false),
                    Status::Done => (decoded.consumed, true),
                    Status::Refused(refusal) => {
                        self.refuse(refusal.status);
                        return false;
                    }
                }
            }
        };
        self.input.drain(..used);
        if done && let Some(body) = self.body.take() {
            let length = body.received.len();
            self.output.extend_from_slice(
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes(),
            );
            if !body.head_request {
                self.output.extend_from_slice(&body.received);
            }
            self.answers.statuses.push(200);
            self.answers.closed = !body.keep_alive;
        }
        done
    }

    fn head(&mut self) -> bool {
        let limits = Limits::default();
        let parsed = parse_head(
            &mut self.progress,
            &self.input,
            &limits,
            |head: Head<'_, '_>| {
                let body = Body {
                    left: match head.framing {
                        BodyFraming::None => Left::Length(0),
                        BodyFraming::Length(length) => Left::Length(length),
                        BodyFraming::Chunked => Left::Chunked(Decoder::new()),
                    },
                    received: Vec::new(),
                    keep_alive: head.keep_alive,
                    head_request: head.head_request,
                };
                (head.len, head.expect, body)
            },
        );
        match parsed {
            Parsed::Partial => false,
            Parsed::Refused(refusal) => {
                self.refuse(refusal.status);
                false
            }
            Parsed::Complete((_, Expect::Other, _)) => {
                self.refuse(417);
                false
            }
            Parsed::Complete((len, _, body)) => {
                self.input.drain(..len);
                self.body = Some(body);
                true
            }
        }
    }

    fn refuse(&mut self, status: u16) {
        self.output.extend_from_slice(
            format!("HTTP/1.1 {status} No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                .as_bytes(),
        );
        self.answers.statuses.push(status);
        self.answers.closed = true;
    }
}

/// What the core answers to bytes that come in pieces of this size.
fn predict(raw: &[u8], piece: usize) -> Answers {
    let mut server = Server::default();
    for bytes in raw.chunks(piece) {
        server.handle_bytes(bytes);
        if server.answers.closed {
            break;
        }
    }
    server.answers
}

/// Sends every vector to the server at `address`, whole and (those under 20,000 bytes) byte by byte, and judges the answers.
pub(crate) fn run_suite(address: SocketAddr, vectors: &[Vector]) -> Report {
    let report = Mutex::new(Report {
        vectors: vectors.len(),
        ..Report::default()
    });
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while let Some(vector) = vectors.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run_vector(address, vector, &report);
                }
            });
        }
    });
    report.into_inner().expect("no lane panicked")
}

fn run_vector(address: SocketAddr, vector: &Vector, report: &Mutex<Report>) {
    let predicted = predict(&vector.raw, vector.raw.len().max(1));
    let whole = exchange(address, &vector.raw, vector.raw.len().max(1), &predicted);
    let single = (vector.raw.len() < 20_000).then(|| exchange(address, &vector.raw, 1, &predicted));
    let start = String::from_utf8_lossy(&vector.raw[..vector.raw.len().min(90)]).into_owned();
    let mut report = report.lock().expect("no lane panicked");
    for answers in [Some(&whole), single.as_ref()].into_iter().flatten() {
        report.answered += answers
            .statuses
            .iter()
            .filter(|status| (200..400).contains(*status))
            .count();
        if let Some(why) = judge(vector, answers) {
            report.wrong.push(format!(
                "{}: {why}: {:?} to {start:?}",
                vector.id, answers.statuses
            ));
        }
    }
    if let Some(single) = single.filter(|single| single.statuses != whole.statuses) {
        report.split.push(format!(
            "{}: {:?} or {:?} to {start:?}",
            vector.id, whole.statuses, single.statuses
        ));
    }
}

/// One connection: sends `raw` in pieces and reads until the server closes or has nothing more to say.
fn exchange(address: SocketAddr, raw: &[u8], piece: usize, predicted: &Answers) -> Answers {
    let mut stream =
        TcpStream::connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"));
    stream.set_nodelay(true).expect("no delay");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    for bytes in raw.chunks(piece) {
        // A server that has refused need not read on.
        if stream.write_all(bytes).is_err() {
            break;
        }
        if piece < raw.len() && raw.len() <= 4096 {
            // So that the bytes leave in segments of their own.
            std::thread::yield_now();
        }
    }
    let methods = methods(raw);
    let (mut bytes, mut closed) = (Vec::new(), false);
    let end = Instant::now() + PATIENCE;
    let mut buffer = [0; 16_384];
    loop {
        let statuses = statuses(&bytes, &methods);
        let enough = statuses.len() >= predicted.statuses.len() && !predicted.closed;
        let wait = match (enough, predicted.statuses.is_empty()) {
            (true, _) => QUIET,
            (false, false) if statuses.is_empty() => end.saturating_duration_since(Instant::now()),
            _ => UNSURE,
        };
        stream
            .set_read_timeout(Some(wait.max(Duration::from_millis(1))))
            .expect("a timeout");
        match stream.read(&mut buffer) {
            Ok(0) => closed = true,
            Ok(count) => {
                bytes.extend_from_slice(&buffer[..count]);
                continue;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => closed = true,
        }
        return Answers { statuses, closed };
    }
}

/// The methods of the requests in `raw`, as far as they can be told: answers to HEAD have no body.
fn methods(raw: &[u8]) -> Vec<&[u8]> {
    let mut starts = vec![0];
    starts.extend(
        raw.windows(4)
            .enumerate()
            .filter(|(_, w)| w == b"\r\n\r\n")
            .map(|(at, _)| at + 4),
    );
    starts
        .iter()
        .filter_map(|start| {
            let rest = raw.get(*start..)?;
            let end = rest.iter().position(|byte| !byte.is_ascii_uppercase())?;
            (end > 0 && rest[end] == b' ').then(|| &rest[..end])
        })
        .collect()
}

/// The final statuses in what a server sent; 0 once for bytes that are no response, after which nothing is looked at.
fn statuses(mut bytes: &[u8], methods: &[&[u8]]) -> Vec<u16> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let status = bytes
            .strip_prefix(b"HTTP/1.")
            .and_then(|rest| str::from_utf8(rest.get(2..5)?).ok()?.parse::<u16>().ok());
        let Some(status) = status else {
            found.push(0);
            break;
        };
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            found.push(status);
            break;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        bytes = &bytes[end + 4..];
        if status < 200 {
            continue;
        }
        let method = methods.get(found.len()).copied().unwrap_or_default();
        found.push(status);
        if status == 204 || status == 304 || method == b"HEAD" {
            continue;
        }
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|value| value.trim().parse().ok());
        bytes = match length {
            Some(length) => bytes.get(length..).unwrap_or_default(),
            None => &[],
        };
    }
    found
}

#[test]
fn the_core_reaches_every_verdict_for_every_cut() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 198);
    let mut report = Report {
        vectors: vectors.len(),
        ..Report::default()
    };
    for vector in &vectors {
        let whole = predict(&vector.raw, vector.raw.len().max(1));
        if let Some(why) = judge(vector, &whole) {
            report
                .wrong
                .push(format!("{}: {why}: {:?}", vector.id, whole.statuses));
        }
        for piece in [1, 2, 3, 7, 64, 1000, 65_535] {
            let cut = predict(&vector.raw, piece);
            if cut != whole {
                report.split.push(format!(
                    "{}: {whole:?}, in pieces of {piece} {cut:?}",
                    vector.id
                ));
            }
        }
    }
    assert!(report.is_clean(), "{report}");
}

#[test]
fn what_must_be_refused_is_refused_by_the_core_at_once() {
    // The suite lets a server also close or wait; the core says what is wrong.
    for vector in vectors()
        .iter()
        .filter(|vector| vector.expect == Expected::Reject)
    {
        let answers = predict(&vector.raw, vector.raw.len());
        let refused = answers.statuses.last().is_some_and(|status| *status >= 400);
        assert!(
            answers.closed && (refused || vector.id == "close-then"),
            "{}: {answers:?}",
            vector.id
        );
    }
}

#[test]
fn a_server_made_of_the_core_passes_the_suite_over_sockets() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    let answered = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&answered);
    // Ends with the process: it holds nothing that must be put in order.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counter = std::sync::Arc::clone(&counter);
            std::thread::spawn(move || drop(serve(stream, &counter)));
        }
    });
    let report = run_suite(address, &vectors());
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        report.answered,
        answered.load(Ordering::Relaxed),
        "accepted requests are answered"
    );
}

fn serve(mut stream: TcpStream, answered: &AtomicUsize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut server = Server::default();
    let mut buffer = [0; 16_384];
    while !server.answers.closed {
        let count = client::read(&mut stream, &mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let before = server.answers.statuses.len();
        server.handle_bytes(&buffer[..count]);
        let new = server.answers.statuses.get(before..).unwrap_or_default();
        answered.fetch_add(
            new.iter().filter(|status| **status < 400).count(),
            Ordering::Relaxed,
        );
        stream.write_all(&std::mem::take(&mut server.output))?;
    }
    // Half a close, then reading on for a while: a reset would take the answer away from the client.
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    while client::read(&mut stream, &mut buffer)? > 0 {}
    Ok(())
}

#[test]
fn the_front_passes_the_suite_and_hands_on_what_it_accepts_once() {
    let directory = scratch();
    let golden = golden::prepare("golden", directory.path());
    let database = golden.database.to_str().expect("a UTF-8 path");
    let mut front = Program::lurcher(
        &["serve", database, "--server", &golden.uuid],
        directory.path(),
    );
    let server = front.listening();
    // The one that has `/`.
    let (send, recv) = golden.handlers.first().expect("a handler");
    let (stop, requests) = (AtomicBool::new(false), AtomicUsize::new(0));
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            let peer = Peer::connect(send, recv, Replies::Xpub);
            peer.subscribed();
            while !stop.load(Ordering::Relaxed) {
                if let Some(message) = peer.recv(Duration::from_millis(20))
                    && let Some((sender, id, payload)) = echo(&message)
                {
                    requests.fetch_add(1, Ordering::Relaxed);
                    peer.reply(sender, id, &payload);
                }
            }
        });
        let report = std::panic::catch_unwind(|| run_suite(server, &vectors()));
        stop.store(true, Ordering::Relaxed);
        report.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(front.alive(), "{front}");
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        report.answered,
        requests.into_inner(),
        "one message for each accepted request"
    );
}

/// The 200 with the body of a request; `None` for notices, and for the first of an upload's two messages.
fn echo(message: &[u8]) -> Option<(&str, &str, Vec<u8>)> {
    let (sender, id, path, rest) = address(message);
    if path == "@*" {
        return None;
    }
    let (headers, rest) = netstring(rest);
    let headers: serde_json::Value = serde_json::from_slice(headers).expect("valid JSON");
    if headers.get("x-mongrel2-upload-start").is_some()
        && headers.get("x-mongrel2-upload-done").is_none()
    {
        return None;
    }
    let (body, rest) = netstring(rest);
    assert!(rest.is_empty(), "nothing follows the body");
    let mut payload =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    if headers["METHOD"] != "HEAD" {
        payload.extend_from_slice(body);
    }
    Some((sender, id, payload))
}

fn netstring(bytes: &[u8]) -> (&[u8], &[u8]) {
    let colon = bytes
        .iter()
        .position(|byte| *byte == b':')
        .expect("a netstring");
    let length: usize = str::from_utf8(&bytes[..colon])
        .expect("ASCII")
        .parse()
        .expect("a length");
    let (text, rest) = bytes[colon + 1..].split_at(length);
    (text, rest.strip_prefix(b",").expect("a comma"))
}
