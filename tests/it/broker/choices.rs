//! Options of a broker that change who gets a request, on processes: workers that are slow, that hang, that die with many; and the
//! youngest first.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::Device;
use super::workers::Worker;
use crate::support::PATIENCE;
use crate::support::client::{Answer, Asked, Client};
use crate::support::exposition::Figures;
use crate::support::free_port;
use crate::support::servers::{Kind, Server};

/// A broker behind a Lurcher, and its figures.
struct Watched {
    server: Server,
    device: Device,
    figures: SocketAddr,
}

impl Watched {
    fn start(options: &[&str]) -> Self {
        let server = Server::start(Kind::Lurcher, "json", "").expect("it is always there");
        let figures = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let address = figures.to_string();
        let options = [&["--metrics", &address], options].concat();
        let mut device = Device::start(&[&server], &options);
        device.program.said("pool default: ", 1);
        Self {
            server,
            device,
            figures,
        }
    }

    fn ask(&self, path: &str) -> Client {
        let mut client = Client::connect(self.server.address);
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.send(request.as_bytes()).expect("send");
        client
    }

    #[track_caller]
    fn answered(&self, mut client: Client) -> Answer {
        let answer = client.try_answer(Asked::default(), PATIENCE);
        answer.unwrap_or_else(|| panic!("silent\n{}", self.device.program))
    }

    #[track_caller]
    fn until(&self, what: &str, is_so: impl Fn(&Figures) -> bool) -> Figures {
        Figures::until(self.figures, what, is_so)
    }

    /// Waits until so many workers are in a state.
    #[track_caller]
    fn has(&self, count: u64, state: &str) {
        self.until(state, |figures| {
            figures.count("lurcher_worker_state", &[("state", state)]) == count
        });
    }
}

/// Who has answered.
fn pid(answer: &Answer) -> u32 {
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = String::from_utf8_lossy(&answer.body);
    let (pid, _) = body.split_once(' ').expect("two words");
    pid.parse().expect("a number")
}

#[test]
fn a_worker_that_is_much_slower_than_the_others_is_left_out() {
    let watched = Watched::start(&["--outlier", "3", "--prefetch", "0"]);
    let kind = || watched.device.own().slots(4);
    let slow = kind().named("slow").ready();
    let _brisk: Vec<Worker> = (0..3).map(|_| kind().ready()).collect();
    let is_left_out = || {
        let figures = Figures::fetch(watched.figures);
        figures.count("lurcher_worker_state", &[("state", "ejected")]) == 1
    };
    // Enough for each to be known, and then until they are compared.
    let end = Instant::now() + PATIENCE * 2;
    while !is_left_out() {
        assert!(
            Instant::now() < end,
            "{:#?}",
            Figures::fetch(watched.figures)
        );
        let asked: Vec<Client> = (0..40).map(|_| watched.ask("/by-name")).collect();
        for client in asked {
            assert_eq!(watched.answered(client).status, 200);
        }
    }
    let asked: Vec<Client> = (0..40).map(|_| watched.ask("/by-name")).collect();
    for client in asked {
        assert_ne!(pid(&watched.answered(client)), slow.program.id());
    }
}

