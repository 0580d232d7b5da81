//! The first bytes of a connection: which version the peer speaks, and what we send when. No I/O.
//!
//! We send ten bytes and wait, because everything at once breaks libzmq 3.2 (it closes and reconnects for ever) and puts
//! the greeting's bytes before the application of a 2.x. To a 1.0 peer those ten bytes are a whole, empty identity frame.

use super::{Options, SocketType, Version, command};

/// Length of a 3.x greeting.
pub(super) const GREETING_BYTES: usize = 64;
/// Length of the part of a 2.0 greeting before the socket type.
pub(super) const REVISION_BYTES: usize = 11;
/// The highest major version we declare, byte 10.
pub(super) const MAJOR: u8 = 3;
/// The minor version we declare, byte 11.
const MINOR: u8 = 1;

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sniffed {
    /// Too few bytes to tell.
    Undecided,
    /// ZMTP 1.0: the bytes are a frame with the peer's identity.
    Old,
    /// 2.0 or later: byte 10 will tell.
    Versioned,
}

/// The signature: all we send unasked. To a 1.0 peer it is the header of a frame with our identity, which has so many bytes.
pub(super) fn signature(identity_bytes: usize) -> [u8; 10] {
    let length = u16::try_from(identity_bytes).unwrap_or(0).saturating_add(1);
    let [high, low] = length.to_be_bytes();
    [0xff, 0, 0, 0, 0, 0, 0, high, low, 0x7f]
}

/// Looks at the first bytes.
pub(super) fn sniff(input: &[u8]) -> Sniffed {
    match input {
        [] => Sniffed::Undecided,
        [0xff, rest @ ..] => match rest.get(8) {
            None => Sniffed::Undecided,
            Some(flags) if flags & 1 == 0 => Sniffed::Old,
            Some(_) => Sniffed::Versioned,
        },
        _ => Sniffed::Old,
    }
}

/// Whether a 1.0 frame header is really the start of a text protocol. Two capital letters open every HTTP method (and
/// the HTTP/2 preface), whereas an identity of 64 to 89 bytes with a capital letter for its flags byte is unheard of
/// (libzmq 2.1's noise is 7e and 7f). Without this rule `OPTIONS` and `TRACE` would pass for identity frames.
pub(super) fn is_text(input: &[u8]) -> bool {
    matches!(input, [first, second, ..] if first.is_ascii_uppercase() && second.is_ascii_uppercase())
}

/// Appends bytes 11 to 63 of our greeting, and our READY.
pub(super) fn complete(role: SocketType, options: &Options, out: &mut Vec<u8>) {
    out.push(MINOR);
    out.extend_from_slice(b"NULL");
    out.resize(out.len().saturating_add(48), 0);
    command::encode_ready(role, options, out);
}

/// Reads a whole greeting of 3.x: the version that the peer declares, and its mechanism.
pub(super) fn read(greeting: &[u8; GREETING_BYTES]) -> (Version, &[u8]) {
    let [_, _, _, _, _, _, _, _, _, _, major, minor, rest @ ..] = greeting;
    let mechanism = rest.get(..20).unwrap_or_default();
    let length = mechanism
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last.saturating_add(1));
    (
        Version {
            major: (*major).min(MAJOR),
            minor: *minor,
        },
        mechanism.get(..length).unwrap_or_default(),
    )
}
