//! The reply scanner: follows what a handler writes just far enough to know where its response ends. It never changes or
//! judges a byte; what it cannot read as HTTP it calls opaque and looks at no more.
//!
//! Handlers of Mongrel2 write their responses themselves, status line, chunks and all. The front needs to know where one ends: for
//! the order of pipelined requests, to close where HTTP says so, for the access log. The usual reply is one payload with one
//! whole response; that costs one search for the end of its head and one pass of the parser, and nothing is kept.

use std::mem::MaybeUninit;

use super::Version;
use super::chunked::{self, Decoder};
use super::fields::has_token;
use super::framing::{decimal, ends_in_one_chunked};

/// Longest response head that is followed, bytes; what is longer is opaque.
const HEAD_MAX: usize = 65_536;

/// Field lines of a response for which no memory is allocated.
const FEW: usize = 32;

/// Most field lines of a response; more are opaque.
const FIELDS_MAX: usize = 4_096;

/// What kind of request is answered, as far as the end of the response depends on it (RFC 9112 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Asked {
    /// HEAD: no body, whatever the head says.
    Head,
    /// CONNECT: 2xx makes a tunnel.
    Connect,
    /// Anything else.
    #[default]
    Other,
}

/// Follows the response to one request. Small, since every connection has one; make a new one for every request.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// Bytes of body seen: data without chunk framing; for an opaque response all its bytes.
    body: u64,
    /// Status of the final response; 0 before its head.
    status: u16,
    asked: Asked,
    version: Version,
    /// The connection must be closed after the response.
    close: bool,
}

#[derive(Debug)]
enum State {
    /// A head, or what there is of it.
    Head(Option<Box<Carry>>),
    Length(u64),
    Chunked(Decoder),
    UntilClose,
    Opaque,
    Switched,
    Ended,
}

/// The start of a head that came in several payloads.
#[derive(Debug)]
struct Carry {
    bytes: Vec<u8>,
    /// Up to here no end of the head begins.
    searched: usize,
}

/// Where the response stands after a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanState {
    /// More belongs to it. If [`Scanner::is_until_close`], only closing the connection ends it.
    Open,
    /// Its last byte was in this payload. What follows it belongs to no request.
    Ended {
        /// The connection must be closed now: the client, the handler or the framing asks for it.
        close: bool,
    },
    /// Not HTTP: bytes pass as they are until somebody closes.
    Opaque,
    /// 101 (or a 2xx to CONNECT) was sent: another protocol from here on.
    Switched,
}

/// What [`Scanner::scan`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// Bytes of this payload that belong to the current response.
    pub consumed: usize,
    /// Where the response stands.
    pub state: ScanState,
    /// Status of the final response (or 101) once its head was whole; interim ones are not told. `None` if opaque.
    pub status: Option<u16>,
    /// Bytes of body so far, without head and chunk framing; for an opaque response all bytes.
    pub bytes: u64,
    /// Whether the final head was whole.
    pub head_seen: bool,
}

/// What the head of a response says about the rest.
struct Response {
    status: u16,
    framing: Framing,
    close: bool,
}

enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Scanner {
    /// For the response to a request of this kind, version and wish ([`super::Head::keep_alive`]).
    pub fn new(asked: Asked, version: Version, keep_alive: bool) -> Self {
        Self {
            state: State::Head(None),
            body: 0,
            status: 0,
            asked,
            version,
            close: !keep_alive,
        }
    }

    /// Takes note of a whole response with this status, and as many bytes of body, without reading it; false where it has to be
    /// read: something came before, or more may follow.
    pub fn skip_whole(&mut self, status: u16, body: u64) -> bool {
        let is_whole = matches!(self.state, State::Head(None))
            && self.asked != Asked::Connect
            && status >= 200;
        if is_whole {
            self.state = State::Ended;
            self.status = status;
            self.body = body;
        }
        is_whole
    }

    /// Looks at the next payload. The sum of what it says does not depend on how the response is cut into payloads.
    pub fn scan(&mut self, payload: &[u8]) -> Scan {
        let mut rest = payload;
        while !matches!(self.state, State::Ended) {
            let Some(after) = self.step(rest) else {
                rest = &[];
                break;
            };
            rest = after;
        }
        Scan {
            consumed: payload.len().saturating_sub(rest.len()),
            state: self.state(),
            status: self.status(),
            bytes: self.body,
            head_seen: self.head_seen(),
        }
    }

    /// Where the response stands.
    pub fn state(&self) -> ScanState {
        match self.state {
            State::Head(_) | State::Length(_) | State::Chunked(_) | State::UntilClose => {
                ScanState::Open
            }
            State::Opaque => ScanState::Opaque,
            State::Switched => ScanState::Switched,
            State::Ended => ScanState::Ended { close: self.close },
        }
    }

    /// Status of the final response, once known.
    pub fn status(&self) -> Option<u16> {
        (self.status != 0).then_some(self.status)
    }

    /// Bytes of body so far, as [`Scan::bytes`].
    pub fn bytes(&self) -> u64 {
        self.body
    }

    /// Whether the final head was whole.
    pub fn head_seen(&self) -> bool {
        self.status != 0
    }

    /// Whether the response has a head but only closing the connection ends it.
    pub fn is_until_close(&self) -> bool {
        matches!(self.state, State::UntilClose)
    }

    /// Whether its body goes on, and it was said how long that is.
    pub fn has_length(&self) -> bool {
        matches!(self.state, State::Length(_))
    }

    /// What is left of a body of known length is written by somebody else: counts it, and says where the response stands then.
    pub fn skip_rest(&mut self) -> ScanState {
        if let State::Length(left) = self.state {
            self.body = self.body.saturating_add(left);
            self.state = State::Ended;
        }
        self.state()
    }

    /// Goes one part on and returns what is left, `None` when all was used and more is needed.
    fn step<'p>(&mut self, rest: &'p [u8]) -> Option<&'p [u8]> {
        match &mut self.state {
            State::Head(_) => self.head(rest),
            State::Length(left) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                let (data, after) = rest.split_at_checked(most).unwrap_or((rest, &[]));
                let length = data.len() as u64;
                self.body = self.body.saturating_add(length);
                *left = left.saturating_sub(length);
                if *left > 0 {
                    return None;
                }
                self.state = State::Ended;
                Some(after)
            }
            State::Chunked(decoder) => {
                let body = &mut self.body;
                let decoded = decoder.decode_with(rest, |data| {
                    *body = body.saturating_add(data.len() as u64);
                });
                let (_, after) = rest.split_at_checked(decoded.consumed)?;
                match decoded.status {
                    chunked::Status::More => None,
                    chunked::Status::Done => {
                        self.state = State::Ended;
                        Some(after)
                    }
                    chunked::Status::Refused(_) => {
                        self.state = State::UntilClose;
                        self.close = true;
                        Some(after)
                    }
                }
            }
            State::UntilClose | State::Opaque | State::Switched => {
                self.body = self.body.saturating_add(rest.len() as u64);
                None
            }
            State::Ended => Some(rest),
        }
    }

    fn head<'p>(&mut self, rest: &'p [u8]) -> Option<&'p [u8]> {
        if rest.is_empty() {
            return None;
        }
        let State::Head(carry) = &mut self.state else {
            return Some(rest);
        };
        match carry.take() {
            None => {
                if !may_be_response(rest) {
                    return Some(self.opaque(0, rest));
                }
                match head_end(rest, 0) {
                    Search::Found(end) => {
                        let (head, after) = rest.split_at_checked(end)?;
                        Some(self.whole_head(head, 0, after, rest))
                    }
                    Search::Not(_) if rest.len() >= HEAD_MAX => Some(self.opaque(0, rest)),
                    Search::Not(searched) => {
                        self.state = State::Head(Some(Box::new(Carry {
                            bytes: rest.to_vec(),
                            searched,
                        })));
                        None
                    }
                }
            }
            Some(mut carry) => {
                let before = carry.bytes.len();
                let room = HEAD_MAX.saturating_sub(before);
                carry
                    .bytes
                    .extend_from_slice(rest.get(..room).unwrap_or(rest));
                if !may_be_response(&carry.bytes) {
                    return Some(self.opaque(before, rest));
                }
                match head_end(&carry.bytes, carry.searched) {
                    Search::Found(end) => {
                        let head = carry.bytes.get(..end)?;
                        let after = rest.get(end.saturating_sub(before)..)?;
                        Some(self.whole_head(head, before, after, rest))
                    }
                    Search::Not(_) if carry.bytes.len() >= HEAD_MAX => {
                        Some(self.opaque(before, rest))
                    }
                    Search::Not(searched) => {
                        carry.searched = searched;
                        self.state = State::Head(Some(carry));
                        None
                    }
                }
            }
        }
    }

    /// `before`: bytes of earlier payloads that turn out to belong to something opaque.
    fn opaque<'p>(&mut self, before: usize, rest: &'p [u8]) -> &'p [u8] {
        self.state = State::Opaque;
        self.close = true;
        self.body = self.body.saturating_add(before as u64);
        rest
    }

    fn whole_head<'p>(
        &mut self,
        head: &[u8],
        before: usize,
        after: &'p [u8],
        rest: &'p [u8],
    ) -> &'p [u8] {
        let Some(response) = read_head(head) else {
            return self.opaque(before, rest);
        };
        let code = response.status;
        if (100..200).contains(&code) && code != 101 {
            // Interim: the final response is still to come (RFC 9110 15.2).
            self.state = State::Head(None);
            return after;
        }
        self.status = code;
        if code == 101 || (self.asked == Asked::Connect && (200..300).contains(&code)) {
            self.state = State::Switched;
            return after;
        }
        self.close |= response.close;
        // RFC 9112 6.3 in its order: case 1, then 4 to 8.
        self.state = if self.asked == Asked::Head || code == 204 || code == 304 {
            State::Ended
        } else {
            match response.framing {
                Framing::Length(0) => State::Ended,
                Framing::Length(length) => State::Length(length),
                Framing::Chunked => {
                    // A client of HTTP/1.0 does not know chunks: only the close tells it the end.
                    self.close |= self.version == Version::Http10;
                    State::Chunked(Decoder::lenient())
                }
                Framing::UntilClose => {
                    self.close = true;
                    State::UntilClose
                }
            }
        };
        after
    }
}

