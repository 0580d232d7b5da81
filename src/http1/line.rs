//! How far a request head has been read: the request line byte by byte, then line ends up to the empty line. It can go on
//! where it stopped, so that a head that comes in single bytes costs what it costs in one piece, and every refusal falls on
//! the first byte that proves it, so that the verdict is the same for every way to cut the bytes. It does not look into
//! field lines: that is done once, when the head is whole.

use super::fields::is_token_byte;
use super::head::Limits;
use super::{Refusal, Version};

/// Longest method, bytes. Mongrel2 has 20; the longest registered one (UPDATEREDIRECTREF) has 17.
pub(super) const METHOD_MAX: usize = 32;

/// Most bytes of empty lines before a request line that are skipped: four times CR LF. RFC 9112 2.2 asks for at least one,
/// since old clients send one after a POST body.
pub(super) const LEADING_MAX: usize = 8;

/// Methods that Mongrel2's protocol uses for its own messages: a client that could send them would forge disconnect notices
/// and frames. In any case of letters, since handlers may change it.
const RESERVED: [&[u8]; 4] = [b"JSON", b"XML", b"WEBSOCKET", b"WEBSOCKET_HANDSHAKE"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Leading,
    Method,
    Target,
    Version,
    Fields,
}

/// How far the head at the start of a buffer has been looked at; kept by a connection between reads.
///
/// It belongs to one buffer whose bytes do not move: after [`super::parse_head`] was complete it is as new, and bytes of the
/// request must have been taken from the front of the buffer before it is used again.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    stage: Stage,
    version: Version,
    /// Whether the request line ended in CR LF; all lines then must.
    crlf: bool,
    /// All bytes before this one have been looked at.
    at: usize,
    method: usize,
    method_end: usize,
    target_end: usize,
    fields: usize,
    line: usize,
    lines: usize,
}

/// A head that is whole: where its parts are.
#[derive(Debug)]
pub(super) struct Outline<'b> {
    pub(super) method: &'b [u8],
    pub(super) target: &'b [u8],
    pub(super) version: Version,
    /// The field lines with the empty line after them.
    pub(super) fields: &'b [u8],
    /// How many field lines there are.
    pub(super) lines: usize,
    /// Bytes from the start of the buffer to the end of the head.
    pub(super) len: usize,
}

impl Progress {
    /// Whether any byte of a request has come, leading empty lines not counted: before that, a client that leaves or stays
    /// silent owes us nothing.
    pub fn has_begun(&self) -> bool {
        self.stage != Stage::Leading
    }

