//! Tests of the codec: every timer with a given `now`, every input cut everywhere.

#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::large_stack_arrays,
    clippy::octal_escapes,
    reason = "tests know their bytes"
)]

mod traffic;

use std::sync::Arc;
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
        let session = Session::new(role, Arc::new(options), now);
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
