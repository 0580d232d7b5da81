//! Where to connect, read from the server's own configuration, a database or a `.conf`.
//!
//! The configuration says where the server binds; what is made of it here is where a handler on the same machine reaches that.
//! Nothing is watched: a handler that is to follow changes reads again.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::connection::Connection;
use super::options::{ConnectError, Options};
use crate::config::{self, Config, Handler, Host, LoadError, Server, Target};
use crate::endpoint::{Endpoint, IPC_PATH_MAX, Transport};
use crate::sys;

/// Which handler of a configuration is meant: all that is said here has to hold for it. Nothing said means the only one.
///
/// ```
/// use lurcher::handler::Selector;
///
/// let by_path = Selector::new().host("example.org").route("/chat");
/// let by_ident = Selector::new().ident("chat-ident").server("main");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    server: Option<String>,
    host: Option<String>,
    route: Option<String>,
    ident: Option<String>,
    send_spec: Option<String>,
}

impl Selector {
    /// The only handler that there is.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of the server with this uuid or, if none has it, this name. Default: any.
    #[must_use]
    pub fn server(mut self, name: impl Into<String>) -> Self {
        self.server = Some(name.into());
        self
    }

    /// Of the host that takes requests for this name, as the server finds it: the default host for a name that no other takes.
    /// Default: any host.
    #[must_use]
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.host = Some(name.into());
        self
    }

    /// The one that gets requests for this path, as the server would route them; or that of the route with exactly this text.
    #[must_use]
    pub fn route(mut self, path: impl Into<String>) -> Self {
        self.route = Some(path.into());
        self
    }

    /// The one with this `send_ident`.
    #[must_use]
    pub fn ident(mut self, ident: impl Into<String>) -> Self {
        self.ident = Some(ident.into());
        self
    }

    /// The one with this `send_spec`, as the configuration has it.
    #[must_use]
    pub fn send_spec(mut self, spec: impl Into<String>) -> Self {
        self.send_spec = Some(spec.into());
        self
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [
            ("server", &self.server),
            ("host", &self.host),
            ("route", &self.route),
            ("ident", &self.ident),
            ("send_spec", &self.send_spec),
        ];
        f.write_str("handler")?;
        let said = said
            .iter()
            .filter_map(|(what, text)| Some((what, text.as_ref()?)));
        for (at, (what, text)) in said.enumerate() {
            let with = if at == 0 { " with" } else { "," };
            write!(f, "{with} {what} {text:?}")?;
        }
        Ok(())
    }
}

