//! Fuzzes the frames of a client and of a handler: no panic, the same messages however the bytes are cut, and what was
//! compressed stays bounded.
#![no_main]

use lurcher::websocket::deflate::Deflater;
use lurcher::websocket::{Decoder, Extensions, Follower, Frame, Limits, Violation};

const LIMITS: Limits = Limits {
    message_bytes: 10_000,
    fragments: 20,
};

fn frames<'a>(
    extensions: Extensions,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Frame>, Option<Violation>) {
    let (mut decoder, mut frames) = (Decoder::new(LIMITS, extensions), Vec::new());
    for mut rest in pieces {
        loop {
            match decoder.decode(rest) {
                Err(violation) => return (frames, Some(violation)),
                Ok(decoded) => {
                    rest = &rest[decoded.consumed..];
                    match decoded.frame {
                        Some(frame) => frames.push(frame),
                        None => break,
                    }
                }
            }
        }
    }
    (frames, None)
}

fn written<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, usize, bool) {
    let (mut deflater, mut out) = (Deflater::default(), Vec::new());
    let (mut follower, mut passed) = (Follower::default(), 0);
    for piece in pieces {
        deflater.deflate(piece, &mut out);
        passed += follower.follow(piece).passed;
    }
    (out, passed, follower.has_closed())
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    for extensions in [Extensions::None, Extensions::Deflate, Extensions::Foreign] {
        let whole = frames(extensions, std::iter::once(input));
        assert_eq!(frames(extensions, input.chunks(1)), whole);
        assert!(whole.0.iter().all(|frame| frame.payload.len() <= LIMITS.message_bytes));
    }
    let (_, passed, closed) = written(std::iter::once(input));
    let (_, passed_in_bytes, closed_in_bytes) = written(input.chunks(1));
    assert_eq!((passed, closed), (passed_in_bytes, closed_in_bytes));
});
