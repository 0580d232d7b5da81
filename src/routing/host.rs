//! Which host of a server takes a name. Pure.

use std::net::Ipv6Addr;

use super::tree::{Found, Tree};
use super::{Case, Pattern};

/// The hosts of one server in the order of their rows, each with what it stands for.
///
/// Names are compared without case, unlike Mongrel2's. A `matching` text that is an IPv6 address, with or without
/// brackets, matches that address, however it is written; in Mongrel2 it never matches.
#[derive(Debug, Clone)]
pub struct HostTable<T> {
    entries: Vec<Entry<T>>,
    /// By reversed tail.
    tree: Tree,
    addresses: Vec<(Ipv6Addr, usize)>,
}

#[derive(Debug, Clone)]
struct Entry<T> {
    matching: String,
    pattern: Option<Pattern>,
    value: T,
}

/// Why a name goes where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostChoice<'a, T> {
    /// The default host takes it: no `Host` at all.
    NoName,
    /// The default host takes it: no tail fits.
    NoTail,
    /// The default host takes it: the tail fits and the pattern before it does not. No other host is tried, not even one
    /// of the same tail.
    NoPattern {
        /// The `matching` text of that tail's first host.
        matching: &'a str,
    },
    /// The host whose `matching` is the longest tail of the name, or the name itself.
    Tail {
        /// Its `matching` text.
        matching: &'a str,
        /// What it stands for.
        value: &'a T,
    },
    /// The name is itself a shorter tail of this host's `matching`.
    LongerTail {
        /// Its `matching` text.
        matching: &'a str,
        /// What it stands for.
        value: &'a T,
    },
}

impl<T> HostTable<T> {
    /// A table without hosts.
    pub fn new() -> HostTable<T> {
        HostTable {
            entries: Vec::new(),
            tree: Tree::new(),
            addresses: Vec::new(),
        }
    }

    /// Adds a host by its `matching` text. An empty text, or one that ends in `)`, is kept but never matches.
    pub fn insert(&mut self, matching: impl Into<String>, value: T) {
        let matching = matching.into();
        let index = self.entries.len();
        let (front, tail) = split(&matching);
        if let Some(address) = address_text(&matching) {
            self.addresses.push((address, index));
        } else if !tail.is_empty() {
            self.tree.insert(
                tail.bytes().rev().map(|byte| byte.to_ascii_lowercase()),
                index,
            );
        }
        let pattern = front.map(|front| Pattern::with_case(format!("{front}$"), Case::Ignored));
        self.entries.push(Entry {
            matching,
            pattern,
            value,
        });
    }

    /// The host that takes a request with this `Host` header value (or authority), in any case, with or without port.
    /// `None`: the default host does.
    pub fn find(&self, host: &[u8]) -> Option<&T> {
        match self.explain(host) {
            HostChoice::Tail { value, .. } | HostChoice::LongerTail { value, .. } => Some(value),
            HostChoice::NoName | HostChoice::NoTail | HostChoice::NoPattern { .. } => None,
        }
    }

    /// The same with the reasons.
    pub fn explain(&self, host: &[u8]) -> HostChoice<'_, T> {
        if host.is_empty() {
            return HostChoice::NoName;
        }
        if let Some(address) = literal(host) {
            let found = self.addresses.iter().find(|&&(known, _)| known == address);
            return match found.and_then(|&(_, index)| self.entries.get(index)) {
                Some(Entry {
                    matching, value, ..
                }) => HostChoice::Tail { matching, value },
                None => HostChoice::NoTail,
            };
        }
        let name = without_port(host);
        let reversed = name.iter().rev().map(u8::to_ascii_lowercase);
        let Some((chain, tail, found)) = self.tree.find(reversed) else {
            return HostChoice::NoTail;
        };
        // Only the first host of a tail counts; Mongrel2 never looks at another.
        let Some(Entry {
            matching,
            pattern,
            value,
        }) = chain.first().and_then(|&index| self.entries.get(index))
        else {
            return HostChoice::NoTail;
        };
        let front = name
            .len()
            .checked_sub(tail)
            .and_then(|length| name.get(..length));
        let taken = match (pattern, front) {
            (None, _) => true,
            (Some(pattern), Some(front)) => pattern.matches(front),
            (Some(_), None) => false,
        };
        match found {
            _ if !taken => HostChoice::NoPattern { matching },
            Found::Longer => HostChoice::LongerTail { matching, value },
            Found::Equal | Found::Begins => HostChoice::Tail { matching, value },
        }
    }

    /// All hosts in the order of insertion: `matching` text and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries
            .iter()
            .map(|entry| (entry.matching.as_str(), &entry.value))
    }
}

