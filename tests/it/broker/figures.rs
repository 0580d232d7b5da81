//! What a running broker tells of itself: figures that move as requests pass, wait, are shed and go to another worker, over HTTP, over
//! the control port and in `lurcher status`.

use std::net::SocketAddr;
use std::process::Command;

use super::Device;
use crate::support::PATIENCE;
use crate::support::client::{Answer, Asked, Client};
use crate::support::exposition::{Figures, promtool};
use crate::support::free_port;
use crate::support::servers::{self, Server};

/// A broker that is watched.
struct Watched {
    device: Device,
    figures: SocketAddr,
    control: String,
}

impl Watched {
    fn start(server: &Server, options: &[&str]) -> Self {
        let figures = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let control = format!("ipc://{}/broker.control", server.directory().display());
        let address = figures.to_string();
        let watching = ["--metrics", &address, "--control", &control];
        let mut device = Device::start(&[server], &[&watching, options].concat());
        device.program.said("pool default: ", 1);
        Self {
            device,
            figures,
            control,
        }
    }

    #[track_caller]
    fn until(&self, what: &str, is_so: impl Fn(&Figures) -> bool) -> Figures {
        Figures::until(self.figures, what, is_so)
    }

    /// What a command prints.
    #[track_caller]
    fn prints(&self, command: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_lurcher"))
            .args([command[0], "--control", &self.control])
            .args(&command[1..])
            .output()
            .expect("run");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

fn ask(server: &Server, path: &str) -> Client {
    let mut client = Client::connect(server.address);
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.send(request.as_bytes()).expect("send");
    client
}

fn answered(mut client: Client, watched: &Watched) -> Answer {
    let answer = client.try_answer(Asked::default(), PATIENCE);
    answer.unwrap_or_else(|| panic!("silent\n{}", watched.device.program))
}

#[test]
fn figures_move_as_requests_pass_wait_are_shed_and_go_to_another() {
    servers::each("", |server| {
        let watched = Watched::start(&server, &["--queue", "1", "--wait", "60"]);
        let mut first = watched.device.own().ready();
        assert_eq!(answered(ask(&server, "/now"), &watched).status, 200);
        let figures = watched.until("one is served", |figures| {
            figures.count("lurcher_pool_served_total", &[("pool", "default")]) == 1
        });
        for (name, count) in [
            ("lurcher_pool_accepted_total", 1),
            ("lurcher_pool_handed_total", 1),
            ("lurcher_pool_waiting_max", 1),
            ("lurcher_pool_wait_seconds_count", 1),
            ("lurcher_pool_service_seconds_count", 1),
            ("lurcher_worker_served_total", 1),
            ("lurcher_worker_service_seconds_count", 1),
            ("lurcher_worker_slots", 1),
            ("lurcher_pool_in_flight", 0),
            ("lurcher_pool_shed_total", 0),
            ("lurcher_pool_requeued_total", 0),
        ] {
            assert_eq!(figures.count(name, &[]), count, "{name}: {figures:#?}");
        }
        assert!(figures.count("lurcher_worker_credit", &[]) >= 1);
        let ready = [("state", "ready"), ("dialect", "own")];
        assert_eq!(figures.count("lurcher_worker_state", &ready), 1);

        // One is at work, one waits, and one is too many. How many more than its slots a worker is given is its credit.
        let held = ask(&server, "/hold/a");
        first.has_begun("/hold/a", 1);
        let mut others = vec![ask(&server, "/hold/b")];
        let figures = watched.until("one is there", |figures| {
            figures.count("lurcher_pool_accepted_total", &[]) == 3
        });
        if figures.count("lurcher_pool_waiting", &[]) == 0 {
            let credit = figures.count("lurcher_worker_credit", &[]);
            assert!(credit > 1, "{figures:#?}");
        }
        let figures = loop {
            let figures = Figures::fetch(watched.figures);
            if figures.count("lurcher_pool_waiting", &[]) == 1 {
                break figures;
            }
            let accepted = figures.count("lurcher_pool_accepted_total", &[]);
            assert!(others.len() < 4, "{figures:#?}");
            others.push(ask(&server, "/hold/b"));
            watched.until("one more is there", |figures| {
                figures.count("lurcher_pool_accepted_total", &[]) > accepted
            });
        };
        let given = figures.count("lurcher_pool_in_flight", &[]);
        assert_eq!(given, figures.count("lurcher_worker_in_flight", &[]));
        assert!(figures.count("lurcher_pool_waiting_bytes", &[]) > 0);
        assert_eq!(answered(ask(&server, "/now"), &watched).status, 503);
        let figures = watched.until("one is shed", |figures| {
            figures.count("lurcher_pool_shed_total", &[("cause", "queue_full")]) == 1
        });
        assert_eq!(figures.count("lurcher_pool_shed_total", &[]), 1);

        // What it had goes to the next one, by cause; what is told of itself goes with it.
        let gone = figures.values("lurcher_worker_state", "worker");
        let gone: Vec<String> = gone.into_iter().map(str::to_owned).collect();
        first.kill();
        let figures = watched.until("it is lost", |figures| {
            figures.count("lurcher_pool_workers_lost_total", &[]) == 1
        });
        assert_eq!(
            figures.count("lurcher_pool_requeued_total", &[("cause", "begun")]),
            1
        );
        assert_eq!(
            figures.count("lurcher_pool_requeued_total", &[("cause", "not_begun")]),
            given - 1
        );
        assert!(figures.values("lurcher_worker_state", "worker").is_empty());
        assert_eq!(figures.count("lurcher_pool_workers", &[]), 0);
        let mut second = watched.device.own().slots(8).ready();
        second.has_begun("/hold/a", 1);
        second.has_begun("/hold/b", others.len());
        second.release();
        assert_eq!(answered(held, &watched).status, 200);
        let asked = others.len() as u64;
        for other in others {
            assert_eq!(answered(other, &watched).status, 200);
        }
        let figures = watched.until("all are served", |figures| {
            figures.count("lurcher_pool_served_total", &[]) == 2 + asked
        });
        assert_eq!(figures.count("lurcher_pool_waiting", &[]), 0);
        assert!(figures.sum("lurcher_pool_wait_seconds_sum", &[]) > 0.0);
        let here = figures.values("lurcher_worker_state", "worker");
        assert_eq!(here.len(), 1);
        assert!(gone.iter().all(|gone| !here.contains(gone.as_str())));
    });
}

#[test]
fn a_client_that_leaves_the_queue_and_one_that_finds_nobody_are_told_apart() {
    servers::each("", |server| {
        let watched = Watched::start(&server, &["--wait", "60", "--start-grace", "60"]);
        let waits = ask(&server, "/now");
        watched.until("one waits", |figures| {
            figures.count("lurcher_pool_waiting", &[]) == 1
        });
        drop(waits);
        let figures = watched.until("it has left", |figures| {
            figures.count("lurcher_pool_withdrawn_total", &[]) == 1
        });
        assert_eq!(figures.count("lurcher_pool_waiting", &[]), 0);
        assert_eq!(figures.count("lurcher_pool_shed_total", &[]), 0);

        watched.device.stop();

        let hasty = Watched::start(&server, &["--wait", "0.05", "--start-grace", "0.05"]);
        assert_eq!(answered(ask(&server, "/now"), &hasty).status, 503);
        let figures = Figures::fetch(hasty.figures);
        assert_eq!(figures.count("lurcher_pool_shed_total", &[]), 1);
        let cause = [("cause", "no_worker")];
        assert_eq!(figures.count("lurcher_pool_shed_total", &cause), 1);
    });
}

#[test]
fn status_shows_pools_and_workers_to_people_and_to_programs() {
    let Some(server) = Server::start(servers::Kind::Lurcher, "json", "") else {
        return;
    };
    let watched = Watched::start(&server, &["--slots", "3"]);
    let _own = watched.device.own().slots(2).ready();
    let _plain = watched.device.plain().ready();
    watched.until("both are ready", |figures| {
        figures.count("lurcher_pool_workers", &[("state", "ready")]) == 2
    });
    for _ in 0..4 {
        assert_eq!(answered(ask(&server, "/now"), &watched).status, 200);
    }
    watched.until("all are served", |figures| {
        figures.count("lurcher_worker_served_total", &[]) == 4
    });
    let text = watched.prints(&["status"]);
    let heads: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("POOL "))
        .collect();
    assert!(
        heads.len() == 2 && heads[0].contains("WAIT_P99_US") && heads[1].contains("CREDIT"),
        "{text}"
    );
    let read: serde_json::Value =
        serde_json::from_str(&watched.prints(&["status", "--json"])).expect("JSON");
    assert_eq!(read["pools"][0]["pool"], "default");
    assert_eq!(read["pools"][0]["served"], 4);
    let workers = read["workers"].as_array().expect("a list");
    let of = |dialect: &str| {
        let mut all = workers.iter();
        all.find(|worker| worker["dialect"] == dialect)
            .unwrap_or_else(|| panic!("{workers:?}"))
    };
    assert_eq!(of("own")["slots"], 2);
    assert_eq!(of("plain")["slots"], 3);
    let served = |dialect| of(dialect)["served"].as_u64().expect("a number");
    assert_eq!(served("own") + served("plain"), 4);
    let causes = watched.prints(&["status", "--what=causes", "--json"]);
    let causes: Vec<serde_json::Value> = serde_json::from_str(&causes).expect("JSON");
    assert!(
        causes.iter().any(|row| row["what"] == "shed"
            && row["cause"] == "queue_full"
            && row["requests"] == 0)
    );

    // The same text by the control port as by HTTP, and one that Prometheus takes.
    let text = watched.prints(&["control", "metrics", "format=prometheus"]);
    let told = Figures::read(&text);
    assert_eq!(told.count("lurcher_pool_served_total", &[]), 4);
    let fetched = Figures::fetch(watched.figures);
    assert_eq!(told.families, fetched.families);
    promtool(&text);
}
