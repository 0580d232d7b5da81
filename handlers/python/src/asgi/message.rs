//! The messages that applications send, read as the specification has them: what is missing has its default, what is of another
//! type is an error that says so.

use lurcher::handler::{Request, Respond};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList, PyMapping, PyString, PyTuple};

/// A message: a dict, whatever it came as.
pub(crate) struct Message<'py>(Bound<'py, PyDict>);

impl<'py> Message<'py> {
    pub(crate) fn new(given: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(dict) = given.cast::<PyDict>() {
            return Ok(Self(dict.clone()));
        }
        let Ok(mapping) = given.cast::<PyMapping>() else {
            let what = given.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "a message is a dict, not {what}"
            )));
        };
        let dict = PyDict::new(given.py());
        dict.update(mapping)?;
        Ok(Self(dict))
    }

    pub(crate) fn kind(&self) -> PyResult<Bound<'py, PyString>> {
        let kind = self.get(pyo3::intern!(self.0.py(), "type"))?;
        let kind = kind.ok_or_else(|| PyValueError::new_err("a message without a type"))?;
        Ok(kind.cast_into()?)
    }

    /// What stands under that name, `None` aside.
    pub(crate) fn get(&self, name: &Bound<'py, PyString>) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(self.0.get_item(name)?.filter(|value| !value.is_none()))
    }

    pub(crate) fn flag(&self, name: &Bound<'py, PyString>) -> PyResult<bool> {
        self.get(name)?.map_or(Ok(false), |value| value.is_truthy())
    }

    /// Bytes, or what is like them; a bytearray is copied.
    pub(crate) fn bytes(&self, name: &Bound<'py, PyString>) -> PyResult<Option<PyBackedBytes>> {
        let Some(value) = self.get(name)? else {
            return Ok(None);
        };
        match value.extract() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) if value.hasattr("tobytes")? => Ok(Some(
                value
                    .call_method0("tobytes")?
                    .extract()
                    .map_err(PyErr::from)?,
            )),
            Err(_) => {
                let what = value.get_type().name()?;
                Err(PyTypeError::new_err(format!("{name} is bytes, not {what}")))
            }
        }
    }

    pub(crate) fn text(&self, name: &Bound<'py, PyString>) -> PyResult<Option<String>> {
        let value = self.get(name)?;
        value.map(|value| value.extract()).transpose()
    }

    pub(crate) fn number(&self, name: &Bound<'py, PyString>) -> PyResult<Option<u16>> {
        let value = self.get(name)?;
        value.map(|value| value.extract()).transpose()
    }

    /// The status and the headers of a response.
    ///
    /// # Errors
    ///
    /// When they are no head of HTTP.
    pub(crate) fn head(&self, request: &Request) -> PyResult<Head> {
        let py = self.0.py();
        let status = self.number(pyo3::intern!(py, "status"))?;
        let status = status.ok_or_else(|| PyValueError::new_err("a response without a status"))?;
        if !(200..=999).contains(&status) {
            return Err(PyValueError::new_err(format!(
                "{status} is the status of no response"
            )));
        }
        let mut respond = request.respond(status);
        let mut declared = None;
        self.headers(|name, value| {
            match name.len() {
                14 if name.eq_ignore_ascii_case(b"content-length") => {
                    declared = std::str::from_utf8(value)
                        .ok()
                        .and_then(|text| text.trim().parse().ok());
                }
                // The body is framed here, as its client needs it.
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => return Ok(()),
                _ => {}
            }
            respond.add_header(name, value);
            match respond.mistake() {
                Some(mistake) => Err(PyValueError::new_err(mistake.to_string())),
                None => Ok(()),
            }
        })?;
        let is_bodiless = request.method() == Some(b"HEAD") || matches!(status, 204 | 304);
        Ok(Head {
            respond,
            declared,
            is_bodiless,
        })
    }

    /// Each pair of `headers`.
    pub(crate) fn headers(
        &self,
        mut each: impl FnMut(&[u8], &[u8]) -> PyResult<()>,
    ) -> PyResult<()> {
        let Some(headers) = self.get(pyo3::intern!(self.0.py(), "headers"))? else {
            return Ok(());
        };
        if let Ok(list) = headers.cast::<PyList>() {
            for pair in list {
                with_pair(&pair, &mut each)?;
            }
            return Ok(());
        }
        for pair in headers.try_iter()? {
            with_pair(&pair?, &mut each)?;
        }
        Ok(())
    }
}

/// The beginning of a response.
pub(crate) struct Head {
    pub(crate) respond: Respond,
    /// What it says of the length of its body.
    pub(crate) declared: Option<u64>,
    /// No body goes out, whatever is sent.
    pub(crate) is_bodiless: bool,
}

fn with_pair(
    pair: &Bound<'_, PyAny>,
    each: &mut impl FnMut(&[u8], &[u8]) -> PyResult<()>,
) -> PyResult<()> {
    let (name, value) = if let Ok(pair) = pair.cast::<PyTuple>()
        && pair.len() == 2
    {
        (pair.get_item(0)?, pair.get_item(1)?)
    } else {
        pair.extract()
            .map_err(|_| PyTypeError::new_err("a header is a pair of name and value"))?
    };
    if let (Ok(name), Ok(value)) = (name.cast::<PyBytes>(), value.cast::<PyBytes>()) {
        return each(name.as_bytes(), value.as_bytes());
    }
    let bytes = |what: &Bound<'_, PyAny>| {
        what.extract::<PyBackedBytes>()
            .map_err(|_| PyTypeError::new_err("names and values of headers are bytes"))
    };
    each(&bytes(&name)?, &bytes(&value)?)
}

/// A message that has no business where it came.
pub(crate) fn unexpected(expected: &str, got: &Bound<'_, PyString>) -> PyErr {
    PyRuntimeError::new_err(format!(
        "expected {expected}, but got {}",
        got.to_string_lossy()
    ))
}

/// One that comes too early, too late or twice.
pub(crate) fn out_of_order(kind: &str, why: &str) -> PyErr {
    PyRuntimeError::new_err(format!("unexpected {kind}: {why}"))
}
