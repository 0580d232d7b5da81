//! Claims about requests: how they are written, how they are read, and what they are taken for.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::wire::{ConnId, Protocol};

const SERVER: [(&str, &[u8]); 3] = [
    ("METHOD", b"GET"),
    ("x-forwarded-for", b"192.0.2.1"),
    ("X-Odd", b"1"),
];

fn outgoing<'a>(protocol: Protocol, fields: &'a [Field<'a>]) -> Outgoing<'a> {
    Outgoing {
        protocol,
        path: b"/p",
        fields,
        server: &SERVER,
        names_max: NAMES_MAX,
        values_max: VALUES_MAX,
    }
}

fn fields<'a>(pairs: &[(&'a str, &'a str)]) -> Vec<Field<'a>> {
    pairs
        .iter()
        .map(|(name, value)| Field {
            name: name.as_bytes(),
            value: value.as_bytes(),
        })
        .collect()
}

#[track_caller]
fn check_head(outgoing: Outgoing<'_>, json: &str, tnetstring: &str) {
    for (protocol, expected) in [(Protocol::Json, json), (Protocol::Tnetstring, tnetstring)] {
        let mut out = b"before".to_vec();
        Outgoing {
            protocol,
            ..outgoing
        }
        .encode_head(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), format!("before{expected}"));
    }
}

