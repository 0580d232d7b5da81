//! What lies between an accepted socket and its first request: the PROXY protocol's header, the TLS handshake.
//!
//! A client that needs neither does not come by here. All of it together has `limits.head_timeout`, counts as a connection,
//! and ends when the front stops. Plain HTTP on a TLS port is told so, in plain text.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::answer::Trouble;
use super::client::Secure;
use super::connection::Connection;
use super::proxy_protocol::{self, Begin, Malformed, Said};
use super::registry::Arriving;
use super::stream::Stream;
use super::tls;
use super::{LAST_ACCEPT, LAST_CALL, LINGER, Shard};
use crate::metrics::Name;

/// Bytes that are read and dropped behind a failed handshake, so that the client gets to read the alert.
const LINGER_BYTES_MAX: usize = 64 * 1024;

/// Why a client did not get to its first request. It is the client's fault, or its network's.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Proxy(#[from] Malformed),
    #[error("TLS handshake: {0}")]
    Handshake(io::Error),
}

/// A client at its first request.
enum Arrived {
    Plain(TcpStream),
    Tls(Box<tls::Session>),
    /// It speaks to a TLS port as if it were none.
    PlainOnTls(TcpStream),
}

/// Whether a client from this address has anything to do before its first request.
pub(super) fn is_needed(shard: &Shard, addr: SocketAddr) -> bool {
    shard.tls.borrow().is_some() || shard.limits().proxy_protocol_from.contains(addr.ip())
}

/// Brings a client to its first request, or closes. It counts as a connection from the call on.
pub(super) fn arrive(
    shard: &Rc<Shard>,
    stream: TcpStream,
    peer: SocketAddr,
) -> impl Future<Output = ()> + use<> {
    begin_counted(Rc::clone(shard), Arriving::new(shard), stream, peer)
}

async fn begin_counted(shard: Rc<Shard>, counted: Arriving, stream: TcpStream, peer: SocketAddr) {
    let deadline = Duration::from_millis(shard.limits().head_timeout);
    let over = async {
        // Like an idle connection, which may still send a request when the front begins to stop.
        shard.watch.draining().await;
        tokio::time::sleep(LAST_ACCEPT + LAST_CALL).await;
    };
    let begun = tokio::select! {
        begun = timeout(deadline, begin(&shard, stream, peer)) => begun,
        () = over => return,
    };
    match begun {
        Ok(Ok((arrived, addr))) => enter(&shard, arrived, addr),
        // Only from a network that the configuration names: its operator has to learn of it.
        Ok(Err(error @ Failed::Proxy(_))) => warn!(balancer = %peer, "connection closed: {error}"),
        Ok(Err(error)) => debug!(client = %peer, "connection not begun: {error}"),
        Err(_) => debug!(client = %peer, "connection not begun in time"),
    }
    // Not before it is in the registry: in between it would count as gone.
    drop(counted);
}

/// Everything that may have to be waited for. Gives the client's address too, which a balancer may have told.
async fn begin(
    shard: &Shard,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> Result<(Arrived, SocketAddr), Failed> {
    let mut addr = peer;
    if shard.limits().proxy_protocol_from.contains(peer.ip())
        && let Said::Client(client) = proxy_header(&mut stream).await?
    {
        addr = client;
    }
    let Some(tls) = shard.tls.borrow().clone() else {
        return Ok((Arrived::Plain(stream), addr));
    };
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    if first[0] != tls::HANDSHAKE {
        return Ok((Arrived::PlainOnTls(stream), addr));
    }
    match tls.accept(stream).await {
        Ok(session) => {
            debug!(client = %addr, session = %tls::Described(&session), "TLS");
            Name::TlsHandshakes.increment();
            Ok((Arrived::Tls(session), addr))
        }
        Err((error, stream)) => {
            Name::TlsHandshakesFailed.increment();
            linger(stream).await;
            Err(Failed::Handshake(error))
        }
    }
}

/// Takes the header that a balancer sends, and nothing behind it.
async fn proxy_header(stream: &mut TcpStream) -> Result<Said, Failed> {
    let mut header = Vec::new();
    let mut peeked = [0; proxy_protocol::LINE_MAX];
    loop {
        let count = stream.peek(&mut peeked).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let here = &peeked[..count];
        let taken = match proxy_protocol::begin(&[&header, here].concat())? {
            Begin::Line => match memchr::memchr(b'\n', here) {
                Some(end) => end + 1,
                None => count,
            },
            // It ends in these bytes no sooner than with the whole of the start.
            Begin::Binary | Begin::Unknown => count.min(proxy_protocol::START - header.len()),
        };
        let before = header.len();
        header.resize(before + taken, 0);
        stream.read_exact(&mut header[before..]).await?;
        match proxy_protocol::begin(&header)? {
            Begin::Line if header.ends_with(b"\n") => return Ok(proxy_protocol::line(&header)?),
            Begin::Line if header.len() >= proxy_protocol::LINE_MAX => {
                return Err(Malformed("the line is too long").into());
            }
            Begin::Line | Begin::Unknown => {}
            Begin::Binary => {
                if let Ok(start) = <&[u8; proxy_protocol::START]>::try_from(header.as_slice()) {
                    let mut rest = vec![0; proxy_protocol::rest_len(start)?];
                    stream.read_exact(&mut rest).await?;
                    return Ok(proxy_protocol::binary(start, &rest)?);
                }
            }
        }
    }
}

/// Makes a connection of what has arrived.
fn enter(shard: &Rc<Shard>, arrived: Arrived, addr: SocketAddr) {
    let fd = match &arrived {
        Arrived::Plain(stream) | Arrived::PlainOnTls(stream) => stream.as_raw_fd(),
        Arrived::Tls(session) => session.get_ref().0.as_raw_fd(),
    };
    let (stream, secure, trouble) = match arrived {
        Arrived::Plain(stream) => (Stream::Plain(stream), None, None),
        Arrived::Tls(session) => {
            let fingerprint = tls::fingerprint(&session);
            let secure = Box::new(Secure { fingerprint });
            (Stream::Tls(session), Some(secure), None)
        }
        Arrived::PlainOnTls(stream) => (Stream::Plain(stream), None, Some(Trouble::PlainOnTls)),
    };
    let client = shard.admit(addr, secure);
    client.fd.set(fd);
    let mut connection = Connection::new(stream, client, Rc::clone(shard));
    if let Some(trouble) = trouble {
        connection.turn_away(trouble);
    }
    shard.watch.track_local(connection);
}

/// Reads on for a while, since closing a socket with unread bytes resets it, and the alert with it.
async fn linger(mut stream: TcpStream) {
    let reading = async {
        stream.shutdown().await?;
        let mut scratch = [0; 1024];
        let mut dropped = 0;
        while dropped < LINGER_BYTES_MAX {
            match stream.read(&mut scratch).await? {
                0 => break,
                count => dropped += count,
            }
        }
        io::Result::Ok(())
    };
    // However it ends, it has ended.
    drop(timeout(Duration::from_millis(LINGER), reading).await);
}
