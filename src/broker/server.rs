//! One server: its two sockets, the pools before which it stands, and the tasks between them.
//!
//! Three tasks: one receives from the server, one sends to it, and one looks at what time settles. What a worker says is looked at
//! on the task of its own socket.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::leaving::{self, Leaving, Left};
use super::ledger::Ledger;
use super::pools::Pools;
use super::table::{Conn, Signals, Stage, Table};
use super::{End, Shared, StartError};
use crate::bus::client::{self, Context, Publisher, Receiver};
use crate::bus::server::Origin;
use crate::drain::Watch;
use crate::endpoint::Endpoint;
use crate::pool::{Failure, Pool, Refused};
use crate::wire::{ConnId, Protocol};

/// Messages taken out of the server's socket at once.
const RECEIVED_AT_ONCE: usize = 256;

/// Replies given to the socket at once, and their bytes.
const SENT_AT_ONCE: usize = 256;
const SENT_BYTES_AT_ONCE: usize = 1 << 20;

/// A response that has gone on for so long is a stream: as in a front.
pub(super) const STREAM_AFTER: Duration = Duration::from_secs(1);

/// How often it is looked what has become a stream or has waited for too long.
const HOUSEKEEPING: Duration = Duration::from_millis(200);

/// A server of a device that has not taken its replies for so long gets no more until it takes them again: workers answer others too.
const REPLIES_PATIENCE: Duration = Duration::from_secs(2);

/// So far apart it may be seen that both connections to a server are lost. Where one alone is, the server is still that one.
const LOST_TOGETHER: Duration = Duration::from_secs(2);

/// What is known of the ends of a server's connections.
#[derive(Debug, Clone, Copy, Default)]
struct Losses {
    /// How often the way here was lost.
    here: u64,
    /// The publisher's connection when it was last looked at.
    back: u64,
    /// The way here was lost: the number of the last entry then, and when that was.
    ended: Option<(u64, Instant)>,
    /// When it was seen that the way back was lost.
    back_lost: Option<Instant>,
}

/// One server.
pub(super) struct Server {
    pub(super) shared: Rc<Shared>,
    /// Its place among the servers.
    pub(super) number: usize,
    pub(super) pools: Rc<Pools>,
    pub(super) table: RefCell<Table>,
    pub(super) signals: Rc<Signals>,
    /// What stands in its messages.
    pub(super) sender: RefCell<Bytes>,
    /// How its messages are written.
    pub(super) protocol: Cell<Protocol>,
    publisher: Publisher,
    /// What is known of the ends of its connections.
    losses: Cell<Losses>,
    /// Replies that the server has yet to take, and their bytes.
    out: RefCell<VecDeque<Bytes>>,
    out_bytes: Cell<usize>,
    out_there: Notify,
    /// Batches that are being given to the socket.
    sending: Cell<bool>,
    /// Workers' replies are not read.
    unheard: Cell<bool>,
    /// Since when it has taken nothing although there was too much for it.
    full_since: Cell<Option<Instant>>,
    /// Messages that it was not given because of that.
    withheld: Cell<u64>,
    /// Responses that have begun and not ended at once, and attachments of which something is held, oldest first.
    pub(super) aging: RefCell<VecDeque<(Instant, ConnId, u64)>>,
    pub(super) ages: Notify,
    stop: CancellationToken,
    /// No new request is received.
    deaf: CancellationToken,
    /// The feed is gone.
    over: CancellationToken,
    /// The server has said that it has pushed its last request.
    pub(super) drained: Cell<bool>,
    malformed: Cell<u64>,
    pub(super) given_up: Cell<u64>,
    /// When to stop trying to tell it what an earlier broker had and this one knows of.
    pub(super) to_tell: Cell<Option<Instant>>,
}

