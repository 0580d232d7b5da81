//! From the server to the workers: what a message is about, and who gets it.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::debug;

use super::answer::answer;
use super::device::Again;
use super::ledger::{Known, Slot};
use super::pools::At;
use super::reading::{asked, behind_address, protocol, version};
use super::recent::Knows;
use super::server::Server;
use super::table::{Arrived, Attached, Conn, Exchange, Follows, Link, Signal, Stage, Table};
use super::{End, Exchange as Told};
use crate::http1::{Asked, Scanner};
use crate::metrics::Name;
use crate::pool::{Address, Ask, Attachment, Failure, Refused, Retry, Room, Sent, Speaker};
use crate::wire::request::{Glance, Kind, Notice, Request};
use crate::wire::{ConnId, Protocol};

/// Requests that one connection may be ahead of its answers: well above what clients pipeline.
const AHEAD_MAX: usize = 256;

/// Bytes that one connection may have waiting here for its worker (frames, parts of a body, requests ahead): as much as a client's
/// mailbox in a front.
const HELD_BYTES_MAX: usize = 16 << 20;

/// Requests that are followed at once. Beyond that the oldest knowledge is worth less than the memory: one is let go for each.
const EXCHANGES_MAX: usize = 1 << 18;

/// Methods that may be asked of a second worker.
const SAFE: [&[u8]; 4] = [b"GET", b"HEAD", b"OPTIONS", b"TRACE"];

/// The host that a client has named.
fn host(request: &Request) -> &[u8] {
    request.headers.first("host").unwrap_or_default()
}

impl Server {
    /// A message from the server.
    pub(super) fn received(&self, message: &Bytes) {
        if self.received_ordinary(message) {
            return;
        }
        let request = match Request::decode(message.clone()) {
            Ok(request) => request,
            Err(error) => return self.tell_malformed(&error),
        };
        let Some(body) = behind_address(message) else {
            return;
        };
        let id = request.conn_id;
        let kind = request.kind();
        if kind != Kind::Drained {
            self.learn(&request.sender, protocol(&body));
        }
        let table = &mut *self.table.borrow_mut();
        match kind {
            // That it has pushed its last request is between the server and us.
            Kind::Drained => self.drained.set(true),
            Kind::Disconnect => self.client_gone(table, id, body),
            Kind::Credits(_) | Kind::Notice => self.tell(table, id, body),
            Kind::WebSocketFrame { .. } => self.frame(table, id, (&request, body), true),
            Kind::Message(_) => self.frame(table, id, (&request, body), false),
            Kind::StreamPart { done, .. } => self.part(table, id, body, done),
            Kind::UploadDone { file } => {
                let announced = match table.conns.get(&id.0).map(|conn| &conn.stage) {
                    Some(Stage::Exchange(exchange)) => {
                        matches!(&exchange.follows, Follows::Stored(name) if name == file)
                    }
                    _ => false,
                };
                if announced {
                    self.stored(table, id, body, self.retry(request.method()));
                } else if table.recent.get(id) != Some(Knows::Nobody) {
                    // Nobody has been told of it: whoever gets it shall judge.
                    self.request(
                        table,
                        id,
                        self.arrived(&request, (message, body), Follows::Nothing),
                    );
                }
            }
            Kind::UploadStart { file } => {
                let follows = Follows::Stored(Bytes::copy_from_slice(file));
                self.request(table, id, self.arrived(&request, (message, body), follows));
            }
            Kind::StreamStart => {
                let follows = if request.headers.contains("UPLOAD_STREAM_DONE") {
                    Follows::Nothing
                } else {
                    Follows::Parts
                };
                self.request(table, id, self.arrived(&request, (message, body), follows));
            }
            Kind::WebSocketHandshake => {
                self.request(
                    table,
                    id,
                    self.arrived(&request, (message, body), Follows::Frames),
                );
            }
            Kind::Http | Kind::UploadForged => {
                self.request(
                    table,
                    id,
                    self.arrived(&request, (message, body), Follows::Nothing),
                );
            }
        }
    }

