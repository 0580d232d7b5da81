//! A message from a server, and the ways to answer it.

#![expect(
    clippy::disallowed_types,
    reason = "the lock of a body, which `body` explains"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use lurcher::handler;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use tokio::sync::Mutex;

use super::body::{self, Content, Source};
use super::convert::{Data, bytes_of_text, fields, opcode as opcode_of, respond, status, text};
use super::errors::Fault;
use super::headers::Headers;
use super::hub::{Hub, Incoming, Message};
use super::way::{Out, Way, run};
use super::{client, writer};
use crate::queue;

/// A request, or anything else that a server has to say about a client: ``kind`` tells.
#[pyclass(frozen, subclass, module = "lurcher", name = "BaseRequest")]
pub(crate) struct BaseRequest {
    hub: Arc<Hub>,
    kind: &'static str,
    message: Arc<Message>,
    content: OnceLock<Arc<Mutex<Content>>>,
    answered: AtomicBool,
}

/// A request, or anything else that a server has to say about a client: ``kind`` tells.
///
/// ================== ===========================================================================================
/// ``kind``           what it is
/// ================== ===========================================================================================
/// ``request``        an HTTP request, to be answered
/// ``disconnect``     the client is gone
/// ``handshake``      a client wants to speak WebSocket: ``accept`` it, or answer with any other response
/// ``frame``          a WebSocket message, or a control frame, which ``answer_control`` does with what it has to
/// ``message``        a message from a JSON or XML socket
/// ``upload_started`` a server has begun to store a large body; only for connections that want to know
/// ``drained``        no request comes any more, since ``Connection.drain`` was called
/// ``other``          anything else
/// ================== ===========================================================================================
///
/// It may be answered from any thread, at once or later, whole or piece by piece. Answers to what has no client any more are dropped.
#[pyclass(frozen, extends = BaseRequest, module = "lurcher", name = "Request")]
pub(crate) struct Request;

/// A request, for asyncio: as lurcher.Request, and whatever sends or reads is to be awaited.
#[pyclass(frozen, extends = BaseRequest, module = "lurcher.aio", name = "Request")]
pub(crate) struct AioRequest;

pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<BaseRequest>()?;
    module.add_class::<Request>()?;
    module.add("AioRequest", module.py().get_type::<AioRequest>())
}

/// One of the class that goes with the connection.
pub(super) fn new(py: Python<'_>, hub: &Arc<Hub>, incoming: Incoming) -> PyResult<Py<PyAny>> {
    let content = OnceLock::new();
    let source = match (incoming.body, &incoming.message) {
        (Some(reader), _) => Some(Source::Reader(reader)),
        (None, Message::Upload(upload)) => Some(Source::Stored(upload.clone())),
        _ => None,
    };
    if let Some(source) = source {
        drop(content.set(Content::new(source, b"")));
    }
    let base = BaseRequest {
        hub: Arc::clone(hub),
        kind: incoming.kind,
        message: Arc::new(incoming.message),
        content,
        answered: AtomicBool::new(false),
    };
    let base = PyClassInitializer::from(base);
    Ok(match hub.way() {
        Way::Blocking => Bound::new(py, base.add_subclass(Request))?.into_any(),
        Way::Loop(_) => Bound::new(py, base.add_subclass(AioRequest))?.into_any(),
    }
    .unbind())
}

impl BaseRequest {
    fn request(&self) -> &handler::Request {
        self.message.request()
    }

    fn content(&self) -> &Arc<Mutex<Content>> {
        self.content
            .get_or_init(|| Content::new(Source::Ended, &self.request().body))
    }

    fn word<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyString>>> {
        let value = self.request().headers.first(name);
        value.map(|value| text(py, value)).transpose()
    }

    /// Nobody is there who could be answered, and a server would answer to that.
    fn is_notice(&self) -> bool {
        matches!(self.kind, "disconnect" | "drained")
    }

