//! The pools behind servers: the one of a feed's server, or those that all servers of a device share.
//!
//! Here it is decided which pool a request goes to, what a server is called towards workers, and whose a reply is. What is done with
//! either is the server's matter.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use tracing::{debug, warn};

use super::server::Server;
use crate::bus::server::PeerId;
use crate::drain::Watch;
use crate::metrics::Name;
use crate::pool::{BoundPool, Pool, Replies};
use crate::routing::{self, Pattern, Places};
use crate::wire::worker::RequestId;

/// Most pools of a device. Each may have four sockets, and every request is held against their routes one by one.
pub const POOLS_MAX: usize = 64;

/// A worker's socket: that of a peer, in one of the pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    /// The pool's number.
    pub(super) pool: u16,
    /// The peer.
    pub(super) peer: PeerId,
}

/// Which paths a pool is for: a Mongrel2 route. Its text up to the first `(` must begin the path, and the pattern from there on must
/// match what follows.
#[derive(Debug, Clone)]
pub struct Route {
    prefix: String,
    pattern: Option<Pattern>,
}

impl Route {
    /// Reads a route's text.
    ///
    /// # Errors
    ///
    /// What is wrong with its pattern, as a sentence's end.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (prefix, pattern) = routing::split(text);
        let pattern = pattern.map(Pattern::new);
        match pattern.as_ref().and_then(Pattern::problem) {
            Some(problem) => Err(problem.to_string()),
            None if text.is_empty() => Err("a route is not empty".to_owned()),
            None => Ok(Self {
                prefix: prefix.to_owned(),
                pattern,
            }),
        }
    }

    /// Whether a path goes there.
    pub fn takes(&self, path: &[u8]) -> bool {
        path.strip_prefix(self.prefix.as_bytes())
            .is_some_and(|rest| {
                self.pattern
                    .as_ref()
                    .is_none_or(|pattern| pattern.matches(rest))
            })
    }
}

/// A pool and what it is for.
pub(super) struct Named {
    pub(super) name: String,
    /// None: whatever no other takes.
    pub(super) route: Option<Route>,
    pool: OnceCell<Rc<Pool>>,
}

/// Which pool has what place, instead of routes.
pub(super) type Choice = (Places, Vec<u16>);

/// See the module.
pub(super) struct Pools {
    all: Vec<Named>,
    choice: Option<Choice>,
    servers: RefCell<Vec<Rc<Server>>>,
    /// The servers by what they are called towards workers.
    names: RefCell<HashMap<Bytes, usize>>,
    /// Replies for nobody.
    astray: std::cell::Cell<u64>,
}

/// How a pool reaches those that are before it.
struct Ear {
    pools: Weak<Pools>,
    number: u16,
}

impl Replies for Ear {
    fn reply(&self, _: &Rc<Pool>, from: PeerId, message: Bytes) {
        if let Some(pools) = self.pools.upgrade() {
            let from = At {
                pool: self.number,
                peer: from,
            };
            pools.replied(from, message);
        }
    }

    fn held(&self, _: &Rc<Pool>, from: PeerId, id: RequestId, address: &Bytes) {
        if let Some(pools) = self.pools.upgrade() {
            let from = At {
                pool: self.number,
                peer: from,
            };
            pools.held(from, id, address);
        }
    }

    fn is_full(&self) -> bool {
        let pools = self.pools.upgrade();
        pools.is_some_and(|pools| pools.servers.borrow().iter().any(|server| server.is_full()))
    }
}

impl Pools {
    /// Begins to serve workers. The servers come later, by [`Self::put_before`].
    pub(super) fn run(
        bound: Vec<(String, Option<Route>, BoundPool)>,
        choice: Option<Choice>,
        watch: &Watch,
    ) -> Rc<Self> {
        let mut sockets = Vec::with_capacity(bound.len());
        let mut all = Vec::with_capacity(bound.len());
        for (name, route, bound) in bound {
            all.push(Named {
                name,
                route,
                pool: OnceCell::new(),
            });
            sockets.push(bound);
        }
        let this = Rc::new(Self {
            all,
            choice,
            servers: RefCell::default(),
            names: RefCell::default(),
            astray: std::cell::Cell::new(0),
        });
        for (number, (named, bound)) in this.all.iter().zip(sockets).enumerate() {
            let ear = Ear {
                pools: Rc::downgrade(&this),
                number: u16::try_from(number).unwrap_or(u16::MAX),
            };
            // It was made just now, and is set nowhere else.
            drop(named.pool.set(bound.run(Rc::new(ear), watch)));
        }
        // A worker says which pool it works for; it may come to the address of any.
        for pool in this.each() {
            for (named, other) in this.all.iter().zip(this.each()) {
                pool.admit(named.name.clone(), other);
            }
        }
        this
    }

    /// Puts the next server before these pools: its number is how many there were.
    pub(super) fn put_before(&self, server: &Rc<Server>) {
        self.servers.borrow_mut().push(Rc::clone(server));
    }

    /// Lets go of the servers, which hold these pools themselves.
    pub(super) fn let_go(&self) {
        self.servers.take();
    }

    pub(super) fn all(&self) -> &[Named] {
        &self.all
    }

