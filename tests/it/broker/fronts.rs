//! Several servers at once, whose ids are the same, and several pools.

use super::Device;
use super::load::Load;
use super::workers::Kind;
use crate::support::client::{Asked, Client, fetch};
use crate::support::servers::{self, Server};
use crate::support::{PATIENCE, free_port};

/// A request without a body.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

#[test]
fn servers_of_one_name_whose_ids_are_the_same_get_their_own_answers() {
    // Mongrel2's ids begin with the same number on each, and both servers are called `app-ident`.
    let started = [
        servers::Kind::Mongrel2,
        servers::Kind::Mongrel2,
        servers::Kind::Lurcher,
    ]
    .map(|kind| Server::start(kind, "json", ""));
    let servers: Vec<&Server> = started.iter().flatten().collect();
    let device = Device::start(&servers, &["--slots", "2"]);
    let mut workers = vec![
        device.own().slots(2).ready(),
        device.own().slots(2).ready(),
        device.plain().ready(),
    ];
    let load = Load {
        addresses: servers.iter().map(|server| server.address).collect(),
        ..Load::on(servers[0].address, 4 * servers.len(), "/ms/1")
    };
    let outcome = load.run(|seen| {
        seen.goes_on(2_000, &|| device.program.to_string());
    });
    assert!(outcome.refused.is_empty(), "{outcome:?}");
    workers.clear();
    device.stop();
}

#[test]
fn a_server_that_dies_takes_nothing_of_the_others_with_it() {
    let [Some(mut first), Some(second)] = [servers::Kind::Lurcher, servers::Kind::Lurcher]
        .map(|kind| Server::start(kind, "json", ""))
    else {
        return;
    };
    let device = Device::start(&[&first, &second], &["--slots", "1"]);
    let _workers = [device.own().ready(), device.own().ready()];
    let outcome = Load::on(second.address, 4, "/ms/2").run(|seen| {
        // What is at work for the first when it dies keeps nobody.
        let mut client = Client::connect(first.address);
        client.send(get("/ms/20/x").as_bytes()).expect("send");
        seen.goes_on(50, &|| device.program.to_string());
        assert_eq!(client.answer().status, 200);
        client.send(get("/ms/50/x").as_bytes()).expect("send");
        first.program.kill();
        seen.goes_on(200, &|| device.program.to_string());
    });
    assert!(outcome.refused.is_empty(), "{outcome:?}");
}

#[test]
fn a_pool_whose_workers_are_stuck_holds_up_no_other() {
    servers::each("", |server| {
        let [slow, rest] = [(); 2].map(|()| format!("tcp://127.0.0.1:{}", free_port()));
        let pools = [
            format!("slow=/hold/,workers={slow}"),
            format!("rest=/now/,workers={rest}"),
        ];
        let options = ["--slots", "1", "--pool", &pools[0], "--pool", &pools[1]];
        let _device = Device::start(&[&server], &options);
        let mut stuck = Kind::own(&slow).ready();
        let _brisk = Kind::own(&rest).ready();
        let mut held = Vec::new();
        for at in 0..5 {
            let mut client = Client::connect(server.address);
            client
                .send(get(&format!("/hold/{at}")).as_bytes())
                .expect("send");
            held.push(client);
        }
        stuck.has_begun("/hold/", 1);
        for at in 0..20 {
            let path = format!("/now/{at}");
            let answer = fetch(server.address, &get(&path));
            assert!(answer.body.ends_with(path.as_bytes()), "{answer:?}");
        }
        for done in 1..=5 {
            stuck.has_begun("/hold/", done);
            stuck.release();
        }
        for (at, client) in held.iter_mut().enumerate() {
            let answer = client
                .try_answer(Asked::default(), PATIENCE)
                .expect("an answer");
            assert!(answer.body.ends_with(format!("/hold/{at}").as_bytes()));
        }
    });
}

#[test]
fn what_waited_for_a_server_that_died_is_not_what_its_successors_clients_get() {
    servers::each("", |mut server| {
        let device = Device::start(&[&server], &["--slots", "1", "--wait", "20"]);
        let mut worker = device.own().ready();
        let address = server.address;
        let ask = |path: &str| {
            let mut client = Client::connect(address);
            client.send(get(path).as_bytes()).expect("send");
            client
        };
        let _held = ask("/hold/a");
        worker.has_begun("/hold/", 1);
        let _waiting: Vec<_> = (0..4).map(|_| ask("/now/of-before")).collect();
        while device.figure("open") < 5 {
            std::thread::yield_now();
        }
        server.restart();
        // A Mongrel2 gives these the same numbers as those of before.
        let paths: Vec<String> = (0..8).map(|at| format!("/now/{at}")).collect();
        let mut clients: Vec<Client> = paths.iter().map(|path| ask(path)).collect();
        for (client, path) in clients.iter_mut().zip(&paths) {
            let answer = client.try_answer(Asked::default(), PATIENCE);
            let answer = answer.unwrap_or_else(|| panic!("silent\n{}", device.program));
            let body = String::from_utf8_lossy(&answer.body);
            assert!(body.ends_with(path), "{path}: {answer:?}");
        }
    });
}
