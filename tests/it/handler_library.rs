//! The handler library, `lurcher run` and the built-in handlers, against a front made of plain libzmq sockets and
//! against the real Mongrel2.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lurcher::endpoint::Endpoint;
use lurcher::handler::{Client, Connection, Event, IDS_PER_MESSAGE, Options, ReplyError};
use lurcher::wire::ConnId;

/// Long enough for anything on a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

/// Replies that are read ahead of the test; a front with more waiting reads no further.
const READ_AHEAD: usize = 64;

/// The server's half: PUSH and SUB, bound, as Mongrel2 has them. A thread reads the SUB, since libzmq subscribes only
/// where somebody looks at the socket. Fields in the order in which they must be dropped.
struct Front {
    push: zmq::Socket,
    replies: mpsc::Receiver<Vec<u8>>,
    send_spec: String,
    recv_spec: String,
    reader: Reader,
    /// Dropping it waits until the sockets are closed, so that another front can bind the same addresses.
    _context: zmq::Context,
}

struct Reader {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Front {
    fn new() -> Self {
        Self::bind("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    }

    fn bind(send_spec: &str, recv_spec: &str) -> Self {
        let context = zmq::Context::new();
        let socket = |kind, spec: &str| {
            let socket = context.socket(kind).unwrap();
            socket.set_linger(0).unwrap();
            socket.set_sndtimeo(30_000).unwrap();
            socket.set_rcvtimeo(50).unwrap();
            socket.bind(spec).unwrap();
            let spec = socket.get_last_endpoint().unwrap().unwrap();
            (socket, spec)
        };
        let (sub, recv_spec) = socket(zmq::SUB, recv_spec);
        sub.set_subscribe(b"").unwrap();
        let (push, send_spec) = socket(zmq::PUSH, send_spec);
        let (sender, replies) = mpsc::sync_channel(READ_AHEAD);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if let Ok(reply) = sub.recv_bytes(0)
                    && sender.send(reply).is_err()
                {
                    break;
                }
            }
        });
        let reader = Reader {
            stop,
            thread: Some(thread),
        };
        Self {
            push,
            replies,
            send_spec,
            recv_spec,
            reader,
            _context: context,
        }
    }

    fn options(&self) -> Options {
        let mut options = Options::to(&self.send_spec).unwrap();
        options.recv_specs = vec![self.recv_spec.parse().unwrap()];
        // Longer than any machine is busy: whatever takes so long fails its test.
        options.subscription_timeout = PATIENCE;
        options
    }

    fn push(&self, message: &[u8]) {
        self.push
            .send(message, 0)
            .expect("a handler takes the request");
    }

    #[track_caller]
    fn reply(&self) -> String {
        let reply = self.replies.recv_timeout(PATIENCE).expect("a reply");
        String::from_utf8_lossy(&reply).into_owned()
    }
}

/// A message in the JSON protocol.
fn json(sender: &str, id: u32, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let headers: serde_json::Map<_, _> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).into()))
        .collect();
    let headers = serde_json::to_string(&headers).unwrap();
    format!(
        "{sender} {id} {path} {}:{headers},{}:{body},",
        headers.len(),
        body.len()
    )
    .into_bytes()
}

/// The same in tnetstrings.
fn tnetstring(sender: &str, id: u32, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let string = |text: &str| format!("{}:{text},", text.len());
    let headers: String = headers
        .iter()
        .map(|(name, value)| string(name) + &string(value))
        .collect();
    format!(
        "{sender} {id} {path} {}:{headers}}}{}",
        headers.len(),
        string(body)
    )
    .into_bytes()
}

fn get(id: u32) -> Vec<u8> {
    request(id, "GET", "HTTP/1.1", "")
}

fn request(id: u32, method: &str, version: &str, body: &str) -> Vec<u8> {
    json(
        "front",
        id,
        "/a",
        &[("PATH", "/a"), ("METHOD", method), ("VERSION", version)],
        body,
    )
}

/// Runs a handler in a thread with a runtime of its own, as a program has it.
fn run<F, R>(options: Options, handler: F) -> JoinHandle<R::Output>
where
    F: FnOnce(Connection) -> R + Send + 'static,
    R: Future,
    R::Output: Send + 'static,
{
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move { handler(Connection::connect(options).await.unwrap()).await })
    })
}

#[track_caller]
fn end<T>(handler: JoinHandle<T>) -> T {
    handler.join().expect("the handler does not panic")
}

