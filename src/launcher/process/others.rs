//! Servers that run already, as m2sh finds them: by the pid in their pid file. They may be Mongrel2's.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};

use super::pid_file::TEXT_MAX;

/// What a server is asked for by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::launcher) enum Wish {
    /// Finish what is open, and end: SIGINT.
    Stop,
    /// The same: SIGTERM, which m2sh calls murder.
    Murder,
    /// Reopen the logs, and read a configuration that has changed: SIGHUP.
    Reload,
}

/// A server by its pid.
#[derive(Debug, Clone, Copy)]
pub(in crate::launcher) struct Running {
    pid: Pid,
    /// Who has written the file.
    writer: u32,
}

impl Running {
    /// The server whose pid is in this file, whether it still runs or not.
    ///
    /// # Errors
    ///
    /// When there is no file, or no pid in it: 0 and -1 mean whole groups of processes to the system, and 1 is never a server
    /// that another program stops.
    pub(in crate::launcher) fn in_file(path: &Path) -> io::Result<Self> {
        let mut text = String::new();
        // Never waits: what is there need not be a file.
        let file = File::options()
            .read(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
            .open(path)?;
        let found = file.metadata()?;
        file.take(TEXT_MAX).read_to_string(&mut text)?;
        let pid = text.trim().parse().ok().filter(|&pid| pid > 1);
        let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no pid in it"))?;
        Ok(Self {
            pid: Pid::from_raw(pid),
            writer: found.uid(),
        })
    }

    /// Its pid.
    pub(in crate::launcher) fn pid(self) -> i32 {
        self.pid.as_raw()
    }

    /// Whether a process has this pid.
    pub(in crate::launcher) fn is_alive(self) -> bool {
        !matches!(kill(self.pid, None), Err(Errno::ESRCH))
    }

    /// Sends it a signal.
    ///
    /// The pid file of a jail is in a directory of the jail's user. What he has put there himself means his own processes at
    /// most, and not whichever of root's he would like to see ended.
    ///
    /// # Errors
    ///
    /// When it does not run, or is somebody else's.
    pub(in crate::launcher) fn ask(self, wish: Wish) -> io::Result<()> {
        let signal = match wish {
            Wish::Stop => Signal::SIGINT,
            Wish::Murder => Signal::SIGTERM,
            Wish::Reload => Signal::SIGHUP,
        };
        if self.writer != 0 && user_of(self.pid) != Some(self.writer) {
            let why = "the pid file is not written by the user whose process that is";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(kill(self.pid, signal)?)
    }
}

/// The real user of a process (proc(5)): the owner of its directory is root's where it has capabilities.
fn user_of(pid: Pid) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().next()?.parse().ok()
}

/// The name of the user this process runs as, by the system's list of users; its number where it is not in there.
pub(in crate::launcher) fn user_name() -> String {
    let uid = Uid::current();
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => uid.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn what_means_more_than_one_process_is_no_pid() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        assert!(Running::in_file(&path).is_err());
        for text in ["", "0", "-1", "1", "-77", "abc", "12 13", "99999999999999"] {
            fs::write(&path, text).unwrap();
            assert!(Running::in_file(&path).is_err(), "{text:?}");
        }
        let own = std::process::id().to_string();
        for text in [own.clone(), format!("{own}\n")] {
            fs::write(&path, text).unwrap();
            let found = Running::in_file(&path).unwrap();
            assert_eq!(found.pid().to_string(), own);
            assert!(found.is_alive());
        }
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        fs::write(&path, gone.id().to_string()).unwrap();
        let found = Running::in_file(&path).unwrap();
        assert!(!found.is_alive() && found.ask(Wish::Reload).is_err());
    }

    #[test]
    fn who_writes_a_pid_file_has_no_other_process_ended_by_it() {
        const STRANGER: u32 = 54_321;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        // Who has started the tests may have them ignore what is sent here, and children would do so too, until they have said that they
        // do not.
        let mut server = std::process::Command::new("env")
            .args(["--default-signal=INT,TERM", "sh", "-c"])
            .arg("echo; exec sleep 1000")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0];
        let stdout = server.stdout.as_mut().unwrap();
        stdout.read_exact(&mut said).unwrap();
        fs::write(&path, server.id().to_string()).unwrap();
        if std::os::unix::fs::chown(&path, Some(STRANGER), None).is_ok() {
            let found = Running::in_file(&path).unwrap();
            let refused = found.ask(Wish::Stop).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            assert!(server.try_wait().unwrap().is_none());
            std::os::unix::fs::chown(&path, Some(Uid::current().as_raw()), None).unwrap();
        }
        Running::in_file(&path).unwrap().ask(Wish::Stop).unwrap();
        server.wait().unwrap();
    }
}
