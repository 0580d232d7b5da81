//! What workers at the ROUTER say, as the pool takes it: who they are, what they have begun and done, that they go.
//!
//! How it is said stands in [`super::router`]. A worker is one socket here, so there is nothing to pair: it takes requests when it
//! has said who it is, and when its connection ends it is dead. What is said of a request by one that does not have it any more is
//! dropped and counted.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::session::Condition;
use super::{Dialect, Pool};
use crate::bus::server::{Peer, PeerId, Unsent};
use crate::metrics::Name;
use crate::wire::worker::{FromBroker, RequestId};

/// What a worker says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// What it speaks.
    pub(super) dialect: Dialect,
    /// What it is called; the same after it was started anew.
    pub(super) name: &'a [u8],
    /// How many requests it takes at once; none: what the rules say.
    pub(super) slots: Option<u32>,
    /// Its share beside others.
    pub(super) weight: u32,
}

impl Pool {
    /// A worker has said who it is: it takes requests from now on.
    pub(super) fn worker_joins(self: &Rc<Self>, peer: &Rc<Peer>, facts: Facts<'_>) {
        Name::HandlersJoined.increment();
        let state = &mut *self.state.borrow_mut();
        state.workers.join_routed(peer, facts, Instant::now());
        self.resume(state);
        self.unsettled.notify_one();
    }

    /// From now on it takes so many requests at once; none: what the rules say.
    pub(super) fn worker_credit(self: &Rc<Self>, peer: PeerId, slots: Option<u32>) {
        let state = &mut *self.state.borrow_mut();
        state.workers.set_slots_of(peer, slots);
        self.resume(state);
    }

    /// How long a word takes to it and back.
    pub(super) fn worker_hop(&self, peer: PeerId, hop: Duration) {
        self.state.borrow_mut().workers.set_hop(peer, hop);
    }

    /// It still has a request that it was given before this connection, called so then: what it says of it is heard. Not where it was
    /// this pool's own: that was settled when the connection before ended, and another may be answering it.
    pub(super) fn worker_holds(self: &Rc<Self>, peer: PeerId, id: RequestId, address: &Bytes) {
        let state = self.state.borrow();
        if state.has_called(id) {
            state.workers.say_to(peer, &FromBroker::Cancel(id));
            return;
        }
        drop(state);
        if self.state.borrow_mut().workers.holds(peer, id) {
            self.replies.held(self, peer, id, address);
        }
    }

    /// A request from before a worker's connection has become a stream, and takes no slot of it any more.
    pub fn free_held(self: &Rc<Self>, peer: PeerId, id: RequestId) {
        let state = &mut *self.state.borrow_mut();
        state.workers.free_hold(peer, id);
        self.resume(state);
    }

    /// Workers are expected to come back with requests of before, until then: what they have counts before they are given more.
    pub fn expect_returns(&self, until: Instant) {
        self.state.borrow_mut().workers.expect_returns(until);
    }

    /// It begins with a request.
    pub(super) fn request_began(&self, peer: PeerId, id: RequestId) {
        let state = &mut *self.state.borrow_mut();
        match state.labelled(peer, id) {
            Some(request) => state.workers.balancer.began(request),
            None => Name::RepliesUnknownId.increment(),
        }
    }

    /// It is done with a request, and took so long.
    pub(super) fn request_done(self: &Rc<Self>, peer: PeerId, id: RequestId, took: Duration) {
        let state = &mut *self.state.borrow_mut();
        // One that has no slots may say it when its response has ended, and all is forgotten.
        if !state.done(peer, id, took) && !state.has_forgotten(id) {
            Name::RepliesUnknownId.increment();
        }
        self.resume(state);
        self.tell_ended();
    }

    /// It says something: to a request, or to nobody in particular. Words to requests that it does not have are dropped.
    pub(super) fn worker_replied(
        self: &Rc<Self>,
        peer: PeerId,
        id: Option<RequestId>,
        message: Bytes,
    ) {
        Name::Replies.increment();
        let heard = id.is_none_or(|id| {
            let state = self.state.borrow();
            // One that nobody waits for has no ticket.
            let open = state
                .labelled(peer, id)
                .and_then(|request| state.open(request));
            open.is_some() || state.workers.is_holding(peer, id)
        });
        if heard {
            self.replies.reply(self, peer, message);
        } else {
            Name::RepliesUnknownId.increment();
        }
    }

    /// It wants no more requests. It is told in its dialect when it has had its last.
    pub(super) fn worker_drains(self: &Rc<Self>, peer: PeerId) {
        let state = &mut *self.state.borrow_mut();
        let begun = state.workers.drain_peer(peer);
        self.begin_drain(state, begun);
    }

    /// Its signs of life say otherwise than before. One that is silent or stuck gets nothing more, and one that stays silent is taken for
    /// dead.
    pub(super) fn worker_does(self: &Rc<Self>, peer: PeerId, condition: Condition) {
        let state = &mut *self.state.borrow_mut();
        state.workers.set_condition(peer, condition);
        match condition {
            Condition::Well => self.resume(state),
            Condition::Stuck | Condition::Silent => self.unsettled.notify_one(),
        }
    }

    /// Whether it has anything: requests, streams, attached connections.
    pub(super) fn worker_has(&self, peer: PeerId) -> bool {
        self.state.borrow().workers.is_awaited(peer)
    }

    /// Its socket takes nothing more although something is queued.
    pub(super) fn worker_blocked(&self, peer: PeerId) {
        self.state.borrow_mut().workers.blocked(peer);
        self.unsettled.notify_one();
    }

    /// Its socket has taken all that was queued.
    pub(super) fn worker_writable(self: &Rc<Self>, peer: PeerId) {
        let state = &mut *self.state.borrow_mut();
        state.workers.drained(peer);
        self.resume_follow_ups(state);
        self.resume(state);
        self.tell_drained(state);
    }

    /// Its connection has ended, and it is dead with all that it had.
    pub(super) fn worker_lost(self: &Rc<Self>, peer: &Rc<Peer>, unsent: &[Unsent]) {
        Name::HandlersLost.increment();
        let state = &mut *self.state.borrow_mut();
        state.take_back_all(unsent);
        let now = Instant::now();
        if let Some(dead) = state.workers.lose(peer.id(), now) {
            self.give_up(state, dead);
        }
        self.resume(state);
        self.tell_ended();
        self.unsettled.notify_one();
    }
}
