//! The ROUTER side of a pool as the bus sees it: workers that speak a broker's dialects.
//!
//! What they say is sorted by [`super::session`], one for each connection; what follows from it is the pool's business
//! ([`super::routed`]). Workers that come here may belong to another pool, whose name they give ([`Pool::admit`]). Beside it stands
//! the PUB that asks those of m2wsgi's dialect for signs of life.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::routed::Facts;
use super::session::{Condition, Heard, Heartbeats, Session};
use super::workers::Link;
use super::{Dialect, NO_TAG, Pool};
use crate::bus::server::{Listening, Message, Peer, PeerId, Sink, Unsent};
use crate::metrics::Name;
use crate::numbered::Numbered;
use crate::wire::worker::{FromBroker, Hello, VERSION};

/// What m2wsgi's workers are pinged with.
const M2WSGI_PING: &[u8] = b"";

/// The ROUTER side of a pool.
pub(super) struct RouterSide {
    home: Rc<Pool>,
    seats: RefCell<Numbered<PeerId, Seat>>,
    pings: RefCell<Option<Listening>>,
    /// Told when there is somebody to look after, and when this is over.
    wake: Rc<Notify>,
    /// Messages without sense, and workers that were refused, for the log.
    complaints: Cell<u64>,
}

/// One connection.
struct Seat {
    session: Session,
    peer: Rc<Peer>,
    /// The pool that it works for, once it does.
    pool: Option<Rc<Pool>>,
    /// What the pool was last told.
    told: Condition,
}

impl Drop for RouterSide {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

impl RouterSide {
    pub(super) fn new(pool: &Rc<Pool>) -> Self {
        Self {
            home: Rc::clone(pool),
            seats: RefCell::default(),
            pings: RefCell::default(),
            wake: Rc::default(),
            complaints: Cell::new(0),
        }
    }

    /// Where workers of m2wsgi's dialect hear pings.
    pub(super) fn ping_by(&self, pings: Listening) {
        self.pings.replace(Some(pings));
    }

    /// Looks after the workers until the sockets are gone: what their silence means, and who is to be asked for a sign of life.
    pub(super) async fn look_after(side: Weak<Self>) {
        loop {
            let Some(this) = side.upgrade() else {
                return;
            };
            let (wake, interval) = (Rc::clone(&this.wake), this.rules().interval);
            let is_alone = this.is_alone();
            drop(this);
            if is_alone {
                wake.notified().await;
            }
            tokio::time::sleep(interval).await;
            if let Some(this) = side.upgrade() {
                this.tick();
            }
        }
    }

    fn rules(&self) -> Heartbeats {
        self.home.heartbeats.get()
    }

    /// Whether there is nobody to look after.
    fn is_alone(&self) -> bool {
        let pings = self.pings.borrow();
        let ears = pings.as_ref().is_some_and(|pings| pings.peer_count() > 0);
        !ears && self.seats.borrow().is_empty()
    }

    fn tick(&self) {
        if self.home.replies.is_full() {
            // Their signs of life are not read.
            return;
        }
        if let Some(pings) = &*self.pings.borrow() {
            pings.publish(M2WSGI_PING);
        }
        let (now, rules) = (Instant::now(), self.rules());
        let mut turned = Vec::new();
        for seat in self.seats.borrow_mut().values_mut() {
            let Some(pool) = &seat.pool else {
                continue;
            };
            let id = seat.peer.id();
            let tick = seat.session.tick(now, pool.worker_has(id), &rules);
            if let Some(number) = tick.ping {
                say(&seat.peer, &FromBroker::Ping(number));
            }
            pool.worker_stuck(id, tick.stuck);
            turned.extend(seat.turn());
        }
        for turned in turned {
            turned.tell();
        }
    }

    /// What a worker has said, and the pool that it works for.
    fn hear(&self, peer: &Rc<Peer>, message: &Message) -> (Heard, Option<Rc<Pool>>) {
        let mut seats = self.seats.borrow_mut();
        let Some(seat) = seats.get_mut(&peer.id()) else {
            // It was sent away, and its connection has not ended yet.
            return (Heard::Nothing, None);
        };
        let heard = seat.session.hear(message.frames(), Instant::now);
        let (turned, pool) = (seat.turn(), seat.pool.clone());
        drop(seats);
        if let Some(turned) = turned {
            turned.tell();
        }
        (heard, pool)
    }

    /// A worker of the own dialect has said what it is.
    fn welcome(&self, peer: &Rc<Peer>, hello: &Hello) {
        let Some(pool) = self.home.named(&hello.pool) else {
            let name = hello.pool.escape_ascii();
            return self.refuse(peer, &format!("there is no pool \"{name}\" here"));
        };
        let rules = self.rules();
        let welcome = FromBroker::Welcome {
            version: hello.version.min(VERSION),
            interval: rules.interval,
            patience: rules.interval.saturating_mul(rules.missed_max),
        };
        // Before its first request.
        say(peer, &welcome);
        if let Some(seat) = self.seats.borrow_mut().get_mut(&peer.id()) {
            say(peer, &FromBroker::Ping(seat.session.ask(Instant::now())));
        }
        let facts = Facts {
            dialect: Dialect::Own,
            name: &hello.name,
            slots: hello.slots,
            weight: hello.weight,
        };
        self.join(peer, &pool, facts);
    }