#[test]
fn raw_replies_have_the_bytes_that_servers_expect() {
    let headers = [("METHOD", "GET"), ("VERSION", "HTTP/1.1"), ("x-a", "1")];
    for encode in [json, tnetstring] {
        let front = Front::new();
        let handler = run(front.options(), async |mut connection| {
            let request = connection.recv().await.unwrap();
            assert_eq!(
                (&request.sender[..], request.conn_id, &request.path[..]),
                (&b"front"[..], ConnId(7), &b"/x/y"[..])
            );
            assert_eq!(
                (request.headers.first("x-a"), &request.body[..]),
                (Some(&b"1"[..]), &b"a b"[..])
            );
            connection.reply(&request, "as it is").await.unwrap();
            connection.reply(&request, [0, 255]).await.unwrap();
            connection.close(&request).await.unwrap();
            connection.finish().await;
        });
        front.push(&encode("front", 7, "/x/y", &headers, "a b"));
        assert_eq!(front.reply(), "front 1:7, as it is");
        assert_eq!(front.reply(), "front 1:7, \0\u{fffd}");
        assert_eq!(front.reply(), "front 1:7, ");
        end(handler);
    }
}

#[test]
fn http_replies_are_framed_and_end_connections_where_http_says_so() {
    let front = Front::new();
    let handler = run(front.options(), async |mut connection| {
        for _ in 0..5 {
            let request = connection.recv().await.unwrap();
            connection
                .reply_http(&request, "abc", 201, "", &[("X-A", "b")])
                .await
                .unwrap();
        }
        let request = connection.recv().await.unwrap();
        let error = connection
            .reply_http(&request, "", 200, "OK", &[("X-A", "b\r\nSet-Cookie: c")])
            .await;
        assert!(matches!(error, Err(ReplyError::Http(_))), "{error:?}");
        connection.reply_json(&request, &[1, 2]).await.unwrap();
        connection.finish().await;
    });
    let head = "HTTP/1.1 201 Created\r\nX-A: b\r\n";
    front.push(&request(1, "GET", "HTTP/1.1", ""));
    assert_eq!(
        front.reply(),
        format!("front 1:1, {head}Content-Length: 3\r\n\r\nabc")
    );
    front.push(&request(2, "HEAD", "HTTP/1.1", ""));
    assert_eq!(
        front.reply(),
        format!("front 1:2, {head}Content-Length: 3\r\n\r\n")
    );
    front.push(&request(3, "GET", "HTTP/1.0", ""));
    assert_eq!(
        front.reply(),
        format!("front 1:3, {head}Connection: close\r\nContent-Length: 3\r\n\r\nabc")
    );
    assert_eq!(front.reply(), "front 1:3, ");
    let headers = [
        ("METHOD", "GET"),
        ("VERSION", "HTTP/1.1"),
        ("connection", "Close"),
    ];
    front.push(&json("front", 4, "/", &headers, ""));
    assert_eq!(
        front.reply(),
        format!("front 1:4, {head}Connection: close\r\nContent-Length: 3\r\n\r\nabc")
    );
    assert_eq!(front.reply(), "front 1:4, ");
    let headers = [
        ("METHOD", "GET"),
        ("VERSION", "HTTP/1.0"),
        ("connection", "keep-alive"),
    ];
    front.push(&json("front", 5, "/", &headers, ""));
    assert_eq!(
        front.reply(),
        format!("front 1:5, {head}Connection: keep-alive\r\nContent-Length: 3\r\n\r\nabc")
    );
    front.push(&get(6));
    let expect = "front 1:6, HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n[1,2]";
    assert_eq!(front.reply(), expect);
    end(handler);
}

