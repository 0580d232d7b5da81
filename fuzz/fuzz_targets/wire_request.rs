//! Fuzzes the reading of messages from a front: no panic, whatever the bytes.
#![no_main]

use bytes::Bytes;
use lurcher::wire::request::Request;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(request) = Request::decode(Bytes::copy_from_slice(input)) {
        std::hint::black_box((request.kind(), request.should_close()));
    }
});
