//! The workers of a balancer: what is known of each, what it may hold, and where it stands among the others.

use std::time::{Duration, Instant};

use super::list::List;
use super::ready::Rank;
use super::service::Durations;
use super::{Balancer, NewWorker, Request, Standing, Tie, Worker, rendezvous};

/// Loads are compared in parts of a slot so small that different shares differ.
const LOAD_UNIT: u64 = 1 << 20;

/// Answers that must be known before a worker is given more than it has slots for.
const MEDIAN_SAMPLES: u32 = 8;

/// The median is looked up again after so many answers.
const MEDIAN_EVERY: u32 = 16;

/// A hop that is less than this part of the work costs less than what it would cost to bind a request to a worker early: without
/// this, rounding up would give each worker one more than it has slots for.
const HOP_WORTH: u128 = 20;

/// A worker that has just come is brought up to its full share in so many steps.
pub(super) const RAMP_STEPS: u32 = 16;

/// What is known of a worker.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) generation: u32,
    name: Box<[u8]>,
    /// The name as a number, and the weight in which it is looked up: what it said when it came, so that keys stay.
    pub(super) name_hash: u64,
    pub(super) key_weight: u32,
    pub(super) slots: Option<u32>,
    pub(super) weight: u32,
    pub(super) standing: Standing,
    pub(super) tells_start: bool,
    hop: Duration,
    /// In flight, and attached.
    pub(super) open: u32,
    pub(super) attached: u32,
    /// In flight there for somebody else.
    pub(super) foreign: u32,
    pub(super) turn: u64,
    /// The requests that it has, in flight or attached.
    pub(super) held: List,
    /// The requests that wait for it and for nobody else.
    pub(super) strict: List,
    /// It is in the list of those that were called.
    pub(super) called: bool,
    pub(super) service: Durations,
    /// Median of the service, and how many answers came since it was looked up.
    pub(super) median: Option<Duration>,
    median_age: u32,
    served: u64,
    /// Requests that did not reach it and went back, and those whose deadline was over while it had them.
    pub(super) unsent: u64,
    pub(super) overdue: u64,
    /// When it came, or came back, and how far it is since: [`RAMP_STEPS`] is all.
    pub(super) joined: Instant,
    pub(super) ramp: u32,
    /// Since when it is suspect, and whether its death was told.
    pub(super) suspect_since: Option<Instant>,
    pub(super) told_dead: bool,
    pub(super) ejected_until: Option<Instant>,
    pub(super) ejections: u32,
}

impl Entry {
    /// What it can do, for comparison with others.
    pub(super) fn capacity(&self, slots: Option<u32>) -> u64 {
        let slots = self.slots.or(slots).unwrap_or(1).max(1);
        // Whatever a worker says of itself, there is room for further factors.
        u64::from(self.weight.saturating_mul(slots))
    }

    /// How many of its slots are taken.
    pub(super) fn taken(&self) -> u32 {
        self.open.saturating_add(self.foreign)
    }

    /// Whether it belongs to those that share the work.
    pub(super) fn shares(&self) -> bool {
        self.standing == Standing::Ready && self.ejected_until.is_none()
    }

    /// Most requests in flight, if there is a wall.
    fn credit(&self, slots: Option<u32>, prefetch_max: u32) -> Option<u32> {
        let slots = self.slots.or(slots)?;
        if slots == 0 {
            return Some(0);
        }
        let slots = u32::try_from(
            (u64::from(slots) * u64::from(self.ramp)).div_ceil(u64::from(RAMP_STEPS)),
        )
        .unwrap_or(slots);
        let extra = self.median.map_or(0, |median| {
            let (hop, median) = (self.hop.as_nanos(), median.as_nanos().max(1));
            if hop * HOP_WORTH < median {
                return 0;
            }
            u32::try_from((hop * u128::from(slots)).div_ceil(median)).unwrap_or(u32::MAX)
        });
        Some(slots.saturating_add(extra.min(prefetch_max)))
    }

    /// A request of it has taken so long.
    fn took(&mut self, service: Duration) {
        self.service.add(service);
        self.median_age += 1;
        if self.service.weight() >= MEDIAN_SAMPLES
            && (self.median.is_none() || self.median_age >= MEDIAN_EVERY)
        {
            self.median = self.service.quantile(0.5);
            self.median_age = 0;
        }
    }
}

