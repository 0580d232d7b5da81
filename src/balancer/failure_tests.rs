//! What the balancer promises when deadlines pass, workers die or are slow.

use std::time::Duration;

use super::tests::{Desk, desk, ms, plain};
use super::*;

mod deadlines {
    use super::*;

    fn until(desk: &Desk, left: Duration) -> NewRequest {
        NewRequest {
            retry: Retry::Safe,
            deadline: Some(desk.now + left),
            ..NewRequest::default()
        }
    }

    #[test]
    fn a_request_whose_deadline_is_over_is_refused() {
        let mut desk = desk(plain());
        desk.slots("a", 1);
        let request = until(&desk, Duration::ZERO);
        let refusal = desk.submit_all(request).unwrap_err();
        assert_eq!(refusal.why, Failure::DeadlineOver);
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let mut desk = desk(plain());
        let request = until(&desk, ms(300));
        let request = desk.submit_all(request).unwrap();
        let events = desk.pass(ms(300));
        assert_eq!(events, [Event::Failed(request, Failure::DeadlineOver)]);
        assert_eq!(desk.balancer.counts().failed_deadline_waiting, 1);
    }

    #[test]
    fn a_deadline_ends_a_request_that_a_worker_has_and_its_slot_is_not_free_before_the_worker_is() {
        let mut desk = desk(plain());
        let worker = desk.slots("a", 1);
        let request = until(&desk, ms(300));
        let request = desk.submit_all(request).unwrap();
        desk.next();
        desk.balancer.began(request);
        let events = desk.pass(ms(300));
        assert_eq!(events, [Event::Failed(request, Failure::DeadlineOver)]);
        assert_eq!(desk.pass(ms(300)), [], "once");
        assert_eq!(desk.balancer.phase(request), Some(Phase::Failed));
        assert_eq!(desk.balancer.worker_of(request), Some(worker));
        desk.submit();
        assert_eq!(desk.next(), None);
        desk.end(request);
        assert!(desk.next().is_some());
    }

    #[test]
    fn a_stream_has_no_deadline() {
        let mut desk = desk(plain());
        desk.slots("a", 1);
        let request = until(&desk, ms(300));
        let request = desk.submit_all(request).unwrap();
        desk.next();
        desk.balancer.attach(request, desk.now);
        assert_eq!(
            desk.balancer.due(),
            Some(desk.now + ms(300)),
            "a stale time"
        );
        assert_eq!(desk.pass(ms(300)), []);
        assert_eq!(desk.balancer.due(), None);
    }

    #[test]
    fn an_answer_that_has_begun_has_no_deadline() {
        let mut desk = desk(plain());
        desk.slots("a", 1);
        let request = until(&desk, ms(300));
        let request = desk.submit_all(request).unwrap();
        desk.next();
        desk.balancer.began(request);
        desk.balancer.lift_deadline(request);
        assert_eq!(desk.pass(ms(300)), []);
        assert_eq!(desk.balancer.phase(request), Some(Phase::Begun));
    }

    #[test]
    fn a_deadline_ends_a_request_that_its_worker_is_done_with_without_an_answer() {
        let mut desk = desk(plain());
        let worker = desk.slots("a", 1);
        let request = until(&desk, ms(300));
        let request = desk.submit_all(request).unwrap();
        desk.next();
        desk.balancer.free(request, desk.now);
        assert_eq!(
            (desk.balancer.open(worker), desk.balancer.attached(worker)),
            (0, 1)
        );
        let events = desk.pass(ms(300));
        assert_eq!(events, [Event::Failed(request, Failure::DeadlineOver)]);
        assert_eq!(desk.balancer.attached(worker), 0);
        assert_eq!(desk.balancer.worker_of(request), None);
        desk.end(request);
    }

    #[test]
    fn a_request_that_would_be_too_late_is_refused_at_once_if_the_rules_want_that() {
        for shed_late in [true, false] {
            let mut desk = desk(Rules {
                shed_late,
                ..plain()
            });
            let worker = desk.slots("a", 1);
            for _ in 0..20 {
                desk.given();
                desk.now += ms(100);
                desk.served_in(worker, ms(100));
            }
            desk.given();
            for _ in 0..9 {
                desk.submit();
            }
            let late = until(&desk, ms(900));
            assert_eq!(desk.submit_all(late).is_err(), shed_late);
            assert_eq!(desk.balancer.counts().shed_late, u64::from(shed_late));
            let in_time = until(&desk, ms(1_500));
            assert!(desk.submit_all(in_time).is_ok());
        }
    }

    #[test]
    fn the_answer_that_nobody_wants_keeps_its_worker_busy() {
        let mut desk = desk(plain());
        let worker = desk.slots("a", 1);
        let gone = desk.given();
        let waiting = desk.submit();
        assert!(desk.balancer.abandon(gone.request, desk.now));
        assert!(!desk.balancer.abandon(waiting, desk.now));
        desk.balancer.check_invariants();
        assert_eq!(desk.balancer.open(worker), 1);
        assert_eq!(desk.balancer.waiting(), 0);
        assert_eq!(desk.lost(worker), [], "it is nobody's loss");
        desk.end(gone.request);
    }
}

