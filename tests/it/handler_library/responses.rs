//! What the response writer sends, byte for byte, seen by a front of plain libzmq sockets.

use lurcher::handler::{Connection, HttpError, ReplyError, Request, Respond};

use super::fake_front::{Front, get, json, request};
use super::{end, run};

/// The messages that a handler sends for one request; the date is `D`.
#[track_caller]
fn sent<F, R>(message: &[u8], handler: F) -> Vec<String>
where
    F: FnOnce(Request) -> R + Send + 'static,
    R: Future<Output = ()>,
{
    let front = Front::new();
    let handler = run(front.options(), async move |mut connection: Connection| {
        let request = connection.recv().await.unwrap();
        handler(request).await;
        let last = connection.recv().await.unwrap();
        connection.reply(&last, "last").await.unwrap();
        connection.finish().await;
    });
    front.push(message);
    front.push(&get(9));
    let mut replies = Vec::new();
    loop {
        let reply = front.reply();
        if reply == "front 1:9, last" {
            break;
        }
        replies.push(undated(&reply));
    }
    end(handler);
    replies
}

fn undated(reply: &str) -> String {
    let Some((before, rest)) = reply.split_once("\r\nDate: ") else {
        return reply.to_owned();
    };
    let (date, rest) = rest.split_once("\r\n").unwrap();
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date:?}");
    format!("{before}\r\nDate: D\r\n{rest}")
}

fn get_old(id: u32) -> Vec<u8> {
    request(id, "GET", "HTTP/1.0", "")
}

fn text(respond: Respond) -> Respond {
    respond.header("X-A", "b")
}

#[test]
fn one_response_is_one_message_with_length_and_date() {
    let replies = sent(&get(1), async |request| {
        text(request.respond(201)).send("abc").await.unwrap();
    });
    let expect =
        "front 1:1, HTTP/1.1 201 Created\r\nX-A: b\r\nDate: D\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(replies, [expect]);
}

#[test]
fn a_response_leaves_without_being_waited_for_if_it_can() {
    let replies = sent(&get(1), async |request| {
        let left = text(request.respond(201)).send_now("abc").unwrap();
        assert!(left.is_none(), "{left:?}");
    });
    let expect =
        "front 1:1, HTTP/1.1 201 Created\r\nX-A: b\r\nDate: D\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(replies, [expect]);
    // One with an end of the connection behind it is two messages, which go when they are sent.
    let replies = sent(&get_old(1), async |request| {
        let left = request.respond(200).send_now("abc").unwrap();
        left.expect("a close is left").send().await.unwrap();
    });
    let head = "front 1:1, HTTP/1.1 200 OK\r\nDate: D\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    assert_eq!(replies, [head, "front 1:1, "]);
    let replies = sent(&get_old(1), async |request| {
        drop(request.respond(200).send_now("abc").unwrap());
        let mistake = request.respond(200).header("a b", "c").send_now("abc");
        assert!(matches!(mistake, Err(ReplyError::Http(HttpError::Name(_)))));
    });
    assert_eq!(replies, [""; 0]);
}

#[test]
fn the_end_of_the_connection_is_said_and_done() {
    let replies = sent(&get_old(1), async |request| {
        request.respond(200).send("abc").await.unwrap();
    });
    let head = "front 1:1, HTTP/1.1 200 OK\r\nDate: D\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    assert_eq!(replies, [head, "front 1:1, "]);
    for way in 0..2 {
        let replies = sent(&get(1), async move |request| {
            let respond = request.respond(200);
            let respond = match way {
                0 => respond.close(),
                _ => respond.header("connection", "x, Close"),
            };
            respond
                .reason("Fine")
                .header("date", "now")
                .send("")
                .await
                .unwrap();
        });
        let own = ["", "x, "][way];
        let head = format!(
            "front 1:1, HTTP/1.1 200 Fine\r\ndate: now\r\nContent-Length: 0\r\nConnection: {own}close\r\n\r\n"
        );
        assert_eq!(replies, [&head, "front 1:1, "]);
    }
}

