//! Which worker a key belongs to: weighted rendezvous hashing (highest random weight).
//!
//! Each worker has a score for each key, by its name, and the highest is the home. No table: the same names give the same answer in
//! every process, a worker that goes gives away its own keys and no others, one that comes back gets them back, and the second
//! highest is a natural second choice. Load is not looked at here.

use super::random::{fraction, mix};

/// What a key gives for a worker; the highest is the best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Score {
    weighted: f64,
    /// Decides between scores that a float cannot tell apart.
    hash: u64,
}

impl Score {
    /// Whether this one is better.
    pub(super) fn beats(self, other: Self) -> bool {
        self.weighted
            .total_cmp(&other.weighted)
            .then(self.hash.cmp(&other.hash))
            .is_gt()
    }
}

/// The name of a worker as a number: FNV-1a, finished so that names that differ in one letter differ in all bits.
pub(super) fn name(name: &[u8]) -> u64 {
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(hash)
}

/// The score of a worker for a key: minus its weight by the logarithm of an even random number, which makes each worker the
/// best for a share of the keys that is its share of all weights.
pub(super) fn score(key: u64, name: u64, weight: u32) -> Score {
    let hash = mix(mix(key) ^ name);
    Score {
        weighted: -f64::from(weight.max(1)) / fraction(hash).ln(),
        hash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(key: u64, workers: &[(&str, u32)]) -> usize {
        let scores = workers
            .iter()
            .map(|(text, weight)| score(key, name(text.as_bytes()), *weight));
        let best = scores
            .enumerate()
            .reduce(|best, next| if next.1.beats(best.1) { next } else { best });
        best.expect("there are workers").0
    }

    #[test]
    fn keys_spread_by_weight() {
        let workers = [("a", 1), ("b", 1), ("c", 2)];
        let mut counts = [0u32; 3];
        for key in 0..40_000 {
            counts[home(key, &workers)] += 1;
        }
        for (count, expected) in counts.iter().zip([10_000, 10_000, 20_000]) {
            assert!(count.abs_diff(expected) < 400, "{counts:?}");
        }
    }

    #[test]
    fn a_worker_that_goes_moves_only_its_own_keys() {
        let before = [("a", 1), ("b", 1), ("c", 1), ("d", 1)];
        let after = [("a", 1), ("b", 1), ("d", 1)];
        for key in 0..10_000 {
            let was = before[home(key, &before)].0;
            let is = after[home(key, &after)].0;
            assert!(
                was == "c" || was == is,
                "key {key} moved from {was} to {is}"
            );
        }
    }
}
