//! Bodies in parts, as large as the handler's credits allow; a client whose handler gives none waits.

use std::time::Duration;

use lurcher::wire::request::{Kind, Request};

use super::{CHUNKED, HELLO, Handler, QUIET, content, ended, post, send};
use crate::support::client::Client;
use crate::support::front::Front;

fn start(settings: &str) -> (Front, Handler, Client) {
    let front = Front::start(&format!(
        ", 'limits.content_length': 100, 'upload.stream': 1{settings}"
    ));
    let handler = Handler::of(&front.send, &front.recv);
    let client = Client::connect(front.address);
    (front, handler, client)
}

/// The next message begins a streamed upload.
fn begun(handler: &Handler) -> Request {
    let got = handler.got();
    assert_eq!(got.kind(), Kind::StreamStart, "{got:?}");
    assert_eq!(got.headers.first("UPLOAD_STREAM"), Some(&b"0"[..]));
    got
}

/// The next message is a part at this offset: its bytes, and whether it is the last.
fn part(handler: &Handler, begin: &Request, at: usize) -> (Vec<u8>, bool) {
    let got = handler.got();
    assert_eq!((got.conn_id, &got.path), (begin.conn_id, &begin.path));
    assert!(!got.headers.contains("METHOD"), "{got:?}");
    match got.kind() {
        Kind::StreamPart { offset, done } if offset == at as u64 => (got.body.to_vec(), done),
        other => panic!("{other:?} instead of a part at {at}"),
    }
}

/// Everything from here on, with more credit for each part.
fn rest(handler: &Handler, begin: &Request, mut at: usize) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        handler.grant(begin, 1_000);
        let (bytes, done) = part(handler, begin, at);
        at += bytes.len();
        all.extend(bytes);
        if done {
            return all;
        }
    }
}

#[test]
fn parts_come_as_credits_allow_and_the_next_request_behind_them() {
    let (_front, handler, mut client) = start("");
    let body = content(1000);
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    send(&mut client, [post(1000).as_bytes(), &body[..30]].concat());
    let begin = begun(&handler);
    assert_eq!(begin.body, &body[..30], "what was there already");
    assert_eq!(begin.headers.first("content-length"), Some(&b"1000"[..]));
    send(&mut client, [&body[30..], next.as_bytes()].concat());
    handler.told_nothing();
    handler.grant(&begin, 7);
    assert_eq!(part(&handler, &begin, 30), (body[30..37].to_vec(), false));
    handler.told_nothing();
    assert!(rest(&handler, &begin, 37) == body[37..]);
    handler.reply(&begin, HELLO);
    assert_eq!(client.answer().body, b"hello");
    let got = handler.got();
    assert_eq!(&got.path[..], b"/next");
    handler.reply(&got, HELLO);
    client.answer();
    // Credit that was left over is not for the next upload.
    send(&mut client, post(200));
    let begin = begun(&handler);
    send(&mut client, content(200));
    handler.told_nothing();
    assert!(rest(&handler, &begin, begin.body.len()) == content(200)[begin.body.len()..]);
}

#[test]
fn a_chunked_body_comes_chunk_by_chunk_and_ends_with_an_empty_part() {
    let (_front, handler, mut client) = start("");
    send(
        &mut client,
        format!("{CHUNKED}5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n"),
    );
    let begin = begun(&handler);
    assert_eq!(begin.body, &b""[..]);
    handler.grant(&begin, 3);
    assert_eq!(part(&handler, &begin, 0), (b"hello".to_vec(), false));
    handler.told_nothing();
    handler.grant(&begin, 3);
    assert_eq!(part(&handler, &begin, 5), (b"abc".to_vec(), false));
    assert_eq!(part(&handler, &begin, 8), (Vec::new(), true));
    handler.reply(&begin, HELLO);
    client.answer();
}