/// Whether these bytes can be the start of `HTTP/1.1 200`; what cannot is opaque at once.
fn may_be_response(bytes: &[u8]) -> bool {
    const FORM: &[u8; 12] = b"HTTP/1.0 000";
    bytes.iter().zip(FORM).all(|(byte, form)| match form {
        b'0' => byte.is_ascii_digit(),
        _ => byte == form,
    })
}

enum Search {
    /// The head ends before this place.
    Found(usize),
    /// It does not end yet, and not before this place.
    Not(usize),
}

/// The empty line after a head whose lines end in CR LF or LF, in any mixture.
fn head_end(bytes: &[u8], from: usize) -> Search {
    let mut at = from;
    loop {
        let rest = bytes.get(at..HEAD_MAX.min(bytes.len())).unwrap_or_default();
        let Some(found) = memchr::memchr(b'\n', rest) else {
            return Search::Not(bytes.len());
        };
        let line_feed = at.saturating_add(found);
        at = line_feed.saturating_add(1);
        match rest.get(found..).unwrap_or_default() {
            [_, b'\n', ..] => return Search::Found(at.saturating_add(1)),
            [_, b'\r', b'\n', ..] => return Search::Found(at.saturating_add(2)),
            [_] | [_, b'\r'] => return Search::Not(line_feed),
            _ => {}
        }
    }
}

/// Reads a whole head as tolerantly as clients do; `None` when it is none.
fn read_head(head: &[u8]) -> Option<Response> {
    let mut config = httparse::ParserConfig::default();
    config
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    let mut few = [const { MaybeUninit::uninit() }; FEW];
    let mut response = httparse::Response::new(&mut []);
    match config.parse_response_with_uninit_headers(&mut response, head, &mut few) {
        Ok(httparse::Status::Complete(_)) => return summary(&response),
        Err(httparse::Error::TooManyHeaders) => {}
        _ => return None,
    }
    let lines = memchr::memchr_iter(b'\n', head).count();
    if lines > FIELDS_MAX {
        return None;
    }
    let mut many = vec![MaybeUninit::uninit(); lines];
    let mut response = httparse::Response::new(&mut []);
    match config.parse_response_with_uninit_headers(&mut response, head, &mut many) {
        Ok(httparse::Status::Complete(_)) => summary(&response),
        _ => None,
    }
}

/// The framing of a response as a client will most likely see it. What contradicts itself is taken as delimited by the close:
/// then nothing can follow on the connection that two readers would divide differently.
fn summary(response: &httparse::Response<'_, '_>) -> Option<Response> {
    let mut length: Option<Option<u64>> = None;
    let mut coding: Option<bool> = None;
    let (mut close, mut keep_alive) = (false, false);
    for header in response.headers.iter() {
        let (name, value) = (header.name.as_bytes(), header.value);
        match name.len() {
            10 if name.eq_ignore_ascii_case(b"connection") => {
                close |= has_token(value, b"close");
                keep_alive |= has_token(value, b"keep-alive");
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let number = decimal(value);
                length = Some(match length {
                    None => number,
                    Some(other) => number.filter(|_| other == number),
                });
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                coding = Some(coding.is_none() && ends_in_one_chunked(value));
            }
            _ => {}
        }
    }
    let old = response.version == Some(0);
    let framing = match (coding, length) {
        (Some(true), None) if !old => Framing::Chunked,
        (None, Some(Some(length))) => Framing::Length(length),
        // None; both; several codings, or chunked not last; chunked in HTTP/1.0; lengths that differ or are no numbers.
        _ => Framing::UntilClose,
    };
    Some(Response {
        status: response.code.filter(|code| *code >= 100)?,
        framing,
        close: close || (old && !keep_alive),
    })
}

#[cfg(test)]
mod tests;
