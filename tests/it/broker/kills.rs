//! Workers that die and workers that leave, under load.

use std::net::SocketAddr;

use super::Device;
use super::load::Load;
use super::workers::{Kind, Worker};
use crate::support::servers::{self, Server};

/// How many are killed one after the other.
const KILLS: usize = 100;

/// Workers at a time.
const WORKERS: usize = 4;

/// Answers between two kills.
const BETWEEN: usize = 6 * WORKERS;

/// Clients that ask at once.
const CLIENTS: usize = 3 * WORKERS;

/// One of four dies again and again, while all are busy; another takes its place. Each has so many requests at most.
pub(super) fn kill_again_and_again(
    address: SocketAddr,
    kind: &Kind,
    most: usize,
    state: &dyn Fn() -> String,
) {
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| kind.ready()).collect();
    // Begun before they are needed: programs take their time to start.
    let mut spare = kind.start();
    let load = Load::on(address, CLIENTS, "/ms/3");
    let outcome = load.run(|seen| {
        for kill in 0..KILLS {
            seen.goes_on(BETWEEN, state);
            workers[kill % WORKERS].kill();
            let mut next = std::mem::replace(&mut spare, kind.start());
            next.is_ready();
            workers[kill % WORKERS] = next;
        }
    });
    for ((method, status, why), count) in &outcome.refused {
        // 500: two of them had it.
        assert!([500, 502].contains(status), "{outcome:?}");
        assert!(why.contains("lost"), "{outcome:?}");
        // What may be asked twice is lost with its second worker only, and asked anew before others: seldom.
        assert!(*method == "POST" || *count <= KILLS / 10, "{outcome:?}");
    }
    assert!(outcome.refusals() <= KILLS * most, "{outcome:?}");
    assert!(outcome.slowest < load.deadline, "{outcome:?}");
    assert!(outcome.answered >= KILLS * BETWEEN, "{outcome:?}");
}

fn on(kind: servers::Kind, workers: fn(&Device) -> Kind) {
    let Some(server) = Server::start(kind, "json", "") else {
        return;
    };
    let device = Device::start(&[&server], &["--slots", "1"]);
    kill_again_and_again(server.address, &workers(&device), 1, &|| {
        device.program.to_string()
    });
    device.stop();
}

#[test]
fn a_hundred_killed_workers_cost_a_reason_each_where_there_is_no_broker() {
    let server = Server::start(servers::Kind::Lurcher, "json", "").expect("Lurcher");
    let kind = Kind::plain(&[server.send.clone(), server.recv.clone()]);
    kill_again_and_again(server.address, &kind, CLIENTS, &|| {
        server.program.to_string()
    });
}

#[test]
fn a_hundred_killed_workers_cost_a_reason_each_behind_mongrel2() {
    on(servers::Kind::Mongrel2, Device::own);
}

#[test]
fn a_hundred_killed_workers_cost_a_reason_each_behind_lurcher() {
    on(servers::Kind::Lurcher, Device::own);
}

#[test]
fn a_hundred_killed_plain_workers_cost_a_reason_each_behind_mongrel2() {
    on(servers::Kind::Mongrel2, Device::plain);
}

#[test]
fn a_hundred_killed_plain_workers_cost_a_reason_each_behind_lurcher() {
    on(servers::Kind::Lurcher, Device::plain);
}

/// Each leaves when another has come, again and again.
pub(super) fn leave_one_after_the_other(
    address: SocketAddr,
    kind: &Kind,
    state: &dyn Fn() -> String,
) {
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| kind.ready()).collect();
    let load = Load::on(address, 2 * WORKERS, "/ms/3");
    let outcome = load.run(|seen| {
        for at in 0..2 * WORKERS {
            seen.goes_on(BETWEEN, state);
            let mut next = kind.ready();
            std::mem::swap(&mut next, &mut workers[at % WORKERS]);
            next.drain();
            assert!(next.program.ended().success(), "{}", next.program);
        }
    });
    assert!(outcome.refused.is_empty(), "{outcome:?}");
}

#[test]
fn workers_that_leave_one_after_the_other_cost_nothing() {
    servers::each("", |server| {
        let device = Device::start(&[&server], &["--slots", "1"]);
        leave_one_after_the_other(server.address, &device.own(), &|| {
            device.program.to_string()
        });
        device.stop();
    });
}
