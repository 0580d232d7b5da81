//! The pid file: who runs, for those who want to send it a signal, and that it runs once.
//!
//! It holds the pid as text without a line end, as Mongrel2 writes it. While its process runs the file is locked too, so
//! that two that start at the same moment cannot both believe that what is there is stale. Of a path only the directory is
//! looked up, once; a jail's parent works with a descriptor of it that the jail has opened, so that nobody in there can lead
//! it to a file outside.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

/// How often a file that goes away while it is looked at is looked for again.
const ATTEMPTS: usize = 20;

/// More than any pid has digits.
pub(super) const TEXT_MAX: u64 = 32;

/// Why there is no pid file.
#[derive(Debug, thiserror::Error)]
pub(in crate::launcher) enum PidFileError {
    /// Another process is the one that runs.
    #[error("already running: the process {pid} in pid file {} is alive", path.display())]
    Running {
        /// The file.
        path: PathBuf,
        /// Its process.
        pid: i32,
    },
    /// Another process is about to run, and has not written its pid yet.
    #[error("already running: pid file {} is locked", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The path names no file.
    #[error("pid file {} is no file", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// The system.
    #[error("write pid file {}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The pid file of this process; dropping it removes the file.
#[derive(Debug)]
pub(in crate::launcher) struct PidFile {
    directory: OwnedFd,
    name: PathBuf,
    file: File,
}

/// A path's directory, `.` for a bare name, and its last part.
pub(super) fn split(path: &Path) -> Result<(&Path, PathBuf), PidFileError> {
    let name = path.file_name().ok_or_else(|| PidFileError::NoFile {
        path: path.to_owned(),
    })?;
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    Ok((directory, PathBuf::from(name)))
}

/// A descriptor of a directory, good for looking files up in it.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let directory = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NONBLOCK).bits())
        .open(path)?;
    Ok(directory.into())
}

impl PidFile {
    /// Writes the pid of this process into the file at `path`, if no other process runs.
    pub(in crate::launcher) fn create(path: &Path) -> Result<Self, PidFileError> {
        let (directory, name) = split(path)?;
        let directory = open_directory(directory).map_err(|source| PidFileError::System {
            path: path.to_owned(),
            source,
        })?;
        Self::create_in(directory, name, path)
    }

    /// The same in a directory that is open already; `shown` is what errors call the file.
    pub(super) fn create_in(
        directory: OwnedFd,
        name: PathBuf,
        shown: &Path,
    ) -> Result<Self, PidFileError> {
        let system = |source: io::Error| PidFileError::System {
            path: shown.to_owned(),
            source,
        };
        for _ in 0..ATTEMPTS {
            let mut file = open(&directory, &name).map_err(system)?;
            let locked = match file.try_lock() {
                Ok(()) => false,
                Err(TryLockError::WouldBlock) => true,
                Err(TryLockError::Error(error)) => return Err(system(error)),
            };
            let found = read(&mut file).map_err(system)?;
            if locked {
                let path = shown.to_owned();
                return Err(match found {
                    Some(pid) => PidFileError::Running { path, pid },
                    None => PidFileError::Locked { path },
                });
            }
            if !is_at(&file, &directory, &name) {
                // Whoever had it has just removed it.
                continue;
            }
            if let Some(pid) = found.filter(|&pid| is_alive(pid)) {
                let path = shown.to_owned();
                return Err(PidFileError::Running { path, pid });
            }
            write(&mut file).map_err(system)?;
            return Ok(Self {
                directory,
                name,
                file,
            });
        }
        Err(system(io::Error::other("it comes and goes")))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // What somebody else has put there is theirs; what cannot be removed is found to be stale by the next start.
        if is_at(&self.file, &self.directory, &self.name)
            && let Err(error) = unlinkat(&self.directory, &self.name, UnlinkatFlags::NoRemoveDir)
        {
            tracing::warn!("remove pid file {}: {error}", self.name.display());
        }
    }
}

