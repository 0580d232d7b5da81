//! The requests of a balancer: how they come, wait, are handed over and end.
//!
//! What happens to them when a worker dies is in `loss`, what time does to them in `time`, who gets them in `choose`.

use std::time::{Duration, Instant};

use slab::Slab;

use super::list::{Linked, Links, NONE};
use super::{
    Assignment, Balancer, Failure, NewRequest, Order, Phase, Refusal, Request, Retry, Sticky,
    Worker,
};

/// The average of times in flight follows new ones by this share.
const MEAN_GAIN: f64 = 1.0 / 32.0;

/// Nobody is told to come again sooner, or later.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);

/// What is told is up to this share more than what is expected.
const RETRY_JITTER: f64 = 0.5;

/// What is known of a request.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) serial: u32,
    pub(super) state: State,
    pub(super) links: Links,
    /// Its place among those that wait.
    pub(super) order: i64,
    pub(super) bytes: usize,
    pub(super) retry: Retry,
    pub(super) key: Option<u64>,
    pub(super) deadline: Option<Instant>,
    /// Since when it waits, or had waited when it was handed over.
    pub(super) since: Instant,
    pub(super) handed_at: Instant,
    /// How often it was handed over.
    pub(super) attempts: u8,
    /// How many workers died that had begun with it, and how many that had not.
    pub(super) deaths: u8,
    pub(super) moves: u8,
    /// How many workers it may have killed.
    pub(super) suspicions: u8,
    /// The time that is set for it.
    pub(super) timer: Option<Instant>,
}

/// Where a request is, with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// For any worker, in the queue.
    Waiting,
    /// For this worker alone, in its list.
    Strict(u32),
    Handed(u32),
    Begun(u32),
    Attached(u32),
    /// Failed, and nobody has said that the worker is done with it.
    Over(u32),
    Failed,
}

impl State {
    /// The worker that has it.
    pub(super) fn holder(self) -> Option<u32> {
        match self {
            Self::Handed(worker)
            | Self::Begun(worker)
            | Self::Attached(worker)
            | Self::Over(worker) => Some(worker),
            Self::Waiting | Self::Strict(_) | Self::Failed => None,
        }
    }

    pub(super) fn waits(self) -> bool {
        matches!(self, Self::Waiting | Self::Strict(_))
    }

    /// Whether it takes a slot of its worker.
    pub(super) fn is_in_flight(self) -> bool {
        matches!(self, Self::Handed(_) | Self::Begun(_) | Self::Over(_))
    }
}

/// All requests, by index.
#[derive(Debug, Default)]
pub(super) struct Requests(Slab<Open>);

impl Requests {
    pub(super) fn get(&self, index: u32) -> Option<&Open> {
        self.0.get(index as usize)
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Open> {
        self.0.get_mut(index as usize)
    }

    pub(super) fn find(&self, request: Request) -> Option<&Open> {
        self.get(request.index)
            .filter(|open| open.serial == request.serial)
    }

    pub(super) fn find_mut(&mut self, request: Request) -> Option<&mut Open> {
        self.get_mut(request.index)
            .filter(|open| open.serial == request.serial)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Open)> {
        let all = self.0.iter();
        all.map(|(index, open)| (u32::try_from(index).unwrap_or(NONE), open))
    }

    /// Whether this is the time that is set for the request.
    pub(super) fn is_set(&self, at: Instant, (index, serial): (u32, u32)) -> bool {
        self.get(index)
            .is_some_and(|open| open.serial == serial && open.timer == Some(at))
    }
}

impl Linked for Requests {
    fn links(&mut self, index: u32) -> Option<&mut Links> {
        self.get_mut(index).map(|open| &mut open.links)
    }
}

impl Balancer {
    /// A request comes. It waits now; ask [`Balancer::next`] who gets it.
    ///
    /// # Errors
    ///
    /// When it cannot be given to a worker at once and the queue is full, or it would wait for longer than is left, if the rules
    /// want that, or its deadline is over. Nothing is known of it then.
    pub fn submit(&mut self, request: NewRequest, now: Instant) -> Result<Request, Refusal> {
        let now = self.pass(now);
        if let Err(why) = self.admit(&request, now) {
            let retry_after = self.retry_after(now);
            return Err(Refusal { why, retry_after });
        }
        self.counts.accepted += 1;
        self.budget.submitted(now);
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        let order = self.order_back;
        self.order_back += 1;
        let index = self.requests.0.insert(Open {
            serial,
            state: State::Failed,
            links: Links::default(),
            order,
            bytes: request.bytes,
            retry: request.retry,
            key: request.key,
            deadline: request.deadline,
            since: now,
            handed_at: now,
            attempts: 0,
            deaths: 0,
            moves: 0,
            suspicions: 0,
            timer: None,
        });
        let index = u32::try_from(index).unwrap_or(NONE);
        if self.deserted_since.is_none() && self.present == 0 {
            self.deserted_since = Some(now);
        }
        self.wait(index);
        Ok(Request { index, serial })
    }

