//! A connection that many threads, or the tasks of an event loop, receive from and answer through.
//!
//! Nothing is received ahead: whoever waits for a request, for a piece of a body, or for a client that takes more of a response,
//! takes the connection's messages meanwhile, and puts what is not his where others find it.

#![expect(
    clippy::disallowed_types,
    reason = "waiters take turns at receiving: the lock is held while one of them waits"
)]

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use lurcher::handler::{
    Bodies, BodyReader, Client, Connection, Event, Frame, Options, Part, Replies, Request,
    StopHandle, Upload,
};
use pyo3::prelude::*;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};

use super::errors::{ConnectError_, Fault};
use super::inbox::Inbox;
use super::runtime::try_now;
use super::way::Way;

/// Requests that are kept for whoever asks next, while others wait for something else of the connection. Then nothing more is
/// received, and servers keep the rest: as many as the library keeps of one server.
const QUEUE_MAX: usize = 1000;

/// How long those who wait for something else put up with a full queue. What they wait for comes behind the rest, and when nobody takes
/// that, perhaps because all of them wait, it is turned away.
const FULL_MAX: Duration = Duration::from_secs(1);

/// Futures that wait, before those among them are looked for that were cancelled.
const SWEEP: usize = 64;

/// Requests that an event loop is given without a turn of the loop between them: its other tasks want their turn too.
const AT_ONCE_MAX: u32 = 16;

/// Something for the program.
pub(super) struct Incoming {
    pub(super) kind: &'static str,
    pub(super) message: Message,
    /// Of an upload that comes in parts.
    pub(super) body: Option<BodyReader>,
}

/// A message with what is known of it.
pub(super) enum Message {
    Plain(Request),
    Frame(Frame),
    Upload(Upload),
    Part(Part),
}

impl Message {
    pub(super) fn request(&self) -> &Request {
        match self {
            Message::Plain(request) => request,
            Message::Frame(frame) => frame,
            Message::Upload(upload) => upload.request(),
            Message::Part(part) => part.request(),
        }
    }
}

/// What others tell those who wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Word {
    interrupts: u64,
    closed: bool,
}

/// See above.
pub(super) struct Hub {
    runtime: &'static Runtime,
    process: u32,
    way: Way,
    connection: tokio::sync::Mutex<Option<Connection>>,
    replies: Replies,
    stop: StopHandle,
    /// Uploads are told of when they begin, too.
    announces: bool,
    shelf: Mutex<Shelf>,
    /// Something was put into the queue, or the end has come.
    queued: Notify,
    /// Something was taken out of a full queue.
    room: Notify,
    ended: AtomicBool,
    word: watch::Sender<Word>,
    /// Futures of an event loop, done when there is something.
    waiters: Mutex<VecDeque<Py<PyAny>>>,
    /// How many of them were there when they were last looked through.
    swept: AtomicUsize,
    /// A task receives for the waiters.
    fetching: AtomicBool,
    at_once: Mutex<u32>,
}

#[derive(Default)]
struct Shelf {
    queue: VecDeque<Incoming>,
    /// When the queue has become full, or one was taken out of a full one.
    full_since: Option<Instant>,
    bodies: Bodies,
    /// Whose requests the program never saw: of their ends it need not hear.
    turned_away: HashSet<Client>,
}

impl Shelf {
    fn is_full(&self) -> bool {
        self.queue.len() >= QUEUE_MAX
    }

    /// Servers tell soon of clients that were turned away, so this means that one does not.
    fn is_crowded(&self) -> bool {
        self.turned_away.len() >= QUEUE_MAX
    }
}

impl Hub {
    /// Connects.
    pub(super) async fn connect(
        runtime: &'static Runtime,
        way: Way,
        options: Options,
        announces: bool,
    ) -> Result<Self, Fault> {
        let connection = Connection::connect(options).await?;
        Ok(Self {
            runtime,
            process: std::process::id(),
            way,
            replies: connection.replies(),
            stop: connection.stop_handle(),
            connection: tokio::sync::Mutex::new(Some(connection)),
            announces,
            shelf: Mutex::default(),
            queued: Notify::new(),
            room: Notify::new(),
            ended: AtomicBool::new(false),
            word: watch::Sender::default(),
            waiters: Mutex::default(),
            swept: AtomicUsize::new(0),
            fetching: AtomicBool::new(false),
            at_once: Mutex::default(),
        })
    }

