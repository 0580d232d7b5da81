//! What is served: hosts, their routes, and what stands behind each.

use std::cell::Cell;
use std::rc::Rc;

use super::proxy::Backend;
use crate::config::{self, Retry};
use crate::files::Directory;
use crate::pool::{self, Pool};
use crate::routing::{HostTable, RouteTable};
use crate::sticky;
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
    pub(super) routes: RouteTable<Route>,
}

/// One route.
#[derive(Debug)]
pub(super) struct Route {
    target: Target,
    /// What stands behind it, as it is configured: `handler`, `dir` or `proxy`, and which.
    pub(super) named: (&'static str, String),
    /// Requests that it has taken.
    pub(super) requests: Cell<u64>,
}

impl Route {
    /// A route to `target`, which the configuration names so.
    pub(super) fn new(target: Target, configured: &config::Target) -> Self {
        let named = match configured {
            config::Target::Handler(handler) => {
                let (send, recv) = (&handler.send_spec.text, &handler.recv_spec.text);
                ("handler", format!("{send} {recv}"))
            }
            config::Target::Dir(dir) => ("dir", dir.base.clone()),
            config::Target::Proxy(proxy) => ("proxy", format!("{}:{}", proxy.addr, proxy.port)),
        };
        Self {
            target,
            named,
            requests: Cell::new(0),
        }
    }

    /// Its target, for one more request.
    pub(super) fn taken(&self) -> &Target {
        self.requests.set(self.requests.get() + 1);
        &self.target
    }
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
    /// Which requests go to the same worker.
    pub(super) sticky: Option<sticky::Key>,
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

    /// Every host, with what its name is matched by.
    pub(super) fn hosts(&self) -> impl Iterator<Item = (&str, &Host)> {
        self.table
            .iter()
            .filter_map(|(matching, index)| Some((matching, self.hosts.get(*index)?)))
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
