//! The proxy before a server that people run: Debian's nginx, asked with curl and by hand.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::Front;
use crate::support::client::{Asked, Client};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

/// A running nginx that serves a directory, takes uploads into it, and upgrades nothing.
struct Nginx {
    _program: Program,
    port: u16,
    directory: tempfile::TempDir,
}

/// `None`, with a printed line, when it is not installed.
fn nginx() -> Option<Nginx> {
    let program = ["nginx", "/usr/sbin/nginx"].into_iter().find(|name| {
        Command::new(name)
            .arg("-v")
            .stderr(Stdio::null())
            .status()
            .is_ok()
    });
    let Some(program) = program else {
        println!("skipped: nginx is not installed (Debian: nginx-light)");
        return None;
    };
    let directory = scratch();
    let here = directory.path().display();
    let port = free_port();
    fs::create_dir(directory.path().join("www")).unwrap();
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {here}/{kind};"))
        .join(" ");
    // As the user who runs the tests, who owns the directory.
    let user = if fs::metadata("/proc/self").is_ok_and(|meta| {
        use std::os::unix::fs::MetadataExt as _;
        meta.uid() == 0
    }) {
        "user root;"
    } else {
        ""
    };
    let text = format!(
        "{user} daemon off; pid {here}/nginx.pid; error_log stderr; worker_processes 1;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; {paths} client_max_body_size 64m;\n\
         server {{ listen 127.0.0.1:{port}; root {here}/www; gzip off;\n\
         location /say {{ return 200 \"$request_method $request_uri $host $http_x_forwarded_for $http_x_forwarded_proto $http_via\\n\"; }}\n\
         location /small {{ client_max_body_size 1k; proxy_pass http://127.0.0.1:{port}/say; }}\n\
         location /take {{ proxy_pass http://127.0.0.1:{port}/say; }}\n\
         location /close {{ keepalive_timeout 0; return 200 bye; }}\n\
         }} }}\n"
    );
    let file = directory.path().join("nginx.conf");
    fs::write(&file, text).unwrap();
    let mut program = Program::start(
        Command::new(program)
            .args(["-e", "stderr", "-c"])
            .arg(&file)
            .arg("-p")
            .arg(directory.path()),
    );
    let end = Instant::now() + PATIENCE;
    let address = ([127, 0, 0, 1], port).into();
    while Client::try_connect(address).is_err() {
        assert!(program.alive() && Instant::now() < end, "{program}");
        std::thread::yield_now();
    }
    Some(Nginx {
        _program: program,
        port,
        directory,
    })
}

#[test]
fn nginx_serves_files_ranges_and_conditions_through_the_proxy() {
    let Some(nginx) = nginx() else { return };
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    fs::write(nginx.directory.path().join("www/big.bin"), &big).unwrap();
    let front = Front::start("127.0.0.1", nginx.port, "");
    let mut client = front.asks("GET /big.bin HTTP/1.1\r\nHost: h\r\n\r\n");
    let whole = client.answer();
    assert_eq!(whole.status, 200);
    assert!(whole.body == big, "the file as it is");
    let tag = String::from_utf8_lossy(whole.header("etag").unwrap()).into_owned();
    client
        .send(
            format!("GET /big.bin HTTP/1.1\r\nHost: h\r\nIf-None-Match: {tag}\r\n\r\n").as_bytes(),
        )
        .unwrap();
    assert_eq!(client.answer().status, 304);
    client
        .send(b"GET /big.bin HTTP/1.1\r\nHost: h\r\nRange: bytes=5-9\r\n\r\n")
        .unwrap();
    let part = client.answer();
    assert_eq!((part.status, part.body.as_slice()), (206, &big[5..10]));
    client
        .send(b"HEAD /big.bin HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    let head = client.try_answer(Asked::Head, PATIENCE).unwrap();
    assert_eq!(head.header("content-length"), Some(&b"3000000"[..]));
    client
        .send(b"GET /none HTTP/1.1\r\nHost: h\r\n\r\nGET /close HTTP/1.1\r\nHost: h\r\n\r\nGET /say?x HTTP/1.1\r\nHost: shop\r\n\r\n")
        .unwrap();
    assert_eq!(client.answer().status, 404);
    assert_eq!(client.answer().body, b"bye");
    let said = client.answer();
    assert_eq!(
        String::from_utf8_lossy(&said.body),
        "GET /say?x shop 127.0.0.1 http 1.1 lurcher\n"
    );
}

#[test]
fn curl_uploads_to_nginx_through_the_proxy() {
    let Some(nginx) = nginx() else { return };
    let file = nginx.directory.path().join("upload");
    fs::write(&file, vec![b'u'; 5_000_000]).unwrap();
    let front = Front::start("127.0.0.1", nginx.port, "");
    let curl = |path: &str, arguments: &[&str]| -> Option<String> {
        let output = Command::new("curl")
            .args(["-sS", "-m", "20", "-w", " %{http_code}", "-T"])
            .arg(&file)
            .args(arguments)
            .arg(format!("http://{}{path}", front.address))
            .output()
            .ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Some(plain) = curl("/take", &[]) else {
        println!("skipped: curl is not installed");
        return;
    };
    assert!(plain.starts_with("PUT /say "), "{plain}");
    assert!(plain.ends_with(" 200"), "{plain}");
    let chunked = curl("/take", &["-H", "Transfer-Encoding: chunked"]).unwrap();
    assert!(chunked.ends_with(" 200"), "{chunked}");
    // curl waits for leave to send a body of this size, and is refused.
    let refused = curl("/small", &[]).unwrap();
    assert!(refused.ends_with(" 413"), "{refused}");
    let refused = curl("/small", &["-H", "Expect:"]).unwrap();
    assert!(refused.ends_with(" 413"), "{refused}");
}

/// Runs a part of `clients.py` with Debian's Python; prints a line instead when something is not installed.
fn python(arguments: &[String]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/proxy/clients.py");
    let Ok(output) = Command::new("/usr/bin/python3")
        .arg(script)
        .args(arguments)
        .output()
    else {
        println!("skipped: /usr/bin/python3 is not installed");
        return;
    };
    if output.status.code() == Some(77) {
        println!("skipped: a Python library is not installed (Debian: python3-websockets)");
        return;
    }
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn pythons_http_client_is_served_by_nginx_through_the_proxy() {
    let Some(nginx) = nginx() else { return };
    let file = nginx.directory.path().join("www/data.bin");
    fs::write(file, vec![b'd'; 200_000]).unwrap();
    let front = Front::start("127.0.0.1", nginx.port, "");
    python(&["http".to_owned(), front.address.port().to_string()]);
}

#[test]
fn pythons_websockets_talk_through_the_proxy() {
    let backend = free_port();
    let front = Front::start("127.0.0.1", backend, "");
    python(&[
        "websocket".to_owned(),
        front.address.port().to_string(),
        backend.to_string(),
    ]);
}
