//! How workers end that do not start, do not stop or lose their supervisor; and the supervisor's own start and end.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Instant;

use super::{Run, signal};
use crate::support::program::Program;
use crate::support::{PATIENCE, scratch};

/// Whether a process has ended: nothing of it is left, or nothing but its status.
fn is_gone(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    let state = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.trim_start().to_owned());
    state.is_none_or(|state| state.starts_with(['Z', 'X']))
}

#[track_caller]
fn goes(pid: u32) {
    let end = Instant::now() + PATIENCE;
    while !is_gone(pid) {
        assert!(Instant::now() < end, "process {pid} does not go");
        std::thread::yield_now();
    }
}

#[test]
fn a_crash_loop_is_stopped_with_its_last_words() {
    let directory = scratch();
    let script = "echo some words >&2; echo bad luck >&2; exit 3";
    let mut run = Run::alone(directory.path(), "exec:/bin/sh", &["--", "-c", script]);
    assert_eq!(run.program.ended().code(), Some(1));
    run.program
        .said("does not start: exit status: 3; tried again in", 4);
    run.program.said("5 workers in a row ended before they were ready, the last with: exit status: 3; its last words:", 1);
    let lines = run.program.lines();
    let last: Vec<_> = lines.iter().rev().take(2).collect();
    assert_eq!(last, ["    bad luck", "    some words"]);
}

#[test]
fn what_cannot_be_started_is_told() {
    let directory = scratch();
    let mut run = Run::alone(directory.path(), "exec:./no-such-program", &[]);
    assert_eq!(run.program.ended().code(), Some(1));
    run.program.said(
        "lurcher: start ./no-such-program: No such file or directory",
        5,
    );
}

#[test]
fn a_signal_that_ends_a_worker_is_named() {
    let directory = scratch();
    let mut run = Run::alone(
        directory.path(),
        "exec:/bin/sh",
        &["--feed=direct", "--", "-c", "exec sleep 1000"],
    );
    let first = run.ready(1)[0].pid;
    signal(first, "SEGV");
    run.program.said("died: signal: 11 (SIGSEGV)", 1);
    run.until("another runs", |workers| {
        workers.first().is_some_and(|worker| worker.pid != first)
    });
    assert!(run.program.terminate().success());
}

#[test]
fn a_reload_whose_workers_do_not_start_leaves_the_old_ones() {
    let directory = scratch();
    let script = "test -e broken && exit 4; exec sleep 1000";
    let options = ["--feed=direct", "--workers=2", "--", "-c", script];
    let mut run = Run::alone(directory.path(), "exec:/bin/sh", &options);
    let before = run.ready(2);
    fs::write(directory.path().join("broken"), "").expect("write");
    run.program.signal("HUP");
    run.program
        .said("5 in a row did not: the old workers stay", 1);
    assert_eq!(run.ready(2), before);
    fs::remove_file(directory.path().join("broken")).expect("remove");
    run.program.signal("HUP");
    run.program.said("all workers are replaced", 1);
    let after = run.ready(2);
    assert!(
        after
            .iter()
            .all(|new| before.iter().all(|old| old.pid != new.pid))
    );
    assert!(run.program.terminate().success());
}

#[test]
fn an_update_of_the_program_is_what_the_next_workers_are() {
    let directory = scratch();
    let [path, newer] = ["lurcher", "newer"].map(|name| directory.path().join(name));
    for copy in [&path, &newer] {
        fs::copy(env!("CARGO_BIN_EXE_lurcher"), copy).expect("copy");
    }
    let control = format!("ipc://{}/run.control", directory.path().display());
    let mut command = Command::new("./lurcher");
    command
        .args([
            "run",
            "echo",
            "ipc://send",
            "ipc://recv",
            "--control",
            &control,
        ])
        .current_dir(directory.path());
    let mut run = Run {
        program: Program::start(&mut command),
        control,
    };
    let exe = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).expect("its program");
    let old = run.ready(1)[0].pid;
    fs::rename(&newer, &path).expect("rename");
    assert_eq!(exe(old).file_name(), Some("lurcher (deleted)".as_ref()));
    run.program.signal("HUP");
    run.program.said("all workers are replaced", 1);
    assert_eq!(
        exe(run.ready(1)[0].pid).file_name(),
        Some("lurcher".as_ref())
    );
    assert!(run.program.terminate().success());
}

