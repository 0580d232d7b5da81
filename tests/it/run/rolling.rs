//! Workers are replaced again and again while clients ask without a pause: every request is answered, once, with its own answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{Run, feeds, post, signal};
use crate::support::PATIENCE;
use crate::support::client::{Asked, Client};
use crate::support::servers::{Kind, Server};

/// Clients that ask at once, each on a connection of its own.
const CLIENTS: usize = 4;

/// Clients that ask until they are told to stop. Each body is sent once and must come back next, so an answer that is lost, doubled
/// or somebody else's is seen.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn on(address: SocketAddr) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let clients = (0..CLIENTS).map(|number| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                let mut at = 0;
                while !stop.load(Ordering::Relaxed) {
                    at += 1;
                    let body = format!("{number}-{at}");
                    let method = if at % 2 == 0 { "POST" } else { "PUT" };
                    let length = body.len();
                    let request = format!("{method} /{body} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
                    client.send(request.as_bytes()).expect("send");
                    let answer = client.try_answer(Asked::Other, PATIENCE * 2);
                    let answer = answer.unwrap_or_else(|| panic!("{body} is not answered: {:?}", client.bytes()));
                    let got = String::from_utf8_lossy(&answer.body).into_owned();
                    assert_eq!((answer.status, got.as_str()), (200, body.as_str()));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                assert!(client.bytes().is_empty(), "answered twice: {:?}", client.bytes());
            })
        });
        let clients = clients.collect();
        Self {
            stop,
            answered,
            clients,
        }
    }

    /// Waits until some more are answered.
    fn goes_on(&self, run: &Run) {
        let before = self.answered.load(Ordering::Relaxed);
        let end = Instant::now() + PATIENCE;
        while self.answered.load(Ordering::Relaxed) < before + CLIENTS {
            assert!(Instant::now() < end, "{}\nnothing is answered", run.program);
            std::thread::yield_now();
        }
    }

    fn ends(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client
                .join()
                .expect("a client whose requests were all answered");
        }
        self.answered.load(Ordering::Relaxed)
    }
}

fn roll(server: &Server, app: &str, options: &[&str], times: usize) {
    let mut run = Run::start(server, app, options);
    run.ready(2);
    let load = Load::on(server.address);
    for time in 1..=times {
        load.goes_on(&run);
        run.program.signal("HUP");
        run.program.said("all workers are replaced", time);
    }
    load.goes_on(&run);
    let answered = load.ends();
    assert!(run.program.terminate().success(), "{}", run.program);
    let killed = run
        .program
        .lines()
        .iter()
        .any(|line| line.contains("is killed") || line.contains("died"));
    assert!(!killed, "{}", run.program);
    println!(
        "{answered} requests, {times} reloads, {:?} {app} {options:?}",
        server.kind
    );
}

#[test]
fn fifty_reloads_lose_nothing() {
    for (kind, protocol) in [(Kind::Lurcher, "tnetstring"), (Kind::Mongrel2, "json")] {
        let Some(server) = Server::start(kind, protocol, "") else {
            continue;
        };
        for feed in feeds(kind) {
            roll(&server, "echo", &["--workers=2", "--feed", feed], 50);
        }
    }
}

#[test]
fn programs_that_know_nothing_of_it_are_reloaded_without_loss_too() {
    for kind in [Kind::Lurcher, Kind::Mongrel2] {
        let Some(server) = Server::start(kind, "json", "") else {
            continue;
        };
        // A handler of one's own, wrapped in a shell that stays: the specs are in its environment.
        let script =
            "\"$0\" run echo --workers=0 \"$LURCHER_SEND_SPEC\" \"$LURCHER_RECV_SPEC\"; exit $?";
        let options = [
            "--workers=2",
            "--",
            "-c",
            script,
            env!("CARGO_BIN_EXE_lurcher"),
        ];
        roll(&server, "exec:/bin/sh", &options, 10);
    }
}

#[test]
fn a_stop_and_a_start_lose_nothing_where_requests_wait_in_the_server() {
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    let mut run = Run::start(&server, "echo", &["--workers=2"]);
    run.ready(2);
    let load = Load::on(server.address);
    for _ in 0..5 {
        load.goes_on(&run);
        assert!(run.program.terminate().success(), "{}", run.program);
        run = Run::start(&server, "echo", &["--workers=2"]);
        run.ready(2);
    }
    load.goes_on(&run);
    load.ends();
}

#[test]
fn a_killed_worker_is_replaced_and_its_requests_are_answered_by_another_or_refused() {
    for kind in [Kind::Lurcher, Kind::Mongrel2] {
        let Some(server) = Server::start(kind, "json", "") else {
            continue;
        };
        for feed in feeds(kind) {
            let mut run = Run::start(&server, "echo", &["--feed", feed]);
            let worker = run.ready(1)[0].pid;
            // What is sent to it now it has, and does nothing about it.
            signal(worker, "STOP");
            let [mut get, mut post_] = [(); 2].map(|()| Client::connect(server.address));
            get.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .expect("send");
            post_
                .send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
                .expect("send");
            assert!(get.is_silent(std::time::Duration::from_millis(300)));
            signal(worker, "KILL");
            let lost = post_.answer();
            assert_eq!(lost.status, 502, "{kind:?} {feed}");
            let why = String::from_utf8_lossy(&lost.body).into_owned();
            assert!(
                why.contains("the handler was lost while it had the request"),
                "{why}"
            );
            assert_eq!(get.answer().status, 200, "{kind:?} {feed}");
            run.program.said("died: signal: 9 (SIGKILL)", 1);
            let other = run.ready(1)[0].pid;
            assert_ne!(other, worker);
            assert_eq!(post(&server, "after").body, b"after");
            assert!(run.program.terminate().success(), "{}", run.program);
        }
    }
}
