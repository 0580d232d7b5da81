//! How much may be done a second time: a share of the lately submitted requests, and a few per second always.
//!
//! Says only whether; what is retried, and why, is decided elsewhere.

use std::time::{Duration, Instant};

/// How far back requests count.
const WINDOW: Duration = Duration::from_secs(10);

/// Retries per second that need no traffic: a pool with little of it may retry what it has.
const FLOOR_PER_SECOND: f64 = 10.0;

/// How often what counts is let fade while requests come.
const FADE_EVERY: Duration = Duration::from_millis(250);

/// What is left to spend. Starts with what ten quiet seconds bring.
#[derive(Debug)]
pub(super) struct Budget {
    /// Requests of about the last [`WINDOW`], fading.
    traffic: f64,
    /// Retries of about the last [`WINDOW`] that were paid by traffic, fading.
    spent: f64,
    /// What the floor has brought and nobody has taken.
    floor: f64,
    at: Option<Instant>,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            traffic: 0.0,
            spent: 0.0,
            floor: FLOOR_PER_SECOND * WINDOW.as_secs_f64(),
            at: None,
        }
    }

    /// A request has come.
    pub(super) fn submitted(&mut self, now: Instant) {
        if self
            .at
            .is_none_or(|at| now.saturating_duration_since(at) >= FADE_EVERY)
        {
            self.pass(now);
        }
        self.traffic += 1.0;
    }

    /// Whether one more may be retried, by a share of the traffic; it then counts as done.
    pub(super) fn take(&mut self, share: f64, now: Instant) -> bool {
        self.pass(now);
        if self.spent + 1.0 <= self.traffic * share {
            self.spent += 1.0;
            true
        } else if self.floor >= 1.0 {
            self.floor -= 1.0;
            true
        } else {
            false
        }
    }

    /// Lets time fade what counts.
    fn pass(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(*self.at.get_or_insert(now));
        self.at = Some(now);
        let left = (-passed.as_secs_f64() / WINDOW.as_secs_f64()).exp();
        self.traffic *= left;
        self.spent *= left;
        let most = FLOOR_PER_SECOND * WINDOW.as_secs_f64();
        self.floor = (self.floor + FLOOR_PER_SECOND * passed.as_secs_f64()).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::tests::start;

    fn taken(budget: &mut Budget, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.take(0.2, now)).count()
    }

    #[test]
    fn a_pool_without_traffic_may_retry_a_little() {
        let now = start();
        let mut budget = Budget::new();
        assert_eq!(taken(&mut budget, now), 100);
        assert_eq!(taken(&mut budget, now + Duration::from_secs(1)), 10);
        assert_eq!(taken(&mut budget, now + Duration::from_hours(1)), 100);
    }

    #[test]
    fn a_share_of_the_traffic_may_be_retried() {
        let now = start();
        let mut budget = Budget::new();
        for _ in 0..1000 {
            budget.submitted(now);
        }
        assert_eq!(taken(&mut budget, now), 200 + 100);
    }

    #[test]
    fn traffic_of_long_ago_does_not_count() {
        let now = start();
        let mut budget = Budget::new();
        for _ in 0..1000 {
            budget.submitted(now);
        }
        assert_eq!(taken(&mut budget, now + Duration::from_mins(2)), 100);
    }

    #[test]
    fn traffic_counts_that_came_after_a_long_silence() {
        let mut now = start();
        let mut budget = Budget::new();
        budget.submitted(now);
        now += Duration::from_hours(1);
        for _ in 0..1000 {
            budget.submitted(now);
        }
        assert_eq!(taken(&mut budget, now), 200 + 100);
    }
}
