//! Backends that are down, slow, gone or talk nonsense; limits; a front that stops.

use std::net::{TcpListener, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use super::{Backend, Front, GET, HELLO, QUIET, head, pair};
use crate::support::client::{Asked, Client};
use crate::support::{PATIENCE, free_port};

#[track_caller]
fn answered(client: &mut Client, status: u16, reason: &str) {
    let answer = client.answer();
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, status, "{body}");
    assert!(body.contains(reason), "{body}");
    assert_eq!(answer.header("connection"), Some(&b"close"[..]));
    assert_eq!(client.rest(), b"");
}

#[test]
fn a_backend_that_is_down_is_a_502_at_once() {
    let front = Front::start("127.0.0.1", free_port(), "");
    let began = Instant::now();
    answered(&mut front.asks(GET), 502, "cannot be reached");
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "before its deadline"
    );
    let mut client = front.asks("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n");
    let answer = client.try_answer(Asked::Head, PATIENCE).expect("an answer");
    assert_eq!((answer.status, client.rest().len()), (502, 0));
}

#[test]
fn a_name_without_address_is_a_502() {
    let front = Front::start("no-such-host.invalid", 80, "");
    let mut client = front.asks(GET);
    let answer = client.answer();
    // A resolver that is out of reach takes its time.
    assert!(matches!(answer.status, 502 | 504), "{answer:?}");
}

#[test]
fn the_second_address_of_a_name_is_tried_when_the_first_is_dead() {
    let port = free_port();
    let addresses: Vec<_> = ("localhost", port).to_socket_addrs().unwrap().collect();
    let Some(second) = addresses.iter().find(|address| **address != addresses[0]) else {
        println!("skipped: localhost has one address here");
        return;
    };
    let listener = TcpListener::bind(second).unwrap();
    let front = Front::start("localhost", port, "");
    let mut client = front.asks(GET);
    let mut connection = Client::accepted(listener.accept().unwrap().0);
    assert_eq!(head(&mut connection).all("host"), ["shop.example"]);
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
}

#[test]
fn a_backend_that_says_nothing_is_a_504() {
    let (front, backend) = pair(", 'proxy.timeout': 1");
    let mut client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    answered(&mut client, 504, "did not answer in time");
    assert_eq!(connection.rest(), b"", "the backend sees that nobody waits");
}

#[test]
fn a_backend_that_takes_nothing_of_the_body_is_a_504() {
    let (front, backend) = pair(", 'proxy.timeout': 1");
    let mut client = front.asks("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 900000000\r\n\r\n");
    let _connection = backend.accept();
    client
        .stream()
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let block = vec![b'x'; 65536];
    while client.send(&block).is_ok() {}
    answered(&mut client, 504, "did not answer in time");
}

#[test]
fn a_client_that_is_slow_to_send_is_not_the_backends_fault() {
    let (front, backend) = pair(", 'proxy.timeout': 1");
    let mut client = front.asks("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc");
    let mut connection = backend.accept();
    head(&mut connection);
    assert!(client.is_silent(Duration::from_millis(2500)));
    client.send(b"def").unwrap();
    connection.upto(b"abcdef");
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
}

#[test]
fn a_body_is_due_even_while_its_answer_is_being_written() {
    let (front, backend) = pair(", 'limits.body_grace': 1");
    let mut client = front.asks("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nabc");
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .unwrap();
    let answer = client.rest();
    assert!(answer.ends_with(b"3\r\nabc\r\n"), "cut short");
    // Leave to send it is no leave to send it at any time.
    let mut client = front
        .asks("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n");
    let mut connection = backend.accept();
    head(&mut connection);
    connection.send(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    assert_eq!(client.answer().status, 100);
    assert_eq!(client.answer().status, 408);
}

#[test]
fn a_backend_that_stops_in_the_middle_cuts_the_client_short() {
    let (front, backend) = pair(", 'proxy.timeout': 1");
    for (answer, ends) in [
        (
            &b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"[..],
            true,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            true,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense",
            true,
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", false),
    ] {
        let mut client = front.asks(GET);
        let mut connection = backend.accept();
        head(&mut connection);
        connection.send(answer).unwrap();
        let held = (!ends).then_some(connection);
        let all = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(all.starts_with("HTTP/1.1 200"), "{all}");
        assert!(all.contains("abc") && !all.ends_with("0\r\n\r\n"), "{all}");
        drop(held);
    }
}

#[test]
fn what_is_no_http_is_a_502() {
    let (front, backend) = pair("");
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(3_000));
    for answer in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 99 What\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad name: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let mut client = front.asks(GET);
        let mut connection = backend.accept();
        head(&mut connection);
        // A head that is too large is not read to its end.
        drop(connection.send(answer));
        let clip = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
        let got = client.answer();
        assert_eq!(got.status, 502, "{clip}");
    }
}

