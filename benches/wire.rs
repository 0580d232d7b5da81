//! Nanoseconds per message written or read by the wire codec, printed; nothing is asserted.
//!
//! Run it with `cargo bench --bench wire`. The machine should be idle; the best of several rounds is shown.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lurcher::wire::reply;
use lurcher::wire::request::{
    Field, NAMES_MAX, Outgoing, Request, VALUES_MAX, encode_body_prefix, encode_prefix,
};
use lurcher::wire::{ConnId, Protocol};

const BROWSER: [(&str, &str); 8] = [
    ("Host", "shop.example.com"),
    (
        "User-Agent",
        "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    ),
    (
        "Accept",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    ),
    ("Accept-Language", "en-GB,en;q=0.7,de;q=0.3"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    (
        "Referer",
        "https://shop.example.com/catalogue/shoes?page=2&sort=price",
    ),
    ("Connection", "keep-alive"),
    (
        "Cookie",
        "session=8f14e45fceea167a5a36dedd4bea2543; theme=dark; consent=1",
    ),
];

const CLIENT: [(&str, &str); 3] = [
    ("Host", "127.0.0.1:6767"),
    ("User-Agent", "wrk"),
    ("Accept", "*/*"),
];

const SERVER: [(&str, &[u8]); 9] = [
    ("PATH", b"/catalogue/shoes"),
    ("METHOD", b"GET"),
    ("VERSION", b"HTTP/1.1"),
    ("URI", b"/catalogue/shoes?page=3&sort=price"),
    ("QUERY", b"page=3&sort=price"),
    ("PATTERN", b"/catalogue/"),
    ("URL_SCHEME", b"http"),
    ("REMOTE_ADDR", b"192.0.2.17"),
    ("x-forwarded-for", b"192.0.2.17"),
];

fn fields<'a>(pairs: &[(&'a str, &'a str)]) -> Vec<Field<'a>> {
    let field = |(name, value): &(&'a str, &'a str)| Field {
        name: name.as_bytes(),
        value: value.as_bytes(),
    };
    pairs.iter().map(field).collect()
}

fn encode(protocol: Protocol, fields: &[Field<'_>], out: &mut Vec<u8>) {
    encode_prefix(
        b"81b7114c-534c-4107-9f17-b317cfd59f62",
        ConnId(1_234_567),
        out,
    );
    let outgoing = Outgoing {
        protocol,
        path: b"/catalogue/shoes",
        fields,
        server: &SERVER,
        names_max: NAMES_MAX,
        values_max: VALUES_MAX,
    };
    outgoing.encode_head(out);
    encode_body_prefix(0, out);
    out.push(b',');
}

/// Prints the best time of twenty rounds of about 10 ms.
#[expect(clippy::print_stdout, reason = "the result of the program")]
#[expect(
    clippy::cast_precision_loss,
    reason = "a printed figure of three digits"
)]
fn measure(what: &str, mut once: impl FnMut()) {
    let mut rounds = 1_u32;
    let per = loop {
        let start = Instant::now();
        (0..rounds).for_each(|_| once());
        let taken = start.elapsed();
        if taken > Duration::from_millis(10) {
            break rounds;
        }
        rounds = rounds.saturating_mul(2);
    };
    let round = |_| {
        let start = Instant::now();
        (0..per).for_each(|_| once());
        start.elapsed().as_nanos() as f64 / f64::from(per)
    };
    let best = (0..20).map(round).fold(f64::INFINITY, f64::min);
    println!("{what:<44} {best:8.1} ns");
}

fn main() {
    let browser = fields(&BROWSER);
    let client = fields(&CLIENT);
    let many: Vec<Field<'_>> = browser.iter().copied().cycle().take(200).collect();
    let mut latin1 = browser.clone();
    latin1.push(Field {
        name: b"X-Name",
        value: b"Andr\xe9 \"the\" M\xfcller",
    });
    let mut out = Vec::with_capacity(64 << 10);
    for protocol in [Protocol::Json, Protocol::Tnetstring] {
        for (what, fields) in [
            ("3 headers", &client),
            ("8 headers", &browser),
            ("9 headers, one escaped", &latin1),
            ("200 headers, repeated", &many),
        ] {
            measure(&format!("encode request, {protocol}, {what}"), || {
                out.clear();
                encode(black_box(protocol), black_box(fields), &mut out);
                black_box(&out);
            });
        }
        out.clear();
        encode(protocol, &browser, &mut out);
        let message = Bytes::from(out.clone());
        measure(&format!("decode request, {protocol}, 8 headers"), || {
            black_box(Request::decode(black_box(message.clone())).is_ok());
        });
    }
    for targets in [1, 100] {
        let ids: Vec<ConnId> = (0..targets).map(|id| ConnId(1_234_000 + id)).collect();
        let mut message = Vec::new();
        reply::encode(
            b"81b7114c-534c-4107-9f17-b317cfd59f62",
            &ids,
            &[b'x'; 200],
            &mut message,
        );
        measure(
            &format!("decode reply, {targets} ids, each looked at"),
            || {
                if let Ok(reply) = reply::decode(black_box(&message), reply::TARGETS_MAX) {
                    reply.targets.for_each(|id| {
                        black_box(id);
                    });
                    black_box(reply.payload);
                }
            },
        );
    }
}
