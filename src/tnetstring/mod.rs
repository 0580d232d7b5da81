//! The tnetstring codec: `LEN:payload` and a type byte, for strings, numbers, lists and dicts.
//!
//! Values are borrowed from the input. Input that ends too early is a value, [`Parsed::Partial`], because a reader may
//! simply have to wait for the rest. What is read is held to the letter of the specification (no signs or leading
//! zeros in lengths, one spelling for every integer), and to [`Limits`] on depth, digits and size, since the bytes
//! come from the network. No I/O; no conversion to or from anybody's own types.

// Hostile bytes come in here. Tests may index.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

#[cfg(test)]
mod tests;

use std::fmt;

/// One tnetstring value, borrowed from the bytes it was read from.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `,`: any bytes.
    Bytes(&'a [u8]),
    /// `#`: a decimal integer.
    Integer(i64),
    /// `^`: a finite number with a fraction.
    Float(f64),
    /// `!`: `true` or `false`.
    Bool(bool),
    /// `~`: nothing; the payload is empty.
    Null,
    /// `]`: values, one behind the other.
    List(Vec<Value<'a>>),
    /// `}`: keys (always `,` elements) and values by turns. Order and repeated keys are kept.
    Dict(Vec<(&'a [u8], Value<'a>)>),
}

/// What a parser will take. A limit that is passed is an error, never a truncation.
///
/// A parsed value takes at most some 20 times the memory of its text (a list of empty strings is the worst case), so
/// `size` bounds memory too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many lists and dicts may enclose a value; 0 takes plain values only. Parsing uses stack in proportion.
    pub depth: usize,
    /// Digits in a length; the specification allows 9.
    pub digits: usize,
    /// Bytes in a payload.
    pub size: usize,
}

impl Limits {
    /// Depth 32 (nobody nests headers, log lines or commands deeper than four), the specification's 9 digits, and
    /// 16 MiB, which is what the mailbox of one connection holds.
    pub const DEFAULT: Limits = Limits {
        depth: 32,
        digits: 9,
        size: 16 << 20,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Limits::DEFAULT
    }
}

/// What [`parse`] found at the start of its input.
#[derive(Debug, Clone, PartialEq)]
pub enum Parsed<'a> {
    /// A whole value.
    Complete {
        /// The value.
        value: Value<'a>,
        /// What follows it.
        rest: &'a [u8],
    },
    /// The beginning of a value.
    Partial {
        /// No value can be complete before at least so many more bytes have come; never 0.
        need: usize,
    },
}

/// What [`split`] found at the start of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split<'a> {
    /// A whole element; its payload has not been looked at.
    Complete(Element<'a>),
    /// The beginning of an element.
    Partial {
        /// As in [`Parsed::Partial`].
        need: usize,
    },
}

/// One element as it stands: what is between the colon and the type byte, uninterpreted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element<'a> {
    /// The type byte; any byte at all, until somebody checks it.
    pub tag: u8,
    /// The bytes before it.
    pub payload: &'a [u8],
    /// The bytes behind it.
    pub rest: &'a [u8],
}

/// Why bytes are no tnetstring, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {at}")]
pub struct ParseError {
    /// Offset from the start of the input: of the offending payload, or of the byte in a length.
    pub at: usize,
    /// What is wrong there.
    pub kind: ErrorKind,
}

/// The ways to be no tnetstring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A length has to be digits and a colon.
    #[error("a length is not digits and a colon")]
    Length,
    /// A length has one spelling only.
    #[error("a length with a leading zero")]
    LeadingZero,
    /// More digits than [`Limits::digits`].
    #[error("a length of more than {max} digits")]
    Digits {
        /// The limit.
        max: usize,
    },
    /// A payload longer than [`Limits::size`].
    #[error("a payload of more than {max} bytes")]
    Size {
        /// The limit.
        max: usize,
    },
    /// More nesting than [`Limits::depth`].
    #[error("more than {max} lists and dicts inside each other")]
    Depth {
        /// The limit.
        max: usize,
    },
    /// An element goes on behind the end of the list or dict it is in.
    #[error("an element longer than what encloses it")]
    Overrun,
    /// No such type.
    #[error("unknown type {}", Shown(*.0))]
    Tag(u8),
    /// A `#` that is no integer, is not in its shortest form, or does not fit 64 bits.
    #[error("not an integer")]
    Integer,
    /// A `^` that is no finite decimal number.
    #[error("not a number")]
    Float,
    /// A `!` that is neither `true` nor `false`.
    #[error("neither true nor false")]
    Bool,
    /// A `~` with a payload.
    #[error("a null that is not empty")]
    Null,
    /// A dict key of another type than `,`.
    #[error("a key that is not a string")]
    Key,
    /// A dict whose last key has no value.
    #[error("a key without a value")]
    Unpaired,
}

