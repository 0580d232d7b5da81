//! The configuration of a server that runs is replaced: what is new is served, what is open goes on, what is wrong is refused.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::{Client, fetch};
use crate::support::peer::{Peer, Replies, address};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

/// How often the configuration is replaced under load.
const RELOADS: usize = 50;

/// A handler of a configuration: its name, and where its sockets are.
#[derive(Debug, Clone)]
struct Handler {
    ident: &'static str,
    send: u16,
    recv: u16,
}

impl Handler {
    fn new(ident: &'static str) -> Self {
        Self {
            ident,
            send: free_port(),
            recv: free_port(),
        }
    }

    fn connect(&self) -> Peer {
        let spec = |port| format!("tcp://127.0.0.1:{port}");
        Peer::connect(&spec(self.send), &spec(self.recv), Replies::Xpub)
    }
}

/// A server whose configuration is written anew.
struct Site {
    program: Program,
    file: PathBuf,
    directory: tempfile::TempDir,
    reloads: usize,
}

fn text(
    directory: &std::path::Path,
    port: u16,
    routes: &[(&str, &Handler)],
    settings: &str,
) -> String {
    let here = directory.display();
    let routes: Vec<String> = routes
        .iter()
        .map(|(path, Handler { ident, send, recv })| {
            format!(
                "'{path}': Handler(send_spec='tcp://127.0.0.1:{send}', send_ident='{ident}', recv_spec='tcp://127.0.0.1:{recv}', recv_ident='')"
            )
        })
        .collect();
    format!(
        "main = Server(uuid='main-uuid', name='main', access_log='{here}/access.log', error_log='{here}/error.log',\n\
         \x20   chroot='', pid_file='{here}/main.pid', control_port='ipc://{here}/control', default_host='localhost',\n\
         \x20   bind_addr='127.0.0.1', port={port}, hosts=[Host(name='localhost', routes={{{}}})])\n\
         settings = {{'server.daemonize': 0{settings}}}\nservers = [main]\n",
        routes.join(", ")
    )
}

impl Site {
    fn start(port: u16, routes: &[(&str, &Handler)], settings: &str) -> Self {
        let directory = scratch();
        let file = directory.path().join("main.conf");
        fs::write(&file, text(directory.path(), port, routes, settings)).expect("write");
        let program = Program::lurcher(
            &["serve", file.to_str().expect("a UTF-8 path")],
            directory.path(),
        );
        Self {
            program,
            file,
            directory,
            reloads: 0,
        }
    }

    fn hang_up_with(&self, text: &str) {
        fs::write(&self.file, text).expect("write");
        self.program.signal("HUP");
    }

