//! Behind balancers: the PROXY protocol, X-Forwarded-For and Forwarded, believed from those that are named and nobody else.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::{connect, handler, serve, trusting};
use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::front::Front;
use crate::support::tls::Authority;

const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";

/// Version 2 with an extension behind the addresses.
fn binary() -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x12".to_vec();
    bytes.extend(Ipv4Addr::new(192, 0, 2, 7).octets());
    bytes.extend(Ipv4Addr::new(198, 51, 100, 1).octets());
    bytes.extend([0x12, 0x67, 1, 0xbb]);
    bytes.extend([4, 0, 3, b'a', b'b', b'c']);
    bytes
}

const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

fn get(fields: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
}

fn has(message: &str, key: &str, value: &str) -> bool {
    message.contains(&format!(r#""{key}":"{value}""#))
}

/// Waits until the access log, which has a writer of its own, says this.
fn logged(front: &Front, text: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let log = fs::read_to_string(front.directory().join("access.log")).expect("the access log");
        if log.contains(text) {
            return;
        }
        assert!(Instant::now() < end, "{log}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_proxy_protocol_tells_the_clients_address() {
    let front = Front::start(", 'proxy_protocol.from': '127.0.0.0/8'");
    let peer = handler(&front);
    let whole = [binary(), get("")].concat();
    for (bytes, address) in [
        ([LINE, &get("")].concat(), "192.0.2.7"),
        (whole.clone(), "192.0.2.7"),
        (
            [b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n", &*get("")].concat(),
            "2001:db8::7",
        ),
        ([LOCAL, &get("")].concat(), "127.0.0.1"),
        ([b"PROXY UNKNOWN\r\n", &*get("")].concat(), "127.0.0.1"),
    ] {
        let mut client = Client::connect(front.address);
        client.send(&bytes).unwrap();
        let message = serve(&peer);
        assert!(has(&message, "REMOTE_ADDR", address), "{message}");
        assert!(has(&message, "x-forwarded-for", address), "{message}");
        assert_eq!(client.answer().status, 200);
    }
    logged(&front, "9:192.0.2.7,4:4711#");
    // Cut everywhere.
    for bytes in [[LINE, &get("")].concat(), whole] {
        let mut client = Client::connect(front.address);
        for byte in &bytes {
            client.send(&[*byte]).unwrap();
        }
        assert!(has(&serve(&peer), "REMOTE_ADDR", "192.0.2.7"));
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn who_must_send_the_proxy_protocol_and_does_not_is_closed() {
    let front = Front::start(", 'proxy_protocol.from': '127.0.0.1', 'limits.head_timeout': 2");
    let long = [b"PROXY UNKNOWN ", "x".repeat(200).as_bytes(), b"\r\n"].concat();
    for bytes in [
        &get("")[..],
        b"PROXY TCP4 nonsense\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"\r\n\r\n\0\r\nQUIT\n\x41\x11\x00\x0c",
        b"\r\n\r\n\0\r\nQUIX",
        &long,
        // In time, or not at all.
        b"PROXY TCP4 192.0.2.7",
        b"",
    ] {
        let mut client = Client::connect(front.address);
        client.send(bytes).unwrap();
        while !client.ended() {
            assert!(client.read_some(PATIENCE), "not closed: {bytes:?}");
        }
        assert_eq!(client.bytes(), b"", "{bytes:?}");
    }
}

#[test]
fn the_proxy_protocol_of_others_is_no_request() {
    let front = Front::start(", 'proxy_protocol.from': '192.0.2.0/24'");
    for bytes in [[LINE, &get("")].concat(), [binary(), get("")].concat()] {
        let mut client = Client::connect(front.address);
        client.send(&bytes).unwrap();
        assert_eq!(client.answer().status, 400);
    }
    let peer = handler(&front);
    let mut client = Client::connect(front.address);
    client.send(&get("")).unwrap();
    assert!(has(&serve(&peer), "REMOTE_ADDR", "127.0.0.1"));
}

#[test]
fn the_proxy_protocol_comes_before_tls() {
    let authority = Authority::new();
    let front = Front::secure(", 'proxy_protocol.from': '127.0.0.1'", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let peer = handler(&front);
    for header in [LINE.to_vec(), binary()] {
        let mut client = Client::connect(front.address);
        client.send(&header).unwrap();
        let mut client = client.secure(&trusting(&authority), "localhost").unwrap();
        client.send(&get("")).unwrap();
        let message = serve(&peer);
        assert!(has(&message, "REMOTE_ADDR", "192.0.2.7"), "{message}");
        assert!(has(&message, "URL_SCHEME", "https"), "{message}");
        assert_eq!(client.answer().status, 200);
    }
    // Plain HTTP behind it is told what it is.
    let mut client = Client::connect(front.address);
    client.send(&[LINE, &get("")].concat()).unwrap();
    assert_eq!(client.answer().status, 400);
}

#[test]
fn x_forwarded_for_is_believed_from_named_peers() {
    let front = Front::start(", 'forwarded.from': '127.0.0.1 10.0.0.0/8'");
    let peer = handler(&front);
    let mut client = Client::connect(front.address);
    for (fields, address, scheme) in [
        ("X-Forwarded-For: 192.0.2.9\r\n", "192.0.2.9", "http"),
        (
            "X-Forwarded-For: 6.6.6.6, 192.0.2.9, 10.1.1.1\r\nX-Forwarded-Proto: https\r\n",
            "192.0.2.9",
            "https",
        ),
        (
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.9\r\n",
            "192.0.2.9",
            "http",
        ),
        ("X-Forwarded-For: nonsense\r\n", "127.0.0.1", "http"),
        // The other header is the client's own.
        (
            "Forwarded: for=6.6.6.6;proto=https\r\n",
            "127.0.0.1",
            "http",
        ),
        ("", "127.0.0.1", "http"),
    ] {
        client.send(&get(fields)).unwrap();
        let message = serve(&peer);
        assert!(has(&message, "REMOTE_ADDR", address), "{fields}{message}");
        assert!(
            has(&message, "x-forwarded-for", address),
            "{fields}{message}"
        );
        assert!(has(&message, "URL_SCHEME", scheme), "{fields}{message}");
        assert_eq!(client.answer().status, 200);
    }
    logged(&front, "9:192.0.2.9,1:0#");
}

#[test]
fn forwarded_is_believed_where_it_is_chosen_and_no_clobber_xff_leaves_the_list_alone() {
    let front = Front::start(
        ", 'forwarded.from': '127.0.0.1', 'forwarded.header': 'forwarded', 'no_clobber_xff': 1",
    );
    let peer = handler(&front);
    let mut client = Client::connect(front.address);
    client
        .send(&get(
            "Forwarded: for=\"[2001:db8::9]:80\";proto=https\r\nX-Forwarded-For: 6.6.6.6\r\n",
        ))
        .unwrap();
    let message = serve(&peer);
    assert!(has(&message, "REMOTE_ADDR", "2001:db8::9"), "{message}");
    assert!(has(&message, "x-forwarded-for", "6.6.6.6"), "{message}");
    assert!(has(&message, "URL_SCHEME", "https"), "{message}");
}

#[test]
fn nobody_else_is_believed() {
    let front = Front::start(", 'forwarded.from': '192.0.2.0/24'");
    let peer = handler(&front);
    let mut client = Client::connect(front.address);
    client
        .send(&get(
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nForwarded: for=6.6.6.6\r\n",
        ))
        .unwrap();
    let message = serve(&peer);
    assert!(has(&message, "REMOTE_ADDR", "127.0.0.1"), "{message}");
    assert!(has(&message, "x-forwarded-for", "127.0.0.1"), "{message}");
    assert!(has(&message, "URL_SCHEME", "http"), "{message}");
}

#[test]
fn the_balancers_word_counts_over_tls_too() {
    let authority = Authority::new();
    let front = Front::secure(", 'forwarded.from': '127.0.0.1'", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let peer = handler(&front);
    let mut client = connect(&front, &trusting(&authority), "localhost");
    // The balancer speaks TLS with us, its client did not with it.
    client
        .send(&get(
            "X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Proto: http\r\n",
        ))
        .unwrap();
    let message = serve(&peer);
    assert!(has(&message, "REMOTE_ADDR", "192.0.2.9"), "{message}");
    assert!(has(&message, "URL_SCHEME", "http"), "{message}");
}
