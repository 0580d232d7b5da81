//! What balancers say about the client behind them: `X-Forwarded-For`, `X-Forwarded-Proto`, and `Forwarded` (RFC 7239).
//!
//! Each proxy appends the address that connected to it, so the list is true from the right as far as the proxies are
//! trusted: the client is the last address that is not a proxy of ours. What stands left of it may be the client's own
//! invention. Whom to trust, and which of the fields to look at, is the caller's decision.

use std::net::{IpAddr, SocketAddr};

use super::fields;

/// Proxies that are followed. No real chain is longer, and a hostile list ends here.
pub const HOPS_MAX: usize = 32;

/// The client as the trusted proxies describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Described {
    /// Its address; the port is 0 when none was told. `None`: nothing that can be believed was told.
    pub address: Option<SocketAddr>,
    /// Whether it came by https.
    pub https: Option<bool>,
}

/// Finds the client in the values of `X-Forwarded-For`, in the order of their lines: the last address that `is_trusted`
/// does not know, or the first one when it knows them all. What is no address ends the search: what stands right of it
/// counts.
pub fn from_list<'a>(
    values: impl DoubleEndedIterator<Item = &'a [u8]>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Option<SocketAddr> {
    let mut client = None;
    let hops = values
        .rev()
        .flat_map(|value| value.rsplit(|&byte| byte == b','));
    for hop in hops
        .map(fields::trim_blanks)
        .filter(|hop| !hop.is_empty())
        .take(HOPS_MAX)
    {
        let Some(address) = node(hop) else {
            break;
        };
        client = Some(address);
        if !is_trusted(address.ip()) {
            break;
        }
    }
    client
}

/// Reads `X-Forwarded-Proto`: the last word, which is the nearest proxy's.
pub fn proto<'a>(values: impl DoubleEndedIterator<Item = &'a [u8]>) -> Option<bool> {
    let words = values
        .rev()
        .flat_map(|value| value.rsplit(|&byte| byte == b','));
    scheme(
        words
            .map(fields::trim_blanks)
            .find(|word| !word.is_empty())?,
    )
}

/// Finds the client in the values of `Forwarded`, as [`from_list`] does. The scheme is that of the client's own element.
/// Values that break the grammar are worth nothing as a whole: nobody can tell where an element begins.
pub fn from_forwarded<'a>(
    values: impl Iterator<Item = &'a [u8]>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Described {
    let mut elements = Vec::new();
    for value in values {
        if read_elements(value, &mut elements).is_none() {
            return Described::default();
        }
    }
    let mut client = Described::default();
    for element in elements.iter().rev().take(HOPS_MAX) {
        let Some(address) = element.node else {
            // The nearest proxy may tell the scheme alone.
            client.https = client.https.or(element.https);
            break;
        };
        client = Described {
            address: Some(address),
            https: element.https,
        };
        if !is_trusted(address.ip()) {
            break;
        }
    }
    client
}

/// One element of `Forwarded`, as far as we care.
#[derive(Debug, Clone, Copy, Default)]
struct Element {
    node: Option<SocketAddr>,
    https: Option<bool>,
}

/// Appends the elements of one line; `None` when it breaks the grammar of RFC 7239 4.
fn read_elements(mut rest: &[u8], elements: &mut Vec<Element>) -> Option<()> {
    let mut element = Element::default();
    let mut some = false;
    loop {
        rest = fields::trim_blanks(rest);
        match rest.split_first() {
            None | Some((b',', _)) => {
                if some {
                    elements.push(std::mem::take(&mut element));
                }
                some = false;
                rest = rest.get(1..).unwrap_or_default();
                if rest.is_empty() {
                    return Some(());
                }
                continue;
            }
            Some((b';', after)) => {
                rest = after;
                continue;
            }
            Some(_) => {}
        }
        let name_len = rest
            .iter()
            .take_while(|&&byte| fields::is_token_byte(byte))
            .count();
        let (name, after) = rest.split_at_checked(name_len)?;
        let after = after.strip_prefix(b"=")?;
        let mut unquoted = Vec::new();
        let (value, after) = if let Some(quoted) = after.strip_prefix(b"\"") {
            let len = unquote(quoted, &mut unquoted)?;
            (unquoted.as_slice(), quoted.get(len..)?)
        } else {
            // More than a token: unquoted addresses with ports and brackets are common, and clear.
            let ends = |byte: &u8| matches!(byte, b',' | b';' | b' ' | b'\t' | b'"');
            let len = after.iter().position(ends).unwrap_or(after.len());
            after.split_at_checked(len)?
        };
        if name.is_empty() {
            return None;
        }
        if name.eq_ignore_ascii_case(b"for") {
            element.node = node(value);
        } else if name.eq_ignore_ascii_case(b"proto") {
            element.https = scheme(value);
        }
        some = true;
        rest = fields::trim_blanks(after);
        if !matches!(rest.first(), None | Some(b',' | b';')) {
            return None;
        }
    }
}

/// Reads a quoted string behind its first quote (RFC 9110 5.6.4); gives the length with the closing quote.
fn unquote(text: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let mut bytes = text.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        match byte {
            b'"' => return at.checked_add(1),
            b'\\' => out.push(*bytes.next()?.1),
            byte => out.push(byte),
        }
    }
    None
}

