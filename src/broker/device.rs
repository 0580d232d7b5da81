//! The device: several servers before one set of pools, where workers of every dialect come.
//!
//! Towards each server a [`Device`] is one ordinary handler; so it stands behind a Mongrel2 as well. What it takes goes by route to one of its
//! pools, which give it to the worker with the fewest open requests, late. It bounds what waits, and says so: beyond that clients get a
//! 503 that says when to come again. What workers say goes to the server that it names.
//!
//! Servers are told apart by the ident in their messages. Where two have one, as Mongrel2s that share a database, workers know the
//! second by another name ([`super::pools`]); connections keep their servers' numbers.
//!
//! It does not read the command line, nor choose where its ledger is; how workers are chosen is `crate::pool`'s affair.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use super::answer::Form;
use super::facts::Known;
use super::ledger::{self, Heritage, Ledger, Left};
use super::orphans::RETURNS_WITHIN;
use super::pools::{POOLS_MAX, Pools, Route};
use super::server::Server;
use super::{LOOK, Served, ServerState, Settings, Shared, StartError};
use crate::bus::client::Context;
use crate::bus::server;
use crate::drain::Watch;
use crate::endpoint::{Endpoint, Mode};
use crate::pool::{self, Addresses, Heartbeats, Order, Outlier, Report, Sticky, Tie};
use crate::routing::Places;
use crate::sticky::Key;
use crate::wire::Protocol;
use crate::wire::request::Request;

/// What becomes of a request whose worker was lost when it may have begun with it, and no byte of an answer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Again {
    /// It is answered with 502.
    No,
    /// Another worker gets it, if its method may be used twice: GET, HEAD, OPTIONS or TRACE.
    #[default]
    Safe,
    /// Another worker gets it.
    Always,
}

/// What a device does with requests. All of it can be changed while it runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Rules {
    /// Most open requests of a worker that names no number itself: a plain handler, or one of m2wsgi's dialect. Default: 1.
    pub slots: Option<u32>,
    /// Most requests that a worker is given beyond its slots, so that it need not wait for the next one. They wait behind what it does,
    /// however long that takes. Default: 2.
    pub prefetch_max: u32,
    /// Requests of a pool that wait for a worker; one more is answered with 503. Default: 4,096.
    pub waiting_max: usize,
    /// Bytes of those. Default: 64 MiB.
    pub waiting_bytes_max: usize,
    /// Requests that wait for each slot of the workers that are there, if all say how many they have. Default: no such bound.
    pub waiting_per_slot_max: Option<u32>,
    /// How long one waits before it is answered with 503. Default: 5 s.
    pub wait_max: Duration,
    /// The same while there is no worker at all, as in the middle of a deploy. Default: 5 s.
    pub start_grace: Duration,
    /// Share of requests that may be given to a second worker, so that a crash does not double the load. Default: 0.2.
    pub retry_budget: Option<f64>,
    /// Whether and when a worker that is much slower than the others gets nothing for a time. Default: never.
    pub outlier: Option<Outlier>,
    /// From its arrival, how long a request may take until its answer begins; then it is answered with 504. Default: no bound, since long polls wait.
    pub deadline: Option<Duration>,
    /// What becomes of requests whose worker was lost.
    pub again: Again,
    /// What requests stick by: those with one key go to one worker, as long as that one is not busier than others.
    pub sticky: Option<Key>,
    /// How workers are asked for signs of life, and what their silence means.
    pub heartbeats: Heartbeats,
    /// How long a worker that gives no sign of life is waited for before it is taken for dead. Default: 3 s.
    pub suspect_grace: Duration,
    /// Which of the requests that wait is next. Default: the oldest.
    pub order: Order,
    /// Which of several equally busy workers is next. Default: the one that was idle for longest.
    pub tie: Tie,
    /// Time in which a worker that has just come is brought up to its full share. Default: none.
    pub slow_start: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            slots: Some(1),
            prefetch_max: 2,
            waiting_max: 4096,
            waiting_bytes_max: 64 << 20,
            waiting_per_slot_max: None,
            wait_max: Duration::from_secs(5),
            start_grace: Duration::from_secs(5),
            retry_budget: Some(0.2),
            outlier: None,
            deadline: None,
            again: Again::default(),
            sticky: None,
            heartbeats: Heartbeats::default(),
            suspect_grace: Duration::from_secs(3),
            order: Order::Fifo,
            tie: Tie::LongestIdle,
            slow_start: Duration::ZERO,
        }
    }
}

