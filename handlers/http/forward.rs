//! What of a request's head a backend gets, and what of its response's head the client gets.
//!
//! Pure: heads in, heads out. What belongs to one hop stays there (RFC 9110 7.6.1), framing is said anew, and what a backend
//! believes about the client is written here, not by the client. Paths are not rewritten, a prefix is put before them at most.

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Uri, request};
use lurcher::handler::Request;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// How this stands in `Via` (RFC 9110 7.6.3).
const VIA: HeaderValue = HeaderValue::from_static("1.1 lurcher");

/// Names that the server makes for handlers, not the client.
const STORED: &[u8] = b"x-mongrel2-upload-";

/// What does not come from the request.
#[derive(Debug)]
pub(super) struct Context {
    /// `Host` for all requests, instead of what the client asked for.
    pub(super) host: Option<HeaderValue>,
    /// The backend as a Host line names it, for clients that name none.
    pub(super) authority: HeaderValue,
    /// Put before every path; empty for none.
    pub(super) prefix: String,
    /// What clients say of where they come from stands, and nothing is added.
    pub(super) keep_forwarded: bool,
}

/// How long the request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// The request has none.
    None,
    /// So many bytes.
    Known(u64),
    /// Nobody knows before its end.
    Chunked,
}

/// A request that cannot be passed on: its method or its target is none.
#[derive(Debug)]
pub(super) struct Refused;

/// Makes the head that is passed on; `upgrade`: it asks for WebSocket.
pub(super) fn request(
    message: &Request,
    context: &Context,
    length: Length,
    upgrade: bool,
) -> Result<request::Parts, Refused> {
    let mut head = http::Request::new(()).into_parts().0;
    head.method = match message.method() {
        _ if upgrade => Method::GET,
        Some(method) => Method::from_bytes(method).map_err(|_| Refused)?,
        None => return Err(Refused),
    };
    if head.method == Method::CONNECT {
        return Err(Refused);
    }
    head.uri = target(message, &context.prefix)?;
    let headers = &message.headers;
    let mut fields = HeaderMap::with_capacity(headers.len() + 4);
    let named: Vec<&[u8]> = headers
        .all("connection")
        .iter()
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.eq_ignore_ascii_case(b"keep-alive"))
        .collect();
    let mut trailers = false;
    for (name, values) in headers.iter() {
        if is_servers_own(name) || (!context.keep_forwarded && tells_origin(name)) {
            continue;
        }
        if name == b"te" {
            trailers = values.iter().any(takes_trailers);
        }
        if is_hop(name) || named.iter().any(|word| word.eq_ignore_ascii_case(name)) {
            continue;
        }
        let Ok(name) = HeaderName::from_bytes(name) else {
            continue;
        };
        for value in values.iter() {
            // Mongrel2 lets control bytes through, which could end the line.
            if let Ok(value) = HeaderValue::from_maybe_shared(headers.share(value)) {
                fields.append(name.clone(), value);
            }
        }
    }
    let host = headers.first("host").filter(|host| !host.is_empty());
    let host = host.and_then(|host| HeaderValue::from_bytes(host).ok());
    let asked = context.host.as_ref().or(host.as_ref());
    fields.insert(header::HOST, asked.unwrap_or(&context.authority).clone());
    if !context.keep_forwarded {
        if let Some(client) = client(message) {
            fields.insert(FORWARDED_FOR, client);
        }
        let https = headers.first("URL_SCHEME") == Some(b"https");
        let scheme = if https { "https" } else { "http" };
        fields.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
        if let Some(host) = host {
            fields.insert(FORWARDED_HOST, host);
        }
    }
    fields.append(header::VIA, VIA);
    if upgrade {
        // What is agreed upon here has to hold on both sides, and the server unpacks messages by itself.
        fields.remove(header::SEC_WEBSOCKET_EXTENSIONS);
        fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    } else if trailers && is_current(message) {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
        fields.insert(header::CONNECTION, HeaderValue::from_static("TE"));
    }
    match length {
        Length::None => {}
        Length::Known(bytes) => {
            fields.insert(header::CONTENT_LENGTH, bytes.into());
        }
        Length::Chunked => {
            let chunked = HeaderValue::from_static("chunked");
            fields.insert(header::TRANSFER_ENCODING, chunked);
        }
    }
    head.headers = fields;
    Ok(head)
}

