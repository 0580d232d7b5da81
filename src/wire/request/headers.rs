//! The header dict of a request as handlers see it. No knowledge of what any header means.

use bytes::Bytes;

use crate::tnetstring::{self, Limits, Split};
use crate::wire::{DecodeErrorKind, json};

/// Headers in the order in which the front wrote them, which says nothing: Mongrel2's is that of a hash table.
///
/// Keys made by the server are upper case (`METHOD`, `REMOTE_ADDR`); a client's header names are lower case, so a
/// client cannot forge the former. Values from a JSON front are UTF-8; from a tnetstring front they are the client's bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    entries: Vec<(Bytes, HeaderValue)>,
}

/// The value of one header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValue {
    /// The header came once.
    One(Bytes),
    /// The header came more than once: its values in order of arrival.
    Many(Vec<Bytes>),
}

impl HeaderValue {
    /// The values in order of arrival.
    pub fn as_slice(&self) -> &[Bytes] {
        match self {
            HeaderValue::One(value) => std::slice::from_ref(value),
            HeaderValue::Many(values) => values,
        }
    }

    /// The first value; nothing for an empty list.
    pub fn first(&self) -> Option<&[u8]> {
        self.as_slice().first().map(|value| &value[..])
    }

    /// The value, if there is exactly one.
    pub fn single(&self) -> Option<&[u8]> {
        match self.as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }
}

impl Headers {
    /// Reads the JSON of a header dict.
    pub(super) fn from_json(text: &Bytes) -> Result<Headers, DecodeErrorKind> {
        Ok(Headers {
            entries: json::read_object(text)?,
        })
    }

    /// Reads the payload of a tnetstring dict. Values other than strings and lists are read as their text.
    pub(super) fn from_tnetstring(
        payload: &Bytes,
        limits: Limits,
    ) -> Result<Headers, DecodeErrorKind> {
        let mut entries = Vec::with_capacity(16);
        let mut left = payload.clone();
        while !left.is_empty() {
            let (tag, key) = take(&mut left, limits)?;
            if tag != b',' {
                return Err(DecodeErrorKind::Shape("a string as header name"));
            }
            let (tag, value) = take(&mut left, limits)?;
            entries.push((
                key,
                if tag == b']' {
                    list(value, limits)?
                } else {
                    HeaderValue::One(text(tag, value)?)
                },
            ));
        }
        Ok(Headers { entries })
    }

    /// The value of a header; names are compared byte by byte, so clients' headers are asked for in lower case. The
    /// last one, should the dict repeat a key.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&HeaderValue> {
        let name = name.as_ref();
        self.entries
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }

    /// The first value of a header.
    pub fn first(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        self.get(name)?.first()
    }

    /// All values of a header, in order of arrival.
    pub fn all(&self, name: impl AsRef<[u8]>) -> &[Bytes] {
        self.get(name).map_or(&[], HeaderValue::as_slice)
    }

    /// Whether there is such a header.
    pub fn contains(&self, name: impl AsRef<[u8]>) -> bool {
        self.get(name).is_some()
    }

    /// Names and values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Bytes, &HeaderValue)> {
        self.entries.iter().map(|(name, value)| (name, value))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl FromIterator<(Bytes, HeaderValue)> for Headers {
    fn from_iter<I: IntoIterator<Item = (Bytes, HeaderValue)>>(entries: I) -> Self {
        Headers {
            entries: entries.into_iter().collect(),
        }
    }
}

/// Takes one whole element off the start of `left`.
pub(super) fn take(left: &mut Bytes, limits: Limits) -> Result<(u8, Bytes), DecodeErrorKind> {
    match tnetstring::split(left, limits).map_err(DecodeErrorKind::Tnetstring)? {
        Split::Complete(element) => {
            let (tag, payload) = (element.tag, left.slice_ref(element.payload));
            *left = left.slice_ref(element.rest);
            Ok((tag, payload))
        }
        Split::Partial { .. } => Err(DecodeErrorKind::Truncated),
    }
}

fn list(mut left: Bytes, limits: Limits) -> Result<HeaderValue, DecodeErrorKind> {
    let mut values = Vec::new();
    while !left.is_empty() {
        let (tag, value) = take(&mut left, limits)?;
        values.push(text(tag, value)?);
    }
    Ok(HeaderValue::Many(values))
}

fn text(tag: u8, value: Bytes) -> Result<Bytes, DecodeErrorKind> {
    match tag {
        b',' | b'#' | b'^' | b'!' | b'~' => Ok(value),
        _ => Err(DecodeErrorKind::Shape("texts and lists of texts as values")),
    }
}
