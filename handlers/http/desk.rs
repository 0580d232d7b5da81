//! What is open and for whom, what waits for its turn, and which connections are kept for the next request.
//!
//! A *worker* is a task with a connection to the backend. It has one request at a time; when that is done it takes one that waits,
//! or waits for the next itself, connection in hand. The one that became idle last gets the next request, so that the others grow
//! old and go. A client has one request open: Mongrel2 hands over what a client sends ahead, and answers must keep their order.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lurcher::handler::{Client, Frame, ReplyError, Request};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::body::Job;
use super::{Bridge, exchange, websocket};
use crate::handlers::departed::Departed;

/// Idle connections that are kept; above that the oldest is closed.
const IDLE_MAX: usize = 256;

/// How long an idle connection is kept: less than most servers do (Node closes after five seconds of its own), since a request that
/// meets their end may be lost.
const IDLE_TIME: Duration = Duration::from_secs(30);

/// Requests that wait for a turn; a further one is answered 503. As many as a front lets wait for its handlers.
const WAITING_MAX: usize = 4096;

/// Requests that a client may send ahead of an answer. No browser does; above that its connection is closed.
const AHEAD_MAX: usize = 16;

/// Frames of a WebSocket that the backend has not taken yet, and bytes of them, as much as fronts hold for a slow client. More ends it.
const FRAMES_MAX: usize = 1024;
const FRAME_BYTES_MAX: usize = 16 << 20;

/// The tasks that serve.
pub(super) type Workers = JoinSet<Result<(), ReplyError>>;

/// The end of one of them.
pub(super) type Ended = Result<(Id, Result<(), ReplyError>), JoinError>;

#[derive(Debug)]
pub(super) struct Desk {
    state: Mutex<State>,
    concurrency: usize,
}

#[derive(Debug, Default)]
struct State {
    /// What each client has at a worker, or waiting for one.
    open: HashMap<Client, Open>,
    /// Oldest first.
    idle: Vec<Idle>,
    /// Clients whose requests wait for a turn, in order.
    waiting: VecDeque<Client>,
    /// Workers with a request. Those of `WebSocket` do not count: as many come as the server has clients.
    busy: usize,
    stopping: bool,
    departed: Departed,
}

/// What a client has here.
#[derive(Debug)]
struct Open {
    /// Who has its request; nobody while all of it waits.
    worker: Option<AbortHandle>,
    kind: Kind,
    /// What waits, or was sent ahead.
    ahead: VecDeque<Job>,
}

/// What a client has open.
#[derive(Debug)]
enum Kind {
    Request,
    /// A `WebSocket` and the way to it, as long as frames are taken.
    Socket(Option<Tube>),
}

/// A worker without a request.
#[derive(Debug)]
struct Idle {
    turn: oneshot::Sender<Job>,
    worker: AbortHandle,
    since: Instant,
}

/// Frames on their way to a WebSocket's backend.
#[derive(Debug)]
struct Tube {
    frames: mpsc::Sender<Frame>,
    level: Arc<Level>,
}

/// How full it is.
#[derive(Debug, Default)]
struct Level {
    bytes: AtomicUsize,
    /// It was fuller than it may be.
    overrun: Notify,
}

/// The other end of a [`Tube`].
#[derive(Debug)]
pub(super) struct Frames {
    frames: mpsc::Receiver<Frame>,
    level: Arc<Level>,
}

/// Tells that the backend takes too little.
#[derive(Debug)]
pub(super) struct Overrun(Arc<Level>);

impl Overrun {
    /// Waits for that.
    pub(super) async fn happens(&self) {
        self.0.overrun.notified().await;
    }
}

impl Level {
    fn take(&self, frame: &Frame) {
        self.bytes
            .fetch_sub(frame.payload().len(), Ordering::Relaxed);
    }
}

impl Frames {
    /// What tells when there are too many.
    pub(super) fn overrun(&self) -> Overrun {
        Overrun(Arc::clone(&self.level))
    }

    /// The next frame; `None` when no more come.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let frame = self.frames.recv().await?;
        self.level.take(&frame);
        Some(frame)
    }

    /// The next frame, if one is there.
    pub(super) fn try_next(&mut self) -> Option<Frame> {
        let frame = self.frames.try_recv().ok()?;
        self.level.take(&frame);
        Some(frame)
    }
}

