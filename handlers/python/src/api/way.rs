//! How a caller gets what takes time: by waiting for it, or as a future of an event loop.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::Fault;
use super::hub::Hub;
use super::inbox::{Inbox, settle};
use super::runtime;

/// Of one connection, and of all that comes through it.
pub(super) enum Way {
    /// Calls return when it is done.
    Blocking,
    /// Calls return a future of that loop.
    Loop(Arc<Inbox>),
}

/// What comes out of it.
pub(super) enum Out {
    Nothing,
    Bool(bool),
    Bytes(Bytes),
    /// A piece of a body; none: it has ended, which an iteration says in its own way.
    Piece(Option<Bytes>),
    /// A connection, for an event loop.
    Connected(Arc<Hub>),
}

impl Out {
    fn into_python(self, py: Python<'_>, waits: bool) -> PyResult<Py<PyAny>> {
        Ok(match self {
            // The latter is made a connection of by whoever gets it.
            Out::Nothing | Out::Connected(_) => py.None(),
            Out::Bool(value) => value.into_pyobject(py)?.to_owned().into_any().unbind(),
            Out::Bytes(bytes) | Out::Piece(Some(bytes)) => {
                PyBytes::new(py, &bytes).into_any().unbind()
            }
            Out::Piece(None) => {
                return Err(if waits {
                    PyStopIteration::new_err(())
                } else {
                    PyStopAsyncIteration::new_err(())
                });
            }
        })
    }
}

/// Does something that may take time. Meanwhile the connection receives: what a response waits for to go on may come in there.
///
/// A future of a loop that is cancelled does not take back what was begun.
pub(super) fn run<F>(py: Python<'_>, hub: &Arc<Hub>, work: F) -> PyResult<Py<PyAny>>
where
    F: Future<Output = Result<Out, Fault>> + Send + 'static,
{
    hub.check_open()?;
    run_anyway(py, hub, work)
}

/// The same where it need not be open: what was received already can be read still.
pub(super) fn run_anyway<F>(py: Python<'_>, hub: &Arc<Hub>, work: F) -> PyResult<Py<PyAny>>
where
    F: Future<Output = Result<Out, Fault>> + Send + 'static,
{
    hub.check()?;
    let runtime = hub.runtime();
    match hub.way() {
        Way::Blocking => {
            let done = runtime::wait(py, runtime, hub.receiving_meanwhile(work), None)?;
            // Without a deadline it is always there.
            done.unwrap_or(Ok(Out::Nothing))?.into_python(py, true)
        }
        Way::Loop(inbox) => {
            let future = inbox.future(py)?;
            let mut work: Pin<Box<F>> = Box::pin(work);
            if let Poll::Ready(done) = runtime::try_now(runtime, work.as_mut()) {
                finish(py, &future, done)?;
            } else if hub.is_closed() {
                // Nobody looks into the inbox any more.
                finish(py, &future, Err(Fault::Closed))?;
            } else {
                let waiting = inbox.begin(&future);
                let (hub, inbox) = (Arc::clone(hub), Arc::clone(inbox));
                runtime.spawn(async move {
                    let done = hub.receiving_meanwhile(work).await;
                    inbox.push((waiting, done));
                });
            }
            Ok(future.unbind())
        }
    }
}

/// Ends a future of a loop with what came out.
pub(super) fn finish(
    py: Python<'_>,
    future: &Bound<'_, PyAny>,
    done: Result<Out, Fault>,
) -> PyResult<()> {
    let value = done
        .map_err(PyErr::from)
        .and_then(|out| out.into_python(py, false));
    settle(py, future, value)
}
