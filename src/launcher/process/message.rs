//! What the privileged parent of a jail and the server inside say to each other.
//!
//! Each message is one tnetstring list that begins with its name; that both ends are one program, of one version, is what
//! makes the form a private matter. The parent believes nothing that comes out of the jail: its messages are few, small and
//! checked. Descriptors travel beside the messages (`sys::send_descriptors`), and this file does no I/O.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::snapshot::{Remark, Snapshot};
use crate::config::{self, Config, Server, Severity, Target};
use crate::front::tls::Keys;
use crate::tnetstring::{self, Limits, Split, Value};

/// What the parent may send at once: a configuration of 16 MiB with its certificates.
pub(super) const INTO_JAIL_MAX: usize = 64 << 20;

/// What the jail may send at once: it has names to send, and nothing else.
pub(super) const OUT_OF_JAIL_MAX: usize = 1 << 10;

/// From the parent to the server in the jail.
#[derive(Debug)]
pub(super) enum Into {
    /// Lock yourself in.
    Enter {
        /// The directory, as seen from outside.
        chroot: PathBuf,
        /// The directory of the pid file, as seen from inside; a descriptor of it is wanted.
        pid_directory: Option<PathBuf>,
        /// How many files the server may open.
        max_fd: u64,
    },
    /// Serve this; the listener comes with it.
    Start {
        /// The configuration and what belongs to it.
        snapshot: Snapshot,
        /// Whether nobody reads stderr once the server is ready.
        detached: bool,
    },
    /// The answer to [`OutOf::Read`] and [`OutOf::Renew`].
    Snapshot(Snapshot),
    /// The answer when there is nothing to run: why.
    Refused(String),
}

/// From the server in the jail to the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutOf {
    /// It is inside; the descriptor of the pid file's directory comes with it, where one was wanted.
    Entered,
    /// It serves, or has finished a reload.
    Ready,
    /// It would like to have the configuration as it is now.
    Read,
    /// It would like to have the key files as they are now, with the configuration that it has.
    Renew,
    /// It begins to stop.
    Stopping,
}

/// Why bytes are no message. Both ends being one program, it is a bug or an attack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unexpected message from the other side of the jail: {0}")]
pub(super) struct Unexpected(pub(super) String);

/// The length of the whole message at the front of `bytes`; `None`: more bytes are needed. Of a message that is too large
/// nothing is awaited.
pub(super) fn whole(bytes: &[u8], max: usize) -> Result<Option<usize>, Unexpected> {
    match tnetstring::split(bytes, limits(max)) {
        Ok(Split::Complete(element)) => Ok(Some(bytes.len() - element.rest.len())),
        Ok(Split::Partial { .. }) => Ok(None),
        Err(error) => Err(Unexpected(error.to_string())),
    }
}

fn limits(size: usize) -> Limits {
    Limits {
        depth: 4,
        digits: 9,
        size,
    }
}

fn list(bytes: &[u8], max: usize) -> Result<Vec<Value<'_>>, Unexpected> {
    match tnetstring::parse(bytes, limits(max)) {
        Ok(tnetstring::Parsed::Complete {
            value: Value::List(items),
            ..
        }) => Ok(items),
        Ok(_) => Err(Unexpected("no list".to_owned())),
        Err(error) => Err(Unexpected(error.to_string())),
    }
}

fn encoded(items: Vec<Value<'_>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    Value::List(items).encode(&mut bytes);
    bytes
}

impl OutOf {
    const ALL: [(OutOf, &str); 5] = [
        (OutOf::Entered, "entered"),
        (OutOf::Ready, "ready"),
        (OutOf::Read, "read"),
        (OutOf::Renew, "renew"),
        (OutOf::Stopping, "stopping"),
    ];

    /// The message as bytes.
    pub(super) fn encode(self) -> Vec<u8> {
        let (_, name) = OutOf::ALL[self as usize];
        encoded(vec![Value::Bytes(name.as_bytes())])
    }

    /// Reads one whole message.
    pub(super) fn decode(bytes: &[u8]) -> Result<OutOf, Unexpected> {
        let items = list(bytes, OUT_OF_JAIL_MAX)?;
        let name = items.first().and_then(Value::as_bytes).unwrap_or_default();
        OutOf::ALL
            .iter()
            .find(|(_, known)| known.as_bytes() == name)
            .map(|(message, _)| *message)
            .ok_or_else(|| Unexpected(format!("{:?}", String::from_utf8_lossy(name))))
    }
}

