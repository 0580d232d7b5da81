//! What is queued for one peer, and how it becomes the pieces of one write. No I/O.
//!
//! A message stays in the queue until the kernel has its last byte, so that what was not sent can always be told or taken back,
//! and a PONG can go between two messages however many are queued. A batch is gathered anew for each write; what a short
//! write left over is copied again, which is bounded by [`BATCH_BYTES`] and only happens to peers that do not keep up.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use super::outgoing::{Entry, Unsent};
use crate::zmtp::Framing;

/// A batch ends with the message that reaches this, in bytes: as much as a send buffer of 64 KiB (which the kernel doubles)
/// takes at once.
const BATCH_BYTES: usize = 128 << 10;
/// Bodies up to this, in bytes, are copied into the batch; larger ones are written from where they are. Copying 8 KiB costs
/// about what one more element of a vectored write does.
const COPY_BYTES_MAX: usize = 8 << 10;
/// Elements of a vectored write.
const PIECES_MAX: usize = 64;
/// Queue capacity kept when it runs empty, in messages.
const IDLE_CAPACITY: usize = 64;

/// The queue of one peer.
#[derive(Debug)]
pub(super) struct Outbox {
    framing: Framing,
    messages_max: usize,
    bytes_max: usize,
    queue: VecDeque<Entry>,
    /// Bytes of the first message that have been written.
    begun: usize,
    /// Bytes of all queued messages, headers included, written ones of the first too.
    bytes: usize,
    /// Frames that go before the next message: handshake, PONG, PING, SUBSCRIBE.
    urgent: Vec<u8>,
    urgent_begun: usize,
    /// A message was given up half written: nothing may follow it.
    cut: bool,
}

/// Room for a batch, shared by the connections of a thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    copied: Vec<u8>,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Copied(Range<usize>),
    Body { entry: usize, from: usize },
}

impl Outbox {
    pub(super) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self {
            framing: Framing::New,
            messages_max,
            bytes_max,
            queue: VecDeque::new(),
            begun: 0,
            bytes: 0,
            urgent: Vec::new(),
            urgent_begun: 0,
            cut: false,
        }
    }

    pub(super) fn framing(&self) -> Framing {
        self.framing
    }

    pub(super) fn set_framing(&mut self, framing: Framing) {
        self.framing = framing;
    }

    /// Whether a message of so many bytes may be queued. The first always may.
    pub(super) fn has_room(&self, size: usize) -> bool {
        self.queue.is_empty()
            || (self.queue.len() < self.messages_max
                && self.bytes.saturating_add(size) <= self.bytes_max)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += entry.length();
        self.queue.push_back(entry);
    }

    pub(super) fn push_urgent(&mut self, frames: &mut Vec<u8>) {
        if self.cut {
            frames.clear();
        } else if self.urgent.is_empty() {
            std::mem::swap(&mut self.urgent, frames);
        } else {
            self.urgent.append(frames);
        }
    }

    #[cfg(test)]
    pub(super) fn contents(&self) -> Vec<Vec<u8>> {
        let contents = |entry: &Entry| [entry.head.as_slice(), &entry.body].concat();
        self.queue.iter().map(contents).collect()
    }

    pub(super) fn messages(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes - self.begun
    }

    pub(super) fn urgent_bytes(&self) -> usize {
        self.urgent.len() - self.urgent_begun
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.urgent.is_empty()
    }

    /// Takes out what is wholly unwritten.
    pub(super) fn take_unbegun(&mut self) -> Vec<Unsent> {
        let keep = usize::from(self.begun > 0);
        let taken = self.queue.drain(keep..).map(Unsent::from).collect();
        self.bytes = self.queue.front().map_or(0, Entry::length);
        taken
    }

    /// Takes out everything, the partly written one too. After such a one nothing may be written any more: it would stand in
    /// the middle of that message.
    pub(super) fn take_all(&mut self) -> Vec<Unsent> {
        if self.begun > 0 {
            self.urgent = Vec::new();
            self.urgent_begun = 0;
            self.cut = true;
        }
        self.begun = 0;
        self.bytes = 0;
        std::mem::take(&mut self.queue)
            .into_iter()
            .map(Unsent::from)
            .collect()
    }

    /// Lays out the next write in `scratch`.
    pub(super) fn gather(&self, scratch: &mut Scratch) {
        scratch.copied.clear();
        scratch.pieces.clear();
        let mut total = 0;
        let mut entries = self.queue.iter().enumerate();
        // A message half written is finished before all else; then what is urgent; then the rest.
        if self.begun > 0
            && let Some((index, entry)) = entries.next()
        {
            total += scratch.add(index, entry, self.begun);
        }
        if !self.urgent.is_empty() {
            total += scratch.copy(&self.urgent[self.urgent_begun..]);
        }
        for (index, entry) in entries {
            if total >= BATCH_BYTES || scratch.pieces.len() + 2 > PIECES_MAX {
                break;
            }
            total += scratch.add(index, entry, 0);
        }
    }

    /// Hands the batch that [`Outbox::gather`] laid out to `write`.
    pub(super) fn write<T>(&self, scratch: &Scratch, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&scratch.pieces) {
            *slice = IoSlice::new(match piece {
                Piece::Copied(range) => &scratch.copied[range.clone()],
                Piece::Body { entry, from } => &self.queue[*entry].body[*from..],
            });
            count += 1;
        }
        write(&slices[..count])
    }

    /// Notes that so many bytes of the batch were written.
    pub(super) fn advance(&mut self, mut written: usize) {
        if self.begun > 0 {
            self.advance_queue(&mut written);
        }
        if written > 0 && !self.urgent.is_empty() {
            let step = written.min(self.urgent_bytes());
            self.urgent_begun += step;
            written -= step;
            if self.urgent_begun == self.urgent.len() {
                self.urgent = Vec::new();
                self.urgent_begun = 0;
            }
        }
        while written > 0 {
            self.advance_queue(&mut written);
        }
        if self.queue.is_empty() && self.queue.capacity() > IDLE_CAPACITY {
            self.queue.shrink_to(IDLE_CAPACITY);
        }
    }

    fn advance_queue(&mut self, written: &mut usize) {
        let Some(length) = self.queue.front().map(Entry::length) else {
            debug_assert!(false, "more written than gathered");
            *written = 0;
            return;
        };
        let left = length - self.begun;
        if *written < left {
            self.begun += *written;
            *written = 0;
        } else {
            *written -= left;
            self.begun = 0;
            self.bytes -= length;
            self.queue.pop_front();
        }
    }
}

