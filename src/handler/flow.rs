//! How much of a response is under way: a large one is sent as fast as its client takes it, so that neither the server's memory
//! nor its patience is used up. When a server tells how much that is, a writer here waits; what it writes is not its business.
//!
//! Three ways, by what the server can do:
//!
//! - **A Lurcher** is asked for credits when a response has grown beyond [`FREE`], so that small ones cost nothing. The request says
//!   how many bytes were sent so far, and every notice how many of those were written: a notice that is lost is made good by the
//!   next one, and a writer that has waited for a while asks again, which is answered at once. A feed that stands before a server
//!   which gives none says so by a window of nothing.
//! - **`download.flow_control`**, on either server: at most [`CONTROLLED_WINDOW`] are outstanding on a connection, as counted by
//!   Mongrel2's credits. A lost notice is lost for good there, but asking again finds out that a client is gone.
//! - **A Mongrel2 without it** tells nothing and keeps 16 messages at most for a client, of whatever size. So messages double in size:
//!   each is as large as all that was sent in the last seconds, up to [`PIECE_MAX`]. A client may then be some 140 MB behind.
//!
//! Credits come by [`super::Connection::recv`]. A writer that waits while nobody calls that is given up, or it would wait for ever.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::publisher::{Key, Publisher};
use super::replies::{self, ReplyError};
use crate::bus::client::Sent;
use crate::wire::ConnId;
use crate::wire::reply::{Extended, Flow};
use crate::wire::request::{Kind, Request};

/// Bytes of a response that a Lurcher gets before it is asked for credits: most responses are smaller.
const FREE: u64 = 256 * 1024;

/// Bytes outstanding to one client of a Lurcher: enough for 500 MB/s where credits take a millisecond, and what a thousand slow
/// clients cost in memory is half a gigabyte.
const WINDOW: u64 = 512 * 1024;

/// Bytes outstanding with `download.flow_control`: with more the server drops the connection.
const CONTROLLED_WINDOW: u64 = 102_400;

/// Where a server tells nothing, what was sent lately is gathered from here on.
const SMALL: u64 = 64 * 1024;

/// Where a server tells nothing, the largest message: what a writer may hold in memory.
const PIECE_MAX: u64 = 16 * 1024 * 1024;

/// What a message counts beside its bytes, so that a server which keeps 16 messages is not sent 17 tiny ones in a row.
const MESSAGE_COST: u64 = 16 * 1024;

/// In this time what was sent counts half.
const HALF_LIFE: Duration = Duration::from_secs(2);

/// How long a flush may be put off, so that what follows at once goes along: for each [`SMALL`] that was sent lately, and at most. The
/// most is only reached by what comes in megabytes: were it shorter, a fast source would have its messages flushed before they
/// can grow.
const FLUSH_PAUSE: Duration = Duration::from_millis(10);
const FLUSH_PAUSE_MAX: Duration = Duration::from_secs(1);

/// After so long without news a server is asked again; then after twice as long, up to the maximum.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(30);

/// A Lurcher that has not answered within this time has somebody behind it who gives no credits; then it is not asked for so long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const UNANSWERED_PAUSE: Duration = Duration::from_mins(1);

/// A writer that nobody receives for meanwhile is given up after so long.
const UNHEARD_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for a response that is here whole: then the rest of it goes at once.
const UNHEARD_WHOLE_TIMEOUT: Duration = Duration::from_millis(100);

/// Clients of one server that are counted without a writer. Mongrel2 does not tell of every client that leaves; one that is forgotten
/// is taken to have nothing outstanding.
const IDLE_MAX: usize = 65_536;

/// Whether anybody receives what servers send: without that no writer ever hears of its client.
#[derive(Debug, Default)]
pub(super) struct Receiving {
    calls: AtomicU64,
    waits: AtomicBool,
    /// Nothing is received any more.
    over: CancellationToken,
}

impl Receiving {
    /// Somebody waits for messages as long as what is returned is kept.
    pub(super) fn begin(&self) -> impl Drop + '_ {
        struct Waits<'a>(&'a AtomicBool);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Relaxed);
            }
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.waits.store(true, Ordering::Relaxed);
        Waits(&self.waits)
    }

    /// Nobody ever will again.
    pub(super) fn end(&self) {
        self.over.cancel();
    }
}

