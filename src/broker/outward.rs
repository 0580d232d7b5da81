//! From the workers to the server: replies pass as they are, and are followed just far enough to know what is still open.

use std::rc::Rc;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::debug;

use super::End;
use super::pools::At;
use super::server::Server;
use super::table::{Conn, Exchange, Follows, Stage, Table};
use crate::http1::ScanState;
use crate::metrics::Name;
use crate::pool::Speaker;
use crate::wire::ConnId;
use crate::wire::reply::{self, Extended, Flow, Reply};
use crate::wire::request::Notice;

/// Ids that are looked at in one message. How many a server takes is its own affair (128, or as it is set).
const TARGETS_MAX: usize = 65_536;

/// What becomes of a payload for one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pass,
    Drop,
}

impl Server {
    /// A message from a worker.
    pub(super) fn replied(&self, from: At, message: Bytes) {
        let reply = match reply::decode(&message, TARGETS_MAX) {
            Ok(reply) => reply,
            Err(error) => {
                Name::RepliesMalformed.increment();
                // Mongrel2 rests for a tenth of a second after each: that must not be all workers' rest.
                debug!(%error, peer = %from.peer, "malformed message from a handler: ignored");
                return;
            }
        };
        let table = &mut *self.table.borrow_mut();
        let payload = message.get(reply.payload.clone()).unwrap_or_default();
        let mut dropped = Vec::new();
        for id in reply.targets.clone() {
            let fate = if reply.extended {
                self.extended(table, id, payload, from)
            } else {
                self.payload(table, id, payload, from)
            };
            if fate == Fate::Drop {
                Name::RepliesUnknownId.increment();
                dropped.push(id);
            }
        }
        let message = if dropped.is_empty() {
            Some(message)
        } else {
            without(&reply, payload, &dropped)
        };
        if let Some(message) = message {
            self.say(self.in_its_own_name(message));
        }
    }

    fn payload(&self, table: &mut Table, id: ConnId, payload: &[u8], from: At) -> Fate {
        let Some(conn) = table.conns.get_mut(&id.0) else {
            if !payload.is_empty() {
                table.recent.heard(id, from);
            }
            return Fate::Pass;
        };
        let exchange = match &mut conn.stage {
            Stage::Exchange(exchange) => exchange,
            Stage::Orphan(_) => {
                self.orphan_replied(table, id, payload, from);
                return Fate::Pass;
            }
            Stage::Attached(_) => {
                if payload.is_empty() {
                    drop(self.end(table, id, End::Answered));
                }
                return Fate::Pass;
            }
        };
        if exchange.is_former(&self.pools, from) {
            return Fate::Drop;
        }
        if payload.is_empty() {
            drop(self.end(table, id, End::Answered));
            return Fate::Pass;
        }
        // What comes before any worker has the request is no answer to it.
        if exchange.answered || !exchange.ticket.started(from.peer) {
            return Fate::Pass;
        }
        let first = !std::mem::replace(&mut exchange.started, true);
        if first && let (Some(ledger), Some(slot)) = (&self.shared.ledger, exchange.slot) {
            ledger.begin(slot);
        }
        if first {
            exchange.message = Bytes::new();
        }
        match exchange.scanner.scan(payload).state {
            ScanState::Ended { .. } => self.whole(table, id),
            ScanState::Switched if exchange.follows == Follows::Frames => self.accepted(table, id),
            ScanState::Switched | ScanState::Opaque => exchange.ticket.attach(),
            ScanState::Open => {
                if exchange.follows == Follows::Frames && exchange.scanner.head_seen() {
                    Self::refused(table, id);
                }
                if first && let Some(conn) = table.conns.get(&id.0) {
                    self.age(id, conn.serial);
                }
            }
        }
        Fate::Pass
    }

