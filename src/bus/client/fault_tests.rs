//! The connecting sockets against servers made of bytes: what breaks, what is old, what is too much, and what ends.

use std::io::{Read as _, Write as _};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// A greeting of ZMTP 3.0 with the mechanism NULL.
fn greeting() -> Vec<u8> {
    let mut bytes = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL".to_vec();
    bytes.resize(64, 0);
    bytes
}

/// A short frame.
fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    [&[flags, u8::try_from(body.len()).unwrap()], body].concat()
}

/// The READY of a socket type with four letters, or fewer.
fn ready(kind: &str) -> Vec<u8> {
    let length = u8::try_from(kind.len()).unwrap();
    let head = b"\x05READY\x0bSocket-Type\0\0\0";
    frame(4, &[&head[..], &[length], kind.as_bytes()].concat())
}

async fn listen() -> (TcpListener, Endpoint) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    (listener, endpoint.parse().unwrap())
}

/// Accepts, and is a server of that type.
async fn serve(listener: &TcpListener, kind: &str) -> TcpStream {
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    stream.write_all(&greeting()).await.unwrap();
    stream.write_all(&ready(kind)).await.unwrap();
    let mut theirs = [0; 66];
    stream.read_exact(&mut theirs).await.unwrap();
    assert_eq!(
        (&theirs[..10], theirs[10], theirs[64]),
        (&greeting()[..10], 3, 4)
    );
    let mut rest = vec![0; usize::from(theirs[65])];
    stream.read_exact(&mut rest).await.unwrap();
    stream
}

async fn recv(receiver: &mut Receiver) -> Bytes {
    timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_server_that_talks_something_else_is_tried_again() {
    let (listener, endpoint) = listen().await;
    let mut receiver = Receiver::connect(&Context::new(), &endpoint, &Options::default()).unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    stream
        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    // It is left, by a close or a reset.
    drop(stream.read_to_end(&mut rest).await);
    let mut stream = serve(&listener, "PUSH").await;
    stream.write_all(&frame(0, b"at last")).await.unwrap();
    assert_eq!(recv(&mut receiver).await, "at last");
    assert_eq!(
        (receiver.is_connected(), receiver.losses()),
        (Some(true), 0)
    );
}

#[tokio::test]
async fn a_message_above_the_limit_costs_the_connection_and_not_the_socket() {
    let (listener, endpoint) = listen().await;
    let options = Options {
        message_bytes_max: 100,
        ..Options::default()
    };
    let mut receiver = Receiver::connect(&Context::new(), &endpoint, &options).unwrap();
    let mut stream = serve(&listener, "PUSH").await;
    stream.write_all(&frame(0, b"before")).await.unwrap();
    stream.write_all(&frame(0, &[0; 101])).await.unwrap();
    assert_eq!(recv(&mut receiver).await, "before");
    let mut stream = serve(&listener, "PUSH").await;
    stream.write_all(&frame(0, &[7; 100])).await.unwrap();
    assert_eq!(recv(&mut receiver).await, vec![7; 100]);
    assert_eq!(receiver.losses(), 1);
}

#[tokio::test]
async fn what_is_not_received_stays_with_the_server() {
    const SIZE: u32 = 60_000;
    let (listener, endpoint) = listen().await;
    let options = Options {
        received_max: 10,
        ..Options::default()
    };
    let mut receiver = Receiver::connect(&Context::new(), &endpoint, &options).unwrap();
    let mut stream = serve(&listener, "PUSH").await;
    let all = 2000_u32;
    let pushing = async {
        for number in 0..all {
            let mut message = vec![2, 0, 0, 0, 0];
            message.extend(SIZE.to_be_bytes());
            message.extend(number.to_be_bytes());
            message.resize(9 + SIZE as usize, 0);
            stream.write_all(&message).await.unwrap();
        }
    };
    let mut pushing = std::pin::pin!(pushing);
    // Far more than what the kernel keeps for either side.
    let stuck = timeout(Duration::from_millis(500), &mut pushing).await;
    assert!(stuck.is_err(), "all of it was taken");
    let receiving = async {
        for number in 0..all {
            let message = recv(&mut receiver).await;
            assert_eq!(
                (&message[..4], message.len()),
                (&number.to_be_bytes()[..], SIZE as usize)
            );
        }
    };
    tokio::join!(pushing, receiving);
}

#[tokio::test]
async fn a_subscriber_of_1_0_says_nothing_and_gets_everything() {
    let (listener, endpoint) = listen().await;
    let publisher =
        Publisher::connect(&Context::new(), &endpoint, &Options::default(), PATIENCE).unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"\x01\0").await.unwrap();
    assert!(
        publisher
            .subscribed(Instant::now() + PATIENCE)
            .await
            .unwrap()
    );
    assert_eq!(publisher.would_pass(b"anything"), Some(true));
    assert_eq!(publisher.send(b"abc".to_vec()).await.unwrap(), Sent::Queued);
    let mut bytes = [0; 15];
    stream.read_exact(&mut bytes).await.unwrap();
    // Our signature is a frame without a body to it.
    assert_eq!(&bytes[10..], b"\x04\0abc");
}

