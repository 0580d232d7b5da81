//! The extension module: runs Python applications in the interpreter that has loaded it.
//!
//! Requests are received and answered by threads that know nothing of Python; Python's own threads take them from a queue, so
//! that nothing waits for the interpreter that need not.

#[path = "../options.rs"]
mod options;
mod queue;
mod wsgi;

use std::process::{ExitCode, Termination as _};

use lurcher::handler::{Connection, Event, ReplyError};
use lurcher::launcher::{BuiltIn, Handler, Target, Values};
use pyo3::prelude::*;

use queue::Queue;

const BUILT_IN: &[BuiltIn] = &[BuiltIn {
    name: options::NAME,
    about: "",
    targets: &[Target {
        scheme: "",
        form: "MODULE:NAME",
    }],
    options: options::OPTIONS,
    run,
}];

fn run(values: &Values) -> Result<Handler, String> {
    queue::set_target(values.target());
    Ok(Handler::new(serve))
}

async fn serve(mut connection: Connection) -> Result<(), ReplyError> {
    let queue = Queue::shared();
    while let Some(request) = connection.recv().await {
        if let Event::Request(request) = request.into_event() {
            queue.push(request);
        }
    }
    connection.finish().await;
    queue.close();
    Ok(())
}

/// Serves as the supervisor has ordered; returns the exit code.
#[pyfunction]
fn worker(py: Python<'_>) -> PyResult<u8> {
    let serving = std::thread::Builder::new()
        .name("lurcher".to_owned())
        .spawn(|| lurcher::launcher::worker(BUILT_IN))?;
    wsgi::serve(py, &Queue::shared())?;
    let code: ExitCode = py.detach(|| serving.join()).unwrap_or(ExitCode::FAILURE);
    Ok(u8::from(code.report() != ExitCode::SUCCESS))
}

#[pymodule]
fn _lurcher(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(worker, module)?)
}
