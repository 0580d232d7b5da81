//! The process that workers are forked from (`--preload`), from inside: an interpreter that has loaded everything and does nothing else
//! than to fork when the supervisor says so. How it forks is its own matter; it has one thread, since no other would live on in a worker.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, setpgid};

use super::supervise::order::{MESSAGE_MAX, Message};
use super::worker;
use crate::launcher::process::link;

/// What a process that was forked finds in place of what others are started with.
pub(super) struct Passed {
    /// To the supervisor.
    pub(super) socket: UnixStream,
    /// The order.
    pub(super) order: Vec<u8>,
    /// The access log, open.
    pub(super) log: Option<File>,
}

static PASSED: Mutex<Option<Passed>> = Mutex::new(None);

/// What was passed to this process when it was forked, once.
pub(super) fn passed() -> Option<Passed> {
    PASSED.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The socket to the supervisor of a process that was forked.
pub(super) fn socket() -> Option<io::Result<UnixStream>> {
    let passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    Some(passed.as_ref()?.socket.try_clone())
}

/// Forks as the supervisor says until that is gone, and all children are. True: this process is such a child, and is to serve.
pub(in crate::launcher) fn serve(
    fork: &mut dyn FnMut() -> Result<i32, String>,
) -> anyhow::Result<bool> {
    let socket = worker::supervisor()?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().context("wait for children")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&mask, flags).context("wait for children")?;
    tell(&socket, Message::Ready)?;
    loop {
        let mut ready = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for the supervisor"),
        }
        let [from_above, from_below] =
            ready.map(|ready| ready.revents().is_some_and(|events| !events.is_empty()));
        if from_below {
            while matches!(signals.read_signal(), Ok(Some(_))) {}
            bury(&socket, Some(WaitPidFlag::WNOHANG))?;
        }
        if !from_above {
            continue;
        }
        let with = match link::receive(&socket, MESSAGE_MAX) {
            Ok((_, with)) => with,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error).context("listen to the supervisor"),
        };
        let pid = fork().map_err(|why| anyhow!("fork a worker: {why}"))?;
        if pid == 0 {
            mask.thread_unblock().context("begin as a worker")?;
            // What is its parent's goes here: it would hold it open.
            drop((signals, socket));
            begin(with).context("begin as a worker")?;
            return Ok(true);
        }
        // As the child does it: whoever comes first.
        let child = Pid::from_raw(pid);
        let _ok = setpgid(child, child);
        tell(&socket, Message::Forked { pid })?;
    }
    // They end too, since their supervisor has gone, and in their own time.
    bury(&socket, None)?;
    Ok(false)
}

/// Becomes a worker: the end of the zygote is its end, as it is of a program's.
fn begin(with: Vec<OwnedFd>) -> anyhow::Result<()> {
    let mut with = with.into_iter();
    let (Some(socket), Some(stderr), Some(order)) = (with.next(), with.next(), with.next()) else {
        bail!("the supervisor sent too little");
    };
    let this = Pid::from_raw(0);
    setpgid(this, this).context("lead a group")?;
    set_pdeathsig(Signal::SIGKILL).context("ask to end with the parent")?;
    dup2_stderr(&stderr).context("take the place of standard error")?;
    let mut bytes = Vec::new();
    let mut file = File::from(order);
    file.rewind().context("take the order")?;
    file.read_to_end(&mut bytes).context("take the order")?;
    let passed = Passed {
        socket: socket.into(),
        order: bytes,
        log: with.next().map(File::from),
    };
    *PASSED.lock().unwrap_or_else(PoisonError::into_inner) = Some(passed);
    Ok(())
}

/// Tells the supervisor how children have ended.
fn bury(socket: &UnixStream, flags: Option<WaitPidFlag>) -> anyhow::Result<()> {
    loop {
        // As wait(2) has it, which the supervisor takes apart.
        let (child, status) = match waitpid(None, flags) {
            Ok(WaitStatus::Exited(child, code)) => (child, code << 8),
            Ok(WaitStatus::Signaled(child, signal, dumped)) => {
                (child, signal as i32 | if dumped { 0x80 } else { 0 })
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("wait for children"),
        };
        let pid = child.as_raw();
        // Nobody may be there any more.
        drop(tell(socket, Message::Ended { pid, status }));
    }
}

fn tell(socket: &UnixStream, message: Message<'_>) -> anyhow::Result<()> {
    let mut socket = socket;
    socket
        .write_all(&message.encode())
        .context("tell the supervisor")
}
