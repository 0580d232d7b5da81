//! Who gets the next request, and what becomes of it when that goes wrong: the least busy worker, late, when a slot is free.
//!
//! Pure: no I/O, no clock (time is given in), no knowledge of messages. A [`Balancer`] has the workers and the requests of one pool;
//! who uses it says what happened ([`Balancer::submit`], [`Balancer::began`], [`Balancer::end`], [`Balancer::lost`], …), asks
//! [`Balancer::next`] until it gives nothing more, and calls [`Balancer::tick`] when [`Balancer::due`] says so. Each request that was
//! accepted is known by its key until [`Balancer::end`]; each fails at most once, and says why.
//!
//! * **Who**: a worker has *slots*, and may hold a little more if a hop is long against its work ([`Balancer::credit`]). Of those with
//!   room the one with the least in flight is taken, in relation to slots and weight where these differ, and the longest idle
//!   among equals. A request waits in one queue until then, and not at a worker. Counts are exact, so there is no chance in it.
//! * **In flight** is what was handed over and has not ended; a response that has become a stream is *attached* and takes no slot.
//! * **When a worker dies**, what it had not begun goes back to the head of the queue; what it had goes to another if that
//!   is safe, seldom enough, and did not kill two; the rest fails at once. A silent worker gets nothing and is dead after a while.
//! * **Bounds**: the queue is bounded in requests, bytes and age, what comes to a full one is refused, and told when to come again.
//!   Requests that came back to the queue are not refused: it can exceed its bounds by what was in flight.
//! * **By key**: requests of one key go to one worker while it is not much busier than the others ([`Sticky`]).
//!
//! Each operation costs the logarithm of the number of workers at most, and allocates nothing once tables have grown; exceptions are
//! requests by key, which look at all workers, and whatever is said of a worker, which may look at all it has or all that wait.

mod budget;
mod choose;
mod counts;
mod histogram;
#[cfg(test)]
mod invariants;
mod list;
mod loss;
mod outliers;
mod overload;
mod random;
mod ready;
mod rendezvous;
mod requests;
mod rules;
mod service;
mod time;
mod timers;
mod workers;

#[cfg(test)]
mod failure_tests;
#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod statistics;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use slab::Slab;

pub use counts::Counts;
pub use histogram::{BOUNDS, Histogram};
pub use loss::{Fate, Lost};
pub use rules::{Order, Outlier, Rules, Sticky, Tie};
pub use service::Durations;

use budget::Budget;
use list::List;
use overload::Overload;
use random::Random;
use ready::Ready;
use requests::Requests;
use timers::Timers;
use workers::Entry;

/// Names a worker in its balancer. One that was removed is never mistaken for one that came later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker {
    index: u32,
    generation: u32,
}

impl Worker {
    /// A small number, unique among the workers that are there: an index for tables beside the balancer.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// Names a request in its balancer, from [`Balancer::submit`] to [`Balancer::end`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    index: u32,
    serial: u32,
}

impl Request {
    /// A small number, unique among the requests that have not ended: an index for tables beside the balancer.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// Tells apart requests that have the same index one after the other.
    pub fn serial(self) -> u32 {
        self.serial
    }

    /// The key with this index and serial number, as somebody else has kept it. It names a request only if it did before.
    pub fn from_parts(index: u32, serial: u32) -> Self {
        Self { index, serial }
    }
}

/// Whether a worker may get requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Gets requests.
    Ready,
    /// Connected, but takes nothing now: not yet known to be able to answer, or its socket does not drain.
    Held,
    /// Silent: gets nothing, and is dead when that lasts ([`Rules::suspect_grace`]).
    Suspect,
    /// Wants no more; it finishes what it has.
    Draining,
}

/// Whether a request may be begun by a second worker when the first is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It may not.
    Never,
    /// It may: answering twice does no harm.
    Safe,
}

/// A worker that comes.
#[derive(Debug, Clone, Copy)]
pub struct NewWorker<'a> {
    /// What it is known by over its lives: keys belong to names.
    pub name: &'a [u8],
    /// How many requests it works on at once, if it says so.
    pub slots: Option<u32>,
    /// Its share in relation to others; zero counts as one.
    pub weight: u32,
    /// Whether it may get requests.
    pub standing: Standing,
    /// It says when it begins with a request: then what it has not begun can always go to another.
    pub tells_start: bool,
}

impl Default for NewWorker<'_> {
    fn default() -> Self {
        Self {
            name: b"",
            slots: None,
            weight: 1,
            standing: Standing::Ready,
            tells_start: false,
        }
    }
}

/// A request that comes.
#[derive(Debug, Clone, Copy)]
pub struct NewRequest {
    /// Its size, while it waits.
    pub bytes: usize,
    /// Whether it may be begun twice.
    pub retry: Retry,
    /// What binds it to a worker, if the rules do; well mixed or not.
    pub key: Option<u64>,
    /// When its answer is of no use any more.
    pub deadline: Option<Instant>,
}

impl Default for NewRequest {
    fn default() -> Self {
        Self {
            bytes: 0,
            retry: Retry::Never,
            key: None,
            deadline: None,
        }
    }
}

