//! What the balancer promises, rule by rule.

use std::time::{Duration, Instant};

use super::*;

/// A time to count from.
pub(super) fn start() -> Instant {
    Instant::now()
}

/// A balancer with a clock, which checks itself after each step.
pub(super) struct Desk {
    pub(super) balancer: Balancer,
    pub(super) now: Instant,
}

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn desk(rules: Rules) -> Desk {
    Desk {
        balancer: Balancer::new(rules, 1),
        now: start(),
    }
}

/// No wall, no bounds that matter, nothing clever.
pub(super) fn plain() -> Rules {
    Rules {
        outlier: None,
        ..Rules::for_front()
    }
}

impl Desk {
    pub(super) fn worker(&mut self, worker: NewWorker<'_>) -> Worker {
        let key = self.balancer.add(worker, self.now);
        self.balancer.check_invariants();
        key
    }

    pub(super) fn slots(&mut self, name: &str, slots: u32) -> Worker {
        self.worker(NewWorker {
            name: name.as_bytes(),
            slots: Some(slots),
            tells_start: true,
            ..NewWorker::default()
        })
    }

    pub(super) fn submit_all(&mut self, request: NewRequest) -> Result<Request, Refusal> {
        let key = self.balancer.submit(request, self.now);
        self.balancer.check_invariants();
        key
    }

    pub(super) fn submit(&mut self) -> Request {
        let request = NewRequest {
            bytes: 100,
            retry: Retry::Safe,
            ..NewRequest::default()
        };
        self.submit_all(request).expect("it is taken")
    }

    pub(super) fn next(&mut self) -> Option<Assignment> {
        let next = self.balancer.next(self.now);
        self.balancer.check_invariants();
        next
    }

    /// A request that some worker gets at once.
    pub(super) fn given(&mut self) -> Assignment {
        let request = self.submit();
        let next = self.next().expect("somebody takes it");
        assert_eq!(next.request, request);
        next
    }

    pub(super) fn end(&mut self, request: Request) {
        self.balancer.end(request, self.now, None);
        self.balancer.check_invariants();
    }

    pub(super) fn served_in(&mut self, worker: Worker, service: Duration) {
        let open = self
            .balancer
            .requests_of(worker)
            .next()
            .expect("it has one");
        self.balancer.end(open, self.now, Some(service));
        self.balancer.check_invariants();
    }

    pub(super) fn lost(&mut self, worker: Worker) -> Vec<Lost> {
        let lost = self.balancer.lost(worker, self.now, &mut |_| true);
        self.balancer.check_invariants();
        lost
    }

    pub(super) fn set(&mut self, worker: Worker, standing: Standing) {
        self.balancer.set(worker, standing, self.now);
        self.balancer.check_invariants();
    }

    pub(super) fn pass(&mut self, time: Duration) -> Vec<Event> {
        self.now += time;
        let events = self.balancer.tick(self.now);
        self.balancer.check_invariants();
        events
    }
}

mod picking {
    use super::*;

    #[test]
    fn the_fewest_in_flight_come_first_and_the_longest_idle_among_equals() {
        let mut desk = desk(plain());
        let a = desk.slots("a", 4);
        let b = desk.slots("b", 4);
        assert_eq!(desk.given().worker, a);
        let first = desk.given();
        assert_eq!(first.worker, b);
        desk.end(first.request);
        assert_eq!(desk.given().worker, b);
        let open: Vec<Request> = desk.balancer.requests_of(a).collect();
        desk.end(open[0]);
        let open: Vec<Request> = desk.balancer.requests_of(b).collect();
        desk.end(open[0]);
        assert_eq!(desk.given().worker, a, "a has been idle for longer");
    }

    #[test]
    fn the_most_recent_comes_first_if_the_rules_want_that() {
        let mut desk = desk(Rules {
            tie: Tie::MostRecent,
            ..plain()
        });
        desk.slots("a", 1);
        desk.slots("b", 1);
        let first = desk.given();
        desk.end(first.request);
        for _ in 0..5 {
            let next = desk.given();
            assert_eq!(next.worker, first.worker, "the other may sleep");
            desk.end(next.request);
        }
    }

