//! What of a request's head a backend gets, and what of its response's head the client gets.
//!
//! Pure: heads in, heads out. What belongs to one hop stays there (RFC 9110 7.6.1), framing is not copied but said anew, and
//! what a backend believes about the client is written here, not by the client. Names and values are not changed otherwise.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Uri, response};

use crate::front::answer::{Fault, Trouble};
use crate::front::local::ResponseHead;
use crate::http1::fields::{has_token, list};
use crate::http1::{BodyFraming, Head, Version};
use crate::wire::request::Field;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Fields of one hop, whether `Connection` names them or not (RFC 9110 7.6.1, 11.7); those of framing are made anew.
const HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::UPGRADE,
];

/// What a client says about where a request comes from: replaced, unless `no_clobber_xff` is set.
const ORIGIN: [HeaderName; 4] = [
    FORWARDED_FOR,
    FORWARDED_PROTO,
    FORWARDED_HOST,
    header::FORWARDED,
];

/// What does not come from the head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) client: IpAddr,
    /// `no_clobber_xff`: what the client says about its origin stands, and nothing is added.
    pub(super) keep_forwarded: bool,
    /// By which scheme the client came.
    pub(super) scheme: &'static str,
    /// The backend as a Host line names it, for clients that name none.
    pub(super) authority: &'a HeaderValue,
}

/// A request as the backend gets it.
#[derive(Debug)]
pub(super) struct Outbound {
    /// Method, target and fields, those of framing among them.
    pub(super) head: http::request::Parts,
    pub(super) framing: BodyFraming,
    /// It asks for another protocol.
    pub(super) upgrade: bool,
}

/// Makes the request that is passed on.
///
/// # Errors
///
/// A method or target that cannot be passed on.
pub(super) fn request(
    head: &Head<'_, '_, Field<'_>>,
    context: &Context<'_>,
) -> Result<Outbound, Trouble> {
    let method = Method::from_bytes(head.method).map_err(|_| Trouble::BadTarget)?;
    if method == Method::CONNECT {
        return Err(Trouble::NotImplemented);
    }
    let mut message = Request::new(());
    *message.uri_mut() = target(&head.target.uri)?;
    let mut fields = HeaderMap::with_capacity(head.fields.len() + 6);
    let mut add = |name: HeaderName, value: HeaderValue| {
        fields
            .try_append(name, value)
            .map(drop)
            .map_err(|_| Trouble::BadTarget)
    };

    // The host of an absolute target overrides the Host line (RFC 9112 3.2.2).
    let host = head.host.map(HeaderValue::from_bytes);
    let host = host.transpose().map_err(|_| Trouble::BadTarget)?;
    let named = host.clone();
    add(
        header::HOST,
        host.unwrap_or_else(|| context.authority.clone()),
    )?;

    let values = |name: &'static [u8]| {
        head.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    };
    let connection: Vec<&[u8]> = values(b"connection").flat_map(list).collect();
    // A probe that is to go no further than here is ours to answer (RFC 9110 7.6.2).
    let counts_hops = matches!(method, Method::OPTIONS | Method::TRACE);
    let hops = values(b"max-forwards").next().filter(|_| counts_hops);
    let hops = hops.and_then(|value| str::from_utf8(value).ok()?.parse::<u64>().ok());
    if hops == Some(0) {
        return Err(Trouble::NotImplemented);
    }
    for field in head.fields {
        let name = HeaderName::from_bytes(field.name).map_err(|_| Trouble::BadTarget)?;
        let drops = name == header::HOST
            || HOP.contains(&name)
            || (!context.keep_forwarded && tells_origin(&name))
            || (name == header::TRAILER && head.framing != BodyFraming::Chunked)
            || (name == header::EXPECT && head.version == Version::Http10)
            || connection
                .iter()
                .any(|token| token.eq_ignore_ascii_case(field.name));
        if let Some(hops) = hops.filter(|_| name == header::MAX_FORWARDS) {
            add(name, text(&(hops - 1).to_string()))?;
        } else if !drops {
            let value = HeaderValue::from_bytes(field.value).map_err(|_| Trouble::BadTarget)?;
            add(name, value)?;
        }
    }

    if !context.keep_forwarded {
        add(
            FORWARDED_FOR,
            text(&context.client.to_canonical().to_string()),
        )?;
        add(FORWARDED_PROTO, HeaderValue::from_static(context.scheme))?;
        if let Some(host) = named {
            add(FORWARDED_HOST, host)?;
        }
    }
    add(
        header::VIA,
        HeaderValue::from_static(via(head.version == Version::Http11)),
    )?;

    // Each of the two is announced in Connection, as the next hop's own.
    let mut own = Vec::new();
    if head.version == Version::Http11 && values(b"te").any(|value| has_token(value, b"trailers")) {
        add(header::TE, HeaderValue::from_static("trailers"))?;
        own.push("TE");
    }
    let protocols = protocols(head, &connection, values(b"upgrade"));
    let upgrade = protocols.is_some();
    if let Some(protocols) = protocols {
        add(header::UPGRADE, protocols)?;
        own.push("Upgrade");
    }
    if !own.is_empty() {
        add(header::CONNECTION, text(&own.join(", ")))?;
    }
    match head.framing {
        BodyFraming::None => {}
        BodyFraming::Length(length) => add(header::CONTENT_LENGTH, length.into())?,
        BodyFraming::Chunked => add(
            header::TRANSFER_ENCODING,
            HeaderValue::from_static("chunked"),
        )?,
    }

    *message.method_mut() = method;
    *message.headers_mut() = fields;
    Ok(Outbound {
        head: message.into_parts().0,
        framing: head.framing,
        upgrade,
    })
}

