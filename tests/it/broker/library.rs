//! Handlers on the library as workers of a real broker, behind both servers: what they can do there they can do here, unchanged. And the
//! example in Python, which has no library.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use lurcher::handler::{Connection, Event, Options, StopHandle};

use super::Device;
use crate::interop::pythons;
use crate::support::PATIENCE;
use crate::support::client::{Asked, Client, fetch};
use crate::support::program::Program;
use crate::support::servers::{self, Kind, Server};

/// A large answer, and a large body: more than a server keeps for a client or a handler.
const LARGE: usize = 3_000_000;

/// A worker in a thread of this process, and what it tells.
struct Worker {
    stop: StopHandle,
    told: mpsc::Receiver<String>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start(device: &Device, name: &str) -> Self {
        let (tell, told) = mpsc::channel();
        let (hand, handed) = mpsc::channel();
        let endpoint = device.workers.parse().expect("an address");
        let mut options = Options::default();
        options.name = Some(name.to_owned());
        options.slots = Some(4);
        options.subscription_timeout = PATIENCE;
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let connection = Connection::to_broker(endpoint, options).await.unwrap();
                hand.send(connection.stop_handle()).unwrap();
                work(connection, tell).await;
            });
        });
        let stop = handed.recv_timeout(PATIENCE).expect("it is welcome");
        Self { stop, told, thread }
    }

    /// The client of a request that takes long, or of a WebSocket.
    #[track_caller]
    fn told_id(&self) -> String {
        loop {
            let told = self.told.recv_timeout(PATIENCE).expect("news");
            if !told.starts_with("gone") {
                return told;
            }
        }
    }

    /// Among the ends of other clients.
    #[track_caller]
    fn is_told(&self, news: &str) {
        while self.told.recv_timeout(PATIENCE).expect(news) != news {}
    }

    fn stop(self) {
        self.stop.stop();
        self.thread.join().expect("it ends well");
    }
}

