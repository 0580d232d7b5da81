//! The binding side of the bus against real peers: libzmq by the `zmq` crate, raw sockets for those who misbehave.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use lurcher::bus::server::{
    self, Full, Kind, Listening, Message, Options, Origin, Outgoing, Peer, PeerId, Sink, Unsent,
    Version,
};
use lurcher::drain::{self, Watch};
use lurcher::endpoint::{Endpoint, Transport};
use lurcher::metrics::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Long enough for a loaded machine; never waited for in full when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Every size at which a frame header changes, and one that needs several reads.
const SIZES: [usize; 7] = [5, 0, 1, 254, 255, 256, 70_000];

fn tags(unsent: &[Unsent]) -> Vec<u64> {
    unsent.iter().map(|unsent| unsent.tag).collect()
}

pub(crate) fn payload(size: usize) -> Vec<u8> {
    b"abcdefghijklmnopqrstuvwxyz0123456789"
        .iter()
        .copied()
        .cycle()
        .take(size)
        .collect()
}

/// What the sink was told.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) joined: Vec<Rc<Peer>>,
    pub(crate) subscribed: Vec<PeerId>,
    pub(crate) messages: Vec<(PeerId, Vec<Vec<u8>>)>,
    pub(crate) writable: Vec<PeerId>,
    pub(crate) lost: HashMap<PeerId, Vec<Vec<u64>>>,
}

/// A sink that remembers, and whoever waits for something to be seen.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) seen: RefCell<Seen>,
    news: Notify,
}

impl Recorder {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.borrow_mut());
        self.news.notify_waiters();
    }

    /// Waits until `what` finds what it looks for.
    #[track_caller]
    pub(crate) fn wait<T>(&self, what: impl Fn(&Seen) -> Option<T>) -> impl Future<Output = T> {
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

    pub(crate) async fn peer(&self, index: usize) -> Rc<Peer> {
        self.wait(|seen| seen.joined.get(index).cloned()).await
    }

    pub(crate) async fn messages(&self, count: usize) -> Vec<Vec<Vec<u8>>> {
        self.wait(|seen| {
            (seen.messages.len() >= count)
                .then(|| seen.messages.iter().map(|(_, m)| m.clone()).collect())
        })
        .await
    }

    pub(crate) async fn lost(&self, peer: &Peer) -> Vec<u64> {
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

    fn lost(&self, peer: &Rc<Peer>, unsent: Vec<Unsent>) {
        let unsent = tags(&unsent);
        self.note(|seen| seen.lost.entry(peer.id()).or_default().push(unsent));
    }
}

/// A bound socket with its recorder.
pub(crate) struct Bus {
    pub(crate) recorder: Rc<Recorder>,
    pub(crate) listening: Listening,
    pub(crate) address: String,
    watch: Watch,
    signal: Option<drain::Signal>,
}

impl Bus {
    pub(crate) async fn bind(endpoint: Endpoint, kind: Kind, options: Options) -> Self {
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

    pub(crate) async fn push() -> Self {
        Self::bind(tcp(), Kind::Push, Options::default()).await
    }

    pub(crate) async fn sub() -> Self {
        Self::bind(tcp(), everything(), Options::default()).await
    }
}

pub(crate) fn everything() -> Kind {
    Kind::Sub {
        topics: vec![Vec::new()],
    }
}

pub(crate) fn tcp() -> Endpoint {
    Endpoint {
        transport: Transport::Tcp {
            host: "127.0.0.1".into(),
            port: None,
        },
        identity: None,
        mode: None,
    }
}

pub(crate) fn ipc(path: &str) -> Endpoint {
    Endpoint {
        transport: Transport::Ipc { path: path.into() },
        identity: None,
        mode: None,
    }
}

/// Runs a test on a shard of its own.
pub(crate) fn shard(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// A libzmq socket that connects, and gives up instead of hanging.
pub(crate) fn connect(kind: zmq::SocketType, address: &str) -> zmq::Socket {
    let socket = zmq::Context::new().socket(kind).unwrap();
    let patience = i32::try_from(PATIENCE.as_millis()).unwrap();
    socket.set_rcvtimeo(patience).unwrap();
    socket.set_sndtimeo(patience).unwrap();
    socket.connect(address).unwrap();
    socket
}

pub(crate) async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(what).await.unwrap()
}

/// A peer of our own making, byte by byte.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    /// Read and not looked at yet.
    input: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(address: &str) -> Self {
        let address = address.strip_prefix("tcp://").unwrap();
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            input: Vec::new(),
        }
    }

    /// One that has done its part of a handshake as ZMTP 3.1.
    pub(crate) async fn ready(address: &str, socket_type: &str) -> Self {
        let mut raw = Self::connect(address).await;
        raw.write(&greeting()).await;
        raw.write(&ready(socket_type)).await;
        let ours = raw.read(64).await;
        assert_eq!(ours[..12], *b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01");
        let header = raw.read(2).await;
        raw.read(usize::from(header[1])).await;
        raw
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn read(&mut self, count: usize) -> Vec<u8> {
        while self.input.len() < count {
            let mut buffer = [0; 8192];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer));
            let length = read.await.unwrap().unwrap();
            assert!(length > 0, "closed after {:?}", self.input);
            self.input.extend_from_slice(&buffer[..length]);
        }
        self.input.drain(..count).collect()
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn rest(mut self) -> Vec<u8> {
        let rest = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut self.input));
        if let Err(error) = rest.await.expect("closed in time") {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        self.input
    }
}

