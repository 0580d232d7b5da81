//! Messages from a handler to the front: `SENDER SP LEN:IDS, SP PAYLOAD`.
//!
//! Decoding is the front's hot path and allocates nothing: ids are read one by one from the message, and the payload
//! is a range in it, so that the caller can pass on a reference. The payload itself is never looked into, except for
//! extended replies ([`decode_extended`]), whose payload is a command to the front.

use std::ops::Range;

use super::{ConnId, DecodeError, DecodeErrorKind};
use crate::tnetstring::{self, Limits, Parsed, Value};

/// Digits that a length of the ids may have: leading zeros are allowed here, since Mongrel2's parser takes them.
const LENGTH_DIGITS_MAX: usize = 9;

/// Ids that Mongrel2 takes in one message, unless `limits.handler_targets` says otherwise.
pub const TARGETS_MAX: usize = 128;

/// A reply, borrowed from the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Letters, digits and `-`. Mongrel2 compares it with nothing; the subscription has filtered it.
    pub sender: &'a [u8],
    /// The connections that get the payload, at least one. The same one twice gets it twice.
    pub targets: Targets<'a>,
    /// The ids began with `X `: the payload is for [`decode_extended`].
    pub extended: bool,
    /// Where the payload is in the message. Empty: close the connections.
    pub payload: Range<usize>,
}

/// The ids of a reply, which were checked when it was decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets<'a> {
    text: &'a [u8],
    left: usize,
}

impl Iterator for Targets<'_> {
    type Item = ConnId;

    fn next(&mut self) -> Option<ConnId> {
        self.left = self.left.checked_sub(1)?;
        let mut id: u32 = 0;
        while let [byte, rest @ ..] = self.text {
            self.text = rest;
            if *byte == b' ' {
                break;
            }
            id = id
                .wrapping_mul(10)
                .wrapping_add(u32::from(byte.wrapping_sub(b'0')));
        }
        Some(ConnId(id))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Targets<'_> {}

/// Decodes a message from a handler; `targets_max` is the setting `limits.handler_targets`.
///
/// # Errors
/// `sender` (not letters, digits and `-`), or `targets` (length wrong, none, too many, no numbers or beyond 32 bits).
pub fn decode(message: &[u8], targets_max: usize) -> Result<Reply<'_>, DecodeError> {
    let end = message
        .iter()
        .position(|byte| !(byte.is_ascii_alphanumeric() || *byte == b'-'));
    let (sender, rest) = match end.and_then(|end| message.split_at_checked(end)) {
        None => return Err(DecodeErrorKind::Truncated.field("sender")),
        Some(([], _)) => return Err(DecodeErrorKind::Empty.field("sender")),
        Some((sender, [b' ', rest @ ..])) => (sender, rest),
        Some((sender, rest)) => {
            let byte = rest.first().copied().unwrap_or_default();
            return Err(DecodeErrorKind::Byte {
                byte,
                at: sender.len(),
            }
            .field("sender"));
        }
    };
    let (ids, payload) = split_ids(rest).map_err(|kind| kind.field("targets"))?;
    let (extended, ids) = ids
        .strip_prefix(b"X ")
        .map_or((false, ids), |ids| (true, ids));
    let targets = Targets {
        text: ids,
        left: count_ids(ids, targets_max).map_err(|kind| kind.field("targets"))?,
    };
    let start = message.len().saturating_sub(payload.len());
    Ok(Reply {
        sender,
        targets,
        extended,
        payload: start..message.len(),
    })
}

/// Splits `LEN:IDS, PAYLOAD` into ids and payload.
fn split_ids(input: &[u8]) -> Result<(&[u8], &[u8]), DecodeErrorKind> {
    let mut length: usize = 0;
    for (at, &byte) in input.iter().enumerate() {
        match byte {
            b'0'..=b'9' if at < LENGTH_DIGITS_MAX => {
                length = length
                    .saturating_mul(10)
                    .saturating_add(usize::from(byte.wrapping_sub(b'0')));
            }
            b':' if at > 0 => {
                let behind = input.get(at.saturating_add(1)..).unwrap_or_default();
                return match behind.split_at_checked(length) {
                    Some((ids, [b',', b' ', payload @ ..])) => Ok((ids, payload)),
                    None | Some((_, [] | [b','])) => Err(DecodeErrorKind::Truncated),
                    Some(_) => Err(DecodeErrorKind::Shape("a comma and a space behind the ids")),
                };
            }
            _ => return Err(DecodeErrorKind::Byte { byte, at }),
        }
    }
    Err(DecodeErrorKind::Truncated)
}