    #[test]
    fn load_is_in_relation_to_slots_and_weight() {
        let mut desk = desk(plain());
        let small = desk.slots("small", 2);
        let big = desk.slots("big", 6);
        for _ in 0..8 {
            desk.given();
        }
        assert_eq!((desk.balancer.open(small), desk.balancer.open(big)), (2, 6));
        let mut desk = super::desk(plain());
        let light = desk.worker(NewWorker::default());
        let heavy = desk.worker(NewWorker {
            weight: 3,
            ..NewWorker::default()
        });
        for _ in 0..40 {
            desk.given();
        }
        let open = (desk.balancer.open(light), desk.balancer.open(heavy));
        assert_eq!(open, (10, 30));
    }

    #[test]
    fn a_stuck_worker_holds_no_more_than_its_neighbour_had_and_one() {
        let mut desk = desk(plain());
        let stuck = desk.worker(NewWorker::default());
        let healthy = desk.worker(NewWorker::default());
        for _ in 0..1000 {
            let next = desk.given();
            if next.worker == healthy {
                desk.end(next.request);
            }
        }
        assert_eq!(desk.balancer.open(stuck), 1);
    }

    #[test]
    fn a_full_worker_gets_nothing_until_one_has_ended() {
        let mut desk = desk(plain());
        desk.slots("a", 1);
        let first = desk.given();
        let second = desk.submit();
        assert_eq!(desk.next(), None);
        desk.end(first.request);
        assert_eq!(desk.next().map(|next| next.request), Some(second));
    }

    #[test]
    fn a_stream_takes_no_slot() {
        let mut desk = desk(plain());
        let only = desk.slots("a", 1);
        let stream = desk.given();
        desk.balancer.attach(stream.request, desk.now);
        desk.given();
        let counts = (desk.balancer.open(only), desk.balancer.attached(only));
        assert_eq!(counts, (1, 1));
        assert_eq!(desk.balancer.phase(stream.request), Some(Phase::Attached));
        desk.end(stream.request);
        assert_eq!(desk.balancer.attached(only), 0);
    }

    #[test]
    fn streams_go_where_the_fewest_are_whoever_is_busy() {
        let mut desk = desk(plain());
        let a = desk.slots("a", 1);
        let b = desk.slots("b", 1);
        desk.given();
        desk.given();
        for _ in 0..6 {
            let worker = desk.balancer.pick_attached().expect("both are ready");
            desk.balancer.attach_more(worker);
        }
        assert_eq!(
            (desk.balancer.attached(a), desk.balancer.attached(b)),
            (3, 3)
        );
        desk.set(a, Standing::Draining);
        desk.balancer.detach(b);
        assert_eq!(desk.balancer.pick_attached(), Some(b));
    }

    #[test]
    fn whoever_is_held_suspect_or_draining_gets_nothing_and_keeps_what_it_has() {
        for standing in [Standing::Held, Standing::Suspect, Standing::Draining] {
            let mut desk = desk(plain());
            let worker = desk.slots("a", 4);
            let first = desk.given();
            desk.set(worker, standing);
            desk.submit();
            assert_eq!(desk.next(), None);
            assert_eq!(desk.balancer.worker_of(first.request), Some(worker));
            desk.set(worker, Standing::Ready);
            assert!(desk.next().is_some());
        }
    }

    #[test]
    fn what_a_worker_has_of_others_takes_its_slots_and_makes_it_busier() {
        let mut desk = desk(plain());
        let a = desk.slots("a", 2);
        let b = desk.slots("b", 2);
        desk.balancer.set_foreign(a, 1);
        assert_eq!(desk.given().worker, b);
        assert_eq!(desk.given().worker, a, "it is not idle for longer");
        assert_eq!(desk.given().worker, b);
        desk.submit();
        assert_eq!(desk.next(), None);
        desk.balancer.set_foreign(a, 0);
        desk.balancer.check_invariants();
        assert_eq!(desk.next().expect("there is room").worker, a);
        assert_eq!(desk.balancer.foreign(a), 0);
    }

    #[test]
    fn the_key_of_a_worker_that_is_gone_means_nobody() {
        let mut desk = desk(plain());
        let gone = desk.slots("a", 1);
        assert!(desk.balancer.remove(gone, desk.now));
        let here = desk.slots("b", 1);
        assert_eq!(gone.index(), here.index(), "its place is used again");
        desk.set(gone, Standing::Draining);
        desk.balancer.set_slots(gone, Some(0), desk.now);
        assert_eq!(desk.lost(gone), []);
        assert_eq!(desk.given().worker, here);
        assert!(!desk.balancer.remove(here, desk.now), "it has a request");
    }

