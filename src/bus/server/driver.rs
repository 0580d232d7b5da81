//! The task of one connection: reads, gives the codec the bytes, tells the sink, writes what is queued, keeps the timers.
//!
//! One run of the task reads what is there (64 KiB at a time), tells every message in it, and writes everything queued in
//! one system call: no channel, and no wake-up per message. No borrow is held while the sink is called.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep_until};

use super::listener::Server;
use super::peer::{Asked, Peer};
use crate::bus::stream::Stream;
use crate::sys;
use crate::zmtp::{Event, Session, SocketType, Violation};

/// What is read at once, and the size of the buffer that the connections of a shard share, in bytes.
const READ_BYTES: usize = 64 << 10;
/// With less room than this a new buffer is taken.
const READ_ROOM_MIN: usize = 16 << 10;
/// An unfinished frame up to this is copied out of the shared buffer; a longer one keeps its place and grows there.
const COPY_OUT_BYTES_MAX: usize = 16 << 10;
/// Reads in one turn of a task before others have theirs.
const READS_PER_TURN: usize = 4;
/// With so many bytes of PONGs unsent, nothing more is read from a peer that PINGs and does not read.
const URGENT_BYTES_MAX: usize = 64 << 10;
/// A timer that is told so late says more about this process than about the peer.
const LATE: Duration = Duration::from_millis(50);
/// After which the timer is told again; the runtime asks the system for what has arrived before that.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How a connection ended.
#[derive(Debug)]
enum Ended {
    /// The peer closed, or the connection broke.
    ByPeer(Option<io::Error>),
    /// It broke the protocol, or a limit.
    Violated(Violation),
    /// It did not answer our PING and nothing is owed to it or by it.
    Silent,
    /// The owner asked for an orderly close.
    Closed,
    /// The listener wants its place.
    Dropped,
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
enum Turn {
    Done,
    Again,
    /// Reading waits until the peer has taken what we answered.
    Unread,
}

/// What the task's timer stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    Off,
    /// The session's next deadline, or one that has moved away since.
    Deadline,
    /// It was late, and is set anew, a moment ahead, only to hear first what has come.
    LookAgain,
}

pub(super) struct Driver {
    stream: Stream,
    session: Session,
    peer: Rc<Peer>,
    server: Rc<Server>,
    /// An unfinished frame.
    partial: BytesMut,
    /// The last turn ended before all that was received had been told.
    leftover: bool,
    sleep: Pin<Box<Sleep>>,
    timer: Timer,
    /// Writing has failed: only reading goes on.
    unwritable: bool,
    told_lost: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Also when the task is cut by an abort; then nobody is told anything any more.
        self.peer.set_gone();
        self.server.forget(self.peer.id());
    }
}

impl Driver {
    pub(super) fn new(stream: Stream, peer: Rc<Peer>, server: Rc<Server>) -> Self {
        let now = Instant::now();
        let session = Session::new(server.role(), Arc::clone(server.protocol()), now.into_std());
        Self {
            stream,
            session,
            peer,
            server,
            partial: BytesMut::new(),
            leftover: false,
            sleep: Box::pin(sleep_until(now)),
            timer: Timer::Off,
            unwritable: false,
            told_lost: false,
        }
    }

