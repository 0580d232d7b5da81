//! `lurcher serve`: a front for one server of a configuration, or for each of them; and the same by the name `mongrel2`.
//!
//! In which process it runs, with which rights and in front of whom, is `process`'s matter.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::SignalKind;
use tracing::{error, info, warn};

use super::log;
use super::port::{self, Governed};
use super::process::{self, Background, Order, Outside, Ready, Snapshot};
use super::signals::{STOP, Signals};
use crate::config::Selector;
use crate::control;
use crate::drain;
use crate::front::{self, Front, Handle, Plan, Reloaded};
use crate::sys;

/// How long open requests get when the process that holds this one has gone: whoever ended that wants its ports.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(2);

/// Mongrel2's own words.
const MONGREL2_USAGE: &str = "usage: mongrel2 config.sqlite server_uuid [config_module.so]";

/// Arguments of `lurcher serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A Mongrel2 database or an m2sh .conf [default: config.sqlite, else mongrel2.conf]
    config: Option<PathBuf>,
    /// Which server of the configuration, by name or uuid; needed when it has several
    #[arg(long, value_name = "NAME|UUID")]
    server: Option<String>,
    /// All servers of the configuration, each in a process of its own
    #[arg(long, conflicts_with = "server")]
    every: bool,
    /// Go into the background, and end when the server serves
    #[arg(long)]
    daemon: bool,
    /// Stay in the foreground, whatever server.daemonize says [default]
    #[arg(long, conflicts_with = "daemon")]
    foreground: bool,
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let order = Order {
        config: args.config,
        // A member of several is called with its own uuid behind all that was typed.
        selector: args.server.map_or(Selector::Only, Selector::Named),
        every: args.every,
        background: if args.daemon {
            Background::Yes
        } else {
            Background::No
        },
    };
    process::carry_out(&order, serve_in_runtime)
}

/// `mongrel2 CONFIG UUID [MODULE.so]`, with its arguments only.
pub(super) fn as_mongrel2(
    arguments: impl IntoIterator<Item = OsString>,
) -> anyhow::Result<ExitCode> {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let (config, uuid) = match arguments.as_slice() {
        [config, uuid] => (config, uuid),
        [_, _, module] => anyhow::bail!(
            "load {}: configuration modules are C plug-ins and cannot be loaded; an SQLite database or a .conf is read",
            module.display()
        ),
        _ => {
            // Nobody is left to tell when stderr is gone.
            drop(writeln!(std::io::stderr(), "{MONGREL2_USAGE}"));
            return Ok(ExitCode::FAILURE);
        }
    };
    let order = Order {
        config: Some(PathBuf::from(config)),
        selector: Selector::Uuid(uuid.to_string_lossy().into_owned()),
        every: false,
        background: Background::AsConfigured,
    };
    process::carry_out(&order, serve_in_runtime)
}

fn serve_in_runtime(ready: Ready) -> anyhow::Result<ExitCode> {
    // A full disk is answered, whatever limit makes it full.
    sys::ignore_file_size_signal().context("ignore the signal of the limit on file sizes")?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("start the runtime")?;
    runtime.block_on(serve(ready))
}

