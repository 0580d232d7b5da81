//! Where a socket connects to: names are looked up, connections made and set up. One attempt; who tries again is the task's business.

use std::future::pending;
use std::io;
use std::net::ToSocketAddrs as _;
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use crate::bus::stream::Stream;
use crate::endpoint::{Endpoint, Transport};

/// The longest path of a unix socket on Linux, in bytes.
const IPC_PATH_BYTES_MAX: usize = 107;

/// How long an attempt to connect may take: a host that swallows packets is tried again sooner than the system would give up.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence on tcp before the first keepalive probe, the time between probes, and how many may stay unanswered: a server that has
/// vanished with its machine is given up after two minutes. As for the side that binds.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Whether an endpoint can be connected to at all, without a look at the network.
pub(super) fn check(endpoint: &Endpoint) -> io::Result<()> {
    let unfit = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    match &endpoint.transport {
        Transport::Tcp { host, .. } if host == "*" => unfit("no address to connect to"),
        Transport::Tcp { port, .. } if port.is_none_or(|port| port == 0) => {
            unfit("no port to connect to")
        }
        Transport::Ipc { path } if path.len() > IPC_PATH_BYTES_MAX => unfit("the path is too long"),
        Transport::Tcp { .. } | Transport::Ipc { .. } | Transport::Inproc { .. } => Ok(()),
    }
}

/// Connects once. An `inproc` endpoint leads nowhere: it is waited for and never there.
///
/// # Cancel safety
///
/// Dropping the future leaves nothing behind.
pub(super) async fn open(endpoint: &Endpoint) -> io::Result<Stream> {
    match &endpoint.transport {
        Transport::Tcp { host, port } => {
            let stream = open_tcp(host, port.unwrap_or(0)).await?;
            set_up(&stream)?;
            Ok(Stream::Tcp(stream))
        }
        Transport::Ipc { path } => {
            // Exactly so long, without a final zero: libzmq's abstract names.
            let stream = match path.strip_prefix('@') {
                Some(name) => UnixStream::connect(format!("\0{name}")).await,
                None => UnixStream::connect(path).await,
            };
            Ok(Stream::Unix(stream?))
        }
        Transport::Inproc { .. } => pending().await,
    }
}

/// A connection that was made without a runtime.
#[derive(Debug)]
pub struct Dialed(Socket);

impl Dialed {
    /// Connects, and waits for that: up to ten seconds for each address of a name, and as long as the system takes to look it up.
    ///
    /// # Errors
    ///
    /// When nobody is there.
    pub fn dial(endpoint: &Endpoint) -> io::Result<Self> {
        let socket = match &endpoint.transport {
            Transport::Tcp { host, port } => {
                let mut failed = io::Error::new(io::ErrorKind::NotFound, "no such name");
                let mut found = None;
                for address in (host.as_str(), port.unwrap_or(0)).to_socket_addrs()? {
                    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
                    let connected = socket.connect_timeout(&address.into(), CONNECT_TIMEOUT);
                    match connected.and_then(|()| another(&SockRef::from(&socket))) {
                        Ok(()) => {
                            found = Some(socket);
                            break;
                        }
                        Err(error) => failed = error,
                    }
                }
                found.ok_or(failed)?
            }
            Transport::Ipc { path } => {
                let name = path.strip_prefix('@').map(|name| format!("\0{name}"));
                let address = SockAddr::unix(name.as_deref().unwrap_or(path))?;
                let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
                socket.connect(&address)?;
                socket
            }
            Transport::Inproc { .. } => return Err(io::ErrorKind::Unsupported.into()),
        };
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Gives it to the runtime around.
    pub(super) fn into_stream(self) -> io::Result<Stream> {
        let Self(socket) = self;
        if socket.local_addr()?.is_unix() {
            let stream = UnixStream::from_std(socket.into())?;
            return Ok(Stream::Unix(stream));
        }
        let stream = TcpStream::from_std(socket.into())?;
        set_up(&stream)?;
        Ok(Stream::Tcp(stream))
    }
}

/// What every tcp connection here has.
pub(super) fn set_up(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// Whether it is another one at the other end. Who tries to reach a free port of this machine again and again, from ports that the system
/// chooses, comes to choose that one and is connected to itself; and then the server cannot have its port.
pub(super) fn another(socket: &SockRef<'_>) -> io::Result<()> {
    let is_self = socket.local_addr()?.as_socket() == socket.peer_addr()?.as_socket();
    if is_self {
        // Closed without keeping the port for a while.
        socket.set_linger(Some(Duration::ZERO))?;
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

/// Every address of a name is tried, in the order in which the system gives them.
async fn open_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "no such name");
    for address in lookup_host((host, port)).await? {
        let connected = TcpStream::connect(address).await;
        match connected.and_then(|stream| another(&SockRef::from(&stream)).map(|()| stream)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}
