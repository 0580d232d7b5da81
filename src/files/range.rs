//! Ranges of bytes (RFC 9110 14): which parts of a file a client asks for, and which of them it gets. Pure.

/// More ranges than this in one request are no reader's need: the header is then ignored, which is every server's right.
pub(super) const RANGES_MAX: usize = 64;

/// Ranges nearer to each other than this are sent as one: the head of a part of its own takes about as much.
const GAP: u64 = 80;

/// A part of a file, in bytes; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
}

impl Span {
    /// Number of bytes.
    pub fn length(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// What a `Range` header comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// It is to be ignored: the whole file.
    Whole,
    /// These parts, one at least, in the order they were asked for.
    Parts(Vec<Span>),
    /// None of what is asked for is there: 416.
    Unsatisfiable,
}

/// Reads a `Range` header for a file of `size` bytes.
///
/// What is malformed, in another unit, or an abuse is ignored: more than 64 ranges, or ranges that
/// together are more than the file (they overlap, and would make a small request cost many files). Ranges that touch or
/// nearly touch become one (RFC 9110 15.3.7.2).
pub fn ranges(value: &[u8], size: u64) -> Ranges {
    let Some(set) = byte_set(value) else {
        return Ranges::Whole;
    };
    // Nothing can be a part of nothing.
    if size == 0 {
        return Ranges::Whole;
    }
    let mut spans = Vec::new();
    let mut count = 0_usize;
    for element in set.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
        if element.is_empty() {
            continue;
        }
        count = count.saturating_add(1);
        if count > RANGES_MAX {
            return Ranges::Whole;
        }
        match span(element, size) {
            Some(span) if span.start < span.end => spans.push(span),
            Some(_) => {}
            None => return Ranges::Whole,
        }
    }
    if count == 0 {
        return Ranges::Whole;
    }
    if spans.is_empty() {
        return Ranges::Unsatisfiable;
    }
    let total = spans
        .iter()
        .fold(0_u64, |sum, span| sum.saturating_add(span.length()));
    if total > size {
        return Ranges::Whole;
    }
    Ranges::Parts(coalesce(spans))
}

fn byte_set(value: &[u8]) -> Option<&[u8]> {
    let (unit, set) = value.split_at_checked(5)?;
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    set.strip_prefix(b"=")
}

/// One range, empty when it lies outside the file; `None` when it is malformed.
fn span(text: &[u8], size: u64) -> Option<Span> {
    let dash = text.iter().position(|&byte| byte == b'-')?;
    let (first, last) = (text.get(..dash)?, text.get(dash.checked_add(1)?..)?);
    let span = match (first, last) {
        ([], last) => {
            let length = number(last)?.min(size);
            Span {
                start: size.saturating_sub(length),
                end: size,
            }
        }
        (first, []) => Span {
            start: number(first)?,
            end: size,
        },
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            Span {
                start: first,
                end: last.saturating_add(1).min(size),
            }
        }
    };
    Some(span)
}

/// Digits only; what is larger than any file is the largest number.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte & 15))?;
        Some(value.saturating_mul(10).saturating_add(digit))
    })
}

