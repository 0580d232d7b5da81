//! Proxied requests as clients and backends see them: the program between a raw client and raw servers, and between programs
//! that people use. What a test says of timing it says by order, not by the clock.

mod failures;
mod forwarding;
mod programs;
mod streams;
mod upgrades;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::{PATIENCE, scratch};

/// Nothing comes for so long: then nothing is taken to come.
const QUIET: Duration = Duration::from_millis(250);

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A front whose `/` goes to a backend.
struct Front {
    program: Program,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Front {
    /// `settings` are lines as they stand in a `.conf`.
    fn start(backend: &str, port: u16, settings: &str) -> Self {
        let directory = scratch();
        let here = directory.path().display();
        let text = format!(
            "main = Server(uuid='main-uuid', name='main', access_log='{here}/access.log', error_log='{here}/error.log',\n\
             \x20   chroot='', pid_file='{here}/main.pid', control_port='ipc://{here}/control', default_host='localhost',\n\
             \x20   bind_addr='127.0.0.1', port=0, hosts=[Host(name='localhost', routes={{'/': Proxy(addr='{backend}', port={port})}})])\n\
             settings = {{'server.daemonize': 0{settings}}}\n\
             servers = [main]\n"
        );
        let file = directory.path().join("main.conf");
        fs::write(&file, text).expect("write a configuration");
        let mut program = Program::lurcher(
            &["serve", file.to_str().expect("a UTF-8 path")],
            directory.path(),
        );
        let address = program.listening();
        Self {
            program,
            address,
            directory,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// A client that has sent this.
    fn asks(&self, request: &str) -> Client {
        let mut client = self.client();
        client.send(request.as_bytes()).expect("send a request");
        client
    }
}

/// A server that is played by hand: the test takes its connections one by one.
struct Backend {
    port: u16,
    connections: mpsc::Receiver<Client>,
}

impl Backend {
    fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let (sender, connections) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if sender.send(Client::accepted(stream)).is_err() {
                    break;
                }
            }
        });
        Self { port, connections }
    }

    /// The next connection.
    fn accept(&self) -> Client {
        self.connections
            .recv_timeout(PATIENCE)
            .expect("a connection to the backend")
    }

    /// Whether no further connection is made.
    fn is_left_alone(&self) -> bool {
        self.connections.recv_timeout(QUIET).is_err()
    }
}

/// A front and the backend behind it.
fn pair(settings: &str) -> (Front, Backend) {
    let backend = Backend::listen();
    let front = Front::start("127.0.0.1", backend.port, settings);
    (front, backend)
}

/// The next request head on a backend's connection: its first line and its fields, names in lower case.
fn head(connection: &mut Client) -> Head {
    let text = String::from_utf8_lossy(&connection.upto(b"\r\n\r\n")).into_owned();
    let mut lines = text.split("\r\n");
    Head {
        line: lines.next().expect("a line").to_owned(),
        fields: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
    }
}

#[derive(Debug)]
struct Head {
    line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// All values of a field, in order.
    fn all(&self, name: &str) -> Vec<&str> {
        self.fields
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

const GET: &str = "GET /x HTTP/1.1\r\nHost: shop.example\r\n\r\n";
