//! Lurcher beside the real Mongrel2: the same configuration, the same handler, wrk for the load, in turns. And beside nginx,
//! where all of them serve the same files.
//!
//! Started by `./bench`, which installs what is missing. Prints requests per second, latencies, processor time and
//! memory of each front, and their ratios per round; judges nothing but the targets, and never fails because of them.
//! The handler and the opener of idle connections are this program again, in processes of their own.

#![expect(clippy::print_stdout, reason = "a program that prints figures")]

mod bridge;
mod files;
mod fronts;
mod handler;
mod idle;
mod measure;
mod report;
mod services;

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
    write: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            rounds: 3,
            seconds: 4,
            connections: vec![1, 64, 256, 1000],
            idle: vec![1000, 10_000],
            fronts: std::env::var("BENCH_FRONTS")
                .unwrap_or_else(|_| "mongrel2,lurcher".to_owned())
                .split(',')
                .map(|name| name.trim().to_owned())
                .collect(),
            file_servers: std::env::var("BENCH_FILES")
                .unwrap_or_else(|_| "nginx,mongrel2,lurcher".to_owned())
                .split(',')
                .map(|name| name.trim().to_owned())
                .collect(),
            bridges: std::env::var("BENCH_BRIDGES")
                .unwrap_or_else(|_| "nginx,lurcher".to_owned())
                .split(',')
                .map(|name| name.trim().to_owned())
                .collect(),
            services: std::env::var("BENCH_SERVICES")
                .unwrap_or_else(|_| "proxy,nginx,serve".to_owned())
                .split(',')
                .map(|name| name.trim().to_owned())
                .collect(),
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
                "--files-only" => {
                    options.fronts.clear();
                    options.idle.clear();
                    options.bridges.clear();
                    options.services.clear();
                }
                "--bridge-only" => {
                    options.fronts.clear();
                    options.idle.clear();
                    options.file_servers.clear();
                    options.services.clear();
                }
                "--services-only" => {
                    options.fronts.clear();
                    options.idle.clear();
                    options.file_servers.clear();
                    options.bridges.clear();
                }
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
    let mut report = report::render(&options, &figures, &memory, &files);
    report::bridges(&mut report, &options.bridges, &bridges);
    let services = services::measure(&options)?;
    report::services(&mut report, &options.services, &services);
    println!("\n{report}");
    if options.write {
        report::write(&report)
    } else {
        Ok(())
    }
}
