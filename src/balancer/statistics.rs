//! What the policy is worth, in numbers: waiting times of simulated pools, with a fixed seed.
//!
//! Requests come at random (Poisson) and take 0.5 or, one in twenty, 10.5 units of time, so one on average; a unit is a millisecond here.
//! Compared with dealing them out in turn, as ZeroMQ's PUSH does.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::random::Random;
use super::tests::start;
use super::*;

const JOBS: usize = 12_000;

/// Workers with their slots, and how many times slower they are.
type Crew = Vec<(u32, f64)>;

/// What comes out of a run.
struct Outcome {
    /// Time from arrival to answer, of all requests but the first tenth, in milliseconds, sorted.
    latencies: Vec<f64>,
    /// How many requests each worker had.
    shares: Vec<usize>,
}

impl Outcome {
    fn at(&self, share: f64) -> f64 {
        let last = self.latencies.len() - 1;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in a list"
        )]
        let place = (last as f64 * share) as usize;
        self.latencies[place]
    }

    fn p99(&self) -> f64 {
        self.at(0.99)
    }
}

fn millis(time: f64) -> Duration {
    Duration::from_secs_f64(time / 1000.0)
}

/// What a request takes at a worker of ordinary speed, in milliseconds.
fn work(random: &mut Random) -> f64 {
    if random.fraction() < 0.05 { 10.5 } else { 0.5 }
}

/// When requests come: as many as give this load to the crew.
fn arrivals(crew: &Crew, load: f64, random: &mut Random) -> Vec<(f64, f64)> {
    let capacity: f64 = crew
        .iter()
        .map(|(slots, slow)| f64::from(*slots) / slow)
        .sum();
    let mut now = 0.0;
    let mut all = Vec::with_capacity(JOBS);
    for _ in 0..JOBS {
        now += -random.fraction().ln() / (capacity * load);
        all.push((now, work(random)));
    }
    all
}

fn sorted(mut latencies: Vec<(usize, f64)>, shares: Vec<usize>) -> Outcome {
    latencies.retain(|(job, _)| *job >= JOBS / 10);
    let mut latencies: Vec<f64> = latencies.into_iter().map(|(_, time)| time).collect();
    latencies.sort_by(f64::total_cmp);
    Outcome { latencies, shares }
}

/// Each worker in its turn, with a queue of its own.
fn in_turn(crew: &Crew, load: f64, seed: u64) -> Outcome {
    let mut random = Random::new(seed);
    let mut free: Vec<Vec<f64>> = crew
        .iter()
        .map(|(slots, _)| vec![0.0; *slots as usize])
        .collect();
    let mut latencies = Vec::new();
    let mut shares = vec![0; crew.len()];
    let jobs = arrivals(crew, load, &mut random);
    for (job, (now, work)) in jobs.into_iter().enumerate() {
        let worker = job % crew.len();
        shares[worker] += 1;
        let slot = free[worker]
            .iter_mut()
            .min_by(|a, b| a.total_cmp(b))
            .expect("it has slots");
        *slot = slot.max(now) + work * crew[worker].1;
        latencies.push((job, *slot - now));
    }
    sorted(latencies, shares)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Arrival(usize),
    Reaches(usize, Request),
    Finished(usize, Request),
    Told(usize, Request),
}

/// A worker as it is: what has reached it and waits, and what it works on.
struct Mate {
    key: Worker,
    slots: u32,
    slow: f64,
    running: u32,
    inbox: VecDeque<Request>,
}

