//! Playing an exchange again: one server per session, its handlers as libzmq peers, one client (or two) per exchange.
//!
//! The recording is the script. Where a deviation has a plan, that replaces the script after the client's sends. What a
//! deviating server does not do is waited for only as long as it could still come.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::backend::Backend;
use super::judge::{self, Observed, Scope, Text};
use super::message::Message;
use super::recording::{Deviation, Exchange, Step};
use crate::support::client::{Asked, Client};
use crate::support::golden::{self, Golden};
use crate::support::peer::{Peer, Replies};
use crate::support::program::Program;
use crate::support::{PATIENCE, scratch};

/// Between two sends of a client, so that they arrive as two segments. There is no event to wait for instead.
const BETWEEN_SEGMENTS: Duration = Duration::from_millis(40);
/// Nothing more came for so long: then nothing more is taken to come.
const QUIET: Duration = Duration::from_millis(150);
/// The same where a deviation leaves open what comes.
const QUIET_IN_DOUBT: Duration = Duration::from_millis(400);
/// How long a server may take to close (the recorded idle timeouts are 3 s with a sweep each second).
const CLOSING: Duration = Duration::from_secs(8);
/// Recorded with a pause after each reply, which the record does not show.
const PACED: &[(&str, Duration)] = &[
    ("writes_do_not_ping", Duration::from_secs(1)),
    ("keepalive_ctl_extends", Duration::from_secs(1)),
    ("json_ping_extends", Duration::from_secs(1)),
];
/// The entity tag of `/dir/hello.txt` when it was recorded.
const RECORDED_TAG: &str = "5e0d5da5-b";
/// The client shuts down its sending side after its request, which the record does not show.
const HALF_CLOSED: &[&str] = &["client_half_close"];

/// The certificate of the client that was recorded: its key is not known, so another one plays.
const RECORDED_FINGERPRINT: &str = "75423A706F95DE5C34F40910D3115EBE769B818D";

/// Which server plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Lurcher,
    Mongrel2,
}

/// A server on one recorded configuration, and its handlers.
pub(crate) struct Session {
    server: Server,
    program: Program,
    golden: Golden,
    peers: Vec<(char, Peer)>,
    /// The proxied server.
    backend: Option<Backend>,
    /// Ids of connections of earlier exchanges: a late notice for one is not this exchange's.
    retired: HashSet<String>,
    _directory: tempfile::TempDir,
}

/// What one exchange came to.
pub(crate) struct Outcome {
    /// Why it fails, if it does.
    pub(crate) failure: Option<String>,
    /// Whether it differed from the recording.
    pub(crate) deviated: bool,
}

impl Session {
    /// Starts the server; `None` when it is not installed.
    pub(crate) fn start(config: &str, server: Server) -> Option<Self> {
        let directory = scratch();
        let mut golden = golden::prepare(config, directory.path());
        let backend = golden.backends.first().copied().map(Backend::start);
        let database = golden.database.to_str().expect("a UTF-8 path");
        let mut program = match server {
            Server::Lurcher => Program::lurcher(
                &["serve", database, "--server", &golden.uuid],
                directory.path(),
            ),
            Server::Mongrel2 => {
                Program::mongrel2(&golden.database, &golden.uuid, directory.path())?
            }
        };
        match server {
            Server::Lurcher => golden.address = program.listening(),
            Server::Mongrel2 => {
                program.answering_over(golden.address, &|client| golden.secure(client));
            }
        }
        let peers: Vec<(char, Peer)> = ['J', 'T', 'R']
            .into_iter()
            .zip(&golden.handlers)
            .map(|(letter, (send, recv))| (letter, Peer::connect(send, recv, Replies::Xpub)))
            .collect();
        for (_, peer) in &peers {
            peer.subscribed();
        }
        let mut session = Self {
            server,
            program,
            golden,
            peers,
            backend,
            retired: HashSet::new(),
            _directory: directory,
        };
        session.warm_up();
        Some(session)
    }

