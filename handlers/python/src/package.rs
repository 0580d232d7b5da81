//! The package's own sources, for interpreters that have it not installed: whoever builds with cargo needs nothing beside the library.

use std::collections::BTreeMap;

use pyo3::prelude::*;

const SOURCES: &[(&str, &str)] = &[
    ("lurcher", include_str!("../python/lurcher/__init__.py")),
    ("lurcher._asgi", include_str!("../python/lurcher/_asgi.py")),
    ("lurcher._load", include_str!("../python/lurcher/_load.py")),
    (
        "lurcher._reload",
        include_str!("../python/lurcher/_reload.py"),
    ),
    ("lurcher.aio", include_str!("../python/lurcher/aio.py")),
    (
        "lurcher.handlers",
        include_str!("../python/lurcher/handlers.py"),
    ),
    (
        "lurcher.internal",
        include_str!("../python/lurcher/internal.py"),
    ),
    (
        "lurcher.middleware",
        include_str!("../python/lurcher/middleware.py"),
    ),
    (
        "lurcher.signals",
        include_str!("../python/lurcher/signals.py"),
    ),
];

/// The texts of the package's modules by their names.
#[pyfunction]
pub(crate) fn sources() -> BTreeMap<&'static str, &'static str> {
    SOURCES.iter().copied().collect()
}
