//! The response writer: one whole response, or a head and a body piece by piece.
//!
//! It decides the framing (RFC 9112 section 6: a length where it is known, else chunked, else until the end of the connection), and
//! never sends a response that looks whole and is not. Which pieces the body is cut into is the caller's business: each is one message.

mod body;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use http::header::{self, HeaderName};

pub use body::BodyWriter;

use super::control;
use super::flow::Outflow;
use super::http::{self as fields, Form, HttpError};
use super::publisher::Blocked;
use super::replies::{ReplyError, begin, note};
use super::request::{Client, Request};
use crate::wire::reply::encode_extended;

/// Room for a usual head. More makes the buffer grow.
const HEAD_BYTES: usize = 512;

/// Fields of one connection, not of the response that crosses it (RFC 9110 7.6.1), `Connection` itself aside.
const HOP_BY_HOP: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

impl Request {
    /// Begins a response with this status code. Nothing is sent before [`Respond::send`], or the first piece of [`Respond::stream`].
    ///
    /// The response owns all that it needs: it may be finished in another task, long after the request was dropped.
    ///
    /// ```no_run
    /// # async fn run(request: lurcher::handler::Request) -> Result<(), lurcher::handler::ReplyError> {
    /// request.respond(200).header("Content-Type", "text/plain").send("hello\n").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn respond(&self, code: u16) -> Respond {
        let mut message = begin(&self.sender, &[self.conn_id], HEAD_BYTES);
        let address = message.len();
        message.extend_from_slice(b"HTTP/1.1 ");
        fields::number(&mut message, u64::from(code));
        message.push(b' ');
        let reason = fields::canonical_reason(code);
        let reason_start = message.len();
        message.extend_from_slice(reason.as_bytes());
        let reason_end = message.len();
        message.extend_from_slice(b"\r\n");
        let failed = (!(100..=999).contains(&code)).then_some(HttpError::Code(code));
        Respond {
            client: self.client(),
            code,
            form: Form {
                head_only: self.method() == Some(b"HEAD"),
                close: self.should_close(),
                old: self.version() == Some(b"HTTP/1.0"),
            },
            message,
            address,
            reason: (reason_start, reason_end),
            length: None,
            connection: Vec::new(),
            dated: false,
            failed,
        }
    }
}

/// A response that is being written: status and headers, then [`Respond::send`] or [`Respond::stream`]. Dropping it sends nothing.
///
/// A mistake in a header is told by the method that ends the writing.
#[must_use = "nothing is sent before `send` or `stream`"]
pub struct Respond {
    client: Client,
    code: u16,
    form: Form,
    /// The message as far as it is written: address, status line, fields.
    message: Vec<u8>,
    /// How much of it is the address.
    address: usize,
    /// Where in it the reason phrase is.
    reason: (usize, usize),
    /// What was said of the body's length.
    length: Option<u64>,
    /// Members of `Connection` other than `close` and `keep-alive`.
    connection: Vec<u8>,
    dated: bool,
    /// The first mistake.
    failed: Option<HttpError>,
}

impl fmt::Debug for Respond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Respond")
            .field("client", &self.client)
            .field("code", &self.code)
            .finish_non_exhaustive()
    }
}

impl Respond {
    /// The reason phrase, instead of the usual one: any bytes but control characters (RFC 9112 4, which has obs-text in it).
    pub fn reason(mut self, reason: impl AsRef<[u8]>) -> Self {
        let reason = reason.as_ref();
        if !fields::is_text(reason) {
            let shown = String::from_utf8_lossy(reason).into_owned();
            return self.fail(HttpError::Reason(shown));
        }
        let (start, end) = self.reason;
        // Most say what is said anyway.
        if self.message.get(start..end) != Some(reason) {
            self.message.splice(start..end, reason.iter().copied());
            self.reason = (start, start + reason.len());
        }
        self
    }

