//! A worker's main thread: loads the applications, starts the thread that receives, and runs Python until that one has ended.

use std::path::PathBuf;
use std::process::{ExitCode, Termination as _};
use std::sync::OnceLock;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::inlet::{self, Inlet};
use crate::load::{self, App};
use crate::queue::Queue;
use crate::settings::Settings;
use crate::site::{Interface, Site};
use crate::{watchdog, wsgi};

/// Where applications are, for those that ask each other.
static SITE: OnceLock<Site> = OnceLock::new();

/// Serves as the supervisor has ordered; returns the exit code.
#[pyfunction]
pub(crate) fn worker(py: Python<'_>, settings: &str) -> PyResult<u8> {
    let settings = Settings::read(settings)
        .map_err(|error| PyValueError::new_err(format!("read the settings: {error}")))?;
    if !load::patch(py, &settings.io)? {
        return Ok(1);
    }
    let Some((apps, site)) = load::load(py, &settings)? else {
        return Ok(1);
    };
    if settings.check {
        return Ok(0);
    }
    introduce(py, &apps, &site)?;
    serve(py, &settings, &apps, site)
}

/// Serves until the supervisor says that it is enough.
fn serve(py: Python<'_>, settings: &Settings, apps: &[App], site: Site) -> PyResult<u8> {
    let queue = Queue::new();
    if let Some(timeout) = settings.timeout {
        watchdog::start(timeout, settings.io != "standard")?;
    }
    let settings = wsgi::Settings::new(settings);
    let inlet = Inlet {
        site: site.clone(),
        wsgi: queue.clone(),
        slots: settings.slots(),
    };
    let serving = std::thread::Builder::new()
        .name("lurcher".to_owned())
        .spawn(|| inlet::run_worker(inlet))?;
    wsgi::serve(py, &queue, &site, apps, settings)?.join(py)?;
    let code: ExitCode = py.detach(|| serving.join()).unwrap_or(ExitCode::FAILURE);
    Ok(u8::from(code.report() != ExitCode::SUCCESS))
}

/// Tells `lurcher.internal` which applications there are.
fn introduce(py: Python<'_>, apps: &[App], site: &Site) -> PyResult<()> {
    // Set once: a worker loads once.
    drop(SITE.set(site.clone()));
    let internal = py.import("lurcher.internal")?;
    let all = apps.iter().map(|app| {
        let interface = match app.interface {
            Interface::Wsgi => "wsgi",
            Interface::Asgi => "asgi",
        };
        (app.callable.clone_ref(py), interface)
    });
    internal.setattr("_apps", all.collect::<Vec<_>>())?;
    internal.setattr("_look_up", wrap_pyfunction!(look_up, internal.clone())?)
}

/// Which application has a path of a host, and how many bytes of that path are its place.
#[pyfunction]
fn look_up(host: &str, path: &[u8]) -> Option<(usize, usize)> {
    let site = SITE.get()?;
    let mount = site.mounts().get(site.look_up(host.as_bytes(), path)?)?;
    Some((mount.app, mount.consumed(path)?))
}

/// Tells the supervisor that these files were read, and that their change is to replace this process.
#[pyfunction]
pub(crate) fn reads(files: Vec<PathBuf>) {
    lurcher::launcher::reads(files);
}