pub(crate) fn greeting() -> Vec<u8> {
    let mut bytes = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL".to_vec();
    bytes.resize(64, 0);
    bytes
}

pub(crate) fn ready(socket_type: &str) -> Vec<u8> {
    let length = u8::try_from(socket_type.len()).unwrap();
    let start = [4, 6 + 12 + 4 + length];
    [
        &start[..],
        b"\x05READY\x0bSocket-Type\0\0\0",
        &[length],
        socket_type.as_bytes(),
    ]
    .concat()
}

pub(crate) fn short_frame(body: &[u8]) -> Vec<u8> {
    [&[0, u8::try_from(body.len()).unwrap()], body].concat()
}

fn all_sizes() -> Vec<Vec<Vec<u8>>> {
    let mut messages: Vec<Vec<Vec<u8>>> = SIZES.iter().map(|size| vec![payload(*size)]).collect();
    messages.push(vec![b"part one".to_vec(), Vec::new(), payload(300)]);
    messages
}

fn send_all_sizes(peer: &Peer) {
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
}

/// Sends to a peer that does not read until its socket has taken nothing for a while: a socket that is full for a moment
/// only waits for the kernel to make its buffers larger.
async fn fill(peer: &Peer, body: impl Into<Bytes>, tag: &mut u64) {
    let body = body.into();
    while peer
        .blocked_since()
        .is_none_or(|since| since.elapsed() < Duration::from_millis(300))
    {
        if !peer.is_blocked() {
            peer.send(body.clone().into(), *tag).unwrap();
            *tag += 1;
        }
        if (*tag).is_multiple_of(10) || peer.is_blocked() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
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
        assert_eq!(peer.version(), Version::V3_1);
        assert_eq!(peer.origin(), Origin::Address(Ipv4Addr::LOCALHOST.into()));
        send_all_sizes(&peer);
        let got = blocking(|| puller.join().unwrap()).await;
        assert!(got == all_sizes());
        assert_eq!(bus.recorder.lost(&peer).await, Vec::<u64>::new());
        assert_eq!(peer.send(Outgoing::from(Bytes::new()), 1), Err(Full::Gone));
    });
}

#[test]
fn a_pub_is_heard_whole_once_subscribed() {
    shard(async {
        let bus = Bus::sub().await;
        for kind in [zmq::PUB, zmq::XPUB] {
            let socket = connect(kind, &bus.address);
            let peer = bus
                .recorder
                .wait(|seen| seen.joined.last().filter(|peer| !peer.is_gone()).cloned())
                .await;
            bus.recorder
                .wait(|seen| seen.subscribed.contains(&peer.id()).then_some(()))
                .await;
            assert!(peer.is_subscribed());
            blocking(move || {
                for message in all_sizes() {
                    socket.send_multipart(message, 0).unwrap();
                }
            })
            .await;
            assert!(bus.recorder.messages(8).await == all_sizes());
            bus.recorder.lost(&peer).await;
            bus.recorder.note(|seen| seen.messages.clear());
        }
    });
}

#[test]
fn messages_of_many_megabytes_pass_both_ways() {
    shard(async {
        let (push, sub) = (Bus::push().await, Bus::sub().await);
        let (to, from) = (push.address.clone(), sub.address.clone());
        let echo = std::thread::spawn(move || {
            let voice = connect(zmq::PUB, &from);
            let pull = connect(zmq::PULL, &to);
            for _ in 0..3 {
                voice.send(pull.recv_bytes(0).unwrap(), 0).unwrap();
            }
            assert_eq!(pull.recv_bytes(0).unwrap(), b"done");
        });
        let peer = push.recorder.peer(0).await;
        sub.recorder
            .wait(|seen| (!seen.subscribed.is_empty()).then_some(()))
            .await;
        let large = Bytes::from(payload(20_000_000));
        for tag in 0..3 {
            peer.send(large.clone().into(), tag).unwrap();
        }
        let messages = sub.recorder.messages(3).await;
        assert!(messages.iter().all(|message| message[0] == large));
        peer.send(Bytes::from_static(b"done").into(), 3).unwrap();
        blocking(|| echo.join().unwrap()).await;
    });
}

#[test]
fn a_subscription_by_topic_keeps_the_rest_away() {
    shard(async {
        let kind = Kind::Sub {
            topics: vec![b"front-a ".to_vec()],
        };
        let bus = Bus::bind(tcp(), kind, Options::default()).await;
        let socket = connect(zmq::PUB, &bus.address);
        bus.recorder
            .wait(|seen| (!seen.subscribed.is_empty()).then_some(()))
            .await;
        for message in ["front-b 1", "front-a 2", "front-a 3"] {
            socket.send(message, 0).unwrap();
        }
        assert_eq!(
            bus.recorder.messages(2).await,
            [[b"front-a 2"], [b"front-a 3"]]
        );
    });
}

