//! Starting a front and its handler: one generated Mongrel2 database, whichever server reads it. nginx, which has no handlers,
//! serves the same files.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::bridge::{self, App};
use crate::{files, idle};

const UUID: &str = "bench";

/// A front and its handler, both stopped with the value.
pub(crate) struct Front {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// Where handlers connect, its `send_spec` and its `recv_spec`.
    pub(crate) specs: [String; 2],
    server: Child,
    handler: Option<Child>,
    /// The app whose time is counted where there is no handler.
    app: Option<u32>,
    directory: tempfile::TempDir,
}

/// What a front and its handlers talk over.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sockets {
    Tcp,
    /// As on one machine it costs less.
    Ipc,
}

impl Front {
    /// Starts `mongrel2`, `lurcher` or `nginx` on a configuration of its own, and waits for the first answer, through a handler
    /// where there are any. All serve the same files below `/files/`.
    pub(crate) fn start(name: &str) -> Result<Self, String> {
        Self::start_with(name, Sockets::Tcp, None, true)
    }

    /// The same without a handler: whoever measures starts some.
    pub(crate) fn alone(name: &str, sockets: Sockets) -> Result<Self, String> {
        Self::start_with(name, sockets, None, false)
    }

    /// Starts `nginx` or `lurcher` before an app, to which everything goes.
    pub(crate) fn before(name: &str, app: &App) -> Result<Self, String> {
        Self::start_with(name, Sockets::Tcp, Some(app), true)
    }

    /// Starts `nginx` or Lurcher as a `proxy` before an app, or Lurcher with an app of `serve`.
    pub(crate) fn hop(name: &str, app: &App) -> Result<Self, String> {
        let mut front = Self::start_with(name, Sockets::Tcp, Some(app), true)?;
        front.app = Some(app.id());
        Ok(front)
    }

