//! Every recorded exchange of the real Mongrel2 is played again, and must come out the same or as its deviation expects.
//!
//! Handler messages are compared as parsed values, client bytes that handlers sent exactly, the server's own answers by
//! status, body and closing. What differs on purpose stands in `tests/data/exchanges/deviations.json`, which is
//! normative, and by name and reason in docs/COMPATIBILITY.md.
//!
//! `LURCHER_GOLDEN_SERVER=mongrel2` checks this harness: the real server must pass its own recordings, deviations left
//! out of account. `LURCHER_GOLDEN_ONLY=name,name` plays only those; `LURCHER_GOLDEN_ALL=1` plays also what is left out.

mod backend;
mod judge;
mod message;
pub(crate) mod recording;
mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use recording::{Deviation, Exchange, deviations, exchanges};
use replay::{Outcome, Server, Session};

/// Exchanges left out by name, each with its reason. A name that is not recorded fails the test.
const LEFT_OUT: &[(&str, &str)] = &[(
    "chunked_413",
    "no upload store: a chunked body that fits limits.content_length is delivered whole (docs/COMPATIBILITY.md)",
)];

/// Exchanges that the real server does not repeat every time, with the reason: not judged when it plays.
const NOT_REPEATABLE: &[(&str, &str)] = &[
    (
        "reply_17_messages",
        "how many messages of the burst were written before the 17th is a race",
    ),
    (
        "writes_do_not_ping",
        "the sweep of the idle rule runs once a second, so four or five ticks get through",
    ),
];

/// Small groups, so that waiting overlaps: a session is mostly idle.
const EXCHANGES_PER_SESSION: usize = 16;

/// Why an exchange is not played, if so.
fn left_out(exchange: &Exchange) -> Option<&'static str> {
    LEFT_OUT
        .iter()
        .find(|(name, _)| *name == exchange.name)
        .map(|(_, reason)| *reason)
}

fn server() -> Server {
    match std::env::var("LURCHER_GOLDEN_SERVER").as_deref() {
        Ok("mongrel2") => Server::Mongrel2,
        _ => Server::Lurcher,
    }
}

/// The exchanges to play, by configuration.
fn wanted() -> BTreeMap<String, Vec<Exchange>> {
    let only: Option<BTreeSet<String>> = std::env::var("LURCHER_GOLDEN_ONLY")
        .ok()
        .map(|names| names.split(',').map(str::to_owned).collect());
    let all = std::env::var_os("LURCHER_GOLDEN_ALL").is_some();
    let mut wanted: BTreeMap<String, Vec<Exchange>> = BTreeMap::new();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for exchange in exchanges() {
        if let Some(only) = &only {
            if !only.contains(&exchange.name) {
                continue;
            }
        } else if let Some(reason) = left_out(&exchange) {
            *reasons.entry(reason).or_default() += 1;
            if !all {
                continue;
            }
        }
        wanted
            .entry(exchange.config.clone())
            .or_default()
            .push(exchange);
    }
    for (reason, count) in reasons {
        println!("{count:3} exchanges left out: {reason}");
    }
    wanted
}

/// Plays all wanted exchanges; `None` when the server is not installed.
fn play_all(
    server: Server,
    deviations: &BTreeMap<String, Deviation>,
) -> Option<BTreeMap<String, Outcome>> {
    let wanted = wanted();
    std::thread::scope(|scope| {
        let mut sessions = Vec::new();
        for (config, exchanges) in &wanted {
            for group in exchanges.chunks(EXCHANGES_PER_SESSION) {
                sessions.push(scope.spawn(move || {
                    let mut session = Session::start(config, server)?;
                    let mut outcomes = Vec::new();
                    for exchange in group {
                        if !session.alive() {
                            session = Session::start(config, server)?;
                        }
                        let outcome = session.play(exchange, deviations.get(&exchange.name));
                        outcomes.push((exchange.name.clone(), outcome));
                    }
                    Some(outcomes)
                }));
            }
        }
        let mut outcomes = BTreeMap::new();
        for session in sessions {
            outcomes.extend(session.join().expect("a session panicked")?);
        }
        Some(outcomes)
    })
}

#[test]
fn every_recorded_exchange_comes_out_the_same_or_as_its_deviation_expects() {
    let server = server();
    let deviations = deviations();
    let Some(outcomes) = play_all(server, &deviations) else {
        return;
    };
    let excused =
        |name: &str| server == Server::Mongrel2 && NOT_REPEATABLE.iter().any(|(n, _)| *n == name);
    let mut failures = Vec::new();
    for (name, outcome) in &outcomes {
        match &outcome.failure {
            Some(why) if excused(name) => println!("{name} is not repeatable: {why}"),
            Some(why) => failures.push(format!("{name}: {why}")),
            None => {}
        }
    }
    println!(
        "{} exchanges played, {} wrong",
        outcomes.len(),
        failures.len()
    );
    if server == Server::Lurcher {
        failures.extend(documentation(&outcomes, &deviations));
    }
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        outcomes.len(),
        failures.join("\n")
    );
}

/// docs/COMPATIBILITY.md names exactly the deviations that were seen, among those that were played.
fn documentation(
    outcomes: &BTreeMap<String, Outcome>,
    deviations: &BTreeMap<String, Deviation>,
) -> Vec<String> {
    let listed = documented();
    let mut wrong = Vec::new();
    for (name, outcome) in outcomes {
        let reason = deviations
            .get(name)
            .map_or("", |deviation| deviation.reason.as_str());
        match (outcome.deviated, listed.contains(name)) {
            (true, false) => wrong.push(format!(
                "{name} deviates ({reason}), but docs/COMPATIBILITY.md does not say so"
            )),
            (false, true) => wrong.push(format!(
                "docs/COMPATIBILITY.md lists {name}, which no longer deviates"
            )),
            _ => {}
        }
    }
    wrong
}

/// The names in the first column of the table of deviations.
fn documented() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/COMPATIBILITY.md");
    let text = fs::read_to_string(path).expect("docs/COMPATIBILITY.md");
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = cells.filter_map(|cell| cell.split(" |").next());
    names
        .flat_map(|cell| cell.split(['`', ',', ' ']).map(str::to_owned))
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn every_name_left_out_or_documented_is_a_recorded_one() {
    let exchanges = exchanges();
    let recorded: BTreeSet<&str> = exchanges
        .iter()
        .map(|exchange| exchange.name.as_str())
        .collect();
    for (name, reason) in LEFT_OUT.iter().chain(NOT_REPEATABLE) {
        assert!(recorded.contains(name), "{name} ({reason}) is not recorded");
    }
    let deviations = deviations();
    for name in deviations.keys() {
        assert!(
            recorded.contains(name.as_str()),
            "deviations.json has {name}, which is not recorded"
        );
    }
    for name in documented() {
        assert!(
            deviations.contains_key(&name),
            "docs/COMPATIBILITY.md lists {name}, which deviations.json does not have"
        );
    }
}
