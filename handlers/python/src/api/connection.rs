//! Connections: made, received from, sent through, stopped.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use lurcher::handler::{self, Options, Selector};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyString, PyTuple, PyType};

use super::client::BaseClient;
use super::convert::{Data, bytes_of_text};
use super::errors::Fault;
use super::hub::Hub;
use super::inbox::{self, Inbox};
use super::log;
use super::request;
use super::runtime::{self, runtime};
use super::way::{self, Out, Way, run};

/// How long `shutdown` waits for what servers have pushed, unless told otherwise.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// As good as for ever, and no number that a clock cannot add.
const AGES: Duration = Duration::from_secs(100 * 366 * 86_400);

/// A handler's connection to one server or several, or to brokers.
#[pyclass(frozen, subclass, module = "lurcher", name = "BaseConnection")]
pub(super) struct BaseConnection {
    hub: OnceLock<Arc<Hub>>,
}

pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<BaseConnection>()?;
    module.add_class::<Connection>()?;
    module.add_function(wrap_pyfunction!(aio_connect, module)?)?;
    module.add_function(wrap_pyfunction!(configured, module)?)?;
    module.add("AioConnection", module.py().get_type::<AioConnection>())
}

impl Drop for BaseConnection {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.get()
            && hub.check().is_ok()
        {
            hub.abandon();
            let (runtime, hub) = (hub.runtime(), Arc::clone(hub));
            runtime.spawn(async move { hub.close().await });
        }
    }
}

impl BaseConnection {
    fn hub(&self) -> PyResult<&Arc<Hub>> {
        let hub = self.hub.get();
        hub.ok_or_else(|| PyRuntimeError::new_err("the connection was not made"))
    }
}

/// Sends to clients, receives nothing.
#[pymethods]
impl BaseConnection {
    /// Sends bytes to a client as they are; no bytes at all close its connection.
    fn send(
        &self,
        py: Python<'_>,
        client: &Bound<'_, BaseClient>,
        data: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        super::client::send(py, self.hub()?, client.get().client(), Data::of(data)?)
    }

    /// Sends the same bytes to many clients, of whichever servers: a hundred of a server are one message.
    fn deliver(
        &self,
        py: Python<'_>,
        clients: &Bound<'_, PyAny>,
        data: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let (hub, data) = (self.hub()?, Data::of(data)?);
        let (clients, replies) = (crowd(clients)?, hub.replies().clone());
        run(py, hub, async move {
            replies.deliver_to(&clients, data).await?;
            Ok(Out::Nothing)
        })
    }

    /// Sends a WebSocket message to many clients: text if ``data`` is a str, binary if it is bytes, or what ``opcode`` says.
    #[pyo3(signature = (clients, data, opcode = None))]
    fn deliver_websocket(
        &self,
        py: Python<'_>,
        clients: &Bound<'_, PyAny>,
        data: &Bound<'_, PyAny>,
        opcode: Option<u8>,
    ) -> PyResult<Py<PyAny>> {
        let (hub, data) = (self.hub()?, Data::of(data)?);
        let opcode = super::convert::opcode(opcode, &data)?;
        let (clients, replies) = (crowd(clients)?, hub.replies().clone());
        run(py, hub, async move {
            replies.deliver_to_websocket(&clients, data, opcode).await?;
            Ok(Out::Nothing)
        })
    }

    /// Sends the same bytes to clients that are known by their numbers at the server with that ident (``Client.server_id`` and
    /// ``client_id``), which a program may have written down.
    fn deliver_ids(
        &self,
        py: Python<'_>,
        sender: &Bound<'_, PyAny>,
        ids: Vec<u32>,
        data: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let (hub, data) = (self.hub()?, Data::of(data)?);
        let (sender, replies) = (bytes_of_text(sender)?, hub.replies().clone());
        run(py, hub, async move {
            let ids: Vec<_> = ids.into_iter().map(lurcher::wire::ConnId).collect();
            replies.deliver(sender, &ids, data).await?;
            Ok(Out::Nothing)
        })
    }

    /// Begins to stop, from any thread, and in a signal handler too: what servers have pushed is received still, and then ``recv`` returns None.
    fn stop(&self) -> PyResult<()> {
        self.hub()?.stop().stop();
        Ok(())
    }

