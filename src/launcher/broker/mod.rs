//! `lurcher broker`: the device between servers and workers, as one process on one thread.
//!
//! `args` is what is typed (`options` is one table; `m2wsgi` the same in that program's words), `plan` what is meant, `desk` what an operator sees. What the device does is `crate::broker`'s.

mod args;
mod desk;
mod m2wsgi;
mod options;
mod plan;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::desk::Desk;
use self::plan::Plan;
use super::process::{Manager, PidFile};
use super::run::usual_port;
use super::run::worker::end_of_stdin;
use super::signals::{STOP, Signals};
use crate::broker::{Device, DeviceSettings, PoolSpec, StartError};
use crate::control::{self, Order};
use crate::drain::{self, Watch};

pub(super) use args::{Args, describe};

/// Makes the plan anew; the error says what is wrong with it.
type Replan<'a> = &'a dyn Fn() -> Result<Plan, String>;

/// How long tasks may take at the end, when nothing is open any more.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Stands between servers and workers until it is told to stop.
pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    run(&args.typed())
}

/// By the name `m2wsgi.device.dispatcher`, with that program's arguments.
pub(super) fn as_dispatcher(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match m2wsgi::read(&arguments) {
        Ok(Some(typed)) => run(&typed),
        Ok(None) => {
            // Nobody is left to tell when stdout is gone.
            drop(writeln!(std::io::stdout(), "{}", m2wsgi::USAGE));
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => Ok(usage(&format!("{}: {why}", m2wsgi::NAME))),
    }
}

fn usage(why: &str) -> ExitCode {
    // Nobody is left to tell when stderr is gone.
    drop(writeln!(std::io::stderr(), "lurcher: {why}"));
    ExitCode::from(2)
}

fn run(typed: &[(String, String)]) -> anyhow::Result<ExitCode> {
    let replan = || plan::plan(typed, |name| std::env::var(name).ok());
    let plan = match replan() {
        Ok(plan) => plan,
        Err(why) => return Ok(usage(&why)),
    };
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("start the runtime")?;
    let name = plan.name.clone();
    runtime
        .block_on(serve(plan, &replan))
        .with_context(|| format!("running the broker `{name}`"))
}

async fn serve(plan: Plan, replan: Replan<'_>) -> anyhow::Result<ExitCode> {
    // First of all: who reads the pid file may send a signal.
    let signals = Signals::of(STOP.into_iter().chain([SignalKind::hangup()]))?;
    let stdin = plan.stop_on_eof.then(end_of_stdin);
    let _pid_file = plan.pid_file.as_deref().map(PidFile::create).transpose()?;
    let (signal, watch) = drain::channel();
    let device = Rc::new(start(&plan, &watch).await?);
    let (port_signal, port_watch) = drain::channel();
    let ordered = open_port(&plan, &device, &port_watch).await?;
    tell(&plan, &device);
    let manager = Manager::from_environment();
    manager.ready();
    let mut orders = Orders {
        signals,
        stdin,
        ordered,
        plan,
        replan,
        manager,
    };
    orders.stop(&device).await;
    orders.manager.stopping();
    let grace = orders.plan.graceful_timeout;
    info!(
        "stopping: no more requests are taken, {} that are open may take {} s",
        device.open(),
        grace.as_secs()
    );
    let deadline = Instant::now() + grace;
    let finished = async {
        device.quiesce().await;
        device.idle(deadline).await
    };
    let again = async {
        orders.stop(&device).await;
        warn!("asked again: ending at once");
        true
    };
    let in_time = tokio::select! {
        in_time = finished => in_time,
        asked = again => asked,
    };
    if !in_time {
        warn!(
            "{} requests are still open: they are given up",
            device.open()
        );
    }
    // Nobody else has more than a look at it.
    if let Some(device) = Rc::into_inner(device) {
        device.stop(Duration::ZERO).await;
    }
    signal.finish(FINISH_TIMEOUT).await;
    port_signal.finish(FINISH_TIMEOUT).await;
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// What the process is told from outside.
struct Orders<'a> {
    signals: Signals,
    stdin: Option<oneshot::Receiver<()>>,
    ordered: mpsc::Receiver<Order>,
    plan: Plan,
    replan: Replan<'a>,
    manager: Manager,
}

impl Orders<'_> {
    /// Carries out what is asked for until it is the end.
    async fn stop(&mut self, device: &Device) {
        loop {
            let order = tokio::select! {
                kind = self.signals.next() => if kind == SignalKind::hangup() {
                    Order::Reload
                } else {
                    Order::Stop
                },
                Some(order) = self.ordered.recv() => order,
                () = ended(&mut self.stdin) => Order::Stop,
            };
            match order {
                Order::Stop | Order::Terminate => return,
                Order::Reload => {
                    self.manager.reloading();
                    self.reload(device);
                    self.manager.ready();
                }
            }
        }
    }

    /// Reads the options again, and takes up what can be.
    fn reload(&mut self, device: &Device) {
        let plan = match (self.replan)() {
            Ok(plan) => plan,
            Err(why) => {
                error!("reload: {why}: refused, the old options go on");
                return;
            }
        };
        if plan.fixed != self.plan.fixed {
            warn!(
                "reload: addresses, pools, names and files have changed: that takes effect at the next start"
            );
        }
        let before = std::mem::replace(&mut self.plan.rules, plan.rules);
        // Workers have been told it.
        self.plan.rules.heartbeats.interval = before.heartbeats.interval;
        device.set_rules(&self.plan.rules);
        self.plan.graceful_timeout = plan.graceful_timeout;
        info!("options reloaded");
    }
}