mod death {
    use super::*;

    #[test]
    fn what_was_not_begun_is_first_again_in_its_order_and_keeps_its_number() {
        let mut desk = desk(plain());
        let worker = desk.slots("a", 3);
        let given = [desk.given(), desk.given(), desk.given()];
        let behind = desk.submit();
        desk.balancer.began(given[1].request);
        desk.balancer.set_retry(given[1].request, Retry::Never);
        let lost = desk.lost(worker);
        let fates: Vec<Fate> = lost.iter().map(|lost| lost.fate).collect();
        assert_eq!(
            fates,
            [Fate::Again, Fate::Failed(Failure::WorkerLost), Fate::Again]
        );
        desk.slots("b", 3);
        for (request, attempt) in [(given[0].request, 2), (given[2].request, 2), (behind, 1)] {
            let next = desk.next().unwrap();
            assert_eq!((next.request, next.attempt), (request, attempt));
        }
        let counts = desk.balancer.counts();
        assert_eq!((counts.requeued, counts.failed_worker_lost), (2, 1));
    }

    #[test]
    fn at_a_worker_that_tells_no_start_everything_may_have_been_begun() {
        for (retry, fate) in [
            (Retry::Never, Fate::Failed(Failure::WorkerLost)),
            (Retry::Safe, Fate::Again),
        ] {
            let mut desk = desk(plain());
            let worker = desk.worker(NewWorker::default());
            let given = desk.given();
            desk.balancer.set_retry(given.request, retry);
            assert_eq!(desk.lost(worker)[0].fate, fate);
        }
    }

    #[test]
    fn a_stream_ends_with_its_worker() {
        let mut desk = desk(plain());
        let worker = desk.slots("a", 1);
        let stream = desk.given();
        desk.balancer.attach(stream.request, desk.now);
        let lost = desk.lost(worker);
        assert_eq!(lost[0].fate, Fate::Failed(Failure::WorkerLost));
        assert_eq!(desk.balancer.worker_of(stream.request), None);
    }

    #[test]
    fn a_request_that_killed_two_is_given_to_nobody_else() {
        let mut desk = desk(Rules {
            attempts_max: 10,
            ..plain()
        });
        desk.submit();
        for (name, fate) in [
            ("a", Fate::Again),
            ("b", Fate::Failed(Failure::Quarantined)),
        ] {
            let worker = desk.slots(name, 1);
            let next = desk.next().unwrap();
            desk.balancer.began(next.request);
            assert_eq!(desk.lost(worker)[0].fate, fate);
        }
        assert_eq!(desk.balancer.counts().quarantined, 1);
    }

    #[test]
    fn a_request_that_kills_before_anything_is_said_kills_no_third() {
        let mut desk = desk(plain());
        desk.submit();
        for (name, fate) in [
            ("a", Fate::Again),
            ("b", Fate::Failed(Failure::Quarantined)),
        ] {
            let worker = desk.slots(name, 1);
            desk.next().unwrap();
            assert_eq!(desk.lost(worker)[0].fate, fate);
        }
    }

    #[test]
    fn workers_that_had_others_to_do_make_no_request_suspect() {
        let mut desk = desk(plain());
        desk.submit();
        let fates: Vec<Fate> = ["a", "b", "c", "d"]
            .iter()
            .map(|name| {
                let worker = desk.slots(name, 2);
                desk.next().unwrap();
                // The one slot that it has now is another's.
                desk.balancer.set_slots(worker, Some(1), desk.now);
                desk.balancer.set_foreign(worker, 1);
                desk.lost(worker)[0].fate
            })
            .collect();
        assert_eq!(fates[..3], [Fate::Again; 3]);
        assert_eq!(fates[3], Fate::Failed(Failure::Quarantined));
    }

    #[test]
    fn a_request_is_not_begun_more_often_than_the_rules_say() {
        let mut desk = desk(Rules {
            attempts_max: 1,
            quarantine_after: 0,
            ..plain()
        });
        let worker = desk.slots("a", 1);
        let given = desk.given();
        desk.balancer.began(given.request);
        assert_eq!(desk.lost(worker)[0].fate, Fate::Failed(Failure::WorkerLost));
    }

    #[test]
    fn nothing_moves_that_its_owner_keeps() {
        let mut desk = desk(plain());
        let worker = desk.slots("a", 1);
        desk.given();
        let lost = desk.balancer.lost(worker, desk.now, &mut |_| false);
        assert_eq!(lost[0].fate, Fate::Failed(Failure::WorkerLost));
    }