#[test]
fn a_backend_that_closes_without_an_answer_is_a_502() {
    let (front, backend) = pair("");
    for part in [&b""[..], b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nX: y\r\n"] {
        let mut client = front.asks(GET);
        let mut connection = backend.accept();
        head(&mut connection);
        connection.send(part).unwrap();
        drop(connection);
        answered(&mut client, 502, "closed the connection without an answer");
    }
    assert!(
        backend.is_left_alone(),
        "a new connection is not tried twice"
    );
}

/// A front with a kept connection whose backend takes another request on it and dies.
fn stale(request: &str) -> (Front, Backend, Client) {
    let (front, backend) = pair("");
    let mut client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
    client.send(request.as_bytes()).unwrap();
    head(&mut connection);
    drop(connection);
    (front, backend, client)
}

#[test]
fn a_safe_request_that_meets_the_end_of_a_kept_connection_is_sent_once_more() {
    let (_front, backend, mut client) = stale("GET /again HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut connection = backend.accept();
    assert_eq!(head(&mut connection).line, "GET /again HTTP/1.1");
    drop(connection);
    answered(&mut client, 502, "closed the connection");
    assert!(backend.is_left_alone(), "once");
}

#[test]
fn a_request_that_is_not_safe_is_not_sent_twice() {
    let (_front, backend, mut client) =
        stale("POST /pay HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
    answered(&mut client, 502, "closed the connection");
    assert!(backend.is_left_alone());
    let (_front, backend, mut client) =
        stale("GET /body HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx");
    answered(&mut client, 502, "closed the connection");
    assert!(backend.is_left_alone());
}

#[test]
fn a_kept_connection_that_the_backend_has_closed_is_not_used() {
    let (front, backend) = pair("");
    let mut client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
    connection.shutdown_write();
    // The front has seen it when it closes its side.
    assert_eq!(connection.rest(), b"");
    client
        .send(b"POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
        .unwrap();
    let mut connection = backend.accept();
    assert_eq!(head(&mut connection).line, "POST /2 HTTP/1.1");
    connection.upto(b"x");
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
}

#[test]
fn bytes_that_nobody_asked_for_end_a_kept_connection() {
    let (front, backend) = pair("");
    let mut client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    connection.send(&[HELLO, HELLO].concat()).unwrap();
    assert_eq!(client.answer().body, b"hello");
    client.send(GET.as_bytes()).unwrap();
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright")
        .unwrap();
    assert_eq!(client.answer().body, b"right", "not the leftover");
}

#[test]
fn requests_above_the_limit_wait_their_turn_and_then_are_refused() {
    let (front, backend) = pair(", 'proxy.connections': 1, 'proxy.connect_timeout': 2");
    let mut first = front.asks("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut connection = backend.accept();
    assert_eq!(head(&mut connection).line, "GET /1 HTTP/1.1");
    let mut second = front.asks("GET /2 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(backend.is_left_alone());
    connection.send(HELLO).unwrap();
    assert_eq!(first.answer().body, b"hello");
    assert_eq!(head(&mut connection).line, "GET /2 HTTP/1.1");
    let mut third = front.asks("GET /3 HTTP/1.1\r\nHost: h\r\n\r\n");
    answered(&mut third, 503, "are in use");
    connection.send(HELLO).unwrap();
    assert_eq!(second.answer().body, b"hello");
    // A client that leaves while it waits, or while it is served, gives its turn back.
    let held = front.asks("GET /4 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(head(&mut connection).line, "GET /4 HTTP/1.1");
    drop(front.asks("GET /5 HTTP/1.1\r\nHost: h\r\n\r\n"));
    drop(held);
    let mut last = front.asks("GET /6 HTTP/1.1\r\nHost: h\r\n\r\n");
    loop {
        let mut connection = backend.accept();
        if connection.read_some(PATIENCE) && connection.ended() {
            continue; // Left before it was asked.
        }
        let line = head(&mut connection).line;
        drop(connection.send(HELLO));
        if line == "GET /6 HTTP/1.1" {
            break;
        }
        // The one that left was noticed only when its turn had come.
        assert_eq!(line, "GET /5 HTTP/1.1");
    }
    assert_eq!(last.answer().body, b"hello");
}

#[test]
fn a_front_that_stops_finishes_what_is_open_and_leaves_kept_connections() {
    let (mut front, backend) = pair("");
    let mut client = front.asks(GET);
    let mut kept = backend.accept();
    head(&mut kept);
    let mut other = front.asks(GET);
    let mut open = backend.accept();
    head(&mut open);
    kept.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
    front.program.signal("TERM");
    assert_eq!(kept.rest(), b"");
    assert!(open.is_silent(QUIET));
    open.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nd")
        .unwrap();
    open.send(b"one").unwrap();
    let answer = other.answer();
    assert_eq!(answer.body, b"done");
    drop(open);
    assert!(front.program.ended().success());
}
