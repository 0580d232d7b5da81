//! `start_response`, and what it has begun: the head that an application says, held to what HTTP and PEP 3333 allow, and the body
//! behind it, held to the length that was said.

use lurcher::handler::{HttpError, ReplyError, Request, Respond};
use pyo3::exceptions::{PyBaseException, PyBrokenPipeError, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::head;
use super::out::Out;
use crate::queue::Claim;
use crate::wait;

/// Why a response has come to an end.
#[derive(Debug)]
pub(super) enum Fault {
    /// Something was raised.
    Raised(PyErr),
    /// It could not be sent.
    Reply(ReplyError),
    /// The worker stops, and this response would go on.
    Leaving,
}

impl From<PyErr> for Fault {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

impl From<ReplyError> for Fault {
    fn from(error: ReplyError) -> Self {
        Self::Reply(error)
    }
}

/// The callable that an application is given, and the response that it begins.
#[pyclass(module = "lurcher")]
pub(crate) struct StartResponse {
    request: Request,
    claim: Claim,
    stage: Stage,
    /// The answer has no body, whatever the application produces.
    bodiless: bool,
    /// What the application has said of the length.
    declared: Option<u64>,
    /// Bytes of the body so far.
    sent: u64,
    /// There were more than was said.
    too_long: bool,
}

enum Stage {
    Silent,
    /// The head is said, and not sent: another may be said instead.
    Said(Respond),
    Streaming(Out),
    Done,
}

impl StartResponse {
    pub(super) fn new(request: Request, claim: Claim) -> Self {
        Self {
            request,
            claim,
            stage: Stage::Silent,
            bodiless: false,
            declared: None,
            sent: 0,
            too_long: false,
        }
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    /// Whether nothing can be said any more but what was begun.
    pub(super) fn has_begun(&self) -> bool {
        matches!(self.stage, Stage::Streaming(_) | Stage::Done)
    }

    /// Whether a head was said, and nothing behind it.
    pub(super) fn is_said(&self) -> bool {
        matches!(self.stage, Stage::Said(_))
    }

    /// Whether a part of the body was sent, and the rest was not.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Streaming(_))
    }

    /// Whether more of the body reaches nobody: none is wanted, or more came than was said.
    pub(super) fn wants_nothing(&self) -> bool {
        self.too_long || (self.bodiless && matches!(self.stage, Stage::Done))
    }

    /// Whether a body is sent, if there is one.
    pub(super) fn has_body(&self) -> bool {
        !self.bodiless
    }

    /// What the application has said of the length.
    pub(super) fn declared(&self) -> Option<u64> {
        self.declared
    }

    /// Whether more came than was said.
    pub(super) fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// Says how long the body will be, if the application has not.
    pub(super) fn declare(&mut self, length: u64) {
        // Of what a GET would have had, an empty body says nothing (RFC 9110 8.6).
        let head = self.request.method() == Some(b"HEAD");
        if self.bodiless && (!head || length == 0) {
            return;
        }
        if self.declared.is_none()
            && let Stage::Said(respond) = std::mem::replace(&mut self.stage, Stage::Silent)
        {
            self.stage = Stage::Said(respond.length(length));
            self.declared = Some(length);
        }
    }

    /// Closes the connection behind the response, if its head is not sent yet.
    pub(super) fn close_behind(&mut self) {
        if let Stage::Said(respond) = std::mem::replace(&mut self.stage, Stage::Silent) {
            self.stage = Stage::Said(respond.close());
        }
    }

    /// Takes the right to answer, before anything is sent.
    ///
    /// # Errors
    ///
    /// When the worker's time is up and the client was told so.
    pub(super) fn claim(&self) -> Result<(), ReplyError> {
        if self.claim.take() {
            Ok(())
        } else {
            Err(ReplyError::ClientGone)
        }
    }

    /// Takes the head, to send it with something else than bytes. Then the response is as good as sent.
    pub(super) fn take(&mut self) -> Option<Respond> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Said(respond) => self.claim().is_ok().then_some(respond),
            stage => {
                self.stage = stage;
                None
            }
        }
    }

    /// Ends what was begun before its end.
    pub(super) fn give_up(&mut self, py: Python<'_>) {
        if let Stage::Streaming(out) = std::mem::replace(&mut self.stage, Stage::Done) {
            out.abandon(py);
        }
    }

    /// Sends a piece of the body, at once; a whole one if it is as long as was said.
    pub(super) fn write_piece(&mut self, py: Python<'_>, data: &[u8]) -> Result<(), Fault> {
        let data = self.within(data);
        let whole = self.bodiless || self.declared == Some(data.len() as u64);
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Silent => {
                self.stage = Stage::Silent;
                Err(silent().into())
            }
            Stage::Said(respond) if whole => {
                self.claim()?;
                self.sent += data.len() as u64;
                let body = if self.bodiless { &[] } else { data };
                let sent = wait::until(py, Box::pin(respond.send(body)))?;
                self.refused(sent)
            }
            Stage::Said(respond) => match self.claim().and_then(|()| respond.stream()) {
                Ok(writer) => self.stream(py, Out::new(writer), data),
                Err(error) => self.refused(Err(error)),
            },
            Stage::Streaming(out) if super::is_leaving() => {
                self.stage = Stage::Streaming(out);
                Err(Fault::Leaving)
            }
            Stage::Streaming(out) => self.stream(py, out, data),
            Stage::Done => Ok(()),
        }
    }

    /// Nothing was sent of what could not be HTTP: something else may be said.
    fn refused(&mut self, sent: Result<(), ReplyError>) -> Result<(), Fault> {
        if let Err(ReplyError::Http(_)) = sent {
            self.claim = Claim::default();
            self.stage = Stage::Silent;
        }
        Ok(sent?)
    }

    fn stream(&mut self, py: Python<'_>, mut out: Out, data: &[u8]) -> Result<(), Fault> {
        self.sent += data.len() as u64;
        if !data.is_empty() {
            out.write(py, data)??;
        }
        self.stage = Stage::Streaming(out);
        Ok(())
    }

    /// As much of the data as there was said to be.
    fn within<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let Some(declared) = self.declared.filter(|_| !self.bodiless) else {
            return data;
        };
        let left = declared.saturating_sub(self.sent);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        match data.get(..left) {
            Some(part) if part.len() < data.len() => {
                self.too_long = true;
                part
            }
            _ => data,
        }
    }

    /// Ends the response: all of its body was produced.
    pub(super) fn finish(&mut self, py: Python<'_>) -> Result<(), Fault> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Silent => {
                self.stage = Stage::Silent;
                Err(silent().into())
            }
            Stage::Said(respond) => {
                self.claim()?;
                let missing = self.declared.filter(|bytes| !self.bodiless && *bytes > 0);
                if let Some(declared) = missing {
                    // The head leaves, and then the connection ends.
                    let mut writer = respond.stream()?;
                    let flushed = wait::until(py, Box::pin(writer.flush()))?;
                    writer.abandon();
                    flushed?;
                    let written = 0;
                    return Err(ReplyError::from(HttpError::Length { declared, written }).into());
                }
                let sent = wait::until(py, Box::pin(respond.send([])))?;
                self.refused(sent)
            }
            Stage::Streaming(out) => Ok(out.finish(py)??),
            Stage::Done => Ok(()),
        }
    }

    /// Takes a head, after everything in it was looked at.
    fn say(&mut self, status: &Bound<'_, PyAny>, headers: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = headers.py();
        let mut converted = Vec::new();
        let (code, reason) = head::status(status, &mut converted)?;
        let mut respond = self.request.respond(code).reason(reason);
        let mut declared = None;
        let (mut name_bytes, mut value_bytes) = (Vec::new(), Vec::new());
        for header in head::list(headers)?.iter() {
            let header = head::pair(&header)?;
            let (name, value) = (header.get_item(0)?, header.get_item(1)?);
            let name = head::name(&name, &mut name_bytes)?;
            let value = head::value(name, &value, &mut value_bytes)?;
            if name.eq_ignore_ascii_case(b"connection") && value.eq_ignore_ascii_case(b"keep-alive")
            {
                // The server's business, and what it does anyway.
                continue;
            }
            if name.eq_ignore_ascii_case(b"content-length") {
                let length = head::length(py, value)?;
                if declared.is_some_and(|other| other != length) {
                    return Err(PyValueError::new_err("two values of Content-Length"));
                }
                declared = Some(length);
            }
            respond.add_header(name, value);
        }
        self.bodiless =
            self.request.method() == Some(b"HEAD") || code < 200 || code == 204 || code == 304;
        self.declared = declared;
        self.stage = Stage::Said(respond);
        Ok(())
    }
}

