//! Responses that are made in this process: by a directory or a proxy, not by a handler.
//!
//! A maker gives its response in [`Part`]s, all at once or through a channel that holds a few of them, and gets the
//! request's body the same way. It knows nothing of HTTP/1's framing, of pipelining, keep-alive or the access log: those are
//! the connection's (`connection::local`). When the client goes, the connection drops its ends of the channels and the
//! maker's task with them.

use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tokio_util::task::AbortOnDropHandle;

use super::access_log::Line;
use super::answer::Trouble;
use crate::http1::{self, BodyFraming, Version};

/// Parts that may wait in a channel: with blocks of 64 KiB, what one connection may hold.
pub(super) const PARTS_MAX: usize = 4;

/// The head of a response.
#[derive(Debug, Clone)]
pub(super) struct ResponseHead {
    pub(super) status: StatusCode,
    /// All fields but those of framing and connection (Content-Length, Transfer-Encoding, Connection, Keep-Alive), which
    /// the connection writes itself. `Date` and `Server` are added where they are missing.
    pub(super) fields: HeaderMap,
    /// Fields of the same kind as whole lines, for makers that have them so; then `Date` and `Server` are among them.
    pub(super) lines: Vec<u8>,
    /// Bytes of the body, when known; stands in the response even where no body is sent (HEAD, 304).
    pub(super) length: Option<u64>,
}

/// A piece of a response, in this order: interim responses, one head (or a switch, or a failure), data, trailers, the end.
#[derive(Debug)]
pub(super) enum Part {
    /// A 1xx response that is not 101.
    Interim(ResponseHead),
    /// The final head.
    Head(ResponseHead),
    /// Some of the body.
    Data(Bytes),
    /// Fields behind the body.
    Trailers(HeaderMap),
    /// 101: from here on data are the other side's bytes as they are, and the request's body the client's, until one ends.
    Switch(ResponseHead),
    /// The response is complete. A channel that closes without it means that the response is cut short.
    End,
    /// No response will come: this is answered instead; behind a head it cuts the response short.
    Failed(Trouble),
}

/// A piece of a request's body.
#[derive(Debug)]
pub(super) enum BodyPart {
    /// Some of it, without framing.
    Data(Bytes),
    /// Fields behind it, if there are any (RFC 9110 6.5).
    Trailers(HeaderMap),
    /// It is complete. A channel that closes without it means that the client left, or that its framing is broken.
    End,
}

/// Where the parts of a response come from.
#[derive(Debug)]
pub(super) enum Source {
    /// They are here: head and body.
    Ready(Option<(ResponseHead, Bytes)>),
    /// What is left of that.
    Body(Option<Bytes>),
    /// A task makes them; it ends with the exchange.
    Task {
        parts: mpsc::Receiver<Part>,
        _task: AbortOnDropHandle<Option<()>>,
    },
}

/// Where a request's body goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// It is read and dropped.
    Drop,
    /// To the maker of the response.
    Maker {
        sender: PollSender<BodyPart>,
        /// A client that waits for a 100 before it sends the body gets the maker's, if it makes one, not the connection's.
        passes_continue: bool,
        /// The maker may switch the protocol: the end of the body is not told before the final head.
        may_switch: bool,
    },
}

/// A request that is answered in this process.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) source: Source,
    pub(super) sink: Sink,
    pub(super) framing: BodyFraming,
    /// The client waits for a 100 before it sends the body.
    pub(super) wants_continue: bool,
    /// The method is HEAD.
    pub(super) is_head: bool,
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    pub(super) line: Option<Line>,
}

impl ResponseHead {
    /// A head with no fields yet.
    pub(super) fn new(status: StatusCode, length: Option<u64>) -> Self {
        Self {
            status,
            fields: HeaderMap::new(),
            lines: Vec::new(),
            length,
        }
    }

    /// The head as HTTP/1.1 writes it; `framing` are whole lines for the body's framing and the connection.
    pub(super) fn encode(&self, framing: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(self.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.status.canonical_reason().unwrap_or("").as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.lines);
        if self.lines.is_empty() && !self.status.is_informational() {
            if !self.fields.contains_key(header::DATE) {
                field(
                    out,
                    "Date",
                    httpdate::fmt_http_date(SystemTime::now()).as_bytes(),
                );
            }
            if !self.fields.contains_key(header::SERVER) {
                field(out, "Server", super::SERVER.as_bytes());
            }
        }
        put_fields(&self.fields, out);
        if let Some(length) = self.length {
            field(
                out,
                "Content-Length",
                itoa::Buffer::new().format(length).as_bytes(),
            );
        }
        out.extend_from_slice(framing.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes the lines of these fields, names with capitals: case means nothing in HTTP/1.1, but there are clients that have only
/// ever seen `Set-Cookie`.
pub(super) fn put_fields(fields: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in fields {
        let start = out.len();
        field(out, name.as_str(), HeaderValue::as_bytes(value));
        let mut begins = true;
        for byte in out.iter_mut().skip(start).take(name.as_str().len()) {
            if begins {
                byte.make_ascii_uppercase();
            }
            begins = *byte == b'-';
        }
    }
}

/// Writes one field line.
fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The fields of a trailer section; one that cannot be a field is left out.
pub(super) fn trailers(section: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in http1::fields::lines(section) {
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(line.name),
            HeaderValue::from_bytes(line.value),
        ) {
            // A map that is full is larger than any section can be.
            drop(fields.try_append(name, value));
        }
    }
    fields
}
