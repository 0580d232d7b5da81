//! When something is to be looked at: times with what they are for, the earliest first.
//!
//! Nothing is ever taken out before its time. What is no longer true is recognised by whoever is told, and swept now and then
//! ([`Timers::sweep`]); so setting a time costs next to nothing, as later ones mostly come later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Stale times that are tolerated besides as many as there are true ones.
const SLACK: usize = 256;

/// A request, by its index and serial number.
pub(super) type Whose = (u32, u32);

/// The times.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Whose)>>,
}

impl Timers {
    pub(super) fn set(&mut self, at: Instant, whose: Whose) {
        self.heap.push(Reverse((at, whose)));
    }

    /// The earliest time; it may be stale.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the earliest time if it has come, or if it is stale.
    pub(super) fn take(
        &mut self,
        now: Instant,
        is_true: impl Fn(Instant, Whose) -> bool,
    ) -> Option<(Instant, Whose)> {
        let Reverse((at, whose)) = *self.heap.peek()?;
        if at > now && is_true(at, whose) {
            return None;
        }
        self.heap.pop();
        Some((at, whose))
    }

    /// Whether so many are set that most must be stale, if no more than `most` can be true.
    pub(super) fn is_dusty(&self, most: usize) -> bool {
        self.heap.len() > 2 * most + SLACK
    }

    /// Drops what is not true any more.
    pub(super) fn sweep(&mut self, is_true: impl Fn(Instant, Whose) -> bool) {
        self.heap
            .retain(|Reverse((at, whose))| is_true(*at, *whose));
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (Instant, Whose)> {
        self.heap.iter().map(|entry| entry.0)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}
