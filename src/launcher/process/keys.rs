//! The files of certificates and keys as bytes, so that they can be carried into a jail.
//!
//! It looks at names and sizes only; what is in the files is read by who speaks TLS. A jail's parent reads them as root: below
//! a directory that the jail's user may change, it follows no link out of the jail.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::front;

/// A larger file is no certificate chain and no key, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// More certificates than this are not carried in one message: 32 MiB of them.
const ALL_BYTES_MAX: usize = 32 << 20;

/// The certificates and keys of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::launcher) struct KeyFiles {
    /// The `.crt` and `.key` files of the certificate directory by their names.
    pub(in crate::launcher) files: BTreeMap<String, Vec<u8>>,
    /// What client certificates are checked against.
    pub(in crate::launcher) ca_chain: Option<Vec<u8>>,
}

/// Why the files cannot be had.
#[derive(Debug, thiserror::Error)]
pub(in crate::launcher) enum KeyFilesError {
    /// One of them, or the directory.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// All together.
    #[error("{} holds more than {} MiB of certificates", path.display(), ALL_BYTES_MAX >> 20)]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
}

/// Where the paths of certificates lead.
#[derive(Debug, Clone)]
pub(super) enum Below {
    /// Wherever the system leads them; what stands before them is joined as text.
    Anywhere(String),
    /// Nowhere out of this directory, whatever links are in it, as if it was the root already.
    Jail(PathBuf),
}

impl Below {
    fn shown(&self, path: &Path) -> PathBuf {
        let before = match self {
            Below::Anywhere(prefix) => prefix,
            Below::Jail(root) => &root.to_string_lossy().into_owned(),
        };
        front::inside_chroot(before, &path.to_string_lossy())
    }

    fn open(&self, path: &Path, flags: OFlag) -> io::Result<File> {
        let flags = flags | OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match self {
            Below::Anywhere(_) => File::options()
                .read(true)
                .custom_flags(flags.bits())
                .open(self.shown(path)),
            Below::Jail(root) => {
                let root = File::open(root)?;
                let how = OpenHow::new()
                    .flags(flags)
                    .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
                Ok(openat2(&root, path, how).map(File::from)?)
            }
        }
    }
}

impl KeyFiles {
    /// Reads every `.crt` and `.key` file of a directory, and the chain, whose path begins nowhere but where it says.
    pub(super) fn read(
        below: &Below,
        certdir: &Path,
        ca_chain: Option<&Path>,
    ) -> Result<Self, KeyFilesError> {
        let failed = |path: PathBuf| move |source| KeyFilesError::Read { path, source };
        let shown = below.shown(certdir);
        let directory = below
            .open(certdir, OFlag::O_DIRECTORY)
            .map_err(failed(shown.clone()))?;
        let mut keys = KeyFiles::default();
        let mut size = 0;
        // The directory that was opened, even if its name leads elsewhere by now.
        let entries = fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))
            .map_err(failed(shown.clone()))?;
        for entry in entries {
            let name = PathBuf::from(entry.map_err(failed(shown.clone()))?.file_name());
            let wanted = name.extension().is_some_and(|e| e == "crt" || e == "key");
            let Some(text) = name.to_str().filter(|_| wanted) else {
                continue;
            };
            let path = certdir.join(&name);
            let file = below
                .open(&path, OFlag::empty())
                .map_err(failed(below.shown(&path)))?;
            let Some(bytes) = read(file).map_err(failed(below.shown(&path)))? else {
                continue;
            };
            size += bytes.len();
            if size > ALL_BYTES_MAX {
                return Err(KeyFilesError::TooMany { path: shown });
            }
            keys.files.insert(text.to_owned(), bytes);
        }
        if let Some(path) = ca_chain {
            let file = File::open(path).map_err(failed(path.to_owned()))?;
            keys.ca_chain = read(file).map_err(failed(path.to_owned()))?;
        }
        Ok(keys)
    }
}

/// All of a file; `None`: it is something else.
fn read(file: File) -> io::Result<Option<Vec<u8>>> {
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("is too large for a certificate or a key"));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_keys_are_read_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path();
        for name in ["a.crt", "a.key", "_.example.com.crt", "README", "chain.pem"] {
            fs::write(here.join(name), name).unwrap();
        }
        fs::create_dir(here.join("folder.crt")).unwrap();
        let anywhere = Below::Anywhere(String::new());
        let keys = KeyFiles::read(&anywhere, here, Some(&here.join("chain.pem"))).unwrap();
        let names: Vec<_> = keys.files.keys().map(String::as_str).collect();
        assert_eq!(names, ["_.example.com.crt", "a.crt", "a.key"]);
        assert_eq!(keys.ca_chain.as_deref(), Some(&b"chain.pem"[..]));
        let large = vec![0; usize::try_from(FILE_BYTES_MAX).unwrap() + 1];
        fs::write(here.join("large.key"), large).unwrap();
        let error = KeyFiles::read(&anywhere, here, None).unwrap_err();
        assert!(error.to_string().contains("large.key"), "{error}");
    }

    #[test]
    fn a_link_in_a_jail_leads_nowhere_out_of_it() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let jail = directory.path().join("jail");
        fs::create_dir_all(jail.join("certs")).unwrap();
        fs::write(directory.path().join("secret"), "outside").unwrap();
        fs::write(jail.join("real"), "inside").unwrap();
        // Both kinds of links, as they look from inside.
        symlink("/real", jail.join("certs/a.crt")).unwrap();
        symlink("../real", jail.join("certs/a.key")).unwrap();
        let below = Below::Jail(jail.clone());
        let read = |certdir: &str| KeyFiles::read(&below, Path::new(certdir), None);
        for certdir in ["/certs/", "certs/"] {
            let keys = read(certdir).unwrap();
            assert!(
                keys.files.values().all(|bytes| bytes == b"inside"),
                "{keys:?}"
            );
            assert_eq!(keys.files.len(), 2);
        }
        for out in [
            directory.path().join("secret"),
            PathBuf::from("../../secret"),
        ] {
            symlink(&out, jail.join("certs/b.key")).unwrap();
            let error = read("/certs/").unwrap_err().to_string();
            assert!(error.ends_with("jail/certs/b.key"), "{error}");
            fs::remove_file(jail.join("certs/b.key")).unwrap();
        }
        symlink(directory.path(), jail.join("out")).unwrap();
        assert!(read("/out/").is_err());
    }
}
