//! The program: what was typed becomes one command, is run, and ends in an exit code.
//!
//! Only this module names clap and anyhow, reads the environment, prints, or decides about the exit code: 0 success,
//! 1 failure, 2 usage. stdout carries data, stderr log and errors; an error is one lower-case line,
//! `what was being done: why`.

mod args;
mod broker;
mod config;
mod control;
mod demo;
mod given;
mod line;
mod log;
mod m2sh;
mod port;
mod process;
mod run;
mod serve;
mod signals;
mod table;

use std::io::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, FromArgMatches as _};
use tokio::runtime::Runtime;

use crate::control::Order;

pub use run::{BuiltIn, Group, Handler, Opt, Target, Values};

/// Runs the program with the arguments of the process; `built_in` are the handlers that `lurcher run` knows by name. Called
/// by the name of a program that it stands in for, it takes that one's arguments.
pub fn main(built_in: &'static [BuiltIn]) -> ExitCode {
    if run::is_worker() {
        log::install(std::env::var("LURCHER_LOG").ok().as_deref());
        return ended(run::obey(built_in));
    }
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let result = match process::called(&program).to_str() {
        Some("mongrel2") => {
            log::install(std::env::var("LURCHER_LOG").ok().as_deref());
            serve::as_mongrel2(arguments)
        }
        Some("m2sh") => return m2sh::main(&program, arguments),
        Some("m2wsgi.device.dispatcher") => {
            log::install(std::env::var("LURCHER_LOG").ok().as_deref());
            broker::as_dispatcher(arguments)
        }
        Some(name @ ("m2wsgi" | "m2wsgi.device.response")) => {
            log::install(std::env::var("LURCHER_LOG").ok().as_deref());
            run::as_m2wsgi(name, arguments, built_in)
        }
        _ => by_its_own_name(built_in),
    };
    ended(result)
}

/// Begins a worker's part in a program that a worker has become ([`Handler::becoming`]), before that loads what it serves: names this
/// process in the list of processes and, unless it `forks`, has it end as soon as its supervisor wants that, until [`worker`] listens.
/// With `forks` it is for the only thread, before [`fork_workers`], and each worker calls it again.
///
/// # Errors
///
/// What was being done, and why not.
pub fn begin_worker(forks: bool) -> Result<(), String> {
    if !run::is_worker() {
        return Ok(());
    }
    run::beginning::name();
    if forks {
        return Ok(());
    }
    run::beginning::begin().map_err(|error| format!("{error:#}"))
}

/// Plays a worker's part in a program that a worker has become ([`Handler::becoming`]): takes its order, and serves with the handler
/// of that name in `built_in` until it is told to stop. It may run in any thread, and returns once.
pub fn worker(built_in: &'static [BuiltIn]) -> ExitCode {
    log::install(std::env::var("LURCHER_LOG").ok().as_deref());
    ended(run::obey_further(built_in, None))
}

/// The same, where threads of the program drive the runtime themselves: one that works on requests anyway hands its answers over and
/// takes the next ones without waking another. `drive` is called in this thread with the runtime, which is of one thread at a time,
/// and with what has to be polled, here, until it ends. Tasks, sockets and clocks need that somebody is in
/// [`Runtime::block_on`](tokio::runtime::Runtime::block_on), and it is no matter who.
pub fn worker_driven(
    built_in: &'static [BuiltIn],
    mut drive: impl FnMut(Arc<Runtime>, Pin<&mut dyn Future<Output = ()>>),
) -> ExitCode {
    log::install(std::env::var("LURCHER_LOG").ok().as_deref());
    ended(run::obey_further(built_in, Some(&mut drive)))
}

/// In a program that a worker has become ([`Handler::forking`]) and that has loaded everything: forks workers as the supervisor says,
/// by `fork`, which is called again and again in this thread, the only one. Returns true in each of the workers, which goes on with
/// [`worker`], and false in this process when no worker is needed any more.
///
/// # Errors
///
/// What was being done, and why not.
pub fn fork_workers(mut fork: impl FnMut() -> Result<i32, String>) -> Result<bool, String> {
    run::zygote::serve(&mut fork).map_err(|error| format!("{error:#}"))
}

/// Tells the supervisor of this worker that it has read these files: where `--reload` was said, their change replaces the worker. It may
/// be called at any time, from any thread, before [`worker`] too.
pub fn reads(files: impl IntoIterator<Item = PathBuf>) {
    run::reads(files);
}

/// The exit code, with a word about what went wrong.
fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            // A chain of causes on one line; nobody is left to tell when stderr is gone.
            drop(writeln!(std::io::stderr(), "lurcher: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn by_its_own_name(built_in: &'static [BuiltIn]) -> anyhow::Result<ExitCode> {
    let arguments: Vec<_> = std::env::args_os().collect();
    let command = args::Cli::command()
        .mut_subcommand("run", |run| run::describe(run, built_in, &arguments))
        .mut_subcommand("broker", broker::describe);
    let cli = args::Cli::from_arg_matches(&command.get_matches_from(arguments))
        .unwrap_or_else(|error| error.exit());
    log::install(cli.log.as_deref());
    match cli.command {
        args::Command::Serve(args) => serve::main(args),
        args::Command::Run(args) => run::main(&args, built_in, cli.log.as_deref()),
        args::Command::Broker(args) => broker::main(&args),
        args::Command::Config(args) => config::main(args),
        args::Command::Control(args) => control::main(args),
        args::Command::Status(args) => control::status(&args),
        args::Command::Running(args) => control::running(&args),
        args::Command::Reload(args) => control::order(&args, Order::Reload),
        args::Command::Stop(args) => control::order(&args, Order::Stop),
        args::Command::Demo(args) => demo::main(args, cli.log.as_deref()),
    }
}
