//! The event loop's side: begins what has come, wakes whoever waits, and knows all that is open.
//!
//! Everything here runs in the loop's thread.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{ThreadId, current};
use std::time::{Duration, Instant};

use lurcher::handler::Request;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rustc_hash::FxHashMap;

use super::desk::{Desk, Work};
use super::http::{Http, shown};
use super::inbox::{Farewell, Incoming};
use super::line::Line;
use super::outlet;
use super::runner::{Looks, Runner, Running, Start};
use super::scope::{self, Scopes};
use super::wait::Done;
use super::websocket::WebSocket;
use crate::engine::Engine;
use crate::watchdog;

/// After a request that has not left its task as it was, so many get tasks of their own until that is tried again.
const ALONE: usize = 64;

/// What is begun in one turn of the loop: then its other callbacks have theirs.
const TURN: usize = 64;

/// What the loop is called for follows closely when it comes in less than this.
const BUSY: Duration = Duration::from_millis(1);

/// So long the loop may work until what applications have said leaves, and others' requests are received.
const SPEECH: Duration = Duration::from_millis(1);

/// Seconds that the beginning of a response waits for its body.
const HEAD_PAUSE: f64 = 0.02;

/// An application, and where it is.
pub(crate) struct Place {
    pub(crate) app: Py<PyAny>,
    /// The path below which it is.
    pub(crate) root: String,
    /// What its lifespan has left for each request.
    pub(crate) state: OnceLock<Py<PyDict>>,
}

/// What is open.
pub(crate) enum Exchange {
    Http(Py<Http>),
    WebSocket(Py<WebSocket>),
}

impl Exchange {
    /// Calls an application with it.
    pub(crate) fn called<'py>(
        &self,
        app: &Bound<'py, PyAny>,
        scope: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = app.py();
        let exchange = match self {
            Self::Http(http) => http.bind(py).as_any(),
            Self::WebSocket(websocket) => websocket.bind(py).as_any(),
        };
        let receive = exchange.getattr(pyo3::intern!(py, "receive"))?;
        let send = exchange.getattr(pyo3::intern!(py, "send"))?;
        app.call1((scope, receive, send))
    }

    /// The application waits, and others have their turn: from now on there may be news for it.
    pub(crate) fn waits(&self, hub: &Bound<'_, Hub>, task: Bound<'_, PyAny>) -> PyResult<()> {
        let py = hub.py();
        let line = match self {
            Self::Http(http) => http.get().waits(hub, task.unbind())?,
            Self::WebSocket(websocket) => websocket.get().waits(task.unbind()),
        };
        lock(&hub.get().open).insert(key(line), self.clone_ref(py));
        // What was said to all that were open then.
        let latest = *lock(&hub.get().farewell);
        for farewell in [Farewell::Soon, Farewell::Now, Farewell::AtOnce] {
            if Some(farewell) <= latest {
                self.hear(py, farewell);
            }
        }
        Ok(())
    }

    /// The application has returned, or has raised that.
    pub(crate) fn ended(&self, py: Python<'_>, error: Option<PyErr>, has_waited: bool) {
        // With the way there.
        let error = error.map(|error| error.into_value(py).into_bound(py).into_any());
        let error = error.as_ref();
        let (hub, line) = match self {
            Self::Http(http) => http.get().ended(py, error),
            Self::WebSocket(websocket) => websocket.get().ended(py, error),
        };
        hub.left(line, has_waited);
    }

    /// The end is near.
    fn hear(&self, py: Python<'_>, farewell: Farewell) {
        match (self, farewell) {
            (Self::WebSocket(websocket), Farewell::Soon) => websocket.get().go_away(),
            (Self::Http(http), Farewell::Now) => http.get().go_away(),
            (Self::WebSocket(websocket), Farewell::AtOnce) => websocket.get().cancel(py),
            (Self::Http(http), Farewell::AtOnce) => http.get().cancel(py),
            _ => {}
        }
    }

    fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Http(http) => Self::Http(http.clone_ref(py)),
            Self::WebSocket(websocket) => Self::WebSocket(websocket.clone_ref(py)),
        }
    }

    fn wake(&self, py: Python<'_>) {
        match self {
            Self::Http(http) => http.get().wake(py),
            Self::WebSocket(websocket) => websocket.get().wake(py),
        }
    }
}

