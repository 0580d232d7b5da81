//! A pool under everything that can happen to it, on a virtual clock: whatever does, each accepted request ends exactly once.
//!
//! Workers come, work, stall, die, leave and return; clients come in bursts and leave; answers come twice or too late; sockets take
//! nothing; the rules change and the clock jumps. All of it is drawn from a seed. After each step the balancer checks itself.
//!
//! `LURCHER_SIMULATION_SEEDS` is how many seeds are tried (256), `LURCHER_SIMULATION_SEED` the first of them; a failure names its own.

mod chaos;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::random::Random;
use super::tests::start;
use super::*;

const SEEDS: u64 = 256;

/// Arrivals of one run, besides bursts.
const ARRIVALS: usize = 150;

/// Says which seed it was when a run fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "the simulation failed; again with LURCHER_SIMULATION_SEEDS=1 LURCHER_SIMULATION_SEED={}",
                self.0
            );
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_accepted_request_ends_exactly_once() {
    let first = from_environment("LURCHER_SIMULATION_SEED").unwrap_or(1);
    let count = from_environment("LURCHER_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let mut seen = BTreeMap::new();
    for seed in first..first + count {
        let _named = Named(seed);
        let mut world = World::new(seed);
        world.run();
        world.settle();
        world.check_ends();
        for (what, times) in world.seen {
            *seen.entry(what).or_insert(0u64) += times;
        }
    }
    // A simulation in which nothing happens proves nothing.
    if count >= SEEDS {
        for what in [
            "answered",
            "streamed",
            "client gone",
            "late",
            "twice",
            "worker lost",
            "again",
            "QueueFull",
            "WaitOver",
            "NoWorker",
            "DeadlineOver",
            "WorkerLost",
            "Quarantined",
            "unsent",
            "drained",
            "suspect returned",
            "suspect died",
            "ejected",
            "credit",
            "rules",
            "clock back",
            "clock leap",
            "strict",
        ] {
            assert!(seen.contains_key(what), "{what} never happened: {seen:?}");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Arrival,
    Chaos,
    /// The worker with this number has finished this attempt.
    Done(usize, Request, u8),
    /// An answer that was sent before comes: the second time, or from one that is dead.
    Echo(usize, Request, u8),
    StreamEnds(Request),
    Awakes(usize),
    Unblocked(usize),
}

/// A worker, as it is and not as the balancer sees it.
struct Mate {
    key: Worker,
    slots: u32,
    slowness: u32,
    tells_start: bool,
    inbox: VecDeque<(Request, u8)>,
    running: Vec<(Request, u8)>,
    stalled: bool,
    /// What it has finished while it was stalled.
    outbox: Vec<(Request, u8)>,
    draining: bool,
}

/// What is known of a request by whoever made it.
struct Truth {
    end: Option<&'static str>,
    retry: Retry,
    begun: u32,
    deadline: Option<Instant>,
    bytes: usize,
}

struct World {
    balancer: Balancer,
    random: Random,
    now: Instant,
    begin: Instant,
    agenda: BinaryHeap<Reverse<(Instant, u64, Happens)>>,
    entries: u64,
    mates: BTreeMap<usize, Mate>,
    /// Dead workers' keys, for what still comes from them.
    dead: HashMap<usize, Worker>,
    hired: usize,
    truth: HashMap<Request, Truth>,
    /// Failed or abandoned, and at a worker still.
    zombies: Vec<Request>,
    arrivals: usize,
    closing: bool,
    seen: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let rules = rules(&mut random);
        let now = start();
        let mut world = Self {
            balancer: Balancer::new(rules, seed),
            random,
            now,
            begin: now,
            agenda: BinaryHeap::new(),
            entries: 0,
            mates: BTreeMap::new(),
            dead: HashMap::new(),
            hired: 0,
            truth: HashMap::new(),
            zombies: Vec::new(),
            arrivals: ARRIVALS,
            closing: false,
            seen: BTreeMap::new(),
        };
        for _ in 0..world.below(6) {
            world.hire();
        }
        world.plan(0, Happens::Arrival);
        world.plan(100, Happens::Chaos);
        world
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random.next() % limit
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn plan(&mut self, millis: u64, what: Happens) {
        self.entries += 1;
        let at = self.now + Duration::from_millis(millis);
        self.agenda.push(Reverse((at, self.entries, what)));
    }

    /// The time as the balancer is told it: now and then it goes back.
    fn told(&mut self) -> Instant {
        if self.chance(50) {
            self.note("clock back");
            let back = Duration::from_millis(self.below(5_000));
            return self.now.checked_sub(back).unwrap_or(self.now);
        }
        self.now
    }

    fn check(&self) {
        self.balancer.check_invariants();
    }

    fn run(&mut self) {
        while self.arrivals > 0 {
            self.step();
        }
    }

    /// The next thing happens: what time does, or what is on the agenda.
    fn step(&mut self) -> bool {
        let planned = self.agenda.peek().map(|Reverse((at, ..))| *at);
        let due = self.balancer.due();
        match (planned, due) {
            (None, None) => return false,
            (Some(at), due) if due.is_none_or(|due| at <= due) => {
                self.now = self.now.max(at);
                // A deadline that falls on the same moment comes first.
                self.tick();
                if let Some(Reverse((_, _, what))) = self.agenda.pop() {
                    self.happen(what);
                }
            }
            (_, Some(due)) => {
                self.now = self.now.max(due);
                self.tick();
            }
            (Some(_), None) => {}
        }
        self.pull();
        true
    }

    fn happen(&mut self, what: Happens) {
        match what {
            Happens::Arrival => self.arrive(),
            Happens::Chaos => self.chaos(),
            Happens::Done(mate, request, attempt) => self.done(mate, request, attempt),
            Happens::Echo(mate, request, attempt) => {
                let key = self.mates.get(&mate).map(|mate| mate.key);
                let key = key.or_else(|| self.dead.get(&mate).copied());
                self.answer(key.expect("it lived"), request, attempt);
            }
            Happens::StreamEnds(request) => {
                if self.balancer.phase(request) == Some(Phase::Attached) {
                    self.ended(request, "streamed");
                    self.balancer.end(request, self.now, None);
                    self.check();
                }
            }
            Happens::Awakes(mate) => self.awake(mate),
            Happens::Unblocked(mate) => {
                if let Some(mate) = self.mates.get(&mate)
                    && self.balancer.standing(mate.key) == Some(Standing::Held)
                {
                    self.balancer.set(mate.key, Standing::Ready, self.now);
                    self.check();
                }
            }
        }
    }

    fn arrive(&mut self) {
        let count = if self.chance(30) {
            1 + self.below(60)
        } else {
            1
        };
        for _ in 0..count {
            self.submit();
            if self.chance(2) {
                self.pull();
            }
        }
        self.arrivals = self.arrivals.saturating_sub(1);
        if self.arrivals > 0 {
            let pause = self.below(40);
            self.plan(pause, Happens::Arrival);
        }
    }

    fn submit(&mut self) {
        let deadline = match self.below(3) {
            0 => Some(self.now + Duration::from_millis(self.below(3_000))),
            _ => None,
        };
        let request = NewRequest {
            bytes: usize::try_from(self.below(1_000)).unwrap(),
            retry: if self.chance(2) {
                Retry::Safe
            } else {
                Retry::Never
            },
            key: (!self.chance(3)).then(|| self.below(10)),
            deadline,
        };
        let now = self.told();
        match self.balancer.submit(request, now) {
            Ok(key) => {
                let truth = Truth {
                    end: None,
                    retry: request.retry,
                    begun: 0,
                    deadline,
                    bytes: request.bytes,
                };
                assert!(self.truth.insert(key, truth).is_none(), "a key is new");
            }
            Err(refusal) => {
                assert!(refusal.retry_after >= Duration::from_secs(1));
                assert!(refusal.retry_after <= Duration::from_mins(1));
                self.note(name_of(refusal.why));
            }
        }
        self.check();
    }

    /// Hands over whatever can be.
    fn pull(&mut self) {
        loop {
            let now = self.told();
            let Some(next) = self.balancer.next(now) else {
                break;
            };
            self.check();
            self.given(next);
        }
        let balancer = &self.balancer;
        assert!(
            balancer.queue.is_empty() || !balancer.has_room(),
            "nobody waits while somebody has room"
        );
    }

    fn given(&mut self, next: Assignment) {
        let found = self.mates.iter().find(|(_, mate)| mate.key == next.worker);
        let number = *found.expect("only who is there gets anything").0;
        let worker = next.worker;
        assert_eq!(self.balancer.standing(worker), Some(Standing::Ready));
        assert!(!self.balancer.is_ejected(worker));
        let open = self.balancer.open(worker);
        assert!(
            self.balancer
                .credit(worker)
                .is_none_or(|credit| open <= credit)
        );
        assert_eq!(self.truth[&next.request].end, None, "it has not ended");
        if self.chance(40) {
            // Its socket took nothing.
            self.note("unsent");
            self.balancer.set(worker, Standing::Held, self.now);
            self.balancer.unsent(next.request, self.now);
            self.check();
            let millis = self.below(300);
            self.plan(millis, Happens::Unblocked(number));
            return;
        }
        let mate = self.mates.get_mut(&number).expect("it is there");
        mate.inbox.push_back((next.request, next.attempt));
        self.work(number);
    }

    /// The worker begins with whatever it has room for.
    fn work(&mut self, number: usize) {
        loop {
            let Some(mate) = self.mates.get_mut(&number) else {
                return;
            };
            if mate.stalled || mate.running.len() >= mate.slots.max(1) as usize {
                return;
            }
            let Some((request, attempt)) = mate.inbox.pop_front() else {
                return;
            };
            mate.running.push((request, attempt));
            let (key, slowness, tells) = (mate.key, mate.slowness, mate.tells_start);
            let is_current = self.balancer.worker_of(request) == Some(key)
                && self.balancer.attempt(request) == Some(attempt);
            if is_current {
                if tells || self.chance(2) {
                    self.balancer.began(request);
                    self.check();
                }
                if let Some(truth) = self.truth.get_mut(&request)
                    && self.balancer.phase(request) != Some(Phase::Failed)
                {
                    truth.begun += 1;
                    let most = match truth.retry {
                        Retry::Never => 1,
                        Retry::Safe => u32::from(self.balancer.rules().attempts_max),
                    };
                    assert!(truth.begun <= most, "begun more often than is allowed");
                }
            }
            let millis = (1 + self.below(60)) * u64::from(slowness);
            self.plan(millis, Happens::Done(number, request, attempt));
        }
    }

    fn done(&mut self, number: usize, request: Request, attempt: u8) {
        let Some(mate) = self.mates.get_mut(&number) else {
            return;
        };
        mate.running
            .retain(|running| *running != (request, attempt));
        if mate.stalled {
            mate.outbox.push((request, attempt));
            return;
        }
        let key = mate.key;
        self.answer(key, request, attempt);
        if self.chance(20) {
            self.note("twice");
            let millis = self.below(500);
            self.plan(millis, Happens::Echo(number, request, attempt));
        }
        self.work(number);
        self.leave_if_done(number);
    }

    /// An answer comes, from a worker that may not have the request any more.
    fn answer(&mut self, key: Worker, request: Request, attempt: u8) {
        let is_current = self.balancer.worker_of(request) == Some(key)
            && self.balancer.attempt(request) == Some(attempt)
            && self.balancer.phase(request) != Some(Phase::Attached);
        if !is_current {
            return self.note("late");
        }
        let service = self.balancer.held_for(request, self.now);
        if self.balancer.phase(request) == Some(Phase::Failed) {
            self.zombies.retain(|zombie| *zombie != request);
        } else if self.chance(10) {
            self.balancer.attach(request, self.now);
            self.check();
            let millis = self.below(2_000);
            return self.plan(millis, Happens::StreamEnds(request));
        } else {
            self.ended(request, "answered");
        }
        let now = self.told();
        self.balancer.end(request, now, service);
        self.check();
    }

    /// The request has come to its end, for whoever made it.
    fn ended(&mut self, request: Request, how: &'static str) {
        let truth = self.truth.get_mut(&request).expect("it was accepted");
        assert_eq!(truth.end, None, "{request:?} ends a second time: {how}");
        truth.end = Some(how);
        if how == "answered" {
            assert!(
                truth.deadline.is_none_or(|deadline| self.now <= deadline),
                "answered after its deadline, and had not failed"
            );
        }
        self.note(how);
    }

    fn failed(&mut self, request: Request, why: Failure) {
        self.ended(request, name_of(why));
        assert_eq!(self.balancer.phase(request), Some(Phase::Failed));
        if self.balancer.worker_of(request).is_some() && self.chance(2) {
            self.zombies.push(request);
        } else {
            self.balancer.end(request, self.now, None);
            self.check();
        }
    }

    fn tick(&mut self) {
        let events = self.balancer.tick(self.now);
        self.check();
        for event in events {
            match event {
                Event::Failed(request, why) => self.failed(request, why),
                Event::Dead(worker) => {
                    self.note("suspect died");
                    let found = self.mates.iter().find(|(_, mate)| mate.key == worker);
                    let number = *found.expect("who dies was there").0;
                    self.kill(number);
                }
                Event::Ejected(_) => self.note("ejected"),
                Event::Returned(_) => {}
            }
        }
    }

    /// No more comes, and nothing goes wrong any more.
    fn settle(&mut self) {
        self.closing = true;
        let stalled: Vec<usize> = self.mates.keys().copied().collect();
        for number in stalled {
            self.awake(number);
        }
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 50_000, "it comes to rest");
        }
        if self.seen_strict() {
            self.note("strict");
        }
    }

    fn seen_strict(&self) -> bool {
        self.balancer.counts().strict_given_up > 0
    }

    fn check_ends(&mut self) {
        for (request, truth) in &self.truth {
            assert!(
                truth.end.is_some(),
                "{request:?} of {} bytes has no end after {:?}: {:?}",
                truth.bytes,
                self.now.duration_since(self.begin),
                self.balancer.phase(*request),
            );
        }
        assert_eq!(self.balancer.waiting(), 0);
        assert_eq!(self.balancer.waiting_bytes(), 0);
        assert_eq!(self.balancer.in_flight(), 0);
        assert_eq!(self.balancer.requests.len(), 0, "nothing is left behind");
        let counts = self.balancer.counts();
        assert_eq!(
            counts.accepted,
            u64::try_from(self.truth.len()).unwrap(),
            "what was accepted was counted"
        );
    }
}

fn name_of(why: Failure) -> &'static str {
    match why {
        Failure::QueueFull => "QueueFull",
        Failure::WaitOver => "WaitOver",
        Failure::NoWorker => "NoWorker",
        Failure::DeadlineOver => "DeadlineOver",
        Failure::WorkerLost => "WorkerLost",
        Failure::Quarantined => "Quarantined",
    }
}