/// An address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
/// `unknown` and hidden names (`_x`) are none.
fn node(text: &[u8]) -> Option<SocketAddr> {
    // The longest form of an address, with brackets and a port.
    if text.len() > 54 {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(SocketAddr::new(address.ip().to_canonical(), address.port()));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    let address: IpAddr = bare.parse().ok()?;
    Some(SocketAddr::new(address.to_canonical(), 0))
}

fn scheme(text: &[u8]) -> Option<bool> {
    // WebSocket schemes too: some balancers name the protocol that was asked for.
    if text.eq_ignore_ascii_case(b"https") || text.eq_ignore_ascii_case(b"wss") {
        Some(true)
    } else if text.eq_ignore_ascii_case(b"http") || text.eq_ignore_ascii_case(b"ws") {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 10.0.0.0/8 is ours.
    fn ours(address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if address.octets()[0] == 10)
    }

    fn list(values: &[&str]) -> Option<String> {
        from_list(values.iter().map(|value| value.as_bytes()), ours)
            .map(|address| address.to_string())
    }

    fn forwarded(values: &[&str]) -> (Option<String>, Option<bool>) {
        let found = from_forwarded(values.iter().map(|value| value.as_bytes()), ours);
        (
            found.address.map(|address| address.to_string()),
            found.https,
        )
    }

    #[test]
    fn the_client_is_the_last_address_that_is_not_ours() {
        for (values, expect) in [
            (&["192.0.2.1"][..], Some("192.0.2.1:0")),
            (&["6.6.6.6, 192.0.2.1"], Some("192.0.2.1:0")),
            (&["6.6.6.6", "192.0.2.1, 10.1.1.1"], Some("192.0.2.1:0")),
            (&["192.0.2.1:4711,10.1.1.1:80"], Some("192.0.2.1:4711")),
            (&["10.0.0.9, 10.1.1.1"], Some("10.0.0.9:0")),
            (&["2001:db8::1"], Some("[2001:db8::1]:0")),
            (&["[2001:db8::1]:80"], Some("[2001:db8::1]:80")),
            (&["::ffff:192.0.2.1"], Some("192.0.2.1:0")),
            (&["unknown, 10.1.1.1"], Some("10.1.1.1:0")),
            (&["192.0.2.1, nonsense"], None),
            (&[" , ,192.0.2.1, "], Some("192.0.2.1:0")),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(list(values).as_deref(), expect, "{values:?}");
        }
    }

    #[test]
    fn a_list_of_proxies_without_end_is_not_followed_to_its_end() {
        let long = ["192.0.2.1", &", 10.0.0.1".repeat(HOPS_MAX)].concat();
        assert_eq!(list(&[&long]).as_deref(), Some("10.0.0.1:0"));
    }

    #[test]
    fn the_nearest_proxy_tells_the_scheme() {
        let proto = |values: &[&'static str]| proto(values.iter().map(|value| value.as_bytes()));
        assert_eq!(proto(&["https"]), Some(true));
        assert_eq!(proto(&["https", "HTTP"]), Some(false));
        assert_eq!(proto(&["http, wss"]), Some(true));
        assert_eq!(proto(&["gopher"]), None);
        assert_eq!(proto(&[]), None);
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_has_it() {
        for (values, address, https) in [
            (&["for=192.0.2.1"][..], Some("192.0.2.1:0"), None),
            (
                &["For=\"[2001:db8::17]:4711\";proto=https"],
                Some("[2001:db8::17]:4711"),
                Some(true),
            ),
            (
                &["for=192.0.2.1;proto=https, for=10.0.0.1;proto=http"],
                Some("192.0.2.1:0"),
                Some(true),
            ),
            (
                &["for=192.0.2.1;proto=https", "for=10.0.0.1;by=_x"],
                Some("192.0.2.1:0"),
                Some(true),
            ),
            (
                &["for=6.6.6.6;proto=https, for=192.0.2.1;proto=http"],
                Some("192.0.2.1:0"),
                Some(false),
            ),
            (
                &["for=\"192.0.2.\\1\" ; host=\"a,for=6.6.6.6\""],
                Some("192.0.2.1:0"),
                None,
            ),
            (&["for=192.0.2.1, for=unknown"], None, None),
            (&["for=_hidden;proto=https"], None, Some(true)),
            (&["for=192.0.2.1, for=\"10.0.0.1"], None, None),
            (&["for=192.0.2.1 for=6.6.6.6"], None, None),
            (&["=192.0.2.1"], None, None),
            (&["for"], None, None),
            (&[""], None, None),
        ] {
            let (found, scheme) = forwarded(values);
            assert_eq!((found.as_deref(), scheme), (address, https), "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_them_panic_or_believe_what_stands_left(
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
            trusted in any::<bool>(),
        ) {
            let values = [garbage.as_slice(), b"for=203.0.113.7"];
            let found = from_forwarded(values.into_iter(), |_| trusted);
            if !trusted {
                prop_assert!(matches!(found.address, None | Some(SocketAddr::V4(_))));
            }
            let values = [garbage.as_slice(), b"203.0.113.7"];
            let found = from_list(values.into_iter(), |_| false);
            prop_assert_eq!(found, Some("203.0.113.7:0".parse().unwrap()));
            let values = [garbage.as_slice()];
            let _any = from_list(values.into_iter(), |_| trusted);
            let _any = proto(values.into_iter());
        }
    }
}
