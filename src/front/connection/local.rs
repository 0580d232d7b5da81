//! A request that is answered in this process: its body goes to the maker of the response or nowhere, the response's parts
//! are framed and written. The request is over when both have ended, so that a client's next one begins where it should.

use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use http::StatusCode;
use tracing::debug;

use super::{Connection, Gone, State};
use crate::front::FLUSH_TIMEOUT;
use crate::front::access_log::Line;
use crate::front::answer::Trouble;
use crate::front::client::{Mail, NEVER};
use crate::front::local::{self, BodyPart, Part, ResponseHead, Sink, Source};
use crate::http1::chunked::{Decoded, Decoder, Status};
use crate::http1::{BodyFraming, Version};
use crate::metrics::Name;

/// Bytes of a response that are put together before they are written.
const GATHER_BYTES: usize = 64 * 1024;

/// Bytes of a request's body that are read for nothing when the response is complete before it, to keep the connection.
const SURPLUS_MAX: u64 = 256 * 1024;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A request that is being answered in this process.
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts about both messages that vary independently"
)]
pub(super) struct Local {
    source: Source,
    sink: Sink,
    /// The maker can take a part of the body.
    has_room: bool,
    incoming: Incoming,
    outgoing: Outgoing,
    head_request: bool,
    version: Version,
    keep_alive: bool,
    line: Option<Line>,
    /// 0 until the final head has come.
    status: u16,
    /// Bytes of the response's body so far.
    sent: u64,
    /// The client waits for a 100 that the maker may make: no body is due before.
    awaits_continue: bool,
    /// The maker may switch the protocol.
    may_switch: bool,
    /// The body goes, or went, to the maker.
    had_maker: bool,
    /// Trailer section of the request's body as it came, then its fields.
    trailers: Vec<u8>,
    /// When the body began, in milliseconds of the shard's clock, moved on by the time that the maker took nothing; and its
    /// bytes since.
    began: u64,
    received: u64,
    /// Since when the maker takes nothing.
    held_since: Option<u64>,
}

/// What is still to come of the request's body.
enum Incoming {
    Done,
    Length(u64),
    Chunked(Decoder),
    /// The protocol was switched: bytes as they are.
    Raw,
}

/// How the response's body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outgoing {
    /// No final head yet.
    Nothing,
    /// There is none: HEAD, 204, 304.
    Empty,
    /// So many bytes are left.
    Length(u64),
    Chunked,
    /// As it comes, until the end of the connection; or the protocol was switched.
    Raw,
    /// The response is complete.
    Ended,
}

impl Local {
    /// Whether the client's bytes are wanted now.
    pub(super) fn wants_input(&self) -> bool {
        !matches!(self.incoming, Incoming::Done) && self.can_take()
    }

    fn can_take(&self) -> bool {
        matches!(self.sink, Sink::Drop) || self.has_room
    }

    /// Whether a body, not a tunnel, is awaited: then its rate counts.
    pub(super) fn is_receiving(&self) -> bool {
        self.has_body_left() && self.can_take() && !self.awaits_continue
    }

    /// Whether some of a body, not of a tunnel, is still to come.
    pub(super) fn has_body_left(&self) -> bool {
        matches!(self.incoming, Incoming::Length(_) | Incoming::Chunked(_))
    }

    /// Whether the client's bytes are passed on as they are.
    pub(super) fn is_tunnel(&self) -> bool {
        matches!(self.incoming, Incoming::Raw)
    }

    /// Whether it goes on when the client has shut down its sending side. Files need nothing of a client that has sent its
    /// whole request; a backend may do work for nobody, so there it counts as having left, as with handlers.
    pub(super) fn outlives_input(&self) -> bool {
        let is_switched = self.status == StatusCode::SWITCHING_PROTOCOLS.as_u16();
        is_switched || (!self.had_maker && matches!(self.incoming, Incoming::Done))
    }

    /// The client sends nothing more into the tunnel; the other side may.
    pub(super) fn end_tunnel_input(&mut self) {
        self.incoming = Incoming::Done;
    }

