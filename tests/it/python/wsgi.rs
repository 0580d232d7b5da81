//! WSGI: what applications are told, what they may read, and what becomes of what they say.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{App, ask, each, program, python, python_with, samples, text};
use crate::support::client::{Answer, Asked, Client};
use crate::support::front::Front;
use crate::support::program::Program;
use crate::support::servers::{self, Kind, Server};
use crate::support::{PATIENCE, scratch};

const CHECKED: &str = "wsgi_tests:application";
const BARE: &str = "wsgi_tests:bare";

fn environ(answer: &Answer) -> BTreeMap<String, Value> {
    assert_eq!(answer.status, 200, "{}", text(answer));
    serde_json::from_slice(&answer.body).expect("a JSON object")
}

fn head(client: &mut Client, line: &str) -> Answer {
    let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.send(request.as_bytes()).unwrap();
    let asked = if line.starts_with("HEAD") {
        Asked::Head
    } else {
        Asked::Other
    };
    client.try_answer(asked, PATIENCE).expect("an answer")
}

fn seen(server: &Server, what: &str) -> u64 {
    let answer = ask(server.address, "GET /seen", "", b"");
    let seen = environ(&answer);
    seen.get(what).and_then(Value::as_u64).unwrap_or_default()
}

/// Asks until it is so.
#[track_caller]
fn until(server: &Server, what: &str, least: u64) {
    let end = std::time::Instant::now() + PATIENCE;
    while seen(server, what) < least {
        assert!(std::time::Instant::now() < end, "never {least} {what}");
    }
}

