//! Uploads that a server has stored in a file: which of them are to be believed, where the file is, and that it goes away.
//!
//! A server announces such an upload when it begins and tells when it is complete, by headers that a client of a Mongrel2 can
//! send as well. Whoever believed those would read, and delete, what the client names. Bodies that come in parts are in
//! [`super::body`].

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::body::BodyReader;
use super::publisher::Publisher;
use super::replies::ReplyError;
use super::request::Request;
use crate::sys;
use crate::wire::request::{Headers, Kind};
use crate::wire::{self, ConnId};

/// Announced uploads that are remembered. The oldest is forgotten then: of a server that deals its notices to several handlers
/// not every end of a connection is heard of.
const STARTED_MAX: usize = 65_536;

/// The longest body of a request, in bytes, that a Mongrel2 knows: it reads longer lengths as none at all, which lets a client
/// send upload headers of its own along with one.
const MONGREL2_LENGTH_MAX: u64 = i32::MAX as u64;

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

/// A connection of a server that replies go to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    server: usize,
    sender: Bytes,
    conn_id: ConnId,
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy)]
struct Sender {
    /// Tells one server from another.
    server: usize,
    /// A Lurcher, which passes no client's upload headers on. One that feeds its workers does so with what a Mongrel2 has sent.
    honest: bool,
    /// A broker, who may give what was announced to another worker.
    is_broker: bool,
}

/// The uploads that were announced and are not complete. It looks at every message; nothing is done with most.
#[derive(Debug, Default)]
pub(super) struct Announced {
    chroot: Option<Arc<Path>>,
    /// The beginning of every name, from `upload.temp_store`.
    store: Option<Vec<u8>>,
    started: HashMap<Key, (Arc<Stored>, u64)>,
    /// By age.
    order: BTreeMap<u64, Key>,
    next: u64,
}

impl Announced {
    pub(super) fn new(chroot: Option<&Path>, store: Option<&Path>) -> Self {
        let store = store.map(|store| {
            let store = store.as_os_str().as_bytes();
            store
                .strip_suffix(PLACES.as_bytes())
                .unwrap_or(store)
                .to_vec()
        });
        Self {
            chroot: chroot.map(Arc::from),
            store,
            ..Self::default()
        }
    }

    /// What a message says of an upload; `None` when nothing.
    pub(super) fn look(
        &mut self,
        message: &wire::request::Request,
        server: &Arc<Publisher>,
    ) -> Option<Result<Found, UploadFault>> {
        let from = Sender {
            server: Arc::as_ptr(server) as usize,
            honest: server.is_lurcher() && !server.is_feed(),
            is_broker: server.link().is_some(),
        };
        self.look_at(message, from)
    }

    fn look_at(
        &mut self,
        message: &wire::request::Request,
        from: Sender,
    ) -> Option<Result<Found, UploadFault>> {
        let marked = message.headers.contains("x-mongrel2-upload-start")
            || message.headers.contains("x-mongrel2-upload-done");
        if !marked && (self.started.is_empty() || message.path != "@*") {
            return None;
        }
        let key = Key {
            server: from.server,
            // A copy, so that the message is not kept.
            sender: Bytes::copy_from_slice(&message.sender),
            conn_id: message.conn_id,
        };
        match message.kind() {
            Kind::UploadStart { file } => Some(self.begun(key, file, message, from)),
            Kind::UploadDone { file } => Some(self.done(&key, file, message, from)),
            Kind::UploadForged => Some(Err(UploadFault::Headers)),
            Kind::Disconnect => {
                self.forget(&key);
                None
            }
            _ => None,
        }
    }

