//! Where frames begin and end in what a handler writes after its 101: raw frames, cut into payloads anywhere. It judges
//! nothing; a handler's bytes pass as they are, whatever a client makes of them.

use super::frame::{Header, HeaderBuffer, Opcode};

/// Follows the frames of a handler, to know when it has closed and where a frame of our own may be put between them.
///
/// Feed it all bytes behind the 101's head, in order.
#[derive(Debug, Clone, Default)]
pub struct Follower {
    header: HeaderBuffer,
    /// Bytes of the present frame that are still to come.
    left: u64,
    /// The present frame is a close frame.
    closing: bool,
    closed: bool,
}

/// What a look at a handler's bytes has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Followed {
    /// Bytes that are to go out: all of them, or up to the end of a close frame, behind which nothing may follow (RFC 6455
    /// 5.5.1).
    pub passed: usize,
    /// Where, in these bytes, the first frame ends that was open before or began in them: the earliest place for a frame of our
    /// own. `Some(0)` when none was open; `None` when there is no such place in them.
    pub boundary: Option<usize>,
}

impl Follower {
    /// Follows bytes that are about to go out.
    pub fn follow(&mut self, bytes: &[u8]) -> Followed {
        let mut boundary = self.is_between().then_some(0);
        let mut passed = 0_usize;
        while let Some(rest) = bytes.get(passed..).filter(|rest| !rest.is_empty()) {
            if self.closed {
                break;
            }
            passed = passed.saturating_add(self.step(rest));
            if boundary.is_none() && self.is_between() {
                boundary = Some(passed);
            }
        }
        Followed { passed, boundary }
    }

    /// Goes over the rest of a header, or the rest of a payload.
    fn step(&mut self, bytes: &[u8]) -> usize {
        let used = if self.left > 0 {
            let used = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
            self.left = self.left.saturating_sub(used as u64);
            used
        } else {
            let Ok((used, header)) = self
                .header
                .take(bytes, |_, _| Ok::<(), std::convert::Infallible>(()));
            let Some(Header { size, .. }) = header else {
                return used;
            };
            self.left = size;
            self.closing = header.is_some_and(|header| header.number() == Opcode::Close as u8);
            used
        };
        if self.left == 0 {
            self.closed = self.closing;
        }
        used
    }

    /// Whether the bytes so far end where a frame does, so that a frame of our own may follow. Not to be asked of a handler's
    /// close frame: behind that there is nothing.
    pub const fn is_between(&self) -> bool {
        self.left == 0 && self.header.is_empty()
    }

    /// Whether a whole close frame has gone out.
    pub const fn has_closed(&self) -> bool {
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{every_split, masked};
    use super::super::{encode, encode_close};
    use super::*;

    #[test]
    fn the_end_of_a_close_frame_is_found_at_any_cut() {
        let mut stream = Vec::new();
        encode(Opcode::Text, b"one", &mut stream);
        encode(Opcode::Binary, &[8; 300], &mut stream);
        encode(Opcode::Ping, b"", &mut stream);
        encode_close(1000, "bye", &mut stream);
        let end = stream.len();
        stream.extend_from_slice(b"\x81\x01x and more");
        every_split(&stream, |pieces| {
            let mut follower = Follower::default();
            let passed: usize = pieces
                .iter()
                .map(|piece| follower.follow(piece).passed)
                .sum();
            assert_eq!(passed, end);
            assert!(follower.has_closed());
        });
    }

    #[test]
    fn boundaries_are_where_frames_end() {
        let mut stream = Vec::new();
        encode(Opcode::Text, b"hello", &mut stream);
        let first = stream.len();
        encode(Opcode::Text, b"you", &mut stream);
        for cut in 1..first {
            let mut follower = Follower::default();
            assert_eq!(follower.follow(&stream[..cut]).boundary, Some(0));
            assert!(!follower.is_between());
            assert_eq!(
                follower.follow(&stream[cut..]).boundary,
                Some(first - cut),
                "cut at {cut}"
            );
            assert!(follower.is_between() && !follower.has_closed());
        }
        let mut follower = Follower::default();
        follower.follow(&stream[..1]);
        assert_eq!(follower.follow(b"").boundary, None);
        assert_eq!(follower.follow(&stream[1..3]).boundary, None);
    }

    #[test]
    fn what_no_client_would_take_is_followed_all_the_same() {
        // Masked, an unknown opcode, a length without end.
        let mut follower = Follower::default();
        let odd = masked(0xf3, [1, 2, 3, 4], b"payload");
        assert_eq!(follower.follow(&odd).passed, odd.len());
        assert!(follower.is_between());
        follower.follow(b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff");
        assert_eq!(follower.follow(&[0; 1000]).passed, 1000);
        assert!(!follower.is_between());
    }
}