    #[test]
    fn a_new_worker_is_brought_up_in_steps() {
        let mut desk = desk(Rules {
            slow_start: ms(1600),
            ..plain()
        });
        let old = desk.slots("old", 16);
        desk.pass(ms(1600));
        let new = desk.slots("new", 16);
        assert_eq!(desk.balancer.credit(old), Some(16));
        assert_eq!(desk.balancer.credit(new), Some(1));
        desk.pass(ms(800));
        assert_eq!(desk.balancer.credit(new), Some(9));
        let mut ticks = 0;
        while let Some(due) = desk.balancer.due() {
            desk.pass(due - desk.now);
            ticks += 1;
            assert!(ticks < 20, "each step is one tick");
        }
        assert_eq!(desk.balancer.credit(new), Some(16));
    }

    #[test]
    fn nobody_is_spared_when_all_are_new() {
        let mut desk = desk(Rules {
            slow_start: ms(1600),
            ..plain()
        });
        let a = desk.slots("a", 16);
        let b = desk.slots("b", 16);
        assert_eq!(desk.balancer.credit(a), Some(16));
        assert_eq!(desk.balancer.credit(b), Some(16));
    }
}

mod credit {
    use super::*;

    fn taught(median: Duration, hop: Duration, slots: u32) -> Option<u32> {
        let mut desk = desk(plain());
        let worker = desk.slots("a", slots);
        for _ in 0..32 {
            desk.given();
            desk.served_in(worker, median);
        }
        desk.balancer.set_hop(worker, hop);
        desk.balancer.check_invariants();
        desk.balancer.credit(worker)
    }

    #[test]
    fn a_worker_holds_its_slots_and_what_a_hop_costs_and_never_two_more() {
        let micros = Duration::from_micros;
        assert_eq!(taught(ms(10), Duration::ZERO, 8), Some(8));
        assert_eq!(taught(ms(10), micros(100), 8), Some(8), "not worth it");
        assert_eq!(taught(ms(10), ms(1), 1), Some(2));
        assert_eq!(taught(ms(10), ms(4), 2), Some(3));
        assert_eq!(taught(ms(10), ms(4), 3), Some(5));
        assert_eq!(taught(micros(50), ms(1), 8), Some(10), "two at most");
        assert_eq!(taught(micros(50), ms(1), 1), Some(3), "two at most");
    }

    #[test]
    fn an_unknown_worker_holds_no_more_than_its_slots() {
        let mut desk = desk(plain());
        let worker = desk.slots("a", 4);
        desk.balancer.set_hop(worker, ms(100));
        assert_eq!(desk.balancer.credit(worker), Some(4));
    }

    #[test]
    fn the_rules_speak_for_workers_that_say_nothing() {
        let mut desk = desk(Rules {
            slots: Some(2),
            ..plain()
        });
        let silent = desk.worker(NewWorker::default());
        assert_eq!(desk.balancer.credit(silent), Some(2));
        desk.balancer.set_rules(plain(), desk.now);
        assert_eq!(desk.balancer.credit(silent), None, "no wall");
    }

    #[test]
    fn a_worker_that_takes_slots_back_keeps_what_it_has() {
        let mut desk = desk(plain());
        let worker = desk.slots("a", 3);
        let open = [desk.given(), desk.given(), desk.given()];
        desk.balancer.set_slots(worker, Some(1), desk.now);
        desk.submit();
        desk.end(open[0].request);
        desk.end(open[1].request);
        assert_eq!(desk.next(), None, "it has one still");
        desk.balancer.set_slots(worker, Some(0), desk.now);
        desk.end(open[2].request);
        assert_eq!(desk.next(), None, "it wants none");
        desk.balancer.set_slots(worker, Some(1), desk.now);
        assert!(desk.next().is_some());
    }
}

mod queue {
    use super::*;

    #[test]
    fn what_waits_is_handed_over_in_its_order() {
        let mut desk = desk(plain());
        let requests: Vec<Request> = (0..10).map(|_| desk.submit()).collect();
        desk.slots("a", 100);
        for request in requests {
            assert_eq!(desk.next().map(|next| next.request), Some(request));
        }
        assert_eq!(desk.next(), None);
    }

