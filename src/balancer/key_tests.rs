//! What the balancer promises to requests with a key.

use std::time::Duration;

use super::tests::{Desk, desk, ms, plain};
use super::*;

fn sticky(strict: Option<Duration>) -> Rules {
    Rules {
        sticky: Some(Sticky {
            bound: 1.25,
            strict,
        }),
        ..plain()
    }
}

fn keyed(key: u64) -> NewRequest {
    NewRequest {
        key: Some(key),
        ..NewRequest::default()
    }
}

fn home(desk: &mut Desk, key: u64) -> Worker {
    let request = desk.submit_all(keyed(key)).unwrap();
    let next = desk.next().unwrap();
    assert_eq!(next.request, request);
    desk.end(request);
    next.worker
}

#[test]
fn the_requests_of_a_key_go_to_one_worker_and_those_of_many_to_all() {
    let mut desk = desk(sticky(None));
    let workers: Vec<Worker> = (0..4).map(|n| desk.slots(&format!("w{n}"), 8)).collect();
    let homes: Vec<Worker> = (0..100).map(|key| home(&mut desk, key)).collect();
    let again: Vec<Worker> = (0..100).map(|key| home(&mut desk, key)).collect();
    assert_eq!(homes, again);
    assert!(workers.iter().all(|worker| homes.contains(worker)));
}

#[test]
fn a_worker_that_goes_moves_only_its_own_keys_and_gets_them_back() {
    let mut desk = desk(sticky(None));
    let workers: Vec<Worker> = (0..4).map(|n| desk.slots(&format!("w{n}"), 8)).collect();
    let before: Vec<Worker> = (0..200).map(|key| home(&mut desk, key)).collect();
    desk.lost(workers[2]);
    let without: Vec<Worker> = (0..200).map(|key| home(&mut desk, key)).collect();
    for (was, is) in before.iter().zip(&without) {
        assert!(was == is || *was == workers[2]);
        assert_ne!(*is, workers[2]);
    }
    let back = desk.slots("w2", 8);
    for (key, was) in (0..200).zip(&before) {
        let expected = if *was == workers[2] { back } else { *was };
        assert_eq!(home(&mut desk, key), expected);
    }
}

#[test]
fn a_key_yields_when_its_worker_has_more_than_its_share() {
    let mut desk = desk(sticky(None));
    let workers: Vec<Worker> = (0..4).map(|n| desk.slots(&format!("w{n}"), 1000)).collect();
    for _ in 0..400 {
        desk.submit_all(keyed(7)).unwrap();
        desk.next().unwrap();
        let open = workers.iter().map(|w| desk.balancer.open(*w));
        let (most, all) = (open.clone().max().unwrap(), open.sum::<u32>());
        assert!(f64::from(most) < 1.25 * f64::from(all) / 4.0 + 1.0);
    }
}

#[test]
fn a_strict_key_waits_for_its_worker_and_nobody_waits_behind_it() {
    let mut desk = desk(sticky(Some(ms(500))));
    let workers = [desk.slots("a", 1), desk.slots("b", 1)];
    let home = home(&mut desk, 7);
    let other = workers[usize::from(home == workers[0])];
    let busy = desk.submit_all(keyed(7)).unwrap();
    desk.next().unwrap();
    let strict = desk.submit_all(keyed(7)).unwrap();
    assert_eq!(desk.next(), None, "its worker is busy");
    let free = desk.submit_all(NewRequest::default()).unwrap();
    let next = desk.next().unwrap();
    assert_eq!((next.request, next.worker), (free, other));
    desk.end(busy);
    let next = desk.next().unwrap();
    assert_eq!((next.request, next.worker), (strict, home));
}

#[test]
fn a_strict_key_takes_any_worker_after_a_while() {
    let mut desk = desk(sticky(Some(ms(500))));
    let workers = [desk.slots("a", 1), desk.slots("b", 1)];
    let home = home(&mut desk, 7);
    let other = workers[usize::from(home == workers[0])];
    desk.submit_all(keyed(7)).unwrap();
    desk.next().unwrap();
    let strict = desk.submit_all(keyed(7)).unwrap();
    assert_eq!(desk.balancer.due(), Some(desk.now + ms(500)));
    assert_eq!(desk.pass(ms(500)), []);
    let next = desk.next().unwrap();
    assert_eq!((next.request, next.worker), (strict, other));
    assert_eq!(desk.balancer.counts().strict_given_up, 1);
}

#[test]
fn a_strict_key_whose_worker_goes_waits_for_the_next_one() {
    let mut desk = desk(sticky(Some(ms(500))));
    let workers = [desk.slots("a", 1), desk.slots("b", 1)];
    let home = home(&mut desk, 7);
    let other = workers[usize::from(home == workers[0])];
    let busy = desk.submit_all(keyed(7)).unwrap();
    desk.next().unwrap();
    let strict = desk.submit_all(keyed(7)).unwrap();
    desk.set(home, Standing::Draining);
    let next = desk.next().unwrap();
    assert_eq!((next.request, next.worker), (strict, other));
    desk.end(busy);
    desk.end(strict);
    desk.set(other, Standing::Held);
    let strict = desk.submit_all(keyed(7)).unwrap();
    desk.set(home, Standing::Ready);
    let next = desk.next().unwrap();
    assert_eq!((next.request, next.worker), (strict, home));
}

#[test]
fn who_came_first_is_first_whether_he_wants_one_worker_or_any() {
    for strict_first in [true, false] {
        let mut desk = desk(sticky(Some(ms(500))));
        let only = desk.slots("a", 1);
        let busy = desk.given();
        let (first, second) = if strict_first {
            (keyed(1), NewRequest::default())
        } else {
            (NewRequest::default(), keyed(1))
        };
        let first = desk.submit_all(first).unwrap();
        let second = desk.submit_all(second).unwrap();
        desk.end(busy.request);
        assert_eq!(desk.next().map(|next| next.request), Some(first));
        desk.served_in(only, ms(1));
        assert_eq!(desk.next().map(|next| next.request), Some(second));
    }
}

#[test]
fn connections_with_a_key_are_attached_to_its_worker() {
    let mut desk = desk(sticky(None));
    for number in 0..4 {
        desk.slots(&format!("w{number}"), 8);
    }
    for key in 0..50 {
        let home = home(&mut desk, key);
        assert_eq!(desk.balancer.pick_attached_by(Some(key)), Some(home));
    }
}
