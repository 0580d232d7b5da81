//! Whether the queue has been too slow for so long that the youngest should come first.
//!
//! As in `CoDel`, a queue is judged by the wait of its oldest, not by its length: a burst that drains is no overload.

use std::time::{Duration, Instant};

/// The oldest must have waited too long for all of this time.
const PATIENCE: Duration = Duration::from_millis(100);

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct Overload {
    above_since: Option<Instant>,
}

impl Overload {
    /// Looks at the oldest request that waits, if one does: it has waited for `age`. Says whether there is an overload.
    pub(super) fn look(&mut self, age: Option<Duration>, target: Duration, now: Instant) -> bool {
        if age.is_none_or(|age| age <= target) {
            self.above_since = None;
            return false;
        }
        let since = *self.above_since.get_or_insert(now);
        now.saturating_duration_since(since) >= PATIENCE
    }
}
