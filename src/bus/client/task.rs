//! The tasks behind a socket: one that connects, and connects again, or one that accepts; and the driving of each connection with its
//! clock. What is said on a connection is [`super::link`]'s business.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

use super::address::{self, CONNECT_TIMEOUT};
use super::link::{Ended, Link, Turn};
use super::shared::{Core, State};
use crate::bus::stream::Stream;

/// Whoever breaks the protocol is left alone for so long: it may be another program that has taken the port for a moment.
const VIOLATION_PAUSE: Duration = Duration::from_secs(1);

/// How long the other end is waited for to close too, when all is written: closing with unread bytes would reset the connection, which
/// can destroy what it has not read yet.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// A timer that is told so late says more about this process than about the other end.
const LATE: Duration = Duration::from_millis(50);
/// After which the timer is told again; the runtime asks the system for what has arrived before that.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Connects, serves the connection, and connects again, until the owner is gone.
pub(super) async fn keep_connected(alive: Alive) {
    let Alive(core) = &alive;
    let mut told = None;
    loop {
        let opened = tokio::select! {
            biased;
            () = is_over(core) => break,
            opened = timeout(CONNECT_TIMEOUT, address::open(&core.endpoint)) => opened,
        };
        let mut pause = core.pause;
        match opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                let (ended, had_joined) = drive(core, stream).await;
                if had_joined {
                    told = None;
                }
                if matches!(ended, Ended::Violated(_)) {
                    pause = VIOLATION_PAUSE;
                }
                tell_ended(core, &ended, &mut told);
                if matches!(ended, Ended::Closed) || (had_joined && core.is_once) {
                    break;
                }
            }
            Err(error) => {
                tracing::debug!(endpoint = %core.endpoint, %error, "connecting");
            }
        }
        tokio::select! {
            biased;
            () = is_over(core) => break,
            () = sleep(pause) => {}
        }
    }
}

/// Says once what is wrong with the other end, until that changes.
pub(super) fn tell_ended(core: &Core, ended: &Ended, told: &mut Option<String>) {
    let endpoint = &core.endpoint;
    match ended {
        Ended::Violated(violation) => {
            let why = violation.to_string();
            if told.as_ref() == Some(&why) {
                tracing::debug!(%endpoint, "connection given up: {why}");
            } else {
                tracing::warn!(%endpoint, "connection given up, trying again: {why}");
                *told = Some(why);
            }
        }
        Ended::Silent => {
            tracing::warn!(%endpoint, "connection given up, trying again: no answer to our PING");
        }
        Ended::ByPeer(error) => tracing::debug!(%endpoint, ?error, "connection lost"),
        Ended::Closed => {}
    }
}

/// Completes when there is no use in connecting any more.
pub(super) async fn is_over(core: &Core) {
    loop {
        let over = core.over.notified();
        let (is_over, until) = core.with(|state| (state.hub.is_over(), state.hub.closing));
        if is_over {
            return;
        }
        match until {
            Some(until) => drop(tokio::time::timeout_at(until, over).await),
            None => over.await,
        }
    }
}

/// Tells the owner, when the runtime ends before him, that nobody looks after his socket any more.
pub(super) struct Alive(pub(super) Arc<Core>);

impl Drop for Alive {
    fn drop(&mut self) {
        let Self(core) = self;
        core.with(|state| {
            let hub = &mut state.hub;
            if hub.is_over() || (core.is_once && hub.connections > 0) {
                return;
            }
            hub.is_dead = true;
            hub.call_owner();
            hub.call_waiting();
        });
    }
}

/// Serves one connection to its end. Says whether its handshake was done.
pub(super) async fn drive(core: &Arc<Core>, stream: Stream) -> (Ended, bool) {
    Attached::new(core, stream).drive().await
}

/// A connection among those of its socket, for as long as its task lives.
pub(super) struct Attached {
    core: Arc<Core>,
    id: u64,
}

impl Attached {
    /// From here on it belongs to the socket.
    pub(super) fn new(core: &Arc<Core>, stream: Stream) -> Self {
        let id = core.with(|State { links, hub }| {
            let id = hub.next_link();
            links.push(Link::new(id, stream, core));
            id
        });
        Self {
            core: Arc::clone(core),
            id,
        }
    }

