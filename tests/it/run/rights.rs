//! Who workers are and what surrounds them: user, groups, umask, folder, environment, specs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{Run, post};
use crate::support::scratch;
use crate::support::servers::{Kind, Server};

fn is_root() -> bool {
    let owner = fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own));
    owner.is_ok_and(|uid| uid == 0)
}

#[test]
fn a_program_finds_its_specs_and_what_was_said_of_its_surroundings() {
    let directory = scratch();
    let folder = directory.path().join("folder");
    fs::create_dir(&folder).expect("a folder");
    let script = "echo \"$LURCHER_SEND_SPEC $LURCHER_RECV_SPEC $LURCHER_IDENT $LURCHER_WORKER [$LURCHER_PART] $A $(umask) $PWD $1\" >&2; exec sleep 1000";
    let options = [
        "--feed=direct",
        "--ident=me",
        "--umask=027",
        "--env=A=one",
        "--chdir",
        folder.to_str().expect("UTF-8"),
        "--",
        "-c",
        script,
        "sh",
        "an argument",
    ];
    let mut run = Run::alone(directory.path(), "exec:/bin/sh", &options);
    let here = directory.path().display();
    let expect =
        format!("ipc://{here}/send ipc://{here}/recv me 1 [] one 0027 {here}/folder an argument");
    run.program.said(&expect, 1);
    assert!(run.program.terminate().success());
}

#[test]
fn workers_give_root_up_and_their_supervisor_keeps_it() {
    if !is_root() {
        println!("skipped: only root can give up root's rights");
        return;
    }
    let directory = scratch();
    let script = "echo \"user $(id -u) groups $(id -G)\" >&2; grep '^[UG]id:' /proc/self/status >&2; exec sleep 1000";
    let options = [
        "--feed=direct",
        "--user=65534",
        "--group=12345",
        "--",
        "-c",
        script,
    ];
    let mut run = Run::alone(directory.path(), "exec:/bin/sh", &options);
    let groups = |line: &str| {
        line.split_once("user 65534 groups ")
            .map(|(_, rest)| rest.to_owned())
    };
    let groups = run.program.line("who it is", groups);
    assert!(groups.split(' ').all(|group| group != "0"), "{groups}");
    run.program.said("Uid:\t65534\t65534\t65534\t65534", 1);
    run.program.said("Gid:\t12345\t12345\t12345\t12345", 1);
    run.ready(1);
    let status = fs::read_to_string(format!("/proc/{}/status", run.program.id())).expect("status");
    assert!(status.contains("Uid:\t0\t0"), "{status}");
    assert!(run.program.terminate().success());
}

#[test]
fn a_worker_without_rights_serves_by_the_supervisors_feed() {
    if !is_root() {
        println!("skipped: only root can give up root's rights");
        return;
    }
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    // The log is root's: it is opened before the rights are gone.
    let options = [
        "--feed=supervisor",
        "--user=nobody",
        "--access-log=requests.log",
    ];
    fs::set_permissions(server.directory(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let mut run = Run::start(&server, "echo", &options);
    let worker = run.ready(1)[0].pid;
    let status = fs::read_to_string(format!("/proc/{worker}/status")).expect("status");
    assert!(!status.contains("Uid:\t0"), "{status}");
    assert_eq!(post(&server, "hello").body, b"hello");
    assert!(run.program.terminate().success());
    let log = fs::read_to_string(server.directory().join("requests.log")).expect("a log");
    assert_eq!(log.lines().count(), 1);
}

#[test]
fn who_does_not_exist_is_told_before_anything_is_started() {
    let directory = scratch();
    let mut run = Run::alone(directory.path(), "echo", &["--user=no-such-user"]);
    assert_eq!(run.program.ended().code(), Some(1));
    assert_eq!(
        run.program.lines(),
        ["lurcher: running `echo`: there is no user \"no-such-user\""]
    );
}