impl Scratch {
    /// Adds what is left of a message after its first `from` bytes; gives how much that was.
    fn add(&mut self, index: usize, entry: &Entry, from: usize) -> usize {
        let (header, head) = (entry.header.as_ref(), entry.head.as_slice());
        let mut left = from;
        for part in [header, head] {
            let skipped = left.min(part.len());
            self.copy(&part[skipped..]);
            left -= skipped;
        }
        if entry.body.len() - left <= COPY_BYTES_MAX {
            self.copy(&entry.body[left..]);
        } else {
            self.pieces.push(Piece::Body {
                entry: index,
                from: left,
            });
        }
        entry.length() - from
    }

    fn copy(&mut self, bytes: &[u8]) -> usize {
        let start = self.copied.len();
        self.copied.extend_from_slice(bytes);
        let end = self.copied.len();
        match self.pieces.last_mut() {
            _ if bytes.is_empty() => {}
            Some(Piece::Copied(range)) => range.end = end,
            _ => self.pieces.push(Piece::Copied(start..end)),
        }
        bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(unsent: &[Unsent]) -> Vec<u64> {
        unsent.iter().map(|unsent| unsent.tag).collect()
    }

    fn outbox() -> Outbox {
        Outbox::new(1000, 100_000_000)
    }

    fn push(outbox: &mut Outbox, tag: u64, head: usize, body: usize) -> Vec<u8> {
        let letter = b'a' + u8::try_from(tag % 26).unwrap();
        let (head, body) = (vec![letter.to_ascii_uppercase(); head], vec![letter; body]);
        let header = outbox.framing().encode(head.len() + body.len(), false);
        let frame = [header.as_ref(), &head, &body].concat();
        outbox.push(Entry {
            tag,
            header,
            head: head.as_slice().into(),
            body: body.into(),
        });
        frame
    }

    /// Writes at most `most` bytes of the next batch; gives what the kernel would have got.
    fn write(outbox: &mut Outbox, scratch: &mut Scratch, most: usize) -> Vec<u8> {
        outbox.gather(scratch);
        let mut bytes = outbox.write(scratch, |slices| {
            assert!(!slices.is_empty() && slices.len() <= PIECES_MAX);
            slices
                .iter()
                .flat_map(|slice| slice.to_vec())
                .collect::<Vec<u8>>()
        });
        bytes.truncate(most);
        outbox.advance(bytes.len());
        bytes
    }

    /// The same messages, written so many bytes at a time.
    #[track_caller]
    fn check(sizes: &[(usize, usize)], step: usize) {
        let (mut outbox, mut scratch) = (outbox(), Scratch::default());
        let mut expected = Vec::new();
        for (tag, (head, body)) in (0..).zip(sizes) {
            expected.extend(push(&mut outbox, tag, *head, *body));
        }
        assert_eq!(outbox.bytes(), expected.len());
        let mut written = Vec::new();
        while !outbox.is_empty() {
            written.extend(write(&mut outbox, &mut scratch, step));
            assert_eq!(outbox.bytes(), expected.len() - written.len());
        }
        assert!(written == expected, "{step}");
    }

    #[test]
    fn any_short_writes_give_the_same_bytes() {
        for step in 1..20 {
            check(&[(0, 0), (48, 0), (0, 1), (62, 255), (63, 2), (1, 1)], step);
        }
        for step in [61, 997, 8191, 8192, 50_000, usize::MAX] {
            check(
                &[
                    (0, 0),
                    (48, 600),
                    (100, 8192),
                    (48, 8193),
                    (0, 70_000),
                    (1, 1),
                ],
                step,
            );
        }
    }

    #[test]
    fn a_batch_has_bounds() {
        let (mut outbox, mut scratch) = (outbox(), Scratch::default());
        for tag in 0..1000 {
            push(&mut outbox, tag, 10, 9000);
        }
        let first = write(&mut outbox, &mut scratch, usize::MAX);
        assert!((BATCH_BYTES..BATCH_BYTES + 10_000).contains(&first.len()));
        assert!(scratch.copied.len() < 1000, "large bodies are not copied");
    }

    #[test]
    fn what_is_urgent_goes_between_messages() {
        let (mut outbox, mut scratch) = (outbox(), Scratch::default());
        let first = push(&mut outbox, 1, 5, 5);
        let second = push(&mut outbox, 2, 5, 5);
        let mut written = write(&mut outbox, &mut scratch, 3);
        outbox.push_urgent(&mut b"URGENT".to_vec());
        written.extend(write(&mut outbox, &mut scratch, first.len()));
        outbox.push_urgent(&mut b"MORE".to_vec());
        while !outbox.is_empty() {
            written.extend(write(&mut outbox, &mut scratch, 1));
        }
        assert_eq!(written, [&first[..], b"URGENTMORE", &second].concat());
    }

    #[test]
    fn only_what_is_wholly_unwritten_is_taken_back() {
        let (mut outbox, mut scratch) = (outbox(), Scratch::default());
        let first = push(&mut outbox, 1, 0, 100);
        let second = push(&mut outbox, 2, 0, 100);
        push(&mut outbox, 3, 0, 100);
        let mut written = write(&mut outbox, &mut scratch, first.len() + 1);
        assert_eq!(tags(&outbox.take_unbegun()), [3]);
        assert_eq!((outbox.messages(), outbox.bytes()), (1, second.len() - 1));
        let fourth = push(&mut outbox, 4, 0, 100);
        while !outbox.is_empty() {
            written.extend(write(&mut outbox, &mut scratch, 17));
        }
        assert_eq!(written, [first, second, fourth].concat());
    }

    #[test]
    fn after_a_cut_message_nothing_is_written() {
        let (mut outbox, mut scratch) = (outbox(), Scratch::default());
        push(&mut outbox, 1, 0, 100);
        push(&mut outbox, 2, 0, 100);
        write(&mut outbox, &mut scratch, 50);
        outbox.push_urgent(&mut b"PONG".to_vec());
        assert_eq!(tags(&outbox.take_all()), [1, 2]);
        assert!(outbox.is_empty() && outbox.bytes() == 0);
        // What the session says of its end comes later still.
        outbox.push_urgent(&mut b"PONG".to_vec());
        assert!(outbox.is_empty());
    }

    #[test]
    fn an_empty_queue_takes_any_message() {
        let mut outbox = Outbox::new(2, 1000);
        assert!(outbox.has_room(5000));
        push(&mut outbox, 1, 0, 500);
        assert!(outbox.has_room(400) && !outbox.has_room(500));
        push(&mut outbox, 2, 0, 10);
        assert!(!outbox.has_room(1));
    }
}
