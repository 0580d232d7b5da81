//! The HTTP front: web requests in, messages for handlers out, replies back.
//!
//! One shard, a single-threaded runtime that serves every connection and every handler socket without a lock:
//!
//! * [`listener`](self) accepts clients; each becomes a task that owns its socket (`connection`);
//! * a request head is routed (`dispatch`, `site`), written as one message (`message`, `body`) and given to the pool of the
//!   route's handler, which finds a peer for it;
//! * replies come in on the handler sockets' tasks and go into the mailboxes of the clients they name (`replies`,
//!   `registry`, `client`);
//! * a sweep sees to deadlines (`sweep`), so that no connection needs a timer of its own.
//!
//! [`bind`] takes every address and file that is needed, or none; [`Front::run`] serves until draining ends.

mod absent;
mod access_log;
mod answer;
mod arrival;
mod body;
mod client;
mod clock;
mod connection;
mod dir;
mod dispatch;
mod handle;
mod limits;
mod listener;
mod local;
mod message;
mod message_socket;
mod origin;
mod proxy;
mod proxy_protocol;
mod registry;
mod reload;
mod replies;
mod sendfile;
mod site;
mod sticky;
mod stream;
mod sweep;
pub mod tls;
mod upgrade;
mod upload;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bus::server;
use crate::config::{self, Config, Handler, Server, Settings, Target};
use crate::drain::Watch;
use crate::endpoint::{Endpoint, Transport};
use crate::files::{Directory, Files};
use crate::pool::{self, BoundPool, Pool, Replies};

pub use access_log::AccessLog;
use client::{Client, Secure};
use clock::Clock;
pub use handle::{Connection, Handle, Handlers, Peer, Route, State};
use limits::Limits;
use registry::Registry;
pub use reload::{ReloadError, Reloaded};
use site::Site;
use tls::{Keys, Tls, TlsError};

/// What stands in the `Server` header of the front's own answers.
const SERVER: &str = concat!("Lurcher/", env!("CARGO_PKG_VERSION"));

/// Bytes read from a client at once, into a buffer that all connections of the shard share.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Bytes of further requests that are read while a response is awaited; then the client has to wait.
const INPUT_AHEAD_MAX: usize = 64 * 1024;

/// How long the last bytes for a client may take, in milliseconds.
const FLUSH_TIMEOUT: u64 = 30_000;

/// How long we wait for a client's own end after ours, in milliseconds: closing earlier could reset the connection before
/// it has read its answer.
const LINGER: u64 = 2_000;

/// What is read and dropped meanwhile: a client that sends its whole body before it reads the refusal shall get to read it.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Connection ids start at random below this (a mask): there are handlers that keep them in 32 bits with a sign.
const FIRST_ID_MAX: u32 = (1 << 30) - 1;

/// How long the sockets of handlers may take to close when a front has ended.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a stopping front still takes connections that wait to be accepted, and then how long idle connections may still
/// send a request: long enough for what was sent before the end began.
const LAST_ACCEPT: Duration = Duration::from_millis(20);
const LAST_CALL: Duration = Duration::from_millis(50);

