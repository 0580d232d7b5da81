//! Frames in, messages out: what the decoder takes, what it refuses, at every cut; compression there and back.

use proptest::prelude::*;

use super::deflate::{COMPRESS_FROM, Deflater, inflate};
use super::testing::{every_split, masked, sent};
use super::*;

const SMALL: Limits = Limits {
    message_bytes: 1000,
    fragments: 5,
};

/// All frames, and how it ended.
fn run(
    limits: Limits,
    extensions: Extensions,
    pieces: &[&[u8]],
) -> (Vec<Frame>, Result<(), Violation>) {
    let mut decoder = Decoder::new(limits, extensions);
    let mut frames = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        loop {
            match decoder.decode(rest) {
                Ok(Decoded { consumed, frame }) => {
                    rest = &rest[consumed..];
                    let more = frame.is_some();
                    frames.extend(frame);
                    if !more {
                        assert!(rest.is_empty(), "without a frame all is used");
                        break;
                    }
                }
                Err(violation) => return (frames, Err(violation)),
            }
        }
    }
    (frames, Ok(()))
}

/// FLAGS and payloads.
type Seen = Vec<(u8, Vec<u8>)>;

/// What comes of bytes, however they are cut.
#[track_caller]
fn decode(extensions: Extensions, bytes: &[u8]) -> (Seen, Result<(), Violation>) {
    let whole = run(SMALL, extensions, &[bytes]);
    every_split(bytes, |pieces| {
        assert_eq!(run(SMALL, extensions, pieces), whole, "cut {pieces:?}");
    });
    let (frames, end) = whole;
    let frames = frames.into_iter().map(|frame| {
        assert_eq!(Opcode::from_flags(frame.flags), Some(frame.opcode));
        (frame.flags, frame.payload)
    });
    (frames.collect(), end)
}

#[track_caller]
fn refuses(bytes: &[u8], violation: Violation) {
    assert_eq!(
        decode(Extensions::None, bytes),
        (Vec::new(), Err(violation)),
        "{}",
        bytes.escape_ascii()
    );
}

#[test]
fn messages_and_control_frames_come_out_unmasked() {
    let stream = [
        sent(Opcode::Text, "grüß".as_bytes()),
        sent(Opcode::Binary, &[0xff; 200]),
        sent(Opcode::Ping, b"p"),
        sent(Opcode::Pong, b""),
        sent(Opcode::Text, b""),
    ]
    .concat();
    let expect = vec![
        (0x81, "grüß".as_bytes().to_vec()),
        (0x82, vec![0xff; 200]),
        (0x89, b"p".to_vec()),
        (0x8a, vec![]),
        (0x81, vec![]),
    ];
    assert_eq!(decode(Extensions::None, &stream), (expect, Ok(())));
}

#[test]
fn fragments_are_joined_and_control_frames_pass_between_them() {
    let key = [9, 8, 7, 6];
    // The cut goes through a character, and so do empty fragments.
    let stream = [
        masked(0x01, key, b"a\xc3"),
        masked(0x89, key, b"now"),
        masked(0x00, key, b""),
        masked(0x80, key, b"\xa4b"),
        masked(0x82, key, b"\xff"),
    ]
    .concat();
    let expect = vec![
        (0x89, b"now".to_vec()),
        (0x81, "aäb".as_bytes().to_vec()),
        (0x82, vec![0xff]),
    ];
    assert_eq!(decode(Extensions::None, &stream), (expect, Ok(())));
}

#[test]
fn nothing_follows_a_close() {
    let stream = [
        masked(0x01, [0; 4], b"begun"),
        sent(Opcode::Close, b"\x03\xe9bye"),
        sent(Opcode::Text, b"late"),
        vec![0xff; 20],
    ]
    .concat();
    let expect = vec![(0x88, b"\x03\xe9bye".to_vec())];
    assert_eq!(decode(Extensions::None, &stream), (expect, Ok(())));
    assert_eq!(
        decode(Extensions::None, &sent(Opcode::Close, b"")).0,
        [(0x88, vec![])]
    );
}

