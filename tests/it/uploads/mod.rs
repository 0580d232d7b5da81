//! Request bodies too large for one message, as clients, handlers and the disk see them: stored in files here, streamed in
//! `streamed`, a gigabyte of either in `large`; and files that handlers have sent, in `sendfile`.

mod large;
mod sendfile;
mod streamed;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lurcher::wire::request::{Kind, Request};

use crate::support::client::Client;
use crate::support::front::{Front, conf};
use crate::support::peer::{Peer, Replies};
use crate::support::program::Program;
use crate::support::{PATIENCE, free_port, scratch};

/// Nothing more comes for so long: then nothing is taken to come.
const QUIET: Duration = Duration::from_millis(300);

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A front that stores bodies above 100 bytes, and where.
struct Stored {
    front: Front,
    store: tempfile::TempDir,
}

impl Stored {
    fn start(settings: &str) -> Self {
        let store = scratch();
        let front = Front::start(&stored_in(store.path(), settings));
        Self { front, store }
    }

    fn handler(&self) -> Handler {
        Handler::of(&self.front.send, &self.front.recv)
    }

    fn client(&self) -> Client {
        Client::connect(self.front.address)
    }

    /// Waits until the store has so many files.
    fn holds(&self, count: usize) {
        holds(self.store.path(), count);
    }
}

fn stored_in(store: &Path, settings: &str) -> String {
    format!(
        ", 'limits.content_length': 100, 'upload.temp_store': '{}/u.XXXXXX'{settings}",
        store.display()
    )
}

fn holds(store: &Path, count: usize) {
    let end = Instant::now() + PATIENCE;
    loop {
        let files: Vec<_> = fs::read_dir(store).expect("the store").collect();
        if files.len() == count {
            return;
        }
        assert!(Instant::now() < end, "{count} wanted: {files:?}");
        std::thread::yield_now();
    }
}

/// A handler that is used by hand.
struct Handler {
    peer: Peer,
}

impl Handler {
    fn of(send: &str, recv: &str) -> Self {
        let peer = Peer::connect(send, recv, Replies::Xpub);
        peer.joined();
        Self { peer }
    }

    fn got_within(&self, wait: Duration) -> Option<Request> {
        let message = self.peer.recv(wait)?;
        Some(Request::decode(Bytes::from(message)).expect("a message"))
    }

    fn got(&self) -> Request {
        self.got_within(PATIENCE).expect("a message")
    }

    /// The next message announces an upload: its connection and file.
    fn started(&self) -> (Request, PathBuf) {
        let got = self.got();
        let Kind::UploadStart { file } = got.kind() else {
            panic!("no start of an upload: {got:?}");
        };
        let file = PathBuf::from(std::str::from_utf8(file).expect("UTF-8"));
        (got, file)
    }

    /// The next message says that the upload is complete.
    fn done(&self, start: &Request) -> PathBuf {
        let got = self.got();
        let Kind::UploadDone { file } = got.kind() else {
            panic!("not the end of an upload: {got:?}");
        };
        assert_eq!((got.conn_id, &got.path), (start.conn_id, &start.path));
        PathBuf::from(std::str::from_utf8(file).expect("UTF-8"))
    }

    fn told(&self, of: &Request) {
        let got = self.got();
        assert_eq!(got.kind(), Kind::Disconnect, "{got:?}");
        assert_eq!(got.conn_id, of.conn_id);
    }

    fn told_nothing(&self) {
        if let Some(more) = self.got_within(QUIET) {
            panic!("one message too many: {more:?}");
        }
    }

    fn reply(&self, to: &Request, payload: &[u8]) {
        self.peer
            .reply("app-ident", &to.conn_id.0.to_string(), payload);
    }

    /// Sends a `ctl` command, or another extended reply.
    fn control(&self, to: &Request, payload: &str) {
        let ids = format!("X {}", to.conn_id.0);
        self.peer.reply("app-ident", &ids, payload.as_bytes());
    }