    /// Whether a request may come in; counts what may not.
    fn admit(&mut self, request: &NewRequest, now: Instant) -> Result<(), Failure> {
        let left = request
            .deadline
            .map(|deadline| deadline.saturating_duration_since(now));
        if left.is_some_and(|left| left.is_zero()) {
            self.counts.fail(Failure::DeadlineOver, false);
            return Err(Failure::DeadlineOver);
        }
        let home = self.strict_home(request.key);
        let at_once = match home {
            Some(home) => self.ready.contains(home) && self.wait_for(home) == 0,
            None => self.queue.is_empty() && self.has_room(),
        };
        if at_once {
            return Ok(());
        }
        let bytes = self.waiting_bytes.saturating_add(request.bytes);
        let why = if self.waiting >= self.queue_max() || bytes > self.rules.queue_bytes_max {
            Failure::QueueFull
        } else if self.present == 0 && self.rules.start_grace.is_zero() {
            Failure::NoWorker
        } else if self.rules.wait_max.is_zero() {
            Failure::WaitOver
        } else if self.rules.shed_late
            && let (Some(left), Some(wait)) = (left, self.wait_at(home, now))
            && wait > left
        {
            self.counts.shed_late += 1;
            return Err(Failure::DeadlineOver);
        } else {
            return Ok(());
        };
        self.counts.fail(why, false);
        Err(why)
    }

    /// How many wait for this worker alone.
    fn wait_for(&self, index: u32) -> usize {
        let entry = self.workers.get(index as usize);
        entry.map_or(0, |entry| entry.strict.len)
    }

    /// Most requests that may wait now.
    pub fn queue_max(&self) -> usize {
        let by_slots = self.rules.queue_per_slot.zip(self.slots_known);
        match by_slots {
            // Workers that take nothing at the moment say nothing of how long that lasts.
            Some((per_slot, slots)) if self.present > 0 && slots > 0 => slots
                .saturating_mul(per_slot as usize)
                .min(self.rules.queue_max),
            _ => self.rules.queue_max,
        }
    }

    /// How long a request that comes now would wait, as far as can be told from how long the last ones took.
    pub fn expected_wait(&self, now: Instant) -> Option<Duration> {
        self.wait_at(None, now)
    }

    /// The same for a request that wants one worker.
    fn wait_at(&self, home: Option<u32>, now: Instant) -> Option<Duration> {
        let home = home.and_then(|index| self.workers.get(index as usize));
        let (before, in_flight) = match home {
            Some(home) => (home.strict.len, home.open),
            None => (self.waiting, self.in_flight),
        };
        if in_flight == 0 {
            return None;
        }
        // When nothing has moved for longer than a request takes, they take so long now.
        let still = self
            .progress_at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let flight = self.mean_flight?.max(still.as_secs_f64());
        let gap = flight / f64::from(in_flight);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let wait = (before as f64 + 1.0) * gap;
        Some(Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX))
    }

