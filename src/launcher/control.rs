//! `lurcher control` and its shorthands: an operator's side of the control port, Lurcher's or Mongrel2's.
//!
//! What is typed and what is printed; the asking itself is `line`'s.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::line::{self, Absent, Line, Meant, clean, plain, refused};
use crate::config::{self, Selector};
use crate::control::{Answer, Argument, Cell, Order, Question, Table};
use crate::endpoint::Endpoint;

/// Arguments of `lurcher control`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    port: Port,
    /// Print JSON: a list of objects
    #[arg(long)]
    json: bool,
    /// A configuration if one is meant, a command as `help`, and its arguments as `what=net`
    #[arg(required = true, value_name = "[CONFIG] COMMAND [KEY=VALUE]")]
    words: Vec<String>,
}

/// Arguments of `lurcher status`.
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    server: Server,
    /// What to show: pools, workers, causes, handlers, routes, metrics, net, tasks [default: pools and workers; of `lurcher run` workers; of a Mongrel2 tasks]
    #[arg(long)]
    what: Option<String>,
    /// Print JSON: a list of objects
    #[arg(long)]
    json: bool,
}

/// Which server.
#[derive(Debug, clap::Args)]
pub(super) struct Server {
    /// A Mongrel2 database or an m2sh .conf [default: config.sqlite, else mongrel2.conf]
    config: Option<PathBuf>,
    #[command(flatten)]
    port: Port,
}

#[derive(Debug, clap::Args)]
struct Port {
    /// Which server of the configuration, by name or uuid; needed when it has several
    #[arg(long, value_name = "NAME|UUID")]
    server: Option<String>,
    /// The address of the control port, of a server or of a `lurcher run`; then no configuration is read
    #[arg(long, value_name = "ADDRESS", conflicts_with = "server")]
    control: Option<Endpoint>,
    /// How long to wait for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let positive = Duration::try_from_secs_f64(seconds).ok();
    positive
        .filter(|timeout| !timeout.is_zero())
        .ok_or_else(|| "not a time".to_owned())
}

/// `lurcher control`.
pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let Args { port, json, words } = args;
    let (config, question) = match read_words(&words, port.control.is_some()) {
        Ok(read) => read,
        Err(why) => {
            // A chain of words that clap cannot tell apart: what was typed is wrong all the same.
            drop(writeln!(io::stderr(), "lurcher: {why}"));
            return Ok(ExitCode::from(2));
        }
    };
    match ask(&port, config.as_deref(), &[question])?.1 {
        Answer::Table(table) => print(&table, json),
        Answer::Error { code, error } => Err(refused(code.as_deref(), &error)),
    }
}

/// Tells configuration, command and arguments apart: arguments have a `=`, and a configuration stands before the command.
fn read_words(words: &[String], has_address: bool) -> Result<(Option<PathBuf>, Question), String> {
    let named = words.iter().take_while(|word| !word.contains('=')).count();
    let (names, arguments) = words.split_at(named);
    let (config, command) = match names {
        [command] => (None, command),
        [_, _] if has_address => {
            return Err("with --control, no configuration is named".to_owned());
        }
        [config, command] => (Some(PathBuf::from(config)), command),
        [] => return Err("a command is missing; `help` lists them".to_owned()),
        [_, _, word, ..] => return Err(format!("{word:?} is no KEY=VALUE")),
    };
    let arguments = arguments.iter().map(|argument| {
        let (key, value) = argument
            .split_once('=')
            .ok_or_else(|| format!("{argument:?} is no KEY=VALUE"))?;
        Ok((key.to_owned(), Argument::typed(value)))
    });
    let question = Question {
        command: command.clone(),
        arguments: arguments.collect::<Result<_, String>>()?,
    };
    Ok((config, question))
}

