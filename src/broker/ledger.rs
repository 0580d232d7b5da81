//! What is open, for a successor of this process: in memory that outlives it, and not on a disk.
//!
//! A broker that is killed leaves requests behind that servers and workers still know of. The ledger is a file in the memory of the
//! machine (`/dev/shm`) with the servers and the ids of what is open at each. The next broker of that name finds there what it has
//! to see to the end of. Nothing of what clients have sent is in it. One process at a time has it: it is locked.
//!
//! A kill between two words leaves either none or a whole entry, since each entry is one word, and a server's name is valid by its
//! last word. What is damaged all the same is no entry.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::sys::{self, SharedWords};
use crate::wire::{ConnId, Protocol};

/// The first word, with the version of the layout in it.
const MAGIC: u64 = u64::from_be_bytes(*b"LURBRK-1");

/// The words of the line: what this broker and those before and after it have in common.
const LINE_AT: [usize; 2] = [1, 2];

/// Words before the servers: the magic one, the line, and room for what may come.
const HEAD_WORDS: usize = 16;

/// Servers that can be noted, and words for each: its name for us, its ident, its name for workers.
const SERVERS_MAX: usize = 64;
const SERVER_WORDS: usize = 128;

/// Requests that can be noted at once; what is open beyond that is not known to a successor. 2 MiB, of which the system gives what is
/// used: a page for every 512 that were open at once.
const ENTRIES_MAX: usize = 1 << 18;

const ENTRIES_AT: usize = HEAD_WORDS + SERVERS_MAX * SERVER_WORDS;
const WORDS: usize = ENTRIES_AT + ENTRIES_MAX;

/// An entry: the id in the lower half, the server's place and one above it, what is known of the answer.
const SERVER_SHIFT: u32 = 32;
const BEGUN: u64 = 1 << 48;
const HEAD_REQUEST: u64 = 1 << 49;

/// In the lengths of a server's names: its messages are tnetstrings.
const TNETSTRING: u64 = 1 << 48;

/// An entry's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// A request that a predecessor had open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) slot: Slot,
    /// The place of its server in [`Heritage::servers`].
    pub(super) server: usize,
    pub(super) id: ConnId,
    /// Something of an answer has passed.
    pub(super) begun: bool,
    /// It asks with HEAD.
    pub(super) head_request: bool,
}

/// A server as a predecessor knew it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// Its spec for replies.
    pub(super) spec: String,
    /// What stands in its messages.
    pub(super) ident: Bytes,
    /// What workers call it.
    pub(super) name: Bytes,
    /// How its messages are written.
    pub(super) protocol: Protocol,
}

/// What a predecessor has left.
#[derive(Debug, Default)]
pub(super) struct Heritage {
    /// There was a predecessor.
    pub(super) is_one: bool,
    pub(super) servers: Vec<Option<Known>>,
    pub(super) open: Vec<Left>,
}

/// See the module.
pub(super) struct Ledger {
    path: PathBuf,
    words: SharedWords,
    /// Places that were used and are free, the last first, so that few of them are ever touched.
    free: RefCell<Vec<u32>>,
    /// From here on none was ever used.
    fresh: Cell<u32>,
    /// Servers that are noted.
    noted: RefCell<Vec<usize>>,
    /// It holds the lock.
    _file: File,
}

