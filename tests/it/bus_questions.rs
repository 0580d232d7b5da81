//! The answering socket of the bus (REP) against libzmq's REQ and DEALER, old libzmqs, and peers who misbehave.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use lurcher::bus::server::{self, Kind, Listening, Options, answering};
use lurcher::drain;
use lurcher::endpoint::Endpoint;
use tokio::io::AsyncReadExt as _;

use crate::bus_peers::{
    PATIENCE, Raw, blocking, connect, greeting, ipc, payload, pythons, ready, shard, short_frame,
    tcp,
};

/// A REP socket that answers with the question itself, or at the length that the question asks for.
struct Echo {
    address: String,
    asked: Rc<Cell<usize>>,
    listening: Listening,
    _signal: drain::Signal,
}

impl Echo {
    async fn bind(endpoint: Endpoint, options: Options) -> Self {
        let (signal, watch) = drain::channel();
        let bound = server::bind(&endpoint, Kind::Rep, options).await.unwrap();
        let address = bound.endpoint().to_string();
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        let sink = answering(move |_, question| {
            count.set(count.get() + 1);
            match question.strip_prefix(b"length ") {
                Some(length) => payload(std::str::from_utf8(length).unwrap().parse().unwrap()),
                None => question.to_vec(),
            }
        });
        Self {
            listening: bound.run(sink, &watch),
            address,
            asked,
            _signal: signal,
        }
    }

    async fn tcp() -> Self {
        Self::bind(tcp(), Options::default()).await
    }
}

fn ask(socket: &zmq::Socket, question: &[u8]) -> Vec<u8> {
    socket.send(question, 0).unwrap();
    let mut frames = socket.recv_multipart(0).unwrap();
    assert_eq!(frames.len(), 1);
    frames.remove(0)
}

#[test]
fn a_req_is_answered_at_every_size_over_tcp_and_ipc() {
    shard(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rep").to_str().unwrap().to_owned();
        for endpoint in [tcp(), ipc(&path)] {
            let echo = Echo::bind(endpoint, Options::default()).await;
            let address = echo.address.clone();
            blocking(move || {
                let req = connect(zmq::REQ, &address);
                for size in [0, 1, 253, 254, 255, 256, 70_000] {
                    assert!(ask(&req, &payload(size)) == payload(size), "{size}");
                }
            })
            .await;
            assert_eq!(echo.asked.get(), 7);
        }
    });
}

#[test]
fn many_ask_at_once_and_each_gets_its_own_answers() {
    shard(async {
        let echo = Echo::tcp().await;
        let askers: Vec<_> = (0..20)
            .map(|number| {
                let address = echo.address.clone();
                std::thread::spawn(move || {
                    let req = connect(zmq::REQ, &address);
                    for count in 0..50 {
                        let question = format!("{number}/{count}").into_bytes();
                        assert_eq!(ask(&req, &question), question);
                    }
                })
            })
            .collect();
        blocking(move || {
            for asker in askers {
                asker.join().unwrap();
            }
        })
        .await;
    });
}

#[test]
fn an_envelope_comes_back_as_it_was() {
    shard(async {
        let echo = Echo::tcp().await;
        let address = echo.address.clone();
        blocking(move || {
            let correlated = zmq::Context::new().socket(zmq::REQ).unwrap();
            correlated
                .set_rcvtimeo(i32::try_from(PATIENCE.as_millis()).unwrap())
                .unwrap();
            correlated.set_req_correlate(true).unwrap();
            correlated.connect(&address).unwrap();
            assert_eq!(ask(&correlated, b"one"), b"one");
            assert_eq!(ask(&correlated, b"two"), b"two");

            let dealer = connect(zmq::DEALER, &address);
            for envelope in [&[&b""[..]][..], &[b"router", b"", b""], &[b"a", b"b", b""]] {
                let delimiter = envelope.iter().position(|frame| frame.is_empty()).unwrap();
                let envelope = &envelope[..=delimiter];
                let question = [envelope, &[b"body"]].concat();
                dealer.send_multipart(&question, 0).unwrap();
                assert_eq!(dealer.recv_multipart(0).unwrap(), question);
            }
        })
        .await;
    });
}

#[test]
fn what_holds_no_question_is_dropped_and_the_next_is_answered() {
    shard(async {
        let echo = Echo::tcp().await;
        let address = echo.address.clone();
        blocking(move || {
            let dealer = connect(zmq::DEALER, &address);
            // No empty frame, nothing behind it, and a probe.
            dealer.send("no envelope", 0).unwrap();
            dealer.send_multipart(["still", "none"], 0).unwrap();
            dealer.send_multipart(["router", ""], 0).unwrap();
            dealer.send("", 0).unwrap();
            // The frames behind a question are not for us.
            dealer.send_multipart(["", "question", "more"], 0).unwrap();
            assert_eq!(
                dealer.recv_multipart(0).unwrap(),
                [&b""[..], b"question"].map(<[u8]>::to_vec)
            );
        })
        .await;
        assert_eq!(echo.asked.get(), 1);
    });
}

#[test]
fn who_asks_ahead_is_answered_in_order() {
    shard(async {
        let echo = Echo::tcp().await;
        let address = echo.address.clone();
        blocking(move || {
            let dealer = connect(zmq::DEALER, &address);
            for number in 0..2000 {
                dealer
                    .send_multipart([String::new(), number.to_string()].iter(), 0)
                    .unwrap();
            }
            for number in 0..2000 {
                let frames = dealer.recv_multipart(0).unwrap();
                assert_eq!(frames[1], number.to_string().into_bytes());
            }
        })
        .await;
    });
}

