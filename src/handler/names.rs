//! Servers behind a host name: all of its addresses, looked up again now and then.
//!
//! A lookup blocks, so it is done on the blocking pool, one at a time; what to do about addresses that come and go is the
//! connection's business. Numeric addresses are never looked up, and neither is what is no host name.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future as _;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Waker, Poll, ready};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::endpoint::{Endpoint, Mode, Transport};

/// After a lost connection names are looked up again at once, but not more often than this: the server may be flapping.
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);

/// How the addresses of a host name are found.
pub trait Lookup: fmt::Debug + Send + Sync {
    /// All addresses of that name, now. May block: it is called on a thread for that.
    ///
    /// # Errors
    ///
    /// When they cannot be found now. Servers that are known stay then.
    fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// As the system does it: `/etc/hosts`, DNS, ….
#[derive(Debug, Clone, Copy)]
pub(super) struct System;

impl Lookup for System {
    fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok((name, 0)
            .to_socket_addrs()?
            .map(|address| address.ip())
            .collect())
    }
}

/// Both specs of a server, as (`send_spec`, `recv_spec`).
pub(super) type Specs = (Endpoint, Endpoint);

/// The addresses that were found for each name, by its index; none for a name that could not be looked up.
pub(super) type Found = Vec<Option<BTreeSet<IpAddr>>>;

/// The names of a connection's specs.
#[derive(Debug)]
pub(super) struct Names {
    /// The specs, and the name that stands in both.
    list: Vec<(Specs, String)>,
    lookup: Arc<dyn Lookup>,
    interval: Duration,
    job: Option<JoinHandle<Found>>,
    /// When the last lookup began, if any has.
    looked: Option<Instant>,
    due: Pin<Box<Sleep>>,
}

impl Names {
    /// Takes the specs that name a host out of `pairs`: those of which both name the same.
    pub(super) fn of(pairs: &mut Vec<Specs>, lookup: Arc<dyn Lookup>, interval: Duration) -> Self {
        let mut list = Vec::new();
        pairs.retain(|(send, recv)| match (host_name(send), host_name(recv)) {
            (Some(name), Some(other)) if name == other => {
                list.push(((send.clone(), recv.clone()), name.to_owned()));
                false
            }
            _ => true,
        });
        Self {
            list,
            lookup,
            interval,
            job: None,
            looked: None,
            due: Box::pin(sleep_until(Instant::now())),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The specs of a name with one of its addresses in its place.
    pub(super) fn specs(&self, index: usize, address: IpAddr) -> Option<Specs> {
        let ((send, recv), _) = self.list.get(index)?;
        Some((at(send, address), at(recv, address)))
    }

    /// A connection was lost: its server may have moved.
    pub(super) fn hurry(&mut self) {
        let soon = self
            .looked
            .map_or_else(Instant::now, |looked| looked + LOOKUP_PAUSE);
        if self.job.is_none() && soon < self.due.deadline() {
            self.due.as_mut().reset(soon);
        }
    }

    /// Looks names up when that is due; ready with what was found. Pending for ever where there are no names.
    pub(super) fn poll(&mut self, cx: &mut Waker<'_>) -> Poll<Found> {
        if self.list.is_empty() {
            return Poll::Pending;
        }
        if self.job.is_none() {
            ready!(self.due.as_mut().poll(cx));
            let names: Vec<String> = self.list.iter().map(|(_, name)| name.clone()).collect();
            let lookup = Arc::clone(&self.lookup);
            self.looked = Some(Instant::now());
            self.job = Some(tokio::task::spawn_blocking(move || {
                names.iter().map(|name| find(&*lookup, name)).collect()
            }));
        }
        let Some(job) = &mut self.job else {
            return Poll::Pending;
        };
        let found = ready!(Pin::new(job).poll(cx));
        self.job = None;
        // What could not be found at all is looked for more often: there is nobody to serve.
        let found = found.unwrap_or_default();
        let missing = found.len() < self.list.len() || found.iter().any(Option::is_none);
        let pause = if missing {
            self.interval.min(LOOKUP_PAUSE)
        } else {
            self.interval
        };
        self.due.as_mut().reset(Instant::now() + pause);
        Poll::Ready(found)
    }
}

/// All addresses of a name in one family: a server that listens on both would be connected to twice. IPv4 where there is any, as
/// libzmq has it.
fn find(lookup: &dyn Lookup, name: &str) -> Option<BTreeSet<IpAddr>> {
    match lookup.addresses(name) {
        Ok(mut addresses) => {
            if addresses.iter().any(IpAddr::is_ipv4) {
                addresses.retain(IpAddr::is_ipv4);
            }
            (!addresses.is_empty()).then(|| addresses.into_iter().collect())
        }
        Err(error) => {
            tracing::debug!(%error, name, "looking up a host name");
            None
        }
    }
}

/// The host name that a spec connects to, if it has one.
fn host_name(spec: &Endpoint) -> Option<&str> {
    match &spec.transport {
        Transport::Tcp { host, .. }
            if spec.mode != Some(Mode::Bind)
                && host.parse::<IpAddr>().is_err()
                && !host.contains(['*', ';', ':', '%']) =>
        {
            Some(host)
        }
        _ => None,
    }
}

fn at(spec: &Endpoint, address: IpAddr) -> Endpoint {
    let mut spec = spec.clone();
    if let Transport::Tcp { host, .. } = &mut spec.transport {
        *host = address.to_string();
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Both;

    impl Lookup for Both {
        fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
            let text: &[&str] = match name {
                "both" => &["::1", "10.0.0.2", "10.0.0.1", "10.0.0.2"],
                "six" => &["::2", "::1"],
                _ => return Err(io::ErrorKind::NotFound.into()),
            };
            Ok(text.iter().map(|text| text.parse().unwrap()).collect())
        }
    }

    #[test]
    fn only_host_names_are_looked_up() {
        let spec = |text: &str| text.parse::<Endpoint>().unwrap();
        for name in ["tcp://a.example:1", "tcp://me@localhost:1#connect"] {
            assert!(host_name(&spec(name)).is_some(), "{name}");
        }
        for other in [
            "tcp://127.0.0.1:1",
            "tcp://[::1]:1",
            "tcp://*:1",
            "tcp://eth0:1#bind",
            "ipc:///tmp/a",
        ] {
            assert_eq!(host_name(&spec(other)), None, "{other}");
        }
    }

    #[test]
    fn addresses_are_of_one_family() {
        let found = |name| {
            let found = find(&Both, name)?;
            Some(found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(found("both").unwrap(), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(found("six").unwrap(), ["::1", "::2"]);
        assert_eq!(found("none"), None);
    }
}
