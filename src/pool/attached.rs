//! What is no request and response: connections that are attached to the pool, and send their handler message after message.
//!
//! The frames of a WebSocket and the messages of a message socket go to the peer that has the connection, in their order. When
//! that one is lost or takes nothing more for good (its PULL is closed), they go to another, and what was queued for the first and
//! not written goes before them: a WebSocket outlives its handler's restart. There is no queue: of each attachment one message
//! may be held while nobody can take it (after a loss, also what had been queued), and then its owner reads its client no
//! further until it is told to go on.
//!
//! A peer that is merely slow is waited for, not left: it may know the connection, and what it has got already must not be
//! overtaken.

use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use bytes::Bytes;

use super::requests::{NOTICE_TAG, State};
use super::{Address, Pool, Ticket, workers};
use crate::bus::server::{Outgoing, PeerId, Unsent};
use crate::metrics::Name;
use crate::wire::ConnId;

/// Tags of attachments' messages have this bit and not that of notices; places never have either.
const ATTACHED_TAG: u64 = 1 << 62;

/// Stale entries of the list of those that wait that are tolerated before it is swept.
const HELD_SLACK: usize = 64;

/// Who is attached. None of these may call back into the pool.
pub trait Speaker {
    /// The id under which handlers know the connection; it stays the same while it is attached.
    fn id(self: Rc<Self>) -> ConnId;

    /// The sender that stands before the id in its messages; none: that of the pool.
    fn sender(&self) -> Option<Bytes> {
        None
    }

    /// Its messages go to this peer from now on.
    fn moved(&self, pool: &Rc<Pool>, peer: PeerId);

    /// Nothing of it is held any more: it may send again.
    fn go_on(&self);

    /// The pool is closed: nobody will ever take its messages, or answer them.
    fn abandoned(&self);
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is queued for its peer.
    Passed,
    /// Nobody can take it now. The pool keeps it, and tells when it has gone out; nothing more should be sent before.
    Held,
}

/// One attachment as the pool sees it.
pub(super) struct Attached {
    serial: u32,
    worker: Option<workers::Id>,
    speaker: Rc<dyn Speaker>,
    /// What is held, oldest first. Empty but while nobody takes anything.
    backlog: VecDeque<Bytes>,
    /// It has an entry in the list of those that wait.
    listed: bool,
}

/// Those that wait, longest first, as places with their serial; may hold stale entries.
#[derive(Default)]
pub(super) struct Held {
    list: VecDeque<(usize, u32)>,
    live: usize,
}

/// A connection's place in a pool. Dropping it ends it; what is held is dropped with it.
pub struct Attachment {
    pool: Rc<Pool>,
    place: usize,
    serial: u32,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Attachment {
    /// Sends a message, which is everything behind `SENDER SP CONNID SP`.
    pub fn send(&self, message: Bytes) -> Sent {
        let pool = &self.pool;
        let state = &mut *pool.state.borrow_mut();
        let waits = state
            .attached
            .get(self.place)
            .is_some_and(|attached| !attached.backlog.is_empty());
        if !waits && pool.pass(state, self.place, &message) {
            return Sent::Passed;
        }
        if let Some(attached) = state.attached.get_mut(self.place) {
            attached.backlog.push_back(message);
        }
        state.list(self.place);
        pool.unsettled.notify_one();
        Sent::Held
    }

    /// The peer that has the connection, if one has it now.
    pub fn peer(&self) -> Option<PeerId> {
        let state = self.pool.state.borrow();
        let worker = state.attached.get(self.place)?.worker?;
        state.workers.peer(worker).map(|peer| peer.id())
    }

    /// The pool it is attached to.
    pub fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let state = &mut *self.pool.state.borrow_mut();
        let Some(attached) = state.attached.try_remove(self.place) else {
            return;
        };
        debug_assert_eq!(
            attached.serial, self.serial,
            "a place belongs to one attachment"
        );
        Name::MessagesDropped.add(attached.backlog.len() as u64);
        if attached.listed {
            state.held.live -= 1;
            let Held { list, live } = &mut state.held;
            if list.len() > *live + HELD_SLACK {
                let all = &state.attached;
                list.retain(|(place, serial)| {
                    all.get(*place)
                        .is_some_and(|other| other.serial == *serial && other.listed)
                });
            }
        }
        if let Some(worker) = attached.worker {
            state.workers.detach(worker);
        }
        self.pool.tell_ended();
    }
}

impl Ticket {
    /// The request has made its connection one that goes on as messages: it stays with the peer that has the request, which is
    /// not busy with it any more.
    pub fn into_attachment(self, speaker: Rc<dyn Speaker>) -> Attachment {
        let state = &mut *self.pool.state.borrow_mut();
        let worker = state.turn_into_attached(self.request);
        self.pool.attachment(state, worker, speaker)
        // The ticket ends here, as that of a request that is over already.
    }
}

impl Pool {
    /// Attaches a connection that no peer has yet: the first message finds it one.
    pub fn attach(self: &Rc<Self>, speaker: Rc<dyn Speaker>) -> Attachment {
        let state = &mut *self.state.borrow_mut();
        self.attachment(state, None, speaker)
    }

    fn attachment(
        self: &Rc<Self>,
        state: &mut State,
        worker: Option<workers::Id>,
        speaker: Rc<dyn Speaker>,
    ) -> Attachment {
        state.serial = state.serial.wrapping_add(1);
        let serial = state.serial;
        let place = state.attached.insert(Attached {
            serial,
            worker,
            speaker,
            backlog: VecDeque::new(),
            listed: false,
        });
        Attachment {
            pool: Rc::clone(self),
            place,
            serial,
        }
    }

