//! Large responses through the library, behind both servers: none is cut off, none fills anybody's memory, and writers whose clients
//! leave end.

use std::fs;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lurcher::handler::{BodyWriter, Connection, Event, Options, Replies, ReplyError, Request};

use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::servers::{self, Kind, Server};

/// What is written at once.
const BLOCK: usize = 64 * 1024;

/// What the system may keep between the front and a client that does not read: the buffers of both sockets.
const SOCKETS: u64 = 16 << 20;

/// What handlers of these tests have done.
#[derive(Default)]
struct Done {
    /// Bytes that writers have taken.
    written: AtomicU64,
    finished: AtomicUsize,
    gone: AtomicUsize,
}

/// The byte at this place of every body: no block is like another.
fn pattern(at: u64) -> u8 {
    at.wrapping_mul(0x9e37_79b9).to_be_bytes()[4]
}

fn block(at: u64) -> Vec<u8> {
    (at..at + BLOCK as u64).map(|at| pattern(at / 16)).collect()
}

/// `/BYTES` is answered with so many, `/BYTES/chunked` in chunks, `/BYTES/whole` and `/BYTES/plain` at once.
async fn write(request: Request, replies: Replies, done: &Done) -> Result<(), ReplyError> {
    let path = String::from_utf8_lossy(&request.path).into_owned();
    let mut words = path.split('/').skip(1);
    let bytes: u64 = words.next().and_then(|word| word.parse().ok()).unwrap();
    let mut respond = request.respond(200);
    let whole = || -> Vec<u8> { (0..bytes).map(|at| pattern(at / 16)).collect() };
    match words.next() {
        Some("chunked") => {}
        Some("whole") => return respond.send(whole()).await,
        Some("plain") => return replies.reply_http(&request, whole(), 200, "", &[]).await,
        _ => respond = respond.length(bytes),
    }
    let mut body: BodyWriter = respond.stream()?;
    let mut at = 0;
    while at < bytes {
        let mut piece = block(at);
        piece.truncate(usize::try_from(bytes - at).unwrap_or(BLOCK));
        body.write(&piece).await?;
        at += piece.len() as u64;
        done.written.fetch_add(piece.len() as u64, Ordering::SeqCst);
    }
    body.finish().await
}

#[expect(
    clippy::disallowed_methods,
    reason = "a handler's author has nothing else"
)]
async fn serve(mut connection: Connection, done: Arc<Done>) {
    while let Some(request) = connection.recv().await {
        let Event::Request(request) = request.into_event() else {
            continue;
        };
        let (replies, done) = (connection.replies(), Arc::clone(&done));
        // In a task of its own: meanwhile it is told here what clients take.
        tokio::spawn(async move {
            match write(request, replies, &done).await {
                Ok(()) => done.finished.fetch_add(1, Ordering::SeqCst),
                Err(ReplyError::ClientGone) => done.gone.fetch_add(1, Ordering::SeqCst),
                Err(error) => panic!("{error}"),
            };
        });
    }
    connection.finish().await;
}

fn with_handler(server: &Server, test: impl FnOnce(&Done)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let mut options = Options::to(&server.send).unwrap();
    options.recv_specs = vec![server.recv.parse().unwrap()];
    let connection = runtime.block_on(Connection::connect(options)).unwrap();
    let stop = connection.stop_handle();
    let done = Arc::new(Done::default());
    let serving = runtime.spawn(serve(connection, Arc::clone(&done)));
    test(&done);
    stop.stop();
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, serving).await })
        .expect("the handler stops")
        .unwrap();
}

fn ask(server: &Server, path: &str) -> Client {
    let mut client = Client::connect(server.address);
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.send(head.as_bytes()).unwrap();
    client
}

