//! WebSocket connections as clients and handlers of a front see them: handlers that restart, stall or forget to close, clients that break
//! the rules or go away, and what the settings change. The handshakes and an echo end to end are in `websocket`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use flate2::{Decompress, FlushDecompress};

use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::front::Front;
use crate::support::handler::{ByHand, Got, QUIET};
use crate::support::peer::{address, reply};

const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A handshake; `more` are whole lines.
fn handshake(more: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX-Mine: yes\r\nX-Forged: \"FLAGS\":\"0x81\" 5:FLAGS,4:0x81,\r\nFLAGS: 0x88\r\n{more}\r\n"
    )
}

fn switch() -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    )
    .into_bytes()
}

/// A frame of a client.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [7, 9, 200, 33];
    let mut out = vec![first];
    match payload.len() {
        short @ 0..126 => out.push(0x80 | u8::try_from(short).unwrap()),
        medium @ 126..65_536 => {
            out.push(0xfe);
            out.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            out.push(0xff);
            out.extend((long as u64).to_be_bytes());
        }
    }
    out.extend(key);
    let masked = payload.iter().zip(key.iter().cycle());
    out.extend(masked.map(|(byte, key)| byte ^ key));
    out
}

/// A small frame of a server.
fn plain(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first, u8::try_from(payload.len()).expect("small")];
    out.extend_from_slice(payload);
    out
}

fn send(client: &mut Client, bytes: impl AsRef<[u8]>) {
    client.send(bytes.as_ref()).expect("send");
}