impl Into {
    /// The message as bytes.
    ///
    /// # Errors
    ///
    /// A configuration that cannot be written down: what in it.
    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        Ok(match self {
            Into::Enter {
                chroot,
                pid_directory,
                max_fd,
            } => encoded(vec![
                Value::Bytes(b"enter"),
                path_value(chroot),
                pid_directory.as_deref().map_or(Value::Null, path_value),
                Value::Integer(i64::try_from(*max_fd).unwrap_or(i64::MAX)),
            ]),
            Into::Start { snapshot, detached } => {
                encode_snapshot("start", snapshot, Value::Bool(*detached))?
            }
            Into::Snapshot(snapshot) => encode_snapshot("snapshot", snapshot, Value::Null)?,
            Into::Refused(why) => {
                encoded(vec![Value::Bytes(b"refused"), Value::Bytes(why.as_bytes())])
            }
        })
    }

    /// Reads one whole message.
    pub(super) fn decode(bytes: &[u8]) -> Result<Into, Unexpected> {
        let items = list(bytes, INTO_JAIL_MAX)?;
        let mut items = items.iter();
        let name = items.next().and_then(Value::as_bytes).unwrap_or_default();
        match name {
            b"enter" => Ok(Into::Enter {
                chroot: items.next().and_then(path).ok_or_else(missing)?,
                pid_directory: items.next().and_then(path),
                max_fd: items
                    .next()
                    .and_then(Value::as_integer)
                    .and_then(|max| u64::try_from(max).ok())
                    .ok_or_else(missing)?,
            }),
            b"start" => {
                let detached = matches!(items.next(), Some(Value::Bool(true)));
                let snapshot = decode_snapshot(&mut items)?;
                Ok(Into::Start { snapshot, detached })
            }
            b"snapshot" => {
                items.next();
                Ok(Into::Snapshot(decode_snapshot(&mut items)?))
            }
            b"refused" => Ok(Into::Refused(text(items.next())?)),
            other => Err(Unexpected(format!("{:?}", String::from_utf8_lossy(other)))),
        }
    }
}

fn missing() -> Unexpected {
    Unexpected("a part is missing".to_owned())
}

fn path_value(path: &Path) -> Value<'_> {
    use std::os::unix::ffi::OsStrExt as _;
    Value::Bytes(path.as_os_str().as_bytes())
}

fn path(value: &Value<'_>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    value
        .as_bytes()
        .map(|bytes| PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
}

fn text(value: Option<&Value<'_>>) -> Result<String, Unexpected> {
    let bytes = value.and_then(Value::as_bytes).ok_or_else(missing)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| Unexpected("text that is no UTF-8".to_owned()))
}

fn encode_snapshot(name: &str, snapshot: &Snapshot, extra: Value<'_>) -> Result<Vec<u8>, String> {
    let conf = portable(&snapshot.path, &snapshot.config, snapshot.server())?;
    let remarks = snapshot
        .remarks
        .iter()
        .map(|remark| {
            Value::List(vec![
                Value::Bool(remark.severity == Severity::Note),
                Value::Bytes(remark.text.as_bytes()),
            ])
        })
        .collect();
    let files = snapshot
        .keys
        .files
        .iter()
        .map(|(name, bytes)| (name.as_bytes(), Value::Bytes(bytes)))
        .collect();
    let chain = snapshot.keys.ca_chain.as_deref();
    let bytes = encoded(vec![
        Value::Bytes(name.as_bytes()),
        extra,
        path_value(&snapshot.path),
        Value::Bytes(snapshot.prefix.as_bytes()),
        Value::Bool(snapshot.changed),
        Value::Bytes(conf.as_bytes()),
        Value::List(remarks),
        Value::Dict(files),
        chain.map_or(Value::Null, Value::Bytes),
        snapshot
            .mistakes
            .as_ref()
            .map_or(Value::Null, |mistakes| Value::Bytes(mistakes.as_bytes())),
    ]);
    if bytes.len() > INTO_JAIL_MAX {
        return Err(format!("it is larger than {} MiB", INTO_JAIL_MAX >> 20));
    }
    Ok(bytes)
}

fn decode_snapshot<'a>(
    items: &mut impl Iterator<Item = &'a Value<'a>>,
) -> Result<Snapshot, Unexpected> {
    let path = items.next().and_then(path).ok_or_else(missing)?;
    let prefix = text(items.next())?;
    let changed = matches!(items.next(), Some(Value::Bool(true)));
    let conf = items.next().and_then(Value::as_bytes).ok_or_else(missing)?;
    let config = config::conf::read(&path, conf).into_config();
    if config.servers.len() != 1 {
        return Err(Unexpected("a configuration without its server".to_owned()));
    }
    let remarks = items.next().and_then(Value::as_list).ok_or_else(missing)?;
    let remarks = remarks
        .iter()
        .map(|remark| {
            let note = matches!(
                remark.as_list().and_then(<[_]>::first),
                Some(Value::Bool(true))
            );
            Ok(Remark {
                severity: if note {
                    Severity::Note
                } else {
                    Severity::Warning
                },
                text: text(remark.as_list().and_then(|parts| parts.get(1)))?,
            })
        })
        .collect::<Result<_, Unexpected>>()?;
    let files = items.next().and_then(Value::as_dict).ok_or_else(missing)?;
    let files = files
        .iter()
        .map(|(name, bytes)| {
            let name = text(Some(&Value::Bytes(name)))?;
            Ok((name, bytes.as_bytes().ok_or_else(missing)?.to_vec()))
        })
        .collect::<Result<BTreeMap<_, _>, Unexpected>>()?;
    let ca_chain = items.next().and_then(Value::as_bytes).map(<[u8]>::to_vec);
    let mistakes = match items.next() {
        Some(Value::Null) => None,
        mistakes => Some(text(mistakes)?),
    };
    Ok(Snapshot {
        path,
        config,
        server: 0,
        prefix,
        keys: Keys { files, ca_chain },
        remarks,
        changed,
        mistakes,
    })
}