    /// Serves the connection to its end.
    pub(super) async fn run(mut self) {
        let ended = poll_fn(|cx| self.poll(cx)).await;
        let deadline = Instant::now() + self.server.options().close_timeout;
        match ended {
            Ended::ByPeer(error) => {
                tracing::debug!(peer = %self.peer.id(), origin = %self.peer.origin(), ?error, "peer closed");
                self.tell_lost();
            }
            Ended::Dropped => self.tell_lost(),
            Ended::Silent => {
                tracing::info!(peer = %self.peer.id(), origin = %self.peer.origin(), "peer closed: silent after our PING");
                self.tell_lost();
            }
            Ended::Violated(violation) => {
                self.server.refuse(self.peer.origin(), &violation);
                self.tell_lost();
                if violation != Violation::HandshakeTimeout {
                    // What it did wrong is permanent more often than not: it may see our greeting and stop by itself.
                    let output = self.session.output();
                    self.peer.outbox.borrow_mut().push_urgent(output);
                    self.linger(deadline).await;
                }
            }
            Ended::Closed => {
                // What was queued before the close still goes out if there is time; what does not is told as lost.
                drop(tokio::time::timeout_at(deadline, poll_fn(|cx| self.poll_flush(cx))).await);
                self.tell_lost();
                self.linger(deadline).await;
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        match self.turn(cx) {
            Err(ended) => Poll::Ready(ended),
            Ok(Turn::Done | Turn::Unread) => Poll::Pending,
            Ok(Turn::Again) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Turn, Ended> {
        self.peer.task_runs(cx.waker());
        self.check_asked()?;
        let now = Instant::now();
        // Before any timer is looked at: the sign of life that it asks for may be here.
        let turn = self.receive(cx, now)?;
        self.check_asked()?;
        self.check_timer(cx, now)?;
        self.check_asked()?;
        if !self.unwritable
            && let Poll::Ready(Err(error)) = self.poll_flush(cx)
        {
            if self.server.role() == SocketType::Push {
                return Err(error.into());
            }
            // It is going, and what it said before is still to be heard: reading comes to the end of it.
            self.unwritable = true;
        }
        self.arm(cx);
        if turn == Turn::Unread && !self.must_write_first() {
            return Ok(Turn::Again);
        }
        Ok(turn)
    }

    fn check_asked(&self) -> Result<(), Ended> {
        match self.peer.asked() {
            Asked::Nothing => Ok(()),
            Asked::Close if self.peer.has_joined() => Err(Ended::Closed),
            Asked::Close | Asked::Drop => Err(Ended::Dropped),
        }
    }

    /// Acts on a deadline that has come. One that is told much too late means that this process was stopped or busy: then
    /// what has arrived meanwhile is heard first, since the runtime may know of the time and not yet of the bytes.
    fn check_timer(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Ended> {
        let deadline = self.sleep.deadline();
        if self.timer == Timer::Off || now < deadline {
            return Ok(());
        }
        if self.timer == Timer::Deadline && now - deadline >= LATE {
            self.set_timer(cx, Timer::LookAgain, now + LOOK_AGAIN);
            return Ok(());
        }
        self.timer = Timer::Off;
        self.expire(now)
    }

    fn expire(&mut self, now: Instant) -> Result<(), Ended> {
        if self.is_unheard() {
            // Its signs of life may lie unread.
            return Ok(());
        }
        while let Some(event) = self.session.handle_timeout(now.into_std())? {
            self.tell(event)?;
        }
        Ok(())
    }

    /// Makes sure that the task runs again when the session's next deadline has come. Deadlines that move away, as every
    /// byte received moves them, leave the timer alone: it finds nothing due and is set again.
    fn arm(&mut self, cx: &mut Context<'_>) {
        if self.is_unheard() {
            return;
        }
        let Some(deadline) = self.session.poll_timeout().map(Instant::from_std) else {
            return;
        };
        let must_set = match self.timer {
            Timer::Off => true,
            Timer::Deadline => deadline < self.sleep.deadline(),
            Timer::LookAgain => false,
        };
        if must_set {
            self.set_timer(cx, Timer::Deadline, deadline);
        }
    }

    fn set_timer(&mut self, cx: &mut Context<'_>, timer: Timer, deadline: Instant) {
        if !tokio::task::coop::has_budget_remaining() {
            // It would not take our waker. It is set in the next turn, which comes at once.
            self.timer = Timer::Off;
            cx.waker().wake_by_ref();
            return;
        }
        self.sleep.as_mut().reset(deadline);
        self.timer = timer;
        if self.sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    fn receive(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Turn, Ended> {
        if self.must_write_first() {
            return Ok(Turn::Unread);
        }
        if self.is_unheard() {
            return Ok(Turn::Done);
        }
        if !self.leftover {
            match self.stream.poll_read_ready(cx) {
                Poll::Pending => return Ok(Turn::Done),
                Poll::Ready(result) => result?,
            }
        }
        // A long unfinished frame has a buffer of its own; all others read into the one that they share.
        let own = self.partial.len() > COPY_OUT_BYTES_MAX;
        let mut input = if own {
            std::mem::take(&mut self.partial)
        } else {
            let mut shared = self.server.take_buffer();
            if shared.capacity() < self.partial.len() + READ_ROOM_MIN {
                shared.reserve(READ_BYTES);
            }
            shared.extend_from_slice(&self.partial);
            self.partial = BytesMut::new();
            shared
        };
        let result = self.receive_into(&mut input, cx, now);
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
            self.server.give_buffer(input);
        }
        result
    }

    fn receive_into(
        &mut self,
        input: &mut BytesMut,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Result<Turn, Ended> {
        let (mut told, mut reads) = (0, 0);
        self.leftover = true;
        loop {
            while let Some(event) = self.session.handle_bytes(input, now.into_std())? {
                self.tell(event)?;
                told += 1;
                if told >= self.server.options().messages_per_turn {
                    return Ok(Turn::Again);
                }
                // What is left over is told when the owner has room again, and wakes this task.
                if self.peer.is_gone() || self.is_unheard() {
                    return Ok(Turn::Done);
                }
            }
            if self.peer.is_silent() {
                self.peer.set_silent(self.session.is_silent());
            }
            self.flush_urgent();
            if self.must_write_first() {
                self.leftover = false;
                return Ok(Turn::Unread);
            }
            if reads >= READS_PER_TURN {
                return Ok(Turn::Again);
            }
            reads += 1;
            let room = input.capacity() - input.len();
            if room < READ_ROOM_MIN {
                // Grows with what has arrived, never by what the peer declared.
                let missing = self.session.need().saturating_sub(input.len());
                input.reserve(missing.clamp(READ_BYTES, READ_BYTES.max(input.len())));
            }
            match pin!(self.stream.read_buf(input)).poll(cx) {
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

    /// Tells the sink. Holds no borrow.
    fn tell(&mut self, event: Event) -> Result<(), Ended> {
        let sink = self.server.sink();
        match event {
            Event::Message(message) => sink.message(&self.peer, message),
            Event::Ready => {
                let framing = self.session.framing();
                self.peer.outbox.borrow_mut().set_framing(framing);
                self.peer.set_remote(self.session.remote().clone());
                self.server.handshake_done(self.peer.id());
                tracing::debug!(peer = %self.peer.id(), origin = %self.peer.origin(), version = %self.peer.version(), "peer joined");
                sink.joined(&self.peer);
            }
            Event::Subscribed => {
                self.peer.set_subscribed();
                sink.subscribed(&self.peer);
            }
            Event::Wants { topic, wanted } => {
                let max = self.server.protocol().unasked_bytes_max;
                if !self.peer.wants(topic, wanted, max) {
                    return Err(Violation::Unasked.into());
                }
                if wanted {
                    sink.subscribed(&self.peer);
                }
            }
            Event::Silent => {
                let works = matches!(self.server.role(), SocketType::Push | SocketType::Router);
                let idle = !works || (self.is_acknowledged() && !sink.is_awaited(&self.peer));
                if idle {
                    return Err(Ended::Silent);
                }
                // A busy worker answers no PING: killing it would lose its backlog.
                self.peer.set_silent(true);
            }
        }
        Ok(())
    }

    fn is_acknowledged(&self) -> bool {
        let outbox_empty = self.peer.outbox.borrow().is_empty();
        outbox_empty && sys::unacknowledged_bytes(self.stream.as_fd()).is_ok_and(|bytes| bytes == 0)
    }

    /// Whether the owner has no room for what the peer says. Handshakes go on.
    fn is_unheard(&self) -> bool {
        self.peer.has_joined() && self.server.sink().is_full()
    }

    /// Whether the peer has to take something before it is listened to again: answers to its PINGs, or to its question.
    fn must_write_first(&self) -> bool {
        let outbox = self.peer.outbox.borrow();
        let unanswered = self.server.role() == SocketType::Rep && outbox.messages() > 0;
        !self.unwritable && (outbox.urgent_bytes() > URGENT_BYTES_MAX || unanswered)
    }

    fn flush_urgent(&mut self) {
        let output = self.session.output();
        if self.unwritable {
            output.clear();
        } else if !output.is_empty() {
            self.peer.outbox.borrow_mut().push_urgent(output);
        }
    }

    /// Writes what is queued; pending when the socket takes no more.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flush_urgent();
        loop {
            if self.peer.outbox.borrow().is_empty() {
                if self.peer.is_blocked() {
                    // All may have been taken back: that does not mean that the socket takes more.
                    ready!(self.stream.poll_write_ready(cx))?;
                    self.peer.set_blocked(false);
                    if !self.peer.is_gone() {
                        self.server.sink().writable(&self.peer);
                    }
                    continue;
                }
                return Poll::Ready(Ok(()));
            }
            match self.poll_write(cx) {
                Poll::Ready(result) => {
                    let written = result?;
                    self.peer.outbox.borrow_mut().advance(written);
                }
                Poll::Pending => {
                    // Without budget left the runtime only wants its turn; the socket may well be free.
                    let budget = tokio::task::coop::has_budget_remaining();
                    if budget
                        && self.peer.outbox.borrow().messages() > 0
                        && !self.peer.set_blocked(true)
                    {
                        self.server.sink().blocked(&self.peer);
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let outbox = self.peer.outbox.borrow();
        let mut scratch = self.server.scratch();
        outbox.gather(&mut scratch);
        let stream = Pin::new(&mut self.stream);
        let written = ready!(outbox.write(&scratch, |slices| match slices {
            [one] => stream.poll_write(cx, one),
            many => stream.poll_write_vectored(cx, many),
        }))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        Poll::Ready(Ok(written))
    }

    /// Tells the sink once that a peer which had joined is lost.
    fn tell_lost(&mut self) {
        self.peer.set_gone();
        let unsent = self.peer.outbox.borrow_mut().take_all();
        if self.peer.has_joined() && !std::mem::replace(&mut self.told_lost, true) {
            self.server.sink().lost(&self.peer, unsent);
        }
    }

    /// Says that we will send no more, and reads until the peer has closed too: closing with unread bytes would reset the
    /// connection, which can destroy what the peer has not read yet.
    async fn linger(&mut self, deadline: Instant) {
        let polite = async {
            poll_fn(|cx| self.poll_flush(cx)).await?;
            self.stream.shutdown().await?;
            let mut dropped = BytesMut::with_capacity(8 << 10);
            while self.stream.read_buf(&mut dropped).await? > 0 {
                dropped.clear();
            }
            io::Result::Ok(())
        };
        if let Ok(Err(error)) = tokio::time::timeout_at(deadline, polite).await {
            tracing::debug!(peer = %self.peer.id(), %error, "closing");
        }
    }
}
