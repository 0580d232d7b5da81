//! `lurcher run`: a handler, started and connected to one server or several.
//!
//! Handlers say what options they have as plain data ([`BuiltIn`]). `args` is what is typed (its `options` are one table),
//! `given` what is said there, in the environment and in files, `source` makes a [`plan::Plan`] of it, `supervise` is the process that was
//! started, `worker` the one that serves, `beginning` the same before it does, `rights` who that one is.

mod access_log;
mod app;
mod args;
pub(super) mod beginning;
mod env_file;
mod m2wsgi;
mod options;
mod patience;
mod plan;
mod rights;
pub(super) mod source;
mod supervise;
pub(super) mod worker;
pub(super) mod zygote;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ExitCode, Output};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::handler::{Connection, ReplyError, StopHandle};
use crate::routing::Place;

pub(super) use args::{Args, describe};
use plan::App;
use rights::Surroundings;
use source::Source;
pub(super) use supervise::usual_port;
pub(super) use worker::{is_worker, obey, obey_further, reads};

/// The option by which a handler watches its standard input.
pub(super) const STOP_ON_EOF: &str = "stop-on-eof";

/// A handler compiled into the program.
#[derive(Debug)]
pub struct BuiltIn {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it does, in one line or more; the first is shown in lists.
    pub about: &'static str,
    /// How it is named together with what it works on, where it needs that: the schemes before the colon (`http`, `unix` for
    /// `http://HOST:PORT` and `unix:/PATH`) and the forms for the help. Empty for one that is called by its name alone.
    pub targets: &'static [Target],
    /// Its own options.
    pub options: &'static [Opt],
    /// Makes the handler from what was typed; the error says what is wrong with it.
    pub run: fn(&Values) -> Result<Handler, String>,
}

/// A way to name a handler together with what it works on: `files:DIR`.
#[derive(Debug)]
pub struct Target {
    /// What stands before the colon. Empty: the handler takes whatever is written like a name in Python, `package.module:name` or
    /// `package.module.name`, and is no other's.
    pub scheme: &'static str,
    /// The whole as the help shows it.
    pub form: &'static str,
}

/// An option of a built-in handler: `--name VALUE`.
#[derive(Debug)]
pub struct Opt {
    /// The name without dashes.
    pub name: &'static str,
    /// What the value is called in the help; empty for one that is said or not, whose value is `true`.
    pub value: &'static str,
    /// What it does; the default in brackets at the end.
    pub help: &'static str,
    /// Whether it may be given several times.
    pub repeat: bool,
}

/// The options that were typed, in order.
#[derive(Debug, Clone, Default)]
pub struct Values {
    options: Vec<(&'static str, String)>,
    target: String,
    concurrency: Option<u32>,
    threads: Option<u32>,
    graceful_timeout: Option<Duration>,
    workers: u32,
    reload: bool,
    check: bool,
    group: Option<String>,
    surroundings: Surroundings,
}

/// Some of a handler's applications, served by processes of their own: see [`Handler::groups`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What it is called, as a file may be.
    pub name: String,
    /// Where its applications are.
    pub places: Vec<Place>,
    /// What it has of its own: options by their names.
    pub options: Vec<(String, String)>,
}

impl Values {
    /// What was typed as APP, whole: `files:/srv/www` or just the name.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// How many requests may be open at once (`--concurrency`), where that was said.
    pub fn concurrency(&self) -> Option<u32> {
        self.concurrency
    }

    /// How many threads a worker has (`--threads`), where that was said.
    pub fn threads(&self) -> Option<u32> {
        self.threads
    }

    /// How long a worker that was asked to stop has before it is killed (`--graceful-timeout`).
    pub fn graceful_timeout(&self) -> Option<Duration> {
        self.graceful_timeout
    }

    /// How many worker processes there are at the start (`--workers`).
    pub fn workers(&self) -> u32 {
        self.workers
    }

    /// Whether workers are replaced when files change (`--reload`).
    pub fn reload(&self) -> bool {
        self.reload
    }

    /// Whether nothing is to be served, only looked at (`--check`).
    pub fn check(&self) -> bool {
        self.check
    }

    /// Which of its groups the handler is to be ([`Handler::groups`]).
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// The working directory of workers, where it is another than this process's (`--chdir`).
    pub fn folder(&self) -> Option<&Path> {
        self.surroundings.folder.as_deref()
    }

    /// Runs a program as a worker would be run, in the same folder, as the same user and with the same environment, and waits for its
    /// end.
    ///
    /// # Errors
    ///
    /// When it cannot be started so; the error says why.
    pub fn try_program(&self, program: &Path, arguments: &[&OsStr]) -> Result<Output, String> {
        self.surroundings.output(program, arguments)
    }

