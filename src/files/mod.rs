//! What a directory may serve, and how (Mongrel2's Dir, and RFC 9110 where Mongrel2 has nothing).
//!
//! * [`path`]: what a path names below the base, and where a directory without its slash is
//! * [`wish`], [`range`], [`encoding`]: what the fields of a request ask for, and what follows from them; pure
//! * `reply`: what is said about a file
//! * `disk`: the only part that looks at the disk; blocks, and runs on the blocking pool
//! * `cache`, `stream`: small files in memory, large ones a block at a time
//!
//! [`Files`] joins them for one shard. It knows no configuration, no connection and no HTTP/1: it gives a [`Reply`], and who asks
//! frames and sends it. It lists no directories and compresses nothing.

mod cache;
mod disk;
pub mod encoding;
pub mod path;
pub mod range;
mod reply;
mod stream;
pub mod wish;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tracing::{debug, error};

use self::cache::{Cache, Entry, Form};
use self::disk::{Content, Found, Hit, Search};
use self::encoding::{CODINGS, Coding};
use self::range::Span;
use self::reply::Piece;
use self::wish::{Decision, Validators};

pub use self::path::Wanted;
pub use self::reply::{Body, Reply};
pub use self::stream::Reader;
pub use self::wish::Wish;

/// Things that one shard does on the disk at a time. A disk that hangs takes so many threads and no more; other requests for
/// files wait behind it, requests for handlers do not.
const DISK_MAX: usize = 16;

/// How long facts are trusted when the configuration says 0, as in Mongrel2.
const TTL_MIN: Duration = Duration::from_secs(1);

/// The least and the most that is read at once: below, the trips to another thread cost more than the reading; above, each slow
/// client holds much.
const BLOCK_MIN: usize = 64 * 1024;
const BLOCK_MAX: usize = 1024 * 1024;

/// Finds the type of a file.
pub trait Types {
    /// The type by the end of the path; `None`: the directory's default.
    fn of_path(&self, path: &str) -> Option<&str>;
}

/// A directory that is served.
pub struct Directory {
    /// Tells its files from those of other directories in the cache.
    id: u64,
    base: PathBuf,
    index: String,
    default_type: String,
    types: Rc<dyn Types>,
    ttl: Duration,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// What is asked for: the path and the query of the request, as received, and the prefix of its route.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The path.
    pub path: &'a [u8],
    /// The query, without its mark.
    pub query: Option<&'a [u8]>,
    /// The text of the route before its pattern.
    pub prefix: &'a [u8],
}

/// A request for a file that the disk has to be asked for.
#[derive(Debug)]
pub struct Quest {
    directory: Rc<Directory>,
    wanted: Wanted,
    /// Where a directory without slash is.
    location: Vec<u8>,
    key: Vec<u8>,
    wish: Wish<'static>,
}

/// What comes of a first look.
#[derive(Debug)]
pub enum Outcome {
    /// Known already.
    Ready(Reply),
    /// To be looked for, with [`Files::seek`].
    Seek(Box<Quest>),
}

/// Serves files, for one shard: the cache, and what keeps the disk from being asked too much at once.
#[derive(Debug)]
pub struct Files {
    cache: RefCell<Cache>,
    disk: Arc<Semaphore>,
    server: &'static str,
    block: Cell<usize>,
    directories: Cell<u64>,
    /// Names of boundaries that nobody can guess.
    boundaries: RandomState,
    boundary: Cell<u64>,
    date: RefCell<(u64, String)>,
    key: RefCell<Vec<u8>>,
    /// The disk failed when it was asked last, and that was said.
    complained: Cell<bool>,
}

