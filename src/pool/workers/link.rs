//! How a worker is spoken to: its socket, and how messages are framed there.

use std::rc::Rc;
use std::time::Duration;

use crate::bus::server::{Full, Outgoing, Peer};
use crate::wire::worker::{self, FromBroker, RequestId};

/// What a worker speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Mongrel2's: requests come to its PULL, what it says goes out of its PUB.
    Plain,
    /// A broker's own, over one DEALER: [`crate::wire::worker`].
    Own,
    /// That of m2wsgi's dispatcher, over one DEALER.
    M2wsgi,
}

/// The words of m2wsgi's dialect for a worker that has had its last request.
const M2WSGI_BYE: [&[u8]; 2] = [b"", b"X"];

/// A worker's socket with its dialect.
#[derive(Debug, Clone)]
pub(in crate::pool) struct Link {
    pub(in crate::pool) peer: Rc<Peer>,
    pub(in crate::pool) dialect: Dialect,
}

/// What a request is called in the own dialect.
#[derive(Debug, Clone, Copy)]
pub(in crate::pool) struct Label {
    pub(in crate::pool) id: RequestId,
    pub(in crate::pool) attempt: u8,
    pub(in crate::pool) left: Option<Duration>,
}

impl Link {
    /// Queues a request. The label is asked for where it is needed.
    pub(in crate::pool) fn send_request(
        &self,
        message: Outgoing,
        tag: u64,
        label: impl FnOnce() -> Label,
    ) -> Result<(), Full> {
        match self.dialect {
            Dialect::Plain => self.peer.send(message, tag),
            Dialect::Own => {
                let Label { id, attempt, left } = label();
                worker::before_request(id, attempt, left, |frames| {
                    self.peer.send_behind(frames, message, tag)
                })
            }
            Dialect::M2wsgi => self.peer.send_behind(&[b""], message, tag),
        }
    }

    /// Queues a message that is no request.
    pub(in crate::pool) fn send_message(&self, message: Outgoing, tag: u64) -> Result<(), Full> {
        match self.dialect {
            Dialect::Plain => self.peer.send(message, tag),
            Dialect::Own => self.peer.send_behind(&worker::BEFORE_MESSAGE, message, tag),
            Dialect::M2wsgi => self.peer.send_behind(&[b""], message, tag),
        }
    }

    /// Queues a word of the own dialect; nothing for others, which have no such words.
    pub(in crate::pool) fn say(&self, word: &FromBroker, tag: u64) -> Result<(), Full> {
        if self.dialect != Dialect::Own {
            return Ok(());
        }
        let frames = word.encode();
        let frames: Vec<&[u8]> = frames.iter().map(|frame| &frame[..]).collect();
        self.peer.send_frames(&frames, tag)
    }

    /// Queues the word for one that has had its last request, in a dialect that has such a word beside messages.
    pub(in crate::pool) fn say_drained(&self, tag: u64) -> Result<(), Full> {
        match self.dialect {
            Dialect::Plain => Ok(()),
            Dialect::Own => self.say(&FromBroker::Drain, tag),
            Dialect::M2wsgi => self.peer.send_frames(&M2WSGI_BYE, tag),
        }
    }
}
