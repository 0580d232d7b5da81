//! A raw HTTP/1 client, over TCP or TLS: bytes go out as they are given, answers come back with just enough framing to tell
//! them apart.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// One TCP connection and what was read from it and not taken yet.
pub(crate) struct Client {
    stream: TcpStream,
    tls: Option<Box<rustls::ClientConnection>>,
    read: Vec<u8>,
    ended: bool,
    /// The server has said in TLS that it has written everything.
    notified: bool,
}

/// One answer, as it was on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The first value of a header; names are given in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_slice())
    }
}

/// Whether the request had the method HEAD: its answer ends with the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Asked {
    Head,
    #[default]
    Other,
}

/// Reads once. A system call that was interrupted is made again: with a timeout set the kernel does not do that itself.
pub(crate) fn read(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Splits one answer off the front of `bytes`: the answer and its length, or `None` while it is incomplete.
/// An answer without length ends where the connection does (`ended`).
pub(crate) fn split_answer(bytes: &[u8], asked: Asked, ended: bool) -> Option<(Answer, usize)> {
    let head_len = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(bytes.get(..head_len)?).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()?
        .strip_prefix("HTTP/1.")?
        .get(2..5)?
        .parse()
        .ok()?;
    let headers: Vec<(String, Vec<u8>)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().as_bytes().to_vec()))
        .collect();
    let mut answer = Answer {
        status,
        headers,
        body: Vec::new(),
    };
    let rest = bytes.get(head_len..)?;
    if status < 200 || status == 204 || status == 304 || asked == Asked::Head {
        return Some((answer, head_len));
    }
    if answer
        .header("transfer-encoding")
        .is_some_and(|v| v.eq_ignore_ascii_case(b"chunked"))
    {
        let mut at = 0;
        loop {
            let line = rest.get(at..)?.windows(2).position(|w| w == b"\r\n")?;
            let size = std::str::from_utf8(rest.get(at..at + line)?).ok()?;
            let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
            at += line + 2;
            let chunk = rest.get(at..at + size + 2)?;
            answer.body.extend_from_slice(chunk.get(..size)?);
            at += size + 2;
            if size == 0 {
                return Some((answer, head_len + at));
            }
        }
    }
    let length = match answer.header("content-length") {
        Some(value) => std::str::from_utf8(value).ok()?.parse().ok()?,
        None if ended => rest.len(),
        None => return None,
    };
    answer.body = rest.get(..length)?.to_vec();
    Some((answer, head_len + length))
}

