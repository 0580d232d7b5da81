//! `lurcher run http://…` between each server and a backend: one that is played by hand here, programs in `programs`.

mod failures;
mod programs;
mod uploads;
mod websockets;

use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::PATIENCE;
use crate::support::client::{Asked, Client};
use crate::support::program::Program;
use crate::support::servers::{self, Kind, Server};

/// Nothing comes for so long: then nothing is taken to come.
const QUIET: Duration = Duration::from_millis(250);

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

const GET: &str = "GET /x?q=1 HTTP/1.1\r\nHost: shop.example\r\n\r\n";

/// The handler before an app, connected to a server.
fn bridge(server: &Server, app: &str, options: &[&str]) -> Program {
    let mut words = vec!["--log", "debug", "run", app, &server.send, &server.recv];
    words.extend(options);
    let mut program = Program::lurcher(&words, server.directory());
    program.line("connected to", |line| {
        line.contains("connected to").then_some(())
    });
    program
}

/// A backend that is played by hand: the test takes its connections one by one.
struct Backend {
    target: String,
    connections: mpsc::Receiver<Client>,
}

impl Backend {
    fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let target = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, connections) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if sender.send(Client::accepted(stream)).is_err() {
                    break;
                }
            }
        });
        Self {
            target,
            connections,
        }
    }

    /// The next connection.
    fn accept(&self) -> Client {
        self.connections
            .recv_timeout(PATIENCE)
            .expect("a connection to the backend")
    }

    /// Whether no further connection is made.
    fn is_left_alone(&self) -> bool {
        self.connections.recv_timeout(QUIET).is_err()
    }
}

/// Runs a test with a server, a backend played by hand, and the handler between them.
fn with_backend(settings: &str, options: &[&str], test: impl Fn(&Server, &Backend, &mut Program)) {
    servers::each(settings, |server| {
        let backend = Backend::listen();
        let mut program = bridge(&server, &backend.target, options);
        test(&server, &backend, &mut program);
    });
}

/// A client that has sent this.
fn asks(server: &Server, request: &str) -> Client {
    let mut client = Client::connect(server.address);
    client.send(request.as_bytes()).expect("send a request");
    client
}

/// The head of a request as the backend got it, names in lower case.
fn head(connection: &mut Client) -> String {
    let text = String::from_utf8_lossy(&connection.upto(b"\r\n\r\n")).into_owned();
    let mut lines = text.trim_end().split("\r\n");
    let first = lines.next().expect("a line").to_owned();
    let mut fields: Vec<String> = lines
        .map(|line| {
            let (name, value) = line.split_once(": ").expect("a field");
            format!("{}: {value}", name.to_ascii_lowercase())
        })
        .collect();
    fields.sort();
    fields.insert(0, first);
    fields.join("\n")
}

/// So many bytes of a body.
fn body(connection: &mut Client, length: usize) -> Vec<u8> {
    while connection.bytes().len() < length {
        assert!(
            connection.read_some(PATIENCE) && !connection.ended(),
            "a body"
        );
    }
    connection.take(length)
}

/// Sends from the backend.
fn says(connection: &mut Client, bytes: impl AsRef<[u8]>) {
    connection.send(bytes.as_ref()).expect("the bridge reads");
}

#[test]
fn the_backend_gets_the_request_and_the_truth_about_its_client() {
    with_backend("", &[], |server, backend, _| {
        let mut client = asks(
            server,
            "GET /x?q=1 HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\n\
             x-forwarded-proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\nConnection: x-mine\r\n\
             X-Mine: 1\r\nProxy-Authorization: x\r\nTE: gzip\r\nKeep-Alive: 5\r\nX-Two: a\r\nX-Two: b\r\nCookie: c=d\r\n\r\n",
        );
        let mut connection = backend.accept();
        let expect = "GET /x?q=1 HTTP/1.1\ncookie: c=d\nhost: shop.example\nvia: 1.1 lurcher\nx-forwarded-for: 127.0.0.1\n\
                      x-forwarded-host: shop.example\nx-forwarded-proto: http\nx-two: a\nx-two: b";
        assert_eq!(head(&mut connection), expect);
        says(
            &mut connection,
            "HTTP/1.1 201 Well Done\r\nContent-Length: 5\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nConnection: x-own\r\n\
             X-Own: 1\r\nKeep-Alive: timeout=5\r\n\r\nhello",
        );
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (201, &b"hello"[..])
        );
        let names: Vec<&str> = answer
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(
            names.iter().filter(|name| **name == "set-cookie").count(),
            2,
            "{names:?}"
        );
        assert!(
            !names.contains(&"x-own") && !names.contains(&"keep-alive"),
            "{names:?}"
        );
        assert_eq!(answer.header("via"), Some(&b"1.1 lurcher"[..]));
        assert!(answer.header("date").is_some());
        // The connection is kept for the next request, whosever it is.
        for _ in 0..3 {
            let mut client = asks(server, GET);
            head(&mut connection);
            says(&mut connection, HELLO);
            assert_eq!(client.answer().body, b"hello");
        }
        assert!(backend.is_left_alone());
    });
}