/// A request that is not taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// Too many wait.
    Waiting(Box<Job>),
    /// Its client has sent too many ahead; what it had open was dropped.
    Ahead(Client),
}

/// What a worker does next.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are jobs, and they are taken out at once"
)]
pub(super) enum Next {
    Job(Job),
    /// Wait for one here.
    Wait(oneshot::Receiver<Job>),
    End,
}

impl Desk {
    pub(super) fn new(concurrency: usize) -> Self {
        Self {
            state: Mutex::default(),
            concurrency: concurrency.max(1),
        }
    }

    /// Gives a request to a worker, or lets it wait. It comes back when too many wait.
    pub(super) fn give(
        &self,
        bridge: &Arc<Bridge>,
        job: Job,
        workers: &mut Workers,
    ) -> Result<(), Refused> {
        let mut state = self.lock();
        let client = job.request.client();
        if state.departed.has(&client) {
            return Err(Refused::Ahead(client));
        }
        if let Some(open) = state.open.get_mut(&client) {
            if open.ahead.len() < AHEAD_MAX {
                open.ahead.push_back(job);
                return Ok(());
            }
            // An answer now would stand within another one.
            self.give_up(&mut state, &client, bridge, workers);
            state.departed.add(&client);
            return Err(Refused::Ahead(client));
        }
        if state.busy < self.concurrency {
            state.start(bridge, client, job, workers);
        } else if state.waiting.len() < WAITING_MAX {
            let mut open = Open::new(None);
            open.ahead.push_back(job);
            state.open.insert(client.clone(), open);
            state.waiting.push_back(client);
        } else {
            return Err(Refused::Waiting(Box::new(job)));
        }
        Ok(())
    }

    /// Drops what a client has open, and lets others have its place.
    fn give_up(
        &self,
        state: &mut State,
        client: &Client,
        bridge: &Arc<Bridge>,
        workers: &mut Workers,
    ) {
        let Some(open) = state.open.remove(client) else {
            return;
        };
        let Some(worker) = &open.worker else {
            state.waiting.retain(|waiting| waiting != client);
            return;
        };
        worker.abort();
        if open.counts() {
            state.busy = state.busy.saturating_sub(1);
        }
        while state.busy < self.concurrency
            && let Some((client, job)) = state.startable()
        {
            state.start(bridge, client, job, workers);
        }
    }

    /// Begins a WebSocket; refused where its client has something open, in which its answer would stand.
    pub(super) fn open(
        &self,
        bridge: &Arc<Bridge>,
        request: Request,
        workers: &mut Workers,
    ) -> Result<(), Refused> {
        let mut state = self.lock();
        let client = request.client();
        if state.departed.has(&client) {
            return Err(Refused::Ahead(client));
        }
        if state.open.contains_key(&client) {
            self.give_up(&mut state, &client, bridge, workers);
            state.departed.add(&client);
            return Err(Refused::Ahead(client));
        }
        let (sender, frames) = mpsc::channel(FRAMES_MAX);
        let level = Arc::<Level>::default();
        let tube = Tube {
            frames: sender,
            level: Arc::clone(&level),
        };
        let worker = workers.spawn(websocket::run(
            Arc::clone(bridge),
            request,
            Frames { frames, level },
        ));
        // One that comes while the handler stops is told so at once.
        let tube = (!state.stopping).then_some(tube);
        let open = Open {
            worker: Some(worker),
            kind: Kind::Socket(tube),
            ahead: VecDeque::new(),
        };
        state.open.insert(client, open);
        Ok(())
    }

    /// Passes a frame to its WebSocket; it comes back when there is none. When the backend is too far behind, whoever serves the
    /// WebSocket is told, and ends it.
    pub(super) fn pass(&self, frame: Frame) -> Result<(), Box<Frame>> {
        let mut state = self.lock();
        let Some(Open {
            kind: Kind::Socket(way),
            ..
        }) = state.open.get_mut(&frame.client())
        else {
            return Err(Box::new(frame));
        };
        // Without a way its end is being said.
        let Some(tube) = way else {
            return Ok(());
        };
        let length = frame.payload().len();
        let before = tube.level.bytes.fetch_add(length, Ordering::Relaxed);
        let fits = before == 0 || before.saturating_add(length) <= FRAME_BYTES_MAX;
        if !fits || tube.frames.try_send(frame).is_err() {
            tube.level.overrun.notify_one();
            *way = None;
        }
        Ok(())
    }

