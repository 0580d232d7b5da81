//! A gigabyte in each direction leaves the front small, whatever the framing and however slow the other side.

use std::fs::{self, File};
use std::io::Write as _;

use super::{CHUNKED, HELLO, Handler, Stored, post, send};
use crate::support::client::{self, Client};
use crate::support::front::Front;
use crate::support::scratch;

const GIB: usize = 1 << 30;

/// What the front may have used at its peak, in KiB.
const MEMORY_MAX: u64 = 64 * 1024;

/// The most memory that a process has used, in KiB.
fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.expect("VmHWM").parse().expect("a number")
}

fn stays_small(front: &Front) {
    let peak = peak(front.program.id());
    println!("peak memory {} MiB", peak / 1024);
    assert!(peak < MEMORY_MAX, "{peak} KiB");
}

#[test]
fn a_stored_gigabyte_leaves_the_front_small() {
    let site = Stored::start("");
    let handler = site.handler();
    let block = vec![b'x'; 1 << 20];
    for chunked in [false, true] {
        let mut client = site.client();
        send(
            &mut client,
            if chunked {
                CHUNKED.to_owned()
            } else {
                post(GIB)
            },
        );
        let (start, file) = handler.started();
        let mut stream = client.stream();
        for _ in 0..GIB / block.len() {
            if chunked {
                stream.write_all(b"100000\r\n").unwrap();
            }
            stream.write_all(&block).unwrap();
            if chunked {
                stream.write_all(b"\r\n").unwrap();
            }
        }
        if chunked {
            stream.write_all(b"0\r\n\r\n").unwrap();
        }
        assert_eq!(handler.done(&start), file);
        assert_eq!(fs::metadata(&file).unwrap().len(), GIB as u64);
        fs::remove_file(&file).unwrap();
        handler.reply(&start, HELLO);
        client.answer();
        drop(client);
        handler.told(&start);
        stays_small(&site.front);
    }
}

#[test]
fn a_sent_gigabyte_leaves_the_front_small() {
    let base = scratch();
    let name = base.path().join("sparse").display().to_string();
    File::create(&name).unwrap().set_len(GIB as u64).unwrap();
    let front = Front::start(&format!(", 'sendfile.base': '{}'", base.path().display()));
    let handler = Handler::of(&front.send, &front.recv);
    let mut client = Client::connect(front.address);
    send(&mut client, "GET /file HTTP/1.1\r\nHost: a\r\n\r\n");
    let got = handler.got();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n");
    handler.reply(&got, head.as_bytes());
    let inner = format!("8:sendfile,{}:{name},", name.len());
    handler.control(&got, &format!("{}:{inner}]", inner.len()));
    let mut left = head.len() + GIB;
    let mut block = vec![0; 1 << 20];
    let mut stream = client.stream();
    while left > 0 {
        let read = client::read(&mut stream, &mut block).expect("more of the file");
        assert!(read > 0, "{left} bytes missing");
        left -= read;
    }
    stays_small(&front);
}
