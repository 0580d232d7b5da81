//! Peers that get no more new requests although their socket is open: a handler that stops, or one that somebody else stops.
//!
//! What is not yet written to such a peer goes to another where one is ready, and is written otherwise; its attached
//! connections move in the same way. Then a handler that has asked by its token is told that it had its last request. What belongs
//! to those that it has (disconnects, credits, parts of bodies) goes to it until it closes its socket.

use std::rc::Rc;

use super::requests::is_request;
use super::{Dialect, NO_TAG, NOTICE_TAG, Pool, State, workers};
use crate::bus::server::{PeerId, Unsent};
use crate::wire::ConnId;
use crate::wire::request::Notice;

impl Pool {
    /// The handler behind a reply socket asks for no more requests. Its token shows that it speaks for itself; any other is ignored.
    pub fn drain_voice(self: &Rc<Self>, voice: PeerId, token: &[u8]) {
        let state = &mut *self.state.borrow_mut();
        let begun = state.workers.drain_voice(voice, token);
        self.begin_drain(state, begun);
    }

    /// Gives no more new requests to the handlers of a process, which must be on ipc. For programs that do not ask for it themselves;
    /// they are not told unless they ask. [`Pool::process_idle`] says when they have nothing open any more.
    pub fn drain_process(self: &Rc<Self>, process: u32) {
        let state = &mut *self.state.borrow_mut();
        let begun = state.workers.drain_process(process);
        self.begin_drain(state, begun);
    }

    /// What the handlers of a process have open: requests, streams and attached connections.
    pub fn held_by_process(&self, process: u32) -> usize {
        self.state.borrow().workers.held_by_process(process)
    }

