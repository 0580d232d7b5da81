//! The built-in chat and echo behind both servers: one message to many, and large bodies sent back.

use std::net::SocketAddr;

use crate::support::client::{Client, fetch};
use crate::support::program::Program;
use crate::support::servers::{self, Server};
use crate::support::{PATIENCE, scratch};

/// Starts a built-in handler for a server.
fn start(app: &str, server: &Server) -> Program {
    Program::lurcher(
        &["run", app, &server.send, &server.recv],
        server.directory(),
    )
}

/// A WebSocket client, as far as short messages go.
struct Socket(Client);

impl Socket {
    fn open(address: SocketAddr) -> Self {
        let mut client = Client::connect(address);
        let head = "GET /socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        client.send(head.as_bytes()).unwrap();
        let answer = client.answer();
        assert_eq!(answer.status, 101);
        assert_eq!(
            answer.header("sec-websocket-accept"),
            Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..])
        );
        Self(client)
    }

    /// Masked with zeros.
    fn send(&mut self, first: u8, payload: &[u8]) {
        let length = u8::try_from(payload.len()).unwrap();
        assert!(length < 126);
        self.0
            .send(&[&[first, 0x80 | length, 0, 0, 0, 0], payload].concat())
            .unwrap();
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        while self.0.bytes().len() < length {
            assert!(self.0.read_some(PATIENCE), "{length} bytes do not come");
        }
        self.0.take(length)
    }

    fn got(&mut self) -> (u8, String) {
        let head = self.take(2);
        assert!(head[1] < 126);
        let payload = self.take(usize::from(head[1]));
        (head[0], String::from_utf8_lossy(&payload).into_owned())
    }
}

fn message(number: u32, text: &str) -> String {
    format!(r#"{{"number":{number},"text":"{text}"}}"#)
}

#[test]
fn what_one_says_in_a_chat_reaches_all_by_websocket_and_long_poll() {
    servers::each("", |server| {
        let mut chat = start("chat", &server);
        let address = server.address;
        let page = fetch(address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(String::from_utf8_lossy(&page.body).contains("<title>Chat</title>"));
        let mut one = Socket::open(address);
        let [mut keeps, mut closes] = ["HTTP/1.1\r\nHost: localhost", "HTTP/1.0"].map(|rest| {
            let mut client = Client::connect(address);
            client
                .send(format!("GET /messages?after=0 {rest}\r\n\r\n").as_bytes())
                .unwrap();
            client
        });
        one.send(0x81, b"hi <all>");
        let first = message(1, "hi <all>");
        assert_eq!(one.got(), (0x81, first.clone()));
        let list = format!("[{first}]");
        assert_eq!(keeps.answer().body, list.as_bytes());
        assert_eq!(closes.answer().body, list.as_bytes());
        assert!(closes.rest().is_empty(), "the connection ends");

        keeps
            .send(b"POST /messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\ntwo")
            .unwrap();
        assert_eq!(keeps.answer().status, 204);
        assert_eq!(one.got(), (0x81, message(2, "two")));
        keeps
            .send(b"GET /messages?after=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        assert_eq!(
            keeps.answer().body,
            format!("[{}]", message(2, "two")).as_bytes()
        );
        let late = [first, message(2, "two")];
        let mut other = Socket::open(address);
        assert_eq!(
            [other.got(), other.got()],
            late.map(|message| (0x81, message))
        );

        one.send(0x88, &[0x03, 0xe8]);
        assert_eq!(one.got().0, 0x88);
        assert!(one.0.rest().is_empty());
        chat.terminate();
        assert_eq!(other.take(4), [0x88, 2, 0x03, 0xe9], "going away");
        assert!(other.0.rest().is_empty());
    });
}

#[test]
fn echo_sends_back_what_was_stored_and_what_was_streamed() {
    let store = scratch();
    let stored = format!(
        ", 'upload.temp_store': '{}/body.XXXXXX'",
        store.path().display()
    );
    for settings in [stored.as_str(), ", 'upload.stream': 1"] {
        servers::each(settings, |server| {
            let mut echo = start("echo", &server);
            let body: Vec<u8> = (0..150_001_u32)
                .map(|at| b'a' + u8::try_from(at % 23).unwrap())
                .collect();
            let head = "POST / HTTP/1.1\r\nHost: localhost\r\n";
            let plain = [
                format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes(),
                &body,
            ]
            .concat();
            let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
            for chunk in body.chunks(50_000) {
                chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                chunked.extend_from_slice(chunk);
                chunked.extend_from_slice(b"\r\n");
            }
            chunked.extend_from_slice(b"0\r\n\r\n");
            let mut client = Client::connect(server.address);
            for request in [plain, chunked] {
                client.send(&request).unwrap();
                let answer = client.answer();
                assert_eq!(answer.status, 200);
                assert!(
                    answer.body == body,
                    "{} of {} bytes",
                    answer.body.len(),
                    body.len()
                );
            }
            assert!(echo.terminate().success(), "{echo}");
            let left = std::fs::read_dir(store.path()).unwrap().count();
            assert_eq!(left, 0, "files");
        });
    }
}
