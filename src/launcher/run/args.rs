//! `lurcher run` as it is typed: the options in common, and those of the one handler that is named. clap is named here only.

use std::ffi::OsString;

use clap::builder::StringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::app::named;
use super::options::{COMMON, common};
use super::source::{Source, Typed};
use super::{BuiltIn, Opt};
use crate::launcher::given::{RUN, variable};

/// What stands without dashes, in its order.
const WORDS: [(&str, &str); 3] = [
    ("APP", "The handler"),
    (
        "SEND",
        "Where servers send requests from: their send_spec, several with commas",
    ),
    (
        "RECV",
        "Where they receive replies: their recv_spec, for each SEND [default: one port down]",
    ),
];
const ARGUMENTS: &str = "arguments";

/// Arguments of `lurcher run`; [`describe`] adds what they are.
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
    /// What was typed, and where else to look.
    pub(super) fn source(&self, built_in: &'static [BuiltIn]) -> Source {
        let Self(matches) = self;
        let mut typed = Typed::default();
        for (name, _) in WORDS {
            typed.words.extend(matches.get_one::<String>(name).cloned());
        }
        typed.arguments.extend(
            matches
                .get_many::<OsString>(ARGUMENTS)
                .into_iter()
                .flatten()
                .cloned(),
        );
        for id in matches.ids().map(clap::Id::as_str) {
            let is_option = id != ARGUMENTS && WORDS.iter().all(|(name, _)| *name != id);
            let is_typed = matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine);
            if !is_option || !is_typed {
                continue;
            }
            // The values of those that have none are no strings.
            if let Ok(Some(said)) = matches.try_get_one::<bool>(id) {
                typed.options.push((id.to_owned(), said.to_string()));
            } else if let Ok(Some(values)) = matches.try_get_many::<String>(id) {
                typed
                    .options
                    .extend(values.map(|value| (id.to_owned(), value.clone())));
            }
        }
        Source::new(typed, built_in, |name| std::env::var(name).ok())
    }
}

/// The handler that the command line names, by its place: clap has to know its options before it reads them.
fn app_of<'a>(arguments: &'a [OsString], built_in: &'static [BuiltIn]) -> Option<&'a str> {
    let mut words = arguments
        .iter()
        .map(|argument| argument.to_str().unwrap_or_default());
    // The program's own options may stand before the command.
    words.next();
    while words.next()? != "run" {}
    while let Some(word) = words.next() {
        match word.strip_prefix("--") {
            Some("") => return None,
            Some(option) => {
                let mut own = built_in.iter().flat_map(|handler| handler.options);
                let is_flag = common(option).is_some_and(|option| option.value.is_none())
                    || own.any(|own| own.name == option && own.value.is_empty());
                if !is_flag && option != "help" && !option.contains('=') {
                    words.next();
                }
            }
            None if word.starts_with('-') && word.len() > 1 => {}
            None => return Some(word),
        }
    }
    None
}

