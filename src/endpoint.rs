//! Socket specs: `tcp://IDENTITY@host:port#bind` and their kin.
//!
//! Pure text: nothing is looked up and nothing is opened here. The forms are libzmq's `tcp://`, `ipc://` and `inproc://`,
//! with m2wsgi's additions of an identity in front and of `#bind` or `#connect` behind, and with `broker+` before it all where a
//! broker is meant, to which workers go.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// The longest ipc path in bytes: `sun_path` has 108, and the last one is the final zero.
pub const IPC_PATH_MAX: usize = 107;

/// The longest identity in bytes: the protocol's own limit.
pub const IDENTITY_MAX: usize = 255;

/// Where a socket binds or connects, and under what identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address.
    pub transport: Transport,
    /// The socket's identity, if the spec names one.
    pub identity: Option<String>,
    /// Which side of the connection this is, if the spec says so.
    pub mode: Option<Mode>,
}

/// Where brokers take workers is marked so.
const BROKER: &str = "broker+";

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Transport {
    /// `tcp://host:port`.
    Tcp {
        /// `*`, a name, an IPv4 address, an IPv6 address without brackets, or the name of an interface.
        host: String,
        /// The port; none for `*` and 0, which mean any free one.
        port: Option<u16>,
    },
    /// `ipc://path`; `@name` is an abstract name, `*` a path of the system's choice.
    Ipc {
        /// The path, at most [`IPC_PATH_MAX`] bytes, relative to the working directory.
        path: String,
    },
    /// `inproc://name`: inside one process.
    Inproc {
        /// The name.
        name: String,
    },
}

/// Which side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Waits for others.
    Bind,
    /// Goes to another.
    Connect,
    /// Goes to a broker that takes workers there (`docs/broker-protocol.md`); one socket is both ways. Written `broker+` before the
    /// spec.
    Worker,
}

/// Why a text is no socket spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("socket spec `{}`: {reason}", .spec.escape_debug())]
pub struct EndpointError {
    /// The text.
    pub spec: String,
    /// What is wrong with it.
    pub reason: Reason,
}

/// The ways to be no socket spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// No `://` in it.
    #[error("no transport: write tcp://HOST:PORT, ipc://PATH or inproc://NAME")]
    NoTransport,
    /// Another word before `://`.
    #[error("unknown transport `{}`: tcp, ipc and inproc are known", .0.escape_debug())]
    UnknownTransport(String),
    /// A tcp spec with no colon behind its host.
    #[error("no port: write tcp://HOST:PORT, with * for any free port")]
    NoPort,
    /// A port that is no number from 0 to 65535 and not `*`.
    #[error("port `{}` is not a number from 1 to 65535, nor *", .0.escape_debug())]
    Port(String),
    /// Nothing between `//` and the port.
    #[error("no host: write * for all addresses of this machine")]
    NoHost,
    /// A host that cannot be one.
    #[error("`{}` is not a host name or address", .0.escape_debug())]
    Host(String),
    /// Nothing behind `ipc://`.
    #[error("no path")]
    NoPath,
    /// More bytes than a socket address holds.
    #[error("a path of {length} bytes: at most {IPC_PATH_MAX} fit a socket address")]
    PathLength {
        /// Bytes of the path.
        length: usize,
    },
    /// `ipc://@`: an abstract name needs at least one byte behind the `@`.
    #[error("an abstract name with nothing behind the @")]
    AbstractName,
    /// Nothing behind `inproc://`.
    #[error("no name")]
    NoName,
    /// Control bytes, which no spec has.
    #[error("control bytes cannot be part of it")]
    Control,
    /// Nothing before the `@`, or more than [`IDENTITY_MAX`] bytes.
    #[error("an identity of {length} bytes: 1 to {IDENTITY_MAX} are allowed")]
    Identity {
        /// Bytes of the identity.
        length: usize,
    },
    /// Another word than `bind` or `connect` behind `#`.
    #[error("`#{}`: only #bind and #connect are known", .0.escape_debug())]
    UnknownMode(String),
    /// `broker+` before a spec that ends in `#bind`.
    #[error("a worker goes to its broker: `broker+` and `#bind` do not go together")]
    BrokerBinds,
    /// `broker+inproc://`.
    #[error("a broker is at broker+tcp://HOST:PORT or broker+ipc://PATH")]
    BrokerInproc,
}

