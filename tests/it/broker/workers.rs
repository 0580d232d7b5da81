//! Workers as somebody would write them who has libzmq and the documents, and no library of ours: plain ones with PULL and PUB, and
//! ones that speak the broker's dialect over a DEALER. Each is a process, this program again, so that it can be killed.

use std::collections::VecDeque;
use std::io::{self, PipeWriter, Read as _, Write as _};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::peer::{Peer, Replies, address, reply};
use crate::support::program::Program;

/// Tells a process what worker it shall be instead of a test: dialect, slots, name, pool, addresses.
const WORKER: &str = "LURCHER_IT_BROKER_WORKER";

/// What stands for an empty name in the above.
const NONE: &str = "-";

/// What worker a process shall be.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    dialect: &'static str,
    slots: u32,
    name: String,
    pool: String,
    addresses: Vec<String>,
}

impl Kind {
    /// A plain one, on a pair of addresses.
    pub(super) fn plain([pull, publish]: &[String; 2]) -> Self {
        Self {
            dialect: "plain",
            slots: 1,
            name: NONE.to_owned(),
            pool: NONE.to_owned(),
            addresses: vec![pull.clone(), publish.clone()],
        }
    }

    /// One of the broker's dialect.
    pub(super) fn own(address: &str) -> Self {
        Self {
            dialect: "own",
            addresses: vec![address.to_owned()],
            ..Self::plain(&[String::new(), String::new()])
        }
    }

    /// With so many requests at once.
    pub(super) fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// That calls itself so.
    pub(super) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Starts one; it may not have connected yet.
    pub(super) fn start(&self) -> Worker {
        let program = std::env::current_exe().expect("this program");
        let (orders, writer) = io::pipe().expect("a pipe");
        let words = format!(
            "{} {} {} {} {}",
            self.dialect,
            self.slots,
            self.name,
            self.pool,
            self.addresses.join(" ")
        );
        let mut command = Command::new(program);
        command
            .args(["--exact", "broker::workers::work_if_asked", "--nocapture"])
            .env(WORKER, words);
        Worker {
            program: Program::start_with_stdin(&mut command, orders),
            orders: writer,
        }
    }

    /// Starts one, and waits until it is known to whom it connects.
    pub(super) fn ready(&self) -> Worker {
        let mut worker = self.start();
        worker.is_ready();
        worker
    }
}

/// A worker's process. It ends with the value.
pub(super) struct Worker {
    pub(super) program: Program,
    orders: PipeWriter,
}

impl Worker {
    /// Waits until it has been taken.
    pub(super) fn is_ready(&mut self) {
        self.program.said("worker ready", 1);
    }

    /// Waits until it has begun so many requests that are held or take longer.
    pub(super) fn has_begun(&mut self, path: &str, times: usize) {
        self.program.said(&format!("begun {path}"), times);
    }

    /// Has it answer what it holds.
    pub(super) fn release(&mut self) {
        self.orders.write_all(b"r").expect("it reads its orders");
    }

    /// Has it leave in order, as at a SIGTERM; it ends when it has answered what it has.
    pub(super) fn drain(&mut self) {
        self.orders.write_all(b"d").expect("it reads its orders");
    }

    /// kill -9.
    pub(super) fn kill(&mut self) {
        self.program.kill();
    }
}

