//! The connecting sockets against plain libzmq sockets that bind, in threads of their own.

use std::thread;
use std::time::Duration;

use tokio::time::{Instant, timeout};

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
        assert_eq!(publisher.send(message).await.unwrap(), Sent::Queued);
    }
    // Waits until it is written.
    drop(publisher);
    context.close().await;
}

/// A publisher to whoever is there, which subscribes.
async fn subscribed(context: &Context, endpoint: &Endpoint) -> Publisher {
    let publisher = Publisher::connect(context, endpoint, &Options::default(), PATIENCE).unwrap();
    let until = Instant::now() + PATIENCE;
    assert!(publisher.subscribed(until).await.unwrap());
    publisher
}

#[tokio::test]
async fn what_is_sent_goes_in_order_when_it_is_much_and_when_the_publisher_is_gone() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let endpoint = peer(zmq::SUB, move |sub| {
        sub.set_subscribe(b"").unwrap();
        while tell.send(sub.recv_bytes(0).unwrap()).is_ok() {}
    });
    let context = Context::new();
    let publisher = subscribed(&context, &endpoint).await;
    for number in 0..100_u8 {
        assert_eq!(publisher.send(vec![number]).await.unwrap(), Sent::Queued);
    }
    let large = publisher.send(vec![0; 1 << 20]).await;
    assert_eq!(large.unwrap(), Sent::Queued);
    assert_eq!(
        publisher.send(b"last".to_vec()).await.unwrap(),
        Sent::Queued
    );
    drop(publisher);
    for number in 0..100_u8 {
        assert_eq!(told.recv().await.unwrap(), [number]);
    }
    assert_eq!(told.recv().await.unwrap().len(), 1 << 20);
    assert_eq!(told.recv().await.unwrap(), b"last");
    context.close().await;
}

#[tokio::test]
async fn what_was_queued_for_one_connection_is_not_sent_on_the_next() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (go, gone) = std::sync::mpsc::channel();
    let endpoint = peer(zmq::SUB, move |first| {
        let bound = first.get_last_endpoint().unwrap().unwrap();
        first.set_rcvhwm(1).unwrap();
        first.set_subscribe(b"").unwrap();
        // It subscribes in here.
        while gone.try_recv().is_err() {
            first.poll(zmq::POLLIN, 1).unwrap();
        }
        drop(first);
        let second = zmq::Context::new().socket(zmq::SUB).unwrap();
        second.set_rcvtimeo(30_000).unwrap();
        // The port is free when libzmq's thread has closed it.
        while second.bind(&bound).is_err() {
            thread::yield_now();
        }
        second.set_subscribe(b"").unwrap();
        tell.send(second.recv_bytes(0).unwrap()).unwrap();
    });
    let context = Context::new();
    let publisher = subscribed(&context, &endpoint).await;
    // More than all buffers on the way take.
    let mut queued = 0;
    while let Ok(sent) = timeout(Duration::from_millis(20), publisher.send(vec![0; 1 << 16])).await
    {
        assert_eq!(sent.unwrap(), Sent::Queued);
        queued += 1;
    }
    assert!(queued >= 1000, "{queued}");
    go.send(()).unwrap();
    let first = publisher.subscription();
    while publisher
        .subscription()
        .is_none_or(|now| Some(now) == first)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(publisher.send(b"new".to_vec()).await.unwrap(), Sent::Queued);
    assert_eq!(told.recv().await.unwrap(), b"new");
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

#[tokio::test]
async fn a_bound_receiver_hears_whoever_connects() {
    let context = Context::new();
    let bound: Endpoint = "tcp://127.0.0.1:*#bind".parse().unwrap();
    let mut receiver = Receiver::connect(&context, &bound, &Options::default()).unwrap();
    let address = Endpoint::from(receiver.endpoint().transport.clone()).to_string();
    let pushers: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|text| {
            let push = zmq::Context::new().socket(zmq::PUSH).unwrap();
            push.connect(&address).unwrap();
            push.send(text, 0).unwrap();
            push
        })
        .collect();
    let mut heard = Vec::new();
    while heard.len() < pushers.len() {
        heard.push(timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap());
    }
    heard.sort_unstable();
    assert_eq!(heard, ["a", "b", "c"]);
    assert_eq!(receiver.is_connected(), None);
}

#[tokio::test]
async fn a_bound_publisher_tells_each_what_it_wants() {
    let context = Context::new();
    let bound: Endpoint = "tcp://127.0.0.1:*#bind".parse().unwrap();
    let publisher = Publisher::connect(&context, &bound, &Options::default(), PATIENCE).unwrap();
    let address = Endpoint::from(publisher.endpoint().transport.clone()).to_string();
    let subscribers = ["a", "b", ""].map(|topic| {
        let sub = zmq::Context::new().socket(zmq::SUB).unwrap();
        sub.set_rcvtimeo(30_000).unwrap();
        sub.set_subscribe(topic.as_bytes()).unwrap();
        sub.connect(&address).unwrap();
        sub
    });
    let all_there = async {
        while publisher.subscription().is_none_or(|count| count < 3) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, all_there).await.unwrap();
    for message in ["a1", "b1", "c1", "a2", "b2"] {
        assert_eq!(publisher.send(message).await.unwrap(), Sent::Queued);
    }
    drop(publisher);
    context.close().await;
    let expected = [
        &["a1", "a2"][..],
        &["b1", "b2"],
        &["a1", "b1", "c1", "a2", "b2"],
    ];
    for (sub, expected) in subscribers.iter().zip(expected) {
        for message in expected {
            assert_eq!(sub.recv_bytes(0).unwrap(), message.as_bytes());
        }
    }
}
