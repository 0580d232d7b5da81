//! What a request asks for: the target of the request line in its parts (RFC 9112 3.2), and whether a host is well formed.
//! It decodes nothing and removes no dots: paths go to routing and handlers as they came, as in Mongrel2.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use super::Refusal;

/// A request target in its parts. The text between the marks, never the marks themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'b> {
    /// The path as received; begins with `/`, or is `*` for `OPTIONS *`.
    pub path: &'b [u8],
    /// What follows the first `?`; may be empty.
    pub query: Option<&'b [u8]>,
    /// What follows a `#`. No client should send it; it is split off as Mongrel2 does.
    pub fragment: Option<&'b [u8]>,
    /// Host and port of an absolute target (`GET http://host:80/`): it overrides the `Host` line (RFC 9112 3.2.2).
    pub authority: Option<&'b [u8]>,
    /// Path and query without fragment: `URI` of the message to handlers. Borrowed but for `http://host?query`, where the
    /// path has to be made up.
    pub uri: Cow<'b, [u8]>,
}

impl<'b> Target<'b> {
    /// Takes a target apart whose characters have been checked already.
    ///
    /// # Errors
    /// 400 for a form that is none of: `/path`, `http://host/path` (and https), `*` with OPTIONS.
    pub(super) fn parse(text: &'b [u8], method: &[u8]) -> Result<Self, Refusal> {
        if text == b"*" {
            return if method == b"OPTIONS" {
                Ok(Self {
                    path: text,
                    query: None,
                    fragment: None,
                    authority: None,
                    uri: Cow::Borrowed(text),
                })
            } else {
                Err(Refusal::bad("* is a target of OPTIONS only"))
            };
        }
        let (uri, fragment) = split_at_mark(text, b'#');
        let (authority, uri) = if uri.starts_with(b"/") {
            (None, uri)
        } else {
            let (authority, uri) = absolute(uri)?;
            (Some(authority), uri)
        };
        if memchr::memchr2(b'[', b']', uri).is_some()
            || fragment.is_some_and(|text| memchr::memchr3(b'[', b']', b'#', text).is_some())
        {
            return Err(Refusal::bad("character not allowed in a request target"));
        }
        let (path, query) = split_at_mark(uri, b'?');
        let (path, uri) = match (path, query) {
            ([], None) => (b"/".as_slice(), Cow::Borrowed(b"/".as_slice())),
            ([], Some(_)) => (b"/".as_slice(), Cow::Owned([b"/", uri].concat())),
            _ => (path, Cow::Borrowed(uri)),
        };
        Ok(Self {
            path,
            query,
            fragment,
            authority,
            uri,
        })
    }
}

/// `http://host:port` off the front of an absolute target, and what follows it.
fn absolute(text: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let rest = [b"http://".as_slice(), b"https://"]
        .iter()
        .find_map(|scheme| {
            let (start, rest) = text.split_at_checked(scheme.len())?;
            start.eq_ignore_ascii_case(scheme).then_some(rest)
        })
        .ok_or(Refusal::bad("not a request target"))?;
    let end = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let (authority, uri) = rest.split_at_checked(end).unwrap_or((rest, b""));
    // An empty host is an error (RFC 9110 4.2.1), and so is user information, which phishing lives on (4.2.4).
    if authority.is_empty() || authority.starts_with(b":") || !is_host(authority) {
        return Err(Refusal::bad("no valid host in the request target"));
    }
    Ok((authority, uri))
}

fn split_at_mark(text: &[u8], mark: u8) -> (&[u8], Option<&[u8]>) {
    memchr::memchr(mark, text)
        .and_then(|at| {
            let (before, after) = text.split_at_checked(at)?;
            Some((before, Some(after.get(1..)?)))
        })
        .unwrap_or((text, None))
}

/// Whether this is a host as the `Host` line may name one: a name, an IPv4 address or an IPv6 address in brackets, with or
/// without a port (RFC 9110 7.2, RFC 3986 3.2.2). Empty is allowed: it is what a client sends whose target has no host.
pub fn is_host(text: &[u8]) -> bool {
    let port = if let [b'[', rest @ ..] = text {
        let Some((address, after)) = memchr::memchr(b']', rest).and_then(|at| {
            let (address, after) = rest.split_at_checked(at)?;
            Some((address, after.get(1..)?))
        }) else {
            return false;
        };
        if !str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok()) {
            return false;
        }
        match after {
            [] => return true,
            [b':', port @ ..] => port,
            _ => return false,
        }
    } else {
        let (name, port) = split_at_mark(text, b':');
        if !is_name(name) {
            return false;
        }
        port.unwrap_or_default()
    };
    port.iter().all(u8::is_ascii_digit)
}

