//! The request's body on its way to the backend, and the watch over a backend that moves nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::forward;
use crate::front::answer::Fault;
use crate::front::local::BodyPart;
use crate::http1::BodyFraming;

/// The client is gone, or its body is malformed: the backend must see that the body is cut short.
#[derive(Debug, thiserror::Error)]
#[error("the client's body ended early")]
pub(super) struct Truncated;

/// When something last moved in an exchange, and who is to move next. Shared with what the library calls from its own task.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    /// Milliseconds since then.
    moved: AtomicU64,
    /// The backend has taken all there is of the body, and the client has to send more.
    awaits_client: AtomicBool,
    /// The client sends nothing before the backend tells it to go on.
    awaits_continue: AtomicBool,
    /// The whole body was given to the backend.
    body_given: AtomicBool,
}

impl Progress {
    pub(super) fn new(has_body: bool, expects: bool) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            moved: AtomicU64::new(0),
            awaits_client: AtomicBool::new(false),
            awaits_continue: AtomicBool::new(expects && has_body),
            body_given: AtomicBool::new(!has_body),
        })
    }

    /// Something moved.
    pub(super) fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(now, Ordering::Relaxed);
    }

    /// The backend said something that is no final response yet; `go_on`: the client may send its body.
    pub(super) fn heard(&self, go_on: bool) {
        if go_on {
            self.awaits_continue.store(false, Ordering::Relaxed);
        }
        self.touch();
    }

    /// Whether the whole body was given to the backend.
    pub(super) fn is_body_given(&self) -> bool {
        self.body_given.load(Ordering::Relaxed)
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }

    /// Whether the next thing to happen is the client's: its own deadlines hold then.
    fn is_clients_turn(&self) -> bool {
        self.awaits_client.load(Ordering::Relaxed) && !self.awaits_continue.load(Ordering::Relaxed)
    }

    /// Waits for something from the backend, as long as anything moves.
    ///
    /// # Errors
    ///
    /// When nothing has moved for so long, and it was the backend's turn.
    pub(super) async fn within<T>(
        &self,
        timeout: Option<Duration>,
        future: impl Future<Output = T>,
    ) -> Result<T, Fault> {
        self.touch();
        let Some(timeout) = timeout else {
            return Ok(future.await);
        };
        tokio::pin!(future);
        loop {
            let due = self.last() + timeout;
            tokio::select! {
                biased;
                result = &mut future => return Ok(result),
                () = tokio::time::sleep_until(due) => {}
            }
            if self.is_clients_turn() {
                self.touch();
            } else if self.last() + timeout <= Instant::now() {
                return Err(Fault::Timeout);
            }
        }
    }
}

/// The request's body as the HTTP library takes it.
#[derive(Debug)]
pub(super) struct Body {
    /// `None`: there is none, or it has ended.
    parts: Option<mpsc::Receiver<BodyPart>>,
    /// Bytes to come, if it was said.
    left: Option<u64>,
    progress: Arc<Progress>,
}

impl Body {
    /// A body that comes through a channel; none at all when the framing says so.
    pub(super) fn new(
        framing: BodyFraming,
        parts: mpsc::Receiver<BodyPart>,
        progress: Arc<Progress>,
    ) -> Self {
        match framing {
            BodyFraming::None | BodyFraming::Length(0) => Self::empty(progress),
            BodyFraming::Length(length) => Self {
                parts: Some(parts),
                left: Some(length),
                progress,
            },
            BodyFraming::Chunked => Self {
                parts: Some(parts),
                left: None,
                progress,
            },
        }
    }

    pub(super) fn empty(progress: Arc<Progress>) -> Self {
        Self {
            parts: None,
            left: Some(0),
            progress,
        }
    }

    fn end(&mut self) {
        self.parts = None;
        self.progress.body_given.store(true, Ordering::Relaxed);
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Truncated;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Truncated>>> {
        let this = &mut *self;
        let Some(parts) = &mut this.parts else {
            return Poll::Ready(None);
        };
        let polled = parts.poll_recv(cx);
        this.progress
            .awaits_client
            .store(polled.is_pending(), Ordering::Relaxed);
        let Poll::Ready(part) = polled else {
            return Poll::Pending;
        };
        this.progress.touch();
        Poll::Ready(match part {
            Some(BodyPart::Data(data)) => {
                if let Some(left) = &mut this.left {
                    *left = left.saturating_sub(data.len() as u64);
                    if *left == 0 {
                        this.end();
                    }
                }
                Some(Ok(Frame::data(data)))
            }
            Some(BodyPart::Trailers(mut fields)) => {
                forward::clean_trailers(&mut fields);
                // The library asks for nothing behind them.
                this.end();
                Some(Ok(Frame::trailers(fields)))
            }
            Some(BodyPart::End) => {
                this.end();
                None
            }
            None => Some(Err(Truncated)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
