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
mod brokers;
mod draining;
mod follow;
mod kin;
mod report;
mod requests;
mod routed;
mod router;
mod session;
mod sides;
mod time;
mod workers;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher as _;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::balancer::{self, Assignment, Balancer, Fate, Lost, NewRequest, Phase, Request};
pub use crate::balancer::{Order, Outlier, Rules, Sticky, Tie};
use crate::bus::server::{Head, Listening, Origin, Outgoing, PeerId};
use crate::metrics::Name;
use crate::wire::Protocol;
use crate::wire::request::{self, Notice};

pub use ask::{Address, Ask, Caller, Failure, Refused, Replies, Retry};
pub use attached::{Attachment, Sent, Speaker};
pub use bound::{Addresses, BoundPool, Endpoints, bind};
pub use follow::Room;
pub use report::{Counts, Histogram, Report, Spread, Worker};
use requests::{NO_TAG, NOTICE_TAG, Open, State, now, tag};
pub use session::Heartbeats;
pub use workers::Dialect;
use workers::{Label, Link, Workers};

/// A handler is held back so long for its reply socket: then it is served without. DESIGN: "after a short grace".
const PAIRING_GRACE: Duration = Duration::from_secs(1);

/// A PULL and a PUB of one address that are lost within this time were one handler that died.
const LOSS_WINDOW: Duration = Duration::from_millis(200);

/// A socket that has not drained for so long is stalled: what was not written to it goes to others.
const STALL_AFTER: Duration = Duration::from_secs(1);

