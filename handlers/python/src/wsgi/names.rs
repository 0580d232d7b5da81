//! What headers are called in an environ. Pure, but that common names are Python strings that exist once.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// Headers that say something about the message as the server received it, that are the server's own, or that programs which are started
/// with the environ would take for a setting (`HTTP_PROXY`).
const NOT_PASSED: &[&[u8]] = &[
    b"proxy",
    b"x-mongrel2-upload-done",
    b"x-mongrel2-upload-start",
];

/// Names whose values are never kept from one request to the next.
const SECRET: &[&[u8]] = &[b"authorization", b"cookie", b"proxy-authorization"];

/// What a header is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// A header of the client's.
    Header,
    /// The same, with a value that is not to be kept.
    Secret,
    Host,
    Method,
    Version,
    Uri,
    Query,
    Pattern,
    Scheme,
    /// Said by the server, under the same name.
    Own,
    Nothing,
}

/// What a header of a message means. Those of clients are in lower case, those of the server in upper case, so nobody takes one for
/// the other. Names with `_` are left out: they would be taken for those with `-`.
pub(super) fn meaning(name: &[u8]) -> Means {
    match name {
        b"host" => Means::Host,
        b"METHOD" => Means::Method,
        b"VERSION" => Means::Version,
        b"URI" => Means::Uri,
        b"QUERY" => Means::Query,
        b"PATTERN" => Means::Pattern,
        b"URL_SCHEME" => Means::Scheme,
        b"REMOTE_ADDR" | b"REMOTE_PORT" | b"PEER_CERT_SHA1" => Means::Own,
        _ if NOT_PASSED.contains(&name)
            || !name.iter().copied().all(is_plain)
            || name.is_empty() =>
        {
            Means::Nothing
        }
        _ if SECRET.contains(&name) => Means::Secret,
        _ => Means::Header,
    }
}

/// A character of a token (RFC 9110 5.6.2) that stays itself.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-!#$%&'*+.^`|~".contains(&byte)
}

macro_rules! common {
    ($py:expr, $name:expr, $($header:literal => $key:literal),* $(,)?) => {
        match $name {
            $($header => Some(intern!($py, $key)),)*
            _ => None,
        }
    };
}

