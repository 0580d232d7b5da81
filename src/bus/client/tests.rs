//! The connecting sockets against plain libzmq sockets that bind, in threads of their own.

use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// Binds a socket of that kind to a free port, and gives it to a thread.
fn peer(kind: zmq::SocketType, run: impl FnOnce(zmq::Socket) + Send + 'static) -> Endpoint {
    let socket = zmq::Context::new().socket(kind).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_rcvtimeo(30_000).unwrap();
    socket.set_sndtimeo(30_000).unwrap();
    socket.bind("tcp://127.0.0.1:*").unwrap();
    let endpoint = socket
        .get_last_endpoint()
        .unwrap()
        .unwrap()
        .parse()
        .unwrap();
    thread::spawn(move || run(socket));
    endpoint
}

#[tokio::test]
async fn an_abandoned_question_does_not_leave_its_answer_behind() {
    let (ask, asked) = std::sync::mpsc::channel();
    let (go, gone) = std::sync::mpsc::channel();
    let endpoint = peer(zmq::REP, move |rep| {
        while let Ok(question) = rep.recv_bytes(0) {
            ask.send(()).unwrap();
            // The first question is answered when its asker has gone.
            if question == b"one" {
                gone.recv().unwrap();
            }
            rep.send([b"re: ", &question[..]].concat(), 0).unwrap();
        }
    });
    let mut requester =
        Requester::connect(&Context::new(), &endpoint, &Options::default()).unwrap();
    {
        let mut question = std::pin::pin!(requester.ask(b"one"));
        while asked.try_recv().is_err() {
            tokio::select! {
                biased;
                answer = &mut question => panic!("answered at once: {answer:?}"),
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
    }
    go.send(()).unwrap();
    assert_eq!(requester.ask(b"two").await.unwrap(), b"re: two");
    assert_eq!(requester.ask(b"three").await.unwrap(), b"re: three");
}

#[tokio::test]
async fn what_nobody_listens_to_is_dropped_after_a_while_and_told() {
    // A server that is there and never subscribes.
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let endpoint = peer(zmq::SUB, move |_sub| {
        assert!(ended.recv().is_err(), "until the test is over");
    });
    let patience = Duration::from_millis(20);
    let publisher =
        Publisher::connect(&Context::new(), &endpoint, &Options::default(), patience).unwrap();
    assert!(
        !publisher
            .subscribed(Instant::now() + patience)
            .await
            .unwrap()
    );
    assert_eq!(publisher.send(b"a".to_vec()).await.unwrap(), Sent::Dropped);
    assert_eq!(publisher.would_pass(b"a"), None);
    // A sign of life raises hope once, and not again at once.
    publisher.expect(patience).unwrap();
    assert_eq!(publisher.send(b"b".to_vec()).await.unwrap(), Sent::Dropped);
    drop(end);
}

#[tokio::test]
async fn topics_say_what_would_pass() {
    let endpoint = peer(zmq::SUB, |sub| {
        sub.set_subscribe(b"ab").unwrap();
        assert_eq!(sub.recv_bytes(0).unwrap(), b"abc");
        assert_eq!(sub.recv_bytes(0).unwrap(), b"ab last");
    });
    let context = Context::new();
    let publisher = Publisher::connect(&context, &endpoint, &Options::default(), PATIENCE).unwrap();
    assert!(
        publisher
            .subscribed(Instant::now() + PATIENCE)
            .await
            .unwrap()
    );
    assert_eq!(
        (publisher.would_pass(b"abc"), publisher.would_pass(b"ba")),
        (Some(true), Some(false))
    );
    for message in ["abc", "ba", "ab last"] {
        assert_eq!(publisher.send(message.into()).await.unwrap(), Sent::Queued);
    }
    // Waits until it is written.
    drop(publisher);
    context.close().await;
}

#[tokio::test]
async fn messages_in_parts_are_left_out_and_large_ones_kept_whole() {
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let endpoint = peer(zmq::PUSH, move |push| {
        push.send("one", 0).unwrap();
        push.send_multipart(["a", "b", "c"], 0).unwrap();
        push.send(vec![7; 100_000], 0).unwrap();
        push.send("", 0).unwrap();
        assert!(ended.recv().is_err(), "until the test is over");
    });
    let mut receiver = Receiver::connect(&Context::new(), &endpoint, &Options::default()).unwrap();
    assert_eq!(receiver.recv().await.unwrap(), "one");
    assert_eq!(receiver.recv().await.unwrap(), vec![7; 100_000]);
    assert_eq!(receiver.recv().await.unwrap(), "");
    drop(end);
}

#[tokio::test]
async fn an_endpoint_of_no_use_is_told() {
    let endpoint: Endpoint = "ipc:///nowhere/at/all#bind".parse().unwrap();
    let error = Receiver::connect(&Context::new(), &endpoint, &Options::default())
        .expect_err("no such directory");
    assert_eq!(error.to_string(), "binding ipc:///nowhere/at/all");
}

#[test]
fn sockets_go_to_any_thread() {
    fn check<T: Send + Sync>() {}
    check::<Receiver>();
    check::<Publisher>();
    check::<Requester>();
    check::<Context>();
}
