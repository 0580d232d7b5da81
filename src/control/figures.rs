//! What is told of pools and their workers, in figures: each with its name, kind and meaning, in one table that makes the text
//! for Prometheus and that docs/CONTROL.md is held to.
//!
//! Figures of the whole process are `crate::metrics`' and only named here. Labels are the names of pools, of the workers that are
//! connected now, and a few fixed words: what has gone leaves no trace.

use std::collections::HashMap;

use super::exposition::{Exposition, Kind};
use super::pools::Pool;
use crate::metrics;
use crate::pool::{Dialect, Histogram, Report, Spread, Worker};

/// What all names begin with.
const PREFIX: &str = "lurcher_";

/// A figure: a family of numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// Its name in full.
    pub name: String,
    /// What its numbers are.
    pub kind: Kind,
    /// What they are told apart by, `le` and `quantile` left out.
    pub labels: &'static [&'static str],
    /// What they say, in one sentence with its unit.
    pub meaning: &'static str,
}

/// A figure of a pool.
struct OfPool {
    name: &'static str,
    kind: Kind,
    meaning: &'static str,
    what: FromPool,
}

enum FromPool {
    Number(fn(&Report) -> u64),
    /// One for each value of a label.
    Each(
        &'static [&'static str; 2],
        fn(&Report) -> Vec<(&'static str, u64)>,
    ),
    Times(fn(&Report) -> &Histogram),
}

/// A figure of a worker.
struct OfWorker {
    name: &'static str,
    kind: Kind,
    meaning: &'static str,
    what: FromWorker,
}

enum FromWorker {
    Number(fn(&Worker) -> Option<u64>),
    Seconds(fn(&Worker) -> Option<f64>),
    Times(fn(&Worker) -> &Spread),
    /// Always one; its labels say it.
    State,
}

const POOL: &[&str] = &["pool"];
const CAUSES: &[&str; 2] = &["pool", "cause"];
const STATES: &[&str; 2] = &["pool", "state"];
const WORKER: &[&str] = &["pool", "worker"];
const WORKER_STATE: &[&str] = &["pool", "worker", "dialect", "state"];

/// All states that a worker may be in.
const WORKER_STATES: [&str; 9] = [
    "pairing", "ready", "blocked", "stalled", "suspect", "stuck", "ejected", "leaving", "draining",
];

const fn of_pool(name: &'static str, kind: Kind, what: FromPool, meaning: &'static str) -> OfPool {
    OfPool {
        name,
        kind,
        meaning,
        what,
    }
}

const fn of_worker(
    name: &'static str,
    kind: Kind,
    what: FromWorker,
    meaning: &'static str,
) -> OfWorker {
    OfWorker {
        name,
        kind,
        meaning,
        what,
    }
}