    /// Whether little enough of the body is left that reading it costs less than another connection.
    fn has_little_left(&self) -> bool {
        match self.incoming {
            Incoming::Done => true,
            Incoming::Length(left) => left <= SURPLUS_MAX,
            Incoming::Chunked(_) | Incoming::Raw => false,
        }
    }

    /// Gives a part of the body to the maker; one that has gone away wants no more of it.
    fn give(&mut self, part: BodyPart) {
        if let Sink::Maker { sender, .. } = &mut self.sink {
            self.has_room = false;
            if sender.send_item(part).is_err() {
                self.sink = Sink::Drop;
            }
        }
    }

    /// Tells the maker of the body's end, when that has come and there is room: its trailer fields, then that it is complete.
    fn give_end(&mut self) {
        if !self.has_room || self.may_switch || !matches!(self.incoming, Incoming::Done) {
            return;
        }
        if self.trailers.is_empty() {
            // Nothing more will come: the maker is told once, by the end and the closed channel.
            self.give(BodyPart::End);
            self.sink = Sink::Drop;
        } else {
            let section = std::mem::take(&mut self.trailers);
            self.give(BodyPart::Trailers(local::trailers(&section)));
        }
    }

    /// Looks whether the maker can take a part of the body. The end is a part too.
    fn poll_room(&mut self, cx: &mut Context<'_>, now: u64) {
        if self.has_room {
            return;
        }
        if let Sink::Maker { sender, .. } = &mut self.sink {
            match sender.poll_reserve(cx) {
                Poll::Ready(Ok(())) => self.has_room = true,
                Poll::Ready(Err(_)) => self.sink = Sink::Drop,
                Poll::Pending => {
                    self.held_since.get_or_insert(now);
                    return;
                }
            }
        }
        // The client is not to blame for the time it was not read.
        if let Some(since) = self.held_since.take() {
            self.began = self.began.saturating_add(now.saturating_sub(since));
        }
    }

    /// The next part of the response. A channel that closes before the end gives a failure.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Part> {
        match &mut self.source {
            Source::Ready(ready) => Poll::Ready(match ready.take() {
                Some((head, body)) => {
                    let part = Part::Head(head);
                    self.source = Source::Body(Some(body));
                    part
                }
                None => Part::End,
            }),
            Source::Body(body) => Poll::Ready(match body.take() {
                Some(body) if !body.is_empty() => Part::Data(body),
                _ => Part::End,
            }),
            Source::Task { parts, .. } => parts
                .poll_recv(cx)
                .map(|part| part.unwrap_or(Part::Failed(Trouble::MakerLost))),
        }
    }

    /// Uses some of the client's bytes; `Err` when they are no body.
    fn feed(&mut self, data: &[u8]) -> Result<usize, Trouble> {
        let (used, whole) = match &mut self.incoming {
            Incoming::Done => return Ok(0),
            Incoming::Raw => {
                self.give(BodyPart::Data(Bytes::copy_from_slice(data)));
                (data.len(), false)
            }
            Incoming::Length(left) => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
                *left -= used as u64;
                let whole = *left == 0;
                if matches!(self.sink, Sink::Maker { .. }) {
                    self.give(BodyPart::Data(Bytes::copy_from_slice(&data[..used])));
                }
                (used, whole)
            }
            Incoming::Chunked(decoder) => {
                let mut decoded = Vec::new();
                let keeps = matches!(self.sink, Sink::Maker { .. });
                let trailers = &mut self.trailers;
                let Decoded { consumed, status } = decoder.decode_whole(
                    data,
                    |run| {
                        if keeps {
                            decoded.extend_from_slice(run);
                        }
                    },
                    |byte| {
                        if keeps {
                            trailers.push(byte);
                        }
                    },
                );
                if !decoded.is_empty() {
                    self.give(BodyPart::Data(decoded.into()));
                }
                match status {
                    Status::More => (data.len(), false),
                    Status::Done => (consumed, true),
                    Status::Refused(_) => return Err(Trouble::BadChunk),
                }
            }
        };
        self.received += used as u64;
        self.awaits_continue = false;
        if whole {
            // The end is told when there is room for it.
            self.incoming = Incoming::Done;
            if self.trailers == b"\r\n" {
                self.trailers.clear();
            }
        }
        Ok(used)
    }
}

