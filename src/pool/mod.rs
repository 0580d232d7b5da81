//! The handlers behind one route: sockets that bind, peers that come and go, requests that wait or are open.
//!
//! A [`Pool`] owns the two sockets of a Mongrel2 handler entry: requests leave by the PUSH side, replies come in by
//! the SUB side. It hands each request to the connected PULL peer with the fewest open requests ([`crate::balancer`])
//! and keeps a request until its [`Ticket`] is dropped, so that
//!
//! * a request that was not wholly written to a peer when it was lost goes to another, at the head of the queue;
//! * one that was written is handed on once, under a fresh id, where that is safe and no byte of a response came,
//!   and otherwise fails at once with [`Failure::HandlerLost`];
//! * nobody's answer depends on a peer that does not read: a socket that stops draining gets nothing more.
//!
//! What it does not do: read replies (they go to [`Replies`] as they came), know connections or HTTP. Everything is
//! on one shard: `Rc` and `RefCell`, no lock, no channel, and no task woken for a message.

mod ask;
mod attached;
mod bound;
mod draining;
mod follow;
mod kin;
mod report;
mod requests;
mod routed;
mod router;
mod session;
mod sides;
mod workers;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::bus::server::{Head, Listening, Origin, Outgoing, PeerId};
use crate::metrics::Name;
use crate::wire::Protocol;
use crate::wire::request::{self, Notice};
use crate::wire::worker::RequestId;

pub use ask::{Address, Ask, Caller, Failure, Refused, Replies, Retry};
use attached::Held;
pub use attached::{Attachment, Sent, Speaker};
pub use bound::{Addresses, BoundPool, Endpoints, bind};
pub use follow::Room;
pub use report::{Report, Worker};
use requests::{End, NO_TAG, NOTICE_TAG, Open, Phase, State, is_request, tag};
pub use session::Heartbeats;
pub use workers::Dialect;
use workers::{Label, Link, Workers};

/// A handler is held back so long for its reply socket: then it is served without. DESIGN: "after a short grace".
const PAIRING_GRACE: Duration = Duration::from_secs(1);

/// A PULL and a PUB of one address that are lost within this time were one handler that died.
const LOSS_WINDOW: Duration = Duration::from_millis(200);

/// A socket that has not drained for so long is stalled: what was not written to it goes to others.
const STALL_AFTER: Duration = Duration::from_secs(1);

/// How often unsettled matters (held peers, doubtful losses, stalls, waiting requests) are looked at.
const HOUSEKEEPING: Duration = Duration::from_millis(50);

/// How often a request may be handed to a peer that then dies with it: the first time and once more.
const ATTEMPTS_MAX: u8 = 2;

/// How long the log is left in peace about requests that found no handler: it has a line a minute, whatever clients do.
const UNSERVED_PAUSE: Duration = Duration::from_mins(1);

/// What is fixed about a pool.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The sender that stands in every message whose caller names no other: `send_ident`.
    pub sender: Bytes,
    /// The protocol of the messages; here only notices need it.
    pub protocol: Protocol,
    /// What replies must begin with: `recv_ident`, empty for everything.
    pub topic: Vec<u8>,
    /// Most open requests per peer, if bounded.
    pub slots: Option<u32>,
    /// Most requests that wait for a peer.
    pub waiting_max: usize,
    /// Most bytes of requests that wait for a peer.
    pub waiting_bytes_max: usize,
    /// Longest time that a request waits for a peer.
    pub wait_max: Duration,
    /// Replies reach message sockets as they are, not in base64. Who reads replies looks at it.
    pub raw_payload: bool,
}

