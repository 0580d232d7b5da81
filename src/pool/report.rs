//! How a pool does, for those who watch it.
//!
//! A picture of a moment; nothing is counted here.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Dialect, Endpoints, Pool};
use crate::balancer::Durations;
pub use crate::balancer::{Counts, Histogram};
use crate::bus::server::{Origin, PeerId};

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
    /// Requests in flight at all workers together.
    pub in_flight: u32,
    /// Most requests that may wait now.
    pub queue_max: usize,
    /// What has happened so far, by cause.
    pub counts: Counts,
    /// How long requests waited that were handed over.
    pub waits: Spread,
    /// How long workers took.
    pub service: Spread,
    /// The peers that take requests, and those that only answer what they have.
    pub workers: Vec<Worker>,
}

/// How durations were spread: all that there were, and quantiles of the last thousand or so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spread {
    /// All that there were, by fixed bounds.
    pub ever: Histogram,
    /// Half of them were shorter.
    pub p50: Option<Duration>,
    /// Nine of ten were shorter.
    pub p90: Option<Duration>,
    /// 99 of a hundred were shorter.
    pub p99: Option<Duration>,
}

impl From<&Durations> for Spread {
    fn from(durations: &Durations) -> Self {
        Self {
            ever: durations.ever().clone(),
            p50: durations.quantile(0.5),
            p90: durations.quantile(0.9),
            p99: durations.quantile(0.99),
        }
    }
}

/// How one peer of a pool does.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Its connection.
    pub peer: PeerId,
    /// What it calls itself, or what it is called by where it came from. No two of a report have the same.
    pub name: String,
    /// What it speaks.
    pub dialect: Dialect,
    /// Where it came from.
    pub origin: Origin,
    /// `pairing` until its reply socket is heard, `ready`, `blocked` while its socket takes nothing, `stalled` when that has
    /// lasted, `leaving` when it has gone and may be dead, `draining` when it only answers what it has,
    /// `suspect` when it is silent, `stuck` when its program comes no further, `ejected` when it gets nothing for being slow.
    pub state: &'static str,
    /// How many requests it works on at once, by its own word or by the rules. None: no wall.
    pub slots: Option<u32>,
    /// Most requests that it is given at once: its slots, and what keeps it busy for the time of a hop.
    pub credit: Option<u32>,
    /// Its share, compared with others.
    pub weight: u32,
    /// Requests that ended while it had them.
    pub served: u64,
    /// Requests that it never took, and that went back to the queue.
    pub unsent: u64,
    /// Requests whose deadline was over while it had them.
    pub overdue: u64,
    /// How long it took.
    pub service: Spread,
    /// Requests that it has not answered.
    pub open: u32,
    /// Requests from before its connection that take slots of it, and are in no other count.
    pub foreign: u32,
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
            in_flight: state.workers.balancer.in_flight(),
            queue_max: state.workers.balancer.queue_max(),
            counts: *state.workers.balancer.counts(),
            waits: state.workers.balancer.waits().into(),
            service: state.workers.balancer.service().into(),
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
