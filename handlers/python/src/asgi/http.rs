//! One request and its response: what an application receives and sends.
//!
//! The beginning of a response is held back until there is a body: one that is whole then leaves as one message. Where none comes for
//! a moment, the head leaves by itself.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use lurcher::handler::{BodyError, BodyReader, Request, UploadError};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};

use super::desk::{Source, Work};
use super::hub::Hub;
use super::line::Line;
use super::message::{Head, Message, out_of_order, unexpected};
use super::outlet::{self, Outlet, Step};
use super::wait::{Awaited, Standing, Wait};

/// A stored upload that is being opened.
type Opening = Pin<Box<dyn Future<Output = Result<BodyReader, UploadError>> + Send>>;

/// Where the body of a request is.
enum Body {
    Whole(Bytes),
    Opening(Opening),
    Pieces(Box<BodyReader>),
    /// The application has had it.
    Read,
    /// It will never be whole.
    Broken,
}

/// How far a response is.
enum Stage {
    Nothing,
    /// Its beginning, and whether trailers will follow the body.
    Held(Box<Head>, bool),
    Streaming {
        /// Bytes of the body so far, and how many there should be.
        written: u64,
        declared: Option<u64>,
        is_bodiless: bool,
        has_trailers: bool,
    },
    /// The body is whole: trailers follow.
    Trailers(HeaderMap),
    Complete,
    /// What was sent made no sense, and some of it has left.
    Failed,
}

/// One request.
#[pyclass(frozen, name = "Exchange", module = "lurcher")]
pub(crate) struct Http {
    hub: Py<Hub>,
    line: Arc<Line>,
    request: Box<Request>,
    state: Mutex<State>,
}

struct State {
    body: Body,
    stage: Stage,
    outlet: Option<Arc<Outlet>>,
    waiters: Vec<Py<PyAny>>,
    /// Where the application has waited, if it has.
    task: Option<Py<PyAny>>,
}

#[pymethods]
impl Http {
    fn receive(slf: Py<Self>) -> Wait {
        Wait(Awaited::Request(slf))
    }

    fn send<'py>(
        slf: &Bound<'py, Self>,
        message: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let http = slf.get();
        let message = Message::new(message)?;
        let kind = message.kind()?;
        let is_full = match kind.to_str()? {
            "http.response.start" => {
                http.start(py, &message)?;
                return Ok(http.hub.get().done(py));
            }
            "http.response.body" => {
                let body = message.bytes(pyo3::intern!(py, "body"))?;
                let has_more = message.flag(pyo3::intern!(py, "more_body"))?;
                http.write(py, body, has_more)?
            }
            "http.response.pathsend" => {
                let path = message.get(pyo3::intern!(py, "path"))?;
                let path = path.ok_or_else(|| PyValueError::new_err("pathsend without a path"))?;
                http.write_file(py, path.extract()?)?
            }
            "http.response.trailers" => http.write_trailers(py, &message)?,
            _ => return Err(unexpected("a message of the type http.response.…", &kind)),
        };
        if is_full {
            let wait = Wait(Awaited::Response(slf.clone().unbind()));
            return Ok(Bound::new(py, wait)?.into_any());
        }
        Ok(http.hub.get().done(py))
    }
}

impl Http {
    pub(crate) fn new(hub: Py<Hub>, line: Arc<Line>, work: Work) -> Self {
        let body = match work.source {
            Source::Whole | Source::Handshake => Body::Whole(work.request.body.clone()),
            Source::Pieces(reader) => Body::Pieces(reader),
            Source::Stored(upload) => Body::Opening(Box::pin(upload.into_body())),
        };
        let state = State {
            body,
            stage: Stage::Nothing,
            outlet: None,
            waiters: Vec::new(),
            task: None,
        };
        Self {
            hub,
            line,
            request: work.request,
            state: Mutex::new(state),
        }
    }

    /// The application waits in this task, which is kept as long as it runs.
    pub(crate) fn waits(&self, hub: &Bound<'_, Hub>, task: Py<PyAny>) -> PyResult<&Arc<Line>> {
        let mut state = self.lock();
        state.task = Some(task);
        let is_held = matches!(state.stage, Stage::Held(..));
        drop(state);
        if is_held {
            Hub::held(hub, &self.line)?;
        }
        Ok(&self.line)
    }

