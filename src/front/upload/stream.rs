//! Bodies that are streamed: what has come and may not be sent yet, and the messages that carry it.
//!
//! A body of known length leaves in parts as large as credits and the limit allow, a chunked one chunk by chunk, as from
//! Mongrel2: then a part may be larger than the credit that let it go. What waits here is what one read has brought.

use std::collections::VecDeque;

use crate::wire::Protocol;
use crate::wire::request::{self, Outgoing};

/// The largest part, in bytes, where `limits.content_length` is larger.
const PART_MAX: usize = 64 * 1024;

/// The parts of a body.
#[derive(Debug)]
pub(in crate::front) struct Parts {
    path: Box<[u8]>,
    protocol: Protocol,
    part_max: usize,
    /// Bytes of the body that are sent.
    offset: u64,
    waiting: Vec<u8>,
    /// Bytes of `waiting` that are sent.
    sent: usize,
    /// Where chunks end in `waiting`; `None` for a body of known length.
    ends: Option<VecDeque<usize>>,
    done: bool,
}

/// The largest part, when the limit of bodies in one message is that.
pub(in crate::front) fn part_max(content_length: usize) -> usize {
    content_length.clamp(1, PART_MAX)
}

impl Parts {
    /// The parts of a body of which so many bytes are sent.
    pub(in crate::front) fn new(
        path: Box<[u8]>,
        protocol: Protocol,
        part_max: usize,
        chunked: bool,
        offset: u64,
    ) -> Self {
        Self {
            path,
            protocol,
            part_max,
            offset,
            waiting: Vec::new(),
            sent: 0,
            ends: chunked.then(VecDeque::new),
            done: false,
        }
    }

    pub(super) fn push(&mut self, run: &[u8]) {
        if self.sent == self.waiting.len() {
            self.waiting.clear();
            self.sent = 0;
        }
        self.waiting.extend_from_slice(run);
        if let Some(ends) = &mut self.ends {
            ends.push_back(self.waiting.len());
        }
    }

    /// Whether all that has come is sent.
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.waiting.len()
    }

    /// Whether the message that says so has been sent.
    pub(in crate::front) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether there is a message to send for that much credit.
    pub(in crate::front) fn is_due(&self, credits: i64, received: bool) -> bool {
        !self.done
            && if self.is_empty() {
                received
            } else {
                credits > 0
            }
    }

    /// The next message, if there is one to send for that much credit, and what it costs. `received`: the whole body has come.
    /// The last message of a chunked body has no bytes, and needs no credit.
    pub(in crate::front) fn next(
        &mut self,
        credits: i64,
        received: bool,
    ) -> Option<(Vec<u8>, i64)> {
        if self.done {
            return None;
        }
        let waiting = self.waiting.len() - self.sent;
        let size = if let Some(end) = self.ends.as_ref().and_then(VecDeque::front) {
            (credits > 0).then(|| (end - self.sent).min(self.part_max))?
        } else if waiting > 0 {
            let credits = usize::try_from(credits)
                .ok()
                .filter(|credits| *credits > 0)?;
            waiting.min(credits).min(self.part_max)
        } else if received {
            0
        } else {
            return None;
        };
        let end = self.sent + size;
        self.done = received
            && if self.ends.is_some() {
                size == 0
            } else {
                end == self.waiting.len()
            };
        let message = self.message(size);
        self.sent = end;
        self.offset += size as u64;
        if let Some(ends) = &mut self.ends
            && ends.front() == Some(&end)
        {
            ends.pop_front();
        }
        if self.is_empty() {
            self.waiting = Vec::new();
            self.sent = 0;
        }
        Some((message, i64::try_from(size).unwrap_or(i64::MAX)))
    }

    fn message(&self, size: usize) -> Vec<u8> {
        let mut number = itoa::Buffer::new();
        let offset = ("UPLOAD_STREAM", number.format(self.offset).as_bytes());
        let both = [offset, ("UPLOAD_STREAM_DONE", b"1")];
        let mut out = Vec::with_capacity(self.path.len() + size + 96);
        Outgoing {
            protocol: self.protocol,
            path: &self.path,
            fields: &[],
            server: if self.done { &both } else { &both[..1] },
            names_max: 0,
            values_max: 1,
        }
        .encode_head(&mut out);
        let body = self.waiting.get(self.sent..self.sent + size);
        end_with_body(&mut out, body.unwrap_or_default());
        out
    }
}

/// Appends the body to the head of a message.
pub(in crate::front) fn end_with_body(message: &mut Vec<u8>, body: &[u8]) {
    request::encode_body_prefix(body.len(), message);
    message.extend_from_slice(body);
    message.push(b',');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(message: Option<(Vec<u8>, i64)>) -> (String, i64) {
        let (bytes, cost) = message.expect("a message");
        (String::from_utf8(bytes).unwrap(), cost)
    }

    fn part(offset: u64, body: &str, cost: i64) -> (String, i64) {
        let dict = format!(r#"{{"UPLOAD_STREAM":"{offset}"}}"#);
        (
            format!("/u {}:{dict},{}:{body},", dict.len(), body.len()),
            cost,
        )
    }

    fn last(offset: u64, body: &str, cost: i64) -> (String, i64) {
        let dict = format!(r#"{{"UPLOAD_STREAM":"{offset}","UPLOAD_STREAM_DONE":"1"}}"#);
        (
            format!("/u {}:{dict},{}:{body},", dict.len(), body.len()),
            cost,
        )
    }

    fn parts(chunked: bool, offset: u64) -> Parts {
        Parts::new(Box::from(&b"/u"[..]), Protocol::Json, 4, chunked, offset)
    }

    #[test]
    fn a_body_of_known_length_leaves_as_credits_and_limit_allow() {
        let mut parts = parts(false, 2);
        parts.push(b"abcdefghij");
        assert_eq!(parts.next(0, false), None);
        assert_eq!(parts.next(-5, true), None);
        assert_eq!(text(parts.next(3, false)), part(2, "abc", 3));
        assert_eq!(text(parts.next(100, false)), part(5, "defg", 4));
        assert_eq!(text(parts.next(2, true)), part(9, "hi", 2));
        assert_eq!(text(parts.next(1, true)), last(11, "j", 1));
        assert!(parts.is_done() && parts.is_empty());
        assert_eq!(parts.next(9, true), None);
    }

    #[test]
    fn chunks_leave_one_by_one_and_the_end_needs_no_credit() {
        let mut parts = parts(true, 0);
        for chunk in [&b"a"[..], b"bc", b"defghi"] {
            parts.push(chunk);
        }
        assert_eq!(parts.next(0, false), None);
        assert_eq!(text(parts.next(1, true)), part(0, "a", 1));
        assert_eq!(
            text(parts.next(1, true)),
            part(1, "bc", 2),
            "more than the credit"
        );
        assert_eq!(
            text(parts.next(9, true)),
            part(3, "defg", 4),
            "the limit cuts a chunk"
        );
        assert_eq!(text(parts.next(9, true)), part(7, "hi", 2));
        assert_eq!(text(parts.next(-3, true)), last(9, "", 0));
        assert_eq!(parts.next(9, true), None);
    }
}
