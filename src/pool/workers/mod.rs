//! The peers of a pool: workers (PULL sockets, which take requests) and voices (PUB sockets, which bring replies), and
//! which of them belong together.
//!
//! A handler that says so itself, by a token in the READY of both, is believed ([`Kin::Token`]). Otherwise ZeroMQ does not say which
//! PUB belongs to which PULL. Over ipc the process id ties them; over tcp all there is to go by is the address, who answered whose
//! request, and what was lost at the same moment. Two decisions hang on it:
//!
//! * **when a worker may be given its first request**: a reply that is sent before our subscription has reached the
//!   handler's PUB is lost, so a new worker waits until its process has a subscribed voice. Behind one address there
//!   must be as many subscribed voices as workers; a handler that connects none is served after a grace.
//! * **what the loss of a worker means**: a handler that closes its PULL and keeps its PUB is draining and will answer
//!   what it has; one that loses both is dead, and so is what it had.
//!
//! What the second comes to stands in [`loss`]. A worker may also be drained while its PULL is open, because it has asked for that or
//! somebody else has: it gets no new request, and what belongs to those that it has ([`leaving`]).

mod leaving;
mod link;
mod loss;
mod routed;

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::kin::Kin;
use super::report::tell_apart;
use super::requests::now;
use super::session::Condition;
use super::{LOSS_WINDOW, NO_TAG, PAIRING_GRACE, STALL_AFTER};
use crate::balancer::{self, Assignment, Balancer, NewWorker, Request, Standing};
use crate::bus::server::{Origin, Peer, PeerId, Unsent};
use crate::metrics::Name;
use crate::numbered::Numbered;
use crate::wire::worker::{FromBroker, RequestId};

use leaving::Leave;
pub use link::Dialect;
pub(super) use link::{Label, Link};

/// What a worker has from before its connection it says right behind its HELLO: in the same write, but for what the network does to it.
const RETURN_LULL: Duration = Duration::from_millis(20);

/// Answers by its own voice that a worker's tie is worth: so many by another are needed to change it.
const VOTES_MAX: u8 = 4;

/// Names a worker for as long as a request refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(usize);

pub(super) struct Workers {
    /// Who gets what. Every worker that is known here is known there, until it is dead or has left with nothing open.
    pub(super) balancer: Balancer,
    all: Slab<Worker>,
    /// The worker behind each key of the balancer, by [`balancer::Worker::index`].
    by_key: Vec<Option<Id>>,
    by_peer: Numbered<PeerId, Id>,
    voices: Numbered<PeerId, Voice>,
    /// Voices lost within [`LOSS_WINDOW`] whose worker was not known.
    lost_voices: VecDeque<(Instant, Kin)>,
    /// How many voices of an origin belong to workers that have left: they vouch for nobody who comes.
    departed: HashMap<Kin, usize>,
    /// How many workers with an open PULL get no new requests.
    leaving: usize,
    /// Until then workers are expected that have something from before.
    returning_until: Option<Instant>,
}

struct Worker {
    link: Link,
    kin: Kin,
    key: balancer::Worker,
    /// Its number among the workers of its kin, the lowest that was free: part of its name where it gives itself none.
    number: usize,
    /// Requests that are not open here and that it is heard about: those from before its connection, and those that go on as messages.
    holds: HashMap<RequestId, Hold>,
    /// For how long its program has come no further.
    no_progress: Option<Duration>,
    leave: Leave,
    /// Its PULL is there.
    connected: bool,
    /// What its signs of life say.
    condition: Condition,
    /// The voice that answers its requests.
    voice: Option<PeerId>,
    /// How much speaks for that voice: any handler may write to any connection, so one answer proves nothing.
    votes: u8,
    phase: Phase,
}

/// What a request that is not open here means to the worker that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// It takes one of its slots until that says that it is done.
    Busy,
    /// It takes none.
    Idle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It has come back, and what it still has may be just behind its HELLO.
    Returning {
        since: Instant,
    },
    /// Connected, and its reply socket not yet seen subscribed.
    Pairing {
        since: Instant,
    },
    Ready,
    /// Its socket takes nothing more.
    Blocked {
        since: Instant,
        stalled: bool,
    },
    /// Its PULL is lost, and its PUB may be about to be.
    Doubtful {
        since: Instant,
    },
    /// Its PULL is closed; it answers what it has.
    Draining,
}

