//! The PROXY protocol, versions 1 and 2: what a balancer says about its client before the first byte of the client's own.
//!
//! Pure: bytes in, a value out. It follows HAProxy's document `proxy-protocol.txt`. Extensions (TLVs) are skipped, not
//! understood; whether a peer may say such things at all is decided where connections are accepted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest line of version 1, with its CR LF (its document, section 2.1).
pub(super) const LINE_MAX: usize = 107;

/// The first bytes of version 2, up to the length.
pub(super) const START: usize = 16;

/// The longest rest of version 2 that is taken: addresses, and extensions such as a client certificate's name. The field
/// could say 64 KiB; nobody means it.
const REST_MAX: usize = 4096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What such a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// The client's address.
    Client(SocketAddr),
    /// Nothing: the balancer speaks for itself (a health check), or about a client whose address is no internet address.
    Nothing,
}

/// Bytes that are no such header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY protocol header: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// What the beginning of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// Too little to tell.
    Unknown,
    /// Version 1: a line that ends with LF.
    Line,
    /// Version 2: [`START`] bytes, and then the rest.
    Binary,
}

/// Looks at the first bytes of a connection.
pub(super) fn begin(bytes: &[u8]) -> Result<Begin, Malformed> {
    let starts = |with: &[u8]| bytes.iter().zip(with).all(|(one, other)| one == other);
    if starts(SIGNATURE) && bytes.len() >= SIGNATURE.len() {
        Ok(Begin::Binary)
    } else if starts(b"PROXY ") && bytes.len() >= 6 {
        Ok(Begin::Line)
    } else if starts(SIGNATURE) || starts(b"PROXY ") {
        Ok(Begin::Unknown)
    } else {
        Err(Malformed("it begins with something else"))
    }
}

/// Reads a line of version 1, with its CR LF.
pub(super) fn line(line: &[u8]) -> Result<Said, Malformed> {
    let text = line
        .strip_suffix(b"\r\n")
        .and_then(|line| std::str::from_utf8(line).ok())
        .ok_or(Malformed("the line does not end with CR LF"))?;
    let mut words = text.split(' ');
    if words.next() != Some("PROXY") {
        return Err(Malformed("it begins with something else"));
    }
    let is_v4 = match words.next() {
        // What follows is to be ignored (section 2.1).
        Some("UNKNOWN") => return Ok(Said::Nothing),
        Some("TCP4") => true,
        Some("TCP6") => false,
        _ => return Err(Malformed("neither TCP4, TCP6 nor UNKNOWN")),
    };
    let mut address = || {
        let word = words.next()?;
        if is_v4 {
            word.parse().ok().map(IpAddr::V4)
        } else {
            word.parse().ok().map(IpAddr::V6)
        }
    };
    let addresses = address().zip(address());
    let mut port = || {
        let word = words.next()?;
        let plain = word.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| word.parse::<u16>().ok()).flatten()
    };
    let ports = port().zip(port());
    match (addresses, ports, words.next()) {
        (Some((client, _)), Some((port, _)), None) => {
            Ok(Said::Client(SocketAddr::new(client.to_canonical(), port)))
        }
        _ => Err(Malformed("not two addresses and two ports")),
    }
}

/// How many bytes follow the first [`START`] bytes of version 2.
pub(super) fn rest_len(start: &[u8; START]) -> Result<usize, Malformed> {
    let [.., high, low] = *start;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > REST_MAX {
        return Err(Malformed("it is too long"));
    }
    Ok(len)
}