impl Files {
    /// Serves files as this `server`, with at most `cache_bytes` of them in memory (0: none), reading `block` bytes at once,
    /// which is held to 64 KiB and 1 MiB.
    pub fn new(server: &'static str, cache_bytes: usize, block: usize) -> Self {
        Self {
            cache: RefCell::new(Cache::new(cache_bytes)),
            disk: Arc::new(Semaphore::new(DISK_MAX)),
            server,
            block: Cell::new(block.clamp(BLOCK_MIN, BLOCK_MAX)),
            directories: Cell::new(0),
            boundaries: RandomState::new(),
            boundary: Cell::new(0),
            date: RefCell::default(),
            key: RefCell::default(),
            complained: Cell::new(false),
        }
    }

    /// Forgets every file and takes new limits: the configuration was read again.
    pub fn reset(&self, cache_bytes: usize, block: usize) {
        self.cache.replace(Cache::new(cache_bytes));
        self.block.set(block.clamp(BLOCK_MIN, BLOCK_MAX));
    }

    /// A directory to serve. `ttl`: how long facts about a file are trusted; below a second it is one, as in Mongrel2.
    pub fn directory(
        &self,
        base: PathBuf,
        index: &str,
        default_type: &str,
        types: Rc<dyn Types>,
        ttl: Duration,
    ) -> Rc<Directory> {
        let id = self.directories.get();
        self.directories.set(id.wrapping_add(1));
        Rc::new(Directory {
            id,
            base,
            index: index.to_owned(),
            default_type: clean(default_type),
            types,
            ttl: ttl.max(TTL_MIN),
        })
    }

    /// Answers from memory, or says what to look for. The disk is not asked here.
    pub fn ask(&self, directory: &Rc<Directory>, place: Place<'_>, wish: Wish<'_>) -> Outcome {
        let mut key = self.key.take();
        key.clear();
        key.extend_from_slice(&directory.id.to_le_bytes());
        key.extend_from_slice(place.path.get(place.prefix.len()..).unwrap_or_default());
        if place.path.len() == place.prefix.len() && place.path.ends_with(b"/") {
            key.push(b'/');
        }
        let known = self.cache.borrow_mut().get(&key);
        let reply = known
            .filter(|entry| entry.checked.elapsed() < directory.ttl)
            .and_then(|entry| self.known_reply(&entry, &wish));
        let outcome = match reply {
            Some(reply) => Outcome::Ready(reply),
            None => match path::wanted(place.path, place.prefix, &directory.index) {
                None => Outcome::Ready(self.not_found()),
                Some(wanted) => Outcome::Seek(Box::new(Quest {
                    directory: Rc::clone(directory),
                    location: path::location(place.path, place.query),
                    wanted,
                    key: key.clone(),
                    wish: wish.into_owned(),
                })),
            },
        };
        self.key.replace(key);
        outcome
    }

    /// Asks the disk.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was not learnt is asked again.
    pub async fn seek(&self, quest: Quest) -> Reply {
        let Quest {
            directory,
            wanted,
            location,
            key,
            wish,
        } = quest;
        let known = self.cache.borrow_mut().get(&key);
        let trusted = |form: &Option<Rc<Form>>| {
            let form = form.as_ref()?;
            (form.body.is_some() && form.settled).then_some(form.stamp)
        };
        let search = Search {
            base: directory.base.clone(),
            relative: wanted.relative,
            is_index: wanted.directory,
            acceptable: wish.acceptable(),
            known: known
                .as_ref()
                .map_or([None; CODINGS], |entry| entry.forms.each_ref().map(trusted)),
            load_max: self.cache.borrow().file_max() as u64,
        };
        let name = String::from_utf8_lossy(&search.relative).into_owned();
        // The answer may be older than what it says by as long as it took.
        let asked = Instant::now();
        let found = stream::on_disk(&self.disk, move || disk::look(&search)).await;
        if found.is_ok() {
            self.complained.set(false);
        }
        let hit = match found {
            Ok(Found::File(hit)) => hit,
            Ok(found) => {
                self.cache.borrow_mut().remove(&key);
                return match found {
                    Found::Directory => self.words(301, "").with("Location", &location),
                    Found::Nothing | Found::File(_) => self.not_found(),
                };
            }
            Err(problem) => return self.trouble(&directory, &name, &problem),
        };
        let best = hit.best;
        let (entry, file) = self.remember(&directory, &name, asked, known.as_deref(), *hit);
        self.cache.borrow_mut().insert(&key, Rc::clone(&entry));
        let reply = entry
            .form(best)
            .and_then(|form| self.reply(&entry, form, file, &wish));
        reply.unwrap_or_else(|| self.not_found())
    }