/// What the loop has given.
struct Loop {
    create_future: Py<PyAny>,
    call_later: Py<PyAny>,
    call_soon: Py<PyAny>,
    add_reader: Py<PyAny>,
    remove_reader: Py<PyAny>,
    task: Py<PyAny>,
    task_options: Py<PyDict>,
    /// The context that tasks begin with.
    context: Py<PyAny>,
    looks: Looks,
    cancelled: Py<PyAny>,
    format_exception: Py<PyAny>,
    /// Ends when all is over.
    end: Py<PyAny>,
}

/// The middle of it all.
#[pyclass(frozen, name = "Hub", module = "lurcher")]
pub(crate) struct Hub {
    pub(crate) desk: Arc<Desk>,
    /// By the numbers of their mounts.
    places: Vec<Place>,
    done: Py<Done>,
    scopes: Mutex<Scopes>,
    /// Those whose applications wait.
    open: Mutex<FxHashMap<usize, Exchange>>,
    /// What was said last to all that are open.
    farewell: Mutex<Option<Farewell>>,
    /// Requests that get tasks of their own until it is tried again to run several in one.
    alone: Mutex<usize>,
    /// Those whose beginnings were held back since the last look.
    held: Mutex<Vec<Arc<Line>>>,
    around: OnceLock<Loop>,
    begin: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// What the loop drives while one request follows the other.
    engine: Option<Arc<Engine>>,
    drives: Mutex<Drives>,
    /// Where the loop runs.
    thread: OnceLock<ThreadId>,
}

/// How the loop stands to the engine.
#[derive(Default)]
struct Drives {
    /// What it watches while it drives.
    watched: Option<RawFd>,
    /// When it was called last, or an application has said something.
    busy: Option<Instant>,
    /// When the engine had its last turn.
    turned: Option<Instant>,
}

#[pymethods]
impl Hub {
    /// What is readable when there is something to do.
    fn descriptor(&self) -> RawFd {
        self.desk.inbox.descriptor()
    }

    /// What is readable when the watchdog asks whether the loop turns; none: nobody asks.
    #[expect(clippy::unused_self, reason = "for Python it is the same thing")]
    fn watched(&self) -> Option<RawFd> {
        watchdog::descriptor()
    }

    /// The loop turns.
    #[expect(clippy::unused_self, reason = "for Python it is the same thing")]
    fn turned(&self) {
        watchdog::turned();
    }

    /// The loop serves no longer: applications end in as long as they need.
    #[expect(clippy::unused_self, reason = "for Python it is the same thing")]
    fn over(&self) {
        watchdog::loop_serves(false);
    }

    /// Gives the application of that mount what its lifespan has left.
    fn set_state(&self, mount: usize, state: &Bound<'_, PyDict>) {
        if let Some(place) = self.places.get(mount) {
            drop(place.state.set(state.clone().unbind()));
        }
    }

    /// The loop runs: requests may come.
    fn begin(&self, running: &Bound<'_, PyAny>, end: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = running.py();
        let asyncio = py.import("asyncio")?;
        let task_options = PyDict::new(py);
        task_options.set_item("loop", running)?;
        let version = py.version_info();
        if (version.major, version.minor) >= (3, 12) {
            task_options.set_item("eager_start", true)?;
        }
        let around = Loop {
            create_future: running.getattr("create_future")?.unbind(),
            call_later: running.getattr("call_later")?.unbind(),
            call_soon: running.getattr("call_soon")?.unbind(),
            add_reader: running.getattr("add_reader")?.unbind(),
            remove_reader: running.getattr("remove_reader")?.unbind(),
            task: asyncio.getattr("Task")?.unbind(),
            task_options: task_options.unbind(),
            context: py
                .import("contextvars")?
                .getattr("copy_context")?
                .call0()?
                .unbind(),
            looks: Looks::new(py)?,
            cancelled: asyncio.getattr("CancelledError")?.unbind(),
            format_exception: py
                .import("traceback")?
                .getattr("format_exception")?
                .unbind(),
            end: end.clone().unbind(),
        };
        drop(self.around.set(around));
        let _once = self.thread.set(current().id());
        let begin = self
            .begin
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        watchdog::loop_serves(true);
        if let Some(begin) = begin {
            begin();
        }
        Ok(())
    }

    /// Does what is to be done: called when the descriptor is readable.
    fn drain(slf: &Bound<'_, Self>) {
        Self::take(slf);
        if let Err(error) = Self::begin_driving(slf) {
            error.print(slf.py());
        }
    }

