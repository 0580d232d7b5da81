//! The extension module: runs Python applications in the interpreter that has loaded it.
//!
//! `inlet` receives requests and knows nothing of Python; it puts them, sorted by `site` and in their `turns`, into queues, from
//! which Python's own threads take them: `wsgi` those of WSGI applications, `asgi` those of ASGI ones, on an event loop. `engine` says in
//! which thread it receives: where one of Python's can do that, without another. `load` finds the applications; `worker` puts it all
//! together. Answers go out from Python's threads directly: what a send cannot do at once is
//! waited for without the interpreter's lock. `api` is beside all that: connections for Python programs that are no applications.

mod api;
mod asgi;
mod engine;
mod inlet;
mod load;
#[path = "../options.rs"]
mod options;
mod package;
mod queue;
mod settings;
mod site;
mod turns;
mod wait;
mod watchdog;
mod worker;
mod wsgi;

use pyo3::prelude::*;

#[pymodule]
fn _lurcher(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(package::sources, module)?)?;
    module.add_function(wrap_pyfunction!(worker::reads, module)?)?;
    module.add_function(wrap_pyfunction!(worker::worker, module)?)?;
    api::add(module)
}