#[test]
fn a_client_waits_for_credits_as_long_as_its_handler_likes_but_its_handler_not_for_it() {
    let (_front, handler, mut client) =
        start(", 'limits.body_grace': 1, 'limits.body_rate': 100000");
    send(&mut client, post(200_000));
    let begin = begun(&handler);
    send(&mut client, content(100_000));
    // Well above the grace, which is for clients that do not send.
    assert!(handler.got_within(Duration::from_millis(2500)).is_none());
    handler.grant(&begin, 1_000_000);
    let mut at = 0;
    while at < 100_000 {
        at += part(&handler, &begin, at).0.len();
    }
    // Now it is the client's turn, and it does not take it.
    assert_eq!(client.answer().status, 408);
    assert_eq!(handler.got().kind(), Kind::Disconnect);
}

#[test]
fn what_a_client_sends_without_credit_stays_with_the_client() {
    let (_front, handler, mut client) = start(", 'limits.content_length': 65536");
    let length = 64 * 1024 * 1024;
    send(&mut client, post(length));
    let begin = begun(&handler);
    let mut stream = client.stream().try_clone().expect("a second handle");
    let sending = std::thread::spawn(move || {
        let block = vec![b'x'; 1024 * 1024];
        for _ in 0..64 {
            std::io::Write::write_all(&mut stream, &block)?;
        }
        Ok::<_, std::io::Error>(())
    });
    assert!(handler.got_within(QUIET * 3).is_none());
    assert!(!sending.is_finished(), "64 MiB have gone somewhere");
    handler.grant(&begin, i64::MAX);
    let mut at = 0;
    loop {
        let (bytes, done) = part(&handler, &begin, at);
        at += bytes.len();
        if done {
            break;
        }
    }
    assert_eq!(at, length);
    sending.join().unwrap().expect("all sent");
    handler.reply(&begin, HELLO);
    client.answer();
}

#[test]
fn a_handler_ends_a_stream_by_cancelling_closing_or_an_early_answer() {
    let (front, handler, _) = start("");
    for how in ["cancel", "close", "answer"] {
        let mut client = Client::connect(front.address);
        send(&mut client, post(500_000));
        let begin = begun(&handler);
        match how {
            "cancel" => handler.cancel(&begin),
            "close" => handler.reply(&begin, b""),
            _ => handler.reply(&begin, HELLO),
        }
        if how == "answer" {
            // The rest of the body goes nowhere, and the connection lives.
            assert_eq!(client.answer().body, b"hello");
            let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
            send(&mut client, [&content(500_000), next.as_bytes()].concat());
            let got = handler.got();
            assert_eq!(&got.path[..], b"/next");
            handler.reply(&got, HELLO);
            client.answer();
        } else {
            assert_eq!(ended(&mut client), b"", "{how}");
            handler.told_nothing();
        }
    }
}

#[test]
fn a_client_that_leaves_is_told_and_a_handler_that_dies_is_502() {
    let (front, handler, mut client) = start("");
    send(&mut client, post(1000));
    let begin = begun(&handler);
    drop(client);
    handler.told(&begin);
    let mut client = Client::connect(front.address);
    send(
        &mut client,
        [post(1000).as_bytes(), &content(1000)].concat(),
    );
    let begin = begun(&handler);
    handler.grant(&begin, 10);
    let at = begin.body.len();
    assert_eq!(part(&handler, &begin, at).0.len(), 10);
    drop(handler);
    assert_eq!(client.answer().status, 502);
}

#[test]
fn before_its_first_part_a_stream_is_handed_on_and_begins_without_credit() {
    let (front, first, mut client) = start("");
    let body = content(1000);
    send(&mut client, [post(1000).as_bytes(), &body].concat());
    let begin = begun(&first);
    let second = Handler::of(&front.send, &front.recv);
    drop(first);
    let again = begun(&second);
    assert_ne!(again.conn_id, begin.conn_id);
    assert_eq!(again.body, begin.body);
    second.told_nothing();
    let at = again.body.len();
    assert!(rest(&second, &again, at) == body[at..]);
    second.reply(&again, HELLO);
    client.answer();
}
