//! Tests of the codec: every timer with a given `now`, every input cut everywhere.

#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::large_stack_arrays,
    clippy::octal_escapes,
    reason = "tests know their bytes"
)]

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::*;

const SIGNATURE: &[u8] = b"\xff\0\0\0\0\0\0\0\x01\x7f";

/// A connection as the codec sees it: bytes in, events and bytes out.
struct Wire {
    session: Session,
    input: BytesMut,
    start: Instant,
    now: Instant,
    events: Vec<Event>,
    sent: Vec<u8>,
    failed: Option<Violation>,
}

impl Wire {
    fn new(role: SocketType) -> Self {
        Self::with(role, Options::default())
    }

    fn with(role: SocketType, options: Options) -> Self {
        let now = Instant::now();
        let session = Session::new(role, Rc::new(options), now);
        let mut wire = Self {
            session,
            input: BytesMut::new(),
            start: now,
            now,
            events: vec![],
            sent: vec![],
            failed: None,
        };
        wire.collect();
        wire
    }

    /// One whose handshake with a 3.1 peer is done, and forgotten.
    fn ready(role: SocketType) -> Self {
        Self::ready_with(role, Options::default())
    }

    fn ready_with(role: SocketType, options: Options) -> Self {
        let mut wire = Self::with(role, options);
        wire.feed(&handshake(3, 1, partner(role)));
        assert_eq!(wire.take_events(), [Event::Ready]);
        wire.sent.clear();
        wire
    }

    fn feed(&mut self, bytes: &[u8]) -> &mut Self {
        self.input.extend_from_slice(bytes);
        while self.failed.is_none() {
            match self.session.handle_bytes(&mut self.input, self.now) {
                Ok(Some(event)) => self.events.push(event),
                Ok(None) => break,
                Err(violation) => self.failed = Some(violation),
            }
        }
        self.collect();
        self
    }

    /// Lets time pass up to so much after the start, with every deadline on the way.
    fn at(&mut self, after: Duration) -> &mut Self {
        let until = self.start + after;
        while let Some(due) = self.session.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            loop {
                match self.session.handle_timeout(self.now) {
                    Ok(Some(event)) => self.events.push(event),
                    Ok(None) => break,
                    Err(violation) => {
                        self.failed = Some(violation);
                        break;
                    }
                }
            }
            self.collect();
        }
        self.now = until;
        self
    }

    fn collect(&mut self) {
        self.sent.append(self.session.output());
    }

    fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn messages(&self) -> Vec<Vec<Vec<u8>>> {
        let frames = |message: &Message| message.frames().map(|frame| frame.to_vec()).collect();
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Message(message) => Some(frames(message)),
                _ => None,
            })
            .collect()
    }
}

fn partner(role: SocketType) -> SocketType {
    match role {
        SocketType::Push => SocketType::Pull,
        SocketType::Sub => SocketType::Pub,
        SocketType::Router => SocketType::Dealer,
        SocketType::Pub => SocketType::Sub,
        other => panic!("no partner for {other:?} here"),
    }
}

fn greeting(major: u8, minor: u8, mechanism: &[u8]) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    out.extend_from_slice(&[major, minor]);
    out.extend_from_slice(mechanism);
    out.resize(64, 0);
    out
}

fn property(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::try_from(name.len()).unwrap()];
    out.extend_from_slice(name);
    out.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
    out.extend_from_slice(value);
    out
}

fn command(name: &[u8], data: &[u8]) -> Vec<u8> {
    let mut body = vec![u8::try_from(name.len()).unwrap()];
    body.extend_from_slice(name);
    body.extend_from_slice(data);
    frame(4, &body)
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = match u8::try_from(body.len()) {
        Ok(short) => vec![flags, short],
        Err(_) => [vec![flags | 2], (body.len() as u64).to_be_bytes().to_vec()].concat(),
    };
    out.extend_from_slice(body);
    out
}

fn handshake(major: u8, minor: u8, socket_type: SocketType) -> Vec<u8> {
    let ready = command(
        b"READY",
        &property(b"Socket-Type", socket_type.name().as_bytes()),
    );
    [greeting(major, minor, b"NULL"), ready].concat()
}