/// A byte as it can stand in a log line.
struct Shown(u8);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_ascii_graphic() {
            write!(f, "`{}`", char::from(self.0))
        } else {
            write!(f, "0x{:02x}", self.0)
        }
    }
}

/// Reads one value from the start of `input`.
///
/// # Errors
/// The bytes can never become a tnetstring within `limits`, whatever follows.
pub fn parse(input: &[u8], limits: Limits) -> Result<Parsed<'_>, ParseError> {
    match split(input, limits)? {
        Split::Partial { need } => Ok(Parsed::Partial { need }),
        Split::Complete(element) => {
            let value = value(element, element.payload_at(input, 0), limits, 0)?;
            Ok(Parsed::Complete {
                value,
                rest: element.rest,
            })
        }
    }
}

/// Takes one element off the start of `input` without looking into it. Of `limits`, `depth` does not matter here.
///
/// # Errors
/// The length is malformed or beyond `limits`.
pub fn split(input: &[u8], limits: Limits) -> Result<Split<'_>, ParseError> {
    let mut length: usize = 0;
    let mut digits: usize = 0;
    let fail = |at, kind| Err(ParseError { at, kind });
    for &byte in input {
        match byte {
            b'0'..=b'9' => {
                if digits == limits.digits {
                    return fail(digits, ErrorKind::Digits { max: limits.digits });
                }
                if digits > 0 && length == 0 {
                    return fail(digits, ErrorKind::LeadingZero);
                }
                let digit = usize::from(byte.wrapping_sub(b'0'));
                length = match length
                    .checked_mul(10)
                    .and_then(|tens| tens.checked_add(digit))
                {
                    Some(length) if length <= limits.size => length,
                    _ => return fail(digits, ErrorKind::Size { max: limits.size }),
                };
                digits = digits.saturating_add(1);
            }
            b':' if digits > 0 => {
                let behind = input.get(digits.saturating_add(1)..).unwrap_or_default();
                return Ok(match behind.split_at_checked(length) {
                    Some((payload, [tag, rest @ ..])) => Split::Complete(Element {
                        tag: *tag,
                        payload,
                        rest,
                    }),
                    _ => Split::Partial {
                        need: length.saturating_add(1).saturating_sub(behind.len()),
                    },
                });
            }
            _ => return fail(digits, ErrorKind::Length),
        }
    }
    // Behind a length come at least its colon, the payload and the type; without one, `0:~` is the shortest element.
    let need = if digits == 0 {
        3
    } else {
        length.saturating_add(2)
    };
    Ok(Split::Partial { need })
}

impl Element<'_> {
    /// Where the payload starts, counted as `input`, from whose start this element was split, is counted from `at`.
    fn payload_at(&self, input: &[u8], at: usize) -> usize {
        let behind = self
            .payload
            .len()
            .saturating_add(1)
            .saturating_add(self.rest.len());
        at.saturating_add(input.len().saturating_sub(behind))
    }
}

