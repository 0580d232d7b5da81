//! Which requests belong to the same worker: the operator's rule for a key, and the key of one request.
//!
//! Pure: what is known of a request comes through [`Facts`], from a parsed head or from a decoded message alike, and what goes out is a
//! number. Two programs make the same number of the same request, so that several of them agree without talking to each other. It
//! does not choose the worker, and knows none.
//!
//! | rule | the key is |
//! |---|---|
//! | `conn` | the connection: its server and its id |
//! | `cookie:NAME` | the value of a cookie |
//! | `header:NAME` | the first value of a header of the client |
//! | `path:N` | the N-th part of the path, from 1 |
//! | `regex:EXPR` | what the groups of the expression match, joined, or all that it matches if it has none; it looks at `SENDER ID PATH HEADERS BODY`, as m2wsgi's does |
//!
//! Each may end in `,strict=SECONDS`: so long a request waits for its own worker before another may have it. A request in which there
//! is no such thing, or an empty one, has no key, and goes to any worker.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use regex::bytes::{Regex, RegexBuilder};

/// Longest expression, in bytes: it comes from a file or a command line, and is read by people.
const EXPR_MAX: usize = 1024;

/// Most memory that a compiled expression may take, and again what a search may keep, in bytes: some 50 times what ordinary ones do.
const REGEX_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a message that an expression looks at: heads, which are shorter, and the beginning of a body. A search takes linear time,
/// and this much takes less than a millisecond.
pub const SEARCH_BYTES_MAX: usize = 64 * 1024;

/// Longest wait for a worker of one's own, in seconds: an hour is longer than anybody waits for an answer.
const STRICT_MAX: f64 = 3600.0;

/// What stands before the seconds.
const STRICT: &str = ",strict=";

/// What a key can be made of.
pub trait Facts {
    /// The server's name for itself, as it stands in the message.
    fn sender(&self) -> &[u8];

    /// The connection's id.
    fn id(&self) -> u32;

    /// The path without the query, as it came.
    fn path(&self) -> &[u8];

    /// The value number `nth` (from 0) of a header of the client; `name` is in lower case, and headers are found in any.
    fn header(&self, name: &str, nth: usize) -> Option<&[u8]>;

    /// `SENDER ID PATH HEADERS BODY`, at least its first [`SEARCH_BYTES_MAX`] bytes. Asked for by expressions only.
    fn message(&self) -> Cow<'_, [u8]>;

    /// The first value of a cookie (RFC 6265 5.4: pairs divided by `;`, names compared byte by byte).
    fn cookie(&self, name: &str) -> Option<&[u8]> {
        (0..)
            .map_while(|nth| self.header("cookie", nth))
            .find_map(|line| cookie(line, name.as_bytes()))
    }
}

/// A rule for keys. Two are equal when they were written alike.
#[derive(Clone)]
pub struct Key {
    text: String,
    part: Part,
    strict: Option<Duration>,
}

#[derive(Clone)]
enum Part {
    Conn,
    Cookie(String),
    /// In lower case.
    Header(String),
    /// From 1.
    Path(usize),
    Regex(Regex),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// None of the five words.
    #[error("expected conn, cookie:NAME, header:NAME, path:N or regex:EXPR")]
    Kind,
    /// The name of a cookie or of a header.
    #[error("{0:?} is no name that a {1} can have")]
    Name(String, &'static str),
    /// The number of a part.
    #[error("{0:?} is no number of a part of a path, which are counted from 1")]
    Number(String),
    /// What stands behind `strict=`.
    #[error("strict={0} is not a time: more than 0 and at most 3600 seconds")]
    Strict(String),
    /// The expression is longer than allowed.
    #[error("the expression is longer than {EXPR_MAX} bytes")]
    TooLong,
    /// The expression is none, or too large a one.
    #[error("the expression is not understood: {0}")]
    Regex(String),
}

impl Key {
    /// Reads a rule.
    ///
    /// # Errors
    ///
    /// When the text is none of the module's table.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (rule, strict) = match text.rsplit_once(STRICT) {
            Some((rule, time)) => (rule, Some(seconds(time)?)),
            None => (text, None),
        };
        let part = match rule.split_once(':') {
            None if rule == "conn" => Part::Conn,
            Some(("cookie", name)) => Part::Cookie(token(name, "cookie")?.to_owned()),
            Some(("header", name)) => Part::Header(token(name, "header")?.to_ascii_lowercase()),
            Some(("path", number)) => Part::Path(
                number
                    .parse()
                    .ok()
                    .filter(|&number| number > 0)
                    .ok_or_else(|| KeyError::Number(number.to_owned()))?,
            ),
            Some(("regex", expr)) => Part::Regex(regex(expr)?),
            _ => return Err(KeyError::Kind),
        };
        Ok(Self {
            text: text.to_owned(),
            part,
            strict,
        })
    }

    /// How long a request waits for the worker of its key before it goes to another; `None`: not at all.
    pub fn strict(&self) -> Option<Duration> {
        self.strict
    }

    /// Whether the key can be had before the request has an id and a message: [`Facts::sender`], [`Facts::id`] and [`Facts::message`]
    /// are not asked for.
    pub fn needs_only_a_head(&self) -> bool {
        matches!(self.part, Part::Cookie(_) | Part::Header(_) | Part::Path(_))
    }

    /// The key of a request; `None`: it has none.
    pub fn of(&self, facts: &(impl Facts + ?Sized)) -> Option<u64> {
        let mut hash = Hash::default();
        match &self.part {
            Part::Conn => {
                hash.add(facts.sender());
                hash.add(b" ");
                hash.add(&facts.id().to_be_bytes());
            }
            Part::Cookie(name) => hash.add(facts.cookie(name)?),
            Part::Header(name) => hash.add(facts.header(name, 0)?),
            Part::Path(number) => hash.add(part_of_path(facts.path(), *number)?),
            Part::Regex(regex) => {
                let message = facts.message();
                let seen = message.get(..SEARCH_BYTES_MAX).unwrap_or(&message);
                let found = regex.captures(seen)?;
                if found.len() == 1 {
                    hash.add(found.get_match().as_bytes());
                }
                for group in found.iter().skip(1).flatten() {
                    hash.add(group.as_bytes());
                }
            }
        }
        hash.finish()
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::parse(text)
    }
}

