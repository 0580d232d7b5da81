//! A worker that takes its time: one request after the other, each for as long as it is told, the answer always the same.

use std::time::{Duration, Instant};

use crate::idle::BODY;

/// `worker MICROSECONDS SLOTS SEND RECV`: takes requests from a pair of sockets until it is killed. `worker MICROSECONDS SLOTS
/// WORKERS`: from a broker, in its own dialect; SLOTS may be `none`.
pub(crate) fn main(mut words: impl Iterator<Item = String>) -> Result<(), String> {
    let (Some(time), Some(slots), Some(first)) = (words.next(), words.next(), words.next()) else {
        return Err("usage: worker MICROSECONDS SLOTS (SEND RECV | WORKERS)".to_owned());
    };
    let time = time.parse().map_err(|error| format!("{time}: {error}"))?;
    let time = Duration::from_micros(time);
    match words.next() {
        Some(recv) => plain(time, &first, &recv).map_err(|error| format!("{first}: {error}")),
        None => own(time, slots.strip_prefix("none").unwrap_or(&slots), &first)
            .map_err(|error| format!("{first}: {error}")),
    }
}

fn plain(time: Duration, send: &str, recv: &str) -> zmq::Result<()> {
    let context = zmq::Context::new();
    let pull = context.socket(zmq::PULL)?;
    let publish = context.socket(zmq::PUB)?;
    for socket in [&pull, &publish] {
        socket.set_linger(0)?;
        socket.set_rcvhwm(0)?;
        socket.set_sndhwm(0)?;
    }
    publish.connect(recv)?;
    pull.connect(send)?;
    let mut message = zmq::Message::new();
    let mut reply = Vec::new();
    loop {
        pull.recv(&mut message, 0)?;
        if answer(&message, time, &mut reply) {
            publish.send(&reply, 0)?;
        }
    }
}

fn own(time: Duration, slots: &str, workers: &str) -> zmq::Result<()> {
    let context = zmq::Context::new();
    let dealer = context.socket(zmq::DEALER)?;
    dealer.set_linger(0)?;
    dealer.set_rcvhwm(0)?;
    dealer.set_sndhwm(0)?;
    dealer.connect(workers)?;
    // Version, name, slots, weight, pool.
    let slots = slots.as_bytes();
    dealer.send_multipart([&b"HELLO"[..], b"1", b"", slots, b"1", b""], 0)?;
    let mut reply = Vec::new();
    let mut answered = 0_u64;
    loop {
        let frames = dealer.recv_multipart(0)?;
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        match frames[..] {
            [b"REQUEST", number, _, _, message] => {
                dealer.send_multipart([&b"FIRST"[..], number], 0)?;
                let begin = Instant::now();
                if answer(message, time, &mut reply) {
                    dealer.send_multipart([&b"REPLY"[..], number, &reply], 0)?;
                }
                let took = begin.elapsed().as_micros().to_string();
                dealer.send_multipart([&b"DONE"[..], number, took.as_bytes()], 0)?;
                answered = answered.wrapping_add(1);
            }
            [b"PING", number] => {
                let progress = answered.to_string();
                dealer.send_multipart([&b"PONG"[..], number, progress.as_bytes()], 0)?;
            }
            _ => {}
        }
    }
}

/// Works for so long, then writes the answer to a request; whether the message is one.
fn answer(message: &[u8], time: Duration, reply: &mut Vec<u8>) -> bool {
    let mut words = message.splitn(4, |&byte| byte == b' ');
    let (Some(sender), Some(id), Some(path)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    if path == b"@*" {
        return false;
    }
    if !time.is_zero() {
        std::thread::sleep(time);
    }
    reply.clear();
    reply.extend_from_slice(sender);
    reply.extend_from_slice(format!(" {}:", id.len()).as_bytes());
    reply.extend_from_slice(id);
    reply.extend_from_slice(b", ");
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ";
    reply.extend_from_slice(format!("{head}{}\r\n\r\n{BODY}", BODY.len()).as_bytes());
    true
}