    /// Most messages are ordinary requests, of which little needs to be known; false for others, and where more is asked for.
    fn received_ordinary(&self, message: &Bytes) -> bool {
        let asks_more = self.pools.ask_hosts() || self.shared.rules.borrow().is_sticky();
        if self.shared.settings.observer.is_some() || asks_more {
            return false;
        }
        let Some(glance) = Glance::of(message).filter(|seen| *self.sender.borrow() == seen.sender)
        else {
            return false;
        };
        let arrived = Arrived {
            pool: self.pools.of(b"", glance.path),
            key: None,
            message: message.slice(glance.behind_address()..),
            retry: self.retry(Some(glance.method)),
            asked: asked(Some(glance.method)),
            version: version(Some(glance.version)),
            keep_alive: !glance.should_close(),
            follows: Follows::Nothing,
            came: Instant::now(),
            told: None,
        };
        self.request(&mut self.table.borrow_mut(), glance.conn_id, arrived);
        true
    }

    /// The sender and the protocol of the server's messages, for what is sent to workers.
    fn learn(&self, sender: &Bytes, protocol: Protocol) {
        let is_new_name = *self.sender.borrow() != *sender;
        let is_new_protocol = self.protocol.replace(protocol) != protocol;
        if !is_new_name && !is_new_protocol {
            return;
        }
        let sender = Bytes::copy_from_slice(sender);
        if is_new_name {
            self.sender.replace(sender.clone());
        }
        if self.shared.rules.borrow().is_shared {
            if is_new_name {
                self.call_itself(&sender, None);
            } else {
                self.note_names();
            }
            return;
        }
        let mut settings = self.pool().settings().clone();
        settings.sender = sender;
        settings.protocol = protocol;
        self.pool().reconfigure(settings);
    }

    /// Has a name towards workers from now on.
    pub(super) fn call_itself(&self, ident: &Bytes, wished: Option<&Bytes>) {
        let name = self.pools.name(self.number, ident, wished);
        self.signals.sender.replace(Some(name));
        self.note_names();
    }

    /// Notes who the server is, for a successor of this process.
    fn note_names(&self) {
        if let (Some(ledger), Some(name)) = (&self.shared.ledger, &*self.signals.sender.borrow()) {
            ledger.set_server(
                self.number,
                &Known {
                    spec: self.spec(),
                    ident: self.sender.borrow().clone(),
                    name: name.clone(),
                    protocol: self.protocol.get(),
                },
            );
        }
    }

    /// Whom a message to a worker is about.
    pub(super) fn about(&self, id: ConnId) -> Address {
        Address {
            sender: self.signals.sender.borrow().clone(),
            id,
        }
    }

    /// What a worker has said, as if to the server alone: with the server's own ident before it.
    pub(super) fn in_its_own_name(&self, message: Bytes) -> Bytes {
        let name = self.signals.sender.borrow();
        let ident = self.sender.borrow();
        let Some(name) = name.as_ref().filter(|name| **name != *ident) else {
            return message;
        };
        match message.strip_prefix(&name[..]) {
            Some(rest) if rest.first() == Some(&b' ') => {
                let mut own = Vec::with_capacity(ident.len() + rest.len());
                own.extend_from_slice(&ident);
                own.extend_from_slice(rest);
                own.into()
            }
            _ => message,
        }
    }

    /// Tells a worker something of our own.
    pub(super) fn notify(&self, at: At, id: ConnId, notice: Notice) {
        let mut body = Vec::with_capacity(64);
        notice.encode(self.protocol.get(), &mut body);
        self.forward(Some(at), id, body.into());
    }

    /// The same for the worker whose reply socket this is.
    pub(super) fn notify_voice(&self, at: At, id: ConnId, notice: Notice) {
        let mut body = Vec::with_capacity(64);
        notice.encode(self.protocol.get(), &mut body);
        let pool = self.pools.get(at.pool);
        pool.forward_voice(at.peer, self.about(id), body.into());
    }

    /// Passes on what the server says of a connection.
    pub(super) fn forward(&self, to: Option<At>, id: ConnId, body: Bytes) {
        let pool = self.pools.get(to.map_or(0, |at| at.pool));
        pool.forward(to.map(|at| at.peer), self.about(id), body);
    }

    /// Whether a second worker may be asked.
    fn retry(&self, method: Option<&[u8]>) -> Retry {
        let may = match self.shared.rules.borrow().again {
            Again::No => false,
            Again::Always => true,
            Again::Safe => method.is_some_and(|method| SAFE.contains(&method)),
        };
        if may { Retry::Safe } else { Retry::Never }
    }