    #[test]
    fn the_queue_is_bounded_by_count() {
        let mut desk = desk(Rules {
            queue_max: 3,
            ..plain()
        });
        desk.slots("a", 1);
        desk.given();
        for _ in 0..3 {
            desk.submit();
        }
        let refusal = desk.submit_all(NewRequest::default()).unwrap_err();
        assert_eq!(refusal.why, Failure::QueueFull);
        assert_eq!(desk.balancer.counts().shed_queue_full, 1);
        assert_eq!(desk.balancer.waiting(), 3);
    }

    #[test]
    fn the_queue_is_bounded_by_the_slots_of_those_that_are_there() {
        let mut desk = desk(Rules {
            queue_per_slot: Some(4),
            ..plain()
        });
        assert_eq!(desk.balancer.queue_max(), 4096, "a deploy may take time");
        let worker = desk.slots("a", 2);
        desk.slots("b", 1);
        assert_eq!(desk.balancer.queue_max(), 12);
        desk.set(worker, Standing::Draining);
        assert_eq!(desk.balancer.queue_max(), 4);
        desk.worker(NewWorker::default());
        assert_eq!(desk.balancer.queue_max(), 4096, "one does not say how many");
    }

    #[test]
    fn what_comes_while_nobody_takes_anything_waits_like_what_comes_while_nobody_is_there() {
        let mut desk = desk(Rules {
            queue_per_slot: Some(4),
            ..plain()
        });
        let worker = desk.slots("a", 2);
        desk.balancer.set_slots(worker, Some(0), desk.now);
        desk.submit();
        assert_eq!(desk.next(), None);
        desk.balancer.set_slots(worker, Some(2), desk.now);
        assert!(desk.next().is_some());
    }

    #[test]
    fn the_queue_is_bounded_by_bytes() {
        let mut desk = desk(Rules {
            queue_bytes_max: 250,
            ..plain()
        });
        desk.submit();
        desk.submit();
        let big = NewRequest {
            bytes: 51,
            ..NewRequest::default()
        };
        let refusal = desk.submit_all(big).unwrap_err();
        assert_eq!(refusal.why, Failure::QueueFull);
        let small = NewRequest { bytes: 50, ..big };
        assert!(desk.submit_all(small).is_ok());
        assert_eq!(desk.balancer.waiting_bytes(), 250);
    }

    #[test]
    fn a_request_that_need_not_wait_needs_no_queue() {
        let mut desk = desk(Rules {
            queue_max: 0,
            queue_bytes_max: 0,
            ..plain()
        });
        desk.slots("a", 1);
        desk.given();
        assert!(desk.submit_all(NewRequest::default()).is_err());
    }

    #[test]
    fn a_request_waits_no_longer_than_it_may() {
        let mut desk = desk(plain());
        desk.slots("a", 1);
        desk.given();
        let old = desk.submit();
        assert_eq!(desk.pass(ms(10_000)), []);
        let young = desk.submit();
        assert_eq!(desk.balancer.due(), Some(desk.now + ms(20_000)));
        let events = desk.pass(ms(20_000));
        assert_eq!(events, [Event::Failed(old, Failure::WaitOver)]);
        assert_eq!(desk.balancer.phase(old), Some(Phase::Failed));
        assert_eq!(desk.balancer.phase(young), Some(Phase::Waiting));
        desk.end(old);
        assert_eq!(desk.balancer.phase(old), None);
    }

    #[test]
    fn without_workers_a_request_waits_for_as_long_as_a_deploy_takes() {
        let mut desk = desk(Rules {
            start_grace: ms(2_000),
            ..plain()
        });
        let request = desk.submit();
        assert_eq!(desk.pass(ms(1_999)), []);
        let events = desk.pass(ms(1));
        assert_eq!(events, [Event::Failed(request, Failure::NoWorker)]);
        let later = desk.submit();
        desk.pass(ms(1_000));
        desk.slots("a", 1);
        assert_eq!(desk.next().map(|next| next.request), Some(later));
    }

