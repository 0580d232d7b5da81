//! The opening handshake (RFC 6455 4): whether a request asks for WebSocket, and what is to be said to it. The 101 itself is the
//! handler's to write; it gets the value for Sec-WebSocket-Accept.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

use super::deflate::{self, Agreement};
use crate::http1::{Version, fields};

/// What is put behind the key before it is hashed (RFC 6455 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The length of a Sec-WebSocket-Accept value.
pub const ACCEPT_BYTES: usize = 28;

/// The only version there is (RFC 6455 4.1).
pub const VERSION: &str = "13";

/// What a request is, as far as WebSocket is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// An ordinary request.
    No,
    /// A sound handshake.
    Yes(Handshake),
    /// A request for WebSocket that cannot be met.
    Refused(Refusal),
}

/// A sound handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// The value for Sec-WebSocket-Accept: ASCII.
    pub accept: [u8; ACCEPT_BYTES],
    /// What could be agreed upon of the client's offers to compress; whether it is, is the caller's choice.
    pub deflate: Option<Agreement>,
}

/// Why a handshake cannot be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No Sec-WebSocket-Key, more than one, or one that is not 16 bytes in base64 (RFC 6455 4.2.1).
    #[error("the Sec-WebSocket-Key is missing or malformed")]
    Key,
    /// Sec-WebSocket-Version is missing, repeated or not 13 (RFC 6455 4.2.2).
    #[error("the Sec-WebSocket-Version is not 13")]
    Version,
    /// The request has a body: what follows it could be taken for frames or for content.
    #[error("a handshake has no body")]
    Body,
}

impl Refusal {
    /// The status to answer with. 426 goes with `Sec-WebSocket-Version: 13` (RFC 6455 4.4) and with `Upgrade: websocket` (RFC 9110
    /// 15.5.22).
    pub const fn status(self) -> u16 {
        match self {
            Self::Version => 426,
            Self::Key | Self::Body => 400,
        }
    }
}

/// Judges a request head by its method, its version, whether it has a body, and its field lines.
///
/// Mongrel2 asks for `Upgrade: websocket` and `upgrade` in Connection, and so do we; where one of them is missing, or the method is
/// not GET, or the version not 1.1, it is an ordinary request, and Upgrade is ignored as RFC 9110 7.8 allows. What names them
/// and is no sound handshake otherwise is refused, where Mongrel2 takes it for an ordinary request or does not look.
pub fn upgrade<'a>(
    method: &[u8],
    version: Version,
    has_body: bool,
    fields: &(impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone),
) -> Upgrade {
    if method != b"GET" || version != Version::Http11 {
        return Upgrade::No;
    }
    let all = |wanted: &'static [u8]| {
        fields
            .clone()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value)
    };
    let mut protocols = all(b"upgrade");
    let (Some(protocol), None) = (protocols.next(), protocols.next()) else {
        return Upgrade::No;
    };
    if !protocol.eq_ignore_ascii_case(b"websocket")
        || !all(b"connection").any(|value| fields::has_token(value, b"upgrade"))
    {
        return Upgrade::No;
    }
    if has_body {
        return Upgrade::Refused(Refusal::Body);
    }
    let mut versions = all(b"sec-websocket-version");
    let (Some(b"13"), None) = (versions.next(), versions.next()) else {
        return Upgrade::Refused(Refusal::Version);
    };
    let mut keys = all(b"sec-websocket-key");
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Upgrade::Refused(Refusal::Key);
    };
    if !is_key(key) {
        return Upgrade::Refused(Refusal::Key);
    }
    Upgrade::Yes(Handshake {
        accept: accept(key),
        deflate: deflate::negotiate(all(b"sec-websocket-extensions")),
    })
}

/// The value for Sec-WebSocket-Accept that belongs to a key (RFC 6455 4.2.2).
pub fn accept(key: &[u8]) -> [u8; ACCEPT_BYTES] {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut accept = [0; ACCEPT_BYTES];
    let written = STANDARD.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(ACCEPT_BYTES), "20 bytes are 28 in base64");
    accept
}

