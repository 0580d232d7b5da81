//! `lurcher run files:`: a directory behind both servers in both protocols. The rules are those of a Dir and tested with it; here is
//! what the way through a handler adds.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::client::{Answer, Asked, Client};
use crate::support::front::Front;
use crate::support::program::Program;
use crate::support::{PATIENCE, scratch, servers};

/// A folder of files, and one beside it that nobody may see.
fn site() -> tempfile::TempDir {
    let site = scratch();
    for folder in ["www/sub", "www/empty", "www-secret"] {
        fs::create_dir_all(site.path().join(folder)).unwrap();
    }
    for (name, text) in [
        ("www/hello.txt", "hello text\n"),
        ("www/index.html", "<p>index</p>\n"),
        ("www/sub/index.html", "<p>sub</p>\n"),
        ("www/page.html", "as it is"),
        ("www/page.html.br", "as br"),
        ("www/page.html.gz", "as gzip"),
        ("www/a b.unknown", "blank"),
        ("www-secret/x", "secret\n"),
        ("secret", "secret\n"),
    ] {
        fs::write(site.path().join(name), text).unwrap();
    }
    site
}

fn start(site: &Path, [send, recv]: [&str; 2], options: &[&str], directory: &Path) -> Program {
    let app = format!("files:{}", site.join("www").display());
    let mut program = Program::lurcher(&[&["run", &app, send, recv], options].concat(), directory);
    program.said("connected to", 1);
    program
}