    #[test]
    fn the_grace_begins_when_the_last_worker_leaves_and_ends_when_one_comes() {
        let mut desk = desk(Rules {
            start_grace: ms(2_000),
            ..plain()
        });
        let worker = desk.slots("a", 1);
        desk.given();
        let waiting = desk.submit();
        desk.pass(ms(10_000));
        desk.set(worker, Standing::Draining);
        assert_eq!(desk.balancer.due(), Some(desk.now + ms(2_000)));
        desk.pass(ms(1_000));
        let held = desk.worker(NewWorker {
            standing: Standing::Held,
            ..NewWorker::default()
        });
        assert_eq!(desk.pass(ms(10_000)), [], "somebody is there");
        assert!(desk.balancer.remove(held, desk.now));
        let events = desk.pass(ms(2_000));
        assert_eq!(events, [Event::Failed(waiting, Failure::NoWorker)]);
    }

    #[test]
    fn no_grace_means_that_a_request_without_workers_is_refused() {
        let mut desk = desk(Rules {
            start_grace: Duration::ZERO,
            ..plain()
        });
        let refusal = desk.submit_all(NewRequest::default()).unwrap_err();
        assert_eq!(refusal.why, Failure::NoWorker);
    }

    #[test]
    fn a_client_that_leaves_leaves_the_queue() {
        let mut desk = desk(plain());
        let [first, second, third] = [desk.submit(), desk.submit(), desk.submit()];
        desk.end(second);
        assert_eq!(desk.balancer.waiting_bytes(), 200);
        desk.slots("a", 10);
        assert_eq!(desk.next().map(|next| next.request), Some(first));
        assert_eq!(desk.next().map(|next| next.request), Some(third));
        assert_eq!(desk.next(), None);
    }

    #[test]
    fn what_was_not_written_is_first_again_and_the_attempt_does_not_count() {
        let mut desk = desk(plain());
        let worker = desk.slots("a", 2);
        let [first, second] = [desk.given(), desk.given()];
        desk.submit();
        desk.set(worker, Standing::Held);
        desk.balancer.unsent(second.request, desk.now);
        desk.balancer.unsent(first.request, desk.now);
        desk.balancer.check_invariants();
        desk.set(worker, Standing::Ready);
        for expected in [first, second] {
            let next = desk.next().unwrap();
            assert_eq!((next.request, next.attempt), (expected.request, 1));
        }
    }

    #[test]
    fn what_nobody_wants_and_was_not_written_is_forgotten_by_its_worker() {
        let mut desk = desk(plain());
        let worker = desk.slots("a", 1);
        let given = desk.given();
        assert!(desk.balancer.abandon(given.request, desk.now));
        desk.balancer.unsent(given.request, desk.now);
        desk.balancer.check_invariants();
        assert_eq!(desk.balancer.open(worker), 0);
        assert_eq!(desk.balancer.waiting(), 0);
        assert_eq!(desk.balancer.phase(given.request), Some(Phase::Failed));
        desk.end(given.request);
        assert_eq!(desk.balancer.phase(given.request), None);
    }

    #[test]
    fn those_who_are_refused_are_told_when_to_come_again() {
        let mut desk = desk(Rules {
            queue_max: 100,
            ..plain()
        });
        let worker = desk.slots("a", 1);
        for _ in 0..100 {
            desk.given();
            desk.now += ms(200);
            desk.served_in(worker, ms(200));
        }
        desk.given();
        for _ in 0..100 {
            desk.submit();
        }
        let times: Vec<u64> = (0..20)
            .map(|_| {
                let refusal = desk.submit_all(NewRequest::default()).unwrap_err();
                u64::try_from(refusal.retry_after.as_millis()).unwrap()
            })
            .collect();
        // 101 of 200 ms each, and up to half of it more.
        assert!(
            times.iter().all(|time| (20_000..31_000).contains(time)),
            "{times:?}"
        );
        assert!(times.iter().max() > times.iter().min(), "not all at once");
    }

