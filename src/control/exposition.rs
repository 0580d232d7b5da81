//! Prometheus' text exposition format 0.0.4: families with their help and type, and samples with labels.
//!
//! A writer and no more: what is told stands in `figures`. Names and label names are ours and valid; label values may be
//! anything.

use std::fmt::{self, Write as _};

use crate::pool::Histogram;

/// The media type of the text.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Durations by fixed bounds, in seconds.
    Histogram,
    /// Quantiles of durations, in seconds.
    Summary,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
        })
    }
}

/// A label with its value.
pub(super) type Label<'a> = (&'static str, &'a str);

/// The text so far.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Begins a family; its samples must follow at once.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// A number.
    pub(super) fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl fmt::Display) {
        self.0.push_str(name);
        if !labels.is_empty() {
            self.0.push('{');
            for (place, (label, value)) in labels.iter().enumerate() {
                if place > 0 {
                    self.0.push(',');
                }
                self.0.push_str(label);
                self.0.push_str("=\"");
                self.value(value);
                self.0.push('"');
            }
            self.0.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    /// The samples of a histogram.
    pub(super) fn histogram(&mut self, name: &str, labels: &[Label<'_>], histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let mut within = |bound: &str, count| {
            let labels = [labels, &[("le", bound)]].concat();
            self.sample(&bucket, &labels, count);
        };
        for (bound, count) in histogram.cumulative() {
            within(&bound.as_secs_f64().to_string(), count);
        }
        within("+Inf", histogram.count());
        self.sums(name, labels, histogram);
    }

    /// How many there were, and all of them together.
    pub(super) fn sums(&mut self, name: &str, labels: &[Label<'_>], histogram: &Histogram) {
        let total = histogram.total().as_secs_f64();
        self.sample(&format!("{name}_sum"), labels, total);
        self.sample(&format!("{name}_count"), labels, histogram.count());
    }

    fn value(&mut self, value: &str) {
        for char in value.chars() {
            match char {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                // Nothing that a terminal would obey, or that some reader takes for the end of a line.
                _ if char.is_control() => self.0.push('\u{fffd}'),
                _ => self.0.push(char),
            }
        }
    }

    fn line(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ok = writeln!(self.0, "{text}");
    }

    /// The text.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_a_worker_calls_itself_cannot_leave_its_place() {
        let mut text = Exposition::default();
        text.family("a_total", Kind::Counter, "One\\two\nthree.");
        let name = "w\"} 1\nb_total 2\\\r\u{1b}[m";
        text.sample("a_total", &[("pool", "p"), ("worker", name)], 7);
        assert_eq!(
            text.finish(),
            "# HELP a_total One\\\\two\\nthree.\n# TYPE a_total counter\n\
             a_total{pool=\"p\",worker=\"w\\\"} 1\\nb_total 2\\\\\u{fffd}\u{fffd}[m\"} 7\n"
        );
    }

    #[test]
    fn a_histogram_has_all_bounds_and_ends_with_everything() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::from_micros(2_500));
        histogram.add(Duration::from_mins(5));
        let mut text = Exposition::default();
        text.histogram("t_seconds", &[("pool", "p")], &histogram);
        let text = text.finish();
        for line in [
            "t_seconds_bucket{pool=\"p\",le=\"0.001\"} 0",
            "t_seconds_bucket{pool=\"p\",le=\"0.0025\"} 1",
            "t_seconds_bucket{pool=\"p\",le=\"30\"} 1",
            "t_seconds_bucket{pool=\"p\",le=\"+Inf\"} 2",
            "t_seconds_sum{pool=\"p\"} 300.0025",
            "t_seconds_count{pool=\"p\"} 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
    }
}
