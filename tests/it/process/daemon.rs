//! The background, the name `mongrel2`, and the pid file.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Background, Site, asks, child_of, is_root, local, refused, runs, until};
use crate::support::free_port;
use crate::support::program::Program;

#[test]
fn mongrel2_goes_into_the_background_and_ends_when_it_serves() {
    let port = free_port();
    let site = Site::new().server("main", "", "127.0.0.1", port);
    site.write();
    let output = site
        .mongrel2(&["main.conf", "main-uuid"])
        .output()
        .expect("run");
    assert!(output.status.success(), "{output:?}");
    // At once: it was told that the server serves.
    assert_eq!(asks(local(port), "/x"), 404);
    let server = Background::of(&site.path().join("run/main.pid"));
    let fd = |number: u8| {
        fs::read_link(format!("/proc/{}/fd/{number}", server.0)).expect("a descriptor")
    };
    assert_eq!(fd(0), Path::new("/dev/null"));
    let log = fs::canonicalize(site.path().join("logs/main.error")).expect("the error log");
    assert_eq!((fd(1), fd(2)), (log.clone(), log));
    let cwd = fs::read_link(format!("/proc/{}/cwd", server.0)).expect("a directory");
    assert_eq!(cwd, fs::canonicalize(site.path()).expect("the directory"));
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.0)).expect("a process");
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .expect("a name")
        .1
        .split_whitespace()
        .collect();
    assert_eq!(
        fields[3],
        server.0.to_string(),
        "it leads a session of its own: {stat}"
    );
    // Once: the second start says which process it is.
    let error = refused(&mut site.mongrel2(&["main.conf", "main-uuid"]));
    assert!(
        error.contains(&format!("already running: the process {} ", server.0)),
        "{error}"
    );
    assert_eq!(asks(local(port), "/y"), 404);
    // Each line once in the log, and the outputs follow a log that is renamed.
    assert_eq!(
        site.read("logs/main.error").matches("listening on").count(),
        1
    );
    fs::rename(
        site.path().join("logs/main.error"),
        site.path().join("logs/old"),
    )
    .expect("rename");
    server.signal("HUP");
    until("the log is opened again", || {
        fs::read_link(format!("/proc/{}/fd/2", server.0)).is_ok_and(|to| to.ends_with("main.error"))
    });
    server.signal("TERM");
    until("the server ends", || !runs(server.0));
    assert!(!site.path().join("run/main.pid").exists());
    assert!(site.read("logs/main.error").contains("ended"));
}

#[test]
fn a_start_that_fails_in_the_background_fails_in_the_foreground() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let site = Site::new().server("main", "", "127.0.0.1", port);
    site.write();
    let error = refused(&mut site.mongrel2(&["main.conf", "main-uuid"]));
    assert!(error.contains("in use"), "{error}");
    let error = refused(site.command(&["serve", "--daemon"]).arg("main.conf"));
    assert!(error.contains("in use"), "{error}");
    assert!(!site.path().join("run/main.pid").exists());
}

#[test]
fn a_jail_goes_into_the_background_too() {
    if !is_root() {
        return;
    }
    let port = free_port();
    let site = Site::new().jailed("main", port);
    site.write();
    let output = site
        .mongrel2(&["main.conf", "main-uuid"])
        .output()
        .expect("run");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(asks(local(port), "/x"), 404);
    let parent = Background::of(&site.in_jail("run/main.pid"));
    let server = child_of(parent.0);
    let error = refused(&mut site.mongrel2(&["main.conf", "main-uuid"]));
    assert!(error.contains("already running"), "{error}");
    for (pid, number, to) in [
        (parent.0, 2, "/dev/null"),
        (server, 2, "main.error"),
        (server, 0, "/dev/null"),
    ] {
        let link = fs::read_link(format!("/proc/{pid}/fd/{number}")).expect("a descriptor");
        assert!(
            link.to_string_lossy().ends_with(to),
            "{pid} {number}: {link:?}"
        );
    }
    parent.signal("INT");
    until("both end", || !runs(parent.0) && !runs(server));
    assert!(!site.in_jail("run/main.pid").exists());
}

#[test]
fn the_foreground_is_kept_where_somebody_wants_it() {
    // The setting, the name, and a service manager that waits.
    let notify = Site::new().path().join("notify");
    for (settings, manager) in [("'server.daemonize': 0", false), ("", true)] {
        let site = Site::new()
            .server("main", "", "127.0.0.1", 0)
            .settings(settings);
        site.write();
        let mut command = site.mongrel2(&["main.conf", "main-uuid"]);
        if manager {
            command.env("NOTIFY_SOCKET", &notify);
        }
        let mut program = Program::start(&mut command);
        program.listening();
        assert_eq!(site.read("run/main.pid"), program.id().to_string());
        assert!(program.terminate().success());
    }
    let site = Site::new().server("main", "", "127.0.0.1", 0);
    site.write();
    for arguments in [
        &["serve", "main.conf"][..],
        &["serve", "main.conf", "--foreground"],
    ] {
        let mut program = Program::start(&mut site.command(arguments));
        program.listening();
        assert_eq!(site.read("run/main.pid"), program.id().to_string());
        assert!(program.terminate().success());
    }
}

#[test]
fn mongrel2_takes_its_own_arguments_only() {
    let site = Site::new().server("main", "", "127.0.0.1", 0);
    site.write();
    for arguments in [&[][..], &["main.conf"], &["a", "b", "c", "d"]] {
        let output = site.mongrel2(arguments).output().expect("run");
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            stderr,
            "usage: mongrel2 config.sqlite server_uuid [config_module.so]\n"
        );
    }
    let error = refused(&mut site.mongrel2(&["main.conf", "main-uuid", "mysql.so"]));
    assert!(error.contains("mysql.so"), "{error}");
    // A name is no uuid.
    let error = refused(&mut site.mongrel2(&["main.conf", "main"]));
    assert!(error.contains("main-uuid"), "{error}");
}

#[test]
fn a_live_pid_stands_against_a_start_and_a_stale_one_does_not() {
    let site = Site::new().server("main", "", "127.0.0.1", 0);
    site.write();
    let file = site.path().join("run/main.pid");
    let mut other = Command::new("sleep")
        .arg("1000")
        .stdout(Stdio::null())
        .spawn()
        .expect("a process");
    fs::write(&file, other.id().to_string()).expect("write");
    let error = refused(&mut site.command(&["serve", "main.conf"]));
    assert!(
        error.contains(&format!(
            "process {} in pid file run/main.pid is alive",
            other.id()
        )),
        "{error}"
    );
    assert_eq!(site.read("run/main.pid"), other.id().to_string());
    other.kill().expect("kill");
    other.wait().expect("wait");
    let mut program = Program::start(&mut site.command(&["serve", "main.conf"]));
    program.listening();
    assert_eq!(site.read("run/main.pid"), program.id().to_string());
    assert!(program.terminate().success());
    assert!(!file.exists());
    // A start that fails leaves none behind.
    fs::remove_dir_all(site.path().join("logs")).expect("remove");
    refused(&mut site.command(&["serve", "main.conf"]));
    assert!(!file.exists());
}
