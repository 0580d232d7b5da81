//! Workers at the ROUTER in the table of workers: one socket, which is its own voice.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::super::NO_TAG;
use super::super::kin::Kin;
use super::super::requests::now;
use super::super::routed::Facts;
use super::super::session::Condition;
use super::leaving::Leave;
use super::{Dialect, Hold, Link, Phase, Voice, Workers};
use crate::balancer::{NewWorker, Standing};
use crate::bus::server::{Peer, PeerId};
use crate::metrics::Name;
use crate::wire::worker::{FromBroker, RequestId};

/// Requests from before its connection that a worker may say it still has: what a broker gives to one worker at most.
const HOLDS_MAX: usize = 4096;

impl Workers {
    /// A worker has said who it is.
    pub(in crate::pool) fn join_routed(&mut self, peer: &Rc<Peer>, facts: Facts<'_>, now: Instant) {
        let kin = Kin::Same(peer.id());
        debug!(
            peer = %peer.id(), origin = ?peer.origin(), dialect = ?facts.dialect,
            name = %facts.name.escape_ascii(), slots = ?facts.slots, weight = facts.weight, "worker joined"
        );
        let voice = Voice {
            kin,
            subscribed: true,
            drains: false,
        };
        self.voices.insert(peer.id(), voice);
        let link = Link {
            peer: Rc::clone(peer),
            dialect: facts.dialect,
        };
        let facts = NewWorker {
            name: facts.name,
            slots: facts.slots,
            weight: facts.weight,
            standing: Standing::Held,
            tells_start: facts.dialect == Dialect::Own,
        };
        let may_hold = link.dialect == Dialect::Own;
        let phase = match self.returning_until {
            Some(until) if may_hold && now < until => Phase::Returning { since: now },
            _ => Phase::Pairing { since: now },
        };
        self.enter(link, kin, facts, phase, now);
    }

    /// A worker's connection has ended. Gives it when it had something.
    pub(in crate::pool) fn lose(&mut self, peer: PeerId, now: Instant) -> Option<super::Id> {
        self.voices.remove(&peer);
        self.leave(peer, now)
    }

    /// How many requests a worker takes at once from now on.
    pub(in crate::pool) fn set_slots_of(&mut self, peer: PeerId, slots: Option<u32>) {
        if let Some(key) = self.find(peer).and_then(|id| self.key(id)) {
            self.balancer.set_slots(key, slots, now());
        }
    }

    /// How long a word takes to a worker and back.
    pub(in crate::pool) fn set_hop(&mut self, peer: PeerId, hop: Duration) {
        if let Some(key) = self.find(peer).and_then(|id| self.key(id)) {
            self.balancer.set_hop(key, hop);
        }
    }

    /// Workers are expected that have something from before their connection: until then each is given nothing before it has had time to
    /// say so.
    pub(in crate::pool) fn expect_returns(&mut self, until: Instant) {
        self.returning_until = Some(until);
    }

    /// A worker has a request from before its connection, which takes one of its slots. False when that is one too many.
    pub(in crate::pool) fn holds(&mut self, peer: PeerId, id: RequestId) -> bool {
        self.hear_about(self.find(peer), id, Hold::Busy)
    }

    /// What a worker says to this request is heard although the request is over, as it is one that goes on as messages.
    pub(in crate::pool) fn go_on_hearing(&mut self, id: super::Id, request: RequestId) {
        self.hear_about(Some(id), request, Hold::Idle);
    }

    fn hear_about(&mut self, id: Option<super::Id>, request: RequestId, hold: Hold) -> bool {
        let Some(worker) = id.and_then(|id| self.all.get_mut(id.0)) else {
            return false;
        };
        if worker.link.dialect != Dialect::Own
            || worker.holds.len() >= HOLDS_MAX
            || worker.holds.contains_key(&request)
        {
            return false;
        }
        worker.holds.insert(request, hold);
        let key = worker.key;
        if hold == Hold::Busy {
            self.balancer
                .set_foreign(key, self.balancer.foreign(key) + 1);
        }
        true
    }

    /// Whether a worker is heard about this request, which is not open.
    pub(in crate::pool) fn is_holding(&self, peer: PeerId, id: RequestId) -> bool {
        let worker = self.find(peer).and_then(|id| self.all.get(id.0));
        worker.is_some_and(|worker| worker.holds.contains_key(&id))
    }

    /// A worker has no more to say to such a request; false when it was not heard about it.
    pub(in crate::pool) fn let_hold_go(&mut self, peer: PeerId, id: RequestId) -> bool {
        self.free_hold(peer, id);
        let worker = self.find(peer).and_then(|id| self.all.get_mut(id.0));
        worker.is_some_and(|worker| worker.holds.remove(&id).is_some())
    }

    /// Such a request takes no slot of its worker any more.
    pub(in crate::pool) fn free_hold(&mut self, peer: PeerId, id: RequestId) {
        let worker = self.find(peer).and_then(|id| self.all.get_mut(id.0));
        let Some((hold, key)) =
            worker.and_then(|worker| Some((worker.holds.get_mut(&id)?, worker.key)))
        else {
            return;
        };
        if std::mem::replace(hold, Hold::Idle) == Hold::Busy {
            let foreign = self.balancer.foreign(key);
            self.balancer.set_foreign(key, foreign.saturating_sub(1));
        }
    }

    /// A worker wants no more requests.
    pub(in crate::pool) fn drain_peer(&mut self, peer: PeerId) -> Vec<super::Id> {
        self.drain_where(Leave::Untold, |worker| worker.link.peer.id() == peer)
    }

    /// For how long the program of a worker has come no further.
    pub(in crate::pool) fn set_stuck(&mut self, peer: PeerId, stuck: Option<Duration>) {
        if let Some(worker) = self.find(peer).and_then(|id| self.all.get_mut(id.0)) {
            worker.no_progress = stuck;
        }
    }

    /// Says a word of the own dialect to a worker.
    pub(in crate::pool) fn say_to(&self, peer: PeerId, word: &FromBroker) {
        let link = self.find(peer).and_then(|id| self.link(id));
        if link.is_some_and(|link| link.say(word, NO_TAG).is_err()) {
            Name::NoticesDropped.increment();
        }
    }

    /// Tells the workers that have a word for it that the broker goes.
    pub(in crate::pool) fn bid_farewell(&self) {
        for (_, worker) in &self.all {
            // Who has no room for it sees the end of its connection.
            let _seen_later = worker.link.say(&FromBroker::Bye, NO_TAG);
        }
    }

    /// What a worker's signs of life say.
    pub(in crate::pool) fn set_condition(&mut self, peer: PeerId, condition: Condition) {
        let Some(id) = self.find(peer) else {
            return;
        };
        if let Some(worker) = self.all.get_mut(id.0) {
            worker.condition = condition;
        }
        self.restand(id);
    }
}
