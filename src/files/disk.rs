//! The part that touches the disk: finds what a path means, makes sure it lies below the base, opens it. Everything here
//! blocks, and runs on the blocking pool. It decides nothing about HTTP.
//!
//! A path is resolved as `realpath` does, and what comes out must lie below the resolved base, compared name by name: `www` is
//! not the beginning of `www-secret`. Then it is opened name by name without following links, so that a link put there
//! meanwhile leads nowhere. The base itself is resolved each time: a deployment that turns a link is seen at once.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::encoding::{Acceptable, CODINGS, Coding};
use crate::sys;

/// A file that changed less than this before it was read may change again without a trace: clocks of file systems are that
/// coarse. What was read of it is not trusted a second time.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// Attempts to read a file that changes meanwhile before it is sent as it comes.
const ATTEMPTS: usize = 3;

/// What tells one state of a file from another: if all of it is equal, nobody wrote to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the last change is long enough ago.
    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let limit = now.saturating_sub(SETTLED_AFTER).as_secs();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.changed.0 < limit && self.modified.0 < limit
    }
}

/// What to look for. Owned, since it goes to another thread.
#[derive(Debug, Clone)]
pub(super) struct Search {
    pub(super) base: PathBuf,
    pub(super) relative: Vec<u8>,
    /// A directory is no answer: its index was asked for.
    pub(super) is_index: bool,
    pub(super) acceptable: Acceptable,
    /// What is known of each form and need not be read again.
    pub(super) known: [Option<Stamp>; CODINGS],
    /// Files up to this size are read whole.
    pub(super) load_max: u64,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing that may be served.
    Nothing,
    /// A directory, asked for without its slash.
    Directory,
    /// A file, with its forms and the one that fits best.
    File(Box<Hit>),
}

/// A file that may be served.
#[derive(Debug)]
pub(super) struct Hit {
    /// The forms that are there, in the order of [`Coding::ALL`].
    pub(super) forms: [Option<Stamp>; CODINGS],
    pub(super) best: Coding,
    pub(super) content: Content,
}

/// What is in the best form.
#[derive(Debug)]
pub(super) enum Content {
    /// What was known of it still holds.
    Unchanged,
    /// All of it; `settled`: it may be trusted as long as its stamp is the same.
    Whole { bytes: Bytes, settled: bool },
    /// To be read as it is sent.
    Open(File),
}

/// Looks.
///
/// # Errors
///
/// When the disk or the process is in trouble; what is merely not there, or not to be read, is [`Found::Nothing`].
pub(super) fn look(search: &Search) -> io::Result<Found> {
    match attempt(search) {
        Err(error) if sys::is_absence(&error) => Ok(Found::Nothing),
        result => result,
    }
}