#[test]
fn two_hundred_handlers_come_at_once_and_each_gets_its_own() {
    shard(async {
        let bus = Bus::push().await;
        let address = bus.address.clone();
        let pullers = std::thread::spawn(move || {
            let context = zmq::Context::new();
            let sockets: Vec<_> = (0..200)
                .map(|_| {
                    let socket = context.socket(zmq::PULL).unwrap();
                    socket.set_rcvtimeo(20_000).unwrap();
                    socket.connect(&address).unwrap();
                    socket
                })
                .collect();
            let mut got: Vec<_> = sockets
                .iter()
                .map(|socket| socket.recv_string(0).unwrap().unwrap())
                .collect();
            got.sort();
            got
        });
        let peers = bus
            .recorder
            .wait(|seen| (seen.joined.len() == 200).then(|| seen.joined.clone()))
            .await;
        assert_eq!(bus.listening.peer_count(), 200);
        for peer in &peers {
            peer.send(Bytes::from(format!("{:05}", peer.id())).into(), 0)
                .unwrap();
        }
        let mut expected: Vec<_> = peers
            .iter()
            .map(|peer| format!("{:05}", peer.id()))
            .collect();
        expected.sort();
        assert_eq!(blocking(|| pullers.join().unwrap()).await, expected);
        bus.recorder
            .wait(|seen| (seen.lost.len() == 200).then_some(()))
            .await;
    });
}

#[test]
fn an_ipc_peer_is_known_by_its_process() {
    shard(async {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let push = Bus::bind(ipc(&path("push")), Kind::Push, Options::default()).await;
        let sub = Bus::bind(ipc(&path("sub")), everything(), Options::default()).await;
        let voice = connect(zmq::PUB, &sub.address);
        let ear = connect(zmq::PULL, &push.address);
        let (heard, spoken) = (push.recorder.peer(0).await, sub.recorder.peer(0).await);
        assert_eq!(heard.origin(), Origin::Process(std::process::id()));
        assert_eq!(heard.origin(), spoken.origin());
        assert_ne!(heard.id(), spoken.id());
        sub.recorder
            .wait(|seen| (!seen.subscribed.is_empty()).then_some(()))
            .await;
        send_all_sizes(&heard);
        let got = blocking(move || {
            for message in all_sizes() {
                voice.send_multipart(message, 0).unwrap();
            }
            (0..=SIZES.len())
                .map(|_| ear.recv_multipart(0).unwrap())
                .collect::<Vec<_>>()
        })
        .await;
        assert!(got == all_sizes());
        assert!(sub.recorder.messages(8).await == all_sizes());
    });
}

#[test]
fn a_pull_that_never_reads_is_blocked_and_others_are_served() {
    shard(async {
        let bus = Bus::push().await;
        let stuck = zmq::Context::new().socket(zmq::PULL).unwrap();
        stuck.set_rcvhwm(1).unwrap();
        stuck.connect(&bus.address).unwrap();
        let slow = bus.recorder.peer(0).await;
        let mut tag = 0;
        fill(&slow, payload(600), &mut tag).await;
        assert!(tag < 6000, "{tag} messages swallowed by buffers");

        let busy = connect(zmq::PULL, &bus.address);
        let other = bus.recorder.peer(1).await;
        for tag in 0..100 {
            other.send(Bytes::from_static(b"work").into(), tag).unwrap();
        }
        blocking(move || (0..100).for_each(|_| assert_eq!(busy.recv_bytes(0).unwrap(), b"work")))
            .await;

        // What was taken back is not lost; the half-written one stays.
        for more in 0..10 {
            slow.send(Bytes::from(payload(600)).into(), 1_000_000 + more)
                .unwrap();
        }
        let taken = tags(&slow.take_unsent());
        assert!(taken.len() >= 10 && taken.is_sorted());
        assert_eq!(
            taken[taken.len() - 10..],
            (1_000_000..1_000_010).collect::<Vec<_>>()
        );
        assert!(slow.queued_messages() <= 1 && slow.is_blocked());
        drop(stuck);
        let lost = bus.recorder.lost(&slow).await;
        assert!(lost.len() <= 1 && !lost.iter().any(|tag| taken.contains(tag)));
    });
}

#[test]
fn a_dead_peer_tells_exactly_what_was_not_sent() {
    shard(async {
        let bus = Bus::push().await;
        let raw = Raw::ready(&bus.address, "PULL").await;
        let peer = bus.recorder.peer(0).await;
        let mut tag = 0;
        fill(&peer, payload(5000), &mut tag).await;
        for _ in 0..20 {
            peer.send(Bytes::from(payload(5000)).into(), tag).unwrap();
            tag += 1;
        }
        let queued = peer.queued_messages() as u64;
        assert!(queued > 20 && queued < tag);
        assert!(peer.queued_bytes() > 0);
        drop(raw);
        let lost = bus.recorder.lost(&peer).await;
        assert_eq!(lost, (tag - queued..tag).collect::<Vec<_>>());
        assert_eq!(
            (
                peer.queued_messages(),
                peer.queued_bytes(),
                peer.is_blocked()
            ),
            (0, 0, false)
        );
    });
}

