//! ASGI 3: applications on an event loop, in Python's main thread.
//!
//! `desk` are the books, which the receiving thread puts requests into; `inbox` is how it calls the loop; `line` is one client as both
//! threads know it. On the loop, `hub` has tasks begin with what has come: their `runner` has a `scope` made, and runs the
//! application, which talks to `http` or `websocket`, in `message`s, and awaits what `wait` gives it. `outlet` brings the answers on their way, `soon` what has to wait
//! there. `lurcher._asgi` has the loop itself and lifespans.

mod desk;
mod http;
mod hub;
mod inbox;
mod line;
mod message;
mod outlet;
mod runner;
mod scope;
mod soon;
mod wait;
mod websocket;

use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;

use crate::engine::Engine;
use crate::load::App;
use crate::site::{Interface, Site};

pub(crate) use desk::{CONCURRENCY, Desk, Source};
pub(crate) use inbox::{Farewell, Inbox, Incoming};

use hub::{Hub, Place};

/// What was said on the command line.
pub(crate) struct Settings<'a> {
    /// `auto`, `asyncio` or `uvloop`.
    pub(crate) event_loop: &'a str,
    /// `auto`, `on` or `off`.
    pub(crate) lifespan: &'a str,
    /// What the applications are called.
    pub(crate) names: Vec<&'a str>,
}

/// Serves the ASGI applications of the site until nothing comes any more; false when one could not be started, which was told.
/// `begin` is called when they are ready.
pub(crate) fn serve(
    py: Python<'_>,
    settings: &Settings<'_>,
    desk: &Arc<Desk>,
    engine: Option<Arc<Engine>>,
    site: &Site,
    apps: &[App],
    begin: impl FnOnce() + Send + 'static,
) -> PyResult<bool> {
    let mut places = Vec::new();
    let mut lifespans: Vec<(Py<PyAny>, &str, Vec<usize>)> = Vec::new();
    for (number, mount) in site.mounts().iter().enumerate() {
        let app = apps.get(mount.app);
        let callable = app.map_or_else(|| py.None(), |app| app.callable.clone_ref(py));
        places.push(Place {
            app: callable.clone_ref(py),
            root: mount.place.path.clone(),
            state: OnceLock::new(),
        });
        if mount.interface != Interface::Asgi {
            continue;
        }
        // One that is at several places is started once.
        let known = lifespans
            .iter_mut()
            .find(|(known, _, _)| known.is(&callable));
        if let Some((_, _, numbers)) = known {
            numbers.push(number);
        } else {
            let name = settings.names.get(mount.app).copied().unwrap_or_default();
            lifespans.push((callable, name, vec![number]));
        }
    }
    let hub = Hub::new(py, Arc::clone(desk), places, Box::new(begin), engine)?;
    let serve = py.import("lurcher._asgi")?.getattr("serve")?;
    let hub = Bound::new(py, hub)?;
    serve
        .call1((hub, lifespans, settings.lifespan, settings.event_loop))?
        .extract()
}
