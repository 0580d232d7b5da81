//! Workers behind their supervisor's feed: what a feed must not hide from them, and what it leaves behind.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Run, post, signal};
use crate::support::PATIENCE;
use crate::support::client::{Client, fetch};
use crate::support::scratch;
use crate::support::servers::{self, Kind, Server};

const FED: &str = "--feed=supervisor";

/// The directories of feeds in a folder.
fn directories(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("lurcher-feed-"))
        .count()
}

#[test]
fn no_client_can_name_a_file_as_its_upload() {
    servers::each("", |server| {
        let file = server.directory().join("secret");
        fs::write(&file, "secret").expect("write");
        let path = file.display();
        for feed in super::feeds(server.kind) {
            let mut run = Run::start(&server, "echo", &["--feed", feed]);
            run.ready(1);
            for body in ["", "abc"] {
                let length = body.len();
                let answer = fetch(
                    server.address,
                    &format!(
                        "POST / HTTP/1.1\r\nHost: localhost\r\nx-mongrel2-upload-start: {path}\r\nx-mongrel2-upload-done: {path}\r\n\
                         Content-Length: {length}\r\n\r\n{body}"
                    ),
                );
                assert_ne!(answer.body, b"secret", "{feed} {length}");
                assert!(file.exists(), "{feed} {length}");
            }
            assert!(run.program.terminate().success(), "{}", run.program);
        }
    });
}

#[test]
fn a_large_upload_and_a_large_answer_pass_and_nobody_waits_for_credits_that_do_not_come() {
    const BYTES: usize = 5_000_000;
    let uploads = scratch();
    let store = format!(
        ", 'upload.temp_store': '{}/XXXXXX'",
        uploads.path().display()
    );
    for flow in ["", ", 'download.flow_control': 1"] {
        servers::each(&format!("{store}{flow}"), |server| {
            let body: Vec<u8> = (0..BYTES)
                .map(|at| b"0123456789abcdef"[(at / 7) % 16])
                .collect();
            let folder = server.directory().join("www");
            fs::create_dir(&folder).expect("a folder");
            fs::write(folder.join("large"), &body).expect("write");
            let app = format!("files:{}", folder.display());
            let mut run = Run::start(&server, &app, &[FED]);
            run.ready(1);
            let mut client = Client::connect(server.address);
            client
                .send(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .expect("send");
            // It reads when the worker has sent what it sends unasked.
            assert!(client.read_some(PATIENCE));
            let answer = client.answer();
            assert!(answer.status == 200 && answer.body == body);
            assert!(run.program.terminate().success(), "{}", run.program);
            let lines = run.program.lines();
            assert!(
                lines.iter().all(|line| !line.contains("credits")),
                "{}",
                run.program
            );
            let mut run = Run::start(&server, "echo", &[FED]);
            run.ready(1);
            let head =
                format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BYTES}\r\n\r\n");
            let mut client = Client::connect(server.address);
            client.send(head.as_bytes()).expect("send");
            client.send(&body).expect("send");
            let answer = client.answer();
            assert!(
                answer.status == 200 && answer.body == body,
                "{}",
                run.program
            );
            assert!(run.program.terminate().success(), "{}", run.program);
        });
    }
}

#[test]
fn what_a_killed_supervisor_leaves_goes_with_the_next() {
    let directory = scratch();
    let mut run = Run::alone(directory.path(), "echo", &[FED]);
    run.ready(1);
    assert_eq!(directories(directory.path()), 1);
    run.program.kill();
    assert_eq!(directories(directory.path()), 1);
    let mut run = Run::alone(directory.path(), "echo", &[FED]);
    run.ready(1);
    assert_eq!(directories(directory.path()), 1);
    assert!(run.program.terminate().success(), "{}", run.program);
    assert_eq!(directories(directory.path()), 0);
}

#[test]
fn requests_that_are_lost_have_their_answer_in_the_access_log_and_it_is_opened_again() {
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    let log = server.directory().join("requests.log");
    let mut run = Run::start(&server, "echo", &[FED, "--access-log=requests.log"]);
    let mut worker = run.ready(1)[0].pid;
    for renamed in [false, true] {
        if renamed {
            fs::rename(&log, log.with_extension("old")).expect("rename");
            run.program.signal("USR1");
            let end = Instant::now() + PATIENCE;
            while !log.exists() {
                assert!(Instant::now() < end, "{}", run.program);
            }
        }
        signal(worker, "STOP");
        let mut client = Client::connect(server.address);
        client
            .send(b"POST /lost HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
            .expect("send");
        assert!(client.is_silent(Duration::from_millis(300)));
        signal(worker, "KILL");
        assert_eq!(client.answer().status, 502);
        worker = run.until("another is ready", |workers| {
            workers.len() == 1 && workers[0].pid != worker && workers[0].state == "ready"
        })[0]
            .pid;
    }
    // The worker has opened the new file anew in any case; the feed's own lines are what was lost.
    assert!(run.program.terminate().success(), "{}", run.program);
    for path in [log.with_extension("old"), log] {
        let text = fs::read_to_string(&path).expect("a log");
        assert_eq!(
            text.matches("\"POST /lost HTTP/1.1\" 502 ").count(),
            1,
            "{}: {text}",
            path.display()
        );
    }
}

#[test]
fn a_reload_that_would_change_what_the_supervisor_feeds_from_is_refused() {
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    let file = server.directory().join("options.toml");
    fs::write(&file, "concurrency = 10\n").expect("write");
    let options = [FED, "--options", "options.toml"];
    let mut run = Run::start(&server, "echo", &options);
    let before = run.ready(1);
    fs::write(&file, "concurrency = 20\n").expect("write");
    run.program.signal("HUP");
    run.program.said(
        "nothing is replaced: this process takes the requests for its workers",
        1,
    );
    assert_eq!(run.ready(1)[0].pid, before[0].pid);
    assert_eq!(post(&server, "x").body, b"x");
    assert!(run.program.terminate().success(), "{}", run.program);
}

#[test]
fn what_nobody_can_count_is_told_at_the_start() {
    let directory = scratch();
    let options = [
        "--feed=direct",
        "--max-requests=5",
        "--access-log=-",
        "--",
        "-c",
        "exec sleep 1000",
    ];
    let mut run = Run::alone(directory.path(), "exec:/bin/sh", &options);
    run.program.said("--max-requests does nothing", 1);
    run.program.said("--access-log does nothing", 1);
    assert!(run.program.terminate().success(), "{}", run.program);
}

#[test]
fn requests_that_wait_when_a_crash_loop_ends_all_are_answered() {
    servers::each("", |server| {
        let options = [FED, "--", "-c", "sleep 0.2; exit 3"];
        let mut run = Run::start(&server, "exec:/bin/sh", &options);
        let request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx";
        let mut clients = [(); 3].map(|()| {
            let mut client = Client::connect(server.address);
            client.send(request).expect("send");
            client
        });
        assert_eq!(run.program.ended().code(), Some(1), "{}", run.program);
        for client in &mut clients {
            assert_eq!(client.answer().status, 503, "{}", run.program);
        }
    });
}
