//! WSGI (PEP 3333): applications in Python's threads, or in greenlets.
//!
//! A thread takes requests from the queue and answers each before it takes the next. It keeps the interpreter's lock while there are
//! requests, and gives it away now and then for the others; what it has to wait for, it waits for without.

mod environ;
mod file;
mod green;
mod head;
mod input;
mod names;
mod out;
mod response;
mod start;

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lurcher::handler::Request;
use pyo3::exceptions::{PyLookupError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict};

pub(crate) use file::sendfile_below;

use self::environ::{Environs, Facts};
use self::input::Input;
use self::start::StartResponse;
use crate::engine::Engine;
use crate::load::App;
use crate::queue::{Body, Claim, Job, Queue};
use crate::site::{Interface, Mount, Site};
use crate::{wait, watchdog};

/// How many requests a thread answers, and for how long, before it lets other threads of Python run: taking the lock back from one
/// that computes takes 5 ms, the interpreter's switch interval.
const TURN_REQUESTS: usize = 32;
const TURN: Duration = Duration::from_millis(1);

/// Set when responses that go on must end, since the worker is about to.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// Ends each response that goes on at its next piece: an endless one knows no other end.
pub(crate) fn leave() {
    LEAVING.store(true, Ordering::Relaxed);
}

fn is_leaving() -> bool {
    LEAVING.load(Ordering::Relaxed)
}

/// What requests are answered in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Io {
    /// Threads.
    #[default]
    Standard,
    Gevent,
    Eventlet,
}

/// How applications are run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) io: Io,
    /// Threads that answer requests.
    pub(crate) threads: usize,
    /// Greenlets that answer requests, at most.
    pub(crate) greenlets: usize,
    /// There are other processes with the same applications.
    pub(crate) multiprocess: bool,
    /// The main thread is one of the threads; otherwise it does something else.
    pub(crate) main_thread: bool,
}

impl Settings {
    /// How many requests are answered at a time.
    pub(crate) fn slots(&self) -> usize {
        match self.io {
            Io::Standard => self.threads.max(1),
            Io::Gevent | Io::Eventlet => self.greenlets.max(1),
        }
    }
}

/// What all threads have in common.
struct Shared {
    queue: Arc<Queue>,
    /// What the only thread drives.
    engine: Option<Arc<Engine>>,
    site: Site,
    apps: Vec<Py<PyAny>>,
    settings: Settings,
}

/// Threads that answer requests.
pub(crate) struct Threads(Vec<Py<PyAny>>);

impl Threads {
    /// Waits for their end.
    ///
    /// # Errors
    ///
    /// What Python raises meanwhile, in the main thread above all.
    pub(crate) fn join(self, py: Python<'_>) -> PyResult<()> {
        for thread in self.0 {
            thread.call_method0(py, intern!(py, "join"))?;
        }
        Ok(())
    }
}

/// Answers what comes by the queue until that is closed and empty. Without the main thread it returns at once, and gives back those
/// that do it.
///
/// # Errors
///
/// When threads cannot be started, and what Python raises in the loop of greenlets.
pub(crate) fn serve(
    py: Python<'_>,
    queue: &Arc<Queue>,
    engine: Option<Arc<Engine>>,
    site: &Site,
    apps: &[App],
    settings: Settings,
) -> PyResult<Threads> {
    let shared = Arc::new(Shared {
        queue: Arc::clone(queue),
        engine,
        site: site.clone(),
        apps: apps.iter().map(|app| app.callable.clone_ref(py)).collect(),
        settings,
    });
    if settings.io != Io::Standard {
        if !settings.main_thread {
            return Err(PyValueError::new_err(
                "greenlets and the event loop of ASGI applications both need the main thread: put them into groups of their own",
            ));
        }
        green::serve(py, &shared)?;
        return Ok(Threads(Vec::new()));
    }
    let threading = py.import("threading")?;
    let mut threads = Vec::new();
    for number in usize::from(settings.main_thread)..settings.threads.max(1) {
        let shared = Arc::clone(&shared);
        let run = PyCFunction::new_closure(py, None, None, move |args, _| {
            Worker::new(args.py(), &shared)?.run(args.py());
            PyResult::Ok(())
        })?;
        let options = PyDict::new(py);
        options.set_item("target", run)?;
        options.set_item("name", format!("lurcher-wsgi-{}", number + 1))?;
        // One that hangs must not hold up the end.
        options.set_item("daemon", true)?;
        let thread = threading.getattr("Thread")?.call((), Some(&options))?;
        thread.call_method0("start")?;
        threads.push(thread.unbind());
    }
    if settings.main_thread {
        Worker::new(py, &shared)?.run(py);
    }
    Ok(Threads(threads))
}

/// One application, for whoever receives requests himself and answers them in threads of his own.
pub(crate) struct Single(Worker);

