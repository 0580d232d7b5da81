//! `--early-uploads`: stored uploads that applications read while they arrive, on both servers.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::failures::{GROWTH, checksum, kill, peak};
use super::{App, ask, python, python_with, text};
use crate::support::client::Client;
use crate::support::servers::{self, Kind, Server};
use crate::support::{PATIENCE, scratch};

const BOTH: [&str; 2] = ["early_uploads:application", "early_uploads:app"];

/// Runs a test on both applications behind both servers, in both protocols. Nothing stays stored.
fn each(options: &[&str], test: impl FnMut(&Server, &mut App, &Path)) {
    each_of(&BOTH, options, test);
}

fn each_of(targets: &[&str], options: &[&str], mut test: impl FnMut(&Server, &mut App, &Path)) {
    let Some(python) = python() else { return };
    for target in targets {
        let folder = scratch();
        let store = folder.path().join("up.XXXXXX");
        let store = store.to_str().expect("a name in UTF-8");
        let settings = format!(", 'limits.content_length': 10000, 'upload.temp_store': '{store}'");
        servers::each(&settings, |server| {
            let mut words = [&["--early-uploads"], options].concat();
            if server.kind == Kind::Mongrel2 {
                words.extend(["--upload-store", store]);
            }
            let mut app = App::start(python, &server, target, &words);
            test(&server, &mut app, folder.path());
            until(&app, || is_empty(folder.path()));
            assert!(app.program.terminate().success(), "{}", app.program);
            assert!(is_empty(folder.path()));
        });
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a folder").next().is_none()
}

#[track_caller]
fn until(app: &App, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "never:\n{}", app.program);
        std::thread::yield_now();
    }
}

fn head(path: &str, length: usize) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n").into()
}

#[test]
fn an_application_answers_about_the_first_part_before_the_rest_has_left() {
    // A client that takes its time is no reason to kill a worker.
    each(&["--timeout=1"], |server, app, _| {
        let pid = app.ready(1)[0];
        let piece: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
        let pieces = 100;
        let mut before = 0;
        for round in 0..2 {
            let mut client = Client::connect(server.address);
            client.send(&head("/quotes", pieces << 20)).unwrap();
            client.send(&piece).unwrap();
            client.upto(b"first 50000\n");
            if round == 0 {
                before = peak(pid);
                let (_open, never) = mpsc::channel::<()>();
                assert!(never.recv_timeout(Duration::from_millis(2500)).is_err());
            }
            for _ in 1..pieces {
                client.send(&piece).unwrap();
            }
            let expected = format!("all {} {}\n", pieces << 20, checksum(pieces));
            client.upto(expected.as_bytes());
            client.upto(b"0\r\n\r\n");
            // The connection is good for another.
            client
                .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            assert_eq!(text(&client.answer()), "not read\n");
        }
        let after = peak(pid);
        assert!(after < before + GROWTH, "{before} KiB, then {after} KiB");
    });
}

#[test]
fn greenlets_wait_for_one_part_while_others_answer() {
    if python_with(&["gevent"]).is_none() {
        return;
    }
    each_of(&BOTH[..1], &["--io=gevent"], |server, _, _| {
        let mut client = Client::connect(server.address);
        client.send(&head("/quotes", 100_000)).unwrap();
        client.send(&vec![b'a'; 60_000]).unwrap();
        client.upto(b"first 50000\n");
        assert_eq!(text(&ask(server.address, "GET /", "", b"")), "not read\n");
        client.send(&vec![b'a'; 40_000]).unwrap();
        client.upto(b"all 100000 ");
        client.upto(b"0\r\n\r\n");
    });
}

#[test]
fn a_client_that_leaves_is_an_error_of_the_body_and_an_early_answer_ends_the_connection() {
    each(&[], |server, app, _| {
        let note = server.directory().join("note");
        let noted = || fs::read_to_string(&note).unwrap_or_default();
        let mut client = Client::connect(server.address);
        let path = format!("/loses?{}", note.display());
        client.send(&head(&path, 5_000_000)).unwrap();
        client.send(&vec![b'a'; 100_000]).unwrap();
        until(app, || noted() == "reading");
        drop(client);
        until(app, || noted().starts_with("lost: "));
        let mut client = Client::connect(server.address);
        client.send(&head("/ignores", 5_000_000)).unwrap();
        let answer = client.answer();
        assert_eq!(text(&answer), "not read\n");
        client.rest();
        // Others are answered.
        assert_eq!(text(&ask(server.address, "GET /", "", b"")), "not read\n");
    });
}

