//! Handlers as any libzmq program would be one: a PULL and a PUB (or XPUB) socket, knowing nothing of Lurcher.

use std::time::{Duration, Instant};

use super::PATIENCE;

/// The two sockets of a handler.
pub(crate) struct Peer {
    pull: zmq::Socket,
    publish: zmq::Socket,
    /// Events of the PULL socket.
    monitor: zmq::Socket,
    _context: zmq::Context,
}

/// Which socket the replies leave by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replies {
    /// PUB, as handlers in the wild: nothing tells when the server listens.
    Pub,
    /// XPUB: the same on the wire, but the server's subscription can be waited for.
    Xpub,
}

impl Peer {
    /// Connects to a route's two specs.
    pub(crate) fn connect(send_spec: &str, recv_spec: &str, replies: Replies) -> Self {
        let context = zmq::Context::new();
        let pull = context.socket(zmq::PULL).expect("a PULL socket");
        let kind = match replies {
            Replies::Pub => zmq::PUB,
            Replies::Xpub => zmq::XPUB,
        };
        let publish = context.socket(kind).expect("a reply socket");
        for socket in [&pull, &publish] {
            socket.set_linger(0).expect("linger");
            socket.set_sndhwm(0).expect("sndhwm");
            socket.set_rcvhwm(0).expect("rcvhwm");
            socket.set_reconnect_ivl(20).expect("reconnect_ivl");
        }
        let monitor = context.socket(zmq::PAIR).expect("a PAIR socket");
        pull.monitor(
            "inproc://pull-events",
            zmq::SocketEvent::HANDSHAKE_SUCCEEDED as i32,
        )
        .expect("monitor");
        monitor
            .connect("inproc://pull-events")
            .expect("connect to the monitor");
        publish
            .connect(recv_spec)
            .unwrap_or_else(|error| panic!("connect {recv_spec}: {error}"));
        pull.connect(send_spec)
            .unwrap_or_else(|error| panic!("connect {send_spec}: {error}"));
        Self {
            pull,
            publish,
            monitor,
            _context: context,
        }
    }

    /// Waits until the server has taken both sockets ([`Replies::Xpub`] only).
    pub(crate) fn joined(&self) {
        self.subscribed();
        self.joined_pull();
    }

    /// Waits until the server has taken the PULL socket.
    pub(crate) fn joined_pull(&self) {
        let patience = i64::try_from(PATIENCE.as_millis()).expect("seconds");
        let ready = self.monitor.poll(zmq::POLLIN, patience).expect("poll");
        assert_eq!(ready, 1, "the server takes the PULL socket");
    }

    /// Closes the PULL socket, as a handler does that stops; gives the reply socket.
    pub(crate) fn close_pull(self) -> zmq::Socket {
        self.publish
    }

    /// Waits until the server has subscribed to the replies ([`Replies::Xpub`] only).
    pub(crate) fn subscribed(&self) {
        self.publish
            .set_rcvtimeo(i32::try_from(PATIENCE.as_millis()).expect("seconds"))
            .expect("rcvtimeo");
        let subscription = self
            .publish
            .recv_bytes(0)
            .expect("the server subscribes to the replies");
        assert_eq!(subscription.first(), Some(&1), "a subscription");
    }

    /// The next message from the server, waiting at most so long.
    pub(crate) fn recv(&self, wait: Duration) -> Option<Vec<u8>> {
        let end = Instant::now() + wait;
        loop {
            match self.pull.recv_bytes(zmq::DONTWAIT) {
                Ok(message) => return Some(message),
                Err(zmq::Error::EAGAIN) => {}
                Err(error) => panic!("receive: {error}"),
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let left = i64::try_from(left.as_millis()).unwrap_or(i64::MAX).max(1);
            self.pull.poll(zmq::POLLIN, left).expect("poll");
        }
    }

    /// Sends a message to the server as it is.
    pub(crate) fn send(&self, message: &[u8]) {
        self.publish.send(message, 0).expect("send a reply");
    }

    /// Sends `payload` to the connections of `ids`.
    pub(crate) fn reply(&self, sender: &str, ids: &str, payload: &[u8]) {
        self.send(&reply(sender, ids, payload));
    }

    /// The socket requests come by, to be polled beside others.
    pub(crate) fn pull(&self) -> &zmq::Socket {
        &self.pull
    }
}

/// One reply message.
pub(crate) fn reply(sender: &str, ids: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("{sender} {}:{ids}, ", ids.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

/// The first three words of a request message: sender, connection id, path; and what follows.
pub(crate) fn address(message: &[u8]) -> (&str, &str, &str, &[u8]) {
    let mut words = message.splitn(4, |&byte| byte == b' ');
    let mut word = || std::str::from_utf8(words.next().expect("four words")).expect("ASCII");
    let (sender, id, path) = (word(), word(), word());
    (sender, id, path, words.next().expect("headers and body"))
}