/// Why a configuration does not say where to connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be read, or has mistakes in it.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Nothing in it is meant by the selector.
    #[error("{}: no {selector}; there is {found}", .path.display())]
    None {
        /// The configuration.
        path: PathBuf,
        /// What was looked for.
        selector: Box<Selector>,
        /// What is there.
        found: String,
    },
    /// Several are, and they are not the same.
    #[error("{}: more than one {selector}: {found}", .path.display())]
    Several {
        /// The configuration.
        path: PathBuf,
        /// What was looked for.
        selector: Box<Selector>,
        /// Which they are.
        found: String,
    },
    /// A spec that tells nobody where to connect.
    #[error("{}: {spec}: {reason}", .path.display())]
    Spec {
        /// The configuration.
        path: PathBuf,
        /// The spec.
        spec: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The connection was not made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl Options {
    /// The defaults, for the handler that a configuration has there: its specs as this machine reaches them, the server's chroot
    /// ([`Options::chroot`]) and place for uploads ([`Options::upload_store`]). Of its protocol nothing need be known.
    ///
    /// `configuration` is a Mongrel2 database or a `.conf`, told apart by content. A server that listens on all addresses is reached at
    /// the loopback one, one that listens on an interface at that one's address. Relative paths in it are taken to be relative to its
    /// own directory, where servers are started; paths of ipc sockets are looked for inside the server's chroot first.
    ///
    /// # Errors
    ///
    /// When the configuration cannot be read, or when not exactly one handler is meant; several routes to one are no matter.
    pub fn from_config(
        configuration: impl AsRef<Path>,
        selector: &Selector,
    ) -> Result<Self, ConfigError> {
        let path = configuration.as_ref();
        let config = read(path, selector)?;
        let found = find(&config, selector);
        let unclear = |found: &[Found<'_>]| {
            // Of several ways to one handler the first is enough.
            let mut list: Vec<&Found<'_>> = Vec::new();
            for one in found {
                if !list.iter().any(|known| known.is_as_good_as(one)) {
                    list.push(one);
                }
            }
            let list: Vec<_> = list.iter().map(ToString::to_string).collect();
            if list.is_empty() {
                "none".to_owned()
            } else {
                list.join(", ")
            }
        };
        let Some(first) = found.first() else {
            let all = find(&config, &Selector::new());
            return Err(ConfigError::None {
                path: path.to_owned(),
                selector: Box::new(selector.clone()),
                found: unclear(&all),
            });
        };
        if found.iter().any(|other| !first.is_as_good_as(other)) {
            return Err(ConfigError::Several {
                path: path.to_owned(),
                selector: Box::new(selector.clone()),
                found: unclear(&found),
            });
        }
        first.options(path, &config)
    }
}

impl Connection {
    /// Connects to the handler's place in a configuration: [`Options::from_config`], then [`Connection::connect`].
    ///
    /// ```no_run
    /// use lurcher::handler::{Connection, Selector};
    ///
    /// # async fn run() -> Result<(), lurcher::handler::ConfigError> {
    /// let connection = Connection::from_config("config.sqlite", &Selector::new().route("/chat")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As both.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing was received yet.
    pub async fn from_config(
        configuration: impl AsRef<Path>,
        selector: &Selector,
    ) -> Result<Self, ConfigError> {
        let options = Options::from_config(configuration, selector)?;
        Ok(Self::connect(options).await?)
    }
}

/// Reads what the selector's server needs; of others, mistakes are no matter.
fn read(path: &Path, selector: &Selector) -> Result<Config, LoadError> {
    if let Some(name) = &selector.server {
        let loaded = config::load(Some(path), &config::Selector::Named(name.clone()))?;
        let mut config = loaded.config;
        config.servers = vec![config.servers.swap_remove(loaded.server)];
        return Ok(config);
    }
    let reading = config::read(path)?;
    let sound = reading
        .candidates
        .iter()
        .any(|candidate| candidate.server.is_some());
    if reading.fatal || (reading.has_errors() && !sound) {
        let error = LoadError {
            diagnostics: reading.diagnostics,
        };
        return Err(error.errors_only());
    }
    Ok(reading.into_config())
}

/// A handler, and by which way it was found.
struct Found<'a> {
    server: &'a Server,
    host: &'a Host,
    route: &'a str,
    handler: &'a Handler,
}

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            server,
            host,
            route,
            handler,
        } = self;
        write!(
            f,
            "{} ({}) at route {route} of host {}, server {}",
            handler.send_ident, handler.send_spec.text, host.name, server.name
        )
    }
}

fn find<'a>(config: &'a Config, selector: &Selector) -> Vec<Found<'a>> {
    let mut found = Vec::new();
    for server in &config.servers {
        let hosts = match &selector.host {
            None => server.hosts.iter().collect(),
            Some(name) => vec![host_of(server, name)],
        };
        for host in hosts {
            for route in routes_of(host, selector.route.as_deref()) {
                if let Target::Handler(handler) = &route.target {
                    found.push(Found {
                        server,
                        host,
                        route: &route.path,
                        handler,
                    });
                }
            }
        }
    }
    found.retain(|found| {
        let ident = selector.ident.as_ref();
        let spec = selector.send_spec.as_ref();
        ident.is_none_or(|ident| *ident == found.handler.send_ident)
            && spec.is_none_or(|spec| {
                let own = &found.handler.send_spec;
                *spec == own.text
                    || spec
                        .parse::<Endpoint>()
                        .is_ok_and(|spec| spec == own.endpoint)
            })
    });
    found
}

