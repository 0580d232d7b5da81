//! The JSON of header dicts: writing strings that are always valid, and reading what fronts send, valid or not.
//!
//! Mongrel2 copies control bytes and bytes that are not UTF-8 into its JSON as they came from the client, so reading
//! takes them; a string that is not UTF-8 is read as Latin-1, which is also how this side writes one. What is read is
//! a flat object of texts and lists of texts: this is not a general parser, and there is no recursion in it.

use std::mem;

use bytes::Bytes;
use memchr::memchr2;

use super::DecodeErrorKind;
use super::request::HeaderValue;

/// Appends `"text"`. Bytes that are not UTF-8 are written as Latin-1, the whole text.
pub(super) fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    if is_plain(text) {
        out.extend_from_slice(text);
    } else {
        write_escaped(out, text);
    }
    out.push(b'"');
}

/// Whether nothing has to be escaped or checked. Without early exit, so that the compiler makes vector code of it.
fn is_plain(text: &[u8]) -> bool {
    let odd = |byte: u8| {
        u8::from(byte < b' ')
            | u8::from(byte == b'"')
            | u8::from(byte == b'\\')
            | u8::from(byte >= 0x80)
    };
    text.iter().fold(0, |found, &byte| found | odd(byte)) == 0
}

#[cold]
fn write_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let latin1 = std::str::from_utf8(text).is_err();
    for &byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=0x1f => {
                let digit = |nibble: u8| {
                    char::from_digit(u32::from(nibble), 16).map_or(b'0', |digit| digit as u8)
                };
                out.extend_from_slice(&[
                    b'\\',
                    b'u',
                    b'0',
                    b'0',
                    digit(byte >> 4),
                    digit(byte & 15),
                ]);
            }
            0x80.. if latin1 => push_char(out, char::from(byte)),
            _ => out.push(byte),
        }
    }
}

fn push_char(out: &mut Vec<u8>, char: char) {
    out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Reads an object; the strings are slices of `text` where they can be.
///
/// Values that are no strings (no front sends any) are read as their text, null as nothing. Objects, and lists in
/// lists, are refused.
pub(super) fn read_object(text: &Bytes) -> Result<Vec<(Bytes, HeaderValue)>, DecodeErrorKind> {
    let mut reader = Reader {
        text,
        at: 0,
        utf8: std::str::from_utf8(text).is_ok(),
    };
    let mut members = Vec::with_capacity(16);
    reader.expect(b'{')?;
    if reader.peek() != Some(b'}') {
        loop {
            let key = reader.string()?;
            reader.expect(b':')?;
            members.push((key, reader.value()?));
            if !reader.more() {
                break;
            }
        }
    }
    reader.expect(b'}')?;
    match reader.peek() {
        None => Ok(members),
        Some(_) => Err(reader.fail()),
    }
}

/// A position in the text; `utf8` says that all of it is UTF-8, so that no string needs checking.
struct Reader<'a> {
    text: &'a Bytes,
    at: usize,
    utf8: bool,
}

impl Reader<'_> {
    fn fail(&self) -> DecodeErrorKind {
        DecodeErrorKind::Json { at: self.at }
    }

    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    /// The next byte that is no white space; stays before it.
    fn peek(&mut self) -> Option<u8> {
        let space = self
            .rest()
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
            .count();
        self.skip(space);
        self.rest().first().copied()
    }

    fn expect(&mut self, byte: u8) -> Result<(), DecodeErrorKind> {
        if self.peek() != Some(byte) {
            return Err(self.fail());
        }
        self.skip(1);
        Ok(())
    }

    /// Takes a comma, if there is one.
    fn more(&mut self) -> bool {
        let comma = self.peek() == Some(b',');
        if comma {
            self.skip(1);
        }
        comma
    }

    fn value(&mut self) -> Result<HeaderValue, DecodeErrorKind> {
        if self.peek() != Some(b'[') {
            return Ok(HeaderValue::One(self.text()?));
        }
        self.skip(1);
        let mut values = Vec::new();
        if self.peek() != Some(b']') {
            loop {
                values.push(self.text()?);
                if !self.more() {
                    break;
                }
            }
        }
        self.expect(b']')?;
        Ok(HeaderValue::Many(values))
    }

    /// A string, or the text of a number or of one of the three words.
    fn text(&mut self) -> Result<Bytes, DecodeErrorKind> {
        if self.peek() == Some(b'"') {
            return self.string();
        }
        let word = self
            .rest()
            .iter()
            .take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
            .count();
        let word = self.text.slice(self.at..self.at.saturating_add(word));
        let known = match word.first() {
            Some(b'-' | b'0'..=b'9') => word
                .iter()
                .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte)),
            _ => matches!(&word[..], b"true" | b"false" | b"null"),
        };
        if !known {
            return Err(self.fail());
        }
        self.skip(word.len());
        Ok(if word == "null" { Bytes::new() } else { word })
    }

    fn string(&mut self) -> Result<Bytes, DecodeErrorKind> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            let Some(found) = memchr2(b'"', b'\\', self.rest()) else {
                return Err(self.fail());
            };
            self.skip(found);
            if self.rest().first() == Some(&b'"') {
                break;
            }
            escaped = true;
            self.skip(2);
        }
        let raw = self.text.slice(start..self.at);
        self.skip(1);
        let latin1 = !self.utf8 && std::str::from_utf8(&raw).is_err();
        if escaped || latin1 {
            unescape(&raw, latin1)
                .ok_or(DecodeErrorKind::Json { at: start })
                .map(Bytes::from)
        } else {
            Ok(raw)
        }
    }
}

/// The text that `raw`, what is between two quotes, stands for.
#[cold]
fn unescape(raw: &[u8], latin1: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [byte, behind @ ..] = rest {
        rest = behind;
        match byte {
            b'\\' => {
                let (&escape, behind) = rest.split_first()?;
                rest = behind;
                match escape {
                    b'"' | b'\\' | b'/' => out.push(escape),
                    b'b' => out.push(8),
                    b'f' => out.push(12),
                    b'n' => out.push(b'\n'),
                    b'r' => out.push(b'\r'),
                    b't' => out.push(b'\t'),
                    b'u' => push_char(&mut out, unescape_char(&mut rest)?),
                    _ => return None,
                }
            }
            0x80.. if latin1 => push_char(&mut out, char::from(*byte)),
            _ => out.push(*byte),
        }
    }
    Some(out)
}

/// The character of `XXXX` or, for a pair of surrogates, `XXXX\uXXXX`; a lone surrogate is U+FFFD.
fn unescape_char(rest: &mut &[u8]) -> Option<char> {
    let first = hex4(rest)?;
    if !(0xd800..0xdc00).contains(&first) {
        return Some(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    let before = *rest;
    if let Some(mut behind) = rest.strip_prefix(b"\\u") {
        let second = hex4(&mut behind)?;
        if (0xdc00..0xe000).contains(&second) {
            *rest = behind;
            let code = 0x1_0000 | ((first & 0x3ff) << 10) | (second & 0x3ff);
            return Some(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }
    *rest = before;
    Some(char::REPLACEMENT_CHARACTER)
}

fn hex4(rest: &mut &[u8]) -> Option<u32> {
    let (digits, behind) = mem::take(rest).split_at_checked(4)?;
    *rest = behind;
    digits.iter().try_fold(0, |code, &digit| {
        Some((code << 4) | char::from(digit).to_digit(16)?)
    })
}
