//! What goes on to the backend and what comes back: fields, targets, framing, order, kept connections.

use super::{Front, GET, HELLO, QUIET, head, pair};
use crate::support::PATIENCE;
use crate::support::client::{Asked, Client};

#[test]
fn a_request_goes_on_as_it_is_but_for_what_belongs_to_one_hop() {
    let (front, backend) = pair("");
    let mut client = front.asks(
        "GET /a//b/../%41;x?q=1&q=%20? HTTP/1.1\r\nHost: shop.example:81\r\nX-Mixed: A\r\nCookie: a=1\r\nCookie: b=2\r\n\
         Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\nProxy-Authorization: x\r\n\
         TE: gzip\r\nTrailer: X\r\nUpgrade: foo\r\nVia: 1.0 elsewhere\r\n\r\n",
    );
    let mut connection = backend.accept();
    let head = head(&mut connection);
    assert_eq!(head.line, "GET /a//b/../%41;x?q=1&q=%20? HTTP/1.1");
    assert_eq!(head.all("host"), ["shop.example:81"]);
    assert_eq!(head.all("x-mixed"), ["A"]);
    assert_eq!(head.all("cookie"), ["a=1", "b=2"]);
    assert_eq!(head.all("via"), ["1.0 elsewhere", "1.1 lurcher"]);
    assert_eq!(head.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(head.all("x-forwarded-proto"), ["http"]);
    assert_eq!(head.all("x-forwarded-host"), ["shop.example:81"]);
    for hop in [
        "connection",
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "trailer",
        "upgrade",
        "transfer-encoding",
        "content-length",
    ] {
        assert!(head.all(hop).is_empty(), "{hop}: {head:?}");
    }
    connection
        .send(
            b"HTTP/1.1 201 Made\r\nContent-Length: 5\r\nX-A: 1\r\nX-A: 2\r\nConnection: x-own, keep-alive\r\nX-Own: 1\r\n\
              Keep-Alive: timeout=5\r\nServer: tiny\r\nVia: 1.1 inner\r\n\r\nhello",
        )
        .unwrap();
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.body.as_slice()),
        (201, &b"hello"[..])
    );
    let all = |name: &str| -> Vec<String> {
        answer
            .headers
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| String::from_utf8_lossy(v).into_owned())
            .collect()
    };
    assert_eq!(all("x-a"), ["1", "2"]);
    assert_eq!(all("server"), ["tiny"]);
    assert_eq!(all("via"), ["1.1 inner", "1.1 lurcher"]);
    assert_eq!(all("content-length"), ["5"]);
    assert_eq!(all("date").len(), 1);
    for hop in ["connection", "x-own", "keep-alive"] {
        assert!(all(hop).is_empty(), "{hop}");
    }
}

