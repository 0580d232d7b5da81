//! The recorded exchanges and the expected deviations, as data. No judgement here.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::message::Message;
use crate::support::golden::{big_file, data};

/// One step of a recording, in order.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Send(Vec<u8>),
    Receive {
        handler: char,
        message: Vec<u8>,
    },
    Reply {
        handler: char,
        message: Vec<u8>,
    },
    Read {
        bytes: Vec<u8>,
        closed: bool,
    },
    /// No handler got anything for a while.
    Silence,
    Close,
}

/// One exchange between a client, the server and its handlers.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    /// Stem of the configuration it ran with.
    pub(crate) config: String,
    pub(crate) protocol: String,
    pub(crate) steps: Vec<Step>,
    pub(crate) client_sends: Vec<Vec<u8>>,
    pub(crate) client_receives: Vec<u8>,
    /// Whether the server closed before the client did; `None` when the client did not look.
    pub(crate) closed: Option<bool>,
    pub(crate) replies: Vec<Vec<u8>>,
    pub(crate) messages: Vec<Message>,
    /// Requests that reached the proxied server, as they were on the wire.
    pub(crate) backend: Vec<Vec<u8>>,
}

/// What is accepted instead of a recording, and why.
#[derive(Debug, Clone)]
pub(crate) struct Deviation {
    pub(crate) reason: String,
    pub(crate) accept: Value,
}

/// All recorded exchanges, in the order of recording.
pub(crate) fn exchanges() -> Vec<Exchange> {
    let text = fs::read(data().join("exchanges/exchanges.json")).expect("exchanges.json");
    let list: Vec<Value> = serde_json::from_slice(&text).expect("exchanges.json is JSON");
    list.iter().map(exchange).collect()
}

/// All deviations by the name of their exchange.
pub(crate) fn deviations() -> BTreeMap<String, Deviation> {
    let text = fs::read(data().join("exchanges/deviations.json")).expect("deviations.json");
    let map: BTreeMap<String, Value> =
        serde_json::from_slice(&text).expect("deviations.json is JSON");
    map.into_iter()
        .filter(|(name, _)| name != "_format")
        .map(|(name, value)| {
            let reason = value["reason"].as_str().expect("a reason").to_owned();
            (
                name,
                Deviation {
                    reason,
                    accept: value["accept"].clone(),
                },
            )
        })
        .collect()
}

fn exchange(value: &Value) -> Exchange {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let list = |key: &str| -> Vec<Vec<u8>> {
        value[key]
            .as_array()
            .into_iter()
            .flatten()
            .map(|item| base64(item.as_str().expect("text")))
            .collect()
    };
    let mut steps: Vec<Step> = value["timeline"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(step)
        .collect();
    let received = list("handler_received_b64");
    if text("name") == "big_response" {
        steps = big_response(&list("client_sends_chunks_b64"), &received);
    }
    if text("config_notes").starts_with("tls.conf") {
        // Recorded without a timeline: one request, which nobody answered.
        steps = vec![Step::Send(base64(&text("client_sends_b64")))];
        steps.extend(received.iter().map(|message| Step::Receive {
            handler: 'J',
            message: message.clone(),
        }));
    }
    let mut recorded = base64(&text("client_receives_b64"));
    if text("name") == "dir_big" {
        recorded = with_big_file(recorded);
        steps = big_download(&list("client_sends_chunks_b64"), &recorded);
    }
    if text("name") == "proxy_big" {
        // All of its body is one letter, and its length is in its head.
        recorded.resize(recorded.len().max(100_043), b'x');
        steps = big_download(&list("client_sends_chunks_b64"), &recorded);
    }
    let messages = steps
        .iter()
        .filter_map(|step| match step {
            Step::Receive { handler, message } => Message::parse(*handler, message),
            _ => None,
        })
        .collect();
    let client_receives = steps
        .iter()
        .filter_map(|step| match step {
            Step::Read { bytes, .. } => Some(bytes.as_slice()),
            _ => None,
        })
        .collect::<Vec<_>>()
        .concat();
    Exchange {
        name: text("name"),
        config: text("config_notes")
            .split('.')
            .next()
            .unwrap_or_default()
            .to_owned(),
        protocol: text("protocol"),
        steps,
        client_sends: list("client_sends_chunks_b64"),
        // Some clients read at the very end without a step of its own for it.
        client_receives: if client_receives.len() >= recorded.len() {
            client_receives
        } else {
            recorded
        },
        closed: value["server_closed_connection"].as_bool(),
        replies: list("handler_replies_b64"),
        messages,
        backend: value["backend_received"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|event| event["raw"].as_str().map(base64))
            .collect(),
    }
}

fn step(value: &Value) -> Option<Step> {
    let bytes = |key: &str| value[key].as_str().map(base64);
    let letter = |key: &str| value[key].as_str().and_then(|text| text.chars().next());
    if let Some(bytes) = bytes("client_sends_b64") {
        return Some(Step::Send(bytes));
    }
    if let Some(message) = bytes("handler_received_b64") {
        return Some(Step::Receive {
            handler: letter("handler")?,
            message,
        });
    }
    if let Some(message) = bytes("handler_replies_b64") {
        return Some(Step::Reply {
            handler: letter("handler")?,
            message,
        });
    }
    if let Some(bytes) = bytes("client_receives_b64") {
        let closed = value["connection_closed"].as_bool().unwrap_or(false);
        return Some(Step::Read { bytes, closed });
    }
    if letter("handler_timeout").is_some() {
        return Some(Step::Silence);
    }
    value["client_closes"].as_bool().map(|_| Step::Close)
}

/// A cut record that can be told again: the head as it was recorded, and the file that lies there now.
fn with_big_file(mut recorded: Vec<u8>) -> Vec<u8> {
    let head = recorded
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .expect("the head is whole");
    recorded.truncate(head + 4);
    recorded.extend_from_slice(&big_file());
    recorded
}

fn big_download(sends: &[Vec<u8>], answer: &[u8]) -> Vec<Step> {
    let mut steps: Vec<Step> = sends.iter().cloned().map(Step::Send).collect();
    steps.push(Step::Read {
        bytes: answer.to_vec(),
        closed: false,
    });
    steps.push(Step::Close);
    steps
}

/// Another: 1 MiB of one letter in a single message.
fn big_response(sends: &[Vec<u8>], received: &[Vec<u8>]) -> Vec<Step> {
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n".to_vec();
    answer.resize(answer.len() + 1_048_576, b'r');
    let ident = "81b7114c-534c-4107-9f17-b317cfd59f62";
    let reply = crate::support::peer::reply(ident, "32", &answer);
    let mut steps: Vec<Step> = sends.iter().cloned().map(Step::Send).collect();
    let mut receives = received.iter().map(|m| Step::Receive {
        handler: 'J',
        message: m.clone(),
    });
    steps.extend(receives.next());
    steps.push(Step::Reply {
        handler: 'J',
        message: reply,
    });
    steps.push(Step::Read {
        bytes: answer,
        closed: false,
    });
    steps.push(Step::Close);
    steps.extend(receives);
    steps
}

/// Standard base64 with padding, as the recordings use it.
pub(crate) fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("not base64: {byte}"),
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for &byte in group {
            bits = bits << 6 | u32::from(digit(byte));
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    bytes
}

#[test]
fn base64_of_every_remainder_is_read() {
    for (text, bytes) in [
        ("", ""),
        ("Zg==", "f"),
        ("Zm8=", "fo"),
        ("Zm9v", "foo"),
        ("Zm9vYg==", "foob"),
    ] {
        assert_eq!(base64(text), bytes.as_bytes());
    }
}
