//! Workers of the broker's dialect at Lurcher's own front, with no broker between: the same promises.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::kills::{kill_again_and_again, leave_one_after_the_other};
use super::workers::{Kind, Worker};
use crate::support::client::{Asked, Client};
use crate::support::front::conf;
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

/// A front whose one handler takes workers.
struct Embedded {
    program: Program,
    address: SocketAddr,
    workers: String,
    plain: [String; 2],
    _directory: tempfile::TempDir,
}

impl Embedded {
    /// `more` is what else the handler has.
    fn start(more: &str) -> Self {
        let directory = scratch();
        let [workers, send, recv] = [(); 3].map(|()| format!("tcp://127.0.0.1:{}", free_port()));
        let file = conf(directory.path(), 0, &send, &recv, "");
        let text = fs::read_to_string(&file).expect("a configuration");
        let handler = format!("recv_ident='', workers='{workers}'{more})");
        let text = text.replacen("recv_ident='')", &handler, 1);
        fs::write(&file, text).expect("write");
        let mut program = Program::lurcher(&["serve", "main.conf"], directory.path());
        let address = program.listening();
        Self {
            program,
            address,
            workers,
            plain: [send, recv],
            _directory: directory,
        }
    }
}

#[test]
fn a_hundred_killed_workers_cost_a_reason_each() {
    let front = Embedded::start(", slots=1");
    let kind = Kind::own(&front.workers);
    kill_again_and_again(front.address, &kind, 1, &|| front.program.to_string());
}

#[test]
fn workers_that_leave_one_after_the_other_cost_nothing() {
    let front = Embedded::start(", slots=1");
    let kind = Kind::own(&front.workers);
    leave_one_after_the_other(front.address, &kind, &|| front.program.to_string());
}

#[test]
fn both_kinds_of_workers_share_a_route_and_its_queue_is_bounded() {
    let front = Embedded::start(", slots=1, queue=4");
    let mut workers = [
        Kind::own(&front.workers).ready(),
        Kind::plain(&front.plain).ready(),
    ];
    let ask = || {
        let mut client = Client::connect(front.address);
        client
            .send(b"GET /hold/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("send");
        client
    };
    let mut held = vec![ask(), ask()];
    for worker in &mut workers {
        worker.has_begun("/hold/x", 1);
    }
    let mut refused = 0;
    while refused < 10 {
        let mut client = ask();
        match client.try_answer(Asked::default(), Duration::from_millis(100)) {
            Some(answer) => {
                assert_eq!(answer.status, 503, "{answer:?}");
                assert!(answer.header("retry-after").is_some(), "{answer:?}");
                refused += 1;
            }
            None => held.push(client),
        }
        assert!(held.len() <= 8, "{}", front.program);
    }
    assert!((6..=8).contains(&held.len()), "{} are held", held.len());
    // All are answered, whoever has them. What is not begun when its worker is told is answered the next time.
    let end = Instant::now() + PATIENCE;
    while !held.is_empty() {
        assert!(Instant::now() < end, "{}", front.program);
        workers.iter_mut().for_each(Worker::release);
        held.retain_mut(|client| {
            let answer = client.try_answer(Asked::default(), Duration::from_millis(20));
            let status = answer.map(|answer| answer.status);
            assert!([None, Some(200)].contains(&status), "{status:?}");
            status.is_none()
        });
    }
}
