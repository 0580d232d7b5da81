//! Message sockets, as Flash once spoke them: `@path {json}` and `<name …>`, each ended by a NUL, mixed with HTTP on one port.
//!
//! Only where a message begins and ends and what it is called (reference: Flash sockets); what is inside is the handler's. No
//! I/O here: the connection does that (`connection::messages`).

use crate::http1::target;
use crate::wire::request::Language;

/// What is said to `<policy-file-request/>`: anybody may connect to any port. The NUL belongs to it.
pub(super) const POLICY: &[u8] = b"<?xml version=\"1.0\"?><!DOCTYPE cross-domain-policy SYSTEM \"http://www.macromedia.com/xml/dtds/cross-domain-policy.dtd\"><cross-domain-policy> <allow-access-from domain=\"*\" to-ports=\"*\" /></cross-domain-policy>\0";

/// The path of a request for it.
const POLICY_PATH: &[u8] = b"<policy-file-request";

/// A whole message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) language: Language,
    /// With its `@` or `<`: what it is routed by.
    pub(super) path: &'a [u8],
    /// The JSON object, or the whole XML text; without the NUL.
    pub(super) body: &'a [u8],
    /// Bytes that it takes up, with the NUL.
    pub(super) len: usize,
}

/// What a look at the bytes has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// Not whole yet, and nothing in it is wrong so far.
    Partial,
    /// It is no message and will not become one.
    Refused,
    /// A message.
    Whole(Message<'a>),
}

/// Whether a message of a socket begins here, and no HTTP request.
pub(super) fn begins(data: &[u8]) -> bool {
    matches!(data.first(), Some(b'@' | b'<'))
}

/// Looks for a message at the start of `data`. `searched` remembers how far its end was looked for: begin with 0, and call again
/// with the same bytes and more behind them.
pub(super) fn parse<'a>(data: &'a [u8], searched: &mut usize, bytes_max: usize) -> Parsed<'a> {
    let parsed = match data.first() {
        Some(b'@') => json(data, searched),
        Some(b'<') => xml(data, searched),
        _ => Parsed::Refused,
    };
    match parsed {
        Parsed::Partial if data.len() >= bytes_max => Parsed::Refused,
        Parsed::Whole(message) if message.len > bytes_max => Parsed::Refused,
        parsed => parsed,
    }
}

fn json<'a>(data: &'a [u8], searched: &mut usize) -> Parsed<'a> {
    let name = data.get(1..).unwrap_or_default();
    let end = name.iter().position(|byte| !is_path_byte(*byte));
    let Some(end) = end else {
        return Parsed::Partial;
    };
    let (Some((path, behind)), Some(first)) = (data.split_at_checked(1 + end), name.first()) else {
        return Parsed::Refused;
    };
    if end == 0 || *first == b'/' {
        return Parsed::Refused;
    }
    match behind {
        [b' '] => Parsed::Partial,
        [b' ', b'{', ..] => whole(data, path, path.len() + 1, Language::Json, searched),
        _ => Parsed::Refused,
    }
}

fn xml<'a>(data: &'a [u8], searched: &mut usize) -> Parsed<'a> {
    let name = data.get(1..).unwrap_or_default();
    let is_name_byte = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'.' || *byte == b'-';
    let Some(end) = name.iter().position(|byte| !is_name_byte(byte)) else {
        return Parsed::Partial;
    };
    let (Some(path), Some(next)) = (data.get(..1 + end), name.get(end)) else {
        return Parsed::Refused;
    };
    if end == 0 || !(matches!(next, b'/' | b'>') || next.is_ascii_whitespace()) {
        return Parsed::Refused;
    }
    whole(data, path, 0, Language::Xml, searched)
}

/// The message whose body begins at `start`, when its end is here: the closing mark and a NUL.
fn whole<'a>(
    data: &'a [u8],
    path: &'a [u8],
    start: usize,
    language: Language,
    searched: &mut usize,
) -> Parsed<'a> {
    let mark = match language {
        Language::Json => b'}',
        Language::Xml => b'>',
    };
    let mut from = start.max(*searched);
    while let Some(found) = data.get(from..).and_then(|rest| memchr::memchr(0, rest)) {
        let nul = from + found;
        if let Some(body) = data.get(start..nul)
            && body.last() == Some(&mark)
        {
            return Parsed::Whole(Message {
                language,
                path,
                body,
                len: nul + 1,
            });
        }
        from = nul + 1;
    }
    *searched = data.len();
    Parsed::Partial
}

