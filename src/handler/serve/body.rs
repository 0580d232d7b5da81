//! The body of a request as services read it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::message::Asked;
use crate::handler::{BodyError, BodyReader};

/// The body of a request: of a message, which is there whole and is not copied, of an upload that the server has stored in a file
/// (removed when the body is dropped), or of one that it streams, of which more is asked for as it is read.
///
/// Not reading an upload to its end is a way to refuse it: the connection is closed behind the response.
#[derive(Debug)]
pub struct Body {
    reader: BodyReader,
    /// Bytes that may still come.
    left: Option<u64>,
    max: u64,
    /// To be told when a streamed body was read to its end.
    asked: Option<Arc<Asked>>,
}

impl Body {
    pub(super) fn new(reader: BodyReader, max: Option<u64>) -> Self {
        Self {
            reader,
            left: max,
            max: max.unwrap_or(u64::MAX),
            asked: None,
        }
    }

    /// One that the server streams.
    pub(super) fn streamed(reader: BodyReader, max: Option<u64>, asked: Arc<Asked>) -> Self {
        let mut body = Self::new(reader, max);
        asked.streams();
        body.asked = Some(asked);
        body.tell_end();
        body
    }

    fn tell_end(&mut self) {
        if self.reader.is_ended()
            && let Some(asked) = self.asked.take()
        {
            asked.read();
        }
    }

    pub(super) fn empty() -> Self {
        Self::new(Bytes::new().into(), None)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(piece) = ready!(self.reader.poll_next(cx)) else {
            self.tell_end();
            return Poll::Ready(None);
        };
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                // It has ended, but not been read.
                self.asked = None;
                return Poll::Ready(Some(Err(error)));
            }
        };
        if let Some(left) = self.left {
            let Some(left) = left.checked_sub(piece.len() as u64) else {
                let max = usize::try_from(self.max).unwrap_or(usize::MAX);
                // The rest is of no use.
                self.asked = None;
                self.reader = Bytes::new().into();
                return Poll::Ready(Some(Err(BodyError::TooLarge { max })));
            };
            self.left = Some(left);
        }
        self.tell_end();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.reader.is_ended()
    }

    fn size_hint(&self) -> SizeHint {
        self.reader
            .remaining()
            .map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}
