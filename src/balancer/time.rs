//! What time does: requests that have waited too long or are too late, workers that were silent or left out for long enough.

use std::time::Instant;

use super::requests::State;
use super::{Balancer, Event, Failure, Request, Standing, Worker};

impl Balancer {
    /// Lets time do what it does. To be called at the time that [`Balancer::due`] gives, or whenever it suits; more often or later
    /// does no harm. Afterwards [`Balancer::next`] may have something.
    pub fn tick(&mut self, now: Instant) -> Vec<Event> {
        let now = self.pass(now);
        let mut events = std::mem::take(&mut self.events);
        while let Some((at, whose)) = self
            .timers
            .take(now, |at, whose| self.requests.is_set(at, whose))
        {
            if self.requests.is_set(at, whose) {
                self.ring(whose.0, now, &mut events);
            }
        }
        self.bury(now, &mut events);
        while let Some(worker) = self.ejection_over(now) {
            self.readmit(worker, now);
        }
        self.judge(now);
        self.step_ramps(now);
        events.append(&mut self.events);
        events
    }

    /// When time has something to do next, if it is not told anything before. `None`: only when something else happens.
    pub fn due(&self) -> Option<Instant> {
        let pending = self.now.filter(|_| !self.events.is_empty());
        let suspect = self.suspects.iter().filter_map(|worker| {
            let entry = self.entry(*worker)?;
            let since = entry.suspect_since.filter(|_| !entry.told_dead)?;
            since.checked_add(self.rules.suspect_grace)
        });
        let ejected = self
            .ejected
            .iter()
            .filter_map(|worker| self.entry(*worker)?.ejected_until);
        [
            pending,
            self.timers.earliest(),
            self.judge_at,
            self.ramp_due(),
        ]
        .into_iter()
        .flatten()
        .chain(suspect)
        .chain(ejected)
        .min()
    }

    /// The time that was set for a request has come.
    fn ring(&mut self, index: u32, now: Instant, events: &mut Vec<Event>) {
        let Some(open) = self.requests.get_mut(index) else {
            return;
        };
        open.timer = None;
        let request = Request {
            index,
            serial: open.serial,
        };
        let why = match open.state {
            State::Waiting | State::Strict(_) => self.waited_out(index, now),
            State::Handed(_) | State::Begun(_) | State::Attached(_) => open
                .deadline
                .filter(|deadline| *deadline <= now)
                .map(|_| Failure::DeadlineOver),
            State::Over(_) | State::Failed => None,
        };
        if let Some(why) = why {
            self.fail(index, why);
            events.push(Event::Failed(request, why));
            return;
        }
        let strict_over = self
            .requests
            .get(index)
            .and_then(|open| self.strict_until(open))
            .is_some_and(|until| until <= now);
        if strict_over {
            self.give_up_strict(index);
        }
        self.arm(index);
    }

    /// Why a request need not wait any longer, if that is so.
    fn waited_out(&self, index: u32, now: Instant) -> Option<Failure> {
        let open = self.requests.get(index)?;
        if open.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(Failure::DeadlineOver);
        }
        let passed = |since: Instant| now.saturating_duration_since(since);
        let nobody = self.deserted_since.filter(|_| self.present == 0);
        match nobody {
            Some(since)
                if passed(open.since.max(since)) >= self.rules.start_grace
                    || passed(open.since) >= self.rules.wait_max =>
            {
                Some(Failure::NoWorker)
            }
            None if passed(open.since) >= self.rules.wait_max => Some(Failure::WaitOver),
            _ => None,
        }
    }

    /// Sets the time at which a request is looked at next.
    pub(super) fn arm(&mut self, index: u32) {
        let Some(open) = self.requests.get(index) else {
            return;
        };
        let wanted = match open.state {
            State::Waiting | State::Strict(_) => {
                let deserted = self.deserted_since.filter(|_| self.present == 0);
                let grace = deserted
                    .and_then(|since| open.since.max(since).checked_add(self.rules.start_grace));
                let strict = self
                    .strict_until(open)
                    .filter(|_| matches!(open.state, State::Strict(_)));
                let over = open.since.checked_add(self.rules.wait_max);
                [open.deadline, over, grace, strict]
                    .into_iter()
                    .flatten()
                    .min()
            }
            State::Handed(_) | State::Begun(_) | State::Attached(_) => open.deadline,
            State::Over(_) | State::Failed => None,
        };
        if wanted == open.timer {
            return;
        }
        let whose = (index, open.serial);
        if let Some(wanted) = wanted {
            self.timers.set(wanted, whose);
        }
        if let Some(open) = self.requests.get_mut(index) {
            open.timer = wanted;
        }
    }

    /// The same for all that wait.
    pub(super) fn arm_all(&mut self) {
        let waiting: Vec<u32> = self
            .requests
            .iter()
            .filter(|(_, open)| open.state.waits())
            .map(|(index, _)| index)
            .collect();
        for index in waiting {
            self.arm(index);
        }
    }

    /// Tells of those that were silent for too long.
    fn bury(&mut self, now: Instant, events: &mut Vec<Event>) {
        let grace = self.rules.suspect_grace;
        for place in 0..self.suspects.len() {
            let Some(worker) = self.suspects.get(place).copied() else {
                break;
            };
            let Some(entry) = self.entry_mut(worker) else {
                continue;
            };
            let over = entry
                .suspect_since
                .is_some_and(|since| now.saturating_duration_since(since) >= grace);
            if over && !entry.told_dead && entry.standing == Standing::Suspect {
                entry.told_dead = true;
                events.push(Event::Dead(worker));
            }
        }
    }

    /// A worker that has been left out for long enough.
    fn ejection_over(&self, now: Instant) -> Option<Worker> {
        self.ejected.iter().copied().find(|worker| {
            self.entry(*worker)
                .and_then(|entry| entry.ejected_until)
                .is_none_or(|until| until <= now)
        })
    }
}
