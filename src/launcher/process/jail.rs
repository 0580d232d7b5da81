//! The parent of a jail: root, outside, small. It reads the configuration and the keys, binds the TCP port, writes the pid
//! file, passes all that in, and then passes signals on and answers the question what the configuration is now.
//!
//! It has no port of its own open, and believes four words from inside. It never restarts a server: that is for whoever
//! started this process. When one of the two ends, so does the other.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Backlog, listen};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::runtime::Builder;
use tokio::signal::unix::SignalKind;
use tracing::{error, warn};

use super::super::signals::{STOP, Signals};
use super::link::{self, Link};
use super::message::{Into, OUT_OF_JAIL_MAX, OutOf};
use super::outside::Above;
use super::pid_file::{self, PidFile};
use super::snapshot::Files;
use super::systemd::Manager;
use super::{exit_code, own_arguments, respawn, take_hangup};
use crate::front;

/// How many connections the kernel keeps until they are accepted: as many as a front without a jail asks for.
const BACKLOG: i32 = 1024;

/// Starts a server in a jail and stays until it has ended.
pub(super) fn hold(
    files: Files,
    pid_path: Option<PathBuf>,
    passed: Option<TcpListener>,
    above: Above,
) -> anyhow::Result<ExitCode> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(Parent::start_and_stay(files, pid_path, passed, above))
}

struct Parent {
    child: Child,
    pid: Pid,
    link: Link,
    files: Option<Files>,
    above: Above,
    manager: Manager,
    /// Removed at the end, whatever that is.
    _pid_file: Option<PidFile>,
}

impl Parent {
    async fn start_and_stay(
        files: Files,
        pid_path: Option<PathBuf>,
        passed: Option<TcpListener>,
        above: Above,
    ) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::of(STOP.into_iter().chain([
            SignalKind::hangup(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ]))?;
        // What else this process has open, or was given by a careless shell, is no business of the jail's.
        crate::sys::keep_descriptors().context("keep files out of the jail")?;
        let (command, socket) = respawn("inmate", own_arguments())?;
        let mut command = Command::from(command);
        // A terminal's ctrl-C reaches this process alone, which passes it on.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().context("start the server's process")?;
        drop(command);
        take_hangup()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = Pid::from_raw(pid.context("start the server's process")?);
        let pid_file = match admit(&socket, &files, pid_path.as_deref(), passed, &above) {
            Ok(pid_file) => pid_file,
            Err(error) => {
                drop(socket);
                let status = child
                    .wait()
                    .await
                    .context("wait for the server's process")?;
                let ended = error
                    .chain()
                    .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(is_end));
                // It has ended first, and said why.
                if ended && status.code().is_some() {
                    return Ok(ExitCode::FAILURE);
                }
                return Err(error);
            }
        };
        let parent = Parent {
            child,
            pid,
            link: Link::new(socket, OUT_OF_JAIL_MAX)?,
            files: Some(files),
            above,
            manager: Manager::from_environment(),
            _pid_file: pid_file,
        };
        parent.stay(&mut signals).await
    }

    /// Serves the server until it has ended.
    async fn stay(mut self, signals: &mut Signals) -> anyhow::Result<ExitCode> {
        let (mut listens, mut held) = (true, true);
        loop {
            tokio::select! {
                status = self.child.wait() => {
                    return ended(status.context("wait for the server's process")?);
                }
                kind = signals.next() => self.pass_on(kind),
                () = self.above.gone(), if held => {
                    held = false;
                    self.pass_on(SignalKind::terminate());
                }
                message = self.link.next(), if listens => match message {
                    Ok(Some(bytes)) => {
                        if let Err(error) = self.hear(&bytes).await {
                            error!("{error:#}: the server is ended");
                            listens = false;
                            self.pass_on(SignalKind::terminate());
                        }
                    }
                    // It ends, as will be seen at once.
                    Ok(None) => listens = false,
                    Err(error) => {
                        error!("{error}: the server is ended");
                        listens = false;
                        self.pass_on(SignalKind::terminate());
                    }
                },
            }
        }
    }

    fn pass_on(&self, kind: SignalKind) {
        if kind == SignalKind::hangup() {
            self.manager.reloading();
        } else if STOP.contains(&kind) {
            self.manager.stopping();
        }
        let sent = Signal::try_from(kind.as_raw_value()).and_then(|signal| kill(self.pid, signal));
        if let Err(error) = sent {
            warn!("pass a signal on to the server: {error}");
        }
    }

    async fn hear(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match OutOf::decode(bytes)? {
            OutOf::Ready => {
                self.above.ready().context("go into the background")?;
                self.manager.ready();
            }
            OutOf::Stopping => self.manager.stopping(),
            asked @ (OutOf::Read | OutOf::Renew) => {
                let answer = self.read(asked).await;
                let answer = match answer.and_then(|answer| encode(&answer)) {
                    Ok(bytes) => bytes,
                    Err(error) => encode(&Into::Refused(format!("{error:#}")))?,
                };
                self.link.send(&answer).await.context("answer the server")?;
            }
            OutOf::Entered => bail!("the server enters its jail twice"),
        }
        Ok(())
    }

    async fn read(&mut self, asked: OutOf) -> anyhow::Result<Into> {
        let mut files = self.files.take().context("the reader is gone")?;
        let read = tokio::task::spawn_blocking(move || {
            let snapshot = if asked == OutOf::Renew {
                files.first()
            } else {
                files.read()
            };
            (files, snapshot)
        });
        let (files, snapshot) = read.await.context("read the configuration")?;
        self.files = Some(files);
        Ok(Into::Snapshot(snapshot?))
    }
}

