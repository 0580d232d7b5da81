//! A stored upload that is read while it arrives: a reader behind the server that writes the file.
//!
//! What has come is seen by inotify, the end is told by the server. Which announcements are to be acted on is said in [`super::upload`],
//! whom the end is told to in [`super::body`].

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, Sleep};

use super::body::BodyError;
use super::upload::Upload;
use crate::sys::FileWatch;

/// What is read at a time, in bytes.
const PIECE: usize = 64 << 10;

/// How often it is looked for more where nothing tells of it: network file systems tell nothing of what others write, and a user
/// has 128 watches only. Each look is one job, and finds all that came since, so that this bounds the delay and not the speed.
const PACE: Duration = Duration::from_millis(100);

/// What is known of the end of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The server has said that the file is complete.
    Complete,
    /// It will never be, or nobody will hear of it.
    Gone,
}

/// What lies between the one who hears of the end and the one who reads.
#[derive(Debug, Default)]
pub(super) struct Tail(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    end: Option<End>,
    waker: Option<Waker>,
}

impl Tail {
    pub(super) fn complete(&self) {
        self.end(End::Complete);
    }

    pub(super) fn gone(&self) {
        self.end(End::Gone);
    }

    fn end(&self, end: End) {
        let mut state = self.lock();
        state.end.get_or_insert(end);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn is_complete(&self) -> bool {
        self.lock().end == Some(End::Complete)
    }

    /// The end, or to be woken by it.
    fn look(&self, cx: &Context<'_>) -> Option<End> {
        let mut state = self.lock();
        if state.end.is_none() {
            state.waker = Some(cx.waker().clone());
        }
        state.end
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a look into the file has found.
struct Looked {
    file: Arc<fs::File>,
    piece: Bytes,
    /// It still has a name.
    is_linked: bool,
}

/// Reads so many bytes of a growing file, and no more: a Mongrel2 may write a client's next request behind them.
///
/// The last piece is held back until the server has said that the file is complete. So whoever has read everything answers a whole
/// request, and the file, which is the handler's from then on, is not left behind.
pub(super) struct Arriving {
    upload: Upload,
    tail: Arc<Tail>,
    at: u64,
    length: u64,
    /// None before the first look.
    file: Option<Arc<fs::File>>,
    job: Option<JoinHandle<Result<Looked, BodyError>>>,
    /// The file was complete before that look.
    was_complete: bool,
    /// Nothing new was there.
    rests: bool,
    watch: Watch,
    pace: Option<Pin<Box<Sleep>>>,
    last: Option<Bytes>,
}

enum Watch {
    /// Nothing had to be waited for.
    Not,
    By(FileWatch),
    /// The system watches no more.
    Never,
}

impl Arriving {
    pub(super) fn new(upload: Upload, tail: Arc<Tail>, length: u64) -> Self {
        Self {
            upload,
            tail,
            at: 0,
            length,
            file: None,
            job: None,
            was_complete: false,
            rests: false,
            watch: Watch::Not,
            pace: None,
            last: None,
        }
    }

    /// Whether everything was read.
    pub(super) fn is_ended(&self) -> bool {
        self.at == self.length && self.last.is_none()
    }

    /// Whether the client still sends, as far as is known.
    pub(super) fn is_left(&self) -> bool {
        !self.is_ended() && !self.tail.is_complete()
    }

    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BodyError>>> {
        // Before any look, so that what is told meanwhile is not missed.
        let end = self.tail.look(cx);
        if end == Some(End::Gone) {
            return Poll::Ready(Some(Err(BodyError::Gone)));
        }
        loop {
            if self.at == self.length {
                return match end {
                    Some(_) => Poll::Ready(self.last.take().map(Ok)),
                    None => Poll::Pending,
                };
            }
            if let Some(job) = &mut self.job {
                let looked = ready!(Pin::new(job).poll(cx));
                self.job = None;
                let looked = looked.map_err(|error| BodyError::File(io::Error::other(error)));
                match looked.flatten() {
                    Ok(looked) => {
                        if let Some(piece) = self.found(looked)? {
                            return Poll::Ready(Some(Ok(piece)));
                        }
                        continue;
                    }
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
            }
            if self.rests && end.is_none() {
                ready!(self.poll_change(cx));
            }
            self.rests = false;
            self.begin_to_look(end.is_some());
        }
    }

    fn begin_to_look(&mut self, is_complete: bool) {
        self.was_complete = is_complete;
        let (file, upload, at) = (self.file.clone(), self.upload.clone(), self.at);
        let rest = usize::try_from(self.length - at).unwrap_or(usize::MAX);
        let mut buffer = vec![0; PIECE.min(rest)];
        self.job = Some(spawn_blocking(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(upload.open_now()?),
            };
            let read = loop {
                match file.read_at(&mut buffer, at) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => break read.map_err(BodyError::File)?,
                }
            };
            let is_linked = read > 0 || file.metadata().map_err(BodyError::File)?.nlink() > 0;
            buffer.truncate(read);
            if read < PIECE / 2 {
                buffer.shrink_to_fit();
            }
            Ok(Looked {
                file,
                piece: buffer.into(),
                is_linked,
            })
        }));
    }

    /// What a look has found, but for the last piece.
    fn found(&mut self, looked: Looked) -> Result<Option<Bytes>, BodyError> {
        let Looked {
            file,
            piece,
            is_linked,
        } = looked;
        let file = self.file.insert(file);
        if piece.is_empty() {
            if self.was_complete {
                return Err(BodyError::File(io::ErrorKind::UnexpectedEof.into()));
            }
            if !is_linked && !self.tail.is_complete() {
                // A server removes what it could not complete.
                return Err(BodyError::Gone);
            }
            // One that is watched from here on may have grown before that.
            self.rests = !matches!(self.watch, Watch::Not);
            if !self.rests {
                self.watch = match FileWatch::new(file.as_fd()) {
                    Ok(watch) => Watch::By(watch),
                    Err(error) => {
                        tracing::debug!(%error, "watching an upload: looking now and then");
                        Watch::Never
                    }
                };
            }
            return Ok(None);
        }
        self.at += piece.len() as u64;
        if self.at == self.length {
            self.last = Some(piece);
            // There is nothing more to be seen of the file.
            self.watch = Watch::Never;
            return Ok(None);
        }
        Ok(Some(piece))
    }

    /// Waits until the file may have grown, or is gone.
    fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Watch::By(watch) = &mut self.watch {
            match watch.poll_changed(cx) {
                Poll::Ready(Ok(())) => {
                    self.pace = None;
                    return Poll::Ready(());
                }
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "watching an upload: looking now and then");
                    self.watch = Watch::Never;
                }
                Poll::Pending => {}
            }
        }
        let pace = self
            .pace
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + PACE)));
        ready!(pace.as_mut().poll(cx));
        self.pace = None;
        Poll::Ready(())
    }
}