    /// A response is whole.
    fn whole(&self, table: &mut Table, id: ConnId) {
        match table.conns.get_mut(&id.0).map(|conn| &mut conn.stage) {
            Some(Stage::Exchange(exchange)) if exchange.awaits_rest() => {
                // An early answer: what the server still says of the upload is for the same worker.
                exchange.answered = true;
                exchange.ticket.attach();
            }
            _ => self.response_ended(table, id),
        }
    }

    /// A handshake is refused: frames that have come are for nobody.
    fn refused(table: &mut Table, id: ConnId) {
        if let Some(Stage::Exchange(exchange)) =
            table.conns.get_mut(&id.0).map(|conn| &mut conn.stage)
        {
            exchange.follows = Follows::Nothing;
            Name::MessagesDropped.add(exchange.parts.len() as u64);
            exchange.parts.clear();
            table.held_bytes -= std::mem::take(&mut exchange.parts_bytes);
        }
    }

    /// A handshake is accepted: the connection stays with its worker from now on.
    fn accepted(&self, table: &mut Table, id: ConnId) {
        let Some(conn) = table.take(id) else {
            return;
        };
        let Conn { serial, stage, .. } = conn;
        if let Stage::Exchange(Exchange {
            pool,
            ticket,
            link,
            parts,
            scanner,
            began,
            told,
            slot,
            ..
        }) = stage
        {
            // Whoever answers its frames may do so after this process too.
            self.release(slot);
            if let (Some(mut told), Some(observer)) = (told, &self.shared.settings.observer) {
                told.status = scanner.status();
                told.took = Instant::now().duration_since(began);
                observer.ended(&told);
            }
            let attachment = ticket.into_attachment(link as Rc<dyn Speaker>);
            self.attached(table, id, serial, (pool, attachment), parts, true);
        }
    }

    /// A command to the server. What it does to the connection counts here too.
    fn extended(&self, table: &mut Table, id: ConnId, payload: &[u8], from: At) -> Fate {
        let Some(conn) = table.conns.get_mut(&id.0) else {
            return Fate::Pass;
        };
        if let Stage::Exchange(exchange) = &conn.stage
            && exchange.is_former(&self.pools, from)
        {
            return Fate::Drop;
        }
        match reply::decode_extended(payload) {
            Ok(Extended::Ctl { cancel: true, .. }) => drop(self.end(table, id, End::Answered)),
            // It is passed all the same: a Mongrel2 answers it where the client is gone.
            Ok(Extended::Ctl {
                flow: Some(Flow { sent, .. }),
                ..
            }) if self.gives_no_credits() => {
                let nothing = Notice::Flow {
                    credits: 0,
                    flow: Flow { window: 0, sent },
                };
                self.notify_voice(from, id, nothing);
            }
            // It does not wait for the end of the upload that was announced to it.
            Ok(Extended::Ctl {
                credits: Some(_), ..
            }) => {
                if let Stage::Exchange(exchange) = &conn.stage
                    && matches!(exchange.follows, Follows::Stored(_))
                {
                    exchange.ticket.acted(exchange.retry);
                }
            }
            // What the file has is not seen here: it is taken to be what the head has promised.
            Ok(Extended::Other {
                key: b"sendfile", ..
            }) => {
                if let Stage::Exchange(exchange) = &conn.stage
                    && exchange.scanner.head_seen()
                    && !exchange.scanner.is_until_close()
                {
                    self.whole(table, id);
                }
            }
            _ => {}
        }
        Fate::Pass
    }
}

/// The message for those of its targets that are not dropped.
fn without(reply: &Reply<'_>, payload: &[u8], dropped: &[ConnId]) -> Option<Bytes> {
    let rest: Vec<ConnId> = reply
        .targets
        .clone()
        .filter(|id| !dropped.contains(id))
        .collect();
    if rest.is_empty() {
        return None;
    }
    let mut out = Vec::new();
    if reply.extended {
        let control = reply::decode_extended(payload).ok()?;
        reply::encode_extended(reply.sender, &rest, &control, &mut out);
    } else {
        reply::encode(reply.sender, &rest, payload, &mut out);
    }
    Some(out.into())
}
