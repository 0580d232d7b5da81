//! The workers that may be given a request, the best first: a heap in which each knows its place.
//!
//! Changing one takes the logarithm of how many there are, and nothing is allocated. What makes one better is in the [`Rank`].

/// How good a worker is for the next request; the lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Requests in flight, against what it can do.
    pub(super) load: u64,
    /// Among equals.
    pub(super) turn: u64,
    /// Its index: no two are the same.
    pub(super) worker: u32,
}

/// The heap.
#[derive(Debug, Default)]
pub(super) struct Ready {
    heap: Vec<Rank>,
    /// Where each worker stands, one more than its place; zero: nowhere.
    places: Vec<u32>,
}

impl Ready {
    /// The best of all.
    pub(super) fn first(&self) -> Option<Rank> {
        self.heap.first().copied()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// All, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Rank> {
        self.heap.iter().copied()
    }

    pub(super) fn contains(&self, worker: u32) -> bool {
        self.place(worker).is_some()
    }

    /// Puts a worker in, or where its new rank belongs.
    pub(super) fn put(&mut self, rank: Rank) {
        let place = if let Some(place) = self.place(rank.worker) {
            self.heap[place] = rank;
            place
        } else {
            let needed = rank.worker as usize + 1;
            if self.places.len() < needed {
                self.places.resize(needed, 0);
            }
            self.heap.push(rank);
            self.heap.len() - 1
        };
        let place = self.rise(place);
        self.sink(place);
    }

    /// Takes a worker out; nothing happens to one that is not in.
    pub(super) fn remove(&mut self, worker: u32) {
        let Some(place) = self.place(worker) else {
            return;
        };
        self.places[worker as usize] = 0;
        let Some(last) = self.heap.pop() else {
            return;
        };
        if place < self.heap.len() {
            self.heap[place] = last;
            let place = self.rise(place);
            self.sink(place);
        }
    }

    fn place(&self, worker: u32) -> Option<usize> {
        let place = *self.places.get(worker as usize)?;
        (place as usize).checked_sub(1)
    }

    /// Writes down where the one at `place` stands.
    fn note(&mut self, place: usize) {
        let worker = self.heap[place].worker as usize;
        self.places[worker] = u32::try_from(place + 1).unwrap_or(u32::MAX);
    }

    fn rise(&mut self, mut place: usize) -> usize {
        while place > 0 {
            let above = (place - 1) / 2;
            if self.heap[above] <= self.heap[place] {
                break;
            }
            self.heap.swap(above, place);
            self.note(place);
            place = above;
        }
        self.note(place);
        place
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let mut least = place;
            for below in [2 * place + 1, 2 * place + 2] {
                if below < self.heap.len() && self.heap[below] < self.heap[least] {
                    least = below;
                }
            }
            if least == place {
                break;
            }
            self.heap.swap(least, place);
            self.note(place);
            place = least;
        }
        self.note(place);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_is_the_least_of_all_whatever_came_and_went(
            steps in proptest::collection::vec((0u32..20, proptest::option::of((0u64..5, 0u64..5))), 0..300),
        ) {
            let mut ready = Ready::default();
            let mut model = BTreeMap::new();
            for (worker, rank) in steps {
                if let Some((load, turn)) = rank {
                    let rank = Rank { load, turn, worker };
                    ready.put(rank);
                    model.insert(worker, rank);
                } else {
                    ready.remove(worker);
                    model.remove(&worker);
                }
                prop_assert_eq!(ready.first(), model.values().min().copied());
                prop_assert_eq!(ready.len(), model.len());
                prop_assert!((0..20).all(|worker| ready.contains(worker) == model.contains_key(&worker)));
            }
        }
    }
}