    /// The application has returned, or raised that. Who and where it was.
    pub(crate) fn ended(
        &self,
        py: Python<'_>,
        error: Option<&Bound<'_, PyAny>>,
    ) -> (&Hub, &Arc<Line>) {
        let (stage, outlet, waiters) = {
            let mut state = self.lock();
            state.task = None;
            state.body = Body::Broken;
            let stage = std::mem::replace(&mut state.stage, Stage::Complete);
            let waiters = std::mem::take(&mut state.waiters);
            (stage, state.outlet.take(), waiters)
        };
        let is_complete = matches!(stage, Stage::Complete);
        let hub = self.hub.get();
        let is_cancelled = error.is_some_and(|error| hub.is_cancelled(error));
        if let Some(error) = error {
            hub.tell_raised(
                py,
                &self.request,
                error,
                self.line.is_gone() && !is_complete,
            );
        } else if !is_complete && !self.line.is_gone() {
            let (method, path) = shown(&self.request);
            tracing::error!("{method} {path}: the application returned without a whole response");
        }
        match stage {
            Stage::Nothing | Stage::Held(..) if !self.line.is_gone() => {
                let sending = sorry(&self.request, is_cancelled);
                outlet::whole(&hub.desk, &self.line, sending);
            }
            Stage::Streaming { .. } | Stage::Trailers(_) if !is_cancelled => {
                if let Some(outlet) = &outlet {
                    outlet.abandon();
                }
            }
            Stage::Streaming { .. } | Stage::Trailers(_) | Stage::Failed => {
                if let Some(outlet) = &outlet {
                    outlet.cut();
                }
            }
            _ => {}
        }
        // Tasks that the application has left behind hear that it is over, and end.
        hub.release(py, waiters);
        (hub, &self.line)
    }

    /// There may be news: whoever waits looks.
    pub(crate) fn wake(&self, py: Python<'_>) {
        let waiters = std::mem::take(&mut self.lock().waiters);
        self.hub.get().release(py, waiters);
    }

    /// Ends the application's task.
    pub(crate) fn cancel(&self, py: Python<'_>) {
        let task = self.lock().task.as_ref().map(|task| task.clone_ref(py));
        if let Some(task) = task
            && let Err(error) = task.call_method0(py, pyo3::intern!(py, "cancel"))
        {
            error.print(py);
        }
    }

    /// The end is near: a stream hears that its client is gone.
    pub(crate) fn go_away(&self) {
        if matches!(self.lock().stage, Stage::Streaming { .. }) {
            self.line.leave(super::line::ABNORMAL, "");
        }
    }

    /// Lets the head leave when nothing has followed it.
    pub(crate) fn flush(&self) {
        let mut state = self.lock();
        if !matches!(state.stage, Stage::Held(..)) {
            return;
        }
        // What is wrong with it is told to whoever goes on.
        drop(self.stream(&mut state));
    }

    fn start(&self, py: Python<'_>, message: &Message<'_>) -> PyResult<()> {
        if !matches!(self.lock().stage, Stage::Nothing) {
            return Err(out_of_order(
                "http.response.start",
                "the response was begun already",
            ));
        }
        if self.line.is_gone() {
            return Err(gone());
        }
        let has_trailers = message.flag(pyo3::intern!(py, "trailers"))?;
        let mut head = message.head(&self.request)?;
        let mut state = self.lock();
        if let Body::Pieces(reader) = &state.body
            && reader.is_left()
            && head.is_bodiless
        {
            head.respond = head.respond.close();
        }
        state.stage = Stage::Held(Box::new(head), has_trailers);
        let has_waited = state.task.is_some();
        drop(state);
        if has_waited {
            Hub::held(self.hub.bind(py), &self.line)?;
        }
        Ok(())
    }