const OF_POOLS: &[OfPool] = &[
    of_pool(
        "pool_waiting",
        Kind::Gauge,
        FromPool::Number(|report| report.waiting as u64),
        "Requests that wait for a worker.",
    ),
    of_pool(
        "pool_waiting_bytes",
        Kind::Gauge,
        FromPool::Number(|report| report.waiting_bytes as u64),
        "Bytes of the requests that wait.",
    ),
    of_pool(
        "pool_waiting_max",
        Kind::Gauge,
        FromPool::Number(|report| report.queue_max as u64),
        "Requests that may wait; one more is shed.",
    ),
    of_pool(
        "pool_in_flight",
        Kind::Gauge,
        FromPool::Number(|report| report.in_flight.into()),
        "Requests that workers have and that take a slot there.",
    ),
    of_pool(
        "pool_workers",
        Kind::Gauge,
        FromPool::Each(STATES, states),
        "Workers, by their state.",
    ),
    of_pool(
        "pool_reply_sockets",
        Kind::Gauge,
        FromPool::Number(|report| report.voices as u64),
        "Reply sockets of plain handlers that are heard.",
    ),
    of_pool(
        "pool_accepted_total",
        Kind::Counter,
        FromPool::Number(|report| report.counts.accepted),
        "Requests that were taken.",
    ),
    of_pool(
        "pool_handed_total",
        Kind::Counter,
        FromPool::Number(|report| report.counts.handed),
        "Times that a request was handed to a worker.",
    ),
    of_pool(
        "pool_served_total",
        Kind::Counter,
        FromPool::Number(|report| report.counts.served),
        "Requests that ended at a worker and were not failed.",
    ),
    of_pool(
        "pool_withdrawn_total",
        Kind::Counter,
        FromPool::Number(|report| report.counts.withdrawn),
        "Requests whose client left while they waited.",
    ),
    of_pool(
        "pool_shed_total",
        Kind::Counter,
        FromPool::Each(CAUSES, shed),
        "Requests that were refused or failed before any worker had them, by cause.",
    ),
    of_pool(
        "pool_failed_total",
        Kind::Counter,
        FromPool::Each(CAUSES, failed),
        "Requests that were failed after a worker had them, by cause.",
    ),
    of_pool(
        "pool_requeued_total",
        Kind::Counter,
        FromPool::Each(CAUSES, requeued),
        "Times that a request went back to the head of the queue, by cause.",
    ),
    of_pool(
        "pool_strict_given_up_total",
        Kind::Counter,
        FromPool::Number(|report| report.counts.strict_given_up),
        "Requests that did not get the one worker of their key in time and went to any.",
    ),
    of_pool(
        "pool_youngest_first_total",
        Kind::Counter,
        FromPool::Number(|report| report.counts.youngest_first),
        "Requests that were handed over before older ones because of overload.",
    ),
    of_pool(
        "pool_workers_lost_total",
        Kind::Counter,
        FromPool::Number(|report| report.counts.workers_lost),
        "Workers that were lost with what they had.",
    ),
    of_pool(
        "pool_workers_ejected_total",
        Kind::Counter,
        FromPool::Number(|report| report.counts.ejected),
        "Times that a worker was left out for being slow.",
    ),
    of_pool(
        "pool_wait_seconds",
        Kind::Histogram,
        FromPool::Times(|report| &report.waits.ever),
        "How long requests waited that were handed to a worker, in seconds.",
    ),
    of_pool(
        "pool_service_seconds",
        Kind::Histogram,
        FromPool::Times(|report| &report.service.ever),
        "How long workers took for a request, in seconds.",
    ),
];

const OF_WORKERS: &[OfWorker] = &[
    of_worker(
        "worker_state",
        Kind::Gauge,
        FromWorker::State,
        "1 for each worker, with its dialect and its state.",
    ),
    of_worker(
        "worker_in_flight",
        Kind::Gauge,
        FromWorker::Number(|worker| Some((worker.open + worker.foreign).into())),
        "Requests that the worker has and that take a slot.",
    ),
    of_worker(
        "worker_attached",
        Kind::Gauge,
        FromWorker::Number(|worker| Some(worker.attached.into())),
        "Streams and messaging connections of the worker.",
    ),
    of_worker(
        "worker_slots",
        Kind::Gauge,
        FromWorker::Number(|worker| worker.slots.map(u64::from)),
        "Requests that the worker works on at once; not there where nobody has said.",
    ),
    of_worker(
        "worker_credit",
        Kind::Gauge,
        FromWorker::Number(|worker| worker.credit.map(u64::from)),
        "Requests that the worker may have at once; not there where there is no bound.",
    ),
    of_worker(
        "worker_weight",
        Kind::Gauge,
        FromWorker::Number(|worker| Some(worker.weight.into())),
        "The worker's share, compared with others.",
    ),
    of_worker(
        "worker_queued",
        Kind::Gauge,
        FromWorker::Number(|worker| Some(worker.queued as u64)),
        "Messages that the worker's socket has not taken.",
    ),
    of_worker(
        "worker_queued_bytes",
        Kind::Gauge,
        FromWorker::Number(|worker| Some(worker.queued_bytes as u64)),
        "Bytes of those messages.",
    ),
    of_worker(
        "worker_stuck_seconds",
        Kind::Gauge,
        FromWorker::Seconds(|worker| Some(worker.stuck.unwrap_or_default().as_secs_f64())),
        "For how long the worker's socket has taken nothing, in seconds.",
    ),
    of_worker(
        "worker_no_progress_seconds",
        Kind::Gauge,
        FromWorker::Seconds(|worker| worker.no_progress.map(|time| time.as_secs_f64())),
        "For how long the worker has come no further although it has something, in seconds; not there where it does not count.",
    ),
    of_worker(
        "worker_served_total",
        Kind::Counter,
        FromWorker::Number(|worker| Some(worker.served)),
        "Requests that ended while the worker had them.",
    ),
    of_worker(
        "worker_unsent_total",
        Kind::Counter,
        FromWorker::Number(|worker| Some(worker.unsent)),
        "Requests that the worker's socket never took and that went back to the queue.",
    ),
    of_worker(
        "worker_overdue_total",
        Kind::Counter,
        FromWorker::Number(|worker| Some(worker.overdue)),
        "Requests whose deadline was over while the worker had them.",
    ),
    of_worker(
        "worker_service_seconds",
        Kind::Summary,
        FromWorker::Times(|worker| &worker.service),
        "How long the worker took for a request, in seconds; quantiles are of the last thousand or so.",
    ),
];

