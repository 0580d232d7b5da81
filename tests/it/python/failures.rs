//! What becomes of requests when an application, a worker or a client does not do as it should, and what is said about it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lurcher::websocket::handshake::accept;

use super::{App, ask, each, python, python_with, text};
use crate::support::PATIENCE;
use crate::support::client::{Answer, Client};
use crate::support::servers::{self, Kind, Server};

/// Both interfaces of the application that makes trouble.
const BOTH: [&str; 2] = ["troubles:application", "troubles:app"];

/// Where an application says what became of it.
struct Note(PathBuf);

impl Note {
    fn new(server: &Server, name: &str) -> Self {
        Self(server.directory().join(name))
    }

    /// A path of the application with this file in its query.
    fn for_path(&self, path: &str) -> String {
        format!("{path}?file={}", self.0.display())
    }

    /// Waits until it is written.
    fn read(&self, app: &App) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&self.0).unwrap_or_default();
            if !text.is_empty() {
                return text;
            }
            assert!(
                Instant::now() < end,
                "{}\nnothing in {}",
                app.program,
                self.0.display()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A request whose answer is read later, if at all.
fn open(server: &Server, path: &str) -> Client {
    open_with("GET", server, path)
}

/// One that is not handed to another worker when its own is gone.
fn post(server: &Server, path: &str) -> Client {
    open_with("POST", server, path)
}

fn open_with(method: &str, server: &Server, path: &str) -> Client {
    let mut client = Client::connect(server.address);
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    client.send(head.as_bytes()).expect("send a request");
    client
}

fn get(server: &Server, path: &str) -> Answer {
    ask(server.address, &format!("GET {path}"), "", b"")
}

pub(super) fn kill(pid: u32) {
    let sent = Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status();
    assert!(sent.is_ok_and(|status| status.success()));
}

/// Until somebody answers as he should: a worker that is gone may still have been given a request.
fn recovers(server: &Server, app: &App) {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = get(server, "/");
        if (answer.status, &*text(&answer)) == (200, "well\n") {
            return;
        }
        assert!(
            answer.status == 502 && Instant::now() < end,
            "{}\n{answer:?}",
            app.program
        );
    }
}

#[test]
fn a_module_that_raises_is_told_with_its_traceback() {
    let Some(python) = python() else { return };
    let server = Server::start(Kind::Lurcher, "json", "").expect("one of ours");
    for (app, words) in [
        (
            "broken:application",
            "RuntimeError: no configuration for this shop",
        ),
        ("no_such_module:application", "no_such_module"),
        ("hello:no_such_name", "no_such_name"),
    ] {
        let mut app = App::starting(python, &server, app, &[], |_| {});
        assert_eq!(app.program.ended().code(), Some(1), "{}", app.program);
        app.program.said(words, 1);
        app.program.said("ended before they were ready", 1);
        let lines = app.program.lines();
        let traced = lines
            .iter()
            .any(|line| line.contains("broken.py\", line 3"));
        assert_eq!(traced, words.starts_with("RuntimeError"), "{}", app.program);
        // Nothing of ours stands between the user and his mistake.
        let own = lines.iter().find(|line| line.contains("File \"<"));
        assert_eq!(own, None, "{}", app.program);
    }
}

#[test]
fn an_application_that_raises_is_answered_for_and_told_about() {
    for target in BOTH {
        each(target, &[], |server, app| {
            let answer = get(server, "/raise");
            assert_eq!(answer.status, 500, "{}", app.program);
            assert!(!text(&answer).contains("stock"), "{answer:?}");
            app.program.said("RuntimeError: out of stock", 1);
            app.program.said("troubles.py\", line ", 1);
            // Half a response must not look whole.
            let mut client = open(server, "/raise-later");
            let rest = String::from_utf8_lossy(&client.rest()).into_owned();
            assert!(
                rest.starts_with("HTTP/1.1 200 ") && rest.contains("begun\n"),
                "{rest}"
            );
            assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
            app.program.said("RuntimeError: out of stock, said late", 1);
            assert_eq!(text(&get(server, "/")), "well\n");
        });
    }
}

#[test]
fn an_application_that_exits_does_not_take_its_worker_with_it() {
    each(BOTH[0], &[], |server, app| {
        assert_eq!(get(server, "/exit").status, 500);
        app.program.said("an application that exits", 1);
        assert_eq!(text(&get(server, "/")), "well\n");
    });
}

#[test]
fn what_a_killed_worker_had_is_answered_for_and_another_takes_its_place() {
    let Some(python) = python() else { return };
    for target in BOTH {
        servers::each("", |server| {
            let mut app = App::start(python, &server, target, &["--threads=2"]);
            let pid = app.ready(1)[0];
            let note = Note::new(&server, "held");
            let mut held = post(&server, &note.for_path("/hold"));
            note.read(&app);
            assert_eq!(text(&get(&server, "/")), "well\n");
            kill(pid);
            app.program.said("died: signal: 9 (SIGKILL)", 1);
            assert_eq!(held.answer().status, 502, "{}", app.program);
            app.ready(2);
            recovers(&server, &app);
        });
    }
}

