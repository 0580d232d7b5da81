//! The request's body on its way to the backend, wherever it comes from, and whose turn it is to move something.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use lurcher::handler::{BodyError, BodyReader, Request, Upload};

/// A request and where its body is.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) body: Given,
}

/// Where the body of a request is.
#[derive(Debug)]
pub(super) enum Given {
    /// It came with the request.
    Here,
    /// In a file.
    Stored(Box<Upload>),
    /// It comes in parts.
    Parts(Box<BodyReader>),
}

impl From<Request> for Job {
    fn from(request: Request) -> Self {
        Self {
            request,
            body: Given::Here,
        }
    }
}

impl From<Upload> for Job {
    fn from(upload: Upload) -> Self {
        Self {
            request: upload.request().clone(),
            body: Given::Stored(Box::new(upload)),
        }
    }
}

/// How far a body is that is read while it is sent.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Something of it was taken since this was asked.
    moved: AtomicBool,
    /// The backend has taken all there is, and the client has to send more.
    awaits_client: AtomicBool,
    /// The backend has it all.
    is_given: AtomicBool,
    /// It did not come to its end.
    has_failed: AtomicBool,
}

impl Progress {
    /// Whether the backend was not silent: it took something, or waits for the client itself.
    pub(super) fn moves(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed) || self.awaits_client.load(Ordering::Relaxed)
    }

    /// Whether the backend has it all.
    pub(super) fn is_given(&self) -> bool {
        self.is_given.load(Ordering::Relaxed)
    }

    /// Whether it did not come to its end, which is not the backend's fault.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }
}

/// A body as the HTTP library takes it.
pub(super) enum Body {
    /// None, or no more of it.
    Empty,
    /// All of it.
    Whole(Bytes),
    /// Piece by piece.
    Read(Box<BodyReader>, Arc<Progress>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl Body {
    pub(super) fn whole(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            Self::Empty
        } else {
            Self::Whole(bytes)
        }
    }

    pub(super) fn read(reader: Box<BodyReader>, progress: &Arc<Progress>) -> Self {
        Self::Read(reader, Arc::clone(progress))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Read(reader, progress) => {
                let polled = reader.poll_next(cx);
                progress
                    .awaits_client
                    .store(polled.is_pending(), Ordering::Relaxed);
                progress.moved.store(true, Ordering::Relaxed);
                let ended = match &polled {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => true,
                    Poll::Ready(Some(Ok(_))) => reader.is_ended(),
                    Poll::Ready(Some(Err(_))) => {
                        progress.has_failed.store(true, Ordering::Relaxed);
                        false
                    }
                };
                if ended {
                    progress.is_given.store(true, Ordering::Relaxed);
                    *this = Self::Empty;
                }
                polled.map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(_) => false,
            Self::Read(reader, _) => reader.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Read(reader, _) => reader
                .remaining()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
