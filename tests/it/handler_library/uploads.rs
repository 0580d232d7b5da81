//! Large bodies as the library hands them out: stored in files and streamed, on both servers in both protocols.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use lurcher::handler::{
    Bodies, BodyError, BodyReader, Connection, Early, Event, Options, UploadError, UploadFault,
};

use tokio::task::JoinSet;

use super::{PATIENCE, end, run};
use crate::support::client::Client;
use crate::support::scratch;
use crate::support::servers::{self, Kind, Server};

/// Above `limits.content_length`, and no multiple of anything.
const SIZE: usize = 100_003;

fn options(server: &Server) -> Options {
    let mut options = Options::to(&server.send).unwrap();
    options.recv_specs = vec![server.recv.parse().unwrap()];
    options.subscription_timeout = PATIENCE;
    options
}

fn content(size: usize) -> Vec<u8> {
    (0..size)
        .map(|at| b'a' + u8::try_from(at % 23).unwrap())
        .collect()
}

/// A whole POST, of known length.
fn post(size: usize) -> Vec<u8> {
    let head = format!("POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
    [head.as_bytes(), &content(size)].concat()
}

/// The same in chunks.
fn chunked(size: usize) -> Vec<u8> {
    let mut all =
        b"POST /up HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in content(size).chunks(7000) {
        all.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        all.extend_from_slice(chunk);
        all.extend_from_slice(b"\r\n");
    }
    all.extend_from_slice(b"0\r\n\r\n");
    all
}

/// Sends it and returns the answer's status and body.
fn ask(address: SocketAddr, request: &[u8]) -> (u16, String) {
    let mut client = Client::connect(address);
    client.send(request).unwrap();
    let answer = client.answer();
    (
        answer.status,
        String::from_utf8_lossy(&answer.body).into_owned(),
    )
}

/// The next event that is not the end of an earlier client's connection.
async fn next(connection: &mut Connection) -> Event {
    loop {
        match connection.recv().await.expect("an event").into_event() {
            Event::Disconnect(_) => {}
            event => return event,
        }
    }
}

/// Settings by which bodies are stored there.
fn stored_in(store: &Path) -> String {
    format!(", 'upload.temp_store': '{}/body.XXXXXX'", store.display())
}

