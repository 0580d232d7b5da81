//! Sockets that connect, by libzmq: PULL ([`Receiver`]), XPUB ([`Publisher`]), REQ ([`Requester`]) and DEALER ([`Dealer`]).
//!
//! libzmq tells of events through a descriptor that is edge-triggered and shared between reading and writing, so each
//! socket here is used in one measured way: clear tokio's readiness, call libzmq with `DONTWAIT` until it says `EAGAIN`,
//! and only then await the descriptor; after any other call on the socket the events are looked at again, because that
//! call may have eaten the edge. Sockets for sending and receiving are separate. All types are `Send` and `Sync` and work
//! in every flavour of the runtime, which needs its I/O and time drivers.
//!
//! This module moves messages and knows nothing of what is in them. It never binds for a server: [`crate::bus::server`]
//! does (a spec that ends in `#bind` makes a socket here bind, as in `m2wsgi`).

mod dealer;
mod monitor;
mod publisher;
mod receiver;
mod requester;

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::endpoint::{Endpoint, Mode, Transport};

pub use dealer::Dealer;
pub use publisher::{Publisher, Sent};
pub use receiver::Receiver;
pub use requester::{RequestError, Requester};

/// What every socket here may be given.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The identity of the socket, where the endpoint names none. Default: none.
    pub identity: Option<String>,
    /// What the sockets of one handler have in common, 32 hexadecimal digits, by which a Lurcher knows that they are one's: the
    /// READY of PULL and XPUB has it as [`crate::bus::HANDLER_PROPERTY`]. Default: none.
    pub token: Option<String>,
    /// What a broker is called that stands between a server and its workers: the READY of PULL and XPUB has it as
    /// [`crate::bus::BROKER_PROPERTY`]. Default: none, it is a handler.
    pub broker: Option<String>,
    /// Messages that libzmq keeps received and unread per server (`ZMQ_RCVHWM`); above it the server's socket fills, and
    /// then the server knows. 0 means no bound. Default: 1,000, as libzmq.
    pub received_max: u16,
    /// Messages that libzmq keeps unsent per server (`ZMQ_SNDHWM`); above it sending waits. At least 1. Default: 1,000.
    pub queued_max: u16,
    /// The largest message taken, in bytes (`ZMQ_MAXMSGSIZE`). libzmq closes a connection that announces a larger one *for
    /// good* and never reconnects, so this is a wall against memory exhaustion and no policy: leave it well above what the
    /// server may send. Default: 1 GiB.
    pub message_bytes_max: u64,
    /// How long a closed socket goes on sending what is queued (`ZMQ_LINGER`). Default: 5 s.
    pub linger: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            identity: None,
            token: None,
            broker: None,
            received_max: 1000,
            queued_max: 1000,
            message_bytes_max: 1 << 30,
            linger: Duration::from_secs(5),
        }
    }
}

/// A socket that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {endpoint}")]
pub struct OpenError {
    /// What was being done to the endpoint: `connecting to`, `binding`, ….
    pub doing: &'static str,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// What the system or libzmq said.
    #[source]
    pub source: io::Error,
}

/// A libzmq context: one I/O thread, shared by the sockets opened in it. Cheap to clone.
///
/// When the last clone and the last socket are gone, dropping blocks until what was sent is written, at most
/// [`Options::linger`]; in async code end with [`Context::close`].
#[derive(Clone)]
pub struct Context(zmq::Context);

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::new()
    }
}

impl Context {
    /// Makes a context. Its thread is started with the first socket.
    pub fn new() -> Self {
        Self(zmq::Context::new())
    }

    /// Gives up this clone, and waits on the blocking pool until what closed sockets had queued is written (at most their
    /// linger). Returns at once when other clones or open sockets remain.
    ///
    /// # Cancel safety
    ///
    /// Safe: the waiting goes on in the background.
    pub async fn close(self) {
        // A blocking pool that is shutting down has dropped the clone all the same.
        drop(tokio::task::spawn_blocking(move || drop(self)).await);
    }
}