/// What is fixed about a pool.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The sender that stands in every message whose caller names no other: `send_ident`.
    pub sender: Bytes,
    /// The protocol of the messages; here only notices need it.
    pub protocol: Protocol,
    /// What replies must begin with: `recv_ident`, empty for everything.
    pub topic: Vec<u8>,
    /// Who gets what, how long that may take, and what happens otherwise.
    pub rules: Rules,
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
    /// When time is let settle things next, if that is known.
    wakes_at: Cell<Option<Instant>>,
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
        // Different in each process, as the keys of hash tables are.
        let chance = RandomState::new().hash_one(std::process::id());
        let balancer = Balancer::new(settings.rules.clone(), chance);
        let labels_from = (chance >> 32) as u32;
        Rc::new(Self {
            state: RefCell::new(State::new(Workers::new(balancer), labels_from)),
            settings: RefCell::new(settings),
            replies,
            unsettled: Notify::new(),
            wakes_at: Cell::new(None),
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
        if self.settings.borrow().rules != settings.rules {
            let rules = settings.rules.clone();
            state.workers.balancer.set_rules(rules, now());
        }
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
            state.fail_waiting();
            state.show_waiting();
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
        let Ask {
            retry,
            key,
            deadline,
        } = ask.into();
        let now = now();
        let state = &mut *self.state.borrow_mut();
        let asked = NewRequest {
            bytes: message.len(),
            retry,
            key,
            deadline: deadline.map(Instant::into_std),
        };
        let request = state.workers.balancer.submit(asked, now)?;
        state.insert(request, Open::new(request, message, retry, caller));
        self.pull_at(state, now);
        if deadline.is_some() || state.waiting() > 0 {
            self.expect_time(state);
        }
        Ok(Ticket {
            pool: Rc::clone(self),
            request,
            answered: Cell::new(false),
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
        (state.waiting(), state.workers.balancer.waiting_bytes())
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
        state.fail_waiting();
        state.show_waiting();
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

    /// Hands a request to the worker that it was assigned to; back to the queue when its socket is full.
    fn hand_over(
        &self,
        state: &mut State,
        given: Assignment,
        to: workers::Id,
        now: std::time::Instant,
    ) {
        let Assignment {
            request, attempt, ..
        } = given;
        let (Some(open), Some(link)) = (state.open(request), state.workers.link(to)) else {
            debug_assert!(false, "what waits has a ticket, and who takes it is there");
            state.workers.end(request, now, None);
            return;
        };
        let outgoing = Outgoing {
            head: self.head(&Address::of(&open.caller)),
            body: open.message.clone(),
        };
        let balancer = &state.workers.balancer;
        let sent = link.send_request(outgoing, tag(request), || Label {
            id: state.label(request),
            attempt,
            left: balancer
                .deadline(request)
                .map(|deadline| deadline.saturating_duration_since(now)),
        });
        if sent.is_ok() {
            return self.follow(state, request);
        }
        state.workers.hold_back(to);
        state.workers.balancer.unsent(request, now);
        self.unsettled.notify_one();
    }

    /// Hands over what waits, for as long as somebody can take it.
    fn pull(&self, state: &mut State) {
        if state.waiting() > 0 {
            self.pull_at(state, now());
        } else {
            state.show_waiting();
        }
    }

    fn pull_at(&self, state: &mut State, now: std::time::Instant) {
        while let Some((given, to)) = state.workers.next(now) {
            self.hand_over(state, given, to, now);
        }
        if self.closed.get() && state.waiting() > 0 {
            // Nobody will come for it.
            state.fail_waiting();
        }
        state.show_waiting();
    }

    /// Somebody may take more than before: messages that are held go out, then requests that wait.
    fn resume(self: &Rc<Self>, state: &mut State) {
        if state.holds() {
            self.pass_held(state);
        }
        self.pull(state);
    }

    /// Ends what a dead worker had: handed on where that is safe, failed otherwise.
    fn give_up(self: &Rc<Self>, state: &mut State, worker: workers::Id) {
        let Some(key) = state.workers.key(worker) else {
            return;
        };
        let now = now();
        // Of what was answered, or is wanted by nobody, it can say no more that it is done with it.
        let left: Vec<Request> = state.workers.balancer.requests_of(key).collect();
        for request in left {
            if state.open(request).is_none() {
                state.workers.balancer.end(request, now, None);
            }
        }
        let lost = state.lose(key, now);
        debug!(
            requests = lost.len(),
            "handler is dead: what it had is handed on or failed"
        );
        for Lost { request, fate } in lost {
            let Some(open) = state.open_mut(request) else {
                continue;
            };
            if open.failed {
                continue;
            }
            open.caller.retire_id();
            match fate {
                Fate::Again => Name::RequestsHandedOn.increment(),
                Fate::Failed(why) => {
                    Name::RequestsLostHandler.increment();
                    if why == balancer::Failure::Quarantined {
                        warn!("a request is given to no further handler: those that had it died");
                    }
                    open.fail(Refused::now(why.into()));
                }
            }
        }
        state.detach_all(worker);
        state.workers.forget(worker);
        self.resume(state);
        self.expect_time(state);
        self.unsettled.notify_one();
    }

    /// The ticket of this request was dropped.
    fn release(&self, request: Request, answered: bool) {
        let state = &mut *self.state.borrow_mut();
        state.release(request, answered);
        self.pull(state);
        self.tell_ended();
    }
}

/// An open request. Dropping it ends the request: its response has ended, or its client is gone.
pub struct Ticket {
    pool: Rc<Pool>,
    request: Request,
    answered: Cell<bool>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// The first bytes of a response came, from this reply socket: the request cannot be handed on any more. False when no
    /// peer has the request: then they are no response to it, and nothing changes.
    pub fn started(&self, voice: PeerId) -> bool {
        let state = &mut *self.pool.state.borrow_mut();
        let phase = state.phase(self.request);
        if phase == Some(Phase::Waiting) {
            return false;
        }
        let worker = state.worker_of(self.request);
        if let Some((open, workers)) = state.open_and_workers(self.request) {
            if !std::mem::replace(&mut open.started, true) {
                // It was met.
                workers.balancer.lift_deadline(self.request);
            }
            open.message = Bytes::new();
            if let Some(worker) = worker
                && phase != Some(Phase::Attached)
            {
                workers.balancer.began(self.request);
                workers.tie(worker, voice);
            }
        }
        true
    }

    /// The response has become a stream: the request does not make its peer busy any more.
    pub fn attach(&self) {
        let state = &mut *self.pool.state.borrow_mut();
        let now = now();
        if let Some((open, workers)) = state.open_and_workers(self.request) {
            open.streams |= open.done.is_none();
            workers.balancer.attach(self.request, now);
        }
        // Its slot is free.
        self.pool.pull_at(state, now);
    }

    /// The response has ended, so that nobody need be told that its answer is not wanted any more. Then the ticket is to be dropped.
    pub fn answered(&self) {
        self.answered.set(true);
    }

    /// The peer that has the request, if it was handed over.
    pub fn peer(&self) -> Option<PeerId> {
        let state = self.pool.state.borrow();
        let worker = state.worker_of(self.request)?;
        state.workers.peer(worker).map(|peer| peer.id())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pool.release(self.request, self.answered.get());
    }
}

#[cfg(test)]
mod chaos_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod worker_tests;
