//! Servers started, asked and stopped by `m2sh`, as init scripts do it; ours and, where it is installed, Mongrel2's.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::{Background, GROUP, Site, USER, asks, is_root, local, runs, until};
use crate::support::free_port;
use crate::support::program::Program;

impl Site {
    /// This program by the name `m2sh`, with these words as its arguments; `mongrel2` is beside it.
    fn m2sh(&self, words: &str) -> Command {
        for name in ["m2sh", "mongrel2"] {
            let link = self.path().join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lurcher"), link).expect("a symlink");
            }
        }
        let mut command = Command::new(self.path().join("m2sh"));
        command
            .args(words.split_whitespace())
            .env("LOGNAME", "tester")
            .current_dir(self.path());
        command
    }

    /// Runs it, and gives its exit status and what it said.
    fn m2sh_says(&self, words: &str) -> (Option<i32>, String) {
        said(&mut self.m2sh(words))
    }

    /// Loads the configuration into `config.sqlite`.
    fn load(&self) {
        self.write();
        assert_eq!(
            self.m2sh_says("load -config main.conf -db config.sqlite"),
            (Some(0), String::new())
        );
    }

    fn pid_file(&self, name: &str) -> Background {
        Background::of(&self.path().join(format!("run/{name}.pid")))
    }
}

/// The exit status and stdout of a command that is waited for.
fn said(command: &mut Command) -> (Option<i32>, String) {
    // A server in the background must not hold these outputs, nor need them.
    let Output { status, stdout, .. } = command.stdin(Stdio::null()).output().expect("run");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned())
}

/// Types lines, and gives what is said to them.
fn typed(command: &mut Command, lines: &str) -> (Option<i32>, String) {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(lines.as_bytes()).expect("type");
    drop(stdin);
    let output = child.wait_with_output().expect("run");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[test]
fn an_init_script_loads_starts_reloads_and_stops() {
    let port = free_port();
    let site = Site::new().server("main", "", "127.0.0.1", port);
    site.load();
    let not_there = "mongrel2 is not running because pid_file isn't there.\n";
    assert_eq!(
        site.m2sh_says("running -name main"),
        (Some(0), not_there.to_owned())
    );
    assert_eq!(site.m2sh_says("stop -name main").0, Some(255));
    assert_eq!(site.m2sh_says("start -name main").0, Some(0));
    // At once: the start ends when the server serves.
    assert_eq!(asks(local(port), "/x"), 404);
    let server = site.pid_file("main");
    let running = format!("mongrel2 at PID {} running.\n", server.0);
    for selector in [
        "-name main",
        "-uuid main-uuid",
        "-host localhost",
        "--every",
    ] {
        assert_eq!(
            site.m2sh_says(&format!("running --db config.sqlite {selector}")),
            (Some(0), running.clone()),
            "{selector}"
        );
    }
    // A second start fails, and says so by its status.
    assert_ne!(site.m2sh_says("start -name main").0, Some(0));
    assert!(runs(server.0));
    let reopened = || {
        site.read("logs/main.error")
            .matches("logs reopened")
            .count()
    };
    assert_eq!(reopened(), 0);
    assert_eq!(
        site.m2sh_says("reload -name main"),
        (Some(0), String::new())
    );
    until("the logs are reopened", || reopened() == 1);
    assert_eq!(site.m2sh_says("stop -name main"), (Some(0), String::new()));
    until("the server ends", || !runs(server.0));
    assert_eq!(
        site.m2sh_says("running -name main"),
        (Some(0), not_there.to_owned())
    );
    // What a crash leaves.
    let mut gone = Command::new("true").spawn().expect("true");
    gone.wait().expect("its end");
    let gone = gone.id();
    fs::write(site.path().join("run/main.pid"), gone.to_string()).expect("a pid file");
    assert_eq!(
        site.m2sh_says("running -name main"),
        (Some(0), format!("mongrel2 at PID {gone} is NOT running.\n"))
    );
    assert_eq!(site.m2sh_says("stop -name main").0, Some(255));
    // What would mean a whole group of processes, m2sh itself among them, is no pid.
    fs::write(site.path().join("run/main.pid"), "0").expect("a pid file");
    assert_eq!(site.m2sh_says("stop -murder -name main").0, Some(255));
    assert_eq!(site.m2sh_says("running -name main").1, not_there);
    // And it starts over a stale one, from the shell too.
    let (code, _) = typed(&mut site.m2sh(""), "start -name main\nrunning -name main\n");
    assert_eq!(code, Some(0));
    let server = site.pid_file("main");
    assert_eq!(site.m2sh_says("stop -murder -name main").0, Some(0));
    until("the server ends", || !runs(server.0));
}

#[test]
fn every_server_is_started_asked_and_stopped() {
    let ports = [free_port(), free_port()];
    let site = super::several::two(ports[0], ports[1]);
    assert_eq!(site.m2sh_says("load -config main.conf").0, Some(0));
    assert_eq!(site.m2sh_says("start -every").0, Some(0));
    let servers = ["one", "two"].map(|name| site.pid_file(name));
    for port in ports {
        assert_eq!(asks(local(port), "/x"), 404);
    }
    let [one, two] = [servers[0].0, servers[1].0];
    assert_eq!(
        site.m2sh_says("running -every").1,
        format!("one: mongrel2 at PID {one} running.\ntwo: mongrel2 at PID {two} running.\n")
    );
    assert_eq!(site.m2sh_says("reload -host localhost").0, Some(0));
    for name in ["one", "two"] {
        let log = format!("logs/{name}.error");
        until("the logs are reopened", || {
            site.read(&log).contains("logs reopened")
        });
    }
    // That one of them cannot be asked does not keep it from the other.
    assert_eq!(site.m2sh_says("stop -name one").0, Some(0));
    until("it ends", || !runs(one));
    assert_eq!(site.m2sh_says("stop -every").0, Some(255));
    until("the other ends", || !runs(two));
}

#[test]
fn a_start_that_fails_is_told_by_its_status() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let site = Site::new()
        .server("main", "", "127.0.0.1", port)
        .settings("'server.daemonize': 0");
    site.load();
    for words in ["start -name main", "start -name main -sudo env"] {
        let (code, _) = site.m2sh_says(words);
        assert!(code.is_some_and(|code| code != 0), "{words}: {code:?}");
    }
}