#[tokio::test]
async fn a_ping_is_answered_while_nobody_receives() {
    let (listener, endpoint) = listen().await;
    let receiver = Receiver::connect(&Context::new(), &endpoint, &Options::default()).unwrap();
    let mut stream = serve(&listener, "PUSH").await;
    stream
        .write_all(&frame(4, b"\x04PING\0\0hello"))
        .await
        .unwrap();
    let mut pong = [0; 12];
    stream.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"\x04\x0a\x04PONGhello");
    drop(receiver);
}

#[tokio::test]
async fn who_has_ended_his_direction_gets_what_is_on_its_way_and_does_not_come_back() {
    let (listener, endpoint) = listen().await;
    let mut receiver = Receiver::connect(&Context::new(), &endpoint, &Options::default()).unwrap();
    let mut stream = serve(&listener, "PUSH").await;
    stream.write_all(&frame(0, b"one")).await.unwrap();
    // What has arrived is to be received first.
    assert!(!receiver.end_sending().unwrap());
    assert_eq!(recv(&mut receiver).await, "one");
    assert!(receiver.end_sending().unwrap());
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    stream.write_all(&frame(0, b"two")).await.unwrap();
    drop(stream);
    assert_eq!(recv(&mut receiver).await, "two");
    while receiver.is_connected() == Some(true) {
        tokio::task::yield_now().await;
    }
    assert_eq!(receiver.try_recv().unwrap(), None);
    let again = timeout(Duration::from_millis(300), listener.accept()).await;
    assert!(again.is_err(), "it has come back");
}

#[test]
fn what_was_sent_is_written_though_the_runtime_ends() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint: Endpoint = format!("tcp://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&greeting()).unwrap();
        stream.write_all(&ready("SUB")).unwrap();
        stream.write_all(&frame(0, b"\x01")).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let publisher =
            Publisher::connect(&Context::new(), &endpoint, &Options::default(), PATIENCE).unwrap();
        let until = Instant::now() + PATIENCE;
        assert!(publisher.subscribed(until).await.unwrap());
        assert_eq!(
            publisher.send(b"last".to_vec()).await.unwrap(),
            Sent::Queued
        );
    });
    drop(runtime);
    let bytes = server.join().unwrap();
    assert!(bytes.ends_with(b"\0\x04last"), "{}", bytes.escape_ascii());
}

#[test]
fn a_socket_whose_runtime_has_ended_says_so() {
    let build = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (first, second) = (build(), build());
    let endpoint: Endpoint = "tcp://127.0.0.1:1".parse().unwrap();
    let (context, options) = (Context::new(), Options::default());
    let (mut receiver, publisher) = first.block_on(async {
        let receiver = Receiver::connect(&context, &endpoint, &options).unwrap();
        let publisher = Publisher::connect(&context, &endpoint, &options, PATIENCE).unwrap();
        (receiver, publisher)
    });
    drop(first);
    second.block_on(async {
        let received = timeout(PATIENCE, receiver.recv()).await.unwrap();
        assert!(received.is_err());
        let sent = timeout(PATIENCE, publisher.send(b"a".to_vec())).await;
        assert!(sent.unwrap().is_err());
    });
}

#[tokio::test]
async fn news_of_the_connection_come_as_no_message() {
    let (listener, endpoint) = listen().await;
    let mut receiver = Receiver::connect(&Context::new(), &endpoint, &Options::default()).unwrap();
    let news = async |receiver: &mut Receiver| {
        let told = std::future::poll_fn(|cx| {
            receiver.poll_recv_many(cx, 1, &mut |message| panic!("{message:?}"))
        });
        timeout(PATIENCE, told).await.unwrap().unwrap()
    };
    let stream = serve(&listener, "PUSH").await;
    assert_eq!(news(&mut receiver).await, 0);
    assert_eq!(receiver.is_connected(), Some(true));
    drop(stream);
    assert_eq!(news(&mut receiver).await, 0);
    assert_eq!(
        (receiver.is_connected(), receiver.losses()),
        (Some(false), 1)
    );
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let again = receiver.poll_recv_many(&mut cx, 1, &mut |_| {});
    assert!(matches!(again, Poll::Pending));
}

#[tokio::test]
async fn nobody_is_his_own_server() {
    use socket2::{Domain, SockAddr, Socket, Type};
    // Bound and connected to the same address: what the system does by chance.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let own: SockAddr = socket.local_addr().unwrap();
    socket.connect(&own).unwrap();
    let refused = address::another(&(&socket).into()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    drop(socket);
    let listener = std::net::TcpListener::bind(own.as_socket().unwrap()).unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    address::another(&(&client).into()).unwrap();
}