#[test]
fn whoever_was_blocked_is_told_writable_when_all_is_written() {
    shard(async {
        let bus = Bus::push().await;
        let mut raw = Raw::ready(&bus.address, "PULL").await;
        let peer = bus.recorder.peer(0).await;
        // Bodies that are written from where they are, and cut by short writes.
        let body = Bytes::from(payload(1_000_000));
        let mut count = 0;
        fill(&peer, body.clone(), &mut count).await;
        for _ in 0..count {
            let header = raw.read(9).await;
            assert_eq!(header, [&[2][..], &1_000_000_u64.to_be_bytes()].concat());
            assert!(raw.read(1_000_000).await == body);
        }
        bus.recorder
            .wait(|seen| (seen.writable == [peer.id()]).then_some(()))
            .await;
        assert!(!peer.is_blocked() && peer.blocked_since().is_none());
    });
}

#[test]
fn a_queue_has_its_bounds_and_one_message_always_fits() {
    shard(async {
        let options = Options {
            queue_messages_max: 3,
            queue_bytes_max: 1000,
            ..Options::default()
        };
        let bus = Bus::bind(tcp(), Kind::Push, options).await;
        let _raw = Raw::ready(&bus.address, "PULL").await;
        let peer = bus.recorder.peer(0).await;
        let small = || Outgoing::from(Bytes::from_static(b"x"));
        // No turn of the loop between these: nothing is written yet.
        assert!((0..3).all(|tag| peer.send(small(), tag).is_ok()));
        assert_eq!(peer.send(small(), 3), Err(Full::Queue));
        assert_eq!(tags(&peer.take_unsent()), [0, 1, 2]);
        peer.send(Bytes::from(payload(5000)).into(), 4).unwrap();
        assert_eq!(peer.send(small(), 5), Err(Full::Queue));
    });
}

#[test]
fn a_sink_may_send_to_others_from_inside() {
    /// Hands everything that is said on to the one listener.
    struct Echo(Rc<Recorder>);
    impl Sink for Echo {
        fn joined(&self, _: &Rc<Peer>) {}
        fn subscribed(&self, _: &Rc<Peer>) {}
        fn message(&self, _: &Rc<Peer>, message: Message) {
            let listener = Rc::clone(&self.0.seen.borrow().joined[0]);
            listener
                .send(message.into_single().unwrap().into(), 0)
                .unwrap();
        }
        fn writable(&self, _: &Rc<Peer>) {}
        fn lost(&self, _: &Rc<Peer>, _: Vec<Unsent>) {}
    }
    shard(async {
        let push = Bus::push().await;
        let bound = server::bind(&tcp(), everything(), Options::default())
            .await
            .unwrap();
        let address = bound.endpoint().to_string();
        bound.run(Rc::new(Echo(Rc::clone(&push.recorder))), &push.watch);
        let pull = connect(zmq::PULL, &push.address);
        push.recorder.peer(0).await;
        blocking(move || {
            let voice = zmq::Context::new().socket(zmq::XPUB).unwrap();
            voice.set_rcvtimeo(20_000).unwrap();
            voice.connect(&address).unwrap();
            assert_eq!(voice.recv_bytes(0).unwrap(), b"\x01", "the subscription");
            for round in 0..1000_u32 {
                voice.send(&round.to_be_bytes()[..], 0).unwrap();
            }
            for round in 0..1000_u32 {
                assert_eq!(pull.recv_bytes(0).unwrap(), round.to_be_bytes());
            }
        })
        .await;
    });
}

#[test]
fn a_closed_peer_gets_what_was_queued_and_comes_back() {
    shard(async {
        let bus = Bus::push().await;
        let pull = connect(zmq::PULL, &bus.address);
        let peer = bus.recorder.peer(0).await;
        for tag in 0..50 {
            peer.send(Bytes::from(payload(10_000)).into(), tag).unwrap();
        }
        peer.close();
        assert_eq!(peer.send(Bytes::new().into(), 51), Err(Full::Gone));
        assert_eq!(bus.recorder.lost(&peer).await, Vec::<u64>::new());
        let again = bus.recorder.peer(1).await;
        assert_ne!(again.id(), peer.id());
        again.send(Bytes::from_static(b"again").into(), 0).unwrap();
        blocking(move || {
            for _ in 0..50 {
                assert!(pull.recv_bytes(0).unwrap() == payload(10_000));
            }
            assert_eq!(pull.recv_bytes(0).unwrap(), b"again");
        })
        .await;
    });
}

#[test]
fn a_close_reads_to_the_end_so_that_nothing_is_reset() {
    shard(async {
        let bus = Bus::push().await;
        let mut raw = Raw::ready(&bus.address, "PULL").await;
        let peer = bus.recorder.peer(0).await;
        // What nobody will read would turn a plain close into a reset.
        raw.write(&short_frame(&payload(200)).repeat(100)).await;
        peer.send(Bytes::from(payload(100)).into(), 0).unwrap();
        peer.close();
        bus.recorder.lost(&peer).await;
        raw.write(&short_frame(&payload(200)).repeat(100)).await;
        assert_eq!(raw.read(102).await, short_frame(&payload(100)));
        let mut buffer = [0; 1];
        assert_eq!(
            raw.stream.read(&mut buffer).await.unwrap(),
            0,
            "an end, not a reset"
        );
        assert_eq!(bus.listening.peer_count(), 1, "it waits for the peer");
        drop(raw);
        bus.listening.close();
        tokio::time::timeout(PATIENCE, bus.listening.closed())
            .await
            .unwrap();
    });
}

