//! The requests of a pool that have a ticket: what is kept of them, beside what the balancer knows.
//!
//! Where a request is (waiting, handed to whom) and what happens to it is the balancer's business. Here are its message and its caller,
//! in a table by [`Request::index`], and what must be done with it when its message comes back unwritten.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::time::Instant;

use super::attached::{Attached, Held};
use super::brokers::Awaited;
use super::follow::Follow;
use super::workers::{self, Workers};
use super::{Caller, Failure, Refused, Retry};
use crate::balancer::{self, Lost, Phase, Request};
use crate::bus::server::{PeerId, Unsent};
use crate::metrics::Name;
use crate::wire::worker::{FromBroker, RequestId};

pub(super) struct State {
    pub(super) workers: Workers,
    open: Vec<Option<Open>>,
    /// Requests that wait, as they were last shown in the figures.
    waiting_shown: usize,
    /// Requests are called by their number and this in the own dialect, so that a broker that was started anew uses other names.
    labels_from: u32,
    /// The highest of those numbers.
    latest: u32,
    /// Tells attachments apart that have the same place one after the other.
    pub(super) serial: u32,
    pub(super) attached: Slab<Attached>,
    pub(super) held: Held,
    /// Requests that have further messages, or may have.
    pub(super) follow_ups: usize,
    /// Brokers that were lost and may come back.
    pub(super) awaited: Vec<Awaited>,
}

/// A request that has a ticket.
pub(super) struct Open {
    serial: u32,
    /// Kept until a response begins, so that it can be handed on.
    pub(super) message: Bytes,
    /// Whether it may be handed on while nothing has followed it.
    pub(super) retry: Retry,
    pub(super) started: bool,
    /// Its caller was told that nobody will answer.
    pub(super) failed: bool,
    /// Its worker has said that it is done with it, after that time.
    pub(super) done: Option<Duration>,
    /// Its response had become a stream before that: how long that goes on tells nothing of how long its worker takes.
    pub(super) streams: bool,
    /// Boxed, as few requests have any.
    pub(super) follow: Option<Box<Follow>>,
    pub(super) caller: Rc<dyn Caller>,
}

impl Open {
    pub(super) fn new(
        request: Request,
        message: Bytes,
        retry: Retry,
        caller: Rc<dyn Caller>,
    ) -> Self {
        Self {
            serial: request.serial(),
            message,
            retry,
            started: false,
            failed: false,
            done: None,
            streams: false,
            follow: None,
            caller,
        }
    }

    /// Tells the caller that nobody will answer.
    pub(super) fn fail(&mut self, refused: Refused) {
        if !std::mem::replace(&mut self.failed, true) {
            self.caller.failed(refused);
        }
    }
}

/// What a request looks like as the tag of a message on the bus.
pub(super) fn tag(request: Request) -> u64 {
    (request.index() as u64) << 32 | u64::from(request.serial())
}

/// The request that a tag names, whatever else it says.
fn request(tag: u64) -> Request {
    let tag = tag & !(FOLLOW_TAG | PART_TAG);
    let index = u32::try_from(tag >> 32).unwrap_or(u32::MAX);
    Request::from_parts(index, (tag & 0xffff_ffff) as u32)
}

/// Tags of further messages of a request have this bit, and those of parts of its body the second; indexes of requests never do.
const FOLLOW_TAG: u64 = 1 << 61;
const PART_TAG: u64 = 1 << 60;

/// The tag of the message that completes a request.
pub(super) fn last_tag(request: Request) -> u64 {
    FOLLOW_TAG | tag(request)
}

/// The tag of a part of its body.
pub(super) fn part_tag(request: Request) -> u64 {
    PART_TAG | last_tag(request)
}

/// Whether the message is a part of a body, which only the peer that has the others can use.
pub(super) fn is_part(tag: u64) -> bool {
    tag >> 60 == 0b0011
}

/// The tag of messages that nobody takes back.
pub(super) const NO_TAG: u64 = u64::MAX;

/// Tags of disconnect notices have this bit, and the connection's id in the lower half; requests never have it.
pub(super) const NOTICE_TAG: u64 = 1 << 63;

/// Whether a message with this tag is a request or completes one: what else there is has one of the upper two bits, or is a part.
pub(super) fn is_request(tag: u64) -> bool {
    tag >> 62 == 0 && !is_part(tag)
}

