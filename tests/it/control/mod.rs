//! The control port of the real program, asked over a real REQ socket: what was recorded from Mongrel2 comes again, and
//! what is added works. Its command line is in `command`.

mod command;
mod recorded;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lurcher::control::{Answer, Argument, Cell, Question, Table};

use crate::support::client::{Asked, Client};
use crate::support::front::{Front, conf};
use crate::support::peer::{Peer, Replies, address};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Somebody who asks: a libzmq REQ socket.
struct Operator {
    socket: zmq::Socket,
}

impl Operator {
    fn at(address: &str) -> Self {
        let socket = zmq::Context::new().socket(zmq::REQ).unwrap();
        socket.set_linger(0).unwrap();
        socket.connect(address).unwrap();
        Self { socket }
    }

    fn of(front: &Front) -> Self {
        Self::at(&format!("ipc://{}", control_of(front)))
    }

    fn send(&self, question: &[u8]) {
        self.socket.send(question, 0).unwrap();
    }

    /// The answer to what was sent, if there is one within `wait`.
    fn heard(&self, wait: Duration) -> Option<Vec<u8>> {
        let wait = i64::try_from(wait.as_millis()).unwrap();
        let ready = self.socket.poll(zmq::POLLIN, wait).unwrap();
        (ready > 0).then(|| self.socket.recv_bytes(0).unwrap())
    }

    fn ask(&self, question: &[u8]) -> Vec<u8> {
        self.send(question);
        self.heard(PATIENCE)
            .unwrap_or_else(|| panic!("no answer to {:?}", String::from_utf8_lossy(question)))
    }

    fn answer(&self, command: &str, arguments: &[(&str, Argument)]) -> Answer {
        let question = Question {
            command: command.to_owned(),
            arguments: arguments
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        };
        Answer::decode(&self.ask(&question.encode())).expect("an answer")
    }

    fn table(&self, command: &str, arguments: &[(&str, Argument)]) -> Table {
        match self.answer(command, arguments) {
            Answer::Table(table) => table,
            Answer::Error { code, error } => panic!("{command}: {code:?} {error}"),
        }
    }

    fn status(&self, what: &str) -> Table {
        self.table("status", &[("what", text(what))])
    }

    fn kill(&self, id: i64) -> bool {
        match self.answer("kill", &[("id", Argument::Integer(id))]) {
            Answer::Table(_) => true,
            Answer::Error { code, .. } => {
                assert_eq!(code.as_deref(), Some("INVALID_ARGUMENT"));
                false
            }
        }
    }
}

fn text(value: &str) -> Argument {
    Argument::Text(value.to_owned())
}

/// Where the control socket of a front is.
fn control_of(front: &Front) -> String {
    let sockets = front.directory().join("control");
    sockets.to_str().unwrap().to_owned()
}

/// A cell of a table's row by its header.
fn cell<'a>(table: &'a Table, row: usize, header: &str) -> &'a Cell {
    let column = table.headers.iter().position(|name| name == header);
    let column = column.unwrap_or_else(|| panic!("no {header} in {:?}", table.headers));
    &table.rows[row][column]
}

fn number(table: &Table, row: usize, header: &str) -> i64 {
    match cell(table, row, header) {
        Cell::Integer(number) => *number,
        other => panic!("{header} is {other:?}"),
    }
}

fn word<'a>(table: &'a Table, row: usize, header: &str) -> &'a str {
    match cell(table, row, header) {
        Cell::Text(text) => text,
        other => panic!("{header} is {other:?}"),
    }
}

