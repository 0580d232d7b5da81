//! What a handler receives, and the handle on the client that it came from.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use super::body::Part;
use super::publisher::Publisher;
use super::replies::{self, ReplyError};
use super::upload::{Found, Upload, UploadFault};
use super::websocket::Frame;
use crate::websocket::Opcode;
use crate::wire::{self, ConnId, request::Kind};

/// A message from a server: an HTTP request, or a notice about a connection.
///
/// It dereferences to [`wire::request::Request`], which has its parts: `sender`, `conn_id`, `path`, `headers`, `body`, and
/// what can be asked of them: `is_disconnect()`, `should_close()`, `method()`, ….
#[derive(Debug, Clone)]
pub struct Request {
    message: wire::request::Request,
    server: Arc<Publisher>,
    /// Where its upload is, or why that is not believed. In a box, since few have one.
    upload: Option<Box<Result<Found, UploadFault>>>,
    /// It was looked at, and is an HTTP request.
    is_http: bool,
}

impl Request {
    pub(super) fn new(
        message: wire::request::Request,
        server: Arc<Publisher>,
        upload: Option<Result<Found, UploadFault>>,
        is_http: bool,
    ) -> Self {
        Self {
            message,
            server,
            upload: upload.map(Box::new),
            is_http,
        }
    }

    /// A handle on the client that asked.
    pub fn client(&self) -> Client {
        Client {
            server: Arc::clone(&self.server),
            sender: self.message.sender.clone(),
            conn_id: self.message.conn_id,
        }
    }

    /// The message as one of the things that it can be.
    ///
    /// The file of an upload that is complete is removed with the event: see [`Upload::keep`].
    pub fn into_event(mut self) -> Event {
        if self.is_http {
            return Event::Request(self);
        }
        match self.upload.take().map(|upload| *upload) {
            Some(Ok(found)) => {
                let done = found.is_done();
                let upload = Upload::new(self, found);
                return if done {
                    Event::UploadDone(upload)
                } else {
                    Event::UploadStarted(upload)
                };
            }
            Some(Err(fault)) => return Event::UploadRefused(self, fault),
            None => {}
        }
        match self.message.kind() {
            Kind::Http => Event::Request(self),
            Kind::Disconnect => Event::Disconnect(self.client()),
            Kind::Credits(bytes) => Event::Credits(self.client(), bytes),
            Kind::Message(_) => Event::Message(self),
            Kind::Drained => Event::Drained,
            Kind::WebSocketHandshake => Event::WebSocketHandshake(self),
            Kind::WebSocketFrame { flags } => match Opcode::from_flags(flags) {
                Some(opcode) => Event::WebSocketFrame(Frame::new(self, opcode, flags)),
                // Mongrel2 passes on what is not defined.
                None => Event::Other(self),
            },
            Kind::StreamStart => Event::UploadPart(Part::first(self)),
            Kind::StreamPart { offset, done } => Event::UploadPart(Part::next(self, offset, done)),
            _ => Event::Other(self),
        }
    }

    pub(super) fn server(&self) -> &Publisher {
        &self.server
    }
}

impl Deref for Request {
    type Target = wire::request::Request;

    fn deref(&self) -> &Self::Target {
        &self.message
    }
}

/// A [`Request`], told apart by marks that a client cannot forge (not by its METHOD alone).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// An HTTP request, to be answered.
    Request(Request),
    /// The client is gone; nothing that is sent to it arrives any more. Sent only to the handler that its connection
    /// used last, and not when a handler closed the connection.
    Disconnect(Client),
    /// So many bytes were written to the client: with `download.flow_control` only.
    Credits(Client, u64),
    /// A server has begun to store a large body in a file (setting `upload.temp_store`). Nothing need be done yet; answer and close
    /// to refuse it.
    UploadStarted(Upload),
    /// The body is complete in the file: the request to be answered. The file is removed with the last clone of this, unless it is
    /// kept.
    UploadDone(Upload),
    /// A request that says to be an upload, and is not to be believed: answer 400 and close. No file was touched.
    UploadRefused(Request, UploadFault),
    /// A part of a large body that comes as a stream (setting `upload.stream`). The first is the request to be answered; see
    /// [`super::Bodies`].
    UploadPart(Part),
    /// A message from a JSON or XML socket; `kind()` says which.
    Message(Request),
    /// A client wants to speak WebSocket: accept it with [`super::Replies::reply_handshake`], or refuse it with an ordinary response. Its
    /// `headers` may say who it is (`origin`, `cookie`).
    WebSocketHandshake(Request),
    /// A WebSocket message, or a control frame: see [`super::Replies::answer_control`].
    WebSocketFrame(Frame),
    /// No request will come any more, because [`super::Connection::drain`] was called: only what belongs to those before.
    Drained,
    /// Anything else as it came; `kind()` says what.
    Other(Request),
}

impl From<Request> for Event {
    fn from(request: Request) -> Self {
        request.into_event()
    }
}

/// A handle on one client connection of one server: send to it at any time, from any task. Cheap to clone.
///
/// Two handles are equal when they mean the same connection.
#[derive(Clone)]
pub struct Client {
    server: Arc<Publisher>,
    sender: Bytes,
    conn_id: ConnId,
}

impl Client {
    pub(super) fn server(&self) -> &Arc<Publisher> {
        &self.server
    }

    /// The server's ident (`send_ident` of its handler).
    pub fn sender(&self) -> &Bytes {
        &self.sender
    }

    /// The server's number for the connection.
    pub fn conn_id(&self) -> ConnId {
        self.conn_id
    }

    /// Sends bytes as they are; no bytes at all close the connection, as with [`Client::close`].
    ///
    /// A client that is gone is no error: the server answers with a disconnect notice.
    ///
    /// # Cancel safety
    ///
    /// Safe: the message is sent if and only if the future completes.
    pub async fn send(&self, data: impl AsRef<[u8]>) -> Result<(), ReplyError> {
        replies::send(&self.server, &self.sender, &[self.conn_id], data.as_ref()).await
    }

    /// Closes the connection when all that was sent before is written. No disconnect notice follows.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Client::send`].
    pub async fn close(&self) -> Result<(), ReplyError> {
        self.send([]).await
    }

    fn key(&self) -> (*const Publisher, &Bytes, ConnId) {
        (Arc::as_ptr(&self.server), &self.sender, self.conn_id)
    }
}

impl PartialEq for Client {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Client {}

impl Hash for Client {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Senders with clients of the same number are few, and told apart by comparing.
        (Arc::as_ptr(&self.server), self.conn_id).hash(state);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({} {})", self.sender.escape_ascii(), self.conn_id)
    }
}