/// What may stand in a path (RFC 3986 3.3). No query: `?` is refused, as Mongrel2 does.
fn is_path_byte(byte: u8) -> bool {
    target::is_name_byte(byte) || matches!(byte, b':' | b'@' | b'/' | b'%')
}

impl Message<'_> {
    /// METHOD.
    pub(super) fn method(&self) -> &'static [u8] {
        match self.language {
            Language::Json => b"JSON",
            Language::Xml => b"XML",
        }
    }

    /// Whether it only says that the client is alive: `{"type":"ping"}` and nothing else, to a path of lower-case letters.
    pub(super) fn is_ping(&self) -> bool {
        let plain = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'/';
        self.path
            .strip_prefix(b"@")
            .is_some_and(|path| path.iter().all(plain))
            && self
                .body
                .strip_prefix(b"{\"type\":")
                .is_some_and(|value| value.trim_ascii_start() == b"\"ping\"}")
    }

    /// Whether it asks for [`POLICY`].
    pub(super) fn asks_for_policy(&self) -> bool {
        self.path == POLICY_PATH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(data: &[u8]) -> Parsed<'_> {
        parse(data, &mut 0, 4096)
    }

    #[track_caller]
    fn message(data: &[u8]) -> Message<'_> {
        match look(data) {
            Parsed::Whole(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_ends_where_its_closing_mark_meets_a_nul() {
        let json = message(b"@chat/room {\"a\":\"\0}\"}\0@next");
        assert_eq!(json.path, b"@chat/room");
        assert_eq!(json.body, b"{\"a\":\"\0}\"}");
        assert_eq!(json.len, 22);
        let xml = message(b"<test a=\"1\"><b/></test>\0");
        assert_eq!((xml.path, xml.body.len()), (&b"<test"[..], 23));
        assert_eq!(message(b"@a {}\0").body, b"{}");
        assert_eq!(message(b"<a/>\0").path, b"<a");
        assert_eq!(message(b"<a>\0").path, b"<a");
    }

    #[test]
    fn what_cannot_become_a_message_is_refused_at_once() {
        for bad in [
            "@ {}", "@a  {", "@a [", "@a?b {", "@/a {", "@a\0", "< a>", "<>", "<a?", "<a\0",
            "@a\r\n",
        ] {
            assert_eq!(look(bad.as_bytes()), Parsed::Refused, "{bad:?}");
        }
    }

    #[test]
    fn a_message_in_pieces_is_a_value_and_comes_out_the_same() {
        for text in [&b"@chat {\"a\":{\"b\":1}}\0"[..], b"<x y=\"}\">\n</x>\0"] {
            let mut searched = 0;
            for end in 1..text.len() {
                assert_eq!(
                    parse(&text[..end], &mut searched, 4096),
                    Parsed::Partial,
                    "{end}"
                );
            }
            assert_eq!(
                parse(text, &mut searched, 4096),
                Parsed::Whole(message(text))
            );
        }
    }

    #[test]
    fn a_message_above_the_bound_is_refused() {
        let text = b"@a {\"b\":\"cccc\"}\0";
        assert_eq!(parse(text, &mut 0, text.len() - 1), Parsed::Refused);
        assert!(matches!(parse(text, &mut 0, text.len()), Parsed::Whole(_)));
        assert_eq!(parse(&text[..8], &mut 0, 8), Parsed::Refused);
    }

    #[test]
    fn a_ping_is_nothing_but_a_ping() {
        assert!(message(b"@chat/x {\"type\":\"ping\"}\0").is_ping());
        assert!(message(b"@chat {\"type\": \t \"ping\"}\0").is_ping());
        for other in [
            &b"@chat {\"type\":\"ping\",\"x\":1}\0"[..],
            b"@Chat {\"type\":\"ping\"}\0",
            b"@chat { \"type\":\"ping\"}\0",
            b"<chat {\"type\":\"ping\"}>\0",
        ] {
            let other = String::from_utf8_lossy(other).into_owned();
            if let Parsed::Whole(message) = look(other.as_bytes()) {
                assert!(!message.is_ping(), "{other}");
            }
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut seed = 1_u32;
        for _ in 0..2000 {
            let mut bytes = vec![if seed & 1 == 0 { b'@' } else { b'<' }];
            for _ in 0..seed % 23 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bytes.push(b"a {}>\0/<@\xff"[(seed >> 16) as usize % 10]);
            }
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (mut searched, mut cut) = (0, 0);
            assert_ne!(format!("{:?}", look(&bytes)), "");
            while cut < bytes.len() {
                cut += 1;
                drop(format!("{:?}", parse(&bytes[..cut], &mut searched, 16)));
            }
        }
    }
}