    /// Gives the engine a turn, and does what has come: called when there is something to do for it.
    fn turn(slf: &Bound<'_, Self>) -> PyResult<()> {
        let hub = slf.get();
        let Some(engine) = &hub.engine else {
            return Ok(());
        };
        lock(&hub.drives).turned = Some(Instant::now());
        hub.desk.inbox.look_soon();
        let has_driven = engine.turn();
        let began = Self::take(slf);
        if !has_driven {
            return hub.end_driving(slf.py());
        }
        if began > 0 {
            // What has come while that was read may not be readable any more.
            let around = hub.around.get().ok_or_else(not_begun)?;
            let turn = slf.getattr(pyo3::intern!(slf.py(), "turn"))?;
            around.call_soon.call1(slf.py(), (turn,))?;
        }
        Ok(())
    }

    /// Lets those beginnings of responses leave that nothing has followed.
    fn flush(&self, py: Python<'_>) {
        let held = std::mem::take(&mut *lock(&self.held));
        for line in held {
            if let Some(Exchange::Http(http)) = self.exchange(py, &line) {
                http.get().flush();
            }
        }
    }
}

impl Hub {
    pub(crate) fn new(
        py: Python<'_>,
        desk: Arc<Desk>,
        places: Vec<Place>,
        begin: Box<dyn FnOnce() + Send>,
        engine: Option<Arc<Engine>>,
    ) -> PyResult<Self> {
        Ok(Self {
            desk,
            places,
            done: Py::new(py, Done)?,
            scopes: Mutex::new(Scopes::new(py)?),
            open: Mutex::default(),
            farewell: Mutex::default(),
            alone: Mutex::default(),
            held: Mutex::default(),
            around: OnceLock::new(),
            begin: Mutex::new(Some(begin)),
            engine,
            drives: Mutex::default(),
            thread: OnceLock::new(),
        })
    }

    /// Does what is to be done. How much that was.
    fn take(slf: &Bound<'_, Self>) -> usize {
        let py = slf.py();
        let hub = slf.get();
        let mut taken = Vec::with_capacity(TURN);
        hub.desk.inbox.take(TURN, &mut taken);
        let count = taken.len();
        let mut starts = VecDeque::new();
        for incoming in taken {
            match incoming {
                Incoming::Start(work, line) => starts.push_back((work, line)),
                Incoming::News(line) => {
                    line.told();
                    if let Some(exchange) = hub.exchange(py, &line) {
                        exchange.wake(py);
                    }
                }
                Incoming::Farewell(farewell) => hub.say_farewell(py, farewell),
                Incoming::End => hub.end(py),
            }
        }
        Self::run(slf, starts);
        count
    }

    /// Drives from here on, if requests follow each other closely.
    fn begin_driving(slf: &Bound<'_, Self>) -> PyResult<()> {
        let hub = slf.get();
        let Some(engine) = &hub.engine else {
            return Ok(());
        };
        let now = Instant::now();
        let mut drives = lock(&hub.drives);
        let before = drives.busy.replace(now);
        let is_busy = before.is_some_and(|before| now.duration_since(before) < BUSY);
        if drives.watched.is_some() || !is_busy {
            return Ok(());
        }
        let Some(epoll) = engine.claim() else {
            return Ok(());
        };
        drives.watched = Some(epoll);
        drop(drives);
        let around = hub.around.get().ok_or_else(not_begun)?;
        let turn = slf.getattr(pyo3::intern!(slf.py(), "turn"))?;
        around.add_reader.call1(slf.py(), (epoll, turn))?;
        Ok(())
    }

    /// An application has said something. What was said leaves soon, also when others keep the loop busy for longer: by a turn in between,
    /// since to call another thread for it costs more.
    pub(crate) fn said(&self) {
        let Some(engine) = &self.engine else { return };
        let mut drives = lock(&self.drives);
        let now = Instant::now();
        drives.busy = Some(now);
        let is_due = drives
            .turned
            .is_none_or(|turned| now.duration_since(turned) >= SPEECH);
        if drives.watched.is_none() || !is_due || self.thread.get() != Some(&current().id()) {
            return;
        }
        drives.turned = Some(now);
        drop(drives);
        // Where the attendant drives it has done that.
        engine.turn();
    }

