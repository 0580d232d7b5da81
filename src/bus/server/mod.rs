//! Sockets that bind and see their peers: PUSH, whose owner chooses the peer of each message, SUB, whose owner hears
//! who said it, ROUTER, which does both with the same peer, REP, which answers whoever asks ([`answering`]), and PUB, which tells all
//! who want to hear ([`Listening::publish`]).
//!
//! [`bind`] opens a socket, [`Bound::run`] starts a task that accepts and one task per peer, all on the shard's own thread.
//! What happens is told to a [`Sink`] by plain calls from those tasks. Nothing here chooses peers, retries or knows what a
//! message means; the protocol itself is `zmtp`.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::drain::Watch;
use crate::endpoint::Endpoint;
use crate::zmtp::{self, SocketType};

mod bind;
mod driver;
mod listener;
mod peer;
mod rep;

pub use super::outgoing::{Head, Outgoing, Unsent};
pub use crate::zmtp::{Message, Version};
pub(super) use bind::bind_now;
pub use bind::{BindCause, BindError};
pub use listener::Listening;
pub(super) use listener::Socket as Listener;
pub use peer::{Full, Origin, Peer, PeerId};
pub use rep::answering;

/// What a bound socket does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Gives messages to PULL peers.
    Push,
    /// Takes messages from PUB and XPUB peers.
    Sub {
        /// What to subscribe to, by prefix; an empty topic is everything. ZMTP 1.0 publishers send everything whatever is here.
        topics: Vec<Vec<u8>>,
    },
    /// Answers REQ and DEALER peers, whose messages come with their envelope: see [`answering`]. Nothing is read from a peer
    /// that has not taken its last answer, so that each has one question at work.
    Rep,
    /// Talks with DEALER peers, in messages of several frames either way. Its owner knows peers by their connection, so none needs
    /// an identity.
    Router,
    /// Tells SUB and XSUB peers what they have subscribed to; to ZMTP 1.0 subscribers, which sort it out themselves, everything.
    Pub,
}

/// The numbers of a bound socket.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the protocol allows, and its patience. Its `topics` are taken from [`Kind::Sub`], its `properties` say who we are.
    pub protocol: zmtp::Options,
    /// Connections at once; further ones are closed without a word. Default: 16,384.
    pub peers_max: usize,
    /// Unfinished handshakes at once; the oldest is closed for a new one. Default: 1,024.
    pub handshakes_max: usize,
    /// Messages queued for one peer. Default: 4,096. One always fits.
    pub queue_messages_max: usize,
    /// Bytes queued for one peer. Default: 64 MiB. One message always fits.
    pub queue_bytes_max: usize,
    /// PUSH and ROUTER: `SO_SNDBUF` in bytes, 0 for the system's own. Default: 64 KiB: what the kernel has cannot be given to another peer.
    pub send_buffer_bytes: usize,
    /// PUSH and ROUTER on tcp: `TCP_NOTSENT_LOWAT` in bytes, 0 for none. Default: 16 KiB, for the same reason.
    pub unsent_bytes_max: u32,
    /// Connections the kernel keeps until they are accepted. Default: 1,024: a hundred handlers come back in one millisecond.
    pub backlog: i32,
    /// tcp: silence before the first keepalive probe; zero turns keepalive off. Default: 60 s.
    pub keepalive_idle: Duration,
    /// tcp: time between probes. Default: 15 s.
    pub keepalive_interval: Duration,
    /// tcp: unanswered probes before the connection counts as lost. Default: 4.
    pub keepalive_probes: u32,
    /// How long an orderly close may take. Default: 2 s.
    pub close_timeout: Duration,
    /// Messages told in one turn of a peer's task before others have theirs. Default: 256; REP: always one.
    pub messages_per_turn: usize,
    /// All but REP: what they say of themselves by [`super::SERVER_PROPERTY`]. Default: `1`.
    pub speaks: &'static str,
    /// Mode of an ipc socket's file; `None` leaves it to the umask, which usually keeps other users out.
    pub ipc_mode: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            protocol: zmtp::Options::default(),
            peers_max: 16_384,
            handshakes_max: 1024,
            queue_messages_max: 4096,
            queue_bytes_max: 64 << 20,
            send_buffer_bytes: 64 << 10,
            unsent_bytes_max: 16 << 10,
            backlog: 1024,
            keepalive_idle: Duration::from_mins(1),
            keepalive_interval: Duration::from_secs(15),
            keepalive_probes: 4,
            close_timeout: Duration::from_secs(2),
            messages_per_turn: 256,
            speaks: "1",
            ipc_mode: None,
        }
    }
}

