//! permessage-deflate (RFC 7692): the offer and the answer, inflating what comes, compressing what a handler writes.
//!
//! Always without context takeover, in both directions: then nothing is kept for a connection between two messages (a window
//! and a compressor are some 300 KiB), at the price of some ratio where messages are small and alike.

use std::fmt;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Violation;
use super::frame::{self, FIN, Header, HeaderBuffer, Opcode, RESERVED, RSV1};
use crate::http1::fields;

/// The extension's name in Sec-WebSocket-Extensions.
pub const NAME: &str = "permessage-deflate";

/// Whole messages below this size go out as they are: compressed they would hardly be smaller, without a window to refer to.
pub const COMPRESS_FROM: u64 = 64;

/// Compressed bytes that are collected before they go out as a fragment; the rest of a long message need not be waited for.
const FRAGMENT_BYTES: usize = 64 * 1024;

/// Room for output of the (de)compressor at each step, at least.
const STEP_BYTES: usize = 4096;

/// What a sync flush ends with; it does not go out, and is put back before inflating (RFC 7692 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Last blocks of which a message may have so many, and one more for each so many bytes: to begin anew behind one costs the time of a window,
/// and a message of nothing else would keep everybody waiting for seconds. Who compresses in pieces has one for each.
const LAST_BLOCKS_MAX: usize = 16;
const LAST_BLOCK_BYTES: usize = 1024;

/// The compressor's effort. Not a setting: the middle of the road, and the same for everybody.
const LEVEL: u32 = 6;

/// What was agreed upon: its text is the value of Sec-WebSocket-Extensions in the 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// The client asked for the window that we always have, and has to be told (RFC 7692 7.1.2.1).
    window_asked: bool,
}

impl Agreement {
    /// The value of Sec-WebSocket-Extensions in the 101.
    pub const fn text(self) -> &'static str {
        if self.window_asked {
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15"
        } else {
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        }
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// The first offer of permessage-deflate in these values of Sec-WebSocket-Extensions that we can meet; `None` where there is none,
/// which means to go on without.
///
/// Not met are offers with parameters that are unknown, repeated or ill-formed (RFC 7692 7.1), and those with a
/// `server_max_window_bits` below 15: our compressor has one window.
pub fn negotiate<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Agreement> {
    values.into_iter().flat_map(fields::list).find_map(meet)
}

fn meet(offer: &[u8]) -> Option<Agreement> {
    let mut parts = offer.split(|byte| *byte == b';').map(fields::trim_blanks);
    if !parts.next()?.eq_ignore_ascii_case(NAME.as_bytes()) {
        return None;
    }
    let (mut seen, mut window_asked) = ([false; 4], false);
    for part in parts {
        let (name, value) = match part.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (name, value) = part.split_at_checked(at)?;
                (
                    fields::trim_blanks(name),
                    Some(fields::trim_blanks(value.get(1..)?)),
                )
            }
            None => (part, None),
        };
        let which = match (name.to_ascii_lowercase().as_slice(), value) {
            (b"server_no_context_takeover", None) => 0,
            (b"client_no_context_takeover", None) => 1,
            (b"server_max_window_bits", Some(value)) => {
                if window_bits(value)? != 15 {
                    return None;
                }
                window_asked = true;
                2
            }
            (b"client_max_window_bits", None) => 3,
            (b"client_max_window_bits", Some(value)) => {
                window_bits(value)?;
                3
            }
            _ => return None,
        };
        let seen = seen.get_mut(which)?;
        if std::mem::replace(seen, true) {
            return None;
        }
    }
    Some(Agreement { window_asked })
}

/// 8 to 15, without leading zeros; may be quoted.
fn window_bits(value: &[u8]) -> Option<u8> {
    let value = value
        .strip_prefix(b"\"")
        .and_then(|value| value.strip_suffix(b"\""))
        .unwrap_or(value);
    match value {
        b"8" => Some(8),
        b"9" => Some(9),
        [b'1', digit @ b'0'..=b'5'] => Some(digit.wrapping_sub(b'0').wrapping_add(10)),
        _ => None,
    }
}

/// Inflates the joined payload of a compressed message.
///
/// # Errors
///
/// [`Violation::Deflate`] when it is not what a compressor writes, or in far too many pieces, [`Violation::TooBig`] at the first byte above `most`: no memory
/// is used for what a small message would become.
pub fn inflate(payload: &[u8], most: usize) -> Result<Vec<u8>, Violation> {
    let mut inflater = Decompress::new(false);
    let mut out = Vec::new();
    let mut restarts = LAST_BLOCKS_MAX.saturating_add(payload.len() / LAST_BLOCK_BYTES);
    for input in [payload, &TAIL[..]] {
        let mut rest = input;
        loop {
            if out.len() == out.capacity() {
                // One byte of room beyond the limit shows that there is more.
                let room = most.saturating_add(1).saturating_sub(out.len());
                out.reserve(rest.len().saturating_mul(2).max(STEP_BYTES).min(room));
            }
            let (before_in, before_out) = (inflater.total_in(), inflater.total_out());
            let status = inflater
                .decompress_vec(rest, &mut out, FlushDecompress::Sync)
                .map_err(|_| Violation::Deflate)?;
            let used = inflater.total_in().wrapping_sub(before_in);
            let made = inflater.total_out().wrapping_sub(before_out);
            rest = usize::try_from(used)
                .ok()
                .and_then(|used| rest.get(used..))
                .unwrap_or_default();
            if out.len() > most {
                return Err(Violation::TooBig);
            }
            match status {
                // A last block, which RFC 7692 7.2.3.4 allows: what follows it begins anew.
                Status::StreamEnd if rest.is_empty() => break,
                Status::StreamEnd => {
                    restarts = restarts.checked_sub(1).ok_or(Violation::Deflate)?;
                    inflater.reset(false);
                }
                _ if out.len() == out.capacity() => {}
                _ if rest.is_empty() => break,
                _ if used == 0 && made == 0 => return Err(Violation::Deflate),
                _ => {}
            }
        }
    }
    Ok(out)
}

