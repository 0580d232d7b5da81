//! PULL: takes what one server pushes. Fair use between servers and the meaning of messages are the owner's business.

use std::io;
use std::os::fd::{AsFd as _, RawFd};
use std::sync::{Mutex, PoisonError};
use std::task::{Context as Waker, Poll, ready};

use bytes::Bytes;
use tokio::io::unix::AsyncFd;

use super::monitor::{Change, Monitor};
use super::{Context, Descriptor, OpenError, Opened, Options, is_again, open, watch};
use crate::endpoint::{Endpoint, Mode, Transport};
use crate::sys;

/// Bytes after which a batch is full: what was taken out of libzmq is no longer bounded by its high-water mark.
const BATCH_BYTES: usize = 1 << 20;

/// Messages up to this size are copied out of libzmq's buffers (one allocation, 8 KiB of receive buffer not pinned);
/// larger ones are kept where they are.
const COPY_BYTES_MAX: usize = 2048;

/// A PULL socket connected to one server.
#[derive(Debug)]
pub struct Receiver {
    events: AsyncFd<Descriptor>,
    /// Ready when the connection has come or gone and nobody has looked yet.
    changes: Option<AsyncFd<Descriptor>>,
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
    /// Tells of connections; none where the socket is bound and may have several.
    monitor: Option<Monitor>,
    /// The descriptor of the connection, while there is one.
    link: Option<RawFd>,
    /// Connections lost so far.
    losses: u64,
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
        let is_bound = endpoint.mode == Some(Mode::Bind);
        let mut monitor = None;
        let Opened { events, socket } = open(context, zmq::PULL, endpoint, options, |socket| {
            if !is_bound {
                monitor = Some(Monitor::of(context, socket)?);
            }
            Ok(())
        })?;
        let changes = monitor
            .as_ref()
            .map(|monitor: &Monitor| watch(monitor.socket()))
            .transpose();
        let changes = match changes {
            Ok(changes) => changes,
            Err(source) => {
                drop(events);
                let (doing, endpoint) = ("watching the connection to", endpoint.clone());
                return Err(OpenError {
                    doing,
                    endpoint,
                    source,
                });
            }
        };
        Ok(Self {
            events,
            changes,
            socket: Mutex::new(Socket {
                zmq: socket,
                monitor,
                link: None,
                losses: 0,
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
        loop {
            std::future::poll_fn(|cx| {
                self.poll_recv_many(cx, 1, &mut |message| taken = Some(message))
            })
            .await?;
            if let Some(message) = taken.take() {
                return Ok(message);
            }
        }
    }

    /// Receives what is there, at least one message and at most `max` (or about a mebibyte), in order.
    ///
    /// When `Pending`, nothing was taken, and the task is woken when there may be something. No message at all means that the
    /// connection has come or gone.
    pub fn poll_recv_many(
        &mut self,
        cx: &mut Waker<'_>,
        max: usize,
        sink: &mut dyn FnMut(Bytes),
    ) -> Poll<io::Result<usize>> {
        let changed = self.poll_changes(cx)?;
        loop {
            if self.drained {
                if changed {
                    // Without having awaited the descriptor: it is looked at in the next call.
                    return Poll::Ready(Ok(0));
                }
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

    /// Takes note of connections that have come or gone; says whether any has.
    fn poll_changes(&mut self, cx: &mut Waker<'_>) -> io::Result<bool> {
        let mut changed = false;
        while let Some(changes) = &self.changes
            && let Poll::Ready(ready) = changes.poll_read_ready(cx)
        {
            ready?.clear_ready();
            changed |= self.look()?;
        }
        Ok(changed)
    }

    fn look(&mut self) -> io::Result<bool> {
        let socket = self
            .socket
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        while let Some(monitor) = &socket.monitor
            && let Some(change) = monitor.next()?
        {
            changed = true;
            match change {
                Change::Up(link) => socket.link = Some(link),
                Change::Down => {
                    socket.link = None;
                    socket.losses += 1;
                }
            }
        }
        Ok(changed)
    }

    /// Whether there is a connection, as far as was seen; `None` where that cannot be told, because the socket is bound.
    pub fn is_connected(&mut self) -> Option<bool> {
        self.changes.as_ref()?;
        // A broken monitor tells nothing new; the socket itself will say so.
        drop(self.look());
        let socket = self
            .socket
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        Some(socket.link.is_some())
    }

    /// Connections lost so far.
    pub fn losses(&mut self) -> u64 {
        self.socket
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .losses
    }

    /// Ends our direction of the connection, on which nothing is ever said, so that a libzmq at the other end gives it up: it writes
    /// nothing more, what it had written arrives, and then the connection is lost. To be closed then, before it connects again.
    ///
    /// What the other end had queued and not written is lost, so this is done only when everything that has arrived was received:
    /// then it has no reason to queue. False when there is more, no connection, or none that can be told.
    pub fn end_sending(&mut self) -> io::Result<bool> {
        self.look()?;
        let drained = self.drained;
        let socket = self
            .socket
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(link) = socket.link.filter(|_| drained) else {
            return Ok(false);
        };
        let losses = socket.losses;
        let endpoint = &self.endpoint.transport;
        let shared = sys::share_socket(link, |peer| match endpoint {
            Transport::Tcp { port, .. } => peer
                .as_socket()
                .is_some_and(|peer| Some(peer.port()) == *port),
            Transport::Ipc { path } => peer
                .as_pathname()
                .is_none_or(|peer| peer.as_os_str() == path.as_str()),
            Transport::Inproc { .. } => false,
        })?;
        // libzmq tells of the end of a connection before it closes the descriptor. While it has told of none, the number was not
        // yet another's when it was shared.
        self.look()?;
        if self.losses() != losses {
            return Ok(false);
        }
        let Some(shared) = shared else {
            return Ok(false);
        };
        if sys::unread_bytes(shared.as_fd())? > 0 {
            return Ok(false);
        }
        sys::end_sending(shared.as_fd())?;
        Ok(true)
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