#[test]
fn options_set_the_host_the_prefix_and_what_is_believed() {
    servers::each("", |server| {
        let backend = Backend::listen();
        let target = format!("{}/app/", backend.target);
        let _program = bridge(
            &server,
            &target,
            &["--host-header", "inner.example", "--forwarded", "keep"],
        );
        let mut client = asks(
            &server,
            "GET /x HTTP/1.1\r\nHost: outer\r\nX-Forwarded-Proto: https\r\n\r\n",
        );
        let mut connection = backend.accept();
        let head = head(&mut connection);
        assert!(
            head.starts_with("GET /app/x HTTP/1.1\nhost: inner.example\n"),
            "{head}"
        );
        assert!(head.contains("\nx-forwarded-proto: https"), "{head}");
        assert!(!head.contains("x-forwarded-host"), "{head}");
        says(&mut connection, HELLO);
        assert_eq!(client.answer().status, 200);
    });
}

#[test]
fn bodies_of_requests_have_the_length_that_they_have() {
    with_backend("", &[], |server, backend, _| {
        let posts = [
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
            "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
        ];
        let mut connection = None;
        for (post, length) in posts.into_iter().zip([3, 0, 3]) {
            if server.kind == Kind::Mongrel2 && post.contains("chunked") {
                // It does not know chunked requests.
                continue;
            }
            let mut client = asks(server, post);
            let connection = connection.get_or_insert_with(|| backend.accept());
            let head = head(connection);
            assert!(
                head.contains(&format!("\ncontent-length: {length}\n")),
                "{head}"
            );
            assert!(!head.contains("transfer-encoding"), "{head}");
            assert_eq!(body(connection, length), &b"abc"[..length]);
            says(connection, HELLO);
            assert_eq!(client.answer().body, b"hello");
        }
    });
}

#[test]
fn every_form_of_response_reaches_the_client_whole() {
    with_backend("", &[], |server, backend, _| {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 5\r\n\r\n";
        let mut connection = {
            let mut client = asks(server, GET);
            let mut connection = backend.accept();
            head(&mut connection);
            says(&mut connection, chunked);
            let answer = client.answer();
            assert_eq!(answer.header("transfer-encoding"), Some(&b"chunked"[..]));
            assert_eq!(
                (answer.body.clone(), answer.header("trailer")),
                (b"hello".to_vec(), None)
            );
            connection
        };
        // Trailers, for a client that wants them.
        let mut client = asks(
            server,
            "GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n",
        );
        assert!(head(&mut connection).contains("\nte: trailers\n"));
        says(&mut connection, chunked);
        let all = String::from_utf8_lossy(&client.upto(b": 5\r\n\r\n")).to_ascii_lowercase();
        assert!(
            all.contains("\ntrailer: x-sum\r") && all.ends_with("\nx-sum: 5\r\n\r\n"),
            "{all}"
        );

        for (method, response, status, length) in [
            (
                "HEAD",
                "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n",
                200,
                Some(&b"12345"[..]),
            ),
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, None),
            (
                "GET",
                "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
                304,
                None,
            ),
            (
                "GET",
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                404,
                Some(b"0"),
            ),
        ] {
            let mut client = asks(server, &format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n"));
            head(&mut connection);
            says(&mut connection, response);
            let asked = if method == "HEAD" {
                Asked::Head
            } else {
                Asked::Other
            };
            let answer = client.try_answer(asked, PATIENCE).expect("an answer");
            assert_eq!(
                (answer.status, answer.header("content-length")),
                (status, length),
                "{response}"
            );
            assert!(answer.body.is_empty() && !client.ended());
        }
        // Until the end of the connection: chunks for us, and an end for HTTP/1.0.
        let mut client = asks(server, GET);
        head(&mut connection);
        says(
            &mut connection,
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
        );
        drop(connection);
        assert_eq!(client.answer().body, b"hello");
        let mut client = asks(server, "GET / HTTP/1.0\r\nHost: h\r\n\r\n");
        let mut connection = backend.accept();
        head(&mut connection);
        says(&mut connection, "HTTP/1.0 200 OK\r\n\r\nhello");
        drop(connection);
        let all = client.rest();
        assert!(all.ends_with(b"\r\n\r\nhello"), "{}", all.escape_ascii());
    });
}