#[test]
fn a_server_in_the_foreground_takes_the_place_of_m2sh() {
    let port = free_port();
    let site = Site::new()
        .server("main", "", "127.0.0.1", port)
        .settings("'server.daemonize': 0");
    site.load();
    let mut program = Program::start(&mut site.m2sh("start -every"));
    assert_eq!(program.listening(), local(port));
    // Who started it knows its pid: signals need no way around.
    assert_eq!(site.read("run/main.pid"), program.id().to_string());
    let status = program.terminate();
    assert!(status.success() && status.signal().is_none(), "{program}");
}

#[test]
fn several_servers_in_the_foreground_run_side_by_side() {
    let ports = [free_port(), free_port()];
    let site = super::several::two(ports[0], ports[1]).settings("'server.daemonize': 0");
    let text = site
        .read("main.conf")
        .replace("settings = {}", "settings = {'server.daemonize': 0}");
    fs::write(site.path().join("main.conf"), text).expect("a .conf");
    assert_eq!(site.m2sh_says("load -config main.conf").0, Some(0));
    let mut program = Program::start(&mut site.m2sh("start -every"));
    program.said("listening on", 2);
    for port in ports {
        assert_eq!(asks(local(port), "/x"), 404);
    }
    let servers = ["one", "two"].map(|name| site.pid_file(name));
    assert_eq!(site.m2sh_says("stop -every").0, Some(0));
    assert!(program.ended().success(), "{program}");
    assert!(servers.iter().all(|server| !runs(server.0)));
}

#[test]
fn sudo_is_whatever_the_user_says() {
    let port = free_port();
    let site = Site::new().server("main", "", "127.0.0.1", port);
    site.load();
    let mut echo = site.m2sh("start -name main -sudo");
    let (code, told) = said(echo.arg("echo it is"));
    let mongrel2 = site.path().join("mongrel2");
    assert_eq!(
        (code, told),
        (
            Some(0),
            format!("it is {} config.sqlite main-uuid\n", mongrel2.display())
        )
    );
    assert_eq!(site.m2sh_says("start -name main -sudo env").0, Some(0));
    let server = site.pid_file("main");
    assert_eq!(asks(local(port), "/x"), 404);
    server.signal("TERM");
    until("the server ends", || !runs(server.0));
    // Without that name there is another way to say the same.
    site.m2sh("");
    fs::remove_file(&mongrel2).expect("remove");
    let mut command = Command::new(site.path().join("m2sh"));
    command
        .args(["start", "-name", "main", "-sudo", "env"])
        .current_dir(site.path());
    assert_eq!(said(&mut command).0, Some(0));
    let server = site.pid_file("main");
    assert_eq!(asks(local(port), "/x"), 404);
    server.signal("TERM");
    until("the server ends", || !runs(server.0));
}

#[test]
fn the_control_port_is_asked_where_the_configuration_has_it() {
    let port = free_port();
    let site = Site::new().server("main", "", "127.0.0.1", port);
    site.load();
    // Nobody is waited for who is not there.
    let (code, told) = typed(&mut site.m2sh("control -name main"), "time\n");
    assert_eq!((code, told.as_str()), (Some(255), ""));
    assert_eq!(site.m2sh_says("start -name main").0, Some(0));
    let server = site.pid_file("main");
    let lines = "uuid\n\nstatus what=net\nbogus\nkill id=0\nkill id 0\ninfo\nstop\n";
    let (code, told) = typed(&mut site.m2sh("control -name main"), lines);
    assert_eq!(
        (code, told),
        (
            Some(0),
            format!(
                "uuid:  main-uuid\n\
                 id  fd  type  last_ping  last_read  last_write  bytes_read  bytes_written  \n\n\
                 ERROR: Callback requested was not found.\n\
                 ERROR: Invalid argument type.\n\
                 port:  {port}\nbind_addr:  127.0.0.1\nuuid:  main-uuid\nchroot:  \n\
                 access_log:  logs/main.access\nerror_log:  logs/main.error\npid_file:  run/main.pid\n\
                 default_hostname:  localhost\n\
                 msg:  signal sent to server\n"
            )
        )
    );
    until("the server ends", || !runs(server.0));
}

