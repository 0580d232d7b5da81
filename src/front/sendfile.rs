//! Files that a handler asks the front to send (extended reply `sendfile`, reference 2.6): found, checked and read off the
//! shard's thread, block by block.
//!
//! A handler may name any regular file below the setting `sendfile.base`, symbolic links resolved. It has sent the response's
//! head itself; nothing here knows HTTP.

use std::fs::{self, File, OpenOptions};
use std::future::Future as _;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::bus::server::PeerId;
use crate::sys;

/// Bytes read at once. One block is read while the one before it is written, so a connection holds two.
const BLOCK_BYTES: usize = 256 * 1024;

/// Longest name of a file, in bytes: the system's own limit.
pub(super) const NAME_MAX: usize = 4096;

/// A file that is being sent.
#[derive(Debug)]
pub(super) struct Sending {
    job: JoinHandle<io::Result<(File, Vec<u8>)>>,
    path: PathBuf,
    /// The reply socket that asked for it.
    pub(super) voice: PeerId,
}

impl Sending {
    /// Begins to read a file that must be below `base`.
    pub(super) fn begin(base: PathBuf, path: PathBuf, voice: PeerId) -> Self {
        let name = path.clone();
        let job = spawn_blocking(move || read(open(&base, &name)?));
        Self { job, path, voice }
    }

    /// The next block; `None` at the end of the file.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let (file, block) =
            ready!(Pin::new(&mut self.job).poll(cx)).map_err(io::Error::other)??;
        if block.is_empty() {
            return Poll::Ready(Ok(None));
        }
        self.job = spawn_blocking(move || read(file));
        Poll::Ready(Ok(Some(block.into())))
    }

    /// Which file, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens a regular file that is below `base` when all symbolic links are resolved.
fn open(base: &Path, path: &Path) -> io::Result<File> {
    let base = fs::canonicalize(base)?;
    let path = fs::canonicalize(path)?;
    if !path.starts_with(&base) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "not below the setting `sendfile.base`",
        ));
    }
    // A named pipe would wait for its other end, and a link that is new here leads elsewhere.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(sys::OPEN_AS_IT_IS)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(file)
}

fn read(mut file: File) -> io::Result<(File, Vec<u8>)> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    (&mut file)
        .take(BLOCK_BYTES as u64)
        .read_to_end(&mut block)?;
    Ok((file, block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_below_the_base_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("base/sub")).unwrap();
        fs::create_dir(at("base-secret")).unwrap();
        for name in ["base/sub/file", "base-secret/file", "outside"] {
            fs::write(at(name), name).unwrap();
        }
        std::os::unix::fs::symlink(at("outside"), at("base/leads-out")).unwrap();
        std::os::unix::fs::symlink(at("base/sub/file"), at("leads-in")).unwrap();
        for (name, opens) in [
            ("base/sub/file", true),
            ("base/../base/sub/file", true),
            ("leads-in", true),
            ("base/leads-out", false),
            ("base/../outside", false),
            ("base-secret/file", false),
            ("base/../base-secret/file", false),
            ("base/sub", false),
            ("base", false),
            ("base/nothing", false),
            ("base/sub/file\0", false),
        ] {
            assert_eq!(open(&at("base"), &at(name)).is_ok(), opens, "{name}");
        }
        assert!(open(&at("no-base"), &at("base/sub/file")).is_err());
    }
}