impl Balancer {
    /// A worker has come. It counts as idle for longer than those that were busy before.
    pub fn add(&mut self, worker: NewWorker<'_>, now: Instant) -> Worker {
        let now = self.pass(now);
        self.generation = self.generation.wrapping_add(1);
        let weight = worker.weight.max(1);
        let index = self.workers.insert(Entry {
            generation: self.generation,
            name: worker.name.into(),
            name_hash: rendezvous::name(worker.name),
            key_weight: weight.saturating_mul(worker.slots.unwrap_or(1).max(1)),
            slots: worker.slots,
            weight,
            standing: worker.standing,
            tells_start: worker.tells_start,
            hop: Duration::ZERO,
            open: 0,
            attached: 0,
            foreign: 0,
            turn: 0,
            held: List::default(),
            strict: List::default(),
            called: false,
            service: Durations::default(),
            median: None,
            median_age: 0,
            served: 0,
            unsent: 0,
            overdue: 0,
            joined: now,
            ramp: RAMP_STEPS,
            suspect_since: (worker.standing == Standing::Suspect).then_some(now),
            told_dead: false,
            ejected_until: None,
            ejections: 0,
        });
        let key = Worker {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            generation: self.generation,
        };
        if worker.standing == Standing::Suspect {
            self.suspects.push(key);
        }
        self.begin_ramp(key, now);
        self.survey(now);
        self.enlist(key.index);
        self.homes_changed();
        key
    }

    /// Whether a worker may get requests has changed. What it has stays with it, whatever its standing.
    pub fn set(&mut self, worker: Worker, standing: Standing, now: Instant) {
        let now = self.pass(now);
        let Some(entry) = self.entry_mut(worker) else {
            return;
        };
        let was = std::mem::replace(&mut entry.standing, standing);
        if was == standing {
            return;
        }
        entry.suspect_since = (standing == Standing::Suspect).then_some(now);
        entry.told_dead = false;
        if standing == Standing::Suspect {
            self.suspects.push(worker);
        } else if was == Standing::Suspect {
            self.suspects.retain(|suspect| *suspect != worker);
        }
        self.survey(now);
        self.enlist(worker.index);
        if was == Standing::Draining || standing == Standing::Draining {
            self.homes_changed();
        }
        self.guard(now);
    }

    /// Whether the worker may get requests; `None` when it is not there.
    pub fn standing(&self, worker: Worker) -> Option<Standing> {
        self.entry(worker).map(|entry| entry.standing)
    }

    /// The worker says anew how many requests it works on at once. One that has more keeps them.
    pub fn set_slots(&mut self, worker: Worker, slots: Option<u32>, now: Instant) {
        let now = self.pass(now);
        if let Some(entry) = self.entry_mut(worker) {
            entry.slots = slots;
            self.survey(now);
            self.enlist(worker.index);
        }
    }

    /// How long a message to the worker and back takes: what it would be idle for between two requests.
    pub fn set_hop(&mut self, worker: Worker, hop: Duration) {
        if let Some(entry) = self.entry_mut(worker) {
            entry.hop = hop;
            self.enlist(worker.index);
        }
    }

    /// The worker has so many requests that are none of this balancer's, and is as busy with them as with others. They are nobody's
    /// when it is gone.
    pub fn set_foreign(&mut self, worker: Worker, foreign: u32) {
        let turn = self.next_turn();
        if let Some(entry) = self.entry_mut(worker) {
            entry.foreign = foreign;
            entry.turn = turn;
            self.enlist(worker.index);
        }
    }

    /// Requests of a worker that are none of this balancer's.
    pub fn foreign(&self, worker: Worker) -> u32 {
        self.entry(worker).map_or(0, |entry| entry.foreign)
    }

    /// Removes a worker that has nothing. One that still has requests stays, and false is said: it is for [`Balancer::lost`].
    pub fn remove(&mut self, worker: Worker, now: Instant) -> bool {
        let now = self.pass(now);
        let Some(entry) = self.entry(worker) else {
            return true;
        };
        if !entry.held.is_empty() {
            return false;
        }
        self.forget(worker, now);
        true
    }

    /// Takes a worker that has no requests out of everything.
    pub(super) fn forget(&mut self, worker: Worker, now: Instant) {
        self.ready.remove(worker.index);
        if let Some(entry) = self.entry_mut(worker) {
            // Nobody's home any more, before its list goes with it.
            entry.standing = Standing::Draining;
        }
        self.suspects.retain(|other| *other != worker);
        self.ejected.retain(|other| *other != worker);
        self.ramping.retain(|other| *other != worker);
        self.survey(now);
        self.homes_changed();
        self.workers.try_remove(worker.index());
        self.guard(now);
    }

