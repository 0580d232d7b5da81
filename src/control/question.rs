//! What operators send: `[command, {argument: value}]`.

use crate::tnetstring::{self, Limits, Parsed, Value};

/// How deep a question may nest; the known ones have a dict in a list.
const DEPTH_MAX: usize = 8;

/// The value of an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A number.
    Integer(i64),
    /// A text.
    Text(String),
}

impl Argument {
    /// A value as it is typed. As Mongrel2's `m2sh control` has it, digits, with `-` before them or without, are a number.
    pub fn typed(text: &str) -> Self {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if is_number => Self::Integer(number),
            _ => Self::Text(text.to_owned()),
        }
    }
}

/// A question as operators ask it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The command.
    pub command: String,
    /// Its arguments; where a name is repeated, the last one counts.
    pub arguments: Vec<(String, Argument)>,
}

impl Question {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        tnetstring::write_list(&mut out, |out| {
            tnetstring::write_bytes(out, self.command.as_bytes());
            tnetstring::write_dict(out, |out| {
                for (name, value) in &self.arguments {
                    tnetstring::write_bytes(out, name.as_bytes());
                    match value {
                        Argument::Integer(number) => tnetstring::write_integer(out, *number),
                        Argument::Text(text) => tnetstring::write_bytes(out, text.as_bytes()),
                    }
                }
            });
        });
        out
    }
}

/// A question as it was received.
#[derive(Debug, PartialEq)]
pub(super) struct Asked<'a> {
    pub(super) command: &'a [u8],
    arguments: Value<'a>,
}

/// Why bytes are no question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    /// A value that is no list.
    NotAList,
    /// No value, or a list of something else.
    NotAQuestion,
}

impl<'a> Asked<'a> {
    /// Reads a question. As in Mongrel2, what stands behind its first two elements is ignored, and so is what stands behind
    /// the list; a null is no value there.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let limits = Limits {
            depth: DEPTH_MAX,
            ..Limits::DEFAULT
        };
        let Ok(Parsed::Complete { value, .. }) = tnetstring::parse(bytes, limits) else {
            return Err(Malformed::NotAQuestion);
        };
        match value {
            Value::List(elements) => {
                let mut elements = elements.into_iter();
                match (elements.next(), elements.next()) {
                    (Some(Value::Bytes(command)), Some(arguments @ Value::Dict(_))) => {
                        Ok(Self { command, arguments })
                    }
                    _ => Err(Malformed::NotAQuestion),
                }
            }
            Value::Null | Value::Float(_) => Err(Malformed::NotAQuestion),
            _ => Err(Malformed::NotAList),
        }
    }

    /// An argument that is a text.
    pub(super) fn text(&self, name: &str) -> Option<&'a [u8]> {
        self.arguments.get(name)?.as_bytes()
    }

    /// An argument that is a number.
    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        self.arguments.get(name)?.as_integer()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_again() {
        let question = Question {
            command: "kill".to_owned(),
            arguments: vec![
                ("id".to_owned(), Argument::Integer(-7)),
                ("what".to_owned(), Argument::Text("net".to_owned())),
            ],
        };
        let bytes = question.encode();
        assert_eq!(bytes, b"34:4:kill,23:2:id,2:-7#4:what,3:net,}]");
        let asked = Asked::decode(&bytes).unwrap();
        assert_eq!(
            (asked.command, asked.integer("id"), asked.text("what")),
            (&b"kill"[..], Some(-7), Some(&b"net"[..]))
        );
        assert_eq!((asked.text("id"), asked.integer("none")), (None, None));
    }

    #[test]
    fn digits_are_numbers_and_the_rest_is_text() {
        for (typed, number) in [("0", 0), ("123", 123), ("-1", -1), ("007", 7)] {
            assert_eq!(Argument::typed(typed), Argument::Integer(number));
        }
        for typed in [
            "",
            "-",
            "+1",
            "1a",
            "net",
            "99999999999999999999",
            "1.5",
            "--1",
        ] {
            assert_eq!(Argument::typed(typed), Argument::Text(typed.to_owned()));
        }
    }

    #[test]
    fn two_elements_count_and_nothing_behind_them() {
        for question in [
            &b"10:4:time,0:}]"[..],
            b"10:4:time,0:}]\0",
            b"10:4:time,0:}]garbage",
            b"17:4:time,0:}4:junk,]",
        ] {
            assert_eq!(Asked::decode(question).unwrap().command, b"time");
        }
        for question in [
            &b""[..],
            b"hello",
            b"0:]",
            b"0:~",
            b"3:1.5^",
            b"10:abc",
            b"7:4:time,]",
            b"17:4:time,4:junk,0:}]",
            b"7:1:1#0:}]",
        ] {
            assert_eq!(Asked::decode(question), Err(Malformed::NotAQuestion));
        }
        for question in [&b"4:help,"[..], b"1:4#", b"0:}", b"4:true!"] {
            assert_eq!(Asked::decode(question), Err(Malformed::NotAList));
        }
    }

    #[test]
    fn every_cut_and_every_nesting_is_read_or_refused() {
        let question = b"41:6:status,28:4:what,3:net,4:what,5:tasks,}]";
        for end in 0..question.len() {
            assert_eq!(
                Asked::decode(&question[..end]),
                Err(Malformed::NotAQuestion)
            );
        }
        assert_eq!(
            Asked::decode(question).unwrap().text("what"),
            Some(&b"tasks"[..])
        );
        let mut deep = Vec::new();
        for _ in 0..10_000 {
            let inner = std::mem::take(&mut deep);
            tnetstring::write_element(&mut deep, b']', &inner);
        }
        assert_eq!(Asked::decode(&deep), Err(Malformed::NotAQuestion));
    }
}