/// Checks numbers with at most one space behind each, and counts them.
fn count_ids(ids: &[u8], max: usize) -> Result<usize, DecodeErrorKind> {
    let mut count: usize = 0;
    let mut number: Option<u32> = None;
    for (at, &byte) in ids.iter().enumerate() {
        match (byte, number) {
            (b'0'..=b'9', before) => {
                if before.is_none() {
                    count = count.saturating_add(1);
                    if count > max {
                        return Err(DecodeErrorKind::TooMany { max });
                    }
                }
                let digit = u32::from(byte.wrapping_sub(b'0'));
                let next = before
                    .unwrap_or_default()
                    .checked_mul(10)
                    .and_then(|tens| tens.checked_add(digit));
                number = Some(next.ok_or(DecodeErrorKind::Range)?);
            }
            (b' ', Some(_)) => number = None,
            _ => return Err(DecodeErrorKind::Byte { byte, at }),
        }
    }
    if count == 0 {
        Err(DecodeErrorKind::Empty)
    } else {
        Ok(count)
    }
}

/// The payload of an extended reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Extended<'a> {
    /// Key `ctl`: a command for the connection.
    Ctl {
        /// `keep-alive` with any value: resets the idle clock.
        keep_alive: bool,
        /// `credits`: so many more bytes of an upload may be sent. Other types than integers are left out.
        credits: Option<i64>,
        /// `cancel` with any value: drop the connection at once, unflushed and without a notice.
        cancel: bool,
        /// `flow` and `sent`: tell how much of the response is written. Lurcher only; Mongrel2 takes no notice.
        flow: Option<Flow>,
    },
    /// Any other key, and a `ctl` whose value is no dict. Mongrel2 drops the connection if no plug-in knows the key.
    Other {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: Value<'a>,
    },
}

/// What is said of a response under flow control, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// How many bytes the handler wants to have outstanding, or may have.
    pub window: u64,
    /// Asking: so many bytes the handler has sent to the connection, by its own count. In a notice: of those, so many were written.
    pub sent: u64,
}

/// Decodes the payload of an extended reply: a tnetstring list of a string and a value, and nothing behind it.
///
/// # Errors
/// `control`: anything else. Mongrel2 logs and ignores such a message (and answers for unknown ids as usual).
pub fn decode_extended(payload: &[u8]) -> Result<Extended<'_>, DecodeError> {
    let value = match tnetstring::parse(payload, Limits::DEFAULT) {
        Ok(Parsed::Complete { value, rest: [] }) => value,
        Ok(Parsed::Complete { rest, .. }) => {
            return Err(DecodeErrorKind::Trailing { bytes: rest.len() }.field("control"));
        }
        Ok(Parsed::Partial { .. }) => return Err(DecodeErrorKind::Truncated.field("control")),
        Err(error) => return Err(DecodeErrorKind::Tnetstring(error).field("control")),
    };
    let pair = match value {
        Value::List(items) => <[Value<'_>; 2]>::try_from(items).ok(),
        _ => None,
    };
    match pair {
        Some([Value::Bytes(b"ctl"), value @ Value::Dict(_)]) => Ok(Extended::Ctl {
            keep_alive: value.get("keep-alive").is_some(),
            credits: value.get("credits").and_then(Value::as_integer),
            cancel: value.get("cancel").is_some(),
            flow: number(&value, "flow").map(|window| Flow {
                window,
                sent: number(&value, "sent").unwrap_or_default(),
            }),
        }),
        Some([Value::Bytes(key), value]) => Ok(Extended::Other { key, value }),
        _ => Err(DecodeErrorKind::Shape("a list of a key and a value").field("control")),
    }
}

fn number(dict: &Value<'_>, name: &str) -> Option<u64> {
    let number = dict.get(name).and_then(Value::as_integer)?;
    u64::try_from(number).ok()
}

/// What stands between the sender and the command of a message that is for the front itself: an extended reply without ids,
/// which Mongrel2 drops.
const TO_FRONT: &[u8] = b" 2:X , ";

/// The token of a handler that asks for no more requests, if the message is one that says so: `SENDER 2:X , 44:5:drain,32:TOKEN,]`.
/// Any other message is for [`decode`].
pub fn decode_drain(message: &[u8]) -> Option<&[u8]> {
    let end = message.iter().position(|byte| *byte == b' ')?;
    let payload = message.get(end..)?.strip_prefix(TO_FRONT)?;
    match decode_extended(payload) {
        Ok(Extended::Other {
            key: b"drain",
            value: Value::Bytes(token),
        }) => Some(token),
        _ => None,
    }
}

