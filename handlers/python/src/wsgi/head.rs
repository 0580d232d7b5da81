//! What an application says to `start_response`, held to what HTTP and PEP 3333 allow, and the errors that tell what is wrong with it.
//! They are worded as other servers have it, so that whoever looks for one finds what is known of it. It sends nothing.

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

/// Fields about a connection, which is the server's (PEP 3333, "Other HTTP Features"). `Connection` is judged by its words.
const HOP_BY_HOP: [&str; 7] = [
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// How much of a status, a name or a value an error shows, in bytes: what is wrong with it is near its beginning, or in the traceback.
const SHOWN_MAX: usize = 200;

/// How errors begin that are about an argument.
const ARGUMENT: &str = "start_response() argument";

/// What something is instead.
fn not(value: &Bound<'_, PyAny>) -> String {
    let kind = value.get_type();
    let kind = kind
        .name()
        .map_or_else(|_| String::new(), |name| name.to_string());
    format!("not {kind}")
}

/// Bytes as Python writes them, to be shown in an error.
fn shown(py: Python<'_>, bytes: &[u8]) -> String {
    let part = bytes.get(..SHOWN_MAX).unwrap_or(bytes);
    let more = if part.len() < bytes.len() { "..." } else { "" };
    let part = PyBytes::new(py, part).repr();
    part.map_or_else(|_| String::new(), |part| format!("{part}{more}"))
}

/// A header as it was given.
pub(super) fn pair<'a, 'py>(header: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyTuple>> {
    let wrong = "each header must be a 2-tuple";
    let pair = header
        .cast::<PyTuple>()
        .map_err(|_| PyTypeError::new_err(format!("{wrong}, {}", not(header))))?;
    match pair.len() {
        2 => Ok(pair),
        other => Err(PyValueError::new_err(format!(
            "{wrong}, got length {other}"
        ))),
    }
}

/// The name or the value of a header.
fn text<'a, 'py>(part: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyString>> {
    part.cast::<PyString>()
        .map_err(|_| PyTypeError::new_err(format!("must be str, {}", not(part))))
}

/// An error with a note that says which header it is about; Python 3.10 knows no notes.
fn of_header(py: Python<'_>, error: PyErr, name: &[u8]) -> PyErr {
    let note = format!("in header {}", name.escape_ascii());
    drop(
        error
            .value(py)
            .call_method1(intern!(py, "add_note"), (note,)),
    );
    error
}

/// The bytes that a string stands for (PEP 3333, "A Note on String Types").
fn latin1<'a>(text: &'a Bound<'_, PyString>, converted: &'a mut Vec<u8>) -> PyResult<&'a [u8]> {
    let string = text.to_str()?;
    if string.is_ascii() {
        return Ok(string.as_bytes());
    }
    converted.clear();
    for character in string.chars() {
        let Ok(byte) = u8::try_from(character) else {
            // Python says best where they are.
            text.call_method1(intern!(text.py(), "encode"), ("latin-1",))?;
            return Err(PyValueError::new_err("there are characters beyond Latin-1"));
        };
        converted.push(byte);
    }
    Ok(converted)
}

/// Code and reason of what was said to be the status.
pub(super) fn status<'a>(
    status: &'a Bound<'_, PyAny>,
    converted: &'a mut Vec<u8>,
) -> PyResult<(u16, &'a [u8])> {
    let text = status
        .cast::<PyString>()
        .map_err(|_| PyTypeError::new_err(format!("{ARGUMENT} 1 must be str, {}", not(status))))?;
    split_status(status.py(), latin1(text, converted)?)
}

/// What was said to be the headers.
pub(super) fn list<'a, 'py>(headers: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyList>> {
    headers
        .cast::<PyList>()
        .map_err(|_| PyTypeError::new_err(format!("{ARGUMENT} 2 must be list, {}", not(headers))))
}

/// The name of a header.
pub(super) fn name<'a>(
    name: &'a Bound<'_, PyAny>,
    converted: &'a mut Vec<u8>,
) -> PyResult<&'a [u8]> {
    let bytes = latin1(text(name)?, converted)?;
    check_name(name.py(), bytes)?;
    Ok(bytes)
}

