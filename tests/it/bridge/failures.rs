//! Backends that are not there, go away, or say nothing.

use std::fs;

use super::{GET, HELLO, QUIET, asks, bridge, head, says, with_backend};
use crate::support::client::Client;
use crate::support::servers;
use crate::support::{PATIENCE, free_port};

const POST: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";

#[test]
fn a_backend_that_is_not_there_is_502_and_the_log_says_it_once() {
    servers::each("", |server| {
        let port = free_port();
        let mut program = bridge(&server, &format!("http://127.0.0.1:{port}"), &[]);
        let mut client = Client::connect(server.address);
        for _ in 0..3 {
            client.send(GET.as_bytes()).unwrap();
            let answer = client.answer();
            assert_eq!(
                (answer.status, answer.body.as_slice()),
                (502, &b"The backend takes no connection"[..])
            );
        }
        program.said("connecting to the backend", 1);
        let said = program.lines();
        let said = said
            .iter()
            .filter(|line| line.contains("connecting to the backend"));
        assert_eq!(said.count(), 1);
    });
    servers::each("", |server| {
        let mut program = bridge(
            &server,
            "http://nobody.invalid:80",
            &["--connect-timeout", "9"],
        );
        let answer = asks(&server, GET).answer();
        assert!([502, 504].contains(&answer.status), "{}", answer.status);
        program.said("connecting to the backend", 1);
    });
}

#[test]
fn silence_is_504_and_the_backend_is_left() {
    with_backend("", &["--timeout", "1"], |server, backend, _| {
        let mut client = asks(server, GET);
        let mut connection = backend.accept();
        head(&mut connection);
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (504, &b"The backend does not answer in time"[..])
        );
        assert!(connection.rest().is_empty());
        // In the middle of a response it is the end.
        let mut client = asks(server, GET);
        let mut connection = backend.accept();
        head(&mut connection);
        says(
            &mut connection,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        );
        let all = client.rest();
        assert!(all.ends_with(b"2\r\nab\r\n"), "{}", all.escape_ascii());
        assert!(connection.rest().is_empty());
    });
}

#[test]
fn a_backend_that_dies_leaves_502_or_a_response_that_does_not_look_whole() {
    with_backend("", &[], |server, backend, _| {
        let mut client = asks(server, GET);
        head(&mut backend.accept());
        assert_eq!(client.answer().status, 502);
        client.send(GET.as_bytes()).unwrap();
        let mut connection = backend.accept();
        head(&mut connection);
        says(&mut connection, "this is not HTTP\r\n\r\n");
        assert_eq!(client.answer().status, 502);
        for part in [
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ] {
            let mut client = asks(server, GET);
            let mut connection = backend.accept();
            head(&mut connection);
            says(&mut connection, part);
            client.upto(b"hello");
            drop(connection);
            assert!(!client.rest().ends_with(b"0\r\n\r\n"));
        }
    });
}

#[test]
fn a_kept_connection_that_dies_costs_no_safe_request() {
    with_backend("", &[], |server, backend, _| {
        let kept = || {
            let mut client = asks(server, GET);
            let mut connection = backend.accept();
            head(&mut connection);
            says(&mut connection, HELLO);
            assert_eq!(client.answer().body, b"hello");
            (client, connection)
        };
        // It dies with the request in it: asked again.
        let (mut client, mut connection) = kept();
        client.send(GET.as_bytes()).unwrap();
        head(&mut connection);
        drop(connection);
        let mut connection = backend.accept();
        head(&mut connection);
        says(&mut connection, HELLO);
        assert_eq!(client.answer().body, b"hello");
        // A second time on the new connection is too often.
        client.send(GET.as_bytes()).unwrap();
        head(&mut connection);
        drop(connection);
        head(&mut backend.accept());
        assert_eq!(client.answer().status, 502);
        // What may have been done is not done again.
        let (mut client, mut connection) = kept();
        client.send(POST.as_bytes()).unwrap();
        head(&mut connection);
        drop(connection);
        assert_eq!(client.answer().status, 502);
        assert!(backend.is_left_alone());
        // One that was closed while nobody used it is not used.
        let (mut client, connection) = kept();
        drop(connection);
        std::thread::yield_now();
        assert!(client.is_silent(QUIET));
        client.send(POST.as_bytes()).unwrap();
        let mut connection = backend.accept();
        head(&mut connection);
        says(&mut connection, HELLO);
        assert_eq!(client.answer().body, b"hello");
    });
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    with_backend("", &[], |server, backend, _| {
        let client = asks(server, GET);
        let mut connection = backend.accept();
        head(&mut connection);
        drop(client);
        assert!(connection.rest().is_empty(), "the end of the connection");
        let mut client = asks(server, GET);
        let mut connection = backend.accept();
        head(&mut connection);
        says(&mut connection, HELLO);
        assert_eq!(client.answer().body, b"hello");
    });
}

