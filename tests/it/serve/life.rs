//! What the operator sees: stopping, logs, and configurations that cannot be served.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{HELLO, Handler, QUIET, body, closed, get, ok, send};
use crate::support::client::{Asked, Client};
use crate::support::front::{Front, conf};
use crate::support::peer::{Peer, Replies};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

#[test]
fn a_stopping_front_finishes_what_is_open_and_takes_no_more() {
    let mut front = Front::start("");
    let handler = Handler::of(&front);
    let mut idle = Client::connect(front.address);
    send(&mut idle, get("/idle"));
    handler.answer("/idle", HELLO);
    idle.answer();
    let mut busy = Client::connect(front.address);
    send(&mut busy, get("/busy"));
    let got = handler.got();
    front.program.signal("TERM");
    assert_eq!(closed(&mut idle), b"");
    assert!(
        Client::try_connect(front.address).is_err(),
        "the listener is closed"
    );
    assert!(front.program.alive());
    handler.reply(&got.id, &ok("done"));
    let answer = busy.answer();
    assert_eq!(body(&answer), "done");
    // Told, so that it does not send its next request into a closed connection.
    assert_eq!(answer.header("connection"), Some(b"close".as_slice()));
    assert_eq!(closed(&mut busy), b"");
    drop((idle, busy));
    assert!(front.program.ended().success());
}

#[test]
fn a_request_that_was_sent_before_the_end_began_is_answered() {
    let mut front = Front::start("");
    let handler = Handler::of(&front);
    // The front wakes up to all of it at once: connections to accept, requests on new and on used ones, and the signal.
    let mut used = Client::connect(front.address);
    send(&mut used, get("/used"));
    handler.answer("/used", HELLO);
    used.answer();
    front.program.signal("STOP");
    let mut fresh: Vec<_> = (0..20).map(|_| Client::connect(front.address)).collect();
    for client in fresh.iter_mut().chain([&mut used]) {
        send(client, get("/late"));
    }
    front.program.signal("TERM");
    front.program.signal("CONT");
    for _ in 0..21 {
        handler.answer("/late", &ok("late"));
    }
    for client in fresh.iter_mut().chain([&mut used]) {
        assert_eq!(body(&client.answer()), "late");
        assert_eq!(closed(client), b"");
    }
    drop((fresh, used));
    assert!(front.program.ended().success());
}

#[test]
fn a_stopping_front_ends_when_its_time_is_up_or_it_is_asked_twice() {
    for (settings, twice) in [(", 'limits.drain_timeout': 1", false), ("", true)] {
        let mut front = Front::start(settings);
        let handler = Handler::of(&front);
        let mut busy = Client::connect(front.address);
        send(&mut busy, get("/busy"));
        let got = handler.got();
        front.program.signal("TERM");
        if twice {
            front.program.line("that it drains", |line| {
                line.contains("draining").then_some(())
            });
            assert!(handler.got_within(QUIET).is_none());
            front.program.signal("TERM");
        }
        if !twice {
            handler.told_once(&got.id);
        }
        assert_eq!(closed(&mut busy), b"");
        assert!(front.program.ended().success());
    }
}

