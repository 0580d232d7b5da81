//! The same Python applications by `lurcher run` behind a Lurcher, and by the servers that Python people know: a hello in WSGI and in ASGI, and a
//! route of Flask and one of `FastAPI`.
//!
//! All run in one environment of exact versions that `./bench` makes, with as many worker processes each, on all cores together with the load. Of
//! Lurcher everything counts: its front, the supervisor, the workers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Options;
use crate::fronts::{Front, Sockets, free_ports};
use crate::measure::{self, Figures, processor_seconds, tree_seconds};

/// All that are compared, Lurcher first.
pub(crate) const SERVERS: &str =
    "lurcher,gunicorn,gthread,uwsgi,uwsgi-socket,granian,granian-asgi,uvicorn";
/// Connections at once.
pub(crate) const CONNECTIONS: usize = 64;
/// Worker processes of each server.
pub(crate) const WORKERS: [usize; 2] = [1, 2];
/// The applications: what they are called, which object it is, what the environment says about the framework, the path, and whether it is ASGI.
pub(crate) const APPS: [Application; 4] = [
    Application {
        name: "WSGI hello",
        object: "apps:wsgi",
        framework: "",
        path: "/",
        asgi: false,
    },
    Application {
        name: "Flask route",
        object: "apps:flask",
        framework: "flask",
        path: "/item/7?q=seven",
        asgi: false,
    },
    Application {
        name: "ASGI hello",
        object: "apps:asgi",
        framework: "",
        path: "/",
        asgi: true,
    },
    Application {
        name: "FastAPI route",
        object: "apps:fastapi",
        framework: "fastapi",
        path: "/item/7?q=seven",
        asgi: true,
    },
];

/// What is served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Application {
    /// What tables call it.
    pub(crate) name: &'static str,
    /// Module and name.
    object: &'static str,
    /// What apps.py is told to define.
    framework: &'static str,
    path: &'static str,
    asgi: bool,
}

impl Application {
    /// Those of `servers` that can serve it.
    pub(crate) fn servers<'a>(&self, servers: &'a [String]) -> Vec<&'a str> {
        let all = servers.iter().map(String::as_str);
        all.filter(|name| match *name {
            "lurcher" => true,
            "uvicorn" | "granian-asgi" => self.asgi,
            _ => !self.asgi,
        })
        .collect()
    }
}

/// Figures by application, number of workers and server's name.
pub(crate) type Pythons = BTreeMap<(usize, usize, String), Vec<Figures>>;

/// A server with its application, ended with the value.
struct Server {
    name: String,
    address: SocketAddr,
    /// Before ours.
    front: Option<Front>,
    /// Ours, or the whole server.
    child: Child,
    directory: tempfile::TempDir,
}

