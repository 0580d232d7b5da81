//! Recorded connections of real libraries, replayed into the codec: as they came, byte by byte and all at once. What is
//! delivered and what is answered must be the same each time, and what an independent reader found in the bytes.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use lurcher::zmtp::{Event, Options, Session, SocketType};
use serde_json::Value;

/// What the codec made of a connection.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    ready: bool,
    failed: bool,
    version: String,
    socket_type: Option<&'static str>,
    identity: Vec<u8>,
    messages: Vec<Vec<(usize, String)>>,
    wants: Vec<Vec<(usize, String)>>,
    sent: Vec<u8>,
}

fn replay<'a>(role: SocketType, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    replay_with(role, Vec::new(), pieces)
}

fn replay_with<'a>(
    role: SocketType,
    properties: Vec<(&'static str, &'static str)>,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Outcome {
    let now = Instant::now();
    let options = Options {
        properties: properties
            .into_iter()
            .map(|(name, value)| (name, value.into()))
            .collect(),
        socket_type_required: false,
        ..Options::default()
    };
    let mut session = Session::new(role, Arc::new(options), now);
    let mut input = BytesMut::new();
    let mut outcome = Outcome::default();
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let result = session.handle_bytes(&mut input, now);
            match result {
                Ok(None) => break,
                Ok(Some(Event::Ready)) => outcome.ready = true,
                Ok(Some(Event::Message(message))) => {
                    let frames = message
                        .frames()
                        .map(|frame| (frame.len(), hash(frame)))
                        .collect();
                    outcome.messages.push(frames);
                }
                Ok(Some(Event::Wants { topic, wanted })) => {
                    let frame = [&[u8::from(wanted)], &topic[..]].concat();
                    outcome.wants.push(vec![(frame.len(), hash(&frame))]);
                }
                Ok(Some(event)) => panic!("{event:?} without a timer"),
                Err(_) => {
                    outcome.failed = true;
                    break;
                }
            }
        }
        outcome.sent.append(session.output());
    }
    let remote = session.remote();
    outcome.version = remote.version.to_string();
    outcome.socket_type = remote.socket_type.map(SocketType::name);
    outcome.identity = remote.identity.to_vec();
    outcome
}

/// The property as it stands in READY.
const LURCHER: &[u8] = b"\x09X-Lurcher\0\0\0\x011";

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> = text
        .bytes()
        .take_while(|byte| *byte != b'=')
        .map(|byte| {
            u32::try_from(ALPHABET.iter().position(|digit| *digit == byte).unwrap()).unwrap()
        })
        .collect();
    let mut out = Vec::new();
    for group in digits.chunks(4) {
        let bits = group.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - group.len()));
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    out
}

fn socket_type(name: &str) -> SocketType {
    match name {
        "PUSH" => SocketType::Push,
        "SUB" => SocketType::Sub,
        "ROUTER" => SocketType::Router,
        "REP" => SocketType::Rep,
        "PUB" => SocketType::Pub,
        "PULL" => SocketType::Pull,
        other => panic!("{other}"),
    }
}

const SIGNATURE: &[u8] = b"\xff\0\0\0\0\0\0\0\x01\x7f";

/// What follows our handshake on a SUB before anything else.
fn subscription(role: SocketType, version: &str) -> &'static [u8] {
    match (role, version) {
        (SocketType::Sub, "3.1") => b"\x04\x0a\x09SUBSCRIBE\x04\x0f\x04PING\0\0\0\0\0\0\0\0\0\x01",
        (SocketType::Sub, "3.0" | "2.0") => b"\0\x01\x01",
        _ => b"",
    }
}

fn check(name: &str, connection: &Value) {
    let text = |key: &str| connection[key].as_str().unwrap_or_default();
    let list = |key: &str| connection[key].as_array().unwrap();
    let role = socket_type(text("role"));
    let peer: Vec<Vec<u8>> = list("peer")
        .iter()
        .map(|piece| base64(piece.as_str().unwrap()))
        .collect();
    let whole = peer.concat();

    let outcome = replay(role, peer.iter().map(Vec::as_slice));
    assert_eq!(
        outcome,
        replay(role, whole.chunks(1)),
        "{name}: byte by byte"
    );
    assert_eq!(
        outcome,
        replay(role, std::iter::once(&whole[..])),
        "{name}: all at once"
    );

    // A property of ours changes our READY and nothing else; those below 3.0 have none.
    let property = vec![("X-Lurcher", "1")];
    let mut named = replay_with(role, property, peer.iter().map(Vec::as_slice));
    let more = named.sent.len() - outcome.sent.len();
    assert!(more == 0 || more == LURCHER.len(), "{name}: {more}");
    if let Some(at) = find(&named.sent, LURCHER) {
        named.sent.drain(at..at + LURCHER.len());
        let length = find(&named.sent, b"\x05READY").unwrap() - 1;
        named.sent[length] -= u8::try_from(LURCHER.len()).unwrap();
    }
    assert_eq!(outcome, named, "{name}: with a property");

    assert_eq!(
        outcome.ready,
        connection["ready"].as_bool().unwrap(),
        "{name}"
    );
    if !outcome.ready {
        return;
    }
    assert!(!outcome.failed, "{name}");
    assert_eq!(outcome.version, text("version"), "{name}");
    assert_eq!(outcome.identity, base64(text("identity")), "{name}");
    assert_eq!(outcome.socket_type, connection["type"].as_str(), "{name}");
    let expected: Vec<Vec<(usize, String)>> = list("messages")
        .iter()
        .map(|message| serde_json::from_value(message.clone()).unwrap())
        .collect();
    if role == SocketType::Push {
        assert_eq!((outcome.messages.len(), expected.len()), (0, 0), "{name}");
    } else {
        // What a subscriber wants is a message in the recording where it came as one, and nothing where it came as a command.
        let subscribes = role == SocketType::Pub && !expected.is_empty();
        let heard = if subscribes {
            &outcome.wants
        } else {
            &outcome.messages
        };
        assert_eq!(heard, &expected, "{name}");
    }

    // Where the recorded server did something odd, what any of ours begins with.
    let answer = connection["answer"].as_str().map(base64);
    let Some(answer) = answer else {
        return assert!(outcome.sent.starts_with(SIGNATURE), "{name}");
    };
    let answered = outcome
        .sent
        .strip_prefix(&answer[..])
        .unwrap_or_else(|| panic!("{name}: {:?}", outcome.sent));
    let answered = answered
        .strip_prefix(subscription(role, &outcome.version))
        .unwrap();
    let pongs: Vec<u8> = list("pongs")
        .iter()
        .flat_map(|pong| base64(pong.as_str().unwrap()))
        .collect();
    assert!(
        answered.starts_with(&pongs),
        "{name}: the recorded server may have stopped answering, we do not"
    );
    let count = answered
        .windows(5)
        .filter(|window| window == b"\x04PONG")
        .count();
    assert_eq!(
        count,
        usize::try_from(connection["pings"].as_u64().unwrap()).unwrap(),
        "{name}"
    );
}

#[test]
fn recorded_peers_are_understood_and_answered() {
    let recordings: Value = serde_json::from_str(include_str!("../data/zmtp/zmtp.json")).unwrap();
    let mut connections = 0;
    for recording in recordings.as_array().unwrap() {
        for connection in recording["connections"].as_array().unwrap() {
            check(recording["name"].as_str().unwrap(), connection);
            connections += 1;
        }
    }
    assert!(connections > 190, "{connections}");
}
