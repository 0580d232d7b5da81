//! Lurcher beside the real Mongrel2: the same configuration, the same handler, wrk for the load, in turns. And beside nginx,
//! where all of them serve the same files.
//!
//! Started by `./bench`, which installs what is missing. Prints requests per second, latencies, processor time and
//! memory of each front, and their ratios per round; judges nothing but the targets, and never fails because of them.
//! The handler and the opener of idle connections are this program again, in processes of their own.

#![expect(clippy::print_stdout, reason = "a program that prints figures")]

mod bridge;
mod broker;
mod broker_report;
mod files;
mod fronts;
mod handler;
mod idle;
mod measure;
mod paced;
mod python;
mod python_report;
mod report;
mod services;
mod worker;

use std::collections::BTreeMap;
use std::time::Duration;

use fronts::Front;
use measure::Figures;

/// What was asked for on the command line.
#[derive(Debug)]
struct Options {
    rounds: usize,
    seconds: u64,
    connections: Vec<usize>,
    idle: Vec<usize>,
    fronts: Vec<String>,
    file_servers: Vec<String>,
    bridges: Vec<String>,
    services: Vec<String>,
    brokers: Vec<String>,
    pythons: Vec<String>,
    write: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            rounds: 3,
            seconds: 4,
            connections: vec![1, 64, 256, 1000],
            idle: vec![1000, 10_000],
            fronts: named("BENCH_FRONTS", "mongrel2,lurcher"),
            file_servers: named("BENCH_FILES", "nginx,mongrel2,lurcher"),
            bridges: named("BENCH_BRIDGES", "nginx,lurcher"),
            services: named("BENCH_SERVICES", "proxy,nginx,serve"),
            brokers: named("BENCH_BROKERS", "direct,plain,own"),
            pythons: named("BENCH_PYTHON", python::SERVERS),
            write: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} wants a value"));
            match word.as_str() {
                "--rounds" => options.rounds = number(&value()?)?,
                "--seconds" => options.seconds = number(&value()?)? as u64,
                "--connections" => options.connections = numbers(&value()?)?,
                "--idle" => options.idle = numbers(&value()?)?,
                "--no-idle" => options.idle.clear(),
                "--no-files" => options.file_servers.clear(),
                "--no-bridge" => options.bridges.clear(),
                "--no-services" => options.services.clear(),
                "--no-broker" => options.brokers.clear(),
                "--no-python" => options.pythons.clear(),
                "--files-only" => options.only(|all| &mut all.file_servers),
                "--bridge-only" => options.only(|all| &mut all.bridges),
                "--services-only" => options.only(|all| &mut all.services),
                "broker" | "--broker-only" => options.only(|all| &mut all.brokers),
                "python" | "--python-only" => options.only(|all| &mut all.pythons),
                "--quick" => {
                    (options.rounds, options.seconds) = (1, 1);
                    options.idle = vec![1000];
                }
                "--write" => options.write = true,
                // What cargo adds by itself.
                "--bench" => {}
                _ => return Err(format!("{word} is no option: ./bench --help has them")),
            }
        }
        Ok(options)
    }

    /// Whether anything is measured but the broker and Python applications, which have reports of their own.
    fn fronts(&self) -> bool {
        let parts = [
            &self.fronts,
            &self.file_servers,
            &self.bridges,
            &self.services,
        ];
        parts.iter().any(|names| !names.is_empty())
    }

    /// Leaves one part and nothing else.
    fn only(&mut self, part: fn(&mut Self) -> &mut Vec<String>) {
        let kept = std::mem::take(part(self));
        for all in [
            &mut self.fronts,
            &mut self.file_servers,
            &mut self.bridges,
            &mut self.services,
            &mut self.brokers,
            &mut self.pythons,
        ] {
            all.clear();
        }
        self.idle.clear();
        *part(self) = kept;
    }
}

/// Who is compared: what the environment says, with commas, or else these.
fn named(variable: &str, default: &str) -> Vec<String> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    text.split(',').map(|name| name.trim().to_owned()).collect()
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|error| format!("{text}: {error}"))
}

fn numbers(text: &str) -> Result<Vec<usize>, String> {
    text.split(',')
        .filter(|item| !item.is_empty())
        .map(number)
        .collect()
}

fn main() -> Result<(), String> {
    let mut words = std::env::args().skip(1).peekable();
    match words.peek().map(String::as_str) {
        Some("handler") => return handler::main(words.skip(1)),
        Some("app") => return bridge::main(),
        Some("serve") => return services::main(words.skip(1)),
        Some("idle") => return idle::main(words.skip(1)),
        Some("worker") => return worker::main(words.skip(1)),
        _ => {}
    }
    let options = Options::parse(words)?;
    let mut figures: BTreeMap<(usize, usize), Vec<Figures>> = BTreeMap::new();
    let mut running = Vec::new();
    for name in &options.fronts {
        running.push(Front::start(name)?);
    }
    for front in &running {
        measure::load(
            front,
            "/",
            64.min(*options.connections.iter().max().unwrap_or(&1)),
            Duration::from_secs(1),
        )?;
    }
    for round in 1..=options.rounds {
        for &connections in &options.connections {
            for (place, front) in running.iter().enumerate() {
                let seen = measure::load(
                    front,
                    "/",
                    connections,
                    Duration::from_secs(options.seconds),
                )?;
                println!(
                    "round {round}, {connections:>5} connections, {:<10} {seen}",
                    front.name
                );
                figures.entry((connections, place)).or_default().push(seen);
            }
        }
    }
    drop(running);
    let mut memory = BTreeMap::new();
    for (place, name) in options.fronts.iter().enumerate() {
        if !options.idle.is_empty() {
            memory.insert(place, idle::measure(name, &options.idle)?);
        }
    }
    let files = files::measure(&options)?;
    let bridges = bridge::measure(&options)?;
    let services = services::measure(&options)?;
    let brokers = broker::measure(&options)?;
    let pythons = python::measure(&options)?;
    let mut report = String::new();
    if options.fronts() {
        report = report::render(&options, &figures, &memory, &files);
        report::bridges(&mut report, &options.bridges, &bridges);
        report::services(&mut report, &options.services, &services);
    }
    let reports = [
        report,
        broker_report::render(&options, &brokers),
        python_report::render(&options, &pythons),
    ];
    println!("\n{}", reports.join("\n"));
    if options.write {
        report::write(&reports)
    } else {
        Ok(())
    }
}