/// Why a front could not be started. Nothing is left bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The server's own address.
    #[error("listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A handler's socket.
    #[error("handler {ident}")]
    Handler {
        /// Its `send_ident`.
        ident: String,
        /// Which address, and why.
        source: server::BindError,
    },
    /// The access log.
    #[error("open access log {}", path.display())]
    AccessLog {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// TLS cannot be served.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No random number for the first connection id.
    #[error("get a random number for the first connection id")]
    Random(#[source] getrandom::Error),
}

/// A front that is bound and not yet served.
pub struct Front {
    listener: TcpListener,
    addr: SocketAddr,
    handlers: Vec<(Arc<Handler>, BoundPool)>,
    shard: Rc<Shard>,
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// Where a path of the configuration is in the file system: a configured chroot stands before it, joined as text.
pub fn inside_chroot(chroot: &str, path: &str) -> PathBuf {
    if chroot.is_empty() {
        return PathBuf::from(path);
    }
    let separator = if chroot.ends_with('/') || path.starts_with('/') {
        ""
    } else {
        "/"
    };
    PathBuf::from(format!("{chroot}{separator}{path}"))
}

/// What a front is to serve: one server of a configuration.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The whole configuration.
    pub config: Arc<Config>,
    /// Index of the server in it.
    pub server: usize,
    /// The certificates of a server with `use_ssl`; others need none.
    pub keys: Option<Arc<Keys>>,
}

impl Plan {
    /// The server.
    pub fn server(&self) -> &Server {
        &self.config.servers[self.server]
    }

    /// Whether its clients are served by TLS.
    pub fn use_ssl(&self) -> bool {
        self.server().use_ssl
    }

    /// What is served by TLS, if that is asked for. `before` is what was served until now.
    fn tls(&self, before: Option<&Tls>) -> Result<Option<Arc<Tls>>, TlsError> {
        match (self.use_ssl(), &self.keys) {
            (false, _) => Ok(None),
            // What was meant to be encrypted is not served in the clear.
            (true, None) => Err(TlsError::NoKeys),
            (true, Some(keys)) => {
                let uuid = &self.server().uuid;
                let tls = Tls::new(uuid, self.settings(), keys, before)?;
                Ok(Some(Arc::new(tls)))
            }
        }
    }

    /// The settings of the configuration.
    pub fn settings(&self) -> &Settings {
        &self.config.settings
    }
}

/// Binds what a plan names: the server's TCP address, the sockets of its handlers, its access log.
///
/// # Errors
///
/// When any of them cannot be had; then none is kept.
pub async fn bind(plan: Plan, watch: &Watch) -> Result<Front, BindError> {
    bind_with(None, plan, watch).await
}

/// As [`bind`], with a TCP listener that somebody else has bound, where there is one.
///
/// # Errors
///
/// As [`bind`].
pub async fn bind_with(
    listener: Option<std::net::TcpListener>,
    plan: Plan,
    watch: &Watch,
) -> Result<Front, BindError> {
    let (server, settings) = (plan.server(), plan.settings());
    let tls = plan.tls(None)?;
    let addr = SocketAddr::new(server.bind_addr, server.port);
    let (listener, addr) = match listener {
        None => listen(addr)?,
        Some(listener) => adopt(listener).map_err(|source| BindError::Listen { addr, source })?,
    };
    let mut handlers: Vec<(Arc<Handler>, BoundPool)> = Vec::new();
    for handler in server.handlers() {
        if clashes(handlers.iter().map(|(known, _)| known), &handler) {
            continue;
        }
        let bound = bind_handler(server, settings, &handler).await?;
        handlers.push((handler, bound));
    }
    let chroot = server.chroot.clone();
    let shard = Rc::new(Shard {
        limits: RefCell::new(Rc::new(Limits::from(settings))),
        clock: Clock::new(),
        registry: Registry::new(getrandom::u32().map_err(BindError::Random)? & FIRST_ID_MAX),
        site: RefCell::default(),
        scratch: RefCell::new(vec![0; SCRATCH_BYTES]),
        tls: RefCell::new(tls),
        access_log: RefCell::new(open_access_log(server, settings)?),
        files: Rc::new(Files::new(
            SERVER,
            settings.dir_cache_bytes,
            settings.dir_send_buffer,
        )),
        websocket_bytes: Cell::new(0),
        draining: Cell::new(false),
        closes_idle: Cell::new(false),
        plan: RefCell::new(plan),
        pools: RefCell::default(),
        retiring: RefCell::default(),
        accepting: RefCell::default(),
        backends: proxy::Backends::default(),
        chroot,
        addr: Cell::new(addr),
        watch: watch.clone(),
    });
    Ok(Front {
        listener,
        addr,
        handlers,
        shard,
    })
}

fn open_access_log(
    server: &Server,
    settings: &Settings,
) -> Result<Option<Rc<AccessLog>>, BindError> {
    if settings.disable_access_logging {
        return Ok(None);
    }
    let path = inside_chroot(&server.chroot, &server.access_log);
    let log = AccessLog::open(&path).map_err(|source| BindError::AccessLog { path, source })?;
    Ok(Some(Rc::new(log)))
}

/// Whether a handler shares one socket, and not both, with one of those before it. Mongrel2 cannot bind it then.
fn clashes<'a>(mut before: impl Iterator<Item = &'a Arc<Handler>>, handler: &Arc<Handler>) -> bool {
    let clash = before.any(|other| other.shares_a_socket(handler));
    if clash {
        let sockets: Vec<_> = handler
            .specs()
            .map(|(_, spec)| spec.text.as_str())
            .collect();
        warn!(
            "handler {}: one of its sockets, {}, is another handler's: its routes answer 404",
            handler.send_ident,
            sockets.join(" and ")
        );
    }
    clash
}

