//! Bodies that do not come with the request: stored in a file by the server, or sent in parts.

use std::fs;

use super::{HELLO, QUIET};
use super::{asks, body, head, says, with_backend};
use crate::support::servers::Kind;

const LENGTH: usize = 300_000;

fn post() -> String {
    format!("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: {LENGTH}\r\n\r\n")
}

fn bytes() -> Vec<u8> {
    (0..=250_u8).cycle().take(LENGTH).collect()
}

/// Fails where bytes are not those that were sent, and says from where on.
#[track_caller]
fn same(seen: &[u8], sent: &[u8]) {
    assert_eq!(seen.len(), sent.len());
    let differs = seen.iter().zip(sent).position(|(one, other)| one != other);
    if let Some(at) = differs {
        let end = sent.len().min(at + 16);
        panic!(
            "from byte {at} on: {:?} in place of {:?}",
            &seen[at..end],
            &sent[at..end]
        );
    }
}

#[test]
fn a_stored_body_is_sent_and_its_file_removed() {
    let folder = crate::support::scratch();
    let store = folder.path().join("up.XXXXXX").display().to_string();
    let settings = format!(", 'limits.content_length': 5000, 'upload.temp_store': '{store}'");
    with_backend(&settings, &[], |server, backend, _| {
        let mut client = asks(server, &post());
        client.send(&bytes()).unwrap();
        let mut connection = backend.accept();
        let head = head(&mut connection);
        assert!(
            head.contains(&format!("\ncontent-length: {LENGTH}\n")),
            "{head}"
        );
        assert!(!head.contains("upload"), "{head}");
        same(&body(&mut connection, LENGTH), &bytes());
        says(&mut connection, HELLO);
        assert_eq!(client.answer().body, b"hello");
        while fs::read_dir(folder.path()).unwrap().next().is_some() {
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_streamed_body_flows_as_the_backend_reads_it() {
    let settings = ", 'limits.content_length': 5000, 'upload.stream': 1";
    with_backend(settings, &[], |server, backend, _| {
        let mut client = asks(server, &post());
        let bytes = bytes();
        let (early, late) = bytes.split_at(100_000);
        client.send(early).unwrap();
        let mut connection = backend.accept();
        let head = head(&mut connection);
        assert!(
            head.contains(&format!("\ncontent-length: {LENGTH}\n")),
            "{head}"
        );
        same(&body(&mut connection, 50_000), &early[..50_000]);
        client.send(late).unwrap();
        same(&body(&mut connection, LENGTH - 50_000), &bytes[50_000..]);
        says(&mut connection, HELLO);
        assert_eq!(client.answer().body, b"hello");
    });
}

#[test]
fn a_client_that_leaves_within_its_body_takes_the_request_along() {
    let settings = ", 'limits.content_length': 5000, 'upload.stream': 1";
    with_backend(settings, &["--timeout", "1"], |server, backend, _| {
        let mut client = asks(server, &post());
        client.send(&bytes()[..5000]).unwrap();
        let mut connection = backend.accept();
        head(&mut connection);
        body(&mut connection, 4000);
        // A slow client is not a silent backend.
        assert!(!connection.read_some(QUIET * 6) || !connection.ended());
        drop(client);
        let rest = connection.rest();
        assert!(rest.len() <= 1000, "{}", rest.len());
    });
}

#[test]
fn a_body_that_streams_when_the_handler_is_told_to_stop_is_passed_on_to_its_end() {
    let settings = ", 'limits.content_length': 5000, 'upload.stream': 1";
    with_backend(settings, &[], |server, backend, program| {
        let mut client = asks(server, &post());
        let bytes = bytes();
        let (early, late) = bytes.split_at(5_000);
        client.send(early).unwrap();
        let mut connection = backend.accept();
        head(&mut connection);
        assert!(body(&mut connection, early.len()) == early);
        program.signal("TERM");
        program.said("stopping", 1);
        assert!(connection.is_silent(QUIET));
        client.send(late).unwrap();
        if server.kind == Kind::Lurcher {
            assert!(body(&mut connection, late.len()) == late);
            says(&mut connection, HELLO);
            assert_eq!(client.answer().body, b"hello");
        } else {
            // What it says of a request goes to any handler, and there is none.
            drop(connection);
        }
        assert!(program.ended().success(), "{program}");
    });
}
