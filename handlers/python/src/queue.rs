//! Requests on their way to Python's threads.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use lurcher::handler::{BodyReader, Request};

/// A request for an application.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// The number of its mount in the site.
    pub(crate) mount: usize,
    /// What of its body is not in the request.
    pub(crate) body: Option<BodyReader>,
}

/// First in, first out, to whichever thread comes first.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    there: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    waiting: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn push(&self, job: Job) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs.push_back(job);
        if state.waiting > 0 {
            self.there.notify_one();
        }
    }

    /// No more will come: who waits is told when all has been taken.
    pub(crate) fn close(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed = true;
        self.there.notify_all();
    }

    pub(crate) fn try_take(&self) -> Option<Job> {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .jobs
            .pop_front()
    }

    /// Waits for a job, without the interpreter's lock; none: there will be no more.
    pub(crate) fn take(&self) -> Option<Job> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
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
