//! Bodies in both directions: chunks, trailers, interim responses, early ends, and how much of it is held in memory.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::{Backend, Front, GET, HELLO, QUIET, head, pair};
use crate::support::PATIENCE;
use crate::support::client;

const GIB: u64 = 1 << 30;

/// What the front may ever have had in memory while a body of 1 GiB went through it.
const MEMORY_MAX_KIB: u64 = 64 * 1024;

#[test]
fn a_chunked_body_goes_on_in_chunks_as_it_comes_with_its_trailers() {
    let (front, backend) = pair("");
    let mut client = front.asks(
        "POST /up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Content-Length, X-Forwarded-For\r\n\r\n3;ext=1\r\nabc\r\n",
    );
    let mut connection = backend.accept();
    let got = head(&mut connection);
    assert_eq!(got.all("transfer-encoding"), ["chunked"]);
    assert!(got.all("content-length").is_empty());
    assert_eq!(
        connection.upto(b"abc\r\n"),
        b"3\r\nabc\r\n",
        "before the body is whole"
    );
    client
        .send(b"2\r\nde\r\n0\r\nX-Sum: 42\r\nContent-Length: 9\r\nX-Forwarded-For: 6.6.6.6\r\nX-Other: 1\r\n\r\nGET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&connection.upto(b"\r\n\r\n")).to_ascii_lowercase(),
        "2\r\nde\r\n0\r\nx-sum: 42\r\n\r\n",
        "the announced field and no framing"
    );
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
    assert_eq!(head(&mut connection).line, "GET /next HTTP/1.1");
}

