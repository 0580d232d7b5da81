//! A client of a server: whoever has sent a request, and may be sent to at any time.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use lurcher::handler;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::convert::{self, Data, bytes_of_text, text};
use super::hub::Hub;
use super::way::{Out, Way, run};
use super::writer;

/// A client connected to a server. It can be kept and sent to at any time, from any thread, as long as the connection lives; a client
/// that is gone is no error, what is sent to it is dropped. Two are equal when they mean the same client of the same server.
#[pyclass(frozen, subclass, module = "lurcher", name = "BaseClient")]
pub(super) struct BaseClient {
    hub: Arc<Hub>,
    client: handler::Client,
}

/// A client connected to a server. It can be kept and sent to at any time, from any thread, as long as the connection lives; a client
/// that is gone is no error, what is sent to it is dropped. Two are equal when they mean the same client of the same server.
#[pyclass(frozen, extends = BaseClient, module = "lurcher", name = "Client")]
pub(super) struct Client;

/// A client connected to a server, for asyncio: as lurcher.Client, and whatever sends is to be awaited.
#[pyclass(frozen, extends = BaseClient, module = "lurcher.aio", name = "Client")]
pub(super) struct AioClient;

pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<BaseClient>()?;
    module.add_class::<Client>()?;
    module.add("AioClient", module.py().get_type::<AioClient>())
}

/// One of the class that goes with the connection.
pub(super) fn new(py: Python<'_>, hub: &Arc<Hub>, client: handler::Client) -> PyResult<Py<PyAny>> {
    let base = BaseClient {
        hub: Arc::clone(hub),
        client,
    };
    let base = PyClassInitializer::from(base);
    Ok(match hub.way() {
        Way::Blocking => Bound::new(py, base.add_subclass(Client))?.into_any(),
        Way::Loop(_) => Bound::new(py, base.add_subclass(AioClient))?.into_any(),
    }
    .unbind())
}

impl BaseClient {
    pub(super) fn client(&self) -> &handler::Client {
        &self.client
    }
}

#[pymethods]
impl BaseClient {
    /// The ident of the server's handler entry (``send_ident``).
    #[getter]
    fn server_id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text(py, self.client.sender())
    }

    /// The server's number for the client.
    #[getter]
    fn client_id(&self) -> u32 {
        self.client.conn_id().0
    }

    /// Sends bytes as they are. No bytes at all close the connection.
    fn send(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        send(py, &self.hub, &self.client, Data::of(data)?)
    }

    /// Closes the connection when everything that was sent before is written.
    fn disconnect(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let client = self.client.clone();
        run(py, &self.hub, async move {
            client.close().await?;
            Ok(Out::Nothing)
        })
    }

    /// Drops the connection at once, and with it what was sent and is not written.
    fn cancel(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let client = self.client.clone();
        run(py, &self.hub, async move {
            client.cancel().await?;
            Ok(Out::Nothing)
        })
    }

    /// Tells the server that a silent connection is still wanted.
    fn keep_alive(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let client = self.client.clone();
        run(py, &self.hub, async move {
            client.keep_alive().await?;
            Ok(Out::Nothing)
        })
    }

    /// Has the server write a file below its setting ``sendfile.base``, in order with what is sent before and after.
    fn send_file(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let name = py.import("os")?.call_method1("fspath", (name,))?;
        let (client, name) = (self.client.clone(), bytes_of_text(&name)?);
        run(py, &self.hub, async move {
            client.send_file(name).await?;
            Ok(Out::Nothing)
        })
    }

    /// Sends a WebSocket message: text if ``data`` is a str, binary if it is bytes, or what ``opcode`` says (1 text, 2 binary, 9 ping,
    /// 10 pong).
    #[pyo3(signature = (data, opcode = None))]
    fn send_websocket(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        opcode: Option<u8>,
    ) -> PyResult<Py<PyAny>> {
        let data = Data::of(data)?;
        let (client, opcode) = (self.client.clone(), convert::opcode(opcode, &data)?);
        run(py, &self.hub, async move {
            client.send_websocket(data, opcode).await?;
            Ok(Out::Nothing)
        })
    }

    /// Asks the client of a WebSocket to close. Its answer comes as a frame, which ``answer_control`` takes.
    #[pyo3(signature = (code = 1000, reason = ""))]
    fn close_websocket(&self, py: Python<'_>, code: u16, reason: &str) -> PyResult<Py<PyAny>> {
        let (client, reason) = (self.client.clone(), reason.to_owned());
        run(py, &self.hub, async move {
            client.close_websocket(code, &reason).await?;
            Ok(Out::Nothing)
        })
    }

    /// A writer of bytes as they are, which waits for the client as that of a response does; finishing it closes the connection.
    fn stream(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.hub.check()?;
        writer::new(py, &self.hub, Some(self.client.stream()))
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.client == other.client
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.client.hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self) -> String {
        let sender = self.client.sender().escape_ascii();
        format!("<Client {} of {sender}>", self.client.conn_id())
    }
}

pub(super) fn send(
    py: Python<'_>,
    hub: &Arc<Hub>,
    client: &handler::Client,
    data: Data,
) -> PyResult<Py<PyAny>> {
    let client = client.clone();
    run(py, hub, async move {
        client.send(data).await?;
        Ok(Out::Nothing)
    })
}
