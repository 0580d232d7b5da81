//! What stands between a program and its broker: what came and was not asked for, what is to be said, and what the broker is to be told
//! when a connection is lost and another made. All of it under one lock; who waits and who is woken is [`super::Link`]'s business.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::table::{Address, Done, Table};
use super::{Given, Introduction, Taken};
use crate::bus::client::{self, Context, Dealer, Dialed};
use crate::endpoint::Endpoint;
use crate::wire::reply;
use crate::wire::request::{self, Kind, Notice, Request};
use crate::wire::worker::{FromBroker, FromWorker, Hello, RequestId, VERSION};
use crate::wire::{ConnId, Protocol};

/// Messages that were received and not asked for, and their bytes: what comes beyond stays in the socket, and a broker that hears
/// nothing for it gives no more requests.
const INBOX_MAX: usize = 4_096;
const INBOX_BYTES_MAX: usize = 64 << 20;

/// Messages looked at in one go.
const PUMP_MAX: usize = 256;

/// Requests that were cancelled between being received and being taken, that are remembered; and clients of which the program was
/// told that they are gone.
const CANCELLED_MAX: usize = 1_024;

/// Between two connections, at least: a broker may be there and let go of everybody.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

/// A broker that has said no is asked again after so long: it may have been started anew with other pools.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// A broker answers HELLO within this time, or somebody else is there.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// Signs of life that may be missing before the connection is given up, whatever the broker's own patience is.
const MISSED_MAX: u32 = 3;

/// Signs of life are not asked for more often than this, nor more rarely, whatever a broker says.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_mins(10);

/// How the broker has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Welcome {
    Awaited,
    Given {
        interval: Duration,
        patience: Duration,
    },
    Refused(String),
}

/// How far leaving has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    Asked,
    /// There will be no more requests.
    Done,
}

/// What is to be said.
#[derive(Debug)]
enum Owed {
    /// On this connection, and of no use on another.
    Word(FromWorker),
    /// A whole message for clients.
    Reply(Bytes),
}

#[derive(Debug)]
pub(super) struct State {
    endpoint: Endpoint,
    options: client::Options,
    introduction: Introduction,
    /// None when it is closed.
    context: Option<Context>,
    pub(super) dealer: Option<Dealer>,
    opened: Instant,
    reopen_at: Instant,
    /// Counts connections.
    generation: u64,
    pub(super) welcome: Welcome,
    heard: Instant,
    pings: u64,
    /// When it was last asked for a sign of life.
    asked: Instant,
    inbox: VecDeque<Taken>,
    inbox_bytes: usize,
    /// What comes is for nobody any more.
    deaf: bool,
    owed: VecDeque<Owed>,
    /// Somebody waits to send.
    pub(super) is_awaited: bool,
    /// Replies handed over to this socket.
    replies: u64,
    table: Table,
    cancelled: VecDeque<RequestId>,
    /// Clients whose end the program was told of when their request was cancelled.
    told: VecDeque<Address>,
    drain: Drain,
    /// Something has changed that the owner wants to know of.
    news: bool,
    progress: u64,
    malformed: u64,
}

