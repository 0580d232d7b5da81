//! Frames (RFC 6455 5): opcodes, headers, masks, close payloads, and what a server writes. It knows nothing of messages in
//! several frames; those are [`super::decoder`]'s.

use super::{Violation, is_close_code};

/// The bit of the first byte that says that a frame is the last of its message.
pub const FIN: u8 = 0x80;
/// The three reserved bits of the first byte, which extensions may use.
pub const RESERVED: u8 = 0x70;
/// The first reserved bit: with permessage-deflate, a compressed message (RFC 7692 6).
pub const RSV1: u8 = 0x40;
/// The four bits of the first byte that hold the opcode.
const OPCODE: u8 = 0x0f;
/// The bit of the second byte that says that a mask follows.
const MASK: u8 = 0x80;
/// What stands in place of a length of two bytes, and of eight.
const MEDIUM: u8 = 126;
const LONG: u8 = 127;
/// The longest payload of a control frame (RFC 6455 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;
/// The longest reason in a close frame: beside it stands the code.
pub const REASON_BYTES_MAX: usize = 123;
/// The longest header: two bytes, a length of eight, a mask of four.
const HEADER_BYTES_MAX: usize = 14;

/// What a whole message or a control frame is. Its number is what stands in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A message of UTF-8 text.
    Text = 1,
    /// A message of any bytes.
    Binary = 2,
    /// The end: nothing but the other side's close follows.
    Close = 8,
    /// Asks for a pong with the same payload.
    Ping = 9,
    /// The answer to a ping, or a sign of life.
    Pong = 10,
}

impl Opcode {
    /// The opcode of a number. Continuations have none here: messages are whole.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    /// The opcode in Mongrel2's FLAGS, which are the first byte of a frame: `0x81` is text.
    pub const fn from_flags(flags: u8) -> Option<Self> {
        Self::from_number(flags & OPCODE)
    }

    /// Whether this is a control frame: short, never fragmented, allowed between the fragments of a message.
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Mongrel2's FLAGS header for a first byte: `0x` and two upper-case hexadecimal digits.
pub const fn flags_text(flags: u8) -> [u8; 4] {
    const DIGITS: [u8; 16] = *b"0123456789ABCDEF";
    // Both indices are below 16 by construction.
    #[expect(clippy::indexing_slicing, reason = "nibbles index sixteen digits")]
    [
        b'0',
        b'x',
        DIGITS[(flags >> 4) as usize],
        DIGITS[(flags & 0x0f) as usize],
    ]
}

/// A decoded frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The first byte: FIN, reserved bits, opcode.
    pub(super) first: u8,
    /// The key of the mask, if there is one.
    pub(super) mask: Option<[u8; 4]>,
    /// Bytes of the payload.
    pub(super) size: u64,
}

impl Header {
    /// The number of the opcode; 0 is a continuation.
    pub(super) const fn number(&self) -> u8 {
        self.first & OPCODE
    }

    /// Whether the number is that of a control frame, defined or not.
    pub(super) const fn is_control(&self) -> bool {
        self.first & 0x08 != 0
    }

    /// Appends the header as it is.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        encode_header(
            self.first,
            usize::try_from(self.size).unwrap_or(usize::MAX),
            out,
        );
        if let Some(mask) = self.mask {
            if let Some(second) = out.get_mut(start.saturating_add(1)) {
                *second |= MASK;
            }
            out.extend_from_slice(&mask);
        }
    }

    /// Whether this is the last frame of its message.
    pub(super) const fn is_last(&self) -> bool {
        self.first & FIN != 0
    }
}

/// A frame header that comes in pieces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct HeaderBuffer {
    bytes: [u8; HEADER_BYTES_MAX],
    length: u8,
}

impl HeaderBuffer {
    /// Without a byte.
    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; HEADER_BYTES_MAX],
            length: 0,
        }
    }

    /// Whether no byte of a header is here: the stream stands between two frames.
    pub(super) const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Takes bytes off the front of `input` until the header is whole; says how many, and gives the header. With less than a
    /// whole header all of `input` is taken. After a header it is as new.
    ///
    /// `check` sees the first two bytes as soon as they are here.
    pub(super) fn take<E>(
        &mut self,
        input: &[u8],
        check: impl FnOnce(u8, u8) -> Result<(), E>,
    ) -> Result<(usize, Option<Header>), E> {
        let mut taken = 0_usize;
        let mut check = Some(check);
        for byte in input {
            let Some(slot) = self.bytes.get_mut(usize::from(self.length)) else {
                break;
            };
            *slot = *byte;
            self.length = self.length.saturating_add(1);
            taken = taken.saturating_add(1);
            if self.length == 2
                && let Some(check) = check.take()
            {
                let [first, second, ..] = self.bytes;
                check(first, second)?;
            }
            if let Some(header) = self.header() {
                *self = Self::default();
                return Ok((taken, Some(header)));
            }
        }
        Ok((taken, None))
    }

    fn header(&self) -> Option<Header> {
        let bytes = self.bytes.get(..usize::from(self.length))?;
        let [first, second, rest @ ..] = bytes else {
            return None;
        };
        let (size, rest) = match second & !MASK {
            MEDIUM => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            LONG => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            short => (u64::from(short), rest),
        };
        let mask = if second & MASK == 0 {
            None
        } else {
            Some(*rest.first_chunk()?)
        };
        Some(Header {
            first: *first,
            mask,
            size,
        })
    }
}

/// Whether the second byte of a header announces a mask.
pub(super) const fn is_masked(second: u8) -> bool {
    second & MASK != 0
}

/// Whether the second byte of a header announces a length that a control frame cannot have.
pub(super) const fn is_above_control(second: u8) -> bool {
    second & !MASK >= MEDIUM
}