    pub(super) fn runtime(&self) -> &'static Runtime {
        self.runtime
    }

    pub(super) fn way(&self) -> &Way {
        &self.way
    }

    pub(super) fn replies(&self) -> &Replies {
        &self.replies
    }

    pub(super) fn stop(&self) -> &StopHandle {
        &self.stop
    }

    /// Nothing more will come, and all that came was given out.
    pub(super) fn has_ended(&self) -> bool {
        self.word.borrow().closed
            || (self.ended.load(Ordering::Acquire) && self.shelf().queue.is_empty())
    }

    /// Whether this is the process that has connected: a child by fork has none of the threads.
    pub(super) fn check(&self) -> PyResult<()> {
        if self.process == std::process::id() {
            return Ok(());
        }
        Err(ConnectError_::new_err(
            "using a connection: it belongs to the process that made it, connect after the fork",
        ))
    }

    /// The same, and that it was not closed.
    pub(super) fn check_open(&self) -> PyResult<()> {
        self.check()?;
        if self.is_closed() {
            return Err(Fault::Closed.into());
        }
        Ok(())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.word.borrow().closed
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiters(&self) -> MutexGuard<'_, VecDeque<Py<PyAny>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing for the program; none at the end.
    ///
    /// # Cancel safety
    ///
    /// Safe: it is taken only by a future that returns it.
    pub(super) async fn next(&self) -> Option<Incoming> {
        loop {
            let queued = self.queued.notified();
            tokio::pin!(queued);
            queued.as_mut().enable();
            if let Some(incoming) = self.take() {
                return Some(incoming);
            }
            if self.has_ended() {
                return None;
            }
            tokio::select! {
                biased;
                () = queued => {}
                _ = self.receive(false) => {}
            }
        }
    }

    fn take(&self) -> Option<Incoming> {
        let mut shelf = self.shelf();
        let was_full = shelf.is_full();
        let taken = shelf.queue.pop_front();
        if was_full {
            shelf.full_since = shelf.is_full().then(Instant::now);
            drop(shelf);
            self.room.notify_waiters();
        }
        taken
    }

    /// As [`Hub::next`], until somebody interrupts or closes.
    pub(super) async fn next_or_word(&self) -> Option<Incoming> {
        let mut word = self.word.subscribe();
        tokio::select! {
            biased;
            next = self.next() => next,
            _ = word.changed() => None,
        }
    }

    /// Does something, and receives for others until it is done.
    pub(super) async fn receiving_meanwhile<F: Future>(&self, work: F) -> F::Output {
        tokio::select! {
            biased;
            done = work => done,
            () = self.receive_for_others() => unreachable!("it never ends"),
        }
    }

    /// Receives into the queue as long as there is room, and when there is none for long, what is not for the program; it does not end.
    pub(super) async fn receive_for_others(&self) {
        while !self.ended.load(Ordering::Acquire) {
            let turns_away = !self.has_room_soon().await;
            if self.receive(turns_away).await {
                self.tell_of_queued();
            }
        }
        std::future::pending().await
    }

    /// Waits for room in the queue; false when there was none for long.
    async fn has_room_soon(&self) -> bool {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let since = {
                let shelf = self.shelf();
                shelf.full_since.filter(|_| shelf.is_full())
            };
            let Some(since) = since else { return true };
            let end = tokio::time::Instant::from_std(since + FULL_MAX);
            if tokio::time::timeout_at(end, room).await.is_err() {
                return false;
            }
        }
    }

    /// Begins to stop, and receives until there is nothing more, into the queue.
    pub(super) async fn shut_down(&self) {
        self.stop.stop();
        while !self.ended.load(Ordering::Acquire) {
            if self.receive(false).await {
                self.tell_of_queued();
            }
        }
    }

    fn tell_of_queued(&self) {
        self.queued.notify_one();
        if let Way::Loop(inbox) = &self.way {
            inbox.wake();
        }
    }

    /// Takes one message, or hears of the end. True when something is in the queue now: put there while nobody else can receive,
    /// so that what comes from one client stays in order.
    async fn receive(&self, turns_away: bool) -> bool {
        let mut word = self.word.subscribe();
        let mut connection = self.connection.lock().await;
        let received = match connection.as_mut() {
            Some(connection) => tokio::select! {
                biased;
                _ = word.wait_for(|word| word.closed) => None,
                received = connection.recv() => received,
            },
            None => None,
        };
        let Some(request) = received else {
            self.ended.store(true, Ordering::Release);
            self.queued.notify_waiters();
            return false;
        };
        let Some(incoming) = self.sort(request) else {
            return false;
        };
        let mut shelf = self.shelf();
        let is_new = matches!(incoming.kind, "request" | "handshake");
        let is_more = matches!(incoming.kind, "frame" | "message");
        if turns_away && shelf.is_full() && (is_new || is_more) {
            let client = incoming.message.request().client();
            if is_new {
                if shelf.is_crowded() {
                    shelf.turned_away.clear();
                }
                shelf.turned_away.insert(client);
            }
            drop(shelf);
            self.turn_away(&incoming, is_new);
            return false;
        }
        shelf.queue.push_back(incoming);
        if shelf.is_full() && shelf.full_since.is_none() {
            shelf.full_since = Some(Instant::now());
        }
        true
    }

    /// Nobody takes what comes: a new request is answered 503, and who has been let in and sends too much is cut off.
    fn turn_away(&self, incoming: &Incoming, is_new: bool) {
        let request = incoming.message.request();
        let client = request.client();
        if is_new {
            tracing::warn!(
                ?client,
                "turned a request away: nobody takes those that wait"
            );
            let answer = request.respond(503).header("Retry-After", "1").close();
            let answer = answer.send("Service Unavailable\n");
            self.runtime.spawn(async move { drop(answer.await) });
        } else {
            tracing::warn!(?client, "cut off a client whose messages nobody takes");
            self.runtime
                .spawn(async move { drop(client.cancel().await) });
        }
    }

    /// Tells what it is, and keeps what is only for the library.
    fn sort(&self, request: Request) -> Option<Incoming> {
        let plain = |kind, request| {
            Some(Incoming {
                kind,
                message: Message::Plain(request),
                body: None,
            })
        };
        if request.is_disconnect() {
            let mut shelf = self.shelf();
            let client = request.client();
            shelf.bodies.gone(&client);
            if shelf.turned_away.remove(&client) {
                return None;
            }
            return plain("disconnect", request);
        }
        match request.into_event() {
            Event::Request(request) => plain("request", request),
            Event::Message(request) => plain("message", request),
            Event::WebSocketHandshake(request) => plain("handshake", request),
            Event::Other(request) => plain("other", request),
            Event::WebSocketFrame(frame) => Some(Incoming {
                kind: "frame",
                message: Message::Frame(frame),
                body: None,
            }),
            Event::UploadDone(upload) => Some(Incoming {
                kind: "request",
                message: Message::Upload(upload),
                body: None,
            }),
            Event::UploadStarted(upload) => self.announces.then(|| Incoming {
                kind: "upload_started",
                message: Message::Upload(upload),
                body: None,
            }),
            Event::UploadPart(part) => {
                let body = self.shelf().bodies.part(&part)?;
                Some(Incoming {
                    kind: "request",
                    message: Message::Part(part),
                    body: Some(body),
                })
            }
            Event::UploadRefused(request, why) => {
                tracing::warn!(client = ?request.client(), %why, "refused an upload");
                let answer = request.respond(400).close().send("not an upload\n");
                self.runtime.spawn(async move { drop(answer.await) });
                None
            }
            _ => None,
        }
    }

    /// Lets all who wait for a request go on without one.
    pub(super) fn interrupt(&self) {
        self.word.send_modify(|word| word.interrupts += 1);
    }

    /// Nobody receives any more, from now on.
    pub(super) fn abandon(&self) {
        self.word.send_modify(|word| word.closed = true);
    }

    /// Gives up the connection. What was sent is written in the time that the options leave.
    pub(super) async fn close(&self) {
        self.abandon();
        let connection = self.connection.lock().await.take();
        self.ended.store(true, Ordering::Release);
        self.queued.notify_waiters();
        // Who reads one is told that no more comes.
        self.shelf().bodies = Bodies::new();
        if let Some(connection) = connection {
            connection.finish().await;
        }
        if let Way::Loop(inbox) = &self.way {
            inbox.wake();
        }
    }

    /// The loop's way to the next thing, if it is there and nobody has waited for longer. Only who asks again, having been told that there
    /// is something, goes before those.
    pub(super) fn next_at_once(&self, again: bool) -> Poll<Option<Incoming>> {
        if !again {
            let mut at_once = self.at_once.lock().unwrap_or_else(PoisonError::into_inner);
            if *at_once >= AT_ONCE_MAX || !self.waiters().is_empty() {
                return Poll::Pending;
            }
            *at_once += 1;
        }
        try_now(self.runtime, std::pin::pin!(self.next()))
    }

    /// A future that is done when it is worth asking again. What there is stays where it is meanwhile: a future may be cancelled when it
    /// is done already, and would take with it what it holds.
    pub(super) fn ready(self: &Arc<Self>, py: Python<'_>, inbox: &Inbox) -> PyResult<Py<PyAny>> {
        self.sweep(py);
        let future = inbox.future(py)?;
        self.waiters().push_back(future.clone().unbind());
        if *self.at_once.lock().unwrap_or_else(PoisonError::into_inner) >= AT_ONCE_MAX {
            inbox.wake();
        } else {
            self.serve_waiters(py)?;
        }
        Ok(future.unbind())
    }

    /// Leaves out futures that were cancelled: behind one that waits for long they would gather.
    fn sweep(&self, py: Python<'_>) {
        let before = self.swept.load(Ordering::Relaxed);
        if self.waiters().len() < SWEEP + 2 * before {
            return;
        }
        let mut waiters = std::mem::take(&mut *self.waiters());
        // Not under the lock, since it is Python's code.
        waiters.retain(|waiter| {
            let done = waiter.call_method0(py, "done");
            !done.and_then(|done| done.is_truthy(py)).unwrap_or(true)
        });
        self.swept.store(waiters.len(), Ordering::Relaxed);
        let mut present = self.waiters();
        waiters.append(&mut present);
        *present = waiters;
    }

    /// The loop has had a turn.
    pub(super) fn turn(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        *self.at_once.lock().unwrap_or_else(PoisonError::into_inner) = 0;
        self.serve_waiters(py)
    }

    /// Tells as many waiters as there are things, and sees to it that somebody receives for the others.
    pub(super) fn serve_waiters(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let mut things = self.shelf().queue.len();
        loop {
            let Some(waiter) = self.waiters().pop_front() else {
                return Ok(());
            };
            if waiter.bind(py).call_method0("done")?.is_truthy()? {
                continue;
            }
            let is_there = things > 0 || self.has_ended();
            if is_there || self.receives_at_once() {
                things = things.saturating_sub(1);
                waiter.call_method1(py, "set_result", (py.None(),))?;
            } else {
                self.waiters().push_front(waiter);
                self.fetch();
                return Ok(());
            }
        }
    }

    /// Takes from the connection what is there; true when that is anything for the program, or the end.
    fn receives_at_once(&self) -> bool {
        loop {
            match try_now(self.runtime, std::pin::pin!(self.receive(false))) {
                Poll::Pending => return false,
                Poll::Ready(true) => return true,
                Poll::Ready(false) if self.ended.load(Ordering::Acquire) => return true,
                Poll::Ready(false) => {}
            }
        }
    }

    /// Receives in the background until there is something for whoever waits first.
    fn fetch(self: &Arc<Self>) {
        // In one order with the inbox's waking, or a loop that finds this at work might not be woken by it.
        if self.fetching.swap(true, Ordering::SeqCst) {
            return;
        }
        let hub = Arc::clone(self);
        self.runtime.spawn(async move {
            loop {
                // Each turn waits for a message.
                if hub.ended.load(Ordering::Acquire) || hub.receive(false).await {
                    break;
                }
            }
            hub.fetching.store(false, Ordering::SeqCst);
            if let Way::Loop(inbox) = &hub.way {
                inbox.wake();
            }
        });
    }
}
