//! What is no handshake, or takes too long to become one.

use std::time::Duration;

use super::{OK, connect, exchange, handler, trusting};
use crate::support::PATIENCE;
use crate::support::client::{Asked, Client};
use crate::support::front::Front;
use crate::support::peer::address;
use crate::support::tls::Authority;

fn front(authority: &Authority, settings: &str) -> Front {
    Front::secure(settings, |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    })
}

/// Reads until the server has closed.
fn closed(client: &mut Client) -> Vec<u8> {
    while !client.ended() {
        assert!(client.read_some(PATIENCE), "not closed");
    }
    client.bytes().to_vec()
}

#[test]
fn plain_http_is_told_in_plain_text_that_the_port_speaks_tls() {
    let authority = Authority::new();
    let front = front(&authority, "");
    for begin in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"@ping {}\0",
        b"\x80\x2e\x01\x00\x02",
        b"P",
    ] {
        let mut client = Client::connect(front.address);
        client.send(begin).unwrap();
        let answer = client.answer();
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, 400);
        assert!(text.contains("TLS"), "{text}");
        assert_eq!(answer.header("connection"), Some(&b"close"[..]));
        assert_eq!(closed(&mut client), b"");
    }
}

#[test]
fn garbage_in_a_handshake_ends_with_an_alert_and_leaves_the_others_alone() {
    let authority = Authority::new();
    let front = front(&authority, "");
    let peer = handler(&front);
    let mut other = connect(&front, &trusting(&authority), "localhost");
    for begin in [
        // A record that is too long, one of an unknown kind inside, an alert, a hello that is none.
        &b"\x16\x03\x01\xff\xff\x01\x00\xff\xff"[..],
        b"\x16\x03\x01\x00\x04\x99\x00\x00\x00",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x16\x03\x01\x00\x08\x01\x00\x00\x04\x03\x03\x00\x00",
    ] {
        let mut client = Client::connect(front.address);
        client.send(begin).unwrap();
        let told = closed(&mut client);
        // Content type 21: an alert. A short one.
        assert_eq!(told.first(), Some(&0x15), "{begin:?} {told:?}");
        assert!(told.len() < 64);
    }
    exchange(&mut other, &peer);
}

#[test]
fn a_handshake_has_the_time_of_a_head_and_no_more() {
    let authority = Authority::new();
    let front = front(&authority, ", 'limits.head_timeout': 1");
    let peer = handler(&front);
    let mut waiting: Vec<_> = [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"]
        .into_iter()
        .map(|begin| {
            let mut client = Client::connect(front.address);
            client.send(begin).unwrap();
            client
        })
        .collect();
    for client in &mut waiting {
        assert_eq!(closed(client), b"");
    }
    // Who is through has the time of an idle connection.
    let mut client = connect(&front, &trusting(&authority), "localhost");
    assert!(!client.read_some(Duration::from_millis(1500)) || !client.ended());
    exchange(&mut client, &peer);
}

#[test]
fn a_client_that_leaves_without_a_word_is_gone_for_its_handler() {
    let authority = Authority::new();
    let front = front(&authority, "");
    let peer = handler(&front);
    let mut client = connect(&front, &trusting(&authority), "localhost");
    exchange(&mut client, &peer);
    drop(client);
    let notice = peer.recv(PATIENCE).expect("a notice");
    assert_eq!(address(&notice).2, "@*");
    // A body that is cut short never becomes a request.
    let mut client = connect(&front, &trusting(&authority), "localhost");
    client
        .send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
        .unwrap();
    drop(client);
    assert!(peer.recv(Duration::from_millis(300)).is_none());
}

#[test]
fn handshakes_under_way_count_as_connections() {
    let authority = Authority::new();
    let front = front(
        &authority,
        ", 'limits.connections': 2, 'limits.head_timeout': 60",
    );
    let peer = handler(&front);
    let first = Client::connect(front.address);
    let _second = Client::connect(front.address);
    // The third is connected by the kernel, and waits for a place.
    let mut third = Client::connect(front.address);
    third.send(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(
        third
            .try_answer(Asked::Other, Duration::from_millis(500))
            .is_none()
    );
    drop(first);
    assert_eq!(third.answer().status, 400);
    drop(third);
    let mut client = connect(&front, &trusting(&authority), "localhost");
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let message = peer.recv(PATIENCE).expect("a request");
    let (sender, id, ..) = address(&message);
    peer.reply(sender, id, OK);
    assert_eq!(client.answer().status, 200);
}