/// Reads a body of a known length; `pause` is called with what was read so far.
fn read_all(client: &mut Client, bytes: u64, mut pause: impl FnMut(u64)) {
    let head = client.upto(b"\r\n\r\n");
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{head:?}");
    let mut got = client.bytes().to_vec();
    client.take(got.len());
    let mut stream = client.stream();
    stream.set_read_timeout(Some(3 * PATIENCE)).unwrap();
    let mut at = 0;
    let mut buffer = vec![0; 256 * 1024];
    while at < bytes {
        for byte in &got {
            assert!(*byte == pattern(at / 16), "another byte at {at}");
            at += 1;
        }
        if at >= bytes {
            break;
        }
        pause(at);
        let read = stream
            .read(&mut buffer)
            .unwrap_or_else(|error| panic!("at {at}: {error}"));
        assert!(read > 0, "cut off at {at} of {bytes}");
        got.clear();
        got.extend_from_slice(&buffer[..read]);
    }
    assert_eq!(at, bytes);
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Waits until nothing more is written, and says how much was.
fn standstill(done: &Done) -> u64 {
    let mut before = u64::MAX;
    until("the writer waits", || {
        std::thread::park_timeout(Duration::from_millis(200));
        let now = done.written.load(Ordering::SeqCst);
        std::mem::replace(&mut before, now) == now
    });
    before
}

/// The most memory that a process has used, in KiB.
fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.expect("VmHWM").parse().expect("a number")
}