    fn start_with(
        name: &str,
        sockets: Sockets,
        app: Option<&App>,
        handled: bool,
    ) -> Result<Self, String> {
        let directory =
            tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
        let [http, send, recv] = free_ports()?;
        let specs = match sockets {
            Sockets::Tcp => [send, recv].map(|port| format!("tcp://127.0.0.1:{port}")),
            Sockets::Ipc => ["send", "recv"]
                .map(|name| format!("ipc://{}", directory.path().join(name).display())),
        };
        let database = directory.path().join("config.sqlite");
        configure(&database, http, &specs)
            .map_err(|error| format!("write {}: {error}", database.display()))?;
        if let ("proxy", Some(app)) = (name, app) {
            pass_to(&database, app.port())
                .map_err(|error| format!("write {}: {error}", database.display()))?;
        }
        files::write(directory.path())?;
        let mut command = if let ("nginx", Some(app)) = (name, app) {
            bridge::nginx(directory.path(), http, app.port())?
        } else if name == "nginx" {
            files::nginx(directory.path(), http)?
        } else if name == "mongrel2" {
            let mut command = Command::new("mongrel2");
            command.arg(&database).arg(UUID);
            command
        } else {
            let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
            command.arg("serve").arg(&database);
            command
        };
        let log = fs::File::create(directory.path().join("server.log"))
            .map_err(|error| error.to_string())?;
        let server = command
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("start {name}: {error}"))?;
        let handler = if name == "nginx" || name == "proxy" || !handled {
            None
        } else {
            let handler = if name == "serve" {
                let own = std::env::current_exe().map_err(|error| error.to_string())?;
                Command::new(own).arg("serve").args(&specs).spawn()
            } else if let Some(app) = app {
                bridge::handler(&specs, app.port()).spawn()
            } else {
                let own = std::env::current_exe().map_err(|error| error.to_string())?;
                Command::new(own).arg("handler").args(&specs).spawn()
            };
            Some(handler.map_err(|error| format!("start the handler: {error}"))?)
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, http));
        let mut front = Self {
            name: name.to_owned(),
            address,
            specs,
            server,
            handler,
            app: None,
            directory,
        };
        front.answers()?;
        Ok(front)
    }

    /// Process id of the front.
    pub(crate) fn server(&self) -> u32 {
        self.server.id()
    }

    /// Process id of its handler, or of the app that it stands before, if it has one.
    pub(crate) fn handler(&self) -> Option<u32> {
        self.handler.as_ref().map(Child::id).or(self.app)
    }

    /// Waits for an answer of handlers that somebody else has started.
    pub(crate) fn serves(&mut self) -> Result<(), String> {
        self.answers_by(true)
    }

    fn answers(&mut self) -> Result<(), String> {
        self.answers_by(self.handler.is_some())
    }

    fn answers_by(&mut self, handler: bool) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(15);
        while Instant::now() < end {
            if let Some(status) = self.server.try_wait().map_err(|error| error.to_string())? {
                let log = fs::read_to_string(self.directory.path().join("server.log"))
                    .unwrap_or_default();
                return Err(format!("{} ended with {status}:\n{log}", self.name));
            }
            let asked = TcpStream::connect(self.address).and_then(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                if handler {
                    idle::ask(&mut stream)
                } else {
                    Ok(())
                }
            });
            if asked.is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(format!("{} does not answer on {}", self.name, self.address))
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        for child in std::iter::once(&mut self.server).chain(&mut self.handler) {
            // Gone already or killed now: both are what is wanted.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Three ports that nobody listens on now.
pub(crate) fn free_ports() -> Result<[u16; 3], String> {
    let listeners: Result<Vec<TcpListener>, _> =
        (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let listeners = listeners.map_err(|error| format!("find free ports: {error}"))?;
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener
            .local_addr()
            .map_err(|error| error.to_string())?
            .port();
    }
    Ok(ports)
}

/// Has everything go to an HTTP server on this port, and to no handler.
fn pass_to(path: &Path, port: u16) -> rusqlite::Result<()> {
    let db = Connection::open(path)?;
    db.execute("INSERT INTO proxy VALUES (1, '127.0.0.1', ?1)", [port])?;
    db.execute("UPDATE route SET target_type = 'proxy' WHERE id = 1", [])?;
    Ok(())
}

/// A database as m2sh would write it, with everything off that is not the work itself.
fn configure(path: &Path, port: u16, [send, recv]: &[String; 2]) -> rusqlite::Result<()> {
    let folder = path
        .parent()
        .expect("a file in a folder")
        .to_string_lossy()
        .into_owned();
    let db = Connection::open(path)?;
    db.execute_batch(
        "CREATE TABLE server (id INTEGER PRIMARY KEY, uuid TEXT, access_log TEXT, error_log TEXT, chroot TEXT,
            pid_file TEXT, control_port TEXT, default_host TEXT, name TEXT, bind_addr TEXT, port INTEGER, use_ssl INTEGER);
         CREATE TABLE host (id INTEGER PRIMARY KEY, server_id INTEGER, maintenance BOOLEAN, name TEXT, matching TEXT);
         CREATE TABLE handler (id INTEGER PRIMARY KEY, send_spec TEXT, send_ident TEXT, recv_spec TEXT,
            recv_ident TEXT, raw_payload INTEGER DEFAULT 0, protocol TEXT DEFAULT 'json');
         CREATE TABLE proxy (id INTEGER PRIMARY KEY, addr TEXT, port INTEGER);
         CREATE TABLE directory (id INTEGER PRIMARY KEY, base TEXT, index_file TEXT, default_ctype TEXT, cache_ttl INTEGER);
         CREATE TABLE route (id INTEGER PRIMARY KEY, path TEXT, reversed BOOLEAN, host_id INTEGER, target_id INTEGER,
            target_type TEXT);
         CREATE TABLE setting (id INTEGER PRIMARY KEY, key TEXT, value TEXT);
         CREATE TABLE mimetype (id INTEGER PRIMARY KEY, mimetype TEXT, extension TEXT);
         CREATE TABLE filter (id INTEGER PRIMARY KEY, server_id INTEGER, name TEXT, settings TEXT);
         CREATE TABLE xrequest (id INTEGER PRIMARY KEY, server_id INTEGER, name TEXT, settings TEXT);
         INSERT INTO host VALUES (1, 1, 0, 'localhost', 'localhost');
         INSERT INTO route VALUES (1, '/', 0, 1, 1, 'handler'), (2, '/files/', 0, 1, 1, 'dir');
         INSERT INTO mimetype VALUES (1, 'text/plain', '.txt');
         INSERT INTO setting (key, value) VALUES ('disable.access_logging', '1'), ('superpoll.max_fd', '16384'),
            ('limits.min_ping', '0'), ('limits.min_read_rate', '0'), ('limits.min_write_rate', '0'),
            ('server.daemonize', '0');",
    )?;
    db.execute(
        "INSERT INTO server VALUES (1, ?1, ?2 || '/access.log', ?2 || '/error.log', '', ?2 || '/pid',
            'ipc://' || ?2 || '/control', 'localhost', 'bench', '127.0.0.1', ?3, 0)",
        (UUID, &folder, port),
    )?;
    db.execute(
        "INSERT INTO directory VALUES (1, ?1 || '/files/', 'index.html', 'application/octet-stream', 0)",
        [&folder],
    )?;
    db.execute(
        "INSERT INTO handler VALUES (1, ?1, 'bench-handler', ?2, '', 0, 'json')",
        (send, recv),
    )?;
    Ok(())
}