impl Connection {
    /// Begins a request that is answered in this process; so many bytes behind its head are here.
    pub(super) fn begin_local(&mut self, request: local::Request, here: usize) {
        let incoming = match request.framing {
            BodyFraming::None | BodyFraming::Length(0) => Incoming::Done,
            BodyFraming::Length(length) => Incoming::Length(length),
            BodyFraming::Chunked => Incoming::Chunked(Decoder::default()),
        };
        let (passes_continue, may_switch) = match &request.sink {
            Sink::Maker {
                passes_continue,
                may_switch,
                ..
            } => (*passes_continue, *may_switch),
            Sink::Drop => (false, false),
        };
        let had_maker = matches!(request.sink, Sink::Maker { .. });
        let waits = request.wants_continue && here == 0 && !matches!(incoming, Incoming::Done);
        if waits && !passes_continue {
            self.output.push_back(Bytes::from_static(CONTINUE));
        }
        let limits = self.shard.limits();
        self.client
            .set_deadline(if matches!(incoming, Incoming::Done) {
                NEVER
            } else {
                limits.body_grace
            });
        self.state = State::Local(Box::new(Local {
            source: request.source,
            sink: request.sink,
            has_room: false,
            incoming,
            outgoing: Outgoing::Nothing,
            head_request: request.is_head,
            version: request.version,
            keep_alive: request.keep_alive,
            line: request.line,
            status: 0,
            sent: 0,
            awaits_continue: waits && passes_continue,
            may_switch,
            had_maker,
            trailers: Vec::new(),
            began: self.shard.clock.milliseconds(),
            received: 0,
            held_since: None,
        }));
    }

    /// Lets the open local request go on as far as it can without reading: room for its body, parts of its response into
    /// the output. True when more parts may be ready, once the socket has taken these.
    pub(super) fn poll_local(&mut self, cx: &mut Context<'_>) -> bool {
        let State::Local(local) = &mut self.state else {
            return false;
        };
        let now = self.shard.clock.milliseconds();
        if self.deaf && self.input.is_empty() && local.is_tunnel() {
            local.end_tunnel_input();
        }
        local.poll_room(cx, now);
        local.give_end();
        if matches!(local.incoming, Incoming::Done) {
            // Trailer fields are followed by the end.
            local.poll_room(cx, now);
            local.give_end();
        }
        if !self.input.is_empty() && local.wants_input() {
            self.fresh = true;
        }
        // What was made waits for the socket to take what came before it.
        let mut gathered: usize = self.output.iter().map(Bytes::len).sum();
        while gathered < GATHER_BYTES {
            let State::Local(local) = &mut self.state else {
                return false;
            };
            if local.outgoing == Outgoing::Ended {
                self.response_is_whole();
                return false;
            }
            let Poll::Ready(part) = local.poll_part(cx) else {
                return false;
            };
            let before = self.output.len();
            self.local_part(part);
            gathered += self
                .output
                .iter()
                .skip(before)
                .map(Bytes::len)
                .sum::<usize>();
        }
        true
    }