#[test]
fn a_broken_rule_is_told_by_its_name() {
    let key = [1, 2, 3, 4];
    refuses(b"\x81\x01x", Violation::Unmasked);
    for bits in [0x10, 0x20, 0x40, 0x70] {
        refuses(&masked(0x81 | bits, key, b"x"), Violation::ReservedBits);
        refuses(&masked(0x88 | bits, key, b""), Violation::ReservedBits);
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        refuses(&masked(0x80 | opcode, key, b"x"), Violation::Opcode);
    }
    refuses(&masked(0x80, key, b"x"), Violation::Continuation);
    refuses(&masked(0x00, key, b"x"), Violation::Continuation);
    refuses(
        &[masked(0x01, key, b"x"), masked(0x81, key, b"y")].concat(),
        Violation::Interleaved,
    );
    refuses(&masked(0x09, key, b"x"), Violation::ControlFragmented);
    refuses(&masked(0x89, key, &[0; 126]), Violation::ControlTooLong);
    refuses(b"\x82\xff\x80\0\0\0\0\0\0\0aaaa", Violation::Length);
    refuses(&sent(Opcode::Close, b"\x03"), Violation::CloseLength);
    refuses(&sent(Opcode::Close, b"\x03\xee"), Violation::CloseCode);
    refuses(
        &sent(Opcode::Close, b"\x03\xe8\xc3"),
        Violation::CloseReason,
    );
}

#[test]
fn text_is_checked_as_it_comes() {
    for bad in [
        &b"\xff"[..],
        b"ok\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5",
        b"cut \xe2\x82",
    ] {
        refuses(&sent(Opcode::Text, bad), Violation::Utf8);
    }
    // Not before it is beyond doubt, and not later.
    let mut decoder = Decoder::new(SMALL, Extensions::None);
    let stream = masked(0x01, [0; 4], b"\xf4\x90 and what never comes");
    assert!(decoder.decode(&stream[..7]).is_ok());
    assert_eq!(decoder.decode(&stream[7..8]), Err(Violation::Utf8));
    // Then it is over.
    assert_eq!(
        decoder.decode(&sent(Opcode::Ping, b"")),
        Ok(Decoded {
            consumed: 6,
            frame: None
        })
    );
    // A fragment that ends inside a character is in order if the message is.
    refuses(
        &[masked(0x01, [0; 4], b"\xe2\x82"), masked(0x80, [0; 4], b"")].concat(),
        Violation::Utf8,
    );
}

#[test]
fn messages_are_bounded_before_their_bytes_are_here() {
    assert_eq!(
        decode(Extensions::None, &sent(Opcode::Binary, &[1; 1000])).1,
        Ok(())
    );
    let too_big = sent(Opcode::Binary, &[1; 1001]);
    refuses(&too_big, Violation::TooBig);
    refuses(&too_big[..8], Violation::TooBig);
    let pieces = [
        masked(0x02, [0; 4], &[1; 999]),
        masked(0x80, [0; 4], &[1; 2]),
    ];
    refuses(&pieces.concat(), Violation::TooBig);
    refuses(
        b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xffaaaa",
        Violation::TooBig,
    );
    let empty = masked(0x00, [0; 4], b"");
    let begin = masked(0x02, [0; 4], b"");
    let most = [&begin[..], &empty.repeat(3), &masked(0x80, [0; 4], b"x")].concat();
    assert_eq!(decode(Extensions::None, &most).0, [(0x82, b"x".to_vec())]);
    refuses(
        &[&begin[..], &empty.repeat(5)].concat(),
        Violation::TooManyFragments,
    );
}

#[test]
fn an_announced_message_costs_no_memory_until_it_comes() {
    let mut decoder = Decoder::new(Limits::default(), Extensions::None);
    let header = b"\x82\xff\0\0\0\0\x00\xff\xff\xffaaaabc";
    assert_eq!(decoder.decode(header).unwrap().frame, None);
    let message = decoder.message_capacity();
    assert!(message < 20_000, "{message} bytes for 2");
    // And nothing at all is held between messages.
    let mut decoder = Decoder::new(SMALL, Extensions::None);
    let frame = decoder.decode(&sent(Opcode::Text, b"x")).unwrap().frame;
    assert!(frame.is_some() && decoder.is_idle());
    assert_eq!(decoder.message_capacity(), 0);
    assert!(size_of::<Decoder>() <= 192);
}