fn states(report: &Report) -> Vec<(&'static str, u64)> {
    let count = |state| {
        let all = report.workers.iter();
        all.filter(|worker| worker.state == state).count() as u64
    };
    WORKER_STATES.map(|state| (state, count(state))).into()
}

/// What was refused or failed before any worker had it, by cause.
pub(super) fn shed(report: &Report) -> Vec<(&'static str, u64)> {
    let counts = &report.counts;
    vec![
        ("queue_full", counts.shed_queue_full),
        ("late", counts.shed_late),
        ("wait_over", counts.failed_wait_over),
        ("no_worker", counts.failed_no_worker),
        ("deadline", counts.failed_deadline_waiting),
    ]
}

/// What was failed after a worker had it, by cause.
pub(super) fn failed(report: &Report) -> Vec<(&'static str, u64)> {
    let counts = &report.counts;
    let lost = counts
        .failed_worker_lost
        .saturating_sub(counts.failed_over_budget);
    vec![
        ("worker_lost", lost),
        ("over_budget", counts.failed_over_budget),
        ("deadline", counts.failed_deadline_open),
        ("quarantined", counts.quarantined),
    ]
}

/// What went back to the head of the queue, by cause.
pub(super) fn requeued(report: &Report) -> Vec<(&'static str, u64)> {
    let counts = &report.counts;
    vec![
        ("not_begun", counts.requeued),
        ("begun", counts.retried),
        ("unsent", counts.unsent),
    ]
}

/// What a dialect is called.
pub(super) fn dialect(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Plain => "plain",
        Dialect::Own => "own",
        Dialect::M2wsgi => "m2wsgi",
    }
}

/// Every figure there is, in the order of the text. Those of pools and workers have samples where there are such.
pub fn figures() -> Vec<Figure> {
    let of_process = metrics::NAMES.iter().map(|name| Figure {
        name: process_name(*name),
        kind: kind(*name),
        labels: &[],
        meaning: name.meaning(),
    });
    let of_pools = OF_POOLS.iter().map(|figure| Figure {
        name: format!("{PREFIX}{}", figure.name),
        kind: figure.kind,
        labels: match figure.what {
            FromPool::Each(labels, _) => labels,
            FromPool::Number(_) | FromPool::Times(_) => POOL,
        },
        meaning: figure.meaning,
    });
    let of_workers = OF_WORKERS.iter().map(|figure| Figure {
        name: format!("{PREFIX}{}", figure.name),
        kind: figure.kind,
        labels: match figure.what {
            FromWorker::State => WORKER_STATE,
            _ => WORKER,
        },
        meaning: figure.meaning,
    });
    of_process.chain(of_pools).chain(of_workers).collect()
}

fn kind(name: metrics::Name) -> Kind {
    if name.falls() {
        Kind::Gauge
    } else {
        Kind::Counter
    }
}