    /// Makes an entry of what was found; a file that was not read comes back open.
    fn remember(
        &self,
        directory: &Directory,
        name: &str,
        asked: Instant,
        known: Option<&Entry>,
        hit: Hit,
    ) -> (Rc<Entry>, Option<File>) {
        let now = SystemTime::now();
        let varies = hit.forms.iter().flatten().count() > 1;
        let content_type = directory
            .types
            .of_path(name)
            .map_or_else(|| directory.default_type.clone(), clean);
        let mut fresh = None;
        let mut file = None;
        match hit.content {
            Content::Unchanged => {}
            Content::Whole { bytes, settled } => fresh = Some((bytes, settled)),
            Content::Open(open) => file = Some(open),
        }
        let form = |coding: Coding| {
            let stamp = hit.forms.get(coding.place()).copied().flatten()?;
            let (body, settled) = if coding == hit.best && (fresh.is_some() || file.is_some()) {
                fresh
                    .clone()
                    .map_or((None, false), |(body, settled)| (Some(body), settled))
            } else {
                let before = known.and_then(|entry| entry.form(coding));
                let kept = before.filter(|form| form.settled && form.stamp == stamp);
                (kept.and_then(|form| form.body.clone()), true)
            };
            Some(Rc::new(Form {
                coding,
                stamp,
                tag: reply::tag(&stamp, coding),
                lines: reply::form_lines(&stamp, coding, varies, self.server, now),
                short_lines: reply::short_lines(&stamp, coding, varies, self.server),
                body,
                settled,
            }))
        };
        let entry = Entry {
            checked: asked,
            content_type: content_type.into(),
            forms: Coding::ALL.map(form),
        };
        (Rc::new(entry), file)
    }

    /// What is known suffices, or it does not.
    fn known_reply(&self, entry: &Entry, wish: &Wish<'_>) -> Option<Reply> {
        let best = wish
            .acceptable()
            .best(|coding| entry.form(coding).is_some());
        self.reply(entry, entry.form(best)?, None, wish)
    }

