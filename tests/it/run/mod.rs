//! `lurcher run` as a supervisor: its workers come, go, are counted and replaced, and no request is lost by it. `rolling` is about that
//! last point, `fed` about workers behind their supervisor's feed, `ends` about how workers and supervisors end, `patience` about when
//! workers wait for the processor, `rights` about who they are.

mod ends;
mod fed;
mod patience;
mod rights;
mod rolling;

use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Instant;

use crate::support::PATIENCE;
use crate::support::client::{Answer, fetch};
use crate::support::program::Program;
use crate::support::servers::{Kind, Server};

/// A running `lurcher run`.
struct Run {
    program: Program,
    control: String,
}

/// A worker as `status` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Worker {
    number: u64,
    pid: u32,
    state: String,
    served: u64,
}

impl Run {
    /// Starts it for a server; what follows the app and the specs is `options`.
    fn start(server: &Server, app: &str, options: &[&str]) -> Self {
        Self::start_at(
            server.directory(),
            [&server.send, &server.recv],
            app,
            options,
            |_| {},
        )
    }

    fn start_at(
        directory: &Path,
        [send, recv]: [&str; 2],
        app: &str,
        options: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let control = format!("ipc://{}/run.control", directory.display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
        command
            .args(["run", app, send, recv, "--control", &control])
            .args(options)
            .current_dir(directory)
            // Where a supervisor that is killed leaves its folder.
            .env("TMPDIR", directory);
        prepare(&mut command);
        Self {
            program: Program::start(&mut command),
            control,
        }
    }

    /// Without any server: nobody is needed to start workers.
    fn alone(directory: &Path, app: &str, options: &[&str]) -> Self {
        let specs = ["send", "recv"].map(|name| format!("ipc://{}/{name}", directory.display()));
        Self::start_at(directory, [&specs[0], &specs[1]], app, options, |_| {})
    }

    /// What an operator's command prints.
    fn told(&self, command: &[&str]) -> (String, ExitStatus) {
        let output = Command::new(env!("CARGO_BIN_EXE_lurcher"))
            .args([command[0], "--control", &self.control])
            .args(&command[1..])
            .output()
            .expect("run");
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            output.status,
        )
    }

    /// The workers, as `status` shows them now; none before there is anybody to ask.
    fn workers(&self) -> Vec<Worker> {
        let (text, status) = self.told(&["status", "--json"]);
        if !status.success() {
            return Vec::new();
        }
        let rows: Vec<serde_json::Value> = serde_json::from_str(&text).expect(&text);
        let number = |row: &serde_json::Value, name: &str| row[name].as_u64().expect(name);
        let workers = rows.iter().map(|row| {
            assert!(
                row["in_flight"].is_u64() && row["age_s"].is_u64() && row["memory_kib"].is_u64()
            );
            Worker {
                number: number(row, "worker"),
                pid: u32::try_from(number(row, "pid")).expect("a pid"),
                state: row["state"].as_str().expect("a state").to_owned(),
                served: number(row, "served"),
            }
        });
        workers.collect()
    }

    /// Waits until the workers are as they shall become.
    fn until(&mut self, what: &str, so: impl Fn(&[Worker]) -> bool) -> Vec<Worker> {
        let end = Instant::now() + PATIENCE * 2;
        loop {
            let workers = self.workers();
            if so(&workers) {
                return workers;
            }
            assert!(
                Instant::now() < end,
                "{}\nnot so: {what}: {workers:?}",
                self.program
            );
            assert!(
                self.program.alive(),
                "{}\nended before: {what}",
                self.program
            );
        }
    }

    /// Waits until so many workers are there, all ready.
    fn ready(&mut self, count: usize) -> Vec<Worker> {
        self.until(&format!("{count} workers are ready"), |workers| {
            workers.len() == count && workers.iter().all(|worker| worker.state == "ready")
        })
    }
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    assert!(
        sent.is_ok_and(|status| status.success()),
        "kill -s {name} {pid}"
    );
}

fn post(server: &Server, body: &str) -> Answer {
    let length = body.len();
    fetch(
        server.address,
        &format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"),
    )
}

/// The ways to feed workers that each server has.
fn feeds(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Lurcher => &["direct", "supervisor"],
        Kind::Mongrel2 => &["supervisor"],
    }
}

#[test]
fn workers_serve_are_counted_and_are_stopped_by_an_operator() {
    for kind in [Kind::Lurcher, Kind::Mongrel2] {
        let Some(server) = Server::start(kind, "json", "") else {
            continue;
        };
        let log = server.directory().join("requests.log");
        let options = ["--workers=2", "--access-log", log.to_str().expect("UTF-8")];
        let mut run = Run::start(&server, "echo", &options);
        run.ready(2);
        for at in 0..20 {
            assert_eq!(
                post(&server, &at.to_string()).body,
                at.to_string().as_bytes()
            );
        }
        let served = |workers: &[Worker]| workers.iter().map(|worker| worker.served).sum::<u64>();
        run.until("all are counted", |workers| served(workers) == 20);
        // Against a Lurcher workers need nobody between.
        let (info, _) = run.told(&["control", "info", "--json"]);
        let feed = if kind == Kind::Lurcher {
            "direct"
        } else {
            "supervisor"
        };
        assert!(info.contains(&format!("\"feed\": \"{feed}\"")), "{info}");
        if feed == "supervisor" {
            run.program.said("is no Lurcher's, from ", 1);
        }
        let (table, _) = run.told(&["status"]);
        let head: Vec<_> = table
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        assert_eq!(
            head,
            [
                "WORKER",
                "PID",
                "STATE",
                "IN_FLIGHT",
                "SERVED",
                "AGE_S",
                "MEMORY_KIB"
            ]
        );
        assert!(run.told(&["control", "scale", "count=3"]).1.success());
        run.ready(3);
        assert!(!run.told(&["control", "scale", "count=0"]).1.success());
        assert!(run.told(&["stop"]).1.success());
        assert!(run.program.ended().success(), "{}", run.program);
        let lines = std::fs::read_to_string(&log).expect("an access log");
        let whole = |line: &str| {
            line.starts_with("127.0.0.1 - - [") && line.contains("] \"POST / HTTP/1.1\" 200 ")
        };
        assert_eq!(
            lines.lines().filter(|line| whole(line)).count(),
            20,
            "{lines}"
        );
    }
}