#[test]
fn many_clients_are_addressed_in_messages_of_a_hundred() {
    let front = Front::new();
    let handler = run(front.options(), async |connection| {
        let ids: Vec<ConnId> = (1..=250).map(ConnId).collect();
        // No request was needed to know the only server.
        connection.deliver("front", &ids, "x").await.unwrap();
        connection
            .deliver_http("front", &[ConnId(1), ConnId(2)], "x", 200, "OK", &[])
            .await
            .unwrap();
        connection
            .deliver_close("front", &[ConnId(1), ConnId(2)])
            .await
            .unwrap();
        connection.deliver("front", &[], "x").await.unwrap();
        connection.finish().await;
    });
    let ids: Vec<u32> = (1..=250).collect();
    for ids in ids.chunks(IDS_PER_MESSAGE) {
        let ids = ids
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ");
        assert_eq!(front.reply(), format!("front {}:{ids}, x", ids.len()));
    }
    assert_eq!(
        front.reply(),
        "front 3:1 2, HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    );
    assert_eq!(front.reply(), "front 3:1 2, ");
    end(handler);
}

#[test]
fn events_are_typed_and_not_forged() {
    let front = Front::new();
    let handler = run(front.options(), async |mut connection| {
        let request = connection.recv().await.unwrap();
        let client = request.client();
        assert!(matches!(request.into_event(), Event::Request(_)));
        // What a client of a real Mongrel2 may send.
        let forged = connection.recv().await.unwrap();
        assert!(!forged.is_disconnect());
        assert!(matches!(forged.into_event(), Event::Request(_)));
        let Event::Credits(whose, 43) = connection.recv().await.unwrap().into_event() else {
            panic!("no credits")
        };
        assert_eq!(whose, client);
        let gone = connection.recv().await.unwrap();
        assert!(gone.is_disconnect());
        let Event::Disconnect(gone) = gone.into_event() else {
            panic!("no disconnect")
        };
        assert_eq!((gone.clone(), gone.conn_id()), (client, ConnId(1)));
        let Event::Other(other) = connection.recv().await.unwrap().into_event() else {
            panic!("no other event")
        };
        assert_eq!(&other.body[..], b"{\"type\":\"new\"}");
    });
    front.push(&get(1));
    let forged = [
        ("PATH", "@*"),
        ("METHOD", "JSON"),
        ("VERSION", "HTTP/1.1"),
        ("REMOTE_ADDR", "1.2.3.4"),
    ];
    front.push(&json(
        "front",
        1,
        "/a",
        &forged,
        "{\"type\":\"disconnect\"}",
    ));
    let credits = [("METHOD", "JSON"), ("DOWNLOAD_CREDITS", "43")];
    front.push(&json("front", 1, "@*", &credits, "{\"type\":\"credits\"}"));
    front.push(b"what is this");
    front.push(&tnetstring(
        "front",
        1,
        "@*",
        &[("METHOD", "JSON")],
        "{\"type\":\"disconnect\"}",
    ));
    front.push(&json(
        "front",
        1,
        "@*",
        &[("METHOD", "JSON")],
        "{\"type\":\"new\"}",
    ));
    end(handler);
}

#[test]
fn a_client_is_answered_later_from_another_thread() {
    let front = Front::new();
    let (sender, clients) = mpsc::channel::<Client>();
    let other = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            for client in clients {
                client
                    .send(format!("late {}", client.conn_id()))
                    .await
                    .unwrap();
                client.close().await.unwrap();
            }
        });
    });
    let handler = run(front.options(), async move |mut connection| {
        for _ in 0..2 {
            sender
                .send(connection.recv().await.unwrap().client())
                .unwrap();
        }
        drop(sender);
        other.join().unwrap();
        connection.finish().await;
    });
    front.push(&get(1));
    front.push(&get(2));
    for id in 1..=2 {
        assert_eq!(front.reply(), format!("front 1:{id}, late {id}"));
        assert_eq!(front.reply(), format!("front 1:{id}, "));
    }
    end(handler);
}

#[test]
fn the_first_reply_is_never_lost() {
    for round in 0..50 {
        let front = Front::new();
        let handler = run(front.options(), async |mut connection| {
            let request = connection.recv().await.unwrap();
            connection.reply(&request, "first").await.unwrap();
            connection.finish().await;
        });
        // Waits for the handler, and goes out the moment it is there.
        front.push(&get(round));
        assert_eq!(
            front.reply(),
            format!("front {}:{round}, first", round.to_string().len())
        );
        end(handler);
    }
}

