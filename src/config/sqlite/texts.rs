//! Rows as they stand, right or wrong: what m2sh lists.

use std::path::Path;

use rusqlite::OpenFlags;
use rusqlite::types::ValueRef;

use super::{DatabaseError, columns, open};

/// These columns of all rows of a table, by rowid, as text; NULL, and a column that is not there, is `None`. Nothing is
/// checked. The names are the program's own, never from outside.
///
/// # Errors
///
/// When the file is no database, or has no such table.
pub fn texts<const N: usize>(
    path: &Path,
    table: &'static str,
    wanted: [&'static str; N],
) -> Result<Vec<[Option<String>; N]>, DatabaseError> {
    let database = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let there = columns(&database, table)?;
    if there.is_empty() {
        return Err(DatabaseError::Foreign(table));
    }
    let has = |column: &str| there.iter().any(|name| name.eq_ignore_ascii_case(column));
    let selected = wanted.map(|column| if has(column) { column } else { "NULL" });
    let sql = format!("SELECT {} FROM {table} ORDER BY rowid", selected.join(", "));
    let mut statement = database.prepare(&sql)?;
    let mut found = statement.query([])?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let mut texts = [const { None }; N];
        for (index, text) in texts.iter_mut().enumerate() {
            *text = match row.get_ref(index)? {
                ValueRef::Null => None,
                ValueRef::Integer(number) => Some(number.to_string()),
                ValueRef::Real(number) => Some(number.to_string()),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                    Some(String::from_utf8_lossy(bytes).into_owned())
                }
            };
        }
        rows.push(texts);
    }
    Ok(rows)
}
