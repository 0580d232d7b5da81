//! A front made of plain libzmq sockets, and the messages it pushes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use lurcher::handler::Options;

use super::PATIENCE;

/// Replies that are read ahead of the test; a front with more waiting reads no further.
pub(super) const READ_AHEAD: usize = 64;

/// The server's half: PUSH and SUB, bound, as Mongrel2 has them. A thread reads the SUB, since libzmq subscribes only
/// where somebody looks at the socket. Fields in the order in which they must be dropped.
pub(super) struct Front {
    pub(super) push: zmq::Socket,
    pub(super) replies: mpsc::Receiver<Vec<u8>>,
    pub(super) send_spec: String,
    pub(super) recv_spec: String,
    pub(super) reader: Reader,
    /// Dropping it waits until the sockets are closed, so that another front can bind the same addresses.
    _context: zmq::Context,
}

pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Front {
    pub(super) fn new() -> Self {
        Self::bind("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    }

    pub(super) fn bind(send_spec: &str, recv_spec: &str) -> Self {
        let context = zmq::Context::new();
        let socket = |kind, spec: &str| {
            let socket = context.socket(kind).unwrap();
            socket.set_linger(0).unwrap();
            socket.set_sndtimeo(30_000).unwrap();
            socket.set_rcvtimeo(50).unwrap();
            socket.bind(spec).unwrap();
            let spec = socket.get_last_endpoint().unwrap().unwrap();
            (socket, spec)
        };
        let (sub, recv_spec) = socket(zmq::SUB, recv_spec);
        sub.set_subscribe(b"").unwrap();
        let (push, send_spec) = socket(zmq::PUSH, send_spec);
        let (sender, replies) = mpsc::sync_channel(READ_AHEAD);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if let Ok(reply) = sub.recv_bytes(0)
                    && sender.send(reply).is_err()
                {
                    break;
                }
            }
        });
        let reader = Reader {
            stop,
            thread: Some(thread),
        };
        Self {
            push,
            replies,
            send_spec,
            recv_spec,
            reader,
            _context: context,
        }
    }

    pub(super) fn options(&self) -> Options {
        let mut options = Options::to(&self.send_spec).unwrap();
        options.recv_specs = vec![self.recv_spec.parse().unwrap()];
        // Longer than any machine is busy: whatever takes so long fails its test.
        options.subscription_timeout = PATIENCE;
        options
    }

    pub(super) fn push(&self, message: &[u8]) {
        self.push
            .send(message, 0)
            .expect("a handler takes the request");
    }

    #[track_caller]
    pub(super) fn reply(&self) -> String {
        let reply = self.replies.recv_timeout(PATIENCE).expect("a reply");
        String::from_utf8_lossy(&reply).into_owned()
    }
}

/// A message in the JSON protocol.
pub(super) fn json(
    sender: &str,
    id: u32,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Vec<u8> {
    let headers: serde_json::Map<_, _> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).into()))
        .collect();
    let headers = serde_json::to_string(&headers).unwrap();
    format!(
        "{sender} {id} {path} {}:{headers},{}:{body},",
        headers.len(),
        body.len()
    )
    .into_bytes()
}

/// The same in tnetstrings.
pub(super) fn tnetstring(
    sender: &str,
    id: u32,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Vec<u8> {
    let string = |text: &str| format!("{}:{text},", text.len());
    let headers: String = headers
        .iter()
        .map(|(name, value)| string(name) + &string(value))
        .collect();
    format!(
        "{sender} {id} {path} {}:{headers}}}{}",
        headers.len(),
        string(body)
    )
    .into_bytes()
}

pub(super) fn get(id: u32) -> Vec<u8> {
    request(id, "GET", "HTTP/1.1", "")
}

pub(super) fn request(id: u32, method: &str, version: &str, body: &str) -> Vec<u8> {
    json(
        "front",
        id,
        "/a",
        &[("PATH", "/a"), ("METHOD", method), ("VERSION", version)],
        body,
    )
}
