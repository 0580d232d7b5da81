//! What applications await: objects that do in the loop's own thread what is ready, and wait for a future of the loop where it is not.
//!
//! They pass for coroutines, so that they may be given to `create_task`. What is received is taken only when the one who awaits gets
//! it: whoever is cancelled loses nothing.

use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;

use super::http::Http;
use super::websocket::WebSocket;

/// Done already.
#[pyclass(frozen, name = "Done", module = "lurcher")]
pub(crate) struct Done;

#[pymethods]
impl Done {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[expect(clippy::unused_self, reason = "Python's way")]
    fn __next__(&self) -> Option<Py<PyAny>> {
        None
    }

    #[expect(clippy::unused_self, reason = "Python's way")]
    fn send(&self, _value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        Err(PyStopIteration::new_err(()))
    }

    #[pyo3(signature = (kind, value=None, traceback=None))]
    #[expect(clippy::unused_self, reason = "Python's way")]
    fn throw(
        &self,
        kind: &Bound<'_, PyAny>,
        value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        Err(thrown(kind, value, traceback))
    }

    #[expect(clippy::unused_self, reason = "Python's way")]
    fn close(&self) {}
}

/// What is waited for.
pub(crate) enum Awaited {
    Request(Py<Http>),
    /// Room for what is sent.
    Response(Py<Http>),
    Message(Py<WebSocket>),
    Frames(Py<WebSocket>),
}

/// How it stands.
pub(crate) enum Standing {
    Ready(Py<PyAny>),
    /// A future of the loop that ends when there is news.
    Waits(Py<PyAny>),
}

/// Something that may have to be waited for.
#[pyclass(frozen, name = "Wait", module = "lurcher")]
pub(crate) struct Wait(pub(crate) Awaited);

#[pymethods]
impl Wait {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let standing = match &self.0 {
            Awaited::Request(http) => Http::poll_receive(http.bind(py))?,
            Awaited::Response(http) => Http::poll_sent(http.bind(py))?,
            Awaited::Message(websocket) => WebSocket::poll_receive(websocket.bind(py))?,
            Awaited::Frames(websocket) => WebSocket::poll_sent(websocket.bind(py))?,
        };
        match standing {
            // In a tuple of its own, or one that is the value would be taken for several.
            Standing::Ready(value) => Err(PyStopIteration::new_err((value,))),
            Standing::Waits(future) => {
                // As a future's own iterator does it, so that the task waits for it.
                future.setattr(py, pyo3::intern!(py, "_asyncio_future_blocking"), true)?;
                Ok(future)
            }
        }
    }

    fn send(&self, py: Python<'_>, _value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        self.__next__(py)
    }

    #[pyo3(signature = (kind, value=None, traceback=None))]
    #[expect(clippy::unused_self, reason = "Python's way")]
    fn throw(
        &self,
        kind: &Bound<'_, PyAny>,
        value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        Err(thrown(kind, value, traceback))
    }

    #[expect(clippy::unused_self, reason = "Python's way")]
    fn close(&self) {}
}

/// The exception of a `throw`, in either of its two forms.
pub(crate) fn thrown(
    kind: &Bound<'_, PyAny>,
    value: Option<&Bound<'_, PyAny>>,
    traceback: Option<&Bound<'_, PyAny>>,
) -> PyErr {
    let made = match value {
        Some(value) if value.is_instance_of::<pyo3::exceptions::PyBaseException>() => {
            Ok(value.clone())
        }
        Some(value) if !value.is_none() => kind.call1((value,)),
        _ if kind.is_callable() => kind.call0(),
        _ => Ok(kind.clone()),
    };
    match made {
        Ok(made) => {
            if let Some(traceback) = traceback.filter(|traceback| !traceback.is_none()) {
                drop(made.setattr("__traceback__", traceback));
            }
            PyErr::from_value(made)
        }
        Err(error) => error,
    }
}
