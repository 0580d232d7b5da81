//! One connection's state: handshake, traffic, heartbeats. No I/O; time is given.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};

use super::command::{self, Command, Property, ReadyError};
use super::frame::{Framing, Header};
use super::greeting::{self, GREETING_BYTES, REVISION_BYTES, Sniffed};
use super::{Message, Options, SocketType, Version, Violation};

/// What the handshake told of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// The version it declared.
    pub version: Version,
    /// Its type; ZMTP 1.0 does not tell.
    pub socket_type: Option<SocketType>,
    /// Its identity, often empty. A 3.x PULL or PUB of libzmq does not send one; 1.0 and 2.0 do.
    pub identity: Bytes,
    /// What else its READY had, `X-` metadata for instance.
    pub properties: Vec<Property>,
}

/// What happened on a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake is done; [`Session::remote`] tells the rest. Messages may be sent from now on.
    Ready,
    /// A whole message.
    Message(Message),
    /// SUB, XSUB: what the publisher sends from now on reaches us.
    Subscribed,
    /// PUB, XPUB: the subscriber wants what begins with `topic`, or not any more. Each subscription is told, equal ones too.
    Wants {
        /// How what it wants begins.
        topic: Bytes,
        /// Whether it wants it.
        wanted: bool,
    },
    /// Nothing was heard for the heartbeat timeout after our PING. Told once until something is heard again.
    Silent,
}

/// Where a connection stands: what is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitSignature,
    AwaitVersion,
    AwaitGreeting,
    AwaitReady,
    /// 2.0: socket type and identity frame.
    AwaitTypeAndIdentity,
    /// 1.0: the frame that is the peer's identity.
    AwaitIdentity,
    Traffic,
    Failed,
}

/// When our subscription takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subscription {
    /// Not a subscriber, handshake not done, or told already.
    Nothing,
    /// The PONG to the PING behind it, or the end of our patience.
    AwaitPong(Instant),
    /// This moment.
    At(Instant),
}

/// The protocol state of one connection. ZMTP knows no difference between who accepts and who connects.
///
/// The caller, in any order, as things happen:
///
/// * `handle_bytes` with the receive buffer whenever bytes were added to it, again and again until it gives `None`;
/// * `handle_timeout` when the moment told by `poll_timeout` has come;
/// * sends `output`, at the bounds of frames of its own messages (or between its messages, as the bus does), and clears it;
/// * after [`Event::Ready`] sends messages of its own, framed by `framing`, and none before.
///
/// A [`Violation`] ends it: nothing is accepted afterwards.
#[derive(Debug)]
pub struct Session {
    role: SocketType,
    options: Arc<Options>,
    state: State,
    output: Vec<u8>,
    remote: Remote,
    framing: Framing,
    /// The frames of an unfinished message, and their sum.
    parts: Vec<Bytes>,
    parts_size: u64,
    unasked: u64,
    /// Length of the receive buffer when it was last seen: more than that is news.
    seen: usize,
    need: usize,
    handshake_deadline: Instant,
    heard: Instant,
    knows_ping: bool,
    ping_sent: Option<Instant>,
    ping_counter: u64,
    silent: bool,
    time_to_live: Option<Duration>,
    subscription: Subscription,
    /// XPUB: a subscriber of ZMTP 1.0 says nothing and sorts out by itself. That it wants everything is still to be told.
    wants_all: bool,
}

impl Session {
    /// A session for a connection accepted (or made) at `now` by a socket of type `role`.
    pub fn new(role: SocketType, options: Arc<Options>, now: Instant) -> Self {
        Self {
            role,
            state: State::AwaitSignature,
            output: greeting::signature(options.identity.len()).to_vec(),
            remote: Remote {
                version: Version::V1_0,
                socket_type: None,
                identity: Bytes::new(),
                properties: Vec::new(),
            },
            framing: Framing::New,
            parts: Vec::new(),
            parts_size: 0,
            unasked: 0,
            seen: 0,
            need: 1,
            handshake_deadline: later(now, options.handshake_timeout),
            options,
            heard: now,
            knows_ping: false,
            ping_sent: None,
            ping_counter: 0,
            silent: false,
            time_to_live: None,
            subscription: Subscription::Nothing,
            wants_all: false,
        }
    }

