//! The bytes of a client become whole messages and control frames (RFC 6455 5 to 8.1), or the reason why it is cut off.
//!
//! Server side only: frames must be masked. It answers nothing, and holds no memory between messages.

use super::frame::{self, FIN, Header, HeaderBuffer, Opcode, RESERVED, RSV1};
use super::{Violation, close_code, deflate};

/// Memory set aside for a payload beyond what has come of it already: enough for small messages that come in pieces, too little
/// for a client to gain anything by announcing big ones.
const AHEAD_BYTES: usize = 4096;

/// Bytes that are unmasked right after they were copied, while they are in the processor's nearest cache.
const PIECE_BYTES: usize = 16 * 1024;

/// What a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a message, its fragments together, compressed and inflated each. Default: 16 MiB, as much as a client's mailbox
    /// takes of a handler, so that what came can be sent back.
    pub message_bytes: usize,
    /// Most frames of a message. They are joined as they come, so each costs a look at its header only; the bound is against
    /// messages of empty frames that never end. Default: 131,072.
    pub fragments: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 16 * 1024 * 1024,
            fragments: 131_072,
        }
    }
}

/// Who gives a meaning to the reserved bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extensions {
    /// Nobody: they must not be set.
    #[default]
    None,
    /// permessage-deflate was agreed upon by us ([`deflate`]): compressed messages come out inflated, their FLAGS without the bit.
    Deflate,
    /// A handler has agreed upon an extension of its own in its 101: data frames with reserved bits pass as they are, and the
    /// text in them, which may be anything, is not looked at.
    Foreign,
}

/// A whole message or a control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub opcode: Opcode,
    /// Mongrel2's FLAGS: the first byte of the (first) frame with FIN set. `0x81` text, `0x82` binary, `0x88` close, `0x89` ping,
    /// `0x8A` pong; with [`Extensions::Foreign`], reserved bits too.
    pub flags: u8,
    /// The payload without its mask; text is UTF-8, the payload of a close frame is sound (see [`close_code`]).
    pub payload: Vec<u8>,
}

/// What a look at some bytes has given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes used; all of them when there is no frame.
    pub consumed: usize,
    /// What is complete with the last of them. What lies behind has not been looked at: call again with it.
    pub frame: Option<Frame>,
}

/// Decodes the frames of one client. See the module.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    extensions: Extensions,
    header: HeaderBuffer,
    state: State,
    /// The message that has begun: FIN and control frames do not belong here.
    message: Option<Message>,
    /// The payload of the present control frame.
    control: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// A header, or the rest of it.
    Header,
    /// The payload of this frame, of which so many bytes have come.
    Payload { header: Header, seen: u64 },
    /// A close frame has come, or a violation: nothing that follows means anything.
    Done,
}

#[derive(Debug)]
struct Message {
    /// The first byte of the first frame.
    first: u8,
    opcode: Opcode,
    payload: Vec<u8>,
    fragments: u32,
    /// Text: so many bytes are known to be whole characters.
    checked: usize,
}

impl Message {
    fn has_reserved(&self) -> bool {
        self.first & RESERVED != 0
    }

    /// Looks at text that has come since the last look. A character that is cut may still become one.
    fn check_text(&mut self, complete: bool) -> Result<(), Violation> {
        if self.opcode != Opcode::Text || self.has_reserved() {
            return Ok(());
        }
        let new = self.payload.get(self.checked..).unwrap_or_default();
        match std::str::from_utf8(new) {
            Ok(_) => self.checked = self.payload.len(),
            Err(error) if error.error_len().is_some() || complete => return Err(Violation::Utf8),
            Err(error) => self.checked = self.checked.saturating_add(error.valid_up_to()),
        }
        Ok(())
    }
}

impl Decoder {
    /// For a connection that has just been upgraded.
    pub const fn new(limits: Limits, extensions: Extensions) -> Self {
        Self {
            limits,
            extensions,
            header: HeaderBuffer::new(),
            state: State::Header,
            message: None,
            control: Vec::new(),
        }
    }