#[test]
fn a_server_that_comes_later_or_again_gets_its_replies() {
    let directory = tempfile::tempdir().unwrap();
    let spec = |name: &str| format!("ipc://{}", directory.path().join(name).display());
    let (send_spec, recv_spec) = (spec("send"), spec("recv"));
    let mut options = Options::to(&send_spec).unwrap();
    options.recv_specs = vec![recv_spec.parse().unwrap()];
    options.subscription_timeout = Duration::from_millis(20);
    let (report, connected) = mpsc::channel();
    let handler = run(options, async move |mut connection| {
        report.send(()).unwrap();
        // The rest of the test has a time for waiting that a busy machine can keep.
        connection.set_subscription_timeout(PATIENCE);
        for _ in 0..20 {
            let request = connection.recv().await.unwrap();
            connection.reply(&request, "x").await.unwrap();
        }
        connection.finish().await;
    });
    connected
        .recv_timeout(PATIENCE)
        .expect("connecting does not wait for a server");
    for id in 10..30 {
        let front = Front::bind(&send_spec, &recv_spec);
        front.push(&get(id));
        assert_eq!(front.reply(), format!("front 2:{id}, x"));
    }
    end(handler);
}

#[test]
fn stopping_loses_nothing_that_was_pushed() {
    const REQUESTS: usize = 5000;
    let front = Front::new();
    let (go, pushed) = mpsc::channel();
    let handler = run(front.options(), async move |mut connection| {
        let first = connection.recv().await.unwrap();
        let pushed: () = pushed.recv().unwrap();
        connection.shutdown();
        let mut requests = vec![first];
        while connection.recv_many(&mut requests, 100).await > 0 {}
        assert!(connection.recv().await.is_none());
        // The sockets for requests are closed, the way back is not.
        for request in &requests {
            connection.reply(request, "x").await.unwrap();
        }
        connection.finish().await;
        let () = pushed;
        requests
            .iter()
            .map(|request| request.conn_id.0)
            .collect::<Vec<_>>()
    });
    for id in 0..REQUESTS {
        front.push(&get(u32::try_from(id).unwrap()));
    }
    go.send(()).unwrap();
    for id in 0..REQUESTS {
        assert_eq!(
            front.reply(),
            format!("front {}:{id}, x", id.to_string().len())
        );
    }
    let ids = end(handler);
    assert!(ids.into_iter().eq(0..u32::try_from(REQUESTS).unwrap()));
}

#[test]
fn a_stop_from_elsewhere_wakes_a_waiting_handler() {
    let front = Front::new();
    let (sender, stop) = mpsc::channel();
    let handler = run(front.options(), async move |mut connection| {
        sender.send(connection.stop_handle()).unwrap();
        connection.recv().await.is_none()
    });
    stop.recv().unwrap().stop();
    assert!(end(handler));
}

#[test]
fn replies_wait_while_the_server_does_not_read() {
    // More than libzmq's queues and the kernel's buffers hold together.
    const REPLIES: usize = 40_000;
    let front = Front::new();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let handler = run(front.options(), async move |mut connection| {
        let request = connection.recv().await.unwrap();
        let padding = "x".repeat(1024);
        for number in 0..REPLIES {
            connection
                .reply(&request, format!("{number} {padding}"))
                .await
                .unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
        connection.finish().await;
    });
    front.push(&get(1));
    // Until it stands still.
    let mut before = usize::MAX;
    while sent.load(Ordering::SeqCst) != before || before == 0 {
        before = sent.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(200));
    }
    assert!(before < REPLIES, "nothing held the handler back");
    for number in 0..REPLIES {
        let reply = front.reply();
        assert!(
            reply.starts_with(&format!("front 1:1, {number} x")),
            "{}",
            reply.get(..40).unwrap_or_default()
        );
    }
    end(handler);
    assert_eq!(sent.load(Ordering::SeqCst), REPLIES);
}

#[test]
fn dropped_futures_lose_and_double_nothing() {
    const REQUESTS: u32 = 2000;
    let front = Front::new();
    let handler = run(front.options(), async |mut connection| {
        let mut served = 0;
        while served < REQUESTS {
            let request = tokio::select! {
                biased;
                request = connection.recv() => request.unwrap(),
                () = tokio::task::yield_now() => continue,
            };
            loop {
                let replied = tokio::select! {
                    biased;
                    replied = connection.reply(&request, "x".repeat(5000)) => Some(replied),
                    () = tokio::task::yield_now() => None,
                };
                if let Some(replied) = replied {
                    replied.unwrap();
                    break;
                }
            }
            served += 1;
        }
        connection.finish().await;
    });
    thread::scope(|scope| {
        let Front {
            push,
            replies,
            reader,
            ..
        } = front;
        let _reader = reader;
        scope.spawn(move || {
            for id in 0..REQUESTS {
                push.send(get(id), 0).unwrap();
            }
            // Closed only when the other end has all.
            handler.join().unwrap();
        });
        for id in 0..REQUESTS {
            let reply = replies.recv_timeout(PATIENCE).unwrap();
            let expect = format!("front {}:{id}, x", id.to_string().len());
            assert!(
                reply.starts_with(expect.as_bytes()),
                "{id}: {}",
                String::from_utf8_lossy(&reply[..40])
            );
        }
    });
}

