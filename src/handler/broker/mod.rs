//! A worker's side of a broker: one connection, by which requests come and answers go, with everything that a broker wants to know.
//!
//! The program's own tasks do the work: whoever receives takes what is there, whoever sends hands it over, both under one lock and
//! without another task between. Beside them a thread, the keeper, comes by a few times in each interval: it answers PINGs when
//! the program is busy, sees to it that a broker which is silent or gone is connected to again, and takes what comes in the
//! meantime out of the socket. What the messages mean is [`state`]'s business, which requests are open [`table`]'s.

mod state;
mod table;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Cx, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;

use self::state::{State, Welcome};
use crate::bus::client::{self, Context, Dialed, OpenError, Sent};
use crate::endpoint::Endpoint;
use crate::sys;
use crate::wire::request::Request;
use crate::wire::worker::{NAME_BYTES_MAX, RequestId};

/// The keeper's stack: it does little, and logs.
const KEEPER_STACK: usize = 256 * 1024;

/// How often a handshake is looked after that the program may hold up.
const JOINING: Duration = Duration::from_millis(5);

/// What a worker says of itself.
#[derive(Debug, Clone)]
pub(super) struct Introduction {
    pub(super) name: Bytes,
    pub(super) slots: Option<u32>,
    pub(super) weight: u32,
    pub(super) pool: Bytes,
}

impl Introduction {
    /// With a name of its own for each where none is given: this machine's, the process's, and from the second on a number.
    pub(super) fn new(
        name: Option<&str>,
        slots: Option<u32>,
        weight: u32,
        pool: Option<&str>,
    ) -> Self {
        static UNNAMED: AtomicU32 = AtomicU32::new(0);
        let name = name.map_or_else(
            || {
                let host = sys::host_name();
                let process = std::process::id();
                match UNNAMED.fetch_add(1, Ordering::Relaxed) {
                    0 => format!("{host}-{process}"),
                    more => format!("{host}-{process}-{}", u64::from(more) + 1),
                }
            },
            str::to_owned,
        );
        let cut = |text: &str| {
            let bytes = text.as_bytes();
            Bytes::copy_from_slice(bytes.get(..NAME_BYTES_MAX).unwrap_or(bytes))
        };
        Self {
            name: cut(&name),
            slots,
            weight: weight.clamp(1, 1000),
            pool: cut(pool.unwrap_or_default()),
        }
    }
}

/// A request's number, and the connection on which it came: on another it means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Given {
    id: RequestId,
    generation: u64,
}

/// A message that was received.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) message: Bytes,
    /// For requests, of which the broker is told what becomes.
    pub(super) given: Option<Given>,
}

/// Wakes all who wait, whoever of them the socket would wake.
#[derive(Debug, Default)]
struct Bell(Mutex<Vec<Waker>>);