/// What a broker that has taken up what an earlier one had says of that: all that it knows of. Whatever else a front had given to the earlier one
/// is lost. `SENDER 2:X , LENGTH:3:has,LENGTH:TOKEN ID ID …,]`. The token, and the ids.
pub fn decode_has(message: &[u8]) -> Option<(&[u8], impl Iterator<Item = ConnId>)> {
    let end = message.iter().position(|byte| *byte == b' ')?;
    let payload = message.get(end..)?.strip_prefix(TO_FRONT)?;
    let Ok(Extended::Other {
        key: b"has",
        value: Value::Bytes(text),
    }) = decode_extended(payload)
    else {
        return None;
    };
    let mut words = text.split(|byte| *byte == b' ');
    let token = words.next()?;
    let id = |word: &[u8]| std::str::from_utf8(word).ok()?.parse().ok().map(ConnId);
    Some((token, words.filter_map(id)))
}

/// Appends that message.
pub fn encode_has(
    sender: &[u8],
    token: &str,
    ids: impl Iterator<Item = ConnId>,
    out: &mut Vec<u8>,
) {
    let mut text = token.to_owned();
    for id in ids {
        text.push(' ');
        text.push_str(&id.to_string());
    }
    let value = Value::from(text.as_str());
    encode_extended(sender, &[], &Extended::Other { key: b"has", value }, out);
}

/// Appends that message. `sender` must begin with what the front subscribes to; it means nothing else.
pub fn encode_drain(sender: &[u8], token: &str, out: &mut Vec<u8>) {
    let value = Value::from(token);
    encode_extended(
        sender,
        &[],
        &Extended::Other {
            key: b"drain",
            value,
        },
        out,
    );
}

/// Appends a reply to `out`: `payload` for each of `targets`; an empty payload closes them.
///
/// The receiver takes a limited number of ids ([`TARGETS_MAX`] by default): who has more sends several messages.
pub fn encode(sender: &[u8], targets: &[ConnId], payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(
        sender
            .len()
            .saturating_add(payload.len())
            .saturating_add(targets.len().saturating_mul(11)),
    );
    encode_address(sender, b"", targets, out);
    out.extend_from_slice(payload);
}

/// Appends an extended reply to `out`.
pub fn encode_extended(
    sender: &[u8],
    targets: &[ConnId],
    control: &Extended<'_>,
    out: &mut Vec<u8>,
) {
    encode_address(sender, b"X ", targets, out);
    tnetstring::write_list(out, |out| match control {
        Extended::Ctl {
            keep_alive,
            credits,
            cancel,
            flow,
        } => {
            tnetstring::write_bytes(out, b"ctl");
            tnetstring::write_dict(out, |out| {
                if *keep_alive {
                    tnetstring::write_bytes(out, b"keep-alive");
                    tnetstring::write_integer(out, 1);
                }
                if let Some(credits) = credits {
                    tnetstring::write_bytes(out, b"credits");
                    tnetstring::write_integer(out, *credits);
                }
                if *cancel {
                    tnetstring::write_bytes(out, b"cancel");
                    tnetstring::write_integer(out, 1);
                }
                if let Some(Flow { window, sent }) = flow {
                    for (name, number) in [("flow", window), ("sent", sent)] {
                        let number = i64::try_from(*number).unwrap_or(i64::MAX);
                        tnetstring::write_bytes(out, name.as_bytes());
                        tnetstring::write_integer(out, number);
                    }
                }
            });
        }
        Extended::Other { key, value } => {
            tnetstring::write_bytes(out, key);
            value.encode(out);
        }
    });
}

