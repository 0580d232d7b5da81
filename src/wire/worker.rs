//! What a broker and a worker of its own dialect say to each other, over ROUTER and DEALER.
//!
//! A message is a list of frames: the name of a command in capitals, then its fields, numbers in decimal. Whoever does not know a
//! command, or finds more fields than it knows, ignores that; what has too few or senseless fields is an error, which ends nothing.
//! Requests and replies are the Mongrel2 messages of [`super::request`] and [`super::reply`], whole, in the last frame.
//! `docs/broker-protocol.md` says in what order all of it is said; nothing here remembers anything.

use std::time::Duration;

use bytes::Bytes;

use super::{DecodeError, DecodeErrorKind};

/// The version of the dialect that is spoken here.
pub const VERSION: u32 = 1;

/// The longest name of a worker or pool, in bytes: names stand in logs and figures.
pub const NAME_BYTES_MAX: usize = 255;

/// A request's number at its broker. It is another for every request, and stays the same when the request is given out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FromWorker {
    /// `HELLO version name slots weight pool`: it is there. The first thing that it says on a connection.
    Hello(Hello),
    /// `HELD id address`: from before this connection it still has the request that a broker called `id`, of the client
    /// `SENDER SP CONNID`. After HELLO, once for each.
    Held {
        /// What it was called.
        id: RequestId,
        /// Its message's first two words.
        address: Bytes,
    },
    /// `CREDIT n`: from now on it takes so many requests at once; 0 is none.
    Credit(u32),
    /// `FIRST id`: it begins with the request. What has not been begun is given to another worker when this one is lost.
    First(RequestId),
    /// `REPLY id message`: a reply as a Mongrel2 handler writes it. An empty id: it belongs to no request.
    Reply {
        /// The request that it answers.
        id: Option<RequestId>,
        /// `SENDER SP LENGTH:IDS, SP PAYLOAD`.
        message: Bytes,
    },
    /// `DONE id microseconds`: it has nothing more to do for the request, and took so long.
    Done {
        /// The request.
        id: RequestId,
        /// From FIRST to DONE.
        took: Duration,
    },
    /// `PING number`: is the broker alive?
    Ping(u64),
    /// `PONG number progress`: it is alive, and its program has come so far (a number that grows while the program works).
    Pong {
        /// That of the PING.
        number: u64,
        /// What grows.
        progress: u64,
    },
    /// `DRAIN`: it wants no more requests. Answered by DRAIN when the last one is sent.
    Drain,
    /// `BYE`: it goes, and has nothing left to say.
    Bye,
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The version that it speaks.
    pub version: u32,
    /// Its name: the same after a restart, so that sticky requests find it again. Empty: none.
    pub name: Bytes,
    /// How many requests it takes at once; none: whatever the broker sees fit.
    pub slots: Option<u32>,
    /// Its share of sticky keys beside others of the weight 1; from 1 to 1000.
    pub weight: u32,
    /// The pool that it works for; empty: the first.
    pub pool: Bytes,
}

/// What a broker says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FromBroker {
    /// `WELCOME version interval patience`: the worker will get requests. Times in milliseconds: how often it is asked for a sign
    /// of life, and after what silence it is given no more.
    Welcome {
        /// The version that will be spoken.
        version: u32,
        /// Between two PINGs.
        interval: Duration,
        /// The longest silence.
        patience: Duration,
    },
    /// `REFUSED reason`: the HELLO is of no use here. The connection is of no use either.
    Refused {
        /// For people.
        reason: Bytes,
    },
    /// `REQUEST id attempt left message`: a request, given out for the so manieth time, with so many milliseconds left to answer;
    /// empty: no end.
    Request {
        /// Its number.
        id: RequestId,
        /// 1, or more where it was with another worker before.
        attempt: u8,
        /// The time left.
        left: Option<Duration>,
        /// The whole message.
        message: Bytes,
    },
    /// `MESSAGE message`: something that is no request: notices, frames, parts of bodies.
    Message {
        /// The whole message.
        message: Bytes,
    },
    /// `CANCEL id`: nobody waits for the answer to this request any more.
    Cancel(RequestId),
    /// `PING number`: is the worker alive?
    Ping(u64),
    /// `PONG number`: the broker is.
    Pong(u64),
    /// `DRAIN`: the worker has had its last request. Unasked for: there will be no more on this connection.
    Drain,
    /// `BYE`: the broker goes.
    Bye,
}

