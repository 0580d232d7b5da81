//! The way back to one server: every message to it passes here, so that what its clients have outstanding is known, and those
//! who watch the handler are told. Where nobody asks for either, a message passes untouched.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::broker::Link;
use super::flow::{Flows, Outstanding, Receiving};
use super::observer::{Answering, Endings, Observer, Watch};
use crate::bus::client::{self, Sent};
use crate::endpoint::Endpoint;
use crate::wire::request::Kind;
use crate::wire::{self, reply};

/// Idents of handler entries that are told apart behind one address: more share a number. A server has one for each address.
const SENDERS_MAX: usize = 1_000;

/// Targets that are looked at in one message. Servers take 128 by default.
const TARGETS_MAX: usize = 65_536;

/// One client connection among those of a server: the number of its ident, and its id.
pub(super) type Key = (usize, u32);

/// What leads to clients.
#[derive(Debug)]
pub(super) enum Way {
    /// A server's SUB.
    Server(client::Publisher),
    /// A broker, whose servers are its own business.
    Broker(Link),
}

/// The way of replies to one server or broker, and what is known of the clients there.
#[derive(Debug)]
pub(super) struct Publisher {
    way: Way,
    senders: Mutex<Vec<Bytes>>,
    flows: Flows,
    watch: Option<Watch>,
}

impl Publisher {
    pub(super) fn new(
        way: Way,
        observer: Option<Arc<dyn Observer>>,
        receiving: Arc<Receiving>,
    ) -> Self {
        Self {
            way,
            senders: Mutex::default(),
            flows: Flows::new(receiving),
            watch: observer.map(Watch::new),
        }
    }

    /// What its clients have taken.
    pub(super) fn flows(&self) -> &Flows {
        &self.flows
    }

    /// The name of a client connection in here.
    pub(super) fn key(&self, sender: &[u8], id: wire::ConnId) -> Key {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        let known = senders.iter().position(|known| known == sender);
        let number = known.unwrap_or_else(|| {
            let number = senders.len();
            if number < SENDERS_MAX {
                // A copy, so that the message is not kept.
                senders.push(Bytes::copy_from_slice(sender));
            }
            number
        });
        (number, id.0)
    }

    /// Takes note of a message that the server has sent.
    pub(super) fn received(&self, message: &wire::request::Request, kind: Kind<'_>) {
        let key = || self.key(&message.sender, message.conn_id);
        self.flows.received(message, kind, key);
        if let Some(watch) = &self.watch {
            watch.received(key(), message, kind);
        }
    }

    /// As [`client::Publisher::send`].
    pub(super) async fn send(&self, message: Vec<u8>) -> io::Result<Sent> {
        let passing = self.passing(&message);
        self.send_passing(message, passing).await
    }

    /// Sends a whole response of this status to one client, with so many bytes of body, if that can be done without waiting.
    pub(super) fn send_response(
        &self,
        message: Vec<u8>,
        (sender, id): (&[u8], wire::ConnId),
        (status, bytes): (u16, u64),
    ) -> io::Result<Option<Blocked>> {
        let mut known = match &self.watch {
            Some(watch) if !self.flows.are_counted() => {
                watch.answering(self.key(sender, id), status, bytes)
            }
            _ => None,
        };
        let passing = match &known {
            Some(_) => None,
            None => self.passing(&message),
        };
        let sent = match &self.way {
            Way::Server(socket) => socket.try_send(message.into()),
            Way::Broker(_) => Ok(Some(message.into())),
        };
        let message = sent.inspect_err(|_| {
            // Dropped untold: it was not sent.
            drop(known.take().map(Answering::wait));
        })?;
        match (message, known, passing) {
            (Some(message), known, passing) => {
                let endings = known.map(Answering::wait);
                let passing = passing.or_else(|| endings.map(Passing::ending));
                return Ok(Some(Blocked { message, passing }));
            }
            (None, Some(known), _) => known.sent(),
            (None, None, Some(passing)) => passing.done(Sent::Queued),
            (None, None, None) => {}
        }
        Ok(None)
    }

    /// Sends what had to wait.
    pub(super) async fn send_blocked(&self, blocked: Blocked) -> io::Result<Sent> {
        self.send_passing(blocked.message, blocked.passing).await
    }

    async fn send_passing(
        &self,
        message: impl Into<Bytes>,
        passing: Option<Passing>,
    ) -> io::Result<Sent> {
        let sent = match &self.way {
            Way::Server(socket) => socket.send(message).await?,
            Way::Broker(link) => link.send_all([message]).await?,
        };
        if let Some(passing) = passing {
            passing.done(sent);
        }
        Ok(sent)
    }

    /// As [`client::Publisher::send_all`].
    pub(super) async fn send_all(
        &self,
        messages: impl IntoIterator<Item = Vec<u8>>,
    ) -> io::Result<Sent> {
        let messages: Vec<_> = messages.into_iter().collect();
        let passing: Vec<_> = messages
            .iter()
            .filter_map(|message| self.passing(message))
            .collect();
        let sent = match &self.way {
            Way::Server(socket) => socket.send_all(messages).await?,
            Way::Broker(link) => link.send_all(messages).await?,
        };
        for passing in passing {
            passing.done(sent);
        }
        Ok(sent)
    }

