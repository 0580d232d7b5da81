//! What the balancer promises, rule by rule.

use std::time::{Duration, Instant};

use super::*;

/// A time to count from.
pub(super) fn start() -> Instant {
    Instant::now()
}

/// A balancer with a clock, which checks itself after each step.
struct Desk {
    balancer: Balancer,
    now: Instant,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn desk(rules: Rules) -> Desk {
    Desk {
        balancer: Balancer::new(rules, 1),
        now: start(),
    }
}

/// No wall, no bounds that matter, nothing clever.
fn plain() -> Rules {
    Rules {
        outlier: None,
        ..Rules::for_front()
    }
}

impl Desk {
    fn worker(&mut self, worker: NewWorker<'_>) -> Worker {
        let key = self.balancer.add(worker, self.now);
        self.balancer.check_invariants();
        key
    }

    fn slots(&mut self, name: &str, slots: u32) -> Worker {
        self.worker(NewWorker {
            name: name.as_bytes(),
            slots: Some(slots),
            tells_start: true,
            ..NewWorker::default()
        })
    }

    fn submit_all(&mut self, request: NewRequest) -> Result<Request, Refusal> {
        let key = self.balancer.submit(request, self.now);
        self.balancer.check_invariants();
        key
    }

    fn submit(&mut self) -> Request {
        let request = NewRequest {
            bytes: 100,
            retry: Retry::Safe,
            ..NewRequest::default()
        };
        self.submit_all(request).expect("it is taken")
    }

    fn next(&mut self) -> Option<Assignment> {
        let next = self.balancer.next(self.now);
        self.balancer.check_invariants();
        next
    }

    /// A request that some worker gets at once.
    fn given(&mut self) -> Assignment {
        let request = self.submit();
        let next = self.next().expect("somebody takes it");
        assert_eq!(next.request, request);
        next
    }

    fn end(&mut self, request: Request) {
        self.balancer.end(request, self.now, None);
        self.balancer.check_invariants();
    }

    fn served_in(&mut self, worker: Worker, service: Duration) {
        let open = self
            .balancer
            .requests_of(worker)
            .next()
            .expect("it has one");
        self.balancer.end(open, self.now, Some(service));
        self.balancer.check_invariants();
    }

    fn lost(&mut self, worker: Worker) -> Vec<Lost> {
        let lost = self.balancer.lost(worker, self.now, &mut |_| true);
        self.balancer.check_invariants();
        lost
    }

    fn set(&mut self, worker: Worker, standing: Standing) {
        self.balancer.set(worker, standing, self.now);
        self.balancer.check_invariants();
    }

    fn pass(&mut self, time: Duration) -> Vec<Event> {
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
        assert_eq!(
            taught(ms(10), micros(100), 1),
            Some(2),
            "ceil of one percent"
        );
        assert_eq!(taught(ms(10), Duration::ZERO, 8), Some(8));
        assert_eq!(taught(ms(10), ms(5), 2), Some(3));
        assert_eq!(taught(ms(10), ms(5), 3), Some(5));
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
