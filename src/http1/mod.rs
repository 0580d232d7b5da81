//! HTTP/1 as a pure core: request heads, body framing, the chunked coding and the scanner of replies. No I/O, no clock, no
//! waiting; bytes go in, values and borrowed slices come out. It does not route, answer or keep connections: the driver
//! around it does.
//!
//! * [`head`]: a request head out of a buffer that may not be whole yet ([`parse_head`] with a [`Progress`])
//! * [`target`]: what a request line asks for ([`Target`]) and which hosts are well formed
//! * [`framing`]: how long a request's body is, as a numbered list of decisions
//! * [`chunked`]: the chunked coding, decoded as it arrives
//! * [`scanner`]: where a handler's response ends
//! * [`farewell`]: `Connection: close` in a response that is the last
//! * [`forwarded`]: what balancers say about the client behind them
//! * [`fields`]: field names and lists of tokens
//!
//! Three laws hold for all of it and are tested: no bytes make it panic, what it says does not depend on how the bytes were
//! cut, and work per byte is bounded even when they come one at a time.

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

pub mod chunked;
pub mod farewell;
pub mod fields;
pub mod forwarded;
pub mod framing;
pub mod head;
mod line;
pub mod scanner;
pub mod target;

#[cfg(test)]
mod testing;

pub use self::fields::Field;
pub use self::framing::{BodyFraming, Expect};
pub use self::head::{Head, Limits, Parsed, Progress, parse_head};
pub use self::scanner::{Asked, Scan, ScanState, Scanner};
pub use self::target::Target;

/// The protocol version of a request line. Others are refused with 505.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// `HTTP/1.0`
    Http10,
    /// `HTTP/1.1`
    #[default]
    Http11,
}

impl Version {
    /// The text as it stands in the request line and in the `VERSION` header for handlers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
        }
    }
}

/// Why a request is not taken: the status to answer with, after which the connection must be closed, since nobody can know
/// where the next request would begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
pub struct Refusal {
    /// 400, 414, 431, 501 or 505.
    pub status: u16,
    /// For the log, in lower case; says which rule was broken and never quotes the client.
    pub reason: &'static str,
}

impl Refusal {
    const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }

    const fn bad(reason: &'static str) -> Self {
        Self::new(400, reason)
    }
}
