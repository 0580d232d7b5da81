//! Claims about Mongrel2's messages that need both directions, or the recordings of its binary.

use bytes::Bytes;
use serde_json::Value as Json;

use super::request::{
    Field, HeaderValues, Headers, Kind, NAMES_MAX, Notice, Outgoing, Request, VALUES_MAX,
    encode_body_prefix, encode_prefix,
};
use super::*;

/// What was recorded between Mongrel2 and its handlers, each message once; a character is a byte.
const EXCHANGES: &str = include_str!("../../tests/data/wire/exchanges.json");

/// One recorded exchange.
struct Exchange {
    name: String,
    to_handler: Vec<Bytes>,
    from_handler: Vec<Bytes>,
}

fn exchanges() -> Vec<Exchange> {
    let all: Vec<Json> = serde_json::from_str(EXCHANGES).unwrap();
    let bytes = |text: &Json| -> Bytes {
        text.as_str()
            .unwrap()
            .chars()
            .map(|char| char as u8)
            .collect()
    };
    let messages = |list: &Json| list.as_array().unwrap().iter().map(bytes).collect();
    let exchange = |one: &Json| Exchange {
        name: one["name"].as_str().unwrap().to_owned(),
        to_handler: messages(&one["to_handler"]),
        from_handler: messages(&one["from_handler"]),
    };
    all.iter().map(exchange).collect()
}

/// Writes a decoded message again, its lower-case headers as a client's, the others as the server's.
fn encode_again(request: &Request, protocol: Protocol) -> Bytes {
    let (client, server): (Vec<_>, Vec<_>) = request
        .headers
        .iter()
        .partition(|(name, _)| !name.iter().any(u8::is_ascii_uppercase));
    let fields: Vec<Field<'_>> = client
        .iter()
        .flat_map(|(name, value)| value.iter().map(move |value| Field { name, value }))
        .collect();
    let server: Vec<(&str, &[u8])> = server
        .iter()
        .map(|(name, value)| (std::str::from_utf8(name).unwrap(), value.single().unwrap()))
        .collect();
    let mut out = Vec::new();
    encode_prefix(&request.sender, request.conn_id, &mut out);
    Outgoing {
        protocol,
        path: &request.path,
        fields: &fields,
        server: &server,
        names_max: NAMES_MAX,
        values_max: VALUES_MAX,
    }
    .encode_head(&mut out);
    encode_body_prefix(request.body.len(), &mut out);
    out.extend_from_slice(&request.body);
    out.push(b',');
    Bytes::from(out)
}

fn sorted(headers: &Headers) -> Vec<(&[u8], HeaderValues<'_>)> {
    let mut pairs: Vec<_> = headers.iter().collect();
    pairs.sort_by_key(|(name, _)| *name);
    pairs
}

#[test]
fn every_recorded_message_decodes_and_is_the_same_when_written_again() {
    let mut seen = 0;
    for Exchange {
        name, to_handler, ..
    } in exchanges()
    {
        for message in to_handler {
            let request =
                Request::decode(message).unwrap_or_else(|error| panic!("{name}: {error}"));
            for protocol in [Protocol::Json, Protocol::Tnetstring] {
                let again = Request::decode(encode_again(&request, protocol)).unwrap();
                assert_eq!(sorted(&again.headers), sorted(&request.headers), "{name}");
                let headers = request.headers.clone();
                assert_eq!(Request { headers, ..again }, request, "{name}");
            }
            seen += 1;
        }
    }
    assert!(seen > 150, "only {seen} messages in the recordings");
}

