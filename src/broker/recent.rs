//! Which handler last had to do with a connection that has nothing open now: whom news of it is for.
//!
//! A server does not tell of every connection that ends, so what is known here cannot be kept until it is not needed. There are
//! two generations: what is looked up or noted goes to the young one, and when that is full the old one is forgotten.

use super::pools::At;
use crate::numbered::Numbered;
use crate::wire::ConnId;

/// Connections in one generation; two of them take about 4 MB. News of a connection that was idle for longer than so many
/// others took to come goes to any handler, as it does without a feed.
const GENERATION: usize = 65_536;

/// Who knows a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knows {
    /// The peer that had its last request.
    Peer(At),
    /// The reply socket that has sent something to it, unasked.
    Voice(At),
    /// Nobody: it was closed here, and what the server still says of its last request is for no handler.
    Nobody,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recent {
    young: Numbered<u32, Knows>,
    old: Numbered<u32, Knows>,
}

impl Recent {
    /// Notes who knows a connection.
    pub(super) fn note(&mut self, id: ConnId, knows: Knows) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id.0, knows);
    }

    /// Notes who has sent something to a connection, unless it is known whose it is.
    pub(super) fn heard(&mut self, id: ConnId, voice: At) {
        if self.get(id).is_none() {
            self.note(id, Knows::Voice(voice));
        }
    }

    pub(super) fn get(&self, id: ConnId) -> Option<Knows> {
        let found = self.young.get(&id.0).or_else(|| self.old.get(&id.0));
        found.copied()
    }

    /// The connection is gone.
    pub(super) fn remove(&mut self, id: ConnId) -> Option<Knows> {
        let old = self.old.remove(&id.0);
        self.young.remove(&id.0).or(old)
    }

    /// The server numbers its connections anew.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::server::PeerId;

    fn at(peer: u64) -> At {
        let peer = PeerId(peer);
        At { pool: 0, peer }
    }

    #[test]
    fn what_is_known_of_idle_connections_is_bounded_and_the_latest_is_kept() {
        let mut recent = Recent::default();
        let count = u32::try_from(GENERATION).unwrap() * 3;
        for id in 0..count {
            recent.note(ConnId(id), Knows::Peer(at(id.into())));
        }
        assert!(recent.young.len() + recent.old.len() <= 2 * GENERATION);
        let last = ConnId(count - 1);
        assert_eq!(recent.get(last), Some(Knows::Peer(at(last.0.into()))));
        assert_eq!(recent.get(ConnId(0)), None);
        assert_eq!(recent.remove(last), Some(Knows::Peer(at(last.0.into()))));
        assert_eq!(recent.get(last), None);
    }

    #[test]
    fn a_voice_does_not_take_over_what_a_peer_knows() {
        let mut recent = Recent::default();
        recent.note(ConnId(1), Knows::Peer(at(7)));
        recent.heard(ConnId(1), at(8));
        recent.heard(ConnId(2), at(8));
        assert_eq!(recent.get(ConnId(1)), Some(Knows::Peer(at(7))));
        assert_eq!(recent.get(ConnId(2)), Some(Knows::Voice(at(8))));
    }
}