    /// Frames one part of the response.
    fn local_part(&mut self, part: Part) {
        let State::Local(local) = &mut self.state else {
            return;
        };
        match part {
            Part::Interim(head) => {
                if local.version == Version::Http11 && local.outgoing == Outgoing::Nothing {
                    let mut out = Vec::new();
                    head.encode("", &mut out);
                    self.output.push_back(out.into());
                }
                if head.status == StatusCode::CONTINUE && local.awaits_continue {
                    local.awaits_continue = false;
                    local.began = self.shard.clock.milliseconds();
                    self.client.set_deadline(self.shard.limits().body_grace);
                }
            }
            Part::Head(head) => self.local_head(&head),
            Part::Switch(head) => {
                let mut out = Vec::new();
                head.encode("", &mut out);
                self.output.push_back(out.into());
                local.status = head.status.as_u16();
                local.outgoing = Outgoing::Raw;
                local.incoming = Incoming::Raw;
                local.may_switch = false;
                local.keep_alive = false;
                // What came behind the request was no tunnel until now.
                self.fresh = !self.input.is_empty();
                self.client.set_deadline(NEVER);
            }
            Part::Data(data) => self.local_data(data),
            Part::Trailers(trailers) => {
                if local.outgoing == Outgoing::Chunked {
                    let mut out = b"0\r\n".to_vec();
                    local::put_fields(&trailers, &mut out);
                    out.extend_from_slice(b"\r\n");
                    self.output.push_back(out.into());
                    local.outgoing = Outgoing::Ended;
                }
            }
            Part::End => match local.outgoing {
                Outgoing::Nothing => self.local_failed(Trouble::MakerLost),
                Outgoing::Length(left) if left > 0 => self.local_failed(Trouble::MakerLost),
                Outgoing::Chunked => {
                    self.output.push_back(Bytes::from_static(b"0\r\n\r\n"));
                    local.outgoing = Outgoing::Ended;
                }
                _ => local.outgoing = Outgoing::Ended,
            },
            Part::Failed(trouble) => self.local_failed(trouble),
        }
    }

    fn local_head(&mut self, head: &ResponseHead) {
        let last = self.shard.is_draining();
        let State::Local(local) = &mut self.state else {
            return;
        };
        local.status = head.status.as_u16();
        let bodiless = local.head_request || matches!(local.status, 204 | 304);
        let mut framing = "";
        local.outgoing = match head.length {
            _ if bodiless => Outgoing::Empty,
            Some(length) => Outgoing::Length(length),
            None if local.version == Version::Http11 => {
                framing = "Transfer-Encoding: chunked\r\n";
                Outgoing::Chunked
            }
            None => {
                local.keep_alive = false;
                Outgoing::Raw
            }
        };
        // A client that was not told to send its body need not send it, and then its next bytes could be either that or a
        // request; and one that is refused in the middle of a long body would have to send all of it.
        let refused = head.status.is_client_error() || head.status.is_server_error();
        local.keep_alive &= !(last || local.awaits_continue || refused && !local.has_little_left());
        local.awaits_continue = false;
        local.may_switch = false;
        let connection = match (local.version, local.keep_alive) {
            (Version::Http11, true) => "",
            (Version::Http10, true) => "Connection: keep-alive\r\n",
            (_, false) => "Connection: close\r\n",
        };
        let mut out = Vec::with_capacity(512);
        head.encode(&[framing, connection].concat(), &mut out);
        self.output.push_back(out.into());
    }

    fn local_data(&mut self, mut data: Bytes) {
        let State::Local(local) = &mut self.state else {
            return;
        };
        match &mut local.outgoing {
            Outgoing::Nothing | Outgoing::Empty | Outgoing::Ended => return,
            Outgoing::Raw => {}
            Outgoing::Length(left) => {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
            }
            Outgoing::Chunked => {
                if data.has_remaining() {
                    self.output
                        .push_back(format!("{:x}\r\n", data.len()).into());
                }
            }
        }
        if data.is_empty() {
            return;
        }
        local.sent += data.len() as u64;
        let chunked = local.outgoing == Outgoing::Chunked;
        self.output.push_back(data);
        if chunked {
            self.output.push_back(Bytes::from_static(b"\r\n"));
        }
    }

    /// The maker gives up: an answer of ours, or the end when a response has begun, so that the client sees it cut short.
    pub(super) fn local_failed(&mut self, trouble: Trouble) {
        let State::Local(local) = &mut self.state else {
            return;
        };
        if local.status != 0 {
            debug!(client = %self.client.addr, ?trouble, "response cut short");
            self.end_local();
            self.close(super::Farewell::Told);
            return;
        }
        let (line, head_request) = (local.line.take(), local.head_request);
        self.refuse(trouble, head_request, line);
    }

