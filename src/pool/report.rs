//! How a pool does, for those who watch it.
//!
//! A picture of a moment; nothing is counted here.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Dialect, Endpoints, Pool};
use crate::balancer::{Counts, Durations, Histogram};
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
    /// So many requests may wait now.
    pub waiting_max: usize,
    /// Requests that peers have and that take a slot there.
    pub open: u32,
    /// What has happened to requests since the pool was made.
    pub counts: Counts,
    /// How long requests waited that were handed to a peer.
    pub waits: Times,
    /// How long peers took for what they answered.
    pub service: Times,
    /// Reply sockets that are heard.
    pub voices: usize,
    /// The peers that take requests, and those that only answer what they have.
    pub workers: Vec<Worker>,
}

/// How long things took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times {
    /// All since the pool or the peer was there.
    pub ever: Histogram,
    /// What half of the last thousand did not take; none before there was any.
    pub median: Option<Duration>,
    /// What 99 of 100 of those did not take.
    pub p99: Option<Duration>,
}

impl From<&Durations> for Times {
    fn from(durations: &Durations) -> Self {
        Self {
            ever: durations.ever().clone(),
            median: durations.quantile(0.5),
            p99: durations.quantile(0.99),
        }
    }
}

/// How one peer of a pool does.
#[derive(Debug, Clone)]
pub struct Worker {
    /// What it calls itself; else where it came from and its number there. No two peers of a report have the same.
    pub name: String,
    /// What it speaks.
    pub dialect: Dialect,
    /// Where it came from.
    pub origin: Origin,
    /// `pairing` until its reply socket is heard, `ready`, `blocked` while its socket takes nothing, `stalled` when that has
    /// lasted, `leaving` when it has gone and may be dead, `draining` when it only answers what it has.
    pub state: &'static str,
    /// Requests that it has not answered.
    pub open: u32,
    /// Responses of it that have become streams.
    pub attached: u32,
    /// How many requests it works on at once, by its own word or the pool's rules. None: nobody has said.
    pub slots: Option<u32>,
    /// How many requests it may have. None: as many as come.
    pub credit: Option<u32>,
    /// Its share, compared with others.
    pub weight: u32,
    /// It gets nothing for a while, because it is slow.
    pub ejected: bool,
    /// Requests that ended while it had them.
    pub served: u64,
    /// Requests that never reached it and went back to the queue.
    pub unsent: u64,
    /// Requests whose deadline was over while it had them.
    pub overdue: u64,
    /// How long it took for what it answered.
    pub service: Times,
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
        let balancer = &state.workers.balancer;
        Report {
            endpoints: self.endpoints.borrow().clone(),
            waiting: state.waiting(),
            waiting_bytes: balancer.waiting_bytes(),
            waiting_max: balancer.queue_max(),
            open: balancer.in_flight(),
            counts: *balancer.counts(),
            waits: balancer.waits().into(),
            service: balancer.service().into(),
            voices: state.workers.voices(),
            workers: state.workers.report(Instant::now()),
        }
    }
}

/// Gives those that call themselves the same a number more, so that watchers do not take two for one.
pub(super) fn tell_apart(workers: &mut [Worker]) {
    let mut seen: HashMap<String, usize> = HashMap::with_capacity(workers.len());
    for worker in workers {
        let mut name = worker.name.clone();
        while let Some(count) = seen.get_mut(&name) {
            *count += 1;
            name = format!("{}~{count}", worker.name);
        }
        seen.insert(name.clone(), 1);
        worker.name = name;
    }
}
