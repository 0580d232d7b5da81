//! What must be true of a balancer after every step, worked out anew from its workers and requests. For tests.

use super::list::{List, NONE};
use super::requests::State;
use super::{Balancer, Standing};

impl Balancer {
    /// Panics when counts, lists, order, times and standing do not agree.
    pub(crate) fn check_invariants(&self) {
        self.check_lists();
        self.check_workers();
        self.check_queue();
        self.check_times();
    }

    /// The members of a list, whose links agree in both directions.
    fn members(&self, list: &List) -> Vec<u32> {
        let mut found = Vec::new();
        let (mut before, mut next) = (NONE, list.head);
        while next != NONE {
            let open = self.requests.get(next).expect("a member is a request");
            assert_eq!(open.links.before, before, "links agree");
            found.push(next);
            assert!(found.len() <= list.len, "a list ends");
            before = next;
            next = open.links.behind;
        }
        assert_eq!(list.tail, before, "the tail is the last");
        assert_eq!(list.len, found.len(), "the length is right");
        found
    }

    /// One more than the highest index of a request.
    fn marks(&self) -> usize {
        let all = self.requests.iter();
        all.map(|(index, _)| index as usize + 1).max().unwrap_or(0)
    }

    /// Each request is in the list that its state names, and in no other.
    fn check_lists(&self) {
        let mut listed = vec![false; self.marks()];
        for index in self.members(&self.queue) {
            let open = self.requests.get(index).expect("it was found");
            assert_eq!(open.state, State::Waiting);
            let twice = std::mem::replace(&mut listed[index as usize], true);
            assert!(!twice, "a request is in one list");
        }
        for (place, entry) in &self.workers {
            let place = u32::try_from(place).expect("few workers");
            for index in self.members(&entry.strict) {
                let open = self.requests.get(index).expect("it was found");
                assert_eq!(open.state, State::Strict(place));
                let twice = std::mem::replace(&mut listed[index as usize], true);
                assert!(!twice, "a request is in one list");
            }
            for index in self.members(&entry.held) {
                let open = self.requests.get(index).expect("it was found");
                assert_eq!(open.state.holder(), Some(place));
                let twice = std::mem::replace(&mut listed[index as usize], true);
                assert!(!twice, "a request is in one list");
            }
        }
        for (index, open) in self.requests.iter() {
            assert_eq!(
                listed[index as usize],
                open.state != State::Failed,
                "whatever has not failed is in a list: {open:?}"
            );
        }
    }

    fn check_workers(&self) {
        let mut in_flight = 0;
        for worker in self.workers() {
            let entry = self.entry(worker).expect("it is there");
            let states = || {
                let open = self.requests_of(worker);
                open.filter_map(|request| Some(self.requests.find(request)?.state))
            };
            let open = states().filter(|state| state.is_in_flight()).count();
            assert_eq!(entry.open as usize, open, "in flight is exact");
            assert!(
                entry.attached as usize >= states().count() - open,
                "streams are counted"
            );
            in_flight += entry.open;
            let has_room = entry.standing == Standing::Ready
                && entry.ejected_until.is_none()
                && self
                    .credit(worker)
                    .is_none_or(|credit| entry.taken() < credit);
            assert_eq!(
                self.ready.contains(worker.index),
                has_room,
                "who is ready and has room may get requests, and nobody else"
            );
            assert_eq!(
                self.suspects.iter().filter(|w| **w == worker).count(),
                usize::from(entry.standing == Standing::Suspect)
            );
            assert_eq!(
                self.ejected.iter().filter(|w| **w == worker).count(),
                usize::from(entry.ejected_until.is_some())
            );
            if has_room && !entry.strict.is_empty() {
                assert!(
                    entry.called && self.called.contains(&worker.index),
                    "nobody waits for a worker that could take him"
                );
            }
        }
        assert_eq!(self.in_flight, in_flight);
        let first = self.ready.iter().min();
        assert_eq!(self.ready.first(), first, "the best is the first");
        assert!(self.ready.len() <= self.workers.len());
        let present = self.workers.iter();
        let present = present.filter(|(_, entry)| entry.standing != Standing::Draining);
        assert_eq!(self.present as usize, present.count());
        assert!(
            self.called.len() <= 2 * self.workers.len() + 16,
            "it is bounded"
        );
    }

    fn check_queue(&self) {
        let waiting = || {
            let all = self.requests.iter();
            all.filter(|(_, open)| open.state.waits())
        };
        assert_eq!(self.waiting, waiting().count());
        let bytes: usize = waiting().map(|(_, open)| open.bytes).sum();
        assert_eq!(self.waiting_bytes, bytes);
        let orders: Vec<i64> = self
            .members(&self.queue)
            .iter()
            .filter_map(|index| self.requests.get(*index))
            .map(|open| open.order)
            .collect();
        assert!(orders.is_sorted(), "the queue is in its order: {orders:?}");
        for (_, entry) in &self.workers {
            if entry.standing == Standing::Draining {
                assert!(entry.strict.is_empty(), "nobody waits for who leaves");
            }
        }
        // What came back is not counted, and a request that is about to be handed over is let in although the queue is full.
        let fresh = waiting().filter(|(_, open)| open.order >= 0).count();
        assert!(
            fresh <= self.rules.queue_max + 1 + self.workers.len(),
            "the queue is bounded"
        );
    }

    fn check_times(&self) {
        let mut set = vec![false; self.marks()];
        for (at, whose) in self.timers.iter() {
            if self.requests.is_set(at, whose) {
                set[whose.0 as usize] = true;
            }
        }
        for (index, open) in self.requests.iter() {
            assert_eq!(set[index as usize], open.timer.is_some());
            if open.state.waits() {
                let latest = open.since + self.rules.wait_max;
                let at = open.timer.expect("whoever waits does not wait for ever");
                assert!(at <= latest);
            }
        }
        assert!(
            self.timers.len() <= 2 * self.requests.len() + 4 * self.rules.queue_max + 1024,
            "stale times are swept"
        );
    }
}
