//! Mongrel2's database: read with every mistake told by table, row and column, and written so that Mongrel2 runs it.
//!
//! The only module that names the `SQLite` crate. Reading never writes, not even a journal beside the database. The
//! schema is Mongrel2's own (its `config.sql` as m2sh 1.12 runs it); what Lurcher adds are columns at the end of a
//! table, written only when a configuration uses them, since Mongrel2 names the columns it reads and so never sees more.

mod cells;
mod read;
mod texts;
mod write;

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};
use thiserror::Error;

pub(super) use read::read;
pub use texts::texts;
pub use write::write;

/// How long a database that another program is writing is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a database could not be read or written as a whole.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// `SQLite` said no.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// It is a database, but of something else.
    #[error("is a SQLite database, but not one of Mongrel2's: it has no table `{0}`")]
    Foreign(&'static str),
    /// A table lacks a column that every version of Mongrel2 has.
    #[error("table `{table}` has no column `{column}`")]
    NoColumn {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
    },
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, rusqlite::Error> {
    let database = Connection::open_with_flags(path, flags)?;
    database.busy_timeout(BUSY_TIMEOUT)?;
    Ok(database)
}

/// The columns of a table; none if there is no such table.
fn columns(database: &Connection, table: &str) -> Result<Vec<String>, rusqlite::Error> {
    let mut statement = database.prepare("SELECT name FROM pragma_table_info(?1)")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

/// A row of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When, in UTC, as `SQLite` writes it; empty in a row to be added.
    pub happened_at: String,
    /// Who did it.
    pub who: String,
    /// On which machine.
    pub location: String,
    /// By what means.
    pub how: String,
    /// What was done.
    pub what: String,
    /// What for; m2sh leaves NULL where that is not said.
    pub why: Option<String>,
}

/// The journal, oldest first.
pub fn journal(path: &Path) -> Result<Vec<Entry>, DatabaseError> {
    let database = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    if columns(&database, "log")?.is_empty() {
        return Err(DatabaseError::Foreign("log"));
    }
    let mut statement = database
        .prepare("SELECT happened_at, who, location, how, what, why FROM log ORDER BY rowid")?;
    let entries = statement.query_map([], |row| {
        // m2sh leaves NULLs where an option was not given.
        let text = |index| {
            row.get::<_, Option<String>>(index)
                .map(Option::unwrap_or_default)
        };
        Ok(Entry {
            happened_at: text(0)?,
            who: text(1)?,
            location: text(2)?,
            how: text(3)?,
            what: text(4)?,
            why: row.get(5)?,
        })
    })?;
    Ok(entries.collect::<Result<_, _>>()?)
}

/// Adds a row to the journal of a database.
pub fn commit(path: &Path, entry: &Entry) -> Result<(), DatabaseError> {
    let database = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    if columns(&database, "log")?.is_empty() {
        return Err(DatabaseError::Foreign("log"));
    }
    Ok(add(&database, entry)?)
}

fn add(database: &Connection, entry: &Entry) -> Result<(), rusqlite::Error> {
    let Entry {
        who,
        what,
        location,
        how,
        why,
        ..
    } = entry;
    database.execute(
        "INSERT INTO log (who, what, location, how, why) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![who, what, location, how, why],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
