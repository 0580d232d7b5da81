//! Nothing is lost, crossed or left hanging between the front and its handlers, proved with libzmq programs that know
//! nothing of Lurcher: a stuck one, killed ones, late ones, fresh ones, none at all.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::{Asked, Client};
use crate::support::front::{Front, conf};
use crate::support::peer::{Peer, Replies, address};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

/// What a request may take at most when a peer dies under it.
const PROMPT: Duration = Duration::from_secs(1);
/// How often a handler process is killed in a row.
const KILLS: usize = 50;
/// Names the specs of the handler that this program shall be instead of a test.
const HANDLER: &str = "LURCHER_IT_HANDLER";

fn answer(payload: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{payload}",
        payload.len()
    )
    .into_bytes()
}

/// Answers every request with `name` and the path it asked for, until `stop`.
fn serve(peer: &Peer, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Some(message) = peer.recv(Duration::from_millis(20)) else {
            continue;
        };
        let (sender, id, path, _) = address(&message);
        if path != "@*" {
            peer.reply(sender, id, &answer(&format!("{name}{path}")));
        }
    }
}

/// The most spans that overlap at any moment.
fn most_at_once(spans: &[(Instant, Instant)]) -> usize {
    let open_at = |moment: Instant| {
        spans
            .iter()
            .filter(|(start, end)| *start <= moment && moment <= *end)
            .count()
    };
    spans
        .iter()
        .map(|(start, _)| open_at(*start))
        .max()
        .unwrap_or(0)
}

#[test]
fn a_stuck_peer_holds_at_most_one_request_more_than_its_neighbours_had_open() {
    let front = Front::start("");
    // It joins like any other, and then its program never looks at what comes.
    let stuck = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    let healthy: Vec<Peer> = (0..2)
        .map(|_| Peer::connect(&front.send, &front.recv, Replies::Xpub))
        .collect();
    for peer in healthy.iter().chain([&stuck]) {
        peer.joined();
    }
    let stop = AtomicBool::new(false);
    let spans: Mutex<Vec<(String, Instant, Instant)>> = Mutex::new(Vec::new());
    let waiting: Mutex<Vec<Client>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for (name, peer) in ["a", "b"].into_iter().zip(healthy) {
            let stop = &stop;
            scope.spawn(move || serve(&peer, name, stop));
        }
        let loads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let mut client = Client::connect(front.address);
                        let start = Instant::now();
                        client
                            .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                            .unwrap();
                        match client.try_answer(Asked::Other, Duration::from_millis(500)) {
                            Some(answer) => {
                                let name = String::from_utf8_lossy(&answer.body).into_owned();
                                spans.lock().unwrap().push((name, start, Instant::now()));
                            }
                            // Its request is with the stuck one: it stays open, so that it counts on.
                            None => waiting.lock().unwrap().push(client),
                        }
                    }
                })
            })
            .collect();
        for load in loads {
            load.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut held = 0;
    while let Some(message) = stuck.recv(Duration::from_millis(100)) {
        held += usize::from(address(&message).2 != "@*");
    }
    let spans = spans.into_inner().unwrap();
    let of = |name: &str| -> Vec<(Instant, Instant)> {
        let own = spans.iter().filter(|(body, ..)| body.starts_with(name));
        own.map(|(_, start, end)| (*start, *end)).collect()
    };
    let open = most_at_once(&of("a")).max(most_at_once(&of("b")));
    println!(
        "the stuck peer holds {held}; its neighbours answered {} and had at most {open} open",
        spans.len()
    );
    assert!(
        held <= open + 1,
        "the stuck peer holds {held}, its neighbours had at most {open} open"
    );
    assert_eq!(spans.len() + waiting.into_inner().unwrap().len(), 400);
}

/// Not a test of its own: the handler process that the next one kills. Returns at once when run as a test.
#[test]
fn handler_process() {
    let Ok(specs) = std::env::var(HANDLER) else {
        return;
    };
    let (send, recv) = specs.split_once(' ').expect("two specs");
    let peer = Peer::connect(send, recv, Replies::Pub);
    let mut first = true;
    loop {
        let Some(message) = peer.recv(PATIENCE) else {
            continue;
        };
        let (sender, id, path, _) = address(&message);
        if path != "@*" {
            peer.reply(sender, id, &answer(path));
        }
        if std::mem::take(&mut first) {
            // The harness may have left its own line open.
            println!("\nfirst request");
        }
    }
}

fn handler(front: &Front) -> Program {
    let own = std::env::current_exe().expect("this program");
    let mut command = Command::new(own);
    command.args(["--exact", "delivery::handler_process", "--nocapture"]);
    Program::start(command.env(HANDLER, format!("{} {}", front.send, front.recv)))
}

/// What became of the requests of one load.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicUsize,
    bad_gateway: AtomicUsize,
    wrong: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

/// Sends one request after the other until `stop`, each with a word of its own that must come back.
fn load(front: &Front, worker: usize, stop: &AtomicBool, tally: &Tally) {
    let mut client = Client::connect(front.address);
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (method, word) = (["GET", "POST"][number % 2], format!("/{worker}-{number}"));
        let request =
            format!("{method} {word} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let start = Instant::now();
        let sent = client.send(request.as_bytes());
        let answer = client.try_answer(Asked::Other, PATIENCE);
        let took = start.elapsed();
        let mut fresh = client.ended();
        match answer {
            Some(answer) if answer.status == 200 && answer.body == word.as_bytes() => {
                tally.answered.fetch_add(1, Ordering::Relaxed);
            }
            // The handler had seen it, and nobody knows what it did.
            Some(answer) if answer.status == 502 => {
                tally.bad_gateway.fetch_add(1, Ordering::Relaxed);
                fresh = true;
            }
            other => {
                let wrong = format!("{method} {word} after {took:?} (sent {sent:?}): {other:?}");
                tally.wrong.lock().unwrap().push(wrong);
                fresh = true;
            }
        }
        let mut slowest = tally.slowest.lock().unwrap();
        *slowest = took.max(*slowest);
        drop(slowest);
        if fresh {
            client = Client::connect(front.address);
        }
    }
}

