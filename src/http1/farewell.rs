//! Telling a client, in a response that a handler wrote, that its connection ends with it. It does not decide when that is
//! so, and leaves alone what already speaks of the connection.

/// The response that begins with `payload`, with `Connection: close` behind its status line (RFC 9112 9.6). `None` where that
/// is not to be said: the head is not whole, is interim or switches protocols, or says something about the connection already.
pub fn announce_close(payload: &[u8]) -> Option<Vec<u8>> {
    let status = payload.strip_prefix(b"HTTP/1.1 ")?;
    // Interim responses and 101 are not the last word.
    if status.first()? == &b'1' {
        return None;
    }
    let head_len = memchr::memmem::find(payload, b"\r\n\r\n")?;
    let line_len = memchr::memmem::find(payload, b"\r\n")?.checked_add(2)?;
    let (line, rest) = payload.split_at_checked(line_len)?;
    let speaks = payload
        .get(..head_len)?
        .split(|&byte| byte == b'\n')
        .any(|line| {
            line.get(..NAME.len())
                .is_some_and(|name| name.eq_ignore_ascii_case(NAME))
        });
    (!speaks).then(|| [line, b"Connection: close\r\n", rest].concat())
}

const NAME: &[u8] = b"connection";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_says_that_it_is_the_last() {
        let said = announce_close(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(
            said.as_deref(),
            Some(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok".as_slice())
        );
        let bare = announce_close(b"HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(
            bare.as_deref(),
            Some(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n".as_slice())
        );
    }

    #[test]
    fn what_speaks_for_itself_or_is_no_whole_head_is_left_alone() {
        for payload in [
            b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n\r\n".as_slice(),
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Le",
            b"HTTP/1.1 ",
            b"ICY 200 OK\r\n\r\n",
            b"",
        ] {
            assert_eq!(announce_close(payload), None);
        }
    }
}
