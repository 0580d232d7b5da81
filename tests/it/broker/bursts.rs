//! More requests than anybody can answer: what is kept is bounded, and who is refused is told why and when to come again.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use super::Device;
use super::load::closes;
use crate::support::client::{Answer, Asked, Client, split_answer};
use crate::support::servers;
use crate::support::{PATIENCE, free_port, scratch};

/// Requests of the burst.
const REQUESTS: usize = 100_000;

/// How many may wait.
const QUEUE: usize = 1_000;

/// What each brings along.
const BODY: usize = 2_048;

/// The most that the broker may take for it, in KiB: all at once would be 200 MB.
const MEMORY_KIB: u64 = 96 << 10;

/// Seconds that a refusal asks for.
fn retry_after(answer: &Answer) -> u64 {
    let value = answer.header("retry-after").expect("Retry-After");
    let value = std::str::from_utf8(value).expect("digits");
    value.parse().expect("whole seconds")
}

#[test]
fn a_hundred_thousand_requests_for_stuck_workers_are_refused_in_bounded_memory() {
    let directory = scratch();
    let context = zmq::Context::new();
    let [push, sub] = [zmq::PUSH, zmq::SUB].map(|kind| context.socket(kind).unwrap());
    let specs = [(); 2].map(|()| format!("tcp://127.0.0.1:{}", free_port()));
    sub.set_subscribe(b"").unwrap();
    sub.set_rcvhwm(0).unwrap();
    for (socket, spec) in [&push, &sub].into_iter().zip(&specs) {
        let patience = i32::try_from(PATIENCE.as_millis()).unwrap();
        socket.set_linger(0).unwrap();
        socket.set_rcvtimeo(patience).unwrap();
        socket.set_sndtimeo(patience).unwrap();
        socket.bind(spec).unwrap();
    }
    let queue = QUEUE.to_string();
    let device = Device::start_at(
        directory.path(),
        &[[&specs[0], &specs[1]]],
        &["--slots", "1", "--queue", &queue, "--wait", "600"],
    );
    let mut stuck = device.own().ready();
    let begin = Instant::now();
    let pushing = thread::spawn(move || {
        let headers = r#"{"PATH":"/hold/x","METHOD":"POST","VERSION":"HTTP/1.1","URI":"/hold/x","PATTERN":"/"}"#;
        let body = "x".repeat(BODY);
        for id in 1..=REQUESTS {
            let message = format!(
                "server {id} /hold/x {}:{headers},{}:{body},",
                headers.len(),
                body.len()
            );
            push.send(&message, 0).expect("the broker reads on");
        }
        push
    });
    // The worker has one, perhaps some more on their way; so many wait, and all others are answered.
    let held = QUEUE + 8;
    let mut refused = HashSet::new();
    while refused.len() < REQUESTS - held {
        let message = sub.recv_bytes(0).unwrap_or_else(|error| {
            panic!(
                "{} of {REQUESTS} refused: {error}\n{}",
                refused.len(),
                device.program
            )
        });
        let mut words = message.splitn(3, |byte| *byte == b' ');
        let id = words
            .nth(1)
            .and_then(|id| id.split(|byte| *byte == b':').nth(1));
        let id = std::str::from_utf8(id.expect("an id")).expect("digits");
        let payload = words.next().expect("a payload");
        // The end of a connection is said with nothing.
        if payload.is_empty() {
            continue;
        }
        let (answer, _) = split_answer(payload, Asked::Other, true).expect("a whole answer");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(!answer.body.is_empty(), "{answer:?}");
        assert!((1..=120).contains(&retry_after(&answer)), "{answer:?}");
        assert!(
            refused.insert(id.trim_end_matches(',').to_owned()),
            "{id} twice"
        );
    }
    let peak = device.peak();
    println!(
        "{} refused within {:?}, {peak} KiB at most",
        refused.len(),
        begin.elapsed()
    );
    assert!(peak < MEMORY_KIB, "{peak} KiB");
    stuck.kill();
    drop(pushing.join().expect("all are sent"));
}

#[test]
fn clients_of_a_full_queue_are_told_when_to_come_again() {
    servers::each("", |server| {
        let options = ["--slots", "1", "--queue", "4", "--wait", "600"];
        let device = Device::start(&[&server], &options);
        let mut stuck = device.own().ready();
        let request = b"GET /hold/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let ask = || {
            let mut client = Client::connect(server.address);
            client.send(request).expect("send");
            client
        };
        let mut held = vec![ask()];
        stuck.has_begun("/hold/", 1);
        let (mut refused, end) = (0, Instant::now() + PATIENCE);
        while refused < 20 {
            assert!(Instant::now() < end, "{}", device.program);
            let mut client = ask();
            match client.try_answer(Asked::default(), Duration::from_millis(100)) {
                Some(answer) => {
                    assert_eq!(answer.status, 503, "{answer:?}");
                    assert!(retry_after(&answer) >= 1, "{answer:?}");
                    if closes(&answer) {
                        client.rest();
                    }
                    refused += 1;
                }
                None => held.push(client),
            }
        }
        // The one at work, four that wait, and what may be on its way to the worker.
        assert!((5..=7).contains(&held.len()), "{} are held", held.len());
        // They are not forgotten.
        for done in 1..=held.len() {
            stuck.has_begun("/hold/", done);
            stuck.release();
        }
        for client in &mut held {
            assert_eq!(client.answer().status, 200);
        }
    });
}

#[test]
fn who_waits_too_long_is_told_so() {
    servers::each("", |server| {
        let options = ["--slots", "1", "--wait", "0.3"];
        let device = Device::start(&[&server], &options);
        let ask = |path: &str| {
            let mut client = Client::connect(server.address);
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client.send(request.as_bytes()).expect("send");
            client
        };
        // No worker at all.
        let answer = ask("/now").answer();
        assert_eq!(answer.status, 503, "{answer:?}");
        retry_after(&answer);
        // All busy.
        let mut stuck = device.own().ready();
        let mut held = ask("/hold/x");
        stuck.has_begun("/hold/", 1);
        let answer = ask("/now").answer();
        assert_eq!(answer.status, 503, "{answer:?}");
        retry_after(&answer);
        stuck.release();
        assert_eq!(held.answer().status, 200);
        assert_eq!(ask("/now").answer().status, 200);
    });
}
