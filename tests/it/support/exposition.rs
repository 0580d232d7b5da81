//! A reader of Prometheus' text format 0.0.4 that takes nothing but what the format allows, and what is checked further by `promtool`
//! where that is installed.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::client::{Answer, Asked, Client};

/// Between two looks at figures that are to change.
const PAUSE: Duration = Duration::from_millis(5);

/// A family's type and help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
}

/// A name with labels.
type Series = (String, BTreeMap<String, String>);

/// The figures of one text.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) families: BTreeMap<String, Family>,
    samples: BTreeMap<Series, f64>,
}

impl Figures {
    /// Fetches them by HTTP.
    pub(crate) fn fetch(address: SocketAddr) -> Self {
        let answer = get(address, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(
            answer.header("content-type"),
            Some(&b"text/plain; version=0.0.4; charset=utf-8"[..])
        );
        Self::read(&String::from_utf8(answer.body).expect("UTF-8"))
    }

    /// Fetches them until they are as wanted.
    #[track_caller]
    pub(crate) fn until(address: SocketAddr, what: &str, is_so: impl Fn(&Self) -> bool) -> Self {
        let end = Instant::now() + PATIENCE;
        loop {
            let figures = Self::fetch(address);
            if is_so(&figures) {
                return figures;
            }
            assert!(Instant::now() < end, "{what}: {figures:#?}");
            // Figures have no event that could be awaited.
            std::thread::park_timeout(PAUSE);
        }
    }

    /// Reads a text.
    #[track_caller]
    pub(crate) fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut figures = Self::default();
        let mut current = String::new();
        let mut helped = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help");
                assert!(is_name(name), "{line}");
                helped = Some((name.to_owned(), help.to_owned()));
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                let (of, help) = helped.take().expect("a help before a type");
                assert_eq!(of, name);
                assert!(["counter", "gauge", "histogram", "summary"].contains(&kind));
                let kind = kind.to_owned();
                let before = figures
                    .families
                    .insert(name.to_owned(), Family { kind, help });
                assert_eq!(before, None, "a family in two places: {name}");
                name.clone_into(&mut current);
            } else {
                figures.sample(line, &current);
            }
        }
        figures.check_histograms();
        figures
    }

    #[track_caller]
    fn sample(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, read_labels(labels)),
            None => (series, BTreeMap::new()),
        };
        let kind = self.families.get(family).map(|family| family.kind.as_str());
        let ends: &[&str] = match kind {
            Some("histogram") => &["_bucket", "_sum", "_count"],
            Some("summary") => &["", "_sum", "_count"],
            _ => &[""],
        };
        assert!(
            ends.iter().any(|end| name == format!("{family}{end}")),
            "{line} is not of {family}"
        );
        let value = match value {
            "NaN" => f64::NAN,
            _ => value.parse().expect("a number"),
        };
        let before = self.samples.insert((name.to_owned(), labels), value);
        assert!(before.is_none(), "said twice: {line}");
    }

    /// Buckets never fall, and the last holds everything.
    #[track_caller]
    fn check_histograms(&self) {
        let mut last: BTreeMap<Series, Vec<(f64, f64)>> = BTreeMap::new();
        for ((name, labels), value) in &self.samples {
            if let (Some(family), Some(bound)) = (name.strip_suffix("_bucket"), labels.get("le")) {
                let bound = match bound.as_str() {
                    "+Inf" => f64::INFINITY,
                    bound => bound.parse().expect("a bound"),
                };
                let mut others = labels.clone();
                others.remove("le");
                let key = (format!("{family}_count"), others);
                last.entry(key).or_default().push((bound, *value));
            }
        }
        for (key, mut buckets) in last {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{key:?}");
            let all = buckets.last().expect("a bucket");
            assert!(all.0.is_infinite(), "{key:?} has no +Inf");
            assert_eq!(Some(&all.1), self.samples.get(&key), "{key:?}");
        }
    }

    /// The sum of what has this name and these labels, and others too.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |all: &BTreeMap<String, String>| {
            labels
                .iter()
                .all(|(label, value)| all.get(*label).is_some_and(|other| other == value))
        };
        let all = self.samples.iter();
        all.filter(|((of, all), _)| of == name && fits(all))
            .map(|(_, value)| value)
            .fold(0.0, |sum, value| sum + value)
    }

    /// The same of what is counted.
    #[track_caller]
    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let sum = self.sum(name, labels);
        // As a text, which no rounding can touch.
        let read = sum.to_string().parse();
        read.unwrap_or_else(|_| panic!("{name} is no count: {sum}"))
    }

    /// The values of a label of what has this name.
    pub(crate) fn values(&self, name: &str, label: &str) -> HashSet<&str> {
        let all = self.samples.keys().filter(|(of, _)| of == name);
        all.filter_map(|(_, labels)| labels.get(label).map(String::as_str))
            .collect()
    }
}

/// Asks for something by HTTP, and waits until the other side has ended the connection.
#[track_caller]
pub(crate) fn get(address: SocketAddr, request: &str) -> Answer {
    let mut client = Client::connect(address);
    client.send(request.as_bytes()).expect("send");
    let asked = if request.starts_with("HEAD") {
        Asked::Head
    } else {
        Asked::Other
    };
    let answer = client.try_answer(asked, PATIENCE).expect("an answer");
    client.shutdown_write();
    assert_eq!(client.rest(), b"", "more than an answer");
    answer
}

fn is_name(name: &str) -> bool {
    let letters = name.bytes();
    letters
        .clone()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && letters
            .clone()
            .next()
            .is_some_and(|byte| !byte.is_ascii_digit())
}

/// What stands behind the opening brace.
#[track_caller]
fn read_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        let (name, behind) = rest.split_once("=\"").expect("a label");
        assert!(is_name(name), "{text}");
        let mut value = String::new();
        let mut letters = behind.char_indices();
        let end = loop {
            match letters.next().expect("an end of the value") {
                (end, '"') => break end,
                (_, '\\') => match letters.next().map(|(_, letter)| letter) {
                    Some('n') => value.push('\n'),
                    Some(letter @ ('\\' | '"')) => value.push(letter),
                    other => panic!("\\{other:?} in {text}"),
                },
                (_, letter) => value.push(letter),
            }
        };
        let before = labels.insert(name.to_owned(), value);
        assert_eq!(before, None, "{text}");
        rest = behind.get(end + 1..).expect("a boundary");
        if rest == "}" {
            return labels;
        }
        rest = rest.strip_prefix(',').expect("a comma");
    }
}

/// Has `promtool check metrics` judge a text; says so where it is not installed.
#[track_caller]
pub(crate) fn promtool(text: &str) {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut program) = spawned else {
        println!("promtool is not installed: the text is judged by the tests alone");
        return;
    };
    let mut stdin = program.stdin.take().expect("a pipe");
    stdin.write_all(text.as_bytes()).expect("it reads");
    drop(stdin);
    let output = program.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
}