    /// One request through each HTTP handler, so that the server has taken them all: until then a request waits, and one
    /// whose client leaves while it waits is dropped.
    fn warm_up(&mut self) {
        for path in ["/only", "/tnet"] {
            let mut client = self.golden.connect();
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client
                .send(request.as_bytes())
                .expect("send a first request");
            let end = Instant::now() + PATIENCE;
            let mut client = Some(client);
            let mut asked = false;
            loop {
                assert!(
                    Instant::now() < end,
                    "no way through {path}: {}",
                    self.program
                );
                let pause = Duration::from_millis(5);
                let answered =
                    |client: &mut Client| client.try_answer(Asked::Other, pause).is_some();
                if client.as_mut().is_some_and(answered) {
                    client = None;
                }
                if client.is_none() && !asked {
                    break; // No such route here.
                }
                let mut gone = false;
                for (letter, peer) in &self.peers {
                    while let Some(message) = peer
                        .recv(Duration::ZERO)
                        .and_then(|m| Message::parse(*letter, &m))
                    {
                        gone |= message.body == br#"{"type":"disconnect"}"#;
                        if !message.is_notice() {
                            asked = true;
                            self.retired.insert(message.id.clone());
                            let sender = String::from_utf8_lossy(&message.sender).into_owned();
                            peer.reply(
                                &sender,
                                &message.id,
                                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                            );
                        }
                    }
                }
                if gone {
                    break;
                }
            }
        }
    }

    /// Whether the server still runs.
    pub(crate) fn alive(&mut self) -> bool {
        self.program.alive()
    }

    /// Plays one exchange and judges it.
    pub(crate) fn play(&mut self, exchange: &Exchange, deviation: Option<&Deviation>) -> Outcome {
        let deviation = deviation.filter(|_| self.server == Server::Lurcher);
        let mut play = Play::new(self, exchange, deviation);
        play.run();
        let judged = play.settle();
        let observed = play.observed;
        let bound: Vec<String> = play.ids.into_values().collect();
        self.retired.extend(bound);
        let strictly = judge::as_recorded(exchange, &observed, Text::AsRecorded);
        // What waits for its turn ends like the recording, only later.
        let plan =
            |deviation: &Deviation| deviation.accept["plan"].to_string().contains("no_request");
        let held_back = deviation.is_some_and(plan);
        let mut failure = judged.err();
        if failure.is_some() && deviation.is_some() && strictly.is_ok() {
            failure = Some(
                "no longer deviates from the recording, as deviations.json wants it to".to_owned(),
            );
        }
        if !self.program.alive() {
            failure = Some(format!("the server is gone: {}", self.program));
        }
        Outcome {
            failure,
            deviated: strictly.is_err() || held_back,
        }
    }
}

/// One exchange while it is played.
struct Play<'a> {
    session: &'a Session,
    exchange: &'a Exchange,
    deviation: Option<&'a Deviation>,
    client: Option<Client>,
    /// Clients whose requests are known only from what the handler received.
    others: Vec<Client>,
    /// Recorded connection ids to the ones of this run.
    ids: BTreeMap<String, String>,
    observed: Observed,
    /// What the client had got in the recording up to here.
    recorded_so_far: Vec<u8>,
    recorded_messages: usize,
    last_event: Instant,
    replies_sent: usize,
}

impl<'a> Play<'a> {
    fn new(session: &'a Session, exchange: &'a Exchange, deviation: Option<&'a Deviation>) -> Self {
        if let Some(backend) = &session.backend {
            backend.forget();
        }
        let asked = if exchange.client_sends.concat().starts_with(b"HEAD ") {
            Asked::Head
        } else {
            Asked::Other
        };
        Self {
            session,
            exchange,
            deviation,
            client: None,
            others: Vec::new(),
            ids: BTreeMap::new(),
            observed: Observed {
                asked,
                ..Observed::default()
            },
            recorded_so_far: Vec::new(),
            recorded_messages: 0,
            last_event: Instant::now(),
            replies_sent: 0,
        }
    }