    /// As [`client::Publisher::send_when_possible`].
    pub(super) fn send_when_possible(&self, message: Vec<u8>) -> io::Result<()> {
        let passing = self.passing(&message);
        match &self.way {
            Way::Server(socket) => socket.send_when_possible(message)?,
            Way::Broker(link) => link.send_when_possible(message),
        }
        if let Some(passing) = passing {
            passing.done(Sent::Queued);
        }
        Ok(())
    }

    /// Looks at a message that is about to be handed over; `None` where nobody wants to know.
    fn passing(&self, message: &[u8]) -> Option<Passing> {
        let counts = self.flows.are_counted();
        if !counts && self.watch.is_none() {
            return None;
        }
        let reply = reply::decode(message, TARGETS_MAX).ok()?;
        let payload = message.get(reply.payload.clone()).unwrap_or_default();
        let mut passing = Passing::default();
        for id in reply.targets.clone() {
            let key = self.key(reply.sender, id);
            if counts && !reply.extended {
                passing.outstanding.extend(self.flows.sending(key, payload));
            }
            if let Some(watch) = &self.watch {
                let ended = watch.sending(key, payload, reply.extended);
                match &mut passing.endings {
                    Some(endings) => endings.extend(ended),
                    none => *none = Some(ended),
                }
            }
        }
        Some(passing)
    }
}

/// What is known of who is there, and how it is waited for.
impl Publisher {
    /// The connection to a broker, if that is what it is.
    pub(super) fn link(&self) -> Option<&Link> {
        match &self.way {
            Way::Server(_) => None,
            Way::Broker(link) => Some(link),
        }
    }

    /// Where it is.
    pub(super) fn endpoint(&self) -> &Endpoint {
        match &self.way {
            Way::Server(socket) => socket.endpoint(),
            Way::Broker(link) => link.endpoint(),
        }
    }

    /// As [`client::Publisher::connection`]. Behind a broker the servers' clients stay who they are when it is lost; of those to whom
    /// something is lost with it, the end is told.
    pub(super) fn connection(&self) -> u64 {
        match &self.way {
            Way::Server(socket) => socket.connection(),
            Way::Broker(_) => 0,
        }
    }

    /// As [`client::Publisher::would_pass`].
    pub(super) fn would_pass(&self, beginning: &[u8]) -> Option<bool> {
        match &self.way {
            Way::Server(socket) => socket.would_pass(beginning),
            Way::Broker(_) => None,
        }
    }

    /// As [`client::Publisher::is_lurcher`]. A broker is one that hands on what others send.
    pub(super) fn is_lurcher(&self) -> bool {
        match &self.way {
            Way::Server(socket) => socket.is_lurcher(),
            Way::Broker(_) => true,
        }
    }

    /// As [`client::Publisher::is_feed`].
    pub(super) fn is_feed(&self) -> bool {
        match &self.way {
            Way::Server(socket) => socket.is_feed(),
            Way::Broker(_) => true,
        }
    }

    /// As [`client::Publisher::subscription`].
    pub(super) fn subscription(&self) -> Option<u64> {
        match &self.way {
            Way::Server(socket) => socket.subscription(),
            Way::Broker(link) => link.is_welcome().then(|| link.generation()),
        }
    }

    /// As [`client::Publisher::try_send`], and says whether it was done; never to a broker, which is told in its own way.
    pub(super) fn send_now(&self, message: Vec<u8>) -> io::Result<bool> {
        match &self.way {
            Way::Server(socket) => Ok(socket.try_send(message.into())?.is_none()),
            Way::Broker(_) => Ok(false),
        }
    }

    /// As [`client::Publisher::topic`].
    pub(super) fn topic(&self) -> Option<Vec<u8>> {
        match &self.way {
            Way::Server(socket) => socket.topic(),
            Way::Broker(_) => None,
        }
    }

    /// Waits until a server has subscribed; false when it has not done so by `deadline`.
    pub(super) async fn subscribed(&self, deadline: Instant) -> io::Result<bool> {
        match &self.way {
            Way::Server(socket) => socket.subscribed(deadline).await,
            Way::Broker(_) => Ok(true),
        }
    }

    /// As [`client::Publisher::expect`].
    pub(super) fn expect(&self, patience: Duration) -> io::Result<()> {
        match &self.way {
            Way::Server(socket) => socket.expect(patience),
            Way::Broker(_) => Ok(()),
        }
    }

    /// As [`client::Publisher::write_overdue`].
    pub(super) fn write_overdue(&self) {
        if let Way::Server(socket) = &self.way {
            socket.write_overdue();
        }
    }

    /// Waits until nothing waits to be handed over any more.
    pub(super) async fn settled(&self) -> io::Result<()> {
        match &self.way {
            Way::Server(_) => Ok(()),
            Way::Broker(link) => link.settled().await,
        }
    }
}

/// A message that could not leave at once. Dropped, it was not sent.
pub(super) struct Blocked {
    message: Bytes,
    passing: Option<Passing>,
}

/// A message that is being handed over. Dropped before that is done, it was not sent.
#[derive(Default)]
struct Passing {
    outstanding: Vec<Outstanding>,
    endings: Option<Endings>,
}

impl Passing {
    fn ending(endings: Endings) -> Self {
        Self {
            endings: Some(endings),
            ..Self::default()
        }
    }

    fn done(self, sent: Sent) {
        if sent == Sent::Queued {
            self.outstanding.into_iter().for_each(Outstanding::keep);
        }
        if let Some(endings) = self.endings {
            endings.tell(sent == Sent::Queued);
        }
    }
}
