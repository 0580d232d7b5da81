//! `lurcher run` and the built-in handlers, as programs of their own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::fake_front::{Front, json, request};

/// The program, ended when dropped.
pub(super) struct Program {
    child: Child,
    log: Option<JoinHandle<String>>,
}

impl Program {
    /// Starts `lurcher run` and waits until it says to be connected.
    pub(super) fn run(app: &str, front: &Front, options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lurcher"))
            // Alone: what is tested is the handler.
            .args([
                "run",
                "--workers=0",
                app,
                &front.send_spec,
                &front.recv_spec,
            ])
            .args(options)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let Front {
            send_spec,
            recv_spec,
            ..
        } = front;
        let expect = format!("handler {app}: connected to {send_spec}, replies to {recv_spec}\n");
        assert!(line.ends_with(&expect), "{line}");
        let log = thread::spawn(move || {
            log.read_to_string(&mut line).unwrap();
            line
        });
        Self {
            child,
            log: Some(log),
        }
    }

    pub(super) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Its exit code and its log.
    pub(super) fn wait(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        (status.code(), self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn echo_answers_with_the_body() {
    let front = Front::new();
    let echo = Program::run("echo", &front, &[]);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n";
    front.push(&request(1, "POST", "HTTP/1.1", "a body"));
    assert_eq!(
        front.reply(),
        format!("front 1:1, {head}Content-Length: 6\r\n\r\na body")
    );
    front.push(&request(2, "HEAD", "HTTP/1.1", ""));
    assert_eq!(
        front.reply(),
        format!("front 1:2, {head}Content-Length: 0\r\n\r\n")
    );
    front.push(&json(
        "front",
        2,
        "@*",
        &[("METHOD", "JSON")],
        "{\"type\":\"disconnect\"}",
    ));
    front.push(&request(3, "BREW", "HTTP/1.0", "tea"));
    assert_eq!(
        front.reply(),
        format!("front 1:3, {head}Connection: close\r\nContent-Length: 3\r\n\r\ntea")
    );
    assert_eq!(front.reply(), "front 1:3, ");
    front.push(&json(
        "front",
        4,
        "@chat",
        &[
            ("METHOD", "JSON"),
            ("PATTERN", "@chat"),
            ("REMOTE_ADDR", "::1"),
        ],
        "{}",
    ));
    assert_eq!(front.reply(), "front 1:4, {}");
    // Pushed before the signal, answered after it.
    for id in 1000..1500 {
        front.push(&request(id, "GET", "HTTP/1.1", ""));
    }
    echo.signal("TERM");
    for id in 1000..1500 {
        assert_eq!(
            front.reply(),
            format!("front 4:{id}, {head}Content-Length: 0\r\n\r\n")
        );
    }
    let (code, log) = echo.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.trim_end().ends_with("handler echo: stopped"), "{log}");
}

#[test]
fn a_second_signal_ends_a_stuck_handler_at_once() {
    let front = Front::new();
    let echo = Program::run("echo", &front, &[]);
    // Nobody reads the replies: with this much it has to wait.
    let body = "x".repeat(100_000);
    for id in 0..1500 {
        if front
            .push
            .send(request(id, "POST", "HTTP/1.1", &body), zmq::DONTWAIT)
            .is_err()
        {
            break;
        }
    }
    echo.signal("INT");
    // Until the first signal is known to have come, so that the second is one of its own.
    thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    echo.signal("INT");
    let (code, log) = echo.wait();
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it waited for the deadline"
    );
    assert!(
        code == Some(1) || log.contains("stopped\n"),
        "{code:?} {log}"
    );
}

#[test]
fn respond_fills_in_facts_of_the_request() {
    let front = Front::new();
    let body = "%(PATH)s|%(PREFIX)s|%(MATCH)s|%(X-Who)s|%(METHOD)s|%(nobody)s|100%%";
    let location = "Location=https://example.org/%(MATCH)s?%(x-who)s";
    let options = [
        "--code",
        "302",
        "--status",
        "Over %(METHOD)s there",
        "--header",
        location,
        "--header",
        "X-B=2",
        "--body",
        body,
    ];
    let respond = Program::run("respond", &front, &options);
    let facts = [
        ("METHOD", "GET"),
        ("VERSION", "HTTP/1.1"),
        ("PATTERN", "/old/(.*)"),
        ("x-who", "me\r\nSet-Cookie: a=b"),
    ];
    front.push(&json("front", 1, "/old/page", &facts, ""));
    let expect = "front 1:1, HTTP/1.1 302 Over GET there\r\nLocation: https://example.org/page?me  Set-Cookie: a=b\r\n\
        X-B: 2\r\nContent-Length: 59\r\n\r\n/old/page|/old/|page|me\r\nSet-Cookie: a=b|GET||100%";
    let reply = front.reply();
    let length = expect.rsplit_once("\r\n\r\n").unwrap().1.len();
    assert_eq!(reply, expect.replace("59", &length.to_string()));
    respond.signal("TERM");
    assert_eq!(respond.wait().0, Some(0));
}

#[test]
fn mistakes_on_the_command_line_are_told_in_a_line() {
    #[track_caller]
    fn check(arguments: &[&str], expect: &str) {
        let output = Command::new(env!("CARGO_BIN_EXE_lurcher"))
            .arg("run")
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(expect), "{stderr}");
        assert_eq!(output.status.code(), Some(2));
    }
    check(
        &["nothing", "tcp://127.0.0.1:1"],
        "lurcher: running `nothing`: no such handler: there are echo, ",
    );
    check(&["echo"], "no server named: give its send_spec");
    check(
        &["echo", "ipc://a"],
        "lurcher: running `echo`: ipc://a has no port that its recv spec could be one below",
    );
    check(
        &[
            "echo",
            "tcp://127.0.0.1:5555,tcp://127.0.0.1:6666",
            "ipc://a",
        ],
        "2 send specs do not go with 1 recv specs",
    );
    check(&["echo", "tcp://nowhere"], "no port");
    check(
        &["respond", "tcp://127.0.0.1:5555", "--code", "42"],
        "--code is not a number from 200 to 999",
    );
    check(
        &["respond", "tcp://127.0.0.1:5555", "--body", "5%"],
        "--body has a `%` that is neither",
    );
    let help = Command::new(env!("CARGO_BIN_EXE_lurcher"))
        .args(["run", "respond", "--help"])
        .output()
        .unwrap();
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("--header <NAME=VALUE>"));
}