fn host_of<'a>(server: &'a Server, name: &str) -> &'a Host {
    let table = server.host_table();
    let found = table
        .find(name.as_bytes())
        .and_then(|index| server.hosts.get(*index));
    found.unwrap_or_else(|| server.default_host())
}

/// The route of that text, else the one that takes that path; all for none.
fn routes_of<'a>(host: &'a Host, path: Option<&str>) -> Vec<&'a config::Route> {
    let Some(path) = path else {
        return host.routes.iter().collect();
    };
    if let Some(route) = host.routes.iter().find(|route| route.path == path) {
        return vec![route];
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let table = host.route_table();
    let taken = table.find(path.as_bytes());
    taken
        .and_then(|(_, index)| host.routes.get(*index))
        .into_iter()
        .collect()
}

impl Found<'_> {
    /// Whether it makes no difference which of the two is connected to.
    fn is_as_good_as(&self, other: &Found<'_>) -> bool {
        self.handler.same_sockets(other.handler) && self.server.chroot == other.server.chroot
    }

    fn options(&self, path: &Path, config: &Config) -> Result<Options, ConfigError> {
        let home = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let home = home.unwrap_or(Path::new("."));
        let jail = (!self.server.chroot.is_empty()).then(|| home.join(&self.server.chroot));
        let reach = |spec: &config::Spec| {
            reachable(&spec.endpoint, home, jail.as_deref()).map_err(|reason| ConfigError::Spec {
                path: path.to_owned(),
                spec: spec.text.clone(),
                reason,
            })
        };
        let mut options = Options::new([reach(&self.handler.send_spec)?]);
        options.recv_specs = vec![reach(&self.handler.recv_spec)?];
        options.upload_store = config
            .settings
            .upload_temp_store
            .as_ref()
            .map(PathBuf::from);
        let relative = options
            .upload_store
            .as_ref()
            .is_some_and(|store| store.is_relative());
        // Names are as the server calls them: below its working directory, which then stands in for a chroot.
        options.chroot = jail.or_else(|| relative.then(|| home.to_owned()));
        Ok(options)
    }
}