/// As it was written.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.text).finish()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Key {}

fn seconds(text: &str) -> Result<Duration, KeyError> {
    text.parse()
        .ok()
        .filter(|&seconds: &f64| seconds > 0.0 && seconds <= STRICT_MAX)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| !time.is_zero())
        .ok_or_else(|| KeyError::Strict(text.to_owned()))
}

/// RFC 9110 5.6.2.
fn token<'t>(text: &'t str, what: &'static str) -> Result<&'t str, KeyError> {
    let may = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.is_empty() && text.bytes().all(may) {
        Ok(text)
    } else {
        Err(KeyError::Name(text.to_owned(), what))
    }
}

/// Compiles an expression for bytes: messages need not be UTF-8, and classes such as `\w` are those of ASCII.
fn regex(expr: &str) -> Result<Regex, KeyError> {
    if expr.len() > EXPR_MAX {
        return Err(KeyError::TooLong);
    }
    RegexBuilder::new(expr)
        .unicode(false)
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_BYTES_MAX)
        .build()
        .map_err(|error| {
            // The last line says what is wrong; those before it draw where.
            let text = error.to_string();
            let why = text.trim_end().lines().next_back().unwrap_or_default();
            KeyError::Regex(why.trim().trim_start_matches("error: ").to_owned())
        })
}

fn cookie<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    line.split(|&byte| byte == b';').find_map(|pair| {
        let value = pair.trim_ascii_start().strip_prefix(name)?;
        Some(value.strip_prefix(b"=")?.trim_ascii())
    })
}

fn part_of_path(path: &[u8], number: usize) -> Option<&[u8]> {
    // What stands before the first slash is part 0: nothing.
    path.split(|&byte| byte == b'/').nth(number)
}

/// FNV-1a over 64 bits, its bits mixed at the end. It needs no secret: a client that looks for values with one key finds a worker that has
/// room for as many requests as others have.
struct Hash {
    state: u64,
    is_empty: bool,
}