/// Interprets an element; `at` is the offset of its payload, `depth` counts the lists and dicts around it.
fn value(
    element: Element<'_>,
    at: usize,
    limits: Limits,
    depth: usize,
) -> Result<Value<'_>, ParseError> {
    let payload = element.payload;
    let plain = match element.tag {
        b',' => Ok(Value::Bytes(payload)),
        b'#' => integer(payload)
            .map(Value::Integer)
            .ok_or(ErrorKind::Integer),
        b'^' => float(payload).map(Value::Float).ok_or(ErrorKind::Float),
        b'!' => match payload {
            b"true" => Ok(Value::Bool(true)),
            b"false" => Ok(Value::Bool(false)),
            _ => Err(ErrorKind::Bool),
        },
        b'~' if payload.is_empty() => Ok(Value::Null),
        b'~' => Err(ErrorKind::Null),
        b']' | b'}' if depth >= limits.depth => Err(ErrorKind::Depth { max: limits.depth }),
        b']' => return list(payload, at, limits, depth.saturating_add(1)),
        b'}' => return dict(payload, at, limits, depth.saturating_add(1)),
        tag => Err(ErrorKind::Tag(tag)),
    };
    plain.map_err(|kind| ParseError { at, kind })
}

fn list(payload: &[u8], at: usize, limits: Limits, depth: usize) -> Result<Value<'_>, ParseError> {
    let mut values = Vec::new();
    let mut left = Elements {
        input: payload,
        at,
        limits,
    };
    while let Some((element, at)) = left.next()? {
        values.push(value(element, at, limits, depth)?);
    }
    Ok(Value::List(values))
}

fn dict(payload: &[u8], at: usize, limits: Limits, depth: usize) -> Result<Value<'_>, ParseError> {
    let mut pairs = Vec::new();
    let mut left = Elements {
        input: payload,
        at,
        limits,
    };
    while let Some((key, key_at)) = left.next()? {
        if key.tag != b',' {
            return Err(ParseError {
                at: key_at,
                kind: ErrorKind::Key,
            });
        }
        let Some((element, at)) = left.next()? else {
            return Err(ParseError {
                at: key_at,
                kind: ErrorKind::Unpaired,
            });
        };
        pairs.push((key.payload, value(element, at, limits, depth)?));
    }
    Ok(Value::Dict(pairs))
}

/// The elements inside a list or dict, with the offsets of their payloads.
struct Elements<'a> {
    input: &'a [u8],
    at: usize,
    limits: Limits,
}

impl<'a> Elements<'a> {
    fn next(&mut self) -> Result<Option<(Element<'a>, usize)>, ParseError> {
        if self.input.is_empty() {
            return Ok(None);
        }
        match split(self.input, self.limits) {
            Ok(Split::Complete(element)) => {
                let payload_at = element.payload_at(self.input, self.at);
                self.input = element.rest;
                self.at = payload_at
                    .saturating_add(element.payload.len())
                    .saturating_add(1);
                Ok(Some((element, payload_at)))
            }
            Ok(Split::Partial { .. }) => Err(ParseError {
                at: self.at,
                kind: ErrorKind::Overrun,
            }),
            Err(ParseError { at, kind }) => Err(ParseError {
                at: self.at.saturating_add(at),
                kind,
            }),
        }
    }
}