    fn join(&self, peer: &Rc<Peer>, pool: &Rc<Pool>, facts: Facts<'_>) {
        if let Some(seat) = self.seats.borrow_mut().get_mut(&peer.id()) {
            seat.pool = Some(Rc::clone(pool));
        }
        pool.worker_joins(peer, facts);
    }

    /// A worker of m2wsgi's dialect is there.
    fn join_m2wsgi(&self, peer: &Rc<Peer>) {
        let facts = Facts {
            dialect: Dialect::M2wsgi,
            name: b"",
            // None is as many as the pool gives to whoever says no number.
            slots: match self.home.settings().rules.slots {
                Some(_) => None,
                None => Some(self.rules().m2wsgi_slots),
            },
            weight: 1,
        };
        self.join(peer, &self.home, facts);
    }

    /// Sends a worker away that is of no use here.
    fn refuse(&self, peer: &Rc<Peer>, why: &str) {
        Name::PeersRefused.increment();
        if self.may_complain() {
            warn!(peer = %peer.id(), origin = %peer.origin(), "worker refused: {why}");
        }
        let reason = Bytes::copy_from_slice(why.as_bytes());
        self.dismiss(peer, Some(&FromBroker::Refused { reason }));
    }

    /// Ends a worker's connection, perhaps with a last word. It is dead at once, with what it has.
    fn dismiss(&self, peer: &Rc<Peer>, last: Option<&FromBroker>) {
        let unsent = peer.take_unsent();
        if let Some(last) = last {
            say(peer, last);
        }
        let seat = self.seats.borrow_mut().remove(&peer.id());
        peer.close();
        if let Some(pool) = seat.and_then(|seat| seat.pool) {
            pool.worker_lost(peer, &unsent);
        }
    }

    /// Whether the log should have this line: the first, and then ever fewer.
    fn may_complain(&self) -> bool {
        let count = self.complaints.get().saturating_add(1);
        self.complaints.set(count);
        count.is_power_of_two()
    }
}

impl Seat {
    /// Whether it does otherwise than the pool was told.
    fn turn(&mut self) -> Option<Turned> {
        let condition = self.session.condition();
        let before = std::mem::replace(&mut self.told, condition);
        if before == condition {
            return None;
        }
        Some(Turned {
            pool: Rc::clone(self.pool.as_ref()?),
            peer: Rc::clone(&self.peer),
            before,
            condition,
        })
    }
}

/// A worker that has become silent or stuck, or is no longer.
struct Turned {
    pool: Rc<Pool>,
    peer: Rc<Peer>,
    before: Condition,
    condition: Condition,
}

impl Turned {
    fn tell(self) {
        let (peer, origin) = (self.peer.id(), self.peer.origin());
        match (self.before, self.condition) {
            (_, Condition::Silent) => {
                info!(%peer, %origin, "worker is silent: it gets nothing more until it is heard");
            }
            (_, Condition::Stuck) => {
                info!(%peer, %origin, "worker comes no further: it gets nothing more until it does");
            }
            (Condition::Stuck, Condition::Well) => info!(%peer, %origin, "worker goes on"),
            (_, Condition::Well) => info!(%peer, %origin, "worker is heard again"),
        }
        self.pool.worker_does(peer, self.condition);
    }
}

/// Queues a word of the own dialect. One that there is no room for is one for a worker that does not read, which silence will tell.
fn say(peer: &Rc<Peer>, word: &FromBroker) {
    let link = Link {
        peer: Rc::clone(peer),
        dialect: Dialect::Own,
    };
    if let Err(why) = link.say(word, NO_TAG) {
        debug!(peer = %peer.id(), "a word to a worker is dropped: {why}");
    }
}

impl Sink for RouterSide {
    fn joined(&self, peer: &Rc<Peer>) {
        let seat = Seat {
            session: Session::new(Instant::now()),
            peer: Rc::clone(peer),
            pool: None,
            told: Condition::Well,
        };
        self.seats.borrow_mut().insert(peer.id(), seat);
        self.wake.notify_one();
    }

    fn subscribed(&self, _: &Rc<Peer>) {}