impl Ledger {
    /// Takes over the ledger in a file, or begins one.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when another process has it; `PermissionDenied` when it is another user's, or others may write it; what the
    /// system says.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Heritage)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(sys::OPEN_AS_IT_IS)
            .open(path)?;
        let metadata = file.metadata()?;
        let is_ours = metadata.is_file() && metadata.uid() == sys::effective_user();
        if !is_ours || metadata.permissions().mode() & 0o077 != 0 {
            let why = "it is not this user's alone";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, "another broker has it")
            }
            TryLockError::Error(error) => error,
        })?;
        let size = (WORDS * size_of::<u64>()) as u64;
        let left = if metadata.len() == size {
            Some(read_words(&file)?).filter(|left| left.first() == Some(&MAGIC))
        } else {
            None
        };
        if left.is_none() {
            file.set_len(0)?;
            file.set_len(size)?;
        }
        let words = SharedWords::map(&file, WORDS)?;
        let mut this = Self {
            path: path.to_owned(),
            words,
            free: RefCell::default(),
            fresh: Cell::new(0),
            noted: RefCell::default(),
            _file: file,
        };
        let heritage = left.map(|left| this.inherit(&left)).unwrap_or_default();
        if LINE_AT.iter().all(|at| this.get(*at) == 0) {
            for at in LINE_AT {
                // Without randomness: as unlikely to be another's as it can be made. It is no secret.
                let random = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
                this.set(at, random);
            }
        }
        this.set(0, MAGIC);
        Ok((this, heritage))
    }

    /// What all brokers of this ledger have in common, 32 hexadecimal digits: servers know by it that one continues another.
    pub(super) fn line(&self) -> String {
        let [one, two] = LINE_AT.map(|at| self.get(at));
        format!("{one:016x}{two:016x}")
    }

    fn get(&self, at: usize) -> u64 {
        let word = self.words.get().get(at);
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn set(&self, at: usize, value: u64) {
        if let Some(word) = self.words.get().get(at) {
            // What was written before is there when this is.
            word.store(value, Ordering::Release);
        }
    }

    fn inherit(&mut self, left: &[u64]) -> Heritage {
        let servers: Vec<_> = (0..SERVERS_MAX)
            .map(|number| server(left, number))
            .collect();
        let is_noted = |number: &usize| left.get(server_at(*number)).is_some_and(|word| *word != 0);
        self.noted = RefCell::new((0..SERVERS_MAX).filter(is_noted).collect());
        let mut open = Vec::new();
        let mut free = Vec::new();
        let mut fresh = 0;
        for place in 0..u32::try_from(ENTRIES_MAX).unwrap_or(u32::MAX) {
            let entry = left.get(ENTRIES_AT + place as usize).copied();
            let Some(entry) = entry.filter(|entry| *entry != 0) else {
                continue;
            };
            free.extend(fresh..place);
            fresh = place + 1;
            let number = (entry >> SERVER_SHIFT & 0xffff) as usize;
            let known = number.checked_sub(1).filter(|number| {
                let known = servers.get(*number);
                known.is_some_and(Option::is_some)
            });
            let Some(server) = known else {
                self.set(ENTRIES_AT + place as usize, 0);
                free.push(place);
                continue;
            };
            open.push(Left {
                slot: Slot(place),
                server,
                id: ConnId((entry & 0xffff_ffff) as u32),
                begun: entry & BEGUN != 0,
                head_request: entry & HEAD_REQUEST != 0,
            });
        }
        free.reverse();
        self.free = RefCell::new(free);
        self.fresh.set(fresh);
        Heritage {
            is_one: true,
            servers,
            open,
        }
    }

    /// Notes who a server is. One whose names are too long is not known to a successor, and what is open at it neither.
    pub(super) fn set_server(&self, number: usize, known: &Known) {
        let Known {
            spec,
            ident,
            name,
            protocol,
        } = known;
        if number >= SERVERS_MAX {
            return;
        }
        let at = server_at(number);
        self.set(at, 0);
        let mut noted = self.noted.borrow_mut();
        if !noted.contains(&number) {
            noted.push(number);
        }
        drop(noted);
        let mut bytes = Vec::from(spec.as_bytes());
        bytes.extend_from_slice(ident);
        bytes.extend_from_slice(name);
        if bytes.len() > (SERVER_WORDS - 1) * 8 {
            return;
        }
        for (place, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.set(at + 1 + place, u64::from_ne_bytes(word));
        }
        let mut lengths =
            (spec.len() as u64) << 32 | (ident.len() as u64) << 16 | name.len() as u64;
        if *protocol == Protocol::Tnetstring {
            lengths |= TNETSTRING;
        }
        self.set(at, lengths);
    }

    /// Forgets the servers; the caller notes those that it has.
    pub(super) fn forget_servers(&self) {
        for number in self.noted.take() {
            self.set(server_at(number), 0);
        }
    }

    /// Notes a request; none when too many are open.
    pub(super) fn enter(&self, server: usize, id: ConnId, head_request: bool) -> Option<Slot> {
        let used = self.free.borrow_mut().pop();
        let place = used.unwrap_or_else(|| self.fresh.get());
        if place as usize >= ENTRIES_MAX {
            return None;
        }
        if used.is_none() {
            self.fresh.set(place + 1);
        }
        let slot = Slot(place);
        self.write(slot, server, id, head_request, false);
        Some(slot)
    }

    /// Writes an entry anew: a server may have another place than before.
    pub(super) fn write(
        &self,
        slot: Slot,
        server: usize,
        id: ConnId,
        head_request: bool,
        begun: bool,
    ) {
        let mut entry = (server as u64 + 1) << SERVER_SHIFT | u64::from(id.0);
        entry |= if head_request { HEAD_REQUEST } else { 0 };
        entry |= if begun { BEGUN } else { 0 };
        self.set(ENTRIES_AT + slot.0 as usize, entry);
    }

    /// Something of its answer has passed.
    pub(super) fn begin(&self, slot: Slot) {
        let at = ENTRIES_AT + slot.0 as usize;
        self.set(at, self.get(at) | BEGUN);
    }

    /// It is over.
    pub(super) fn leave(&self, slot: Slot) {
        self.set(ENTRIES_AT + slot.0 as usize, 0);
        self.free.borrow_mut().push(slot.0);
    }

    /// Removes the file, at an end that leaves nothing open.
    pub(super) fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// Where a server is noted.
fn server_at(number: usize) -> usize {
    HEAD_WORDS + number * SERVER_WORDS
}

/// What a file has, read and not mapped: to look at a page of memory through a mapping is to have it from then on.
fn read_words(file: &File) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; WORDS * size_of::<u64>()];
    file.read_exact_at(&mut bytes, 0)?;
    let (words, _) = bytes.as_chunks();
    Ok(words.iter().copied().map(u64::from_ne_bytes).collect())
}

