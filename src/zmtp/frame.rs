//! Frame headers of ZMTP 1.0 and of 2.0 and 3.x. No I/O; knows nothing of what a frame means.

/// The longest header of any version.
pub const HEADER_BYTES_MAX: usize = 10;

/// Flag bit: another frame of the same message follows.
const MORE: u8 = 0x01;
/// Flag bit of 2.0 and 3.x: the length has eight bytes.
const LONG: u8 = 0x02;
/// Flag bit of 3.x: the frame is a command.
const COMMAND: u8 = 0x04;
/// What stands in a 1.0 frame instead of a length when eight bytes of it follow.
const LONG_MARK: u8 = 0xff;

/// How frames look on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// ZMTP 1.0: `len flags body`, or `ff len(8) flags body`, the length counting the flags.
    Old,
    /// ZMTP 2.0 and 3.x: `flags len body`, or `flags|02 len(8) body`.
    New,
}

/// A decoded frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Another frame of the same message follows.
    pub(super) more: bool,
    /// Bit 2; a command in 3.x, noise in other versions.
    pub(super) command: bool,
    /// The flags as they came.
    pub(super) flags: u8,
    /// Bytes of the header itself.
    pub(super) length: usize,
    /// Bytes of the body.
    pub(super) size: u64,
}

/// Why bytes are no frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A 1.0 length counts the flags byte, so it cannot be zero.
    #[error("frame length 0")]
    LengthZero,
    /// The top bit of an eight-byte length is set.
    #[error("frame length above 2^63")]
    LengthNegative,
}

/// An encoded frame header: the bytes are `as_ref()`.
#[derive(Debug, Clone, Copy)]
pub struct EncodedHeader {
    bytes: [u8; HEADER_BYTES_MAX],
    length: u8,
}

impl AsRef<[u8]> for EncodedHeader {
    fn as_ref(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.length))
            .unwrap_or_default()
    }
}

impl Framing {
    /// Reads the header at the front of `input`; `None` when it is not whole yet.
    pub(super) fn decode(self, input: &[u8]) -> Result<Option<Header>, FrameError> {
        match self {
            Self::Old => decode_old(input),
            Self::New => decode_new(input),
        }
    }

    /// The header of a message frame with a body of `size` bytes.
    pub fn encode(self, size: usize, more: bool) -> EncodedHeader {
        let flags = u8::from(more);
        let size = size as u64;
        match self {
            Self::New => match u8::try_from(size) {
                Ok(short) => EncodedHeader::new(&[flags, short]),
                Err(_) => EncodedHeader::joined(&[flags | LONG], size, &[]),
            },
            Self::Old => match u8::try_from(size.saturating_add(1)) {
                Ok(short) if short != LONG_MARK => EncodedHeader::new(&[short, flags]),
                _ => EncodedHeader::joined(&[LONG_MARK], size.saturating_add(1), &[flags]),
            },
        }
    }
}

impl EncodedHeader {
    /// No header at all: what follows brings its own.
    pub const EMPTY: Self = Self {
        bytes: [0; HEADER_BYTES_MAX],
        length: 0,
    };

    fn new(bytes: &[u8]) -> Self {
        let mut header = Self::EMPTY;
        for (to, from) in header.bytes.iter_mut().zip(bytes) {
            *to = *from;
            header.length = header.length.saturating_add(1);
        }
        header
    }

    fn joined(before: &[u8], length: u64, after: &[u8]) -> Self {
        let mut header = Self::EMPTY;
        let length = length.to_be_bytes();
        for (to, from) in header
            .bytes
            .iter_mut()
            .zip(before.iter().chain(&length).chain(after))
        {
            *to = *from;
            header.length = header.length.saturating_add(1);
        }
        header
    }
}

/// Appends a command frame of 3.x: name, then data.
pub(super) fn encode_command(name: &str, data: &[u8], out: &mut Vec<u8>) {
    let size = name.len().saturating_add(data.len()).saturating_add(1);
    if let Ok(short) = u8::try_from(size) {
        out.extend_from_slice(&[COMMAND, short]);
    } else {
        out.push(COMMAND | LONG);
        out.extend_from_slice(&(size as u64).to_be_bytes());
    }
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(data);
}

fn decode_new(input: &[u8]) -> Result<Option<Header>, FrameError> {
    let [flags, rest @ ..] = input else {
        return Ok(None);
    };
    let (length, size) = if flags & LONG == 0 {
        let Some(short) = rest.first() else {
            return Ok(None);
        };
        (2, u64::from(*short))
    } else {
        let Some(long) = rest.first_chunk() else {
            return Ok(None);
        };
        (9, u64::from_be_bytes(*long))
    };
    if size > i64::MAX as u64 {
        return Err(FrameError::LengthNegative);
    }
    Ok(Some(Header {
        more: flags & MORE != 0,
        command: flags & COMMAND != 0,
        flags: *flags,
        length,
        size,
    }))
}

fn decode_old(input: &[u8]) -> Result<Option<Header>, FrameError> {
    let (length, counted, flags) = match input {
        [LONG_MARK, rest @ ..] => {
            let Some((long, after)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            let Some(flags) = after.first() else {
                return Ok(None);
            };
            (10, u64::from_be_bytes(*long), *flags)
        }
        [0, ..] => return Err(FrameError::LengthZero),
        [] | [_] => return Ok(None),
        [short, flags, ..] => (2, u64::from(*short), *flags),
    };
    if counted > i64::MAX as u64 {
        return Err(FrameError::LengthNegative);
    }
    let size = counted.checked_sub(1).ok_or(FrameError::LengthZero)?;
    // Bits 1 to 7 are noise: libzmq 2.1.11 sends 7e and 7f.
    Ok(Some(Header {
        more: flags & MORE != 0,
        command: false,
        flags,
        length,
        size,
    }))
}
