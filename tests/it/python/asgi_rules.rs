//! ASGI rule by rule: scopes, responses in every form, and WebSocket messages of every kind and size. Most of it is tables: many claims to
//! one start of the servers.

use std::time::Instant;

use serde_json::{Value, json};

use super::{App, ask, each, python, text};
use crate::support::PATIENCE;
use crate::support::client::{Answer, Asked, Client};
use crate::support::servers::{self, Kind, Server};

const APP: &str = "asgi_rules:app";

fn get(server: &Server, path: &str) -> Answer {
    ask(server.address, &format!("GET {path}"), "", b"")
}

/// An open WebSocket.
struct Socket(Client);

impl Socket {
    fn open(server: &Server, path: &str, fields: &str) -> (Self, Answer) {
        let mut client = Client::connect(server.address);
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
        );
        client.send(head.as_bytes()).expect("send a handshake");
        let answer = client.answer();
        assert_eq!(answer.status, 101, "{path}");
        (Self(client), answer)
    }

    /// Sends one frame, first byte as it is given; a mask of zeros leaves the payload as it is.
    fn frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..=125 => frame.push(0x80 | u8::try_from(length).expect("a short one")),
            length @ 126..=0xffff => {
                frame.push(0x80 | 0x7e);
                frame.extend(u16::try_from(length).expect("a medium one").to_be_bytes());
            }
            length => {
                frame.push(0x80 | 0x7f);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.0.send(&frame).expect("send a frame");
    }

    fn text(&mut self, text: &str) {
        self.frame(0x81, text.as_bytes());
    }

    /// The next frame: its first byte and its payload.
    fn next(&mut self) -> (u8, Vec<u8>) {
        let head = self.take(2);
        let length = match head[1] {
            126 => {
                let length = self.take(2);
                usize::from(u16::from_be_bytes([length[0], length[1]]))
            }
            127 => {
                let length = self.take(8).try_into().expect("eight bytes");
                usize::try_from(u64::from_be_bytes(length)).expect("it fits")
            }
            short => usize::from(short),
        };
        (head[0], self.take(length))
    }

    fn next_text(&mut self) -> String {
        let (first, payload) = self.next();
        assert_eq!(first, 0x81, "{payload:?}");
        String::from_utf8(payload).expect("text")
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let end = Instant::now() + PATIENCE;
        while self.0.bytes().len() < length {
            assert!(!self.0.ended() && Instant::now() < end, "no {length} bytes");
            self.0.read_some(PATIENCE);
        }
        self.0.take(length)
    }
}

#[test]
fn a_scope_says_how_it_was_asked() {
    each(APP, &[], |server, _| {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let line = format!("{method} /scope");
            let answer = ask(server.address, &line, "Content-Length: 0\r\n", b"");
            let scope: Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!(scope["method"], method);
            assert_eq!(scope["query_string"], "");
        }
        for query in [
            "name=test",
            "a=1&b=2&c=3",
            "name=hello%20world",
            "%C3%A9=+&&=",
            "?",
        ] {
            let answer = get(server, &format!("/scope?{query}"));
            let scope: Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!(scope["query_string"], query);
            assert_eq!(scope["path"], "/scope");
            assert_eq!(scope["state"], json!({"begun": "yes"}));
        }
        let fields = "User-Agent: one/1.0\r\nX-UPPER: Kept As Is\r\nContent-Type: a/b\r\n";
        let answer = ask(server.address, "GET /scope", fields, b"");
        let scope: Value = serde_json::from_slice(&answer.body).expect("JSON");
        let headers = &scope["headers"];
        assert_eq!(headers["user-agent"], "one/1.0");
        assert_eq!(headers["x-upper"], "Kept As Is");
        assert_eq!(headers["content-type"], "a/b");
        let mut client = Client::connect(server.address);
        let old = b"GET /scope HTTP/1.0\r\nHost: localhost\r\n\r\n";
        client.send(old).expect("send a request");
        let scope: Value = serde_json::from_slice(&client.answer().body).expect("JSON");
        assert_eq!(
            (&scope["type"], &scope["http_version"]),
            (&json!("http"), &json!("1.0"))
        );
    });
}