impl Default for Hash {
    fn default() -> Self {
        Self {
            state: 0xcbf2_9ce4_8422_2325,
            is_empty: true,
        }
    }
}

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.state = (self.state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.is_empty &= bytes.is_empty();
    }

    fn finish(self) -> Option<u64> {
        let mut mixed = self.state;
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            mixed = (mixed ^ (mixed >> 33)).wrapping_mul(factor);
        }
        (!self.is_empty).then_some(mixed ^ (mixed >> 33))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, Clone)]
    struct Asked {
        sender: &'static str,
        id: u32,
        path: &'static str,
        headers: Vec<(&'static str, &'static str)>,
        body: String,
    }

    impl Facts for Asked {
        fn sender(&self) -> &[u8] {
            self.sender.as_bytes()
        }

        fn id(&self) -> u32 {
            self.id
        }

        fn path(&self) -> &[u8] {
            self.path.as_bytes()
        }

        fn header(&self, name: &str, nth: usize) -> Option<&[u8]> {
            let mut values = self.headers.iter().filter(|(known, _)| *known == name);
            values.nth(nth).map(|(_, value)| value.as_bytes())
        }

        fn message(&self) -> Cow<'_, [u8]> {
            let (sender, id, path, body) = (self.sender, self.id, self.path, &self.body);
            format!("{sender} {id} {path} 2:{{}},{}:{body},", body.len())
                .into_bytes()
                .into()
        }
    }

    fn request() -> Asked {
        Asked {
            sender: "front-1",
            id: 7,
            path: "/shop/anna/cart",
            headers: vec![
                ("cookie", "theme=dark; sid=abc"),
                ("x-tenant", "acme"),
                ("x-tenant", "other"),
                ("cookie", "late=1"),
            ],
            body: "user=anna&x=1".to_owned(),
        }
    }

    fn key(rule: &str, facts: &Asked) -> Option<u64> {
        Key::parse(rule).expect(rule).of(facts)
    }

    /// The key of a value, by the way that needs nothing else.
    fn of(value: &'static str) -> Option<u64> {
        let facts = Asked {
            headers: vec![("v", value)],
            ..Asked::default()
        };
        key("header:v", &facts)
    }

    #[test]
    fn each_rule_looks_at_its_own_part_of_a_request() {
        let request = request();
        for (rule, value) in [
            ("cookie:sid", "abc"),
            ("cookie:late", "1"),
            ("header:X-Tenant", "acme"),
            ("path:2", "anna"),
            ("regex:user=([a-z]+)", "anna"),
            ("regex:^[^ ]+ ([^ ]+) /([a-z]+)/", "7shop"),
            (r"regex:cart", "cart"),
            (r"regex:(nobody)?/(\w+)/anna", "shop"),
        ] {
            assert_eq!(key(rule, &request), of(value), "{rule}");
        }
    }

    #[test]
    fn a_connection_is_its_server_and_its_id() {
        let here = request();
        let mut there = here.clone();
        assert_eq!(key("conn", &here), key("conn", &there));
        there.id = 8;
        assert_ne!(key("conn", &here), key("conn", &there));
        there = here.clone();
        there.sender = "front-2";
        assert_ne!(key("conn", &here), key("conn", &there));
    }

    #[test]
    fn what_is_not_there_or_empty_has_no_key() {
        let mut request = request();
        request.headers.push(("cookie", "none=; broken"));
        request.path = "/a//b";
        for rule in [
            "cookie:id",
            "cookie:si",
            "cookie:SID",
            "cookie:none",
            "cookie:broken",
            "header:x-other",
            "path:2",
            "path:4",
            "path:18446744073709551615",
            "regex:zzz",
            "regex:()user",
        ] {
            assert_eq!(key(rule, &request), None, "{rule}");
        }
        request.path = "*";
        assert_eq!(key("path:1", &request), None);
    }

    #[test]
    fn a_message_is_searched_at_its_beginning_only() {
        let mut request = request();
        request.body = format!("{}needle", "x".repeat(SEARCH_BYTES_MAX));
        assert_eq!(key("regex:needle", &request), None);
        request.body.insert_str(0, "needle");
        assert_eq!(key("regex:needle", &request), of("needle"));
    }

    #[test]
    fn keys_are_the_same_in_every_program_that_ever_makes_them() {
        assert_eq!(of("abc"), Some(0x33eb_af99_27cb_c5bd));
        assert_eq!(key("conn", &request()), Some(0xbe0d_2e68_a2e9_4b00));
    }

    #[test]
    fn nearby_values_have_keys_far_apart() {
        // Every bit of the key of two values that differ in one bit: about half of them should differ.
        let (a, b) = (of("session-1").unwrap(), of("session-0").unwrap());
        assert!((16..=48).contains(&(a ^ b).count_ones()), "{a:x} {b:x}");
    }

    #[test]
    fn a_rule_is_written_as_it_was_read_and_may_be_strict() {
        for (text, strict) in [
            ("conn", None),
            ("cookie:sid,strict=2", Some(2000)),
            ("regex:a,b{1,2},strict=0.25", Some(250)),
            ("regex:a,strict", None),
        ] {
            let key = Key::parse(text).expect(text);
            assert_eq!(key.to_string(), text);
            assert_eq!(key.strict(), strict.map(Duration::from_millis), "{text}");
            assert_eq!(text.parse(), Ok(key));
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_reason() {
        for (text, why) in [
            ("", "expected conn"),
            ("cookies:a", "expected conn"),
            ("conn:1", "expected conn"),
            ("cookie", "expected conn"),
            ("cookie:", "\"\" is no name that a cookie"),
            ("header:a b", "\"a b\" is no name that a header"),
            ("path:0", "\"0\" is no number"),
            ("path:x", "\"x\" is no number"),
            ("conn,strict=0", "strict=0 is not a time"),
            ("conn,strict=-1", "strict=-1 is not a time"),
            ("conn,strict=nan", "strict=nan is not a time"),
            ("conn,strict=1e-30", "strict=1e-30 is not a time"),
            ("conn,strict=3601", "strict=3601 is not a time"),
            ("conn,strict=", "strict= is not a time"),
            ("regex:(", "unclosed group"),
            (r"regex:\w{999}{999}", "exceeds size limit"),
        ] {
            let error = Key::parse(text).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let long = format!("regex:{}", "a".repeat(EXPR_MAX + 1));
        assert_eq!(Key::parse(&long), Err(KeyError::TooLong));
    }
}