    fn run(&mut self) {
        if self
            .exchange
            .steps
            .iter()
            .any(|step| matches!(step, Step::Send(_) | Step::Read { .. }))
        {
            self.client = Some(self.session.golden.connect());
        }
        let plan: Vec<String> = self
            .deviation
            .and_then(|deviation| deviation.accept["plan"].as_array())
            .into_iter()
            .flatten()
            .filter_map(|step| step.as_str().map(str::to_owned))
            .collect();
        if plan.is_empty() {
            for (at, step) in self.exchange.steps.iter().enumerate() {
                self.step(at, step);
            }
            return;
        }
        for chunk in &self.exchange.client_sends {
            self.send(chunk);
        }
        for step in &plan {
            self.planned(step);
        }
    }

    fn step(&mut self, at: usize, step: &Step) {
        match step {
            Step::Send(bytes) => self.send(bytes),
            Step::Receive { handler, message } => {
                if let Some(recorded) = Message::parse(*handler, message) {
                    self.receive(&recorded);
                }
            }
            Step::Reply { handler, message } => self.reply(*handler, message),
            Step::Read { bytes, closed } => {
                self.recorded_so_far.extend_from_slice(bytes);
                let later = self.exchange.steps.get(at + 1..).unwrap_or_default();
                let last = !later.iter().any(|step| matches!(step, Step::Read { .. }));
                self.read(*closed, last);
                self.others.clear();
            }
            Step::Silence => self.quiet(QUIET),
            Step::Close => self.close(),
        }
    }

    fn planned(&mut self, step: &str) {
        match step {
            "request" => {
                // Recorded ids are not needed: planned replies take theirs from the request they answer.
                self.wait(PATIENCE, |play| {
                    play.requests().count() > play.replies_sent || play.hopeless()
                });
            }
            "no_request" => {
                let before = self.requests().count();
                self.quiet(QUIET_IN_DOUBT);
                if self.requests().count() > before {
                    self.observed.broken =
                        Some("a request came that should have waited".to_owned());
                }
            }
            "reply" | "reply101" => self.planned_reply(step == "reply101"),
            "read" => self.read(false, true),
            "close" => self.close(),
            other => panic!("unknown step {other} in a plan of deviations.json"),
        }
    }

    fn requests(&self) -> impl Iterator<Item = &Message> {
        self.observed
            .messages
            .iter()
            .filter(|message| !message.is_notice())
    }

    fn planned_reply(&mut self, switching: bool) {
        let Some(request) = self.requests().nth(self.replies_sent).cloned() else {
            return;
        };
        let payload = if switching {
            let accept = String::from_utf8_lossy(&request.body).into_owned();
            let head =
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
            format!("{head}Sec-WebSocket-Accept: {accept}\r\n\r\n").into_bytes()
        } else {
            let recorded = self
                .exchange
                .replies
                .get(self.replies_sent)
                .map(|reply| judge::payload(reply).to_vec());
            recorded
                .unwrap_or_else(|| b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec())
        };
        let sender = String::from_utf8_lossy(&request.sender).into_owned();
        self.peer(request.handler)
            .reply(&sender, &request.id, &payload);
        self.observed.payloads.push(payload);
        self.replies_sent += 1;
    }