    fn arrived(
        &self,
        request: &Request,
        (whole, message): (&Bytes, Bytes),
        follows: Follows,
    ) -> Arrived {
        Arrived {
            pool: self.pools.of(host(request), &request.path),
            key: self.shared.rules.borrow().key(request, whole),
            message,
            retry: self.retry(request.method()),
            asked: asked(request.method()),
            version: version(request.version()),
            keep_alive: !request.should_close(),
            follows,
            came: Instant::now(),
            told: self.shared.settings.observer.as_ref().map(|_| {
                let text = |name: &str| {
                    let value = request.headers.first(name).unwrap_or_default();
                    String::from_utf8_lossy(value).into_owned()
                };
                Box::new(Told {
                    conn_id: request.conn_id,
                    sender: String::from_utf8_lossy(&request.sender).into_owned(),
                    remote: text("REMOTE_ADDR"),
                    method: text("METHOD"),
                    uri: text("URI"),
                    version: text("VERSION"),
                    came: SystemTime::now(),
                    took: std::time::Duration::ZERO,
                    status: None,
                    bytes: 0,
                    pid: None,
                    end: End::Answered,
                })
            }),
        }
    }

    /// A request: to a worker, or behind the one of its connection that is open.
    fn request(&self, table: &mut Table, id: ConnId, arrived: Arrived) {
        let waits = match table.conns.get(&id.0).map(|conn| &conn.stage) {
            // The end of what is no HTTP cannot be seen, nor can that of what comes behind it.
            Some(Stage::Exchange(exchange)) => !exchange.is_opaque(),
            Some(Stage::Orphan(orphan)) => !orphan.is_opaque(),
            // It was another connection that was attached under this id.
            Some(Stage::Attached(_)) | None => false,
        };
        if !waits {
            let held = self.end(table, id, End::Answered);
            return self.submit(table, id, arrived, held);
        }
        let size = arrived.message.len();
        let Some(conn) = table.conns.get_mut(&id.0) else {
            return;
        };
        let bytes: usize = conn.held.iter().map(|held| held.message.len()).sum();
        if conn.held.len() >= AHEAD_MAX || bytes.saturating_add(size) > HELD_BYTES_MAX {
            debug!(%id, "a client is too far ahead of its answers: its connection is closed");
            return self.hang_up(table, id, Refused::now(Failure::QueueFull));
        }
        conn.held.push_back(arrived);
        table.held_bytes += size;
        table.held += 1;
    }

    /// Gives a request to the pool; `held` are those behind it.
    pub(super) fn submit(
        &self,
        table: &mut Table,
        id: ConnId,
        arrived: Arrived,
        held: VecDeque<Arrived>,
    ) {
        if table.exchanges >= EXCHANGES_MAX {
            // One that a worker has, and behind which nothing waits: nothing is lost but the knowledge.
            let is_with_worker = |conn: &Conn| {
                conn.held.is_empty()
                    && matches!(&conn.stage, Stage::Exchange(exchange) if exchange.ticket.peer().is_some())
            };
            let other = table.conns.iter().find(|(_, conn)| is_with_worker(conn));
            let other = other.map(|(id, _)| *id);
            if let Some(Stage::Exchange(other)) = other
                .and_then(|id| table.take(ConnId(id)))
                .map(|conn| conn.stage)
            {
                self.release(other.slot);
            }
        }
        let serial = table.next_serial();
        let link = Rc::new(Link {
            id,
            serial,
            signals: Rc::clone(&self.signals),
            given: std::cell::Cell::new(None),
            former: std::cell::Cell::new(None),
        });
        let head_request = arrived.asked == Asked::Head;
        let Some(pool) = arrived.pool else {
            let none = Refused::now(Failure::NoHandler);
            return self.refuse(table, id, none, head_request);
        };
        // Before the rest of it has come nobody has acted on it.
        let retry = match arrived.follows {
            Follows::Nothing => arrived.retry,
            Follows::Stored(_) | Follows::Parts | Follows::Frames => Retry::Safe,
        };
        let ask = Ask {
            retry,
            key: arrived.key,
            deadline: self
                .shared
                .rules
                .borrow()
                .deadline
                .map(|time| arrived.came + time),
        };
        let pools = Rc::clone(&self.pools);
        let line = if self.shared.rules.borrow().is_shared {
            arrived.message.clone()
        } else {
            Bytes::new()
        };
        // First of all: whoever has it may answer when this process is no more.
        let ledger = self.shared.ledger.as_ref();
        let slot = ledger.and_then(|ledger| ledger.enter(self.number, id, head_request));
        match pools
            .get(pool)
            .submit(arrived.message, ask, Rc::clone(&link) as Rc<_>)
        {
            Ok(ticket) => {
                link.given.set(ticket.peer());
                let exchange = Exchange {
                    pool,
                    ticket,
                    link,
                    scanner: Scanner::new(arrived.asked, arrived.version, arrived.keep_alive),
                    head_request,
                    started: false,
                    answered: false,
                    follows: arrived.follows,
                    retry: arrived.retry,
                    parts: VecDeque::new(),
                    parts_bytes: 0,
                    is_stream: false,
                    began: arrived.came,
                    told: arrived.told,
                    slot,
                    message: line,
                };
                let stage = Stage::Exchange(exchange);
                table.put(
                    id,
                    Conn {
                        serial,
                        stage,
                        held,
                    },
                );
            }
            Err(refused) => {
                self.release(slot);
                self.refuse(table, id, refused, head_request);
            }
        }
    }

