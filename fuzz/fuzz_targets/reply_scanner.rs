//! Fuzzes the search for the end of a response: no panic, and the same end however the bytes are cut.
#![no_main]

use lurcher::http1::{Asked, Scanner, ScanState, Version};

fn end<'a>(payloads: impl Iterator<Item = &'a [u8]>) -> (usize, ScanState, u64) {
    let mut scanner = Scanner::new(Asked::Other, Version::Http11, true);
    let consumed = payloads.map(|payload| scanner.scan(payload).consumed).sum();
    (consumed, scanner.state(), scanner.bytes())
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    assert_eq!(end(input.chunks(1)), end(std::iter::once(input)));
});