fn files(store: &Path) -> Vec<PathBuf> {
    fs::read_dir(store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

#[test]
fn a_stored_upload_is_announced_complete_readable_and_removed() {
    let store = scratch();
    servers::each(&stored_in(store.path()), |server| {
        let handler = run(options(&server), async |mut connection| {
            for _ in 0..2 {
                let Event::UploadStarted(started) = next(&mut connection).await else {
                    panic!("no announcement");
                };
                let early = started.open().await;
                assert!(
                    matches!(early, Err(UploadError::Incomplete { .. })),
                    "{early:?}"
                );
                let Event::UploadDone(upload) = next(&mut connection).await else {
                    panic!("no upload");
                };
                assert_eq!(upload.path(), started.path());
                drop(started);
                assert!(
                    upload.path().exists(),
                    "the announcement's end removes nothing"
                );
                assert_eq!(upload.open().await.unwrap().1, SIZE as u64);
                let (path, request) = (upload.path(), upload.request().clone());
                let body = upload.into_body().await.unwrap();
                assert_eq!(body.remaining(), Some(SIZE as u64));
                let body = body.collect(SIZE).await.unwrap();
                assert!(body == content(SIZE));
                assert!(!path.exists());
                connection
                    .reply_http(&request, "thanks", 200, "", &[])
                    .await
                    .unwrap();
            }
            connection.finish().await;
        });
        assert_eq!(ask(server.address, &post(SIZE)), (200, "thanks".to_owned()));
        assert_eq!(
            ask(server.address, &chunked(SIZE)),
            (200, "thanks".to_owned())
        );
        end(handler);
        assert!(files(store.path()).is_empty());
    });
}

#[test]
fn a_stored_upload_can_be_kept_or_lost() {
    let store = scratch();
    servers::each(&stored_in(store.path()), |server| {
        let handler = run(options(&server), async |mut connection| {
            let mut kept = None;
            while let Some(request) = connection.recv().await {
                let Event::UploadDone(upload) = request.into_event() else {
                    continue;
                };
                let request = upload.request().clone();
                if kept.is_none() {
                    kept = Some(upload.into_path());
                    connection
                        .reply_http(&request, "kept", 200, "", &[])
                        .await
                        .unwrap();
                } else {
                    fs::remove_file(upload.path()).unwrap();
                    let gone = upload.open().await;
                    assert!(matches!(gone, Err(UploadError::Gone { .. })), "{gone:?}");
                    upload.remove().await.unwrap();
                    connection
                        .reply_http(&request, "lost", 200, "", &[])
                        .await
                        .unwrap();
                    break;
                }
            }
            connection.finish().await;
            kept.unwrap()
        });
        assert_eq!(ask(server.address, &post(SIZE)).1, "kept");
        assert_eq!(ask(server.address, &post(SIZE)).1, "lost");
        let kept = end(handler);
        assert!(fs::read(&kept).unwrap() == content(SIZE));
        fs::remove_file(kept).unwrap();
        assert!(files(store.path()).is_empty());
    });
}

/// A Mongrel2 passes on what a Lurcher drops.
#[test]
fn a_client_that_names_a_file_gets_no_upload() {
    let store = scratch();
    let victim = store.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    servers::each(&stored_in(store.path()), |server| {
        let kind = server.kind;
        let handler = run(options(&server), async move |mut connection| {
            for _ in 0..2 {
                let event = connection.recv().await.map(Event::from);
                let (request, said) = match event {
                    Some(Event::Request(request)) if kind == Kind::Lurcher => (request, "plain"),
                    Some(Event::UploadRefused(request, UploadFault::NoBody))
                        if kind == Kind::Mongrel2 =>
                    {
                        (request, "refused")
                    }
                    other => panic!("{other:?}"),
                };
                connection
                    .reply_http(&request, said, 200, "", &[])
                    .await
                    .unwrap();
            }
            connection.finish().await;
        });
        let mut client = Client::connect(server.address);
        let start = format!("x-mongrel2-upload-start: {}\r\n", victim.display());
        let done = format!("x-mongrel2-upload-done: {}\r\n", victim.display());
        for lines in [start.clone(), format!("{start}{done}")] {
            client
                .send(format!("GET /up HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n").as_bytes())
                .unwrap();
            assert_eq!(client.answer().status, 200);
        }
        end(handler);
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    });
}

#[test]
fn an_announced_upload_can_be_refused_or_given_up() {
    let store = scratch();
    servers::each(&stored_in(store.path()), |server| {
        let handler = run(options(&server), async |mut connection| {
            let close = [("Connection", "close")];
            let mut refused = false;
            while let Some(request) = connection.recv().await {
                match request.into_event() {
                    Event::UploadStarted(_) if refused => {}
                    Event::UploadStarted(upload) => {
                        connection
                            .reply_http(&upload, "no", 413, "", &close)
                            .await
                            .unwrap();
                        refused = true;
                    }
                    Event::Disconnect(_) if refused => break,
                    other => panic!("{other:?}"),
                }
            }
            connection.finish().await;
        });
        let head =
            format!("POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SIZE}\r\n\r\n");
        assert_eq!(ask(server.address, head.as_bytes()), (413, "no".to_owned()));
        let mut leaves = Client::connect(server.address);
        leaves.send(head.as_bytes()).unwrap();
        leaves.send(&content(1000)).unwrap();
        drop(leaves);
        end(handler);
    });
}

/// What the reader of an announced upload tells: so many bytes so far, or how it has ended.
type Told = Result<usize, BodyError>;

/// Gives announced uploads to readers that tell each piece; `/ignored` is not read, and answered at once with the connection left open.
/// Ends with the last client.
async fn read_announced(mut connection: Connection, expected: Early, tell: mpsc::Sender<Told>) {
    let mut bodies = Bodies::new();
    let mut readers = JoinSet::new();
    while let Some(request) = connection.recv().await {
        match request.into_event() {
            Event::UploadStarted(upload) => {
                assert_eq!(upload.early(), expected);
                upload.act().await.unwrap();
                let body = bodies.announced(&upload).expect("a body");
                assert_eq!(body.remaining(), Some(SIZE as u64));
                let tell = tell.clone();
                readers.spawn(async move {
                    let read = if upload.request().path == "/ignored" {
                        drop(body);
                        Ok(0)
                    } else {
                        follow(body, &tell).await
                    };
                    if read.is_ok() {
                        upload.respond(200).send("thanks").await.unwrap();
                    }
                    // Before the file can go with it.
                    drop(upload);
                    tell.send(read).unwrap();
                });
            }
            Event::UploadDone(upload) => assert!(bodies.done(&upload), "taken when it began"),
            Event::Disconnect(client) => {
                bodies.gone(&client);
                if readers.len() == 4 {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    readers.join_all().await;
    connection.finish().await;
}

async fn follow(mut body: BodyReader, tell: &mpsc::Sender<Told>) -> Told {
    let mut all = Vec::new();
    while let Some(piece) = body.next().await {
        all.extend(piece?);
        assert!(all == content(all.len()), "in order");
        tell.send(Ok(all.len())).unwrap();
    }
    assert!(body.is_ended() && !body.is_left());
    Ok(all.len())
}

/// Waits until nothing is stored any more.
#[track_caller]
fn until_empty(store: &Path) {
    let end = std::time::Instant::now() + PATIENCE;
    while !files(store).is_empty() {
        assert!(std::time::Instant::now() < end, "files are left");
        std::thread::yield_now();
    }
}

#[test]
fn an_announced_upload_is_read_while_it_arrives_and_removed_afterwards() {
    let store = scratch();
    servers::each(&stored_in(store.path()), |server| {
        let mut options = options(&server);
        let expected = if server.kind == Kind::Lurcher {
            Early::Always
        } else {
            options.upload_store = Some(store.path().join("body.XXXXXX"));
            Early::IfAlone
        };
        let (tell, told) = mpsc::channel();
        let handler = run(options, move |connection| {
            read_announced(connection, expected, tell)
        });
        let next = || told.recv_timeout(PATIENCE).unwrap();
        // Two on one connection: nothing of the first is taken for the second's.
        let mut client = Client::connect(server.address);
        for _ in 0..2 {
            let post = post(SIZE);
            let (early, late) = post.split_at(post.len() - 30_000);
            client.send(early).unwrap();
            // The rest has not left.
            while next().unwrap() < SIZE - 30_000 {}
            client.send(late).unwrap();
            assert_eq!(client.answer().body, b"thanks");
            while next().unwrap() < SIZE {}
            // Once more by the reader's end.
            assert!(matches!(next(), Ok(SIZE)));
            until_empty(store.path());
        }
        let head = |path: &str| {
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SIZE}\r\n\r\n")
        };
        client.send(head("/ignored").as_bytes()).unwrap();
        assert_eq!(client.answer().body, b"thanks");
        client.send(&content(SIZE)).unwrap();
        assert!(matches!(next(), Ok(0)));
        until_empty(store.path());
        drop(client);
        let mut leaves = Client::connect(server.address);
        leaves.send(head("/half").as_bytes()).unwrap();
        leaves.send(&content(50_000)).unwrap();
        while next().unwrap() < 50_000 {}
        drop(leaves);
        let left = next();
        assert!(matches!(left, Err(BodyError::Gone)), "{left:?}");
        end(handler);
        until_empty(store.path());
    });
}

/// A server removes what it cannot complete; whoever reads it does not wait for ever.
#[test]
fn an_announced_upload_whose_file_vanishes_is_an_error_to_its_reader() {
    let store = scratch();
    servers::each(&stored_in(store.path()), |server| {
        let mut options = options(&server);
        options.upload_store = Some(store.path().join("body.XXXXXX"));
        let (tell, told) = mpsc::channel();
        let handler = run(options, async move |mut connection| {
            let mut bodies = Bodies::new();
            let request = connection.recv().await.expect("a message");
            let Event::UploadStarted(upload) = request.into_event() else {
                panic!("an upload");
            };
            let body = bodies.announced(&upload).expect("a body");
            let read = follow(body, &tell).await;
            let respond = upload.respond(500).close();
            respond.send("no such file").await.unwrap();
            tell.send(read).unwrap();
            connection.finish().await;
        });
        let next = || told.recv_timeout(PATIENCE).unwrap();
        let mut client = Client::connect(server.address);
        let post = post(SIZE);
        let (early, _) = post.split_at(post.len() - 30_000);
        client.send(early).unwrap();
        while next().unwrap() < SIZE - 30_000 {}
        for file in files(store.path()) {
            fs::remove_file(store.path().join(file)).unwrap();
        }
        let gone = next();
        assert!(matches!(gone, Err(BodyError::Gone)), "{gone:?}");
        assert_eq!(client.answer().status, 500);
        drop(client);
        end(handler);
    });
}

/// Neither an upload of a client's making nor one that might be is given to a reader.
#[test]
fn an_announcement_that_may_be_a_clients_is_not_read() {
    let store = scratch();
    let victim = store.path().join("body.victim");
    fs::write(&victim, "precious").unwrap();
    for known in [false, true] {
        servers::each(&stored_in(store.path()), |server| {
            let kind = server.kind;
            let mut options = options(&server);
            options.upload_store = known.then(|| store.path().join("body.XXXXXX"));
            let named = victim.clone();
            let handler = run(options, async move |mut connection| {
                let mut bodies = Bodies::new();
                let mut ends = 0;
                while ends < 2 {
                    let request = connection.recv().await.expect("a message");
                    match request.into_event() {
                        Event::UploadStarted(upload) => {
                            assert_ne!(upload.path(), named);
                            let begun = bodies.announced(&upload).is_some();
                            assert_eq!(begun, known || kind == Kind::Lurcher);
                        }
                        Event::UploadDone(upload) => {
                            assert_ne!(upload.path(), named);
                            bodies.done(&upload);
                            upload.respond(200).close().send("done").await.unwrap();
                            ends += 1;
                        }
                        Event::Request(request) => {
                            assert_eq!(kind, Kind::Lurcher);
                            request.respond(200).close().send("plain").await.unwrap();
                            ends += 1;
                        }
                        Event::UploadRefused(request, _) => {
                            assert_eq!(kind, Kind::Mongrel2);
                            request.respond(400).close().send("refused").await.unwrap();
                            ends += 1;
                        }
                        Event::Disconnect(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
                connection.finish().await;
            });
            let start = format!("x-mongrel2-upload-start: {}\r\n", victim.display());
            let small = format!(
                "POST /up HTTP/1.1\r\nHost: localhost\r\n{start}Content-Length: 3\r\n\r\nabc"
            );
            assert_ne!(ask(server.address, small.as_bytes()).1, "done");
            let large = format!(
                "POST /up HTTP/1.1\r\nHost: localhost\r\n{start}Content-Length: {SIZE}\r\n\r\n"
            );
            let large = [large.as_bytes(), &content(SIZE)].concat();
            let mut client = Client::connect(server.address);
            // One that is refused may be gone before it has sent everything.
            drop(client.send(&large));
            if kind == Kind::Lurcher {
                assert_eq!(client.answer().body, b"done");
            }
            end(handler);
            assert_eq!(fs::read(&victim).unwrap(), b"precious");
        });
    }
}

/// Reads bodies through a small window and answers with what they were; ends when the client that sends half a body is gone.
async fn read_streams(mut connection: Connection, tell: mpsc::Sender<Result<usize, BodyError>>) {
    let mut bodies = Bodies::with_window(5000);
    let mut readers = JoinSet::new();
    while let Some(request) = connection.recv().await {
        match request.into_event() {
            Event::UploadPart(part) => {
                let Some(body) = bodies.part(&part) else {
                    continue;
                };
                let (replies, tell) = (connection.replies(), tell.clone());
                let half = part.path == "/half";
                readers.spawn(async move {
                    let read = check(body).await;
                    let said = read.as_ref().map_or(0, |size| *size);
                    if !half {
                        replies
                            .reply_http(&part, said.to_string(), 200, "", &[])
                            .await
                            .unwrap();
                    }
                    tell.send(read).unwrap();
                });
            }
            Event::Disconnect(client) => {
                bodies.gone(&client);
                if readers.len() == 3 {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    readers.join_all().await;
    connection.finish().await;
}

async fn check(mut body: BodyReader) -> Result<usize, BodyError> {
    let mut all = Vec::new();
    while let Some(piece) = body.next().await {
        all.extend(piece?);
        assert!(all == content(all.len()), "in order");
    }
    assert!(body.is_ended());
    assert_eq!(body.remaining(), Some(0));
    Ok(all.len())
}

#[test]
fn a_streamed_upload_is_read_as_it_comes_and_ends_with_its_client() {
    servers::each(", 'upload.stream': 1", |server| {
        let (tell, told) = mpsc::channel();
        let handler = run(options(&server), |connection| {
            read_streams(connection, tell)
        });
        assert_eq!(ask(server.address, &post(SIZE)).1, SIZE.to_string());
        assert!(matches!(told.recv_timeout(PATIENCE), Ok(Ok(SIZE))));
        assert_eq!(ask(server.address, &chunked(SIZE)).1, SIZE.to_string());
        assert!(matches!(told.recv_timeout(PATIENCE), Ok(Ok(SIZE))));
        let mut leaves = Client::connect(server.address);
        let head =
            format!("POST /half HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SIZE}\r\n\r\n");
        leaves.send(head.as_bytes()).unwrap();
        leaves.send(&content(50_000)).unwrap();
        drop(leaves);
        let left = told.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(left, Err(BodyError::Gone)), "{left:?}");
        end(handler);
    });
}
