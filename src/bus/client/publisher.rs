//! XPUB: replies to one server, without dropping any while that server is there.
//!
//! A plain PUB drops in silence: before the server's subscription has arrived, and above its high-water mark. An XPUB
//! shows subscriptions as messages, and with `ZMQ_XPUB_NODROP` it says `EAGAIN` at the mark, which is the backpressure.
//! `ZMQ_IMMEDIATE` makes libzmq forget queue and subscriptions with a lost connection: a server that comes back numbers
//! its clients anew, and must not get what was meant for those it had before.
//!
//! An XPUB does not tell in time that a connection is lost: its pipe goes through a handshake of its own, in which our
//! thread has to take part, and until it is over messages vanish in it although its subscription still seems to be there.
//! So whether the connection is up is learnt from libzmq's monitor, and a subscription counts for one connection only.
//!
//! Each message that libzmq is given may wake its thread, which costs more than the message. Where many tasks send, somebody who
//! comes round anyway may have theirs gathered ([`Publisher::gather`]): those of one turn of the loop are handed over together.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context as Cx, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::monitor::{Change, Monitor};
use super::{Context, Descriptor, OpenError, Opened, Options, is_again, open, set_raw, watch};
use crate::bus::{FEED, SERVER_PROPERTY};
use crate::endpoint::{Endpoint, Mode};

/// Milliseconds between attempts to reconnect. Below the 100 of a receiver, so that after a restart of the server the
/// way back is there before, or soon after, the first request.
const RECONNECT_MS: i32 = 50;

/// After a server has pushed a request and not subscribed in time, so long nothing waits for it again.
const PATIENCE_PAUSE: Duration = Duration::from_secs(30);

/// Subscriptions are looked at every so many sends at least, for programs that only send.
const SENDS_PER_LOOK: u32 = 1024;

/// Messages that are gathered, and their bytes: more are handed over without waiting for the end of the turn.
const GATHERED_MAX: usize = 16;
const GATHERED_BYTES_MAX: usize = 64 * 1024;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// libzmq has it, or gets it with others at the end of this turn of the loop, and will write it while the connection lives.
    Queued,
    /// The server is not there, or subscribes to nothing: nobody could have received it.
    Dropped,
}

/// An XPUB socket connected to one server. All methods take `&self` and may be used from any task.
#[derive(Debug)]
pub struct Publisher {
    events: AsyncFd<Descriptor>,
    /// Ready when the connection has come or gone and nobody has looked yet.
    changes: Option<AsyncFd<Descriptor>>,
    state: Mutex<State>,
    /// The line of those who must wait. First come, first served.
    turn: Semaphore,
    endpoint: Endpoint,
}

struct State {
    socket: zmq::Socket,
    /// Tells of connections; none where the socket is bound and may have several.
    monitor: Option<Monitor>,
    /// The monitor has told of a connection and not of its end.
    up: bool,
    /// Connections that the monitor has told of.
    connections: u64,
    message: zmq::Message,
    /// What the server subscribes to.
    topics: Vec<Vec<u8>>,
    /// What whoever subscribed last has said that it is.
    server: Says,
    /// How often somebody has subscribed: tells connections apart.
    subscriptions: u64,
    ear: Ear,
    /// Somebody awaits the descriptor: nobody else may touch the socket, or the edge is lost.
    awaited: bool,
    /// The rest of a batch whose first message was sent and whose sender did not stay, and what was gathered: goes before all else.
    owed: VecDeque<Bytes>,
    /// Bytes that were gathered since nothing was owed.
    gathered_bytes: usize,
    /// Who hands over what is gathered; nobody: then nothing is.
    gatherer: Option<Waker>,
    /// He was woken and has not come yet.
    is_called: bool,
    sends_until_look: u32,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("topics", &self.topics)
            .field("ear", &self.ear)
            .finish_non_exhaustive()
    }
}