    fn begun(
        &mut self,
        key: Key,
        file: &[u8],
        message: &wire::request::Request,
        from: Sender,
    ) -> Result<Found, UploadFault> {
        let stored = Stored::new(self.place(file, message, from.honest)?);
        self.forget(&key);
        if self.started.len() >= STARTED_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.started.remove(&oldest);
        }
        self.next += 1;
        self.order.insert(self.next, key.clone());
        self.started.insert(key, (Arc::clone(&stored), self.next));
        let early = if from.is_broker {
            Early::Never
        } else if from.honest {
            Early::Always
        } else if self.store.is_some() {
            Early::IfAlone
        } else {
            Early::Never
        };
        Ok(Found {
            stored,
            done: false,
            early,
        })
    }

    fn done(
        &mut self,
        key: &Key,
        file: &[u8],
        message: &wire::request::Request,
        from: Sender,
    ) -> Result<Found, UploadFault> {
        let place = self.place(file, message, from.honest)?;
        let started = self.forget(key).filter(|stored| stored.place == place);
        let stored = match started {
            Some(stored) => stored,
            // With the place for uploads known, the name alone says that the server has made it up.
            None if from.honest || self.store.is_some() => Stored::new(place),
            None => return Err(UploadFault::NotStarted),
        };
        Ok(Found {
            stored,
            done: true,
            early: Early::Never,
        })
    }

    fn place(
        &self,
        file: &[u8],
        message: &wire::request::Request,
        honest: bool,
    ) -> Result<Place, UploadFault> {
        if !honest && !has_large_body(&message.headers) {
            return Err(UploadFault::NoBody);
        }
        if let Some(store) = &self.store {
            let made = file.strip_prefix(store.as_slice()).is_some_and(|random| {
                random.len() == PLACES.len() && random.iter().all(u8::is_ascii_alphanumeric)
            });
            if !made {
                return Err(UploadFault::Place);
            }
        }
        Place::new(self.chroot.clone(), file)
    }

    fn forget(&mut self, key: &Key) -> Option<Arc<Stored>> {
        let (stored, at) = self.started.remove(key)?;
        self.order.remove(&at);
        Some(stored)
    }
}

/// Whether the head announces a body so that every server has seen it. It did not come with the message, so the server has put it
/// elsewhere, and then the upload headers are its own: a Mongrel2 passes a client's on only with a small body, or with none.
fn has_large_body(headers: &Headers) -> bool {
    if headers.contains("content-length") {
        return length(headers).is_some_and(|length| (1..=MONGREL2_LENGTH_MAX).contains(&length));
    }
    headers
        .get("transfer-encoding")
        .and_then(|value| value.single())
        == Some(b"chunked")
}