    /// Takes what it can use from the front of the receive buffer and gives the next event, `None` when more bytes are needed.
    /// Bytes of an unfinished frame stay in the buffer. Any byte counts as a sign of life.
    pub fn handle_bytes(
        &mut self,
        input: &mut BytesMut,
        now: Instant,
    ) -> Result<Option<Event>, Violation> {
        if input.len() > self.seen {
            self.heard = now;
            self.ping_sent = None;
            self.silent = false;
        }
        let result = self.advance(input, now);
        self.seen = input.len();
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    /// Acts on a deadline. To be called again until it gives `None`.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<Option<Event>, Violation> {
        let result = self.expire(now);
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    /// When [`Session::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.state == State::Failed {
            return None;
        }
        if self.state != State::Traffic {
            return Some(self.handshake_deadline);
        }
        let subscription = match self.subscription {
            Subscription::Nothing => None,
            Subscription::AwaitPong(at) | Subscription::At(at) => Some(at),
        };
        let to_live = self.time_to_live.map(|ttl| later(self.heard, ttl));
        [subscription, to_live, self.heartbeat_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whole frames (during the handshake: bytes) to be sent ahead of any message. The caller takes them away.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Bytes that the receive buffer must hold at least before [`Session::handle_bytes`] can give another event. A hint for
    /// reading: the peer declared it, so it is no reason to allocate.
    pub fn need(&self) -> usize {
        self.need
    }

    /// What the handshake told.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// How frames look on this connection, known from [`Event::Ready`] on.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether the handshake is done.
    pub fn is_ready(&self) -> bool {
        self.state == State::Traffic
    }

    /// Whether the peer was told to be [`Event::Silent`] and has not been heard since.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    fn advance(&mut self, input: &mut BytesMut, now: Instant) -> Result<Option<Event>, Violation> {
        loop {
            let before = self.state;
            let event = match self.state {
                State::AwaitSignature => self.await_signature(input)?,
                State::AwaitVersion => self.await_version(input)?,
                State::AwaitGreeting => self.await_greeting(input)?,
                State::AwaitReady => self.await_ready(input, now)?,
                State::AwaitTypeAndIdentity => self.await_type_and_identity(input, now)?,
                State::AwaitIdentity => self.await_identity(input, now)?,
                State::Traffic => return self.traffic(input, now),
                State::Failed => return Ok(None),
            };
            if event.is_some() || self.state == before {
                return Ok(event);
            }
        }
    }

    fn await_signature(&mut self, input: &BytesMut) -> Result<Option<Event>, Violation> {
        match greeting::sniff(input) {
            Sniffed::Undecided => {}
            Sniffed::Old => {
                self.framing = Framing::Old;
                self.state = State::AwaitIdentity;
                // What was sent was the length of our identity; here it is.
                self.output.extend_from_slice(&self.options.identity);
                self.check_version(Version::V1_0)?;
            }
            Sniffed::Versioned => {
                // At once: a peer that waits for this byte before it sends its own must not be waited for.
                self.output.push(greeting::MAJOR);
                self.state = State::AwaitVersion;
            }
        }
        Ok(None)
    }

    fn await_version(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        match input.get(10) {
            None => {}
            Some(0) => return Err(Violation::VersionZero),
            Some(1 | 2) => {
                self.remote.version = Version::V2_0;
                self.check_version(Version::V2_0)?;
                self.output.push(self.role.number());
                let size = self.options.identity.len();
                self.output
                    .extend_from_slice(self.framing.encode(size, false).as_ref());
                self.output.extend_from_slice(&self.options.identity);
                input.advance(REVISION_BYTES);
                self.state = State::AwaitTypeAndIdentity;
            }
            Some(_) => {
                greeting::complete(self.role, &self.options, &mut self.output);
                self.state = State::AwaitGreeting;
            }
        }
        Ok(None)
    }

