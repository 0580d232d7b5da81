//! The program by the name `m2sh`: Mongrel2's shell, its arguments, its output, its exit status, which is 0 or 255.
//!
//! What a script could read, stdout and the words of an error, is m2sh's own. Where m2sh says that all is well and it is
//! not, this one does not: docs/COMPATIBILITY.md has the list. Each command is in the file of its kind:
//!
//! * `args` is how commands are written;
//! * `database` reads and writes one: load, servers, hosts, routes, commit, log;
//! * `servers` starts them and sends them signals: start, stop, reload, running;
//! * `console` talks to a control port: control;
//! * `tools` need neither: access, route, uuid.

mod args;
mod console;
mod database;
mod servers;
mod tools;

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::SystemTime;

use args::{Line, Mistake, Options, Word};

/// The version of Mongrel2 that is stood in for: scripts compare it.
const VERSION: &str = "Mongrel2/1.12.2";

/// The database that is meant where none is named.
const DATABASE: &str = "config.sqlite";

/// What m2sh ends with when something is wrong.
const FAILURE: u8 = 255;

/// A longer line of the shell or of a console is taken in pieces, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Something is wrong, and has been told.
#[derive(Debug)]
struct Failed;

type Done = Result<(), Failed>;

/// How the program was started.
#[derive(Debug, Clone, Copy)]
struct Called<'a> {
    /// By which name.
    program: &'a OsStr,
    /// Whether more commands may follow, so that none may take this process's place.
    in_shell: bool,
}

/// A command: its name, what `help` says of it, and what it does.
struct Command {
    name: &'static str,
    help: &'static str,
    run: fn(&Options, Called<'_>) -> Done,
}

/// All commands, in the order in which m2sh lists them; a line each.
#[rustfmt::skip]
const COMMANDS: [Command; 18] = [
    command("load", "Load a config.", |o, _| database::load(o)),
    command("config", "Alias for load.", |o, _| database::load(o)),
    command("shell", "Starts an interactive shell.", |_, called| shell(called)),
    command("access", "Prints the access log.", |o, _| tools::access(o)),
    command("servers", "Lists the servers in a config database.", |o, _| database::servers(o)),
    command("hosts", "Lists the hosts in a server.", |o, _| database::hosts(o)),
    command("routes", "Lists the routes in a host.", |o, _| database::routes(o)),
    command("commit", "Adds a message to the log.", |o, _| database::commit(o)),
    command("log", "Prints the commit log.", |o, _| database::log(o)),
    command("start", "Starts a server.", servers::start),
    command("stop", "Stops a server.", |o, _| servers::stop(o)),
    command("reload", "Reloads a server.", |o, _| servers::reload(o)),
    command("running", "Tells you what's running.", |o, _| servers::running(o)),
    command("control", "Connects to the control port.", |o, _| console::control(o)),
    command("route", "Tests out routing patterns.", |o, _| tools::route(o)),
    command("version", "Prints the Mongrel2 and m2sh version.", |_, _| version()),
    command("help", "Get help, lists commands.", |o, _| help(o)),
    command("uuid", "Prints out a randomly generated UUID.", |_, _| tools::uuid()),
];

const fn command(
    name: &'static str,
    help: &'static str,
    run: fn(&Options, Called<'_>) -> Done,
) -> Command {
    Command { name, help, run }
}

/// Runs the program by this name with these arguments. Without any it is m2sh's shell.
pub(super) fn main(program: &OsStr, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<_> = arguments
        .into_iter()
        .map(|argument| Word::bare(argument.to_string_lossy().into_owned()))
        .collect();
    let called = Called {
        program,
        in_shell: false,
    };
    let done = if words.is_empty() {
        shell(called)
    } else {
        run(&words, called)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed) => ExitCode::from(FAILURE),
    }
}

fn run(words: &[Word], called: Called<'_>) -> Done {
    let Line { command, options } = match args::read(words) {
        Ok(line) => line,
        Err(Mistake::Empty) => return Ok(()),
        Err(mistake) => {
            let failed = error(&mistake);
            if mistake == Mistake::NoCommand {
                return Err(error("USAGE: m2sh <command> [options]"));
            }
            return Err(failed);
        }
    };
    match COMMANDS.iter().find(|known| known.name == command) {
        Some(known) => (known.run)(&options, called),
        None => Err(error(
            "INVALID COMMAND. Use m2sh help to find out what's available.",
        )),
    }
}

/// Reads commands line by line. That one of them fails is no failure of the shell.
fn shell(called: Called<'_>) -> Done {
    let called = Called {
        in_shell: true,
        ..called
    };
    each_line("mongrel2> ", |line| {
        // It has said what is wrong.
        let _told = run(&args::words(line), called);
        Ok(())
    })
}

/// Reads lines until they end, each after a prompt if somebody types them.
fn each_line(prompt: &str, mut each: impl FnMut(&str) -> Done) -> Done {
    let is_typed = io::stdin().is_terminal();
    loop {
        if is_typed {
            say(prompt)?;
        }
        let mut line = Vec::new();
        // The lock is not held meanwhile: a command may be another shell.
        let read = io::Read::take(io::stdin().lock(), LINE_BYTES_MAX).read_until(b'\n', &mut line);
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => each(String::from_utf8_lossy(&line).trim())?,
            Err(why) => return Err(failure(&why, "Can't read what is typed.")),
        }
    }
}

