//! The handler of the comparison: as plain as one can be written over libzmq, and the same for every front.

use crate::idle::BODY;

/// `handler SEND RECV`: answers every request with a fixed 200 until it is killed.
pub(crate) fn main(mut words: impl Iterator<Item = String>) -> Result<(), String> {
    let (Some(send), Some(recv)) = (words.next(), words.next()) else {
        return Err("usage: handler SEND RECV".to_owned());
    };
    serve(&send, &recv).map_err(|error| format!("the handler on {send}: {error}"))
}

fn serve(send: &str, recv: &str) -> zmq::Result<()> {
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
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut message = zmq::Message::new();
    let mut reply = Vec::new();
    loop {
        pull.recv(&mut message, 0)?;
        let mut words = message.splitn(4, |&byte| byte == b' ');
        let (Some(sender), Some(id), Some(path)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if path == b"@*" {
            continue;
        }
        reply.clear();
        reply.extend_from_slice(sender);
        reply.extend_from_slice(format!(" {}:", id.len()).as_bytes());
        reply.extend_from_slice(id);
        reply.extend_from_slice(b", ");
        reply.extend_from_slice(answer.as_bytes());
        publish.send(&reply, 0)?;
    }
}