/// Opens a WebSocket and says one thing on it.
fn socket(server: &Server, path: &str) -> Client {
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let mut client = Client::connect(server.address);
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    );
    client.send(head.as_bytes()).expect("send a handshake");
    let answer = client.answer();
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(
        answer.header("sec-websocket-accept"),
        Some(&accept(key.as_bytes())[..])
    );
    // A mask of zeros leaves the text as it is.
    client.send(b"\x81\x82\0\0\0\0hi").expect("send a message");
    assert_eq!(client.upto(b"hi"), b"\x81\x02hi");
    client
}

#[test]
fn stopping_ends_with_streams_and_websockets_open() {
    let Some(python) = python() else { return };
    for target in BOTH {
        servers::each("", |server| {
            let options = ["--threads=2", "--graceful-timeout=2"];
            let mut app = App::start(python, &server, target, &options);
            let [dripped, talked] = ["dripped", "talked"].map(|name| Note::new(&server, name));
            let mut stream = open(&server, &dripped.for_path("/drip"));
            stream.upto(b"line 3\n");
            let is_asgi = target == BOTH[1];
            let mut socket = is_asgi.then(|| socket(&server, &talked.for_path("/talk")));
            let begin = Instant::now();
            let status = app.program.terminate();
            assert!(
                begin.elapsed() < PATIENCE && status.success(),
                "{status}\n{}",
                app.program
            );
            // The application was told, and the stream does not look whole.
            let told = dripped.read(&app);
            let expect = if is_asgi { "http.disconnect" } else { "closed" };
            assert_eq!(told, expect, "{}", app.program);
            let rest = String::from_utf8_lossy(&stream.rest()).into_owned();
            assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
            if let Some(socket) = &mut socket {
                // Going away.
                let close = socket.rest();
                assert_eq!(close.get(..4), Some(&b"\x88\x02\x03\xe9"[..]), "{close:?}");
                let told = talked.read(&app);
                assert!(told.starts_with("websocket.disconnect 1001"), "{told}");
            }
        });
    }
}

#[test]
fn an_application_that_blocks_for_ever_is_replaced_after_its_timeout() {
    let Some(python) = python() else { return };
    for (target, path) in [(BOTH[0], "/hold"), (BOTH[0], "/spin"), (BOTH[1], "/spin")] {
        for kind in [Kind::Lurcher, Kind::Mongrel2] {
            let Some(server) = Server::start(kind, "json", "") else {
                continue;
            };
            let mut app = App::start(python, &server, target, &["--timeout=1"]);
            let note = Note::new(&server, "held");
            let held = post(&server, &note.for_path(path));
            note.read(&app);
            app.program.said("--timeout", 1);
            // Where it stood is in the log.
            app.program.said("troubles.py\", line ", 1);
            drop(held);
            app.ready(2);
            recovers(&server, &app);
        }
    }
}

#[test]
fn a_greenlet_may_wait_for_long_and_one_that_stops_all_others_is_replaced() {
    for io in ["gevent", "eventlet"] {
        let Some(python) = python_with(&[io]) else {
            continue;
        };
        let server = Server::start(Kind::Lurcher, "tnetstring", "").expect("one of ours");
        let io = format!("--io={io}");
        let mut app = App::start(python, &server, BOTH[0], &["--timeout=1", &io]);
        assert_eq!(
            text(&get(&server, "/wait?2.5")),
            "well\n",
            "{}",
            app.program
        );
        let note = Note::new(&server, "held");
        let held = post(&server, &note.for_path("/spin"));
        note.read(&app);
        app.program.said(
            "the event loop stands still (the last request that it began with was POST /spin)",
            1,
        );
        app.program.said("troubles.py\", line ", 1);
        drop(held);
        app.ready(2);
        recovers(&server, &app);
    }
}

#[test]
fn starting_and_stopping_an_application_may_take_longer_than_its_requests() {
    let Some(python) = python() else { return };
    let server = Server::start(Kind::Lurcher, "json", "").expect("one of ours");
    let mut app = App::start(python, &server, "troubles:starts_slowly", &["--timeout=1"]);
    // Nor is a request timed that waits on a loop that turns.
    assert_eq!(text(&get(&server, "/wait?2.5")), "well\n");
    assert!(app.program.terminate().success(), "{}", app.program);
    for step in ["startup", "shutdown"] {
        app.program.said(&format!("slow {step} is done"), 1);
    }
}

