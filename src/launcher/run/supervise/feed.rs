//! Who takes the requests from the servers: each worker by itself, or this process for all, with a `broker::Feed` whose sockets
//! are in a directory that only the workers' user may enter.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use tokio::time::Instant;

use super::super::access_log::AccessLog;
use super::super::plan::{self, App, Plan};
use super::super::rights::Rights;
use crate::broker::{self, Feed};
use crate::bus::client::{Context, Options, Publisher};
use crate::drain::Watch;
use crate::endpoint::{Endpoint, Mode};
use crate::handler::{End, Exchange};

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
    let why = match plan.feed {
        plan::Feed::Direct => return Ok(None),
        plan::Feed::Supervisor => "as it is told to".to_owned(),
        plan::Feed::Auto if any_binds(&plan.servers) => return Ok(None),
        plan::Feed::Auto if is_program => "so that the program loses none".to_owned(),
        plan::Feed::Auto => match other_than_lurcher(plan).await? {
            None => return Ok(None),
            Some(why) => format!("since {why}"),
        },
    };
    let directory = Directory::make().context("make a directory for the workers' sockets")?;
    let log = match &plan.access_log {
        Some(path) => {
            let log = AccessLog::open(path);
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
    let feed = Feed::start(&plan.servers, &directory.0, settings, watch)
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

/// Which server is not there, or no Lurcher; nothing where all are. Only their sockets for replies are asked: what connects to
/// the others is given requests.
async fn other_than_lurcher(plan: &Plan) -> anyhow::Result<Option<String>> {
    let context = Context::new();
    let options = Options {
        linger: Duration::ZERO,
        ..Options::default()
    };
    let mut publishers = Vec::new();
    for (_, recv) in &plan.servers {
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

/// A directory of this process alone, gone with the value.
pub(super) struct Directory(PathBuf);

impl Directory {
    fn make() -> io::Result<Self> {
        let mut name = format!("lurcher-{}-", std::process::id());
        // Somebody else cannot have made it before: then it is an error.
        let chance = getrandom::u64().map_err(io::Error::other)?;
        // Writing to a String does not fail.
        let _ok = write!(name, "{chance:016x}");
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Lets the workers' user connect. Root may do so in any case.
    fn give(&self, rights: &Rights) -> io::Result<()> {
        if (rights.uid, rights.gid) == (None, None) {
            return Ok(());
        }
        let give = |path: &Path| chown(path, rights.uid, rights.gid);
        for entry in fs::read_dir(&self.0)? {
            give(&entry?.path())?;
        }
        give(&self.0)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("remove {}: {error}", self.0.display());
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
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_directory_is_its_owners_alone_and_goes() {
        let directory = Directory::make().unwrap();
        let path = directory.0.clone();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::write(path.join("0.send"), "").unwrap();
        directory.give(&Rights::default()).unwrap();
        drop(directory);
        assert!(!path.exists());
    }
}