#[test]
fn responses_without_a_body_have_none() {
    for (code, phrase) in [(204, "No Content"), (304, "Not Modified")] {
        for streamed in [false, true] {
            let replies = sent(&get(1), async move |request| {
                let respond = text(request.respond(code));
                if streamed {
                    let mut body = respond.stream().unwrap();
                    body.write("abc").await.unwrap();
                    body.write("def").await.unwrap();
                    body.finish().await.unwrap();
                } else {
                    respond.send("abc").await.unwrap();
                }
            });
            let expect =
                format!("front 1:1, HTTP/1.1 {code} {phrase}\r\nX-A: b\r\nDate: D\r\n\r\n");
            assert_eq!(replies, [expect]);
        }
    }
    let replies = sent(&get(1), async |request| {
        request
            .respond(103)
            .header("Link", "</a>")
            .send("")
            .await
            .unwrap();
        request.respond(304).length(7).send("").await.unwrap();
    });
    let interim = "front 1:1, HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let head = "front 1:1, HTTP/1.1 304 Not Modified\r\nDate: D\r\nContent-Length: 7\r\n\r\n";
    assert_eq!(replies, [interim, head]);
}

#[test]
fn the_answer_to_head_says_what_is_known_of_the_body() {
    let head = |length: &str| format!("front 1:1, HTTP/1.1 200 OK\r\nDate: D\r\n{length}\r\n");
    let message = request(1, "HEAD", "HTTP/1.1", "");
    let replies = sent(&message, async |request| {
        request.respond(200).send("abc").await.unwrap();
        request.respond(200).send("").await.unwrap();
        request.respond(200).length(5).send("").await.unwrap();
        let mut body = request.respond(200).stream().unwrap();
        body.write("abc").await.unwrap();
        body.finish().await.unwrap();
        let mut body = request.respond(200).length(5).stream().unwrap();
        body.write("abc").await.unwrap();
        body.finish().await.unwrap();
    });
    let [three, five] = [3, 5].map(|length| head(&format!("Content-Length: {length}\r\n")));
    let expect = [three, head(""), five.clone(), head(""), five];
    assert_eq!(replies, expect);
}

#[test]
fn a_stream_of_unknown_length_is_chunked() {
    let replies = sent(&get(1), async |request| {
        let mut body = request.respond(200).stream().unwrap();
        body.write("").await.unwrap();
        body.write("abc").await.unwrap();
        body.write([b'x'; 17]).await.unwrap();
        body.flush().await.unwrap();
        body.finish().await.unwrap();
        // The head alone, and the end with the last piece.
        let mut body = request.respond(200).stream().unwrap();
        body.flush().await.unwrap();
        body.finish_with("ab").await.unwrap();
    });
    let head = "front 1:1, HTTP/1.1 200 OK\r\nDate: D\r\nTransfer-Encoding: chunked\r\n\r\n";
    let expect = [
        &format!("{head}3\r\nabc\r\n"),
        "front 1:1, 11\r\nxxxxxxxxxxxxxxxxx\r\n",
        "front 1:1, 0\r\n\r\n",
        head,
        "front 1:1, 2\r\nab\r\n0\r\n\r\n",
    ];
    assert_eq!(replies, expect);
}

#[test]
fn a_stream_that_has_one_piece_is_a_whole_response() {
    let replies = sent(&get(1), async |request| {
        let body = request.respond(200).stream().unwrap();
        body.finish_with("abc").await.unwrap();
        request
            .respond(200)
            .stream()
            .unwrap()
            .finish()
            .await
            .unwrap();
    });
    let head = |length| {
        format!("front 1:1, HTTP/1.1 200 OK\r\nDate: D\r\nContent-Length: {length}\r\n\r\n")
    };
    assert_eq!(replies, [head(3) + "abc", head(0)]);
}

#[test]
fn a_stream_of_known_length_has_to_keep_it() {
    let cut = "front 3:X 1, 23:3:ctl,13:6:cancel,1:1#}]";
    let replies = sent(&get(1), async |request| {
        let mut body = request
            .respond(200)
            .header("content-length", "6")
            .stream()
            .unwrap();
        body.write("abc").await.unwrap();
        let error = body.write("defg").await;
        let (declared, written) = (6, 7);
        assert!(
            matches!(error, Err(ReplyError::Http(ref e)) if *e == HttpError::Length { declared, written }),
            "{error:?}"
        );
        body.finish_with("def").await.unwrap();
        let mut body = request.respond(200).length(2).stream().unwrap();
        body.write("a").await.unwrap();
        let error = body.finish().await;
        assert!(
            matches!(error, Err(ReplyError::Http(HttpError::Length { .. }))),
            "{error:?}"
        );
    });
    let head = |length| {
        format!("front 1:1, HTTP/1.1 200 OK\r\nDate: D\r\nContent-Length: {length}\r\n\r\n")
    };
    assert_eq!(
        replies,
        [&(head(6) + "abc"), "front 1:1, def", &(head(2) + "a"), cut]
    );
}