/// The target as it came: in origin form, or `*`.
fn target(uri: &[u8]) -> Result<Uri, Trouble> {
    let path = PathAndQuery::try_from(uri).map_err(|_| Trouble::BadTarget)?;
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| Trouble::BadTarget)
}

/// The protocols that a request asks to switch to, if it may be passed on. Not with a body, which would have to be sent before
/// the switch; and not HTTP/2 in the clear, in which requests would pass by the routes.
fn protocols<'a>(
    head: &Head<'_, '_, Field<'_>>,
    connection: &[&[u8]],
    upgrade: impl Iterator<Item = &'a [u8]>,
) -> Option<HeaderValue> {
    let asks = head.version == Version::Http11
        && matches!(head.framing, BodyFraming::None | BodyFraming::Length(0))
        && connection
            .iter()
            .any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    if !asks {
        return None;
    }
    let wanted: Vec<&[u8]> = upgrade
        .flat_map(list)
        .filter(|name| !name.to_ascii_lowercase().starts_with(b"h2"))
        .collect();
    if wanted.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(&wanted.join(b", ".as_slice())).ok()
}

/// Whether a field says where a request comes from, also to programs behind a backend that get fields as variables (CGI, WSGI
/// and their like): to them `X_Forwarded_For` is the same name.
fn tells_origin(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    ORIGIN.iter().any(|known| {
        let known = known.as_str().as_bytes();
        known.len() == name.len()
            && known
                .iter()
                .zip(name)
                .all(|(&known, &byte)| byte == known || (byte == b'_' && known == b'-'))
    })
}

/// Takes off the fields that are for one hop or for the framing of one, those that `Connection` names among them.
pub(super) fn clean(fields: &mut HeaderMap) {
    let named: Vec<HeaderName> = fields
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| list(value.as_bytes()))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    for name in HOP.iter().chain(&named) {
        fields.remove(name);
    }
}

/// Takes off trailer fields what must not stand behind a body (RFC 9110 6.5.1): framing, routing, what is for one hop, and
/// what a client says of where it comes from, since some servers join trailers to the head.
pub(super) fn clean_trailers(fields: &mut HeaderMap) {
    clean(fields);
    let refused: Vec<HeaderName> = fields
        .keys()
        .filter(|name| {
            tells_origin(name) || [header::HOST, header::TRAILER, header::VIA].contains(name)
        })
        .cloned()
        .collect();
    for name in &refused {
        fields.remove(name);
    }
}

/// The head of a response as the client gets it; `trailers`: fields behind its body are passed on too.
///
/// # Errors
///
/// A body that is coded for the hop in a way we did not ask for.
pub(super) fn response(
    parts: response::Parts,
    length: Option<u64>,
    trailers: bool,
) -> Result<ResponseHead, Fault> {
    let response::Parts {
        status,
        version,
        mut headers,
        ..
    } = parts;
    if headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Fault::Malformed);
    }
    let upgrade = headers.get(header::UPGRADE).cloned();
    clean(&mut headers);
    if !trailers {
        headers.remove(header::TRAILER);
    }
    if status == http::StatusCode::SWITCHING_PROTOCOLS {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(upgrade) = upgrade {
            headers.insert(header::UPGRADE, upgrade);
        }
    }
    let via = HeaderValue::from_static(via(version == http::Version::HTTP_11));
    headers
        .try_append(header::VIA, via)
        .map_err(|_| Fault::Malformed)?;
    let mut head = ResponseHead::new(status, length);
    head.fields = headers;
    Ok(head)
}

