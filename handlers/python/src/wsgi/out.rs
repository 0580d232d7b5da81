//! The body of a response on its way: what an application has produced leaves at once, and it waits when its client is behind. It
//! knows nothing of heads and applications.

use lurcher::handler::{BodyWriter, ReplyError};
use pyo3::prelude::*;
use tokio::sync::oneshot;

use crate::wait;

/// A writer, and who has it.
pub(super) struct Out(State);

enum State {
    Here(Box<BodyWriter>),
    /// The runtime's, which flushes it when the server may be sent another message: a Mongrel2 drops clients for which it has many.
    Flushing {
        stop: oneshot::Sender<()>,
        back: oneshot::Receiver<Box<BodyWriter>>,
    },
    /// Lost with an error.
    Gone,
}

impl Out {
    pub(super) fn new(writer: BodyWriter) -> Self {
        Self(State::Here(Box::new(writer)))
    }

    /// Sends a piece, and waits while the client is behind. Where a message would be one too many it leaves a little later, and the
    /// next piece may go along.
    pub(super) fn write(
        &mut self,
        py: Python<'_>,
        data: &[u8],
    ) -> PyResult<Result<(), ReplyError>> {
        let Some(mut writer) = self.take(py)? else {
            return Ok(Err(ReplyError::ClientGone));
        };
        let written = wait::until(py, Box::pin(writer.write(data)))?;
        if written.is_ok() {
            self.flush(writer);
        } else {
            // It cuts its client off.
            drop(writer);
        }
        Ok(written)
    }

    /// Ends the body.
    pub(super) fn finish(mut self, py: Python<'_>) -> PyResult<Result<(), ReplyError>> {
        match self.take(py)? {
            Some(writer) => wait::until(py, Box::pin(writer.finish())),
            None => Ok(Err(ReplyError::ClientGone)),
        }
    }

    /// Ends the response before its end, behind all that was sent.
    pub(super) fn abandon(mut self, py: Python<'_>) {
        // A greenlet that is being ended does not wait for it: then the client is cut off.
        if let Ok(Some(writer)) = self.take(py) {
            writer.abandon();
        }
    }

    fn flush(&mut self, mut writer: Box<BodyWriter>) {
        let flushed = {
            let mut flush = std::pin::pin!(writer.flush());
            wait::once(|cx| flush.as_mut().poll(cx)).is_ready()
        };
        if flushed {
            self.0 = State::Here(writer);
            return;
        }
        let (stop, stopped) = oneshot::channel();
        let (give, back) = oneshot::channel();
        wait::spawn(async move {
            tokio::select! {
                // Who comes with more wants to have it back.
                _ = stopped => {}
                // What was wrong is told with the next piece.
                _ = writer.flush() => {}
            }
            drop(give.send(writer));
        });
        self.0 = State::Flushing { stop, back };
    }

    /// The writer, from wherever it is.
    fn take(&mut self, py: Python<'_>) -> PyResult<Option<Box<BodyWriter>>> {
        match std::mem::replace(&mut self.0, State::Gone) {
            State::Here(writer) => Ok(Some(writer)),
            State::Flushing { stop, back } => {
                drop(stop);
                let back = wait::until(py, Box::pin(back))?;
                Ok(back.ok())
            }
            State::Gone => Ok(None),
        }
    }
}