fn help(options: &Options) -> Done {
    match options.get("on") {
        None => {
            let mut lines = "Mongrel2 m2sh has these commands available:\n\n".to_owned();
            for Command { name, help, .. } in &COMMANDS {
                // Writing to a String does not fail.
                let _ok = writeln!(lines, "{name:>8}  {help}");
            }
            say(lines)
        }
        Some(name) => match COMMANDS.iter().find(|known| known.name == name) {
            Some(known) => say(format!("{name}\t{}\n", known.help)),
            None => say(format!("No help for {name}. Use m2sh help to see a list.")),
        },
    }
}

/// What a script compares goes to stdout, and who it really is to people.
fn version() -> Done {
    say(format!("{VERSION}\n"))?;
    let own = env!("CARGO_PKG_VERSION");
    tell(
        "INFO",
        None,
        &format!("This is Lurcher {own} in its place."),
    );
    Ok(())
}

/// Writes to stdout, at once.
fn say(text: impl AsRef<[u8]>) -> Done {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_ref())
        .and_then(|()| stdout.flush())
    {
        // A reader that closed the pipe has what it wanted.
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => {
            Err(failure(&why, "Can't write to standard output."))
        }
        _ => Ok(()),
    }
}

/// Writes a line to stderr in Mongrel2's form.
fn tell(level: &str, why: Option<&io::Error>, text: &dyn fmt::Display) {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let cause = match (level, why) {
        ("INFO", _) => String::new(),
        (_, Some(why)) => format!(" (errno: {})", reason(why)),
        (_, None) => " (errno: None)".to_owned(),
    };
    // Nobody is left to tell when stderr is gone.
    drop(writeln!(io::stderr(), "{date} [{level}]{cause} {text}"));
}

/// The system's words without its number.
fn reason(why: &io::Error) -> String {
    let text = why.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn warn(text: impl fmt::Display) {
    tell("WARN", None, &text);
}

fn error(text: impl fmt::Display) -> Failed {
    tell("ERROR", None, &text);
    Failed
}

/// An error with what the system says.
fn failure(why: &io::Error, text: impl fmt::Display) -> Failed {
    tell("ERROR", Some(why), &text);
    Failed
}

/// The value of an option that has a default, which is told when it is used.
fn with_default<'a>(options: &'a Options, name: &str, default: &'a str) -> &'a str {
    options.get(name).unwrap_or_else(|| {
        warn(format!(
            "No option --{name} given, using \"{default}\" as the default."
        ));
        default
    })
}

/// The database that is meant.
fn database_name(options: &Options) -> Result<&str, Failed> {
    let name = with_default(options, "db", DATABASE);
    accessible(name, "database")?;
    Ok(name)
}

fn accessible(name: &str, what: &str) -> Done {
    File::open(name).map(drop).map_err(|why| {
        failure(
            &why,
            format!("Can't access config {what} '{name}' properly."),
        )
    })
}
