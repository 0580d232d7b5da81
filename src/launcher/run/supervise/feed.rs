//! Who takes the requests from the servers: each worker by itself, or this process for all, with a `broker::Feed` whose sockets
//! are in a directory of this process's. Workers may open them, and neither remove them nor put others in their place.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use nix::unistd::geteuid;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use super::super::access_log::{AccessLog, Sink};
use super::super::plan::{self, App, Plan};
use super::super::rights::Rights;
use crate::broker::{self, Feed};
use crate::bus::client::{Context, Options, Publisher};
use crate::drain::Watch;
use crate::endpoint::{Endpoint, Mode, Transport};
use crate::handler::{End, Exchange};

/// What the directories of feeds begin with.
const PREFIX: &str = "lurcher-feed-";

/// Attempts to make one: the folder for such things is everybody's, and another process may be tidying it up.
const ATTEMPTS: usize = 10;

/// How long a host name may take to be looked up; after that it stays a name.
const LOOKUP: Duration = Duration::from_secs(5);

/// How long servers may take to say what they are. One that is not there is taken for a Mongrel2.
const PROBE: Duration = Duration::from_secs(1);

/// A feed of this process, and the directory of its sockets.
pub(super) struct Feeding {
    pub(super) feed: Rc<Feed>,
    pub(super) log: Option<Arc<AccessLog>>,
    pub(super) directory: Directory,
}

/// Begins to take requests, unless the workers do so themselves.
pub(super) async fn begin(
    plan: &Plan,
    rights: &Rights,
    watch: &Watch,
) -> anyhow::Result<Option<Feeding>> {
    let is_program = matches!(plan.app, App::Exec { .. });
    if plan.feed == plan::Feed::Direct
        || plan.has_broker()
        || (plan.feed == plan::Feed::Auto && any_binds(&plan.servers))
    {
        return Ok(None);
    }
    let mut servers = Vec::new();
    for pair in &plan.servers {
        servers.extend(at_each_address(pair).await);
    }
    let why = match plan.feed {
        plan::Feed::Direct => return Ok(None),
        plan::Feed::Supervisor => "as it is told to".to_owned(),
        plan::Feed::Auto if is_program => "so that the program loses none".to_owned(),
        plan::Feed::Auto => match other_than_lurcher(&servers).await? {
            None => return Ok(None),
            Some(why) => format!("since {why}"),
        },
    };
    let directory = Directory::make().context("make a directory for the workers' sockets")?;
    let log = match &plan.access_log {
        Some(path) => {
            let log = Sink::open(path).and_then(AccessLog::start);
            Some(Arc::new(log.with_context(|| {
                format!("open the access log {}", path.display())
            })?))
        }
        None => None,
    };
    let mut settings = broker::Settings::default();
    settings.ident.clone_from(&plan.ident);
    settings.slots = plan.concurrency;
    settings.observer = log.clone().map(|log| {
        let observer: Rc<dyn broker::Observer> = Rc::new(Observer { log, is_program });
        observer
    });
    let feed = Feed::start(&servers, &directory.path, settings, watch)
        .await
        .context("take requests from the servers")?;
    directory
        .give(rights)
        .context("give the workers' sockets to their user")?;
    // Workers tell of sockets in the directory only, which say nothing to whoever looks for a server.
    let specs = |of: fn(&(Endpoint, Endpoint)) -> &Endpoint| {
        let specs = plan.servers.iter().map(|pair| of(pair).to_string());
        specs.collect::<Vec<_>>().join(", ")
    };
    tracing::info!(
        "handler {}: takes the requests for its workers, {why}, from {}, replies to {}",
        plan.name,
        specs(|(send, _)| send),
        specs(|(_, recv)| recv),
    );
    Ok(Some(Feeding {
        feed: Rc::new(feed),
        log,
        directory,
    }))
}

fn any_binds(servers: &[(Endpoint, Endpoint)]) -> bool {
    let mut specs = servers.iter().flat_map(|(send, recv)| [send, recv]);
    specs.any(|spec| spec.mode == Some(Mode::Bind))
}

