//! Figures of a front by HTTP and by the control port, and that what is told of figures elsewhere is so.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use lurcher::control;
use lurcher::metrics;

use crate::support::client::Client;
use crate::support::exposition::{Figures, get, promtool};
use crate::support::free_port;
use crate::support::front::Front;
use crate::support::peer::{Peer, Replies};

fn start() -> (Front, SocketAddr) {
    let figures = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut front = Front::start(&format!(", 'metrics_port': '{figures}'"));
    front.program.said("figures at http://", 1);
    (front, figures)
}

#[test]
fn a_front_tells_of_its_handlers_by_the_same_names_as_a_broker() {
    let (front, address) = start();
    let pool = front.send.clone();
    let pool = [("pool", pool.as_str())];
    let mut client = Client::connect(front.address);
    client.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let figures = Figures::until(address, "one waits", |figures| {
        figures.count("lurcher_pool_waiting", &pool) == 1
    });
    assert_eq!(figures.count("lurcher_requests_waiting", &[]), 1);
    assert_eq!(figures.count("lurcher_requests_total", &[]), 1);
    assert_eq!(figures.count("lurcher_pool_waiting_max", &pool), 4096);

    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    peer.joined();
    let figures = Figures::until(address, "it is at work", |figures| {
        figures.count("lurcher_worker_in_flight", &pool) == 1
    });
    assert_eq!(figures.count("lurcher_pool_waiting", &pool), 0);
    assert_eq!(figures.count("lurcher_pool_wait_seconds_count", &pool), 1);
    assert_eq!(figures.count("lurcher_pool_reply_sockets", &pool), 1);
    // Nobody has said how many a plain handler takes, so there is no bound either.
    assert!(figures.values("lurcher_worker_slots", "worker").is_empty());
    assert!(figures.values("lurcher_worker_credit", "worker").is_empty());
    drop(peer);
    let figures = Figures::until(address, "it has gone", |figures| {
        figures.count("lurcher_pool_workers_lost_total", &pool) == 1
    });
    assert!(figures.values("lurcher_worker_state", "worker").is_empty());
    let ended = figures.count("lurcher_pool_requeued_total", &[("cause", "begun")])
        + figures.count("lurcher_pool_failed_total", &[("cause", "worker_lost")]);
    assert_eq!(ended, 1, "{figures:#?}");
}

#[test]
fn figures_are_read_and_nothing_else() {
    let (_front, address) = start();
    let head = get(address, "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((head.status, head.body.len()), (200, 0));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        ("GET /metrics?a=b HTTP/1.0\r\n\r\n", 200),
        ("GET http://a/metrics HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (
            "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            405,
        ),
        ("DELETE /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("GET /metrics HTTP/1.1\r\n\r\n", 400),
        ("GET /metrics HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        ("\u{1}\u{2}\u{3}\r\n\r\n", 400),
    ] {
        assert_eq!(get(address, request).status, status, "{request:?}");
    }
    let long = format!(
        "GET /metrics HTTP/1.1\r\nHost: a\r\nX: {}",
        "x".repeat(9_000)
    );
    assert_eq!(get(address, &long).status, 431);
    // Who says nothing does not keep others from it, and too many do not harm the server.
    let silent: Vec<_> = (0..15).map(|_| Client::connect(address)).collect();
    Figures::fetch(address);
    drop(silent);
}

#[test]
fn an_address_that_others_reach_is_warned_of_and_one_that_is_taken_costs_the_figures_only() {
    let port = free_port();
    let mut open = Front::start(&format!(", 'metrics_port': '0.0.0.0:{port}'"));
    open.program.said("the address is not loopback", 1);
    let mut second = Front::start(&format!(", 'metrics_port': '0.0.0.0:{port}'"));
    second
        .program
        .said("the server runs without figures at 0.0.0.0", 1);
}

/// The row of a figure in docs/OPERATING.md.
fn row(figure: &control::Figure) -> String {
    let labels: Vec<String> = figure
        .labels
        .iter()
        .map(|label| format!("`{label}`"))
        .collect();
    format!(
        "| `{}` | {} | {} | {} |",
        figure.name,
        figure.kind,
        labels.join(", "),
        figure.meaning
    )
}

#[test]
fn the_document_has_every_figure_and_no_other() {
    let document = include_str!("../../docs/OPERATING.md");
    let wanted: Vec<String> = control::figures().iter().map(row).collect();
    let found: Vec<&str> = document
        .lines()
        .filter(|line| line.starts_with("| `lurcher_"))
        .collect();
    assert_eq!(
        found,
        wanted,
        "docs/OPERATING.md should have\n{}",
        wanted.join("\n")
    );
}

#[test]
fn the_text_has_every_figure_and_promtool_takes_it() {
    let (_front, address) = start();
    let figures = Figures::fetch(address);
    for figure in control::figures() {
        let family = &figures.families[&figure.name];
        assert_eq!(family.kind, figure.kind.to_string(), "{}", figure.name);
        assert_eq!(family.help, figure.meaning, "{}", figure.name);
    }
    assert_eq!(figures.families.len(), control::figures().len());
    let answer = get(address, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    promtool(&String::from_utf8(answer.body).unwrap());
}

#[test]
fn what_falls_is_a_gauge_and_nothing_else_is() {
    fn sources(folder: &Path, all: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, all);
            } else {
                all.push_str(&fs::read_to_string(&path).unwrap_or_default());
            }
        }
    }
    let mut all = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    for name in metrics::NAMES {
        let falls = all.contains(&format!("Name::{name:?}.decrement()"));
        assert_eq!(name.falls(), falls, "{name:?}");
    }
}
