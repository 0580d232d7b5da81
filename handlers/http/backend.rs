//! The server that requests are passed on to: where it is, and how a connection to it is made.
//!
//! A name is looked up for every connection (the system has a cache, and connections are kept), and its addresses are tried one
//! after the other. Which connections are kept is `bridge`'s business.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderValue;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

use super::body::Body;
use super::fault::Fault;

/// Largest head of a response, in bytes: twice what browsers take.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes that are read ahead of the client; more than a head may have.
const BUFFER_BYTES: usize = HEAD_BYTES_MAX + 64 * 1024;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A host name or an address without brackets, and a port.
    Tcp(String, u16),
    /// The file of a socket.
    Unix(PathBuf),
}

impl Address {
    /// Reads `http://HOST:PORT[/PREFIX]` or `unix:/PATH`: the address, and what goes before paths.
    pub(super) fn parse(target: &str) -> Result<(Self, String), String> {
        if let Some(path) = target.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(format!("`{target}` is not unix:/PATH"));
            }
            return Ok((Self::Unix(path.into()), String::new()));
        }
        let wrong = || format!("`{target}` is neither http://HOST:PORT nor unix:/PATH");
        let rest = target.strip_prefix("http://").ok_or_else(wrong)?;
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let uri: http::uri::Authority = authority.parse().map_err(|_| wrong())?;
        if authority.contains('@') || prefix.contains(['?', '#']) {
            return Err(wrong());
        }
        let name = uri.host().trim_start_matches('[').trim_end_matches(']');
        let port = match (uri.port_u16(), uri.port()) {
            (Some(port), _) => port,
            // A number that is no port shows as neither.
            (None, None) if !authority.ends_with(':') && uri.host() == authority => 80,
            _ => return Err(wrong()),
        };
        let prefix = prefix.trim_end_matches('/');
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("/{prefix}")
        };
        if name.is_empty()
            || (!prefix.is_empty() && prefix.parse::<http::uri::PathAndQuery>().is_err())
        {
            return Err(wrong());
        }
        Ok((Self::Tcp(name.to_owned(), port), prefix))
    }

    /// As a Host line names it.
    pub(super) fn authority(&self) -> HeaderValue {
        let text = match self {
            Self::Tcp(name, port) if name.contains(':') => format!("[{name}]:{port}"),
            Self::Tcp(name, port) => format!("{name}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        };
        // A name that is no text for a field cannot be looked up either.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("localhost"))
    }
}

/// The server.
#[derive(Debug)]
pub(super) struct Backend {
    address: Address,
    connect_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The address that took the last connection.
    last: Option<SocketAddr>,
    /// The last connection failed: said once, not per request.
    is_down: bool,
}

/// A connection: what takes requests, and what moves its bytes as long as that is polled.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) sender: SendRequest<Body>,
    pub(super) driver: Driver,
    /// It has had a request before: the server may be closing it just now.
    pub(super) is_used: bool,
}

/// Moves the bytes of a connection.
pub(super) struct Driver {
    connection: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    has_ended: bool,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}

impl Driver {
    /// Ready when the connection has ended; its error is told to whoever waits for a response.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_ended && self.connection.as_mut().poll(cx).is_ready() {
            self.has_ended = true;
        }
        if self.has_ended {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Moves bytes while something is waited for.
    pub(super) async fn during<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = future.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            // Whatever it has brought is looked at now, not at the next turn.
            let _ended = self.poll(cx);
            future.as_mut().poll(cx)
        })
        .await
    }
}

impl Backend {
    pub(super) fn new(address: Address, connect_timeout: Duration) -> Self {
        Self {
            address,
            connect_timeout,
            state: Mutex::default(),
        }
    }

