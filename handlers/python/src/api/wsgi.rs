//! A WSGI application that answers requests of a connection, in the thread that has received them.

use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::request::BaseRequest;
use super::way::Way;
use crate::wait::{self, Company};
use crate::wsgi::Single;

/// A WSGI application to be called with requests of a lurcher.Connection, from any thread: it answers them, whatever happens.
#[pyclass(frozen, module = "lurcher")]
struct WSGIApp(Single);

pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<WSGIApp>()
}

#[pymethods]
impl WSGIApp {
    #[new]
    fn new(py: Python<'_>, application: Py<PyAny>) -> PyResult<Self> {
        if !application.bind(py).is_callable() {
            return Err(PyTypeError::new_err(
                "a WSGI application is called, and this cannot be",
            ));
        }
        Single::new(py, application).map(Self)
    }

    fn __call__(&self, py: Python<'_>, request: &Bound<'_, BaseRequest>) -> PyResult<()> {
        let request = request.get();
        let hub = request.hub();
        hub.check_open()?;
        if matches!(hub.way(), Way::Loop(_)) {
            return Err(PyTypeError::new_err(
                "a WSGI application waits, which no request of an event loop may",
            ));
        }
        let others = Arc::clone(hub);
        let company = Company {
            runtime: hub.runtime().handle().clone(),
            meanwhile: Box::new(move || {
                let hub = Arc::clone(&others);
                Box::pin(async move { hub.receive_for_others().await })
            }),
        };
        let (request, body) = request.hand_over();
        wait::in_company(company, || self.0.answer(py, request, body))
    }
}
