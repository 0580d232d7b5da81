//! The process that serves: one handler, its connection, and the way to stop both.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::oneshot;

use super::Handler;
use super::plan::{App, Plan};
use crate::endpoint::Endpoint;
use crate::handler::{Connection, Options};
use crate::launcher::signals::{STOP, Signals};

/// Serves in this process.
pub(super) fn main(plan: &Plan) -> anyhow::Result<ExitCode> {
    let App::BuiltIn { handler, values } = &plan.app else {
        bail!(
            "running {}: a program of its own needs a supervisor",
            plan.name
        );
    };
    let serving = (handler.run)(values).map_err(anyhow::Error::msg)?;
    let (send, recv): (Vec<_>, Vec<_>) = plan.servers.iter().cloned().unzip();
    let mut options = Options::new(send);
    options.recv_specs = recv;
    options.ident.clone_from(&plan.ident);
    let mut runtime = if plan.threads > 1 {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = runtime
        .worker_threads(plan.threads.max(1) as usize)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(serve(
        &plan.name,
        options,
        serving,
        plan.graceful_timeout,
        plan.stop_on_eof,
    ));
    // What is left when a handler was given up must not hold the end up.
    runtime.shutdown_background();
    result
}

/// Serves until it is asked to stop, then until all is answered, the time is up or it is asked again.
async fn serve(
    name: &str,
    options: Options,
    handler: Handler,
    graceful_timeout: Duration,
    stop_on_eof: bool,
) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new(stop_on_eof)?;
    let send_specs = list(options.send_specs.iter());
    let connection = tokio::select! {
        connection = Connection::connect(options) => connection.with_context(|| format!("running `{name}`"))?,
        () = stop.next() => return Ok(ExitCode::SUCCESS),
    };
    tracing::info!(
        "handler {name}: connected to {send_specs}, replies to {}",
        list(connection.recv_specs())
    );
    let handle = connection.stop_handle();
    let leaving = handler.1;
    let mut serving = handler.0(connection);
    tokio::select! {
        result = &mut serving => {
            result.with_context(|| format!("running `{name}`"))?;
            return Ok(ExitCode::SUCCESS);
        }
        () = stop.next() => {}
    }
    tracing::info!("handler {name}: stopping");
    Handler::ask_to_stop(leaving, &handle);
    let why = tokio::select! {
        result = &mut serving => {
            result.with_context(|| format!("stopping `{name}`"))?;
            tracing::info!("handler {name}: stopped");
            return Ok(ExitCode::SUCCESS);
        }
        () = tokio::time::sleep(graceful_timeout) => format!("not done after {} seconds", graceful_timeout.as_secs()),
        () = stop.next() => "told so twice".to_owned(),
    };
    // Dropping the connection would wait for replies that the server does not take; the system closes its sockets.
    std::mem::forget(serving);
    bail!("stopping `{name}` at once: {why}");
}

/// What asks a handler to stop: SIGINT, SIGTERM and, where that was asked for, the end of standard input.
struct Stop {
    signals: Signals,
    stdin: Option<oneshot::Receiver<()>>,
}

impl Stop {
    fn new(on_eof: bool) -> anyhow::Result<Self> {
        Ok(Self {
            signals: Signals::of(STOP)?,
            stdin: on_eof.then(end_of_stdin),
        })
    }

    /// The next reason to stop; standard input ends once.
    async fn next(&mut self) {
        let stdin = async {
            match &mut self.stdin {
                // It is the end of the sender that tells.
                Some(end) => drop(end.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.signals.next() => return,
            () = stdin => {}
        }
        self.stdin = None;
    }
}

/// Reads standard input to its end. In a thread of its own, since a read from it cannot be cancelled; the process does
/// not wait for that thread.
fn end_of_stdin() -> oneshot::Receiver<()> {
    let (sender, end) = oneshot::channel();
    std::thread::spawn(move || {
        // An input that cannot be read has ended too.
        drop(std::io::copy(
            &mut std::io::stdin().lock(),
            &mut std::io::sink(),
        ));
        drop(sender);
    });
    end
}

fn list<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> String {
    endpoints
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