/// The handlers behind one route. See the module.
pub struct Pool {
    settings: RefCell<Settings>,
    state: RefCell<State>,
    replies: Rc<dyn Replies>,
    /// Told when something begins that time has to settle.
    unsettled: Notify,
    listening: RefCell<Vec<Listening>>,
    /// Where it is bound.
    endpoints: RefCell<Endpoints>,
    closed: Cell<bool>,
    /// Nothing new comes: what is open ends, and its peers leave as soon as they have nothing left to do.
    retiring: Cell<Option<Instant>>,
    /// Nobody can connect any more.
    deaf: Cell<bool>,
    /// When the log was last told that requests found no handler, and how many have found none since.
    unserved: Cell<(Option<Instant>, usize)>,
    /// Where the heads of messages are put together.
    scratch: RefCell<Vec<u8>>,
    /// Told when a peer may have nothing open any more that gets no new requests.
    ended: Notify,
    /// Somebody has ever waited for that.
    is_watched: Cell<bool>,
    /// Pools that workers which come to this one's address may name.
    namesakes: RefCell<HashMap<Bytes, Weak<Pool>>>,
    heartbeats: Cell<Heartbeats>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool without sockets.
    fn new(settings: Settings, replies: Rc<dyn Replies>) -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::new(State {
                workers: Workers::new(settings.slots),
                open: Slab::new(),
                queue: VecDeque::new(),
                waiting: 0,
                waiting_bytes: 0,
                serial: 0,
                attached: Slab::new(),
                held: Held::default(),
                follow_ups: 0,
            }),
            settings: RefCell::new(settings),
            replies,
            unsettled: Notify::new(),
            listening: RefCell::new(Vec::new()),
            endpoints: RefCell::default(),
            closed: Cell::new(false),
            retiring: Cell::new(None),
            deaf: Cell::new(false),
            unserved: Cell::new((None, 0)),
            scratch: RefCell::new(Vec::new()),
            ended: Notify::new(),
            is_watched: Cell::new(false),
            namesakes: RefCell::default(),
            heartbeats: Cell::default(),
        })
    }

    /// How it is set up now.
    pub fn settings(&self) -> std::cell::Ref<'_, Settings> {
        self.settings.borrow()
    }

    /// Replaces the settings, for what is handed over from now on. The topic stays what it was when the pool was bound.
    pub fn reconfigure(&self, mut settings: Settings) {
        let state = &mut *self.state.borrow_mut();
        state.workers.set_slots(settings.slots);
        settings.topic = std::mem::take(&mut self.settings.borrow_mut().topic);
        self.settings.replace(settings);
        self.pull(state);
    }

    /// How workers at the ROUTER are asked for signs of life, from their next one on.
    pub fn set_heartbeats(&self, heartbeats: Heartbeats) {
        self.heartbeats.set(heartbeats);
    }

    /// Begins the end of a pool whose route is gone. Peers may still come while requests wait for one; then its addresses are
    /// left, peers go when they have nothing open, and the pool is closed when the last has. Who still has something open
    /// after a while is cut by [`Pool::close`].
    pub fn retire(&self) {
        self.retiring.set(Some(Instant::now()));
        self.unsettled.notify_one();
    }

    /// How long it has been retiring.
    pub fn retired_for(&self) -> Option<Duration> {
        self.retiring.get().map(|since| since.elapsed())
    }

    /// Takes a retiring pool back into service; false when it has left its addresses already.
    pub fn revive(&self) -> bool {
        let possible = !self.deaf.get() && !self.closed.get();
        if possible {
            self.retiring.set(None);
        }
        possible
    }

    /// Leaves the addresses now, for another to take them. Requests that wait and have nobody left to wait for are failed.
    pub fn leave_addresses(&self) {
        self.deaf.set(true);
        for listening in &*self.listening.borrow() {
            listening.stop_accepting();
        }
        let state = &mut *self.state.borrow_mut();
        if state.workers.is_empty() {
            state.expire(Instant::now(), Duration::ZERO);
        }
    }

    /// Whether the pool serves nobody any more.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Gives a request to the best peer, or lets it wait for one.
    ///
    /// `message` is everything behind `SENDER SP CONNID SP`. The request is open until the ticket is dropped.
    ///
    /// # Errors
    ///
    /// [`Failure::QueueFull`] when it would have to wait and the queue is full, [`Failure::WaitOver`] when the pool is closed.
    pub fn submit(
        self: &Rc<Self>,
        message: Bytes,
        ask: impl Into<Ask>,
        caller: Rc<dyn Caller>,
    ) -> Result<Ticket, Refused> {
        if self.closed.get() {
            // Its body came while its route was taken away.
            return Err(Refused::now(Failure::WaitOver));
        }
        let Ask { retry, .. } = ask.into();
        let state = &mut *self.state.borrow_mut();
        state.serial = state.serial.wrapping_add(1);
        let serial = state.serial;
        let open = Open {
            serial,
            phase: Phase::Failed,
            message,
            retry,
            attempts: 0,
            started: false,
            begun: false,
            follow: None,
            caller,
        };
        if state.waiting == 0
            && let Some(worker) = state.workers.pick()
        {
            let place = state.open.insert(open);
            self.hand_over(state, place, worker);
            return Ok(Ticket {
                pool: Rc::clone(self),
                place,
                serial,
            });
        }
        let settings = self.settings.borrow();
        if state.waiting >= settings.waiting_max
            || state.waiting_bytes.saturating_add(open.message.len()) > settings.waiting_bytes_max
        {
            return Err(Refused::now(Failure::QueueFull));
        }
        let place = state.open.insert(open);
        state.enqueue(place, End::Back);
        self.unsettled.notify_one();
        Ok(Ticket {
            pool: Rc::clone(self),
            place,
            serial,
        })
    }

    /// Tells the handler that knows a connection of something about it: the peer `to` if it is still there, else
    /// another of this pool. With no peer at all the notice is dropped and counted.
    pub fn notify(&self, to: Option<PeerId>, about: impl Into<Address>, notice: Notice) {
        let state = &mut *self.state.borrow_mut();
        let peer = state.workers.listener(to);
        self.send_notice(peer, &about.into(), notice);
    }

    /// The same for the handler whose reply socket is `voice`.
    pub fn notify_voice(&self, voice: PeerId, about: impl Into<Address>, notice: Notice) {
        let state = &mut *self.state.borrow_mut();
        let peer = state.workers.listener_of_voice(voice);
        self.send_notice(peer, &about.into(), notice);
    }

    /// The same for the handler whose reply socket is `voice` and nobody else: `to` if that may be its own. It has asked for it.
    pub fn notify_asker(
        &self,
        voice: PeerId,
        to: Option<PeerId>,
        about: impl Into<Address>,
        notice: Notice,
    ) {
        let peer = self.state.borrow().workers.own_listener(voice, to);
        self.send_notice(peer, &about.into(), notice);
    }

    /// Whether a reply socket may be that of this peer's handler: it is of this pool, and nothing ties the two to others.
    pub fn speaks_for(&self, voice: PeerId, peer: PeerId) -> bool {
        self.state.borrow().workers.speaks_for(voice, peer)
    }

    /// Passes on what a server says of a connection, which is everything behind `SENDER SP CONNID SP`: to the peer `to` if it is
    /// still there, else to another of this pool. With no peer at all it is dropped and counted.
    pub fn forward(&self, to: Option<PeerId>, about: impl Into<Address>, body: Bytes) {
        let peer = self.state.borrow().workers.listener(to);
        self.send_to_listener(peer, &about.into(), body);
    }

    /// The same for the handler whose reply socket is `voice`.
    pub fn forward_voice(&self, voice: PeerId, about: impl Into<Address>, body: Bytes) {
        let peer = self.state.borrow().workers.listener_of_voice(voice);
        self.send_to_listener(peer, &about.into(), body);
    }

    /// How many requests wait for a peer, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.state.borrow();
        (state.waiting, state.waiting_bytes)
    }

    /// Where a connected peer came from.
    pub fn origin(&self, peer: PeerId) -> Option<Origin> {
        self.state.borrow().workers.origin(peer)
    }

    /// Reads the reply sockets again, after [`Replies::is_full`] has said no.
    pub fn hear(&self) {
        for listening in &*self.listening.borrow() {
            listening.read_on();
        }
    }

    fn send_notice(&self, to: Option<Link>, about: &Address, notice: Notice) {
        if !to.is_some_and(|to| self.try_notice(&to, about, notice)) {
            Name::NoticesDropped.increment();
        }
    }

    fn try_notice(&self, to: &Link, about: &Address, notice: Notice) -> bool {
        let mut body = Vec::with_capacity(64);
        let tag = match notice {
            Notice::Disconnect => NOTICE_TAG | u64::from(about.id.0),
            Notice::Credits(_) | Notice::Flow { .. } | Notice::Drained => NO_TAG,
        };
        notice.encode(self.settings.borrow().protocol, &mut body);
        self.try_send(to, about, body.into(), tag)
    }

    fn send_to_listener(&self, to: Option<Link>, about: &Address, body: Bytes) {
        if !to.is_some_and(|to| self.try_send(&to, about, body, NO_TAG)) {
            Name::NoticesDropped.increment();
        }
    }

    fn try_send(&self, to: &Link, about: &Address, body: Bytes, tag: u64) -> bool {
        let message = Outgoing {
            head: self.head(about),
            body,
        };
        to.send_message(message, tag).is_ok()
    }

    /// Stops accepting peers and ends the connected ones in order, when what is queued for them is written. Their tasks end by
    /// themselves. What waits for a peer is failed, now or when it comes back from one, and those that are attached are told.
    pub fn close(&self) {
        let state = &mut *self.state.borrow_mut();
        self.end_sockets(state);
        state.expire(Instant::now(), Duration::ZERO);
        state.abandon_attached();
    }

    fn end_sockets(&self, state: &State) {
        state.workers.bid_farewell();
        self.closed.set(true);
        self.unsettled.notify_one();
        for listening in self.listening.take() {
            listening.close();
        }
    }

    /// `SENDER SP CONNID SP`.
    fn head(&self, about: &Address) -> Head {
        let head = &mut *self.scratch.borrow_mut();
        head.clear();
        match &about.sender {
            Some(sender) => request::encode_prefix(sender, about.id, head),
            None => request::encode_prefix(&self.settings.borrow().sender, about.id, head),
        }
        Head::from(head.as_slice())
    }

    /// Hands the request at `place` to a worker that was just picked; back to the queue when its socket is full.
    fn hand_over(&self, state: &mut State, place: usize, worker: workers::Id) {
        let Some(open) = state.open.get_mut(place) else {
            return;
        };
        let head = self.head(&Address::of(&open.caller));
        let outgoing = Outgoing {
            head,
            body: open.message.clone(),
        };
        let tag = tag(place, open.serial);
        let label = Label {
            id: RequestId(tag),
            attempt: open.attempts + 1,
            left: None,
        };
        if state
            .workers
            .link(worker)
            .is_some_and(|link| link.send_request(label, outgoing, tag).is_ok())
        {
            open.phase = Phase::Handed { worker };
            open.attempts += 1;
            self.follow(state, place);
        } else {
            state.workers.end(worker);
            state.workers.hold_back(worker);
            state.enqueue(place, End::Front);
            self.unsettled.notify_one();
        }
    }

    /// Hands over what waits, for as long as somebody can take it.
    fn pull(&self, state: &mut State) {
        while state.waiting > 0
            && let Some(worker) = state.workers.pick()
        {
            match state.dequeue() {
                Some(place) => self.hand_over(state, place, worker),
                None => state.workers.end(worker),
            }
        }
        if self.closed.get() && state.waiting > 0 {
            // Nobody will come for it.
            state.expire(Instant::now(), Duration::ZERO);
        }
    }

    /// Somebody may take more than before: messages that are held go out, then requests that wait.
    fn resume(self: &Rc<Self>, state: &mut State) {
        if state.holds() {
            self.pass_held(state);
        }
        self.pull(state);
    }

    /// Lets time settle what is unsettled; says whether anything is left to settle.
    fn housekeeping(self: &Rc<Self>) -> bool {
        let now = Instant::now();
        let state = &mut *self.state.borrow_mut();
        for (peer, unsent) in state.workers.settle(now).into_iter().rev() {
            let (requests, others): (Vec<_>, Vec<_>) = unsent
                .into_iter()
                .partition(|unsent| is_request(unsent.tag));
            for request in requests.into_iter().rev() {
                state.take_back(request.tag);
            }
            // Notices, messages and parts are for nobody else: they wait until it reads again.
            for unsent in others {
                // It had room for them before, and is told to be lost if it is gone meanwhile.
                let _queued = peer.send_again(unsent);
            }
        }
        self.resume_follow_ups(state);
        self.resume(state);
        self.tell_drained(state);
        let expired = state.expire(now, self.settings.borrow().wait_max);
        if expired > 0 {
            self.tell_unserved(now, expired, !state.workers.is_anyone_connected());
        }
        if self.retiring.get().is_some() {
            // What waits still needs a peer.
            if state.waiting == 0 && !state.holds() {
                self.deaf.set(true);
                for listening in &*self.listening.borrow() {
                    listening.stop_accepting();
                }
                if !state.workers.dismiss_idle() {
                    self.end_sockets(state);
                    state.abandon_attached();
                }
            }
            return true;
        }
        state.waiting > 0 || state.workers.is_unsettled() || state.has_follow_ups()
    }

    /// Tells the log that requests found no handler, now and then: of the first ones at once, of further ones with the next line.
    fn tell_unserved(&self, now: Instant, count: usize, nobody_is_there: bool) {
        let (told, before) = self.unserved.get();
        let count = before.saturating_add(count);
        if told.is_some_and(|told| now.duration_since(told) < UNSERVED_PAUSE) {
            return self.unserved.set((told, count));
        }
        self.unserved.set((Some(now), 0));
        let why = if nobody_is_there {
            "none is connected"
        } else {
            "those that are connected take no more"
        };
        let handler = self.endpoints.borrow();
        let handler = handler.to_string();
        warn!(
            handler,
            requests = count,
            "no handler took requests in time: {why}"
        );
    }

    /// Ends what a dead worker had: handed on where that is safe, failed otherwise.
    fn give_up(self: &Rc<Self>, state: &mut State, worker: workers::Id) {
        let latest = state.serial;
        let mut places: Vec<(u32, usize)> = state
            .open
            .iter()
            .filter(|(_, open)| {
                open.phase == Phase::Handed { worker } || open.phase == Phase::Attached { worker }
            })
            .map(|(place, open)| (latest.wrapping_sub(open.serial), place))
            .collect();
        debug!(
            requests = places.len(),
            "handler is dead: what it had is handed on or failed"
        );
        // The youngest first, as each goes to the head of the queue.
        places.sort_unstable();
        for (_, place) in places {
            let Some(open) = state.open.get_mut(place) else {
                continue;
            };
            open.caller.retire_id();
            if open.may_be_handed_on() {
                Name::RequestsHandedOn.increment();
                state.enqueue(place, End::Front);
            } else {
                Name::RequestsLostHandler.increment();
                open.phase = Phase::Failed;
                open.caller.failed(Refused::now(Failure::HandlerLost));
            }
        }
        state.detach_all(worker);
        state.workers.forget(worker);
        self.resume(state);
        self.unsettled.notify_one();
    }

    /// The ticket of this request was dropped.
    fn release(&self, place: usize, serial: u32) {
        let state = &mut *self.state.borrow_mut();
        if state
            .open
            .get(place)
            .is_none_or(|open| open.serial != serial)
        {
            return;
        }
        let open = state.open.remove(place);
        state.follow_ups -= usize::from(open.follow.is_some());
        match open.phase {
            Phase::Waiting { .. } => state.unwait(open.message.len()),
            Phase::Handed { worker } => state.workers.end(worker),
            Phase::Attached { worker } => state.workers.detach(worker),
            Phase::Failed => {}
        }
        if state.waiting > 0 {
            self.pull(state);
        }
        self.tell_ended();
    }

    fn with_open<R>(
        &self,
        place: usize,
        serial: u32,
        how: impl FnOnce(&mut Workers, &mut Open) -> R,
    ) -> Option<R> {
        let state = &mut *self.state.borrow_mut();
        let open = state
            .open
            .get_mut(place)
            .filter(|open| open.serial == serial)?;
        Some(how(&mut state.workers, open))
    }
}

