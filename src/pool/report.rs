//! How a pool does, for those who watch it.
//!
//! A picture of a moment; nothing is counted here.

use std::time::Duration;

use tokio::time::Instant;

use super::{Endpoints, Pool};
use crate::bus::server::Origin;

/// How a pool does.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its addresses, with their real ports.
    pub endpoints: Endpoints,
    /// Requests that wait for a peer.
    pub waiting: usize,
    /// Bytes of those.
    pub waiting_bytes: usize,
    /// Reply sockets that are heard.
    pub voices: usize,
    /// The peers that take requests, and those that only answer what they have.
    pub workers: Vec<Worker>,
}

/// How one peer of a pool does.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Where it came from.
    pub origin: Origin,
    /// `pairing` until its reply socket is heard, `ready`, `blocked` while its socket takes nothing, `stalled` when that has
    /// lasted, `leaving` when it has gone and may be dead, `draining` when it only answers what it has.
    pub state: &'static str,
    /// Requests that it has not answered.
    pub open: u32,
    /// Responses of it that have become streams.
    pub attached: u32,
    /// Messages that its socket has not taken.
    pub queued: usize,
    /// Bytes of those.
    pub queued_bytes: usize,
    /// For how long its socket has taken nothing.
    pub stuck: Option<Duration>,
    /// For how long its program has come no further, by its own count, although it has something. None where it does not count.
    pub no_progress: Option<Duration>,
}

impl Pool {
    /// How the pool does now.
    pub fn report(&self) -> Report {
        let state = self.state.borrow();
        Report {
            endpoints: self.endpoints.borrow().clone(),
            waiting: state.waiting(),
            waiting_bytes: state.workers.balancer.waiting_bytes(),
            voices: state.workers.voices(),
            workers: state.workers.report(Instant::now()),
        }
    }
}
