//! Workers that say what they begin and finish, and the rules of a broker, in a pool without sockets.

use super::routed::Facts;
use super::session::Condition;
use super::tests::{HERE, Note, pass, talker};
use super::*;
use crate::bus::server::Peer;
use crate::wire::ConnId;
use crate::wire::worker::RequestId;

/// A worker of the own dialect, as the pool sees it.
pub(super) struct Worker {
    pool: Rc<Pool>,
    pub(super) peer: Rc<Peer>,
}

impl Worker {
    pub(super) fn join(pool: &Rc<Pool>, name: &str, slots: u32) -> Self {
        let worker = Self {
            pool: Rc::clone(pool),
            peer: Peer::unconnected(HERE),
        };
        let facts = Facts {
            dialect: Dialect::Own,
            name: name.as_bytes(),
            slots: Some(slots),
            weight: 1,
        };
        pool.worker_joins(&worker.peer, facts);
        worker
    }

    /// What is queued for it, the frames of each message joined by `|`, numbers of requests left out.
    fn has(&self) -> Vec<String> {
        let mut all = self.messages();
        for frames in &mut all {
            if matches!(frames[0].as_str(), "REQUEST" | "CANCEL") {
                frames.remove(1);
            }
        }
        all.iter().map(|frames| frames.join("|")).collect()
    }

    /// The number of the last request that is queued for it.
    fn last(&self) -> RequestId {
        let all = self.messages();
        let last = all.iter().rfind(|frames| frames[0] == "REQUEST");
        RequestId(last.expect("it has one")[1].parse().expect("a number"))
    }

    pub(super) fn messages(&self) -> Vec<Vec<String>> {
        let messages = self.peer.queued();
        messages.iter().map(|bytes| frames(bytes)).collect()
    }

    pub(super) fn takes_all(&self) {
        self.peer.take_unsent();
    }

    pub(super) fn began(&self, id: RequestId) {
        self.pool.request_began(self.peer.id(), id);
    }

    pub(super) fn done(&self, id: RequestId) {
        let took = Duration::from_millis(3);
        self.pool.request_done(self.peer.id(), id, took);
    }

    pub(super) fn dies(&self) {
        let unsent = self.peer.take_unsent();
        self.pool.worker_lost(&self.peer, &unsent);
    }

    fn open(&self) -> u32 {
        let report = self.pool.report();
        let own = report
            .workers
            .iter()
            .find(|worker| worker.peer == self.peer.id());
        own.map_or(0, |worker| worker.open)
    }
}

/// Takes ZMTP's framing off.
fn frames(mut bytes: &[u8]) -> Vec<String> {
    let mut frames = Vec::new();
    while let [flags, length, rest @ ..] = bytes {
        assert_eq!(flags & 0b110, 0, "short frames of messages");
        let (frame, behind) = rest.split_at(usize::from(*length));
        frames.push(String::from_utf8_lossy(frame).into_owned());
        bytes = behind;
    }
    frames
}

fn pool(rules: Rules) -> Rc<Pool> {
    pool_that_hears(rules).0
}

/// What was said.
#[derive(Default)]
pub(super) struct Ears(pub(super) RefCell<Vec<Bytes>>);

impl Replies for Ears {
    fn reply(&self, _: &Rc<Pool>, _: PeerId, message: Bytes) {
        self.0.borrow_mut().push(message);
    }
}

pub(super) fn pool_that_hears(rules: Rules) -> (Rc<Pool>, Rc<Ears>) {
    let settings = Settings {
        sender: Bytes::from_static(b"s"),
        protocol: Protocol::Json,
        topic: Vec::new(),
        rules,
        raw_payload: false,
    };
    let ears = Rc::new(Ears::default());
    (Pool::new(settings, Rc::clone(&ears) as Rc<_>), ears)
}

fn ask(pool: &Rc<Pool>, base: u32, ask: impl Into<Ask>) -> (Ticket, Rc<Note>) {
    let note = Rc::new(Note::from(base));
    let ticket = pool.submit(Bytes::from_static(b"x"), ask, Rc::clone(&note) as Rc<_>);
    (ticket.expect("there is room"), note)
}

