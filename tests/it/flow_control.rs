//! `download.flow_control`: handlers are told what their clients have taken, and those that send more than allowed lose them.

use bytes::Bytes;
use lurcher::wire::request::{Kind, Request};

use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::front::Front;
use crate::support::peer::{Peer, Replies};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn got(peer: &Peer) -> Request {
    let message = peer.recv(PATIENCE).expect("a message");
    Request::decode(Bytes::from(message)).expect("a message")
}

/// Takes notices until they speak of so many bytes.
fn credited(peer: &Peer, mut bytes: u64) {
    while bytes > 0 {
        let notice = got(peer);
        let Kind::Credits(taken) = notice.kind() else {
            panic!("no credits: {notice:?}");
        };
        bytes = bytes.checked_sub(taken).expect("not more than was sent");
    }
}

#[test]
fn every_byte_that_a_client_takes_is_told_and_too_many_at_once_end_its_connection() {
    let front = Front::start(", 'download.flow_control': 1");
    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    peer.joined();
    let mut client = Client::connect(front.address);
    client.send(GET).unwrap();
    let request = got(&peer);
    assert_eq!(
        request.headers.first("DOWNLOAD_CREDITS"),
        Some(&b"102400"[..])
    );
    let id = request.conn_id.0.to_string();
    let block = vec![b'x'; 50_000];
    let reply = |bytes: &[u8]| peer.reply("app-ident", &id, bytes);
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n";
    reply(head);
    credited(&peer, head.len() as u64);
    for _ in 0..3 {
        reply(&block);
        reply(&block);
        credited(&peer, 100_000);
    }
    assert_eq!(client.answer().body.len(), 300_000);
    client.send(GET).unwrap();
    let again = got(&peer);
    assert_eq!(again.kind(), Kind::Http);
    assert!(!again.headers.contains("DOWNLOAD_CREDITS"));
    // Far more than the client, which does not read, and the kernel's buffers take.
    reply(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n");
    for _ in 0..400 {
        reply(&block);
    }
    loop {
        match got(&peer).kind() {
            Kind::Credits(_) => {}
            Kind::Disconnect => break,
            other => panic!("{other:?}"),
        }
    }
}
