//! Request bodies that are too large for one message: stored in a file, or streamed to the handler in parts.
//!
//! A handler hears of a *stored* body twice, when it begins and when it is complete (reference: Mongrel2's `upload.temp_store`);
//! of a *streamed* one in as many messages as its credits allow (`upload.stream`). Here is what both have in common: the framing
//! of the body, its bounds, and the time that the client, not this front, has taken. Files are in `file`, parts in `stream`; what
//! the connection does with them is in `connection::upload`.

pub(super) mod file;
pub(super) mod stream;

use crate::front::answer::Trouble;
use crate::front::limits::Limits;
use crate::http1::BodyFraming;
use crate::http1::chunked::{Decoded, Decoder, Status};

/// What is to be done with a body, as its head was read.
#[derive(Debug)]
pub(super) enum Plan {
    /// It is stored in a file of this name, as handlers are told it; `done` is the message that follows it.
    Store { name: String, done: Vec<u8> },
    /// It is streamed. The path stands in every message.
    Stream { path: Box<[u8]> },
}

/// Which way an upload goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Store,
    Stream,
}

/// Whether a body of this framing is an upload (reference 3.1): a known length above the limit, or chunks, where a way is set.
pub(super) fn way(limits: &Limits, framing: BodyFraming) -> Option<Way> {
    let way = if limits.upload_stream {
        Way::Stream
    } else {
        limits.upload_store.as_ref().map(|_| Way::Store)?
    };
    match framing {
        BodyFraming::Length(length) if length > limits.content_length as u64 => Some(way),
        BodyFraming::Chunked => Some(way),
        BodyFraming::None | BodyFraming::Length(_) => None,
    }
}

/// A body on its way from the client.
#[derive(Debug)]
pub(super) struct Upload {
    incoming: Incoming,
    sink: Sink,
    /// Bytes of the body so far, without framing, and how many there may be; 0 for any number.
    total: u64,
    total_max: u64,
    /// Bytes as they came, since `began`, in milliseconds of the shard's clock.
    received: u64,
    began: u64,
    /// Since when the client waits for us.
    paused: Option<u64>,
}

/// What is still to come.
#[derive(Debug)]
enum Incoming {
    Length(u64),
    Chunked(Decoder),
    Done,
}

/// Where the body goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// To a file.
    Store(file::Writer),
    /// To the handler.
    Stream(stream::Parts),
    /// Nowhere: the handler has answered and wants no more parts.
    Drop,
}

impl Upload {
    pub(super) fn new(framing: BodyFraming, sink: Sink, total_max: u64, now: u64) -> Self {
        Self {
            incoming: match framing {
                BodyFraming::Length(length) => Incoming::Length(length),
                BodyFraming::Chunked => Incoming::Chunked(Decoder::default()),
                BodyFraming::None => Incoming::Done,
            },
            sink,
            total: 0,
            total_max,
            received: 0,
            began: now,
            paused: None,
        }
    }

    /// The first bytes of a body of known length leave with the first message, and not through [`Upload::feed`].
    pub(super) fn skip(&mut self, bytes: u64) {
        if let Incoming::Length(left) = &mut self.incoming {
            *left = left.saturating_sub(bytes);
            if *left == 0 {
                self.incoming = Incoming::Done;
            }
        }
        self.total += bytes;
        self.received += bytes;
    }

    pub(super) fn sink(&mut self) -> &mut Sink {
        &mut self.sink
    }

    pub(super) fn into_sink(self) -> Sink {
        self.sink
    }

    /// Gives the sink up: the rest of the body goes nowhere.
    pub(super) fn drop_rest(&mut self) {
        self.sink = Sink::Drop;
    }

    /// Whether the whole body has come.
    pub(super) fn is_received(&self) -> bool {
        matches!(self.incoming, Incoming::Done)
    }

    /// Whether more of the client's bytes can be taken.
    pub(super) fn wants_input(&self) -> bool {
        !self.is_received()
            && match &self.sink {
                Sink::Store(writer) => writer.has_room(),
                Sink::Stream(parts) => parts.is_empty(),
                Sink::Drop => true,
            }
    }

