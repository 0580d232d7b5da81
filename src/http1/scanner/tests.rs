//! What the scanner says, for every way to cut a reply.

use proptest::prelude::*;

use super::*;
use crate::http1::testing::every_split;

/// Bytes used, and everything the last call said but that.
type Outcome = (usize, ScanState, Option<u16>, u64, bool, bool);

fn run(mut scanner: Scanner, payloads: &[&[u8]]) -> Outcome {
    let mut used = 0;
    for payload in payloads {
        let scan = scanner.scan(payload);
        used += scan.consumed;
        assert_eq!(
            (scan.state, scan.status, scan.bytes, scan.head_seen),
            (
                scanner.state(),
                scanner.status(),
                scanner.bytes(),
                scanner.head_seen()
            )
        );
        assert!(scan.consumed == payload.len() || matches!(scan.state, ScanState::Ended { .. }));
    }
    (
        used,
        scanner.state(),
        scanner.status(),
        scanner.bytes(),
        scanner.head_seen(),
        scanner.is_until_close(),
    )
}

fn all_cuts(new: impl Fn() -> Scanner, reply: &[u8]) -> Outcome {
    let whole = run(new(), &[reply]);
    every_split(reply, |payloads| {
        assert_eq!(run(new(), payloads), whole, "{payloads:?}");
    });
    whole
}

const ENDED: ScanState = ScanState::Ended { close: false };
const CLOSE: ScanState = ScanState::Ended { close: true };

/// `rest`: what is left after the end of the response.
#[track_caller]
fn check(reply: &str, state: ScanState, status: Option<u16>, bytes: u64, rest: &str) {
    check_for(
        Asked::Other,
        Version::Http11,
        true,
        reply,
        state,
        status,
        bytes,
        rest,
    );
}

#[expect(clippy::too_many_arguments, reason = "a row of a table")]
#[track_caller]
fn check_for(
    asked: Asked,
    version: Version,
    keep_alive: bool,
    reply: &str,
    state: ScanState,
    status: Option<u16>,
    bytes: u64,
    rest: &str,
) {
    let outcome = all_cuts(
        || Scanner::new(asked, version, keep_alive),
        reply.as_bytes(),
    );
    assert_eq!(
        (outcome.1, outcome.2, outcome.3),
        (state, status, bytes),
        "{reply:?}"
    );
    assert_eq!(&reply.as_bytes()[outcome.0..], rest.as_bytes(), "{reply:?}");
}

#[test]
fn a_response_ends_where_its_framing_says() {
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ENDED,
        Some(200),
        5,
        "",
    );
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200",
        ENDED,
        Some(200),
        5,
        "HTTP/1.1 200",
    );
    check(
        "HTTP/1.1 404\r\ncontent-length:0\r\n\r\n",
        ENDED,
        Some(404),
        0,
        "",
    );
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        ScanState::Open,
        Some(200),
        3,
        "",
    );
    check(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n3;x\r\nabc\r\n0\r\nX: y\r\n\r\nmore",
        ENDED,
        Some(200),
        8,
        "more",
    );
    check(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        ENDED,
        Some(200),
        1,
        "",
    );
    check("HTTP/1.1 204 No\r\n\r\n", ENDED, Some(204), 0, "");
    check(
        "HTTP/1.1 304 No\r\nContent-Length: 7\r\n\r\n",
        ENDED,
        Some(304),
        0,
        "",
    );
}

#[test]
fn lines_may_end_in_lf() {
    check(
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nab",
        ENDED,
        Some(200),
        2,
        "",
    );
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nab",
        ENDED,
        Some(200),
        2,
        "",
    );
    check(
        "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nab\n0\n\n",
        ENDED,
        Some(200),
        2,
        "",
    );
}

#[test]
fn interim_responses_are_not_the_response() {
    check(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 201 Made\r\nContent-Length: 1\r\n\r\nx",
        ENDED,
        Some(201),
        1,
        "",
    );
    check(
        "HTTP/1.1 100 Continue\r\n\r\n",
        ScanState::Open,
        None,
        0,
        "",
    );
}

#[test]
fn another_protocol_is_switched_to() {
    check(
        "HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n\x01\x02",
        ScanState::Switched,
        Some(101),
        2,
        "",
    );
    check_for(
        Asked::Connect,
        Version::Http11,
        true,
        "HTTP/1.1 200 OK\r\n\r\nx",
        ScanState::Switched,
        Some(200),
        1,
        "",
    );
}

#[test]
fn an_answer_to_head_has_no_body() {
    let reply = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    check_for(
        Asked::Head,
        Version::Http11,
        true,
        reply,
        ENDED,
        Some(200),
        0,
        "hello",
    );
    let reply = "HTTP/1.1 200 OK\r\n\r\n";
    check_for(
        Asked::Head,
        Version::Http11,
        true,
        reply,
        ENDED,
        Some(200),
        0,
        "",
    );
}