    fn cancel(&self, to: &Request) {
        self.control(to, "23:3:ctl,13:6:cancel,1:1#}]");
    }

    fn grant(&self, to: &Request, credits: i64) {
        let credits = credits.to_string();
        let inner = format!("7:credits,{}:{credits}#", credits.len());
        let inner = format!("3:ctl,{}:{inner}}}", inner.len());
        self.control(to, &format!("{}:{inner}]", inner.len()));
    }
}

fn send(client: &mut Client, bytes: impl AsRef<[u8]>) {
    client.send(bytes.as_ref()).expect("send");
}

fn post(length: usize) -> String {
    format!("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
}

const CHUNKED: &str = "POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Bytes that are not the same anywhere.
fn content(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

fn ended(client: &mut Client) -> Vec<u8> {
    let end = Instant::now() + PATIENCE;
    while !client.ended() {
        assert!(Instant::now() < end, "not closed");
        client.read_some(PATIENCE);
    }
    client.bytes().to_vec()
}

#[test]
fn a_large_body_is_announced_stored_and_announced_again_and_what_follows_is_the_next_request() {
    let site = Stored::start(", 'upload.temp_store_mode': '0640'");
    let (handler, mut client) = (site.handler(), site.client());
    let body = content(300_000);
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    let (first, rest) = body.split_at(10);
    send(&mut client, [post(body.len()).as_bytes(), first].concat());
    // It is announced before it has come.
    let (start, file) = handler.started();
    assert_eq!(start.headers.first("content-length"), Some(&b"300000"[..]));
    assert_eq!(start.headers.first("METHOD"), Some(&b"POST"[..]));
    assert!(start.body.is_empty());
    assert_eq!(file.parent(), Some(site.store.path()));
    send(&mut client, [rest, next.as_bytes()].concat());
    assert_eq!(handler.done(&start), file);
    assert_eq!(fs::read(&file).unwrap(), body);
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
    handler.told_nothing();
    handler.reply(&start, HELLO);
    assert_eq!(client.answer().body, b"hello");
    let got = handler.got();
    assert_eq!((&got.path[..], got.kind()), (&b"/next"[..], Kind::Http));
    handler.reply(&got, HELLO);
    client.answer();
    drop(client);
    handler.told(&got);
    // Finished, it is the handler's.
    assert_eq!(fs::read(&file).unwrap(), body);
}

#[test]
fn a_body_that_fits_one_message_is_no_upload_unless_it_is_chunked() {
    let site = Stored::start("");
    let (handler, mut client) = (site.handler(), site.client());
    send(&mut client, post(100) + &"x".repeat(100));
    let got = handler.got();
    assert_eq!((got.kind(), got.body.len()), (Kind::Http, 100));
    handler.reply(&got, HELLO);
    client.answer();
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    send(
        &mut client,
        format!("{CHUNKED}3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: t\r\n\r\n{next}"),
    );
    let (start, file) = handler.started();
    assert_eq!(handler.done(&start), file);
    assert_eq!(fs::read(&file).unwrap(), b"abcde");
    handler.reply(&start, HELLO);
    client.answer();
    assert_eq!(&handler.got().path[..], b"/next");
}

#[test]
fn a_client_that_waits_for_leave_gets_it_when_there_is_a_file() {
    let site = Stored::start("");
    let (handler, mut client) = (site.handler(), site.client());
    let head = post(1000).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    send(&mut client, head);
    assert_eq!(client.answer().status, 100);
    let (start, _) = handler.started();
    send(&mut client, content(1000));
    handler.done(&start);
    handler.reply(&start, HELLO);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn a_handler_gives_an_upload_up_by_closing_cancelling_or_a_last_answer() {
    let site = Stored::start("");
    let handler = site.handler();
    let refusal = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";
    for how in ["close", "cancel", "answer", "answer and close"] {
        let mut client = site.client();
        send(&mut client, post(1000) + "begun");
        let (start, file) = handler.started();
        assert!(file.exists());
        match how {
            "close" => handler.reply(&start, b""),
            "cancel" => handler.cancel(&start),
            "answer" => handler.reply(&start, refusal),
            _ => {
                handler.reply(&start, HELLO);
                handler.reply(&start, b"");
            }
        }
        let got = ended(&mut client);
        match how {
            "answer" => assert_eq!(got, refusal),
            "answer and close" => assert_eq!(got, HELLO),
            _ => assert_eq!(got, b"", "{how}"),
        }
        site.holds(0);
        // It knows of an end that it asked for; one that HTTP asked for is told.
        if how == "answer" {
            handler.told(&start);
        }
        handler.told_nothing();
    }
}

#[test]
fn an_answer_before_the_end_reaches_the_client_at_once_and_does_not_stop_the_upload() {
    let site = Stored::start("");
    let (handler, mut client) = (site.handler(), site.client());
    send(&mut client, post(1000) + "begun");
    let (start, file) = handler.started();
    handler.reply(&start, HELLO);
    assert_eq!(client.answer().body, b"hello");
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    send(&mut client, "x".repeat(995) + next);
    assert_eq!(handler.done(&start), file);
    assert_eq!(fs::read(&file).unwrap().len(), 1000);
    let got = handler.got();
    assert_eq!(&got.path[..], b"/next");
    handler.reply(&got, HELLO);
    assert_eq!(client.answer().body, b"hello");
    site.holds(1);
}

#[test]
fn a_client_that_leaves_takes_its_file_with_it_and_its_handler_is_told() {
    let site = Stored::start("");
    let (handler, mut client) = (site.handler(), site.client());
    send(
        &mut client,
        [post(1_000_000).as_bytes(), &content(400_000)].concat(),
    );
    let (start, _) = handler.started();
    drop(client);
    handler.told(&start);
    site.holds(0);
    handler.told_nothing();
}

#[test]
fn what_is_no_body_or_too_slow_or_too_large_is_answered_and_leaves_no_file() {
    let site = Stored::start(
        ", 'limits.upload_bytes': 5000, 'limits.body_grace': 1, 'limits.body_rate': 100000",
    );
    let handler = site.handler();
    let chunk = format!("{CHUNKED}1389\r\n{}\r\n", "x".repeat(0x1389));
    for (request, status) in [
        (format!("{CHUNKED}3\r\nabcd\r\n"), 400),
        (chunk, 413),
        (post(1000) + "slow", 408),
    ] {
        let mut client = site.client();
        send(&mut client, &request);
        let answer = client.answer();
        assert_eq!(answer.status, status, "{request:.80}");
        assert_eq!(ended(&mut client), b"");
        // Where the body was refused before its file was there, nobody has heard of it.
        if let Some(start) = handler.got_within(QUIET) {
            assert!(
                matches!(start.kind(), Kind::UploadStart { .. }),
                "{start:?}"
            );
            handler.told(&start);
        }
        site.holds(0);
    }
    // A length that says so is refused at once.
    let mut client = site.client();
    send(&mut client, post(5001));
    assert_eq!(client.answer().status, 413);
    handler.told_nothing();
}

#[test]
fn an_upload_that_no_handler_takes_is_answered_503_and_leaves_no_file() {
    let site = Stored::start(", 'limits.handler_wait': 1");
    let mut client = site.client();
    send(&mut client, post(1000) + &"x".repeat(1000));
    site.holds(1);
    assert_eq!(client.answer().status, 503);
    site.holds(0);
}

#[test]
fn an_upload_waits_for_a_handler_as_any_request_and_reaches_it_in_order() {
    let site = Stored::start("");
    let mut client = site.client();
    send(&mut client, post(1000) + &"x".repeat(1000));
    site.holds(1);
    let handler = site.handler();
    let (start, file) = handler.started();
    assert_eq!(handler.done(&start), file);
    handler.reply(&start, HELLO);
    assert_eq!(client.answer().status, 200);
    assert!(file.exists());
}

#[test]
fn when_the_handler_is_lost_before_the_end_another_gets_the_whole_upload() {
    let site = Stored::start("");
    let (first, mut client) = (site.handler(), site.client());
    send(&mut client, post(1000) + "begun");
    let (start, file) = first.started();
    drop(first);
    let second = site.handler();
    let (again, same) = second.started();
    assert_ne!(again.conn_id, start.conn_id, "a fresh id");
    assert_eq!(same, file);
    send(&mut client, "x".repeat(995));
    assert_eq!(second.done(&again), file);
    // Now it is a POST that a handler has acted on, perhaps: it is not told twice, and the file is not the front's.
    drop(second);
    assert_eq!(client.answer().status, 502);
    site.holds(1);
}

#[test]
fn a_store_that_is_not_there_is_507() {
    let store = scratch();
    let front = Front::start(&stored_in(&store.path().join("missing"), ""));
    let handler = Handler::of(&front.send, &front.recv);
    let mut client = Client::connect(front.address);
    send(&mut client, post(1000) + "begun");
    assert_eq!(client.answer().status, 507);
    assert_eq!(ended(&mut client), b"");
    handler.told_nothing();
}

/// An upload of 1 MB to a place that has room for less.
fn fails_for_want_of_room(program: &mut Program, store: &Path, send_spec: &str, recv: &str) {
    let address = program.listening();
    let handler = Handler::of(send_spec, recv);
    for framing in [post(1_000_000), format!("{CHUNKED}f4240\r\n")] {
        let mut client = Client::connect(address);
        send(&mut client, framing);
        let (start, _) = handler.started();
        // It is answered while it is being sent, and may be reset by that.
        let _sent = client.send(&content(1_000_000));
        assert_eq!(client.answer().status, 507);
        handler.told(&start);
        holds(store, 0);
    }
    assert!(program.alive());
    handler.told_nothing();
}

#[test]
fn a_limit_on_file_sizes_is_507_and_the_front_lives() {
    let (directory, store) = (scratch(), scratch());
    let [send, recv] = [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    let config = conf(
        directory.path(),
        0,
        &send,
        &recv,
        &stored_in(store.path(), ""),
    );
    // 512 or 1024 bytes each.
    let line = format!(
        "ulimit -f 500; exec {} serve {}",
        env!("CARGO_BIN_EXE_lurcher"),
        config.display()
    );
    let mut program = Program::start(
        Command::new("sh")
            .args(["-c", &line])
            .current_dir(directory.path()),
    );
    fails_for_want_of_room(&mut program, store.path(), &send, &recv);
}

/// Unmounts when the test is over, however.
struct Mounted<'a>(&'a Path);
impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0).status());
    }
}

