//! Single requests that end otherwise than most: those that nobody waits for, those that kill, those that take too long, those that
//! go on for ever, and those that belong to one worker.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Device;
use super::workers::Worker;
use crate::support::PATIENCE;
use crate::support::client::{Answer, Asked, Client};
use crate::support::exposition::Figures;
use crate::support::free_port;
use crate::support::servers::{self, Server};

/// Sends a request without a body; the answer is left to come.
fn ask(server: &Server, method: &str, path: &str) -> Client {
    let mut client = Client::connect(server.address);
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    client.send(request.as_bytes()).expect("send");
    client
}

/// The answer, or what the device said.
fn answered(client: &mut Client, device: &Device) -> Answer {
    let answer = client.try_answer(Asked::default(), PATIENCE);
    answer.unwrap_or_else(|| panic!("silent\n{}", device.program))
}

#[test]
fn a_worker_is_told_that_nobody_waits_any_more_and_is_free_again() {
    servers::each("", |server| {
        let device = Device::start(&[&server], &["--slots", "1"]);
        let mut worker = device.own().ready();
        for time in 1..=5 {
            let client = ask(&server, "GET", "/hold/x");
            worker.has_begun("/hold/x", time);
            drop(client);
            worker.program.said("cancelled", time);
            let answer = answered(&mut ask(&server, "GET", "/now"), &device);
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        // Whoever leaves while it waits has cost nobody anything.
        let mut held = ask(&server, "GET", "/hold/y");
        worker.has_begun("/hold/y", 1);
        drop(ask(&server, "GET", "/hold/z"));
        let mut last = ask(&server, "GET", "/now");
        worker.release();
        assert_eq!(answered(&mut held, &device).status, 200);
        assert_eq!(answered(&mut last, &device).status, 200);
    });
}

#[test]
fn a_request_that_kills_two_workers_kills_no_third() {
    servers::each("", |server| {
        for (plain, path) in [(false, "/die"), (false, "/crash"), (true, "/die")] {
            let device = Device::start(&[&server], &["--slots", "1"]);
            let kind = if plain { device.plain() } else { device.own() };
            let mut workers: Vec<Worker> = (0..4).map(|_| kind.ready()).collect();
            let answer = answered(&mut ask(&server, "GET", path), &device);
            assert!((500..=502).contains(&answer.status), "{answer:?}");
            assert!(!answer.body.is_empty(), "{answer:?}");
            for _ in 0..4 {
                let answer = answered(&mut ask(&server, "GET", "/now"), &device);
                assert_eq!(answer.status, 200, "{answer:?}\n{}", device.program);
            }
            let mut alive = || {
                let alive = workers.iter_mut().map(|worker| worker.program.alive());
                alive.filter(|alive| *alive).count()
            };
            // An end is known a little later than it is seen by others.
            let end = Instant::now() + PATIENCE;
            while alive() > 2 && Instant::now() < end {
                std::thread::yield_now();
            }
            assert_eq!(alive(), 2, "plain: {plain}, {path}");
        }
    });
}

#[test]
fn a_deadline_ends_what_is_at_work_and_what_waits() {
    servers::each("", |server| {
        let device = Device::start(&[&server], &["--slots", "1", "--deadline", "0.5"]);
        let mut worker = device.own().ready();
        let begin = Instant::now();
        let mut late = ask(&server, "GET", "/hold/x");
        worker.has_begun("/hold/x", 1);
        // Whether it still waits then or has just been begun.
        let mut waits = ask(&server, "GET", "/hold/y");
        for client in [&mut late, &mut waits] {
            let answer = answered(client, &device);
            assert!([503, 504].contains(&answer.status), "{answer:?}");
            assert!(!answer.body.is_empty(), "{answer:?}");
        }
        let took = begin.elapsed();
        assert!(took >= Duration::from_millis(400), "{took:?}");
        // Its late answer reaches nobody.
        worker.release();
        let answer = answered(&mut ask(&server, "GET", "/now/after"), &device);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.ends_with(b"/now/after"), "{answer:?}");
    });
}

