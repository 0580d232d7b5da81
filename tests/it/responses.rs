//! The response writer behind both servers, as clients see it.

use std::time::Duration;

use lurcher::handler::{Connection, Event, Options};

use crate::support::PATIENCE;
use crate::support::client::{Asked, Client, fetch};
use crate::support::servers::{self, Server};

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