#[test]
fn a_handlers_own_extension_passes_unseen() {
    let stream = [
        masked(0x71, [3; 4], b"\xff\xfe"),
        masked(0x41, [3; 4], b"\xff"),
        masked(0x80, [3; 4], b"\xff"),
    ];
    let stream = [&stream[0][..], &masked(0xf1, [3; 4], b"\xff")].concat();
    // The first is a fragment: it may not be followed by a new message.
    assert_eq!(
        decode(Extensions::Foreign, &stream).1,
        Err(Violation::Interleaved)
    );
    let stream = [masked(0x41, [3; 4], b"\xff"), masked(0x80, [3; 4], b"\xfe")].concat();
    assert_eq!(
        decode(Extensions::Foreign, &stream),
        (vec![(0xc1, b"\xff\xfe".to_vec())], Ok(()))
    );
}

/// A compressed message as a client sends it.
fn compressed(first: u8, text: &[u8]) -> Vec<u8> {
    masked(first, [5, 6, 7, 8], &payload_of(text))
}

/// The payload of a message that our own compressor makes.
fn payload_of(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    frame::encode_header(0x02, text.len(), &mut plain);
    plain.extend_from_slice(text);
    plain.extend_from_slice(b"\x80\x00");
    let mut out = Vec::new();
    Deflater::default().deflate(&plain, &mut out);
    frames_of(&out).concat()
}

/// The payloads of unmasked frames.
fn frames_of(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let mut header = frame::HeaderBuffer::default();
        let (used, found) = header.take(bytes, |_, _| Ok::<(), ()>(())).unwrap();
        let size = usize::try_from(found.unwrap().size).unwrap();
        frames.push(bytes[used..used + size].to_vec());
        bytes = &bytes[used + size..];
    }
    frames
}

#[test]
fn compressed_messages_come_out_inflated_and_without_their_bit() {
    // RFC 7692 7.2.3.1 to 7.2.3.5: one block, stored, final, two blocks.
    for hello in [
        &b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..],
        b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
    ] {
        let stream = [
            masked(0xc1, [1, 2, 3, 4], hello),
            masked(0x41, [1, 2, 3, 4], &hello[..3]),
            masked(0x80, [1, 2, 3, 4], &hello[3..]),
            sent(Opcode::Text, b"plain"),
        ]
        .concat();
        let expect = vec![
            (0x81, b"Hello".to_vec()),
            (0x81, b"Hello".to_vec()),
            (0x81, b"plain".to_vec()),
        ];
        assert_eq!(decode(Extensions::Deflate, &stream), (expect, Ok(())));
    }
    assert_eq!(
        decode(Extensions::Deflate, &masked(0xc2, [0; 4], b"\x00")),
        (vec![(0x82, vec![])], Ok(()))
    );
}

#[test]
fn what_is_badly_compressed_is_refused() {
    let end = |stream: &[u8]| decode(Extensions::Deflate, stream).1;
    assert_eq!(
        end(&masked(0xc2, [0; 4], b"\xff\xff\xff\xff")),
        Err(Violation::Deflate)
    );
    assert_eq!(end(&compressed(0xc1, b"\xff")), Err(Violation::Utf8));
    // Later fragments and control frames have no such bit, nor do the others mean anything.
    for stream in [
        [masked(0x42, [0; 4], b"\x00"), masked(0xc0, [0; 4], b"")].concat(),
        masked(0xc9, [0; 4], b""),
        masked(0xa2, [0; 4], b""),
    ] {
        assert_eq!(end(&stream), Err(Violation::ReservedBits));
    }
}

#[test]
fn a_message_of_nothing_but_last_blocks_is_refused() {
    // Each is whole in itself, and would have the inflater begin anew for two bytes.
    assert_eq!(
        inflate(&b"\x03\x00".repeat(100_000), 1_000_000),
        Err(Violation::Deflate)
    );
    // So many as somebody has who compresses in pieces are sound.
    let pieces = b"\xf3\x48\xcd\xc9\xc9\x07\x00".repeat(16);
    assert_eq!(inflate(&pieces, 1000), Ok(b"Hello".repeat(16)));
}

#[test]
fn a_small_message_does_not_become_a_big_one() {
    let bomb = payload_of(&vec![0; 10_000_000]);
    assert!(bomb.len() < 50_000, "{}", bomb.len());
    assert_eq!(inflate(&bomb, 1_000_000), Err(Violation::TooBig));
    assert_eq!(inflate(&bomb, 9_999_999), Err(Violation::TooBig));
    assert_eq!(
        inflate(&bomb, 10_000_000).map(|out| out.len()),
        Ok(10_000_000)
    );
    assert_eq!(
        decode(Extensions::Deflate, &compressed(0xc2, &[0; 1001])).1,
        Err(Violation::TooBig)
    );
    assert_eq!(
        decode(Extensions::Deflate, &compressed(0xc2, &[0; 1000])).0,
        [(0x82, vec![0; 1000])]
    );
}