    /// The attendant drives, since it has become quiet, or the loop was held up.
    fn end_driving(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(epoll) = lock(&self.drives).watched.take() {
            let around = self.around.get().ok_or_else(not_begun)?;
            around.remove_reader.call1(py, (epoll,))?;
        }
        Ok(())
    }

    /// What need not be waited for.
    pub(crate) fn done<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.done.bind(py).clone().into_any()
    }

    pub(crate) fn looks(&self) -> PyResult<&Looks> {
        let around = self.around.get().ok_or_else(not_begun)?;
        Ok(&around.looks)
    }

    /// A new future of the loop.
    pub(crate) fn future(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let around = self.around.get();
        let around = around.ok_or_else(not_begun)?;
        around.create_future.call0(py)
    }

    /// Adds a future to those who wait, and leaves out whoever does not any more.
    pub(crate) fn queue(
        py: Python<'_>,
        mut waiters: Vec<Py<PyAny>>,
        future: &Py<PyAny>,
    ) -> Vec<Py<PyAny>> {
        waiters.retain(|waiter| !is_done(py, waiter));
        waiters.push(future.clone_ref(py));
        waiters
    }

    /// Wakes those who wait.
    #[expect(clippy::unused_self, reason = "it is the loop's business")]
    pub(crate) fn release(&self, py: Python<'_>, waiters: Vec<Py<PyAny>>) {
        for waiter in waiters {
            if !is_done(py, &waiter)
                && let Err(error) =
                    waiter.call_method1(py, pyo3::intern!(py, "set_result"), (py.None(),))
            {
                error.print(py);
            }
        }
    }

    /// The beginning of a response was held back.
    pub(crate) fn held(slf: &Bound<'_, Self>, line: &Arc<Line>) -> PyResult<()> {
        let hub = slf.get();
        let is_first = {
            let mut held = lock(&hub.held);
            held.push(Arc::clone(line));
            held.len() == 1
        };
        if is_first {
            let around = hub.around.get().ok_or_else(not_begun)?;
            let flush = slf.getattr(pyo3::intern!(slf.py(), "flush"))?;
            around.call_later.call1(slf.py(), (HEAD_PAUSE, flush))?;
        }
        Ok(())
    }

    /// Whether that is the end of a task that was cancelled.
    pub(crate) fn is_cancelled(&self, error: &Bound<'_, PyAny>) -> bool {
        self.around.get().is_some_and(|around| {
            let cancelled = around.cancelled.bind(error.py());
            error.is_instance(cancelled).unwrap_or(false)
        })
    }

    /// Logs what an application has raised, with the way there. Of one whose client has gone it is no news.
    pub(crate) fn tell_raised(
        &self,
        py: Python<'_>,
        request: &Request,
        error: &Bound<'_, PyAny>,
        is_gone: bool,
    ) {
        let (method, path) = shown(request);
        if self.is_cancelled(error) {
            tracing::warn!("{method} {path}: cancelled, because the worker stops");
            return;
        }
        if is_gone {
            tracing::debug!("{method} {path}: the client has left: {error}");
            return;
        }
        let text = self.around.get().and_then(|around| {
            let lines = around.format_exception.call1(py, (error,)).ok()?;
            let lines: Vec<String> = lines.extract(py).ok()?;
            Some(lines.concat())
        });
        let text = text.unwrap_or_else(|| error.to_string());
        tracing::error!(
            "{method} {path}: the application has failed\n{}",
            text.trim_end()
        );
    }

    /// An application is done with a client.
    fn left(&self, line: &Arc<Line>, has_waited: bool) {
        let exchange = has_waited.then(|| lock(&self.open).remove(&key(line)));
        if line.left() {
            self.desk.done(line);
        }
        // The last reference may be this one: not under the lock.
        drop(exchange);
    }

    fn exchange(&self, py: Python<'_>, line: &Arc<Line>) -> Option<Exchange> {
        lock(&self.open)
            .get(&key(line))
            .map(|exchange| exchange.clone_ref(py))
    }

    /// Has applications run for these.
    fn run(slf: &Bound<'_, Self>, starts: VecDeque<Start>) {
        let mut alone = lock(&slf.get().alone);
        let is_alone = *alone > 0;
        *alone = alone.saturating_sub(starts.len());
        drop(alone);
        if is_alone {
            Self::run_each(slf, starts);
        } else if !starts.is_empty() {
            Self::run_in_task(slf, starts);
        }
    }

    /// Has each run in a task of its own, and those that come soon.
    pub(crate) fn run_alone(slf: &Bound<'_, Self>, starts: VecDeque<Start>) {
        *lock(&slf.get().alone) = ALONE;
        Self::run_each(slf, starts);
    }

    fn run_each(slf: &Bound<'_, Self>, starts: VecDeque<Start>) {
        for start in starts {
            Self::run_in_task(slf, VecDeque::from([start]));
        }
    }

    fn run_in_task(slf: &Bound<'_, Self>, starts: VecDeque<Start>) {
        let py = slf.py();
        let hub = slf.get();
        let runner = Runner::new(slf.clone().unbind(), starts);
        let made = Bound::new(py, runner).and_then(|runner| {
            let made = hub.make_task(&runner);
            made.inspect_err(|error| runner.get().give_up(py, error))
        });
        if let Err(error) = made {
            error.print(py);
        }
    }

    fn make_task(&self, runner: &Bound<'_, Runner>) -> PyResult<()> {
        let py = runner.py();
        let around = self.around.get().ok_or_else(not_begun)?;
        let options = Some(around.task_options.bind(py));
        // In a context of its own, since it may be called by a task that has left its traces here. A task copies it.
        let context = around.context.call_method0(py, pyo3::intern!(py, "copy"))?;
        let run = context.getattr(py, pyo3::intern!(py, "run"))?;
        run.call(py, (&around.task, runner), options)?;
        Ok(())
    }

    /// Begins with a request: makes what the application needs, and calls it. None: that could not be, and was answered.
    pub(crate) fn begin_one(slf: &Bound<'_, Self>, work: Work, line: Arc<Line>) -> Option<Running> {
        let py = slf.py();
        let hub = slf.get();
        watchdog::loop_begins(&work.request);
        let is_websocket = work.is_websocket();
        let place = hub.places.get(work.mount).ok_or_else(not_begun);
        let prepared = place.and_then(|place| {
            let root = scope::root(&place.root, &work.request);
            let state = place.state.get().map(|state| state.bind(py));
            let scope = lock(&hub.scopes).make(py, &work.request, is_websocket, root, state)?;
            Ok((place.app.bind(py), scope))
        });
        let (app, scope) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                hub.could_not_start(&work.request, &line, error.value(py));
                return None;
            }
        };
        let own = slf.clone().unbind();
        let exchange = if is_websocket {
            Py::new(py, WebSocket::new(own, line, *work.request)).map(Exchange::WebSocket)
        } else {
            Py::new(py, Http::new(own, line, work)).map(Exchange::Http)
        };
        // Only where there is no memory left.
        let exchange = exchange.inspect_err(|error| error.clone_ref(py).print(py));
        let exchange = exchange.ok()?;
        let running = Running::new(exchange, app, &scope);
        running
            .map_err(|(exchange, error)| exchange.ended(py, Some(error), false))
            .ok()
    }

    /// Answers for an application that never had the request.
    pub(crate) fn could_not_start(
        &self,
        request: &Request,
        line: &Arc<Line>,
        error: &Bound<'_, PyAny>,
    ) {
        let py = error.py();
        self.tell_raised(py, request, error, false);
        let sending = super::http::sorry(request, self.is_cancelled(error));
        outlet::whole(&self.desk, line, sending);
        self.left(line, false);
    }

    fn say_farewell(&self, py: Python<'_>, farewell: Farewell) {
        *lock(&self.farewell) = Some(farewell);
        let open: Vec<Exchange> = {
            let open = lock(&self.open);
            open.values()
                .map(|exchange| exchange.clone_ref(py))
                .collect()
        };
        for exchange in open {
            exchange.hear(py, farewell);
        }
    }

    fn end(&self, py: Python<'_>) {
        if let Some(around) = self.around.get() {
            self.release(py, vec![around.end.clone_ref(py)]);
        }
    }
}

/// What is open is found by its line, which lives at least as long.
fn key(line: &Arc<Line>) -> usize {
    Arc::as_ptr(line).addr()
}

fn is_done(py: Python<'_>, future: &Py<PyAny>) -> bool {
    let done = future.call_method0(py, pyo3::intern!(py, "done"));
    done.and_then(|done| done.is_truthy(py)).unwrap_or(true)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_begun() -> PyErr {
    pyo3::exceptions::PyRuntimeError::new_err("the loop does not serve yet")
}