fn process_name(name: metrics::Name) -> String {
    let end = if name.falls() { "" } else { "_total" };
    format!("{PREFIX}{}{end}", name.text())
}

/// The figures of this process and of these pools, for Prometheus.
pub(super) fn expose(pools: &[Pool]) -> String {
    let names = apart(pools);
    let pools: Vec<(&str, &Report)> = names
        .iter()
        .zip(pools)
        .map(|(name, pool)| (name.as_str(), &pool.report))
        .collect();
    let mut text = Exposition::default();
    for name in metrics::NAMES {
        let full = process_name(*name);
        text.family(&full, kind(*name), name.meaning());
        text.sample(&full, &[], name.get());
    }
    for figure in OF_POOLS {
        let name = format!("{PREFIX}{}", figure.name);
        text.family(&name, figure.kind, figure.meaning);
        for &(pool, report) in &pools {
            let labels = [("pool", pool)];
            match figure.what {
                FromPool::Number(number) => text.sample(&name, &labels, number(report)),
                FromPool::Times(times) => text.histogram(&name, &labels, times(report)),
                FromPool::Each([_, label], each) => {
                    for (value, number) in each(report) {
                        text.sample(&name, &[("pool", pool), (label, value)], number);
                    }
                }
            }
        }
    }
    for figure in OF_WORKERS {
        let name = format!("{PREFIX}{}", figure.name);
        text.family(&name, figure.kind, figure.meaning);
        for &(pool, report) in &pools {
            for worker in &report.workers {
                of_one(&mut text, &name, &figure.what, pool, worker);
            }
        }
    }
    text.finish()
}

fn of_one(text: &mut Exposition, name: &str, what: &FromWorker, pool: &str, worker: &Worker) {
    let labels = [("pool", pool), ("worker", worker.name.as_str())];
    match what {
        FromWorker::Number(number) => {
            if let Some(number) = number(worker) {
                text.sample(name, &labels, number);
            }
        }
        FromWorker::Seconds(seconds) => {
            if let Some(seconds) = seconds(worker) {
                text.sample(name, &labels, seconds);
            }
        }
        FromWorker::Times(times) => {
            let times = times(worker);
            for (share, time) in [("0.5", times.p50), ("0.9", times.p90), ("0.99", times.p99)] {
                let labels = [&labels[..], &[("quantile", share)]].concat();
                // What there is none of is written so.
                let time = time.map_or(f64::NAN, |time| time.as_secs_f64());
                text.sample(name, &labels, time);
            }
            text.sums(name, &labels, &times.ever);
        }
        FromWorker::State => {
            let more = [
                ("dialect", dialect(worker.dialect)),
                ("state", worker.state),
            ];
            text.sample(name, &[labels, more].concat(), 1);
        }
    }
}

/// The names of pools, those that have the same with a number more: Prometheus takes no text that says a thing twice.
fn apart(pools: &[Pool]) -> Vec<String> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let name = |pool: &'_ Pool, count: usize| match count {
        1 => pool.name.clone(),
        _ => format!("{}~{count}", pool.name),
    };
    pools
        .iter()
        .map(|pool| {
            let count = seen.entry(&pool.name).or_default();
            *count += 1;
            name(pool, *count)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_valid_and_no_two_are_the_same() {
        let mut seen = HashSet::new();
        for figure in figures() {
            let letters = figure.name.bytes();
            assert!(
                letters
                    .clone()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{}",
                figure.name
            );
            assert_eq!(
                figure.name.ends_with("_total"),
                figure.kind == Kind::Counter,
                "{}",
                figure.name
            );
            assert!(figure.meaning.ends_with('.'), "{}", figure.name);
            assert!(seen.insert(figure.name.clone()), "{}", figure.name);
        }
    }

    #[test]
    fn every_figure_of_the_process_is_told_without_a_pool() {
        let text = expose(&[]);
        for name in metrics::NAMES {
            let begin = format!("{} ", process_name(*name));
            assert!(text.lines().any(|line| line.starts_with(&begin)), "{begin}");
        }
    }
}