/// `lurcher status`.
pub(super) fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (questions, and) = match &args.what {
        Some(what) => (vec![about(what)], None),
        None => (
            ["pools", "workers", "handlers", "tasks"].map(about).into(),
            // Of pools their workers too.
            Some(about("workers")),
        ),
    };
    let (port, config) = args.server.which()?;
    let mut line = port.open(config)?;
    let (first, table) = match first(&mut line, &questions)? {
        (first, Answer::Table(table)) => (first, table),
        (_, Answer::Error { code, error }) => return Err(refused(code.as_deref(), &error)),
    };
    match and.filter(|_| first == 0) {
        Some(and) => match line.ask(&and)? {
            Answer::Table(workers) => print_both(&table, &workers, args.json),
            Answer::Error { code, error } => Err(refused(code.as_deref(), &error)),
        },
        None => print(&table, args.json),
    }
}

fn about(what: &str) -> Question {
    Question {
        command: "status".to_owned(),
        arguments: vec![("what".to_owned(), Argument::Text(what.to_owned()))],
    }
}

/// `lurcher stop` and `lurcher reload`.
pub(super) fn order(server: &Server, order: Order) -> anyhow::Result<ExitCode> {
    match server.ask(&[plain(&order.to_string())])?.1 {
        Answer::Table(table) => print(&table, false),
        Answer::Error { code, error } => Err(refused(code.as_deref(), &error)),
    }
}

/// `lurcher running`.
pub(super) fn running(server: &Server) -> anyhow::Result<ExitCode> {
    match server.ask(&[plain("time")]) {
        Ok((name, _)) => {
            say(&format!("{name} is running\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.is::<Absent>() => {
            say(&format!("not running: {error:#}\n"))?;
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error),
    }
}

impl Server {
    fn ask(&self, questions: &[Question]) -> anyhow::Result<(String, Answer)> {
        let (port, config) = self.which()?;
        ask(port, config, questions)
    }

    fn which(&self) -> anyhow::Result<(&Port, Option<&Path>)> {
        if self.port.control.is_some() && self.config.is_some() {
            bail!("with --control, no configuration is named");
        }
        Ok((&self.port, self.config.as_deref()))
    }
}

/// Asks one question after the other until one gets a table, and gives the last answer with the name of who gave it.
fn ask(
    port: &Port,
    config: Option<&Path>,
    questions: &[Question],
) -> anyhow::Result<(String, Answer)> {
    let mut line = port.open(config)?;
    let (_, answer) = first(&mut line, questions)?;
    Ok((line.name().to_owned(), answer))
}

/// Asks one question after the other until one gets a table, and gives the last answer with the place of its question.
fn first(line: &mut Line, questions: &[Question]) -> anyhow::Result<(usize, Answer)> {
    let mut answer = None;
    for (place, question) in questions.iter().enumerate() {
        let latest = line.ask(question)?;
        let is_table = matches!(latest, Answer::Table(_));
        answer = Some((place, latest));
        if is_table {
            break;
        }
    }
    answer.context("nothing was asked")
}

impl Port {
    fn open(&self, config: Option<&Path>) -> anyhow::Result<Line> {
        let (endpoint, meant) = self.find(config)?;
        Line::open(endpoint, meant, self.timeout)
    }

    /// Where to ask, and which server is meant, if it is known.
    fn find(&self, config: Option<&Path>) -> anyhow::Result<(Endpoint, Option<Meant>)> {
        if let Some(endpoint) = &self.control {
            return Ok((endpoint.clone(), None));
        }
        let selector = match &self.server {
            Some(name) => Selector::Named(name.clone()),
            None => Selector::Only,
        };
        let (endpoint, meant) = line::find(&config::load(config, &selector)?)?;
        Ok((endpoint, Some(meant)))
    }
}

/// A table for people, or for programs.
fn print(table: &Table, json: bool) -> anyhow::Result<ExitCode> {
    let mut out = String::new();
    if json {
        write_json(table, &mut out);
        out.push('\n');
    } else if let ([_], [row]) = (table.headers.as_slice(), table.rows.as_slice())
        && let [cell] = row.as_slice()
    {
        // A single value needs no heading, and can be used by a script. One of several lines is meant to be read as such.
        match cell {
            Cell::Text(lines) if !lines.is_empty() => {
                for line in lines.lines() {
                    out.push_str(&clean(line));
                    out.push('\n');
                }
            }
            _ => {
                out.push_str(&text(cell));
                out.push('\n');
            }
        }
    } else {
        write_rows(table, &mut out);
    }
    say(&out)?;
    Ok(ExitCode::SUCCESS)
}

/// Pools, and under them their workers.
fn print_both(pools: &Table, workers: &Table, json: bool) -> anyhow::Result<ExitCode> {
    let mut out = String::new();
    if json {
        out.push_str("{\"pools\": ");
        write_json(pools, &mut out);
        out.push_str(", \"workers\": ");
        write_json(workers, &mut out);
        out.push_str("}\n");
    } else {
        write_rows(pools, &mut out);
        out.push('\n');
        write_rows(workers, &mut out);
    }
    say(&out)?;
    Ok(ExitCode::SUCCESS)
}

fn write_rows(table: &Table, out: &mut String) {
    let heading = table
        .headers
        .iter()
        .map(|header| clean(header).to_uppercase());
    let rows = table.rows.iter().map(|row| row.iter().map(text).collect());
    let rows: Vec<Vec<String>> = [heading.collect()].into_iter().chain(rows).collect();
    super::table::write(&rows, out);
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        // A reader that closed the pipe has what it wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("write to standard output"))
        }
        _ => Ok(()),
    }
}

