//! The response writer behind both servers, as clients see it.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lurcher::handler::{Connection, End, Event, Exchange, Observer, Options};

use crate::support::client::{Asked, Client, fetch};
use crate::support::servers::{self, Kind, Server};
use crate::support::{PATIENCE, scratch};

/// Serves until the connection is stopped; what is answered is said by the path.
async fn serve(mut connection: Connection) {
    while let Some(request) = connection.recv().await {
        let Event::Request(request) = request.into_event() else {
            continue;
        };
        let respond = request.respond(200).header("Content-Type", "text/plain");
        match &request.path[..] {
            b"/whole" => respond.send("whole\n").await.unwrap(),
            b"/none" => request.respond(204).send("").await.unwrap(),
            b"/known" | b"/unknown" => {
                let respond = match &request.path[..] {
                    b"/known" => respond.length(3000),
                    _ => respond,
                };
                let mut body = respond.stream().unwrap();
                for _ in 0..3 {
                    body.write([b'x'; 1000]).await.unwrap();
                }
                body.finish().await.unwrap();
            }
            b"/cut" => {
                let mut body = respond.stream().unwrap();
                body.write("begun").await.unwrap();
            }
            _ => request.respond(404).send("").await.unwrap(),
        }
    }
    connection.finish().await;
}

fn with_handler(server: &Server, test: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let mut options = Options::to(&server.send).unwrap();
    options.recv_specs = vec![server.recv.parse().unwrap()];
    let connection = runtime.block_on(Connection::connect(options)).unwrap();
    let stop = connection.stop_handle();
    let serving = runtime.spawn(serve(connection));
    test();
    stop.stop();
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, serving).await })
        .expect("the handler stops")
        .unwrap();
}

#[test]
fn clients_of_both_servers_get_what_was_written() {
    servers::each("", |server| {
        with_handler(&server, || {
            // One connection for all: each response ends where the next begins.
            let mut client = Client::connect(server.address);
            let mut ask = |method: &str, path: &str| {
                let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                client.send(head.as_bytes()).unwrap();
                let asked = if method == "HEAD" {
                    Asked::Head
                } else {
                    Asked::Other
                };
                client.try_answer(asked, PATIENCE).expect("an answer")
            };
            let whole = ask("GET", "/whole");
            assert_eq!((whole.status, &whole.body[..]), (200, &b"whole\n"[..]));
            assert!(whole.header("date").is_some());
            let head = ask("HEAD", "/whole");
            assert_eq!(head.header("content-length"), Some(&b"6"[..]));
            assert_eq!(ask("GET", "/none").status, 204);
            let known = ask("GET", "/known");
            assert_eq!(known.body, [b'x'; 3000]);
            assert_eq!(known.header("content-length"), Some(&b"3000"[..]));
            let unknown = ask("GET", "/unknown");
            assert_eq!(unknown.body, [b'x'; 3000]);
            assert_eq!(unknown.header("content-length"), None);
            assert_eq!(ask("GET", "/other").status, 404);
            assert!(client.is_silent(Duration::from_millis(50)));
        });
    });
}

#[test]
fn old_clients_of_both_servers_get_the_end_of_the_connection() {
    servers::each("", |server| {
        with_handler(&server, || {
            for (path, length) in [("/unknown", 3000), ("/known", 3000), ("/whole", 6)] {
                let answer = fetch(server.address, &format!("GET {path} HTTP/1.0\r\n\r\n"));
                assert_eq!((answer.status, answer.body.len()), (200, length), "{path}");
            }
        });
    });
}

#[test]
fn a_response_that_was_given_up_does_not_look_whole() {
    servers::each("", |server| {
        with_handler(&server, || {
            let mut client = Client::connect(server.address);
            client
                .send(b"GET /cut HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            // What was written before may be lost with the connection; the last chunk must not be there.
            let rest = String::from_utf8(client.rest()).unwrap();
            assert!(!rest.ends_with("0\r\n\r\n"), "{rest:?}");
        });
    });
}

/// What was told of each request: status, bytes, end.
#[derive(Debug, Default)]
struct Notes(Mutex<Vec<(Option<u16>, u64, End)>>);

impl Observer for Notes {
    fn ended(&self, exchange: &Exchange) {
        let told = (exchange.status, exchange.bytes, exchange.end);
        self.0.lock().unwrap().push(told);
    }
}

#[test]
fn a_file_that_the_server_writes_is_the_body_and_counts_for_those_who_watch() {
    const BYTES: usize = 3_000_000;
    let directory = scratch();
    let file = directory.path().join("file");
    let content: Vec<u8> = (0_u8..251).cycle().take(BYTES).collect();
    fs::write(&file, &content).unwrap();
    let settings = format!(", 'sendfile.base': '{}'", directory.path().display());
    let server = Server::start(Kind::Lurcher, "json", &settings).expect("our own program");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let notes = Arc::new(Notes::default());
    let mut options = Options::to(&server.send).unwrap();
    options.recv_specs = vec![server.recv.parse().unwrap()];
    options.observer = Some(Arc::clone(&notes) as Arc<dyn Observer>);
    let mut connection = runtime.block_on(Connection::connect(options)).unwrap();
    let stop = connection.stop_handle();
    let name = file.display().to_string();
    let serving = runtime.spawn(async move {
        while let Some(request) = connection.recv().await {
            let Event::Request(request) = request.into_event() else {
                continue;
            };
            let respond = request.respond(200).header("Content-Type", "x/y");
            match &request.path[..] {
                b"/file" => respond.send_file(&name, BYTES as u64).await.unwrap(),
                b"/missing" => respond.send_file(format!("{name}-not"), 3).await.unwrap(),
                _ => respond.send("").await.unwrap(),
            }
        }
        connection.finish().await;
    });
    let line = |method: &str, version: &str, path: &str| {
        format!("{method} {path} HTTP/{version}\r\nHost: localhost\r\n\r\n")
    };
    let mut client = Client::connect(server.address);
    for _ in 0..2 {
        client.send(line("GET", "1.1", "/file").as_bytes()).unwrap();
        let answer = client.answer();
        assert_eq!(answer.header("content-type"), Some(&b"x/y"[..]));
        assert!(answer.body == content);
    }
    client
        .send(line("HEAD", "1.1", "/file").as_bytes())
        .unwrap();
    let answer = client.try_answer(Asked::Head, PATIENCE).unwrap();
    let length = BYTES.to_string();
    assert_eq!(answer.header("content-length"), Some(length.as_bytes()));
    client
        .send(line("GET", "1.1", "/empty").as_bytes())
        .unwrap();
    assert_eq!(client.answer().status, 200);
    // The close stands behind the file.
    let mut old = Client::connect(server.address);
    old.send(line("GET", "1.0", "/file").as_bytes()).unwrap();
    assert!(old.rest().ends_with(&content));
    // A file that is not there ends the connection, and nothing looks whole.
    let mut client = Client::connect(server.address);
    client
        .send(line("GET", "1.1", "/missing").as_bytes())
        .unwrap();
    assert!(client.rest().ends_with(b"\r\nContent-Length: 3\r\n\r\n"));
    stop.stop();
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, serving).await })
        .expect("the handler stops")
        .unwrap();
    let all = (Some(200), BYTES as u64, End::Answered);
    let none = (Some(200), 0, End::Answered);
    let missing = (Some(200), 3, End::Answered);
    let told = notes.0.lock().unwrap();
    // How it looks whether the server is there is a request too.
    assert!(
        told.ends_with(&[all, all, none, none, all, missing]),
        "{told:?}"
    );
}
