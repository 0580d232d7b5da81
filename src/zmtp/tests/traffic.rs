//! What passes once a handshake is done: frames, commands, subscriptions, signs of life.

use super::*;

#[test]
fn frames_of_every_size_come_back() {
    for framing in [Framing::New, Framing::Old] {
        for size in [0, 1, 2, 252, 253, 254, 255, 256, 70_000] {
            let body = vec![b'x'; size];
            let header = framing.encode(size, false);
            let first = match framing {
                Framing::New => [
                    &handshake(3, 0, SocketType::Pub)[..],
                    header.as_ref(),
                    &body,
                ]
                .concat(),
                Framing::Old => [b"\x01\0", header.as_ref(), &body].concat(),
            };
            let mut wire = Wire::new(SocketType::Sub);
            wire.feed(&first);
            assert!(wire.messages() == [[body]], "{framing:?} {size}");
        }
    }
    assert_eq!(Framing::Old.encode(253, true).as_ref(), b"\xfe\x01");
    assert_eq!(
        Framing::Old.encode(254, false).as_ref(),
        b"\xff\0\0\0\0\0\0\0\xff\0"
    );
    assert_eq!(Framing::New.encode(255, true).as_ref(), b"\x01\xff");
    assert_eq!(
        Framing::New.encode(256, true).as_ref(),
        b"\x03\0\0\0\0\0\0\x01\0"
    );
}

#[test]
fn reserved_bits_and_needlessly_long_frames_are_taken() {
    let mut wire = Wire::ready(SocketType::Sub);
    wire.feed(b"\xf8\x05hello")
        .feed(b"\x02\0\0\0\0\0\0\0\x02hi");
    assert_eq!(wire.messages(), [[b"hello".to_vec()], [b"hi".to_vec()]]);
}

#[test]
fn commands_may_stand_inside_a_message() {
    let bytes = [
        frame(1, b"one"),
        command(b"PING", b"\0\0ctx"),
        frame(5, b"\x04PING\0\0more"),
        frame(1, b""),
        frame(4, b""),
        frame(0, b"three"),
    ]
    .concat();
    every_split(&bytes, |pieces| {
        let mut wire = Wire::ready(SocketType::Sub);
        for piece in pieces {
            wire.feed(piece);
        }
        assert_eq!(
            wire.messages(),
            [[b"one".to_vec(), vec![], b"three".to_vec()]]
        );
        assert_eq!(
            wire.sent,
            [command(b"PONG", b"ctx"), command(b"PONG", b"more")].concat()
        );
    });
}

#[test]
fn pings_are_answered_with_at_most_16_bytes() {
    let mut wire = Wire::ready(SocketType::Push);
    wire.feed(&command(b"PING", b"\0"));
    wire.feed(&command(b"ping", b"\0\0"));
    assert_eq!(wire.sent, b"", "short and unknown ones are ignored");
    wire.feed(&command(b"PING", b"\0\00123456789abcdef"));
    wire.feed(&command(b"PING", b"\0\00123456789abcdefg"));
    wire.feed(&command(b"PING", b"\0\0"));
    let pong = command(b"PONG", b"0123456789abcdef");
    assert_eq!(
        wire.sent,
        [pong.clone(), pong, command(b"PONG", b"")].concat()
    );
    wire.sent.clear();
    wire.feed(&command(b"PING", b"\0\0x").repeat(100));
    assert_eq!(wire.sent, command(b"PONG", b"x").repeat(100));
}

#[test]
fn odd_commands_in_traffic_are_ignored() {
    let mut wire = Wire::ready(SocketType::Sub);
    for bytes in [
        command(b"WHAT", b"ever"),
        frame(4, b""),
        frame(4, b"\xffshort"),
        command(b"READY", b"junk"),
        command(b"ERROR", b"\x02no"),
        frame(4, &[b'x'; 64 << 10]),
    ] {
        wire.feed(&bytes);
    }
    wire.feed(b"\0\x02hi");
    assert_eq!(
        (wire.messages(), wire.sent),
        (vec![vec![b"hi".to_vec()]], vec![])
    );
    let mut long = Wire::ready(SocketType::Sub);
    long.feed(&frame(4, &[b'x'; (64 << 10) + 1])[..9]);
    assert!(matches!(
        long.failed,
        Some(Violation::CommandTooLong { .. })
    ));
}

