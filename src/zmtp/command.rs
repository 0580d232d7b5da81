//! Commands of ZMTP 3.x: READY and its properties, PING and PONG, SUBSCRIBE. No I/O.

use bytes::Bytes;

use super::frame::encode_command;
use super::{Options, SocketType};

/// A PING or PONG context longer than this is cut (RFC 37; libzmq does the same).
pub(super) const CONTEXT_BYTES_MAX: usize = 16;

/// One property of READY that is neither the socket type nor the identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// The name in the case it came in; names are to be compared without case.
    pub name: Bytes,
    /// The value.
    pub value: Bytes,
}

/// A command as far as we care.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    /// The end of the handshake, with metadata.
    Ready(&'a [u8]),
    /// The peer refuses us, with its reason.
    Error(&'a [u8]),
    /// A heartbeat: time to live in tenths of a second, and what the PONG must bring back.
    Ping { ttl: u16, context: &'a [u8] },
    /// The answer to ours. The context is not looked at: libzmq 4.2 leaves it out.
    Pong,
    /// A subscriber wants what begins so.
    Subscribe(&'a [u8]),
    /// It does not want that any more.
    Cancel(&'a [u8]),
    /// Anything else, malformed ones too: to be ignored, as libzmq does.
    Unknown,
}

/// Reads the body of a command frame.
pub(super) fn decode(body: &[u8]) -> Command<'_> {
    let Some((length, rest)) = body.split_first() else {
        return Command::Unknown;
    };
    let Some((name, data)) = rest.split_at_checked(usize::from(*length)) else {
        return Command::Unknown;
    };
    match name {
        b"READY" => Command::Ready(data),
        b"ERROR" => Command::Error(data.get(1..).unwrap_or_default()),
        b"PING" => match data.split_first_chunk() {
            Some((ttl, context)) => Command::Ping {
                ttl: u16::from_be_bytes(*ttl),
                context: context.get(..CONTEXT_BYTES_MAX).unwrap_or(context),
            },
            // A PING without its time to live: never answered, since libzmq reads past the end of one.
            None => Command::Unknown,
        },
        b"PONG" => Command::Pong,
        b"SUBSCRIBE" => Command::Subscribe(data),
        b"CANCEL" => Command::Cancel(data),
        _ => Command::Unknown,
    }
}

/// Why the metadata of a READY is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadyError {
    /// A name or value that does not fit, or bytes left over.
    #[error("malformed metadata")]
    Malformed,
    /// A property without a name.
    #[error("a property without a name")]
    NameEmpty,
    /// More than 255 bytes of identity.
    #[error("an identity of more than 255 bytes")]
    IdentityTooLong,
    /// A socket type that ours does not talk to.
    #[error("its socket type does not fit")]
    SocketType,
    /// No socket type, and the options ask for one.
    #[error("no socket type")]
    SocketTypeMissing,
}

/// What a READY says.
#[derive(Debug, Default)]
pub(super) struct Ready {
    pub(super) socket_type: Option<SocketType>,
    pub(super) identity: Bytes,
    pub(super) properties: Vec<Property>,
}

/// Reads the metadata of a READY. `role` is our own type: each `Socket-Type` given must fit it.
pub(super) fn decode_ready(role: SocketType, data: &[u8]) -> Result<Ready, ReadyError> {
    let mut ready = Ready::default();
    let mut rest = data;
    while let Some((length, after)) = rest.split_first() {
        let (name, after) = after
            .split_at_checked(usize::from(*length))
            .ok_or(ReadyError::Malformed)?;
        let (size, after) = after.split_first_chunk().ok_or(ReadyError::Malformed)?;
        let size = usize::try_from(u32::from_be_bytes(*size)).map_err(|_| ReadyError::Malformed)?;
        let (value, after) = after.split_at_checked(size).ok_or(ReadyError::Malformed)?;
        rest = after;
        if name.is_empty() {
            return Err(ReadyError::NameEmpty);
        } else if name.eq_ignore_ascii_case(b"Socket-Type") {
            let socket_type = SocketType::from_name(value).filter(|peer| role.accepts(*peer));
            ready.socket_type = Some(socket_type.ok_or(ReadyError::SocketType)?);
        } else if name.eq_ignore_ascii_case(b"Identity") {
            if value.len() > usize::from(u8::MAX) {
                return Err(ReadyError::IdentityTooLong);
            }
            ready.identity = Bytes::copy_from_slice(value);
        } else {
            let (name, value) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
            ready.properties.push(Property { name, value });
        }
    }
    Ok(ready)
}

/// Appends our READY. It has the socket type (the name is written just so, because libzmq compares it exactly), the identity where
/// libzmq's has one, which is for these three types, and the properties given, which every libzmq takes and shows to its program.
pub(super) fn encode_ready(role: SocketType, options: &Options, out: &mut Vec<u8>) {
    let mut data = Vec::with_capacity(64);
    push_property(&mut data, "Socket-Type", role.name().as_bytes());
    if matches!(
        role,
        SocketType::Req | SocketType::Dealer | SocketType::Router
    ) && !options.identity.is_empty()
    {
        push_property(&mut data, "Identity", &options.identity);
    }
    for (name, value) in &options.properties {
        push_property(&mut data, name, value.as_bytes());
    }
    encode_command("READY", &data, out);
}

fn push_property(data: &mut Vec<u8>, name: &str, value: &[u8]) {
    data.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    data.extend_from_slice(value);
}

/// Appends a PING without a time to live: one from us could only lose messages.
pub(super) fn encode_ping(counter: u64, out: &mut Vec<u8>) {
    let mut data = [0; 10];
    for (to, from) in data.iter_mut().skip(2).zip(counter.to_be_bytes()) {
        *to = from;
    }
    encode_command("PING", &data, out);
}

/// Appends the answer to a PING.
pub(super) fn encode_pong(context: &[u8], out: &mut Vec<u8>) {
    encode_command("PONG", context, out);
}

/// Appends a subscription as a command.
pub(super) fn encode_subscribe(topic: &[u8], out: &mut Vec<u8>) {
    encode_command("SUBSCRIBE", topic, out);
}
