//! Why a connection has to end. No I/O; whether and how to tell the peer is the caller's affair.

use super::Version;
use super::command::ReadyError;
use super::frame::FrameError;

/// Why a connection has to end. Whatever [`super::Session::output`] holds is to be sent first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The handshake took too long.
    #[error("the handshake took too long")]
    HandshakeTimeout,
    /// The peer's own time to live, given in its PING, has passed in silence.
    #[error("silent for the time to live of its own PING")]
    TimeToLive,
    /// The first bytes are those of another protocol.
    #[error("does not speak ZMTP")]
    NotZmtp,
    /// A greeting with a version that never was.
    #[error("declares ZMTP version 0")]
    VersionZero,
    /// ZMTP 1.0 or 2.0, which the options turn off.
    #[error("speaks ZMTP {0}, which is turned off")]
    VersionRefused(Version),
    /// An identity above 255 bytes.
    #[error("an identity of more than 255 bytes")]
    IdentityTooLong,
    /// ZMTP 2.0: the number of its socket type is none that ours talks to.
    #[error("its socket type {0} does not fit")]
    SocketTypeNumber(u8),
    /// Another mechanism than NULL.
    #[error("wants the mechanism {0:?}")]
    Mechanism(String),
    /// Traffic before READY.
    #[error("sent something else before its READY")]
    NotReady,
    /// The peer answered with ERROR.
    #[error("refused us: {0:?}")]
    Refused(String),
    /// A READY that cannot be accepted.
    #[error("READY: {0}")]
    Ready(#[from] ReadyError),
    /// Bytes that are no frame.
    #[error("malformed frame: {0}")]
    Frame(#[from] FrameError),
    /// A command above the limit.
    #[error("a command of {size} bytes, above the limit of {max}")]
    CommandTooLong {
        /// Declared length.
        size: u64,
        /// The limit.
        max: usize,
    },
    /// A message above the limit.
    #[error("a message of at least {size} bytes, above the limit of {max}")]
    MessageTooLong {
        /// Length as far as declared.
        size: u64,
        /// The limit.
        max: usize,
    },
    /// Too many frames in a message.
    #[error("a message of more than {max} frames")]
    TooManyFrames {
        /// The limit.
        max: usize,
    },
    /// Too much in the direction that nobody reads.
    #[error("sends messages to a socket that takes none")]
    Unasked,
}
