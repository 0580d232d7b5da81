//! Who is being answered and who waits for it: on the receiving thread, which puts in, and on the event loop, which ends them.
//! It knows nothing of Python.
//!
//! `--concurrency` bounds the requests that are with the applications. A response that goes on for a second is a stream, and like a
//! WebSocket it no longer counts. What is over waits in here, and when too much does, nothing more is received: it stays in the
//! server, who may have others for it. Where nothing ends meanwhile, perhaps because all wait for what would be received next, the
//! next ones are turned away.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lurcher::handler::{BodyReader, Client, Frame, Opcode, Replies, Request, Upload};
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::inbox::{Farewell, Inbox, Incoming};
use super::line::{ABNORMAL, Line};
use super::soon::soon;
use crate::turns;

/// Requests that are with applications at once, where `--concurrency` does not say.
pub(crate) const CONCURRENCY: usize = 1024;

/// Requests that wait here, and the bytes of their messages: the next ones wait at the server.
const WAITING_MAX: usize = 1024;
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Requests of one client that wait for the one before: what HTTP calls pipelining. A client with more is cut off.
const PIPELINED_MAX: usize = 64;

/// A response that goes on for longer is a stream. As the server's own rule has it.
const STREAM_AFTER: Duration = Duration::from_secs(1);

/// A request, and where its body is.
pub(crate) struct Work {
    /// In a box, since it goes through several hands.
    pub(crate) request: Box<Request>,
    /// The number of its mount in the site.
    pub(crate) mount: usize,
    pub(crate) source: Source,
}

/// Where a body is.
pub(crate) enum Source {
    /// In the request.
    Whole,
    /// On its way, as it is asked for.
    Pieces(Box<BodyReader>),
    /// In a file of the server's.
    Stored(Box<Upload>),
    /// There is none: a client wants to speak WebSocket.
    Handshake,
}

impl Work {
    pub(crate) fn is_websocket(&self) -> bool {
        matches!(self.source, Source::Handshake)
    }
}

/// The books.
pub(crate) struct Desk {
    pub(crate) inbox: Arc<Inbox>,
    concurrency: OnceLock<usize>,
    /// Where what cannot be done at once goes on.
    runtime: OnceLock<Handle>,
    replies: OnceLock<Replies>,
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Default)]
struct State {
    clients: FxHashMap<Client, Open>,
    waiting: VecDeque<Work>,
    /// Requests in `waiting` and behind others, and the bytes of their messages.
    held: (usize, usize),
    /// Requests that count.
    running: usize,
    /// Requests that were begun and have not ended, whether their clients are there or not.
    open: usize,
    /// The end has begun.
    is_stopping: bool,
}

struct Open {
    line: Arc<Line>,
    behind: VecDeque<Work>,
}

impl Desk {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Arc<Self> {
        Arc::new(Self {
            inbox,
            concurrency: OnceLock::new(),
            runtime: OnceLock::new(),
            replies: OnceLock::new(),
            state: Mutex::default(),
            ended: Notify::new(),
        })
    }

    /// The runtime of the thread that receives, its way back, and how many requests may be with applications at once.
    pub(crate) fn begin(&self, runtime: Handle, replies: Replies, concurrency: usize) {
        // Once only: a worker begins once.
        let _ok = self.concurrency.set(concurrency.max(1));
        drop(self.replies.set(replies));
        drop(self.runtime.set(runtime));
    }

    /// None before anything is received.
    pub(crate) fn replies(&self) -> Option<&Replies> {
        self.replies.get()
    }

    /// None before anything is received.
    pub(crate) fn runtime(&self) -> Option<&Handle> {
        self.runtime.get()
    }

    fn concurrency(&self) -> usize {
        self.concurrency.get().copied().unwrap_or(CONCURRENCY)
    }

    /// Takes a request.
    pub(crate) fn take(&self, request: Request, mount: usize, source: Source) {
        let work = Work {
            request: Box::new(request),
            mount,
            source,
        };
        let client = work.request.client();
        let mut state = self.lock();
        if let Some(open) = state.clients.get_mut(&client) {
            if open.behind.len() < PIPELINED_MAX {
                let bytes = work.request.body.len();
                open.behind.push_back(work);
                state.hold(bytes);
            } else {
                drop(state);
                tracing::debug!(
                    ?client,
                    "cut off a client that asks faster than it is answered"
                );
                self.gone(&client);
                self.cut(client);
            }
        } else if work.is_websocket() && state.is_stopping {
            drop(state);
            self.turn_away(&work.request);
        } else if state.running < self.concurrency() && state.waiting.is_empty() {
            self.start(&mut state, work, VecDeque::new());
        } else {
            state.hold(work.request.body.len());
            state.waiting.push_back(work);
        }
    }

    /// Answers 503 in the name of applications that have too much to do, or are about to end.
    pub(crate) fn turn_away(&self, request: &Request) {
        let respond = request.respond(503).header("Content-Type", "text/plain");
        let respond = respond.header("Retry-After", "1").close();
        if let Some(runtime) = self.runtime() {
            soon(runtime, async move {
                let sent = respond.send("Service Unavailable\n").await;
                if let Err(error) = sent {
                    tracing::debug!(%error, "turning a request away");
                }
            });
        }
    }

    fn start(&self, state: &mut State, work: Work, behind: VecDeque<Work>) {
        let client = work.request.client();
        let counts = !work.is_websocket();
        state.running += usize::from(counts);
        state.open += 1;
        let line = Arc::new(Line::new(client.clone(), Arc::clone(&self.inbox), counts));
        let open = Open {
            line: Arc::clone(&line),
            behind,
        };
        state.clients.insert(client, open);
        self.inbox.push(Incoming::Start(work, line));
    }

