//! `lurcher run`: starts a built-in handler in this process and connects it to one server or several.
//!
//! Handlers say what options they have as plain data ([`BuiltIn`]); clap is named here only. Supervision of several
//! processes, reloading and handlers of other kinds are not done here.

use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use tokio::sync::oneshot;

use super::signals::{STOP, Signals};
use crate::endpoint::Endpoint;
use crate::handler::{Connection, Options, ReplyError};

/// How long a handler may take to answer what it has, when asked to stop.
const GRACE: Duration = Duration::from_secs(30);

/// The option by which a handler watches its standard input.
pub(super) const STOP_ON_EOF: &str = "stop-on-eof";

/// A handler compiled into the program.
#[derive(Debug)]
pub struct BuiltIn {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it does, in one line or more; the first is shown in lists.
    pub about: &'static str,
    /// Its own options.
    pub options: &'static [Opt],
    /// Makes the handler from what was typed; the error says what is wrong with it.
    pub run: fn(&Values) -> Result<Handler, String>,
}

/// An option of a built-in handler: `--name VALUE`.
#[derive(Debug)]
pub struct Opt {
    /// The name without dashes.
    pub name: &'static str,
    /// What the value is called in the help.
    pub value: &'static str,
    /// What it does; the default in brackets at the end.
    pub help: &'static str,
    /// Whether it may be given several times.
    pub repeat: bool,
}

/// The options that were typed, in order.
#[derive(Debug, Clone, Default)]
pub struct Values(Vec<(&'static str, String)>);

impl Values {
    /// The value of an option, where it was given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    /// All values of an option that may be repeated.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
    }
}

impl FromIterator<(&'static str, String)> for Values {
    fn from_iter<I: IntoIterator<Item = (&'static str, String)>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// A handler, ready to serve a connection until that ends.
pub struct Handler(Box<dyn FnOnce(Connection) -> Serving>);

/// The run of a handler.
type Serving = Pin<Box<dyn Future<Output = Result<(), ReplyError>>>>;

impl Handler {
    /// Wraps an async function that receives until there is nothing more, and then finishes the connection.
    pub fn new<F, R>(serve: F) -> Self
    where
        F: FnOnce(Connection) -> R + 'static,
        R: Future<Output = Result<(), ReplyError>> + 'static,
    {
        Self(Box::new(move |connection| Box::pin(serve(connection))))
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").finish_non_exhaustive()
    }
}

/// Arguments of `lurcher run`: a subcommand for each built-in handler, which [`describe`] adds.
#[derive(Debug)]
pub(super) struct Args {
    app: String,
    matches: ArgMatches,
}

impl clap::FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Some((app, matches)) = matches.subcommand() else {
            return Err(clap::Error::raw(
                clap::error::ErrorKind::MissingSubcommand,
                "no handler named\n",
            ));
        };
        Ok(Self {
            app: app.to_owned(),
            matches: matches.clone(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        command
            .subcommand_required(true)
            .arg_required_else_help(true)
            .disable_help_subcommand(true)
            .subcommand_value_name("APP")
            .subcommand_help_heading("Built-in handlers")
            .allow_external_subcommands(true)
            .external_subcommand_value_parser(clap::value_parser!(OsString))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Adds a subcommand for each built-in handler.
pub(super) fn describe(run: Command, built_in: &'static [BuiltIn]) -> Command {
    run.subcommands(built_in.iter().map(|handler| {
        let specs = |name: &'static str, help: &'static str| {
            Arg::new(name)
                .value_name(name)
                .help(help)
                .value_delimiter(',')
                .value_parser(|text: &str| text.parse::<Endpoint>())
        };
        let options = handler.options.iter().map(|option| {
            Arg::new(option.name)
                .long(option.name)
                .value_name(option.value)
                .help(option.help)
                .action(if option.repeat { ArgAction::Append } else { ArgAction::Set })
                .value_parser(clap::builder::StringValueParser::new())
                .allow_hyphen_values(true)
        });
        Command::new(handler.name)
            .about(handler.about.lines().next().unwrap_or_default())
            .long_about(handler.about)
            .arg(specs("SEND", "Where the server sends requests from (its send_spec); several with commas").required(true))
            .arg(specs("RECV", "Where the server receives replies (its recv_spec), for each SEND [default: one port down]"))
            .arg(
                Arg::new("ident")
                    .long("ident")
                    .value_name("IDENT")
                    .help("The ZeroMQ identity of the handler's sockets")
                    .value_parser(NonEmptyStringValueParser::new()),
            )
            .arg(
                Arg::new(STOP_ON_EOF)
                    .long(STOP_ON_EOF)
                    .help("Stop when standard input ends: a handler on a pipe does not outlive the program that started it")
                    .action(ArgAction::SetTrue),
            )
            .args(options)
    }))
}

pub(super) fn main(args: Args, built_in: &'static [BuiltIn]) -> anyhow::Result<ExitCode> {
    let Args { app, matches } = args;
    let Some(built_in) = built_in.iter().find(|handler| handler.name == app) else {
        let known: Vec<_> = built_in.iter().map(|handler| handler.name).collect();
        return Ok(usage(
            &app,
            &format!("no such handler: built in are {}", known.join(", ")),
        ));
    };
    let mut options = Options::new(
        matches
            .get_many::<Endpoint>("SEND")
            .into_iter()
            .flatten()
            .cloned(),
    );
    options.recv_specs = matches
        .get_many::<Endpoint>("RECV")
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    options.ident = matches.get_one::<String>("ident").cloned();
    if let Err(error) = options.check() {
        return Ok(usage(&app, &error.to_string()));
    }
    let values = built_in.options.iter().flat_map(|option| {
        let values = matches
            .get_many::<String>(option.name)
            .into_iter()
            .flatten();
        values.map(|value| (option.name, value.clone()))
    });
    let handler = match (built_in.run)(&values.collect()) {
        Ok(handler) => handler,
        Err(why) => return Ok(usage(&app, &why)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(serve(
        built_in.name,
        options,
        handler,
        matches.get_flag(STOP_ON_EOF),
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
    let mut serving = handler.0(connection);
    tokio::select! {
        result = &mut serving => {
            result.with_context(|| format!("running `{name}`"))?;
            return Ok(ExitCode::SUCCESS);
        }
        () = stop.next() => {}
    }
    tracing::info!("handler {name}: stopping");
    handle.stop();
    let why = tokio::select! {
        result = &mut serving => {
            result.with_context(|| format!("stopping `{name}`"))?;
            tracing::info!("handler {name}: stopped");
            return Ok(ExitCode::SUCCESS);
        }
        () = tokio::time::sleep(GRACE) => format!("not done after {} seconds", GRACE.as_secs()),
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

fn usage(app: &str, why: &str) -> ExitCode {
    // Nobody is left to tell when stderr is gone.
    drop(writeln!(
        std::io::stderr(),
        "lurcher: running `{}`: {why}",
        app.escape_debug()
    ));
    ExitCode::from(2)
}
