//! `lurcher run` as it was typed, and the [`Plan`] that is meant by it. clap is named here only.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::plan::{App, Feed, Plan};
use super::{BuiltIn, STOP_ON_EOF, Values};
use crate::endpoint::Endpoint;
use crate::handler::Options;

/// The scheme of an app that is a program.
const EXEC: &str = "exec";

/// The hidden option that carries a program's arguments.
const ARGUMENTS: &str = "arguments";

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
        let scheme = at_app.then(|| argument.to_str()?.split_once(':')).flatten();
        if scheme.is_some_and(|(scheme, _)| scheme == EXEC) {
            at_app = false;
            named.extend([EXEC.into(), format!("--{TARGET}").into(), argument]);
            continue;
        }
        let handler = scheme.and_then(|(scheme, _)| {
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
    let program = common(Command::new(EXEC).about(
        "Run exec:PROGRAM, a handler of your own: its specs are in LURCHER_SEND_SPEC and LURCHER_RECV_SPEC",
    ))
    .arg(Arg::new(ARGUMENTS).last(true).num_args(0..).value_parser(clap::value_parser!(OsString)));
    let built_in = built_in.iter().map(|handler| {
        let options = handler.options.iter().map(|option| {
            Arg::new(option.name)
                .long(option.name)
                .value_name(option.value)
                .help(option.help)
                .action(if option.repeat {
                    ArgAction::Append
                } else {
                    ArgAction::Set
                })
                .value_parser(clap::builder::StringValueParser::new())
                .allow_hyphen_values(true)
        });
        let command = Command::new(handler.name)
            .about(handler.about.lines().next().unwrap_or_default())
            .long_about(handler.about)
            .args(options);
        common(command)
    });
    run.subcommands(built_in.chain([program]))
}

/// What every app may be given.
fn common(app: Command) -> Command {
    let specs = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .value_name(name)
            .help(help)
            .value_delimiter(',')
            .value_parser(|text: &str| text.parse::<Endpoint>())
    };
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let path = clap::value_parser!(PathBuf);
    app.arg(specs("SEND", "Where the server sends requests from (its send_spec); several with commas").required(true))
        .arg(specs("RECV", "Where the server receives replies (its recv_spec), for each SEND [default: one port down]"))
        .arg(Arg::new(TARGET).long(TARGET).hide(true))
        .arg(
            option("ident", "IDENT", "The ZeroMQ identity of the handler's sockets")
                .value_parser(NonEmptyStringValueParser::new()),
        )
        .arg(
            option(STOP_ON_EOF, "", "Stop when standard input ends: a handler on a pipe does not outlive the program that started it")
                .action(ArgAction::SetTrue),
        )
        .arg(
            option("workers", "N", "Worker processes; 0 serves in this one [default: 1]")
                .value_parser(clap::value_parser!(u32)),
        )
        .arg(
            option("threads", "N", "Threads of a worker [default: 1]")
                .value_parser(clap::value_parser!(u32)),
        )
        .arg(
            option("concurrency", "N", "Requests that a worker has open at once")
                .value_parser(clap::value_parser!(u32)),
        )
        .arg(
            option("graceful-timeout", "SECONDS", "How long a worker may finish what it has [default: 30]")
                .value_parser(clap::value_parser!(u64)),
        )
        .arg(
            option("max-requests", "N", "Replace a worker after so many requests")
                .value_parser(clap::value_parser!(u64).range(1..)),
        )
        .arg(
            option("max-memory", "BYTES", "Replace a worker whose resident memory is larger")
                .value_parser(clap::value_parser!(u64)),
        )
        .arg(
            option("control", "ADDRESS", "Where it is asked for its status and told to stop, reload, scale")
                .value_parser(|text: &str| text.parse::<Endpoint>()),
        )
        .arg(option("pid-file", "FILE", "Where the process id is written").value_parser(path.clone()))
        .arg(
            option("feed", "WHO", "Who takes requests from the servers [default: auto]")
                .value_parser(["auto", "direct", "supervisor"]),
        )
        .arg(
            option("reload-path", "PATH", "Replace the workers when this file or folder changes; may be repeated")
                .action(ArgAction::Append)
                .value_parser(path.clone()),
        )
        .arg(option("user", "USER", "Who workers run as"))
        .arg(option("group", "GROUP", "The group of workers [default: the user's]"))
        .arg(
            option("umask", "OCTAL", "The file mode creation mask of workers")
                .value_parser(|text: &str| u32::from_str_radix(text, 8)),
        )
        .arg(option("env", "NAME=VALUE", "Added to the environment of workers; may be repeated").action(ArgAction::Append))
        .arg(option("chdir", "FOLDER", "The working directory of workers").value_parser(path.clone()))
        .arg(option("access-log", "FILE", "A line for each request; - is standard output").value_parser(path))
        .arg(option("name", "NAME", "What logs and status call it [default: the app]"))
}