/// The balancer, with workers that are half of `hop` away each way.
fn balanced(rules: Rules, crew: &Crew, load: f64, hop: f64, seed: u64) -> Outcome {
    let mut random = Random::new(seed);
    let begin = start();
    let mut balancer = Balancer::new(rules, seed);
    let mut mates: Vec<Mate> = Vec::new();
    for (number, (slots, slow)) in crew.iter().enumerate() {
        let name = format!("w{number}");
        let worker = NewWorker {
            name: name.as_bytes(),
            slots: Some(*slots),
            ..NewWorker::default()
        };
        let key = balancer.add(worker, begin);
        balancer.set_hop(key, millis(hop));
        mates.push(Mate {
            key,
            slots: *slots,
            slow: *slow,
            running: 0,
            inbox: VecDeque::new(),
        });
    }
    let jobs = arrivals(crew, load, &mut random);
    let mut agenda: BinaryHeap<Reverse<(Instant, Happens)>> = BinaryHeap::new();
    let at = |job: usize| begin + millis(jobs[job].0);
    agenda.push(Reverse((at(0), Happens::Arrival(0))));
    let mut job_of = vec![usize::MAX; JOBS + 1];
    let mut latencies = Vec::new();
    let mut shares = vec![0; crew.len()];
    while let Some(Reverse((now, what))) = agenda.pop() {
        match what {
            Happens::Arrival(job) => {
                let request = balancer.submit(NewRequest::default(), now);
                let request = request.expect("nothing is bounded here");
                job_of[request.index()] = job;
                if job + 1 < JOBS {
                    agenda.push(Reverse((at(job + 1), Happens::Arrival(job + 1))));
                }
            }
            Happens::Reaches(worker, request) => mates[worker].inbox.push_back(request),
            Happens::Finished(worker, request) => {
                mates[worker].running -= 1;
                agenda.push(Reverse((
                    now + millis(hop / 2.0),
                    Happens::Told(worker, request),
                )));
            }
            Happens::Told(worker, request) => {
                let job = job_of[request.index()];
                latencies.push((job, now.duration_since(at(job)).as_secs_f64() * 1000.0));
                shares[worker] += 1;
                let service = millis(jobs[job].1 * mates[worker].slow);
                balancer.end(request, now, Some(service));
            }
        }
        if let Happens::Reaches(worker, _) | Happens::Finished(worker, _) = what {
            let mate = &mut mates[worker];
            while mate.running < mate.slots
                && let Some(request) = mate.inbox.pop_front()
            {
                mate.running += 1;
                let service = millis(jobs[job_of[request.index()]].1 * mate.slow);
                agenda.push(Reverse((now + service, Happens::Finished(worker, request))));
            }
        }
        while let Some(next) = balancer.next(now) {
            let worker = mates
                .iter()
                .position(|mate| mate.key == next.worker)
                .expect("it is one of them");
            let reaches = Happens::Reaches(worker, next.request);
            agenda.push(Reverse((now + millis(hop / 2.0), reaches)));
        }
    }
    sorted(latencies, shares)
}

/// Rules without bounds.
fn rules() -> Rules {
    Rules {
        queue_max: usize::MAX,
        queue_bytes_max: usize::MAX,
        wait_max: Duration::from_hours(1),
        outlier: None,
        ..Rules::for_front()
    }
}

fn crew(ordinary: usize, slow: usize, slots: u32) -> Crew {
    let mut crew = vec![(slots, 1.0); ordinary];
    crew.extend(vec![(slots, 4.0); slow]);
    crew
}

#[test]
fn the_least_busy_beats_turns_three_times_over_with_workers_of_equal_speed() {
    let crew = crew(16, 0, 1);
    let turns = in_turn(&crew, 0.8, 1).p99();
    let balanced = balanced(rules(), &crew, 0.8, 0.0, 1).p99();
    assert!(balanced * 3.0 < turns, "{balanced} against {turns}");
    assert!(
        balanced < 15.0,
        "near to what the work itself takes: {balanced}"
    );
}

#[test]
fn the_least_busy_beats_turns_five_times_over_when_a_quarter_is_slow() {
    let crew = crew(6, 2, 1);
    let turns = in_turn(&crew, 0.7, 2).p99();
    let balanced = balanced(rules(), &crew, 0.7, 0.0, 2).p99();
    assert!(balanced * 5.0 < turns, "{balanced} against {turns}");
}