    fn await_greeting(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        let Some(whole) = input.first_chunk::<GREETING_BYTES>() else {
            return Ok(None);
        };
        let (version, mechanism) = greeting::read(whole);
        if mechanism != b"NULL" {
            return Err(Violation::Mechanism(
                String::from_utf8_lossy(mechanism).into_owned(),
            ));
        }
        self.remote.version = version;
        input.advance(GREETING_BYTES);
        self.state = State::AwaitReady;
        Ok(None)
    }

    fn await_ready(
        &mut self,
        input: &mut BytesMut,
        now: Instant,
    ) -> Result<Option<Event>, Violation> {
        let Some(header) = self.framing.decode(input)? else {
            return Ok(None);
        };
        if !header.command {
            return Err(Violation::NotReady);
        }
        check_command(&header, self.options.handshake_command_bytes_max)?;
        let Some(body) = self.take_body(input, &header) else {
            return Ok(None);
        };
        match command::decode(&body) {
            Command::Ready(data) => {
                let ready = command::decode_ready(self.role, data)?;
                if ready.socket_type.is_none() && self.options.socket_type_required {
                    return Err(ReadyError::SocketTypeMissing.into());
                }
                self.remote.socket_type = ready.socket_type;
                self.remote.identity = ready.identity;
                self.remote.properties = ready.properties;
                Ok(Some(self.enter_traffic(now)))
            }
            Command::Error(reason) => Err(Violation::Refused(
                String::from_utf8_lossy(reason).into_owned(),
            )),
            _ => Err(Violation::NotReady),
        }
    }

    fn await_type_and_identity(
        &mut self,
        input: &mut BytesMut,
        now: Instant,
    ) -> Result<Option<Event>, Violation> {
        if self.remote.socket_type.is_none() {
            let Some(number) = input.first().copied() else {
                return Ok(None);
            };
            let fits = SocketType::from_number(number).filter(|peer| self.role.accepts(*peer));
            self.remote.socket_type = Some(fits.ok_or(Violation::SocketTypeNumber(number))?);
            input.advance(1);
        }
        self.take_identity(input, now)
    }

    fn await_identity(
        &mut self,
        input: &mut BytesMut,
        now: Instant,
    ) -> Result<Option<Event>, Violation> {
        if greeting::is_text(input) {
            return Err(Violation::NotZmtp);
        }
        let event = self.take_identity(input, now)?;
        if event.is_some() && self.role == SocketType::Push && !input.is_empty() {
            // Nothing follows the identity of a 1.0 PULL. What does is no PULL, and must not be handed a request.
            return Err(Violation::NotZmtp);
        }
        Ok(event)
    }

    fn take_identity(
        &mut self,
        input: &mut BytesMut,
        now: Instant,
    ) -> Result<Option<Event>, Violation> {
        let Some(header) = self.framing.decode(input)? else {
            return Ok(None);
        };
        if header.more {
            return Err(Violation::NotZmtp);
        }
        if header.size > u64::from(u8::MAX) {
            return Err(Violation::IdentityTooLong);
        }
        let Some(body) = self.take_body(input, &header) else {
            return Ok(None);
        };
        self.remote.identity = Bytes::copy_from_slice(&body);
        Ok(Some(self.enter_traffic(now)))
    }

