//! One connection of a socket: its codec, what is queued for it, what it has said. Whoever holds the socket's lock may let it read and
//! write; nearly always that is its task. It never connects, waits or sleeps.

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::time::Instant;

use super::shared::{Core, Ear, Hub, QUEUED_BYTES_MAX, Says};
use crate::bus::outbox::{Outbox, Scratch};
use crate::bus::outgoing::{Entry, Outgoing};
use crate::bus::stream::Stream;
use crate::bus::{FEED, SERVER_PROPERTY};
use crate::zmtp::{Event, Message, Session, SocketType, Violation};

/// What is read at once, and the size of the buffer that the connections of a thread share, in bytes.
const READ_BYTES: usize = 64 << 10;
/// With less room than this a new buffer is taken.
const READ_ROOM_MIN: usize = 16 << 10;
/// Frames up to this are copied out of the shared buffer, so that a small one that is kept for long does not keep all of it, and
/// so is an unfinished one; a longer one keeps its place.
const COPY_OUT_BYTES_MAX: usize = 16 << 10;
/// Reads in one turn before others have theirs.
const READS_PER_TURN: usize = 4;
/// With so many bytes of PONGs unsent, nothing more is read from a server that PINGs and does not read.
const URGENT_BYTES_MAX: usize = 64 << 10;
/// Frames of a message of DEALER and REQ that are kept; nobody has a use for more, and a peer could send any number.
const FRAMES_MAX: usize = 16;
/// Bytes of topics that one connection may subscribe to, each with a little for itself.
const TOPICS_BYTES_MAX: usize = 1 << 20;
const TOPIC_BYTES: usize = 64;

/// So many messages are written without waiting for the end of the turn: with all of a turn at once, both ends would wait for each
/// other in turns.
const GATHERED_MAX: usize = 16;

/// What is queued should have been written by the task after so long: longer than a turn of the loop that answers a batch, and short
/// beside the work of one who keeps the runtime busy.
const OVERDUE: Duration = Duration::from_micros(500);

thread_local! {
    static BUFFER: Cell<BytesMut> = Cell::default();
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The other end closed, or the connection broke.
    ByPeer(Option<io::Error>),
    /// It broke the protocol, or a limit.
    Violated(Violation),
    /// It did not answer our PING.
    Silent,
    /// Ours is gone, and all is written or had its time.
    Closed,
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::ByPeer(Some(error))
    }
}

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::Violated(violation)
    }
}

/// Whether the task should run again at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Done,
    Again,
}

/// One connection.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and most combinations occur"
)]
pub(super) struct Link {
    pub(super) id: u64,
    stream: Stream,
    session: Session,
    outbox: Outbox,
    /// An unfinished frame.
    partial: BytesMut,
    /// The last turn ended before all that was received had been told.
    leftover: bool,
    /// Nothing is read because the owner has no room.
    unheard: bool,
    /// The kernel takes no more.
    blocked: bool,
    /// Writing has failed: only reading goes on.
    unwritable: bool,
    /// Found out by somebody else than its task.
    ended: Option<Ended>,
    /// When what is queued began to wait for the task.
    queued_since: Instant,
    waker: Option<Waker>,
    /// The task has been woken and has not run yet.
    woken: bool,
    /// The handshake was done.
    joined: bool,
    says: Says,
    topics: Vec<Bytes>,
}

impl Link {
    /// A connection that was made just now. Its task writes the greeting.
    pub(super) fn new(id: u64, stream: Stream, core: &Core) -> Self {
        let now = Instant::now();
        Self {
            id,
            stream,
            session: Session::new(core.role, Arc::clone(&core.protocol), now.into_std()),
            outbox: Outbox::new(core.queued_max, QUEUED_BYTES_MAX),
            partial: BytesMut::new(),
            leftover: false,
            unheard: false,
            blocked: false,
            unwritable: false,
            ended: None,
            queued_since: now,
            waker: None,
            woken: false,
            joined: false,
            says: Says::Nothing,
            topics: Vec::new(),
        }
    }