/// Why a request gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// All are busy, and too many requests wait already.
    #[error("too many requests are waiting")]
    QueueFull,
    /// It has waited for as long as it may.
    #[error("no worker took the request in time")]
    WaitOver,
    /// Nobody is there, and has not been for as long as a deploy may take.
    #[error("no worker is there")]
    NoWorker,
    /// Its deadline is over, or would be before its turn.
    #[error("the deadline is over")]
    DeadlineOver,
    /// The worker that had it is gone, and it may not be given to another.
    #[error("the worker was lost while it had the request")]
    WorkerLost,
    /// Workers died that had it, one after the other.
    #[error("workers were lost that had the request, one after the other")]
    Quarantined,
}

/// A request that is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    /// Why.
    pub why: Failure,
    /// When it is worth trying again: what the queue will take, and a random part more so that not all come at once.
    pub retry_after: Duration,
}

/// Who is to be given what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// What.
    pub request: Request,
    /// To whom.
    pub worker: Worker,
    /// The how manieth time it is handed over, from one; what never reached a worker is not counted.
    pub attempt: u8,
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// In the queue.
    Waiting,
    /// At a worker that has not begun with it, as far as is known.
    Handed,
    /// At a worker that has begun with it.
    Begun,
    /// Its response has become a stream.
    Attached,
    /// It was failed, and has not been ended yet. A worker may still be at it.
    Failed,
}

/// What time has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The request was failed. If a worker has it, it is in flight there until it is ended.
    Failed(Request, Failure),
    /// The worker was silent for too long: to be given to [`Balancer::lost`].
    Dead(Worker),
    /// The worker is much slower than the others and gets nothing for a while.
    Ejected(Worker),
    /// An ejected worker gets requests again.
    Returned(Worker),
}

/// The workers and requests of one pool. See the module.
#[derive(Debug)]
pub struct Balancer {
    rules: Rules,
    random: Random,
    /// The latest time that was told: time does not go back here, whatever callers say.
    now: Option<Instant>,

    workers: Slab<Entry>,
    generation: u32,
    ready: Ready,
    /// Counts what happens to workers; stands in for time where only the order matters.
    turn: u64,
    /// Workers that are not draining.
    present: u32,
    /// Since when there is none of those.
    deserted_since: Option<Instant>,
    /// Slots of all that are present, if all say how many.
    slots_known: Option<usize>,
    /// Workers that are being brought up to their full share.
    ramping: Vec<Worker>,
    suspects: Vec<Worker>,
    ejected: Vec<Worker>,
    /// When workers are compared next.
    judge_at: Option<Instant>,
    /// What happened between two ticks.
    events: Vec<Event>,

    requests: Requests,
    serial: u32,
    /// Those that wait for any worker.
    queue: List,
    /// Workers with room for whom requests wait that want no other.
    called: VecDeque<u32>,
    /// The next number in the order at the head of the queue, and behind its tail.
    order_front: i64,
    order_back: i64,
    waiting: usize,
    waiting_bytes: usize,
    /// In flight at all workers together.
    in_flight: u32,
    timers: Timers,
    overload: Overload,
    budget: Budget,
    /// How long a request is in flight, in seconds, on average of the last few dozen.
    mean_flight: Option<f64>,
    /// When anything was last handed over or ended.
    progress_at: Option<Instant>,

    counts: Counts,
    waits: Durations,
    service: Durations,
}

impl Balancer {
    /// A balancer without workers. `seed` decides how retry times are spread, and nothing else.
    pub fn new(rules: Rules, seed: u64) -> Self {
        Self {
            rules,
            random: Random::new(seed),
            now: None,
            workers: Slab::new(),
            generation: 0,
            ready: Ready::default(),
            turn: 0,
            present: 0,
            deserted_since: None,
            slots_known: Some(0),
            ramping: Vec::new(),
            suspects: Vec::new(),
            ejected: Vec::new(),
            judge_at: None,
            events: Vec::new(),
            requests: Requests::default(),
            serial: 0,
            queue: List::default(),
            called: VecDeque::new(),
            order_front: -1,
            order_back: 0,
            waiting: 0,
            waiting_bytes: 0,
            in_flight: 0,
            timers: Timers::default(),
            overload: Overload::default(),
            budget: Budget::new(),
            mean_flight: None,
            progress_at: None,
            counts: Counts::default(),
            waits: Durations::default(),
            service: Durations::default(),
        }
    }

    /// The rules now.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Replaces the rules. What waits and what is in flight stays, and the new bounds and times hold for it.
    pub fn set_rules(&mut self, rules: Rules, now: Instant) {
        let now = self.pass(now);
        self.rules = rules;
        if self.rules.outlier.is_none() {
            self.judge_at = None;
            while let Some(worker) = self.ejected.first().copied() {
                self.readmit(worker, now);
            }
        }
        self.survey(now);
        self.enlist_all();
        self.sort_queue();
    }

    /// Time has passed; what the time is now.
    fn pass(&mut self, now: Instant) -> Instant {
        let now = self.now.map_or(now, |before| before.max(now));
        self.now = Some(now);
        now
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The bytes of those.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// How many requests are in flight at all workers together.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// How many workers there are, whatever their standing.
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Whether there is no worker at all.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Whether anybody would take a request now.
    pub fn has_room(&self) -> bool {
        self.ready.first().is_some()
    }

    /// The worker that is next for a request without a key.
    pub fn first(&self) -> Option<Worker> {
        self.ready.first().and_then(|rank| self.key_of(rank.worker))
    }

    /// What has happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How long requests waited that were handed over.
    pub fn waits(&self) -> &Durations {
        &self.waits
    }

    /// How long workers took, all together.
    pub fn service(&self) -> &Durations {
        &self.service
    }
}