    /// Sends a piece of the body; true when the application should wait.
    fn write(&self, py: Python<'_>, body: Option<PyBackedBytes>, has_more: bool) -> PyResult<bool> {
        let mut state = self.lock();
        if self.line.is_gone() {
            return match state.stage {
                Stage::Complete => Err(complete()),
                _ => Err(gone()),
            };
        }
        let bytes = body.as_ref().map_or(0, |body| body.len() as u64);
        match &mut state.stage {
            Stage::Nothing => {
                return Err(out_of_order(
                    "http.response.body",
                    "the response was not begun",
                ));
            }
            Stage::Complete => return Err(complete()),
            Stage::Failed | Stage::Trailers(_) => {
                return Err(out_of_order("http.response.body", "the body is over"));
            }
            Stage::Held(head, false) if !has_more => {
                if let Some(declared) = head.declared
                    && declared != bytes
                    && !head.is_bodiless
                {
                    state.stage = Stage::Nothing;
                    return Err(wrong_length(bytes, declared));
                }
                let Stage::Held(head, _) = std::mem::replace(&mut state.stage, Stage::Complete)
                else {
                    return Ok(false);
                };
                let is_read = state.body.is_read();
                drop(state);
                let respond = if is_read {
                    head.respond
                } else {
                    head.respond.close()
                };
                let body = body.as_deref().unwrap_or_default();
                match respond.send_now(body) {
                    Ok(None) => {}
                    Ok(Some(left)) => {
                        self.line.begin();
                        let sending = Box::pin(left.send());
                        outlet::whole(&self.hub.get().desk, &self.line, sending);
                    }
                    Err(error) => outlet::tell(&error, &self.line),
                }
                // Who waits for the client to go has seen enough of it.
                self.wake(py);
                self.hub.get().said();
                return Ok(false);
            }
            Stage::Held(..) => self.stream(&mut state)?,
            Stage::Streaming { .. } => {}
        }
        self.write_on(py, state, bytes, body.map(Step::Data), has_more)
    }

    fn write_on(
        &self,
        py: Python<'_>,
        mut state: MutexGuard<'_, State>,
        bytes: u64,
        step: Option<Step>,
        has_more: bool,
    ) -> PyResult<bool> {
        let Stage::Streaming {
            written,
            declared,
            is_bodiless,
            has_trailers,
        } = &mut state.stage
        else {
            return Ok(false);
        };
        *written += bytes;
        if let Some(declared) = *declared
            && !*is_bodiless
            && (*written > declared || (!has_more && *written < declared))
        {
            let error = wrong_length(*written, declared);
            state.stage = Stage::Failed;
            return Err(error);
        }
        let has_trailers = *has_trailers;
        let outlet = state.outlet.clone();
        let mut steps: Vec<Step> = step.into_iter().filter(|_| bytes > 0).collect();
        if !has_more && has_trailers {
            state.stage = Stage::Trailers(HeaderMap::new());
        } else if !has_more {
            state.stage = Stage::Complete;
            steps.push(Step::Finish(None));
            steps.extend(self.last_step(&state.body));
        }
        drop(state);
        self.put(py, outlet.as_ref(), steps, has_more)
    }

    /// A client whose body was not read cannot go on.
    fn last_step(&self, body: &Body) -> Option<Step> {
        let client = self.line.client().clone();
        (!body.is_read()).then(|| Step::Do(Box::pin(async move { client.close().await })))
    }

    fn put(
        &self,
        py: Python<'_>,
        outlet: Option<&Arc<Outlet>>,
        steps: Vec<Step>,
        has_more: bool,
    ) -> PyResult<bool> {
        let Some(outlet) = outlet else {
            return Ok(false);
        };
        if !outlet.put(steps) {
            self.line.leave(super::line::ABNORMAL, "");
            return Err(gone());
        }
        if !has_more {
            self.wake(py);
        }
        self.hub.get().said();
        Ok(has_more && outlet.is_full())
    }