#[test]
fn what_a_backend_has_said_is_passed_on_while_it_pauses() {
    with_backend("", &[], |server, backend, _| {
        let mut client = asks(server, GET);
        let mut connection = backend.accept();
        head(&mut connection);
        says(
            &mut connection,
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        );
        says(
            &mut connection,
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        let hints = client.upto(b"\r\n\r\n");
        assert!(
            hints.starts_with(b"HTTP/1.1 103 "),
            "{}",
            hints.escape_ascii()
        );
        let head = client.upto(b"\r\n\r\n");
        assert!(
            head.starts_with(b"HTTP/1.1 200 "),
            "{}",
            head.escape_ascii()
        );
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            says(&mut connection, format!("{:x}\r\n{event}\r\n", event.len()));
            client.upto(event.as_bytes());
        }
        // The client goes: the backend learns of it.
        drop(client);
        assert!(connection.rest().is_empty());
    });
}

#[test]
fn so_many_requests_are_open_as_were_allowed() {
    with_backend("", &["--concurrency", "1"], |server, backend, _| {
        let mut first = asks(server, GET);
        let mut connection = backend.accept();
        head(&mut connection);
        let mut second = asks(server, "GET /second HTTP/1.1\r\nHost: h\r\n\r\n");
        let third = asks(server, "GET /third HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(backend.is_left_alone() && connection.is_silent(QUIET));
        // One that has gone while it waited is not asked for.
        drop(third);
        says(&mut connection, HELLO);
        assert_eq!(first.answer().body, b"hello");
        assert!(head(&mut connection).starts_with("GET /second "));
        says(&mut connection, HELLO);
        assert_eq!(second.answer().body, b"hello");
    });
}

#[test]
fn requests_that_a_client_sends_ahead_are_answered_in_order() {
    with_backend("", &[], |server, backend, _| {
        let ahead = "GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\nGET /3 HTTP/1.1\r\nHost: h\r\n\r\n";
        let mut client = asks(server, ahead);
        let mut connection = backend.accept();
        for number in ["1", "2", "3"] {
            let head = head(&mut connection);
            assert!(head.starts_with(&format!("GET /{number} ")), "{head}");
            says(
                &mut connection,
                format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}"),
            );
            assert_eq!(client.answer().body, number.as_bytes());
        }
    });
}

#[test]
fn a_client_that_sends_too_many_ahead_is_cut_off() {
    with_backend("", &[], |server, backend, _| {
        if server.kind == Kind::Lurcher {
            // It hands over one at a time.
            return;
        }
        let mut client = asks(server, &GET.repeat(40));
        let _connection = backend.accept();
        assert!(client.rest().is_empty());
    });
}

#[test]
fn stopping_waits_for_what_is_open() {
    with_backend("", &[], |server, backend, program| {
        let mut client = asks(server, GET);
        let mut connection = backend.accept();
        head(&mut connection);
        program.signal("TERM");
        program.said("stopping", 1);
        assert!(client.is_silent(QUIET));
        says(&mut connection, HELLO);
        assert_eq!(client.answer().body, b"hello");
        assert!(program.ended().success(), "{program}");
    });
}
