//! Files that a handler names and the front sends: in order with what the handler sends itself, and none but the allowed ones.

use std::fs;

use lurcher::wire::request::{Kind, Request};

use super::{Handler, content, ended, send};
use crate::support::client::Client;
use crate::support::front::Front;
use crate::support::scratch;

const GET: &str = "GET /file HTTP/1.1\r\nHost: a\r\n\r\n";

fn send_file(handler: &Handler, to: &Request, name: &str) {
    let inner = format!("8:sendfile,{}:{name},", name.len());
    handler.control(to, &format!("{}:{inner}]", inner.len()));
}

fn head(length: usize) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

#[test]
fn a_file_goes_between_what_its_handler_sends_before_and_after_and_ends_the_response() {
    let base = scratch();
    let file = content(1_000_000);
    fs::write(base.path().join("data"), &file).unwrap();
    let name = base.path().join("data").display().to_string();
    let front = Front::start(&format!(", 'sendfile.base': '{}'", base.path().display()));
    let handler = Handler::of(&front.send, &front.recv);
    let mut client = Client::connect(front.address);
    send(&mut client, [GET, GET].concat());
    let got = handler.got();
    let length = 6 + file.len() + 5 + file.len();
    handler.reply(&got, &[&head(length), b"before".as_slice()].concat());
    send_file(&handler, &got, &name);
    handler.reply(&got, b"after");
    send_file(&handler, &got, &name);
    let answer = client.answer();
    assert!(answer.body == [b"before".as_slice(), &file, b"after", &file].concat());
    // The response has ended with the file: the next request is handed over. What is left of a file that is longer than its
    // response says reaches nobody.
    let got = handler.got();
    assert_eq!(&got.path[..], b"/file");
    handler.reply(&got, &head(600_000));
    send_file(&handler, &got, &name);
    assert!(client.answer().body == file[..600_000]);
    send(&mut client, GET);
    let got = handler.got();
    handler.reply(&got, &head(0));
    assert_eq!(client.answer().body, b"");
    assert_eq!(client.bytes(), b"");
    // Close stands behind a file as behind any payload.
    send(&mut client, GET);
    let got = handler.got();
    handler.reply(&got, b"HTTP/1.1 200 OK\r\n\r\n");
    send_file(&handler, &got, &name);
    handler.reply(&got, b"");
    let all = ended(&mut client);
    assert!(all.ends_with(&file));
}

#[test]
fn what_cannot_or_may_not_be_sent_drops_the_connection_with_a_notice() {
    let (directory, elsewhere) = (scratch(), scratch());
    let base = directory.path().join("base");
    for name in ["base", "base-secret"] {
        fs::create_dir(directory.path().join(name)).unwrap();
        fs::write(directory.path().join(name).join("file"), "secret").unwrap();
    }
    std::os::unix::fs::symlink(elsewhere.path(), base.join("link")).unwrap();
    fs::write(elsewhere.path().join("file"), "secret").unwrap();
    let front = Front::start(&format!(", 'sendfile.base': '{}'", base.display()));
    let handler = Handler::of(&front.send, &front.recv);
    let base = base.display();
    for name in [
        format!("{base}/missing"),
        format!("{base}"),
        format!("{base}-secret/file"),
        format!("{base}/../base-secret/file"),
        format!("{base}/link/file"),
        "/etc/passwd".to_owned(),
        String::new(),
    ] {
        let mut client = Client::connect(front.address);
        send(&mut client, GET);
        let got = handler.got();
        handler.reply(&got, &head(6));
        send_file(&handler, &got, &name);
        assert_eq!(ended(&mut client), head(6), "{name}");
        handler.told(&got);
    }
}

#[test]
fn without_a_base_nothing_is_sent_and_the_log_says_which_setting_allows_it() {
    let mut front = Front::start("");
    let handler = Handler::of(&front.send, &front.recv);
    let mut client = Client::connect(front.address);
    send(&mut client, GET);
    let got = handler.got();
    send_file(&handler, &got, "/etc/passwd");
    assert_eq!(ended(&mut client), b"");
    assert_eq!(handler.got().kind(), Kind::Disconnect);
    front.program.line("the setting", |line| {
        line.contains("sendfile.base").then_some(())
    });
}