/// Takes the mask off, or puts it on: the byte at the start of `bytes` is the one at `offset` of the frame's payload.
pub(super) fn mask(bytes: &mut [u8], key: [u8; 4], offset: u64) {
    let mut key = key;
    // Below four by construction.
    key.rotate_left(usize::from((offset & 3).to_le_bytes()[0]));
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends the header of an unmasked frame; `first` is the whole first byte.
pub(super) fn encode_header(first: u8, size: usize, out: &mut Vec<u8>) {
    out.push(first);
    if let Ok(short @ 0..=125) = u8::try_from(size) {
        out.push(short);
    } else if let Ok(medium) = u16::try_from(size) {
        out.push(MEDIUM);
        out.extend_from_slice(&medium.to_be_bytes());
    } else {
        out.push(LONG);
        out.extend_from_slice(&(size as u64).to_be_bytes());
    }
}

/// Appends a whole, unmasked frame, as a server sends it. A control frame takes [`CONTROL_BYTES_MAX`] bytes of payload; what is
/// more is cut off, since no client would take it.
pub fn encode(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    let payload = if opcode.is_control() {
        payload.get(..CONTROL_BYTES_MAX).unwrap_or(payload)
    } else {
        payload
    };
    out.reserve(payload.len().saturating_add(10));
    encode_header(FIN | opcode as u8, payload.len(), out);
    out.extend_from_slice(payload);
}

/// Appends a close frame. The reason is cut at [`REASON_BYTES_MAX`] bytes, between characters. A code that may not be sent
/// ([`is_close_code`]) makes a close frame without code and reason.
pub fn encode_close(code: u16, reason: &str, out: &mut Vec<u8>) {
    let mut payload = Vec::with_capacity(CONTROL_BYTES_MAX);
    if is_close_code(code) {
        payload.extend_from_slice(&code.to_be_bytes());
        let end = reason.floor_char_boundary(REASON_BYTES_MAX);
        payload.extend_from_slice(reason.as_bytes().get(..end).unwrap_or_default());
    }
    encode(Opcode::Close, &payload, out);
}

/// The code and the reason in the payload of a close frame; `None` for an empty one (RFC 6455 5.5.1).
///
/// # Errors
///
/// Half a code, a code that must not be sent, a reason that is not UTF-8.
pub fn close_code(payload: &[u8]) -> Result<Option<(u16, &str)>, Violation> {
    match payload {
        [] => Ok(None),
        [_] => Err(Violation::CloseLength),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !is_close_code(code) {
                return Err(Violation::CloseCode);
            }
            let reason = std::str::from_utf8(reason).map_err(|_| Violation::CloseReason)?;
            Ok(Some((code, reason)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_length_that_their_payload_needs() {
        for (size, expect) in [
            (0, &b"\x82\x00"[..]),
            (125, b"\x82\x7d"),
            (126, b"\x82\x7e\x00\x7e"),
            (65_535, b"\x82\x7e\xff\xff"),
            (65_536, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
        ] {
            let mut out = Vec::new();
            encode(Opcode::Binary, &vec![7; size], &mut out);
            assert_eq!(&out[..expect.len()], expect);
            assert_eq!(out.len(), expect.len() + size);
        }
    }

    #[test]
    fn control_frames_never_get_too_long() {
        let mut out = Vec::new();
        encode(Opcode::Ping, &[1; 200], &mut out);
        assert_eq!((out.len(), &out[..2]), (127, &b"\x89\x7d"[..]));
        out.clear();
        encode_close(1000, &"ä".repeat(100), &mut out);
        // 123 bytes would cut a character in two.
        assert_eq!((out.len(), &out[..4]), (126, &b"\x88\x7c\x03\xe8"[..]));
        assert!(std::str::from_utf8(&out[4..]).is_ok());
    }

    #[test]
    fn a_code_that_may_not_be_sent_is_not_sent() {
        for code in [0, 1005, 1006, 1015, 2999] {
            let mut out = Vec::new();
            encode_close(code, "why", &mut out);
            assert_eq!(out, b"\x88\x00");
        }
    }

    #[test]
    fn close_payloads_are_read_strictly() {
        assert_eq!(close_code(b""), Ok(None));
        assert_eq!(close_code(b"\x03\xe8"), Ok(Some((1000, ""))));
        assert_eq!(
            close_code("\u{3}\u{48}ä".as_bytes()),
            Err(Violation::CloseCode)
        );
        assert_eq!(
            close_code(b"\x0b\xb8bye \xc3\xa4"),
            Ok(Some((3000, "bye ä")))
        );
        assert_eq!(close_code(b"\x03"), Err(Violation::CloseLength));
        assert_eq!(close_code(b"\x03\xed"), Err(Violation::CloseCode));
        assert_eq!(close_code(b"\x03\xe8\xff"), Err(Violation::CloseReason));
    }

    #[test]
    fn a_mask_is_the_same_at_any_offset() {
        let key = [1, 2, 4, 8];
        let plain: Vec<u8> = (0..100).collect();
        let mut whole = plain.clone();
        mask(&mut whole, key, 0);
        for (at, byte) in whole.iter().enumerate() {
            assert_eq!(*byte, plain[at] ^ key[at % 4]);
        }
        for at in 0..100 {
            let mut pieces = plain.clone();
            let (left, right) = pieces.split_at_mut(at);
            mask(left, key, 0);
            mask(right, key, at as u64);
            assert_eq!(pieces, whole, "cut at {at}");
        }
    }

    #[test]
    fn flags_are_written_as_mongrel2_writes_them() {
        for (flags, text) in [(0x81, b"0x81"), (0x8a, b"0x8A"), (0xc1, b"0xC1")] {
            assert_eq!(&flags_text(flags), text);
        }
    }
}
