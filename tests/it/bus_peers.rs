//! The binding side of the bus against real peers: libzmq by the `zmq` crate, raw sockets for those who misbehave.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use lurcher::bus::server::{self, Kind, Listening, Message, Options, Outgoing, Peer, PeerId, Sink};
use lurcher::drain::{self, Watch};
use lurcher::endpoint::{Endpoint, Transport};
use tokio::sync::Notify;

/// Long enough for a loaded machine; never waited for in full when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every size at which a frame header changes, and one that needs several reads.
const SIZES: [usize; 7] = [5, 0, 1, 254, 255, 256, 70_000];

fn payload(size: usize) -> Vec<u8> {
    b"abcdefghijklmnopqrstuvwxyz0123456789"
        .iter()
        .copied()
        .cycle()
        .take(size)
        .collect()
}

/// What the sink was told.
#[derive(Debug, Default)]
struct Seen {
    joined: Vec<Rc<Peer>>,
    subscribed: Vec<PeerId>,
    messages: Vec<(PeerId, Vec<Vec<u8>>)>,
    writable: Vec<PeerId>,
    lost: HashMap<PeerId, Vec<Vec<u64>>>,
}

/// A sink that remembers, and whoever waits for something to be seen.
#[derive(Debug, Default)]
struct Recorder {
    seen: RefCell<Seen>,
    news: Notify,
}

impl Recorder {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.borrow_mut());
        self.news.notify_waiters();
    }

    /// Waits until `what` finds what it looks for.
    #[track_caller]
    fn wait<T>(&self, what: impl Fn(&Seen) -> Option<T>) -> impl Future<Output = T> {
        let caller = std::panic::Location::caller();
        async move {
            let found = tokio::time::timeout(PATIENCE, async {
                loop {
                    let news = self.news.notified();
                    if let Some(found) = what(&self.seen.borrow()) {
                        return found;
                    }
                    news.await;
                }
            });
            found
                .await
                .unwrap_or_else(|_| panic!("{caller}: waited in vain; seen: {:?}", self.summary()))
        }
    }

    async fn peer(&self, index: usize) -> Rc<Peer> {
        self.wait(|seen| seen.joined.get(index).cloned()).await
    }

    async fn messages(&self, count: usize) -> Vec<Vec<Vec<u8>>> {
        self.wait(|seen| {
            (seen.messages.len() >= count)
                .then(|| seen.messages.iter().map(|(_, m)| m.clone()).collect())
        })
        .await
    }

    async fn lost(&self, peer: &Peer) -> Vec<u64> {
        let id = peer.id();
        let mut told = self.wait(|seen| seen.lost.get(&id).cloned()).await;
        assert_eq!(told.len(), 1, "lost is told once");
        told.remove(0)
    }

    fn summary(&self) -> String {
        let seen = self.seen.borrow();
        format!(
            "{} joined, {} subscribed, {} messages, {} writable, lost {:?}",
            seen.joined.len(),
            seen.subscribed.len(),
            seen.messages.len(),
            seen.writable.len(),
            seen.lost
        )
    }
}

impl Sink for Recorder {
    fn joined(&self, peer: &Rc<Peer>) {
        self.note(|seen| seen.joined.push(Rc::clone(peer)));
    }

    fn subscribed(&self, peer: &Rc<Peer>) {
        self.note(|seen| seen.subscribed.push(peer.id()));
    }

    fn message(&self, peer: &Rc<Peer>, message: Message) {
        let frames = message.frames().map(|frame| frame.to_vec()).collect();
        self.note(|seen| seen.messages.push((peer.id(), frames)));
    }

    fn writable(&self, peer: &Rc<Peer>) {
        self.note(|seen| seen.writable.push(peer.id()));
    }

    fn lost(&self, peer: &Rc<Peer>, unsent: Vec<u64>) {
        self.note(|seen| seen.lost.entry(peer.id()).or_default().push(unsent));
    }
}

/// A bound socket with its recorder.
struct Bus {
    recorder: Rc<Recorder>,
    listening: Listening,
    address: String,
    watch: Watch,
    signal: Option<drain::Signal>,
}

