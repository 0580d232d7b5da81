//! Answers: raw, HTTP and JSON, to one client or to many.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::Serialize;

use super::http::{self, Form, HttpError};
use super::publisher::Publisher;
use super::request::Request;
use super::response;
use super::source::tell_broken;
use crate::bus::client::Sent;
use crate::wire::request::Kind;
use crate::wire::{ConnId, reply};

/// Clients addressed by one message at most; more are split. Servers take 128 by default (`limits.handler_targets`).
pub const IDS_PER_MESSAGE: usize = 100;

/// Idents that are remembered with their servers. A server has one for each of its handler entries, so only one that is out of its
/// mind has more; the ones above are looked up no more.
const SENDERS_MAX: usize = 1_000;

/// A reply that was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// It would not have been HTTP.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The value could not be written as JSON.
    #[error("writing a reply as JSON")]
    Json(#[source] serde_json::Error),
    /// No request came from a server of that ident, and there are several that it could be.
    #[error("no server with ident {sender:?} has sent a request")]
    UnknownSender {
        /// The ident.
        sender: String,
    },
    /// Several servers use that ident, and the numbers of their clients overlap: send through [`super::Client`]s.
    #[error("several servers use the ident {sender:?}")]
    AmbiguousSender {
        /// The ident.
        sender: String,
    },
    /// A WebSocket handshake was to be accepted that is none.
    #[error("not a WebSocket handshake")]
    NoHandshake,
    /// A WebSocket ping, pong or close frame with more payload than it may have.
    #[error("a control frame of {bytes} bytes: 125 at most")]
    ControlTooLong {
        /// How many it would have.
        bytes: usize,
    },
    /// The client of a response that is written piece by piece has gone away, or its server has.
    #[error("the client is gone")]
    ClientGone,
    /// Nothing was received for seconds while a response waited to be told that its client takes more: [`super::Connection::recv`] has
    /// to be called meanwhile, so write large responses in a task of their own.
    #[error("a response waits for news of its client, and nothing is received meanwhile")]
    NotReceiving,
    /// The socket is broken.
    #[error("sending a reply")]
    Io(#[from] io::Error),
}

/// The way back to the servers of a [`super::Connection`]. Cheap to clone; use it from any task.
///
/// Replies wait while a server does not read; they are dropped when it is gone. All methods are for one server each, and
/// those of one task arrive in order.
///
/// On a runtime of one thread, what tasks send while [`super::Connection::recv`] waits goes out together, when the tasks that are ready
/// now have had their turn: one that blocks the thread then holds up what others have sent. Whoever receives and answers in turn
/// sends at once.
#[derive(Debug, Clone)]
pub struct Replies {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Few, and seldom another one.
    servers: Mutex<Vec<Arc<Publisher>>>,
    /// Who sends under an ident; `None` when several servers do.
    senders: Mutex<HashMap<Bytes, Option<Arc<Publisher>>>>,
}

impl Replies {
    pub(super) fn new(servers: Vec<Arc<Publisher>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                servers: Mutex::new(servers),
                senders: Mutex::default(),
            }),
        }
    }

    /// One more server.
    pub(super) fn add(&self, server: Arc<Publisher>) {
        self.servers().push(server);
    }

    /// A server is left for good. Those who have clients of it may go on answering them.
    pub(super) fn remove(&self, server: &Arc<Publisher>) {
        self.servers().retain(|other| !Arc::ptr_eq(other, server));
        let mut senders = self
            .shared
            .senders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        senders.retain(|_, known| {
            known
                .as_ref()
                .is_none_or(|known| !Arc::ptr_eq(known, server))
        });
    }

    /// Waits until nothing waits to be handed over any more.
    pub(super) async fn settle(&self) {
        let servers = self.servers().clone();
        for server in servers {
            if let Err(error) = server.settled().await {
                tell_broken(&error, server.endpoint());
            }
        }
    }

    fn servers(&self) -> MutexGuard<'_, Vec<Arc<Publisher>>> {
        self.shared
            .servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of who sends under that ident; false when that was known.
    pub(super) fn learn(&self, sender: &Bytes, server: &Arc<Publisher>) -> bool {
        let mut senders = self
            .shared
            .senders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_full = senders.len() >= SENDERS_MAX;
        match senders.get_mut(sender) {
            None if is_full => false,
            None => {
                // A copy, so that the message is not kept.
                senders.insert(Bytes::copy_from_slice(sender), Some(Arc::clone(server)));
                true
            }
            Some(known) => {
                if known
                    .as_ref()
                    .is_some_and(|known| !Arc::ptr_eq(known, server))
                {
                    *known = None;
                }
                false
            }
        }
    }

    fn server_of(&self, sender: &[u8]) -> Result<Arc<Publisher>, ReplyError> {
        let senders = self
            .shared
            .senders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let name = || String::from_utf8_lossy(sender).into_owned();
        match (senders.get(sender), &self.servers()[..]) {
            (Some(Some(server)), _) | (None, [server]) => Ok(Arc::clone(server)),
            (Some(None), _) => Err(ReplyError::AmbiguousSender { sender: name() }),
            (None, _) => Err(ReplyError::UnknownSender { sender: name() }),
        }
    }

    /// Sends bytes to the client as they are: a whole response, a piece of one, or anything else. No bytes at all close the
    /// connection, as [`Replies::close`] does.
    ///
    /// # Cancel safety
    ///
    /// Safe: the reply is sent if and only if the future completes.
    pub async fn reply(&self, request: &Request, data: impl AsRef<[u8]>) -> Result<(), ReplyError> {
        send(
            request.server(),
            &request.sender,
            &[request.conn_id],
            data.as_ref(),
        )
        .await
    }

    /// Sends a whole HTTP response. `status` is the reason phrase; an empty one means the usual for that code.
    ///
    /// `Content-Length` is written here, and none is taken from `headers`; 1xx, 204 and 304 go out without a body, and so
    /// does the answer to HEAD, with the length of the body that is given. When the request [should
    /// close](crate::wire::request::Request::should_close), or a header says `Connection: close`, the connection is closed
    /// behind the response.
    ///
    /// With `download.flow_control` a response above 102,400 bytes goes in pieces, as its client takes them, which
    /// [`super::Connection::recv`] hears: answer such requests in tasks of their own. Where nobody receives for a tenth of a second the
    /// rest goes at once, which a Mongrel2 does not forgive its client, nor a Lurcher a client that is slow.
    ///
    /// # Errors
    ///
    /// [`ReplyError::Http`] when names or values would not be HTTP, line ends in values above all.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropped early, either nothing is sent or all, the close included; of one that goes in pieces perhaps some, and then its
    /// client is cut off.
    pub async fn reply_http(
        &self,
        request: &Request,
        body: impl AsRef<[u8]>,
        code: u16,
        status: &str,
        headers: &[(&str, &str)],
    ) -> Result<(), ReplyError> {
        let form = Form {
            head_only: request.method() == Some(b"HEAD"),
            close: request.should_close(),
            old: request.version() == Some(b"HTTP/1.0"),
        };
        let ids = [request.conn_id];
        let body = body.as_ref();
        let mut message = begin(&request.sender, &ids, body.len() + 256);
        let address = message.len();
        let close = http::write(&mut message, form, (code, status), headers, body)?;
        response::send_whole(&request.client(), message, address, close).await
    }

    /// Answers with JSON: an HTTP request with a 200 response of type `application/json`, a message of another kind (a
    /// JSON socket's) with the bare text.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Replies::reply_http`].
    pub async fn reply_json<T: Serialize + ?Sized>(
        &self,
        request: &Request,
        value: &T,
    ) -> Result<(), ReplyError> {
        let text = serde_json::to_vec(value).map_err(ReplyError::Json)?;
        if request.kind() == Kind::Http {
            self.reply_http(
                request,
                text,
                200,
                "OK",
                &[("Content-Type", "application/json")],
            )
            .await
        } else {
            self.reply(request, text).await
        }
    }

    /// Closes the client's connection when all that was sent before is written. No disconnect notice follows.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Replies::reply`].
    pub async fn close(&self, request: &Request) -> Result<(), ReplyError> {
        self.reply(request, []).await
    }

    /// Sends bytes as they are to many clients of the server with that ident, [`IDS_PER_MESSAGE`] at a time.
    ///
    /// # Errors
    ///
    /// When it is not known which server has that ident.
    ///
    /// # Cancel safety
    ///
    /// Each message of [`IDS_PER_MESSAGE`] ids is sent or not; dropped early, those before have been.
    pub async fn deliver(
        &self,
        sender: impl AsRef<[u8]>,
        ids: &[ConnId],
        data: impl AsRef<[u8]>,
    ) -> Result<(), ReplyError> {
        let server = self.server_of(sender.as_ref())?;
        for ids in ids.chunks(IDS_PER_MESSAGE) {
            send(&server, sender.as_ref(), ids, data.as_ref()).await?;
        }
        Ok(())
    }

    /// Sends a whole HTTP response to many clients; `Content-Length` is written here. Connections stay open unless a header
    /// says `Connection: close`, and the body is sent to all, whatever they asked.
    ///
    /// # Errors
    ///
    /// As [`Replies::reply_http`] and [`Replies::deliver`].
    ///
    /// # Cancel safety
    ///
    /// As [`Replies::deliver`].
    pub async fn deliver_http(
        &self,
        sender: impl AsRef<[u8]>,
        ids: &[ConnId],
        body: impl AsRef<[u8]>,
        code: u16,
        status: &str,
        headers: &[(&str, &str)],
    ) -> Result<(), ReplyError> {
        let mut response = Vec::new();
        let close = http::write(
            &mut response,
            Form::default(),
            (code, status),
            headers,
            body.as_ref(),
        )?;
        self.deliver(sender.as_ref(), ids, response).await?;
        if close {
            self.deliver_close(sender, ids).await?;
        }
        Ok(())
    }

    /// Closes many connections.
    ///
    /// # Errors
    ///
    /// As [`Replies::deliver`].
    ///
    /// # Cancel safety
    ///
    /// As [`Replies::deliver`].
    pub async fn deliver_close(
        &self,
        sender: impl AsRef<[u8]>,
        ids: &[ConnId],
    ) -> Result<(), ReplyError> {
        self.deliver(sender, ids, []).await
    }
}

/// Sends one message. More ids than a server takes are the caller's fault.
pub(super) async fn send(
    server: &Publisher,
    sender: &[u8],
    ids: &[ConnId],
    data: &[u8],
) -> Result<(), ReplyError> {
    let mut message = begin(sender, ids, data.len());
    message.extend_from_slice(data);
    note(server, server.send(message).await?);
    Ok(())
}

/// Sends one extended reply.
pub(super) async fn send_extended(
    server: &Publisher,
    sender: &[u8],
    id: ConnId,
    command: &reply::Extended<'_>,
) -> Result<(), ReplyError> {
    let mut message = Vec::new();
    reply::encode_extended(sender, &[id], command, &mut message);
    note(server, server.send(message).await?);
    Ok(())
}

/// A message without its payload, which goes behind it.
pub(super) fn begin(sender: &[u8], ids: &[ConnId], payload_len: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(sender.len() + ids.len() * 11 + payload_len + 16);
    reply::encode(sender, ids, b"", &mut message);
    message
}

pub(super) fn note(server: &Publisher, sent: Sent) {
    match sent {
        Sent::Queued => {}
        Sent::Dropped => {
            tracing::debug!(endpoint = %server.endpoint(), "dropped a reply: the server is gone");
        }
    }
}