/// A registered name of RFC 3986: more than DNS knows (`_`, `,` and escapes), less than people try.
fn is_name(mut name: &[u8]) -> bool {
    loop {
        let plain = name
            .iter()
            .position(|&byte| !is_name_byte(byte))
            .unwrap_or(name.len());
        match name.get(plain..).unwrap_or_default() {
            [] => return true,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                name = rest;
            }
            _ => return false,
        }
    }
}

/// Whether a byte may stand in names and paths as it is: unreserved characters and sub-delims (RFC 3986 2.2, 2.3).
pub const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, parts: (&str, Option<&str>, Option<&str>, Option<&str>, &str)) {
        let target = Target::parse(text.as_bytes(), b"GET").unwrap();
        let (path, query, fragment, authority, uri) = parts;
        assert_eq!(
            target,
            Target {
                path: path.as_bytes(),
                query: query.map(str::as_bytes),
                fragment: fragment.map(str::as_bytes),
                authority: authority.map(str::as_bytes),
                uri: Cow::Borrowed(uri.as_bytes()),
            }
        );
    }

    #[test]
    fn a_target_is_split_at_its_first_marks() {
        check("/abc", ("/abc", None, None, None, "/abc"));
        check("/abc?", ("/abc", Some(""), None, None, "/abc?"));
        check(
            "/abc?a?b=/c",
            ("/abc", Some("a?b=/c"), None, None, "/abc?a?b=/c"),
        );
        check(
            "/abc?x=1#frag?",
            ("/abc", Some("x=1"), Some("frag?"), None, "/abc?x=1"),
        );
        check("/#", ("/", None, Some(""), None, "/"));
        check("//a//b", ("//a//b", None, None, None, "//a//b"));
        check(
            "/a/../../etc",
            ("/a/../../etc", None, None, None, "/a/../../etc"),
        );
    }

    #[test]
    fn the_absolute_form_gives_host_and_path() {
        check(
            "http://localhost:16767/abs",
            ("/abs", None, None, Some("localhost:16767"), "/abs"),
        );
        check("HTTPS://a", ("/", None, None, Some("a"), "/"));
        check("http://a?q=1", ("/", Some("q=1"), None, Some("a"), "/?q=1"));
        check(
            "http://[::1]:80/x#f",
            ("/x", None, Some("f"), Some("[::1]:80"), "/x"),
        );
        for bad in [
            "http://",
            "http:///x",
            "http://:80/",
            "http://u@a/",
            "http://a b/",
            "ftp://a/",
            "http:/a",
            "abc",
            "a:80",
            "*",
            "",
            "?q",
            "#f",
            "http://[::1/",
            "http://[]/",
            "/a[1]",
            "/a?b=[1]",
            "/#a#b",
            "/#[",
            "http://a/[",
        ] {
            assert!(Target::parse(bad.as_bytes(), b"GET").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_asterisk_is_for_options() {
        assert_eq!(Target::parse(b"*", b"OPTIONS").unwrap().path, b"*");
        assert!(Target::parse(b"*", b"GET").is_err());
    }

    #[test]
    fn hosts_are_names_or_addresses_with_an_optional_port() {
        for good in [
            "",
            "a",
            "a:",
            "a:80",
            "example.com",
            "www_1.example.com.",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:16767",
            "[::ffff:1.2.3.4]:1",
            "a,b",
            "x%20y",
            "xn--bcher-kva.example",
        ] {
            assert!(is_host(good.as_bytes()), "{good:?}");
        }
        for bad in [
            "a b",
            "a/b",
            "u@a",
            "a:b",
            "a:80:80",
            "::1",
            "[::1",
            "[::1]x",
            "[::1]:x",
            "[zz]",
            "[]",
            "a?b",
            "a#b",
            "a\\b",
            "<a>",
            "a\"",
            "%zz",
            "b\u{fc}cher",
            "http://a",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad:?}");
        }
    }
}
