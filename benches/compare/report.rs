//! The figures as Markdown tables, the targets beside them, and docs/PERFORMANCE.md.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::Options;
use crate::bridge::Bridges;
use crate::files::{CONNECTIONS, Files};
use crate::idle::Memory;
use crate::measure::Figures;
use crate::services::Services;

/// Where the figures begin in docs/PERFORMANCE.md, in order: of the fronts, of the broker, of Python applications.
const MARKS: [&str; 3] = [
    "<!-- figures: written by ./bench --write -->",
    "<!-- figures of the broker: written by ./bench broker --write -->",
    "<!-- figures of Python applications: written by ./bench python --write -->",
];

/// Appends formatted text; unlike `write!`, a string cannot refuse it.
macro_rules! put {
    ($text:expr, $($arguments:tt)*) => { $text.push_str(&format!($($arguments)*)) };
}

/// The same with the end of the line.
macro_rules! line {
    ($text:expr, $($arguments:tt)*) => {{
        put!($text, $($arguments)*);
        $text.push('\n');
    }};
}

/// How a row of a table reads one figure, and how it is compared.
type Row = (&'static str, fn(&Figures) -> f64, usize);

const ROWS: &[Row] = &[
    ("requests/s", |f| f.requests_per_second, 0),
    ("p50 ms", |f| f.p50_ms, 3),
    ("p99 ms", |f| f.p99_ms, 3),
    ("front, processor s per 100,000", |f| f.front_seconds, 2),
    ("handler, processor s per 100,000", |f| f.handler_seconds, 2),
];

/// Everything that was measured.
pub(crate) fn render(
    options: &Options,
    figures: &BTreeMap<(usize, usize), Vec<Figures>>,
    memory: &BTreeMap<usize, Vec<Memory>>,
    files: &Files,
) -> String {
    let mut text = machine();
    line!(
        text,
        "\n{} rounds of {} s each, in turns; each cell has one figure per round.",
        options.rounds,
        options.seconds
    );
    let names = &options.fronts;
    if !names.is_empty() {
        render_fronts(&mut text, options, figures);
    }
    if !memory.is_empty() {
        render_memory(&mut text, names, memory);
    }
    if !files.is_empty() {
        render_files(&mut text, &options.file_servers, files);
    }
    targets(&mut text, names, figures, memory);
    file_targets(&mut text, &options.file_servers, files);
    text
}

fn render_fronts(
    text: &mut String,
    options: &Options,
    figures: &BTreeMap<(usize, usize), Vec<Figures>>,
) {
    let names = &options.fronts;
    line!(text, "");
    line!(
        text,
        "| connections | | {} | ratio (median) |",
        names.join(" | ")
    );
    line!(text, "|---|---|{}---|", "---|".repeat(names.len()));
    for &connections in &options.connections {
        for &(title, of, digits) in ROWS {
            put!(text, "| {connections} | {title} |");
            for place in 0..names.len() {
                let runs = figures
                    .get(&(connections, place))
                    .map_or(&[][..], Vec::as_slice);
                let cells: Vec<String> = runs
                    .iter()
                    .map(|run| format!("{:.digits$}", of(run)))
                    .collect();
                put!(text, " {} |", cells.join(" / "));
            }
            let ratios: Vec<String> = (1..names.len())
                .filter_map(|place| ratio(figures, connections, place, of))
                .map(|ratio| format!("{ratio:.2}"))
                .collect();
            line!(text, " {} |", ratios.join(", "));
        }
    }
}

/// Whoever serves files, beside the first of them.
fn render_files(text: &mut String, names: &[String], files: &Files) {
    line!(
        text,
        "\nThe same files served by each, {CONNECTIONS} connections, one process of one worker.\n"
    );
    line!(
        text,
        "| file | | {} | ratios to {} (median) |",
        names.join(" | "),
        names.first().map_or("", String::as_str)
    );
    line!(text, "|---|---|{}---|", "---|".repeat(names.len()));
    for (file, figures) in files {
        for &(title, of, digits) in ROWS.iter().filter(|(title, ..)| !title.contains("handler")) {
            put!(text, "| {file} | {title} |");
            for place in 0..names.len() {
                let runs = figures.get(&(CONNECTIONS, place));
                let cells: Vec<String> = runs
                    .into_iter()
                    .flatten()
                    .map(|run| format!("{:.digits$}", of(run)))
                    .collect();
                put!(text, " {} |", cells.join(" / "));
            }
            let ratios: Vec<String> = (1..names.len())
                .filter_map(|place| ratio(figures, CONNECTIONS, place, of))
                .map(|ratio| format!("{ratio:.2}"))
                .collect();
            line!(text, " {} |", ratios.join(", "));
        }
    }
}

/// An app behind each, and what Lurcher means to reach beside nginx.
pub(crate) fn bridges(text: &mut String, names: &[String], figures: &Bridges) {
    if figures.is_empty() {
        return;
    }
    line!(
        text,
        "\nThe same app behind each, {CONNECTIONS} connections: nginx proxies, Lurcher sends messages to the `http` handler."
    );
    table(text, names, figures);
    let place = names.iter().position(|name| name == "lurcher");
    let Some(place) = place.filter(|_| names.first().is_some_and(|name| name == "nginx")) else {
        return;
    };
    line!(text, "\n| to reach | wanted | seen | |\n|---|---|---|---|");
    let more = ratio(figures, CONNECTIONS, place, |f| f.requests_per_second);
    let late = ratio(figures, CONNECTIONS, place, |f| f.p99_ms);
    if let (Some(more), Some(late)) = (more, late) {
        let verdict = |holds| if holds { "reached" } else { "missed" };
        line!(
            text,
            "| an app: requests/s, ratio to nginx | at least 0.67 | {more:.2} | {} |\n\
             | an app: p99, ratio to nginx | at most 1.50 | {late:.2} | {} |",
            verdict(more >= 0.67),
            verdict(late <= 1.5)
        );
    }
}

/// A web application, by `serve` and by proxies.
pub(crate) fn services(text: &mut String, names: &[String], figures: &Services) {
    if figures.is_empty() {
        return;
    }
    line!(
        text,
        "\nA hello, {CONNECTIONS} connections: `proxy` is Lurcher before a bare hyper server, `nginx` is nginx before the same, `serve` is \
         Lurcher with an axum router that the library serves. The handler is the application, each with one thread for its work."
    );
    table(text, names, figures);
}

/// Each in its column, and the ratios to the first.
fn table(text: &mut String, names: &[String], figures: &Bridges) {
    let rules = "---|".repeat(names.len());
    line!(text, "\n| | {} | ratio (median) |", names.join(" | "));
    line!(text, "|---|{rules}---|");
    for &(what, of, digits) in ROWS {
        put!(text, "| {what} |");
        for place in 0..names.len() {
            let runs = figures.get(&(CONNECTIONS, place)).into_iter().flatten();
            let cells: Vec<String> = runs.map(|run| format!("{:.digits$}", of(run))).collect();
            put!(text, " {} |", cells.join(" / "));
        }
        let ratios: Vec<String> = (1..names.len())
            .filter_map(|place| ratio(figures, CONNECTIONS, place, of))
            .map(|ratio| format!("{ratio:.2}"))
            .collect();
        line!(text, " {} |", ratios.join(", "));
    }
}

/// What Lurcher means to reach beside nginx.
fn file_targets(text: &mut String, names: &[String], files: &Files) {
    let place = names.iter().position(|name| name == "lurcher");
    let Some(place) = place.filter(|_| names.first().is_some_and(|name| name == "nginx")) else {
        return;
    };
    line!(text, "\n| to reach | wanted | seen | |\n|---|---|---|---|");
    for (file, figures) in files {
        if let Some(seen) = ratio(figures, CONNECTIONS, place, |f| f.requests_per_second) {
            let verdict = if seen >= 0.5 { "reached" } else { "missed" };
            line!(
                text,
                "| {file}: requests/s, ratio to nginx | at least 0.50 | {seen:.2} | {verdict} |"
            );
        }
    }
}

fn render_memory(text: &mut String, names: &[String], memory: &BTreeMap<usize, Vec<Memory>>) {
    line!(
        text,
        "\nProportional set size in KiB, each connection answered once and then idle.\n"
    );
    line!(
        text,
        "| front | idle connections | front | handler | per connection |\n|---|---|---|---|---|"
    );
    for (place, runs) in memory {
        let name = names.get(*place).map_or("", String::as_str);
        for run in runs {
            let each = per_connection(runs, run).map_or(String::new(), |kib| format!("{kib:.2}"));
            line!(
                text,
                "| {name} | {} | {} | {} | {each} |",
                run.connections,
                run.front_kib,
                run.handler_kib
            );
        }
    }
}

/// Growth of the front per connection since none was open.
#[expect(
    clippy::cast_precision_loss,
    reason = "KiB of a process fit a float exactly"
)]
fn per_connection(runs: &[Memory], run: &Memory) -> Option<f64> {
    let none = runs.first()?;
    (run.connections > 0)
        .then(|| (run.front_kib as f64 - none.front_kib as f64) / run.connections as f64)
}