#[test]
fn a_peer_that_does_not_close_has_its_time() {
    shard(async {
        let options = Options {
            close_timeout: Duration::from_millis(50),
            ..Options::default()
        };
        let bus = Bus::bind(tcp(), Kind::Push, options).await;
        let raw = Raw::ready(&bus.address, "PULL").await;
        let peer = bus.recorder.peer(0).await;
        let mut tag = 0;
        fill(&peer, payload(100_000), &mut tag).await;
        let queued = peer.queued_messages() as u64;
        bus.listening.close();
        assert_eq!(
            bus.recorder.lost(&peer).await,
            (tag - queued..tag).collect::<Vec<_>>()
        );
        tokio::time::timeout(PATIENCE, bus.listening.closed())
            .await
            .unwrap();
        drop(raw);
    });
}

#[test]
fn draining_ends_accepting_and_keeps_the_peers() {
    shard(async {
        let mut bus = Bus::sub().await;
        let socket = connect(zmq::PUB, &bus.address);
        bus.recorder
            .wait(|seen| (!seen.subscribed.is_empty()).then_some(()))
            .await;
        let signal = bus.signal.take().unwrap();
        signal.drain();
        let address = bus.address.strip_prefix("tcp://").unwrap().to_owned();
        // The listener is gone as soon as its task has run.
        while TcpStream::connect(&address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        socket.send("still heard", 0).unwrap();
        assert_eq!(bus.recorder.messages(1).await, [[b"still heard"]]);
        bus.listening.close();
        assert_eq!(signal.finish(PATIENCE).await, drain::Outcome::Clean);
        assert_eq!(bus.recorder.seen.borrow().lost.len(), 1);
    });
}

#[test]
fn types_that_do_not_fit_never_join() {
    shard(async {
        let (push, sub) = (Bus::push().await, Bus::sub().await);
        let before = Name::PeersRefused.get();
        let wrong = [
            connect(zmq::PULL, &sub.address),
            connect(zmq::PUB, &push.address),
        ];
        for (bus, socket_type) in [
            (&push, "PUB"),
            (&push, "PUSH"),
            (&push, "NONE"),
            (&sub, "PULL"),
        ] {
            let mut raw = Raw::connect(&bus.address).await;
            raw.write(&greeting()).await;
            raw.write(&ready(socket_type)).await;
            assert!(raw.rest().await.len() > 64, "it may see what we are");
        }
        assert!(Name::PeersRefused.get() >= before + 4);
        let right = connect(zmq::PULL, &push.address);
        push.recorder
            .peer(0)
            .await
            .send(Bytes::from_static(b"right").into(), 0)
            .unwrap();
        assert_eq!(
            blocking(move || right.recv_bytes(0).unwrap()).await,
            b"right"
        );
        assert_eq!(
            (
                push.recorder.seen.borrow().joined.len(),
                sub.recorder.seen.borrow().joined.len()
            ),
            (1, 0)
        );
        drop(wrong);
    });
}

#[test]
fn other_protocols_are_closed_and_never_handed_a_request() {
    shard(async {
        let bus = Bus::push().await;
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
            b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\0",
            b"\xff\x12\x34\x56\x78\x9a\xbc\xde\xf0\x00",
        ] {
            let mut raw = Raw::connect(&bus.address).await;
            raw.write(bytes).await;
            assert_eq!(raw.rest().await, b"\xff\0\0\0\0\0\0\0\x01\x7f");
        }
        let mut curve = Raw::connect(&bus.address).await;
        let mut bytes = greeting();
        bytes[12..17].copy_from_slice(b"CURVE");
        curve.write(&bytes).await;
        assert_eq!(curve.rest().await[..64], greeting());
        assert_eq!(bus.recorder.seen.borrow().joined.len(), 0);
    });
}

#[test]
fn a_handshake_that_dawdles_is_closed() {
    shard(async {
        let mut options = Options::default();
        options.protocol.handshake_timeout = Duration::from_millis(100);
        let bus = Bus::bind(tcp(), Kind::Push, options).await;
        let whole = [greeting(), ready("PULL")].concat();
        for length in [0, 10, 11, 63, 64, 80] {
            let mut raw = Raw::connect(&bus.address).await;
            raw.write(&whole[..length]).await;
            raw.rest().await;
        }
        let _raw = Raw::ready(&bus.address, "PULL").await;
        bus.recorder.peer(0).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(
            (
                bus.listening.peer_count(),
                bus.recorder.seen.borrow().lost.len()
            ),
            (1, 0)
        );
    });
}

#[test]
fn the_oldest_unfinished_handshake_makes_room() {
    shard(async {
        let bus = Bus::bind(
            tcp(),
            Kind::Push,
            Options {
                handshakes_max: 2,
                ..Options::default()
            },
        )
        .await;
        let mut idle = Vec::new();
        for _ in 0..3 {
            let mut raw = Raw::connect(&bus.address).await;
            raw.read(10).await;
            idle.push(raw);
        }
        assert_eq!(idle.remove(0).rest().await, b"");
        idle.remove(0)
            .write(&[greeting(), ready("PULL")].concat())
            .await;
        bus.recorder.peer(0).await;
    });
}

