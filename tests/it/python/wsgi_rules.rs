//! PEP 3333 rule by rule: heads that are refused, what becomes of a second one, bodies in every form, and every way to read. Most of it is
//! tables: many claims to one start of the servers.

use serde_json::{Value, json};

use super::{App, ask, each, python, text};
use crate::support::PATIENCE;
use crate::support::client::{Answer, Asked, Client};
use crate::support::servers::{self, Kind, Server};

const APP: &str = "wsgi_rules:application";

/// What is refused, and what is raised then.
const REFUSED: &[(&str, &str)] = &[
    (
        "a status of bytes",
        "TypeError: start_response() argument 1 must be str, not bytes",
    ),
    (
        "no digits",
        "ValueError: status code must be a 3 digit integer: b'Fine'",
    ),
    (
        "a letter in the code",
        "ValueError: status code must be a 3 digit integer: b'20x Fine'",
    ),
    (
        "four digits",
        "ValueError: status code must be a 3 digit integer: b'2000 Fine'",
    ),
    (
        "below any code",
        "ValueError: status code must be 100 or more: b'099 Fine'",
    ),
    (
        "a code alone",
        "ValueError: no space following status code: b'200'",
    ),
    (
        "no space",
        "ValueError: no space following status code: b'200Fine'",
    ),
    (
        "a line end in the reason",
        r"ValueError: control character in status reason phrase: b'200 Fine\r\nX-More: yes'",
    ),
    (
        "headers in a tuple",
        "TypeError: start_response() argument 2 must be list, not tuple",
    ),
    (
        "headers in a dict",
        "TypeError: start_response() argument 2 must be list, not dict",
    ),
    (
        "headers in a str",
        "TypeError: start_response() argument 2 must be list, not str",
    ),
    (
        "no headers",
        "TypeError: start_response() argument 2 must be list, not NoneType",
    ),
    (
        "a header in a str",
        "TypeError: each header must be a 2-tuple, not str",
    ),
    (
        "a header in a list",
        "TypeError: each header must be a 2-tuple, not list",
    ),
    (
        "one of one",
        "ValueError: each header must be a 2-tuple, got length 1",
    ),
    (
        "one of three",
        "ValueError: each header must be a 2-tuple, got length 3",
    ),
    ("a name of bytes", "TypeError: must be str, not bytes"),
    ("a number for a value", "TypeError: must be str, not int"),
    ("an empty name", "ValueError: header name is empty"),
    (
        "a space in a name",
        "ValueError: space character in header name: b'X A'",
    ),
    (
        "a tab in a name",
        r"ValueError: control character in header name: b'X\tA'",
    ),
    (
        "a colon in a name",
        "ValueError: character in header name that none may have: b'X-A:'",
    ),
    (
        "a name beyond ASCII",
        r"ValueError: character in header name that none may have: b'X-\xe9'",
    ),
    (
        "a line end in a value",
        r"ValueError: carriage return/line feed character in header value: b'b\r\nX-B: c'",
    ),
    (
        "half a line end",
        r"ValueError: carriage return/line feed character in header value: b'b\nc'",
    ),
    (
        "a zero in a value",
        r"ValueError: control character in header value: b'b\x00'",
    ),
    (
        "a value beyond Latin-1",
        r"UnicodeEncodeError: 'latin-1' codec can't encode character '\u20ac' in position 2: ordinal not in range(256)",
    ),
    (
        "what is the server's",
        "ValueError: header Transfer-Encoding is about the connection, which is the server's",
    ),
    (
        "its connection",
        "ValueError: header Connection is about the connection, which is the server's",
    ),
    (
        "a length of words",
        "ValueError: Content-Length is no number: b'some'",
    ),
    (
        "a length below zero",
        "ValueError: Content-Length is no number: b'-1'",
    ),
    ("two lengths", "ValueError: two values of Content-Length"),
    (
        "a text for an exception",
        "RuntimeError: start_response() argument 'exc_info' must be a 3-tuple or None",
    ),
    (
        "a list for an exception",
        "RuntimeError: start_response() argument 'exc_info' must be a 3-tuple or None",
    ),
    (
        "half an exception",
        "RuntimeError: start_response() argument 'exc_info' must be a 3-tuple or None",
    ),
];

