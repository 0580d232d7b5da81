//! The header block that a CGI program writes before its body (RFC 3875 6): lines until an empty one, and what they mean for the
//! response. Pure.

use bytes::{Bytes, BytesMut};
use memchr::memchr;

/// Bytes of the block at the most; no page has more to say, and it waits here until it is whole.
pub(super) const HEAD_MAX: usize = 64 * 1024;

/// What the fields say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    /// The reason phrase, where one was given.
    pub(super) reason: String,
    /// Those that go to the client, in order.
    pub(super) fields: Vec<(Bytes, Bytes)>,
    /// Bytes of the body, where the program said so.
    pub(super) length: Option<u64>,
}

/// Why it is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a head of more than {HEAD_MAX} bytes")]
    TooLong,
    #[error("a line of the head is no field")]
    Field,
    #[error("a head without any field")]
    Empty,
    #[error("a status that is no number from 200 to 599")]
    Status,
    #[error("a head that does not end")]
    Unended,
    #[error("lengths that contradict each other, or are none")]
    Length,
}

/// Fields about the connection, which is not the program's (RFC 9110 7.6.1).
const OF_CONNECTION: &[&[u8]] = &[
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
];

/// Takes the block and its empty line off the front; `None` while there is no such line. `seen` is how much was looked at in
/// vain before, and is kept up here.
pub(super) fn split(bytes: &mut BytesMut, seen: &mut usize) -> Result<Option<Head>, Malformed> {
    let mut at = *seen;
    while let Some(end) = memchr(b'\n', bytes.get(at..).unwrap_or_default()) {
        let line = bytes.get(at..at + end).unwrap_or_default();
        at += end + 1;
        if line.is_empty() || line == b"\r" {
            *seen = 0;
            if at > HEAD_MAX {
                return Err(Malformed::TooLong);
            }
            return read(&bytes.split_to(at).freeze()).map(Some);
        }
        *seen = at;
    }
    if bytes.len() > HEAD_MAX {
        return Err(Malformed::TooLong);
    }
    Ok(None)
}

fn read(block: &Bytes) -> Result<Head, Malformed> {
    let mut head = Head::default();
    let mut location = false;
    let mut any = false;
    for line in block.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        any = true;
        let colon = memchr(b':', line).ok_or(Malformed::Field)?;
        let (name, value) = line.split_at_checked(colon).ok_or(Malformed::Field)?;
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let is_value = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
        if name.is_empty()
            || !name.iter().all(|byte| is_token(*byte))
            || !value.iter().all(is_value)
        {
            return Err(Malformed::Field);
        }
        if name.eq_ignore_ascii_case(b"status") {
            (head.status, head.reason) = status(value)?;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let length = str::from_utf8(value).ok().filter(|_| digits);
            let length = length
                .and_then(|text| text.parse().ok())
                .ok_or(Malformed::Length)?;
            if head.length.is_some_and(|before| before != length) {
                return Err(Malformed::Length);
            }
            head.length = Some(length);
        } else if !OF_CONNECTION
            .iter()
            .any(|other| name.eq_ignore_ascii_case(other))
        {
            location |= name.eq_ignore_ascii_case(b"location");
            head.fields
                .push((block.slice_ref(name), block.slice_ref(value)));
        }
    }
    if !any {
        return Err(Malformed::Empty);
    }
    if head.status == 0 {
        // RFC 3875 6.2.3 and 6.2.4. A local one (6.2.2) is sent to the client as well, which asks again.
        head.status = if location { 302 } else { 200 };
    }
    Ok(head)
}

fn status(value: &[u8]) -> Result<(u16, String), Malformed> {
    let text = String::from_utf8_lossy(value);
    let (code, reason) = text.split_once(' ').unwrap_or((&text, ""));
    let code = code.parse().ok().filter(|code| (200..=599).contains(code));
    Ok((code.ok_or(Malformed::Status)?, reason.trim().to_owned()))
}

