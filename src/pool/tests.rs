//! The pool without sockets: peers that join, stall and are lost by plain calls, callers that only take notes.

use std::net::{IpAddr, Ipv4Addr};

use super::sides::{PushSide, SubSide};
use super::time::HOUSEKEEPING;
use super::*;
use crate::bus::server::{Origin, Peer, Sink as _};
use crate::wire::ConnId;

/// Takes notes, and gives a fresh id after each that was retired.
#[derive(Default)]
pub(super) struct Note {
    base: u32,
    pub(super) retired: Cell<u32>,
    pub(super) failures: RefCell<Vec<Failure>>,
    mail: Cell<bool>,
    resumed: Cell<u32>,
}

impl From<u32> for Note {
    /// The first id is to be this one.
    fn from(base: u32) -> Self {
        Self {
            base,
            ..Self::default()
        }
    }
}

impl Caller for Note {
    fn id(self: Rc<Self>) -> ConnId {
        ConnId(self.base + self.retired.get())
    }

    fn retire_id(&self) {
        self.retired.set(self.retired.get() + 1);
    }

    fn has_mail(&self) -> bool {
        self.mail.get()
    }

    fn failed(&self, refused: Refused) {
        self.failures.borrow_mut().push(refused.why);
    }

    fn resumed(&self) {
        self.resumed.set(self.resumed.get() + 1);
    }
}

struct Deaf;

impl Replies for Deaf {
    fn reply(&self, _: &Rc<Pool>, _: PeerId, _: Bytes) {}
}

/// A handler: its two sockets as the front sees them.
pub(super) struct Handler {
    pub(super) pool: Rc<Pool>,
    pub(super) pull: Rc<Peer>,
    pub(super) voice: Rc<Peer>,
}

pub(super) const HERE: Origin = Origin::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));

impl Handler {
    /// Both sockets connected and subscribed.
    pub(super) fn join(pool: &Rc<Pool>) -> Self {
        let handler = Self::of(pool, HERE);
        handler.voice_joins();
        handler.pull_joins();
        handler
    }

    pub(super) fn of(pool: &Rc<Pool>, origin: Origin) -> Self {
        Self {
            pool: Rc::clone(pool),
            pull: Peer::unconnected(origin),
            voice: Peer::unconnected(origin),
        }
    }

    pub(super) fn pull_joins(&self) {
        PushSide(Rc::clone(&self.pool)).joined(&self.pull);
    }

    pub(super) fn voice_joins(&self) {
        let side = SubSide(Rc::clone(&self.pool));
        side.joined(&self.voice);
        side.subscribed(&self.voice);
    }

    /// As when the kernel had taken everything.
    pub(super) fn takes_all(&self) {
        self.pull.take_unsent();
    }

    pub(super) fn pull_lost(&self) {
        let unsent = self.pull.take_unsent();
        PushSide(Rc::clone(&self.pool)).lost(&self.pull, unsent);
    }

    pub(super) fn voice_lost(&self) {
        SubSide(Rc::clone(&self.pool)).lost(&self.voice, Vec::new());
    }

    pub(super) fn has(&self) -> Vec<String> {
        let text = |message: Vec<u8>| String::from_utf8(message).expect("ASCII");
        self.pull.queued().into_iter().map(text).collect()
    }
}

pub(super) fn pool(slots: Option<u32>) -> Rc<Pool> {
    let settings = Settings {
        sender: Bytes::from_static(b"s"),
        protocol: Protocol::Json,
        topic: Vec::new(),
        rules: Rules {
            slots,
            queue_max: 8,
            queue_bytes_max: 64,
            quarantine_after: 0,
            ..Rules::for_front()
        },
        raw_payload: false,
    };
    Pool::new(settings, Rc::new(Deaf))
}

pub(super) fn submit(
    pool: &Rc<Pool>,
    base: u32,
    body: &'static str,
    retry: Retry,
) -> (Ticket, Rc<Note>) {
    let note = Rc::new(Note {
        base,
        ..Note::default()
    });
    let caller = Rc::clone(&note) as Rc<dyn Caller>;
    let ticket = pool.submit(Bytes::from_static(body.as_bytes()), retry, caller);
    (ticket.expect("room in the queue"), note)
}

