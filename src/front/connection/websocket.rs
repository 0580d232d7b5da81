//! A WebSocket: frames of the client become messages for the handler, and what the handler writes becomes frames for the client.
//!
//! It begins with the handler's 101 and ends with both sides' close frames, with a violation, or with the connection. The front
//! takes nothing of the conversation on itself but what the settings say (pings, compression), and what keeps it sound: frames
//! are checked before a handler sees them, a close that nobody answers is answered, and a frame of the front's own stands only
//! between two frames of the handler's.

use std::rc::Rc;

use bytes::Bytes;
use tracing::debug;

use super::{Connection, Farewell, NEVER, Shard, State};
use crate::bus::server::PeerId;
use crate::front::client::{Hold, Kind};
use crate::front::upgrade::FrameHead;
use crate::http1::ScanState;
use crate::metrics::Name;
use crate::pool::{Attachment, Sent, Speaker};
use crate::websocket::deflate::Deflater;
use crate::websocket::{self, Decoder, Extensions, Follower, Frame, Opcode, Violation};

/// How long we wait, in milliseconds, for the rest of an end that both sides have agreed to: the handler's empty payload, or
/// the client's close frame. One of a second would hardly ever be missed, and a connection more that long is no burden.
const CLOSE_GRACE: u64 = 1_000;

/// What our own pings carry, by which their pongs are known.
const PING: &[u8] = b"lurcher";

/// Close codes of our own (RFC 6455 7.4.1, IANA's registry for 1013).
const GOING_AWAY: u16 = 1001;
const TRY_AGAIN_LATER: u16 = 1013;

/// What each client may hold of incomplete messages, in bytes, whatever all of them hold together: small messages pass.
const HELD_ALWAYS: usize = 64 * 1024;

/// An open WebSocket.
pub(super) struct WebSocket {
    /// `None` when the handler has let the connection go.
    attachment: Option<Attachment>,
    frame_head: FrameHead,
    decoder: Decoder,
    /// Where the handler's frames begin and end.
    follower: Follower,
    /// They are compressed.
    deflater: Option<Box<Deflater>>,
    /// The client's close frame has come: nothing of it is read any more. Its payload, to be sent back.
    client_closed: Option<Vec<u8>>,
    /// The handler's close frame has gone out: nothing of it goes out any more.
    handler_closed: bool,
    /// Ours has.
    front_closed: bool,
    /// The payload of the last ping that we have yet to answer.
    pong: Option<Vec<u8>>,
    /// Our ping has gone out, and nothing has come since.
    pinged: bool,
    /// Bytes of a message that waits for a handler.
    waiting: usize,
    account: Account,
}

/// What one WebSocket holds of messages that are incomplete or wait, in the sum over all of them.
struct Account {
    shard: Rc<Shard>,
    bytes: usize,
}