    fn answer<F>(&self, py: Python<'_>, work: F) -> PyResult<Py<PyAny>>
    where
        F: Future<Output = Result<(), handler::ReplyError>> + Send + 'static,
    {
        self.answered.store(true, Ordering::Relaxed);
        let is_notice = self.is_notice();
        run(py, &self.hub, async move {
            if !is_notice {
                work.await?;
            }
            Ok(Out::Nothing)
        })
    }

    /// Gives it to an application that answers it.
    pub(super) fn hand_over(&self) -> (handler::Request, queue::Body) {
        self.answered.store(true, Ordering::Relaxed);
        let content = self
            .content
            .get()
            .and_then(|content| content.try_lock().ok());
        let body = match content.map(|mut content| content.take()) {
            Some(Source::Stored(upload)) => queue::Body::Stored(Box::new(upload)),
            Some(Source::Reader(reader)) => queue::Body::Pieces(Box::new(reader)),
            Some(Source::Ended) | None => queue::Body::Whole,
        };
        (self.request().clone(), body)
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    fn upload(&self) -> Option<&handler::Upload> {
        match &*self.message {
            Message::Upload(upload) => Some(upload),
            _ => None,
        }
    }
}

#[pymethods]
impl BaseRequest {
    /// What it is: see the class.
    #[getter]
    fn kind<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        PyString::intern(py, self.kind)
    }

    /// The client is gone: there is nothing to answer.
    #[getter]
    fn is_disconnect(&self) -> bool {
        self.kind == "disconnect"
    }

    /// Who has sent it.
    #[getter]
    fn client(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        client::new(py, &self.hub, self.request().client())
    }

    /// The ident of the server's handler entry (``send_ident``).
    #[getter]
    fn sender<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text(py, &self.request().sender)
    }

    /// The server's number for the client.
    #[getter]
    fn conn_id(&self) -> u32 {
        self.request().conn_id.0
    }

