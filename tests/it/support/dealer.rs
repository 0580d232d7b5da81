//! A worker of the broker's dialect used by hand: a DEALER of libzmq, which says and hears one thing at a time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lurcher::wire::worker::{FromBroker, FromWorker, Hello, RequestId, VERSION};

use super::PATIENCE;
use super::peer::{address, reply};

/// The worker.
pub(crate) struct Dealer {
    socket: zmq::Socket,
    _context: zmq::Context,
}

/// A request that it was given.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) id: RequestId,
    pub(crate) attempt: u8,
    pub(crate) left: Option<Duration>,
    pub(crate) sender: String,
    pub(crate) connection: String,
    pub(crate) path: String,
}

impl Dealer {
    /// Connects under a name, says how many requests it takes at once, and waits until it is welcome.
    pub(crate) fn connect(spec: &str, name: &str, slots: Option<u32>) -> Self {
        let context = zmq::Context::new();
        let socket = context.socket(zmq::DEALER).expect("a DEALER socket");
        socket.set_linger(0).expect("linger");
        socket.set_reconnect_ivl(20).expect("reconnect_ivl");
        socket
            .connect(spec)
            .unwrap_or_else(|error| panic!("connect {spec}: {error}"));
        let dealer = Self {
            socket,
            _context: context,
        };
        dealer.say(&FromWorker::Hello(Hello {
            version: VERSION,
            name: Bytes::copy_from_slice(name.as_bytes()),
            slots,
            weight: 1,
            pool: Bytes::new(),
        }));
        let welcome = dealer.hear(PATIENCE).expect("an answer to HELLO");
        assert!(
            matches!(welcome, FromBroker::Welcome { .. }),
            "{name}: {welcome:?}"
        );
        dealer
    }

    pub(crate) fn say(&self, what: &FromWorker) {
        let frames = what.encode();
        self.socket
            .send_multipart(frames.iter().map(|frame| &frame[..]), 0)
            .expect("send");
    }

    /// The next thing that is said to it within this time. It answers PINGs meanwhile.
    pub(crate) fn hear(&self, wait: Duration) -> Option<FromBroker> {
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = i64::try_from(left.as_millis()).expect("a short time");
            if self.socket.poll(zmq::POLLIN, left).expect("poll") == 0 {
                return None;
            }
            let frames = self.socket.recv_multipart(zmq::DONTWAIT).expect("receive");
            let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
            match FromBroker::decode(&frames).expect("a message of the dialect") {
                Some(FromBroker::Ping(number)) => self.say(&FromWorker::Pong {
                    number,
                    progress: 0,
                }),
                Some(heard) => return Some(heard),
                None => panic!("not known: {frames:?}"),
            }
        }
    }

    /// The next request within this time. Anything else is passed over.
    pub(crate) fn given_within(&self, wait: Duration) -> Option<Given> {
        let end = Instant::now() + wait;
        loop {
            let heard = self.hear(end.saturating_duration_since(Instant::now()))?;
            if let FromBroker::Request {
                id,
                attempt,
                left,
                message,
            } = heard
            {
                let (sender, connection, path, _) = address(&message);
                return Some(Given {
                    id,
                    attempt,
                    left,
                    sender: sender.to_owned(),
                    connection: connection.to_owned(),
                    path: path.to_owned(),
                });
            }
        }
    }

    pub(crate) fn given(&self) -> Given {
        self.given_within(PATIENCE).expect("a request")
    }

    pub(crate) fn begin(&self, given: &Given) {
        self.say(&FromWorker::First(given.id));
    }

    /// Begins it, sends the whole response, and is done.
    pub(crate) fn answer(&self, given: &Given, response: &[u8]) {
        self.begin(given);
        self.say(&FromWorker::Reply {
            id: Some(given.id),
            message: reply(&given.sender, &given.connection, response).into(),
        });
        self.say(&FromWorker::Done {
            id: given.id,
            took: Duration::from_millis(1),
        });
    }
}

/// Waits until one of them is given a request; says which.
pub(crate) fn whoever(dealers: &[&Dealer]) -> (usize, Given) {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        for (index, dealer) in dealers.iter().enumerate() {
            if let Some(given) = dealer.given_within(Duration::from_millis(5)) {
                return (index, given);
            }
        }
    }
    panic!("nobody was given a request");
}
