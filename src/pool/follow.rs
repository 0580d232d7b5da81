//! Further messages of one request: a body that is announced first and comes later, whole or in parts.
//!
//! They go to the peer that has the request, in order, never to another. The one that *completes* a request (the body is
//! stored) stays with it until its ticket is dropped, and goes wherever the request goes. A *passing* one (a part of a body) is
//! given to the peer or refused, so that nothing queues here. What may happen to a request whose peer is lost changes as they
//! go out: before, its handler has only heard an announcement, and telling another does no harm.

use std::rc::Rc;

use bytes::Bytes;

use super::requests::{End, Open, Phase, State, last_tag, part_tag};
use super::workers::{Link, Workers};
use super::{ATTEMPTS_MAX, Address, Failure, Pool, Refused, Retry, Ticket};
use crate::bus::server::{Full, Outgoing};
use crate::metrics::Name;

/// Bytes queued for a peer above which it gets no passing message: the client shall wait, not its body in memory.
const QUEUED_MAX: usize = 256 * 1024;

/// The further messages of a request.
#[derive(Debug, Default)]
pub(super) struct Follow {
    /// The one that completes the request, and how the request may be handed on once that is sent.
    last: Option<(Bytes, Retry)>,
    /// That one is with the peer.
    sent: bool,
    /// Passing messages have gone out: the request cannot be told from its beginning any more.
    passed: bool,
    /// Something waits for room at the peer: the last message, or the caller with more.
    waits: bool,
}

/// Whether the peer that has a request takes a passing message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It does.
    Now,
    /// It will when the other tasks of the shard have had a turn.
    Soon,
    /// It does not read, or nobody has the request: [`super::Caller::resumed`] tells when to ask again.
    Later,
}

impl Open {
    fn follow(&mut self) -> &mut Follow {
        self.follow.get_or_insert_default()
    }

    /// Whether it may be handed to another peer when the one that has it is lost.
    pub(super) fn may_be_handed_on(&self) -> bool {
        let retry = match self.follow.as_deref() {
            Some(Follow { passed: true, .. }) => Retry::Never,
            Some(Follow {
                last: Some((_, retry)),
                sent: true,
                ..
            }) => *retry,
            _ => self.retry,
        };
        // A handler may answer and end at once; two answers to one request must never meet on a connection.
        retry == Retry::Safe
            && !self.started
            && !self.caller.has_mail()
            && self.attempts < ATTEMPTS_MAX
    }

    /// Whether parts of it have gone out, which are not kept.
    pub(super) fn has_passed(&self) -> bool {
        self.follow.as_ref().is_some_and(|follow| follow.passed)
    }

    fn link<'w>(&self, workers: &'w Workers) -> Option<&'w Link> {
        match self.phase {
            Phase::Handed { worker } | Phase::Attached { worker } => workers.link(worker),
            Phase::Waiting { .. } | Phase::Failed => None,
        }
    }
}

impl State {
    /// A further message that its peer never got wholly, because it has stalled or is lost.
    pub(super) fn take_back_follow_up(&mut self, place: usize, serial: u32) {
        let Some(open) = self.open.get_mut(place).filter(|o| o.serial == serial) else {
            return;
        };
        let Some(follow) = &mut open.follow else {
            return;
        };
        if follow.last.is_some() {
            follow.sent = false;
            follow.waits = true;
        } else if open.phase != Phase::Failed {
            // A part of a body is lost: what its handler makes of the rest is worth nothing.
            self.abandon(place);
        }
    }

    /// No handler will answer this request.
    pub(super) fn abandon(&mut self, place: usize) {
        if let Some(open) = self.open.get_mut(place) {
            open.caller.retire_id();
            let old = std::mem::replace(&mut open.phase, Phase::Failed);
            Name::RequestsLostHandler.increment();
            open.caller.failed(Refused::now(Failure::HandlerLost));
            self.leave(old);
        }
    }

    /// A request that was in this phase refers to its worker no more.
    fn leave(&mut self, phase: Phase) {
        match phase {
            Phase::Handed { worker } => self.workers.end(worker),
            Phase::Attached { worker } => self.workers.detach(worker),
            Phase::Waiting { .. } | Phase::Failed => {}
        }
    }

    /// Whether something waits for room at a peer.
    pub(super) fn has_follow_ups(&self) -> bool {
        let waits = |open: &Open| open.follow.as_ref().is_some_and(|follow| follow.waits);
        self.follow_ups > 0 && self.open.iter().any(|(_, open)| waits(open))
    }
}

impl Pool {
    /// The request at `place` was just handed over: what completes it goes behind it.
    pub(super) fn follow(&self, state: &mut State, place: usize) {
        if let Some(follow) = state.open.get_mut(place).and_then(|o| o.follow.as_mut()) {
            follow.sent = false;
            self.send_last(state, place);
        }
    }

