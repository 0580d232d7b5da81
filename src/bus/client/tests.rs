//! The connecting sockets against plain libzmq sockets that bind, in threads of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as Cx, Wake};
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

/// Counts how often it was woken.
#[derive(Default)]
struct Calls(AtomicUsize);

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A publisher to whoever is there, which subscribes.
async fn subscribed(context: &Context, endpoint: &Endpoint) -> Publisher {
    let publisher = Publisher::connect(context, endpoint, &Options::default(), PATIENCE).unwrap();
    let until = Instant::now() + PATIENCE;
    assert!(publisher.subscribed(until).await.unwrap());
    publisher
}

#[tokio::test]
async fn whoever_gathers_is_called_once_for_what_is_sent_until_he_comes() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let endpoint = peer(zmq::SUB, move |sub| {
        sub.set_subscribe(b"").unwrap();
        while tell.send(sub.recv_bytes(0).unwrap()).is_ok() {}
    });
    let context = Context::new();
    let publisher = subscribed(&context, &endpoint).await;
    let calls = Arc::<Calls>::default();
    let waker = calls.clone().into();
    let mut cx = Cx::from_waker(&waker);
    let send = async |text: &str| {
        let sent = publisher.send(text.into()).await;
        assert_eq!(sent.unwrap(), Sent::Queued);
        calls.0.load(Ordering::Relaxed)
    };
    // News of the connection are looked at by whoever sends, and then nothing is gathered.
    for text in ["one", "two"] {
        assert_eq!(send(text).await, 0);
        assert_eq!(told.recv().await.unwrap(), text.as_bytes());
    }
    publisher.gather(&mut cx).unwrap();
    assert_eq!((send("a").await, send("b").await), (1, 1));
    publisher.gather(&mut cx).unwrap();
    assert_eq!(
        (told.recv().await.unwrap(), told.recv().await.unwrap()),
        (b"a".into(), b"b".into())
    );
    assert_eq!((send("c").await, send("d").await), (2, 2));
    // What comes later is sent at once, and behind.
    publisher.end_gathering().unwrap();
    assert_eq!(send("e").await, 2);
    for text in ["c", "d", "e"] {
        assert_eq!(told.recv().await.unwrap(), text.as_bytes());
    }
}

#[tokio::test]
async fn what_is_gathered_goes_when_it_is_much_and_when_the_publisher_does() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let endpoint = peer(zmq::SUB, move |sub| {
        sub.set_subscribe(b"").unwrap();
        while tell.send(sub.recv_bytes(0).unwrap()).is_ok() {}
    });
    let context = Context::new();
    let publisher = subscribed(&context, &endpoint).await;
    // Nobody comes however often he is called.
    publisher
        .gather(&mut Cx::from_waker(std::task::Waker::noop()))
        .unwrap();
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
async fn what_was_gathered_for_one_connection_is_not_sent_on_the_next() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (go, gone) = std::sync::mpsc::channel();
    let endpoint = peer(zmq::SUB, move |first| {
        let bound = first.get_last_endpoint().unwrap().unwrap();
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
    let mut cx = Cx::from_waker(std::task::Waker::noop());
    publisher.gather(&mut cx).unwrap();
    assert_eq!(publisher.send(b"old".to_vec()).await.unwrap(), Sent::Queued);
    go.send(()).unwrap();
    let first = publisher.subscription();
    while publisher
        .subscription()
        .is_none_or(|now| Some(now) == first)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(publisher.send(b"new".to_vec()).await.unwrap(), Sent::Queued);
    publisher.gather(&mut cx).unwrap();
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