#[test]
fn the_answer_to_head_has_no_body_however_much_was_read() {
    each(&[], |server, _, _| {
        let mut client = Client::connect(server.address);
        let head = head("/quotes", 100_000);
        let head = [b"HEAD", head.strip_prefix(b"POST").expect("a POST")].concat();
        client.send(&head).unwrap();
        client.send(&vec![b'a'; 100_000]).unwrap();
        let answer = client.upto(b"\r\n\r\n");
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
        if String::from_utf8_lossy(&answer).contains("\r\nConnection: close\r\n") {
            // It was whole before the application had read everything.
            assert_eq!(client.rest(), b"");
            return;
        }
        client
            .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        // Nothing lies between the two.
        assert_eq!(text(&client.answer()), "not read\n");
    });
}

/// Has the system watch no files for a program, as where a user has as many watches as one may have. False, with a printed line, where
/// nobody may make user namespaces.
fn without_watches(command: &mut Command) -> bool {
    const NONE: &str = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$@\"";
    let unshare = |program: &OsStr| {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "sh", "-c", NONE, "sh"])
            .arg(program);
        command
    };
    if !unshare("true".as_ref())
        .status()
        .is_ok_and(|it| it.success())
    {
        println!("skipped: no user namespace to be had");
        return false;
    }
    let mut outer = unshare(command.get_program());
    outer.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        outer.current_dir(folder);
    }
    *command = outer;
    true
}

#[test]
fn files_that_nothing_tells_of_are_looked_at_now_and_then() {
    let Some(python) = python() else { return };
    let folder = scratch();
    let store = folder.path().join("up.XXXXXX");
    let store = store.to_str().expect("a name in UTF-8");
    let settings = format!(", 'limits.content_length': 10000, 'upload.temp_store': '{store}'");
    servers::each(&settings, |server| {
        for target in BOTH {
            let options = [
                "--early-uploads",
                "--upload-store",
                store,
                "--log=lurcher=debug",
            ];
            let mut is_so = false;
            let mut app = App::starting(python, &server, target, &options, |command| {
                is_so = without_watches(command);
            });
            app.ready(1);
            let mut client = Client::connect(server.address);
            client.send(&head("/quotes", 100_000)).unwrap();
            client.send(&vec![b'a'; 60_000]).unwrap();
            client.upto(b"first 50000\n");
            if is_so {
                app.program.said("looking now and then", 1);
            }
            client.send(&vec![b'a'; 40_000]).unwrap();
            client.upto(b"all 100000 ");
            client.upto(b"0\r\n\r\n");
            assert!(app.program.terminate().success(), "{}", app.program);
            assert!(is_empty(folder.path()));
        }
    });
}

/// What was only announced may be given to another worker whatever its method; not what one has begun with.
#[test]
fn a_post_that_was_begun_early_is_not_begun_again_by_another_worker() {
    each(&["--workers=2"], |server, app, _| {
        app.ready(2);
        let note = server.directory().join("note");
        let noted = || fs::read_to_string(&note).unwrap_or_default();
        drop(fs::remove_file(&note));
        let mut client = Client::connect(server.address);
        let path = format!("/dies?{}", note.display());
        client.send(&head(&path, 5_000_000)).unwrap();
        client.send(&vec![b'a'; 100_000]).unwrap();
        until(app, || noted().ends_with('\n'));
        kill(noted().trim().parse().expect("a number"));
        // It is told when another has taken its place.
        app.ready(3);
        let rest = client.rest();
        let status = String::from_utf8_lossy(&rest);
        assert!(status.starts_with("HTTP/1.1 502 "), "{status}");
        assert_eq!(noted().lines().count(), 1);
    });
}

#[test]
fn an_upload_that_a_client_has_made_up_is_not_read() {
    let folder = scratch();
    let victim = folder.path().join("up.victim");
    fs::write(&victim, "a".repeat(60_000)).unwrap();
    each(&[], |server, _, _| {
        for length in [
            "",
            "Content-Length: 0\r\n",
            "Content-Length: 2147483648\r\n",
        ] {
            let start = format!("x-mongrel2-upload-start: {}\r\n", victim.display());
            let mut client = Client::connect(server.address);
            let head = format!("GET /quotes HTTP/1.1\r\nHost: localhost\r\n{start}{length}\r\n");
            client.send(head.as_bytes()).unwrap();
            if length.len() > 20 && server.kind == Kind::Lurcher {
                // An upload as any other: its body is awaited.
                continue;
            }
            let answer = client.answer();
            let expected = if server.kind == Kind::Lurcher {
                200
            } else {
                400
            };
            assert_eq!(answer.status, expected, "{length}");
            assert!(!text(&answer).contains("first 50000"), "{length}");
        }
        assert_eq!(fs::metadata(&victim).unwrap().len(), 60_000);
    });
}
