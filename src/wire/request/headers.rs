//! The header dict of a request as handlers see it. No knowledge of what any header means.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use crate::tnetstring::{self, Limits, Split};
use crate::wire::{DecodeErrorKind, json};

/// Headers in the order in which the front wrote them, which says nothing: Mongrel2's is that of a hash table.
///
/// Keys made by the server are upper case (`METHOD`, `REMOTE_ADDR`); a client's header names are lower case, so a
/// client cannot forge the former. Values from a JSON front are UTF-8; from a tnetstring front they are the client's bytes.
///
/// Names and values lie in the message that they came with, which is kept as long as this is: there is one reference to it, for a
/// count of references to each of them would cost more than to read them.
#[derive(Clone, Default)]
pub struct Headers {
    message: Bytes,
    entries: Vec<Entry>,
    /// Texts that do not stand in the message as they are meant, such as those with escapes. Seldom there.
    made: Box<[u8]>,
}

/// The values of one header, in order of arrival. Almost always there is one.
#[derive(Clone, Copy)]
pub struct HeaderValues<'a> {
    headers: &'a Headers,
    spans: &'a [Span],
}

/// Where a text stands: in the message, or in what was made, which is counted on behind the message.
#[derive(Debug, Clone, Copy)]
pub(in crate::wire) struct Span {
    pub(in crate::wire) start: usize,
    pub(in crate::wire) length: usize,
}

#[derive(Clone)]
struct Entry {
    name: Span,
    values: Spans,
}

/// Where the values of one header stand.
#[derive(Clone)]
pub(in crate::wire) enum Spans {
    One(Span),
    Many(Box<[Span]>),
}

impl Spans {
    fn as_slice(&self) -> &[Span] {
        match self {
            Self::One(span) => std::slice::from_ref(span),
            Self::Many(spans) => spans,
        }
    }
}

impl<'a> HeaderValues<'a> {
    /// The first value; nothing for an empty list.
    pub fn first(self) -> Option<&'a [u8]> {
        self.get(0)
    }

    /// The value, if there is exactly one.
    pub fn single(self) -> Option<&'a [u8]> {
        match self.spans {
            [span] => Some(self.headers.text(*span)),
            _ => None,
        }
    }

    /// One of them, counted from 0.
    pub fn get(self, nth: usize) -> Option<&'a [u8]> {
        self.spans.get(nth).map(|span| self.headers.text(*span))
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.spans.is_empty()
    }

    /// One after the other.
    pub fn iter(self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
        let headers = self.headers;
        self.spans.iter().map(move |span| headers.text(*span))
    }

    /// All in one text, with something between them.
    pub fn join(self, between: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        for (nth, value) in self.iter().enumerate() {
            if nth > 0 {
                all.extend_from_slice(between);
            }
            all.extend_from_slice(value);
        }
        all
    }
}

impl PartialEq for HeaderValues<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for HeaderValues<'_> {}

impl fmt::Debug for HeaderValues<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.iter().map(|value| value.escape_ascii().to_string());
        f.debug_list().entries(values).finish()
    }
}

impl Headers {
    /// None yet, of a message that [`Headers::of`] gets in the end.
    pub(in crate::wire) fn none() -> Self {
        Self {
            entries: Vec::with_capacity(USUAL),
            ..Self::default()
        }
    }

    /// Adds one.
    pub(in crate::wire) fn push(&mut self, name: Span, values: Spans) {
        self.entries.push(Entry { name, values });
    }

    /// What was made for them.
    pub(in crate::wire) fn with_made(self, made: Vec<u8>) -> Self {
        Self {
            made: made.into_boxed_slice(),
            ..self
        }
    }

    /// These are in that message.
    pub(super) fn of(self, message: Bytes) -> Self {
        Self { message, ..self }
    }

    /// Reads the JSON of a header dict.
    pub(in crate::wire) fn from_json(text: Bytes) -> Result<Headers, DecodeErrorKind> {
        let headers = json::read_object(&text, 0..text.len())?;
        Ok(headers.of(text))
    }

    /// Reads what stands there in the message, the payload of a tnetstring dict. Values other than strings and lists are read as their
    /// text.
    pub(super) fn read_tnetstring(
        message: &[u8],
        place: Range<usize>,
        limits: Limits,
    ) -> Result<Headers, DecodeErrorKind> {
        let mut headers = Self::none();
        let mut cut = Cut {
            at: place.start,
            left: message.get(place).unwrap_or_default(),
            limits,
        };
        while !cut.left.is_empty() {
            let (tag, name, _) = cut.take()?;
            if tag != b',' {
                return Err(DecodeErrorKind::Shape("a string as header name"));
            }
            let (tag, value, inside) = cut.take()?;
            let values = if tag == b']' {
                let inside = Cut {
                    at: value.start,
                    left: inside,
                    ..cut
                };
                Spans::Many(inside.list()?)
            } else {
                Spans::One(text(tag, value)?)
            };
            headers.push(name, values);
        }
        Ok(headers)
    }

