//! Socket specs (stand-in until the real one lands).
use std::fmt;
use std::str::FromStr;

/// A spec.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where.
    pub transport: Transport,
    /// Identity.
    pub identity: Option<String>,
    /// Mode.
    pub mode: Option<Mode>,
}
/// Mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Bind.
    Bind,
    /// Connect.
    Connect,
}
/// Transport.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Tcp.
    Tcp {
        /// Host.
        host: String,
        /// Port.
        port: Option<u16>,
    },
    /// Ipc.
    Ipc {
        /// Path.
        path: String,
    },
    /// Inproc.
    Inproc {
        /// Name.
        name: String,
    },
}
/// Bad spec.
#[derive(Debug, thiserror::Error)]
#[error("bad endpoint {0:?}")]
pub struct ParseEndpointError(String);

impl FromStr for Endpoint {
    type Err = ParseEndpointError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseEndpointError(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        let transport = match scheme {
            "tcp" => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
                let port = if port == "*" {
                    None
                } else {
                    Some(port.parse().map_err(|_| bad())?)
                };
                Transport::Tcp {
                    host: host.trim_matches(['[', ']']).to_owned(),
                    port,
                }
            }
            "ipc" => Transport::Ipc {
                path: rest.to_owned(),
            },
            "inproc" => Transport::Inproc {
                name: rest.to_owned(),
            },
            _ => return Err(bad()),
        };
        Ok(Self {
            transport,
            identity: None,
            mode: None,
        })
    }
}
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
impl Endpoint {
    /// One port down.
    pub fn one_port_down(&self) -> Option<Self> {
        match &self.transport {
            Transport::Tcp {
                host,
                port: Some(port),
            } => Some(Self {
                transport: Transport::Tcp {
                    host: host.clone(),
                    port: Some(port.checked_sub(1)?),
                },
                identity: self.identity.clone(),
                mode: self.mode,
            }),
            _ => None,
        }
    }
}