    /// The response is complete. What is left of the request's body is read, if that is worth it; where it went to its maker,
    /// nobody wants it any more.
    fn response_is_whole(&mut self) {
        let State::Local(local) = &mut self.state else {
            return;
        };
        let over = match local.incoming {
            Incoming::Done | Incoming::Raw => true,
            Incoming::Length(_) | Incoming::Chunked(_) if !local.had_maker => false,
            Incoming::Length(_) | Incoming::Chunked(_) => {
                local.sink = Sink::Drop;
                local.keep_alive &= local.has_little_left();
                !local.keep_alive
            }
        };
        if over {
            self.local_ended();
        } else if !self.input.is_empty() {
            self.fresh = true;
        }
    }

    /// Both the response and the request's body have ended.
    fn local_ended(&mut self) {
        let keep_alive = matches!(&self.state, State::Local(local) if local.keep_alive);
        self.end_local();
        if keep_alive {
            self.await_head();
        } else {
            self.close(super::Farewell::Told);
        }
    }

    /// Ends the open local request, if there is one: its maker stops, the log line is written.
    pub(super) fn end_local(&mut self) {
        let State::Local(local) = &mut self.state else {
            return;
        };
        if let Some(line) = local.line.take() {
            let status = if local.status == 0 {
                super::CLIENT_GONE
            } else {
                local.status
            };
            self.shard.log(&line, status, local.sent);
        }
        self.state = State::Head;
    }

    /// A deadline has passed: either the body is due, or the client has taken nothing of the response for too long.
    pub(super) fn local_expired(&mut self) -> Result<(), Gone> {
        let State::Local(local) = &mut self.state else {
            return Ok(());
        };
        let limits = self.shard.limits();
        let now = self.shard.clock.milliseconds();
        let elapsed = now.saturating_sub(local.began);
        if local.is_receiving()
            && elapsed >= limits.body_grace
            && local.received.saturating_mul(1000) < limits.body_rate.saturating_mul(elapsed)
        {
            self.local_failed(Trouble::BodyTimeout);
            return Ok(());
        }
        if !self.output.is_empty() {
            let taken = self.client.activity.get().last_write;
            let taken = taken.map_or(local.began, |seconds| u64::from(seconds) * 1000);
            if now.saturating_sub(taken) >= FLUSH_TIMEOUT {
                return Err(Gone);
            }
            self.client.set_deadline(FLUSH_TIMEOUT);
        }
        if local.has_body_left() {
            self.client.bring_deadline(limits.body_grace);
        }
        Ok(())
    }

    /// What handlers send meanwhile is for an earlier request and would be taken for this one's response: bytes are dropped,
    /// and a close is a close.
    pub(super) fn local_mail(&mut self) {
        while let Some(mail) = self.client.next_mail() {
            match mail {
                Mail::Payload { bytes, voice } => {
                    Name::ReplyBytesDropped.add(bytes.len() as u64);
                    debug!(client = %self.client.addr, %voice, "bytes of a handler that has no request: dropped");
                }
                Mail::File { voice, .. } => {
                    debug!(client = %self.client.addr, %voice, "a file of a handler that has no request: not sent");
                }
                Mail::Close { voice } => return self.handler_closes(voice),
                Mail::Failed(_) => {}
            }
        }
    }

    /// Uses some of the client's bytes for the body of the open local request; `None` when they have to wait.
    pub(super) fn feed_local(&mut self, data: &[u8]) -> Option<usize> {
        let State::Local(local) = &mut self.state else {
            return None;
        };
        if !local.wants_input() {
            return None;
        }
        match local.feed(data) {
            Ok(used) => Some(used),
            Err(trouble) => {
                self.local_failed(trouble);
                Some(0)
            }
        }
    }
}