impl Endpoint {
    /// A tcp endpoint without identity and mode.
    pub fn tcp(host: impl Into<String>, port: Option<u16>) -> Endpoint {
        Transport::Tcp {
            host: host.into(),
            port,
        }
        .into()
    }

    /// Whether a broker takes workers there: `broker+` stands before the spec.
    pub fn is_broker(&self) -> bool {
        self.mode == Some(Mode::Worker)
    }

    /// Whether only this machine can reach it: loopback by its name or address, a file, or a name within the process.
    pub fn is_local(&self) -> bool {
        let Transport::Tcp { host, .. } = &self.transport else {
            return true;
        };
        let is_loopback = |address: IpAddr| address.is_loopback();
        host == "localhost" || host == "lo" || host.parse().is_ok_and(is_loopback)
    }

    /// The same place as one where a broker takes workers.
    #[must_use]
    pub fn as_broker(mut self) -> Self {
        self.mode = Some(Mode::Worker);
        self
    }

    /// As it is written in a spec, `broker+` and all.
    pub fn spec(&self) -> String {
        let broker = if self.is_broker() { BROKER } else { "" };
        let address = self.transport.to_string();
        let (scheme, address) = address.split_once("://").unwrap_or(("tcp", &address));
        let identity = self.identity.as_ref();
        let identity = identity
            .map(|identity| format!("{identity}@"))
            .unwrap_or_default();
        let mode = match self.mode {
            Some(Mode::Bind) => "#bind",
            Some(Mode::Connect) => "#connect",
            Some(Mode::Worker) | None => "",
        };
        format!("{broker}{scheme}://{identity}{address}{mode}")
    }

    /// The same with the port below it: where a handler's receive spec is when only its send spec was given.
    ///
    /// None for what has no port, no certain port, or no port below.
    pub fn one_port_down(&self) -> Option<Endpoint> {
        let Transport::Tcp {
            host,
            port: Some(port @ 2..),
        } = &self.transport
        else {
            return None;
        };
        let transport = Transport::Tcp {
            host: host.clone(),
            port: Some(port - 1),
        };
        Some(Endpoint {
            transport,
            ..self.clone()
        })
    }
}

