//! The broker between a front and its workers: what it is for, workers that are not equally busy, and what it costs where all are.
//!
//! Ways: `direct`, workers at the front's own sockets; `plain`, the same workers behind `lurcher broker --plain`; `own`, workers
//! behind it that speak its dialect. The workers are this program again, one thread each.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Options;
use crate::fronts::{Front, Sockets, free_ports};
use crate::measure::{self, Figures, processor_seconds};
use crate::paced::{self, Lateness};

/// Workers that take their time, each with one slot.
pub(crate) const UNEVEN: usize = 8;
/// How many of them are slower.
pub(crate) const SLOW: usize = 2;
/// How many times slower.
const SLOWER: u64 = 4;
/// What a brisk one takes for a request.
const SERVICE: Duration = Duration::from_millis(5);
/// Offered load, as a share of what all workers together can do.
const LOAD: f64 = 0.7;
/// How often a paced run is as long as the others: its p99 needs requests, and a backlog needs time to show.
const LONGER: u64 = 2;
/// Workers that answer at once.
pub(crate) const EVEN: usize = 4;
/// Connections at once before these.
pub(crate) const CONNECTIONS: [usize; 2] = [1, 64];
/// Fronts before these.
pub(crate) const FRONTS: [&str; 2] = ["lurcher", "mongrel2"];
/// Front before the uneven ones: PUSH of libzmq, which deals in turn.
pub(crate) const UNEVEN_FRONT: &str = "mongrel2";

/// One run of wrk, and what the broker itself took: processor seconds per 100,000 requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) figures: Figures,
    pub(crate) broker_seconds: f64,
}

/// Everything that was measured, by way and in order of rounds.
#[derive(Debug, Default)]
pub(crate) struct Brokers {
    pub(crate) uneven: BTreeMap<usize, Vec<Lateness>>,
    /// By front, connections and way.
    pub(crate) even: BTreeMap<(usize, usize, usize), Vec<Cost>>,
}

/// A front, workers, and a broker between them unless they are its own; all stopped with the value.
struct Service {
    front: Front,
    broker: Option<Child>,
    workers: Vec<Child>,
    directory: tempfile::TempDir,
}

impl Service {
    /// Starts all of it, with one worker for each of these service times, and waits for the first answers. `slots` is a number or
    /// `none`.
    fn start(front: &str, way: &str, times: &[Duration], slots: &str) -> Result<Self, String> {
        let directory =
            tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
        let front = Front::alone(front, Sockets::Tcp)?;
        let mut service = Self {
            front,
            broker: None,
            workers: Vec::new(),
            directory,
        };
        let ports = free_ports()?.map(|port| format!("tcp://127.0.0.1:{port}"));
        let [workers, pull, publish] = &ports;
        let specs = match way {
            "direct" => service.front.specs.to_vec(),
            "plain" | "own" => {
                service.broker = Some(service.broker(workers, &[pull, publish], slots)?);
                if way == "own" {
                    vec![workers.clone()]
                } else {
                    vec![pull.clone(), publish.clone()]
                }
            }
            _ => return Err(format!("{way} is no way: direct, plain, own")),
        };
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        for time in times {
            let worker = Command::new(&own)
                .arg("worker")
                .arg(time.as_micros().to_string())
                .arg(slots)
                .args(&specs)
                .spawn();
            service
                .workers
                .push(worker.map_err(|error| format!("start a worker: {error}"))?);
        }
        service.front.serves()?;
        // Those that join last have not been asked yet.
        paced::load(service.front.address, 200.0, Duration::from_secs(1), 0)?;
        Ok(service)
    }

    fn broker(&self, workers: &str, plain: &[&str; 2], slots: &str) -> Result<Child, String> {
        let log = self.directory.path().join("broker.log");
        let log = fs::File::create(log).map_err(|error| error.to_string())?;
        Command::new(env!("CARGO_BIN_EXE_lurcher"))
            .arg("broker")
            .args(&self.front.specs)
            .args(["--workers", workers, "--plain", &plain.join(",")])
            .args(["--slots", slots, "--state", "none"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("start the broker: {error}"))
    }

    /// wrk, and what the broker took meanwhile.
    fn load(&self, connections: usize, time: Duration) -> Result<Cost, String> {
        let spent = || {
            self.broker
                .as_ref()
                .map_or(Ok(0.0), |broker| processor_seconds(broker.id()))
        };
        let before = spent()?;
        let figures = measure::load(&self.front, "/", connections, time)?;
        Ok(Cost {
            figures,
            broker_seconds: (spent()? - before) * 100_000.0 / figures.requests.max(1.0),
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().chain(&mut self.broker) {
            // Gone already or killed now: both are what is wanted.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Measures all ways in turns.
pub(crate) fn measure(options: &Options) -> Result<Brokers, String> {
    let mut brokers = Brokers::default();
    if options.brokers.is_empty() {
        return Ok(brokers);
    }
    uneven(options, &mut brokers)?;
    for (place, front) in FRONTS.iter().enumerate() {
        even(options, place, front, &mut brokers)?;
    }
    Ok(brokers)
}

fn uneven(options: &Options, brokers: &mut Brokers) -> Result<(), String> {
    let times: Vec<Duration> = (0..UNEVEN)
        .map(|at| {
            // Not neighbours, since nobody's are.
            let slow = at % (UNEVEN / SLOW) == 0;
            SERVICE
                * if slow {
                    u32::try_from(SLOWER).unwrap_or(1)
                } else {
                    1
                }
        })
        .collect();
    let rate: f64 = LOAD
        * times
            .iter()
            .map(|time| 1.0 / time.as_secs_f64())
            .sum::<f64>();
    let time = Duration::from_secs(options.seconds * LONGER);
    for round in 1..=options.rounds {
        for (place, way) in options.brokers.iter().enumerate() {
            // Afresh each time: a backlog of one run is none of the next's.
            let service = Service::start(UNEVEN_FRONT, way, &times, "1")?;
            let seen = paced::load(service.front.address, rate, time, round as u64)?;
            println!(
                "round {round}, uneven workers, {way:<7} {:>6} requests  p50 {:>8.2} ms  p99 {:>8.2} ms  worst {:>8.2} ms  {} failed",
                seen.requests, seen.p50_ms, seen.p99_ms, seen.worst_ms, seen.failed
            );
            brokers.uneven.entry(place).or_default().push(seen);
        }
    }
    Ok(())
}

fn even(options: &Options, front: usize, name: &str, brokers: &mut Brokers) -> Result<(), String> {
    let times = [Duration::ZERO; EVEN];
    let mut running = Vec::new();
    for way in &options.brokers {
        running.push(Service::start(name, way, &times, "none")?);
    }
    let time = Duration::from_secs(options.seconds);
    for round in 1..=options.rounds {
        for connections in CONNECTIONS {
            for (place, service) in running.iter().enumerate() {
                let seen = service.load(connections, time)?;
                println!(
                    "round {round}, equal workers, {connections:>3} connections, {name:<8} {:<7} {} broker {:.2}",
                    options.brokers.get(place).map_or("", String::as_str),
                    seen.figures,
                    seen.broker_seconds
                );
                let key = (front, connections, place);
                brokers.even.entry(key).or_default().push(seen);
            }
        }
    }
    Ok(())
}
