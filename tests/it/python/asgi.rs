//! ASGI: what applications are told, what they receive, what they may send and what becomes of it, on both servers.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{App, ask, each, python, text};
use crate::support::PATIENCE;
use crate::support::client::{Answer, Asked, Client};
use crate::support::servers::{self, Kind, Server};

const APP: &str = "asgi_tests:app";

fn get(server: &Server, path: &str) -> Answer {
    ask(server.address, &format!("GET {path}"), "", b"")
}

fn json(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", text(answer));
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// A request whose answer is read later.
fn open(server: &Server, path: &str) -> Client {
    let mut client = Client::connect(server.address);
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.send(head.as_bytes()).expect("send a request");
    client
}

/// Asks for the application's notes until they are so.
#[track_caller]
fn until(server: &Server, app: &App, what: &str, is_so: impl Fn(&Value) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let notes = json(&get(server, "/seen"));
        if is_so(&notes) {
            return;
        }
        assert!(Instant::now() < end, "{}\n{what}: {notes}", app.program);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How often something was noted as an end.
fn ended(notes: &Value, how: &str) -> usize {
    let ends = notes["ended"].as_array().expect("a list");
    ends.iter().filter(|end| *end == how).count()
}

/// Asks for a WebSocket; the client with what is answered.
fn handshake(server: &Server, path: &str, fields: &str) -> (Client, Answer) {
    let mut client = Client::connect(server.address);
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    );
    client.send(head.as_bytes()).expect("send a handshake");
    let answer = client.answer();
    (client, answer)
}

/// A short frame of a client; a mask of zeros leaves the payload as it is.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short one");
    let head = [0x80 | opcode, 0x80 | length, 0, 0, 0, 0];
    [&head, payload].concat()
}

#[test]
fn the_scope_says_what_was_asked() {
    each(APP, &[], |server, _| {
        let line = "GET /scope/a%20%C3%A4%2Fb?x=%201&y=%41";
        let fields = "X-Twice: 1\r\nx-twice: 2\r\nCookie: a=b\r\n";
        let scope = json(&ask(server.address, line, fields, b""));
        assert_eq!(scope["type"], "http");
        assert_eq!(scope["asgi"]["version"], "3.0");
        assert_eq!(scope["http_version"], "1.1");
        assert_eq!(scope["method"], "GET");
        assert_eq!(scope["scheme"], "http");
        assert_eq!(scope["path"], "/scope/a ä/b");
        assert_eq!(scope["raw_path"], "/scope/a%20%C3%A4%2Fb");
        assert_eq!(scope["query_string"], "x=%201&y=%41");
        assert_eq!(scope["root_path"], "");
        assert_eq!(scope["client"][0], "127.0.0.1");
        assert_eq!(scope["server"], serde_json::json!(["localhost", 80]));
        let headers = scope["headers"].as_array().expect("a list");
        let all = |name: &str| -> Vec<&str> {
            let those = headers.iter().filter(|header| header[0] == name);
            those.filter_map(|header| header[1].as_str()).collect()
        };
        assert_eq!(all("x-twice"), ["1", "2"]);
        assert_eq!(all("cookie"), ["a=b"]);
        assert_eq!(all("host"), ["localhost"]);
        for header in headers {
            let name = header[0].as_str().expect("a name");
            assert!(!name.contains(char::is_uppercase), "{name}");
        }
        // What is kept from one request to the next does not get into another's.
        let other = json(&get(server, "/scope"));
        let headers = other["headers"].to_string();
        assert!(!headers.contains("cookie") && !headers.contains("x-twice"));
        assert_eq!(other["query_string"], "");
    });
}

#[test]
fn each_request_has_its_own_state_and_context() {
    each(APP, &[], |server, _| {
        for _ in 0..3 {
            assert_eq!(text(&get(server, "/state")), "yes True none True");
        }
    });
}

