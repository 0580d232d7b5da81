//! Going into the background: the process that was typed starts another, and waits until that one serves or has failed.
//!
//! The other one writes its start's errors to the stderr that it shares with the first; once it serves, it lets go of it.

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::Context as _;

use super::{READY, exit_code, own_arguments, respawn};

/// Starts this program anew in the background. Success means that it serves.
pub(super) fn start() -> anyhow::Result<ExitCode> {
    crate::sys::keep_descriptors().context("let go of the terminal's files")?;
    let (mut command, mut socket) = respawn("daemon", own_arguments())?;
    let mut child = command
        .spawn()
        .context("start a process in the background")?;
    // It holds the other end of the socket, whose end is to be seen.
    drop(command);
    let mut word = [0; READY.len()];
    if socket.read_exact(&mut word).is_ok() {
        // It is nobody's child from now on.
        return Ok(ExitCode::SUCCESS);
    }
    let status = child
        .wait()
        .context("wait for the process in the background")?;
    if status.code().is_none() {
        anyhow::bail!("the process in the background ended: {status}");
    }
    // It has said why; whatever its code was, the start has failed.
    Ok(if status.success() {
        ExitCode::FAILURE
    } else {
        exit_code(status)
    })
}

/// Leaves the session of the terminal: its end and its keys are not for this process.
pub(super) fn detach_from_terminal() -> anyhow::Result<()> {
    nix::unistd::setsid().context("begin a session")?;
    Ok(())
}
