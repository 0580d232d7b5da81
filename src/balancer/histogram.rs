//! How many things took how long, in buckets with fixed bounds: what watchers add up over processes and over time.
//!
//! Quantiles of late are `service`'s. Nothing fades here, and nothing is decided by it.

use std::time::Duration;

/// Upper bounds of the buckets, in ascending order; what took longer than the last is in none of them.
pub const BOUNDS: [Duration; 16] = [
    Duration::from_micros(100),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// Durations since it was made. Takes no more memory however many are added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    within: [u64; BOUNDS.len()],
    count: u64,
    total: Duration,
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, duration: Duration) {
        let place = BOUNDS.partition_point(|bound| *bound < duration);
        if let Some(within) = self.within.get_mut(place) {
            *within += 1;
        }
        self.count += 1;
        self.total = self.total.saturating_add(duration);
    }

    /// How many were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All together.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// Each bound with how many took no longer, in ascending order.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut sum = 0;
        BOUNDS.iter().zip(&self.within).map(move |(bound, within)| {
            sum += within;
            (*bound, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_as_long_as_a_bound_is_within_it() {
        for (place, bound) in BOUNDS.into_iter().enumerate() {
            let mut histogram = Histogram::default();
            histogram.add(bound);
            histogram.add(bound + Duration::from_nanos(1));
            let at: Vec<u64> = histogram.cumulative().map(|(_, count)| count).collect();
            assert!(at.iter().take(place).all(|count| *count == 0), "{bound:?}");
            assert_eq!(at.get(place), Some(&1), "{bound:?}");
            assert!(at.iter().skip(place + 1).all(|count| *count == 2));
        }
    }

    #[test]
    fn what_is_beyond_all_bounds_is_counted_all_the_same() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::MAX);
        histogram.add(Duration::MAX);
        assert_eq!(histogram.cumulative().last().map(|(_, n)| n), Some(0));
        assert_eq!((histogram.count(), histogram.total()), (2, Duration::MAX));
    }

    #[test]
    fn bounds_ascend() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
    }
}
