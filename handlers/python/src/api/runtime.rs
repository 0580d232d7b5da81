//! The thread that does the library's input and output for all connections of the process, and waiting for it from Python.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};

use super::errors::ConnectError_;
use crate::wait::slice;

/// The runtime of the process with that number: a child by fork has the memory of one, and no thread that runs it.
static RUNTIME: Mutex<Option<(u32, &'static Runtime)>> = Mutex::new(None);

/// The runtime of this process. It lasts as long as that.
///
/// # Errors
///
/// When no thread can be started.
pub(super) fn runtime() -> PyResult<&'static Runtime> {
    let mut known = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    match *known {
        Some((process, runtime)) if process == std::process::id() => Ok(runtime),
        _ => {
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("lurcher-io")
                .enable_all()
                .build()
                .map_err(|error| {
                    ConnectError_::new_err(format!("starting a thread for connections: {error}"))
                })?;
            let runtime: &'static Runtime = Box::leak(Box::new(runtime));
            *known = Some((std::process::id(), runtime));
            Ok(runtime)
        }
    }
}

/// Looks once whether it is done, with the interpreter's lock: most of what is sent is on its way at once.
pub(super) fn try_now<F: Future>(
    runtime: &Runtime,
    future: std::pin::Pin<&mut F>,
) -> Poll<F::Output> {
    let _guard = runtime.enter();
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Waits until it is done, without the interpreter's lock; nothing when that took longer than to the `deadline`.
///
/// # Errors
///
/// What a signal handler raises in the main thread: `KeyboardInterrupt` above all. The future is dropped then.
pub(super) fn wait<F>(
    py: Python<'_>,
    runtime: &Runtime,
    future: F,
    deadline: Option<Instant>,
) -> PyResult<Option<F::Output>>
where
    F: Future<Output: Send> + Send,
{
    let mut future = pin!(future);
    if let Poll::Ready(done) = try_now(runtime, future.as_mut()) {
        return Ok(Some(done));
    }
    let slice = slice(py)?;
    loop {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Ok(None);
        }
        let slice = deadline.map_or(slice, |deadline| slice.min(deadline - now));
        let waited = py.detach(|| {
            let future = future.as_mut();
            runtime.block_on(async move { tokio::time::timeout(slice, future).await })
        });
        if let Ok(done) = waited {
            return Ok(Some(done));
        }
        py.check_signals()?;
    }
}
