//! `serve` with an axum application behind both servers: what clients get, and what the application notices of them.

#[path = "../../examples/axum.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "it is a program: it has a main function of its own"
)]
mod example;

use std::convert::Infallible;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::sse::{self, Sse};
use axum::routing::{any, get, post};
use futures_util::stream;
use lurcher::handler::{Connection, Options, Serve, serve};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::support::client::{Answer, Asked, Client, fetch};
use crate::support::servers::{self, Kind, Server};
use crate::support::{PATIENCE, scratch};

/// An application that serves, in a thread with a runtime of its own.
struct Served {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(server: &Server, app: Router) -> Self {
        Self::with(server, app, |serve| serve)
    }

    fn with(
        server: &Server,
        app: Router,
        how: impl FnOnce(Serve<Router>) -> Serve<Router> + Send + 'static,
    ) -> Self {
        let mut options = Options::to(&server.send).unwrap();
        options.recv_specs = vec![server.recv.parse().unwrap()];
        options.subscription_timeout = PATIENCE;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let connection = Connection::connect(options).await.unwrap();
                how(serve(connection, app))
                    .graceful_shutdown(async { drop(stopped.await) })
                    .await;
            });
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    fn ended(mut self) {
        self.stop();
        let thread = self.thread.take().unwrap();
        thread
            .join()
            .expect("no panic but those of the application");
    }
}

fn ask(client: &mut Client, request: &str) -> Answer {
    client.send(request.as_bytes()).unwrap();
    client.answer()
}

fn get_of(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn text(answer: &Answer) -> (u16, &str) {
    (answer.status, str::from_utf8(&answer.body).unwrap())
}

/// Waits for a message of the application.
#[track_caller]
fn told<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, receiver.recv()).await })
        .expect("the application says something")
        .expect("the application is there")
}

/// Says that it was dropped.
struct Guard(mpsc::UnboundedSender<&'static str>, &'static str);

impl Drop for Guard {
    fn drop(&mut self) {
        // Nobody may listen any more.
        self.0.send(self.1).unwrap_or_default();
    }
}

