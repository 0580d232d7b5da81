//! WebSocket in the handler library and in the built-in echo: typed events in, frames out.

use lurcher::handler::{Event, Frame, Opcode, ReplyError};
use lurcher::wire::ConnId;

use super::fake_front::{Front, get, json, tnetstring};
use super::programs::Program;
use super::{end, run};

const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const HANDSHAKE: [(&str, &str); 7] = [
    ("METHOD", "WEBSOCKET_HANDSHAKE"),
    ("VERSION", "HTTP/1.1"),
    ("host", "a"),
    ("upgrade", "websocket"),
    ("connection", "Upgrade"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("sec-websocket-version", "13"),
];
const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

/// A handshake with one header more.
fn handshake(id: u32, header: (&str, &str), body: &str) -> Vec<u8> {
    json(
        "front",
        id,
        "/ws",
        &[&HANDSHAKE[..], &[header]].concat(),
        body,
    )
}

/// A frame in the headers of its handshake, as fronts send it.
fn frame(id: u32, flags: &str, payload: &str) -> Vec<u8> {
    let mut headers = HANDSHAKE.to_vec();
    headers[0] = ("METHOD", "WEBSOCKET");
    headers.push(("FLAGS", flags));
    json("front", id, "/ws", &headers, payload)
}

#[test]
fn a_handshake_is_accepted_with_the_headers_of_a_101() {
    let front = Front::new();
    let handler = run(front.options(), async |mut connection| {
        let Event::WebSocketHandshake(request) = connection.recv().await.unwrap().into_event()
        else {
            panic!("no handshake");
        };
        let offered: Vec<_> = request.websocket_protocols().collect();
        assert_eq!(offered, ["chat", "superchat"]);
        connection
            .reply_handshake(&request, Some(offered[1]), &[("X-A", "b")])
            .await
            .unwrap();
        let error = connection
            .reply_handshake(&request, None, &[("X-A", "b\r\nSet-Cookie: c")])
            .await;
        assert!(matches!(error, Err(ReplyError::Http(_))), "{error:?}");
        // Neither what is none nor what a client could have invented on a Mongrel2.
        for _ in 0..2 {
            let other = connection.recv().await.unwrap();
            let error = connection.reply_handshake(&other, None, &[]).await;
            assert!(matches!(error, Err(ReplyError::NoHandshake)), "{error:?}");
        }
        connection.finish().await;
    });
    front.push(&handshake(
        7,
        ("sec-websocket-protocol", "chat, superchat"),
        ACCEPT,
    ));
    assert_eq!(
        front.reply(),
        format!("front 1:7, {ACCEPTED}Sec-WebSocket-Protocol: superchat\r\nX-A: b\r\n\r\n")
    );
    front.push(&get(8));
    front.push(&handshake(
        9,
        ("x", "y"),
        "3pPLMBiTxaQ9kYGzz\r\nX: y\r\nK+xOo",
    ));
    end(handler);
}

#[test]
fn frames_are_typed_events() {
    let front = Front::new();
    let handler = run(front.options(), async |mut connection| {
        let mut frames = Vec::new();
        for _ in 0..6 {
            let Event::WebSocketFrame(frame) = connection.recv().await.unwrap().into_event() else {
                panic!("no frame");
            };
            frames.push(frame);
        }
        let other = connection.recv().await.unwrap().into_event();
        assert!(matches!(other, Event::Other(_)), "{other:?}");
        let opcodes: Vec<_> = frames.iter().map(Frame::opcode).collect();
        let expect = [
            Opcode::Text,
            Opcode::Binary,
            Opcode::Text,
            Opcode::Close,
            Opcode::Close,
            Opcode::Pong,
        ];
        assert_eq!(opcodes, expect);
        assert_eq!(
            (frames[0].text(), frames[0].close_code()),
            (Some("grüß"), None)
        );
        assert_eq!(
            (frames[1].text(), &frames[1].payload()[..]),
            (None, &b"\x01"[..])
        );
        assert_eq!((frames[2].flags(), frames[2].conn_id), (0xc1, ConnId(3)));
        assert_eq!(frames[3].close_code(), Some((3137, "bye")));
        assert_eq!(
            (frames[4].close_code(), frames[4].payload().len()),
            (None, 0)
        );
        assert_eq!(frames[5].path, "/ws");
        assert_eq!(frames[5].headers.first("host"), Some(&b"a"[..]));
        assert_eq!(frames[0].client().conn_id(), ConnId(1));
    });
    front.push(&frame(1, "0x81", "grüß"));
    front.push(&frame(2, "0x82", "\x01"));
    front.push(&frame(3, "0xC1", "x"));
    front.push(&frame(4, "0x88", "\x0c\x41bye"));
    front.push(&tnetstring(
        "front",
        5,
        "/ws",
        &[("METHOD", "WEBSOCKET"), ("FLAGS", "0x88")],
        "",
    ));
    front.push(&frame(6, "0x8A", ""));
    // Mongrel2 passes on opcodes that nobody has defined.
    front.push(&frame(7, "0x83", ""));
    end(handler);
}

#[test]
fn frames_are_sent_to_one_client_and_to_many() {
    let front = Front::new();
    let handler = run(front.options(), async |mut connection| {
        let request = connection.recv().await.unwrap();
        let client = request.client();
        connection
            .reply_websocket(&request, "hello", Opcode::Text)
            .await
            .unwrap();
        let medium = "m".repeat(300);
        client
            .send_websocket(&medium, Opcode::Binary)
            .await
            .unwrap();
        let ids: Vec<ConnId> = (1..=150).map(ConnId).collect();
        connection
            .deliver_websocket("front", &ids, "all", Opcode::Text)
            .await
            .unwrap();
        let long = connection
            .reply_websocket(&request, [0; 126], Opcode::Ping)
            .await;
        assert!(
            matches!(long, Err(ReplyError::ControlTooLong { bytes: 126 })),
            "{long:?}"
        );
        connection
            .close_websocket(&request, 3137, "bye")
            .await
            .unwrap();
        client.close_websocket(1005, "").await.unwrap();
        connection.finish().await;
    });
    front.push(&frame(1, "0x81", ""));
    assert_eq!(front.reply(), "front 1:1, \u{fffd}\x05hello");
    assert_eq!(
        front.reply(),
        format!("front 1:1, \u{fffd}\x7e\x01\x2c{}", "m".repeat(300))
    );
    for ids in [1..101, 101..151] {
        let ids: Vec<_> = ids.map(|id: u32| id.to_string()).collect();
        let ids = ids.join(" ");
        assert_eq!(
            front.reply(),
            format!("front {}:{ids}, \u{fffd}\x03all", ids.len())
        );
    }
    assert_eq!(front.reply(), "front 1:1, \u{fffd}\x05\x0c\x41bye");
    assert_eq!(front.reply(), "front 1:1, \u{fffd}\0");
    end(handler);
}

#[test]
fn echo_speaks_websocket() {
    let front = Front::new();
    let echo = Program::run("echo", &front, &[]);
    front.push(&handshake(1, ("sec-websocket-protocol", "a, b"), ACCEPT));
    assert_eq!(
        front.reply(),
        format!("front 1:1, {ACCEPTED}Sec-WebSocket-Protocol: a\r\n\r\n")
    );
    for (flags, payload, reply) in [
        ("0x81", "text", "\u{fffd}\x04text"),
        ("0x82", "", "\u{fffd}\0"),
        ("0x89", "are you there", "\u{fffd}\x0dare you there"),
    ] {
        front.push(&frame(1, flags, payload));
        assert_eq!(front.reply(), format!("front 1:1, {reply}"));
    }
    // A pong wants no answer: the next reply is to what follows it.
    front.push(&frame(1, "0x8A", "pong"));
    for (id, payload, reply) in [
        (1, "\x0c\x41bye", "\u{fffd}\x02\x0c\x41"),
        (2, "", "\u{fffd}\0"),
        // Half a code, as Mongrel2 passes it on: 1002.
        (3, "\x03", "\u{fffd}\x02\x03\u{fffd}"),
    ] {
        front.push(&frame(id, "0x88", payload));
        assert_eq!(front.reply(), format!("front 1:{id}, {reply}"));
        assert_eq!(front.reply(), format!("front 1:{id}, "), "the end follows");
    }
    echo.signal("TERM");
    assert_eq!(echo.wait().0, Some(0));
}
