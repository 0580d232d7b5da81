//! One peer as its owner sees it: who it is, what is queued for it, whether it takes it. No I/O: `driver` does that.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::net::IpAddr;
use std::task::Waker;

use bytes::Bytes;
use tokio::time::Instant;

use crate::bus::outbox::Outbox;
use crate::bus::outgoing::{Entry, Outgoing, Unsent};
#[cfg(test)]
use crate::zmtp::Property;
use crate::zmtp::{Remote, Version};

/// Names a connection for the life of the process; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u64);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a peer came from: the evidence for which connections belong to one process. Treat it as a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// tcp: its address. Its port tells nothing.
    Address(IpAddr),
    /// ipc: the process that connected.
    Process(u32),
    /// ipc from another pid namespace.
    Unknown,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Process(pid) => write!(f, "pid {pid}"),
            Self::Unknown => f.write_str("another pid namespace"),
        }
    }
}

/// Why a message was not taken. The caller still has it: a body is cheap to clone before the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The queue of this peer is at its limit.
    #[error("the peer's queue is full")]
    Queue,
    /// The peer is lost or being closed; [`super::Sink::lost`] was or will be told.
    #[error("the peer is gone")]
    Gone,
}

/// What the owner or the listener asked the peer's task to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    /// An orderly close.
    Close,
    /// The end, without a word.
    Drop,
}

/// One connected peer. Cheap to keep; the connection is owned by its task.
pub struct Peer {
    id: PeerId,
    origin: Origin,
    remote: OnceCell<Remote>,
    pub(super) outbox: RefCell<Outbox>,
    waker: RefCell<Option<Waker>>,
    /// The task has been woken and has not run yet: no need to wake it again.
    woken: Cell<bool>,
    asked: Cell<Asked>,
    gone: Cell<bool>,
    blocked_since: Cell<Option<Instant>>,
    silent: Cell<bool>,
    subscribed: Cell<bool>,
    /// What a subscriber wants: how it begins, once for each time it has said so.
    topics: RefCell<Vec<Bytes>>,
}

/// What a subscription costs beside its own bytes, for the bound on all of a peer's.
const TOPIC_BYTES: usize = 64;

impl Peer {
    pub(super) fn new(id: PeerId, origin: Origin, outbox: Outbox) -> Self {
        Self {
            id,
            origin,
            remote: OnceCell::new(),
            outbox: RefCell::new(outbox),
            waker: RefCell::new(None),
            woken: Cell::new(false),
            asked: Cell::new(Asked::Nothing),
            gone: Cell::new(false),
            blocked_since: Cell::new(None),
            silent: Cell::new(false),
            subscribed: Cell::new(false),
            topics: RefCell::default(),
        }
    }

    /// A peer of that origin which has joined and has no connection: what is sent to it stays queued.
    #[cfg(test)]
    pub(crate) fn unconnected(origin: Origin) -> std::rc::Rc<Self> {
        Self::unconnected_with(origin, &[])
    }

    /// The same with what its READY had.
    #[cfg(test)]
    pub(crate) fn unconnected_with(
        origin: Origin,
        properties: &[(&'static str, &'static str)],
    ) -> std::rc::Rc<Self> {
        let peer = Self::new(super::next_peer_id(), origin, Outbox::new(4096, 64 << 20));
        peer.set_remote(Remote {
            version: Version::V3_1,
            socket_type: None,
            identity: Bytes::new(),
            properties: properties
                .iter()
                .map(|(name, value)| Property {
                    name: Bytes::from_static(name.as_bytes()),
                    value: Bytes::from_static(value.as_bytes()),
                })
                .collect(),
        });
        std::rc::Rc::new(peer)
    }

    /// Makes it look as if its socket took nothing more, or took all again.
    #[cfg(test)]
    pub(crate) fn pretend_blocked(&self, blocked: bool) {
        self.set_blocked(blocked);
    }