    /// The client is gone: its request at the backend is dropped, and what waits of it.
    pub(super) fn cancel(&self, client: &Client, bridge: &Arc<Bridge>, workers: &mut Workers) {
        let mut state = self.lock();
        state.departed.forget(client);
        self.give_up(&mut state, client, bridge, workers);
    }

    /// A worker asks what to do now that the request of this client is done; `keeps`: it has a connection for another one.
    pub(super) fn next(&self, client: &Client, keeps: bool) -> Next {
        let mut state = self.lock();
        // Nothing there: the worker is being given up, since its client has gone this very moment.
        let Some(mut open) = state.open.remove(client) else {
            return Next::End;
        };
        if let Some(job) = open.ahead.pop_front() {
            state.open.insert(client.clone(), open);
            return Next::Job(job);
        }
        if let Some((client, job)) = state.startable() {
            state.hand(client, open.worker);
            return Next::Job(job);
        }
        state.busy = state.busy.saturating_sub(1);
        let Some(worker) = open.worker.filter(|_| keeps && !state.stopping) else {
            return Next::End;
        };
        if state.idle.len() >= IDLE_MAX {
            state.idle.remove(0);
        }
        let (turn, wait) = oneshot::channel();
        state.idle.push(Idle {
            turn,
            worker,
            since: Instant::now(),
        });
        Next::Wait(wait)
    }

    /// A WebSocket has ended.
    pub(super) fn close(&self, client: &Client) {
        self.lock().open.remove(client);
    }

    /// A worker was given up, or has failed: then this is the client that it leaves without an answer.
    pub(super) fn lost(&self, worker: Id) -> Option<Client> {
        let mut state = self.lock();
        let mut all = state.open.iter();
        let is_its = |open: &Open| open.worker.as_ref().is_some_and(|one| one.id() == worker);
        let client = all.find(|(_, open)| is_its(open))?.0.clone();
        let open = state.open.remove(&client)?;
        if open.counts() {
            state.busy = state.busy.saturating_sub(1);
        }
        Some(client)
    }

    /// Closes idle connections that have grown old.
    pub(super) fn sweep(&self) {
        let mut state = self.lock();
        state
            .idle
            .retain(|idle| idle.since.elapsed() < IDLE_TIME && !idle.turn.is_closed());
    }

    /// No more requests come: idle connections are closed, and every `WebSocket`, whose frames would not come here any more.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.idle.clear();
        for open in state.open.values_mut() {
            if let Kind::Socket(way) = &mut open.kind {
                *way = None;
            }
        }
    }

    /// Whether that was said.
    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the first request of the first client that waits.
    fn startable(&mut self) -> Option<(Client, Job)> {
        while let Some(client) = self.waiting.pop_front() {
            let open = self.open.get_mut(&client);
            if let Some(job) = open.and_then(|open| open.ahead.pop_front()) {
                return Some((client, job));
            }
        }
        None
    }

    /// Gives a request to an idle worker or to a new one.
    fn start(&mut self, bridge: &Arc<Bridge>, client: Client, mut job: Job, workers: &mut Workers) {
        self.busy += 1;
        while let Some(idle) = self.idle.pop() {
            match idle.turn.send(job) {
                Ok(()) => return self.hand(client, Some(idle.worker)),
                Err(back) => job = back,
            }
        }
        let worker = workers.spawn(exchange::work(Arc::clone(bridge), job));
        self.hand(client, Some(worker));
    }

    /// Notes who has the request of a client.
    fn hand(&mut self, client: Client, worker: Option<AbortHandle>) {
        match self.open.entry(client) {
            Entry::Occupied(mut open) => open.get_mut().worker = worker,
            Entry::Vacant(place) => {
                place.insert(Open::new(worker));
            }
        }
    }
}

impl Open {
    fn new(worker: Option<AbortHandle>) -> Self {
        Self {
            worker,
            kind: Kind::Request,
            ahead: VecDeque::new(),
        }
    }

    /// Whether it counts for the concurrency.
    fn counts(&self) -> bool {
        matches!(self.kind, Kind::Request)
    }
}