async fn serve(ready: Ready) -> anyhow::Result<ExitCode> {
    let Ready {
        snapshot,
        listener,
        outside,
        test_mode,
    } = ready;
    let plan = snapshot.plan();
    let server = plan.server();
    if !server.error_log.is_empty() && !test_mode {
        let path = front::inside_chroot(&server.chroot, &server.error_log);
        log::open_error_log(&path, server.error_log_level)
            .with_context(|| format!("open error log {}", path.display()))?;
    }
    snapshot.log_remarks();
    let control_port = port::bind(server, plan.settings()).await?;
    let figures = port::bind_figures(plan.settings()).await?;
    let drain_timeout = plan.settings().drain_timeout;
    let (signal, watch) = drain::channel();
    // Before the log says that this server is there: whoever reads it may signal at once.
    let mut signals = Signals::of(STOP.into_iter().chain([SignalKind::hangup()]))?;
    process::take_hangup()?;
    let front = front::bind_with(listener, plan.clone(), &watch).await?;
    let mut source = Source {
        path: snapshot.path.clone(),
        chroot: snapshot.server().chroot.clone(),
        reloads_on_hangup: snapshot.settings().reload_on_hangup,
        outside,
    };
    drop(snapshot);
    let handle = front.handle();
    let (orders, mut ordered) = port::orders();
    // Of its own, so that a front that finishes what is open can still be asked how it goes, and told to end at once.
    let (end_control, control_watch) = drain::channel();
    let governed = Governed::new(plan, source.chroot.clone(), handle.clone(), orders);
    let governed = Rc::new(governed);
    if let Some(figures) = figures {
        figures.run(Rc::<Governed>::clone(&governed), &control_watch);
    }
    if let Some(control_port) = control_port {
        info!("control port on {}", control_port.endpoint());
        control_port.run(governed, &control_watch);
    }
    source.outside.ready().await?;
    let mut orphaned = false;
    let stop = async || {
        if orphaned {
            return tokio::time::sleep(ORPHAN_TIMEOUT).await;
        }
        loop {
            // SIGHUP reopens the logs, and reads a configuration that has changed unless that is turned off for it.
            let (order, reloads) = tokio::select! {
                kind = signals.next() => if kind == SignalKind::hangup() {
                    (control::Order::Reload, source.reloads_on_hangup)
                } else {
                    (control::Order::Stop, false)
                },
                Some(order) = ordered.recv() => (order, true),
                () = source.outside.gone() => {
                    error!("the process that holds this server has ended: so does this one");
                    orphaned = true;
                    return;
                }
            };
            match order {
                control::Order::Stop | control::Order::Terminate => {
                    return source.outside.stopping().await;
                }
                control::Order::Reload => {
                    source.outside.reloading();
                    info!("reopening logs");
                    log::reopen_error_log();
                    handle.reopen_logs();
                    info!("logs reopened");
                    if reloads {
                        source.reload(&handle).await;
                    } else {
                        source.renew(&handle).await;
                    }
                }
            }
            // It was heard at the start: that it is not heard now is seen by what waits for the other's end.
            drop(source.outside.ready().await);
        }
    };
    run(front, signal, drain_timeout, stop).await;
    end_control.finish(front::CLOSE_TIMEOUT).await;
    info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// Where the configuration comes from, and what of it is served.
struct Source {
    /// Its file, for the log.
    path: PathBuf,
    /// What the server was started with: it cannot move.
    chroot: String,
    /// `reload.on_hangup` of the configuration that is served.
    reloads_on_hangup: bool,
    outside: Outside,
}

impl Source {
    /// Reads the configuration and lets the front serve what it says now; what is wrong with it is logged, and the front
    /// goes on. Certificates are renewed all the same: they do not wait until somebody has corrected a configuration.
    async fn reload(&mut self, handle: &Handle) {
        let snapshot = match self.outside.read().await {
            Ok(snapshot) => snapshot,
            Err(why) => return self.refuse(&format!("{why:#}")),
        };
        if let Some(mistakes) = &snapshot.mistakes {
            self.refuse(mistakes);
            self.serve_keys(handle, &snapshot).await;
            return;
        }
        if snapshot.changed {
            snapshot.log_remarks();
        }
        match handle.reload(snapshot.plan()).await {
            Ok(done) => {
                self.reloads_on_hangup = snapshot.settings().reload_on_hangup;
                log::set_level(snapshot.server().error_log_level);
                // The front does not know of a jail that it is in.
                let chroot = (snapshot.server().chroot != self.chroot).then_some("chroot");
                tell(&done, chroot);
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                error!("reload: {error:#}: refused, the old configuration goes on");
                self.serve_keys(handle, &snapshot).await;
            }
        }
    }

    /// Renews the certificates only: the configuration stays as it is, whatever has become of its file.
    async fn renew(&mut self, handle: &Handle) {
        match self.outside.renew().await {
            Ok(snapshot) => {
                if !self.serve_keys(handle, &snapshot).await {
                    info!("configuration unchanged");
                }
            }
            Err(why) => self.refuse(&format!("{why:#}")),
        }
    }

    /// Lets what is served go on with the certificates of a snapshot, if they come from where its own do. Whether there was
    /// something to do.
    async fn serve_keys(&self, handle: &Handle, snapshot: &Snapshot) -> bool {
        let Some(served) = handle.plan() else {
            return false;
        };
        let new = snapshot.plan();
        let (from, to) = (served.settings(), new.settings());
        if !served.use_ssl()
            || !new.use_ssl()
            || (&from.certdir, &from.ssl_ca_chain) != (&to.certdir, &to.ssl_ca_chain)
        {
            return false;
        }
        let keys = new.keys;
        match handle.reload(Plan { keys, ..served }).await {
            Ok(done) if done.changes.is_empty() => false,
            Ok(done) => {
                tell(&done, None);
                true
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                error!("reload: {error:#}: the old certificates are served further");
                true
            }
        }
    }

    /// Tells what is wrong with a configuration, a line each.
    fn refuse(&self, mistakes: &str) {
        for line in mistakes.lines() {
            error!("{line}");
        }
        error!(
            "reload {}: refused, the old configuration goes on",
            self.path.display()
        );
    }
}

/// Tells the log what a reload has done.
fn tell(done: &Reloaded, chroot: Option<&'static str>) {
    for change in &done.changes {
        info!("reload: {change}");
    }
    for what in done.postponed.iter().copied().chain(chroot) {
        warn!("reload: {what} has changed: it takes effect at the next start");
    }
    let unchanged = done.changes.is_empty() && chroot.is_none();
    info!(
        "configuration {}",
        if unchanged { "unchanged" } else { "reloaded" }
    );
}

/// Runs a bound front until `stop` completes, then drains it; `stop` completing once more ends it at once. All its
/// tasks have ended when this returns.
pub(super) async fn run(
    front: Front,
    signal: drain::Signal,
    drain_timeout: Duration,
    mut stop: impl AsyncFnMut(),
) {
    let mut served = std::pin::pin!(front.run());
    tokio::select! {
        () = &mut served => {}
        () = stop() => {
            info!("draining: open requests are finished, for {} s at most", drain_timeout.as_secs());
            signal.drain();
            tokio::select! {
                () = &mut served => {}
                () = stop() => {
                    warn!("asked again: ending at once");
                    signal.abort();
                    served.await;
                }
            }
        }
    }
    // Connections were given their time; what is left are handlers' sockets, closing.
    signal.finish(front::CLOSE_TIMEOUT).await;
}
