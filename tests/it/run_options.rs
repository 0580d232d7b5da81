//! What `lurcher run` can be told, and by whom; and the same by the name of m2wsgi.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::client::fetch;
use crate::support::front::Front;
use crate::support::program::Program;
use crate::support::{scratch, servers};

const LURCHER: &str = env!("CARGO_BIN_EXE_lurcher");

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn a_file_and_the_environment_say_what_the_command_line_leaves_out() {
    let front = Front::start("");
    let file = front.directory().join("run.toml");
    let text = format!(
        "app = 'respond'\nsend = '{}'\nrecv = '{}'\n[respond]\ncode = 203\nbody = 'file'\nheader = ['X-A=1', 'X-B=2']\n",
        front.send, front.recv
    );
    fs::write(&file, text).unwrap();
    let _handler = Program::start(
        Command::new(LURCHER)
            .arg("run")
            .env("LURCHER_RUN_OPTIONS", &file)
            .env("LURCHER_RUN_BODY", "environment"),
    );
    let answer = fetch(front.address, GET);
    assert_eq!(
        (answer.status, &answer.body[..]),
        (203, &b"environment"[..])
    );
    assert_eq!(answer.header("x-a"), Some(&b"1"[..]));
    assert_eq!(answer.header("x-b"), Some(&b"2"[..]));
}

#[test]
fn options_stand_before_and_behind_the_handler() {
    let front = Front::start("");
    let directory = front.directory();
    let words = [
        "run",
        "--threads",
        "2",
        "--name=site",
        "respond",
        &front.send,
        &front.recv,
        "--body",
        "hello",
    ];
    let mut handler = Program::lurcher(&words, directory);
    handler.said("handler site: connected", 1);
    assert_eq!(fetch(front.address, GET).body, b"hello");
}

#[test]
fn mistakes_in_a_file_of_options_have_a_place() {
    let directory = scratch();
    fs::write(
        directory.path().join("run.toml"),
        "app = 'echo'\nsend = 'tcp://127.0.0.1:5555'\nworkres = 3\n",
    )
    .unwrap();
    let mut handler = Program::lurcher(&["run", "--options", "run.toml"], directory.path());
    assert_eq!(handler.ended().code(), Some(2));
    handler.said(
        "lurcher: run.toml:3:1: workres `3`: no option of `lurcher run echo` is called so",
        1,
    );
}

#[test]
fn m2wsgis_response_device_serves_both_servers() {
    servers::each("", |server| {
        let name = server.directory().join("m2wsgi.device.response");
        symlink(LURCHER, &name).unwrap();
        let _handler = Program::start(Command::new(&name).args([
            "--code=201",
            "--header-X-A=b",
            "--body=%(PATH)s",
            &server.send,
            &server.recv,
        ]));
        let answer = fetch(server.address, GET);
        assert_eq!(
            (answer.status, &answer.body[..]),
            (201, &b"/"[..]),
            "{:?}",
            server.kind
        );
        assert_eq!(answer.header("x-a"), Some(&b"b"[..]));
    });
}

#[test]
fn by_the_name_of_m2wsgi_its_arguments_are_taken() {
    let front = Front::start("");
    let name = front.directory().join("m2wsgi");
    symlink(LURCHER, &name).unwrap();
    let _handler = Program::start(Command::new(&name).args([
        "--num-threads=2",
        "echo",
        &front.send,
        &front.recv,
    ]));
    let answer = fetch(
        front.address,
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi",
    );
    assert_eq!(answer.body, b"hi");
    let mut help = Program::start(Command::new(&name).arg("--help"));
    assert!(help.ended().success());
    help.said(
        "usage:  m2wsgi [options] dotted.app.name send_spec [recv_spec]",
        1,
    );
}

#[test]
fn the_specs_are_taken_from_the_servers_own_configuration() {
    servers::each("", |server| {
        let database = server.database.to_str().expect("a UTF-8 path");
        let _handler = Program::lurcher(
            &[
                "run", "respond", "--config", database, "--route", "/any", "--body", "found",
            ],
            server.directory(),
        );
        assert_eq!(
            fetch(server.address, GET).body,
            b"found",
            "{:?}",
            server.kind
        );
        let mut wrong = Program::lurcher(
            &[
                "run",
                "respond",
                "--config",
                database,
                "--handler",
                "nobody",
            ],
            server.directory(),
        );
        assert_eq!(wrong.ended().code(), Some(2));
        wrong.said("no handler", 1);
    });
}
