//! What has happened so far, by cause. Numbers for those who watch; nothing is decided by them.

use super::Failure;

/// Events of one balancer, each counted since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests that were taken.
    pub accepted: u64,
    /// Requests that were handed to a worker; each time.
    pub handed: u64,
    /// Requests that were ended after a worker had them, and were not failed.
    pub served: u64,
    /// Refused: too many waited.
    pub shed_queue_full: u64,
    /// Refused: their turn would have come after their deadline.
    pub shed_late: u64,
    /// Refused or failed: no worker was there.
    pub failed_no_worker: u64,
    /// Refused or failed: waited too long.
    pub failed_wait_over: u64,
    /// Refused or failed: the deadline was over while they waited.
    pub failed_deadline_waiting: u64,
    /// Failed: the deadline was over while a worker had them.
    pub failed_deadline_open: u64,
    /// Failed: their worker was lost.
    pub failed_worker_lost: u64,
    /// Of those: they might have been given to another, but too many were.
    pub failed_over_budget: u64,
    /// Failed: they were begun by too many workers that died.
    pub quarantined: u64,
    /// Left the queue, as nobody waits for their answers any more.
    pub withdrawn: u64,
    /// Back at the head of the queue, as their worker was lost and had not begun with them.
    pub requeued: u64,
    /// Back at the head of the queue, as their worker was lost and they may be begun again.
    pub retried: u64,
    /// Back at the head of the queue, as they never reached their worker.
    pub unsent: u64,
    /// Gave up waiting for the one worker of their key.
    pub strict_given_up: u64,
    /// Handed over the youngest first.
    pub youngest_first: u64,
    /// Workers that were lost with what they had.
    pub workers_lost: u64,
    /// Workers that were left out for being slow.
    pub ejected: u64,
}

impl Counts {
    /// Counts a request that is failed, or refused although nothing was full.
    pub(super) fn fail(&mut self, why: Failure, at_a_worker: bool) {
        let count = match why {
            Failure::QueueFull => &mut self.shed_queue_full,
            Failure::WaitOver => &mut self.failed_wait_over,
            Failure::NoWorker => &mut self.failed_no_worker,
            Failure::DeadlineOver if at_a_worker => &mut self.failed_deadline_open,
            Failure::DeadlineOver => &mut self.failed_deadline_waiting,
            Failure::WorkerLost => &mut self.failed_worker_lost,
            Failure::Quarantined => &mut self.quarantined,
        };
        *count += 1;
    }
}