pub(super) async fn pass(pool: &Rc<Pool>, time: Duration) {
    tokio::time::advance(time).await;
    pool.housekeeping();
}

const BOTH_WAYS: [bool; 2] = [false, true];

#[tokio::test(start_paused = true)]
async fn a_new_handler_gets_nothing_before_its_own_reply_socket_is_heard() {
    let pool = pool(None);
    let old = Handler::join(&pool);
    let new = Handler::of(&pool, HERE);
    new.pull_joins();
    let tickets = [
        submit(&pool, 1, "a", Retry::Safe),
        submit(&pool, 2, "b", Retry::Safe),
    ];
    assert_eq!((old.has().len(), new.has().len()), (2, 0));
    new.voice_joins();
    let more = submit(&pool, 3, "c", Retry::Safe);
    assert_eq!(new.has(), ["s 3 c"]);
    drop((tickets, more));
}

#[tokio::test(start_paused = true)]
async fn the_voice_of_a_handler_that_left_does_not_vouch_for_its_successor() {
    for busy in BOTH_WAYS {
        let pool = pool(None);
        let old = Handler::join(&pool);
        let held = busy.then(|| submit(&pool, 1, "a", Retry::Safe));
        old.takes_all();
        // It drains: its PULL is closed, its PUB is not.
        old.pull_lost();
        let new = Handler::of(&pool, HERE);
        new.pull_joins();
        let waits = submit(&pool, 2, "b", Retry::Safe);
        assert_eq!(new.has().len(), 0, "busy {busy}");
        new.voice_joins();
        assert_eq!(new.has(), ["s 2 b"], "busy {busy}");
        // When the old one is gone altogether, two can pair as ever.
        old.voice_lost();
        let third = Handler::join(&pool);
        let more = submit(&pool, 3, "c", Retry::Safe);
        assert_eq!(third.has(), ["s 3 c"], "busy {busy}");
        drop((held, waits, more));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_without_a_reply_socket_is_served_after_a_grace() {
    let pool = pool(None);
    let mute = Handler::of(&pool, HERE);
    mute.pull_joins();
    let waits = submit(&pool, 1, "a", Retry::Safe);
    pass(&pool, PAIRING_GRACE / 2).await;
    assert_eq!(mute.has().len(), 0);
    pass(&pool, PAIRING_GRACE).await;
    assert_eq!(mute.has(), ["s 1 a"]);
    drop(waits);
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_handler_had_is_handed_on_under_a_fresh_id_where_that_is_safe() {
    for voice_first in BOTH_WAYS {
        let pool = pool(None);
        let dies = Handler::join(&pool);
        let safe = submit(&pool, 10, "get", Retry::Safe);
        let unsafe_one = submit(&pool, 20, "post", Retry::Never);
        dies.takes_all();
        if voice_first {
            dies.voice_lost();
            dies.pull_lost();
        } else {
            dies.pull_lost();
            dies.voice_lost();
        }
        assert_eq!(*unsafe_one.1.failures.borrow(), [Failure::HandlerLost]);
        assert_eq!(safe.1.failures.borrow().len(), 0);
        let other = Handler::join(&pool);
        assert_eq!(other.has(), ["s 11 get"]);
        // A second death is the last.
        other.takes_all();
        other.pull_lost();
        other.voice_lost();
        assert_eq!(*safe.1.failures.borrow(), [Failure::HandlerLost]);
        drop((safe, unsafe_one));
        assert!(pool.state.borrow().is_idle());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_answer_is_already_here_is_not_asked_again() {
    let pool = pool(None);
    let dies = Handler::join(&pool);
    let other = Handler::join(&pool);
    let (ticket, note) = submit(&pool, 1, "get", Retry::Safe);
    dies.takes_all();
    note.mail.set(true);
    dies.pull_lost();
    dies.voice_lost();
    assert_eq!(other.has().len(), 0);
    assert_eq!(*note.failures.borrow(), [Failure::HandlerLost]);
    drop(ticket);
}

#[tokio::test(start_paused = true)]
async fn a_draining_handler_keeps_what_it_has() {
    let pool = pool(None);
    let drains = Handler::join(&pool);
    let (ticket, note) = submit(&pool, 1, "get", Retry::Safe);
    drains.takes_all();
    drains.pull_lost();
    pass(&pool, LOSS_WINDOW * 2).await;
    pass(&pool, Duration::from_mins(1)).await;
    let other = Handler::join(&pool);
    assert_eq!(other.has().len(), 0);
    assert!(ticket.started(drains.voice.id()));
    assert_eq!((note.failures.borrow().len(), note.retired.get()), (0, 0));
    drop(ticket);
    assert!(pool.state.borrow().is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_draining_handler_that_then_dies_leaves_nothing_open() {
    let pool = pool(None);
    let drains = Handler::join(&pool);
    let (ticket, note) = submit(&pool, 1, "post", Retry::Never);
    drains.takes_all();
    drains.pull_lost();
    pass(&pool, LOSS_WINDOW * 2).await;
    drains.voice_lost();
    assert_eq!(*note.failures.borrow(), [Failure::HandlerLost]);
    drop(ticket);
}

#[tokio::test(start_paused = true)]
async fn two_pulls_of_one_process_are_dead_with_their_one_voice() {
    let pool = pool(None);
    let first = Handler::join(&pool);
    let second = Handler::of(&pool, HERE);
    second.pull_joins();
    pass(&pool, PAIRING_GRACE * 2).await;
    let requests = [
        submit(&pool, 1, "a", Retry::Never),
        submit(&pool, 2, "b", Retry::Never),
    ];
    assert_eq!((first.has().len(), second.has().len()), (1, 1));
    first.takes_all();
    second.takes_all();
    first.pull_lost();
    second.pull_lost();
    first.voice_lost();
    for (_, note) in &requests {
        assert_eq!(*note.failures.borrow(), [Failure::HandlerLost]);
    }
}

#[tokio::test(start_paused = true)]
async fn one_answer_by_another_handler_does_not_make_a_dead_one_look_alive() {
    let pool = pool(None);
    let dies = Handler::join(&pool);
    for _ in 0..3 {
        let (ticket, _note) = submit(&pool, 1, "a", Retry::Never);
        assert!(ticket.started(dies.voice.id()));
    }
    dies.takes_all();
    let publisher = Handler::join(&pool);
    let (answered, _note) = submit(&pool, 3, "c", Retry::Never);
    let (answered_too, _note) = submit(&pool, 4, "d", Retry::Never);
    for ticket in [&answered, &answered_too] {
        assert!(
            ticket.started(publisher.voice.id()),
            "any handler may write to any connection"
        );
    }
    dies.takes_all();
    let (open, note) = submit(&pool, 5, "e", Retry::Never);
    let (open_too, note_too) = submit(&pool, 6, "f", Retry::Never);
    dies.takes_all();
    dies.pull_lost();
    dies.voice_lost();
    let failed = note.failures.borrow().len() + note_too.failures.borrow().len();
    assert_eq!(failed, 1, "the one that the dead handler had");
    drop((open, open_too));
}

#[tokio::test(start_paused = true)]
async fn what_was_never_written_goes_to_the_head_of_the_queue_in_its_order() {
    let pool = pool(None);
    let dies = Handler::join(&pool);
    let requests: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .zip(1..)
        .map(|(body, base)| submit(&pool, base, body, Retry::Never))
        .collect();
    dies.pull_lost();
    let late = submit(&pool, 4, "d", Retry::Never);
    let other = Handler::of(&pool, HERE);
    other.pull_joins();
    other.voice_joins();
    pass(&pool, PAIRING_GRACE).await;
    // The same ids: nobody has seen them.
    assert_eq!(other.has(), ["s 1 a", "s 2 b", "s 3 c", "s 4 d"]);
    drop((requests, late));
    assert!(pool.state.borrow().is_idle());
}

#[tokio::test(start_paused = true)]
async fn what_is_handed_on_keeps_its_order_whatever_places_it_has() {
    let pool = pool(None);
    let dies = Handler::join(&pool);
    let filler = [
        submit(&pool, 100, "x", Retry::Safe),
        submit(&pool, 101, "y", Retry::Safe),
    ];
    let first = submit(&pool, 1, "a", Retry::Safe);
    // The places of these are now free and are taken by the youngest.
    drop(filler);
    let second = submit(&pool, 2, "b", Retry::Safe);
    let third = submit(&pool, 3, "c", Retry::Safe);
    dies.takes_all();
    dies.pull_lost();
    dies.voice_lost();
    let other = Handler::join(&pool);
    assert_eq!(other.has(), ["s 2 a", "s 3 b", "s 4 c"]);
    drop((first, second, third));
}

#[tokio::test(start_paused = true)]
async fn bytes_for_a_waiting_request_are_no_answer_and_cost_no_room_in_the_queue() {
    let pool = pool(None);
    for _ in 0..100 {
        let (ticket, _note) = submit(&pool, 1, "sixteen bytes...", Retry::Safe);
        assert!(!ticket.started(PeerId(7)));
    }
    let (ticket, _note) = submit(&pool, 1, "sixteen bytes...", Retry::Safe);
    assert!(!ticket.started(PeerId(7)));
    let handler = Handler::join(&pool);
    assert_eq!(handler.has(), ["s 1 sixteen bytes..."]);
    drop(ticket);
    assert_eq!(pool.waiting(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_somebody_else_answers_is_not_taken_back_from_a_stuck_one() {
    let pool = pool(None);
    let stuck = Handler::join(&pool);
    let (ticket, _note) = submit(&pool, 1, "a", Retry::Safe);
    let other = Handler::join(&pool);
    stuck.pull.pretend_blocked(true);
    PushSide(Rc::clone(&pool)).blocked(&stuck.pull);
    assert!(ticket.started(other.voice.id()));
    pass(&pool, STALL_AFTER * 2).await;
    assert_eq!(other.has().len(), 0);
    drop(ticket);
    assert!(pool.state.borrow().is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_stalled_handler_loses_its_requests_to_others_and_keeps_its_notices() {
    let pool = pool(None);
    let stuck = Handler::join(&pool);
    let request = submit(&pool, 1, "a", Retry::Never);
    pool.notify(Some(stuck.pull.id()), ConnId(9), Notice::Disconnect);
    stuck.pull.pretend_blocked(true);
    PushSide(Rc::clone(&pool)).blocked(&stuck.pull);
    let other = Handler::join(&pool);
    pass(&pool, STALL_AFTER * 2).await;
    assert_eq!(other.has(), ["s 1 a"]);
    assert_eq!(stuck.has().len(), 1);
    assert!(stuck.has()[0].starts_with("s 9 @* "), "{:?}", stuck.has());
    drop(request);
}

#[tokio::test(start_paused = true)]
async fn requests_that_came_back_do_not_keep_older_ones_waiting() {
    let pool = pool(Some(1));
    let dies = Handler::join(&pool);
    let handed = submit(&pool, 1, "a", Retry::Safe);
    let waits = submit(&pool, 2, "b", Retry::Safe);
    pass(&pool, Duration::from_secs(29)).await;
    dies.pull_lost();
    pass(&pool, Duration::from_secs(2)).await;
    assert_eq!(*waits.1.failures.borrow(), [Failure::NoHandler]);
    assert_eq!(
        handed.1.failures.borrow().len(),
        0,
        "it began to wait just now"
    );
    pass(&pool, Duration::from_secs(30)).await;
    assert_eq!(*handed.1.failures.borrow(), [Failure::NoHandler]);
    drop((handed, waits));
    let state = pool.state.borrow();
    assert_eq!((pool.waiting(), state.is_idle()), ((0, 0), true));
}

#[tokio::test(start_paused = true)]
async fn a_stream_frees_its_slot_for_the_next_at_once() {
    let pool = pool(Some(1));
    let handler = Handler::join(&pool);
    let (stream, _note) = submit(&pool, 1, "a", Retry::Safe);
    let waits = submit(&pool, 2, "b", Retry::Safe);
    assert_eq!(handler.has().len(), 1);
    assert!(stream.started(handler.voice.id()));
    stream.attach();
    assert_eq!(handler.has().len(), 2);
    drop((stream, waits));
    assert!(pool.state.borrow().is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_takes_again_when_a_client_leaves() {
    let pool = pool(None);
    let mut waiting: Vec<_> = (0..8)
        .map(|id| submit(&pool, id, "a", Retry::Safe))
        .collect();
    let caller = Rc::new(Note::default()) as Rc<dyn Caller>;
    let refused = pool.submit(Bytes::from_static(b"a"), Retry::Safe, Rc::clone(&caller));
    assert!(matches!(
        refused.map_err(|refused| refused.why),
        Err(Failure::QueueFull)
    ));
    waiting.pop();
    let big = pool.submit(
        Bytes::from_static(&[0; 60]),
        Retry::Safe,
        Rc::clone(&caller),
    );
    assert!(
        matches!(big.map_err(|refused| refused.why), Err(Failure::QueueFull)),
        "in bytes too"
    );
    assert!(
        pool.submit(Bytes::from_static(b"a"), Retry::Safe, caller)
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn an_idle_handler_that_dies_does_not_take_a_draining_one_with_it() {
    for voice_first in BOTH_WAYS {
        let pool = pool(None);
        let drains = Handler::join(&pool);
        let idle = Handler::join(&pool);
        let (ticket, note) = submit(&pool, 1, "a", Retry::Never);
        assert_eq!((drains.has().len(), idle.has().len()), (1, 0));
        drains.takes_all();
        if voice_first {
            idle.voice_lost();
            idle.pull_lost();
        } else {
            idle.pull_lost();
            idle.voice_lost();
        }
        drains.pull_lost();
        pass(&pool, LOSS_WINDOW * 2).await;
        assert_eq!(
            note.failures.borrow().len(),
            0,
            "voice first: {voice_first}"
        );
        drop(ticket);
    }
}

/// A connection that is attached: takes notes.
#[derive(Default)]
pub(super) struct Talker {
    id: u32,
    pub(super) peers: RefCell<Vec<PeerId>>,
    went_on: Cell<u32>,
    abandoned: Cell<u32>,
}

impl Speaker for Talker {
    fn id(self: Rc<Self>) -> ConnId {
        ConnId(self.id)
    }

    fn moved(&self, _: &Rc<Pool>, peer: PeerId) {
        self.peers.borrow_mut().push(peer);
    }

    fn go_on(&self) {
        self.went_on.set(self.went_on.get() + 1);
    }

    fn abandoned(&self) {
        self.abandoned.set(self.abandoned.get() + 1);
    }
}

pub(super) fn talker(id: u32) -> Rc<Talker> {
    Rc::new(Talker {
        id,
        ..Talker::default()
    })
}

pub(super) fn say(attachment: &Attachment, text: &'static str) -> Sent {
    attachment.send(Bytes::from_static(text.as_bytes()))
}

#[tokio::test(start_paused = true)]
async fn an_attached_connection_stays_with_the_handler_that_accepted_it() {
    let pool = pool(Some(1));
    let (one, two) = (Handler::join(&pool), Handler::join(&pool));
    let (ticket, _) = submit(&pool, 1, "hello", Retry::Safe);
    assert_eq!(one.has(), ["s 1 hello"]);
    let talker = talker(1);
    let attachment = ticket.into_attachment(talker.clone());
    assert_eq!(attachment.peer(), Some(one.pull.id()));
    for text in ["a", "b"] {
        assert_eq!(say(&attachment, text), Sent::Passed);
    }
    assert_eq!(one.has(), ["s 1 hello", "s 1 a", "s 1 b"]);
    assert!(talker.peers.borrow().is_empty() && two.has().is_empty());
    // It takes no slot: each of the two gets a request.
    let tickets = [
        submit(&pool, 2, "x", Retry::Safe),
        submit(&pool, 3, "y", Retry::Safe),
    ];
    assert_eq!((one.has().len(), two.has().len()), (4, 1));
    drop((attachment, tickets));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_written_goes_to_the_next_handler_before_what_comes_then() {
    let pool = pool(None);
    let one = Handler::join(&pool);
    let talker = talker(1);
    let attachment = pool.attach(talker.clone());
    for text in ["a", "b", "c"] {
        assert_eq!(say(&attachment, text), Sent::Passed);
    }
    let unsent = one.pull.take_unsent();
    PushSide(Rc::clone(&pool)).lost(&one.pull, unsent[1..].to_vec());
    one.voice_lost();
    assert_eq!(say(&attachment, "d"), Sent::Held);
    assert_eq!(talker.went_on.get(), 0);
    let two = Handler::join(&pool);
    pass(&pool, HOUSEKEEPING).await;
    assert_eq!(two.has(), ["s 1 b", "s 1 c", "s 1 d"]);
    assert_eq!(talker.went_on.get(), 1);
    assert_eq!(*talker.peers.borrow(), [one.pull.id(), two.pull.id()]);
    assert_eq!(say(&attachment, "e"), Sent::Passed);
    assert_eq!(two.has().last().expect("some"), "s 1 e");
}

#[tokio::test(start_paused = true)]
async fn nothing_waits_for_a_pool_that_is_closed() {
    let pool = pool(Some(1));
    let handler = Handler::join(&pool);
    let has = submit(&pool, 1, "a", Retry::Safe);
    let waits = submit(&pool, 2, "b", Retry::Safe);
    let speaker = talker(3);
    let attached = pool.attach(Rc::clone(&speaker) as Rc<dyn Speaker>);
    handler.takes_all();
    pool.close();
    assert_eq!(*waits.1.failures.borrow(), [Failure::WaitOver]);
    assert_eq!(speaker.abandoned.get(), 1);
    handler.pull_lost();
    handler.voice_lost();
    // It could have been handed on, and nobody will come.
    assert_eq!(has.1.failures.borrow().len(), 1);
    let caller = Rc::new(Note::default()) as Rc<dyn Caller>;
    let late = pool.submit(Bytes::from_static(b"c"), Retry::Safe, caller);
    assert_eq!(
        late.map(drop).map_err(|refused| refused.why),
        Err(Failure::WaitOver)
    );
    drop((has, waits, attached));
    assert!(pool.state.borrow().is_idle());
}

#[tokio::test(start_paused = true)]
async fn messages_move_on_from_a_handler_that_drains() {
    let pool = pool(None);
    let (one, two) = (Handler::join(&pool), Handler::join(&pool));
    let attachment = pool.attach(talker(1));
    say(&attachment, "a");
    assert_eq!(one.has(), ["s 1 a"]);
    one.takes_all();
    one.pull_lost();
    assert_eq!(say(&attachment, "b"), Sent::Passed);
    assert_eq!(two.has(), ["s 1 b"]);
    // Its place may be another's now.
    one.voice_lost();
    pass(&pool, LOSS_WINDOW).await;
    let three = Handler::join(&pool);
    say(&attachment, "c");
    assert_eq!((two.has().len(), three.has().len()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_is_waited_for_and_nothing_is_queued_meanwhile() {
    let pool = pool(None);
    let (one, two) = (Handler::join(&pool), Handler::join(&pool));
    let talker = talker(1);
    let attachment = pool.attach(talker.clone());
    say(&attachment, "a");
    one.pull.pretend_blocked(true);
    PushSide(Rc::clone(&pool)).blocked(&one.pull);
    assert_eq!(say(&attachment, "b"), Sent::Held);
    // Stalled: requests go elsewhere, but its connections are its own.
    pass(&pool, STALL_AFTER * 2).await;
    assert_eq!((one.has(), two.has()), (vec!["s 1 a".to_owned()], vec![]));
    one.pull.pretend_blocked(false);
    PushSide(Rc::clone(&pool)).writable(&one.pull);
    assert_eq!(one.has(), ["s 1 a", "s 1 b"]);
    assert_eq!(talker.went_on.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_that_leave_while_they_wait_leave_nothing_behind() {
    let pool = pool(None);
    for id in 0..1000 {
        let attachment = pool.attach(talker(id));
        assert_eq!(say(&attachment, "a"), Sent::Held);
    }
    let stays = pool.attach(talker(7));
    say(&stays, "b");
    assert!(pool.state.borrow().held_entries() < 100);
    let one = Handler::join(&pool);
    pass(&pool, HOUSEKEEPING).await;
    assert_eq!(one.has(), ["s 7 b"]);
    assert!(!pool.state.borrow().holds());
}

fn says(message: &'static str) -> Bytes {
    Bytes::from_static(message.as_bytes())
}

#[tokio::test(start_paused = true)]
async fn what_completes_a_request_follows_it_also_when_it_waits() {
    let pool = pool(None);
    let (ticket, _note) = submit(&pool, 1, "start", Retry::Safe);
    ticket.complete(says("done"), Retry::Never);
    assert!(!ticket.is_completed());
    let handler = Handler::join(&pool);
    assert_eq!(handler.has(), ["s 1 start", "s 1 done"]);
    assert!(ticket.is_completed());
    let (other, _note) = submit(&pool, 2, "start", Retry::Safe);
    other.complete(says("done"), Retry::Never);
    assert_eq!(handler.has()[2..], ["s 2 start", "s 2 done"]);
    drop((ticket, other));
    assert_eq!(pool.state.borrow().follow_ups, 0);
}

#[tokio::test(start_paused = true)]
async fn an_announced_request_is_handed_on_and_one_that_is_complete_as_it_says() {
    for (completed, retry) in [
        (false, Retry::Never),
        (true, Retry::Never),
        (true, Retry::Safe),
    ] {
        let pool = pool(None);
        let old = Handler::join(&pool);
        let (ticket, note) = submit(&pool, 1, "start", Retry::Safe);
        if completed {
            ticket.complete(says("done"), retry);
        }
        old.takes_all();
        old.pull_lost();
        old.voice_lost();
        let new = Handler::join(&pool);
        if !completed {
            ticket.complete(says("done"), retry);
        }
        if completed && retry == Retry::Never {
            assert_eq!(*note.failures.borrow(), [Failure::HandlerLost]);
            assert_eq!(new.has().len(), 0);
            // The handler that is gone had it.
            assert!(ticket.is_completed());
        } else {
            assert_eq!(new.has(), ["s 2 start", "s 2 done"], "{completed}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_of_an_announced_request_goes_again_with_it() {
    let pool = pool(None);
    let old = Handler::join(&pool);
    let (ticket, _note) = submit(&pool, 1, "start", Retry::Safe);
    old.takes_all();
    ticket.complete(says("done"), Retry::Never);
    // It had the announcement, and never got the end.
    old.pull_lost();
    assert!(!ticket.is_completed());
    old.voice_lost();
    let new = Handler::join(&pool);
    assert_eq!(new.has(), ["s 2 start", "s 2 done"]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_closes_its_pull_gets_no_end_and_another_the_whole() {
    let pool = pool(None);
    let old = Handler::join(&pool);
    let (ticket, _note) = submit(&pool, 1, "start", Retry::Safe);
    old.takes_all();
    old.pull.close();
    old.pull_lost();
    pass(&pool, LOSS_WINDOW * 2).await;
    let new = Handler::of(
        &pool,
        Origin::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
    );
    new.voice_joins();
    new.pull_joins();
    ticket.complete(says("done"), Retry::Never);
    assert_eq!(new.has(), ["s 2 start", "s 2 done"]);
    assert!(ticket.is_completed());
    drop(old);
}

#[tokio::test(start_paused = true)]
async fn parts_go_to_the_peer_that_has_the_request_and_are_never_told_twice() {
    let pool = pool(None);
    let (ticket, note) = submit(&pool, 1, "start", Retry::Safe);
    assert_eq!(ticket.room(), Room::Later, "nobody has it");
    let old = Handler::join(&pool);
    assert_eq!(ticket.room(), Room::Now);
    ticket.follow_up(says("part"));
    assert_eq!(old.has(), ["s 1 start", "s 1 part"]);
    old.takes_all();
    old.pull_lost();
    old.voice_lost();
    let new = Handler::join(&pool);
    assert_eq!(*note.failures.borrow(), [Failure::HandlerLost]);
    assert_eq!(new.has().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn parts_wait_for_a_handler_that_does_not_read_and_stay_with_it_when_it_stalls() {
    let pool = pool(None);
    let slow = Handler::join(&pool);
    let (ticket, note) = submit(&pool, 1, "start", Retry::Safe);
    slow.takes_all();
    ticket.follow_up(says("part"));
    slow.pull.pretend_blocked(true);
    PushSide(Rc::clone(&pool)).blocked(&slow.pull);
    assert_eq!(ticket.room(), Room::Later);
    pass(&pool, STALL_AFTER * 2).await;
    assert_eq!(slow.has(), ["s 1 part"]);
    assert_eq!(note.resumed.get(), 1, "told to look again");
    slow.takes_all();
    slow.pull.pretend_blocked(false);
    PushSide(Rc::clone(&pool)).writable(&slow.pull);
    assert_eq!(ticket.room(), Room::Now);
    ticket.follow_up(says("later"));
    assert_eq!(slow.has(), ["s 1 later"]);
    assert!(note.failures.borrow().is_empty());
}
