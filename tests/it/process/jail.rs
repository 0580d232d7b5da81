//! A jail is one, its parent carries in what is needed, and neither outlives the other. And what comes close to one: Mongrel2's
//! test mode.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use super::{GROUP, Site, USER, asks, child_of, is_root, local, refused, runs, signal, until};
use crate::support::client::Client;
use crate::support::peer::{Peer, Replies, address};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port};

/// A port that only root may bind and nobody has.
fn low_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (600..1024).rev().find(free).expect("a free low port")
}

fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| {
            (
                name.to_owned(),
                value.split_whitespace().collect::<Vec<_>>().join(" "),
            )
        })
        .collect()
}

#[test]
fn the_server_is_locked_in_and_has_no_right_left() {
    if !is_root() {
        return;
    }
    let port = low_port();
    let site = Site::new().jailed("main", port);
    site.write();
    // What a careless parent has left open does not come in.
    let mut program = Program::start(
        Command::new("sh")
            .args([
                "-c",
                "exec \"$0\" serve main.conf 7</etc/passwd 8</",
                env!("CARGO_BIN_EXE_lurcher"),
            ])
            .current_dir(site.path()),
    );
    assert_eq!(program.listening(), local(port));
    let server = child_of(program.id());
    let root = fs::read_link(format!("/proc/{server}/root")).expect("a root");
    assert_eq!(root, fs::canonicalize(site.in_jail("")).expect("the jail"));
    let cwd = fs::read_link(format!("/proc/{server}/cwd")).expect("a directory");
    assert_eq!(cwd, root);
    let status = status(server);
    assert_eq!(status["Uid"], vec![USER.to_string(); 4].join(" "));
    assert_eq!(status["Gid"], vec![GROUP.to_string(); 4].join(" "));
    assert_eq!(status["Groups"], GROUP.to_string());
    assert_eq!(status["NoNewPrivs"], "1");
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status[set].trim_start_matches('0'), "", "{set}");
    }
    let outside: Vec<_> = fs::read_dir(format!("/proc/{server}/fd"))
        .expect("descriptors")
        .filter_map(|entry| fs::read_link(entry.expect("an entry").path()).ok())
        .filter(|to| to.is_absolute() && !to.starts_with(&root) && to != Path::new("/dev/null"))
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
    // Root's terminal, if there is one, is not its own.
    let stat = fs::read_to_string(format!("/proc/{server}/stat")).expect("a process");
    let fields = stat.rsplit_once(')').expect("a name").1;
    let fields: Vec<_> = fields.split_whitespace().collect();
    assert_eq!(fields[3..5], [server.to_string(), "0".to_owned()], "{stat}");
    // It works: port, handler sockets, logs, and the pid is the one to send signals to.
    let [send, recv] =
        ["send", "recv"].map(|name| format!("ipc://{}", site.in_jail("run").join(name).display()));
    let peer = Peer::connect(&send, &recv, Replies::Xpub);
    peer.joined();
    let mut client = Client::connect(local(port));
    client
        .send(b"GET /no/such/path HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("send");
    let message = peer.recv(PATIENCE).expect("the request");
    let (sender, id, ..) = address(&message);
    peer.reply(
        sender,
        id,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    assert_eq!(client.answer().status, 200);
    for log in ["logs/main.access", "logs/main.error"] {
        let file = fs::metadata(site.in_jail(log)).expect("a log");
        assert_eq!((file.uid(), file.gid()), (USER, GROUP), "{log}");
    }
    assert_eq!(site.read("jail/run/main.pid"), program.id().to_string());
    drop(client);
    assert!(program.terminate().success());
    assert!(!site.in_jail("run/main.pid").exists());
    assert!(!runs(server));
}

#[test]
fn root_can_be_watched_neither_while_typing_nor_typed_for() {
    let script = Command::new("script").arg("--version").output();
    if !is_root() || script.is_err() {
        println!("skipped: it needs root and script(1)");
        return;
    }
    let site = Site::new().jailed("main", 0);
    site.write();
    let program = env!("CARGO_BIN_EXE_lurcher");
    let command = format!("exec {program} serve main.conf");
    // A terminal, and the server in its foreground.
    let mut program = Program::start(
        Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .current_dir(site.path()),
    );
    program.listening();
    let parent: u32 = site.read("jail/run/main.pid").parse().expect("a pid");
    let server = child_of(parent);
    let terminal = fs::read_link(format!("/proc/{parent}/fd/2")).expect("stderr");
    assert!(terminal.starts_with("/dev/pts"), "{}", terminal.display());
    for entry in fs::read_dir(format!("/proc/{server}/fd")).expect("descriptors") {
        let entry = entry.expect("an entry");
        if !fs::read_link(entry.path()).is_ok_and(|to| to.starts_with("/dev/pts")) {
            continue;
        }
        let info = format!("/proc/{server}/fdinfo/{}", entry.file_name().display());
        let info = fs::read_to_string(info).expect("a descriptor");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let access = flags.and_then(|flags| flags.trim().chars().last());
        assert_eq!(access, Some('1'), "it can be written only: {info}");
    }
    let stat = fs::read_to_string(format!("/proc/{server}/stat")).expect("a process");
    let fields = stat.rsplit_once(')').expect("a name").1;
    assert_eq!(fields.split_whitespace().nth(4), Some("0"), "{stat}");
    signal(parent, "TERM");
    assert!(program.ended().success(), "{program}");
}

#[test]
fn a_configuration_outside_is_read_again_from_inside_when_it_has_changed() {
    if !is_root() {
        return;
    }
    let site = Site::new().jailed("main", 0);
    let path = site.write();
    let mut program = Program::start(&mut site.command(&["serve", "main.conf"]));
    let address = program.listening();
    let said = |what: &str| site.read("jail/logs/main.error").matches(what).count();
    program.signal("HUP");
    until("the logs are reopened", || said("logs reopened") == 1);
    until("nothing has changed", || {
        said("configuration unchanged") == 1
    });
    // A directory that is only there, by its name, for who is inside.
    fs::create_dir(site.in_jail("www")).expect("a folder");
    fs::write(site.in_jail("www/hello"), "hello").expect("write");
    assert_eq!(asks(address, "/files/hello"), 404);
    let text = fs::read_to_string(&path).expect("the configuration");
    let files = "routes={'/files/': Dir(base='/www/', index_file='index.html', default_ctype='text/plain'), ";
    fs::write(&path, text.replace("routes={", files)).expect("write");
    program.signal("HUP");
    until("the change is served", || {
        said("configuration reloaded") == 1
    });
    assert_eq!(asks(address, "/files/hello"), 200);
    // What is wrong with it is told inside, and the server goes on.
    fs::write(&path, text.replace("hosts=[", "hosts=[[")).expect("write");
    program.signal("HUP");
    until("the mistake is told", || said("main.conf:4:") > 0);
    assert_eq!(asks(address, "/after"), 404);
    program.signal("HUP");
    until("it is told again", || {
        said("refused, the old configuration goes on") == 2
    });
    assert_eq!(said("configuration reloaded"), 1);
    assert_eq!(said("refused, the old configuration goes on"), 2);
    assert_eq!(asks(address, "/files/hello"), 200);
    assert!(program.terminate().success());
}

#[test]
fn neither_the_server_nor_its_parent_outlives_the_other() {
    if !is_root() {
        return;
    }
    let port = free_port();
    let site = Site::new().jailed("main", port);
    site.write();
    let mut program = Program::start(&mut site.command(&["serve", "main.conf"]));
    program.listening();
    let server = child_of(program.id());
    program.kill();
    until("the server ends with its parent", || !runs(server));
    // Both ports and sockets are free, and the pid file is stale.
    assert!(site.in_jail("run/main.pid").exists());
    let mut program = Program::start(&mut site.command(&["serve", "main.conf"]));
    program.listening();
    assert_eq!(site.read("jail/run/main.pid"), program.id().to_string());
    signal(child_of(program.id()), "KILL");
    assert_eq!(program.ended().code(), Some(1));
    program.line("how it ended", |line| {
        line.contains("signal: 9").then_some(())
    });
    assert!(!site.in_jail("run/main.pid").exists());
}

#[test]
fn a_signal_to_reload_that_comes_with_the_pid_file_ends_nobody() {
    for jailed in [false, true] {
        if jailed && !is_root() {
            return;
        }
        for _ in 0..5 {
            let site = if jailed {
                Site::new().jailed("main", 0)
            } else {
                Site::new().server("main", "", "127.0.0.1", 0)
            };
            site.write();
            let pid_file = if jailed {
                "jail/run/main.pid"
            } else {
                "run/main.pid"
            };
            let mut program = Program::start(&mut site.command(&["serve", "main.conf"]));
            until("the pid file", || {
                site.read(pid_file) == program.id().to_string()
            });
            program.signal("HUP");
            assert_eq!(asks(program.listening(), "/x"), 404);
            assert!(program.terminate().success());
        }
    }
}

#[test]
fn a_jail_that_cannot_be_is_one_line_and_exit_1() {
    if !is_root() {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    for (what, replace, with) in [
        ("in use", "port=0".to_owned(), format!("port={port}")),
        ("enter the jail", "/jail'".to_owned(), "/none'".to_owned()),
        (
            "error log",
            "/logs/main.error".to_owned(),
            "/none/main.error".to_owned(),
        ),
        (
            "access log",
            "/logs/main.access".to_owned(),
            "/none/main.access".to_owned(),
        ),
        (
            "pid file",
            "/run/main.pid".to_owned(),
            "/none/main.pid".to_owned(),
        ),
        // A way out that the jail's owner has made leads nowhere.
        (
            "pid file",
            "/run/main.pid".to_owned(),
            "/out/victim".to_owned(),
        ),
    ] {
        let site = Site::new().jailed("main", 0);
        let victim = site.path().join("victim");
        fs::write(&victim, "99999999").expect("write");
        std::os::unix::fs::symlink(site.path(), site.in_jail("out")).expect("a symlink");
        let path = site.write();
        let text = fs::read_to_string(&path).expect("read");
        assert!(text.contains(&replace), "{text}");
        fs::write(&path, text.replace(&replace, &with)).expect("write");
        let error = refused(&mut site.command(&["serve", "main.conf"]));
        assert!(error.contains(what), "{error}");
        assert!(!site.in_jail("run/main.pid").exists(), "{what}");
        assert_eq!(site.read("victim"), "99999999", "{what}");
    }
}

#[test]
fn without_root_a_chroot_is_only_a_prefix() {
    if !is_root() {
        // As another user is what a test without root is already, but for its files.
        return;
    }
    let site = Site::new()
        .jailed("main", 0)
        .settings("'server.daemonize': 1");
    site.write();
    std::os::unix::fs::chown(site.path().join("run"), Some(USER), Some(GROUP)).expect("chown");
    // Where that user can reach it.
    let program = site.path().join("mongrel2");
    fs::copy(env!("CARGO_BIN_EXE_lurcher"), &program).expect("copy the program");
    let mut program = Program::start(
        Command::new(program)
            .args(["main.conf", "main-uuid"])
            .current_dir(site.path())
            .uid(USER)
            .gid(GROUP),
    );
    let address = program.listening();
    program.line("a warning", |line| line.contains("test mode").then_some(()));
    assert_eq!(asks(address, "/x"), 404);
    until("the access log is under the chroot", || {
        site.read("jail/logs/main.access").contains("/x")
    });
    assert!(
        !site.in_jail("logs/main.error").exists(),
        "errors go to stderr"
    );
    // In the working directory, and this very process: it stays in the foreground.
    assert_eq!(site.read("run/main.pid"), program.id().to_string());
    assert!(program.terminate().success());
    assert!(!site.path().join("run/main.pid").exists());
}
