//! Finds applications: the bridge to `lurcher._load`, which does it. Whoever looks names up and formats tracebacks does it better in
//! Python, and it happens once.

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::settings::Settings;
use crate::site::{Interface, Mount, Site};

/// An application as it was found.
pub(crate) struct App {
    pub(crate) callable: Py<PyAny>,
    pub(crate) interface: Interface,
}

/// Has everything that waits give way to greenlets, before anything else is imported. False: it cannot be had, and that has been said.
///
/// # Errors
///
/// What patching raises.
pub(crate) fn patch(py: Python<'_>, io: &str) -> PyResult<bool> {
    let (module, function) = match io {
        "gevent" => ("gevent.monkey", "patch_all"),
        "eventlet" => ("eventlet", "monkey_patch"),
        _ => return Ok(true),
    };
    match py.import(module) {
        Ok(module) => module.call_method0(function).map(|_| true),
        Err(error) if error.is_instance_of::<PyImportError>(py) => {
            eprintln!(
                "lurcher: --io {io}: {} in this interpreter",
                error.value(py)
            );
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Loads all applications, and says where they are. None: they do not load, and why has been said.
///
/// # Errors
///
/// What this extension's own Python raises.
pub(crate) fn load(py: Python<'_>, settings: &Settings) -> PyResult<Option<(Vec<App>, Site)>> {
    let found = py
        .import("lurcher._load")?
        .call_method1("load_all", (&settings.text,))?;
    if found.is_none() {
        return Ok(None);
    }
    let mut apps = Vec::new();
    for each in found.try_iter()? {
        let each = each?.cast_into::<PyTuple>()?;
        let (callable, interface): (Py<PyAny>, String) = each.extract()?;
        apps.push(App {
            callable,
            interface: match interface.as_str() {
                "asgi" => Interface::Asgi,
                _ => Interface::Wsgi,
            },
        });
    }
    let mounts = settings.places.iter().zip(&apps).enumerate();
    let mounts = mounts.map(|(at, (place, app))| Mount {
        place: place.place.clone(),
        app: at,
        interface: app.interface,
    });
    let site = Site::new(mounts.collect());
    Ok(Some((apps, site)))
}
