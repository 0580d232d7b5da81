//! WebSocket as a pure core (RFC 6455, RFC 7692): the opening handshake, frames both ways, close codes, compression. No I/O, no
//! clock, no waiting; bytes go in, values come out. It does not keep connections, answer pings or decide when to close: the
//! driver around it does.
//!
//! * [`handshake`]: whether a request asks for WebSocket, and what to say to it
//! * [`frame`]: frame headers, masks, close payloads; what a server writes
//! * [`decoder`]: the bytes of a client become whole messages and control frames, or a [`Violation`]
//! * [`follower`]: where frames begin and end in what a handler writes
//! * [`deflate`]: permessage-deflate, negotiated and done without state between messages
//!
//! Three laws hold for all of it and are tested: no bytes make it panic, what it says does not depend on how the bytes were
//! cut, and memory grows only with bytes that have come.

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

pub mod decoder;
pub mod deflate;
pub mod follower;
pub mod frame;
pub mod handshake;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use self::decoder::{Decoded, Decoder, Extensions, Frame, Limits};
pub use self::follower::Follower;
pub use self::frame::{Opcode, close_code, encode, encode_close};
pub use self::handshake::{Handshake, Refusal, Upgrade, accept, upgrade};

/// A client broke the protocol, or a limit: the connection is to be failed with [`Violation::close_code`] (RFC 6455 7.1.7).
///
/// The text is for the log and for the close frame; it quotes nothing of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A frame without a mask (RFC 6455 5.1).
    #[error("unmasked frame")]
    Unmasked,
    /// A reserved bit that no negotiated extension gives a meaning (5.2).
    #[error("reserved bits set")]
    ReservedBits,
    /// An opcode that is not defined (5.2).
    #[error("unknown opcode")]
    Opcode,
    /// A continuation frame where nothing was begun (5.4).
    #[error("continuation of nothing")]
    Continuation,
    /// A new message inside a fragmented one (5.4).
    #[error("new message inside a fragmented one")]
    Interleaved,
    /// A control frame without FIN (5.5).
    #[error("fragmented control frame")]
    ControlFragmented,
    /// A control frame above 125 bytes (5.5).
    #[error("control frame above 125 bytes")]
    ControlTooLong,
    /// A length with the top bit set (5.2).
    #[error("frame length above 2^63")]
    Length,
    /// A close frame with one byte, which is no code (5.5.1).
    #[error("close frame with half a code")]
    CloseLength,
    /// A close code that must not be sent (7.4).
    #[error("close code that is not to be sent")]
    CloseCode,
    /// A close reason that is not UTF-8 (5.5.1).
    #[error("close reason is not UTF-8")]
    CloseReason,
    /// Text that is not UTF-8 (8.1); told at the first byte that cannot be.
    #[error("text is not UTF-8")]
    Utf8,
    /// A compressed message that cannot be inflated (RFC 7692 7.2.2).
    #[error("compressed message is broken")]
    Deflate,
    /// A message above [`Limits::message_bytes`], inflated or not.
    #[error("message too big")]
    TooBig,
    /// A message in more than [`Limits::fragments`] frames.
    #[error("message in too many fragments")]
    TooManyFragments,
}

impl Violation {
    /// The code to close with (RFC 6455 7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Self::CloseReason | Self::Utf8 | Self::Deflate => 1007,
            Self::TooManyFragments => 1008,
            Self::TooBig => 1009,
            _ => 1002,
        }
    }
}

/// Whether a close code may stand in a close frame: defined by RFC 6455 7.4 or registered with IANA for the wire, or from the
/// ranges for libraries (3000) and applications (4000). 1005, 1006 and 1015 are for programs' own use, never sent.
pub const fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