/// The servers behind a host name: one for each of its addresses, as they are now. A name with one address stays a name, which is
/// looked up with every attempt to connect.
async fn at_each_address(pair: &(Endpoint, Endpoint)) -> Vec<(Endpoint, Endpoint)> {
    let (send, recv) = pair;
    let addresses: BTreeSet<IpAddr> = match (host_name(send), host_name(recv)) {
        (Some(name), Some(other)) if name == other => {
            // Port 0 is not looked up.
            let found = timeout(LOOKUP, lookup_host((name, 0))).await;
            found
                .into_iter()
                .flatten()
                .flatten()
                .map(|address| address.ip())
                .collect()
        }
        _ => BTreeSet::new(),
    };
    at_each(pair, addresses)
}

/// In one family: a server that listens on both would be connected to twice. IPv4 where there is any, as libzmq has it.
fn at_each(
    pair: &(Endpoint, Endpoint),
    mut addresses: BTreeSet<IpAddr>,
) -> Vec<(Endpoint, Endpoint)> {
    if addresses.iter().any(IpAddr::is_ipv4) {
        addresses.retain(IpAddr::is_ipv4);
    }
    if addresses.len() < 2 {
        return vec![pair.clone()];
    }
    let at = |spec: &Endpoint, address: IpAddr| {
        let mut spec = spec.clone();
        if let Transport::Tcp { host, .. } = &mut spec.transport {
            *host = address.to_string();
        }
        spec
    };
    let pairs = addresses
        .iter()
        .map(|address| (at(&pair.0, *address), at(&pair.1, *address)));
    pairs.collect()
}

/// The host name that a spec connects to, if it has one: no address, and nothing else that is no name.
fn host_name(spec: &Endpoint) -> Option<&str> {
    match &spec.transport {
        Transport::Tcp { host, .. }
            if host.parse::<IpAddr>().is_err() && !host.contains(['*', ';', ':', '%']) =>
        {
            Some(host)
        }
        _ => None,
    }
}

/// Which server is not there, or no Lurcher; nothing where all are. Only their sockets for replies are asked: what connects to
/// the others is given requests.
async fn other_than_lurcher(servers: &[(Endpoint, Endpoint)]) -> anyhow::Result<Option<String>> {
    let context = Context::new();
    let options = Options {
        linger: Duration::ZERO,
        ..Options::default()
    };
    let mut publishers = Vec::new();
    for (_, recv) in servers {
        publishers.push(Publisher::connect(&context, recv, &options, PROBE)?);
    }
    let deadline = Instant::now() + PROBE;
    let mut other = None;
    for publisher in &publishers {
        let is_there = publisher.subscribed(deadline).await;
        let spec = publisher.endpoint();
        if !is_there.with_context(|| format!("ask {spec}"))? {
            other.get_or_insert_with(|| format!("nobody is at {spec} yet"));
        } else if !publisher.is_lurcher() {
            other.get_or_insert_with(|| format!("{spec} is no Lurcher's"));
        }
    }
    drop(publishers);
    context.close().await;
    Ok(other)
}

/// A directory of this process's, gone with the value. It is locked for as long as the process lives, so that one that was killed
/// leaves nothing for good: the next takes away what nobody has locked.
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// Itself, locked.
    _lock: File,
}

impl Directory {
    pub(super) fn make() -> io::Result<Self> {
        let folder = std::env::temp_dir();
        sweep(&folder);
        for _ in 0..ATTEMPTS {
            let mut name = format!("{PREFIX}{}-", std::process::id());
            // Somebody else cannot have made it before: then it is an error.
            let chance = getrandom::u64().map_err(io::Error::other)?;
            // Writing to a String does not fail.
            let _ok = write!(name, "{chance:016x}");
            let path = folder.join(name);
            DirBuilder::new().mode(0o700).create(&path)?;
            // Whoever tidies up may have found it before it is locked.
            if let Ok(lock) = File::open(&path)
                && lock.try_lock().is_ok()
                && fs::metadata(&path).is_ok()
            {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::Error::other("it is taken away again and again"))
    }

    /// Lets the workers' user open the sockets, and nobody but that user and root. The directory stays this process's.
    pub(super) fn give(&self, rights: &Rights) -> io::Result<()> {
        let uid = rights.uid.unwrap_or(geteuid().as_raw());
        for entry in fs::read_dir(&self.path)? {
            chown(entry?.path(), Some(uid), rights.gid)?;
        }
        let mode = if uid == geteuid().as_raw() {
            0o700
        } else {
            0o711
        };
        fs::set_permissions(&self.path, Permissions::from_mode(mode))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("remove {}: {error}", self.path.display());
        }
    }
}