    /// Waits until the handlers of a process have nothing open.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only waits.
    pub async fn process_idle(&self, process: u32) {
        self.is_watched.set(true);
        loop {
            let ended = self.ended.notified();
            if self.held_by_process(process) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Something that was open has ended.
    pub(super) fn tell_ended(&self) {
        if self.is_watched.get() {
            self.ended.notify_waiters();
        }
    }

    pub(super) fn begin_drain(self: &Rc<Self>, state: &mut State, begun: Vec<workers::Id>) {
        for worker in begun {
            self.take_over(state, worker);
            self.move_attached(state, worker);
        }
        self.resume(state);
        self.tell_drained(state);
    }

    /// Gives to others what is queued for a peer and not written, if there are any.
    fn take_over(&self, state: &mut State, worker: workers::Id) {
        let Some(peer) = state.workers.peer(worker).cloned() else {
            return;
        };
        let ready = state.workers.is_anyone_ready();
        let attachable = ready || state.workers.is_anyone_attachable();
        // What a peer has not got that is gone is told with its loss.
        if peer.queued_messages() == 0 || peer.is_gone() || !attachable {
            return;
        }
        let moves = |unsent: &Unsent| {
            let request = ready && is_request(unsent.tag) && !state.is_bound(unsent.tag);
            request || is_attached(unsent.tag)
        };
        let (theirs, own): (Vec<_>, Vec<_>) = peer.take_unsent().into_iter().partition(moves);
        state.take_back_messages(&theirs);
        let requests = theirs.iter().rev().filter(|unsent| is_request(unsent.tag));
        for request in requests {
            state.take_back(request.tag);
        }
        for unsent in own {
            // It had room for it before.
            let _queued = peer.send_again(unsent);
        }
        self.unsettled.notify_one();
    }

    /// Tells handlers that have asked that they had their last request; again later where there is no room for that.
    pub(super) fn tell_drained(&self, state: &mut State) {
        for (worker, link) in state.workers.untold() {
            let sent = match link.dialect {
                Dialect::Plain => self.try_notice(&link, &ConnId(0).into(), Notice::Drained),
                Dialect::Own | Dialect::M2wsgi => link.say_drained(NO_TAG).is_ok(),
            };
            if sent {
                state.workers.told(worker);
            } else {
                self.unsettled.notify_one();
            }
        }
    }
}

/// Whether it is a message of an attached connection.
fn is_attached(tag: u64) -> bool {
    tag & NOTICE_TAG == 0 && !is_request(tag) && !super::requests::is_part(tag)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{HERE, Handler, pass, pool, say, submit, talker};
    use super::super::{LOSS_WINDOW, Retry, Sent};
    use super::*;
    use crate::bus::HANDLER_PROPERTY;
    use crate::bus::server::{Origin, Peer};

    const ONE: &str = "0123456789abcdef0123456789abcde1";
    const TWO: &str = "0123456789abcdef0123456789abcde2";

    /// A handler that names itself, not joined.
    fn named(pool: &Rc<Pool>, token: &'static str) -> Handler {
        let socket = || Peer::unconnected_with(HERE, &[(HANDLER_PROPERTY, token)]);
        Handler {
            pool: Rc::clone(pool),
            pull: socket(),
            voice: socket(),
        }
    }

    fn join_named(pool: &Rc<Pool>, token: &'static str) -> Handler {
        let handler = named(pool, token);
        handler.voice_joins();
        handler.pull_joins();
        handler
    }

    const DRAINED: &str = r#"s 0 @* 17:{"METHOD":"JSON"},18:{"type":"drained"},"#;

    #[tokio::test(start_paused = true)]
    async fn handlers_that_name_themselves_wait_for_their_own_voice_only() {
        let pool = pool(None);
        // Its reply socket is heard and vouches for nobody else.
        let silent = named(&pool, ONE);
        silent.voice_joins();
        let (named, nameless) = (named(&pool, TWO), Handler::of(&pool, HERE));
        named.pull_joins();
        nameless.pull_joins();
        let waits = submit(&pool, 1, "a", Retry::Safe);
        assert_eq!((named.has().len(), nameless.has().len()), (0, 0));
        // At once, though the other has none yet.
        named.voice_joins();
        assert_eq!(named.has(), ["s 1 a"]);
        let more = submit(&pool, 2, "b", Retry::Safe);
        assert_eq!(nameless.has().len(), 0);
        drop((waits, more));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_names_itself_is_dead_with_both_sockets_and_not_before() {
        let pool = pool(None);
        let (dies, lives) = (join_named(&pool, ONE), join_named(&pool, TWO));
        let (has, note) = submit(&pool, 1, "a", Retry::Safe);
        dies.takes_all();
        // However long it takes, and whoever else is at that address.
        lives.voice_lost();
        lives.pull_lost();
        dies.pull_lost();
        pass(&pool, LOSS_WINDOW * 3).await;
        assert_eq!(note.retired.get(), 0, "it answers what it has");
        dies.voice_lost();
        assert_eq!(note.retired.get(), 1, "handed on at once");
        let next = join_named(&pool, TWO);
        assert_eq!(next.has(), ["s 2 a"]);
        drop(has);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_written_goes_to_another_and_the_last_word_is_that_it_was_the_last() {
        let pool = pool(None);
        let (goes, stays) = (join_named(&pool, ONE), join_named(&pool, TWO));
        let first = submit(&pool, 1, "a", Retry::Never);
        let second = submit(&pool, 2, "b", Retry::Never);
        assert_eq!(
            (goes.has(), stays.has()),
            (vec!["s 1 a".into()], vec!["s 2 b".into()])
        );
        pool.drain_voice(goes.voice.id(), ONE.as_bytes());
        assert_eq!(goes.has(), [DRAINED]);
        assert_eq!(stays.has(), ["s 2 b", "s 1 a"]);
        // Nothing more, and it is not told twice.
        pool.drain_voice(goes.voice.id(), ONE.as_bytes());
        let third = submit(&pool, 3, "c", Retry::Never);
        assert_eq!((goes.has().len(), stays.has().len()), (1, 3));
        // News of what it had still reaches it.
        pool.notify(Some(goes.pull.id()), ConnId(1), Notice::Disconnect);
        assert_eq!(goes.has().len(), 2);
        goes.pull_lost();
        assert_eq!(pool.report().workers.len(), 1, "forgotten");
        drop((first, second, third));
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_handler_gets_what_was_meant_for_it_and_keeps_what_it_has() {
        let pool = pool(None);
        let goes = join_named(&pool, ONE);
        let (first, note) = submit(&pool, 1, "a", Retry::Safe);
        let attachment = pool.attach(talker(9));
        say(&attachment, "x");
        pool.drain_voice(goes.voice.id(), ONE.as_bytes());
        assert_eq!(goes.has(), ["s 1 a", "s 9 x", DRAINED]);
        assert_eq!(
            say(&attachment, "y"),
            Sent::Passed,
            "nobody else could take it"
        );
        let waits = submit(&pool, 2, "b", Retry::Safe);
        goes.takes_all();
        let next = join_named(&pool, TWO);
        assert_eq!(next.has(), ["s 2 b"]);
        assert_eq!(say(&attachment, "z"), Sent::Passed);
        assert_eq!(next.has(), ["s 2 b", "s 9 z"], "now somebody can");
        goes.pull_lost();
        pass(&pool, LOSS_WINDOW * 2).await;
        assert_eq!(note.retired.get(), 0, "it is answering");
        drop((first, waits));
    }

    #[tokio::test(start_paused = true)]
    async fn attached_connections_move_at_once() {
        let pool = pool(None);
        let (goes, stays) = (join_named(&pool, ONE), join_named(&pool, TWO));
        let (quiet, talks) = (talker(1), talker(2));
        let attachments = [pool.attach(quiet.clone()), pool.attach(talks.clone())];
        say(&attachments[0], "a");
        goes.takes_all();
        say(&attachments[1], "b");
        say(&attachments[0], "c");
        assert_eq!(
            (goes.has(), stays.has()),
            (vec!["s 1 c".into()], vec!["s 2 b".into()])
        );
        pool.drain_voice(goes.voice.id(), ONE.as_bytes());
        assert_eq!(goes.has(), [DRAINED]);
        assert_eq!(stays.has(), ["s 2 b", "s 1 c"]);
        assert_eq!(*quiet.peers.borrow(), [goes.pull.id(), stays.pull.id()]);
        assert_eq!(*talks.peers.borrow(), [stays.pull.id()]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_its_own_token_drains_a_handler_and_also_one_whose_pull_comes_later() {
        let pool = pool(None);
        let (one, plain) = (join_named(&pool, ONE), Handler::join(&pool));
        pool.drain_voice(plain.voice.id(), ONE.as_bytes());
        pool.drain_voice(one.voice.id(), TWO.as_bytes());
        pool.drain_voice(one.voice.id(), b"nonsense");
        assert_eq!((one.has().len(), plain.has().len()), (0, 0));
        let late = named(&pool, TWO);
        late.voice_joins();
        pool.drain_voice(late.voice.id(), TWO.as_bytes());
        late.pull_joins();
        assert_eq!(late.has(), [DRAINED]);
        // It asks again when it is connected anew.
        late.voice_lost();
        late.pull_lost();
        let again = join_named(&pool, TWO);
        let taken: Vec<_> = (1..=3)
            .map(|id| submit(&pool, id, "a", Retry::Safe))
            .collect();
        assert_eq!(again.has().len(), 1);
        drop(taken);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_knows_nothing_of_it_is_drained_in_silence() {
        let pool = pool(None);
        let goes = Handler::of(&pool, Origin::Process(7));
        goes.voice_joins();
        goes.pull_joins();
        let (first, _) = submit(&pool, 1, "a", Retry::Safe);
        goes.takes_all();
        pool.drain_process(7);
        let (waits, _) = submit(&pool, 2, "b", Retry::Safe);
        assert_eq!((goes.has().len(), pool.held_by_process(7)), (0, 1));
        let idle = pool.process_idle(7);
        tokio::pin!(idle);
        let soon = tokio::time::timeout(Duration::from_secs(1), &mut idle).await;
        assert!(soon.is_err(), "it has a request");
        drop(first);
        idle.await;
        drop(waits);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_drained_by_another_is_told_when_it_asks_and_not_before() {
        let pool = pool(None);
        let socket = || Peer::unconnected_with(Origin::Process(7), &[(HANDLER_PROPERTY, ONE)]);
        let goes = Handler {
            pool: Rc::clone(&pool),
            pull: socket(),
            voice: socket(),
        };
        goes.voice_joins();
        goes.pull_joins();
        pool.drain_process(7);
        let (waits, _) = submit(&pool, 1, "a", Retry::Safe);
        pass(&pool, Duration::from_secs(1)).await;
        assert_eq!(goes.has().len(), 0, "it has not asked for anything");
        pool.drain_voice(goes.voice.id(), ONE.as_bytes());
        assert_eq!(goes.has(), [DRAINED]);
        // The other way round it is told once.
        pool.drain_process(7);
        pool.drain_voice(goes.voice.id(), ONE.as_bytes());
        assert_eq!(goes.has(), [DRAINED]);
        drop(waits);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_names_itself_lives_as_long_as_one_of_its_reply_sockets() {
        let pool = pool(None);
        let handler = join_named(&pool, ONE);
        let (has, note) = submit(&pool, 1, "a", Retry::Safe);
        let (answered, other) = submit(&pool, 2, "b", Retry::Safe);
        handler.takes_all();
        answered.started(handler.voice.id());
        // It has connected anew before the end of the old connection was noticed.
        let again = named(&pool, ONE);
        again.voice_joins();
        handler.voice_lost();
        let (more, _) = submit(&pool, 3, "c", Retry::Safe);
        assert_eq!(handler.has(), ["s 3 c"], "it can answer");
        handler.takes_all();
        handler.pull_lost();
        pass(&pool, LOSS_WINDOW * 2).await;
        assert_eq!(
            (note.retired.get(), other.failures.borrow().len()),
            (0, 0),
            "it is answering"
        );
        assert!(pool.speaks_for(again.voice.id(), handler.pull.id()));
        again.voice_lost();
        assert_eq!((note.retired.get(), other.failures.borrow().len()), (1, 1));
        drop((has, answered, more));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_parts_of_its_body_follow_stays_where_it_was_queued() {
        let pool = pool(None);
        let (goes, stays) = (join_named(&pool, ONE), join_named(&pool, TWO));
        let (streams, note) = submit(&pool, 1, "a", Retry::Safe);
        let (other, _) = submit(&pool, 2, "b", Retry::Safe);
        let (moves, _) = submit(&pool, 3, "c", Retry::Safe);
        streams.follow_up("part".into());
        assert_eq!(goes.has(), ["s 1 a", "s 3 c", "s 1 part"]);
        pool.drain_voice(goes.voice.id(), ONE.as_bytes());
        assert_eq!(*note.failures.borrow(), []);
        assert_eq!(goes.has(), ["s 1 a", "s 1 part", DRAINED]);
        assert_eq!(stays.has(), ["s 2 b", "s 3 c"]);
        drop((streams, other, moves));
    }

    #[tokio::test(start_paused = true)]
    async fn attached_connections_move_with_what_was_not_written_though_all_others_are_busy() {
        let pool = pool(Some(1));
        let (goes, stays) = (join_named(&pool, ONE), join_named(&pool, TWO));
        let first = submit(&pool, 1, "a", Retry::Safe);
        let second = submit(&pool, 2, "b", Retry::Safe);
        let attachment = pool.attach(talker(9));
        say(&attachment, "x");
        assert_eq!(goes.has(), ["s 1 a", "s 9 x"]);
        pool.drain_voice(goes.voice.id(), ONE.as_bytes());
        say(&attachment, "y");
        assert_eq!(goes.has(), ["s 1 a", DRAINED]);
        assert_eq!(stays.has(), ["s 2 b", "s 9 x", "s 9 y"]);
        drop((first, second));
    }
}