fn silent() -> PyErr {
    PyRuntimeError::new_err("the body begins, and start_response() was not called")
}

#[pymethods]
impl StartResponse {
    /// Begins the response; returns a function that sends pieces of the body, for applications that do not return them.
    #[pyo3(signature = (status, headers, exc_info=None, /))]
    fn __call__<'py>(
        this: &Bound<'py, Self>,
        status: &Bound<'py, PyAny>,
        headers: &Bound<'py, PyAny>,
        exc_info: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut state = this.try_borrow_mut()?;
        match exc_info.filter(|exc_info| exc_info.is_truthy().unwrap_or(true)) {
            Some(exc_info) => {
                let exc_info = head::triple(exc_info)?;
                if state.has_begun() {
                    return Err(again(exc_info)?);
                }
            }
            None if !matches!(state.stage, Stage::Silent) => {
                return Err(PyRuntimeError::new_err(
                    "start_response() called more than once without exc_info",
                ));
            }
            None => {}
        }
        state.say(status, headers)?;
        drop(state);
        this.getattr(intern!(this.py(), "write"))
    }

    /// Sends a piece of the body at once.
    fn write(&mut self, py: Python<'_>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        if data.as_bytes().is_empty() {
            return Ok(());
        }
        match self.write_piece(py, data.as_bytes()) {
            Ok(()) => Ok(()),
            Err(Fault::Raised(error)) => Err(error),
            Err(Fault::Reply(error)) => Err(PyBrokenPipeError::new_err(error.to_string())),
            Err(Fault::Leaving) => Err(PyBrokenPipeError::new_err("the worker stops")),
        }
    }
}

/// What was raised in the application, and can no longer be told in a response.
fn again(exc_info: &Bound<'_, PyTuple>) -> PyResult<PyErr> {
    let value = exc_info.get_item(1)?;
    if !value.is_instance_of::<PyBaseException>() {
        let why =
            "start_response() called after the response has begun, and exc_info has no exception";
        return Ok(PyRuntimeError::new_err(why));
    }
    let traceback = exc_info.get_item(2)?;
    let with = intern!(exc_info.py(), "with_traceback");
    Ok(PyErr::from_value(value.call_method1(with, (traceback,))?))
}
