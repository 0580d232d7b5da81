//! Reading as much of an ordinary HTTP request as somebody needs who only passes it on: no table of headers, nothing allocated.
//!
//! What is the least bit out of the ordinary is left to [`Request::decode`](super::Request::decode), which also says what is wrong
//! with it. What is told here is what it would tell.

use memchr::memchr;

use super::decode::{LIMITS, number, says_close};
use crate::tnetstring::{self, Split};
use crate::wire::ConnId;

/// An ordinary HTTP request, for which [`Request::kind`](super::Request::kind) would say [`Kind::Http`](super::Kind::Http).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance<'a> {
    /// As [`Request::sender`](super::Request::sender).
    pub sender: &'a [u8],
    /// The client connection.
    pub conn_id: ConnId,
    /// The path as it was received.
    pub path: &'a [u8],
    /// The request method.
    pub method: &'a [u8],
    /// `HTTP/1.0` or `HTTP/1.1`.
    pub version: &'a [u8],
    connection: Option<&'a [u8]>,
    behind_address: usize,
}

impl<'a> Glance<'a> {
    /// Looks at a message. None for whatever is no ordinary request with its headers in JSON as fronts write it: without white space,
    /// every value a text, in ASCII without escapes.
    pub fn of(message: &'a [u8]) -> Option<Self> {
        let (sender, rest) = word(message)?;
        let (id, behind) = word(rest)?;
        let (path, rest) = word(behind)?;
        if sender.is_empty() {
            return None;
        }
        let (headers, rest) = text(rest)?;
        let (_, []) = text(rest)? else {
            return None;
        };
        if !headers.is_ascii() || memchr(b'\\', headers).is_some() {
            return None;
        }
        let (mut method, mut version, mut connection) = (None, None, None);
        let mut left = headers.strip_prefix(b"{")?;
        loop {
            let (name, behind) = string(left)?;
            let (value, behind) = string(behind.strip_prefix(b":")?)?;
            // The last one counts, should a name come twice.
            match name {
                b"METHOD" => method = Some(value),
                b"VERSION" => version = Some(value),
                b"connection" => connection = Some(value),
                b"UPLOAD_STREAM" | b"x-mongrel2-upload-start" | b"x-mongrel2-upload-done" => {
                    return None;
                }
                _ => {}
            }
            match behind {
                [b',', behind @ ..] => left = behind,
                b"}" => break,
                _ => return None,
            }
        }
        let method = method.filter(|method| !method.starts_with(b"WEBSOCKET"))?;
        Some(Self {
            sender,
            conn_id: number(id).ok()?,
            path,
            method,
            version: version?,
            connection,
            behind_address: message.len().saturating_sub(behind.len()),
        })
    }

    /// Where the path begins in the message.
    pub fn behind_address(&self) -> usize {
        self.behind_address
    }

    /// As [`Request::should_close`](super::Request::should_close).
    pub fn should_close(&self) -> bool {
        says_close(&self.connection.into_iter(), Some(self.version))
    }
}

/// What is before the next space, and what is behind it.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (word, behind) = text.split_at_checked(memchr(b' ', text)?)?;
    Some((word, behind.get(1..)?))
}

/// The payload of a netstring, and what is behind it.
fn text(input: &[u8]) -> Option<(&[u8], &[u8])> {
    match tnetstring::split(input, LIMITS) {
        Ok(Split::Complete(element)) if element.tag == b',' => {
            Some((element.payload, element.rest))
        }
        _ => None,
    }
}

