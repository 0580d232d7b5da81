//! The handler library, `lurcher run` and the built-in handlers, against a front made of plain libzmq sockets and
//! against the real Mongrel2.

mod blocking;
mod brokers;
mod changing;
mod crowds;
mod fake_front;
mod programs;
mod responses;
mod rooms;
mod services;
mod stopping;
mod uploads;
mod websocket;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lurcher::endpoint::Endpoint;
use lurcher::handler::{Client, Connection, Event, IDS_PER_MESSAGE, Options, ReplyError};
use lurcher::wire::ConnId;

use fake_front::{Front, get, json, request, tnetstring};

/// Long enough for anything on a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

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
fn a_client_can_be_kept_granted_cancelled_and_sent_a_file() {
    let front = Front::new();
    let handler = run(front.options(), async |mut connection| {
        let client = connection.recv().await.unwrap().client();
        client.keep_alive().await.unwrap();
        client.grant(1000).await.unwrap();
        client.send_file("/www/a.bin").await.unwrap();
        client.cancel().await.unwrap();
        connection.finish().await;
    });
    front.push(&json("front", 7, "/", &[("METHOD", "GET")], ""));
    for command in [
        "28:3:ctl,18:10:keep-alive,1:1#}]",
        "27:3:ctl,17:7:credits,4:1000#}]",
        "25:8:sendfile,10:/www/a.bin,]",
        "23:3:ctl,13:6:cancel,1:1#}]",
    ] {
        assert_eq!(front.reply(), format!("front 3:X 7, {command}"));
    }
    end(handler);
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