struct Voice {
    kin: Kin,
    subscribed: bool,
    /// It has asked for no more requests.
    drains: bool,
}

impl Worker {
    /// Whether a voice of that kin may be its own.
    fn may_have(&self, voice: PeerId, kin: Kin) -> bool {
        match (kin, self.voice) {
            (kin, _) if kin.is_certain() => self.kin == kin,
            (_, None) => self.kin == kin,
            (_, Some(tied)) => tied == voice,
        }
    }

    /// Whether it may get requests.
    fn standing(&self) -> Standing {
        match self.phase {
            _ if !self.connected => Standing::Draining,
            _ if self.condition == Condition::Silent => Standing::Suspect,
            _ if self.leave != Leave::No => Standing::Draining,
            _ if self.condition == Condition::Stuck => Standing::Held,
            Phase::Ready => Standing::Ready,
            Phase::Returning { .. } | Phase::Pairing { .. } | Phase::Blocked { .. } => {
                Standing::Held
            }
            Phase::Doubtful { .. } | Phase::Draining => Standing::Draining,
        }
    }
}

impl Workers {
    pub(super) fn new(balancer: Balancer) -> Self {
        Self {
            balancer,
            all: Slab::new(),
            by_key: Vec::new(),
            by_peer: Numbered::default(),
            voices: Numbered::default(),
            lost_voices: VecDeque::new(),
            departed: HashMap::new(),
            leaving: 0,
            returning_until: None,
        }
    }

    /// Whether there is no worker at all.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether any worker still has its socket to us.
    pub(super) fn is_anyone_connected(&self) -> bool {
        self.all.iter().any(|(_, worker)| worker.connected)
    }

    /// Closes the sockets of workers that have nothing open; says whether any worker is left.
    pub(super) fn dismiss_idle(&self) -> bool {
        for (_, worker) in &self.all {
            if self.held(worker) == 0 && !worker.link.peer.is_gone() {
                let _seen_later = worker.link.say(&FromBroker::Bye, NO_TAG);
                worker.link.peer.close();
            }
        }
        !self.all.is_empty()
    }

    /// Requests that refer to it, open or attached.
    fn held(&self, worker: &Worker) -> u32 {
        self.balancer.open(worker.key) + self.balancer.attached(worker.key)
    }

    /// What is open at a worker. Zero for one that is not there.
    fn held_by(&self, id: Id) -> u32 {
        self.all.get(id.0).map_or(0, |worker| self.held(worker))
    }

    /// Gives the next request to the best worker, where it then counts as open.
    pub(super) fn next(&mut self, now: std::time::Instant) -> Option<(Assignment, Id)> {
        loop {
            let assignment = self.balancer.next(now)?;
            let Some(id) = self.by(assignment.worker) else {
                debug_assert!(false, "the balancer knows nobody else");
                return None;
            };
            let held_back = self.all.get(id.0).is_some_and(|worker| {
                worker.link.peer.is_blocked() || worker.link.peer.is_silent()
            });
            if !held_back {
                return Some((assignment, id));
            }
            self.hold_back(id);
            self.balancer.unsent(assignment.request, now);
        }
    }

    /// The worker that has a request.
    pub(super) fn holder(&self, request: Request) -> Option<Id> {
        self.by(self.balancer.worker_of(request)?)
    }

    /// Whether the worker that has a request says when it is done with it.
    pub(super) fn tells_done(&self, request: Request) -> bool {
        let link = self.holder(request).and_then(|id| self.link(id));
        link.is_some_and(|link| link.dialect == Dialect::Own)
    }

    /// Whether the worker that has a request takes so many and no more.
    pub(super) fn is_walled(&self, request: Request) -> bool {
        let worker = self.balancer.worker_of(request);
        worker.is_some_and(|worker| self.balancer.credit(worker).is_some())
    }

    /// The request has ended.
    pub(super) fn end(
        &mut self,
        request: Request,
        now: std::time::Instant,
        took: Option<Duration>,
    ) {
        let holder = self.holder(request);
        self.balancer.end(request, now, took);
        if let Some(holder) = holder {
            self.let_go(holder);
        }
    }