/// What a server has said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Nothing,
    Lurcher,
    Feed,
}

/// Whether the server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ear {
    /// It has subscribed.
    Listens,
    /// It should subscribe soon: senders wait until then.
    Expected { until: Instant },
    /// It does not: messages are dropped. A request from it may raise hope again, but not before that moment.
    Absent { hopeless_until: Option<Instant> },
}

enum Attempt {
    Done(Sent),
    /// Try again when the descriptor is readable, at the latest then.
    Blocked(Option<Instant>),
}

impl Publisher {
    /// Opens an XPUB socket and connects it; libzmq goes on trying for ever while nobody is there. Messages wait for the
    /// server's subscription until `patience` has passed.
    ///
    /// # Errors
    ///
    /// When the endpoint is of no use (no such interface, path too long) or descriptors have run out.
    pub fn connect(
        context: &Context,
        endpoint: &Endpoint,
        options: &Options,
        patience: Duration,
    ) -> Result<Self, OpenError> {
        let is_bound = endpoint.mode == Some(Mode::Bind);
        let mut monitor = None;
        let Opened { events, socket } = open(context, zmq::XPUB, endpoint, options, |socket| {
            socket.set_immediate(true)?;
            socket.set_xpub_verbose(true)?;
            socket.set_reconnect_ivl(RECONNECT_MS)?;
            // It wants an int.
            #[expect(clippy::cast_possible_wrap, reason = "option numbers are small")]
            set_raw(
                socket,
                zmq_sys::ZMQ_XPUB_NODROP as c_int,
                &(1 as c_int).to_ne_bytes(),
            )?;
            if !is_bound {
                monitor = Some(Monitor::of(context, socket)?);
            }
            Ok(())
        })?;
        let changes = match monitor
            .as_ref()
            .map(|monitor| watch(monitor.socket()))
            .transpose()
        {
            Ok(changes) => changes,
            Err(source) => {
                drop(events);
                let (doing, endpoint) = ("watching the connection to", endpoint.clone());
                return Err(OpenError {
                    doing,
                    endpoint,
                    source,
                });
            }
        };
        let state = State {
            socket,
            monitor,
            up: is_bound,
            connections: 0,
            message: zmq::Message::new(),
            topics: Vec::new(),
            server: Says::Nothing,
            subscriptions: 0,
            ear: Ear::Expected {
                until: Instant::now() + patience,
            },
            awaited: false,
            owed: VecDeque::new(),
            gathered_bytes: 0,
            gatherer: None,
            is_called: false,
            sends_until_look: SENDS_PER_LOOK,
        };
        Ok(Self {
            events,
            changes,
            state: Mutex::new(state),
            turn: Semaphore::new(1),
            endpoint: endpoint.clone(),
        })
    }

    /// Where it is connected to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// How often it has been connected, as far as anybody has looked: [`Publisher::expect`] looks. More than once means that the
    /// server may have been started anew, and then it numbers its clients anew.
    pub fn connections(&self) -> u64 {
        self.lock().connections
    }

    /// Tells connections to the server apart: another number than before means that the one of then is lost, with what was on it, and
    /// perhaps the server, which numbers its clients anew when it comes back. While there is none, it is the number of the next.
    /// Always the same where the socket is bound.
    pub fn connection(&self) -> u64 {
        let state = self.glance();
        state.connections + u64::from(!state.up)
    }

    /// Whether a message that begins so would pass the server's subscriptions; `None` when there are none.
    pub fn would_pass(&self, beginning: &[u8]) -> Option<bool> {
        let state = self.lock();
        let passes = state
            .topics
            .iter()
            .any(|topic| beginning.starts_with(topic));
        (!state.topics.is_empty()).then_some(passes)
    }

    /// Whether the server has said with its subscription that it is a Lurcher; false before there is one. While the connection is
    /// down, it is what it was.
    pub fn is_lurcher(&self) -> bool {
        self.known().server != Says::Nothing
    }

