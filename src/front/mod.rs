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

mod access_log;
mod answer;
mod arrival;
mod body;
mod client;
mod clock;
mod connection;
mod dispatch;
mod limits;
mod listener;
mod local;
mod message;
mod origin;
mod proxy_protocol;
mod registry;
mod replies;
mod site;
mod stream;
mod sweep;
pub mod tls;

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
use tracing::{info, warn};

use crate::bus::server;
use crate::config::{Handler, Server, Settings, Target};
use crate::drain::Watch;
use crate::endpoint::{Endpoint, Transport};
use crate::pool::{self, BoundPool, Pool, Replies};

pub use access_log::AccessLog;
use client::{Client, Secure};
use clock::Clock;
use limits::Limits;
use registry::Registry;
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
    server: Server,
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

/// Binds a server of a configuration: its TCP address, the sockets of its handlers, its access log. `keys` are what a server
/// with `use_ssl` needs; others need none.
///
/// # Errors
///
/// When any of them cannot be had; then none is kept.
pub async fn bind(
    server: &Server,
    settings: &Settings,
    keys: Option<&Keys>,
    watch: &Watch,
) -> Result<Front, BindError> {
    let tls = match (server.use_ssl, keys) {
        (false, _) => None,
        // What was meant to be encrypted is not served in the clear.
        (true, None) => return Err(TlsError::NoKeys.into()),
        (true, Some(keys)) => Some(Rc::new(Tls::new(&server.uuid, settings, keys)?)),
    };
    let (listener, addr) = listen(SocketAddr::new(server.bind_addr, server.port))?;
    let mut handlers = Vec::new();
    for handler in server.handlers() {
        if clashes(&handlers, &handler) {
            warn!(
                "handler {}: one of its sockets, {} and {}, is another handler's: its routes answer 404",
                handler.send_ident, handler.send_spec.text, handler.recv_spec.text
            );
            continue;
        }
        let bound = bind_handler(server, settings, &handler)
            .await
            .map_err(|source| BindError::Handler {
                ident: handler.send_ident.clone(),
                source,
            })?;
        handlers.push((handler, bound));
    }
    let access_log = if settings.disable_access_logging {
        None
    } else {
        let path = inside_chroot(&server.chroot, &server.access_log);
        Some(AccessLog::open(&path).map_err(|source| BindError::AccessLog { path, source })?)
    };
    let shard = Rc::new(Shard {
        limits: RefCell::new(Rc::new(Limits::from(settings))),
        clock: Clock::new(),
        registry: Registry::new(getrandom::u32().map_err(BindError::Random)? & FIRST_ID_MAX),
        site: RefCell::default(),
        scratch: RefCell::new(vec![0; SCRATCH_BYTES]),
        access_log,
        tls,
        draining: Cell::new(false),
        closes_idle: Cell::new(false),
        watch: watch.clone(),
    });
    Ok(Front {
        listener,
        addr,
        handlers,
        server: server.clone(),
        shard,
    })
}

/// Whether a handler shares one socket, and not both, with one before it. Mongrel2 cannot bind it then.
fn clashes(handlers: &[(Arc<Handler>, BoundPool)], handler: &Handler) -> bool {
    let free = |spec: &Endpoint| matches!(spec.transport, Transport::Tcp { port: None, .. });
    handlers.iter().any(|(other, _)| {
        let same = |a: &crate::config::Spec, b: &crate::config::Spec| {
            a.text == b.text && !free(&a.endpoint)
        };
        same(&other.send_spec, &handler.send_spec) || same(&other.recv_spec, &handler.recv_spec)
    })
}

