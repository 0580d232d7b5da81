//! Socket specs: `tcp://IDENTITY@host:port#bind` and their kin. (A stand-in until the real one lands.)

use std::fmt;
use std::str::FromStr;

/// A socket spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub transport: Transport,
    /// ZeroMQ identity.
    pub identity: Option<String>,
    /// Bind or connect.
    pub mode: Option<Mode>,
}

/// Bind or connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bind.
    Bind,
    /// Connect.
    Connect,
}

/// The transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Host.
        host: String,
        /// Port; `None`: any free one.
        port: Option<u16>,
    },
    /// Unix socket.
    Ipc {
        /// Path.
        path: String,
    },
    /// In process.
    Inproc {
        /// Name.
        name: String,
    },
}

/// Why a spec is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no socket spec")]
pub struct EndpointError;

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        let transport = if let Some(rest) = text.strip_prefix("tcp://") {
            let (host, port) = rest.rsplit_once(':').ok_or(EndpointError)?;
            let port = match port {
                "*" | "0" => None,
                port => Some(port.parse().map_err(|_| EndpointError)?),
            };
            Transport::Tcp {
                host: host.trim_matches(['[', ']']).to_owned(),
                port,
            }
        } else if let Some(path) = text.strip_prefix("ipc://") {
            Transport::Ipc {
                path: path.to_owned(),
            }
        } else if let Some(name) = text.strip_prefix("inproc://") {
            Transport::Inproc {
                name: name.to_owned(),
            }
        } else {
            return Err(EndpointError);
        };
        Ok(Endpoint {
            transport,
            identity: None,
            mode: None,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Tcp {
                host,
                port: Some(port),
            } => write!(f, "tcp://{host}:{port}"),
            Transport::Tcp { host, port: None } => write!(f, "tcp://{host}:*"),
            Transport::Ipc { path } => write!(f, "ipc://{path}"),
            Transport::Inproc { name } => write!(f, "inproc://{name}"),
        }
    }
}