    /// Serves it to its end. Says whether its handshake was done.
    pub(super) async fn drive(self) -> (Ended, bool) {
        let mut clock = Clock::new();
        let ended = poll_fn(|cx| poll(&self.core, self.id, &mut clock, cx)).await;
        let Some(link) = take_out(&self.core, self.id) else {
            return (ended, false);
        };
        let had_joined = link.has_joined();
        if matches!(ended, Ended::Closed) {
            let unsent = link.queued();
            if unsent > 0 {
                tracing::warn!(endpoint = %self.core.endpoint, unsent, "the other end does not take the last messages, they are dropped");
            } else if had_joined {
                farewell(link.into_stream()).await;
            }
        }
        (ended, had_joined)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        take_out(&self.core, self.id);
    }
}

fn take_out(core: &Core, id: u64) -> Option<Link> {
    core.with(|State { links, hub }| {
        let place = links.iter().position(|link| link.id == id)?;
        let link = links.remove(place);
        link.leave(hub, core);
        Some(link)
    })
}

/// Says that we send no more, and waits a moment for the other end to close too.
async fn farewell(mut stream: Stream) {
    let polite = async {
        stream.shutdown().await?;
        let mut dropped = [0; 4096];
        while stream.read(&mut dropped).await? > 0 {}
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = timeout(CLOSE_TIMEOUT, polite).await {
        tracing::debug!(%error, "closing");
    }
}

/// What the task's timer stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    Off,
    /// The next deadline, or one that has moved away since.
    Deadline,
    /// It was late, and is set anew, a moment ahead, only to hear first what has come.
    LookAgain,
}

/// The clock of one connection.
struct Clock {
    sleep: Pin<Box<Sleep>>,
    timer: Timer,
}

impl Clock {
    fn new() -> Self {
        Self {
            sleep: Box::pin(sleep_until(Instant::now())),
            timer: Timer::Off,
        }
    }

    /// Whether a deadline has come. One that is told much too late means that this process was stopped or busy: then what has
    /// arrived meanwhile is heard first.
    fn has_struck(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let deadline = self.sleep.deadline();
        if self.timer == Timer::Off || now < deadline {
            return false;
        }
        if self.timer == Timer::Deadline && now - deadline >= LATE {
            self.set(cx, Timer::LookAgain, now + LOOK_AGAIN);
            return false;
        }
        self.timer = Timer::Off;
        true
    }

    /// Makes sure that the task runs again then. Deadlines that move away, as every byte received moves them, leave the timer alone:
    /// it finds nothing due and is set again.
    fn arm(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) {
        let Some(deadline) = deadline else {
            return;
        };
        let must_set = match self.timer {
            Timer::Off => true,
            Timer::Deadline => deadline < self.sleep.deadline(),
            Timer::LookAgain => false,
        };
        if must_set {
            self.set(cx, Timer::Deadline, deadline);
        }
    }

    fn set(&mut self, cx: &mut Context<'_>, timer: Timer, deadline: Instant) {
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
}

/// One turn of a connection's task.
fn poll(core: &Core, id: u64, clock: &mut Clock, cx: &mut Context<'_>) -> Poll<Ended> {
    let turn = core.with(|State { links, hub }| {
        let Some(link) = links.iter_mut().find(|link| link.id == id) else {
            return Err(Ended::Closed);
        };
        // Before the timer is looked at: the sign of life that it asks for may be here.
        let turn = link.run(hub, core, cx)?;
        let now = Instant::now();
        if clock.has_struck(cx, now) {
            link.expire(hub, core, now)?;
        }
        link.flush(hub, core, cx)?;
        if hub.closing.is_some_and(|until| now >= until) {
            return Err(Ended::Closed);
        }
        let deadlines = link.deadline().into_iter().chain(hub.closing);
        clock.arm(cx, deadlines.min());
        Ok(turn)
    });
    match turn {
        Err(ended) => Poll::Ready(ended),
        Ok(Turn::Done) => Poll::Pending,
        Ok(Turn::Again) => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }
}
