//! Requests (stand-in: JSON only).
use super::{ConnId, DecodeError};
use bytes::Bytes;

/// A header value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// One.
    One(Bytes),
    /// Many.
    Many(Vec<Bytes>),
}
/// Headers.
#[derive(Debug, Clone, Default)]
pub struct Headers(Vec<(Bytes, Value)>);
impl Headers {
    /// First value.
    pub fn first(&self, name: &str) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(key, _)| key == name.as_bytes())
            .and_then(|(_, value)| match value {
                Value::One(value) => Some(&value[..]),
                Value::Many(values) => values.first().map(|value| &value[..]),
            })
    }
}
/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An HTTP request.
    Http,
    /// Gone.
    Disconnect,
    /// Credits.
    Credits(u64),
    /// A message.
    Message,
}
/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Sender.
    pub sender: Bytes,
    /// Id.
    pub conn_id: ConnId,
    /// Path.
    pub path: Bytes,
    /// Headers.
    pub headers: Headers,
    /// Body.
    pub body: Bytes,
}
impl Request {
    /// Decodes.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let bad = |field| DecodeError { field };
        let mut parts = bytes.splitn(4, |byte| *byte == b' ');
        let sender = bytes.slice_ref(parts.next().ok_or(bad("sender"))?);
        let conn_id = parts
            .next()
            .and_then(|id| std::str::from_utf8(id).ok()?.parse().ok())
            .ok_or(bad("conn_id"))?;
        let path = bytes.slice_ref(parts.next().ok_or(bad("path"))?);
        let rest = parts.next().ok_or(bad("headers"))?;
        let (head, rest) = netstring(rest).ok_or(bad("headers"))?;
        let (body, _) = netstring(rest).ok_or(bad("body"))?;
        let map: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(head).map_err(|_| bad("headers"))?;
        let headers = map
            .into_iter()
            .map(|(key, value)| {
                (
                    Bytes::from(key),
                    Value::One(Bytes::from(value.as_str().unwrap_or("").to_owned())),
                )
            })
            .collect();
        Ok(Self {
            sender,
            conn_id: ConnId(conn_id),
            path,
            headers: Headers(headers),
            body: bytes.slice_ref(body),
        })
    }
    /// Kind.
    pub fn kind(&self) -> Kind {
        if self.is_disconnect() {
            Kind::Disconnect
        } else {
            Kind::Http
        }
    }
    /// Method.
    pub fn method(&self) -> &[u8] {
        self.headers.first("METHOD").unwrap_or_default()
    }
    /// Version.
    pub fn version(&self) -> Option<&[u8]> {
        self.headers.first("VERSION")
    }
    /// Gone.
    pub fn is_disconnect(&self) -> bool {
        &self.path[..] == b"@*" && self.version().is_none()
    }
    /// Close.
    pub fn should_close(&self) -> bool {
        let connection = self.headers.first("connection").unwrap_or_default();
        connection.eq_ignore_ascii_case(b"close")
            || self.version() == Some(b"HTTP/1.0")
                && !connection.eq_ignore_ascii_case(b"keep-alive")
    }
}
fn netstring(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = bytes.iter().position(|byte| *byte == b':')?;
    let len: usize = std::str::from_utf8(&bytes[..colon]).ok()?.parse().ok()?;
    Some((
        bytes.get(colon + 1..colon + 1 + len)?,
        bytes.get(colon + 2 + len..)?,
    ))
}
