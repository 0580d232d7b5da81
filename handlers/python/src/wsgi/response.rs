//! An application is called, and what it returns is sent: a list in one message, an iterator piece by piece as it produces them, a file
//! by whoever does it best. Whatever happens, `close` is called and the client gets an end.

use lurcher::handler::{Client, HttpError, ReplyError, Request};
use pyo3::exceptions::{PyKeyboardInterrupt, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use super::file::FileWrapper;
use super::input::Input;
use super::start::{Fault, StartResponse};
use crate::wait;

/// A body of at most so many bytes that is there whole is one message, which the server holds for its client; what is longer goes as
/// fast as the client takes it.
const WHOLE_MAX: usize = 256 << 10;

/// What is read of a file and sent at a time, in bytes.
const FILE_PIECE: usize = 128 << 10;

/// Calls an application and sends its response. What is left when that was interrupted (`KeyboardInterrupt`), for whoever owns the thread.
pub(super) fn answer(
    py: Python<'_>,
    application: &Py<PyAny>,
    environ: Bound<'_, PyDict>,
    start: &Bound<'_, StartResponse>,
    input: &Bound<'_, Input>,
) -> Option<PyErr> {
    let called = application.call1(py, (environ, start));
    let sent = match called {
        Ok(result) => {
            let result = result.bind(py);
            let sent = send(result, start, input);
            match (sent, close(result)) {
                (Ok(()), closed) => closed.map_err(Fault::from),
                (Err(fault), Ok(())) => Err(fault),
                (Err(fault), Err(error)) => {
                    tracing::error!("closing a response: {}", traceback(py, &error));
                    Err(fault)
                }
            }
        }
        Err(error) => Err(error.into()),
    };
    let Ok(mut state) = start.try_borrow_mut() else {
        // A thread of the application's is still writing. The response goes with the last of them.
        tracing::error!("answering a request: it is written to from elsewhere");
        return None;
    };
    if state.is_too_long() {
        let what = name(state.request());
        tracing::warn!("answering {what}: the body is longer than its Content-Length, and was cut");
    }
    let client = state.request().client();
    match sent {
        Ok(()) => {
            let left = input
                .try_borrow_mut()
                .is_ok_and(|mut input| input.is_left());
            drop(state);
            if left {
                end(py, &client);
            }
            None
        }
        Err(fault) => {
            let interrupt = match &fault {
                Fault::Raised(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => {
                    Some(error.clone_ref(py))
                }
                _ => None,
            };
            failed(py, &mut state, fault);
            interrupt
        }
    }
}

/// Closes the connection of a client whose request was not read to its end.
fn end(py: Python<'_>, client: &Client) {
    match wait::until(py, Box::pin(client.close())) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(?client, %error, "closing a connection"),
        Err(error) => tracing::debug!(?client, %error, "closing a connection"),
    }
}

/// Says what went wrong: to the client, if nothing was said yet, and in the log.
fn failed(py: Python<'_>, state: &mut StartResponse, fault: Fault) {
    let what = name(state.request());
    let begun = state.has_begun();
    match fault {
        Fault::Raised(error) => {
            let cut = state.is_open();
            let consequence = if cut { ", its client is cut off" } else { "" };
            let trace = traceback(py, &error);
            tracing::error!("answering {what}{consequence}: {trace}");
        }
        Fault::Reply(ReplyError::ClientGone) => {
            tracing::debug!("answering {what}: the client is gone");
            return state.give_up(py);
        }
        Fault::Reply(ReplyError::Http(HttpError::Length { declared, written })) => {
            tracing::warn!(
                "answering {what}: a body of {written} bytes, and its Content-Length says {declared}: its client is cut off"
            );
        }
        Fault::Reply(error) => tracing::error!("answering {what}: {error}"),
        Fault::Leaving => {
            tracing::warn!("answering {what}: ended before its end, because the worker stops");
        }
    }
    state.give_up(py);
    if begun || state.claim().is_err() {
        return;
    }
    let respond = state.request().respond(500).close();
    let respond = respond.header("Content-Type", "text/plain");
    match wait::until(py, Box::pin(respond.send("Internal Server Error\n"))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("answering {what}: {error}"),
        Err(error) => tracing::debug!("answering {what}: {error}"),
    }
}

/// A request as it stands in the log.
fn name(request: &Request) -> String {
    let method = request.method().unwrap_or_default().escape_ascii();
    format!("{method} {}", request.path.escape_ascii())
}

/// What Python would print.
fn traceback(py: Python<'_>, error: &PyErr) -> String {
    let lines = || {
        let format = py.import("traceback")?.getattr("format_exception")?;
        let lines = format.call1((error.get_type(py), error.value(py), error.traceback(py)))?;
        lines.extract::<Vec<String>>()
    };
    match lines() {
        Ok(lines) => lines.concat().trim_end().to_owned(),
        Err(_) => error.to_string(),
    }
}

/// Calls `close`, where there is one.
fn close(result: &Bound<'_, PyAny>) -> PyResult<()> {
    if result.is_exact_instance_of::<PyList>() || result.is_exact_instance_of::<PyTuple>() {
        return Ok(());
    }
    match result.getattr_opt(intern!(result.py(), "close"))? {
        Some(close) => close.call0().map(drop),
        None => Ok(()),
    }
}

fn send(
    result: &Bound<'_, PyAny>,
    start: &Bound<'_, StartResponse>,
    input: &Bound<'_, Input>,
) -> Result<(), Fault> {
    let py = result.py();
    if let Ok(list) = result.cast_exact::<PyList>() {
        // What is in a list may change while a piece is waited for.
        return send_all(&list.to_tuple(), start, input);
    }
    if let Ok(tuple) = result.cast_exact::<PyTuple>() {
        return send_all(tuple, start, input);
    }
    if let Ok(wrapper) = result.cast_exact::<FileWrapper>()
        && let Some(sent) = send_file(py, wrapper.get(), start, input)
    {
        return sent;
    }
    for piece in result.try_iter()? {
        let piece = piece?;
        let data = bytes(&piece)?.as_bytes();
        if data.is_empty() {
            continue;
        }
        let mut state = start.try_borrow_mut().map_err(PyErr::from)?;
        state.write_piece(py, data)?;
        if state.wants_nothing() {
            break;
        }
    }
    finish(py, start, input)
}

fn finish(
    py: Python<'_>,
    start: &Bound<'_, StartResponse>,
    input: &Bound<'_, Input>,
) -> Result<(), Fault> {
    let mut state = start.try_borrow_mut().map_err(PyErr::from)?;
    close_if_left(&mut state, input);
    state.finish(py)
}

/// A head that leaves with the whole body says that the connection ends, where it has to.
fn close_if_left(state: &mut StartResponse, input: &Bound<'_, Input>) {
    if input
        .try_borrow_mut()
        .is_ok_and(|mut input| input.is_left())
    {
        state.close_behind();
    }
}

fn bytes<'a, 'py>(piece: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyBytes>> {
    piece.cast::<PyBytes>().map_err(|_| {
        let kind = piece.get_type();
        let kind = kind
            .name()
            .map_or_else(|_| String::new(), |name| name.to_string());
        PyTypeError::new_err(format!(
            "the body has a piece of type {kind}, which is not bytes"
        ))
    })
}

/// Sends a body that is there whole.
fn send_all(
    pieces: &Bound<'_, PyTuple>,
    start: &Bound<'_, StartResponse>,
    input: &Bound<'_, Input>,
) -> Result<(), Fault> {
    let py = pieces.py();
    let mut total = Some(0_usize);
    for piece in pieces.iter_borrowed() {
        let piece = bytes(&piece).ok();
        let length = piece.map(|piece| piece.as_bytes().len());
        total = total
            .zip(length)
            .map(|(sum, next)| sum.saturating_add(next));
    }
    let mut state = start.try_borrow_mut().map_err(PyErr::from)?;
    // One with something in it that is no piece is sent like an iterator that produces it: as far as that (PEP 3333, "Buffering and
    // Streaming": each piece before the next is asked for).
    if let Some(total) = total.filter(|_| state.is_said()) {
        close_if_left(&mut state, input);
        state.declare(total as u64);
        if total <= WHOLE_MAX || !state.has_body() {
            return send_whole(&mut state, pieces, total);
        }
    }
    for piece in pieces.iter_borrowed() {
        for part in bytes(&piece)?.as_bytes().chunks(WHOLE_MAX) {
            state.write_piece(py, part)?;
        }
    }
    state.finish(py)
}

fn send_whole(
    state: &mut StartResponse,
    pieces: &Bound<'_, PyTuple>,
    total: usize,
) -> Result<(), Fault> {
    let py = pieces.py();
    if pieces.len() == 1 {
        let piece = pieces.get_item(0)?;
        state.write_piece(py, bytes(&piece)?.as_bytes())?;
    } else if total > 0 {
        let mut all = Vec::with_capacity(total);
        for piece in pieces.iter_borrowed() {
            all.extend_from_slice(bytes(&piece)?.as_bytes());
        }
        state.write_piece(py, &all)?;
    }
    state.finish(py)
}

/// Sends a real file; `None` where it is none.
fn send_file(
    py: Python<'_>,
    wrapper: &FileWrapper,
    start: &Bound<'_, StartResponse>,
    input: &Bound<'_, Input>,
) -> Option<Result<(), Fault>> {
    let Ok(mut state) = start.try_borrow_mut() else {
        return None;
    };
    if !state.is_said() || !state.has_body() {
        return None;
    }
    let mut rest = wrapper.rest(py)?;
    close_if_left(&mut state, input);
    state.declare(rest.length);
    let declared = state.declared().unwrap_or(rest.length);
    let name = rest.name.take().filter(|_| declared == rest.length);
    if let Some(name) = name {
        let Some(respond) = state.take() else {
            return Some(Err(ReplyError::ClientGone.into()));
        };
        let name = name.into_os_string().into_encoded_bytes();
        let sent = wait::until(py, Box::pin(respond.send_file(name, declared)));
        return Some(sent.map_err(Fault::from).and_then(|sent| Ok(sent?)));
    }
    rest.limit(declared);
    let mut buffer = vec![0; FILE_PIECE];
    loop {
        let read = py.detach(|| rest.read(&mut buffer));
        let sent = match read {
            Ok(0) => return Some(state.finish(py)),
            Ok(bytes) => state.write_piece(py, buffer.get(..bytes).unwrap_or_default()),
            Err(error) => Err(Fault::Raised(error.into())),
        };
        if let Err(fault) = sent {
            return Some(Err(fault));
        }
    }
}