/// Asks again and again until the table is as it shall become.
fn until(operator: &Operator, what: &str, so: impl Fn(&Table) -> bool) -> Table {
    let end = Instant::now() + PATIENCE;
    loop {
        let table = operator.status(what);
        if so(&table) {
            return table;
        }
        assert!(Instant::now() < end, "status what={what} stays {table:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The path of the next request and the id it came with.
fn request(peer: &Peer) -> (String, String) {
    let message = peer.recv(PATIENCE).expect("a message");
    let (_, id, path, _) = address(&message);
    (path.to_owned(), id.to_owned())
}

#[test]
fn a_connection_of_any_id_is_killed_and_its_handler_told() {
    let front = Front::start("");
    let operator = Operator::of(&front);
    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    peer.joined();
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(front.address)).collect();
    for client in &mut clients {
        client
            .send(b"GET /kill HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
    }
    let ids: Vec<String> = (0..3).map(|_| request(&peer).1).collect();
    for id in &ids {
        let id = id.parse().unwrap();
        assert!(operator.kill(id));
        assert!(!operator.kill(id), "it is gone");
    }
    let mut told: Vec<_> = (0..3).map(|_| request(&peer)).collect();
    told.sort();
    let mut expected: Vec<_> = ids.into_iter().map(|id| ("@*".to_owned(), id)).collect();
    expected.sort();
    assert_eq!(told, expected);
    for client in &mut clients {
        assert!(client.try_answer(Asked::Other, PATIENCE).is_none());
        assert!(client.ended());
    }
    // Those that never were, and those that cannot be.
    for id in [0, -1, 1 << 31, i64::MAX, i64::MIN] {
        assert!(!operator.kill(id), "{id}");
    }
}

#[test]
fn connections_are_shown_as_they_are() {
    let front = Front::start("");
    let operator = Operator::of(&front);
    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    peer.joined();
    assert!(operator.status("net").rows.is_empty());
    let mut client = Client::connect(front.address);
    let net = until(&operator, "net", |net| net.rows.len() == 1);
    assert_eq!((number(&net, 0, "id"), number(&net, 0, "type")), (-1, 0));
    assert_eq!(number(&net, 0, "bytes_read"), 0);
    assert_eq!(operator.status("tasks").rows.len(), 5);

    client
        .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let (_, id) = request(&peer);
    peer.reply("app-ident", &id, HELLO);
    client.answer();
    let net = operator.status("net");
    assert_eq!(number(&net, 0, "id").to_string(), id);
    assert_eq!(number(&net, 0, "type"), 1);
    assert_eq!(number(&net, 0, "bytes_read"), 35);
    assert_eq!(number(&net, 0, "bytes_written"), 43);
    assert!(number(&net, 0, "fd") > 2);
    drop(client);
    until(&operator, "net", |net| net.rows.is_empty());
}

#[test]
fn handlers_are_shown_with_what_they_have() {
    let front = Front::start("");
    let operator = Operator::of(&front);
    let mut client = Client::connect(front.address);
    client.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let nobody = until(&operator, "handlers", |table| {
        number(table, 0, "waiting") == 1
    });
    assert_eq!(word(&nobody, 0, "ident"), "app-ident");
    assert_eq!(word(&nobody, 0, "send_spec"), front.send);
    assert_eq!(word(&nobody, 0, "recv_spec"), front.recv);
    assert_eq!(
        (word(&nobody, 0, "state"), word(&nobody, 0, "peer")),
        ("absent", "")
    );
    assert!(number(&nobody, 0, "waiting_bytes") > 0);

    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    peer.joined();
    let (_, id) = request(&peer);
    let busy = operator.status("handlers");
    assert_eq!(busy.rows.len(), 1);
    assert_eq!(
        (word(&busy, 0, "state"), word(&busy, 0, "peer")),
        ("ready", "127.0.0.1")
    );
    let counts = ["waiting", "reply_sockets", "open", "attached", "queued"];
    assert_eq!(counts.map(|name| number(&busy, 0, name)), [0, 1, 1, 0, 0]);

    // A response that goes on becomes a stream.
    peer.reply("app-ident", &id, b"HTTP/1.1 200 OK\r\n\r\nforever");
    until(&operator, "handlers", |table| {
        number(table, 0, "attached") == 1
    });
    let routes = operator.status("routes");
    assert_eq!(number(&routes, 0, "requests"), 1);
    let named = ["host", "matching", "path", "kind", "target"].map(|name| word(&routes, 0, name));
    let specs = format!("{} {}", front.send, front.recv);
    assert_eq!(named, ["localhost", "localhost", "/", "handler", &specs]);

    let metrics = operator.status("metrics");
    let requests = (0..metrics.rows.len())
        .find(|row| word(&metrics, *row, "name") == "requests")
        .unwrap();
    assert_eq!(number(&metrics, requests, "value"), 1);
}

#[test]
fn a_stopping_server_answers_until_its_end_and_ends_at_once_when_asked_again() {
    for (first, second) in [("stop", "terminate"), ("terminate", "stop")] {
        let mut front = Front::start("");
        let operator = Operator::of(&front);
        let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
        peer.joined();
        let mut client = Client::connect(front.address);
        client.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        request(&peer);
        let sent = operator.table(first, &[]);
        assert_eq!(word(&sent, 0, "msg"), "signal sent to server");
        let tasks = until(&operator, "tasks", |tasks| {
            word(tasks, 0, "status") == "exiting"
        });
        assert_eq!(word(&tasks, 0, "name"), "SERVER");
        assert_eq!(number(&operator.status("handlers"), 0, "open"), 1);
        // Others come too late to work, but not to ask.
        let other = Operator::of(&front);
        assert_eq!(word(&other.table("uuid", &[]), 0, "uuid"), "main-uuid");
        assert!(front.program.alive());
        let sent = operator.table(second, &[]);
        assert_eq!(word(&sent, 0, "msg"), "signal sent to server");
        assert!(front.program.ended().success());
        assert!(
            !Path::new(&control_of(&front)).exists(),
            "the socket is removed"
        );
    }
}

#[test]
fn the_port_can_be_stopped_alone() {
    let front = Front::start("");
    let operator = Operator::of(&front);
    let told = operator.table("control_stop", &[]);
    assert_eq!(word(&told, 0, "msg"), "stopping the control port");
    let end = Instant::now() + PATIENCE;
    while Path::new(&control_of(&front)).exists() {
        assert!(Instant::now() < end, "the socket's file stays");
        std::thread::sleep(Duration::from_millis(5));
    }
    operator.send(b"10:4:time,0:}]");
    assert_eq!(operator.heard(Duration::from_millis(300)), None);

    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    peer.joined();
    let mut client = Client::connect(front.address);
    client.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let (_, id) = request(&peer);
    peer.reply("app-ident", &id, HELLO);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn a_reload_is_the_configuration_as_it_is_now() {
    let mut front = Front::start("");
    let operator = Operator::of(&front);
    let file = front.directory().join("main.conf");
    let old = fs::read_to_string(&file).unwrap();
    fs::write(&file, old.replace("{'/': app}", "{'/': app, '/new': app}")).unwrap();
    let told = operator.table("reload", &[]);
    assert_eq!(word(&told, 0, "msg"), "signal sent to server");
    let routes = until(&operator, "routes", |routes| routes.rows.len() == 2);
    assert!((0..2).any(|row| word(&routes, row, "path") == "/new"));

    // A mistake changes nothing, and is no end.
    fs::write(&file, "servers = [").unwrap();
    operator.table("reload", &[]);
    front.program.line("that it is refused", |line| {
        line.contains("the old configuration goes on").then_some(())
    });
    assert_eq!(operator.status("routes").rows.len(), 2);
}

#[test]
fn no_bytes_stop_the_port() {
    let front = Front::start("");
    let operator = Operator::of(&front);
    let good = [
        &b"28:6:status,15:4:what,5:tasks,}]"[..],
        b"19:4:kill,9:2:id,1:2#}]",
        b"10:4:time,0:}]",
    ];
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap()
    };
    for round in 0..3000 {
        let mut question = good[round % good.len()].to_vec();
        for _ in 0..=random() % 3 {
            let at = random() % question.len();
            match random() % 3 {
                0 => question[at] = u8::try_from(random() % 256).unwrap(),
                1 => question.truncate(at.max(1)),
                _ => question.insert(at, b"0123456789:,#]}~!^\0"[random() % 19]),
            }
        }
        // Whatever it is, there is an answer that can be read.
        let answer = operator.ask(&question);
        assert!(
            Answer::decode(&answer).is_some(),
            "{question:?}: {answer:?}"
        );
    }
    // Deep, wide and long.
    let deep = b"1:".repeat(30_000);
    let mut nested = b"0:]".to_vec();
    while nested.len() < 60_000 {
        nested = [nested.len().to_string().as_bytes(), b":", &nested, b"]"].concat();
    }
    let wide = [&b"60000:"[..], &b"0:~".repeat(20_000), b"]"].concat();
    for question in [deep, nested, wide] {
        assert!(Answer::decode(&operator.ask(&question)).is_some());
    }
    let endless = Operator::of(&front);
    endless.send(&vec![b'9'; 70_000]);
    assert_eq!(endless.heard(Duration::from_millis(200)), None);
    assert_eq!(word(&operator.table("uuid", &[]), 0, "uuid"), "main-uuid");
}

#[test]
fn a_port_on_tcp_is_as_good() {
    let directory = scratch();
    let port = free_port();
    let config = changed(directory.path(), |conf| {
        let ipc = format!("ipc://{}/control", directory.path().display());
        conf.replace(&ipc, &format!("tcp://127.0.0.1:{port}"))
    });
    let mut program = Program::lurcher(&["serve", &config], directory.path());
    program.listening();
    let operator = Operator::at(&format!("tcp://127.0.0.1:{port}"));
    assert_eq!(word(&operator.table("uuid", &[]), 0, "uuid"), "main-uuid");
}

/// Writes a configuration that differs from the usual one, and gives its path.
fn changed(directory: &Path, how: impl Fn(String) -> String) -> String {
    let [send, recv] = [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    let file = conf(directory, 0, &send, &recv, "");
    let text = how(fs::read_to_string(&file).unwrap());
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// A configuration whose server names no control port.
fn unnamed(conf: &str) -> String {
    let (before, named) = conf.split_once("control_port='").unwrap();
    let (_, after) = named.split_once(',').unwrap();
    format!("{before}{after}")
}

#[test]
fn a_fresh_site_has_its_port_in_run_and_the_second_server_goes_without() {
    let directory = scratch();
    let config = changed(directory.path(), |conf| unnamed(&conf));
    let mut first = Program::lurcher(&["serve", &config], directory.path());
    first.listening();
    let socket = directory.path().join("run/control");
    let operator = Operator::at(&format!("ipc://{}", socket.display()));
    assert_eq!(word(&operator.table("uuid", &[]), 0, "uuid"), "main-uuid");

    let other = scratch();
    let config = changed(other.path(), |conf| {
        unnamed(&conf).replace("main-uuid", "other-uuid")
    });
    let mut second = Program::lurcher(&["serve", &config], directory.path());
    second.line("that it has none", |line| {
        line.contains("without a control port").then_some(())
    });
    second.listening();
    assert_eq!(word(&operator.table("uuid", &[]), 0, "uuid"), "main-uuid");
    assert!(second.terminate().success());
    assert!(socket.exists(), "it was not the second one's to remove");
}

#[test]
fn a_port_that_a_server_names_must_be_had() {
    let directory = scratch();
    fs::write(directory.path().join("control"), "no socket").unwrap();
    let config = changed(directory.path(), |conf| conf);
    let mut program = Program::lurcher(&["serve", &config], directory.path());
    assert_eq!(program.ended().code(), Some(1));
    let why = program.line("why it does not start", |line| {
        line.starts_with("lurcher: ").then(|| line.to_owned())
    });
    assert!(
        why.contains("open the control port: bind ipc://") && why.contains("is no socket"),
        "{why}"
    );
    let text = fs::read_to_string(directory.path().join("control")).unwrap();
    assert_eq!(text, "no socket");
}

#[test]
fn an_exposed_port_is_warned_of() {
    for setting in [false, true] {
        let directory = scratch();
        let spec = "tcp://0.0.0.0:*";
        let config = changed(directory.path(), |conf| {
            if setting {
                unnamed(&conf).replace(
                    "settings = {",
                    &format!("settings = {{'control_port': '{spec}', "),
                )
            } else {
                let ipc = format!("ipc://{}/control", directory.path().display());
                conf.replace(&ipc, spec)
            }
        });
        let mut program = Program::lurcher(&["serve", &config], directory.path());
        program.line("the warning", |line| {
            let warned = line.contains("whoever reaches it can stop the server");
            (warned && line.contains(spec)).then_some(())
        });
        program.listening();
    }
}