    /// When somebody who gets no answer now may try again: what the queue will take, and up to half as much by chance, within a
    /// second and a minute.
    pub fn retry_after(&mut self, now: Instant) -> Duration {
        let wait = self.expected_wait(now).unwrap_or_default();
        let wait = wait.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX);
        wait.mul_f64(1.0 + RETRY_JITTER * self.random.fraction())
            .min(RETRY_AFTER_MAX)
    }

    /// Hands a request to a worker, where it then is in flight. `None` when nothing waits, or nobody takes what does. To be asked
    /// again until it says so whenever anything has happened.
    pub fn next(&mut self, now: Instant) -> Option<Assignment> {
        let now = self.pass(now);
        let head = self.head(now);
        if self.waiting == 0 {
            return None;
        }
        let (index, worker) = match self.called_for(head) {
            Some(pair) => pair,
            None => (head?, self.choose(self.requests.get(head?)?.key)?),
        };
        // Anything but the head of the queue, from the queue, is the youngest.
        if head == Some(index) && index != self.queue.head {
            self.counts.youngest_first += 1;
        }
        self.unlink(index);
        self.counts.handed += 1;
        self.in_flight += 1;
        self.progress_at = Some(now);
        let turn = self.next_turn();
        let entry = self.workers.get_mut(worker as usize)?;
        entry.open += 1;
        entry.turn = turn;
        entry.held.push_back(&mut self.requests, index);
        let generation = entry.generation;
        let open = self.requests.get_mut(index)?;
        open.state = State::Handed(worker);
        open.handed_at = now;
        open.attempts = open.attempts.saturating_add(1);
        self.waits.add(now.saturating_duration_since(open.since));
        let assignment = Assignment {
            request: Request {
                index,
                serial: open.serial,
            },
            worker: Worker {
                index: worker,
                generation,
            },
            attempt: open.attempts,
        };
        self.arm(index);
        self.enlist(worker);
        Some(assignment)
    }

    /// The request in the queue that is next, if it waits for any worker.
    fn head(&mut self, now: Instant) -> Option<u32> {
        let oldest = self.requests.get(self.queue.head);
        if let Order::AdaptiveLifo { target } = self.rules.order {
            let age = oldest.map(|open| now.saturating_duration_since(open.since));
            if self.overload.look(age, target, now) && oldest?.order >= 0 {
                return Some(self.queue.tail);
            }
        }
        oldest.map(|_| self.queue.head)
    }

    /// The request was not written to its worker: it is at the head of the queue again, and this attempt does not count. Of
    /// several, the youngest is to be told first. The worker gets the next one unless its standing is changed before.
    pub fn unsent(&mut self, request: Request, now: Instant) {
        let now = self.pass(now);
        let Some(open) = self.requests.find_mut(request) else {
            return;
        };
        match open.state {
            State::Handed(worker) => {
                open.attempts = open.attempts.saturating_sub(1);
                // The time that it lay before a worker that did not read is not one that it waited for one.
                open.since += now.saturating_duration_since(open.handed_at);
                self.counts.unsent += 1;
                if let Some(entry) = self.workers.get_mut(worker as usize) {
                    entry.unsent += 1;
                }
                self.release(request.index, worker);
                self.wait_first(request.index);
            }
            State::Over(worker) => {
                self.release(request.index, worker);
                self.set_state(request.index, State::Failed);
            }
            _ => return,
        }
        self.progress_at = Some(now);
    }

    /// Its worker has begun with the request: it has said so, or the first byte of an answer has come.
    pub fn began(&mut self, request: Request) {
        if let Some(open) = self.requests.find_mut(request)
            && let State::Handed(worker) = open.state
        {
            open.state = State::Begun(worker);
        }
    }

    /// Whether the request may be begun twice has changed.
    pub fn set_retry(&mut self, request: Request, retry: Retry) {
        if let Some(open) = self.requests.find_mut(request) {
            open.retry = retry;
        }
    }

    /// The response has become a stream: the request takes no slot any more, and has no deadline.
    pub fn attach(&mut self, request: Request, now: Instant) {
        self.free(request, now);
        self.lift_deadline(request);
    }

    /// The answer has begun, or is not waited for by anybody: the request has no deadline any more.
    pub fn lift_deadline(&mut self, request: Request) {
        if let Some(open) = self.requests.find_mut(request) {
            open.deadline = None;
            self.arm(request.index);
        }
    }

    /// Its worker is done with the request, though it has not ended: it takes no slot any more. Its deadline holds.
    pub fn free(&mut self, request: Request, now: Instant) {
        let now = self.pass(now);
        let Some(open) = self.requests.find_mut(request) else {
            return;
        };
        let (State::Handed(worker) | State::Begun(worker)) = open.state else {
            return;
        };
        open.state = State::Attached(worker);
        let flight = now.saturating_duration_since(open.handed_at);
        self.flown(flight, now);
        self.relieve(worker);
        if let Some(entry) = self.workers.get_mut(worker as usize) {
            entry.attached = entry.attached.saturating_add(1);
        }
        self.arm(request.index);
        self.enlist(worker);
    }

    /// The request has ended, in whatever phase: it was answered, its client is gone, its failure was told. `service` is how long
    /// its worker worked on it, if that is known ([`Balancer::held_for`] is not far from it where the worker does not say).
    pub fn end(&mut self, request: Request, now: Instant, service: Option<Duration>) {
        let now = self.pass(now);
        let Some(open) = self.requests.find(request) else {
            return;
        };
        let (state, handed_at) = (open.state, open.handed_at);
        match state {
            State::Waiting | State::Strict(_) => {
                self.counts.withdrawn += 1;
                self.unlink(request.index);
            }
            State::Failed => {}
            State::Handed(worker)
            | State::Begun(worker)
            | State::Over(worker)
            | State::Attached(worker) => {
                if state.is_in_flight() {
                    self.flown(now.saturating_duration_since(handed_at), now);
                }
                if !matches!(state, State::Over(_)) {
                    self.counts.served += 1;
                }
                self.served_one(worker, service, now);
                self.release(request.index, worker);
            }
        }
        self.requests.0.try_remove(request.index());
        if self.timers.is_dusty(self.requests.len()) {
            let requests = &self.requests;
            self.timers.sweep(|at, whose| requests.is_set(at, whose));
        }
    }

    /// Nobody wants the answer any more, but the worker may still be at it: when it has the request, that stays in flight until it
    /// is ended, and true is said. Otherwise it has ended now.
    pub fn abandon(&mut self, request: Request, now: Instant) -> bool {
        let Some(open) = self.requests.find_mut(request) else {
            return false;
        };
        match open.state {
            State::Handed(worker) | State::Begun(worker) | State::Over(worker) => {
                open.state = State::Over(worker);
                self.arm(request.index);
                true
            }
            _ => {
                self.end(request, now, None);
                false
            }
        }
    }

    /// Fails everything that waits; the oldest first.
    pub fn fail_waiting(&mut self, why: Failure) -> Vec<Request> {
        let mut waiting: Vec<(i64, Request)> = self
            .requests
            .iter()
            .filter(|(_, open)| open.state.waits())
            .map(|(index, open)| {
                let serial = open.serial;
                (open.order, Request { index, serial })
            })
            .collect();
        waiting.sort_unstable();
        for (_, request) in &waiting {
            self.fail(request.index, why);
        }
        waiting.into_iter().map(|(_, request)| request).collect()
    }

    /// The worker that has the request, also when it was failed meanwhile.
    pub fn worker_of(&self, request: Request) -> Option<Worker> {
        let holder = self.requests.find(request)?.state.holder()?;
        self.key_of(holder)
    }

    /// Where the request is; `None` when it has ended.
    pub fn phase(&self, request: Request) -> Option<Phase> {
        Some(match self.requests.find(request)?.state {
            State::Waiting | State::Strict(_) => Phase::Waiting,
            State::Handed(_) => Phase::Handed,
            State::Begun(_) => Phase::Begun,
            State::Attached(_) => Phase::Attached,
            State::Over(_) | State::Failed => Phase::Failed,
        })
    }

    /// How often the request was handed over, as in the last [`Assignment`]: an answer to an earlier attempt comes too late.
    pub fn attempt(&self, request: Request) -> Option<u8> {
        self.requests.find(request).map(|open| open.attempts)
    }

    /// The deadline of the request.
    pub fn deadline(&self, request: Request) -> Option<Instant> {
        self.requests.find(request)?.deadline
    }

    /// How long its worker has had the request.
    pub fn held_for(&self, request: Request, now: Instant) -> Option<Duration> {
        let open = self.requests.find(request)?;
        open.state.holder()?;
        Some(now.saturating_duration_since(open.handed_at))
    }

    /// Puts a request to those that wait, at its place in the order behind all others.
    pub(super) fn wait(&mut self, index: u32) {
        let Some(open) = self.requests.get_mut(index) else {
            return;
        };
        self.waiting += 1;
        self.waiting_bytes += open.bytes;
        let key = open.key;
        self.link(index, self.strict_home(key));
        self.arm(index);
    }

    /// Puts a request before all others that wait.
    pub(super) fn wait_first(&mut self, index: u32) {
        let order = self.order_front;
        self.order_front -= 1;
        if let Some(open) = self.requests.get_mut(index) {
            open.order = order;
        }
        self.wait(index);
    }

    /// Puts a request that waits into its list: to the front if its order is from there, else to the back.
    pub(super) fn link(&mut self, index: u32, home: Option<u32>) {
        let Some(open) = self.requests.get_mut(index) else {
            return;
        };
        let first = open.order < 0;
        let entry = home.and_then(|home| self.workers.get_mut(home as usize));
        let list = match entry {
            Some(entry) => &mut entry.strict,
            None => &mut self.queue,
        };
        if first {
            list.push_front(&mut self.requests, index);
        } else {
            list.push_back(&mut self.requests, index);
        }
        self.set_state(index, home.map_or(State::Waiting, State::Strict));
        if let Some(home) = home {
            self.enlist(home);
        }
    }

    /// Takes a request from those that wait.
    pub(super) fn unlink(&mut self, index: u32) {
        let Some(open) = self.requests.get(index) else {
            return;
        };
        self.waiting -= 1;
        self.waiting_bytes -= open.bytes;
        match open.state {
            State::Strict(home) => {
                if let Some(entry) = self.workers.get_mut(home as usize) {
                    entry.strict.remove(&mut self.requests, index);
                }
            }
            _ => self.queue.remove(&mut self.requests, index),
        }
    }

    /// Takes a request from the worker that has it.
    pub(super) fn release(&mut self, index: u32, worker: u32) {
        let Some(open) = self.requests.get(index) else {
            return;
        };
        let in_flight = open.state.is_in_flight();
        if let Some(entry) = self.workers.get_mut(worker as usize) {
            entry.held.remove(&mut self.requests, index);
            if !in_flight {
                entry.attached = entry.attached.saturating_sub(1);
            }
        }
        if in_flight {
            self.relieve(worker);
        }
        self.enlist(worker);
    }

    pub(super) fn set_state(&mut self, index: u32, state: State) {
        if let Some(open) = self.requests.get_mut(index) {
            open.state = state;
        }
    }

    /// Fails a request that waits, or leaves one over at its worker, unless that is done with it. It is known until it is ended.
    pub(super) fn fail(&mut self, index: u32, why: Failure) {
        let Some(open) = self.requests.get(index) else {
            return;
        };
        let state = open.state;
        let holder = state.holder();
        self.counts.fail(why, holder.is_some());
        if let Some(entry) = holder.and_then(|worker| self.workers.get_mut(worker as usize)) {
            entry.overdue += u64::from(why == Failure::DeadlineOver);
        }
        if state.waits() {
            self.unlink(index);
        }
        if let State::Attached(worker) = state {
            self.release(index, worker);
            self.set_state(index, State::Failed);
        } else {
            self.set_state(index, holder.map_or(State::Failed, State::Over));
        }
        self.arm(index);
    }

    /// A request was in flight for so long.
    fn flown(&mut self, flight: Duration, now: Instant) {
        let flight = flight.as_secs_f64();
        let mean = self.mean_flight.unwrap_or(flight);
        self.mean_flight = Some(mean + (flight - mean) * MEAN_GAIN);
        self.progress_at = Some(now);
    }

    /// The time until which a request waits for the worker of its key, if it does.
    pub(super) fn strict_until(&self, open: &Open) -> Option<Instant> {
        let Some(Sticky {
            strict: Some(strict),
            ..
        }) = self.rules.sticky
        else {
            return None;
        };
        open.since.checked_add(strict)
    }
}