    /// Ends the handshake, and subscribes in the form that the peer's version understands.
    fn enter_traffic(&mut self, now: Instant) -> Event {
        self.state = State::Traffic;
        self.knows_ping = self.remote.version >= Version::V3_1;
        self.wants_all = self.remote.version < Version::V2_0 && self.role == SocketType::Xpub;
        if matches!(self.role, SocketType::Sub | SocketType::Xsub) {
            let options = Arc::clone(&self.options);
            for topic in &options.topics {
                if self.remote.version >= Version::V3_1 {
                    command::encode_subscribe(topic, &mut self.output);
                } else if self.remote.version > Version::V1_0 {
                    let size = topic.len().saturating_add(1);
                    self.output
                        .extend_from_slice(self.framing.encode(size, false).as_ref());
                    self.output.push(1);
                    self.output.extend_from_slice(topic);
                }
            }
            self.subscription = if self.knows_ping {
                // The only acknowledgement there is: its PONG comes after the subscription was filed.
                self.ping(now);
                Subscription::AwaitPong(later(now, options.subscription_patience))
            } else {
                Subscription::At(later(now, options.subscription_delay_unasked))
            };
        }
        Event::Ready
    }

    fn traffic(&mut self, input: &mut BytesMut, now: Instant) -> Result<Option<Event>, Violation> {
        if self.role == SocketType::Push && self.remote.version < Version::V2_0 && !input.is_empty()
        {
            // A 1.0 PULL says nothing after its identity; a client of another protocol that slipped through does.
            return Err(Violation::Unasked);
        }
        if std::mem::take(&mut self.wants_all) {
            return Ok(Some(wants(b"", true)));
        }
        loop {
            let Some(header) = self.framing.decode(input)? else {
                self.need = input.len().saturating_add(1);
                return Ok(None);
            };
            if header.command && self.remote.version.major >= 3 {
                check_command(&header, self.options.command_bytes_max)?;
                let Some(body) = self.take_body(input, &header) else {
                    return Ok(None);
                };
                match self.handle_command(&body, now) {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                }
            }
            if matches!(
                self.role,
                SocketType::Push | SocketType::Pub | SocketType::Xpub
            ) {
                self.check_unasked(&header)?;
                let Some(body) = self.take_body(input, &header) else {
                    return Ok(None);
                };
                if self.role != SocketType::Push
                    && let Some(event) = subscription(&body)
                {
                    return Ok(Some(event));
                }
                self.unasked = self
                    .unasked
                    .saturating_add(header.size)
                    .saturating_add(header.length as u64);
                continue;
            }
            let size = self.parts_size.saturating_add(header.size);
            if size > self.options.message_bytes_max as u64 {
                return Err(Violation::MessageTooLong {
                    size,
                    max: self.options.message_bytes_max,
                });
            }
            if self.parts.len() >= self.options.message_frames_max {
                return Err(Violation::TooManyFrames {
                    max: self.options.message_frames_max,
                });
            }
            let Some(body) = self.take_body(input, &header) else {
                return Ok(None);
            };
            // An empty slice would hold the buffer for nothing.
            let body = if body.is_empty() {
                Bytes::new()
            } else {
                body.freeze()
            };
            if header.more {
                self.parts.push(body);
                self.parts_size = size;
            } else if self.parts.is_empty() {
                return Ok(Some(Event::Message(body.into())));
            } else {
                self.parts.push(body);
                self.parts_size = 0;
                let mut parts = std::mem::take(&mut self.parts).into_iter();
                let first = parts.next().unwrap_or_default();
                return Ok(Some(Event::Message(Message {
                    first,
                    rest: parts.collect(),
                })));
            }
        }
    }

    fn check_unasked(&self, header: &Header) -> Result<(), Violation> {
        let sum = self
            .unasked
            .saturating_add(header.size)
            .saturating_add(header.length as u64);
        if sum > self.options.unasked_bytes_max as u64 {
            Err(Violation::Unasked)
        } else {
            Ok(())
        }
    }

    fn check_version(&self, version: Version) -> Result<(), Violation> {
        if self.options.old_versions {
            Ok(())
        } else {
            Err(Violation::VersionRefused(version))
        }
    }

