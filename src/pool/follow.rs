//! Further messages of one request: a body that is announced first and comes later, whole or in parts.
//!
//! They go to the peer that has the request, in order, never to another. The one that *completes* a request (the body is
//! stored) stays with it until its ticket is dropped, and goes wherever the request goes. A *passing* one (a part of a body) is
//! given to the peer or refused, so that nothing queues here. What may happen to a request whose peer is lost changes as they
//! go out: before, its handler has only heard an announcement, and telling another does no harm.

use std::rc::Rc;

use bytes::Bytes;

use super::requests::{Open, State, last_tag, now, part_tag};
use super::workers::Link;
use super::{Address, Failure, Pool, Refused, Retry, Ticket};
use crate::balancer::{Phase, Request};
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

    /// How often it may be begun by a worker, as far as that depends on what was sent of it.
    fn retry(&self) -> Retry {
        match self.follow.as_deref() {
            Some(Follow {
                last: Some((_, retry)),
                sent: true,
                ..
            }) => *retry,
            _ => self.retry,
        }
    }

    /// Whether it can be handed to another peer when the one that has it is lost.
    pub(super) fn can_be_handed_on(&self) -> bool {
        // A handler may answer and end at once; two answers to one request must never meet on a connection.
        !self.has_passed()
            && !self.started
            && !self.failed
            && self.done.is_none()
            && !self.caller.has_mail()
    }

    /// Whether something that follows it waits for room.
    fn waits_for_room(&self) -> bool {
        self.follow.as_ref().is_some_and(|follow| follow.waits)
    }

    /// Whether parts of it have gone out, which are not kept.
    pub(super) fn has_passed(&self) -> bool {
        self.follow.as_ref().is_some_and(|follow| follow.passed)
    }
}

impl State {
    /// The socket of the worker that has a request.
    fn link_of(&self, request: Request) -> Option<&Link> {
        self.workers.link(self.worker_of(request)?)
    }

    /// A further message that its peer never got wholly, because it has stalled or is lost.
    pub(super) fn take_back_follow_up(&mut self, request: Request) {
        let Some((open, workers)) = self.open_and_workers(request) else {
            return;
        };
        let Some(follow) = &mut open.follow else {
            return;
        };
        if follow.last.is_some() {
            follow.sent = false;
            follow.waits = true;
            workers.balancer.set_retry(request, open.retry());
        } else if !open.failed {
            // A part of a body is lost: what its handler makes of the rest is worth nothing.
            self.abandon(request);
        }
    }

    /// No handler will answer this request.
    pub(super) fn abandon(&mut self, request: Request) {
        self.cancel(request);
        if let Some(open) = self.open_mut(request) {
            open.caller.retire_id();
            Name::RequestsLostHandler.increment();
            open.fail(Refused::now(Failure::HandlerLost));
        }
    }

    /// Whether something waits for room at a peer.
    pub(super) fn has_follow_ups(&self) -> bool {
        self.follow_ups > 0 && self.all().any(|(_, open)| open.waits_for_room())
    }
}

impl Pool {
    /// The request was just handed over: what completes it goes behind it.
    pub(super) fn follow(&self, state: &mut State, request: Request) {
        if let Some(follow) = state.open_mut(request).and_then(|o| o.follow.as_mut()) {
            follow.sent = false;
            self.send_last(state, request);
        }
    }

    /// Sends what completes a request to the peer that has it, if there is something to send and room.
    fn send_last(&self, state: &mut State, request: Request) {
        let Some(link) = state.link_of(request).cloned() else {
            return;
        };
        let Some((open, workers)) = state.open_and_workers(request) else {
            return;
        };
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
        match link.send_message(message, last_tag(request)) {
            Ok(()) => {
                follow.sent = true;
                workers.balancer.set_retry(request, open.retry());
            }
            Err(Full::Queue) => {
                follow.waits = true;
                self.unsettled.notify_one();
            }
            Err(Full::Gone) => self.peer_has_left(state, request),
        }
    }

    /// The peer of this request has closed its PULL socket, so what is left to say does not reach it: the request goes to
    /// another from its beginning where that does no harm.
    fn peer_has_left(&self, state: &mut State, request: Request) {
        let phase = state.phase(request);
        let Some((open, workers)) = state.open_and_workers(request) else {
            return;
        };
        if open.started {
            // It answered without having seen the whole, and may go on answering.
            return;
        }
        let may = open.retry() == Retry::Safe && phase == Some(Phase::Handed);
        if may && open.can_be_handed_on() {
            open.caller.retire_id();
            Name::RequestsHandedOn.increment();
            // It has only heard an announcement, so that this is no attempt.
            workers.balancer.unsent(request, now());
            self.unsettled.notify_one();
        } else {
            state.abandon(request);
        }
    }

    /// Looks after what waits for room: sends it, or tells those who have more to say.
    pub(super) fn resume_follow_ups(&self, state: &mut State) {
        if state.follow_ups == 0 {
            return;
        }
        let waiting: Vec<Request> = state
            .all()
            .filter(|(_, open)| open.waits_for_room())
            .map(|(request, _)| request)
            .collect();
        for request in waiting {
            if let Some(follow) = state.open_mut(request).and_then(|o| o.follow.as_mut()) {
                follow.waits = false;
            }
            self.send_last(state, request);
            if let Some(open) = state.open(request) {
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
        if let Some(open) = state.open_mut(self.request) {
            open.follow().last = Some((message, retry));
        }
        self.pool.send_last(state, self.request);
        self.pool.pull(state);
    }

    /// The handler acts on what was announced to it: from here on the request may be handed on as `retry` says.
    pub fn acted(&self, retry: Retry) {
        let state = &mut *self.pool.state.borrow_mut();
        if let Some((open, workers)) = state.open_and_workers(self.request) {
            open.retry = retry;
            workers.balancer.set_retry(self.request, open.retry());
        }
    }

    /// Whether the message that completes the request is with a peer: it is the handler's business now, whatever becomes of it.
    pub fn is_completed(&self) -> bool {
        let state = self.pool.state.borrow();
        let follow = state
            .open(self.request)
            .and_then(|open| open.follow.as_ref());
        follow.is_some_and(|follow| follow.sent)
    }

    /// Whether the peer that has the request takes a passing message now.
    pub fn room(&self) -> Room {
        let state = &mut *self.pool.state.borrow_mut();
        let room = match state.link_of(self.request).map(|link| &link.peer) {
            Some(peer) if peer.is_blocked() || peer.is_silent() => Room::Later,
            Some(peer) if peer.is_gone() => Room::Now,
            Some(peer) if peer.queued_bytes() >= QUEUED_MAX => Room::Soon,
            Some(_) => Room::Now,
            None => Room::Later,
        };
        if room == Room::Later && self.begin_follow(state) {
            if let Some(open) = state.open_mut(self.request) {
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
        let Some(link) = state.link_of(self.request).cloned() else {
            return;
        };
        let Some(open) = state.open_mut(self.request) else {
            return;
        };
        open.follow().passed = true;
        open.message = Bytes::new();
        let tag = part_tag(self.request);
        let head = self.pool.head(&Address::of(&open.caller));
        let message = Outgoing {
            head,
            body: message,
        };
        if link.send_message(message, tag).is_err() {
            state.abandon(self.request);
        }
    }

    /// Makes room for notes on further messages; false when the request is not there any more.
    fn begin_follow(&self, state: &mut State) -> bool {
        let Some(open) = state.open_mut(self.request) else {
            return false;
        };
        if open.follow.is_none() {
            open.follow();
            state.follow_ups += 1;
        }
        true
    }
}