    /// Starts what there is room for.
    fn start_waiting(&self, state: &mut State) {
        while state.running < self.concurrency()
            && let Some(work) = state.waiting.pop_front()
        {
            let bytes = work.request.body.len();
            let client = work.request.client();
            if let Some(open) = state.clients.get_mut(&client) {
                // Two of its requests were waiting.
                open.behind.push_back(work);
                continue;
            }
            state.let_go(bytes);
            self.start(state, work, VecDeque::new());
        }
    }

    /// A request has ended, with all that was said. A client's next one may begin.
    pub(crate) fn done(&self, line: &Arc<Line>) {
        let mut state = self.lock();
        state.open -= 1;
        state.running -= usize::from(line.give_place());
        let client = line.client();
        let is_its = |open: &Open| Arc::ptr_eq(&open.line, line);
        if state.clients.get(client).is_some_and(is_its)
            && let Some(mut open) = state.clients.remove(client)
            && let Some(next) = open.behind.pop_front()
        {
            if line.is_gone() {
                for work in open.behind.drain(..).chain([next]) {
                    state.let_go(work.request.body.len());
                }
            } else {
                // Its turn counts as one: it has waited behind another.
                state.let_go(next.request.body.len());
                self.start(&mut state, next, open.behind);
            }
        }
        self.start_waiting(&mut state);
        let is_idle = state.is_idle();
        drop(state);
        turns::left();
        if is_idle {
            self.ended.notify_one();
        }
    }

    /// Whether something of that client waits or is with an application.
    pub(crate) fn has(&self, client: &Client) -> bool {
        let state = self.lock();
        let mut waiting = state.waiting.iter();
        state.clients.contains_key(client) || waiting.any(|work| work.request.client() == *client)
    }

    /// A message of a WebSocket.
    pub(crate) fn frame(&self, frame: Frame) {
        let client = frame.client();
        let line = self.line(&client);
        let Some(line) = line else {
            // Nobody here knows it, or any more: there is no use in its going on.
            return self.cut(client);
        };
        match frame.opcode() {
            Opcode::Ping => {
                // From a Mongrel2 it may be as long as the client likes.
                let most = lurcher::handler::CONTROL_BYTES_MAX.min(frame.payload().len());
                let payload = frame.payload().slice(..most);
                if let Some(runtime) = self.runtime() {
                    soon(runtime, async move {
                        if let Err(error) = client.send_websocket(payload, Opcode::Pong).await {
                            tracing::debug!(%error, "answering a ping");
                        }
                    });
                }
            }
            Opcode::Pong => {}
            Opcode::Close => line.close(&frame),
            _ => {
                if !line.push(frame) {
                    tracing::warn!(?client, "cut off a WebSocket whose messages nobody reads");
                    self.gone(&client);
                    self.cut(client);
                }
            }
        }
    }

    /// A client is gone, and what it has asked for with it.
    pub(crate) fn gone(&self, client: &Client) {
        let mut state = self.lock();
        let open = state.clients.remove(client);
        if let Some(open) = &open {
            for work in &open.behind {
                state.let_go(work.request.body.len());
            }
        }
        if !state.waiting.is_empty() {
            let State { waiting, held, .. } = &mut *state;
            waiting.retain(|work| {
                let stays = work.request.client() != *client;
                if !stays {
                    held.0 -= 1;
                    held.1 -= work.request.body.len();
                }
                stays
            });
        }
        let is_idle = state.is_idle();
        drop(state);
        turns::left();
        if is_idle {
            self.ended.notify_one();
        }
        if let Some(open) = open {
            open.line.leave(ABNORMAL, "");
        }
    }

    fn line(&self, client: &Client) -> Option<Arc<Line>> {
        let state = self.lock();
        state.clients.get(client).map(|open| Arc::clone(&open.line))
    }

    fn cut(&self, client: Client) {
        if let Some(runtime) = self.runtime() {
            soon(runtime, async move {
                if let Err(error) = client.cancel().await {
                    tracing::debug!(%error, "cutting off a client");
                }
            });
        }
    }

    /// Whether so much waits that nothing more should be received.
    pub(crate) fn is_full(&self) -> bool {
        let held = self.lock().held;
        held.0 >= WAITING_MAX || held.1 >= WAITING_BYTES_MAX
    }

    /// Whether anything waits for its turn.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Looks which responses have become streams, and gives their places to others.
    pub(crate) fn look(&self) {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            return;
        }
        let is_stream = |open: &&Open| {
            let begun = open.line.begun();
            begun.is_some_and(|begun| begun.elapsed() >= STREAM_AFTER)
        };
        let open = state.clients.values().filter(is_stream);
        let places = open.filter(|open| open.line.give_place()).count();
        state.running -= places;
        self.start_waiting(&mut state);
    }

    /// No new requests come. What is open ends in its own time, but for WebSockets, which never would.
    pub(crate) fn stop(&self) {
        self.lock().is_stopping = true;
        self.inbox.push(Incoming::Farewell(Farewell::Soon));
    }

    /// What is open has to end.
    pub(crate) fn end(&self, farewell: Farewell) {
        self.inbox.push(Incoming::Farewell(farewell));
    }

    /// Waits until nothing is open and nothing waits.
    pub(crate) async fn idle(&self) {
        while !self.lock().is_idle() {
            self.ended.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn hold(&mut self, bytes: usize) {
        self.held.0 += 1;
        self.held.1 += bytes;
    }

    fn let_go(&mut self, bytes: usize) {
        self.held.0 -= 1;
        self.held.1 -= bytes;
    }

    fn is_idle(&self) -> bool {
        self.open == 0 && self.waiting.is_empty()
    }
}
