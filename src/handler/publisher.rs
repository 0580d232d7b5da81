//! The way back to one server: every message to it passes here, so that what its clients have outstanding is known, and those
//! who watch the handler are told. Where nobody asks for either, a message passes untouched.

use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::flow::{Flows, Outstanding, Receiving};
use super::observer::{Endings, Observer, Watch};
use crate::bus::client::{self, Sent};
use crate::wire::{self, reply};

/// Idents of handler entries that are told apart behind one address: more share a number. A server has one for each address.
const SENDERS_MAX: usize = 1_000;

/// Targets that are looked at in one message. Servers take 128 by default.
const TARGETS_MAX: usize = 65_536;

/// One client connection among those of a server: the number of its ident, and its id.
pub(super) type Key = (usize, u32);

/// The socket for replies to one server, and what is known of its clients.
#[derive(Debug)]
pub(super) struct Publisher {
    socket: client::Publisher,
    senders: Mutex<Vec<Bytes>>,
    flows: Flows,
    watch: Option<Watch>,
}

impl Publisher {
    pub(super) fn new(
        socket: client::Publisher,
        observer: Option<Arc<dyn Observer>>,
        receiving: Arc<Receiving>,
    ) -> Self {
        Self {
            socket,
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
    pub(super) fn received(&self, message: &wire::request::Request) {
        self.flows
            .received(message, || self.key(&message.sender, message.conn_id));
        if let Some(watch) = &self.watch {
            watch.received(self.key(&message.sender, message.conn_id), message);
        }
    }

    /// As [`client::Publisher::send`].
    pub(super) async fn send(&self, message: Vec<u8>) -> io::Result<Sent> {
        let passing = self.passing(&message);
        let sent = self.socket.send(message).await?;
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
        let sent = self.socket.send_all(messages).await?;
        for passing in passing {
            passing.done(sent);
        }
        Ok(sent)
    }

    /// As [`client::Publisher::send_when_possible`].
    pub(super) fn send_when_possible(&self, message: Vec<u8>) -> io::Result<()> {
        let passing = self.passing(&message);
        self.socket.send_when_possible(message)?;
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

impl Deref for Publisher {
    type Target = client::Publisher;

    fn deref(&self) -> &client::Publisher {
        &self.socket
    }
}

/// A message that is being handed over. Dropped before that is done, it was not sent.
#[derive(Default)]
struct Passing {
    outstanding: Vec<Outstanding>,
    endings: Option<Endings>,
}

impl Passing {
    fn done(self, sent: Sent) {
        if sent == Sent::Queued {
            self.outstanding.into_iter().for_each(Outstanding::keep);
        }
        if let Some(endings) = self.endings {
            endings.tell(sent == Sent::Queued);
        }
    }
}
