//! Files and folders whose change replaces the workers (`--reload`): inotify, and the patience to let a change be whole. For
//! development: what is watched is bounded, and what editors leave lying about is no change.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use crate::sys;

/// A change is whole when nothing has followed it for so long: compilers and editors write more than once.
const QUIET: Duration = Duration::from_millis(200);

/// A change that never ends is taken for whole after so long.
const LONGEST: Duration = Duration::from_secs(3);

/// More folders than this are not watched: somebody has named the root of a disk.
const FOLDERS_MAX: usize = 10_000;

/// Folders in which nothing is a change, beside hidden ones.
const UNWATCHED: [&str; 3] = ["__pycache__", "node_modules", "target"];

/// What is watched, and what has changed lately.
#[derive(Debug)]
pub(super) struct Watcher {
    inotify: Inotify,
    /// The same, to wait at.
    readable: AsyncFd<OwnedFd>,
    places: HashMap<WatchDescriptor, Place>,
    change: Option<Change>,
}

#[derive(Debug)]
struct Place {
    folder: PathBuf,
    /// The files meant in it; `None`: whatever there is, and below.
    only: Option<Vec<OsString>>,
}

#[derive(Debug)]
struct Change {
    path: PathBuf,
    first: Instant,
    latest: Instant,
}

impl Watcher {
    /// Watches these files and folders, folders with all that is in them.
    ///
    /// # Errors
    ///
    /// When one of them is not there, or the system watches no more.
    pub(super) fn new(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).context("begin to watch files")?;
        let readable = inotify.as_fd().try_clone_to_owned().and_then(sys::readable);
        let mut watcher = Self {
            readable: readable.context("begin to watch files")?,
            inotify,
            places: HashMap::new(),
            change: None,
        };
        for path in paths {
            let why = || format!("watch {}", path.display());
            if std::fs::metadata(path).with_context(why)?.is_dir() {
                watcher.add_below(path).with_context(why)?;
            } else {
                watcher.add_file(path).with_context(why)?;
            }
        }
        Ok(watcher)
    }

    /// Watches a file too that a worker has read; one whose folder is not there cannot change.
    pub(super) fn add_read(&mut self, path: &Path) {
        if let Err(error) = self.add_file(path) {
            tracing::debug!("not watching {}: {error}", path.display());
        }
    }

    /// Waits for a change that is whole, and says what was changed first.
    ///
    /// # Cancel safety
    ///
    /// Safe: a change that has begun is kept.
    pub(super) async fn changed(&mut self) -> PathBuf {
        loop {
            let whole = self
                .change
                .as_ref()
                .map(|change| (change.latest + QUIET).min(change.first + LONGEST));
            let is_whole = async {
                match whole {
                    Some(when) => sleep_until(when).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = is_whole => if let Some(change) = self.change.take() {
                    return change.path;
                },
                ready = self.readable.readable() => {
                    if let Ok(mut ready) = ready {
                        ready.clear_ready();
                    }
                    self.read();
                }
            }
        }
    }

    fn read(&mut self) {
        loop {
            match self.inotify.read_events() {
                Ok(events) => events.into_iter().for_each(|event| self.take(event)),
                Err(Errno::EINTR) => {}
                // Nothing more; the system has no other error for it.
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, event: InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.note(PathBuf::from("many files"));
            return;
        }
        let Some(place) = self.places.get(&event.wd) else {
            return;
        };
        let Some(name) = event.name else {
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.places.remove(&event.wd);
            }
            return;
        };
        let path = place.folder.join(&name);
        let is_meant = match &place.only {
            Some(names) => names.contains(&name),
            None => is_source(&name),
        };
        if !is_meant {
            return;
        }
        if event.mask.contains(AddWatchFlags::IN_ISDIR) {
            if place.only.is_none() && is_watched(&name) {
                // What is gone again has been told.
                drop(self.add_below(&path));
                self.note(path);
            }
        } else if !event.mask.contains(AddWatchFlags::IN_CREATE) {
            // A new file is told of when it is written.
            self.note(path);
        }
    }

    fn note(&mut self, path: PathBuf) {
        let now = Instant::now();
        let change = self.change.get_or_insert(Change {
            path,
            first: now,
            latest: now,
        });
        change.latest = now;
    }

    fn add(&mut self, folder: &Path, only: Option<OsString>) -> io::Result<()> {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        if self.places.len() >= FOLDERS_MAX {
            return Err(io::Error::other(format!("more than {FOLDERS_MAX} folders")));
        }
        let descriptor = self.inotify.add_watch(folder, flags)?;
        let place = self.places.entry(descriptor).or_insert_with(|| Place {
            folder: folder.to_owned(),
            only: Some(Vec::new()),
        });
        match (only, &mut place.only) {
            (Some(name), Some(names)) if !names.contains(&name) => names.push(name),
            (None, names) => *names = None,
            // It is watched already.
            (Some(_), _) => {}
        }
        Ok(())
    }

    /// A file is watched by its folder: most programs put a new one in its place.
    fn add_file(&mut self, path: &Path) -> io::Result<()> {
        let path = std::path::absolute(path)?;
        match (path.parent(), path.file_name()) {
            (Some(folder), Some(name)) => self.add(folder, Some(name.to_owned())),
            _ => Err(io::Error::other("it is no file")),
        }
    }

    fn add_below(&mut self, folder: &Path) -> io::Result<()> {
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            self.add(&folder, None)?;
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() && is_watched(&entry.file_name()) {
                    folders.push(entry.path());
                }
            }
        }
        Ok(())
    }
}

