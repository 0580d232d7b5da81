//! The connections to one backend: those that wait for the next request, and how many may be in use.
//!
//! A connection is in use from when it is made or taken until its response is complete; then it is kept, or closed by being
//! dropped. The one used last is taken first, so that the others grow old and go.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::body::Body;
use super::socket::Socket;
use super::{FIELDS_MAX, HEAD_BYTES_MAX, connect};
use crate::drain::Watch;
use crate::front::answer::Fault;

/// Idle connections that are kept to one backend; a further one is closed.
const IDLE_MAX: usize = 64;

/// How long an idle connection is kept: less than most servers do, since a request that meets their end may be lost.
const IDLE_TIME: Duration = Duration::from_secs(30);

/// How long a connection whose response is complete may take to be ready for the next request.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes that are read from a backend ahead of the client; more than a head may have.
const BUFFER_BYTES: usize = HEAD_BYTES_MAX + 8 * 1024;

/// All backends that are in use or named by a route, each once, however many routes and configurations name it.
#[derive(Debug, Default)]
pub(in crate::front) struct Backends(RefCell<Vec<Weak<Backend>>>);

impl Backends {
    /// The backend at this name and port.
    pub(in crate::front) fn get(&self, name: &str, port: u16) -> Rc<Backend> {
        let mut known = self.0.borrow_mut();
        known.retain(|backend| backend.strong_count() > 0);
        if let Some(backend) = known
            .iter()
            .filter_map(Weak::upgrade)
            .find(|backend| backend.name == name && backend.port == port)
        {
            return backend;
        }
        let backend = Rc::new(Backend::new(name, port));
        known.push(Rc::downgrade(&backend));
        backend
    }
}

/// One server that requests are passed on to.
#[derive(Debug)]
pub(in crate::front) struct Backend {
    /// A host name or an address.
    name: String,
    port: u16,
    authority: HeaderValue,
    /// Oldest first.
    idle: RefCell<Vec<Idle>>,
    /// A task sees to it that idle connections do not grow too old.
    is_swept: Cell<bool>,
    in_use: Cell<usize>,
    freed: Notify,
    /// Turns to look its name up.
    lookups: Arc<Semaphore>,
    /// The address that took the last connection.
    address: Cell<Option<SocketAddr>>,
    /// The last connection failed: said once, not per request.
    is_down: Cell<bool>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection to a backend; it is closed when this is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: SendRequest<Body>,
    /// It has had a request before: the backend may be closing it just now.
    pub(super) is_used: bool,
    _driver: AbortOnDropHandle<Option<()>>,
}

/// The right to use one connection.
#[derive(Debug)]
pub(super) struct Permit(Rc<Backend>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_use.set(self.0.in_use.get().saturating_sub(1));
        self.0.freed.notify_one();
    }
}

impl Backend {
    fn new(name: &str, port: u16) -> Self {
        let authority = if name.contains(':') {
            format!("[{name}]:{port}")
        } else {
            format!("{name}:{port}")
        };
        Self {
            name: name.to_owned(),
            port,
            // A name that is no text for a field cannot be looked up either.
            authority: HeaderValue::from_str(&authority)
                .unwrap_or_else(|_| HeaderValue::from_static("")),
            idle: RefCell::default(),
            is_swept: Cell::new(false),
            in_use: Cell::new(0),
            freed: Notify::new(),
            lookups: Arc::new(Semaphore::new(connect::LOOKUPS_MAX)),
            address: Cell::new(None),
            is_down: Cell::new(false),
        }
    }

    /// Name and port as a Host line has them.
    pub(super) fn authority(&self) -> &HeaderValue {
        &self.authority
    }

    /// Waits until fewer than so many connections are in use.
    ///
    /// # Cancel safety
    ///
    /// Safe: one that no longer waits takes no turn.
    pub(super) async fn admit(self: &Rc<Self>, most: Option<usize>) -> Permit {
        while most.is_some_and(|most| self.in_use.get() >= most) {
            self.freed.notified().await;
        }
        self.in_use.set(self.in_use.get() + 1);
        Permit(Rc::clone(self))
    }

    /// An idle connection that still stands, as far as is known.
    pub(super) fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { connection, since }) = idle.pop() {
            if connection.sender.is_ready() && since.elapsed() < IDLE_TIME {
                return Some(connection);
            }
        }
        None
    }

    /// Makes a connection; its driver is a task of its own.
    pub(super) async fn connect(&self, watch: &Watch) -> Result<Connection, Fault> {
        let connected =
            connect::connect(&self.name, self.port, self.address.get(), &self.lookups).await;
        self.note_state(connected.as_ref().err().copied());
        let (stream, address) = connected?;
        self.address.set(Some(address));
        let (sender, connection) = http1::Builder::new()
            .title_case_headers(true)
            .max_buf_size(BUFFER_BYTES)
            .max_header_size(HEAD_BYTES_MAX)
            .max_headers(FIELDS_MAX)
            .handshake(TokioIo::new(Socket::new(stream)))
            .await
            .map_err(|_| Fault::Unreachable)?;
        let driver = watch.spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "connection to a backend failed");
            }
        });
        Ok(Connection {
            sender,
            is_used: false,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// A connection could not be made in time.
    pub(super) fn note_silence(&self) {
        self.note_state(Some(Fault::ConnectTimeout));
    }

    fn note_state(&self, fault: Option<Fault>) {
        let was_down = self.is_down.replace(fault.is_some());
        match fault {
            Some(fault) if !was_down => {
                warn!(backend = ?self.authority, ?fault, "a backend does not take connections");
            }
            None if was_down => {
                info!(backend = ?self.authority, "the backend takes connections again");
            }
            _ => {}
        }
    }

    /// Keeps a connection whose exchange is complete, if it can be used again.
    pub(super) fn give_back(self: &Rc<Self>, mut connection: Connection, watch: &Watch) {
        connection.is_used = true;
        if connection.sender.is_ready() {
            self.keep(connection, watch);
        } else if !connection.sender.is_closed() && !watch.is_draining() {
            // Its driver has not had its turn since the last byte.
            let (backend, keeper) = (Rc::clone(self), watch.clone());
            watch.spawn_local(async move {
                let ready = tokio::time::timeout(READY_TIMEOUT, connection.sender.ready()).await;
                if matches!(ready, Ok(Ok(()))) {
                    backend.keep(connection, &keeper);
                }
            });
        }
    }

    fn keep(self: &Rc<Self>, connection: Connection, watch: &Watch) {
        if watch.is_draining() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= IDLE_MAX {
            idle.remove(0);
        }
        idle.push(Idle {
            connection,
            since: Instant::now(),
        });
        if !self.is_swept.replace(true) {
            let (backend, seen) = (Rc::clone(self), watch.clone());
            watch.spawn_local(async move { backend.sweep(&seen).await });
        }
    }

    /// Closes idle connections that have grown old, until there are none or the front stops.
    async fn sweep(&self, watch: &Watch) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(IDLE_TIME / 4) => {}
                () = watch.draining() => {
                    self.idle.borrow_mut().clear();
                    self.is_swept.set(false);
                    return;
                }
            }
            let mut idle = self.idle.borrow_mut();
            idle.retain(|idle| {
                idle.since.elapsed() < IDLE_TIME && !idle.connection.sender.is_closed()
            });
            if idle.is_empty() {
                self.is_swept.set(false);
                return;
            }
        }
    }
}
