//! The head of a whole HTTP response. Pure; streaming is not its business.

/// A response that would not be HTTP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// Status codes have three digits.
    #[error("status code {0} is not between 100 and 999")]
    Code(u16),
    /// The reason phrase holds a control character.
    #[error("reason phrase {0:?} holds a control character")]
    Reason(String),
    /// Not a header name.
    #[error("{0:?} is no header name")]
    Name(String),
    /// A header value holds a control character (a line end would begin another header).
    #[error("value of header {name} holds a control character")]
    Value {
        /// The header.
        name: String,
    },
    /// A header that says how the body is framed, which is decided here.
    #[error("header {0} contradicts how the body is framed")]
    Framing(String),
    /// A body that is longer or shorter than its head has said.
    #[error("a body of {written} bytes where its head says {declared}")]
    Length {
        /// What the head says.
        declared: u64,
        /// What was written, with the piece that was one too many.
        written: u64,
    },
}

/// What the request asks of the response's form.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Form {
    /// The answer to HEAD: the length is told, the body is not sent.
    pub(super) head_only: bool,
    /// The connection ends with this response.
    pub(super) close: bool,
    /// An HTTP/1.0 client, which must be told when the connection stays open.
    pub(super) old: bool,
}

/// Appends a whole response to `out`; true when the connection is to be closed behind it. On an error `out` holds
/// whatever was written until then.
pub(super) fn write(
    out: &mut Vec<u8>,
    form: Form,
    (code, reason): (u16, &str),
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<bool, HttpError> {
    if !(100..=999).contains(&code) {
        return Err(HttpError::Code(code));
    }
    let reason = if reason.is_empty() {
        canonical_reason(code)
    } else {
        reason
    };
    if !is_text(reason.as_bytes()) {
        return Err(HttpError::Reason(reason.to_owned()));
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    number(out, u64::from(code));
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    let (mut close, mut told) = (form.close, false);
    for &(name, value) in headers {
        if name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        check(name.as_bytes(), value.as_bytes())?;
        if name.eq_ignore_ascii_case("connection") {
            told = true;
            close |= value
                .split(',')
                .any(|token| token.trim().eq_ignore_ascii_case("close"));
        }
        write_field(out, name.as_bytes(), value.as_bytes());
    }
    let interim = code < 200;
    if !told && !interim {
        if close {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if form.old {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
    }
    // RFC 9110 8.6: no length in 1xx and 204, and in a 304 only the one that a 200 would have had, which is not known here.
    let bodiless = interim || code == 204 || code == 304;
    if !bodiless {
        out.extend_from_slice(b"Content-Length: ");
        number(out, u64::try_from(body.len()).unwrap_or(u64::MAX));
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if !bodiless && !form.head_only {
        out.extend_from_slice(body);
    }
    Ok(close && !interim)
}

pub(super) fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

pub(super) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Whether this is a header, and none that frames the body but Content-Length.
pub(super) fn check(name: &[u8], value: &[u8]) -> Result<(), HttpError> {
    let text = || String::from_utf8_lossy(name).into_owned();
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(HttpError::Name(text()));
    }
    if name.eq_ignore_ascii_case(b"transfer-encoding") {
        return Err(HttpError::Framing(text()));
    }
    if !is_text(value) {
        return Err(HttpError::Value { name: text() });
    }
    Ok(())
}

/// RFC 9110 5.5: no control characters but the tab.
pub(super) fn is_text(text: &[u8]) -> bool {
    // Without an early end, so that it goes by many bytes at a time: most are text.
    text.iter().fold(true, |is_text, byte| {
        is_text & (*byte == b'\t' || !byte.is_ascii_control())
    })
}

/// Which bytes names are made of: RFC 9110 5.6.2.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte: u8 = 0;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut others: &[u8] = b"!#$%&'*+-.^_`|~";
    while let [other, rest @ ..] = others {
        table[*other as usize] = true;
        others = rest;
    }
    table
};

fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// The reason phrases of RFC 9110 for the codes that handlers commonly send; empty for others, which is allowed.
pub(super) fn canonical_reason(code: u16) -> &'static str {
    match code {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        form: Form,
        status: (u16, &str),
        headers: &[(&str, &str)],
        body: &[u8],
        expect: &str,
        closes: bool,
    ) {
        let mut out = Vec::new();
        assert_eq!(write(&mut out, form, status, headers, body), Ok(closes));
        assert_eq!(String::from_utf8_lossy(&out), expect);
    }

    #[test]
    fn a_whole_response_has_its_length() {
        let expect = "HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 3\r\n\r\nabc";
        check(
            Form::default(),
            (200, ""),
            &[("X-A", "b"), ("content-length", "99")],
            b"abc",
            expect,
            false,
        );
    }

    #[test]
    fn head_tells_the_length_and_sends_no_body() {
        let form = Form {
            head_only: true,
            ..Form::default()
        };
        check(
            form,
            (200, "Fine"),
            &[],
            b"abc",
            "HTTP/1.1 200 Fine\r\nContent-Length: 3\r\n\r\n",
            false,
        );
    }

    #[test]
    fn some_codes_have_neither_length_nor_body() {
        for (code, reason) in [
            (100, "Continue"),
            (204, "No Content"),
            (304, "Not Modified"),
        ] {
            check(
                Form::default(),
                (code, ""),
                &[],
                b"abc",
                &format!("HTTP/1.1 {code} {reason}\r\n\r\n"),
                false,
            );
        }
    }

    #[test]
    fn the_end_of_the_connection_is_told() {
        let form = Form {
            close: true,
            old: true,
            ..Form::default()
        };
        check(
            form,
            (200, ""),
            &[],
            b"",
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            true,
        );
        let form = Form {
            close: false,
            ..form
        };
        check(
            form,
            (200, ""),
            &[],
            b"",
            "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
            false,
        );
        let own = [("Connection", "x, Close")];
        let expect = "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n";
        check(Form::default(), (200, ""), &own, b"", expect, true);
        check(
            form,
            (100, ""),
            &[],
            b"",
            "HTTP/1.1 100 Continue\r\n\r\n",
            false,
        );
    }

    #[test]
    fn what_would_not_be_http_is_refused() {
        let refuse = |status: (u16, &str), name: &str, value: &str| {
            write(
                &mut Vec::new(),
                Form::default(),
                status,
                &[(name, value)],
                b"",
            )
            .expect_err("must be refused")
        };
        assert_eq!(refuse((99, ""), "a", "b"), HttpError::Code(99));
        assert_eq!(
            refuse((200, "a\r\nb"), "a", "b"),
            HttpError::Reason("a\r\nb".to_owned())
        );
        assert_eq!(
            refuse((200, ""), "a b", "b"),
            HttpError::Name("a b".to_owned())
        );
        assert_eq!(refuse((200, ""), "", "b"), HttpError::Name(String::new()));
        assert_eq!(
            refuse((200, ""), "a", "b\r\nc: d"),
            HttpError::Value {
                name: "a".to_owned()
            }
        );
        assert_eq!(
            refuse((200, ""), "a", "b\nc"),
            HttpError::Value {
                name: "a".to_owned()
            }
        );
        let framing = HttpError::Framing("Transfer-Encoding".to_owned());
        assert_eq!(refuse((200, ""), "Transfer-Encoding", "chunked"), framing);
    }
}