#[test]
fn requests_that_come_together_find_no_traces_of_each_other() {
    const TRACES: [&str; 11] = [
        "",
        "attribute",
        "new-variable",
        "variable",
        "reference",
        "weak-reference",
        "name",
        "cancel",
        "callback",
        "waits",
        "raises",
    ];
    each("traces:app", &["--timeout", "0"], |server, app| {
        // Those that leave none do share one, or the rest would say nothing.
        let holds = open(server, "/holds");
        let named: Vec<_> = (0..6).map(|_| open(server, "/named")).collect();
        drop(holds);
        let names: std::collections::HashSet<_> = named
            .into_iter()
            .map(|mut client| text(&client.answer()))
            .collect();
        assert!(names.len() < 6, "{names:?}");
        let mut client = Client::connect(server.address);
        for trace in TRACES {
            // Of those that leave none, several may share a task again.
            for _ in 0..70 {
                let plain = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
                client.send(plain).expect("send a request");
                assert_eq!(text(&client.answer()), "nothing");
            }
            // While the first one holds the loop, the others come together.
            let all = ["holds", "", trace, "", trace, "", ""];
            let clients: Vec<_> = all
                .iter()
                .map(|path| open(server, &format!("/{path}")))
                .collect();
            for mut client in clients {
                assert_eq!(
                    text(&client.answer()),
                    "nothing",
                    "{trace}\n{}",
                    app.program
                );
            }
        }
        assert_eq!(text(&get(server, "/called")), "2");
        app.program.said("in its frame", 2);
    });
}

#[test]
fn a_body_is_received_and_then_the_end_of_the_response() {
    each(APP, &[], |server, app| {
        let body = vec![b'x'; 10_000];
        let fields = format!("Content-Length: {}\r\n", body.len());
        let told = json(&ask(server.address, "POST /echo", &fields, &body));
        assert_eq!(told["size"], 10_000);
        until(server, app, "no disconnect", |notes| {
            ended(notes, "echo") == 1
        });
    });
}

#[test]
fn a_task_that_is_left_behind_hears_that_it_is_over() {
    each(APP, &[], |server, app| {
        let answer = get(server, "/leaves-behind");
        assert_eq!(text(&answer), "left behind\n");
        until(server, app, "the end of a response", |notes| {
            ended(notes, "left http.disconnect") == 1
        });
        let (client, answer) = handshake(server, "/leaves-behind", "");
        assert_eq!(answer.status, 101);
        until(server, app, "the end of a WebSocket", |notes| {
            ended(notes, "left websocket.disconnect") == 1
        });
        drop(client);
    });
}

#[test]
fn a_large_body_is_received_in_pieces_however_the_server_passes_it() {
    let Some(python) = python() else { return };
    for (kind, stored) in [
        (Kind::Lurcher, false),
        (Kind::Lurcher, true),
        (Kind::Mongrel2, true),
    ] {
        let store = crate::support::scratch();
        let settings = if stored {
            let store = store.path().display();
            format!(", 'limits.content_length': 5000, 'upload.temp_store': '{store}/up.XXXXXX'")
        } else {
            ", 'limits.content_length': 5000, 'upload.stream': 1".to_owned()
        };
        let Some(server) = Server::start(kind, "tnetstring", &settings) else {
            continue;
        };
        let mut app = App::start(python, &server, APP, &[]);
        let body = vec![b'x'; 3_000_000];
        let fields = format!("Content-Length: {}\r\n", body.len());
        let told = json(&ask(server.address, "POST /echo", &fields, &body));
        assert_eq!(told["size"], 3_000_000);
        assert!(
            told["pieces"].as_u64().is_some_and(|pieces| pieces > 1),
            "{told}"
        );
        assert!(app.program.terminate().success(), "{}", app.program);
    }
}

