//! `lurcher broker` as it is typed. What it means is `plan`'s matter.

use clap::builder::StringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::options::{OPTIONS, option};
use crate::launcher::given::{BROKER, variable};

/// What stands without dashes, in its order.
pub(super) const WORDS: [(&str, &str); 2] = [
    (
        "SEND",
        "Where servers send requests from: their send_spec, several with commas",
    ),
    (
        "RECV",
        "Where they receive replies: their recv_spec, for each SEND [default: one port down]",
    ),
];

const ABOUT: &str =
    "Stand between servers and workers, and give each request to the least busy worker";

const LONG: &str = "\
Towards servers, Mongrel2 or Lurcher, the broker is one ordinary handler. Behind it workers come and
go: each request goes to the one with the fewest open, when it has room for it, and to another when
that one is lost before it has begun. What cannot be served is answered: 502, 503 with Retry-After,
504. Workers are handlers that know nothing of brokers (--plain), m2wsgi's, and any that speak the
broker's dialect (`lurcher run APP broker+tcp://...`).";

const AFTER: &str = "\
All options may stand in a TOML file (--options FILE) by their names, and in the environment:
--queue-bytes is LURCHER_BROKER_QUEUE_BYTES. The command line goes before the environment, and that
before the file.

Signals:
  TERM, INT    take no more requests, finish what is open, then end; a second time: end at once
  HUP          read the file of options again: what is not about addresses is taken up

Exit status: 0 after a stop, 1 on a failure, 2 when what was typed is wrong";

/// Arguments of `lurcher broker`; [`describe`] adds what they are.
#[derive(Debug)]
pub(in crate::launcher) struct Args(ArgMatches);

impl clap::FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(matches.clone()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

impl Args {
    /// What was typed: options by name, those without dashes among them.
    pub(super) fn typed(&self) -> Vec<(String, String)> {
        let Self(matches) = self;
        let mut typed = Vec::new();
        for (name, _) in WORDS {
            if let Some(word) = matches.get_one::<String>(name) {
                typed.push((name.to_ascii_lowercase(), word.clone()));
            }
        }
        for id in matches.ids().map(clap::Id::as_str) {
            let Some(option) = option(id) else {
                continue;
            };
            if matches.value_source(id) != Some(clap::parser::ValueSource::CommandLine) {
                continue;
            }
            if option.value.is_none() {
                typed.push((id.to_owned(), matches.get_flag(id).to_string()));
            } else if let Ok(Some(values)) = matches.try_get_many::<String>(id) {
                typed.extend(values.map(|value| (id.to_owned(), value.clone())));
            }
        }
        typed
    }
}

/// The command with all its options.
pub(in crate::launcher) fn describe(broker: Command) -> Command {
    let is_said_elsewhere = ["options", "send"]
        .iter()
        .any(|name| std::env::var_os(variable(BROKER, name)).is_some());
    broker
        .about(ABOUT)
        .long_about(format!("{ABOUT}.\n\n{LONG}"))
        .override_usage("lurcher broker [OPTIONS] SEND[,SEND...] [RECV[,RECV...]] --workers SPEC [--plain PULL,PUB]")
        .arg_required_else_help(!is_said_elsewhere)
        .after_help(AFTER)
        .args(WORDS.map(|(name, help)| {
            Arg::new(name)
                .value_name(name)
                .value_parser(StringValueParser::new())
                .help(help)
        }))
        .args(OPTIONS.iter().map(|option| {
            let arg = Arg::new(option.name)
                .long(option.name)
                .help(option.help)
                .help_heading(option.heading);
            match option.value {
                None => arg.action(ArgAction::SetTrue),
                Some(value) => arg
                    .value_name(value)
                    .action(if option.repeat {
                        ArgAction::Append
                    } else {
                        ArgAction::Set
                    })
                    .value_parser(StringValueParser::new()),
            }
        }))
}
