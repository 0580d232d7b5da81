//! A worker's main thread: loads the applications, starts the thread that receives, and runs Python until that one has ended.

use std::path::PathBuf;
use std::process::{ExitCode, Termination as _};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::asgi::{self, Desk};
use crate::engine::Engine;
use crate::inlet::{self, Inlet};
use crate::load::{self, App};
use crate::queue::Queue;
use crate::settings::Settings;
use crate::site::{Interface, Site};
use crate::{watchdog, wsgi};

/// Greenlets that answer WSGI requests, where `--concurrency` does not say.
const GREENLETS: usize = 1000;

/// Where applications are, for those that ask each other.
static SITE: OnceLock<Site> = OnceLock::new();

/// Serves as the supervisor has ordered; returns the exit code.
#[pyfunction]
pub(crate) fn worker(py: Python<'_>, settings: &str) -> PyResult<u8> {
    let settings = Settings::read(settings)
        .map_err(|error| PyValueError::new_err(format!("read the settings: {error}")))?;
    crate::api::log::leave_alone();
    if !settings.check {
        lurcher::launcher::begin_worker(settings.preload).map_err(PyRuntimeError::new_err)?;
    }
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
    if settings.preload {
        if !fork(py)? {
            return Ok(0);
        }
        lurcher::launcher::begin_worker(false).map_err(PyRuntimeError::new_err)?;
    }
    serve(py, &settings, &apps, site)
}

/// Forks workers from here, in each of which it returns true. What was loaded is counted as rubbish by nobody from now on, so that its
/// memory stays the same for all of them.
fn fork(py: Python<'_>) -> PyResult<bool> {
    let gc = py.import("gc")?;
    gc.call_method0("collect")?;
    gc.call_method0("freeze")?;
    py.import("lurcher._load")?
        .call_method0("warn_of_threads")?;
    let os = py.import("os")?;
    let forked = lurcher::launcher::fork_workers(|| {
        let pid = os.call_method0("fork").and_then(|pid| pid.extract());
        pid.map_err(|error| error.to_string())
    });
    forked.map_err(PyRuntimeError::new_err)
}

/// Serves until the supervisor says that it is enough.
fn serve(py: Python<'_>, settings: &Settings, apps: &[App], site: Site) -> PyResult<u8> {
    let has = |interface| {
        let mut mounts = site.mounts().iter();
        mounts.any(|mount| mount.interface == interface)
    };
    let (has_wsgi, has_asgi) = (has(Interface::Wsgi), has(Interface::Asgi));
    let queue = Queue::new();
    let desk = has_asgi
        .then(|| asgi::Inbox::new().map(|inbox| Desk::new(Arc::new(inbox))))
        .transpose()?;
    let concurrency = settings.concurrency.map(|most| most as usize);
    let for_wsgi = wsgi::Settings {
        io: match settings.io.as_str() {
            "gevent" => wsgi::Io::Gevent,
            "eventlet" => wsgi::Io::Eventlet,
            _ => wsgi::Io::Standard,
        },
        threads: settings.threads as usize,
        greenlets: concurrency.unwrap_or(GREENLETS),
        multiprocess: settings.workers > 1,
        main_thread: !has_asgi,
    };
    if let Some(timeout) = settings.timeout {
        watchdog::start(timeout, has_asgi || settings.io != "standard")?;
    }
    // One thread, which has nothing else to do between requests.
    let is_alone = if has_wsgi {
        !has_asgi && for_wsgi.io == wsgi::Io::Standard && for_wsgi.threads <= 1
    } else {
        has_asgi
    };
    let engine = is_alone.then(Engine::new);
    let for_asgi = concurrency.unwrap_or(asgi::CONCURRENCY);
    let inlet = Inlet {
        site: site.clone(),
        wsgi: queue.clone(),
        asgi: desk.clone(),
        is_mixed: has_wsgi && has_asgi,
        concurrency: for_asgi,
        engine: engine.clone(),
        slots: match (has_wsgi, has_asgi) {
            (_, false) => for_wsgi.slots(),
            (false, true) => for_asgi,
            (true, true) => for_wsgi.slots().saturating_add(for_asgi),
        },
    };
    let serving = Arc::new(Mutex::new(None));
    let started = Arc::clone(&serving);
    let begin = move || {
        let thread = std::thread::Builder::new().name("lurcher".to_owned());
        let thread = thread.spawn(|| inlet::run_worker(inlet));
        *started.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    };
    let join = |py: Python<'_>| -> PyResult<u8> {
        let thread = serving
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(thread) = thread.transpose()? else {
            return Ok(1);
        };
        let code: ExitCode = py.detach(|| thread.join()).unwrap_or(ExitCode::FAILURE);
        Ok(u8::from(code.report() != ExitCode::SUCCESS))
    };
    let Some(desk) = desk else {
        begin();
        wsgi::serve(py, &queue, engine, &site, apps, for_wsgi)?.join(py)?;
        return join(py);
    };
    let threads = has_wsgi
        .then(|| wsgi::serve(py, &queue, None, &site, apps, for_wsgi))
        .transpose()?;
    let on_loop = asgi::Settings {
        event_loop: &settings.event_loop,
        lifespan: &settings.lifespan,
        names: settings.places.iter().map(|place| &place.app[..]).collect(),
    };
    let is_started = asgi::serve(py, &on_loop, &desk, engine, &site, apps, begin)?;
    queue.close();
    if let Some(threads) = threads {
        threads.join(py)?;
    }
    if is_started { join(py) } else { Ok(1) }
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
