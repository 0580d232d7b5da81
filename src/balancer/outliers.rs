//! Which workers are left out for a time because they are much slower than the others, and when that goes too far.

use std::time::{Duration, Instant};

use super::{Balancer, Event, Outlier, Worker};

/// The quantile by which workers are compared.
const JUDGED_AT: f64 = 0.99;

/// So many workers must be known for "the others" to mean anything.
const JUDGED_MIN: usize = 3;

/// A worker that is left out again and again is left out for up to so many times the first time.
const EJECTIONS_MAX: u32 = 10;

impl Balancer {
    /// Answers have come that may tell a worker apart: the workers are compared soon.
    pub(super) fn expect_judgement(&mut self, now: Instant) {
        if let Some(outlier) = self.rules.outlier
            && self.judge_at.is_none()
        {
            self.judge_at = now.checked_add(outlier.interval);
        }
    }

    /// Compares the workers, when it is time, and leaves out the slowest as far as the guard allows.
    pub(super) fn judge(&mut self, now: Instant) {
        let Some(outlier) = self.rules.outlier else {
            return;
        };
        if self.judge_at.is_none_or(|at| at > now) {
            return;
        }
        self.judge_at = None;
        let mut judged: Vec<(Duration, Worker)> = self
            .workers()
            .filter_map(|worker| {
                let entry = self.entry(worker).filter(|entry| entry.shares())?;
                let known = entry.service.weight() >= outlier.samples_min.max(1);
                let quantile = entry.service.quantile(JUDGED_AT)?;
                known.then_some((quantile, worker))
            })
            .collect();
        if judged.len() < JUDGED_MIN {
            return;
        }
        judged.sort_unstable();
        let middle = judged[(judged.len() - 1) / 2].0;
        let times = middle.as_secs_f64() * outlier.factor.max(1.0);
        let limit = Duration::try_from_secs_f64(times)
            .unwrap_or(Duration::MAX)
            .max(middle.saturating_add(outlier.excess));
        let mut room = self.ejectable(outlier).saturating_sub(self.ejected.len());
        for (quantile, worker) in judged.into_iter().rev() {
            if quantile <= limit {
                // It has behaved: the next time it is not left out for quite as long.
                if let Some(entry) = self.entry_mut(worker) {
                    entry.ejections = entry.ejections.saturating_sub(1);
                }
            } else if room > 0 {
                room -= 1;
                self.eject(worker, outlier, now);
            }
        }
        self.guard(now);
    }

    fn eject(&mut self, worker: Worker, outlier: Outlier, now: Instant) {
        let Some(entry) = self.entry_mut(worker) else {
            return;
        };
        entry.ejections = (entry.ejections + 1).min(EJECTIONS_MAX);
        let until = now.checked_add(outlier.ejection.saturating_mul(entry.ejections));
        entry.ejected_until = Some(until.unwrap_or(now));
        self.ejected.push(worker);
        self.counts.ejected += 1;
        self.events.push(Event::Ejected(worker));
        self.enlist(worker.index);
    }

    /// A worker that was left out takes part again. What was known of its speed is forgotten.
    pub(super) fn readmit(&mut self, worker: Worker, now: Instant) {
        self.ejected.retain(|other| *other != worker);
        let Some(entry) = self.entry_mut(worker) else {
            return;
        };
        entry.ejected_until = None;
        entry.service.forget();
        self.events.push(Event::Returned(worker));
        self.begin_ramp(worker, now);
        self.step_ramps(now);
        self.enlist(worker.index);
    }

    /// Takes those back that were left out first when too many are, or nobody else would get requests.
    pub(super) fn guard(&mut self, now: Instant) {
        let Some(outlier) = self.rules.outlier else {
            return;
        };
        while let Some(first) = self.ejected.first().copied() {
            let anyone = self.workers.iter().any(|(_, entry)| entry.shares());
            if anyone && self.ejected.len() <= self.ejectable(outlier) {
                break;
            }
            self.readmit(first, now);
        }
    }

    /// How many may be left out at once.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a small number"
    )]
    fn ejectable(&self, outlier: Outlier) -> usize {
        (f64::from(self.present) * outlier.share_max.clamp(0.0, 1.0)) as usize
    }
}