/// Whoever names a worker by the environment gets it: it answers `PID PATH`. What is under `/now` it answers at once, what is under
/// `/ms/N` after so many milliseconds, of which it begins as many at once as it has slots; what is under `/hold` when it is told. Of
/// `/stream` it says a first line (under `/stream/length` with the length of all), and the rest when it is told; what is under `/by-name` after 60 ms by
/// the one that is called `slow`, at once by others; `/die` kills it, and
/// `/crash` does so before it can say that it has begun.
#[test]
fn work_if_asked() {
    let Ok(words) = std::env::var(WORKER) else {
        return;
    };
    let words: Vec<&str> = words.split(' ').collect();
    let [dialect, slots, name, pool, addresses @ ..] = &words[..] else {
        panic!("dialect, slots, name, pool and addresses: {words:?}");
    };
    let slots = slots.parse().expect("a number");
    let bytes = |word: &str| {
        let word = if word == NONE { "" } else { word };
        word.as_bytes().to_vec()
    };
    let bus = match *dialect {
        "plain" => Bus::Plain(Peer::connect(addresses[0], addresses[1], Replies::Xpub)),
        _ => Bus::Own(Dealer::connect(
            addresses[0],
            [
                bytes(name),
                u32::to_string(&slots).into_bytes(),
                bytes(pool),
            ],
        )),
    };
    if let Bus::Plain(peer) = &bus {
        peer.joined();
        println!("\nworker ready");
    }
    Work {
        bus,
        slots: usize::try_from(slots).expect("a small number"),
        is_slow: *name == "slow",
        waiting: VecDeque::new(),
        begun: Vec::new(),
        progress: 0,
        leaving: false,
        released: false,
    }
    .serve();
}

/// A request that is not answered.
struct Job {
    /// Its number at the broker; empty where there are none.
    number: Vec<u8>,
    sender: String,
    id: String,
    path: String,
    began: Instant,
    /// None: when it is told.
    due: Option<Instant>,
}

impl Job {
    /// Once it has begun there is nothing to do for it.
    fn streams(&self) -> bool {
        self.path.starts_with("/stream")
    }

    /// It is said beforehand how long it will be.
    fn has_length(&self) -> bool {
        self.path.starts_with("/stream/length")
    }

    fn body(&self) -> String {
        format!("{} {}", std::process::id(), self.path)
    }
}

/// What a worker is about.
struct Work {
    bus: Bus,
    slots: usize,
    is_slow: bool,
    waiting: VecDeque<Job>,
    begun: Vec<Job>,
    progress: u64,
    leaving: bool,
    released: bool,
}

enum Bus {
    Plain(Peer),
    Own(Dealer),
}

/// A connection to a broker. After an end of it the next has a socket of its own, so that HELLO is the first thing on each.
struct Dealer {
    address: String,
    /// Name, slots and pool.
    hello: [Vec<u8>; 3],
    context: zmq::Context,
    socket: zmq::Socket,
    /// Tells of the end.
    monitor: zmq::Socket,
    opened: usize,
}

impl Dealer {
    fn connect(address: &str, hello: [Vec<u8>; 3]) -> Self {
        let context = zmq::Context::new();
        let (socket, monitor) = Self::open(&context, address, 0);
        let dealer = Self {
            address: address.to_owned(),
            hello,
            context,
            socket,
            monitor,
            opened: 0,
        };
        dealer.greet(&[]);
        dealer
    }

    fn open(context: &zmq::Context, address: &str, number: usize) -> (zmq::Socket, zmq::Socket) {
        let socket = context.socket(zmq::DEALER).expect("a DEALER");
        socket.set_linger(1000).expect("linger");
        socket.set_reconnect_ivl(100).expect("reconnect_ivl");
        let events = format!("inproc://events-{number}");
        socket
            .monitor(&events, zmq::SocketEvent::DISCONNECTED as i32)
            .expect("monitor");
        let monitor = context.socket(zmq::PAIR).expect("a PAIR");
        monitor.connect(&events).expect("connect to the monitor");
        socket.connect(address).expect("connect");
        (socket, monitor)
    }

    fn greet(&self, held: &[&Job]) {
        let [name, slots, pool] = &self.hello;
        self.say(&[b"HELLO", b"1", name, slots, b"1", pool]);
        for job in held {
            let address = format!("{} {}", job.sender, job.id);
            self.say(&[b"HELD", &job.number, address.as_bytes()]);
        }
    }

    fn say(&self, frames: &[&[u8]]) {
        self.socket.send_multipart(frames, 0).expect("send");
    }

