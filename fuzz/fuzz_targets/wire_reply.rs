//! Fuzzes the reading of replies from a handler: no panic, and as many ids as were promised.
#![no_main]

use lurcher::wire::reply::{TARGETS_MAX, decode, decode_extended};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(reply) = decode(input, TARGETS_MAX) {
        assert_eq!(reply.targets.len(), reply.targets.count());
        drop(decode_extended(&input[reply.payload]));
    }
});
