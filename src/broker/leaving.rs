//! How a server is left without losing what it has pushed.
//!
//! A Lurcher is asked for no more requests, says when it has pushed its last one, and goes on telling of those that it has
//! pushed. Nothing can be said to a Mongrel2: the connection is ended in our direction, which its libzmq takes for its end; it
//! writes nothing more, and what it had written can still be received.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::bus::client::{Publisher, Receiver};
use crate::wire::reply;

/// What stands before a message to a server that subscribes to everything: it means nothing.
const ANY_SENDER: &[u8] = b"lurcher";

/// A Mongrel2 is left when it has said nothing for so long: its libzmq looks for news of connections once in a millisecond at most
/// when it sends, and what it deals to ours in that time is lost. Requests come in bunches, so a moment of silence is a good one.
pub(super) const LULL: Duration = Duration::from_millis(5);

/// So long such a moment is waited for under unbroken load; then any moment is as good as another.
const LULL_WITHIN: Duration = Duration::from_secs(1);

/// How a server was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// It has said that it pushes no more requests, or time was up: its connection may stay.
    Told,
    /// Its connection has ended.
    Ended,
}

/// A server that is being left.
pub(super) struct Leaving {
    token: String,
    since: Instant,
    until: Instant,
    /// When something was last received.
    heard: Instant,
    /// The subscription on which it was asked: a new one means that it has to be asked again.
    asked_on: Option<u64>,
    is_ended: bool,
    /// Connections lost when it was last looked at.
    losses: u64,
}

/// What the sockets towards one server have in common, by which a Lurcher pairs them.
pub(super) fn token() -> String {
    // Without randomness: as unlikely to be another's as it can be made. It is no secret.
    let random = || getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
    format!("{:016x}{:016x}", random(), random())
}

/// What may stand before a message to a server itself: what it has subscribed to.
pub(super) fn sender_for(publisher: &Publisher) -> Vec<u8> {
    let topic = publisher.topic().filter(|topic| !topic.is_empty());
    topic.unwrap_or_else(|| ANY_SENDER.to_vec())
}

impl Leaving {
    pub(super) fn new(token: String, until: Instant, receiver: &mut Receiver) -> Self {
        let now = Instant::now();
        Self {
            token,
            since: now,
            until,
            heard: now,
            asked_on: None,
            is_ended: false,
            losses: receiver.losses(),
        }
    }

    /// The latest moment to receive anything of a server that does not stop.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Something was received.
    pub(super) fn note_heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Does what can be done now; to be called whenever something was received, and now and then. `drained`: the server has said so.
    pub(super) fn advance(
        &mut self,
        receiver: &mut Receiver,
        publisher: &Publisher,
        drained: bool,
    ) -> Option<Left> {
        if drained {
            return Some(Left::Told);
        }
        let now = Instant::now();
        let lulls =
            now.duration_since(self.heard) >= LULL || now.duration_since(self.since) >= LULL_WITHIN;
        if publisher.is_lurcher() {
            self.ask(publisher);
        } else if !self.is_ended && lulls {
            match receiver.end_sending() {
                Ok(ended) => self.is_ended = ended,
                Err(error) => {
                    debug!(%error, requests = %receiver.endpoint(), "ending a connection");
                }
            }
        }
        if receiver.is_connected() == Some(false) {
            return Some(Left::Ended);
        }
        let losses = receiver.losses();
        if losses != self.losses {
            // It was lost and is there again before anybody could look: what is written to it now has to be received too.
            self.losses = losses;
            self.is_ended = false;
        }
        if now >= self.until {
            warn!(requests = %receiver.endpoint(), "server goes on pushing requests: not waiting any longer");
            return Some(Left::Ended);
        }
        None
    }

    fn ask(&mut self, publisher: &Publisher) {
        let subscription = publisher.subscription();
        if subscription.is_none() || subscription == self.asked_on {
            return;
        }
        let mut message = Vec::new();
        reply::encode_drain(&sender_for(publisher), &self.token, &mut message);
        match publisher.try_send(message.into()) {
            Ok(None) => self.asked_on = subscription,
            // It is behind with what was sent before.
            Ok(Some(_)) => {}
            Err(error) => {
                debug!(%error, replies = %publisher.endpoint(), "asking for no more requests");
            }
        }
    }
}