    /// Makes a connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives the attempt up.
    pub(super) async fn connect(&self) -> Result<Link, Fault> {
        let connected = self.stream().await;
        self.note(connected.as_ref().err());
        // A head has 100 fields at most: any other number costs two allocations of its size for each response.
        let (sender, connection) = http1::Builder::new()
            .title_case_headers(true)
            .max_buf_size(BUFFER_BYTES)
            .max_header_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(connected?))
            .await
            .map_err(|_| Fault::Closed)?;
        Ok(Link {
            sender,
            driver: Driver {
                connection: Box::pin(connection.with_upgrades()),
                has_ended: false,
            },
            is_used: false,
        })
    }

    async fn stream(&self) -> Result<Stream, Fault> {
        let until = Instant::now() + self.connect_timeout;
        match &self.address {
            Address::Unix(path) => match timeout_at(until, UnixStream::connect(path)).await {
                Ok(stream) => stream
                    .map(|stream| Stream::new(Socket::Unix(stream)))
                    .map_err(Fault::Unreachable),
                Err(_) => Err(Fault::ConnectTimeout),
            },
            Address::Tcp(name, port) => {
                let found = timeout_at(until, lookup(name, *port)).await;
                let addresses = found
                    .map_err(|_| Fault::ConnectTimeout)?
                    .map_err(Fault::Unknown)?;
                self.first(addresses, until).await
            }
        }
    }

    /// A connection to the first address that takes one; each has its share of the time.
    async fn first(&self, mut addresses: Vec<SocketAddr>, until: Instant) -> Result<Stream, Fault> {
        let last = self.lock().last;
        if let Some(known) = addresses.iter().position(|address| Some(*address) == last) {
            addresses.swap(0, known);
        }
        let mut fault = Fault::Unreachable(io::ErrorKind::AddrNotAvailable.into());
        for (tried, address) in addresses.iter().enumerate() {
            let now = Instant::now();
            let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = until.saturating_duration_since(now) / left;
            match timeout_at(now + share, TcpStream::connect(address)).await {
                // Without nodelay small requests would wait for the acknowledgement of what went before.
                Ok(Ok(stream)) => match stream.set_nodelay(true) {
                    Ok(()) => {
                        self.lock().last = Some(*address);
                        return Ok(Stream::new(Socket::Tcp(stream)));
                    }
                    Err(error) => fault = Fault::Unreachable(error),
                },
                Ok(Err(error)) => fault = Fault::Unreachable(error),
                Err(_) => fault = Fault::ConnectTimeout,
            }
        }
        Err(fault)
    }

    fn note(&self, fault: Option<&Fault>) {
        let was_down = std::mem::replace(&mut self.lock().is_down, fault.is_some());
        match fault {
            Some(fault) if !was_down => {
                tracing::warn!(backend = ?self.address, "connecting to the backend: {}", fault.why());
            }
            None if was_down => {
                tracing::info!(backend = ?self.address, "the backend takes connections again");
            }
            _ => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses of a name, in the resolver's order.
async fn lookup(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in tokio::net::lookup_host((name, port)).await? {
        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// A socket to the server, which hides that the server reads no more.
///
/// A server may answer before it has read the request's body, and close: 413 is for that. What is written then fails, while its
/// answer lies unread in our receive buffer. So writes that meet a closed connection succeed into the void; that it is closed is
/// learnt where the answer is, by reading.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    is_deaf: bool,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn new(socket: Socket) -> Self {
        Self {
            socket,
            is_deaf: false,
        }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Unpin + '_)> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream as &mut (dyn AsyncWrite + Unpin)),
            Socket::Unix(stream) => Pin::new(stream as &mut (dyn AsyncWrite + Unpin)),
        }
    }

    /// What becomes of a write of so many bytes.
    fn written(
        &mut self,
        polled: Poll<io::Result<usize>>,
        bytes: usize,
    ) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Err(error)) if is_closed(&error) => {
                self.is_deaf = true;
                Poll::Ready(Ok(bytes))
            }
            other => other,
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let polled = this.writer().poll_write(cx, buf);
        this.written(polled, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bytes = bufs.iter().map(|buf| buf.len()).sum();
        if this.is_deaf {
            return Poll::Ready(Ok(bytes));
        }
        // Most requests are one buffer, for which the kernel has a shorter way.
        let polled = match bufs {
            [only] => this.writer().poll_write(cx, only),
            _ => this.writer().poll_write_vectored(cx, bufs),
        };
        this.written(polled, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writer().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().writer().poll_shutdown(cx) {
            Poll::Ready(Err(error)) if is_closed(&error) => Poll::Ready(Ok(())),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_a_host_and_a_port_or_a_socket() {
        let tcp = |name: &str, port, prefix: &str| {
            Ok((Address::Tcp(name.to_owned(), port), prefix.to_owned()))
        };
        assert_eq!(
            Address::parse("http://localhost:3000"),
            tcp("localhost", 3000, "")
        );
        assert_eq!(Address::parse("http://app/"), tcp("app", 80, ""));
        assert_eq!(Address::parse("http://app:8/a/b/"), tcp("app", 8, "/a/b"));
        assert_eq!(Address::parse("http://[::1]:8"), tcp("::1", 8, ""));
        let unix = (Address::Unix("/run/app.sock".into()), String::new());
        assert_eq!(Address::parse("unix:/run/app.sock"), Ok(unix));
        for wrong in [
            "http",
            "unix:",
            "unix:app",
            "http://",
            "http://a:",
            "http://a:99999",
            "http://me@a:1",
            "http://a/?x",
            "http://a b",
            "https://a:1",
        ] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }
}
