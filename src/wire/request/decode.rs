//! Reading a message from a front: how it is cut, not what it means.

use bytes::Bytes;
use memchr::memchr;

use super::headers::{Headers, take};
use super::kind::Kind;
use crate::tnetstring::Limits;
use crate::wire::{ConnId, DecodeError, DecodeErrorKind, json};

/// What a message may hold: its size is bounded by the socket it came through, and lengths have ten digits at most,
/// so that bodies of a gigabyte and more can be said, which nine digits (the tnetstring specification) cannot.
pub(super) const LIMITS: Limits = Limits {
    depth: 0,
    digits: 10,
    size: isize::MAX as usize,
};

/// A message from a front, cut into its parts. All parts are references into the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The `send_ident` of the handler's row in the front's configuration. A reply has to begin with it.
    pub sender: Bytes,
    /// The client connection.
    pub conn_id: ConnId,
    /// The path as it was received; `@*` for notices.
    pub path: Bytes,
    /// The header dict.
    pub headers: Headers,
    /// The body; for notices, a JSON text.
    pub body: Bytes,
}

impl Request {
    /// Decodes a message: cut at the first three spaces, then headers of either protocol, told by their type byte, and
    /// the body.
    ///
    /// # Errors
    /// The part that is malformed, with the reason. Raw control bytes and bad UTF-8 in JSON are not errors.
    pub fn decode(message: Bytes) -> Result<Request, DecodeError> {
        let (sender, rest) = word(&message).map_err(|kind| kind.field("sender"))?;
        if sender.is_empty() {
            return Err(DecodeErrorKind::Empty.field("sender"));
        }
        let (conn_id, rest) = word(rest)
            .and_then(|(id, rest)| Ok((number(id)?, rest)))
            .map_err(|kind| kind.field("connection id"))?;
        let (path, rest) = word(rest).map_err(|kind| kind.field("path"))?;
        let place = |before: usize, length: usize, rest: &[u8]| {
            let start = message.len().saturating_sub(rest.len());
            let start = start.saturating_add(before);
            start..start.saturating_add(length)
        };
        let headers = take(rest, LIMITS).and_then(|cut| {
            let place = place(cut.before, cut.payload.len(), rest);
            let headers = match cut.tag {
                b',' => json::read_object(&message, place),
                b'}' => Headers::read_tnetstring(&message, place, LIMITS),
                _ => Err(DecodeErrorKind::Shape("a netstring of JSON or a dict")),
            };
            Ok((headers?, cut.rest))
        });
        let (headers, rest) = headers.map_err(|kind| kind.field("headers"))?;
        let body = match take(rest, LIMITS) {
            Ok(cut) if cut.tag == b',' && cut.rest.is_empty() => Ok(cut.payload),
            Ok(cut) if cut.tag == b',' => Err(DecodeErrorKind::Trailing {
                bytes: cut.rest.len(),
            }),
            Ok(_) => Err(DecodeErrorKind::Shape("a netstring")),
            Err(kind) => Err(kind),
        };
        let body = body.map_err(|kind| kind.field("body"))?;
        Ok(Request {
            sender: message.slice_ref(sender),
            conn_id,
            path: message.slice_ref(path),
            body: message.slice_ref(body),
            headers: headers.of(message),
        })
    }

    /// The request method, or Mongrel2's word for what else this is. A client may write any word: see [`Request::kind`].
    pub fn method(&self) -> Option<&[u8]> {
        self.headers.first("METHOD")
    }

    /// `HTTP/1.0` or `HTTP/1.1`, for requests.
    pub fn version(&self) -> Option<&[u8]> {
        self.headers.first("VERSION")
    }

    /// Whether the client has gone (or never was): nothing more need be sent to this connection.
    pub fn is_disconnect(&self) -> bool {
        self.kind() == Kind::Disconnect
    }

    /// Whether this is no request but news of a connection from the front.
    pub fn is_notice(&self) -> bool {
        matches!(
            self.kind(),
            Kind::Disconnect | Kind::Credits(_) | Kind::Drained | Kind::Notice
        )
    }

    /// Whether HTTP wants the connection closed behind the response: `Connection: close`, or HTTP/1.0 without
    /// `keep-alive`. Mongrel2 leaves that closing to the handler.
    pub fn should_close(&self) -> bool {
        says_close(&self.headers.all("connection").iter(), self.version())
    }
}

/// Whether a request of this version with these values of `Connection` wants it closed.
pub(super) fn says_close<'a>(
    values: &(impl Iterator<Item = &'a [u8]> + Clone),
    version: Option<&[u8]>,
) -> bool {
    let says = |token: &[u8]| {
        values
            .clone()
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|word| is_token(word, token))
    };
    says(b"close") || (version == Some(b"HTTP/1.0") && !says(b"keep-alive"))
}

/// Whether a member of a comma-separated list is this token.
pub(super) fn is_token(word: &[u8], token: &[u8]) -> bool {
    word.trim_ascii().eq_ignore_ascii_case(token)
}

/// What is before the next space, and what is behind it.
fn word(text: &[u8]) -> Result<(&[u8], &[u8]), DecodeErrorKind> {
    let end = memchr(b' ', text).ok_or(DecodeErrorKind::Truncated)?;
    match text.split_at_checked(end) {
        Some((word, [_, rest @ ..])) => Ok((word, rest)),
        _ => Err(DecodeErrorKind::Truncated),
    }
}

pub(super) fn number(text: &[u8]) -> Result<ConnId, DecodeErrorKind> {
    if text.is_empty() {
        return Err(DecodeErrorKind::Empty);
    }
    if let Some((at, &byte)) = text
        .iter()
        .enumerate()
        .find(|(_, byte)| !byte.is_ascii_digit())
    {
        return Err(DecodeErrorKind::Byte { byte, at });
    }
    let number = text.iter().try_fold(0_u32, |number, &byte| {
        number
            .checked_mul(10)?
            .checked_add(u32::from(byte.wrapping_sub(b'0')))
    });
    number.map(ConnId).ok_or(DecodeErrorKind::Range)
}
