//! Requests that a predecessor of this process had open, from the [`super::ledger`]: until a worker says that it still has one, until
//! it answers, or until nobody has.
//!
//! A worker of our dialect says so when it connects (`HELD`). Plain workers, and those of m2wsgi's, cannot: they are back with
//! their sockets and answer all the same, so theirs are waited for as long as any of them is there, but not for ever.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::End;
use super::ledger::{Left, Slot};
use super::pools::At;
use super::server::{STREAM_AFTER, Server};
use super::table::{Conn, Stage, Table};
use crate::http1::{Asked, ScanState, Scanner, Version};
use crate::pool::{Failure, Refused};
use crate::wire::worker::RequestId;
use crate::wire::{ConnId, reply};

/// How long workers get to come back and say what they have: they connect anew within a fifth of a second.
const GRACE: Duration = Duration::from_secs(1);

/// So long workers are expected to have something of before: those that come later have been away for other reasons.
pub(super) const RETURNS_WITHIN: Duration = Duration::from_secs(5);

/// How long a server may take to come back to be told what is known.
const TELL_WITHIN: Duration = Duration::from_mins(1);

/// The same where some workers cannot say it, and just answer.
const PLAIN_GRACE: Duration = Duration::from_secs(5);

/// A request that this process knows by its predecessor.
pub(super) struct Orphan {
    pub(super) slot: Slot,
    /// The worker that has said that it has it.
    pub(super) held_by: Option<At>,
    /// What that calls it, for as long as it takes a slot of it.
    slot_of: Option<RequestId>,
    /// Something of an answer has passed: from this process, or before.
    pub(super) started: bool,
    /// When that was seen.
    started_at: Option<Instant>,
    pub(super) head_request: bool,
    /// What is not known from the beginning is not followed.
    scanner: Option<Scanner>,
    since: Instant,
}

impl Orphan {
    /// When nobody is waited for any more. `answers_unasked`: there are workers who would not say that they have it.
    fn until(&self, answers_unasked: bool) -> Instant {
        self.since + if answers_unasked { PLAIN_GRACE } else { GRACE }
    }

    /// Whether its end cannot be seen in what is answered.
    pub(super) fn is_opaque(&self) -> bool {
        self.scanner
            .as_ref()
            .is_none_or(|scanner| scanner.state() == ScanState::Opaque)
    }
}

impl Server {
    /// Takes over what a predecessor had open here.
    pub(super) fn adopt(&self, left: &[Left], now: Instant) {
        let table = &mut *self.table.borrow_mut();
        for left in left {
            let serial = table.next_serial();
            let asked = if left.head_request {
                Asked::Head
            } else {
                Asked::Other
            };
            if let Some(ledger) = &self.shared.ledger {
                ledger.write(
                    left.slot,
                    self.number,
                    left.id,
                    left.head_request,
                    left.begun,
                );
            }
            let orphan = Orphan {
                slot: left.slot,
                held_by: None,
                slot_of: None,
                started: left.begun,
                started_at: left.begun.then_some(now),
                head_request: left.head_request,
                // Whether its connection is kept does not matter: the server sees to that itself.
                scanner: (!left.begun).then(|| Scanner::new(asked, Version::Http11, true)),
                since: now,
            };
            let conn = Conn {
                serial,
                stage: Stage::Orphan(orphan),
                held: std::collections::VecDeque::new(),
            };
            table.put(left.id, conn);
            table.orphans.push((left.id, serial));
        }
        self.ages.notify_one();
        if !left.is_empty() {
            info!(
                requests = left.len(),
                replies = self.spec(),
                "an earlier broker had requests open: who has them may go on"
            );
        }
    }

    /// Whatever it had given to an earlier broker, it shall be told what is known of that.
    pub(super) fn tell_later(&self, now: Instant) {
        self.to_tell.set(Some(now + TELL_WITHIN));
        self.ages.notify_one();
    }

    /// Tells a Lurcher what is known of all that it had given to an earlier broker, once that is certain: the rest was lost on its way.
    pub(super) fn tell_what_is_known(&self, now: Instant) {
        let Some(until) = self.to_tell.get() else {
            return;
        };
        match self.is_lurcher() {
            Some(true) => {}
            None if now < until => return,
            // A Mongrel2 has nobody to hear it, and who is not there has nothing to lose.
            Some(false) | None => return self.to_tell.set(None),
        }
        let table = self.table.borrow();
        let undecided = table.orphans.iter().any(|(id, _)| {
            let conn = table.conns.get(&id.0);
            conn.is_some_and(
                |conn| matches!(&conn.stage, Stage::Orphan(orphan) if orphan.held_by.is_none()),
            )
        });
        if undecided {
            return;
        }
        self.to_tell.set(None);
        let Some(ledger) = &self.shared.ledger else {
            return;
        };
        let mut message = Vec::new();
        let ids = table.conns.keys().copied().map(ConnId);
        reply::encode_has(&self.any_sender(), &ledger.line(), ids, &mut message);
        drop(table);
        self.say(message.into());
    }

