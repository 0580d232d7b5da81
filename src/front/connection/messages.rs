//! Messages of message sockets: read between the requests of a connection, and given to handlers one after the other.
//!
//! A message is no request: nothing waits for an answer, replies may come at any time and in any number, and the next message
//! or request is looked at at once. Where handlers take nothing more, the client is not read any further.

use std::rc::Rc;

use bytes::Bytes;
use tracing::debug;

use super::{Connection, Farewell, NEVER};
use crate::front::answer::Trouble;
use crate::front::client::{Hold, Kind};
use crate::front::dispatch::{self, Addressed};
use crate::front::message_socket::{self, POLICY, Parsed};
use crate::pool::{Attachment, Pool, Sent, Speaker};

/// What a connection that has used message sockets keeps.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// The handler of the last message.
    attachment: Option<Attachment>,
    /// How far the end of a partial message was looked for.
    searched: usize,
}

impl Connection {
    /// Looks for a message; gives its length when there is a whole one.
    pub(super) fn message(&mut self, data: &[u8]) -> Option<usize> {
        let searched = &mut self.messages.get_or_insert_default().searched;
        let bytes_max = self.shard.limits().head.bytes;
        let message = match message_socket::parse(data, searched, bytes_max) {
            Parsed::Whole(message) => message,
            Parsed::Partial => {
                if !std::mem::replace(&mut self.begun, true) {
                    self.client.set_deadline(self.shard.limits().head_timeout);
                }
                return None;
            }
            Parsed::Refused => {
                self.refuse(Trouble::BadMessage, false, None);
                return None;
            }
        };
        *searched = 0;
        self.begun = false;
        self.client.note_ping();
        self.client.kind.set(Kind::Message);
        // How long such a connection may be silent is for the ping rule to say, as with Mongrel2.
        self.client.deadline.set(NEVER);
        if message.is_ping() {
        } else if message.asks_for_policy() {
            // Mongrel2's number for it.
            self.client.kind.set(Kind::Socket);
            self.output.push_back(Bytes::from_static(POLICY));
            self.close(Farewell::Told);
        } else {
            match dispatch::message(&self.shard, &self.client, &message) {
                Addressed::Handler(handler, bytes) => self.send_message(&handler.pool, bytes),
                Addressed::Nobody => self.refuse(Trouble::NoRoute, false, None),
                Addressed::NoHandler => {
                    debug!(client = %self.client.addr, "message for a route without a handler");
                    self.close(Farewell::Told);
                }
            }
        }
        Some(message.len)
    }

    fn send_message(&mut self, pool: &Rc<Pool>, message: Bytes) {
        self.messages_left = self.messages_left.saturating_sub(1);
        let attachment = &mut self.messages.get_or_insert_default().attachment;
        if attachment
            .as_ref()
            .is_none_or(|attachment| !Rc::ptr_eq(attachment.pool(), pool))
        {
            *attachment = None;
        }
        let attachment = attachment
            .get_or_insert_with(|| pool.attach(Rc::clone(&self.client) as Rc<dyn Speaker>));
        // The handler last used is the one that is told of the end.
        if let Some(peer) = attachment.peer() {
            self.client.remember_handler(pool, Some(peer));
        }
        if attachment.send(message) == Sent::Held {
            self.client.hold.set(Hold::Held);
            self.client.set_deadline(super::wait_max(pool));
        }
    }
}
