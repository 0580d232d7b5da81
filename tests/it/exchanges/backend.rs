//! The proxied server of the recordings, played again: what it answers is told by the path, as it was then. It keeps what it
//! received as it was on the wire, and judges nothing.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::judge::BackendRequest;
use crate::support::PATIENCE;
use crate::support::client::{Asked, Client, split_answer};

/// A running backend; its threads end with the process.
pub(crate) struct Backend {
    requests: Arc<Mutex<Vec<BackendRequest>>>,
}

impl Backend {
    /// Listens on a port of this machine.
    pub(crate) fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("bind the backend's port");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || serve(Client::accepted(stream), &seen));
            }
        });
        Self { requests }
    }

    /// What was received since it was last asked to forget.
    pub(crate) fn requests(&self) -> Vec<BackendRequest> {
        self.requests.lock().expect("no thread panicked").clone()
    }

    /// Another exchange begins.
    pub(crate) fn forget(&self) {
        self.requests.lock().expect("no thread panicked").clear();
    }
}

fn serve(mut client: Client, seen: &Mutex<Vec<BackendRequest>>) {
    loop {
        let Some(request) = next(&mut client) else {
            return;
        };
        let (answer, closes) = answer(&request);
        seen.lock().expect("no thread panicked").push(request);
        if client.send(&answer).is_err() || closes {
            return;
        }
    }
}

/// The next request; `None` when the other side has closed.
fn next(client: &mut Client) -> Option<BackendRequest> {
    loop {
        // The framing of a request with a body is that of an answer.
        let bytes = client.bytes();
        if let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = head + 4;
            let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
            let framed =
                text.contains("\r\ncontent-length:") || text.contains("\r\ntransfer-encoding:");
            if !framed {
                let raw = client.take(head);
                return Some(BackendRequest::parse(raw, Vec::new()));
            }
            let line = bytes.windows(2).position(|w| w == b"\r\n").unwrap_or(0);
            let like_an_answer = [b"HTTP/1.1 200 OK", &bytes[line..]].concat();
            if let Some((answer, length)) = split_answer(&like_an_answer, Asked::Other, false) {
                let raw = client.take(length + line - b"HTTP/1.1 200 OK".len());
                return Some(BackendRequest::parse(raw, answer.body));
            }
        }
        if client.ended() {
            return None;
        }
        client.read_some(PATIENCE);
    }
}

/// What is answered, and whether the connection is closed then.
fn answer(request: &BackendRequest) -> (Vec<u8>, bool) {
    let text = |text: &str| text.as_bytes().to_vec();
    if request.method.is_empty() {
        return (Vec::new(), true); // No request at all.
    }
    match request.path.rsplit('/').next().unwrap_or_default() {
        "connclose" => (
            text("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"),
            true,
        ),
        "http10" => (
            text("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nten"),
            true,
        ),
        "garbage" => (text("garbage garbage\r\n\r\n"), true),
        "drop" => (Vec::new(), true),
        "noreason" => (text("HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"), false),
        "100c" => (
            text("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            false,
        ),
        "big" => {
            let mut answer = text("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
            answer.resize(answer.len() + 100_000, b'x');
            (answer, false)
        }
        _ => {
            let body = if request.method == "HEAD" {
                ""
            } else {
                "hello"
            };
            let head = "HTTP/1.1 200 OK\r\nServer: tiny\r\nContent-Length: 5\r\n\r\n";
            (text(&format!("{head}{body}")), false)
        }
    }
}