    /// A worker says that it has a request of before, which it calls so.
    pub(super) fn held_by(&self, at: At, request: RequestId, id: ConnId) {
        let table = &mut *self.table.borrow_mut();
        if let Some(Conn {
            stage: Stage::Orphan(orphan),
            ..
        }) = table.conns.get_mut(&id.0)
        {
            orphan.held_by = Some(at);
            orphan.slot_of = Some(request);
        }
    }

    /// A worker's answer to such a request.
    pub(super) fn orphan_replied(&self, table: &mut Table, id: ConnId, payload: &[u8], from: At) {
        let Some(Conn {
            stage: Stage::Orphan(orphan),
            ..
        }) = table.conns.get_mut(&id.0)
        else {
            return;
        };
        if payload.is_empty() {
            drop(self.end(table, id, End::Answered));
            return;
        }
        if !std::mem::replace(&mut orphan.started, true)
            && let Some(ledger) = &self.shared.ledger
        {
            ledger.begin(orphan.slot);
        }
        orphan.started_at.get_or_insert_with(Instant::now);
        // It speaks, so it is not without a worker. A plain one has a socket for that alone, which tells as much.
        orphan.held_by.get_or_insert(from);
        let state = orphan
            .scanner
            .as_mut()
            .map(|scanner| scanner.scan(payload).state);
        if let Some(ScanState::Ended { .. }) = state {
            self.response_ended(table, id);
        }
    }

    /// Ends what nobody has.
    pub(super) fn settle_orphans(&self, now: Instant) {
        let table = &mut *self.table.borrow_mut();
        if table.orphans.is_empty() {
            return;
        }
        let mut rest = std::mem::take(&mut table.orphans);
        let mut lost = 0_usize;
        let answers_unasked = self.pools.each().any(|pool| pool.report().voices > 0);
        let deadline = self.shared.rules.borrow().deadline;
        rest.retain(|(id, serial)| {
            let Some(Conn {
                stage: Stage::Orphan(orphan),
                ..
            }) = table.current(*id, *serial)
            else {
                return false;
            };
            let is_there = |at: At| {
                let pool = self.pools.get(at.pool);
                // By its reply socket too, where that is all that it has.
                pool.origin(at.peer).is_some() || pool.speaks_for(at.peer, at.peer)
            };
            // When they came is not known: their time begins anew.
            let is_late = deadline.is_some_and(|most| now >= orphan.since + most);
            if is_late && !orphan.started {
                self.hang_up(table, *id, Refused::now(Failure::DeadlineOver));
                return false;
            }
            let is_stream = |since: Instant| now.duration_since(since) >= STREAM_AFTER;
            if orphan.started_at.is_some_and(is_stream)
                && let (Some(at), Some(request)) = (orphan.held_by, orphan.slot_of.take())
            {
                self.pools.get(at.pool).free_held(at.peer, request);
            }
            if orphan.held_by.is_some_and(is_there) || now < orphan.until(answers_unasked) {
                return true;
            }
            lost += 1;
            self.hang_up(table, *id, Refused::now(Failure::HandlerLost));
            false
        });
        table.orphans = rest;
        if lost > 0 {
            warn!(
                requests = lost,
                replies = self.spec(),
                "nobody has requests that were open at an earlier broker: their clients are told"
            );
        }
    }
}

impl super::pools::Pools {
    /// A worker says that it has a request of before: `SENDER SP CONNID`.
    pub(super) fn held(&self, from: At, request: RequestId, address: &[u8]) {
        let Some(space) = memchr::memchr(b' ', address) else {
            return;
        };
        let (sender, id) = address.split_at(space);
        let id = id.get(1..).and_then(|id| std::str::from_utf8(id).ok());
        let Some(id) = id.and_then(|id| id.parse().ok()) else {
            return;
        };
        let server: Option<Rc<Server>> = self.server(sender);
        if let Some(server) = server {
            server.held_by(from, request, ConnId(id));
        }
    }
}
