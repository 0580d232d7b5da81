//! Which workers there should be: who is started, drained and killed, and when a start is given up. It decides only, from what
//! it is told and the time it is given: no process, no clock, no log here.

use std::time::{Duration, Instant};

use super::super::plan::WORKERS_MAX;

/// The first pause before a worker that died is replaced. It doubles with each that dies young.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// The longest pause: a service that comes back by itself, a database say, should not be waited for much longer than that.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A worker that was ready for so long did not die of its start.
const LIVED: Duration = Duration::from_secs(10);

/// So many in a row that ended before they were ready are a crash loop.
pub(super) const FAILURES_MAX: u32 = 5;

/// A worker that is not ready after so long never will be. An application may load for a while.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// A worker, for good: numbers are given again, ids are not.
pub(super) type Id = u64;

/// Where a worker is in its life. Dead ones are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its process runs, or is about to.
    Starting,
    /// It serves.
    Ready,
    /// It finishes what it has.
    Stopping,
}

impl State {
    /// As `status` shows it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
        }
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Start a process for this worker, with this number (from 1, no other living worker has it).
    Start(Id, u32),
    /// Ask it to finish what it has, and end.
    Drain(Id),
    /// End it at once: it had its time.
    Kill(Id),
}

/// What the end of a worker means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It was asked to end.
    Asked,
    /// It served, and is replaced after this pause.
    Died(Duration),
    /// It never served; another is tried after this pause.
    Failed(Duration),
    /// New workers do not start, so the old ones stay.
    RollGivenUp,
    /// None starts, and none is left.
    CrashLoop,
}

#[derive(Debug)]
struct Worker {
    id: Id,
    number: u32,
    generation: u64,
    /// Replaced as soon as another is ready, though it is of this generation.
    retired: bool,
    state: State,
    /// In this state since.
    since: Instant,
    killed: bool,
}

/// The workers, and what is wanted of them.
#[derive(Debug)]
pub(super) struct Crew {
    workers: Vec<Worker>,
    wanted: u32,
    graceful_timeout: Duration,
    generation: u64,
    next: Id,
    /// In a row, since one was ready last.
    failures: u32,
    /// The pause after the next death.
    pause: Duration,
    /// No start before.
    not_before: Option<Instant>,
    stopping: bool,
    at_once: bool,
}

impl Crew {
    pub(super) fn new(wanted: u32, graceful_timeout: Duration) -> Self {
        Self {
            workers: Vec::new(),
            wanted: wanted.min(WORKERS_MAX),
            graceful_timeout,
            generation: 0,
            next: 0,
            failures: 0,
            pause: PAUSE_FIRST,
            not_before: None,
            stopping: false,
            at_once: false,
        }
    }

    /// How many there should be.
    pub(super) fn wanted(&self) -> u32 {
        self.wanted
    }

    /// So many from now on; at least one. Says how many that is.
    pub(super) fn scale(&mut self, wanted: u32) -> u32 {
        if !self.stopping {
            self.wanted = wanted.clamp(1, WORKERS_MAX);
        }
        self.wanted
    }

    pub(super) fn set_graceful_timeout(&mut self, timeout: Duration) {
        self.graceful_timeout = timeout;
    }

    /// Replaces all of them, one by one.
    pub(super) fn roll(&mut self) {
        self.generation += 1;
        // A new start is worth trying at once.
        self.failures = 0;
        self.pause = PAUSE_FIRST;
        self.not_before = None;
    }

    /// Replaces one of them; false when that is being done.
    pub(super) fn retire(&mut self, id: Id) -> bool {
        let generation = self.generation;
        self.worker(id).is_some_and(|worker| {
            let is_new =
                worker.generation == generation && worker.state == State::Ready && !worker.retired;
            worker.retired |= is_new;
            is_new
        })
    }

