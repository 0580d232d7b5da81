//! REQ: asks one peer and waits for its answer, one question at a time. No retries.

use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::io::unix::AsyncFd;

use super::{Context, Descriptor, OpenError, Opened, Options, is_again, open};
use crate::endpoint::Endpoint;

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The socket could not be opened again after an abandoned question.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// libzmq said no.
    #[error("asking {endpoint}")]
    Io {
        /// Who was asked.
        endpoint: Endpoint,
        /// Why it failed.
        #[source]
        source: io::Error,
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

#[derive(Debug)]
struct Line {
    events: AsyncFd<Descriptor>,
    socket: Mutex<Socket>,
}

struct Socket(zmq::Socket);

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

impl Requester {
    /// Opens a REQ socket and connects it.
    ///
    /// # Errors
    ///
    /// When the endpoint is of no use or descriptors have run out; not when nobody is there.
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
    /// # Cancel safety
    ///
    /// The answer to a dropped question is never mistaken for the next one's: the socket is opened anew.
    pub async fn ask(&mut self, question: &[u8]) -> Result<Vec<u8>, RequestError> {
        // Kept out of `self` until the answer is there, so that an abandoned question takes its socket with it.
        let mut line = match self.line.take() {
            Some(line) => line,
            None => self.open()?,
        };
        let fail = |source| RequestError::Io {
            endpoint: self.endpoint.clone(),
            source,
        };
        line.retry(|socket| socket.send(question, zmq::DONTWAIT))
            .await
            .map_err(fail)?;
        let answer = line
            .retry(|socket| socket.recv_multipart(zmq::DONTWAIT))
            .await
            .map_err(fail)?;
        self.line = Some(line);
        Ok(answer.into_iter().next().unwrap_or_default())
    }

    fn open(&self) -> Result<Line, OpenError> {
        let Opened { events, socket } = open(
            &self.context,
            zmq::REQ,
            &self.endpoint,
            &self.options,
            |_| Ok(()),
        )?;
        Ok(Line {
            events,
            socket: Mutex::new(Socket(socket)),
        })
    }
}

impl Line {
    /// Calls libzmq until it does not say `EAGAIN`, awaiting the descriptor in between.
    async fn retry<T>(
        &mut self,
        mut call: impl FnMut(&zmq::Socket) -> zmq::Result<T>,
    ) -> io::Result<T> {
        loop {
            {
                let Socket(socket) = self
                    .socket
                    .get_mut()
                    .unwrap_or_else(PoisonError::into_inner);
                match call(socket) {
                    Ok(done) => return Ok(done),
                    Err(zmq::Error::EINTR) => continue,
                    Err(error) if !is_again(error) => return Err(error.into()),
                    Err(_) => {}
                }
                // A send that says EAGAIN may not have looked at libzmq's commands; reading the events does, and only when
                // they say no too will the descriptor tell of a change.
                if socket.get_events()?.intersects(zmq::POLLIN | zmq::POLLOUT) {
                    continue;
                }
            }
            self.events.readable().await?.clear_ready();
        }
    }
}
