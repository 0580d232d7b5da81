//! Load through a feed while workers come and go: no request lost, none answered twice, nobody waits for ever.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use lurcher::broker::{Feed, Settings};

use super::running::Running;
use super::{Plain, feed, request};
use crate::support::PATIENCE;
use crate::support::client::{Asked, Client};
use crate::support::peer::{Peer, address};
use crate::support::servers::{self, Kind, Server};

/// Requests of a load, all clients together.
const REQUESTS: usize = 10_000;

/// What the clients of a load have in common.
#[derive(Default)]
struct Load {
    asked: AtomicUsize,
    /// Nobody begins a request.
    rests: AtomicBool,
    stop: AtomicBool,
    wrong: Mutex<Vec<String>>,
}

/// Asks one request after the other until it is told to stop. Gives what went wrong.
fn load(server: &Server, number: usize, all: &Load) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut client = Client::connect(server.address);
    while !all.stop.load(Ordering::Relaxed) {
        if all.rests.load(Ordering::Relaxed) {
            thread::yield_now();
            continue;
        }
        let request = all.asked.fetch_add(1, Ordering::Relaxed);
        let (method, word) = (["GET", "POST"][request % 2], format!("/{number}-{request}"));
        let text =
            format!("{method} {word} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        client.send(text.as_bytes()).unwrap();
        match client.try_answer(Asked::default(), PATIENCE) {
            Some(answer) if answer.status == 200 && answer.body.ends_with(word.as_bytes()) => {}
            other => {
                wrong.push(format!("{method} {word}: {other:?}"));
                client = Client::connect(server.address);
            }
        }
        // A second answer would be taken for that of the next request, and does not end with its word.
    }
    wrong
}

/// Loads a server with some clients while `meanwhile` runs, by at least [`REQUESTS`]; nothing may go wrong.
fn under_load(server: &Server, meanwhile: impl FnOnce(&Load)) -> usize {
    let all = Load::default();
    thread::scope(|scope| {
        for number in 0..8 {
            let all = &all;
            scope.spawn(move || {
                let found = load(server, number, all);
                all.wrong.lock().unwrap().extend(found);
            });
        }
        meanwhile(&all);
        while all.asked.load(Ordering::Relaxed) < REQUESTS {
            thread::yield_now();
        }
        all.stop.store(true, Ordering::Relaxed);
    });
    let wrong = all.wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} went wrong: {}",
        wrong.len(),
        wrong.join("\n")
    );
    all.asked.into_inner()
}

#[test]
fn workers_that_are_drained_and_replaced_under_load_cost_no_request() {
    servers::each("", |server| {
        let feed = feed(&server);
        let mut workers = vec![feed.process(), feed.process()];
        feed.ready(2);
        let asked = under_load(&server, |_| {
            for round in 0..20 {
                let mut fresh = feed.process();
                feed.ready(3);
                std::mem::swap(&mut workers[round % 2], &mut fresh);
                let pid = fresh.id();
                feed.ask(move |feed| feed.drain_worker(pid));
                feed.until("the worker has nothing open", move |feed| {
                    feed.counts(pid).open == 0
                });
                fresh.kill();
                feed.until("the worker is gone", move |feed| {
                    feed.counts(pid).connected == 0
                });
            }
        });
        println!("{asked} requests");
        let waiting = feed.ask(Feed::waiting);
        assert_eq!(waiting, 0);
        drop(workers);
    });
}

#[test]
fn another_feed_takes_over_under_load_and_no_request_is_lost() {
    servers::each("", |server| {
        let mut current = feed(&server);
        let mut worker = current.process();
        current.ready(1);
        let asked = under_load(&server, |load| {
            for _ in 0..5 {
                let next = feed(&server);
                let fresh = next.process();
                next.ready(1);
                // What Mongrel2 deals to a connection in the very millisecond of its end is lost, whoever ends it.
                load.rests
                    .store(server.kind == Kind::Mongrel2, Ordering::Relaxed);
                std::mem::replace(&mut current, next).stop();
                load.rests.store(false, Ordering::Relaxed);
                worker.kill();
                worker = fresh;
            }
        });
        println!("{asked} requests");
        worker.kill();
    });
}

#[test]
fn thousands_wait_for_a_worker_and_each_is_answered_once() {
    const COUNT: u32 = 12_000;
    let server = Plain::bind();
    let feed = server.feed();
    let Plain { push, sub, .. } = server;
    let pushing = thread::spawn(move || {
        for id in 1..=COUNT {
            let message = request(id, "POST", &format!("/{id}"), "x");
            push.send(message, 0).unwrap();
        }
        push
    });
    // No more than a front keeps: the rest stays with the server.
    feed.until("the feed is full", |feed| feed.waiting() >= 4096);
    assert!(feed.ask(Feed::waiting) <= 4096);
    let worker = feed.worker();
    for id in 1..=COUNT {
        let message = worker
            .recv(PATIENCE)
            .unwrap_or_else(|| panic!("no request {id}"));
        let (sender, own, ..) = address(&message);
        assert_eq!(own, id.to_string(), "in their order");
        worker.reply(sender, own, &super::answer(own));
    }
    let mut seen = HashSet::new();
    for _ in 0..COUNT {
        let reply = sub.recv_bytes(0).expect("a reply");
        assert!(seen.insert(reply), "twice");
    }
    feed.until("all are answered", |feed| feed.open() == 0);
    drop(pushing.join().unwrap());
}

#[test]
fn a_server_that_does_not_read_stops_its_workers_and_no_others() {
    let (slow, brisk) = (Plain::bind(), Plain::bind());
    slow.sub.set_rcvhwm(1).unwrap();
    let feed = Running::start(
        &[(&slow.send, &slow.recv), (&brisk.send, &brisk.recv)],
        Settings::default,
    );
    slow.listens(&feed, 0);
    brisk.listens(&feed, 1);
    let worker = feed.worker();
    let (send, recv) = feed.ask(|feed| {
        let (send, recv) = feed.specs().remove(1);
        (send.to_string(), recv.to_string())
    });
    let other = Peer::connect(&send, &recv, crate::support::peer::Replies::Xpub);
    other.joined();
    slow.push(&request(1, "GET", "/", ""));
    worker.recv(PATIENCE).expect("a request");
    // A stream larger than all that is allowed to wait between here and there; the socket of the worker takes the rest.
    let piece = vec![b'x'; 64 << 10];
    let pieces = 2_000;
    let before = resident();
    for _ in 0..pieces {
        worker.reply("the-sender", "1", &piece);
    }
    for id in 1..200 {
        brisk.push(&request(id, "GET", "/", ""));
        let message = other.recv(PATIENCE).expect("a request");
        let (sender, own, ..) = address(&message);
        other.reply(sender, own, &super::answer(own));
        assert!(brisk.reply().ends_with(own.as_bytes()));
    }
    println!("{} KiB more", resident().saturating_sub(before));
    for _ in 0..pieces {
        assert_eq!(slow.reply().len(), piece.len() + "the-sender 1:1, ".len());
    }
}

/// What this process has in memory, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).unwrap()
}