/// The key of a header. Names that clients invent are not made to stay, or they would fill the memory.
pub(super) fn key<'py>(py: Python<'py>, name: &[u8]) -> Bound<'py, PyString> {
    let common = common!(py, name,
        b"accept" => "HTTP_ACCEPT",
        b"accept-charset" => "HTTP_ACCEPT_CHARSET",
        b"accept-encoding" => "HTTP_ACCEPT_ENCODING",
        b"accept-language" => "HTTP_ACCEPT_LANGUAGE",
        b"access-control-request-headers" => "HTTP_ACCESS_CONTROL_REQUEST_HEADERS",
        b"access-control-request-method" => "HTTP_ACCESS_CONTROL_REQUEST_METHOD",
        b"authorization" => "HTTP_AUTHORIZATION",
        b"cache-control" => "HTTP_CACHE_CONTROL",
        b"connection" => "HTTP_CONNECTION",
        b"content-length" => "CONTENT_LENGTH",
        b"content-type" => "CONTENT_TYPE",
        b"cookie" => "HTTP_COOKIE",
        b"dnt" => "HTTP_DNT",
        b"expect" => "HTTP_EXPECT",
        b"forwarded" => "HTTP_FORWARDED",
        b"host" => "HTTP_HOST",
        b"if-match" => "HTTP_IF_MATCH",
        b"if-modified-since" => "HTTP_IF_MODIFIED_SINCE",
        b"if-none-match" => "HTTP_IF_NONE_MATCH",
        b"if-range" => "HTTP_IF_RANGE",
        b"if-unmodified-since" => "HTTP_IF_UNMODIFIED_SINCE",
        b"origin" => "HTTP_ORIGIN",
        b"pragma" => "HTTP_PRAGMA",
        b"range" => "HTTP_RANGE",
        b"referer" => "HTTP_REFERER",
        b"sec-ch-ua" => "HTTP_SEC_CH_UA",
        b"sec-ch-ua-mobile" => "HTTP_SEC_CH_UA_MOBILE",
        b"sec-ch-ua-platform" => "HTTP_SEC_CH_UA_PLATFORM",
        b"sec-fetch-dest" => "HTTP_SEC_FETCH_DEST",
        b"sec-fetch-mode" => "HTTP_SEC_FETCH_MODE",
        b"sec-fetch-site" => "HTTP_SEC_FETCH_SITE",
        b"sec-fetch-user" => "HTTP_SEC_FETCH_USER",
        b"te" => "HTTP_TE",
        b"transfer-encoding" => "HTTP_TRANSFER_ENCODING",
        b"upgrade" => "HTTP_UPGRADE",
        b"upgrade-insecure-requests" => "HTTP_UPGRADE_INSECURE_REQUESTS",
        b"user-agent" => "HTTP_USER_AGENT",
        b"x-csrftoken" => "HTTP_X_CSRFTOKEN",
        b"x-forwarded-for" => "HTTP_X_FORWARDED_FOR",
        b"x-forwarded-host" => "HTTP_X_FORWARDED_HOST",
        b"x-forwarded-proto" => "HTTP_X_FORWARDED_PROTO",
        b"x-real-ip" => "HTTP_X_REAL_IP",
        b"x-request-id" => "HTTP_X_REQUEST_ID",
        b"x-requested-with" => "HTTP_X_REQUESTED_WITH",
        b"PEER_CERT_SHA1" => "PEER_CERT_SHA1",
        b"REMOTE_ADDR" => "REMOTE_ADDR",
        b"REMOTE_PORT" => "REMOTE_PORT",
    );
    if let Some(key) = common {
        return key.clone();
    }
    let upper = name.iter().map(|byte| match byte {
        b'-' => '_',
        byte => char::from(byte.to_ascii_uppercase()),
    });
    let key: String = "HTTP_".chars().chain(upper).collect();
    PyString::new(py, &key)
}

/// Bytes as WSGI has them in strings (PEP 3333, "A Note on String Types"): each is the character of its number.
pub(super) fn latin1<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyString> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => PyString::new(py, text),
        _ => {
            let text: String = bytes.iter().copied().map(char::from).collect();
            PyString::new(py, &text)
        }
    }
}

/// Resolves percent-escapes, once; a `%` without two digits is itself.
pub(super) fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| {
        let digit = char::from(byte).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let mut value = byte;
        if byte == b'%'
            && let [high, low, after @ ..] = after
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            value = high * 16 + low;
            rest = after;
        }
        decoded.push(value);
    }
    decoded
}

/// Where an application is and what of a path is below it, both as they were received. The place is the first `place` bytes, or else
/// the route's: its pattern up to the first `(`, without slashes at its end. What does not begin with that, name by name, is all
/// below nothing.
pub(super) fn split<'a>(
    path: &'a [u8],
    place: Option<usize>,
    pattern: &'a [u8],
) -> (&'a [u8], &'a [u8]) {
    if let Some(split) = place.and_then(|place| path.split_at_checked(place)) {
        return split;
    }
    let place = pattern.split(|&byte| byte == b'(').next();
    let place = place.unwrap_or_default();
    let end = place.iter().rposition(|&byte| byte != b'/');
    let place = place
        .get(..end.map_or(0, |end| end + 1))
        .unwrap_or_default();
    match path.strip_prefix(place) {
        Some(below) if below.is_empty() || below.starts_with(b"/") => (place, below),
        _ => (b"", path),
    }
}

/// Name and port of a `Host`; brackets stay.
pub(super) fn split_host(host: &[u8]) -> (&[u8], Option<&[u8]>) {
    let colon = host.iter().rposition(|&byte| byte == b':');
    match colon.and_then(|at| Some((host.get(..at)?, host.get(at + 1..)?))) {
        Some((name, port)) if port.iter().all(u8::is_ascii_digit) => {
            (name, Some(port).filter(|port| !port.is_empty()))
        }
        _ => (host, None),
    }
}
