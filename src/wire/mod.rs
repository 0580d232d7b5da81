//! The Mongrel2 messages between a front and its handlers (stand-in until the real one lands).
pub mod reply;
pub mod request;
use std::fmt;

/// Connection id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u32);
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
/// Decode error.
#[derive(Debug, thiserror::Error)]
#[error("bad {field}")]
pub struct DecodeError {
    /// Field.
    pub field: &'static str,
}
