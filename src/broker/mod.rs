//! A feed: holds the sockets towards the servers, and hands what comes by them to workers of its own choosing.
//!
//! A server that deals requests out in turn, as Mongrel2's PUSH does, loses without a word what it has dealt to a worker that
//! closes or dies, and knows nothing of who is busy. A [`Feed`] is the one handler that such a server has, for as long as the
//! feed lives. Behind it workers come and go as behind a Lurcher front, from which they cannot tell it: one [`crate::pool`] for
//! each server, on two sockets in a directory of the feed's. So
//!
//! * a request goes to the worker with the fewest open ones, and to another where that is safe when its worker is lost before
//!   a byte of its answer; otherwise its client gets a 502 that says so, and the end of the connection;
//! * what comes later of a connection (its end, credits, frames, parts of a body) goes to the worker that has it;
//! * without workers requests wait, some here and the rest in the server, which is not read meanwhile.
//!
//! Messages pass byte for byte, with the sender and the ids that the server has given them. That leaves one thing that a front
//! does and a feed cannot: give a request that is handed on another id. A worker is taken for lost only when its reply socket is
//! at its end, so what it had said has been heard; what a worker says later to a request that it has lost otherwise is dropped.
//!
//! A server that does not read its replies makes the workers' sockets for that server wait, and nobody else. Of a connection
//! that sends requests ahead of their answers one is at work at a time, since nothing in a reply tells whose answer it is.

mod answer;
mod device;
mod endings;
mod facts;
mod inward;
mod leaving;
mod ledger;
mod orphans;
mod outward;
mod pools;
mod processes;
mod reading;
mod recent;
mod server;
mod table;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::bus::FEED;
use crate::bus::client::{Context, OpenError};
use crate::bus::server::{BindError, Options as BindOptions, Origin};
use crate::drain::Watch;
use crate::endpoint::{Endpoint, Mode, Transport};
use crate::numbered::Numbered;
use crate::pool::{self, Addresses, Failure};
use crate::wire::{ConnId, Protocol};

pub use device::{Again, Device, DeviceSettings, PoolSpec, PoolState, Rules};
pub use pools::{POOLS_MAX, Route};

use self::server::Server;
use device::Inner;
use ledger::Ledger;
use pools::Pools;

/// How often it is looked whether workers have nothing open any more.
const LOOK: Duration = Duration::from_millis(20);

/// The mode of a feed's sockets for workers: whoever may open one is their owner.
const SOCKET_MODE: u32 = 0o600;

/// The numbers of a feed.
#[derive(Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The identity of the sockets towards servers, where a spec names none. Default: none.
    pub ident: Option<String>,
    /// Most open requests per worker. Default: no bound.
    pub slots: Option<u32>,
    /// Requests of a server that wait for a worker; above it the server is not read. Default: 4,096, as in a front.
    pub waiting_max: usize,
    /// Bytes of those. Default: 64 MiB.
    pub waiting_bytes_max: usize,
    /// How long a request waits for a worker before it is answered 503. Default: 30 s.
    pub wait_max: Duration,
    /// Replies that wait for a server to take them; above it the workers' sockets for that server are not read.
    /// Default: 4,096.
    pub replies_max: usize,
    /// Bytes of those. Default: 16 MiB.
    pub replies_bytes_max: usize,
    /// The largest message taken from a server, in bytes; the connection to one that sends a larger one is given up and made anew.
    /// Default: 1 GiB.
    pub message_bytes_max: u64,
    /// How long a server's subscription is waited for before replies to it are dropped. Default: 1 s.
    pub subscription_timeout: Duration,
    /// When stopping: the longest time to wait for the last request of each server. Default: 5 s.
    pub drain_timeout: Duration,
    /// How long unsent replies are kept trying at the end. Default: 5 s.
    pub linger: Duration,
    /// Told of every request that has ended. Default: nobody, and then nothing is kept for it.
    pub observer: Option<Rc<dyn Observer>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ident: None,
            slots: None,
            waiting_max: 4096,
            waiting_bytes_max: 64 << 20,
            wait_max: Duration::from_secs(30),
            replies_max: 4096,
            replies_bytes_max: 16 << 20,
            message_bytes_max: 1 << 30,
            subscription_timeout: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(5),
            observer: None,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("slots", &self.slots)
            .field("waiting_max", &self.waiting_max)
            .finish_non_exhaustive()
    }
}

