//! A request's body on its way into the message for the handler.
//!
//! A body of known length is received straight behind the head of its message, so that it is copied once at most; a chunked
//! one is collected first, since the message says its length before it. Both are bounded by `limits.content_length`.

use bytes::Bytes;

use super::dispatch::Accepted;
use crate::http1::BodyFraming;
use crate::http1::chunked::{Decoded, Decoder, Status};
use crate::wire::request;

/// A body that is not whole yet, with the request that it belongs to.
pub(super) struct Body {
    pub(super) accepted: Accepted,
    rest: Rest,
    /// When the body began, in milliseconds of the shard's clock.
    pub(super) began: u64,
    /// Bytes received so far, as they came.
    pub(super) received: u64,
}

enum Rest {
    /// So many bytes are still to come.
    Length(usize),
    Chunked {
        decoder: Decoder,
        decoded: Vec<u8>,
        bytes_max: usize,
    },
}

/// What became of some bytes.
pub(super) enum Fed {
    /// All were used, and more are needed.
    More,
    /// The body is whole; so many bytes were used.
    Done(usize),
    /// It is larger than allowed.
    TooLarge,
    /// Its chunks are malformed.
    Malformed,
}

impl Body {
    /// Begins the body of an accepted request. A body of known length was already compared with `bytes_max`.
    pub(super) fn new(mut accepted: Accepted, bytes_max: usize, now: u64) -> Self {
        let rest = match accepted.framing {
            BodyFraming::Chunked => Rest::Chunked {
                decoder: Decoder::default(),
                decoded: Vec::new(),
                bytes_max,
            },
            BodyFraming::None | BodyFraming::Length(_) => {
                let length = accepted.length();
                request::encode_body_prefix(length, &mut accepted.message);
                accepted.message.reserve_exact(length + 1);
                Rest::Length(length)
            }
        };
        Self {
            accepted,
            rest,
            began: now,
            received: 0,
        }
    }

    /// Whether there is nothing to wait for.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self.rest, Rest::Length(0))
    }

    /// Whether the client may still wait for leave to send, when so many bytes behind the head are here.
    pub(super) fn is_missing(&self, here: usize) -> bool {
        match self.rest {
            Rest::Length(left) => here < left,
            Rest::Chunked { .. } => here == 0,
        }
    }

    /// Uses some bytes of the client.
    pub(super) fn feed(&mut self, data: &[u8]) -> Fed {
        match &mut self.rest {
            Rest::Length(left) => {
                let used = (*left).min(data.len());
                self.accepted.message.extend_from_slice(&data[..used]);
                *left -= used;
                self.received += used as u64;
                if *left == 0 {
                    Fed::Done(used)
                } else {
                    Fed::More
                }
            }
            Rest::Chunked {
                decoder,
                decoded,
                bytes_max,
            } => {
                self.received += data.len() as u64;
                match decoder.decode(data, decoded) {
                    Decoded { .. } if decoded.len() > *bytes_max => Fed::TooLarge,
                    Decoded {
                        status: Status::More,
                        ..
                    } => Fed::More,
                    Decoded {
                        status: Status::Done,
                        consumed,
                    } => Fed::Done(consumed),
                    Decoded {
                        status: Status::Refused(_),
                        ..
                    } => Fed::Malformed,
                }
            }
        }
    }

    /// Where the socket may write to directly, and how much: for bodies of known length.
    pub(super) fn direct(&mut self) -> Option<(&mut Vec<u8>, usize)> {
        match self.rest {
            Rest::Length(left) => Some((&mut self.accepted.message, left)),
            Rest::Chunked { .. } => None,
        }
    }

    /// So many bytes were written there; says whether the body is whole.
    pub(super) fn received_directly(&mut self, bytes: usize) -> bool {
        self.received += bytes as u64;
        match &mut self.rest {
            Rest::Length(left) => {
                *left = left.saturating_sub(bytes);
                *left == 0
            }
            Rest::Chunked { .. } => false,
        }
    }

    /// Closes the message: it is complete.
    pub(super) fn finish(mut self) -> (Bytes, Accepted) {
        if let Rest::Chunked { decoded, .. } = self.rest {
            request::encode_body_prefix(decoded.len(), &mut self.accepted.message);
            self.accepted.message.extend_from_slice(&decoded);
        }
        self.accepted.message.push(b',');
        (
            Bytes::from(std::mem::take(&mut self.accepted.message)),
            self.accepted,
        )
    }
}
