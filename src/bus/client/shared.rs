//! What a socket's owner and the tasks of its connections have in common, under one lock: what was received, what is known of the
//! connections, and who waits for what. No I/O: the connections themselves are [`super::link`]'s business.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Options;
use super::link::Link;
use crate::bus::{BROKER_PROPERTY, HANDLER_PROPERTY};
use crate::endpoint::{Endpoint, Mode};
use crate::zmtp::{self, SocketType};

/// Bytes that are kept received and unread for one socket; the first message always is. With more of them the server's connection
/// is not read, as with more messages than [`Options::received_max`].
const RECEIVED_BYTES_MAX: usize = 64 << 20;

/// Bytes that are kept unsent for one connection, as with [`Options::queued_max`].
pub(super) const QUEUED_BYTES_MAX: usize = 64 << 20;

/// Who has pushed something and not subscribed in time is waited for again only after so long.
pub(super) const PATIENCE_PAUSE: Duration = Duration::from_secs(30);

/// One socket.
pub(super) struct Core {
    pub(super) role: SocketType,
    pub(super) endpoint: Endpoint,
    pub(super) protocol: Arc<zmtp::Options>,
    received_max: usize,
    pub(super) queued_max: usize,
    linger: Duration,
    /// Between two attempts to connect.
    pub(super) pause: Duration,
    /// It has one connection and no other after that.
    pub(super) is_once: bool,
    pub(super) is_bound: bool,
    /// Senders write themselves what goes at once: on a runtime of several threads its task would have to be woken, and may be
    /// another thread's. On a runtime of one thread it comes soon anyway, and writes with one call what all have said.
    pub(super) writes_directly: bool,
    /// Tells those who wait to send, or for a subscription, that something has changed.
    pub(super) changed: Notify,
    /// Tells the task that connects that there is no use in that any more.
    pub(super) over: Notify,
    state: Mutex<State>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("role", &self.role)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// All that is behind the lock.
pub(super) struct State {
    /// One at most, but where the socket is bound.
    pub(super) links: Vec<Link>,
    pub(super) hub: Hub,
}

/// What the connections of a socket tell its owner.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and most combinations occur"
)]
pub(super) struct Hub {
    /// PULL: what was received.
    pub(super) messages: VecDeque<Bytes>,
    /// DEALER and REQ: the same, frame by frame.
    pub(super) talks: VecDeque<Vec<Bytes>>,
    /// Bytes of both.
    pub(super) received_bytes: usize,
    /// What goes to whoever is there first: frame by frame.
    pub(super) early: VecDeque<Vec<Bytes>>,
    /// Connections whose handshake is done: now, so far, and lost.
    pub(super) up: usize,
    pub(super) connections: u64,
    pub(super) losses: u64,
    /// One has come or gone since the owner looked; for a DEALER also: something was received, or there is room again.
    pub(super) has_news: bool,
    /// XPUB: connections with subscriptions.
    pub(super) listeners: usize,
    /// What whoever subscribed last has said that it is.
    pub(super) server: Says,
    /// How often somebody has subscribed.
    pub(super) subscriptions: u64,
    pub(super) ear: Ear,
    /// Who waits to send. Nobody goes before them.
    pub(super) awaited: usize,
    /// DEALER: the owner had something to send for which there was no room.
    pub(super) owner_wants_room: bool,
    /// The owner is gone: what is queued is written until then.
    pub(super) closing: Option<Instant>,
    /// Our direction was ended: when the connection is lost, none is made.
    pub(super) is_ended: bool,
    /// The tasks are gone before the owner: their runtime has ended.
    pub(super) is_dead: bool,
    /// The owner's task, which waits to receive.
    pub(super) owner: Option<Waker>,
    call_owner: bool,
    call_waiting: bool,
    next_link: u64,
}

/// What a server has said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    Nothing,
    Lurcher,
    Feed,
}

/// Whether the server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ear {
    /// It has subscribed.
    Listens,
    /// It should subscribe soon: senders wait until then.
    Expected { until: Instant },
    /// It does not: messages are dropped. A request from it may raise hope again, but not before that moment.
    Absent { hopeless_until: Option<Instant> },
}

/// What sockets of a kind do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    pub(super) role: SocketType,
    /// Between two attempts to connect.
    pub(super) pause: Duration,
    pub(super) is_once: bool,
    /// How long the first subscription is waited for.
    pub(super) patience: Duration,
}

impl Core {
    /// A socket without a connection. Needs a runtime around it.
    pub(super) fn new(endpoint: &Endpoint, options: &Options, habits: Habits) -> Self {
        let Habits {
            role,
            pause,
            is_once,
            patience,
        } = habits;
        let mut protocol = zmtp::Options {
            message_bytes_max: usize::try_from(options.message_bytes_max).unwrap_or(usize::MAX),
            ..zmtp::Options::default()
        };
        if matches!(role, SocketType::Pull | SocketType::Xpub) {
            let token = options.token.clone().map(|token| (HANDLER_PROPERTY, token));
            let broker = options.broker.clone().map(|name| (BROKER_PROPERTY, name));
            let said = token.into_iter().chain(broker);
            protocol.properties = said.map(|(name, value)| (name, value.into())).collect();
        }
        if let Some(identity) = endpoint.identity.as_ref().or(options.identity.as_ref()) {
            protocol.identity = identity.clone().into_bytes();
        }
        Self {
            role,
            endpoint: endpoint.clone(),
            protocol: Arc::new(protocol),
            received_max: match options.received_max {
                0 => usize::MAX,
                max => usize::from(max),
            },
            queued_max: usize::from(options.queued_max.max(1)),
            linger: options.linger,
            pause,
            is_once,
            is_bound: endpoint.mode == Some(Mode::Bind),
            writes_directly: Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread,
            changed: Notify::new(),
            over: Notify::new(),
            state: Mutex::new(State {
                links: Vec::new(),
                hub: Hub {
                    messages: VecDeque::new(),
                    talks: VecDeque::new(),
                    received_bytes: 0,
                    early: VecDeque::new(),
                    up: 0,
                    connections: 0,
                    losses: 0,
                    has_news: false,
                    listeners: 0,
                    server: Says::Nothing,
                    subscriptions: 0,
                    ear: Ear::Expected {
                        until: Instant::now() + patience,
                    },
                    awaited: 0,
                    owner_wants_room: false,
                    closing: None,
                    is_ended: false,
                    is_dead: false,
                    owner: None,
                    call_owner: false,
                    call_waiting: false,
                    next_link: 0,
                },
            }),
        }
    }

