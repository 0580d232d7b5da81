//! Who gets the next request: the peer with the fewest open requests, the longest idle among equals.
//!
//! Pure: no I/O, no clock, no knowledge of messages. A peer is a [`Key`]; who uses the balancer says what happened
//! to it ([`Balancer::end`], [`Balancer::set`], …) and asks [`Balancer::pick`]. Counts are exact, so no random choice
//! is needed: eligible peers stand in one ordered set, and the first is taken.
//!
//! A request is *open* from being handed over until its response has ended or its client has gone; a response that
//! has become a stream is *attached* instead, and does not make its peer busy.

use std::collections::BTreeSet;

use slab::Slab;

/// Names a peer in its balancer. May be used again for another peer once the first was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(usize);

impl Key {
    /// A small number, unique among the peers of one balancer: an index for tables beside it.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Whether a peer may get requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Gets requests.
    Ready,
    /// Connected, but gets nothing: not yet known to be able to answer, or its socket does not drain.
    Held,
}

/// Peers with their counts. See the module for the policy.
#[derive(Debug, Default)]
pub struct Balancer {
    peers: Slab<Peer>,
    /// The peers that may be picked, best first: open requests, then when they were last busy.
    eligible: BTreeSet<(u32, u64, Key)>,
    /// Counts events; stands in for time where only the order matters.
    tick: u64,
    /// Most open requests of one peer, if the route says so.
    slots: Option<u32>,
}

#[derive(Debug)]
struct Peer {
    open: u32,
    attached: u32,
    busy_tick: u64,
    standing: Standing,
}

impl Balancer {
    /// A balancer without peers; `slots` bounds the open requests of each.
    pub fn new(slots: Option<u32>) -> Self {
        Self {
            slots,
            ..Self::default()
        }
    }

    /// Bounds the open requests of each peer anew; those that have more keep them.
    pub fn set_slots(&mut self, slots: Option<u32>) {
        self.slots = slots;
        self.eligible.clear();
        let keys: Vec<Key> = self.peers.iter().map(|(key, _)| Key(key)).collect();
        for key in keys {
            self.enlist(key);
        }
    }

    /// Adds a peer. It has no open requests and counts as longest idle among those that were busy before.
    pub fn add(&mut self, standing: Standing) -> Key {
        let key = Key(self.peers.insert(Peer {
            open: 0,
            attached: 0,
            busy_tick: 0,
            standing,
        }));
        self.enlist(key);
        key
    }

    /// Removes a peer with all its counts. An unknown key changes nothing.
    pub fn remove(&mut self, key: Key) {
        self.delist(key);
        self.peers.try_remove(key.0);
    }

    /// Says whether a peer may get requests.
    pub fn set(&mut self, key: Key, standing: Standing) {
        self.change(key, |peer, _| peer.standing = standing);
    }

    /// Takes the peer for the next request and counts the request as open there; `None` when nobody may have it.
    pub fn pick(&mut self) -> Option<Key> {
        let (_, _, key) = *self.eligible.first()?;
        self.change(key, |peer, tick| {
            peer.open += 1;
            peer.busy_tick = tick;
        });
        Some(key)
    }

    /// An open request of this peer has ended.
    pub fn end(&mut self, key: Key) {
        self.change(key, |peer, tick| {
            peer.open = peer.open.saturating_sub(1);
            peer.busy_tick = tick;
        });
    }

    /// An open request of this peer has become a stream: it counts as attached until [`Balancer::detach`].
    pub fn attach(&mut self, key: Key) {
        self.change(key, |peer, _| {
            peer.open = peer.open.saturating_sub(1);
            peer.attached += 1;
        });
    }

    /// A stream that was no request begins at this peer: it counts as attached until [`Balancer::detach`].
    pub fn attach_more(&mut self, key: Key) {
        self.change(key, |peer, tick| {
            peer.attached += 1;
            peer.busy_tick = tick;
        });
    }

    /// A stream of this peer has ended.
    pub fn detach(&mut self, key: Key) {
        self.change(key, |peer, _| {
            peer.attached = peer.attached.saturating_sub(1);
        });
    }

    /// Open requests of a peer.
    pub fn open(&self, key: Key) -> u32 {
        self.peers.get(key.0).map_or(0, |peer| peer.open)
    }

    /// Streams of a peer.
    pub fn attached(&self, key: Key) -> u32 {
        self.peers.get(key.0).map_or(0, |peer| peer.attached)
    }

    /// The peer that would be picked, without counting anything.
    pub fn first(&self) -> Option<Key> {
        self.eligible.first().map(|(_, _, key)| *key)
    }

