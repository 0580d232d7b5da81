//! `lurcher serve`: a front for one server of a configuration.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::SignalKind;
use tracing::{error, info, warn};

use super::log;
use super::signals::{STOP, Signals};
use crate::config::{self, Config, Diagnostic, Loaded, Selector, Severity};
use crate::drain;
use crate::front::tls::Keys;
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
    let path = loaded.path.clone();
    let plan = with_keys(Arc::new(loaded.config), loaded.server)?;
    let mut file = Watched {
        path,
        selector,
        plan: plan.clone(),
    };
    let (server, settings) = (plan.server(), plan.settings());
    let (signal, watch) = drain::channel();
    let front = front::bind(plan.clone(), &watch).await?;
    if !server.error_log.is_empty() {
        let path = front::inside_chroot(&server.chroot, &server.error_log);
        log::open_error_log(&path, server.error_log_level)
            .with_context(|| format!("open error log {}", path.display()))?;
    }
    let mut signals = Signals::of(STOP.into_iter().chain([SignalKind::hangup()]))?;
    let handle = front.handle();
    let stop = async || {
        // SIGHUP reopens the logs meanwhile, and reads a configuration and certificates that have changed.
        while signals.next().await == SignalKind::hangup() {
            info!("reopening logs");
            log::reopen_error_log();
            handle.reopen_logs();
            info!("logs reopened");
            if file.plan.settings().reload_on_hangup {
                file.reload(&handle).await;
            } else {
                file.renew(&handle).await;
            }
        }
    };
    run(front, signal, settings.drain_timeout, stop).await;
    info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// A plan with the certificates as they are in their files now, if it needs any. They are where the chroot has them.
fn with_keys(config: Arc<Config>, server: usize) -> anyhow::Result<Plan> {
    let mut plan = Plan {
        config,
        server,
        keys: None,
    };
    if let (true, Some(certdir)) = (plan.use_ssl(), &plan.settings().certdir) {
        let certdir = front::inside_chroot(&plan.server().chroot, certdir);
        let chain = plan.settings().ssl_ca_chain.as_ref().map(Path::new);
        plan.keys = Some(Arc::new(Keys::read(&certdir, chain)?));
    }
    Ok(plan)
}

/// The file of a configuration, and what of it is served.
struct Watched {
    path: PathBuf,
    selector: Selector,
    plan: Plan,
}

impl Watched {
    /// Reads the certificates of what is served again, and nothing else.
    async fn renew(&mut self, handle: &Handle) {
        if self.plan.use_ssl() {
            self.serve(handle, Arc::clone(&self.plan.config), self.plan.server)
                .await;
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
                return self.renew(handle).await;
            }
            Err(failed) => return error!("reload {}: {failed}", self.path.display()),
        };
        report(&loaded.warnings);
        self.serve(handle, Arc::new(loaded.config), loaded.server)
            .await;
    }

    /// Lets the front serve this, with its certificates.
    async fn serve(&mut self, handle: &Handle, config: Arc<Config>, server: usize) {
        let read = tokio::task::spawn_blocking(move || with_keys(config, server)).await;
        let plan = match read.map_err(anyhow::Error::from).flatten() {
            Ok(plan) => plan,
            Err(error) => {
                return error!("reload: {error:#}: refused, the old configuration goes on");
            }
        };
        match handle.reload(plan.clone()).await {
            Ok(done) if done.changes.is_empty() => info!("configuration unchanged"),
            Ok(done) => {
                self.plan = plan;
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
