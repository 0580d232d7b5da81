//! A bounded memory of files that were served lately: what is known of them, and of small ones the bytes. It looks at no disk and
//! no clock; whoever uses an entry sees how old it is.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;

use super::disk::Stamp;
use super::encoding::{CODINGS, Coding};

/// Entries at the most, whatever they weigh.
const ENTRIES_MAX: usize = 1_024;

/// Names longer than this are not kept: one can be written in endless ways.
const KEY_MAX: usize = 1_024;

/// What an entry costs beside the bytes it holds, about.
const ENTRY_COST: usize = 1_024;

/// No file takes more than this part of the whole.
const SHARE: usize = 16;

/// Larger files are read as they are sent: a slow client holds what it has been given, even when it is forgotten here.
const FILE_MAX: usize = 256 * 1024;

/// What is known of a file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// When the disk was asked last.
    pub(super) checked: Instant,
    pub(super) content_type: Rc<str>,
    /// In the order of [`Coding::ALL`].
    pub(super) forms: [Option<Rc<Form>>; CODINGS],
}

/// One form of it.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) coding: Coding,
    pub(super) stamp: Stamp,
    /// The entity tag without its quotes.
    pub(super) tag: String,
    /// The fields of a 200 that are the form's own, as lines.
    pub(super) lines: Bytes,
    /// `ETag` and `Vary`, for a 304.
    pub(super) short_lines: Bytes,
    pub(super) body: Option<Bytes>,
    /// The body holds as long as the stamp is the same.
    pub(super) settled: bool,
}

impl Entry {
    pub(super) fn form(&self, coding: Coding) -> Option<&Rc<Form>> {
        self.forms.get(coding.place())?.as_ref()
    }

    fn cost(&self) -> usize {
        let bodies = self.forms.iter().flatten();
        bodies
            .filter_map(|form| form.body.as_ref())
            .fold(ENTRY_COST, |sum, body| sum.saturating_add(body.len()))
    }
}

/// The memory. See the module.
#[derive(Debug)]
pub(super) struct Cache {
    entries: HashMap<Vec<u8>, Slot>,
    bytes: usize,
    bytes_max: usize,
    uses: u64,
}

#[derive(Debug)]
struct Slot {
    entry: Rc<Entry>,
    cost: usize,
    used: u64,
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            bytes: 0,
            bytes_max,
            uses: 0,
        }
    }

    /// Files above this are not worth their place.
    pub(super) fn file_max(&self) -> usize {
        (self.bytes_max / SHARE).min(FILE_MAX)
    }

    pub(super) fn get(&mut self, key: &[u8]) -> Option<Rc<Entry>> {
        let slot = self.entries.get_mut(key)?;
        self.uses += 1;
        slot.used = self.uses;
        Some(Rc::clone(&slot.entry))
    }

    pub(super) fn insert(&mut self, key: &[u8], entry: Rc<Entry>) {
        self.remove(key);
        let cost = entry.cost().saturating_add(key.len());
        if key.len() > KEY_MAX || cost > self.bytes_max {
            return;
        }
        while self.entries.len() >= ENTRIES_MAX || self.bytes.saturating_add(cost) > self.bytes_max
        {
            // Few enough to look at all of them: filling a place costs several trips to the disk anyway.
            let oldest = self.entries.iter().min_by_key(|(_, slot)| slot.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            self.remove(&key);
        }
        self.uses += 1;
        self.bytes += cost;
        let used = self.uses;
        self.entries
            .insert(key.to_vec(), Slot { entry, cost, used });
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some(slot) = self.entries.remove(key) {
            self.bytes -= slot.cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(size: usize) -> Rc<Entry> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x"), vec![b'x'; size]).unwrap();
        let search = super::super::disk::Search {
            base: folder.path().into(),
            relative: b"x".to_vec(),
            is_index: false,
            acceptable: super::super::encoding::Acceptable::parse(None),
            known: [None; CODINGS],
            load_max: u64::MAX,
        };
        let super::super::disk::Found::File(hit) = super::super::disk::look(&search).unwrap()
        else {
            panic!("a file");
        };
        let form = Form {
            coding: Coding::Identity,
            stamp: hit.forms[3].unwrap(),
            tag: String::new(),
            lines: Bytes::new(),
            short_lines: Bytes::new(),
            body: Some(vec![b'x'; size].into()),
            settled: true,
        };
        Rc::new(Entry {
            checked: Instant::now(),
            content_type: "".into(),
            forms: [None, None, None, Some(Rc::new(form))],
        })
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let mut cache = Cache::new(64 * 1024);
        for name in [b"a", b"b", b"c"] {
            cache.insert(name, entry(20_000));
        }
        assert!(cache.get(b"a").is_some());
        cache.insert(b"d", entry(20_000));
        assert!(cache.get(b"b").is_none());
        assert!(cache.get(b"a").is_some() && cache.get(b"c").is_some());
        assert!(cache.bytes <= 64 * 1024);
        cache.insert(b"e", entry(70_000));
        assert!(cache.get(b"e").is_none(), "too large to be kept");
        for name in [b"a", b"c", b"d"] {
            cache.remove(name);
        }
        assert_eq!(cache.bytes, 0);
    }

    #[test]
    fn the_number_of_entries_and_the_length_of_names_are_bounded() {
        let mut cache = Cache::new(usize::MAX / 2);
        let small = entry(1);
        for n in 0..2_000_u32 {
            cache.insert(&n.to_le_bytes(), Rc::clone(&small));
        }
        assert_eq!(cache.entries.len(), ENTRIES_MAX);
        cache.insert(&[b'x'; 2_000], small);
        assert!(cache.get(&[b'x'; 2_000]).is_none());
    }

    #[test]
    fn a_cache_of_nothing_keeps_nothing() {
        let mut cache = Cache::new(0);
        cache.insert(b"a", entry(1));
        assert!(cache.get(b"a").is_none());
    }
}
