//! Mixing of bits: a small generator for jitter, and the hash behind sticky keys. Not for secrets.

/// `SplitMix64`: a counter and a finalizer. The same seed gives the same numbers everywhere.
#[derive(Debug, Clone)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// From zero up to one, without it.
    pub(super) fn fraction(&mut self) -> f64 {
        fraction(self.next())
    }
}

/// Spreads the bits of a number over all bits, one to one.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A number of 64 bits as one from zero up to one, never either of them.
#[expect(
    clippy::cast_precision_loss,
    reason = "the 53 bits that are left fit a float"
)]
pub(super) fn fraction(value: u64) -> f64 {
    ((value >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}