/// RFC 9110 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Option<(Head, String)>, Malformed> {
        let mut whole = BytesMut::from(text);
        let expect = split(&mut whole, &mut 0);
        // However it comes.
        let (mut bytes, mut seen) = (BytesMut::new(), 0);
        for piece in text
            .as_bytes()
            .chunks(if text.len() > 1_000 { 1_000 } else { 1 })
        {
            bytes.extend_from_slice(piece);
            match split(&mut bytes, &mut seen) {
                Ok(None) => {}
                result => {
                    assert_eq!(result, expect);
                    break;
                }
            }
        }
        Ok(expect?.map(|head| (head, String::from_utf8_lossy(&whole).into_owned())))
    }

    fn fields(head: &Head) -> Vec<String> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        head.fields
            .iter()
            .map(|(name, value)| format!("{}={}", text(name), text(value)))
            .collect()
    }

    #[test]
    fn a_head_is_read_with_either_line_end() {
        for text in [
            "Content-Type: text/html\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nbody\n\n",
            "Content-Type: text/html\nSet-Cookie:a=1\nSet-Cookie:  b=2 \n\nbody\n\n",
        ] {
            let (head, rest) = check(text).unwrap().unwrap();
            assert_eq!((head.status, head.length), (200, None));
            assert_eq!(
                fields(&head),
                ["Content-Type=text/html", "Set-Cookie=a=1", "Set-Cookie=b=2"]
            );
            assert_eq!(rest, "body\n\n");
        }
        assert_eq!(check("Content-Type: text/html\r\n").unwrap(), None);
        assert_eq!(check("").unwrap(), None);
    }

    #[test]
    fn status_and_location_decide_the_code() {
        for (text, code, reason) in [
            ("Status: 404 Not Found\n\n", 404, "Not Found"),
            ("status: 200\n\n", 200, ""),
            ("Location: /x\n\n", 302, ""),
            ("Location: /x\nStatus: 201 Made\n\n", 201, "Made"),
            ("X: y\n\n", 200, ""),
        ] {
            let (head, _) = check(text).unwrap().unwrap();
            assert_eq!(
                (head.status, head.reason.as_str()),
                (code, reason),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_about_the_connection_stays_here() {
        let text = "Content-Length: 12\nTransfer-Encoding: chunked\nConnection: close\nUpgrade: x\nX-A: b\ncontent-length: 12\n\n";
        let (head, _) = check(text).unwrap().unwrap();
        assert_eq!(head.length, Some(12));
        assert_eq!(fields(&head), ["X-A=b"]);
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for (text, expect) in [
            ("no field\n\n", Malformed::Field),
            ("X Y: z\n\n", Malformed::Field),
            (": z\n\n", Malformed::Field),
            ("X: a\rb\n\n", Malformed::Field),
            ("X: a\0b\n\n", Malformed::Field),
            (" folded\n\n", Malformed::Field),
            ("HTTP/1.1 200 OK\n\n", Malformed::Field),
            ("\n", Malformed::Empty),
            ("Status: OK\n\n", Malformed::Status),
            ("Status: 101 Switching\n\n", Malformed::Status),
            ("Status: 2000\n\n", Malformed::Status),
            (
                "Content-Length: 1\nContent-Length: 2\n\n",
                Malformed::Length,
            ),
            ("Content-Length: +1\n\n", Malformed::Length),
            ("Content-Length: \n\n", Malformed::Length),
        ] {
            assert_eq!(check(text), Err(expect), "{text:?}");
        }
        let long = format!("X: {}\n", "y".repeat(HEAD_MAX));
        assert_eq!(check(&long), Err(Malformed::TooLong));
        assert_eq!(check(&format!("{long}\n")), Err(Malformed::TooLong));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_safe(text in "[a:\r\n 1S]{0,40}") {
            drop(check(&text));
        }
    }
}