/// The command with all its options: those of the handler that `arguments` name among them.
pub(in crate::launcher) fn describe(
    run: Command,
    built_in: &'static [BuiltIn],
    arguments: &[OsString],
) -> Command {
    let handler = app_of(arguments, built_in).and_then(|app| named(built_in, app));
    // Which handler a file names is not known here: all may be meant.
    let own: Vec<&Opt> = built_in
        .iter()
        .filter(|one| handler.is_none_or(|handler| handler.name == one.name))
        .flat_map(|one| one.options)
        .collect();
    let run = run
        .about("Run a handler, built in or your own, and keep its processes")
        .disable_help_flag(false)
        .args(WORDS.map(|(name, help)| {
            Arg::new(name)
                .value_name(name)
                .value_parser(StringValueParser::new())
                // The usage of a handler names it.
                .hide(handler.is_some() && name == "APP")
                .help(help)
        }))
        .arg(
            Arg::new(ARGUMENTS)
                .value_name("ARGUMENT")
                .num_args(0..)
                .last(true)
                .value_parser(clap::value_parser!(OsString))
                // A built-in handler takes none.
                .hide(handler.is_some())
                .help("Arguments of exec's program"),
        )
        .arg_required_else_help(
            handler.is_none()
                && std::env::var_os(variable(RUN, "options")).is_none()
                && std::env::var_os(variable(RUN, "app")).is_none(),
        );
    let mut run = match handler {
        Some(handler) => manual(run, handler),
        None => overview(run, built_in),
    };
    let mut known: Vec<&str> = Vec::new();
    for option in own {
        // Two handlers may have an option of one name; the one that runs reads it. So it is with one that all have in common.
        if known.contains(&option.name) || common(option.name).is_some() {
            continue;
        }
        known.push(option.name);
        let arg = Arg::new(option.name)
            .long(option.name)
            .help(option.help)
            .help_heading("Options of this handler")
            .hide(handler.is_none());
        if option.value.is_empty() {
            run = run.arg(arg.action(ArgAction::SetTrue));
            continue;
        }
        run = run.arg(
            arg.value_name(option.value)
                .action(if option.repeat {
                    ArgAction::Append
                } else {
                    ArgAction::Set
                })
                .value_parser(StringValueParser::new())
                .allow_hyphen_values(true),
        );
    }
    run.args(COMMON.iter().map(|option| {
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

/// `lurcher run --help`.
fn overview(run: Command, built_in: &'static [BuiltIn]) -> Command {
    let mut handlers = String::from("Handlers, each with a --help of its own:\n");
    let about = |handler: &BuiltIn| handler.about.lines().next().unwrap_or_default();
    let lines = built_in
        .iter()
        .map(|handler| (called(handler).join(", "), about(handler)));
    let exec = (
        "exec:PROGRAM [-- ARGUMENT...]".to_owned(),
        "Start a program of your own, with LURCHER_SEND_SPEC and LURCHER_RECV_SPEC in its environment",
    );
    for (form, about) in lines.chain([exec]) {
        handlers.extend(["  ", &form, "\n          ", about, "\n"]);
    }
    run.override_usage("lurcher run [OPTIONS] APP SEND[,SEND...] [RECV[,RECV...]] [-- ARGUMENT...]")
        .help_template(
            "{about-with-newline}\n{usage-heading} {usage}\n\n{before-help}{all-args}{after-help}",
        )
        .before_help(handlers)
        .after_help(COMMON_WORDS)
}

/// `lurcher run HANDLER --help`, in the manner of a manual page.
fn manual(run: Command, handler: &'static BuiltIn) -> Command {
    let usage: Vec<String> = called(handler)
        .iter()
        .map(|form| format!("lurcher run {form} SEND[,SEND...] [RECV[,RECV...]] [OPTIONS]"))
        .collect();
    run.about(handler.about.lines().next().unwrap_or_default())
        .long_about(flowing(handler.about))
        .override_usage(usage.join("\n       "))
        .help_template("{usage-heading} {usage}\n\n{about-with-newline}\n{all-args}{after-help}")
        .after_help(COMMON_WORDS)
}

/// A text whose paragraphs are as wide as whoever shows it likes. Lines that are indented, or follow a short one, stay as they are.
fn flowing(text: &str) -> String {
    let mut flowing = String::new();
    let mut before = "";
    for line in text.lines() {
        if before.len() > SHORT && !line.is_empty() && !line.starts_with(' ') {
            flowing.push(' ');
        } else if !flowing.is_empty() {
            flowing.push('\n');
        }
        flowing.push_str(line);
        before = if line.starts_with(' ') { "" } else { line };
    }
    flowing
}

/// A line of a paragraph that goes on has more than so many bytes.
const SHORT: usize = 80;

/// The forms in which a handler is named.
fn called(handler: &BuiltIn) -> Vec<&'static str> {
    if handler.targets.is_empty() {
        vec![handler.name]
    } else {
        handler.targets.iter().map(|target| target.form).collect()
    }
}

const COMMON_WORDS: &str = "\
All options may stand in a TOML file (--options FILE) by their names, those of a handler in a
table with its name, and in the environment: --max-memory is LURCHER_RUN_MAX_MEMORY. The command
line goes before the environment, and that before the file.

Signals:
  TERM, INT    finish what is open, then end; a second time: end at once
  HUP          read files again and replace the workers one by one
  TTIN, TTOU   one worker more, one less

Exit status: 0 after a stop, 1 on a failure, 2 when what was typed is wrong";

#[cfg(test)]
mod tests {
    use super::*;

    fn app(line: &str) -> Option<String> {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        app_of(&arguments, &[]).map(str::to_owned)
    }

    #[test]
    fn paragraphs_flow_and_lists_stand() {
        let long = "word ".repeat(20);
        let long = long.trim_end();
        assert_eq!(
            flowing(&format!(
                "Head\n\n{long}\n{long}\nend\nList:\n  {long}\n  b\nMore"
            )),
            format!("Head\n\n{long} {long} end\nList:\n  {long}\n  b\nMore")
        );
    }

    #[test]
    fn the_handler_is_the_first_word_that_is_no_options() {
        assert_eq!(app("lurcher run echo tcp://a:1").as_deref(), Some("echo"));
        assert_eq!(
            app("lurcher --log debug run --workers 4 --reload files:/a").as_deref(),
            Some("files:/a")
        );
        assert_eq!(
            app("lurcher run --workers=4 --unknown x echo").as_deref(),
            Some("echo")
        );
        assert_eq!(app("lurcher run --help"), None);
        assert_eq!(app("lurcher run -- echo"), None);
        assert_eq!(app("lurcher serve"), None);
    }
}