/// What a client would see: the frames of a deflater's output, masked and decoded again.
fn received(out: &[u8]) -> (Seen, bool) {
    let (mut bytes, mut stream, mut was_compressed) = (out, Vec::new(), false);
    while !bytes.is_empty() {
        let mut header = frame::HeaderBuffer::default();
        let (used, found) = header.take(bytes, |_, _| Ok::<(), ()>(())).unwrap();
        let found = found.unwrap();
        was_compressed |= found.first & frame::RSV1 != 0;
        let end = used + usize::try_from(found.size).unwrap();
        stream.extend(masked(found.first, [4, 3, 2, 1], &bytes[used..end]));
        bytes = &bytes[end..];
    }
    let limits = Limits::default();
    let (frames, end) = run(limits, Extensions::Deflate, &[&stream]);
    assert_eq!(end, Ok(()));
    let frames = frames.into_iter().map(|frame| (frame.flags, frame.payload));
    (frames.collect(), was_compressed)
}

#[test]
fn what_a_handler_writes_is_compressed_frame_by_frame() {
    let text = "all work and no play ".repeat(20);
    let mut stream = Vec::new();
    encode(Opcode::Text, text.as_bytes(), &mut stream);
    encode(Opcode::Text, b"short", &mut stream);
    frame::encode_header(0x02, 100, &mut stream);
    stream.extend_from_slice(&[7; 100]);
    encode(Opcode::Ping, b"between", &mut stream);
    frame::encode_header(0x80, 0, &mut stream);
    // A message that is empty but for its frames.
    stream.extend_from_slice(b"\x01\x00\x00\x00\x80\x00");
    encode_close(1000, "bye", &mut stream);
    let expect = [
        (0x81, text.clone().into_bytes()),
        (0x81, b"short".to_vec()),
        (0x89, b"between".to_vec()),
        (0x82, vec![7; 100]),
        (0x81, vec![]),
        (0x88, b"\x03\xe8bye".to_vec()),
    ];
    every_split(&stream, |pieces| {
        let (mut deflater, mut out) = (Deflater::default(), Vec::new());
        for piece in pieces {
            deflater.deflate(piece, &mut out);
        }
        assert!(out.len() < text.len(), "it is smaller");
        assert_eq!(received(&out), (expect.to_vec(), true));
    });
}

/// Numbers of a linear generator, which no compressor makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut seed = 1_u32;
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

#[test]
fn long_messages_go_out_in_fragments() {
    let noise = noise(1_000_000);
    let mut stream = Vec::new();
    encode(Opcode::Binary, &noise, &mut stream);
    let (mut deflater, mut out) = (Deflater::default(), Vec::new());
    deflater.deflate(&stream[..500_000], &mut out);
    assert!(out.len() > 300_000, "it does not wait for the whole");
    deflater.deflate(&stream[500_000..], &mut out);
    assert!(frames_of(&out).iter().all(|frame| frame.len() < 400_000));
    assert_eq!(received(&out), (vec![(0x82, noise)], true));
}

#[test]
fn nothing_stays_in_the_compressor_at_the_end_of_a_message() {
    // It writes a block after each 31 KiB of noise; where that falls into the last few bytes, their flush meets a full buffer.
    let noise = noise(100_000);
    for blocks in [31 * 1024, 62 * 1024, 93 * 1024] {
        for length in (blocks - 10..blocks + 300).step_by(5) {
            let noise = &noise[..length];
            let out = inflate(&payload_of(noise), length);
            assert!(out.is_ok_and(|out| out == noise), "{length} bytes");
        }
    }
}

#[test]
fn what_a_handler_has_compressed_itself_passes() {
    let mut stream = masked(0xc2, [1, 2, 3, 4], &[1; 100]);
    frame::encode_header(0xc1, 300, &mut stream);
    stream.extend_from_slice(&[9; 300]);
    let mut out = Vec::new();
    Deflater::default().deflate(&stream, &mut out);
    assert_eq!(out, stream);
}

