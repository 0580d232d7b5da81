//! Brokers among the handlers. One that is lost is waited for: its successor is told by the machine's memory what it had, finds the
//! workers that have it, and answers.
//!
//! A broker says that it is one when it connects, and its successor comes with the same token, so the pool takes both for one handler. What the
//! first had stays with it, and is answered by the other. Then that one says what it knows of ([`Pool::broker_has`]); the rest was
//! lost on its way and has failed.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use super::kin::{self, Kin};
use super::requests::State;
use super::{Failure, Pool, Refused, workers};
use crate::bus::server::PeerId;
use crate::metrics::Name;
use crate::wire::ConnId;

/// How long a broker that was lost may take to come back: to be started anew takes less than a second, and whoever waits for an
/// answer should not wait much longer for the news that there is none.
const BROKER_GRACE: Duration = Duration::from_secs(5);

/// A broker that was lost, and since when.
pub(super) struct Awaited {
    since: Instant,
    worker: workers::Id,
    kin: Kin,
}

impl Pool {
    /// Ends what a dead worker had, unless it was a broker: that one may come back.
    pub(super) fn bury(self: &Rc<Self>, state: &mut State, worker: workers::Id) {
        match state.workers.broker(worker) {
            Some(kin) if !self.closed.get() => {
                info!(
                    "a broker is lost: what it had is kept for its successor, for {BROKER_GRACE:?} at most"
                );
                let since = Instant::now();
                state.awaited.push(Awaited { since, worker, kin });
                self.unsettled.notify_one();
            }
            _ => self.give_up(state, worker),
        }
    }

    /// Gives up what nobody has come back for; says whether anybody is still waited for.
    pub(super) fn settle_brokers(self: &Rc<Self>, state: &mut State, now: Instant) -> bool {
        if state.awaited.is_empty() {
            return false;
        }
        for awaited in std::mem::take(&mut state.awaited) {
            if state.workers.has_voice(awaited.kin) {
                info!("a broker has come back");
            } else if now.duration_since(awaited.since) >= BROKER_GRACE {
                self.give_up(state, awaited.worker);
            } else {
                state.awaited.push(awaited);
            }
        }
        !state.awaited.is_empty()
    }

    /// What a broker that has come back knows of all that its predecessor had.
    pub(super) fn broker_has(
        self: &Rc<Self>,
        voice: PeerId,
        token: &[u8],
        ids: impl Iterator<Item = ConnId>,
    ) {
        let state = &mut *self.state.borrow_mut();
        let Some(kin) = kin::token(token).map(Kin::Token) else {
            return;
        };
        if !state.workers.is_of_kin(voice, kin) {
            return;
        }
        let known: HashSet<ConnId> = ids.collect();
        let mut lost = 0_usize;
        for worker in state.workers.departed_of(kin) {
            let Some(key) = state.workers.key(worker) else {
                continue;
            };
            let requests: Vec<_> = state.workers.balancer.requests_of(key).collect();
            for request in requests {
                let Some(open) = state.open_mut(request).filter(|open| !open.failed) else {
                    continue;
                };
                if known.contains(&Rc::clone(&open.caller).id()) {
                    continue;
                }
                lost += 1;
                Name::RequestsLostHandler.increment();
                open.caller.retire_id();
                open.fail(Refused::now(Failure::HandlerLost));
            }
        }
        debug!(known = known.len(), lost, "a broker has said what it has");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Retry;
    use super::super::tests::{HERE, Handler, pass, pool, submit};
    use super::*;
    use crate::bus::server::Peer;
    use crate::bus::{BROKER_PROPERTY, HANDLER_PROPERTY};

    const LINE: &str = "0123456789abcdef0123456789abcde1";

    /// A broker, joined; or its successor.
    fn broker(pool: &Rc<Pool>) -> Handler {
        let properties = [(HANDLER_PROPERTY, LINE), (BROKER_PROPERTY, "b")];
        let socket = || Peer::unconnected_with(HERE, &properties);
        let broker = Handler {
            pool: Rc::clone(pool),
            pull: socket(),
            voice: socket(),
        };
        broker.voice_joins();
        broker.pull_joins();
        broker
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_broker_had_is_its_successors_and_what_that_one_does_not_know_has_failed() {
        let pool = pool(None);
        let first = broker(&pool);
        let (held, note) = submit(&pool, 1, "a", Retry::Safe);
        let (lost, other) = submit(&pool, 2, "b", Retry::Never);
        first.takes_all();
        first.pull_lost();
        first.voice_lost();
        pass(&pool, Duration::from_secs(4)).await;
        assert_eq!((note.retired.get(), other.failures.borrow().len()), (0, 0));
        let second = broker(&pool);
        pass(&pool, BROKER_GRACE * 2).await;
        assert_eq!((note.retired.get(), other.failures.borrow().len()), (0, 0));
        let stranger = b"0123456789abcdef0123456789abcde2";
        pool.broker_has(second.voice.id(), stranger, [].into_iter());
        assert_eq!(other.failures.borrow().len(), 0, "another's word");
        pool.broker_has(second.voice.id(), LINE.as_bytes(), [ConnId(1)].into_iter());
        assert_eq!((note.retired.get(), other.failures.borrow().len()), (0, 1));
        // What it gets itself is not meant.
        let (own, new) = submit(&pool, 3, "c", Retry::Never);
        assert_eq!(second.has(), ["s 3 c"]);
        pool.broker_has(second.voice.id(), LINE.as_bytes(), [ConnId(1)].into_iter());
        assert_eq!(new.failures.borrow().len(), 0);
        drop((held, lost, own));
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_does_not_come_back_has_lost_what_it_had() {
        let pool = pool(None);
        let broker = broker(&pool);
        let (held, note) = submit(&pool, 1, "a", Retry::Never);
        broker.takes_all();
        broker.voice_lost();
        broker.pull_lost();
        pass(&pool, BROKER_GRACE / 2).await;
        assert_eq!(note.failures.borrow().len(), 0);
        pass(&pool, BROKER_GRACE).await;
        assert_eq!(note.failures.borrow().len(), 1);
        drop(held);
    }
}