impl Client {
    /// Connects; reads and writes give up after [`PATIENCE`].
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    /// As [`Client::connect`], for servers that may be gone.
    pub(crate) fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            tls: None,
            read: Vec::new(),
            ended: false,
            notified: false,
        })
    }

    /// Goes on in TLS, with a whole handshake as far as this side sees it.
    pub(crate) fn secure(
        mut self,
        config: &Arc<rustls::ClientConfig>,
        name: &str,
    ) -> io::Result<Self> {
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).expect("a host name");
        let mut tls = rustls::ClientConnection::new(Arc::clone(config), name)
            .map_err(|error| io::Error::other(error.to_string()))?;
        tls.set_buffer_limit(None);
        self.stream.set_read_timeout(Some(PATIENCE))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut self.stream)?;
        }
        self.tls = Some(Box::new(tls));
        Ok(self)
    }

    /// The TLS connection.
    pub(crate) fn tls(&self) -> &rustls::ClientConnection {
        self.tls.as_ref().expect("a client over TLS")
    }

    /// Whether the end was said in TLS before it came.
    pub(crate) fn notified(&self) -> bool {
        self.notified
    }

    /// The other end of a connection that was accepted.
    pub(crate) fn accepted(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("nodelay");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("a write timeout");
        Self {
            stream,
            tls: None,
            notified: false,
            read: Vec::new(),
            ended: false,
        }
    }

    /// What comes up to and with `mark`; panics when it does not come.
    pub(crate) fn upto(&mut self, mark: &[u8]) -> Vec<u8> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.read.windows(mark.len()).position(|w| w == mark) {
                return self.read.drain(..at + mark.len()).collect();
            }
            assert!(
                !self.ended && Instant::now() < end,
                "{:?} did not come; read {:?}, ended {}",
                String::from_utf8_lossy(mark),
                String::from_utf8_lossy(&self.read),
                self.ended
            );
            self.read_some(PATIENCE);
        }
    }

    /// Everything until the other side has closed; panics when it does not.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let end = Instant::now() + PATIENCE;
        while !self.ended {
            assert!(
                Instant::now() < end,
                "the connection stays open; read {:?}",
                String::from_utf8_lossy(&self.read)
            );
            self.read_some(PATIENCE);
        }
        std::mem::take(&mut self.read)
    }

    /// Takes so many of the bytes that were read.
    pub(crate) fn take(&mut self, length: usize) -> Vec<u8> {
        self.read.drain(..length).collect()
    }

    /// Whether nothing comes for so long, not even the end.
    pub(crate) fn is_silent(&mut self, wait: Duration) -> bool {
        self.read.is_empty() && !self.ended && !self.read_some(wait)
    }

    /// Sends bytes as one write.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => self.stream.write_all(bytes),
            Some(tls) => {
                tls.writer().write_all(bytes)?;
                while tls.wants_write() {
                    tls.write_tls(&mut self.stream)?;
                }
                Ok(())
            }
        }
    }

    /// Shuts down the sending side.
    pub(crate) fn shutdown_write(&mut self) {
        // The server may have closed first: then there is nothing left to shut down.
        drop(self.stream.shutdown(Shutdown::Write));
    }

    /// Reads once for at most `wait`; whether anything came (bytes or the end).
    pub(crate) fn read_some(&mut self, wait: Duration) -> bool {
        if self.ended {
            return false;
        }
        let wait = wait.max(Duration::from_millis(1));
        self.stream
            .set_read_timeout(Some(wait))
            .expect("a non-zero timeout");
        let read = match &mut self.tls {
            None => {
                let mut buffer = [0; 16384];
                self.stream
                    .read(&mut buffer)
                    .map(|count| buffer[..count].to_vec())
            }
            Some(tls) => read_tls(tls, &mut self.stream).map(|(bytes, notified)| {
                self.notified |= notified;
                // Records that hold no data, such as tickets, are something, but not the end.
                self.ended |= notified && bytes.is_empty();
                bytes
            }),
        };
        match read {
            Ok(bytes) if bytes.is_empty() && self.tls.is_none() => self.ended = true,
            Ok(bytes) => self.read.extend_from_slice(&bytes),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {
                    return false;
                }
                _ => self.ended = true,
            },
        }
        true
    }

    /// Everything read and not taken yet.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.read
    }

    /// Whether the server has closed the connection (as far as reads have seen).
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// The next answer, 1xx included.
    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer(Asked::Other, PATIENCE).unwrap_or_else(|| {
            panic!(
                "no answer; read {} bytes, {:?}, ended {}",
                self.read.len(),
                String::from_utf8_lossy(self.read.get(..1000).unwrap_or(&self.read)),
                self.ended
            )
        })
    }

    /// The next answer, or `None` when the connection ends or `wait` passes first.
    pub(crate) fn try_answer(&mut self, asked: Asked, wait: Duration) -> Option<Answer> {
        let end = Instant::now() + wait;
        loop {
            if let Some((answer, length)) = split_answer(&self.read, asked, self.ended) {
                self.read.drain(..length);
                return Some(answer);
            }
            let left = end.saturating_duration_since(Instant::now());
            if self.ended || left.is_zero() {
                return None;
            }
            self.read_some(left);
        }
    }

    /// The socket, to be polled beside others.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// Reads what there is, and whether the other side has said that this was all. An end without that is an error.
fn read_tls(
    tls: &mut rustls::ClientConnection,
    stream: &mut TcpStream,
) -> io::Result<(Vec<u8>, bool)> {
    if tls.read_tls(stream)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let state = tls
        .process_new_packets()
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    let mut bytes = vec![0; state.plaintext_bytes_to_read()];
    tls.reader().read_exact(&mut bytes)?;
    Ok((bytes, state.peer_has_closed()))
}

/// One request on a connection of its own.
pub(crate) fn fetch(address: SocketAddr, request: &str) -> Answer {
    let mut client = Client::connect(address);
    client.send(request.as_bytes()).expect("send a request");
    client.answer()
}
