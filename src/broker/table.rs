//! What is open between a server's connections and the workers: requests, WebSocket connections, and what waits behind them.
//!
//! Bookkeeping only. A connection has an entry for as long as something of it is open; afterwards [`Recent`] knows whose it was.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Exchange as Told;
use super::ledger::Slot;
use super::orphans::Orphan;
use super::pools::{At, Pools};
use super::recent::Recent;
use crate::bus::server::PeerId;
use crate::http1::{Asked, ScanState, Scanner, Version};
use crate::numbered::Numbered;
use crate::pool::{Attachment, Caller, Pool, Refused, Retry, Speaker, Ticket};
use crate::wire::ConnId;

/// Everything that is open at one server.
#[derive(Default)]
pub(super) struct Table {
    pub(super) conns: Numbered<u32, Conn>,
    pub(super) recent: Recent,
    /// Tells entries apart that have the same id one after the other.
    pub(super) serial: u64,
    /// Requests and parts that wait behind something else of their connection, in bytes.
    pub(super) held_bytes: usize,
    /// Requests that wait behind another of their connection.
    pub(super) held: usize,
    /// Requests of before, with their serial; may have stale entries.
    pub(super) orphans: Vec<(ConnId, u64)>,
    /// Open requests, attached ones too.
    pub(super) exchanges: usize,
}

/// A connection of which something is open.
pub(super) struct Conn {
    pub(super) serial: u64,
    pub(super) stage: Stage,
    /// Requests that came while another was open, oldest first.
    pub(super) held: VecDeque<Arrived>,
}

pub(super) enum Stage {
    /// A request, from its arrival until its response has ended.
    Exchange(Exchange),
    /// A WebSocket or a message socket.
    Attached(Attached),
    /// A request that this process knows of by its predecessor.
    Orphan(Orphan),
}

/// An open request.
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts of which each may be so or not, whatever the others are"
)]
pub(super) struct Exchange {
    /// The pool that it was given to.
    pub(super) pool: u16,
    pub(super) ticket: Ticket,
    pub(super) link: Rc<Link>,
    pub(super) scanner: Scanner,
    pub(super) head_request: bool,
    /// Something of a response has come.
    pub(super) started: bool,
    /// The response is whole; the rest of an upload is still to come.
    pub(super) answered: bool,
    pub(super) follows: Follows,
    /// What may be done with it when its worker is lost, once that acts on it.
    pub(super) retry: Retry,
    /// What has come behind the request and cannot go to its worker yet: frames before the 101, parts of a body.
    pub(super) parts: VecDeque<Bytes>,
    pub(super) parts_bytes: usize,
    /// It has gone on for so long that it is a stream.
    pub(super) is_stream: bool,
    pub(super) began: Instant,
    pub(super) told: Option<Box<Told>>,
    /// Where it stands for a successor of this process.
    pub(super) slot: Option<Slot>,
    /// What it was, until an answer begins.
    pub(super) message: Bytes,
}

/// What comes behind a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Follows {
    Nothing,
    /// The message that an upload is stored, with this name.
    Stored(Bytes),
    /// The parts of its body.
    Parts,
    /// Frames, if the handshake is accepted.
    Frames,
}

pub(super) struct Attached {
    /// The pool that it is attached to.
    pub(super) pool: u16,
    pub(super) attachment: Attachment,
    /// A WebSocket, and no message socket.
    pub(super) is_websocket: bool,
    /// Since when, and how many bytes of it, the pool holds because no worker takes them.
    pub(super) held_since: Option<Instant>,
    pub(super) held_bytes: usize,
}

/// A request as it came from the server.
pub(super) struct Arrived {
    /// The pool that it is for; none where no pool is.
    pub(super) pool: Option<u16>,
    /// What it sticks by.
    pub(super) key: Option<u64>,
    /// Everything behind `SENDER SP CONNID SP`.
    pub(super) message: Bytes,
    /// What may be done with it when its worker is lost, once its worker has all of it.
    pub(super) retry: Retry,
    pub(super) asked: Asked,
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    pub(super) follows: Follows,
    pub(super) came: Instant,
    pub(super) told: Option<Box<Told>>,
}

/// What the pool tells of a request or an attachment, from within: it is looked at when the pool is done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Signal {
    Failed(Refused),
    /// There may be room for parts.
    Resumed,
    /// What was held of an attachment has gone out.
    GoOn,
    Abandoned,
}

/// The signals of one server's pool.
#[derive(Default)]
pub(super) struct Signals {
    pub(super) list: RefCell<Vec<(ConnId, u64, Signal)>>,
    pub(super) told: Notify,
    /// What stands before ids in messages to workers, where it is not the pool's affair.
    pub(super) sender: RefCell<Option<Bytes>>,
    /// The server is not read because too much waits: whatever goes out makes room.
    pub(super) paused: Cell<bool>,
}