    /// Uses bytes of the client up to the end of the first whole message or control frame. Control frames come out when they
    /// are there, also from between the fragments of a message. Behind a close frame everything is dropped.
    ///
    /// # Errors
    ///
    /// The rule that was broken, at the first byte that breaks it. From then on everything is dropped.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, Violation> {
        let decoded = self.advance(input);
        if decoded.is_err() {
            self.state = State::Done;
            self.message = None;
            self.control = Vec::new();
        }
        decoded
    }

    /// Whether the bytes so far end where a message or control frame does, and none has begun.
    pub const fn is_idle(&self) -> bool {
        matches!(self.state, State::Header) && self.header.is_empty() && self.message.is_none()
    }

    /// Bytes of an incomplete message that are held.
    pub fn held(&self) -> usize {
        self.message
            .as_ref()
            .map_or(0, |message| message.payload.len())
    }

    #[cfg(test)]
    pub(super) fn message_capacity(&self) -> usize {
        let message = self.message.as_ref();
        message.map_or(0, |message| message.payload.capacity()) + self.control.capacity()
    }

    fn advance(&mut self, input: &[u8]) -> Result<Decoded, Violation> {
        let mut consumed = 0_usize;
        while let Some(rest) = input.get(consumed..) {
            let (used, frame) = match self.state {
                // A frame without payload is complete with its header: then there may be nothing left to look at.
                State::Payload { header, seen } if !rest.is_empty() || seen == header.size => {
                    self.payload(header, seen, rest)?
                }
                State::Header if !rest.is_empty() => (self.read_header(rest)?, None),
                State::Header | State::Payload { .. } | State::Done => break,
            };
            consumed = consumed.saturating_add(used);
            if frame.is_some() {
                return Ok(Decoded { consumed, frame });
            }
        }
        Ok(Decoded {
            consumed: input.len(),
            frame: None,
        })
    }

    fn read_header(&mut self, input: &[u8]) -> Result<usize, Violation> {
        let (extensions, inside) = (self.extensions, self.message.is_some());
        let (used, header) = self.header.take(input, |first, second| {
            check_start(first, second, extensions, inside)
        })?;
        if let Some(header) = header {
            self.begin(header)?;
        }
        Ok(used)
    }

    /// A header is whole.
    fn begin(&mut self, header: Header) -> Result<(), Violation> {
        if header.size > i64::MAX as u64 {
            return Err(Violation::Length);
        }
        self.state = State::Payload { header, seen: 0 };
        if header.is_control() {
            return Ok(());
        }
        if let Some(opcode) = Opcode::from_number(header.number()) {
            self.message = Some(Message {
                first: header.first,
                opcode,
                payload: Vec::new(),
                fragments: 0,
                checked: 0,
            });
        }
        let limits = self.limits;
        let message = self.message.as_mut().ok_or(Violation::Continuation)?;
        let whole = usize::try_from(header.size)
            .ok()
            .and_then(|size| size.checked_add(message.payload.len()));
        if whole.is_none_or(|whole| whole > limits.message_bytes) {
            return Err(Violation::TooBig);
        }
        message.fragments = message.fragments.saturating_add(1);
        if message.fragments > limits.fragments {
            return Err(Violation::TooManyFragments);
        }
        Ok(())
    }

    /// Takes what is here of a payload.
    fn payload(
        &mut self,
        header: Header,
        seen: u64,
        input: &[u8],
    ) -> Result<(usize, Option<Frame>), Violation> {
        let left = header.size.saturating_sub(seen);
        let here = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
        let bytes = input.get(..here).unwrap_or_default();
        let to = match &mut self.message {
            Some(message) if !header.is_control() => &mut message.payload,
            _ => &mut self.control,
        };
        let ahead = usize::try_from(left).map_or(AHEAD_BYTES, |left| {
            left.min(here.saturating_add(AHEAD_BYTES))
        });
        reserve(to, ahead, left);
        unmask_into(to, bytes, header.mask.unwrap_or_default(), seen);
        let seen = seen.saturating_add(here as u64);
        let complete = seen == header.size;
        self.state = State::Payload { header, seen };
        if header.is_control() {
            return Ok((
                here,
                if complete {
                    Some(self.end_control(header)?)
                } else {
                    None
                },
            ));
        }
        let last = complete && header.is_last();
        if let Some(message) = &mut self.message {
            message.check_text(last)?;
        }
        if complete {
            self.state = State::Header;
        }
        let frame = match self.message.take_if(|_| last) {
            Some(message) => Some(self.end_message(message)?),
            None => None,
        };
        Ok((here, frame))
    }

    fn end_control(&mut self, header: Header) -> Result<Frame, Violation> {
        let payload = std::mem::take(&mut self.control);
        let opcode = Opcode::from_number(header.number()).ok_or(Violation::Opcode)?;
        self.state = State::Header;
        if opcode == Opcode::Close {
            close_code(&payload)?;
            self.state = State::Done;
            self.message = None;
        }
        Ok(Frame {
            opcode,
            flags: header.first | FIN,
            payload,
        })
    }

    fn end_message(&self, message: Message) -> Result<Frame, Violation> {
        let Message {
            first,
            opcode,
            mut payload,
            ..
        } = message;
        let mut flags = first | FIN;
        if self.extensions == Extensions::Deflate && flags & RSV1 != 0 {
            flags &= !RSV1;
            payload = deflate::inflate(&payload, self.limits.message_bytes)?;
            if opcode == Opcode::Text && std::str::from_utf8(&payload).is_err() {
                return Err(Violation::Utf8);
            }
        }
        Ok(Frame {
            opcode,
            flags,
            payload,
        })
    }
}