impl Rules {
    fn pool_settings(&self) -> pool::Settings {
        pool::Settings {
            // Every request has that of its server; notices that concern no connection have this one, and it means nothing.
            sender: Bytes::from_static(b"lurcher"),
            protocol: Protocol::default(),
            topic: Vec::new(),
            rules: pool::Rules {
                slots: self.slots,
                prefetch_max: self.prefetch_max,
                queue_max: self.waiting_max,
                queue_per_slot: self.waiting_per_slot_max,
                queue_bytes_max: self.waiting_bytes_max,
                wait_max: self.wait_max,
                start_grace: self.start_grace,
                retry_budget: self.retry_budget,
                outlier: self.outlier,
                sticky: self.sticky.as_ref().map(|key| Sticky {
                    strict: key.strict(),
                    ..Sticky::default()
                }),
                suspect_grace: self.suspect_grace,
                order: self.order,
                tie: self.tie,
                slow_start: self.slow_start,
                ..pool::Rules::default()
            },
            raw_payload: true,
        }
    }

    fn inner(&self) -> Inner {
        Inner {
            is_shared: true,
            again: self.again,
            deadline: self.deadline,
            form: Form::Problem,
            sticky: self.sticky.clone(),
        }
    }
}

/// The same as a server needs it, and for a feed.
pub(super) struct Inner {
    /// Several servers may be before the pools, which keep the bounds.
    pub(super) is_shared: bool,
    pub(super) again: Again,
    pub(super) deadline: Option<Duration>,
    pub(super) form: Form,
    pub(super) sticky: Option<Key>,
}

impl Inner {
    /// What a feed does.
    pub(super) fn of_feed() -> Self {
        Self {
            is_shared: false,
            again: Again::Safe,
            deadline: None,
            form: Form::Text,
            sticky: None,
        }
    }

    /// Whether requests stick by anything.
    pub(super) fn is_sticky(&self) -> bool {
        self.sticky.is_some()
    }

    /// What a request sticks by.
    pub(super) fn key(&self, request: &Request, message: &Bytes) -> Option<u64> {
        self.sticky.as_ref()?.of(&Known { request, message })
    }
}

/// A pool of a device: at least one of `workers` and `plain` is there.
#[derive(Debug, Clone)]
pub struct PoolSpec {
    /// What workers and figures call it.
    pub name: String,
    /// What goes to it; none: whatever no other takes. The first that takes a path has it.
    pub route: Option<Route>,
    /// Where workers of our dialect and of m2wsgi's connect their DEALER.
    pub workers: Option<Endpoint>,
    /// Where plain handlers connect their PULL and their PUB.
    pub plain: Option<(Endpoint, Endpoint)>,
    /// Where m2wsgi's handlers hear that the broker is there.
    pub pings: Option<Endpoint>,
}

/// What is fixed when a device starts.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct DeviceSettings {
    /// The sockets towards servers.
    pub towards: Settings,
    /// How servers and logs know this broker: a Lurcher waits a moment for a broker of the same name to come back. Empty: it says nothing.
    pub name: String,
    /// Where a successor finds what was open; none: it does not.
    pub ledger: Option<PathBuf>,
    /// Which pool, by its number, has what place: where this is said, routes are not looked at, and what has no place goes to the first pool, to be refused there.
    pub choice: Option<(Places, Vec<u16>)>,
}

/// How a pool of a device does.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PoolState {
    /// Its name.
    pub name: String,
    /// How it does.
    pub report: Report,
}