fn ask(client: &mut Client, line: &str, fields: &str) -> Answer {
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    client.send(head.as_bytes()).unwrap();
    let asked = if line.starts_with("HEAD") {
        Asked::Head
    } else {
        Asked::Other
    };
    client.try_answer(asked, PATIENCE).expect("an answer")
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    std::str::from_utf8(answer.header(name).unwrap_or_default()).unwrap()
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// What is asked, and what comes of it.
fn check_each(client: &mut Client, tag: &str) {
    for (line, fields, status, body) in [
        (
            "GET /hello.txt",
            format!("If-None-Match: {tag}\r\n"),
            304,
            "",
        ),
        (
            "HEAD /hello.txt",
            format!("If-None-Match: {tag}\r\n"),
            304,
            "",
        ),
        (
            "GET /hello.txt",
            "If-Match: \"x\"\r\n".to_owned(),
            412,
            "Precondition Failed",
        ),
        (
            "GET /hello.txt",
            "Range: bytes=6-\r\n".to_owned(),
            206,
            "text\n",
        ),
        (
            "GET /hello.txt",
            "Range: bytes=11-\r\n".to_owned(),
            416,
            "Range Not Satisfiable",
        ),
        ("GET /none", String::new(), 404, "Not Found"),
        ("HEAD /none", String::new(), 404, ""),
        ("GET /", String::new(), 200, "<p>index</p>\n"),
        ("GET /empty/", String::new(), 404, "Not Found"),
        ("GET /a%20b.unknown", String::new(), 200, "blank"),
        (
            "GET /page.html",
            "Accept-Encoding: gzip\r\n".to_owned(),
            200,
            "as gzip",
        ),
        (
            "GET /page.html",
            "Accept-Encoding: gzip, br\r\n".to_owned(),
            200,
            "as br",
        ),
        ("GET /page.html", String::new(), 200, "as it is"),
        (
            "DELETE /hello.txt",
            String::new(),
            405,
            "Method Not Allowed",
        ),
        (
            "GET /hello.txt",
            "Content-Length: 0\r\n".to_owned(),
            200,
            "hello text\n",
        ),
    ] {
        let answer = ask(client, line, &fields);
        assert_eq!(
            (answer.status, text(&answer).as_str()),
            (status, body),
            "{line} {fields}"
        );
    }
}

#[test]
fn files_are_served_with_their_conditions_and_ranges() {
    let site = site();
    servers::each("", |server| {
        let specs = [server.send.as_str(), server.recv.as_str()];
        let mut program = start(site.path(), specs, &[], server.directory());
        let mut client = Client::connect(server.address);
        // From the disk, then from memory.
        for _ in 0..2 {
            let answer = ask(&mut client, "GET /hello.txt", "");
            assert_eq!(
                (answer.status, text(&answer).as_str()),
                (200, "hello text\n")
            );
            assert_eq!(header(&answer, "content-type"), "text/plain");
            assert_eq!(header(&answer, "content-length"), "11");
            assert_eq!(header(&answer, "accept-ranges"), "bytes");
            let times = |name: &str| {
                answer
                    .headers
                    .iter()
                    .filter(|(known, _)| known == name)
                    .count()
            };
            assert_eq!(
                ["date", "server", "last-modified", "cache-control"].map(times),
                [1, 1, 1, 0]
            );
            let tag = header(&answer, "etag").to_owned();
            let head = ask(&mut client, "HEAD /hello.txt", "");
            assert_eq!((head.status, header(&head, "content-length")), (200, "11"));
            check_each(&mut client, &tag);
            let answer = ask(&mut client, "GET /hello.txt", "Range: bytes=11-\r\n");
            assert_eq!(header(&answer, "content-range"), "bytes */11");
            let answer = ask(&mut client, "GET /sub?a=1", "");
            assert_eq!(
                (answer.status, header(&answer, "location")),
                (301, "/sub/?a=1")
            );
            let answer = ask(&mut client, "GET /a%20b.unknown", "");
            assert_eq!(header(&answer, "content-type"), "application/octet-stream");
            let answer = ask(&mut client, "POST /hello.txt", "Content-Length: 0\r\n");
            assert_eq!(
                (answer.status, header(&answer, "allow")),
                (405, "GET, HEAD")
            );
        }
        client.send(b"GET /hello.txt HTTP/1.0\r\n\r\n").unwrap();
        assert!(client.rest().ends_with(b"\r\n\r\nhello text\n"));
        assert!(program.terminate().success());
    });
}

#[test]
fn hostile_paths_lead_nowhere() {
    let site = site();
    let www = site.path().join("www");
    symlink("../secret", www.join("link")).unwrap();
    symlink("../www-secret", www.join("sub/link")).unwrap();
    symlink("hello.txt", www.join("inside")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(www.join("pipe"))
            .status()
            .unwrap()
            .success()
    );
    servers::each("", |server| {
        let specs = [server.send.as_str(), server.recv.as_str()];
        let mut program = start(site.path(), specs, &[], server.directory());
        let mut client = Client::connect(server.address);
        for (path, status) in [
            ("/../secret", 404),
            ("/..%2fsecret", 404),
            ("/%2e%2e/www-secret/x", 404),
            ("/sub/../../www-secret/x", 404),
            ("//../secret", 404),
            ("/hello.txt%00.html", 404),
            ("/link", 404),
            ("/sub/link/x", 404),
            ("/pipe", 404),
            ("/hello.txt/", 404),
            ("/%252e%252e/secret", 404),
            ("/etc/passwd", 404),
            ("/inside", 200),
            ("/sub/../hello.txt", 200),
        ] {
            let answer = ask(&mut client, &format!("GET {path}"), "");
            assert_eq!(
                (answer.status, text(&answer).contains("secret")),
                (status, false),
                "{path}"
            );
        }
        assert!(program.terminate().success());
    });
}

#[test]
fn the_fixed_part_of_a_route_is_no_folder() {
    let site = site();
    let front = Front::routed("", "'/files/': app '/pat/(.*\\.txt)': app");
    let specs = [front.send.as_str(), front.recv.as_str()];
    let mut program = start(site.path(), specs, &[], front.directory());
    let mut client = Client::connect(front.address);
    for (path, body) in [
        ("/files/hello.txt", "hello text\n"),
        ("/files/", "<p>index</p>\n"),
        ("/pat/hello.txt", "hello text\n"),
        ("/files/../secret", "Not Found"),
    ] {
        assert_eq!(
            text(&ask(&mut client, &format!("GET {path}"), "")),
            body,
            "{path}"
        );
    }
    let answer = ask(&mut client, "GET /files", "");
    assert_eq!(
        (answer.status, header(&answer, "location")),
        (301, "/files/")
    );
    assert!(program.terminate().success());
}

#[test]
fn options_say_what_is_given_for_what() {
    let site = site();
    servers::each("", |server| {
        let specs = [server.send.as_str(), server.recv.as_str()];
        let options = [
            "--index",
            "hello.txt",
            "--fallback",
            "sub/index.html",
            "--default-type",
            "text/x-other",
            "--cache-control",
            "max-age=60",
        ];
        let mut program = start(site.path(), specs, &options, server.directory());
        let mut client = Client::connect(server.address);
        let answer = ask(&mut client, "GET /", "");
        assert_eq!(
            (text(&answer).as_str(), header(&answer, "cache-control")),
            ("hello text\n", "max-age=60")
        );
        let tag = header(&answer, "etag").to_owned();
        let answer = ask(&mut client, "GET /", &format!("If-None-Match: {tag}\r\n"));
        assert_eq!(
            (answer.status, header(&answer, "cache-control")),
            (304, "max-age=60")
        );
        for path in ["/none", "/some/page?x=1", "/../secret", "/empty/"] {
            let answer = ask(&mut client, &format!("GET {path}"), "");
            assert_eq!(
                (answer.status, text(&answer).as_str()),
                (200, "<p>sub</p>\n"),
                "{path}"
            );
        }
        let answer = ask(&mut client, "GET /a%20b.unknown", "");
        assert_eq!(header(&answer, "content-type"), "text/x-other");
        assert!(program.terminate().success());
    });
}

#[test]
fn a_file_larger_than_everything_between_arrives_whole_and_is_not_held() {
    let site = site();
    // Half as large as what a server keeps for a client at the most, so that it may all be on its way.
    let size = 8 * 1024 * 1024;
    let lines = (0_u32..).flat_map(|number| format!("{number:015}\n").into_bytes());
    let content: Vec<u8> = lines.take(size).collect();
    let mut file = fs::File::create(site.path().join("www/large")).unwrap();
    file.write_all(&content).unwrap();
    let front = Front::start("");
    let specs = [front.send.as_str(), front.recv.as_str()];
    let mut program = start(site.path(), specs, &[], front.directory());
    let mut client = Client::connect(front.address);
    let answer = ask(&mut client, "GET /large", "");
    assert!(answer.body == content);
    let answer = ask(
        &mut client,
        "GET /large",
        "Range: bytes=5000000-7999999\r\n",
    );
    assert!(answer.body == content[5_000_000..8_000_000]);
    let answer = ask(&mut client, "GET /large", "Range: bytes=0-1,6000-6001\r\n");
    assert!(header(&answer, "content-type").starts_with("multipart/byteranges; boundary="));
    assert!(text(&answer).contains("Content-Range: bytes 6000-6001/8388608\r\n\r\n00\r\n"));
    let answer = ask(&mut client, "HEAD /large", "");
    assert_eq!(header(&answer, "content-length"), size.to_string());
    assert!(program.terminate().success());
}

/// The most memory that the process has had, in MiB.
fn memory(program: &Program) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    kib / 1024
}

