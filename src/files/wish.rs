//! What a request wants of a file: its conditions, ranges and codings (RFC 9110 8.8, 12.5.3, 13, 14), and what follows from
//! them for one form of the file. Pure: it is told what time it is and what the file is like.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use super::encoding::Acceptable;
use super::range::{Ranges, Span, ranges};

/// The fields of a request that decide what it gets. Several lines of one name are one list (RFC 9110 5.3).
#[derive(Debug, Clone, Default)]
pub struct Wish<'a> {
    /// The method is HEAD.
    pub head: bool,
    if_match: Value<'a>,
    if_none_match: Value<'a>,
    if_modified_since: Value<'a>,
    if_unmodified_since: Value<'a>,
    if_range: Value<'a>,
    range: Value<'a>,
    accept_encoding: Value<'a>,
}

type Value<'a> = Option<Cow<'a, [u8]>>;

/// What conditions are compared with.
#[derive(Debug, Clone, Copy)]
pub struct Validators<'a> {
    /// The strong entity tag, without its quotes.
    pub tag: &'a str,
    /// The time of the last change, in whole seconds.
    pub modified: SystemTime,
    /// Bytes of the form.
    pub size: u64,
}

/// What a request gets of a file that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// 200 with all of it.
    Whole,
    /// 206 with these parts, one at least.
    Parts(Vec<Span>),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416.
    Unsatisfiable,
}

impl<'a> Wish<'a> {
    /// Nothing but the file, or with HEAD what would be said about it.
    pub fn new(head: bool) -> Self {
        Self {
            head,
            ..Self::default()
        }
    }

    /// Looks at one field of the request.
    pub fn note(&mut self, name: &[u8], value: &'a [u8]) {
        let (wanted, slot): (&[u8], _) = match (name.len(), name.get(3)) {
            (5, _) => (b"range", &mut self.range),
            (8, Some(b'm' | b'M')) => (b"if-match", &mut self.if_match),
            (8, _) => (b"if-range", &mut self.if_range),
            (13, _) => (b"if-none-match", &mut self.if_none_match),
            (15, _) => (b"accept-encoding", &mut self.accept_encoding),
            (17, _) => (b"if-modified-since", &mut self.if_modified_since),
            (19, _) => (b"if-unmodified-since", &mut self.if_unmodified_since),
            _ => return,
        };
        if !name.eq_ignore_ascii_case(wanted) {
            return;
        }
        match slot {
            None => *slot = Some(Cow::Borrowed(value)),
            Some(before) => {
                let list = before.to_mut();
                list.extend_from_slice(b", ");
                list.extend_from_slice(value);
            }
        }
    }

    /// The same, for a task that outlives the request's head.
    pub fn into_owned(self) -> Wish<'static> {
        let own = |value: Value<'_>| value.map(|value| Cow::Owned(value.into_owned()));
        Wish {
            head: self.head,
            if_match: own(self.if_match),
            if_none_match: own(self.if_none_match),
            if_modified_since: own(self.if_modified_since),
            if_unmodified_since: own(self.if_unmodified_since),
            if_range: own(self.if_range),
            range: own(self.range),
            accept_encoding: own(self.accept_encoding),
        }
    }

    /// Which codings are welcome.
    pub fn acceptable(&self) -> Acceptable {
        Acceptable::parse(self.accept_encoding.as_deref())
    }

    /// Evaluates the conditions in RFC 9110 13.2.2's order, then the ranges.
    pub fn decide(&self, file: Validators<'_>, now: SystemTime) -> Decision {
        if let Some(tags) = &self.if_match {
            if !names(tags, file.tag, Comparison::Strong) {
                return Decision::PreconditionFailed;
            }
        } else if let Some(date) = date(self.if_unmodified_since.as_deref())
            && file.modified > date
        {
            return Decision::PreconditionFailed;
        }
        if let Some(tags) = &self.if_none_match {
            if names(tags, file.tag, Comparison::Weak) {
                return Decision::NotModified;
            }
        } else if let Some(date) = date(self.if_modified_since.as_deref())
            // A date to come was never ours: as in Mongrel2 it does not count.
            && date <= now
            && file.modified <= date
        {
            return Decision::NotModified;
        }
        let Some(range) = &self.range else {
            return Decision::Whole;
        };
        // A range is defined for GET only (RFC 9110 14.2).
        if self.head || !self.range_holds(file, now) {
            return Decision::Whole;
        }
        match ranges(range, file.size) {
            Ranges::Whole => Decision::Whole,
            Ranges::Parts(parts) => Decision::Parts(parts),
            Ranges::Unsatisfiable => Decision::Unsatisfiable,
        }
    }

    /// `If-Range`: whether the part is of the file that the client has the rest of. A date is good for that only when the
    /// file cannot have changed twice within it (RFC 9110 8.8.2.2).
    fn range_holds(&self, file: Validators<'_>, now: SystemTime) -> bool {
        let Some(value) = self.if_range.as_deref() else {
            return true;
        };
        match date(Some(value)) {
            Some(date) => date == file.modified && file.modified + Duration::from_secs(1) < now,
            // One tag, never a list or a star.
            None => strip(value).is_some_and(|tag| tag == file.tag.as_bytes()),
        }
    }
}

