//! What can be asked of a front while it runs, by the control port and by signals: how it does, the end of a connection,
//! new log files, another configuration.
//!
//! A [`Handle`] is of the shard's own thread, like everything here. It does not stop the front: that is the drain signal's.

use std::fmt;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::client::{Client, Cut, Kind};
use super::reload::{ReloadError, Reloaded};
use super::{Plan, Shard};
use crate::pool::Report;
use crate::wire::ConnId;

pub use crate::pool::Worker as Peer;

/// A running front, for those who look at it and steer it. Cheap to clone; a front that has ended has nothing and does nothing.
#[derive(Clone)]
pub struct Handle {
    shard: Weak<Shard>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// Where a front stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It takes requests.
    Serving,
    /// It finishes what is open.
    Draining,
}

/// A client's connection. Times are how long ago, zero for what never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// What handlers call it; none before one knows it.
    pub id: Option<u32>,
    /// The descriptor of its socket.
    pub fd: i32,
    /// Mongrel2's number for what it has turned out to be: 0 nothing yet, 1 HTTP.
    pub kind: u8,
    /// Since the last request, or since its handler last asked to keep it.
    pub last_ping: Duration,
    /// Since bytes came.
    pub last_read: Duration,
    /// Since bytes were written.
    pub last_write: Duration,
    /// Bytes that came.
    pub bytes_read: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
}

/// The handlers behind one entry of the configuration.
#[derive(Debug, Clone)]
pub struct Handlers {
    /// Its `send_ident`.
    pub ident: String,
    /// How its pool does.
    pub report: Report,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The host's name.
    pub host: String,
    /// What its Host header is matched by.
    pub matching: String,
    /// Path and pattern, as configured.
    pub path: String,
    /// `handler`, `dir` or `proxy`.
    pub kind: &'static str,
    /// Which: a handler's specs, a directory's base, a proxy's address.
    pub target: String,
    /// Requests that it has taken since it was configured.
    pub requests: u64,
}

impl Handle {
    pub(super) fn new(shard: &Rc<Shard>) -> Self {
        Self {
            shard: Rc::downgrade(shard),
        }
    }

    /// Where the front stands; one that has ended is draining.
    pub fn state(&self) -> State {
        let serving = self.shard.upgrade().filter(|shard| !shard.is_draining());
        serving.map_or(State::Draining, |_| State::Serving)
    }

    /// What is served now.
    pub fn plan(&self) -> Option<Plan> {
        Some(self.shard.upgrade()?.plan.borrow().clone())
    }

    /// Where clients connect now, with the real port.
    pub fn addr(&self) -> Option<SocketAddr> {
        Some(self.shard.upgrade()?.addr.get())
    }

    /// Every client's connection, in no order.
    pub fn connections(&self) -> Vec<Connection> {
        let mut all = Vec::new();
        if let Some(shard) = self.shard.upgrade() {
            let now = shard.clock.seconds();
            shard
                .registry
                .for_each(|client| all.push(describe(client, now)));
        }
        all
    }

    /// Ends the connection with this id, whatever it is doing; its handler is told. Whether there was one.
    pub fn kill(&self, id: u32) -> bool {
        let client = self
            .shard
            .upgrade()
            .and_then(|shard| shard.registry.get(ConnId(id)));
        // One that is cut already has only not seen it yet.
        let Some(client) = client.filter(|client| client.cut_by().is_none()) else {
            return false;
        };
        client.cut(Cut::ByOperator);
        true
    }

    /// The handlers of the configuration, in its order.
    pub fn handlers(&self) -> Vec<Handlers> {
        let Some(shard) = self.shard.upgrade() else {
            return Vec::new();
        };
        let pools = shard.pools.borrow();
        pools
            .iter()
            .map(|(handler, pool)| Handlers {
                ident: handler.send_ident.clone(),
                report: pool.report(),
            })
            .collect()
    }

    /// Every route, host by host.
    pub fn routes(&self) -> Vec<Route> {
        let mut all = Vec::new();
        let Some(shard) = self.shard.upgrade() else {
            return all;
        };
        for (matching, host) in shard.site().hosts() {
            for (path, route) in host.routes.iter() {
                let (kind, target) = &route.named;
                all.push(Route {
                    host: host.name.as_ref().to_owned(),
                    matching: matching.to_owned(),
                    path: path.to_owned(),
                    kind,
                    target: target.clone(),
                    requests: route.requests.get(),
                });
            }
        }
        all
    }

    /// Opens the access log again under its name: the old file was renamed.
    pub fn reopen_logs(&self) {
        if let Some(shard) = self.shard.upgrade()
            && let Some(log) = &*shard.access_log.borrow()
        {
            log.reopen();
        }
    }

    /// Serves another plan from now on; see [`Reloaded`]. What is open goes on as it began.
    ///
    /// # Errors
    ///
    /// When something new cannot be had. Then nothing has changed.
    ///
    /// # Cancel safety
    ///
    /// Not safe: let it complete, or the change may be half made.
    pub async fn reload(&self, plan: Plan) -> Result<Reloaded, ReloadError> {
        match self.shard.upgrade() {
            Some(shard) => shard.reload(plan).await,
            None => Err(ReloadError::Ended),
        }
    }
}

fn describe(client: &Client, now: u32) -> Connection {
    let activity = client.activity.get();
    let since = |then: Option<u32>| {
        let seconds = then.map_or(0, |then| now.saturating_sub(then));
        Duration::from_secs(seconds.into())
    };
    Connection {
        id: client.id().map(|id| id.0),
        fd: client.fd.get(),
        kind: match client.kind.get() {
            Kind::Unknown => 0,
            Kind::Http => 1,
            Kind::Message => 2,
            Kind::Socket => 3,
        },
        last_ping: since(Some(activity.last_ping)),
        last_read: since(activity.last_read),
        last_write: since(activity.last_write),
        bytes_read: activity.bytes_read,
        bytes_written: activity.bytes_written,
    }
}