    /// A stream that was no request begins at this worker: it is attached until [`Balancer::detach`].
    pub fn attach_more(&mut self, worker: Worker) {
        let turn = self.next_turn();
        if let Some(entry) = self.entry_mut(worker) {
            entry.attached = entry.attached.saturating_add(1);
            entry.turn = turn;
            self.enlist(worker.index);
        }
    }

    /// A stream that was no request has ended.
    pub fn detach(&mut self, worker: Worker) {
        if let Some(entry) = self.entry_mut(worker) {
            entry.attached = entry.attached.saturating_sub(1);
        }
    }

    /// Requests in flight at a worker.
    pub fn open(&self, worker: Worker) -> u32 {
        self.entry(worker).map_or(0, |entry| entry.open)
    }

    /// Streams of a worker.
    pub fn attached(&self, worker: Worker) -> u32 {
        self.entry(worker).map_or(0, |entry| entry.attached)
    }

    /// Most requests in flight at a worker: its slots, and as many more as keep it busy for the time of a hop, which is slots times
    /// hop by the median of its service, rounded up, at most [`prefetch_max`](super::Rules::prefetch_max); none if a hop is short
    /// against its work. `None`: no wall, or no such worker.
    pub fn credit(&self, worker: Worker) -> Option<u32> {
        self.entry(worker)?
            .credit(self.rules.slots, self.rules.prefetch_max)
    }

    /// How many requests a worker works on at once, by its own word or by the rules.
    pub fn slots(&self, worker: Worker) -> Option<u32> {
        self.entry(worker)?.slots.or(self.rules.slots)
    }

    /// Requests that a worker had when they ended.
    pub fn served(&self, worker: Worker) -> u64 {
        self.entry(worker).map_or(0, |entry| entry.served)
    }

    /// Requests that never reached a worker and went back to the queue.
    pub fn unsent_of(&self, worker: Worker) -> u64 {
        self.entry(worker).map_or(0, |entry| entry.unsent)
    }

    /// Requests whose deadline was over while a worker had them.
    pub fn overdue_of(&self, worker: Worker) -> u64 {
        self.entry(worker).map_or(0, |entry| entry.overdue)
    }

    /// What a worker can do by its own word, compared with others.
    pub fn weight(&self, worker: Worker) -> u32 {
        self.entry(worker).map_or(0, |entry| entry.weight)
    }

    /// How long the worker takes.
    pub fn service_of(&self, worker: Worker) -> Option<&Durations> {
        self.entry(worker).map(|entry| &entry.service)
    }

    /// Whether the worker gets nothing for a while because it is slow.
    pub fn is_ejected(&self, worker: Worker) -> bool {
        self.entry(worker)
            .is_some_and(|entry| entry.ejected_until.is_some())
    }

    /// The name of a worker.
    pub fn name(&self, worker: Worker) -> Option<&[u8]> {
        self.entry(worker).map(|entry| &*entry.name)
    }

    /// All workers, by index.
    pub fn workers(&self) -> impl Iterator<Item = Worker> {
        self.workers.iter().map(|(index, entry)| Worker {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            generation: entry.generation,
        })
    }

    /// The requests that a worker has, also those that were failed meanwhile and have not been ended; in the order in which it got them.
    pub fn requests_of(&self, worker: Worker) -> impl Iterator<Item = Request> {
        let mut next = self
            .entry(worker)
            .map_or(super::list::NONE, |entry| entry.held.head);
        std::iter::from_fn(move || {
            let open = self.requests.get(next)?;
            let request = Request {
                index: next,
                serial: open.serial,
            };
            next = open.links.behind;
            Some(request)
        })
    }

    pub(super) fn entry(&self, worker: Worker) -> Option<&Entry> {
        self.workers
            .get(worker.index())
            .filter(|entry| entry.generation == worker.generation)
    }

    pub(super) fn entry_mut(&mut self, worker: Worker) -> Option<&mut Entry> {
        self.workers
            .get_mut(worker.index())
            .filter(|entry| entry.generation == worker.generation)
    }

    /// The key of the worker that is there.
    pub(super) fn key_of(&self, index: u32) -> Option<Worker> {
        self.workers.get(index as usize).map(|entry| Worker {
            index,
            generation: entry.generation,
        })
    }