#[test]
fn stopping_does_not_wait_for_an_application_that_has_not_started() {
    let Some(python) = python() else { return };
    let server = Server::start(Kind::Lurcher, "json", "").expect("one of ours");
    for (app, option) in [
        ("endless:application", "--threads=1"),
        ("troubles:never_starts", "--threads=1"),
        ("troubles:never_starts", "--preload"),
    ] {
        // Nothing is killed because it took too long.
        let options = ["--graceful-timeout=3600", option];
        let mut app = App::starting(python, &server, app, &options, |_| {});
        app.program.said("it starts, and has much to do", 1);
        assert!(app.program.terminate().success(), "{}", app.program);
        app.program.said(
            "it was told to stop while its application was loading or starting",
            1,
        );
    }
}

#[test]
fn stopping_ends_although_an_application_blocks_for_ever() {
    let Some(python) = python() else { return };
    for (target, path) in [
        (BOTH[0], "/hold"),
        (BOTH[0], "/spin"),
        (BOTH[1], "/hold"),
        (BOTH[1], "/spin"),
    ] {
        let server = Server::start(Kind::Lurcher, "json", "").expect("one of ours");
        let mut app = App::start(python, &server, target, &["--graceful-timeout=1"]);
        let note = Note::new(&server, "held");
        let mut held = post(&server, &note.for_path(path));
        note.read(&app);
        let begin = Instant::now();
        app.program.terminate();
        assert!(begin.elapsed() < PATIENCE, "{}", app.program);
        // Its client hears of it.
        let answer = held.answer();
        assert!(
            matches!(answer.status, 502 | 503),
            "{answer:?}\n{}",
            app.program
        );
    }
}

#[test]
fn a_client_that_leaves_in_mid_stream_ends_the_stream() {
    for target in BOTH {
        each(target, &[], |server, app| {
            let note = Note::new(server, "dripped");
            let mut client = open(server, &note.for_path("/drip"));
            client.upto(b"line 3\n");
            drop(client);
            let told = note.read(app);
            let expect = if target == BOTH[1] {
                "http.disconnect"
            } else {
                "closed"
            };
            assert_eq!(told, expect);
            assert_eq!(text(&get(server, "/")), "well\n");
            // That is everyday life, not an error.
            let lines = app.program.lines();
            let bad = lines
                .iter()
                .find(|line| line.contains("Traceback") || line.contains("ERROR"));
            assert_eq!(bad, None, "{}", app.program);
        });
    }
}

/// The most resident memory that a process has had, in KiB.
pub(super) fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a line for it");
    line.trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number")
}

/// Above what it took before a large body, in KiB: some buffers, and nothing that grows with it.
pub(super) const GROWTH: u64 = 40 * 1024;

#[test]
fn an_upload_of_a_gibibyte_passes_in_flat_memory() {
    let Some(python) = python() else { return };
    for target in BOTH {
        for (kind, stored) in [
            (Kind::Lurcher, false),
            (Kind::Lurcher, true),
            (Kind::Mongrel2, true),
        ] {
            let store = crate::support::scratch();
            let settings = if stored {
                format!(
                    ", 'upload.temp_store': '{}/up.XXXXXX'",
                    store.path().display()
                )
            } else {
                ", 'upload.stream': 1".to_owned()
            };
            let Some(server) = Server::start(kind, "tnetstring", &settings) else {
                continue;
            };
            let mut app = App::start(python, &server, target, &[]);
            let pid = app.ready(1)[0];
            assert_eq!(text(&get(&server, "/")), "well\n");
            let before = peak(pid);
            upload(&server, &app, 1 << 30);
            let after = peak(pid);
            assert!(
                after < before + GROWTH,
                "{before} KiB before, {after} KiB after, {kind:?}, stored: {stored}"
            );
            assert!(app.program.terminate().success());
            assert!(is_empty(store.path()), "uploads are removed");
        }
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a folder").next().is_none()
}

/// Sends so many bytes and expects them all to have been counted.
fn upload(server: &Server, app: &App, size: usize) {
    let mut client = Client::connect(server.address);
    let head = format!("POST /count HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
    client.send(head.as_bytes()).expect("send a head");
    let piece: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    for _ in 0..size / piece.len() {
        client.send(&piece).expect("send a piece");
    }
    let answer = client
        .try_answer(crate::support::client::Asked::Other, PATIENCE * 6)
        .unwrap_or_else(|| panic!("{}\nno answer", app.program));
    let told = text(&answer);
    assert!(told.starts_with(&format!("{size} bytes, sum ")), "{told}");
    let sum = told.trim_end().rsplit(' ').next();
    assert_eq!(sum, Some(&*checksum(size / piece.len())));
}

/// The checksum of so many of those pieces one after another, as Python has it, which is quicker at it than a test.
pub(super) fn checksum(count: usize) -> String {
    let program = format!(
        "import zlib; piece = bytes(at % 251 for at in range(1 << 20)); sum = 0\n\
         for _ in range({count}): sum = zlib.crc32(piece, sum)\n\
         print(f'{{sum:08x}}')"
    );
    let mut command = Command::new(python().expect("it was there before"));
    let output = command.args(["-c", &program]).output().expect("run Python");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
