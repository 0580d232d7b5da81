//! A request that asks for WebSocket, from its head to the handler's 101: what is kept of it meanwhile.
//!
//! The head of the messages that its frames will become is written here once, while the request's head is at hand, and kept for
//! as long as the WebSocket lives. What frames are is `websocket`'s to say, and what becomes of them `connection::websocket`'s.

use bytes::{Bytes, BytesMut};

use super::dispatch::is_reserved;
use super::message::{self, Context, Kind};
use crate::http1::{BodyFraming, Head, fields};
use crate::websocket::deflate::Agreement;
use crate::websocket::{self, Extensions, Handshake, Upgrade};
use crate::wire::request::{self, Field};

const EXTENSIONS: &[u8] = b"sec-websocket-extensions";

/// A handshake that a handler has yet to answer.
#[derive(Debug)]
pub(super) struct Upgrading {
    /// `PATH SP HEADERS` of the frames' messages.
    pub(super) frame_head: FrameHead,
    /// The value for Sec-WebSocket-Accept, which is the body of the handler's message.
    pub(super) accept: [u8; websocket::handshake::ACCEPT_BYTES],
    /// We compress: the client has offered it, and the setting says so. The handler does not see the offer.
    deflate: Option<Agreement>,
    /// The head of the handler's response as far as it has come in earlier payloads.
    response: Vec<u8>,
}

/// The head of every message of a WebSocket, but for its FLAGS.
#[derive(Debug)]
pub(super) struct FrameHead {
    bytes: Box<[u8]>,
    flags_at: usize,
}

impl FrameHead {
    /// The message of a frame, all behind `SENDER SP CONNID SP`.
    pub(super) fn message(&self, flags: u8, payload: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(self.bytes.len() + payload.len() + 16);
        out.extend_from_slice(&self.bytes);
        let text = websocket::frame::flags_text(flags);
        if let Some(digits) = out.get_mut(self.flags_at..self.flags_at + 2) {
            digits.copy_from_slice(&text[2..]);
        }
        request::encode_body(payload, &mut out);
        out.into()
    }
}

/// Whether a request asks for WebSocket.
pub(super) fn look(head: &Head<'_, '_, Field<'_>>) -> Upgrade {
    // Nearly all requests end here.
    if !head
        .fields
        .iter()
        .any(|field| field.name.eq_ignore_ascii_case(b"upgrade"))
    {
        return Upgrade::No;
    }
    let has_body = !matches!(head.framing, BodyFraming::None | BodyFraming::Length(0));
    let pairs = head.fields.iter().map(|field| (field.name, field.value));
    websocket::upgrade(head.method, head.version, has_body, &pairs)
}

impl Upgrading {
    /// Keeps what will be needed of this head. `deflates`: the setting.
    pub(super) fn new(
        head: &Head<'_, '_, Field<'_>>,
        handshake: Handshake,
        context: &Context<'_>,
        deflates: bool,
    ) -> Self {
        let deflate = handshake.deflate.filter(|_| deflates);
        let shown: Vec<Field<'_>> = head
            .fields
            .iter()
            .filter(|field| !is_reserved(field) && !is_hidden(deflate, field.name))
            .copied()
            .collect();
        let context = Context {
            kind: Kind::Frame,
            credits: None,
            ..*context
        };
        let bytes = message::encode(head, &shown, &context, 0);
        let flags_at = message::flags_at(&bytes, context.protocol).unwrap_or(bytes.len());
        Self {
            frame_head: FrameHead {
                bytes: bytes.into_boxed_slice(),
                flags_at,
            },
            accept: handshake.accept,
            deflate,
            response: Vec::new(),
        }
    }

    /// Whether a field of the client is not for the handler.
    pub(super) fn hides(&self, name: &[u8]) -> bool {
        is_hidden(self.deflate, name)
    }

    /// Some of the head of the handler's response, which is not whole yet.
    pub(super) fn note(&mut self, payload: &[u8]) {
        self.response.extend_from_slice(payload);
    }

    /// The handler's 101 is whole with this payload, of which the first `head` bytes belong to it. Gives the head to be written in
    /// place of those, and what was agreed upon: our compression is put into it, unless the handler has agreed to something of
    /// its own, or the end of the head cannot be told from what was written before.
    pub(super) fn agree(&self, payload: &Bytes, head: usize) -> (Bytes, Extensions) {
        let head = payload.slice(..head.min(payload.len()));
        let whole = [&self.response[..], &head].concat();
        let named = whole.split(|byte| *byte == b'\n').any(|line| {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            fields::trim_blanks(name).eq_ignore_ascii_case(EXTENSIONS)
        });
        if named {
            return (head, Extensions::Foreign);
        }
        let last = if head.ends_with(b"\r\n") { 2 } else { 1 };
        let line_before = whole.len() - last.min(whole.len());
        match (self.deflate, head.len().checked_sub(last)) {
            (Some(agreement), Some(end)) if whole[..line_before].ends_with(b"\n") => {
                let mut out = BytesMut::with_capacity(head.len() + 160);
                out.extend_from_slice(&head[..end]);
                out.extend_from_slice(b"Sec-WebSocket-Extensions: ");
                out.extend_from_slice(agreement.text().as_bytes());
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(&head[end..]);
                (out.freeze(), Extensions::Deflate)
            }
            _ => (head, Extensions::None),
        }
    }
}

fn is_hidden(deflate: Option<Agreement>, name: &[u8]) -> bool {
    deflate.is_some() && name.eq_ignore_ascii_case(EXTENSIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrading(deflate: bool) -> Upgrading {
        Upgrading {
            frame_head: FrameHead {
                bytes: b"/x 13:{\"FLAGS\":\"0x81\"},".to_vec().into(),
                flags_at: 18,
            },
            accept: [b'a'; 28],
            deflate: deflate
                .then(|| websocket::deflate::negotiate([&b"permessage-deflate"[..]]).expect("met")),
            response: Vec::new(),
        }
    }

    #[test]
    fn a_frame_is_written_behind_the_kept_head() {
        assert_eq!(
            upgrading(false).frame_head.message(0x8a, b"hi"),
            &b"/x 13:{\"FLAGS\":\"0x8A\"},2:hi,"[..]
        );
    }

    #[test]
    fn what_was_agreed_upon_is_put_into_the_handlers_answer() {
        let answer = Bytes::from_static(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n\x81\x00");
        let (head, extensions) = upgrading(true).agree(&answer, answer.len() - 2);
        assert_eq!(extensions, Extensions::Deflate);
        assert_eq!(
            head,
            &b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n\r\n"[..]
        );
        let (head, extensions) = upgrading(false).agree(&answer, answer.len() - 2);
        assert_eq!(
            (head.len(), extensions),
            (answer.len() - 2, Extensions::None)
        );
    }

    #[test]
    fn a_handlers_own_agreement_stands() {
        let mut upgrading = upgrading(true);
        upgrading.note(b"HTTP/1.1 101 S\r\nsec-websocket-EXTENSIONS: x");
        let rest = Bytes::from_static(b"y\r\n\r\n");
        let (head, extensions) = upgrading.agree(&rest, rest.len());
        assert_eq!((head, extensions), (rest, Extensions::Foreign));
    }
}