/// The median over the rounds of this front's figure by the first front's of the same round.
fn ratio(
    figures: &BTreeMap<(usize, usize), Vec<Figures>>,
    connections: usize,
    place: usize,
    of: fn(&Figures) -> f64,
) -> Option<f64> {
    let (base, other) = (
        figures.get(&(connections, 0))?,
        figures.get(&(connections, place))?,
    );
    let pairs = base.iter().zip(other).filter(|(base, _)| of(base) > 0.0);
    let mut ratios: Vec<f64> = pairs.map(|(base, other)| of(other) / of(base)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied()
}

/// What Lurcher means to reach beside Mongrel2.
fn targets(
    text: &mut String,
    names: &[String],
    figures: &BTreeMap<(usize, usize), Vec<Figures>>,
    memory: &BTreeMap<usize, Vec<Memory>>,
) {
    let Some(place) = names
        .iter()
        .position(|name| name == "lurcher")
        .filter(|&place| place > 0)
    else {
        return;
    };
    line!(text, "\n| to reach | wanted | seen | |\n|---|---|---|---|");
    let mut row = |what: String, wanted: &str, seen: Option<f64>, holds: fn(f64) -> bool| {
        if let Some(seen) = seen {
            let verdict = if holds(seen) { "reached" } else { "missed" };
            line!(text, "| {what} | {wanted} | {seen:.2} | {verdict} |");
        }
    };
    for connections in [64, 256] {
        let more = ratio(figures, connections, place, |f| f.requests_per_second);
        row(
            format!("requests/s at {connections}, ratio"),
            "at least 1.50",
            more,
            |seen| seen >= 1.5,
        );
        let cost = ratio(figures, connections, place, |f| f.front_seconds);
        row(
            format!("front's processor time at {connections}, ratio"),
            "at most 0.55",
            cost,
            |seen| seen <= 0.55,
        );
    }
    let latency = ratio(figures, 1, place, |f| f.p50_ms);
    row(
        "p50 at 1, ratio".to_owned(),
        "at most 0.85",
        latency,
        |seen| seen <= 0.85,
    );
    let each = memory
        .get(&place)
        .and_then(|runs| per_connection(runs, runs.last()?));
    row(
        "an idle connection, KiB".to_owned(),
        "at most 3",
        each,
        |seen| seen <= 3.0,
    );
}

/// Date, processor and kernel: figures without them say nothing.
pub(crate) fn machine() -> String {
    let said = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output();
        output
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{}; {cores} cores of {model}; Linux {}.\n",
        said("date", &["+%Y-%m-%d"]),
        said("uname", &["-r"])
    )
}

/// Puts the reports into docs/PERFORMANCE.md, each below its mark. One that was not asked for, and so is empty, stays as it was.
pub(crate) fn write(reports: &[String; 3]) -> Result<(), String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/PERFORMANCE.md");
    let text = fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"))?;
    let mut rest = text.as_str();
    let mut old = Vec::new();
    for mark in MARKS.iter().rev() {
        let (before, below) = rest.split_once(mark).unwrap_or((rest, ""));
        old.push(below.trim());
        rest = before;
    }
    let mut written = rest.trim().to_owned();
    for ((mark, new), old) in MARKS.iter().zip(reports).zip(old.iter().rev()) {
        let report = if new.is_empty() { old } else { new.trim() };
        put!(written, "\n\n{mark}\n\n{report}");
    }
    written.push('\n');
    fs::write(path, written).map_err(|error| format!("write {path}: {error}"))
}
