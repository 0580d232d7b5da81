//! A worker's main thread: loads the applications, starts the thread that receives, and runs Python until that one has ended.

use std::process::{ExitCode, Termination as _};

use pyo3::prelude::*;

use crate::inlet::{self, Inlet};
use crate::queue::Queue;
use crate::site::{Interface, Mount, Site};
use crate::{load, wsgi};

/// Serves as the supervisor has ordered; returns the exit code.
#[pyfunction]
pub(crate) fn worker(py: Python<'_>, target: &str) -> PyResult<u8> {
    let apps = vec![load::load(py, target)?];
    let site = Site::new(vec![Mount {
        path: String::new(),
        app: 0,
        interface: Interface::Wsgi,
    }]);
    let queue = Queue::new();
    let settings = wsgi::Settings {
        io: wsgi::Io::Standard,
        threads: 1,
        greenlets: 1000,
        multiprocess: true,
        main_thread: true,
    };
    let inlet = Inlet {
        site: site.clone(),
        wsgi: queue.clone(),
        slots: settings.slots(),
    };
    let serving = std::thread::Builder::new()
        .name("lurcher".to_owned())
        .spawn(|| inlet::run_worker(inlet))?;
    wsgi::serve(py, &queue, &site, &apps, settings)?.join(py)?;
    let code: ExitCode = py.detach(|| serving.join()).unwrap_or(ExitCode::FAILURE);
    Ok(u8::from(code.report() != ExitCode::SUCCESS))
}
