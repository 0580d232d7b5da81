//! `m2sh access`, `route` and `uuid`: what needs no configuration and no server.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};

use super::args::Options;
use super::{Done, error, failure, say, warn, with_default};
use crate::routing::{HostTable, RouteTable, split};
use crate::tnetstring::{self, Limits, Parsed, Value};

/// A longer line of an access log is malformed, in bytes: a path may be 64 KiB.
const LOG_LINE_BYTES_MAX: u64 = 256 << 10;

/// How deep a line of an access log nests: a list of texts.
const LOG_DEPTH_MAX: usize = 2;

/// Where the kernel gives random UUIDs of version 4.
const UUID_SOURCE: &str = "/proc/sys/kernel/random/uuid";

/// Prints an access log as people read it.
pub(super) fn access(options: &Options) -> Done {
    let path = with_default(options, "log", "logs/access.log");
    let fail = |why| failure(&why, format!("Failed to open log file: {path}"));
    let mut log = BufReader::new(File::open(path).map_err(fail)?);
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = io::Read::take(&mut log, LOG_LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if read.map_err(fail)? == 0 {
            break;
        }
        match readable(&line) {
            Some(text) => match stdout.write_all(&text) {
                Ok(()) => {}
                // A reader that closed the pipe has what it wanted.
                Err(why) if why.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(why) => return Err(failure(&why, "Can't write to standard output.")),
            },
            None => warn(format!("Malformed log line: {number}.")),
        }
    }
    match stdout.flush() {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => {
            Err(failure(&why, "Can't write to standard output."))
        }
        _ => Ok(()),
    }
}

/// `[time] address:port host "METHOD path version" status size` of a line with exactly these.
fn readable(line: &[u8]) -> Option<Vec<u8>> {
    let limits = Limits {
        depth: LOG_DEPTH_MAX,
        ..Limits::default()
    };
    let Ok(Parsed::Complete {
        value: Value::List(fields),
        ..
    }) = tnetstring::parse(line, limits)
    else {
        return None;
    };
    let fields: Option<Vec<_>> = fields.iter().map(text).collect();
    let fields = fields?;
    let [
        host,
        address,
        port,
        time,
        method,
        path,
        version,
        status,
        size,
    ] = fields.as_slice()
    else {
        return None;
    };
    let parts: [&[u8]; 18] = [
        b"[", time, b"] ", address, b":", port, b" ", host, b" \"", method, b" ", path, b" ",
        version, b"\" ", status, b" ", size,
    ];
    let mut line = parts.concat();
    // What a client has sent is not for the terminal to obey.
    for byte in &mut line {
        if byte.is_ascii_control() {
            *byte = b'?';
        }
    }
    line.push(b'\n');
    Some(line)
}

fn text(value: &Value<'_>) -> Option<Vec<u8>> {
    match value {
        Value::Bytes(bytes) => Some(bytes.to_vec()),
        Value::Integer(number) => Some(number.to_string().into_bytes()),
        _ => None,
    }
}

/// Tries a pattern as a server would: a route's, or with `-reversed -suffix` a host's.
pub(super) fn route(options: &Options) -> Done {
    let Some(path) = options.get("match") else {
        return Err(error(
            "You have to give something to match against with --match.",
        ));
    };
    let Some(pattern) = options.get("pattern") else {
        return Err(error("You have to give a pattern to use with --pattern."));
    };
    let (is_reversed, is_suffix) = (options.has("reversed"), options.has("suffix"));
    let reverse = |text: &str| text.chars().rev().collect::<String>();
    let (front, tail) = match pattern.rsplit_once(')') {
        Some((front, tail)) if is_reversed => (Some(format!("{front})$")), tail),
        _ => (None, pattern),
    };
    let is_taken = match (is_reversed, is_suffix) {
        (true, true) => {
            let mut hosts = HostTable::new();
            hosts.insert(pattern, ());
            hosts.find(path.as_bytes()).is_some()
        }
        // Of no use to anybody: one side is reversed and the other is not.
        (true, false) => is_route(&reverse(tail), path),
        (false, true) => is_route(pattern, &reverse(path)),
        (false, false) => is_route(pattern, path),
    };
    if !is_taken {
        return say(format!("Match FAILED on '{path}' against '{pattern}'.\n"));
    }
    let prefix = if is_reversed {
        reverse(tail)
    } else {
        split(pattern).0.to_owned()
    };
    let shown = front.as_deref().unwrap_or(pattern);
    say(format!(
        "Match passed on '{path}' against '{pattern}'.\nROUTE: pattern='{shown}', prefix='{prefix}'\n"
    ))
}

fn is_route(text: &str, path: &str) -> bool {
    let mut routes = RouteTable::new();
    routes.insert(text, ());
    routes.find(path.as_bytes()).is_some()
}

/// Prints a random UUID.
pub(super) fn uuid() -> Done {
    let uuid = fs::read_to_string(UUID_SOURCE)
        .map_err(|why| failure(&why, format!("Can't read {UUID_SOURCE}.")))?;
    say(uuid)
}