    /// Takes bytes of the client; says how many belonged to the body.
    ///
    /// # Errors
    ///
    /// When they are no body, or there are too many of them.
    pub(super) fn feed(&mut self, data: &[u8]) -> Result<usize, Trouble> {
        let used = match &mut self.incoming {
            Incoming::Done => 0,
            Incoming::Length(left) => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
                *left -= used as u64;
                let whole = *left == 0;
                self.sink.push(&data[..used]);
                self.total += used as u64;
                if whole {
                    self.incoming = Incoming::Done;
                }
                used
            }
            Incoming::Chunked(decoder) => {
                let (sink, total) = (&mut self.sink, &mut self.total);
                let Decoded { consumed, status } = decoder.decode_with(data, |run| {
                    *total += run.len() as u64;
                    sink.push(run);
                });
                match status {
                    Status::More => data.len(),
                    Status::Done => {
                        self.incoming = Incoming::Done;
                        consumed
                    }
                    Status::Refused(_) => return Err(Trouble::BadChunk),
                }
            }
        };
        self.received += used as u64;
        if self.total_max > 0 && self.total > self.total_max {
            return Err(Trouble::TooLarge);
        }
        Ok(used)
    }

    /// Notes whether the client waits for us: that time is not its own. True when it has just begun or ceased to wait.
    pub(super) fn set_paused(&mut self, paused: bool, now: u64) -> bool {
        match (self.paused, paused) {
            (None, true) => {
                self.paused = Some(now);
                true
            }
            (Some(since), false) => {
                self.paused = None;
                self.began = self.began.saturating_add(now.saturating_sub(since));
                true
            }
            _ => false,
        }
    }

    /// Whether the client is to send: then its rate counts.
    pub(super) fn is_awaited(&self) -> bool {
        !self.is_received() && self.paused.is_none()
    }

    /// Whether fewer bytes came than so many in a second, on average over the client's own time.
    pub(super) fn is_slower_than(&self, rate: u64, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.began);
        self.received.saturating_mul(1000) < rate.saturating_mul(elapsed)
    }
}

impl Sink {
    fn push(&mut self, run: &[u8]) {
        match self {
            Self::Store(writer) => writer.push(run),
            Self::Stream(parts) => parts.push(run),
            Self::Drop => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::stream::Parts;
    use super::*;
    use crate::wire::Protocol;

    fn streamed(framing: BodyFraming, total_max: u64) -> Upload {
        let chunked = framing == BodyFraming::Chunked;
        let parts = Parts::new(Box::from(&b"/"[..]), Protocol::Json, 1000, chunked, 0);
        Upload::new(framing, Sink::Stream(parts), total_max, 0)
    }

    /// Feeds it and takes everything out again; says what of `data` was used.
    fn feed(upload: &mut Upload, data: &[u8], out: &mut Vec<u8>) -> Result<usize, Trouble> {
        let used = upload.feed(data)?;
        let received = upload.is_received();
        if let Sink::Stream(parts) = upload.sink() {
            while let Some((message, cost)) = parts.next(i64::MAX, received) {
                let end = message.len() - 1;
                out.extend_from_slice(&message[end - usize::try_from(cost).unwrap()..end]);
            }
        }
        Ok(used)
    }

    #[test]
    fn a_body_ends_where_it_should_wherever_it_is_cut() {
        let chunked = b"5;x=y\r\nhello\r\n3\r\nabc\r\n0\r\nT: t\r\n\r\n";
        for (framing, body) in [
            (BodyFraming::Length(8), &b"helloabc"[..]),
            (BodyFraming::Chunked, chunked),
        ] {
            let all = [body, b"GET /"].concat();
            for cut in 0..all.len() {
                let mut upload = streamed(framing, 8);
                let mut out = Vec::new();
                let mut used = feed(&mut upload, &all[..cut], &mut out).unwrap();
                used += feed(&mut upload, &all[used..], &mut out).unwrap();
                assert_eq!((used, &out[..]), (body.len(), &b"helloabc"[..]), "{cut}");
                assert!(upload.is_received() && !upload.wants_input());
            }
            let mut upload = streamed(framing, 7);
            assert_eq!(
                feed(&mut upload, &all, &mut Vec::new()),
                Err(Trouble::TooLarge)
            );
        }
    }

    #[test]
    fn a_body_that_leaves_with_the_first_message_has_come() {
        let mut upload = streamed(BodyFraming::Length(1), 0);
        upload.skip(1);
        assert!(upload.is_received() && !upload.wants_input());
    }

    #[test]
    fn the_time_that_a_client_waits_for_us_is_not_its_own() {
        let mut upload = streamed(BodyFraming::Length(10_000), 0);
        feed(&mut upload, &[b'x'; 1000], &mut Vec::new()).unwrap();
        assert!(upload.set_paused(true, 1_000) && !upload.set_paused(true, 5_000));
        assert!(!upload.is_awaited());
        assert!(upload.set_paused(false, 61_000) && upload.is_awaited());
        // 1000 bytes in two seconds of its own.
        assert!(!upload.is_slower_than(500, 62_000));
        assert!(upload.is_slower_than(501, 62_000));
    }
}
