//! Handlers that stop and come back while requests go on coming: nothing is lost, and nothing is answered twice.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lurcher::handler::{Connection, Event, Options, StopHandle};

use super::{PATIENCE, end, run};
use crate::support::client::{Asked, Client, fetch};
use crate::support::front::Front;
use crate::support::servers::{self, Kind, Server};

const STOPS: usize = 50;

/// A client that has waited for so long has lost its request: everything here is answered at once.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// How often each request was seen by a handler, by the number in its path.
type Seen = Arc<Mutex<HashMap<u64, u32>>>;

fn options(server: &Server) -> Options {
    let mut options = Options::to(&server.send).unwrap();
    options.recv_specs = vec![server.recv.parse().unwrap()];
    options
}

/// Answers until it is stopped, with the path.
async fn answer(mut connection: Connection, seen: &Seen, served: &AtomicU64) {
    while let Some(request) = connection.recv().await {
        let Event::Request(request) = request.into_event() else {
            continue;
        };
        let path = str::from_utf8(&request.path).unwrap();
        // The first one is how a test looks whether the server is there.
        if let Ok(number) = path.trim_start_matches('/').parse() {
            *seen.lock().unwrap().entry(number).or_default() += 1;
        }
        connection
            .reply_http(&request, path, 200, "OK", &[])
            .await
            .unwrap();
        served.fetch_add(1, Ordering::SeqCst);
    }
    connection.finish().await;
}

struct Handler {
    stop: StopHandle,
    served: Arc<AtomicU64>,
    ended: JoinHandle<()>,
}

impl Handler {
    fn start(options: Options, seen: &Seen) -> Self {
        let (sender, stop) = mpsc::channel();
        let served = Arc::new(AtomicU64::new(0));
        let (seen, count) = (Arc::clone(seen), Arc::clone(&served));
        let ended = run(options, async move |connection: Connection| {
            sender.send(connection.stop_handle()).unwrap();
            answer(connection, &seen, &count).await;
        });
        let stop = stop.recv_timeout(PATIENCE).unwrap();
        Self {
            stop,
            served,
            ended,
        }
    }

