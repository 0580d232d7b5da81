//! The ROUTER side of a pool as the bus sees it: workers that speak a broker's dialects.
//!
//! What they say is sorted here; what follows from it is the pool's business.

use std::rc::Rc;

use super::Pool;
use crate::bus::server::{Message, Peer, Sink, Unsent};
use crate::metrics::Name;

/// The ROUTER side of a pool.
pub(super) struct RouterSide(Rc<Pool>);

impl RouterSide {
    pub(super) fn new(pool: &Rc<Pool>) -> Self {
        Self(Rc::clone(pool))
    }
}

impl Sink for RouterSide {
    fn joined(&self, _: &Rc<Peer>) {}

    fn subscribed(&self, _: &Rc<Peer>) {}

    fn message(&self, _: &Rc<Peer>, _: Message) {
        Name::RepliesMalformed.increment();
    }

    fn writable(&self, _: &Rc<Peer>) {}

    fn is_full(&self) -> bool {
        self.0.replies.is_full()
    }

    fn lost(&self, _: &Rc<Peer>, _: Vec<Unsent>) {}
}
