//! Workers that requests come to in bunches wait for their turns when they are woken (`SCHED_BATCH`), and no others.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::Run;
use crate::support::{PATIENCE, free_port, scratch};

/// sched(7).
const SCHED_OTHER: &str = "0";
const SCHED_BATCH: &str = "3";

/// Requests that are handed over together.
const BUNCH: u32 = 500;

/// Requests that are handed over one by one.
const LONE: u32 = 1_000;

/// So long two looks take at the least: there are four in a second.
const LOOKS: Duration = Duration::from_millis(800);

/// A server made of plain libzmq sockets.
struct Server {
    push: zmq::Socket,
    sub: zmq::Socket,
    specs: [String; 2],
}

impl Server {
    fn bind() -> Self {
        let context = zmq::Context::new();
        let [push, sub] = [zmq::PUSH, zmq::SUB].map(|kind| context.socket(kind).expect("a socket"));
        let specs = [(); 2].map(|()| format!("tcp://127.0.0.1:{}", free_port()));
        sub.set_subscribe(b"").expect("subscribe");
        let patience = i32::try_from(PATIENCE.as_millis()).expect("a time");
        for (socket, spec) in [&push, &sub].into_iter().zip(&specs) {
            socket.set_linger(0).expect("an option");
            socket.set_rcvtimeo(patience).expect("an option");
            socket.set_sndtimeo(patience).expect("an option");
            socket.bind(spec).expect("bind");
        }
        Self { push, sub, specs }
    }

    /// Hands over so many requests together, and takes their answers.
    fn ask(&self, count: u32) {
        let headers = r#"{"PATH":"/","METHOD":"GET","VERSION":"HTTP/1.1","URI":"/","PATTERN":"/"}"#;
        for id in 1..=count {
            let message = format!("server {id} / {}:{headers},0:,", headers.len());
            self.push.send(&message, 0).expect("a worker takes it");
        }
        for _ in 0..count {
            self.sub.recv_bytes(0).expect("an answer");
        }
    }
}

/// The policies of a process' threads, as the 41st field of their `stat` has them (proc(5)).
fn policies(pid: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let stats = threads.filter_map(|thread| {
        let path = thread.ok()?.path().join("stat");
        // Threads end.
        fs::read_to_string(path).ok()
    });
    let policies = stats.map(|stat| {
        // The name may hold spaces; the third field follows its parenthesis.
        let fields = stat.rsplit(')').next().expect("fields");
        fields.split_whitespace().nth(38).expect(&stat).to_owned()
    });
    policies.collect()
}

/// A server, a worker of it that answers by itself, and the worker's process.
fn start(directory: &Path) -> (Server, Run, u32) {
    let server = Server::bind();
    let [send, recv] = &server.specs;
    let options = ["--feed=direct"];
    let mut run = Run::start_at(directory, [send, recv], "echo", &options, |_| {});
    let pid = run.ready(1)[0].pid;
    (server, run, pid)
}

#[test]
fn a_worker_waits_for_its_turns_while_requests_come_in_bunches() {
    let directory = scratch();
    let (server, mut run, pid) = start(directory.path());
    let all = |policy| policies(pid).iter().all(|seen| seen == policy);
    for _ in 0..LONE {
        server.ask(1);
        assert!(all(SCHED_OTHER), "{:?}", policies(pid));
    }
    let end = Instant::now() + PATIENCE;
    while !all(SCHED_BATCH) {
        assert!(Instant::now() < end, "{:?}", policies(pid));
        server.ask(BUNCH);
    }
    let end = Instant::now() + PATIENCE;
    while !all(SCHED_OTHER) {
        assert!(Instant::now() < end, "{:?}", policies(pid));
        server.ask(1);
    }
    assert!(run.program.terminate().success(), "{}", run.program);
}

#[test]
fn a_policy_that_somebody_has_chosen_stays() {
    for policy in ["--idle", "--batch"] {
        let directory = scratch();
        let (server, mut run, pid) = start(directory.path());
        let chosen = Command::new("chrt")
            .args([policy, "--all-tasks", "--pid", "0", &pid.to_string()])
            .status();
        assert!(chosen.expect("util-linux").success());
        let before = policies(pid);
        // Two looks at the least see bunches, and as many none.
        for count in [BUNCH, 1] {
            let end = Instant::now() + LOOKS;
            while Instant::now() < end {
                server.ask(count);
                assert_eq!(policies(pid), before, "{policy}");
            }
        }
        assert!(run.program.terminate().success(), "{}", run.program);
    }
}