    /// What the other end subscribes to.
    pub(super) fn topics(&self) -> &[Bytes] {
        &self.topics
    }

    /// Whether it wants a message that begins so.
    pub(super) fn wants(&self, message: &[u8]) -> bool {
        self.topics.iter().any(|topic| message.starts_with(topic))
    }

    /// Whether the handshake is done.
    pub(super) fn is_ready(&self) -> bool {
        self.session.is_ready()
    }

    /// Whether a message of so many bytes may be queued.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.outbox.has_room(bytes)
    }

    /// Messages whose last byte was not given to the kernel.
    pub(super) fn queued(&self) -> usize {
        self.outbox.messages()
    }

    /// Whether the handshake was ever done.
    pub(super) fn has_joined(&self) -> bool {
        self.joined
    }

    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Queues a message of one frame, and sees that it is written. For connections whose handshake is done.
    pub(super) fn send(&mut self, message: Bytes, hub: &mut Hub, core: &Core) {
        let outgoing = Outgoing::from(message);
        self.push(|outbox| Entry::single(outbox.framing(), outgoing, 0));
        self.see_to_writing(hub, core);
    }

    /// The same with a message of several frames, of which only the last is not copied.
    pub(super) fn send_frames(
        &mut self,
        before: &[&[u8]],
        last: Bytes,
        hub: &mut Hub,
        core: &Core,
    ) {
        self.push(|outbox| Entry::behind(outbox.framing(), before, last.into(), 0));
        self.see_to_writing(hub, core);
    }

    fn push(&mut self, entry: impl FnOnce(&Outbox) -> Entry) {
        if !self.unwritable {
            let entry = entry(&self.outbox);
            self.outbox.push(entry);
        }
    }

    fn see_to_writing(&mut self, hub: &mut Hub, core: &Core) {
        // A blocked task waits for the socket, and would find it full.
        if self.blocked {
            return;
        }
        let queued = self.outbox.messages();
        if (core.writes_directly && queued == 1) || queued >= GATHERED_MAX {
            self.write_now(hub, core);
        } else if queued == 1 {
            self.queued_since = Instant::now();
        }
        if !self.outbox.is_empty() {
            self.wake();
        }
    }

    /// Writes what has waited for its task for too long.
    pub(super) fn write_overdue(&mut self, hub: &mut Hub, core: &Core) {
        if !self.blocked && self.outbox.messages() > 0 && self.queued_since.elapsed() >= OVERDUE {
            self.write_now(hub, core);
        }
    }

    /// Lets its task run.
    pub(super) fn wake(&mut self) {
        if !std::mem::replace(&mut self.woken, true)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
        }
    }

    /// The owner has room again.
    pub(super) fn hear_again(&mut self) {
        if std::mem::take(&mut self.unheard) {
            self.wake();
        }
    }

    /// When [`Link::expire`] has to be called next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // Of one that is not read, signs of life may lie unread.
        if self.unheard {
            return None;
        }
        self.session.poll_timeout().map(Instant::from_std)
    }

    /// Acts on a deadline that has come.
    pub(super) fn expire(&mut self, hub: &mut Hub, core: &Core, now: Instant) -> Result<(), Ended> {
        while !self.unheard
            && let Some(event) = self.session.handle_timeout(now.into_std())?
        {
            self.tell(event, hub, core)?;
        }
        Ok(())
    }

    /// The task's turn: reads what is there, tells of it, and writes what is queued.
    pub(super) fn run(
        &mut self,
        hub: &mut Hub,
        core: &Core,
        cx: &mut Context<'_>,
    ) -> Result<Turn, Ended> {
        self.woken = false;
        match &self.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => self.waker = Some(cx.waker().clone()),
        }
        if let Some(ended) = self.ended.take() {
            return Err(ended);
        }
        if hub.closing.is_some() && core.role == SocketType::Pull {
            return Err(Ended::Closed);
        }
        self.receive(hub, core, Some(cx))
    }

    /// Writes what is queued, as far as the socket takes it; its task is told when it takes more.
    pub(super) fn flush(
        &mut self,
        hub: &mut Hub,
        core: &Core,
        cx: &mut Context<'_>,
    ) -> Result<(), Ended> {
        self.write(hub, core, Some(cx))?;
        let has_more = !self.outbox.is_empty() || (!self.joined && !hub.early.is_empty());
        if hub.closing.is_some() && !has_more {
            return Err(Ended::Closed);
        }
        Ok(())
    }

    /// Reads and writes what can be at once, for whoever has the lock and does not want to wait for the task.
    pub(super) fn run_now(&mut self, hub: &mut Hub, core: &Core) {
        if self.ended.is_none()
            && let Err(ended) = self.receive(hub, core, None)
        {
            self.end(ended);
        }
        self.write_now(hub, core);
    }

    /// Writes what can be at once.
    pub(super) fn write_now(&mut self, hub: &mut Hub, core: &Core) {
        if self.ended.is_none()
            && let Err(error) = self.write(hub, core, None)
        {
            self.end(error);
        }
    }

    /// Ends our direction, when all that has arrived is received; says whether it has.
    pub(super) fn end_sending(&mut self, hub: &mut Hub, core: &Core) -> io::Result<bool> {
        self.run_now(hub, core);
        let is_drained = hub.messages.is_empty() && self.partial.is_empty();
        if self.ended.is_some() || !self.is_ready() || !is_drained {
            return Ok(false);
        }
        self.stream.end_sending()?;
        hub.is_ended = true;
        Ok(true)
    }

    /// For its task to find.
    fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.wake();
    }

    fn receive(
        &mut self,
        hub: &mut Hub,
        core: &Core,
        cx: Option<&mut Context<'_>>,
    ) -> Result<Turn, Ended> {
        if self.outbox.urgent_bytes() > URGENT_BYTES_MAX && !self.unwritable {
            return Ok(Turn::Done);
        }
        if self.is_unheard(hub, core) {
            return Ok(Turn::Done);
        }
        // A long unfinished frame has a buffer of its own; all others read into the one that they share.
        let own = self.partial.len() > COPY_OUT_BYTES_MAX;
        let mut input = if own {
            std::mem::take(&mut self.partial)
        } else {
            let mut shared = BUFFER.take();
            if shared.capacity() < self.partial.len() + READ_ROOM_MIN {
                shared.reserve(READ_BYTES);
            }
            shared.extend_from_slice(&self.partial);
            self.partial = BytesMut::new();
            shared
        };
        let result = self.receive_into(&mut input, hub, core, cx);
        if input.len() > COPY_OUT_BYTES_MAX {
            self.partial = if own {
                std::mem::take(&mut input)
            } else {
                input.split()
            };
        } else if !input.is_empty() {
            self.partial = BytesMut::from(&input[..]);
            input.clear();
        }
        if !own {
            BUFFER.set(input);
        }
        result
    }

    fn receive_into(
        &mut self,
        input: &mut BytesMut,
        hub: &mut Hub,
        core: &Core,
        mut cx: Option<&mut Context<'_>>,
    ) -> Result<Turn, Ended> {
        let now = Instant::now();
        let mut reads = 0;
        let mut looks = self.leftover;
        self.leftover = true;
        loop {
            if looks {
                while let Some(event) = self.session.handle_bytes(input, now.into_std())? {
                    self.tell(event, hub, core)?;
                    // What is left over is told when the owner has room again, and wakes the task.
                    if self.is_unheard(hub, core) {
                        return Ok(Turn::Done);
                    }
                }
                self.take_output();
            }
            looks = true;
            if self.outbox.urgent_bytes() > URGENT_BYTES_MAX && !self.unwritable {
                self.leftover = false;
                return Ok(Turn::Again);
            }
            if reads >= READS_PER_TURN {
                return Ok(Turn::Again);
            }
            reads += 1;
            let room = input.capacity() - input.len();
            if room < READ_ROOM_MIN {
                // Grows with what has arrived, never by what the server declared.
                let missing = self.session.need().saturating_sub(input.len());
                input.reserve(missing.clamp(READ_BYTES, READ_BYTES.max(input.len())));
            }
            match self.read(input, cx.as_deref_mut()) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(Ended::ByPeer(None)),
                Poll::Ready(result) => {
                    result?;
                }
            }
        }
        self.leftover = false;
        Ok(Turn::Done)
    }

    fn read(
        &mut self,
        input: &mut BytesMut,
        cx: Option<&mut Context<'_>>,
    ) -> Poll<io::Result<usize>> {
        if let Some(cx) = cx {
            return pin!(self.stream.read_buf(input)).poll(cx);
        }
        let before = input.len();
        input.resize(before + READ_ROOM_MIN, 0);
        loop {
            let read = self.stream.read_now(&mut input[before..]);
            input.truncate(before + read.as_ref().copied().unwrap_or(0));
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    input.resize(before + READ_ROOM_MIN, 0);
                }
                read => return Poll::Ready(read),
            }
        }
    }

    /// Whether the owner has no room for what comes. Handshakes go on.
    fn is_unheard(&mut self, hub: &Hub, core: &Core) -> bool {
        self.unheard = hub.closing.is_none() && self.is_ready() && core.is_full(hub);
        self.unheard
    }

    fn tell(&mut self, event: Event, hub: &mut Hub, core: &Core) -> Result<(), Ended> {
        match event {
            Event::Message(message) => receive_message(message, hub, core),
            Event::Ready => self.join(hub, core),
            Event::Wants { topic, wanted } => return self.note_wish(topic, wanted, hub, core),
            Event::Silent => return Err(Ended::Silent),
            Event::Subscribed => {}
        }
        Ok(())
    }

    fn join(&mut self, hub: &mut Hub, core: &Core) {
        let remote = self.session.remote();
        tracing::debug!(endpoint = %core.endpoint, version = %remote.version, "connected");
        let mut properties = remote.properties.iter();
        let server = properties
            .find(|property| {
                property
                    .name
                    .eq_ignore_ascii_case(SERVER_PROPERTY.as_bytes())
            })
            .map(|property| &property.value[..]);
        self.says = match server {
            Some(value) if value == FEED.as_bytes() => Says::Feed,
            Some(_) => Says::Lurcher,
            None => Says::Nothing,
        };
        self.outbox.set_framing(self.session.framing());
        self.joined = true;
        hub.joined();
        if core.role != SocketType::Xpub {
            self.send_early(hub);
        }
    }

    /// Queues what has waited for somebody to come.
    fn send_early(&mut self, hub: &mut Hub) {
        for frames in hub.early.drain(..) {
            if self.session.is_ready()
                && let Some((last, before)) = frames.split_last()
            {
                let before: Vec<&[u8]> = before.iter().map(|frame| &frame[..]).collect();
                let last = Outgoing::from(last.clone());
                self.push(|outbox| Entry::behind(outbox.framing(), &before, last, 0));
            }
        }
    }

    fn note_wish(
        &mut self,
        topic: Bytes,
        wanted: bool,
        hub: &mut Hub,
        core: &Core,
    ) -> Result<(), Ended> {
        let known = self.topics.iter().position(|known| *known == topic);
        if !wanted {
            if let Some(known) = known {
                self.topics.remove(known);
                if self.topics.is_empty() {
                    hub.lost_subscriptions();
                }
            }
            return Ok(());
        }
        if known.is_none() {
            self.topics.push(topic);
            let cost = |topic: &Bytes| topic.len().saturating_add(TOPIC_BYTES);
            if self.topics.iter().map(cost).sum::<usize>() > TOPICS_BYTES_MAX {
                self.topics.pop();
                return Err(Violation::Unasked.into());
            }
        }
        let is_first = known.is_none() && self.topics.len() == 1;
        hub.heard_subscription(is_first, self.says);
        for frames in std::mem::take(&mut hub.early) {
            if let Some(message) = frames.into_iter().next()
                && self.wants(&message)
            {
                self.push(|outbox| Entry::single(outbox.framing(), message.into(), 0));
            }
        }
        self.see_to_writing(hub, core);
        Ok(())
    }

    fn take_output(&mut self) {
        let output = self.session.output();
        if self.unwritable {
            output.clear();
        } else if !output.is_empty() {
            self.outbox.push_urgent(output);
        }
    }

    fn write(
        &mut self,
        hub: &mut Hub,
        core: &Core,
        mut cx: Option<&mut Context<'_>>,
    ) -> Result<(), Ended> {
        self.take_output();
        if self.unwritable {
            return Ok(());
        }
        let before = self.outbox.messages();
        while !self.outbox.is_empty() {
            match self.write_some(cx.as_deref_mut()) {
                Poll::Ready(Ok(written)) => {
                    self.outbox.advance(written);
                    self.blocked = false;
                }
                Poll::Ready(Err(error)) if core.role == SocketType::Xpub => {
                    return Err(error.into());
                }
                Poll::Ready(Err(_)) => {
                    // It is going, and what it said before is still to be heard: reading comes to the end of it.
                    self.unwritable = true;
                    break;
                }
                Poll::Pending => {
                    // Without budget left the runtime only wants its turn, and calls the task again.
                    self.blocked = cx.is_some() && tokio::task::coop::has_budget_remaining();
                    break;
                }
            }
        }
        // Half of it, so that those who wait are not called for every message.
        let after = self.outbox.messages();
        if after < before && after <= core.queued_max / 2 {
            if hub.awaited > 0 {
                hub.call_waiting();
            }
            if std::mem::take(&mut hub.owner_wants_room) {
                hub.has_news = true;
                hub.call_owner();
            }
        }
        Ok(())
    }

    fn write_some(&mut self, cx: Option<&mut Context<'_>>) -> Poll<io::Result<usize>> {
        let Self { stream, outbox, .. } = self;
        SCRATCH.with_borrow_mut(|scratch| {
            outbox.gather(scratch);
            let written = match cx {
                Some(cx) => outbox.write(scratch, |slices| match slices {
                    [one] => Pin::new(stream).poll_write(cx, one),
                    many => Pin::new(stream).poll_write_vectored(cx, many),
                }),
                None => match outbox.write(scratch, |slices| stream.write_now(slices)) {
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                        ) =>
                    {
                        return Poll::Pending;
                    }
                    written => Poll::Ready(written),
                },
            };
            match written {
                Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => written,
            }
        })
    }

    /// It is gone: what follows from that for the socket.
    pub(super) fn leave(&self, hub: &mut Hub, core: &Core) {
        if !self.topics.is_empty() {
            hub.lost_subscriptions();
        }
        if self.joined {
            hub.lost();
        }
        if core.role == SocketType::Xpub && hub.ear != Ear::Listens {
            // It was meant for the clients that the server had.
            hub.early.clear();
        }
    }
}

/// Keeps a message for the owner.
fn receive_message(message: Message, hub: &mut Hub, core: &Core) {
    // Nobody is there to receive it.
    if hub.closing.is_some() {
        return;
    }
    if core.role == SocketType::Pull {
        let Ok(message) = message.into_single() else {
            // Nobody who speaks this protocol sends several parts.
            tracing::debug!(endpoint = %core.endpoint, "dropped a message in several parts");
            return;
        };
        hub.received_bytes += message.len();
        hub.messages.push_back(copied(message));
    } else {
        let frames = message.frames().take(FRAMES_MAX);
        let frames: Vec<Bytes> = frames.map(|frame| copied(frame.clone())).collect();
        hub.received_bytes += frames.iter().map(Bytes::len).sum::<usize>();
        hub.talks.push_back(frames);
        hub.has_news = true;
    }
    hub.call_owner();
}

/// A frame that does not keep a large buffer for a few bytes.
fn copied(frame: Bytes) -> Bytes {
    if frame.len() <= COPY_OUT_BYTES_MAX {
        Bytes::copy_from_slice(&frame)
    } else {
        frame
    }
}