    /// The reply about one form; `None` when its bytes are needed and are not here.
    fn reply(
        &self,
        entry: &Entry,
        form: &Form,
        file: Option<File>,
        wish: &Wish<'_>,
    ) -> Option<Reply> {
        let now = SystemTime::now();
        let size = form.stamp.size;
        let validators = Validators {
            tag: &form.tag,
            modified: reply::modified(&form.stamp),
            size,
        };
        let parts = match wish.decide(validators, now) {
            Decision::NotModified => {
                let mut lines = Vec::with_capacity(160);
                self.put_date(&mut lines, now);
                lines.extend_from_slice(&form.short_lines);
                return Some(Reply {
                    status: 304,
                    lines,
                    length: None,
                    body: Body::Whole(Bytes::new()),
                });
            }
            Decision::PreconditionFailed => return Some(self.words(412, "Precondition Failed")),
            Decision::Unsatisfiable => {
                let range = format!("bytes */{size}");
                let reply = self.words(416, "Range Not Satisfiable");
                return Some(reply.with("Content-Range", range.as_bytes()));
            }
            Decision::Whole => Vec::new(),
            // Content-Encoding would be said of the parts with their heads together, which nobody can decode.
            Decision::Parts(parts) if parts.len() > 1 && form.coding != Coding::Identity => {
                Vec::new()
            }
            Decision::Parts(parts) => parts,
        };
        let mut lines = Vec::with_capacity(512);
        self.put_date(&mut lines, now);
        let (status, pieces, length) = match parts.as_slice() {
            [] => {
                reply::put(&mut lines, "Content-Type", entry.content_type.as_bytes());
                (200, vec![], size)
            }
            [part] => {
                reply::put(&mut lines, "Content-Type", entry.content_type.as_bytes());
                let range = reply::content_range(*part, size);
                reply::put(&mut lines, "Content-Range", range.as_bytes());
                (206, vec![Piece::File(*part)], part.length())
            }
            parts => {
                let boundary = self.boundary();
                let kind = format!("multipart/byteranges; boundary={boundary}");
                reply::put(&mut lines, "Content-Type", kind.as_bytes());
                let (pieces, length) =
                    reply::multipart(parts, size, &entry.content_type, &boundary);
                (206, pieces, length)
            }
        };
        lines.extend_from_slice(&form.lines);
        let stream = |content: stream::Content, mut pieces: Vec<Piece>| {
            if pieces.is_empty() {
                pieces.push(Piece::File(Span {
                    start: 0,
                    end: size,
                }));
            }
            let disk = Arc::clone(&self.disk);
            Body::Stream(Box::new(Reader::new(
                content,
                pieces,
                self.block.get(),
                disk,
            )))
        };
        let body = match (&form.body, file, pieces.as_slice()) {
            _ if wish.head => Body::Whole(Bytes::new()),
            (Some(bytes), _, []) => Body::Whole(bytes.clone()),
            (Some(bytes), _, [Piece::File(part)]) => Body::Whole(stream::cut(bytes, *part)),
            // Not put together: they share the memory of the file, whoever asks for how many of them.
            (Some(bytes), ..) => stream(stream::Content::Here(bytes.clone()), pieces),
            (None, Some(file), _) => stream(stream::Content::Open(Arc::new(file)), pieces),
            (None, None, _) => return None,
        };
        Some(Reply {
            status,
            lines,
            length: Some(length),
            body,
        })
    }

    fn not_found(&self) -> Reply {
        self.words(404, "Not Found")
    }

    fn words(&self, status: u16, words: &'static str) -> Reply {
        let now = SystemTime::now();
        let mut date = Vec::new();
        self.with_date(now, |text| date.extend_from_slice(text));
        Reply::words(status, words, &date, self.server)
    }

    /// The disk, or this process, cannot do what it should.
    fn trouble(&self, directory: &Directory, name: &str, problem: &io::Error) -> Reply {
        // Anybody can ask again and again: said once until it works.
        if self.complained.replace(true) {
            debug!("read {name} in {}: {problem}", directory.base.display());
        } else {
            error!("read {name} in {}: {problem}", directory.base.display());
        }
        if crate::sys::is_exhaustion(problem) {
            self.words(503, "Service Unavailable: out of file descriptors")
                .with("Retry-After", b"1")
        } else {
            self.words(500, "Internal Server Error")
        }
    }

    fn boundary(&self) -> String {
        let number = self.boundary.get();
        self.boundary.set(number.wrapping_add(1));
        let [one, other] = [0, 1].map(|half| self.boundaries.hash_one((number, half)));
        format!("{one:016x}{other:016x}")
    }

    fn put_date(&self, lines: &mut Vec<u8>, now: SystemTime) {
        self.with_date(now, |text| reply::put(lines, "Date", text));
    }

    /// The date as text, made once a second.
    fn with_date(&self, now: SystemTime, f: impl FnOnce(&[u8])) {
        let second = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let date = &mut *self.date.borrow_mut();
        if date.0 != second || date.1.is_empty() {
            *date = (second, reply::http_date(now));
        }
        f(date.1.as_bytes());
    }
}

/// A configured text that can stand in a field.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests;