/// See the module. It belongs to one thread, and needs a `LocalRuntime` or `LocalSet` around it.
pub struct Device {
    servers: Vec<Rc<Server>>,
    pools: Rc<Pools>,
    shared: Rc<Shared>,
    context: Context,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("servers", &self.servers.len())
            .field("pools", &self.pools.all().len())
            .finish_non_exhaustive()
    }
}

impl Device {
    /// Binds the workers' sockets, takes the ledger over, and connects to the servers, given by their (`send_spec`, `recv_spec`).
    ///
    /// # Errors
    ///
    /// When specs are of no use, another broker has the ledger, or addresses are not to be had; never because a server is not there.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves tasks behind that end with `watch`.
    pub async fn start(
        servers: &[(Endpoint, Endpoint)],
        pools: &[PoolSpec],
        rules: &Rules,
        settings: DeviceSettings,
        watch: &Watch,
    ) -> Result<Self, StartError> {
        let bound = servers
            .iter()
            .flat_map(|(send, recv)| [send, recv])
            .find(|spec| spec.mode == Some(Mode::Bind));
        if let Some(spec) = bound {
            return Err(StartError::Bound { spec: spec.clone() });
        }
        if pools.is_empty() || pools.len() > POOLS_MAX {
            return Err(StartError::Pools { count: pools.len() });
        }
        let (ledger, heritage) = match &settings.ledger {
            Some(path) => {
                let (ledger, heritage) =
                    Ledger::open(path).map_err(|source| ledger_error(path, source))?;
                (Some(ledger), heritage)
            }
            None => (None, Heritage::default()),
        };
        let options = server::Options::default();
        let mut sockets = Vec::with_capacity(pools.len());
        for spec in pools {
            let addresses = Addresses {
                plain: spec.plain.as_ref().map(|(send, recv)| (send, recv)),
                workers: spec.workers.as_ref(),
                pings: spec.pings.as_ref(),
            };
            let bound = pool::bind(addresses, rules.pool_settings(), &options);
            sockets.push((spec.name.clone(), spec.route.clone(), bound.await?));
        }
        let shared = Rc::new(Shared {
            settings: settings.towards,
            served: Served::default(),
            ended: Notify::new(),
            rules: RefCell::new(rules.inner()),
            broker: Some(settings.name).filter(|name| !name.is_empty()),
            ledger,
        });
        let context = Context::new();
        let pools = Pools::run(sockets, settings.choice, watch);
        for pool in pools.each() {
            pool.set_heartbeats(rules.heartbeats);
        }
        let mut device = Self {
            servers: Vec::with_capacity(servers.len()),
            pools: Rc::clone(&pools),
            shared,
            context,
        };
        let mut receivers = Vec::new();
        for (number, (send, recv)) in servers.iter().enumerate() {
            let shared = Rc::clone(&device.shared);
            let (server, receiver, token) =
                Server::connect(number, (send, recv), &pools, shared, &device.context)?;
            receivers.push((Rc::clone(&server), receiver, token));
            device.servers.push(server);
        }
        device.inherit(&heritage);
        for (server, receiver, token) in receivers {
            server.run(receiver, token, watch);
        }
        Ok(device)
    }

    /// Takes over what a predecessor had open, at the servers that are still meant.
    fn inherit(&self, heritage: &Heritage) {
        let Some(ledger) = &self.shared.ledger else {
            return;
        };
        ledger.forget_servers();
        let now = Instant::now();
        if heritage.is_one {
            self.servers
                .iter()
                .for_each(|server| server.tell_later(now));
            for pool in self.pools.each() {
                pool.expect_returns(now + RETURNS_WITHIN);
            }
        }
        let mut unknown = 0;
        for (place, known) in heritage.servers.iter().enumerate() {
            let Some(known) = known else {
                continue;
            };
            let left: Vec<Left> = heritage
                .open
                .iter()
                .filter(|left| left.server == place)
                .copied()
                .collect();
            let ledger::Known {
                spec,
                ident,
                name,
                protocol,
            } = known;
            let found = self.servers.iter().find(|server| server.spec() == *spec);
            if let Some(server) = found {
                server.sender.replace(ident.clone());
                server.protocol.set(*protocol);
                server.call_itself(ident, Some(name));
                server.adopt(&left, now);
            } else {
                unknown += left.len();
                for left in &left {
                    ledger.leave(left.slot);
                }
            }
        }
        if unknown > 0 {
            warn!(
                requests = unknown,
                "an earlier broker had requests open of servers that are not named any more"
            );
        }
    }