/// What a pool has to know of its handler.
fn pool_settings(settings: &Settings, handler: &Handler) -> pool::Settings {
    let wait = handler.wait.unwrap_or(settings.handler_wait);
    // Of plain handlers alone nobody knows what they have begun: a request that they die with, one after the other, ends as any
    // other that was lost with one.
    let quarantine_after = match handler.workers {
        Some(_) => pool::Rules::default().quarantine_after,
        None => 0,
    };
    let sticky = handler.sticky.as_ref().map(|rule| pool::Sticky {
        strict: rule.strict(),
        ..pool::Sticky::default()
    });
    pool::Settings {
        sender: Bytes::copy_from_slice(handler.send_ident.as_bytes()),
        protocol: handler.protocol,
        topic: handler.recv_ident.clone().into_bytes(),
        rules: pool::Rules {
            slots: handler.slots,
            queue_max: handler.queue.unwrap_or(settings.handler_queue),
            queue_bytes_max: settings.handler_queue_bytes,
            wait_max: wait,
            start_grace: wait,
            sticky,
            quarantine_after,
            ..pool::Rules::for_front()
        },
        raw_payload: handler.raw_payload,
    }
}

async fn bind_handler(
    server: &Server,
    settings: &Settings,
    handler: &Handler,
) -> Result<BoundPool, BindError> {
    let send = inside(&server.chroot, &handler.send_spec.endpoint);
    let recv = inside(&server.chroot, &handler.recv_spec.endpoint);
    let pool = pool_settings(settings, handler);
    let workers = handler.workers.as_ref();
    let workers = workers.map(|spec| inside(&server.chroot, &spec.endpoint));
    let addresses = pool::Addresses {
        plain: Some((&send, &recv)),
        workers: workers.as_ref(),
        pings: None,
    };
    pool::bind(addresses, pool, &server::Options::default())
        .await
        .map_err(|source| BindError::Handler {
            ident: handler.send_ident.clone(),
            source,
        })
}

/// An ipc path inside the chroot.
fn inside(chroot: &str, endpoint: &Endpoint) -> Endpoint {
    let mut endpoint = endpoint.clone();
    if let Transport::Ipc { path } = &mut endpoint.transport
        && !path.starts_with('@')
        && path != "*"
    {
        *path = inside_chroot(chroot, path).to_string_lossy().into_owned();
    }
    endpoint
}

fn listen(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let attempt = || {
        let socket = if addr.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        let listener = socket.listen(listener::BACKLOG)?;
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    };
    attempt().map_err(|source| BindError::Listen { addr, source })
}