/// What the clients of one server have outstanding.
#[derive(Debug)]
pub(super) struct Flows {
    clients: Mutex<HashMap<Key, Arc<Account>>>,
    /// How many there are, to be looked at without a lock.
    count: AtomicUsize,
    /// The server gives credits for everything (`download.flow_control`).
    controlled: AtomicBool,
    receiving: Arc<Receiving>,
    /// The server does not answer requests for credits, and is not asked until then.
    unanswered: Mutex<Option<Instant>>,
    /// Counts of new accounts begin here, so that late news of old ones are not taken for theirs.
    start: AtomicU64,
}

/// What is outstanding on one connection.
#[derive(Debug)]
struct Account {
    numbers: Mutex<Numbers>,
    changed: Notify,
}

/// Counts of bytes since some beginning.
#[derive(Debug, Clone, Copy, Default)]
struct Numbers {
    sent: u64,
    written: u64,
    /// As the server has granted it.
    window: Option<u64>,
    gone: bool,
    writers: usize,
}

impl Account {
    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flows {
    pub(super) fn new(receiving: Arc<Receiving>) -> Self {
        Self {
            clients: Mutex::default(),
            count: AtomicUsize::new(0),
            controlled: AtomicBool::new(false),
            receiving,
            unanswered: Mutex::default(),
            start: AtomicU64::new(0),
        }
    }

    /// Whether the server lets only so much be outstanding, whoever asks.
    pub(super) fn are_controlled(&self) -> bool {
        self.controlled.load(Ordering::Acquire)
    }

    /// Whether anybody wants to know what is sent.
    pub(super) fn are_counted(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0 || self.are_controlled()
    }

    /// Whether a response of so many bytes may go in one message.
    pub(super) fn takes_whole(&self, bytes: usize) -> bool {
        !self.are_controlled() || bytes as u64 <= CONTROLLED_WINDOW
    }

    /// Takes note of a message from the server.
    pub(super) fn received(&self, message: &Request, kind: Kind<'_>, key: impl FnOnce() -> Key) {
        if message.path != "@*" {
            if !self.controlled.load(Ordering::Acquire)
                && message.headers.contains("DOWNLOAD_CREDITS")
            {
                self.controlled.store(true, Ordering::Release);
            }
            return;
        }
        match kind {
            Kind::Disconnect => self.forget(key()),
            Kind::Credits(bytes) => self.credit(key(), bytes, message.flow()),
            _ => {}
        }
    }

    /// Takes note of a payload that is about to be sent.
    pub(super) fn sending(&self, key: Key, payload: &[u8]) -> Option<Outstanding> {
        if payload.is_empty() {
            // It closes the connection.
            self.forget(key);
            return None;
        }
        let mut clients = self.lock();
        let account = match clients.get(&key) {
            Some(account) => Arc::clone(account),
            None if self.controlled.load(Ordering::Acquire) => self.add(&mut clients, key),
            None => return None,
        };
        drop(clients);
        account.lock().sent += payload.len() as u64;
        Some(Outstanding {
            account,
            bytes: payload.len() as u64,
        })
    }

    fn credit(&self, key: Key, bytes: u64, flow: Option<Flow>) {
        let refused = flow.is_some_and(|flow| flow.window == 0);
        if refused {
            self.note_unanswered();
        }
        let mut clients = self.lock();
        let Some(account) = clients.get(&key) else {
            return;
        };
        let mut numbers = account.lock();
        if refused {
            // Writers that wait for credits look at what is known now.
            account.changed.notify_waiters();
            return;
        }
        let written = match flow {
            Some(flow) => flow.sent.max(numbers.written),
            None => numbers.written.saturating_add(bytes),
        };
        // Others may send to the same client, and what they have sent is credited too.
        numbers.written = written.min(numbers.sent);
        if let Some(flow) = flow {
            numbers.window = Some(flow.window);
        }
        account.changed.notify_waiters();
        let idle = numbers.writers == 0 && numbers.written == numbers.sent;
        drop(numbers);
        if idle {
            self.remove(&mut clients, key);
        }
    }

    fn forget(&self, key: Key) {
        if let Some(account) = self.remove(&mut self.lock(), key) {
            account.lock().gone = true;
            account.changed.notify_waiters();
        }
    }

    fn join(&self, key: Key) -> Arc<Account> {
        let mut clients = self.lock();
        let account = match clients.get(&key) {
            Some(account) => Arc::clone(account),
            None => self.add(&mut clients, key),
        };
        account.lock().writers += 1;
        account
    }

    fn leave(&self, key: Key, account: &Arc<Account>) {
        let mut clients = self.lock();
        let mut numbers = account.lock();
        numbers.writers -= 1;
        self.start.fetch_max(numbers.sent, Ordering::Relaxed);
        let keep = numbers.writers > 0
            || (self.controlled.load(Ordering::Acquire) && numbers.written < numbers.sent);
        drop(numbers);
        if !keep
            && clients
                .get(&key)
                .is_some_and(|known| Arc::ptr_eq(known, account))
        {
            self.remove(&mut clients, key);
        }
    }

    fn add(&self, clients: &mut HashMap<Key, Arc<Account>>, key: Key) -> Arc<Account> {
        if clients.len() >= IDLE_MAX {
            let idle = clients
                .iter()
                .find(|(_, account)| account.lock().writers == 0);
            if let Some(key) = idle.map(|(key, _)| *key) {
                self.remove(clients, key);
            }
        }
        let start = self.start.load(Ordering::Relaxed);
        let account = Arc::new(Account {
            numbers: Mutex::new(Numbers {
                sent: start,
                written: start,
                ..Numbers::default()
            }),
            changed: Notify::new(),
        });
        clients.insert(key, Arc::clone(&account));
        self.count.store(clients.len(), Ordering::Release);
        account
    }

    fn remove(&self, clients: &mut HashMap<Key, Arc<Account>>, key: Key) -> Option<Arc<Account>> {
        let account = clients.remove(&key);
        self.count.store(clients.len(), Ordering::Release);
        account
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Account>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unanswered(&self) -> bool {
        let until = self
            .unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn note_unanswered(&self) {
        let mut until = self
            .unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *until = Some(Instant::now() + UNANSWERED_PAUSE);
    }
}

/// Bytes that are being handed over. Dropped before that is done, they were not sent.
#[derive(Debug)]
pub(super) struct Outstanding {
    account: Arc<Account>,
    bytes: u64,
}

impl Outstanding {
    /// They were sent.
    pub(super) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut numbers = self.account.lock();
            numbers.sent = numbers.sent.saturating_sub(self.bytes).max(numbers.written);
        }
    }
}

/// The way of one response to its client.
#[derive(Debug)]
pub(super) struct Outflow {
    publisher: Arc<Publisher>,
    sender: Bytes,
    id: ConnId,
    account: Arc<Account>,
    /// What the server is: asked once, since the answer is not for nothing.
    lurcher: bool,
    /// It hands on for another server, which may count messages.
    feed: bool,
    /// What was sent on the connection before this response.
    start: u64,
    /// The connection to the server on which the client was known: with another one, its number is somebody else's.
    connection: u64,
    /// Something of the response has left, and not all of it.
    begun: bool,
    /// How long nobody may receive.
    unheard_timeout: Duration,
    asked: Option<Instant>,
    /// What was sent lately, as of then, with messages at their cost.
    recent: u64,
    last: Instant,
}

/// What decides how much may be sent.
enum Way {
    /// So many bytes may go without more ado.
    Free(u64),
    /// So many may be outstanding.
    Window(u64),
    /// The server tells nothing.
    Blind,
}

impl Outflow {
    pub(super) fn new(publisher: Arc<Publisher>, sender: &Bytes, id: ConnId) -> Self {
        let account = publisher.flows().join(publisher.key(sender, id));
        let start = account.lock().sent;
        Self {
            lurcher: publisher.is_lurcher(),
            feed: publisher.is_feed(),
            connection: publisher.connection(),
            begun: false,
            unheard_timeout: UNHEARD_TIMEOUT,
            publisher,
            sender: sender.clone(),
            id,
            account,
            start,
            asked: None,
            recent: 0,
            last: Instant::now(),
        }
    }