impl State {
    pub(super) fn new(
        context: &Context,
        endpoint: &Endpoint,
        options: &client::Options,
        introduction: Introduction,
    ) -> Self {
        let now = Instant::now();
        Self {
            endpoint: endpoint.clone(),
            options: options.clone(),
            introduction,
            context: Some(context.clone()),
            dealer: None,
            opened: now,
            reopen_at: now,
            generation: 0,
            welcome: Welcome::Awaited,
            heard: now,
            pings: 0,
            asked: now,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            deaf: false,
            owed: VecDeque::new(),
            is_awaited: false,
            replies: 0,
            table: Table::default(),
            cancelled: VecDeque::new(),
            told: VecDeque::new(),
            drain: Drain::No,
            news: false,
            progress: 0,
            malformed: 0,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.context.is_none()
    }

    /// Opens a connection if there is none and it is time; says whether it has. What the broker must know comes first on it.
    pub(super) fn open(&mut self, now: Instant) -> Result<bool, client::OpenError> {
        let Some(context) = &self.context else {
            return Ok(false);
        };
        if self.dealer.is_some() || now < self.reopen_at {
            return Ok(false);
        }
        self.reopen_at = now + REOPEN_PAUSE;
        self.dealer = Some(Dealer::open(context, &self.endpoint, &self.options)?);
        self.opened = now;
        self.heard = now;
        self.replies = 0;
        self.welcome = Welcome::Awaited;
        let drains = self.drain != Drain::No;
        let Introduction {
            name,
            slots,
            weight,
            pool,
        } = &self.introduction;
        let mut words = vec![FromWorker::Hello(Hello {
            version: VERSION,
            name: name.clone(),
            // A worker that leaves comes back to answer what it has.
            slots: if drains { Some(0) } else { *slots },
            weight: *weight,
            pool: pool.clone(),
        })];
        for (id, (sender, client)) in self.table.held() {
            let mut address = sender.to_vec();
            address.push(b' ');
            address.extend_from_slice(client.to_string().as_bytes());
            let address = address.into();
            words.push(FromWorker::Held { id, address });
        }
        if drains {
            words.push(FromWorker::Drain);
        }
        for word in words.into_iter().rev() {
            self.owed.push_front(Owed::Word(word));
        }
        self.flush();
        Ok(true)
    }

    /// Gives up the connection. Requests that nobody has taken go with it: the broker gives them to others.
    fn lose(&mut self, now: Instant, why: &str) {
        let Some(dealer) = self.dealer.take() else {
            return;
        };
        if dealer.is_up() {
            tracing::warn!(broker = %self.endpoint, "connection to a broker lost: {why}");
        }
        dealer.abandon();
        self.generation += 1;
        self.welcome = Welcome::Awaited;
        self.news = true;
        self.reopen_at = self.reopen_at.max(now);
        self.inbox.retain(|taken| taken.given.is_none());
        self.inbox_bytes = self.inbox.iter().map(|taken| taken.message.len()).sum();
        self.cancelled.clear();
        // Replies are sent to whoever comes, behind what he must know.
        self.owed.retain(|owed| matches!(owed, Owed::Reply(_)));
        if self.drain == Drain::Asked {
            self.drain = Drain::Done;
        }
        for (sender, client) in self.table.cut() {
            let mut message = Vec::new();
            reply::encode(&sender, &[client], b"", &mut message);
            self.owed.push_front(Owed::Reply(message.into()));
            self.push_disconnect(&sender, client);
        }
    }

    fn push_disconnect(&mut self, sender: &Bytes, client: ConnId) {
        let mut message = Vec::new();
        request::encode_prefix(sender, client, &mut message);
        Notice::Disconnect.encode(Protocol::Json, &mut message);
        self.push(Taken {
            message: message.into(),
            given: None,
        });
    }

    fn push(&mut self, taken: Taken) {
        if !self.deaf {
            self.inbox_bytes += taken.message.len();
            self.inbox.push_back(taken);
        }
    }

    /// Whether somebody has to connect.
    pub(super) fn is_to_dial(&self) -> bool {
        let dealer = self.dealer.as_ref();
        dealer.is_some_and(|dealer| !dealer.has_connection())
    }

    /// Takes a connection that was made.
    pub(super) fn attach(&mut self, dialed: Dialed) -> io::Result<()> {
        match &self.dealer {
            Some(dealer) => dealer.attach(dialed),
            None => Ok(()),
        }
    }

    /// Whether the handshake is awaited.
    pub(super) fn is_joining(&self) -> bool {
        let dealer = self.dealer.as_ref();
        dealer.is_some_and(|dealer| dealer.has_connection() && !dealer.is_up())
    }

    /// Reads what has arrived and writes what is queued, whether the runtime gets round to it or not.
    pub(super) fn run_now(&self) {
        if let Some(dealer) = &self.dealer {
            dealer.run_now();
        }
    }

    /// Looks at the connection, takes what is there into the inbox, and says what is owed; true when anything was there. Afterwards
    /// the socket tells of what comes, unless the inbox is full.
    pub(super) fn pump(&mut self, now: Instant) -> bool {
        let mut found = false;
        for _ in 0..PUMP_MAX {
            if self.inbox.len() >= INBOX_MAX || self.inbox_bytes >= INBOX_BYTES_MAX {
                break;
            }
            let Some(dealer) = &mut self.dealer else {
                break;
            };
            match dealer.try_recv() {
                Ok(Some(frames)) => {
                    found = true;
                    self.heard = now;
                    self.hear(&frames, now);
                }
                Ok(None) => {
                    if dealer.is_lost() {
                        self.lose(now, "it is gone");
                        found = true;
                    }
                    break;
                }
                Err(error) => {
                    self.lose(now, &error.to_string());
                    found = true;
                }
            }
        }
        self.flush();
        found
    }

    fn hear(&mut self, frames: &[Bytes], now: Instant) {
        let said = match FromBroker::decode(frames) {
            Ok(Some(said)) => said,
            // From a later version.
            Ok(None) => return,
            Err(error) => {
                self.malformed += 1;
                // One that sends rubbish sends much of it.
                if self.malformed.is_power_of_two() {
                    let count = self.malformed;
                    tracing::warn!(%error, count, broker = %self.endpoint, "dropped a malformed message from a broker");
                }
                return;
            }
        };
        match said {
            FromBroker::Welcome {
                interval, patience, ..
            } => {
                if self.welcome == Welcome::Awaited {
                    tracing::debug!(broker = %self.endpoint, "welcomed by a broker");
                }
                let interval = interval.clamp(INTERVAL_MIN, INTERVAL_MAX);
                self.welcome = Welcome::Given { interval, patience };
                self.news = true;
            }
            FromBroker::Refused { reason } => {
                let reason = String::from_utf8_lossy(&reason).into_owned();
                tracing::error!(broker = %self.endpoint, "refused by a broker: {}", reason.escape_debug());
                self.lose(now, "refused");
                self.welcome = Welcome::Refused(reason);
                self.reopen_at = now + REFUSED_PAUSE;
            }
            FromBroker::Request { id, message, .. } => {
                let generation = self.generation;
                let given = Some(Given { id, generation });
                self.push(Taken { message, given });
            }
            FromBroker::Message { message } => {
                if !self.is_told(&message) {
                    self.push(Taken {
                        message,
                        given: None,
                    });
                }
            }
            FromBroker::Cancel(id) => self.cancel(id),
            FromBroker::Ping(number) => {
                let progress = self.progress;
                self.owe(FromWorker::Pong { number, progress });
            }
            FromBroker::Pong(_) => {}
            FromBroker::Drain => {
                if self.drain == Drain::Asked {
                    self.drain = Drain::Done;
                    self.news = true;
                }
            }
            FromBroker::Bye => self.lose(now, "the broker goes"),
        }
    }

    /// Nobody waits for the answer to a request any more: the program hears of it as of a client that is gone, or never of the
    /// request.
    fn cancel(&mut self, id: RequestId) {
        let waiting = self
            .inbox
            .iter()
            .position(|taken| taken.given.is_some_and(|given| given.id == id));
        if let Some(taken) = waiting.and_then(|at| self.inbox.remove(at)) {
            self.inbox_bytes = self.inbox_bytes.saturating_sub(taken.message.len());
            self.owe_done(id);
        } else if let Some((sender, client)) = self.table.cancel(id) {
            self.push_disconnect(&sender, client);
            if self.told.len() >= CANCELLED_MAX {
                self.told.pop_front();
            }
            self.told.push_back((sender, client));
        } else {
            if self.cancelled.len() >= CANCELLED_MAX {
                self.cancelled.pop_front();
            }
            self.cancelled.push_back(id);
        }
    }

    /// A request is done with that was never begun.
    fn owe_done(&mut self, id: RequestId) {
        let took = Duration::ZERO;
        self.owe(FromWorker::Done { id, took });
    }

    /// The program hears that a client is gone, and is done with what that had open.
    pub(super) fn disconnected(&mut self, notice: &Request, now: Instant) {
        if self.table.is_empty() {
            return;
        }
        let mut done = Vec::new();
        let address = (notice.sender.clone(), notice.conn_id);
        self.table.end(&address, now, &mut done);
        for Done { id, took } in done {
            self.owe(FromWorker::Done { id, took });
        }
        self.flush();
    }

    /// A client's end is news once.
    fn is_told(&mut self, message: &Bytes) -> bool {
        // A notice, which is short.
        if self.told.is_empty()
            || message.len() > 512
            || !message.windows(4).take(300).any(|part| part == b" @* ")
        {
            return false;
        }
        let Ok(notice) = Request::decode(message.clone()) else {
            return false;
        };
        if notice.kind() != Kind::Disconnect {
            return false;
        }
        let address = (notice.sender.clone(), notice.conn_id);
        let told = self.told.iter().position(|told| *told == address);
        told.map(|at| self.told.remove(at)).is_some()
    }

    /// Moves what was received to whoever asked for it; true when there was something, or news that are nobody's message.
    pub(super) fn take(&mut self, max: usize, sink: &mut dyn FnMut(Taken)) -> Option<usize> {
        let count = self.inbox.len().min(max);
        for taken in self.inbox.drain(..count) {
            self.inbox_bytes = self.inbox_bytes.saturating_sub(taken.message.len());
            sink(taken);
        }
        let news = std::mem::take(&mut self.news);
        (count > 0 || news).then_some(count)
    }

    /// The program takes a request; false when it is nobody's any more: another worker has it, or its client is gone.
    pub(super) fn begin(&mut self, given: Given, request: &Request, now: Instant) -> bool {
        self.progress += 1;
        if given.generation != self.generation {
            return false;
        }
        if let Some(at) = self.cancelled.iter().position(|id| *id == given.id) {
            self.cancelled.remove(at);
            self.owe_done(given.id);
            self.flush();
            return false;
        }
        if !self.told.is_empty() {
            let address = (request.sender.clone(), request.conn_id);
            self.told.retain(|told| *told != address);
        }
        self.owe(FromWorker::First(given.id));
        match request.kind() {
            Kind::Http
            | Kind::WebSocketHandshake
            | Kind::UploadStart { .. }
            | Kind::UploadDone { .. }
            | Kind::StreamStart => self.table.begin(given.id, request, now),
            // Not to be answered.
            _ => self.owe_done(given.id),
        }
        // Those may be done twice, so that it does no harm when a worker dies before this is out: it goes with what is said next, or
        // when the program asks for more.
        let may_wait = matches!(
            request.method(),
            Some(b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE")
        );
        if !may_wait {
            self.flush();
        }
        true
    }

    fn owe(&mut self, word: FromWorker) {
        self.owed.push_back(Owed::Word(word));
    }

    /// Says what is owed; true when nothing is left.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(owed) = self.owed.pop_front() {
            let said = match &owed {
                Owed::Word(word) => self.say(word),
                Owed::Reply(message) => self.hand_over(message),
            };
            if !said.unwrap_or(false) {
                self.owed.push_front(owed);
                return false;
            }
        }
        true
    }