/// Appends `SENDER SP LEN:IDS, SP`.
fn encode_address(sender: &[u8], mark: &[u8], targets: &[ConnId], out: &mut Vec<u8>) {
    out.extend_from_slice(sender);
    out.push(b' ');
    let open = tnetstring::Open::at_end(out, if targets.len() < 2 { 1 } else { 3 });
    out.extend_from_slice(mark);
    for (index, id) in targets.iter().enumerate() {
        if index > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(itoa::Buffer::new().format(id.0).as_bytes());
    }
    open.close(out, b',');
    out.push(b' ');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(text: &str) -> Result<Vec<u32>, DecodeError> {
        let message = format!("u {}:{text}, payload", text.len());
        let reply = decode(message.as_bytes(), TARGETS_MAX)?;
        assert_eq!(&message.as_bytes()[reply.payload], b"payload");
        Ok(reply.targets.map(|id| id.0).collect())
    }

    #[track_caller]
    fn check_error(message: impl AsRef<[u8]>, text: &str) {
        let error = decode(message.as_ref(), 3).unwrap_err();
        assert_eq!(
            error.to_string(),
            text,
            "{}",
            message.as_ref().escape_ascii()
        );
    }

    #[test]
    fn a_reply_is_cut_into_sender_ids_and_payload() {
        let message = b"81b7-x 12:15 16 888888, HTTP/1.1 200 OK\r\n\r\n";
        let reply = decode(message, TARGETS_MAX).unwrap();
        assert_eq!(reply.sender, b"81b7-x");
        assert_eq!(reply.targets.len(), 3);
        assert!(reply.targets.eq([ConnId(15), ConnId(16), ConnId(888_888)]));
        assert!(!reply.extended);
        assert_eq!(&message[reply.payload], b"HTTP/1.1 200 OK\r\n\r\n");
    }

    #[test]
    fn an_empty_payload_is_a_payload() {
        let reply = decode(b"u 1:7, ", TARGETS_MAX).unwrap();
        assert_eq!(reply.payload, 7..7);
    }

    #[test]
    fn each_id_may_have_one_space_behind_it() {
        assert_eq!(ids("1"), Ok(vec![1]));
        assert_eq!(ids("1 "), Ok(vec![1]));
        assert_eq!(ids("1 2 2 "), Ok(vec![1, 2, 2]));
        assert_eq!(ids("007 4294967295"), Ok(vec![7, u32::MAX]));
        assert_eq!(ids("X 1 2").unwrap(), [1, 2], "extended");
        for bad in [
            "",
            " 1",
            "1  2",
            "X",
            "X ",
            "x 1",
            "1 X 2",
            "-1",
            "1,2",
            "4294967296",
            "99999999999999999999",
        ] {
            assert_eq!(ids(bad).unwrap_err().field, "targets", "{bad:?}");
        }
    }

    #[test]
    fn errors_name_the_part_and_the_reason() {
        check_error("", "malformed sender: the message ends too early");
        check_error("abc", "malformed sender: the message ends too early");
        check_error(" 1:1, x", "malformed sender: empty");
        check_error("u_u 1:1, x", "malformed sender: unexpected byte 0x5f at 1");
        check_error("u ", "malformed targets: the message ends too early");
        check_error("u :, x", "malformed targets: unexpected byte 0x3a at 0");
        check_error("u 9:1, x", "malformed targets: the message ends too early");
        check_error("u 1:1,", "malformed targets: the message ends too early");
        check_error(
            "u 1:1,hi",
            "malformed targets: expected a comma and a space behind the ids",
        );
        check_error(
            "u 1:12, x",
            "malformed targets: expected a comma and a space behind the ids",
        );
        check_error("u 0:, x", "malformed targets: empty");
        check_error("u 2:1a, x", "malformed targets: unexpected byte 0x61 at 1");
        check_error("u 7:1 2 3 4, x", "malformed targets: more than 3 items");
        check_error(
            "u 0000000001:1, x",
            "malformed targets: unexpected byte 0x31 at 9",
        );
        check_error(
            "u 10:4294967296, x",
            "malformed targets: a number out of range",
        );
    }

    #[test]
    fn a_command_is_read_whatever_its_values() {
        let ctl = |keep_alive, credits, cancel| {
            Ok(Extended::Ctl {
                keep_alive,
                credits,
                cancel,
                flow: None,
            })
        };
        assert_eq!(
            decode_extended(b"28:3:ctl,18:10:keep-alive,1:1#}]"),
            ctl(true, None, false)
        );
        assert_eq!(
            decode_extended(b"26:3:ctl,16:6:cancel,4:true!}]"),
            ctl(false, None, true)
        );
        assert_eq!(
            decode_extended(b"27:3:ctl,17:7:credits,4:1000#}]"),
            ctl(false, Some(1000), false)
        );
        assert_eq!(
            decode_extended(b"25:3:ctl,15:7:credits,2:10,}]"),
            ctl(false, None, false)
        );
        assert_eq!(decode_extended(b"9:3:ctl,0:}]"), ctl(false, None, false));
        assert_eq!(
            decode_extended(b"24:3:ctl,14:4:flow,4:4096#}]"),
            Ok(Extended::Ctl {
                keep_alive: false,
                credits: None,
                cancel: false,
                flow: Some(Flow {
                    window: 4096,
                    sent: 0
                }),
            })
        );
        assert_eq!(
            decode_extended(b"22:3:ctl,12:4:flow,2:-1#}]"),
            ctl(false, None, false)
        );
    }

    #[test]
    fn a_handler_that_asks_for_no_more_is_told_from_one_that_replies() {
        let mut message = Vec::new();
        encode_drain(b"me-1", "0123456789abcdef0123456789abcdef", &mut message);
        let expect = "me-1 2:X , 44:5:drain,32:0123456789abcdef0123456789abcdef,]";
        assert_eq!(String::from_utf8_lossy(&message), expect);
        assert_eq!(
            decode_drain(&message),
            Some(&b"0123456789abcdef0123456789abcdef"[..])
        );
        // For a front that does not know it, it is no reply.
        check_error(&message, "malformed targets: empty");
        for other in [
            "",
            "me",
            "me 2:X , ",
            "me 2:X , 13:5:other,3:abc,]",
            "me 3:X 1, 13:5:drain,3:abc,]",
            "me 1:1, 2:X , 13:5:drain,3:abc,]",
            "me 2:X , 13:5:drain,3:abc#]",
        ] {
            assert_eq!(decode_drain(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_broker_says_what_it_has_of_before() {
        let token = "0123456789abcdef0123456789abcdef";
        for ids in [&[][..], &[7], &[0, 17, u32::MAX]] {
            let mut message = Vec::new();
            encode_has(b"me", token, ids.iter().copied().map(ConnId), &mut message);
            let (said, has) = decode_has(&message).unwrap();
            assert_eq!(said, token.as_bytes());
            assert_eq!(has.map(|id| id.0).collect::<Vec<_>>(), ids);
            assert_eq!(decode_drain(&message), None);
        }
        let mut message = Vec::new();
        encode_drain(b"me", token, &mut message);
        assert!(decode_has(&message).is_none());
        assert!(decode_has(b"me 1:1, hello").is_none());
        let rubbish = b"me 2:X , 19:3:has,9:T 1 x -3 8,]";
        let ids = decode_has(rubbish).map(|(_, ids)| ids.collect::<Vec<_>>());
        assert_eq!(ids.unwrap_or_default(), []);
    }

    #[test]
    fn other_keys_are_handed_on_and_a_ctl_without_dict_is_one() {
        let key = &b"nope"[..];
        assert_eq!(
            decode_extended(b"13:4:nope,3:abc,]"),
            Ok(Extended::Other {
                key,
                value: Value::from("abc")
            })
        );
        let key = &b"ctl"[..];
        assert_eq!(
            decode_extended(b"9:3:ctl,0:~]"),
            Ok(Extended::Other {
                key,
                value: Value::Null
            })
        );
    }

    #[test]
    fn what_is_no_list_of_key_and_value_is_an_error() {
        for bad in [
            "",
            "hello",
            "0:~",
            "6:3:ctl,]",
            "0:]",
            "9:0:~3:abc,]",
            "12:3:ctl,0:}0:~]",
            "9:3:ctl,0:}]x",
            "9:3:ctl,0:",
        ] {
            assert_eq!(
                decode_extended(bad.as_bytes()).unwrap_err().field,
                "control",
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(
            sender in "[A-Za-z0-9-]{1,40}",
            targets in proptest::collection::vec(any::<u32>().prop_map(ConnId), 1..=TARGETS_MAX),
            payload in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut message = Vec::new();
            encode(sender.as_bytes(), &targets, &payload, &mut message);
            let reply = decode(&message, TARGETS_MAX).unwrap();
            prop_assert_eq!(reply.sender, sender.as_bytes());
            prop_assert_eq!(reply.targets.len(), targets.len());
            prop_assert_eq!(reply.targets.collect::<Vec<_>>(), targets);
            prop_assert!(!reply.extended);
            prop_assert_eq!(&message[reply.payload], &payload[..]);
        }

        #[test]
        fn decoding_undoes_encoding_of_commands(keep_alive: bool, credits: Option<i64>, cancel: bool, flow: Option<(u32, u32)>, id: u32) {
            let flow = flow.map(|(window, sent)| Flow { window: window.into(), sent: sent.into() });
            let control = Extended::Ctl { keep_alive, credits, cancel, flow };
            let mut message = Vec::new();
            encode_extended(b"u", &[ConnId(id)], &control, &mut message);
            let reply = decode(&message, 1).unwrap();
            prop_assert!(reply.extended);
            prop_assert!(reply.targets.eq([ConnId(id)]));
            prop_assert_eq!(decode_extended(&message[reply.payload]), Ok(control));
        }

        #[test]
        fn random_bytes_never_panic(message in "[u]? ?[0-9X:, ]{0,30}", bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            for message in [message.as_bytes(), &bytes] {
                if let Ok(reply) = decode(message, TARGETS_MAX) {
                    prop_assert_eq!(reply.targets.len(), reply.targets.clone().count());
                    drop(decode_extended(&message[reply.payload]));
                }
                drop(decode_extended(message));
            }
        }
    }
}