#[test]
fn an_old_client_is_told_the_end_by_the_connection() {
    let message = json(
        "front",
        1,
        "/",
        &[
            ("METHOD", "GET"),
            ("VERSION", "HTTP/1.0"),
            ("connection", "keep-alive"),
        ],
        "",
    );
    let replies = sent(&message, async |request| {
        let mut body = request.respond(200).stream().unwrap();
        body.write("abc").await.unwrap();
        body.finish().await.unwrap();
        let mut body = request.respond(200).length(1).stream().unwrap();
        body.write("a").await.unwrap();
        body.finish().await.unwrap();
    });
    let head = "front 1:1, HTTP/1.1 200 OK\r\nDate: D\r\n";
    let expect = [
        &format!("{head}Connection: close\r\n\r\nabc"),
        "front 1:1, ",
        &format!("{head}Content-Length: 1\r\nConnection: keep-alive\r\n\r\na"),
    ];
    assert_eq!(replies, expect);
}

#[test]
fn a_writer_that_is_dropped_cuts_its_client_off() {
    let cut = "front 3:X 1, 23:3:ctl,13:6:cancel,1:1#}]";
    let replies = sent(&get(1), async |request| {
        // Nothing was begun.
        drop(request.respond(200));
        drop(request.respond(200).stream().unwrap());
        let mut body = request.respond(200).stream().unwrap();
        body.write("a").await.unwrap();
        drop(body);
    });
    let head =
        "front 1:1, HTTP/1.1 200 OK\r\nDate: D\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    assert_eq!(replies, [cut, head, cut]);
}

#[test]
fn trailers_go_behind_the_last_chunk_where_there_are_chunks() {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    trailers.insert("content-length", "1".parse().unwrap());
    let replies = sent(&get(1), async move |request| {
        let body = request.respond(200).stream().unwrap();
        body.finish_with_trailers(&trailers).await.unwrap();
        let body = request.respond(200).length(0).stream().unwrap();
        body.finish_with_trailers(&trailers).await.unwrap();
    });
    let head = "front 1:1, HTTP/1.1 200 OK\r\nDate: D\r\n";
    let expect = [
        format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\nx-sum: 1\r\n\r\n"),
        format!("{head}Content-Length: 0\r\n\r\n"),
    ];
    assert_eq!(replies, expect);
}

