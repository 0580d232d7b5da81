//! Fuzzes a ZMTP connection: no panic, and the same messages however the bytes are cut.
#![no_main]

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use lurcher::zmtp::{Event, Options, Session, SocketType};

fn events<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Event> {
    let now = Instant::now();
    let mut session = Session::new(SocketType::Sub, Arc::new(Options::default()), now);
    let (mut input, mut events) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        while let Ok(Some(event)) = session.handle_bytes(&mut input, now) {
            events.push(event);
        }
    }
    events
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    assert_eq!(events(input.chunks(1)), events(std::iter::once(input)));
});