impl FromWorker {
    /// Reads a message; none where the command is not known.
    ///
    /// # Errors
    ///
    /// When a field is missing or senseless.
    pub fn decode<'f>(
        frames: impl IntoIterator<Item = &'f Bytes>,
    ) -> Result<Option<Self>, DecodeError> {
        let mut frames = Fields(frames.into_iter());
        let command = frames.next("command")?;
        Ok(Some(match &command[..] {
            b"HELLO" => {
                let version = frames.number("version")?;
                let name = frames.name("name")?;
                let slots = frames.optional("slots")?;
                let weight = frames.number("weight")?;
                let pool = frames.name("pool")?;
                if !(1..=1000).contains(&weight) {
                    return Err(DecodeErrorKind::Range.field("weight"));
                }
                Self::Hello(Hello {
                    version,
                    name,
                    slots,
                    weight,
                    pool,
                })
            }
            b"HELD" => Self::Held {
                id: frames.id()?,
                address: frames.next("address")?.clone(),
            },
            b"CREDIT" => Self::Credit(frames.number("credit")?),
            b"FIRST" => Self::First(frames.id()?),
            b"REPLY" => Self::Reply {
                id: frames.optional("id")?.map(RequestId),
                message: frames.next("message")?.clone(),
            },
            b"DONE" => Self::Done {
                id: frames.id()?,
                took: Duration::from_micros(frames.number("microseconds")?),
            },
            b"PING" => Self::Ping(frames.number("number")?),
            b"PONG" => Self::Pong {
                number: frames.number("number")?,
                progress: frames.number("progress")?,
            },
            b"DRAIN" => Self::Drain,
            b"BYE" => Self::Bye,
            _ => return Ok(None),
        }))
    }

    /// Its frames.
    pub fn encode(&self) -> Vec<Bytes> {
        match self {
            Self::Hello(hello) => vec![
                word("HELLO"),
                number(hello.version),
                hello.name.clone(),
                hello.slots.map_or_else(Bytes::new, number),
                number(hello.weight),
                hello.pool.clone(),
            ],
            Self::Held { id, address } => vec![word("HELD"), number(id.0), address.clone()],
            Self::Credit(credit) => vec![word("CREDIT"), number(*credit)],
            Self::First(id) => vec![word("FIRST"), number(id.0)],
            Self::Reply { id, message } => vec![
                word("REPLY"),
                id.map_or_else(Bytes::new, |id| number(id.0)),
                message.clone(),
            ],
            Self::Done { id, took } => {
                vec![word("DONE"), number(id.0), number(took.as_micros())]
            }
            Self::Ping(count) => vec![word("PING"), number(*count)],
            Self::Pong {
                number: count,
                progress,
            } => vec![word("PONG"), number(*count), number(*progress)],
            Self::Drain => vec![word("DRAIN")],
            Self::Bye => vec![word("BYE")],
        }
    }
}

impl FromBroker {
    /// Reads a message; none where the command is not known.
    ///
    /// # Errors
    ///
    /// When a field is missing or senseless.
    pub fn decode<'f>(
        frames: impl IntoIterator<Item = &'f Bytes>,
    ) -> Result<Option<Self>, DecodeError> {
        let mut frames = Fields(frames.into_iter());
        let command = frames.next("command")?;
        Ok(Some(match &command[..] {
            b"WELCOME" => Self::Welcome {
                version: frames.number("version")?,
                interval: Duration::from_millis(frames.number("interval")?),
                patience: Duration::from_millis(frames.number("patience")?),
            },
            b"REFUSED" => Self::Refused {
                reason: frames.next("reason")?.clone(),
            },
            b"REQUEST" => Self::Request {
                id: frames.id()?,
                attempt: frames.number("attempt")?,
                left: frames.optional("left")?.map(Duration::from_millis),
                message: frames.next("message")?.clone(),
            },
            b"MESSAGE" => Self::Message {
                message: frames.next("message")?.clone(),
            },
            b"CANCEL" => Self::Cancel(frames.id()?),
            b"PING" => Self::Ping(frames.number("number")?),
            b"PONG" => Self::Pong(frames.number("number")?),
            b"DRAIN" => Self::Drain,
            b"BYE" => Self::Bye,
            _ => return Ok(None),
        }))
    }

    /// Its frames. A broker that sends many requests puts these together itself, by [`before_request`], around a message that it
    /// does not copy.
    pub fn encode(&self) -> Vec<Bytes> {
        match self {
            Self::Welcome {
                version,
                interval,
                patience,
            } => vec![
                word("WELCOME"),
                number(*version),
                number(interval.as_millis()),
                number(patience.as_millis()),
            ],
            Self::Refused { reason } => vec![word("REFUSED"), reason.clone()],
            Self::Request {
                id,
                attempt,
                left,
                message,
            } => vec![
                word("REQUEST"),
                number(id.0),
                number(*attempt),
                left.map_or_else(Bytes::new, |left| number(left.as_millis())),
                message.clone(),
            ],
            Self::Message { message } => vec![word("MESSAGE"), message.clone()],
            Self::Cancel(id) => vec![word("CANCEL"), number(id.0)],
            Self::Ping(count) => vec![word("PING"), number(*count)],
            Self::Pong(count) => vec![word("PONG"), number(*count)],
            Self::Drain => vec![word("DRAIN")],
            Self::Bye => vec![word("BYE")],
        }
    }
}

