//! What becomes of the requests of a worker that dies.

use std::time::Instant;

use super::requests::State;
use super::{Balancer, Failure, Request, Retry, Worker};

/// A request that so many workers died with is not given to a further one, even if each had it behind too many others to have begun
/// with it.
const MOVES_MAX: u8 = 4;

/// How far a worker was with a request when it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It had begun, or cannot say so.
    Begun,
    /// It has not said so, but had a slot for it: the request may be what killed it.
    Unsaid,
    /// It had others to do before.
    Behind,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It waits again, before all others.
    Again,
    /// It is failed.
    Failed(Failure),
}

/// A request whose worker was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub request: Request,
    /// What becomes of it.
    pub fate: Fate,
}

impl Balancer {
    /// A worker is dead. It is removed, and what it had waits again or is failed; the oldest first. `may_move` is asked before a
    /// request waits again: whether it can still be handed over.
    ///
    /// What was not begun may always go to another; what was begun, or may have been at a worker that does not say so, if
    /// it is [`Retry::Safe`], was not begun too often and the budget allows it. Requests that were failed before are not named again.
    /// Streams that were no requests end with the worker.
    pub fn lost(
        &mut self,
        worker: Worker,
        now: Instant,
        may_move: &mut dyn FnMut(Request) -> bool,
    ) -> Vec<Lost> {
        let now = self.pass(now);
        let Some(entry) = self.entry(worker) else {
            return Vec::new();
        };
        let tells_start = entry.tells_start;
        // What is begun takes slots, what is handed over has those that are left, in its order.
        let begun = |request: &Request| {
            let open = self.requests.find(*request);
            open.is_some_and(|open| matches!(open.state, State::Begun(_) | State::Over(_)))
        };
        let begun = self.requests_of(worker).filter(begun).count();
        let taken = begun.saturating_add(entry.foreign as usize);
        let slots = entry.slots.or(self.rules.slots);
        let mut free = slots.map_or(usize::MAX, |slots| (slots as usize).saturating_sub(taken));
        self.counts.workers_lost += 1;
        let requests: Vec<Request> = self.requests_of(worker).collect();
        let mut lost = Vec::with_capacity(requests.len());
        for request in requests {
            let Some(open) = self.requests.find(request) else {
                continue;
            };
            let state = open.state;
            self.release(request.index, worker.index);
            let fate = match state {
                State::Handed(_) => {
                    let had_slot = free > 0;
                    free = free.saturating_sub(1);
                    let progress = if !tells_start {
                        Progress::Begun
                    } else if had_slot {
                        Progress::Unsaid
                    } else {
                        Progress::Behind
                    };
                    self.fate(request, progress, now, may_move)
                }
                State::Begun(_) => self.fate(request, Progress::Begun, now, may_move),
                State::Over(_) => {
                    self.set_state(request.index, State::Failed);
                    continue;
                }
                _ => Fate::Failed(Failure::WorkerLost),
            };
            if let Fate::Failed(why) = fate {
                self.counts.fail(why, true);
            }
            self.set_state(request.index, State::Failed);
            self.arm(request.index);
            lost.push(Lost { request, fate });
        }
        self.forget(worker, now);
        // The youngest first, as each goes before all others.
        for Lost { request, fate } in lost.iter().rev() {
            if *fate == Fate::Again {
                if let Some(open) = self.requests.find_mut(*request) {
                    open.since = now;
                }
                self.wait_first(request.index);
            }
        }
        lost
    }

    fn fate(
        &mut self,
        request: Request,
        progress: Progress,
        now: Instant,
        may_move: &mut dyn FnMut(Request) -> bool,
    ) -> Fate {
        let Some(open) = self.requests.find_mut(request) else {
            return Fate::Failed(Failure::WorkerLost);
        };
        let begun = progress == Progress::Begun;
        if begun {
            open.deaths = open.deaths.saturating_add(1);
        } else {
            open.moves = open.moves.saturating_add(1);
        }
        let suspicion = u8::from(progress != Progress::Behind);
        open.suspicions = open.suspicions.saturating_add(suspicion);
        let (deaths, moves, retry) = (open.deaths, open.moves, open.retry);
        let after = self.rules.quarantine_after;
        if (after > 0 && open.suspicions >= after) || moves >= MOVES_MAX {
            return Fate::Failed(Failure::Quarantined);
        }
        if open.deadline.is_some_and(|deadline| deadline <= now) {
            return Fate::Failed(Failure::DeadlineOver);
        }
        let allowed = !begun || (retry == Retry::Safe && deaths < self.rules.attempts_max);
        if !allowed || !may_move(request) {
            return Fate::Failed(Failure::WorkerLost);
        }
        if !begun {
            self.counts.requeued += 1;
            return Fate::Again;
        }
        let paid = self
            .rules
            .retry_budget
            .is_none_or(|share| self.budget.take(share, now));
        if !paid {
            self.counts.failed_over_budget += 1;
            return Fate::Failed(Failure::WorkerLost);
        }
        self.counts.retried += 1;
        Fate::Again
    }
}
