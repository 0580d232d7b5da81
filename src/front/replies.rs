//! What handlers send: from a message on a reply socket into the mailboxes of the connections it names.
//!
//! Runs on the reply socket's own task and never waits for a client. A payload is a slice of the received message, shared
//! by all its targets.

use std::rc::Rc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use tracing::{debug, warn};

use super::Shard;
use super::client::{Cut, Mail};
use crate::bus::server::PeerId;
use crate::metrics::Name;
use crate::pool::{Pool, Replies};
use crate::tnetstring::Value;
use crate::wire::reply::{self, Extended, Reply};
use crate::wire::request::Notice;

impl Replies for Shard {
    fn reply(&self, pool: &Rc<Pool>, from: PeerId, message: Bytes) {
        match reply::decode(&message, self.limits().targets_max) {
            Ok(reply) if reply.extended => self.extended(pool, from, &reply, &message),
            Ok(reply) => self.plain(pool, from, &reply, &message),
            Err(error) => {
                Name::RepliesMalformed.increment();
                // A handler's fault, and it may be repeated as often as the handler likes: each is one line at most.
                debug!(%error, peer = %from, "malformed message from a handler: ignored");
            }
        }
    }
}

/// A payload as message sockets get it: their clients take text. One NUL at its end is left out.
fn base64(payload: &[u8]) -> Bytes {
    let text = payload.strip_suffix(b"\0").unwrap_or(payload);
    BASE64_STANDARD.encode(text).into()
}

impl Shard {
    fn plain(&self, pool: &Rc<Pool>, from: PeerId, reply: &Reply<'_>, message: &Bytes) {
        let payload = message.slice(reply.payload.clone());
        let mut encoded = None;
        for id in reply.targets.clone() {
            match self.registry.get(id) {
                Some(client) if payload.is_empty() => client.tell(Mail::Close { voice: from }),
                Some(client) if client.speaks_messages() && !pool.settings().raw_payload => {
                    client.deliver(encoded.get_or_insert_with(|| base64(&payload)), from);
                }
                Some(client) => client.deliver(&payload, from),
                None => {
                    Name::RepliesUnknownId.increment();
                    // To close what is closed: its handler was told already, when we closed it, or has closed it itself.
                    if payload.is_empty() {
                        continue;
                    }
                    pool.notify_voice(from, id, Notice::Disconnect);
                }
            }
        }
    }

    fn extended(&self, pool: &Rc<Pool>, from: PeerId, reply: &Reply<'_>, message: &Bytes) {
        let extended = message
            .get(reply.payload.clone())
            .map(reply::decode_extended);
        let cancels = matches!(extended, Some(Ok(Extended::Ctl { cancel: true, .. })));
        if let Some(Err(error)) = &extended {
            Name::RepliesMalformed.increment();
            debug!(%error, peer = %from, "malformed extended reply: ignored");
        }
        let names_cancel = matches!(extended, Some(Err(_)))
            && message
                .get(reply.payload.clone())
                .is_some_and(|payload| memchr::memmem::find(payload, b"6:cancel,").is_some());
        for id in reply.targets.clone() {
            let Some(client) = self.registry.get(id) else {
                Name::RepliesUnknownId.increment();
                // Cancelling what is gone already is no news to anybody.
                if !cancels {
                    pool.notify_voice(from, id, Notice::Disconnect);
                }
                continue;
            };
            match &extended {
                Some(Ok(Extended::Ctl { cancel: true, .. })) => client.cut(Cut::ByHandler),
                Some(Ok(Extended::Ctl {
                    keep_alive,
                    credits,
                    flow,
                    ..
                })) => {
                    if *keep_alive {
                        client.note_ping();
                    }
                    if let Some(credits) = credits {
                        client.grant(*credits);
                    }
                    if let Some(flow) = flow {
                        client.ask_flow(pool, from, *flow);
                    }
                }
                // A slip in the lengths of a cancel must not leave a client waiting for credits that will not come.
                Some(Err(_)) if client.upload_credits.get().is_some() && names_cancel => {
                    client.cut(Cut::ByHandler);
                }
                Some(Err(_)) | None => {}
                Some(Ok(Extended::Other {
                    key: b"sendfile",
                    value: Value::Bytes(name),
                })) => client.send_file(Bytes::copy_from_slice(name), from),
                Some(Ok(Extended::Other { key, .. })) => {
                    warn!(key = %String::from_utf8_lossy(key), %id, "extended reply that nobody here serves: connection dropped");
                    client.cut(Cut::Misdirected);
                }
            }
        }
    }
}