/// Of these the log says which header it was.
const NAMED: &[&str] = &[
    "a number for a value",
    "a line end in a value",
    "half a line end",
    "a zero in a value",
    "a value beyond Latin-1",
    "a very long value",
    "what is the server's",
    "its connection",
];

fn get(server: &Server, path: &str) -> Answer {
    ask(server.address, &format!("GET {path}"), "", b"")
}

fn value(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("no JSON: {}", text(answer)))
}

/// Everything until the server ends the connection: the head's first line, and what is behind the head.
fn cut(server: &Server, path: &str) -> (String, String) {
    let mut client = Client::connect(server.address);
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.send(request.as_bytes()).expect("send a request");
    let all = String::from_utf8_lossy(&client.rest()).into_owned();
    let (head, body) = all.split_once("\r\n\r\n").expect("a head");
    let line = head.lines().next().expect("a line");
    (line.to_owned(), body.to_owned())
}

#[test]
fn a_malformed_head_is_refused_with_what_is_wrong_with_it() {
    let long = "b".repeat(200);
    let long =
        format!("ValueError: carriage return/line feed character in header value: b'{long}'...");
    each(APP, &[], |server, app| {
        let answer = get(server, "/heads");
        assert_eq!(answer.status, 200, "{}", text(&answer));
        let mut found = value(&answer);
        let found = found.as_object_mut().expect("an object");
        let has_notes = found.remove("notes") == Some(json!(true));
        for (case, error) in REFUSED
            .iter()
            .copied()
            .chain([("a very long value", &*long)])
        {
            let found = found.remove(case).unwrap_or_default();
            let (kind, said) = error.split_once(": ").expect("a type");
            assert_eq!(
                (&found[0], &found[1]),
                (&json!(kind), &json!(said)),
                "{case}"
            );
            let note = found[2][0].as_str().unwrap_or_default();
            let is_named = has_notes && NAMED.contains(&case);
            assert_eq!(note.starts_with("in header "), is_named, "{case}: {note}");
        }
        assert_eq!(found.keys().next(), None, "not compared");
        // One that nobody catches is answered, and says the same in the log.
        assert_eq!(get(server, "/bad_length").status, 500);
        app.program.said("Content-Length is no number: b'some'", 1);
    });
}

#[test]
fn a_second_head_needs_an_exception_and_comes_before_the_first_has_left() {
    each(APP, &[], |server, _| {
        let twice = "start_response() called more than once without exc_info";
        let answer = get(server, "/twice");
        assert_eq!(answer.status, 202);
        assert_eq!(value(&answer), json!(["RuntimeError", twice, []]));
        let answer = get(server, "/twice_late");
        assert_eq!(answer.status, 202);
        let found = text(&answer);
        let found = found.strip_prefix("begun ").expect("the first piece");
        let found = found.strip_suffix(" ended").expect("the last piece");
        let found: Value = serde_json::from_str(found).expect("JSON");
        let why = "start_response() argument 'exc_info' must be a 3-tuple or None";
        assert_eq!(found[0], json!(["RuntimeError", twice, []]));
        assert_eq!(found[1], json!(["RuntimeError", why, []]));
        assert_eq!(found[2][0], "RuntimeError");
        assert_eq!(found[3], json!(["RuntimeError", "what went wrong", []]));
        let answer = get(server, "/replaced");
        assert_eq!((answer.status, &*text(&answer)), (418, "the second"));
        assert_eq!(answer.header("x-second"), Some(&b"2"[..]));
        assert_eq!(answer.header("x-first"), None);
        assert_ne!(answer.header("content-length"), Some(&b"1"[..]));
    });
}

