//! What was measured of the broker as Markdown, with the targets beside it.

use std::fmt::Write as _;

use crate::Options;
use crate::broker::{Brokers, CONNECTIONS, Cost, EVEN, FRONTS, SLOW, UNEVEN, UNEVEN_FRONT};
use crate::paced::Lateness;
use crate::report::machine;

/// Appends a line; a string cannot refuse it.
macro_rules! line {
    ($text:expr, $($arguments:tt)*) => { writeln!($text, $($arguments)*).expect("a string takes all") };
}

/// The whole section; nothing when nothing was measured.
pub(crate) fn render(options: &Options, brokers: &Brokers) -> String {
    let mut text = String::new();
    if brokers.uneven.is_empty() && brokers.even.is_empty() {
        return text;
    }
    let names = &options.brokers;
    line!(
        text,
        "{}\n{} rounds of {} s each (uneven workers: twice as long), in turns; each cell has one figure per round.",
        machine(),
        options.rounds,
        options.seconds
    );
    uneven(&mut text, names, brokers);
    for (front, name) in FRONTS.iter().enumerate() {
        even(&mut text, names, brokers, front, name);
    }
    targets(&mut text, names, brokers);
    text
}

/// How a row reads one figure, and with how many digits.
type Row<T> = (&'static str, fn(&T) -> f64, usize);

fn header(text: &mut String, first: &str, names: &[String]) {
    line!(
        text,
        "\n| {first} | {} | ratio to {} (median) |\n|---|{}---|",
        names.join(" | "),
        names.first().map_or("", String::as_str),
        "---|".repeat(names.len())
    );
}

/// One row over all ways, with the ratios to the first.
fn row<'a, T: 'a>(
    text: &mut String,
    (title, of, digits): Row<T>,
    ways: usize,
    runs: impl Fn(usize) -> &'a [T],
) {
    let mut cells = Vec::new();
    for way in 0..ways {
        let figures: Vec<String> = runs(way)
            .iter()
            .map(|run| format!("{:.digits$}", of(run)))
            .collect();
        cells.push(figures.join(" / "));
    }
    let ratios: Vec<String> = (1..ways)
        .filter_map(|way| median(runs(0), runs(way), of, |base, other| other / base))
        .filter(|ratio| ratio.is_finite())
        .map(|ratio| format!("{ratio:.2}"))
        .collect();
    line!(
        text,
        "| {title} | {} | {} |",
        cells.join(" | "),
        ratios.join(", ")
    );
}

/// The median over the rounds of what compares this way's figure with the first way's of the same round.
fn median<T>(
    base: &[T],
    other: &[T],
    of: fn(&T) -> f64,
    compare: fn(f64, f64) -> f64,
) -> Option<f64> {
    let mut all: Vec<f64> = base
        .iter()
        .zip(other)
        .map(|(base, other)| compare(of(base), of(other)))
        .collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

fn uneven(text: &mut String, names: &[String], brokers: &Brokers) {
    line!(
        text,
        "\n{UNEVEN} workers that sleep, {SLOW} of them four times as long, one request at a time each; 70 % of what they can do, offered \
         on a schedule, latency counted from it; front {UNEVEN_FRONT}. Behind the broker each has one slot."
    );
    header(text, "", names);
    let rows: [Row<Lateness>; 4] = [
        ("p50 ms", |seen| seen.p50_ms, 2),
        ("p99 ms", |seen| seen.p99_ms, 2),
        ("worst ms", |seen| seen.worst_ms, 2),
        (
            "failed",
            |seen| f64::from(u32::try_from(seen.failed).unwrap_or(u32::MAX)),
            0,
        ),
    ];
    for figure in rows {
        row(text, figure, names.len(), |way| {
            brokers.uneven.get(&way).map_or(&[], Vec::as_slice)
        });
    }
}

fn even(text: &mut String, names: &[String], brokers: &Brokers, front: usize, name: &str) {
    line!(
        text,
        "\n{EVEN} workers that answer at once, wrk with so many connections; front {name}. Behind the broker slots are no limit."
    );
    header(text, "connections, figure", names);
    let rows: [Row<Cost>; 5] = [
        ("requests/s", |seen| seen.figures.requests_per_second, 0),
        ("p50 ms", |seen| seen.figures.p50_ms, 3),
        ("p99 ms", |seen| seen.figures.p99_ms, 3),
        (
            "front, processor s per 100,000",
            |seen| seen.figures.front_seconds,
            2,
        ),
        (
            "broker, processor s per 100,000",
            |seen| seen.broker_seconds,
            2,
        ),
    ];
    for connections in CONNECTIONS {
        for (title, of, digits) in rows {
            let mut one = String::new();
            row(&mut one, (title, of, digits), names.len(), |way| {
                let runs = brokers.even.get(&(front, connections, way));
                runs.map_or(&[], Vec::as_slice)
            });
            text.push_str(&one.replacen("| ", &format!("| {connections}, "), 1));
        }
    }
}

fn targets(text: &mut String, names: &[String], brokers: &Brokers) {
    if names.len() < 2 || names.first().is_none_or(|name| name != "direct") {
        return;
    }
    line!(text, "\n| to reach | wanted | seen | |\n|---|---|---|---|");
    let verdict = |holds| if holds { "reached" } else { "missed" };
    for (way, name) in names.iter().enumerate().skip(1) {
        let late = |way| brokers.uneven.get(&way).map_or(&[][..], Vec::as_slice);
        if let Some(seen) = median(late(0), late(way), |f| f.p99_ms, |base, other| base / other) {
            line!(
                text,
                "| {name}: p99 with uneven workers, times lower | at least 5 | {seen:.1} | {} |",
                verdict(seen >= 5.0)
            );
        }
        for (front, front_name) in FRONTS.iter().enumerate() {
            let runs = |connections, way| {
                let runs = brokers.even.get(&(front, connections, way));
                runs.map_or(&[][..], Vec::as_slice)
            };
            let more = median(
                runs(64, 0),
                runs(64, way),
                |seen| seen.figures.requests_per_second,
                |base, other| other / base,
            );
            if let Some(seen) = more {
                line!(
                    text,
                    "| {name} behind {front_name}: requests/s at 64, ratio | at least 0.70 | {seen:.2} | {} |",
                    verdict(seen >= 0.7)
                );
            }
            let own = median(
                runs(64, way),
                runs(64, way),
                |seen| seen.broker_seconds,
                |_, own| own,
            );
            if let Some(seen) = own {
                line!(
                    text,
                    "| {name} behind {front_name}: the broker's processor s per 100,000 at 64 | at most 0.80 | {seen:.2} | {} |",
                    verdict(seen <= 0.8)
                );
            }
            let later = median(
                runs(1, 0),
                runs(1, way),
                |seen| seen.figures.p50_ms,
                |base, other| (other - base) * 1000.0,
            );
            if let Some(seen) = later {
                line!(
                    text,
                    "| {name} behind {front_name}: added p50 at 1, µs | below 150 | {seen:.0} | {} |",
                    verdict(seen < 150.0)
                );
            }
        }
    }
}