    /// Begins a response that comes in pieces.
    fn stream(&self, state: &mut State) -> PyResult<()> {
        let Stage::Held(head, has_trailers) = std::mem::replace(&mut state.stage, Stage::Failed)
        else {
            return Ok(());
        };
        let Head {
            respond,
            declared,
            is_bodiless,
        } = *head;
        let writer = respond.stream();
        let writer = writer.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let outlet = Outlet::new(&self.hub.get().desk, &self.line);
        self.line.begin();
        outlet.put([Step::Stream(Box::new(writer))]);
        state.outlet = Some(outlet);
        state.stage = Stage::Streaming {
            written: 0,
            declared,
            is_bodiless,
            has_trailers,
        };
        Ok(())
    }

    fn write_file(&self, py: Python<'_>, path: std::path::PathBuf) -> PyResult<bool> {
        let mut state = self.lock();
        if self.line.is_gone() {
            return Err(gone());
        }
        if !matches!(state.stage, Stage::Held(..)) {
            return Err(out_of_order(
                "http.response.pathsend",
                "it takes the place of the body",
            ));
        }
        let file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        if let Stage::Held(head, _) = &mut state.stage {
            let declared = *head.declared.get_or_insert(size);
            if declared != size && !head.is_bodiless {
                return Err(wrong_length(size, declared));
            }
            let with_length = std::mem::replace(&mut head.respond, self.request.respond(200));
            head.respond = with_length.length(declared);
        }
        self.stream(&mut state)?;
        let step = if matches!(
            state.stage,
            Stage::Streaming {
                is_bodiless: true,
                ..
            }
        ) {
            None
        } else {
            Some(Step::File(file))
        };
        self.write_on(py, state, size, step, false)
    }

    fn write_trailers(&self, py: Python<'_>, message: &Message<'_>) -> PyResult<bool> {
        let mut more = Vec::new();
        message.headers(|name, value| {
            let name = HeaderName::from_bytes(name);
            let value = HeaderValue::from_bytes(value);
            match (name, value) {
                (Ok(name), Ok(value)) => more.push((name, value)),
                _ => return Err(PyValueError::new_err("a trailer that is no header")),
            }
            Ok(())
        })?;
        let has_more = message.flag(pyo3::intern!(py, "more_trailers"))?;
        let mut state = self.lock();
        if self.line.is_gone() {
            return Err(gone());
        }
        let Stage::Trailers(trailers) = &mut state.stage else {
            return Err(out_of_order(
                "http.response.trailers",
                "the body is not over, or none were announced",
            ));
        };
        for (name, value) in more {
            trailers.append(name, value);
        }
        if has_more {
            return Ok(false);
        }
        let trailers = std::mem::take(trailers);
        state.stage = Stage::Complete;
        let mut steps = vec![Step::Finish(Some(trailers))];
        steps.extend(self.last_step(&state.body));
        let outlet = state.outlet.clone();
        drop(state);
        self.put(py, outlet.as_ref(), steps, false)
    }

    pub(crate) fn poll_sent(slf: &Bound<'_, Self>) -> PyResult<Standing> {
        let py = slf.py();
        let http = slf.get();
        let outlet = http.lock().outlet.clone();
        if outlet.as_ref().is_some_and(|outlet| outlet.has_failed()) {
            return Err(gone());
        }
        if outlet.is_some_and(|outlet| outlet.is_full()) {
            return http.wait(py);
        }
        Ok(Standing::Ready(py.None()))
    }