    /// Asks for no more requests. ``recv`` goes on, has one of the kind ``drained`` when the last one was received, and after that
    /// only what belongs to earlier ones: frames, disconnects.
    fn drain(&self) -> PyResult<()> {
        self.hub()?.stop().drain();
        Ok(())
    }

    /// Whether everything has been received that ever will be.
    #[getter]
    fn ended(&self) -> bool {
        self.hub.get().is_none_or(|hub| hub.has_ended())
    }

    /// Gives up the connection. What was sent is written, in 5 seconds at most (``linger``); what was received and not asked for
    /// is lost: ``shutdown`` comes first.
    fn close(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let hub = self.hub()?;
        hub.check()?;
        if let Way::Loop(inbox) = hub.way() {
            let future = inbox.future(py)?;
            let waiting = inbox.begin(&future);
            let (inner, inbox) = (Arc::clone(hub), Arc::clone(inbox));
            hub.runtime().spawn(async move {
                inner.close().await;
                inbox.push((waiting, Ok(Out::Nothing)));
            });
            return Ok(future.unbind());
        }
        hub.abandon();
        runtime::wait(py, hub.runtime(), hub.close(), None)?;
        Ok(py.None())
    }
}

/// A handler's connection to one server or several, or to brokers.
///
/// ``send_spec`` is the server's ``send_spec``, or several as a list or with commas between; ``recv_spec`` its ``recv_spec``, one
/// port down unless it is named. Specs may name an identity and a side, ``tcp://IDENTITY@HOST:PORT#bind``, and a broker,
/// ``broker+tcp://HOST:PORT``. It returns when the servers take replies, or after ``subscription_timeout`` seconds: servers that are
/// not there are connected to when they come, and again when they were lost.
///
/// All methods may be called from any thread at the same time: as many threads as should work at once receive from it, and each
/// request goes to one of them. Nothing is received ahead of those calls.
///
///     with lurcher.Connection("tcp://127.0.0.1:9999") as connection:
///         for request in connection:
///             if request.kind == "request":
///                 request.respond_http("hello\n", headers={"Content-Type": "text/plain"})
///
/// Ctrl-C (KeyboardInterrupt) interrupts what waits in the main thread.
///
/// :param ident: the identity of its sockets, where a spec names none
/// :param slots: for brokers, how many requests are taken at once
/// :param name: for brokers, the worker's name
/// :param pool: for brokers, the pool to work for
/// :param weight: for brokers, the share of sticky clients
/// :param chroot: the directory that the servers are locked into, for names of uploads
/// :param upload_store: the servers' setting ``upload.temp_store``
/// :param subscription_timeout: seconds
/// :param linger: seconds that unsent replies are kept trying at the end
/// :param announce_uploads: whether requests of the kind ``upload_started`` come
#[pyclass(frozen, subclass, extends = BaseConnection, module = "lurcher", name = "Connection")]
pub(super) struct Connection;

#[pymethods]
impl Connection {
    #[new]
    #[pyo3(signature = (send_spec = None, recv_spec = None, **options))]
    fn new(
        py: Python<'_>,
        send_spec: Option<&Bound<'_, PyAny>>,
        recv_spec: Option<&Bound<'_, PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let (options, announces) = read_options(send_spec, recv_spec, options)?;
        let base = connect(py, options, announces)?;
        Ok(PyClassInitializer::from(base).add_subclass(Self))
    }

    // It was made with them already. This is for subclasses that call it, as with any class of Python's.
    #[pyo3(signature = (*_arguments, **_options))]
    #[expect(clippy::unused_self, reason = "Python's way")]
    fn __init__(&self, _arguments: &Bound<'_, PyTuple>, _options: Option<&Bound<'_, PyDict>>) {}

