//! Who a worker is: its user, groups, umask and folder. The supervisor looks the names up, the worker gives the rights up.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, anyhow, bail, ensure};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, Uid, User, geteuid, getresgid, getresuid, initgroups, setgroups};
use nix::unistd::{setresgid, setresuid, setuid};

/// Who to become.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rights {
    /// The user.
    pub(super) uid: Option<u32>,
    /// The group.
    pub(super) gid: Option<u32>,
    /// The user's name, whose further groups are taken; a number that has no name has none.
    pub(super) name: Option<String>,
}

impl Rights {
    /// Looks up a user and a group, each a name or a number.
    ///
    /// # Errors
    ///
    /// When there is no such user or group, or this process may not become it.
    pub(super) fn find(user: Option<&str>, group: Option<&str>) -> anyhow::Result<Self> {
        let mut rights = Self::default();
        if let Some(text) = user {
            let why = || format!("look up the user {text:?}");
            let found = match text.parse() {
                Ok(uid) => User::from_uid(Uid::from_raw(uid)).with_context(why)?,
                Err(_) => User::from_name(text).with_context(why)?,
            };
            if let Some(found) = found {
                rights.uid = Some(found.uid.as_raw());
                rights.gid = Some(found.gid.as_raw());
                rights.name = Some(found.name);
            } else {
                let uid = text
                    .parse()
                    .map_err(|_| anyhow!("there is no user {text:?}"))?;
                (rights.uid, rights.gid) = (Some(uid), Some(uid));
            }
        }
        if let Some(text) = group {
            let gid = match text.parse() {
                Ok(gid) => gid,
                Err(_) => Group::from_name(text)
                    .with_context(|| format!("look up the group {text:?}"))?
                    .ok_or_else(|| anyhow!("there is no group {text:?}"))?
                    .gid
                    .as_raw(),
            };
            rights.gid = Some(gid);
        }
        let own_uid = geteuid();
        let others = rights.uid.is_some_and(|uid| uid != own_uid.as_raw())
            || rights
                .gid
                .is_some_and(|gid| gid != nix::unistd::getegid().as_raw());
        if others && !own_uid.is_root() {
            bail!("only root may give workers another user or group");
        }
        Ok(rights)
    }

    /// Becomes that user and group, for good, where this process is root's.
    ///
    /// # Errors
    ///
    /// When the system does not let it, or a way back is open.
    pub(super) fn take(&self) -> anyhow::Result<()> {
        if !geteuid().is_root() || (self.uid, self.gid) == (None, None) {
            return Ok(());
        }
        if let Some(gid) = self.gid.map(Gid::from_raw) {
            match &self.name {
                Some(name) => {
                    let name = CString::new(name.as_str()).context("read the user's name")?;
                    initgroups(&name, gid).context("take the user's groups")?;
                }
                None => setgroups(&[gid]).context("leave root's groups")?,
            }
            setresgid(gid, gid, gid).with_context(|| format!("change to group {gid}"))?;
            let got = getresgid().context("look at the groups")?;
            ensure!(
                [got.real, got.effective, got.saved] == [gid; 3],
                "the group is not changed"
            );
        }
        if let Some(uid) = self.uid.map(Uid::from_raw) {
            setresuid(uid, uid, uid).with_context(|| format!("change to user {uid}"))?;
            let got = getresuid().context("look at the user")?;
            ensure!(
                [got.real, got.effective, got.saved] == [uid; 3],
                "the user is not changed"
            );
            ensure!(
                uid.is_root() || setuid(Uid::from_raw(0)).is_err(),
                "the way back to root is open"
            );
        }
        Ok(())
    }
}

/// What a worker finds around itself, for programs that are tried out before there is one.
#[derive(Debug, Clone, Default)]
pub(super) struct Surroundings {
    /// Its user, by name or number.
    pub(super) user: Option<String>,
    /// Its group.
    pub(super) group: Option<String>,
    /// Its folder, where that is another.
    pub(super) folder: Option<PathBuf>,
    /// What is added to its environment.
    pub(super) env: Vec<(OsString, OsString)>,
}

impl Surroundings {
    /// Runs a program there to its end.
    ///
    /// # Errors
    ///
    /// Why it cannot be started.
    pub(super) fn output(&self, program: &Path, arguments: &[&OsStr]) -> Result<Output, String> {
        let rights = Rights::find(self.user.as_deref(), self.group.as_deref());
        let rights = rights.map_err(|error| format!("{error:#}"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        if geteuid().is_root() {
            if let Some(gid) = rights.gid {
                command.gid(gid);
            }
            if let Some(uid) = rights.uid {
                command.uid(uid);
            }
        }
        command
            .output()
            .map_err(|error| format!("start {}: {error}", program.display()))
    }
}

/// Goes into a folder and masks the rights of files to be made, where that is wanted.
///
/// # Errors
///
/// When the folder cannot be entered.
pub(super) fn settle(folder: Option<&Path>, mask: Option<u32>) -> anyhow::Result<()> {
    if let Some(folder) = folder {
        let why = || format!("change to the folder {}", folder.display());
        std::env::set_current_dir(folder).with_context(why)?;
    }
    if let Some(mask) = mask {
        umask(Mode::from_bits_truncate(mask));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_names_or_numbers() {
        if !geteuid().is_root() {
            assert!(Rights::find(Some("root"), None).is_err());
            return;
        }
        let root = Rights::find(Some("root"), None).unwrap();
        assert_eq!(
            (root.uid, root.gid, root.name.as_deref()),
            (Some(0), Some(0), Some("root"))
        );
        assert_eq!(Rights::find(Some("0"), None).unwrap(), root);
        let number = Rights::find(Some("123456"), Some("9")).unwrap();
        assert_eq!(
            (number.uid, number.gid, number.name),
            (Some(123_456), Some(9), None)
        );
        assert_eq!(Rights::find(None, None).unwrap(), Rights::default());
    }

    #[test]
    fn who_does_not_exist_is_told() {
        let error = Rights::find(Some("no such user"), None).unwrap_err();
        assert_eq!(error.to_string(), "there is no user \"no such user\"");
        let error = Rights::find(None, Some("no such group")).unwrap_err();
        assert_eq!(error.to_string(), "there is no group \"no such group\"");
    }
}