#[test]
fn a_slow_worker_limits_itself() {
    let crew = crew(6, 2, 4);
    let shares = balanced(rules(), &crew, 0.9, 0.0, 3).shares;
    let ordinary: usize = shares[..6].iter().sum();
    let slow: usize = shares[6..].iter().sum();
    // By what they can do it would be four to one for each.
    let ratio = |ordinary: usize, slow: usize| {
        let ordinary = u32::try_from(ordinary).unwrap();
        let slow = u32::try_from(slow).unwrap();
        (f64::from(ordinary) / 6.0) / (f64::from(slow) / 2.0)
    };
    let ratio = ratio(ordinary, slow);
    assert!((2.5..5.5).contains(&ratio), "{ratio}: {shares:?}");
}

#[test]
fn one_stuck_worker_costs_one_request() {
    let mut crew = crew(15, 0, 1);
    crew.push((1, 1e7));
    let outcome = balanced(rules(), &crew, 0.7, 0.0, 4);
    assert!(outcome.shares[15] <= 1);
    assert!(outcome.p99() < 15.0, "{}", outcome.p99());
}

#[test]
fn a_hop_that_counts_is_made_up_for_by_prefetching() {
    let crew = crew(8, 0, 1);
    let without = Rules {
        prefetch_max: 0,
        ..rules()
    };
    // As long as the work of most: without, workers idle half of their time and do not keep up.
    let idle = balanced(without, &crew, 0.8, 0.5, 5).p99();
    let busy = balanced(rules(), &crew, 0.8, 0.5, 5).p99();
    assert!(busy * 2.0 < idle, "{busy} against {idle}");
}

#[test]
fn a_hop_that_is_nothing_binds_no_request_to_a_worker_early() {
    let crew = crew(8, 0, 1);
    let late = balanced(rules(), &crew, 0.8, 0.01, 6);
    let without = Rules {
        prefetch_max: 0,
        ..rules()
    };
    let same = balanced(without, &crew, 0.8, 0.01, 6);
    assert!((late.p99() - same.p99()).abs() < 1e-9);
}

#[test]
fn sticky_load_stays_under_its_bound_whatever_the_keys_are() {
    let bound = 1.25;
    let mut random = Random::new(7);
    let now = start();
    let rules = Rules {
        sticky: Some(Sticky {
            bound,
            strict: None,
        }),
        ..rules()
    };
    let mut balancer = Balancer::new(rules, 7);
    let workers: Vec<Worker> = (0..10)
        .map(|number| {
            let name = format!("w{number}");
            let worker = NewWorker {
                name: name.as_bytes(),
                ..NewWorker::default()
            };
            balancer.add(worker, now)
        })
        .collect();
    let mut open: VecDeque<Request> = VecDeque::new();
    let mut at_home = 0;
    for _ in 0..10_000 {
        // A few keys make many of the requests.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a key is any number"
        )]
        let key = (20.0 / random.fraction()) as u64;
        let request = NewRequest {
            key: Some(key),
            ..NewRequest::default()
        };
        let request = balancer.submit(request, now).unwrap();
        let next = balancer.next(now).expect("there is no wall");
        open.push_back(request);
        let total: u32 = workers.iter().map(|worker| balancer.open(*worker)).sum();
        let most = (bound * f64::from(total) / 10.0).ceil();
        assert!(f64::from(balancer.open(next.worker)) <= most);
        at_home += u32::from(Some(next.worker) == balancer.pick_attached_by(Some(key)));
        while open.len() > 100 {
            let request = open.pop_front().expect("there are many");
            balancer.end(request, now, None);
        }
    }
    assert!(at_home > 6_000, "and keys still mean something: {at_home}");
}

#[test]
fn under_overload_the_youngest_first_answers_more_in_time() {
    let crew = crew(4, 0, 1);
    let in_time = |order: Order| {
        let rules = Rules { order, ..rules() };
        let outcome = balanced(rules, &crew, 1.3, 0.0, 8);
        outcome.latencies.partition_point(|time| *time < 100.0)
    };
    let fifo = in_time(Order::Fifo);
    let lifo = in_time(Order::AdaptiveLifo {
        target: millis(5.0),
    });
    assert!(lifo > 2 * fifo, "{lifo} against {fifo}");
}