#[test]
fn each_server_is_answered_on_its_own_socket() {
    let fronts = [Front::new(), Front::new()];
    let mut options = fronts[0].options();
    options.send_specs.extend(fronts[1].options().send_specs);
    options.recv_specs.extend(fronts[1].options().recv_specs);
    let handler = run(options, async |mut connection| {
        let unknown = connection.deliver("one", &[ConnId(1)], "x").await;
        assert!(
            matches!(unknown, Err(ReplyError::UnknownSender { .. })),
            "{unknown:?}"
        );
        for _ in 0..4 {
            let request = connection.recv().await.unwrap();
            connection.reply(&request, &request.body).await.unwrap();
        }
        connection
            .deliver("one", &[ConnId(1)], "to one")
            .await
            .unwrap();
        connection
            .deliver("two", &[ConnId(1)], "to two")
            .await
            .unwrap();
        let ambiguous = connection.deliver("both", &[ConnId(1)], "x").await;
        assert!(
            matches!(ambiguous, Err(ReplyError::AmbiguousSender { .. })),
            "{ambiguous:?}"
        );
        connection.finish().await;
    });
    let headers = [("METHOD", "GET"), ("VERSION", "HTTP/1.1")];
    for (front, name) in fronts.iter().zip(["one", "two"]) {
        front.push(&json(name, 1, "/", &headers, name));
        front.push(&json("both", 1, "/", &headers, name));
    }
    for (front, name) in fronts.iter().zip(["one", "two"]) {
        assert_eq!(front.reply(), format!("{name} 1:1, {name}"));
        assert_eq!(front.reply(), format!("both 1:1, {name}"));
        assert_eq!(front.reply(), format!("{name} 1:1, to {name}"));
    }
    end(handler);
}

#[test]
fn specs_that_do_not_pair_are_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let refuse = |send: &str, recv: &[&str]| {
        let mut options = Options::to(send).unwrap();
        options.recv_specs = recv.iter().map(|spec| spec.parse().unwrap()).collect();
        let error = runtime
            .block_on(Connection::connect(options))
            .map(drop)
            .expect_err(send);
        error.to_string()
    };
    let expect = "ipc://a has no port that its recv spec could be one below: name the recv spec";
    assert_eq!(refuse("ipc://a", &[]), expect);
    assert_eq!(
        refuse("ipc://a,ipc://b", &["ipc://c"]),
        "2 send specs do not go with 1 recv specs"
    );
    let inferred: Endpoint = "tcp://127.0.0.1:9998".parse().unwrap();
    assert_eq!(
        Options::to("tcp://127.0.0.1:9999").unwrap().send_specs[0].one_port_down(),
        Some(inferred)
    );
}

/// The program, ended when dropped.
struct Program {
    child: Child,
    log: Option<JoinHandle<String>>,
}