/// The real Mongrel2 with one route for each protocol; nothing where it is not installed.
struct Mongrel2 {
    child: Child,
    http: u16,
    send_specs: [String; 2],
    recv_specs: [String; 2],
}

impl Mongrel2 {
    fn start(directory: &Path) -> Option<Self> {
        let (mongrel2, m2sh) = (Path::new("/usr/bin/mongrel2"), Path::new("/usr/bin/m2sh"));
        if !mongrel2.exists() || !m2sh.exists() {
            println!(
                "skipped: {} or {} is not installed (Debian: mongrel2-core)",
                mongrel2.display(),
                m2sh.display()
            );
            return None;
        }
        for name in ["run", "logs", "tmp"] {
            std::fs::create_dir(directory.join(name)).unwrap();
        }
        // Free now; somebody else may take it before Mongrel2 does, but hardly.
        let http = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        // Mongrel2's paths begin in its chroot, which is this directory.
        let spec = |name: &str| format!("ipc://{}", directory.join(name).display());
        let (send_specs, recv_specs) = ([spec("s0"), spec("s1")], [spec("r0"), spec("r1")]);
        let conf = format!(
            "main = Server(uuid='f400bf85-4538-4f7a-8908-67e313d515c2', access_log='/logs/access.log',
                error_log='/logs/error.log', chroot='./', default_host='localhost', name='main', pid_file='/run/m2.pid',
                port={http}, bind_addr='127.0.0.1', hosts=[Host(name='localhost', routes={{
                '/json': Handler(send_spec='ipc://s0', send_ident='json-ident', recv_spec='ipc://r0', recv_ident='json-ident'),
                '/tnet': Handler(send_spec='ipc://s1', send_ident='tnet-ident', recv_spec='ipc://r1', recv_ident='',
                                 protocol='tnetstring') }})])
            settings = {{'server.daemonize': 0}}
            servers = [main]
            "
        );
        std::fs::write(directory.join("m2.conf"), conf).unwrap();
        let loaded = Command::new(m2sh)
            .args(["load", "-config", "m2.conf", "-db", "m2.sqlite"])
            .current_dir(directory)
            .output();
        assert!(loaded.unwrap().status.success());
        let log = std::fs::File::create(directory.join("out.log")).unwrap();
        let child = Command::new(mongrel2)
            .args(["m2.sqlite", "f400bf85-4538-4f7a-8908-67e313d515c2"])
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Self {
            child,
            http,
            send_specs,
            recv_specs,
        })
    }

    /// One exchange on a connection of its own, closed by the server.
    fn exchange(&self, request: &str) -> String {
        let begun = Instant::now();
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", self.http)) {
                Ok(stream) => break stream,
                Err(error) => assert!(
                    begun.elapsed() < PATIENCE,
                    "mongrel2 does not listen: {error}"
                ),
            }
            thread::sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }
}

impl Drop for Mongrel2 {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn echo_serves_the_real_mongrel2_in_both_protocols() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mongrel2) = Mongrel2::start(directory.path()) else {
        return;
    };
    let mut echo = Command::new(env!("CARGO_BIN_EXE_lurcher"))
        .args([
            "run",
            "echo",
            &mongrel2.send_specs.join(","),
            &mongrel2.recv_specs.join(","),
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n";
    for path in ["/json", "/tnet"] {
        let get = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_eq!(
            mongrel2.exchange(&get),
            format!("{head}Content-Length: 0\r\n\r\n")
        );
        let post =
            format!("POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 5\r\n\r\na b\tc");
        assert_eq!(
            mongrel2.exchange(&post),
            format!("{head}Content-Length: 5\r\n\r\na b\tc")
        );
    }
    let stopped = Command::new("kill")
        .arg(echo.id().to_string())
        .status()
        .unwrap();
    assert!(stopped.success());
    assert_eq!(echo.wait().unwrap().code(), Some(0));
}
