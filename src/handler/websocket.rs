//! WebSocket for handlers: what comes is told apart, what goes out is framed, and control frames are answered as RFC 6455 asks.
//!
//! The server makes messages of frames and checks them; the handler accepts connections, and ends them. Keeping a list of who
//! is connected, pinging, and timeouts are left to the program.

use std::ops::Deref;

use bytes::Bytes;

use super::http::{self, Form};
use super::publisher::Publisher;
use super::replies::{IDS_PER_MESSAGE, Replies, ReplyError, begin, note};
use super::request::{Client, Request};
use crate::websocket::{self, Opcode};
use crate::wire::{ConnId, request::Kind};

/// The longest payload of a ping, a pong or a close frame, in bytes (RFC 6455 5.5).
pub const CONTROL_BYTES_MAX: usize = websocket::frame::CONTROL_BYTES_MAX;

/// A WebSocket message, its fragments joined, or a control frame.
///
/// It dereferences to the [`Request`] that it came as, which has the headers of the handshake.
#[derive(Debug, Clone)]
pub struct Frame {
    request: Request,
    opcode: Opcode,
    flags: u8,
}

impl Frame {
    pub(super) fn new(request: Request, opcode: Opcode, flags: u8) -> Self {
        Self {
            request,
            opcode,
            flags,
        }
    }

    /// Text, binary, close, ping or pong.
    pub fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The first byte of the frame, with FIN set: the opcode, and bits of extensions that the handler has agreed upon with the
    /// client.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// The payload, unmasked.
    pub fn payload(&self) -> &Bytes {
        &self.request.body
    }

    /// The payload of a text message. `None` for anything else, and for text that is not UTF-8, which Mongrel2 passes on.
    pub fn text(&self) -> Option<&str> {
        (self.opcode == Opcode::Text)
            .then(|| std::str::from_utf8(self.payload()).ok())
            .flatten()
    }

    /// The code and the reason of a close frame. `None` for anything else, for a close without them, and for a malformed one, which
    /// Mongrel2 passes on.
    pub fn close_code(&self) -> Option<(u16, &str)> {
        (self.opcode == Opcode::Close)
            .then(|| websocket::close_code(self.payload()).ok().flatten())
            .flatten()
    }
}

impl Deref for Frame {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.request
    }
}

impl Request {
    /// The subprotocols that the client of a handshake offers, the one it likes best first.
    pub fn websocket_protocols(&self) -> impl Iterator<Item = &str> {
        self.headers
            .all("sec-websocket-protocol")
            .iter()
            .flat_map(|value| value.split(|byte| *byte == b','))
            .filter_map(|name| std::str::from_utf8(name.trim_ascii()).ok())
            .filter(|name| !name.is_empty())
    }
}

impl Replies {
    /// Accepts a handshake ([`super::Event::WebSocketHandshake`]): sends the 101 with the value for Sec-WebSocket-Accept that came with it,
    /// and these headers. `protocol` has to be one of [`Request::websocket_protocols`]; a browser that has offered some wants
    /// one of them.
    ///
    /// To refuse, answer with [`Replies::reply_http`] and close.
    ///
    /// # Errors
    ///
    /// [`ReplyError::NoHandshake`] for any other message, [`ReplyError::Http`] when a header would not be HTTP.
    ///
    /// # Cancel safety
    ///
    /// Safe: the reply is sent if and only if the future completes.
    pub async fn reply_handshake(
        &self,
        request: &Request,
        protocol: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<(), ReplyError> {
        let accept = accept_value(request).ok_or(ReplyError::NoHandshake)?;
        let mut all = vec![
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept),
        ];
        all.extend(protocol.map(|name| ("Sec-WebSocket-Protocol", name)));
        all.extend_from_slice(headers);
        let mut message = begin(&request.sender, &[request.conn_id], 256);
        http::write(&mut message, Form::default(), (101, ""), &all, b"")?;
        note(request.server(), request.server().send(message).await?);
        Ok(())
    }

    /// Sends a message or a control frame to the client. Text has to be UTF-8, or the client will end the connection.
    ///
    /// # Errors
    ///
    /// [`ReplyError::ControlTooLong`] for a control frame above [`CONTROL_BYTES_MAX`].
    ///
    /// # Cancel safety
    ///
    /// Safe: the frame is sent if and only if the future completes.
    pub async fn reply_websocket(
        &self,
        request: &Request,
        payload: impl AsRef<[u8]>,
        opcode: Opcode,
    ) -> Result<(), ReplyError> {
        let ids = [request.conn_id];
        send_frame(
            request.server(),
            &request.sender,
            &ids,
            payload.as_ref(),
            opcode,
        )
        .await
    }

