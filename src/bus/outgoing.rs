//! Messages on their way out: what is queued for a connection, and how frames become the bytes of one. No I/O, no queue.

use std::fmt;

use bytes::Bytes;

use crate::zmtp::{EncodedHeader, Framing};

/// Bytes in a [`Head`] that need no allocation: room for `SENDER SP CONNID SP` with an UUID for its sender, and for the few small
/// frames that [`super::server::Peer::send_behind`] puts before it.
const HEAD_INLINE_BYTES: usize = 94;

/// The small front part of a frame, copied in.
#[derive(Clone)]
pub struct Head(HeadBytes);

#[derive(Clone)]
enum HeadBytes {
    Inline {
        bytes: [u8; HEAD_INLINE_BYTES],
        length: u8,
    },
    Heap(Box<[u8]>),
}

impl Head {
    /// No head.
    pub const EMPTY: Self = Self(HeadBytes::Inline {
        bytes: [0; HEAD_INLINE_BYTES],
        length: 0,
    });

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            HeadBytes::Inline { bytes, length } => &bytes[..usize::from(*length)],
            HeadBytes::Heap(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Head {
    fn from(slice: &[u8]) -> Self {
        let mut bytes = [0; HEAD_INLINE_BYTES];
        match (bytes.get_mut(..slice.len()), u8::try_from(slice.len())) {
            (Some(to), Ok(length)) => {
                to.copy_from_slice(slice);
                Self(HeadBytes::Inline { bytes, length })
            }
            _ => Self(HeadBytes::Heap(slice.into())),
        }
    }
}

/// Puts a [`Head`] together; allocates only for one that is long.
struct HeadWriter {
    inline: [u8; HEAD_INLINE_BYTES],
    length: u8,
    /// All of it, once it is long.
    heap: Vec<u8>,
}

impl Default for HeadWriter {
    fn default() -> Self {
        Self {
            inline: [0; HEAD_INLINE_BYTES],
            length: 0,
            heap: Vec::new(),
        }
    }
}

impl HeadWriter {
    fn extend(&mut self, bytes: &[u8]) {
        let from = usize::from(self.length);
        let to = from.saturating_add(bytes.len());
        if self.heap.is_empty()
            && let (Some(place), Ok(length)) = (self.inline.get_mut(from..to), u8::try_from(to))
        {
            place.copy_from_slice(bytes);
            self.length = length;
            return;
        }
        if self.heap.is_empty() {
            self.heap.reserve(to);
            self.heap
                .extend_from_slice(self.inline.get(..from).unwrap_or_default());
        }
        self.heap.extend_from_slice(bytes);
    }
}

impl From<HeadWriter> for Head {
    fn from(written: HeadWriter) -> Self {
        let HeadWriter {
            inline: bytes,
            length,
            heap,
        } = written;
        if heap.is_empty() {
            Self(HeadBytes::Inline { bytes, length })
        } else {
            Self(HeadBytes::Heap(heap.into()))
        }
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({:?})", Bytes::copy_from_slice(self.as_slice()))
    }
}

/// A message of one frame, whose body is `head` and then `body`.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// What differs from one sending to the next (sender and connection id), copied.
    pub head: Head,
    /// The rest. Large bodies are written from here without a copy.
    pub body: Bytes,
}

impl Outgoing {
    /// Bytes of the frame's body.
    pub fn size(&self) -> usize {
        self.head.as_slice().len() + self.body.len()
    }
}

impl From<Bytes> for Outgoing {
    fn from(body: Bytes) -> Self {
        Self {
            head: Head::EMPTY,
            body,
        }
    }
}

/// A message that was queued and not sent: its last byte was not given to the kernel.
#[derive(Debug, Clone)]
pub struct Unsent {
    /// What its sender named it by.
    pub tag: u64,
    /// The message as [`super::server::Peer::send`] took it. Of [`super::server::Peer::send_frames`], the frames with their framing; of [`super::server::Peer::send_behind`] the
    /// body is as it was, and the head has all that goes before it.
    pub message: Outgoing,
    /// The framing of what has one frame.
    header: EncodedHeader,
}

/// One queued message.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tag: u64,
    pub(super) header: EncodedHeader,
    pub(super) head: Head,
    pub(super) body: Bytes,
}

impl Entry {
    /// A message of one frame.
    pub(super) fn single(framing: Framing, message: Outgoing, tag: u64) -> Self {
        Self {
            tag,
            header: framing.encode(message.size(), false),
            head: message.head,
            body: message.body,
        }
    }

    /// A message of several frames, copied together. An empty list is an empty message.
    pub(super) fn frames(framing: Framing, frames: &[&[u8]], tag: u64) -> Self {
        let size: usize = frames.iter().map(|frame| frame.len()).sum();
        let mut body = Vec::with_capacity(size + frames.len() * 9);
        let frames = if frames.is_empty() {
            &[&[][..]]
        } else {
            frames
        };
        for (index, frame) in frames.iter().enumerate() {
            let more = index + 1 < frames.len();
            body.extend_from_slice(framing.encode(frame.len(), more).as_ref());
            body.extend_from_slice(frame);
        }
        Self {
            tag,
            header: EncodedHeader::EMPTY,
            head: Head::EMPTY,
            body: body.into(),
        }
    }

    /// A message whose last frame is not copied: `frames`, which are small, and behind them `message`.
    pub(super) fn behind(framing: Framing, frames: &[&[u8]], message: Outgoing, tag: u64) -> Self {
        let mut head = HeadWriter::default();
        for frame in frames {
            head.extend(framing.encode(frame.len(), true).as_ref());
            head.extend(frame);
        }
        head.extend(framing.encode(message.size(), false).as_ref());
        head.extend(message.head.as_slice());
        Self {
            tag,
            header: EncodedHeader::EMPTY,
            head: head.into(),
            body: message.body,
        }
    }

    /// Bytes of it that are copied: framing, and what stands before the body.
    pub(super) fn front_length(&self) -> usize {
        self.header.as_ref().len() + self.head.as_slice().len()
    }

    /// Bytes of all of it.
    pub(super) fn length(&self) -> usize {
        self.front_length() + self.body.len()
    }
}

impl From<Entry> for Unsent {
    fn from(entry: Entry) -> Self {
        Self {
            tag: entry.tag,
            header: entry.header,
            message: Outgoing {
                head: entry.head,
                body: entry.body,
            },
        }
    }
}

impl From<Unsent> for Entry {
    fn from(unsent: Unsent) -> Self {
        Self {
            tag: unsent.tag,
            header: unsent.header,
            head: unsent.message.head,
            body: unsent.message.body,
        }
    }
}