/// The value of a header. What is wrong with one says which header it is.
pub(super) fn value<'a>(
    name: &[u8],
    value: &'a Bound<'_, PyAny>,
    converted: &'a mut Vec<u8>,
) -> PyResult<&'a [u8]> {
    let py = value.py();
    let bytes = text(value).and_then(|value| latin1(value, converted));
    let bytes = bytes.and_then(|bytes| check_value(py, name, bytes).map(|()| bytes));
    bytes.map_err(|error| of_header(py, error, name))
}

/// Code and reason of `DDD reason`.
fn split_status<'a>(py: Python<'_>, status: &'a [u8]) -> PyResult<(u16, &'a [u8])> {
    let wrong = |what: &str| PyValueError::new_err(format!("{what}: {}", shown(py, status)));
    let digits = status.iter().take_while(|byte| byte.is_ascii_digit());
    let (3, Some((code, reason))) = (digits.count(), status.split_at_checked(3)) else {
        return Err(wrong("status code must be a 3 digit integer"));
    };
    let code = std::str::from_utf8(code).ok();
    let code: Option<u16> = code.and_then(|code| code.parse().ok());
    let code = code.filter(|code| *code >= 100);
    let code = code.ok_or_else(|| wrong("status code must be 100 or more"))?;
    let reason = reason.strip_prefix(b" ");
    let reason = reason.ok_or_else(|| wrong("no space following status code"))?;
    if reason.iter().copied().any(is_control) {
        return Err(wrong("control character in status reason phrase"));
    }
    Ok((code, reason))
}

fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

/// Whether this may be the name of a header.
fn check_name(py: Python<'_>, name: &[u8]) -> PyResult<()> {
    let wrong = |what: &str| PyValueError::new_err(format!("{what}: {}", shown(py, name)));
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    match name.iter().find(|byte| !token(byte)) {
        None if name.is_empty() => Err(PyValueError::new_err("header name is empty")),
        None => Ok(()),
        Some(b' ') => Err(wrong("space character in header name")),
        Some(byte) if byte.is_ascii_control() => Err(wrong("control character in header name")),
        Some(_) => Err(wrong("character in header name that none may have")),
    }
}

/// Whether this may be the value of a header.
fn check_value(py: Python<'_>, name: &[u8], value: &[u8]) -> PyResult<()> {
    let wrong = |what: &str| PyValueError::new_err(format!("{what}: {}", shown(py, value)));
    match value.iter().copied().find(|byte| is_control(*byte)) {
        None => {}
        Some(b'\r' | b'\n') => {
            let what = "carriage return/line feed character in header value";
            return Err(wrong(what));
        }
        Some(_) => return Err(wrong("control character in header value")),
    }
    let word = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
    let connection = name.eq_ignore_ascii_case(b"connection")
        && !value.eq_ignore_ascii_case(b"close")
        && !value.eq_ignore_ascii_case(b"keep-alive");
    if connection || HOP_BY_HOP.into_iter().any(word) {
        let name = name.escape_ascii();
        let why = format!("header {name} is about the connection, which is the server's");
        return Err(PyValueError::new_err(why));
    }
    Ok(())
}

/// What a `Content-Length` says.
pub(super) fn length(py: Python<'_>, value: &[u8]) -> PyResult<u64> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| {
        PyValueError::new_err(format!("Content-Length is no number: {}", shown(py, value)))
    })
}

/// What `sys.exc_info()` returns.
pub(super) fn triple<'a, 'py>(
    exc_info: &'a Bound<'py, PyAny>,
) -> PyResult<&'a Bound<'py, PyTuple>> {
    let triple = exc_info.cast::<PyTuple>().ok();
    triple.filter(|triple| triple.len() == 3).ok_or_else(|| {
        let why = format!("{ARGUMENT} 'exc_info' must be a 3-tuple or None");
        PyRuntimeError::new_err(why)
    })
}