#[test]
fn a_body_of_any_form_is_sent_whole_and_closed() {
    each(APP, &[], |server, _| {
        let many: Vec<_> = (0..300).map(|number| format!("{number},")).collect();
        let many = many.concat();
        let cases = [
            ("/tuple", "of two", Some("6")),
            ("/nothing?list", "", Some("0")),
            ("/nothing?tuple", "", Some("0")),
            ("/nothing?empty", "", Some("0")),
            ("/nothing?generator", "", Some("0")),
            ("/writes", "one two three four", None),
            ("/sized", "ten bytes!", Some("10")),
            ("/many", &many, None),
            ("/noted", "a b", None),
            ("/at_last?ends", "begun ended", None),
        ];
        let mut client = Client::connect(server.address);
        for (path, body, length) in cases {
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client.send(request.as_bytes()).expect("send a request");
            let answer = client.answer();
            assert_eq!((answer.status, &*text(&answer)), (200, body), "{path}");
            let found = answer.header("content-length");
            assert_eq!(found, length.map(str::as_bytes), "{path}");
        }
        assert_eq!(value(&get(server, "/done")), json!(["closed", "ends"]));
        let answer = get(server, "/fields");
        assert_eq!(answer.status, 401);
        for number in 1..=30 {
            let found = answer.header(&format!("x-field-{number}"));
            assert_eq!(found, Some(format!("value {number}").as_bytes()));
        }
        let who = answer.header("www-authenticate");
        assert_eq!(who, Some(&b"Basic realm=\"here\""[..]));
        assert_eq!(answer.header("x-other"), Some(&b""[..]));
        // As they were said: whoever can join them may.
        let again = answer.headers.iter().filter(|(name, _)| name == "x-again");
        let again: Vec<_> = again.map(|(_, value)| value.as_slice()).collect();
        assert_eq!(again, [&b"one"[..], b"two, three"]);
    });
}

#[test]
fn what_went_wrong_before_the_first_piece_is_an_error_and_behind_it_an_end() {
    each(APP, &[], |server, app| {
        for path in [
            "/at_last?raises+first",
            "/no_bytes?first",
            "/no_bytes?behind+nothing",
        ] {
            let answer = get(server, path);
            let expected = (500, "Internal Server Error\n");
            assert_eq!((answer.status, &*text(&answer)), expected, "{path}");
        }
        // What was sent reaches its client, and does not look whole.
        for path in [
            "/at_last?raises",
            "/at_last?no+bytes",
            // A list is no other than what would be yielded.
            "/no_bytes?second",
        ] {
            let (line, body) = cut(server, path);
            assert!(line.starts_with("HTTP/1.1 200 "), "{path}: {line}");
            assert!(body.contains("begun"), "{path}: {body}");
            let rest = ["ended", "never", "0\r\n\r\n", "Error"];
            assert!(!rest.iter().any(|end| body.contains(end)), "{path}: {body}");
        }
        let done = json!(["raises first", "raises", "left", "no bytes"]);
        assert_eq!(value(&get(server, "/done")), done);
        for (what, times) in [
            ("ValueError: before the first piece", 1),
            ("ValueError: behind the first piece", 1),
            ("a piece of type int, which is not bytes", 2),
            ("a piece of type NoneType, which is not bytes", 1),
            ("its client is cut off", 3),
        ] {
            app.program.said(what, times);
        }
    });
}

#[test]
fn a_method_reaches_the_application_as_it_is() {
    each(APP, &[], |server, _| {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"] {
            let mut client = Client::connect(server.address);
            let length = if matches!(method, "POST" | "PUT" | "PATCH") {
                "Content-Length: 0\r\n"
            } else {
                ""
            };
            let request = format!("{method} /method HTTP/1.1\r\nHost: localhost\r\n{length}\r\n");
            client.send(request.as_bytes()).expect("send a request");
            let is_head = method == "HEAD";
            let asked = if is_head { Asked::Head } else { Asked::Other };
            let answer = client.try_answer(asked, PATIENCE).expect("an answer");
            assert_eq!(answer.header("x-method"), Some(method.as_bytes()));
            let length = answer.header("content-length").expect("a length");
            assert_eq!(length, method.len().to_string().as_bytes());
            assert_eq!(text(&answer), if is_head { "" } else { method });
        }
    });
}