/// `Content-Length`, where it is there once and nothing but digits.
pub(super) fn length(headers: &Headers) -> Option<u64> {
    let text = headers.get("content-length")?.single()?;
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/up/body.abc123";

    const MONGREL2: Sender = Sender {
        server: 1,
        honest: false,
        is_broker: false,
    };
    const OTHER: Sender = Sender {
        server: 2,
        honest: false,
        is_broker: false,
    };

    fn message(id: u32, headers: &[(&str, &str)], body: &str) -> wire::request::Request {
        let headers: serde_json::Map<_, _> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect();
        let headers = serde_json::to_string(&headers).unwrap();
        let path = if headers.contains("VERSION") {
            "/a"
        } else {
            "@*"
        };
        let text = format!(
            "main {id} {path} {}:{headers},{}:{body},",
            headers.len(),
            body.len()
        );
        wire::request::Request::decode(text.into_bytes().into()).unwrap()
    }

    /// A request with a body of this length that went elsewhere, and with these upload headers.
    fn upload(id: u32, length: &str, start: &str, done: Option<&str>) -> wire::request::Request {
        let mut headers = vec![
            ("METHOD", "POST"),
            ("VERSION", "HTTP/1.1"),
            ("content-length", length),
            ("x-mongrel2-upload-start", start),
        ];
        headers.extend(done.map(|done| ("x-mongrel2-upload-done", done)));
        message(id, &headers, "")
    }

    fn disconnect(id: u32) -> wire::request::Request {
        message(id, &[("METHOD", "JSON")], r#"{"type":"disconnect"}"#)
    }

    /// Where what a message says is, if it says anything.
    fn look(
        announced: &mut Announced,
        message: &wire::request::Request,
        from: Sender,
    ) -> Option<Result<PathBuf, UploadFault>> {
        let looked = announced.look_at(message, from)?;
        Some(looked.map(|found| found.stored.place.path()))
    }

    fn done(announced: &mut Announced, id: u32) -> Result<PathBuf, UploadFault> {
        let done = upload(id, "500", FILE, Some(FILE));
        look(announced, &done, MONGREL2).expect("an upload")
    }

    fn early(announced: &mut Announced, from: Sender) -> Early {
        let looked = announced.look_at(&upload(7, "500", FILE, None), from);
        looked.expect("an upload").unwrap().early
    }

    #[test]
    fn an_upload_is_believed_once_where_it_was_announced() {
        let mut announced = Announced::new(None, None);
        let start = upload(7, "500", FILE, None);
        let found = announced
            .look_at(&start, MONGREL2)
            .expect("an upload")
            .unwrap();
        assert!(!found.is_done());
        assert_eq!(
            done(&mut announced, 8),
            Err(UploadFault::NotStarted),
            "another connection"
        );
        assert_eq!(
            look(&mut announced, &upload(7, "500", FILE, Some(FILE)), OTHER),
            Some(Err(UploadFault::NotStarted)),
            "another server"
        );
        assert_eq!(done(&mut announced, 7), Ok(PathBuf::from(FILE)));
        assert_eq!(
            done(&mut announced, 7),
            Err(UploadFault::NotStarted),
            "a second time"
        );
    }

    #[test]
    fn another_name_than_the_announced_one_is_not_believed() {
        let mut announced = Announced::new(None, None);
        look(
            &mut announced,
            &upload(7, "500", "/up/body.other1", None),
            MONGREL2,
        );
        assert_eq!(done(&mut announced, 7), Err(UploadFault::NotStarted));
    }

    #[test]
    fn what_was_announced_is_forgotten_when_the_client_goes() {
        let mut announced = Announced::new(None, None);
        look(&mut announced, &upload(7, "500", FILE, None), MONGREL2);
        assert_eq!(look(&mut announced, &disconnect(7), MONGREL2), None);
        assert!(announced.started.is_empty() && announced.order.is_empty());
        assert_eq!(done(&mut announced, 7), Err(UploadFault::NotStarted));
    }

    /// A client of a Mongrel2 can announce a file of its choice with one request and complete it with the next.
    #[test]
    fn headers_without_a_body_that_the_server_must_have_seen_prove_nothing() {
        let mut announced = Announced::new(None, Some(Path::new("/up/body.XXXXXX")));
        for length in ["0", "", "-1", "+5", "5x", "99999999999", "2147483648"] {
            for done in [None, Some(FILE)] {
                let looked = look(&mut announced, &upload(7, length, FILE, done), MONGREL2);
                assert_eq!(looked, Some(Err(UploadFault::NoBody)), "{length:?}");
            }
        }
        for encoding in ["Chunked", "gzip, chunked", "identity"] {
            let headers = [
                ("METHOD", "POST"),
                ("VERSION", "HTTP/1.1"),
                ("transfer-encoding", encoding),
                ("x-mongrel2-upload-start", FILE),
            ];
            let looked = look(&mut announced, &message(7, &headers, ""), MONGREL2);
            assert_eq!(looked, Some(Err(UploadFault::NoBody)), "{encoding}");
        }
        let small = [
            ("METHOD", "POST"),
            ("VERSION", "HTTP/1.1"),
            ("content-length", "3"),
            ("x-mongrel2-upload-start", FILE),
        ];
        let looked = look(&mut announced, &message(7, &small, "abc"), MONGREL2);
        assert_eq!(looked, Some(Err(UploadFault::Headers)));
    }

    #[test]
    fn the_place_for_uploads_stands_in_for_the_announcement_and_bounds_every_name() {
        let mut announced = Announced::new(None, Some(Path::new("/up/body.XXXXXX")));
        assert_eq!(done(&mut announced, 7), Ok(PathBuf::from(FILE)));
        for name in [
            "/etc/passwd",
            "/up/body.abc12",
            "/up/body.abc1234",
            "/up/body.abc/12",
            "/up/body.../.x",
        ] {
            for end in [None, Some(name)] {
                let looked = look(&mut announced, &upload(7, "500", name, end), MONGREL2);
                assert_eq!(looked, Some(Err(UploadFault::Place)), "{name}");
            }
        }
    }

    #[test]
    fn a_name_is_below_the_chroot_and_never_leaves_it() {
        let chroot: Arc<Path> = Path::new("/jail").into();
        let path = |name: &str| {
            Place::new(Some(Arc::clone(&chroot)), name.as_bytes()).map(|place| place.path())
        };
        assert_eq!(path("/up/x"), Ok(PathBuf::from("/jail/up/x")));
        assert_eq!(path("./up/x"), Ok(PathBuf::from("/jail/up/x")));
        for name in [
            "", "/", ".", "..", "/..", "/up/../x", "../x", "/up/..", "/up\0/x",
        ] {
            assert_eq!(path(name), Err(UploadFault::Name), "{name:?}");
            let bare = Place::new(None, name.as_bytes());
            assert_eq!(bare, Err(UploadFault::Name), "{name:?}");
        }
    }

    #[test]
    fn a_server_that_drops_what_clients_make_up_is_believed() {
        let mut announced = Announced::new(None, None);
        let lurcher = Sender {
            honest: true,
            ..MONGREL2
        };
        let large = upload(7, "5000000000", FILE, Some(FILE));
        assert!(look(&mut announced, &large, lurcher).is_some_and(|place| place.is_ok()));
        let outside = upload(7, "500", "/up/../x", Some("/up/../x"));
        assert_eq!(
            look(&mut announced, &outside, lurcher),
            Some(Err(UploadFault::Name))
        );
    }

    #[test]
    fn the_oldest_announcement_goes_first() {
        let mut announced = Announced::new(None, None);
        for id in 0..=u32::try_from(STARTED_MAX).unwrap() {
            look(&mut announced, &upload(id, "500", FILE, None), MONGREL2);
        }
        assert_eq!(announced.started.len(), STARTED_MAX);
        assert_eq!(announced.order.len(), STARTED_MAX);
        assert_eq!(done(&mut announced, 0), Err(UploadFault::NotStarted));
        assert!(done(&mut announced, 1).is_ok());
    }

    #[test]
    fn links_lead_nowhere_and_only_plain_files_are_opened_and_removed() {
        let jail = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        fs::write(jail.path().join("x"), "abc").unwrap();
        fs::create_dir(jail.path().join("folder")).unwrap();
        std::os::unix::fs::symlink(&secret, jail.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), jail.path().join("way")).unwrap();
        let place = |name: &str| Place::new(Some(jail.path().into()), name.as_bytes()).unwrap();
        assert_eq!(place("/x").open().unwrap().1, 3);
        for name in ["/link", "/way/secret", "/folder"] {
            let opened = place(name).open();
            assert!(
                matches!(opened, Err(UploadError::NoFile { .. })),
                "{name}: {opened:?}"
            );
            assert!(place(name).remove().is_err(), "{name}");
        }
        let bare = Place::new(None, jail.path().join("link").as_os_str().as_bytes()).unwrap();
        assert!(matches!(bare.open(), Err(UploadError::NoFile { .. })));
        let gone = place("/y").open();
        assert!(matches!(gone, Err(UploadError::Gone { .. })), "{gone:?}");
        assert!(secret.exists());
        place("/x").remove().unwrap();
        assert!(!jail.path().join("x").exists());
    }

    /// Whoever reads an upload that is only announced acts on it.
    #[test]
    fn an_announcement_is_acted_on_where_it_is_sure_and_nobody_else_would() {
        let lurcher = Sender {
            honest: true,
            ..MONGREL2
        };
        let broker = Sender {
            is_broker: true,
            ..MONGREL2
        };
        let mut unknown = Announced::new(None, None);
        assert_eq!(early(&mut unknown, MONGREL2), Early::Never);
        assert_eq!(early(&mut unknown, lurcher), Early::Always);
        let mut known = Announced::new(None, Some(Path::new("/up/body.XXXXXX")));
        assert_eq!(early(&mut known, MONGREL2), Early::IfAlone);
        assert_eq!(early(&mut known, broker), Early::Never);
    }

    #[test]
    fn the_end_is_that_of_the_file_that_was_announced() {
        let mut announced = Announced::new(None, None);
        let mut found = |done| {
            let message = upload(7, "500", FILE, done);
            announced.look_at(&message, MONGREL2).unwrap().unwrap()
        };
        let (start, end) = (found(None), found(Some(FILE)));
        assert!(Arc::ptr_eq(&start.stored, &end.stored) && end.is_done());
    }
}
