//! Workers at the ROUTER in the table of workers: one socket, which is its own voice.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::super::NO_TAG;
use super::super::kin::Kin;
use super::super::requests::now;
use super::super::routed::Facts;
use super::leaving::Leave;
use super::{Dialect, Link, Voice, Workers};
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
        self.enter(link, kin, facts, now);
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

    /// A worker has a request from before its connection. False when that is one too many.
    pub(in crate::pool) fn holds(&mut self, peer: PeerId, id: RequestId) -> bool {
        let Some(worker) = self.find(peer).and_then(|id| self.all.get_mut(id.0)) else {
            return false;
        };
        worker.holds.len() < HOLDS_MAX && worker.holds.insert(id)
    }

    /// What a worker says to this request is heard although the request is over, as it is one that goes on as messages.
    pub(in crate::pool) fn go_on_hearing(&mut self, id: super::Id, request: RequestId) {
        let worker = self.all.get_mut(id.0);
        if let Some(worker) = worker.filter(|worker| worker.link.dialect == Dialect::Own)
            && worker.holds.len() < HOLDS_MAX
        {
            worker.holds.insert(request);
        }
    }

    /// Whether a worker has said that it has this request from before its connection.
    pub(in crate::pool) fn is_holding(&self, peer: PeerId, id: RequestId) -> bool {
        let worker = self.find(peer).and_then(|id| self.all.get(id.0));
        worker.is_some_and(|worker| worker.holds.contains(&id))
    }

    /// A worker has no more to say to a request from before its connection; false when it never said that it had it.
    pub(in crate::pool) fn let_hold_go(&mut self, peer: PeerId, id: RequestId) -> bool {
        let worker = self.find(peer).and_then(|id| self.all.get_mut(id.0));
        worker.is_some_and(|worker| worker.holds.remove(&id))
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

    /// A worker is silent, or is heard again.
    pub(in crate::pool) fn suspect(&mut self, peer: PeerId, silent: bool) {
        let Some(id) = self.find(peer) else {
            return;
        };
        if let Some(worker) = self.all.get_mut(id.0) {
            worker.silent = silent;
        }
        self.restand(id);
    }
}
