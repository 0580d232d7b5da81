//! What the receiving thread has for the event loop: a queue, and a descriptor that is readable while something is in it.
//!
//! Whoever puts something in takes no interpreter's lock, and makes a system call only where the loop was not called already.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::desk::Work;
use super::line::Line;

/// How open requests are asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Farewell {
    /// WebSockets are closed; answers go on.
    Soon,
    /// Who listens hears that the client is gone.
    Now,
    /// Tasks are cancelled.
    AtOnce,
}

/// Something for the event loop.
pub(crate) enum Incoming {
    /// A request to begin with.
    Start(Work, Arc<Line>),
    /// There is news for whoever waits for this client.
    News(Arc<Line>),
    Farewell(Farewell),
    /// Nothing will come any more.
    End,
}

/// The queue. What is in it is bounded by the requests that are open: each has at most its start and one piece of news there.
pub(crate) struct Inbox {
    state: Mutex<State>,
    event: EventFd,
}

#[derive(Default)]
struct State {
    incoming: VecDeque<Incoming>,
    /// The loop was called, and has not emptied the queue yet.
    is_called: bool,
    /// It looks soon, called or not.
    looks_soon: bool,
}

impl Inbox {
    /// # Errors
    ///
    /// When descriptors have run out.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            state: Mutex::default(),
            event: EventFd::from_value_and_flags(0, flags)?,
        })
    }

    /// What the loop watches.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub(crate) fn push(&self, incoming: Incoming) {
        let mut state = self.lock();
        state.incoming.push_back(incoming);
        if !state.looks_soon {
            self.call(&mut state);
        }
    }

    fn call(&self, state: &mut State) {
        if !std::mem::replace(&mut state.is_called, true) {
            // It has room for more calls than there are.
            let _ok = self.event.write(1);
        }
    }

    /// Whoever puts something in need not call the loop until it has looked.
    pub(crate) fn look_soon(&self) {
        self.lock().looks_soon = true;
    }

    /// Moves what is there, at most so much, behind `taken`. Is there more, the descriptor is readable.
    pub(crate) fn take(&self, most: usize, taken: &mut Vec<Incoming>) {
        let mut state = self.lock();
        state.looks_soon = false;
        let count = state.incoming.len().min(most);
        taken.extend(state.incoming.drain(..count));
        if !state.incoming.is_empty() {
            self.call(&mut state);
        } else if std::mem::replace(&mut state.is_called, false) {
            let _ok = self.event.read();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
