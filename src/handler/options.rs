//! Where a handler connects, and how; and why it could not.
//!
//! Words only: what is done with them stands in [`super::connection`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::names::{Lookup, System};
use super::observer::Observer;
use crate::bus::client::{self, OpenError};
use crate::endpoint::{Endpoint, EndpointError};

/// Where to connect, and how. Specs are named from the server's side, as in its configuration.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Where servers push requests from: the `send_spec` of each. Among them brokers, as `broker+tcp://HOST:PORT`: see
    /// [`super::Connection::to_broker`].
    pub send_specs: Vec<Endpoint>,
    /// Where servers take replies: the `recv_spec` of each, in the order of `send_specs`, brokers left out. Default: empty, which
    /// means the send spec with its port one down.
    pub recv_specs: Vec<Endpoint>,
    /// The handler's own ident: the identity of its sockets where a spec names none. Servers do not care. Default: none.
    pub ident: Option<String>,
    /// Requests that are kept received and unread per server before the server must wait. Default: 1,000.
    pub requests_received_max: u16,
    /// Replies that are kept unsent per server before sending waits. Default: 1,000.
    pub replies_queued_max: u16,
    /// The largest message taken, in bytes; the connection to a server that sends a larger one is given up and made anew, so leave it
    /// well above the server's own limit. Default: 1 GiB.
    pub message_bytes_max: u64,
    /// How long a server's subscription is waited for, before the first request and after a restart of the server; then
    /// replies are dropped until it subscribes. Default: 1 s.
    pub subscription_timeout: Duration,
    /// When stopping: a server that can neither be asked for no more requests nor be left by ending the connection (we are bound,
    /// and it connects) has nothing more in flight when it has pushed nothing for so long. Default: 100 ms.
    pub quiet_time: Duration,
    /// When stopping: the longest time to wait for the last request of each server. What they push after that is lost.
    /// Default: 5 s.
    pub drain_timeout: Duration,
    /// How often the addresses of host names are looked up again; after a lost connection it is done at once. Default: 30 s.
    pub lookup_interval: Duration,
    /// How they are looked up. Default: as the system does it.
    pub lookup: Arc<dyn Lookup>,
    /// How long unsent replies are kept trying at the end. Default: 5 s.
    pub linger: Duration,
    /// Who is told of each request that begins and ends. Default: nobody.
    pub observer: Option<Arc<dyn Observer>>,
    /// The directory that the servers are locked into (`chroot` in their configuration): names of uploads are below it. Default:
    /// none; then relative names are below this process's working directory.
    pub chroot: Option<PathBuf>,
    /// The servers' setting `upload.temp_store` (`/var/up/body.XXXXXX`): then no upload with a name of another form is believed, and
    /// one of that form also when another handler has heard of its beginning, as happens where a Mongrel2 deals to several.
    /// Default: none; then an upload is believed only where this connection was told of its beginning, since the name alone proves
    /// nothing.
    pub upload_store: Option<PathBuf>,
    /// For brokers: how many requests are taken at once; the rest waits there, or goes to others. A program that answers one after the
    /// other says 1, one that has so many tasks or threads for it their number. Default: none, whatever the broker sees fit.
    pub slots: Option<u32>,
    /// For brokers: the share of sticky clients beside workers of the weight 1, from 1 to 1000. Default: 1.
    pub weight: u32,
    /// For brokers: the worker's name, which stands in figures and decides which sticky clients are its own: let it stay the same
    /// when the program is started again, and be no other's. At most 255 bytes. Default: this machine's name and the process's number.
    pub name: Option<String>,
    /// For brokers: which of their pools to work for. Default: the first.
    pub pool: Option<String>,
}

impl Default for Options {
    /// The defaults, for no server yet.
    fn default() -> Self {
        Self::new([])
    }
}

impl Options {
    /// The defaults, for servers with these send specs.
    pub fn new(send_specs: impl IntoIterator<Item = Endpoint>) -> Self {
        let bus = client::Options::default();
        Self {
            send_specs: send_specs.into_iter().collect(),
            recv_specs: Vec::new(),
            ident: None,
            requests_received_max: bus.received_max,
            replies_queued_max: bus.queued_max,
            message_bytes_max: bus.message_bytes_max,
            subscription_timeout: Duration::from_secs(1),
            quiet_time: Duration::from_millis(100),
            drain_timeout: Duration::from_secs(5),
            lookup_interval: Duration::from_secs(30),
            lookup: Arc::new(System),
            linger: bus.linger,
            observer: None,
            chroot: None,
            upload_store: None,
            slots: None,
            weight: 1,
            name: None,
            pool: None,
        }
    }

    /// The defaults, for one send spec or several with commas between them.
    ///
    /// # Errors
    ///
    /// When one of them is no spec.
    pub fn to(send_specs: &str) -> Result<Self, EndpointError> {
        let specs: Result<Vec<Endpoint>, _> = send_specs.split(',').map(str::parse).collect();
        Ok(Self::new(specs?))
    }

    /// Whether specs come in pairs, as [`super::Connection::connect`] needs them.
    ///
    /// # Errors
    ///
    /// [`ConnectError::RecvSpec`] and [`ConnectError::Count`].
    pub fn check(&self) -> Result<(), ConnectError> {
        self.pairs().map(drop)
    }

    /// The servers as (`send_spec`, `recv_spec`); recv specs are inferred where none are given. Of a broker both are the same.
    ///
    /// # Errors
    ///
    /// As [`Options::check`].
    pub fn pairs(&self) -> Result<Vec<(Endpoint, Endpoint)>, ConnectError> {
        let servers = self.send_specs.iter().filter(|spec| !spec.is_broker());
        let count = servers.count();
        let given = self.recv_specs.len();
        if self.send_specs.is_empty() || (given > 0 && given != count) {
            return Err(ConnectError::Count {
                send: count,
                recv: given,
            });
        }
        let mut recv = self.recv_specs.iter();
        let pairs = self.send_specs.iter().map(|spec| {
            let pair = if spec.is_broker() {
                Some(spec.clone())
            } else if given > 0 {
                recv.next().cloned()
            } else {
                spec.one_port_down()
            };
            pair.map(|recv| (spec.clone(), recv))
                .ok_or_else(|| ConnectError::RecvSpec {
                    send_spec: spec.clone(),
                })
        });
        pairs.collect()
    }
}

/// Why a connection was not made. A server that is not there (yet) is no reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A recv spec cannot be inferred from a send spec that has no port.
    #[error("{send_spec} has no port that its recv spec could be one below: name the recv spec")]
    RecvSpec {
        /// The send spec.
        send_spec: Endpoint,
    },
    /// Specs come in pairs.
    #[error("{send} send specs do not go with {recv} recv specs")]
    Count {
        /// Number of send specs.
        send: usize,
        /// Number of recv specs.
        recv: usize,
    },
    /// A socket could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A broker does not want this worker.
    #[error("the broker at {endpoint} refuses: {reason}")]
    Refused {
        /// Where.
        endpoint: Endpoint,
        /// What it says.
        reason: String,
    },
    /// The runtime of [`super::blocking::Connection`] could not be started.
    #[error("starting a runtime")]
    Runtime(#[source] io::Error),
    /// A socket broke while the subscription was awaited.
    #[error("waiting for {endpoint} to subscribe to replies")]
    Subscription {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
}
