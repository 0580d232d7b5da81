//! What a message from a front is about, told by marks that a client cannot forge.
//!
//! The method alone proves nothing: on a real Mongrel2 a client may send an HTTP request with method `JSON` and the
//! body of a disconnect notice. Keys in upper case are the server's own, and so is what it never adds to a notice.

use super::decode::{Request, is_token};
use super::headers::{HeaderValues, Headers};
use crate::wire::reply::Flow;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// An HTTP request, whatever its method says.
    Http,
    /// The connection is gone, or never was (the answer to a reply for an unknown id).
    Disconnect,
    /// So many bytes of replies have been written to the client (setting `download.flow_control`).
    Credits(u64),
    /// The front has pushed its last new request: the answer to a handler that asked for no more.
    Drained,
    /// A notice of a type that is not known here.
    Notice,
    /// The front has begun to store the body of this request in a file; another message follows when it is complete.
    UploadStart {
        /// The name of the file, inside the front's chroot.
        file: &'a [u8],
    },
    /// The body is complete in the file, which is now the handler's to delete. Only to be believed when the same
    /// connection has had [`Kind::UploadStart`] with this name before: on a real Mongrel2 a client can send such a
    /// request itself, and then the name is of its choosing.
    UploadDone {
        /// The name of the file, inside the front's chroot.
        file: &'a [u8],
    },
    /// Upload headers that do not fit together, or come with a body: a client has made them up.
    UploadForged,
    /// A request whose body follows in parts (setting `upload.stream`); this message may hold the first bytes of it.
    StreamStart,
    /// A part of such a body.
    StreamPart {
        /// Bytes of the body before this part.
        offset: u64,
        /// This is the last part.
        done: bool,
    },
    /// A client wants to speak WebSocket; the body is the value for `Sec-WebSocket-Accept`.
    WebSocketHandshake,
    /// A WebSocket message or control frame; the body is its payload.
    WebSocketFrame {
        /// The first byte of the frame, with FIN set: `0x81` text, `0x82` binary, `0x88` close, `0x89` ping, `0x8a` pong.
        flags: u8,
    },
    /// A message from a message socket.
    Message(Language),
}

/// What a message socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// The body is a JSON object.
    Json,
    /// The body is an XML element.
    Xml,
}

impl Request {
    /// What this message is about.
    pub fn kind(&self) -> Kind<'_> {
        if self.is_plain() {
            return Kind::Http;
        }
        let headers = &self.headers;
        // HTTP requests alone have a version, and there it is always: nothing below needs one but handshakes, frames
        // and uploads.
        let http = headers.contains("VERSION");
        if !http
            && self.path == "@*"
            && !headers.contains("REMOTE_ADDR")
            && !headers.contains("PATTERN")
        {
            // A client's own message to `@*` has a route and an address; the server's notices have neither.
            return self.notice();
        }
        if let Some(kind) = stream(headers) {
            return kind;
        }
        match (self.method(), http) {
            (Some(b"JSON"), false) if self.path.starts_with(b"@") => Kind::Message(Language::Json),
            (Some(b"XML"), false) if self.path.starts_with(b"<") => Kind::Message(Language::Xml),
            (Some(b"WEBSOCKET"), _) => {
                flags(headers).map_or(Kind::Http, |flags| Kind::WebSocketFrame { flags })
            }
            (Some(b"WEBSOCKET_HANDSHAKE"), _) if is_upgrade(headers) => Kind::WebSocketHandshake,
            _ => self.upload(),
        }
    }

    /// Whether a single look at all names tells that it is an HTTP request, as nearly all messages are: without any of the names and
    /// methods that could mean something else.
    fn is_plain(&self) -> bool {
        let mut has_version = false;
        for (name, values) in self.headers.iter() {
            match name.len() {
                7 => has_version |= name == b"VERSION",
                6 if name == b"METHOD" => {
                    let is_other = |method: &[u8]| method.starts_with(b"WEBSOCKET");
                    if values.first().is_none_or(is_other) {
                        return false;
                    }
                }
                13 if name == b"UPLOAD_STREAM" => return false,
                18.. if name.starts_with(b"x-mongrel2-upload-") => return false,
                _ => {}
            }
        }
        has_version
    }

    fn notice(&self) -> Kind<'_> {
        let body = Headers::from_json(self.body.clone()).unwrap_or_default();
        match body.first("type") {
            Some(b"disconnect") => Kind::Disconnect,
            Some(b"drained") => Kind::Drained,
            Some(b"credits") => self
                .headers
                .first("DOWNLOAD_CREDITS")
                .and_then(decimal)
                .map_or(Kind::Notice, Kind::Credits),
            _ => Kind::Notice,
        }
    }

    /// What a notice of credits says beside the number, when the handler has asked for flow control.
    pub fn flow(&self) -> Option<Flow> {
        let Kind::Credits(_) = self.kind() else {
            return None;
        };
        let body = Headers::from_json(self.body.clone()).ok()?;
        Some(Flow {
            window: body.first("flow").and_then(decimal)?,
            sent: body.first("sent").and_then(decimal)?,
        })
    }

    fn upload(&self) -> Kind<'_> {
        let start = self.headers.get("x-mongrel2-upload-start");
        let done = self.headers.get("x-mongrel2-upload-done");
        let single =
            |header: HeaderValues<'_>| header.single().is_some_and(|file| !file.is_empty());
        match (start, done) {
            (None, None) => Kind::Http,
            (Some(start), None) if single(start) && self.body.is_empty() => start
                .first()
                .map_or(Kind::UploadForged, |file| Kind::UploadStart { file }),
            (Some(start), Some(done)) if single(start) && start == done && self.body.is_empty() => {
                done.first()
                    .map_or(Kind::UploadForged, |file| Kind::UploadDone { file })
            }
            _ => Kind::UploadForged,
        }
    }
}

/// `UPLOAD_STREAM` is in every message of a streamed upload; `METHOD` in the first only.
fn stream(headers: &Headers) -> Option<Kind<'_>> {
    let offset = headers.first("UPLOAD_STREAM")?;
    if headers.contains("METHOD") {
        return Some(Kind::StreamStart);
    }
    Some(Kind::StreamPart {
        offset: decimal(offset)?,
        done: headers.contains("UPLOAD_STREAM_DONE"),
    })
}

/// `FLAGS` is in frames only: `0x81`.
fn flags(headers: &Headers) -> Option<u8> {
    let digits = headers.first("FLAGS")?.strip_prefix(b"0x")?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Mongrel2's own conditions for a handshake. A client that only names its method so lacks one of them, or it would
/// have got a true handshake.
fn is_upgrade(headers: &Headers) -> bool {
    let key = headers.contains("sec-websocket-key") && headers.contains("sec-websocket-version");
    let named = headers.contains("host")
        && headers
            .first("upgrade")
            .is_some_and(|word| is_token(word, b"websocket"));
    // In any of its lines, as HTTP has it and a Lurcher reads it; Mongrel2 looks at the first.
    let upgrade = |connection: &[u8]| {
        connection
            .windows(b"upgrade".len())
            .any(|word| word.eq_ignore_ascii_case(b"upgrade"))
    };
    key && named && headers.all("connection").iter().any(upgrade)
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}
