//! Binding: names, wildcards, interfaces and ports of tcp; paths and abstract names of ipc.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpListener, UnixListener};

use super::Options;
use super::listener::Socket;
use crate::endpoint::{Endpoint, Transport};
use crate::sys;

/// The longest path of a unix socket on Linux, in bytes.
const IPC_PATH_BYTES_MAX: usize = 107;

/// Why a socket could not be bound. The text says what was tried and, with its source, why it failed.
#[derive(Debug, thiserror::Error)]
#[error("bind {endpoint}: {cause}")]
pub struct BindError {
    endpoint: String,
    cause: BindCause,
}

impl BindError {
    /// Why.
    pub fn cause(&self) -> &BindCause {
        &self.cause
    }
}

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindCause {
    /// Somebody answers there.
    #[error("address in use")]
    InUse,
    /// The path is taken by something that is no socket, which we leave alone.
    #[error("the path exists and is no socket")]
    NotASocket,
    /// More than 107 bytes.
    #[error("the path has {0} bytes, more than a unix socket takes (107)")]
    PathTooLong(usize),
    /// `ipc://` or `ipc://@`.
    #[error("the path is empty")]
    PathEmpty,
    /// `inproc`, which is within libzmq.
    #[error("only tcp and ipc can be bound")]
    Transport,
    /// A name without an address.
    #[error("no such name, address or interface")]
    Unresolved,
    /// What the system says.
    #[error("{}", lower(.0))]
    Io(io::Error),
}

impl From<io::Error> for BindCause {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::AddrInUse {
            Self::InUse
        } else {
            Self::Io(error)
        }
    }
}

/// The system's words without its capital letter and number.
fn lower(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

/// Binds and listens; gives the endpoint with its real address and port.
pub(super) async fn bind(
    endpoint: &Endpoint,
    options: &Options,
) -> Result<(Socket, Endpoint), BindError> {
    let bound = match &endpoint.transport {
        Transport::Tcp { host, port } => bind_tcp(host, port.unwrap_or(0), options).await,
        Transport::Ipc { path } => {
            bind_ipc(path, options).map(|socket| (socket, endpoint.transport.clone()))
        }
        Transport::Inproc { .. } => Err(BindCause::Transport),
    };
    named(endpoint, bound)
}

/// The same for those who cannot wait; names are not looked up.
pub(in crate::bus) fn bind_now(endpoint: &Endpoint) -> Result<(Socket, Endpoint), BindError> {
    let options = Options::default();
    let bound = match &endpoint.transport {
        Transport::Tcp { host, port } => find(host, port.unwrap_or(0))
            .map_err(BindCause::from)
            .and_then(|addresses| listen_at(&addresses, &options)),
        Transport::Ipc { path } => {
            bind_ipc(path, &options).map(|socket| (socket, endpoint.transport.clone()))
        }
        Transport::Inproc { .. } => Err(BindCause::Transport),
    };
    named(endpoint, bound)
}

/// What came of binding, with the endpoint.
fn named(
    endpoint: &Endpoint,
    bound: Result<(Socket, Transport), BindCause>,
) -> Result<(Socket, Endpoint), BindError> {
    match bound {
        Ok((socket, transport)) => Ok((
            socket,
            Endpoint {
                transport,
                ..endpoint.clone()
            },
        )),
        Err(cause) => Err(BindError {
            endpoint: endpoint.to_string(),
            cause,
        }),
    }
}

async fn bind_tcp(
    host: &str,
    port: u16,
    options: &Options,
) -> Result<(Socket, Transport), BindCause> {
    let mut addresses = find(host, port)?;
    if addresses.is_empty() {
        // A name that cannot be resolved is told as such.
        let looked_up = tokio::net::lookup_host((host, port)).await;
        addresses = looked_up.map(Iterator::collect).unwrap_or_default();
    }
    listen_at(&addresses, options)
}

/// Listens at the first of these addresses where that can be done.
fn listen_at(
    addresses: &[SocketAddr],
    options: &Options,
) -> Result<(Socket, Transport), BindCause> {
    let mut failed = BindCause::Unresolved;
    for address in addresses {
        match listen_tcp(*address, options) {
            Ok(listener) => {
                let real = listener.local_addr()?;
                let transport = Transport::Tcp {
                    host: real.ip().to_string(),
                    port: Some(real.port()),
                };
                return Ok((Socket::Tcp(listener), transport));
            }
            Err(error) => failed = error.into(),
        }
    }
    Err(failed)
}

/// The addresses of a numeric host, of every address (`*`) or of an interface; none for what can only be a name.
fn find(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if host == "*" {
        // As libzmq, whose IPv6 is off unless asked for: `[::]` binds both.
        return Ok(vec![(Ipv4Addr::UNSPECIFIED, port).into()]);
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let interface = sys::interface_addresses(host)?;
    let with_port = |address: IpAddr| (address, port).into();
    Ok(interface.into_iter().map(with_port).collect())
}

fn listen_tcp(address: SocketAddr, options: &Options) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        None,
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    TcpListener::from_std(socket.into())
}

/// The file of an ipc socket, removed when the socket is closed if it is still ours.
#[derive(Debug)]
pub(in crate::bus) struct IpcFile {
    /// Path, device and inode; `None` for an abstract name, which has no file.
    made: Option<(PathBuf, u64, u64)>,
}

impl Drop for IpcFile {
    fn drop(&mut self) {
        let Some((path, device, inode)) = self.made.take() else {
            return;
        };
        let ours = std::fs::symlink_metadata(&path)
            .is_ok_and(|meta| meta.dev() == device && meta.ino() == inode);
        if ours && let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "removing the socket's file");
        }
    }
}

fn bind_ipc(path: &str, options: &Options) -> Result<Socket, BindCause> {
    let (listener, file) = match path.strip_prefix('@') {
        Some("") => return Err(BindCause::PathEmpty),
        None if path.is_empty() => return Err(BindCause::PathEmpty),
        _ if path.len() > IPC_PATH_BYTES_MAX => return Err(BindCause::PathTooLong(path.len())),
        // Exactly so long, without a final zero: libzmq's abstract names.
        Some(name) => (
            listen_ipc(&SockAddr::unix(format!("\0{name}"))?, options)?,
            IpcFile { made: None },
        ),
        None => {
            let address = SockAddr::unix(path)?;
            let path = Path::new(path);
            make_way(path, &address)?;
            let listener = listen_ipc(&address, options)?;
            let meta = std::fs::symlink_metadata(path)?;
            let file = IpcFile {
                made: Some((path.to_owned(), meta.dev(), meta.ino())),
            };
            if let Some(mode) = options.ipc_mode {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            }
            (listener, file)
        }
    };
    Ok(Socket::Ipc {
        listener,
        _file: file,
    })
}

/// Removes a socket file that nobody listens on any more. libzmq removes whatever is there: files are lost and living
/// servers robbed of their path that way.
fn make_way(path: &Path, address: &SockAddr) -> Result<(), BindCause> {
    let meta = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta?,
    };
    if !meta.file_type().is_socket() {
        return Err(BindCause::NotASocket);
    }
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(std::fs::remove_file(path)?)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error.into()),
        // Answered, or it would be if the queue of the one who listens were not full.
        _ => Err(BindCause::InUse),
    }
}

fn listen_ipc(address: &SockAddr, options: &Options) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(address)?;
    socket.listen(options.backlog)?;
    UnixListener::from_std(socket.into())
}
