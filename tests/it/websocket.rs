//! WebSocket end to end: the real front, the built-in echo over ZeroMQ, raw bytes from the client. First the opening handshakes of
//! RFC 6455, good and bad, which the Autobahn suite does not have; then what Autobahn sees only from outside.

use crate::support::client::{Answer, Asked, Client};
use crate::support::front::Front;
use crate::support::program::Program;
use crate::support::{PATIENCE, scratch};

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";
const ACCEPT: &[u8] = b"BACScCJPNqyz+UBoqMH89VmURoA=";

/// A front with an echo behind it.
struct Echo {
    front: Front,
    _handler: Program,
    _directory: tempfile::TempDir,
}

impl Echo {
    fn start() -> Self {
        let front = Front::start("");
        let directory = scratch();
        let arguments = ["run", "echo", &front.send, &front.recv];
        let handler = Program::lurcher(&arguments, directory.path());
        Self {
            front,
            _handler: handler,
            _directory: directory,
        }
    }

    fn connect(&self) -> Client {
        Client::connect(self.front.address)
    }

    /// A connection that was upgraded.
    fn open(&self) -> Client {
        let mut client = self.connect();
        client.send(&Handshake::default().bytes()).expect("send");
        let answer = client.answer();
        assert!(accepts(&answer), "{answer:?}");
        client
    }
}

/// A handshake that is sound until something is done to it.
struct Handshake {
    line: &'static str,
    fields: Vec<(&'static str, String)>,
    behind: &'static str,
}

impl Default for Handshake {
    fn default() -> Self {
        let fields = [
            ("Host", "a"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", KEY),
            ("Sec-WebSocket-Version", "13"),
        ];
        Self {
            line: "GET / HTTP/1.1",
            fields: fields
                .map(|(name, value)| (name, value.to_owned()))
                .to_vec(),
            behind: "",
        }
    }
}

impl Handshake {
    /// Replaces a field, or adds it.
    fn with(name: &'static str, value: &str) -> Self {
        let mut handshake = Self::without(name);
        handshake.fields.push((name, value.to_owned()));
        handshake
    }

    fn without(name: &str) -> Self {
        let mut handshake = Self::default();
        handshake.fields.retain(|(n, _)| *n != name);
        handshake
    }

    /// Adds a field, whether it is there or not.
    fn and(name: &'static str, value: &str) -> Self {
        let mut handshake = Self::default();
        handshake.fields.push((name, value.to_owned()));
        handshake
    }

    fn line(line: &'static str) -> Self {
        Self {
            line,
            ..Self::default()
        }
    }

