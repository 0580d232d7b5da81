//! Who is connected: every client of the shard, and which of them a handler's id means.
//!
//! Ids are given when a connection first needs one, and counted up from a random start, so that a restarted front does
//! not know the ids of its predecessor; one that was given back is not given again before all others were.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use slab::Slab;
use tokio::sync::Notify;

use super::Shard;
use super::client::Client;
use crate::metrics::Name;
use crate::wire::ConnId;

/// Every client of a shard.
#[derive(Default)]
pub(super) struct Registry {
    clients: RefCell<Slab<Rc<Client>>>,
    by_id: RefCell<HashMap<u32, Rc<Client>, BuildHasherDefault<IdHasher>>>,
    next: Cell<u32>,
    /// Connections that are not clients yet: they may be in a handshake.
    arriving: Cell<usize>,
    /// Told when a client has joined and there was none before.
    pub(super) joined: Notify,
    /// Told when a client has left.
    pub(super) left: Notify,
}

impl Registry {
    /// A registry whose first id is `start`.
    pub(super) fn new(start: u32) -> Self {
        Self {
            next: Cell::new(start),
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.clients.borrow().len()
    }

    /// All connections, those that are still arriving too.
    pub(super) fn occupied(&self) -> usize {
        self.len() + self.arriving.get()
    }

    pub(super) fn join(&self, client: &Rc<Client>) {
        client
            .place
            .set(self.clients.borrow_mut().insert(Rc::clone(client)));
        Name::ConnectionsOpen.increment();
        if self.len() == 1 {
            self.joined.notify_one();
        }
    }

    pub(super) fn leave(&self, client: &Client) {
        let gone = self.clients.borrow_mut().try_remove(client.place.get());
        if gone.is_some() {
            Name::ConnectionsOpen.decrement();
            self.left.notify_one();
        }
    }

    /// Gives a client its id. Mongrel2 numbers stay below 2^32 - 1, and 0 is never used.
    pub(super) fn assign(&self, client: &Rc<Client>) -> ConnId {
        let mut by_id = self.by_id.borrow_mut();
        loop {
            let id = self.next.get();
            self.next.set(if id >= u32::MAX - 2 { 1 } else { id + 1 });
            if id != 0
                && let std::collections::hash_map::Entry::Vacant(entry) = by_id.entry(id)
            {
                entry.insert(Rc::clone(client));
                return ConnId(id);
            }
        }
    }

    /// Takes an id back.
    pub(super) fn remove(&self, id: ConnId) {
        self.by_id.borrow_mut().remove(&id.0);
    }

    /// The client that an id means now.
    pub(super) fn get(&self, id: ConnId) -> Option<Rc<Client>> {
        self.by_id.borrow().get(&id.0).cloned()
    }

    /// Calls `each` for every client.
    pub(super) fn for_each(&self, mut each: impl FnMut(&Client)) {
        for (_, client) in &*self.clients.borrow() {
            each(client);
        }
    }
}

/// A connection that is not a client yet: it counts for as long as this is kept.
pub(super) struct Arriving(Rc<Shard>);

impl Arriving {
    pub(super) fn new(shard: &Rc<Shard>) -> Self {
        let arriving = &shard.registry.arriving;
        arriving.set(arriving.get() + 1);
        Self(Rc::clone(shard))
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let registry = &self.0.registry;
        registry
            .arriving
            .set(registry.arriving.get().saturating_sub(1));
        registry.left.notify_one();
    }
}

/// Spreads consecutive numbers; nobody outside chooses them, so no keyed hash is needed.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.0 = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
