//! Waiting of Python's threads and greenlets for what the library does on its own runtime. It knows futures and nothing of requests.
//!
//! Most of what is sent is handed over at the first attempt, with the interpreter's lock held and without another thread. Only what
//! is not waits: a thread without the lock, a greenlet in its hub, where a pipe wakes it.

use std::cell::RefCell;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use pyo3::prelude::*;
use tokio::runtime::Handle;

use crate::engine::Engine;
use crate::watchdog;

/// How long the main thread waits before it looks whether a signal has come: Python's handlers run in it alone, and only when it
/// asks. A person at ctrl-C does not notice.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);

/// How long other threads wait: they need never look.
const LONG: Duration = Duration::from_secs(3600);

/// The runtime of the thread that receives, which drives sockets and timers.
static RUNTIME: OnceLock<Handle> = OnceLock::new();

/// What lets a greenlet wait until a descriptor is readable; none where threads are waited in.
static HUB: OnceLock<Py<PyAny>> = OnceLock::new();

/// What a thread that answers requests of its own connection waits with.
pub(crate) struct Company {
    pub(crate) runtime: Handle,
    /// Makes what goes on while the thread waits; it need not end.
    pub(crate) meanwhile: Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>>>,
}

thread_local! {
    static COMPANY: RefCell<Option<Company>> = const { RefCell::new(None) };
    /// What this thread drives where it waits.
    static ENGINE: RefCell<Option<Arc<Engine>>> = const { RefCell::new(None) };
}

/// From now on this thread drives the runtime while it waits.
pub(crate) fn drive(engine: &Arc<Engine>) {
    ENGINE.set(Some(Arc::clone(engine)));
}

/// Does something in this thread whose waits are in this company.
pub(crate) fn in_company<T>(company: Company, work: impl FnOnce() -> T) -> T {
    struct Leave(Option<Company>);
    impl Drop for Leave {
        fn drop(&mut self) {
            let before = self.0.take();
            COMPANY.with_borrow_mut(|company| *company = before);
        }
    }
    let _leave = Leave(COMPANY.with_borrow_mut(|present| present.replace(company)));
    work()
}

fn runtime() -> Option<Handle> {
    let own = COMPANY.with_borrow(|company| Some(company.as_ref()?.runtime.clone()));
    own.or_else(|| RUNTIME.get().cloned())
}

/// Says which runtime drives what is waited for; called there, before the first request.
pub(crate) fn on_this_runtime() {
    drop(RUNTIME.set(Handle::current()));
}

/// From now on waits are those of greenlets: `wait` is called with the number of a descriptor.
pub(crate) fn in_greenlets(wait: Py<PyAny>) {
    drop(HUB.set(wait));
}

/// Has the runtime do something by itself.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    if let Some(runtime) = runtime() {
        drop(runtime.spawn(task));
    }
}

/// Looks once whether it is done.
pub(crate) fn once<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    let runtime = runtime();
    let _entered = runtime.as_ref().map(Handle::enter);
    watchdog::progress();
    poll(&mut Context::from_waker(Waker::noop()))
}

/// Waits for a future. In a box, because a greenlet's stack is moved away while it waits, and others may hold on to the future.
///
/// # Errors
///
/// What is raised in a greenlet that waits: it is being ended. `KeyboardInterrupt` in the main thread of a program that has its own
/// connection.
pub(crate) fn until<T: Send>(
    py: Python<'_>,
    mut future: Pin<Box<dyn Future<Output = T> + Send + '_>>,
) -> PyResult<T> {
    until_polled(py, |cx| future.as_mut().poll(cx))
}

/// The same for something that is polled, and whose place is no matter to others.
///
/// # Errors
///
/// As [`until`].
pub(crate) fn until_polled<T: Send>(
    py: Python<'_>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T> + Send,
) -> PyResult<T> {
    if let Poll::Ready(done) = once(&mut poll) {
        return Ok(done);
    }
    let company = COMPANY.with_borrow(|company| {
        let company = company.as_ref()?;
        Some((company.runtime.clone(), (company.meanwhile)()))
    });
    if let Some((runtime, mut meanwhile)) = company {
        let mut both = Box::pin(std::future::poll_fn(move |cx| {
            let done = poll(cx);
            if done.is_pending() && meanwhile.as_mut().poll(cx).is_ready() {
                // It only serves others; once it has ended it must not be polled again.
                meanwhile = Box::pin(std::future::pending());
            }
            done
        }));
        let slice = slice(py)?;
        loop {
            let waited =
                || runtime.block_on(async { tokio::time::timeout(slice, both.as_mut()).await });
            if let Ok(done) = py.detach(waited) {
                return Ok(done);
            }
            py.check_signals()?;
        }
    }
    if let Some(wait) = HUB.get() {
        return in_hub(py, wait, poll);
    }
    let engine = ENGINE.with_borrow(Clone::clone);
    let runtime = RUNTIME.get();
    watchdog::pause();
    let done = py.detach(|| {
        let polled = std::future::poll_fn(poll);
        let done = match (engine, runtime) {
            (Some(engine), _) => engine.drive(polled),
            (None, Some(runtime)) => Some(runtime.block_on(polled)),
            (None, None) => None,
        };
        // Nothing was received yet, so nobody has anything to wait for.
        done.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
    });
    watchdog::resume();
    done
}

/// How long this thread waits at a time before it looks whether a signal has come.
///
/// # Errors
///
/// Where Python does not know its threads.
pub(crate) fn slice(py: Python<'_>) -> PyResult<Duration> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    let is_main = threading.call_method0("get_ident")?.eq(main)?;
    Ok(if is_main { SIGNALS_EVERY } else { LONG })
}

fn in_hub<T>(
    py: Python<'_>,
    wait: &Py<PyAny>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> PyResult<T> {
    let bell = Arc::new(Bell::new()?);
    let waker = Waker::from(Arc::clone(&bell));
    loop {
        let polled = {
            let _entered = RUNTIME.get().map(Handle::enter);
            poll(&mut Context::from_waker(&waker))
        };
        if let Poll::Ready(done) = polled {
            return Ok(done);
        }
        wait.call1(py, (bell.descriptor(),))?;
        bell.silence();
    }
}

/// A descriptor that becomes readable when somebody rings.
#[derive(Debug)]
pub(crate) struct Bell {
    reader: PipeReader,
    writer: PipeWriter,
    rings: AtomicBool,
}

impl Bell {
    /// One that is silent.
    ///
    /// # Errors
    ///
    /// When descriptors have run out.
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self {
            reader,
            writer,
            rings: AtomicBool::new(false),
        })
    }

    /// What becomes readable.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.reader.as_raw_fd()
    }

    /// Rings until it is silenced. There is never more than one byte in the pipe, so this does not wait.
    pub(crate) fn ring(&self) {
        if !self.rings.swap(true, Ordering::AcqRel)
            && let Err(error) = (&self.writer).write_all(&[1])
        {
            tracing::error!(%error, "waking a greenlet");
        }
    }

    /// Ends the ringing. Look afterwards at what it may have been for.
    pub(crate) fn silence(&self) {
        if self.rings.load(Ordering::Acquire) {
            // The byte is there, or is being written.
            if let Err(error) = (&self.reader).read_exact(&mut [0]) {
                tracing::error!(%error, "waking a greenlet");
            }
            self.rings.store(false, Ordering::Release);
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
