//! ZMTP, the wire protocol of libzmq and its kin, for the side that accepts and the one that connects: a pure codec, no I/O, no clock.
//!
//! [`Session`] takes the bytes of one connection and the time, and gives events, bytes to send and the time of its next
//! deadline. It speaks 3.1 and 3.0 (RFC 37 and 23), 2.0 (RFC 15) and 1.0 (RFC 13) as libzmq of any age does, mechanism
//! NULL. It does not queue messages to be sent, open sockets or choose peers: that is `bus`.
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use bytes::Bytes;

mod command;
mod frame;
mod greeting;
mod options;
mod session;
mod violation;

pub use command::{Property, ReadyError};
pub use frame::{EncodedHeader, FrameError, Framing, HEADER_BYTES_MAX};
pub use options::Options;
pub use session::{Event, Remote, Session};
pub use violation::Violation;

/// The types a socket can have. [`Session`] can play any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketType {
    /// Talks to one PAIR.
    Pair,
    /// Publishes.
    Pub,
    /// Subscribes.
    Sub,
    /// Asks, one question at a time.
    Req,
    /// Answers, one question at a time.
    Rep,
    /// Asks without waiting.
    Dealer,
    /// Answers by identity.
    Router,
    /// Takes work.
    Pull,
    /// Gives work.
    Push,
    /// Publishes and sees the subscriptions.
    Xpub,
    /// Subscribes by messages.
    Xsub,
}

impl SocketType {
    /// Every type with its name in READY and its number in ZMTP 2.0 (RFC 23 and 15; XPUB and XSUB as libzmq 3.2 numbers them).
    const TABLE: [(Self, &'static str, u8); 11] = [
        (Self::Pair, "PAIR", 0),
        (Self::Pub, "PUB", 1),
        (Self::Sub, "SUB", 2),
        (Self::Req, "REQ", 3),
        (Self::Rep, "REP", 4),
        (Self::Dealer, "DEALER", 5),
        (Self::Router, "ROUTER", 6),
        (Self::Pull, "PULL", 7),
        (Self::Push, "PUSH", 8),
        (Self::Xpub, "XPUB", 9),
        (Self::Xsub, "XSUB", 10),
    ];

    /// The name as it stands in READY.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The number that stands for it in ZMTP 2.0.
    pub fn number(self) -> u8 {
        self.row().2
    }

    /// Whether a socket of this type talks to one of type `peer`.
    pub fn accepts(self, peer: Self) -> bool {
        match self {
            Self::Push => matches!(peer, Self::Pull),
            Self::Pull => matches!(peer, Self::Push),
            Self::Sub | Self::Xsub => matches!(peer, Self::Pub | Self::Xpub),
            Self::Pub | Self::Xpub => matches!(peer, Self::Sub | Self::Xsub),
            Self::Router => matches!(peer, Self::Dealer | Self::Req | Self::Router),
            Self::Dealer => matches!(peer, Self::Rep | Self::Dealer | Self::Router),
            Self::Rep => matches!(peer, Self::Req | Self::Dealer),
            Self::Req => matches!(peer, Self::Rep | Self::Router),
            Self::Pair => matches!(peer, Self::Pair),
        }
    }

    fn from_name(name: &[u8]) -> Option<Self> {
        Self::TABLE
            .iter()
            .find(|row| row.1.as_bytes() == name)
            .map(|row| row.0)
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::TABLE
            .iter()
            .find(|row| row.2 == number)
            .map(|row| row.0)
    }

    fn row(self) -> &'static (Self, &'static str, u8) {
        Self::TABLE
            .iter()
            .find(|row| row.0 == self)
            .expect("the table has every type")
    }
}

/// The protocol version that a peer declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 1, 2 or 3; what declares more is spoken to as 3.
    pub major: u8,
    /// 0 below 3.
    pub minor: u8,
}

impl Version {
    /// libzmq 2.x.
    pub const V1_0: Self = Self { major: 1, minor: 0 };
    /// libzmq 3.2.
    pub const V2_0: Self = Self { major: 2, minor: 0 };
    /// libzmq 4.0 to 4.3.2, and most other implementations.
    pub const V3_0: Self = Self { major: 3, minor: 0 };
    /// libzmq 4.3.3 and later; what we declare.
    pub const V3_1: Self = Self { major: 3, minor: 1 };
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A whole message: one frame or more. The frames are slices of the buffer they were received in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    first: Bytes,
    rest: Vec<Bytes>,
}

impl Message {
    /// The first frame, and nearly always the only one.
    pub fn first(&self) -> &Bytes {
        &self.first
    }

    /// The frames in order.
    pub fn frames(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// The frame of a message that has just one; otherwise the message again.
    pub fn into_single(self) -> Result<Bytes, Self> {
        if self.rest.is_empty() {
            Ok(self.first)
        } else {
            Err(self)
        }
    }

    /// The sum of the frames' lengths in bytes.
    pub fn size(&self) -> usize {
        self.frames()
            .fold(0, |sum, frame| sum.saturating_add(frame.len()))
    }
}

impl From<Bytes> for Message {
    fn from(frame: Bytes) -> Self {
        Self {
            first: frame,
            rest: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