/// Hears of requests that have ended: for an access log.
pub trait Observer {
    /// A request has ended. Must not wait, nor call back into the feed.
    fn ended(&self, exchange: &Exchange);
}

/// A request that has ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Exchange {
    /// Its connection at the server.
    pub conn_id: ConnId,
    /// The server's ident in the message.
    pub sender: String,
    /// The client's address as the server says it.
    pub remote: String,
    /// The method.
    pub method: String,
    /// The target: path and query.
    pub uri: String,
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: String,
    /// When it came.
    pub came: SystemTime,
    /// How long it was open.
    pub took: Duration,
    /// The status of the response, when one has begun.
    pub status: Option<u16>,
    /// Bytes of the response's body that have passed.
    pub bytes: u64,
    /// The process that had it at the end.
    pub pid: Option<u32>,
    /// How it ended.
    pub end: End,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With its response, or with the worker's wish to close the connection.
    Answered,
    /// Its client left.
    ClientGone,
    /// No worker has answered it: the feed has, or has cut the response short.
    Failed(Failure),
}

/// Why a feed could not be started. A server that is not there (yet) is no reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Servers connect to a socket that a handler binds, several to one, and ids are those of one server.
    #[error("{spec}: a feed connects to its servers and cannot be bound")]
    Bound {
        /// The spec that says `#bind`.
        spec: Endpoint,
    },
    /// A socket towards a server could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A socket for workers could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A device has from one to [`POOLS_MAX`] pools.
    #[error("{count} pools: there are from 1 to {POOLS_MAX}")]
    Pools {
        /// How many were given.
        count: usize,
    },
    /// What an earlier broker may have left cannot be had, or another one runs.
    #[error("open {}", path.display())]
    Ledger {
        /// Where it is.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// How a server of a feed stands.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerState {
    /// Where its replies go to.
    pub replies: Endpoint,
    /// It is there and takes replies: it has subscribed to them.
    pub listens: bool,
    /// It has said that it is a Lurcher.
    pub is_lurcher: bool,
}

/// How a worker of a feed does: the sockets of one process at one server.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Worker {
    /// Its process; none from another pid namespace.
    pub pid: Option<u32>,
    /// The number of the server, in the order in which they were given.
    pub server: usize,
    /// As in [`crate::pool::Worker`].
    pub state: &'static str,
    /// Requests that it has not answered.
    pub open: u32,
    /// Its responses that have become streams, and its WebSocket connections.
    pub attached: u32,
}

/// What a process and those that it has started do for a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Sockets that take requests.
    pub connected: usize,
    /// Requests that they have not answered.
    pub open: u32,
    /// Responses that have become streams, and WebSocket connections.
    pub attached: u32,
    /// Requests that they have answered.
    pub served: u64,
}

/// Requests answered, by process.
#[derive(Default)]
struct Served(RefCell<Numbered<u32, u64>>);

/// Processes that are kept count of; with more of them those that are gone are looked for with each new one.
const SERVED_MAX: usize = 4096;

impl Served {
    fn add(&self, pid: u32) {
        let count = self.0.borrow().len();
        if count >= SERVED_MAX && !self.0.borrow().contains_key(&pid) {
            self.forget_ended();
        }
        *self.0.borrow_mut().entry(pid).or_default() += 1;
    }

    fn forget_ended(&self) {
        let is_there = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        self.0.borrow_mut().retain(|pid, _| is_there(pid));
    }
}

/// What all servers of a feed share.
struct Shared {
    settings: Settings,
    served: Served,
    /// Told when a request has ended.
    ended: Notify,
    rules: RefCell<Inner>,
    /// What it is called towards servers, where that is said.
    broker: Option<String>,
    ledger: Option<Ledger>,
}

/// The sockets towards some servers, and the workers behind them. See the module.
///
/// It belongs to one thread, and needs a `LocalRuntime` or `LocalSet` around it.
pub struct Feed {
    servers: Vec<Rc<Server>>,
    /// What workers connect to, for each server.
    specs: Vec<(Endpoint, Endpoint)>,
    shared: Rc<Shared>,
    context: Context,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed")
            .field("servers", &self.servers.len())
            .finish_non_exhaustive()
    }
}