impl Bus {
    async fn bind(endpoint: Endpoint, kind: Kind, options: Options) -> Self {
        let (signal, watch) = drain::channel();
        let bound = server::bind(&endpoint, kind, options).await.unwrap();
        let recorder = Rc::new(Recorder::default());
        let address = bound.endpoint().to_string();
        let listening = bound.run(Rc::clone(&recorder) as Rc<dyn Sink>, &watch);
        Self {
            recorder,
            listening,
            address,
            watch,
            signal: Some(signal),
        }
    }

    async fn push() -> Self {
        Self::bind(tcp(), Kind::Push, Options::default()).await
    }

    async fn sub() -> Self {
        Self::bind(tcp(), everything(), Options::default()).await
    }
}

fn everything() -> Kind {
    Kind::Sub {
        topics: vec![Vec::new()],
    }
}

fn tcp() -> Endpoint {
    Endpoint {
        transport: Transport::Tcp {
            host: "127.0.0.1".into(),
            port: None,
        },
        identity: None,
        mode: None,
    }
}

fn ipc(path: &str) -> Endpoint {
    Endpoint {
        transport: Transport::Ipc { path: path.into() },
        identity: None,
        mode: None,
    }
}

/// Runs a test on a shard of its own.
fn shard(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// A libzmq socket that connects, and gives up instead of hanging.
fn connect(kind: zmq::SocketType, address: &str) -> zmq::Socket {
    let socket = zmq::Context::new().socket(kind).unwrap();
    let patience = i32::try_from(PATIENCE.as_millis()).unwrap();
    socket.set_rcvtimeo(patience).unwrap();
    socket.set_sndtimeo(patience).unwrap();
    socket.connect(address).unwrap();
    socket
}

async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(what).await.unwrap()
}

#[test]
fn a_pull_gets_messages_of_every_size_in_order() {
    shard(async {
        let bus = Bus::push().await;
        let address = bus.address.clone();
        let puller = std::thread::spawn(move || {
            let pull = connect(zmq::PULL, &address);
            (0..=SIZES.len())
                .map(|_| pull.recv_multipart(0).unwrap())
                .collect::<Vec<_>>()
        });
        let peer = bus.recorder.peer(0).await;
        for (tag, size) in SIZES.into_iter().enumerate() {
            let bytes = payload(size);
            let (head, body) = bytes.split_at(size.min(40));
            peer.send(
                Outgoing {
                    head: head.into(),
                    body: Bytes::copy_from_slice(body),
                },
                tag as u64,
            )
            .unwrap();
        }
        peer.send_frames(&[b"part one", b"", &payload(300)], 99)
            .unwrap();
        let got = blocking(|| puller.join().unwrap()).await;
        let mut expected: Vec<Vec<Vec<u8>>> =
            SIZES.iter().map(|size| vec![payload(*size)]).collect();
        expected.push(vec![b"part one".to_vec(), Vec::new(), payload(300)]);
        assert!(got == expected);
        assert_eq!(bus.recorder.lost(&peer).await, Vec::<u64>::new());
    });
}

#[test]
fn a_pub_is_heard_whole_once_subscribed() {
    shard(async {
        let bus = Bus::sub().await;
        let socket = connect(zmq::PUB, &bus.address);
        let peer = bus.recorder.peer(0).await;
        bus.recorder
            .wait(|seen| (seen.subscribed == [peer.id()]).then_some(()))
            .await;
        blocking(move || {
            for size in SIZES {
                socket.send(payload(size), 0).unwrap();
            }
            socket
                .send_multipart([b"part one".to_vec(), Vec::new(), payload(300)], 0)
                .unwrap();
        })
        .await;
        let mut expected: Vec<Vec<Vec<u8>>> =
            SIZES.iter().map(|size| vec![payload(*size)]).collect();
        expected.push(vec![b"part one".to_vec(), Vec::new(), payload(300)]);
        assert!(bus.recorder.messages(8).await == expected);
    });
}
