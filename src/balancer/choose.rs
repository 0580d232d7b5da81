//! Which worker a request goes to when it has a key, and whom those wait for that want one worker only.
//!
//! A request with a key takes the best worker of that key that has room and is not much busier than its share of all that is in
//! flight. If the rules are strict it waits for the very best first, in that worker's own list: nobody waits behind it who
//! could go elsewhere.

use super::rendezvous::{self, Score};
use super::requests::State;
use super::workers::Entry;
use super::{Balancer, Sticky, Worker};

impl Balancer {
    /// The worker for a request that goes to any with room.
    pub(super) fn choose(&self, key: Option<u64>) -> Option<u32> {
        let first = self.ready.first()?.worker;
        let by_key = key
            .zip(self.rules.sticky)
            .and_then(|(key, sticky)| self.best_within_bound(key, sticky));
        Some(by_key.unwrap_or(first))
    }

    /// The best worker of a key that has room, and with the request no more than `bound` times its share of what is in flight.
    fn best_within_bound(&self, key: u64, sticky: Sticky) -> Option<u32> {
        let slots = self.rules.slots;
        let sharing = self.workers.iter().filter(|(_, entry)| entry.shares());
        let (open, capacity) = sharing.fold((1, 0), |(open, capacity), (_, entry)| {
            (
                open + u64::from(entry.taken()),
                capacity + entry.capacity(slots),
            )
        });
        let ready = self.ready.iter().map(|rank| rank.worker);
        let within = ready.filter(|worker| {
            self.workers.get(*worker as usize).is_some_and(|entry| {
                u64::from(entry.taken())
                    < share(sticky.bound, open, entry.capacity(slots), capacity)
            })
        });
        self.best_of(key, within)
    }

    /// The worker with the highest score for a key.
    fn best_of(&self, key: u64, workers: impl Iterator<Item = u32>) -> Option<u32> {
        let mut best: Option<(Score, u32)> = None;
        for worker in workers {
            let Some(entry) = self.workers.get(worker as usize) else {
                continue;
            };
            let score = rendezvous::score(key, entry.name_hash, entry.key_weight);
            // Of two with the same name the one that stands first, whatever the order in which they are looked at.
            let beats = best.is_none_or(|(than, other)| {
                score.beats(than) || (!than.beats(score) && worker < other)
            });
            if beats {
                best = Some((score, worker));
            }
        }
        best.map(|(_, worker)| worker)
    }

    /// The best of all workers for a key that are there and that pass.
    fn home_among(&self, key: u64, passes: impl Fn(&Entry) -> bool) -> Option<u32> {
        let workers = self.workers.iter().filter(|(_, entry)| passes(entry));
        let indexes = workers.map(|(index, _)| u32::try_from(index).unwrap_or(u32::MAX));
        self.best_of(key, indexes)
    }

    /// The one worker that a request of this key waits for, if the rules are strict.
    pub(super) fn strict_home(&self, key: Option<u64>) -> Option<u32> {
        self.rules.sticky?.strict?;
        self.home_among(key?, |entry| entry.standing != super::Standing::Draining)
    }

    /// The worker for a connection that takes no slot: of those that get requests the one with the fewest streams for its share,
    /// else any that does not leave. Not counted until [`Balancer::attach_more`].
    pub fn pick_attached(&self) -> Option<Worker> {
        let slots = self.rules.slots;
        let least = |passes: fn(&Entry) -> bool| {
            let workers = self.workers().filter_map(|worker| {
                let entry = self.entry(worker).filter(|entry| passes(entry))?;
                let load = u128::from(entry.attached) << 32;
                Some((
                    load / u128::from(entry.capacity(slots)),
                    entry.taken(),
                    entry.turn,
                    worker,
                ))
            });
            workers.min().map(|(.., worker)| worker)
        };
        least(Entry::shares).or_else(|| least(|entry| entry.standing == super::Standing::Ready))
    }

    /// The same for a connection with a key: the best worker of that key. Without sticky rules the key says nothing.
    pub fn pick_attached_by(&self, key: Option<u64>) -> Option<Worker> {
        let best = key
            .filter(|_| self.rules.sticky.is_some())
            .and_then(|key| self.home_among(key, Entry::shares));
        best.map_or_else(|| self.pick_attached(), |index| self.key_of(index))
    }

    /// A worker that was called because requests wait for it alone, and the first of those, if it is older than `head`, which
    /// waits for any.
    pub(super) fn called_for(&mut self, head: Option<u32>) -> Option<(u32, u32)> {
        while let Some(index) = self.called.front().copied() {
            let own = self
                .workers
                .get(index as usize)
                .filter(|_| self.ready.contains(index))
                .and_then(|entry| Some((entry.strict.head, self.requests.get(entry.strict.head)?)));
            if let Some((first, open)) = own {
                let older = head
                    .and_then(|head| self.requests.get(head))
                    .is_none_or(|head| open.order < head.order);
                return older.then_some((first, index));
            }
            self.called.pop_front();
            if let Some(entry) = self.workers.get_mut(index as usize) {
                entry.called = false;
            }
        }
        None
    }

    /// Workers have come or gone: keys may belong to others now.
    pub(super) fn homes_changed(&mut self) {
        if self.waiting > 0
            && self
                .rules
                .sticky
                .is_some_and(|sticky| sticky.strict.is_some())
        {
            self.sort_queue();
        }
    }

    /// Puts all that wait into their lists anew, in their order.
    pub(super) fn sort_queue(&mut self) {
        let mut waiting: Vec<(i64, u32)> = self
            .requests
            .iter()
            .filter(|(_, open)| open.state.waits())
            .map(|(index, open)| (open.order, index))
            .collect();
        waiting.sort_unstable();
        for (_, index) in &waiting {
            self.unlink(*index);
        }
        // Those of the front are put to the front, so the last of them goes first.
        let from_front = waiting.partition_point(|(order, _)| *order < 0);
        let (front, back) = waiting.split_at(from_front);
        for (_, index) in front.iter().rev().chain(back) {
            let over = self.requests.get(*index).is_some_and(|open| {
                let until = self.strict_until(open);
                until.zip(self.now).is_some_and(|(until, now)| until <= now)
            });
            let key = self.requests.get(*index).and_then(|open| open.key);
            let home = self.strict_home(key).filter(|_| !over);
            if let Some(open) = self.requests.get(*index) {
                self.waiting += 1;
                self.waiting_bytes += open.bytes;
            }
            self.link(*index, home);
            self.arm(*index);
        }
    }

    /// A request has waited long enough for the one worker of its key: any will do, and it is next.
    pub(super) fn give_up_strict(&mut self, index: u32) {
        if !matches!(
            self.requests.get(index).map(|open| open.state),
            Some(State::Strict(_))
        ) {
            return;
        }
        self.counts.strict_given_up += 1;
        self.unlink(index);
        let order = self.order_front;
        self.order_front -= 1;
        if let Some(open) = self.requests.get_mut(index) {
            open.order = order;
            self.waiting += 1;
            self.waiting_bytes += open.bytes;
        }
        self.link(index, None);
    }
}

/// How many requests in flight are a worker's share of `open`, `bound` times.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers, rounded up"
)]
pub(super) fn share(bound: f64, open: u64, capacity: u64, of: u64) -> u64 {
    (bound.max(1.0) * open as f64 * capacity as f64 / of.max(1) as f64).ceil() as u64
}