#[test]
fn every_way_to_read_is_that_of_a_file() {
    let ways = [
        "read",
        "read None",
        "read -1",
        "two parts",
        "by seven",
        "nothing first",
        "readline",
        "readline of five",
        "readlines",
        "a hint",
        "iteration",
        "iteration and more",
    ];
    let bodies = [
        "",
        "\n",
        "one line without an end",
        "first\nsecond\n\nfourth",
        "first\nsecond\n",
        "ab\nand one that is longer than others\n\n\n",
    ];
    each(APP, &[], |server, _| {
        let mut client = Client::connect(server.address);
        let mut ask = |line: &str, fields: &str, body: &str| {
            let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n{body}");
            client.send(head.as_bytes()).expect("send a request");
            let answer = client.answer();
            assert_eq!(answer.status, 200, "{line} {fields}");
            text(&answer)
        };
        for way in ways {
            for body in bodies {
                use std::fmt::Write as _;
                let hex = body.bytes().fold(String::new(), |mut hex, byte| {
                    write!(hex, "{byte:02x}").expect("a String takes it");
                    hex
                });
                let way = format!("X-Way: {way}\r\n");
                let fields = format!("{way}X-Body: {hex}\r\n");
                let expected = ask("GET /expected", &fields, "");
                let fields = format!("{way}Content-Length: {}\r\n", body.len());
                assert_eq!(ask("POST /ways", &fields, body), expected, "{way} {body:?}");
                // The real one takes no chunks without a place to store them in.
                if server.kind == Kind::Lurcher {
                    let (start, end) = body.split_at(body.len() / 2);
                    let parts = [start, end].into_iter().filter(|part| !part.is_empty());
                    let chunks: Vec<_> = parts
                        .map(|part| format!("{:x}\r\n{part}\r\n", part.len()))
                        .collect();
                    let chunks = chunks.concat();
                    let fields = format!("{way}Transfer-Encoding: chunked\r\n");
                    let found = ask("POST /ways", &fields, &format!("{chunks}0\r\n\r\n"));
                    assert_eq!(found, expected, "{way} {body:?} in chunks");
                }
            }
        }
    });
}

#[test]
fn a_body_of_any_size_comes_back_byte_for_byte() {
    let Some(python) = python() else { return };
    servers::each(", 'limits.content_length': 100000", |server| {
        let mut app = App::start(python, &server, APP, &[]);
        for size in [0, 1, 11, 1024, 8191, 8192, 8193, 65_536] {
            // Every byte there is, and none where another block would have it.
            let body: Vec<u8> = (0..size)
                .map(|at: usize| (at * 31 + at / 256).to_le_bytes()[0])
                .collect();
            let fields = format!("Content-Length: {size}\r\n");
            let answer = ask(server.address, "POST /echo", &fields, &body);
            assert_eq!(answer.status, 200, "{size}");
            assert!(answer.body == body, "{size}: {} came", answer.body.len());
        }
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

#[test]
fn a_file_ends_where_its_length_was_said_to_end() {
    let lines = "the same line again and again\n".repeat(100);
    each(APP, &[], |server, _| {
        for (form, length) in [
            ("file", 3000),
            ("file", 100),
            ("part", 2970),
            ("part", 31),
            ("memory", 3000),
            ("memory", 45),
        ] {
            let answer = get(server, &format!("/file?{form}={length}"));
            let found = answer.header("content-length");
            assert_eq!(found, Some(length.to_string().as_bytes()), "{form}");
            assert!(
                lines.get(..length) == Some(&*text(&answer)),
                "{form} {length}"
            );
        }
    });
}
