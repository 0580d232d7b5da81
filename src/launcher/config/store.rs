//! `lurcher config load|log|commit`: what changes a database, and its journal.

use std::path::PathBuf;

use super::super::process;
use super::check::summary;
use super::{Failure, Output, tell};
use crate::config::{self, sqlite};

/// m2sh's default.
const DATABASE: &str = "config.sqlite";

/// Arguments of `lurcher config load`.
#[derive(Debug, clap::Args)]
pub(super) struct LoadArgs {
    /// The .conf to read; a database works too
    #[arg(default_value = "mongrel2.conf")]
    config: PathBuf,
    /// The database to write: all of it is replaced but the journal
    #[arg(long, value_name = "FILE", default_value = DATABASE)]
    db: PathBuf,
}

/// Arguments of `lurcher config log`.
#[derive(Debug, clap::Args)]
pub(super) struct LogArgs {
    /// The database
    #[arg(default_value = DATABASE)]
    db: PathBuf,
}

/// Arguments of `lurcher config commit`.
#[derive(Debug, clap::Args)]
pub(super) struct CommitArgs {
    /// The database
    #[arg(default_value = DATABASE)]
    db: PathBuf,
    /// What was done
    #[arg(long, value_name = "TEXT")]
    what: String,
    /// What for
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
    /// By what means
    #[arg(long, value_name = "TEXT", default_value = "lurcher")]
    how: String,
    /// On which machine [default: the host name]
    #[arg(long = "where", value_name = "TEXT")]
    location: Option<String>,
    /// Who did it [default: the login name]
    #[arg(long, value_name = "TEXT")]
    who: Option<String>,
}

pub(super) fn load(args: &LoadArgs, out: &mut Output) -> Result<(), Failure> {
    let reading = config::read(&args.config)?;
    if reading.has_errors() {
        return Err(Failure::Findings(reading.diagnostics));
    }
    tell(&reading.diagnostics);
    let config = reading.into_config();
    // Who, what, where and how as m2sh notes a load.
    let entry = sqlite::Entry {
        happened_at: String::new(),
        who: login_name(),
        location: host_name(),
        how: args.config.display().to_string(),
        what: "load".to_owned(),
        why: Some("command".to_owned()),
    };
    sqlite::write(&args.db, &config, &entry).map_err(|error| Failure::of_file(&args.db, error))?;
    out.line(format!(
        "{}: {} from {}",
        args.db.display(),
        summary(&config),
        args.config.display()
    ));
    Ok(())
}

pub(super) fn log(args: &LogArgs, out: &mut Output) -> Result<(), Failure> {
    let entries = sqlite::journal(&args.db).map_err(|error| Failure::of_file(&args.db, error))?;
    // In m2sh's order of columns.
    let cells = |entry: sqlite::Entry| {
        vec![
            entry.happened_at,
            entry.who,
            entry.location,
            entry.how,
            entry.what,
            entry.why.unwrap_or_default(),
        ]
    };
    let heading = ["WHEN (UTC)", "WHO", "WHERE", "HOW", "WHAT", "WHY"]
        .map(str::to_owned)
        .to_vec();
    let rows: Vec<_> = std::iter::once(heading)
        .chain(entries.into_iter().map(cells))
        .collect();
    out.table(&rows);
    Ok(())
}

pub(super) fn commit(args: &CommitArgs) -> Result<(), Failure> {
    let entry = sqlite::Entry {
        happened_at: String::new(),
        who: args.who.clone().unwrap_or_else(login_name),
        location: args.location.clone().unwrap_or_else(host_name),
        how: args.how.clone(),
        what: args.what.clone(),
        why: Some(args.why.clone()),
    };
    sqlite::commit(&args.db, &entry).map_err(|error| Failure::of_file(&args.db, error))
}

/// Who does it, for the journal.
pub(in crate::launcher) fn login_name() -> String {
    ["LOGNAME", "USER"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(process::user_name)
}

/// On which machine, for the journal.
pub(in crate::launcher) fn host_name() -> String {
    // What the kernel says; elsewhere than on Linux the shell may know.
    let kernel =
        std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim_end().to_owned());
    kernel
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_default()
}
