//! What time does to a pool: sockets that stall, losses in doubt, requests that wait for too long, workers that stay silent.
//!
//! The balancer says when it has something next; what hangs on sockets is looked at every [`HOUSEKEEPING`] while there is any. No
//! task runs when nothing waits for time.

use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::requests::{State, is_request};
use super::{Failure, Pool, Refused};
use crate::balancer::Event;
use crate::metrics::Name;
use crate::wire::worker::FromBroker;

/// How often unsettled matters (held peers, doubtful losses, stalls) are looked at.
pub(super) const HOUSEKEEPING: Duration = Duration::from_millis(50);

/// How long the log is left in peace about requests that found no handler: it has a line a minute, whatever clients do.
const UNSERVED_PAUSE: Duration = Duration::from_mins(1);

/// Looks after a pool until it is closed or gone.
pub(super) async fn keep_house(pool: Weak<Pool>) {
    while let Some(pool) = pool.upgrade().filter(|pool| !pool.closed.get()) {
        let next = pool.housekeeping();
        pool.wakes_at.set(next);
        let told = pool.unsettled.notified();
        match next {
            Some(next) => {
                tokio::select! {
                    () = told => {}
                    () = tokio::time::sleep_until(next) => {}
                }
            }
            None => told.await,
        }
        drop(pool);
        // However much happens, not more often than that.
        tokio::time::sleep(HOUSEKEEPING).await;
    }
}

impl Pool {
    /// The balancer may have something to do earlier than before.
    pub(super) fn expect_time(&self, state: &State) {
        let due = state.workers.balancer.due().map(Instant::from_std);
        if due.is_some_and(|due| self.wakes_at.get().is_none_or(|wakes| due < wakes)) {
            self.wakes_at.set(due);
            self.unsettled.notify_one();
        }
    }

    /// Lets time settle what is unsettled; says when there is something to settle next.
    pub(super) fn housekeeping(self: &Rc<Self>) -> Option<Instant> {
        let now = Instant::now();
        let soon = Some(now + HOUSEKEEPING);
        let state = &mut *self.state.borrow_mut();
        for (peer, unsent) in state.workers.settle(now).into_iter().rev() {
            let (requests, others): (Vec<_>, Vec<_>) = unsent
                .into_iter()
                .partition(|unsent| is_request(unsent.tag));
            for request in requests.into_iter().rev() {
                state.take_back(request.tag);
            }
            // Notices, messages and parts are for nobody else: they wait until it reads again.
            for unsent in others {
                // It had room for them before, and is told to be lost if it is gone meanwhile.
                let _queued = peer.send_again(unsent);
            }
        }
        self.resume_follow_ups(state);
        self.resume(state);
        self.tell_drained(state);
        self.tick(state, now);
        let awaits = self.settle_brokers(state, now);
        if self.retiring.get().is_some() {
            // What waits still needs a peer.
            if state.waiting() == 0 && !state.holds() {
                self.deaf.set(true);
                for listening in &*self.listening.borrow() {
                    listening.stop_accepting();
                }
                if !state.workers.dismiss_idle() {
                    self.end_sockets(state);
                    state.abandon_attached();
                }
            }
            return soon;
        }
        if awaits || state.workers.is_unsettled() || state.has_follow_ups() {
            return soon;
        }
        state.workers.balancer.due().map(Instant::from_std)
    }

    /// Does what the balancer says that the time has brought.
    fn tick(self: &Rc<Self>, state: &mut State, now: Instant) {
        let events = state.workers.balancer.tick(now.into_std());
        if events.is_empty() {
            return;
        }
        let mut unserved = 0;
        for event in events {
            match event {
                Event::Failed(request, why) => {
                    let why = Failure::from(why);
                    unserved += usize::from(matches!(why, Failure::WaitOver | Failure::NoHandler));
                    state.cancel(request);
                    let retry_after = state.workers.balancer.retry_after(now.into_std());
                    if let Some(open) = state.open_mut(request) {
                        if why == Failure::DeadlineOver {
                            open.caller.retire_id();
                        }
                        open.fail(Refused {
                            why,
                            retry_after: Some(retry_after),
                        });
                    }
                }
                Event::Dead(worker) => {
                    let Some(id) = state.workers.by(worker) else {
                        continue;
                    };
                    if let Some(peer) = state.workers.peer(id).cloned() {
                        warn!(peer = %peer.id(), origin = %peer.origin(), "a worker has been silent for too long: taken for dead");
                        state.take_back_all(&peer.take_unsent());
                        state.workers.say_to(peer.id(), &FromBroker::Bye);
                        peer.close();
                    }
                    self.give_up(state, id);
                }
                Event::Ejected(worker) => {
                    let name = state.workers.balancer.name(worker).unwrap_or_default();
                    warn!(worker = %name.escape_ascii(), "a worker is much slower than the others: it gets nothing for a while");
                    Name::WorkersEjected.increment();
                }
                Event::Returned(worker) => {
                    let name = state.workers.balancer.name(worker).unwrap_or_default();
                    info!(worker = %name.escape_ascii(), "a worker that was left out gets requests again");
                }
            }
        }
        if unserved > 0 {
            self.tell_unserved(now, unserved, !state.workers.is_anyone_connected());
        }
        self.resume(state);
    }

    /// Tells the log that requests found no handler, now and then: of the first ones at once, of further ones with the next line.
    fn tell_unserved(&self, now: Instant, count: usize, nobody_is_there: bool) {
        let (told, before) = self.unserved.get();
        let count = before.saturating_add(count);
        if told.is_some_and(|told| now.duration_since(told) < UNSERVED_PAUSE) {
            return self.unserved.set((told, count));
        }
        self.unserved.set((Some(now), 0));
        let why = if nobody_is_there {
            "none is connected"
        } else {
            "those that are connected take no more"
        };
        let handler = self.endpoints.borrow();
        let handler = handler.to_string();
        warn!(
            handler,
            requests = count,
            "no handler took requests in time: {why}"
        );
    }
}