    #[test]
    fn under_long_overload_the_youngest_come_first_and_else_the_oldest() {
        let mut desk = desk(Rules {
            order: Order::AdaptiveLifo { target: ms(50) },
            ..plain()
        });
        let worker = desk.slots("a", 1);
        desk.given();
        let requests: Vec<Request> = (0..6).map(|_| desk.submit()).collect();
        desk.served_in(worker, ms(1));
        assert_eq!(desk.next().map(|next| next.request), Some(requests[0]));
        desk.now += ms(60);
        desk.served_in(worker, ms(1));
        let next = desk.next().map(|next| next.request);
        assert_eq!(next, Some(requests[1]), "it is not long yet");
        desk.now += ms(100);
        desk.served_in(worker, ms(1));
        let next = desk.next().map(|next| next.request);
        assert_eq!(next, Some(requests[5]), "now it is");
        assert_eq!(desk.balancer.counts().youngest_first, 1);
        for request in &requests[2..5] {
            desk.end(*request);
        }
        desk.served_in(worker, ms(1));
        assert_eq!(desk.next(), None);
        let fresh = [desk.submit(), desk.submit()];
        let next = desk.next().map(|next| next.request);
        assert_eq!(next, Some(fresh[0]), "it is over");
    }
}

#[test]
fn no_word_of_a_worker_and_no_rule_is_too_big() {
    let most = Rules {
        slots: Some(u32::MAX),
        prefetch_max: u32::MAX,
        queue_max: usize::MAX,
        queue_per_slot: Some(u32::MAX),
        queue_bytes_max: usize::MAX,
        wait_max: Duration::MAX,
        start_grace: Duration::MAX,
        retry_budget: Some(f64::INFINITY),
        outlier: Some(Outlier {
            factor: f64::INFINITY,
            excess: Duration::MAX,
            samples_min: 1,
            ejection: Duration::MAX,
            ..Outlier::default()
        }),
        suspect_grace: Duration::MAX,
        sticky: Some(Sticky {
            bound: f64::INFINITY,
            strict: Some(Duration::MAX),
        }),
        slow_start: Duration::MAX,
        ..Rules::default()
    };
    let now = start();
    let mut balancer = Balancer::new(most, 1);
    for name in ["a", "b", "c", "d"] {
        let worker = NewWorker {
            name: name.as_bytes(),
            slots: Some(u32::MAX),
            weight: u32::MAX,
            ..NewWorker::default()
        };
        let worker = balancer.add(worker, now);
        balancer.set_hop(worker, Duration::MAX);
    }
    for key in 0..100 {
        let request = NewRequest {
            bytes: usize::MAX,
            key: Some(key),
            ..NewRequest::default()
        };
        let request = balancer.submit(request, now).unwrap();
        balancer.next(now).unwrap();
        balancer.end(request, now, Some(Duration::MAX));
    }
    balancer.tick(now + ms(60_000));
    assert_eq!(balancer.counts().served, 100);
}

#[test]
fn a_burst_against_stuck_workers_is_refused_beyond_the_queue() {
    let mut desk = desk(Rules::default());
    for name in ["a", "b", "c", "d"] {
        desk.slots(name, 4);
    }
    let mut refused = 0;
    for _ in 0..100_000 {
        match desk.balancer.submit(NewRequest::default(), desk.now) {
            Ok(_) => while desk.balancer.next(desk.now).is_some() {},
            Err(refusal) => {
                assert_eq!(refusal.why, Failure::QueueFull);
                assert!(refusal.retry_after >= Duration::from_secs(1));
                refused += 1;
            }
        }
    }
    desk.balancer.check_invariants();
    assert_eq!(desk.balancer.in_flight(), 16);
    assert_eq!(desk.balancer.waiting(), 64, "four for each slot");
    assert_eq!(refused, 100_000 - 80);
}

#[test]
fn time_does_not_go_back() {
    let mut desk = desk(plain());
    let request = desk.submit();
    desk.pass(ms(30_000));
    assert_eq!(desk.balancer.phase(request), Some(Phase::Failed));
    desk.now -= ms(29_000);
    let later = desk.submit();
    assert_eq!(desk.pass(ms(29_999)), []);
    assert_eq!(desk.balancer.phase(later), Some(Phase::Waiting));
}

#[test]
fn the_tables_do_not_grow_with_the_requests() {
    let mut desk = desk(plain());
    let worker = desk.slots("a", 4);
    for _ in 0..20_000 {
        let request = NewRequest {
            deadline: Some(desk.now + ms(60_000)),
            ..NewRequest::default()
        };
        let request = desk.balancer.submit(request, desk.now).unwrap();
        desk.balancer.next(desk.now).unwrap();
        desk.balancer.end(request, desk.now, Some(ms(1)));
    }
    desk.balancer.check_invariants();
    assert!(desk.balancer.timers.len() < 1000);
    assert_eq!(desk.balancer.served(worker), 20_000);
}