    /// Whether the server has told that the client is gone, or has been lost since.
    pub(super) fn is_gone(&self) -> bool {
        self.account.lock().gone || self.publisher.connection() != self.connection
    }

    /// Whether something has left of what was begun: then nothing else can be said.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// All that was begun has left.
    pub(super) fn forget(&mut self) {
        self.begun = false;
    }

    /// Whether so many bytes in hand are worth a message by now, before anybody asks for a flush.
    pub(super) fn is_due(&self, bytes: usize) -> bool {
        bytes > 0 && (!self.counts_messages() || bytes as u64 >= self.piece())
    }

    /// Whether the server may count messages. Behind a feed there may be a Mongrel2: until it has said, they are as precious as there.
    fn counts_messages(&self) -> bool {
        match self.way() {
            Way::Blind => true,
            Way::Free(_) => self.feed,
            Way::Window(_) => {
                let flows = self.publisher.flows();
                self.feed && !flows.are_controlled() && self.account.lock().window.is_none()
            }
        }
    }

    /// Waits until a flush is in order: at once, but where messages are precious.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing was done.
    pub(super) async fn flush_is_due(&self) {
        if self.counts_messages() {
            let times = u32::try_from(self.piece() / SMALL).unwrap_or(u32::MAX);
            let pause = FLUSH_PAUSE.saturating_mul(times).min(FLUSH_PAUSE_MAX);
            tokio::time::sleep_until(self.last + pause).await;
        }
    }

