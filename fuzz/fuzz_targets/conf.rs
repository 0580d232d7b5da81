//! Fuzzes the reading of `.conf` files: no panic, and whatever is fatal is told.
#![no_main]

use std::path::Path;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let reading = lurcher::config::conf::read(Path::new("main.conf"), input);
    assert!(!reading.fatal || !reading.diagnostics.is_empty());
});