#[test]
fn a_response_is_what_was_sent_whatever_its_status() {
    each(APP, &[], |server, _| {
        // All on one connection, which none of them ends.
        let mut client = Client::connect(server.address);
        let mut ask = |method: &str, path: &str| {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client.send(head.as_bytes()).expect("send a request");
            let is_head = method == "HEAD";
            let asked = if is_head { Asked::Head } else { Asked::Other };
            client.try_answer(asked, PATIENCE).expect("an answer")
        };
        for status in [
            200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 409,
            410, 418, 422, 429, 500, 501, 502, 503, 504,
        ] {
            for method in ["GET", "HEAD"] {
                let answer = ask(method, &format!("/status?{status}"));
                assert_eq!((answer.status, text(&answer).as_str()), (status, ""));
                let location = answer.header("location");
                assert_eq!(location, Some(&b"/elsewhere?a=%20b"[..]), "{status}");
            }
        }
        let answer = ask("GET", "/cookies");
        let cookies = answer
            .headers
            .iter()
            .filter(|(name, _)| name == "set-cookie");
        let cookies: Vec<_> = cookies.map(|(_, value)| value.as_slice()).collect();
        assert_eq!(cookies, [&b"a=1; Path=/"[..], b"b=2"]);
        assert_eq!(answer.header("x-empty"), Some(&b""[..]));
        let answer = ask("GET", "/bare");
        assert_eq!((answer.status, text(&answer).as_str()), (200, ""));
    });
}