/// Digits, after a minus sign perhaps, in the one spelling that [`Value::encode`] writes.
fn integer(payload: &[u8]) -> Option<i64> {
    let digits = payload.strip_prefix(b"-").unwrap_or(payload);
    let shortest = match digits {
        [b'0'] => digits.len() == payload.len(),
        [b'1'..=b'9', others @ ..] => others.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if shortest {
        std::str::from_utf8(payload).ok()?.parse().ok()
    } else {
        None
    }
}

/// A decimal number; `inf`, `nan` and what overflows to them are none.
fn float(payload: &[u8]) -> Option<f64> {
    if !payload
        .iter()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
    {
        return None;
    }
    let number: f64 = std::str::from_utf8(payload).ok()?.parse().ok()?;
    number.is_finite().then_some(number)
}

impl<'a> Value<'a> {
    /// The bytes of a string; nothing for other types.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The number of an integer; nothing for other types.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// The items of a list; nothing for other types.
    pub fn as_list(&self) -> Option<&[Value<'a>]> {
        match self {
            Value::List(values) => Some(values),
            _ => None,
        }
    }

    /// The pairs of a dict, in order; nothing for other types.
    pub fn as_dict(&self) -> Option<&[(&'a [u8], Value<'a>)]> {
        match self {
            Value::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The value of a dict's key, the last one where it is repeated; nothing for other types.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<&Value<'a>> {
        let key = key.as_ref();
        self.as_dict()?
            .iter()
            .rev()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// Appends the value to `out`.
    ///
    /// A float that is not finite has no spelling and is written as null.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Bytes(bytes) => write_bytes(out, bytes),
            Value::Integer(number) => write_integer(out, *number),
            Value::Float(number) if number.is_finite() => {
                write_element(out, b'^', format!("{number:?}").as_bytes());
            }
            Value::Bool(true) => write_element(out, b'!', b"true"),
            Value::Bool(false) => write_element(out, b'!', b"false"),
            Value::Float(_) | Value::Null => write_element(out, b'~', b""),
            Value::List(values) => {
                write_list(out, |out| {
                    for value in values {
                        value.encode(out);
                    }
                });
            }
            Value::Dict(pairs) => write_dict(out, |out| {
                for (key, value) in pairs {
                    write_bytes(out, key);
                    value.encode(out);
                }
            }),
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Bytes(text.as_bytes())
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Value::Bytes(bytes)
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Value::Integer(number)
    }
}

impl From<bool> for Value<'_> {
    fn from(yes: bool) -> Self {
        Value::Bool(yes)
    }
}

/// Appends a string.
pub fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_element(out, b',', bytes);
}

/// Appends an integer.
pub fn write_integer(out: &mut Vec<u8>, number: i64) {
    write_element(out, b'#', itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a list; `items` appends the elements.
pub fn write_list(out: &mut Vec<u8>, items: impl FnOnce(&mut Vec<u8>)) {
    let open = Open::at_end(out, 3);
    items(out);
    open.close(out, b']');
}

/// Appends a dict; `pairs` appends keys (by [`write_bytes`]) and values by turns.
pub fn write_dict(out: &mut Vec<u8>, pairs: impl FnOnce(&mut Vec<u8>)) {
    let open = Open::at_end(out, 3);
    pairs(out);
    open.close(out, b'}');
}

/// Appends an element of any type. The caller vouches that the payload suits the type.
pub fn write_element(out: &mut Vec<u8>, tag: u8, payload: &[u8]) {
    write_length(out, payload.len());
    out.extend_from_slice(payload);
    out.push(tag);
}

/// Appends `LEN:`; the caller appends so many bytes and a type byte.
pub fn write_length(out: &mut Vec<u8>, length: usize) {
    // Nearly all lengths in a header dict have one digit or two; writing those by hand saves a quarter of its time.
    let digit = |number: u8| b'0'.wrapping_add(number);
    match u8::try_from(length) {
        Ok(length @ 0..10) => out.extend_from_slice(&[digit(length), b':']),
        Ok(length @ 10..100) => {
            out.extend_from_slice(&[digit(length / 10), digit(length % 10), b':']);
        }
        _ => {
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.push(b':');
        }
    }
}

/// An element whose payload is being written behind a guessed length: no second buffer, and no move of the payload
/// when the guess had the right number of digits.
#[derive(Debug)]
#[must_use = "an element that is not closed has no length"]
pub(crate) struct Open {
    start: usize,
    digits: usize,
}

impl Open {
    /// Starts an element at the end of `out`, keeping room for a length of so many digits (20 at most).
    pub(crate) fn at_end(out: &mut Vec<u8>, digits: usize) -> Open {
        let start = out.len();
        out.extend(std::iter::repeat_n(b'0', digits.min(20)));
        out.push(b':');
        Open {
            start,
            digits: digits.min(20),
        }
    }

    /// Puts in the length of what was appended since, and the type byte.
    pub(crate) fn close(self, out: &mut Vec<u8>, tag: u8) {
        let colon = self.start.saturating_add(self.digits);
        let length = out.len().saturating_sub(colon).saturating_sub(1);
        let mut text = itoa::Buffer::new();
        let text = text.format(length).as_bytes();
        match out.get_mut(self.start..colon) {
            Some(room) if room.len() == text.len() => room.copy_from_slice(text),
            _ => drop(out.splice(self.start..colon, text.iter().copied())),
        }
        out.push(tag);
    }
}