#[test]
fn codes_for_programs_own_use_are_not_for_the_wire() {
    for code in (1000..=1003)
        .chain(1007..=1014)
        .chain([3000, 3999, 4000, 4999])
    {
        assert!(is_close_code(code), "{code}");
    }
    for code in [
        0,
        1,
        999,
        1004,
        1005,
        1006,
        1015,
        1016,
        1100,
        2000,
        2999,
        5000,
        u16::MAX,
    ] {
        assert!(!is_close_code(code), "{code}");
    }
}

#[test]
fn violations_close_with_a_code_and_reason_that_may_be_sent() {
    for violation in [
        Violation::Unmasked,
        Violation::Utf8,
        Violation::Deflate,
        Violation::TooBig,
        Violation::TooManyFragments,
    ] {
        assert!(is_close_code(violation.close_code()), "{violation}");
        assert!(violation.to_string().len() <= frame::REASON_BYTES_MAX);
    }
}

/// A frame of a client that is sometimes wrong: its first byte, its mask, its payload.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let first = prop::sample::select(vec![
        0x81_u8, 0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x80, 0x89, 0x8a, 0xc1, 0x41, 0xc2, 0x88, 0x83,
    ]);
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        "\\PC{0,40}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 120..140),
        "\\PC{0,40}".prop_map(|text| payload_of(text.as_bytes())),
    ];
    (first, any::<[u8; 4]>(), payload)
        .prop_map(|(first, mask, payload)| masked(first, mask, &payload))
}

fn extensions() -> impl Strategy<Value = Extensions> {
    prop::sample::select(vec![
        Extensions::None,
        Extensions::Deflate,
        Extensions::Foreign,
    ])
}

proptest! {
    #[test]
    fn cuts_do_not_matter(
        stream in prop::collection::vec(frames(), 0..8),
        extensions in extensions(),
        cut in 1_usize..50,
    ) {
        let stream = stream.concat();
        let whole = run(SMALL, extensions, &[&stream]);
        for cut in [1, cut] {
            let pieces: Vec<_> = stream.chunks(cut).collect();
            prop_assert_eq!(&run(SMALL, extensions, &pieces), &whole);
        }
    }

    #[test]
    fn any_bytes_are_safe(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        extensions in extensions(),
        cut in 1_usize..50,
    ) {
        let whole = run(SMALL, extensions, &[&bytes]);
        let pieces: Vec<_> = bytes.chunks(cut).collect();
        prop_assert_eq!(run(SMALL, extensions, &pieces), whole);
        let (mut deflater, mut out, mut follower) = (Deflater::default(), Vec::new(), Follower::default());
        for piece in &pieces {
            deflater.deflate(piece, &mut out);
            follower.follow(piece);
        }
        prop_assert!(inflate(&bytes, 100_000).is_ok_and(|out| out.len() <= 100_000) || inflate(&bytes, 100_000).is_err());
    }

    #[test]
    fn any_message_survives_the_masks_of_a_client(
        payload in prop::collection::vec(any::<u8>(), 0..900),
        mask in any::<[u8; 4]>(),
    ) {
        let (frames, end) = run(SMALL, Extensions::None, &[&masked(0x82, mask, &payload)]);
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(&frames[0].payload, &payload);
    }

    #[test]
    fn what_is_compressed_comes_back(
        messages in prop::collection::vec(
            (any::<bool>(), prop::collection::vec(prop::sample::select(b"abcdefgh\xff\0".to_vec()), 0..2000)), 0..5),
        cut in 1_usize..500,
    ) {
        let mut stream = Vec::new();
        for (split, message) in &messages {
            if *split {
                let (left, right) = message.split_at(message.len() / 2);
                frame::encode_header(0x02, left.len(), &mut stream);
                stream.extend_from_slice(left);
                frame::encode_header(0x80, right.len(), &mut stream);
                stream.extend_from_slice(right);
            } else {
                encode(Opcode::Binary, message, &mut stream);
            }
        }
        let (mut deflater, mut out) = (Deflater::default(), Vec::new());
        for piece in stream.chunks(cut) {
            deflater.deflate(piece, &mut out);
        }
        let expect: Vec<_> = messages.iter().map(|(_, message)| (0x82, message.clone())).collect();
        let any_long = messages.iter().any(|(split, message)| *split || message.len() as u64 >= COMPRESS_FROM);
        prop_assert_eq!(received(&out), (expect, any_long));
    }
}
