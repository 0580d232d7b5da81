//! A response that is written piece by piece.

#![expect(
    clippy::disallowed_types,
    reason = "pieces go out one after the other: the lock is held while one waits for its client"
)]

use std::sync::Arc;

use lurcher::handler::BodyWriter;
use pyo3::prelude::*;
use tokio::sync::Mutex;

use super::convert::Data;
use super::errors::Fault;
use super::hub::Hub;
use super::way::{Out, Way, run, run_anyway};

/// Writes a body piece by piece, no faster than the client takes it. ``finish`` has to be called, or the writer used as a context
/// manager, which does so; a writer that is dropped before, or left by an exception, cuts its client off, so that half a response
/// never looks whole.
#[pyclass(frozen, subclass, module = "lurcher", name = "BaseWriter")]
pub(super) struct BaseWriter {
    hub: Arc<Hub>,
    writer: Arc<Mutex<Option<BodyWriter>>>,
    /// There is nobody to write to: see [`new`].
    in_vain: bool,
}

/// Writes a body piece by piece, no faster than the client takes it. ``finish`` has to be called, or the writer used in a ``with``
/// statement, which does so; a writer that is dropped before, or left by an exception, cuts its client off, so that half a response
/// never looks whole.
#[pyclass(frozen, extends = BaseWriter, module = "lurcher", name = "Writer")]
pub(super) struct Writer;

/// Writes a body piece by piece, for asyncio: as lurcher.Writer, to be used in an ``async with`` statement.
#[pyclass(frozen, extends = BaseWriter, module = "lurcher.aio", name = "Writer")]
pub(super) struct AioWriter;

pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<BaseWriter>()?;
    module.add_class::<Writer>()?;
    module.add("AioWriter", module.py().get_type::<AioWriter>())
}

/// One of the class that goes with the connection. Without a writer what is written is dropped: a server would answer what is sent to a
/// client that is gone, and a program that answers everything would never come to an end with that.
pub(super) fn new(
    py: Python<'_>,
    hub: &Arc<Hub>,
    writer: Option<BodyWriter>,
) -> PyResult<Py<PyAny>> {
    let base = BaseWriter {
        hub: Arc::clone(hub),
        in_vain: writer.is_none(),
        writer: Arc::new(Mutex::new(writer)),
    };
    let base = PyClassInitializer::from(base);
    Ok(match hub.way() {
        Way::Blocking => Bound::new(py, base.add_subclass(Writer))?.into_any(),
        Way::Loop(_) => Bound::new(py, base.add_subclass(AioWriter))?.into_any(),
    }
    .unbind())
}

impl BaseWriter {
    fn end(&self, py: Python<'_>, last: Option<Data>) -> PyResult<Py<PyAny>> {
        let writer = Arc::clone(&self.writer);
        run(py, &self.hub, async move {
            let taken = writer.lock().await.take();
            match (taken, last) {
                (Some(writer), Some(last)) => writer.finish_with(last).await?,
                (Some(writer), None) => writer.finish().await?,
                // Finished before, which is as well.
                (None, _) => {}
            }
            Ok(Out::Nothing)
        })
    }

    fn leave(&self, py: Python<'_>, failed: bool) -> PyResult<Py<PyAny>> {
        if !failed {
            return self.end(py, None);
        }
        self.give_up(py)
    }

    /// On a connection that is closed, too: who leaves by an exception is to see that one.
    fn give_up(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let writer = Arc::clone(&self.writer);
        run_anyway(py, &self.hub, async move {
            drop(writer.lock().await.take());
            Ok(Out::Nothing)
        })
    }
}

#[pymethods]
impl BaseWriter {
    /// Sends a piece of the body, and the head before the first one. It waits while the client is behind.
    ///
    /// A Mongrel2 without ``download.flow_control`` does not tell what clients have taken: of what goes there, pieces are gathered
    /// while much is written in little time, so ``flush`` what is to be seen at once.
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let (writer, data) = (Arc::clone(&self.writer), Data::of(data)?);
        let in_vain = self.in_vain;
        run(py, &self.hub, async move {
            match writer.lock().await.as_mut() {
                Some(writer) => writer.write(data).await?,
                None if in_vain => {}
                None => return Err(Fault::Ended),
            }
            Ok(Out::Nothing)
        })
    }

    /// Sends what was gathered, or the head if nothing was written yet.
    fn flush(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let (writer, in_vain) = (Arc::clone(&self.writer), self.in_vain);
        run(py, &self.hub, async move {
            match writer.lock().await.as_mut() {
                Some(writer) => writer.flush().await?,
                None if in_vain => {}
                None => return Err(Fault::Ended),
            }
            Ok(Out::Nothing)
        })
    }

    /// Ends the body, with a last piece perhaps. Finishing again does nothing.
    #[pyo3(signature = (data = None))]
    fn finish(&self, py: Python<'_>, data: Option<&Bound<'_, PyAny>>) -> PyResult<Py<PyAny>> {
        let last = data.map(Data::of).transpose()?;
        self.end(py, last.filter(|last| !last.is_empty()))
    }

    /// Cuts the client off, unless the body was finished.
    fn abort(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.give_up(py)
    }

    /// Whether the server has told that the client is gone. Told or not, writing to one that is raises ClientGone sooner or later.
    #[getter]
    fn is_gone(&self) -> bool {
        self.in_vain
            || self
                .writer
                .try_lock()
                .is_ok_and(|writer| writer.as_ref().is_some_and(BodyWriter::is_gone))
    }

    /// Whether it was finished or aborted.
    #[getter]
    fn closed(&self) -> bool {
        self.writer.try_lock().is_ok_and(|writer| writer.is_none())
    }
}

#[pymethods]
impl Writer {
    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*exception))]
    fn __exit__(
        slf: &Bound<'_, Self>,
        exception: (Py<PyAny>, Py<PyAny>, Py<PyAny>),
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        slf.as_super().get().leave(py, !exception.0.is_none(py))
    }
}

#[pymethods]
impl AioWriter {
    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        ready(slf)
    }

    #[pyo3(signature = (*exception))]
    fn __aexit__(
        slf: &Bound<'_, Self>,
        exception: (Py<PyAny>, Py<PyAny>, Py<PyAny>),
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        slf.as_super().get().leave(py, !exception.0.is_none(py))
    }
}

/// A future that is done.
fn ready<'py>(writer: &Bound<'py, AioWriter>) -> PyResult<Bound<'py, PyAny>> {
    let py = writer.py();
    let Way::Loop(inbox) = writer.as_super().get().hub.way() else {
        unreachable!("one for an event loop is made with one only");
    };
    let future = inbox.future(py)?;
    future.call_method1("set_result", (writer,))?;
    Ok(future)
}
