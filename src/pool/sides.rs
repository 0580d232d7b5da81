//! The two sockets of a pool as the bus sees them: what happens to their peers becomes the pool's business.

use std::rc::Rc;

use tokio::time::Instant;

use super::Pool;
use crate::bus::server::{Message, Peer, Sink, Unsent};
use crate::metrics::Name;
use crate::wire::reply;

/// The PUSH side of a pool as the bus sees it.
pub(super) struct PushSide(pub(super) Rc<Pool>);

impl Sink for PushSide {
    fn joined(&self, peer: &Rc<Peer>) {
        Name::HandlersJoined.increment();
        let state = &mut *self.0.state.borrow_mut();
        state.workers.join(peer, Instant::now());
        self.0.tell_drained(state);
        self.0.resume(state);
        self.0.unsettled.notify_one();
    }

    fn subscribed(&self, _: &Rc<Peer>) {}

    fn message(&self, _: &Rc<Peer>, _: Message) {}

    fn blocked(&self, peer: &Rc<Peer>) {
        self.0.state.borrow_mut().workers.blocked(peer.id());
        self.0.unsettled.notify_one();
    }

    fn is_awaited(&self, peer: &Rc<Peer>) -> bool {
        self.0.state.borrow().workers.is_awaited(peer.id())
    }

    fn writable(&self, peer: &Rc<Peer>) {
        let state = &mut *self.0.state.borrow_mut();
        state.workers.drained(peer.id());
        self.0.resume_follow_ups(state);
        self.0.resume(state);
        self.0.tell_drained(state);
    }

    fn lost(&self, peer: &Rc<Peer>, unsent: Vec<Unsent>) {
        Name::HandlersLost.increment();
        let state = &mut *self.0.state.borrow_mut();
        state.take_back_all(&unsent);
        if let Some(dead) = state.workers.leave(peer.id(), Instant::now()) {
            self.0.bury(state, dead);
        }
        self.0.resume(state);
        self.0.tell_ended();
        self.0.unsettled.notify_one();
    }
}

/// The SUB side.
pub(super) struct SubSide(pub(super) Rc<Pool>);

impl Sink for SubSide {
    fn joined(&self, peer: &Rc<Peer>) {
        self.0.state.borrow_mut().workers.voice_joined(peer);
    }

    fn subscribed(&self, peer: &Rc<Peer>) {
        let state = &mut *self.0.state.borrow_mut();
        state.workers.voice_subscribed(peer.id());
        self.0.resume(state);
    }

    fn message(&self, peer: &Rc<Peer>, message: Message) {
        Name::Replies.increment();
        match message.into_single() {
            Ok(frame) => {
                if let Some(token) = reply::decode_drain(&frame) {
                    return self.0.drain_voice(peer.id(), token);
                }
                if let Some((token, ids)) = reply::decode_has(&frame) {
                    return self.0.broker_has(peer.id(), token, ids);
                }
                self.0.replies.reply(&self.0, peer.id(), frame);
            }
            Err(_) => Name::RepliesMalformed.increment(),
        }
    }

    fn writable(&self, _: &Rc<Peer>) {}

    fn is_full(&self) -> bool {
        self.0.replies.is_full()
    }

    fn lost(&self, peer: &Rc<Peer>, _: Vec<Unsent>) {
        let state = &mut *self.0.state.borrow_mut();
        for dead in state.workers.voice_lost(peer.id(), Instant::now()) {
            self.0.bury(state, dead);
        }
        self.0.unsettled.notify_one();
    }
}
