//! PULL: takes what one server pushes. Fair use between servers and the meaning of messages are the owner's business.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::task::{Context as Waker, Poll, ready};

use bytes::Bytes;
use tokio::io::unix::AsyncFd;

use super::{Context, Descriptor, OpenError, Opened, Options, is_again, open};
use crate::endpoint::Endpoint;

/// Bytes after which a batch is full: what was taken out of libzmq is no longer bounded by its high-water mark.
const BATCH_BYTES: usize = 1 << 20;

/// Messages up to this size are copied out of libzmq's buffers (one allocation, 8 KiB of receive buffer not pinned);
/// larger ones are kept where they are.
const COPY_BYTES_MAX: usize = 2048;

/// A PULL socket connected to one server.
#[derive(Debug)]
pub struct Receiver {
    events: AsyncFd<Descriptor>,
    /// Never contended: the lock only makes the type `Sync`.
    socket: Mutex<Socket>,
    endpoint: Endpoint,
    /// libzmq has said `EAGAIN` since readiness was cleared: the next thing to do is to await the descriptor.
    drained: bool,
    /// The last frame announced another one.
    in_parts: bool,
}

struct Socket {
    zmq: zmq::Socket,
    message: zmq::Message,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

/// A message that stays in libzmq's memory.
struct Kept(zmq::Message);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Receiver {
    /// Opens a PULL socket and connects it; libzmq goes on trying for ever while nobody is there.
    ///
    /// # Errors
    ///
    /// When the endpoint is of no use (no such interface, path too long) or descriptors have run out.
    pub fn connect(
        context: &Context,
        endpoint: &Endpoint,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let Opened { events, socket } = open(context, zmq::PULL, endpoint, options, |_| Ok(()))?;
        Ok(Self {
            events,
            socket: Mutex::new(Socket {
                zmq: socket,
                message: zmq::Message::new(),
            }),
            endpoint: endpoint.clone(),
            drained: false,
            in_parts: false,
        })
    }

    /// Where it is connected to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether the last look found nothing more.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Receives one message.
    ///
    /// # Cancel safety
    ///
    /// Safe: a message is taken only by a future that returns it.
    pub async fn recv(&mut self) -> io::Result<Bytes> {
        let mut taken = None;
        std::future::poll_fn(|cx| self.poll_recv_many(cx, 1, &mut |message| taken = Some(message)))
            .await?;
        taken.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Receives what is there, at least one message and at most `max` (or about a mebibyte), in order.
    ///
    /// When `Pending`, nothing was taken, and the task is woken when there may be something.
    pub fn poll_recv_many(
        &mut self,
        cx: &mut Waker<'_>,
        max: usize,
        sink: &mut dyn FnMut(Bytes),
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.drained {
                ready!(self.events.poll_read_ready(cx))?.clear_ready();
                self.drained = false;
            }
            let (mut count, mut bytes) = (0, 0);
            while count < max && bytes < BATCH_BYTES {
                match self.try_recv() {
                    Ok(Some(message)) => {
                        count += 1;
                        bytes += message.len();
                        sink(message);
                    }
                    Ok(None) => break,
                    // What was taken counts; the error will come again.
                    Err(_) if count > 0 => break,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
        }
    }

    /// Takes a message if one is there.
    pub fn try_recv(&mut self) -> io::Result<Option<Bytes>> {
        let socket = self
            .socket
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            match socket.zmq.recv(&mut socket.message, zmq::DONTWAIT) {
                Ok(()) => {}
                Err(zmq::Error::EINTR) => continue,
                Err(error) if is_again(error) => {
                    self.drained = true;
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
            let more = socket.message.get_more();
            let single = !more && !self.in_parts;
            self.in_parts = more;
            if !single {
                // Nobody who speaks this protocol sends several parts.
                tracing::debug!(endpoint = %self.endpoint, "dropped a part of a message in several parts");
                continue;
            }
            if socket.message.len() <= COPY_BYTES_MAX {
                return Ok(Some(Bytes::copy_from_slice(&socket.message)));
            }
            let message = std::mem::replace(&mut socket.message, zmq::Message::new());
            return Ok(Some(Bytes::from_owner(Kept(message))));
        }
    }
}