#[test]
fn one_too_many_is_closed_without_a_word() {
    shard(async {
        let bus = Bus::bind(
            tcp(),
            Kind::Push,
            Options {
                peers_max: 1,
                ..Options::default()
            },
        )
        .await;
        let first = Raw::ready(&bus.address, "PULL").await;
        let peer = bus.recorder.peer(0).await;
        assert_eq!(Raw::connect(&bus.address).await.rest().await, b"");
        // libzmq comes back until there is room.
        let pull = connect(zmq::PULL, &bus.address);
        drop(first);
        bus.recorder.lost(&peer).await;
        bus.recorder
            .peer(1)
            .await
            .send(Bytes::from_static(b"hi").into(), 0)
            .unwrap();
        assert_eq!(blocking(move || pull.recv_bytes(0).unwrap()).await, b"hi");
    });
}

#[test]
fn a_message_above_the_limit_ends_the_connection_and_the_peer_returns() {
    shard(async {
        let mut options = Options::default();
        options.protocol.message_bytes_max = 1000;
        let bus = Bus::bind(tcp(), everything(), options).await;
        let socket = connect(zmq::PUB, &bus.address);
        bus.recorder
            .wait(|seen| (!seen.subscribed.is_empty()).then_some(()))
            .await;
        socket.send(payload(1000), 0).unwrap();
        socket.send(payload(1001), 0).unwrap();
        bus.recorder
            .wait(|seen| (seen.subscribed.len() == 2).then_some(()))
            .await;
        socket.send("after", 0).unwrap();
        assert!(bus.recorder.messages(2).await == [[payload(1000)], [b"after".to_vec()]]);
        assert_eq!(bus.recorder.seen.borrow().lost.len(), 1);
    });
}

#[test]
fn limits_end_a_connection() {
    shard(async {
        let bus = Bus::sub().await;
        for bytes in [
            &b"\x01\x00".repeat(257)[..],
            b"\x02\x80\0\0\0\0\0\0\0",
            b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff",
            b"\x02\0\0\0\0\x04\0\0\x01",
            b"\x06\0\0\0\0\0\x01\0\x01",
        ] {
            let mut raw = Raw::ready(&bus.address, "PUB").await;
            raw.write(&short_frame(b"whole")).await;
            raw.write(bytes).await;
            raw.rest().await;
        }
        assert_eq!(bus.recorder.messages(5).await, [[b"whole"]; 5]);
        bus.recorder
            .wait(|seen| (seen.lost.len() == 5).then_some(()))
            .await;
    });
}

/// Bytes of memory that this process has mapped.
fn mapped() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').next().unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn memory_follows_what_arrived_and_not_what_was_declared() {
    shard(async {
        let bus = Bus::sub().await;
        let before = mapped();
        let mut peers = Vec::new();
        for _ in 0..200 {
            let mut raw = Raw::ready(&bus.address, "PUB").await;
            raw.write(&[&b"\x02\0\0\0\0\x03\xc0\0\0"[..], &payload(20_000)].concat())
                .await;
            peers.push(raw);
        }
        // They are all seen to be alive after that.
        for raw in &mut peers {
            raw.read(12 + 17).await;
        }
        bus.recorder
            .wait(|seen| (seen.joined.len() == 200).then_some(()))
            .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let grown = mapped().saturating_sub(before);
        assert!(
            grown < 2 << 30,
            "{grown} bytes for 200 times 60 MiB declared"
        );
    });
}

#[test]
fn a_reset_during_the_handshake_harms_nobody() {
    shard(async {
        let bus = Bus::push().await;
        for length in [0, 10, 64, 70] {
            let mut raw = Raw::connect(&bus.address).await;
            raw.write(&[greeting(), ready("PULL")].concat()[..length])
                .await;
            raw.read(10).await;
            raw.stream.set_zero_linger().unwrap();
        }
        let pull = connect(zmq::PULL, &bus.address);
        bus.recorder
            .peer(0)
            .await
            .send(Bytes::from_static(b"hi").into(), 0)
            .unwrap();
        assert_eq!(blocking(move || pull.recv_bytes(0).unwrap()).await, b"hi");
        assert_eq!(bus.recorder.seen.borrow().joined.len(), 1);
    });
}

#[test]
fn half_a_message_is_dropped_with_its_connection() {
    shard(async {
        let bus = Bus::sub().await;
        for tail in [
            &b"\x01\x05first"[..],
            b"\x00\x0acut",
            b"\x02\0\0\0\0\0\x10\0\0abc",
        ] {
            let mut raw = Raw::ready(&bus.address, "PUB").await;
            raw.write(&[&short_frame(b"whole"), tail].concat()).await;
            raw.stream.shutdown().await.unwrap();
            raw.rest().await;
        }
        assert_eq!(bus.recorder.messages(3).await, [[b"whole"]; 3]);
        bus.recorder
            .wait(|seen| (seen.lost.len() == 3).then_some(()))
            .await;
        assert_eq!(bus.recorder.seen.borrow().messages.len(), 3);
    });
}

