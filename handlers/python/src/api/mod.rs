//! The Python API: connections, requests and clients for handlers that are not web applications.
//!
//! Everything is done by the library on one thread of its own (`runtime`); a `hub` is a connection that any number of Python threads
//! share. Each class comes twice, once with methods that wait, without the interpreter's lock, and once, in `lurcher.aio`, with the
//! same methods returning futures of an event loop: `way` is the one place that knows the difference. `log` brings what the library has to
//! say to Python's logging.

mod body;
mod client;
mod connection;
mod convert;
mod errors;
mod headers;
mod hub;
mod inbox;
pub(crate) mod log;
mod request;
mod runtime;
mod way;
mod writer;
mod wsgi;

use pyo3::prelude::*;

/// Adds all of it to the extension module.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::add(module)?;
    headers::add(module)?;
    body::add(module)?;
    client::add(module)?;
    writer::add(module)?;
    request::add(module)?;
    connection::add(module)?;
    wsgi::add(module)
}
