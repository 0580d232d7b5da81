//! What goes to a client piece by piece: written at once where that can be, else in the receiving thread, in order. It knows Python
//! only as the owner of bytes.
//!
//! What is written and does not leave is held here, and whoever writes is told when it is too much.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use lurcher::handler::{BodyWriter, ReplyError};
use pyo3::pybacked::PyBackedBytes;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;

use super::desk::Desk;
use super::line::Line;
use super::soon::{soon, try_now};

/// Bytes that may wait here before whoever writes has to, as other servers have it.
const HIGH_WATER: usize = 64 << 10;

/// Whoever waits goes on when no more than this is left.
const LOW_WATER: usize = 16 << 10;

/// The size of the pieces of a file.
const FILE_PIECE: usize = 64 << 10;

/// Something that is sent as it is.
pub(crate) type Sending = Pin<Box<dyn Future<Output = Result<(), ReplyError>> + Send>>;

/// What is to be done next.
pub(crate) enum Step {
    Do(Sending),
    /// What follows is written here. By itself it lets the head leave.
    Stream(Box<BodyWriter>),
    Data(PyBackedBytes),
    Frame(Vec<u8>),
    File(std::fs::File),
    /// What was written leaves before what comes next is waited for.
    Flush,
    Finish(Option<HeaderMap>),
    /// What was written still arrives, and then the connection ends.
    Abandon,
    /// The client gets nothing more, and is told so.
    Cut,
}

impl Step {
    fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Frame(frame) => frame.len(),
            _ => 0,
        }
    }
}

/// The way to one client.
pub(crate) struct Outlet {
    line: Arc<Line>,
    desk: Arc<Desk>,
    state: Mutex<State>,
    /// There is more to do.
    more: Notify,
}

#[derive(Default)]
struct State {
    steps: VecDeque<Step>,
    /// At home, where nobody writes.
    writer: Option<Box<BodyWriter>>,
    /// Somebody works on the steps.
    is_busy: bool,
    /// Bytes in steps, and of the one that is being done.
    bytes: usize,
    /// Somebody waits for room.
    is_awaited: bool,
    has_failed: bool,
}

/// Sends a whole response, of which nothing is left to do here.
pub(crate) fn whole(desk: &Arc<Desk>, line: &Arc<Line>, sending: Sending) {
    let Some(runtime) = desk.runtime() else {
        return;
    };
    line.sends();
    let (desk, line) = (Arc::clone(desk), Arc::clone(line));
    soon(runtime, async move {
        if let Err(error) = sending.await {
            tell(&error, &line);
        }
        if line.sent() {
            desk.done(&line);
        }
    });
}

/// Logs what went wrong.
pub(crate) fn tell(error: &ReplyError, line: &Line) {
    if !matches!(error, ReplyError::ClientGone) {
        tracing::warn!(client = ?line.client(), %error, "could not answer");
    }
}

impl Outlet {
    pub(crate) fn new(desk: &Arc<Desk>, line: &Arc<Line>) -> Arc<Self> {
        Arc::new(Self {
            line: Arc::clone(line),
            desk: Arc::clone(desk),
            state: Mutex::default(),
            more: Notify::new(),
        })
    }

    /// Does this behind all that was to be done before; false when the client is gone.
    pub(crate) fn put(self: &Arc<Self>, steps: impl IntoIterator<Item = Step>) -> bool {
        let mut state = self.lock();
        if state.has_failed {
            return false;
        }
        for step in steps {
            state.bytes += step.len();
            state.steps.push_back(step);
        }
        if std::mem::replace(&mut state.is_busy, true) {
            drop(state);
            self.more.notify_one();
            return true;
        }
        drop(state);
        let Some(runtime) = self.desk.runtime() else {
            return false;
        };
        self.line.sends();
        let mut task: super::soon::Task = Box::pin(Arc::clone(self).run());
        if !try_now(runtime, &mut task) {
            drop(runtime.spawn(task));
        }
        !self.lock().has_failed
    }

    /// Whether whoever writes should wait now; he is told when not any more.
    pub(crate) fn is_full(&self) -> bool {
        let mut state = self.lock();
        let limit = if state.is_awaited {
            LOW_WATER
        } else {
            HIGH_WATER
        };
        state.is_awaited = !state.has_failed && state.bytes > limit;
        state.is_awaited
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.lock().has_failed
    }

