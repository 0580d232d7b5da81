//! Directories behind routes, over sockets and with the real program: what clients see, what keeps a connection open, what the
//! log says, what a large file costs. The rules themselves are tested in `src/files`.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use crate::support::client::{self, Answer, Asked, Client, fetch};
use crate::support::program::Program;
use crate::support::{PATIENCE, scratch};

/// A front with directories and nothing else.
struct Site {
    program: Program,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

/// Bytes of the file that does not fit the cache, nor the buffers of a socket.
const LARGE: usize = 24 * 1024 * 1024;

impl Site {
    fn start(settings: &str) -> Self {
        let directory = scratch();
        let here = directory.path().display().to_string();
        for folder in ["www/sub", "www/empty", "www-secret"] {
            fs::create_dir_all(directory.path().join(folder)).expect("create a folder");
        }
        for (name, text) in [
            ("www/hello.txt", "hello text\n"),
            ("www/index.html", "<p>index</p>\n"),
            ("www/sub/index.html", "<p>sub</p>\n"),
            ("www-secret/x", "secret\n"),
            ("secret", "secret\n"),
        ] {
            fs::write(directory.path().join(name), text).expect("write a file");
        }
        let text = format!(
            "files = Dir(base='{here}/www/', index_file='index.html', default_ctype='text/x-default')\n\
             main = Server(uuid='main-uuid', name='main', access_log='{here}/access.log', error_log='{here}/error.log',\n\
             \x20   chroot='', pid_file='{here}/main.pid', control_port='ipc://{here}/control', default_host='localhost',\n\
             \x20   bind_addr='127.0.0.1', port=0,\n\
             \x20   hosts=[Host(name='localhost', routes={{'/': files '/files/': files '/pat/(.*\\.txt)': files}})])\n\
             settings = {{'server.daemonize': 0{settings}}}\n\
             servers = [main]\n"
        );
        let config = directory.path().join("main.conf");
        fs::write(&config, text).expect("write a configuration");
        let mut program = Program::lurcher(
            &["serve", config.to_str().expect("a UTF-8 path")],
            directory.path(),
        );
        let address = program.listening();
        Self {
            program,
            address,
            directory,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn get(&self, path: &str, fields: &str) -> Answer {
        fetch(
            self.address,
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"),
        )
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A file of lines that tell their place.
    fn large(&self) -> Vec<u8> {
        let lines = (0_u32..).flat_map(|number| format!("{number:015}\n").into_bytes());
        let bytes: Vec<u8> = lines.take(LARGE).collect();
        fs::write(self.path("www/large"), &bytes).expect("write a file");
        bytes
    }

    /// What the access log says of each request: method, path, status, size.
    fn logged(&mut self) -> Vec<String> {
        assert!(self.program.terminate().success());
        let log = fs::read_to_string(self.path("access.log")).expect("a log");
        let fields = |line: &str| {
            let words: Vec<&str> = line
                .split([',', '#', ']'])
                .filter(|w| !w.is_empty())
                .collect();
            let text = |at: usize| {
                words
                    .get(at)
                    .and_then(|w| w.split(':').nth(1))
                    .unwrap_or("")
                    .to_owned()
            };
            format!("{} {} {} {}", text(4), text(5), text(7), text(8))
        };
        log.lines().map(fields).collect()
    }
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    std::str::from_utf8(answer.header(name).unwrap_or_default()).expect("text")
}

fn send(client: &mut Client, text: &str) {
    client.send(text.as_bytes()).expect("send");
}

#[test]
fn directories_that_cannot_be_used_are_told_at_the_start() {
    let mut site =
        Site::start(", 'upload.temp_store': '/nowhere/up.XXXXXX', 'sendfile.base': '/etc/passwd'");
    site.program.said(
        "507, for want of the directory of `upload.temp_store`: /nowhere",
        1,
    );
    site.program.said(
        "for want of `sendfile.base`: /etc/passwd: Not a directory",
        1,
    );
    fs::rename(
        site.directory.path().join("www"),
        site.directory.path().join("moved"),
    )
    .expect("move the base");
    fs::write(
        site.directory.path().join("main.conf"),
        fs::read_to_string(site.directory.path().join("main.conf"))
            .expect("read the configuration")
            .replace("'/pat/(.*\\.txt)': files", ""),
    )
    .expect("write a configuration");
    site.program.signal("HUP");
    site.program.said("will answer 404: ", 1);
}

#[test]
fn a_connection_goes_on_after_every_answer_but_a_refusal() {
    let mut site = Site::start("");
    let mut client = Client::connect(site.address);
    let mut ask = |line: &str, fields: &str, asked: Asked, status: u16, body: &str| {
        send(
            &mut client,
            &format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"),
        );
        let answer = client.try_answer(asked, PATIENCE).expect("an answer");
        assert_eq!(answer.status, status, "{line} {fields}");
        assert_eq!(
            String::from_utf8_lossy(&answer.body),
            body,
            "{line} {fields}"
        );
        assert_eq!(
            header(&answer, "connection"),
            if status == 405 { "close" } else { "" }
        );
        answer
    };
    // From the disk, then from memory.
    for _ in 0..2 {
        ask("GET /hello.txt", "", Asked::Other, 200, "hello text\n");
        let head = ask("HEAD /hello.txt", "", Asked::Head, 200, "");
        assert_eq!(header(&head, "content-length"), "11");
        let tag = header(&head, "etag").to_owned();
        ask(
            "GET /hello.txt",
            &format!("If-None-Match: {tag}\r\n"),
            Asked::Other,
            304,
            "",
        );
        ask(
            "HEAD /hello.txt",
            &format!("If-None-Match: {tag}\r\n"),
            Asked::Head,
            304,
            "",
        );
        ask(
            "GET /hello.txt",
            "If-Match: \"x\"\r\n",
            Asked::Other,
            412,
            "Precondition Failed",
        );
        ask(
            "GET /hello.txt",
            "Range: bytes=6-\r\n",
            Asked::Other,
            206,
            "text\n",
        );
        let answer = ask(
            "GET /hello.txt",
            "Range: bytes=11-\r\n",
            Asked::Other,
            416,
            "Range Not Satisfiable",
        );
        assert_eq!(header(&answer, "content-range"), "bytes */11");
        ask("GET /none", "", Asked::Other, 404, "Not Found");
        ask("HEAD /none", "", Asked::Head, 404, "");
        let answer = ask("GET /sub?a=1", "", Asked::Other, 301, "");
        assert_eq!(header(&answer, "location"), "/sub/?a=1");
        ask("GET /sub/", "", Asked::Other, 200, "<p>sub</p>\n");
    }
    let answer = ask(
        "DELETE /hello.txt",
        "",
        Asked::Other,
        405,
        "Method Not Allowed",
    );
    assert_eq!(header(&answer, "allow"), "GET, HEAD");
    let logged = site.logged();
    assert_eq!(logged.len(), 23);
    let expect = [
        "GET /hello.txt 200 11",
        "HEAD /hello.txt 200 0",
        "GET /hello.txt 304 0",
        "HEAD /hello.txt 304 0",
        "GET /hello.txt 412 19",
        "GET /hello.txt 206 5",
        "GET /hello.txt 416 21",
        "GET /none 404 9",
        "HEAD /none 404 0",
        "GET /sub 301 0",
        "GET /sub/ 200 11",
    ];
    assert_eq!(logged[..11], expect);
    assert_eq!(logged[11..22], expect);
    assert_eq!(logged[22], "DELETE /hello.txt 405 18");
}

#[test]
fn bodies_of_any_kind_are_read_and_dropped() {
    let site = Site::start("");
    let mut client = Client::connect(site.address);
    let big = "b".repeat(300_000);
    for (fields, body) in [
        ("Content-Length: 3\r\n", "abc"),
        ("Content-Length: 300000\r\n", big.as_str()),
        (
            "Transfer-Encoding: chunked\r\n",
            "3\r\nabc\r\n4;x=y\r\nabcd\r\n0\r\nT: x\r\n\r\n",
        ),
        ("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ] {
        send(
            &mut client,
            &format!("GET /hello.txt HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}"),
        );
        assert_eq!(client.answer().body, b"hello text\n", "{fields}");
    }
    // One that waits for leave gets it; the answer may come before the body and does not wait for it.
    send(
        &mut client,
        "GET /sub/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    );
    assert_eq!(client.answer().status, 100);
    send(&mut client, "abc");
    assert_eq!(client.answer().body, b"<p>sub</p>\n");
    send(
        &mut client,
        "GET /hello.txt HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx",
    );
    while !client.ended() {
        assert!(
            client.read_some(PATIENCE),
            "broken chunks end the connection"
        );
    }
}

#[test]
fn http_1_0_and_close_end_the_connection() {
    let site = Site::start("");
    for (request, connection) in [
        ("GET /hello.txt HTTP/1.0\r\n\r\n", "close"),
        (
            "GET /hello.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            "close",
        ),
    ] {
        let mut client = Client::connect(site.address);
        send(&mut client, request);
        let answer = client.answer();
        assert_eq!(answer.body, b"hello text\n");
        assert_eq!(header(&answer, "connection"), connection);
        assert!(client.read_some(PATIENCE) && client.ended());
    }
    let mut client = Client::connect(site.address);
    for _ in 0..2 {
        send(
            &mut client,
            "GET /hello.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        );
        assert_eq!(header(&client.answer(), "connection"), "keep-alive");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_whether_from_memory_or_from_disk() {
    let site = Site::start("");
    let large = site.large();
    site.get("/hello.txt", "");
    let mut client = Client::connect(site.address);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    send(
        &mut client,
        &["/large", "/hello.txt", "/none", "/sub/", "/large", "/"]
            .map(get)
            .concat(),
    );
    assert!(client.answer().body == large);
    assert_eq!(client.answer().body, b"hello text\n");
    assert_eq!(client.answer().status, 404);
    assert_eq!(client.answer().body, b"<p>sub</p>\n");
    assert!(client.answer().body == large);
    assert_eq!(client.answer().body, b"<p>index</p>\n");
}

#[test]
fn hostile_paths_lead_nowhere() {
    let site = Site::start("");
    symlink("../secret", site.path("www/link")).expect("make a link");
    symlink("../www-secret", site.path("www/sub/link")).expect("make a link");
    let made = Command::new("mkfifo").arg(site.path("www/pipe")).status();
    assert!(made.expect("mkfifo").success());
    for path in [
        "/../secret",
        "/files/../secret",
        "/files/..%2f..%2fsecret",
        "/files/%2e%2e/www-secret/x",
        "/../www-secret/x",
        "/files/../www-secret/x",
        "/files/sub/../../www-secret/x",
        "/files/../www/hello.txt",
        "/files//../../secret",
        "/files/hello.txt%00.html",
        "/files/%00",
        "/link",
        "/sub/link",
        "/sub/link/x",
        "/pipe",
        "/hello.txt/",
        "/hello.txt/.",
        "/hello.txt/..",
        "/empty/",
        "/pat/../secret.txt",
        "/%252e%252e/secret",
        "/..%5csecret",
    ] {
        let answer = site.get(path, "");
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (404, b"Not Found".as_slice()),
            "{path}"
        );
    }
    for (path, status) in [
        ("/etc/passwd", 404),
        ("//etc/passwd", 404),
        ("/files////hello.txt", 200),
        ("/pat/hello.txt", 200),
        ("/fil", 404),
    ] {
        assert_eq!(site.get(path, "").status, status, "{path}");
    }
    let long = format!("/{}", "a/".repeat(20_000));
    assert_eq!(site.get(&long, "").status, 404);
    fs::create_dir_all(site.path("www/example.org/x")).expect("create a folder");
    assert_eq!(
        header(&site.get("//example.org/x", ""), "location"),
        "/example.org/x/"
    );
    assert_eq!(header(&site.get("/files", ""), "location"), "/files/");
}

#[test]
fn compressed_neighbours_go_to_those_who_like_them() {
    let site = Site::start("");
    let Some(curl) = tool("curl") else { return };
    let text = "text that is there twice, text that is there twice\n".repeat(50);
    fs::write(site.path("www/page.html"), &text).expect("write a file");
    let zipped = Command::new("gzip")
        .args(["-k", "-n"])
        .arg(site.path("www/page.html"))
        .status();
    assert!(zipped.expect("gzip").success());
    for name in ["page.html.br", "page.html.zst"] {
        fs::write(site.path("www").join(name), name).expect("write a file");
    }
    for (accept, coding) in [
        ("gzip, deflate, br, zstd", "br"),
        ("zstd;q=0.9, gzip;q=0.8", "zstd"),
        ("gzip", "gzip"),
        ("gzip;q=0", ""),
        ("", ""),
    ] {
        let answer = site.get("/page.html", &format!("Accept-Encoding: {accept}\r\n"));
        assert_eq!(header(&answer, "content-encoding"), coding, "{accept}");
        assert_eq!(header(&answer, "vary"), "Accept-Encoding");
        assert_eq!(header(&answer, "content-type"), "text/html");
    }
    for name in ["page.html.br", "page.html.zst"] {
        fs::remove_file(site.path("www").join(name)).expect("remove a file");
    }
    // A new directory route would be needed to see that at once; this one looks again after a second.
    let page = site.url("/files/page.html");
    let output = curl(&["-s", "--compressed", "-w", "%{size_download}", &page]);
    let said = String::from_utf8(output.stdout).expect("text");
    let (body, size) = said.split_at(text.len());
    assert_eq!(body, text);
    assert!(
        size.parse::<usize>().expect("a number") < text.len() / 4,
        "{size} bytes came"
    );
}

#[test]
fn curl_resumes_asks_for_ranges_and_for_what_is_newer() {
    let site = Site::start("");
    let Some(curl) = tool("curl") else { return };
    let large = site.large();
    let file = site.path("download");
    let name = file.to_str().expect("a UTF-8 path");
    let url = site.url("/large");
    fs::write(&file, &large[..1_000_003]).expect("write a file");
    assert!(curl(&["-s", "-C", "-", "-o", name, &url]).status.success());
    assert!(fs::read(&file).expect("a file") == large, "resumed");
    // It is whole: 416 says so, and curl is content.
    assert!(curl(&["-s", "-C", "-", "-o", name, &url]).status.success());
    assert!(fs::read(&file).expect("a file") == large);

    let part = curl(&["-s", "-r", "16-31", &url]);
    assert_eq!(part.stdout, b"000000000000001\n");
    let parts =
        String::from_utf8(curl(&["-s", "-r", "0-15,1600-1615", &url]).stdout).expect("text");
    assert!(
        parts.contains("000000000000000\n") && parts.contains("000000000000100\n"),
        "{parts}"
    );
    assert!(
        parts.contains("Content-Range: bytes 1600-1615/25165824"),
        "{parts}"
    );

    let hello = site.path("www/hello.txt");
    let code = ["-s", "-o", "/dev/null", "-w", "%{http_code}"];
    let newer = |condition: &str| {
        let output = curl(&[&code[..], &["-z", condition, &site.url("/hello.txt")]].concat());
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(newer(hello.to_str().expect("a UTF-8 path")), "304");
    assert_eq!(newer("Thu, 02 Jan 2020 03:04:05 GMT"), "200");
    assert_eq!(newer("-Thu, 02 Jan 2020 03:04:05 GMT"), "412");
    let moved = curl(&["-s", "-L", &site.url("/files/sub?a=b")]);
    assert_eq!(moved.stdout, b"<p>sub</p>\n");
}

#[test]
fn pythons_clients_understand_what_they_get() {
    let site = Site::start("");
    let Some(python) = tool("python3") else {
        return;
    };
    fs::write(site.path("www/data.json"), r#"{"a": [1, 2]}"#).expect("write a file");
    let script = r#"
import http.client, json, sys, urllib.request, urllib.error
base = sys.argv[1]
with urllib.request.urlopen(base + "/data.json") as answer:
    assert json.load(answer) == {"a": [1, 2]}
    assert answer.headers.get_content_type() == "application/json", answer.headers
    tag = answer.headers["ETag"]
for name, value, status in [("If-None-Match", tag, 304), ("If-Match", '"x"', 412), ("Range", "bytes=100-", 416)]:
    try:
        urllib.request.urlopen(urllib.request.Request(base + "/data.json", headers={name: value}))
        raise SystemExit(name)
    except urllib.error.HTTPError as error:
        assert error.code == status, (name, error.code)
assert urllib.request.urlopen(base + "/sub").read() == b"<p>sub</p>\n"
connection = http.client.HTTPConnection(base.split("//")[1])
for number in range(3):
    connection.request("GET", "/hello.txt", body=b"x" * 5000, headers={"Range": "bytes=%d-" % number})
    answer = connection.getresponse()
    assert answer.status == 206 and answer.read() == b"hello text\n"[number:]
    connection.request("HEAD", "/hello.txt")
    answer = connection.getresponse()
    assert answer.read() == b"" and answer.headers["Content-Length"] == "11"
print("done")
"#;
    let output = python(&["-c", script, &site.url("")]);
    assert_eq!(
        output.stdout,
        b"done\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_file_that_changes_is_seen_after_a_second() {
    let site = Site::start("");
    assert_eq!(site.get("/hello.txt", "").body, b"hello text\n");
    fs::write(site.path("www/hello.txt"), "other text\n").expect("write a file");
    let end = Instant::now() + PATIENCE;
    while site.get("/hello.txt", "").body != b"other text\n" {
        assert!(Instant::now() < end, "the old file is still served");
    }
    // What was not there is not remembered.
    assert_eq!(site.get("/late", "").status, 404);
    fs::write(site.path("www/late"), "late").expect("write a file");
    assert_eq!(site.get("/late", "").body, b"late");
}

#[test]
fn a_file_that_shrinks_while_it_is_sent_ends_the_connection() {
    let site = Site::start("");
    site.large();
    let mut client = Client::connect(site.address);
    send(
        &mut client,
        "GET /large HTTP/1.1\r\nHost: a\r\n\r\nGET /hello.txt HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert!(client.read_some(PATIENCE));
    // Far more is left than sockets can hold.
    let file = fs::File::options()
        .write(true)
        .open(site.path("www/large"))
        .expect("open a file");
    file.set_len(100_000).expect("cut it");
    while !client.ended() {
        assert!(client.read_some(PATIENCE), "not closed");
    }
    let text = client.bytes();
    assert!(text.len() < LARGE, "cut short");
    assert!(
        !text.ends_with(b"hello text\n"),
        "no answer is glued to half a file"
    );
    assert_eq!(site.get("/hello.txt", "").status, 200);
}

#[test]
fn a_client_that_has_said_all_before_the_answer_gets_it() {
    let site = Site::start("");
    let large = site.large();
    let mut client = Client::connect(site.address);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    // From disk, from disk in many blocks, and from memory.
    send(
        &mut client,
        &["/hello.txt", "/large", "/hello.txt"].map(get).concat(),
    );
    client.shutdown_write();
    assert_eq!(client.answer().body, b"hello text\n");
    assert!(client.answer().body == large);
    assert_eq!(client.answer().body, b"hello text\n");
    assert_eq!(client.rest(), b"", "and then the connection ends");
    // What is not whole is no request.
    let mut client = Client::connect(site.address);
    send(
        &mut client,
        &[
            &get("/sub/"),
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab",
        ]
        .concat(),
    );
    client.shutdown_write();
    assert_eq!(client.answer().body, b"<p>sub</p>\n");
    client.rest();
    assert!(client.ended());
}

#[test]
fn a_client_that_leaves_in_the_middle_costs_nothing_and_is_logged_so() {
    let mut site = Site::start("");
    site.large();
    let mut client = Client::connect(site.address);
    send(&mut client, "GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.read_some(PATIENCE));
    drop(client);
    assert_eq!(site.get("/hello.txt", "").status, 200);
    let logged = site.logged();
    let line = logged
        .iter()
        .find(|line| line.contains("/large"))
        .unwrap_or_else(|| panic!("{logged:?}"));
    let size: usize = line
        .rsplit(' ')
        .next()
        .and_then(|size| size.parse().ok())
        .expect("a size");
    assert!(
        line.starts_with("GET /large 200 ") && size < LARGE,
        "{line}"
    );
}

/// The most memory that a process has had, in KiB.
fn peak(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let words = line.and_then(|line| line.split_whitespace().next());
    words.and_then(|kib| kib.parse().ok()).expect("VmHWM")
}

#[test]
fn a_large_download_and_slow_clients_take_little_memory() {
    const SIZE: u64 = 1024 * 1024 * 1024;
    let site = Site::start("");
    // With holes: it takes no room on the disk. The end is told by its last bytes.
    let mut file = fs::File::create(site.path("www/giant")).expect("create a file");
    file.set_len(SIZE - 4).expect("make it long");
    file.seek(SeekFrom::End(0)).expect("seek");
    file.write_all(b"end\n").expect("write");
    // Clients that take nothing of what they asked for.
    let request = "GET /giant HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut lazy: Vec<Client> = (0..50).map(|_| Client::connect(site.address)).collect();
    for client in &mut lazy {
        send(client, request);
    }
    let mut client = Client::connect(site.address);
    send(&mut client, request);
    let mut stream = client.stream().try_clone().expect("a second handle");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut buffer = vec![0; 256 * 1024];
    let mut head = Vec::new();
    let mut body = None;
    let mut last = [0; 4];
    while body != Some(SIZE) {
        let read = client::read(&mut stream, &mut buffer).expect("read");
        assert!(read > 0, "cut short at {body:?}");
        let mut data = &buffer[..read];
        if body.is_none() {
            head.extend_from_slice(data);
            let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") else {
                continue;
            };
            data = &head[end + 4..];
            body = Some(0);
        }
        body = body.map(|sum| sum + data.len() as u64);
        if let Some(end) = data.last_chunk() {
            last = *end;
        }
    }
    assert_eq!(&last, b"end\n");
    let peak = peak(site.program.id());
    assert!(peak < 64 * 1024, "{peak} KiB at the most");
    drop(lazy);
}

#[test]
fn a_base_that_is_not_there_is_found_when_it_comes() {
    let site = Site::start("");
    let www = site.path("www");
    fs::rename(&www, site.path("elsewhere")).expect("rename");
    assert_eq!(site.get("/sub/", "").status, 404);
    symlink("elsewhere", &www).expect("make a link");
    assert_eq!(site.get("/sub/", "").status, 200);
    // A deployment turns the link.
    fs::create_dir(site.path("release")).expect("create a folder");
    fs::write(site.path("release/new"), "new").expect("write a file");
    fs::remove_file(&www).expect("remove a link");
    symlink("release", &www).expect("make a link");
    assert_eq!(site.get("/new", "").body, b"new");
}

#[test]
fn another_configuration_serves_another_directory() {
    let site = Site::start("");
    let large = site.large();
    assert_eq!(site.get("/hello.txt", "").body, b"hello text\n");
    fs::create_dir(site.path("other")).expect("create a folder");
    fs::write(site.path("other/hello.txt"), "other").expect("write a file");
    let mut client = Client::connect(site.address);
    send(&mut client, "GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.read_some(PATIENCE));
    let config = site.path("main.conf");
    let text = fs::read_to_string(&config).expect("a configuration");
    let changed = text
        .replace("/www/'", "/other/'")
        .replace("text/x-default", "text/x-other")
        + "mimetypes = {'.txt': 'text/x-told'}\n";
    fs::write(&config, changed).expect("write a configuration");
    site.program.signal("HUP");
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = site.get("/hello.txt", "");
        if answer.body == b"other" {
            assert_eq!(header(&answer, "content-type"), "text/x-told");
            break;
        }
        assert!(Instant::now() < end, "the old directory is still served");
    }
    // What was being sent is sent to its end.
    assert!(client.answer().body == large);
}

#[test]
fn a_stopping_front_sends_what_it_has_begun() {
    let mut site = Site::start("");
    let large = site.large();
    let mut client = Client::connect(site.address);
    send(&mut client, "GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.read_some(PATIENCE));
    site.program.signal("TERM");
    assert!(client.answer().body == large);
    assert!(site.program.ended().success());
}

/// A program as a function of its arguments; `None`, with a printed line, where it is not installed.
fn tool(name: &'static str) -> Option<impl Fn(&[&str]) -> Output> {
    let known = Path::new("/usr/bin").join(name).exists();
    if !known {
        println!("skipped: {name} is not installed");
    }
    known.then_some(move |arguments: &[&str]| {
        let mut command = Command::new(Path::new("/usr/bin").join(name));
        command.args(arguments).output().expect("run a program")
    })
}

#[test]
fn the_date_is_of_the_response_and_the_tag_stays() {
    let site = Site::start("");
    let one = site.get("/hello.txt", "");
    let end = Instant::now() + PATIENCE;
    loop {
        let two = site.get("/hello.txt", "");
        assert_eq!(header(&one, "etag"), header(&two, "etag"));
        assert_eq!(header(&one, "last-modified"), header(&two, "last-modified"));
        let date = httpdate::parse_http_date(header(&two, "date")).expect("a date");
        assert!(date.elapsed().unwrap_or_default() < Duration::from_secs(5));
        assert!(date <= SystemTime::now());
        if header(&one, "date") != header(&two, "date") {
            break;
        }
        assert!(Instant::now() < end, "the date stands still");
    }
}
