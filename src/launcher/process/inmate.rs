//! The server's way into its jail: it locks itself in, opens nothing that it was not given, and gives up all rights but
//! those of the directory's owner.
//!
//! It begins as root and without a thread, and what it must not be able to do later is tried, so that a system that lets it
//! is found out before a client is served.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{
    Gid, Uid, chroot, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid, setsid,
    setuid,
};
use tracing::warn;

use super::message::{INTO_JAIL_MAX, Into, OutOf};
use super::outside::Outside;
use super::{Ready, link, pid_file, raise_open_files};

/// Does what the parent says until there is something to serve. `None`: the parent has ended.
pub(super) fn enter(socket: UnixStream) -> anyhow::Result<Option<Ready>> {
    // Root's terminal is not for who is in the jail: he could type on it. Its ctrl-C reaches the parent alone, which passes
    // it on.
    setsid().context("leave the terminal")?;
    let Some((first, _)) = receive(&socket)? else {
        return Ok(None);
    };
    let Into::Enter {
        chroot,
        pid_directory,
        max_fd,
    } = first
    else {
        bail!("the parent of the jail is confused");
    };
    raise_open_files(max_fd);
    lock_in(&chroot).with_context(|| format!("enter the jail {}", chroot.display()))?;
    // Looked up from inside, as root: the parent gets no path that somebody in here could bend.
    let pid_directory = match &pid_directory {
        Some(path) => Some(pid_file::open_directory(path).with_context(|| {
            format!(
                "open the directory {} of the pid file, in the jail {}",
                path.display(),
                chroot.display()
            )
        })?),
        None => None,
    };
    let descriptors: Vec<_> = pid_directory.iter().map(AsFd::as_fd).collect();
    link::send(&socket, &OutOf::Entered.encode(), &descriptors)
        .context("tell the parent of the jail")?;
    drop(descriptors);
    drop(pid_directory);
    let Some((second, descriptors)) = receive(&socket)? else {
        return Ok(None);
    };
    let Into::Start { snapshot, detached } = second else {
        bail!("the parent of the jail is confused");
    };
    become_owner().context("give up root's rights")?;
    Ok(Some(Ready {
        snapshot,
        listener: descriptors.into_iter().next().map(TcpListener::from),
        outside: Outside::of_jail(socket, detached),
        test_mode: false,
    }))
}

/// The next message; `None` when the parent has gone.
fn receive(socket: &UnixStream) -> anyhow::Result<Option<(Into, Vec<std::os::fd::OwnedFd>)>> {
    match link::receive(socket, INTO_JAIL_MAX) {
        Ok((bytes, descriptors)) => Ok(Some((Into::decode(&bytes)?, descriptors))),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).context("listen to the parent of the jail"),
    }
}

fn lock_in(directory: &Path) -> io::Result<()> {
    chroot(directory)?;
    std::env::set_current_dir("/")
}

/// Becomes the owner of the directory that this process is locked into, for good.
fn become_owner() -> anyhow::Result<()> {
    let root = std::fs::metadata("/").context("look at the jail's directory")?;
    let (uid, gid) = (Uid::from_raw(root.uid()), Gid::from_raw(root.gid()));
    setgroups(&[gid]).context("leave root's groups")?;
    setresgid(gid, gid, gid).with_context(|| format!("change to group {gid}"))?;
    setresuid(uid, uid, uid).with_context(|| format!("change to user {uid}"))?;
    // No program that it might start gains rights, whatever bits are set on it.
    set_no_new_privs().context("refuse new rights")?;
    let (uids, gids) = (getresuid()?, getresgid()?);
    ensure!(
        [uids.real, uids.effective, uids.saved] == [uid; 3]
            && [gids.real, gids.effective, gids.saved] == [gid; 3]
            && getgroups()?.iter().all(|&other| other == gid),
        "the system says that nothing has changed"
    );
    if uid.is_root() {
        warn!(
            "the jail belongs to root: the server keeps root's rights; give its directory to a user"
        );
    } else {
        ensure!(
            setuid(Uid::from_raw(0)).is_err(),
            "the way back to root is open"
        );
    }
    Ok(())
}
