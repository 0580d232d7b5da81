//! Clients that ask without a pause, and believe nothing: every request carries a token of its own, and ends in an answer with that
//! token, or in a refusal that says why, in time. Anything else is noted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::PATIENCE;
use crate::support::client::{Answer, Asked, Client};

/// What a load asks, and how.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// Where to; clients take them in turn.
    pub(super) addresses: Vec<SocketAddr>,
    /// Each on a connection of its own.
    pub(super) clients: usize,
    /// What the tokens stand behind.
    pub(super) path: &'static str,
    /// In turn.
    pub(super) methods: &'static [&'static str],
    /// No request may take longer.
    pub(super) deadline: Duration,
}

/// What the clients have seen so far.
#[derive(Default)]
pub(super) struct Seen {
    answered: AtomicUsize,
    stop: AtomicBool,
    slowest: Mutex<Duration>,
    /// By method, status and reason.
    refused: Mutex<BTreeMap<(&'static str, u16, String), usize>>,
    wrong: Mutex<Vec<String>>,
}

/// What came of a load, when nothing was wrong with it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) answered: usize,
    /// By method, status and reason.
    pub(super) refused: BTreeMap<(&'static str, u16, String), usize>,
    pub(super) slowest: Duration,
}

impl Outcome {
    /// How many were refused.
    pub(super) fn refusals(&self) -> usize {
        self.refused.values().sum()
    }
}

impl Seen {
    /// Waits until so many more are answered; `alive` says what to tell when none are.
    pub(super) fn goes_on(&self, more: usize, state: &dyn Fn() -> String) {
        let before = self.answered.load(Ordering::Relaxed);
        let end = Instant::now() + PATIENCE;
        while self.answered.load(Ordering::Relaxed) < before + more {
            let wrong = self.wrong.lock().expect("no client panicked");
            assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), state());
            drop(wrong);
            assert!(Instant::now() < end, "nothing is answered\n{}", state());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Load {
    /// Everything to one server, by so many clients.
    pub(super) fn on(address: SocketAddr, clients: usize, path: &'static str) -> Self {
        Self {
            addresses: vec![address],
            clients,
            path,
            methods: &["GET", "POST"],
            deadline: PATIENCE,
        }
    }

    /// Asks while `meanwhile` runs; panics when anything went wrong.
    pub(super) fn run(&self, meanwhile: impl FnOnce(&Seen)) -> Outcome {
        let seen = Seen::default();
        let ended = thread::scope(|scope| {
            for number in 0..self.clients {
                let seen = &seen;
                scope.spawn(move || self.ask(number, seen));
            }
            // The clients must end whatever happens here, or the scope does not.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| meanwhile(&seen)));
            seen.stop.store(true, Ordering::Relaxed);
            ended
        });
        let wrong = seen.wrong.into_inner().expect("no client panicked");
        if let Err(panic) = ended {
            println!("{} went wrong: {}", wrong.len(), wrong.join("\n"));
            std::panic::resume_unwind(panic);
        }
        assert!(
            wrong.is_empty(),
            "{} went wrong: {}",
            wrong.len(),
            wrong.join("\n")
        );
        let outcome = Outcome {
            answered: seen.answered.into_inner(),
            refused: seen.refused.into_inner().expect("no client panicked"),
            slowest: seen.slowest.into_inner().expect("no client panicked"),
        };
        println!("{outcome:?}");
        outcome
    }

    fn ask(&self, number: usize, seen: &Seen) {
        let address = self.addresses[number % self.addresses.len()];
        let mut client = Client::connect(address);
        let mut at = 0;
        while !seen.stop.load(Ordering::Relaxed) {
            at += 1;
            let method = self.methods[at % self.methods.len()];
            let path = format!("{}/token-{number}-{at}-end", self.path);
            // Some workers answer with the path, some with the body.
            let body = if method == "GET" { "" } else { &path };
            let length = body.len();
            let text = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            let begin = Instant::now();
            let sent = client.send(text.as_bytes());
            let answer = client.try_answer(Asked::default(), self.deadline);
            let took = begin.elapsed();
            let note = |what: &str| {
                let text = format!("{method} {path} after {took:?}: {what}, {answer:?}, {sent:?}");
                seen.wrong.lock().expect("no client panicked").push(text);
            };
            {
                let mut slowest = seen.slowest.lock().expect("no client panicked");
                *slowest = took.max(*slowest);
            }
            let mut kept = client.bytes().is_empty() && !client.ended();
            match &answer {
                None => {
                    kept = false;
                    note("silent");
                }
                Some(answer) if answer.status == 200 => {
                    if answer.body.ends_with(path.as_bytes()) {
                        seen.answered.fetch_add(1, Ordering::Relaxed);
                    } else {
                        note("crossed");
                    }
                    // What is more than an answer would be another's.
                    if !client.bytes().is_empty() {
                        note("answered twice");
                    }
                }
                Some(answer) if (500..600).contains(&answer.status) && !answer.body.is_empty() => {
                    let why = String::from_utf8_lossy(&answer.body).trim().to_owned();
                    let mut refused = seen.refused.lock().expect("no client panicked");
                    *refused.entry((method, answer.status, why)).or_default() += 1;
                    kept &= !closes(answer);
                }
                Some(_) => note("no answer of ours"),
            }
            if !kept {
                client = Client::connect(address);
            }
        }
    }
}

/// Whether the server says that it ends the connection.
pub(super) fn closes(answer: &Answer) -> bool {
    let said = answer.header("connection");
    said.is_some_and(|said| said.eq_ignore_ascii_case(b"close"))
}