/// Joins what lies close together; each joint range stands where its first member stood.
fn coalesce(spans: Vec<Span>) -> Vec<Span> {
    let mut sorted: Vec<(usize, Span)> = spans.into_iter().enumerate().collect();
    sorted.sort_by_key(|(_, span)| span.start);
    let mut joined: Vec<(usize, Span)> = Vec::with_capacity(sorted.len());
    for (place, span) in sorted {
        match joined.last_mut() {
            Some((first, last)) if span.start < last.end.saturating_add(GAP) => {
                last.end = last.end.max(span.end);
                *first = place.min(*first);
            }
            _ => joined.push((place, span)),
        }
    }
    joined.sort_by_key(|(place, _)| *place);
    joined.into_iter().map(|(_, span)| span).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(spans: &[(u64, u64)]) -> Ranges {
        Ranges::Parts(
            spans
                .iter()
                .map(|&(start, end)| Span { start, end })
                .collect(),
        )
    }

    #[test]
    fn a_range_is_the_part_it_names() {
        for (value, expect) in [
            ("bytes=0-3", parts(&[(0, 4)])),
            ("Bytes=0-3", parts(&[(0, 4)])),
            ("bytes=5-", parts(&[(5, 1000)])),
            ("bytes=-5", parts(&[(995, 1000)])),
            ("bytes=-5000", parts(&[(0, 1000)])),
            ("bytes=999-", parts(&[(999, 1000)])),
            ("bytes=0-99999999999999999999999999", parts(&[(0, 1000)])),
            ("bytes= 0-3 ,, 500-503", parts(&[(0, 4), (500, 504)])),
            ("bytes=500-503,0-3", parts(&[(500, 504), (0, 4)])),
            ("bytes=0-3,5000-", parts(&[(0, 4)])),
            ("bytes=1000-", Ranges::Unsatisfiable),
            ("bytes=-0", Ranges::Unsatisfiable),
            ("bytes=2000-3000,-0", Ranges::Unsatisfiable),
        ] {
            assert_eq!(ranges(value.as_bytes(), 1000), expect, "{value}");
        }
    }

    #[test]
    fn what_is_malformed_is_ignored() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=3-1",
            "bytes=0-3,x",
            "bytes=+1-2",
            "bytes=--5",
            "bytes=0-3-5",
            "items=0-3",
            "bytes 0-3",
            "bytes=0x0-3",
            "bytes =0-3",
        ] {
            assert_eq!(ranges(value.as_bytes(), 1000), Ranges::Whole, "{value}");
        }
    }

    #[test]
    fn an_empty_file_has_no_parts() {
        assert_eq!(ranges(b"bytes=0-", 0), Ranges::Whole);
        assert_eq!(ranges(b"bytes=-1", 0), Ranges::Whole);
    }

    #[test]
    fn ranges_that_nearly_touch_become_one() {
        assert_eq!(ranges(b"bytes=0-9,20-29", 1000), parts(&[(0, 30)]));
        assert_eq!(
            ranges(b"bytes=500-509,0-9,10-19", 1000),
            parts(&[(500, 510), (0, 20)])
        );
        assert_eq!(
            ranges(b"bytes=0-9,90-99", 1000),
            parts(&[(0, 10), (90, 100)])
        );
    }

    #[test]
    fn sets_that_would_cost_more_than_the_file_are_ignored() {
        assert_eq!(ranges(b"bytes=0-,0-,0-", 1000), Ranges::Whole);
        assert_eq!(ranges(b"bytes=0-999,0-0", 1000), Ranges::Whole);
        let many = |count: u64| {
            let list: Vec<String> = (0..count).map(|n| format!("{0}-{0}", n * 1000)).collect();
            format!("bytes={}", list.join(","))
        };
        assert!(
            matches!(ranges(many(64).as_bytes(), 1 << 20), Ranges::Parts(parts) if parts.len() == 64)
        );
        assert_eq!(ranges(many(65).as_bytes(), 1 << 20), Ranges::Whole);
    }

    proptest! {
        #[test]
        fn parts_lie_in_the_file_and_apart(
            value in prop::collection::vec(prop::sample::select(b"0123456789-, ".to_vec()), 0..60), size in 0_u64..5000) {
            let value = [b"bytes=".as_slice(), &value].concat();
            if let Ranges::Parts(parts) = ranges(&value, size) {
                prop_assert!(!parts.is_empty() && parts.len() <= RANGES_MAX);
                let mut sorted = parts;
                sorted.sort_by_key(|span| span.start);
                for span in &sorted {
                    prop_assert!(span.start < span.end && span.end <= size);
                }
                for two in sorted.windows(2) {
                    prop_assert!(two[0].end + GAP <= two[1].start);
                }
            }
        }
    }
}
