//! Connections to the FastCGI server: made, and kept where that was asked for. What is said on them is in `exchange`.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

/// A connection that was not used for so long is closed: it holds a process of php-fpm.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// How often that is looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// Bytes read at once: a whole record of the largest size.
const READ: usize = 66 * 1024;

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// Host and port; a name is looked up for each connection.
    Tcp(String),
    Unix(PathBuf),
}

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Reads what there is, at least one byte; 0 at the end.
    pub(super) async fn read(&self, into: &mut BytesMut) -> io::Result<usize> {
        loop {
            into.reserve(READ);
            let read = match self {
                Self::Tcp(stream) => {
                    stream.readable().await?;
                    stream.try_read_buf(into)
                }
                Self::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_read_buf(into)
                }
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    /// Writes as much as is taken now, at least one byte.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self {
                Self::Tcp(stream) => stream.writable().await?,
                Self::Unix(stream) => stream.writable().await?,
            }
            match self.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// Whether nothing has come since it was put by: no end, and nothing that nobody asked for.
    fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut byte),
            Self::Unix(stream) => stream.try_read(&mut byte),
        };
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// The server, and connections to it that nobody uses now.
#[derive(Debug)]
pub(super) struct Backend {
    address: Address,
    connect_timeout: Duration,
    keep: usize,
    idle: RefCell<Vec<(Instant, Stream)>>,
}

impl Backend {
    /// One that keeps at most `keep` unused connections.
    pub(super) fn new(address: Address, connect_timeout: Duration, keep: usize) -> Self {
        Self {
            address,
            connect_timeout,
            keep,
            idle: RefCell::default(),
        }
    }

    /// Whether connections are kept at all.
    pub(super) fn keeps(&self) -> bool {
        self.keep > 0
    }

    /// A kept connection, the last used first.
    pub(super) fn kept(&self) -> Option<Stream> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let (_, stream) = idle.pop()?;
            if stream.is_quiet() {
                return Some(stream);
            }
        }
    }

    /// A new connection.
    ///
    /// # Errors
    ///
    /// As the system has them; `TimedOut` after the time for it.
    pub(super) async fn connect(&self) -> io::Result<Stream> {
        let connect = async {
            Ok(match &self.address {
                Address::Tcp(address) => {
                    let stream = TcpStream::connect(address.as_str()).await?;
                    stream.set_nodelay(true)?;
                    Stream::Tcp(stream)
                }
                Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
            })
        };
        let connected = timeout(self.connect_timeout, connect).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Puts a connection by on which nothing is open.
    pub(super) fn put(&self, stream: Stream) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.keep {
            idle.push((Instant::now(), stream));
        }
    }

    /// Closes connections that were not used for long, for ever.
    pub(super) async fn sweep(&self) {
        if !self.keeps() {
            return std::future::pending().await;
        }
        loop {
            sleep(SWEEP).await;
            let used = |(since, stream): &(Instant, Stream)| {
                since.elapsed() < IDLE_MAX && stream.is_quiet()
            };
            self.idle.borrow_mut().retain(used);
        }
    }
}
