//! What the front knows of one client connection outside its task: its mailbox, its id, its clocks.
//!
//! The connection's task owns the socket and does all reading and writing. Everybody else on the shard leaves word
//! here and wakes the task: replies go into the mailbox, the sweep says when a deadline has passed, the pool says when
//! a request failed. Nothing here waits.

mod flow;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::Waker;

use bytes::Bytes;

use super::Shard;
use crate::bus::server::PeerId;
use crate::metrics::Name;
use crate::pool::{self, Failure, Pool, Refused};
use crate::wire::ConnId;
use crate::wire::request::Notice;

use flow::Flow;

/// A payload below this size is copied when its client does not keep up, so that a few slow bytes do not hold a whole
/// receive buffer of 64 KiB in memory.
const COPY_BELOW: usize = 16 * 1024;

/// Flow control: bytes that a handler may have outstanding on one connection, as in Mongrel2; and the same as text.
pub(super) const DOWNLOAD_CREDITS: usize = 102_400;
pub(super) const DOWNLOAD_CREDITS_TEXT: &str = "102400";

/// One thing for a connection's task to do.
#[derive(Debug)]
pub(super) enum Mail {
    /// Bytes for the client, from a handler's reply socket.
    Payload {
        /// The bytes, as they are to be written.
        bytes: Bytes,
        /// The reply socket they came from.
        voice: PeerId,
    },
    /// The handler closes the connection, after what it sent before.
    Close {
        /// The reply socket that asks for it.
        voice: PeerId,
    },
    /// A file for the client.
    File {
        /// As the handler named it.
        name: Bytes,
        /// The reply socket that asked for it.
        voice: PeerId,
    },
    /// No handler will answer the open request.
    Failed(Refused),
}

/// Why a connection is to end whatever its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// A handler cancelled it.
    ByHandler,
    /// The client does not take what is sent to it.
    Slow,
    /// It violated more of the ping and rate limits than allowed.
    Idle,
    /// A handler asked for something nobody here can do.
    Misdirected,
    /// The front stops and its time is up.
    Aborted,
    /// An operator ended it.
    ByOperator,
}

/// What a connection has turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    /// Nothing was asked on it yet.
    #[default]
    Unknown,
    /// HTTP.
    Http,
    /// A message socket, by its last message: replies are encoded.
    Message,
    /// A WebSocket, or one that asked for the policy file.
    Socket,
}

/// What is known of a client that speaks TLS.
#[derive(Debug)]
pub(super) struct Secure {
    /// The SHA-1 of the certificate that it has shown, in upper-case hexadecimal.
    pub(super) fingerprint: Option<[u8; 40]>,
}

/// A client connection as the rest of the shard sees it.
pub(super) struct Client {
    shard: Rc<Shard>,
    /// Address of the other end, or of the client that a balancer has named before its first byte.
    pub(super) addr: SocketAddr,
    /// The descriptor of its socket, for those who watch.
    pub(super) fd: Cell<RawFd>,
    /// What it has turned out to be.
    pub(super) kind: Cell<Kind>,
    /// What TLS has told of it; `None`: it does not speak TLS.
    pub(super) secure: Option<Box<Secure>>,
    /// Place in the registry's list of all clients.
    pub(super) place: Cell<usize>,
    id: Cell<Option<ConnId>>,
    mailbox: RefCell<Mailbox>,
    waker: RefCell<Option<Waker>>,
    cut: Cell<Option<Cut>>,
    /// The socket has not taken all that was written: what comes now will lie for a while.
    pub(super) behind: Cell<bool>,
    /// When the sweep has to wake the task, in milliseconds of the shard's clock; `NEVER` for never.
    pub(super) deadline: Cell<u64>,
    /// The deadline has passed.
    pub(super) expired: Cell<bool>,
    /// The open response has gone on for so long that it counts as a stream.
    pub(super) streaming: Cell<bool>,
    /// When the open response began, in milliseconds of the shard's clock; `NEVER` when none is open or it is known to be
    /// a stream.
    pub(super) response_began: Cell<u64>,
    /// The handler last used, which is told when the connection ends.
    last_handler: RefCell<Option<(Rc<Pool>, Option<PeerId>)>>,
    /// Whether a message of it waits for a handler.
    pub(super) hold: Cell<Hold>,
    /// Streamed upload: so many more bytes of the body the handler takes; `None` when none is open.
    pub(super) upload_credits: Cell<Option<i64>>,
    /// Stored upload: its handler has said, by credits, that it acts on the announcement.
    pub(super) upload_acted: Cell<bool>,
    /// Bytes of payloads that were taken out of the mailbox and not written yet, as far as anybody can tell: some are dropped.
    pub(super) unwritten: Cell<usize>,
    /// A handler has asked to be told what of the open response is written. Boxed, as few do.
    flow: RefCell<Option<Box<Flow>>>,
    /// What the ping and rate limits look at.
    pub(super) activity: Cell<Activity>,
}

/// Whether a message waits for a handler, so that the client is not read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Hold {
    #[default]
    Free,
    Held,
    /// It has gone out, which the connection's task has yet to see.
    Over,
}