    fn reload(&mut self, port: u16, routes: &[(&str, &Handler)], settings: &str) {
        self.hang_up_with(&text(self.directory.path(), port, routes, settings));
        self.reloads += 1;
        self.program.said("configuration reloaded", self.reloads);
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The id of the next request, which must be for this path and from this sender.
fn next(peer: &Peer, sender: &str, path: &str) -> String {
    loop {
        let message = peer.recv(PATIENCE).expect("a request");
        let (from, id, asked, _) = address(&message);
        if asked != "@*" {
            assert_eq!((from, asked), (sender, path));
            return id.to_owned();
        }
    }
}

#[test]
fn routes_and_handlers_change_and_what_is_open_is_finished() {
    let (stays, goes, comes) = (
        Handler::new("stays"),
        Handler::new("goes"),
        Handler::new("comes"),
    );
    let mut site = Site::start(0, &[("/", &stays), ("/old", &goes)], "");
    let front = site.program.listening();
    let (stays_peer, goes_peer, comes_peer) = (stays.connect(), goes.connect(), comes.connect());
    let mut kept = Client::connect(front);
    kept.send(get("/kept").as_bytes()).expect("send");
    let kept_id = next(&stays_peer, "stays", "/kept");
    let mut leaving = Client::connect(front);
    leaving.send(get("/old/1").as_bytes()).expect("send");
    let leaving_id = next(&goes_peer, "goes", "/old/1");

    site.reload(0, &[("/", &stays), ("/new", &comes)], "");

    // The route is gone, and its handler finishes what it has.
    goes_peer.reply("goes", &leaving_id, &ok("late"));
    assert_eq!(leaving.answer().body, b"late");
    stays_peer.reply("stays", &kept_id, &ok("kept"));
    assert_eq!(kept.answer().body, b"kept");
    // A connection that was there before gets what holds now.
    kept.send(get("/new/1").as_bytes()).expect("send");
    let id = next(&comes_peer, "comes", "/new/1");
    comes_peer.reply("comes", &id, &ok("new"));
    assert_eq!(kept.answer().body, b"new");
    leaving.send(get("/old/2").as_bytes()).expect("send");
    let id = next(&stays_peer, "stays", "/old/2");
    stays_peer.reply("stays", &id, &ok("by the one that stays"));
    assert_eq!(leaving.answer().body, b"by the one that stays");
    for what in [
        "host localhost: route /old removed",
        "host localhost: route /new added",
    ] {
        site.program.said(what, 1);
    }
}

#[test]
fn what_a_handler_whose_route_is_gone_does_not_end_in_time_is_ended() {
    let (stays, goes) = (Handler::new("stays"), Handler::new("goes"));
    let settings = ", 'limits.drain_timeout': 1, 'limits.content_length': 100";
    let mut site = Site::start(0, &[("/", &stays), ("/old", &goes)], settings);
    let front = site.program.listening();
    let peer = goes.connect();
    let mut asks = Client::connect(front);
    asks.send(get("/old/long").as_bytes()).expect("send");
    next(&peer, "goes", "/old/long");
    let mut talks = Client::connect(front);
    talks
        .send(
            b"GET /old/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .expect("send");
    let id = next(&peer, "goes", "/old/ws");
    peer.reply("goes", &id, b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
    talks.upto(b"\r\n\r\n");
    let mut posts = Client::connect(front);
    posts
        .send(b"POST /old/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n1")
        .expect("send");

    site.reload(0, &[("/", &stays)], settings);
    // Its GET could be handed on, but to nobody.
    assert_eq!(asks.answer().status / 100, 5);
    assert_eq!(talks.upto(b"\x88\x02\x03\xe9"), b"\x88\x02\x03\xe9");
    posts.send(b"2").expect("send");
    assert_eq!(posts.answer().status, 503);
}

#[test]
fn a_handler_that_only_changes_its_name_keeps_its_peers() {
    let before = Handler::new("before");
    let after = Handler {
        ident: "after",
        ..before.clone()
    };
    let mut site = Site::start(0, &[("/", &before)], "");
    let front = site.program.listening();
    let peer = before.connect();
    let mut client = Client::connect(front);
    for (sender, handler) in [("before", &before), ("after", &after)] {
        if sender == "after" {
            site.reload(0, &[("/", handler)], "");
        }
        client.send(get("/x").as_bytes()).expect("send");
        let id = next(&peer, sender, "/x");
        peer.reply(sender, &id, &ok(sender));
        assert_eq!(client.answer().body, sender.as_bytes());
    }
}

#[test]
fn a_request_that_waits_for_a_handler_whose_route_is_removed_still_gets_it() {
    let (stays, goes) = (Handler::new("stays"), Handler::new("goes"));
    let mut site = Site::start(0, &[("/", &stays), ("/old", &goes)], "");
    let front = site.program.listening();
    let mut client = Client::connect(front);
    client.send(get("/old/1").as_bytes()).expect("send");
    site.program.signal("HUP");
    site.program.said("configuration unchanged", 1);
    site.reload(0, &[("/", &stays)], "");
    // And once more: what is being retired may come back.
    site.reload(0, &[("/", &stays), ("/old", &goes)], "");
    site.reload(0, &[("/", &stays)], "");
    let peer = goes.connect();
    let id = next(&peer, "goes", "/old/1");
    peer.reply("goes", &id, &ok("late"));
    assert_eq!(client.answer().body, b"late");
}

#[test]
fn mistakes_are_told_and_the_old_configuration_goes_on() {
    let handler = Handler::new("app");
    let mut site = Site::start(0, &[("/app", &handler)], "");
    let front = site.program.listening();
    let holder = TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = Handler {
        ident: "other",
        send: holder.local_addr().expect("an address").port(),
        recv: free_port(),
    };
    let good = fs::read_to_string(&site.file).expect("read");
    let unbindable = text(site.directory.path(), 0, &[("/", &taken)], "");
    let refused = [
        ("servers = [".to_owned(), "main.conf:"),
        (
            good.replace("default_host='localhost'", "default_host='nobody'"),
            "nobody",
        ),
        (unbindable, "bind tcp://127.0.0.1"),
    ];
    for (count, (bad, why)) in refused.iter().enumerate() {
        site.hang_up_with(bad);
        site.program
            .said("refused, the old configuration goes on", count + 1);
        site.program.said(why, 1);
        assert_eq!(fetch(front, &get("/elsewhere")).status, 404);
    }
    drop(holder);
    // The next good one is taken.
    site.reload(0, &[("/", &handler)], "");
}

#[test]
fn addresses_and_limits_change_too() {
    let handler = Handler::new("app");
    let (first, second) = (free_port(), free_port());
    let mut site = Site::start(first, &[("/", &handler)], "");
    let front = site.program.listening();
    let mut before = Client::connect(front);
    before
        .send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n")
        .expect("send");
    before.send(b"0123456789").expect("send");
    site.reload(
        second,
        &[("/", &handler)],
        ", 'limits.content_length': 20, 'disable.access_logging': 1",
    );
    let moved = std::net::SocketAddr::new(front.ip(), second);
    let post = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n";
    assert_eq!(fetch(moved, post).status, 413);
    // Who was about to connect there is still served for a moment.
    let end = Instant::now() + PATIENCE;
    while Client::try_connect(front).is_ok() {
        assert!(Instant::now() < end, "it has moved");
    }
    // What had begun goes on under what held when it did.
    before.send(b"01234567890123456789").expect("send");
    let peer = handler.connect();
    let id = next(&peer, "app", "/");
    peer.reply("app", &id, &ok("whole"));
    assert_eq!(before.answer().body, b"whole");
}

#[test]
fn fifty_reloads_under_load_lose_and_refuse_nothing() {
    let (one, two) = (Handler::new("one"), Handler::new("two"));
    let mut site = Site::start(0, &[("/", &one)], "");
    let front = site.program.listening();
    let stop = AtomicBool::new(false);
    let handlers_stop = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        let _handlers_end_last = StopAtEnd(&handlers_stop);
        for handler in [&one, &two] {
            let stop = &handlers_stop;
            scope.spawn(move || {
                let peer = handler.connect();
                while !stop.load(Ordering::Relaxed) {
                    let Some(message) = peer.recv(Duration::from_millis(20)) else {
                        continue;
                    };
                    let (sender, id, path, _) = address(&message);
                    if path != "@*" {
                        peer.reply(sender, id, &ok(path));
                    }
                }
            });
        }
        let loads: Vec<_> = (0..6)
            .map(|worker| {
                let (stop, answered) = (&stop, &answered);
                scope.spawn(move || {
                    let mut kept = Client::connect(front);
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        count += 1;
                        let path = format!("/{worker}/{count}");
                        let mut fresh;
                        let client = if worker % 2 == 0 {
                            &mut kept
                        } else {
                            fresh = Client::connect(front);
                            &mut fresh
                        };
                        client.send(get(&path).as_bytes()).expect("send");
                        let answer = client.answer();
                        assert_eq!((answer.status, answer.body), (200, path.into_bytes()));
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let ends = StopAtEnd(&stop);
        for round in 0..RELOADS {
            let settings = format!(", 'limits.content_length': {}", 20_000 + round);
            match round % 3 {
                0 => site.reload(0, &[("/", &two)], &settings),
                1 => site.reload(0, &[("/", &one), ("/1", &two)], &settings),
                _ => site.reload(0, &[("/", &one)], &settings),
            }
            // Some requests in each round.
            let before = answered.load(Ordering::Relaxed);
            let end = Instant::now() + PATIENCE;
            while answered.load(Ordering::Relaxed) < before + 20 {
                assert!(Instant::now() < end, "nothing is answered");
                thread::yield_now();
            }
        }
        drop(ends);
        for load in loads {
            load.join().expect("a client");
        }
    });
    assert!(answered.load(Ordering::Relaxed) >= RELOADS * 20);
}

/// Ends the load even when a reload fails, so that the test can.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