#[test]
fn a_jail_is_started_and_stopped_from_outside() {
    if !is_root() {
        return;
    }
    let port = free_port();
    let site = Site::new().jailed("main", port);
    site.load();
    assert_eq!(site.m2sh_says("start -name main").0, Some(0));
    let parent = Background::of(&site.in_jail("run/main.pid"));
    assert_eq!(asks(local(port), "/x"), 404);
    assert_eq!(
        site.m2sh_says("running -name main").1,
        format!("mongrel2 at PID {} running.\n", parent.0)
    );
    let (code, told) = typed(&mut site.m2sh("control -name main"), "uuid\n");
    assert_eq!((code, told.as_str()), (Some(0), "uuid:  main-uuid\n"));
    assert_eq!(site.m2sh_says("stop -name main").0, Some(0));
    until("the server ends", || !runs(parent.0));
}

#[test]
fn without_root_the_pid_file_is_in_the_working_directory() {
    use std::os::unix::process::CommandExt as _;
    if !is_root() {
        // As another user is what a test without root is already, but for its files.
        return;
    }
    let site = Site::new().jailed("main", 0);
    site.load();
    std::os::unix::fs::chown(site.path().join("run"), Some(USER), Some(GROUP)).expect("chown");
    // Where that user can reach it.
    let program = site.path().join("m2sh");
    fs::remove_file(&program).expect("the symlink");
    fs::copy(env!("CARGO_BIN_EXE_lurcher"), &program).expect("copy the program");
    let m2sh = |verb: &str| {
        let mut command = Command::new(&program);
        command
            .args([verb, "-name", "main"])
            .current_dir(site.path())
            .uid(USER)
            .gid(GROUP);
        command
    };
    let mut server = Program::start(&mut m2sh("start"));
    let address = server.listening();
    assert_eq!(asks(address, "/x"), 404);
    let running = format!("mongrel2 at PID {} running.\n", server.id());
    assert_eq!(said(&mut m2sh("running")), (Some(0), running));
    // To root, who starts no such server, it is just a file that lies there.
    let not_there = "mongrel2 is not running because pid_file isn't there.\n";
    assert_eq!(
        site.m2sh_says("running -name main"),
        (Some(0), not_there.to_owned())
    );
    assert_eq!(said(&mut m2sh("stop")).0, Some(0));
    assert!(server.ended().success(), "{server}");
}

#[test]
fn either_m2sh_governs_either_server() {
    let installed = |name: &str| Command::new(name).arg("version").output().is_ok();
    if !installed("m2sh") || !installed("mongrel2") {
        println!("skipped: m2sh and mongrel2 are not installed (Debian: mongrel2-core)");
        return;
    }
    for ours_starts in [true, false] {
        let port = free_port();
        let site = Site::new().server("main", "", "127.0.0.1", port);
        site.load();
        let m2sh = |is_ours: bool, words: &str| {
            if is_ours {
                return site.m2sh(words);
            }
            let mut command = Command::new("m2sh");
            command
                .args(words.split_whitespace())
                .env("HOME", site.path())
                .current_dir(site.path());
            command
        };
        let mut starts = m2sh(ours_starts, "start -db config.sqlite -name main");
        // Mongrel2 goes on writing to where it was started from.
        let status = starts
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()));
        let pid_file = site.path().join("run/main.pid");
        until("a pid file", || {
            fs::read_to_string(&pid_file).is_ok_and(|text| !text.is_empty())
        });
        let server = site.pid_file("main");
        let asked = |words: &str| {
            said(&mut m2sh(
                !ours_starts,
                &format!("{words} -db config.sqlite -name main"),
            ))
        };
        assert_eq!(
            asked("running"),
            (Some(0), format!("mongrel2 at PID {} running.\n", server.0))
        );
        // Mongrel2 opens its port and its logs half a second after its pid file.
        until("it serves", || {
            std::net::TcpStream::connect(local(port)).is_ok()
        });
        if !ours_starts {
            until("its control port", || {
                let mut command = site.m2sh("control -db config.sqlite -name main");
                typed(&mut command, "uuid\n") == (Some(0), "uuid:  main-uuid\n".to_owned())
            });
        }
        assert_eq!(asked("reload"), (Some(0), String::new()));
        assert_eq!(asked("stop"), (Some(0), String::new()));
        until("the server ends", || !runs(server.0));
        assert!(Path::new(&site.path().join("config.sqlite")).exists());
    }
}
