//! The sockets of a pool: bound first, so that errors come before anything runs, and served then.

use std::fmt;
use std::rc::Rc;

use super::router::{PingSide, RouterSide};
use super::sides::{PushSide, SubSide};
use super::time::keep_house;
use super::{Pool, Replies, Settings};
use crate::bus::server::{self, BindError, Bound, Kind};
use crate::drain::Watch;
use crate::endpoint::Endpoint;

/// What a pool binds. At least one of `plain` and `workers` should be there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Addresses<'a> {
    /// Where plain handlers connect their PULL and their PUB.
    pub plain: Option<(&'a Endpoint, &'a Endpoint)>,
    /// Where workers that speak a broker's dialects connect their DEALER.
    pub workers: Option<&'a Endpoint>,
    /// Where workers of m2wsgi's dialect connect the SUB that hears pings. Nothing without `workers`.
    pub pings: Option<&'a Endpoint>,
}

/// Where a pool is bound, with real ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Where requests leave for plain handlers, and where their replies come in.
    pub plain: Option<(Endpoint, Endpoint)>,
    /// Where workers come that speak a broker's dialects.
    pub workers: Option<Endpoint>,
    /// Where pings are published.
    pub pings: Option<Endpoint>,
}

impl fmt::Display for Endpoints {
    /// The first address, by which a pool is known in the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.plain, &self.workers) {
            (Some((send, _)), _) => send.fmt(f),
            (None, Some(workers)) => workers.fmt(f),
            (None, None) => Ok(()),
        }
    }
}

/// The sockets of a pool, bound but not served: errors come here, before anything runs.
#[derive(Debug)]
pub struct BoundPool {
    plain: Option<(Bound, Bound)>,
    router: Option<Bound>,
    pings: Option<Bound>,
    endpoints: Endpoints,
    settings: Settings,
}

/// Binds the sockets of a pool.
///
/// # Errors
///
/// When an address cannot be bound; none is then.
pub async fn bind(
    addresses: Addresses<'_>,
    settings: Settings,
    options: &server::Options,
) -> Result<BoundPool, BindError> {
    let plain = match addresses.plain {
        Some((send, recv)) => {
            let push = server::bind(send, Kind::Push, options.clone()).await?;
            let topics = vec![settings.topic.clone()];
            let sub = server::bind(recv, Kind::Sub { topics }, options.clone()).await?;
            Some((push, sub))
        }
        None => None,
    };
    let router = match addresses.workers {
        Some(workers) => Some(server::bind(workers, Kind::Router, options.clone()).await?),
        None => None,
    };
    let pings = match addresses.pings.filter(|_| router.is_some()) {
        Some(pings) => Some(server::bind(pings, Kind::Pub, options.clone()).await?),
        None => None,
    };
    let of = |bound: &Bound| bound.endpoint().clone();
    let endpoints = Endpoints {
        plain: plain.as_ref().map(|(push, sub)| (of(push), of(sub))),
        workers: router.as_ref().map(of),
        pings: pings.as_ref().map(of),
    };
    Ok(BoundPool {
        plain,
        router,
        pings,
        endpoints,
        settings,
    })
}

impl BoundPool {
    /// Where it is bound.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Begins to serve peers.
    pub fn run(self, replies: Rc<dyn Replies>, watch: &Watch) -> Rc<Pool> {
        let pool = Pool::new(self.settings, replies);
        pool.endpoints.replace(self.endpoints);
        if let Some((push, sub)) = self.plain {
            let push = push.run(Rc::new(PushSide(Rc::clone(&pool))), watch);
            let sub = sub.run(Rc::new(SubSide(Rc::clone(&pool))), watch);
            pool.listening.borrow_mut().extend([push, sub]);
        }
        if let Some(router) = self.router {
            let side = Rc::new(RouterSide::new(&pool));
            let weak = Rc::downgrade(&side);
            if let Some(pings) = self.pings {
                let pings = pings.run(Rc::new(PingSide(weak.clone())), watch);
                side.ping_by(pings.clone());
                pool.listening.borrow_mut().push(pings);
            }
            let router = router.run(side, watch);
            pool.listening.borrow_mut().push(router);
            watch.spawn_local(RouterSide::look_after(weak));
        }
        watch.spawn_local(keep_house(Rc::downgrade(&pool)));
        pool
    }
}