    fn peer(&self, letter: char) -> &'a Peer {
        let peers = &self.session.peers;
        peers
            .iter()
            .find_map(|(l, peer)| (*l == letter).then_some(peer))
            .expect("a handler of that letter")
    }

    fn send(&mut self, bytes: &[u8]) {
        let live = self.with_live_tag(bytes);
        let bytes = live.as_slice();
        let client = self.client.as_mut().expect("a client that sends");
        // A server that refused may have closed already: that shows in what is read.
        let sent = client.send(bytes);
        if HALF_CLOSED.contains(&self.exchange.name.as_str()) {
            client.shutdown_write();
        }
        if sent.is_ok() {
            self.quiet(BETWEEN_SEGMENTS);
        }
    }

    /// Where the deviation wants it (`live_etag`), the entity tag that was recorded is replaced by the server's own.
    fn with_live_tag(&self, bytes: &[u8]) -> Vec<u8> {
        let wanted = self
            .deviation
            .is_some_and(|deviation| deviation.accept["live_etag"] == true);
        let text = String::from_utf8_lossy(bytes);
        if !wanted || !text.contains(RECORDED_TAG) {
            return bytes.to_vec();
        }
        let path = text.split(' ').nth(1).expect("a request line");
        let request = format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let mut client = Client::connect(self.session.golden.address);
        client.send(request.as_bytes()).expect("ask for the tag");
        let answer = client
            .try_answer(Asked::Head, PATIENCE)
            .expect("an answer with the tag");
        let tag = String::from_utf8_lossy(answer.header("etag").expect("a tag")).into_owned();
        text.replace(RECORDED_TAG, tag.trim_matches('"'))
            .into_bytes()
    }

    /// Waits for the message that the recording has next on this handler.
    fn receive(&mut self, recorded: &Message) {
        self.recorded_messages += 1;
        let known = self.ids.contains_key(&recorded.id);
        if !known && !self.ids.is_empty() && !recorded.is_notice() {
            self.another_client(recorded);
        }
        let of = |list: &[Message]| {
            list.iter()
                .filter(|message| message.handler == recorded.handler)
                .count()
        };
        let upto =
            &self.exchange.messages[..self.recorded_messages.min(self.exchange.messages.len())];
        let wanted = of(upto);
        self.wait(PATIENCE, |play| {
            of(&play.observed.messages) >= wanted || play.hopeless()
        });
        let seen = self
            .observed
            .messages
            .iter()
            .filter(|message| message.handler == recorded.handler);
        if let (false, Some(message)) = (known, seen.into_iter().nth(wanted.saturating_sub(1))) {
            self.ids.insert(recorded.id.clone(), message.id.clone());
        }
    }

    /// Whether a message that has not come will not come any more: the client was answered, or cut off, without one.
    fn hopeless(&self) -> bool {
        let calm = self.last_event.elapsed() > QUIET_IN_DOUBT;
        let answered = !self.observed.client.is_empty() && self.deviation.is_some();
        let gone = self.client.as_ref().is_none_or(Client::ended);
        calm && (answered || gone) && self.observed.broken.is_none()
    }

    /// A request whose client the record does not show: sent again from what the handler got.
    fn another_client(&mut self, recorded: &Message) {
        let field = |name: &str| {
            String::from_utf8_lossy(recorded.header(name).unwrap_or_default()).into_owned()
        };
        let request = format!(
            "{} {} {}\r\nHost: {}\r\n\r\n",
            field("METHOD"),
            field("URI"),
            field("VERSION"),
            field("host")
        );
        let mut client = self.session.golden.connect();
        client
            .send(request.as_bytes())
            .expect("send a second client's request");
        self.others.push(client);
    }

    fn reply(&mut self, letter: char, recorded: &[u8]) {
        let requested = |id: &str| {
            self.exchange
                .messages
                .iter()
                .any(|m| !m.is_notice() && m.id == id)
        };
        let (message, unknown) = rewrite(recorded, |id| match self.ids.get(id) {
            Some(id) => Some(id.clone()),
            None if requested(id) => None,
            None => Some(id.to_owned()),
        });
        if unknown {
            return; // Its request never came, so there is nobody to answer.
        }
        for id in ids(&message) {
            self.ids.entry(id.clone()).or_insert(id);
        }
        self.peer(letter).send(&message);
        self.observed
            .payloads
            .push(judge::payload(&message).to_vec());
        self.replies_sent += 1;
        if let Some((_, pause)) = PACED.iter().find(|(name, _)| *name == self.exchange.name) {
            self.pause(*pause);
        }
    }

    /// Reads until the client has what it should have and nothing more comes, or the server closes.
    fn read(&mut self, recorded_closed: bool, last: bool) {
        let (may_close, may_stay) = match self.deviation {
            Some(deviation) if last => {
                judge::allowed_closed(&deviation.accept, self.exchange.closed)
            }
            Some(_) => (true, true),
            None => (recorded_closed, !recorded_closed),
        };
        let quiet = if may_close && may_stay {
            QUIET_IN_DOUBT
        } else {
            QUIET
        };
        let patience = if last {
            CLOSING
        } else {
            Duration::from_secs(1)
        };
        self.wait(patience, |play| {
            let ended = play.client.as_ref().is_none_or(Client::ended);
            let complete = match play.deviation {
                Some(deviation) if last => judge::accepted(
                    &deviation.accept,
                    play.exchange,
                    &play.observed,
                    Scope::Client,
                )
                .is_ok(),
                _ => judge::client_so_far(&play.recorded_so_far, play.exchange, &play.observed),
            };
            ended || (complete && may_stay && play.last_event.elapsed() > quiet)
        });
        self.observed.looked = true;
        self.observed.closed = self.client.as_ref().is_some_and(Client::ended);
    }

    fn close(&mut self) {
        let looks = self.exchange.closed.is_some()
            || self
                .deviation
                .is_some_and(|deviation| judge::mentions_closed(&deviation.accept));
        if looks && self.client.is_some() && !self.observed.looked {
            self.recorded_so_far
                .clone_from(&self.exchange.client_receives);
            self.read(self.exchange.closed == Some(true), true);
        }
        self.pump(Duration::ZERO);
        self.client = None;
        self.others.clear();
        self.last_event = Instant::now();
    }

    /// Waits until the outcome is as it must be and nothing more comes; otherwise says what is wrong.
    fn settle(&mut self) -> Result<(), String> {
        let mut verdict = Ok(());
        self.wait(PATIENCE / 2, |play| {
            verdict = play.verdict();
            verdict.is_ok() && play.last_event.elapsed() > QUIET
        });
        verdict
    }

    fn verdict(&self) -> Result<(), String> {
        if let Some(deviation) = self.deviation {
            judge::sound(&self.observed)?;
            return judge::accepted(
                &deviation.accept,
                self.exchange,
                &self.observed,
                Scope::Whole,
            );
        }
        judge::as_recorded(self.exchange, &self.observed, Text::AsRecorded)?;
        if self.session.server == Server::Lurcher {
            judge::sound(&self.observed)
        } else {
            Ok(())
        }
    }

    /// Takes in what comes for so long.
    fn pause(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.pump(end.saturating_duration_since(Instant::now()));
        }
    }

    /// Takes in what comes until nothing came for so long.
    fn quiet(&mut self, time: Duration) {
        self.last_event = Instant::now();
        self.wait(PATIENCE, |play| play.last_event.elapsed() >= time);
    }

    fn wait(&mut self, patience: Duration, mut done: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + patience;
        while !done(self) && Instant::now() < end {
            self.pump(Duration::from_millis(10));
        }
    }

    /// Takes in what handlers and clients get, waiting at most so long for the first of it.
    fn pump(&mut self, wait: Duration) {
        let session = self.session;
        let mut items: Vec<zmq::PollItem<'_>> = session
            .peers
            .iter()
            .map(|(_, peer)| peer.pull().as_poll_item(zmq::POLLIN))
            .collect();
        let clients = self
            .client
            .iter()
            .chain(&self.others)
            .filter(|client| !client.ended());
        items.extend(
            clients.map(|client| zmq::PollItem::from_fd(client.stream().as_raw_fd(), zmq::POLLIN)),
        );
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        zmq::poll(&mut items, wait).expect("poll");
        drop(items);
        let mut event = false;
        for (letter, peer) in &session.peers {
            while let Some(bytes) = peer.recv(Duration::ZERO) {
                let mut message = Message::parse(*letter, &bytes).unwrap_or_else(|| {
                    panic!("not a message: {:?}", String::from_utf8_lossy(&bytes))
                });
                if session.retired.contains(&message.id)
                    && !self.ids.values().any(|id| *id == message.id)
                {
                    continue;
                }
                if let Some(tls) = &session.golden.tls {
                    message.adopt_certificate(&tls.fingerprint, RECORDED_FINGERPRINT);
                }
                self.note_upload(&message);
                self.observed.messages.push(message);
                event = true;
            }
        }
        if let Some(client) = &mut self.client {
            let before = client.bytes().len();
            event |= client.read_some(Duration::from_millis(1));
            self.observed
                .client
                .extend_from_slice(&client.bytes()[before..]);
        }
        if let Some(backend) = &session.backend {
            let requests = backend.requests();
            event |= requests.len() > self.observed.backend.len();
            self.observed.backend = requests;
        }
        for client in &mut self.others {
            event |= client.read_some(Duration::from_millis(1));
        }
        if event {
            self.last_event = Instant::now();
        }
    }

    fn note_upload(&mut self, message: &Message) {
        if let Some(file) = message.header("x-mongrel2-upload-done") {
            let file = String::from_utf8_lossy(file).into_owned();
            if let Ok(bytes) = fs::read(file) {
                self.observed.uploads.push(bytes);
            }
        }
    }
}