/// What is between two quotes, and what is behind them. There are no escapes.
fn string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_prefix(b"\"")?;
    let (string, behind) = text.split_at_checked(memchr(b'"', text)?)?;
    Some((string, behind.get(1..)?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::{Kind, Request};
    use super::*;

    fn message(headers: &str) -> String {
        let length = headers.len();
        format!("front-1 42 /a {length}:{headers},4:body,")
    }

    /// What a glance tells is what the message says.
    fn agrees(message: &str) -> bool {
        let Some(glance) = Glance::of(message.as_bytes()) else {
            return false;
        };
        let request = Request::decode(Bytes::copy_from_slice(message.as_bytes())).unwrap();
        assert_eq!(request.kind(), Kind::Http);
        assert_eq!(glance.sender, request.sender);
        assert_eq!(glance.conn_id, request.conn_id);
        assert_eq!(glance.path, request.path);
        assert_eq!(Some(glance.method), request.method());
        assert_eq!(Some(glance.version), request.version());
        assert_eq!(glance.should_close(), request.should_close());
        assert!(message.as_bytes()[glance.behind_address()..].starts_with(&request.path));
        true
    }

    #[test]
    fn an_ordinary_request_needs_no_more_than_a_glance() {
        for headers in [
            r#"{"PATH":"/a","METHOD":"GET","VERSION":"HTTP/1.1","host":"a"}"#,
            r#"{"METHOD":"POST","VERSION":"HTTP/1.0"}"#,
            r#"{"METHOD":"POST","VERSION":"HTTP/1.0","connection":"Keep-Alive"}"#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1","connection":"x, Close"}"#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1","METHOD":"HEAD"}"#,
            r#"{"METHOD":"JSON","VERSION":"HTTP/1.1"}"#,
        ] {
            assert!(agrees(&message(headers)), "{headers}");
        }
    }

    #[test]
    fn what_is_out_of_the_ordinary_is_left_to_others() {
        for headers in [
            "{}",
            r#"{"METHOD":"GET"}"#,
            r#"{"METHOD":"JSON","PATH":"@*"}"#,
            r#"{ "METHOD":"GET","VERSION":"HTTP/1.1"}"#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1","a":["x","y"]}"#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1","a":"\n"}"#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1","a":"é"}"#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1","a":1}"#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1"}}"#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1""#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1","UPLOAD_STREAM":"0"}"#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1","x-mongrel2-upload-start":"f"}"#,
            r#"{"METHOD":"GET","VERSION":"HTTP/1.1","x-mongrel2-upload-done":"f"}"#,
            r#"{"METHOD":"WEBSOCKET","VERSION":"HTTP/1.1","FLAGS":"0x81"}"#,
            r#"{"METHOD":"WEBSOCKET_HANDSHAKE","VERSION":"HTTP/1.1"}"#,
        ] {
            assert_eq!(Glance::of(message(headers).as_bytes()), None, "{headers}");
        }
        let good = message(r#"{"METHOD":"GET","VERSION":"HTTP/1.1"}"#);
        assert!(agrees(&good));
        for cut in 0..good.len() {
            assert_eq!(Glance::of(&good.as_bytes()[..cut]), None, "{cut}");
        }
        assert_eq!(Glance::of(format!("{good}x").as_bytes()), None);
        assert_eq!(Glance::of(good.replace("42", "4x").as_bytes()), None);
    }

    proptest! {
        #[test]
        fn a_glance_never_tells_anything_else_than_the_whole(
            headers in "\\{(\"(METHOD|VERSION|connection|UPLOAD_STREAM|x-mongrel2-upload-done|FLAGS|a)\":(\"(GET|JSON|WEBSOCKET|HTTP/1.[01]|close|keep-alive|0x81|é|\\\\n|)\"|\\[\"x\"\\]|1),?){0,6}\\}?",
        ) {
            agrees(&message(&headers));
        }

        #[test]
        fn two_marks_and_anything_beside_them_are_told_as_they_are(
            more in proptest::collection::vec(("[a-zA-Z-]{0,9}|connection|METHOD", "[ -~&&[^\"\\\\]]{0,12}|close"), 0..6),
        ) {
            let mut headers = r#"{"METHOD":"GET","VERSION":"HTTP/1.1""#.to_owned();
            for (name, value) in more {
                headers = format!(r#"{headers},"{name}":"{value}""#);
            }
            headers.push('}');
            agrees(&message(&headers));
        }
    }
}
