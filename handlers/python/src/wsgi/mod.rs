//! WSGI (PEP 3333).

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::load::App;
use crate::queue::Queue;

pub(crate) fn serve(py: Python<'_>, queue: &Arc<Queue>, apps: &[App]) -> PyResult<()> {
    let hello = PyBytes::new(py, b"hello from python\n");
    loop {
        let Some(job) = queue.try_take().or_else(|| py.detach(|| queue.take())) else {
            return Ok(());
        };
        let _ = apps.get(job.mount).map(|app| &app.callable);
        let environ = PyDict::new(py);
        environ.set_item("PATH_INFO", String::from_utf8_lossy(&job.request.path))?;
        let mut sending = std::pin::pin!(job.request.respond(200).send(hello.as_bytes()));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = sending.as_mut().poll(&mut context);
    }
}