fn encode(message: &Into) -> anyhow::Result<Vec<u8>> {
    message
        .encode()
        .map_err(|why| anyhow::anyhow!("pass the configuration into the jail: {why}"))
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Leads the new process in, step by step; it blocks, since nothing else is to be done yet.
fn admit(
    socket: &UnixStream,
    files: &Files,
    pid_path: Option<&Path>,
    passed: Option<TcpListener>,
    above: &Above,
) -> anyhow::Result<Option<PidFile>> {
    let snapshot = files.first()?;
    let server = snapshot.server();
    let pid_split = pid_path.map(pid_file::split).transpose()?;
    let enter = Into::Enter {
        chroot: PathBuf::from(&server.chroot),
        pid_directory: pid_split
            .as_ref()
            .map(|(directory, _)| directory.to_path_buf()),
        max_fd: snapshot.settings().max_fd as u64,
    };
    link::send(socket, &encode(&enter)?, &[]).context("speak into the jail")?;
    let (bytes, mut descriptors) =
        link::receive(socket, OUT_OF_JAIL_MAX).context("listen to the jail")?;
    if OutOf::decode(&bytes)? != OutOf::Entered {
        bail!("the server does not enter its jail");
    }
    let pid_file = match (pid_split, descriptors.pop()) {
        (Some((_, name)), Some(directory)) => {
            let shown = front::inside_chroot(&server.chroot, &server.pid_file);
            Some(PidFile::create_in(directory, name, &shown)?)
        }
        _ => None,
    };
    let listener = if let Some(listener) = passed {
        listener
    } else {
        let addr = SocketAddr::new(server.bind_addr, server.port);
        bind(addr).with_context(|| format!("listen on {addr}"))?
    };
    let start = Into::Start {
        snapshot,
        detached: above.is_background(),
    };
    link::send(socket, &encode(&start)?, &[listener.as_fd()]).context("speak into the jail")?;
    Ok(pid_file)
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(addr)?;
    listen(&listener.as_fd(), Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

fn ended(status: ExitStatus) -> anyhow::Result<ExitCode> {
    if status.code().is_none() {
        bail!("the server in the jail ended: {status}");
    }
    // It has said why.
    Ok(exit_code(status))
}