#[test]
fn a_stream_takes_no_slot_for_ever() {
    servers::each("", |server| {
        for plain in [false, true] {
            let device = Device::start(&[&server], &["--slots", "1"]);
            let kind = if plain { device.plain() } else { device.own() };
            let mut worker = kind.ready();
            let mut stream = ask(&server, "GET", "/stream/x");
            stream.upto(b"begins");
            for _ in 0..3 {
                let answer = answered(&mut ask(&server, "GET", "/now"), &device);
                assert_eq!(answer.status, 200, "{answer:?}");
            }
            worker.release();
            stream.upto(b"/stream/x\r\n0\r\n\r\n");
        }
    });
}

#[test]
fn an_answer_of_known_length_is_not_cut_off_by_a_stop() {
    servers::each("", |server| {
        let mut device = Device::start(&[&server], &["--slots", "1"]);
        let mut worker = device.own().ready();
        let mut long = ask(&server, "GET", "/stream/length/x");
        long.upto(b"begins");
        // It is a stream by now.
        let answer = answered(&mut ask(&server, "GET", "/now"), &device);
        assert_eq!(answer.status, 200, "{answer:?}");
        // Whose worker is done with it a little later.
        let end = Instant::now() + PATIENCE;
        while device.figure("open") > 1 && Instant::now() < end {}
        device.program.signal("TERM");
        // That the other is done may not have been said yet.
        device.program.said("that are open", 1);
        worker.release();
        long.upto(b"/stream/length/x");
        assert!(device.program.ended().success(), "{}", device.program);
    });
}

#[test]
fn a_worker_that_falls_silent_gets_no_more_and_what_it_had_ends() {
    let Some(server) = Server::start(servers::Kind::Lurcher, "json", "") else {
        return;
    };
    let device = Device::start(&[&server], &["--slots", "1"]);
    let mut silent = device.own().ready();
    let mut held = ask(&server, "POST", "/hold/x");
    silent.has_begun("/hold/x", 1);
    silent.program.signal("STOP");
    // Another is there, and gets all there is.
    let _brisk = device.own().ready();
    for _ in 0..20 {
        let answer = answered(&mut ask(&server, "GET", "/now"), &device);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let answer = held.try_answer(Asked::default(), PATIENCE * 3);
    let answer = answer.unwrap_or_else(|| panic!("silent\n{}", device.program));
    assert_eq!(answer.status, 502, "{answer:?}");
    // It wakes, and what it says to that request is said to nobody.
    silent.program.signal("CONT");
    silent.release();
    for _ in 0..20 {
        let answer = answered(&mut ask(&server, "GET", "/now/after"), &device);
        assert!(answer.body.ends_with(b"/now/after"), "{answer:?}");
    }
}

#[test]
fn what_has_one_key_goes_to_one_worker_and_keys_are_spread() {
    servers::each("", |server| {
        let figures = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let address = figures.to_string();
        let options = ["--sticky", "path:2", "--metrics", &address];
        let device = Device::start(&[&server], &options);
        let _workers: Vec<Worker> = (0..4).map(|_| device.own().slots(4).ready()).collect();
        let mut of: HashMap<usize, HashSet<String>> = HashMap::new();
        for round in 0..3 {
            for key in 0..24 {
                let path = format!("/now/key-{key}/{round}");
                let answer = answered(&mut ask(&server, "GET", &path), &device);
                let body = String::from_utf8(answer.body).expect("text");
                let (pid, _) = body.split_once(' ').expect("two words");
                of.entry(key).or_default().insert(pid.to_owned());
                // A worker that is not done with the last request yet is passed over, where others have nothing to do.
                Figures::until(figures, "it is done", |figures| {
                    figures.count("lurcher_pool_in_flight", &[]) == 0
                });
            }
        }
        assert!(of.values().all(|pids| pids.len() == 1), "{of:?}");
        let all: HashSet<&String> = of.values().flatten().collect();
        assert!(all.len() >= 3, "{of:?}");
    });
}
