//! One WebSocket: what an application receives and sends. The framing is the library's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lurcher::handler::{Opcode, Request};
use lurcher::websocket::{encode, encode_close};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::http::{gone, shown, sorry};
use super::hub::Hub;
use super::line::{ABNORMAL, Gone, Line};
use super::message::{Head, Message, out_of_order, unexpected};
use super::outlet::{Outlet, Step};
use super::wait::{Awaited, Standing, Wait};

/// How long a client has to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Close codes (RFC 6455 7.4.1): all is well; this end is going down; text that is none; an error in here.
const NORMAL: u16 = 1000;
pub(crate) const GOING_AWAY: u16 = 1001;
const NOT_TEXT: u16 = 1007;
const BROKEN: u16 = 1011;

/// How far it is.
enum Stage {
    /// The application has not said whether it wants this client.
    Asked,
    Open,
    /// It does not, and says so by a response: its beginning.
    Denying(Option<Box<Head>>),
    /// There is nothing more to say.
    Closed,
}

/// One WebSocket client.
#[pyclass(frozen, name = "WebSocket", module = "lurcher")]
pub(crate) struct WebSocket {
    hub: Py<Hub>,
    line: Arc<Line>,
    request: Request,
    outlet: Arc<Outlet>,
    state: Mutex<State>,
}

struct State {
    stage: Stage,
    /// The application has heard that somebody wants to connect.
    is_told: bool,
    /// With which code the application, or we in its name, has closed it.
    code: Option<u16>,
    waiters: Vec<Py<PyAny>>,
    task: Option<Py<PyAny>>,
}

#[pymethods]
impl WebSocket {
    fn receive(slf: Py<Self>) -> Wait {
        Wait(Awaited::Message(slf))
    }

    fn send<'py>(
        slf: &Bound<'py, Self>,
        message: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let websocket = slf.get();
        let message = Message::new(message)?;
        let kind = message.kind()?;
        match kind.to_str()? {
            "websocket.accept" => websocket.accept(py, &message)?,
            "websocket.send" => websocket.write(py, &message)?,
            "websocket.close" => websocket.close(py, &message)?,
            "websocket.http.response.start" => websocket.deny(&message)?,
            "websocket.http.response.body" => websocket.deny_with(py, &message)?,
            _ => return Err(unexpected("a message of the type websocket.…", &kind)),
        }
        if websocket.outlet.is_full() {
            let wait = Wait(Awaited::Frames(slf.clone().unbind()));
            return Ok(Bound::new(py, wait)?.into_any());
        }
        Ok(websocket.hub.get().done(py))
    }
}

impl WebSocket {
    pub(crate) fn new(hub: Py<Hub>, line: Arc<Line>, request: Request) -> Self {
        let outlet = Outlet::new(&hub.get().desk, &line);
        let state = State {
            stage: Stage::Asked,
            is_told: false,
            code: None,
            waiters: Vec::new(),
            task: None,
        };
        Self {
            hub,
            line,
            request,
            outlet,
            state: Mutex::new(state),
        }
    }

    /// The application waits in this task, which is kept as long as it runs.
    pub(crate) fn waits(&self, task: Py<PyAny>) -> &Arc<Line> {
        self.lock().task = Some(task);
        self.answer_close();
        &self.line
    }

    /// The application has returned, or raised that. Who and where it was.
    pub(crate) fn ended(
        &self,
        py: Python<'_>,
        error: Option<&Bound<'_, PyAny>>,
    ) -> (&Hub, &Arc<Line>) {
        // The application may have heard of it before the loop.
        self.answer_close();
        let (stage, waiters) = {
            let mut state = self.lock();
            state.task = None;
            let stage = std::mem::replace(&mut state.stage, Stage::Closed);
            (stage, std::mem::take(&mut state.waiters))
        };
        let hub = self.hub.get();
        let is_gone = self.line.is_gone();
        let is_cancelled = error.is_some_and(|error| hub.is_cancelled(error));
        if let Some(error) = error {
            hub.tell_raised(py, &self.request, error, is_gone);
        }
        match stage {
            Stage::Asked if !is_gone => {
                if error.is_none() {
                    let (_, path) = shown(&self.request);
                    tracing::error!(
                        "WebSocket {path}: the application returned without an answer to the handshake"
                    );
                }
                let sending = sorry(&self.request, is_cancelled);
                self.outlet.put([Step::Do(sending)]);
            }
            Stage::Open if !is_gone => {
                let code = match (error, is_cancelled) {
                    (None, _) => NORMAL,
                    (Some(_), true) => GOING_AWAY,
                    (Some(_), false) => BROKEN,
                };
                self.say_close(code, "");
            }
            Stage::Denying(Some(head)) => {
                self.outlet
                    .put([Step::Do(Box::pin(head.respond.send(b"")))]);
            }
            Stage::Denying(None) => self.outlet.cut(),
            _ => {}
        }
        // Tasks that the application has left behind hear that it is over, and end.
        self.lock().code.get_or_insert(ABNORMAL);
        hub.release(py, waiters);
        (hub, &self.line)
    }

