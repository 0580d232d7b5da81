//! The commands: what each answers, in Mongrel2's words, and what it asks of the subject.
//!
//! Mongrel2's ten commands and their errors are as it answers them. What is added must not show where Mongrel2's own
//! answers are expected: `help` lists its ten, and `help what=all` those that are ours too.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use super::answer::{Answer, Cell, Table};
use super::figures::expose;
use super::pools::{self, Pool};
use super::question::{Asked, Malformed};
use crate::metrics;

/// What a control port governs.
///
/// Called from the task of the operator's connection: nothing here may wait. Orders are only taken; they are carried out
/// when the answer has left.
pub trait Subject {
    /// The one row about the server: Mongrel2's columns for a front ([`INFO`]).
    fn info(&self) -> Table;

    /// Its uuid.
    fn uuid(&self) -> String;

    /// What runs, in Mongrel2's form.
    fn tasks(&self) -> Vec<Task>;

    /// Its clients' connections.
    fn connections(&self) -> Vec<Connection>;

    /// What stands behind its routes; `None` if it has no such thing.
    fn handlers(&self) -> Option<Table>;

    /// Its routes; `None` if it has no such thing.
    fn routes(&self) -> Option<Table>;

    /// The pools of workers that stand behind it; `None` if it has no such thing.
    fn pools(&self) -> Option<Vec<Pool>> {
        None
    }

    /// Its worker processes; `None` if it has no such thing. Workers of pools are no processes of its own.
    fn workers(&self) -> Option<Table> {
        None
    }

    /// Takes the order to have so many workers; whether it will be carried out.
    fn scale(&self, count: u32) -> bool {
        let _ = count;
        false
    }

    /// Ends the connection with this id; whether there was one.
    fn kill(&self, id: u32) -> bool;

    /// Takes an order; whether it will be carried out.
    fn order(&self, order: Order) -> bool;
}

/// What an operator may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As SIGHUP.
    Reload,
    /// As SIGINT: ends when what is open is finished, and at once when asked again.
    Stop,
    /// As SIGTERM, which is the same.
    Terminate,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reload => "reload",
            Self::Stop => "stop",
            Self::Terminate => "terminate",
        })
    }
}

/// A row of `status what=tasks`. Its id is its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Mongrel2's name for it.
    pub name: &'static str,
    /// What it waits for, in Mongrel2's words.
    pub state: &'static str,
    /// `running`, `ready`, `exiting` or `idle`.
    pub status: &'static str,
}

/// A row of `status what=net`. Times are seconds ago, 0 for what never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// What handlers call it; `None` before one knows it.
    pub id: Option<u32>,
    /// Its file descriptor.
    pub fd: i32,
    /// 0 unknown yet, 1 HTTP, 2 message socket, 3 WebSocket or policy file.
    pub kind: u8,
    /// Since its handler or its client last showed that it lives.
    pub last_ping: u32,
    /// Since bytes came last.
    pub last_read: u32,
    /// Since bytes were written last.
    pub last_write: u32,
    /// Bytes that came.
    pub bytes_read: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
}

/// The columns of `info`.
pub const INFO: &[&str] = &[
    "port",
    "bind_addr",
    "uuid",
    "chroot",
    "access_log",
    "error_log",
    "pid_file",
    "default_hostname",
];

const TASKS: &[&str] = &["id", "system", "name", "state", "status"];

const NET: &[&str] = &[
    "id",
    "fd",
    "type",
    "last_ping",
    "last_read",
    "last_write",
    "bytes_read",
    "bytes_written",
];

/// Mongrel2's commands, in its order and with its words.
const MONGREL2: &[(&str, &str)] = &[
    ("stop", "stop the server (SIGINT)"),
    ("reload", "reload the server"),
    ("help", "this command"),
    ("control_stop", "stop control port"),
    ("kill", "kill a connection"),
    ("status", "status, what=['net'|'tasks']"),
    ("terminate", "terminate the server (SIGTERM)"),
    ("time", "the server's time"),
    ("uuid", "the server's uuid"),
    ("info", "information about this server"),
];

/// What Lurcher adds to them.
const OURS: &[(&str, &str)] = &[
    ("help", "what=['all']: these too"),
    (
        "status",
        "status, what=['handlers'|'routes'|'metrics'|'pools'|'workers'|'causes'] too",
    ),
    (
        "metrics",
        "figures; format=['prometheus'] as Prometheus reads them",
    ),
    (
        "workers",
        "the worker processes of a handler, or the workers behind a server",
    ),
    (
        "scale",
        "count=N: so many worker processes from now on (SIGTTIN, SIGTTOU)",
    ),
    ("version", "the server's name and version"),
];

