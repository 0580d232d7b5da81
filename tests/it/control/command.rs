//! `lurcher control` and its shorthands, against Lurcher, against Mongrel2, and against nobody; and other people's programs
//! against our port.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{Operator, changed, control_of, request, word};
use crate::interop::pythons;
use crate::support::client::{Asked, Client};
use crate::support::front::Front;
use crate::support::golden;
use crate::support::peer::{Peer, Replies};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

/// Runs the program to its end.
fn lurcher(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lurcher"))
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn succeeds(directory: &Path, arguments: &[&str]) -> String {
    let output = lurcher(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    assert_eq!(complained(&output), "", "{arguments:?}");
    said(&output)
}

/// What is complained of, with this exit code and nothing on stdout.
#[track_caller]
fn fails(directory: &Path, arguments: &[&str], code: i32) -> String {
    let output = lurcher(directory, arguments);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {output:?}"
    );
    assert_eq!(said(&output), "", "{arguments:?}");
    complained(&output)
}

#[test]
fn a_server_is_found_by_its_configuration_and_by_its_address() {
    let mut front = Front::start("");
    let directory = front.directory().to_owned();
    let address = format!("ipc://{}", control_of(&front));
    for server in [
        &["main.conf"][..],
        &["main.conf", "--server", "main"],
        &["main.conf", "--server=main-uuid"],
        &["--control", &address],
    ] {
        let ask = |words: &[&str]| {
            let (config, rest) = server.split_at(usize::from(server[0] == "main.conf"));
            succeeds(&directory, &[&["control"], config, words, rest].concat())
        };
        assert_eq!(ask(&["uuid"]), "main-uuid\n");
        let version = format!("Lurcher/{}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(ask(&["version"]), version);
        let tasks = ask(&["status", "what=tasks"]);
        let lines: Vec<_> = tasks.lines().collect();
        assert_eq!(lines[0], "ID  SYSTEM  NAME          STATE         STATUS");
        assert_eq!(lines[1], "1   false   SERVER        read fd       idle");
    }
    assert_eq!(
        succeeds(&directory, &["running", "main.conf"]),
        "main is running\n"
    );
    let pools = succeeds(&directory, &["status", "main.conf"]);
    assert!(
        pools.starts_with("POOL ") && pools.contains("\nPOOL "),
        "{pools}"
    );
    let handlers = succeeds(&directory, &["status", "main.conf", "--what=handlers"]);
    assert!(
        handlers.starts_with("IDENT ") && handlers.contains("app-ident"),
        "{handlers}"
    );
    let told = succeeds(&directory, &["reload", "main.conf"]);
    assert_eq!(told, "signal sent to server\n");
    front.program.line("logs reopened", |line| {
        line.contains("logs reopened").then_some(())
    });
    let told = succeeds(&directory, &["stop", "--control", &address]);
    assert_eq!(told, "signal sent to server\n");
    assert!(front.program.ended().success());
    let output = lurcher(&directory, &["running", "main.conf"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).starts_with("not running: no control port at "),
        "{output:?}"
    );
    let dead = format!("tcp://127.0.0.1:{}", free_port());
    let why = fails(&directory, &["stop", "--control", &dead], 1);
    assert_eq!(
        why,
        format!("lurcher: no control port at {dead}: connection refused\n")
    );
    let why = fails(&directory, &["stop", "main.conf"], 1);
    assert!(
        why.starts_with("lurcher: no control port at ") && why.contains("no such file"),
        "{why}"
    );
}

#[test]
fn json_is_a_list_of_objects() {
    let front = Front::start("");
    let said = succeeds(
        front.directory(),
        &["control", "main.conf", "info", "--json"],
    );
    let info: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(info[0]["uuid"], "main-uuid");
    assert_eq!(info[0]["port"], front.address.port());
    let said = succeeds(
        front.directory(),
        &["status", "main.conf", "--json", "--what=net"],
    );
    assert_eq!(serde_json::from_str::<Vec<()>>(&said).unwrap(), []);
}

#[test]
fn arguments_of_digits_are_sent_as_numbers() {
    let front = Front::start("");
    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    peer.joined();
    let mut client = Client::connect(front.address);
    client
        .send(b"GET /kill HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let (_, id) = request(&peer);
    let id = format!("id={id}");
    let said = succeeds(front.directory(), &["control", "main.conf", "kill", &id]);
    assert_eq!(said, "OK\n");
    assert!(client.try_answer(Asked::Other, PATIENCE).is_none() && client.ended());
    for id in [&id, "id=-1", "id=x"] {
        let why = fails(front.directory(), &["control", "main.conf", "kill", id], 1);
        assert_eq!(
            why,
            "lurcher: the server refuses: INVALID_ARGUMENT: Invalid argument type.\n"
        );
    }
    let why = fails(front.directory(), &["control", "main.conf", "TIME"], 1);
    assert!(why.contains("CALLBACK_NOT_FOUND"), "{why}");
}

#[test]
fn what_cannot_be_understood_is_two() {
    let directory = scratch();
    for arguments in [
        &["control"][..],
        &["control", "what=net"],
        &["control", "a", "b", "c"],
        &["control", "--control=ipc://x", "main.conf", "status"],
        &["control", "--control=nonsense", "status"],
        &["control", "--timeout=0", "status"],
        &["running", "--timeout=never"],
    ] {
        fails(directory.path(), arguments, 2);
    }
}

#[test]
fn another_server_at_the_address_is_not_obeyed_to() {
    let mut front = Front::start("");
    let directory = scratch();
    let socket = format!("ipc://{}", control_of(&front));
    let config = changed(directory.path(), |conf| {
        let own = format!("ipc://{}/control", directory.path().display());
        conf.replace(&own, &socket)
            .replace("main-uuid", "other-uuid")
    });
    let why = fails(directory.path(), &["stop", &config], 1);
    assert!(why.contains("is another server, main-uuid"), "{why}");
    let output = lurcher(directory.path(), &["running", &config]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(front.program.alive());
}

#[test]
fn a_server_that_does_not_answer_is_an_error_that_says_so() {
    let directory = scratch();
    let path = directory.path().join("mute");
    let address = format!("ipc://{}", path.display());
    // It listens, and that is all.
    let _mute = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let began = Instant::now();
    let arguments = ["control", "--control", &address, "--timeout", "0.3", "time"];
    let why = fails(directory.path(), &arguments, 1);
    assert_eq!(
        why,
        format!("lurcher: {address} gives no answer within 0.3 s\n")
    );
    assert!(began.elapsed() >= Duration::from_millis(300));

    // Something else that answers.
    let path = directory.path().join("other");
    let address = format!("ipc://{}", path.display());
    let rep = zmq::Context::new().socket(zmq::REP).unwrap();
    rep.bind(&address).unwrap();
    let other = std::thread::spawn(move || {
        rep.recv_bytes(0).unwrap();
        rep.send("hello", 0).unwrap();
        rep
    });
    let why = fails(
        directory.path(),
        &["control", "--control", &address, "time"],
        1,
    );
    assert!(why.contains("what answers is no control port"), "{why}");
    other.join().unwrap();
}

#[test]
fn what_a_server_says_cannot_drive_a_terminal() {
    let directory = scratch();
    let address = format!("ipc://{}", directory.path().join("rep").display());
    let rep = zmq::Context::new().socket(zmq::REP).unwrap();
    rep.bind(&address).unwrap();
    let other = std::thread::spawn(move || {
        rep.recv_bytes(0).unwrap();
        let cell = "\u{1b}[2J\u{9b}x";
        let cell = format!("{}:{cell},", cell.len());
        let row = format!("{}:{cell}]", cell.len());
        let rows = format!("{}:{row}]", row.len());
        let dict = format!("7:headers,4:1:a,]4:rows,{rows}");
        rep.send(&format!("{}:{dict}}}", dict.len()), 0).unwrap();
        rep
    });
    let said = succeeds(
        directory.path(),
        &["control", "--control", &address, "time"],
    );
    assert_eq!(said, "\u{fffd}[2J\u{fffd}x\n");
    other.join().unwrap();
}

#[test]
fn mongrel2_is_asked_and_stopped_too() {
    let directory = scratch();
    let golden = golden::prepare("golden", directory.path());
    let Some(mut mongrel2) = Program::mongrel2(&golden.database, &golden.uuid, directory.path())
    else {
        return;
    };
    mongrel2.answering(golden.address);
    let here = directory.path();
    let database = golden.database.to_str().unwrap();
    assert_eq!(
        succeeds(here, &["control", database, "uuid"]),
        format!("{}\n", golden.uuid)
    );
    let running = succeeds(here, &["running", database]);
    assert!(running.ends_with(" is running\n"), "{running}");
    let info = succeeds(here, &["control", database, "info"]);
    assert!(info.contains(&golden.address.port().to_string()), "{info}");
    // It has no handlers to show, and shows its tasks then.
    let tasks = succeeds(here, &["status", database]);
    assert!(tasks.contains("Handler_task"), "{tasks}");
    let _client = Client::connect(golden.address);
    let end = Instant::now() + PATIENCE;
    while succeeds(here, &["status", database, "--what=net"])
        .lines()
        .count()
        < 2
    {
        assert!(Instant::now() < end, "it does not see the connection");
    }
    let why = fails(here, &["control", database, "version"], 1);
    assert!(why.contains("CALLBACK_NOT_FOUND"), "{why}");
    // Its answer may be lost as it ends.
    let told = succeeds(here, &["stop", database]);
    let expected = ["signal sent to server\n", "the server has ended\n"];
    assert!(expected.contains(&told.as_str()), "{told}");
    mongrel2.ended();
    let output = lurcher(here, &["running", database]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// Asks as a script of an operator would.
const ASK: &str = "
import sys, zmq
context = zmq.Context()
req = context.socket(zmq.REQ)
req.setsockopt(zmq.LINGER, 0)
req.connect(sys.argv[1])
for question in (b'10:4:uuid,0:}]', b'10:4:uuid,0:}]\\0', b'28:6:status,15:4:what,5:tasks,}]'):
    req.send(question)
    assert req.poll(10000), 'no answer'
    print(req.recv().decode())
";

#[test]
fn pythons_zeromq_asks() {
    for python in pythons() {
        let front = Front::start("");
        let address = format!("ipc://{}", control_of(&front));
        let output = Command::new(&python)
            .args(["-c", ASK, &address])
            .output()
            .unwrap();
        assert!(output.status.success(), "{python}: {output:?}");
        let said = said(&output);
        let uuid = "47:7:headers,7:4:uuid,]4:rows,16:12:9:main-uuid,]]}";
        let lines: Vec<_> = said.lines().collect();
        assert_eq!((lines[0], lines[1]), (uuid, uuid), "{python}");
        assert!(
            lines[2].contains("12:Handler_task,12:read handler,"),
            "{python}: {said}"
        );
    }
}

#[test]
fn m2sh_asks() {
    if Command::new("m2sh").arg("help").output().is_err() {
        println!("skipped: m2sh is not installed (Debian: mongrel2-core)");
        return;
    }
    let directory = scratch();
    let here = directory.path();
    fs::create_dir(here.join("run")).unwrap();
    let config = changed(here, |conf| {
        let own = format!("ipc://{}/control", here.display());
        // Where m2sh looks, whatever is configured: run/control in the chroot.
        conf.replace(&own, &format!("ipc://{}/run/control", here.display()))
    });
    let mut program = Program::lurcher(&["serve", &config], here);
    program.listening();
    let database = here.join("m2sh.sqlite");
    let chrooted = fs::read_to_string(&config)
        .unwrap()
        .replace("chroot=''", &format!("chroot='{}'", here.display()));
    let file = here.join("m2sh.conf");
    fs::write(&file, chrooted).unwrap();
    let loaded = Command::new("m2sh")
        .args(["load", "-db"])
        .arg(&database)
        .arg("-config")
        .arg(&file)
        .output()
        .unwrap();
    assert!(loaded.status.success(), "{loaded:?}");
    let mut shell = Command::new("m2sh")
        .args(["control", "-every", "-db"])
        .arg(&database)
        .current_dir(here)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    {
        use std::io::Write as _;
        let mut stdin = shell.stdin.take().unwrap();
        stdin
            .write_all(b"uuid\nstatus what=tasks\nkill id=5\n")
            .unwrap();
    }
    let output = shell.wait_with_output().unwrap();
    let said = said(&output) + &complained(&output);
    assert!(said.contains("main-uuid"), "{said}");
    assert!(said.contains("Handler_task"), "{said}");
    assert!(said.contains("ERROR: Invalid argument type."), "{said}");
    let operator = Operator::at(&format!("ipc://{}/run/control", here.display()));
    assert_eq!(word(&operator.table("uuid", &[]), 0, "uuid"), "main-uuid");
}