#[test]
fn anothers_headers_are_passed_on_but_those_of_its_connection() {
    let mut headers = http::HeaderMap::new();
    for (name, value) in [
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("connection", "close, X-Hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("content-length", "3"),
    ] {
        headers.append(name, value.parse().unwrap());
    }
    let replies = sent(&get(1), async move |request| {
        let body = request.respond(200).headers(&headers).stream().unwrap();
        body.finish_with("abc").await.unwrap();
    });
    let expect = "front 1:1, HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nDate: D\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(replies, [expect]);
}

#[test]
fn what_would_not_be_http_is_refused_before_anything_is_sent() {
    let replies = sent(&get(1), async |request| {
        let respond = |code| request.respond(code);
        for (respond, expect) in [
            (respond(99), HttpError::Code(99)),
            (respond(1000), HttpError::Code(1000)),
            (
                respond(200).reason("a\r\nb"),
                HttpError::Reason("a\r\nb".to_owned()),
            ),
            (
                respond(200).header("a b", "c"),
                HttpError::Name("a b".to_owned()),
            ),
            (
                respond(200).header("a", "b\r\nc: d").header("b c", "d"),
                HttpError::Value {
                    name: "a".to_owned(),
                },
            ),
            (
                respond(200).header("Transfer-Encoding", "chunked"),
                HttpError::Framing("Transfer-Encoding".to_owned()),
            ),
            (
                respond(200)
                    .header("Content-Length", "3")
                    .header("content-length", "4"),
                HttpError::Framing("content-length".to_owned()),
            ),
            (
                respond(200).header("Content-Length", "-3"),
                HttpError::Framing("Content-Length".to_owned()),
            ),
        ] {
            let error = respond.send("x").await;
            assert!(
                matches!(&error, Err(ReplyError::Http(error)) if *error == expect),
                "{error:?}"
            );
        }
        let error = respond(200).header("", "x").stream().map(drop);
        assert!(
            matches!(error, Err(ReplyError::Http(HttpError::Name(_)))),
            "{error:?}"
        );
    });
    assert_eq!(replies, [""; 0]);
}

#[test]
fn a_file_is_named_behind_its_head_and_goes_with_the_close() {
    let closing = json(
        "front",
        1,
        "/a",
        &[
            ("METHOD", "GET"),
            ("VERSION", "HTTP/1.1"),
            ("connection", "close"),
        ],
        "",
    );
    let head = |connection: &str| {
        format!(
            "front 1:1, HTTP/1.1 200 OK\r\nX-A: b\r\nDate: D\r\nContent-Length: 500\r\n{connection}\r\n"
        )
    };
    let file = "front 3:X 1, 22:8:sendfile,8:/www/a b,]".to_owned();
    for (message, expect) in [
        (get(1), vec![head(""), file.clone()]),
        (request(1, "HEAD", "HTTP/1.1", ""), vec![head("")]),
        (
            closing,
            vec![
                head("Connection: close\r\n"),
                file.clone(),
                "front 1:1, ".to_owned(),
            ],
        ),
    ] {
        let replies = sent(&message, async |request| {
            let respond = text(request.respond(200));
            respond.send_file("/www/a b", 500).await.unwrap();
            let error = request.respond(200).length(3).send_file("/x", 4).await;
            assert!(
                matches!(
                    error,
                    Err(ReplyError::Http(HttpError::Length {
                        declared: 3,
                        written: 4
                    }))
                ),
                "{error:?}"
            );
        });
        assert_eq!(replies, expect);
    }
}

/// With `download.flow_control` a whole response may go in pieces. One that is given up in the midst must not leave its client
/// waiting for the rest.
#[test]
fn a_whole_response_that_is_dropped_halfway_cuts_its_client_off() {
    let front = Front::new();
    let handler = run(front.options(), async |mut connection: Connection| {
        for number in 0..2 {
            let request = connection.recv().await.unwrap();
            let body = vec![b'x'; 300_000];
            let replies = connection.replies();
            let sending = async {
                match number {
                    0 => request.respond(200).send(body).await,
                    _ => replies.reply_http(&request, body, 200, "OK", &[]).await,
                }
            };
            tokio::select! {
                sent = sending => panic!("{sent:?}"),
                // The test has seen a piece.
                next = connection.recv() => assert_eq!(&next.unwrap().path[..], b"/a"),
            }
        }
        connection.finish().await;
    });
    for id in [1, 2] {
        let headers = [
            ("METHOD", "GET"),
            ("VERSION", "HTTP/1.1"),
            ("DOWNLOAD_CREDITS", "102400"),
        ];
        front.push(&json("front", id, "/a", &headers, ""));
        let piece = front.reply();
        let start = format!("front 1:{id}, HTTP/1.1 200 OK\r\n");
        assert!(piece.starts_with(&start), "{}", piece.len());
        assert!(piece.len() < 103_000, "{}", piece.len());
        front.push(&get(9));
        assert_eq!(
            front.reply(),
            format!("front 3:X {id}, 23:3:ctl,13:6:cancel,1:1#}}]")
        );
    }
    end(handler);
}

#[test]
fn a_stream_ends_with_the_connection_that_it_began_on() {
    let first = Front::new();
    let (send, recv) = (first.send_spec.clone(), first.recv_spec.clone());
    let handler = run(first.options(), async |mut connection: Connection| {
        let request = connection.recv().await.unwrap();
        let mut old = request.respond(200).stream().unwrap();
        old.write("begun").await.unwrap();
        old.flush().await.unwrap();
        // From a server that has come in its place, and numbers its clients anew.
        let request = connection.recv().await.unwrap();
        let error = old.write("for somebody else").await;
        assert!(matches!(error, Err(ReplyError::ClientGone)), "{error:?}");
        assert!(old.is_gone());
        drop(old);
        let mut new = request.respond(200).stream().unwrap();
        new.write("new").await.unwrap();
        new.finish().await.unwrap();
        connection.finish().await;
    });
    first.push(&get(1));
    assert!(first.reply().ends_with("5\r\nbegun\r\n"));
    drop(first);
    let second = Front::bind(&send, &recv);
    second.push(&get(1));
    let mut got = String::new();
    while !got.ends_with("\r\n0\r\n\r\n") {
        got += second
            .reply()
            .strip_prefix("front 1:1, ")
            .expect("no other message");
    }
    assert!(got.ends_with("\r\n\r\n3\r\nnew\r\n0\r\n\r\n"), "{got}");
    end(handler);
}
