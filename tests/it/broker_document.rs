//! What docs/broker-protocol.md says is what is spoken: its examples are decoded, its bytes are fed to the codec.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use lurcher::wire::reply;
use lurcher::wire::request::Request;
use lurcher::wire::worker::{FromBroker, FromWorker};
use lurcher::zmtp::{self, Event, Framing, Session, SocketType};

const DOCUMENT: &str = include_str!("../../docs/broker-protocol.md");

/// What stands in the blocks of this kind.
fn blocks(kind: &str) -> Vec<&'static str> {
    let start = format!("```{kind}\n");
    let behind = DOCUMENT.split(&start).skip(1);
    behind
        .map(|block| block.split("```").next().unwrap())
        .collect()
}

/// Who speaks, and the frames.
fn messages(block: &'static str) -> Vec<(&'static str, Vec<Bytes>)> {
    let line = |line: &'static str| {
        let (who, list) = line.split_once(' ').unwrap();
        let frames: Vec<String> = serde_json::from_str(list).unwrap();
        (who, frames.into_iter().map(Bytes::from).collect())
    };
    block.lines().map(line).collect()
}

fn check_request(message: &[u8]) {
    Request::decode(Bytes::copy_from_slice(message)).unwrap();
}

fn check_reply(message: &[u8]) {
    reply::decode(message, reply::TARGETS_MAX).unwrap();
}

fn check_own(who: &str, frames: &[Bytes]) {
    let written = match who {
        "worker" => {
            let said = FromWorker::decode(frames).unwrap().expect("it is known");
            if let FromWorker::Reply { message, .. } = &said {
                check_reply(message);
            }
            said.encode()
        }
        "broker" => {
            let said = FromBroker::decode(frames).unwrap().expect("it is known");
            if let FromBroker::Request { message, .. } | FromBroker::Message { message } = &said {
                check_request(message);
            }
            said.encode()
        }
        _ => panic!("{who} says nothing"),
    };
    assert!(frames.starts_with(&written), "{frames:?}");
}

#[test]
fn the_examples_are_what_is_spoken_and_every_command_has_one() {
    let mut commands: Vec<(&str, Bytes)> = Vec::new();
    for (who, frames) in blocks("frames").into_iter().flat_map(messages) {
        if frames[0].is_empty() {
            match (who, frames.get(1).map(|frame| &frame[..])) {
                ("pings", None) | ("worker", Some(b"" | b"X")) | ("broker", Some(b"X")) => {}
                ("worker", Some(message)) => check_reply(message),
                ("broker", Some(message)) => check_request(message),
                said => panic!("{said:?}"),
            }
        } else {
            check_own(who, &frames);
            commands.push((who, frames[0].clone()));
        }
    }
    let rows = |title: &str| -> Vec<&'static str> {
        let table = DOCUMENT.split(title).nth(1).unwrap();
        let rows = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        rows.map(|row| row.split('`').nth(1).unwrap()).collect()
    };
    for (who, title) in [
        ("worker", "| the worker says | meaning |"),
        ("broker", "| the broker says | meaning |"),
    ] {
        let known = rows(title);
        assert!(known.len() >= 9, "{known:?}");
        for command in &known {
            let example = |(speaker, said): &(&str, Bytes)| *speaker == who && said == command;
            assert!(
                commands.iter().any(example),
                "{who} has no example of {command}"
            );
        }
        let said = commands.iter().filter(|(speaker, _)| *speaker == who);
        for (_, command) in said {
            let text = std::str::from_utf8(command).unwrap();
            assert!(known.contains(&text), "{text} is in no table");
        }
    }
}

/// Who sends which bytes, in order.
fn transfers() -> Vec<(&'static str, Vec<u8>)> {
    let mut all: Vec<(&str, Vec<u8>)> = Vec::new();
    for line in blocks("hex").concat_lines() {
        let (who, rest) = line.split_at(6);
        let bytes = rest.get(..48).unwrap_or(rest).split_whitespace();
        let bytes = bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap());
        if who.trim().is_empty() {
            all.last_mut().unwrap().1.extend(bytes);
        } else {
            all.push((who, bytes.collect()));
        }
    }
    all
}

trait Lines {
    fn concat_lines(&self) -> Vec<&'static str>;
}

impl Lines for Vec<&'static str> {
    fn concat_lines(&self) -> Vec<&'static str> {
        self.iter().flat_map(|block| block.lines()).collect()
    }
}

#[test]
fn the_bytes_are_those_that_the_codec_takes_and_gives() {
    let options = zmtp::Options {
        properties: vec![("X-Lurcher", "1".into())],
        ..zmtp::Options::default()
    };
    let mut session = Session::new(SocketType::Router, Arc::new(options), Instant::now());
    let mut input = BytesMut::new();
    let mut expected = messages(blocks("frames")[0]).into_iter();
    let mut handshake = Vec::new();
    let (mut is_ready, mut count) = (false, 0);
    for (who, bytes) in transfers() {
        if who == "worker" {
            input.extend_from_slice(&bytes);
            while let Some(event) = session.handle_bytes(&mut input, Instant::now()).unwrap() {
                match event {
                    Event::Ready => is_ready = true,
                    Event::Message(message) => {
                        let said: Vec<Bytes> = message.frames().cloned().collect();
                        assert_eq!(expected.next(), Some(("worker", said)));
                        count += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        } else if handshake.len() < 64 + 2 {
            handshake.extend(bytes);
        } else {
            let Some(("broker", frames)) = expected.next() else {
                panic!("the broker has nothing to say");
            };
            let mut written = Vec::new();
            for (place, frame) in frames.iter().enumerate() {
                let more = place + 1 < frames.len();
                written.extend_from_slice(Framing::New.encode(frame.len(), more).as_ref());
                written.extend_from_slice(frame);
            }
            assert_eq!(bytes, written);
            count += 1;
        }
    }
    assert!(is_ready && input.is_empty());
    assert_eq!(*session.output(), handshake);
    assert_eq!(count, 8);
}