/// No deadline.
pub(super) const NEVER: u64 = u64::MAX;

/// Mongrel2's three measures of a connection's life (reference: timeouts). Times are seconds of the shard's clock.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Activity {
    pub(super) last_ping: u32,
    pub(super) last_read: Option<u32>,
    pub(super) last_write: Option<u32>,
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
}

#[derive(Default)]
struct Mailbox {
    /// The first waits outside the queue: nearly always there is one at most, and a connection that has none waiting then
    /// holds no memory for more.
    first: Option<Mail>,
    rest: VecDeque<Mail>,
    bytes: usize,
    /// A handler has closed the connection: what comes behind that is for nobody.
    closing: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("addr", &self.addr)
            .field("id", &self.id.get())
            .finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(shard: Rc<Shard>, addr: SocketAddr, secure: Option<Box<Secure>>) -> Rc<Self> {
        let activity = Activity {
            last_ping: shard.clock.seconds(),
            ..Activity::default()
        };
        Rc::new(Self {
            shard,
            addr,
            fd: Cell::new(-1),
            kind: Cell::default(),
            secure,
            place: Cell::new(usize::MAX),
            id: Cell::new(None),
            mailbox: RefCell::default(),
            waker: RefCell::new(None),
            cut: Cell::new(None),
            behind: Cell::new(false),
            deadline: Cell::new(NEVER),
            expired: Cell::new(false),
            streaming: Cell::new(false),
            response_began: Cell::new(NEVER),
            last_handler: RefCell::new(None),
            hold: Cell::default(),
            upload_credits: Cell::new(None),
            upload_acted: Cell::new(false),
            unwritten: Cell::new(0),
            flow: RefCell::default(),
            activity: Cell::new(activity),
        })
    }

    /// Makes the connection's task run.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn set_waker(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if slot.as_ref().is_none_or(|old| !old.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// Puts a payload into the mailbox; a client whose mailbox is full is cut. One payload always fits.
    pub(super) fn deliver(&self, bytes: &Bytes, voice: PeerId) {
        let limits = self.shard.limits();
        let limit = self.mailbox_bytes_max();
        let mailbox = &mut *self.mailbox.borrow_mut();
        // One that is cut has only not been looked at yet: that it does not keep up was said.
        if mailbox.closing || self.cut.get().is_some() {
            return;
        }
        if mailbox.bytes > 0 && mailbox.bytes.saturating_add(bytes.len()) > limit
            || mailbox.rest.len() >= limits.mailbox_mails
        {
            Name::SlowClients.increment();
            tracing::warn!(client = %self.addr, waiting = mailbox.bytes, limit, "client does not keep up: dropped");
            self.cut(Cut::Slow);
            return;
        }
        mailbox.bytes += bytes.len();
        self.count_sent(bytes.len());
        let bytes = if self.behind.get() && bytes.len() < COPY_BELOW {
            Bytes::copy_from_slice(bytes)
        } else {
            bytes.clone()
        };
        mailbox.push(Mail::Payload { bytes, voice });
        self.wake();
    }

    /// Puts the wish for a file into the mailbox, among the payloads.
    pub(super) fn send_file(&self, name: Bytes, voice: PeerId) {
        if self.mailbox.borrow().rest.len() >= self.shard.limits().mailbox_mails {
            Name::SlowClients.increment();
            self.cut(Cut::Slow);
            return;
        }
        self.tell(Mail::File { name, voice });
    }

    /// Streamed upload: the handler takes so many bytes more. Stored upload: it reads what is there.
    pub(super) fn grant(&self, credits: i64) {
        let granted = self.upload_credits.get();
        self.upload_credits
            .set(granted.map(|granted| granted.saturating_add(credits)));
        self.upload_acted.set(true);
        self.wake();
    }

    /// Puts anything but a payload into the mailbox.
    pub(super) fn tell(&self, mail: Mail) {
        let mailbox = &mut *self.mailbox.borrow_mut();
        if mailbox.closing {
            return;
        }
        mailbox.closing = matches!(mail, Mail::Close { .. });
        mailbox.push(mail);
        self.wake();
    }

    /// Whether its last message came from a message socket.
    pub(super) fn speaks_messages(&self) -> bool {
        self.kind.get() == Kind::Message
    }

    /// Whether something lies in the mailbox.
    pub(super) fn has_mail(&self) -> bool {
        self.mailbox.borrow().first.is_some()
    }

    /// Whether so much waits for a client that more of what it sends, and is answered, would end it.
    pub(super) fn is_half_full(&self) -> bool {
        self.mailbox.borrow().bytes > self.mailbox_bytes_max() / 2
    }

    fn mailbox_bytes_max(&self) -> usize {
        let limits = self.shard.limits();
        if limits.flow_control {
            DOWNLOAD_CREDITS
        } else {
            limits.mailbox_bytes
        }
    }

    /// Takes the oldest mail.
    pub(super) fn next_mail(&self) -> Option<Mail> {
        let mailbox = &mut *self.mailbox.borrow_mut();
        let mail = mailbox.first.take()?;
        mailbox.first = mailbox.rest.pop_front();
        if mailbox.rest.is_empty() && mailbox.rest.capacity() > 0 {
            mailbox.rest = VecDeque::new();
        }
        if let Mail::Payload { bytes, .. } = &mail {
            mailbox.bytes -= bytes.len();
        }
        Some(mail)
    }