#[test]
fn a_large_answer_goes_no_faster_than_its_client_takes_it() {
    const BYTES: u64 = 300_000_000;
    let server = Server::start(Kind::Lurcher, "json", "").unwrap();
    with_handler(&server, |done| {
        let mut client = ask(&server, &format!("/{BYTES}"));
        // At first the client does not read at all.
        let lead = standstill(done);
        assert!(lead < SOCKETS, "{lead} bytes were written for nobody");
        read_all(&mut client, BYTES, |read| {
            let lead = done.written.load(Ordering::SeqCst).saturating_sub(read);
            assert!(lead < SOCKETS, "{lead} bytes ahead");
        });
        until("the response is finished", || {
            done.finished.load(Ordering::SeqCst) == 1
        });
        // The same connection goes on.
        client
            .send(b"GET /1000/chunked HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        assert_eq!(client.answer().body.len(), 1000);
        let peak = peak(server.program.id());
        assert!(peak < 64 * 1024, "the front has used {peak} KiB");
    });
}

#[test]
fn with_flow_control_large_answers_arrive_whole_on_both_servers() {
    const BYTES: u64 = 20_000_000;
    servers::each(", 'download.flow_control': 1", |server| {
        with_handler(&server, |done| {
            let mut client = ask(&server, &format!("/{BYTES}"));
            let lead = standstill(done);
            assert!(lead < SOCKETS, "{lead} bytes were written for nobody");
            read_all(&mut client, BYTES, |_| {});
            until("the response is finished", || {
                done.finished.load(Ordering::SeqCst) == 1
            });
            // What is asked for next begins where this has ended.
            client
                .send(b"GET /200000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            read_all(&mut client, 200_000, |_| {});
            // So it is with those that are given at once.
            for path in ["/2000000/whole", "/2000000/plain"] {
                let mut client = ask(&server, path);
                until("it has begun", || client.read_some(PATIENCE));
                read_all(&mut client, 2_000_000, |_| {});
            }
        });
    });
}

#[test]
fn a_slow_client_of_either_server_gets_64_megabytes_whole() {
    const BYTES: u64 = 64 << 20;
    servers::each("", |server| {
        with_handler(&server, |done| {
            let mut client = ask(&server, &format!("/{BYTES}"));
            standstill(done);
            let mut next = 0;
            read_all(&mut client, BYTES, |read| {
                if read >= next {
                    next = read + (4 << 20);
                    std::thread::park_timeout(Duration::from_millis(50));
                }
            });
            until("the response is finished", || {
                done.finished.load(Ordering::SeqCst) == 1
            });
        });
    });
}

#[test]
fn a_client_that_leaves_ends_the_writer_that_waits_for_it() {
    for settings in ["", ", 'download.flow_control': 1"] {
        servers::each(settings, |server| {
            // Without flow control a Mongrel2 tells nothing that a writer could wait for.
            if server.kind == Kind::Mongrel2 && settings.is_empty() {
                return;
            }
            with_handler(&server, |done| {
                let client = ask(&server, "/1000000000");
                standstill(done);
                drop(client);
                until("the writer ends", || done.gone.load(Ordering::SeqCst) == 1);
            });
        });
    }
}

#[test]
fn a_stream_ends_when_its_client_has_left() {
    servers::each("", |server| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut options = Options::to(&server.send).unwrap();
        options.recv_specs = vec![server.recv.parse().unwrap()];
        let address = server.address;
        let client = std::thread::spawn(move || {
            let mut client = Client::connect(address);
            client
                .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            client.upto(b"tick");
        });
        runtime.block_on(async {
            let mut connection = Connection::connect(options).await.unwrap();
            let request = connection.recv().await.unwrap();
            let mut body = request.respond(200).stream().unwrap();
            let writer = async move {
                loop {
                    body.write("tick").await?;
                    body.flush().await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let receiver = async { while connection.recv().await.is_some() {} };
            let ended: Result<(), ReplyError> = tokio::select! {
                ended = writer => ended,
                () = receiver => panic!("nobody stops it"),
                () = tokio::time::sleep(PATIENCE) => panic!("the writer goes on"),
            };
            assert!(matches!(ended, Err(ReplyError::ClientGone)), "{ended:?}");
            connection.finish().await;
        });
        client.join().unwrap();
    });
}

#[test]
fn a_writer_whose_program_receives_nothing_meanwhile_is_given_up() {
    let server = Server::start(Kind::Lurcher, "json", "").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut options = Options::to(&server.send).unwrap();
    options.recv_specs = vec![server.recv.parse().unwrap()];
    let mut client = ask(&server, "/");
    runtime.block_on(async {
        let mut connection = Connection::connect(options).await.unwrap();
        let request = connection.recv().await.unwrap();
        let mut body = request.respond(200).stream().unwrap();
        let error = loop {
            if let Err(error) = body.write(vec![b'x'; BLOCK]).await {
                break error;
            }
        };
        assert!(matches!(error, ReplyError::NotReceiving), "{error}");
        drop(body);
        connection.finish().await;
    });
    assert!(!client.rest().ends_with(b"\r\n0\r\n\r\n"));
}

/// Whoever answers in the loop that receives hears of no credits meanwhile; he must not be held up, nor end, by that.
#[test]
fn a_handler_that_answers_where_it_receives_goes_on_under_flow_control() {
    const BYTES: u64 = 300_000;
    servers::each(", 'download.flow_control': 1", |server| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut options = Options::to(&server.send).unwrap();
        options.recv_specs = vec![server.recv.parse().unwrap()];
        let mut connection = runtime.block_on(Connection::connect(options)).unwrap();
        let stop = connection.stop_handle();
        let serving = runtime.spawn(async move {
            while let Some(request) = connection.recv().await {
                let Event::Request(request) = request.into_event() else {
                    continue;
                };
                let size = if request.path == "/large" { BYTES } else { 3 };
                let body: Vec<u8> = (0..size).map(|at| pattern(at / 16)).collect();
                connection.reply_http(&request, body, 200, "", &[]).await?;
            }
            connection.finish().await;
            Ok::<(), ReplyError>(())
        });
        let mut client = ask(&server, "/large");
        match server.kind {
            Kind::Lurcher => read_all(&mut client, BYTES, |_| {}),
            // It may lose its client, as ever.
            Kind::Mongrel2 => assert!(client.read_some(PATIENCE)),
        }
        assert_eq!(ask(&server, "/").answer().body.len(), 3);
        stop.stop();
        runtime
            .block_on(async { tokio::time::timeout(PATIENCE, serving).await })
            .expect("the handler stops")
            .unwrap()
            .unwrap();
    });
}