#[test]
fn messages_have_limits() {
    let options = || Options {
        message_bytes_max: 1000,
        message_frames_max: 4,
        ..Options::default()
    };
    let too_long = |wire: &Wire| matches!(wire.failed, Some(Violation::MessageTooLong { .. }));

    let mut fits = Wire::ready_with(SocketType::Sub, options());
    fits.feed(&frame(0, &[0; 1000]))
        .feed(&frame(1, &[0; 500]))
        .feed(&frame(0, &[0; 500]));
    assert_eq!((fits.failed.as_ref(), fits.messages().len()), (None, 2));

    let mut one = Wire::ready_with(SocketType::Sub, options());
    one.feed(&frame(0, &[0; 1001])[..9]);
    assert!(
        too_long(&one),
        "seen in the header, before a byte of the body"
    );

    let mut sum = Wire::ready_with(SocketType::Sub, options());
    sum.feed(&frame(1, &[0; 999])).feed(&frame(0, &[0; 2]));
    assert!(too_long(&sum));

    let mut endless = Wire::ready_with(SocketType::Sub, options());
    endless.feed(&frame(1, b"").repeat(5));
    assert_eq!(endless.failed, Some(Violation::TooManyFrames { max: 4 }));

    let mut huge = Wire::ready(SocketType::Sub);
    huge.feed(b"\x02\x80\0\0\0\0\0\0\0");
    assert_eq!(
        huge.failed,
        Some(Violation::Frame(FrameError::LengthNegative))
    );
    let mut large = Wire::ready(SocketType::Sub);
    large.feed(b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff");
    assert!(too_long(&large));
}

#[test]
fn the_direction_nobody_reads_is_dropped_and_bounded() {
    let mut wire = Wire::ready(SocketType::Push);
    for _ in 0..1023 {
        wire.feed(&frame(0, &[0; 1000]));
    }
    assert_eq!((wire.failed.as_ref(), wire.messages().len()), (None, 0));
    wire.feed(&frame(0, &[0; 40_000])[..9]);
    assert_eq!(wire.failed, Some(Violation::Unasked));
}

#[test]
fn a_subscription_takes_the_form_of_the_version() {
    let options = || Options {
        topics: vec![b"a ".to_vec(), Vec::new()],
        ..Options::default()
    };
    let after_ready = |wire: &Wire| wire.sent[64 + 27..].to_vec();

    let mut new = Wire::with(SocketType::Sub, options());
    new.feed(&handshake(3, 1, SocketType::Pub));
    let ping = command(b"PING", b"\0\0\0\0\0\0\0\0\0\x01");
    assert_eq!(
        after_ready(&new),
        [
            command(b"SUBSCRIBE", b"a "),
            command(b"SUBSCRIBE", b""),
            ping
        ]
        .concat()
    );

    let mut old = Wire::with(SocketType::Sub, options());
    old.feed(&handshake(3, 0, SocketType::Pub));
    assert_eq!(after_ready(&old), b"\0\x03\x01a \0\x01\x01");

    let mut oldest = Wire::with(SocketType::Sub, options());
    oldest.feed(b"\x01\0");
    assert_eq!(oldest.sent, SIGNATURE);
}

#[test]
fn a_subscription_is_told_when_it_is_in_effect() {
    let mut new = Wire::ready(SocketType::Sub);
    new.at(Duration::from_millis(500))
        .feed(&command(b"PONG", b"whatever"));
    new.at(Duration::from_millis(501));
    assert_eq!(new.take_events(), []);
    assert_eq!(
        new.at(Duration::from_millis(502)).take_events(),
        [Event::Subscribed]
    );

    let mut mute = Wire::ready(SocketType::Sub);
    assert_eq!(mute.at(Duration::from_millis(999)).take_events(), []);
    assert_eq!(mute.at(seconds(1)).take_events(), [Event::Subscribed]);

    let mut old = Wire::new(SocketType::Sub);
    old.feed(&handshake(3, 0, SocketType::Pub)).take_events();
    assert_eq!(old.at(Duration::from_millis(9)).take_events(), []);
    assert_eq!(
        old.at(Duration::from_millis(10)).take_events(),
        [Event::Subscribed]
    );
    assert_eq!(old.session.poll_timeout(), None);
}

#[test]
fn what_a_subscriber_wants_is_told_in_the_form_of_its_version() {
    let wants = |topic: &'static [u8], wanted| Event::Wants {
        topic: Bytes::from_static(topic),
        wanted,
    };
    let commands = b"\x04\x0b\x09SUBSCRIBEa\x04\x08\x06CANCELa\x04\x0a\x09SUBSCRIBE";
    let expected = [wants(b"a", true), wants(b"a", false), wants(b"", true)];
    // Below 3.1 they are messages; whatever else a message says is for nobody.
    let messages = b"\0\x02\x01a\0\x03xyz\0\0\0\x02\0a\0\x01\x01";
    for bytes in [&commands[..], messages] {
        for cut in 0..bytes.len() {
            let mut wire = Wire::ready(SocketType::Pub);
            wire.feed(&bytes[..cut]).feed(&bytes[cut..]);
            assert_eq!(wire.take_events(), expected, "cut at {cut}");
            assert_eq!(wire.failed, None);
        }
    }
    // To others they are nothing.
    let mut router = Wire::ready(SocketType::Router);
    assert_eq!(router.feed(commands).take_events(), []);
}

