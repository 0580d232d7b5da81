//! Apps that people run, behind the handler: one in Node, and Python's own file server.

use std::fs;
use std::process::{Command, Stdio};

use super::{asks, bridge, servers};
use crate::support::client::{Asked, Client};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

const APP: &str = r"
const http = require('http');
let connections = 0;
const server = http.createServer((request, response) => {
    if (request.url === '/echo') {
        response.writeHead(200, {'Content-Type': 'application/octet-stream'});
        request.pipe(response);
    } else if (request.url === '/events') {
        response.writeHead(200, {'Content-Type': 'text/event-stream'});
        let count = 0;
        const timer = setInterval(() => {
            response.write(`data: ${++count}\n\n`);
            if (count === 3) { clearInterval(timer); response.end(); }
        }, 20);
    } else if (request.url === '/large') {
        response.end(Buffer.alloc(8 * 1024 * 1024, 'abcdefgh'));
    } else if (request.url === '/die') {
        response.writeHead(200, {'Content-Length': '100'});
        response.write('some');
        setTimeout(() => request.socket.destroy(), 20);
    } else {
        const said = [request.method, request.url, request.headers['x-forwarded-for'], request.headers.host, connections];
        response.setHeader('X-Said', said.join(' '));
        response.end('hello from node');
    }
});
server.on('connection', () => connections++);
server.listen(0, '127.0.0.1', () => console.log('port ' + server.address().port));
";

/// `None`, with a printed line, when it is not installed.
fn node() -> Option<(Program, String)> {
    if Command::new("node")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        println!("skipped: node is not installed (Debian: nodejs)");
        return None;
    }
    let mut program = Program::start(Command::new("node").args(["-e", APP]));
    let port: u16 = program.line("its port", |line| line.strip_prefix("port ")?.parse().ok());
    Some((program, format!("http://127.0.0.1:{port}")))
}

#[test]
fn an_app_in_node_is_a_handler() {
    let settings = ", 'limits.content_length': 3000000, 'upload.stream': 1";
    servers::each(settings, |server| {
        let Some((_node, target)) = node() else {
            return;
        };
        let _program = bridge(&server, &target, &[]);
        let mut client = Client::connect(server.address);
        let mut ask = |request: &str, body: &[u8], asked| {
            let length = body.len();
            let head = format!(
                "{request} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {length}\r\n\r\n"
            );
            client.send(head.as_bytes()).unwrap();
            client.send(body).unwrap();
            client.try_answer(asked, PATIENCE).expect("an answer")
        };
        // One connection for all of it, as long as one request follows the other.
        for _ in 0..20 {
            let answer = ask("GET /a?b", b"", Asked::Other);
            assert_eq!(answer.body, b"hello from node");
            let said = answer.header("x-said").expect("a header");
            assert_eq!(said, b"GET /a?b 127.0.0.1 shop.example 1");
        }
        let answer = ask("HEAD /", b"", Asked::Head);
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b""[..]));
        for length in [0, 1, 20_000, 2_000_000, 5_000_000] {
            let body: Vec<u8> = (0..=250_u8).cycle().take(length).collect();
            let answer = ask("POST /echo", &body, Asked::Other);
            assert_eq!((answer.status, answer.body.len()), (200, length));
            assert!(answer.body == body);
        }
        let answer = ask("GET /large", b"", Asked::Other);
        assert!(
            answer.body.len() == 8 << 20 && answer.body.chunks(8).all(|piece| piece == b"abcdefgh")
        );
        let answer = ask("GET /events", b"", Asked::Other);
        assert_eq!(answer.body, b"data: 1\n\ndata: 2\n\ndata: 3\n\n");
        let mut client = asks(&server, "GET /die HTTP/1.1\r\nHost: h\r\n\r\n");
        client.upto(b"some");
        assert!(client.rest().is_empty());
    });
}

#[test]
fn pythons_file_server_is_a_handler() {
    let folder = scratch();
    fs::write(folder.path().join("page.html"), "<p>hello</p>").unwrap();
    fs::write(folder.path().join("large.bin"), vec![b'x'; 3 << 20]).unwrap();
    servers::each("", |server| {
        let port = free_port();
        let command = [
            "-u",
            "-m",
            "http.server",
            "--bind",
            "127.0.0.1",
            &port.to_string(),
        ]
        .map(str::to_owned);
        let mut python = Program::start(
            Command::new("/usr/bin/python3")
                .args(command)
                .current_dir(folder.path()),
        );
        python.line("its address", |line| {
            line.starts_with("Serving").then_some(())
        });
        let _program = bridge(&server, &format!("http://localhost:{port}"), &[]);
        let mut client = Client::connect(server.address);
        // It speaks HTTP/1.0: each response ends with its connection.
        for (path, status, length) in [
            ("/page.html", 200, 12),
            ("/large.bin", 200, 3 << 20),
            ("/none", 404, 0),
        ] {
            client
                .send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes())
                .unwrap();
            let answer = client.answer();
            assert_eq!(answer.status, status);
            assert!(
                status != 200 || answer.body.len() == length,
                "{}",
                answer.body.len()
            );
        }
    });
}