/// Calls `with` with the frames that stand before the message of a REQUEST; nothing is allocated.
pub fn before_request<R>(
    id: RequestId,
    attempt: u8,
    left: Option<Duration>,
    with: impl FnOnce(&[&[u8]]) -> R,
) -> R {
    let (mut a, mut b, mut c) = (Decimal::default(), Decimal::default(), Decimal::default());
    let left = left.map(|left| c.of(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)));
    with(&[
        b"REQUEST",
        a.of(id.0),
        b.of(u64::from(attempt)),
        left.unwrap_or_default(),
    ])
}

/// The frames that stand before the message of a MESSAGE.
pub const BEFORE_MESSAGE: [&[u8]; 1] = [b"MESSAGE"];

/// A number in decimal without an allocation.
#[derive(Default)]
struct Decimal([u8; 20]);

impl Decimal {
    fn of(&mut self, mut value: u64) -> &[u8] {
        let mut from = self.0.len();
        for (at, place) in self.0.iter_mut().enumerate().rev() {
            *place = b'0' | u8::try_from(value % 10).unwrap_or_default();
            value /= 10;
            from = at;
            if value == 0 {
                break;
            }
        }
        self.0.get(from..).unwrap_or_default()
    }
}

fn word(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn number<N: Into<u128>>(value: N) -> Bytes {
    value.into().to_string().into()
}

/// The fields of a message, in order.
struct Fields<I>(I);

impl<'f, I: Iterator<Item = &'f Bytes>> Fields<I> {
    fn next(&mut self, field: &'static str) -> Result<&'f Bytes, DecodeError> {
        self.0
            .next()
            .ok_or_else(|| DecodeErrorKind::Truncated.field(field))
    }

    fn name(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let name = self.next(field)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(DecodeErrorKind::TooMany {
                max: NAME_BYTES_MAX,
            }
            .field(field));
        }
        Ok(name.clone())
    }

    fn id(&mut self) -> Result<RequestId, DecodeError> {
        self.number("id").map(RequestId)
    }

    fn number<N: TryFrom<u64>>(&mut self, field: &'static str) -> Result<N, DecodeError> {
        self.optional(field)?
            .ok_or_else(|| DecodeErrorKind::Empty.field(field))
    }

    /// A number, or none in an empty frame.
    fn optional<N: TryFrom<u64>>(&mut self, field: &'static str) -> Result<Option<N>, DecodeError> {
        let frame = self.next(field)?;
        let mut value = 0_u64;
        for (at, byte) in frame.iter().enumerate() {
            let digit = match byte {
                b'0'..=b'9' => u64::from(byte & 0x0f),
                _ => return Err(DecodeErrorKind::Byte { byte: *byte, at }.field(field)),
            };
            value = value
                .checked_mul(10)
                .and_then(|value| value.checked_add(digit))
                .ok_or_else(|| DecodeErrorKind::Range.field(field))?;
        }
        if frame.is_empty() {
            return Ok(None);
        }
        let value = N::try_from(value);
        value
            .map(Some)
            .map_err(|_| DecodeErrorKind::Range.field(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
    }

    fn from_worker() -> impl Strategy<Value = FromWorker> {
        let id = || any::<u64>().prop_map(RequestId);
        let hello = (
            any::<u32>(),
            bytes(),
            proptest::option::of(any::<u32>()),
            1_u32..=1000,
            bytes(),
        );
        prop_oneof![
            hello.prop_map(
                |(version, name, slots, weight, pool)| FromWorker::Hello(Hello {
                    version,
                    name,
                    slots,
                    weight,
                    pool
                })
            ),
            (id(), bytes()).prop_map(|(id, address)| FromWorker::Held { id, address }),
            any::<u32>().prop_map(FromWorker::Credit),
            id().prop_map(FromWorker::First),
            (proptest::option::of(id()), bytes())
                .prop_map(|(id, message)| FromWorker::Reply { id, message }),
            (id(), any::<u32>()).prop_map(|(id, took)| FromWorker::Done {
                id,
                took: Duration::from_micros(u64::from(took))
            }),
            any::<u64>().prop_map(FromWorker::Ping),
            (any::<u64>(), any::<u64>())
                .prop_map(|(number, progress)| FromWorker::Pong { number, progress }),
            Just(FromWorker::Drain),
            Just(FromWorker::Bye),
        ]
    }

    fn from_broker() -> impl Strategy<Value = FromBroker> {
        let id = || any::<u64>().prop_map(RequestId);
        let time = || any::<u32>().prop_map(|time| Duration::from_millis(u64::from(time)));
        prop_oneof![
            (any::<u32>(), time(), time()).prop_map(|(version, interval, patience)| {
                FromBroker::Welcome {
                    version,
                    interval,
                    patience,
                }
            }),
            bytes().prop_map(|reason| FromBroker::Refused { reason }),
            (id(), any::<u8>(), proptest::option::of(time()), bytes()).prop_map(
                |(id, attempt, left, message)| {
                    FromBroker::Request {
                        id,
                        attempt,
                        left,
                        message,
                    }
                }
            ),
            bytes().prop_map(|message| FromBroker::Message { message }),
            id().prop_map(FromBroker::Cancel),
            any::<u64>().prop_map(FromBroker::Ping),
            any::<u64>().prop_map(FromBroker::Pong),
            Just(FromBroker::Drain),
            Just(FromBroker::Bye),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again_and_further_frames_change_nothing(
            worker in from_worker(), broker in from_broker(), more in bytes(),
        ) {
            let mut frames = worker.encode();
            frames.push(more.clone());
            prop_assert_eq!(FromWorker::decode(&frames), Ok(Some(worker)));
            let mut frames = broker.encode();
            frames.push(more);
            prop_assert_eq!(FromBroker::decode(&frames), Ok(Some(broker)));
        }

        #[test]
        fn no_frames_make_it_panic(frames in proptest::collection::vec(bytes(), 0..7), worker in from_worker(), cut in 0_usize..7) {
            drop((FromWorker::decode(&frames), FromBroker::decode(&frames)));
            let whole = worker.encode();
            drop(FromWorker::decode(whole.iter().take(cut).chain(&frames)));
        }

        #[test]
        fn requests_that_are_put_together_around_their_message_are_the_same(
            id in any::<u64>(), attempt in any::<u8>(), left in proptest::option::of(any::<u32>()),
        ) {
            let left = left.map(|left| Duration::from_millis(u64::from(left)));
            let whole = FromBroker::Request { id: RequestId(id), attempt, left, message: Bytes::new() }.encode();
            let before = before_request(RequestId(id), attempt, left, |frames| frames.concat());
            prop_assert_eq!(before, whole.concat());
        }
    }

    #[test]
    fn unknown_commands_are_nothing_and_known_ones_need_their_fields() {
        let frames =
            |words: &[&'static str]| words.iter().map(|text| word(text)).collect::<Vec<_>>();
        assert_eq!(FromWorker::decode(&frames(&["MAYBE", "1"])), Ok(None));
        assert_eq!(FromBroker::decode(&frames(&["HELLO"])), Ok(None));
        for bad in [
            &["HELLO", "1", "name", "4"][..],
            &["HELLO", "1", "name", "4", "0", ""],
            &["FIRST", ""],
            &["FIRST", "-1"],
            &["FIRST", "18446744073709551616"],
            &["CREDIT", "4294967296"],
            &["REPLY", "x", "m"],
            &[],
        ] {
            FromWorker::decode(&frames(bad)).expect_err("a field is missing or senseless");
        }
    }
}