/// Reads version 2: the first bytes and the rest.
pub(super) fn binary(start: &[u8; START], rest: &[u8]) -> Result<Said, Malformed> {
    if !start.starts_with(SIGNATURE) {
        return Err(Malformed("it begins with something else"));
    }
    match start[12] {
        // LOCAL: whatever follows is to be ignored (section 2.2).
        0x20 => return Ok(Said::Nothing),
        0x21 => {}
        _ => return Err(Malformed("neither version 2's PROXY nor its LOCAL")),
    }
    let short = Malformed("the addresses are cut short");
    match start[13] {
        // TCP over IPv4: two addresses, two ports.
        0x11 => {
            let address: [u8; 12] = *rest.first_chunk().ok_or(short)?;
            let [a, b, c, d, _, _, _, _, high, low, _, _] = address;
            let ip = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
            Ok(Said::Client(SocketAddr::new(
                ip,
                u16::from_be_bytes([high, low]),
            )))
        }
        // TCP over IPv6.
        0x21 => {
            let ip: [u8; 16] = *rest.first_chunk().ok_or(short)?;
            let port: [u8; 2] = *rest
                .get(32..36)
                .and_then(<[u8]>::first_chunk)
                .ok_or(short)?;
            let ip = IpAddr::V6(Ipv6Addr::from(ip)).to_canonical();
            Ok(Said::Client(SocketAddr::new(ip, u16::from_be_bytes(port))))
        }
        // Unspecified, datagrams, unix sockets: to be accepted, and nothing is learnt from them.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => Ok(Said::Nothing),
        _ => Err(Malformed("an unknown family of addresses")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "what is compared is a result")]
    fn client(text: &str) -> Result<Said, Malformed> {
        Ok(Said::Client(text.parse().unwrap()))
    }

    #[test]
    fn a_line_tells_the_clients_address() {
        let tcp6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n";
        assert_eq!(
            line(b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"),
            client("192.0.2.1:56324")
        );
        assert_eq!(line(tcp6), client("[2001:db8::1]:56324"));
        assert_eq!(
            line(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"),
            client("192.0.2.1:1")
        );
        assert_eq!(line(b"PROXY UNKNOWN\r\n"), Ok(Said::Nothing));
        assert_eq!(
            line(b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n"),
            Ok(Said::Nothing)
        );
    }

    #[test]
    fn a_line_that_breaks_the_grammar_is_refused() {
        for text in [
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY \r\n",
            "\r\n",
            "",
        ] {
            assert!(line(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    fn start(command: u8, family: u8, len: u16) -> [u8; START] {
        let mut bytes = [0; START];
        bytes[..12].copy_from_slice(SIGNATURE);
        bytes[12] = command;
        bytes[13] = family;
        bytes[14..].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    #[test]
    fn version_2_tells_the_clients_address_whatever_extensions_follow() {
        let rest = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb, 4, 0, 1, 9];
        assert_eq!(
            binary(&start(0x21, 0x11, 12), &rest[..12]),
            client("192.0.2.1:56324")
        );
        assert_eq!(
            binary(&start(0x21, 0x11, 16), &rest),
            client("192.0.2.1:56324")
        );
        let mut rest = [0; 36];
        rest[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        rest[32..34].copy_from_slice(&[0xdc, 4]);
        assert_eq!(
            binary(&start(0x21, 0x21, 36), &rest),
            client("[2001:db8::1]:56324")
        );
        // A health check, whatever it says; a unix socket.
        assert_eq!(binary(&start(0x20, 0x11, 0), b""), Ok(Said::Nothing));
        assert_eq!(
            binary(&start(0x21, 0x31, 216), &[0; 216]),
            Ok(Said::Nothing)
        );
        assert_eq!(binary(&start(0x21, 0x00, 0), b""), Ok(Said::Nothing));
    }

    #[test]
    fn version_2_that_is_cut_short_or_unknown_is_refused() {
        assert!(binary(&start(0x21, 0x11, 11), &[0; 11]).is_err());
        assert!(binary(&start(0x21, 0x21, 35), &[0; 35]).is_err());
        assert!(binary(&start(0x11, 0x11, 12), &[0; 12]).is_err());
        assert!(binary(&start(0x22, 0x11, 12), &[0; 12]).is_err());
        assert!(binary(&start(0x21, 0x77, 12), &[0; 12]).is_err());
        assert_eq!(rest_len(&start(0x21, 0x11, 4096)), Ok(4096));
        assert!(rest_len(&start(0x21, 0x11, 4097)).is_err());
    }

    #[test]
    fn the_version_is_known_from_its_first_bytes_at_every_cut() {
        for (whole, expect, known) in [
            (&start(0x21, 0x11, 12)[..], Begin::Binary, 12),
            (b"PROXY TCP4 ", Begin::Line, 6),
        ] {
            for cut in 1..whole.len() {
                let found = if cut < known { Begin::Unknown } else { expect };
                assert_eq!(begin(&whole[..cut]), Ok(found), "{cut}");
            }
        }
        for other in [
            &b"GET / HTTP/1.1"[..],
            b"\x16\x03\x01",
            b"PROXX",
            b"\r\n\r\nX",
        ] {
            assert!(begin(other).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), head in any::<[u8; 4]>()) {
            let _any = begin(&bytes);
            let _any = line(&bytes);
            let text = [b"PROXY TCP4 ".as_slice(), &bytes, b"\r\n"].concat();
            let _any = line(&text);
            let _any = binary(&start(head[0], head[1], u16::from_be_bytes([head[2], head[3]])), &bytes);
        }
    }
}