    fn behind(mut self, bytes: &'static str) -> Self {
        self.behind = bytes;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.line);
        for (name, value) in &self.fields {
            text.extend([name, ": ", value, "\r\n"]);
        }
        text.extend(["\r\n", self.behind]);
        text.into_bytes()
    }
}

/// What has to come of a handshake.
#[derive(Debug, Clone, Copy)]
enum Expect {
    /// A 101 with the right value.
    Accepted,
    /// The echo's 200: an ordinary request.
    Ordinary,
    Refused(u16),
}

fn accepts(answer: &Answer) -> bool {
    answer.status == 101 && answer.header("sec-websocket-accept") == Some(ACCEPT)
}

/// A short frame as clients send it.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [0x11, 0x22, 0x33, 0x44];
    let size = u8::try_from(payload.len()).expect("a short frame");
    assert!(size < 126);
    let mut frame = vec![first, 0x80 | size];
    frame.extend_from_slice(&key);
    frame.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

/// Reads until these bytes are there, and nothing else.
#[track_caller]
fn receives(client: &mut Client, expect: &[u8]) {
    while client.bytes().len() < expect.len() {
        assert!(
            client.read_some(PATIENCE) && !client.ended(),
            "{} instead of {}",
            client.bytes().escape_ascii(),
            expect.escape_ascii()
        );
    }
    assert_eq!(
        client.bytes().escape_ascii().to_string(),
        expect.escape_ascii().to_string()
    );
}

/// Reads to the end of the connection; all that came.
#[track_caller]
fn ends(client: &mut Client) -> Vec<u8> {
    while !client.ended() {
        assert!(client.read_some(PATIENCE), "the connection ends");
    }
    client.bytes().to_vec()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of handshakes")]
fn handshakes_are_judged_as_rfc_6455_says() {
    use Expect::{Accepted, Ordinary, Refused};
    let echo = Echo::start();
    let extensions = "Sec-WebSocket-Extensions";
    let lower = || {
        let mut handshake = Handshake::default();
        let names = ["host", "upgrade", "connection", "sec-websocket-key"];
        for (field, name) in handshake.fields.iter_mut().zip(names) {
            field.0 = name;
        }
        handshake
    };
    let key = |value| Handshake::with("Sec-WebSocket-Key", value);
    let version = |value| Handshake::with("Sec-WebSocket-Version", value);
    let cases = [
        ("plain", Handshake::default(), Accepted),
        (
            "upgrade-case",
            Handshake::with("Upgrade", "WebSocket"),
            Accepted,
        ),
        (
            "connection-list",
            Handshake::with("Connection", "keep-alive, Upgrade"),
            Accepted,
        ),
        (
            "connection-lower",
            Handshake::with("Connection", "upgrade"),
            Accepted,
        ),
        ("names-lower", lower(), Accepted),
        ("origin", Handshake::with("Origin", "http://evil"), Accepted),
        (
            "unknown-extension",
            Handshake::with(extensions, "foo; bar=1"),
            Accepted,
        ),
        (
            "deflate-offer",
            Handshake::with(extensions, "permessage-deflate; client_max_window_bits"),
            Accepted,
        ),
        (
            "deflate-bad-param",
            Handshake::with(extensions, "permessage-deflate; server_max_window_bits=99"),
            Accepted,
        ),
        (
            "protocol-offered",
            Handshake::with("Sec-WebSocket-Protocol", "chat, superchat"),
            Accepted,
        ),
        ("query", Handshake::line("GET /?a=b HTTP/1.1"), Accepted),
        (
            "no-key",
            Handshake::without("Sec-WebSocket-Key"),
            Refused(400),
        ),
        ("short-key", key("c2hvcnQ="), Refused(400)),
        (
            "non-base64-key",
            key("************************"),
            Refused(400),
        ),
        ("empty-key", key(""), Refused(400)),
        (
            "two-keys",
            Handshake::and("Sec-WebSocket-Key", KEY),
            Refused(400),
        ),
        (
            "no-version",
            Handshake::without("Sec-WebSocket-Version"),
            Refused(426),
        ),
        ("version-8", version("8"), Refused(426)),
        // It says 13, as every 426 is held to below.
        ("version-99", version("99"), Refused(426)),
        ("no-upgrade", Handshake::without("Upgrade"), Ordinary),
        ("upgrade-other", Handshake::with("Upgrade", "foo"), Ordinary),
        ("no-connection", Handshake::without("Connection"), Ordinary),
        (
            "connection-close",
            Handshake::with("Connection", "close"),
            Ordinary,
        ),
        ("post", Handshake::line("POST / HTTP/1.1"), Ordinary),
        ("http10", Handshake::line("GET / HTTP/1.0"), Ordinary),
        ("no-host", Handshake::without("Host"), Refused(400)),
        (
            "with-body-cl",
            Handshake::and("Content-Length", "5").behind("hello"),
            Refused(400),
        ),
        (
            "with-chunked",
            Handshake::and("Transfer-Encoding", "chunked").behind("0\r\n\r\n"),
            Refused(400),
        ),
    ];
    for (name, handshake, expect) in cases {
        let mut client = echo.connect();
        client.send(&handshake.bytes()).expect("send");
        let answer = client
            .try_answer(Asked::Other, PATIENCE)
            .unwrap_or_else(|| panic!("{name}: no answer"));
        let holds = match expect {
            Accepted => accepts(&answer) && answer.header("sec-websocket-extensions").is_none(),
            Ordinary => answer.status == 200,
            Refused(status) => answer.status == status,
        };
        assert!(holds, "{name}: expected {expect:?}, got {answer:?}");
        if answer.status == 426 {
            assert_eq!(
                answer.header("sec-websocket-version"),
                Some(&b"13"[..]),
                "{name}"
            );
        }
        if name == "protocol-offered" {
            assert_eq!(answer.header("sec-websocket-protocol"), Some(&b"chat"[..]));
        }
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let echo = Echo::start();
    let mut client = echo.connect();
    for byte in Handshake::default().bytes() {
        client.send(&[byte]).expect("send");
    }
    assert!(accepts(&client.answer()));
}

#[test]
fn a_frame_in_the_packet_of_the_handshake_is_not_lost() {
    let echo = Echo::start();
    let mut client = echo.connect();
    let mut packet = Handshake::default().bytes();
    packet.extend_from_slice(&masked(0x81, b"hi"));
    client.send(&packet).expect("send");
    assert!(accepts(&client.answer()));
    receives(&mut client, b"\x81\x02hi");
}

#[test]
fn a_later_request_of_a_connection_may_upgrade_it() {
    let echo = Echo::start();
    let mut client = echo.connect();
    client
        .send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nfirst")
        .expect("send");
    assert_eq!(client.answer().body, b"first");
    client.send(&Handshake::default().bytes()).expect("send");
    assert!(accepts(&client.answer()));
    client.send(&masked(0x82, b"second")).expect("send");
    receives(&mut client, b"\x82\x06second");
}

#[test]
fn messages_come_back_whole_and_controls_are_answered_in_between() {
    let echo = Echo::start();
    let mut client = echo.open();
    for piece in [
        masked(0x01, b"one "),
        masked(0x89, b"ping"),
        masked(0x00, b"mes"),
        masked(0x8a, b"unasked"),
        masked(0x80, b"sage"),
    ] {
        client.send(&piece).expect("send");
    }
    receives(&mut client, b"\x8a\x04ping\x81\x0bone message");
}

#[test]
fn a_close_is_answered_with_its_code_and_the_end() {
    let echo = Echo::start();
    for (payload, answer) in [
        (&b"\x03\xe8bye"[..], &b"\x88\x02\x03\xe8"[..]),
        (b"", b"\x88\x00"),
        (b"\x0f\xa0", b"\x88\x02\x0f\xa0"),
    ] {
        let mut client = echo.open();
        client.send(&masked(0x88, payload)).expect("send");
        assert_eq!(ends(&mut client), answer);
    }
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_by_its_code() {
    let echo = Echo::start();
    for (bytes, code) in [
        (b"\x81\x02hi".to_vec(), 1002_u16),
        (masked(0xc1, b"hi"), 1002),
        (masked(0x83, b"hi"), 1002),
        (masked(0x80, b"hi"), 1002),
        (masked(0x09, b""), 1002),
        (masked(0x88, b"\x03"), 1002),
        (masked(0x88, b"\x03\xee"), 1002),
        (masked(0x81, b"\xff"), 1007),
        (b"\x82\xff\x10\0\0\0\0\0\0\0aaaa".to_vec(), 1009),
    ] {
        let mut client = echo.open();
        client.send(&bytes).expect("send");
        let said = ends(&mut client);
        assert_eq!(
            (said.first(), said.get(2..4)),
            (Some(&0x88), Some(&code.to_be_bytes()[..])),
            "{} got {}",
            bytes.escape_ascii(),
            said.escape_ascii()
        );
    }
}
