//! How long things take: counts in buckets that grow with the duration, and the quantiles they give.
//!
//! Four buckets to each doubling, so a quantile is right to about a tenth; old samples fade as new ones come. What was
//! measured, and whether it means anything, is for whoever adds it.

use std::time::Duration;

use super::Histogram;

/// Buckets to each doubling, as a power of two.
const FINE_BITS: u32 = 2;

/// Doublings from one microsecond to more than an hour.
const DOUBLINGS: usize = 32;

const BUCKETS: usize = DOUBLINGS << FINE_BITS;

/// So many samples, then each counts half: quantiles follow a worker that changes.
const FADE_AT: u32 = 1024;

/// Durations, counted. Takes no more memory however many are added.
#[derive(Clone)]
pub struct Durations {
    buckets: [u16; BUCKETS],
    /// Sum of the buckets.
    weight: u32,
    /// All that were ever added.
    ever: Histogram,
}

impl std::fmt::Debug for Durations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Durations")
            .field("count", &self.count())
            .field("median", &self.quantile(0.5))
            .finish_non_exhaustive()
    }
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            weight: 0,
            ever: Histogram::default(),
        }
    }
}

impl Durations {
    /// Counts one.
    pub fn add(&mut self, duration: Duration) {
        if self.weight >= FADE_AT {
            self.weight = 0;
            for bucket in &mut self.buckets {
                *bucket /= 2;
                self.weight += u32::from(*bucket);
            }
        }
        if let Some(bucket) = self.buckets.get_mut(bucket_of(duration)) {
            *bucket += 1;
            self.weight += 1;
        }
        self.ever.add(duration);
    }

    /// How many were ever added.
    pub fn count(&self) -> u64 {
        self.ever.count()
    }

    /// All that were ever added, together.
    pub fn total(&self) -> Duration {
        self.ever.total()
    }

    /// All that were ever added.
    pub fn ever(&self) -> &Histogram {
        &self.ever
    }

    /// How many of the lately added count for the quantiles.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// The duration below which this share of the lately added lies; `None` before any was added.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a number that fits"
    )]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (f64::from(self.weight) * share.clamp(0.0, 1.0)).ceil() as u32;
        let mut below = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            below += u32::from(*bucket);
            if below >= wanted.max(1) {
                return Some(middle_of(index));
            }
        }
        None
    }

    /// Forgets what the quantiles know; what was counted ever stays.
    pub(super) fn forget(&mut self) {
        self.buckets = [0; BUCKETS];
        self.weight = 0;
    }
}

/// The bucket of a duration: its doubling, and the bits behind the first.
fn bucket_of(duration: Duration) -> usize {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    // From four on, so that there are bits behind the first; three microseconds more or less tell nothing.
    let shifted = micros.saturating_add(1 << FINE_BITS);
    let doubling = shifted.ilog2() - FINE_BITS;
    let fine = (shifted >> doubling) & ((1 << FINE_BITS) - 1);
    let index = ((doubling as usize) << FINE_BITS) + usize::try_from(fine).unwrap_or_default();
    index.min(BUCKETS - 1)
}

/// A duration in the middle of a bucket.
fn middle_of(index: usize) -> Duration {
    let doubling = index >> FINE_BITS;
    let fine = index & ((1 << FINE_BITS) - 1);
    let low = ((1 << FINE_BITS) + fine as u64) << doubling;
    let high = ((1 << FINE_BITS) + fine as u64 + 1) << doubling;
    Duration::from_nanos((low + high) * 500).saturating_sub(Duration::from_micros(1 << FINE_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_right_to_an_eighth_from_microseconds_to_an_hour() {
        for micros in [
            1u64,
            10,
            123,
            4_567,
            89_000,
            1_000_000,
            77_000_000,
            3_600_000_000,
        ] {
            let duration = Duration::from_micros(micros);
            let mut durations = Durations::default();
            durations.add(duration);
            let median = durations.quantile(0.5).unwrap().as_secs_f64();
            let wrong = (median - duration.as_secs_f64()).abs();
            assert!(
                wrong <= duration.as_secs_f64() / 8.0 + 1e-6,
                "{median} is given for {duration:?}"
            );
        }
    }

    #[test]
    fn quantiles_lie_where_the_samples_do() {
        let mut durations = Durations::default();
        assert_eq!(durations.quantile(0.5), None);
        for millis in 1..=100 {
            durations.add(Duration::from_millis(millis));
        }
        let at = |share| durations.quantile(share).unwrap().as_secs_f64() * 1000.0;
        assert!((44.0..57.0).contains(&at(0.5)), "{}", at(0.5));
        assert!((88.0..112.0).contains(&at(0.99)), "{}", at(0.99));
        assert_eq!(durations.count(), 100);
    }

    #[test]
    fn old_samples_fade() {
        let mut durations = Durations::default();
        for _ in 0..10_000 {
            durations.add(Duration::from_millis(1));
        }
        for _ in 0..2_000 {
            durations.add(Duration::from_millis(100));
        }
        assert!(durations.quantile(0.5).unwrap() > Duration::from_millis(80));
    }

    #[test]
    fn no_duration_is_too_long() {
        let mut durations = Durations::default();
        durations.add(Duration::MAX);
        durations.add(Duration::MAX);
        assert!(durations.quantile(1.0).unwrap() > Duration::from_hours(1));
    }
}
