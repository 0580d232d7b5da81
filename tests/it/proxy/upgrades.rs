//! Switched protocols: WebSocket and others through the proxy.

use super::{HELLO, QUIET, head, pair};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn a_websocket_is_carried_both_ways_and_nothing_before_the_switch() {
    let (front, backend) = pair("");
    let mut client = front.asks(ASK);
    client.send(b"\x81\x82abcd\x09\x0b").unwrap();
    let mut connection = backend.accept();
    let got = head(&mut connection);
    assert_eq!(got.all("connection"), ["Upgrade"]);
    assert_eq!(got.all("upgrade"), ["websocket"]);
    assert_eq!(got.all("sec-websocket-key"), ["dGhlIHNhbXBsZSBub25jZQ=="]);
    assert!(connection.is_silent(QUIET), "no tunnel before the 101");
    connection.send(SWITCH).unwrap();
    connection.send(b"\x81\x05hello").unwrap();
    let switch = client.answer();
    assert_eq!(switch.status, 101);
    assert_eq!(switch.header("upgrade"), Some(&b"websocket"[..]));
    assert_eq!(switch.header("connection"), Some(&b"upgrade"[..]));
    assert_eq!(
        switch.header("sec-websocket-accept"),
        Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..])
    );
    assert_eq!(client.upto(b"hello"), b"\x81\x05hello");
    assert_eq!(connection.upto(b"\x0b"), b"\x81\x82abcd\x09\x0b");
    for round in 0..40_u8 {
        client.send(&[b'c', round, b'.']).unwrap();
        assert_eq!(connection.upto(b"."), [b'c', round, b'.']);
        connection.send(&[b'b', round, b'.']).unwrap();
        assert_eq!(client.upto(b"."), [b'b', round, b'.']);
    }
    // The client ends its direction; what the backend still says comes.
    client.send(b"last").unwrap();
    client.shutdown_write();
    assert_eq!(connection.rest(), b"last");
    connection.send(b"bye").unwrap();
    drop(connection);
    assert_eq!(client.rest(), b"bye");
}

#[test]
fn the_backends_end_is_the_clients() {
    let (front, backend) = pair("");
    let mut client = front.asks(ASK);
    let mut connection = backend.accept();
    head(&mut connection);
    connection.send(SWITCH).unwrap();
    connection.send(&vec![b'x'; 300_000]).unwrap();
    drop(connection);
    client.upto(b"\r\n\r\n");
    assert_eq!(client.rest().len(), 300_000, "all of it, then the end");
}

#[test]
fn a_client_that_vanishes_ends_the_tunnel() {
    let (front, backend) = pair("");
    let mut client = front.asks(ASK);
    let mut connection = backend.accept();
    head(&mut connection);
    connection.send(SWITCH).unwrap();
    client.upto(b"\r\n\r\n");
    drop(client);
    assert_eq!(connection.rest(), b"");
}

#[test]
fn a_refused_upgrade_is_an_ordinary_response_and_what_follows_a_request() {
    let (front, backend) = pair("");
    let mut client = front.asks(ASK);
    client
        .send(b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno")
        .unwrap();
    let answer = client.answer();
    assert_eq!((answer.status, answer.body.as_slice()), (426, &b"no"[..]));
    assert_eq!(head(&mut connection).line, "GET /next HTTP/1.1");
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
}

#[test]
fn other_protocols_are_carried_too_but_no_http_2_past_the_routes() {
    let (front, backend) = pair("");
    let mut client = front
        .asks("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade, HTTP2-Settings\r\nUpgrade: h2c, irc/7\r\nHTTP2-Settings: AAMAAABk\r\n\r\n");
    let mut connection = backend.accept();
    let got = head(&mut connection);
    assert_eq!(got.all("upgrade"), ["irc/7"]);
    assert!(got.all("http2-settings").is_empty());
    connection
        .send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: irc/7\r\n\r\nNICK")
        .unwrap();
    assert_eq!(client.answer().status, 101);
    assert_eq!(client.upto(b"NICK"), b"NICK");

    let mut client =
        front.asks("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n");
    let mut connection = backend.accept();
    let got = head(&mut connection);
    assert!(got.all("upgrade").is_empty() && got.all("connection").is_empty());
    connection.send(SWITCH).unwrap();
    assert_eq!(
        client.answer().status,
        502,
        "a switch that nobody asked for"
    );
}

#[test]
fn an_upgrade_with_a_body_is_an_ordinary_request() {
    let (front, backend) = pair("");
    let mut client = front.asks(
        "POST / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
    );
    let mut connection = backend.accept();
    assert!(head(&mut connection).all("upgrade").is_empty());
    assert_eq!(connection.upto(b"abc"), b"abc");
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
}