    /// Whether it has said that it is a Lurcher that hands on what another server sends, which may be a Mongrel2.
    pub fn is_feed(&self) -> bool {
        self.known().server == Says::Feed
    }

    /// Counts subscriptions, so that a new connection can be told from the one before; `None` while there is none.
    pub fn subscription(&self) -> Option<u64> {
        let state = self.glance();
        (state.ear == Ear::Listens).then_some(state.subscriptions)
    }

    /// The state as far as who the server is goes, at the price of system calls only where there may be news: it is asked for each
    /// response that is written piece by piece. A subscription counts for one connection, and where those are watched, no news of
    /// them means that nobody else has come.
    fn known(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let is_known = state.ear == Ear::Listens && self.changes.is_some() && !self.has_changed();
        // Whoever awaits the descriptor looks himself, and is to be told of changes.
        if !state.awaited && !is_known {
            // A broken socket is told to whoever sends.
            drop(state.look());
        }
        state
    }

    /// What is said upstream may wait for nobody to look: looks, unless somebody does who awaits the descriptor.
    fn glance(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        if !state.awaited {
            // A broken socket is told to whoever sends.
            drop(state.look());
        }
        state
    }

    /// Sends one message if that can be done without waiting; false when not.
    pub fn send_now(&self, message: &[u8]) -> io::Result<bool> {
        let mut state = self.glance();
        if state.awaited || state.ear != Ear::Listens || !state.settle()? {
            return Ok(false);
        }
        state.hand_over(message)
    }

    /// What the server subscribes to, the first topic of several: what is sent to it must begin so.
    pub fn topic(&self) -> Option<Vec<u8>> {
        self.lock().topics.first().cloned()
    }