/// Where somebody on the same machine connects to what is bound there.
fn reachable(bound: &Endpoint, home: &Path, jail: Option<&Path>) -> Result<Endpoint, &'static str> {
    match &bound.transport {
        Transport::Tcp { port: None, .. } => {
            Err("the server takes any free port: nobody knows which")
        }
        Transport::Tcp { host, port } => {
            let host = match (host.as_str(), host.parse::<IpAddr>()) {
                ("*", _) => "127.0.0.1".to_owned(),
                (_, Ok(IpAddr::V4(address))) if address.is_unspecified() => "127.0.0.1".to_owned(),
                (_, Ok(IpAddr::V6(address))) if address.is_unspecified() => "::1".to_owned(),
                (_, Ok(_)) => host.clone(),
                // An interface, or a name that is looked up as for anybody.
                (name, Err(_)) => sys::interface_addresses(name)
                    .ok()
                    .and_then(|addresses| addresses.first().map(IpAddr::to_string))
                    .unwrap_or_else(|| host.clone()),
            };
            Ok(Endpoint::tcp(host, *port))
        }
        Transport::Ipc { path } if path == "*" => {
            Err("the server takes a path of the system's choice: nobody knows which")
        }
        Transport::Ipc { path } if path.starts_with('@') => Ok(bound.transport.clone().into()),
        Transport::Ipc { path } => {
            let outside = home.join(path);
            let place = match jail.map(|jail| jail.join(path.trim_start_matches('/'))) {
                // A server that may not change its root binds outside.
                Some(inside) if inside.exists() || !outside.exists() => inside,
                _ => outside,
            };
            let path = place
                .into_os_string()
                .into_string()
                .map_err(|_| "a path that is not UTF-8")?;
            if path.len() > IPC_PATH_MAX {
                return Err("the path is too long for a socket when the chroot is before it");
            }
            Ok(Transport::Ipc { path }.into())
        }
        Transport::Inproc { .. } => Err("nobody outside the server reaches that"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HANDLERS: &str = "a = Handler(send_spec='tcp://127.0.0.1:9999', send_ident='a-ident', recv_spec='tcp://*:9998', recv_ident='')
b = Handler(send_spec='ipc://run/b', send_ident='b-ident', recv_spec='ipc:///run/b-recv', recv_ident='', protocol='tnetstring')
c = Handler(send_spec='tcp://*:*', send_ident='c-ident', recv_spec='tcp://*:*', recv_ident='')
d = Dir(base='d/', index_file='i', default_ctype='text/plain')
";

    fn server(name: &str, chroot: &str, hosts: &str) -> String {
        format!(
            "{name} = Server(uuid='{name}-uuid', name='{name}', access_log='/a', error_log='/e', chroot='{chroot}',\n\
             pid_file='/p', control_port='', default_host='localhost', bind_addr='127.0.0.1', port=6767, hosts=[{hosts}])\n"
        )
    }

    /// A configuration of one server without a chroot.
    fn one(hosts: &str) -> (tempfile::TempDir, PathBuf) {
        written(&(server("main", "", hosts) + "servers = [main]\n"))
    }

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.conf");
        fs::write(&path, format!("{HANDLERS}{text}")).unwrap();
        (directory, path)
    }

    const TWO_HOSTS: &str = "Host(name='localhost', routes={'/': a, '/b/': b, '/b/b': b, '/d/': d, '/p(q+)': b}), Host(name='x.org', routes={'/': b})";

    #[track_caller]
    fn finds(path: &Path, selector: &Selector, send: &str) {
        let options = Options::from_config(path, selector).unwrap();
        assert_eq!(options.send_specs[0].to_string(), send, "{selector}");
    }

    #[track_caller]
    fn fails(path: &Path, selector: &Selector, says: &str) {
        let error = Options::from_config(path, selector)
            .unwrap_err()
            .to_string();
        let told = error
            .strip_prefix(&format!("{}: ", path.display()))
            .unwrap_or(&error);
        assert!(told.starts_with(says), "{told:?} for {selector}");
    }

    #[test]
    fn a_handler_is_found_as_the_server_routes() {
        let (directory, path) = one(TWO_HOSTS);
        let (a, b) = (
            "tcp://127.0.0.1:9999".to_owned(),
            format!("ipc://{}/run/b", directory.path().display()),
        );
        let local = || Selector::new().host("localhost");
        finds(&path, &local().route("/"), &a);
        finds(&path, &local().route("/anything?x=/b/"), &a);
        finds(&path, &local().route("/b/c"), &b);
        finds(&path, &local().route("/pqq"), &b);
        finds(&path, &local().route("/p(q+)"), &b);
        finds(&path, &Selector::new().host("www.x.org").route("/"), &b);
        finds(&path, &Selector::new().host("nobody.net").route("/"), &a);
        finds(&path, &Selector::new().route("/b/"), &b);
        finds(&path, &Selector::new().host("x.org"), &b);
        finds(&path, &Selector::new().ident("a-ident"), &a);
        finds(
            &path,
            &Selector::new()
                .send_spec("tcp://127.0.0.1:9999")
                .server("main"),
            &a,
        );
        finds(
            &path,
            &Selector::new().server("main-uuid").ident("b-ident"),
            &b,
        );
    }

    #[test]
    fn what_is_not_one_handler_is_listed() {
        let (_directory, path) = one(TWO_HOSTS);
        let a = "a-ident (tcp://127.0.0.1:9999) at route / of host localhost, server main";
        let b = "b-ident (ipc://run/b) at route / of host x.org, server main";
        fails(
            &path,
            &Selector::new(),
            &format!("more than one handler: {a}"),
        );
        fails(
            &path,
            &Selector::new().route("/"),
            &format!("more than one handler with route \"/\": {a}, {b}"),
        );
        fails(
            &path,
            &Selector::new().ident("e"),
            &format!("no handler with ident \"e\"; there is {a}"),
        );
        fails(
            &path,
            &Selector::new().host("localhost").route("/d/"),
            "no handler with host \"localhost\", route \"/d/\"; there is",
        );
        fails(
            &path,
            &Selector::new().server("other"),
            "there is no server \"other\"; there is main",
        );
        fails(Path::new("/nowhere"), &Selector::new(), "cannot be read");
    }

    #[test]
    fn a_server_is_named_where_two_have_such_a_handler() {
        let host = |to: &str| format!("Host(name='localhost', routes={{'/': {to}}})");
        let (_directory, path) = written(
            &(server("main", "", &host("a"))
                + &server("next", "", &host("c"))
                + "servers = [main, next]\n"),
        );
        fails(&path, &Selector::new().route("/"), "more than one handler");
        finds(
            &path,
            &Selector::new().server("main"),
            "tcp://127.0.0.1:9999",
        );
        fails(
            &path,
            &Selector::new().server("next"),
            "tcp://*:*: the server takes any free port",
        );
    }

    #[test]
    fn what_is_bound_becomes_what_is_connected_to() {
        let reach = |spec: &str, jail: Option<&str>| {
            reachable(
                &spec.parse().unwrap(),
                Path::new("/etc/m2"),
                jail.map(Path::new),
            )
            .map(|endpoint| endpoint.to_string())
        };
        for (bound, connected) in [
            ("tcp://*:5", "tcp://127.0.0.1:5"),
            ("tcp://0.0.0.0:5", "tcp://127.0.0.1:5"),
            ("tcp://[::]:5", "tcp://[::1]:5"),
            ("tcp://10.1.2.3:5", "tcp://10.1.2.3:5"),
            ("tcp://lo:5", "tcp://127.0.0.1:5"),
            ("tcp://app.internal:5", "tcp://app.internal:5"),
            ("ipc:///run/x", "ipc:///run/x"),
            ("ipc://run/x", "ipc:///etc/m2/run/x"),
            ("ipc://@name", "ipc://@name"),
        ] {
            assert_eq!(reach(bound, None).as_deref(), Ok(connected));
        }
        assert_eq!(
            reach("ipc:///run/x", Some("/jail")).as_deref(),
            Ok("ipc:///jail/run/x")
        );
        assert_eq!(
            reach("ipc://run/x", Some("/jail")).as_deref(),
            Ok("ipc:///jail/run/x")
        );
        for nowhere in ["tcp://*:*", "ipc://*", "inproc://x"] {
            assert!(reach(nowhere, None).is_err(), "{nowhere}");
        }
        assert!(reach(&format!("ipc:///{}", "x".repeat(100)), Some("/a/long/jail")).is_err());
    }

    #[test]
    fn the_chroot_and_the_place_for_uploads_come_along() {
        let hosts = "Host(name='localhost', routes={'/': a})";
        let settings = |store: &str| {
            format!("settings = {{'upload.temp_store': '{store}'}}\nservers = [main]\n")
        };
        let (_directory, path) =
            written(&(server("main", "/jail", hosts) + &settings("/up/x.XXXXXX")));
        let options = Options::from_config(&path, &Selector::new()).unwrap();
        assert_eq!(options.chroot.as_deref(), Some(Path::new("/jail")));
        assert_eq!(
            options.upload_store.as_deref(),
            Some(Path::new("/up/x.XXXXXX"))
        );
        let (directory, path) = written(&(server("main", "", hosts) + &settings("up/x.XXXXXX")));
        let options = Options::from_config(&path, &Selector::new()).unwrap();
        assert_eq!(options.chroot.as_deref(), Some(directory.path()));
        let (_directory, path) = written(&(server("main", "", hosts) + &settings("/up/x.XXXXXX")));
        assert_eq!(
            Options::from_config(&path, &Selector::new())
                .unwrap()
                .chroot,
            None
        );
    }
}
