//! Deadlines, full queues, slow and vanishing clients: what ends, who is told, and that nobody else notices.

use std::net::Shutdown;
use std::time::Duration;

use super::{HELLO, Handler, QUIET, body, closed, get, ok, send};
use crate::support::client::{Client, fetch};
use crate::support::front::Front;

#[test]
fn a_refusal_is_read_even_by_clients_that_send_all_of_a_large_body_first() {
    let front = Front::start("");
    let mut client = Client::connect(front.address);
    let size = 8 << 20;
    send(
        &mut client,
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"),
    );
    let sent = client.send(&vec![b'x'; size]);
    assert!(sent.is_ok(), "{sent:?}");
    assert_eq!(client.answer().status, 413);
}

#[test]
fn deadlines_end_what_does_not_come() {
    let front = Front::start(
        ", 'limits.head_timeout': 1, 'limits.body_grace': 1, 'limits.body_rate': 1000000, 'limits.handler_timeout': 1, \
         'limits.idle_timeout': 2",
    );
    let handler = Handler::of(&front);
    let mut head = Client::connect(front.address);
    send(&mut head, "GET / HTTP/1.1\r\nHost:");
    let mut late = Client::connect(front.address);
    send(
        &mut late,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
    );
    let mut unanswered = Client::connect(front.address);
    send(&mut unanswered, get("/slow"));
    let mut idle = Client::connect(front.address);
    let got = handler.got();
    assert_eq!(got.path, "/slow");
    assert_eq!(head.answer().status, 408);
    assert_eq!(late.answer().status, 408);
    assert_eq!(unanswered.answer().status, 504);
    closed(&mut unanswered);
    handler.told_once(&got.id);
    // Too late: it reaches nobody, and says so.
    handler.reply(&got.id, HELLO);
    handler.told_once(&got.id);
    assert_eq!(closed(&mut idle), b"");
    // A response that has begun has no deadline.
    let mut stream = Client::connect(front.address);
    send(&mut stream, get("/stream"));
    let got = handler.answer("/stream", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
    std::thread::sleep(Duration::from_millis(2500));
    handler.reply(&got.id, b"cd");
    assert_eq!(body(&stream.answer()), "abcd");
}

#[test]
fn a_client_that_comes_after_a_quiet_time_has_all_of_its_own() {
    let front = Front::start(", 'limits.idle_timeout': 2");
    let handler = Handler::of(&front);
    std::thread::sleep(Duration::from_millis(2300));
    let mut client = Client::connect(front.address);
    std::thread::sleep(Duration::from_millis(700));
    send(&mut client, get("/"));
    handler.answer("/", HELLO);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn requests_wait_for_a_handler_within_bounds() {
    let front = Front::start(", 'limits.handler_queue': 2, 'limits.handler_wait': 4");
    let mut waiting: Vec<_> = (0..2)
        .map(|number| {
            let mut client = Client::connect(front.address);
            send(&mut client, get(&format!("/{number}")));
            client
        })
        .collect();
    std::thread::sleep(QUIET);
    let refused = fetch(front.address, &get("/2"));
    assert_eq!(refused.status, 503);
    assert!(body(&refused).contains("too many requests are waiting"));
    assert!(refused.header("retry-after").is_some());
    // Who leaves makes room.
    waiting.pop();
    std::thread::sleep(QUIET);
    let mut third = Client::connect(front.address);
    send(&mut third, get("/3"));
    let handler = Handler::of(&front);
    handler.answer("/0", &ok("0"));
    handler.answer("/3", &ok("3"));
    assert_eq!(body(&waiting[0].answer()), "0");
    assert_eq!(body(&third.answer()), "3");
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_holds_up_nobody() {
    let front = Front::start(", 'limits.mailbox_bytes': 1000000");
    let handler = Handler::of(&front);
    let mut slow = Client::connect(front.address);
    send(&mut slow, get("/slow"));
    let slow_id = handler.got().id;
    let mut other = Client::connect(front.address);
    handler.reply(
        &slow_id,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n",
    );
    let piece = vec![b'x'; 400_000];
    let mut told = false;
    for round in 0..200 {
        handler.reply(&slow_id, &piece);
        send(&mut other, get("/other"));
        let mut got = handler.got();
        while got.path == "@*" {
            assert_eq!(got.id, slow_id);
            told = true;
            got = handler.got();
        }
        handler.reply(&got.id, &ok("other"));
        assert_eq!(body(&other.answer()), "other", "round {round}");
        if told {
            break;
        }
    }
    assert!(told, "80 MB unread and not dropped");
}

#[test]
fn a_slow_reader_gets_every_answer_to_what_it_pipelined() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let mut client = Client::connect(front.address);
    let requests = 12;
    send(&mut client, get("/big").repeat(requests));
    let big = ok(&"x".repeat(1 << 20));
    // The client reads nothing for now: the front goes on as far as the socket takes, and then waits.
    let mut answered = 0;
    while let Some(got) = handler.got_within(QUIET) {
        assert_eq!(got.path, "/big");
        handler.reply(&got.id, &big);
        answered += 1;
    }
    assert!(
        answered < requests,
        "the front waits for a client that does not read"
    );
    for number in 0..requests {
        while answered <= number {
            let got = handler.got();
            handler.reply(&got.id, &big);
            answered += 1;
        }
        assert_eq!(client.answer().body.len(), 1 << 20);
        while let Some(got) = handler.got_within(Duration::ZERO) {
            handler.reply(&got.id, &big);
            answered += 1;
        }
    }
    assert_eq!(answered, requests);
}

#[test]
fn a_handler_is_told_when_another_closes_its_connection() {
    let front = Front::start("");
    // Two handlers, each known by an answer of its own; which comes first, and how often, does not matter.
    let handlers = [Handler::of(&front), Handler::of(&front)];
    let mut answered = [None, None];
    while answered.iter().any(Option::is_none) {
        let mut client = Client::connect(front.address);
        send(&mut client, get("/first"));
        let which = loop {
            let ready = |handler: &Handler| handler.peer.pull().poll(zmq::POLLIN, 10) == Ok(1);
            if let Some(which) = handlers.iter().position(ready) {
                break which;
            }
        };
        let got = handlers[which].got();
        handlers[which].reply(&got.id, HELLO);
        client.answer();
        if let Some((client, id)) = answered[which].replace((client, got.id)) {
            drop::<Client>(client);
            handlers[which].told_once(&id);
        }
    }
    let owner = 0;
    let (mut client, id) = answered[owner].take().unwrap();
    // An empty payload, from the one that has nothing to do with it.
    handlers[1 - owner].reply(&id, b"");
    closed(&mut client);
    handlers[owner].told_once(&id);
}

#[test]
fn every_end_of_a_connection_is_told_once() {
    let front = Front::start(", 'limits.idle_timeout': 1");
    let handler = Handler::of(&front);
    let known = |path: &str| {
        let mut client = Client::connect(front.address);
        send(&mut client, get(path));
        (client, handler.got())
    };
    // Gone while its request is open.
    let (client, got) = known("/gone");
    drop(client);
    handler.told_once(&got.id);
    // Its sending side shut down: the same.
    let (mut client, got) = known("/half");
    client.shutdown_write();
    handler.told_once(&got.id);
    closed(&mut client);
    // Request and end in one segment; the handler gets the one and then the other.
    let mut client = Client::connect(front.address);
    send(&mut client, get("/both"));
    client.shutdown_write();
    let got = handler.got();
    assert_eq!(got.path, "/both");
    handler.told_once(&got.id);
    // Gone in the middle of a body: the handler knew the connection from before.
    let (mut client, got) = known("/first");
    handler.reply(&got.id, HELLO);
    client.answer();
    send(
        &mut client,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
    );
    drop(client);
    handler.told_once(&got.id);
    // Idle for too long.
    let (mut client, got) = known("/idle");
    handler.reply(&got.id, HELLO);
    client.answer();
    handler.told_once(&got.id);
    closed(&mut client);
    // No proper request after a proper one.
    let (mut client, got) = known("/good");
    handler.reply(&got.id, HELLO);
    client.answer();
    send(&mut client, "nonsense\r\n\r\n");
    assert_eq!(client.answer().status, 400);
    handler.told_once(&got.id);
    // The handler cancels or closes: it knows.
    let (mut client, got) = known("/cancelled");
    handler.peer.send(
        format!(
            "app-ident {}:X {}, 23:3:ctl,13:6:cancel,1:1#}}]",
            got.id.len() + 2,
            got.id
        )
        .as_bytes(),
    );
    closed(&mut client);
    handler.told_nothing();
    // The server stops.
    let (mut client, got) = known("/stopped");
    handler.reply(&got.id, HELLO);
    client.answer();
    let mut program = front.program;
    program.signal("TERM");
    handler.told_once(&got.id);
    drop(client);
    assert!(program.ended().success());
}

#[test]
fn clients_that_break_off_anywhere_leave_nothing_behind() {
    let front = Front::start("");
    let handler = Handler::of(&front);
    let request = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n0123456789";
    for cut in (0..request.len()).step_by(3) {
        let mut client = Client::connect(front.address);
        send(&mut client, &request.as_bytes()[..cut]);
        let how = [Shutdown::Write, Shutdown::Both][cut % 2];
        // The server may have closed first.
        drop(client.stream().shutdown(how));
    }
    handler.told_nothing();
    let mut client = Client::connect(front.address);
    send(&mut client, get("/still"));
    handler.answer("/still", HELLO);
    assert_eq!(client.answer().status, 200);
}