    /// Whether anybody could be picked now.
    pub fn has_room(&self) -> bool {
        !self.eligible.is_empty()
    }

    /// Number of peers, whatever their standing.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there is no peer at all.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    fn change(&mut self, key: Key, how: impl FnOnce(&mut Peer, u64)) {
        self.delist(key);
        self.tick += 1;
        let tick = self.tick;
        if let Some(peer) = self.peers.get_mut(key.0) {
            how(peer, tick);
        }
        self.enlist(key);
    }

    fn delist(&mut self, key: Key) {
        if let Some(peer) = self.peers.get(key.0) {
            self.eligible.remove(&(peer.open, peer.busy_tick, key));
        }
    }

    fn enlist(&mut self, key: Key) {
        if let Some(peer) = self.peers.get(key.0)
            && peer.standing == Standing::Ready
            && self.slots.is_none_or(|slots| peer.open < slots)
        {
            self.eligible.insert((peer.open, peer.busy_tick, key));
        }
    }

    /// Panics when the counts and the set of eligible peers do not agree. For tests.
    #[cfg(test)]
    fn check_invariants(&self) {
        let expected: BTreeSet<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                peer.standing == Standing::Ready && self.slots.is_none_or(|slots| peer.open < slots)
            })
            .map(|(key, peer)| (peer.open, peer.busy_tick, Key(key)))
            .collect();
        assert_eq!(self.eligible, expected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_fewest_open_requests_come_first_and_the_longest_idle_among_equals() {
        let mut balancer = Balancer::new(None);
        let a = balancer.add(Standing::Ready);
        let b = balancer.add(Standing::Ready);
        assert_eq!(balancer.pick(), Some(a));
        assert_eq!(balancer.pick(), Some(b));
        balancer.end(b);
        assert_eq!(balancer.pick(), Some(b));
        balancer.end(a);
        balancer.end(b);
        assert_eq!(balancer.pick(), Some(a), "a has been idle for longer");
    }

    #[test]
    fn a_stuck_peer_holds_at_most_one_request_more_than_its_neighbour_had_open() {
        let mut balancer = Balancer::new(None);
        let stuck = balancer.add(Standing::Ready);
        let healthy = balancer.add(Standing::Ready);
        for _ in 0..1000 {
            match balancer.pick() {
                Some(key) if key == healthy => balancer.end(healthy),
                other => assert_eq!(other, Some(stuck)),
            }
        }
        assert_eq!(balancer.open(stuck), 1);
    }

    #[test]
    fn a_stream_does_not_make_its_peer_busy() {
        let mut balancer = Balancer::new(Some(1));
        let only = balancer.add(Standing::Ready);
        assert_eq!(balancer.pick(), Some(only));
        assert_eq!(balancer.pick(), None, "its one slot is taken");
        balancer.attach(only);
        assert_eq!(balancer.pick(), Some(only));
        assert_eq!((balancer.open(only), balancer.attached(only)), (1, 1));
    }

    #[test]
    fn new_slots_hold_for_peers_that_are_there() {
        let mut balancer = Balancer::new(None);
        let only = balancer.add(Standing::Ready);
        assert_eq!((balancer.pick(), balancer.pick()), (Some(only), Some(only)));
        balancer.set_slots(Some(2));
        assert_eq!(balancer.pick(), None, "it has two already");
        balancer.set_slots(Some(3));
        assert_eq!(balancer.pick(), Some(only));
        balancer.check_invariants();
    }

    proptest! {
        #[test]
        fn counts_and_order_agree_after_any_sequence_of_events(
            slots in proptest::option::of(1u32..4),
            events in proptest::collection::vec((0u8..7, 0usize..4), 0..200),
        ) {
            let mut balancer = Balancer::new(slots);
            let mut keys = Vec::new();
            for (event, which) in events {
                let key = keys.get(which).copied();
                match (event, key) {
                    (0, _) => keys.push(balancer.add(Standing::Ready)),
                    (1, Some(key)) => { balancer.remove(key); keys.retain(|k| *k != key); }
                    (2, Some(key)) => balancer.set(key, Standing::Held),
                    (3, Some(key)) => balancer.set(key, Standing::Ready),
                    (4, Some(key)) => balancer.end(key),
                    (5, Some(key)) => balancer.attach(key),
                    _ => {
                        let least = keys.iter().filter_map(|k| balancer.peers.get(k.0)).filter(|p| p.standing == Standing::Ready)
                            .map(|p| p.open).filter(|open| slots.is_none_or(|slots| *open < slots)).min();
                        let picked = balancer.pick();
                        prop_assert_eq!(picked.map(|k| balancer.open(k) - 1), least);
                    }
                }
                balancer.check_invariants();
            }
        }
    }
}