/// Gives the same bytes whole, cut at every place, and one by one.
fn every_split(bytes: &[u8], mut what: impl FnMut(&[&[u8]])) {
    what(&[bytes]);
    for cut in 1..bytes.len() {
        let (one, other) = bytes.split_at(cut);
        what(&[one, other]);
    }
    what(&bytes.chunks(1).collect::<Vec<_>>());
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn the_greeting_goes_out_piece_by_piece() {
    let mut wire = Wire::new(SocketType::Push);
    assert_eq!(wire.sent, SIGNATURE);
    let peer = greeting(3, 1, b"NULL");
    wire.feed(&peer[..9]);
    assert_eq!(wire.sent.len(), 10);
    wire.feed(&peer[9..10]);
    assert_eq!(
        wire.sent.len(),
        11,
        "byte 10 as soon as it is known not to be 1.0, without waiting for theirs"
    );
    assert_eq!(wire.sent.last(), Some(&3));
    wire.feed(&peer[10..11]);
    assert_eq!(wire.sent[..64], greeting(3, 1, b"NULL"));
    assert_eq!(
        wire.sent[64..],
        *b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH"
    );
}

#[test]
fn a_handshake_may_come_in_any_pieces() {
    let bytes = [
        handshake(3, 1, SocketType::Pub),
        frame(0, b"hello"),
        frame(1, b"a"),
        frame(0, b"b"),
    ]
    .concat();
    let mut answers = Vec::new();
    every_split(&bytes, |pieces| {
        let mut wire = Wire::new(SocketType::Sub);
        for piece in pieces {
            wire.feed(piece);
        }
        assert_eq!(wire.failed, None);
        assert_eq!(wire.events.first(), Some(&Event::Ready));
        assert_eq!(
            wire.messages(),
            [vec![b"hello".to_vec()], vec![b"a".to_vec(), b"b".to_vec()]]
        );
        assert!(wire.input.is_empty());
        answers.push(wire.sent);
    });
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn odd_greetings_are_accepted() {
    let plain = handshake(3, 1, SocketType::Pull);
    let with = |change: fn(&mut Vec<u8>)| {
        let mut bytes = plain.clone();
        change(&mut bytes);
        bytes
    };
    for bytes in [
        with(|bytes| bytes[1..9].fill(0xee)),
        with(|bytes| bytes[1..9].fill(0)),
        with(|bytes| bytes[10] = 4),
        with(|bytes| bytes[11] = 9),
        with(|bytes| bytes[32] = 1),
        with(|bytes| bytes[33..64].fill(0xaa)),
    ] {
        let mut wire = Wire::new(SocketType::Push);
        assert_eq!(wire.feed(&bytes).take_events(), [Event::Ready]);
    }
}

#[test]
fn other_mechanisms_see_our_greeting_and_are_refused() {
    for mechanism in [&b"CURVE"[..], b"PLAIN", b"null", b"NULLX", b""] {
        let mut wire = Wire::new(SocketType::Push);
        wire.feed(&greeting(3, 1, mechanism));
        assert!(
            matches!(wire.failed, Some(Violation::Mechanism(_))),
            "{mechanism:?}"
        );
        assert!(wire.sent.len() > 64);
    }
}

#[test]
fn version_zero_never_was() {
    let mut wire = Wire::new(SocketType::Push);
    wire.feed(&greeting(0, 0, b"NULL"));
    assert_eq!(wire.failed, Some(Violation::VersionZero));
}

#[test]
fn other_protocols_are_no_peers() {
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"[..],
        b"POST /",
        b"PUT / HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a-host-whose-name-is-so-long-that-an-identity-frame-would-be-full.example.org\r\n\r\n",
        b"TRACE / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00",
        b"\xff\x12\x34\x56\x78\x9a\xbc\xde\xf0\x00",
        b"\xff\0\0\0\0\0\0\x02\0\0",
    ] {
        every_split(bytes, |pieces| {
            let mut wire = Wire::new(SocketType::Push);
            for piece in pieces {
                wire.feed(piece);
            }
            assert!(wire.failed.is_some(), "{bytes:?}");
            assert_eq!(wire.events, []);
        });
    }
}

#[test]
fn a_1_0_pull_says_nothing_after_its_identity() {
    let mut wire = Wire::new(SocketType::Push);
    assert_eq!(wire.feed(b"\x05\x7ework").take_events(), [Event::Ready]);
    assert_eq!(wire.session.remote().identity, "work");
    assert_eq!(wire.session.remote().version, Version::V1_0);
    assert_eq!(wire.session.framing(), Framing::Old);
    assert_eq!(
        wire.sent, SIGNATURE,
        "the signature is the whole of our identity frame"
    );
    wire.feed(b"\x01");
    assert_eq!(wire.failed, Some(Violation::Unasked));

    let mut at_once = Wire::new(SocketType::Push);
    at_once.feed(b"\x05\0work\x02\0x");
    assert_eq!(
        (at_once.failed, at_once.events),
        (Some(Violation::NotZmtp), vec![])
    );
}

#[test]
fn a_1_0_identity_may_be_long() {
    for length in [0, 1, 253, 254, 255] {
        let identity = vec![b'i'; length];
        let bytes = [Framing::Old.encode(length, false).as_ref(), &identity].concat();
        let mut wire = Wire::new(SocketType::Sub);
        wire.feed(&bytes);
        assert_eq!(wire.failed, None, "{length}");
        assert_eq!(wire.session.remote().identity, identity);
    }
    let mut wire = Wire::new(SocketType::Sub);
    wire.feed(Framing::Old.encode(256, false).as_ref());
    assert_eq!(wire.failed, Some(Violation::IdentityTooLong));
}

#[test]
fn a_2_0_peer_tells_its_type_and_identity() {
    let mut wire = Wire::new(SocketType::Sub);
    wire.feed(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01");
    assert_eq!(wire.sent[10..], [3, 2, 0, 0]);
    wire.feed(b"\x09\x00\x03abc\x00\x02hi");
    assert_eq!(wire.events.first(), Some(&Event::Ready));
    assert_eq!(wire.session.remote().socket_type, Some(SocketType::Xpub));
    assert_eq!(wire.session.remote().identity, "abc");
    assert_eq!(
        wire.sent[14..],
        *b"\x00\x01\x01",
        "subscribed by a message, and not PINGed"
    );
    assert_eq!(wire.messages(), [[b"hi"]]);

    let mut wrong = Wire::new(SocketType::Push);
    wrong.feed(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x08");
    assert_eq!(wrong.failed, Some(Violation::SocketTypeNumber(8)));
}

#[test]
fn old_versions_can_be_turned_off() {
    for bytes in [&b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x07\0\0"[..], b"\x01\0"] {
        let mut wire = Wire::with(
            SocketType::Push,
            Options {
                old_versions: false,
                ..Options::default()
            },
        );
        wire.feed(bytes);
        assert!(matches!(wire.failed, Some(Violation::VersionRefused(_))));
    }
}

#[track_caller]
fn check_ready(data: &[u8], expected: Result<(), ReadyError>) {
    for bytes in [
        command(b"READY", data),
        [
            &[6][..],
            &(data.len() as u64 + 6).to_be_bytes(),
            b"\x05READY",
            data,
        ]
        .concat(),
    ] {
        let mut wire = Wire::new(SocketType::Push);
        wire.feed(&greeting(3, 1, b"NULL")).feed(&bytes);
        match &expected {
            Ok(()) => assert_eq!((wire.failed, wire.events), (None, vec![Event::Ready])),
            Err(error) => assert_eq!(wire.failed, Some(Violation::Ready(*error))),
        }
    }
}

#[test]
fn metadata_of_ready_is_checked() {
    let good = property(b"Socket-Type", b"PULL");
    let and = |more: Vec<u8>| [good.clone(), more].concat();
    check_ready(&good, Ok(()));
    check_ready(&property(b"socket-type", b"PULL"), Ok(()));
    check_ready(&property(b"sOCKET-tYPE", b"PULL"), Ok(()));
    check_ready(&and(good.clone()), Ok(()));
    check_ready(&and(property(b"X-Name", b"handler-1")), Ok(()));
    check_ready(&and(property(b"Identity", b"")), Ok(()));
    check_ready(&and(property(b"Identity", &[b'i'; 255])), Ok(()));
    check_ready(b"", Err(ReadyError::SocketTypeMissing));
    check_ready(
        &property(b"Socket-Type", b"PUB"),
        Err(ReadyError::SocketType),
    );
    check_ready(
        &property(b"Socket-Type", b"pull"),
        Err(ReadyError::SocketType),
    );
    check_ready(
        &and(property(b"Socket-Type", b"PUB")),
        Err(ReadyError::SocketType),
    );
    check_ready(
        &and(property(b"Identity", &[b'i'; 256])),
        Err(ReadyError::IdentityTooLong),
    );
    check_ready(&and(property(b"", b"x")), Err(ReadyError::NameEmpty));
    check_ready(
        &and(b"\x01X\xff\xff\xff\xff".to_vec()),
        Err(ReadyError::Malformed),
    );
    check_ready(&and(vec![5]), Err(ReadyError::Malformed));
}

#[test]
fn a_missing_socket_type_may_be_let_pass() {
    let mut wire = Wire::with(
        SocketType::Push,
        Options {
            socket_type_required: false,
            ..Options::default()
        },
    );
    wire.feed(&greeting(3, 1, b"NULL"))
        .feed(&command(b"READY", b""));
    assert_eq!(wire.events, [Event::Ready]);
}

#[test]
fn metadata_is_kept() {
    let mut wire = Wire::new(SocketType::Push);
    let data = [
        property(b"Socket-Type", b"PULL"),
        property(b"X-Name", b"handler-1"),
    ]
    .concat();
    wire.feed(&greeting(3, 0, b"NULL"))
        .feed(&command(b"READY", &data));
    let name = Property {
        name: Bytes::from_static(b"X-Name"),
        value: Bytes::from_static(b"handler-1"),
    };
    assert_eq!(wire.session.remote().properties, [name]);
}

#[test]
fn nothing_but_ready_ends_a_handshake() {
    let ready = command(b"READY", &property(b"Socket-Type", b"PULL"));
    let as_message = [&[0][..], &ready[1..]].concat();
    for bytes in [
        &as_message[..],
        &frame(0, b"hello"),
        &command(b"PING", b"\0\0"),
        &command(b"ready", b""),
    ] {
        let mut wire = Wire::new(SocketType::Push);
        wire.feed(&greeting(3, 1, b"NULL")).feed(bytes);
        assert_eq!(wire.failed, Some(Violation::NotReady), "{bytes:?}");
    }
    let mut refused = Wire::new(SocketType::Push);
    refused
        .feed(&greeting(3, 1, b"NULL"))
        .feed(&command(b"ERROR", b"\x02no"));
    assert_eq!(refused.failed, Some(Violation::Refused("no".into())));
    let mut long = Wire::new(SocketType::Push);
    long.feed(&greeting(3, 1, b"NULL"))
        .feed(&frame(4, &[0; 9 << 10])[..20]);
    assert!(matches!(
        long.failed,
        Some(Violation::CommandTooLong { .. })
    ));
}

#[test]
fn types_fit_by_the_table() {
    use SocketType::{Dealer, Pub, Pull, Push, Rep, Req, Router, Sub, Xpub};
    for (ours, theirs, fits) in [
        (Push, Pull, true),
        (Push, Pub, false),
        (Sub, Pub, true),
        (Sub, Xpub, true),
        (Sub, Pull, false),
        (Router, Req, true),
        (Router, Dealer, true),
        (Rep, Req, true),
        (Rep, Router, false),
    ] {
        let mut wire = Wire::new(ours);
        wire.feed(&handshake(3, 1, theirs));
        assert_eq!(wire.failed.is_none(), fits, "{ours:?} {theirs:?}");
    }
}

#[test]
fn a_handshake_has_ten_seconds() {
    let whole = handshake(3, 1, SocketType::Pull);
    for length in 0..whole.len() {
        let mut wire = Wire::new(SocketType::Push);
        wire.at(seconds(5))
            .feed(&whole[..length])
            .at(Duration::from_millis(9_999));
        assert_eq!(wire.failed, None);
        wire.at(seconds(10));
        assert_eq!(wire.failed, Some(Violation::HandshakeTimeout), "{length}");
        assert_eq!(wire.session.poll_timeout(), None);
    }
}

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