    fn message(&self, peer: &Rc<Peer>, message: Message) {
        let (heard, pool) = self.hear(peer, &message);
        let id = peer.id();
        match (heard, pool) {
            (Heard::Answer(word), _) => {
                if word == FromBroker::Bye {
                    Name::RepliesMalformed.increment();
                }
                say(peer, &word);
            }
            (Heard::Joins(hello), _) => self.welcome(peer, &hello),
            (Heard::JoinsM2wsgi(reply), _) => {
                self.join_m2wsgi(peer);
                if let Some(reply) = reply {
                    self.home.worker_replied(id, None, reply);
                }
            }
            (Heard::Refused(why), _) => self.refuse(peer, &why),
            (Heard::Leaves, _) => self.dismiss(peer, None),
            (Heard::Holds(held, address), Some(pool)) => pool.worker_holds(id, held, &address),
            (Heard::Credit(credit), Some(pool)) => pool.worker_credit(id, Some(credit)),
            (Heard::Began(request), Some(pool)) => pool.request_began(id, request),
            (Heard::Done(request, took), Some(pool)) => pool.request_done(id, request, took),
            // One of m2wsgi's that came back only to leave has no pool, and may have something to say.
            (Heard::Replied(request, message), pool) => {
                let pool = pool.unwrap_or_else(|| Rc::clone(&self.home));
                pool.worker_replied(id, request, message);
            }
            (Heard::Hop(hop), Some(pool)) => pool.worker_hop(id, hop),
            (Heard::Drains, Some(pool)) => pool.worker_drains(id),
            (Heard::DrainsStill, _) => {
                let dialect = match self.seats.borrow().get(&id) {
                    Some(seat) if seat.session.is_m2wsgi() => Dialect::M2wsgi,
                    _ => Dialect::Own,
                };
                let link = Link {
                    peer: Rc::clone(peer),
                    dialect,
                };
                // Without room it will ask again.
                let _asked_again = link.say_drained(NO_TAG);
            }
            (Heard::Senseless(why), _) => {
                Name::RepliesMalformed.increment();
                if self.may_complain() {
                    warn!(peer = %id, origin = %peer.origin(), "a message of a worker is ignored: {why}");
                }
            }
            // A worker that has said what it is has a pool; one that has not is told so.
            (Heard::Nothing, _) | (_, None) => {}
        }
    }

    fn blocked(&self, peer: &Rc<Peer>) {
        if let Some(pool) = self.pool_of(peer) {
            pool.worker_blocked(peer.id());
        }
    }

    fn writable(&self, peer: &Rc<Peer>) {
        if let Some(pool) = self.pool_of(peer) {
            pool.worker_writable(peer.id());
        }
    }

    fn is_full(&self) -> bool {
        self.home.replies.is_full()
    }

    fn is_awaited(&self, peer: &Rc<Peer>) -> bool {
        self.pool_of(peer)
            .is_some_and(|pool| pool.worker_has(peer.id()))
    }

    fn lost(&self, peer: &Rc<Peer>, unsent: Vec<Unsent>) {
        let seat = self.seats.borrow_mut().remove(&peer.id());
        if let Some(pool) = seat.and_then(|seat| seat.pool) {
            pool.worker_lost(peer, &unsent);
        }
    }
}

impl RouterSide {
    fn pool_of(&self, peer: &Rc<Peer>) -> Option<Rc<Pool>> {
        let seats = self.seats.borrow();
        seats.get(&peer.id()).and_then(|seat| seat.pool.clone())
    }
}

/// The PUB that pings workers of m2wsgi's dialect.
pub(super) struct PingSide(pub(super) Weak<RouterSide>);

impl Sink for PingSide {
    fn joined(&self, _: &Rc<Peer>) {
        if let Some(side) = self.0.upgrade() {
            side.wake.notify_one();
        }
    }

    fn subscribed(&self, peer: &Rc<Peer>) {
        // At once: its DEALER may have come back to a broker that does not know it.
        let _pinged_again = peer.send_frames(&[M2WSGI_PING], NO_TAG);
    }

    fn message(&self, _: &Rc<Peer>, _: Message) {}

    fn writable(&self, _: &Rc<Peer>) {}

    fn lost(&self, _: &Rc<Peer>, _: Vec<Unsent>) {}
}

impl Pool {
    /// Lets workers that come to this pool's address and name `name` work for `pool`, which is perhaps this one. Those that name none
    /// work for this one in any case; a name that was not admitted is refused.
    pub fn admit(&self, name: impl Into<Bytes>, pool: &Rc<Pool>) {
        let (name, pool) = (name.into(), Rc::downgrade(pool));
        self.namesakes.borrow_mut().insert(name, pool);
    }

    /// The pool for workers that name it so.
    fn named(self: &Rc<Self>, name: &Bytes) -> Option<Rc<Pool>> {
        if name.is_empty() {
            return Some(Rc::clone(self));
        }
        self.namesakes.borrow().get(name).and_then(Weak::upgrade)
    }

    /// For how long the program of a worker has come no further although it has something.
    fn worker_stuck(&self, peer: PeerId, stuck: Option<Duration>) {
        self.state.borrow_mut().workers.set_stuck(peer, stuck);
    }
}
