//! What is said about a file: status, fields and the pieces of the body. Pure but for the date, which it is given. It writes
//! no framing (Content-Length, Connection): who sends it does.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use memchr::memchr;

use super::disk::Stamp;
use super::encoding::Coding;
use super::range::Span;
use super::stream::Reader;

/// The last second that an HTTP date can name: the end of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// A response, but for its framing.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Fields as whole lines, `Date` and `Server` among them.
    pub lines: Vec<u8>,
    /// Bytes of the body that GET has; `None` for 304, which has no length.
    pub length: Option<u64>,
    /// The body; to be left out for HEAD.
    pub body: Body,
}

/// The body of a response.
#[derive(Debug)]
pub enum Body {
    /// It is here.
    Whole(Bytes),
    /// It is to be read from the disk.
    Stream(Box<Reader>),
}

/// A piece of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Bytes that stand for themselves.
    Text(Bytes),
    /// A part of the file.
    File(Span),
}

impl Reply {
    /// The fields one by one, each a name and a value.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let lines = self.lines.split(|&byte| byte == b'\n');
        lines.filter_map(|line| {
            let colon = memchr(b':', line)?;
            let (name, value) = line.split_at_checked(colon)?;
            Some((name, value.get(1..)?.trim_ascii()))
        })
    }

    /// A short answer in words, as Mongrel2 gives it.
    pub(super) fn words(status: u16, words: &'static str, date: &[u8], server: &str) -> Self {
        let mut lines = Vec::with_capacity(128);
        put(&mut lines, "Date", date);
        put(&mut lines, "Content-Type", b"text/plain");
        put(&mut lines, "Server", server.as_bytes());
        Self {
            status,
            lines,
            length: Some(words.len() as u64),
            body: Body::Whole(Bytes::from_static(words.as_bytes())),
        }
    }

    /// Adds a field.
    pub(super) fn with(mut self, name: &str, value: &[u8]) -> Self {
        put(&mut self.lines, name, value);
        self
    }
}

/// Writes a field line.
pub(super) fn put(lines: &mut Vec<u8>, name: &str, value: &[u8]) {
    lines.extend_from_slice(name.as_bytes());
    lines.extend_from_slice(b": ");
    lines.extend_from_slice(value);
    lines.extend_from_slice(b"\r\n");
}

/// A date as HTTP writes it; what lies outside the years it can name is the nearest it can.
pub(super) fn http_date(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
        .min(LAST_SECOND);
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// The time of a file's last change, in whole seconds, as a date that HTTP can name.
pub(super) fn modified(stamp: &Stamp) -> SystemTime {
    let seconds = u64::try_from(stamp.modified.0)
        .unwrap_or(0)
        .min(LAST_SECOND);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The strong entity tag of a form, without its quotes: Mongrel2's `mtime-size` in hexadecimal, with the part of the second
/// where the file system keeps one, so that two changes within a second are told apart; and the coding, since a form of the
/// same time and size is still another. Nothing that differs between two machines with the same files.
pub(super) fn tag(stamp: &Stamp, coding: Coding) -> String {
    let (seconds, nanoseconds) = stamp.modified;
    let fraction = if nanoseconds == 0 {
        String::new()
    } else {
        format!(".{nanoseconds:x}")
    };
    let suffix = coding.suffix().replace('.', "-");
    format!("{seconds:x}{fraction}-{:x}{suffix}", stamp.size)
}

/// The lines of a 200 that belong to a form, behind `Date` and `Content-Type`.
pub(super) fn form_lines(
    stamp: &Stamp,
    coding: Coding,
    varies: bool,
    server: &str,
    now: SystemTime,
) -> Bytes {
    let mut lines = Vec::with_capacity(256);
    // Never later than now (RFC 9110 8.8.2.1).
    let date = http_date(modified(stamp).min(now));
    put(&mut lines, "Last-Modified", date.as_bytes());
    short(&mut lines, stamp, coding, varies, server);
    put(&mut lines, "Accept-Ranges", b"bytes");
    if coding != Coding::Identity {
        put(&mut lines, "Content-Encoding", coding.name().as_bytes());
    }
    lines.into()
}

/// The lines of a 304, behind `Date`.
pub(super) fn short_lines(stamp: &Stamp, coding: Coding, varies: bool, server: &str) -> Bytes {
    let mut lines = Vec::with_capacity(128);
    short(&mut lines, stamp, coding, varies, server);
    lines.into()
}

fn short(lines: &mut Vec<u8>, stamp: &Stamp, coding: Coding, varies: bool, server: &str) {
    let tag = tag(stamp, coding);
    put(lines, "ETag", format!("\"{tag}\"").as_bytes());
    put(lines, "Server", server.as_bytes());
    if varies {
        put(lines, "Vary", b"Accept-Encoding");
    }
}

/// `bytes 0-3/11`.
pub(super) fn content_range(span: Span, size: u64) -> String {
    format!("bytes {}-{}/{size}", span.start, span.end.saturating_sub(1))
}

/// The body of a response with several parts (RFC 9110 14.6): its pieces and their bytes.
pub(super) fn multipart(
    parts: &[Span],
    size: u64,
    content_type: &str,
    boundary: &str,
) -> (Vec<Piece>, u64) {
    let mut pieces = Vec::with_capacity(parts.len() * 2 + 1);
    let mut length = 0_u64;
    let mut add = |piece: Piece| {
        let bytes = match &piece {
            Piece::Text(text) => text.len() as u64,
            Piece::File(span) => span.length(),
        };
        length = length.saturating_add(bytes);
        pieces.push(piece);
    };
    let mut before = "";
    for &part in parts {
        let range = content_range(part, size);
        add(Piece::Text(
            format!("{before}--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {range}\r\n\r\n").into(),
        ));
        add(Piece::File(part));
        before = "\r\n";
    }
    add(Piece::Text(format!("\r\n--{boundary}--\r\n").into()));
    (pieces, length)
}
