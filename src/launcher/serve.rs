//! `lurcher serve`: a front for one server of a configuration.

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::SignalKind;
use tracing::{error, info, warn};

use super::log;
use super::port::{self, Governed};
use super::signals::{STOP, Signals};
use crate::config::{self, Diagnostic, Loaded, Selector, Severity};
use crate::control::Order;
use crate::drain;
use crate::front::{self, Front, Handle, Plan};
use crate::sys;

/// Arguments of `lurcher serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A Mongrel2 database or an m2sh .conf [default: config.sqlite, else mongrel2.conf]
    config: Option<PathBuf>,
    /// Which server of the configuration, by name or uuid; needed when it has several
    #[arg(long, value_name = "NAME|UUID")]
    server: Option<String>,
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let selector = args.server.map_or(Selector::Only, Selector::Named);
    let loaded = config::load(args.config.as_deref(), &selector)?;
    report(&loaded.warnings);
    let server = &loaded.config.servers[loaded.server];
    // What was meant to be encrypted is not served in the clear.
    anyhow::ensure!(
        !server.use_ssl,
        "serving {}: use_ssl is set, and TLS is not there yet",
        server.uuid
    );
    raise_descriptors(&loaded);
    // A full disk is answered, whatever limit makes it full.
    sys::ignore_file_size_signal().context("ignore the signal of the limit on file sizes")?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("start the runtime")?;
    runtime.block_on(serve(loaded, selector))
}

fn report(warnings: &[Diagnostic]) {
    for warning in warnings {
        match warning.severity {
            Severity::Note => info!("{warning:#}"),
            Severity::Warning | Severity::Error => warn!("{warning:#}"),
        }
    }
}

/// Mongrel2 sets the limit to `superpoll.max_fd`; here it is raised to that, and never lowered.
fn raise_descriptors(loaded: &Loaded) {
    let wanted = loaded.config.settings.max_fd;
    match sys::raise_open_files(wanted as u64) {
        Ok(limit) if limit.soft < wanted as u64 => {
            warn!(
                "superpoll.max_fd is {wanted}, but this process may open {} files only",
                limit.soft
            );
        }
        Ok(_) => {}
        Err(error) => warn!("raise the limit on open files to {wanted}: {error}"),
    }
}

async fn serve(loaded: Loaded, selector: Selector) -> anyhow::Result<ExitCode> {
    let mut file = Watched::new(
        loaded.path.clone(),
        selector,
        loaded.config.settings.reload_on_hangup,
    );
    let plan = Plan {
        config: Arc::new(loaded.config),
        server: loaded.server,
    };
    let (server, settings) = (plan.server(), plan.settings());
    let (signal, watch) = drain::channel();
    let front = front::bind(plan.clone(), &watch).await?;
    if !server.error_log.is_empty() {
        let path = front::inside_chroot(&server.chroot, &server.error_log);
        log::open_error_log(&path, server.error_log_level)
            .with_context(|| format!("open error log {}", path.display()))?;
    }
    let control_port = port::bind(server, settings).await?;
    let mut signals = Signals::of(STOP.into_iter().chain([SignalKind::hangup()]))?;
    let handle = front.handle();
    let (orders, mut ordered) = port::orders();
    // Of its own, so that a front that finishes what is open can still be asked how it goes, and told to end at once.
    let (end_control, control_watch) = drain::channel();
    if let Some(control_port) = control_port {
        info!("control port on {}", control_port.endpoint());
        let governed = Governed::new(plan.clone(), handle.clone(), orders);
        control_port.run(Rc::new(governed), &control_watch);
    }
    let stop = async || {
        loop {
            // SIGHUP reopens the logs, and reads a configuration that has changed unless that is turned off for it.
            let (order, reloads) = tokio::select! {
                kind = signals.next() => if kind == SignalKind::hangup() {
                    (Order::Reload, file.reloads_on_hangup)
                } else {
                    (Order::Stop, false)
                },
                Some(order) = ordered.recv() => (order, true),
            };
            match order {
                Order::Stop | Order::Terminate => return,
                Order::Reload => {
                    info!("reopening logs");
                    log::reopen_error_log();
                    handle.reopen_logs();
                    info!("logs reopened");
                    if reloads {
                        file.reload(&handle).await;
                    }
                }
            }
        }
    };
    run(front, signal, settings.drain_timeout, stop).await;
    end_control.finish(front::CLOSE_TIMEOUT).await;
    info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// The file of a configuration, and what of it is served.
struct Watched {
    path: PathBuf,
    selector: Selector,
    /// `reload.on_hangup` of the configuration that is served.
    reloads_on_hangup: bool,
}

impl Watched {
    fn new(path: PathBuf, selector: Selector, reloads_on_hangup: bool) -> Self {
        Self {
            path,
            selector,
            reloads_on_hangup,
        }
    }

    /// Reads the file and lets the front serve what it says now; what is wrong with it is logged, and the front goes on.
    async fn reload(&mut self, handle: &Handle) {
        let (path, selector) = (self.path.clone(), self.selector.clone());
        let read = tokio::task::spawn_blocking(move || config::load(Some(&path), &selector)).await;
        let loaded = match read {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(mistakes)) => {
                for line in mistakes.to_string().lines() {
                    error!("{line}");
                }
                error!(
                    "reload {}: refused, the old configuration goes on",
                    self.path.display()
                );
                return;
            }
            Err(failed) => return error!("reload {}: {failed}", self.path.display()),
        };
        report(&loaded.warnings);
        let plan = Plan {
            config: Arc::new(loaded.config),
            server: loaded.server,
        };
        let reloads_on_hangup = plan.settings().reload_on_hangup;
        match handle.reload(plan).await {
            Ok(done) if done.changes.is_empty() => info!("configuration unchanged"),
            Ok(done) => {
                self.reloads_on_hangup = reloads_on_hangup;
                for change in &done.changes {
                    info!("reload: {change}");
                }
                for what in done.postponed {
                    warn!("reload: {what} has changed: it takes effect at the next start");
                }
                info!("configuration reloaded");
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                error!("reload: {error:#}: refused, the old configuration goes on");
            }
        }
    }
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
