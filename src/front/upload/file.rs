//! Files that bodies are stored in: made, written and removed off the shard's thread.
//!
//! One job at a time writes what has gathered since the last, so an upload holds two buffers and no thread while its client is
//! slow. A file belongs to the front until its handler was told that it is complete; until then it goes when the upload
//! does, however that ends. What a crash leaves behind is left: files of finished uploads, which are their handlers', look the
//! same.

use std::fs::{self, File, OpenOptions, Permissions};
use std::future::Future as _;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::task::{JoinHandle, spawn_blocking};

use crate::drain::Watch;

/// What a template ends in, to be replaced for each file, as by mkstemp(3).
pub(in crate::front) const PLACEHOLDER: &str = "XXXXXX";

/// Bytes that gather while others are written, above which the client has to wait. One read may still come on top.
const GATHER_MAX: usize = 64 * 1024;

/// Letters of a file name: 62 to the power of 6 are 57 thousand million names, so that a taken one is no case to provide for
/// beyond an error.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A new file name from a template that ends in [`PLACEHOLDER`].
///
/// # Errors
///
/// When the system has no random numbers.
pub(in crate::front) fn name(template: &str) -> Result<String, getrandom::Error> {
    let mut name = template
        .strip_suffix(PLACEHOLDER)
        .unwrap_or(template)
        .to_owned();
    let mut random = getrandom::u64()?;
    for _ in 0..PLACEHOLDER.len() {
        let index = usize::try_from(random % 62).unwrap_or_default();
        name.extend(ALPHABET.get(index).map(|byte| char::from(*byte)));
        random /= 62;
    }
    Ok(name)
}

/// A file that is removed when this is dropped, unless it is kept.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!("remove upload {}: {error}", self.path.display());
        }
    }
}

/// A file that is being made.
#[derive(Debug)]
pub(in crate::front) struct Opening {
    job: JoinHandle<io::Result<(File, Temporary)>>,
}

impl Opening {
    /// Makes a file with these permissions, whatever the umask.
    pub(in crate::front) fn begin(path: PathBuf, mode: u32) -> Self {
        // Dropped before it is looked at, the result removes the file.
        let job = spawn_blocking(move || {
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            let temporary = Temporary { path, kept: false };
            file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
            Ok((file, temporary))
        });
        Self { job }
    }

    pub(in crate::front) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Writer>> {
        let (file, temporary) =
            ready!(Pin::new(&mut self.job).poll(cx)).map_err(io::Error::other)??;
        Poll::Ready(Ok(Writer {
            file: Some(file),
            gathered: Vec::new(),
            job: None,
            temporary,
        }))
    }
}

/// What a job gives back: the file, unless it was closed, and its buffer.
type Written = (Option<File>, Vec<u8>, io::Result<()>);

/// Writes a body to its file.
#[derive(Debug)]
pub(in crate::front) struct Writer {
    /// `None` while a job has it, and when it is closed.
    file: Option<File>,
    gathered: Vec<u8>,
    job: Option<JoinHandle<Written>>,
    temporary: Temporary,
}

impl Writer {
    /// Whether more of the body can be taken.
    pub(super) fn has_room(&self) -> bool {
        self.gathered.len() < GATHER_MAX
    }

    pub(super) fn push(&mut self, data: &[u8]) {
        self.gathered.extend_from_slice(data);
    }

    /// Writes what has gathered; ready when all of the body, which is `whole`, is in the file and that is closed, or when
    /// writing fails.
    pub(in crate::front) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        whole: bool,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(job) = &mut self.job {
                let (file, buffer, result) =
                    ready!(Pin::new(job).poll(cx)).map_err(io::Error::other)?;
                self.job = None;
                self.file = file;
                result?;
                if self.gathered.capacity() == 0 {
                    self.gathered = buffer;
                }
            }
            if self.gathered.is_empty() && !whole {
                // A slow client's upload holds no buffer while nothing comes.
                self.gathered = Vec::new();
                return Poll::Pending;
            }
            let Some(mut file) = self.file.take() else {
                return Poll::Ready(Ok(()));
            };
            let mut buffer = std::mem::take(&mut self.gathered);
            self.job = Some(spawn_blocking(move || {
                let result = file.write_all(&buffer);
                buffer.clear();
                // Closing may take long too, on some file systems.
                ((!whole).then_some(file), buffer, result)
            }));
        }
    }

    /// The path, for messages.
    pub(in crate::front) fn path(&self) -> std::path::Display<'_> {
        self.temporary.path.display()
    }

    /// Ends the upload: a file that is `kept` is the handler's, another is removed.
    pub(in crate::front) fn finish(mut self, kept: bool, watch: &Watch) {
        self.temporary.kept = kept;
        if !kept {
            // To remove a large file takes time. The task makes the end of the program wait for it.
            let removed = spawn_blocking(move || drop(self));
            watch.track_local(async move {
                let _removed = removed.await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_in_their_last_six_letters_only() {
        let names: std::collections::HashSet<String> =
            (0..100).map(|_| name("/up/x.XXXXXX").unwrap()).collect();
        assert_eq!(names.len(), 100);
        for name in names {
            let end = name.strip_prefix("/up/x.").expect("the template");
            assert_eq!(end.len(), 6);
            assert!(
                end.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                "{name}"
            );
        }
    }

    async fn store(parts: &[&[u8]], directory: &std::path::Path) -> io::Result<Writer> {
        let mut opening = Opening::begin(directory.join("file"), 0o640);
        let mut writer = std::future::poll_fn(|cx| opening.poll(cx)).await?;
        for part in parts {
            writer.push(part);
            // Begins a job, or waits for one.
            std::future::poll_fn(|cx| Poll::Ready(writer.poll(cx, false)))
                .await
                .is_pending();
        }
        std::future::poll_fn(|cx| writer.poll(cx, true)).await?;
        Ok(writer)
    }

    #[tokio::test]
    async fn a_file_has_the_whole_body_and_its_mode_and_stays_when_it_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let writer = store(&[b"one ", b"two ", b"three"], directory.path())
            .await
            .unwrap();
        let (_, watch) = crate::drain::channel();
        writer.finish(true, &watch);
        let path = directory.path().join("file");
        assert_eq!(fs::read(&path).unwrap(), b"one two three");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o640
        );
    }

    #[tokio::test]
    async fn a_file_that_is_given_up_goes_and_one_that_exists_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        drop(store(&[b"body"], directory.path()).await.unwrap());
        assert!(!path.exists());
        fs::write(&path, "mine").unwrap();
        let error = store(&[b"body"], directory.path()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