    /// The values of a header; names are compared byte by byte, so clients' headers are asked for in lower case. The
    /// last one, should the dict repeat a key.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<HeaderValues<'_>> {
        let name = name.as_ref();
        let mut found = self.entries.iter().rev();
        found
            .find(|entry| entry.name.length == name.len() && self.text(entry.name) == name)
            .map(|entry| self.values(entry))
    }

    /// The first value of a header.
    pub fn first(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        self.get(name)?.first()
    }

    /// All values of a header, in order of arrival.
    pub fn all(&self, name: impl AsRef<[u8]>) -> HeaderValues<'_> {
        self.get(name).unwrap_or(HeaderValues {
            headers: self,
            spans: &[],
        })
    }

    /// Whether there is such a header.
    pub fn contains(&self, name: impl AsRef<[u8]>) -> bool {
        self.get(name).is_some()
    }

    /// Names and values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], HeaderValues<'_>)> {
        self.entries
            .iter()
            .map(|entry| (self.text(entry.name), self.values(entry)))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// One of the names or values as a text of its own, which keeps the message. Copied where it does not stand there as it is.
    pub fn share(&self, text: &[u8]) -> Bytes {
        let message = self.message.as_ptr_range();
        let own = text.as_ptr_range();
        if message.start <= own.start && own.end <= message.end {
            self.message.slice_ref(text)
        } else {
            Bytes::copy_from_slice(text)
        }
    }

    fn text(&self, span: Span) -> &[u8] {
        let found = match span.start.checked_sub(self.message.len()) {
            Some(start) => self.made.get(start..),
            _ => self.message.get(span.start..),
        };
        found
            .and_then(|text| text.get(..span.length))
            .unwrap_or_default()
    }

    fn values<'a>(&'a self, entry: &'a Entry) -> HeaderValues<'a> {
        HeaderValues {
            headers: self,
            spans: entry.values.as_slice(),
        }
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Headers {}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.iter();
        let entries = entries.map(|(name, values)| (name.escape_ascii().to_string(), values));
        f.debug_map().entries(entries).finish()
    }
}

/// How many headers there is room for before more is asked for: browsers send about twelve, and the server adds eight.
const USUAL: usize = 20;

/// Elements of a tnetstring, and where they stand.
#[derive(Clone, Copy)]
struct Cut<'a> {
    at: usize,
    left: &'a [u8],
    limits: Limits,
}

impl<'a> Cut<'a> {
    /// Takes one whole element off the start: its type, where its payload stands, and the payload.
    fn take(&mut self) -> Result<(u8, Span, &'a [u8]), DecodeErrorKind> {
        let cut = take(self.left, self.limits)?;
        let span = Span {
            start: self.at.saturating_add(cut.before),
            length: cut.payload.len(),
        };
        self.at = self.at.saturating_add(cut.whole);
        self.left = cut.rest;
        Ok((cut.tag, span, cut.payload))
    }

    fn list(mut self) -> Result<Box<[Span]>, DecodeErrorKind> {
        let mut values = Vec::new();
        while !self.left.is_empty() {
            let (tag, value, _) = self.take()?;
            values.push(text(tag, value)?);
        }
        Ok(values.into())
    }
}

/// An element of a tnetstring: its type, its payload with the bytes before it, its own size, and what is behind it.
pub(super) struct Piece<'a> {
    pub(super) tag: u8,
    pub(super) before: usize,
    pub(super) payload: &'a [u8],
    pub(super) whole: usize,
    pub(super) rest: &'a [u8],
}

/// Takes one whole element off the start.
pub(super) fn take(left: &[u8], limits: Limits) -> Result<Piece<'_>, DecodeErrorKind> {
    match tnetstring::split(left, limits).map_err(DecodeErrorKind::Tnetstring)? {
        Split::Complete(element) => {
            let whole = left.len().saturating_sub(element.rest.len());
            Ok(Piece {
                tag: element.tag,
                // Behind the payload there is the type.
                before: whole.saturating_sub(element.payload.len().saturating_add(1)),
                payload: element.payload,
                whole,
                rest: element.rest,
            })
        }
        Split::Partial { .. } => Err(DecodeErrorKind::Truncated),
    }
}

fn text(tag: u8, value: Span) -> Result<Span, DecodeErrorKind> {
    match tag {
        b',' | b'#' | b'^' | b'!' | b'~' => Ok(value),
        _ => Err(DecodeErrorKind::Shape("texts and lists of texts as values")),
    }
}