#[test]
fn pieces_of_any_size_arrive_as_one_body() {
    each(APP, &[], |server, _| {
        let mut client = Client::connect(server.address);
        for (sizes, length) in [
            ("0", 0),
            ("1", 1),
            ("1,1,1,1,1", 5),
            ("100,500,200", 800),
            ("0,3,0,0,4,0", 7),
            ("65536,1,65536,100000", 231_073),
            ("1048576", 1_048_576),
        ] {
            let head = format!("GET /pieces?{sizes} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client.send(head.as_bytes()).expect("send a request");
            let answer = client.answer();
            assert_eq!(answer.body.len(), length, "{sizes}");
            let expected = sizes.split(',').enumerate().flat_map(|(number, size)| {
                let digit = number.to_string().into_bytes()[0];
                vec![digit; size.parse().expect("a size")]
            });
            assert!(expected.eq(answer.body.iter().copied()), "{sizes}");
            if length > 0 {
                // Nobody has said how long it will be.
                assert_eq!(answer.header("content-length"), None, "{sizes}");
                let coding = answer.header("transfer-encoding");
                assert_eq!(coding, Some(&b"chunked"[..]), "{sizes}");
            }
        }
        // Who knows no chunks gets it until the end of the connection.
        let old = b"GET /pieces?3,2 HTTP/1.0\r\nHost: localhost\r\n\r\n";
        let mut client = Client::connect(server.address);
        client.send(old).expect("send a request");
        let found = client.rest();
        assert!(
            found.ends_with(b"\r\n\r\n00011"),
            "{}",
            String::from_utf8_lossy(&found)
        );
        let mut client = Client::connect(server.address);
        let slow = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n";
        client.send(slow).expect("send a request");
        for line in [
            "{\"id\": 0}\n",
            "{\"id\": 1}\n",
            "{\"id\": 2}\n",
            "0\r\n\r\n",
        ] {
            client.upto(line.as_bytes());
        }
    });
}

#[test]
fn a_body_comes_back_whole_or_piece_by_piece() {
    let Some(python) = python() else { return };
    for kind in [Kind::Lurcher, Kind::Mongrel2] {
        // As one message, and as a stream of them where there is one.
        for settings in [", 'limits.content_length': 2000000", ", 'upload.stream': 1"] {
            if kind == Kind::Mongrel2 && settings.contains("stream") {
                continue;
            }
            let Some(server) = Server::start(kind, "tnetstring", settings) else {
                continue;
            };
            let mut app = App::start(python, &server, APP, &[]);
            let mut client = Client::connect(server.address);
            for path in ["/echo", "/mirror"] {
                for size in [0, 1, 100, 65_535, 65_536, 1_000_000] {
                    let body: Vec<u8> = (0..size)
                        .map(|at: usize| (at * 31 + at / 256).to_le_bytes()[0])
                        .collect();
                    let head = format!(
                        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
                    );
                    // What comes back is not read before everything is sent.
                    client
                        .send(&[head.as_bytes(), &body].concat())
                        .expect("send");
                    let answer = client.answer();
                    assert_eq!(answer.status, 200, "{path} {size}\n{}", app.program);
                    assert!(answer.body == body, "{path} {size}: {}", answer.body.len());
                }
            }
            assert!(app.program.terminate().success(), "{}", app.program);
        }
    }
}

#[test]
fn a_message_of_any_kind_and_size_comes_back_as_it_was() {
    let Some(python) = python() else { return };
    // The real one holds frames to what it holds bodies to.
    servers::each(", 'limits.content_length': 200000", |server| {
        let mut app = App::start(python, &server, APP, &[]);
        let (mut socket, _) = Socket::open(&server, "/messages", "");
        for text in [
            "Hello",
            "",
            " ",
            "\u{e4}\u{20ac}\u{1f600} \u{5d0}",
            "a\0b\n\r\t\"\\",
            "{\"key\": [1, null]}",
        ] {
            socket.text(text);
            assert_eq!(socket.next_text(), text);
        }
        let every: Vec<u8> = (0..=255).collect();
        for bytes in [
            &b""[..],
            b"\0",
            b"\0\0\0",
            b"\xff\xfe",
            &every,
            &every.repeat(300),
        ] {
            socket.frame(0x82, bytes);
            assert!(socket.next() == (0x82, bytes.to_vec()), "{}", bytes.len());
        }
        for size in [1, 125, 126, 127, 1024, 65_535, 65_536, 100_000] {
            socket.text(&"y".repeat(size));
            assert!(socket.next_text() == "y".repeat(size), "{size}");
        }
        // In fragments, with a ping between them.
        socket.frame(0x01, b"one ");
        socket.frame(0x00, b"message ");
        socket.frame(0x89, b"?");
        assert_eq!(socket.next(), (0x8a, b"?".to_vec()));
        socket.frame(0x80, b"whole");
        assert_eq!(socket.next_text(), "one message whole");
        // Many at once, in order.
        for number in 0..100 {
            socket.text(&format!("message {number}"));
        }
        for number in 0..100 {
            assert_eq!(socket.next_text(), format!("message {number}"));
        }

        let (mut socket, _) = Socket::open(&server, "/turns", "");
        socket.text("text");
        assert_eq!(socket.next(), (0x82, b"text".to_vec()));
        socket.frame(0x82, b"bytes");
        assert_eq!(socket.next_text(), "bytes");
        let (mut socket, _) = Socket::open(&server, "/makes", "");
        for size in [0, 125, 126, 65_536, 300_000] {
            socket.text(&size.to_string());
            assert_eq!(socket.next_text().len(), size);
        }
        let (mut socket, _) = Socket::open(&server, "/copies", "");
        socket.text("of it");
        for number in 0..5 {
            assert_eq!(socket.next_text(), format!("{number} of it"));
        }
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

#[test]
fn the_scope_of_a_websocket_is_that_of_its_handshake() {
    each(APP, &[], |server, _| {
        let fields = "X-Custom: of it\r\n";
        let (mut socket, _) = Socket::open(server, "/scope?foo=bar&baz=%20", fields);
        let scope: Value = serde_json::from_str(&socket.next_text()).expect("JSON");
        for (key, expected) in [
            ("type", json!("websocket")),
            ("http_version", json!("1.1")),
            ("scheme", json!("ws")),
            ("path", json!("/scope")),
            ("root_path", json!("")),
            ("query_string", json!("foo=bar&baz=%20")),
            ("server", json!(["localhost", 80])),
            ("subprotocols", json!([])),
            ("state", json!({"begun": "yes"})),
        ] {
            assert_eq!(scope[key], expected, "{key}");
        }
        assert_eq!(scope["client"][0], "127.0.0.1");
        assert_eq!(scope["asgi"]["version"], "3.0");
        assert_eq!(scope["headers"]["x-custom"], "of it");
        assert_eq!(scope["headers"]["host"], "localhost");
        for (offered, chosen) in [
            (&[][..], None),
            (&["unknown"], None),
            (&["third"], Some("third")),
            (&["first", "third", "second"], Some("third")),
        ] {
            let fields = match offered {
                [] => String::new(),
                offered => format!("Sec-WebSocket-Protocol: {}\r\n", offered.join(", ")),
            };
            let (mut socket, answer) = Socket::open(server, "/chooses", &fields);
            let found = answer.header("sec-websocket-protocol");
            assert_eq!(found, chosen.map(str::as_bytes), "{offered:?}");
            let seen: Value = serde_json::from_str(&socket.next_text()).expect("JSON");
            assert_eq!(seen, json!(offered));
        }
    });
}

#[test]
fn a_close_says_why_to_either_side() {
    each(APP, &[], |server, _| {
        for (code, reason) in [
            (1000_u16, ""),
            (1000, "goodbye"),
            (1001, "away"),
            (1002, "nonsense"),
            (1011, "sorry \u{e4}"),
            (3000, ""),
            (4001, "of the application"),
            (4999, "the last"),
        ] {
            let payload = [&code.to_be_bytes(), reason.as_bytes()].concat();
            let asked = reason.replace(' ', "_").replace('\u{e4}', "a");
            let expected = [&code.to_be_bytes(), asked.as_bytes()].concat();
            let path = format!("/closes?{code},{asked}");
            let (mut socket, _) = Socket::open(server, &path, "");
            assert_eq!(socket.next(), (0x88, expected), "{path}");
            let (mut socket, _) = Socket::open(server, "/messages", "");
            socket.frame(0x88, &payload);
            let (first, answered) = socket.next();
            assert_eq!((first, &answered[..2]), (0x88, &code.to_be_bytes()[..]));
            let end = Instant::now() + PATIENCE;
            loop {
                let answer = get(server, "/seen");
                let seen: Value = serde_json::from_slice(&answer.body).expect("JSON");
                if seen.as_array().and_then(|ends| ends.last()) == Some(&json!([code, reason])) {
                    break;
                }
                assert!(Instant::now() < end, "{code} {reason}: {seen}");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        let (mut socket, _) = Socket::open(server, "/closes_bare", "");
        assert_eq!(socket.next(), (0x88, vec![3, 232]));
    });
}

#[test]
fn many_websockets_and_requests_do_not_know_of_each_other() {
    let Some(python) = python() else { return };
    servers::each("", |server| {
        let mut app = App::start(python, &server, APP, &[]);
        let mut sockets: Vec<_> = (0..20)
            .map(|_| Socket::open(&server, "/messages", "").0)
            .collect();
        for turn in 0..5 {
            for (number, socket) in sockets.iter_mut().enumerate() {
                socket.text(&format!("{turn} of {number}"));
            }
            let answer = get(&server, "/pieces?2,2");
            assert_eq!(text(&answer), "0011");
            for (number, socket) in sockets.iter_mut().enumerate() {
                assert_eq!(socket.next_text(), format!("{turn} of {number}"));
            }
        }
        // One after the other as well.
        for turn in 0..20 {
            let (mut socket, _) = Socket::open(&server, "/messages", "");
            socket.text(&turn.to_string());
            assert_eq!(socket.next_text(), turn.to_string());
        }
        drop(sockets);
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}