/// Looks at the first two bytes of a frame; `inside` a fragmented message.
fn check_start(
    first: u8,
    second: u8,
    extensions: Extensions,
    inside: bool,
) -> Result<(), Violation> {
    let reserved = first & RESERVED;
    let header = Header {
        first,
        mask: None,
        size: 0,
    };
    let number = header.number();
    let allowed = match extensions {
        // It marks the first frame of a message, and no other (RFC 7692 6.1).
        Extensions::Deflate if number != 0 && !header.is_control() => RSV1,
        Extensions::None | Extensions::Deflate => 0,
        Extensions::Foreign => RESERVED,
    };
    if reserved & !allowed != 0 {
        return Err(Violation::ReservedBits);
    }
    match (number, Opcode::from_number(number)) {
        (0, _) if !inside => return Err(Violation::Continuation),
        (0, _) => {}
        (_, None) => return Err(Violation::Opcode),
        (_, Some(opcode)) if opcode.is_control() => {
            if !header.is_last() {
                return Err(Violation::ControlFragmented);
            }
            if frame::is_above_control(second) {
                return Err(Violation::ControlTooLong);
            }
        }
        (_, Some(_)) if inside => return Err(Violation::Interleaved),
        (_, Some(_)) => {}
    }
    if frame::is_masked(second) {
        Ok(())
    } else {
        Err(Violation::Unmasked)
    }
}

/// Makes room for a part of what is still to come: exactly for a payload that is all here or small, doubling otherwise.
fn reserve(to: &mut Vec<u8>, ahead: usize, left: u64) {
    if ahead as u64 == left {
        to.reserve_exact(ahead);
    } else {
        to.reserve(ahead);
    }
}

/// Appends bytes without their mask.
fn unmask_into(to: &mut Vec<u8>, bytes: &[u8], key: [u8; 4], offset: u64) {
    let mut offset = offset;
    for piece in bytes.chunks(PIECE_BYTES) {
        let start = to.len();
        to.extend_from_slice(piece);
        frame::mask(to.get_mut(start..).unwrap_or_default(), key, offset);
        offset = offset.wrapping_add(piece.len() as u64);
    }
}