    fn handle_command(&mut self, body: &[u8], now: Instant) -> Option<Event> {
        let publishes = matches!(self.role, SocketType::Pub | SocketType::Xpub);
        match command::decode(body) {
            Command::Ping { ttl, context } => {
                command::encode_pong(context, &mut self.output);
                self.time_to_live =
                    (ttl > 0).then(|| Duration::from_millis(u64::from(ttl).saturating_mul(100)));
                // Who PINGs understands PING, whatever it declares; a REQ of libzmq 4.2 breaks on ours all the same.
                let fragile = self.remote.version < Version::V3_1
                    && self.remote.socket_type == Some(SocketType::Req);
                self.knows_ping |= !fragile;
            }
            Command::Pong => {
                if let Subscription::AwaitPong(_) = self.subscription {
                    self.subscription =
                        Subscription::At(later(now, self.options.subscription_delay));
                }
            }
            Command::Subscribe(topic) if publishes => return Some(wants(topic, true)),
            Command::Cancel(topic) if publishes => return Some(wants(topic, false)),
            // libzmq ignores all of these once the handshake is done.
            Command::Ready(_)
            | Command::Error(_)
            | Command::Subscribe(_)
            | Command::Cancel(_)
            | Command::Unknown => {}
        }
        None
    }

    fn expire(&mut self, now: Instant) -> Result<Option<Event>, Violation> {
        match self.state {
            State::Failed => return Ok(None),
            State::Traffic => {}
            _ if now >= self.handshake_deadline => return Err(Violation::HandshakeTimeout),
            _ => return Ok(None),
        }
        if self
            .time_to_live
            .is_some_and(|ttl| now >= later(self.heard, ttl))
        {
            return Err(Violation::TimeToLive);
        }
        match self.subscription {
            Subscription::At(at) | Subscription::AwaitPong(at) if now >= at => {
                self.subscription = Subscription::Nothing;
                return Ok(Some(Event::Subscribed));
            }
            _ => {}
        }
        if self.heartbeat_due().is_some_and(|due| now >= due) {
            if self.ping_sent.is_some() {
                self.silent = true;
                return Ok(Some(Event::Silent));
            }
            self.ping(now);
        }
        Ok(None)
    }

    /// When to PING, or when to give up waiting for any sign after a PING.
    fn heartbeat_due(&self) -> Option<Instant> {
        if !self.knows_ping || self.silent || self.options.heartbeat_interval.is_zero() {
            return None;
        }
        Some(match self.ping_sent {
            None => later(self.heard, self.options.heartbeat_interval),
            Some(sent) => later(sent, self.options.heartbeat_timeout),
        })
    }

    fn ping(&mut self, now: Instant) {
        self.ping_counter = self.ping_counter.wrapping_add(1);
        command::encode_ping(self.ping_counter, &mut self.output);
        self.ping_sent = Some(now);
    }

    /// Takes a whole frame off the buffer and gives its body; `None` when it is not all there.
    fn take_body(&mut self, input: &mut BytesMut, header: &Header) -> Option<BytesMut> {
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        let whole = header.length.saturating_add(size);
        if input.len() < whole {
            self.need = whole;
            return None;
        }
        input.advance(header.length);
        Some(input.split_to(size))
    }
}

/// What a subscriber below 3.1 says in a message: 1 or 0, and how what it means begins.
fn subscription(body: &[u8]) -> Option<Event> {
    match body.split_first() {
        Some((1, topic)) => Some(wants(topic, true)),
        Some((0, topic)) => Some(wants(topic, false)),
        _ => None,
    }
}

fn wants(topic: &[u8], wanted: bool) -> Event {
    Event::Wants {
        topic: Bytes::copy_from_slice(topic),
        wanted,
    }
}

fn check_command(header: &Header, max: usize) -> Result<(), Violation> {
    if header.size > max as u64 {
        return Err(Violation::CommandTooLong {
            size: header.size,
            max,
        });
    }
    Ok(())
}

/// `start` and so much more; thirty years when the clock has no number for that.
fn later(start: Instant, delay: Duration) -> Instant {
    const FAR: Duration = Duration::from_hours(30 * 365 * 24);
    start
        .checked_add(delay)
        .or_else(|| start.checked_add(FAR))
        .unwrap_or(start)
}