    /// Sends what completes a request to the peer that has it, if there is something to send and room.
    fn send_last(&self, state: &mut State, place: usize) {
        let State { open, workers, .. } = state;
        let Some(open) = open.get_mut(place) else {
            return;
        };
        let Some(link) = open.link(workers) else {
            return;
        };
        let tag = last_tag(place, open.serial);
        let caller = Rc::clone(&open.caller);
        let Some(follow) = &mut open.follow else {
            return;
        };
        let Some((message, _)) = follow.last.as_ref().filter(|_| !follow.sent) else {
            return;
        };
        let message = Outgoing {
            head: self.head(&Address::of(&caller)),
            body: message.clone(),
        };
        follow.waits = false;
        match link.send_message(message, tag) {
            Ok(()) => follow.sent = true,
            Err(Full::Queue) => {
                follow.waits = true;
                self.unsettled.notify_one();
            }
            Err(Full::Gone) => self.peer_has_left(state, place),
        }
    }

    /// The peer of this request has closed its PULL socket, so what is left to say does not reach it: the request goes to
    /// another from its beginning where that does no harm.
    fn peer_has_left(&self, state: &mut State, place: usize) {
        let Some(open) = state.open.get_mut(place) else {
            return;
        };
        if open.started {
            // It answered without having seen the whole, and may go on answering.
            return;
        }
        if open.may_be_handed_on() {
            open.caller.retire_id();
            let old = open.phase;
            Name::RequestsHandedOn.increment();
            state.enqueue(place, End::Front);
            state.leave(old);
            self.unsettled.notify_one();
        } else {
            state.abandon(place);
        }
    }

    /// Looks after what waits for room: sends it, or tells those who have more to say.
    pub(super) fn resume_follow_ups(&self, state: &mut State) {
        if state.follow_ups == 0 {
            return;
        }
        let waiting: Vec<usize> = state
            .open
            .iter()
            .filter(|(_, open)| open.follow.as_ref().is_some_and(|follow| follow.waits))
            .map(|(place, _)| place)
            .collect();
        for place in waiting {
            if let Some(follow) = state.open.get_mut(place).and_then(|o| o.follow.as_mut()) {
                follow.waits = false;
            }
            self.send_last(state, place);
            if let Some(open) = state.open.get(place) {
                open.caller.resumed();
            }
        }
    }
}

impl Ticket {
    /// Sends the one further message that completes the request, now or as soon as a peer has the request and room. It is
    /// kept for as long as the ticket. Once it is sent the request may be handed on as `retry` says; before, as it was submitted.
    pub fn complete(&self, message: Bytes, retry: Retry) {
        let state = &mut *self.pool.state.borrow_mut();
        if !self.begin_follow(state) {
            return;
        }
        if let Some(open) = state.open.get_mut(self.place) {
            open.follow().last = Some((message, retry));
        }
        self.pool.send_last(state, self.place);
        self.pool.pull(state);
    }

    /// Whether the message that completes the request is with a peer: it is the handler's business now, whatever becomes of it.
    pub fn is_completed(&self) -> bool {
        let completed =
            self.pool
                .with_open(self.place, self.serial, |_, open| match &open.follow {
                    Some(follow) => follow.sent,
                    None => false,
                });
        completed.unwrap_or(false)
    }

    /// Whether the peer that has the request takes a passing message now.
    pub fn room(&self) -> Room {
        let state = &mut *self.pool.state.borrow_mut();
        let room = match state.open.get(self.place) {
            Some(open) if open.serial == self.serial => {
                match open.link(&state.workers).map(|link| &link.peer) {
                    Some(peer) if peer.is_blocked() || peer.is_silent() => Room::Later,
                    Some(peer) if peer.is_gone() => Room::Now,
                    Some(peer) if peer.queued_bytes() >= QUEUED_MAX => Room::Soon,
                    Some(_) => Room::Now,
                    None => Room::Later,
                }
            }
            _ => Room::Later,
        };
        if room == Room::Later && self.begin_follow(state) {
            if let Some(open) = state.open.get_mut(self.place) {
                open.follow().waits = true;
            }
            self.pool.unsettled.notify_one();
        }
        room
    }

    /// Sends a passing message to the peer that has the request; ask for [`Ticket::room`] first. From now on the request is not
    /// handed on any more. When it cannot be sent, the request fails with [`Failure::HandlerLost`].
    pub fn follow_up(&self, message: Bytes) {
        let state = &mut *self.pool.state.borrow_mut();
        if !self.begin_follow(state) {
            return;
        }
        let State { open, workers, .. } = &mut *state;
        let Some(open) = open.get_mut(self.place) else {
            return;
        };
        let Some(link) = open.link(workers).cloned() else {
            return;
        };
        open.follow().passed = true;
        open.message = Bytes::new();
        let tag = part_tag(self.place, self.serial);
        let head = self.pool.head(&Address::of(&open.caller));
        let message = Outgoing {
            head,
            body: message,
        };
        if link.send_message(message, tag).is_err() {
            state.abandon(self.place);
        }
    }

    /// Makes room for notes on further messages; false when the request is not there any more.
    fn begin_follow(&self, state: &mut State) -> bool {
        let Some(open) = state.open.get_mut(self.place) else {
            return false;
        };
        if open.serial != self.serial {
            return false;
        }
        if open.follow.is_none() {
            open.follow();
            state.follow_ups += 1;
        }
        true
    }
}
