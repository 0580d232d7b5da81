//! `lurcher demo`: a front with three handlers, to look at.
//!
//! The front runs in this process, as `lurcher serve` runs it, with a configuration that is made here and stands in no
//! file. The handlers are built-in ones, each in a process of its own, started with the command that one could type; they
//! end when their standard input does, so that none is left however this process ends.

use std::fmt::Write as _;
use std::future::{Future as _, poll_fn};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::process::{Child, ChildStdin, Command};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::SignalKind;
use tokio::time::{Instant, timeout_at};

use super::run::STOP_ON_EOF;
use super::serve;
use super::signals::{STOP, Signals};
use crate::config::{self, Config, Host, Mimetypes, Route, Server, Settings, Spec, Target};
use crate::drain;
use crate::front::{self, Front, Plan};
use crate::wire::Protocol;

/// How long open responses may take at the end: about as long as `/stream` takes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(7);

/// How long handlers may take to end when they are asked to; then they are killed.
const HANDLERS_TIMEOUT: Duration = Duration::from_secs(3);

/// What the demo shows. The page is last, since it tells of the others.
const PARTS: [Part; 3] = [
    Part {
        route: "/echo",
        app: "echo",
    },
    Part {
        route: "/stream",
        app: "ticker",
    },
    Part {
        route: "/",
        app: PAGE,
    },
];

/// The handler of the page.
const PAGE: &str = "demo-page";

/// Arguments of `lurcher demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The port on 127.0.0.1 to listen on; 0: any free one
    #[arg(long, default_value_t = 6767)]
    port: u16,
}

pub(super) fn main(Args { port }: Args, log: Option<&str>) -> anyhow::Result<ExitCode> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("start the runtime")?;
    // Handlers tell what goes wrong only, unless more is asked for: what they do is seen in the front's log.
    let log = log.unwrap_or("warn");
    runtime.block_on(demo(port, log)).context("run the demo")?;
    Ok(ExitCode::SUCCESS)
}

async fn demo(port: u16, log: &str) -> anyhow::Result<()> {
    let settings = Settings {
        disable_access_logging: true,
        drain_timeout: DRAIN_TIMEOUT,
        ..Settings::default()
    };
    let (signal, watch) = drain::channel();
    let config = Config {
        servers: vec![server(port)?],
        settings,
        setting_rows: Vec::new(),
        mimetypes: Mimetypes::default(),
    };
    let plan = Plan {
        config: Arc::new(config),
        server: 0,
        keys: None,
    };
    let front = front::bind(plan, &watch)
        .await
        .context("`--port 0` takes any free port")?;
    // A closed terminal ends the demo too.
    let mut signals = Signals::of(STOP.into_iter().chain([SignalKind::hangup()]))?;
    let mut handlers = Handlers::default();
    let result = match handlers.start(&front, log) {
        Ok(()) => {
            show(&front, &handlers);
            let mut lost = None;
            let stop = async || {
                tokio::select! {
                    _ = signals.next() => {}
                    (app, status) = handlers.lost(), if lost.is_none() => lost = Some(how_it_ended(app, status)),
                }
            };
            serve::run(front, signal, DRAIN_TIMEOUT, stop).await;
            lost.map_or(Ok(()), Err)
        }
        Err(error) => Err(error),
    };
    handlers.end().await;
    result
}

/// The configuration, as a `.conf` would say it: one host, a handler on free ports for each route.
fn server(port: u16) -> anyhow::Result<Server> {
    let spec = |app: &str| -> anyhow::Result<Spec> {
        // Any free port, for programs of this machine only. The identity makes the specs of the handlers differ: equal
        // ones would be one handler.
        let text = format!("tcp://{app}@127.0.0.1:*");
        Ok(Spec {
            endpoint: text.parse()?,
            text,
        })
    };
    let routes = PARTS.iter().map(|part| {
        Ok(Route {
            path: part.route.to_owned(),
            target: Target::Handler(Arc::new(config::Handler {
                send_spec: spec(part.app)?,
                send_ident: part.app.to_owned(),
                recv_spec: spec(part.app)?,
                recv_ident: String::new(),
                raw_payload: false,
                protocol: Protocol::Json,
                slots: None,
                queue: None,
                retry: config::Retry::default(),
                wait: None,
                workers: None,
                sticky: None,
            })),
        })
    });
    let host = Host {
        name: "localhost".to_owned(),
        matching: "localhost".to_owned(),
        routes: routes.collect::<anyhow::Result<_>>()?,
    };
    Ok(Server {
        uuid: "demo".to_owned(),
        name: "demo".to_owned(),
        access_log: String::new(),
        error_log: String::new(),
        error_log_level: 0,
        chroot: String::new(),
        pid_file: String::new(),
        control_port: String::new(),
        default_host: 0,
        bind_addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port,
        use_ssl: false,
        hosts: vec![host],
        filters: Vec::new(),
        xrequests: Vec::new(),
    })
}

