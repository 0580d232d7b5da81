//! `lurcher config check`: everything that is wrong or odd, one line each.

use std::process::ExitCode;

use super::{Failure, Output, Source};
use crate::config::{Config, Severity, check};

/// Exit code 1 if anything is wrong; warnings and notes do not count.
pub(super) fn check(args: &Source, out: &mut Output) -> Result<ExitCode, Failure> {
    let (path, reading) = args.read()?;
    let mut found = reading.diagnostics.clone();
    // Servers with errors are not in the model, and the rules of style wait until those are mended.
    let config = reading.into_config();
    found.extend(check::check(&path, &config));
    for diagnostic in &found {
        out.line(diagnostic.to_string());
    }
    let count = |severity| {
        found
            .iter()
            .filter(|diagnostic| diagnostic.severity == severity)
            .count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let (config, errors_told) = (summary(&config), counted(errors, "error"));
    out.line(format!(
        "{}: {config}; {errors_told}, {}",
        path.display(),
        counted(warnings, "warning")
    ));
    Ok(if errors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// How much there is, in a few words.
pub(super) fn summary(config: &Config) -> String {
    let hosts = || config.servers.iter().flat_map(|server| &server.hosts);
    format!(
        "{}, {}, {}",
        counted(config.servers.len(), "server"),
        counted(hosts().count(), "host"),
        counted(hosts().map(|host| host.routes.len()).sum(), "route"),
    )
}

/// `1 host`, `2 hosts`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
