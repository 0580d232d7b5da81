//! What is wrong or odd in a configuration, and where: one line each, all of them at once.

use std::fmt;
use std::path::{Path, PathBuf};

/// How much a diagnostic matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// It runs, though perhaps not as meant.
    Warning,
    /// It cannot run.
    Error,
}

/// Where in the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Place {
    /// The file as a whole.
    #[default]
    File,
    /// In a text, both counted from 1; columns count characters.
    Text {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// A part of the model, in words: what `config check` finds has no single place in a file.
    Part(String),
    /// In a database.
    Row {
        /// The table.
        table: &'static str,
        /// The rowid.
        row: i64,
        /// The column, where one is to blame.
        column: Option<&'static str>,
    },
}

/// One finding. Displays as `file:line:col: message`, or `file: table T, row N, column C: message`; warnings and notes say
/// what they are before the message, but not in the alternate form (`{:#}`), for logs that say it themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub place: Place,
    /// One lower-case line without a full stop.
    pub message: String,
}

impl Diagnostic {
    /// An error about the whole file.
    pub(super) fn of_file(path: &Path, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            path: path.to_owned(),
            place: Place::File,
            message: message.into(),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        match &self.place {
            Place::File => {}
            Place::Part(part) => write!(f, " {part}:")?,
            Place::Text { line, column } => write!(f, "{line}:{column}:")?,
            Place::Row {
                table,
                row,
                column: None,
            } => write!(f, " table {table}, row {row}:")?,
            Place::Row {
                table,
                row,
                column: Some(column),
            } => write!(f, " table {table}, row {row}, column {column}:")?,
        }
        match self.severity {
            _ if f.alternate() => {}
            Severity::Note => write!(f, " note:")?,
            Severity::Warning => write!(f, " warning:")?,
            Severity::Error => {}
        }
        write!(f, " {}", self.message)
    }
}