    /// Adds a header; the same name may come again (`Set-Cookie`).
    ///
    /// Three names are not written as they come: `Content-Length` means [`Respond::length`], `Connection: close` means
    /// [`Respond::close`], and `Transfer-Encoding` is an error, since the writer frames the body itself.
    pub fn header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.add_header(name, value);
        self
    }

    /// As [`Respond::header`], for a loop.
    pub fn add_header(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (name.as_ref(), value.as_ref());
        match fields::check(name, value) {
            Ok(()) => self.add(name, value),
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    /// Adds all of these but those that are about one connection only (RFC 9110 7.6.1): `Connection` and what it names,
    /// `Keep-Alive`, `Proxy-Connection`, `TE`, `Transfer-Encoding`, `Upgrade`. So the headers of another server's
    /// response can be passed on as they came. `Content-Length` is as with [`Respond::header`].
    pub fn headers(mut self, headers: &HeaderMap) -> Self {
        let named: Vec<&[u8]> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        for (name, value) in headers {
            let text = name.as_str().as_bytes();
            if name == header::CONNECTION
                || HOP_BY_HOP.contains(name)
                || named.iter().any(|word| word.eq_ignore_ascii_case(text))
            {
                continue;
            }
            self.add(text, value.as_bytes());
        }
        self
    }

    /// The length of the body in bytes, where it is known before the body is: a stream then has a `Content-Length`, and the answer to
    /// HEAD, or a 304, tells the length that a GET would have had. [`Respond::send`] of a body knows better.
    pub fn length(mut self, bytes: u64) -> Self {
        self.length = Some(bytes);
        self
    }

    /// Closes the connection behind the response, also when the client would keep it.
    pub fn close(mut self) -> Self {
        self.form.close = true;
        self
    }

    /// The first mistake so far, which the method that ends the writing will tell: for those who want to know where it was made.
    pub fn mistake(&self) -> Option<&HttpError> {
        self.failed.as_ref()
    }

    /// Sends the whole response as one message (but see [`super::Replies::reply_http`]), with its `Content-Length`; 1xx, 204, 304 and the answer to HEAD go out without the body.
    /// `Date` is added where there is none. The connection is closed behind it when the request [should
    /// close](crate::wire::request::Request::should_close).
    ///
    /// # Errors
    ///
    /// [`ReplyError::Http`] when the head would not be HTTP (nothing is sent then), [`ReplyError::Io`]. A client that is gone is no
    /// error.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropped early, either nothing is sent or all, the close included. One that goes in pieces, because it is larger than what
    /// `download.flow_control` lets be outstanding, is cut then, and its client with it.
    pub async fn send(self, body: impl AsRef<[u8]>) -> Result<(), ReplyError> {
        match self.send_now(body.as_ref())? {
            None => Ok(()),
            Some(left) => left.send().await,
        }
    }

    /// As [`Respond::send`], for those who cannot wait: `None` when the response is on its way, else what is left to be sent.
    ///
    /// # Errors
    ///
    /// As [`Respond::send`].
    pub fn send_now(mut self, body: impl AsRef<[u8]>) -> Result<Option<Unsent>, ReplyError> {
        let body = body.as_ref();
        self.checked()?;
        let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let framing = self.framing(Some(length));
        self.end_head(framing);
        let mut bytes = 0;
        if framing != Framing::Bodiless {
            self.message.extend_from_slice(body);
            bytes = length;
        }
        let close = self.closes();
        let server = self.client.server();
        let message = if close || !server.flows().takes_whole(self.payload().len()) {
            Waiting::New(self.message)
        } else {
            let to = (&self.client.sender()[..], self.client.conn_id());
            match server.send_response(self.message, to, (self.code, bytes))? {
                None => return Ok(None),
                Some(blocked) => Waiting::Blocked(blocked),
            }
        };
        Ok(Some(Unsent {
            client: self.client,
            message,
            address: self.address,
            close,
        }))
    }

    /// Sends the head, and has the server write a file of `length` bytes as the body, in order with what is sent before and after:
    /// see [`Client::send_file`] for which files it takes. The length is a promise: of a longer file no more is written, and with a
    /// shorter one the client waits for the rest. So it is only for files that nobody changes.
    ///
    /// Where there is no body (HEAD, 204, 304), the head alone is sent. Whether the file was written is not told: one that cannot be
    /// sent drops the connection, and [`super::Event::Disconnect`] follows.
    ///
    /// ```no_run
    /// # async fn run(request: lurcher::handler::Request) -> Result<(), lurcher::handler::ReplyError> {
    /// request.respond(200).header("Content-Type", "video/mp4").send_file("/var/www/video.mp4", 1_000_000).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Respond::send`], and [`ReplyError::Http`] when [`Respond::length`] was another.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Respond::send`].
    pub async fn send_file(
        mut self,
        name: impl AsRef<[u8]>,
        length: u64,
    ) -> Result<(), ReplyError> {
        self.checked()?;
        if let Some(declared) = self.length.filter(|declared| *declared != length) {
            let written = length;
            return Err(HttpError::Length { declared, written }.into());
        }
        self.length = Some(length);
        let framing = self.framing(None);
        self.end_head(framing);
        let (sender, id) = (self.client.sender().clone(), [self.client.conn_id()]);
        let close = self.closes();
        let mut messages = vec![self.message];
        if framing != Framing::Bodiless && length > 0 {
            let mut file = Vec::new();
            encode_extended(&sender, &id, &control::file(name.as_ref()), &mut file);
            messages.push(file);
        }
        messages.extend(close.then(|| begin(&sender, &id, 0)));
        let server = self.client.server();
        note(server, server.send_all(messages).await?);
        Ok(())
    }

    /// Sends the body piece by piece: with a `Content-Length` where [`Respond::length`] was said, else in chunks, and to an HTTP/1.0
    /// client until the end of the connection. Nothing is sent yet: the head leaves with the first piece.
    ///
    /// # Errors
    ///
    /// [`ReplyError::Http`] when the head would not be HTTP.
    pub fn stream(mut self) -> Result<BodyWriter, ReplyError> {
        self.checked()?;
        Ok(BodyWriter::new(self))
    }

    fn fail(mut self, error: HttpError) -> Self {
        self.failed.get_or_insert(error);
        self
    }

    fn checked(&mut self) -> Result<(), HttpError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Adds a field whose characters are right.
    fn add(&mut self, name: &[u8], value: &[u8]) {
        // By length first: this is done for each field of each response.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"date") => self.dated = true,
            10 if name.eq_ignore_ascii_case(b"connection") => return self.add_connection(value),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.trim().parse().ok());
                match (length, self.length) {
                    (Some(length), None) => self.length = Some(length),
                    (Some(length), Some(before)) if length == before => {}
                    _ => {
                        let name = String::from_utf8_lossy(name).into_owned();
                        self.failed.get_or_insert(HttpError::Framing(name));
                    }
                }
                return;
            }
            _ => {}
        }
        fields::write_field(&mut self.message, name, value);
    }

    fn add_connection(&mut self, value: &[u8]) {
        for word in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if word.eq_ignore_ascii_case(b"close") {
                self.form.close = true;
            } else if !word.is_empty() && !word.eq_ignore_ascii_case(b"keep-alive") {
                if !self.connection.is_empty() {
                    self.connection.extend_from_slice(b", ");
                }
                self.connection.extend_from_slice(word);
            }
        }
    }

    /// Whether no body goes out, whatever is given.
    pub(in crate::handler) fn is_bodiless(&self) -> bool {
        self.form.head_only || self.is_interim() || self.code == 204 || self.code == 304
    }

    /// What is written, without the address.
    fn payload(&self) -> &[u8] {
        self.message.get(self.address..).unwrap_or_default()
    }

    fn is_interim(&self) -> bool {
        self.code < 200
    }

    /// Whether the connection ends behind this response.
    fn closes(&self) -> bool {
        self.form.close && !self.is_interim()
    }

    /// How the body is delimited, if it is `known` to have that length.
    fn framing(&mut self, known: Option<u64>) -> Framing {
        // RFC 9110 8.6: no length in 1xx and 204; in a 304, and for HEAD, the one that a 200 to GET would have had, which an empty
        // body does not tell.
        if self.is_bodiless() {
            if self.is_interim() || self.code == 204 {
                self.length = None;
            } else if self.code != 304 {
                self.length = self.length.or(known.filter(|bytes| *bytes > 0));
            }
            return Framing::Bodiless;
        }
        self.length = known.or(self.length);
        match self.length {
            Some(bytes) => Framing::Length(bytes),
            None if self.form.old => {
                self.form.close = true;
                Framing::UntilClose
            }
            None => Framing::Chunked,
        }
    }

    /// Writes what the writer itself has to say, and the end of the head.
    fn end_head(&mut self, framing: Framing) {
        let out = &mut self.message;
        if !self.dated && self.code >= 200 {
            out.extend_from_slice(b"Date: ");
            write_date(out);
            out.extend_from_slice(b"\r\n");
        }
        if let Some(bytes) = self.length {
            out.extend_from_slice(b"Content-Length: ");
            fields::number(out, bytes);
            out.extend_from_slice(b"\r\n");
        }
        if framing == Framing::Chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        let word: &[u8] = match (self.code < 200, self.form.close, self.form.old) {
            (false, true, _) => b"close",
            (false, false, true) => b"keep-alive",
            _ => b"",
        };
        if !word.is_empty() || !self.connection.is_empty() {
            out.extend_from_slice(b"Connection: ");
            out.extend_from_slice(&self.connection);
            if !word.is_empty() && !self.connection.is_empty() {
                out.extend_from_slice(b", ");
            }
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// A response that is written and has not left, since its server is behind, or because it goes in pieces or closes its connection.
/// Dropping it sends nothing.
#[must_use = "nothing is sent before `send`"]
pub struct Unsent {
    client: Client,
    message: Waiting,
    /// How much of it is the address.
    address: usize,
    close: bool,
}

enum Waiting {
    New(Vec<u8>),
    Blocked(Blocked),
}

impl fmt::Debug for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unsent")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

impl Unsent {
    /// Sends it.
    ///
    /// # Errors
    ///
    /// As [`Respond::send`].
    ///
    /// # Cancel safety
    ///
    /// As [`Respond::send`].
    pub async fn send(self) -> Result<(), ReplyError> {
        let server = self.client.server();
        match self.message {
            Waiting::New(message) => {
                send_whole(&self.client, message, self.address, self.close).await
            }
            Waiting::Blocked(blocked) => {
                note(server, server.send_blocked(blocked).await?);
                Ok(())
            }
        }
    }
}

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// There is none, whatever is written.
    Bodiless,
    Length(u64),
    Chunked,
    UntilClose,
}

/// Sends a whole response, of which the first bytes of the message are the `address`, and closes the connection if that is wanted: in
/// one message, but where the server lets only so much be outstanding; what is larger goes in pieces there.
///
/// # Cancel safety
///
/// Dropped early, nothing is sent or all; of one in pieces perhaps some, and then the client is cut off.
pub(super) async fn send_whole(
    client: &Client,
    message: Vec<u8>,
    address: usize,
    close: bool,
) -> Result<(), ReplyError> {
    let payload = message.get(address..).unwrap_or_default();
    let server = client.server();
    if server.flows().takes_whole(payload.len()) {
        return send_last(client, message, close).await;
    }
    let flow = Outflow::new(Arc::clone(server), client.sender(), client.conn_id());
    let mut pieces = Pieces { flow, client };
    let sent = pieces.flow.finish_whole(&mut payload.into(), close).await;
    if sent.is_ok() {
        pieces.flow.forget();
    }
    match sent {
        Err(ReplyError::ClientGone) => Ok(()),
        sent => sent,
    }
}

/// A response in pieces. Dropped when some of it has left and not all, it cuts its client off: it must not wait for the rest.
struct Pieces<'a> {
    flow: Outflow,
    client: &'a Client,
}