#[test]
fn requests_reach_the_application_and_its_answers_the_client() {
    servers::each("", |server| {
        let app = example::app()
            .route(
                "/seen",
                any(async |uri: Uri, headers: HeaderMap| {
                    let many: Vec<&str> = headers
                        .get_all("x-many")
                        .iter()
                        .map(|value| value.to_str().unwrap())
                        .collect();
                    format!("{uri} {}", many.join("+"))
                }),
            )
            .route("/none", get(async || StatusCode::NO_CONTENT))
            .route("/closes", get(async || ([("connection", "close")], "bye")));
        let served = Served::start(&server, app);
        let mut client = Client::connect(server.address);
        let answer = ask(&mut client, &get_of("/"));
        assert_eq!(text(&answer), (200, "hello\n"));
        assert_eq!(answer.header("content-length"), Some(&b"6"[..]));
        assert!(answer.header("date").is_some());
        let answer = ask(&mut client, &get_of("/greet/J%C3%B6rg"));
        let expect = r#"{"address":"127.0.0.1","hello":"Jörg","route":"/"}"#;
        assert_eq!(text(&answer), (200, expect));
        let lines = "Host: localhost\r\nX-Many: a\r\nX-Many: b";
        let answer = ask(
            &mut client,
            &format!("GET /seen?q=%20+&b HTTP/1.1\r\n{lines}\r\n\r\n"),
        );
        assert_eq!(text(&answer), (200, "/seen?q=%20+&b a+b"));
        let post = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc";
        let answer = ask(&mut client, post);
        assert_eq!(text(&answer), (200, "abc"));
        client
            .send(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let answer = client.try_answer(Asked::Head, PATIENCE).unwrap();
        assert_eq!(answer.header("content-length"), Some(&b"6"[..]));
        assert_eq!(ask(&mut client, &get_of("/none")).status, 204);
        assert_eq!(ask(&mut client, &get_of("/lost")).status, 404);
        assert_eq!(text(&ask(&mut client, &get_of("/closes"))), (200, "bye"));
        assert_eq!(client.rest(), b"");
        let answer = fetch(server.address, "GET / HTTP/1.0\r\n\r\n");
        assert_eq!(text(&answer), (200, "hello\n"));
        served.ended();
    });
}

#[test]
fn requests_of_one_client_are_answered_in_their_order() {
    servers::each("", |server| {
        let release = Arc::new(Semaphore::new(0));
        let waits = Arc::clone(&release);
        let app = Router::new()
            .route(
                "/slow",
                get(async move || {
                    waits.acquire().await.unwrap().forget();
                    "slow"
                }),
            )
            .route(
                "/fast",
                get({
                    let release = Arc::clone(&release);
                    async move || {
                        release.add_permits(1);
                        "fast"
                    }
                }),
            );
        let served = Served::start(&server, app);
        let mut client = Client::connect(server.address);
        let all = get_of("/slow") + &get_of("/fast") + &get_of("/slow");
        client.send(all.as_bytes()).unwrap();
        // The first waits for what another client does.
        assert_eq!(
            text(&fetch(server.address, &get_of("/fast"))),
            (200, "fast")
        );
        for expect in ["slow", "fast", "slow"] {
            assert_eq!(text(&client.answer()), (200, expect));
        }
        served.ended();
    });
}

/// A large body, and its request.
fn upload(path: &str, size: usize) -> (Vec<u8>, Vec<u8>) {
    let content: Vec<u8> = (0..size)
        .map(|at| b'a' + u8::try_from(at % 23).unwrap())
        .collect();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
    let request = [head.as_bytes(), &content].concat();
    (content, request)
}

#[test]
fn uploads_are_bodies_however_they_come() {
    const SIZE: usize = 1_000_003;
    let store = scratch();
    let stored = format!(
        ", 'upload.temp_store': '{}/b.XXXXXX'",
        store.path().display()
    );
    for settings in [stored.as_str(), ", 'upload.stream': 1"] {
        servers::each(settings, |server| {
            let served = Served::start(&server, example::app());
            let (content, request) = upload("/count", SIZE);
            let mut client = Client::connect(server.address);
            client.send(&request).unwrap();
            assert_eq!(text(&client.answer()), (200, "1000003\n"));
            if server.kind == Kind::Lurcher || settings == stored {
                // The connection goes on.
                let answer = ask(&mut client, &get_of("/"));
                assert_eq!(text(&answer), (200, "hello\n"));
            }
            // Both ways at once.
            let (_, request) = upload("/echo", SIZE);
            let mut client = Client::connect(server.address);
            let mut sender = Client::accepted(client.stream().try_clone().unwrap());
            let sending = thread::spawn(move || sender.send(&request).unwrap());
            let answer = client.answer();
            sending.join().unwrap();
            assert!(answer.body == content, "{} bytes", answer.body.len());
            served.ended();
            assert_eq!(fs::read_dir(store.path()).unwrap().count(), 0);
        });
    }
}

#[test]
fn an_upload_that_is_not_read_ends_the_connection() {
    servers::each(", 'upload.stream': 1", |server| {
        let app = Router::new().route("/count", post(async || (StatusCode::FORBIDDEN, "no")));
        let served = Served::start(&server, app);
        let (_, request) = upload("/count", 1_000_003);
        let mut client = Client::connect(server.address);
        // It may be cut off while it sends.
        drop(client.send(&request));
        let rest = String::from_utf8(client.rest()).unwrap();
        assert!(rest.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{rest:?}");
        assert!(rest.contains("\r\nConnection: close\r\n"), "{rest:?}");
        served.ended();
    });
}

#[test]
fn a_body_above_the_limit_is_refused() {
    let store = scratch();
    let stored = format!(
        ", 'upload.temp_store': '{}/b.XXXXXX'",
        store.path().display()
    );
    for settings in [stored.as_str(), ", 'upload.stream': 1", ""] {
        servers::each(settings, |server| {
            let served = Served::with(&server, example::app(), |serve| serve.max_body(1000));
            let size = if settings.is_empty() { 1001 } else { 100_003 };
            let (_, request) = upload("/count", size);
            let mut client = Client::connect(server.address);
            drop(client.send(&request));
            let rest = String::from_utf8(client.rest()).unwrap();
            assert!(rest.starts_with("HTTP/1.1 413 "), "{rest:?}");
            let (_, request) = upload("/count", 1000);
            let mut client = Client::connect(server.address);
            client.send(&request).unwrap();
            assert_eq!(text(&client.answer()), (200, "1000\n"));
            served.ended();
        });
    }
}

#[test]
fn events_arrive_when_they_happen_and_end_with_their_client() {
    servers::each("", |server| {
        let (events, source) = mpsc::unbounded_channel::<String>();
        let (say, mut hear) = mpsc::unbounded_channel();
        let once = Arc::new(std::sync::Mutex::new(Some((
            source,
            Guard(say, "stream dropped"),
        ))));
        let app = Router::new().route(
            "/events",
            get(async move || {
                let state = once.lock().unwrap().take().unwrap();
                Sse::new(stream::unfold(state, async |(mut source, guard)| {
                    let data = source.recv().await?;
                    let event = sse::Event::default().data(data);
                    Some((Ok::<_, Infallible>(event), (source, guard)))
                }))
            }),
        );
        let served = Served::start(&server, app);
        let mut client = Client::connect(server.address);
        client.send(get_of("/events").as_bytes()).unwrap();
        // The head comes before there is any event.
        let head = client.upto(b"\r\n\r\n").to_ascii_lowercase();
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains("text/event-stream"), "{head}");
        for event in ["one", "two"] {
            events.send(event.to_owned()).unwrap();
            client.upto(format!("data: {event}\n\n\r\n").as_bytes());
        }
        drop(client);
        assert_eq!(told(&mut hear), "stream dropped");
        served.ended();
    });
}

#[test]
fn a_future_is_dropped_when_its_client_goes() {
    servers::each("", |server| {
        let (say, mut hear) = mpsc::unbounded_channel();
        let app = Router::new().route(
            "/never",
            get(async move || {
                say.send("begun").unwrap();
                let _guard = Guard(say.clone(), "dropped");
                std::future::pending::<&str>().await
            }),
        );
        let served = Served::start(&server, app);
        let mut client = Client::connect(server.address);
        client.send(get_of("/never").as_bytes()).unwrap();
        assert_eq!(told(&mut hear), "begun");
        drop(client);
        assert_eq!(told(&mut hear), "dropped");
        served.ended();
    });
}

#[test]
fn failures_are_answered_for_or_cut_off() {
    servers::each("", |server| {
        let (say, mut hear) = mpsc::unbounded_channel();
        let app = Router::new()
            .route("/panic", get(async || -> &str { panic!("as it should") }))
            .route(
                "/midst",
                get(async move || {
                    Body::from_stream(stream::unfold((say, 0), async |(say, count)| {
                        match count {
                            0 => Some((Ok::<_, &str>(Bytes::from_static(b"begun")), (say, 1))),
                            1 => {
                                // The first has left by now, since this one is not there at once.
                                tokio::task::yield_now().await;
                                say.send("in the midst").unwrap();
                                panic!("as it should")
                            }
                            _ => None,
                        }
                    }))
                }),
            )
            .route(
                "/error",
                get(async || {
                    Body::from_stream(stream::iter([Ok(Bytes::from_static(b"begun")), Err("no")]))
                }),
            );
        let served = Served::start(&server, app);
        let mut client = Client::connect(server.address);
        let answer = ask(&mut client, &get_of("/panic"));
        assert_eq!(text(&answer), (500, "500 Internal Server Error\n"));
        for path in ["/midst", "/error"] {
            let mut client = Client::connect(server.address);
            client.send(get_of(path).as_bytes()).unwrap();
            let rest = String::from_utf8(client.rest()).unwrap();
            assert!(!rest.ends_with("0\r\n\r\n"), "{rest:?}");
        }
        assert_eq!(told(&mut hear), "in the midst");
        // It goes on serving.
        assert_eq!(fetch(server.address, &get_of("/lost")).status, 404);
        served.ended();
    });
}

/// An application with one route that says when it is entered and waits to be let on.
fn gate() -> (
    Router,
    mpsc::UnboundedReceiver<&'static str>,
    Arc<Semaphore>,
) {
    let (say, hear) = mpsc::unbounded_channel();
    let release = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&release);
    let app = Router::new().route(
        "/gate",
        get(async move || {
            say.send("entered").unwrap();
            gate.acquire().await.unwrap().forget();
            "through"
        }),
    );
    (app, hear, release)
}