    /// Queues a message for the peer of an attachment, or for a new one where that has left. False when nobody takes it now.
    fn pass(self: &Rc<Self>, state: &mut State, place: usize, message: &Bytes) -> bool {
        let Some(attached) = state.attached.get_mut(place) else {
            return false;
        };
        let stays = attached
            .worker
            .filter(|worker| state.workers.is_connected(*worker));
        // One that is being drained keeps what nobody else can take.
        let leaving = stays.filter(|worker| state.workers.is_leaving(*worker));
        let worker = match stays.filter(|_| leaving.is_none()) {
            Some(worker) => worker,
            None => match state.workers.pick_attached() {
                Some(worker) => {
                    if let Some(left) = attached.worker.replace(worker) {
                        state.workers.detach(left);
                    }
                    if let Some(peer) = state.workers.peer(worker) {
                        Rc::clone(&attached.speaker).moved(self, peer.id());
                    }
                    worker
                }
                None => match leaving {
                    Some(worker) => worker,
                    None => return false,
                },
            },
        };
        if !state.workers.takes(worker) {
            // So that it is looked at again.
            state.workers.hold_back(worker);
            return false;
        }
        let outgoing = Outgoing {
            head: self.head(&Address {
                sender: attached.speaker.sender(),
                id: Rc::clone(&attached.speaker).id(),
            }),
            body: message.clone(),
        };
        let tag = ATTACHED_TAG | (place as u64) << 32 | u64::from(attached.serial);
        let sent = state
            .workers
            .link(worker)
            .is_some_and(|link| link.send_message(outgoing, tag).is_ok());
        if sent {
            Name::Messages.increment();
        } else {
            state.workers.hold_back(worker);
        }
        sent
    }

    /// Moves what is attached to a worker that is being drained to others, as far as there are any.
    pub(super) fn move_attached(self: &Rc<Self>, state: &mut State, from: workers::Id) {
        let places: Vec<usize> = state
            .attached
            .iter()
            .filter(|(_, attached)| attached.worker == Some(from))
            .map(|(place, _)| place)
            .collect();
        for place in places {
            let Some(to) = state.workers.pick_attached() else {
                return;
            };
            let Some(attached) = state.attached.get_mut(place) else {
                continue;
            };
            attached.worker = Some(to);
            let speaker = Rc::clone(&attached.speaker);
            state.workers.detach(from);
            if let Some(peer) = state.workers.peer(to) {
                speaker.moved(self, peer.id());
            }
        }
    }

    /// Lets out what is held, for as long as somebody takes it.
    pub(super) fn pass_held(self: &Rc<Self>, state: &mut State) {
        for _ in 0..state.held.list.len() {
            let Some((place, serial)) = state.held.list.pop_front() else {
                return;
            };
            let mut next = state.held_at(place, serial);
            while let Some(message) = &next {
                if !self.pass(state, place, message) {
                    break;
                }
                if let Some(attached) = state.attached.get_mut(place) {
                    attached.backlog.pop_front();
                }
                next = state.held_at(place, serial);
            }
            let Some(attached) = state.attached.get_mut(place) else {
                continue;
            };
            if attached.serial != serial || !attached.listed {
                continue;
            }
            if next.is_some() {
                state.held.list.push_back((place, serial));
            } else {
                attached.listed = false;
                attached.backlog = VecDeque::new();
                attached.speaker.go_on();
                state.held.live -= 1;
            }
        }
    }
}

impl State {
    /// Enters an attachment that has something held into the list of those that wait.
    fn list(&mut self, place: usize) {
        if let Some(attached) = self.attached.get_mut(place)
            && !std::mem::replace(&mut attached.listed, true)
        {
            self.held.list.push_back((place, attached.serial));
            self.held.live += 1;
        }
    }

    fn held_at(&self, place: usize, serial: u32) -> Option<Bytes> {
        let attached = self.attached.get(place)?;
        if attached.serial != serial {
            return None;
        }
        attached.backlog.front().cloned()
    }

    /// Whether anything is held.
    pub(super) fn holds(&self) -> bool {
        self.held.live > 0
    }

    /// Entries of the list, stale ones too. For tests.
    #[cfg(test)]
    pub(super) fn held_entries(&self) -> usize {
        self.held.list.len()
    }

    /// Messages of attachments that their peer never got wholly wait to go out again, before what is held already.
    pub(super) fn take_back_messages(&mut self, unsent: &[Unsent]) {
        for Unsent { tag, message, .. } in unsent.iter().rev() {
            let Some((place, serial)) = attached_tag(*tag) else {
                continue;
            };
            match self.attached.get_mut(place) {
                Some(attached) if attached.serial == serial => {
                    attached.backlog.push_front(message.body.clone());
                    self.list(place);
                }
                // Its client has left: nobody could be answered.
                _ => Name::MessagesDropped.increment(),
            }
        }
    }

    /// No worker will come any more.
    pub(super) fn abandon_attached(&self) {
        for (_, attached) in &self.attached {
            attached.speaker.abandoned();
        }
    }

    /// A worker is dead, and its place will be another's.
    pub(super) fn detach_all(&mut self, worker: workers::Id) {
        for (_, attached) in &mut self.attached {
            attached.worker.take_if(|other| *other == worker);
        }
    }
}

fn attached_tag(tag: u64) -> Option<(usize, u32)> {
    if tag & (ATTACHED_TAG | NOTICE_TAG) != ATTACHED_TAG {
        return None;
    }
    Some((
        ((tag & !ATTACHED_TAG) >> 32) as usize,
        (tag & 0xffff_ffff) as u32,
    ))
}