fn server(left: &[u64], number: usize) -> Option<Known> {
    let words = left.get(server_at(number)..server_at(number + 1))?;
    let (&lengths, words) = words.split_first()?;
    let length = |shift: u32| (lengths >> shift & 0xffff) as usize;
    let (spec, ident, name) = (length(32), length(16), length(0));
    if lengths == 0 || spec + ident + name > words.len() * 8 {
        return None;
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let part = |from: usize, len: usize| bytes.get(from..from + len);
    Some(Known {
        spec: String::from_utf8(part(0, spec)?.to_vec()).ok()?,
        ident: Bytes::copy_from_slice(part(spec, ident)?),
        name: Bytes::copy_from_slice(part(spec + ident, name)?),
        protocol: if lengths & TNETSTRING == 0 {
            Protocol::Json
        } else {
            Protocol::Tnetstring
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        (folder, path)
    }

    #[test]
    fn what_was_open_is_found_and_what_was_over_is_not() {
        let (_folder, path) = path();
        let (ledger, heritage) = Ledger::open(&path).unwrap();
        assert!(heritage.open.is_empty());
        let server = Known {
            spec: "tcp://127.0.0.1:9998".to_owned(),
            ident: Bytes::from_static(b"ident"),
            name: Bytes::from_static(b"ident-2"),
            protocol: Protocol::Tnetstring,
        };
        ledger.set_server(1, &server);
        let line = ledger.line();
        let one = ledger.enter(1, ConnId(u32::MAX), true).unwrap();
        let two = ledger.enter(1, ConnId(7), false).unwrap();
        let three = ledger.enter(1, ConnId(8), false).unwrap();
        ledger.begin(three);
        ledger.leave(two);
        // As a kill leaves it.
        drop(ledger);
        let (ledger, heritage) = Ledger::open(&path).unwrap();
        assert_eq!(ledger.line(), line, "it continues the other");
        assert_eq!(heritage.servers[1].as_ref(), Some(&server));
        let left = |slot, id, begun, head_request| Left {
            slot,
            server: 1,
            id: ConnId(id),
            begun,
            head_request,
        };
        assert_eq!(
            heritage.open,
            [
                left(one, u32::MAX, false, true),
                left(three, 8, true, false)
            ]
        );
        assert_eq!(ledger.enter(1, ConnId(9), false), Some(two), "a free place");
        assert_eq!(ledger.enter(1, ConnId(10), false), Some(Slot(3)));
    }

    #[test]
    fn what_a_killed_broker_leaves_takes_no_more_memory_than_was_written() {
        // Where files are memory, and holes in them none.
        let memory = Path::new("/dev/shm");
        if !memory.is_dir() {
            return;
        }
        let folder = tempfile::tempdir_in(memory).unwrap();
        let path = folder.path().join("ledger");
        for _ in 0..3 {
            let (ledger, _) = Ledger::open(&path).unwrap();
            ledger.forget_servers();
            let known = Known {
                spec: "tcp://127.0.0.1:9998".to_owned(),
                ident: Bytes::from_static(b"ident"),
                name: Bytes::from_static(b"ident"),
                protocol: Protocol::Json,
            };
            ledger.set_server(0, &known);
            for id in 0..100 {
                ledger.enter(0, ConnId(id), false).unwrap();
            }
        }
        let kept = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(kept <= 4 * 64 * 1024, "{kept} bytes, in pages of any size");
        let (_, heritage) = Ledger::open(&path).unwrap();
        assert_eq!(heritage.open.len(), 300);
    }

    #[test]
    fn one_process_has_it_and_strangers_do_not() {
        let (_folder, path) = path();
        let (_ledger, _) = Ledger::open(&path).unwrap();
        let refused = Ledger::open(&path).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        let other = path.with_extension("other");
        std::fs::write(&other, b"").unwrap();
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o644)).unwrap();
        let refused = Ledger::open(&other).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        let link = path.with_extension("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Ledger::open(&link).is_err());
    }

    #[test]
    fn a_file_of_rubbish_is_an_empty_ledger() {
        let (_folder, path) = path();
        drop(Ledger::open(&path).unwrap());
        let size = usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
        for rubbish in [vec![0xa5; size], vec![0xff; 100]] {
            std::fs::write(&path, &rubbish).unwrap();
            let (ledger, heritage) = Ledger::open(&path).unwrap();
            assert!(heritage.open.is_empty());
            assert_ne!(ledger.line(), "a5".repeat(16));
            assert_eq!(ledger.enter(0, ConnId(1), false), Some(Slot(0)));
        }
        // The right beginning, and then rubbish.
        let mut bytes = vec![0xa5; size];
        bytes[..8].copy_from_slice(&MAGIC.to_ne_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert!(Ledger::open(&path).unwrap().1.open.is_empty());
    }

    #[test]
    fn it_is_bounded() {
        let (_folder, path) = path();
        let (ledger, _) = Ledger::open(&path).unwrap();
        let count = (0..=u32::try_from(ENTRIES_MAX).unwrap())
            .filter_map(|id| ledger.enter(0, ConnId(id), false))
            .count();
        assert_eq!(count, ENTRIES_MAX);
    }
}
