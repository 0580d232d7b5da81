//! Uploads that a server has stored in a file: where the file is, and that it goes away. Which of them are to be believed is told in
//! `announced`.
//!
//! A server announces such an upload when it begins and tells when it is complete, by headers that a client of a Mongrel2 can
//! send as well. Whoever believed those would read, and delete, what the client names. Bodies that come in parts are in
//! [`super::body`].

mod announced;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::body::BodyReader;
use super::replies::ReplyError;
use super::request::Request;
use crate::sys;

pub(super) use announced::{Announced, length};

/// What mkstemp(3) replaces at the end of `upload.temp_store`.
const PLACES: &str = "XXXXXX";

/// Why upload headers are not believed. Whoever asks so is no upload, whatever it is: answer 400 and close, or close at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UploadFault {
    /// There are several of one, or they differ, or they come with a body.
    #[error("upload headers that do not fit together")]
    Headers,
    /// The head announces no body that a server would have stored.
    #[error("upload headers, and no body that the server has stored")]
    NoBody,
    /// This handler has not heard of the beginning of the upload. Where a Mongrel2 deals in turn to several handlers, another has:
    /// see [`super::Options::upload_store`].
    #[error("the end of an upload whose beginning this handler has not heard of")]
    NotStarted,
    /// The name is not of the form of [`super::Options::upload_store`].
    #[error("a file that is not in the place for uploads")]
    Place,
    /// The name has `..` in it, or is none.
    #[error("not a name that a server gives to an upload")]
    Name,
}

/// An upload that could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// It is not complete yet: this is its announcement.
    #[error("upload {}: it is not complete yet", .path.display())]
    Incomplete {
        /// Where the file is.
        path: PathBuf,
    },
    /// The file is gone: moved or deleted by somebody, or the server is on another machine or in another chroot.
    #[error("upload {}: the file is not there; perhaps it is in a chroot of the server that was not named", .path.display())]
    Gone {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is something else: a directory, a device, or a symbolic link on the way.
    #[error("upload {}: not a plain file", .path.display())]
    NoFile {
        /// Where.
        path: PathBuf,
    },
    /// The system says no.
    #[error("upload {}: {source}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An upload in a file: announced ([`super::Event::UploadStarted`]) or complete ([`super::Event::UploadDone`]).
///
/// It dereferences to the [`Request`] that it came as, which has the headers, and is answered like any other. The file of a
/// complete one is removed with the last clone, unless it was kept with [`Upload::keep`] or [`Upload::into_path`].
///
/// An announced one may be left alone: its end is another event. Some may be read at once: [`Upload::early`]. To refuse it, answer and close
/// (`Connection: close` in [`super::Replies::reply_http`]); then the server removes the file.
#[derive(Debug, Clone)]
pub struct Upload {
    request: Request,
    found: Found,
}

/// Whether an announced upload may be read before it is complete: see [`super::Bodies::announced`].
///
/// Whoever reads it acts on an announcement. So that has to be the server's own, and nobody else may be told of the end of the upload,
/// since he would act on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Early {
    /// It is not sure that the announcement is the server's, or the length is not known, or it is a broker who says so: wait for
    /// [`super::Event::UploadDone`].
    Never,
    /// The name is one that the server makes up ([`super::Options::upload_store`]), but a Mongrel2 deals out its messages in turn: only where
    /// no other handler receives them.
    IfAlone,
    /// A Lurcher tells the end to whom it has told the beginning.
    Always,
}

/// An upload that is believed: what a message says of it.
#[derive(Debug, Clone)]
pub(super) struct Found {
    stored: Arc<Stored>,
    done: bool,
    early: Early,
}

/// A file of a server's, from its announcement on.
#[derive(Debug)]
struct Stored {
    place: Place,
    /// It is complete, and so ours to remove; until it is kept.
    ours: AtomicBool,
    /// It is read since it was announced: its request has been taken.
    begun: AtomicBool,
    /// Whose it is.
    process: u32,
}

impl Stored {
    fn new(place: Place) -> Arc<Self> {
        Arc::new(Self {
            place,
            ours: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            process: std::process::id(),
        })
    }
}

impl Found {
    pub(super) fn is_done(&self) -> bool {
        self.done
    }
}

/// Where an upload is: a name that goes through no `..`, perhaps below a chroot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    chroot: Option<Arc<Path>>,
    name: PathBuf,
}

impl Place {
    /// The place that a server's name means.
    fn new(chroot: Option<Arc<Path>>, name: &[u8]) -> Result<Self, UploadFault> {
        let name = Path::new(OsStr::from_bytes(name));
        let plain = |component| {
            matches!(
                component,
                Component::Normal(_) | Component::RootDir | Component::CurDir
            )
        };
        let sound = name.components().all(plain)
            && name.file_name().is_some()
            && !name.as_os_str().as_bytes().contains(&0);
        if !sound {
            return Err(UploadFault::Name);
        }
        let name = match chroot {
            // Inside a chroot the server's working directory is its root.
            Some(_) => name
                .components()
                .filter(|component| matches!(component, Component::Normal(_)))
                .collect(),
            None => name.to_owned(),
        };
        Ok(Self { chroot, name })
    }

    fn path(&self) -> PathBuf {
        self.chroot
            .as_ref()
            .map_or_else(|| self.name.clone(), |chroot| chroot.join(&self.name))
    }

