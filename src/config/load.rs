//! From a path to a model: which form the file has, which server is meant, and what stands against it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostic, Severity};
use super::{Config, Reading, check, conf, sqlite};

/// What every `SQLite` database begins with (its file format, 1.3).
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// A `.conf` larger than this is none; it bounds what is read into memory, in bytes.
const CONF_BYTES_MAX: u64 = 16 << 20;

/// Which server of a configuration is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The only one.
    Only,
    /// The one with this uuid or, if none has it, this name.
    Named(String),
    /// The one with exactly this uuid, as Mongrel2 takes it.
    Uuid(String),
}

/// A configuration with one server chosen.
#[derive(Debug)]
pub struct Loaded {
    /// Where it was read from.
    pub path: PathBuf,
    /// The model.
    pub config: Config,
    /// Index of the chosen server in `config.servers`.
    pub server: usize,
    /// What is odd, and does not stand against running that server.
    pub warnings: Vec<Diagnostic>,
}

/// Why nothing can be run. Displays as one line per finding.
#[derive(Debug)]
pub struct LoadError {
    /// The findings, at least one of them an error.
    pub diagnostics: Vec<Diagnostic>,
}

impl LoadError {
    fn of_file(path: &Path, message: impl Into<String>) -> LoadError {
        LoadError {
            diagnostics: vec![Diagnostic::of_file(path, message)],
        }
    }

    /// The same without what does not stand against running it.
    #[must_use]
    pub fn errors_only(mut self) -> LoadError {
        self.diagnostics
            .retain(|diagnostic| diagnostic.severity == Severity::Error);
        self
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.diagnostics.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}

/// The file that is meant: `path`, else `config.sqlite` or `mongrel2.conf` in the working directory.
pub fn find(path: Option<&Path>) -> Result<PathBuf, LoadError> {
    const DEFAULTS: [&str; 2] = ["config.sqlite", "mongrel2.conf"];
    match path {
        Some(path) => Ok(path.to_owned()),
        None => DEFAULTS
            .iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
            .ok_or_else(|| {
                LoadError::of_file(
                    Path::new(DEFAULTS[0]),
                    "not found, nor is mongrel2.conf; name a configuration",
                )
            }),
    }
}

/// Reads everything a file holds, whichever form it has, with all findings. The form is told by the content, not by
/// the name. An error only if the file as a whole cannot be read.
pub fn read(path: &Path) -> Result<Reading, LoadError> {
    let unreadable =
        |error: io::Error| LoadError::of_file(path, format!("cannot be read: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let mut text = Vec::new();
    (&mut file)
        .take(SQLITE_MAGIC.len() as u64)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if text == SQLITE_MAGIC {
        drop(file);
        return sqlite::read(path).map_err(|error| LoadError::of_file(path, error.to_string()));
    }
    file.take(CONF_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if text.contains(&0) || text.len() as u64 > CONF_BYTES_MAX {
        return Err(LoadError::of_file(
            path,
            "is neither a SQLite database nor a .conf",
        ));
    }
    Ok(conf::read(path, &text))
}

/// Reads the configuration for one server. With `path` left out, `config.sqlite` or else `mongrel2.conf` in the working
/// directory is meant.
///
/// Errors of other servers in a database are warnings, as Mongrel2 never looks at them; in a `.conf` they are errors,
/// as m2sh would have stopped at them.
pub fn load(path: Option<&Path>, selector: &Selector) -> Result<Loaded, LoadError> {
    let path = find(path)?;
    let mut reading = read(&path)?;
    if reading.fatal {
        return Err(LoadError {
            diagnostics: reading.diagnostics,
        });
    }
    let chosen = choose(&path, &reading, selector)?;
    if reading.candidates[chosen].server.is_none() {
        return Err(LoadError {
            diagnostics: reading.diagnostics,
        });
    }
    let mut warnings = std::mem::take(&mut reading.diagnostics);
    for warning in &mut warnings {
        warning.severity = warning.severity.min(Severity::Warning);
    }
    let server = reading.candidates[..chosen]
        .iter()
        .filter(|candidate| candidate.server.is_some())
        .count();
    let config = reading.into_config();
    warnings.extend(check::at_start(
        &path,
        &config.servers[server],
        &config.settings,
    ));
    Ok(Loaded {
        path,
        config,
        server,
        warnings,
    })
}

fn choose(path: &Path, reading: &Reading, selector: &Selector) -> Result<usize, LoadError> {
    let servers = &reading.candidates;
    let list = || {
        let names: Vec<_> = servers
            .iter()
            .map(|server| format!("{} ({})", server.name, server.uuid))
            .collect();
        names.join(", ")
    };
    match selector {
        _ if servers.is_empty() => {
            let mut error = LoadError {
                diagnostics: Vec::new(),
            };
            error
                .diagnostics
                .extend(reading.diagnostics.iter().cloned());
            if !reading.has_errors() {
                error
                    .diagnostics
                    .push(Diagnostic::of_file(path, "there is no server in it"));
            }
            Err(error)
        }
        Selector::Only if servers.len() == 1 => Ok(0),
        Selector::Only => Err(LoadError::of_file(
            path,
            format!(
                "there are several servers, name one with --server: {}",
                list()
            ),
        )),
        Selector::Uuid(uuid) => servers
            .iter()
            .position(|server| server.uuid == *uuid)
            .ok_or_else(|| {
                LoadError::of_file(
                    path,
                    format!(
                        "there is no server with the uuid {uuid:?}; there is {}",
                        list()
                    ),
                )
            }),
        Selector::Named(name) => {
            let uuid = servers.iter().position(|server| server.uuid == *name);
            uuid.or_else(|| servers.iter().position(|server| server.name == *name))
                .ok_or_else(|| {
                    LoadError::of_file(
                        path,
                        format!("there is no server {name:?}; there is {}", list()),
                    )
                })
        }
    }
}