/// How we stand in `Via`: the version in which the message came to us (RFC 9110 7.6.3).
const fn via(http11: bool) -> &'static str {
    if http11 { "1.1 lurcher" } else { "1.0 lurcher" }
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{Limits, Parsed, Progress, parse_head};

    fn forwarded(text: &str) -> Result<Outbound, Trouble> {
        let context = Context {
            client: IpAddr::from([10, 0, 0, 1]),
            keep_forwarded: false,
            scheme: "http",
            authority: &HeaderValue::from_static("backend:81"),
        };
        let limits = Limits {
            relaxed: true,
            ..Limits::default()
        };
        let parsed = parse_head(
            &mut Progress::default(),
            text.as_bytes(),
            &limits,
            |head: Head<'_, '_, Field<'_>>| request(&head, &context),
        );
        match parsed {
            Parsed::Complete(result) => result,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn all<'a>(fields: &'a HeaderMap, name: &'static str) -> Vec<&'a [u8]> {
        fields
            .get_all(name)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect()
    }

    #[test]
    fn connection_cannot_take_away_what_the_message_needs() {
        let out = forwarded(
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\
             Connection: host, content-length, x-forwarded-for, via, X-a\r\nX-A: 1\r\n\r\n",
        )
        .unwrap();
        let fields = &out.head.headers;
        assert_eq!(all(fields, "host"), [b"h"]);
        assert_eq!(all(fields, "content-length"), [b"3"]);
        assert_eq!(all(fields, "x-forwarded-for"), [b"10.0.0.1"]);
        assert_eq!(all(fields, "via"), [b"1.1 lurcher"]);
        assert!(all(fields, "x-a").is_empty() && all(fields, "connection").is_empty());
    }

    #[test]
    fn a_probe_goes_as_far_as_it_says() {
        let probe = |method: &str, hops: &str| {
            forwarded(&format!(
                "{method} / HTTP/1.1\r\nHost: h\r\nMax-Forwards: {hops}\r\n\r\n"
            ))
        };
        for method in ["TRACE", "OPTIONS"] {
            assert_eq!(probe(method, "0").unwrap_err(), Trouble::NotImplemented);
            let out = probe(method, "3").unwrap();
            assert_eq!(all(&out.head.headers, "max-forwards"), [b"2"]);
        }
        // Elsewhere it means nothing.
        let out = probe("GET", "0").unwrap();
        assert_eq!(all(&out.head.headers, "max-forwards"), [b"0"]);
    }

    #[test]
    fn bytes_that_are_not_ascii_are_passed_on_in_values() {
        let out = forwarded("GET / HTTP/1.1\r\nHost: h\r\nX-Name: J\u{f6}rg\tx\r\n\r\n").unwrap();
        assert_eq!(
            all(&out.head.headers, "x-name"),
            ["J\u{f6}rg\tx".as_bytes()]
        );
    }

    #[test]
    fn every_target_that_heads_may_have_is_kept_or_refused() {
        for byte in 0x21..0x7f_u8 {
            let path = format!("/a{}b?{0}", char::from(byte));
            let text = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
            let mut kept = None;
            let limits = Limits {
                relaxed: true,
                ..Limits::default()
            };
            let parsed = parse_head(
                &mut Progress::default(),
                text.as_bytes(),
                &limits,
                |head: Head<'_, '_, Field<'_>>| {
                    kept = Some(head.target.uri.to_vec());
                },
            );
            if let (Parsed::Complete(()), Some(uri)) = (parsed, kept) {
                let out = forwarded(&text).expect("a target that the library takes");
                assert_eq!(out.head.uri.to_string().as_bytes(), uri, "{path}");
            }
        }
    }

    #[test]
    fn an_origin_told_with_underscores_or_in_trailers_reaches_no_backend() {
        let out = forwarded(
            "GET / HTTP/1.1\r\nHost: h\r\nX_Forwarded_For: 6.6.6.6\r\nx-forwarded_PROTO: https\r\nX_Other: 1\r\n\r\n",
        )
        .unwrap();
        let fields = &out.head.headers;
        assert_eq!(all(fields, "x-forwarded-for"), [b"10.0.0.1"]);
        assert!(!fields.contains_key("x_forwarded_for"));
        assert!(!fields.contains_key("x-forwarded_proto"));
        assert_eq!(all(fields, "x_other"), [b"1"]);

        let mut trailers = crate::front::local::trailers(
            b"X-Sum: 1\r\nX-Forwarded-For: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nForwarded: for=_x\r\nVia: x\r\n\
              Host: x\r\nConnection: x-own\r\nX-Own: 1\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        clean_trailers(&mut trailers);
        assert_eq!(trailers.len(), 1, "{trailers:?}");
        assert_eq!(all(&trailers, "x-sum"), [b"1"]);
    }

    fn answered(fields: &[(&'static str, &'static str)]) -> Result<ResponseHead, Fault> {
        let mut response = http::Response::new(());
        for (name, value) in fields {
            response
                .headers_mut()
                .append(*name, HeaderValue::from_static(value));
        }
        super::response(response.into_parts().0, Some(1), false)
    }

    #[test]
    fn a_response_keeps_its_fields_but_those_of_the_hop() {
        let head = answered(&[
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("connection", "close, x-own"),
            ("x-own", "1"),
            ("keep-alive", "timeout=5"),
            ("content-length", "1"),
            ("trailer", "x-sum"),
        ])
        .unwrap();
        assert_eq!(all(&head.fields, "set-cookie"), [b"a=1", b"b=2"]);
        assert_eq!(head.fields.len(), 3, "and Via: {:?}", head.fields);
        assert!(answered(&[("transfer-encoding", "gzip, chunked")]).is_err());
        assert!(answered(&[("transfer-encoding", "Chunked")]).is_ok());
    }
}
