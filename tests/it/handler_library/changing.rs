//! Servers that come, go and change under a handler: restarts, another program at the same place, and host names whose
//! addresses change.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use lurcher::endpoint::Endpoint;
use lurcher::handler::{Connection, Event, Lookup, Options};
use lurcher::wire::ConnId;

use super::fake_front::{Front, get, json};
use super::{PATIENCE, end, run};
use crate::support::client::{Asked, Client, fetch};
use crate::support::free_port;
use crate::support::program::Program;
use crate::support::servers::{Kind, Server};

/// Answers every request with the list of servers.
async fn tell_servers(mut connection: Connection) {
    while let Some(request) = connection.recv().await {
        let Event::Request(request) = request.into_event() else {
            continue;
        };
        let servers: Vec<_> = connection
            .servers()
            .map(|server| {
                let mark = if server.is_lurcher() { " lurcher" } else { "" };
                format!("{} {}{mark}", server.send_spec(), server.recv_spec())
            })
            .collect();
        let text = servers.join(", ");
        connection
            .reply_http(&request, text, 200, "OK", &[])
            .await
            .unwrap();
    }
    connection.finish().await;
}

#[test]
fn a_server_may_be_restarted_as_another_program_under_its_handler() {
    let first = Server::start(Kind::Mongrel2, "json", "");
    let mut server = first
        .or_else(|| Server::start(Kind::Lurcher, "json", ""))
        .expect("our own program at least");
    let mut options = Options::to(&server.send).unwrap();
    options.recv_specs = vec![server.recv.parse().unwrap()];
    let (sender, stop) = mpsc::channel();
    let handler = run(options, async move |connection: Connection| {
        sender.send(connection.stop_handle()).unwrap();
        tell_servers(connection).await;
    });
    let stop = stop.recv_timeout(PATIENCE).unwrap();
    let specs = format!("{} {}", server.send, server.recv);
    let ask = |address| {
        let answer = fetch(address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        String::from_utf8(answer.body).unwrap()
    };
    for kind in [server.kind, Kind::Lurcher, Kind::Lurcher, server.kind] {
        server.program.terminate();
        let database = server.database.to_str().unwrap();
        server.program = match kind {
            Kind::Lurcher => Program::lurcher(&["serve", database], server.directory()),
            Kind::Mongrel2 => Program::mongrel2(&server.database, "main-uuid", server.directory())
                .expect("installed, as before"),
        };
        server.program.answering(server.address);
        let mark = if kind == Kind::Lurcher {
            " lurcher"
        } else {
            ""
        };
        assert_eq!(ask(server.address), format!("{specs}{mark}"));
    }
    stop.stop();
    end(handler);
}

#[test]
fn the_only_handler_of_a_front_stops_and_another_gets_what_waits() {
    let server = Server::start(Kind::Lurcher, "tnetstring", "").expect("our own program");
    let mut options = Options::to(&server.send).unwrap();
    options.recv_specs = vec![server.recv.parse().unwrap()];
    for _ in 0..10 {
        let (sender, stop) = mpsc::channel();
        let handler = run(options.clone(), async move |connection: Connection| {
            sender.send(connection.stop_handle()).unwrap();
            tell_servers(connection).await;
        });
        let stop = stop.recv_timeout(PATIENCE).unwrap();
        let mut client = Client::connect(server.address);
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        client.send(request).unwrap();
        assert_eq!(client.answer().status, 200);
        stop.stop();
        // Before, in or after the stop: it is answered by this one or by the next.
        client.send(request).unwrap();
        let answer = client.try_answer(Asked::Other, Duration::from_millis(1));
        end(handler);
        if answer.is_none() {
            let (sender, stop) = mpsc::channel();
            let next = run(options.clone(), async move |connection: Connection| {
                sender.send(connection.stop_handle()).unwrap();
                tell_servers(connection).await;
            });
            assert_eq!(client.answer().status, 200);
            stop.recv_timeout(PATIENCE).unwrap().stop();
            end(next);
        }
    }
}

/// Host names as a test has them.
#[derive(Debug, Default)]
struct Names(Mutex<Vec<&'static str>>);

impl Lookup for Names {
    fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        assert_eq!(name, "front.test");
        let addresses = self.0.lock().unwrap();
        if addresses.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(addresses.iter().map(|text| text.parse().unwrap()).collect())
    }
}

#[test]
fn a_host_name_means_all_of_its_addresses_as_they_change() {
    let [send, recv] = [free_port(), free_port()];
    let at = |host: &str, port: u16| format!("tcp://{host}:{port}");
    let specs = |host: &str| format!("{} {}", at(host, send), at(host, recv));
    let fronts =
        ["127.0.0.1", "127.0.0.2"].map(|host| Front::bind(&at(host, send), &at(host, recv)));
    let names = Arc::new(Names::default());
    let mut options = Options::to(&at("front.test", send)).unwrap();
    options.recv_specs = vec![at("front.test", recv).parse().unwrap()];
    options.lookup = Arc::clone(&names) as Arc<dyn Lookup>;
    options.lookup_interval = Duration::from_millis(10);
    options.subscription_timeout = Duration::from_millis(50);
    let (sender, stop) = mpsc::channel();
    let handler = run(options, async move |connection: Connection| {
        sender.send(connection.stop_handle()).unwrap();
        tell_servers(connection).await;
    });
    let stop = stop
        .recv_timeout(PATIENCE)
        .expect("no address is needed to connect");
    let ask = |front: usize, sender: &str| {
        let headers = [("METHOD", "GET"), ("VERSION", "HTTP/1.1")];
        fronts[front].push(&json(sender, 1, "/", &headers, ""));
        let reply = fronts[front].reply();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("{sender} 1:1, ")), "{reply}");
        body.to_owned()
    };
    // Asks until all that has to happen has happened.
    let becomes = |front: usize, sender: &str, expect: &str| {
        let begun = std::time::Instant::now();
        loop {
            let told = ask(front, sender);
            if told == expect {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{told} does not become {expect}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    };
    names.0.lock().unwrap().push("127.0.0.1");
    becomes(0, "one", &specs("127.0.0.1"));
    // Another family would be the same server once more.
    *names.0.lock().unwrap() = vec!["127.0.0.2", "::1", "127.0.0.1"];
    let both = format!("{}, {}", specs("127.0.0.1"), specs("127.0.0.2"));
    becomes(1, "two", &both);
    assert_eq!(ask(0, "one"), both);
    // What cannot be looked up stays as it is.
    names.0.lock().unwrap().clear();
    thread::sleep(Duration::from_millis(30));
    assert_eq!(ask(1, "two"), both);
    *names.0.lock().unwrap() = vec!["127.0.0.2"];
    becomes(1, "two", &specs("127.0.0.2"));
    // The other is left: nobody takes its requests.
    fronts[0].push.set_sndtimeo(0).unwrap();
    assert!(
        fronts[0].push.send(get(1), 0).is_err(),
        "somebody is connected"
    );
    fronts[0].push.set_sndtimeo(30_000).unwrap();
    // And found again, under an ident that was its own before.
    *names.0.lock().unwrap() = vec!["127.0.0.2", "127.0.0.1"];
    let both = format!("{}, {}", specs("127.0.0.2"), specs("127.0.0.1"));
    becomes(0, "one", &both);
    stop.stop();
    end(handler);
}

#[test]
fn both_sockets_may_bind_under_an_identity() {
    let [send, recv] = [free_port(), free_port()];
    let spec = |port| {
        format!("tcp://me@127.0.0.1:{port}#bind")
            .parse::<Endpoint>()
            .unwrap()
    };
    let mut options = Options::new([spec(send)]);
    options.recv_specs = vec![spec(recv)];
    options.subscription_timeout = PATIENCE;
    let (sender, stop) = mpsc::channel();
    let handler = run(options, async move |mut connection: Connection| {
        sender.send(connection.stop_handle()).unwrap();
        let mut count = 0;
        while let Some(request) = connection.recv().await {
            assert_eq!(request.conn_id, ConnId(7));
            connection.reply(&request, "x").await.unwrap();
            count += 1;
        }
        connection.finish().await;
        count
    });
    // A server whose sockets connect.
    let context = zmq::Context::new();
    let socket = |kind, port: u16| {
        let socket = context.socket(kind).unwrap();
        socket.set_linger(0).unwrap();
        socket.set_rcvtimeo(30_000).unwrap();
        socket.set_sndtimeo(30_000).unwrap();
        socket.connect(&format!("tcp://127.0.0.1:{port}")).unwrap();
        socket
    };
    let (sub, push) = (socket(zmq::SUB, recv), socket(zmq::PUSH, send));
    sub.set_subscribe(b"").unwrap();
    for _ in 0..100 {
        push.send(get(7), 0).unwrap();
    }
    for _ in 0..100 {
        assert_eq!(sub.recv_bytes(0).unwrap(), b"front 1:7, x");
    }
    // Such a server can only be taken at its silence.
    stop.recv_timeout(PATIENCE).unwrap().stop();
    assert_eq!(end(handler), 100);
}