#[test]
fn who_does_not_stop_in_time_is_killed() {
    let directory = scratch();
    let mut run = Run::alone(directory.path(), "echo", &["--graceful-timeout=1"]);
    let worker = run.ready(1)[0].pid;
    signal(worker, "STOP");
    assert_eq!(run.program.terminate().code(), Some(1), "{}", run.program);
    run.program.said("is killed", 1);
    run.program.said("not done after 1 seconds", 1);
    goes(worker);
}

#[test]
fn a_second_signal_ends_all_at_once() {
    let directory = scratch();
    let script = "trap '' TERM; while :; do sleep 1; done";
    let options = [
        "--feed=direct",
        "--workers=2",
        "--graceful-timeout=1000",
        "--",
        "-c",
        script,
    ];
    let mut run = Run::alone(directory.path(), "exec:/bin/sh", &options);
    let workers = run.ready(2);
    run.program.signal("TERM");
    run.program.said("stopping", 1);
    run.program.signal("INT");
    assert_eq!(run.program.ended().code(), Some(1), "{}", run.program);
    for worker in &workers {
        goes(worker.pid);
    }
}

#[test]
fn no_worker_outlives_a_killed_supervisor() {
    let directory = scratch();
    let mut run = Run::alone(directory.path(), "echo", &["--workers=2"]);
    let workers = run.ready(2);
    run.program.kill();
    for worker in &workers {
        goes(worker.pid);
    }
    let script = "trap '' TERM HUP; exec sleep 1000";
    let options = ["--feed=direct", "--", "-c", script];
    let mut run = Run::alone(directory.path(), "exec:/bin/sh", &options);
    let worker = run.ready(1)[0].pid;
    run.program.kill();
    goes(worker);
}

#[test]
fn the_pid_file_is_there_while_it_runs_and_stands_for_one() {
    let directory = scratch();
    let path = directory.path().join("run.pid");
    let options = ["--pid-file", path.to_str().expect("UTF-8")];
    let mut run = Run::alone(directory.path(), "echo", &options);
    run.ready(1);
    let pid = fs::read_to_string(&path).expect("a pid file");
    assert_eq!(pid, run.program.id().to_string());
    let mut second = Run::alone(directory.path(), "echo", &options);
    assert_eq!(second.program.ended().code(), Some(1));
    second
        .program
        .said(&format!("already running: the process {pid}"), 1);
    assert!(run.program.terminate().success());
    assert!(!path.exists());
}

#[test]
fn beside_the_pid_file_is_the_control_port_that_was_not_named() {
    let directory = scratch();
    let specs = ["send", "recv"].map(|name| format!("ipc://{}/{name}", directory.path().display()));
    let arguments = ["run", "echo", &specs[0], &specs[1], "--pid-file=run.pid"];
    let mut program = Program::lurcher(&arguments, directory.path());
    program.said("is ready", 1);
    let control = format!("ipc://{}/run.pid.control", directory.path().display());
    let mut run = Run { program, control };
    run.ready(1);
    assert!(run.told(&["stop"]).1.success());
    assert!(run.program.ended().success());
}

#[test]
fn a_service_manager_hears_when_it_is_ready_and_when_it_stops() {
    let directory = scratch();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a time");
    let heard = || {
        let mut text = [0; 200];
        let length = manager.recv(&mut text).expect("a word");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let specs = ["send", "recv"].map(|name| format!("ipc://{}/{name}", directory.path().display()));
    let mut run = Run::start_at(
        directory.path(),
        [&specs[0], &specs[1]],
        "echo",
        &["--workers=2"],
        |command| {
            command.env("NOTIFY_SOCKET", &path);
        },
    );
    let pid = run.program.id();
    assert_eq!(heard(), format!("READY=1\nMAINPID={pid}"));
    assert_eq!(run.workers().len(), 2);
    run.program.signal("HUP");
    assert!(heard().starts_with("RELOADING=1\n"));
    assert_eq!(heard(), format!("READY=1\nMAINPID={pid}"));
    assert!(run.program.terminate().success());
    assert_eq!(heard(), "STOPPING=1");
}

#[test]
fn the_end_of_standard_input_is_that_of_all_where_it_is_asked_for() {
    let directory = scratch();
    let specs = ["send", "recv"].map(|name| format!("ipc://{}/{name}", directory.path().display()));
    // Its input is empty.
    let arguments = ["run", "echo", &specs[0], &specs[1], "--stop-on-eof"];
    let mut program = Program::lurcher(&arguments, directory.path());
    assert!(program.ended().success(), "{program}");
    program.said("handler echo: stopped", 1);
}
