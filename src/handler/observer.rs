//! Who watches a handler: every request that begins and ends, with its status, size and time. What is told is read off the
//! messages that pass; nothing is kept for handlers that nobody watches, and what is done with the news is the observer's business.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::publisher::Key;
use crate::http1::{Asked, ScanState, Scanner, Version};
use crate::wire::ConnId;
use crate::wire::reply::{self, Extended};
use crate::wire::request::{Kind, Request};

/// Requests that are followed at once, for each server. Mongrel2 does not tell of every client that leaves, so some would be kept
/// for ever: above this the oldest is given up. At some 500 bytes each this is 32 MB at most.
const OPEN_MAX: usize = 65_536;

/// Is told of every request of a [`super::Connection`]: see [`super::Options::observer`].
///
/// The methods are called where messages are received and sent, from any thread, and must not block.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A request has come: an HTTP request, a WebSocket handshake, or the first message of an upload.
    fn begun(&self, request: &Request) {
        let _ = request;
    }

    /// It is over: its response was handed over to be sent, or there will be none. Exactly once for each that has begun.
    fn ended(&self, exchange: &Exchange);

    /// Whether it looks at the texts of an [`Exchange`] and at when it started. One that only counts saves the copies and the look at
    /// the clock: texts are empty then, and all started in 1970. Default: it does.
    fn wants_texts(&self) -> bool {
        true
    }
}

/// A request and what became of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Exchange {
    /// The server's ident for the handler.
    pub sender: Bytes,
    /// The client's connection.
    pub conn_id: ConnId,
    /// The method: `GET`, …; of a WebSocket handshake `GET`, whatever the server calls it.
    pub method: Bytes,
    /// Path and query as the client sent them.
    pub uri: Bytes,
    /// `HTTP/1.0` or `HTTP/1.1`.
    pub version: Bytes,
    /// The client's address; empty where the server told none.
    pub remote_addr: Bytes,
    /// The header `referer`, or nothing.
    pub referer: Bytes,
    /// The header `user-agent`, or nothing.
    pub user_agent: Bytes,
    /// When the request was received.
    pub started: SystemTime,
    /// From then until the last of the response was handed over, or it was clear that there will be none.
    pub duration: Duration,
    /// The status of the response; `None` where none has begun, or what was sent is no HTTP.
    pub status: Option<u16>,
    /// Bytes of the response's body, without chunk framing; with a file that the server sends (`sendfile`) as the head announced it.
    pub bytes: u64,
    /// How it ended.
    pub end: End,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a whole response.
    Answered,
    /// The client, or its server, went away before that.
    ClientGone,
    /// The handler closed or cancelled the connection before that.
    GivenUp,
}

impl Exchange {
    /// The line of an access log, in the combined format of Apache and nginx, without a line end. Times are UTC; control characters,
    /// quotes and backslashes of what clients have sent are escaped; 499 stands for the status of a client that left before a response
    /// began, 500 where the handler gave up.
    pub fn combined(&self) -> impl fmt::Display {
        Combined(self)
    }
}

struct Combined<'a>(&'a Exchange);

impl fmt::Display for Combined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exchange {
            method,
            uri,
            version,
            remote_addr,
            referer,
            user_agent,
            started,
            bytes,
            ..
        } = self.0;
        let status = self.0.status.unwrap_or(match self.0.end {
            End::Answered => 200,
            End::ClientGone => 499,
            End::GivenUp => 500,
        });
        write!(
            f,
            "{} - - [{}] \"{} {} {}\" {status} {bytes} \"{}\" \"{}\"",
            Or(remote_addr),
            Time(*started),
            Quoted(method),
            Quoted(uri),
            Quoted(version),
            Or(referer),
            Or(user_agent),
        )
    }
}

/// A text, or `-` where there is none.
struct Or<'a>(&'a [u8]);

impl fmt::Display for Or<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b"" => f.write_str("-"),
            text => Quoted(text).fmt(f),
        }
    }
}

/// A client's words, which must not end the line or the quotes around them.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                b' '..=b'~' => write!(f, "{}", char::from(byte))?,
                _ => write!(f, "\\x{byte:02X}")?,
            }
        }
        Ok(())
    }
}

