//! What Mongrel2 answered on its control port, asked again here. Answers come byte for byte, but for what differs from run
//! to run (times, ports, ids) and for what docs/COMPATIBILITY.md lists.

use std::fs;

use serde_json::Value;

use super::{Operator, number, request, word};
use crate::exchanges::recording::base64;
use crate::support::client::Client;
use crate::support::golden::{self, Golden, data};
use crate::support::peer::{Peer, Replies};
use crate::support::program::Program;
use crate::support::scratch;
use lurcher::control::{Answer, Cell, Table};

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

/// One second-old time for another, both texts of digits.
fn is_time(answer: &[u8]) -> bool {
    let table = table(answer);
    table.headers == ["time"]
        && word(&table, 0, "time")
            .parse::<u64>()
            .is_ok_and(|time| time > 1_700_000_000)
}

#[test]
fn every_recorded_answer_comes_again() {
    let mut server = start();
    let (send, recv) = &server.golden.handlers[0];
    let peer = Peer::connect(send, recv, Replies::Xpub);
    peer.joined();
    let mut client = None;
    let mut live = 0;
    let mut played = 0;
    let mut stopped = false;
    for record in records() {
        let Record {
            name,
            question,
            answer: recorded,
            notes,
        } = &record;
        played += 1;
        if name == "stop" || name == "terminate" {
            // Each ends a server.
            let mut server = start();
            let answer = server.operator.ask(question);
            // Mongrel2's answer to `terminate` was lost as it ended; it is the same as to `stop`.
            if let Some(recorded) = recorded {
                assert_eq!(&answer, recorded, "{name}");
            }
            assert_eq!(word(&table(&answer), 0, "msg"), "signal sent to server");
            assert!(server.program.ended().success(), "{name}");
            continue;
        }
        if stopped {
            assert_eq!(*recorded, None, "{name}");
            server.operator.send(question);
            assert_eq!(
                server.operator.heard(std::time::Duration::from_millis(300)),
                None
            );
            continue;
        }
        let recorded = recorded.as_deref().expect("an answer is recorded");
        if notes.starts_with("one HTTP connection that sent a request") {
            // As it was then: one that sent a request, one that did not.
            let mut first = Client::connect(server.golden.address);
            first
                .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            live = request(&peer).1.parse().unwrap();
            let idle = Client::connect(server.golden.address);
            super::until(&server.operator, "net", |net| net.rows.len() == 2);
            client = Some((first, idle));
        }
        let mut question = question.clone();
        if name == "kill {\"id\": 2}" {
            let id = live.to_string();
            let dict = format!("2:id,{}:{id}#", id.len());
            let list = format!("4:kill,{}:{dict}}}", dict.len());
            question = format!("{}:{list}]", list.len()).into_bytes();
        }
        let answer = server.operator.ask(&question);
        match name.as_str() {
            "version" => {
                let version = concat!("Lurcher/", env!("CARGO_PKG_VERSION"));
                assert_eq!(word(&table(&answer), 0, "version"), version);
            }
            "time" | "raw: trailing NUL like m2sh sends" | "raw: unknown arg" => {
                assert!(is_time(recorded) && is_time(&answer), "{name}");
            }
            "info" => {
                let (mut recorded, answer) = (table(recorded), table(&answer));
                recorded.rows[0][0] = Cell::from(i64::from(server.golden.address.port()));
                for cell in &mut recorded.rows[0] {
                    if let Cell::Text(text) = cell {
                        let here = server.directory.path().to_str().unwrap();
                        *text = text.replace("/var/m2run", here);
                    }
                }
                assert_eq!(answer, recorded);
            }
            "status {\"what\": \"tasks\"}" => {
                // All but the two tasks of its coroutine library.
                let (mut recorded, answer) = (table(recorded), table(&answer));
                recorded
                    .rows
                    .retain(|row| row[1] == Cell::Bool(false) && row[2] != Cell::from(""));
                for (row, id) in recorded.rows.iter_mut().zip(1_i64..) {
                    row[0] = Cell::from(id);
                }
                assert_eq!(answer, recorded);
            }
            "status {\"what\": \"net\"}" if client.is_some() => {
                let (recorded, mut answer) = (table(recorded), table(&answer));
                assert_eq!(answer.headers, recorded.headers);
                answer.rows.sort_by_key(|row| row[0] == Cell::from(-1_i64));
                for row in 0..2 {
                    for header in ["type", "bytes_read", "bytes_written"] {
                        assert_eq!(
                            number(&answer, row, header),
                            number(&recorded, row, header),
                            "{header}"
                        );
                    }
                    for header in ["last_ping", "last_read", "last_write"] {
                        assert!((0..20).contains(&number(&answer, row, header)), "{header}");
                    }
                }
                assert_eq!(number(&answer, 0, "id"), live);
                assert_eq!(number(&answer, 1, "id"), -1);
            }
            _ => assert_eq!(
                String::from_utf8_lossy(&answer),
                String::from_utf8_lossy(recorded),
                "{name}"
            ),
        }
        if name == "kill {\"id\": 2}" && notes.starts_with("client of a live") {
            assert_eq!(request(&peer), ("@*".to_owned(), live.to_string()));
        }
        stopped = name == "control_stop";
    }
    assert!(server.program.alive(), "{}", server.program);
    assert_eq!(played, 37);
}
