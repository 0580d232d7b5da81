//! One client, as the receiving thread and the event loop both know it: what has come for it, and whether it is still there.
//! It knows nothing of Python.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;
use std::time::Instant;

use lurcher::handler::{Client, Frame};

use tokio::sync::Notify;

use super::inbox::{Inbox, Incoming};

/// Messages of one WebSocket that the application has not taken yet.
const FRAMES_MAX: usize = 1024;

/// Their bytes, beyond one message that always fits: as much as a server keeps for a client in the other direction.
const FRAME_BYTES_MAX: usize = 16 << 20;

/// Close code: the end came without a close frame (RFC 6455 7.4.1).
pub(crate) const ABNORMAL: u16 = 1006;

/// Close code: the close frame had none.
pub(crate) const NO_CODE: u16 = 1005;

/// How a client's part has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone {
    /// The close code of a WebSocket.
    pub(crate) code: u16,
    pub(crate) reason: String,
    /// It has said so by a close frame, which wants an answer.
    pub(crate) is_closed: bool,
}

/// A client with an open request.
pub(crate) struct Line {
    client: Client,
    inbox: Arc<Inbox>,
    state: Mutex<State>,
    /// It has gone.
    ended: Notify,
}

#[derive(Default)]
struct State {
    gone: Option<Gone>,
    frames: VecDeque<Frame>,
    frame_bytes: usize,
    /// News of it are in the inbox.
    is_told: bool,
    /// It takes one of the places that `--concurrency` gives.
    counts: bool,
    /// When its response has begun.
    begun: Option<Instant>,
    /// The application has returned.
    is_left: bool,
    /// Somebody still sends what it has said.
    is_sending: bool,
}

impl Line {
    pub(crate) fn new(client: Client, inbox: Arc<Inbox>, counts: bool) -> Self {
        let state = State {
            counts,
            ..State::default()
        };
        Self {
            client,
            inbox,
            state: Mutex::new(state),
            ended: Notify::new(),
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Lets the loop look at this client again.
    pub(crate) fn tell(self: &Arc<Self>) {
        if !std::mem::replace(&mut self.lock().is_told, true) {
            self.inbox.push(Incoming::News(Arc::clone(self)));
        }
    }

    /// The loop looks.
    pub(crate) fn told(&self) {
        self.lock().is_told = false;
    }

    /// The client has gone, or is to be treated so. The first reason stays.
    pub(crate) fn leave(self: &Arc<Self>, code: u16, reason: &str) {
        self.end(Gone {
            code,
            reason: reason.to_owned(),
            is_closed: false,
        });
    }

    /// Its WebSocket is closed by this frame. What came before it is still to be taken.
    pub(crate) fn close(self: &Arc<Self>, frame: &Frame) {
        let (code, reason) = frame.close_code().unwrap_or((NO_CODE, ""));
        self.end(Gone {
            code,
            reason: reason.to_owned(),
            is_closed: true,
        });
    }

    fn end(self: &Arc<Self>, gone: Gone) {
        self.lock().gone.get_or_insert(gone);
        self.ended.notify_one();
        self.tell();
    }

    /// Waits until it has gone.
    pub(crate) async fn ended(&self) {
        while !self.is_gone() {
            self.ended.notified().await;
        }
    }

    /// Whether it has closed its WebSocket, and with which code.
    pub(crate) fn closed(&self) -> Option<u16> {
        let state = self.lock();
        state
            .gone
            .as_ref()
            .filter(|gone| gone.is_closed)
            .map(|gone| gone.code)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.lock().gone.is_some()
    }

    /// How it has gone, if it has, and all that it has sent before was taken.
    pub(crate) fn gone(&self) -> Option<Gone> {
        let state = self.lock();
        state.gone.clone().filter(|_| state.frames.is_empty())
    }

    /// Adds a message of its WebSocket; false when the application takes them too slowly, since the client cannot be made to wait.
    pub(crate) fn push(self: &Arc<Self>, frame: Frame) -> bool {
        let mut state = self.lock();
        if state.gone.is_some() {
            return true;
        }
        let bytes = frame.payload().len();
        let is_full = state.frames.len() >= FRAMES_MAX
            || (state.frame_bytes > 0 && state.frame_bytes.saturating_add(bytes) > FRAME_BYTES_MAX);
        if is_full {
            return false;
        }
        state.frame_bytes += bytes;
        state.frames.push_back(frame);
        drop(state);
        self.tell();
        true
    }

    /// The next message.
    pub(crate) fn frame(&self) -> Option<Frame> {
        let mut state = self.lock();
        let frame = state.frames.pop_front()?;
        state.frame_bytes -= frame.payload().len();
        Some(frame)
    }

    /// Something of the response leaves.
    pub(crate) fn begin(&self) {
        let mut state = self.lock();
        if state.begun.is_none() {
            state.begun = Some(Instant::now());
        }
    }

    /// Since when its response goes on.
    pub(crate) fn begun(&self) -> Option<Instant> {
        self.lock().begun
    }

    /// It gives its place back; true when it had one.
    pub(crate) fn give_place(&self) -> bool {
        std::mem::replace(&mut self.lock().counts, false)
    }

    /// What is said to it leaves by itself from now on.
    pub(crate) fn sends(&self) {
        self.lock().is_sending = true;
    }

    /// All that was said has left; true when that was the last of it.
    pub(crate) fn sent(&self) -> bool {
        let mut state = self.lock();
        state.is_sending = false;
        state.is_left
    }

    /// The application has returned; true when nothing is left of it.
    pub(crate) fn left(&self) -> bool {
        let mut state = self.lock();
        state.is_left = true;
        !state.is_sending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the loop polls and has to wait for calls it so.
impl Wake for Line {
    fn wake(self: Arc<Self>) {
        self.tell();
    }
}