    /// Goes on to the end of the head or of the buffer. `Ok(None)`: more is needed.
    pub(super) fn advance<'b>(
        &mut self,
        buf: &'b [u8],
        limits: &Limits,
    ) -> Result<Option<Outline<'b>>, Refusal> {
        let window = buf.get(..limits.bytes).unwrap_or(buf);
        if self.at > window.len() {
            // Another buffer than before: a mistake of the caller, answered by starting over.
            *self = Self::default();
        }
        let end = self.run(window, limits)?;
        let Some(len) = end else {
            if window.len() < limits.bytes {
                return Ok(None);
            }
            return Err(if self.stage == Stage::Fields {
                Refusal::new(431, "request head too long")
            } else {
                Refusal::new(414, "request line too long")
            });
        };
        let lines = self.lines;
        let outline = Outline {
            method: window.get(self.method..self.method_end).unwrap_or_default(),
            target: window
                .get(self.method_end.saturating_add(1)..self.target_end)
                .unwrap_or_default(),
            version: self.version,
            fields: window.get(self.fields..len).unwrap_or_default(),
            lines,
            len,
        };
        *self = Self::default();
        Ok(Some(outline))
    }

    fn run(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        if self.stage == Stage::Leading && !self.leading(buf)? {
            return Ok(None);
        }
        if self.stage == Stage::Method && !self.method(buf)? {
            return Ok(None);
        }
        if self.stage == Stage::Target && !self.target(buf, limits.relaxed)? {
            return Ok(None);
        }
        if self.stage == Stage::Version && !self.version(buf)? {
            return Ok(None);
        }
        self.field_lines(buf, limits.fields)
    }

    fn leading(&mut self, buf: &[u8]) -> Result<bool, Refusal> {
        loop {
            if self.at > LEADING_MAX {
                return Err(Refusal::bad("empty lines instead of a request"));
            }
            let skip = match buf.get(self.at..).unwrap_or_default() {
                [] | [b'\r'] => return Ok(false),
                [b'\r', b'\n', ..] => 2,
                [b'\n', ..] => 1,
                [b'\r', ..] => return Err(Refusal::bad("lone CR before the request line")),
                _ => {
                    self.method = self.at;
                    self.stage = Stage::Method;
                    return Ok(true);
                }
            };
            self.at = self.at.saturating_add(skip);
        }
    }

    fn method(&mut self, buf: &[u8]) -> Result<bool, Refusal> {
        let longest = self.method.saturating_add(METHOD_MAX);
        let mut bytes = buf.iter().enumerate().skip(self.at);
        let Some((end, &byte)) = bytes.find(|(_, byte)| !is_token_byte(**byte)) else {
            self.at = buf.len();
            return if self.at > longest {
                Err(Refusal::new(501, "method too long"))
            } else {
                Ok(false)
            };
        };
        if end > longest {
            return Err(Refusal::new(501, "method too long"));
        }
        if byte != b' ' || end == self.method {
            return Err(Refusal::bad("not a request line"));
        }
        let method = buf.get(self.method..end).unwrap_or_default();
        if RESERVED
            .iter()
            .any(|name| method.eq_ignore_ascii_case(name))
        {
            return Err(Refusal::new(501, "method of messages to handlers"));
        }
        if method == b"CONNECT" {
            return Err(Refusal::new(501, "no tunnels here"));
        }
        self.method_end = end;
        self.at = end.saturating_add(1);
        self.stage = Stage::Target;
        Ok(true)
    }

    /// Only the characters; what they mean is [`super::target`]'s.
    fn target(&mut self, buf: &[u8], relaxed: bool) -> Result<bool, Refusal> {
        let allowed = if relaxed { PLAIN | RELAXED } else { PLAIN };
        loop {
            let rest = buf.get(self.at..).unwrap_or_default();
            let plain = rest
                .iter()
                .position(|&byte| class(byte) & allowed == 0)
                .unwrap_or(rest.len());
            self.at = self.at.saturating_add(plain);
            match rest.get(plain..).unwrap_or_default() {
                [] | [b'%'] => return Ok(false),
                [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    self.at = self.at.saturating_add(3);
                }
                [b'%', high] if high.is_ascii_hexdigit() => return Ok(false),
                [b'%', ..] => return Err(Refusal::bad("request target with a broken % escape")),
                [b' ', ..] if self.at > self.method_end.saturating_add(1) => {
                    self.target_end = self.at;
                    self.at = self.at.saturating_add(1);
                    self.stage = Stage::Version;
                    return Ok(true);
                }
                [b'\r' | b'\n' | b' ', ..] => return Err(Refusal::bad("not a request line")),
                _ => return Err(Refusal::bad("character not allowed in a request target")),
            }
        }
    }

    fn version(&mut self, buf: &[u8]) -> Result<bool, Refusal> {
        const FORM: &[u8; 8] = b"HTTP/0.0";
        const BAD: Refusal = Refusal::bad("no HTTP version at the end of the request line");
        let rest = buf.get(self.at..).unwrap_or_default();
        let fits = rest.iter().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            _ => byte == form,
        });
        if !fits {
            return Err(BAD);
        }
        let [_, _, _, _, _, major, _, minor, end @ ..] = rest else {
            return Ok(false);
        };
        let skip = match end {
            [] | [b'\r'] => return Ok(false),
            [b'\n', ..] => 9,
            [b'\r', b'\n', ..] => 10,
            _ => return Err(BAD),
        };
        self.version = match (major, minor) {
            (b'1', b'1') => Version::Http11,
            (b'1', b'0') => Version::Http10,
            _ => return Err(Refusal::new(505, "HTTP version other than 1.0 and 1.1")),
        };
        self.crlf = skip == 10;
        self.at = self.at.saturating_add(skip);
        self.fields = self.at;
        self.line = self.at;
        self.stage = Stage::Fields;
        Ok(true)
    }

    /// Line ends are all CR LF or, as people type them, all LF (RFC 9112 2.2 allows it, Mongrel2 takes it). A head that has
    /// both is refused: there somebody saw other lines than we would.
    fn field_lines(&mut self, buf: &[u8], most: usize) -> Result<Option<usize>, Refusal> {
        loop {
            let rest = buf.get(self.at..).unwrap_or_default();
            let Some(found) = memchr::memchr(b'\n', rest) else {
                self.at = buf.len();
                return Ok(None);
            };
            let line_feed = self.at.saturating_add(found);
            let line = buf.get(self.line..line_feed).unwrap_or_default();
            self.at = line_feed.saturating_add(1);
            self.line = self.at;
            match (line, self.crlf) {
                ([b'\r'], true) | ([], false) => return Ok(Some(self.at)),
                ([.., b'\r'], true) => {}
                ([.., b'\r'], false) | (_, true) => {
                    return Err(Refusal::bad("line ends of two kinds in one head"));
                }
                (_, false) => {}
            }
            self.lines = self.lines.saturating_add(1);
            if self.lines > most {
                return Err(Refusal::new(431, "too many header fields"));
            }
        }
    }
}

/// Characters of a target that need no second look (RFC 3986, as Mongrel2 reads it). Brackets are let through here and only
/// here: an IPv6 host of the absolute form has them.
const PLAIN: u8 = 1;
/// Characters that the setting `request.relaxed` adds.
const RELAXED: u8 = 2;

static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut rest: &mut [u8] = &mut table;
    let mut byte = 0_u8;
    while let Some((class, tail)) = rest.split_first_mut() {
        *class = match byte {
            b'{' | b'}' | b'^' => RELAXED,
            // Not `%`, which is looked at with what follows it, nor: controls, space, `"`, `<`, `>`, `\`, backtick, `|`, 0x80 up.
            b'!'
            | b'#'..=b'$'
            | b'&'..=b';'
            | b'='
            | b'?'..=b'['
            | b']'
            | b'_'
            | b'a'..=b'z'
            | b'~' => PLAIN,
            _ => 0,
        };
        rest = tail;
        byte = byte.wrapping_add(1);
    }
    table
}

fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or_default()
}