    /// Connects to a handler's place in a server's configuration, a database or a ``.conf``: the one that gets requests for ``route``
    /// (a path, or the text of a route), on ``host``, with ``ident`` (``send_ident``) and ``send_spec``, of ``server`` (uuid or name).
    /// Whatever is said has to hold; nothing said means the only one. Further options are as for the class.
    #[classmethod]
    #[pyo3(signature = (configuration, *, route = None, host = None, ident = None, send_spec = None, server = None, **options))]
    #[expect(
        clippy::too_many_arguments,
        reason = "all but the first are optional, and named"
    )]
    fn from_config<'py>(
        class: &Bound<'py, PyType>,
        configuration: PathBuf,
        route: Option<String>,
        host: Option<String>,
        ident: Option<String>,
        send_spec: Option<String>,
        server: Option<String>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = class.py();
        let all = configured(
            py,
            configuration,
            route,
            host,
            ident,
            send_spec,
            server,
            options,
        )?;
        class.call((), Some(&all))
    }

    /// Receives the next request, or anything else that a server has to say. None when ``timeout`` seconds have passed (0 does not
    /// wait at all), when somebody has called ``interrupt``, and at the end, which ``ended`` tells apart.
    #[pyo3(signature = (timeout = None))]
    fn recv(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        let py = slf.py();
        let hub = slf.as_super().get().hub()?;
        hub.check()?;
        let deadline = timeout.map(seconds).transpose()?;
        let deadline = deadline.map(|timeout| Instant::now() + timeout);
        let next = runtime::wait(py, hub.runtime(), hub.next_or_word(), deadline)?;
        next.flatten()
            .map(|incoming| request::new(py, hub, incoming))
            .transpose()
    }

    /// Lets all who wait in ``recv`` return None, now.
    fn interrupt(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.as_super().get().hub()?.interrupt();
        Ok(())
    }

    /// Stops, and receives what servers have pushed, for ``timeout`` seconds at most: ``recv`` returns that, and then None.
    #[pyo3(signature = (timeout = None))]
    fn shutdown(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<()> {
        let hub = slf.as_super().get().hub()?;
        hub.check()?;
        let deadline = timeout.map_or(Ok(SHUTDOWN), seconds)?;
        let deadline = Some(Instant::now() + deadline);
        runtime::wait(slf.py(), hub.runtime(), hub.shut_down(), deadline)?;
        Ok(())
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        loop {
            let next = Self::recv(slf, None)?;
            // Interrupted.
            if next.is_none() && !slf.as_super().get().ended() {
                continue;
            }
            return Ok(next);
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(slf: &Bound<'_, Self>, _exception: &Bound<'_, PyTuple>) -> PyResult<bool> {
        slf.as_super().get().close(slf.py())?;
        Ok(false)
    }
}

/// A number of seconds.
fn seconds(number: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(number)
        .map(|seconds| seconds.min(AGES))
        .map_err(|_| PyValueError::new_err(format!("no number of seconds: {number}")))
}

/// A spec, several with commas between, or several.
fn specs(value: &Bound<'_, PyAny>) -> PyResult<Vec<lurcher::endpoint::Endpoint>> {
    let texts: Vec<String> = if value.is_instance_of::<PyString>() {
        let text: String = value.extract()?;
        text.split(',').map(str::to_owned).collect()
    } else {
        value.extract()?
    };
    let specs = texts.iter().map(|text| text.parse());
    let specs: Result<_, lurcher::endpoint::EndpointError> = specs.collect();
    specs.map_err(|error| PyValueError::new_err(error.to_string()))
}

/// The arguments of a connection; and whether uploads are announced.
fn read_options(
    send_spec: Option<&Bound<'_, PyAny>>,
    recv_spec: Option<&Bound<'_, PyAny>>,
    said: Option<&Bound<'_, PyDict>>,
) -> PyResult<(Options, bool)> {
    let mut options = Options::default();
    let mut announces = false;
    if let Some(send_spec) = send_spec {
        options.send_specs = specs(send_spec)?;
    }
    if let Some(recv_spec) = recv_spec.filter(|spec| !spec.is_none()) {
        options.recv_specs = specs(recv_spec)?;
    }
    for (name, value) in said.into_iter().flatten() {
        let name: String = name.extract()?;
        match name.as_str() {
            // As m2wsgi calls them.
            "send_sock" => options.send_specs = specs(&value)?,
            "recv_sock" if value.is_none() => {}
            "recv_sock" => options.recv_specs = specs(&value)?,
            "ident" => options.ident = value.extract()?,
            "slots" => options.slots = value.extract()?,
            "name" => options.name = value.extract()?,
            "pool" => options.pool = value.extract()?,
            "weight" => options.weight = value.extract()?,
            "chroot" => options.chroot = value.extract()?,
            "upload_store" => options.upload_store = value.extract()?,
            "subscription_timeout" => options.subscription_timeout = seconds(value.extract()?)?,
            "linger" => options.linger = seconds(value.extract()?)?,
            "announce_uploads" => announces = value.is_truthy()?,
            _ => {
                return Err(PyTypeError::new_err(format!(
                    "Connection() got an unexpected keyword argument {name:?}"
                )));
            }
        }
    }
    if options.send_specs.is_empty() {
        return Err(PyTypeError::new_err("Connection() needs a send_spec"));
    }
    if let Err(error) = options.check() {
        return Err(PyValueError::new_err(error.to_string()));
    }
    Ok((options, announces))
}

/// Clients out of Python.
fn crowd(clients: &Bound<'_, PyAny>) -> PyResult<Vec<handler::Client>> {
    let clients = clients.try_iter()?.map(|client| {
        let client = client?;
        Ok(client.cast::<BaseClient>()?.get().client().clone())
    });
    clients.collect()
}

/// Connects, without the interpreter's lock.
fn connect(py: Python<'_>, options: Options, announces: bool) -> PyResult<BaseConnection> {
    log::begin(py)?;
    let runtime = runtime()?;
    let connecting = Hub::connect(runtime, Way::Blocking, options, announces);
    let hub = runtime::wait(py, runtime, connecting, None)?.transpose()?;
    let cell = OnceLock::new();
    if let Some(hub) = hub {
        drop(cell.set(Arc::new(hub)));
    }
    Ok(BaseConnection { hub: cell })
}

/// A handler's connection to one server or several, for asyncio. ``lurcher.aio.connect`` makes it; it belongs to the event loop that
/// ran then, and its methods are for that loop's thread. What sends is to be awaited, and ``async for`` receives.
#[pyclass(frozen, extends = BaseConnection, module = "lurcher.aio", name = "Connection")]
pub(super) struct AioConnection;

/// Connects, for the event loop that runs: a future of the connection.
#[pyfunction]
#[pyo3(signature = (send_spec = None, recv_spec = None, **options))]
fn aio_connect(
    py: Python<'_>,
    send_spec: Option<&Bound<'_, PyAny>>,
    recv_spec: Option<&Bound<'_, PyAny>>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Py<PyAny>> {
    let (options, announces) = read_options(send_spec, recv_spec, options)?;
    log::begin(py)?;
    let runtime = runtime()?;
    let event_loop = py.import("asyncio")?.call_method0("get_running_loop")?;
    let inbox = Arc::new(Inbox::new(event_loop.clone().unbind())?);
    let drain = Drain {
        inbox: Arc::clone(&inbox),
        hub: OnceLock::new(),
    };
    event_loop.call_method1("add_reader", (inbox.descriptor(), Bound::new(py, drain)?))?;
    let future = inbox.future(py)?;
    let waiting = inbox.begin(&future);
    runtime.spawn(async move {
        let way = Way::Loop(Arc::clone(&inbox));
        let hub = Hub::connect(runtime, way, options, announces).await;
        inbox.push((waiting, hub.map(|hub| Out::Connected(Arc::new(hub)))));
    });
    Ok(future.unbind())
}

/// The arguments of a connection to a handler's place in a configuration.
#[pyfunction]
#[pyo3(signature = (configuration, *, route = None, host = None, ident = None, send_spec = None, server = None, **options))]
#[expect(
    clippy::too_many_arguments,
    reason = "all but the first are optional, and named"
)]
fn configured<'py>(
    py: Python<'py>,
    configuration: PathBuf,
    route: Option<String>,
    host: Option<String>,
    ident: Option<String>,
    send_spec: Option<String>,
    server: Option<String>,
    options: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyDict>> {
    let mut selector = Selector::new();
    if let Some(route) = route {
        selector = selector.route(route);
    }
    if let Some(host) = host {
        selector = selector.host(host);
    }
    if let Some(ident) = ident {
        selector = selector.ident(ident);
    }
    if let Some(spec) = send_spec {
        selector = selector.send_spec(spec);
    }
    if let Some(server) = server {
        selector = selector.server(server);
    }
    let found = py
        .detach(|| Options::from_config(configuration, &selector))
        .map_err(Fault::from)?;
    let all = PyDict::new(py);
    let specs = |specs: &[lurcher::endpoint::Endpoint]| -> Vec<String> {
        specs
            .iter()
            .map(lurcher::endpoint::Endpoint::spec)
            .collect()
    };
    all.set_item("send_spec", specs(&found.send_specs))?;
    all.set_item("recv_spec", specs(&found.recv_specs))?;
    all.set_item("chroot", found.chroot)?;
    all.set_item("upload_store", found.upload_store)?;
    if let Some(options) = options {
        all.update(options.as_mapping())?;
    }
    Ok(all)
}