/// libzmq's event descriptor, which the socket owns.
#[derive(Debug)]
struct Descriptor(RawFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// An opened socket and its descriptor in tokio. Fields in the order in which they must be dropped.
struct Opened {
    events: AsyncFd<Descriptor>,
    socket: zmq::Socket,
}

/// Makes a socket, sets what all have in common and what `set` adds, and connects (or binds) it.
fn open(
    context: &Context,
    kind: zmq::SocketType,
    endpoint: &Endpoint,
    options: &Options,
    set: impl FnOnce(&mut zmq::Socket) -> zmq::Result<()>,
) -> Result<Opened, OpenError> {
    let fail = |doing: &'static str| {
        move |source: io::Error| OpenError {
            doing,
            endpoint: endpoint.clone(),
            source,
        }
    };
    let mut socket = context
        .0
        .socket(kind)
        .map_err(|error| fail("opening a socket for")(error.into()))?;
    configure(&mut socket, endpoint, options)
        .and_then(|()| set(&mut socket))
        .map_err(|error| fail("setting socket options for")(error.into()))?;
    let events = watch(&socket).map_err(fail("watching the socket for"))?;
    let text = endpoint.to_string();
    if endpoint.mode == Some(Mode::Bind) {
        socket
            .bind(&text)
            .map_err(|error| fail("binding")(error.into()))?;
    } else {
        socket
            .connect(&text)
            .map_err(|error| fail("connecting to")(error.into()))?;
    }
    Ok(Opened { events, socket })
}

/// Registers libzmq's descriptor with tokio.
#[expect(
    unsafe_code,
    reason = "libzmq owns the descriptor, so there is nothing that tokio could own"
)]
fn watch(socket: &zmq::Socket) -> io::Result<AsyncFd<Descriptor>> {
    let descriptor = Descriptor(socket.get_fd()?);
    // SAFETY: the descriptor stays open as long as the socket, and every owner of both drops the `AsyncFd` first.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

fn configure(socket: &mut zmq::Socket, endpoint: &Endpoint, options: &Options) -> zmq::Result<()> {
    socket.set_linger(i32::try_from(options.linger.as_millis()).unwrap_or(i32::MAX))?;
    socket.set_rcvhwm(i32::from(options.received_max))?;
    socket.set_sndhwm(i32::from(options.queued_max.max(1)))?;
    socket.set_maxmsgsize(i64::try_from(options.message_bytes_max).unwrap_or(i64::MAX))?;
    if let Some(identity) = endpoint.identity.as_ref().or(options.identity.as_ref()) {
        socket.set_identity(identity.as_bytes())?;
    }
    if let Some(token) = &options.token {
        let property = format!("{}:{token}", crate::bus::HANDLER_PROPERTY);
        set_raw(socket, ZMQ_METADATA, property.as_bytes())?;
    }
    if let Some(broker) = &options.broker {
        let property = format!("{}:{broker}", crate::bus::BROKER_PROPERTY);
        set_raw(socket, ZMQ_METADATA, property.as_bytes())?;
    }
    // With IPv6 on, libzmq resolves a name to an IPv6 address first and never tries the next: only literals get it.
    if matches!(&endpoint.transport, Transport::Tcp { host, .. } if host.contains(':')) {
        socket.set_ipv6(true)?;
    }
    Ok(())
}

/// A property of our READY, as `NAME:VALUE`. The crates have no name for it, though libzmq has had the option since 4.2.
const ZMQ_METADATA: c_int = 95;

/// Sets an option that the zmq crate does not wrap.
#[expect(unsafe_code, reason = "the zmq crate wraps neither option")]
fn set_raw(socket: &mut zmq::Socket, option: c_int, value: &[u8]) -> zmq::Result<()> {
    // SAFETY: the socket is open and borrowed; libzmq reads as many bytes as it is told from a pointer that is valid for them.
    let code = unsafe {
        zmq_sys::zmq_setsockopt(
            socket.as_mut_ptr(),
            option,
            value.as_ptr().cast(),
            value.len(),
        )
    };
    if code == 0 {
        Ok(())
    } else {
        Err(zmq::Error::EINVAL)
    }
}

/// Whether libzmq merely said "not now", after which the descriptor may be awaited.
fn is_again(error: zmq::Error) -> bool {
    error == zmq::Error::EAGAIN
}

#[cfg(test)]
mod tests;
