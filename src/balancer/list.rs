//! Doubly linked lists through the slots of one slab, so that a request can leave any list at once and nothing is allocated.
//!
//! A slot is in one list at most, and the list does not know its members' meaning.

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// The place of a slot in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Links {
    pub(super) before: u32,
    pub(super) behind: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            before: NONE,
            behind: NONE,
        }
    }
}

/// What has slots with links.
pub(super) trait Linked {
    /// The links of a slot; `None` when there is no such slot.
    fn links(&mut self, index: u32) -> Option<&mut Links>;
}

/// A list.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) len: usize,
}

impl Default for List {
    fn default() -> Self {
        Self {
            head: NONE,
            tail: NONE,
            len: 0,
        }
    }
}

impl List {
    pub(super) fn push_back(&mut self, slots: &mut impl Linked, index: u32) {
        let before = self.tail;
        if let Some(links) = slots.links(index) {
            *links = Links {
                before,
                behind: NONE,
            };
        }
        match slots.links(before) {
            Some(last) => last.behind = index,
            None => self.head = index,
        }
        self.tail = index;
        self.len += 1;
    }

    pub(super) fn push_front(&mut self, slots: &mut impl Linked, index: u32) {
        let behind = self.head;
        if let Some(links) = slots.links(index) {
            *links = Links {
                before: NONE,
                behind,
            };
        }
        match slots.links(behind) {
            Some(first) => first.before = index,
            None => self.tail = index,
        }
        self.head = index;
        self.len += 1;
    }

    /// Takes out a slot that is in this list.
    pub(super) fn remove(&mut self, slots: &mut impl Linked, index: u32) {
        let Some(Links { before, behind }) = slots.links(index).map(std::mem::take) else {
            return;
        };
        match slots.links(before) {
            Some(links) => links.behind = behind,
            None => self.head = behind,
        }
        match slots.links(behind) {
            Some(links) => links.before = before,
            None => self.tail = before,
        }
        self.len -= 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}
