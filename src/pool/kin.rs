//! What tells which sockets are one handler's. What follows from it is decided in [`super::workers`].

use crate::bus::HANDLER_PROPERTY;
use crate::bus::server::{Origin, Peer, PeerId};

/// What tells which PULL and which PUB belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kin {
    /// Their own word, exact.
    Token(u128),
    /// They are one socket.
    Same(PeerId),
    /// Where they come from.
    Origin(Origin),
}

impl Kin {
    pub(super) fn of(peer: &Peer) -> Self {
        let token = peer.property(HANDLER_PROPERTY).and_then(token);
        token.map_or_else(|| Self::Origin(peer.origin()), Self::Token)
    }

    /// What it is called among others of its pool.
    pub(super) fn name(self) -> String {
        match self {
            Self::Token(token) => format!("{token:032x}"),
            Self::Same(peer) => peer.to_string(),
            Self::Origin(origin) => origin.to_string(),
        }
    }

    /// Whether it is certain what belongs together: all sockets of this kin are one handler's.
    pub(super) fn is_certain(self) -> bool {
        matches!(self, Self::Token(_) | Self::Same(_))
    }

    /// Whether it names one handler, so that nothing has to be counted.
    pub(super) fn is_one(self) -> bool {
        self.is_certain() || matches!(self, Self::Origin(Origin::Process(_)))
    }
}

/// Reads a handler's token: 32 hexadecimal digits.
pub(super) fn token(text: &[u8]) -> Option<u128> {
    if text.len() != 32 || !text.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u128::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
}