/// A connection as the pool knows it.
pub(super) struct Link {
    pub(super) id: ConnId,
    pub(super) serial: u64,
    pub(super) signals: Rc<Signals>,
    /// The peer that was last seen to have the request.
    pub(super) given: Cell<Option<PeerId>>,
    /// The peer that had it before: what that one still says to it is not for the client.
    pub(super) former: Cell<Option<PeerId>>,
}

impl Signals {
    pub(super) fn tell(&self, id: ConnId, serial: u64, signal: Signal) {
        self.list.borrow_mut().push((id, serial, signal));
        self.told.notify_one();
    }
}

impl Link {
    fn tell(&self, signal: Signal) {
        self.signals.tell(self.id, self.serial, signal);
    }

    fn goes_out(&self) {
        if self.signals.paused.get() {
            self.signals.told.notify_one();
        }
    }
}

impl Caller for Link {
    fn id(self: Rc<Self>) -> ConnId {
        self.goes_out();
        // Always the server's own, so that messages are what they would be without us.
        self.id
    }

    fn sender(&self) -> Option<Bytes> {
        self.signals.sender.borrow().clone()
    }

    fn retire_id(&self) {
        self.former.set(self.given.take());
    }

    fn has_mail(&self) -> bool {
        // What workers say is looked at as it comes.
        false
    }

    fn failed(&self, refused: Refused) {
        self.tell(Signal::Failed(refused));
    }

    fn resumed(&self) {
        self.tell(Signal::Resumed);
    }
}

impl Speaker for Link {
    fn id(self: Rc<Self>) -> ConnId {
        self.id
    }

    fn sender(&self) -> Option<Bytes> {
        self.signals.sender.borrow().clone()
    }

    fn moved(&self, _: &Rc<Pool>, _: PeerId) {
        self.goes_out();
    }

    fn go_on(&self) {
        self.tell(Signal::GoOn);
    }

    fn abandoned(&self) {
        self.tell(Signal::Abandoned);
    }
}

impl Exchange {
    /// Whether this reply socket is that of a worker that was given up with this request: its answer must not meet another's.
    pub(super) fn is_former(&self, pools: &Pools, from: At) -> bool {
        let Some(former) = self.link.former.get().filter(|_| from.pool == self.pool) else {
            return false;
        };
        let (pool, voice) = (pools.get(self.pool), from.peer);
        let has_it = self.ticket.peer();
        pool.speaks_for(voice, former) && !has_it.is_some_and(|peer| pool.speaks_for(voice, peer))
    }

    /// Whether what is answered is no HTTP: its end cannot be seen.
    pub(super) fn is_opaque(&self) -> bool {
        self.scanner.state() == ScanState::Opaque
    }

    /// Whether something must still come from the server before the connection's next request can go out.
    pub(super) fn awaits_rest(&self) -> bool {
        matches!(self.follows, Follows::Stored(_) | Follows::Parts)
    }
}

impl Conn {
    /// Where the connection is, if a worker has it.
    pub(super) fn at(&self) -> Option<At> {
        let (pool, peer) = match &self.stage {
            Stage::Exchange(exchange) => (exchange.pool, exchange.ticket.peer()),
            Stage::Attached(attached) => (attached.pool, attached.attachment.peer()),
            Stage::Orphan(orphan) => return orphan.held_by,
        };
        peer.map(|peer| At { pool, peer })
    }
}

impl Table {
    pub(super) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The entry of a connection, if it is still that one.
    pub(super) fn current(&mut self, id: ConnId, serial: u64) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(&id.0)?;
        (conn.serial == serial).then_some(conn)
    }

    /// Takes an entry out, with what it holds.
    pub(super) fn take(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.conns.remove(&id.0)?;
        let held: usize = conn.held.iter().map(|held| held.message.len()).sum();
        self.held_bytes -= held;
        self.held -= conn.held.len();
        if let Stage::Exchange(exchange) = &conn.stage {
            self.exchanges -= 1;
            self.held_bytes -= exchange.parts_bytes;
        }
        Some(conn)
    }

    pub(super) fn put(&mut self, id: ConnId, conn: Conn) {
        self.held += conn.held.len();
        self.held_bytes += conn
            .held
            .iter()
            .map(|held| held.message.len())
            .sum::<usize>();
        if let Stage::Exchange(exchange) = &conn.stage {
            self.exchanges += 1;
            self.held_bytes += exchange.parts_bytes;
        }
        self.conns.insert(id.0, conn);
    }
}