/// One server and all that is common to the servers, as `.conf` text that reads back as the same.
///
/// # Errors
///
/// What the language cannot hold; better no start than another configuration than the one that was checked.
fn portable(path: &Path, config: &Config, server: &Server) -> Result<String, String> {
    let alone = Config {
        servers: vec![slashed(server)],
        settings: config.settings.clone(),
        setting_rows: config.setting_rows.clone(),
        mimetypes: config.mimetypes.clone(),
    };
    let text = config::conf::print(&alone)?;
    let reading = config::conf::read(path, text.as_bytes());
    if reading.fatal {
        let first = reading
            .diagnostics
            .iter()
            .find(|d| d.severity == Severity::Error);
        return Err(first.map_or_else(String::new, |error| error.message.clone()));
    }
    if reading.into_config() != alone {
        return Err("a value in it changes when it is written down".to_owned());
    }
    Ok(text)
}

/// The same server with every directory's base ending in a slash, as the language wants it.
fn slashed(server: &Server) -> Server {
    let mut server = server.clone();
    for route in server.hosts.iter_mut().flat_map(|host| &mut host.routes) {
        if let Target::Dir(dir) = &mut route.target
            && !dir.base.ends_with('/')
        {
            let mut with = config::Dir::clone(dir);
            with.base.push('/');
            *dir = with.into();
        }
    }
    server
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let text = br#"
            app = Handler(send_spec="tcp://127.0.0.1:9999", send_ident="it's", recv_spec="tcp://127.0.0.1:9998", recv_ident="")
            files = Dir(base="www/", index_file="index.html", default_ctype="text/plain")
            other = Proxy(addr="example.com", port=8080)
            host = Host(name="localhost", routes={"/": app, "/files/": files, "/again/": files, "/other/": other})
            server_1 = Server(uuid="u", name="n", access_log="/a.log", error_log="/e.log", chroot="/srv", pid_file="/run/pid",
                control_port="", default_host="localhost", bind_addr="::1", port=80, hosts=[host])
            settings = {"limits.content_length": 10, "zz.unknown": "007"}
            mimetypes = {".zz": "text/zz", ".txt": "text/other"}
            servers = [server_1]
        "#;
        let reading = config::conf::read(Path::new("x.conf"), text);
        assert!(!reading.fatal, "{:?}", reading.diagnostics);
        Snapshot {
            path: PathBuf::from("/etc/x.conf"),
            config: reading.into_config(),
            server: 0,
            prefix: String::new(),
            keys: Keys {
                files: BTreeMap::from([("u.crt".to_owned(), vec![0, 255, 10])]),
                ca_chain: Some(b"chain".to_vec()),
            },
            remarks: vec![Remark {
                severity: Severity::Note,
                text: "a note".to_owned(),
            }],
            changed: true,
            mistakes: Some("x.conf:1:1: wrong".to_owned()),
        }
    }

    #[test]
    fn a_snapshot_arrives_as_it_left() {
        let sent = snapshot();
        let message = Into::Start {
            snapshot: sent.clone(),
            detached: true,
        };
        let bytes = message.encode().unwrap();
        assert_eq!(whole(&bytes, INTO_JAIL_MAX).unwrap(), Some(bytes.len()));
        let Into::Start {
            snapshot: got,
            detached,
        } = Into::decode(&bytes).unwrap()
        else {
            panic!("another message");
        };
        assert!(detached);
        assert_eq!(got, sent);
    }

    #[test]
    fn what_cannot_be_written_down_is_refused_before_it_is_sent() {
        let mut sent = snapshot();
        sent.config.servers[0].access_log = "both ' and \"".to_owned();
        let error = Into::Snapshot(sent).encode().unwrap_err();
        assert!(error.contains("both quotes"), "{error}");
    }

    #[test]
    fn the_parent_takes_its_five_words_and_nothing_else() {
        for (message, _) in OutOf::ALL {
            assert_eq!(OutOf::decode(&message.encode()), Ok(message));
        }
        for hostile in [
            &b"8:5:ready,"[..],
            b"5:ready,",
            b"9:6:kill -9]",
            b"0:]",
            b"\xff",
        ] {
            assert!(OutOf::decode(hostile).is_err(), "{hostile:?}");
        }
        assert_eq!(whole(b"8:5:rea", OUT_OF_JAIL_MAX), Ok(None));
        assert!(whole(b"99999999:", OUT_OF_JAIL_MAX).is_err());
        assert!(whole(b"x", OUT_OF_JAIL_MAX).is_err());
    }
}
