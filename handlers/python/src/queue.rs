//! Requests on their way to Python's threads: bounded, and in order for each client. It knows nothing of Python.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use lurcher::handler::{BodyReader, Client, Request, Upload};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use crate::turns;
use crate::wait::Bell;

/// Requests that wait for a thread, all together; more are answered 503. They cannot be left in the server: what belongs to open
/// ones (disconnects, credits, parts of bodies) comes behind them.
const WAITING_MAX: usize = 4_096;

/// Requests of one connection that wait for the one before. A Mongrel2 hands over all that a client pipelines; one that has sent more
/// is cut off.
const PIPELINED_MAX: usize = 64;

/// A request for an application.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// The number of its mount in the site.
    pub(crate) mount: usize,
    pub(crate) body: Body,
    /// Ends its time in the books when it is dropped.
    pub(crate) place: Option<Place>,
}

impl Job {
    pub(crate) fn new(request: Request, mount: usize, body: Body) -> Self {
        Self {
            request,
            mount,
            body,
            place: None,
        }
    }
}

/// Where the body of a request is.
pub(crate) enum Body {
    /// In the request.
    Whole,
    /// On its way, as it is asked for.
    Pieces(Box<BodyReader>),
    /// In a file of the server's.
    Stored(Box<Upload>),
}

/// Why a job was not taken.
pub(crate) enum Full {
    /// Too much waits: say so.
    Sorry(Box<Job>),
    /// Its client has too much, and another answer would be taken for that of an earlier request.
    Cut(Client),
}

/// First in, first out, to whichever thread comes first.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    there: Condvar,
    /// Rung for greenlets, where those take.
    bell: OnceLock<Bell>,
    idle: Notify,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Clients of which a job is waiting or at work.
    lines: FxHashMap<Client, Line>,
    /// Jobs in `jobs` and in lines.
    held: usize,
    /// Threads that wait.
    waiting: usize,
    /// The one that drives the runtime meanwhile.
    waker: Option<Waker>,
    closed: bool,
}

/// The jobs of one client.
struct Line {
    /// Whether the first one is being answered.
    claim: Claim,
    /// The further ones.
    behind: VecDeque<Job>,
}

/// The right to answer a request, which one has: its application, or at the end whoever gives it up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claim(Arc<AtomicBool>);

impl Claim {
    /// Takes it; false when somebody else has.
    pub(crate) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

impl Queue {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Rings this when there is something to take.
    pub(crate) fn tell(&self, bell: Bell) {
        drop(self.bell.set(bell));
        self.ring();
    }

    /// What is rung.
    pub(crate) fn bell(&self) -> Option<&Bell> {
        self.bell.get()
    }

    pub(crate) fn push(self: &Arc<Self>, mut job: Job) -> Result<(), Full> {
        let client = job.request.client();
        let mut state = self.lock();
        let full = state.held >= WAITING_MAX;
        match state.lines.get_mut(&client) {
            Some(line) if full || line.behind.len() >= PIPELINED_MAX => {
                return Err(Full::Cut(client));
            }
            Some(line) => {
                line.behind.push_back(job);
                state.held += 1;
                return Ok(());
            }
            None if full => return Err(Full::Sorry(Box::new(job))),
            None => {}
        }
        let line = Line {
            claim: Claim::default(),
            behind: VecDeque::new(),
        };
        job.place = Some(Place {
            queue: Arc::clone(self),
            client: client.clone(),
            claim: line.claim.clone(),
        });
        state.lines.insert(client, line);
        self.give(state, job);
        Ok(())
    }

    fn give(&self, mut state: MutexGuard<'_, State>, job: Job) {
        state.jobs.push_back(job);
        state.held += 1;
        let waited_for = state.waiting > 0;
        let waker = state.waker.take();
        drop(state);
        if waited_for {
            self.there.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        self.ring();
    }

    fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    /// Whether something of that client waits or is at work.
    pub(crate) fn has(&self, client: &Client) -> bool {
        self.lock().lines.contains_key(client)
    }

    /// A client has left: of what it has asked for, nothing more is begun.
    pub(crate) fn gone(&self, client: &Client) {
        let mut dropped = VecDeque::new();
        let mut state = self.lock();
        let Some(line) = state.lines.get_mut(client) else {
            return;
        };
        dropped.append(&mut line.behind);
        let waits = |job: &Job| {
            job.place
                .as_ref()
                .is_some_and(|place| place.client == *client)
        };
        if let Some(at) = state.jobs.iter().position(waits) {
            dropped.extend(state.jobs.remove(at));
        }
        state.held -= dropped.len();
        // Their end is told in here again.
        drop(state);
    }

    /// The time is up: the clients whose requests nobody has begun to answer. Nobody will any more.
    pub(crate) fn give_up(&self) -> Vec<Client> {
        let mut dropped = Vec::new();
        let mut state = self.lock();
        let mut left = Vec::new();
        for (client, line) in &mut state.lines {
            dropped.extend(line.behind.drain(..));
            if line.claim.take() {
                left.push(client.clone());
            }
        }
        dropped.extend(state.jobs.drain(..));
        state.held = 0;
        // Their end is told in here again.
        drop(state);
        left
    }

    /// No more will come: who waits is told when all has been taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.call_all();
    }

    fn call_all(&self) {
        self.there.notify_all();
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
        self.ring();
    }

    /// Whether nothing waits, and no more will come.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.lock();
        state.closed && state.held == 0
    }

    pub(crate) fn try_take(&self) -> Option<Job> {
        self.lock().take()
    }

    /// Waits for a job, without the interpreter's lock; none: there will be no more.
    pub(crate) fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.take() {
                return Some(job);
            }
            // What waits in lines comes when the job before has ended.
            if state.closed && state.held == 0 {
                return None;
            }
            state.waiting += 1;
            state = self
                .there
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
    }

    /// The same for a thread that drives the runtime meanwhile.
    pub(crate) fn poll_take(&self, cx: &Context<'_>) -> Poll<Option<Job>> {
        let mut state = self.lock();
        if let Some(job) = state.take() {
            return Poll::Ready(Some(job));
        }
        if state.closed && state.held == 0 {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits until nothing waits and nothing is at work.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.idle.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().lines.is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// A job of that client has ended: its next one may begin.
    fn ended(self: &Arc<Self>, client: &Client) {
        let mut state = self.lock();
        let line = state.lines.get_mut(client);
        let next = line.and_then(|line| {
            let next = line.behind.pop_front()?;
            line.claim = Claim::default();
            Some((next, line.claim.clone()))
        });
        if let Some((mut next, claim)) = next {
            state.held -= 1;
            next.place = Some(Place {
                queue: Arc::clone(self),
                client: client.clone(),
                claim,
            });
            self.give(state, next);
            return;
        }
        state.lines.remove(client);
        let idle = state.lines.is_empty();
        let closed = state.closed;
        drop(state);
        turns::left();
        if idle && closed {
            self.idle.notify_waiters();
            self.call_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.held -= 1;
        Some(job)
    }
}

/// What one job takes in the books of its queue.
pub(crate) struct Place {
    queue: Arc<Queue>,
    client: Client,
    pub(crate) claim: Claim,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.ended(&self.client);
    }
}
