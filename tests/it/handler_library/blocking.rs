//! The library without tokio in sight, on both servers; and from several threads.

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use lurcher::handler::blocking::Connection;
use lurcher::handler::{Event, Selector};

use super::PATIENCE;
use super::fake_front::{Front, get};
use crate::support::client::Client;
use crate::support::servers;

#[test]
fn a_program_without_a_runtime_answers_both_servers() {
    servers::each("", |server| {
        let selector = Selector::new().route("/a");
        let connection = Connection::from_config(&server.database, &selector).unwrap();
        let stop = connection.stop_handle();
        let handler = thread::spawn(move || {
            for request in &connection {
                if let Event::Request(request) = request.into_event() {
                    let path = request.path.clone();
                    connection.reply_http(&request, path, 200, "", &[]).unwrap();
                }
            }
            connection.finish();
        });
        let mut client = Client::connect(server.address);
        for path in ["/a", "/b"] {
            client
                .send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
                .unwrap();
            assert_eq!(client.answer().body, path.as_bytes());
        }
        stop.stop();
        handler.join().unwrap();
    });
}

#[test]
fn waiting_in_vain_loses_nothing() {
    let front = Front::new();
    let connection = Connection::connect(front.options()).unwrap();
    assert!(connection.recv_timeout(Duration::from_millis(1)).is_err());
    front.push(&get(7));
    let request = loop {
        if let Ok(request) = connection.recv_timeout(Duration::from_micros(50)) {
            break request.unwrap();
        }
    };
    connection.reply(&request, "x").unwrap();
    connection.block_on(request.client().send("y")).unwrap();
    connection.send(&request.client(), "z").unwrap();
    for reply in ["front 1:7, x", "front 1:7, y", "front 1:7, z"] {
        assert_eq!(front.reply(), reply);
    }
}

#[test]
fn threads_share_a_connection_and_each_request_is_one_threads() {
    const REQUESTS: u32 = 2000;
    let front = Front::new();
    let connection = Connection::connect(front.options()).unwrap();
    let seen = Mutex::new(HashSet::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            let (connection, seen) = (connection.clone(), &seen);
            scope.spawn(move || {
                for request in &connection {
                    assert!(seen.lock().unwrap().insert(request.conn_id), "twice");
                    connection.reply(&request, "x").unwrap();
                }
            });
        }
        for id in 0..REQUESTS {
            front.push(&get(id));
        }
        for _ in 0..REQUESTS {
            front.replies.recv_timeout(PATIENCE).expect("a reply");
        }
        connection.shutdown();
    });
    assert!(connection.recv().is_none());
    assert_eq!(seen.into_inner().unwrap().len(), REQUESTS as usize);
    connection.finish();
}