fn date(value: Option<&[u8]>) -> Option<SystemTime> {
    httpdate::parse_http_date(str::from_utf8(value?).ok()?).ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    /// Weak tags are equal to none.
    Strong,
    /// `W/` makes no difference.
    Weak,
}

/// The text between quotes.
fn strip(tag: &[u8]) -> Option<&[u8]> {
    tag.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

/// Whether a list of entity tags names this one, or is `*`. A tag without quotes is compared as if it had some: Mongrel2's had
/// none, and caches still hold them.
fn names(list: &[u8], tag: &str, comparison: Comparison) -> bool {
    let mut rest = list.trim_ascii();
    if rest == b"*" {
        return true;
    }
    while !rest.is_empty() {
        let weak = rest.starts_with(b"W/");
        let start = rest.get(2..).filter(|_| weak).unwrap_or(rest);
        let (text, after) = if let Some(quoted) = start.strip_prefix(b"\"") {
            // Commas may be inside; a quote may not.
            let Some(end) = quoted.iter().position(|&byte| byte == b'"') else {
                return false;
            };
            let (text, after) = quoted.split_at_checked(end).unwrap_or((quoted, b""));
            (text, after.get(1..).unwrap_or_default())
        } else {
            let end = start.iter().position(|&byte| byte == b',');
            let (text, after) = end
                .and_then(|end| start.split_at_checked(end))
                .unwrap_or((start, b""));
            (text.trim_ascii(), after)
        };
        if text == tag.as_bytes() && !(weak && comparison == Comparison::Strong) {
            return true;
        }
        rest = after;
        while let [b',' | b' ' | b'\t', next @ ..] = rest {
            rest = next;
        }
        // Something is glued to the tag: passed over, byte by byte at the worst.
        if rest.len() == after.len()
            && let Some(comma) = rest.iter().position(|&byte| byte == b',')
        {
            rest = rest.get(comma..).unwrap_or_default();
        } else if rest.len() == after.len() {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODIFIED: u64 = 1_577_934_245;

    fn decide(fields: &[(&str, &str)]) -> Decision {
        let mut wish = Wish::new(false);
        for (name, value) in fields {
            wish.note(name.as_bytes(), value.as_bytes());
        }
        let file = Validators {
            tag: "5e0d5da5-b",
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(MODIFIED),
            size: 11,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(MODIFIED + 1_000_000);
        let owned = wish.clone().into_owned();
        assert_eq!(wish.decide(file, now), owned.decide(file, now));
        owned.decide(file, now)
    }

    const THEN: &str = "Thu, 02 Jan 2020 03:04:05 GMT";
    const BEFORE: &str = "Thu, 02 Jan 2020 03:04:04 GMT";
    const AFTER: &str = "Thu, 02 Jan 2020 03:04:06 GMT";

    #[test]
    fn each_condition_does_what_it_says() {
        use Decision::{NotModified, PreconditionFailed, Whole};
        for (name, value, expect) in [
            ("If-Match", "\"5e0d5da5-b\"", Whole),
            ("If-Match", "\"x\", \"5e0d5da5-b\"", Whole),
            ("If-Match", "*", Whole),
            ("If-Match", "\"x\"", PreconditionFailed),
            ("If-Match", "", PreconditionFailed),
            ("If-Match", "W/\"5e0d5da5-b\"", PreconditionFailed),
            ("If-None-Match", "\"5e0d5da5-b\"", NotModified),
            ("If-None-Match", "W/\"5e0d5da5-b\"", NotModified),
            (
                "If-None-Match",
                "\"a,b\" ,W/\"x\",\"5e0d5da5-b\"",
                NotModified,
            ),
            ("If-None-Match", "*", NotModified),
            ("If-None-Match", "5e0d5da5-b", NotModified),
            ("If-None-Match", "x, 5e0d5da5-b", NotModified),
            ("If-None-Match", "\"5e0d5da5-c\"", Whole),
            ("If-None-Match", "\"5e0d5da5-b", Whole),
            ("If-None-Match", "\"x\"\"5e0d5da5-b\"", Whole),
            ("If-None-Match", "\"x\"y, \"5e0d5da5-b\"", NotModified),
            ("If-None-Match", "\"x,5e0d5da5-b\"", Whole),
            ("If-Modified-Since", THEN, NotModified),
            ("If-Modified-Since", AFTER, NotModified),
            ("If-Modified-Since", BEFORE, Whole),
            ("If-Modified-Since", "garbage", Whole),
            ("If-Modified-Since", "Thu, 02 Jan 2036 03:04:04 GMT", Whole),
            (
                "If-Modified-Since",
                "Thursday, 02-Jan-20 03:04:05 GMT",
                NotModified,
            ),
            ("If-Modified-Since", "Thu Jan  2 03:04:05 2020", NotModified),
            ("If-Unmodified-Since", THEN, Whole),
            ("If-Unmodified-Since", AFTER, Whole),
            ("If-Unmodified-Since", BEFORE, PreconditionFailed),
            ("If-Unmodified-Since", "garbage", Whole),
        ] {
            assert_eq!(decide(&[(name, value)]), expect, "{name}: {value}");
        }
    }

    #[test]
    fn tags_go_before_dates_and_several_lines_are_one_list() {
        let none = ("If-None-Match", "\"x\"");
        assert_eq!(
            decide(&[none, ("If-Modified-Since", THEN)]),
            Decision::Whole
        );
        let all = ("if-match", "\"5e0d5da5-b\"");
        assert_eq!(
            decide(&[all, ("If-Unmodified-Since", BEFORE)]),
            Decision::Whole
        );
        assert_eq!(
            decide(&[none, ("IF-NONE-MATCH", "\"5e0d5da5-b\"")]),
            Decision::NotModified
        );
        assert_eq!(
            decide(&[("If-Match", "\"x\""), ("If-None-Match", "*")]),
            Decision::PreconditionFailed
        );
        // Two dates are no date.
        assert_eq!(
            decide(&[("If-Modified-Since", THEN), ("If-Modified-Since", THEN)]),
            Decision::Whole
        );
    }

    #[test]
    fn a_range_is_given_when_the_file_is_still_the_same() {
        let part = Decision::Parts(vec![Span { start: 0, end: 4 }]);
        let range = ("Range", "bytes=0-3");
        for (value, expect) in [
            ("\"5e0d5da5-b\"", &part),
            (THEN, &part),
            ("W/\"5e0d5da5-b\"", &Decision::Whole),
            ("\"x\"", &Decision::Whole),
            ("5e0d5da5-b", &Decision::Whole),
            ("*", &Decision::Whole),
            (AFTER, &Decision::Whole),
            (BEFORE, &Decision::Whole),
        ] {
            assert_eq!(&decide(&[range, ("If-Range", value)]), expect, "{value}");
        }
        assert_eq!(decide(&[range]), part);
        assert_eq!(decide(&[("Range", "bytes=11-")]), Decision::Unsatisfiable);
        assert_eq!(
            decide(&[("Range", "bytes=11-"), ("If-Range", "\"x\"")]),
            Decision::Whole
        );
        assert_eq!(
            decide(&[range, ("If-None-Match", "*")]),
            Decision::NotModified
        );
        assert_eq!(decide(&[range, range]), Decision::Whole);
    }

    #[test]
    fn a_date_of_this_second_is_too_coarse_for_a_range() {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(MODIFIED);
        let file = Validators {
            tag: "x",
            modified,
            size: 11,
        };
        let mut wish = Wish::new(false);
        wish.note(b"Range", b"bytes=0-3");
        wish.note(b"If-Range", THEN.as_bytes());
        assert_eq!(wish.decide(file, modified), Decision::Whole);
    }

    #[test]
    fn head_has_conditions_and_no_ranges() {
        let mut wish = Wish::new(true);
        wish.note(b"range", b"bytes=0-3");
        let file = Validators {
            tag: "x",
            modified: SystemTime::UNIX_EPOCH,
            size: 11,
        };
        assert_eq!(wish.decide(file, SystemTime::now()), Decision::Whole);
        wish.note(b"if-none-match", b"\"x\"");
        assert_eq!(wish.decide(file, SystemTime::now()), Decision::NotModified);
    }

    proptest! {
        #[test]
        fn any_list_of_tags_is_safe(list in prop::collection::vec(prop::sample::select(b"W/\"x,* \t".to_vec()), 0..30)) {
            names(&list, "x", Comparison::Weak);
        }
    }
}
