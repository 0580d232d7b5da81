//! Configuration: a Mongrel2 database or an m2sh `.conf`, read into one validated, immutable model.
//!
//! [`load`] is the way in for a server; [`read`] is the way in for tools that want every server and every finding. The
//! model knows nothing of either form, opens no socket and enforces no limit. Only `sqlite` names the `SQLite` crate.

mod changes;
pub mod check;
pub mod conf;
mod diagnostic;
mod draft;
mod load;
mod mimetypes;
pub mod plugin;
pub mod settings;
pub mod sqlite;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::{Endpoint, Transport};
use crate::routing::{HostTable, RouteTable};
use crate::sticky;
use crate::wire::Protocol;

pub use changes::changes;
pub use diagnostic::{Diagnostic, Place, Severity};
pub use draft::{Candidate, Reading};
pub use load::{LoadError, Loaded, Selector, find, load, read};
pub use mimetypes::Mimetypes;
pub use settings::{ForwardedHeader, Settings};

/// A whole configuration: what one database or one `.conf` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The servers without errors, in the order of their rows.
    pub servers: Vec<Server>,
    /// The settings, typed.
    pub settings: Settings,
    /// The settings as they were written, unknown ones included.
    pub setting_rows: Vec<(String, String)>,
    /// Types of files by extension.
    pub mimetypes: Mimetypes,
}

/// One listening server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Names the server for `mongrel2`, and its TLS files.
    pub uuid: String,
    /// Names the server for people.
    pub name: String,
    /// Path of the access log, inside the chroot.
    pub access_log: String,
    /// Path of the error log, inside the chroot.
    pub error_log: String,
    /// 0 error, 1 warn, 2 info, 3 debug.
    pub error_log_level: i64,
    /// The directory to lock the server into; empty: none.
    pub chroot: String,
    /// Path of the pid file, inside the chroot.
    pub pid_file: String,
    /// Spec of the control port; empty: the setting `control_port` counts.
    pub control_port: String,
    /// Index into `hosts` of the host that takes every name no other takes.
    pub default_host: usize,
    /// The address to listen on.
    pub bind_addr: IpAddr,
    /// The port to listen on; 0: any free one (Mongrel2 refuses it).
    pub port: u16,
    /// Whether the port speaks TLS.
    pub use_ssl: bool,
    /// The hosts, in the order of their rows, which decides ties.
    pub hosts: Vec<Host>,
    /// C plug-ins of Mongrel2 on connection events; none can be loaded here.
    pub filters: Vec<Plugin>,
    /// C plug-ins of Mongrel2 for extended replies; none can be loaded here.
    pub xrequests: Vec<Plugin>,
}

impl Server {
    /// The default host.
    pub fn default_host(&self) -> &Host {
        // Validation looked the index up.
        &self.hosts[self.default_host]
    }

    /// The table that finds a host by name: its values are indices into `hosts`.
    pub fn host_table(&self) -> HostTable<usize> {
        let mut table = HostTable::new();
        for (index, host) in self.hosts.iter().enumerate() {
            table.insert(&host.matching, index);
        }
        table
    }

    /// The handlers that routes lead to, in the order of their first routes, those with equal specs once: Mongrel2 merges
    /// them, and the first one's idents, protocol and the rest count for all ([`Handler::same_sockets`]).
    pub fn handlers(&self) -> Vec<Arc<Handler>> {
        let mut handlers: Vec<Arc<Handler>> = Vec::new();
        for route in self.hosts.iter().flat_map(|host| &host.routes) {
            if let Target::Handler(handler) = &route.target
                && !handlers.iter().any(|known| known.same_sockets(handler))
            {
                handlers.push(Arc::clone(handler));
            }
        }
        handlers
    }
}

/// One virtual host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// What `default_host` and the access log call it.
    pub name: String,
    /// What the `Host` header must end with, with or without a pattern before that.
    pub matching: String,
    /// The routes, in the order of their rows, which decides ties.
    pub routes: Vec<Route>,
}

impl Host {
    /// The table that finds a route by path: its values are indices into `routes`.
    pub fn route_table(&self) -> RouteTable<usize> {
        let mut table = RouteTable::new();
        for (index, route) in self.routes.iter().enumerate() {
            table.insert(&route.path, index);
        }
        table
    }
}

/// One route of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// A prefix, perhaps with a pattern from its first `(` on.
    pub path: String,
    /// Where requests go.
    pub target: Target,
}

/// What a route leads to. Several routes may lead to one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Handler processes behind two sockets.
    Handler(Arc<Handler>),
    /// A directory of files.
    Dir(Arc<Dir>),
    /// Another HTTP server.
    Proxy(Arc<Proxy>),
}

