//! Deploys: all workers of a supervisor are replaced under load, and no request shows it.

use super::Device;
use super::load::Load;
use crate::support::free_port;
use crate::support::program::Program;
use crate::support::servers::{self, Kind, Server};

/// How often all are replaced.
const TIMES: usize = 5;

/// A supervisor's workers at a broker are replaced again and again.
fn roll(server: &Server, device: &Device, specs: &[&str]) {
    let mut words = vec!["run", "echo"];
    words.extend(specs);
    words.extend(["--workers", "3", "--concurrency", "2"]);
    let control = format!("tcp://127.0.0.1:{}", free_port());
    words.extend(["--control", &control]);
    let mut run = Program::lurcher(&words, server.directory());
    let load = Load {
        // What echo answers with is the body.
        methods: &["POST", "PUT"],
        ..Load::on(server.address, 6, "")
    };
    let state = |run: &Program| format!("{}\n{run}", device.program);
    let outcome = load.run(|seen| {
        seen.goes_on(50, &|| state(&run));
        for time in 1..=TIMES {
            run.signal("HUP");
            run.said("all workers are replaced", time);
            seen.goes_on(50, &|| state(&run));
        }
    });
    assert!(outcome.refused.is_empty(), "{outcome:?}");
    assert!(run.terminate().success(), "{run}");
}

#[test]
fn a_supervisors_workers_are_replaced_under_load_and_nobody_notices() {
    servers::each("", |server| {
        let device = Device::start(&[&server], &[]);
        let spec = format!("broker+{}", device.workers);
        roll(&server, &device, &[&spec]);
        device.stop();
    });
}

#[test]
fn so_are_plain_ones() {
    for kind in [Kind::Lurcher, Kind::Mongrel2] {
        let Some(server) = Server::start(kind, "json", "") else {
            continue;
        };
        let device = Device::start(&[&server], &["--slots", "2"]);
        let [send, recv] = &device.plain;
        roll(&server, &device, &[send, recv]);
        device.stop();
    }
}

#[test]
fn a_broker_is_replaced_by_another_and_nobody_notices() {
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    let device = Device::start(&[&server], &["--slots", "1"]);
    let workers = [device.own().ready(), device.own().ready()];
    let mut after = None;
    let outcome = Load::on(server.address, 4, "/ms/2").run(|seen| {
        seen.goes_on(50, &|| device.program.to_string());
        // The next one has workers before the first lets go, and all of it outlives the load.
        let next = Device::start(&[&server], &["--slots", "1"]);
        let others = [next.own().ready(), next.own().ready()];
        let (next, _) = after.insert((next, others));
        seen.goes_on(50, &|| next.program.to_string());
        device.stop();
        drop(workers);
        seen.goes_on(50, &|| next.program.to_string());
    });
    assert!(outcome.refused.is_empty(), "{outcome:?}");
}