impl<T> Default for HostTable<T> {
    fn default() -> HostTable<T> {
        HostTable::new()
    }
}

/// Splits a `matching` text behind its last `)`: the pattern for the front of a name, and the fixed tail.
fn split(matching: &str) -> (Option<&str>, &str) {
    match matching
        .rfind(')')
        .and_then(|at| matching.split_at_checked(at + 1))
    {
        Some((front, tail)) => (Some(front), tail),
        None => (None, matching),
    }
}

/// Mongrel2's cut: at the first colon, unless the value begins with it.
fn without_port(host: &[u8]) -> &[u8] {
    match host.iter().position(|&byte| byte == b':') {
        None | Some(0) => host,
        Some(at) => host.get(..at).unwrap_or(host),
    }
}

/// The address of `[address]` and `[address]:port`.
fn literal(host: &[u8]) -> Option<Ipv6Addr> {
    let inside = host.strip_prefix(b"[")?;
    let end = inside.iter().position(|&byte| byte == b']')?;
    std::str::from_utf8(inside.get(..end)?).ok()?.parse().ok()
}

fn address_text(matching: &str) -> Option<Ipv6Addr> {
    let inside = matching
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    inside.unwrap_or(matching).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(matchings: &[&str], host: &str, expect: Option<&str>) {
        let mut table = HostTable::new();
        for matching in matchings {
            table.insert(*matching, (*matching).to_owned());
        }
        assert_eq!(
            table.find(host.as_bytes()).map(String::as_str),
            expect,
            "{host}"
        );
    }

    #[test]
    fn a_tail_needs_no_dot_before_it() {
        check(&["example.com"], "www.example.com", Some("example.com"));
        check(&["example.com"], "evilexample.com", Some("example.com"));
        check(&["example.com"], "example.org", None);
        check(&["example.com"], "example.com.", None);
    }

    #[test]
    fn a_name_that_is_a_tail_of_a_host_reaches_it() {
        check(&["example.com"], "com", Some("example.com"));
        check(
            &["one.test", "sub.one.test"],
            "b.one.test",
            Some("sub.one.test"),
        );
        check(
            &["one.test", "sub.one.test"],
            "c.one.test",
            Some("one.test"),
        );
    }

    #[test]
    fn a_pattern_takes_the_whole_front_or_the_default_host_is_left() {
        check(
            &["([a-z]+).example.com", "com"],
            "abc.example.com",
            Some("([a-z]+).example.com"),
        );
        check(&["([a-z]+).example.com", "com"], "a1.example.com", None);
        check(&["([a-z]+).example.com"], "example.com", None);
        check(&["(.+)"], "anything", None);
    }

    #[test]
    fn only_the_first_host_of_a_tail_is_looked_at() {
        let hosts = ["(a+).x", "(b+).x", ".x"];
        check(&hosts, "aa.x", Some("(a+).x"));
        check(&hosts, "b.x", None);
        check(&hosts, "x", None);
    }

    #[test]
    fn case_and_port_do_not_count() {
        check(
            &["Example.com"],
            "WWW.EXAMPLE.COM:8080",
            Some("Example.com"),
        );
        check(
            &["([A-Z]+).Example.com"],
            "abc.example.com",
            Some("([A-Z]+).Example.com"),
        );
    }

    #[test]
    fn an_ipv6_literal_matches_however_it_is_written() {
        for matching in ["::1", "[::1]", "0:0::0:1"] {
            check(&[matching], "[::1]:6767", Some(matching));
            check(&[matching], "[0:0:0:0:0:0:0:1]", Some(matching));
            check(&[matching], "[::11]", None);
            check(&[matching], "1", None);
        }
    }

    #[test]
    fn odd_values_are_only_unknown_names() {
        for host in ["", ":", ":80", "[", "[::1", "]", "[]:80", "\u{e9}"] {
            check(&["example.com", "::1"], host, None);
        }
    }
}