/// What an event loop calls when there is something in the inbox. It does not keep the connection.
#[pyclass(frozen, module = "lurcher")]
struct Drain {
    inbox: Arc<Inbox>,
    hub: OnceLock<Weak<Hub>>,
}

#[pymethods]
impl Drain {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let mut failed = false;
        for (future, done) in self.inbox.take() {
            let future = future.bind(py);
            match done {
                Ok(Out::Connected(hub)) => {
                    drop(self.hub.set(Arc::downgrade(&hub)));
                    let base = BaseConnection {
                        hub: OnceLock::from(hub),
                    };
                    let connection = PyClassInitializer::from(base).add_subclass(AioConnection);
                    let connection = Bound::new(py, connection)?.into_any().unbind();
                    inbox::settle(py, future, Ok(connection))?;
                }
                done => {
                    failed |= done.is_err();
                    way::finish(py, future, done)?;
                }
            }
        }
        let is_over = match self.hub.get() {
            None => failed,
            Some(hub) => match hub.upgrade() {
                Some(hub) => {
                    hub.turn(py)?;
                    hub.is_closed()
                }
                None => true,
            },
        };
        if is_over && self.inbox.is_idle() {
            let event_loop = self.inbox.event_loop().bind(py);
            event_loop.call_method1("remove_reader", (self.inbox.descriptor(),))?;
        }
        Ok(())
    }
}