fn open(directory: impl AsFd, name: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDWR
        | OFlag::O_CREAT
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_CLOEXEC
        | OFlag::O_NOCTTY;
    let mode = Mode::from_bits_truncate(0o644);
    let file = File::from(openat(directory, name, flags, mode)?);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    // Whoever may write into a jail's directory could have put another name of root's file there.
    if found.nlink() > 1 {
        return Err(io::Error::other("the file has another name too"));
    }
    Ok(file)
}

/// Whether the directory still has this very file under this name.
fn is_at(file: &File, directory: impl AsFd, name: &Path) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let there = openat(directory, name, flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|there| File::from(there).metadata());
    match (file.metadata(), there) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// The pid in the file; `None`: there is none.
fn read(file: &mut File) -> io::Result<Option<i32>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    (&*file).take(TEXT_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.trim().parse().ok().filter(|&pid| pid > 0))
}

fn write(file: &mut File) -> io::Result<()> {
    let pid = std::process::id().to_string();
    // Written over what was there before it is cut: nobody ever reads an empty file.
    file.rewind()?;
    file.write_all(pid.as_bytes())?;
    file.set_len(pid.len() as u64)
}

/// Whether a process has this pid, and is not this one, whose predecessor it may have been in another container. One that has ended
/// counts as dead: in a container nobody may ever ask for its status.
fn is_alive(pid: i32) -> bool {
    let own = u32::try_from(pid).is_ok_and(|pid| pid == std::process::id());
    !own && !matches!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH)) && !has_ended(pid)
}

/// Whether the system keeps nothing of a process but its status (proc(5): state `Z` or `X`); false where that cannot be told.
fn has_ended(pid: i32) -> bool {
    let Ok(stat) = std::fs::read(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name before the state is in parentheses, and may have some itself.
    let state = stat.rsplit(|&byte| byte == b')').next();
    matches!(state, Some([b' ', b'Z' | b'X' | b'x', ..]))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_holds_the_pid_alone_and_goes_with_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.pid");
        let file = PidFile::create(&path).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            std::process::id().to_string()
        );
        // A second start, though the pid is our own: the lock is held.
        let error = PidFile::create(&path).unwrap_err();
        assert!(matches!(error, PidFileError::Running { .. }), "{error}");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_process_is_respected_and_a_stale_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.pid");
        // The one that runs these tests, and lives longer.
        let alive = std::os::unix::process::parent_id().to_string();
        fs::write(&path, &alive).unwrap();
        let error = PidFile::create(&path).unwrap_err().to_string();
        assert!(
            error.contains(&alive) && error.contains("already running"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), alive);
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        // Nobody asks for its status before the end of this test.
        let mut unasked = std::process::Command::new("true").spawn().unwrap();
        while !has_ended(unasked.id().cast_signed()) {
            std::thread::yield_now();
        }
        for stale in [
            format!("{}\n", gone.id()),
            format!("{}\n", unasked.id()),
            "rubbish".to_owned(),
            "-1".to_owned(),
            String::new(),
        ] {
            fs::write(&path, &stale).unwrap();
            let file = PidFile::create(&path).unwrap();
            assert_eq!(
                fs::read_to_string(&path).unwrap(),
                std::process::id().to_string()
            );
            drop(file);
        }
        unasked.wait().unwrap();
    }

    #[test]
    fn what_is_no_file_of_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        let path = directory.path().join("run.pid");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(PidFile::create(&path).is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        fs::hard_link(&victim, &path).unwrap();
        assert!(PidFile::create(&path).is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(PidFile::create(&path).is_err());
        fs::remove_dir(&path).unwrap();
        let file = PidFile::create(&path).unwrap();
        // Somebody moved it away and put his own there.
        fs::rename(&path, directory.path().join("other")).unwrap();
        fs::write(&path, "12345").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "12345");
    }

    #[test]
    fn of_many_that_start_at_once_one_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.pid");
        fs::write(&path, "999999999").unwrap();
        let won: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| PidFile::create(&path)))
                .collect();
            starts
                .into_iter()
                .filter_map(|start| start.join().unwrap().ok())
                .collect()
        });
        assert_eq!(won.len(), 1);
        assert!(path.exists());
    }
}
