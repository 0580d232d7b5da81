//! Handlers are told what their clients have taken: all of them with `download.flow_control`, where those that send more than allowed
//! lose their clients, and else whoever asks. The library is left aside here: messages are written as `docs/PROTOCOL.md` has them.

use std::fs;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use lurcher::handler::{Connection, Options, ReplyError};
use lurcher::wire::request::{Kind, Request};

use crate::bus_peers::{self, Bus};
use crate::support::client::Client;
use crate::support::front::Front;
use crate::support::handler::ByHand;
use crate::support::peer::{Peer, Replies};
use crate::support::tls::Authority;
use crate::support::{PATIENCE, free_port};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn got(peer: &Peer) -> Request {
    let message = peer.recv(PATIENCE).expect("a message");
    Request::decode(Bytes::from(message)).expect("a message")
}

/// Takes notices until they speak of so many bytes.
fn credited(peer: &Peer, mut bytes: u64) {
    while bytes > 0 {
        let notice = got(peer);
        let Kind::Credits(taken) = notice.kind() else {
            panic!("no credits: {notice:?}");
        };
        bytes = bytes.checked_sub(taken).expect("not more than was sent");
    }
}

#[test]
fn every_byte_that_a_client_takes_is_told_and_too_many_at_once_end_its_connection() {
    let front = Front::start(", 'download.flow_control': 1");
    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    peer.joined();
    let mut client = Client::connect(front.address);
    client.send(GET).unwrap();
    let request = got(&peer);
    assert_eq!(
        request.headers.first("DOWNLOAD_CREDITS"),
        Some(&b"102400"[..])
    );
    let id = request.conn_id.0.to_string();
    let block = vec![b'x'; 50_000];
    let reply = |bytes: &[u8]| peer.reply("app-ident", &id, bytes);
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n";
    reply(head);
    credited(&peer, head.len() as u64);
    for _ in 0..3 {
        reply(&block);
        reply(&block);
        credited(&peer, 100_000);
    }
    assert_eq!(client.answer().body.len(), 300_000);
    client.send(GET).unwrap();
    let again = got(&peer);
    assert_eq!(again.kind(), Kind::Http);
    assert!(!again.headers.contains("DOWNLOAD_CREDITS"));
    // Far more than the client, which does not read, and the kernel's buffers take.
    reply(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n");
    for _ in 0..400 {
        reply(&block);
    }
    loop {
        match got(&peer).kind() {
            Kind::Credits(_) => {}
            Kind::Disconnect => break,
            other => panic!("{other:?}"),
        }
    }
}

/// What a handler by hand wants to have outstanding.
const WINDOW: u64 = 200_000;

/// A response far larger than that, and than what sockets hold.
const BODY: usize = 24 << 20;

/// A notice of credits: its number, what may be outstanding, and what is written.
fn news(handler: &ByHand) -> (u64, u64, u64) {
    let got = handler.got();
    assert_eq!(got.path, "@*", "{got:?}");
    let body: serde_json::Value = serde_json::from_slice(got.body()).unwrap();
    assert_eq!(body["type"], "credits");
    let headers = str::from_utf8(&got.rest).unwrap();
    let credits = headers.split(r#""DOWNLOAD_CREDITS":""#).nth(1).unwrap();
    let credits = credits.split('"').next().unwrap().parse().unwrap();
    let number = |name: &str| body[name].as_u64().unwrap();
    (credits, number("flow"), number("sent"))
}

/// Asks for credits, in the words of the protocol's description.
fn ask(handler: &ByHand, id: &str, sent: u64) {
    let number = |name: &str, number: u64| {
        let digits = number.to_string();
        format!("{}:{name},{}:{digits}#", name.len(), digits.len())
    };
    let members = number("flow", WINDOW) + &number("sent", sent);
    let list = format!("3:ctl,{}:{members}}}", members.len());
    let message = format!("app-ident {}:X {id}, {}:{list}]", 2 + id.len(), list.len());
    handler.peer.send(message.as_bytes());
}

/// Answers a request that has come by credits that are asked for; `halfway` is called once in the midst.
fn answer_by_credits(handler: &ByHand, client: &mut Client, old: bool, halfway: impl FnOnce()) {
    let mut halfway = Some(halfway);
    let version = if old { "1.0" } else { "1.1" };
    let request = format!("GET / HTTP/{version}\r\nHost: localhost\r\n\r\n");
    client.send(request.as_bytes()).unwrap();
    let id = handler.got().id;
    ask(handler, &id, 0);
    let body = bus_peers::payload(BODY);
    let head = if old {
        "HTTP/1.1 200 OK\r\n\r\n".to_owned()
    } else {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n")
    };
    // The first notice comes at once.
    assert_eq!(news(handler), (0, WINDOW, 0));
    handler.reply(&id, head.as_bytes());
    let head = head.len() as u64;
    let got = thread::scope(|scope| {
        let reading = scope.spawn(|| {
            if old {
                client.rest()
            } else {
                client.answer().body
            }
        });
        let (mut sent, mut written, mut total) = (head, 0, 0);
        for piece in body.chunks(50_000) {
            while sent + piece.len() as u64 - written > WINDOW {
                let (credits, window, now) = news(handler);
                assert_eq!(window, WINDOW);
                assert!(now >= written && now <= sent, "{written}, {now}, {sent}");
                total += credits;
                assert_eq!(total, now, "credits add up to what is written");
                written = now;
            }
            handler.reply(&id, piece);
            sent += piece.len() as u64;
            if sent > BODY as u64 / 2
                && let Some(halfway) = halfway.take()
            {
                halfway();
            }
        }
        if old {
            handler.reply(&id, b"");
        }
        reading.join().unwrap()
    });
    assert!(got.ends_with(&body), "{} bytes", got.len());
}

/// The next response gets no credits, since nobody has asked for any.
fn answer_without(handler: &ByHand, client: &mut Client) {
    client.send(GET).unwrap();
    let id = loop {
        let got = handler.got();
        if got.path == "/" {
            break got.id;
        }
        assert!(got.has("credits"), "{got:?}");
    };
    handler.reply(&id, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.answer().body, b"abc");
    handler.told_nothing();
}

#[test]
fn whoever_asks_is_told_what_is_written_until_its_response_ends() {
    let front = Front::start("");
    let handler = ByHand::of(&front);
    let mut client = Client::connect(front.address);
    answer_by_credits(&handler, &mut client, false, || {});
    answer_without(&handler, &mut client);
    let mut old = Client::connect(front.address);
    answer_by_credits(&handler, &mut old, true, || {});
}

#[test]
fn credits_that_are_asked_for_come_over_tls_and_go_on_over_a_reload() {
    let authority = Authority::new();
    let mut front = Front::secure("", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let handler = ByHand::of(&front);
    let config = Arc::new(authority.trusted(None, rustls::ALL_VERSIONS));
    let client = Client::connect(front.address);
    let mut client = client.secure(&config, "localhost").unwrap();
    let file = front.directory().join("main.conf");
    let program = &mut front.program;
    answer_by_credits(&handler, &mut client, false, || {
        let text = fs::read_to_string(&file).unwrap();
        let routes = text.replace("{'/': app}", "{'/': app, '/more': app}");
        assert_ne!(routes, text);
        fs::write(&file, routes).unwrap();
        program.signal("HUP");
        program.said("configuration reloaded", 1);
    });
    answer_without(&handler, &mut client);
}

/// Lurchers may stand behind each other, with a Mongrel2 behind the last: then nobody answers.
#[test]
fn where_nobody_gives_the_credits_asked_for_a_response_goes_on_without_them() {
    const BYTES: usize = 3 << 20;
    bus_peers::shard(async {
        let mut options = lurcher::bus::server::Options::default();
        options.protocol.properties = vec![("X-Lurcher", "1".into())];
        let kinds = [lurcher::bus::server::Kind::Push, bus_peers::everything()];
        let [push, sub] = kinds.map(|kind| Bus::bind(bus_peers::tcp(), kind, options.clone()));
        let (push, sub) = (push.await, sub.await);
        let mut options = Options::to(&push.address).unwrap();
        options.recv_specs = vec![sub.address.parse().unwrap()];
        let mut connection = Connection::connect(options).await.unwrap();
        assert!(connection.servers().all(|server| server.is_lurcher()));
        let headers = r#"{"METHOD":"GET","VERSION":"HTTP/1.1"}"#;
        let message = format!("main 7 / {}:{headers},0:,", headers.len());
        let peer = push.recorder.peer(0).await;
        peer.send(Bytes::from(message).into(), 1).unwrap();
        let request = connection.recv().await.unwrap();
        let writing = async {
            let mut body = request.respond(200).length(BYTES as u64).stream()?;
            for piece in bus_peers::payload(BYTES).chunks(64 << 10) {
                body.write(piece).await?;
            }
            body.finish().await
        };
        let receiving = async { while connection.recv().await.is_some() {} };
        let written: Result<(), ReplyError> = tokio::select! {
            written = writing => written,
            () = receiving => panic!("nobody stops it"),
            () = tokio::time::sleep(PATIENCE) => panic!("the response hangs"),
        };
        written.unwrap();
        let asked = b"main 3:X 7, ";
        sub.recorder
            .wait(|seen| {
                let mut bytes = 0;
                for (_, frames) in &seen.messages {
                    let message = frames.concat();
                    if !message.starts_with(asked) {
                        bytes += message.len() - b"main 1:7, ".len();
                    }
                }
                (bytes > BYTES).then_some(())
            })
            .await;
        connection.finish().await;
    });
}

/// Bytes of a command that asks to be told what is written, having sent so much.
fn flow(id: u32, sent: usize) -> String {
    let sent = sent.to_string();
    let dict = format!("4:flow,5:65536#4:sent,{}:{sent}#", sent.len());
    let list = format!("3:ctl,{}:{dict}}}", dict.len());
    let id = id.to_string();
    format!("app-ident {}:X {id}, {}:{list}]", id.len() + 2, list.len())
}

/// Whoever asks how much is written is told, and not the handler of the request before or behind it on the same connection.
#[test]
fn a_window_is_its_askers_and_ends_with_the_response() {
    let [send, recv] = ["send", "recv"].map(|_| format!("tcp://127.0.0.1:{}", free_port()));
    let front = Front::routed(
        "",
        &format!(
            "'/': app, '/other/': Handler(send_spec='{send}', send_ident='other-ident', recv_spec='{recv}', recv_ident='')"
        ),
    );
    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    let other = Peer::connect(&send, &recv, Replies::Xpub);
    peer.joined();
    other.joined();
    let mut client = Client::connect(front.address);
    let ask = |client: &mut Client, path: &str, from: &Peer| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.send(head.as_bytes()).unwrap();
        let request = got(from);
        assert_eq!(request.kind(), Kind::Http, "{request:?}");
        request.conn_id.0
    };
    let small = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let told = |peer: &Peer, sent: usize| {
        let notice = got(peer);
        assert_eq!(
            notice.flow().map(|flow| flow.sent),
            Some(sent as u64),
            "{notice:?}"
        );
    };
    let id = ask(&mut client, "/", &peer);
    peer.reply("app-ident", &id.to_string(), small);
    assert_eq!(client.answer().body, b"ok");
    // Behind the end of its response.
    peer.send(flow(id, small.len()).as_bytes());
    told(&peer, small.len());
    // Before the beginning: the last handler that the connection had is still the first one.
    let again = ask(&mut client, "/other/", &other);
    assert_eq!(again, id);
    other.send(flow(id, 0).as_bytes());
    told(&other, 0);
    other.reply("other-ident", &id.to_string(), small);
    // Now it is the first one's again, which has not asked this time.
    ask(&mut client, "/", &peer);
    let mut large = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n".to_vec();
    large.resize(large.len() + 200_000, b'x');
    peer.reply("app-ident", &id.to_string(), &large);
    // Nor does a question of another make it the other's.
    ask(&mut client, "/", &peer);
    peer.send(flow(id, 0).as_bytes());
    told(&peer, 0);
    other.send(flow(id, 0).as_bytes());
    // A client that is not there: its end is told when what was sent before has been looked at.
    other.reply("other-ident", &id.wrapping_sub(1).to_string(), b"x");
    assert_eq!(got(&other).kind(), Kind::Disconnect);
    let (some, rest) = large.split_at(100_000);
    peer.reply("app-ident", &id.to_string(), some);
    // All but less than a quarter of the window.
    while got(&peer)
        .flow()
        .is_none_or(|flow| flow.sent <= 100_000 - 65_536 / 4)
    {}
    peer.reply("app-ident", &id.to_string(), rest);
    ask(&mut client, "/other/", &other);
}