/// `21/Nov/2026:16:00:00 +0000`.
struct Time(SystemTime);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Sat, 21 Nov 2026 16:00:00 GMT`, which has all that is needed. It knows no year above 9999, and panics there.
        let year_10000 = UNIX_EPOCH + Duration::from_hours(70_389_528);
        let time = if self.0 < year_10000 {
            self.0.max(UNIX_EPOCH)
        } else {
            UNIX_EPOCH
        };
        let text = httpdate::fmt_http_date(time);
        let mut words = text.split(' ').skip(1);
        let mut word = || words.next().unwrap_or_default();
        let (day, month, year, clock) = (word(), word(), word(), word());
        write!(f, "{day}/{month}/{year}:{clock} +0000")
    }
}

/// An observer that counts.
#[derive(Debug, Default)]
pub struct Counts {
    begun: AtomicU64,
    ended: AtomicU64,
    answered: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    /// Requests that have begun and not ended.
    pub fn open(&self) -> u64 {
        let ended = self.ended.load(Ordering::Acquire);
        self.begun.load(Ordering::Acquire).saturating_sub(ended)
    }

    /// Requests that have come.
    pub fn total(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Requests that have ended, however they did.
    pub fn served(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Requests that have ended with a whole response.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Bytes of all bodies of responses.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Observer for Counts {
    fn wants_texts(&self) -> bool {
        false
    }

    fn begun(&self, _: &Request) {
        self.begun.fetch_add(1, Ordering::Release);
    }

    fn ended(&self, exchange: &Exchange) {
        if exchange.end == End::Answered {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        self.bytes.fetch_add(exchange.bytes, Ordering::Relaxed);
        self.ended.fetch_add(1, Ordering::Release);
    }
}

/// Follows the requests of one server.
#[derive(Debug)]
pub(super) struct Watch {
    observer: Arc<dyn Observer>,
    open: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The open requests of each connection, oldest first: answers are taken to come in that order. Servers choose the numbers, so
    /// they need no hash that withstands a client's choice.
    clients: FxHashMap<Key, Line>,
    count: usize,
    /// All requests in the order in which they came, those that have ended too until they are at the front.
    order: VecDeque<(Key, u64)>,
    serial: u64,
}

/// The open requests of a connection. Most have one, which so needs no room of its own.
#[derive(Debug)]
struct Line {
    first: Open,
    others: VecDeque<Open>,
}

/// A request that has begun.
#[derive(Debug)]
struct Open {
    serial: u64,
    since: Instant,
    scanner: Scanner,
    conn_id: ConnId,
    /// Where they are wanted.
    texts: Option<Box<Texts>>,
}

/// What the request said, in copies, so that a message of any size is not kept.
#[derive(Debug)]
struct Texts {
    sender: Bytes,
    method: Bytes,
    uri: Bytes,
    version: Bytes,
    remote_addr: Bytes,
    referer: Bytes,
    user_agent: Bytes,
    started: SystemTime,
}

impl Watch {
    pub(super) fn new(observer: Arc<dyn Observer>) -> Self {
        Self {
            observer,
            open: Mutex::default(),
        }
    }

    /// Takes note of a message from the server.
    pub(super) fn received(&self, key: Key, message: &Request, kind: Kind<'_>) {
        match kind {
            Kind::Disconnect => self.ended(key, End::ClientGone).tell(true),
            Kind::Http
            | Kind::WebSocketHandshake
            | Kind::UploadStart { .. }
            | Kind::StreamStart => self.begun(key, message),
            // Of an upload that another handler process was told of first.
            Kind::UploadDone { .. } if !self.lock().clients.contains_key(&key) => {
                self.begun(key, message);
            }
            _ => {}
        }
    }

    fn begun(&self, key: Key, message: &Request) {
        self.observer.begun(message);
        let texts = self.observer.wants_texts();
        let oldest = self.lock().add(key, message, texts);
        if let Some(oldest) = oldest {
            self.observer.ended(&oldest);
        }
    }

    /// Follows what is sent to a client, and says which of its requests that ends.
    pub(super) fn sending(&self, key: Key, payload: &[u8], extended: bool) -> Endings {
        if extended {
            return match reply::decode_extended(payload) {
                Ok(Extended::Ctl { cancel: true, .. }) => self.ended(key, End::GivenUp),
                Ok(Extended::Other {
                    key: b"sendfile", ..
                }) => {
                    let ended = self.lock().file(key);
                    self.endings(ended)
                }
                _ => self.endings(Vec::new()),
            };
        }
        if payload.is_empty() {
            return self.ended(key, End::GivenUp);
        }
        let ended = self.lock().scan(key, payload);
        self.endings(ended)
    }

    /// The same for a whole response of that status, and so many bytes of body; none: it has to be followed.
    pub(super) fn answering(&self, key: Key, status: u16, bytes: u64) -> Option<Answering<'_>> {
        let exchange = self.lock().skip(key, status, bytes)?;
        Some(Answering {
            watch: self,
            exchange,
        })
    }

    /// All requests of a connection are over.
    fn ended(&self, key: Key, end: End) -> Endings {
        let ended = self.lock().close(key, end);
        self.endings(ended)
    }

    fn endings(&self, ended: Vec<Exchange>) -> Endings {
        Endings {
            observer: Arc::clone(&self.observer),
            ended,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Adds a request; gives the oldest one where there are too many.
    fn add(&mut self, key: Key, message: &Request, texts: bool) -> Option<Exchange> {
        self.serial += 1;
        let serial = self.serial;
        let open = open(message, serial, texts);
        match self.clients.entry(key) {
            Entry::Occupied(mut line) => line.get_mut().others.push_back(open),
            Entry::Vacant(place) => {
                place.insert(Line {
                    first: open,
                    others: VecDeque::new(),
                });
            }
        }
        self.count += 1;
        self.order.push_back((key, serial));
        while let Some(&(key, serial)) = self.order.front() {
            let here = self.clients.get(&key).map(|line| &line.first);
            if here.is_some_and(|open| open.serial <= serial) && self.count <= OPEN_MAX {
                break;
            }
            self.order.pop_front();
            if here.is_some_and(|open| open.serial == serial) {
                return self.take(key, End::GivenUp);
            }
        }
        if self.order.len() > 2 * OPEN_MAX {
            let clients = &self.clients;
            self.order.retain(|(key, serial)| {
                clients
                    .get(key)
                    .is_some_and(|line| line.iter().any(|open| open.serial == *serial))
            });
        }
        None
    }

    /// Takes the oldest request of a connection.
    fn take(&mut self, key: Key, end: End) -> Option<Exchange> {
        let line = self.clients.get_mut(&key)?;
        let open = match line.others.pop_front() {
            Some(next) => std::mem::replace(&mut line.first, next),
            None => self.clients.remove(&key)?.first,
        };
        self.count = self.count.saturating_sub(1);
        Some(open.over(end))
    }

    fn scan(&mut self, key: Key, mut payload: &[u8]) -> Vec<Exchange> {
        let mut ended = Vec::new();
        while !payload.is_empty()
            && let Some(open) = self.clients.get_mut(&key).map(|line| &mut line.first)
        {
            let scan = open.scanner.scan(payload);
            if !matches!(scan.state, ScanState::Ended { .. }) {
                break;
            }
            payload = payload.get(scan.consumed..).unwrap_or_default();
            ended.extend(self.take(key, End::Answered));
        }
        ended
    }

    fn skip(&mut self, key: Key, status: u16, bytes: u64) -> Option<Exchange> {
        let open = self.clients.get_mut(&key).map(|line| &mut line.first)?;
        open.scanner.skip_whole(status, bytes).then_some(())?;
        self.take(key, End::Answered)
    }

    /// The server writes the rest of a response, or some of it, from a file.
    fn file(&mut self, key: Key) -> Vec<Exchange> {
        if let Some(open) = self.clients.get_mut(&key).map(|line| &mut line.first)
            && let ScanState::Ended { .. } = open.scanner.skip_rest()
        {
            return self.take(key, End::Answered).into_iter().collect();
        }
        Vec::new()
    }

    /// Ends all requests of a connection.
    fn close(&mut self, key: Key, end: End) -> Vec<Exchange> {
        let Some(Line { first, others }) = self.clients.remove(&key) else {
            return Vec::new();
        };
        self.count = self.count.saturating_sub(1 + others.len());
        let over = std::iter::once(first).chain(others).map(|open| {
            // The end of such a response is that of its connection, when the handler is who ends it.
            let whole = match open.scanner.state() {
                ScanState::Opaque | ScanState::Switched => true,
                _ => open.scanner.is_until_close(),
            };
            let answered = end == End::GivenUp && whole;
            // A WebSocket ends well whoever ends it.
            let switched = open.scanner.state() == ScanState::Switched;
            let end = if answered || switched {
                End::Answered
            } else {
                end
            };
            open.over(end)
        });
        over.collect()
    }
}

fn open(message: &Request, serial: u64, texts: bool) -> Open {
    let method = match message.method() {
        Some(b"WEBSOCKET_HANDSHAKE") => &b"GET"[..],
        method => method.unwrap_or_default(),
    };
    let version = match message.version() {
        Some(b"HTTP/1.0") => Version::Http10,
        _ => Version::Http11,
    };
    let asked = match method {
        b"HEAD" => Asked::Head,
        b"CONNECT" => Asked::Connect,
        _ => Asked::Other,
    };
    Open {
        serial,
        since: Instant::now(),
        scanner: Scanner::new(asked, version, !message.should_close()),
        conn_id: message.conn_id,
        texts: texts.then(|| Box::new(Texts::of(message, method))),
    }
}

impl Texts {
    fn of(message: &Request, method: &[u8]) -> Self {
        let field = |name: &str| {
            let value = message.headers.first(name).unwrap_or_default();
            Bytes::copy_from_slice(value)
        };
        Self {
            sender: Bytes::copy_from_slice(&message.sender),
            method: Bytes::copy_from_slice(method),
            uri: field("URI"),
            version: field("VERSION"),
            remote_addr: field("REMOTE_ADDR"),
            referer: field("referer"),
            user_agent: field("user-agent"),
            started: SystemTime::now(),
        }
    }

    fn none() -> Self {
        Self {
            sender: Bytes::new(),
            method: Bytes::new(),
            uri: Bytes::new(),
            version: Bytes::new(),
            remote_addr: Bytes::new(),
            referer: Bytes::new(),
            user_agent: Bytes::new(),
            started: UNIX_EPOCH,
        }
    }
}

impl Line {
    fn iter(&self) -> impl Iterator<Item = &Open> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl Open {
    fn over(self, end: End) -> Exchange {
        let texts = self.texts.map_or_else(Texts::none, |texts| *texts);
        Exchange {
            sender: texts.sender,
            conn_id: self.conn_id,
            method: texts.method,
            uri: texts.uri,
            version: texts.version,
            remote_addr: texts.remote_addr,
            referer: texts.referer,
            user_agent: texts.user_agent,
            started: texts.started,
            duration: self.since.elapsed(),
            status: self.scanner.status(),
            bytes: self.scanner.bytes(),
            end,
        }
    }
}

/// A request that a message answers, which is sent or not right now.
pub(super) struct Answering<'a> {
    watch: &'a Watch,
    exchange: Exchange,
}

impl Answering<'_> {
    /// It is on its way.
    pub(super) fn sent(self) {
        self.watch.observer.ended(&self.exchange);
    }

    /// It has to wait.
    pub(super) fn wait(self) -> Endings {
        self.watch.endings(vec![self.exchange])
    }
}

/// Requests that a message ends. Dropped untold, the message was not sent.
#[derive(Debug)]
pub(super) struct Endings {
    observer: Arc<dyn Observer>,
    ended: Vec<Exchange>,
}

impl Endings {
    pub(super) fn extend(&mut self, mut other: Self) {
        self.ended.append(&mut other.ended);
    }

    /// The message is on its way, or the server is gone.
    pub(super) fn tell(mut self, sent: bool) {
        for mut exchange in std::mem::take(&mut self.ended) {
            if !sent {
                exchange.end = End::ClientGone;
            }
            self.observer.ended(&exchange);
        }
    }
}

impl Drop for Endings {
    fn drop(&mut self) {
        for exchange in &mut self.ended {
            exchange.end = End::GivenUp;
            self.observer.ended(exchange);
        }
    }
}