    /// A connection is attached to this worker.
    pub(super) fn attach_more(&mut self, id: Id) {
        if let Some(worker) = self.all.get(id.0) {
            self.balancer.attach_more(worker.key);
        }
    }

    /// An attached connection of this worker has ended.
    pub(super) fn detach(&mut self, id: Id) {
        if let Some(worker) = self.all.get(id.0) {
            self.balancer.detach(worker.key);
            self.let_go(id);
        }
    }

    /// Something of this worker has ended: one that has left with that was waited for is forgotten.
    fn let_go(&mut self, id: Id) {
        let is_over = self
            .all
            .get(id.0)
            .is_some_and(|worker| !worker.connected && self.held(worker) == 0);
        if is_over {
            self.forget(id);
        }
    }

    /// The worker behind a key of the balancer.
    pub(super) fn by(&self, key: balancer::Worker) -> Option<Id> {
        let id = self.by_key.get(key.index()).copied().flatten()?;
        (self.all.get(id.0)?.key == key).then_some(id)
    }

    /// The key under which the balancer knows a worker.
    pub(super) fn key(&self, id: Id) -> Option<balancer::Worker> {
        self.all.get(id.0).map(|worker| worker.key)
    }

    /// Tells the balancer how a worker stands now.
    fn restand(&mut self, id: Id) {
        if let Some(worker) = self.all.get(id.0) {
            let standing = worker.standing();
            self.balancer.set(worker.key, standing, now());
        }
    }

    /// Takes a worker for a connection to be attached to: the best one; else, as it takes no slot, any that takes messages.
    pub(super) fn pick_attached(&mut self) -> Option<Id> {
        let best = self.balancer.pick_attached().and_then(|key| self.by(key));
        let id = best.filter(|id| self.takes(*id)).or_else(|| {
            let mut all = self.all.iter().map(|(index, _)| Id(index));
            all.find(|id| self.takes(*id) && !self.is_leaving(*id))
        })?;
        self.attach_more(id);
        Some(id)
    }

    /// Whether a worker is connected, though it may take nothing now.
    pub(super) fn is_connected(&self, id: Id) -> bool {
        self.all.get(id.0).is_some_and(|worker| worker.connected)
    }

    /// Whether a worker takes messages now.
    pub(super) fn takes(&self, id: Id) -> bool {
        self.all.get(id.0).is_some_and(|worker| {
            worker.connected
                && worker.phase == Phase::Ready
                && !worker.link.peer.is_blocked()
                && !worker.link.peer.is_silent()
        })
    }

    /// The worker's socket takes nothing more for now.
    pub(super) fn hold_back(&mut self, id: Id) {
        if let Some(worker) = self.all.get_mut(id.0)
            && worker.connected
            && worker.phase == Phase::Ready
        {
            worker.phase = Phase::Blocked {
                since: Instant::now(),
                stalled: false,
            };
            self.restand(id);
        }
    }

    /// The worker's socket has taken everything that was queued.
    pub(super) fn drained(&mut self, peer: PeerId) {
        if let Some(id) = self.find(peer)
            && matches!(self.all[id.0].phase, Phase::Blocked { .. })
        {
            self.make_ready(id);
        }
    }

    /// Whether an answer is expected from this peer.
    pub(super) fn is_awaited(&self, peer: PeerId) -> bool {
        self.by_peer.get(&peer).is_some_and(|id| {
            let foreign = self.key(*id).map_or(0, |key| self.balancer.foreign(key));
            self.held_by(*id) > 0 || foreign > 0
        })
    }

    /// The worker's socket takes nothing more although something is queued.
    pub(super) fn blocked(&mut self, peer: PeerId) {
        if let Some(id) = self.find(peer) {
            self.hold_back(id);
        }
    }

    pub(super) fn peer(&self, id: Id) -> Option<&Rc<Peer>> {
        self.link(id).map(|link| &link.peer)
    }

    /// How a worker is spoken to.
    pub(super) fn link(&self, id: Id) -> Option<&Link> {
        self.all.get(id.0).map(|worker| &worker.link)
    }

