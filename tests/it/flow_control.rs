//! `download.flow_control`: handlers are told what their clients have taken, and those that send more than allowed lose them.

use bytes::Bytes;
use lurcher::wire::request::{Kind, Request};

use crate::support::client::Client;
use crate::support::front::Front;
use crate::support::peer::{Peer, Replies};
use crate::support::{PATIENCE, free_port};

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

/// Bytes of a command that asks to be told what is written, having sent so much.
fn flow(id: u32, sent: usize) -> String {
    let sent = sent.to_string();
    let dict = format!("4:flow,5:65536#4:sent,{}:{sent}#", sent.len());
    let list = format!("3:ctl,{}:{dict}}}", dict.len());
    let id = id.to_string();
    format!("app-ident {}:X {id}, {}:{list}]", id.len() + 2, list.len())
}

/// Whoever asks how much is written is told, and not the handler of the request before or behind it on the same connection.
#[test]
fn a_window_is_its_askers_and_ends_with_the_response() {
    let [send, recv] = ["send", "recv"].map(|_| format!("tcp://127.0.0.1:{}", free_port()));
    let front = Front::routed(
        "",
        &format!(
            "'/': app, '/other/': Handler(send_spec='{send}', send_ident='other-ident', recv_spec='{recv}', recv_ident='')"
        ),
    );
    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    let other = Peer::connect(&send, &recv, Replies::Xpub);
    peer.joined();
    other.joined();
    let mut client = Client::connect(front.address);
    let ask = |client: &mut Client, path: &str, from: &Peer| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.send(head.as_bytes()).unwrap();
        let request = got(from);
        assert_eq!(request.kind(), Kind::Http, "{request:?}");
        request.conn_id.0
    };
    let small = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let told = |peer: &Peer, sent: usize| {
        let notice = got(peer);
        assert_eq!(
            notice.flow().map(|flow| flow.sent),
            Some(sent as u64),
            "{notice:?}"
        );
    };
    let id = ask(&mut client, "/", &peer);
    peer.reply("app-ident", &id.to_string(), small);
    assert_eq!(client.answer().body, b"ok");
    // Behind the end of its response.
    peer.send(flow(id, small.len()).as_bytes());
    told(&peer, small.len());
    // Before the beginning: the last handler that the connection had is still the first one.
    let again = ask(&mut client, "/other/", &other);
    assert_eq!(again, id);
    other.send(flow(id, 0).as_bytes());
    told(&other, 0);
    other.reply("other-ident", &id.to_string(), small);
    // Now it is the first one's again, which has not asked this time.
    ask(&mut client, "/", &peer);
    let mut large = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n".to_vec();
    large.resize(large.len() + 200_000, b'x');
    peer.reply("app-ident", &id.to_string(), &large);
    // Nor does a question of another make it the other's.
    ask(&mut client, "/", &peer);
    peer.send(flow(id, 0).as_bytes());
    told(&peer, 0);
    other.send(flow(id, 0).as_bytes());
    // A client that is not there: its end is told when what was sent before has been looked at.
    other.reply("other-ident", &id.wrapping_sub(1).to_string(), b"x");
    assert_eq!(got(&other).kind(), Kind::Disconnect);
    let (some, rest) = large.split_at(100_000);
    peer.reply("app-ident", &id.to_string(), some);
    // All but less than a quarter of the window.
    while got(&peer)
        .flow()
        .is_none_or(|flow| flow.sent <= 100_000 - 65_536 / 4)
    {}
    peer.reply("app-ident", &id.to_string(), rest);
    ask(&mut client, "/other/", &other);
}
