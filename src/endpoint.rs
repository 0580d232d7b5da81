//! Stand-in for the socket specs until the real module lands: only what `bus::server` is coded against.

/// A socket spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub transport: Transport,
    /// Identity of the socket.
    pub identity: Option<String>,
    /// Bind or connect.
    pub mode: Option<Mode>,
}

/// Whether to bind or connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bind.
    Bind,
    /// Connect.
    Connect,
}

/// The address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// `*`, a name, an address without brackets, an interface.
        host: String,
        /// `None`: any free port.
        port: Option<u16>,
    },
    /// A unix domain socket.
    Ipc {
        /// The path, `@name` for an abstract one.
        path: String,
    },
    /// Within the process.
    Inproc {
        /// The name.
        name: String,
    },
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.transport {
            Transport::Tcp { host, port } => {
                if host.contains(':') {
                    write!(f, "tcp://[{host}]:")?;
                } else {
                    write!(f, "tcp://{host}:")?;
                }
                match port {
                    Some(port) => write!(f, "{port}"),
                    None => f.write_str("*"),
                }
            }
            Transport::Ipc { path } => write!(f, "ipc://{path}"),
            Transport::Inproc { name } => write!(f, "inproc://{name}"),
        }
    }
}