impl Single {
    /// Any callable that speaks WSGI.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub(crate) fn new(py: Python<'_>, application: Py<PyAny>) -> PyResult<Self> {
        let everywhere = Mount {
            place: lurcher::routing::Place::default(),
            app: 0,
            interface: Interface::Wsgi,
        };
        let shared = Arc::new(Shared {
            queue: Queue::new(),
            engine: None,
            site: Site::new(vec![everywhere]),
            apps: vec![application],
            // What they will be is not known, so it says that there may be others.
            settings: Settings {
                io: Io::Standard,
                threads: 2,
                greenlets: 1,
                multiprocess: true,
                main_thread: true,
            },
        });
        Worker::new(py, &shared).map(Self)
    }

    /// Answers one request, whatever happens.
    ///
    /// # Errors
    ///
    /// `KeyboardInterrupt`, when that has come in between.
    pub(crate) fn answer(&self, py: Python<'_>, request: Request, body: Body) -> PyResult<()> {
        let interrupt = self.0.answer(py, Job::new(request, 0, body));
        interrupt.map_or(Ok(()), Err)
    }
}

/// What a thread, or all greenlets, answer requests with.
struct Worker {
    shared: Arc<Shared>,
    /// Behind a lock for greenlets: the collection of garbage may switch to another in the middle.
    environs: Mutex<Environs>,
}

impl Worker {
    fn new(py: Python<'_>, shared: &Arc<Shared>) -> PyResult<Self> {
        let settings = &shared.settings;
        let template = environ::template(py, settings.slots() > 1, settings.multiprocess)?;
        Ok(Self {
            shared: Arc::clone(shared),
            environs: Mutex::new(Environs::new(template)),
        })
    }

    /// Answers what comes until the queue is closed and empty.
    fn run(&self, py: Python<'_>) {
        let queue = &self.shared.queue;
        let engine = self.shared.engine.as_ref();
        if let Some(engine) = engine {
            wait::drive(engine);
        }
        let (mut begun, mut requests) = (Instant::now(), 0);
        loop {
            let over = requests >= TURN_REQUESTS || begun.elapsed() >= TURN;
            let job = if over { None } else { queue.try_take() };
            let job = job.or_else(|| {
                let job = py.detach(|| match engine {
                    Some(engine) => {
                        if over {
                            // What was answered leaves before the next one.
                            engine.turn();
                        }
                        let next = || engine.drive(poll_fn(|cx| queue.poll_take(cx)));
                        queue.try_take().or_else(|| next().flatten())
                    }
                    None => queue.take(),
                });
                (begun, requests) = (Instant::now(), 0);
                job
            });
            let Some(job) = job else { return };
            requests += 1;
            watchdog::begin(&job.request);
            // This thread is nobody's who could be interrupted: that was the application's own word.
            let _interrupt = self.answer(py, job);
            watchdog::end();
        }
    }

    /// Answers one request, whatever happens. What has interrupted that.
    fn answer(&self, py: Python<'_>, job: Job) -> Option<PyErr> {
        let client = job.request.client();
        let Job {
            request,
            mount,
            body,
            place,
        } = job;
        let claim = place.as_ref().map(|place| place.claim.clone());
        let claim = claim.unwrap_or_default();
        let begun = self.begin(py, (request, claim), mount, body);
        if let Err(error) = &begun {
            // Not the application's fault: there is no memory, or a greenlet is being killed.
            tracing::error!(?client, "answering a request: {error}");
            drop(wait::until(py, Box::pin(client.cancel())));
        }
        // The next one of the same client may begin.
        drop(place);
        begun.ok().flatten()
    }

    fn begin(
        &self,
        py: Python<'_>,
        (request, claim): (Request, Claim),
        mount: usize,
        body: Body,
    ) -> PyResult<Option<PyErr>> {
        let shared = &self.shared;
        let place = shared.site.mounts().get(mount);
        let found = place.and_then(|place| Some((place, shared.apps.get(place.app)?)));
        let Some((place, application)) = found else {
            return Err(PyLookupError::new_err("there is no such application"));
        };
        let (input, length) = Input::new(&request, body);
        let input = Bound::new(py, input)?;
        let facts = Facts {
            mount,
            // By its place, where it has one; else by its route.
            place: place.consumed(&request.path).filter(|bytes| *bytes > 0),
            input: input.as_any(),
            length,
        };
        let environ = if let Ok(mut environs) = self.environs.try_lock() {
            environs.of(py, &request, &facts)?
        } else {
            let settings = &shared.settings;
            let template = environ::template(py, settings.slots() > 1, settings.multiprocess)?;
            Environs::new(template).of(py, &request, &facts)?
        };
        let start = Bound::new(py, StartResponse::new(request, claim))?;
        let interrupt = response::answer(py, application, environ, &start, &input);
        // The application may keep it for longer than the request.
        if let Ok(mut input) = input.try_borrow_mut() {
            input.close();
        }
        Ok(interrupt)
    }
}