impl Server {
    fn start(name: &str, app: &Application, workers: usize) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let [port, ..] = free_ports()?;
        let mut front = if name == "lurcher" {
            Some(Front::alone("lurcher", Sockets::Ipc)?)
        } else {
            None
        };
        let mut command = match &front {
            Some(front) => ours(app, workers, &front.specs),
            None => peer(name, app, workers, port),
        };
        let log = fs::File::create(directory.path().join("log"));
        let log = log.map_err(|error| error.to_string())?;
        let child = command
            .current_dir(sources())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("BENCH_FRAMEWORK", app.framework)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("start {name}: {error}"))?;
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Self {
            name: name.to_owned(),
            address: front.as_mut().map_or(own, |front| front.address),
            front,
            child,
            directory,
        };
        server.answers(app.path)?;
        Ok(server)
    }

    fn answers(&mut self, path: &str) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(20);
        let log = self.directory.path().join("log");
        while Instant::now() < end {
            let status = self.child.try_wait().map_err(|error| error.to_string())?;
            if let Some(status) = status {
                let log = fs::read_to_string(log).unwrap_or_default();
                return Err(format!("{} ended with {status}:\n{log}", self.name));
            }
            let asked = TcpStream::connect(self.address).and_then(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
                let mut status = [0; 12];
                stream.read_exact(&mut status)?;
                Ok(status.ends_with(b" 200"))
            });
            if matches!(asked, Ok(true)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = fs::read_to_string(log).unwrap_or_default();
        Err(format!("{} does not answer:\n{log}", self.name))
    }

    fn load(&self, path: &str, time: Duration) -> Result<Figures, String> {
        measure::load_at(self.address, path, CONNECTIONS, time, || {
            let front = self.front.as_ref().map(Front::server);
            let front = front.map_or(Ok(0.0), processor_seconds)?;
            Ok((front, tree_seconds(self.child.id())?))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Politely, since masters that are killed leave their workers.
        let id = self.child.id().to_string();
        drop(Command::new("kill").arg(id).status());
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Gone already or killed now: both are what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare/python")
}

/// A program of the environment.
fn installed(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bench/bin");
    folder.join(name)
}

/// What all of them run in, for people.
pub(crate) fn version() -> String {
    let output = Command::new(installed("python")).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|error| format!("an unknown Python ({error})"))
}

fn ours(app: &Application, workers: usize, specs: &[String; 2]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
    command
        .args(["run", app.object])
        .args(specs)
        .arg("--python")
        .arg(installed("python"))
        .arg(format!("--workers={workers}"));
    command
}

/// Another server, set as its authors recommend for this kind of application, without an access log.
fn peer(name: &str, app: &Application, workers: usize, port: u16) -> Command {
    let address = format!("127.0.0.1:{port}");
    let workers = workers.to_string();
    let port = port.to_string();
    let (program, options): (_, Vec<&str>) = match name {
        "gunicorn" => (
            "gunicorn",
            vec!["-k", "sync", "-w", &workers, "-b", &address],
        ),
        "gthread" => (
            "gunicorn",
            vec![
                "-k",
                "gthread",
                "--threads",
                "4",
                "-w",
                &workers,
                "-b",
                &address,
            ],
        ),
        // With the router that it is put before clients with; or workers that accept by themselves.
        "uwsgi" | "uwsgi-socket" => {
            let routed: &[&str] = &["--http", &address, "--http-keepalive"];
            let direct = &["--http11-socket", &address];
            let mut options = if name == "uwsgi" { routed } else { direct }.to_vec();
            options.extend(["--master", "--die-on-term", "--disable-logging"]);
            options.extend(["--listen", "100", "--processes", &workers, "--module"]);
            ("uwsgi", options)
        }
        "uvicorn" => (
            "uvicorn",
            vec![
                "--loop",
                "uvloop",
                "--http",
                "httptools",
                "--no-access-log",
                "--log-level",
                "warning",
                "--workers",
                &workers,
                "--port",
                &port,
            ],
        ),
        _ => (
            "granian",
            vec![
                "--interface",
                if app.asgi { "asgi" } else { "wsgi" },
                "--no-access-log",
                "--workers",
                &workers,
                "--port",
                &port,
            ],
        ),
    };
    let mut command = Command::new(installed(program));
    command.args(options).arg(app.object);
    command
}

/// Measures all, in turns.
pub(crate) fn measure(options: &Options) -> Result<Pythons, String> {
    let mut figures = Pythons::new();
    if options.pythons.is_empty() {
        return Ok(figures);
    }
    for workers in WORKERS {
        for (at, app) in APPS.iter().enumerate() {
            let names = app.servers(&options.pythons);
            for round in 1..=options.rounds {
                // One at a time: what another one does while it is idle costs something too.
                for name in &names {
                    let server = Server::start(name, app, workers)?;
                    server.load(app.path, Duration::from_secs(1))?;
                    let seen = server.load(app.path, Duration::from_secs(options.seconds))?;
                    println!(
                        "round {round}, {}, {workers} workers, {name:<12} {seen}",
                        app.name
                    );
                    let key = (at, workers, (*name).to_owned());
                    figures.entry(key).or_default().push(seen);
                }
            }
        }
    }
    Ok(figures)
}
