//! Greenlets instead of threads: gevent or eventlet, which are Python's. It brings requests to their loops; what blocks in the standard
//! library was made to give way to them before the application was loaded.

use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyModule};

use super::{Io, Shared, Worker};
use crate::queue::Job;
use crate::wait::{self, Bell};
use crate::watchdog;

/// What speaks to the libraries.
const SOURCE: &str = include_str!("green.py");

/// Requests that are given to greenlets before the others have their turn.
const BATCH: usize = 16;

fn module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    let source = CString::new(SOURCE)?;
    PyModule::from_code(py, &source, c"green.py", c"lurcher._green")
}

fn word(io: Io) -> PyResult<&'static str> {
    match io {
        Io::Standard => Err(PyValueError::new_err("threads are no greenlets")),
        Io::Gevent => Ok("gevent"),
        Io::Eventlet => Ok("eventlet"),
    }
}

/// A request in Python's hands, to be taken once.
#[pyclass(module = "lurcher", frozen)]
struct Ticket(Mutex<Option<Job>>);

impl Ticket {
    fn new(job: Job) -> Self {
        Self(Mutex::new(Some(job)))
    }
}

/// What greenlets take and answer requests with.
#[pyclass(module = "lurcher", frozen)]
struct Greenlets(Worker);

#[pymethods]
impl Greenlets {
    /// Some requests; nothing when there will be no more. None of them: the bell rings when there are.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let queue = &self.0.shared.queue;
        let jobs = PyList::empty(py);
        while jobs.len() < BATCH
            && let Some(job) = queue.try_take()
        {
            jobs.append(Bound::new(py, Ticket::new(job))?)?;
        }
        if !jobs.is_empty() {
            return Ok(Some(jobs));
        }
        if let Some(bell) = queue.bell() {
            bell.silence();
        }
        // It may have rung for what came between.
        while let Some(job) = queue.try_take() {
            jobs.append(Bound::new(py, Ticket::new(job))?)?;
        }
        Ok((!jobs.is_empty() || !queue.is_over()).then_some(jobs))
    }

    /// The loop has turned, and says so to who watches it.
    #[staticmethod]
    fn turned() {
        watchdog::turned();
    }

    /// Answers a request.
    fn answer(&self, py: Python<'_>, ticket: &Bound<'_, Ticket>) {
        let held = &ticket.get().0;
        let job = held.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(job) = job {
            watchdog::loop_begins(&job.request);
            self.0.answer(py, job);
        }
    }
}

/// Answers what comes by the queue until that is closed and empty.
pub(super) fn serve(py: Python<'_>, shared: &Arc<Shared>) -> PyResult<()> {
    let module = module(py)?;
    let word = word(shared.settings.io)?;
    wait::in_greenlets(module.getattr(format!("{word}_wait"))?.call0()?.unbind());
    let bell = Bell::new()?;
    let descriptor = bell.descriptor();
    shared.queue.tell(bell);
    let greenlets = Bound::new(py, Greenlets(Worker::new(py, shared)?))?;
    watchdog::loop_serves(true);
    let served = module.getattr(word)?.call1((
        descriptor,
        greenlets.getattr("take")?,
        greenlets.getattr("answer")?,
        shared.settings.greenlets.max(1),
        watchdog::descriptor(),
        greenlets.getattr("turned")?,
    ));
    watchdog::loop_serves(false);
    served.map(drop)
}