#[test]
fn who_does_not_read_answers_is_not_listened_to() {
    const QUESTIONS: usize = 400;
    shard(async {
        // On a slow machine this lasts long enough for a PING, which would be counted.
        let mut options = Options::default();
        options.protocol.heartbeat_interval = Duration::ZERO;
        let echo = Echo::bind(tcp(), options).await;
        let mut raw = Raw::ready(&echo.address, "DEALER").await;
        // Far more than the buffers of two sockets: 400 MB of answers.
        let question = [&b"\x01\0"[..], &short_frame(b"length 1000000")].concat();
        raw.write(&question.repeat(QUESTIONS)).await;
        let other = echo.address.clone();
        let mut still = 0;
        let settled = async {
            // Answered until its buffers are full, and no further although the questions are here.
            loop {
                let before = echo.asked.get();
                tokio::time::sleep(Duration::from_millis(50)).await;
                still = if before == echo.asked.get() && before > 0 {
                    still + 1
                } else {
                    0
                };
                if still == 6 {
                    return before;
                }
            }
        };
        let asked = tokio::time::timeout(PATIENCE, settled).await.unwrap();
        assert!(asked < QUESTIONS / 2, "{asked} answered without being read");
        // Meanwhile others are.
        blocking(move || assert_eq!(ask(&connect(zmq::REQ, &other), b"hello"), b"hello")).await;
        // And when it reads, it gets them all.
        let whole = QUESTIONS * (2 + 9 + 1_000_000);
        let (mut read, mut buffer) = (0, vec![0; 1 << 20]);
        while read < whole {
            let more = tokio::time::timeout(PATIENCE, raw.stream.read(&mut buffer));
            let more = more.await.expect("in time").unwrap();
            assert!(more > 0, "closed after {read} bytes");
            read += more;
        }
        assert_eq!((read, echo.asked.get()), (whole, QUESTIONS + 1));
    });
}

#[test]
fn a_question_that_is_too_long_ends_its_connection_alone() {
    shard(async {
        let mut options = Options::default();
        options.protocol.message_bytes_max = 1000;
        let echo = Echo::bind(tcp(), options).await;
        let mut raw = Raw::ready(&echo.address, "REQ").await;
        raw.write(b"\x01\0\x02\0\0\0\0\0\0\x03\xe9").await;
        assert_eq!(raw.rest().await, b"");
        let address = echo.address.clone();
        blocking(move || {
            let req = connect(zmq::REQ, &address);
            assert!(ask(&req, &payload(1000)) == payload(1000));
        })
        .await;
        assert_eq!(echo.asked.get(), 1);
    });
}

#[test]
fn old_protocols_ask_and_web_browsers_do_not() {
    shard(async {
        let echo = Echo::tcp().await;
        let signature = b"\xff\0\0\0\0\0\0\0\x01\x7f";

        // ZMTP 1.0: an empty identity, an empty frame with MORE, the question.
        let mut oldest = Raw::connect(&echo.address).await;
        oldest.write(b"\x01\0\x01\x01\x06\0hello").await;
        assert_eq!(oldest.read(10).await, signature);
        assert_eq!(oldest.read(9).await, b"\x01\x01\x06\0hello");

        // ZMTP 2.0: its type, REQ is 3.
        let mut old = Raw::connect(&echo.address).await;
        old.write(&[signature, &b"\x01\x03\0\0\x01\0\0\x05hello"[..]].concat())
            .await;
        assert_eq!(old.read(11).await[..10], *signature);
        assert_eq!(old.read(3).await, b"\x04\0\0");
        assert_eq!(old.read(9).await, b"\x01\0\0\x05hello");

        let mut browser = Raw::connect(&echo.address).await;
        browser
            .write(b"POST / HTTP/1.1\r\nContent-Length: 16\r\n\r\n\x01\x01\x06\0hello")
            .await;
        assert_eq!(browser.rest().await, signature);

        let mut wrong = Raw::connect(&echo.address).await;
        wrong.write(&greeting()).await;
        wrong.write(&ready("PULL")).await;
        wrong.rest().await;
        assert_eq!(echo.asked.get(), 2);
    });
}

#[test]
fn an_answer_given_just_before_the_close_arrives() {
    shard(async {
        let echo = Echo::tcp().await;
        let mut raw = Raw::ready(&echo.address, "REQ").await;
        raw.write(&[&b"\x01\0"[..], &short_frame(b"last words")].concat())
            .await;
        while echo.asked.get() == 0 {
            tokio::task::yield_now().await;
        }
        echo.listening.close();
        assert_eq!(raw.rest().await, b"\x01\0\0\x0alast words");
    });
}

/// Asks with every size of one frame header or the other, as an old libzmq does.
const ASK: &str = "
import sys, zmq
context = zmq.Context()
req = context.socket(zmq.REQ)
req.connect(sys.argv[1])
for size in (0, 1, 253, 254, 255, 256, 70000):
    question = b'x' * size
    req.send(question)
    assert req.poll(20000), 'no answer'
    assert req.recv() == question
print('libzmq', zmq.zmq_version())
req.close(0)
context.term()
";

#[test]
fn older_libzmqs_ask_too() {
    for python in pythons() {
        let zmq = std::process::Command::new(&python)
            .args(["-c", "import zmq"])
            .output();
        if !zmq.is_ok_and(|output| output.status.success()) {
            println!("skipped: no pyzmq by {python}");
            continue;
        }
        shard(async {
            let echo = Echo::tcp().await;
            let (address, name) = (echo.address.clone(), python.clone());
            let output = blocking(move || {
                std::process::Command::new(&name)
                    .args(["-c", ASK, &address])
                    .output()
                    .unwrap()
            })
            .await;
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{python}: {output:?}");
            println!("{python}: {}", said.trim());
            assert_eq!(echo.asked.get(), 7);
        });
    }
}
