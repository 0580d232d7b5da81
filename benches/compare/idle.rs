//! What a connection costs while nothing happens on it: many of them, each answered once, then left alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::fronts::Front;
use crate::measure::proportional_kib;

/// What the handler answers with.
pub(crate) const BODY: &str = "Hello, world!\n";

/// Memory of a front and its handler with some idle connections open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) connections: usize,
    pub(crate) front_kib: u64,
    pub(crate) handler_kib: u64,
}

/// One request, and its answer read to the end.
pub(crate) fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !answer.ends_with(BODY.as_bytes()) {
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => answer.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        }
    }
    Ok(())
}

/// `idle ADDRESS COUNT`: opens connections, asks once on each, says so, and holds them until its input ends.
pub(crate) fn main(mut words: impl Iterator<Item = String>) -> Result<(), String> {
    let (Some(address), Some(count)) = (words.next(), words.next()) else {
        return Err("usage: idle ADDRESS COUNT".to_owned());
    };
    let count: usize = count.parse().map_err(|error| format!("{count}: {error}"))?;
    let mut held = Vec::with_capacity(count);
    for opened in 0..count {
        let mut stream = TcpStream::connect(&address)
            .map_err(|error| format!("connection {opened} to {address}: {error} (ulimit -n?)"))?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .map_err(|error| error.to_string())?;
        ask(&mut stream).map_err(|error| format!("request {opened} to {address}: {error}"))?;
        held.push(stream);
    }
    println!("open");
    let mut end = Vec::new();
    std::io::stdin()
        .read_to_end(&mut end)
        .map_err(|error| error.to_string())?;
    // Those that were closed meanwhile do not count as idle connections.
    let alive = held.iter().filter(|stream| {
        let waiting = stream
            .set_nonblocking(true)
            .and_then(|()| stream.peek(&mut [0]));
        waiting.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    });
    println!("alive {}", alive.count());
    Ok(())
}

/// Starts a front afresh and measures it at 0 and at each count of idle connections.
pub(crate) fn measure(name: &str, counts: &[usize]) -> Result<Vec<Memory>, String> {
    let front = Front::start(name)?;
    let mut figures = vec![weigh(&front, 0)?];
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut open = 0;
    let mut openers = Vec::new();
    let mut sorted = counts.to_vec();
    sorted.sort_unstable();
    for connections in sorted {
        let more = connections - open;
        let mut opener = Command::new(&own)
            .args(["idle", &front.address.to_string(), &more.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("start the opener: {error}"))?;
        let mut output = BufReader::new(opener.stdout.take().expect("piped"));
        let mut line = String::new();
        output
            .read_line(&mut line)
            .map_err(|error| error.to_string())?;
        if line.trim() != "open" {
            return Err(format!("{name} does not hold {connections} connections"));
        }
        open = connections;
        openers.push((opener, output, more));
        // Buffers are given back within the second after the last answer.
        std::thread::sleep(Duration::from_secs(1));
        figures.push(weigh(&front, connections)?);
    }
    for (mut opener, mut output, more) in openers {
        drop(opener.stdin.take());
        let mut line = String::new();
        output
            .read_line(&mut line)
            .map_err(|error| error.to_string())?;
        if line.trim() != format!("alive {more}") {
            println!(
                "{name}: of {more} idle connections {} at the end",
                line.trim()
            );
        }
        opener.wait().map_err(|error| error.to_string())?;
    }
    for figure in &figures {
        let Memory {
            connections,
            front_kib,
            handler_kib,
        } = figure;
        println!(
            "{name:<10} {connections:>6} idle connections: front {front_kib} KiB, handler {handler_kib} KiB"
        );
    }
    Ok(figures)
}

fn weigh(front: &Front, connections: usize) -> Result<Memory, String> {
    Ok(Memory {
        connections,
        front_kib: proportional_kib(front.server())?,
        handler_kib: front.handler().map_or(Ok(0), proportional_kib)?,
    })
}