    /// Waits until the server has subscribed; false when it has not done so by `deadline`.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn subscribed(&self, deadline: Instant) -> io::Result<bool> {
        let _turn = self.turn.acquire().await;
        let _awaited = Awaited::begin(self);
        loop {
            {
                let mut state = self.lock();
                state.look()?;
                if state.ear == Ear::Listens {
                    return Ok(true);
                }
            }
            let Ok(readable) = tokio::time::timeout_at(deadline, self.events.readable()).await
            else {
                return Ok(false);
            };
            readable?.clear_ready();
        }
    }

    /// To be called when the server has shown to be there (it pushed something): looks whether it subscribes still, and
    /// if not, lets senders wait for that, at most `patience`.
    pub fn expect(&self, patience: Duration) -> io::Result<()> {
        let mut state = self.lock();
        if state.awaited {
            // Whoever awaits the descriptor looks himself.
            return Ok(());
        }
        if state.ear == Ear::Listens && state.owed.is_empty() && !self.has_changed() {
            return Ok(());
        }
        state.look()?;
        if state.ear == Ear::Listens {
            state.settle()?;
        }
        let hopeless_until = match state.ear {
            Ear::Listens => return Ok(()),
            Ear::Expected { until } => Some(until),
            Ear::Absent { hopeless_until } => hopeless_until,
        };
        let now = Instant::now();
        if hopeless_until.is_none_or(|until| until <= now) {
            state.ear = Ear::Expected {
                until: now + patience,
            };
        }
        Ok(())
    }

    /// Sends one message; waits while the server is behind, and while its subscription is expected.
    ///
    /// # Errors
    ///
    /// Only what libzmq may say of a broken socket; never because of the network.
    ///
    /// # Cancel safety
    ///
    /// Safe: the message is handed over if and only if the future completes.
    pub async fn send(&self, message: Vec<u8>) -> io::Result<Sent> {
        match self.try_send(message)? {
            None => Ok(Sent::Queued),
            Some(message) => self.send_slowly(VecDeque::from([message.into()])).await,
        }
    }

    /// Hands over what was gathered, and gathers what is sent from now on until [`Publisher::end_gathering`]: the task is woken with
    /// the first of it, and shall call this again. Tasks that are ready before it so have their messages handed over together.
    ///
    /// For a runtime of one thread: on others the task may run before them.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    pub fn gather(&self, cx: &mut Cx<'_>) -> io::Result<()> {
        let mut state = self.lock();
        state.is_called = false;
        match &state.gatherer {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => state.gatherer = Some(cx.waker().clone()),
        }
        while !self.flush(&mut state)? {
            // libzmq takes no more just now, or it would not be owed: its descriptor tells when it does.
            match self.events.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?.clear_ready(),
                Poll::Pending => break,
            }
            state.look()?;
        }
        Ok(())
    }

    /// Hands over what was gathered, and gathers no more. What libzmq does not take goes before anything that is sent later.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    pub fn end_gathering(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.gatherer = None;
        self.flush(&mut state).map(drop)
    }

    /// Waits until libzmq has all that was sent.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn settled(&self) -> io::Result<()> {
        if self.lock().owed.is_empty() {
            return Ok(());
        }
        self.send_slowly(VecDeque::new()).await.map(drop)
    }

    /// Hands over what is owed; true when nothing can be done for it here: nothing is left, or it is another's business.
    fn flush(&self, state: &mut State) -> io::Result<bool> {
        // Whoever awaits the descriptor sends it before his own.
        if state.owed.is_empty() || state.awaited {
            return Ok(true);
        }
        if self.has_changed() {
            state.look()?;
        }
        match state.ear {
            Ear::Listens => state.settle(),
            Ear::Expected { .. } => Ok(true),
            Ear::Absent { .. } => {
                state.owed.clear();
                Ok(true)
            }
        }
    }

    /// Sends several messages in order, with nothing of other senders between them.
    ///
    /// # Cancel safety
    ///
    /// All or nothing: dropped before the first was handed over, none is sent; after it, the rest goes out before
    /// anything that is sent later (at the latest with the next call of any method here).
    pub async fn send_all(
        &self,
        messages: impl IntoIterator<Item = impl Into<Bytes>>,
    ) -> io::Result<Sent> {
        let messages: VecDeque<_> = messages.into_iter().map(Into::into).collect();
        if messages.is_empty() {
            return Ok(Sent::Queued);
        }
        self.send_slowly(messages).await
    }

    /// Sends one message without waiting, for those who cannot: a message that must wait goes out before anything that is sent
    /// later, at the latest with the next call of any method here. It is dropped where nobody would receive it.
    ///
    /// Whoever sends otherwise waits while something is owed, so that this cannot pile up much: use it for a last word only.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    pub fn send_when_possible(&self, message: Vec<u8>) -> io::Result<()> {
        let mut state = self.lock();
        if state.awaited {
            // Whoever awaits the descriptor will send it before his own.
            state.owed.push_back(message.into());
            return Ok(());
        }
        match self.attempt(&mut state, &mut VecDeque::new())? {
            Attempt::Done(Sent::Dropped) => {}
            Attempt::Done(Sent::Queued) if state.hand_over(&message)? => {}
            _ => state.owed.push_back(message.into()),
        }
        Ok(())
    }

    /// The common case without waiting; the message comes back when it must be done the long way.
    fn try_send(&self, message: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        let mut state = self.lock();
        if state.awaited
            || state.ear != Ear::Listens
            || state.sends_until_look == 0
            || self.has_changed()
        {
            return Ok(Some(message));
        }
        if state.gatherer.is_some() && state.has_room(message.len()) {
            state.sends_until_look -= 1;
            if state.owed.is_empty() {
                state.gathered_bytes = 0;
            }
            state.gathered_bytes += message.len();
            state.owed.push_back(message.into());
            if !std::mem::replace(&mut state.is_called, true)
                && let Some(waker) = state.gatherer.clone()
            {
                drop(state);
                waker.wake();
            }
            return Ok(None);
        }
        if !state.settle()? {
            return Ok(Some(message));
        }
        state.sends_until_look -= 1;
        let sent = state.hand_over(&message)?;
        Ok((!sent).then_some(message))
    }

    async fn send_slowly(&self, mut messages: VecDeque<Bytes>) -> io::Result<Sent> {
        // Most batches pass without waiting.
        {
            let mut state = self.lock();
            if !state.awaited {
                if self.hand_over_at_once(&mut state, &mut messages)? {
                    return Ok(Sent::Queued);
                }
                if let Attempt::Done(sent) = self.attempt(&mut state, &mut messages)? {
                    return Ok(sent);
                }
            }
        }
        let _turn = self.turn.acquire().await;
        let _awaited = Awaited::begin(self);
        loop {
            let attempt = self.attempt(&mut self.lock(), &mut messages)?;
            let deadline = match attempt {
                Attempt::Done(sent) => return Ok(sent),
                Attempt::Blocked(deadline) => deadline,
            };
            let readable = self.events.readable();
            match deadline {
                None => readable.await?.clear_ready(),
                Some(deadline) => {
                    if let Ok(readable) = tokio::time::timeout_at(deadline, readable).await {
                        readable?.clear_ready();
                    }
                }
            }
        }
    }

    /// Hands over as many as libzmq takes, without a look at the events where none is due: a look is three system calls. True when
    /// nothing is left.
    fn hand_over_at_once(
        &self,
        state: &mut State,
        messages: &mut VecDeque<Bytes>,
    ) -> io::Result<bool> {
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        if state.ear != Ear::Listens || state.sends_until_look < count || self.has_changed() {
            return Ok(false);
        }
        if !state.settle()? {
            return Ok(false);
        }
        let Some(first) = messages.front() else {
            return Ok(true);
        };
        if !state.hand_over(first)? {
            return Ok(false);
        }
        state.sends_until_look -= count;
        messages.pop_front();
        // The rest goes out whether the sender stays or not.
        state.owed.append(messages);
        state.settle()
    }

    /// Looks at the events and hands over what may be. Whatever it leaves undone, libzmq's descriptor will tell of.
    fn attempt(&self, state: &mut State, messages: &mut VecDeque<Bytes>) -> io::Result<Attempt> {
        state.look()?;
        state.sends_until_look = SENDS_PER_LOOK;
        if let Ear::Expected { until } = state.ear {
            let now = Instant::now();
            if now < until {
                return Ok(Attempt::Blocked(Some(until)));
            }
            tracing::warn!(endpoint = %self.endpoint, "server does not subscribe to replies, they are dropped until it does");
            state.ear = Ear::Absent {
                hopeless_until: Some(now + PATIENCE_PAUSE),
            };
        }
        if let Ear::Absent { .. } = state.ear {
            state.owed.clear();
            messages.clear();
            return Ok(Attempt::Done(Sent::Dropped));
        }
        if !state.settle()? {
            return Ok(Attempt::Blocked(None));
        }
        if let Some(first) = messages.front()
            && state.hand_over(first)?
        {
            messages.pop_front();
            state.owed.append(messages);
            state.settle()?;
        }
        let done = messages.is_empty() && state.owed.is_empty();
        Ok(if done {
            Attempt::Done(Sent::Queued)
        } else {
            Attempt::Blocked(None)
        })
    }

    /// Whether the connection has come or gone since the last look. No system call: tokio has been told.
    fn has_changed(&self) -> bool {
        self.changes.as_ref().is_some_and(|changes| {
            // Readiness is cleared by saying `WouldBlock`; whoever is told that something has changed looks at once.
            let mut changed = false;
            drop::<io::Result<()>>(changes.try_io(Interest::READABLE, |_| {
                changed = true;
                Err(io::ErrorKind::WouldBlock.into())
            }));
            changed
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let mut state = self.lock();
        // There is nobody left to be told of a broken socket.
        drop(self.flush(&mut state));
    }
}

impl State {
    /// Takes note of connections and subscriptions. This is also what makes libzmq look at its commands: a send alone does
    /// so about once a millisecond only. What is owed has its chance then, since this may have eaten the word that it can go.
    fn look(&mut self) -> io::Result<()> {
        self.look_at_events()?;
        if self.ear == Ear::Listens {
            self.settle()?;
        }
        Ok(())
    }

    fn look_at_events(&mut self) -> io::Result<()> {
        self.look_at_connection()?;
        let mut heard = Vec::new();
        loop {
            match self.socket.recv(&mut self.message, zmq::DONTWAIT) {
                Ok(()) => {
                    let server = match self.message.gets(SERVER_PROPERTY) {
                        Some(FEED) => Says::Feed,
                        Some(_) => Says::Lurcher,
                        None => Says::Nothing,
                    };
                    heard.push((self.message.to_vec(), server));
                }
                Err(zmq::Error::EINTR) => {}
                Err(error) if is_again(error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if heard.is_empty() {
            return Ok(());
        }
        // It may have been said on a newer connection than the one that was seen above.
        self.look_at_connection()?;
        for (message, server) in heard {
            match message.split_first() {
                // The last words of a connection that has gone count for nothing.
                Some((1, topic)) if self.up => {
                    if !self.topics.iter().any(|known| known == topic) {
                        self.topics.push(topic.to_vec());
                    }
                    self.server = server;
                    self.subscriptions += 1;
                    self.ear = Ear::Listens;
                }
                Some((0, topic)) => {
                    self.topics.retain(|known| known != topic);
                    if self.topics.is_empty() {
                        self.silence();
                    }
                }
                // A publisher may ignore whatever else is sent upstream.
                _ => {}
            }
        }
        Ok(())
    }

    fn look_at_connection(&mut self) -> io::Result<()> {
        while let Some(monitor) = &self.monitor
            && let Some(change) = monitor.next()?
        {
            self.up = matches!(change, Change::Up(_));
            self.connections += u64::from(self.up);
            if !self.up {
                self.topics.clear();
                self.silence();
                // It was meant for the clients that the server had.
                self.owed.clear();
            }
        }
        Ok(())
    }

    /// The server does not listen any more. Whoever waits for it to listen goes on waiting.
    fn silence(&mut self) {
        if self.ear == Ear::Listens {
            self.ear = Ear::Absent {
                hopeless_until: None,
            };
        }
    }

    /// Whether a message of so many bytes may be gathered.
    fn has_room(&self, bytes: usize) -> bool {
        let gathered = if self.owed.is_empty() {
            0
        } else {
            self.gathered_bytes
        };
        self.owed.len() < GATHERED_MAX && gathered.saturating_add(bytes) <= GATHERED_BYTES_MAX
    }

    /// Gives libzmq one message, if it takes one.
    fn hand_over(&self, message: &[u8]) -> io::Result<bool> {
        loop {
            match self.socket.send(message, zmq::DONTWAIT) {
                Ok(()) => return Ok(true),
                Err(zmq::Error::EINTR) => {}
                Err(error) if is_again(error) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives libzmq what is owed; true when nothing is left.
    fn settle(&mut self) -> io::Result<bool> {
        while let Some(message) = self.owed.pop_front() {
            if !self.hand_over(&message)? {
                self.owed.push_front(message);
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Marks the descriptor as awaited until dropped.
struct Awaited<'a>(&'a Publisher);

impl<'a> Awaited<'a> {
    fn begin(publisher: &'a Publisher) -> Self {
        publisher.lock().awaited = true;
        Self(publisher)
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.awaited = false;
        // He may have left without having sent it.
        let gatherer = state.gatherer.clone().filter(|_| !state.owed.is_empty());
        drop(state);
        if let Some(waker) = gatherer {
            waker.wake();
        }
    }
}
