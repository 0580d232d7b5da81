//! `m2sh control`: questions to the control port of a server, typed one by one, as `status what=net`.
//!
//! Unlike m2sh it honours where the configuration puts the port, asks whoever answers who it is, and waits for nobody who
//! is not there.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::args::Options;
use super::{Done, Failed, each_line, error, say, servers, tell};
use crate::config::{self, Selector};
use crate::control::{Answer, Argument, Cell, Question};
use crate::launcher::line::{self, Line, clean};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks what is typed until nothing more is.
pub(super) fn control(options: &Options) -> Done {
    let chosen = servers::choose(options)?;
    let give_up = |Failed| error("Failed to run internal operation.");
    let selector = Selector::Uuid(chosen.only().map_err(give_up)?.to_owned());
    let told = |why: anyhow::Error| error(format!("{why:#}"));
    let loaded = config::load(Some(Path::new(chosen.db)), &selector)
        .map_err(|why| give_up(told(why.into())))?;
    let (endpoint, meant) = line::find(&loaded).map_err(|why| give_up(told(why)))?;
    let name = meant.name.clone();
    tell(
        "INFO",
        None,
        &format!("Connecting to control port {endpoint}"),
    );
    let mut line = Line::open(endpoint, Some(meant), PATIENCE).map_err(|why| give_up(told(why)))?;
    each_line(&format!("m2 [{}]> ", clean(&name)), |typed| {
        if typed.is_empty() {
            return Ok(());
        }
        let Some(question) = read(typed) else {
            let _told = error("USAGE: command arg1=val1 arg2=val2");
            let _told = error("Invalid command, try again.");
            return Ok(());
        };
        let answer = line.ask(&question).map_err(told)?;
        say(readable(&answer))
    })
}

/// A question as it is typed, if it is one.
fn read(typed: &str) -> Option<Question> {
    let mut words = typed.split_whitespace();
    let command = words.next().filter(|word| !word.contains('='))?.to_owned();
    let arguments = words.map(|word| {
        let (name, value) = word.split_once('=')?;
        Some((name.to_owned(), Argument::typed(value)))
    });
    Some(Question {
        command,
        arguments: arguments.collect::<Option<_>>()?,
    })
}

/// An answer as m2sh shows it: a single row one value below the other, several as lines with an empty one behind them.
fn readable(answer: &Answer) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    match answer {
        Answer::Error { error, .. } => {
            let _ok = writeln!(out, "ERROR: {}", clean(error));
        }
        Answer::Table(table) => {
            if let [row] = table.rows.as_slice() {
                for (header, cell) in table.headers.iter().zip(row) {
                    let _ok = writeln!(out, "{}:  {}", clean(header), text(cell));
                }
                return out;
            }
            let headers = table.headers.iter().map(|header| clean(header)).collect();
            let rows = table.rows.iter().map(|row| row.iter().map(text).collect());
            for row in std::iter::once(headers).chain(rows) {
                let row: Vec<String> = row;
                for cell in row {
                    let _ok = write!(out, "{cell}  ");
                }
                out.push('\n');
            }
            out.push('\n');
        }
    }
    out
}

fn text(cell: &Cell) -> String {
    match cell {
        Cell::Integer(number) => number.to_string(),
        Cell::Bool(is_so) => is_so.to_string(),
        Cell::Text(text) => clean(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Table;

    #[test]
    fn a_question_is_a_command_and_its_arguments() {
        let question = read("kill id=-7 why=now").unwrap();
        assert_eq!(question.command, "kill");
        let text = Argument::Text("now".to_owned());
        assert_eq!(
            question.arguments,
            [
                ("id".to_owned(), Argument::Integer(-7)),
                ("why".to_owned(), text)
            ]
        );
        assert_eq!(read("time").unwrap().arguments, []);
        for wrong in ["kill id 7", "a=b", "info x"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_single_row_is_shown_by_its_headers() {
        let mut table = Table::new(&["id", "on"]);
        assert_eq!(readable(&table.clone().into()), "id  on  \n\n");
        table.rows.push(vec![1_i64.into(), true.into()]);
        assert_eq!(readable(&table.clone().into()), "id:  1\non:  true\n");
        table.rows.push(vec![2_i64.into(), "a\u{1b}".into()]);
        assert_eq!(
            readable(&table.into()),
            "id  on  \n1  true  \n2  a\u{fffd}  \n\n"
        );
    }
}