#[test]
fn signals_scale_and_an_access_log_that_was_renamed_is_opened_again() {
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    let log = server.directory().join("requests.log");
    let mut run = Run::start(&server, "echo", &["--access-log=requests.log"]);
    let first = run.ready(1);
    run.program.signal("TTIN");
    run.ready(2);
    run.program.signal("TTOU");
    assert_eq!(run.ready(1), first, "the youngest goes");
    run.program.signal("TTOU");
    run.program.said("workers from now on: 1 ", 2);
    run.ready(1);
    post(&server, "one");
    run.until("one is counted", |workers| workers[0].served == 1);
    std::fs::rename(&log, log.with_extension("old")).expect("rename");
    run.program.signal("USR1");
    let end = Instant::now() + PATIENCE;
    while !log.exists() {
        assert!(Instant::now() < end, "{}", run.program);
    }
    post(&server, "two");
    run.until("both are counted", |workers| workers[0].served == 2);
    assert!(run.program.terminate().success());
    let lines = |path| {
        std::fs::read_to_string(path)
            .expect("a log")
            .lines()
            .count()
    };
    assert_eq!((lines(log.with_extension("old")), lines(log)), (1, 1));
}

#[test]
fn workers_are_replaced_after_so_many_requests() {
    let Some(server) = Server::start(Kind::Lurcher, "tnetstring", "") else {
        return;
    };
    let mut run = Run::start(
        &server,
        "echo",
        &["--max-requests=5", "--max-requests-jitter=0"],
    );
    let first = run.ready(1)[0].pid;
    for _ in 0..5 {
        assert_eq!(post(&server, "x").body, b"x");
    }
    let second = run.until("another has its place", |workers| {
        workers.len() == 1 && workers[0].pid != first && workers[0].state == "ready"
    });
    run.program.said("had 5 requests: it is replaced", 1);
    assert_eq!(post(&server, "x").body, b"x");
    run.until("it serves", |workers| {
        workers
            == [Worker {
                served: 1,
                ..second[0].clone()
            }]
    });
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let directory = crate::support::scratch();
    let mut run = Run::alone(directory.path(), "echo", &[]);
    run.program.said(
        "takes the requests for its workers, since nobody is at ipc://",
        1,
    );
    assert!(run.program.terminate().success(), "{}", run.program);
}

#[test]
fn workers_that_grow_are_replaced() {
    let directory = crate::support::scratch();
    let mut run = Run::alone(directory.path(), "echo", &["--max-memory=1M"]);
    // For ever, and why, since none of them can be smaller.
    run.program.said(
        "KiB of memory before any request, so --max-memory is too little: it is replaced",
        2,
    );
    run.program.said("does not start", 0);
    assert!(run.program.terminate().success(), "{}", run.program);
}

#[test]
fn a_change_of_a_watched_file_replaces_the_workers() {
    let directory = crate::support::scratch();
    let file = directory.path().join("settings");
    std::fs::write(&file, "1").expect("write");
    let options = [
        "--reload",
        "--reload-path",
        file.to_str().expect("UTF-8"),
        "--workers=2",
    ];
    let mut run = Run::alone(directory.path(), "echo", &options);
    let first = run.ready(2);
    std::fs::write(&file, "2").expect("write");
    run.program.said("has changed", 1);
    run.program.said("all workers are replaced", 1);
    let second = run.ready(2);
    assert!(
        second
            .iter()
            .all(|worker| first.iter().all(|old| old.pid != worker.pid))
    );
}

#[test]
fn a_reload_reads_the_options_again_and_leaves_all_as_it_was_when_they_are_wrong() {
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    let file = server.directory().join("options.toml");
    let body = |body: &str| std::fs::write(&file, format!("[respond]\nbody = {body}\n"));
    body("'one'").expect("write");
    let options = ["--options", file.to_str().expect("UTF-8")];
    let mut run = Run::start(&server, "respond", &options);
    let first = run.ready(1);
    assert_eq!(post(&server, "").body, b"one");
    body("'5%'").expect("write");
    run.program.signal("HUP");
    run.program.said("nothing is replaced", 1);
    assert_eq!(run.ready(1)[0].pid, first[0].pid);
    body("'two'").expect("write");
    assert!(run.told(&["reload"]).1.success());
    run.program.said("all workers are replaced", 1);
    // The old one may still take a request until it has heard of its end.
    run.ready(1);
    assert_eq!(post(&server, "").body, b"two");
}