#[pymethods]
impl AioConnection {
    /// Receives the next request, or anything else that a server has to say; None at the end. Cancelling it loses nothing.
    fn recv<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        next(slf, false)
    }

    /// What is there, None at the end, or False: then `_ready` tells when to ask again.
    fn _next(slf: &Bound<'_, Self>, again: bool) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let hub = slf.as_super().get().hub()?;
        hub.check()?;
        match hub.next_at_once(again) {
            Poll::Pending => Ok(PyBool::new(py, false).to_owned().into_any().unbind()),
            Poll::Ready(None) => Ok(py.None()),
            Poll::Ready(Some(incoming)) => request::new(py, hub, incoming),
        }
    }

    /// A future that is done when it is worth asking again.
    fn _ready(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let hub = slf.as_super().get().hub()?;
        match hub.way() {
            Way::Loop(inbox) => hub.ready(slf.py(), inbox),
            Way::Blocking => Err(PyRuntimeError::new_err("not of an event loop")),
        }
    }

    /// Who was told that there is something does not ask: somebody else may.
    fn _pass_on(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.as_super().get().hub()?.serve_waiters(slf.py())
    }

    /// Stops, and receives what servers have pushed: ``recv`` returns that, and then None.
    fn shutdown(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let hub = slf.as_super().get().hub()?;
        let stopping = Arc::clone(hub);
        run(slf.py(), hub, async move {
            stopping.shut_down().await;
            Ok(Out::Nothing)
        })
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        next(slf, true)
    }
}

/// A coroutine that receives. It is one of Python's own, so that it takes a request in the very step in which it returns it, and a task
/// that is cancelled takes none.
fn next<'py>(
    connection: &Bound<'py, AioConnection>,
    iterates: bool,
) -> PyResult<Bound<'py, PyAny>> {
    static RECEIVE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = connection.py();
    let receive = RECEIVE.get_or_try_init(py, || {
        let function = py.import("lurcher.aio")?.getattr("_receive")?;
        PyResult::Ok(function.unbind())
    })?;
    receive.bind(py).call1((connection, iterates))
}