impl Server {
    /// Connects to a server, the next before these pools. Nothing is received before [`Self::run`].
    pub(super) fn connect(
        number: usize,
        (send, recv): (&Endpoint, &Endpoint),
        pools: &Rc<Pools>,
        shared: Rc<Shared>,
        context: &Context,
    ) -> Result<(Rc<Self>, Receiver, String), StartError> {
        let settings = &shared.settings;
        let mut options = client::Options::default();
        options.identity.clone_from(&settings.ident);
        options.message_bytes_max = settings.message_bytes_max;
        options.linger = settings.linger;
        let line = shared.ledger.as_ref().map(Ledger::line);
        let token = line.unwrap_or_else(leaving::token);
        options.token = Some(token.clone());
        options.broker.clone_from(&shared.broker);
        let publisher = Publisher::connect(context, recv, &options, settings.subscription_timeout)?;
        let receiver = Receiver::connect(context, send, &options)?;
        let this = Rc::new(Self {
            number,
            pools: Rc::clone(pools),
            shared,
            table: RefCell::default(),
            signals: Rc::default(),
            sender: RefCell::default(),
            protocol: Cell::default(),
            publisher,
            losses: Cell::default(),
            out: RefCell::default(),
            out_bytes: Cell::new(0),
            out_there: Notify::new(),
            sending: Cell::new(false),
            unheard: Cell::new(false),
            full_since: Cell::new(None),
            withheld: Cell::new(0),
            aging: RefCell::default(),
            ages: Notify::new(),
            stop: CancellationToken::new(),
            deaf: CancellationToken::new(),
            over: CancellationToken::new(),
            drained: Cell::new(false),
            malformed: Cell::new(0),
            given_up: Cell::new(0),
            to_tell: Cell::new(None),
        });
        pools.put_before(&this);
        Ok((this, receiver, token))
    }

    /// Begins to take requests.
    pub(super) fn run(self: &Rc<Self>, receiver: Receiver, token: String, watch: &Watch) {
        watch.spawn_local(Rc::clone(self).receive(receiver, token));
        watch.spawn_local(Rc::clone(self).send());
        watch.spawn_local(Rc::clone(self).keep_house());
    }

    /// The one pool of a feed's server.
    pub(super) fn pool(&self) -> &Rc<Pool> {
        self.pools.get(0)
    }

    /// Where its replies go, by which it is known from one start to the next.
    pub(super) fn spec(&self) -> String {
        self.publisher.endpoint().to_string()
    }

    /// Whether it is there and has not said that it is a Lurcher.
    pub(super) fn gives_no_credits(&self) -> bool {
        self.publisher.subscription().is_some() && !self.publisher.is_lurcher()
    }

    /// Whether it is there and has said that it is a Lurcher; none while it is not there.
    pub(super) fn is_lurcher(&self) -> Option<bool> {
        self.publisher.subscription()?;
        Some(self.publisher.is_lurcher())
    }

    /// What may stand before a message to the server itself.
    pub(super) fn any_sender(&self) -> Vec<u8> {
        leaving::sender_for(&self.publisher)
    }

    /// How its server stands.
    pub(super) fn state(&self) -> super::ServerState {
        super::ServerState {
            replies: self.publisher.endpoint().clone(),
            listens: self.publisher.subscription().is_some(),
            is_lurcher: self.publisher.is_lurcher(),
        }
    }