#[test]
fn what_a_client_says_of_its_origin_is_replaced_unless_the_setting_keeps_it() {
    let request = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: 8.8.8.8\r\n\
                   X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=9.9.9.9\r\n\r\n";
    let (front, backend) = pair("");
    let _client = front.asks(request);
    let got = head(&mut backend.accept());
    assert_eq!(got.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(got.all("x-forwarded-proto"), ["http"]);
    assert_eq!(got.all("x-forwarded-host"), ["h"]);
    assert!(got.all("forwarded").is_empty());

    let (front, backend) = pair(", 'no_clobber_xff': 1");
    let _client = front.asks(request);
    let got = head(&mut backend.accept());
    assert_eq!(got.all("x-forwarded-for"), ["9.9.9.9", "8.8.8.8"]);
    assert_eq!(got.all("x-forwarded-proto"), ["https"]);
    assert_eq!(got.all("forwarded"), ["for=9.9.9.9"]);
}

#[test]
fn an_absolute_target_gives_path_and_host() {
    let (front, backend) = pair("");
    let _client = front.asks("GET http://other.example/p?q HTTP/1.1\r\nHost: shop.example\r\n\r\n");
    let got = head(&mut backend.accept());
    assert_eq!(got.line, "GET /p?q HTTP/1.1");
    assert_eq!(got.all("host"), ["other.example"]);
    assert_eq!(got.all("x-forwarded-host"), ["other.example"]);
}

#[test]
fn every_target_that_is_taken_is_passed_on_byte_for_byte_or_refused() {
    let (front, backend) = pair(", 'request.relaxed': 1");
    let mut connection: Option<Client> = None;
    for target in [
        "/{a}^b",
        "//host/x",
        "/?",
        "/a?b?c=/",
        "/~!$&'()*+,;=:@%7e",
        "/x?%00",
    ] {
        let mut client = front.asks(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
        let connection = connection.get_or_insert_with(|| backend.accept());
        assert_eq!(head(connection).line, format!("GET {target} HTTP/1.1"));
        connection.send(HELLO).unwrap();
        assert_eq!(client.answer().status, 200, "{target}");
    }
    let mut client = front.asks("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n");
    // `*` is no path: no route takes it.
    assert_eq!(client.answer().status, 404);
    let mut client = front.asks("CONNECT /x HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(matches!(client.answer().status, 400 | 501));
}

#[test]
fn a_connection_is_kept_for_whoever_asks_next() {
    let (front, backend) = pair("");
    let mut first = front.asks("GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    let mut connection = backend.accept();
    assert_eq!(head(&mut connection).line, "GET /1 HTTP/1.1");
    connection.send(HELLO).unwrap();
    let answer = first.answer();
    assert_eq!(answer.header("connection"), Some(&b"close"[..]));
    assert_eq!(first.rest(), b"", "closed as the client asked");
    let mut second = front.asks("POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(head(&mut connection).line, "POST /2 HTTP/1.1");
    assert_eq!(connection.upto(b"abc"), b"abc");
    connection.send(HELLO).unwrap();
    assert_eq!(second.answer().body, b"hello");
    assert!(backend.is_left_alone());
}

#[test]
fn a_backend_that_closes_does_not_close_the_client() {
    let (front, backend) = pair("");
    let mut client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        .unwrap();
    drop(connection);
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("connection")), (200, None));
    client.send(GET.as_bytes()).unwrap();
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
        .unwrap();
    drop(connection);
    let answer = client.answer();
    assert_eq!(answer.body, b"until the end");
    assert_eq!(answer.header("transfer-encoding"), Some(&b"chunked"[..]));
    assert!(client.is_silent(QUIET), "the client is kept");
}

#[test]
fn pipelined_requests_reach_the_backend_one_after_the_other_and_are_answered_in_order() {
    let (front, backend) = pair("");
    let mut client = front.asks(
        "GET /1 HTTP/1.1\r\nHost: h\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nxyGET /3 HTTP/1.1\r\nHost: h\r\n\r\n",
    );
    let mut connection = backend.accept();
    for (line, body) in [
        ("GET /1 HTTP/1.1", "one"),
        ("POST /2 HTTP/1.1", "two"),
        ("GET /3 HTTP/1.1", "three"),
    ] {
        assert_eq!(head(&mut connection).line, line);
        if line.starts_with("POST") {
            assert_eq!(connection.upto(b"xy"), b"xy");
        }
        assert!(connection.is_silent(QUIET), "the next one waits");
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.send(answer.as_bytes()).unwrap();
        assert_eq!(client.answer().body, body.as_bytes());
    }
    assert!(backend.is_left_alone());
}

#[test]
fn the_answer_to_head_tells_a_length_and_has_no_body() {
    let (front, backend) = pair("");
    let mut client = front.asks("HEAD /h HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut connection = backend.accept();
    for status in ["200 OK", "304 Not Modified"] {
        head(&mut connection);
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 1234\r\nETag: \"x\"\r\n\r\n");
        connection.send(answer.as_bytes()).unwrap();
        let answer = client.try_answer(Asked::Head, PATIENCE).expect("an answer");
        assert_eq!(answer.header("content-length"), Some(&b"1234"[..]));
        client.send(b"GET /2 HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    }
    head(&mut connection);
    connection.send(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.header("content-length")),
        (204, None)
    );
    assert_eq!(answer.header("transfer-encoding"), None);
    client.send(GET.as_bytes()).unwrap();
    head(&mut connection);
    connection.send(HELLO).unwrap();
    assert_eq!(client.answer().body, b"hello");
}

#[test]
fn a_client_of_http_1_0_gets_what_it_can_read() {
    let (front, backend) = pair("");
    let mut client = front.asks("GET /1 HTTP/1.0\r\nExpect: 100-continue\r\n\r\n");
    let mut connection = backend.accept();
    let got = head(&mut connection);
    assert_eq!(got.line, "GET /1 HTTP/1.1");
    assert_eq!(got.all("host"), [format!("127.0.0.1:{}", backend.port)]);
    assert_eq!(got.all("via"), ["1.0 lurcher"]);
    assert!(got.all("x-forwarded-host").is_empty() && got.all("expect").is_empty());
    connection
        .send(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .unwrap();
    let all = String::from_utf8_lossy(&client.rest()).into_owned();
    assert!(all.starts_with("HTTP/1.1 200 OK\r\n"), "{all}");
    assert!(!all.contains("hunked"), "{all}");
    assert!(all.ends_with("\r\n\r\nabc"), "{all}");

    let mut client = front.asks("GET /2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    head(&mut connection);
    connection.send(HELLO).unwrap();
    assert_eq!(
        client.answer().header("connection"),
        Some(&b"keep-alive"[..])
    );
    assert!(client.is_silent(QUIET));
}

#[test]
fn the_framing_of_a_response_is_made_anew() {
    let (front, backend) = pair("");
    let mut client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .unwrap();
    let answer = client.answer();
    assert_eq!(answer.body, b"hello");
    assert_eq!(answer.header("content-length"), None);
    client.send(GET.as_bytes()).unwrap();
    // Whether that connection is used again is the library's judgement.
    let mut next = match connection.is_silent(QUIET) {
        true => backend.accept(),
        false if connection.ended() => backend.accept(),
        false => connection,
    };
    head(&mut next);
    next.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")
        .unwrap();
    assert_eq!(
        client.answer().status,
        502,
        "a coding that nobody asked for"
    );
}

#[test]
fn requests_with_two_framings_reach_no_backend() {
    let (front, backend) = pair("");
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Content-Length: 3\r\nContent-Length: 3",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: xchunked",
        "Content-Length: +3",
    ] {
        let mut client = front.asks(&format!(
            "POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
        ));
        assert_eq!(client.answer().status, 400, "{fields}");
    }
    assert!(backend.is_left_alone());
}

#[test]
fn the_access_log_has_the_status_and_the_bytes_that_were_passed_back() {
    let (front, backend) = pair("");
    let mut client = front.asks(GET);
    let mut connection = backend.accept();
    head(&mut connection);
    connection
        .send(b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
        .unwrap();
    assert_eq!(client.answer().body, b"abcdefg");
    let Front {
        mut program,
        directory,
        ..
    } = front;
    assert!(program.terminate().success());
    let log = std::fs::read_to_string(directory.path().join("access.log")).unwrap();
    assert!(log.contains("404"), "{log}");
    assert!(log.contains('7'), "{log}");
}
