//! `lurcher broker` as a command: what is wrong with what was typed, one of a name, reloads, and a stop in order.

use std::path::PathBuf;
use std::process::Command;

use super::Device;
use crate::support::client::{Asked, Client};
use crate::support::program::Program;
use crate::support::servers::{Kind, Server};
use crate::support::{PATIENCE, scratch};

fn lurcher(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
    let output = command.args(arguments).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

#[test]
fn what_is_wrong_is_told_in_one_line() {
    for (arguments, why) in [
        (
            &["broker", "tcp://127.0.0.1:2"][..],
            "lurcher: no address for workers: give --workers, --plain or --pool\n",
        ),
        (
            &["broker", "tcp://127.0.0.1:2", "--workers", "nonsense"],
            "lurcher: --workers `nonsense`: ",
        ),
        (
            &[
                "broker",
                "tcp://127.0.0.1:2",
                "--workers",
                "tcp://127.0.0.1:3",
                "--wait",
                "x",
            ],
            "lurcher: --wait `x`: not a number of seconds\n",
        ),
    ] {
        let (code, text) = lurcher(arguments);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.starts_with(why), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn addresses_that_others_can_reach_are_warned_of() {
    let [open, closed] = [(); 2].map(|()| crate::support::free_port());
    let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
    command.args(["broker", "tcp://127.0.0.1:2", "tcp://127.0.0.1:3"]);
    command.args(["--workers", &format!("tcp://127.0.0.1:{closed}")]);
    command.args(["--pool", &format!("api=/api/,workers=tcp://*:{open}")]);
    command.args([
        "--pool",
        "more=/more/",
        "--pings",
        "none",
        "--state",
        "none",
    ]);
    let mut program = Program::start(&mut command);
    program.said("pool more: workers that say its name", 1);
    program.said("pool default: workers at", 1);
    program.said(
        "is neither loopback nor ipc: whoever reaches it can take part",
        1,
    );
    assert!(program.terminate().success(), "{program}");
    assert_eq!(program.to_string().matches("neither loopback").count(), 1);
}

#[test]
fn one_broker_of_a_name_runs_at_a_time_and_a_stop_in_order_leaves_nothing() {
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    let mut device = Device::start(&[&server], &[]);
    let mut state = device
        .arguments
        .iter()
        .skip_while(|word| *word != "--state");
    let state = PathBuf::from(state.nth(1).expect("its file"));
    let mut worker = device.own().ready();
    let words: Vec<&str> = device.arguments.iter().map(String::as_str).collect();
    let (code, text) = lurcher(&words);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("another broker has it"), "{text}");
    let mut client = Client::connect(server.address);
    client
        .send(b"GET /hold/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("send");
    worker.has_begun("/hold/", 1);
    device.program.signal("TERM");
    device
        .program
        .said("stopping: no more requests are taken, 1 that are open", 1);
    worker.release();
    let answer = client.try_answer(Asked::default(), PATIENCE);
    assert_eq!(answer.expect("an answer").status, 200, "{}", device.program);
    assert!(device.program.ended().success(), "{}", device.program);
    assert!(!device.directory.join(state).exists());
}

#[test]
fn a_reload_takes_up_rules_and_says_what_it_does_not() {
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    let folder = scratch();
    let file = folder.path().join("broker.toml");
    let write = |text: &str| std::fs::write(&file, text).expect("write");
    let workers = format!("tcp://127.0.0.1:{}", crate::support::free_port());
    let base = format!(
        "send = '{}'\nrecv = '{}'\nworkers = '{workers}'\npings = 'none'\nstate = 'none'\n",
        server.send, server.recv
    );
    write(&base);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
    command.args(["broker", "--options", file.to_str().expect("text")]);
    let mut program = Program::start(&mut command);
    program.said("pool default: workers at", 1);
    // Nobody is there, and nobody is waited for any more.
    write(&format!("{base}start-grace = 0.05\nwait = 0.05\n"));
    program.signal("HUP");
    program.said("options reloaded", 1);
    let mut client = Client::connect(server.address);
    client
        .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("send");
    let answer = client.answer();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(body["code"], "no-worker");
    write(&format!("{base}name = 'another'\n"));
    program.signal("HUP");
    program.said("that takes effect at the next start", 1);
    write("wait = ");
    program.signal("HUP");
    program.said("refused, the old options go on", 1);
    assert!(program.terminate().success(), "{program}");
}