    /// The path as it was sent, percent signs and all, without the query.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text(py, &self.request().path)
    }

    /// What is behind the question mark, as it was sent; an empty str when there is nothing.
    #[getter]
    fn query<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text(
            py,
            self.request().headers.first("QUERY").unwrap_or_default(),
        )
    }

    /// The path with the query.
    #[getter]
    fn uri<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyString>>> {
        self.word(py, "URI")
    }

    /// The method of an HTTP request (``GET``), else the server's word for what this is (``WEBSOCKET``).
    #[getter]
    fn method<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyString>>> {
        self.word(py, "METHOD")
    }

    /// ``HTTP/1.1`` or ``HTTP/1.0``, for requests.
    #[getter]
    fn version<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyString>>> {
        self.word(py, "VERSION")
    }

    /// The text of the server's route that has brought it here.
    #[getter]
    fn pattern<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyString>>> {
        self.word(py, "PATTERN")
    }

    /// ``http`` or ``https``, where the server tells.
    #[getter]
    fn scheme<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyString>>> {
        self.word(py, "URL_SCHEME")
    }

    /// The client's address, as the server has seen it.
    #[getter]
    fn remote_addr<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyString>>> {
        self.word(py, "REMOTE_ADDR")
    }

    /// The headers: see Headers.
    #[getter]
    fn headers(&self) -> Headers {
        Headers {
            message: Arc::clone(&self.message),
        }
    }

    /// The body that came with the message, the payload of a WebSocket message. That of an upload, which may be large, is in
    /// ``input``, or comes by ``read``.
    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        match &*self.message {
            // Where only the beginning of it is.
            Message::Part(_) => PyBytes::new(py, b""),
            message => PyBytes::new(py, &message.request().body),
        }
    }

    /// Whether the client wants the connection closed behind the answer, which ``respond_http`` and ``stream`` see to.
    #[getter]
    fn should_close(&self) -> bool {
        self.request().should_close()
    }

    /// Whether one of the answering methods was called.
    #[getter]
    fn answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// The body as JSON.
    fn json(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let loads = py.import("json")?.getattr("loads")?;
        Ok(loads.call1((self.body(py),))?.unbind())
    }

    /// The body to be read piece by piece, however it comes.
    #[getter]
    fn input(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        body::new(py, &self.hub, Arc::clone(self.content()))
    }

    /// The whole body, however it comes; BodyError when it is larger than ``limit`` bytes.
    #[pyo3(signature = (limit = None))]
    fn read(&self, py: Python<'_>, limit: Option<usize>) -> PyResult<Py<PyAny>> {
        body::read(py, &self.hub, self.content(), None, limit)
    }

    /// Where the server has stored the body; None when it has not. The file goes away with the request: see ``keep_upload``.
    #[getter]
    fn upload_path(&self) -> Option<std::path::PathBuf> {
        self.upload().map(handler::Upload::path)
    }

    /// Leaves the file of an upload where it is, to be moved or read later, and tells where.
    fn keep_upload(&self) -> PyResult<std::path::PathBuf> {
        let upload = self.upload();
        let upload = upload.ok_or_else(|| PyValueError::new_err("no stored upload"))?;
        upload.keep();
        Ok(upload.path())
    }

    /// The opcode of a WebSocket message: 1 text, 2 binary, 8 close, 9 ping, 10 pong.
    #[getter]
    fn opcode(&self) -> Option<u8> {
        match &*self.message {
            Message::Frame(frame) => Some(frame.flags() & 0x0f),
            _ => None,
        }
    }

    /// A WebSocket text message.
    #[getter]
    fn text(&self) -> Option<&str> {
        match &*self.message {
            Message::Frame(frame) => frame.text(),
            _ => None,
        }
    }

    /// The code and the reason of a WebSocket close frame that has them.
    #[getter]
    fn close_code(&self) -> Option<(u16, &str)> {
        match &*self.message {
            Message::Frame(frame) => frame.close_code(),
            _ => None,
        }
    }

    /// The subprotocols that the client of a WebSocket handshake offers.
    #[getter]
    fn protocols(&self) -> Vec<&str> {
        self.request().websocket_protocols().collect()
    }

    fn __eq__(&self, other: &Self) -> bool {
        let (one, two) = (self.request(), other.request());
        one.client() == two.client()
            && one.path == two.path
            && one.headers == two.headers
            && one.body == two.body
    }

    // Equal ones may differ in what they are in the middle of; as in any mutable class, there is none.
    #[classattr]
    #[pyo3(name = "__hash__")]
    const HASH: Option<u8> = None;

    fn __repr__(&self) -> String {
        let request = self.request();
        let words = [request.method().unwrap_or_default(), &request.path];
        let [method, path] = words.map(|word| word.escape_ascii().to_string());
        let (sender, id) = (request.sender.escape_ascii(), request.conn_id);
        format!(
            "<Request {} {method} {path} of client {id} of {sender}>",
            self.kind
        )
    }

    // What it is answered with.

    /// Sends bytes to the client as they are: a whole response, or a piece of one. No bytes at all close the connection.
    fn respond(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let (client, data) = (self.request().client(), Data::of(data)?);
        self.answer(py, async move { client.send(data).await })
    }

    /// Sends a whole HTTP response.
    ///
    /// ``status`` is a code, or a code with a reason (``"404 Not Here"``). ``headers`` is a mapping, or pairs, for repeated ones.
    /// ``Content-Length`` and ``Date`` are added; HEAD, 204 and 304 go out without the body; the connection is closed behind the
    /// response where the request wants that, or ``close`` says so. A ``str`` goes out as UTF-8.
    #[pyo3(signature = (body = None, status = None, headers = None, *, reason = None, close = false))]
    fn respond_http(
        &self,
        py: Python<'_>,
        body: Option<&Bound<'_, PyAny>>,
        status: Option<&Bound<'_, PyAny>>,
        headers: Option<&Bound<'_, PyAny>>,
        reason: Option<&str>,
        close: bool,
    ) -> PyResult<Py<PyAny>> {
        let body = body.map(Data::of).transpose()?;
        let respond = self.head(status, headers, reason, close)?;
        self.answer(py, async move {
            match body {
                Some(body) => respond.send(body).await,
                None => respond.send(b"").await,
            }
        })
    }

    /// Sends a value as JSON, in a whole HTTP response.
    #[pyo3(signature = (value, status = None, headers = None))]
    fn respond_json(
        &self,
        py: Python<'_>,
        value: &Bound<'_, PyAny>,
        status: Option<&Bound<'_, PyAny>>,
        headers: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let dumps = py.import("json")?.getattr("dumps")?;
        let body = Data::of(&dumps.call1((value,))?)?;
        let respond = self.head(status, headers, None, false)?;
        let respond = respond.header("Content-Type", "application/json");
        self.answer(py, async move { respond.send(body).await })
    }

    /// Begins an HTTP response whose body is written piece by piece: with a ``Content-Length`` where ``length`` is said, else in
    /// chunks. Nothing is sent before the first piece. Returns a Writer.
    #[pyo3(signature = (status = None, headers = None, *, length = None, reason = None, close = false))]
    fn stream(
        &self,
        py: Python<'_>,
        status: Option<&Bound<'_, PyAny>>,
        headers: Option<&Bound<'_, PyAny>>,
        length: Option<u64>,
        reason: Option<&str>,
        close: bool,
    ) -> PyResult<Py<PyAny>> {
        self.hub.check()?;
        let mut respond = self.head(status, headers, reason, close)?;
        if let Some(length) = length {
            respond = respond.length(length);
        }
        let is_notice = self.is_notice();
        let respond = (!is_notice).then_some(respond);
        let writer = respond.map(handler::Respond::stream).transpose();
        let writer = writer.map_err(Fault::from)?;
        self.answered.store(true, Ordering::Relaxed);
        writer::new(py, &self.hub, writer)
    }

    /// Sends a head, and has the server write a file below its setting ``sendfile.base`` as the body. ``length`` is a promise: leave
    /// files that somebody writes to alone.
    #[pyo3(signature = (path, length, status = None, headers = None))]
    fn send_file(
        &self,
        py: Python<'_>,
        path: &Bound<'_, PyAny>,
        length: u64,
        status: Option<&Bound<'_, PyAny>>,
        headers: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let path = py.import("os")?.call_method1("fspath", (path,))?;
        let path = bytes_of_text(&path)?;
        let respond = self.head(status, headers, None, false)?;
        self.answer(py, async move { respond.send_file(path, length).await })
    }

    /// Accepts a WebSocket handshake, with one of ``protocols`` or none.
    #[pyo3(signature = (protocol = None, headers = None))]
    fn accept(
        &self,
        py: Python<'_>,
        protocol: Option<String>,
        headers: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let headers: PyResult<Vec<(String, String)>> = fields(headers)?
            .into_iter()
            .map(|(name, value)| Ok((String::from_utf8(name)?, String::from_utf8(value)?)))
            .collect();
        let headers = headers?;
        let (replies, message) = (self.hub.replies().clone(), Arc::clone(&self.message));
        self.answer(py, async move {
            let headers: Vec<(&str, &str)> = headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            let request = message.request();
            replies
                .reply_handshake(request, protocol.as_deref(), &headers)
                .await
        })
    }

    /// Does what has to be done with a WebSocket control frame: a ping is answered, a close is answered and the connection closed.
    /// False for a message, and for anything that is no frame.
    fn answer_control(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let (replies, message) = (self.hub.replies().clone(), Arc::clone(&self.message));
        run(py, &self.hub, async move {
            Ok(Out::Bool(match &*message {
                Message::Frame(frame) => replies.answer_control(frame).await?,
                _ => false,
            }))
        })
    }

    /// Sends a WebSocket message to the client: text if ``data`` is a str, binary if it is bytes, or what ``opcode`` says.
    #[pyo3(signature = (data, opcode = None))]
    fn send_websocket(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        opcode: Option<u8>,
    ) -> PyResult<Py<PyAny>> {
        let data = Data::of(data)?;
        let (client, opcode) = (self.request().client(), opcode_of(opcode, &data)?);
        self.answer(py, async move { client.send_websocket(data, opcode).await })
    }

    /// Asks the client of a WebSocket to close. Its answer comes as a frame, which ``answer_control`` takes.
    #[pyo3(signature = (code = 1000, reason = ""))]
    fn close_websocket(&self, py: Python<'_>, code: u16, reason: &str) -> PyResult<Py<PyAny>> {
        let (client, reason) = (self.request().client(), reason.to_owned());
        self.answer(
            py,
            async move { client.close_websocket(code, &reason).await },
        )
    }

    /// Closes the client's connection when everything that was sent before is written.
    fn disconnect(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let client = self.request().client();
        self.answer(py, async move { client.close().await })
    }
}

impl BaseRequest {
    fn head(
        &self,
        said: Option<&Bound<'_, PyAny>>,
        headers: Option<&Bound<'_, PyAny>>,
        reason: Option<&str>,
        close: bool,
    ) -> PyResult<handler::Respond> {
        let code = said.map_or(Ok((200, None)), status)?;
        let headers = fields(headers)?;
        Ok(respond(self.request(), code, &headers, reason, close))
    }
}
