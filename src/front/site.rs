//! What is served: hosts, their routes, and what stands behind each.

use std::rc::Rc;

use super::proxy::Backend;
use crate::config::Retry;
use crate::files::Directory;
use crate::pool::{self, Pool};
use crate::routing::{HostTable, RouteTable};
use crate::wire::Protocol;

/// The hosts of a server.
#[derive(Debug, Default)]
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
    /// A directory of files.
    Dir(Rc<Directory>),
    /// Another HTTP server.
    Proxy(Rc<Backend>),
}

/// A handler as its routes see it.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) pool: Rc<Pool>,
    pub(super) protocol: Protocol,
    pub(super) retry: Retry,
}

impl Handler {
    /// The same for a request that is only announced yet: whatever its method, its handler has nothing to act on.
    pub(super) fn retry_announced(&self) -> pool::Retry {
        match self.retry {
            Retry::Safe | Retry::Always => pool::Retry::Safe,
            Retry::No => pool::Retry::Never,
        }
    }

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
            Some(value) if self.hosts.len() > 1 => {
                self.table.find(value).copied().unwrap_or(self.default)
            }
            _ => self.default,
        };
        self.hosts.get(index)
    }
}
