//! Strangers meet: handlers and databases that were made for Mongrel2 on Lurcher, and Lurcher's on the real Mongrel2.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::client::{Client, fetch};
use crate::support::front::{Front, conf};
use crate::support::golden::{self, data};
use crate::support::program::Program;
use crate::support::servers;
use crate::support::{free_port, scratch};

/// Pythons that have ZeroMQ: Debian's, and those of `LURCHER_OLD_PYZMQ`. Says so when there is none.
pub(crate) fn pythons() -> Vec<String> {
    let named = std::env::var("LURCHER_OLD_PYZMQ").unwrap_or_default();
    let paths = named
        .split(':')
        .chain(["/usr/bin/python3"])
        .filter(|path| !path.is_empty());
    let has_zmq = |path: &&str| {
        let tried = Command::new(path)
            .args(["-c", "import zmq"])
            .stderr(Stdio::null())
            .status();
        tried.is_ok_and(|status| status.success())
    };
    let found: Vec<String> = paths.filter(has_zmq).map(str::to_owned).collect();
    if found.is_empty() {
        println!("skipped: no Python with ZeroMQ is installed (Debian: python3-zmq)");
    }
    found
}

#[test]
fn a_python_handler_written_for_mongrel2_serves_lurcher() {
    for python in pythons() {
        let front = Front::start("");
        let script = data().join("interop/handler.py");
        let mut handler = Program::start(
            Command::new(&python)
                .arg(script)
                .args([&front.send, &front.recv]),
        );
        handler.line("connected", |line| (line == "connected").then_some(()));

        let mut client = Client::connect(front.address);
        client
            .send(b"GET /a?b=c HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        assert_eq!(client.answer().body, b"GET /a ", "{python}");
        client
            .send(b"POST /form HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\na=1&b=2")
            .unwrap();
        assert_eq!(client.answer().body, b"POST /form a=1&b=2", "{python}");

        let id = handler.line("a request", |line| {
            line.strip_prefix("request ").map(str::to_owned)
        });
        drop(client);
        let gone = handler.line("the notice", |line| {
            line.strip_prefix("notice disconnect ").map(str::to_owned)
        });
        assert_eq!(
            gone, id,
            "the notice names the connection that went ({python})"
        );
    }
}

#[test]
fn lurchers_echo_serves_both_servers_in_both_protocols() {
    servers::each("", |server| {
        let echo = Program::lurcher(
            &["run", "echo", &server.send, &server.recv],
            server.directory(),
        );
        let answer = fetch(
            server.address,
            "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
        );
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (200, &b"hello"[..]),
            "{:?} {} {echo}",
            server.kind,
            server.protocol,
        );
    });
}

#[test]
fn a_database_that_config_load_wrote_runs_mongrel2() {
    let directory = scratch();
    let port = free_port();
    let [send, recv] = [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    let file = conf(directory.path(), port, &send, &recv, "");
    let database = directory.path().join("config.sqlite");
    let paths = [&file, &database].map(|path| path.to_str().expect("a UTF-8 path"));
    let mut load = Program::lurcher(
        &["config", "load", paths[0], "--db", paths[1]],
        directory.path(),
    );
    assert!(load.ended().success(), "{load}");

    let Some(mut mongrel2) = Program::mongrel2(&database, "main-uuid", directory.path()) else {
        return;
    };
    let address = ([127, 0, 0, 1], port).into();
    mongrel2.answering(address);
    let _echo = Program::lurcher(&["run", "echo", &send, &recv], directory.path());
    let answer = fetch(
        address,
        "PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi",
    );
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"hi"[..]));
}

/// Also those that Mongrel2 itself does not start, because they name plug-ins.
#[test]
fn every_recorded_database_starts_lurcher() {
    let mut started = 0;
    for entry in fs::read_dir(data().join("configs")).expect("tests/data/configs") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let database = path
            .extension()
            .is_some_and(|extension| extension == "sqlite");
        if !database {
            continue;
        }
        let directory = scratch();
        let golden = golden::prepare(&name, directory.path());
        // What an operator has made in the chroot; some paths in it repeat the whole way there.
        let jail = directory.path().join("jail");
        let inside = directory
            .path()
            .strip_prefix("/")
            .expect("an absolute path");
        for folder in ["logs", "run"] {
            for folder in [jail.join(folder), jail.join(inside).join(folder)] {
                fs::create_dir_all(folder).expect("a folder in the chroot");
            }
        }
        let database = golden.database.to_str().expect("a UTF-8 path");
        let mut program = Program::lurcher(
            &["serve", database, "--server", &golden.uuid],
            directory.path(),
        );
        let address = program.listening();
        assert_eq!(address.port(), golden.address.port(), "{name}");
        // No request at all, so that no route of any configuration matters.
        let mut client = golden.connect();
        client.send(b"?\r\n\r\n").expect("send");
        assert_eq!(client.answer().status, 400, "{name}: {program}");
        assert!(program.terminate().success(), "{name}: {program}");
        started += 1;
    }
    assert_eq!(started, 10);
}
