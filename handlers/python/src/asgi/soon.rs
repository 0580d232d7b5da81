//! What is usually done at once and may have to wait: it is tried here and now, and what is left goes on in the receiving thread.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;

/// Something to be done, wherever.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Does it: at once if it can be done without waiting (true), else from there on in the runtime.
pub(crate) fn soon(runtime: &Handle, future: impl Future<Output = ()> + Send + 'static) -> bool {
    let mut task: Task = Box::pin(future);
    if try_now(runtime, &mut task) {
        return true;
    }
    drop(runtime.spawn(task));
    false
}

/// Does what can be done of it without waiting; true when that is all. Nobody is called when it could go on.
pub(crate) fn try_now(runtime: &Handle, task: &mut Task) -> bool {
    let _inside = runtime.enter();
    let mut context = Context::from_waker(Waker::noop());
    task.as_mut().poll(&mut context) == Poll::Ready(())
}