#[test]
fn responses_are_framed_as_their_clients_need_it() {
    each(APP, &[], |server, _| {
        // One that is whole has its length.
        let answer = get(server, "/");
        assert_eq!(answer.header("content-length"), Some(&b"6"[..]));
        let mut client = Client::connect(server.address);
        client
            .send(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("send a request");
        let answer = client.try_answer(Asked::Head, PATIENCE).expect("an answer");
        assert_eq!((answer.status, &answer.body[..]), (200, &b""[..]));
        assert_eq!(answer.header("content-length"), Some(&b"6"[..]));
        let answer = get(server, "/empty");
        assert_eq!(
            (answer.status, answer.header("content-length")),
            (204, None)
        );
        // A file is sent by its name.
        let answer = get(server, "/file");
        assert!(text(&answer).contains("def lifespan("), "{}", text(&answer));
        let mut client = open(server, "/trailers");
        assert!(
            client
                .upto(b"x-sum: 42\r\n\r\n")
                .ends_with(b"0\r\nx-sum: 42\r\n\r\n")
        );
    });
}

#[test]
fn the_beginning_of_a_response_leaves_without_its_body() {
    each(APP, &[], |server, _| {
        let mut client = open(server, "/head-first");
        client.upto(b"\r\n\r\n");
        assert_eq!(get(server, "/go").status, 200);
        client.upto(b"abc");
    });
}

#[test]
fn requests_that_are_sent_ahead_are_answered_in_order() {
    each(APP, &[], |server, _| {
        let mut client = Client::connect(server.address);
        let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let both = ask("/slow") + &ask("/");
        client.send(both.as_bytes()).expect("send requests");
        assert_eq!(text(&client.answer()), "slow\n");
        assert_eq!(text(&client.answer()), "hello\n");
    });
}

#[test]
fn what_makes_no_sense_is_an_error_and_its_client_is_told() {
    each(APP, &[], |server, app| {
        let all = [
            "no-start",
            "start-twice",
            "no-type",
            "another-type",
            "no-status",
            "early",
            "line-end",
            "bad-name",
            "text-header",
            "text-body",
            "too-long",
            "too-short",
            "nothing",
            "start-only",
        ];
        for what in all {
            let answer = get(server, &format!("/wrong/{what}"));
            assert_eq!(answer.status, 500, "{what}\n{}", app.program);
            assert_eq!(answer.header("x-b"), None);
            // Nothing of what has gone wrong is the client's business.
            assert_eq!(text(&answer), "Internal Server Error\n");
        }
        app.program.said("/wrong/", all.len());
        app.program.said("Traceback", all.len() - 2);
        assert_eq!(text(&get(server, "/late")), "done\n");
        until(server, app, "no error", |notes| ended(notes, "late") == 1);
    });
}

#[test]
fn a_response_that_breaks_off_does_not_look_whole() {
    each(APP, &[], |server, app| {
        let mut client = open(server, "/breaks");
        let got = client.rest();
        let head = got.windows(4).position(|four| four == b"\r\n\r\n");
        let head = head.map_or(got.len(), |end| end + 4);
        // Less than the hundred bytes that it says.
        assert!(b"some".starts_with(got.get(head..).unwrap_or_default()));
        app.program.said("in the midst", 1);
        assert_eq!(get(server, "/").status, 200);
    });
}

#[test]
fn events_arrive_as_they_happen_and_end_when_their_client_leaves() {
    each(APP, &[], |server, app| {
        let mut clients: Vec<_> = (0..3).map(|_| open(server, "/events")).collect();
        for client in &mut clients {
            client.upto(b"data: 3\n\n");
        }
        until(server, app, "no streams", |notes| notes["streams"] == 3);
        drop(clients);
        until(server, app, "streams", |notes| {
            notes["streams"] == 0
                && ended(notes, "http.disconnect") + ended(notes, "the client is gone") == 3
        });
        let lines = app.program.lines();
        assert!(
            !lines.iter().any(|line| line.contains("ERROR")),
            "{}",
            app.program
        );
    });
}

#[test]
fn who_sends_waits_for_a_client_that_does_not_read() {
    let Some(python) = python() else { return };
    let Some(server) = Server::start(Kind::Lurcher, "tnetstring", "") else {
        return;
    };
    let mut app = App::start(python, &server, APP, &[]);
    let mut client = open(&server, "/flood");
    client.upto(b"xxxx");
    drop(client);
    until(&server, &app, "no end", |notes| ended(notes, "flood") == 1);
    // One who reads gets it all.
    let mut client = open(&server, "/flood");
    let answer = client.answer();
    assert_eq!(answer.body.len(), 16 << 20);
    assert!(app.program.terminate().success(), "{}", app.program);
}

#[test]
fn no_more_requests_are_with_the_application_than_it_wants() {
    each(APP, &["--concurrency", "2"], |server, app| {
        // Streams do not count for ever.
        let streams = [open(server, "/events"), open(server, "/events")];
        let mut clients: Vec<_> = (0..8).map(|_| open(server, "/slow")).collect();
        for client in &mut clients {
            assert_eq!(text(&client.answer()), "slow\n");
        }
        drop(streams);
        until(server, app, "too many", |notes| notes["most"] == 2);
    });
}

#[test]
fn websockets_talk() {
    each(APP, &[], |server, app| {
        let fields = "Sec-WebSocket-Protocol: chat, other\r\n";
        let (mut client, answer) = handshake(server, "/talk", fields);
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(answer.header("sec-websocket-protocol"), Some(&b"chat"[..]));
        assert_eq!(answer.header("x-scheme"), Some(&b"ws"[..]));
        client.send(&frame(1, b"hello")).expect("send a message");
        client.upto(b"\x81\x09got hello");
        client
            .send(&frame(2, b"\x00\x01\xff"))
            .expect("send a message");
        client.upto(b"\x82\x03\xff\x01\x00");
        client.send(&frame(9, b"there?")).expect("send a ping");
        client.upto(b"\x8a\x06there?");
        client
            .send(&frame(8, b"\x0f\xa0bye"))
            .expect("send a close");
        client.upto(b"\x88\x02\x0f\xa0");
        client.rest();
        until(server, app, "no close", |notes| {
            notes["sockets"] == serde_json::json!([[4000, "bye"]])
        });
        let (client, _) = handshake(server, "/talk", "");
        drop(client);
        until(server, app, "no end", |notes| {
            notes["sockets"] == serde_json::json!([[4000, "bye"], [1006, ""]])
        });
    });
}

#[test]
fn websockets_are_refused_denied_and_closed() {
    each(APP, &[], |server, app| {
        assert_eq!(handshake(server, "/refuse", "").1.status, 403);
        assert_eq!(handshake(server, "/raise", "").1.status, 500);
        let (_, answer) = handshake(server, "/deny", "");
        assert_eq!((answer.status, &*text(&answer)), (418, "no tea\n"));
        assert_eq!(answer.header("x-why"), Some(&b"because"[..]));
        let (mut client, _) = handshake(server, "/close", "");
        client.upto(b"\x88\x08\x0f\xa1enough");
        client.send(&frame(8, b"\x0f\xa1")).expect("send a close");
        client.rest();
        until(server, app, "not closed", |notes| {
            notes["sockets"] == serde_json::json!([4001, "closed"])
        });
        let (mut client, _) = handshake(server, "/fail", "");
        client.upto(b"\x88\x02\x03\xf3");
        let (mut client, _) = handshake(server, "/many", "");
        for number in [0, 100, 199] {
            client.upto(format!("{number}:xxx").as_bytes());
        }
        client.upto(b"\x88\x02\x03\xe8");
        app.program.said("after the handshake", 1);
    });
}

#[test]
fn a_stop_ends_websockets_at_once_and_lets_answers_end() {
    let Some(python) = python() else { return };
    servers::each("", |server| {
        let mut app = App::start(python, &server, APP, &["--graceful-timeout", "3"]);
        let (mut socket, _) = handshake(&server, "/talk", "");
        let mut stream = open(&server, "/events");
        stream.upto(b"data: 2\n\n");
        app.program.signal("TERM");
        socket.upto(b"\x88\x02\x03\xe9");
        // Streams go on until the time is up, and then they hear that nobody is there.
        stream.rest();
        assert!(app.program.ended().success(), "{}", app.program);
        app.program.said("the lifespan has ended", 1);
    });
}

#[test]
fn one_that_cannot_start_says_why() {
    let Some(python) = python() else { return };
    let Some(server) = Server::start(Kind::Lurcher, "tnetstring", "") else {
        return;
    };
    let name = "asgi_tests:refuses_to_start";
    let mut app = App::starting(python, &server, name, &[], |_| {});
    assert!(!app.program.ended().success(), "{}", app.program);
    app.program.said(
        "starting asgi_tests:refuses_to_start: the database is not there",
        1,
    );
    // One that knows no lifespan may be served all the same, unless that is wanted.
    let name = "asgi_tests:without_lifespan";
    let mut app = App::start(python, &server, name, &["--loop", "asyncio"]);
    assert_eq!(text(&get(&server, "/")), "without\n");
    assert!(app.program.terminate().success(), "{}", app.program);
    let mut app = App::starting(python, &server, name, &["--lifespan", "on"], |_| {});
    assert!(!app.program.ended().success(), "{}", app.program);
    app.program.said("its lifespan has failed", 1);
}

#[test]
fn both_interfaces_are_served_in_one_process() {
    let Some(python) = python() else { return };
    servers::each("", |server| {
        let options = [
            "--mount",
            "/old=hello:application",
            "--mount",
            "/new=asgi_tests:app",
        ];
        let mut app = App::start(python, &server, "python", &options);
        assert_eq!(text(&get(&server, "/old/")), "hello\n");
        // The path is whole, and the root says how much of it is the mount's.
        let scope = json(&get(&server, "/new/scope"));
        assert_eq!(scope["path"], "/new/scope");
        assert_eq!(scope["root_path"], "/new");
        let (mut client, _) = handshake(&server, "/new/talk", "");
        client.send(&frame(1, b"x")).expect("send a message");
        client.upto(b"got x");
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}
