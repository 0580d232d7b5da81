//! Rows with cells as `SQLite` stores them, and what each must be: NULL and wrong storage classes are told by column.

use std::collections::HashMap;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::super::diagnostic::Place;
use super::super::draft::{Findings, Located, Told};
use super::{DatabaseError, columns};

/// A cell of a row, as `SQLite` stores it.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    Null,
    Number(i64),
    Real(f64),
    Text(String),
    /// Text that is not UTF-8.
    Garbled,
    Blob,
    /// The table has no such column.
    Absent,
}

#[derive(Debug, Clone)]
pub(super) struct Row {
    table: &'static str,
    pub(super) id: i64,
    cells: HashMap<&'static str, Cell>,
}

/// Columns that some version of Mongrel2 does without, or that are Lurcher's own. Without them the default counts.
const OPTIONAL: [&str; 13] = [
    "control_port",
    "error_log_level",
    "use_ssl",
    "bind_addr",
    "raw_payload",
    "protocol",
    "cache_ttl",
    "slots",
    "queue",
    "retry",
    "wait",
    "workers",
    "sticky",
];

/// All rows of a table by rowid; none if there is no such table. Names are from this file, never from outside.
pub(super) fn rows(
    database: &Connection,
    table: &'static str,
    wanted: &[&'static str],
) -> Result<Vec<Row>, DatabaseError> {
    let there = columns(database, table)?;
    if there.is_empty() {
        return Ok(Vec::new());
    }
    let has = |column: &str| there.iter().any(|name| name.eq_ignore_ascii_case(column));
    if let Some(&column) = wanted
        .iter()
        .find(|column| !has(column) && !OPTIONAL.contains(column))
    {
        return Err(DatabaseError::NoColumn { table, column });
    }
    let (present, absent): (Vec<_>, Vec<_>) =
        wanted.iter().copied().partition(|column| has(column));
    let sql = format!(
        "SELECT rowid, {} FROM {table} ORDER BY rowid",
        present.join(", ")
    );
    let mut statement = database.prepare(&sql)?;
    let mut found = statement.query([])?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let mut cells: HashMap<_, _> = absent
            .iter()
            .map(|&column| (column, Cell::Absent))
            .collect();
        for (index, &column) in present.iter().enumerate() {
            let cell = match row.get_ref(index + 1)? {
                ValueRef::Null => Cell::Null,
                ValueRef::Integer(number) => Cell::Number(number),
                ValueRef::Real(number) => Cell::Real(number),
                ValueRef::Text(text) => {
                    String::from_utf8(text.to_vec()).map_or(Cell::Garbled, Cell::Text)
                }
                ValueRef::Blob(_) => Cell::Blob,
            };
            cells.insert(column, cell);
        }
        rows.push(Row {
            table,
            id: row.get(0)?,
            cells,
        });
    }
    Ok(rows)
}

impl Row {
    pub(super) fn points_at(&self, column: &str, id: i64) -> bool {
        matches!(self.cells.get(column), Some(Cell::Number(number)) if *number == id)
    }

    pub(super) fn place(&self, column: &'static str) -> Place {
        Place::Row {
            table: self.table,
            row: self.id,
            column: Some(column),
        }
    }

    pub(super) fn located<T>(&self, column: &'static str, value: T) -> Located<T> {
        Located {
            value,
            place: self.place(column),
        }
    }

    pub(super) fn text(&self, column: &'static str, findings: &mut Findings) -> Told<String> {
        match self.cells.get(column) {
            Some(Cell::Text(text)) => Some(self.located(column, text.clone())),
            other => self.wrong(column, "text", other, findings),
        }
    }

    pub(super) fn number(&self, column: &'static str, findings: &mut Findings) -> Told<i64> {
        match self.cells.get(column) {
            Some(Cell::Number(number)) => Some(self.located(column, *number)),
            other => self.wrong(column, "a whole number", other, findings),
        }
    }

    pub(super) fn text_or(
        &self,
        column: &'static str,
        default: &str,
        findings: &mut Findings,
    ) -> Told<String> {
        match self.cells.get(column) {
            Some(Cell::Absent) => Some(self.located(column, default.to_owned())),
            _ => self.text(column, findings),
        }
    }

    pub(super) fn number_or(
        &self,
        column: &'static str,
        default: i64,
        findings: &mut Findings,
    ) -> Told<i64> {
        match self.cells.get(column) {
            Some(Cell::Absent) => Some(self.located(column, default)),
            _ => self.number(column, findings),
        }
    }

    /// The text in one of Lurcher's columns, which NULL leaves at its default.
    pub(super) fn own_text(&self, column: &'static str, findings: &mut Findings) -> Told<String> {
        let set = self.is_set(column);
        set.then(|| self.text(column, findings)).flatten()
    }

    /// The number in one of Lurcher's columns, which NULL leaves at its default.
    pub(super) fn own_number(&self, column: &'static str, findings: &mut Findings) -> Told<i64> {
        let set = self.is_set(column);
        set.then(|| self.number(column, findings)).flatten()
    }

    pub(super) fn is_set(&self, column: &str) -> bool {
        !matches!(
            self.cells.get(column),
            None | Some(Cell::Absent | Cell::Null)
        )
    }

    pub(super) fn wrong<T>(
        &self,
        column: &'static str,
        needs: &str,
        cell: Option<&Cell>,
        findings: &mut Findings,
    ) -> Told<T> {
        let is = match cell {
            None | Some(Cell::Null | Cell::Absent) => "NULL".to_owned(),
            Some(Cell::Number(number)) => format!("the number {number}"),
            Some(Cell::Real(number)) => format!("the number {number}"),
            Some(Cell::Text(text)) => format!("the text {text:?}"),
            Some(Cell::Garbled) => "text that is not UTF-8".to_owned(),
            Some(Cell::Blob) => "a blob".to_owned(),
        };
        findings.error(&self.place(column), format!("is {is}, and must be {needs}"));
        None
    }
}