#[test]
fn an_empty_chunked_body_is_one() {
    let (front, backend) = pair("");
    let mut client =
        front.asks("GET /g HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    let mut connection = backend.accept();
    assert_eq!(head(&mut connection).all("transfer-encoding"), ["chunked"]);
    assert_eq!(connection.upto(b"0\r\n\r\n"), b"0\r\n\r\n");
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
    client
        .send(b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    assert_eq!(head(&mut connection).all("content-length"), ["0"]);
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
}

#[test]
fn a_chunked_response_comes_as_it_is_made_with_trailers_for_those_who_take_them() {
    let (front, backend) = pair("");
    let mut client =
        front.asks("GET /t HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
    let mut connection = backend.accept();
    let got = head(&mut connection);
    assert_eq!(
        (got.all("te"), got.all("connection")),
        (vec!["trailers"], vec!["TE"])
    );
    let answer =
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    connection.send(answer).unwrap();
    let first = String::from_utf8_lossy(&client.upto(b"abc\r\n")).to_ascii_lowercase();
    assert!(first.contains("trailer: x-sum"), "{first}");
    connection
        .send(b"0\r\nX-Sum: 42\r\nContent-Length: 3\r\n\r\n")
        .unwrap();
    assert_eq!(client.upto(b"\r\n\r\n"), b"0\r\nX-Sum: 42\r\n\r\n");

    client.send(GET.as_bytes()).unwrap();
    let got = head(&mut connection);
    assert!(got.all("te").is_empty());
    connection.send(answer).unwrap();
    connection.send(b"0\r\nX-Sum: 42\r\n\r\n").unwrap();
    let text = String::from_utf8_lossy(&client.upto(b"0\r\n\r\n")).to_ascii_lowercase();
    assert!(!text.contains("x-sum"), "{text}");
}

#[test]
fn interim_responses_are_passed_on() {
    let (front, backend) = pair("");
    let mut client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x\r\nX: 1\r\n\r\n")
        .unwrap();
    let hints = client.answer();
    assert_eq!(
        (hints.status, hints.header("link")),
        (103, Some(&b"</a.css>"[..]))
    );
    assert_eq!(
        (hints.header("connection"), hints.header("x")),
        (None, None)
    );
    connection.send(b"HTTP/1.1 102 Processing\r\n\r\n").unwrap();
    assert_eq!(client.answer().status, 102);
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
}

#[test]
fn a_client_that_waits_for_leave_to_send_gets_it_from_the_backend() {
    let (front, backend) = pair("");
    let mut client = front
        .asks("POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    let mut connection = backend.accept();
    assert_eq!(head(&mut connection).all("expect"), ["100-continue"]);
    assert!(client.is_silent(QUIET), "nobody but the backend says so");
    connection.send(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    assert_eq!(client.answer().status, 100);
    client.send(b"abc").unwrap();
    assert_eq!(connection.upto(b"abc"), b"abc");
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
    assert!(client.is_silent(QUIET), "the connection is kept");
}

#[test]
fn leave_to_send_gets_through_a_flood_of_other_interim_responses() {
    let (front, backend) = pair("");
    let mut client = front
        .asks("POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    let mut connection = backend.accept();
    head(&mut connection);
    let flood = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(50);
    connection
        .send(&[flood.as_slice(), b"HTTP/1.1 100 Continue\r\n\r\n"].concat())
        .unwrap();
    while client.answer().status == 102 {}
    client.send(b"abc").unwrap();
    assert_eq!(connection.upto(b"abc"), b"abc");
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
}

#[test]
fn a_client_that_is_refused_instead_is_told_that_the_connection_ends() {
    let (front, backend) = pair("");
    let mut client = front
        .asks("POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        .unwrap();
    let answer = client.answer();
    assert_eq!((answer.status, answer.body.as_slice()), (413, &b"no"[..]));
    assert_eq!(answer.header("connection"), Some(&b"close"[..]));
    assert_eq!(client.rest(), b"");
    assert_eq!(
        connection.rest(),
        b"",
        "no body follows on the backend's side either"
    );
}

#[test]
fn an_answer_in_the_middle_of_the_body_reaches_the_client() {
    for closes in [false, true] {
        let (front, backend) = pair("");
        let mut client =
            front.asks("POST /big HTTP/1.1\r\nHost: h\r\nContent-Length: 500000000\r\n\r\n");
        client.send(&vec![b'x'; 100_000]).unwrap();
        let mut connection = backend.accept();
        head(&mut connection);
        connection
            .send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            .unwrap();
        if closes {
            drop(connection);
        }
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_slice()), (413, &b"no"[..]));
        assert_eq!(answer.header("connection"), Some(&b"close"[..]));
        assert_eq!(client.rest(), b"");
    }
}

#[test]
fn the_whole_answer_of_a_backend_that_closes_in_the_middle_of_the_body_reaches_the_client() {
    let (front, backend) = pair("");
    let body = "sorry ".repeat(5_000);
    for _ in 0..20 {
        let client =
            front.asks("POST /big HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n");
        let mut sending = client.stream().try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            let block = vec![b'x'; 64 * 1024];
            // Until nobody takes any more.
            while sending.write_all(&block).is_ok() {}
        });
        let mut client = client;
        let mut connection = backend.accept();
        head(&mut connection);
        let answer = format!(
            "HTTP/1.1 413 Too Large\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.send(answer.as_bytes()).unwrap();
        // With much unread: the connection is reset.
        drop(connection);
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.len()), (413, body.len()));
        drop(client);
        sender.join().unwrap();
    }
}

#[test]
fn a_small_rest_of_the_body_is_read_behind_an_early_answer() {
    let (front, backend) = pair("");
    let mut client = front.asks("POST /s HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n12345");
    let mut connection = backend.accept();
    head(&mut connection);
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
    // Its rest is not this request's any more, and must not be the next one's beginning.
    client
        .send(b"67890GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    let mut connection = backend.accept();
    assert_eq!(head(&mut connection).line, "GET /next HTTP/1.1");
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    let (front, backend) = pair("");
    // While the response is awaited, while it comes, while the body is sent.
    let client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    drop(client);
    assert_eq!(connection.rest(), b"");

    let mut client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        .unwrap();
    client.upto(b"abc");
    drop(client);
    assert_eq!(connection.rest(), b"");

    let client = front.asks("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc");
    let mut connection = backend.accept();
    head(&mut connection);
    connection.upto(b"abc");
    drop(client);
    assert_eq!(connection.rest(), b"", "cut short, not completed");
}

#[test]
fn a_malformed_chunk_cuts_the_request_to_the_backend() {
    let (front, backend) = pair("");
    let mut client =
        front.asks("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let mut connection = backend.accept();
    head(&mut connection);
    connection.upto(b"abc");
    client.send(b"zz\r\n").unwrap();
    let rest = connection.rest();
    assert!(
        !rest.ends_with(b"0\r\n\r\n"),
        "{:?}",
        String::from_utf8_lossy(&rest)
    );
    assert_eq!(client.answer().status, 400);
}

#[test]
fn a_client_that_reads_nothing_stops_the_backend() {
    let (front, backend) = pair("");
    let client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n").as_bytes())
        .unwrap();
    let mut stream = connection.stream();
    stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let block = vec![0; 64 * 1024];
    let mut sent = 0;
    while stream.write_all(&block).is_ok() {
        sent += block.len();
        assert!(sent < 64 << 20, "somebody swallows it all");
    }
    drop(client);
}

/// The most memory that the front has had, in KiB.
fn memory_peak(front: &Front) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", front.program.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.unwrap().parse().unwrap()
}

/// Reads a head off a stream, byte by byte so that nothing behind it is taken.
fn skip_head(stream: &mut TcpStream) {
    let mut last = [0; 4];
    while last != *b"\r\n\r\n" {
        last.rotate_left(1);
        stream.read_exact(&mut last[3..]).unwrap();
    }
}

fn pour(stream: &mut TcpStream, mut left: u64) {
    let block = vec![b'z'; 256 * 1024];
    while left > 0 {
        let size = left.min(block.len() as u64);
        stream
            .write_all(&block[..usize::try_from(size).unwrap()])
            .unwrap();
        left -= size;
    }
}

fn drink(stream: &mut TcpStream, mut left: u64) {
    let mut block = vec![0; 256 * 1024];
    while left > 0 {
        let read = client::read(stream, &mut block).unwrap();
        assert!(read > 0, "{left} bytes are missing");
        left -= read as u64;
    }
}

#[test]
fn a_gibibyte_goes_through_both_ways_in_little_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let backend = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        skip_head(&mut stream);
        drink(&mut stream, GIB);
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n").as_bytes())
            .unwrap();
        pour(&mut stream, GIB);
    });
    let front = Front::start("127.0.0.1", port, "");
    let mut client = TcpStream::connect(front.address).unwrap();
    client.set_read_timeout(Some(PATIENCE * 6)).unwrap();
    client
        .write_all(
            format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {GIB}\r\n\r\n").as_bytes(),
        )
        .unwrap();
    pour(&mut client, GIB);
    skip_head(&mut client);
    drink(&mut client, GIB);
    backend.join().unwrap();
    let peak = memory_peak(&front);
    assert!(peak < MEMORY_MAX_KIB, "{peak} KiB");
}

#[test]
fn a_body_goes_on_while_its_answer_comes() {
    let (front, backend) = pair("");
    let mut client =
        front.asks("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut connection = Backend::accept(&backend);
    head(&mut connection);
    connection
        .send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    client.upto(b"\r\n\r\n");
    for round in ["one", "two", "six"] {
        let chunk = format!("3\r\n{round}\r\n");
        client.send(chunk.as_bytes()).unwrap();
        assert_eq!(
            connection.upto(b"\r\n").len() + connection.upto(b"\r\n").len(),
            chunk.len()
        );
        connection.send(chunk.as_bytes()).unwrap();
        client.upto(format!("{round}\r\n").as_bytes());
    }
    client.send(b"0\r\n\r\n").unwrap();
    connection.upto(b"0\r\n\r\n");
    connection.send(b"0\r\n\r\n").unwrap();
    client.upto(b"0\r\n\r\n");
    assert!(client.is_silent(QUIET), "kept");
}