    /// Does something under the lock, and calls afterwards whoever is to be told of it.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut state);
        let hub = &mut state.hub;
        let owner = if std::mem::take(&mut hub.call_owner) {
            hub.owner.take()
        } else {
            None
        };
        let tells = std::mem::take(&mut hub.call_waiting);
        drop(state);
        if let Some(owner) = owner {
            owner.wake();
        }
        if tells {
            self.changed.notify_waiters();
        }
        result
    }

    /// Whether nothing more should be read for now, because what was received has nowhere to go.
    pub(super) fn is_full(&self, hub: &Hub) -> bool {
        hub.messages.len() + hub.talks.len() >= self.received_max
            || hub.received_bytes >= RECEIVED_BYTES_MAX
    }

    /// The owner goes. What is queued is still written for as long as [`Options::linger`] says; what the kernel takes, at once: the
    /// runtime may be about to end.
    pub(super) fn close(&self, linger: Option<Duration>) {
        self.with(|state| {
            let State { links, hub } = state;
            let until = Instant::now() + linger.unwrap_or(self.linger);
            hub.closing = Some(until);
            hub.owner = None;
            if self.role == SocketType::Xpub {
                // Nobody has subscribed to it.
                hub.early.clear();
            }
            for link in links {
                link.write_now(hub, self);
                link.wake();
            }
        });
        self.over.notify_one();
    }

    /// Reads and writes what can be at once, from any thread, whether the runtime gets round to it or not.
    pub(super) fn run_now(&self) {
        self.with(|state| {
            let State { links, hub } = state;
            for link in links {
                link.run_now(hub, self);
            }
        });
    }
}

impl State {
    /// Takes what was received, `max` messages at most and not many more than `bytes`.
    pub(super) fn take_messages(
        &mut self,
        core: &Core,
        max: usize,
        bytes_max: usize,
        sink: &mut dyn FnMut(Bytes),
    ) -> usize {
        let (mut count, mut bytes) = (0, 0);
        while count < max
            && bytes < bytes_max
            && let Some(message) = self.hub.messages.pop_front()
        {
            count += 1;
            bytes += message.len();
            sink(message);
        }
        self.note_taken(core, bytes);
        count
    }

    /// Takes the next message of several frames.
    pub(super) fn take_talk(&mut self, core: &Core) -> Option<Vec<Bytes>> {
        let frames = self.hub.talks.pop_front()?;
        self.note_taken(core, frames.iter().map(Bytes::len).sum());
        Some(frames)
    }

    /// There may be room again.
    fn note_taken(&mut self, core: &Core, bytes: usize) {
        let hub = &mut self.hub;
        hub.received_bytes = hub.received_bytes.saturating_sub(bytes);
        // Half of it, so that connections are not stopped and started for every message.
        let count = hub.messages.len() + hub.talks.len();
        if count <= core.received_max / 2 && hub.received_bytes <= RECEIVED_BYTES_MAX / 2 {
            for link in &mut self.links {
                link.hear_again();
            }
        }
    }
}

impl Hub {
    pub(super) fn next_link(&mut self) -> u64 {
        self.next_link += 1;
        self.next_link
    }

    /// The owner is called, if he waits, when the lock is released.
    pub(super) fn call_owner(&mut self) {
        self.call_owner = true;
    }

    /// Whoever waits to send is called when the lock is released.
    pub(super) fn call_waiting(&mut self) {
        self.call_waiting = true;
    }

    /// A connection is there.
    pub(super) fn joined(&mut self) {
        self.up += 1;
        self.connections += 1;
        self.has_news = true;
        self.call_owner();
        self.call_waiting();
    }

    /// A connection is lost.
    pub(super) fn lost(&mut self) {
        self.up = self.up.saturating_sub(1);
        self.losses += 1;
        self.has_news = true;
        self.call_owner();
        self.call_waiting();
    }

    /// Somebody has subscribed.
    pub(super) fn heard_subscription(&mut self, is_first: bool, server: Says) {
        self.listeners += usize::from(is_first);
        self.server = server;
        self.subscriptions += 1;
        self.ear = Ear::Listens;
        self.call_waiting();
    }

    /// The last subscription of a connection is gone.
    pub(super) fn lost_subscriptions(&mut self) {
        self.listeners = self.listeners.saturating_sub(1);
        // Whoever waits for it to listen goes on waiting.
        if self.listeners == 0 && self.ear == Ear::Listens {
            self.ear = Ear::Absent {
                hopeless_until: None,
            };
            self.call_waiting();
        }
    }

    /// Whether there is no use in connecting any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_ended
            || self
                .closing
                .is_some_and(|until| self.early.is_empty() || Instant::now() >= until)
    }
}
