//! Requests on their way to Python's threads.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use lurcher::handler::Request;

#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    there: Condvar,
}

#[derive(Default)]
struct State {
    requests: VecDeque<Request>,
    waiting: usize,
    closed: bool,
}

static TARGET: OnceLock<String> = OnceLock::new();

pub(crate) fn set_target(target: &str) {
    let _ = TARGET.set(target.to_owned());
}

impl Queue {
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Queue>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(Arc::default))
    }

    pub(crate) fn push(&self, request: Request) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.requests.push_back(request);
        if state.waiting > 0 {
            self.there.notify_one();
        }
    }

    pub(crate) fn close(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed = true;
        self.there.notify_all();
    }

    pub(crate) fn try_take(&self) -> Option<Request> {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .requests
            .pop_front()
    }

    /// Waits for a request; none: there will be no more.
    pub(crate) fn take(&self) -> Option<Request> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(request) = state.requests.pop_front() {
                return Some(request);
            }
            if state.closed {
                return None;
            }
            state.waiting += 1;
            state = self
                .there
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
    }
}