async fn work(mut connection: Connection, tell: mpsc::Sender<String>) {
    let tell = |text: String| drop(tell.send(text));
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(request) = connection.recv().await {
        match request.into_event() {
            Event::Request(request) if request.path == "/long" => {
                tell(request.conn_id.to_string());
            }
            Event::Request(request) if request.path == "/large" => {
                // News of its client come by `recv`, so this is a task.
                tasks.spawn(async move {
                    let mut writer = request.respond(200).stream().unwrap();
                    for _ in 0..LARGE / 10_000 {
                        writer.write(vec![b'x'; 10_000]).await.unwrap();
                    }
                    writer.finish().await.unwrap();
                });
            }
            Event::Request(request) => {
                let body = [b"got ", &request.body[..]].concat();
                request.respond(200).send(body).await.unwrap();
            }
            Event::UploadDone(upload) => {
                let (_file, bytes) = upload.open().await.unwrap();
                let body = format!("stored {bytes}");
                upload.respond(200).send(body).await.unwrap();
            }
            Event::WebSocketHandshake(handshake) => {
                tell(handshake.conn_id.to_string());
                connection
                    .reply_handshake(&handshake, None, &[])
                    .await
                    .unwrap();
            }
            Event::WebSocketFrame(frame) => {
                let is_answered = connection.answer_control(&frame).await.unwrap();
                if !is_answered {
                    let text = [b"heard ", &frame.payload()[..]].concat();
                    let (client, opcode) = (frame.client(), frame.opcode());
                    client.send_websocket(text, opcode).await.unwrap();
                }
            }
            Event::Disconnect(client) => tell(format!("gone {}", client.conn_id())),
            _ => {}
        }
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    connection.finish().await;
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// A text message of a client, with a mask of zeros.
fn frame(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short text");
    [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()
}

#[test]
fn what_handlers_can_do_they_can_do_for_a_broker() {
    let store = tempfile::tempdir().unwrap();
    let settings = format!(", 'upload.temp_store': '{}/XXXXXX'", store.path().display());
    servers::each(&settings, |server| {
        let device = Device::start(&[&server], &[]);
        let worker = Worker::start(&device, "w");
        let answer = fetch(server.address, &post("/", "abc"));
        assert_eq!(answer.body, b"got abc");

        let answer = fetch(
            server.address,
            "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n",
        );
        assert_eq!((answer.status, answer.body.len()), (200, LARGE));

        let answer = fetch(server.address, &post("/up", &"y".repeat(LARGE)));
        assert_eq!(
            String::from_utf8_lossy(&answer.body),
            format!("stored {LARGE}")
        );

        let mut client = Client::connect(server.address);
        client
            .send(
                b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n",
            )
            .unwrap();
        client.upto(b"\r\n\r\n");
        for word in ["one", "two"] {
            client.send(&frame(word)).unwrap();
            client.upto(format!("heard {word}").as_bytes());
        }
        let id = worker.told_id();
        drop(client);
        worker.is_told(&format!("gone {id}"));

        let mut client = Client::connect(server.address);
        client
            .send(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let id = worker.told_id();
        drop(client);
        worker.is_told(&format!("gone {id}"));

        // The place is free again, and the news came once.
        for _ in 0..4 {
            let answer = fetch(server.address, &post("/", "last"));
            assert_eq!(answer.body, b"got last");
        }
        let again = format!("gone {id}");
        assert!(worker.told.try_iter().all(|told| told != again));
        worker.stop();
        device.stop();
    });
}

#[test]
fn a_websocket_outlives_its_broker() {
    servers::each("", |server| {
        let mut device = Device::start(&[&server], &["--wait", "20"]);
        let worker = Worker::start(&device, "w");
        let mut client = Client::connect(server.address);
        client
            .send(
                b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n",
            )
            .unwrap();
        client.upto(b"\r\n\r\n");
        client.send(&frame("one")).unwrap();
        client.upto(b"heard one");
        device.replace();
        device.is_heard_by(1);
        let answer = fetch(server.address, &post("/", "back"));
        assert_eq!(answer.body, b"got back");
        client.send(&frame("two")).unwrap();
        client.upto(b"heard two");
        worker.stop();
        device.stop();
    });
}

#[test]
fn two_workers_of_the_library_leave_one_after_the_other_and_nobody_notices() {
    servers::each("", |server| {
        let device = Device::start(&[&server], &["--wait", "20"]);
        let mut worker = Worker::start(&device, "a");
        let address = server.address;
        let (stop, stopped) = mpsc::channel::<()>();
        let asking = thread::spawn(move || {
            let mut asked = 0;
            let mut client = Client::connect(address);
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                client.send(post("/", "x").as_bytes()).unwrap();
                let answer = client
                    .try_answer(Asked::Other, PATIENCE)
                    .expect("no silence");
                assert_eq!(answer.body, b"got x");
                asked += 1;
            }
            asked
        });
        for name in ["b", "a", "b", "a"] {
            let next = Worker::start(&device, name);
            std::mem::replace(&mut worker, next).stop();
        }
        drop(stop);
        assert!(asking.join().expect("every request is answered") > 0);
        worker.stop();
        device.stop();
    });
}

/// The example, as a program.
fn python(python: &str, arguments: &[&str], directory: &Path) -> Program {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/broker_worker.py");
    let mut command = Command::new(python);
    Program::start(command.arg(script).args(arguments).current_dir(directory))
}

#[test]
fn a_worker_in_python_needs_no_library_and_eighty_lines() {
    let text = include_str!("../../../examples/broker_worker.py");
    assert!(text.lines().count() < 80);
    for name in pythons() {
        let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
            return;
        };
        let mut device = Device::start(&[&server], &["--wait", "20"]);
        let mut worker = python(&name, &[&device.workers, "py"], server.directory());
        let answer = fetch(server.address, &post("/a", "abc"));
        assert_eq!(answer.body, b"POST /a\n");
        let answer = fetch(server.address, "GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(answer.body, b"GET /b\n");
        // It comes back to another broker.
        device.replace();
        device.is_heard_by(1);
        let answer = fetch(server.address, &post("/c", "abc"));
        assert_eq!((answer.status, &answer.body[..]), (200, &b"POST /c\n"[..]));
        assert!(worker.terminate().success(), "{worker}");
        device.stop();
    }
}

#[test]
fn a_program_of_ones_own_is_told_of_its_broker() {
    let Some(name) = pythons().into_iter().next() else {
        return;
    };
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    let device = Device::start(&[&server], &["--wait", "20"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/broker_worker.py");
    let words = format!(
        "echo \"$LURCHER_SLOTS $LURCHER_POOL $LURCHER_WEIGHT ${{LURCHER_WORKER_NAME##*-exec:}} $LURCHER_RECV_SPEC\" >&2; \
         exec {name} {} \"${{LURCHER_SEND_SPEC#broker+}}\" \"$LURCHER_WORKER_NAME\"",
        script.display()
    );
    let arguments = [
        "run",
        "exec:sh",
        "--broker",
        &device.workers,
        "--workers",
        "2",
        "--slots",
        "3",
        "--pool",
        "p",
        "--",
        "-c",
        &words,
    ];
    let mut run = Program::lurcher(&arguments, server.directory());
    for number in 1..=2 {
        run.said(&format!("3 p 1 sh-{number}"), 1);
    }
    let answer = fetch(server.address, &post("/a", "abc"));
    assert_eq!(answer.body, b"POST /a\n");
    assert!(run.terminate().success(), "{run}");
    device.stop();
}

#[test]
fn a_worker_that_no_pool_is_there_for_says_so_and_ends() {
    let Some(server) = Server::start(Kind::Lurcher, "json", "") else {
        return;
    };
    let device = Device::start(&[&server], &[]);
    let spec = format!("broker+{}", device.workers);
    let arguments = ["run", "echo", &spec, "--workers", "0", "--pool", "shop"];
    let mut run = Program::lurcher(&arguments, server.directory());
    assert_eq!(run.ended().code(), Some(1), "{run}");
    let said = run.lines().join("\n");
    assert!(
        said.contains("refuses: there is no pool \"shop\" here"),
        "{said}"
    );
    device.stop();
}
