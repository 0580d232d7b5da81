//! Fuzzes the tnetstring parser: no panic, and what parsed is written and parsed again as it was.
#![no_main]

use lurcher::tnetstring::{Limits, Parsed, parse};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(Parsed::Complete { value, .. }) = parse(input, Limits::DEFAULT) {
        let mut out = Vec::new();
        value.encode(&mut out);
        assert_eq!(
            parse(&out, Limits::DEFAULT),
            Ok(Parsed::Complete { value, rest: b"" })
        );
    }
});
