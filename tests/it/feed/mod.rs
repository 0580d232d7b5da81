//! The feed between servers and workers: against plain libzmq sockets as a server, against Lurcher and the real Mongrel2, with
//! workers that know nothing of Lurcher.

mod connections;
mod load;
mod running;

use lurcher::broker::{Feed, Settings};

use crate::support::client::{Asked, Client};
use crate::support::peer::address;
use crate::support::servers::{self, Server};
use crate::support::{PATIENCE, free_port};
use running::{Running, answer};

/// A server made of plain libzmq sockets.
struct Plain {
    push: zmq::Socket,
    sub: zmq::Socket,
    send: String,
    recv: String,
}

impl Plain {
    fn bind() -> Self {
        let context = zmq::Context::new();
        let [push, sub] = [zmq::PUSH, zmq::SUB].map(|kind| context.socket(kind).unwrap());
        let patience = i32::try_from(PATIENCE.as_millis()).unwrap();
        sub.set_subscribe(b"").unwrap();
        for socket in [&push, &sub] {
            socket.set_linger(0).unwrap();
            socket.set_rcvtimeo(patience).unwrap();
            socket.set_sndtimeo(patience).unwrap();
        }
        let [send, recv] = [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
        push.bind(&send).unwrap();
        sub.bind(&recv).unwrap();
        Self {
            push,
            sub,
            send,
            recv,
        }
    }

    fn feed(&self) -> Running {
        let feed = Running::start(&[(&self.send, &self.recv)], Settings::default);
        self.listens(&feed, 0);
        feed
    }

    /// Waits until the feed knows that this server, its so manieth, takes replies. libzmq subscribes when its owner looks at it.
    fn listens(&self, feed: &Running, number: usize) {
        while !feed.ask(move |feed| feed.servers()[number].listens) {
            self.sub.poll(zmq::POLLIN, 1).unwrap();
        }
    }

    fn push(&self, message: &[u8]) {
        self.push.send(message, 0).unwrap();
    }

    fn reply(&self) -> Vec<u8> {
        self.sub.recv_bytes(0).expect("a reply")
    }
}

fn feed(server: &Server) -> Running {
    Running::start(&[(&server.send, &server.recv)], Settings::default)
}

/// A message as a server writes it; `tag` ends the headers.
fn message(id: u32, path: &str, headers: &[u8], tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = format!("the-sender {id} {path} {}:", headers.len()).into_bytes();
    out.extend_from_slice(headers);
    out.push(tag);
    out.extend_from_slice(format!("{}:", body.len()).as_bytes());
    out.extend_from_slice(body);
    out.push(b',');
    out
}

/// A request in JSON.
fn request(id: u32, method: &str, path: &str, body: &str) -> Vec<u8> {
    let headers = format!(
        r#"{{"PATH":"{path}","host":"h","METHOD":"{method}","VERSION":"HTTP/1.1","URI":"{path}","PATTERN":"/","REMOTE_ADDR":"127.0.0.1"}}"#
    );
    message(id, path, headers.as_bytes(), b',', body.as_bytes())
}

#[test]
fn messages_pass_byte_for_byte_both_ways() {
    let server = Plain::bind();
    let feed = server.feed();
    let worker = feed.worker();
    // Bytes that no JSON may have, a key with a line in it, tnetstring, a notice of a kind that nobody knows.
    let tnet = message(
        8,
        "/t",
        b"4:PATH,2:/t,6:METHOD,3:GET,7:VERSION,8:HTTP/1.1,4:x-b\xff,4:\x01\t\xfe,,",
        b'}',
        b"\0\xff\r\n",
    );
    let odd = message(
        9,
        "/j",
        b"{\"PATH\":\"/j\",\"METHOD\":\"POST\",\"VERSION\":\"HTTP/1.1\",\"x\":\"\x01\xe4\ty\",\"z\":\"\"}",
        b',',
        b"",
    );
    let notice = message(
        7,
        "@*",
        b"{\"METHOD\":\"JSON\"}",
        b',',
        b"{\"type\":\"news\"}",
    );
    for message in [request(7, "GET", "/a?b", ""), tnet, odd, notice] {
        server.push(&message);
        let got = worker.recv(PATIENCE).expect("the message");
        assert_eq!(
            got.escape_ascii().to_string(),
            message.escape_ascii().to_string()
        );
    }
    let replies: [&[u8]; 6] = [
        b"the-sender 1:7, HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\0\xff",
        b"the-sender 3:8 9, ",
        b"any-other 5:8 9 7, payload",
        b"the-sender 3:X 7, 28:3:ctl,18:10:keep-alive,1:1#}]",
        b"the-sender 4:X 99, 26:3:ctl,16:6:cancel,4:true!}]",
        b"the-sender 2:12, ",
    ];
    for reply in replies {
        worker.send(reply);
        assert_eq!(
            server.reply().escape_ascii().to_string(),
            reply.escape_ascii().to_string()
        );
    }
    drop(worker);
    feed.stop();
}

#[test]
fn requests_are_answered_through_a_feed() {
    servers::each("", |server| {
        let feed = feed(&server);
        let mut workers = [feed.process(), feed.process()];
        feed.ready(2);
        let mut client = Client::connect(server.address);
        for round in 0..20 {
            client
                .send(format!("GET /{round} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
                .unwrap();
            let body = client.answer().body;
            assert!(body.ends_with(format!("/{round}").as_bytes()));
        }
        // Pipelined: in their order. A Mongrel2 closes a connection for which more than 16 messages wait.
        let many: Vec<String> = (0..10)
            .map(|n| format!("GET /p{n} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .collect();
        let many = many.concat();
        client.send(many.as_bytes()).unwrap();
        for n in 0..10 {
            let body = client.answer().body;
            assert!(body.ends_with(format!("/p{n}").as_bytes()), "{n}");
        }
        let served: u64 = workers
            .iter()
            .map(|worker| {
                let pid = worker.id();
                feed.ask(move |feed| feed.counts(pid).served)
            })
            .sum();
        assert_eq!(served, 30);
        for worker in &mut workers {
            worker.kill();
            // Its number may become another's.
            let pid = worker.id();
            feed.ask(Feed::forget_ended);
            assert_eq!(feed.ask(move |feed| feed.counts(pid).served), 0);
        }
    });
}

#[test]
fn a_killed_workers_request_goes_to_another_where_that_is_safe_and_is_a_502_otherwise() {
    servers::each("", |server| {
        let feed = feed(&server);
        let mut victim = feed.process();
        feed.ready(1);
        let ask = |method: &str| {
            let mut client = Client::connect(server.address);
            let request =
                format!("{method} /hold HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
            client.send(request.as_bytes()).unwrap();
            client
        };
        let mut clients = ["GET", "POST", "HEAD"].map(|method| {
            let client = ask(method);
            victim.line("the request", |line| (line == "got /hold").then_some(()));
            client
        });
        let other = feed.worker();
        feed.ready(2);
        victim.kill();
        for _ in 0..2 {
            let message = other.recv(PATIENCE).expect("what is safe");
            let (sender, id, path, rest) = address(&message);
            assert_eq!(path, "/hold");
            let head = rest
                .windows(6)
                .any(|word| word == b"\"HEAD\"" || word == b",4:HEA");
            let body = answer("other");
            let end = if head { body.len() - 5 } else { body.len() };
            other.reply(sender, id, &body[..end]);
        }
        assert_eq!(clients[0].answer().body, b"other");
        let answer = clients[1].answer();
        assert_eq!(answer.status, 502);
        assert_eq!(
            answer.body,
            b"Bad Gateway: the handler was lost while it had the request"
        );
        clients[1].rest();
        let answer = clients[2]
            .try_answer(Asked::Head, PATIENCE)
            .expect("answered");
        assert_eq!(answer.status, 200);
    });
}