/// Compresses what a handler writes: its raw frames, cut anywhere, become frames of permessage-deflate.
///
/// Long messages may come out in fragments. Control frames, messages below [`COMPRESS_FROM`] bytes, and what has reserved bits or
/// a mask pass as they are. Memory is held only while a message is incomplete. Let a [`super::Follower`] follow what
/// comes out, not what goes in.
#[derive(Default)]
pub struct Deflater {
    header: HeaderBuffer,
    /// Bytes of the present frame that are still to come.
    left: u64,
    /// The present frame is to be compressed, and whether it is the last of its message.
    compressed: Option<Last>,
    /// The message that is being compressed.
    message: Option<Box<Message>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last(bool);

/// A message that is being compressed.
struct Message {
    compressor: Compress,
    /// Compressed and not gone out yet.
    ready: Vec<u8>,
    /// The first byte of the next fragment, without FIN.
    first: u8,
}

impl fmt::Debug for Deflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deflater")
            .field("left", &self.left)
            .field("compressing", &self.message.is_some())
            .finish_non_exhaustive()
    }
}

impl Deflater {
    /// Takes bytes of a handler; appends to `out` what is to go to the client for them, which may be nothing yet.
    pub fn deflate(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut used = 0_usize;
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            used = used.saturating_add(if self.left > 0 {
                self.payload(rest, out)
            } else {
                self.take_header(rest, out)
            });
        }
    }

    fn take_header(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let Ok((used, header)) = self
            .header
            .take(bytes, |_, _| Ok::<(), std::convert::Infallible>(()));
        if let Some(header) = header {
            self.left = header.size;
            self.compressed = self.judge(&header);
            if self.compressed.is_none() {
                header.encode(out);
            } else if self.left == 0 {
                self.end_compressed(out);
            }
        }
        used
    }

    /// Whether a frame is to be compressed; begins the message where it does.
    fn judge(&mut self, header: &Header) -> Option<Last> {
        if header.is_control() {
            return None;
        }
        let last = Last(header.is_last());
        if header.number() == 0 {
            return self.message.is_some().then_some(last);
        }
        self.message = None;
        let small = header.is_last() && header.size < COMPRESS_FROM;
        let odd = header.first & RESERVED != 0 || header.mask.is_some();
        if small || odd || Opcode::from_number(header.number()).is_none() {
            return None;
        }
        self.message = Some(Box::new(Message {
            compressor: Compress::new(Compression::new(LEVEL), false),
            ready: Vec::new(),
            first: header.number() | RSV1,
        }));
        Some(last)
    }

    fn payload(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let here = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let piece = bytes.get(..here).unwrap_or_default();
        self.left = self.left.saturating_sub(here as u64);
        if self.compressed.is_none() {
            out.extend_from_slice(piece);
            return here;
        }
        if let Some(message) = &mut self.message {
            message.compress(piece, FlushCompress::None, out);
        }
        if self.left == 0 {
            self.end_compressed(out);
        }
        here
    }

    fn end_compressed(&mut self, out: &mut Vec<u8>) {
        if self.compressed == Some(Last(true))
            && let Some(mut message) = self.message.take()
        {
            message.compress(&[], FlushCompress::Sync, out);
            message.finish(out);
        }
    }
}

impl Message {
    /// Gives bytes to the compressor, and takes what it has ready.
    ///
    /// A call that begins with output left over from the one before writes only that, and does not flush what it holds back. So
    /// only a call that begins and ends with room for everything is known to have done all.
    fn compress(&mut self, bytes: &[u8], flush: FlushCompress, out: &mut Vec<u8>) {
        let (mut rest, mut left_over) = (bytes, false);
        loop {
            self.ready
                .reserve((rest.len() / 2).clamp(STEP_BYTES, FRAGMENT_BYTES));
            let (before_in, before_out) = (self.compressor.total_in(), self.ready.len());
            // It fails only on flushes that were not agreed with it; then, as below, nothing moves.
            let status = self.compressor.compress_vec(rest, &mut self.ready, flush);
            let used = self.compressor.total_in().wrapping_sub(before_in);
            rest = usize::try_from(used)
                .ok()
                .and_then(|used| rest.get(used..))
                .unwrap_or_default();
            let full = self.ready.len() == self.ready.capacity();
            let moved = used > 0 || self.ready.len() > before_out;
            // Not while flushing: what that ends with must not be torn apart.
            if flush == FlushCompress::None && self.ready.len() >= FRAGMENT_BYTES {
                frame::encode_header(self.first, self.ready.len(), out);
                out.append(&mut self.ready);
                self.first = 0;
            }
            let done = !full && !left_over && rest.is_empty();
            if done || status.is_err() || (!full && !moved) {
                return;
            }
            left_over = full;
        }
    }

    /// The last fragment.
    fn finish(&mut self, out: &mut Vec<u8>) {
        match self.ready.strip_suffix(&TAIL).map(<[u8]>::len) {
            Some(length) => self.ready.truncate(length),
            // Nothing was flushed, since nothing was there: an empty block without its tail (RFC 7692 7.2.3.6).
            None => self.ready.push(0),
        }
        frame::encode_header(self.first | FIN, self.ready.len(), out);
        out.append(&mut self.ready);
    }
}