/// Binds and connects; without pings where those were not asked for and their address is not to be had.
async fn start(plan: &Plan, watch: &Watch) -> anyhow::Result<Device> {
    let mut settings = DeviceSettings::default();
    settings.name.clone_from(&plan.name);
    settings.ledger.clone_from(&plan.state);
    settings.towards.ident.clone_from(&plan.ident);
    let once = async |pools: &[PoolSpec]| {
        let settings = settings.clone();
        Device::start(&plan.servers, pools, &plan.rules, settings, watch).await
    };
    let started = match once(&plan.pools).await {
        Err(StartError::Bind(error)) if plan.pings_are_optional => {
            let mut pools = plan.pools.clone();
            for pool in &mut pools {
                pool.pings = None;
            }
            match once(&pools).await {
                Ok(device) => {
                    let error = anyhow::Error::from(error);
                    info!(
                        "without pings for m2wsgi's workers; name an address with --pings: {error:#}"
                    );
                    Ok(device)
                }
                // It was not about the pings.
                Err(_) => Err(StartError::Bind(error)),
            }
        }
        started => started,
    };
    started.context("stand between servers and workers")
}

/// Opens the port for figures, if one is named, and the control port: where the plan says, else where such ports usually are; that one need not be had.
async fn open_port(
    plan: &Plan,
    device: &Rc<Device>,
    watch: &Watch,
) -> anyhow::Result<mpsc::Receiver<Order>> {
    let (desk, orders) = Desk::new(plan.name.clone(), device);
    let desk = Rc::new(desk);
    if let Some(address) = plan.metrics {
        let figures = control::bind_figures(address).await;
        figures
            .with_context(|| format!("open the port for figures, {address}"))?
            .run(Rc::<Desk>::clone(&desk), watch);
    }
    let usual = usual_port(plan.pid_file.as_deref(), &plan.name);
    let (endpoint, is_asked) = match (&plan.control, usual) {
        (Some(endpoint), _) => (endpoint.clone(), true),
        (None, Some(endpoint)) => (endpoint, false),
        (None, None) => return Ok(orders),
    };
    match control::bind(&endpoint)
        .await
        .context("open the control port")
    {
        Ok(port) => {
            info!("control port on {}", port.endpoint());
            port.run(desk, watch);
        }
        Err(error) if is_asked => return Err(error),
        Err(error) => info!("running without a control port; name one with --control: {error:#}"),
    }
    Ok(orders)
}

/// Tells the log who is served, by whom, and where they come.
fn tell(plan: &Plan, device: &Device) {
    for (send, recv) in &plan.servers {
        info!(
            "broker {}: requests from {send}, replies to {recv}",
            plan.name
        );
    }
    for (pool, spec) in device.pools().iter().zip(&plan.pools) {
        let endpoints = &pool.report.endpoints;
        let mut places = Vec::new();
        if let Some(workers) = &endpoints.workers {
            places.push(format!("workers at {workers}"));
        }
        if let Some((pull, publish)) = &endpoints.plain {
            places.push(format!("plain handlers at {pull} and {publish}"));
        }
        if let Some(pings) = &endpoints.pings {
            places.push(format!("pings at {pings}"));
        }
        if places.is_empty() {
            places.push("workers that say its name".to_owned());
        }
        info!("pool {}: {}", spec.name, places.join(", "));
        let plain = endpoints
            .plain
            .iter()
            .flat_map(|(pull, publish)| [pull, publish]);
        for open in endpoints.workers.iter().chain(plain) {
            if !open.is_local() {
                warn!("{open} is neither loopback nor ipc: whoever reaches it can take part");
            }
        }
    }
}

/// Waits for the end of standard input, once.
async fn ended(stdin: &mut Option<oneshot::Receiver<()>>) {
    match stdin {
        // It is the end of the sender that tells.
        Some(end) => drop(end.await),
        None => std::future::pending().await,
    }
    *stdin = None;
}