    fn say(&mut self, word: &FromWorker) -> io::Result<bool> {
        let Some(dealer) = &mut self.dealer else {
            return Ok(false);
        };
        let frames = word.encode();
        let Some((last, before)) = frames.split_last() else {
            return Ok(true);
        };
        let before: Vec<&[u8]> = before.iter().map(|frame| &frame[..]).collect();
        dealer.try_send(&before, last.clone())
    }

    /// Hands a reply over, and says what is done with that.
    fn hand_over(&mut self, message: &Bytes) -> io::Result<bool> {
        let Some(dealer) = &mut self.dealer else {
            return Ok(false);
        };
        let Ok(reply) = reply::decode(message, usize::MAX) else {
            // Nothing of ours; a broker would drop it.
            return Ok(true);
        };
        let id = self.table.of(&reply);
        let mut text = itoa::Buffer::new();
        let text = id.map_or("", |id| text.format(id.0));
        if !dealer.try_send(&[b"REPLY", text.as_bytes()], message.clone())? {
            return Ok(false);
        }
        self.replies += 1;
        self.progress += 1;
        for done in self
            .table
            .sent(&reply, message, Instant::now())
            .iter()
            .rev()
        {
            let (id, took) = (done.id, done.took);
            self.owed
                .push_front(Owed::Word(FromWorker::Done { id, took }));
        }
        Ok(true)
    }