impl Drop for Pieces<'_> {
    fn drop(&mut self) {
        if self.flow.has_begun() && !self.flow.is_gone() {
            self.client.cancel_when_possible();
        }
    }
}

/// Sends the last message of a response, if it says anything, and closes.
async fn send_last(client: &Client, message: Vec<u8>, close: bool) -> Result<(), ReplyError> {
    let server = client.server();
    let sent = match (message.is_empty(), close) {
        (true, false) => return Ok(()),
        (false, false) => server.send(message).await?,
        (empty, true) => {
            let end = begin(client.sender(), &[client.conn_id()], 0);
            let first = (!empty).then_some(message);
            server.send_all(first.into_iter().chain([end])).await?
        }
    };
    note(server, sent);
    Ok(())
}

/// Appends the time in the form of RFC 9110 5.6.7, written once a second and thread.
fn write_date(out: &mut Vec<u8>) {
    thread_local! {
        static DATE: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|(written, text)| {
        if *written != seconds {
            *written = seconds;
            *text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
        }
        out.extend_from_slice(text.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_the_time_of_now() {
        let mut out = Vec::new();
        let before = SystemTime::now() - Duration::from_secs(1);
        write_date(&mut out);
        let date = httpdate::parse_http_date(std::str::from_utf8(&out).unwrap()).unwrap();
        assert!(before <= date && date <= SystemTime::now());
        let first = std::mem::take(&mut out);
        write_date(&mut out);
        assert_eq!(out.len(), first.len());
    }
}