/// Says on stdout what there is to try. That nobody reads it is no reason to stop.
fn show(front: &Front, handlers: &Handlers) {
    let url = format!("http://{}", front.addr());
    let mut text = format!(
        "the demo is at {url}/ and ends with ctrl-C; try

  curl {url}/                      the page, better seen in a browser
  curl -d 'hello' {url}/echo       what was sent comes back
  curl -N {url}/stream             a response that grows

what runs:

  {:<9} process {:<7} {} demo
",
        "front",
        std::process::id(),
        typed()
    );
    for handler in &handlers.0 {
        let Running {
            part, pid, command, ..
        } = handler;
        // Writing to a String does not fail.
        let _ok = writeln!(text, "  {:<9} process {pid:<7} {command}", part.route);
    }
    text.push_str("\nrun the command of a handler once more in another terminal: it joins\n");
    let mut stdout = io::stdout().lock();
    drop(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    );
}

/// This program as it was called, so that what is shown can be typed: perhaps it is not in the PATH.
fn typed() -> String {
    std::env::args()
        .next()
        .unwrap_or_else(|| "lurcher".to_owned())
}

fn how_it_ended(app: &str, status: io::Result<ExitStatus>) -> anyhow::Error {
    match status {
        Ok(status) => anyhow!("handler {app} ended: {status}"),
        Err(error) => anyhow!("watch handler {app}: {error}"),
    }
}

/// A route and the built-in handler that serves it.
#[derive(Debug, Clone, Copy)]
struct Part {
    route: &'static str,
    app: &'static str,
}

/// The handlers' processes.
#[derive(Default)]
struct Handlers(Vec<Running>);

struct Running {
    part: Part,
    process: Child,
    pid: u32,
    /// Where it sees its end coming.
    stdin: Option<ChildStdin>,
    /// What one would type to run it.
    command: String,
}

impl Handlers {
    /// Starts them all; on an error some may be running, which [`Handlers::end`] sees to.
    fn start(&mut self, front: &Front, log: &str) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        for part in PARTS {
            let (_, send, recv) = front
                .sockets()
                .find(|(ident, ..)| *ident == part.app)
                .expect("each part has its sockets");
            let specs = [send.to_string(), recv.to_string()];
            let command = format!("{} run {} {} {}", typed(), part.app, specs[0], specs[1]);
            let mut process = Command::new(&program);
            process
                .args(["--log", log, "run", part.app])
                .args(specs)
                .args([format!("--{STOP_ON_EOF}").as_str(), "--workers=0"]);
            if part.app == PAGE {
                process.arg(format!(
                    "--process=front {} {} demo",
                    std::process::id(),
                    typed()
                ));
                for Running {
                    part, pid, command, ..
                } in &self.0
                {
                    process.arg(format!("--process={} {pid} {command}", part.route));
                }
                process.arg(format!("--process={} self {command}", part.route));
            }
            let failed = || format!("start handler {} with {}", part.app, program.display());
            let mut process = process
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                // ctrl-C is for this process, which ends them when their last answers are given.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()
                .with_context(failed)?;
            self.0.push(Running {
                part,
                pid: process.id().with_context(failed)?,
                // Taken out, since waiting for a child closes it.
                stdin: process.stdin.take(),
                process,
                command,
            });
        }
        Ok(())
    }

    /// Waits until one of them ends, which none should.
    ///
    /// # Cancel safety
    ///
    /// Safe: how a process ended is kept.
    async fn lost(&mut self) -> (&'static str, io::Result<ExitStatus>) {
        poll_fn(|cx| {
            for handler in &mut self.0 {
                if let Poll::Ready(status) = pin!(handler.process.wait()).poll(cx) {
                    return Poll::Ready((handler.part.app, status));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Ends them all and waits until they have.
    async fn end(mut self) {
        for handler in &mut self.0 {
            handler.stdin = None;
        }
        let deadline = Instant::now() + HANDLERS_TIMEOUT;
        for Running { part, process, .. } in &mut self.0 {
            if timeout_at(deadline, process.wait()).await.is_err() {
                tracing::warn!("handler {} does not end: killed", part.app);
                // It fails only for a process that has ended.
                drop(process.kill().await);
            }
        }
    }
}
