//! Helpers for the tests of this module: every way to cut bytes that is worth trying.

/// Calls `check` with the bytes in one piece, in single bytes, and in every two pieces.
pub(super) fn every_split(bytes: &[u8], mut check: impl FnMut(&[&[u8]])) {
    check(&[bytes]);
    check(&bytes.chunks(1).collect::<Vec<_>>());
    for at in 0..=bytes.len() {
        check(&[&bytes[..at], &bytes[at..]]);
    }
}
