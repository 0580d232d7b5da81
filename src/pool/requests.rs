//! The requests of a pool that have a ticket: those that wait, in their order, and those that a worker has.
//!
//! Bookkeeping only: who gets what, and what happens to what is lost, is decided by the pool.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::time::Instant;

use super::attached::{Attached, Held};
use super::follow::Follow;
use super::workers::{self, Workers};
use super::{Caller, Failure, Refused, Retry};
use crate::bus::server::PeerId;
use crate::metrics::Name;
use crate::wire::worker::RequestId;

/// Stale entries of the queue that are tolerated before it is swept.
const QUEUE_SLACK: usize = 64;

pub(super) struct State {
    pub(super) workers: Workers,
    pub(super) open: Slab<Open>,
    /// Requests that wait, oldest first, as places in `open` with their serial; may hold stale entries.
    pub(super) queue: VecDeque<(usize, u32)>,
    pub(super) waiting: usize,
    pub(super) waiting_bytes: usize,
    /// Tells requests apart that use the same place in `open` one after the other.
    pub(super) serial: u32,
    pub(super) attached: Slab<Attached>,
    pub(super) held: Held,
    /// Requests that have further messages, or may have.
    pub(super) follow_ups: usize,
}

/// A request that has a ticket.
pub(super) struct Open {
    pub(super) serial: u32,
    pub(super) phase: Phase,
    /// Kept until a response begins, so that it can be handed on.
    pub(super) message: Bytes,
    pub(super) retry: Retry,
    pub(super) attempts: u8,
    pub(super) started: bool,
    /// Its worker has said that it begins.
    pub(super) begun: bool,
    /// Boxed, as few requests have any.
    pub(super) follow: Option<Box<Follow>>,
    pub(super) caller: Rc<dyn Caller>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// `came_back`: it was handed over before, and stands before those that were not.
    Waiting {
        since: Instant,
        came_back: bool,
    },
    Handed {
        worker: workers::Id,
    },
    Attached {
        worker: workers::Id,
    },
    Failed,
}

/// What the pool's place in `open` and its serial look like as the tag of a message on the bus.
pub(super) fn tag(place: usize, serial: u32) -> u64 {
    (place as u64) << 32 | u64::from(serial)
}

/// Tags of further messages of a request have this bit, and those of parts of its body the second; places in `open` never do.
const FOLLOW_TAG: u64 = 1 << 61;
const PART_TAG: u64 = 1 << 60;

/// The tag of the message that completes the request at that place.
pub(super) fn last_tag(place: usize, serial: u32) -> u64 {
    FOLLOW_TAG | tag(place, serial)
}

/// The tag of a part of its body.
pub(super) fn part_tag(place: usize, serial: u32) -> u64 {
    PART_TAG | last_tag(place, serial)
}

/// Whether the message is a part of a body, which only the peer that has the others can use.
pub(super) fn is_part(tag: u64) -> bool {
    tag >> 60 == 0b0011
}

/// The tag of messages that nobody takes back.
pub(super) const NO_TAG: u64 = u64::MAX;

/// Tags of disconnect notices have this bit, and the connection's id in the lower half; places never have it.
pub(super) const NOTICE_TAG: u64 = 1 << 63;

/// Whether a message with this tag is a request or completes one: what else there is has one of the upper two bits, or is a part.
pub(super) fn is_request(tag: u64) -> bool {
    tag >> 62 == 0 && !is_part(tag)
}

#[derive(Clone, Copy)]
pub(super) enum End {
    Front,
    Back,
}

impl State {
    pub(super) fn enqueue(&mut self, place: usize, end: End) {
        let Some(open) = self.open.get_mut(place) else {
            return;
        };
        open.phase = Phase::Waiting {
            since: Instant::now(),
            came_back: matches!(end, End::Front),
        };
        self.waiting += 1;
        self.waiting_bytes += open.message.len();
        Name::RequestsWaiting.increment();
        let entry = (place, open.serial);
        match end {
            End::Front => self.queue.push_front(entry),
            End::Back => self.queue.push_back(entry),
        }
        if self.queue.len() > self.waiting + QUEUE_SLACK {
            let open = &self.open;
            self.queue
                .retain(|(place, serial)| is_waiting(open, *place, *serial));
        }
    }

    pub(super) fn unwait(&mut self, bytes: usize) {
        self.waiting -= 1;
        self.waiting_bytes -= bytes;
        Name::RequestsWaiting.decrement();
    }

