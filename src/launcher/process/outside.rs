//! What a serving process has to do with those around it: who waits until it serves, who may end, where its configuration
//! comes from. The same for a server on its own, in the background, among others and in a jail.

use std::io;
use std::os::unix::net::UnixStream as Blocking;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::warn;

use super::super::log;
use super::link::Link;
use super::message::{INTO_JAIL_MAX, Into, OutOf};
use super::snapshot::{Files, Snapshot};
use super::stdio::{Null, silence};
use super::systemd::Manager;
use super::tell_ready;

/// How long a parent may take to read a configuration.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Who waits until this process is ready.
#[derive(Debug)]
pub(super) enum Above {
    /// Nobody, or the service manager.
    Nobody,
    /// The process that was typed, which then ends: this one is in the background.
    Starter {
        /// Where it waits.
        socket: Blocking,
        /// Where the outputs go from then on.
        null: Null,
    },
    /// The process that holds several servers. They end with it.
    Holder(Blocking),
    /// The same, in a runtime.
    HolderWatched(UnixStream),
    /// It was told and has gone; this process is in the background.
    Told,
}

impl Above {
    /// Lets whoever is there know that this process serves. In the background, the outputs are let go of first, so that
    /// nobody who reads them waits for this process to end.
    pub(super) fn ready(&mut self) -> io::Result<()> {
        match std::mem::replace(self, Above::Nobody) {
            Above::Starter { socket, null } => {
                null.for_output()?;
                log::leave_stderr()?;
                tell_ready(&socket);
                *self = Above::Told;
            }
            Above::Holder(socket) => {
                tell_ready(&socket);
                socket.set_nonblocking(true)?;
                *self = Above::HolderWatched(UnixStream::from_std(socket)?);
            }
            other => *self = other,
        }
        Ok(())
    }

    /// Whether this process is in the background, or will be.
    pub(super) fn is_background(&self) -> bool {
        matches!(self, Above::Starter { .. } | Above::Told)
    }

    /// Completes when the process that holds this one has ended.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is ever sent.
    pub(super) async fn gone(&mut self) {
        let Above::HolderWatched(socket) = self else {
            return std::future::pending().await;
        };
        let mut byte = [0];
        while matches!(socket.read(&mut byte).await, Ok(read) if read > 0) {}
    }
}

/// All that a serving process has to do with others.
#[derive(Debug)]
pub(in crate::launcher) struct Outside(Kind);

#[derive(Debug)]
enum Kind {
    /// It reads its files itself.
    Free {
        /// Taken out while a thread reads them.
        files: Option<Box<Files>>,
        above: Above,
        manager: Manager,
    },
    /// It is in a jail, before its runtime has begun.
    Entering { socket: Blocking, detached: bool },
    /// It is in a jail.
    Jailed { link: Link },
}

impl Outside {
    pub(super) fn of_files(files: Files, above: Above, manager: Manager) -> Self {
        Self(Kind::Free {
            files: Some(Box::new(files)),
            above,
            manager,
        })
    }

    pub(super) fn of_jail(socket: Blocking, detached: bool) -> Self {
        Self(Kind::Entering { socket, detached })
    }

    /// Lets everybody know that this process serves. To be called in the runtime that serves, when all is bound and open and
    /// signals are listened to; once more when a reload has ended.
    ///
    /// # Errors
    ///
    /// When the system does not let go of the terminal, or a jail's parent has gone.
    ///
    /// # Cancel safety
    ///
    /// None: the parent may have got half a message.
    pub(in crate::launcher) async fn ready(&mut self) -> anyhow::Result<()> {
        match &mut self.0 {
            Kind::Free { above, manager, .. } => {
                above.ready().context("go into the background")?;
                manager.ready();
            }
            Kind::Entering { socket, detached } => {
                let mut link = Link::new(socket.try_clone()?, INTO_JAIL_MAX)?;
                if *detached {
                    silence().context("go into the background")?;
                    log::leave_stderr().context("go into the background")?;
                }
                send(&mut link, OutOf::Ready).await?;
                self.0 = Kind::Jailed { link };
            }
            Kind::Jailed { link } => send(link, OutOf::Ready).await?,
        }
        Ok(())
    }

    /// Lets whoever wants to know that the configuration is about to be read again; [`Outside::ready`] ends that.
    pub(in crate::launcher) fn reloading(&self) {
        // A jail's parent knows: the signal came by it, or the request comes.
        if let Kind::Free { manager, .. } = &self.0 {
            manager.reloading();
        }
    }

    /// Lets everybody know that this process begins to end.
    ///
    /// # Cancel safety
    ///
    /// None: the parent may have got half a message.
    pub(in crate::launcher) async fn stopping(&mut self) {
        match &mut self.0 {
            Kind::Free { manager, .. } => manager.stopping(),
            // A parent that has gone need not be told.
            Kind::Jailed { link } => drop(link.send(&OutOf::Stopping.encode()).await),
            Kind::Entering { .. } => {}
        }
    }

    /// Completes when this process has to end because the one that holds it has ended.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub(in crate::launcher) async fn gone(&mut self) {
        match &mut self.0 {
            Kind::Free { above, .. } => above.gone().await,
            Kind::Entering { .. } => std::future::pending().await,
            Kind::Jailed { link } => {
                // Nothing was asked: what comes now is the late answer to a question that was given up.
                while let Ok(Some(_)) = link.next().await {}
            }
        }
    }

    /// The configuration and the key files as they are now. The configuration is read again only when its file has changed
    /// ([`Snapshot::changed`]).
    ///
    /// # Errors
    ///
    /// When there is a mistake in it, or it cannot be read; the one before still counts then.
    ///
    /// # Cancel safety
    ///
    /// None: reading goes on, and later calls fail.
    pub(in crate::launcher) async fn read(&mut self) -> anyhow::Result<Snapshot> {
        match &mut self.0 {
            Kind::Free { files, .. } => {
                let mut reader = files.take().ok_or_else(|| anyhow!("it is being read"))?;
                let read = tokio::task::spawn_blocking(move || {
                    let snapshot = reader.read();
                    (reader, snapshot)
                });
                let (reader, snapshot) = read.await.context("read the configuration")?;
                *files = Some(reader);
                snapshot
            }
            Kind::Entering { .. } => bail!("the server has not begun"),
            Kind::Jailed { link } => {
                send(link, OutOf::Read).await?;
                let answer = timeout(READ_TIMEOUT, link.next());
                let answer = answer.await.context("the parent does not answer")??;
                let answer = answer.ok_or_else(|| anyhow!("the parent has gone"))?;
                match Into::decode(&answer)? {
                    Into::Snapshot(snapshot) => Ok(snapshot),
                    Into::Refused(why) => Err(anyhow!(why)),
                    Into::Enter { .. } | Into::Start { .. } => bail!("the parent is confused"),
                }
            }
        }
    }
}

async fn send(link: &mut Link, message: OutOf) -> anyhow::Result<()> {
    let sent = link.send(&message.encode()).await;
    if sent.is_err() {
        warn!("the parent of the jail has gone");
    }
    sent.context("tell the parent of the jail")
}
