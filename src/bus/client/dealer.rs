//! DEALER: one connection to one broker, messages of several frames both ways. What they mean is the owner's business.
//!
//! A broker must be told first who has come, so what was meant for one is of no use to the next. This is one connection and no more.
//! Its owner makes it, by [`Dialed`], and opens another [`Dealer`] when it is lost: he may have a thread that does so, and that reads
//! and writes ([`Dealer::run_now`]), while the program keeps the runtime busy.

use std::io;
use std::sync::Arc;
use std::task::{Context as Waker, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::address::Dialed;
use super::shared::{Core, Habits, State};
use super::task::{Alive, Attached, keep_connected, tell_ended};
use super::{Context, OpenError, Options, dead, open};
use crate::endpoint::Endpoint;
use crate::zmtp::SocketType;

/// Between attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// A DEALER socket with its one connection.
///
/// Not for several tasks at once: its owner has it under a lock, and after each call that may have heard something looks at
/// [`Dealer::try_recv`] before it waits for [`Dealer::poll_ready`].
#[derive(Debug)]
pub struct Dealer {
    core: Arc<Core>,
    /// How long what is queued is written after the end, where that is not [`Options::linger`].
    linger: Option<Duration>,
    context: Context,
    runtime: Handle,
}

impl Dealer {
    /// Opens a DEALER socket without a connection. What is handed over meanwhile is kept. Needs a runtime around it.
    ///
    /// # Errors
    ///
    /// When the endpoint is of no use (no address, path too long).
    pub fn open(
        context: &Context,
        endpoint: &Endpoint,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let habits = Habits {
            role: SocketType::Dealer,
            pause: PAUSE,
            is_once: true,
            patience: Duration::ZERO,
        };
        Ok(Self {
            core: open(context, endpoint, options, habits)?,
            linger: None,
            context: context.clone(),
            runtime: Handle::current(),
        })
    }

    /// Gives it its connection, from any thread, unless it has or had one.
    ///
    /// # Errors
    ///
    /// When the runtime does not take it.
    pub fn attach(&self, dialed: Dialed) -> io::Result<()> {
        if self.has_connection() {
            return Ok(());
        }
        let _runtime = self.runtime.enter();
        let attached = Attached::new(&self.core, dialed.into_stream()?);
        let core = Arc::clone(&self.core);
        let driving = async move {
            let (ended, _) = attached.drive().await;
            tell_ended(&core, &ended, &mut None);
        };
        self.context.tasks.spawn_on(driving, &self.runtime);
        Ok(())
    }

    /// Whether it has a connection, be its handshake done or not, or had one.
    pub fn has_connection(&self) -> bool {
        self.core
            .with(|state| !state.links.is_empty() || state.hub.connections > 0)
    }

    /// Where it is connected to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.core.endpoint
    }

    /// Whether the connection has come.
    pub fn is_up(&self) -> bool {
        self.core.with(|state| state.hub.connections > 0)
    }

    /// Whether the connection has come and gone: then this is of no use any more. What had arrived can still be received.
    pub fn is_lost(&self) -> bool {
        self.core.with(|state| state.hub.losses > 0)
    }

    /// Reads what has arrived and writes what is queued at once, from any thread: for whoever cannot rely on the runtime to get round
    /// to it, because the program keeps it busy.
    pub fn run_now(&self) {
        self.core.run_now();
    }

    /// Takes a message if one is there.
    ///
    /// # Errors
    ///
    /// When the runtime in which it was opened has ended.
    pub fn try_recv(&mut self) -> io::Result<Option<Vec<Bytes>>> {
        let core = &self.core;
        core.with(|state| match state.take_talk(core) {
            None if state.hub.is_dead => Err(dead()),
            taken => Ok(taken),
        })
    }

    /// Hands over one message, if there is room for it now; false when not, and when the connection is lost. What is handed over is
    /// written while the connection lives.
    ///
    /// # Errors
    ///
    /// As [`Dealer::try_recv`].
    pub fn try_send(&mut self, before: &[&[u8]], last: Bytes) -> io::Result<bool> {
        let core = &self.core;
        core.with(|State { links, hub }| {
            if hub.is_dead {
                return Err(dead());
            }
            if hub.losses > 0 {
                return Ok(false);
            }
            let has_room = match links.iter_mut().find(|link| link.is_ready()) {
                Some(link) if link.has_room(last.len()) => {
                    link.send_frames(before, last, hub, core);
                    true
                }
                None if hub.early.len() < core.queued_max => {
                    let before = before.iter().map(|frame| Bytes::copy_from_slice(frame));
                    hub.early.push_back(before.chain([last]).collect());
                    true
                }
                _ => false,
            };
            hub.owner_wants_room |= !has_room;
            Ok(has_room)
        })
    }

    /// Ready when there may be something to receive or to send, or the connection has come or gone: to be awaited only when neither
    /// was so. The readiness is gone with being told of.
    ///
    /// # Errors
    ///
    /// As [`Dealer::try_recv`].
    pub fn poll_ready(&mut self, cx: &mut Waker<'_>) -> Poll<io::Result<()>> {
        self.core.with(|state| {
            if std::mem::take(&mut state.hub.has_news) {
                return Poll::Ready(Ok(()));
            }
            if state.hub.is_dead {
                return Poll::Ready(Err(dead()));
            }
            state.hub.owner = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Closes it without waiting for what is not written.
    pub fn abandon(mut self) {
        self.linger = Some(Duration::ZERO);
    }
}

impl Drop for Dealer {
    fn drop(&mut self) {
        self.core.close(self.linger);
        if self.linger.is_none() && !self.has_connection() {
            // What was handed over before anybody was there has its time too.
            let connecting = keep_connected(Alive(Arc::clone(&self.core)));
            self.context.tasks.spawn_on(connecting, &self.runtime);
        }
    }
}
