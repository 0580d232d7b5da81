//! What was measured of Python applications as Markdown, with the targets beside it.

use std::fmt::Write as _;

use crate::Options;
use crate::measure::Figures;
use crate::python::{APPS, CONNECTIONS, Pythons, WORKERS, version};
use crate::report::machine;

/// Appends a line; a string cannot refuse it.
macro_rules! line {
    ($text:expr, $($arguments:tt)*) => { writeln!($text, $($arguments)*).expect("a string takes all") };
}

/// Application, server, and how many times its requests/s are to be reached.
const TARGETS: [(usize, &str, f64); 5] = [
    (0, "gunicorn", 3.0),
    (0, "gthread", 3.0),
    (0, "uwsgi", 1.5),
    (0, "granian", 1.0),
    (2, "uvicorn", 1.5),
];

/// The whole section; nothing when nothing was measured.
pub(crate) fn render(options: &Options, pythons: &Pythons) -> String {
    let mut text = String::new();
    if pythons.is_empty() {
        return text;
    }
    line!(
        text,
        "{}\n{}; {} rounds of {} s each, {CONNECTIONS} connections, in turns; each cell has one figure per round. Processor time is that of \
         all processes: of Lurcher's front, supervisor and workers, of the others' masters and workers.",
        machine(),
        version(),
        options.rounds,
        options.seconds
    );
    for workers in WORKERS {
        line!(
            text,
            "\nWorker processes: {workers}\n\n| | server | requests/s | p50 ms | p99 ms | processor s per 100,000 | lurcher's requests/s, ratio (median) |\n\
             |---|---|---|---|---|---|---|"
        );
        for (at, app) in APPS.iter().enumerate() {
            for name in app.servers(&options.pythons) {
                let Some(runs) = pythons.get(&(at, workers, name.to_owned())) else {
                    continue;
                };
                let cells = |of: fn(&Figures) -> f64, digits: usize| {
                    let cells = runs.iter().map(|run| format!("{:.digits$}", of(run)));
                    cells.collect::<Vec<_>>().join(" / ")
                };
                let times = ratio(pythons, at, workers, name).filter(|_| name != "lurcher");
                let times = times.map_or(String::new(), |ratio| format!("{ratio:.2}"));
                line!(
                    text,
                    "| {} | {name} | {} | {} | {} | {} | {times} |",
                    app.name,
                    cells(|run| run.requests_per_second, 0),
                    cells(|run| run.p50_ms, 2),
                    cells(|run| run.p99_ms, 2),
                    cells(|run| run.front_seconds + run.handler_seconds, 2),
                );
            }
        }
    }
    line!(text, "\n| to reach | wanted | seen | |\n|---|---|---|---|");
    for workers in WORKERS {
        for (at, name, wanted) in TARGETS {
            if let Some(seen) = ratio(pythons, at, workers, name) {
                let verdict = if seen >= wanted { "reached" } else { "missed" };
                line!(
                    text,
                    "| {}, {workers} workers: requests/s, times {name}'s | at least {wanted:.1} | {seen:.2} | {verdict} |",
                    APPS[at].name
                );
            }
        }
    }
    text
}

/// The median over the rounds of Lurcher's requests/s by this server's in the same round.
fn ratio(pythons: &Pythons, app: usize, workers: usize, name: &str) -> Option<f64> {
    let runs = |name: &str| pythons.get(&(app, workers, name.to_owned()));
    let pairs = runs("lurcher")?.iter().zip(runs(name)?);
    let mut ratios: Vec<f64> = pairs
        .map(|(own, other)| own.requests_per_second / other.requests_per_second)
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied()
}