async fn bind_handler(
    server: &Server,
    settings: &Settings,
    handler: &Handler,
) -> Result<BoundPool, server::BindError> {
    let send = inside(&server.chroot, &handler.send_spec.endpoint);
    let recv = inside(&server.chroot, &handler.recv_spec.endpoint);
    let pool = pool::Settings {
        sender: Bytes::copy_from_slice(handler.send_ident.as_bytes()),
        protocol: handler.protocol,
        topic: handler.recv_ident.clone().into_bytes(),
        slots: handler.slots,
        waiting_max: handler.queue.unwrap_or(settings.handler_queue),
        waiting_bytes_max: settings.handler_queue_bytes,
        wait_max: settings.handler_wait,
    };
    pool::bind(&send, &recv, pool, &server::Options::default()).await
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

impl Front {
    /// Where clients connect, with the real port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What is served by TLS, to be replaced when certificates have changed; `None` without `use_ssl`.
    pub fn tls(&self) -> Option<Rc<Tls>> {
        self.shard.tls.clone()
    }

    /// The sockets of each handler, with their real ports: its `send_ident`, where requests leave, where replies come in.
    pub fn sockets(&self) -> impl Iterator<Item = (&str, &Endpoint, &Endpoint)> {
        self.handlers.iter().map(|(handler, bound)| {
            (
                handler.send_ident.as_str(),
                bound.send_endpoint(),
                bound.recv_endpoint(),
            )
        })
    }

    /// Serves until draining begins and every connection has ended, or its time is up.
    ///
    /// When `watch` drains, nothing more is accepted, idle connections close, open responses are finished; after
    /// `limits.drain_timeout` the rest is cut. Then the handlers' sockets are closed.
    pub async fn run(self, control: Control) {
        let shard = self.shard;
        let replies = Rc::clone(&shard) as Rc<dyn Replies>;
        let mut pools: Vec<(Arc<Handler>, Rc<Pool>)> = Vec::new();
        for (handler, bound) in self.handlers {
            info!(
                "handler {}: send {} recv {}",
                handler.send_ident,
                bound.send_endpoint(),
                bound.recv_endpoint()
            );
            pools.push((handler, bound.run(Rc::clone(&replies), &shard.watch)));
        }
        let site = build_site(&self.server, &pools);
        shard.site.replace(Rc::new(site));
        let sweeper = Rc::clone(&shard);
        shard.watch.spawn_local(sweep::run(sweeper));
        let scheme = if shard.tls.is_some() { "https" } else { "http" };
        info!("listening on {scheme}://{}", self.addr);
        let accepting = shard
            .watch
            .spawn_local(listener::accept(self.listener, Rc::clone(&shard)));
        tokio::select! {
            () = shard.watch.draining() => {}
            () = control.serve(&shard) => {}
        }
        shard.draining.set(true);
        // The accept loop sees the same signal; its listener is closed when this returns.
        drop(accepting.await);
        shard.drain().await;
        // Closing writes what is queued first: the last notices.
        for (_, pool) in &pools {
            pool.close();
        }
        if let Some(log) = &shard.access_log {
            log.finish();
        }
    }
}

fn build_site(server: &Server, pools: &[(Arc<Handler>, Rc<Pool>)]) -> Site {
    let target = |target: &Target| match target {
        Target::Handler(handler) => pools
            .iter()
            .find(|(known, _)| known.same_sockets(handler))
            .map_or(site::Target::Dead, |(known, pool)| {
                site::Target::Handler(Rc::new(site::Handler {
                    pool: Rc::clone(pool),
                    protocol: known.protocol,
                    retry: known.retry,
                }))
            }),
        Target::Dir(_) | Target::Proxy(_) => site::Target::Unserved,
    };
    let hosts = server
        .hosts
        .iter()
        .map(|host| {
            let mut routes = crate::routing::RouteTable::new();
            for route in &host.routes {
                let target = target(&route.target);
                if matches!(target, site::Target::Unserved) {
                    warn!("route {} of host {}: directories and proxies are not served yet: answered 501", route.path, host.name);
                }
                routes.insert(&route.path, target);
            }
            (host.matching.clone(), site::Host { name: Rc::from(host.name.as_str()), routes })
        })
        .collect();
    Site::new(hosts, server.default_host)
}

/// What the launcher can ask of a running front.
#[derive(Debug)]
pub struct Control {
    reopen: tokio::sync::mpsc::Receiver<()>,
}

impl Control {
    /// A control, and the sender by which the logs are asked to be reopened.
    pub fn new() -> (tokio::sync::mpsc::Sender<()>, Self) {
        let (sender, reopen) = tokio::sync::mpsc::channel(1);
        (sender, Self { reopen })
    }

    async fn serve(mut self, shard: &Shard) {
        while let Some(()) = self.reopen.recv().await {
            if let Some(log) = &shard.access_log {
                log.reopen();
            }
        }
        std::future::pending::<()>().await;
    }
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
    access_log: Option<AccessLog>,
    tls: Option<Rc<Tls>>,
    /// Nothing new is begun: responses say that they are the last of their connection.
    draining: Cell<bool>,
    /// Connections without an open request end.
    closes_idle: Cell<bool>,
    watch: Watch,
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
        if let Some(log) = &self.access_log {
            log.write(line, status, size);
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