/// Whether this is 16 bytes in base64.
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'+' || *byte == b'/';
    matches!(key.split_at_checked(22), Some((digits, b"==")) if digits.iter().all(is_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const SOUND: [(&str, &str); 5] = [
        ("Host", "a"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
    ];

    fn judge(fields: &[(&str, &str)]) -> Upgrade {
        let fields = fields
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        upgrade(b"GET", Version::Http11, false, &fields)
    }

    /// A sound handshake with one field replaced.
    fn with(name: &str, value: &str) -> Upgrade {
        let fields = SOUND.map(|(n, v)| if n == name { (n, value) } else { (n, v) });
        judge(&fields)
    }

    fn without(name: &str) -> Upgrade {
        judge(
            &SOUND
                .iter()
                .copied()
                .filter(|(n, _)| *n != name)
                .collect::<Vec<_>>(),
        )
    }

    fn and(name: &str, value: &str) -> Upgrade {
        judge(&[&SOUND[..], &[(name, value)]].concat())
    }

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        assert_eq!(&accept(KEY.as_bytes()), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_sound_handshake_is_one_in_any_case() {
        let Upgrade::Yes(handshake) = judge(&SOUND) else {
            panic!("refused");
        };
        assert_eq!(&handshake.accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(handshake.deflate, None);
        for (name, value) in [
            ("Upgrade", "WebSocket"),
            ("Connection", "keep-alive, uPgrade"),
            ("Sec-WebSocket-Key", "++//AAAAAAAAAAAAAAAAAB=="),
        ] {
            assert!(
                matches!(with(name, value), Upgrade::Yes(_)),
                "{name}: {value}"
            );
        }
        assert!(matches!(and("Connection", "keep-alive"), Upgrade::Yes(_)));
        assert!(matches!(and("Origin", "http://evil"), Upgrade::Yes(_)));
    }

    #[test]
    fn what_does_not_ask_for_websocket_is_an_ordinary_request() {
        for upgrade in [
            without("Upgrade"),
            without("Connection"),
            with("Upgrade", "foo"),
            with("Upgrade", "h2c, websocket"),
            with("Connection", "close"),
            with("Connection", "upgraded"),
            and("Upgrade", "h2c"),
        ] {
            assert_eq!(upgrade, Upgrade::No);
        }
        let fields = SOUND
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        assert_eq!(
            upgrade(b"POST", Version::Http11, false, &fields),
            Upgrade::No
        );
        assert_eq!(
            upgrade(b"GET", Version::Http10, false, &fields),
            Upgrade::No
        );
        assert_eq!(
            upgrade(b"GET", Version::Http11, true, &fields),
            Upgrade::Refused(Refusal::Body)
        );
    }

    #[test]
    fn what_asks_for_it_badly_is_refused() {
        for (upgrade, refusal) in [
            (without("Sec-WebSocket-Key"), Refusal::Key),
            (with("Sec-WebSocket-Key", ""), Refusal::Key),
            (with("Sec-WebSocket-Key", "c2hvcnQ="), Refusal::Key),
            (
                with("Sec-WebSocket-Key", "************************"),
                Refusal::Key,
            ),
            (
                with("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAAAA"),
                Refusal::Key,
            ),
            (and("Sec-WebSocket-Key", KEY), Refusal::Key),
            (without("Sec-WebSocket-Version"), Refusal::Version),
            (with("Sec-WebSocket-Version", "8"), Refusal::Version),
            (with("Sec-WebSocket-Version", "99"), Refusal::Version),
            (and("Sec-WebSocket-Version", "13"), Refusal::Version),
        ] {
            assert_eq!(upgrade, Upgrade::Refused(refusal));
        }
        assert_eq!(
            (Refusal::Key.status(), Refusal::Version.status()),
            (400, 426)
        );
    }

    #[test]
    fn offers_to_compress_that_cannot_be_met_are_passed_over() {
        let offer = |value| match and("Sec-WebSocket-Extensions", value) {
            Upgrade::Yes(handshake) => handshake.deflate.map(Agreement::text),
            other => panic!("{other:?}"),
        };
        let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        for value in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "Permessage-Deflate;client_max_window_bits = \"10\" ; server_no_context_takeover",
            "foo; bar=1, permessage-deflate",
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
        ] {
            assert_eq!(offer(value), Some(plain), "{value}");
        }
        assert_eq!(
            offer("permessage-deflate; server_max_window_bits=15"),
            Some(
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15"
            )
        );
        for value in [
            "",
            "foo; bar=1",
            "permessage-deflate; server_max_window_bits=99",
            "permessage-deflate; server_max_window_bits=9",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=08",
            "permessage-deflate; client_max_window_bits; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; unknown",
            "permessage-deflate;",
            "x-webkit-deflate-frame",
        ] {
            assert_eq!(offer(value), None, "{value}");
        }
    }
}