    /// A request that no pool takes.
    fn refuse(&self, table: &mut Table, id: ConnId, refused: Refused, head_request: bool) {
        debug!(%id, "a request is refused: {refused}");
        let form = self.shared.rules.borrow().form;
        self.close_with(id, answer(form, refused, head_request).1.as_bytes());
        table.recent.note(id, Knows::Nobody);
    }

    /// A request is over for a successor of this process too.
    pub(super) fn release(&self, slot: Option<Slot>) {
        if let (Some(ledger), Some(slot)) = (&self.shared.ledger, slot) {
            ledger.leave(slot);
        }
    }

    /// A frame of a WebSocket, or a message of a message socket.
    fn frame(
        &self,
        table: &mut Table,
        id: ConnId,
        (request, message): (&Request, Bytes),
        is_websocket: bool,
    ) {
        let size = message.len();
        match table.conns.get_mut(&id.0).map(|conn| &mut conn.stage) {
            Some(Stage::Attached(attached)) => {
                if attached.attachment.send(message) == Sent::Held {
                    self.hold(table, id, size);
                }
            }
            // Frames wait for the 101.
            Some(Stage::Exchange(exchange)) if exchange.follows == Follows::Frames => {
                exchange.parts.push_back(message);
                exchange.parts_bytes += size;
                table.held_bytes += size;
                self.check_parts(table, id);
            }
            Some(Stage::Exchange(_) | Stage::Orphan(_)) => Name::MessagesDropped.increment(),
            None if table.recent.get(id) == Some(Knows::Nobody) => {
                Name::MessagesDropped.increment();
            }
            // A message socket's first, or of a WebSocket that was accepted before this feed began.
            None => {
                let serial = table.next_serial();
                let link = Rc::new(Link {
                    id,
                    serial,
                    signals: Rc::clone(&self.signals),
                    given: std::cell::Cell::new(None),
                    former: std::cell::Cell::new(None),
                });
                let Some(pool) = self.pools.of(host(request), &request.path) else {
                    Name::MessagesDropped.increment();
                    return self.close_with(id, b"");
                };
                let attachment = self.pools.get(pool).attach(link as Rc<dyn Speaker>);
                let messages = VecDeque::from([message]);
                self.attached(
                    table,
                    id,
                    serial,
                    (pool, attachment),
                    messages,
                    is_websocket,
                );
            }
        }
    }

    /// A connection is attached, and these are its first messages.
    pub(super) fn attached(
        &self,
        table: &mut Table,
        id: ConnId,
        serial: u64,
        (pool, attachment): (u16, Attachment),
        messages: VecDeque<Bytes>,
        is_websocket: bool,
    ) {
        let mut held = 0;
        for message in messages {
            let size = message.len();
            if attachment.send(message) == Sent::Held {
                held += size;
            }
        }
        table.put(
            id,
            Conn {
                serial,
                stage: Stage::Attached(Attached {
                    pool,
                    attachment,
                    is_websocket,
                    held_since: None,
                    held_bytes: 0,
                }),
                held: VecDeque::new(),
            },
        );
        if held > 0 {
            self.hold(table, id, held);
        }
    }

    /// The pool holds so much more of an attachment.
    fn hold(&self, table: &mut Table, id: ConnId, size: usize) {
        let Some(Conn {
            serial,
            stage: Stage::Attached(attached),
            ..
        }) = table.conns.get_mut(&id.0)
        else {
            return;
        };
        attached.held_bytes += size;
        if attached.held_since.is_none() {
            attached.held_since = Some(Instant::now());
            self.age(id, *serial);
        }
        if attached.held_bytes > HELD_BYTES_MAX {
            self.hang_up(table, id, Refused::now(Failure::QueueFull));
        }
    }

