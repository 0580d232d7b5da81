//! What Mongrel2 answered on its control port, asked again here. Answers come byte for byte, but for what differs from run
//! to run (times, ports, ids) and for what docs/COMPATIBILITY.md lists.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::{Operator, number, request, word};
use crate::exchanges::recording::base64;
use crate::support::client::Client;
use crate::support::golden::{self, Golden, data};
use crate::support::peer::{Peer, Replies};
use crate::support::program::Program;
use crate::support::scratch;
use lurcher::control::{Answer, Argument, Cell, Question, Table};

struct Record {
    name: String,
    question: Vec<u8>,
    answer: Option<Vec<u8>>,
    notes: String,
}

fn records() -> Vec<Record> {
    let text = fs::read(data().join("control/control.json")).unwrap();
    let list: Vec<Value> = serde_json::from_slice(&text).unwrap();
    list.iter()
        .map(|record| Record {
            name: record["name"].as_str().unwrap().to_owned(),
            question: base64(record["request_b64"].as_str().unwrap()),
            answer: record["reply_b64"].as_str().map(base64),
            notes: record["notes"].as_str().unwrap_or_default().to_owned(),
        })
        .collect()
}

fn table(bytes: &[u8]) -> Table {
    match Answer::decode(bytes) {
        Some(Answer::Table(table)) => table,
        other => panic!("{other:?} is no table"),
    }
}

struct Server {
    program: Program,
    golden: Golden,
    operator: Operator,
    directory: tempfile::TempDir,
}

fn start() -> Server {
    let directory = scratch();
    let golden = golden::prepare("golden", directory.path());
    let database = golden.database.to_str().unwrap();
    let mut program = Program::lurcher(&["serve", database], directory.path());
    program.listening();
    let socket = directory.path().join("run/control");
    Server {
        program,
        golden,
        operator: Operator::at(&format!("ipc://{}", socket.display())),
        directory,
    }
}

/// Whether an answer is the time, which is a text of digits.
fn is_time(answer: &[u8]) -> bool {
    let table = table(answer);
    table.headers == ["time"]
        && word(&table, 0, "time")
            .parse::<u64>()
            .is_ok_and(|time| time > 1_700_000_000)
}

/// A run of the recording.
struct Replay {
    server: Server,
    peer: Peer,
    /// The connections of the one record that shows some.
    clients: Vec<Client>,
    /// The id of the one that sent a request.
    live: i64,
}

impl Replay {
    fn begin() -> Self {
        let server = start();
        let (send, recv) = &server.golden.handlers[0];
        let peer = Peer::connect(send, recv, Replies::Xpub);
        peer.joined();
        Self {
            server,
            peer,
            clients: Vec::new(),
            live: 0,
        }
    }

    /// As it was then: a connection that sent a request, one that did not, and one that sent a message.
    fn connect(&mut self) {
        let address = self.server.golden.address;
        let mut first = Client::connect(address);
        first
            .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        self.live = request(&self.peer).1.parse().unwrap();
        let mut third = Client::connect(address);
        third.send(b"@chat {\"a\":1}\0").unwrap();
        assert_eq!(request(&self.peer).0, "@chat");
        self.clients = vec![first, Client::connect(address), third];
        super::until(&self.server.operator, "net", |net| net.rows.len() == 3);
    }

    /// The question, about the connection that lives now.
    fn question(&self, record: &Record) -> Vec<u8> {
        if record.name != "kill {\"id\": 2}" {
            return record.question.clone();
        }
        Question {
            command: "kill".to_owned(),
            arguments: vec![("id".to_owned(), Argument::Integer(self.live))],
        }
        .encode()
    }