#[test]
fn recorded_json_is_read_as_a_json_library_reads_it() {
    for Exchange {
        name, to_handler, ..
    } in exchanges()
    {
        for message in to_handler {
            let request = Request::decode(message.clone()).unwrap();
            let Some(text) = json_of(&message) else {
                continue;
            };
            let mut stream = serde_json::Deserializer::from_slice(text).into_iter::<Json>();
            // What is no JSON is the subject of the next tests.
            let Some(Ok(Json::Object(expected))) = stream.next() else {
                continue;
            };
            assert_eq!(request.headers.len(), expected.len(), "{name}");
            for (key, value) in &expected {
                let values: Vec<&[u8]> = request.headers.all(key).iter().collect();
                let expected: Vec<&[u8]> = match value {
                    Json::Array(values) => values
                        .iter()
                        .map(|value| value.as_str().unwrap().as_bytes())
                        .collect(),
                    value => vec![value.as_str().unwrap().as_bytes()],
                };
                assert_eq!(values, expected, "{name}: {key}");
            }
        }
    }
}

#[test]
fn recorded_headers_that_are_no_json_are_read_all_the_same() {
    let find = |wanted: &str| {
        let exchange = exchanges()
            .into_iter()
            .find(|exchange| exchange.name == wanted)
            .unwrap();
        Request::decode(exchange.to_handler[0].clone()).unwrap()
    };
    let request = find("header_utf8_latin1");
    assert_eq!(
        request.headers.first("x-u"),
        Some("Ã© é".as_bytes()),
        "not UTF-8, so read as Latin-1"
    );
    let request = find("header_smuggle_newline_name");
    assert_eq!(request.headers.first("xn\r\nfoo"), Some(&b"bar"[..]));
}

#[test]
fn recorded_kinds_are_told_apart() {
    let mut kinds: Vec<(String, String)> = Vec::new();
    for Exchange {
        name, to_handler, ..
    } in exchanges()
    {
        for message in to_handler {
            let request = Request::decode(message).unwrap();
            let kind = match request.kind() {
                Kind::UploadStart { .. } => "UploadStart".to_owned(),
                Kind::UploadDone { .. } => "UploadDone".to_owned(),
                other => format!("{other:?}"),
            };
            let notice = request.path == "@*";
            assert_eq!(notice, request.is_notice(), "{name}: {kind}");
            if !notice {
                kinds.push((name.clone(), kind));
            }
        }
    }
    let of = |wanted: &str| -> Vec<&str> {
        kinds
            .iter()
            .filter(|(name, _)| name == wanted)
            .map(|(_, kind)| kind.as_str())
            .collect()
    };
    let frame = |flags: u8| format!("WebSocketFrame {{ flags: {flags} }}");
    assert_eq!(
        of("ws_text_echo"),
        ["WebSocketHandshake", &frame(0x81), &frame(0x88)]
    );
    assert_eq!(of("ws_rsv_bits"), ["WebSocketHandshake", &frame(0xc1)]);
    assert_eq!(of("ws_connection_list"), ["WebSocketHandshake"]);
    assert_eq!(of("ws_no_host"), ["Http"]);
    let part = |offset: u64, done: bool| format!("StreamPart {{ offset: {offset}, done: {done} }}");
    assert_eq!(
        of("stream_upload_chunked"),
        [
            "StreamStart",
            &part(0, false),
            &part(5, false),
            &part(8, true)
        ]
    );
    assert_eq!(of("method_spoof_WEBSOCKET"), ["Http"]);
    for (name, kind) in &kinds {
        if name.starts_with("json_") && kind != "Http" {
            assert_eq!(kind, "Message(Json)", "{name}");
        }
        if name.starts_with("xml_") && kind != "Http" {
            assert_eq!(kind, "Message(Xml)", "{name}");
        }
        if name.starts_with("get_") || name.starts_with("header_") {
            assert_eq!(kind, "Http", "{name}");
        }
    }
    for wanted in ["UploadStart", "UploadDone", "Message(Json)", "Message(Xml)"] {
        assert!(
            kinds.iter().any(|(_, kind)| kind == wanted),
            "no {wanted} in the recordings"
        );
    }
}

