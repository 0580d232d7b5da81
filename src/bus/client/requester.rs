//! REQ: asks one peer and waits for its answer, one question at a time. No retries.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;

use super::shared::{Core, Habits, State};
use super::{Context, OpenError, Options, dead, open};
use crate::endpoint::Endpoint;
use crate::zmtp::SocketType;

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The socket could not be opened again after an abandoned question.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The runtime in which the socket was opened has ended.
    #[error("asking {endpoint}")]
    Io {
        /// Who was asked.
        endpoint: Endpoint,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// A REQ socket connected to one peer.
#[derive(Debug)]
pub struct Requester {
    context: Context,
    endpoint: Endpoint,
    options: Options,
    line: Option<Line>,
}

/// An open socket, closed when it is dropped.
#[derive(Debug)]
struct Line(Arc<Core>);

impl Drop for Line {
    fn drop(&mut self) {
        self.0.close(None);
    }
}

impl Requester {
    /// Opens a REQ socket and connects it. Needs a runtime around it.
    ///
    /// # Errors
    ///
    /// When the endpoint is of no use; not when nobody is there.
    pub fn connect(
        context: &Context,
        endpoint: &Endpoint,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let mut requester = Self {
            context: context.clone(),
            endpoint: endpoint.clone(),
            options: options.clone(),
            line: None,
        };
        requester.line = Some(requester.open()?);
        Ok(requester)
    }

    /// Sends a question and returns the first part of the answer. Waits for ever while nobody is there: use a timeout.
    ///
    /// # Errors
    ///
    /// [`RequestError`] says what was done and why it failed.
    ///
    /// # Cancel safety
    ///
    /// The answer to a dropped question is never mistaken for the next one's: the socket is opened anew.
    pub async fn ask(&mut self, question: &[u8]) -> Result<Vec<u8>, RequestError> {
        // Kept out of `self` until the answer is there, so that an abandoned question takes its socket with it.
        let line = match self.line.take() {
            Some(line) => line,
            None => self.open()?,
        };
        let Line(core) = &line;
        let question = Bytes::copy_from_slice(question);
        // An empty frame ends the envelope, which is all that there is of it.
        core.with(
            |State { links, hub }| match links.iter_mut().find(|link| link.is_ready()) {
                Some(link) => link.send_frames(&[b""], question, hub, core),
                None => hub.early.push_back(vec![Bytes::new(), question]),
            },
        );
        let answer = poll_fn(|cx| {
            core.with(|state| {
                while let Some(frames) = state.take_talk(core) {
                    // As in libzmq, what is no answer is dropped.
                    if let [envelope, answer, ..] = &frames[..]
                        && envelope.is_empty()
                    {
                        return Poll::Ready(Ok(answer.to_vec()));
                    }
                }
                if state.hub.is_dead {
                    return Poll::Ready(Err(dead()));
                }
                state.hub.owner = Some(cx.waker().clone());
                Poll::Pending
            })
        });
        let answer = answer.await.map_err(|source| RequestError::Io {
            endpoint: self.endpoint.clone(),
            source,
        })?;
        self.line = Some(line);
        Ok(answer)
    }

    fn open(&self) -> Result<Line, OpenError> {
        let habits = Habits {
            role: SocketType::Req,
            pause: PAUSE,
            is_once: false,
            patience: Duration::ZERO,
        };
        Ok(Line(open(
            &self.context,
            &self.endpoint,
            &self.options,
            habits,
        )?))
    }
}