/// Counts a request out, also one whose client has left.
struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn no_more_requests_than_wanted_are_with_the_application() {
    const LIMIT: usize = 2;
    const CLIENTS: usize = 7;
    servers::each("", |server| {
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (app, mut hear, release) = gate();
        let (count, peak) = (Arc::clone(&inside), Arc::clone(&most));
        let app = app.layer(axum::middleware::from_fn(
            move |request, next: axum::middleware::Next| {
                let (count, peak) = (Arc::clone(&count), Arc::clone(&peak));
                async move {
                    peak.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let _inside = Inside(count);
                    next.run(request).await
                }
            },
        ));
        let served = Served::with(&server, app, |serve| serve.concurrency(LIMIT));
        let mut clients: Vec<Client> = (0..CLIENTS)
            .map(|_| {
                let mut client = Client::connect(server.address);
                client.send(get_of("/gate").as_bytes()).unwrap();
                client
            })
            .collect();
        for _ in 0..LIMIT {
            told(&mut hear);
        }
        // One of those that wait leaves. Nobody enters for it.
        drop(clients.pop());
        assert_eq!(most.load(Ordering::SeqCst), LIMIT);
        release.add_permits(CLIENTS);
        for client in &mut clients {
            assert_eq!(text(&client.answer()), (200, "through"));
        }
        assert_eq!(most.load(Ordering::SeqCst), LIMIT);
        served.ended();
    });
}