    /// Does otherwise from now on. What has been begun goes on.
    pub fn set_rules(&self, rules: &Rules) {
        for pool in self.pools.each() {
            pool.reconfigure(rules.pool_settings());
            pool.set_heartbeats(rules.heartbeats);
        }
        self.shared.rules.replace(rules.inner());
    }

    /// How the servers stand, in the order in which they were given.
    pub fn servers(&self) -> Vec<ServerState> {
        self.servers.iter().map(|server| server.state()).collect()
    }

    /// How the pools do, in the order in which they were given.
    pub fn pools(&self) -> Vec<PoolState> {
        let state = |(named, pool): (&super::pools::Named, &Rc<pool::Pool>)| PoolState {
            name: named.name.clone(),
            report: pool.report(),
        };
        self.pools
            .all()
            .iter()
            .zip(self.pools.each())
            .map(state)
            .collect()
    }

    /// Requests that no worker has answered yet, those that wait too, without WebSocket connections and streams of unknown length.
    pub fn open(&self) -> usize {
        let held: usize = self.servers.iter().map(|server| server.held()).sum();
        let open = |pool: &Rc<pool::Pool>| {
            let workers = pool.report().workers;
            workers
                .iter()
                .map(|worker| worker.open as usize)
                .sum::<usize>()
        };
        held + self.pools.waiting().0
            + self.pools.each().map(open).sum::<usize>()
            + self
                .servers
                .iter()
                .map(|server| server.orphans() + server.long_answers())
                .sum::<usize>()
    }

    /// Takes no more requests; see [`super::Feed::quiesce`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it goes on in the background.
    pub async fn quiesce(&self) {
        for server in &self.servers {
            server.begin_stop();
        }
        for server in &self.servers {
            server.is_deaf().await;
        }
    }

    /// Waits until no request is open; false when `deadline` came first.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only waits.
    pub async fn idle(&self, deadline: Instant) -> bool {
        super::until(&self.shared, deadline, || self.open() == 0).await
    }

    /// [`Device::quiesce`], then the end of what is open, at most `grace` from now, then that of the workers' sockets; at last waits
    /// until replies are written, at most [`Settings::linger`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the device stopping; its sockets close with the runtime.
    pub async fn stop(self, grace: Duration) {
        let deadline = Instant::now() + grace;
        tokio::time::timeout_at(deadline, self.quiesce()).await.ok();
        let all_ended = self.idle(deadline).await;
        for pool in self.pools.each() {
            pool.close();
        }
        let end = Instant::now() + self.shared.settings.linger;
        for server in &self.servers {
            server.finish(end).await;
        }
        if let Some(ledger) = self.shared.ledger.as_ref().filter(|_| all_ended)
            && let Err(error) = ledger.remove()
        {
            warn!("remove the ledger: {error}");
        }
        let context = self.context.clone();
        let over: Vec<_> = self.servers.iter().map(Rc::downgrade).collect();
        drop(self);
        // Their tasks have yet to run to see it; the sockets go with the last.
        while over.iter().any(|server| server.strong_count() > 0) && Instant::now() < end {
            tokio::time::sleep(LOOK).await;
        }
        context.close().await;
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        for server in &self.servers {
            server.close();
        }
    }
}

fn ledger_error(path: &Path, source: io::Error) -> StartError {
    let path = path.to_owned();
    StartError::Ledger { path, source }
}