#[test]
fn one_ping_goes_out_after_15_silent_seconds() {
    let mut wire = Wire::ready(SocketType::Push);
    wire.at(seconds(10)).feed(b"\0\0");
    wire.at(Duration::from_millis(24_999));
    assert_eq!(wire.sent, b"");
    wire.at(seconds(25));
    assert_eq!(wire.sent, command(b"PING", b"\0\0\0\0\0\0\0\0\0\x01"));
    wire.at(seconds(69));
    assert_eq!((wire.sent.len(), wire.take_events()), (17, vec![]));
    assert_eq!(wire.at(seconds(70)).take_events(), [Event::Silent]);
    assert_eq!(wire.at(seconds(500)).take_events(), [], "told once");
    assert!(wire.session.is_silent());
    wire.feed(&command(b"PONG", b""));
    assert!(!wire.session.is_silent());
    wire.sent.clear();
    wire.at(seconds(515));
    assert_eq!(wire.sent, command(b"PING", b"\0\0\0\0\0\0\0\0\0\x02"));
}

#[test]
fn only_who_knows_ping_is_pinged() {
    let mut wire = Wire::new(SocketType::Push);
    wire.feed(&handshake(3, 0, SocketType::Pull)).take_events();
    wire.sent.clear();
    wire.at(seconds(100));
    assert_eq!(wire.sent, b"");
    wire.feed(&command(b"PING", b"\0\0"));
    wire.sent.clear();
    wire.at(seconds(115));
    assert!(wire.sent.starts_with(b"\x04\x0f\x04PING\0\0"));

    let mut req = Wire::new(SocketType::Router);
    req.feed(&handshake(3, 0, SocketType::Req))
        .feed(&command(b"PING", b"\0\0"));
    req.sent.clear();
    req.at(seconds(100));
    assert_eq!(req.sent, b"", "a REQ of libzmq 4.2 breaks on a PING");
}

#[test]
fn a_peers_own_time_to_live_is_honoured() {
    let mut wire = Wire::ready(SocketType::Sub);
    wire.feed(&command(b"PING", b"\0\x05"));
    // A part of a frame is a sign of life too.
    wire.at(Duration::from_millis(400)).feed(b"\0");
    wire.at(Duration::from_millis(899));
    assert_eq!(wire.failed, None);
    wire.at(Duration::from_millis(900));
    assert_eq!(wire.failed, Some(Violation::TimeToLive));

    let mut withdrawn = Wire::ready(SocketType::Sub);
    withdrawn
        .feed(&command(b"PING", b"\0\x05"))
        .feed(&command(b"PING", b"\0\0"))
        .at(seconds(10));
    assert_eq!(withdrawn.failed, None);
}

#[test]
fn frames_are_slices_of_what_was_received() {
    let mut wire = Wire::ready(SocketType::Sub);
    let mut input = BytesMut::from(&b"\0\x05hello\0\x05world"[..]);
    let start = input.as_ptr();
    let mut take = || match wire.session.handle_bytes(&mut input, wire.now) {
        Ok(Some(Event::Message(message))) => message.into_single().unwrap(),
        other => panic!("{other:?}"),
    };
    let (one, other) = (take(), take());
    assert_eq!((&one[..], &other[..]), (&b"hello"[..], &b"world"[..]));
    assert_eq!(one.as_ptr(), start.wrapping_add(2));
    assert_eq!(other.as_ptr(), start.wrapping_add(9));
}

proptest::proptest! {
    #[test]
    fn hostile_bytes_never_panic_and_cuts_never_matter(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), cut in 0..200_usize) {
        for prefix in [Vec::new(), SIGNATURE.to_vec(), greeting(3, 1, b"NULL"), handshake(3, 1, SocketType::Pub)] {
            let all = [prefix, bytes.clone()].concat();
            let (one, other) = all.split_at(cut.min(all.len()));
            let (mut cut, mut single) = (Wire::new(SocketType::Sub), Wire::new(SocketType::Sub));
            cut.feed(one).feed(other);
            for byte in &all {
                single.feed(&[*byte]);
            }
            proptest::prop_assert_eq!(&cut.events, &single.events);
            cut.at(seconds(100));
        }
    }
}