    /// Ends the response before its end, behind all that was sent.
    pub(crate) fn abandon(self: &Arc<Self>) {
        self.put([Step::Abandon]);
    }

    /// Leaves what is not done yet, and cuts the client off.
    pub(crate) fn cut(self: &Arc<Self>) {
        {
            let mut state = self.lock();
            state.steps.clear();
            state.bytes = 0;
        }
        self.put([Step::Cut]);
    }

    async fn run(self: Arc<Self>) {
        let mut writer = self.lock().writer.take();
        // Whether anything was done that a flush would bring on its way, and none has since: one that gives way to what is told twice
        // must be made up for.
        let mut flushes = false;
        loop {
            while let Some(step) = self.next() {
                let bytes = step.len();
                let done = self.done(step, &mut writer).await;
                if let Err(error) = done {
                    tell(&error, &self.line);
                    self.fail();
                    drop(writer);
                    return self.rest(None);
                }
                self.count(bytes);
                flushes = true;
            }
            if let Some(open) = &mut writer
                && flushes
            {
                let flushed = tokio::select! {
                    biased;
                    flushed = open.flush() => flushed,
                    () = self.more.notified() => continue,
                };
                if let Err(error) = flushed {
                    tell(&error, &self.line);
                    self.fail();
                    drop(writer);
                    return self.rest(None);
                }
                flushes = false;
            }
            match self.go_home(writer) {
                None => return,
                Some(back) => writer = back,
            }
        }
    }

    async fn done(
        &self,
        step: Step,
        writer: &mut Option<Box<BodyWriter>>,
    ) -> Result<(), ReplyError> {
        let bytes: &[u8] = match &step {
            Step::Data(data) => data,
            Step::Frame(frame) => frame,
            _ => &[],
        };
        if !bytes.is_empty() {
            return match writer {
                Some(writer) => writer.write(bytes).await,
                None => Err(ReplyError::ClientGone),
            };
        }
        match step {
            Step::Data(_) | Step::Frame(_) => Ok(()),
            Step::Do(sending) => sending.await,
            Step::Stream(stream) => {
                *writer = Some(stream);
                Ok(())
            }
            Step::File(file) => {
                let mut file = tokio::fs::File::from_std(file);
                let mut piece = vec![0; FILE_PIECE];
                let Some(writer) = writer else {
                    return Err(ReplyError::ClientGone);
                };
                loop {
                    let read = file.read(&mut piece).await?;
                    match piece.get(..read) {
                        Some(piece) if read > 0 => writer.write(piece).await?,
                        _ => return Ok(()),
                    }
                }
            }
            Step::Flush => match writer {
                Some(writer) => writer.flush().await,
                None => Ok(()),
            },
            Step::Finish(trailers) => match (writer.take(), trailers) {
                (Some(writer), Some(trailers)) => writer.finish_with_trailers(&trailers).await,
                (Some(writer), None) => writer.finish().await,
                (None, _) => Ok(()),
            },
            Step::Abandon => {
                if let Some(writer) = writer.take() {
                    writer.abandon();
                }
                Ok(())
            }
            Step::Cut => {
                drop(writer.take());
                Ok(())
            }
        }
    }

    fn next(&self) -> Option<Step> {
        self.lock().steps.pop_front()
    }

    /// So many bytes have left.
    fn count(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
        if state.is_awaited && state.bytes <= LOW_WATER {
            state.is_awaited = false;
            drop(state);
            self.line.tell();
        }
    }

    /// Nothing more can be done.
    fn fail(&self) {
        let mut state = self.lock();
        state.has_failed = true;
        state.steps.clear();
        state.bytes = 0;
        drop(state);
        self.line.tell();
    }

    /// Leaves the writer for the next time, unless there is more to do: then it comes back.
    #[expect(clippy::option_option, reason = "more to do, perhaps without a writer")]
    fn go_home(&self, writer: Option<Box<BodyWriter>>) -> Option<Option<Box<BodyWriter>>> {
        let mut state = self.lock();
        if !state.steps.is_empty() {
            return Some(writer);
        }
        state.writer = writer;
        state.is_busy = false;
        drop(state);
        if self.line.sent() {
            self.desk.done(&self.line);
        }
        None
    }

    fn rest(&self, writer: Option<Box<BodyWriter>>) {
        drop(self.go_home(writer));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
