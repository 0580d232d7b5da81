//! What is served: hosts, their routes, and what stands behind each.

use std::rc::Rc;

use crate::config::Retry;
use crate::pool::{self, Pool};
use crate::routing::{HostTable, RouteTable};
use crate::wire::Protocol;

/// Host names longer than this are not looked up: `limits.host_name` is 256, and DNS ends at 253.
const HOST_BYTES_MAX: usize = 256;

/// The hosts of a server.
#[derive(Debug)]
pub(super) struct Site {
    table: HostTable<usize>,
    hosts: Vec<Host>,
    default: usize,
}

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: Rc<str>,
    pub(super) routes: RouteTable<Target>,
}

/// What stands behind a route.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// A handler.
    Handler(Rc<Handler>),
    /// A handler whose sockets clash with another's: answered 404, as Mongrel2 does.
    Dead,
    /// A directory or proxy, which this build does not serve.
    Unserved,
}

/// A handler as its routes see it.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) pool: Rc<Pool>,
    pub(super) protocol: Protocol,
    pub(super) retry: Retry,
}

impl Handler {
    /// Whether a request with this method may be handed to a second peer when the first is lost.
    pub(super) fn retry(&self, method: &[u8]) -> pool::Retry {
        let safe = match self.retry {
            Retry::Safe => matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE"),
            Retry::Always => true,
            Retry::No => false,
        };
        if safe {
            pool::Retry::Safe
        } else {
            pool::Retry::Never
        }
    }
}

impl Site {
    pub(super) fn new(hosts: Vec<(String, Host)>, default: usize) -> Self {
        let mut table = HostTable::new();
        let mut list = Vec::with_capacity(hosts.len());
        for (index, (matching, host)) in hosts.into_iter().enumerate() {
            table.insert(&matching, index);
            list.push(host);
        }
        Self {
            table,
            hosts: list,
            default,
        }
    }

    /// The host for a Host header's value, or for none.
    pub(super) fn host(&self, value: Option<&[u8]>) -> Option<&Host> {
        let index = match value {
            Some(value) if self.hosts.len() > 1 => self.find(value).unwrap_or(self.default),
            _ => self.default,
        };
        self.hosts.get(index)
    }

    fn find(&self, value: &[u8]) -> Option<usize> {
        let mut name = [0; HOST_BYTES_MAX];
        let cut = host_name(value);
        let name = name.get_mut(..cut.len())?;
        name.copy_from_slice(cut);
        name.make_ascii_lowercase();
        self.table.find(name).copied()
    }
}

/// The name in a Host header's value: without the port, and an IPv6 literal whole, in its brackets.
fn host_name(value: &[u8]) -> &[u8] {
    let end = if value.first() == Some(&b'[') {
        memchr::memchr(b']', value).map(|end| end + 1)
    } else {
        memchr::memchr(b':', value).filter(|colon| *colon > 0)
    };
    end.and_then(|end| value.get(..end)).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::host_name;

    #[test]
    fn a_port_is_cut_and_an_ipv6_literal_is_not() {
        for (value, name) in [
            ("a.b:80", "a.b"),
            ("a.b", "a.b"),
            ("[::1]:80", "[::1]"),
            ("[::1", "[::1"),
            (":80", ":80"),
            ("", ""),
        ] {
            assert_eq!(host_name(value.as_bytes()), name.as_bytes(), "{value}");
        }
    }
}