    fn play(&mut self, record: &Record) {
        if record.notes.starts_with("one HTTP connection that sent") {
            self.connect();
        }
        let recorded = record.answer.as_deref().expect("an answer is recorded");
        let answer = self.server.operator.ask(&self.question(record));
        match record.name.as_str() {
            "version" => {
                let version = concat!("Lurcher/", env!("CARGO_PKG_VERSION"));
                assert_eq!(word(&table(&answer), 0, "version"), version);
            }
            "time" | "raw: trailing NUL like m2sh sends" | "raw: unknown arg" => {
                assert!(is_time(recorded) && is_time(&answer), "{}", record.name);
            }
            "info" => assert_eq!(table(&answer), self.here(table(recorded))),
            "status {\"what\": \"tasks\"}" => assert_eq!(table(&answer), without_system(recorded)),
            "status {\"what\": \"net\"}" if !self.clients.is_empty() => {
                self.check_net(&table(recorded), &table(&answer));
            }
            name => assert_eq!(
                String::from_utf8_lossy(&answer),
                String::from_utf8_lossy(recorded),
                "{name}"
            ),
        }
        if record.notes.starts_with("client of a live") {
            // What Mongrel2 leaves out.
            let told = request(&self.peer);
            assert_eq!(told, ("@*".to_owned(), self.live.to_string()));
        }
    }

    /// What was recorded about a server there, as it is about this one.
    fn here(&self, mut info: Table) -> Table {
        let here = self.server.directory.path().to_str().unwrap();
        info.rows[0][0] = Cell::from(i64::from(self.server.golden.address.port()));
        for cell in &mut info.rows[0] {
            if let Cell::Text(text) = cell {
                *text = text.replace("/var/m2run", here);
            }
        }
        info
    }

    fn check_net(&self, recorded: &Table, answer: &Table) {
        assert_eq!(answer.headers, recorded.headers);
        assert_eq!(answer.rows.len(), recorded.rows.len());
        for then in 0..recorded.rows.len() {
            let kind = number(recorded, then, "type");
            let now = (0..answer.rows.len()).find(|row| number(answer, *row, "type") == kind);
            let now = now.unwrap_or_else(|| panic!("no type {kind} in {answer:?}"));
            for header in ["bytes_read", "bytes_written"] {
                let (now, then) = (number(answer, now, header), number(recorded, then, header));
                assert_eq!(now, then, "{header} of type {kind}");
            }
            for header in ["last_ping", "last_read", "last_write"] {
                assert!((0..20).contains(&number(answer, now, header)), "{header}");
            }
            match kind {
                0 => assert_eq!(number(answer, now, "id"), -1),
                1 => assert_eq!(number(answer, now, "id"), self.live),
                _ => assert!(number(answer, now, "id") > 0),
            }
        }
    }
}

/// All recorded tasks but the two of Mongrel2's coroutine library.
fn without_system(recorded: &[u8]) -> Table {
    let mut tasks = table(recorded);
    tasks
        .rows
        .retain(|row| row[1] == Cell::Bool(false) && row[2] != Cell::from(""));
    for (row, id) in tasks.rows.iter_mut().zip(1_i64..) {
        row[0] = Cell::from(id);
    }
    tasks
}

/// `stop` and `terminate` end a server of their own. Mongrel2's answer to `terminate` was lost as it ended.
fn end(record: &Record) {
    let mut server = start();
    let answer = server.operator.ask(&record.question);
    if let Some(recorded) = &record.answer {
        assert_eq!(&answer, recorded, "{}", record.name);
    }
    assert_eq!(word(&table(&answer), 0, "msg"), "signal sent to server");
    assert!(server.program.ended().success(), "{}", record.name);
}

#[test]
fn every_recorded_answer_comes_again() {
    let mut replay = Replay::begin();
    let mut stopped = false;
    let records = records();
    assert_eq!(records.len(), 37);
    for record in &records {
        match record.name.as_str() {
            "stop" | "terminate" => end(record),
            _ if stopped => {
                assert_eq!(record.answer, None, "{}", record.name);
                let operator = &replay.server.operator;
                operator.send(&record.question);
                assert_eq!(operator.heard(Duration::from_millis(300)), None);
            }
            _ => replay.play(record),
        }
        stopped |= record.name == "control_stop";
    }
    assert!(replay.server.program.alive(), "{}", replay.server.program);
}
