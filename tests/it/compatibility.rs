//! What is better here than in Mongrel2 and in none of its recordings: each line of docs/COMPATIBILITY.md's last table.

use bytes::Bytes;
use lurcher::wire::request::Request;

use crate::support::client::{Asked, Client};
use crate::support::front::Front;
use crate::support::peer::{Peer, Replies, address};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Sends a request to a front of its own, answers it, and gives the handler's message.
fn message_for(request: &[u8]) -> Request {
    let front = Front::start("");
    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    peer.joined();
    let mut client = Client::connect(front.address);
    client.send(request).unwrap();
    let message = peer.recv(PATIENCE).expect("the request");
    let (sender, id, _, _) = address(&message);
    peer.reply(sender, id, OK);
    assert_eq!(client.answer().status, 200);
    drop(client);
    let notice = peer.recv(PATIENCE).expect("the notice");
    assert_eq!(address(&notice).2, "@*");
    Request::decode(Bytes::from(message)).unwrap()
}

#[test]
fn clients_cannot_announce_uploads() {
    let request = message_for(
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Mongrel2-Upload-Start: /etc/passwd\r\nx-mongrel2-upload-done: /etc/passwd\r\nX-Mongrel: 1\r\n\r\n",
    );
    assert!(!request.headers.contains("x-mongrel2-upload-start"));
    assert!(!request.headers.contains("x-mongrel2-upload-done"));
    assert_eq!(request.headers.first("x-mongrel"), Some(&b"1"[..]));
}

#[test]
fn a_host_is_found_whatever_its_case_and_also_as_an_ipv6_literal() {
    let directory = scratch();
    let here = directory.path().display();
    let ports = [free_port(), free_port()];
    let config = directory.path().join("main.conf");
    std::fs::write(
        &config,
        format!(
            "app = Handler(send_spec='tcp://127.0.0.1:{}', send_ident='app', recv_spec='tcp://127.0.0.1:{}', recv_ident='')\n\
             main = Server(uuid='main', name='main', access_log='{here}/a.log', error_log='{here}/e.log', chroot='', pid_file='{here}/pid',\n\
             default_host='none', bind_addr='127.0.0.1', port=0, hosts=[\n\
             Host(name='none', routes={{'/none': app}}) Host(name='named', matching='example.com', routes={{'/named': app}})\n\
             Host(name='literal', matching='[::1]', routes={{'/literal': app}})])\n\
             settings = {{'server.daemonize': 0}}\nservers = [main]\n",
            ports[0], ports[1]
        ),
    )
    .unwrap();
    let mut program = Program::lurcher(&["serve", config.to_str().unwrap()], directory.path());
    let address_of_front = program.listening();
    let (send, recv) = (
        format!("tcp://127.0.0.1:{}", ports[0]),
        format!("tcp://127.0.0.1:{}", ports[1]),
    );
    let peer = Peer::connect(&send, &recv, Replies::Xpub);
    peer.joined();
    for (host, path) in [
        ("WWW.Example.COM:80", "/named"),
        ("[::1]:80", "/literal"),
        ("elsewhere", "/none"),
    ] {
        let mut client = Client::connect(address_of_front);
        client
            .send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
            .unwrap();
        let message = loop {
            let message = peer.recv(PATIENCE).expect("the request");
            if address(&message).2 != "@*" {
                break message;
            }
        };
        let (sender, id, ..) = address(&message);
        peer.reply(sender, id, OK);
        assert_eq!(client.answer().status, 200, "{host}");
    }
}

#[test]
fn a_small_chunked_body_is_delivered_whole() {
    let request = message_for(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n",
    );
    assert_eq!(request.body, &b"abcde"[..]);
}

#[test]
fn bytes_that_are_no_http_are_answered_400() {
    let front = Front::start("");
    let mut client = Client::connect(front.address);
    client
        .send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        .unwrap();
    let answer = client
        .try_answer(Asked::Other, PATIENCE)
        .expect("an answer");
    assert_eq!(answer.status, 400);
}