    /// Sends all of `payload`, as its client takes it, and leaves it empty.
    ///
    /// # Errors
    ///
    /// [`ReplyError::ClientGone`] when the client or the server goes away, and when the socket is broken.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was sent is no longer in `payload`.
    pub(super) async fn send(&mut self, payload: &mut BytesMut) -> Result<(), ReplyError> {
        while !payload.is_empty() {
            let bytes = self.reserve(payload.len()).await?;
            self.send_piece(payload, bytes).await?;
        }
        Ok(())
    }

    /// Sends the first bytes of `payload` in one message, and takes them off.
    async fn send_piece(&mut self, payload: &mut BytesMut, bytes: usize) -> Result<(), ReplyError> {
        // What was sent before went to another connection than this would.
        if self.publisher.connection() != self.connection {
            return Err(ReplyError::ClientGone);
        }
        let piece = payload.get(..bytes).unwrap_or(payload);
        let mut message = replies::begin(&self.sender, &[self.id], piece.len());
        message.extend_from_slice(piece);
        let sent = self.publisher.send(message).await?;
        payload.advance(bytes.min(payload.len()));
        self.begun = true;
        self.recent = self
            .recent()
            .saturating_add(bytes as u64)
            .saturating_add(MESSAGE_COST);
        self.last = Instant::now();
        match sent {
            Sent::Queued => Ok(()),
            Sent::Dropped => Err(ReplyError::ClientGone),
        }
    }

    /// As [`Outflow::send`], and closes the connection then if that is wanted.
    ///
    /// # Cancel safety
    ///
    /// As [`Outflow::send`]; of the close nothing is remembered.
    pub(super) async fn finish(
        &mut self,
        payload: &mut BytesMut,
        close: bool,
    ) -> Result<(), ReplyError> {
        self.send(payload).await?;
        if close {
            let message = replies::begin(&self.sender, &[self.id], 0);
            replies::note(&self.publisher, self.publisher.send(message).await?);
        }
        Ok(())
    }

    /// As [`Outflow::finish`], of a response that is here whole. Many handlers answer where they receive, and so nobody is told
    /// what clients take: then the rest goes at once, for better or worse, and nobody has waited for long.
    pub(super) async fn finish_whole(
        &mut self,
        payload: &mut BytesMut,
        close: bool,
    ) -> Result<(), ReplyError> {
        self.unheard_timeout = UNHEARD_WHOLE_TIMEOUT;
        match self.send(payload).await {
            Err(ReplyError::NotReceiving) => {
                self.send_piece(payload, payload.len()).await?;
            }
            sent => sent?,
        }
        self.finish(payload, close).await
    }

