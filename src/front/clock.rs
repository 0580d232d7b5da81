//! The shard's clock: milliseconds since the start, read once in a while and then for free.
//!
//! Deadlines here are seconds long; a quarter of a second is fine enough for them, and asking the system for the time on
//! each read and write would cost more than the bookkeeping itself.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// How often the clock is read.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// A clock that stands still between two ticks.
#[derive(Debug)]
pub(super) struct Clock {
    started: Instant,
    now: Cell<u64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            now: Cell::new(0),
        }
    }

    /// Reads the time.
    pub(super) fn tick(&self) {
        self.now.set(
            u64::try_from(Instant::now().duration_since(self.started).as_millis())
                .unwrap_or(u64::MAX),
        );
    }

    /// Milliseconds since the start, as of the last tick.
    pub(super) fn milliseconds(&self) -> u64 {
        self.now.get()
    }

    /// Seconds since the start, as of the last tick.
    pub(super) fn seconds(&self) -> u32 {
        u32::try_from(self.now.get() / 1000).unwrap_or(u32::MAX)
    }
}