fn attempt(search: &Search) -> io::Result<Found> {
    let base = fs::canonicalize(&search.base)?;
    let path = [base.as_os_str().as_bytes(), b"/", &search.relative].concat();
    let (real, metadata) = resolve(&base, &path)?;
    if metadata.is_dir() && !search.is_index {
        return Ok(Found::Directory);
    }
    if !metadata.is_file() {
        return Ok(Found::Nothing);
    }
    let own = Stamp::of(&metadata);
    let mut forms = [None; CODINGS];
    let mut places: [Option<PathBuf>; CODINGS] = Default::default();
    let mut put = |coding: Coding, stamp: Stamp, place: PathBuf| {
        if let (Some(form), Some(slot)) = (
            forms.get_mut(coding.place()),
            places.get_mut(coding.place()),
        ) {
            *form = Some(stamp);
            *slot = Some(place);
        }
    };
    put(Coding::Identity, own, real);
    for coding in Coding::ALL {
        let neighbour = [&path, coding.suffix().as_bytes()].concat();
        if coding != Coding::Identity
            && let Ok((real, metadata)) = resolve(&base, &neighbour)
            && metadata.is_file()
            // In whole seconds: copying and unpacking lose the rest of one and keep that of the other.
            && metadata.mtime() >= own.modified.0
        {
            put(coding, Stamp::of(&metadata), real);
        }
    }
    let has = |forms: &[Option<Stamp>; CODINGS], coding: Coding| {
        forms.get(coding.place()).copied().flatten()
    };
    loop {
        let best = search
            .acceptable
            .best(|coding| has(&forms, coding).is_some());
        let place = places.get(best.place()).and_then(Option::as_ref);
        let opened = place
            .ok_or_else(|| io::ErrorKind::NotFound.into())
            .and_then(|place| open(&base, place));
        match opened {
            Ok((file, stamp)) => {
                if let Some(form) = forms.get_mut(best.place()) {
                    *form = Some(stamp);
                }
                let known = search.known.get(best.place()).copied().flatten();
                let (stamp, content) = if known == Some(stamp) {
                    (stamp, Content::Unchanged)
                } else {
                    load(file, stamp, search.load_max)?
                };
                if let Some(form) = forms.get_mut(best.place()) {
                    *form = Some(stamp);
                }
                return Ok(Found::File(Box::new(Hit {
                    forms,
                    best,
                    content,
                })));
            }
            // A neighbour that cannot be had is none.
            Err(_) if best != Coding::Identity => {
                if let Some(form) = forms.get_mut(best.place()) {
                    *form = None;
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Where a path leads, which must be below the base, and what is there.
fn resolve(base: &Path, path: &[u8]) -> io::Result<(PathBuf, Metadata)> {
    let real = fs::canonicalize(OsStr::from_bytes(path))?;
    // By whole names, not by bytes.
    if !real.starts_with(base) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let metadata = fs::symlink_metadata(&real)?;
    Ok((real, metadata))
}

/// Opens a resolved path below the base; only a regular file is let through.
fn open(base: &Path, real: &Path) -> io::Result<(File, Stamp)> {
    let relative = real
        .strip_prefix(base)
        .map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
    let file = sys::open_beneath(base, relative)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((file, Stamp::of(&metadata)))
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Reads a small file whole; one that changes while it is read is read again, and then left to be sent as it comes.
fn load(file: File, mut stamp: Stamp, load_max: u64) -> io::Result<(Stamp, Content)> {
    for _ in 0..ATTEMPTS {
        if stamp.size > load_max {
            break;
        }
        let Ok(size) = usize::try_from(stamp.size) else {
            break;
        };
        let mut bytes = vec![0; size];
        let read = read_full(&file, 0, &mut bytes)?;
        let after = Stamp::of(&file.metadata()?);
        if read == size && after == stamp {
            let settled = stamp.is_settled(SystemTime::now());
            let bytes = Bytes::from(bytes);
            return Ok((stamp, Content::Whole { bytes, settled }));
        }
        stamp = after;
    }
    Ok((stamp, Content::Open(file)))
}

/// Reads until the buffer is full or the file ends; says how much.
pub(super) fn read_full(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Site {
        folder: tempfile::TempDir,
    }

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["www/sub", "www-secret"] {
                fs::create_dir_all(folder.path().join(name)).unwrap();
            }
            for (name, text) in [
                ("www/hello.txt", "hello text\n"),
                ("www/sub/index.html", "sub"),
                ("www-secret/x", "secret"),
                ("secret", "secret"),
            ] {
                fs::write(folder.path().join(name), text).unwrap();
            }
            Self { folder }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn search(&self, relative: &str) -> Search {
            Search {
                base: self.path("www"),
                relative: relative.into(),
                is_index: false,
                acceptable: Acceptable::parse(None),
                known: [None; CODINGS],
                load_max: 1000,
            }
        }

        fn look(&self, relative: &str) -> Found {
            look(&self.search(relative)).unwrap()
        }

        #[track_caller]
        fn nothing(&self, relative: &str) {
            match self.look(relative) {
                Found::Nothing => {}
                other => panic!("{relative}: {other:?}"),
            }
        }

        fn content(&self, relative: &str) -> Vec<u8> {
            match self.look(relative) {
                Found::File(hit) => match hit.content {
                    Content::Whole { bytes, .. } => bytes.to_vec(),
                    other => panic!("{other:?}"),
                },
                other => panic!("{relative}: {other:?}"),
            }
        }
    }

    #[test]
    fn files_below_the_base_are_found_and_nothing_else_is() {
        let site = Site::new();
        assert_eq!(site.content("hello.txt"), b"hello text\n");
        assert_eq!(site.content("sub/../hello.txt"), b"hello text\n");
        site.nothing("nope");
        site.nothing("hello.txt/");
        site.nothing("hello.txt/index.html");
        site.nothing("../secret");
        site.nothing("../www-secret/x");
        site.nothing(&"a".repeat(5000));
        site.nothing(&"a/".repeat(5000));
        assert!(matches!(site.look("sub"), Found::Directory));
        assert!(matches!(site.look(""), Found::Directory));
    }

    #[test]
    fn links_are_followed_as_long_as_they_stay_inside() {
        let site = Site::new();
        symlink("hello.txt", site.path("www/inside")).unwrap();
        symlink(site.path("www/sub"), site.path("www/absolute")).unwrap();
        symlink("../secret", site.path("www/outside")).unwrap();
        symlink("../www-secret", site.path("www/sibling")).unwrap();
        symlink("loop", site.path("www/loop")).unwrap();
        symlink("nowhere", site.path("www/dangling")).unwrap();
        assert_eq!(site.content("inside"), b"hello text\n");
        assert_eq!(site.content("absolute/index.html"), b"sub");
        for outside in ["outside", "sibling/x", "sibling", "loop", "dangling"] {
            site.nothing(outside);
        }
    }

    #[test]
    fn a_base_that_is_a_link_is_followed_wherever_it_leads_now() {
        let site = Site::new();
        symlink("www", site.path("current")).unwrap();
        let mut search = site.search("hello.txt");
        search.base = site.path("current");
        assert!(matches!(look(&search).unwrap(), Found::File(_)));
        fs::remove_file(site.path("current")).unwrap();
        symlink("www-secret", site.path("current")).unwrap();
        assert!(matches!(look(&search).unwrap(), Found::Nothing));
        search.base = site.path("no such base");
        assert!(matches!(look(&search).unwrap(), Found::Nothing));
    }

    #[test]
    fn what_is_no_regular_file_is_nothing() {
        let site = Site::new();
        let _socket = std::os::unix::net::UnixListener::bind(site.path("www/socket")).unwrap();
        symlink("/dev/null", site.path("www/null")).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(site.path("www/fifo"))
            .status();
        assert!(made.unwrap().success());
        fs::create_dir(site.path("www/sub/dir.html")).unwrap();
        for name in ["socket", "null", "fifo"] {
            site.nothing(name);
        }
        let mut search = site.search("sub/dir.html");
        search.is_index = true;
        assert!(matches!(look(&search).unwrap(), Found::Nothing));
    }

    #[test]
    fn a_neighbour_is_taken_when_it_is_wanted_and_not_older() {
        let site = Site::new();
        let write = |name: &str, age: u64| {
            fs::write(site.path(name), name).unwrap();
            let file = File::options().append(true).open(site.path(name)).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000 - age);
            file.set_modified(time).unwrap();
        };
        write("www/a.js", 100);
        write("www/a.js.gz", 100);
        write("www/a.js.br", 101);
        symlink("../secret", site.path("www/a.js.zst")).unwrap();
        let mut search = site.search("a.js");
        let best = |search: &Search| match look(search).unwrap() {
            Found::File(hit) => (hit.best, hit.forms.map(|form| form.is_some())),
            other => panic!("{other:?}"),
        };
        let there = [false, false, true, true];
        assert_eq!(best(&search), (Coding::Identity, there));
        search.acceptable = Acceptable::parse(Some(b"gzip, br, zstd"));
        assert_eq!(best(&search), (Coding::Gzip, there));
    }

    #[test]
    fn what_is_known_is_not_read_again_until_it_changes() {
        let site = Site::new();
        let mut search = site.search("hello.txt");
        let Found::File(hit) = look(&search).unwrap() else {
            panic!("not found");
        };
        search.known = hit.forms;
        let content = |search: &Search| match look(search).unwrap() {
            Found::File(hit) => hit.content,
            other => panic!("{other:?}"),
        };
        assert!(matches!(content(&search), Content::Unchanged));
        fs::write(site.path("www/hello.txt"), "hello again").unwrap();
        assert!(
            matches!(content(&search), Content::Whole { bytes, settled: false } if bytes == "hello again")
        );
        search.load_max = 5;
        assert!(matches!(content(&search), Content::Open(_)));
    }
}