    /// Ends all of them.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Ends all of them without waiting any longer.
    pub(super) fn stop_at_once(&mut self) {
        self.stopping = true;
        self.at_once = true;
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether nobody is left.
    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Whether as many are ready as should be, and none of them is old.
    pub(super) fn is_settled(&self) -> bool {
        let fresh = |worker: &&Worker| worker.state == State::Ready && !self.is_stale(worker);
        self.workers.iter().filter(fresh).count() == self.wanted as usize
            && !self
                .workers
                .iter()
                .any(|worker| worker.state != State::Stopping && self.is_stale(worker))
    }

    /// Where a worker is in its life.
    pub(super) fn state(&self, id: Id) -> Option<State> {
        let worker = self.workers.iter().find(|worker| worker.id == id);
        worker.map(|worker| worker.state)
    }

    /// A worker serves.
    pub(super) fn ready(&mut self, id: Id, now: Instant) -> bool {
        let Some(worker) = self.worker(id) else {
            return false;
        };
        if worker.state != State::Starting {
            return false;
        }
        worker.state = State::Ready;
        worker.since = now;
        self.failures = 0;
        true
    }

    /// A worker's process has ended, or could not be started.
    pub(super) fn ended(&mut self, id: Id, now: Instant) -> Meaning {
        let Some(at) = self.workers.iter().position(|worker| worker.id == id) else {
            return Meaning::Asked;
        };
        let worker = self.workers.swap_remove(at);
        let lived =
            worker.state == State::Ready && now.saturating_duration_since(worker.since) >= LIVED;
        if worker.state == State::Stopping || self.stopping {
            return Meaning::Asked;
        }
        if lived {
            self.pause = PAUSE_FIRST;
        }
        let pause = self.pause;
        self.pause = PAUSE_MAX.min(pause * 2);
        self.not_before = Some(now + pause);
        if worker.state == State::Ready {
            return Meaning::Died(pause);
        }
        self.failures += 1;
        if self.failures < FAILURES_MAX {
            return Meaning::Failed(pause);
        }
        let ready = |worker: &Worker| worker.state == State::Ready;
        if !self.workers.iter().any(ready) {
            self.stopping = true;
            return Meaning::CrashLoop;
        }
        let stale = |worker: &Worker| ready(worker) && self.is_stale(worker);
        if !self.workers.iter().any(stale) {
            // Some serve, and more are wanted: that is tried on.
            return Meaning::Failed(pause);
        }
        self.failures = 0;
        for worker in &mut self.workers {
            worker.generation = self.generation;
            worker.retired = false;
        }
        Meaning::RollGivenUp
    }

    /// What is to be done. Until it is called again, [`Crew::wake`] says when.
    pub(super) fn step(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.end_late_ones(now, &mut actions);
        if self.stopping {
            self.drain_where(now, usize::MAX, &mut actions, |_| true);
            return actions;
        }
        let wanted = self.wanted as usize;
        let generation = self.generation;
        let stale = move |worker: &Worker| worker.generation != generation || worker.retired;
        // Those that are not ready are no loss.
        self.drain_where(now, usize::MAX, &mut actions, |worker| {
            worker.state == State::Starting && stale(worker)
        });
        let count = |crew: &Self, which: &dyn Fn(&Worker) -> bool| {
            let live = crew.workers.iter().filter(|w| w.state != State::Stopping);
            live.filter(|worker| which(worker)).count()
        };
        // Too many: the old ones first, then those that are not ready yet, then the youngest.
        let ready = count(self, &|worker| worker.state == State::Ready);
        let spare = ready.saturating_sub(wanted);
        let drained = self.drain_where(now, spare, &mut actions, stale);
        self.drain_where(now, spare - drained, &mut actions, |_| true);
        let starting = count(self, &|worker| worker.state == State::Starting);
        let unneeded = (count(self, &|_| true)).saturating_sub(wanted + 1);
        self.drain_where(now, unneeded.min(starting), &mut actions, |worker| {
            worker.state == State::Starting
        });
        if self.not_before.is_some_and(|when| now < when) {
            return actions;
        }
        self.not_before = None;
        let live = count(self, &|_| true);
        let fresh = count(self, &|worker| !stale(worker));
        let starting = count(self, &|worker| worker.state == State::Starting);
        let stopping = self.workers.len() - live;
        let mut starts = wanted.saturating_sub(live);
        // One more than wanted takes the place of an old one. Those that were replaced and take their time are bounded, so that
        // a reload every second does not fill the machine.
        if starts == 0 && live == wanted && fresh < wanted && starting == 0 && stopping < wanted {
            starts = 1;
        }
        // After a failure one at a time is tried.
        if self.failures > 0 {
            starts = starts.min(usize::from(starting == 0));
        }
        // Whatever is asked for in a hurry, there is an end to processes that are not gone yet.
        let room = (3 * wanted + 1).saturating_sub(self.workers.len());
        for _ in 0..starts.min(room) {
            actions.push(self.start(now));
        }
        actions
    }

    /// When [`Crew::step`] will have something to do though nothing has happened.
    pub(super) fn wake(&self) -> Option<Instant> {
        let deadlines = self.workers.iter().filter_map(|worker| {
            let time = self.time(worker.state)?;
            (!worker.killed).then_some(worker.since.checked_add(time)?)
        });
        let starts = self.not_before.filter(|_| !self.stopping);
        deadlines.chain(starts).min()
    }

    fn worker(&mut self, id: Id) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.id == id)
    }

    fn is_stale(&self, worker: &Worker) -> bool {
        worker.generation != self.generation || worker.retired
    }

    /// How long a worker may be in a state.
    fn time(&self, state: State) -> Option<Duration> {
        match state {
            State::Starting => Some(START_TIMEOUT),
            State::Ready => None,
            State::Stopping if self.at_once => Some(Duration::ZERO),
            State::Stopping => Some(self.graceful_timeout),
        }
    }

    fn end_late_ones(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let times: Vec<_> = self
            .workers
            .iter()
            .map(|worker| self.time(worker.state))
            .collect();
        for (worker, time) in self.workers.iter_mut().zip(times) {
            let is_late =
                time.is_some_and(|time| now.saturating_duration_since(worker.since) >= time);
            if (is_late || self.at_once) && !worker.killed {
                worker.killed = true;
                actions.push(Action::Kill(worker.id));
            }
        }
    }

    /// Drains at most `most` of those that are not stopping yet, the youngest first where they are of one kind.
    fn drain_where(
        &mut self,
        now: Instant,
        most: usize,
        actions: &mut Vec<Action>,
        which: impl Fn(&Worker) -> bool,
    ) -> usize {
        let mut drained = 0;
        let mut order: Vec<usize> = (0..self.workers.len()).collect();
        order.sort_by_key(|&at| {
            self.workers
                .get(at)
                .map(|w| (w.generation, std::cmp::Reverse(w.number)))
        });
        for at in order {
            let Some(worker) = self.workers.get_mut(at) else {
                continue;
            };
            if drained < most && worker.state != State::Stopping && which(worker) {
                worker.state = State::Stopping;
                worker.since = now;
                if !worker.killed {
                    actions.push(Action::Drain(worker.id));
                }
                drained += 1;
            }
        }
        drained
    }

    fn start(&mut self, now: Instant) -> Action {
        let is_free = |number: &u32| self.workers.iter().all(|worker| worker.number != *number);
        let number = (1..=u32::MAX).find(is_free).unwrap_or(u32::MAX);
        let id = self.next;
        self.next += 1;
        self.workers.push(Worker {
            id,
            number,
            generation: self.generation,
            retired: false,
            state: State::Starting,
            since: now,
            killed: false,
        });
        Action::Start(id, number)
    }
}

#[cfg(test)]
mod tests;
