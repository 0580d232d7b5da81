//! Arguments from Python, and text to it.

use lurcher::handler::{Opcode, Request, Respond};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyInt, PyString};

/// Bytes of Python's, or a text's in UTF-8, without copying.
pub(super) enum Data {
    Bytes(PyBackedBytes),
    Text(PyBackedStr),
}

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        match self {
            Data::Bytes(bytes) => bytes,
            Data::Text(text) => text.as_bytes(),
        }
    }
}

impl Data {
    /// Of `bytes`, `bytearray`, `str`, or whatever `bytes()` takes that is no number.
    pub(super) fn of(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = value.extract() {
            return Ok(Data::Bytes(bytes));
        }
        if value.is_instance_of::<PyString>() {
            return Ok(Data::Text(value.extract()?));
        }
        if value.hasattr("__buffer__")? || value.get_type().name()? == "memoryview" {
            let bytes = value.py().get_type::<PyBytes>().call1((value,))?;
            return Ok(Data::Bytes(bytes.extract()?));
        }
        Err(PyTypeError::new_err(format!(
            "bytes or str expected, not {}",
            value.get_type().name()?
        )))
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self, Data::Text(_))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.as_ref().is_empty()
    }
}

/// What HTTP calls text, as Python has it: UTF-8, and what is none in a form that can be turned back (`surrogateescape`).
pub(super) fn text<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Ok(PyString::new(py, text));
    }
    PyString::from_encoded_object(
        &PyBytes::new(py, bytes),
        Some(c"utf-8"),
        Some(c"surrogateescape"),
    )
}

/// The way back.
pub(super) fn bytes_of_text(value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(bytes) = value.extract::<PyBackedBytes>() {
        return Ok(bytes.to_vec());
    }
    let value = value.cast::<PyString>()?;
    if let Ok(text) = value.to_str() {
        return Ok(text.as_bytes().to_vec());
    }
    value
        .call_method1("encode", ("utf-8", "surrogateescape"))?
        .extract()
}

/// Names and values, of a mapping or of pairs.
pub(super) fn fields(value: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<(Vec<u8>, Vec<u8>)>> {
    let Some(value) = value.filter(|value| !value.is_none()) else {
        return Ok(Vec::new());
    };
    let pairs = if value.hasattr("items")? {
        value.call_method0("items")?
    } else {
        value.clone()
    };
    let pairs = pairs.try_iter()?.map(|pair| {
        let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = pair?.extract()?;
        Ok((bytes_of_text(&name)?, bytes_of_text(&value)?))
    });
    pairs.collect()
}

/// `404`, `"404"` or `"404 Not Here"`: the code and the reason, if one was said.
pub(super) fn status(value: &Bound<'_, PyAny>) -> PyResult<(u16, Option<String>)> {
    if value.is_instance_of::<PyInt>() {
        // http.HTTPStatus is one, too.
        return Ok((value.extract()?, None));
    }
    let text: String = value.extract()?;
    let (code, reason) = match text.split_once(' ') {
        Some((code, reason)) => (code, Some(reason.to_owned())),
        None => (text.as_str(), None),
    };
    match code.parse() {
        Ok(code) if (100..=999).contains(&code) => Ok((code, reason)),
        _ => Err(PyValueError::new_err(format!("no status: {text:?}"))),
    }
}

/// Begins a response with all that its head says.
pub(super) fn respond(
    request: &Request,
    (code, phrase): (u16, Option<String>),
    headers: &[(Vec<u8>, Vec<u8>)],
    reason: Option<&str>,
    close: bool,
) -> Respond {
    let mut respond = request.respond(code);
    for (name, value) in headers {
        respond = respond.header(name, value);
    }
    if let Some(reason) = reason.or(phrase.as_deref()) {
        respond = respond.reason(reason);
    }
    if close {
        respond = respond.close();
    }
    respond
}

/// The kind of a WebSocket message: what was said, or what the data is.
pub(super) fn opcode(said: Option<u8>, data: &Data) -> PyResult<Opcode> {
    let Some(said) = said else {
        return Ok(if data.is_text() {
            Opcode::Text
        } else {
            Opcode::Binary
        });
    };
    (said < 16)
        .then(|| Opcode::from_flags(0x80 | said))
        .flatten()
        .ok_or_else(|| PyValueError::new_err(format!("no opcode of WebSocket: {said}")))
}