    /// An upload is stored.
    fn stored(&self, table: &mut Table, id: ConnId, message: Bytes, retry: Retry) {
        let Some(Stage::Exchange(exchange)) =
            table.conns.get_mut(&id.0).map(|conn| &mut conn.stage)
        else {
            return;
        };
        exchange.follows = Follows::Nothing;
        if exchange.answered {
            // It is the handler's all the same.
            let (pool, peer) = (exchange.pool, exchange.ticket.peer());
            self.pools.get(pool).forward(peer, self.about(id), message);
            return self.response_ended(table, id);
        }
        exchange.link.given.set(exchange.ticket.peer());
        exchange.ticket.complete(message, retry);
    }

    /// A part of a body.
    fn part(&self, table: &mut Table, id: ConnId, message: Bytes, done: bool) {
        let size = message.len();
        match table.conns.get_mut(&id.0).map(|conn| &mut conn.stage) {
            Some(Stage::Exchange(exchange)) if exchange.follows == Follows::Parts => {
                if done {
                    exchange.follows = Follows::Nothing;
                }
                if exchange.answered {
                    let (pool, peer) = (exchange.pool, exchange.ticket.peer());
                    self.pools.get(pool).forward(peer, self.about(id), message);
                    if done {
                        self.response_ended(table, id);
                    }
                    return;
                }
                exchange.parts.push_back(message);
                exchange.parts_bytes += size;
                table.held_bytes += size;
                self.pass_parts(table, id);
                self.check_parts(table, id);
            }
            // Of a request that is over.
            _ => match table.recent.get(id) {
                Some(Knows::Nobody) => {}
                _ => self.tell(table, id, message),
            },
        }
    }

    /// Gives the worker of an upload the parts that it has room for.
    fn pass_parts(&self, table: &mut Table, id: ConnId) {
        let Some(Conn {
            serial,
            stage: Stage::Exchange(exchange),
            ..
        }) = table.conns.get_mut(&id.0)
        else {
            return;
        };
        while !exchange.parts.is_empty() {
            match exchange.ticket.room() {
                Room::Now => {}
                Room::Soon => {
                    self.signals.tell(id, *serial, Signal::Resumed);
                    return;
                }
                Room::Later => return,
            }
            if let Some(part) = exchange.parts.pop_front() {
                exchange.parts_bytes -= part.len();
                table.held_bytes -= part.len();
                exchange.ticket.follow_up(part);
            }
        }
    }

    /// A connection of which too much waits is closed: servers bound what they send ahead, so that this one is not held to it.
    fn check_parts(&self, table: &mut Table, id: ConnId) {
        if let Some(Stage::Exchange(exchange)) = table.conns.get(&id.0).map(|conn| &conn.stage)
            && exchange.parts_bytes > HELD_BYTES_MAX
        {
            debug!(%id, "too much of a connection waits for its worker: it is closed");
            self.hang_up(table, id, Refused::now(Failure::QueueFull));
        }
    }

    /// News of a connection, for whoever knows it.
    fn tell(&self, table: &mut Table, id: ConnId, message: Bytes) {
        let at = table.conns.get(&id.0).and_then(Conn::at);
        match (at, table.recent.get(id)) {
            (Some(at), _) => self.forward(Some(at), id, message),
            (None, Some(Knows::Nobody)) => {}
            (None, knows) => self.tell_by(knows, id, message),
        }
    }

    pub(super) fn tell_by(&self, knows: Option<Knows>, id: ConnId, message: Bytes) {
        match knows {
            Some(Knows::Voice(at)) => {
                let pool = self.pools.get(at.pool);
                pool.forward_voice(at.peer, self.about(id), message);
            }
            Some(Knows::Peer(at)) => self.forward(Some(at), id, message),
            Some(Knows::Nobody) => {}
            None => self.forward(None, id, message),
        }
    }

    /// Looks at what the pool has told.
    pub(super) fn see_signals(&self) {
        let signals = std::mem::take(&mut *self.signals.list.borrow_mut());
        if signals.is_empty() {
            return;
        }
        let table = &mut *self.table.borrow_mut();
        for (id, serial, signal) in signals {
            let Some(conn) = table.current(id, serial) else {
                continue;
            };
            match signal {
                Signal::Failed(refused) => self.hang_up(table, id, refused),
                Signal::Abandoned => self.hang_up(table, id, Refused::now(Failure::WaitOver)),
                Signal::Resumed => self.pass_parts(table, id),
                Signal::GoOn => {
                    if let Stage::Attached(attached) = &mut conn.stage {
                        attached.held_since = None;
                        attached.held_bytes = 0;
                    }
                }
            }
        }
    }
}