    /// Sends messages in order; true when all are handed over. With the first of them the others are on their way.
    pub(super) fn send(&mut self, messages: &mut VecDeque<Bytes>) -> bool {
        if !self.flush() {
            return false;
        }
        if let Some(first) = messages.front()
            && self.hand_over(first).unwrap_or(false)
        {
            messages.pop_front();
            self.owed.extend(messages.drain(..).map(Owed::Reply));
            self.flush();
        }
        messages.is_empty() && !self.owed.iter().any(|owed| matches!(owed, Owed::Reply(_)))
    }

    /// Sends a message when that can be done.
    pub(super) fn send_when_possible(&mut self, message: Vec<u8>) {
        self.owed.push_back(Owed::Reply(message.into()));
        self.flush();
    }

    pub(super) fn set_slots(&mut self, slots: u32) {
        if self.introduction.slots == Some(slots) {
            return;
        }
        self.introduction.slots = Some(slots);
        if self.drain == Drain::No && self.dealer.is_some() {
            self.owe(FromWorker::Credit(slots));
            self.flush();
        }
    }

    /// Asks for no more requests, once.
    pub(super) fn drain(&mut self) {
        if self.drain == Drain::No {
            self.drain = if self.dealer.is_some() {
                self.owe(FromWorker::Drain);
                self.flush();
                Drain::Asked
            } else {
                Drain::Done
            };
        }
    }