impl Account {
    /// It holds so much now; gives the sum.
    fn set(&mut self, bytes: usize) -> usize {
        let sum = &self.shard.websocket_bytes;
        sum.set(sum.get() - self.bytes + bytes);
        self.bytes = bytes;
        sum.get()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl WebSocket {
    /// Whether a frame of ours may go out now.
    fn is_between(&self) -> bool {
        // What is compressed goes out in whole frames, so it holds for that too.
        !self.handler_closed && !self.front_closed && self.follower.is_between()
    }

    /// What is to go out for some bytes of the handler.
    fn outgoing(&mut self, mut bytes: Bytes) -> Bytes {
        if self.front_closed || self.handler_closed {
            Name::ReplyBytesDropped.add(bytes.len() as u64);
            return Bytes::new();
        }
        bytes.truncate(self.follower.follow(&bytes).passed);
        self.handler_closed = self.follower.has_closed();
        match &mut self.deflater {
            Some(deflater) => {
                let mut out = Vec::new();
                deflater.deflate(&bytes, &mut out);
                out.into()
            }
            None => bytes,
        }
    }

    /// Whether the client's frames have to wait.
    pub(super) fn waits(&self, hold: Hold) -> bool {
        hold != Hold::Free && !self.front_closed
    }
}

impl Drop for WebSocket {
    fn drop(&mut self) {
        Name::WebSocketsOpen.decrement();
    }
}

impl Connection {
    /// A payload has been followed as the response to a handshake: with the end of the 101's head the WebSocket is open. Gives
    /// what is to be written.
    pub(super) fn websocket_answered(&mut self, payload: Bytes) -> Bytes {
        let State::Response(exchange) = &mut self.state else {
            return payload;
        };
        let Some(upgrade) = &mut exchange.upgrade else {
            return payload;
        };
        match exchange.scanner.state() {
            ScanState::Open if !exchange.scanner.head_seen() => upgrade.note(&payload),
            ScanState::Switched => return self.open_websocket(payload),
            _ => exchange.upgrade = None,
        }
        payload
    }

    fn open_websocket(&mut self, payload: Bytes) -> Bytes {
        let State::Response(exchange) = std::mem::replace(&mut self.state, State::Head) else {
            return payload;
        };
        let exchange = *exchange;
        let Some(upgrade) = exchange.upgrade else {
            return payload;
        };
        // What follows the head is the only body that a 101 can have.
        let frames = usize::try_from(exchange.scanner.bytes()).unwrap_or(usize::MAX);
        let head_len = payload.len().saturating_sub(frames);
        let (head, extensions) = upgrade.agree(&payload, head_len);
        if let Some(line) = exchange.line {
            self.shard.log(&line, 101, 0);
        }
        let client = Rc::clone(&self.client) as Rc<dyn Speaker>;
        let attachment = exchange.ticket.into_attachment(client);
        let mut websocket = WebSocket {
            attachment: Some(attachment),
            frame_head: upgrade.frame_head,
            decoder: Decoder::new(self.shard.limits().websocket.frames, extensions),
            follower: Follower::default(),
            deflater: (extensions == Extensions::Deflate).then(Box::default),
            client_closed: None,
            handler_closed: false,
            front_closed: false,
            pong: None,
            pinged: false,
            waiting: 0,
            account: Account {
                shard: Rc::clone(&self.shard),
                bytes: 0,
            },
        };
        Name::WebSocketsOpen.increment();
        let first = websocket.outgoing(payload.slice(head_len..));
        self.client.response_began.set(NEVER);
        self.client.kind.set(Kind::Socket);
        self.state = State::WebSocket(Box::new(websocket));
        self.fresh = !self.input.is_empty();
        self.websocket_deadline();
        if first.is_empty() {
            head
        } else {
            [head, first].concat().into()
        }
    }

    /// What is to be written for a payload of the handler.
    pub(super) fn websocket_payload(&mut self, payload: Bytes) -> Bytes {
        let State::WebSocket(websocket) = &mut self.state else {
            return payload;
        };
        let closed = websocket.handler_closed;
        let bytes = websocket.outgoing(payload);
        if websocket.handler_closed && !closed {
            self.websocket_deadline();
        }
        bytes
    }

    /// Puts a frame of our own that is due into the output, when everything else has been written; says whether it did.
    pub(super) fn websocket_says(&mut self) -> bool {
        let State::WebSocket(websocket) = &mut self.state else {
            return false;
        };
        if websocket.pong.is_none() || !websocket.is_between() {
            return false;
        }
        let mut out = Vec::new();
        let payload = websocket.pong.take().unwrap_or_default();
        websocket::encode(Opcode::Pong, &payload, &mut out);
        self.output.push_back(out.into());
        true
    }

    /// Uses some of the client's bytes; `None` when they have to wait.
    pub(super) fn websocket_input(&mut self, data: &[u8]) -> Option<usize> {
        let hold = self.client.hold.get();
        let State::WebSocket(websocket) = &mut self.state else {
            return None;
        };
        if websocket.waits(hold) {
            return None;
        }
        match websocket.decoder.decode(data) {
            Ok(decoded) => {
                // Bytes of a long frame are a sign of life too: its client cannot put a pong into the middle of it.
                websocket.pinged &= decoded.frame.is_some();
                if let Some(frame) = decoded.frame {
                    self.messages_left = self.messages_left.saturating_sub(1);
                    self.websocket_frame(frame);
                }
                if self.websocket_counts() {
                    Some(decoded.consumed)
                } else {
                    Some(data.len())
                }
            }
            Err(violation) => {
                self.websocket_violated(violation);
                Some(data.len())
            }
        }
    }

    /// Counts what is held of this client's messages; a client with more than there is room for is sent away. False then.
    fn websocket_counts(&mut self) -> bool {
        let State::WebSocket(websocket) = &mut self.state else {
            return true;
        };
        let held = websocket.decoder.held() + websocket.waiting;
        if held == websocket.account.bytes {
            return true;
        }
        let grows = held > websocket.account.bytes;
        let sum = websocket.account.set(held);
        if !grows || held <= HELD_ALWAYS || sum <= self.shard.limits().websocket.held_bytes {
            return true;
        }
        debug!(client = %self.client.addr, held, sum, "too much is held of all WebSocket messages together");
        Name::WebSocketsFailed.increment();
        self.websocket_closes(TRY_AGAIN_LATER, "too busy for a message of this size");
        self.close(Farewell::Told);
        false
    }

    /// What waited for a handler has gone out.
    pub(super) fn websocket_goes_on(&mut self) {
        if let State::WebSocket(websocket) = &mut self.state {
            websocket.waiting = 0;
        }
        self.websocket_counts();
        self.websocket_deadline();
    }

    fn websocket_frame(&mut self, frame: Frame) {
        self.client.note_ping();
        let answers_pings = self.shard.limits().websocket.answer_pings;
        let held = self.client.hold.get() != Hold::Free;
        let State::WebSocket(websocket) = &mut self.state else {
            return;
        };
        let pinged = std::mem::take(&mut websocket.pinged);
        match frame.opcode {
            Opcode::Ping if answers_pings => {
                websocket.pong = Some(frame.payload);
                return self.websocket_deadline();
            }
            Opcode::Pong if pinged && frame.payload == PING => return self.websocket_deadline(),
            // Where ours or the handler's last word is said already, this was the client's.
            Opcode::Close if websocket.front_closed || websocket.attachment.is_none() => {
                return self.close(Farewell::Told);
            }
            _ => {}
        }
        if let Some(attachment) = &websocket.attachment
            && !held
        {
            let message = websocket.frame_head.message(frame.flags, &frame.payload);
            let size = message.len();
            if attachment.send(message) == Sent::Held {
                self.client.hold.set(Hold::Held);
                websocket.waiting = size;
            }
        }
        if frame.opcode == Opcode::Close {
            websocket.client_closed = Some(frame.payload);
        }
        self.websocket_deadline();
    }

    /// Sets the deadline for what is awaited now.
    pub(super) fn websocket_deadline(&mut self) {
        let State::WebSocket(websocket) = &self.state else {
            return;
        };
        let limits = self.shard.limits();
        let timeout = limits.websocket.close_timeout;
        let both = websocket.client_closed.is_some() && websocket.handler_closed;
        self.client.set_deadline(match &websocket.attachment {
            None => CLOSE_GRACE,
            Some(_) if both => CLOSE_GRACE,
            Some(_)
                if websocket.front_closed
                    || websocket.handler_closed
                    || websocket.client_closed.is_some() =>
            {
                timeout
            }
            Some(attachment) if self.client.hold.get() == Hold::Held => {
                super::wait_max(attachment.pool())
            }
            Some(_) => limits.websocket.ping_interval,
        });
    }

    /// What was awaited has not come in time.
    pub(super) fn websocket_expired(&mut self) {
        let held = self.client.hold.get() == Hold::Held;
        let State::WebSocket(websocket) = &mut self.state else {
            return;
        };
        if websocket.attachment.is_none() || websocket.handler_closed || websocket.front_closed {
            self.close(Farewell::Told);
        } else if let Some(payload) = websocket.client_closed.take() {
            debug!(client = %self.client.addr, "the handler does not answer a close: answered");
            self.websocket_answers_close(&payload);
            self.close(Farewell::Told);
        } else if held {
            debug!(client = %self.client.addr, "no handler took a message in time");
            self.websocket_closes(TRY_AGAIN_LATER, "no handler");
            self.close(Farewell::Told);
        } else if websocket.pinged {
            debug!(client = %self.client.addr, "the client does not answer a ping");
            self.close(Farewell::Told);
        } else {
            if websocket.is_between() {
                let mut out = Vec::new();
                websocket::encode(Opcode::Ping, PING, &mut out);
                websocket.pinged = true;
                self.output.push_back(out.into());
            }
            self.websocket_deadline();
        }
    }

    /// The client has broken the protocol or a limit: it is told which, and the connection ends (RFC 6455 7.1.7).
    fn websocket_violated(&mut self, violation: Violation) {
        debug!(client = %self.client.addr, %violation, "WebSocket failed");
        Name::WebSocketsFailed.increment();
        self.websocket_closes(violation.close_code(), &violation.to_string());
        self.close(Farewell::Told);
    }

    /// Our own close frame, where one may stand.
    fn websocket_closes(&mut self, code: u16, reason: &str) {
        let State::WebSocket(websocket) = &mut self.state else {
            return;
        };
        if websocket.is_between() {
            let mut out = Vec::new();
            websocket::encode_close(code, reason, &mut out);
            websocket.front_closed = true;
            self.output.push_back(out.into());
        }
    }

    /// The client's close frame is answered by its like, in the handler's place.
    fn websocket_answers_close(&mut self, payload: &[u8]) {
        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        // Without a code, so is the answer: 1005 must not be sent, and is not.
        self.websocket_closes(code.unwrap_or(1005), "");
    }

    /// The handler lets the connection go: with an empty payload.
    pub(super) fn websocket_handler_ends(&mut self, voice: PeerId) {
        let farewell = if self.client.is_handled_by(voice) {
            Farewell::Silent
        } else {
            Farewell::Told
        };
        let State::WebSocket(websocket) = &mut self.state else {
            return;
        };
        if let Some(payload) = websocket.client_closed.take() {
            self.websocket_answers_close(&payload);
            return self.close(farewell);
        }
        if websocket.handler_closed {
            // The client's close frame is on its way, and ending before it came could reset the connection under ours.
            websocket.attachment = None;
            self.client.leave(farewell);
            return self.websocket_deadline();
        }
        self.close(farewell);
    }

    /// The handler's route is gone, and its time is up: nobody will ever answer here.
    pub(super) fn websocket_abandoned(&mut self) {
        self.websocket_closes(GOING_AWAY, "");
        match &self.state {
            State::WebSocket(websocket) if websocket.front_closed => self.websocket_deadline(),
            // In the middle of a frame of the handler's, or when all is said already.
            _ => self.close(Farewell::Told),
        }
    }

    /// The front stops: the client is told to go, and its answer awaited.
    pub(super) fn websocket_leaves(&mut self) {
        let State::WebSocket(websocket) = &self.state else {
            return;
        };
        if websocket.client_closed.is_none()
            && websocket.attachment.is_some()
            && websocket.is_between()
        {
            self.websocket_closes(GOING_AWAY, "");
            self.websocket_deadline();
        }
    }
}