    /// The processes that have sockets here.
    pub(super) fn processes(&self) -> Vec<u32> {
        let workers = self.pool().report().workers;
        let mut all: Vec<u32> = workers
            .iter()
            .filter_map(|worker| match worker.origin {
                Origin::Process(pid) => Some(pid),
                Origin::Address(_) | Origin::Unknown => None,
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Requests of before that somebody may have.
    pub(super) fn orphans(&self) -> usize {
        self.table.borrow().orphans.len()
    }

    /// Requests that wait for the end of another of their connection.
    pub(super) fn held(&self) -> usize {
        self.table.borrow().held
    }

    /// Responses that have become streams, and will end: it was said how long they are.
    pub(super) fn long_answers(&self) -> usize {
        let will_end = |conn: &Conn| matches!(&conn.stage, Stage::Exchange(exchange) if exchange.is_stream && exchange.scanner.has_length());
        let table = self.table.borrow();
        table.conns.values().filter(|conn| will_end(conn)).count()
    }

    /// Begins to stop receiving.
    pub(super) fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Ends all tasks where they stand.
    pub(super) fn close(&self) {
        self.stop.cancel();
        self.over.cancel();
        self.pools.each().for_each(|pool| pool.close());
        self.pools.let_go();
    }

    /// Completes when no new request is received any more.
    pub(super) async fn is_deaf(&self) {
        self.deaf.cancelled().await;
    }

    /// Waits until the socket has all replies, at the latest until then.
    pub(super) async fn finish(&self, deadline: Instant) {
        // What the pool has given up when it was closed is answered too.
        self.see_signals();
        while (self.sending.get() || !self.out.borrow().is_empty()) && Instant::now() < deadline {
            tokio::time::sleep(super::LOOK).await;
        }
    }

    async fn receive(self: Rc<Self>, mut receiver: Receiver, token: String) {
        let receiving = async {
            let mut batch = VecDeque::new();
            self.serve(&mut receiver, &mut batch, &self.stop).await;
            let stays = self.leave(&mut receiver, &mut batch, token).await;
            self.deaf.cancel();
            if !stays {
                drop(receiver);
                loop {
                    self.see_signals();
                    self.signals.told.notified().await;
                }
            }
            // What belongs to requests that have come.
            self.serve(&mut receiver, &mut batch, &self.over).await;
        };
        self.over.run_until_cancelled(receiving).await;
    }

    /// Takes in what the server pushes, for as long as there is room for it.
    async fn serve(
        &self,
        receiver: &mut Receiver,
        batch: &mut VecDeque<Bytes>,
        until: &CancellationToken,
    ) {
        while !until.is_cancelled() {
            self.take_in(batch);
            if !batch.is_empty() {
                self.signals.paused.set(true);
                tokio::select! {
                    () = self.signals.told.notified() => {}
                    () = until.cancelled() => {}
                }
                self.signals.paused.set(false);
                continue;
            }
            let taken = tokio::select! {
                biased;
                () = self.signals.told.notified() => continue,
                () = until.cancelled() => break,
                taken = next(receiver, batch) => taken,
            };
            if !self.look(&taken, receiver) {
                break;
            }
            self.take_in(batch);
            // What was handed over just now is written before more is taken.
            tokio::task::yield_now().await;
        }
    }

    /// Receives until the server has pushed its last request. Says whether it goes on telling of those that it has pushed.
    async fn leave(
        &self,
        receiver: &mut Receiver,
        batch: &mut VecDeque<Bytes>,
        token: String,
    ) -> bool {
        let settings = &self.shared.settings;
        let mut leaving = Leaving::new(token, Instant::now() + settings.drain_timeout, receiver);
        let stays = loop {
            // All of it, also more than waits otherwise: there is nobody else to have it.
            if !batch.is_empty() {
                leaving.note_heard();
            }
            for message in batch.drain(..) {
                self.received(&message);
            }
            self.see_signals();
            if let Some(left) = leaving.advance(receiver, &self.publisher, self.drained.get()) {
                break left == Left::Told;
            }
            tokio::select! {
                () = self.signals.told.notified() => {}
                () = tokio::time::sleep(leaving::LULL) => {}
                taken = next(receiver, batch) => {
                    if !self.look(&taken, receiver) {
                        break false;
                    }
                }
            }
        };
        while let Ok(Some(message)) = receiver.try_recv() {
            self.received(&message);
            if Instant::now() >= leaving.until() {
                break;
            }
        }
        stays
    }

    /// Looks at the way back when something was received; false when the way here is broken.
    fn look(&self, taken: &std::io::Result<usize>, receiver: &mut Receiver) -> bool {
        let patience = self.shared.settings.subscription_timeout;
        let replies = self.publisher.endpoint();
        if let Err(error) = self.publisher.expect(patience) {
            error!(%error, %replies, "socket for replies is broken");
        }
        self.look_for_losses(receiver);
        if let Err(error) = taken {
            // Its runtime has ended.
            error!(%error, %replies, "socket for requests is broken, closing it");
        }
        taken.is_ok()
    }

    /// Takes messages in until the first for which there is no room.
    fn take_in(&self, batch: &mut VecDeque<Bytes>) {
        self.see_signals();
        while self.has_room()
            && let Some(message) = batch.pop_front()
        {
            self.received(&message);
        }
    }

    fn has_room(&self) -> bool {
        let settings = &self.shared.settings;
        let held = self.table.borrow().held_bytes;
        if self.shared.rules.borrow().is_shared {
            // What waits for workers is bounded by the pools. What is said to that goes the way of replies.
            return held < settings.waiting_bytes_max
                && self.out.borrow().len() < settings.replies_max
                && self.out_bytes.get() < settings.replies_bytes_max;
        }
        let (count, bytes) = self.pools.waiting();
        count < settings.waiting_max && bytes + held < settings.waiting_bytes_max
    }

    /// Both ways to a server that dies are lost; what it had given is of before the end of the way here.
    fn look_for_losses(&self, receiver: &mut Receiver) {
        let mut losses = self.losses.get();
        // It looks, which the number alone does not.
        receiver.is_connected();
        let here = receiver.losses();
        if losses.here != here {
            losses.here = here;
            // What was taken out of the socket just now has no number yet.
            losses.ended = Some((self.table.borrow().serial, Instant::now()));
        }
        let back = self.publisher.connection();
        if losses.back != back {
            let is_first = losses.back == 0;
            losses.back_lost = (!is_first || back > 1).then(Instant::now);
            losses.back = back;
        }
        if let (Some((serial, since)), Some(back)) = (losses.ended, losses.back_lost)
            && since.max(back) - since.min(back) <= LOST_TOGETHER
        {
            losses.ended = None;
            losses.back_lost = None;
            self.forget(serial, since);
        }
        self.losses.set(losses);
    }

    /// The server may have been started anew, and what it calls by the ids that are known here is something else then: an answer to
    /// what it had asked would be another client's. What is waiting goes, and what a worker has is followed no more. `last` is the
    /// number of the last entry of before, and `since` when that was.
    fn forget(&self, last: u64, since: Instant) {
        let table = &mut *self.table.borrow_mut();
        let of_before: Vec<u32> = table
            .conns
            .iter()
            .filter(|(_, conn)| conn.serial <= last)
            .map(|(id, _)| *id)
            .collect();
        for id in of_before {
            let id = ConnId(id);
            let held = self.end(table, id, End::ClientGone);
            let mut held: VecDeque<_> =
                held.into_iter().filter(|held| held.came >= since).collect();
            if let Some(next) = held.pop_front() {
                self.submit(table, id, next, held);
            }
        }
        table.recent.clear();
    }

    pub(super) fn tell_malformed(&self, error: &dyn std::fmt::Display) {
        let count = self.malformed.get() + 1;
        self.malformed.set(count);
        // A server that sends rubbish sends much of it: the log gets the 1st, 2nd, 4th, 8th, ….
        if count.is_power_of_two() {
            warn!(%error, count, replies = %self.publisher.endpoint(), "dropped a malformed message from a server");
        }
    }

    /// Whether workers' replies have nowhere to go, and should not be read for now.
    pub(super) fn is_full(&self) -> bool {
        let settings = &self.shared.settings;
        let full = self.out.borrow().len() >= settings.replies_max
            || self.out_bytes.get() >= settings.replies_bytes_max;
        if !full {
            self.full_since.set(None);
            return false;
        }
        let since = self.full_since.get().unwrap_or_else(Instant::now);
        self.full_since.set(Some(since));
        if self.is_given_up() {
            return false;
        }
        if !self.unheard.replace(true) {
            self.ages.notify_one();
        }
        true
    }

    /// Whether it has taken nothing for so long that others do not wait for it any more.
    fn is_given_up(&self) -> bool {
        let since = self.full_since.get();
        self.shared.rules.borrow().is_shared
            && since.is_some_and(|since| since.elapsed() >= REPLIES_PATIENCE)
    }

    /// Queues a message for the server.
    pub(super) fn say(&self, message: Bytes) {
        if self.is_given_up() {
            let count = self.withheld.get() + 1;
            self.withheld.set(count);
            if count.is_power_of_two() {
                warn!(count, replies = %self.publisher.endpoint(), "server takes no replies: dropped one");
            }
            return;
        }
        let mut message = message;
        if !self.sending.get() && self.out.borrow().is_empty() {
            // Nearly always it can be had at once. It is written when the turn of the loop ends, with what others say in it.
            match self.publisher.try_send(message) {
                Ok(None) => return,
                Ok(Some(back)) => message = back,
                Err(error) => {
                    error!(%error, replies = %self.publisher.endpoint(), "socket for replies is broken");
                    return;
                }
            }
        }
        self.out_bytes.set(self.out_bytes.get() + message.len());
        self.out.borrow_mut().push_back(message);
        self.out_there.notify_one();
    }

    async fn send(self: Rc<Self>) {
        let sending = async {
            loop {
                if self.out.borrow().is_empty() {
                    self.out_there.notified().await;
                    continue;
                }
                let batch = self.next_batch();
                self.sending.set(true);
                // The one task that may wait for the server.
                if let Err(error) = self.publisher.send_all(batch).await {
                    error!(%error, replies = %self.publisher.endpoint(), "socket for replies is broken");
                }
                self.sending.set(false);
            }
        };
        self.over.run_until_cancelled(sending).await;
    }

    fn next_batch(&self) -> Vec<Bytes> {
        let mut out = self.out.borrow_mut();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < SENT_AT_ONCE
            && bytes < SENT_BYTES_AT_ONCE
            && let Some(message) = out.pop_front()
        {
            bytes += message.len();
            batch.push(message);
        }
        self.out_bytes.set(self.out_bytes.get() - bytes);
        let settings = &self.shared.settings;
        // Half of it, so that sockets are not stopped and started for every message.
        let low = out.len() <= settings.replies_max / 2
            && self.out_bytes.get() <= settings.replies_bytes_max / 2;
        drop(out);
        if low {
            self.full_since.set(None);
            // Requests may be taken again.
            if self.signals.paused.get() {
                self.signals.told.notify_one();
            }
        }
        if low && self.unheard.replace(false) {
            self.pools.hear();
        }
        batch
    }

    /// Notes that a response goes on, or that something of an attachment is held, from now on.
    pub(super) fn age(&self, id: ConnId, serial: u64) {
        self.aging
            .borrow_mut()
            .push_back((Instant::now(), id, serial));
        self.ages.notify_one();
    }

    async fn keep_house(self: Rc<Self>) {
        let keeping = async {
            loop {
                if self.aging.borrow().is_empty()
                    && self.table.borrow().orphans.is_empty()
                    && !self.unheard.get()
                    && self.to_tell.get().is_none()
                {
                    self.ages.notified().await;
                }
                let now = Instant::now();
                self.settle(now);
                self.settle_orphans(now);
                self.tell_what_is_known(now);
                if self.unheard.get() && self.is_given_up() {
                    self.unheard.set(false);
                    self.pools.hear();
                }
                tokio::time::sleep(HOUSEKEEPING).await;
            }
        };
        self.over.run_until_cancelled(keeping).await;
    }

    /// Makes streams of responses that have gone on, and gives up attachments whose messages nobody takes.
    fn settle(&self, now: Instant) {
        let wait_max = self.shared.settings.wait_max;
        let mut waiting = Vec::new();
        loop {
            let oldest = self.aging.borrow().front().copied();
            let Some((since, id, serial)) =
                oldest.filter(|(since, ..)| now.duration_since(*since) >= STREAM_AFTER)
            else {
                break;
            };
            self.aging.borrow_mut().pop_front();
            let table = &mut *self.table.borrow_mut();
            match table.current(id, serial).map(|conn| &mut conn.stage) {
                Some(Stage::Exchange(exchange)) => {
                    exchange.ticket.attach();
                    exchange.is_stream = true;
                }
                Some(Stage::Attached(attached)) => match attached.held_since {
                    Some(held) if now.duration_since(held) >= wait_max => {
                        self.hang_up(table, id, Refused::now(Failure::WaitOver));
                    }
                    Some(_) => waiting.push((since, id, serial)),
                    None => {}
                },
                Some(Stage::Orphan(_)) | None => {}
            }
        }
        let mut aging = self.aging.borrow_mut();
        for entry in waiting.into_iter().rev() {
            aging.push_front(entry);
        }
    }
}

/// Takes what the server has pushed.
async fn next(receiver: &mut Receiver, batch: &mut VecDeque<Bytes>) -> std::io::Result<usize> {
    poll_fn(|cx| {
        receiver.poll_recv_many(cx, RECEIVED_AT_ONCE, &mut |message| {
            batch.push_back(message);
        })
    })
    .await
}