/// Whether what is in a folder of this name may be a change.
fn is_watched(name: &OsStr) -> bool {
    is_source(name) && !UNWATCHED.iter().any(|other| name == *other)
}

/// Whether a file of this name is more than what an editor or an interpreter keeps for itself.
fn is_source(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let is_rest = [&b"~"[..], b".pyc", b".swp", b".tmp"]
        .iter()
        .any(|end| name.ends_with(end));
    // Vim writes 4913 to see whether it may.
    !name.starts_with(b".") && !is_rest && name != b"4913"
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn what_changes_is_told_once_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("a/b")).unwrap();
        fs::create_dir_all(path("one")).unwrap();
        fs::write(path("one/file"), "1").unwrap();
        let mut watcher = Watcher::new(&[path("a"), path("one/file")]).unwrap();
        // None of these counts; the one after them does.
        for ignored in ["a/.swap", "a/x.pyc", "a/b/x~", "one/other"] {
            fs::write(path(ignored), "1").unwrap();
        }
        for _ in 0..3 {
            fs::write(path("a/b/x.py"), "1").unwrap();
        }
        assert_eq!(watcher.changed().await, path("a/b/x.py"));
        // Put in its place, as editors do it.
        fs::write(path("one/new"), "2").unwrap();
        fs::rename(path("one/new"), path("one/file")).unwrap();
        assert_eq!(watcher.changed().await, path("one/file"));
        fs::remove_file(path("one/file")).unwrap();
        assert_eq!(watcher.changed().await, path("one/file"));
        // A folder that comes later.
        fs::create_dir(path("a/new")).unwrap();
        assert_eq!(watcher.changed().await, path("a/new"));
        fs::write(path("a/new/y"), "1").unwrap();
        assert_eq!(watcher.changed().await, path("a/new/y"));
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut watcher = Watcher::new(&[folder.path().to_owned()]).unwrap();
        fs::write(&path, "1").unwrap();
        let short = Duration::from_millis(20);
        assert!(
            tokio::time::timeout(short, watcher.changed())
                .await
                .is_err()
        );
        assert_eq!(watcher.changed().await, path);
    }

    #[tokio::test]
    async fn what_is_not_there_is_told() {
        let error = Watcher::new(&[PathBuf::from("/nowhere/at/all")]).unwrap_err();
        assert_eq!(error.to_string(), "watch /nowhere/at/all");
    }
}