    /// This voice has answered a request of this worker: they are one handler, when it is so more often than not.
    pub(super) fn tie(&mut self, id: Id, voice: PeerId) {
        let Some(worker) = self.all.get_mut(id.0) else {
            return;
        };
        if self.voices.get(&voice).map(|voice| voice.kin) != Some(worker.kin) {
            return;
        }
        let gone = worker
            .voice
            .is_none_or(|tied| !self.voices.contains_key(&tied));
        if worker.voice == Some(voice) {
            worker.votes = worker.votes.saturating_add(1).min(VOTES_MAX);
        } else if gone || worker.votes == 0 {
            worker.voice = Some(voice);
            worker.votes = 1;
        } else {
            worker.votes -= 1;
        }
    }

    /// Forgets a worker to which no request refers, or one that is dead and was taken from the balancer.
    pub(super) fn forget(&mut self, id: Id) {
        let Some(worker) = self.all.try_remove(id.0) else {
            return;
        };
        let gone = self.balancer.remove(worker.key, now());
        debug_assert!(gone, "a worker is forgotten that has requests");
        if let Some(place) = self.by_key.get_mut(worker.key.index())
            && *place == Some(id)
        {
            *place = None;
        }
        let peer = worker.link.peer.id();
        self.by_peer.remove(&peer);
        if matches!(worker.kin, Kin::Same(_)) {
            self.voices.remove(&peer);
        }
        self.leaving -= usize::from(worker.connected && worker.leave != Leave::No);
    }

    /// Where a peer came from, also one that has left and still has something open.
    pub(super) fn origin(&self, peer: PeerId) -> Option<Origin> {
        let id = self.by_peer.get(&peer)?;
        self.peer(*id).map(|peer| peer.origin())
    }

    /// The peer for a notice: `to` if it still takes messages, else the least busy one, else any.
    pub(super) fn listener(&self, to: Option<PeerId>) -> Option<Link> {
        let named = to.and_then(|peer| self.find(peer));
        let best = || self.balancer.first().and_then(|key| self.by(key));
        let any = || {
            self.all
                .iter()
                .find(|(_, worker)| worker.connected)
                .map(|(index, _)| Id(index))
        };
        let id = named.or_else(best).or_else(any)?;
        self.link(id).cloned()
    }

    /// Whether this voice may be that of this peer, which may have left.
    pub(super) fn speaks_for(&self, voice: PeerId, peer: PeerId) -> bool {
        let Some(Voice { kin, .. }) = self.voices.get(&voice) else {
            return false;
        };
        let worker = self.by_peer.get(&peer).and_then(|id| self.all.get(id.0));
        worker.is_none_or(|worker| worker.may_have(voice, *kin))
    }

    /// The peer of the handler behind a voice: `to` if that may be its own.
    pub(super) fn own_listener(&self, voice: PeerId, to: Option<PeerId>) -> Option<Link> {
        let kin = self.voices.get(&voice)?.kin;
        let all = self.all.iter().map(|(_, worker)| worker);
        let own = all.filter(|worker| worker.connected && worker.may_have(voice, kin));
        let likely = |worker: &&Worker| {
            let (meant, tied) = (
                Some(worker.link.peer.id()) == to,
                worker.voice == Some(voice),
            );
            2 * u8::from(meant) + u8::from(tied)
        };
        // The first among equals.
        let best = own.reduce(|best, worker| {
            let better = likely(&worker) > likely(&best);
            if better { worker } else { best }
        })?;
        Some(best.link.clone())
    }

    /// The peer for a notice to the handler behind a voice, or any other that takes messages.
    pub(super) fn listener_of_voice(&self, voice: PeerId) -> Option<Link> {
        self.own_listener(voice, None)
            .or_else(|| self.listener(None))
    }

    /// A PULL peer has joined.
    pub(super) fn join(&mut self, peer: &Rc<Peer>, now: Instant) {
        debug!(peer = %peer.id(), origin = ?peer.origin(), "handler joined");
        let link = Link {
            peer: Rc::clone(peer),
            dialect: Dialect::Plain,
        };
        let facts = NewWorker {
            standing: Standing::Held,
            ..NewWorker::default()
        };
        let phase = Phase::Pairing { since: now };
        self.enter(link, Kin::of(peer), facts, phase, now);
    }

