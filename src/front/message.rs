//! A parsed request head becomes the message for a handler: one buffer, no map in between.

use std::io::Write as _;
use std::net::IpAddr;

use crate::http1::{Head, Version};
use crate::wire::Protocol;
use crate::wire::request::{self, Field, Outgoing};

/// What does not come from the head.
pub(super) struct Context<'a> {
    pub(super) protocol: Protocol,
    /// The route's text as configured.
    pub(super) pattern: &'a str,
    pub(super) remote: IpAddr,
    /// `no_clobber_xff`: the client's own X-Forwarded-For stands, and none is added.
    pub(super) keep_forwarded_for: bool,
    /// Flow control, and the first request of its connection: how many bytes the handler may have outstanding.
    pub(super) credits: Option<&'a str>,
    pub(super) kind: Kind,
    /// Further keys of the server, and their values; three at most.
    pub(super) extra: &'a [(&'static str, &'a [u8])],
    pub(super) names_max: usize,
    pub(super) values_max: usize,
}

/// What a message is to its handler, beyond the request head that it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request itself.
    Request,
    /// A handshake for WebSocket.
    Handshake,
    /// A frame of the WebSocket that the head has opened; its FLAGS are [`FLAGS`] and to be replaced.
    Frame,
}

/// Where the two digits of FLAGS are in what was written for [`Kind::Frame`].
pub(super) fn flags_at(head: &[u8], protocol: Protocol) -> Option<usize> {
    let pattern: &[u8] = match protocol {
        Protocol::Json => b"\"FLAGS\":\"0x81\"",
        Protocol::Tnetstring => b"5:FLAGS,4:0x81,",
    };
    // The last, as whatever a client sends comes before it.
    head.windows(pattern.len())
        .rposition(|window| window == pattern)
        .map(|at| at + pattern.len() - 3)
}

/// Room for the message without its body: the dictionary repeats the head with some quotes and brackets.
const OVERHEAD: usize = 384;

/// Most keys that a [`Context`] may add: all of the server's own must fit.
const EXTRA_MAX: usize = 3;

/// Writes `PATH SP HEADERS` for a head, with these of its fields, into a new buffer with room for `body` bytes more.
pub(super) fn encode(
    head: &Head<'_, '_, Field<'_>>,
    fields: &[Field<'_>],
    context: &Context<'_>,
    body: usize,
) -> Vec<u8> {
    let mut address = AddressText { bytes: [0; 48] };
    let address = address.write(context.remote);
    let target = &head.target;
    let mut server: [(&str, &[u8]); 16] = [("", b""); 16];
    let mut count = 0;
    let mut add = |key: &'static str, value| {
        server[count] = (key, value);
        count += 1;
    };
    add("PATH", target.path);
    if !context.keep_forwarded_for {
        add("x-forwarded-for", address);
    }
    if let Some(credits) = context.credits {
        add("DOWNLOAD_CREDITS", credits.as_bytes());
    }
    for (key, value) in context.extra.iter().take(EXTRA_MAX) {
        add(key, value);
    }
    if let Some(authority) = target.authority {
        // The host of an absolute target overrides the Host line (RFC 9112 3.2.2), for handlers as for routing.
        add("host", authority);
    }
    add(
        "METHOD",
        match context.kind {
            Kind::Request => head.method,
            Kind::Handshake => b"WEBSOCKET_HANDSHAKE",
            Kind::Frame => b"WEBSOCKET",
        },
    );
    add("VERSION", version(head.version).as_bytes());
    add("URI", &target.uri);
    if let Some(query) = target.query {
        add("QUERY", query);
    }
    if let Some(fragment) = target.fragment {
        add("FRAGMENT", fragment);
    }
    add("PATTERN", context.pattern.as_bytes());
    add("URL_SCHEME", b"http");
    add("REMOTE_ADDR", address);
    if context.kind == Kind::Frame {
        add("FLAGS", b"0x81");
    }

    let mut out = Vec::with_capacity(head.len + target.path.len() + OVERHEAD + body);
    Outgoing {
        protocol: context.protocol,
        path: target.path,
        fields,
        server: &server[..count],
        names_max: context.names_max,
        values_max: context.values_max,
    }
    .encode_head(&mut out);
    out
}

/// Writes `PATH SP HEADERS` and the body of a message from a message socket.
pub(super) fn encode_message(
    path: &[u8],
    method: &[u8],
    content: &[u8],
    context: &Context<'_>,
) -> Vec<u8> {
    let mut address = AddressText { bytes: [0; 48] };
    let address = address.write(context.remote);
    let mut server: [(&str, &[u8]); 8] = [("", b""); 8];
    let mut count = 0;
    let mut add = |key: &'static str, value| {
        server[count] = (key, value);
        count += 1;
    };
    add("PATH", path);
    if !context.keep_forwarded_for {
        add("x-forwarded-for", address);
    }
    if let Some(credits) = context.credits {
        add("DOWNLOAD_CREDITS", credits.as_bytes());
    }
    add("METHOD", method);
    add("PATTERN", context.pattern.as_bytes());
    add("URL_SCHEME", b"http");
    add("REMOTE_ADDR", address);
    let mut out = Vec::with_capacity(path.len() + OVERHEAD + content.len());
    Outgoing {
        protocol: context.protocol,
        path,
        fields: &[],
        server: &server[..count],
        names_max: context.names_max,
        values_max: context.values_max,
    }
    .encode_head(&mut out);
    request::encode_body(content, &mut out);
    out
}

/// An HTTP version as it stands in messages and logs.
pub(super) fn version(version: Version) -> &'static str {
    match version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
    }
}

/// An address as text, on the stack.
struct AddressText {
    bytes: [u8; 48],
}

impl AddressText {
    fn write(&mut self, address: IpAddr) -> &[u8] {
        let mut rest: &mut [u8] = &mut self.bytes;
        // 45 bytes are the longest form of an IPv6 address.
        let written = write!(rest, "{}", address.to_canonical());
        let left = rest.len();
        debug_assert!(written.is_ok());
        &self.bytes[..48 - left]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_whatever_a_client_has_put_before_them() {
        for (protocol, forged) in [
            (
                Protocol::Json,
                &b"{\"a\":\"5:FLAGS,4:0x81,\",\"FLAGS\":\"0x81\"}"[..],
            ),
            (
                Protocol::Tnetstring,
                b"14:\"FLAGS\":\"0x81\",15:5:FLAGS,4:0x81,,5:FLAGS,4:0x81,8:PEER,1:x,}",
            ),
        ] {
            let at = flags_at(forged, protocol).expect("FLAGS");
            assert_eq!(&forged[at - 2..at + 2], b"0x81");
            let last = forged.windows(4).rposition(|window| window == b"0x81");
            assert_eq!(last, Some(at - 2));
        }
    }
}
