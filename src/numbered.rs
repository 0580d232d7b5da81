//! Tables by number: connections, peers, processes. Numbers that this program or a server of its operator has given out, one after the
//! other, are not worth the price of a hash that bears any text. Nobody can aim at a place all the same: it depends on chance.
//!
//! Not for what a stranger chooses freely, and not for texts.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A table by number.
pub type Numbered<K, V> = HashMap<K, V, Places>;

/// An odd number without a pattern, by which all bits of a number reach all bits of its place.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Where numbers stand in one table.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    seed: u64,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            seed: RandomState::new().hash_one(SPREAD),
        }
    }
}

impl BuildHasher for Places {
    type Hasher = Place;

    fn build_hasher(&self) -> Place {
        Place(self.seed)
    }
}

/// The place of one number.
#[derive(Debug)]
pub struct Place(u64);

impl Place {
    fn mix(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * u128::from(SPREAD);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the two halves of the product, one over the other"
        )]
        let folded = (product >> 64) as u64 ^ product as u64;
        self.0 = folded;
    }
}

impl Hasher for Place {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mix(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.mix(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.mix(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.mix(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_in_a_row_and_at_equal_distances_are_spread_over_a_table() {
        let places = Places::default();
        for step in [1, 2, 64, 4096, 1 << 32, u64::MAX >> 7] {
            let hashes = (0..4096_u64).map(|at| places.hash_one(at.wrapping_mul(step)));
            let (mut low, mut high) = (HashSet::new(), HashSet::new());
            for hash in hashes {
                low.insert(hash & 4095);
                high.insert(hash >> 57);
            }
            // By pure chance 63 % of the places are taken.
            assert!(low.len() > 2048, "{step}: {} places", low.len());
            assert_eq!(high.len(), 128, "{step}");
        }
    }

    #[test]
    fn two_tables_have_places_of_their_own() {
        let place = |places: Places| places.hash_one(7_u32);
        assert_ne!(place(Places::default()), place(Places::default()));
    }
}