const SENT: &str = "signal sent to server";

/// What an answer ends when it has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    Nothing,
    /// The control port.
    Port,
}

/// Answers a question, whatever its bytes are.
pub(super) fn answer(subject: &dyn Subject, question: &[u8]) -> (Answer, Ends) {
    let mut ends = Ends::Nothing;
    let answer = match Asked::decode(question) {
        Err(Malformed::NotAList) => Answer::error(
            "INVALID_REQUEST",
            "Invalid request format, must be a list with two elements in it.",
        ),
        Err(Malformed::NotAQuestion) => Answer::error(
            "INVALID_DATA",
            "Invalid data, expecting a list with a string and a hash in it.",
        ),
        Ok(asked) => match asked.command {
            b"help" => help(&asked).into(),
            b"info" => subject.info().into(),
            b"time" => Table::single("time", unix_time().to_string()).into(),
            b"uuid" => Table::single("uuid", subject.uuid()).into(),
            b"version" => Table::single("version", VERSION).into(),
            b"status" => status(subject, &asked),
            b"workers" => match workers(subject) {
                Some(table) => table.into(),
                None => unknown(),
            },
            b"metrics" => metrics_answer(subject, &asked),
            b"scale" => scale(subject, &asked),
            b"kill" => kill(subject, &asked),
            b"reload" => order(subject, Order::Reload),
            b"stop" => order(subject, Order::Stop),
            b"terminate" => order(subject, Order::Terminate),
            b"control_stop" => {
                ends = Ends::Port;
                Table::single("msg", "stopping the control port").into()
            }
            _ => unknown(),
        },
    };
    (answer, ends)
}

/// What `version` answers.
const VERSION: &str = concat!("Lurcher/", env!("CARGO_PKG_VERSION"));

fn unix_time() -> u64 {
    // A clock before 1970 has no number for it.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn help(asked: &Asked<'_>) -> Table {
    let ours = match asked.text("what") {
        Some(b"all") => OURS,
        _ => &[],
    };
    let mut table = Table::new(&["name", "help"]);
    table.rows = MONGREL2
        .iter()
        .chain(ours)
        .map(|(name, help)| vec![Cell::from(*name), Cell::from(*help)])
        .collect();
    table
}

fn invalid_argument() -> Answer {
    Answer::error("INVALID_ARGUMENT", "Invalid argument type.")
}

fn kill(subject: &dyn Subject, asked: &Asked<'_>) -> Answer {
    let id = asked.integer("id").and_then(|id| u32::try_from(id).ok());
    if id.is_some_and(|id| subject.kill(id)) {
        Table::single("status", "OK").into()
    } else {
        invalid_argument()
    }
}

/// What Mongrel2 says to a command that it has not, and we to one that the subject has not.
fn unknown() -> Answer {
    Answer::error("CALLBACK_NOT_FOUND", "Callback requested was not found.")
}

fn scale(subject: &dyn Subject, asked: &Asked<'_>) -> Answer {
    if subject.workers().is_none() {
        return unknown();
    }
    let count = asked.integer("count").and_then(|n| u32::try_from(n).ok());
    match count {
        Some(count) if count > 0 && subject.scale(count) => {
            tracing::info!("an operator asks for a number of workers: {count}");
            Table::single("msg", format!("workers from now on: {count}")).into()
        }
        _ => invalid_argument(),
    }
}

fn order(subject: &dyn Subject, order: Order) -> Answer {
    if subject.order(order) {
        tracing::info!("an operator asks for {order}");
        Table::single("msg", SENT).into()
    } else {
        Answer::error("SIGNAL_FAILED", "raise call failed, can't signal process")
    }
}

fn status(subject: &dyn Subject, asked: &Asked<'_>) -> Answer {
    let Some(what) = asked.text("what") else {
        return invalid_argument();
    };
    let table = match what {
        b"tasks" => Some(tasks(subject)),
        b"net" => Some(net(subject)),
        b"handlers" => subject
            .handlers()
            .or_else(|| Some(pools::pools(&subject.pools()?))),
        b"routes" => subject.routes(),
        b"pools" => subject.pools().map(|all| pools::pools(&all)),
        b"workers" => workers(subject),
        b"causes" => subject.pools().map(|all| pools::causes(&all)),
        b"metrics" => Some(numbers()),
        _ => None,
    };
    table.map_or_else(
        || Answer::Error {
            code: None,
            error: "Expected argument what=['net'|'tasks'].".into(),
        },
        Answer::Table,
    )
}

