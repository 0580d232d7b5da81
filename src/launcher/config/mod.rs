//! `lurcher config`: m2sh's work on databases and `.conf` files. What each command says is in `show`, `check` and
//! `store`; here is what can be typed, and how output and endings are alike.

mod check;
mod show;
mod store;

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(super) use store::{host_name, login_name};

use crate::config::{self, Config, Diagnostic, LoadError, Reading, Severity};

/// Arguments of `lurcher config`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Write a .conf into a database, which Mongrel2 runs too
    Load(store::LoadArgs),
    /// Explain what is wrong or odd in a configuration
    Check(Source),
    /// Print a configuration as a .conf
    Dump(Source),
    /// List the servers
    Servers(Source),
    /// List the hosts of a server
    Hosts(Of),
    /// List the routes of a server or of one of its hosts
    Routes(show::RoutesArgs),
    /// Say which route takes a request, and why
    Match(show::MatchArgs),
    /// Print the journal of a database
    Log(store::LogArgs),
    /// Add a line to the journal of a database
    Commit(store::CommitArgs),
}

/// A configuration.
#[derive(Debug, clap::Args)]
struct Source {
    /// A Mongrel2 database or an m2sh .conf [default: config.sqlite, else mongrel2.conf]
    config: Option<PathBuf>,
}

/// A configuration and a server of it.
#[derive(Debug, clap::Args)]
struct Of {
    #[command(flatten)]
    source: Source,
    /// Only this server, by name or uuid
    #[arg(long, value_name = "NAME|UUID")]
    server: Option<String>,
}

/// Why a command gives up.
enum Failure {
    /// The configuration is wrong in these places.
    Findings(Vec<Diagnostic>),
    /// In one line.
    Line(String),
}

impl Failure {
    fn of_file(path: &Path, why: impl fmt::Display) -> Failure {
        Failure::Line(format!("{}: {why}", path.display()))
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Failure {
        Failure::Findings(error.diagnostics)
    }
}

/// What goes to stdout. Written once, when all is known.
#[derive(Default)]
struct Output(String);

impl Output {
    fn line(&mut self, line: impl AsRef<str>) {
        self.0.push_str(line.as_ref());
        self.0.push('\n');
    }

    /// Rows as columns.
    fn table(&mut self, rows: &[Vec<String>]) {
        super::table::write(rows, &mut self.0);
    }
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let mut out = Output::default();
    let code = match run(args.verb, &mut out) {
        Ok(code) => code,
        Err(failure) => {
            match failure {
                Failure::Findings(findings) => tell(&findings),
                Failure::Line(line) => drop(writeln!(io::stderr().lock(), "{line}")),
            }
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(out.0.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(code),
        // A reader that closed the pipe has what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(anyhow::Error::new(error).context("write to standard output")),
    }
}

fn run(verb: Verb, out: &mut Output) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Load(args) => store::load(&args, out)?,
        Verb::Check(args) => return check::check(&args, out),
        Verb::Dump(args) => show::dump(&args, out)?,
        Verb::Servers(args) => show::servers(&args, out)?,
        Verb::Hosts(args) => show::hosts(&args, out)?,
        Verb::Routes(args) => show::routes(&args, out)?,
        Verb::Match(args) => return show::matches(&args, out),
        Verb::Log(args) => store::log(&args, out)?,
        Verb::Commit(args) => store::commit(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Source {
    /// Reads everything the file holds, right or wrong.
    fn read(&self) -> Result<(PathBuf, Reading), Failure> {
        let path = config::find(self.config.as_deref())?;
        let reading = config::read(&path)?;
        Ok((path, reading))
    }

    /// The same, if nothing in it is wrong. Warnings are left to `check`.
    fn sound(&self) -> Result<(PathBuf, Config), Failure> {
        let (path, mut reading) = self.read()?;
        if reading.has_errors() {
            reading
                .diagnostics
                .retain(|found| found.severity == Severity::Error);
            return Err(Failure::Findings(reading.diagnostics));
        }
        Ok((path, reading.into_config()))
    }
}

/// Prints findings to stderr, each on a line of its own that begins with its place.
fn tell(diagnostics: &[Diagnostic]) {
    let mut stderr = io::stderr().lock();
    for diagnostic in diagnostics {
        // Nobody is left to tell when stderr is gone.
        drop(writeln!(stderr, "{diagnostic}"));
    }
}