impl Feed {
    /// Connects to servers, given by their (`send_spec`, `recv_spec`), and binds two sockets for each in `directory`, which should
    /// be nobody else's: who can open the sockets takes part.
    ///
    /// # Errors
    ///
    /// When specs or the directory are of no use; never because a server is not there.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves tasks behind that end with `watch`.
    pub async fn start(
        servers: &[(Endpoint, Endpoint)],
        directory: &Path,
        settings: Settings,
        watch: &Watch,
    ) -> Result<Self, StartError> {
        let bound = servers
            .iter()
            .flat_map(|(send, recv)| [send, recv])
            .find(|spec| spec.mode == Some(Mode::Bind));
        if let Some(spec) = bound {
            return Err(StartError::Bound { spec: spec.clone() });
        }
        let mut feed = Self {
            servers: Vec::with_capacity(servers.len()),
            specs: Vec::with_capacity(servers.len()),
            shared: Rc::new(Shared {
                settings,
                served: Served::default(),
                ended: Notify::new(),
                rules: RefCell::new(Inner::of_feed()),
                broker: None,
                ledger: None,
            }),
            context: Context::new(),
        };
        let options = BindOptions {
            speaks: FEED,
            ipc_mode: Some(SOCKET_MODE),
            ..BindOptions::default()
        };
        for (number, (send, recv)) in servers.iter().enumerate() {
            let own = ["send", "recv"].map(|side| ipc(&directory.join(format!("{number}.{side}"))));
            let addresses = Addresses {
                plain: Some((&own[0], &own[1])),
                ..Addresses::default()
            };
            let bound = pool::bind(addresses, feed.pool_settings(), &options).await?;
            let [own_send, own_recv] = own;
            let specs = bound.endpoints().plain.clone();
            feed.specs.push(specs.unwrap_or((own_send, own_recv)));
            let pools = Pools::run(vec![(String::new(), None, bound)], None, watch);
            let shared = Rc::clone(&feed.shared);
            let (server, receiver, token) =
                Server::connect(number, (send, recv), &pools, shared, &feed.context)?;
            server.run(receiver, token, watch);
            feed.servers.push(server);
        }
        Ok(feed)
    }

    /// What workers connect to: (`send_spec`, `recv_spec`) for each server.
    pub fn specs(&self) -> Vec<(Endpoint, Endpoint)> {
        self.specs.clone()
    }

    fn pool_settings(&self) -> pool::Settings {
        let settings = &self.shared.settings;
        pool::Settings {
            // Until the first message has come; it means nothing.
            sender: Bytes::from_static(b"lurcher"),
            protocol: Protocol::default(),
            topic: Vec::new(),
            rules: pool::Rules {
                slots: settings.slots,
                // The bounds are kept here, by not reading the server.
                queue_max: usize::MAX,
                queue_bytes_max: usize::MAX,
                wait_max: settings.wait_max,
                start_grace: settings.wait_max,
                // A request that workers die with, one after the other, ends as any other that was lost with one.
                quarantine_after: 0,
                ..pool::Rules::for_front()
            },
            raw_payload: true,
        }
    }

    /// How the servers stand, in the order in which they were given.
    pub fn servers(&self) -> Vec<ServerState> {
        self.servers.iter().map(|server| server.state()).collect()
    }

    /// Every worker at every server.
    pub fn workers(&self) -> Vec<Worker> {
        let mut all = Vec::new();
        for (number, server) in self.servers.iter().enumerate() {
            all.extend(server.pool().report().workers.iter().map(|worker| Worker {
                pid: match worker.origin {
                    Origin::Process(pid) => Some(pid),
                    Origin::Address(_) | Origin::Unknown => None,
                },
                server: number,
                state: worker.state,
                open: worker.open,
                attached: worker.attached,
            }));
        }
        all
    }