    /// A pool by its number; numbers come from here.
    pub(super) fn get(&self, number: u16) -> &Rc<Pool> {
        let named = self.all.get(usize::from(number)).or(self.all.first());
        named
            .and_then(|named| named.pool.get())
            .expect("made with at least one pool, which runs")
    }

    /// All pools.
    pub(super) fn each(&self) -> impl Iterator<Item = &Rc<Pool>> {
        self.all.iter().filter_map(|named| named.pool.get())
    }

    /// Whether hosts matter for the choice of a pool.
    pub(super) fn ask_hosts(&self) -> bool {
        self.choice
            .as_ref()
            .is_some_and(|(places, _)| places.has_hosts())
    }

    /// The pool for a path of a host: by its place, or the first whose route takes it, else the first without a route.
    pub(super) fn of(&self, host: &[u8], path: &[u8]) -> Option<u16> {
        if let Some((places, pools)) = &self.choice {
            let pool = places.find(host, path).and_then(|place| pools.get(place));
            // Who has the first one says that nobody has it.
            return Some(pool.copied().unwrap_or(0));
        }
        if self.all.len() == 1 && self.all.first().is_some_and(|only| only.route.is_none()) {
            return Some(0);
        }
        let taken = |named: &Named| named.route.as_ref().is_some_and(|route| route.takes(path));
        let place = self.all.iter().position(taken);
        let place = place.or_else(|| self.all.iter().position(|named| named.route.is_none()))?;
        u16::try_from(place).ok()
    }

    /// What a server is called towards workers: by its own ident, unless another before these pools is. Two Mongrel2s that share a
    /// configuration have one ident, and numbers of their own for their connections. `wished` is what it was called before.
    pub(super) fn name(&self, server: usize, ident: &Bytes, wished: Option<&Bytes>) -> Bytes {
        let mut names = self.names.borrow_mut();
        names.retain(|_, other| *other != server);
        let numbered = |count: usize| {
            let mut name = ident.to_vec();
            name.extend_from_slice(format!("-{count}").as_bytes());
            Bytes::from(name)
        };
        let candidates = wished
            .cloned()
            .into_iter()
            .chain([ident.clone()])
            .chain((server + 1..).map(numbered));
        let mut free = candidates.filter(|name| !names.contains_key(name));
        let name = free.next().unwrap_or_else(|| ident.clone());
        if name != *ident {
            debug!(
                server,
                "another server has its ident: it has one of its own towards workers"
            );
        }
        names.insert(name.clone(), server);
        name
    }

    /// The server that workers call so; where there is but one it is that, since handlers may write anything there.
    pub(super) fn server(&self, name: &[u8]) -> Option<Rc<Server>> {
        let servers = self.servers.borrow();
        if let [only] = servers.as_slice() {
            return Some(Rc::clone(only));
        }
        let number = self.names.borrow().get(name).copied()?;
        servers.get(number).cloned()
    }

    /// A message from a worker: to the server whose connections it names.
    fn replied(&self, from: At, message: Bytes) {
        let end = memchr::memchr(b' ', &message).unwrap_or(message.len());
        match self.server(message.get(..end).unwrap_or_default()) {
            Some(server) => server.replied(from, message),
            None => self.tell_astray(),
        }
    }

    fn tell_astray(&self) {
        Name::RepliesMalformed.increment();
        let count = self.astray.get() + 1;
        self.astray.set(count);
        // Who sends such a thing sends many: the log gets the 1st, 2nd, 4th, 8th, ….
        if count.is_power_of_two() {
            warn!(count, "dropped a reply that names none of the servers");
        }
    }

    /// Reads what workers say again, after there was no room for it.
    pub(super) fn hear(&self) {
        self.each().for_each(|pool| pool.hear());
    }

    /// Requests that wait for a worker, and their bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        self.each()
            .map(|pool| pool.waiting())
            .fold((0, 0), |(count, bytes), (more, size)| {
                (count + more, bytes + size)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_a_prefix_and_a_pattern_for_the_rest() {
        let takes = |route: &str, path: &str| Route::parse(route).unwrap().takes(path.as_bytes());
        assert!(takes("/api/", "/api/x"));
        assert!(!takes("/api/", "/ap"), "a device has no backward routes");
        assert!(takes("/u/([0-9]+)$", "/u/17"));
        assert!(!takes("/u/([0-9]+)$", "/u/me"));
        assert!(takes("@chat", "@chat"));
        assert!(Route::parse("").is_err());
    }

    #[test]
    fn servers_of_one_ident_are_told_apart_and_keep_their_names() {
        let pools = Pools {
            all: Vec::new(),
            choice: None,
            servers: RefCell::default(),
            names: RefCell::default(),
            astray: std::cell::Cell::new(0),
        };
        let ident = Bytes::from_static(b"id");
        assert_eq!(pools.name(1, &ident, None), "id");
        assert_eq!(pools.name(0, &ident, None), "id-1");
        assert_eq!(pools.name(2, &ident, None), "id-3");
        let own = Bytes::from_static(b"id-1");
        assert_eq!(pools.name(0, &ident, Some(&own)), "id-1", "as before");
        assert_eq!(pools.name(1, &Bytes::from_static(b"new"), None), "new");
        assert_eq!(pools.name(3, &Bytes::from_static(b"id-3"), None), "id-3-4");
    }
}
