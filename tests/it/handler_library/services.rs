//! `serve` under more than it can take, pushed by a front of plain libzmq sockets.

use std::collections::BTreeMap;
use std::sync::mpsc;

use axum::Router;
use axum::body::Bytes;
use axum::routing::any;
use lurcher::handler::{Connection, serve};

use super::fake_front::{Front, get, json};
use super::{end, run};

/// More than waits inside a handler, fewer than fit into libzmq's queues besides.
const REQUESTS: u32 = 1300;

/// Requests that wait at least before any is turned away.
const WAITING: usize = 1024;

#[test]
fn what_waits_is_bounded_and_what_an_open_request_waits_for_still_comes() {
    let front = Front::new();
    let (sender, stop) = mpsc::channel();
    let handler = run(front.options(), async move |connection: Connection| {
        sender.send(connection.stop_handle()).unwrap();
        let app = Router::new().route("/a", any(async |body: Bytes| body));
        serve(connection, app).concurrency(1).await;
    });
    // The first occupies the service until its last part has come, behind all others.
    let head = [
        ("METHOD", "POST"),
        ("VERSION", "HTTP/1.1"),
        ("URI", "/a"),
        ("content-length", "6"),
        ("UPLOAD_STREAM", "0"),
    ];
    front.push(&json("front", 1, "/a", &head, "abc"));
    for id in 2..=REQUESTS {
        front.push(&get(id));
    }
    let last = [("UPLOAD_STREAM", "3"), ("UPLOAD_STREAM_DONE", "1")];
    front.push(&json("front", 1, "/a", &last, "def"));
    let mut answers: BTreeMap<u32, String> = BTreeMap::new();
    while answers.len() < REQUESTS as usize {
        let reply = front.reply();
        let (address, payload) = reply.split_once(", ").unwrap();
        // Credits, and the ends of connections that were turned away.
        if address.contains("X ") || payload.is_empty() {
            continue;
        }
        let id = address.rsplit(':').next().unwrap().parse().unwrap();
        let before = answers.insert(id, payload.to_owned());
        assert_eq!(before, None, "{id} is answered once");
    }
    assert!(answers[&1].ends_with("\r\n\r\nabcdef"), "{}", answers[&1]);
    let with = |status: &str| {
        let status = format!("HTTP/1.1 {status} ");
        answers
            .values()
            .filter(|answer| answer.starts_with(&status))
            .count()
    };
    let (served, refused) = (with("200"), with("503"));
    assert_eq!(served + refused, REQUESTS as usize);
    assert!(served > WAITING && refused > 0, "{served} and {refused}");
    stop.recv().unwrap().stop();
    end(handler);
}
