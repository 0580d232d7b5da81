//! PULL: takes what one server pushes. Fair use between servers and the meaning of messages are the owner's business.

use std::io;
use std::sync::Arc;
use std::task::{Context as Waker, Poll};
use std::time::Duration;

use bytes::Bytes;

use super::shared::{Core, Habits};
use super::{Context, OpenError, Options, dead, open};
use crate::endpoint::Endpoint;
use crate::zmtp::SocketType;

/// Bytes after which a batch is full: what was taken out of here is no longer bounded by [`Options::received_max`].
const BATCH_BYTES: usize = 1 << 20;

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);

/// A PULL socket connected to one server.
#[derive(Debug)]
pub struct Receiver {
    core: Arc<Core>,
    /// The last look found nothing more.
    drained: bool,
    _context: Context,
}

impl Receiver {
    /// Opens a PULL socket and connects it, again and again while nobody is there. Needs a runtime around it.
    ///
    /// # Errors
    ///
    /// When the endpoint is of no use (no address, path too long) or cannot be bound.
    pub fn connect(
        context: &Context,
        endpoint: &Endpoint,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let habits = Habits {
            role: SocketType::Pull,
            pause: PAUSE,
            is_once: false,
            patience: Duration::ZERO,
        };
        Ok(Self {
            core: open(context, endpoint, options, habits)?,
            drained: false,
            _context: context.clone(),
        })
    }

    /// Where it is connected to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.core.endpoint
    }

    /// Whether the last look found nothing more.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Receives one message.
    ///
    /// # Errors
    ///
    /// When the runtime in which it was opened has ended.
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
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`].
    pub fn poll_recv_many(
        &mut self,
        cx: &mut Waker<'_>,
        max: usize,
        sink: &mut dyn FnMut(Bytes),
    ) -> Poll<io::Result<usize>> {
        let Self { core, drained, .. } = self;
        core.with(|state| {
            let changed = std::mem::take(&mut state.hub.has_news) && !core.is_bound;
            let count = state.take_messages(core, max, BATCH_BYTES, sink);
            *drained = state.hub.messages.is_empty();
            if count > 0 || changed {
                return Poll::Ready(Ok(count));
            }
            if state.hub.is_dead {
                return Poll::Ready(Err(dead()));
            }
            state.hub.owner = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Whether there is a connection; `None` where that cannot be told, because the socket is bound.
    pub fn is_connected(&mut self) -> Option<bool> {
        let core = &self.core;
        (!core.is_bound).then(|| core.with(|state| state.hub.up > 0))
    }

    /// Connections lost so far.
    pub fn losses(&mut self) -> u64 {
        self.core.with(|state| state.hub.losses)
    }

    /// Ends our direction of the connection, on which nothing is ever said, so that a libzmq at the other end gives it up: it writes
    /// nothing more, what it had written arrives, and then the connection is lost, for good.
    ///
    /// What the other end had queued and not written is lost, so this is done only when everything that has arrived was received:
    /// then it has no reason to queue. False when there is more, no connection, or none that can be told.
    ///
    /// # Errors
    ///
    /// When the system says no.
    pub fn end_sending(&mut self) -> io::Result<bool> {
        let core = &self.core;
        if core.is_bound {
            return Ok(false);
        }
        core.with(|state| match state.links.first_mut() {
            Some(link) => link.end_sending(&mut state.hub, core),
            None => Ok(false),
        })
    }

    /// Takes a message if one is there, or has arrived and was not read yet.
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`].
    pub fn try_recv(&mut self) -> io::Result<Option<Bytes>> {
        let core = &self.core;
        let mut taken = None;
        for is_read in [false, true] {
            if is_read {
                core.run_now();
            }
            core.with(|state| {
                state.take_messages(core, 1, 1, &mut |message| taken = Some(message))
            });
            if taken.is_some() {
                break;
            }
        }
        self.drained = taken.is_none();
        if taken.is_none() && core.with(|state| state.hub.is_dead) {
            return Err(dead());
        }
        Ok(taken)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.core.close(Some(Duration::ZERO));
    }
}