/// Processes of its own, or what has connected to its pools.
fn workers(subject: &dyn Subject) -> Option<Table> {
    subject
        .workers()
        .or_else(|| Some(pools::workers(&subject.pools()?)))
}

fn metrics_answer(subject: &dyn Subject, asked: &Asked<'_>) -> Answer {
    match asked.text("format") {
        None => numbers().into(),
        Some(b"prometheus") => Table::single("text", exposition(subject)).into(),
        Some(_) => invalid_argument(),
    }
}

/// All figures of a subject in Prometheus' text format.
pub(super) fn exposition(subject: &dyn Subject) -> String {
    expose(&subject.pools().unwrap_or_default())
}

fn tasks(subject: &dyn Subject) -> Table {
    let mut table = Table::new(TASKS);
    table.rows = (1_u64..)
        .zip(subject.tasks())
        .map(|(id, task)| {
            vec![
                id.into(),
                // Mongrel2's system tasks are those of its coroutine library, of which there is none here.
                false.into(),
                task.name.into(),
                task.state.into(),
                task.status.into(),
            ]
        })
        .collect();
    table
}

fn net(subject: &dyn Subject) -> Table {
    let mut table = Table::new(NET);
    table.rows = subject
        .connections()
        .into_iter()
        .map(|connection| {
            vec![
                connection.id.map_or(-1, i64::from).into(),
                i64::from(connection.fd).into(),
                i64::from(connection.kind).into(),
                connection.last_ping.into(),
                connection.last_read.into(),
                connection.last_write.into(),
                connection.bytes_read.into(),
                connection.bytes_written.into(),
            ]
        })
        .collect();
    table
}

fn numbers() -> Table {
    let mut table = Table::new(&["name", "value", "meaning"]);
    table.rows = metrics::NAMES
        .iter()
        .map(|name| vec![name.text().into(), name.get().into(), name.meaning().into()])
        .collect();
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something that has neither handlers nor connections, and does nothing it is told.
    struct Stubborn;

    impl Subject for Stubborn {
        fn info(&self) -> Table {
            Table::single("name", "stubborn")
        }

        fn uuid(&self) -> String {
            "stubborn-uuid".to_owned()
        }

        fn tasks(&self) -> Vec<Task> {
            Vec::new()
        }

        fn connections(&self) -> Vec<Connection> {
            vec![Connection {
                id: None,
                fd: 7,
                kind: 0,
                last_ping: 1,
                last_read: 2,
                last_write: 3,
                bytes_read: u64::MAX,
                bytes_written: 5,
            }]
        }

        fn handlers(&self) -> Option<Table> {
            None
        }

        fn routes(&self) -> Option<Table> {
            None
        }

        fn kill(&self, _: u32) -> bool {
            false
        }

        fn order(&self, _: Order) -> bool {
            false
        }
    }

    fn answered(question: &[u8]) -> String {
        let (answer, ends) = answer(&Stubborn, question);
        assert_eq!(ends, Ends::Nothing);
        String::from_utf8(answer.encode()).unwrap()
    }

    #[test]
    fn an_order_that_is_not_taken_is_mongrel2s_error() {
        for question in [&b"10:4:stop,0:}]"[..], b"12:6:reload,0:}]"] {
            assert_eq!(
                answered(question),
                "75:4:code,13:SIGNAL_FAILED,5:error,39:raise call failed, can't signal process,}"
            );
        }
    }

    #[test]
    fn what_a_subject_has_not_is_no_status() {
        for question in [
            &b"31:6:status,18:4:what,8:handlers,}]"[..],
            b"29:6:status,16:4:what,6:routes,}]",
        ] {
            assert_eq!(
                answered(question),
                "51:5:error,39:Expected argument what=['net'|'tasks'].,}"
            );
        }
    }

    #[test]
    fn numbers_that_are_too_large_are_the_largest() {
        let answer = answered(b"26:6:status,13:4:what,3:net,}]");
        assert!(
            answer.ends_with("2:-1#1:7#1:0#1:1#1:2#1:3#19:9223372036854775807#1:5#]]}"),
            "{answer}"
        );
    }

    #[test]
    fn help_shows_what_is_added_only_when_asked() {
        let rows = |question| match answer(&Stubborn, question).0 {
            Answer::Table(table) => table.rows.len(),
            Answer::Error { error, .. } => panic!("{error}"),
        };
        assert_eq!(rows(b"10:4:help,0:}]"), MONGREL2.len());
        assert_eq!(
            rows(b"24:4:help,13:4:what,3:all,}]"),
            MONGREL2.len() + OURS.len()
        );
    }
}
