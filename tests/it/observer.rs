//! Who watches a handler is told of every request, once, with what became of it: on both servers.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lurcher::handler::{Connection, Counts, End, Event, Exchange, Observer, Options};
use lurcher::wire;

use crate::support::PATIENCE;
use crate::support::client::{Asked, Client};
use crate::support::servers;

#[derive(Debug, Default)]
struct Notes {
    counts: Counts,
    exchanges: Mutex<Vec<Exchange>>,
}

impl Observer for Notes {
    fn begun(&self, request: &wire::request::Request) {
        self.counts.begun(request);
    }

    fn ended(&self, exchange: &Exchange) {
        self.exchanges.lock().unwrap().push(exchange.clone());
        self.counts.ended(exchange);
    }
}

async fn serve(mut connection: Connection) {
    while let Some(request) = connection.recv().await {
        let Event::Request(request) = request.into_event() else {
            continue;
        };
        let respond = request.respond(200);
        match &request.path[..] {
            b"/whole" => respond.send("whole\n").await.unwrap(),
            b"/same" => request.respond(304).send("").await.unwrap(),
            b"/chunks" => {
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
            // `/never`: the client leaves.
            _ => {}
        }
    }
    connection.finish().await;
}

#[test]
fn each_request_is_told_once_with_its_status_size_and_end() {
    servers::each("", |server| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let notes = Arc::new(Notes::default());
        let mut options = Options::to(&server.send).unwrap();
        options.recv_specs = vec![server.recv.parse().unwrap()];
        options.observer = Some(notes.clone());
        let connection = runtime.block_on(Connection::connect(options)).unwrap();
        let stop = connection.stop_handle();
        let serving = runtime.spawn(serve(connection));

        let mut client = Client::connect(server.address);
        let line = |method: &str, path: &str| {
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a \"b\"\r\n\r\n")
        };
        // All at once, and answered in order.
        let asked = [
            ("GET", "/whole?a=b", Asked::Other),
            ("HEAD", "/whole", Asked::Head),
            ("GET", "/same", Asked::Other),
            ("GET", "/chunks", Asked::Other),
        ];
        let all: String = asked
            .iter()
            .map(|(method, path, _)| line(method, path))
            .collect();
        client.send(all.as_bytes()).unwrap();
        for (_, path, asked) in asked {
            assert!(client.try_answer(asked, PATIENCE).is_some(), "{path}");
        }
        for path in ["/cut", "/never"] {
            let mut client = Client::connect(server.address);
            client.send(line("GET", path).as_bytes()).unwrap();
            if path == "/cut" {
                client.rest();
            } else {
                let end = Instant::now() + PATIENCE;
                while notes.counts.total() < 6 {
                    assert!(Instant::now() < end, "the last request comes");
                    std::thread::park_timeout(Duration::from_millis(5));
                }
                assert_eq!(notes.counts.open(), 1);
            }
        }
        let end = Instant::now() + PATIENCE;
        while notes.counts.served() < 6 {
            assert!(Instant::now() < end, "every request ends");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let exchanges = std::mem::take(&mut *notes.exchanges.lock().unwrap());
        let told: Vec<_> = exchanges
            .iter()
            .map(|exchange| {
                let uri = String::from_utf8_lossy(&exchange.uri).into_owned();
                (uri, exchange.status, exchange.bytes, exchange.end)
            })
            .collect();
        let expect = [
            ("/whole?a=b", Some(200), 6, End::Answered),
            ("/whole", Some(200), 0, End::Answered),
            ("/same", Some(304), 0, End::Answered),
            ("/chunks", Some(200), 3000, End::Answered),
            ("/cut", Some(200), 5, End::GivenUp),
            ("/never", None, 0, End::ClientGone),
        ];
        let expect = expect.map(|(uri, status, bytes, end)| (uri.to_owned(), status, bytes, end));
        assert_eq!(told, expect);
        assert_eq!((notes.counts.open(), notes.counts.answered()), (0, 4));
        let line = exchanges[0].combined().to_string();
        assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
        let rest = r#" +0000] "GET /whole?a=b HTTP/1.1" 200 6 "-" "a \"b\"""#;
        assert!(line.ends_with(rest), "{line}");

        stop.stop();
        runtime
            .block_on(async { tokio::time::timeout(PATIENCE, serving).await })
            .expect("the handler stops")
            .unwrap();
    });
}
