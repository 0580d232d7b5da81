//! An operator's line to the control port of a server, Lurcher's or Mongrel2's: one question, one answer.
//!
//! The address is taken from the configuration as the server takes it. Whoever answers there must be the server that was
//! meant, since servers may share an address. Nothing is repeated: a server that does not answer in time is an error.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};

use super::port;
use crate::bus::client::{Context, Options, Requester};
use crate::config::Loaded;
use crate::control::{Answer, Cell, Question, Table};
use crate::endpoint::{Endpoint, Transport};

/// Commands after which a Mongrel2 may end before its answer has left.
const ENDING: [&str; 2] = ["stop", "terminate"];

/// How often it is looked whether a server has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Nobody who was meant answers: what `running` is asked about.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Absent(String);

/// Which server is meant.
#[derive(Debug)]
pub(super) struct Meant {
    /// What to call it: its name, or its uuid where it has none.
    pub(super) name: String,
    uuid: String,
}

/// Where to ask the chosen server of a configuration.
///
/// # Errors
///
/// When its control port has no address that could be known.
pub(super) fn find(loaded: &Loaded) -> anyhow::Result<(Endpoint, Meant)> {
    let server = &loaded.config.servers[loaded.server];
    let plain = port::address(server, &loaded.config.settings)?;
    let inside = port::inside_chroot(plain.clone(), &server.chroot);
    // A Mongrel2 that is not root stays outside of its chroot, and has its socket there.
    let outside = |endpoint: &Endpoint| matches!(&endpoint.transport, Transport::Ipc { path } if !Path::new(path).exists());
    let mut endpoint = if outside(&inside) && !outside(&plain) {
        plain
    } else {
        inside
    };
    if let Transport::Tcp { host, port } = &mut endpoint.transport {
        if port.is_none() {
            bail!(
                "the control port of {} is any free one: name it with --control",
                server.uuid
            );
        }
        // Every address of the machine, and so this one.
        if host == "*" {
            "127.0.0.1".clone_into(host);
        }
    }
    let name = if server.name.is_empty() {
        server.uuid.clone()
    } else {
        server.name.clone()
    };
    let uuid = server.uuid.clone();
    Ok((endpoint, Meant { name, uuid }))
}

/// A line that is open.
#[derive(Debug)]
pub(super) struct Line {
    // Dropped before the runtime that it is registered with.
    requester: Requester,
    runtime: Runtime,
    endpoint: Endpoint,
    name: String,
    timeout: Duration,
}

impl Line {
    /// Opens a line; an answer is waited for no longer than `timeout`. If a server is meant, whoever answers must be it.
    ///
    /// # Errors
    ///
    /// [`Absent`] when nobody answers there, or another server does.
    pub(super) fn open(
        endpoint: Endpoint,
        meant: Option<Meant>,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        let requester = runtime.block_on(async {
            // A host that swallows packets is waited for no longer than one that swallows questions.
            if let Ok(reached) = tokio::time::timeout(timeout, reach(&endpoint)).await {
                reached?;
            }
            let options = Options {
                linger: Duration::ZERO,
                ..Options::default()
            };
            let requester = Requester::connect(&Context::new(), &endpoint, &options)?;
            anyhow::Ok(requester)
        })?;
        let mut line = Self {
            runtime,
            requester,
            name: endpoint.to_string(),
            endpoint,
            timeout,
        };
        if let Some(meant) = meant {
            line.be(meant)?;
        }
        Ok(line)
    }

    /// Asks whoever answers who it is.
    fn be(&mut self, meant: Meant) -> anyhow::Result<()> {
        let endpoint = self.endpoint.clone();
        let told = match &self.ask(&plain("uuid"))? {
            Answer::Table(table) => match table.rows.first().map(Vec::as_slice) {
                Some([Cell::Text(told)]) => told.clone(),
                _ => bail!("ask {endpoint} who it is: it does not say"),
            },
            Answer::Error { code, error } => return Err(refused(code.as_deref(), error)),
        };
        if told != meant.uuid {
            let told = clean(&told);
            return Err(Absent(format!("at {endpoint} is another server, {told}")).into());
        }
        self.name = meant.name;
        Ok(())
    }

    /// Who answers: the server that was meant, or an address.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Asks a question.
    ///
    /// # Errors
    ///
    /// [`Absent`] when no answer comes in time.
    pub(super) fn ask(&mut self, question: &Question) -> anyhow::Result<Answer> {
        let encoded = question.encode();
        let endpoint = &self.endpoint;
        let asked = self.requester.ask(&encoded);
        let (timeout, waited) = (self.timeout, self.timeout.as_secs_f64());
        let answer = self.runtime.block_on(async {
            tokio::select! {
                answer = tokio::time::timeout(timeout, asked) => answer.map(Some).map_err(|_| {
                    Absent(format!("{endpoint} gives no answer within {waited} s"))
                }),
                () = ended(endpoint), if ENDING.contains(&question.command.as_str()) => Ok(None),
            }
        })?;
        let Some(answer) = answer.transpose()? else {
            return Ok(Table::single("msg", "the server has ended").into());
        };
        Answer::decode(&answer)
            .with_context(|| format!("ask {endpoint}: what answers is no control port"))
    }
}

/// Waits until nobody listens any more.
async fn ended(endpoint: &Endpoint) {
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        if reach(endpoint).await.is_err() {
            return;
        }
    }
}

/// Says at once that nobody listens, which the socket would wait for.
async fn reach(endpoint: &Endpoint) -> Result<(), Absent> {
    let reached = match &endpoint.transport {
        Transport::Ipc { path } if !path.starts_with('@') => {
            UnixStream::connect(path).await.map(drop)
        }
        Transport::Tcp {
            host,
            port: Some(port),
        } => TcpStream::connect((host.as_str(), *port)).await.map(drop),
        _ => Ok(()),
    };
    reached.map_err(|error| Absent(format!("no control port at {endpoint}: {}", lower(&error))))
}

/// The system's words without its number.
fn lower(error: &io::Error) -> String {
    let text = error.to_string().to_lowercase();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// A question without arguments.
pub(super) fn plain(command: &str) -> Question {
    Question {
        command: command.to_owned(),
        arguments: Vec::new(),
    }
}

/// An error that the server has answered.
pub(super) fn refused(code: Option<&str>, error: &str) -> anyhow::Error {
    let (code, error) = (code.map(clean), clean(error));
    match code {
        Some(code) => anyhow!("the server refuses: {code}: {error}"),
        None => anyhow!("the server refuses: {error}"),
    }
}

/// What another process says, without what a terminal would obey.
pub(super) fn clean(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { '\u{fffd}' } else { char })
        .collect()
}