/// A message as text, which must decode.
#[track_caller]
fn request(text: &str) -> Request {
    Request::decode(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

/// A message with these JSON headers and this body.
fn message(path: &str, headers: &str, body: &str) -> Request {
    request(&format!(
        "u 7 {path} {}:{headers},{}:{body},",
        headers.len(),
        body.len()
    ))
}

#[test]
fn a_message_is_written_as_mongrel2_writes_it() {
    let mut out = Vec::new();
    encode_prefix(b"81b7114c", ConnId(4), &mut out);
    let fields = fields(&[("Host", "localhost")]);
    outgoing(Protocol::Json, &fields).encode_head(&mut out);
    encode_body_prefix(2, &mut out);
    out.extend_from_slice(b"hi,");
    let expected = concat!(
        r#"81b7114c 4 /p 77:{"host":"localhost","METHOD":"GET","x-forwarded-for":"192.0.2.1","X-Odd":"1"},"#,
        "2:hi,"
    );
    assert_eq!(String::from_utf8_lossy(&out), expected);
}

#[test]
fn names_are_lowered_and_repeated_ones_become_lists_in_order_of_arrival() {
    let fields = fields(&[
        ("Accept", "a"),
        ("X-A", "1"),
        ("ACCEPT", "b"),
        ("x-B", ""),
        ("accept", "c"),
        ("x-a", "2"),
    ]);
    let plain = Outgoing {
        server: &[],
        ..outgoing(Protocol::Json, &fields)
    };
    check_head(
        plain,
        r#"/p 49:{"accept":["a","b","c"],"x-a":["1","2"],"x-b":""},"#,
        "/p 51:6:accept,12:1:a,1:b,1:c,]3:x-a,8:1:1,1:2,]3:x-b,0:,}",
    );
}

#[test]
fn a_client_cannot_write_what_the_server_writes() {
    let fields = fields(&[
        ("X-Forwarded-For", "10.0.0.1"),
        ("x-forwarded-for", "10.0.0.2"),
        ("method", "lower case stays the client's"),
        ("X-Odd", "so does this"),
    ]);
    check_head(
        outgoing(Protocol::Json, &fields),
        concat!(
            r#"/p 122:{"method":"lower case stays the client's","x-odd":"so does this","#,
            r#""METHOD":"GET","x-forwarded-for":"192.0.2.1","X-Odd":"1"},"#,
        ),
        concat!(
            "/p 124:6:method,29:lower case stays the client's,5:x-odd,12:so does this,",
            "6:METHOD,3:GET,15:x-forwarded-for,9:192.0.2.1,5:X-Odd,1:1,}",
        ),
    );
}

#[test]
fn an_empty_dict_is_an_empty_dict() {
    check_head(
        Outgoing {
            server: &[],
            ..outgoing(Protocol::Json, &[])
        },
        "/p 2:{},",
        "/p 0:}",
    );
}

#[test]
fn values_and_names_above_their_limits_are_dropped() {
    let fields = fields(&[
        ("a", "1"),
        ("b", "2"),
        ("a", "3"),
        ("c", "4"),
        ("a", "5"),
        ("c", "6"),
        ("b", "7"),
    ]);
    let limited = Outgoing {
        server: &[],
        names_max: 2,
        values_max: 2,
        ..outgoing(Protocol::Json, &fields)
    };
    check_head(
        limited,
        r#"/p 29:{"a":["1","3"],"b":["2","7"]},"#,
        "/p 30:1:a,8:1:1,1:3,]1:b,8:1:2,1:7,]}",
    );
    let single = Outgoing {
        values_max: 0,
        ..limited
    };
    check_head(
        single,
        r#"/p 17:{"a":"1","b":"2"},"#,
        "/p 16:1:a,1:1,1:b,1:2,}",
    );
}

#[test]
fn json_is_valid_and_a_tnetstring_is_raw_whatever_the_client_sent() {
    let fields = [Field {
        name: b"X-\"N\xe9",
        value: b"\x01\"\xff",
    }];
    let plain = Outgoing {
        server: &[],
        ..outgoing(Protocol::Json, &fields)
    };
    let mut out = Vec::new();
    plain.encode_head(&mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "/p 24:{\"x-\\\"né\":\"\\u0001\\\"ÿ\"},"
    );
    let mut out = Vec::new();
    Outgoing {
        protocol: Protocol::Tnetstring,
        ..plain
    }
    .encode_head(&mut out);
    assert_eq!(out, b"/p 14:5:x-\"n\xe9,3:\x01\"\xff,}");
}

#[test]
fn notices_have_the_bytes_of_mongrel2() {
    let written = |notice: Notice, protocol| {
        let mut out = Vec::new();
        notice.encode(protocol, &mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        written(Notice::Disconnect, Protocol::Json),
        r#"@* 17:{"METHOD":"JSON"},21:{"type":"disconnect"},"#
    );
    assert_eq!(
        written(Notice::Disconnect, Protocol::Tnetstring),
        r#"@* 16:6:METHOD,4:JSON,}21:{"type":"disconnect"},"#
    );
    assert_eq!(
        written(Notice::Credits(43), Protocol::Json),
        r#"@* 41:{"METHOD":"JSON","DOWNLOAD_CREDITS":"43"},18:{"type":"credits"},"#
    );
    assert_eq!(
        written(Notice::Credits(43), Protocol::Tnetstring),
        r#"@* 41:16:DOWNLOAD_CREDITS,2:43,6:METHOD,4:JSON,}18:{"type":"credits"},"#
    );
}

#[test]
fn a_message_is_cut_into_its_parts() {
    let request = request(r#"main 12 /a?b 30:{"METHOD":"GET","a":["1","2"]},3:a b,"#);
    assert_eq!(request.sender, "main");
    assert_eq!(request.conn_id, ConnId(12));
    assert_eq!(request.path, "/a?b");
    assert_eq!(request.method(), Some(&b"GET"[..]));
    assert_eq!(request.headers.first("a"), Some(&b"1"[..]));
    assert!(request.headers.all("a").iter().eq([b"1", b"2"]));
    assert!(request.headers.all("b").is_empty());
    assert_eq!(request.body, "a b");
}

#[test]
fn values_are_shared_with_the_message_where_they_stand_in_it() {
    let request = request(r#"u 1 / 45:{"a":["1","","3"],"b":"\u00e9","c":"","d":[]},0:,"#);
    let headers = &request.headers;
    let shared = headers.share(headers.first("a").unwrap());
    assert_eq!(shared, "1");
    assert_eq!(shared.as_ptr(), headers.first("a").unwrap().as_ptr());
    // This one is not in it as it is meant, nor is what came from elsewhere.
    assert_eq!(headers.share(headers.first("b").unwrap()), "é");
    assert_eq!(headers.share(b"x"), "x");
    assert_eq!(headers.all("a").join(b", "), b"1, , 3");
    assert_eq!(headers.all("a").get(2), Some(&b"3"[..]));
    assert_eq!(
        (headers.all("a").len(), headers.all("a").single()),
        (3, None)
    );
    assert_eq!(
        headers.get("c").and_then(HeaderValues::single),
        Some(&b""[..])
    );
    assert!(headers.contains("d") && headers.all("d").is_empty());
    assert_eq!(*headers, headers.clone());
}

#[test]
fn tnetstring_headers_keep_the_bytes_of_the_client() {
    let message = b"u 1 / 40:1:a,2:\xe9\x01,1:b,8:1:1,1:2,]1:n,2:17#1:z,0:~}0:,";
    let request = Request::decode(Bytes::from_static(message)).unwrap();
    assert_eq!(request.headers.first("a"), Some(&b"\xe9\x01"[..]));
    assert!(request.headers.all("b").iter().eq([b"1", b"2"]));
    assert_eq!(request.headers.first("n"), Some(&b"17"[..]));
    assert_eq!(request.headers.first("z"), Some(&b""[..]));
}

#[test]
fn decode_errors_name_the_part_and_the_reason() {
    for (message, text) in [
        ("", "malformed sender: the message ends too early"),
        ("abc", "malformed sender: the message ends too early"),
        (" 1 / 2:{},0:,", "malformed sender: empty"),
        ("u ", "malformed connection id: the message ends too early"),
        ("u  / 2:{},0:,", "malformed connection id: empty"),
        (
            "u +1 / 2:{},0:,",
            "malformed connection id: unexpected byte 0x2b at 0",
        ),
        (
            "u 4294967296 / 2:{},0:,",
            "malformed connection id: a number out of range",
        ),
        ("u 1 /", "malformed path: the message ends too early"),
        ("u 1 / ", "malformed headers: the message ends too early"),
        (
            "u 1 / 9:{}",
            "malformed headers: the message ends too early",
        ),
        (
            "u 1 / x",
            "malformed headers: a length is not digits and a colon at byte 0",
        ),
        (
            "u 1 / 02:{},0:,",
            "malformed headers: a length with a leading zero at byte 1",
        ),
        (
            "u 1 / 2:{}]0:,",
            "malformed headers: expected a netstring of JSON or a dict",
        ),
        ("u 1 / 2:[],0:,", "malformed headers: no JSON at byte 0"),
        (
            "u 1 / 2:0:}0:,",
            "malformed headers: the message ends too early",
        ),
        (
            "u 1 / 4:1:a,}0:,",
            "malformed headers: the message ends too early",
        ),
        (
            "u 1 / 8:1:1#1:a,}0:,",
            "malformed headers: expected a string as header name",
        ),
        (
            "u 1 / 7:1:a,0:}}0:,",
            "malformed headers: expected texts and lists of texts as values",
        ),
        ("u 1 / 2:{},", "malformed body: the message ends too early"),
        (
            "u 1 / 2:{},5:abc,",
            "malformed body: the message ends too early",
        ),
        ("u 1 / 2:{},0:]", "malformed body: expected a netstring"),
        ("u 1 / 2:{},1:abc,", "malformed body: expected a netstring"),
        ("u 1 / 2:{},1:a,bc", "malformed body: 2 bytes too many"),
    ] {
        let error = Request::decode(Bytes::from_static(message.as_bytes())).unwrap_err();
        assert_eq!(error.to_string(), text, "{message}");
    }
}

#[test]
fn http_says_when_to_close() {
    for (headers, close) in [
        (r#"{"VERSION":"HTTP/1.1"}"#, false),
        (r#"{"VERSION":"HTTP/1.0"}"#, true),
        (r#"{"VERSION":"HTTP/1.0","connection":"Keep-Alive"}"#, false),
        (r#"{"VERSION":"HTTP/1.1","connection":"CLOSE"}"#, true),
        (
            r#"{"VERSION":"HTTP/1.1","connection":["upgrade"," x , close "]}"#,
            true,
        ),
        (r#"{"VERSION":"HTTP/1.1","connection":"closed"}"#, false),
    ] {
        assert_eq!(message("/", headers, "").should_close(), close, "{headers}");
    }
}

#[test]
fn notices_are_notices() {
    let disconnect = request(r#"u 7 @* 17:{"METHOD":"JSON"},21:{"type":"disconnect"},"#);
    assert!(disconnect.is_disconnect() && disconnect.is_notice());
    let credits =
        request(r#"u 7 @* 41:16:DOWNLOAD_CREDITS,2:43,6:METHOD,4:JSON,}18:{"type":"credits"},"#);
    assert_eq!(credits.kind(), Kind::Credits(43));
    assert!(credits.is_notice() && !credits.is_disconnect());
    assert_eq!(
        message("@*", r#"{"METHOD":"JSON"}"#, r#"{"type":"new"}"#).kind(),
        Kind::Notice
    );
    assert_eq!(
        message("@*", r#"{"METHOD":"JSON"}"#, "?").kind(),
        Kind::Notice
    );
}

#[test]
fn a_client_cannot_make_a_notice() {
    let body = r#"{"type":"disconnect"}"#;
    let http = message(
        "@*",
        r#"{"METHOD":"JSON","VERSION":"HTTP/1.1","REMOTE_ADDR":"::1"}"#,
        body,
    );
    assert_eq!(http.kind(), Kind::Http);
    let http = message(
        "/",
        r#"{"METHOD":"JSON","VERSION":"HTTP/1.1","REMOTE_ADDR":"::1"}"#,
        body,
    );
    assert_eq!(http.kind(), Kind::Http);
    let socket = message(
        "@*",
        r#"{"METHOD":"JSON","PATTERN":"@","REMOTE_ADDR":"::1"}"#,
        body,
    );
    assert_eq!(socket.kind(), Kind::Message(Language::Json));
    assert!(!socket.is_notice());
}

#[test]
fn a_client_cannot_make_a_frame_or_a_handshake_by_its_method() {
    let headers = r#"{"METHOD":"WEBSOCKET","VERSION":"HTTP/1.1","flags":"0x81"}"#;
    assert_eq!(message("/", headers, "hi").kind(), Kind::Http);
    let headers = r#"{"METHOD":"WEBSOCKET","VERSION":"HTTP/1.1","FLAGS":"0x8A"}"#;
    assert_eq!(
        message("/", headers, "hi").kind(),
        Kind::WebSocketFrame { flags: 0x8a }
    );
    for odd in ["81", "0x", "0x+1", "0x181"] {
        let headers = format!(r#"{{"METHOD":"WEBSOCKET","VERSION":"HTTP/1.1","FLAGS":"{odd}"}}"#);
        assert_eq!(message("/", &headers, "hi").kind(), Kind::Http, "{odd}");
    }
    let upgrade = [
        r#""host":"a""#,
        r#""upgrade":"WebSocket""#,
        r#""connection":"keep-alive, Upgrade""#,
        r#""sec-websocket-key":"x""#,
        r#""sec-websocket-version":"13""#,
    ];
    for left_out in 0..=upgrade.len() {
        let mut lines = vec![r#""METHOD":"WEBSOCKET_HANDSHAKE","VERSION":"HTTP/1.1""#];
        lines.extend(
            upgrade
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != left_out)
                .map(|(_, line)| *line),
        );
        let expected = if left_out == upgrade.len() {
            Kind::WebSocketHandshake
        } else {
            Kind::Http
        };
        assert_eq!(
            message("/", &format!("{{{}}}", lines.join(",")), "").kind(),
            expected
        );
    }
    // Connection may have come in several lines.
    let lines = upgrade.map(|line| match line.split_once(':') {
        Some((name @ r#""connection""#, _)) => format!(r#"{name}:["keep-alive","Upgrade"]"#),
        _ => line.to_owned(),
    });
    let lines = format!(r#"{{"METHOD":"WEBSOCKET_HANDSHAKE",{}}}"#, lines.join(","));
    assert_eq!(message("/", &lines, "").kind(), Kind::WebSocketHandshake);
}

#[test]
fn uploads_are_told_apart_and_contradictions_are_forgeries() {
    let file = &b"/tmp/x"[..];
    let of = |headers: &str, body: &str| {
        let headers = format!(r#"{{"METHOD":"POST","VERSION":"HTTP/1.1",{headers}}}"#);
        match message("/", &headers, body).kind() {
            Kind::UploadStart { file: name } => ("start", name == file),
            Kind::UploadDone { file: name } => ("done", name == file),
            Kind::UploadForged => ("forged", true),
            Kind::Http => ("http", true),
            _ => ("other", false),
        }
    };
    let start = r#""x-mongrel2-upload-start":"/tmp/x""#;
    let done = r#""x-mongrel2-upload-done":"/tmp/x""#;
    let other = r#""x-mongrel2-upload-done":"/etc/passwd""#;
    let twice = r#""x-mongrel2-upload-start":["/tmp/y","/tmp/x"]"#;
    assert_eq!(of(start, ""), ("start", true));
    assert_eq!(of(&format!("{start},{done}"), ""), ("done", true));
    assert_eq!(of(&format!("{start},{other}"), ""), ("forged", true));
    assert_eq!(of(done, ""), ("forged", true));
    assert_eq!(of(twice, ""), ("forged", true));
    assert_eq!(of(&format!("{twice},{done}"), ""), ("forged", true));
    assert_eq!(
        of(&format!("{start},{done}"), "with a body"),
        ("forged", true)
    );
    assert_eq!(of(r#""x-mongrel2-upload-start":"""#, ""), ("forged", true));
    assert_eq!(of(r#""x-mongrel2-upload":"1""#, ""), ("http", true));
}

#[test]
fn parts_of_a_streamed_body_have_their_offset() {
    let start = message(
        "/",
        r#"{"METHOD":"POST","VERSION":"HTTP/1.1","UPLOAD_STREAM":"0"}"#,
        "ab",
    );
    assert_eq!(start.kind(), Kind::StreamStart);
    let part = message("/", r#"{"UPLOAD_STREAM":"2"}"#, "cd");
    assert_eq!(
        part.kind(),
        Kind::StreamPart {
            offset: 2,
            done: false
        }
    );
    let last = message("/", r#"{"UPLOAD_STREAM":"4","UPLOAD_STREAM_DONE":"1"}"#, "");
    assert_eq!(
        last.kind(),
        Kind::StreamPart {
            offset: 4,
            done: true
        }
    );
}

/// The dict that should come of these lines, made the slow and plain way. JSON's values are compared as text.
fn model(outgoing: &Outgoing<'_>) -> Vec<(Vec<u8>, Vec<Vec<u8>>)> {
    let text = |bytes: &[u8]| match (outgoing.protocol, std::str::from_utf8(bytes)) {
        (Protocol::Json, Err(_)) => bytes
            .iter()
            .map(|byte| char::from(*byte))
            .collect::<String>()
            .into_bytes(),
        _ => bytes.to_vec(),
    };
    let mut pairs: Vec<(Vec<u8>, Vec<Vec<u8>>)> = Vec::new();
    for field in outgoing.fields {
        let name = field.name.to_ascii_lowercase();
        if outgoing
            .server
            .iter()
            .any(|(key, _)| key.as_bytes() == name)
        {
            continue;
        }
        match pairs.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(field.value.to_vec()),
            None => pairs.push((name, vec![field.value.to_vec()])),
        }
    }
    pairs.truncate(outgoing.names_max);
    for (_, values) in &mut pairs {
        values.truncate(outgoing.values_max.max(1));
    }
    pairs.extend(
        outgoing
            .server
            .iter()
            .map(|(key, value)| (key.as_bytes().to_vec(), vec![value.to_vec()])),
    );
    let texts = |values: &Vec<Vec<u8>>| values.iter().map(|value| text(value)).collect();
    pairs
        .iter()
        .map(|(name, values)| (text(name), texts(values)))
        .collect()
}

fn lines() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    // Few letters, so that names repeat, also in another case, and meet the server's.
    let name = prop_oneof![
        8 => "[aAbB-]{1,2}".prop_map(String::into_bytes),
        1 => "[xX]-[fF]orwarded-[fF]or".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ];
    let value = prop_oneof![
        "[ -~]{0,12}".prop_map(String::into_bytes),
        "\\PC{0,4}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..12),
    ];
    let length = prop_oneof![4 => 0..12_usize, 1 => 28..36_usize, 1 => 90..110_usize];
    length.prop_flat_map(move |length| {
        proptest::collection::vec((name.clone(), value.clone()), length)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_what_the_plain_way_gives_however_many_headers(
        lines in lines(),
        tnetstring: bool,
        body in proptest::collection::vec(any::<u8>(), 0..20),
        id: u32,
        names_max in prop_oneof![Just(NAMES_MAX), 0..5_usize],
        values_max in 0..7_usize,
        many_server_keys: bool,
    ) {
        let protocol = if tnetstring { Protocol::Tnetstring } else { Protocol::Json };
        let fields: Vec<Field<'_>> = lines.iter().map(|(name, value)| Field { name, value }).collect();
        let keys = ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9"];
        let mut server: Vec<(&str, &[u8])> = SERVER.to_vec();
        server.extend(keys.iter().filter(|_| many_server_keys).map(|key| (*key, &b"v"[..])));
        let outgoing =
            Outgoing { protocol, path: b"/p", fields: &fields, server: &server, names_max, values_max };
        let mut out = Vec::new();
        encode_prefix(b"main", ConnId(id), &mut out);
        outgoing.encode_head(&mut out);
        encode_body_prefix(body.len(), &mut out);
        out.extend_from_slice(&body);
        out.push(b',');
        let request = Request::decode(Bytes::from(out)).unwrap();
        prop_assert_eq!(&request.sender, "main");
        prop_assert_eq!(request.conn_id, ConnId(id));
        prop_assert_eq!(&request.path, "/p");
        prop_assert_eq!(&request.body, &body);
        let found: Vec<(Vec<u8>, Vec<Vec<u8>>)> = request
            .headers
            .iter()
            .map(|(name, value)| (name.to_vec(), value.iter().map(<[u8]>::to_vec).collect()))
            .collect();
        prop_assert_eq!(found, model(&outgoing));
    }

    #[test]
    fn mutated_messages_never_panic(
        lines in lines(),
        tnetstring: bool,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut: prop::sample::Index,
    ) {
        let protocol = if tnetstring { Protocol::Tnetstring } else { Protocol::Json };
        let fields: Vec<Field<'_>> = lines.iter().map(|(name, value)| Field { name, value }).collect();
        let mut message = b"main 1 ".to_vec();
        outgoing(protocol, &fields).encode_head(&mut message);
        message.extend_from_slice(b"2:{},");
        prop_assert!(Request::decode(Bytes::copy_from_slice(&message[..cut.index(message.len())])).is_err());
        for (at, byte) in edits {
            let at = at.index(message.len());
            message[at] = byte;
        }
        if let Ok(request) = Request::decode(Bytes::from(message)) {
            let _ = (request.kind(), request.should_close());
        }
    }

    #[test]
    fn random_bytes_never_panic(message in proptest::collection::vec(any::<u8>(), 0..100), tail in "[0-9:{},\\]}a ]{0,30}") {
        drop(Request::decode(Bytes::from(message)));
        drop(Request::decode(Bytes::from(format!("u 1 / {tail}"))));
    }
}