    pub(super) fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// A worker is rid of a request in flight, for whatever reason.
    pub(super) fn relieve(&mut self, index: u32) {
        let turn = self.next_turn();
        if let Some(entry) = self.workers.get_mut(index as usize) {
            debug_assert!(entry.open > 0, "a worker is rid of what it had");
            entry.open = entry.open.saturating_sub(1);
            entry.turn = turn;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A worker has served a request; in that time, if it is known.
    pub(super) fn served_one(&mut self, index: u32, service: Option<Duration>, now: Instant) {
        let Some(entry) = self.workers.get_mut(index as usize) else {
            return;
        };
        entry.served += 1;
        if let Some(service) = service {
            entry.took(service);
            self.service.add(service);
            self.expect_judgement(now);
        }
    }

    /// Puts a worker where it belongs among those that may get requests, or takes it out.
    pub(super) fn enlist(&mut self, index: u32) {
        let Some(entry) = self.workers.get_mut(index as usize) else {
            return;
        };
        let has_room = entry.shares()
            && entry
                .credit(self.rules.slots, self.rules.prefetch_max)
                .is_none_or(|credit| entry.taken() < credit);
        if !has_room {
            return self.ready.remove(index);
        }
        let load = u64::from(entry.taken()) * LOAD_UNIT * u64::from(RAMP_STEPS)
            / (entry.capacity(self.rules.slots) * u64::from(entry.ramp));
        let turn = match self.rules.tie {
            Tie::LongestIdle => entry.turn,
            Tie::MostRecent => u64::MAX - entry.turn,
        };
        if !entry.strict.is_empty() && !entry.called {
            entry.called = true;
            self.called.push_back(index);
        }
        self.ready.put(Rank {
            load,
            turn,
            worker: index,
        });
    }

    pub(super) fn enlist_all(&mut self) {
        let indexes: Vec<u32> = self.workers().map(|worker| worker.index).collect();
        for index in indexes {
            self.enlist(index);
        }
    }

    /// Counts anew who is there, after that has changed.
    pub(super) fn survey(&mut self, now: Instant) {
        let mut present = 0;
        let mut slots = Some(0usize);
        for (_, entry) in &self.workers {
            if entry.standing != Standing::Draining {
                present += 1;
                let own = entry.slots.or(self.rules.slots);
                slots = slots
                    .zip(own)
                    .map(|(sum, own)| sum.saturating_add(own as usize));
            }
        }
        self.slots_known = slots;
        let was = std::mem::replace(&mut self.present, present);
        if present > 0 {
            self.deserted_since = None;
        } else if was > 0 || self.deserted_since.is_none() {
            self.deserted_since = Some(now);
            // They have less time now.
            self.arm_all();
        }
        self.step_ramps(now);
    }

    /// A worker begins, or begins again, with a small share.
    pub(super) fn begin_ramp(&mut self, worker: Worker, now: Instant) {
        if self.rules.slow_start.is_zero() {
            return;
        }
        if let Some(entry) = self.entry_mut(worker) {
            entry.joined = now;
            entry.ramp = 1;
            self.ramping.push(worker);
        }
    }

    /// Brings those up that have just come, as far as time says. When all have just come there is nobody to spare them.
    pub(super) fn step_ramps(&mut self, now: Instant) {
        if self.ramping.is_empty() {
            return;
        }
        let all_are_new = self.ramping.len() >= self.present as usize;
        let whole = self.rules.slow_start;
        for worker in std::mem::take(&mut self.ramping) {
            let Some(entry) = self.entry_mut(worker) else {
                continue;
            };
            let step = ramp_step(now.saturating_duration_since(entry.joined), whole);
            entry.ramp = if all_are_new { RAMP_STEPS } else { step };
            if step < RAMP_STEPS {
                self.ramping.push(worker);
            }
            self.enlist(worker.index);
        }
    }

    /// When the next of those that have just come is brought up.
    pub(super) fn ramp_due(&self) -> Option<Instant> {
        let steps = self.ramping.iter().filter_map(|worker| {
            let entry = self.entry(*worker)?;
            let whole = self.rules.slow_start;
            let step = ramp_step(self.now?.saturating_duration_since(entry.joined), whole);
            // A nanosecond more, as the division may have lost one.
            let until = whole.saturating_mul(step) / RAMP_STEPS + Duration::from_nanos(1);
            entry.joined.checked_add(until)
        });
        steps.min()
    }
}

/// The step that belongs to this part of the whole time, from one.
fn ramp_step(passed: Duration, whole: Duration) -> u32 {
    let step = passed.as_nanos() * u128::from(RAMP_STEPS) / whole.as_nanos().max(1) + 1;
    u32::try_from(step).unwrap_or(u32::MAX).min(RAMP_STEPS)
}
