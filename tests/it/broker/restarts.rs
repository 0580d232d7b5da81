//! A broker that is killed under load, and its successor.

use std::time::{Duration, Instant};

use super::Device;
use super::workers::Worker;
use crate::support::PATIENCE;
use crate::support::client::{Asked, Client};
use crate::support::servers::{self, Kind, Server};

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
            device.is_heard_by(1);
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
        let mut device = Device::start(&[&server], &["--slots", "1"]);
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
        while device.figure("open") < 4 {
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

#[test]
fn a_worker_that_comes_back_with_a_request_is_as_busy_as_before() {
    servers::each("", |server| {
        let mut device = Device::start(&[&server], &["--slots", "1"]);
        let mut workers = [device.own().ready(), device.own().ready()];
        let ask = |method: &str, path: &str| {
            let mut client = Client::connect(server.address);
            let request =
                format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
            client.send(request.as_bytes()).expect("send");
            client
        };
        let mut held = ask("POST", "/hold/a");
        let has_it = |worker: &Worker| worker.program.lines().iter().any(|l| l == "begun /hold/a");
        let end = Instant::now() + PATIENCE;
        while !workers.iter().any(has_it) {
            assert!(Instant::now() < end, "nobody has it");
        }
        let busy = usize::from(has_it(&workers[1]));
        device.replace();
        device.is_heard_by(1);
        // They are there before anybody is back.
        let mut others: Vec<Client> = (0..10).map(|_| ask("GET", "/now")).collect();
        for worker in &mut workers {
            worker.program.said("worker ready", 2);
        }
        others.extend((0..10).map(|_| ask("GET", "/now")));
        let idle = format!("{} /now", workers[1 - busy].program.id());
        for client in &mut others {
            let answer = client.try_answer(Asked::default(), PATIENCE);
            let answer = answer.unwrap_or_else(|| panic!("silent\n{}", device.program));
            assert_eq!(String::from_utf8_lossy(&answer.body), idle);
        }
        workers[busy].release();
        let answer = held.try_answer(Asked::default(), PATIENCE);
        assert!(answer.is_some_and(|answer| answer.body.ends_with(b"/hold/a")));
        // And then as idle.
        workers[1 - busy].kill();
        let answer = ask("GET", "/now").try_answer(Asked::default(), PATIENCE);
        assert_eq!(answer.expect("an answer").status, 200);
    });
}