impl Program {
    /// Starts `lurcher run` and waits until it says to be connected.
    fn run(app: &str, front: &Front, options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lurcher"))
            .args(["run", app, &front.send_spec, &front.recv_spec])
            .args(options)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let Front {
            send_spec,
            recv_spec,
            ..
        } = front;
        let expect = format!("handler {app}: connected to {send_spec}, replies to {recv_spec}\n");
        assert!(line.ends_with(&expect), "{line}");
        let log = thread::spawn(move || {
            log.read_to_string(&mut line).unwrap();
            line
        });
        Self {
            child,
            log: Some(log),
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Its exit code and its log.
    fn wait(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        (status.code(), self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn echo_answers_with_the_body() {
    let front = Front::new();
    let echo = Program::run("echo", &front, &[]);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n";
    front.push(&request(1, "POST", "HTTP/1.1", "a body"));
    assert_eq!(
        front.reply(),
        format!("front 1:1, {head}Content-Length: 6\r\n\r\na body")
    );
    front.push(&request(2, "HEAD", "HTTP/1.1", ""));
    assert_eq!(
        front.reply(),
        format!("front 1:2, {head}Content-Length: 0\r\n\r\n")
    );
    front.push(&json(
        "front",
        2,
        "@*",
        &[("METHOD", "JSON")],
        "{\"type\":\"disconnect\"}",
    ));
    front.push(&request(3, "BREW", "HTTP/1.0", "tea"));
    assert_eq!(
        front.reply(),
        format!("front 1:3, {head}Connection: close\r\nContent-Length: 3\r\n\r\ntea")
    );
    assert_eq!(front.reply(), "front 1:3, ");
    front.push(&json(
        "front",
        4,
        "@chat",
        &[
            ("METHOD", "JSON"),
            ("PATTERN", "@chat"),
            ("REMOTE_ADDR", "::1"),
        ],
        "{}",
    ));
    assert_eq!(front.reply(), "front 1:4, {}");
    // Pushed before the signal, answered after it.
    for id in 1000..1500 {
        front.push(&request(id, "GET", "HTTP/1.1", ""));
    }
    echo.signal("TERM");
    for id in 1000..1500 {
        assert_eq!(
            front.reply(),
            format!("front 4:{id}, {head}Content-Length: 0\r\n\r\n")
        );
    }
    let (code, log) = echo.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.trim_end().ends_with("handler echo: stopped"), "{log}");
}

#[test]
fn a_second_signal_ends_a_stuck_handler_at_once() {
    let front = Front::new();
    let echo = Program::run("echo", &front, &[]);
    // Nobody reads the replies: with this much it has to wait.
    let body = "x".repeat(100_000);
    for id in 0..1500 {
        if front
            .push
            .send(request(id, "POST", "HTTP/1.1", &body), zmq::DONTWAIT)
            .is_err()
        {
            break;
        }
    }
    echo.signal("INT");
    // Until the first signal is known to have come, so that the second is one of its own.
    thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    echo.signal("INT");
    let (code, log) = echo.wait();
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it waited for the deadline"
    );
    assert!(
        code == Some(1) || log.contains("stopped\n"),
        "{code:?} {log}"
    );
}

#[test]
fn respond_fills_in_facts_of_the_request() {
    let front = Front::new();
    let body = "%(PATH)s|%(PREFIX)s|%(MATCH)s|%(X-Who)s|%(METHOD)s|%(nobody)s|100%%";
    let location = "Location=https://example.org/%(MATCH)s?%(x-who)s";
    let options = [
        "--code",
        "302",
        "--status",
        "Over %(METHOD)s there",
        "--header",
        location,
        "--header",
        "X-B=2",
        "--body",
        body,
    ];
    let respond = Program::run("respond", &front, &options);
    let facts = [
        ("METHOD", "GET"),
        ("VERSION", "HTTP/1.1"),
        ("PATTERN", "/old/(.*)"),
        ("x-who", "me\r\nSet-Cookie: a=b"),
    ];
    front.push(&json("front", 1, "/old/page", &facts, ""));
    let expect = "front 1:1, HTTP/1.1 302 Over GET there\r\nLocation: https://example.org/page?me  Set-Cookie: a=b\r\n\
        X-B: 2\r\nContent-Length: 59\r\n\r\n/old/page|/old/|page|me\r\nSet-Cookie: a=b|GET||100%";
    let reply = front.reply();
    let length = expect.rsplit_once("\r\n\r\n").unwrap().1.len();
    assert_eq!(reply, expect.replace("59", &length.to_string()));
    respond.signal("TERM");
    assert_eq!(respond.wait().0, Some(0));
}

#[test]
fn mistakes_on_the_command_line_are_told_in_a_line() {
    #[track_caller]
    fn check(arguments: &[&str], expect: &str) {
        let output = Command::new(env!("CARGO_BIN_EXE_lurcher"))
            .arg("run")
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(expect), "{stderr}");
        assert_eq!(output.status.code(), Some(2));
    }
    check(
        &["nothing", "tcp://127.0.0.1:1"],
        "lurcher: running `nothing`: no such handler: built in are echo, respond",
    );
    check(&["echo"], "<SEND>");
    check(
        &["echo", "ipc://a"],
        "lurcher: running `echo`: ipc://a has no port that its recv spec could be one below",
    );
    check(
        &[
            "echo",
            "tcp://127.0.0.1:5555,tcp://127.0.0.1:6666",
            "ipc://a",
        ],
        "2 send specs do not go with 1 recv specs",
    );
    check(&["echo", "tcp://nowhere"], "no port");
    check(
        &["respond", "tcp://127.0.0.1:5555", "--code", "42"],
        "--code is not a number from 200 to 999",
    );
    check(
        &["respond", "tcp://127.0.0.1:5555", "--body", "5%"],
        "--body has a `%` that is neither",
    );
    let help = Command::new(env!("CARGO_BIN_EXE_lurcher"))
        .args(["run", "respond", "--help"])
        .output()
        .unwrap();
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("--header <NAME=VALUE>"));
}

/// The real Mongrel2 with one route for each protocol; nothing where it is not installed.
struct Mongrel2 {
    child: Child,
    http: u16,
    send_specs: [String; 2],
    recv_specs: [String; 2],
}

impl Mongrel2 {
    fn start(directory: &Path) -> Option<Self> {
        let (mongrel2, m2sh) = (Path::new("/usr/bin/mongrel2"), Path::new("/usr/bin/m2sh"));
        if !mongrel2.exists() || !m2sh.exists() {
            println!(
                "skipped: {} or {} is not installed (Debian: mongrel2-core)",
                mongrel2.display(),
                m2sh.display()
            );
            return None;
        }
        for name in ["run", "logs", "tmp"] {
            std::fs::create_dir(directory.join(name)).unwrap();
        }
        // Free now; somebody else may take it before Mongrel2 does, but hardly.
        let http = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        // Mongrel2's paths begin in its chroot, which is this directory.
        let spec = |name: &str| format!("ipc://{}", directory.join(name).display());
        let (send_specs, recv_specs) = ([spec("s0"), spec("s1")], [spec("r0"), spec("r1")]);
        let conf = format!(
            "main = Server(uuid='f400bf85-4538-4f7a-8908-67e313d515c2', access_log='/logs/access.log',
                error_log='/logs/error.log', chroot='./', default_host='localhost', name='main', pid_file='/run/m2.pid',
                port={http}, bind_addr='127.0.0.1', hosts=[Host(name='localhost', routes={{
                '/json': Handler(send_spec='ipc://s0', send_ident='json-ident', recv_spec='ipc://r0', recv_ident='json-ident'),
                '/tnet': Handler(send_spec='ipc://s1', send_ident='tnet-ident', recv_spec='ipc://r1', recv_ident='',
                                 protocol='tnetstring') }})])
            settings = {{'server.daemonize': 0}}
            servers = [main]
            "
        );
        std::fs::write(directory.join("m2.conf"), conf).unwrap();
        let loaded = Command::new(m2sh)
            .args(["load", "-config", "m2.conf", "-db", "m2.sqlite"])
            .current_dir(directory)
            .output();
        assert!(loaded.unwrap().status.success());
        let log = std::fs::File::create(directory.join("out.log")).unwrap();
        let child = Command::new(mongrel2)
            .args(["m2.sqlite", "f400bf85-4538-4f7a-8908-67e313d515c2"])
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Self {
            child,
            http,
            send_specs,
            recv_specs,
        })
    }

    /// One exchange on a connection of its own, closed by the server.
    fn exchange(&self, request: &str) -> String {
        let begun = Instant::now();
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", self.http)) {
                Ok(stream) => break stream,
                Err(error) => assert!(
                    begun.elapsed() < PATIENCE,
                    "mongrel2 does not listen: {error}"
                ),
            }
            thread::sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }
}

impl Drop for Mongrel2 {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn echo_serves_the_real_mongrel2_in_both_protocols() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mongrel2) = Mongrel2::start(directory.path()) else {
        return;
    };
    let mut echo = Command::new(env!("CARGO_BIN_EXE_lurcher"))
        .args([
            "run",
            "echo",
            &mongrel2.send_specs.join(","),
            &mongrel2.recv_specs.join(","),
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n";
    for path in ["/json", "/tnet"] {
        let get = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_eq!(
            mongrel2.exchange(&get),
            format!("{head}Content-Length: 0\r\n\r\n")
        );
        let post =
            format!("POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 5\r\n\r\na b\tc");
        assert_eq!(
            mongrel2.exchange(&post),
            format!("{head}Content-Length: 5\r\n\r\na b\tc")
        );
    }
    let stopped = Command::new("kill")
        .arg(echo.id().to_string())
        .status()
        .unwrap();
    assert!(stopped.success());
    assert_eq!(echo.wait().unwrap().code(), Some(0));
}