    /// Whether an option that has no value was given.
    pub fn is_said(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    /// The value of an option, where it was given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    /// All values of an option that may be repeated.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.options
            .iter()
            .filter(move |(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
    }
}

impl FromIterator<(&'static str, String)> for Values {
    fn from_iter<I: IntoIterator<Item = (&'static str, String)>>(values: I) -> Self {
        Self {
            options: values.into_iter().collect(),
            ..Self::default()
        }
    }
}

/// A handler, ready to serve a connection until that ends.
pub struct Handler(Work);

/// What a handler does.
enum Work {
    /// It serves in this process.
    Serve(Box<dyn FnOnce(Connection) -> Serving>, Leaving),
    /// Several groups of processes do, each of which is this handler, and knows by [`Values::group`] which.
    Several(Vec<Group>),
    /// Another program does, in the place of this one, which takes the same order: see [`super::worker`].
    Become(Program),
}

/// A program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    /// One process of it loads everything, and workers are forked from that.
    forks: bool,
}

/// How a handler is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// With [`Connection::shutdown`].
    AtOnce,
    /// With [`Connection::drain`].
    Draining,
}

/// Drives the runtime of a worker to the end of that future: see [`super::worker_driven`].
pub(super) type Drive<'a> = &'a mut dyn FnMut(Arc<Runtime>, Pin<&mut dyn Future<Output = ()>>);

/// The run of a handler.
type Serving = Pin<Box<dyn Future<Output = Result<(), ReplyError>>>>;

impl Handler {
    /// Wraps an async function that receives until there is nothing more, and then finishes the connection.
    pub fn new<F, R>(serve: F) -> Self
    where
        F: FnOnce(Connection) -> R + 'static,
        R: Future<Output = Result<(), ReplyError>> + 'static,
    {
        let serve = move |connection| Box::pin(serve(connection)) as Serving;
        Self(Work::Serve(Box::new(serve), Leaving::AtOnce))
    }

    /// The same for one whose answers go on for longer: it is asked to stop by [`Connection::drain`] alone, goes on to receive after
    /// [`Event::Drained`](crate::handler::Event::Drained), so that credits and parts of bodies still arrive, and ends by itself when
    /// nothing is open any more.
    pub fn draining<F, R>(serve: F) -> Self
    where
        F: FnOnce(Connection) -> R + 'static,
        R: Future<Output = Result<(), ReplyError>> + 'static,
    {
        let serve = move |connection| Box::pin(serve(connection)) as Serving;
        Self(Work::Serve(Box::new(serve), Leaving::Draining))
    }

    /// A handler that lives in another program, such as an interpreter: each worker becomes that program, which takes its order by
    /// [`super::worker`] and serves with a handler of the same name. It always has a supervisor, which alone asks for this: what it was
    /// told is what its workers become.
    pub fn becoming(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Self {
        Self(Work::Become(Program {
            path: program.into(),
            arguments: arguments.into_iter().collect(),
            forks: false,
        }))
    }

    /// A handler that is served by several groups of processes. Each group is the same handler with the same options and those of its own,
    /// asked again with [`Values::group`]; requests go to it by its places.
    pub fn groups(groups: impl IntoIterator<Item = Group>) -> Self {
        Self(Work::Several(groups.into_iter().collect()))
    }

    /// Has one process of such a program load everything, and workers forked from that: it calls [`super::fork_workers`] before
    /// [`super::worker`].
    #[must_use]
    pub fn forking(mut self) -> Self {
        if let Work::Become(program) = &mut self.0 {
            program.forks = true;
        }
        self
    }

    /// Asks it to stop: by the handle of the connection that it serves.
    fn ask_to_stop(leaving: Leaving, handle: &StopHandle) {
        match leaving {
            Leaving::AtOnce => handle.stop(),
            Leaving::Draining => handle.drain(),
        }
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").finish_non_exhaustive()
    }
}

/// Runs a handler as it was typed; `log` is what is logged, of workers too.
pub(super) fn main(
    args: &Args,
    built_in: &'static [BuiltIn],
    log: Option<&str>,
) -> anyhow::Result<ExitCode> {
    run(&args.source(built_in), log)
}

/// By the name `m2wsgi`, or that of one of its devices, with that program's arguments.
pub(super) fn as_m2wsgi(
    name: &str,
    arguments: impl Iterator<Item = OsString>,
    built_in: &'static [BuiltIn],
) -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match m2wsgi::read(name, &arguments) {
        Ok(Some(typed)) => {
            let log = std::env::var("LURCHER_LOG").ok();
            run(&Source::new(typed, built_in, |_| None), log.as_deref())
        }
        Ok(None) => {
            // Nobody is left to tell when stdout is gone.
            drop(writeln!(std::io::stdout(), "{}", m2wsgi::usage(name)));
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => Ok(usage(&format!("{name}: {why}"))),
    }
}

fn run(source: &Source, log: Option<&str>) -> anyhow::Result<ExitCode> {
    let plan = match source.plan() {
        Ok(plan) => plan,
        Err(why) => return Ok(usage(&why)),
    };
    if !plan.groups.is_empty() {
        return supervise::groups::main(&plan, &|| source.plan(), log);
    }
    match (&plan.app, plan.workers) {
        _ if plan.check => worker::check(&plan),
        (App::BuiltIn { .. }, 0) => worker::main(&plan),
        (App::Exec { .. }, 0) => Ok(usage(
            "a program of your own needs a worker: --workers is 0",
        )),
        _ => supervise::main(plan, &|| source.plan(), log),
    }
}

fn usage(why: &str) -> ExitCode {
    // Nobody is left to tell when stderr is gone.
    drop(writeln!(std::io::stderr(), "lurcher: {why}"));
    ExitCode::from(2)
}