    /// The connection has ended.
    fn again(&mut self, held: &[&Job]) {
        self.opened += 1;
        self.socket.set_linger(0).expect("linger");
        (self.socket, self.monitor) = Self::open(&self.context, &self.address, self.opened);
        self.greet(held);
    }
}

/// What it was given to do.
enum Heard {
    Request(Vec<u8>, Vec<u8>),
    Cancelled(Vec<u8>),
    /// There will be no more.
    NoMore,
}

impl Work {
    fn serve(mut self) {
        loop {
            let now = Instant::now();
            while let Some(at) = (self.begun.iter()).position(|job| {
                job.due.is_some_and(|due| due <= now) || job.due.is_none() && self.released
            }) {
                let job = self.begun.swap_remove(at);
                self.answer(&job);
            }
            self.released = false;
            while self.begun.iter().filter(|job| !job.streams()).count() < self.slots
                && let Some(job) = self.waiting.pop_front()
            {
                self.begin(job);
            }
            if self
                .begun
                .iter()
                .any(|job| job.due.is_some_and(|due| due <= now))
            {
                continue;
            }
            if self.leaving && self.begun.is_empty() && self.waiting.is_empty() {
                if let Bus::Own(dealer) = &self.bus {
                    dealer.say(&[b"BYE"]);
                }
                return;
            }
            let next = self.begun.iter().filter_map(|job| job.due).min();
            if !self.wait(next.map(|due| due.saturating_duration_since(now))) {
                return;
            }
            while let Some(heard) = self.hear() {
                match heard {
                    Heard::Request(number, message) => self.take(number, &message),
                    Heard::Cancelled(number) => {
                        println!("\ncancelled");
                        self.say_done(&number, Duration::ZERO);
                        self.waiting.retain(|job| job.number != number);
                        self.begun.retain(|job| job.number != number);
                    }
                    Heard::NoMore => self.leaving = true,
                }
            }
        }
    }