/// Rules of any kind.
fn rules(random: &mut Random) -> Rules {
    let mut below = |limit: u64| random.next() % limit;
    let millis = |time: u64| Duration::from_millis(time);
    Rules {
        slots: [None, Some(1), Some(3)][usize::try_from(below(3)).unwrap()],
        prefetch_max: u32::try_from(below(3)).unwrap(),
        queue_max: usize::try_from(5 + below(100)).unwrap(),
        queue_per_slot: (below(3) == 0).then_some(4),
        queue_bytes_max: usize::try_from(5_000 + below(100_000)).unwrap(),
        wait_max: millis(200 + below(5_000)),
        start_grace: millis(below(3) * 700),
        attempts_max: 2,
        retry_budget: [None, Some(0.2), Some(0.0)][usize::try_from(below(3)).unwrap()],
        quarantine_after: u8::try_from(below(3)).unwrap(),
        outlier: (below(2) == 0).then(|| Outlier {
            samples_min: 5,
            interval: millis(300),
            ejection: millis(500),
            ..Outlier::default()
        }),
        suspect_grace: millis(200 + below(3_000)),
        sticky: (below(2) == 0).then(|| Sticky {
            bound: 1.25,
            strict: (below(2) == 0).then(|| millis(below(800))),
        }),
        shed_late: below(2) == 0,
        order: if below(2) == 0 {
            Order::Fifo
        } else {
            Order::AdaptiveLifo { target: millis(20) }
        },
        tie: if below(2) == 0 {
            Tie::LongestIdle
        } else {
            Tie::MostRecent
        },
        slow_start: millis(below(2) * 800),
    }
}