/// Hears what happens to the peers of a bound socket.
///
/// Called synchronously from the task of the peer in question, so it must not block. [`Peer::send`] may be called from inside,
/// for any peer; it never calls back.
pub trait Sink {
    /// The handshake is done: messages may be sent.
    fn joined(&self, peer: &Rc<Peer>);

    /// SUB: what the peer publishes from now on reaches us. PUB: the peer has subscribed to something.
    fn subscribed(&self, peer: &Rc<Peer>);

    /// A whole message. Its frames are slices of a receive buffer of up to 64 KiB, which lives as long as any of them: who keeps a
    /// small one for long should copy it.
    fn message(&self, peer: &Rc<Peer>, message: Message);

    /// The peer's socket takes no more although something is queued.
    fn blocked(&self, peer: &Rc<Peer>) {
        let _ = peer;
    }

    /// The peer had been blocked, and everything queued for it has now been written.
    fn writable(&self, peer: &Rc<Peer>);

    /// A peer that had joined is lost. Told exactly once, and nothing is told of it afterwards. `unsent` has the messages whose
    /// last byte was not given to the kernel, oldest first. (Tasks cut by an abort of the whole program tell nothing.)
    fn lost(&self, peer: &Rc<Peer>, unsent: Vec<Unsent>);

    /// Whether nothing more should be read from any peer for now, because what they have said has nowhere to go. When that is
    /// over [`Listening::read_on`] has to be called. A peer that is not read is not held to its heartbeats, and that it has gone
    /// is told when it is read again. Default: no.
    fn is_full(&self) -> bool {
        false
    }

    /// PUSH and ROUTER: whether an answer is still expected from a peer that has not answered our PING. If so it stays, and is only
    /// marked [`Peer::is_silent`]; one that is merely busy does not answer either. Default: yes.
    fn is_awaited(&self, peer: &Rc<Peer>) -> bool {
        let _ = peer;
        true
    }
}

/// A socket that is bound and does not accept yet: who connects waits in the kernel's queue.
#[derive(Debug)]
pub struct Bound {
    socket: listener::Socket,
    endpoint: Endpoint,
    kind: Kind,
    options: Options,
}

/// Binds a socket. Needs a tokio runtime.
///
/// # Errors
///
/// [`BindError`] says what was tried and why it failed.
///
/// # Cancel safety
///
/// Dropping the future leaves nothing behind.
pub async fn bind(endpoint: &Endpoint, kind: Kind, options: Options) -> Result<Bound, BindError> {
    let (socket, endpoint) = bind::bind(endpoint, &options).await?;
    Ok(Bound {
        socket,
        endpoint,
        kind,
        options,
    })
}

impl Bound {
    /// Where it is bound, with the real address and port.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Starts accepting, by tasks spawned on `watch`. When draining begins, accepting ends and the socket closes; peers stay until
    /// they are closed by the handle, by [`Peer::close`] or by themselves.
    pub fn run(self, sink: Rc<dyn Sink>, watch: &Watch) -> Listening {
        let mut options = self.options;
        let (role, topics) = match self.kind {
            Kind::Push => (SocketType::Push, Vec::new()),
            Kind::Sub { topics } => (SocketType::Sub, topics),
            Kind::Rep => {
                options.messages_per_turn = 1;
                (SocketType::Rep, Vec::new())
            }
            Kind::Router => (SocketType::Router, Vec::new()),
            Kind::Pub => (SocketType::Pub, Vec::new()),
        };
        if role != SocketType::Rep {
            options.protocol.properties = vec![(super::SERVER_PROPERTY, options.speaks.into())];
        }
        let server = listener::Server::new(role, self.endpoint.to_string(), options, topics, sink);
        Rc::new(server).start(self.socket, watch)
    }
}

/// Ids are of the whole process, so that peers of several sockets can be told apart.
fn next_peer_id() -> PeerId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    PeerId(NEXT.fetch_add(1, Ordering::Relaxed))
}