#[test]
fn a_socket_in_a_file_is_a_backend() {
    servers::each("", |server| {
        let path = server.directory().join("app.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let _program = bridge(&server, &format!("unix:{}", path.display()), &[]);
        let mut client = asks(&server, "GET / HTTP/1.0\r\n\r\n");
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            let mut block = [0; 512];
            let length = crate::support::client::read(&mut stream, &mut block).unwrap();
            assert!(length > 0, "a request");
            seen.extend_from_slice(&block[..length]);
        }
        let seen = String::from_utf8(seen).unwrap();
        assert!(seen.contains("ost: localhost\r\n"), "{seen}");
        std::io::Write::write_all(&mut stream, HELLO).unwrap();
        assert!(client.rest().ends_with(b"hello"));
        fs::remove_file(&path).unwrap();
    });
}

#[test]
fn an_answer_before_the_body_was_read_reaches_the_client() {
    let settings = ", 'limits.content_length': 8000000";
    with_backend(settings, &[], |server, backend, _| {
        let body = vec![b'x'; 6_000_000];
        let mut client = asks(
            server,
            &format!(
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ),
        );
        client.send(&body).unwrap();
        let mut connection = backend.accept();
        head(&mut connection);
        says(
            &mut connection,
            "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
        );
        drop(connection);
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_slice()), (413, &b"no"[..]));
    });
}

#[test]
fn targets_that_cannot_be_are_told_before_anything_starts() {
    let folder = crate::support::scratch();
    for (target, why) in [
        (
            "http://",
            "`http://` is neither http://HOST:PORT nor unix:/PATH",
        ),
        ("unix:app", "`unix:app` is not unix:/PATH"),
    ] {
        let mut program = crate::support::program::Program::lurcher(
            &["run", target, "tcp://127.0.0.1:9999"],
            folder.path(),
        );
        assert_eq!(program.ended().code(), Some(2));
        program.said(why, 1);
    }
}

#[test]
fn no_backend_can_end_the_handler() {
    with_backend("", &[], |server, backend, program| {
        for odd in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 \x01\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 gr\u{fc}n\r\nContent-Length: 5\r\nX-A: \u{fc}\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: a\rb\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A : b\r\n\r\nhello",
            "HTTP/1.1 099 Low\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello",
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5, 6\r\n\r\nHTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 304 No\r\nContent-Length: 5, 6\r\n\r\n",
        ] {
            let mut client = asks(server, GET);
            let mut connection = backend.accept();
            head(&mut connection);
            says(&mut connection, odd);
            drop(connection);
            let mut answer = client.answer();
            while answer.status < 200 {
                answer = client.answer();
            }
            match answer.status {
                502 => {}
                204 | 304 => assert!(answer.body.is_empty(), "{odd:?}"),
                _ => assert_eq!(
                    (answer.status, &answer.body[..]),
                    (200, &b"hello"[..]),
                    "{odd:?}"
                ),
            }
            assert!(client.is_silent(QUIET / 10), "{odd:?}");
        }
        program.signal("TERM");
        assert!(program.ended().success(), "{program}");
    });
}

#[test]
fn a_response_with_more_fields_than_are_read_is_malformed() {
    with_backend("", &[], |server, backend, _| {
        let respond = |fields: usize| {
            let fields: Vec<String> = (0..fields).map(|n| format!("X-{n}: y\r\n")).collect();
            let response = format!(
                "HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok",
                fields.concat()
            );
            let mut client = asks(server, GET);
            let mut connection = backend.accept();
            head(&mut connection);
            says(&mut connection, response.as_bytes());
            client.answer().status
        };
        assert_eq!(respond(150), 502);
        // With a connection of its own, since the one before was given up.
        assert_eq!(respond(99), 200);
    });
}