/// Takes away what processes of this user have left that were killed.
fn sweep(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let is_ours = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
            && entry
                .metadata()
                .is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw());
        if is_ours
            && let Ok(lock) = File::open(entry.path())
            && lock.try_lock().is_ok()
        {
            // Another one may do the same.
            let _ok = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes the lines that no worker writes: all of a program's, and those of requests that were lost with a worker.
struct Observer {
    log: Arc<AccessLog>,
    is_program: bool,
}

impl broker::Observer for Observer {
    fn ended(&self, exchange: &broker::Exchange) {
        let end = match exchange.end {
            broker::End::Answered => End::Answered,
            broker::End::ClientGone => End::ClientGone,
            broker::End::Failed(_) => End::GivenUp,
        };
        if !self.is_program && end != End::GivenUp {
            return;
        }
        let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        self.log.write(&Exchange {
            sender: text(&exchange.sender),
            conn_id: exchange.conn_id,
            method: text(&exchange.method),
            uri: text(&exchange.uri),
            version: text(&exchange.version),
            remote_addr: text(&exchange.remote),
            referer: Bytes::new(),
            user_agent: Bytes::new(),
            started: exchange.came,
            duration: exchange.took,
            status: exchange.status,
            bytes: exchange.bytes,
            end,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_its_owners_alone_and_goes() {
        let directory = Directory::make().unwrap();
        let path = directory.path.clone();
        let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o700);
        fs::write(path.join("0.send"), "").unwrap();
        directory.give(&Rights::default()).unwrap();
        assert_eq!(mode(), 0o700);
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn a_workers_user_gets_the_sockets_and_not_the_directory() {
        if !geteuid().is_root() {
            println!("skipped: only root can give files away");
            return;
        }
        let directory = Directory::make().unwrap();
        let socket = directory.path.join("0.send");
        fs::write(&socket, "").unwrap();
        let rights = Rights {
            uid: Some(65_534),
            ..Rights::default()
        };
        directory.give(&rights).unwrap();
        let found = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            (found.uid(), found.mode() & 0o777)
        };
        assert_eq!(found(&directory.path), (0, 0o711));
        assert_eq!(found(&socket).0, 65_534);
        directory.give(&Rights::default()).unwrap();
        assert_eq!(found(&directory.path), (0, 0o700));
        assert_eq!(found(&socket).0, 0);
    }

    #[test]
    fn a_name_with_several_addresses_is_several_servers_of_one_family() {
        let pair = ["tcp://app.example:9999", "tcp://app.example:9998"];
        let [send, recv] = pair.map(|spec| spec.parse::<Endpoint>().unwrap());
        let pair = (send, recv);
        let each = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|text| text.parse().unwrap());
            at_each(&pair, addresses.collect())
                .iter()
                .map(|(send, recv)| format!("{send} {recv}"))
                .collect::<Vec<_>>()
        };
        let named = ["tcp://app.example:9999 tcp://app.example:9998"];
        assert_eq!(each(&[]), named);
        assert_eq!(each(&["10.0.0.1", "::1"]), named);
        assert_eq!(
            each(&["10.0.0.2", "10.0.0.1", "::1"]),
            [
                "tcp://10.0.0.1:9999 tcp://10.0.0.1:9998",
                "tcp://10.0.0.2:9999 tcp://10.0.0.2:9998"
            ]
        );
        assert_eq!(each(&["::1", "::2"]).len(), 2);
        assert_eq!(host_name(&pair.0), Some("app.example"));
        for spec in ["tcp://10.0.0.1:1", "ipc:///tmp/x"] {
            assert_eq!(host_name(&spec.parse().unwrap()), None, "{spec}");
        }
    }

    #[test]
    fn what_a_killed_process_has_left_is_taken_away_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let [left, held, other] = ["lurcher-feed-1-a", "lurcher-feed-2-b", "lurcher-x"].map(path);
        for path in [&left, &held, &other] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("0.send"), "").unwrap();
        }
        fs::write(path("lurcher-feed-file"), "").unwrap();
        let lock = File::open(&held).unwrap();
        lock.try_lock().unwrap();
        sweep(folder.path());
        assert!(!left.exists());
        assert!(held.exists() && other.exists() && path("lurcher-feed-file").exists());
    }
}