#[test]
fn killed_handlers_leave_no_request_hanging_and_no_answer_crossed() {
    let mut front = Front::start("");
    let stop = AtomicBool::new(false);
    let tally = Tally::default();
    // They outlive the load: what is asked last must find one.
    let mut handlers = [handler(&front), handler(&front)];
    thread::scope(|scope| {
        for worker in 0..8 {
            let (front, stop, tally) = (&front, &stop, &tally);
            scope.spawn(move || load(front, worker, stop, tally));
        }
        for handler in &mut handlers {
            handler.line("its first request", |line| {
                (line == "first request").then_some(())
            });
        }
        for kill in 0..KILLS {
            let victim = &mut handlers[kill % 2];
            victim.kill();
            *victim = handler(&front);
            victim.line("its first request", |line| {
                (line == "first request").then_some(())
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(handlers);
    let wrong = tally.wrong.into_inner().unwrap();
    let slowest = tally.slowest.into_inner().unwrap();
    assert!(front.program.alive(), "{}", front.program);
    let (answered, refused) = (tally.answered.into_inner(), tally.bad_gateway.into_inner());
    println!("{KILLS} kills: {answered} answered, {refused} times 502, slowest {slowest:?}");
    assert!(
        wrong.is_empty(),
        "{} requests went wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(slowest < PROMPT, "a request took {slowest:?}");
    // At most the few that were with a victim when it died; the rest of the load never noticed.
    assert!(refused <= KILLS * 8, "{refused} of {answered} were refused");
}

#[test]
fn a_restarted_front_drops_replies_meant_for_its_predecessor() {
    let directory = scratch();
    let [send, recv] = [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    let file = conf(directory.path(), 0, &send, &recv, "");
    let arguments = ["serve", file.to_str().expect("a UTF-8 path")];
    let ask = |program: &mut Program| {
        let mut client = Client::connect(program.listening());
        client
            .send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        client
    };

    let mut first = Program::lurcher(&arguments, directory.path());
    let peer = Peer::connect(&send, &recv, Replies::Xpub);
    let _before = ask(&mut first);
    let old = peer.recv(PATIENCE).expect("the first request");
    first.kill();

    let mut second = Program::lurcher(&arguments, directory.path());
    let mut client = ask(&mut second);
    let new = loop {
        let message = peer.recv(PATIENCE).expect("the second request");
        if address(&message).2 != "@*" {
            break message;
        }
    };
    let ((sender, old, ..), (_, new, ..)) = (address(&old), address(&new));
    assert_ne!(old, new, "ids of two fronts in a row");
    peer.reply(sender, old, &answer("late"));
    peer.reply(sender, new, &answer("yours"));
    assert_eq!(client.answer().body, b"yours");
}

#[test]
fn the_first_reply_of_a_fresh_handler_is_not_lost() {
    let front = Front::start("");
    for round in 0..20 {
        let mut client = Client::connect(front.address);
        client
            .send(b"GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        // PUB, not XPUB: it cannot know whether the front listens, and answers at once.
        let peer = Peer::connect(&front.send, &front.recv, Replies::Pub);
        // The notice of the client before may come to this one.
        let message = loop {
            let message = peer
                .recv(PATIENCE)
                .unwrap_or_else(|| panic!("no request in round {round}"));
            if address(&message).2 != "@*" {
                break message;
            }
        };
        let (sender, id, ..) = address(&message);
        peer.reply(sender, id, &answer("first"));
        assert_eq!(client.answer().body, b"first", "round {round}");
    }
}

#[test]
fn the_same_holds_on_ipc() {
    let front = Front::over("", "ipc");
    let stop = Arc::new(AtomicBool::new(false));
    let mut client = Client::connect(front.address);
    client
        .send(b"GET /waits HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let peer = Peer::connect(&front.send, &front.recv, Replies::Pub);
    let handler = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || serve(&peer, "ipc", &stop))
    };
    assert_eq!(client.answer().body, b"ipc/waits");
    stop.store(true, Ordering::Relaxed);
    handler.join().unwrap();
}

#[test]
fn a_request_without_handler_is_delivered_when_one_comes() {
    let front = Front::start("");
    let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(front.address)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let request = format!("GET /{number} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.send(request.as_bytes()).unwrap();
    }
    let peer = Peer::connect(&front.send, &front.recv, Replies::Pub);
    for _ in 0..clients.len() {
        let message = peer.recv(PATIENCE).expect("a request that waited");
        let (sender, id, path, _) = address(&message);
        peer.reply(sender, id, &answer(path));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.answer().body, format!("/{number}").as_bytes());
    }
}

#[test]
fn a_request_that_no_handler_comes_for_is_answered_503_with_the_reason() {
    let mut front = Front::start(", 'limits.handler_wait': 1");
    let mut client = Client::connect(front.address);
    client
        .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let answer = client.answer();
    assert_eq!(answer.status, 503);
    let reason = String::from_utf8_lossy(&answer.body).to_lowercase();
    assert!(reason.contains("handler"), "{reason}");
    front
        .program
        .said("no handler took requests in time: none is connected", 1);
}