    /// Waits until something may be sent, and says how much of so many bytes.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is taken.
    pub(super) async fn reserve(&mut self, bytes: usize) -> Result<usize, ReplyError> {
        let receiving = Arc::clone(&self.publisher.flows().receiving);
        let (begun, calls) = (Instant::now(), receiving.calls.load(Ordering::Relaxed));
        let account = Arc::clone(&self.account);
        let wanted = bytes as u64;
        let mut pause = ASK_AGAIN.min(self.unheard_timeout);
        loop {
            let changed = account.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let numbers = *account.lock();
            if numbers.gone {
                return Err(ReplyError::ClientGone);
            }
            let room = match self.way() {
                Way::Free(room) => room,
                Way::Blind => PIECE_MAX,
                Way::Window(window) => {
                    if self.asked.is_none() && self.lurcher {
                        self.ask().await?;
                        continue;
                    }
                    let outstanding = numbers.sent.saturating_sub(numbers.written);
                    let room = window.saturating_sub(outstanding);
                    // A little room is not worth a message, unless that is all there is to send.
                    if room < wanted.min(window / 4) {
                        0
                    } else {
                        room
                    }
                }
            };
            if room > 0 {
                return Ok(usize::try_from(room.min(wanted)).unwrap_or(bytes));
            }
            tokio::select! {
                () = changed => {}
                () = receiving.over.cancelled() => {}
                () = tokio::time::sleep(pause) => {
                    let unheard = !receiving.waits.load(Ordering::Relaxed)
                        && receiving.calls.load(Ordering::Relaxed) == calls;
                    if unheard && begun.elapsed() >= self.unheard_timeout {
                        return Err(ReplyError::NotReceiving);
                    }
                    let unanswered = self.asked.is_some_and(|asked| asked.elapsed() > ANSWER_TIMEOUT);
                    if unanswered && !unheard && !self.publisher.flows().are_controlled() && account.lock().window.is_none() {
                        tracing::warn!(replies = %self.publisher.endpoint(), "a server gives no credits: large responses are sent without");
                        self.publisher.flows().note_unanswered();
                    }
                    self.ask().await?;
                    pause = (pause * 2).clamp(ASK_AGAIN, ASK_AGAIN_MAX);
                }
            }
        }
    }

    fn way(&self) -> Way {
        let flows = self.publisher.flows();
        if flows.receiving.over.is_cancelled() {
            return Way::Blind;
        }
        let numbers = *self.account.lock();
        if let Some(window) = numbers.window {
            return Way::Window(window.clamp(1, WINDOW));
        }
        if flows.are_controlled() {
            return Way::Window(CONTROLLED_WINDOW);
        }
        if !self.lurcher || flows.is_unanswered() {
            return Way::Blind;
        }
        let sent = numbers.sent.saturating_sub(self.start);
        if sent < FREE {
            return Way::Free(FREE - sent);
        }
        Way::Window(WINDOW)
    }

    /// Asks for credits, or for those that got lost. Servers that know none take no notice, but tell when the client is gone.
    async fn ask(&mut self) -> Result<(), ReplyError> {
        let sent = self.account.lock().sent;
        let window = WINDOW;
        let command = Extended::Ctl {
            keep_alive: false,
            credits: None,
            cancel: false,
            flow: Some(Flow { window, sent }),
        };
        let mut message = Vec::new();
        crate::wire::reply::encode_extended(&self.sender, &[self.id], &command, &mut message);
        self.asked.get_or_insert_with(Instant::now);
        match self.publisher.send(message).await? {
            Sent::Queued => Ok(()),
            Sent::Dropped => Err(ReplyError::ClientGone),
        }
    }

    /// What was sent lately, now.
    fn recent(&self) -> u64 {
        let halves = self.last.elapsed().as_millis() / HALF_LIFE.as_millis();
        self.recent >> halves.min(63)
    }

    /// The size of the next message where the server tells nothing.
    fn piece(&self) -> u64 {
        match self.recent() {
            few if few < SMALL => 0,
            recent => recent.min(PIECE_MAX),
        }
    }
}

impl Drop for Outflow {
    fn drop(&mut self) {
        let key = self.publisher.key(&self.sender, self.id);
        self.publisher.flows().leave(key, &self.account);
    }
}