fn text(cell: &Cell) -> String {
    match cell {
        Cell::Integer(number) => number.to_string(),
        Cell::Bool(is_so) => is_so.to_string(),
        Cell::Text(text) => clean(text),
    }
}

fn write_json(table: &Table, out: &mut String) {
    out.push('[');
    for (index, row) in table.rows.iter().enumerate() {
        out.push_str(if index == 0 { "\n  {" } else { ",\n  {" });
        for (column, (header, cell)) in table.headers.iter().zip(row).enumerate() {
            if column > 0 {
                out.push_str(", ");
            }
            write_json_text(header, out);
            out.push_str(": ");
            match cell {
                Cell::Integer(number) => out.push_str(&number.to_string()),
                Cell::Bool(is_so) => out.push_str(if *is_so { "true" } else { "false" }),
                Cell::Text(text) => write_json_text(text, out),
            }
        }
        out.push('}');
    }
    out.push_str("\n]");
}

/// A JSON string (RFC 8259 section 7).
fn write_json_text(text: &str, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            '\0'..='\x1f' | '\x7f'..='\u{9f}' => {
                // Writing to a String does not fail.
                let _ok = write!(out, "\\u{:04x}", u32::from(char));
            }
            _ => out.push(char),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn configuration_command_and_arguments_are_told_apart() {
        let read = |text, has_address| read_words(&words(text), has_address);
        let (config, question) = read("status what=net", false).unwrap();
        assert_eq!((config, question), (None, about("net")));
        let (config, question) = read("site.conf kill id=-5", false).unwrap();
        assert_eq!(config, Some(PathBuf::from("site.conf")));
        assert_eq!(
            question.arguments,
            [("id".to_owned(), Argument::Integer(-5))]
        );
        assert!(read("what=net", false).is_err());
        assert!(read("a b c", false).is_err());
        assert!(read("status what=net more", false).is_err());
        assert!(read("site.conf status", true).is_err());
    }

    #[test]
    fn json_holds_whatever_a_server_says() {
        let mut table = Table::new(&["na\"me", "on", "id"]);
        table.rows.push(vec![
            "a\\\u{1b}[m\n\u{9b}ü".into(),
            true.into(),
            5_i64.into(),
        ]);
        table
            .rows
            .push(vec!["".into(), false.into(), (-1_i64).into()]);
        let mut out = String::new();
        write_json(&table, &mut out);
        let read: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            read,
            serde_json::json!([
                {"na\"me": "a\\\u{1b}[m\n\u{9b}ü", "on": true, "id": 5},
                {"na\"me": "", "on": false, "id": -1}
            ])
        );
        assert!(!out.contains(['\u{1b}', '\u{9b}']));
    }

    #[test]
    fn an_empty_table_is_an_empty_list() {
        let mut out = String::new();
        write_json(&Table::new(&["id"]), &mut out);
        assert!(serde_json::from_str::<Vec<i32>>(&out).unwrap().is_empty());
    }
}