impl Bell {
    fn lock(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, waker: &Waker) {
        let mut waiting = self.lock();
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    fn ring(&self) {
        let waiting = std::mem::take(&mut *self.lock());
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }
}

#[derive(Debug)]
struct Core {
    endpoint: Endpoint,
    state: Mutex<State>,
    bell: Arc<Bell>,
    /// The bell, as the socket wants it.
    ringer: Waker,
    /// The keeper waits here.
    keeper: Condvar,
    runtime: Handle,
}

/// A worker's connection to one broker, made again whenever it is lost. Dropping it says farewell.
#[derive(Debug)]
pub(super) struct Link(Arc<Core>);

impl Drop for Link {
    fn drop(&mut self) {
        let Self(core) = self;
        core.lock().close();
        core.keeper.notify_one();
        core.bell.ring();
    }
}

impl Link {
    /// Connects; the broker need not be there. Needs a runtime around it.
    pub(super) fn connect(
        context: &Context,
        endpoint: &Endpoint,
        options: &client::Options,
        introduction: Introduction,
    ) -> Result<Self, OpenError> {
        let mut state = State::new(context, endpoint, options, introduction);
        state.open(Instant::now())?;
        let bell = Arc::new(Bell::default());
        let core = Arc::new(Core {
            endpoint: endpoint.clone(),
            state: Mutex::new(state),
            ringer: Waker::from(Arc::clone(&bell)),
            bell,
            keeper: Condvar::new(),
            runtime: Handle::current(),
        });
        let keeper = Arc::clone(&core);
        std::thread::Builder::new()
            .name("keeper".to_owned())
            .stack_size(KEEPER_STACK)
            .spawn(move || keeper.keep())
            .map_err(|source| OpenError {
                doing: "starting a thread for",
                endpoint: endpoint.clone(),
                source,
            })?;
        Ok(Self(core))
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// Receives what is there, at least one message and at most `max`. None at all means that something has changed: the connection
    /// has come or gone, or the broker gives no more requests.
    pub(super) fn poll_recv_many(
        &self,
        cx: &mut Cx<'_>,
        max: usize,
        sink: &mut dyn FnMut(Taken),
    ) -> Poll<usize> {
        let Self(core) = self;
        let mut state = core.lock();
        state.note_progress();
        loop {
            core.renew(&mut state);
            let found = state.pump(Instant::now());
            core.call_senders(&mut state);
            if let Some(count) = state.take(max, sink) {
                return Poll::Ready(count);
            }
            if !found && core.poll_ready(&mut state, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Whether the broker has welcomed this worker; false when it has not until then, or the reason why it never will.
    pub(super) async fn welcomed(&self, deadline: tokio::time::Instant) -> Result<bool, String> {
        let answer = std::future::poll_fn(|cx| {
            let Self(core) = self;
            let mut state = core.lock();
            loop {
                let found = state.pump(Instant::now());
                match &state.welcome {
                    Welcome::Given { .. } => return Poll::Ready(Ok(true)),
                    Welcome::Refused(reason) => return Poll::Ready(Err(reason.clone())),
                    Welcome::Awaited => {}
                }
                if !found && core.poll_ready(&mut state, cx).is_pending() {
                    return Poll::Pending;
                }
            }
        });
        tokio::time::timeout_at(deadline, answer)
            .await
            .unwrap_or(Ok(false))
    }

    /// Whether there is a broker that has taken this worker.
    pub(super) fn is_welcome(&self) -> bool {
        matches!(self.0.lock().welcome, Welcome::Given { .. })
    }

    /// Counts connections: another number than before means that the one of then is lost.
    pub(super) fn generation(&self) -> u64 {
        self.0.lock().generation()
    }

    /// The program takes a request; false when it is nobody's any more.
    pub(super) fn begin(&self, given: Given, request: &Request) -> bool {
        let Self(core) = self;
        let mut state = core.lock();
        let begins = state.begin(given, request, Instant::now());
        core.after(state);
        begins
    }

    /// The program hears that a client is gone.
    pub(super) fn disconnected(&self, notice: &Request) {
        let Self(core) = self;
        let mut state = core.lock();
        state.disconnected(notice, Instant::now());
        core.after(state);
    }

    /// Sends messages in order; waits while the broker is behind, or not there.
    ///
    /// # Cancel safety
    ///
    /// All or nothing: with the first message that is handed over, the others are on their way.
    pub(super) async fn send_all(
        &self,
        messages: impl IntoIterator<Item = impl Into<Bytes>>,
    ) -> io::Result<Sent> {
        let mut messages: VecDeque<Bytes> = messages.into_iter().map(Into::into).collect();
        std::future::poll_fn(|cx| {
            let Self(core) = self;
            let mut state = core.lock();
            loop {
                if state.is_closed() {
                    return Poll::Ready(Ok(Sent::Dropped));
                }
                if state.send(&mut messages) {
                    core.after(state);
                    return Poll::Ready(Ok(Sent::Queued));
                }
                if core.poll_ready(&mut state, cx).is_pending() {
                    state.is_awaited = true;
                    return Poll::Pending;
                }
                if state.pump(Instant::now()) {
                    core.bell.ring();
                }
            }
        })
        .await
    }

    /// Sends a message without waiting: it goes before all that is sent later.
    pub(super) fn send_when_possible(&self, message: Vec<u8>) {
        let Self(core) = self;
        let mut state = core.lock();
        state.send_when_possible(message);
        core.after(state);
    }

    /// Waits until nothing waits to be handed over any more.
    pub(super) async fn settled(&self) -> io::Result<()> {
        if self.0.lock().owes() {
            return self.send_all(std::iter::empty::<Bytes>()).await.map(drop);
        }
        Ok(())
    }

    /// How many requests are taken at once from now on.
    pub(super) fn set_slots(&self, slots: u32) {
        let Self(core) = self;
        let mut state = core.lock();
        state.set_slots(slots);
        core.after(state);
    }

    /// Asks for no more requests. Changes nothing when that was done.
    pub(super) fn drain(&self) {
        let Self(core) = self;
        let mut state = core.lock();
        state.drain();
        core.after(state);
    }

    /// Whether no request comes any more.
    pub(super) fn is_drained(&self) -> bool {
        self.0.lock().is_drained()
    }

    /// Gives what has come, and nothing any more.
    pub(super) fn stop_receiving(&self, sink: &mut dyn FnMut(Taken)) {
        let Self(core) = self;
        let mut state = core.lock();
        state.stop_receiving(sink);
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for news of the socket, as one of several.
    fn poll_ready(&self, state: &mut State, cx: &mut Cx<'_>) -> Poll<()> {
        self.bell.register(cx.waker());
        let Some(dealer) = &mut state.dealer else {
            // The keeper opens one, and rings.
            self.keeper.notify_one();
            return Poll::Pending;
        };
        match dealer.poll_ready(&mut Cx::from_waker(&self.ringer)) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            // The runtime ends.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }

    /// After something was said.
    fn after(&self, mut state: MutexGuard<'_, State>) {
        self.call_senders(&mut state);
        let reopens = state.dealer.is_none();
        drop(state);
        if reopens {
            self.keeper.notify_one();
        }
    }

    /// Whoever waits to send tries again: the word that he can may have been heard by another.
    fn call_senders(&self, state: &mut State) {
        if std::mem::take(&mut state.is_awaited) {
            self.bell.ring();
        }
    }

    /// Connects anew if that is due; true when it has.
    fn renew(&self, state: &mut State) -> bool {
        let _runtime = self.runtime.enter();
        state.open(Instant::now()).unwrap_or_else(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "connecting to a broker"
            );
            false
        })
    }

    fn keep(&self) {
        let mut state = self.lock();
        while !state.is_closed() {
            let now = Instant::now();
            let opened = self.renew(&mut state);
            if state.is_to_dial() {
                drop(state);
                // Whoever is served meanwhile does not wait for it.
                let dialed = Dialed::dial(&self.endpoint);
                state = self.lock();
                if let Err(error) = dialed.and_then(|dialed| state.attach(dialed)) {
                    tracing::debug!(broker = %self.endpoint, %error, "connecting");
                }
            }
            // The program may keep the runtime busy.
            state.run_now();
            let found = state.pump(now);
            let mut wait = state.tend(now).max(Duration::from_millis(1));
            state.run_now();
            self.call_senders(&mut state);
            if opened || found {
                self.bell.ring();
            }
            if state.is_joining() {
                wait = wait.min(JOINING);
            }
            state = self
                .keeper
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