    /// A worker is there, and is paired with its voice.
    fn enter(&mut self, link: Link, kin: Kin, facts: NewWorker<'_>, phase: Phase, now: Instant) {
        let taken: HashSet<usize> = self
            .all
            .iter()
            .filter(|(_, worker)| worker.kin == kin)
            .map(|(_, worker)| worker.number)
            .collect();
        let free = (0..=taken.len()).find(|number| !taken.contains(number));
        let number = free.unwrap_or(0);
        let own;
        let facts = if facts.name.is_empty() {
            // The next one from there has the same name, and with it the same keys.
            own = format!("{}/{number}", kin.name());
            NewWorker {
                name: own.as_bytes(),
                ..facts
            }
        } else {
            facts
        };
        let key = self.balancer.add(facts, now.into_std());
        let drains = self
            .voices
            .values()
            .any(|voice| voice.kin == kin && voice.drains);
        let peer = link.peer.id();
        let id = Id(self.all.insert(Worker {
            link,
            kin,
            key,
            number,
            holds: HashMap::new(),
            no_progress: None,
            leave: if drains { Leave::Untold } else { Leave::No },
            connected: true,
            condition: Condition::Well,
            voice: None,
            votes: 0,
            phase,
        }));
        if self.by_key.len() <= key.index() {
            self.by_key.resize(key.index() + 1, None);
        }
        if let Some(place) = self.by_key.get_mut(key.index()) {
            *place = Some(id);
        }
        self.by_peer.insert(peer, id);
        self.leaving += usize::from(drains);
        self.restand(id);
        self.pair(kin);
    }

    /// A PUB peer has joined; it is not subscribed yet.
    pub(super) fn voice_joined(&mut self, peer: &Rc<Peer>) {
        self.voices.insert(
            peer.id(),
            Voice {
                kin: Kin::of(peer),
                subscribed: false,
                drains: false,
            },
        );
    }

    /// What this PUB sends from now on reaches us.
    pub(super) fn voice_subscribed(&mut self, peer: PeerId) {
        if let Some(voice) = self.voices.get_mut(&peer) {
            voice.subscribed = true;
            let kin = voice.kin;
            self.pair(kin);
        }
    }

    /// Makes the held workers of a kin ready when its voices are.
    fn pair(&mut self, kin: Kin) {
        let voices = || self.voices.values().filter(|voice| voice.kin == kin);
        let subscribed = voices().filter(|voice| voice.subscribed).count();
        let workers = || {
            self.all
                .iter()
                .filter(|(_, worker)| worker.connected && worker.kin == kin)
        };
        let enough = if kin.is_one() {
            subscribed > 0
        } else {
            let departed = self.departed.get(&kin).copied().unwrap_or(0);
            subscribed >= workers().count().saturating_add(departed)
        };
        if !enough || voices().any(|voice| !voice.subscribed) {
            return;
        }
        let held: Vec<Id> = workers()
            .filter(|(_, worker)| matches!(worker.phase, Phase::Pairing { .. }))
            .map(|(index, _)| Id(index))
            .collect();
        for id in held {
            if let Some(worker) = self.all.get_mut(id.0)
                && worker
                    .voice
                    .is_some_and(|voice| !self.voices.contains_key(&voice))
            {
                // It has come back with a voice that has yet to show itself.
                worker.voice = None;
            }
            self.make_ready(id);
        }
    }

    fn make_ready(&mut self, id: Id) {
        if let Some(worker) = self.all.get_mut(id.0)
            && worker.connected
        {
            worker.phase = Phase::Ready;
            self.restand(id);
        }
    }

