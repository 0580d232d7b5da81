//! What is done on its way into an event loop: a queue, and a socket that the loop watches. Whoever puts something in never takes the
//! interpreter's lock, and wakes the loop once for all that it has not yet seen.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

use super::errors::Fault;
use super::way::Out;

/// A future of the loop, and how it ends.
pub(super) type Done = (Py<PyAny>, Result<Out, Fault>);

/// Of one connection and one event loop.
pub(super) struct Inbox {
    event_loop: Py<PyAny>,
    done: Mutex<Vec<Done>>,
    /// How many futures will still come.
    outstanding: AtomicUsize,
    /// The loop has been woken and has not looked yet.
    woken: AtomicBool,
    ours: UnixStream,
    theirs: UnixStream,
}

impl Inbox {
    pub(super) fn new(event_loop: Py<PyAny>) -> PyResult<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok(Self {
            event_loop,
            done: Mutex::default(),
            outstanding: AtomicUsize::new(0),
            woken: AtomicBool::new(false),
            ours,
            theirs,
        })
    }

    pub(super) fn event_loop(&self) -> &Py<PyAny> {
        &self.event_loop
    }

    /// What the loop watches.
    pub(super) fn descriptor(&self) -> RawFd {
        self.theirs.as_raw_fd()
    }

    /// A future that is not done.
    pub(super) fn future<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.event_loop.bind(py).call_method0("create_future")
    }

    /// A future that something will be pushed for.
    pub(super) fn begin(&self, future: &Bound<'_, PyAny>) -> Py<PyAny> {
        self.outstanding.fetch_add(1, Ordering::AcqRel);
        future.clone().unbind()
    }

    /// Nothing is going to be pushed, as far as is known.
    pub(super) fn is_idle(&self) -> bool {
        self.outstanding.load(Ordering::Acquire) == 0
    }

    /// What was begun is done: from any thread, with or without the interpreter's lock.
    pub(super) fn push(&self, done: Done) {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(done);
        self.wake();
    }

    pub(super) fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            // One byte that is there already wakes as well as two.
            drop((&self.ours).write_all(b"."));
        }
    }

    /// In the loop's thread: everything that has come.
    pub(super) fn take(&self) -> Vec<Done> {
        let mut bytes = [0; 64];
        while matches!((&self.theirs).read(&mut bytes), Ok(64)) {}
        // Before looking, so that what comes now wakes again.
        self.woken.store(false, Ordering::SeqCst);
        let done = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
        self.outstanding.fetch_sub(done.len(), Ordering::AcqRel);
        done
    }
}

/// Ends a future of the loop, unless somebody has cancelled it.
pub(super) fn settle(
    py: Python<'_>,
    future: &Bound<'_, PyAny>,
    result: PyResult<Py<PyAny>>,
) -> PyResult<()> {
    if future.call_method0("done")?.is_truthy()? {
        return Ok(());
    }
    match result {
        Ok(value) => future.call_method1("set_result", (value,))?,
        Err(error) => future.call_method1("set_exception", (error.into_value(py),))?,
    };
    Ok(())
}
