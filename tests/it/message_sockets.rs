//! Message sockets, as Flash programs and their handlers know them, mixed with HTTP on one connection.

use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::support::client::Client;
use crate::support::front::{Front, conf};
use crate::support::handler::{ByHand, QUIET};
use crate::support::peer::{Peer, Replies};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

fn send(client: &mut Client, bytes: impl AsRef<[u8]>) {
    client.send(bytes.as_ref()).expect("send");
}

/// Reads until so many bytes are here, or the end.
fn read(client: &mut Client, count: usize) -> String {
    let end = Instant::now() + PATIENCE;
    while client.bytes().len() < count && !client.ended() && Instant::now() < end {
        client.read_some(PATIENCE);
    }
    String::from_utf8_lossy(client.bytes()).into_owned()
}

/// A front whose `@chat`, `<chat` and `/` go to the handler, and `@proxy` to a proxy.
fn start(settings: &str) -> Front {
    Front::routed(
        settings,
        "'/': app, '@chat': app, '<chat': app, '@proxy': Proxy(addr='127.0.0.1', port=1)",
    )
}

#[test]
fn messages_and_requests_take_turns_on_one_connection() {
    let front = start("");
    let handler = ByHand::of(&front);
    let mut client = Client::connect(front.address);
    let all = [
        &b"@chat/room {\"a\":1}\0"[..],
        b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"<chat to=\"all\">hi</chat>\0",
        b"@chat {\"type\":\"ping\"}\0",
        b"@chat {\"b\":2}\0",
    ]
    .concat();
    // Cut anywhere, they are the same.
    for byte in &all {
        send(&mut client, [*byte]);
    }
    let json = handler.got();
    assert_eq!(
        (json.path.as_str(), json.body()),
        ("@chat/room", &b"{\"a\":1}"[..])
    );
    assert!(json.has(r#""METHOD":"JSON""#) && json.has(r#""PATTERN":"@chat""#));
    assert!(!json.has("VERSION") && !json.has("URI"), "{json:?}");
    let request = handler.got();
    assert_eq!((request.path.as_str(), &request.id), ("/page", &json.id));
    // What follows a request waits for its response.
    handler.told_nothing();
    handler.reply(&request.id, HELLO);
    assert_eq!(client.answer().body, b"hello");
    let xml = handler.got();
    assert_eq!(xml.body(), b"<chat to=\"all\">hi</chat>");
    assert!(
        xml.has(r#""METHOD":"XML""#) && xml.path == "<chat",
        "{xml:?}"
    );
    assert_eq!(handler.got().body(), b"{\"b\":2}");
    // Replies come when they like, in any number, in base64.
    for text in ["one", "two\0", "HTTP/1.1 three"] {
        handler.reply(&json.id, text.as_bytes());
    }
    let expected = ["one", "two", "HTTP/1.1 three"].map(|text| BASE64_STANDARD.encode(text));
    let expected = expected.concat();
    assert_eq!(read(&mut client, expected.len()), expected);
    handler.reply(&json.id, b"");
    read(&mut client, usize::MAX);
    assert!(client.ended());
    handler.told_nothing();
    // Messages are not in the access log.
    let log = front.access_log();
    let end = Instant::now() + PATIENCE;
    let text = loop {
        let text = std::fs::read_to_string(&log).expect("the log");
        if text.contains("/page") {
            break text;
        }
        assert!(Instant::now() < end, "the request is in the access log");
    };
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn what_is_no_message_is_refused() {
    let front = start(", 'limits.head_bytes': 1000, 'limits.head_timeout': 1");
    let handler = ByHand::of(&front);
    let long = format!("@chat {{\"a\":\"{}\"}}\0", "x".repeat(1000));
    for (bytes, status) in [
        ("@chat [1]\0", 400),
        ("@chat?x {}\0", 400),
        ("@chat  {}\0", 400),
        ("<chat", 408),
        ("@chat {\"a\":1}", 408),
        (&long, 400),
        ("@unknown {}\0", 404),
        ("<unknown/>\0", 404),
    ] {
        let mut client = Client::connect(front.address);
        send(&mut client, bytes);
        assert_eq!(client.answer().status, status, "{bytes:?}");
        read(&mut client, usize::MAX);
        assert!(client.ended(), "{bytes:?}");
    }
    // A proxy takes none: the end, without an answer.
    let mut client = Client::connect(front.address);
    send(&mut client, "@proxy {}\0");
    assert_eq!(read(&mut client, usize::MAX), "");
    assert!(client.ended());
    handler.told_nothing();
    // A connection that a handler knows is told of.
    let mut client = Client::connect(front.address);
    send(&mut client, "@chat {}\0");
    let got = handler.got();
    send(&mut client, "@unknown {}\0");
    assert_eq!(client.answer().status, 404);
    handler.told(&got.id);
}

#[test]
fn messages_wait_for_a_handler_in_their_order() {
    let front = start("");
    let mut client = Client::connect(front.address);
    for number in 0..300 {
        send(&mut client, format!("@chat {{\"n\":{number}}}\0"));
    }
    let handler = ByHand::of(&front);
    let mut id = String::new();
    for number in 0..300 {
        let got = handler.got();
        assert_eq!(got.body(), format!("{{\"n\":{number}}}").as_bytes());
        id = got.id;
    }
    // Another handler takes over.
    drop(handler);
    let handler = ByHand::of(&front);
    send(&mut client, "@chat {\"n\":300}\0");
    let got = handler.got();
    assert_eq!((got.body(), &got.id), (&b"{\"n\":300}"[..], &id));
    handler.reply(&id, b"ok");
    assert_eq!(read(&mut client, 4), "b2s=");
}

#[test]
fn a_message_that_finds_no_handler_in_time_is_answered_503() {
    let front = start(", 'limits.handler_wait': 1");
    let mut client = Client::connect(front.address);
    send(&mut client, "@chat {}\0@chat {}\0");
    assert_eq!(client.answer().status, 503);
    read(&mut client, usize::MAX);
    assert!(client.ended());
}

#[test]
fn raw_payloads_are_not_encoded_and_credits_count_what_is_written() {
    let directory = scratch();
    let [send_spec, recv] =
        [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    let file = conf(
        directory.path(),
        0,
        &send_spec,
        &recv,
        ", 'download.flow_control': 1",
    );
    let text = std::fs::read_to_string(&file).expect("the configuration");
    for (raw, written, credits) in [(0, "aGVsbG8=", "8"), (1, "hello\0", "6")] {
        let text = text
            .replace(
                "recv_ident=''",
                &format!("recv_ident='', raw_payload={raw}"),
            )
            .replace("{'/': app}", "{'@chat': app}");
        std::fs::write(&file, text).expect("write");
        let mut program = Program::lurcher(&["serve", "main.conf"], directory.path());
        let address = program.listening();
        let peer = Peer::connect(&send_spec, &recv, Replies::Xpub);
        peer.subscribed();
        let handler = ByHand { peer };
        let mut client = Client::connect(address);
        send(&mut client, "@chat {}\0");
        let got = handler.got();
        assert!(got.has(r#""DOWNLOAD_CREDITS":"102400""#), "{got:?}");
        handler.reply(&got.id, b"hello\0");
        assert_eq!(read(&mut client, written.len()), written);
        let notice = handler.got();
        let credits = format!(r#""DOWNLOAD_CREDITS":"{credits}""#);
        assert!(notice.path == "@*" && notice.has(&credits), "{notice:?}");
        assert!(client.bytes().len() == written.len() && !client.read_some(QUIET));
    }
}