impl From<Transport> for Endpoint {
    fn from(transport: Transport) -> Self {
        Endpoint {
            transport,
            identity: None,
            mode: None,
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(spec: &str) -> Result<Self, EndpointError> {
        parse(spec).map_err(|reason| EndpointError {
            spec: spec.to_owned(),
            reason,
        })
    }
}

fn parse(spec: &str) -> Result<Endpoint, Reason> {
    let (transport, rest) = spec.split_once("://").ok_or(Reason::NoTransport)?;
    let (is_broker, transport) = transport
        .strip_prefix(BROKER)
        .map_or((false, transport), |transport| (true, transport));
    if spec.chars().any(char::is_control) {
        return Err(Reason::Control);
    }
    let (rest, mode) = match rest.rsplit_once('#') {
        Some((rest, "bind")) => (rest, Some(Mode::Bind)),
        Some((rest, "connect")) => (rest, Some(Mode::Connect)),
        // A path or a name may well contain a `#`; a port cannot.
        Some((_, mode)) if transport == "tcp" => return Err(Reason::UnknownMode(mode.to_owned())),
        _ => (rest, None),
    };
    // An `@` at the very start of an ipc path is the mark of an abstract name, as libzmq has it; behind a slash it is
    // part of the path.
    let (identity, address) = match rest.split_once('@') {
        Some(_) if transport == "tcp" => rest
            .rsplit_once('@')
            .map_or((None, rest), |(name, host)| (Some(name), host)),
        Some((name, path)) if !name.is_empty() && !name.contains('/') => (Some(name), path),
        _ => (None, rest),
    };
    if let Some(identity) = identity
        && !(1..=IDENTITY_MAX).contains(&identity.len())
    {
        return Err(Reason::Identity {
            length: identity.len(),
        });
    }
    let transport = match transport {
        "tcp" => tcp(address)?,
        "ipc" => ipc(address)?,
        "inproc" if address.is_empty() => return Err(Reason::NoName),
        "inproc" => Transport::Inproc {
            name: address.to_owned(),
        },
        other => return Err(Reason::UnknownTransport(other.to_owned())),
    };
    let mode = match transport {
        _ if !is_broker => mode,
        Transport::Inproc { .. } => return Err(Reason::BrokerInproc),
        _ if mode == Some(Mode::Bind) => return Err(Reason::BrokerBinds),
        _ => Some(Mode::Worker),
    };
    Ok(Endpoint {
        transport,
        identity: identity.map(str::to_owned),
        mode,
    })
}

fn tcp(address: &str) -> Result<Transport, Reason> {
    let bad = |host: &str| Reason::Host(host.to_owned());
    let (host, port) = if let Some(bracketed) = address.strip_prefix('[') {
        let (host, behind) = bracketed.split_once(']').ok_or_else(|| bad(address))?;
        if !is_ipv6(host) || !(behind.is_empty() || behind.starts_with(':')) {
            return Err(bad(address));
        }
        (host, behind.strip_prefix(':').ok_or(Reason::NoPort)?)
    } else {
        // libzmq takes IPv6 addresses without brackets too: the last colon is the port's.
        let (host, port) = address.rsplit_once(':').ok_or(Reason::NoPort)?;
        if host.contains(':') && !is_ipv6(host) {
            return Err(bad(host));
        }
        (host, port)
    };
    if host.is_empty() {
        return Err(Reason::NoHost);
    }
    let can_be = |char: char| char.is_alphanumeric() || "-_.:%*".contains(char);
    if !host.chars().all(can_be) || (host.contains('*') && host != "*") {
        return Err(bad(host));
    }
    Ok(Transport::Tcp {
        host: host.to_owned(),
        port: parse_port(port)?,
    })
}

/// An IPv6 address, with a zone perhaps.
fn is_ipv6(host: &str) -> bool {
    let (address, zone) = host.split_once('%').unwrap_or((host, "zone"));
    address.parse::<Ipv6Addr>().is_ok() && !zone.is_empty()
}

fn parse_port(text: &str) -> Result<Option<u16>, Reason> {
    if text == "*" {
        return Ok(None);
    }
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port: Option<u16> = if digits { text.parse().ok() } else { None };
    match port {
        None => Err(Reason::Port(text.to_owned())),
        Some(0) => Ok(None),
        some => Ok(some),
    }
}

fn ipc(path: &str) -> Result<Transport, Reason> {
    match path {
        "" => Err(Reason::NoPath),
        "@" => Err(Reason::AbstractName),
        _ if path.len() > IPC_PATH_MAX => Err(Reason::PathLength { length: path.len() }),
        _ => Ok(Transport::Ipc {
            path: path.to_owned(),
        }),
    }
}

/// What libzmq understands: without identity, mode and `broker+`, IPv6 in brackets, `*` for any port. See [`Endpoint::spec`].
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.transport.fmt(f)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transport::Tcp { host, port } => {
                if host.contains(':') {
                    write!(f, "tcp://[{host}]:")?;
                } else {
                    write!(f, "tcp://{host}:")?;
                }
                match port {
                    Some(port) => port.fmt(f),
                    None => f.write_str("*"),
                }
            }
            Transport::Ipc { path } => write!(f, "ipc://{path}"),
            Transport::Inproc { name } => write!(f, "inproc://{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `spec` parses, and prints as `shown`.
    #[track_caller]
    fn check(spec: &str, shown: &str) -> Endpoint {
        let endpoint: Endpoint = spec.parse().unwrap();
        assert_eq!(endpoint.to_string(), shown);
        endpoint
    }

    #[track_caller]
    fn check_error(spec: &str, text: &str) {
        let error = spec.parse::<Endpoint>().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("socket spec `{}`: {text}", spec.escape_debug())
        );
    }

    #[test]
    fn tcp_specs_read_as_libzmq_reads_them() {
        for (spec, host, port) in [
            ("tcp://127.0.0.1:9999", "127.0.0.1", Some(9999)),
            ("tcp://localhost:1", "localhost", Some(1)),
            (
                "tcp://my-host_2.example.com:65535",
                "my-host_2.example.com",
                Some(65535),
            ),
            ("tcp://*:9999", "*", Some(9999)),
            ("tcp://eth0:9999", "eth0", Some(9999)),
            ("tcp://[::1]:9999", "::1", Some(9999)),
            ("tcp://[::]:*", "::", None),
            ("tcp://[fe80::1%eth0]:9999", "fe80::1%eth0", Some(9999)),
            ("tcp://*:*", "*", None),
        ] {
            let endpoint = check(spec, spec);
            assert_eq!(endpoint, Endpoint::tcp(host, port), "{spec}");
        }
        check("tcp://::1:9999", "tcp://[::1]:9999");
        check("tcp://127.0.0.1:0", "tcp://127.0.0.1:*");
        check("tcp://127.0.0.1:08080", "tcp://127.0.0.1:8080");
    }

    #[test]
    fn an_identity_and_a_mode_are_read_and_not_printed() {
        let endpoint = check("tcp://main@127.0.0.1:9999#bind", "tcp://127.0.0.1:9999");
        assert_eq!(endpoint.identity.as_deref(), Some("main"));
        assert_eq!(endpoint.mode, Some(Mode::Bind));
        let endpoint = check("tcp://a@b:c/d@[::1]:9999#connect", "tcp://[::1]:9999");
        assert_eq!(endpoint.identity.as_deref(), Some("a@b:c/d"));
        assert_eq!(endpoint.mode, Some(Mode::Connect));
        let endpoint = check("ipc://main@run/send#connect", "ipc://run/send");
        assert_eq!(endpoint.identity.as_deref(), Some("main"));
        assert_eq!(endpoint.mode, Some(Mode::Connect));
        assert_eq!(check("tcp://*:1", "tcp://*:1").mode, None);
    }

    #[test]
    fn ipc_paths_may_hold_what_paths_may_hold() {
        for spec in [
            "ipc://run/control",
            "ipc:///tmp/a b@c#d",
            "ipc://@abstract",
            "ipc://*",
            "ipc:///tmp/ü",
        ] {
            let endpoint = check(spec, spec);
            assert_eq!(endpoint.identity, None, "{spec}");
        }
        let longest = "x".repeat(IPC_PATH_MAX);
        check(&format!("ipc://{longest}"), &format!("ipc://{longest}"));
        check_error(
            &format!("ipc://{longest}x"),
            "a path of 108 bytes: at most 107 fit a socket address",
        );
        check_error("ipc://", "no path");
        check_error("ipc://@", "an abstract name with nothing behind the @");
        check_error("ipc://a\0b", "control bytes cannot be part of it");
    }

    #[test]
    fn inproc_has_a_name() {
        check("inproc://bus", "inproc://bus");
        check_error("inproc://", "no name");
    }

    #[test]
    fn a_broker_is_marked_and_goes_both_ways() {
        for spec in [
            "broker+tcp://127.0.0.1:9000",
            "broker+ipc:///run/workers",
            "broker+tcp://me@[::1]:9000",
            "tcp://me@*:1#bind",
            "ipc://me@a/b#connect",
        ] {
            let endpoint: Endpoint = spec.parse().unwrap();
            assert_eq!(endpoint.is_broker(), spec.starts_with("broker+"), "{spec}");
            assert_eq!(endpoint.spec(), spec);
        }
        check("broker+tcp://127.0.0.1:9000", "tcp://127.0.0.1:9000");
        check_error(
            "broker+tcp://a:1#bind",
            "a worker goes to its broker: `broker+` and `#bind` do not go together",
        );
        check_error(
            "broker+inproc://a",
            "a broker is at broker+tcp://HOST:PORT or broker+ipc://PATH",
        );
        check_error(
            "broker+http://a:1",
            "unknown transport `http`: tcp, ipc and inproc are known",
        );
    }

    #[test]
    fn errors_say_what_to_write_instead() {
        let transport = "no transport: write tcp://HOST:PORT, ipc://PATH or inproc://NAME";
        check_error("", transport);
        check_error("127.0.0.1:9999", transport);
        check_error("tcp:127.0.0.1:9999", transport);
        check_error(
            "http://a:1",
            "unknown transport `http`: tcp, ipc and inproc are known",
        );
        check_error(
            "TCP://a:1",
            "unknown transport `TCP`: tcp, ipc and inproc are known",
        );
        let port = "no port: write tcp://HOST:PORT, with * for any free port";
        check_error("tcp://127.0.0.1", port);
        check_error("tcp://[::1]", port);
        check_error("tcp://", port);
        check_error(
            "tcp://:9999",
            "no host: write * for all addresses of this machine",
        );
        check_error(
            "tcp://a:65536",
            "port `65536` is not a number from 1 to 65535, nor *",
        );
        check_error("tcp://a:", "port `` is not a number from 1 to 65535, nor *");
        check_error(
            "tcp://a:+1",
            "port `+1` is not a number from 1 to 65535, nor *",
        );
        check_error(
            "tcp://a:1/",
            "port `1/` is not a number from 1 to 65535, nor *",
        );
        check_error("tcp://a b:1", "`a b` is not a host name or address");
        check_error("tcp://a/b:1", "`a/b` is not a host name or address");
        check_error("tcp://**:1", "`**` is not a host name or address");
        check_error("tcp://1:2:3", "`1:2` is not a host name or address");
        check_error("tcp://[::1:1", "`[::1:1` is not a host name or address");
        check_error("tcp://[eth0]:1", "`[eth0]:1` is not a host name or address");
        check_error(
            "tcp://[::1]9999",
            "`[::1]9999` is not a host name or address",
        );
        check_error(
            "tcp://a:1#listen",
            "`#listen`: only #bind and #connect are known",
        );
        check_error("tcp://@a:1", "an identity of 0 bytes: 1 to 255 are allowed");
        check_error(
            &format!("tcp://{}@a:1", "i".repeat(256)),
            "an identity of 256 bytes: 1 to 255 are allowed",
        );
        check_error("tcp://a:1\n", "control bytes cannot be part of it");
    }

    #[test]
    fn the_receive_spec_is_one_port_down_with_all_the_rest() {
        let down = |spec: &str| spec.parse::<Endpoint>().unwrap().one_port_down();
        assert_eq!(
            down("tcp://main@[::1]:9999#bind"),
            Some("tcp://main@[::1]:9998#bind".parse().unwrap())
        );
        for without in [
            "tcp://a:1",
            "tcp://a:*",
            "tcp://a:0",
            "ipc://a",
            "inproc://a",
        ] {
            assert_eq!(down(without), None, "{without}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_as_the_same_address(spec in "(tcp|ipc)://[a-z0-9*:.%\\[\\]@#-]{0,20}(:[0-9]{1,5})?") {
            if let Ok(endpoint) = spec.parse::<Endpoint>()
                && !matches!(&endpoint.transport, Transport::Ipc { path } if path.contains(['@', '#']))
            {
                let again: Endpoint = endpoint.to_string().parse().unwrap();
                prop_assert_eq!(again, Endpoint::from(endpoint.transport));
            }
        }

        #[test]
        fn any_text_parses_or_is_refused_in_one_line(spec in "\\PC*|(tcp|ipc|inproc)://.*") {
            if let Err(error) = spec.parse::<Endpoint>() {
                prop_assert!(!error.to_string().contains(char::is_control));
            }
        }
    }
}