    /// Waits for something to do; whether whoever has started it still wants it.
    fn wait(&mut self, most: Option<Duration>) -> bool {
        let most = most.map_or(-1, |most| {
            i64::try_from(most.as_micros().div_ceil(1000)).expect("short")
        });
        let (orders, ended) = {
            let orders = zmq::PollItem::from_fd(0, zmq::POLLIN);
            let mut items = match &self.bus {
                Bus::Plain(peer) => vec![orders, peer.pull().as_poll_item(zmq::POLLIN)],
                Bus::Own(dealer) => vec![
                    orders,
                    dealer.socket.as_poll_item(zmq::POLLIN),
                    dealer.monitor.as_poll_item(zmq::POLLIN),
                ],
            };
            match zmq::poll(&mut items, most) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(error) => panic!("poll: {error}"),
            }
            (
                items[0].get_revents() != zmq::PollEvents::empty(),
                items.get(2).is_some_and(zmq::PollItem::is_readable),
            )
        };
        if ended && let Bus::Own(dealer) = &mut self.bus {
            let held: Vec<&Job> = self.begun.iter().chain(&self.waiting).collect();
            dealer.again(&held);
        }
        if orders {
            let mut order = [0];
            match io::stdin().read(&mut order) {
                Ok(1) if order == *b"r" => self.released = true,
                Ok(1) => self.leave(),
                _ => return false,
            }
        }
        true
    }

    /// Wants no more requests.
    fn leave(&mut self) {
        match &self.bus {
            Bus::Own(dealer) => dealer.say(&[b"DRAIN"]),
            Bus::Plain(_) => self.leaving = true,
        }
    }

    fn hear(&mut self) -> Option<Heard> {
        let dealer = match &self.bus {
            Bus::Plain(peer) => {
                let message = peer.recv(Duration::ZERO)?;
                return Some(Heard::Request(Vec::new(), message));
            }
            Bus::Own(dealer) => dealer,
        };
        loop {
            let frames = match dealer.socket.recv_multipart(zmq::DONTWAIT) {
                Ok(frames) => frames,
                Err(zmq::Error::EAGAIN) => return None,
                Err(error) => panic!("receive: {error}"),
            };
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            match frames[..] {
                [b"WELCOME", ..] => println!("\nworker ready"),
                [b"REQUEST", number, _, _, message, ..] => {
                    return Some(Heard::Request(number.to_vec(), message.to_vec()));
                }
                [b"MESSAGE", message, ..] => {
                    return Some(Heard::Request(Vec::new(), message.to_vec()));
                }
                [b"CANCEL", number, ..] => return Some(Heard::Cancelled(number.to_vec())),
                [b"PING", number, ..] => {
                    dealer.say(&[b"PONG", number, self.progress.to_string().as_bytes()]);
                }
                [b"DRAIN", ..] => return Some(Heard::NoMore),
                [b"REFUSED", reason, ..] => {
                    panic!("refused: {}", String::from_utf8_lossy(reason))
                }
                // A worker ignores what it does not know.
                _ => {}
            }
        }
    }

    fn take(&mut self, number: Vec<u8>, message: &[u8]) {
        let (sender, id, path, rest) = address(message);
        if path == "@*" {
            // Its client is gone.
            let is_json = rest
                .split(|&byte| byte == b':')
                .nth(1)
                .is_some_and(|rest| rest.starts_with(b"{"));
            let protocol = if is_json { "json" } else { "tnetstring" };
            println!("\nnotice {id} in {protocol}");
            return;
        }
        self.waiting.push_back(Job {
            number,
            sender: sender.to_owned(),
            id: id.to_owned(),
            path: path.to_owned(),
            began: Instant::now(),
            due: None,
        });
    }

    fn begin(&mut self, mut job: Job) {
        if job.path.starts_with("/crash") {
            std::process::abort();
        }
        let now = Instant::now();
        job.began = now;
        let mut parts = job.path.split('/').skip(1);
        job.due = match (parts.next(), parts.next()) {
            (Some("hold" | "stream"), _) => None,
            // When it is known that it has begun.
            (Some("die"), _) => Some(now + Duration::from_millis(100)),
            (Some("by-name"), _) if self.is_slow => Some(now + Duration::from_millis(60)),
            (Some("ms"), Some(time)) => {
                Some(now + Duration::from_millis(time.parse().expect("milliseconds")))
            }
            _ => Some(now),
        };
        if job.due.is_none() {
            println!("\nbegun {}", job.path);
        }
        if let Bus::Own(dealer) = &self.bus
            && !job.number.is_empty()
        {
            dealer.say(&[b"FIRST", &job.number]);
        }
        if job.has_length() {
            let length = "begins".len() + job.body().len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nbegins");
            self.send(&job, head.as_bytes());
        } else if job.streams() {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nbegins\r\n";
            self.send(&job, head.as_bytes());
        }
        self.begun.push(job);
    }

    fn answer(&mut self, job: &Job) {
        if job.path.starts_with("/die") {
            std::process::abort();
        }
        self.progress += 1;
        let body = job.body();
        if job.has_length() {
            self.send(job, body.as_bytes());
        } else if job.streams() {
            let rest = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            self.send(job, rest.as_bytes());
        } else {
            let length = body.len();
            let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
            self.send(job, whole.as_bytes());
        }
        self.say_done(&job.number, job.began.elapsed());
    }

    fn say_done(&self, number: &[u8], took: Duration) {
        if let Bus::Own(dealer) = &self.bus {
            let took = took.as_micros().to_string();
            dealer.say(&[b"DONE", number, took.as_bytes()]);
        }
    }

    fn send(&self, job: &Job, payload: &[u8]) {
        match &self.bus {
            Bus::Plain(peer) => peer.reply(&job.sender, &job.id, payload),
            Bus::Own(dealer) => {
                let message = reply(&job.sender, &job.id, payload);
                dealer.say(&[b"REPLY", &job.number, &message]);
            }
        }
    }
}
