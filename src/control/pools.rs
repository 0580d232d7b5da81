//! Pools and their workers as tables for operators: the same columns whoever has the pools, a front or a broker.

use std::time::Duration;

use super::answer::{Cell, Table};
use super::figures;
use crate::pool::{Report, Worker};

/// A pool of workers, as a subject shows it.
#[derive(Debug, Clone)]
pub struct Pool {
    /// What it is called: a broker's by its name, a front's by its address.
    pub name: String,
    /// How it does.
    pub report: Report,
}

const POOLS: &[&str] = &[
    "pool",
    "workers",
    "waiting",
    "waiting_bytes",
    "waiting_max",
    "in_flight",
    "attached",
    "accepted",
    "served",
    "withdrawn",
    "shed",
    "failed",
    "requeued",
    "wait_p50_us",
    "wait_p99_us",
    "service_p50_us",
    "service_p99_us",
    "address",
];

const WORKERS: &[&str] = &[
    "pool",
    "worker",
    "dialect",
    "state",
    "in_flight",
    "attached",
    "slots",
    "credit",
    "weight",
    "queued",
    "served",
    "unsent",
    "overdue",
    "service_p50_us",
    "service_p99_us",
    "stuck_ms",
    "no_progress_ms",
    "peer",
];

const CAUSES: &[&str] = &["pool", "what", "cause", "requests"];

/// What stands where there is no number.
const NONE: &str = "-";

/// A row for each pool.
pub(super) fn pools(pools: &[Pool]) -> Table {
    let mut table = Table::new(POOLS);
    table.rows = pools.iter().map(of_pool).collect();
    table
}

fn of_pool(Pool { name, report }: &Pool) -> Vec<Cell> {
    let attached: u64 = report
        .workers
        .iter()
        .map(|worker| u64::from(worker.attached))
        .sum();
    let sum = |causes: fn(&Report) -> Vec<(&'static str, u64)>| -> Cell {
        causes(report)
            .iter()
            .map(|(_, count)| count)
            .sum::<u64>()
            .into()
    };
    vec![
        name.as_str().into(),
        report.workers.len().into(),
        report.waiting.into(),
        report.waiting_bytes.into(),
        report.queue_max.into(),
        report.in_flight.into(),
        attached.into(),
        report.counts.accepted.into(),
        report.counts.served.into(),
        report.counts.withdrawn.into(),
        sum(figures::shed),
        sum(figures::failed),
        sum(figures::requeued),
        micros(report.waits.p50),
        micros(report.waits.p99),
        micros(report.service.p50),
        micros(report.service.p99),
        report.endpoints.to_string().into(),
    ]
}

/// A row for each worker of each pool.
pub(super) fn workers(pools: &[Pool]) -> Table {
    let mut table = Table::new(WORKERS);
    for pool in pools {
        let rows = pool.report.workers.iter();
        table
            .rows
            .extend(rows.map(|worker| of_worker(pool, worker)));
    }
    table
}

fn of_worker(pool: &Pool, worker: &Worker) -> Vec<Cell> {
    vec![
        pool.name.as_str().into(),
        worker.name.as_str().into(),
        figures::dialect(worker.dialect).into(),
        worker.state.into(),
        worker.open.saturating_add(worker.foreign).into(),
        worker.attached.into(),
        worker.slots.map_or(NONE.into(), Cell::from),
        worker.credit.map_or(NONE.into(), Cell::from),
        worker.weight.into(),
        worker.queued.into(),
        worker.served.into(),
        worker.unsent.into(),
        worker.overdue.into(),
        micros(worker.service.p50),
        micros(worker.service.p99),
        millis(worker.stuck.unwrap_or_default()),
        worker.no_progress.map_or(NONE.into(), millis),
        worker.origin.to_string().into(),
    ]
}

/// A row for each cause for which requests were shed, failed or queued again.
pub(super) fn causes(pools: &[Pool]) -> Table {
    let mut table = Table::new(CAUSES);
    for Pool { name, report } in pools {
        for (what, causes) in [
            ("shed", figures::shed(report)),
            ("failed", figures::failed(report)),
            ("requeued", figures::requeued(report)),
        ] {
            let rows = causes.into_iter().map(|(cause, count)| {
                vec![
                    name.as_str().into(),
                    what.into(),
                    cause.into(),
                    count.into(),
                ]
            });
            table.rows.extend(rows);
        }
    }
    table
}

fn micros(time: Option<Duration>) -> Cell {
    time.map_or(NONE.into(), |time| {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX).into()
    })
}

fn millis(time: Duration) -> Cell {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into()
}
