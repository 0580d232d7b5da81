//! The same app behind each: what the way through a message and the `http` handler costs beside nginx, which proxies by itself.
//!
//! The app is a bare hello, this program again, one thread. nginx keeps connections to it, and has one worker, as elsewhere here.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::Options;
use crate::fronts::Front;
use crate::idle::BODY;
use crate::measure::{self, Figures};

/// Connections at once.
pub(crate) const CONNECTIONS: usize = 64;

/// Figures by connections and place of the server.
pub(crate) type Bridges = BTreeMap<(usize, usize), Vec<Figures>>;

/// The app, ended with the value.
#[derive(Debug)]
pub(crate) struct App {
    child: Child,
    port: u16,
}

impl App {
    /// Starts it.
    pub(crate) fn start() -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(own);
        command
            .arg("app")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| format!("start the app: {error}"))?;
        let mut line = String::new();
        let said = child.stdout.take().map(BufReader::new);
        let read = said.map_or(Ok(0), |mut said| said.read_line(&mut line));
        read.map_err(|error| format!("start the app: {error}"))?;
        let mut app = Self { child, port: 0 };
        let port = line.trim().parse();
        app.port = port.map_err(|_| "start the app: it said no port".to_owned())?;
        Ok(app)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // Gone already or killed now: both are what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `app`: says its port, and answers every request with a fixed 200 until it is killed.
pub(crate) fn main() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let served: std::io::Result<()> = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut connections = tokio::task::JoinSet::new();
        println!("{}", listener.local_addr()?.port());
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let hello = service_fn(|_: hyper::Request<Incoming>| async {
                let mut response =
                    hyper::Response::new(Full::new(Bytes::from_static(BODY.as_bytes())));
                let text = hyper::header::HeaderValue::from_static("text/plain");
                response
                    .headers_mut()
                    .insert(hyper::header::CONTENT_TYPE, text);
                Ok::<_, Infallible>(response)
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), hello);
            connections.spawn(async move { drop(serving.await) });
            while connections.try_join_next().is_some() {}
        }
    });
    served.map_err(|error| error.to_string())
}

/// nginx that proxies everything to the app, and keeps connections to it.
pub(crate) fn nginx(directory: &Path, port: u16, app: u16) -> Result<Command, String> {
    let here = directory.display();
    let text = format!(
        "daemon off;\nmaster_process off;\npid {here}/nginx.pid;\nerror_log {here}/error.log;\n\
         worker_rlimit_nofile 16384;\nevents {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 100000000;\n\
         \x20 client_body_temp_path {here}/body;\n  proxy_temp_path {here}/proxy;\n  fastcgi_temp_path {here}/fastcgi;\n\
         \x20 uwsgi_temp_path {here}/uwsgi;\n  scgi_temp_path {here}/scgi;\n\
         \x20 upstream app {{ server 127.0.0.1:{app}; keepalive 256; keepalive_requests 100000000; }}\n\
         \x20 server {{\n    listen 127.0.0.1:{port};\n    location / {{\n      proxy_pass http://app;\n\
         \x20     proxy_http_version 1.1;\n      proxy_set_header Connection '';\n      proxy_set_header Host $http_host;\n\
         \x20     proxy_set_header X-Forwarded-For $remote_addr;\n      proxy_set_header X-Forwarded-Proto $scheme;\n\
         \x20     proxy_set_header X-Forwarded-Host $http_host;\n    }}\n  }}\n}}\n"
    );
    let config = directory.join("nginx.conf");
    fs::write(&config, text).map_err(|error| format!("write {}: {error}", config.display()))?;
    Ok(crate::files::nginx_with(&config, directory))
}

/// The `http` handler between these specs and the app.
pub(crate) fn handler(specs: &[String; 2], app: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
    let target = format!("http://{}", SocketAddr::from((Ipv4Addr::LOCALHOST, app)));
    command.args(["run", &target]).args(specs);
    command
}

/// Measures both, in turns.
pub(crate) fn measure(options: &Options) -> Result<Bridges, String> {
    let mut figures = Bridges::new();
    if options.bridges.is_empty() {
        return Ok(figures);
    }
    let app = App::start()?;
    let mut running = Vec::new();
    for name in &options.bridges {
        running.push(Front::before(name, &app)?);
    }
    for front in &running {
        measure::load(front, "/", CONNECTIONS, Duration::from_secs(1))?;
    }
    for round in 1..=options.rounds {
        for (place, front) in running.iter().enumerate() {
            let time = Duration::from_secs(options.seconds);
            let seen = measure::load(front, "/", CONNECTIONS, time)?;
            println!("round {round}, to an app, {:<10} {seen}", front.name);
            figures.entry((CONNECTIONS, place)).or_default().push(seen);
        }
    }
    Ok(figures)
}