#[test]
fn a_full_disk_is_507_and_the_front_lives() {
    let (directory, store) = (scratch(), scratch());
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(store.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skipped: a small file system cannot be mounted here");
        return;
    }
    let _mounted = Mounted(store.path());
    let [send, recv] = [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    let config = conf(
        directory.path(),
        0,
        &send,
        &recv,
        &stored_in(store.path(), ""),
    );
    let config = config.to_str().expect("UTF-8");
    let mut program = Program::lurcher(&["serve", config], directory.path());
    fails_for_want_of_room(&mut program, store.path(), &send, &recv);
}

#[test]
fn names_are_told_as_configured_and_files_are_inside_the_chroot() {
    let directory = scratch();
    let jail = directory.path().join("jail");
    fs::create_dir_all(jail.join("up")).unwrap();
    let [send_spec, recv] =
        [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
    let settings = ", 'limits.content_length': 100, 'upload.temp_store': '/up/u.XXXXXX'";
    let config = conf(directory.path(), 0, &send_spec, &recv, settings);
    let here = directory.path().display().to_string();
    let text = fs::read_to_string(&config).unwrap();
    let text = text
        .replace("chroot=''", &format!("chroot='{here}/jail'"))
        .replace(&format!("_log='{here}/"), "_log='/")
        .replace(&format!("ipc://{here}/"), "ipc:///")
        .replace(&format!("pid_file='{here}/"), "pid_file='/");
    fs::write(&config, text).unwrap();
    let mut program = Program::lurcher(&["serve", "main.conf"], directory.path());
    let address = program.listening();
    let handler = Handler::of(&send_spec, &recv);
    let mut client = Client::connect(address);
    send(&mut client, post(1000) + &"x".repeat(1000));
    let (start, file) = handler.started();
    assert_eq!(file.parent(), Some(Path::new("/up")));
    handler.done(&start);
    let inside = jail.join("up").join(file.file_name().unwrap());
    assert_eq!(fs::read(inside).unwrap().len(), 1000);
    handler.reply(&start, HELLO);
    client.answer();
    // One line in the log, of its response.
    drop(client);
    handler.told(&start);
    program.terminate();
    let log = fs::read_to_string(jail.join("access.log")).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(
        log.ends_with("4:POST,3:/up,8:HTTP/1.1,3:200#1:5#]\n"),
        "{log}"
    );
}

#[test]
fn curl_and_pythons_client_upload_files() {
    let site = Stored::start("");
    let handler = site.handler();
    let body = content(5_000_000);
    let directory = scratch();
    let path = directory.path().join("file");
    fs::write(&path, &body).unwrap();
    let (path, url) = (
        path.to_str().unwrap(),
        format!("http://{}/up", site.front.address),
    );
    let script = "import http.client, sys\n\
        host, path = sys.argv[1].split('/')[2], sys.argv[2]\n\
        connection = http.client.HTTPConnection(host, timeout=10)\n\
        for headers in ({}, {'Content-Length': '5000000'}):\n\
        \x20   connection.request('POST', '/up', body=open(path, 'rb'), headers=headers)\n\
        \x20   print(connection.getresponse().read().decode(), end=' ')\n";
    let mut curl = Command::new("curl");
    curl.args(["-s", "-S", "-m", "20", "-T", path, &url]);
    let mut chunks = Command::new("curl");
    chunks.args([
        "-s",
        "-S",
        "-m",
        "20",
        "-H",
        "Transfer-Encoding: chunked",
        "-T",
        path,
        &url,
    ]);
    let mut python = Command::new("python3");
    python.args(["-c", script, &url, path]);
    for (mut command, uploads, says) in [
        (curl, 1, "5000000"),
        (chunks, 1, "5000000"),
        (python, 2, "5000000 5000000 "),
    ] {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdout(std::process::Stdio::piped()).spawn();
        let Ok(child) = child else {
            println!("skipped: {name} is not installed");
            continue;
        };
        for _ in 0..uploads {
            assert!(answers_one(&handler) == body, "{name}: another body");
        }
        let output = child.wait_with_output().expect("its end");
        assert_eq!(String::from_utf8_lossy(&output.stdout), says, "{name}");
    }
}

#[test]
fn a_front_that_stops_lets_an_upload_end_and_one_told_twice_leaves_no_file() {
    for twice in [false, true] {
        let mut site = Stored::start("");
        let (handler, mut client) = (site.handler(), site.client());
        send(&mut client, post(1000) + "begun");
        let (start, file) = handler.started();
        site.front.program.signal("TERM");
        site.front
            .program
            .line("draining", |line| line.contains("draining").then_some(()));
        if twice {
            site.front.program.signal("TERM");
            assert!(site.front.program.ended().success());
            site.holds(0);
        } else {
            send(&mut client, "x".repeat(995));
            assert_eq!(handler.done(&start), file);
            handler.reply(&start, HELLO);
            assert_eq!(client.answer().status, 200);
            assert!(site.front.program.ended().success());
            site.holds(1);
        }
    }
}

/// Answers one upload with the number of its bytes; notices of clients before it are left aside.
fn answers_one(handler: &Handler) -> Vec<u8> {
    loop {
        let got = handler.got();
        if let Kind::UploadDone { file } = got.kind() {
            let stored = fs::read(std::str::from_utf8(file).expect("UTF-8")).unwrap();
            let body = stored.len().to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            handler.reply(&got, (head + &body).as_bytes());
            return stored;
        }
    }
}
