//! What operators get: a table, or an error.

use std::borrow::Cow;

use crate::tnetstring::{self, Limits, Parsed, Value};

/// The largest answer that is read, in bytes: a row for each of a million connections.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One value of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// A number.
    Integer(i64),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(String),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<bool> for Cell {
    fn from(is_so: bool) -> Self {
        Self::Bool(is_so)
    }
}

/// Rows under headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What the columns are.
    pub headers: Vec<Cow<'static, str>>,
    /// The rows, each with a cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(headers: &[&'static str]) -> Self {
        Self {
            headers: headers.iter().copied().map(Cow::Borrowed).collect(),
            rows: Vec::new(),
        }
    }

    /// A table of one cell.
    pub fn single(header: &'static str, cell: impl Into<Cell>) -> Self {
        let mut table = Self::new(&[header]);
        table.rows.push(vec![cell.into()]);
        table
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// What was asked for.
    Table(Table),
    /// Why there is nothing.
    Error {
        /// Its name; Mongrel2 leaves it out once.
        code: Option<Cow<'static, str>>,
        /// What it says.
        error: Cow<'static, str>,
    },
}

impl From<Table> for Answer {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

impl Answer {
    /// An error with its name.
    pub(super) fn error(code: &'static str, error: &'static str) -> Self {
        Self::Error {
            code: Some(code.into()),
            error: error.into(),
        }
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        tnetstring::write_dict(&mut out, |out| match self {
            Self::Table(table) => {
                tnetstring::write_bytes(out, b"headers");
                tnetstring::write_list(out, |out| {
                    for header in &table.headers {
                        tnetstring::write_bytes(out, header.as_bytes());
                    }
                });
                tnetstring::write_bytes(out, b"rows");
                tnetstring::write_list(out, |out| {
                    for row in &table.rows {
                        tnetstring::write_list(out, |out| {
                            for cell in row {
                                cell.encode(out);
                            }
                        });
                    }
                });
            }
            Self::Error { code, error } => {
                let code = code.iter().map(|code| ("code", code));
                for (name, text) in code.chain([("error", error)]) {
                    tnetstring::write_bytes(out, name.as_bytes());
                    tnetstring::write_bytes(out, text.as_bytes());
                }
            }
        });
        out
    }

    /// Reads an answer, Mongrel2's too; `None` for what is none. Text that is not UTF-8 is shown as well as it can be.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let limits = Limits {
            size: ANSWER_BYTES_MAX,
            ..Limits::DEFAULT
        };
        let Ok(Parsed::Complete { value, .. }) = tnetstring::parse(bytes, limits) else {
            return None;
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let named = |name| {
            value
                .get(name)
                .and_then(Value::as_bytes)
                .map(text)
                .map(Cow::Owned)
        };
        if let Some(error) = named("error") {
            let code = named("code");
            return Some(Self::Error { code, error });
        }
        let headers = value.get("headers")?.as_list()?.iter();
        let headers: Option<_> = headers
            .map(|header| header.as_bytes().map(text).map(Cow::Owned))
            .collect();
        let rows = value.get("rows")?.as_list()?.iter();
        let rows: Option<_> = rows
            .map(|row| row.as_list()?.iter().map(Cell::decode).collect())
            .collect();
        Some(Self::Table(Table {
            headers: headers?,
            rows: rows?,
        }))
    }
}

impl Cell {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Integer(number) => tnetstring::write_integer(out, *number),
            Self::Bool(is_so) => Value::Bool(*is_so).encode(out),
            Self::Text(text) => tnetstring::write_bytes(out, text.as_bytes()),
        }
    }

    fn decode(value: &Value<'_>) -> Option<Self> {
        Some(match value {
            Value::Bytes(bytes) => Self::Text(String::from_utf8_lossy(bytes).into_owned()),
            Value::Integer(number) => Self::Integer(*number),
            Value::Float(number) => Self::Text(number.to_string()),
            Value::Bool(is_so) => Self::Bool(*is_so),
            Value::Null => Self::Text(String::new()),
            Value::List(_) | Value::Dict(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_again() {
        let mut table = Table::new(&["id", "system", "name"]);
        table
            .rows
            .push(vec![1_i64.into(), false.into(), "SERVER".into()]);
        table
            .rows
            .push(vec![(-1_i64).into(), true.into(), "".into()]);
        for answer in [
            Answer::Table(table),
            Answer::error("CODE", "Why."),
            Answer::Error {
                code: None,
                error: "Why.".into(),
            },
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for bytes in [
            &b""[..],
            b"0:}",
            b"0:]",
            b"5:hello,",
            b"16:7:headers,0:]4:r}",
            b"24:7:headers,0:]4:rows,1:1#}",
            b"35:7:headers,0:]4:rows,12:9:4:time,0:}]]}",
        ] {
            assert_eq!(Answer::decode(bytes), None, "{bytes:?}");
        }
    }
}
