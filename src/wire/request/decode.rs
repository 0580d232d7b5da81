//! Reading a message from a front: how it is cut, not what it means.

use bytes::Bytes;
use memchr::memchr;

use super::headers::{Headers, take};
use super::kind::Kind;
use crate::tnetstring::Limits;
use crate::wire::{ConnId, DecodeError, DecodeErrorKind};

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
        let mut left = message;
        let sender = word(&mut left).map_err(|kind| kind.field("sender"))?;
        if sender.is_empty() {
            return Err(DecodeErrorKind::Empty.field("sender"));
        }
        let conn_id = word(&mut left)
            .and_then(|id| number(&id))
            .map_err(|kind| kind.field("connection id"))?;
        let path = word(&mut left).map_err(|kind| kind.field("path"))?;
        let headers = take(&mut left, LIMITS).and_then(|(tag, payload)| match tag {
            b',' => Headers::from_json(&payload),
            b'}' => Headers::from_tnetstring(&payload, LIMITS),
            _ => Err(DecodeErrorKind::Shape("a netstring of JSON or a dict")),
        });
        let headers = headers.map_err(|kind| kind.field("headers"))?;
        let body = match take(&mut left, LIMITS) {
            Ok((b',', body)) if left.is_empty() => Ok(body),
            Ok((b',', _)) => Err(DecodeErrorKind::Trailing { bytes: left.len() }),
            Ok(_) => Err(DecodeErrorKind::Shape("a netstring")),
            Err(kind) => Err(kind),
        };
        let body = body.map_err(|kind| kind.field("body"))?;
        Ok(Request {
            sender,
            conn_id,
            path,
            headers,
            body,
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
        let values = self.headers.all("connection");
        says_close(&values.iter().map(|value| &value[..]), self.version())
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

/// Takes what is before the next space, and the space.
fn word(left: &mut Bytes) -> Result<Bytes, DecodeErrorKind> {
    let end = memchr(b' ', left).ok_or(DecodeErrorKind::Truncated)?;
    let word = left.split_to(end);
    *left = left.slice(1..);
    Ok(word)
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
