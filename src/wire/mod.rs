//! The Mongrel2 messages between a front and its handlers: requests and notices one way, replies the other.
//!
//! Pure: bytes in, bytes out; no I/O, no sockets, no clock. What the messages mean for a connection is the business
//! of the front and of the handler library. Both directions are here for both sides, so that either side can be tested
//! against the other. Messages are those of Mongrel2 1.12 and 1.13, which never wrote its protocol down; where these
//! modules say "Mongrel2", they mean what its binary does.

// Hostile bytes come in here. Tests may index.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

mod json;
pub mod reply;
pub mod request;
#[cfg(test)]
mod tests;
pub mod worker;

use std::fmt;

use crate::tnetstring::ParseError;

/// The number by which a front and its handlers call a client connection (or an HTTP/2 stream).
///
/// Numbers are global in a front: any handler may write to any connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u32);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a handler wants its headers: `protocol` in its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// A JSON object in a netstring.
    #[default]
    Json,
    /// A tnetstring dict.
    Tnetstring,
}

impl Protocol {
    /// The protocol of a configured text: exactly `tnetstring` switches, as in Mongrel2; anything else is JSON.
    pub fn from_config(text: &str) -> Protocol {
        if text == "tnetstring" {
            Protocol::Tnetstring
        } else {
            Protocol::Json
        }
    }

    /// The text for a configuration.
    pub fn text(self) -> &'static str {
        match self {
            Protocol::Json => "json",
            Protocol::Tnetstring => "tnetstring",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Why a message could not be decoded: the part of it, and what is wrong there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {field}: {kind}")]
pub struct DecodeError {
    /// The part of the message: `sender`, `connection id`, `path`, `headers`, `body`, `targets`, `control`.
    pub field: &'static str,
    /// What is wrong with it.
    pub kind: DecodeErrorKind,
}

/// The ways in which a part of a message can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// The message ends inside this part.
    #[error("the message ends too early")]
    Truncated,
    /// There is nothing where at least one byte or item has to be.
    #[error("empty")]
    Empty,
    /// A byte that cannot stand there.
    #[error("unexpected byte 0x{byte:02x} at {at}")]
    Byte {
        /// The byte.
        byte: u8,
        /// Its offset from the start of this part.
        at: usize,
    },
    /// A number that does not fit its type.
    #[error("a number out of range")]
    Range,
    /// More items than the receiver takes.
    #[error("more than {max} items")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// Bytes behind what should be the end.
    #[error("{bytes} bytes too many")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// Well-formed, but not of the shape that has to be here.
    #[error("expected {0}")]
    Shape(&'static str),
    /// No tnetstring.
    #[error("{0}")]
    Tnetstring(ParseError),
    /// No JSON.
    #[error("no JSON at byte {at}")]
    Json {
        /// Offset from the start of the JSON text.
        at: usize,
    },
}

impl DecodeErrorKind {
    /// Names the part of the message.
    fn field(self, field: &'static str) -> DecodeError {
        DecodeError { field, kind: self }
    }
}
