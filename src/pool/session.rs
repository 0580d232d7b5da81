//! One worker at the ROUTER: what it has said so far, what its next words mean after that, and when it has been silent for too long.
//!
//! Pure: no socket, no clock, no pool. [`super::router`] gives it messages and the time, and does what it says. Two dialects are
//! told apart by the first frame: m2wsgi's is empty, that of the own one is the name of a command.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::wire::DecodeError;
use crate::wire::worker::{FromBroker, FromWorker, Hello, RequestId, VERSION};

/// Senseless messages that are borne between two looks at the clock. Each costs a line of the log at most, and the time to read it;
/// whoever sends more is broken, and would be read for ever.
const SENSELESS_MAX: u32 = 64;

/// How workers are asked for signs of life, and what their silence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeats {
    /// Time between two questions to a worker that has something, or has said nothing. Default: 1 s, as m2wsgi's.
    pub interval: Duration,
    /// Unanswered questions after which it gets nothing more. Default: 3.
    pub missed_max: u32,
    /// How long its program may come no further, by its own count, while it has something. Default: none, for ever: it may be
    /// waiting for another. Then it gets nothing more.
    pub stuck_after: Option<Duration>,
    /// Requests that a worker of m2wsgi's dialect, which cannot say it, takes at once where the pool's rules set no number
    /// either. Default: 1: its program does one thing after the other.
    pub m2wsgi_slots: u32,
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            missed_max: 3,
            stuck_after: None,
            m2wsgi_slots: 1,
        }
    }
}

/// What a message means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing that matters, a command that is not known among it.
    Nothing,
    /// It wants this answer.
    Answer(FromBroker),
    /// It is there, and speaks the own dialect.
    Joins(Hello),
    /// It is there, and speaks m2wsgi's; perhaps it has said so by a reply.
    JoinsM2wsgi(Option<Bytes>),
    /// It is of no use here, for this reason, and its connection neither.
    Refused(String),
    /// It still has a request from before.
    Holds(RequestId, Bytes),
    /// It takes so many requests at once.
    Credit(u32),
    /// It begins with a request.
    Began(RequestId),
    /// It is done with one, and took so long.
    Done(RequestId, Duration),
    /// It says something to clients.
    Replied(Option<RequestId>, Bytes),
    /// A word takes so long to it and back.
    Hop(Duration),
    /// It wants no more requests.
    Drains,
    /// It has said that before, and wants to hear again that it has had its last.
    DrainsStill,
    /// It goes.
    Leaves,
    /// This makes no sense.
    Senseless(Senseless),
}

/// Why a message makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Senseless {
    #[error("{0}")]
    Malformed(#[from] DecodeError),
    #[error("something else before HELLO")]
    NoHello,
    #[error("another dialect than before")]
    Mixed,
    #[error("an empty frame and nothing behind it")]
    Empty,
}

/// What time brings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tick {
    /// It is to be asked for a sign of life, by this number.
    pub(super) ping: Option<u64>,
    /// For how long its program has come no further although it has something.
    pub(super) stuck: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It has not said what it is.
    New,
    Own,
    M2wsgi,
    /// It is of no use, or has gone.
    Over,
}

/// What a worker's signs of life say of it. Only silence that lasts is death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing is wrong.
    Well,
    /// It lives, and its program comes no further although it has something: it gets nothing more until it does.
    Stuck,
    /// It does not answer.
    Silent,
}

/// One connection of a worker.
#[expect(
    clippy::struct_excessive_bools,
    reason = "five facts, each of which may be true whatever the others are"
)]
#[derive(Debug)]
pub(super) struct Session {
    state: State,
    drains: bool,
    /// It has answered a question before. Whoever never does, because its program cannot while it works, is not held to answers:
    /// only the end of its connection is its end.
    answers: bool,
    /// Questions since it was last heard.
    unanswered: u32,
    /// Heard since the last look at the clock.
    heard: bool,
    /// The last question, and when it was asked.
    ping: (u64, Instant),
    silent: bool,
    stuck: bool,
    /// What it last said of its progress, and since when that has not changed while it had something.
    progress: (u64, Instant),
    /// Since the last look at the clock.
    senseless: u32,
}