    /// Ends the connection, whatever it is doing.
    pub(super) fn cut(&self, why: Cut) {
        if self.cut.get().is_none() {
            self.cut.set(Some(why));
        }
        self.wake();
    }

    /// Why the connection is to end, if it is.
    pub(super) fn cut_by(&self) -> Option<Cut> {
        self.cut.get()
    }

    /// Sets the deadline to so many milliseconds from now; `NEVER` for none.
    pub(super) fn set_deadline(&self, milliseconds: u64) {
        self.deadline
            .set(self.shard.clock.milliseconds().saturating_add(milliseconds));
    }

    /// Sets it unless something is due before.
    pub(super) fn bring_deadline(&self, milliseconds: u64) {
        let due = self.shard.clock.milliseconds().saturating_add(milliseconds);
        self.deadline.set(self.deadline.get().min(due));
    }

    /// The id under which handlers know the connection, if any does.
    pub(super) fn id(&self) -> Option<ConnId> {
        self.id.get()
    }

    /// Takes the id away: whatever comes under it reaches nobody.
    pub(super) fn drop_id(&self) {
        if let Some(id) = self.id.take() {
            self.shard.registry.remove(id);
        }
    }

    /// Remembers who was given a request.
    pub(super) fn remember_handler(&self, pool: &Rc<Pool>, peer: Option<PeerId>) {
        *self.last_handler.borrow_mut() = Some((Rc::clone(pool), peer));
    }

    /// Whether a handler knows the connection.
    pub(super) fn has_handler(&self) -> bool {
        self.last_handler.borrow().is_some()
    }

    /// Whether the handler last used is the one behind this reply socket, as far as anybody can tell.
    pub(super) fn is_handled_by(&self, voice: PeerId) -> bool {
        match &*self.last_handler.borrow() {
            Some((pool, Some(peer))) => pool.speaks_for(voice, *peer),
            Some((_, None)) | None => true,
        }
    }

    /// Ends the connection's life as handlers see it: the id is gone, and the handler last used is told if it is to be.
    pub(super) fn leave(&self, notice: Farewell) {
        let handler = self.last_handler.take();
        if let Some(id) = self.id()
            && let Some((pool, peer)) = handler
            && notice == Farewell::Told
        {
            pool.notify(peer, id, Notice::Disconnect);
        }
        self.drop_id();
    }

    pub(super) fn note_read(&self, bytes: usize) {
        let mut activity = self.activity.get();
        activity.last_read = Some(self.shard.clock.seconds());
        activity.bytes_read += bytes as u64;
        self.activity.set(activity);
    }

    pub(super) fn note_written(&self, bytes: usize) {
        let mut activity = self.activity.get();
        activity.last_write = Some(self.shard.clock.seconds());
        activity.bytes_written += bytes as u64;
        self.activity.set(activity);
        self.unwritten
            .set(self.unwritten.get().saturating_sub(bytes));
    }

    /// Resets the ping clock: a request came, or a handler asked for it.
    pub(super) fn note_ping(&self) {
        let mut activity = self.activity.get();
        activity.last_ping = self.shard.clock.seconds();
        self.activity.set(activity);
    }
}

/// Whether the handler is told that a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// It is.
    Told,
    /// It ended the connection itself, and Mongrel2 does not tell it so.
    Silent,
}

impl Mailbox {
    fn push(&mut self, mail: Mail) {
        if self.first.is_none() {
            self.first = Some(mail);
        } else {
            self.rest.push_back(mail);
        }
    }
}

impl pool::Speaker for Client {
    fn id(self: Rc<Self>) -> ConnId {
        pool::Caller::id(self)
    }

    fn moved(&self, pool: &Rc<Pool>, peer: PeerId) {
        self.remember_handler(pool, Some(peer));
    }

    fn go_on(&self) {
        if self.hold.get() == Hold::Held {
            self.hold.set(Hold::Over);
            self.wake();
        }
    }

    fn abandoned(&self) {
        // The next message of a message socket finds another handler, or none.
        if self.kind.get() == Kind::Socket {
            self.tell(Mail::Failed(Refused::now(Failure::HandlerLost)));
        }
    }
}

impl pool::Caller for Client {
    fn id(self: Rc<Self>) -> ConnId {
        if let Some(id) = self.id.get() {
            return id;
        }
        let id = self.shard.registry.assign(&self);
        self.id.set(Some(id));
        id
    }

    fn retire_id(&self) {
        // Credits are for the handler that gave them.
        self.upload_credits
            .set(self.upload_credits.get().and(Some(0)));
        self.upload_acted.set(false);
        self.end_flow();
        self.drop_id();
    }

    fn has_mail(&self) -> bool {
        Self::has_mail(self)
    }

    fn failed(&self, refused: Refused) {
        self.tell(Mail::Failed(refused));
    }

    fn resumed(&self) {
        self.wake();
    }
}