    #[test]
    fn no_more_is_retried_than_the_budget_has() {
        let mut desk = desk(Rules {
            retry_budget: Some(0.2),
            ..plain()
        });
        let worker = desk.worker(NewWorker::default());
        for _ in 0..1000 {
            desk.given();
        }
        let lost = desk.lost(worker);
        let again = lost.iter().filter(|lost| lost.fate == Fate::Again).count();
        assert_eq!(again, 300, "a fifth of the traffic, and ten seconds' floor");
        assert_eq!(desk.balancer.counts().failed_over_budget, 700);
    }

    #[test]
    fn what_was_not_begun_costs_no_budget() {
        let mut desk = desk(Rules {
            retry_budget: Some(0.0),
            ..plain()
        });
        let worker = desk.slots("a", 1000);
        for _ in 0..1000 {
            desk.given();
        }
        let lost = desk.lost(worker);
        assert!(lost.iter().all(|lost| lost.fate == Fate::Again));
    }

    #[test]
    fn a_suspect_is_dead_after_a_while_unless_it_speaks() {
        let mut desk = desk(Rules {
            suspect_grace: ms(3_000),
            ..plain()
        });
        let worker = desk.slots("a", 1);
        desk.set(worker, Standing::Suspect);
        desk.pass(ms(2_000));
        desk.set(worker, Standing::Ready);
        assert_eq!(desk.pass(ms(10_000)), []);
        desk.set(worker, Standing::Suspect);
        assert_eq!(desk.balancer.due(), Some(desk.now + ms(3_000)));
        assert_eq!(desk.pass(ms(3_000)), [Event::Dead(worker)]);
        assert_eq!(desk.pass(ms(3_000)), [], "once");
        assert_eq!(desk.balancer.due(), None);
    }

    #[test]
    fn everything_that_waits_can_be_failed() {
        let mut desk = desk(plain());
        let requests = [desk.submit(), desk.submit()];
        assert_eq!(desk.balancer.fail_waiting(Failure::NoWorker), requests);
        desk.balancer.check_invariants();
        assert_eq!(desk.balancer.waiting(), 0);
    }
}

mod slow_workers {
    use super::*;

    /// Ten workers with one slot that take a millisecond, but the first `slow` take a second; until they were compared.
    fn crowd(slow: usize) -> (Desk, Vec<Worker>, Vec<Event>) {
        let mut desk = desk(Rules {
            outlier: Some(Outlier::default()),
            ..plain()
        });
        let workers: Vec<Worker> = (0..10)
            .map(|number| desk.slots(&format!("w{number}"), 1))
            .collect();
        for _ in 0..110 {
            for _ in 0..10 {
                desk.given();
            }
            for (number, worker) in workers.iter().enumerate() {
                desk.served_in(*worker, if number < slow { ms(1000) } else { ms(1) });
            }
        }
        let events = desk.pass(ms(5_000));
        (desk, workers, events)
    }

    #[test]
    fn a_worker_that_is_much_slower_is_left_out_for_a_while() {
        let (mut desk, workers, events) = crowd(1);
        assert_eq!(events, [Event::Ejected(workers[0])]);
        assert!(desk.balancer.is_ejected(workers[0]));
        for _ in 0..9 {
            assert_ne!(desk.given().worker, workers[0]);
        }
        desk.submit();
        assert_eq!(desk.next(), None);
        assert_eq!(desk.balancer.due(), Some(desk.now + ms(30_000)));
        let events = desk.pass(ms(30_000));
        assert!(events.contains(&Event::Returned(workers[0])));
        desk.submit();
        assert_eq!(desk.next().map(|next| next.worker), Some(workers[0]));
    }

    #[test]
    fn no_more_than_three_in_ten_are_left_out() {
        let (desk, workers, events) = crowd(4);
        assert_eq!(events.len(), 3);
        let out = workers.iter().filter(|w| desk.balancer.is_ejected(**w));
        assert_eq!(out.count(), 3);
    }

    #[test]
    fn when_most_are_slow_nobody_is() {
        let (_, _, events) = crowd(6);
        assert_eq!(events, []);
    }

    #[test]
    fn those_left_out_come_back_when_too_few_others_are_left() {
        let (mut desk, workers, _) = crowd(3);
        for worker in &workers[4..] {
            desk.balancer.lost(*worker, desk.now, &mut |_| true);
            desk.balancer.check_invariants();
        }
        let out = workers.iter().filter(|w| desk.balancer.is_ejected(**w));
        assert_eq!(out.count(), 1, "of four");
        desk.set(workers[3], Standing::Suspect);
        let out: Vec<&Worker> = workers
            .iter()
            .filter(|w| desk.balancer.is_ejected(**w))
            .collect();
        assert!(out.len() <= 1);
        assert!(desk.balancer.has_room());
        assert!(desk.balancer.due() <= Some(desk.now), "to be told at once");
    }

    #[test]
    fn rules_without_outliers_leave_out_nobody() {
        let (mut desk, workers, _) = crowd(1);
        desk.balancer.set_rules(plain(), desk.now);
        desk.balancer.check_invariants();
        assert!(!desk.balancer.is_ejected(workers[0]));
    }
}