#[test]
fn close_is_told_when_anybody_asks_for_it() {
    let plain = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    check_for(
        Asked::Other,
        Version::Http11,
        false,
        plain,
        CLOSE,
        Some(200),
        0,
        "",
    );
    check_for(
        Asked::Other,
        Version::Http10,
        false,
        plain,
        CLOSE,
        Some(200),
        0,
        "",
    );
    check_for(
        Asked::Other,
        Version::Http10,
        true,
        plain,
        ENDED,
        Some(200),
        0,
        "",
    );
    check(
        "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n",
        CLOSE,
        Some(200),
        0,
        "",
    );
    check(
        "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        CLOSE,
        Some(200),
        0,
        "",
    );
    check(
        "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n",
        ENDED,
        Some(200),
        0,
        "",
    );
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    check_for(
        Asked::Other,
        Version::Http10,
        true,
        chunks,
        CLOSE,
        Some(200),
        0,
        "",
    );
}

#[test]
fn unclear_framing_lasts_until_the_close() {
    for fields in [
        "",
        "Content-Length: x\r\n",
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: 1\r\nContent-Length: x\r\n",
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ] {
        let reply = format!("HTTP/1.1 200 OK\r\n{fields}\r\n123");
        let outcome = all_cuts(
            || Scanner::new(Asked::Other, Version::Http11, true),
            reply.as_bytes(),
        );
        assert_eq!(
            outcome,
            (reply.len(), ScanState::Open, Some(200), 3, true, true),
            "{reply:?}"
        );
    }
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
        ENDED,
        Some(200),
        2,
        "",
    );
    check(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nzz",
        ScanState::Open,
        Some(200),
        2,
        "",
    );
}

#[test]
fn what_is_not_http_is_opaque_at_once() {
    for raw in [
        "ICY 200 OK\r\n\r\nmp3",
        "m00 m01 ",
        "x",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.1 2xx",
        "HTTP/1.1 099 x\r\n\r\n",
        "HTTP/1.1 200OK\r\n\r\n",
    ] {
        check(raw, ScanState::Opaque, None, raw.len() as u64, "");
    }
    check("", ScanState::Open, None, 0, "");
    check("HTTP/1.1 2", ScanState::Open, None, 0, "");
}

#[test]
fn a_head_without_end_is_opaque_and_not_kept() {
    let mut scanner = Scanner::new(Asked::Other, Version::Http11, true);
    let line = format!("X: {}\r\n", "x".repeat(997));
    scanner.scan(b"HTTP/1.1 200 OK\r\n");
    let mut sent = 17_u64;
    for _ in 0..70 {
        assert_eq!(scanner.scan(line.as_bytes()).consumed, line.len());
        sent += line.len() as u64;
    }
    assert_eq!(
        (scanner.state(), scanner.bytes()),
        (ScanState::Opaque, sent)
    );
    assert!(matches!(scanner.state, State::Opaque));
}

#[test]
fn many_fields_are_read_too() {
    let fields = "X-Y: z\r\n".repeat(300);
    let reply = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 1\r\n\r\nxy");
    let scan = Scanner::new(Asked::Other, Version::Http11, true).scan(reply.as_bytes());
    assert_eq!((scan.consumed, scan.state), (reply.len() - 1, ENDED));
}

#[test]
fn odd_field_lines_do_not_hide_the_framing() {
    check(
        "HTTP/1.1 200 OK\r\nbad line\r\nX : a\r\n b\r\nContent-Length : 1\r\n\r\nx",
        ENDED,
        Some(200),
        1,
        "",
    );
}

#[test]
fn a_scanner_is_small() {
    assert!(size_of::<Scanner>() <= 48, "{}", size_of::<Scanner>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_reply_is_safe_and_cuts_do_not_matter(
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::sample::select(b"\r\n :0159aH/\0\xff,".to_vec())), 0..4),
        chunked in any::<bool>(),
        asked in prop::sample::select(vec![Asked::Head, Asked::Connect, Asked::Other]),
    ) {
        let mut bytes = if chunked {
            b"HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP".to_vec()
        } else {
            b"HTTP/1.1 200 OK\nContent-Length: 11\r\nConnection: close\n\nhello worldHTTP".to_vec()
        };
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        all_cuts(|| Scanner::new(asked, Version::Http11, true), &bytes);
    }
}

#[test]
fn a_whole_response_that_is_known_need_not_be_read() {
    for asked in [Asked::Head, Asked::Other] {
        let body = if asked == Asked::Head { "" } else { "hello" };
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}");
        let new = || Scanner::new(asked, Version::Http11, true);
        let (mut read, mut skipped) = (new(), new());
        let scan = read.scan(text.as_bytes());
        assert!(skipped.skip_whole(200, body.len() as u64));
        assert_eq!(skipped.state(), scan.state);
        assert_eq!(
            (skipped.status(), skipped.bytes()),
            (scan.status, scan.bytes)
        );
    }
}

#[test]
fn what_may_not_be_whole_has_to_be_read() {
    let new = |asked| Scanner::new(asked, Version::Http11, true);
    assert!(!new(Asked::Other).skip_whole(103, 0), "more follows");
    assert!(!new(Asked::Other).skip_whole(101, 0), "another protocol");
    assert!(!new(Asked::Connect).skip_whole(200, 0), "a tunnel");
    let mut begun = new(Asked::Other);
    begun.scan(b"HTTP/1.1 200 OK\r\nContent-");
    assert!(!begun.skip_whole(200, 0), "in the middle of another");
}