    /// Lets time settle pairing, doubtful losses and stalls. Gives the workers that have stalled, and the messages that
    /// they never got.
    pub(super) fn settle(&mut self, now: Instant) -> Vec<(Rc<Peer>, Vec<Unsent>)> {
        let mut all_taken_back = Vec::new();
        let mut awake = Vec::new();
        let mut served = Vec::new();
        let mut drained = Vec::new();
        for (index, worker) in &mut self.all {
            let id = Id(index);
            let peer = worker.link.peer.id();
            let held = self.balancer.open(worker.key) + self.balancer.attached(worker.key);
            match worker.phase {
                Phase::Pairing { since } if now.duration_since(since) >= PAIRING_GRACE => {
                    warn!(%peer, "a handler has no reply socket of its own that we see: served all the same");
                    served.push(id);
                }
                Phase::Returning { since } if now.duration_since(since) >= RETURN_LULL => {
                    awake.push(id);
                }
                Phase::Doubtful { since } if now.duration_since(since) >= LOSS_WINDOW => {
                    info!(%peer, held, "handler is draining: it takes no more and answers what it has");
                    worker.phase = Phase::Draining;
                    if held == 0 {
                        drained.push(id);
                    }
                }
                // It was held for its silence, which has ended; a socket that drains again says so itself.
                Phase::Blocked { .. }
                    if !worker.link.peer.is_blocked() && !worker.link.peer.is_silent() =>
                {
                    awake.push(id);
                }
                Phase::Blocked {
                    since,
                    stalled: false,
                } if now.duration_since(since) >= STALL_AFTER => {
                    let taken_back = worker.link.peer.take_unsent();
                    warn!(%peer, held, taken_back = taken_back.len(), "handler has stalled: its socket does not drain");
                    Name::HandlersStalled.increment();
                    worker.phase = Phase::Blocked {
                        since,
                        stalled: true,
                    };
                    all_taken_back.push((Rc::clone(&worker.link.peer), taken_back));
                }
                _ => {}
            }
        }
        for id in served.into_iter().chain(awake) {
            self.make_ready(id);
        }
        for id in drained {
            self.forget(id);
        }
        all_taken_back
    }

    /// Whether anything waits for time.
    pub(super) fn is_unsettled(&self) -> bool {
        self.all.iter().any(|(_, worker)| match worker.phase {
            Phase::Returning { .. } | Phase::Pairing { .. } | Phase::Doubtful { .. } => true,
            Phase::Blocked { stalled, .. } => !stalled || !worker.link.peer.is_blocked(),
            Phase::Ready | Phase::Draining => worker.connected && worker.leave == Leave::Untold,
        })
    }

    /// Every worker, oldest place first.
    pub(super) fn report(&self, now: Instant) -> Vec<super::Worker> {
        let report = |worker: &Worker| {
            let (open, attached) = (
                self.balancer.open(worker.key),
                self.balancer.attached(worker.key),
            );
            let name = self.balancer.name(worker.key).unwrap_or_default();
            super::Worker {
                peer: worker.link.peer.id(),
                name: String::from_utf8_lossy(name).into_owned(),
                dialect: worker.link.dialect,
                slots: self.balancer.slots(worker.key),
                credit: self.balancer.credit(worker.key),
                weight: self.balancer.weight(worker.key),
                served: self.balancer.served(worker.key),
                unsent: self.balancer.unsent_of(worker.key),
                overdue: self.balancer.overdue_of(worker.key),
                service: self
                    .balancer
                    .service_of(worker.key)
                    .map(Into::into)
                    .unwrap_or_default(),
                origin: worker.link.peer.origin(),
                state: match worker.phase {
                    _ if worker.condition == Condition::Silent => "suspect",
                    _ if worker.connected && worker.leave != Leave::No => "draining",
                    _ if worker.condition == Condition::Stuck => "stuck",
                    Phase::Returning { .. } | Phase::Pairing { .. } => "pairing",
                    Phase::Ready if self.balancer.is_ejected(worker.key) => "ejected",
                    Phase::Ready => "ready",
                    Phase::Blocked { stalled: false, .. } => "blocked",
                    Phase::Blocked { stalled: true, .. } => "stalled",
                    Phase::Doubtful { .. } => "leaving",
                    Phase::Draining => "draining",
                },
                open,
                foreign: self.balancer.foreign(worker.key),
                attached,
                queued: worker.link.peer.queued_messages(),
                queued_bytes: worker.link.peer.queued_bytes(),
                stuck: worker
                    .link
                    .peer
                    .blocked_since()
                    .map(|since| now.duration_since(since)),
                no_progress: worker.no_progress,
            }
        };
        let mut all: Vec<_> = self.all.iter().map(|(_, worker)| report(worker)).collect();
        tell_apart(&mut all);
        all
    }

    /// Reply sockets that are subscribed.
    pub(super) fn voices(&self) -> usize {
        let all = self.voices.values();
        let subscribed = all.filter(|voice| voice.subscribed && !matches!(voice.kin, Kin::Same(_)));
        subscribed.count()
    }

    fn find(&self, peer: PeerId) -> Option<Id> {
        let id = self.by_peer.get(&peer).copied()?;
        self.is_connected(id).then_some(id)
    }
}