    /// Whether no request comes any more: the broker has said so, or there is none.
    pub(super) fn is_drained(&self) -> bool {
        match self.drain {
            Drain::No => false,
            Drain::Asked => self.dealer.as_ref().is_none_or(|dealer| !dealer.is_up()),
            Drain::Done => true,
        }
    }

    /// What comes from now on is for nobody.
    pub(super) fn stop_receiving(&mut self, sink: &mut dyn FnMut(Taken)) {
        self.pump(Instant::now());
        self.take(usize::MAX, sink);
        self.deaf = true;
    }

    pub(super) fn note_progress(&mut self) {
        self.progress += 1;
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Does what time demands; says when to come again.
    pub(super) fn tend(&mut self, now: Instant) -> Duration {
        if let Some(dealer) = &self.dealer {
            let silence = now.saturating_duration_since(self.heard);
            match self.welcome {
                Welcome::Given { interval, patience } => {
                    if silence >= patience.max(interval * MISSED_MAX) {
                        self.lose(now, "the broker is silent");
                    } else if silence >= interval + interval / 2
                        && now.saturating_duration_since(self.asked) >= interval
                    {
                        self.asked = now;
                        self.pings += 1;
                        self.owe(FromWorker::Ping(self.pings));
                        self.flush();
                    }
                    let quarter = interval / 4;
                    return quarter.clamp(Duration::from_millis(10), Duration::from_secs(1));
                }
                _ if dealer.is_up() && silence >= WELCOME_TIMEOUT => {
                    self.lose(now, "it does not answer HELLO");
                }
                // The silence begins with the connection.
                _ if !dealer.is_up() => self.heard = now,
                _ => {}
            }
        }
        REOPEN_PAUSE
    }

    /// Says farewell and closes.
    pub(super) fn close(&mut self) {
        self.pump(Instant::now());
        if self.is_closed() {
            return;
        }
        if self.flush() {
            // It has been said, or there is nobody to say it to.
            drop(self.say(&FromWorker::Bye));
        }
        self.context = None;
        if let Some(dealer) = self.dealer.take()
            && !dealer.is_up()
            && self.replies == 0
        {
            // There is nothing in it to wait for.
            dealer.abandon();
        }
    }

    /// Whether replies are owed.
    pub(super) fn owes(&self) -> bool {
        !self.owed.is_empty()
    }
}
