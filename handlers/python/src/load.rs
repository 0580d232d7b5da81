//! Finds applications by their names.

use pyo3::prelude::*;

/// An application as it was found.
pub(crate) struct App {
    pub(crate) callable: Py<PyAny>,
}

/// Imports `package.module:name` or `package.module.name`.
///
/// # Errors
///
/// Whatever the import raises.
pub(crate) fn load(py: Python<'_>, target: &str) -> PyResult<App> {
    let (module, name) = target
        .split_once(':')
        .or_else(|| target.rsplit_once('.'))
        .unwrap_or((target, "application"));
    let mut found = py.import(module)?.into_any();
    for part in name.split('.') {
        found = found.getattr(part)?;
    }
    Ok(App {
        callable: found.unbind(),
    })
}