/// The length of a body that came with the request. A chunked one was decoded by the server; the header still says what it was.
pub(super) fn length(message: &Request) -> Length {
    let said =
        message.headers.contains("content-length") || message.headers.contains("transfer-encoding");
    if said || !message.body.is_empty() {
        Length::Known(message.body.len() as u64)
    } else {
        Length::None
    }
}

/// Whether a response to this may have trailer fields and interim responses before it.
pub(super) fn is_current(message: &Request) -> bool {
    message.version() == Some(b"HTTP/1.1")
}

/// Whether the client has said that it takes trailer fields (RFC 9110 6.5.1).
pub(super) fn wants_trailers(message: &Request) -> bool {
    is_current(message) && message.headers.all("te").iter().any(takes_trailers)
}

/// Takes off a response's head what the writer does not; `trailers`: fields behind its body are passed on too.
pub(super) fn response(fields: &mut HeaderMap, trailers: bool) {
    if !trailers {
        fields.remove(header::TRAILER);
    }
    fields.remove(header::PROXY_AUTHENTICATE);
    if fields.contains_key(header::TRANSFER_ENCODING) {
        // RFC 9112 6.3: the coding overrides it.
        fields.remove(header::CONTENT_LENGTH);
    }
    fields.append(header::VIA, VIA);
}

/// The target as it came.
fn target(message: &Request, prefix: &str) -> Result<Uri, Refused> {
    let uri = message.headers.first("URI");
    let uri = uri.map_or_else(|| message.path.clone(), |uri| message.headers.share(uri));
    let path = if prefix.is_empty() || uri.first() != Some(&b'/') {
        PathAndQuery::from_maybe_shared(uri)
    } else {
        PathAndQuery::from_maybe_shared(Bytes::from([prefix.as_bytes(), &uri].concat()))
    };
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path.map_err(|_| Refused)?);
    Uri::from_parts(parts).map_err(|_| Refused)
}

/// The client's address as the server has it.
fn client(message: &Request) -> Option<HeaderValue> {
    let headers = &message.headers;
    let mut told = headers
        .all("REMOTE_ADDR")
        .iter()
        .chain(headers.all("x-forwarded-for").iter());
    let told = told.next()?;
    let address: IpAddr = std::str::from_utf8(told).ok()?.parse().ok()?;
    let canonical = address.to_canonical();
    if canonical == address {
        HeaderValue::from_maybe_shared(headers.share(told)).ok()
    } else {
        HeaderValue::try_from(canonical.to_string()).ok()
    }
}

/// Servers tell in upper case what no client can.
fn is_servers_own(name: &[u8]) -> bool {
    name.iter().any(u8::is_ascii_uppercase) || name.starts_with(STORED)
}

/// Fields of one hop, whether `Connection` names them or not (RFC 9110 7.6.1, 11.7), and those that are made anew. `Expect` is the
/// server's matter, which has the body.
fn is_hop(name: &[u8]) -> bool {
    matches!(
        name,
        b"connection"
            | b"keep-alive"
            | b"proxy-connection"
            | b"proxy-authenticate"
            | b"proxy-authorization"
            | b"te"
            | b"trailer"
            | b"transfer-encoding"
            | b"content-length"
            | b"upgrade"
            | b"expect"
            | b"host"
    )
}

/// Whether a field says where a request comes from, also to programs that get fields as variables (CGI, WSGI and their like): to
/// them `x_forwarded_for` is the same name.
fn tells_origin(name: &[u8]) -> bool {
    let same = |known: &[u8]| {
        known.len() == name.len()
            && known
                .iter()
                .zip(name)
                .all(|(&known, &byte)| byte == known || (byte == b'_' && known == b'-'))
    };
    match name.len() {
        9 => name == b"forwarded",
        15 => same(b"x-forwarded-for"),
        16 => same(b"x-forwarded-host"),
        17 => same(b"x-forwarded-proto"),
        _ => false,
    }
}

fn takes_trailers(te: &[u8]) -> bool {
    te.split(|byte| *byte == b',')
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}