/// An application behind a front of its own: its name, and options.
fn behind(python: &Path, front: &Front, words: &[&str]) -> App {
    let (app, options) = words.split_first().expect("an application");
    let mut command = Command::new(program());
    command
        .args(["run", app, &front.send, &front.recv])
        .arg("--python")
        .arg(python)
        .args(options)
        .current_dir(samples("apps"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    App {
        program: Program::start(&mut command),
    }
}

#[test]
fn the_environ_is_right_in_every_key() {
    each(CHECKED, &[], |server, _| {
        let fields = "X-Some-Thing: a\r\nX_Some_Thing: forged\r\nx-many: 1\r\nX-Many: 2\r\nCookie: a=1\r\n\
            Cookie: b=2\r\nContent-Type: text/x\r\nContent-Length: 3\r\nRemote-User: root\r\nProxy: http://evil/\r\n";
        let line = "POST /a%20b/%C3%A9/%2525/c%2Fd?q=%20&%C3%A9";
        let answer = ask(server.address, line, fields, b"abc");
        let mut environ = environ(&answer);
        let port = server.address.port();
        for (key, expected) in [
            ("CONTENT_LENGTH", "3"),
            ("CONTENT_TYPE", "text/x"),
            ("HTTP_COOKIE", "a=1; b=2"),
            ("HTTP_HOST", "localhost"),
            ("HTTP_REMOTE_USER", "root"),
            ("HTTP_X_FORWARDED_FOR", "127.0.0.1"),
            ("HTTP_X_MANY", "1, 2"),
            ("HTTP_X_SOME_THING", "a"),
            ("PATH_INFO", "/a b/\u{c3}\u{a9}/%25/c/d"),
            ("QUERY_STRING", "q=%20&%C3%A9"),
            ("RAW_URI", "/a%20b/%C3%A9/%2525/c%2Fd?q=%20&%C3%A9"),
            ("REMOTE_ADDR", "127.0.0.1"),
            ("REQUEST_METHOD", "POST"),
            ("REQUEST_URI", "/a%20b/%C3%A9/%2525/c%2Fd?q=%20&%C3%A9"),
            ("SCRIPT_NAME", ""),
            ("SERVER_NAME", "localhost"),
            ("SERVER_PORT", "80"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("wsgi.url_scheme", "http"),
        ] {
            let found = environ.remove(key);
            assert_eq!(found, Some(expected.into()), "{key} on {port}");
        }
        for (key, expected) in [
            ("wsgi.multithread", false),
            ("wsgi.multiprocess", false),
            ("wsgi.run_once", false),
            ("wsgi.input_terminated", true),
        ] {
            assert_eq!(environ.remove(key), Some(expected.into()), "{key}");
        }
        assert_eq!(environ.remove("wsgi.version"), Some([1, 0].into()));
        let software = environ.remove("SERVER_SOFTWARE").unwrap_or_default();
        assert!(software.as_str().unwrap().starts_with("lurcher/"));
        // The validator puts nothing in, and nobody else either.
        assert_eq!(environ.keys().collect::<Vec<_>>(), Vec::<&String>::new());
        let old = "GET /x HTTP/1.0\r\nHost: [::1]:8080\r\n\r\n";
        let mut client = Client::connect(server.address);
        client.send(old.as_bytes()).unwrap();
        let environ = self::environ(&client.answer());
        assert_eq!(environ["SERVER_PROTOCOL"], "HTTP/1.0");
        assert_eq!(environ["SERVER_NAME"], "[::1]");
        assert_eq!(environ["SERVER_PORT"], "8080");
        assert_eq!(environ["QUERY_STRING"], "");
        assert!(!environ.contains_key("CONTENT_LENGTH"));
    });
}

#[test]
fn the_place_of_an_application_is_its_route_or_its_mount() {
    let Some(python) = python() else { return };
    let routes = "'/': app, '/shop/': app, '/us(er)/': app, '/deep/er': app";
    let front = Front::routed("", routes);
    for (options, cases) in [
        (
            &["wsgi_tests:application"][..],
            &[
                ("/x/y", "", "/x/y"),
                ("/", "", "/"),
                ("/shop/", "/shop", "/"),
                ("/shop/x%20y", "/shop", "/x y"),
                ("/deep/er", "/deep/er", ""),
                ("/deep/er/x", "/deep/er", "/x"),
                // The route fits, and is no place that a name ends at.
                ("/deep/eric", "", "/deep/eric"),
                ("/user/", "", "/user/"),
            ][..],
        ),
        (
            &["python", "--mount", "/shop/in=wsgi_tests:application"],
            &[
                ("/shop/in/x", "/shop/in", "/x"),
                ("/shop/%69n", "/shop/in", ""),
            ],
        ),
    ] {
        let mut app = behind(python, &front, options);
        app.ready(1);
        for (path, script, info) in cases {
            let answer = ask(front.address, &format!("GET {path}"), "", b"");
            let environ = environ(&answer);
            assert_eq!(
                (&environ["SCRIPT_NAME"], &environ["PATH_INFO"]),
                (&(*script).into(), &(*info).into()),
                "{path}"
            );
        }
        assert!(app.program.terminate().success(), "{}", app.program);
    }
}

#[test]
fn nobody_gets_what_another_has_sent() {
    each(BARE, &[], |server, _| {
        let mut clients = [(); 3].map(|()| Client::connect(server.address));
        // Without chance, so that what goes wrong goes wrong again.
        let mut state = 12_345_u64;
        let mut next = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for turn in 0..400 {
            let names = [
                "X-A",
                "X-B",
                "Cookie",
                "Authorization",
                "User-Agent",
                "X-C",
                "Host",
            ];
            let mut sent: BTreeMap<String, String> = BTreeMap::new();
            let mut request = format!("GET /p{}?q={} HTTP/1.1\r\n", next(3), next(3));
            for name in names {
                if name != "Host" && next(3) == 0 {
                    continue;
                }
                // Seldom one that is too long to be kept.
                let length = if next(20) == 0 { 1500 } else { 1 };
                let mut value = next(4).to_string().repeat(length);
                request.extend([name, ": ", value.as_str(), "\r\n"]);
                if name != "Host" && next(10) == 0 {
                    let more = next(4).to_string();
                    request.extend([name, ": ", more.as_str(), "\r\n"]);
                    value.push_str(if name == "Cookie" { "; " } else { ", " });
                    value.push_str(&more);
                }
                let key = format!("HTTP_{}", name.to_uppercase().replace('-', "_"));
                sent.insert(key, value);
            }
            sent.insert("SERVER_NAME".to_owned(), sent["HTTP_HOST"].clone());
            let client = &mut clients[turn % 3];
            client.send(format!("{request}\r\n").as_bytes()).unwrap();
            let environ = environ(&client.answer());
            let found: BTreeMap<String, String> = environ
                .iter()
                .filter(|(key, _)| {
                    (key.starts_with("HTTP_") && *key != "HTTP_X_FORWARDED_FOR")
                        || *key == "SERVER_NAME"
                })
                .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
                .collect();
            assert_eq!(found, sent, "in turn {turn}: {request}");
        }
    });
}

#[test]
fn bodies_are_read_in_every_way() {
    each(BARE, &[], |server, _| {
        let body = b"abcdef\nsecond\nthird\nfourth\nthe rest\nis this";
        let fields = format!("Content-Length: {}\r\n", body.len());
        let answer = ask(server.address, "POST /reads", &fields, body);
        let expected = "[b'ab', b'cde', b'f\\n', [b'second\\n'], b'third\\n', b'', b'fourth\\nthe rest\\nis this', \
            b'', b'', b'', []]";
        assert_eq!(text(&answer), expected);
        if server.kind == Kind::Mongrel2 {
            // It takes those as uploads only.
            return;
        }
        let chunked = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let answer = ask(
            server.address,
            "POST /counts",
            "Transfer-Encoding: chunked\r\n",
            chunked,
        );
        // Who reads by its length finds it too.
        assert_eq!(text(&answer), "5 495 5\n");
    });
}

#[test]
fn uploads_are_read_as_they_arrive_and_from_files() {
    let Some(python) = python() else { return };
    let folder = scratch();
    let stored = folder.path().join("up.XXXXXX");
    let stored = format!(", 'upload.temp_store': '{}'", stored.display());
    for settings in [", 'upload.stream': 1", &stored] {
        servers::each(settings, |server| {
            let mut app = App::start(python, &server, CHECKED, &[]);
            let body: Vec<u8> = (0..2_000_000_u32).map(|at| at.to_le_bytes()[1]).collect();
            let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
            let fields = format!("Content-Length: {}\r\n", body.len());
            let mut client = Client::connect(server.address);
            // One after the other on a connection: nothing is left of the first.
            for _ in 0..2 {
                let head = format!("POST /counts HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
                client.send(&[head.as_bytes(), &body].concat()).unwrap();
                let expected = format!("{0} {sum} {0}\n", body.len());
                assert_eq!(text(&client.answer()), expected, "{}", app.program);
            }
            assert!(app.program.terminate().success(), "{}", app.program);
            let left = std::fs::read_dir(folder.path()).unwrap();
            assert_eq!(left.count(), 0, "stored bodies stay");
        });
    }
}

#[test]
fn a_streamed_body_that_is_lost_is_an_error_and_one_that_is_left_ends_the_connection() {
    let Some(python) = python() else { return };
    servers::each(", 'upload.stream': 1", |server| {
        let mut app = App::start(python, &server, BARE, &["--threads", "2"]);
        let head = |path: &str| {
            let start = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n");
            format!("{start}Content-Length: 5000000\r\n\r\n").into_bytes()
        };
        let mut client = Client::connect(server.address);
        client.send(&head("/loses")).unwrap();
        client.send(&vec![b'a'; 100_000]).unwrap();
        until(&server, "reading", 1);
        drop(client);
        until(&server, "lost", 1);
        app.program.said("answering POST /loses", 1);
        let mut client = Client::connect(server.address);
        client.send(&head("/ignores")).unwrap();
        let answer = client.answer();
        assert_eq!(
            (text(&answer).as_str(), answer.header("connection")),
            ("not read\n", Some(&b"close"[..]))
        );
        client.rest();
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

#[test]
fn what_is_returned_leaves_as_it_is_produced() {
    each(CHECKED, &["--threads", "2"], |server, _| {
        let answer = ask(server.address, "GET /written", "", b"");
        assert_eq!(text(&answer), "one\ntwo\nthree\n");
        let answer = ask(server.address, "GET /late", "", b"");
        assert_eq!((answer.status, text(&answer).as_str()), (202, "late\n"));
        let mut client = Client::connect(server.address);
        client
            .send(b"GET /gated HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        client.upto(b"first\n");
        // Only now it may go on.
        ask(server.address, "GET /opens", "", b"");
        client.upto(b"second\n");
        client.upto(b"0\r\n\r\n");
        let old = "GET /gated HTTP/1.0\r\nHost: localhost\r\n\r\n";
        let mut client = Client::connect(server.address);
        client.send(old.as_bytes()).unwrap();
        client.upto(b"first\n");
        ask(server.address, "GET /opens", "", b"");
        // Without chunks: until the end of the connection.
        assert!(client.rest().ends_with(b"second\n"));
    });
}

#[test]
fn a_list_is_one_response_with_its_length() {
    each(BARE, &[], |server, _| {
        let mut client = Client::connect(server.address);
        for (line, status, length, body) in [
            ("GET /pieces", 200, Some("4"), "abc\n"),
            ("HEAD /pieces", 200, Some("4"), ""),
            ("HEAD /late", 202, None, ""),
            ("GET /status?204", 204, None, ""),
            ("GET /status?304", 304, None, ""),
            ("GET /status?404", 404, Some("7"), "a body\n"),
        ] {
            let answer = head(&mut client, line);
            let found = answer
                .header("content-length")
                .map(|found| String::from_utf8_lossy(found));
            assert_eq!(
                (answer.status, found.as_deref(), text(&answer).as_str()),
                (status, length, body),
                "{line}"
            );
        }
        let answer = head(&mut client, "GET /cookies");
        let cookies = answer
            .headers
            .iter()
            .filter(|(name, _)| name == "set-cookie");
        assert_eq!(cookies.count(), 2);
        assert_eq!(answer.header("content-length"), Some(&b"0"[..]));
        assert!(answer.header("date").is_some() && answer.header("connection").is_none());
        let answer = head(&mut client, "GET /large");
        assert_eq!(answer.body.len(), 3_000_001);
        assert_eq!(answer.header("content-length"), Some(&b"3000001"[..]));
    });
}

#[test]
fn a_reason_need_not_be_ascii() {
    each("troubles:application", &[], |server, _| {
        let mut client = Client::connect(server.address);
        client
            .send(b"GET /reason HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("send a request");
        let line = client.upto(b"\r\n");
        assert_eq!(line, b"HTTP/1.1 200 \xc4u\xdferst gut\r\n");
        assert_eq!(client.upto(b"well\n").last(), Some(&b'\n'));
    });
}

#[test]
fn what_is_raised_is_answered_and_told_in_the_log() {
    each(BARE, &[], |server, app| {
        for (path, why) in [
            ("/raises", "KeyError: 'before the body'"),
            ("/leaves?exit", "SystemExit: no"),
            ("/leaves?interrupt", "KeyboardInterrupt: no"),
            ("/no_start", "start_response() was not called"),
            ("/no_bytes", "a piece of type str"),
        ] {
            let answer = ask(server.address, &format!("GET {path}"), "", b"");
            assert_eq!(
                (answer.status, text(&answer).as_str()),
                (500, "Internal Server Error\n"),
                "{path}"
            );
            app.program.said(
                &format!("answering GET {}: ", path.split('?').next().unwrap_or(path)),
                1,
            );
            app.program.said(why, 1);
        }
        // The worker is there still, and the same one.
        assert_eq!(app.ready(1).len(), 1);
    });
}

#[test]
fn what_goes_wrong_in_the_middle_cuts_the_client_off() {
    each(BARE, &["--threads", "2"], |server, app| {
        let whole = |path: &str| {
            let mut client = Client::connect(server.address);
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client.send(request.as_bytes()).unwrap();
            let rest = client.rest();
            (String::from_utf8_lossy(&rest).into_owned(), rest)
        };
        let (found, _) = whole("/closes");
        assert!(!found.contains("0\r\n\r\n"), "{found}");
        app.program.said("ValueError: in the middle", 1);
        assert_eq!(seen(server, "closed"), 1);
        let (found, _) = whole("/too_late");
        assert!(
            !found.contains("never") && !found.contains("Sorry"),
            "{found}"
        );
        app.program.said("RuntimeError: what it was about", 1);
        for path in ["/short_body", "/short_body?list"] {
            let (found, _) = whole(path);
            assert!(found.len() < 300, "{found}");
            let declared = found.split("\r\n\r\n").nth(1).unwrap_or_default();
            assert!(declared.len() < 30, "{found}");
        }
        app.program.said("its Content-Length says 30", 2);
        let mut client = Client::connect(server.address);
        for path in ["/long_body", "/long_body?list"] {
            assert_eq!(text(&head(&mut client, &format!("GET {path}"))), "abc");
        }
        app.program.said("longer than its Content-Length", 2);
    });
}

#[test]
fn a_client_that_is_behind_is_waited_for_and_one_that_leaves_ends_it() {
    let Some(python) = python() else { return };
    let front = Server::start(Kind::Lurcher, "tnetstring", "").unwrap();
    let mut app = App::start(python, &front, BARE, &["--threads", "2"]);
    let mut client = Client::connect(front.address);
    client
        .send(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    client.upto(b"xxxx");
    // It produces until buffers are full, and then nothing any more.
    let end = std::time::Instant::now() + PATIENCE;
    let mut before = 0;
    loop {
        std::thread::park_timeout(Duration::from_millis(200));
        let now = seen(&front, "produced");
        if now == before {
            break;
        }
        before = now;
        assert!(
            std::time::Instant::now() < end,
            "it goes on for ever: {now} pieces"
        );
    }
    assert!(
        before < 1_000,
        "{before} pieces of 64 KiB for one that does not read"
    );
    assert_eq!(seen(&front, "closed"), 0);
    drop(client);
    until(&front, "closed", 1);
    assert!(app.program.terminate().success(), "{}", app.program);
}

#[test]
fn files_are_sent_by_whoever_does_it_best() {
    let content = b"0123456789".repeat(100_000);
    each(BARE, &[], |server, _| {
        for (form, from, length) in [
            ("memory", 0, None),
            ("packed", 0, None),
            ("file", 0, Some("1000000")),
            ("offset", 10, Some("999990")),
        ] {
            let answer = ask(server.address, &format!("GET /file?{form}"), "", b"");
            assert!(
                answer.body == content[from..],
                "{form}: {} bytes",
                answer.body.len()
            );
            let found = answer
                .header("content-length")
                .map(|found| String::from_utf8_lossy(found));
            assert_eq!(found.as_deref(), length, "{form}");
        }
        let answer = head(&mut Client::connect(server.address), "HEAD /file?file");
        assert_eq!((answer.status, answer.body.len()), (200, 0));
    });
    // By the server itself: it is another process that opens the file.
    let Some(python) = python() else { return };
    let folder = scratch();
    let folder = folder.path().canonicalize().unwrap();
    let base = folder.to_str().unwrap();
    for allowed in [true, false] {
        let setting = format!(", 'sendfile.base': '{base}'");
        let setting = if allowed { &*setting } else { "" };
        let server = Server::start(Kind::Lurcher, "json", setting).unwrap();
        let mut app = App::start(python, &server, BARE, &["--sendfile-base", base]);
        let fields = format!("X-Folder: {base}\r\n");
        if allowed {
            let answer = ask(server.address, "GET /file?named", &fields, b"");
            assert!(answer.body == content, "{} bytes", answer.body.len());
        } else {
            // One that must not, does not, and nobody else does.
            let mut client = Client::connect(server.address);
            let request = format!("GET /file?named HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
            client.send(request.as_bytes()).unwrap();
            assert!(client.rest().len() < 1_000);
        }
        assert!(app.program.terminate().success(), "{}", app.program);
    }
}

#[test]
fn threads_answer_at_once_and_each_client_in_order() {
    each(CHECKED, &["--threads", "4"], |server, _| {
        let mut clients = [(); 4].map(|()| Client::connect(server.address));
        for client in &mut clients {
            client
                .send(b"GET /meets HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
        }
        let mut names: Vec<String> = clients
            .iter_mut()
            .map(|client| text(&client.answer()))
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "MainThread",
                "lurcher-wsgi-2",
                "lurcher-wsgi-3",
                "lurcher-wsgi-4"
            ]
        );
        let mut client = Client::connect(server.address);
        let request = |number| format!("GET /ordered?{number} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let requests = (1..=5).map(request).collect::<Vec<_>>().concat();
        client.send(requests.as_bytes()).unwrap();
        for number in 1..=5 {
            assert_eq!(text(&client.answer()), number.to_string());
        }
    });
}

fn in_greenlets(io: &str) {
    let Some(python) = python_with(&[io]) else {
        return;
    };
    servers::each(", 'upload.stream': 1", |server| {
        let mut app = App::start(python, &server, CHECKED, &["--io", io]);
        let environ = environ(&ask(server.address, "GET /x", "", b""));
        assert_eq!(environ["wsgi.multithread"], true);
        // A body that is waited for, a response that is, and four others meanwhile.
        let mut upload = Client::connect(server.address);
        let head = "POST /counts HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
        upload.send(head.as_bytes()).unwrap();
        upload.send(&vec![1; 500_000]).unwrap();
        let mut gated = Client::connect(server.address);
        gated
            .send(b"GET /gated HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        gated.upto(b"first\n");
        let mut endless = Client::connect(server.address);
        endless
            .send(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut clients = [(); 4].map(|()| Client::connect(server.address));
        for client in &mut clients {
            client
                .send(b"GET /meets HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
        }
        for client in &mut clients {
            assert_eq!(client.answer().status, 200);
        }
        drop(endless);
        ask(server.address, "GET /opens", "", b"");
        gated.upto(b"second\n");
        upload.send(&vec![1; 500_000]).unwrap();
        assert_eq!(text(&upload.answer()), "1000000 1000000 1000000\n");
        until(&server, "closed", 1);
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

#[test]
fn gevent_has_greenlets_in_place_of_threads() {
    in_greenlets("gevent");
}

#[test]
fn eventlet_has_greenlets_in_place_of_threads() {
    in_greenlets("eventlet");
}
