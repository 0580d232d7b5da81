//! The bus when things go wrong: processes that stop or die, descriptors that run out, herds that come back at once.
//!
//! `delivery` has the kills and the restarts; here is what else may befall a handler or its front.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use lurcher::bus::server::{self, Message, Options, Peer, Sink};
use lurcher::drain;
use tokio::task::coop;

use crate::bus_peers::{
    Bus, PATIENCE, Raw, Recorder, blocking, everything, greeting, ipc, ready, shard, short_frame,
    tcp,
};
use crate::support::program::Program;

/// Says what this program shall be instead of a test: a role, and where to connect.
const ROLE: &str = "LURCHER_IT_FAULTS_ROLE";
/// SUBSCRIBE to everything, and a PING.
const SUBSCRIBE_AND_PING_BYTES: usize = 12 + 17;
const PONG: &[u8] = b"\x04\x05\x04PONG";
const PING: &[u8] = b"\x04\x0a\x04PING\0\0ctx";

/// This program again, as a process of its own in that role.
fn process(role: &str) -> Program {
    let own = std::env::current_exe().expect("this program");
    let mut command = Command::new(own);
    command.args(["--exact", "bus_faults::process_of_its_own", "--nocapture"]);
    Program::start(command.env(ROLE, role))
}

/// Not a test of its own: what others stop, kill or starve. Returns at once when run as a test.
#[test]
fn process_of_its_own() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = role.split(' ').collect();
    match words[..] {
        ["subscriber"] => subscriber(),
        _ => panic!("no such role: {role}"),
    }
}

/// The line that a process prints with these words before it.
fn said(program: &mut Program, before: &str) -> String {
    program.line(before, |line| {
        line.strip_prefix(before).map(|rest| rest.trim().to_owned())
    })
}

/// Stops a process, and waits until it has.
fn stop(program: &Program) {
    program.signal("STOP");
    let end = Instant::now() + PATIENCE;
    while !state(program).starts_with('T') {
        assert!(Instant::now() < end, "does not stop: {}", state(program));
        thread::sleep(Duration::from_millis(1));
    }
}

/// The fields of `/proc/PID/stat` behind the name, the state first.
fn state(program: &Program) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", program.id())).unwrap();
    stat.rsplit_once(") ")
        .expect("a name in brackets")
        .1
        .to_owned()
}

fn quick_heartbeats() -> Options {
    let mut options = Options::default();
    options.protocol.heartbeat_interval = Duration::from_millis(50);
    options.protocol.heartbeat_timeout = Duration::from_secs(1);
    options
}

/// A SUB server that says whether it heard a message before it lost its peer.
fn subscriber() {
    shard(async {
        let bus = Bus::bind(tcp(), everything(), quick_heartbeats()).await;
        println!("\nbound {}", bus.address);
        let heard = bus.recorder.wait(|seen| {
            (!seen.messages.is_empty() || !seen.lost.is_empty()).then(|| !seen.messages.is_empty())
        });
        println!("\nheard {}", heard.await);
        // Until it is killed: its last words are read only while it lives.
        std::future::pending().await
    });
}

#[test]
fn a_server_that_was_stopped_hears_what_came_meanwhile_before_it_calls_a_peer_dead() {
    let mut server = process("subscriber");
    let address = said(&mut server, "bound tcp://");
    let mut voice = TcpStream::connect(address).unwrap();
    voice.set_read_timeout(Some(PATIENCE)).unwrap();
    voice.write_all(&greeting()).unwrap();
    voice.write_all(&ready("PUB")).unwrap();
    let ours = 64 + ready("SUB").len();
    voice
        .read_exact(&mut vec![0; ours + SUBSCRIBE_AND_PING_BYTES])
        .unwrap();
    voice.write_all(PONG).unwrap();
    // The next one is to go unanswered until the server cannot hear the answer.
    voice.read_exact(&mut [0; 17]).unwrap();
    stop(&server);
    voice.write_all(&short_frame(b"here")).unwrap();
    // Well past the end of its patience.
    thread::sleep(quick_heartbeats().protocol.heartbeat_timeout + Duration::from_millis(300));
    server.signal("CONT");
    assert_eq!(said(&mut server, "heard "), "true");
}

#[test]
fn what_a_publisher_said_before_it_went_is_heard_to_the_end() {
    shard(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub").to_str().unwrap().to_owned();
        let bus = Bus::bind(ipc(&path), everything(), Options::default()).await;
        let mut voice = blocking(move || {
            let mut voice = UnixStream::connect(path).unwrap();
            voice.set_read_timeout(Some(PATIENCE)).unwrap();
            voice.write_all(&greeting()).unwrap();
            voice.write_all(&ready("PUB")).unwrap();
            let ours = 64 + ready("SUB").len();
            voice
                .read_exact(&mut vec![0; ours + SUBSCRIBE_AND_PING_BYTES])
                .unwrap();
            voice.write_all(PONG).unwrap();
            voice
        })
        .await;
        bus.recorder
            .wait(|seen| (!seen.subscribed.is_empty()).then_some(()))
            .await;
        // More than is told in one turn, and a PING whose answer comes too late for it.
        let mut last_words = PING.to_vec();
        for _ in 0..600 {
            last_words.extend(short_frame(b"reply"));
        }
        voice.write_all(&last_words).unwrap();
        drop(voice);
        let peer = bus.recorder.peer(0).await;
        bus.recorder.lost(&peer).await;
        assert_eq!(bus.recorder.seen.borrow().messages.len(), 600);
    });
}

/// Uses up what the runtime grants to a task at a time, as any callback may.
struct Greedy(Rc<Recorder>);

impl Sink for Greedy {
    fn joined(&self, peer: &Rc<Peer>) {
        self.0.joined(peer);
    }

    fn subscribed(&self, peer: &Rc<Peer>) {
        while coop::has_budget_remaining() {
            let mut some = std::pin::pin!(coop::consume_budget());
            assert!(
                some.as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_ready()
            );
        }
        self.0.subscribed(peer);
    }

    fn message(&self, peer: &Rc<Peer>, message: Message) {
        self.0.message(peer, message);
    }

    fn writable(&self, _: &Rc<Peer>) {}

    fn lost(&self, peer: &Rc<Peer>, unsent: Vec<u64>) {
        Sink::lost(&*self.0, peer, unsent);
    }
}

#[test]
fn timers_go_on_when_a_turn_has_used_up_its_share() {
    shard(async {
        let (_signal, watch) = drain::channel();
        let bound = server::bind(&tcp(), everything(), quick_heartbeats())
            .await
            .unwrap();
        let address = bound.endpoint().to_string();
        bound.run(Rc::new(Greedy(Rc::default())), &watch);
        let mut voice = Raw::ready(&address, "PUB").await;
        voice.read(SUBSCRIBE_AND_PING_BYTES).await;
        voice.write(PONG).await;
        assert!(voice.read(17).await.starts_with(b"\x04\x0f\x04PING"));
    });
}
