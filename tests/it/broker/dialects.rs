//! Workers of all three dialects, one program of each, at one broker at the same time.

use std::io;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::Device;
use super::load::Load;
use crate::support::client::{Client, fetch};
use crate::support::free_port;
use crate::support::program::Program;
use crate::support::servers;

/// Debian's own interpreter: the one that has pyzmq.
const PYTHON: &str = "/usr/bin/python3";

/// Whether Python has ZeroMQ; says so where it has not.
fn pyzmq() -> bool {
    let found = Command::new(PYTHON).args(["-c", "import zmq"]).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        println!("skipped: there is no pyzmq (Debian: python3-zmq)");
    }
    found
}

#[test]
fn a_handler_of_m2wsgis_dispatcher_is_served_and_pinged_and_leaves_in_order() {
    if !pyzmq() {
        return;
    }
    servers::each("", |server| {
        let pings = format!("tcp://127.0.0.1:{}", free_port());
        let options = ["--slots", "1", "--pings", &pings];
        let device = Device::start(&[&server], &options);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/broker/m2wsgi.py");
        let start = || {
            let (end, held) = io::pipe().expect("a pipe");
            let mut command = Command::new(PYTHON);
            command.args([script, &device.workers, &pings]);
            (Program::start_with_stdin(&mut command, end), held)
        };
        let (mut first, held) = start();
        let mut later = None;
        for at in 0..50 {
            let path = format!("/{at}");
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(fetch(server.address, &request).body, path.as_bytes());
        }
        // Pings go on, and whoever answers them is not taken for dead.
        first.said("pinged 3", 1);
        let outcome = Load::on(server.address, 4, "").run(|seen| {
            seen.goes_on(100, &|| device.program.to_string());
            // Ends with the test, not before the load.
            let (second, _) = later.insert(start());
            second.said("got ", 1);
            drop(held);
            first.said("left", 1);
            assert!(first.ended().success(), "{first}");
            seen.goes_on(100, &|| format!("{}\n{second}", device.program));
        });
        assert!(outcome.refused.is_empty(), "{outcome:?}");
    });
}

#[test]
fn by_the_name_of_m2wsgis_dispatcher_the_broker_takes_its_arguments() {
    if !pyzmq() {
        return;
    }
    servers::each("", |server| {
        let [workers, pings] = [(); 2].map(|()| format!("tcp://127.0.0.1:{}", free_port()));
        let name = server.directory().join("m2wsgi.device.dispatcher");
        symlink(env!("CARGO_BIN_EXE_lurcher"), &name).expect("a link");
        let mut dispatcher = Command::new(&name);
        dispatcher.env("LURCHER_BROKER_STATE", "none");
        dispatcher.args(["--sticky", "--ping-interval=2"]);
        dispatcher.args([&server.send, &server.recv, &workers, &pings]);
        let mut dispatcher = Program::start(&mut dispatcher);
        dispatcher.said(&format!("workers at {workers}, pings at {pings}"), 1);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/broker/m2wsgi.py");
        let (end, _held) = io::pipe().expect("a pipe");
        let mut handler = Command::new(PYTHON);
        handler.args([script, &workers, &pings]);
        let mut handler = Program::start_with_stdin(&mut handler, end);
        handler.said("pinged 1", 1);
        let request = "GET /here HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(fetch(server.address, request).body, b"/here");
    });
}

#[test]
fn three_dialects_share_the_load_by_what_they_have_open() {
    servers::each("", |server| {
        let device = Device::start(&[&server], &["--slots", "1"]);
        let mut stuck = device.own().ready();
        let mut client = Client::connect(server.address);
        client
            .send(b"GET /hold/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("send");
        stuck.has_begun("/hold/x", 1);
        // Both get requests while the other is busy, and the one that is stuck none.
        let mut workers = [device.own().ready(), device.plain().ready()];
        let outcome = Load::on(server.address, 4, "/ms/2").run(|seen| {
            seen.goes_on(200, &|| device.program.to_string());
        });
        assert!(outcome.refused.is_empty(), "{outcome:?}");
        stuck.release();
        assert_eq!(client.answer().status, 200);
        for worker in &mut workers {
            worker.kill();
        }
    });
}