impl Session {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::New,
            drains: false,
            answers: false,
            unanswered: 0,
            heard: false,
            ping: (0, now),
            silent: false,
            stuck: false,
            progress: (0, now),
            senseless: 0,
        }
    }

    /// What its signs of life say.
    pub(super) fn condition(&self) -> Condition {
        match (self.silent, self.stuck) {
            (true, _) => Condition::Silent,
            (false, true) => Condition::Stuck,
            (false, false) => Condition::Well,
        }
    }

    /// Whether it should get nothing for now.
    #[cfg(test)]
    fn is_suspect(&self) -> bool {
        self.condition() != Condition::Well
    }

    /// Whether it speaks m2wsgi's dialect.
    pub(super) fn is_m2wsgi(&self) -> bool {
        self.state == State::M2wsgi
    }

    /// What it has just said. The clock is looked at where that matters: most words are about requests, and many.
    pub(super) fn hear<'f>(
        &mut self,
        frames: impl IntoIterator<Item = &'f Bytes>,
        clock: impl FnOnce() -> Instant,
    ) -> Heard {
        if self.state == State::Over {
            return Heard::Nothing;
        }
        self.heard = true;
        self.unanswered = 0;
        self.silent = false;
        let mut frames = frames.into_iter().peekable();
        let heard = match (self.state, frames.peek()) {
            (State::New | State::M2wsgi, Some(first)) if first.is_empty() => {
                self.hear_m2wsgi(frames.nth(1))
            }
            (State::New | State::Own, Some(first)) if !first.is_empty() => {
                let is_hello = **first == b"HELLO"[..];
                match FromWorker::decode(frames) {
                    Ok(Some(said)) => self.hear_own(said, clock),
                    // Whatever later versions say, and this one need not know.
                    Ok(None) if self.state == State::Own => Heard::Nothing,
                    Ok(None) => Heard::Senseless(Senseless::NoHello),
                    Err(error) if is_hello => self.refuse(error.to_string()),
                    Err(error) => Heard::Senseless(error.into()),
                }
            }
            _ => Heard::Senseless(Senseless::Mixed),
        };
        if let Heard::Senseless(why) = &heard {
            self.senseless = self.senseless.saturating_add(1);
            if self.senseless > SENSELESS_MAX {
                return self.refuse(format!("too many messages without sense: {why}"));
            }
            if *why == Senseless::NoHello {
                // It has come back by itself, perhaps, to a broker that does not know it.
                return Heard::Answer(FromBroker::Bye);
            }
        }
        heard
    }

    fn refuse(&mut self, why: String) -> Heard {
        self.state = State::Over;
        Heard::Refused(why)
    }

    fn hear_m2wsgi(&mut self, said: Option<&Bytes>) -> Heard {
        let Some(said) = said else {
            return Heard::Senseless(Senseless::Empty);
        };
        let is_new = self.state == State::New;
        match &said[..] {
            b"X" if is_new || self.drains => {
                self.state = State::M2wsgi;
                self.drains = true;
                Heard::DrainsStill
            }
            b"X" => {
                self.drains = true;
                Heard::Drains
            }
            _ if is_new => {
                self.state = State::M2wsgi;
                Heard::JoinsM2wsgi((!said.is_empty()).then(|| said.clone()))
            }
            b"" => {
                self.answers = true;
                Heard::Nothing
            }
            _ => Heard::Replied(None, said.clone()),
        }
    }

    fn hear_own(&mut self, said: FromWorker, clock: impl FnOnce() -> Instant) -> Heard {
        match said {
            FromWorker::Hello(_) if self.state == State::Own => {
                self.refuse("it has said HELLO before".into())
            }
            FromWorker::Hello(hello) if hello.version == 0 => {
                self.refuse(format!("version 0 is none, and {VERSION} is spoken here"))
            }
            FromWorker::Hello(hello) => {
                self.state = State::Own;
                Heard::Joins(hello)
            }
            FromWorker::Bye => {
                self.state = State::Over;
                Heard::Leaves
            }
            _ if self.state == State::New => Heard::Senseless(Senseless::NoHello),
            FromWorker::Held { id, address } => Heard::Holds(id, address),
            FromWorker::Credit(credit) => Heard::Credit(credit),
            FromWorker::First(id) => Heard::Began(id),
            FromWorker::Reply { id, message } => Heard::Replied(id, message),
            FromWorker::Done { id, took } => Heard::Done(id, took),
            FromWorker::Ping(number) => Heard::Answer(FromBroker::Pong(number)),
            FromWorker::Pong { number, progress } => self.hear_pong(number, progress, clock()),
            FromWorker::Drain if self.drains => Heard::DrainsStill,
            FromWorker::Drain => {
                self.drains = true;
                Heard::Drains
            }
        }
    }

    fn hear_pong(&mut self, number: u64, progress: u64, now: Instant) -> Heard {
        self.answers = true;
        if progress != self.progress.0 {
            self.progress = (progress, now);
            self.stuck = false;
        }
        match self.ping {
            (asked, at) if asked == number => Heard::Hop(now.duration_since(at)),
            _ => Heard::Nothing,
        }
    }

    /// The next question for a sign of life.
    pub(super) fn ask(&mut self, now: Instant) -> u64 {
        self.unanswered = self.unanswered.saturating_add(1);
        self.ping = (self.ping.0.wrapping_add(1), now);
        self.ping.0
    }

    /// A look at the clock: to be taken once in [`Heartbeats::interval`], and not while nothing is read from workers. `busy`: it
    /// has something.
    pub(super) fn tick(&mut self, now: Instant, busy: bool, rules: &Heartbeats) -> Tick {
        self.senseless = 0;
        let heard = std::mem::take(&mut self.heard);
        let has_missed = self.answers && self.unanswered >= rules.missed_max;
        let mut tick = Tick::default();
        match self.state {
            State::New | State::Over => {}
            // Its program answers no ping while it works.
            State::M2wsgi if busy => {
                self.unanswered = 0;
                self.silent = false;
            }
            State::M2wsgi => {
                self.silent |= has_missed;
                // Asked by the ping that is for all.
                self.unanswered = self.unanswered.saturating_add(1);
            }
            State::Own => {
                self.silent |= has_missed;
                // Not for ever: what is asked waits in its socket while it does not read.
                if self.unanswered < rules.missed_max && (busy || !heard) {
                    tick.ping = Some(self.ask(now));
                }
                tick.stuck = self.stuck_for(now, busy);
                self.stuck = tick.stuck.is_some_and(|stuck| {
                    rules.stuck_after.is_some_and(|patience| stuck >= patience)
                });
            }
        }
        tick
    }

    fn stuck_for(&mut self, now: Instant, busy: bool) -> Option<Duration> {
        let (progress, since) = &mut self.progress;
        if !busy || *progress == 0 {
            // Whoever says 0 does not count.
            *since = now;
            return None;
        }
        Some(now.duration_since(*since))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(words: &[&str]) -> Vec<Bytes> {
        let frame = |word: &&str| Bytes::copy_from_slice(word.as_bytes());
        words.iter().map(frame).collect()
    }

    const HELLO: [&str; 6] = ["HELLO", "1", "w1", "4", "1", ""];

    struct Worker {
        session: Session,
        now: Instant,
        rules: Heartbeats,
    }

    impl Worker {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                session: Session::new(now),
                now,
                rules: Heartbeats::default(),
            }
        }

        fn own() -> Self {
            let mut worker = Self::new();
            assert!(matches!(worker.says(&HELLO), Heard::Joins(_)));
            worker
        }

        fn m2wsgi() -> Self {
            let mut worker = Self::new();
            assert_eq!(worker.says(&["", ""]), Heard::JoinsM2wsgi(None));
            worker
        }

        fn says(&mut self, words: &[&str]) -> Heard {
            self.session.hear(&frames(words), || self.now)
        }

        /// A second later.
        fn tick(&mut self, busy: bool) -> Tick {
            self.now += self.rules.interval;
            self.session.tick(self.now, busy, &self.rules)
        }

        fn answers(&mut self, progress: &str) -> Heard {
            let number = self.session.ping.0.to_string();
            self.says(&["PONG", &number, progress])
        }
    }

    #[test]
    fn what_is_said_in_the_own_dialect_means_what_it_says() {
        let mut worker = Worker::new();
        let Heard::Joins(hello) = worker.says(&HELLO) else {
            panic!("it joins");
        };
        assert_eq!((&hello.name[..], hello.slots), (&b"w1"[..], Some(4)));
        let id = RequestId(7);
        let took = Duration::from_micros(250);
        for (words, heard) in [
            (&["FIRST", "7"][..], Heard::Began(id)),
            (&["DONE", "7", "250"], Heard::Done(id, took)),
            (&["CREDIT", "0"], Heard::Credit(0)),
            (&["HELD", "7", "s 1"], Heard::Holds(id, "s 1".into())),
            (&["REPLY", "7", "m"], Heard::Replied(Some(id), "m".into())),
            (&["REPLY", "", "m"], Heard::Replied(None, "m".into())),
            (&["PING", "9"], Heard::Answer(FromBroker::Pong(9))),
            (&["TOMORROW", "9", "x"], Heard::Nothing),
            (&["DRAIN"], Heard::Drains),
            (&["DRAIN"], Heard::DrainsStill),
            (&["BYE"], Heard::Leaves),
            (&["PING", "9"], Heard::Nothing),
        ] {
            assert_eq!(worker.says(words), heard, "{words:?}");
        }
    }

    #[test]
    fn before_hello_nothing_is_accepted_and_the_worker_is_told_to_begin_anew() {
        let mut worker = Worker::new();
        for words in [&["REPLY", "7", "m"][..], &["FIRST", "7"], &["TOMORROW"]] {
            assert_eq!(worker.says(words), Heard::Answer(FromBroker::Bye));
        }
        assert!(matches!(worker.says(&HELLO), Heard::Joins(_)));
    }

    #[test]
    fn a_hello_that_cannot_be_used_is_refused_with_its_reason() {
        let long = "n".repeat(256);
        for (hello, why) in [
            (["HELLO", "0", "w", "", "1", ""], "version 0"),
            (["HELLO", "1", &long, "", "1", ""], "name"),
            (["HELLO", "1", "w", "", "0", ""], "weight"),
            (["HELLO", "x", "w", "", "1", ""], "version"),
        ] {
            let mut worker = Worker::new();
            let Heard::Refused(reason) = worker.says(&hello) else {
                panic!("{hello:?} is accepted");
            };
            assert!(reason.contains(why), "{reason}");
            assert_eq!(worker.says(&HELLO), Heard::Nothing, "it is over");
        }
        // A later version is answered by ours.
        let later = ["HELLO", "2", "w", "", "1", "", "more"];
        assert!(matches!(Worker::new().says(&later), Heard::Joins(_)));
        assert!(matches!(Worker::own().says(&HELLO), Heard::Refused(_)));
    }

    #[test]
    fn senseless_messages_are_borne_until_they_are_a_flood() {
        let mut worker = Worker::own();
        for _ in 0..10 {
            for _ in 0..SENSELESS_MAX / 4 {
                for words in [&["FIRST"][..], &["FIRST", "x"], &["", ""], &["CREDIT", ""]] {
                    assert!(matches!(worker.says(words), Heard::Senseless(_)));
                }
            }
            worker.tick(false);
        }
        for _ in 0..SENSELESS_MAX {
            worker.says(&["FIRST"]);
        }
        assert!(matches!(worker.says(&["FIRST"]), Heard::Refused(_)));
        let mut noise = Worker::new();
        let said: Vec<_> = (0..=SENSELESS_MAX).map(|_| noise.says(&["?"])).collect();
        assert!(matches!(said.last(), Some(Heard::Refused(_))));
    }

    #[test]
    fn a_silent_worker_is_suspect_after_three_questions_and_no_longer_when_it_is_heard() {
        let mut worker = Worker::own();
        worker.session.ask(worker.now);
        worker.now += Duration::from_millis(3);
        assert_eq!(worker.answers("1"), Heard::Hop(Duration::from_millis(3)));
        worker.tick(true);
        for _ in 0..2 {
            worker.tick(true);
            assert!(!worker.session.is_suspect());
        }
        assert_eq!(worker.tick(true).ping, None, "it is asked no further");
        assert!(worker.session.is_suspect());
        assert_eq!(worker.tick(true).ping, None);
        worker.says(&["FIRST", "1"]);
        assert!(!worker.session.is_suspect());
        assert!(worker.tick(true).ping.is_some());
    }

    #[test]
    fn an_idle_worker_is_asked_when_it_has_been_silent_and_a_busy_one_always() {
        let mut worker = Worker::own();
        worker.tick(false);
        worker.says(&["DONE", "1", "1"]);
        assert_eq!(worker.tick(false).ping, None);
        assert!(worker.tick(false).ping.is_some());
        worker.says(&["DONE", "1", "1"]);
        assert!(worker.tick(true).ping.is_some());
    }

    #[test]
    fn whoever_never_answers_is_held_to_its_connection_alone() {
        let mut worker = Worker::own();
        worker.session.ask(worker.now);
        let asked = (0..100).filter(|_| worker.tick(true).ping.is_some());
        assert!(asked.count() < 3, "not without end");
        assert!(!worker.session.is_suspect());
    }

    #[test]
    fn a_program_that_comes_no_further_is_seen_and_suspect_where_that_is_asked_for() {
        let mut worker = Worker::own();
        worker.rules.stuck_after = Some(Duration::from_secs(5));
        let turn = |worker: &mut Worker, busy: bool, progress: &str| {
            let stuck = worker.tick(busy).stuck;
            worker.answers(progress);
            (
                stuck.map(|stuck| stuck.as_secs()),
                worker.session.is_suspect(),
            )
        };
        assert_eq!(turn(&mut worker, true, "0"), (None, false));
        // Says 0: does not count.
        assert_eq!(turn(&mut worker, true, "10"), (None, false));
        for second in 1..5 {
            assert_eq!(turn(&mut worker, true, "10"), (Some(second), false));
        }
        assert_eq!(turn(&mut worker, true, "10"), (Some(5), true));
        // It is alive all the time; only its program's progress helps.
        assert_eq!(turn(&mut worker, true, "10"), (Some(6), true));
        assert_eq!(turn(&mut worker, true, "11"), (Some(7), false));
        assert_eq!(turn(&mut worker, false, "11"), (None, false));
        worker.rules.stuck_after = None;
        for _ in 0..20 {
            assert!(!turn(&mut worker, true, "11").1);
        }
    }

    #[test]
    fn m2wsgi_says_hello_and_pong_by_nothing_and_leaves_by_x() {
        let mut worker = Worker::m2wsgi();
        assert!(worker.session.is_m2wsgi());
        assert_eq!(worker.says(&["", ""]), Heard::Nothing);
        let reply = Heard::Replied(None, "s 1:1, x".into());
        assert_eq!(worker.says(&["", "s 1:1, x"]), reply);
        assert_eq!(worker.says(&["", "X"]), Heard::Drains);
        // It asks again with every ping until it is answered.
        assert_eq!(worker.says(&["", "X"]), Heard::DrainsStill);
        assert_eq!(worker.says(&["", "s 1:1, x"]), reply);
        assert!(matches!(worker.says(&[""]), Heard::Senseless(_)));
        assert!(matches!(worker.says(&HELLO), Heard::Senseless(_)));

        let said = Some(Bytes::from_static(b"s 1:1, x"));
        let mut back = Worker::new();
        assert_eq!(back.says(&["", "s 1:1, x"]), Heard::JoinsM2wsgi(said));
        let mut leaving = Worker::new();
        assert_eq!(leaving.says(&["", "X"]), Heard::DrainsStill);
        assert!(matches!(leaving.says(&["", ""]), Heard::Nothing));
    }

    #[test]
    fn m2wsgi_is_never_suspect_while_it_has_something() {
        let mut worker = Worker::m2wsgi();
        worker.says(&["", ""]);
        for _ in 0..10 {
            worker.tick(true);
            assert!(!worker.session.is_suspect());
        }
        for _ in 0..4 {
            assert!(!worker.session.is_suspect());
            worker.tick(false);
        }
        assert!(worker.session.is_suspect(), "it has answered before");
        worker.says(&["", ""]);
        assert!(!worker.session.is_suspect());

        let mut deaf = Worker::m2wsgi();
        for _ in 0..10 {
            deaf.tick(false);
        }
        assert!(!deaf.session.is_suspect(), "it has no ear for pings");
    }

    /// Messages of known and senseless words, and of noise.
    fn noise() -> impl Strategy<Value = Vec<Bytes>> {
        let known = proptest::sample::select(vec![
            "HELLO", "HELD", "CREDIT", "FIRST", "REPLY", "DONE", "PING", "PONG", "DRAIN", "BYE",
            "X", "", "0", "1", "7",
        ]);
        let frame = prop_oneof![
            5 => known.prop_map(|word| Bytes::from_static(word.as_bytes())),
            1 => proptest::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from),
        ];
        prop_oneof![
            3 => proptest::collection::vec(frame, 0..7),
            1 => Just(frames(&HELLO)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_said_a_worker_joins_once_and_when_it_is_over_it_is_over(
            said in proptest::collection::vec((noise(), any::<bool>()), 0..120),
        ) {
            let mut worker = Worker::new();
            let (mut joined, mut over) = (false, false);
            for (message, then_tick) in said {
                let heard = worker.session.hear(&message, || worker.now);
                prop_assert!(!over || heard == Heard::Nothing);
                match heard {
                    Heard::Joins(_) | Heard::JoinsM2wsgi(_) => {
                        prop_assert!(!joined);
                        joined = true;
                    }
                    Heard::Refused(_) | Heard::Leaves => over = true,
                    Heard::Began(_) | Heard::Done(..) | Heard::Credit(_) | Heard::Holds(..) | Heard::Drains | Heard::Hop(_) => {
                        prop_assert!(joined);
                    }
                    _ => {}
                }
                if then_tick {
                    worker.tick(joined);
                }
            }
        }
    }
}
