//! DEALER: one connection to one broker, messages of several frames both ways. What they mean is the owner's business.
//!
//! libzmq connects again by itself, and keeps for whoever is there next what was meant for the one before. A broker must be told
//! first who has come, so this is one connection and no more: libzmq tries until it has one, and when that is lost, which its
//! monitor tells, the owner opens another [`Dealer`].

use std::io;
use std::task::{Context as Waker, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::unix::AsyncFd;

use super::monitor::{Change, Monitor};
use super::{Context, Descriptor, OpenError, Opened, Options, is_again, open, watch};
use crate::endpoint::Endpoint;

/// Milliseconds between attempts to connect, at least; libzmq takes up to twice as long.
const RECONNECT_MS: i32 = 50;

/// After a lost connection libzmq does not connect again sooner than [`RECONNECT_MS`], so whoever has looked so lately knows that
/// what he hands over goes to nobody else.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Frames up to this size are copied out of libzmq's buffers; larger ones are kept where they are.
const COPY_BYTES_MAX: usize = 2048;

/// Frames of a message that are kept; nobody has a use for more, and a peer could send any number.
const FRAMES_MAX: usize = 16;

/// A DEALER socket with its one connection.
///
/// Not for several tasks at once: its owner has it under a lock, and after each call that may have heard something looks at
/// [`Dealer::try_recv`] before it waits for [`Dealer::poll_ready`].
#[derive(Debug)]
pub struct Dealer {
    events: AsyncFd<Descriptor>,
    changes: AsyncFd<Descriptor>,
    socket: Socket,
    endpoint: Endpoint,
    /// The connection has come, and has gone.
    up: bool,
    lost: bool,
    looked: Instant,
}

struct Socket {
    zmq: zmq::Socket,
    monitor: Monitor,
    message: zmq::Message,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

/// A frame that stays in libzmq's memory.
struct Kept(zmq::Message);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Dealer {
    /// Opens a DEALER socket and connects it; libzmq goes on trying while nobody is there, and keeps meanwhile what is handed over.
    /// Needs a runtime around it.
    ///
    /// # Errors
    ///
    /// When the endpoint is of no use (no such interface, path too long) or descriptors have run out.
    pub fn connect(
        context: &Context,
        endpoint: &Endpoint,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let mut monitor = None;
        let Opened { events, socket } = open(context, zmq::DEALER, endpoint, options, |socket| {
            socket.set_reconnect_ivl(RECONNECT_MS)?;
            monitor = Some(Monitor::of(context, socket)?);
            Ok(())
        })?;
        let watched = monitor
            .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
            .and_then(|monitor| Ok((watch(monitor.socket())?, monitor)));
        match watched {
            Ok((changes, monitor)) => Ok(Self {
                events,
                changes,
                socket: Socket {
                    zmq: socket,
                    monitor,
                    message: zmq::Message::new(),
                },
                endpoint: endpoint.clone(),
                up: false,
                lost: false,
                looked: Instant::now(),
            }),
            Err(source) => {
                drop(events);
                let (doing, endpoint) = ("watching the connection to", endpoint.clone());
                Err(OpenError {
                    doing,
                    endpoint,
                    source,
                })
            }
        }
    }

    /// Where it is connected to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether the connection has come, as far as was seen.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Whether the connection has come and gone: then this is of no use any more. What had arrived can still be received.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Takes note of a connection that has come or gone.
    pub fn look(&mut self) -> io::Result<()> {
        self.looked = Instant::now();
        while let Some(change) = self.socket.monitor.next()? {
            match change {
                Change::Up(_) => self.up = true,
                // Attempts that fail are none.
                Change::Down => self.lost |= self.up,
            }
        }
        Ok(())
    }

    /// Takes a message if one is there.
    pub fn try_recv(&mut self) -> io::Result<Option<Vec<Bytes>>> {
        let mut frames = Vec::new();
        loop {
            // Once the first frame is there, all are.
            match self
                .socket
                .zmq
                .recv(&mut self.socket.message, zmq::DONTWAIT)
            {
                Ok(()) => {}
                Err(zmq::Error::EINTR) => continue,
                Err(error) if is_again(error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            let more = self.socket.message.get_more();
            if frames.len() < FRAMES_MAX {
                frames.push(self.frame());
            }
            if !more {
                return Ok(Some(frames));
            }
        }
    }

    fn frame(&mut self) -> Bytes {
        let message = &mut self.socket.message;
        if message.len() <= COPY_BYTES_MAX {
            return Bytes::copy_from_slice(message);
        }
        Bytes::from_owner(Kept(std::mem::replace(message, zmq::Message::new())))
    }

    /// Hands over one message, if libzmq takes one now; false when not, and when the connection is lost. What is handed over is
    /// written while the connection lives.
    pub fn try_send(&mut self, before: &[&[u8]], last: &[u8]) -> io::Result<bool> {
        if !self.lost && self.looked.elapsed() >= LOOK_EVERY {
            self.look()?;
        }
        if self.lost {
            return Ok(false);
        }
        let frames = before
            .iter()
            .map(|frame| (*frame, zmq::DONTWAIT | zmq::SNDMORE))
            .chain([(last, zmq::DONTWAIT)]);
        for (frame, flags) in frames {
            loop {
                match self.socket.zmq.send(frame, flags) {
                    Ok(()) => break,
                    Err(zmq::Error::EINTR) => {}
                    // Only with the first frame, or with a connection that is lost in the middle, and all of this with it.
                    Err(error) if is_again(error) => return Ok(false),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(true)
    }

    /// Ready when there may be something to receive or to send, or the connection has come or gone: to be awaited only when neither
    /// was so. The readiness is gone with being told of.
    pub fn poll_ready(&mut self, cx: &mut Waker<'_>) -> Poll<io::Result<()>> {
        let mut found = Poll::Pending;
        for events in [&self.events, &self.changes] {
            if let Poll::Ready(ready) = events.poll_read_ready(cx) {
                ready?.clear_ready();
                found = Poll::Ready(Ok(()));
            }
        }
        found
    }

    /// Closes it without waiting for what is not written.
    pub fn abandon(self) {
        if let Err(error) = self.socket.zmq.set_linger(0) {
            tracing::debug!(%error, endpoint = %self.endpoint, "closing a socket");
        }
    }
}