/// The fields of an access log's line: status and size last.
fn fields(line: &str) -> Vec<String> {
    let (length, mut rest) = line.split_once(':').expect("a tnetstring");
    assert!(rest.ends_with(']') && rest.len() == length.parse::<usize>().expect("a length") + 1);
    let mut fields = Vec::new();
    while let Some((length, after)) = rest.split_once(':') {
        let (value, after) = after.split_at(length.parse().expect("a length"));
        fields.push(value.to_owned());
        rest = after.get(1..).unwrap_or_default();
    }
    fields
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn wait_for_lines(path: &Path, count: usize) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let lines = lines(path);
        if lines.len() >= count {
            return lines;
        }
        assert!(Instant::now() < end, "{}: {lines:?}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_access_log_has_the_true_status_and_size_and_is_reopened_on_hangup() {
    let directory = scratch();
    let [send_spec, recv] =
        [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    conf(
        directory.path(),
        0,
        &send_spec,
        &recv,
        ", 'limits.content_length': 10",
    );
    let mut program = Program::lurcher(&["serve", "main.conf"], directory.path());
    let address = program.listening();
    let peer = Peer::connect(&send_spec, &recv, Replies::Xpub);
    peer.subscribed();
    let handler = Handler { peer };
    let access = directory.path().join("access.log");
    let mut client = Client::connect(address);
    send(
        &mut client,
        get("/a?q") + "HEAD /h HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    handler.answer(
        "/a",
        b"HTTP/1.1 203 Maybe\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
    );
    handler.answer("/h", HELLO);
    assert_eq!(client.answer().status, 203);
    client.try_answer(Asked::Head, PATIENCE).expect("a head");
    drop(client);
    let mut client = Client::connect(address);
    send(
        &mut client,
        "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n",
    );
    assert_eq!(client.answer().status, 413);
    let mut client = Client::connect(address);
    send(&mut client, get("/left"));
    handler.request("/left");
    drop(client);
    let seen: Vec<String> = wait_for_lines(&access, 4)
        .iter()
        .map(|line| fields(line))
        .map(|all| {
            assert_eq!(
                (all.len(), all[0].as_str(), all[1].as_str()),
                (9, "localhost", "127.0.0.1")
            );
            all[4..].join(" ")
        })
        .collect();
    assert_eq!(
        seen,
        [
            "GET /a HTTP/1.1 203 4",
            "HEAD /h HTTP/1.1 200 0",
            "POST /p HTTP/1.1 413 16",
            "GET /left HTTP/1.1 499 0",
        ]
    );
    let error = directory.path().join("error.log");
    wait_for_lines(&error, 1);
    for path in [&access, &error] {
        fs::rename(path, path.with_extension("old")).expect("rename a log");
    }
    program.signal("HUP");
    program.line("that logs are reopened", |line| {
        line.contains("reopening").then_some(())
    });
    let end = Instant::now() + PATIENCE;
    while !access.exists() || !error.exists() {
        assert!(Instant::now() < end, "not reopened");
        std::thread::sleep(Duration::from_millis(10));
    }
    // A line that is written when the server stops is not lost.
    let mut client = Client::connect(address);
    send(&mut client, get("/last"));
    let got = handler.request("/last");
    program.signal("TERM");
    program.line("that it drains", |line| {
        line.contains("draining").then_some(())
    });
    handler.reply(&got.id, HELLO);
    client.answer();
    drop(client);
    assert!(program.ended().success());
    assert_eq!(lines(&access).len(), 1);
    assert_eq!(lines(&access.with_extension("old")).len(), 4);
    assert!(lines(&error).iter().any(|line| line.contains("draining")));
}

#[test]
fn what_ends_in_the_middle_is_in_the_access_log() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let mut client = Client::connect(front.address);
    send(
        &mut client,
        "POST /part HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
    );
    drop(client);
    wait_for_lines(&front.access_log(), 1);
    let mut client = Client::connect(front.address);
    send(&mut client, get("/cut"));
    handler.answer("/cut", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel");
    client.upto(b"hel");
    // It dies.
    drop(handler);
    client.rest();
    let lines = wait_for_lines(&front.access_log(), 2);
    for (line, end) in lines
        .iter()
        .zip(["/part HTTP/1.1 499 0", "/cut HTTP/1.1 200 3"])
    {
        let fields = fields(line);
        assert_eq!(fields[5..].join(" "), end);
    }
}

#[test]
fn what_cannot_be_served_is_one_line_and_exit_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let [send_spec, recv] =
        [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    let refused = |what: &str, prepare: &dyn Fn(&Path) -> &'static str, expected: &str| {
        let directory = scratch();
        let file = prepare(directory.path());
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_lurcher"))
            .args(["serve", file])
            .current_dir(directory.path())
            .output()
            .expect("run lurcher");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let errors: Vec<_> = stderr
            .lines()
            .filter(|line| !line.contains("WARN") && !line.contains("INFO"))
            .collect();
        assert_eq!(output.status.code(), Some(1), "{what}: {stderr}");
        assert_eq!(errors.len(), 1, "{what}: {stderr}");
        assert!(errors[0].contains(expected), "{what}: {stderr}");
    };
    let write = |directory: &Path, port: u16, from: &str, to: &str| {
        let file = conf(directory, port, &send_spec, &recv, "");
        let text = fs::read_to_string(&file).expect("read");
        fs::write(file, text.replace(from, to)).expect("write");
        "main.conf"
    };
    refused("a port in use", &|d| write(d, port, "", ""), "in use");
    refused(
        "a handler's port in use",
        &|d| write(d, 0, &send_spec, &format!("tcp://127.0.0.1:{port}")),
        "in use",
    );
    refused(
        "an access log that cannot be opened",
        &|d| write(d, 0, "/access.log", "/no/such/access.log"),
        "access log",
    );
    refused(
        "an error log that cannot be opened",
        &|d| write(d, 0, "/error.log", "/no/such/error.log"),
        "error log",
    );
    refused(
        "a mistake in the configuration",
        &|d| write(d, 0, "hosts=[", "hosts=[["),
        "main.conf:",
    );
    refused(
        "a server with TLS and without certificates",
        &|d| write(d, 0, "hosts=[", "use_ssl=1, hosts=["),
        "certdir",
    );
    refused("no configuration", &|_| "nothing.conf", "nothing.conf");
    refused(
        "a foreign database",
        &|d| {
            let db = rusqlite::Connection::open(d.join("other.sqlite")).expect("a database");
            db.execute_batch("CREATE TABLE t (a)").expect("a table");
            "other.sqlite"
        },
        "other.sqlite",
    );
    // Nothing was left half started: what was free still is.
    let free = TcpListener::bind(send_spec.trim_start_matches("tcp://"));
    assert!(free.is_ok(), "{free:?}");
}
