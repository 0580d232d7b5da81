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