/// Now, as the balancer knows time.
pub(super) fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl State {
    pub(super) fn new(workers: Workers, labels_from: u32) -> Self {
        Self {
            workers,
            open: Vec::new(),
            waiting_shown: 0,
            labels_from,
            latest: 0,
            serial: 0,
            attached: Slab::new(),
            held: Held::default(),
            follow_ups: 0,
            awaited: Vec::new(),
        }
    }

    pub(super) fn open(&self, request: Request) -> Option<&Open> {
        let open = self.open.get(request.index())?.as_ref();
        open.filter(|open| open.serial == request.serial())
    }

    pub(super) fn open_mut(&mut self, request: Request) -> Option<&mut Open> {
        Self::open_in(&mut self.open, request)
    }

    /// The same beside the workers.
    pub(super) fn open_and_workers(
        &mut self,
        request: Request,
    ) -> Option<(&mut Open, &mut Workers)> {
        let open = Self::open_in(&mut self.open, request)?;
        Some((open, &mut self.workers))
    }

    fn open_in(all: &mut [Option<Open>], request: Request) -> Option<&mut Open> {
        let open = all.get_mut(request.index())?.as_mut();
        open.filter(|open| open.serial == request.serial())
    }

    pub(super) fn insert(&mut self, request: Request, open: Open) {
        let index = request.index();
        // Once they begin anew, all of them have been used.
        self.latest = self.latest.max(request.serial());
        if self.open.len() <= index {
            self.open.resize_with(index + 1, || None);
        }
        if let Some(place) = self.open.get_mut(index) {
            *place = Some(open);
        }
    }

    pub(super) fn remove(&mut self, request: Request) -> Option<Open> {
        self.open(request)?;
        self.open.get_mut(request.index())?.take()
    }

    /// All that have a ticket.
    pub(super) fn all(&self) -> impl Iterator<Item = (Request, &Open)> {
        let all = self.open.iter().enumerate();
        all.filter_map(|(index, open)| {
            let open = open.as_ref()?;
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            Some((Request::from_parts(index, open.serial), open))
        })
    }

    /// Where a request is.
    pub(super) fn phase(&self, request: Request) -> Option<Phase> {
        let open = self.open(request)?;
        if open.failed {
            return Some(Phase::Failed);
        }
        self.workers.balancer.phase(request)
    }

    /// The worker that has an open request.
    pub(super) fn worker_of(&self, request: Request) -> Option<workers::Id> {
        self.open(request).filter(|open| !open.failed)?;
        self.workers.holder(request)
    }

    /// What a request is called in the own dialect.
    pub(super) fn label(&self, request: Request) -> RequestId {
        let serial = request.serial().wrapping_add(self.labels_from);
        RequestId((request.index() as u64) << 32 | u64::from(serial))
    }

    /// The request that is called so, if this peer has it, with a ticket or without.
    pub(super) fn labelled(&self, peer: PeerId, id: RequestId) -> Option<Request> {
        let request = self.called(id)?;
        let holder = self.workers.holder(request)?;
        (self.workers.peer(holder)?.id() == peer).then_some(request)
    }

    /// The request that is called so, if there is any.
    fn called(&self, id: RequestId) -> Option<Request> {
        let index = u32::try_from(id.0 >> 32).ok()?;
        let serial = ((id.0 & 0xffff_ffff) as u32).wrapping_sub(self.labels_from);
        Some(Request::from_parts(index, serial))
    }

    /// Whether a request of this pool was ever called so, and not one of a broker before it.
    pub(super) fn has_called(&self, id: RequestId) -> bool {
        self.called(id).is_some_and(|request| {
            let is_placed = request.index() < self.open.len();
            is_placed && (1..=self.latest).contains(&request.serial())
        })
    }

    /// A request goes on as an attached connection, with the worker that has it: it is open no more, and what its worker says by its
    /// number is heard until that says that it is done.
    pub(super) fn turn_into_attached(&mut self, request: Request) -> Option<workers::Id> {
        let worker = self.worker_of(request);
        if let Some(worker) = worker {
            self.workers.attach_more(worker);
            let label = self.label(request);
            self.workers.go_on_hearing(worker, label);
        }
        if let Some(open) = self.remove(request) {
            self.follow_ups -= usize::from(open.follow.is_some());
            let took = open
                .done
                .or_else(|| self.workers.balancer.held_for(request, now()));
            self.workers.end(request, now(), took);
        }
        worker
    }

    /// Whether a request of this pool was called so, and nothing is kept of it any more.
    pub(super) fn has_forgotten(&self, id: RequestId) -> bool {
        let request = self.called(id);
        let is_kept = |request| self.workers.balancer.phase(request).is_some();
        self.has_called(id) && !request.is_some_and(is_kept)
    }

    /// A worker is done with a request. False when it does not have it.
    pub(super) fn done(&mut self, peer: PeerId, id: RequestId, took: Duration) -> bool {
        let Some(request) = self.labelled(peer, id) else {
            return self.workers.let_hold_go(peer, id);
        };
        let now = now();
        if let Some((open, workers)) = self.open_and_workers(request) {
            // It is open for its caller still, and keeps its worker no more.
            open.done = Some(took);
            workers.balancer.free(request, now);
            return true;
        }
        let streams = self.workers.balancer.phase(request) == Some(Phase::Attached);
        // A worker that never began with what was cancelled says that it took no time.
        let took = (!streams && !took.is_zero()).then_some(took);
        self.workers.end(request, now, took);
        true
    }

    /// Tells the worker that has a request that nobody waits for its answer any more.
    pub(super) fn cancel(&self, request: Request) {
        let link = self.workers.holder(request);
        if let Some(link) = link.and_then(|worker| self.workers.link(worker)) {
            let word = FromBroker::Cancel(self.label(request));
            if link.say(&word, NO_TAG).is_err() {
                Name::NoticesDropped.increment();
            }
        }
    }

    /// The ticket of a request is gone. `answered`: its response has ended.
    pub(super) fn release(&mut self, request: Request, answered: bool) {
        let Some(open) = self.remove(request) else {
            return;
        };
        self.follow_ups -= usize::from(open.follow.is_some());
        let now = now();
        let is_told = open.done.is_none() && !open.failed && self.workers.tells_done(request);
        if is_told && !answered {
            self.cancel(request);
        }
        if open.done.is_none()
            && self.workers.tells_done(request)
            && self.workers.is_walled(request)
        {
            // Its worker is at it until it says that it is not, and takes nothing else for it.
            if answered {
                self.workers.balancer.lift_deadline(request);
            } else {
                self.workers.balancer.abandon(request, now);
            }
            return;
        }
        let took = open.done.filter(|_| !open.streams).or_else(|| {
            let in_flight = matches!(
                self.workers.balancer.phase(request),
                Some(Phase::Handed | Phase::Begun)
            );
            let held = || self.workers.balancer.held_for(request, now);
            (open.started && in_flight).then(held).flatten()
        });
        self.workers.end(request, now, took);
    }

    /// A message that its peer never got wholly: the request waits again, before all others.
    pub(super) fn take_back(&mut self, tag: u64) {
        let request = request(tag);
        if tag & FOLLOW_TAG != 0 {
            return self.take_back_follow_up(request);
        }
        let Some(open) = self.open(request) else {
            // Nobody waits for it any more, and its worker never heard of it.
            self.workers.end(request, now(), None);
            return;
        };
        // One that somebody else has begun to answer is not asked again: its message is not kept any more.
        if self.phase(request) == Some(Phase::Handed) && !open.started {
            if open.has_passed() {
                return self.abandon(request);
            }
            self.workers.balancer.unsent(request, now());
        }
    }

    /// What a peer never got that is lost: everything in it that can go to another waits again.
    pub(super) fn take_back_all(&mut self, unsent: &[Unsent]) {
        self.take_back_messages(unsent);
        let requests = |unsent: &&Unsent| is_request(unsent.tag) || is_part(unsent.tag);
        for request in unsent.iter().rev().filter(requests) {
            self.take_back(request.tag);
        }
    }

    /// Whether a message belongs to a request that its peer alone can answer, because parts of its body went the same way.
    pub(super) fn is_bound(&self, tag: u64) -> bool {
        self.open(request(tag)).is_some_and(Open::has_passed)
    }

    /// A worker is dead: what becomes of each request that it had.
    pub(super) fn lose(&mut self, worker: balancer::Worker, now: std::time::Instant) -> Vec<Lost> {
        let Self { workers, open, .. } = self;
        workers.balancer.lost(worker, now, &mut |request| {
            Self::open_in(open, request).is_some_and(|open| open.can_be_handed_on())
        })
    }

    /// Fails all that waits.
    pub(super) fn fail_waiting(&mut self) {
        for request in self
            .workers
            .balancer
            .fail_waiting(balancer::Failure::WaitOver)
        {
            if let Some(open) = self.open_mut(request) {
                open.fail(Refused::now(Failure::WaitOver));
            }
        }
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.workers.balancer.waiting()
    }

    /// Brings the figures up to date.
    pub(super) fn show_waiting(&mut self) {
        let waiting = self.waiting();
        let shown = std::mem::replace(&mut self.waiting_shown, waiting);
        if waiting > shown {
            Name::RequestsWaiting.add((waiting - shown) as u64);
        }
        for _ in waiting..shown {
            Name::RequestsWaiting.decrement();
        }
    }

    /// Whether nothing has a ticket. For tests.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.open.iter().all(Option::is_none)
    }
}