impl Args {
    /// What is meant; the error says what is wrong with it.
    pub(super) fn plan(&self, built_in: &'static [BuiltIn]) -> Result<Plan, String> {
        let Self { app, matches } = self;
        let why = |why: String| format!("running `{app}`: {why}");
        let handler = built_in.iter().find(|handler| handler.name == app);
        if handler.is_none() && app != EXEC {
            let known: Vec<_> = built_in.iter().map(|handler| handler.name).collect();
            let (app, known) = (app.escape_debug(), known.join(", "));
            return Err(format!(
                "running `{app}`: no such handler: built in are {known}"
            ));
        }
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
        let target = matches.get_one::<String>(TARGET);
        let meant = match handler {
            Some(handler) => {
                let typed = handler.options.iter().flat_map(|option| {
                    let values = matches
                        .get_many::<String>(option.name)
                        .into_iter()
                        .flatten();
                    values.map(|value| (option.name, value.clone()))
                });
                let mut values: Values = typed.collect();
                values.target.clone_from(target.unwrap_or(app));
                values.concurrency = matches.get_one("concurrency").copied();
                // Its mistakes are told before anything is started.
                (handler.run)(&values).map_err(why)?;
                App::BuiltIn { handler, values }
            }
            None => {
                let program = target.and_then(|target| target.split_once(':'));
                let (_, program) = program
                    .filter(|(_, program)| !program.is_empty())
                    .ok_or_else(|| why("name the program as exec:PROGRAM".to_owned()))?;
                let arguments = matches.get_many::<OsString>(ARGUMENTS);
                App::Exec {
                    program: program.into(),
                    arguments: arguments.into_iter().flatten().cloned().collect(),
                }
            }
        };
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
        let name = text("name").unwrap_or_else(|| app.clone());
        let mut plan = Plan::new(name, meant, servers);
        plan.ident = text("ident");
        plan.stop_on_eof = matches.get_flag(STOP_ON_EOF);
        plan.workers = matches.get_one("workers").copied().unwrap_or(plan.workers);
        plan.threads = matches.get_one("threads").copied().unwrap_or(plan.threads);
        plan.concurrency = matches.get_one("concurrency").copied();
        if let Some(seconds) = matches.get_one("graceful-timeout") {
            plan.graceful_timeout = Duration::from_secs(*seconds);
        }
        plan.max_requests = matches
            .get_one("max-requests")
            .map(|requests| (*requests, 0));
        plan.max_memory = matches.get_one("max-memory").copied();
        plan.control = matches.get_one::<Endpoint>("control").cloned();
        plan.pid_file = path("pid-file");
        plan.feed = match text("feed").as_deref() {
            Some("direct") => Feed::Direct,
            Some("supervisor") => Feed::Supervisor,
            _ => Feed::Auto,
        };
        plan.watch = matches
            .get_many("reload-path")
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        plan.user = text("user");
        plan.group = text("group");
        plan.umask = matches.get_one("umask").copied();
        let env = matches.get_many::<String>("env").into_iter().flatten();
        let env = env.map(|pair| {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| why(format!("--env {pair:?} has no `=`")))?;
            Ok((name.into(), value.into()))
        });
        plan.env = env.collect::<Result<_, String>>()?;
        plan.chdir = path("chdir");
        plan.access_log = path("access-log");
        Ok(plan)
    }
}
