//! XPUB: replies to one server, without dropping any while that server is there.
//!
//! A plain PUB drops in silence: before the server's subscription has arrived, and when more is queued than it keeps. Here senders
//! wait in both cases, the first for as long as the subscription may be expected. A subscription counts for one connection, and what
//! was queued for one is forgotten with it: a server that comes back numbers its clients anew, and must not get what was meant for
//! those it had before.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::link::Link;
use super::shared::{Core, Ear, Habits, PATIENCE_PAUSE, Says, State};
use super::{Context, OpenError, Options, dead, open};
use crate::endpoint::Endpoint;
use crate::zmtp::SocketType;

/// Between attempts to connect. Below that of a receiver, so that after a restart of the server the way back is there before, or soon
/// after, the first request.
const PAUSE: Duration = Duration::from_millis(50);

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// It will be written while the connection lives.
    Queued,
    /// The server is not there, or subscribes to nothing: nobody could have received it.
    Dropped,
}

/// An XPUB socket connected to one server. All methods take `&self` and may be used from any task.
#[derive(Debug)]
pub struct Publisher {
    core: Arc<Core>,
    /// The line of those who must wait. First come, first served.
    turn: Semaphore,
    _context: Context,
}

enum Attempt {
    Done(Sent),
    /// Try again when something has changed, at the latest then.
    Blocked(Option<Instant>),
}

impl Publisher {
    /// Opens an XPUB socket and connects it, again and again while nobody is there. Messages wait for the server's subscription until
    /// `patience` has passed. Needs a runtime around it.
    ///
    /// # Errors
    ///
    /// When the endpoint is of no use (no address, path too long) or cannot be bound.
    pub fn connect(
        context: &Context,
        endpoint: &Endpoint,
        options: &Options,
        patience: Duration,
    ) -> Result<Self, OpenError> {
        let habits = Habits {
            role: SocketType::Xpub,
            pause: PAUSE,
            is_once: false,
            patience,
        };
        Ok(Self {
            core: open(context, endpoint, options, habits)?,
            turn: Semaphore::new(1),
            _context: context.clone(),
        })
    }

