//! The headers of a request as a mapping.

use std::sync::Arc;

use lurcher::wire::request::HeaderValues;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use super::convert::{bytes_of_text, text};
use super::hub::Message;

/// The headers of a request: a read-only mapping from names to values.
///
/// Names of the client's headers are in lower case, and may be asked for in any case. Names in upper case are the server's own words
/// (``METHOD``, ``PATH``, ``PATTERN``, ``REMOTE_ADDR``, …), which no client can forge; they have to be asked for as they are. A
/// header that came more than once has several values: ``headers[name]`` is the first, ``getall(name)`` has all.
///
/// Values are decoded as UTF-8 with ``surrogateescape``, so that encoding them so gives the bytes that came.
#[pyclass(frozen, mapping, module = "lurcher")]
pub(super) struct Headers {
    pub(super) message: Arc<Message>,
}

pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Headers>()?;
    let mapping = module.py().import("collections.abc")?.getattr("Mapping")?;
    mapping.call_method1("register", (module.py().get_type::<Headers>(),))?;
    Ok(())
}

impl Headers {
    fn all(&self, name: &Bound<'_, PyAny>) -> PyResult<HeaderValues<'_>> {
        let mut name = bytes_of_text(name)?;
        let headers = &self.message.request().headers;
        if let Some(value) = headers.get(&name) {
            return Ok(value);
        }
        name.make_ascii_lowercase();
        Ok(headers.all(&name))
    }
}

#[pymethods]
impl Headers {
    fn __getitem__<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyString>> {
        match self.all(name)?.first() {
            Some(value) => text(py, value),
            None => Err(PyKeyError::new_err(name.clone().unbind())),
        }
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> bool {
        self.all(name).is_ok_and(|values| !values.is_empty())
    }

    fn __len__(&self) -> usize {
        self.message.request().headers.len()
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.keys(py)?.call_method0("__iter__")
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.message.request().headers == other.message.request().headers
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("Headers({})", self.raw(py)?.repr()?))
    }

    /// The first value of a header, or ``default``.
    #[pyo3(signature = (name, default = None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self.all(name)?.first() {
            Some(value) => Ok(Some(text(py, value)?.into_any())),
            None => Ok(default),
        }
    }

    /// All values of a header in the order in which they came; an empty list when there are none.
    fn getall<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<Bound<'py, PyString>>> {
        self.all(name)?
            .iter()
            .map(|value| text(py, value))
            .collect()
    }

    /// The names, each once.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let names = self.message.request().headers.iter();
        let names: PyResult<Vec<_>> = names.map(|(name, _)| text(py, name)).collect();
        PyList::new(py, names?)
    }

    /// The first value of each name.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let values = self.message.request().headers.iter();
        let values: PyResult<Vec<_>> = values
            .map(|(_, value)| text(py, value.first().unwrap_or_default()))
            .collect();
        PyList::new(py, values?)
    }

    /// Each name with its first value.
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let items = self.message.request().headers.iter();
        let items: PyResult<Vec<_>> = items
            .map(|(name, value)| {
                let value = value.first().unwrap_or_default();
                PyResult::Ok((text(py, name)?, text(py, value)?))
            })
            .collect();
        PyList::new(py, items?)
    }

    /// Each name with each of its values, in bytes as they came.
    fn raw<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let items = self.message.request().headers.iter();
        let items: Vec<_> = items
            .flat_map(|(name, value)| value.iter().map(move |value| (name, value)))
            .map(|(name, value)| (PyBytes::new(py, name), PyBytes::new(py, value)))
            .collect();
        PyList::new(py, items)
    }
}