impl Target {
    /// Whether both are one object, and so one row of a database.
    pub fn is(&self, other: &Target) -> bool {
        match (self, other) {
            (Target::Handler(left), Target::Handler(right)) => Arc::ptr_eq(left, right),
            (Target::Dir(left), Target::Dir(right)) => Arc::ptr_eq(left, right),
            (Target::Proxy(left), Target::Proxy(right)) => Arc::ptr_eq(left, right),
            _ => false,
        }
    }
}

/// Two sockets and how to talk over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// Where requests go out.
    pub send_spec: Spec,
    /// What the server calls itself in requests.
    pub send_ident: String,
    /// Where replies come in.
    pub recv_spec: Spec,
    /// What replies must begin with; empty: anything.
    pub recv_ident: String,
    /// Whether message sockets' messages go without the request's frame.
    pub raw_payload: bool,
    /// How headers are written.
    pub protocol: Protocol,
    /// How many open requests one handler process may have; the rest wait. `None`: no cap. Lurcher's own.
    pub slots: Option<u32>,
    /// How many requests may wait, in place of the setting `limits.handler_queue`. Lurcher's own.
    pub queue: Option<usize>,
    /// What happens to a request whose handler process is lost. Lurcher's own.
    pub retry: Retry,
    /// How long a request may wait, in place of the setting `limits.handler_wait`. Lurcher's own.
    pub wait: Option<Duration>,
    /// Where workers of the broker's dialect connect, beside the handlers at the other two. Lurcher's own.
    pub workers: Option<Spec>,
    /// Which requests go to the same worker. Lurcher's own.
    pub sticky: Option<sticky::Key>,
}

impl Handler {
    /// Whether one socket is the other's too, but not both; a `*` port is never the same.
    pub fn shares_a_socket(&self, other: &Handler) -> bool {
        let mine = self.workers.iter();
        let theirs = other.workers.as_ref();
        !self.same_sockets(other)
            && (self.send_spec.is_at(&other.send_spec)
                || self.recv_spec.is_at(&other.recv_spec)
                || mine.clone().any(|workers| other.binds(workers))
                || theirs.is_some_and(|workers| self.binds(workers)))
    }

    /// Whether one of its sockets is to be bound there.
    fn binds(&self, spec: &Spec) -> bool {
        self.specs().any(|(_, own)| own.is_at(spec))
    }

    /// Whether both are one pair of sockets. Where workers connect is no part of that: of two handlers with one pair, the first counts.
    pub fn same_sockets(&self, other: &Handler) -> bool {
        self.send_spec.text == other.send_spec.text && self.recv_spec.text == other.recv_spec.text
    }

    /// What it binds, with what a configuration calls it.
    pub fn specs(&self) -> impl Iterator<Item = (&'static str, &Spec)> {
        let both = [
            ("send_spec", &self.send_spec),
            ("recv_spec", &self.recv_spec),
        ];
        let workers = self.workers.iter().map(|spec| ("workers", spec));
        both.into_iter().chain(workers)
    }
}

/// A socket spec as it was written, and as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The text.
    pub text: String,
    /// The same, parsed.
    pub endpoint: Endpoint,
}

impl Spec {
    /// Whether two sockets with these would be bound at one address: a free port of the system's choice never is.
    pub fn is_at(&self, other: &Spec) -> bool {
        let free = matches!(self.endpoint.transport, Transport::Tcp { port: None, .. });
        self.text == other.text && !free
    }
}

/// What happens to a request that was written to a handler process which was then lost, before a byte of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retry {
    /// It is answered 502: `no`.
    No,
    /// Another process gets it, once, if its method is GET, HEAD, OPTIONS or TRACE: `safe`.
    #[default]
    Safe,
    /// Another process gets it, once, whatever the method: `always`.
    Always,
}

impl Retry {
    /// The word in a configuration.
    pub fn word(self) -> &'static str {
        match self {
            Retry::No => "no",
            Retry::Safe => "safe",
            Retry::Always => "always",
        }
    }

    /// The value of a word; `None`: it is no such word.
    pub fn from_word(word: &str) -> Option<Retry> {
        [Retry::No, Retry::Safe, Retry::Always]
            .into_iter()
            .find(|retry| retry.word() == word)
    }
}

/// A directory of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dir {
    /// The directory, inside the chroot.
    pub base: String,
    /// The file served for a path that ends in `/`.
    pub index_file: String,
    /// The type of files whose extension is unknown.
    pub default_ctype: String,
    /// How long facts about a file are trusted, in seconds.
    pub cache_ttl: u32,
}

/// Another HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its name or address.
    pub addr: String,
    /// Its port.
    pub port: u16,
}

/// A C plug-in of Mongrel2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// Path of the shared object.
    pub name: String,
    /// Its settings.
    pub settings: plugin::Value,
}

#[cfg(test)]
mod tests;