/// A listener bound elsewhere: by a privileged parent, or by a service manager.
fn adopt(listener: std::net::TcpListener) -> io::Result<(TcpListener, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

impl Front {
    /// Where clients connect, with the real port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The sockets of each handler, with their real ports: its `send_ident`, where requests leave, where replies come in.
    pub fn sockets(&self) -> impl Iterator<Item = (&str, &Endpoint, &Endpoint)> {
        self.handlers.iter().filter_map(|(handler, bound)| {
            let (send, recv) = bound.endpoints().plain.as_ref()?;
            Some((handler.send_ident.as_str(), send, recv))
        })
    }

    /// What can be asked of this front while it runs.
    pub fn handle(&self) -> Handle {
        Handle::new(&self.shard)
    }

    /// Serves until draining begins and every connection has ended, or its time is up.
    ///
    /// When `watch` drains, nothing more is accepted, idle connections close, open responses are finished; after
    /// `limits.drain_timeout` the rest is cut. Then the handlers' sockets are closed.
    pub async fn run(self) {
        let shard = self.shard;
        for (handler, bound) in self.handlers {
            shard.run_pool(handler, bound);
        }
        shard.rebuild_site();
        shard.watch.spawn_local(sweep::run(Rc::clone(&shard)));
        shard.listen(self.listener, self.addr);
        shard.watch.draining().await;
        shard.draining.set(true);
        // The accept loops see the same signal; a listener is closed when its loop returns.
        let accepting = shard.accepting.take();
        if let Some(accepting) = accepting {
            drop(accepting.task.await);
        }
        shard.drain().await;
        // Closing writes what is queued first: the last notices.
        let retiring = shard.retiring.take();
        for (_, pool) in shard.pools.borrow().iter().chain(&retiring) {
            pool.close();
        }
        if let Some(log) = shard.access_log.take() {
            log.finish();
        }
    }
}

fn build_site(
    plan: &Plan,
    pools: &[(Arc<Handler>, Rc<Pool>)],
    files: &Files,
    backends: &proxy::Backends,
) -> Site {
    let server = plan.server();
    let types = dir::types(&plan.config.mimetypes);
    // One that several routes lead to is one, and so are its files in memory.
    let mut directories: Vec<(Arc<config::Dir>, Rc<Directory>)> = Vec::new();
    let mut target = |target: &Target| match target {
        Target::Handler(handler) => pools
            .iter()
            .find(|(known, _)| known.same_sockets(handler))
            .map_or(site::Target::Dead, |(known, pool)| {
                site::Target::Handler(Rc::new(site::Handler {
                    pool: Rc::clone(pool),
                    protocol: known.protocol,
                    retry: known.retry,
                    sticky: known.sticky.clone(),
                }))
            }),
        Target::Dir(dir) => {
            let known = directories
                .iter()
                .find(|(known, _)| Arc::ptr_eq(known, dir));
            let directory = known.map_or_else(
                || dir::directory(files, &server.chroot, dir, &types),
                |(_, directory)| Rc::clone(directory),
            );
            directories.push((Arc::clone(dir), Rc::clone(&directory)));
            site::Target::Dir(directory)
        }
        Target::Proxy(proxy) => site::Target::Proxy(backends.get(&proxy.addr, proxy.port)),
    };
    let hosts = server
        .hosts
        .iter()
        .map(|host| {
            let mut routes = crate::routing::RouteTable::new();
            for route in &host.routes {
                let target = target(&route.target);
                routes.insert(&route.path, site::Route::new(target, &route.target));
            }
            (
                host.matching.clone(),
                site::Host {
                    name: Rc::from(host.name.as_str()),
                    routes,
                },
            )
        })
        .collect();
    Site::new(hosts, server.default_host)
}

/// Everything that the tasks of one shard share.
struct Shard {
    /// What holds for requests that begin now; replaced when the configuration is read again.
    limits: RefCell<Rc<Limits>>,
    clock: Clock,
    registry: Registry,
    /// What is served to requests that begin now; replaced when the configuration is read again.
    site: RefCell<Rc<Site>>,
    /// What clients' bytes are read into; taken out while it is in use.
    scratch: RefCell<Vec<u8>>,
    /// What connections that begin now speak; `None`: plain HTTP.
    tls: RefCell<Option<Arc<Tls>>>,
    access_log: RefCell<Option<Rc<AccessLog>>>,
    /// What directories serve, and what of it is in memory.
    files: Rc<Files>,
    /// Bytes held of WebSocket messages that are incomplete or wait for a handler.
    websocket_bytes: Cell<usize>,
    /// Nothing new is begun: responses say that they are the last of their connection.
    draining: Cell<bool>,
    /// Connections without an open request end.
    closes_idle: Cell<bool>,
    /// What is served now, and the sockets of its handlers.
    plan: RefCell<Plan>,
    pools: RefCell<Vec<(Arc<Handler>, Rc<Pool>)>>,
    /// Handlers that no route leads to any more, with something still open.
    retiring: RefCell<Vec<(Arc<Handler>, Rc<Pool>)>>,
    accepting: RefCell<Option<Accepting>>,
    /// The servers that requests are passed on to.
    backends: proxy::Backends,
    /// Stands before the paths of uploads and of files to send.
    chroot: String,
    /// Where clients connect, with the real port.
    addr: Cell<SocketAddr>,
    watch: Watch,
}

/// The task that accepts, and how it is told that another has taken its place.
struct Accepting {
    task: tokio::task::JoinHandle<Option<()>>,
    superseded: CancellationToken,
}

impl Shard {
    fn site(&self) -> Rc<Site> {
        Rc::clone(&self.site.borrow())
    }

    fn limits(&self) -> Rc<Limits> {
        Rc::clone(&self.limits.borrow())
    }

    fn is_draining(&self) -> bool {
        self.draining.get()
    }

    fn closes_idle(&self) -> bool {
        self.closes_idle.get()
    }

    fn log(&self, line: &access_log::Line, status: u16, size: u64) {
        if let Some(log) = &*self.access_log.borrow() {
            log.write(line, status, size);
        }
    }

    /// Begins to serve the peers of a handler.
    fn run_pool(self: &Rc<Self>, handler: Arc<Handler>, bound: BoundPool) {
        if let Some((send, recv)) = &bound.endpoints().plain {
            info!("handler {}: send {send} recv {recv}", handler.send_ident);
        }
        if let Some(workers) = &bound.endpoints().workers {
            info!("handler {}: workers {workers}", handler.send_ident);
        }
        let pool = bound.run(Rc::clone(self) as Rc<dyn Replies>, &self.watch);
        self.pools.borrow_mut().push((handler, pool));
    }

    /// Makes the site of the plan and the pools as they are now.
    fn rebuild_site(&self) {
        let plan = self.plan.borrow();
        let settings = plan.settings();
        self.files
            .reset(settings.dir_cache_bytes, settings.dir_send_buffer);
        let site = build_site(&plan, &self.pools.borrow(), &self.files, &self.backends);
        absent::tell(&plan, &self.limits());
        self.site.replace(Rc::new(site));
    }

    /// Begins to accept; another listener's task ends after what waits for it.
    fn listen(self: &Rc<Self>, listener: TcpListener, addr: SocketAddr) {
        let scheme = if self.tls.borrow().is_some() {
            "https"
        } else {
            "http"
        };
        info!("listening on {scheme}://{addr}");
        self.addr.set(addr);
        let superseded = CancellationToken::new();
        let task = self.watch.spawn_local(listener::accept(
            listener,
            superseded.clone(),
            Rc::clone(self),
        ));
        let before = self.accepting.replace(Some(Accepting { task, superseded }));
        if let Some(before) = before {
            before.superseded.cancel();
        }
    }

    /// Enters a new client into the registry.
    fn admit(self: &Rc<Self>, addr: SocketAddr, secure: Option<Box<Secure>>) -> Rc<Client> {
        if self.registry.len() == 0 {
            // The sweep, which reads the clock, slept; what it showed last may be hours old, and deadlines are counted from it.
            self.clock.tick();
        }
        let client = Client::new(Rc::clone(self), addr, secure);
        self.registry.join(&client);
        client
    }

    /// Sets an accepted socket up.
    fn prepare(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        if self.limits().tcp_keepalive {
            crate::sys::set_keepalive(stream.as_fd())?;
        }
        Ok(())
    }

    /// Lets every connection end by itself, and cuts those that do not in time.
    async fn drain(&self) {
        // What clients have sent already lies in the kernel, and readiness is learnt only when the tasks let the reactor
        // run. Clients that send one request after the other learn from the answer that it is the last.
        tokio::select! {
            () = tokio::time::sleep(LAST_CALL) => {}
            () = self.watch.aborted() => {}
        }
        self.closes_idle.set(true);
        self.registry.for_each(Client::wake);
        let gone = async {
            while self.registry.occupied() > 0 {
                self.registry.left.notified().await;
            }
        };
        tokio::select! {
            () = gone => return,
            () = tokio::time::sleep(self.limits().drain_timeout) => {}
            () = self.watch.aborted() => {}
        }
        warn!(
            connections = self.registry.len(),
            "time is up: open connections are cut"
        );
        self.registry
            .for_each(|client| client.cut(client::Cut::Aborted));
        let gone = async {
            while self.registry.len() > 0 {
                self.registry.left.notified().await;
            }
        };
        // Each needs one turn of its task.
        drop(tokio::time::timeout(Duration::from_secs(1), gone).await);
    }
}