    /// What is queued, oldest first, heads and bodies joined.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> Vec<Vec<u8>> {
        self.outbox.borrow().contents()
    }

    /// Its name within this process.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Where it came from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The protocol version it declared; 1.0 before the handshake is done.
    pub fn version(&self) -> Version {
        self.remote
            .get()
            .map_or(Version::V1_0, |remote| remote.version)
    }

    /// The identity it gave, often empty: libzmq's PULL and PUB of 4.0 and later do not send theirs.
    pub fn identity(&self) -> &[u8] {
        self.remote.get().map_or(&[], |remote| &remote.identity)
    }

    /// A property of its READY, named without regard to case: `X-` metadata that its program set.
    pub fn property(&self, name: &str) -> Option<&[u8]> {
        let properties = &self.remote.get()?.properties;
        let found = properties
            .iter()
            .find(|property| property.name.eq_ignore_ascii_case(name.as_bytes()))?;
        Some(&found.value)
    }

    /// Queues a message; everything queued in one turn of the loop is written together. `tag` is what [`super::Sink::lost`] and
    /// [`Peer::take_unsent`] name the message by. May be called from anywhere on the shard, callbacks included.
    pub fn send(&self, message: Outgoing, tag: u64) -> Result<(), Full> {
        let size = message.size();
        self.enqueue(size, |outbox| Entry::single(outbox.framing(), message, tag))
    }

    /// Queues a message of several frames, copied together. An empty list is an empty message.
    pub fn send_frames(&self, frames: &[&[u8]], tag: u64) -> Result<(), Full> {
        let size = frames.iter().map(|frame| frame.len()).sum();
        self.enqueue(size, |outbox| Entry::frames(outbox.framing(), frames, tag))
    }

    /// Queues a message whose last frame is not copied: `frames`, which are small, and behind them `message`.
    pub fn send_behind(&self, frames: &[&[u8]], message: Outgoing, tag: u64) -> Result<(), Full> {
        let small: usize = frames.iter().map(|frame| frame.len()).sum();
        let last = message.size();
        self.enqueue(small.saturating_add(last), |outbox| {
            Entry::behind(outbox.framing(), frames, message, tag)
        })
    }

    /// Queues a message again that this peer was to get and that was taken back from it.
    pub fn send_again(&self, unsent: Unsent) -> Result<(), Full> {
        self.enqueue(unsent.message.size(), |_| unsent.into())
    }

    /// Whether its socket takes no more. [`super::Sink::writable`] tells when that is over.
    pub fn is_blocked(&self) -> bool {
        self.blocked_since.get().is_some()
    }

    /// Since when it [`Peer::is_blocked`].
    pub fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since.get()
    }

    /// Whether it has left our PING unanswered for so long that it should get nothing more until it is heard again.
    pub fn is_silent(&self) -> bool {
        self.silent.get()
    }

    /// Whether our subscription is in effect there.
    pub fn is_subscribed(&self) -> bool {
        self.subscribed.get()
    }

    /// Whether it wants a message that begins so.
    pub fn is_subscribed_to(&self, message: &[u8]) -> bool {
        // Subscribers of ZMTP 1.0 say nothing and choose themselves.
        self.version() < Version::V2_0
            || self
                .topics
                .borrow()
                .iter()
                .any(|topic| message.starts_with(topic))
    }

    /// Notes what a subscriber wants, or does not want any more; false when it wants more than `max` bytes of topics.
    pub(super) fn wants(&self, topic: Bytes, wanted: bool, max: usize) -> bool {
        let mut topics = self.topics.borrow_mut();
        if !wanted {
            if let Some(place) = topics.iter().position(|other| *other == topic) {
                topics.swap_remove(place);
            }
            return true;
        }
        topics.push(topic);
        let cost = |topic: &Bytes| topic.len().saturating_add(TOPIC_BYTES);
        topics.iter().map(cost).sum::<usize>() <= max
    }

    /// Whether it is lost or being closed, so that it takes nothing more.
    pub fn is_gone(&self) -> bool {
        self.gone.get() || self.asked.get() != Asked::Nothing
    }

    /// Messages queued whose last byte was not given to the kernel.
    pub fn queued_messages(&self) -> usize {
        self.outbox.borrow().messages()
    }

    /// Bytes of those messages.
    pub fn queued_bytes(&self) -> usize {
        self.outbox.borrow().bytes()
    }

    /// Takes back what is wholly unwritten, oldest first: these messages are no longer queued and will not be told as lost. A
    /// partly written message stays, and so does [`Peer::is_blocked`] until the socket takes more.
    pub fn take_unsent(&self) -> Vec<Unsent> {
        self.outbox.borrow_mut().take_unbegun()
    }

    /// Asks for an orderly close: what is queued is written if that can be done within the close timeout, the rest is told as lost,
    /// and the connection ends when the peer has closed too or has had its time. Nothing more is taken or received. Whoever does not
    /// want to wait for a peer that is blocked calls [`Peer::take_unsent`] first.
    pub fn close(&self) {
        self.ask(Asked::Close);
    }

    pub(super) fn ask(&self, asked: Asked) {
        if self.asked.get() != Asked::Drop {
            self.asked.set(asked);
        }
        self.wake();
    }

    pub(super) fn asked(&self) -> Asked {
        self.asked.get()
    }

    /// To be called first whenever the peer's task runs.
    pub(super) fn task_runs(&self, waker: &Waker) {
        self.woken.set(false);
        let mut mine = self.waker.borrow_mut();
        if !mine.as_ref().is_some_and(|mine| mine.will_wake(waker)) {
            *mine = Some(waker.clone());
        }
    }

    pub(super) fn set_remote(&self, remote: Remote) {
        // Set once, at the end of the one handshake.
        drop(self.remote.set(remote));
    }

    pub(super) fn has_joined(&self) -> bool {
        self.remote.get().is_some()
    }

    pub(super) fn set_gone(&self) {
        self.gone.set(true);
        self.blocked_since.set(None);
    }

    pub(super) fn set_silent(&self, silent: bool) {
        self.silent.set(silent);
    }

    pub(super) fn set_subscribed(&self) {
        self.subscribed.set(true);
    }

    /// Records whether the socket takes more; gives what it was before.
    pub(super) fn set_blocked(&self, blocked: bool) -> bool {
        let was = self.is_blocked();
        if blocked != was {
            self.blocked_since.set(blocked.then(Instant::now));
        }
        was
    }

    fn enqueue(&self, size: usize, entry: impl FnOnce(&Outbox) -> Entry) -> Result<(), Full> {
        if self.is_gone() || !self.has_joined() {
            return Err(Full::Gone);
        }
        let mut outbox = self.outbox.borrow_mut();
        if !outbox.has_room(size) {
            return Err(Full::Queue);
        }
        let entry = entry(&outbox);
        outbox.push(entry);
        drop(outbox);
        // A blocked task waits for the socket, and would find it full.
        if !self.is_blocked() {
            self.wake();
        }
        Ok(())
    }

    pub(super) fn wake(&self) {
        if !self.woken.replace(true)
            && let Some(waker) = self.waker.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("id", &self.id)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}
