//! The parent of a jail: root, outside, small. It reads the configuration and the keys, binds the TCP port, writes the pid
//! file, passes all that in, and then passes signals on and answers the question what the configuration is now.
//!
//! It has no port of its own open, and believes five words from inside. It never restarts a server: that is for whoever
//! started this process. When one of the two ends, so does the other.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};

use anyhow::{Context as _, bail};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Backlog, listen};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::runtime::Builder;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
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

/// The server inside, as its parent holds it.
struct Parent {
    child: Child,
    pid: Pid,
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
        command.stdout(Stdio::null()).kill_on_drop(true);
        match written_terminal() {
            Ok(Some(terminal)) => {
                command.stderr(terminal);
            }
            Ok(None) => {}
            Err(error) => {
                warn!("open the terminal for writing alone: {error}: the jail can read it");
            }
        }
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
            above,
            manager: Manager::from_environment(),
            _pid_file: pid_file,
        };
        let link = Link::new(socket, OUT_OF_JAIL_MAX)?;
        parent.stay(link, files, &mut signals).await
    }

    /// Serves the server until it has ended.
    async fn stay(
        mut self,
        link: Link,
        files: Files,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitCode> {
        let (mut talks, mut held) = (true, true);
        // Beside everything else: a server that does not read its answers keeps nobody from ending it.
        let (sender, mut words) = mpsc::channel(1);
        let mut talk = std::pin::pin!(talk(link, files, sender));
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
                Some(word) = words.recv() => match word {
                    Word::Ready => {
                        self.above.ready().context("go into the background")?;
                        self.manager.ready();
                    }
                    Word::Stopping => self.manager.stopping(),
                },
                end = &mut talk, if talks => {
                    talks = false;
                    // Without a mistake it ends, as will be seen at once.
                    if let Err(error) = end {
                        error!("{error:#}: the server is ended");
                        self.pass_on(SignalKind::terminate());
                    }
                }
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
}

/// What the server says about itself.
#[derive(Debug, Clone, Copy)]
enum Word {
    Ready,
    Stopping,
}

/// Listens to the server, and answers its questions, until it says nothing more.
async fn talk(mut link: Link, files: Files, words: mpsc::Sender<Word>) -> anyhow::Result<()> {
    let mut files = Some(files);
    while let Some(bytes) = link.next().await.context("listen to the jail")? {
        let word = match OutOf::decode(&bytes)? {
            OutOf::Ready => Word::Ready,
            OutOf::Stopping => Word::Stopping,
            OutOf::Entered => bail!("the server enters its jail twice"),
            asked @ (OutOf::Read | OutOf::Renew) => {
                let answer = read(&mut files, asked).await;
                let answer = match answer.and_then(|answer| encode(&answer)) {
                    Ok(bytes) => bytes,
                    Err(error) => encode(&Into::Refused(format!("{error:#}")))?,
                };
                link.send(&answer).await.context("answer the server")?;
                continue;
            }
        };
        // Nobody is told any more only when all is over.
        let _told = words.send(word).await;
    }
    Ok(())
}

async fn read(files: &mut Option<Files>, asked: OutOf) -> anyhow::Result<Into> {
    let mut reader = files.take().context("the reader is gone")?;
    let read = tokio::task::spawn_blocking(move || {
        let snapshot = if asked == OutOf::Renew {
            reader.first()
        } else {
            reader.read()
        };
        (reader, snapshot)
    });
    let (reader, snapshot) = read.await.context("read the configuration")?;
    *files = Some(reader);
    Ok(Into::Snapshot(snapshot?))
}

/// The terminal that stderr is, if it is one, to be written to and not read: who is locked in does not hear what root types.
fn written_terminal() -> io::Result<Option<File>> {
    let stderr = io::stderr();
    if !stderr.is_terminal() {
        return Ok(None);
    }
    let flags = OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    File::options()
        .write(true)
        .custom_flags(flags.bits())
        .open(format!("/proc/self/fd/{}", stderr.as_raw_fd()))
        .map(Some)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;

    use super::super::plan::Place;
    use super::*;
    use crate::config::{self, Selector};

    /// A configuration that no buffer of a socket holds.
    fn large(directory: &Path) -> Files {
        let routes: Vec<String> = (0..20_000)
            .map(|number| format!("'/a/rather/long/path/to/somewhere/{number}': app, "))
            .collect();
        let routes = routes.concat();
        let text = format!(
            "app = Handler(send_spec='tcp://127.0.0.1:9999', send_ident='a', recv_spec='tcp://127.0.0.1:9998', recv_ident='')
             main = Server(uuid='u', name='n', access_log='/a.log', error_log='/e.log', chroot='', pid_file='/pid', control_port='',
                default_host='localhost', bind_addr='127.0.0.1', port=6767, hosts=[Host(name='localhost', routes={{{routes}'/': app}})])
             servers = [main]\n"
        );
        let path = directory.join("large.conf");
        std::fs::write(&path, text).unwrap();
        Files::new(
            config::load(Some(&path), &Selector::Only).unwrap(),
            Place::Free,
        )
    }

    #[tokio::test]
    async fn a_server_that_does_not_read_its_answer_can_be_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (above, holder) = UnixStream::pair().unwrap();
        let mut above = Above::Holder(above);
        above.ready().unwrap();
        let child = Command::new("sleep")
            .arg("1000")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let parent = Parent {
            pid: Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()),
            child,
            above,
            manager: Manager::from_environment(),
            _pid_file: None,
        };
        theirs.set_nonblocking(true).unwrap();
        let mut theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
        theirs.write_all(&OutOf::Read.encode()).await.unwrap();
        let link = Link::new(ours, OUT_OF_JAIL_MAX).unwrap();
        let mut signals = Signals::of([]).unwrap();
        let mut stays = std::pin::pin!(parent.stay(link, large(directory.path()), &mut signals));
        // The answer has begun to come, and nobody takes it.
        tokio::select! {
            _ended = &mut stays => panic!("it has ended"),
            readable = theirs.readable() => readable.unwrap(),
        }
        drop(holder);
        let ended = tokio::time::timeout(Duration::from_mins(1), stays).await;
        let why = ended.expect("an end").unwrap_err().to_string();
        assert!(why.contains("signal: 15"), "{why}");
    }
}