#[test]
fn a_stop_answers_what_was_asked_before() {
    servers::each("", |server| {
        let (app, mut hear, release) = gate();
        let mut served = Served::with(&server, app, |serve| serve.concurrency(2));
        let mut clients: Vec<Client> = (0..5)
            .map(|_| {
                let mut client = Client::connect(server.address);
                client.send(get_of("/gate").as_bytes()).unwrap();
                client
            })
            .collect();
        told(&mut hear);
        told(&mut hear);
        served.stop();
        release.add_permits(5);
        for client in &mut clients {
            assert_eq!(text(&client.answer()), (200, "through"));
        }
        served.ended();
    });
}

#[test]
fn whoever_is_not_answered_in_time_is_told() {
    servers::each("", |server| {
        let (app, mut hear, _release) = gate();
        let mut served = Served::with(&server, app, |serve| {
            serve
                .concurrency(1)
                .graceful_timeout(Duration::from_millis(100))
        });
        let mut clients: Vec<Client> = (0..2)
            .map(|_| {
                let mut client = Client::connect(server.address);
                client.send(get_of("/gate").as_bytes()).unwrap();
                client
            })
            .collect();
        told(&mut hear);
        served.stop();
        for client in &mut clients {
            let expect = (503, "503 Service Unavailable\n");
            assert_eq!(text(&client.answer()), expect);
            assert_eq!(client.rest(), b"");
        }
        served.ended();
    });
}

const HANDSHAKE: &str = "GET /talk HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// A frame as clients send it.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [0x11, 0x22, 0x33, 0x44];
    let mut frame = vec![first];
    match u16::try_from(payload.len()).expect("no very long frame") {
        short @ ..126 => frame.push(0x80 | u8::try_from(short).unwrap()),
        long => {
            frame.push(0x80 | 0x7e);
            frame.extend_from_slice(&long.to_be_bytes());
        }
    }
    frame.extend_from_slice(&key);
    let masks = key.iter().cycle();
    frame.extend(payload.iter().zip(masks).map(|(byte, key)| byte ^ key));
    frame
}

fn shake_hands(server: &Server) -> Client {
    let mut client = Client::connect(server.address);
    client.send(HANDSHAKE.as_bytes()).unwrap();
    let answer = client.answer();
    assert_eq!(answer.status, 101, "{answer:?}");
    let accept = answer.header("sec-websocket-accept");
    assert_eq!(accept, Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..]));
    client
}