    /// A close is answered at once, whether the application listens or not.
    fn answer_close(&self) {
        if let Some(code) = self.line.closed() {
            let mut state = self.lock();
            if matches!(state.stage, Stage::Open) {
                state.stage = Stage::Closed;
                drop(state);
                let mut frame = Vec::new();
                encode_close(code, "", &mut frame);
                self.outlet.put([Step::Frame(frame), Step::Finish(None)]);
            }
        }
    }

    /// There may be news: whoever waits looks.
    pub(crate) fn wake(&self, py: Python<'_>) {
        self.answer_close();
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

    /// The end is near: the client is asked to go, and the application hears that it has.
    pub(crate) fn go_away(&self) {
        let is_open = {
            let mut state = self.lock();
            let is_open = matches!(state.stage, Stage::Open);
            if is_open {
                state.stage = Stage::Closed;
            }
            is_open
        };
        if is_open {
            self.say_close(GOING_AWAY, "");
        }
        self.line.leave(GOING_AWAY, "");
    }

    fn accept(&self, py: Python<'_>, message: &Message<'_>) -> PyResult<()> {
        self.expect_asked("websocket.accept")?;
        let protocol = message.text(pyo3::intern!(py, "subprotocol"))?;
        let mut headers = Vec::new();
        message.headers(|name, value| {
            let text = |bytes: &[u8]| {
                let text = std::str::from_utf8(bytes).ok().filter(|text| {
                    !text.is_empty() && !text.contains(|c: char| c.is_control() && c != '\t')
                });
                text.map(str::to_owned)
                    .ok_or_else(|| PyValueError::new_err("a header that is none"))
            };
            if value.is_empty() {
                headers.push((text(name)?, String::new()));
            } else {
                headers.push((text(name)?, text(value)?));
            }
            Ok(())
        })?;
        let hub = self.hub.get();
        let Some(replies) = hub.desk.replies().cloned() else {
            return Err(gone());
        };
        let request = self.request.clone();
        let handshake = async move {
            let headers: Vec<(&str, &str)> = headers
                .iter()
                .map(|(name, value)| (&name[..], &value[..]))
                .collect();
            let protocol = protocol.as_deref();
            replies.reply_handshake(&request, protocol, &headers).await
        };
        let writer = self.line.client().stream();
        self.lock().stage = Stage::Open;
        let steps = [
            Step::Do(Box::pin(handshake)),
            Step::Stream(Box::new(writer)),
        ];
        if self.outlet.put(steps) {
            Ok(())
        } else if self.line.is_gone() {
            Err(gone())
        } else {
            Err(PyRuntimeError::new_err(
                "the handshake could not be answered",
            ))
        }
    }

    fn write(&self, py: Python<'_>, message: &Message<'_>) -> PyResult<()> {
        let mut frame = Vec::new();
        let text = message.get(pyo3::intern!(py, "text"))?;
        if let Some(text) = text {
            let text = text.cast::<pyo3::types::PyString>();
            let text = text.map_err(|_| PyTypeError::new_err("text is a str"))?;
            encode(Opcode::Text, text.to_str()?.as_bytes(), &mut frame);
        } else if let Some(bytes) = message.bytes(pyo3::intern!(py, "bytes"))? {
            encode(Opcode::Binary, &bytes, &mut frame);
        } else {
            return Err(PyValueError::new_err(
                "websocket.send without text or bytes",
            ));
        }
        let state = self.lock();
        match state.stage {
            Stage::Open => {}
            Stage::Closed if state.code.is_none() => return Err(gone()),
            Stage::Closed => return Err(out_of_order("websocket.send", "it is closed")),
            _ => return Err(out_of_order("websocket.send", "it was not accepted")),
        }
        drop(state);
        if self.line.is_gone() || !self.outlet.put([Step::Frame(frame)]) {
            self.line.leave(ABNORMAL, "");
            return Err(gone());
        }
        self.hub.get().said();
        Ok(())
    }

    fn close(&self, py: Python<'_>, message: &Message<'_>) -> PyResult<()> {
        let code = message.number(pyo3::intern!(py, "code"))?.unwrap_or(NORMAL);
        let reason = message.text(pyo3::intern!(py, "reason"))?;
        let mut state = self.lock();
        match &state.stage {
            Stage::Asked => {
                state.stage = Stage::Closed;
                state.code = Some(ABNORMAL);
                drop(state);
                let respond = self.request.respond(403);
                let respond = respond.header("Content-Type", "text/plain; charset=utf-8");
                let sending = respond.close().send("Forbidden\n");
                self.outlet.put([Step::Do(Box::pin(sending))]);
                Ok(())
            }
            Stage::Open => {
                state.stage = Stage::Closed;
                drop(state);
                self.say_close(code, reason.as_deref().unwrap_or_default());
                Ok(())
            }
            Stage::Closed if state.code.is_none() => Err(gone()),
            _ => Err(out_of_order("websocket.close", "it is closed")),
        }
    }

    /// Asks the client to close, and ends the connection when it has, or does not in time.
    fn say_close(&self, code: u16, reason: &str) {
        self.lock().code = Some(code);
        let mut frame = Vec::new();
        encode_close(code, reason, &mut frame);
        let line = Arc::clone(&self.line);
        let answered = async move {
            // One that does not answer is closed all the same.
            drop(tokio::time::timeout(CLOSE_TIMEOUT, line.ended()).await);
            Ok(())
        };
        self.outlet.put([
            Step::Frame(frame),
            Step::Flush,
            Step::Do(Box::pin(answered)),
            Step::Finish(None),
        ]);
        self.line.tell();
    }

    fn deny(&self, message: &Message<'_>) -> PyResult<()> {
        self.expect_asked("websocket.http.response.start")?;
        let mut head = message.head(&self.request)?;
        head.respond = head.respond.close();
        self.lock().stage = Stage::Denying(Some(Box::new(head)));
        Ok(())
    }

    fn deny_with(&self, py: Python<'_>, message: &Message<'_>) -> PyResult<()> {
        let body = message.bytes(pyo3::intern!(py, "body"))?;
        let has_more = message.flag(pyo3::intern!(py, "more_body"))?;
        let mut state = self.lock();
        let Stage::Denying(head) = &mut state.stage else {
            return Err(out_of_order(
                "websocket.http.response.body",
                "no response was begun",
            ));
        };
        let mut steps = Vec::new();
        if let Some(head) = head.take() {
            let writer = head.respond.stream();
            let writer = writer.map_err(|error| PyValueError::new_err(error.to_string()))?;
            steps.push(Step::Stream(Box::new(writer)));
        }
        steps.extend(body.map(Step::Data));
        if !has_more {
            steps.push(Step::Finish(None));
            state.stage = Stage::Closed;
            state.code = Some(ABNORMAL);
        }
        drop(state);
        self.outlet.put(steps);
        Ok(())
    }

    fn expect_asked(&self, kind: &str) -> PyResult<()> {
        let is_asked = matches!(self.lock().stage, Stage::Asked);
        if !is_asked {
            return Err(out_of_order(kind, "the handshake was answered already"));
        }
        if self.line.is_gone() {
            return Err(gone());
        }
        Ok(())
    }

    pub(crate) fn poll_sent(slf: &Bound<'_, Self>) -> PyResult<Standing> {
        let py = slf.py();
        let websocket = slf.get();
        if websocket.outlet.has_failed() {
            return Err(gone());
        }
        if websocket.outlet.is_full() {
            return websocket.wait(py);
        }
        Ok(Standing::Ready(py.None()))
    }

    pub(crate) fn poll_receive(slf: &Bound<'_, Self>) -> PyResult<Standing> {
        let py = slf.py();
        let websocket = slf.get();
        let is_told = std::mem::replace(&mut websocket.lock().is_told, true);
        let message = PyDict::new(py);
        let kind = pyo3::intern!(py, "type");
        if !is_told {
            message.set_item(kind, pyo3::intern!(py, "websocket.connect"))?;
            return Ok(Standing::Ready(message.into_any().unbind()));
        }
        while let Some(frame) = websocket.line.frame() {
            let received = pyo3::intern!(py, "websocket.receive");
            match (frame.opcode(), frame.text()) {
                (Opcode::Text, Some(text)) => {
                    message.set_item(kind, received)?;
                    message.set_item(pyo3::intern!(py, "text"), text)?;
                }
                (Opcode::Text, None) => {
                    websocket.reject();
                    continue;
                }
                _ => {
                    message.set_item(kind, received)?;
                    let payload = PyBytes::new(py, frame.payload());
                    message.set_item(pyo3::intern!(py, "bytes"), payload)?;
                }
            }
            return Ok(Standing::Ready(message.into_any().unbind()));
        }
        let code = websocket.lock().code;
        let own = code.map(|code| Gone {
            code,
            reason: String::new(),
            is_closed: false,
        });
        let Some(gone) = own.or_else(|| websocket.line.gone()) else {
            return websocket.wait(py);
        };
        message.set_item(kind, pyo3::intern!(py, "websocket.disconnect"))?;
        message.set_item(pyo3::intern!(py, "code"), gone.code)?;
        message.set_item(pyo3::intern!(py, "reason"), gone.reason)?;
        Ok(Standing::Ready(message.into_any().unbind()))
    }

    /// Ends one that says what is no text, which a Mongrel2 passes on.
    fn reject(&self) {
        let is_open = {
            let mut state = self.lock();
            let is_open = matches!(state.stage, Stage::Open);
            if is_open {
                state.stage = Stage::Closed;
            }
            is_open
        };
        if is_open {
            self.say_close(NOT_TEXT, "");
        }
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