/// An open request. Dropping it ends the request: its response has ended, or its client is gone.
pub struct Ticket {
    pool: Rc<Pool>,
    place: usize,
    serial: u32,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// The first bytes of a response came, from this reply socket: the request cannot be handed on any more. False when no
    /// peer has the request: then they are no response to it, and nothing changes.
    pub fn started(&self, voice: PeerId) -> bool {
        let begun = self
            .pool
            .with_open(self.place, self.serial, |workers, open| {
                if matches!(open.phase, Phase::Waiting { .. }) {
                    return false;
                }
                open.started = true;
                open.message = Bytes::new();
                if let Phase::Handed { worker } = open.phase {
                    workers.tie(worker, voice);
                }
                true
            });
        begun.unwrap_or(true)
    }

    /// The response has become a stream: the request does not make its peer busy any more.
    pub fn attach(&self) {
        self.pool
            .with_open(self.place, self.serial, |workers, open| {
                if let Phase::Handed { worker } = open.phase {
                    open.phase = Phase::Attached { worker };
                    workers.attach(worker);
                }
            });
        // Its slot is free.
        self.pool.pull(&mut self.pool.state.borrow_mut());
    }

    /// The peer that has the request, if it was handed over.
    pub fn peer(&self) -> Option<PeerId> {
        self.pool
            .with_open(self.place, self.serial, |workers, open| match open.phase {
                Phase::Handed { worker } | Phase::Attached { worker } => {
                    workers.peer(worker).map(|peer| peer.id())
                }
                Phase::Waiting { .. } | Phase::Failed => None,
            })?
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pool.release(self.place, self.serial);
    }
}

#[cfg(test)]
mod tests;
