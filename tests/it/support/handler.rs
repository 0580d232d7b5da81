//! A handler used by hand on a [`Front`]: every message is looked at, every reply written out.

use std::time::Duration;

use super::PATIENCE;
use super::front::Front;
use super::peer::{Peer, Replies, address};

/// Nothing more comes for so long: then nothing is taken to come.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// The handler.
pub(crate) struct ByHand {
    pub(crate) peer: Peer,
}

/// A message that it got.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) id: String,
    pub(crate) path: String,
    pub(crate) rest: Vec<u8>,
}

impl Got {
    /// Whether headers or body have this text somewhere.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.rest
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    }

    /// The body: the last netstring.
    pub(crate) fn body(&self) -> &[u8] {
        let colon = self.rest.iter().position(|byte| *byte == b':').unwrap();
        let length = |digits: &[u8]| -> usize { str::from_utf8(digits).unwrap().parse().unwrap() };
        let headers = colon + 1 + length(&self.rest[..colon]) + 1;
        let body = &self.rest[headers..];
        let colon = body.iter().position(|byte| *byte == b':').unwrap();
        let end = colon + 1 + length(&body[..colon]);
        assert_eq!(&body[end..], b",", "nothing follows the body");
        &body[colon + 1..end]
    }
}

impl ByHand {
    /// Connects both sockets, and waits until the front has subscribed.
    pub(crate) fn of(front: &Front) -> Self {
        let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
        peer.subscribed();
        Self { peer }
    }

    pub(crate) fn got(&self) -> Got {
        self.got_within(PATIENCE).expect("a message")
    }

    pub(crate) fn got_within(&self, wait: Duration) -> Option<Got> {
        let message = self.peer.recv(wait)?;
        let (_, id, path, rest) = address(&message);
        Some(Got {
            id: id.to_owned(),
            path: path.to_owned(),
            rest: rest.to_vec(),
        })
    }

    pub(crate) fn reply(&self, id: &str, payload: &[u8]) {
        self.peer.reply("app-ident", id, payload);
    }

    /// The next message is the notice that the connection of `id` has ended.
    pub(crate) fn told(&self, id: &str) {
        let got = self.got();
        assert_eq!((got.path.as_str(), got.id.as_str()), ("@*", id), "{got:?}");
        assert!(got.has(r#"{"type":"disconnect"}"#), "{got:?}");
    }

    pub(crate) fn told_nothing(&self) {
        if let Some(more) = self.got_within(QUIET) {
            panic!("one message too many: {more:?}");
        }
    }
}
