//! Peers that get no more new requests although their socket is open: a handler that stops, or one that somebody else stops.
//!
//! What is not yet written to such a peer goes to another where one is ready, and is written otherwise; its attached
//! connections move in the same way. Then a handler that has asked by its token is told that it had its last request. What belongs
//! to those that it has (disconnects, credits, parts of bodies) goes to it until it closes its socket.

use std::rc::Rc;

use super::requests::is_request;
use super::{NOTICE_TAG, Pool, State, workers};
use crate::bus::server::{PeerId, Unsent};
use crate::metrics::Name;
use crate::wire::ConnId;
use crate::wire::request::Notice;

impl Pool {
    /// The handler behind a reply socket asks for no more requests. Its token shows that it speaks for itself; any other is ignored.
    pub fn drain_voice(self: &Rc<Self>, voice: PeerId, token: &[u8]) {
        let state = &mut *self.state.borrow_mut();
        let begun = state.workers.drain_voice(voice, token);
        self.begin_drain(state, begun);
    }

    /// Gives no more new requests to the handlers of a process, which must be on ipc. For programs that do not ask for it themselves;
    /// they are not told. [`Pool::process_idle`] says when they have nothing open any more.
    pub fn drain_process(self: &Rc<Self>, process: u32) {
        let state = &mut *self.state.borrow_mut();
        let begun = state.workers.drain_process(process);
        self.begin_drain(state, begun);
    }

    /// What the handlers of a process have open: requests, streams and attached connections.
    pub fn held_by_process(&self, process: u32) -> usize {
        self.state.borrow().workers.held_by_process(process)
    }

    /// Waits until the handlers of a process have nothing open.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only waits.
    pub async fn process_idle(&self, process: u32) {
        self.is_watched.set(true);
        loop {
            let ended = self.ended.notified();
            if self.held_by_process(process) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Something that was open has ended.
    pub(super) fn tell_ended(&self) {
        if self.is_watched.get() {
            self.ended.notify_waiters();
        }
    }

    fn begin_drain(self: &Rc<Self>, state: &mut State, begun: Vec<workers::Id>) {
        for worker in begun {
            self.take_over(state, worker);
            self.move_attached(state, worker);
        }
        self.resume(state);
        self.tell_drained(state);
    }

    /// Gives to others what is queued for a peer and not written, if there are any.
    fn take_over(&self, state: &mut State, worker: workers::Id) {
        let Some(peer) = state.workers.peer(worker).cloned() else {
            return;
        };
        if peer.queued_messages() == 0 || !state.workers.is_anyone_ready() {
            return;
        }
        let (theirs, own): (Vec<_>, Vec<_>) = peer
            .take_unsent()
            .into_iter()
            .partition(|unsent| is_request(unsent.tag) || is_attached(unsent.tag));
        state.take_back_messages(&theirs);
        let requests = theirs.iter().rev().filter(|unsent| is_request(unsent.tag));
        for request in requests {
            state.take_back(request.tag);
        }
        for Unsent { tag, message } in own {
            if peer.send(message, tag).is_err() {
                Name::NoticesDropped.increment();
            }
        }
        self.unsettled.notify_one();
    }

    /// Tells handlers that have asked that they had their last request; again later where there is no room for that.
    pub(super) fn tell_drained(&self, state: &mut State) {
        for (worker, peer) in state.workers.untold() {
            let sent = self.try_notice(&peer, ConnId(0), Notice::Drained);
            if sent {
                state.workers.told(worker);
            } else {
                self.unsettled.notify_one();
            }
        }
    }
}

/// Whether it is a message of an attached connection.
fn is_attached(tag: u64) -> bool {
    tag & NOTICE_TAG == 0 && !is_request(tag) && !super::requests::is_part(tag)
}