    /// Waits until it has served that many.
    fn has_served(&self, count: u64) {
        let begun = std::time::Instant::now();
        while self.served.load(Ordering::SeqCst) < count {
            assert!(begun.elapsed() < PATIENCE, "the handler gets nothing");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn stop(self) {
        self.stop.stop();
        end(self.ended);
    }
}

/// One client after the other request on a connection, until the end; says how many were answered and which were not.
fn ask(
    address: SocketAddr,
    first: u64,
    over: &AtomicBool,
    lost_after: Duration,
    pause: Duration,
) -> (u64, Vec<u64>) {
    let mut client = Client::connect(address);
    let (mut answered, mut lost) = (0, Vec::new());
    for number in first.. {
        if over.load(Ordering::SeqCst) {
            break;
        }
        thread::sleep(pause);
        let path = format!("/{number}");
        client
            .send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
            .unwrap();
        if let Some(answer) = client.try_answer(Asked::Other, lost_after) {
            assert_eq!(answer.status, 200, "{path}");
            assert_eq!(answer.body, path.as_bytes(), "somebody else's answer");
            answered += 1;
        } else {
            lost.push(number);
            client = Client::connect(address);
        }
    }
    (answered, lost)
}

/// Stops one of two handlers again and again under load; gives what was answered and what was lost.
fn stop_under_load(
    server: &Server,
    clients: u64,
    lost_after: Duration,
    pause: Duration,
) -> (u64, Vec<u64>) {
    let seen = Seen::default();
    let stays = Handler::start(options(server), &seen);
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..clients)
        .map(|client| {
            let (address, over) = (server.address, Arc::clone(&over));
            let first = client * 1_000_000;
            thread::spawn(move || ask(address, first, &over, lost_after, pause))
        })
        .collect();
    for _ in 0..STOPS {
        let goes = Handler::start(options(server), &seen);
        goes.has_served(5);
        goes.stop();
    }
    over.store(true, Ordering::SeqCst);
    let (mut answered, mut lost) = (0, Vec::new());
    for client in clients {
        let (more, missing) = client.join().unwrap();
        answered += more;
        lost.extend(missing);
    }
    stays.stop();
    for (number, times) in seen.lock().unwrap().iter() {
        assert_eq!(*times, 1, "request {number} was handed over {times} times");
    }
    (answered, lost)
}

#[test]
fn a_lurcher_loses_no_request_to_a_handler_that_stops() {
    for protocol in ["json", "tnetstring"] {
        let server = Server::start(Kind::Lurcher, protocol, "").expect("our own program");
        let (answered, lost) = stop_under_load(&server, 8, LOST_AFTER, Duration::ZERO);
        println!("{protocol}: {answered} answered");
        assert!(lost.is_empty(), "{protocol}: lost {lost:?}");
    }
}

#[test]
fn a_mongrel2_with_moments_of_silence_loses_next_to_no_request_to_a_handler_that_stops() {
    let Some(server) = Server::start(Kind::Mongrel2, "json", "") else {
        return;
    };
    let (answered, lost) = stop_under_load(
        &server,
        2,
        Duration::from_secs(5),
        Duration::from_millis(10),
    );
    println!("{answered} answered, {} lost", lost.len());
    // It may deal one to the connection in the very millisecond of its end: nobody can see that.
    assert!(lost.len() <= 3, "lost {lost:?} of {answered}");
}

#[test]
fn a_server_says_whether_it_is_a_lurcher_and_when_it_has_pushed_its_last() {
    let front = Front::start("");
    let mut options = Options::to(&front.send).unwrap();
    options.recv_specs = vec![front.recv.parse().unwrap()];
    let (sender, stop) = mpsc::channel();
    let handler = run(options, async move |mut connection: Connection| {
        let servers: Vec<_> = connection.servers().collect();
        assert!(servers[0].is_lurcher() && servers.len() == 1);
        sender.send(connection.stop_handle()).unwrap();
        let Event::Request(first) = connection.recv().await.unwrap().into_event() else {
            panic!("no request");
        };
        connection.drain();
        assert!(matches!(
            connection.recv().await.unwrap().into_event(),
            Event::Drained
        ));
        connection
            .reply(&first, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            .await
            .unwrap();
        // What belongs to it still comes.
        let Event::Disconnect(client) = connection.recv().await.unwrap().into_event() else {
            panic!("no disconnect");
        };
        assert_eq!(client, first.client());
        assert!(connection.recv().await.is_none(), "stopped from elsewhere");
        connection.finish().await;
    });
    let mut client = Client::connect(front.address);
    client
        .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    client.upto(b"half");
    // It goes to nobody, since the only handler has had its last.
    let mut next = Client::connect(front.address);
    next.send(b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    drop(client);
    assert!(next.is_silent(Duration::from_millis(100)));
    stop.recv().unwrap().stop();
    end(handler);
    let seen = Seen::default();
    let mut options = Options::to(&front.send).unwrap();
    options.recv_specs = vec![front.recv.parse().unwrap()];
    let successor = Handler::start(options, &seen);
    assert_eq!(next.answer().body, b"/next");
    successor.stop();
}

#[test]
fn what_a_handler_has_when_it_asks_for_no_more_it_can_still_answer() {
    servers::each("", |server| {
        let (sender, stop) = mpsc::channel();
        let handler = run(options(&server), async move |mut connection: Connection| {
            sender.send(connection.stop_handle()).unwrap();
            let request = connection.recv().await.unwrap();
            connection.stop_handle().drain();
            let event = connection.recv().await.unwrap().into_event();
            assert!(matches!(event, Event::Drained), "{event:?}");
            connection
                .reply_http(&request, "late", 200, "OK", &[])
                .await
                .unwrap();
            // Until it is stopped from elsewhere it may hear that its client has left.
            while let Some(request) = connection.recv().await {
                assert!(request.is_disconnect(), "{request:?}");
            }
            connection.finish().await;
        });
        let stop = stop.recv_timeout(PATIENCE).unwrap();
        let answer = fetch(server.address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(answer.body, b"late");
        stop.stop();
        end(handler);
    });
}