    pub(crate) fn poll_receive(slf: &Bound<'_, Self>) -> PyResult<Standing> {
        let py = slf.py();
        let http = slf.get();
        let mut state = http.lock();
        loop {
            match &mut state.body {
                Body::Whole(bytes) => {
                    let bytes = std::mem::take(bytes);
                    state.body = Body::Read;
                    drop(state);
                    return request_message(py, &bytes, false).map(Standing::Ready);
                }
                Body::Opening(opening) => {
                    let opened = http.polled(|context| opening.as_mut().poll(context));
                    match opened {
                        Poll::Ready(Ok(reader)) => state.body = Body::Pieces(Box::new(reader)),
                        Poll::Ready(Err(error)) => {
                            tracing::warn!(%error, "a stored upload cannot be read");
                            state.body = Body::Broken;
                        }
                        Poll::Pending => break,
                    }
                }
                Body::Pieces(reader) => {
                    let piece = http.polled(|context| reader.poll_next(context));
                    let piece = match piece {
                        Poll::Ready(piece) => piece,
                        Poll::Pending => break,
                    };
                    let has_more = piece.is_some() && !reader.is_ended();
                    let bytes = match piece.transpose() {
                        Ok(bytes) => bytes.unwrap_or_default(),
                        Err(error) => {
                            if let BodyError::Upload(error) = error {
                                tracing::warn!(%error, "a stored upload cannot be read");
                            } else {
                                tracing::debug!(%error, "the body of a request breaks off");
                            }
                            state.body = Body::Broken;
                            continue;
                        }
                    };
                    if !has_more {
                        state.body = Body::Read;
                    }
                    drop(state);
                    return request_message(py, &bytes, has_more).map(Standing::Ready);
                }
                Body::Broken => {
                    drop(state);
                    return disconnected(py).map(Standing::Ready);
                }
                Body::Read => {
                    let is_over = matches!(state.stage, Stage::Complete) || http.line.is_gone();
                    if !is_over {
                        break;
                    }
                    drop(state);
                    return disconnected(py).map(Standing::Ready);
                }
            }
        }
        drop(state);
        http.wait(py)
    }

    /// Polls something of the library; the loop is called when it can go on.
    fn polled<T>(&self, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let Some(runtime) = self.hub.get().desk.runtime() else {
            return Poll::Pending;
        };
        let _inside = runtime.enter();
        let waker = Waker::from(Arc::clone(&self.line));
        poll(&mut Context::from_waker(&waker))
    }

    fn wait(&self, py: Python<'_>) -> PyResult<Standing> {
        let future = self.hub.get().future(py)?;
        let waiters = std::mem::take(&mut self.lock().waiters);
        self.lock().waiters = Hub::queue(py, waiters, &future);
        Ok(Standing::Waits(future))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body {
    /// Whether nothing of it is left with the client.
    fn is_read(&self) -> bool {
        match self {
            Self::Whole(_) | Self::Opening(_) | Self::Read => true,
            Self::Pieces(reader) => !reader.is_left(),
            Self::Broken => false,
        }
    }
}

/// Answers in the name of an application that has not done it.
pub(crate) fn sorry(request: &Request, is_cancelled: bool) -> outlet::Sending {
    let (status, text) = if is_cancelled {
        (503, "Service Unavailable\n")
    } else {
        (500, "Internal Server Error\n")
    };
    let respond = request.respond(status);
    let respond = respond.header("Content-Type", "text/plain; charset=utf-8");
    Box::pin(respond.close().send(text))
}

/// Method and path for the log.
pub(crate) fn shown(request: &Request) -> (String, String) {
    let method = request.method().unwrap_or_default();
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    (text(method), text(&request.path))
}

fn request_message(py: Python<'_>, body: &[u8], has_more: bool) -> PyResult<Py<PyAny>> {
    let message = PyDict::new(py);
    let kind = pyo3::intern!(py, "http.request");
    message.set_item(pyo3::intern!(py, "type"), kind)?;
    message.set_item(pyo3::intern!(py, "body"), PyBytes::new(py, body))?;
    message.set_item(pyo3::intern!(py, "more_body"), has_more)?;
    Ok(message.into_any().unbind())
}

fn disconnected(py: Python<'_>) -> PyResult<Py<PyAny>> {
    let message = PyDict::new(py);
    let kind = pyo3::intern!(py, "http.disconnect");
    message.set_item(pyo3::intern!(py, "type"), kind)?;
    Ok(message.into_any().unbind())
}

/// What is said to a client that has gone (as the specification wants it since 2.4).
pub(crate) fn gone() -> PyErr {
    PyOSError::new_err("the client is gone")
}

fn complete() -> PyErr {
    out_of_order("http.response.body", "the response is complete")
}

fn wrong_length(bytes: u64, declared: u64) -> PyErr {
    let than = if bytes > declared {
        "longer"
    } else {
        "shorter"
    };
    PyRuntimeError::new_err(format!(
        "the body of a response is {than} than its Content-Length of {declared} bytes"
    ))
}