#[test]
fn what_comes_with_ready_is_heard_after_it() {
    shard(async {
        let bus = Bus::sub().await;
        let mut raw = Raw::connect(&bus.address).await;
        let all = [
            greeting(),
            ready("XPUB"),
            short_frame(b"early"),
            vec![1, 1, b'a'],
            short_frame(b"b"),
        ]
        .concat();
        for byte in &all {
            raw.write(&[*byte]).await;
        }
        assert_eq!(
            bus.recorder.messages(2).await,
            [vec![b"early".to_vec()], vec![b"a".to_vec(), b"b".to_vec()]]
        );
    });
}

#[test]
fn a_flood_of_pings_is_answered_without_filling_memory() {
    shard(async {
        let bus = Bus::push().await;
        let mut raw = Raw::ready(&bus.address, "PULL").await;
        bus.recorder.peer(0).await;
        let ping = b"\x04\x0a\x04PING\0\0ctx";
        // More than both kernels hold: they must stop reading before we do, and go on when we read.
        let count: usize = 2_000_000;
        let (mut reader, mut writer) = raw.stream.split();
        let write = async {
            for _ in 0..count / 1000 {
                writer.write_all(&ping.repeat(1000)).await.unwrap();
            }
        };
        let read = async {
            // Let it pile up first.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut left = count * 10;
            let mut buffer = vec![0; 64 << 10];
            while left > 0 {
                let length = reader.read(&mut buffer).await.unwrap();
                assert!(length > 0);
                left -= length;
            }
        };
        tokio::time::timeout(PATIENCE * 3, async { tokio::join!(write, read) })
            .await
            .unwrap();
    });
}

#[test]
fn heartbeats_of_libzmq_are_answered_under_load() {
    shard(async {
        let (push, sub) = (Bus::push().await, Bus::sub().await);
        let beating = |kind, address: &str| {
            let socket = zmq::Context::new().socket(kind).unwrap();
            socket.set_heartbeat_ivl(50).unwrap();
            socket.set_heartbeat_timeout(2000).unwrap();
            socket.set_heartbeat_ttl(3000).unwrap();
            socket.set_rcvtimeo(20_000).unwrap();
            socket.connect(address).unwrap();
            socket
        };
        let (pull, voice) = (
            beating(zmq::PULL, &push.address),
            beating(zmq::PUB, &sub.address),
        );
        let peer = push.recorder.peer(0).await;
        sub.recorder.peer(0).await;
        let reader =
            std::thread::spawn(move || (0..500).for_each(|_| drop(pull.recv_bytes(0).unwrap())));
        for tag in 0..500 {
            peer.send(Bytes::from(payload(2000)).into(), tag).unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        blocking(|| reader.join().unwrap()).await;
        assert_eq!(
            (
                push.recorder.seen.borrow().joined.len(),
                sub.recorder.seen.borrow().joined.len()
            ),
            (1, 1)
        );
        assert!(sub.recorder.seen.borrow().lost.is_empty());
        drop(voice);
    });
}

#[test]
fn our_heartbeats_find_the_dead_and_spare_the_living() {
    shard(async {
        let mut options = Options::default();
        options.protocol.heartbeat_interval = Duration::from_millis(50);
        options.protocol.heartbeat_timeout = Duration::from_millis(500);
        let (push, sub) = (
            Bus::bind(tcp(), Kind::Push, options.clone()).await,
            Bus::bind(tcp(), everything(), options).await,
        );
        let (living, voice) = (
            connect(zmq::PULL, &push.address),
            connect(zmq::PUB, &sub.address),
        );
        let (heard, spoken) = (push.recorder.peer(0).await, sub.recorder.peer(0).await);
        let mut dead = Raw::ready(&sub.address, "PUB").await;
        let dead_peer = sub.recorder.peer(1).await;
        let mut busy = Raw::ready(&push.address, "PULL").await;
        let busy_peer = push.recorder.peer(1).await;
        assert!(busy.read(17).await.starts_with(b"\x04\x0f\x04PING\0\0"));
        assert_eq!(dead.read(12).await, b"\x04\x0a\x09SUBSCRIBE");
        sub.recorder.lost(&dead_peer).await;
        while !busy_peer.is_silent() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!heard.is_gone() && !spoken.is_gone() && !heard.is_silent());
        assert!(!busy_peer.is_gone(), "a PULL that owes an answer is kept");
        busy.write(b"\x04\x05\x04PONG").await;
        while busy_peer.is_silent() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop((living, voice));
    });
}

