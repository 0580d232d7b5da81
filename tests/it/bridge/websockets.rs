//! WebSocket through to a backend and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lurcher::websocket::handshake::accept;

use super::{Backend, QUIET, asks, body, head, says, with_backend};
use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::servers::{Kind, Server};

const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat, other\r\n\
                         Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

/// A client and a backend that speak WebSocket with each other.
fn open(server: &Server, backend: &Backend) -> (Client, Client) {
    let mut client = asks(server, HANDSHAKE);
    let mut connection = backend.accept();
    let head = head(&mut connection);
    assert!(
        head.starts_with("GET /chat HTTP/1.1\nconnection: Upgrade\n"),
        "{head}"
    );
    assert!(
        head.contains("\nupgrade: websocket\n") && !head.contains("extensions"),
        "{head}"
    );
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("sec-websocket-key: "))
        .expect("a key");
    let accept = String::from_utf8(accept(key.as_bytes()).to_vec()).unwrap();
    says(
        &mut connection,
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\
             Sec-WebSocket-Protocol: chat\r\nSet-Cookie: a=b\r\n\r\n"
        ),
    );
    let answer = client.answer();
    assert_eq!(answer.status, 101);
    assert_eq!(
        answer.header("sec-websocket-accept"),
        Some(accept.as_bytes())
    );
    assert_eq!(answer.header("sec-websocket-protocol"), Some(&b"chat"[..]));
    assert_eq!(answer.header("set-cookie"), Some(&b"a=b"[..]));
    (client, connection)
}

/// A frame of a client.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [1, 2, 3, 4];
    let mut frame = vec![
        first,
        0x80 | u8::try_from(payload.len()).expect("a short one"),
    ];
    frame.extend_from_slice(&key);
    frame.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

/// The next frame at the backend: its first byte, and its payload without the mask.
fn frame(connection: &mut Client) -> (u8, Vec<u8>) {
    let start = body(connection, 6);
    assert!(start[1] & 0x80 != 0, "clients mask");
    let payload = body(connection, usize::from(start[1] & 0x7f));
    let payload = payload.iter().zip(start[2..].iter().cycle());
    (start[0], payload.map(|(byte, key)| byte ^ key).collect())
}

#[test]
fn messages_pass_both_ways_and_either_side_ends_it() {
    with_backend("", &[], |server, backend, _| {
        let (mut client, mut connection) = open(server, backend);
        client.send(&masked(0x81, b"one")).unwrap();
        client.send(&masked(0x82, b"two")).unwrap();
        assert_eq!(frame(&mut connection), (0x81, b"one".to_vec()));
        assert_eq!(frame(&mut connection), (0x82, b"two".to_vec()));
        says(&mut connection, b"\x81\x05there\x89\x02hi");
        assert_eq!(client.upto(b"hi"), b"\x81\x05there\x89\x02hi");
        client.send(&masked(0x8a, b"hi")).unwrap();
        assert_eq!(frame(&mut connection), (0x8a, b"hi".to_vec()));
        // The client closes, the backend agrees.
        client.send(&masked(0x88, &[3, 232])).unwrap();
        assert_eq!(frame(&mut connection), (0x88, vec![3, 232]));
        says(&mut connection, b"\x88\x02\x03\xe8");
        drop(connection);
        assert_eq!(client.rest(), b"\x88\x02\x03\xe8");
        // The client just goes.
        let (client, mut connection) = open(server, backend);
        drop(client);
        connection.rest();
        // The backend just goes.
        let (mut client, connection) = open(server, backend);
        drop(connection);
        client.rest();
    });
}

#[test]
fn a_backend_that_refuses_is_heard_and_one_that_lies_is_502() {
    with_backend("", &[], |server, backend, _| {
        let mut client = asks(server, HANDSHAKE);
        let mut connection = backend.accept();
        head(&mut connection);
        says(
            &mut connection,
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nX-Why: so\r\n\r\nno",
        );
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_slice()), (403, &b"no"[..]));
        assert_eq!(answer.header("x-why"), Some(&b"so"[..]));
        for lie in [
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
            "",
        ] {
            let mut client = asks(server, HANDSHAKE);
            let mut connection = backend.accept();
            head(&mut connection);
            says(&mut connection, lie);
            drop(connection);
            assert_eq!(client.answer().status, 502);
        }
    });
}

#[test]
fn stopping_tells_both_ends_of_a_websocket() {
    with_backend("", &[], |server, backend, program| {
        let (mut client, mut connection) = open(server, backend);
        program.signal("TERM");
        assert_eq!(frame(&mut connection), (0x88, vec![3, 233]));
        assert!(connection.rest().is_empty());
        assert_eq!(client.rest(), b"\x88\x02\x03\xe9");
        assert!(program.ended().success(), "{program}");
    });
}

#[test]
fn a_client_that_reads_slowly_gets_everything_and_the_backend_waits() {
    const FRAME: usize = 60_000;
    const FRAMES: usize = 400;
    let reads_slowly = |server: &Server, backend: &Backend, _: &mut Program| {
        let (mut client, mut connection) = open(server, backend);
        let written = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&written);
        let writer = std::thread::spawn(move || {
            for number in 0..FRAMES {
                let mut frame = vec![0x82, 0x7e];
                frame.extend_from_slice(&u16::try_from(FRAME).unwrap().to_be_bytes());
                frame.resize(4 + FRAME, u8::try_from(number % 251).unwrap());
                says(&mut connection, &frame);
                counted.fetch_add(1, Ordering::Relaxed);
            }
            says(&mut connection, b"\x88\x02\x03\xe8");
            connection.rest();
        });
        // It is slowed down while its client reads nothing.
        let mut before = usize::MAX;
        while written.load(Ordering::Relaxed) != before {
            before = written.load(Ordering::Relaxed);
            std::thread::sleep(QUIET);
        }
        assert!(before < FRAMES, "{before}");
        for number in 0..FRAMES {
            let frame = body(&mut client, 4 + FRAME);
            assert_eq!(frame[..2], [0x82, 0x7e], "frame {number}");
            assert!(
                frame[4..]
                    .iter()
                    .all(|byte| usize::from(*byte) == number % 251)
            );
        }
        assert_eq!(body(&mut client, 4), b"\x88\x02\x03\xe8");
        drop(client);
        writer.join().unwrap();
    };
    with_backend("", &[], |server, backend, program| {
        // A Mongrel2 does not say what its clients take, unless it is told to.
        if server.kind == Kind::Lurcher {
            reads_slowly(server, backend, program);
        }
    });
    with_backend(", 'download.flow_control': 1", &[], reads_slowly);
}

#[test]
fn a_backend_that_reads_nothing_costs_its_client_the_websocket() {
    with_backend("", &[], |server, backend, program| {
        let (mut client, connection) = open(server, backend);
        // More than is held for it, and than the system holds.
        let mut frame = vec![0x82, 0xff];
        frame.extend_from_slice(&60_000_u64.to_be_bytes());
        frame.resize(14 + 60_000, 0);
        for _ in 0..600 {
            if client.send(&frame).is_err() {
                break;
            }
        }
        let last = client.rest();
        assert!(
            last.is_empty() || last == b"\x88\x02\x03\xf5",
            "{}",
            last.escape_ascii()
        );
        drop(connection);
        program.signal("TERM");
        assert!(program.ended().success(), "{program}");
    });
}
