//! Sockets that connect: PULL ([`Receiver`]), XPUB ([`Publisher`]), REQ ([`Requester`]) and DEALER ([`Dealer`]), by our own ZMTP.
//!
//! Each connection has a task, which connects, connects again when it is lost, reads what arrives and writes what is queued: all that
//! was queued in one turn of the loop with one call. It shares its socket's state with the owner under one lock; there is no channel
//! between them, and one wake-up per batch. All types are `Send` and `Sync` and work in every flavour of the runtime, which needs its
//! I/O and time drivers.
//!
//! This module moves messages and knows nothing of what is in them. It never binds for a server: [`crate::bus::server`]
//! does (a spec that ends in `#bind` makes a socket here bind, as in `m2wsgi`).

mod accept;
mod address;
mod dealer;
mod link;
mod publisher;
mod receiver;
mod requester;
mod shared;
mod task;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use self::shared::{Core, Habits};
use crate::endpoint::{Endpoint, Mode};

pub use address::Dialed;
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
    /// Messages that are kept received and unread per server, and not more than 64 MiB of them; above it the server's socket fills,
    /// and then the server knows. 0 means no bound on their number. Default: 1,000, as libzmq.
    pub received_max: u16,
    /// Messages that are kept unsent per server, and not more than 64 MiB of them; above it sending waits. At least 1.
    /// Default: 1,000.
    pub queued_max: u16,
    /// The largest message taken, in bytes. A connection on which a larger one is announced is given up and made again, so this is a
    /// wall against memory exhaustion and no policy: leave it well above what the server may send. Default: 1 GiB.
    pub message_bytes_max: u64,
    /// How long a closed socket goes on sending what is queued. Default: 5 s.
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
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// What the sockets of one owner have in common: that their last messages can be waited for. Cheap to clone.
///
/// When a socket is dropped, what the kernel takes at once of what was sent is written at once, and the rest in the background, for
/// at most [`Options::linger`]: end with [`Context::close`], so that the runtime stays for it.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The tasks of all sockets.
    tasks: TaskTracker,
    /// Counts clones, of which each open socket has one.
    holders: Arc<()>,
}

impl Context {
    /// Makes a context.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives up this clone, and waits until what closed sockets had queued is written (at most their linger). Returns at once when
    /// other clones or open sockets remain.
    ///
    /// # Cancel safety
    ///
    /// Safe: the writing goes on in the background.
    pub async fn close(self) {
        if Arc::strong_count(&self.holders) == 1 {
            self.tasks.close();
            self.tasks.wait().await;
        }
    }
}

/// Makes a socket, and starts the task that connects it, or binds it. Who has one connection only connects himself.
fn open(
    context: &Context,
    endpoint: &Endpoint,
    options: &Options,
    habits: Habits,
) -> Result<Arc<Core>, OpenError> {
    let fail = |doing| {
        let endpoint = endpoint.clone();
        move |source| OpenError {
            doing,
            endpoint,
            source,
        }
    };
    if endpoint.mode == Some(Mode::Bind) {
        let (listener, endpoint) = accept::bind(endpoint).map_err(fail("binding"))?;
        let core = Arc::new(Core::new(&endpoint, options, habits));
        let tasks = context.tasks.clone();
        context.tasks.spawn(accept::accept(
            task::Alive(Arc::clone(&core)),
            listener,
            tasks,
        ));
        return Ok(core);
    }
    address::check(endpoint).map_err(fail("connecting to"))?;
    let core = Arc::new(Core::new(endpoint, options, habits));
    if !habits.is_once {
        context
            .tasks
            .spawn(task::keep_connected(task::Alive(Arc::clone(&core))));
    }
    Ok(core)
}

/// The runtime that looked after a socket has ended.
fn dead() -> io::Error {
    io::Error::other("the runtime of the socket has ended")
}

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod tests;
