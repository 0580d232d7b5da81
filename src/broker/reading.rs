//! What is read out of a server's message beside what [`crate::wire::request`] tells. No state.

use bytes::Bytes;

use crate::http1::{Asked, Version};
use crate::wire::Protocol;
use crate::wire::request::Request;

/// Bytes of a target that the log gets.
const LINE_MAX: usize = 1024;

/// What kind of request it is, for whoever follows its response.
pub(super) fn asked(method: Option<&[u8]>) -> Asked {
    match method {
        Some(b"HEAD") => Asked::Head,
        Some(b"CONNECT") => Asked::Connect,
        _ => Asked::Other,
    }
}

/// Its version, for the same.
pub(super) fn version(word: Option<&[u8]>) -> Version {
    match word {
        Some(b"HTTP/1.0") => Version::Http10,
        _ => Version::Http11,
    }
}

/// What is behind `SENDER SP CONNID SP`.
pub(super) fn behind_address(message: &Bytes) -> Option<Bytes> {
    let mut spaces = memchr::memchr_iter(b' ', message);
    let second = spaces.nth(1)?;
    Some(message.slice(second + 1..))
}

/// A request in a few words: its method and its target.
pub(super) fn request_line(behind_address: &[u8]) -> String {
    let mut message = b"- 0 ".to_vec();
    message.extend_from_slice(behind_address);
    let Ok(request) = Request::decode(message.into()) else {
        return String::new();
    };
    let text = |value: Option<&[u8]>| {
        let value = value.unwrap_or_default();
        let value = value.get(..LINE_MAX).unwrap_or(value);
        String::from_utf8_lossy(value).into_owned()
    };
    let (method, target) = (text(request.method()), text(request.headers.first("URI")));
    format!("{method} {target}")
}

/// The protocol, by what stands behind the length of the headers.
pub(super) fn protocol(body: &[u8]) -> Protocol {
    let headers = body.splitn(2, |byte| *byte == b' ').nth(1);
    let first = headers.and_then(|headers| {
        let colon = memchr::memchr(b':', headers)?;
        headers.get(colon + 1).copied()
    });
    match first {
        Some(b'{') | None => Protocol::Json,
        Some(_) => Protocol::Tnetstring,
    }
}
