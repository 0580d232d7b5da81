//! A broker that is killed under load, and its successor.

use std::process::Command;
use std::time::{Duration, Instant};

use super::Device;
use super::workers::Worker;
use crate::support::PATIENCE;
use crate::support::client::{Asked, Client};
use crate::support::servers::{self, Kind, Server};

/// How many requests a broker has open, by its control port.
pub(super) fn open(control: &str) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
    let output = command
        .args(["control", "--control", control, "info"])
        .output();
    let text = String::from_utf8(output.expect("it runs").stdout).expect("text");
    let last = text.split_ascii_whitespace().last().unwrap_or_default();
    last.parse().unwrap_or_default()
}

/// Until workers are back.
const BACK: Duration = Duration::from_secs(1);

#[test]
fn workers_come_back_to_a_broker_that_was_killed_within_a_second() {
    servers::each("", |server| {
        let mut device = Device::start(&[&server], &["--slots", "1"]);
        let mut workers: Vec<Worker> = (0..4).map(|_| device.own().ready()).collect();
        for time in 2..=4 {
            device.replace();
            let begin = Instant::now();
            for worker in &mut workers {
                worker.program.said("worker ready", time);
            }
            let took = begin.elapsed();
            println!("back after {took:?}");
            // Twice that on a machine which has other things to do.
            assert!(took < 2 * BACK, "{took:?}");
            let mut client = Client::connect(server.address);
            client
                .send(b"GET /now HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .expect("send");
            assert_eq!(client.answer().status, 200);
        }
    });
}

#[test]
fn a_successor_keeps_to_the_deadline_and_speaks_as_its_servers_do() {
    for kind in [Kind::Lurcher, Kind::Mongrel2] {
        let Some(server) = Server::start(kind, "tnetstring", "") else {
            continue;
        };
        let mut device = Device::start(&[&server], &["--deadline", "4"]);
        let mut worker = device.own().ready();
        let mut client = Client::connect(server.address);
        client
            .send(b"POST /hold/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            .expect("send");
        worker.has_begun("/hold/", 1);
        device.replace();
        worker.program.said("worker ready", 2);
        // Nothing has come from the server since.
        let answer = client.try_answer(Asked::default(), PATIENCE);
        let answer = answer.unwrap_or_else(|| panic!("{kind:?}: silent\n{}", device.program));
        assert_eq!(answer.status, 504, "{kind:?}: {answer:?}");
        worker.program.said("in tnetstring", 1);
    }
}

#[test]
fn what_workers_hold_when_their_broker_dies_is_answered_and_the_rest_is_a_502() {
    for kind in [Kind::Lurcher, Kind::Mongrel2] {
        let Some(server) = Server::start(kind, "json", "") else {
            continue;
        };
        let control = server.directory().join("broker.control");
        let control = format!("ipc://{}", control.display());
        let options = ["--slots", "1", "--control", &control];
        let mut device = Device::start(&[&server], &options);
        let mut workers = [device.own().ready(), device.own().ready()];
        let ask = |path: &str| {
            let mut client = Client::connect(server.address);
            let request =
                format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
            client.send(request.as_bytes()).expect("send");
            client
        };
        let mut held = [ask("/hold/a"), ask("/hold/b")];
        for worker in &mut workers {
            worker.has_begun("/hold/", 1);
        }
        // Nobody has begun these.
        let mut waiting = [ask("/now/c"), ask("/now/d")];
        // What it has not even read is known to nobody but a Lurcher.
        while open(&control) < 4 {
            std::thread::yield_now();
        }
        device.replace();
        for worker in &mut workers {
            worker.program.said("worker ready", 2);
            worker.release();
        }
        for client in &mut held {
            let answer = client.try_answer(Asked::default(), PATIENCE);
            let answer = answer.unwrap_or_else(|| panic!("{kind:?}: silent\n{}", device.program));
            assert_eq!(answer.status, 200, "{kind:?}: {answer:?}");
            assert!(
                answer.body.ends_with(b"/hold/a") || answer.body.ends_with(b"/hold/b"),
                "{answer:?}"
            );
        }
        for client in &mut waiting {
            let answer = client.try_answer(Asked::default(), PATIENCE);
            let answer = answer.unwrap_or_else(|| panic!("{kind:?}: silent\n{}", device.program));
            assert!([200, 502].contains(&answer.status), "{kind:?}: {answer:?}");
        }
    }
}