/// The text between `:` and `,` of a reply, and where it stands.
fn id_field(reply: &[u8]) -> Option<std::ops::Range<usize>> {
    let colon = reply.iter().position(|&byte| byte == b':')?;
    let comma = colon + reply.get(colon..)?.iter().position(|&byte| byte == b',')?;
    Some(colon + 1..comma)
}

fn ids(reply: &[u8]) -> Vec<String> {
    let field = id_field(reply)
        .and_then(|range| reply.get(range))
        .unwrap_or_default();
    let words = field
        .split(|&byte| byte == b' ')
        .map(|word| String::from_utf8_lossy(word).into_owned());
    words
        .filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()) && !word.is_empty())
        .collect()
}

/// Puts this run's ids into a recorded reply; a wrong length stays as wrong as it was. Also whether an id had none.
fn rewrite(reply: &[u8], fresh: impl Fn(&str) -> Option<String>) -> (Vec<u8>, bool) {
    let Some(range) = id_field(reply) else {
        return (reply.to_vec(), false);
    };
    let (Some(head), Some(field), Some(tail)) = (
        reply.get(..range.start - 1),
        reply.get(range.clone()),
        reply.get(range.end..),
    ) else {
        return (reply.to_vec(), false);
    };
    let mut unknown = false;
    let words: Vec<String> = String::from_utf8_lossy(field)
        .split(' ')
        .map(|word| {
            if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_digit()) {
                return word.to_owned();
            }
            fresh(word).unwrap_or_else(|| {
                unknown = true;
                word.to_owned()
            })
        })
        .collect();
    let fresh_field = words.join(" ");
    let head = String::from_utf8_lossy(head).into_owned();
    let Some((sender, length)) = head.rsplit_once(' ') else {
        return (reply.to_vec(), unknown);
    };
    let wrong_by = length.parse::<usize>().unwrap_or(0).cast_signed() - field.len().cast_signed();
    let length = fresh_field.len().cast_signed() + wrong_by;
    let mut message = format!("{sender} {length}:{fresh_field}").into_bytes();
    message.extend_from_slice(tail);
    (message, unknown)
}

#[test]
fn a_wrong_length_stays_wrong_when_ids_are_rewritten() {
    let fresh = |_: &str| Some("4711".to_owned());
    assert_eq!(rewrite(b"u 9:1, hi", fresh).0, b"u 12:4711, hi");
    assert_eq!(
        rewrite(b"u 4:1234, hi", |_| Some("7".to_owned())).0,
        b"u 1:7, hi"
    );
    assert_eq!(rewrite(b"u 4:X 29, hi", fresh).0, b"u 6:X 4711, hi");
    assert_eq!(rewrite(b"u 0:, hi", fresh).0, b"u 0:, hi");
}
