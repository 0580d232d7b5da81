//! Whether a worker waits for its turn when it is woken.
//!
//! Under load a server hands requests over in bunches. A worker that the first of them wakes may push aside who has the processor, and
//! that is often the server, which is about to hand over the next ones, or is to read what the worker says. Then bunches are small, and
//! both lose their caches at each. The system has a policy for threads that wait instead until the processor is given up or a turn
//! is over, `SCHED_BATCH` (sched(7)). But where something else computes, a turn is milliseconds, and a lone request should
//! not wait for that. So a worker is patient as long as it has many requests whenever it is woken, and no longer.

use nix::sys::resource::{UsageWho, getrusage};

use crate::sys;

/// Requests from one look to the next below which nothing is to be won: at four looks a second, a thousand a second.
const REQUESTS_MIN: u64 = 250;

/// With so many requests whenever it has waited a worker becomes patient, and is so until there are less than that.
const BUNCH: u64 = 4;
const BUNCH_LEFT: u64 = 2;

/// What is known of a worker's waiting.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// The numbers at the last look.
    requests: u64,
    waits: u64,
    is_patient: bool,
    /// The system does not let us, or somebody else has chosen a policy.
    is_denied: bool,
}

impl Patience {
    /// Looks how many requests the process has answered, and how often it has waited for them.
    pub(super) fn look(&mut self, requests: u64) {
        if self.is_denied {
            return;
        }
        let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
            return;
        };
        let waits = u64::try_from(usage.voluntary_context_switches()).unwrap_or_default();
        let Some(is_patient) = self.decide(requests, waits) else {
            return;
        };
        // Between two times of patience all is as it was before the first: what is not is somebody's choice.
        if is_patient && !sys::is_scheduled_as_usual() {
            self.is_denied = true;
            return;
        }
        match sys::set_batch(is_patient) {
            Ok(()) => tracing::debug!(is_patient, "the worker's scheduling has changed"),
            Err(error) => {
                tracing::debug!(%error, "the worker's scheduling stays as it is");
                self.is_denied = true;
            }
        }
    }

    /// What is to change.
    fn decide(&mut self, requests: u64, waits: u64) -> Option<bool> {
        let answered = requests.saturating_sub(std::mem::replace(&mut self.requests, requests));
        let waited = waits.saturating_sub(std::mem::replace(&mut self.waits, waits));
        let bunch = if self.is_patient { BUNCH_LEFT } else { BUNCH };
        let is_patient = answered >= REQUESTS_MIN && answered >= waited.saturating_mul(bunch);
        let was = std::mem::replace(&mut self.is_patient, is_patient);
        (is_patient != was).then_some(is_patient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_patient_as_long_as_requests_come_in_bunches() {
        let mut patience = Patience::default();
        let (mut requests, mut waits) = (0, 0);
        let mut look = |answered, waited| {
            requests += answered;
            waits += waited;
            patience.decide(requests, waits)
        };
        assert_eq!(look(10_000, 3_000), None, "three at a time");
        assert_eq!(look(200, 1), None, "few");
        assert_eq!(look(10_000, 2_500), Some(true));
        assert_eq!(look(10_000, 5_000), None, "two at a time are enough now");
        assert_eq!(look(10_000, 5_001), Some(false));
        assert_eq!(look(10_000, 2_501), None);
        assert_eq!(look(10_000, 0), Some(true));
        assert_eq!(look(0, 0), Some(false), "nothing comes");
        assert_eq!(look(0, 0), None);
    }
}