    /// Opens the file. Below a chroot no name on the way may be a symbolic link, since what one means there is something else
    /// here; without one, the last may not.
    fn open(&self) -> Result<(fs::File, u64), UploadError> {
        let path = || self.path();
        let opened = match &self.chroot {
            Some(chroot) => sys::open_beneath(chroot, &self.name),
            None => fs::File::options()
                .read(true)
                .custom_flags(sys::OPEN_AS_IT_IS)
                .open(&self.name),
        };
        let with_facts = opened.and_then(|file| {
            let facts = file.metadata()?;
            Ok((file, facts))
        });
        match with_facts {
            Ok((file, facts)) if facts.is_file() => Ok((file, facts.len())),
            Ok(_) => Err(UploadError::NoFile { path: path() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(UploadError::Gone { path: path() })
            }
            // A symbolic link, or a file where a directory should be.
            Err(error)
                if sys::is_absence(&error) && error.kind() != io::ErrorKind::PermissionDenied =>
            {
                Err(UploadError::NoFile { path: path() })
            }
            Err(source) => Err(UploadError::Io {
                path: path(),
                source,
            }),
        }
    }

    /// Removes the file, if it is one that could be opened.
    fn remove(&self) -> Result<(), UploadError> {
        self.open()?;
        let path = self.path();
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(UploadError::Io { path, source })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        // A child by fork has a copy of this, and the file is the parent's.
        if !*self.ours.get_mut() || self.process != std::process::id() {
            return;
        }
        match self.place.remove() {
            // Somebody was faster: it is gone all the same.
            Ok(()) | Err(UploadError::Gone { .. }) => {}
            Err(error) => tracing::warn!(%error, "could not remove an upload"),
        }
    }
}

impl Upload {
    pub(super) fn new(request: Request, found: Found) -> Self {
        if found.done {
            found.stored.ours.store(true, Ordering::Release);
        }
        Self { request, found }
    }

    /// The request that it came as.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Whether the file is complete.
    pub fn is_done(&self) -> bool {
        self.found.done
    }

    /// Whether an announced one may be read before it is complete.
    pub fn early(&self) -> Early {
        if self.found.done || self.declared_length().is_none() {
            return Early::Never;
        }
        self.found.early
    }

    /// Tells the server that its announcement is acted on, before that is done: a Lurcher then treats it as a request that its handler
    /// has, and gives it to no other when this one is lost, unless the method allows it. Nothing to a Mongrel2, who never does.
    ///
    /// # Errors
    ///
    /// As [`super::Client::send`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it is sent if and only if the future completes.
    pub async fn act(&self) -> Result<(), ReplyError> {
        self.client().grant(0).await
    }

    /// Whether its request was taken when it was announced ([`super::Bodies::announced`]).
    pub(super) fn is_begun(&self) -> bool {
        self.found.stored.begun.load(Ordering::Acquire)
    }

    pub(super) fn begin(&self) {
        self.found.stored.begun.store(true, Ordering::Release);
    }

    /// Opens the file, complete or not. For where that may take time.
    pub(super) fn open_now(&self) -> Result<fs::File, UploadError> {
        self.found.stored.place.open().map(|(file, _)| file)
    }

    /// Where the file is, as this process has to call it: below [`super::Options::chroot`], where there is one.
    pub fn path(&self) -> PathBuf {
        self.found.stored.place.path()
    }

    /// How many bytes the client has said that it would send (`Content-Length`); `None` for a chunked body.
    pub fn declared_length(&self) -> Option<u64> {
        length(&self.request.headers)
    }

    /// Opens the file for reading, and tells its size in bytes. Only a plain file is opened, and below a chroot only one that no
    /// symbolic link leads to.
    ///
    /// # Errors
    ///
    /// [`UploadError::Gone`] above all: nobody but the handler removes a complete upload, but another process may, and a server on
    /// another machine has it there. [`UploadError::Incomplete`] for an announced one.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn open(&self) -> Result<(tokio::fs::File, u64), UploadError> {
        if !self.is_done() {
            return Err(UploadError::Incomplete { path: self.path() });
        }
        let place = self.found.stored.place.clone();
        let (file, size) = self.blocking(move || place.open()).await?;
        Ok((tokio::fs::File::from_std(file), size))
    }

    /// The content in pieces, as of any other body. The file is removed with the reader, unless it was kept.
    ///
    /// # Errors
    ///
    /// As [`Upload::open`].
    ///
    /// # Cancel safety
    ///
    /// Dropped early, the upload is dropped.
    pub async fn into_body(self) -> Result<BodyReader, UploadError> {
        let (file, size) = self.open().await?;
        Ok(BodyReader::file(file, size, self))
    }

    /// Leaves the file where it is when this is dropped.
    pub fn keep(&self) {
        self.found.stored.ours.store(false, Ordering::Release);
    }

    /// Leaves the file where it is, to be moved or read later, and tells where.
    #[must_use = "nobody else removes the file"]
    pub fn into_path(self) -> PathBuf {
        self.keep();
        self.path()
    }

    /// Removes the file now. Nothing when it is gone already.
    ///
    /// # Errors
    ///
    /// As [`Upload::open`], but for [`UploadError::Gone`].
    ///
    /// # Cancel safety
    ///
    /// Dropped early, the file is removed all the same.
    pub async fn remove(self) -> Result<(), UploadError> {
        if !self.is_done() {
            return Err(UploadError::Incomplete { path: self.path() });
        }
        let place = self.found.stored.place.clone();
        match self.blocking(move || place.remove()).await {
            Ok(()) | Err(UploadError::Gone { .. }) => {
                self.keep();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, UploadError> + Send + 'static,
    ) -> Result<T, UploadError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| UploadError::Io {
            path: self.path(),
            source: io::Error::other(error),
        })?
    }
}

impl Deref for Upload {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.request
    }
}