/// A client with an open WebSocket, and its id.
fn open(front: &Front, handler: &ByHand) -> (Client, String) {
    let mut client = Client::connect(front.address);
    send(&mut client, handshake(""));
    let got = handler.got();
    assert!(got.has(r#""METHOD":"WEBSOCKET_HANDSHAKE""#), "{got:?}");
    assert_eq!(got.body(), ACCEPT.as_bytes());
    handler.reply(&got.id, &switch());
    assert_eq!(client.answer().status, 101);
    (client, got.id)
}

/// Reads until exactly these bytes are here.
#[track_caller]
fn expect(client: &mut Client, bytes: &[u8]) {
    let end = Instant::now() + PATIENCE;
    while client.bytes().len() < bytes.len() && !client.ended() && Instant::now() < end {
        client.read_some(PATIENCE);
    }
    assert_eq!(
        client.bytes().escape_ascii().to_string(),
        bytes.escape_ascii().to_string()
    );
}

/// Reads until the end, which must come with exactly these bytes.
#[track_caller]
fn expect_end(client: &mut Client, bytes: &[u8]) {
    let end = Instant::now() + PATIENCE;
    while !client.ended() && Instant::now() < end {
        client.read_some(PATIENCE);
    }
    assert!(client.ended(), "not closed");
    expect(client, bytes);
}

#[track_caller]
fn is_frame(got: &Got, id: &str, flags: &str, body: &[u8]) {
    assert_eq!((got.id.as_str(), got.path.as_str()), (id, "/ws"), "{got:?}");
    let flags = format!(r#""FLAGS":"{flags}""#);
    assert!(got.has(&flags), "{flags}: {got:?}");
    assert_eq!(got.body(), body);
}

#[test]
fn frames_are_messages_with_the_headers_of_their_handshake() {
    let front = Front::start("");
    let handler = ByHand::of(&front);
    let (mut client, id) = open(&front, &handler);
    let frames = [
        frame(0x81, "grüß".as_bytes()),
        frame(0x02, b"ab"),
        frame(0x89, b"ping"),
        frame(0x80, b"cd"),
        frame(0x8a, b""),
    ]
    .concat();
    // Cut anywhere, they are the same.
    for byte in &frames {
        send(&mut client, [*byte]);
    }
    let text = handler.got();
    is_frame(&text, &id, "0x81", "grüß".as_bytes());
    for header in [
        r#""METHOD":"WEBSOCKET""#,
        r#""x-mine":"yes""#,
        r#""URI":"/ws""#,
        r#""PATTERN":"/""#,
        r#""sec-websocket-version":"13""#,
        r#""REMOTE_ADDR":"127.0.0.1""#,
    ] {
        assert!(text.has(header), "{header}: {text:?}");
    }
    is_frame(&handler.got(), &id, "0x89", b"ping");
    is_frame(&handler.got(), &id, "0x82", b"abcd");
    is_frame(&handler.got(), &id, "0x8A", b"");
    handler.reply(&id, &plain(0x81, b"one"));
    handler.reply(&id, &plain(0x81, b"two"));
    expect(&mut client, b"\x81\x03one\x81\x03two");
    drop(client);
    handler.told(&id);
    handler.told_nothing();
}

#[test]
fn a_websocket_outlives_the_restart_of_its_handler() {
    let front = Front::start("");
    let old = ByHand::of(&front);
    let (mut client, id) = open(&front, &old);
    send(&mut client, frame(0x81, b"before"));
    is_frame(&old.got(), &id, "0x81", b"before");
    drop(old);
    // Nobody is there: the messages wait, in the front or in the client's way to it.
    for number in 0..500 {
        send(&mut client, frame(0x81, format!("{number}").as_bytes()));
    }
    let new = ByHand::of(&front);
    // What the kernel had taken for the old one, before anybody could know that it is gone, is lost with it.
    let first = new.got();
    let lost: usize = str::from_utf8(first.body()).unwrap().parse().unwrap();
    assert!(lost < 250, "the first {lost}");
    for number in lost + 1..500 {
        is_frame(&new.got(), &id, "0x81", format!("{number}").as_bytes());
    }
    new.reply(&id, &plain(0x81, b"still here"));
    expect(&mut client, b"\x81\x0astill here");
    drop(client);
    new.told(&id);
}

#[test]
fn a_handler_that_closes_its_pull_passes_its_websockets_on() {
    let front = Front::start("");
    let old = ByHand::of(&front);
    let (mut client, id) = open(&front, &old);
    let new = ByHand::of(&front);
    new.peer.joined_pull();
    let publish = old.peer.close_pull();
    // The loss is seen before long, and then frames go to the other.
    let end = Instant::now() + PATIENCE;
    let got = loop {
        send(&mut client, frame(0x81, b"who?"));
        if let Some(got) = new.got_within(QUIET) {
            break got;
        }
        assert!(Instant::now() < end, "the other handler gets nothing");
    };
    is_frame(&got, &id, "0x81", b"who?");
    // The old one may still speak.
    publish
        .send(reply("app-ident", &id, &plain(0x81, b"bye")), 0)
        .expect("send");
    expect(&mut client, b"\x81\x03bye");
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "how much of it is taken is the question"
)]
fn a_slow_handler_slows_its_clients_down_and_fills_no_memory() {
    const MESSAGE: usize = 256 * 1024;
    let front = Front::start("");
    let context = zmq::Context::new();
    let publish = context.socket(zmq::XPUB).expect("a socket");
    publish.connect(&front.recv).expect("connect");
    assert_eq!(publish.recv_bytes(0).expect("a subscription"), b"\x01");
    let pull = context.socket(zmq::PULL).expect("a socket");
    pull.set_rcvhwm(1).expect("a mark");
    pull.set_rcvtimeo(10_000).expect("a timeout");
    pull.connect(&front.send).expect("connect");

    let mut client = TcpStream::connect(front.address).expect("connect");
    client.write_all(handshake("").as_bytes()).expect("send");
    let message = pull.recv_bytes(0).expect("a handshake");
    let id = address(&message).1.to_owned();
    publish
        .send(reply("app-ident", &id, &switch()), 0)
        .expect("send");
    let mut answer = [0; 4096];
    let read = client.read(&mut answer).expect("an answer");
    assert!(answer[..read].starts_with(b"HTTP/1.1 101"));

    // Until nothing is taken for a second.
    client
        .set_write_timeout(Some(Duration::from_secs(1)))
        .expect("a timeout");
    let whole = frame(0x82, &vec![b'x'; MESSAGE]);
    let (mut sent, mut left) = (0_usize, &whole[..]);
    loop {
        match client.write(left) {
            Ok(written) => left = &left[written..],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break;
            }
            Err(error) => panic!("{error}"),
        }
        if left.is_empty() {
            sent += 1;
            left = &whole;
        }
        assert!(sent * MESSAGE < 256 << 20, "the front takes everything");
    }
    assert!(sent > 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", front.program.id()))
        .expect("the status of the front");
    let resident: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
        .and_then(|kib| kib.parse().ok())
        .expect("VmRSS");
    assert!(resident < 64 << 10, "{resident} KiB");

    // It goes on where it stood.
    client.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    let rest = left.to_vec();
    let writer = std::thread::spawn(move || {
        client.write_all(&rest).expect("the rest");
        client.write_all(&frame(0x81, b"last")).expect("the last");
        client
    });
    for _ in 0..=sent {
        let message = pull.recv_bytes(0).expect("a message");
        assert!(message.ends_with(b"xxx,"), "a whole message");
    }
    assert!(pull.recv_bytes(0).expect("a message").ends_with(b"4:last,"));
    drop(writer.join().expect("no panic"));
}

#[test]
fn a_message_that_finds_no_handler_in_time_ends_its_websocket_with_1013() {
    let front = Front::start(", 'limits.handler_wait': 1");
    let handler = ByHand::of(&front);
    let (mut client, _) = open(&front, &handler);
    drop(handler);
    let end = Instant::now() + PATIENCE;
    while !client.ended() && Instant::now() < end {
        // The first may still go to the one that is gone.
        drop(client.send(&frame(0x81, b"hello?")));
        client.read_some(QUIET);
    }
    assert!(
        client.bytes().starts_with(b"\x88\x0c\x03\xf5"),
        "{:?}",
        client.bytes()
    );
}

#[test]
fn fragments_are_joined_up_to_the_bound() {
    let front = Front::start(", 'websocket.fragments': 1000");
    let handler = ByHand::of(&front);
    let (mut client, id) = open(&front, &handler);
    let message = |count: usize| {
        let mut frames = frame(0x02, b"a");
        (2..count).for_each(|_| frames.extend(frame(0, b"a")));
        frames.extend(frame(0x80, b"a"));
        frames
    };
    send(&mut client, message(1000));
    is_frame(&handler.got(), &id, "0x82", &[b'a'; 1000]);
    send(&mut client, message(1001));
    expect_end(
        &mut client,
        &plain(0x88, b"\x03\xf0message in too many fragments"),
    );
    handler.told(&id);
}

#[test]
fn a_message_above_the_bound_is_refused_before_it_comes() {
    let front = Front::start(", 'websocket.message_bytes': 1000");
    let handler = ByHand::of(&front);
    let (mut client, id) = open(&front, &handler);
    send(&mut client, frame(0x82, &[b'a'; 1000]));
    is_frame(&handler.got(), &id, "0x82", &[b'a'; 1000]);
    send(&mut client, &frame(0x82, &[b'a'; 1001])[..8]);
    expect_end(&mut client, &plain(0x88, b"\x03\xf1message too big"));
    handler.told(&id);
    handler.told_nothing();
}

#[test]
fn all_messages_together_are_bounded_too() {
    let front = Front::start(", 'websocket.held_bytes': 300000");
    let handler = ByHand::of(&front);
    let (mut one, first) = open(&front, &handler);
    let (mut two, second) = open(&front, &handler);
    let whole = frame(0x82, &vec![b'a'; 250_000]);
    send(&mut one, &whole[..200_000]);
    // A small one behind it passes, so the large one has been read.
    let (mut three, third) = open(&front, &handler);
    send(&mut three, frame(0x81, b"small"));
    is_frame(&handler.got(), &third, "0x81", b"small");
    // Its client may be told before it has sent all.
    drop(two.send(&whole[..200_000]));
    expect_end(
        &mut two,
        &plain(0x88, b"\x03\xf5too busy for a message of this size"),
    );
    handler.told(&second);
    send(&mut one, &whole[200_000..]);
    is_frame(&handler.got(), &first, "0x82", &vec![b'a'; 250_000]);
    // There is room again.
    send(&mut three, &whole);
    is_frame(&handler.got(), &third, "0x82", &vec![b'a'; 250_000]);
}

#[test]
fn clients_that_break_the_rules_are_told_by_which_code() {
    let front = Front::start("");
    let handler = ByHand::of(&front);
    for (bytes, code) in [
        (b"\x81\x02hi".to_vec(), 1002_u16),
        (frame(0xc1, b"hi"), 1002),
        (frame(0x83, b""), 1002),
        (frame(0x80, b""), 1002),
        (frame(0x09, b""), 1002),
        (frame(0x89, &[0; 126]), 1002),
        (frame(0x88, b"\x03"), 1002),
        (frame(0x88, b"\x03\xed"), 1002),
        (frame(0x88, b"\x03\xe8\xff"), 1007),
        (frame(0x81, b"\xc3\x28"), 1007),
        ([frame(0x01, b"a"), frame(0x81, b"b")].concat(), 1002),
    ] {
        let (mut client, id) = open(&front, &handler);
        send(&mut client, &bytes);
        let end = Instant::now() + PATIENCE;
        while !client.ended() && Instant::now() < end {
            client.read_some(PATIENCE);
        }
        let got = client.bytes();
        assert_eq!(got.first(), Some(&0x88), "{bytes:?}: {got:?}");
        assert_eq!(got[2..4], code.to_be_bytes(), "{bytes:?}");
        assert!(client.ended(), "{bytes:?}");
        handler.told(&id);
    }
    handler.told_nothing();
}

#[test]
fn a_close_that_both_sides_say_ends_the_connection_without_a_notice() {
    let front = Front::start("");
    let handler = ByHand::of(&front);
    // The client begins.
    let (mut client, id) = open(&front, &handler);
    send(&mut client, frame(0x88, b"\x03\xe8bye"));
    is_frame(&handler.got(), &id, "0x88", b"\x03\xe8bye");
    handler.reply(&id, b"\x88\x02\x03\xe8");
    handler.reply(&id, b"");
    expect_end(&mut client, b"\x88\x02\x03\xe8");
    // The handler begins, and lets go at once: what the client says then is for nobody, if it was seen first.
    let (mut client, id) = open(&front, &handler);
    handler.reply(&id, b"\x88\x02\x03\xe8\x81\x01x");
    handler.reply(&id, b"");
    expect(&mut client, b"\x88\x02\x03\xe8");
    send(&mut client, frame(0x81, b"late"));
    send(&mut client, frame(0x88, b"\x03\xe8"));
    expect_end(&mut client, b"\x88\x02\x03\xe8");
    while let Some(got) = handler.got_within(QUIET) {
        assert_eq!(got.path, "/ws", "no notice: {got:?}");
    }
    // Both at once.
    let (mut client, id) = open(&front, &handler);
    handler.reply(&id, b"\x88\x02\x03\xe9");
    send(&mut client, frame(0x88, b"\x03\xe8"));
    is_frame(&handler.got(), &id, "0x88", b"\x03\xe8");
    handler.reply(&id, b"");
    expect_end(&mut client, b"\x88\x02\x03\xe9");
    // The handler ends without a word, as Mongrel2's may.
    let (mut client, id) = open(&front, &handler);
    handler.reply(&id, b"");
    expect_end(&mut client, b"");
    handler.told_nothing();
}

#[test]
fn a_close_that_nobody_answers_is_answered_by_the_front() {
    let front = Front::start(", 'websocket.close_timeout': 1");
    let handler = ByHand::of(&front);
    let (mut client, id) = open(&front, &handler);
    send(&mut client, frame(0x88, b"\x0f\xa0mine"));
    is_frame(&handler.got(), &id, "0x88", b"\x0f\xa0mine");
    expect_end(&mut client, b"\x88\x02\x0f\xa0");
    handler.told(&id);
    // An answer without the empty payload is enough.
    let (mut client, id) = open(&front, &handler);
    send(&mut client, frame(0x88, b""));
    is_frame(&handler.got(), &id, "0x88", b"");
    handler.reply(&id, b"\x88\x00");
    expect_end(&mut client, b"\x88\x00");
    handler.told(&id);
    // A client that does not answer is not waited for.
    let (mut client, id) = open(&front, &handler);
    handler.reply(&id, b"\x88\x00");
    expect_end(&mut client, b"\x88\x00");
    handler.told(&id);
}

#[test]
fn pings_are_answered_by_the_front_where_the_setting_says_so() {
    let front = Front::start(", 'websocket.answer_pings': 1");
    let handler = ByHand::of(&front);
    let (mut client, id) = open(&front, &handler);
    send(&mut client, frame(0x89, b"hi"));
    expect(&mut client, b"\x8a\x02hi");
    // Not within a frame of the handler's.
    handler.reply(&id, b"\x81\x06abc");
    expect(&mut client, b"\x8a\x02hi\x81\x06abc");
    send(&mut client, frame(0x89, b"ho"));
    send(&mut client, frame(0x81, b"after the ping"));
    is_frame(&handler.got(), &id, "0x81", b"after the ping");
    handler.reply(&id, b"def");
    expect(&mut client, b"\x8a\x02hi\x81\x06abcdef\x8a\x02ho");
}

#[test]
fn silent_clients_are_pinged_where_the_setting_says_so() {
    let front = Front::start(", 'websocket.ping_interval': 1");
    let handler = ByHand::of(&front);
    let (mut lively, lively_id) = open(&front, &handler);
    let (mut silent, silent_id) = open(&front, &handler);
    for _ in 0..3 {
        let before = lively.bytes().len();
        while lively.bytes().len() < before + 9 {
            assert!(lively.read_some(PATIENCE) && !lively.ended(), "a ping");
        }
        send(&mut lively, frame(0x8a, b"lurcher"));
    }
    expect_end(&mut silent, b"\x89\x07lurcher");
    // The pongs were for the front.
    handler.told(&silent_id);
    // Who is in the middle of a long frame cannot say a pong, and need not.
    let long = frame(0x81, b"slowly");
    for byte in &long {
        send(&mut lively, [*byte]);
        std::thread::sleep(Duration::from_millis(350));
    }
    is_frame(&handler.got(), &lively_id, "0x81", b"slowly");
    send(&mut lively, frame(0x81, b"here"));
    is_frame(&handler.got(), &lively_id, "0x81", b"here");
}

#[test]
fn compression_is_between_the_front_and_the_client() {
    let front = Front::start(", 'websocket.deflate': 1");
    let handler = ByHand::of(&front);
    let mut client = Client::connect(front.address);
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    send(&mut client, handshake(offer));
    let got = handler.got();
    assert!(!got.has("extensions"), "{got:?}");
    let long = "a compressible text, ".repeat(20);
    let header = u16::try_from(long.len()).expect("medium").to_be_bytes();
    let whole = [&[0x81, 126], &header[..], long.as_bytes()].concat();
    // The first frame comes with the 101.
    handler.reply(&got.id, &[switch(), whole.clone()].concat());
    let answer = client.answer();
    assert_eq!(
        answer.header("sec-websocket-extensions"),
        Some(&b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"[..])
    );
    while client.bytes().len() < 2 {
        client.read_some(PATIENCE);
    }
    let size = usize::from(client.bytes()[1]);
    assert!(
        client.bytes()[0] == 0xc1 && size < 126,
        "{:?}",
        client.bytes()
    );
    while client.bytes().len() < 2 + size {
        client.read_some(PATIENCE);
    }
    let mut inflated = Vec::with_capacity(4096);
    let packed = [&client.bytes()[2..2 + size], &[0, 0, 0xff, 0xff][..]].concat();
    Decompress::new(false)
        .decompress_vec(&packed, &mut inflated, FlushDecompress::Sync)
        .expect("deflate");
    assert_eq!(inflated, long.as_bytes());
    // RFC 7692 7.2.3.1.
    send(&mut client, frame(0xc1, b"\xf2\x48\xcd\xc9\xc9\x07\x00"));
    let got = handler.got();
    is_frame(&got, &got.id, "0x81", b"Hello");
    assert!(!got.has("extensions"), "{got:?}");
    // Without an offer there is none.
    let (mut client, id) = open(&front, &handler);
    handler.reply(&id, &whole);
    expect(&mut client, &whole);
}

#[test]
fn a_front_that_stops_sends_its_websockets_away() {
    let mut front = Front::start("");
    let handler = ByHand::of(&front);
    let (mut client, id) = open(&front, &handler);
    front.program.signal("TERM");
    expect(&mut client, b"\x88\x02\x03\xe9");
    // What was on its way is still delivered.
    send(&mut client, frame(0x81, b"one more"));
    is_frame(&handler.got(), &id, "0x81", b"one more");
    send(&mut client, frame(0x88, b"\x03\xe9"));
    expect_end(&mut client, b"\x88\x02\x03\xe9");
    handler.told(&id);
    assert!(front.program.ended().success());
}

#[test]
fn a_handler_that_refuses_a_websocket_has_answered_a_request() {
    let front = Front::start("");
    let handler = ByHand::of(&front);
    let mut client = Client::connect(front.address);
    for _ in 0..2 {
        send(&mut client, handshake(""));
        let got = handler.got();
        handler.reply(
            &got.id,
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
        );
        assert_eq!(client.answer().status, 403);
    }
    send(&mut client, handshake(""));
    let got = handler.got();
    // The head may come in pieces, and frames right behind it.
    let (start, end) = switch()
        .split_at_checked(60)
        .map(|(a, b)| (a.to_vec(), b.to_vec()))
        .expect("long");
    handler.reply(&got.id, &start);
    handler.reply(&got.id, &[&end[..], b"\x81\x02hi"].concat());
    assert_eq!(client.answer().status, 101);
    expect(&mut client, b"\x81\x02hi");
    send(&mut client, frame(0x81, b"hello"));
    is_frame(&handler.got(), &got.id, "0x81", b"hello");
    let log = front.access_log();
    let end = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(&log)
        .expect("the log")
        .contains("3:101#")
    {
        assert!(Instant::now() < end, "the handshake is in the access log");
        std::thread::yield_now();
    }
}