#[test]
fn ipc_paths_are_treated_with_care() {
    async fn refused(endpoint: &Endpoint) -> String {
        server::bind(endpoint, Kind::Push, Options::default())
            .await
            .unwrap_err()
            .to_string()
    }
    shard(async {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();

        let file = path("file");
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(
            refused(&ipc(&file)).await,
            format!("bind ipc://{file}: the path exists and is no socket")
        );
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");

        let stale = path("stale");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let bus = Bus::bind(ipc(&stale), Kind::Push, Options::default()).await;
        assert_eq!(
            refused(&ipc(&stale)).await,
            format!("bind ipc://{stale}: address in use")
        );
        let pull = connect(zmq::PULL, &bus.address);
        bus.recorder.peer(0).await;
        drop(pull);
        bus.listening.close();
        tokio::time::timeout(PATIENCE, bus.listening.closed())
            .await
            .unwrap();
        assert!(!std::path::Path::new(&stale).exists(), "removed at the end");

        let moved = path("moved");
        let bus = Bus::bind(ipc(&moved), Kind::Push, Options::default()).await;
        std::fs::remove_file(&moved).unwrap();
        std::fs::write(&moved, "another's").unwrap();
        bus.listening.close();
        tokio::time::timeout(PATIENCE, bus.listening.closed())
            .await
            .unwrap();
        assert!(std::path::Path::new(&moved).exists(), "no longer ours");

        let missing = path("missing/socket");
        assert_eq!(
            refused(&ipc(&missing)).await,
            format!("bind ipc://{missing}: no such file or directory")
        );
        assert!(refused(&ipc(&"x".repeat(108))).await.contains("108 bytes"));
        assert_eq!(refused(&ipc("@")).await, "bind ipc://@: the path is empty");

        let name = format!("@lurcher-test-{}", std::process::id());
        let bus = Bus::bind(ipc(&name), Kind::Push, Options::default()).await;
        assert_eq!(
            refused(&ipc(&name)).await,
            format!("bind ipc://{name}: address in use")
        );
        let pull = connect(zmq::PULL, &bus.address);
        bus.recorder.peer(0).await;
        drop(pull);

        let open = path("open");
        let options = Options {
            ipc_mode: Some(0o777),
            ..Options::default()
        };
        let _bus = Bus::bind(ipc(&open), Kind::Push, options).await;
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&open).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o777);
    });
}

#[test]
fn tcp_binds_names_wildcards_and_interfaces() {
    fn at(host: &str, port: Option<u16>) -> Endpoint {
        Endpoint {
            transport: Transport::Tcp {
                host: host.into(),
                port,
            },
            identity: None,
            mode: None,
        }
    }
    shard(async {
        for (host, shown) in [
            ("*", "0.0.0.0"),
            ("localhost", ""),
            ("127.0.0.1", "127.0.0.1"),
            ("lo", "127.0.0.1"),
        ] {
            let bus = Bus::bind(at(host, None), Kind::Push, Options::default()).await;
            assert!(
                bus.address.starts_with(&format!("tcp://{shown}")),
                "{}",
                bus.address
            );
            assert!(!bus.address.ends_with('*') && !bus.address.ends_with(":0"));
            let pull = connect(zmq::PULL, &bus.address);
            bus.recorder.peer(0).await;
            drop(pull);
        }
        let bus = Bus::push().await;
        let port = bus.address.rsplit(':').next().unwrap().parse().unwrap();
        let taken = at("127.0.0.1", Some(port));
        let error = server::bind(&taken, Kind::Push, Options::default())
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("bind tcp://127.0.0.1:{port}: address in use")
        );
        let unknown = at("no-such-name.invalid", Some(1));
        let error = server::bind(&unknown, Kind::Push, Options::default())
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("no such name, address or interface"),
            "{error}"
        );
    });
}

/// The interpreters of `LURCHER_OLD_PYZMQ` and the system's own.
pub(crate) fn pythons() -> Vec<String> {
    let named = std::env::var("LURCHER_OLD_PYZMQ").unwrap_or_default();
    named
        .split(':')
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
        .chain(["/usr/bin/python3".to_owned()])
        .collect()
}

/// What an older libzmq does on the other side: echoes every message until it has seen `done`.
const ECHO: &str = "
import sys, time, zmq
if sys.argv[1:] == ['version']:
    print(zmq.zmq_version())
    sys.exit()
context = zmq.Context()
voice, ear = context.socket(zmq.PUB), context.socket(zmq.PULL)
voice.connect(sys.argv[1])
ear.connect(sys.argv[2])
while True:
    frames = ear.recv_multipart()
    voice.send_multipart(frames)
    if frames == [b'done']:
        break
voice.close(5000)
ear.close(0)
context.term()
";

#[test]
fn older_libzmqs_are_peers_too() {
    for python in pythons() {
        let version = std::process::Command::new(&python)
            .args(["-c", ECHO, "version"])
            .output();
        let Some(version) = version.ok().filter(|output| output.status.success()) else {
            println!("skipped: no pyzmq by {python}");
            continue;
        };
        println!(
            "{python}: libzmq {}",
            String::from_utf8_lossy(&version.stdout).trim()
        );
        shard(async {
            let (push, sub) = (Bus::push().await, Bus::sub().await);
            let mut child = std::process::Command::new(&python)
                .args(["-c", ECHO, &sub.address, &push.address])
                .spawn()
                .unwrap();
            let peer = push.recorder.peer(0).await;
            sub.recorder
                .wait(|seen| (!seen.subscribed.is_empty()).then_some(()))
                .await;
            send_all_sizes(&peer);
            peer.send(Bytes::from_static(b"done").into(), 100).unwrap();
            let mut expected = all_sizes();
            expected.push(vec![b"done".to_vec()]);
            assert!(sub.recorder.messages(9).await == expected, "{python}");
            assert_eq!(push.recorder.lost(&peer).await, Vec::<u64>::new());
            assert!(child.wait().unwrap().success());
        });
    }
}