#[test]
fn no_more_is_given_to_a_second_worker_than_the_budget_allows() {
    // A hundred always may, and ten more each second.
    for (budget, again) in [("0", 100..140), ("none", 200..201)] {
        let watched = Watched::start(&["--retry-budget", budget, "--prefetch", "0"]);
        let mut first = watched.device.own().slots(200).ready();
        let asked: Vec<Client> = (0..200).map(|_| watched.ask("/hold/x")).collect();
        first.has_begun("/hold/x", 200);
        watched.until("all are known to have begun", |figures| {
            figures.count("lurcher_pool_in_flight", &[]) == 200
        });
        let mut second = watched.device.own().slots(200).ready();
        first.kill();
        let of = |figures: &Figures| {
            let again = figures.count("lurcher_pool_requeued_total", &[("cause", "begun")]);
            let over = figures.count("lurcher_pool_failed_total", &[("cause", "over_budget")]);
            (again, over)
        };
        let figures = watched.until("each is settled", |figures| {
            let (again, over) = of(figures);
            again + over == 200
        });
        let (retried, _) = of(&figures);
        assert!(again.contains(&retried), "{budget}: {retried}");
        second.has_begun("/hold/x", usize::try_from(retried).expect("few"));
        second.release();
        let statuses = asked
            .into_iter()
            .map(|client| watched.answered(client).status);
        let statuses: Vec<u16> = statuses.collect();
        let count = |status| statuses.iter().filter(|other| **other == status).count() as u64;
        assert_eq!((count(200), count(502)), (retried, 200 - retried));
    }
}

#[test]
fn under_a_long_overload_the_youngest_is_first_where_that_is_asked_for() {
    let lifo: &[&str] = &["--lifo-after", "0.2"];
    for (options, order) in [(lifo, ["5", "4", "3"]), (&[], ["0", "1", "2"])] {
        let watched = Watched::start(&[options, &["--prefetch", "0", "--wait", "20"]].concat());
        let mut worker = watched.device.own().ready();
        let mut asked = vec![watched.ask("/hold/first")];
        worker.has_begun("/hold/first", 1);
        let wait = |client: Client, count: u64, asked: &mut Vec<Client>| {
            asked.push(client);
            watched.until("it waits", |figures| {
                figures.count("lurcher_pool_waiting", &[]) == count
            });
        };
        for number in 0..4 {
            wait(
                watched.ask(&format!("/hold/{number}")),
                number + 1,
                &mut asked,
            );
        }
        // Nothing tells of time that passes: too long for the oldest, and then for long enough.
        thread::sleep(Duration::from_millis(300));
        wait(watched.ask("/hold/4"), 5, &mut asked);
        thread::sleep(Duration::from_millis(200));
        wait(watched.ask("/hold/5"), 6, &mut asked);
        for number in order {
            worker.release();
            worker.has_begun(&format!("/hold/{number}"), 1);
        }
        let begun = |worker: &Worker| {
            let lines = worker.program.lines();
            lines
                .iter()
                .filter(|line| line.starts_with("begun "))
                .count()
        };
        let end = Instant::now() + PATIENCE;
        for number in 5..8 {
            // The first, three in their order, and so on.
            worker.release();
            while begun(&worker) < number {
                assert!(Instant::now() < end, "{}", worker.program);
                worker.program.wait_for_lines(Duration::from_millis(50));
            }
        }
        worker.release();
        for client in asked {
            assert_eq!(watched.answered(client).status, 200);
        }
    }
}

#[test]
fn a_worker_that_comes_no_further_gets_nothing_more_until_it_does_and_is_not_dead() {
    let watched = Watched::start(&[
        "--stuck-after",
        "0.5",
        "--ping-interval",
        "0.1",
        "--suspect-grace",
        "0.5",
        "--prefetch",
        "0",
    ]);
    let mut stuck = watched.device.own().slots(2).ready();
    // From here on it counts.
    assert_eq!(
        pid(&watched.answered(watched.ask("/now"))),
        stuck.program.id()
    );
    let held = watched.ask("/hold/x");
    stuck.has_begun("/hold/x", 1);
    watched.has(1, "stuck");
    let brisk = watched.device.own().ready();
    for _ in 0..10 {
        assert_eq!(
            pid(&watched.answered(watched.ask("/now"))),
            brisk.program.id()
        );
    }
    // It would be dead by now if it were silent.
    watched.until("it hangs for longer", |figures| {
        figures.sum("lurcher_worker_no_progress_seconds", &[]) > 2.0
    });
    stuck.release();
    assert_eq!(pid(&watched.answered(held)), stuck.program.id());
    watched.has(2, "ready");
}