    /// Where it is connected to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.core.endpoint
    }

    /// How often it has been connected. More than once means that the server may have been started anew, and then it numbers its
    /// clients anew.
    pub fn connections(&self) -> u64 {
        self.core.with(|state| state.hub.connections)
    }

    /// Tells connections to the server apart: another number than before means that the one of then is lost, with what was on it, and
    /// perhaps the server, which numbers its clients anew when it comes back. While there is none, it is the number of the next.
    /// Always the same where the socket is bound.
    pub fn connection(&self) -> u64 {
        if self.core.is_bound {
            return 0;
        }
        let connection = |state: &mut State| state.hub.connections + u64::from(state.hub.up == 0);
        self.core.with(connection)
    }

    /// Whether a message that begins so would pass the server's subscriptions; `None` when there are none.
    pub fn would_pass(&self, beginning: &[u8]) -> Option<bool> {
        self.core.with(|state| {
            let passes = state.links.iter().any(|link| link.wants(beginning));
            (state.hub.listeners > 0).then_some(passes)
        })
    }

    /// Whether the server has said with its subscription that it is a Lurcher; false before there is one. While the connection is
    /// down, it is what it was.
    pub fn is_lurcher(&self) -> bool {
        self.core.with(|state| state.hub.server != Says::Nothing)
    }

    /// Whether it has said that it is a Lurcher that hands on what another server sends, which may be a Mongrel2.
    pub fn is_feed(&self) -> bool {
        self.core.with(|state| state.hub.server == Says::Feed)
    }

    /// Counts subscriptions, so that a new connection can be told from the one before; `None` while there is none.
    pub fn subscription(&self) -> Option<u64> {
        self.core
            .with(|state| (state.hub.ear == Ear::Listens).then_some(state.hub.subscriptions))
    }

    /// What the server subscribes to, the first topic of several: what is sent to it must begin so.
    pub fn topic(&self) -> Option<Vec<u8>> {
        self.core.with(|state| {
            let mut topics = state.links.iter().flat_map(Link::topics);
            topics.next().map(|topic| topic.to_vec())
        })
    }

    /// Waits until the server has subscribed; false when it has not done so by `deadline`.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn subscribed(&self, deadline: Instant) -> io::Result<bool> {
        let listens = self.until(deadline, |state| {
            if state.hub.is_dead {
                return Some(Err(dead()));
            }
            (state.hub.ear == Ear::Listens).then_some(Ok(true))
        });
        listens.await.unwrap_or(Ok(false))
    }

    /// Waits until something can be said of the socket; nothing when the time has come before.
    async fn until<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        loop {
            let mut changed = std::pin::pin!(self.core.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(seen) = self.core.with(&mut look) {
                return Some(seen);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return None;
            }
        }
    }

    /// To be called when the server has shown to be there (it pushed something): if it does not subscribe, lets senders wait for that,
    /// at most `patience`.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    pub fn expect(&self, patience: Duration) -> io::Result<()> {
        self.core.with(|state| {
            let hopeless_until = match state.hub.ear {
                Ear::Listens => return Ok(()),
                Ear::Expected { until } => Some(until),
                Ear::Absent { hopeless_until } => hopeless_until,
            };
            let now = Instant::now();
            if hopeless_until.is_none_or(|until| until <= now) {
                state.hub.ear = Ear::Expected {
                    until: now + patience,
                };
            }
            if state.hub.is_dead {
                return Err(dead());
            }
            Ok(())
        })
    }

    /// Sends one message; waits while the server is behind, and while its subscription is expected.
    ///
    /// # Errors
    ///
    /// When the runtime in which the socket was opened has ended; never because of the network.
    ///
    /// # Cancel safety
    ///
    /// Safe: the message is queued if and only if the future completes.
    pub async fn send(&self, message: impl Into<Bytes>) -> io::Result<Sent> {
        match self.try_send(message.into())? {
            None => Ok(Sent::Queued),
            Some(message) => self.send_slowly(VecDeque::from([message])).await,
        }
    }

    /// Sends several messages in order, with nothing of other senders between them.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    ///
    /// # Cancel safety
    ///
    /// All or nothing: they are queued if and only if the future completes.
    pub async fn send_all(
        &self,
        messages: impl IntoIterator<Item = impl Into<Bytes>>,
    ) -> io::Result<Sent> {
        let messages: VecDeque<Bytes> = messages.into_iter().map(Into::into).collect();
        if messages.is_empty() {
            return Ok(Sent::Queued);
        }
        self.send_slowly(messages).await
    }

    /// Sends one message without waiting, for those who cannot: a message that must wait goes out before anything that is sent
    /// later, and takes no notice of bounds. It is dropped where nobody would receive it.
    ///
    /// Whoever sends otherwise waits while there is no room, so that this cannot pile up much: use it for a last word only.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    pub fn send_when_possible(&self, message: Vec<u8>) -> io::Result<()> {
        self.core.with(|state| {
            if state.hub.is_dead {
                return Err(dead());
            }
            match self.ear(state, Instant::now()) {
                Ear::Listens => self.queue(state, message.into()),
                Ear::Expected { .. } => state.hub.early.push_back(vec![message.into()]),
                Ear::Absent { .. } => {}
            }
            Ok(())
        })
    }

    /// Writes what has waited for the task of its connection for some time: somebody keeps the runtime busy. Cheap where nothing has.
    pub fn write_overdue(&self) {
        if self.core.writes_directly {
            return;
        }
        self.core.with(|State { links, hub }| {
            for link in links {
                link.write_overdue(hub, &self.core);
            }
        });
    }

    /// Sends one message if that can be done without waiting; it comes back when not.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    pub fn try_send(&self, message: Bytes) -> io::Result<Option<Bytes>> {
        self.core.with(|state| {
            if state.hub.is_dead {
                return Err(dead());
            }
            if state.hub.awaited > 0 || state.hub.ear != Ear::Listens || !has_room(state, &message)
            {
                return Ok(Some(message));
            }
            self.queue(state, message);
            Ok(None)
        })
    }

    async fn send_slowly(&self, mut messages: VecDeque<Bytes>) -> io::Result<Sent> {
        // Most batches pass without waiting.
        let first: io::Result<_> = self.core.with(|state| {
            if state.hub.awaited > 0 {
                return Ok(None);
            }
            match self.attempt(state, &mut messages)? {
                Attempt::Done(sent) => Ok(Some(sent)),
                Attempt::Blocked(_) => Ok(None),
            }
        });
        if let Some(sent) = first? {
            return Ok(sent);
        }
        let _awaited = Awaited::begin(&self.core);
        let _turn = self.turn.acquire().await;
        loop {
            let mut changed = std::pin::pin!(self.core.changed.notified());
            changed.as_mut().enable();
            let attempt = self.core.with(|state| self.attempt(state, &mut messages))?;
            match attempt {
                Attempt::Done(sent) => return Ok(sent),
                Attempt::Blocked(None) => changed.await,
                Attempt::Blocked(Some(deadline)) => {
                    drop(tokio::time::timeout_at(deadline, changed).await);
                }
            }
        }
    }

    /// Queues all when there is room for the first, which bounds what is queued by one batch more.
    fn attempt(&self, state: &mut State, messages: &mut VecDeque<Bytes>) -> io::Result<Attempt> {
        if state.hub.is_dead {
            return Err(dead());
        }
        match self.ear(state, Instant::now()) {
            Ear::Expected { until } => return Ok(Attempt::Blocked(Some(until))),
            Ear::Absent { .. } => {
                messages.clear();
                return Ok(Attempt::Done(Sent::Dropped));
            }
            Ear::Listens => {}
        }
        if messages
            .front()
            .is_some_and(|first| !has_room(state, first))
        {
            return Ok(Attempt::Blocked(None));
        }
        for message in messages.drain(..) {
            self.queue(state, message);
        }
        Ok(Attempt::Done(Sent::Queued))
    }

    /// Whether the server listens at that moment: expectation ends.
    fn ear(&self, state: &mut State, now: Instant) -> Ear {
        let hub = &mut state.hub;
        if let Ear::Expected { until } = hub.ear
            && now >= until
        {
            tracing::warn!(endpoint = %self.core.endpoint, "server does not subscribe to replies, they are dropped until it does");
            hub.ear = Ear::Absent {
                hopeless_until: Some(now + PATIENCE_PAUSE),
            };
            hub.early.clear();
        }
        hub.ear
    }

    /// Queues a message for everybody who wants what begins so.
    fn queue(&self, state: &mut State, message: Bytes) {
        let State { links, hub } = state;
        let mut wanting = links.iter_mut().filter(|link| link.wants(&message));
        let Some(mut link) = wanting.next() else {
            return;
        };
        // Nearly always there is just one, and nothing is copied.
        for next in wanting {
            link.send(message.clone(), hub, &self.core);
            link = next;
        }
        link.send(message, hub, &self.core);
    }
}

/// Whether everybody who would get a message has room for it.
fn has_room(state: &State, message: &[u8]) -> bool {
    let mut wanting = state.links.iter().filter(|link| link.wants(message));
    wanting.all(|link| link.has_room(message.len()))
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.core.close(None);
    }
}

/// Somebody waits to send, until dropped.
struct Awaited<'a>(&'a Core);

impl<'a> Awaited<'a> {
    fn begin(core: &'a Core) -> Self {
        core.with(|state| state.hub.awaited += 1);
        Self(core)
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.0.with(|state| state.hub.awaited -= 1);
    }
}
