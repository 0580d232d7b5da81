//! Helpers for the tests of this module: masked frames as clients send them, and every way to cut bytes that is worth trying.

use super::frame::{self, Opcode};

/// A frame as a client sends it: `first` is the whole first byte.
pub(super) fn masked(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        short @ 0..=125 => out.push(0x80 | u8::try_from(short).unwrap()),
        medium @ 126..=0xffff => {
            out.push(0xfe);
            out.extend_from_slice(&u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            out.push(0xff);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    // Byte by byte on purpose: the code under test does it by words.
    out.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    out
}

/// The same with FIN and a usual mask.
pub(super) fn sent(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    masked(frame::FIN | opcode as u8, [0x12, 0x00, 0xfe, 0x80], payload)
}

/// Calls `check` with the bytes in one piece, in single bytes, and in every two pieces.
pub(super) fn every_split(bytes: &[u8], mut check: impl FnMut(&[&[u8]])) {
    check(&[bytes]);
    check(&bytes.chunks(1).collect::<Vec<_>>());
    for at in 0..=bytes.len() {
        check(&[&bytes[..at], &bytes[at..]]);
    }
}
