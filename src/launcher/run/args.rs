//! `lurcher run` as it was typed, and the [`Plan`] that is meant by it. clap is named here only.

use std::ffi::OsString;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::plan::{App, Feed, Plan};
use super::{BuiltIn, STOP_ON_EOF, Values};
use crate::endpoint::Endpoint;
use crate::handler::Options;

/// How long a handler may take to answer what it has, when asked to stop.
const GRACEFUL_TIMEOUT: Duration = Duration::from_secs(30);

/// The hidden option that carries the whole APP when it is more than a name.
const TARGET: &str = "target";

/// Replaces `run files:DIR` by `run files --target files:DIR`: clap knows handlers by their names.
pub(in crate::launcher) fn name_targets(
    arguments: Vec<OsString>,
    built_in: &[BuiltIn],
) -> Vec<OsString> {
    let mut named = Vec::with_capacity(arguments.len() + 2);
    let mut at_app = false;
    for argument in arguments {
        let handler = at_app.then(|| argument.to_str()?.split_once(':')).flatten();
        let handler = handler.and_then(|(scheme, _)| {
            let has =
                |handler: &&BuiltIn| handler.targets.iter().any(|target| target.scheme == scheme);
            built_in.iter().find(has)
        });
        at_app = argument == "run" && named.len() == 1;
        match handler {
            Some(handler) => {
                named.extend([handler.name.into(), format!("--{TARGET}").into(), argument]);
            }
            None => named.push(argument),
        }
    }
    named
}

/// Arguments of `lurcher run`: a subcommand for each built-in handler, which [`describe`] adds.
#[derive(Debug)]
pub(in crate::launcher) struct Args {
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
pub(in crate::launcher) fn describe(run: Command, built_in: &'static [BuiltIn]) -> Command {
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
            .arg(Arg::new(TARGET).long(TARGET).hide(true))
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

impl Args {
    /// What is meant; the error says what is wrong with it.
    pub(super) fn plan(&self, built_in: &'static [BuiltIn]) -> Result<Plan, String> {
        let Self { app, matches } = self;
        let Some(handler) = built_in.iter().find(|handler| handler.name == app) else {
            let known: Vec<_> = built_in.iter().map(|handler| handler.name).collect();
            let (app, known) = (app.escape_debug(), known.join(", "));
            return Err(format!(
                "running `{app}`: no such handler: built in are {known}"
            ));
        };
        let why = |why: String| format!("running `{app}`: {why}");
        let endpoints = |name| {
            matches
                .get_many::<Endpoint>(name)
                .into_iter()
                .flatten()
                .cloned()
        };
        let mut options = Options::new(endpoints("SEND"));
        options.recv_specs = endpoints("RECV").collect();
        let servers = options.pairs().map_err(|error| why(error.to_string()))?;
        let typed = handler.options.iter().flat_map(|option| {
            let values = matches
                .get_many::<String>(option.name)
                .into_iter()
                .flatten();
            values.map(|value| (option.name, value.clone()))
        });
        let mut values: Values = typed.collect();
        let target = matches.get_one::<String>(TARGET);
        values.target.clone_from(target.unwrap_or(app));
        // Its mistakes are told before anything is started.
        (handler.run)(&values).map_err(why)?;
        Ok(Plan {
            name: app.clone(),
            app: App::BuiltIn { handler, values },
            servers,
            ident: matches.get_one::<String>("ident").cloned(),
            feed: Feed::Auto,
            workers: 0,
            threads: 1,
            concurrency: None,
            max_requests: None,
            max_memory: None,
            graceful_timeout: GRACEFUL_TIMEOUT,
            watch: Vec::new(),
            pid_file: None,
            control: None,
            user: None,
            group: None,
            umask: None,
            env: Vec::new(),
            chdir: None,
            access_log: None,
            stop_on_eof: matches.get_flag(STOP_ON_EOF),
        })
    }
}