    /// Sends a message or a control frame to many clients of the server with that ident, [`IDS_PER_MESSAGE`] at a time.
    ///
    /// # Errors
    ///
    /// As [`Replies::reply_websocket`] and [`Replies::deliver`].
    ///
    /// # Cancel safety
    ///
    /// As [`Replies::deliver`].
    pub async fn deliver_websocket(
        &self,
        sender: impl AsRef<[u8]>,
        ids: &[ConnId],
        payload: impl AsRef<[u8]>,
        opcode: Opcode,
    ) -> Result<(), ReplyError> {
        let mut frame = Vec::new();
        encode(opcode, payload.as_ref(), &mut frame)?;
        self.deliver(sender, ids, frame).await
    }

    /// Asks the client to close: sends a close frame with this code and reason (cut at 123 bytes). Send nothing behind it. The client
    /// answers with a close frame of its own; then [`Replies::close`] ends the connection, which [`Replies::answer_control`] does
    /// by itself.
    ///
    /// Codes that may not be sent (1005, 1006, 1015 and what nobody has defined) make a close frame without code.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Replies::reply_websocket`].
    pub async fn close_websocket(
        &self,
        request: &Request,
        code: u16,
        reason: &str,
    ) -> Result<(), ReplyError> {
        request.client().close_websocket(code, reason).await
    }

    /// Does what RFC 6455 wants done with a control frame: a ping is answered with a pong, a close with a close of the same code
    /// and the end of the connection; a pong wants nothing. False when it is a message, to be dealt with.
    ///
    /// Whoever has asked to close with [`Replies::close_websocket`] gets the client's close in here too: the second close frame
    /// from us is dropped by a Lurcher, and by the client.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropped early, either nothing is sent or all, the end included.
    pub async fn answer_control(&self, frame: &Frame) -> Result<bool, ReplyError> {
        match frame.opcode() {
            Opcode::Text | Opcode::Binary => return Ok(false),
            Opcode::Pong => {}
            Opcode::Ping => {
                // From a Mongrel2 it may be as long as the client likes.
                let payload = frame.payload();
                let payload = payload.get(..CONTROL_BYTES_MAX).unwrap_or(payload);
                self.reply_websocket(frame, payload, Opcode::Pong).await?;
            }
            Opcode::Close => {
                let ids = [frame.conn_id];
                let mut last = begin(&frame.sender, &ids, CONTROL_BYTES_MAX);
                let code = match websocket::close_code(frame.payload()) {
                    Ok(Some((code, _))) => code,
                    // Which is to say none.
                    Ok(None) => 1005,
                    Err(violation) => violation.close_code(),
                };
                websocket::encode_close(code, "", &mut last);
                let both = [last, begin(&frame.sender, &ids, 0)];
                note(frame.server(), frame.server().send_all(both).await?);
            }
        }
        Ok(true)
    }
}

impl Client {
    /// Sends a WebSocket message or a control frame, as [`Replies::reply_websocket`].
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Client::send`].
    pub async fn send_websocket(
        &self,
        payload: impl AsRef<[u8]>,
        opcode: Opcode,
    ) -> Result<(), ReplyError> {
        let ids = [self.conn_id()];
        send_frame(self.server(), self.sender(), &ids, payload.as_ref(), opcode).await
    }

    /// Asks the client to close, as [`Replies::close_websocket`].
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Client::send`].
    pub async fn close_websocket(&self, code: u16, reason: &str) -> Result<(), ReplyError> {
        let mut frame = Vec::new();
        websocket::encode_close(code, reason, &mut frame);
        self.send(frame).await
    }
}

/// The value for Sec-WebSocket-Accept in a handshake. Only what can be one: a front that lets a client invent handshakes must not
/// make us write headers for it.
fn accept_value(request: &Request) -> Option<&str> {
    let sound = request.kind() == Kind::WebSocketHandshake
        && request.body.len() == websocket::handshake::ACCEPT_BYTES
        && request
            .body
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte));
    sound
        .then(|| std::str::from_utf8(&request.body).ok())
        .flatten()
}

async fn send_frame(
    server: &Publisher,
    sender: &[u8],
    ids: &[ConnId],
    payload: &[u8],
    opcode: Opcode,
) -> Result<(), ReplyError> {
    debug_assert!(ids.len() <= IDS_PER_MESSAGE);
    let mut message = begin(sender, ids, payload.len() + 10);
    encode(opcode, payload, &mut message)?;
    note(server, server.send(message).await?);
    Ok(())
}

pub(super) fn encode(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) -> Result<(), ReplyError> {
    if opcode.is_control() && payload.len() > CONTROL_BYTES_MAX {
        return Err(ReplyError::ControlTooLong {
            bytes: payload.len(),
        });
    }
    websocket::encode(opcode, payload, out);
    Ok(())
}