#[test]
fn recorded_notices_are_written_byte_for_byte() {
    let recorded: Vec<Bytes> = exchanges()
        .into_iter()
        .flat_map(|exchange| exchange.to_handler)
        .collect();
    let mut seen = 0;
    for message in recorded {
        let request = Request::decode(message.clone()).unwrap();
        let notice = match request.kind() {
            Kind::Disconnect => Notice::Disconnect,
            Kind::Credits(credits) => Notice::Credits(credits),
            _ => continue,
        };
        let protocol = if json_of(&message).is_some() {
            Protocol::Json
        } else {
            Protocol::Tnetstring
        };
        let mut out = Vec::new();
        encode_prefix(&request.sender, request.conn_id, &mut out);
        notice.encode(protocol, &mut out);
        assert_eq!(Bytes::from(out), message);
        seen += 1;
    }
    assert!(seen > 50, "only {seen} notices in the recordings");
}

/// The message from its JSON headers on, if it has such.
fn json_of(message: &[u8]) -> Option<&[u8]> {
    let path = message.splitn(4, |byte| *byte == b' ').nth(3)?;
    let start = path.iter().position(|byte| *byte == b':')?;
    path[start + 1..]
        .starts_with(b"{")
        .then_some(&path[start + 1..])
}

#[test]
fn every_recorded_reply_decodes_or_fails_as_recorded() {
    let mut seen = 0;
    for Exchange {
        name, from_handler, ..
    } in exchanges()
    {
        for (index, message) in from_handler.iter().enumerate() {
            seen += 1;
            let decoded = reply::decode(message, reply::TARGETS_MAX);
            // What follows in the same exchange is well-formed.
            let expected = match name.as_str() {
                "reply_bad_length"
                | "reply_bad_no_trailing_space"
                | "reply_bad_no_targets"
                | "reply_129_targets"
                    if index == 0 =>
                {
                    Some("targets")
                }
                "reply_bad_underscore_uuid" if index == 0 => Some("sender"),
                _ => None,
            };
            if let Some(field) = expected {
                assert_eq!(decoded.unwrap_err().field, field, "{name}");
                continue;
            }
            let decoded = decoded.unwrap_or_else(|error| panic!("{name}: {error}"));
            let ids: Vec<ConnId> = decoded.targets.clone().collect();
            assert_eq!(ids.len(), decoded.targets.len(), "{name}");
            let payload = &message[decoded.payload.clone()];
            let mut again = Vec::new();
            if decoded.extended {
                let control = reply::decode_extended(payload);
                // The first two of three are cut wrongly, like those that are named for it.
                let cut = name == "stream_upload_cancel" && index < 2;
                if cut || name.starts_with("malformed_") || name == "ext_not_tnetstring" {
                    assert_eq!(control.unwrap_err().field, "control", "{name}");
                    continue;
                }
                let control = control.unwrap_or_else(|error| panic!("{name}: {error}"));
                reply::encode_extended(decoded.sender, &ids, &control, &mut again);
                // Any value means yes to `cancel`: only what is understood has to be the same.
                let back = reply::decode(&again, reply::TARGETS_MAX).unwrap();
                assert_eq!(back.targets, decoded.targets, "{name}");
                assert_eq!(
                    reply::decode_extended(&again[back.payload]),
                    Ok(control),
                    "{name}"
                );
                continue;
            }
            reply::encode(decoded.sender, &ids, payload, &mut again);
            assert_eq!(Bytes::from(again), message, "{name}");
        }
    }
    assert!(seen > 60, "only {seen} replies in the recordings");
}

#[test]
fn exactly_tnetstring_switches_the_protocol() {
    assert_eq!(Protocol::from_config("tnetstring"), Protocol::Tnetstring);
    for other in ["", "json", "Tnetstring", "tnetstring ", "tnetstrings"] {
        assert_eq!(Protocol::from_config(other), Protocol::Json);
    }
}
