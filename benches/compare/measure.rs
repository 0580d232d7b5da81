//! Taking figures: wrk's output, processor time and memory of a process from /proc.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::fronts::Front;

/// One run of wrk against one front.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Processor seconds per 100,000 requests, all threads.
    pub(crate) front_seconds: f64,
    pub(crate) handler_seconds: f64,
    pub(crate) requests: f64,
    /// Socket errors and answers that were not 2xx.
    pub(crate) errors: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8.0} req/s  p50 {:>7.3} ms  p99 {:>7.3} ms  processor s/100k: front {:.2} handler {:.2}",
            self.requests_per_second,
            self.p50_ms,
            self.p99_ms,
            self.front_seconds,
            self.handler_seconds
        )?;
        if self.errors > 0 {
            write!(f, "  {} errors", self.errors)
        } else {
            Ok(())
        }
    }
}

/// Runs wrk on a path, with one thread and so many kept-alive connections.
pub(crate) fn load(
    front: &Front,
    path: &str,
    connections: usize,
    time: Duration,
) -> Result<Figures, String> {
    load_at(front.address, path, connections, time, || {
        let handler = front.handler().map_or(Ok(0.0), tree_seconds);
        Ok((processor_seconds(front.server())?, handler?))
    })
}

/// The same on any server; `seconds` are the processor seconds that front and handler have taken so far.
pub(crate) fn load_at(
    address: SocketAddr,
    path: &str,
    connections: usize,
    time: Duration,
    seconds: impl Fn() -> Result<(f64, f64), String>,
) -> Result<Figures, String> {
    let before = seconds()?;
    let output = Command::new("wrk")
        .args(["-t1", "--latency", "--timeout", "10s"])
        .arg(format!("-c{connections}"))
        .arg(format!("-d{}s", time.as_secs()))
        .arg(format!("http://{address}{path}"))
        .output()
        .map_err(|error| format!("run wrk: {error}"))?;
    let after = seconds()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures = read(&text, before, after);
    figures.ok_or_else(|| {
        format!(
            "wrk printed\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn read(text: &str, before: (f64, f64), after: (f64, f64)) -> Option<Figures> {
    let after_word = |word: &str| {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(word))?;
        line.trim_start()
            .strip_prefix(word)?
            .split_whitespace()
            .next()
            .map(str::to_owned)
    };
    let total = text.lines().find(|line| line.contains(" requests in "))?;
    let total: f64 = total.split_whitespace().next()?.parse().ok()?;
    let per_100k = |seconds: f64| seconds * 100_000.0 / total.max(1.0);
    let bad = |line: &str| line.contains("Socket errors") || line.contains("Non-2xx");
    let digits = |word: &str| {
        word.trim_matches(|c: char| !c.is_ascii_digit())
            .parse::<u64>()
            .ok()
    };
    let errors = text
        .lines()
        .filter(|line| bad(line))
        .flat_map(str::split_whitespace)
        .filter_map(digits);
    Some(Figures {
        requests_per_second: after_word("Requests/sec:")?.parse().ok()?,
        p50_ms: milliseconds(&after_word("50%")?)?,
        p99_ms: milliseconds(&after_word("99%")?)?,
        requests: total,
        front_seconds: per_100k(after.0 - before.0),
        handler_seconds: per_100k(after.1 - before.1),
        // "Non-2xx or 3xx responses" has digits of its own.
        errors: errors.filter(|&count| count > 3).sum(),
    })
}

/// wrk's `123.00us`, `1.20ms`, `1.50s`.
fn milliseconds(text: &str) -> Option<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("m", 60_000.0), ("s", 1000.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return number.parse::<f64>().ok().map(|number| number * factor);
        }
    }
    None
}

/// As [`processor_seconds`], with all that descend from it: a supervisor does not serve, its workers do.
pub(crate) fn tree_seconds(id: u32) -> Result<f64, String> {
    let mut seconds = processor_seconds(id)?;
    // Children are told by the thread that started them.
    let tasks = format!("/proc/{id}/task");
    let tasks = fs::read_dir(&tasks).map_err(|error| format!("read {tasks}: {error}"))?;
    for task in tasks.filter_map(Result::ok) {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|id| id.parse().ok()) {
            seconds += tree_seconds(child)?;
        }
    }
    Ok(seconds)
}

/// User and system time of a process with all its threads, living and dead.
pub(crate) fn processor_seconds(id: u32) -> Result<f64, String> {
    let path = format!("/proc/{id}/stat");
    let text = fs::read_to_string(&path).map_err(|error| format!("read {path}: {error}"))?;
    // The name of the program may hold spaces; what follows its parenthesis does not.
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let (Some(user), Some(system)) = (ticks(11), ticks(12)) else {
        return Err(format!("cannot read {path}"));
    };
    // USER_HZ is 100 on every Linux there is.
    Ok((user + system) / 100.0)
}

/// Proportional set size: what the process takes, shared pages counted by share.
pub(crate) fn proportional_kib(id: u32) -> Result<u64, String> {
    let path = format!("/proc/{id}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|error| format!("read {path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|kib| kib.parse().ok());
    kib.ok_or_else(|| format!("cannot read {path}"))
}
