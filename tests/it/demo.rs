//! `lurcher demo` as somebody who tries it: what it prints is true, and nothing is left of it, however it ends.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::client::{Answer, Client, fetch};
use crate::support::program::Program;
use crate::support::{PATIENCE, scratch};

const ROUTES: [&str; 3] = ["/echo", "/stream", "/"];

/// A running demo and what it has printed about itself.
struct Demo {
    program: Program,
    address: SocketAddr,
    /// The handlers' processes, in the order of [`ROUTES`].
    handlers: Vec<u32>,
}

impl Demo {
    fn start() -> Self {
        let directory = scratch();
        let mut program = Program::lurcher(&["demo", "--port", "0"], directory.path());
        let handlers = ROUTES.map(|route| {
            program.line(&format!("the process of {route}"), |line| {
                let mut words = line.split_whitespace();
                let told = words.next() == Some(route) && words.next() == Some("process");
                told.then(|| words.next()?.parse().ok()).flatten()
            })
        });
        let address = program.listening();
        Self {
            program,
            address,
            handlers: handlers.to_vec(),
        }
    }

    fn get(&self, path: &str) -> Answer {
        fetch(
            self.address,
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        )
    }

    fn stream(&self) -> Client {
        let mut client = Client::connect(self.address);
        client
            .send(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("send a request");
        client
    }

    /// That the handlers are gone, and nobody listens.
    #[track_caller]
    fn is_gone(&self) {
        for process in &self.handlers {
            let end = Instant::now() + PATIENCE;
            while runs(*process) {
                assert!(
                    Instant::now() < end,
                    "{}\nleft process {process} running",
                    self.program
                );
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        assert!(
            TcpStream::connect(self.address).is_err(),
            "the port is closed"
        );
    }
}

/// Whether a process does anything; one that has ended and was not waited for does not.
fn runs(process: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else {
        return false;
    };
    !stat
        .rsplit_once(") ")
        .is_some_and(|(_, state)| state.starts_with(['Z', 'X']))
}

/// Reads until `text` has come; gives how often that had something to read.
#[track_caller]
fn read_until(client: &mut Client, text: &str) -> usize {
    let (mut reads, end) = (0, Instant::now() + PATIENCE);
    while !String::from_utf8_lossy(client.bytes()).contains(text) {
        assert!(
            !client.ended() && Instant::now() < end,
            "no {text:?} in {:?}",
            String::from_utf8_lossy(client.bytes())
        );
        reads += usize::from(client.read_some(PATIENCE));
    }
    reads
}

#[test]
fn what_it_says_to_try_works_and_ctrl_c_leaves_nothing() {
    let mut demo = Demo::start();
    let page = demo.get("/");
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some(b"text/html; charset=utf-8".as_slice())
    );
    let page = String::from_utf8(page.body).expect("UTF-8");
    assert!(page.starts_with("<!doctype html>"), "{page}");
    for process in demo.handlers.iter().chain([&demo.program.id()]) {
        assert!(
            page.contains(&format!("<td>{process}<td>")),
            "the page lists process {process}: {page}"
        );
    }
    assert_eq!(demo.get("/nothing").status, 404);

    let echo = fetch(
        demo.address,
        "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    );
    assert_eq!(
        (echo.status, echo.body.as_slice()),
        (200, b"hello".as_slice())
    );

    let mut stream = demo.stream();
    read_until(&mut stream, "line 1 of");
    let early = stream.bytes().len();
    assert!(
        read_until(&mut stream, "line 3 of") >= 1,
        "it comes in pieces"
    );
    assert!(stream.bytes().len() > early, "it grows");
    assert!(
        !String::from_utf8_lossy(stream.bytes()).contains("\r\n0\r\n"),
        "and has not ended"
    );
    drop(stream);

    demo.program.signal("INT");
    assert_eq!(demo.program.ended().code(), Some(0), "{}", demo.program);
    demo.is_gone();
}

#[test]
fn an_open_stream_is_sent_to_its_end_when_it_stops() {
    let mut demo = Demo::start();
    let mut stream = demo.stream();
    read_until(&mut stream, "line 1 of");
    demo.program.signal("TERM");
    let whole = stream.answer();
    let body = String::from_utf8(whole.body).expect("UTF-8");
    assert_eq!(body.lines().count(), 20, "{body}");
    assert_eq!(demo.program.ended().code(), Some(0), "{}", demo.program);
    demo.is_gone();
}

#[test]
fn handlers_do_not_outlive_a_demo_that_was_killed() {
    let mut demo = Demo::start();
    assert_eq!(demo.get("/").status, 200);
    demo.program.kill();
    demo.is_gone();
}

#[test]
fn a_handler_that_dies_ends_it_with_its_name() {
    let mut demo = Demo::start();
    assert_eq!(demo.get("/").status, 200);
    let sent = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!("kill -KILL {}", demo.handlers[0]))
        .status();
    assert!(sent.is_ok_and(|status| status.success()));
    assert_eq!(demo.program.ended().code(), Some(1), "{}", demo.program);
    let (told, end) = (
        "lurcher: run the demo: handler echo ended: signal: 9 (SIGKILL)",
        Instant::now() + PATIENCE,
    );
    while !demo.program.to_string().contains(told) {
        assert!(Instant::now() < end, "{}", demo.program);
        std::thread::sleep(Duration::from_millis(10));
    }
    demo.is_gone();
}

#[test]
fn a_port_in_use_is_one_line_and_nothing_started() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_lurcher"))
        .args(["demo", "--port", &port])
        .output()
        .expect("run the program");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "lurcher: run the demo: `--port 0` takes any free port: listen on 127.0.0.1:{port}: Address already in use (os error 98)\n"
        )
    );
}