    /// Takes the oldest request that waits from the queue.
    pub(super) fn dequeue(&mut self) -> Option<usize> {
        while let Some((place, serial)) = self.queue.pop_front() {
            if is_waiting(&self.open, place, serial) {
                let bytes = self.open.get(place).map_or(0, |open| open.message.len());
                self.unwait(bytes);
                return Some(place);
            }
        }
        None
    }

    /// The worker that has an open request.
    pub(super) fn worker_of(&self, place: usize, serial: u32) -> Option<workers::Id> {
        match self.open.get(place)? {
            Open {
                phase: Phase::Handed { worker } | Phase::Attached { worker },
                serial: own,
                ..
            } if *own == serial => Some(*worker),
            _ => None,
        }
    }

    /// The request that is called so, if this peer has it.
    pub(super) fn open_at(&mut self, peer: PeerId, id: RequestId) -> Option<&mut Open> {
        let (place, serial) = ((id.0 >> 32) as usize, (id.0 & 0xffff_ffff) as u32);
        let worker = self.worker_of(place, serial)?;
        (self.workers.peer(worker)?.id() == peer).then_some(())?;
        self.open.get_mut(place)
    }

    /// A worker is done with a request.
    pub(super) fn done(&mut self, peer: PeerId, id: RequestId, took: Duration) {
        let _ = took;
        if self.workers.let_hold_go(peer, id) {
            return;
        }
        match self.open_at(peer, id).map(|open| open.phase) {
            Some(Phase::Handed { worker }) => {
                if let Some(open) = self.open_at(peer, id) {
                    open.phase = Phase::Attached { worker };
                    self.workers.attach(worker);
                }
            }
            Some(_) => {}
            None => Name::RepliesUnknownId.increment(),
        }
    }

    /// A message that its peer never got wholly: the request waits again, before all others.
    pub(super) fn take_back(&mut self, tag: u64) {
        let follows = tag & FOLLOW_TAG != 0;
        let tag = if follows {
            tag & !(FOLLOW_TAG | PART_TAG)
        } else {
            tag
        };
        let (place, serial) = ((tag >> 32) as usize, (tag & 0xffff_ffff) as u32);
        if follows {
            return self.take_back_follow_up(place, serial);
        }
        let Some(open) = self.open.get_mut(place) else {
            return;
        };
        // One that somebody else has begun to answer is not asked again: its message is not kept any more.
        if let Phase::Handed { worker } = open.phase
            && open.serial == serial
            && !open.started
        {
            if open.has_passed() {
                return self.abandon(place);
            }
            open.attempts = open.attempts.saturating_sub(1);
            self.workers.end(worker);
            self.enqueue(place, End::Front);
        }
    }

    /// Whether a message belongs to a request that its peer alone can answer, because parts of its body went the same way.
    pub(super) fn is_bound(&self, tag: u64) -> bool {
        let tag = tag & !(FOLLOW_TAG | PART_TAG);
        let (place, serial) = ((tag >> 32) as usize, (tag & 0xffff_ffff) as u32);
        let open = self.open.get(place).filter(|open| open.serial == serial);
        open.is_some_and(Open::has_passed)
    }

    /// Fails what has waited for too long; says how many requests that were.
    pub(super) fn expire(&mut self, now: Instant, wait_max: Duration) -> usize {
        let mut expired = Vec::new();
        for (place, serial) in &self.queue {
            let Some(open) = self.open.get(*place).filter(|open| open.serial == *serial) else {
                continue;
            };
            match open.phase {
                Phase::Waiting { since, .. } if now.duration_since(since) >= wait_max => {
                    expired.push(*place);
                }
                // Those that came back to the head began to wait later than what is behind them.
                Phase::Waiting { came_back, .. } if came_back => {}
                Phase::Waiting { .. } => break,
                _ => {}
            }
        }
        let count = expired.len();
        for place in expired {
            if let Some(open) = self.open.get_mut(place) {
                open.phase = Phase::Failed;
                open.caller.failed(Refused::now(Failure::WaitOver));
                let bytes = open.message.len();
                self.unwait(bytes);
            }
        }
        while let Some((place, serial)) = self.queue.front().copied()
            && !is_waiting(&self.open, place, serial)
        {
            self.queue.pop_front();
        }
        count
    }
}

pub(super) fn is_waiting(open: &Slab<Open>, place: usize, serial: u32) -> bool {
    open.get(place)
        .is_some_and(|open| open.serial == serial && matches!(open.phase, Phase::Waiting { .. }))
}