#[test]
fn a_client_that_takes_its_time_gets_all_and_does_not_fill_the_memory_behind_a_lurcher() {
    const SIZE: u64 = 160 * 1024 * 1024;
    let site = site();
    let mut file = fs::File::create(site.path().join("www/large")).unwrap();
    file.set_len(SIZE - 3).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"end").unwrap();
    servers::each("", |server| {
        let specs = [server.send.as_str(), server.recv.as_str()];
        let mut program = start(site.path(), specs, &[], server.directory());
        let mut client = Client::connect(server.address);
        client
            .send(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        client.upto(b"\r\n\r\n");
        // Meanwhile others are served.
        let mut other = Client::connect(server.address);
        for _ in 0..20 {
            assert_eq!(ask(&mut other, "GET /hello.txt", "").status, 200);
        }
        let used = memory(&program);
        // Nor does an end in the middle cut it off.
        program.signal("TERM");
        program.said("stopping", 1);
        let mut seen = 0;
        let mut last = Vec::new();
        while seen < SIZE {
            assert!(
                client.read_some(PATIENCE) && !client.ended(),
                "{seen} bytes"
            );
            let length = client.bytes().len();
            seen += u64::try_from(length).unwrap();
            last = client.take(length);
        }
        assert_eq!(seen, SIZE);
        assert!(last.ends_with(b"end"));
        // A Mongrel2 without flow control tells nothing of what a client has taken: there messages grow, and so does their queue.
        if server.kind == servers::Kind::Lurcher {
            assert!(used < 48, "{used} MiB");
        }
        assert!(program.ended().success());
    });
}

#[test]
fn a_directory_that_is_not_there_is_told_and_may_come() {
    let site = scratch();
    let front = Front::start("");
    let specs = [front.send.as_str(), front.recv.as_str()];
    let mut program = start(site.path(), specs, &[], front.directory());
    program.said("will answer 404", 1);
    let mut client = Client::connect(front.address);
    assert_eq!(ask(&mut client, "GET /a", "").status, 404);
    fs::create_dir(site.path().join("www")).unwrap();
    fs::write(site.path().join("www/a"), "here").unwrap();
    assert_eq!(text(&ask(&mut client, "GET /a", "")), "here");
    assert!(program.terminate().success());
    let mut program = Program::lurcher(&["run", "files", specs[0]], front.directory());
    assert_eq!(program.ended().code(), Some(2));
    program.said(
        "lurcher: running `files`: it needs to know what it works on: files:DIR",
        1,
    );
}