fn failures(note: &Note) -> Vec<Failure> {
    note.failures.borrow().clone()
}

#[tokio::test(start_paused = true)]
async fn a_worker_has_its_request_until_it_says_that_it_is_done() {
    let pool = pool(Rules::default());
    let worker = Worker::join(&pool, "w", 1);
    let (first, _) = ask(&pool, 1, Retry::Never);
    let (second, _) = ask(&pool, 2, Retry::Never);
    assert_eq!(worker.has(), ["REQUEST|1||s 1 x"]);
    let id = worker.last();
    worker.began(id);
    assert!(first.started(worker.peer.id()));
    first.answered();
    drop(first);
    assert_eq!(
        worker.has().len(),
        1,
        "its one slot is not free yet, and nothing is cancelled"
    );
    worker.done(id);
    assert_eq!(worker.has()[1..], ["REQUEST|1||s 2 x"]);
    assert_eq!(pool.report().workers[0].served, 1);
    // The other way round: its slot is free though the response goes on.
    worker.done(worker.last());
    assert_eq!(worker.open(), 0);
    let (third, _) = ask(&pool, 3, Retry::Never);
    assert_eq!(worker.has()[2..], ["REQUEST|1||s 3 x"]);
    drop((second, third));
}

#[tokio::test(start_paused = true)]
async fn who_has_the_request_of_a_client_that_left_is_told_and_is_busy_until_it_is_done() {
    let pool = pool(Rules::default());
    let worker = Worker::join(&pool, "w", 1);
    let (leaves, _) = ask(&pool, 1, Retry::Never);
    let (waits, _) = ask(&pool, 2, Retry::Never);
    let (never_waited, _) = ask(&pool, 3, Retry::Never);
    let id = worker.last();
    drop(never_waited);
    drop(leaves);
    assert_eq!(worker.has(), ["REQUEST|1||s 1 x", "CANCEL"]);
    worker.done(id);
    assert_eq!(worker.has()[2..], ["REQUEST|1||s 2 x"]);
    assert_eq!(pool.waiting().0, 0);
    drop(waits);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_over_fails_the_request_cancels_it_and_leaves_it_with_its_worker() {
    let pool = pool(Rules::default());
    let worker = Worker::join(&pool, "w", 1);
    let until = |seconds| Ask {
        deadline: Some(Instant::now() + Duration::from_secs(seconds)),
        ..Ask::from(Retry::Safe)
    };
    let (has, note) = ask(&pool, 1, until(2));
    let (waits, other) = ask(&pool, 2, until(1));
    assert_eq!(worker.has(), ["REQUEST|1|2000|s 1 x"]);
    let id = worker.last();
    worker.began(id);
    pass(&pool, Duration::from_millis(1500)).await;
    assert_eq!(
        (failures(&note), failures(&other)),
        (vec![], vec![Failure::DeadlineOver])
    );
    pass(&pool, Duration::from_secs(1)).await;
    assert_eq!(
        (failures(&note), note.retired.get()),
        (vec![Failure::DeadlineOver], 1)
    );
    assert_eq!(worker.has()[1..], ["CANCEL"]);
    drop((has, waits));
    assert_eq!(
        (worker.open(), worker.has().len()),
        (1, 2),
        "it is at it still"
    );
    worker.done(id);
    assert_eq!(worker.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_began_in_time_misses_no_deadline_however_late_its_worker_is_done() {
    let pool = pool(Rules::default());
    let worker = Worker::join(&pool, "w", 2);
    let until = Ask {
        deadline: Some(Instant::now() + Duration::from_secs(1)),
        ..Ask::from(Retry::Never)
    };
    let (whole, _) = ask(&pool, 1, until);
    let id = worker.last();
    worker.began(id);
    whole.started(worker.peer.id());
    whole.answered();
    drop(whole);
    let (long, note) = ask(&pool, 2, until);
    worker.began(worker.last());
    long.started(worker.peer.id());
    pass(&pool, Duration::from_secs(2)).await;
    assert_eq!(failures(&note), []);
    assert_eq!(worker.has().len(), 2, "nothing is cancelled");
    assert_eq!(pool.report().counts.failed_deadline_open, 0);
    worker.done(id);
    assert_eq!((worker.open(), pool.report().counts.served), (1, 1));
    drop(long);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_done_without_an_answer_lets_nobody_wait_beyond_the_deadline() {
    let pool = pool(Rules::default());
    let worker = Worker::join(&pool, "w", 1);
    let until = Ask {
        deadline: Some(Instant::now() + Duration::from_secs(1)),
        ..Ask::from(Retry::Never)
    };
    let (has, note) = ask(&pool, 1, until);
    let id = worker.last();
    worker.began(id);
    worker.done(id);
    let (next, _) = ask(&pool, 2, Retry::Never);
    assert_eq!(worker.has().len(), 2, "its slot is free");
    pass(&pool, Duration::from_secs(2)).await;
    assert_eq!(failures(&note), [Failure::DeadlineOver]);
    assert_eq!(worker.has().len(), 2, "it has nothing to be cancelled");
    drop((has, next));
}

#[tokio::test(start_paused = true)]
async fn streams_and_what_was_never_begun_say_nothing_of_how_long_a_worker_takes() {
    let pool = pool(Rules::default());
    let worker = Worker::join(&pool, "w", 4);
    let took = Duration::from_hours(1);
    let stream = |ends_before_it_is_done: bool| {
        let (ticket, _) = ask(&pool, 1, Retry::Never);
        let id = worker.last();
        worker.began(id);
        ticket.started(worker.peer.id());
        ticket.attach();
        if ends_before_it_is_done {
            ticket.answered();
            drop(ticket);
            pool.request_done(worker.peer.id(), id, took);
        } else {
            pool.request_done(worker.peer.id(), id, took);
            drop(ticket);
        }
    };
    stream(true);
    stream(false);
    // Nor does what it never began with.
    drop(ask(&pool, 1, Retry::Never));
    pool.request_done(worker.peer.id(), worker.last(), Duration::ZERO);
    let report = pool.report();
    assert_eq!(
        (report.workers[0].served, report.service.ever.count()),
        (3, 0)
    );
    assert_eq!((report.workers[0].open, report.workers[0].attached), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_worker_had_not_begun_goes_on_whatever_it_is_and_what_it_had_as_is_safe() {
    let pool = pool(Rules::default());
    let dies = Worker::join(&pool, "w", 4);
    let all = [
        (Retry::Never, false),
        (Retry::Never, true),
        (Retry::Safe, true),
        (Retry::Never, false),
    ];
    let all: Vec<_> = (10..)
        .step_by(10)
        .zip(all)
        .map(|(base, (retry, begins))| {
            let asked = ask(&pool, base, retry);
            if begins {
                dies.began(dies.last());
            }
            asked
        })
        .collect();
    let answered = dies.last();
    dies.takes_all();
    dies.dies();
    assert_eq!(failures(&all[1].1), [Failure::HandlerLost]);
    let next = Worker::join(&pool, "v", 4);
    assert_eq!(
        next.has(),
        [
            "REQUEST|2||s 11 x",
            "REQUEST|2||s 31 x",
            "REQUEST|2||s 41 x"
        ],
        "in their order, under fresh ids"
    );
    // What is said by one that does not have it any more changes nothing.
    let before = Name::RepliesUnknownId.get();
    dies.began(answered);
    dies.done(answered);
    pool.worker_replied(dies.peer.id(), Some(answered), Bytes::from_static(b"late"));
    assert!(Name::RepliesUnknownId.get() >= before + 2);
    assert_eq!(next.open(), 3);
    let counts = pool.report().counts;
    assert_eq!(
        (counts.requeued, counts.retried, counts.failed_worker_lost),
        (2, 1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn words_to_a_request_are_heard_from_the_one_that_has_it_and_from_nobody_else() {
    let (pool, ears) = pool_that_hears(Rules::default());
    let (has, other) = (Worker::join(&pool, "a", 1), Worker::join(&pool, "b", 1));
    let (ticket, _) = ask(&pool, 1, Retry::Safe);
    assert_eq!((has.has().len(), other.has().len()), (1, 0));
    let id = has.last();
    let say = |worker: &Worker, id, text: &'static str| {
        pool.worker_replied(worker.peer.id(), id, Bytes::from_static(text.as_bytes()));
    };
    say(&other, Some(id), "crossed");
    say(&has, Some(id), "own");
    say(&other, None, "to somebody");
    ticket.answered();
    drop(ticket);
    say(&has, Some(id), "behind the end");
    assert_eq!(*ears.0.borrow(), ["own", "to somebody"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_becomes_a_connection_takes_no_slot_and_is_heard_until_it_is_done() {
    let (pool, ears) = pool_that_hears(Rules::default());
    let worker = Worker::join(&pool, "w", 1);
    let (handshake, _) = ask(&pool, 1, Retry::Safe);
    let id = worker.last();
    worker.began(id);
    let attachment = handshake.into_attachment(talker(1));
    attachment.send(Bytes::from_static(b"frame"));
    let (next, _) = ask(&pool, 2, Retry::Safe);
    assert_eq!(
        worker.has(),
        ["REQUEST|1||s 1 x", "MESSAGE|s 1 frame", "REQUEST|1||s 2 x"],
        "and nothing is cancelled"
    );
    let say = |text: &'static str| {
        pool.worker_replied(
            worker.peer.id(),
            Some(id),
            Bytes::from_static(text.as_bytes()),
        );
    };
    say("frame");
    worker.done(id);
    say("too late");
    assert_eq!(*ears.0.borrow(), ["frame"]);
    assert_eq!(pool.report().workers[0].attached, 1);
    drop(attachment);
    assert_eq!(pool.report().workers[0].attached, 0);
    drop(next);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_two_workers_died_with_is_given_to_no_third() {
    let pool = pool(Rules::default());
    let (ticket, note) = ask(&pool, 1, Retry::Safe);
    for _ in 0..2 {
        let worker = Worker::join(&pool, "w", 1);
        worker.began(worker.last());
        worker.takes_all();
        worker.dies();
    }
    assert_eq!(failures(&note), [Failure::Quarantined]);
    let third = Worker::join(&pool, "w", 1);
    assert_eq!(third.has().len(), 0);
    drop(ticket);
}

#[tokio::test(start_paused = true)]
async fn a_silent_worker_gets_nothing_and_is_dead_after_a_while() {
    let pool = pool(Rules::default());
    let silent = Worker::join(&pool, "w", 2);
    let (has, _) = ask(&pool, 1, Retry::Never);
    let late = silent.last();
    silent.takes_all();
    pool.worker_does(silent.peer.id(), Condition::Silent);
    let (waits, _) = ask(&pool, 2, Retry::Never);
    assert_eq!((silent.has().len(), pool.waiting().0), (0, 1));
    assert_eq!(pool.report().workers[0].state, "suspect");
    pool.worker_does(silent.peer.id(), Condition::Well);
    assert_eq!(silent.has(), ["REQUEST|1||s 2 x"]);
    pool.worker_does(silent.peer.id(), Condition::Silent);
    let lives = Worker::join(&pool, "v", 2);
    let grace = pool.settings().rules.suspect_grace;
    pass(&pool, grace / 2).await;
    assert_eq!(lives.has().len(), 0);
    pass(&pool, grace).await;
    assert!(silent.peer.is_gone(), "its connection is ended");
    assert_eq!(lives.has(), ["REQUEST|2||s 2 x", "REQUEST|1||s 2 x"]);
    // Its end is told later, and it comes back to life too late.
    silent.done(late);
    silent.dies();
    assert_eq!((lives.open(), pool.report().workers.len()), (2, 1));
    drop((has, waits));
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_is_told_when_to_come_again() {
    let pool = pool(Rules {
        queue_max: 2,
        queue_per_slot: None,
        ..Rules::default()
    });
    let open: Vec<_> = (0..2).map(|base| ask(&pool, base, Retry::Safe)).collect();
    let refused = pool.submit(Bytes::new(), Retry::Safe, Rc::new(Note::default()));
    let refused = refused.map(drop).expect_err("the queue is full");
    assert_eq!(refused.why, Failure::QueueFull);
    assert!(refused.retry_after >= Some(Duration::from_secs(1)));
    // Nobody comes: that is why they fail.
    let grace = pool.settings().rules.start_grace;
    pass(&pool, grace).await;
    for (_, note) in &open {
        assert_eq!(failures(note), [Failure::NoHandler]);
    }
}

#[tokio::test(start_paused = true)]
async fn slots_are_taken_and_given_back_by_their_owner() {
    let pool = pool(Rules::default());
    let worker = Worker::join(&pool, "w", 1);
    let open: Vec<_> = (0..3).map(|base| ask(&pool, base, Retry::Safe)).collect();
    assert_eq!(worker.open(), 1);
    pool.worker_credit(worker.peer.id(), Some(2));
    assert_eq!((worker.open(), pool.waiting().0), (2, 1));
    pool.worker_credit(worker.peer.id(), Some(0));
    worker.done(worker.last());
    assert_eq!(
        (worker.open(), pool.waiting().0),
        (1, 1),
        "it wants none now"
    );
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn a_key_finds_the_worker_of_the_same_name_again() {
    let pool = pool(Rules {
        sticky: Some(Sticky::default()),
        ..Rules::default()
    });
    let names = ["a", "b", "c", "d"];
    let of = |key| Ask {
        key: Some(key),
        ..Ask::from(Retry::Safe)
    };
    let home = |workers: &[Worker], key| {
        let asked = ask(&pool, 1, of(key));
        let home = workers.iter().position(|worker| worker.open() > 0);
        let worker = &workers[home.expect("one has it")];
        worker.done(worker.last());
        drop(asked);
        worker.takes_all();
        home
    };
    let mut workers: Vec<_> = names.map(|name| Worker::join(&pool, name, 4)).into();
    let before: Vec<_> = (0..32).map(|key| home(&workers, key)).collect();
    assert!(
        (0..4).all(|worker| before.contains(&Some(worker))),
        "{before:?}"
    );
    // All of them are started anew, in another order.
    for worker in workers.drain(..) {
        worker.dies();
    }
    let mut again: Vec<_> = names
        .iter()
        .rev()
        .map(|name| Worker::join(&pool, name, 4))
        .collect();
    again.reverse();
    let after: Vec<_> = (0..32).map(|key| home(&again, key)).collect();
    assert_eq!(before, after);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_worker_is_not_waited_for_with_what_it_never_got() {
    let pool = pool(Rules::default());
    let stuck = Worker::join(&pool, "w", 2);
    let (leaves, _) = ask(&pool, 1, Retry::Never);
    let (goes_on, _) = ask(&pool, 2, Retry::Never);
    stuck.peer.pretend_blocked(true);
    pool.worker_blocked(stuck.peer.id());
    drop(leaves);
    let other = Worker::join(&pool, "v", 2);
    pass(&pool, STALL_AFTER * 2).await;
    assert_eq!(other.has(), ["REQUEST|1||s 2 x"], "nobody had it before");
    assert_eq!((stuck.open(), other.open()), (0, 1));
    drop(goes_on);
}

#[tokio::test(start_paused = true)]
async fn callers_of_several_servers_share_a_pool() {
    struct Of(&'static str);
    impl Caller for Of {
        fn id(self: Rc<Self>) -> ConnId {
            ConnId(7)
        }
        fn sender(&self) -> Option<Bytes> {
            Some(Bytes::from_static(self.0.as_bytes()))
        }
        fn retire_id(&self) {}
        fn has_mail(&self) -> bool {
            false
        }
        fn failed(&self, _: Refused) {}
    }
    let pool = pool(Rules::default());
    let worker = Worker::join(&pool, "w", 2);
    let asked: Vec<_> = ["one", "two"]
        .map(|server| pool.submit(Bytes::from_static(b"x"), Retry::Safe, Rc::new(Of(server))))
        .into();
    pool.notify(
        Some(worker.peer.id()),
        Address {
            sender: Some(Bytes::from_static(b"two")),
            id: ConnId(8),
        },
        Notice::Disconnect,
    );
    let has = worker.has();
    assert_eq!(has[..2], ["REQUEST|1||one 7 x", "REQUEST|1||two 7 x"]);
    assert!(has[2].starts_with("MESSAGE|two 8 @* "), "{has:?}");
    drop(asked);
}
