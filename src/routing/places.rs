//! Places of applications: a host, any or named, and a path with all below it. Other rules than Mongrel2's, for who has several
//! applications behind one route of a server.
//!
//! A host that is named goes before one that is meant by `*.`, of those the longer before the shorter, and those before any. Among the
//! places of a host the longest path has it, which ends where a segment does: `/blog` has `/blog` and `/blog/x`, not `/blogs`. A host that
//! is named has what is at any host too, where none of its own places fits.

/// Where an application is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// The host, in small letters and without a port; `*.` before it means all below it; empty: any.
    pub host: String,
    /// The path, without a slash at the end; empty: all.
    pub path: String,
}

/// Several of them, by their numbers.
#[derive(Debug, Clone, Default)]
pub struct Places {
    all: Vec<Place>,
    has_hosts: bool,
    is_whole: bool,
}

impl Place {
    /// How many bytes of a path, as the client sent it, are the place's; none: it is not below it. A letter may be escaped, a slash may
    /// not: that is part of a segment.
    pub fn consumed(&self, path: &[u8]) -> Option<usize> {
        let mut at = 0;
        for wanted in self.path.bytes() {
            let (byte, length) = match path.get(at)? {
                b'%' => (escaped(path.get(at + 1..at + 3)?)?, 3),
                byte => (*byte, 1),
            };
            if byte != wanted || (length == 3 && byte == b'/') {
                return None;
            }
            at += length;
        }
        match path.get(at) {
            None | Some(b'/' | b'?') => Some(at),
            Some(_) => self.path.is_empty().then_some(at),
        }
    }

    /// How well it fits a host: the higher the better.
    fn fits(&self, host: &[u8]) -> Option<usize> {
        if self.host.is_empty() {
            return Some(0);
        }
        match self.host.strip_prefix('*') {
            Some(end) => {
                let rest = host.len().checked_sub(end.len()).filter(|rest| *rest > 0)?;
                let tail = host.get(rest..)?;
                tail.eq_ignore_ascii_case(end.as_bytes())
                    .then_some(end.len())
            }
            None => host
                .eq_ignore_ascii_case(self.host.as_bytes())
                .then_some(usize::MAX),
        }
    }
}

impl Places {
    /// These, no two of which are the same.
    pub fn new(all: Vec<Place>) -> Self {
        Self {
            has_hosts: all.iter().any(|place| !place.host.is_empty()),
            is_whole: matches!(all.as_slice(), [one] if *one == Place::default()),
            all,
        }
    }

    /// Whether one of them has everything, so that nothing need be looked at.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether hosts matter.
    pub fn has_hosts(&self) -> bool {
        self.has_hosts
    }

    /// The number of the place that a request belongs to, by its Host header, with or without a port, and its path as it was sent.
    pub fn find(&self, host: &[u8], path: &[u8]) -> Option<usize> {
        if self.is_whole {
            return Some(0);
        }
        let host = without_port(host);
        let fitting = self.all.iter().enumerate().filter_map(|(at, place)| {
            place.consumed(path)?;
            Some((place.fits(host)?, place.path.len(), at))
        });
        let best = fitting.max_by_key(|(fits, length, _)| (*fits, *length))?;
        Some(best.2)
    }
}

fn escaped(digits: &[u8]) -> Option<u8> {
    let value = |digit: &u8| char::from(*digit).to_digit(16);
    match digits {
        [high, low] => u8::try_from(value(high)? * 16 + value(low)?).ok(),
        _ => None,
    }
}

/// The host of a Host header: its port is nobody's matter, nor a dot at its end.
fn without_port(host: &[u8]) -> &[u8] {
    let end = host
        .iter()
        .rposition(|byte| !byte.is_ascii_digit())
        .filter(|at| host.get(*at) == Some(&b':'));
    let name = end.and_then(|end| host.get(..end)).unwrap_or(host);
    name.strip_suffix(b".").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(all: &[(&str, &str)]) -> Places {
        let all = all.iter().map(|(host, path)| Place {
            host: (*host).to_owned(),
            path: (*path).to_owned(),
        });
        Places::new(all.collect())
    }

    #[test]
    fn the_longest_path_that_ends_with_a_segment_has_it() {
        let places = places(&[("", "/blog"), ("", "/blog/old"), ("", "/api")]);
        let find = |path: &str| places.find(b"", path.as_bytes());
        for path in [
            "/blog",
            "/blog/",
            "/blog/x",
            "/blog?x",
            "/%62log/x",
            "/blog/older",
        ] {
            assert_eq!(find(path), Some(0), "{path}");
        }
        assert_eq!(find("/blog/old/x"), Some(1));
        assert_eq!(find("/api"), Some(2));
        for path in [
            "/", "", "/blogs", "/Blog", "/blo", "/%2fblog", "/%6", "/%+2log", "blog", "*",
        ] {
            assert_eq!(find(path), None, "{path}");
        }
    }

    #[test]
    fn an_escaped_slash_is_part_of_a_segment() {
        let places = places(&[("", "/a/b"), ("", "")]);
        assert_eq!(places.find(b"", b"/a%2Fb"), Some(1));
        assert_eq!(places.find(b"", b"/a/%62"), Some(0));
    }

    #[test]
    fn a_named_host_goes_before_all_below_one_and_those_before_any() {
        let places = places(&[
            ("", ""),
            ("*.example.com", ""),
            ("*.shop.example.com", ""),
            ("shop.example.com", ""),
            ("shop.example.com", "/x"),
            ("", "/only/here"),
        ]);
        assert!(places.has_hosts() && !places.is_whole());
        let find = |host: &str, path: &str| places.find(host.as_bytes(), path.as_bytes());
        assert_eq!(find("shop.example.com", "/"), Some(3));
        assert_eq!(find("SHOP.example.com.:8080", "/x"), Some(4));
        assert_eq!(find("a.shop.example.com", "/"), Some(2));
        assert_eq!(find("other.example.com:80", "/"), Some(1));
        assert_eq!(find("example.com", "/"), Some(0));
        assert_eq!(find("", "/"), Some(0));
        assert_eq!(find("[::1]:80", "/only/here"), Some(5));
        // What a host has of its own goes before longer paths at any.
        assert_eq!(find("shop.example.com", "/only/here"), Some(3));
    }

    #[test]
    fn how_much_of_a_path_is_the_places_is_counted_as_it_was_sent() {
        let place = Place {
            path: "/blog".to_owned(),
            ..Place::default()
        };
        assert_eq!(place.consumed(b"/blog/x"), Some(5));
        assert_eq!(place.consumed(b"/b%6Cog"), Some(7));
        assert_eq!(Place::default().consumed(b"/x"), Some(0));
        assert!(places(&[("", "")]).is_whole());
    }
}