#[test]
fn websockets_speak_with_the_application() {
    servers::each("", |server| {
        let served = Served::start(&server, example::app());
        let mut client = shake_hands(&server);
        client.send(&masked(0x81, b"hello")).unwrap();
        client.upto(b"\x81\x05hello");
        let long = [b'x'; 10_000];
        client.send(&masked(0x82, &long)).unwrap();
        client.upto(&[&[0x82, 126, 0x27, 0x10][..], &long].concat());
        client.send(&masked(0x89, b"ping")).unwrap();
        client.upto(b"\x8a\x04ping");
        client.send(&masked(0x88, b"\x03\xe8")).unwrap();
        assert_eq!(client.rest(), b"\x88\x02\x03\xe8");
        // Not a WebSocket, and a route that does not want one.
        assert_eq!(fetch(server.address, &get_of("/talk")).status, 400);
        let refused = fetch(server.address, &HANDSHAKE.replace("/talk", "/lost"));
        assert_eq!(refused.status, 404);
        // At the end they are told to go.
        let mut client = shake_hands(&server);
        client.send(&masked(0x81, b"hello")).unwrap();
        client.upto(b"\x81\x05hello");
        served.ended();
        assert_eq!(client.rest(), b"\x88\x02\x03\xe9");
    });
}

#[test]
fn a_websocket_ends_for_the_application_when_its_client_goes() {
    servers::each("", |server| {
        let (say, mut hear) = mpsc::unbounded_channel();
        let app = Router::new().route(
            "/talk",
            any(async move |upgrade: WebSocketUpgrade| {
                upgrade.on_upgrade(async move |mut socket| {
                    say.send("begun").unwrap();
                    while let Some(Ok(_)) = socket.recv().await {}
                    say.send("ended").unwrap();
                })
            }),
        );
        let served = Served::start(&server, app);
        let client = shake_hands(&server);
        assert_eq!(told(&mut hear), "begun");
        drop(client);
        assert_eq!(told(&mut hear), "ended");
        served.ended();
    });
}

/// A WebSocket whose service sends so many messages of so many bytes at once.
fn flood(messages: usize, bytes: usize) -> Router {
    Router::new().route(
        "/talk",
        any(async move |upgrade: WebSocketUpgrade| {
            upgrade.on_upgrade(async move |mut socket: WebSocket| {
                for _ in 0..messages {
                    let message = Message::binary(vec![b'x'; bytes]);
                    if socket.send(message).await.is_err() {
                        return;
                    }
                }
                while socket.recv().await.is_some() {}
            })
        }),
    )
}

/// The server's head of a large frame.
fn large(bytes: usize) -> [u8; 10] {
    let mut head = [0x82, 127, 0, 0, 0, 0, 0, 0, 0, 0];
    head[2..].copy_from_slice(&(bytes as u64).to_be_bytes());
    head
}

/// With `download.flow_control` a client is lost when more than a few messages are under way to it.
#[test]
fn a_websocket_gets_no_more_than_its_client_takes() {
    const MESSAGES: usize = 20;
    const BYTES: usize = 500_000;
    servers::each(", 'download.flow_control': 1", |server| {
        let served = Served::start(&server, flood(MESSAGES, BYTES));
        let mut client = shake_hands(&server);
        for _ in 0..MESSAGES {
            while client.bytes().len() < 10 + BYTES {
                assert!(client.read_some(PATIENCE), "cut off");
            }
            let message = client.take(10 + BYTES);
            assert_eq!(message[..10], large(BYTES));
            assert!(message[10..].iter().all(|byte| *byte == b'x'));
        }
        drop(client);
        served.ended();
    });
}

#[test]
fn a_websocket_is_told_to_go_away_behind_the_message_that_is_under_way() {
    // More than sockets and windows hold.
    const BYTES: usize = 40 << 20;
    let server = Server::start(Kind::Lurcher, "json", "").expect("our own program");
    let mut served = Served::start(&server, flood(1, BYTES));
    let mut client = shake_hands(&server);
    while client.bytes().len() < 10 {
        assert!(client.read_some(PATIENCE));
    }
    served.stop();
    let rest = client.rest();
    assert_eq!(rest.len(), 10 + BYTES + 4);
    assert!(rest.ends_with(&[b'x', 0x88, 2, 0x03, 0xe9]));
    served.ended();
}