    /// What a process does, and those that descend from it.
    pub fn counts(&self, pid: u32) -> Counts {
        let mut counts = Counts::default();
        for worker in self.workers() {
            if worker.pid.is_some_and(|own| processes::descends(own, pid)) {
                counts.connected += usize::from(worker.state != "draining");
                counts.open += worker.open;
                counts.attached += worker.attached;
            }
        }
        let served = self.shared.served.0.borrow();
        let of = served
            .iter()
            .filter(|(own, _)| processes::descends(**own, pid));
        counts.served = of.map(|(_, served)| *served).sum();
        counts
    }

    /// Forgets what processes have answered that are gone: another may get the number of one. To be called when a worker has ended.
    pub fn forget_ended(&self) {
        self.shared.served.forget_ended();
    }

    /// Requests that wait for a worker, and those that wait for the end of another of their connection.
    pub fn waiting(&self) -> usize {
        let waiting = |server: &Rc<Server>| server.pool().waiting().0 + server.held();
        self.servers.iter().map(waiting).sum()
    }

    /// Requests that no worker has answered yet, those that wait too, without streams and WebSocket connections.
    pub fn open(&self) -> usize {
        let open: u32 = self.workers().iter().map(|worker| worker.open).sum();
        self.waiting() + open as usize
    }

    /// Takes no more requests. A Lurcher is asked for that; the connection to a Mongrel2 is ended, and what it had written is
    /// received. Completes when every server has pushed its last request, at the latest after [`Settings::drain_timeout`]. What has
    /// come is answered as before.
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

    /// Gives no more new requests to a process and those that descend from it, for programs that do not ask for that themselves; a
    /// handler of the library's does, when it is told to stop. What is not written to it goes to others, and so do WebSocket connections.
    /// [`Feed::worker_idle`] tells when it has nothing open any more. Sockets that it connects later are not meant.
    pub fn drain_worker(&self, pid: u32) {
        for server in &self.servers {
            for own in server.processes() {
                if processes::descends(own, pid) {
                    server.pool().drain_process(own);
                }
            }
        }
    }

    /// Waits until a process and those that descend from it have no request open, streams included; false when `deadline` came
    /// first. WebSocket connections count too where there is no other worker that could have them.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only waits.
    pub async fn worker_idle(&self, pid: u32, deadline: Instant) -> bool {
        let has_open = || {
            let counts = self.counts(pid);
            counts.open + counts.attached
        };
        self.until(deadline, || has_open() == 0).await
    }

    /// Waits until no request is open; false when `deadline` came first.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only waits.
    pub async fn idle(&self, deadline: Instant) -> bool {
        self.until(deadline, || self.open() == 0).await
    }

    /// [`Feed::quiesce`], then the end of what is open, at most `grace` from now, then that of the workers' sockets; at last
    /// waits until replies are written, at most [`Settings::linger`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the feed stopping; its sockets close with the runtime.
    pub async fn stop(self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.quiesce().await;
        self.idle(deadline).await;
        for server in &self.servers {
            server.pool().close();
        }
        let end = Instant::now() + self.shared.settings.linger;
        for server in &self.servers {
            server.finish(end).await;
        }
        let context = self.context.clone();
        let over: Vec<_> = self.servers.iter().map(Rc::downgrade).collect();
        drop(self);
        // Their tasks have yet to run to see it; the sockets go with the last.
        while over.iter().any(|server| server.strong_count() > 0) && Instant::now() < end {
            tokio::task::yield_now().await;
        }
        context.close().await;
    }

    async fn until(&self, deadline: Instant, done: impl Fn() -> bool) -> bool {
        until(&self.shared, deadline, done).await
    }
}

async fn until(shared: &Shared, deadline: Instant, done: impl Fn() -> bool) -> bool {
    while !done() {
        let now = Instant::now();
        if now >= deadline {
            return false;
        }
        // Ends of requests come in crowds, and one look counts for all of them.
        tokio::time::sleep(LOOK.min(deadline - now)).await;
        tokio::select! {
            () = shared.ended.notified() => {}
            () = tokio::time::sleep(LOOK.min(deadline - now)) => {}
        }
    }
    true
}

impl Drop for Feed {
    fn drop(&mut self) {
        for server in &self.servers {
            server.close();
        }
    }
}

fn ipc(path: &Path) -> Endpoint {
    Endpoint {
        transport: Transport::Ipc {
            path: path.display().to_string(),
        },
        identity: None,
        mode: None,
    }
}
