//! `lurcher serve`: a front for one server of a configuration.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::SignalKind;
use tracing::{info, warn};

use super::log;
use super::signals::{STOP, Signals};
use crate::config::{self, Loaded, Selector, Server, Settings, Severity};
use crate::drain;
use crate::front::tls::{Keys, Tls};
use crate::front::{self, Control, Front};
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
    for warning in &loaded.warnings {
        match warning.severity {
            Severity::Note => info!("{warning:#}"),
            Severity::Warning | Severity::Error => warn!("{warning:#}"),
        }
    }
    raise_descriptors(&loaded);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("start the runtime")?;
    runtime.block_on(serve(&loaded))
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

async fn serve(loaded: &Loaded) -> anyhow::Result<ExitCode> {
    let server = &loaded.config.servers[loaded.server];
    let settings = &loaded.config.settings;
    let (signal, watch) = drain::channel();
    let keys = keys(server, settings)?;
    let front = front::bind(server, settings, keys.as_ref(), &watch).await?;
    drop(keys);
    let tls = front.tls();
    if !server.error_log.is_empty() {
        let path = front::inside_chroot(&server.chroot, &server.error_log);
        log::open_error_log(&path, server.error_log_level)
            .with_context(|| format!("open error log {}", path.display()))?;
    }
    let mut signals = Signals::of(STOP.into_iter().chain([SignalKind::hangup()]))?;
    let (reopen, control) = Control::new();
    let stop = async || {
        // SIGHUP reopens the logs meanwhile, and reads the certificates again.
        while signals.next().await == SignalKind::hangup() {
            info!("reopening logs");
            log::reopen_error_log();
            info!("logs reopened");
            // Full means that the same was asked already.
            let _asked = reopen.try_send(());
            if let Some(tls) = &tls {
                match renew(tls, server, settings).await {
                    Ok(count) => info!("certificates read again: {count}"),
                    Err(error) => warn!("certificates stay as they are: {error:#}"),
                }
            }
        }
    };
    run(front, control, signal, settings.drain_timeout, stop).await;
    info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// The certificates of a server with `use_ssl`, from where the chroot has them.
fn keys(server: &Server, settings: &Settings) -> anyhow::Result<Option<Keys>> {
    if !server.use_ssl {
        return Ok(None);
    }
    let Some(certdir) = &settings.certdir else {
        return Ok(None);
    };
    let certdir = front::inside_chroot(&server.chroot, certdir);
    let chain = settings.ssl_ca_chain.as_ref().map(Path::new);
    Ok(Some(Keys::read(&certdir, chain)?))
}

/// Serves the certificates as they are in the files now; says how many.
async fn renew(tls: &Tls, server: &Server, settings: &Settings) -> anyhow::Result<usize> {
    let (server, owned) = (server.clone(), settings.clone());
    let keys = tokio::task::spawn_blocking(move || keys(&server, &owned)).await??;
    Ok(tls.replace(settings, keys.context("no certdir")?).await?)
}

/// Runs a bound front until `stop` completes, then drains it; `stop` completing once more ends it at once. All its
/// tasks have ended when this returns.
pub(super) async fn run(
    front: Front,
    control: Control,
    signal: drain::Signal,
    drain_timeout: Duration,
    mut stop: impl AsyncFnMut(),
) {
    let mut served = std::pin::pin!(front.run(control));
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
