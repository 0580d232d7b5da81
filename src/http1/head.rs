//! Request heads: bytes in, a borrowed [`Head`] out, without an allocation for ordinary ones. It does not own the buffer, and
//! a head that is not whole yet is a value, not an error.

use super::fields::Field;
use super::framing::{BodyFraming, Expect, Facts};
use super::target::Target;
use super::{Refusal, Version};

pub use super::line::Progress;

/// Bounds on a head and the one setting of its grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest head in bytes, request line, empty lines before it and after it counted; above it 431, or 414 when not even
    /// the request line ends. Default: 65,536.
    pub bytes: usize,
    /// Most field lines; above it 431. Default: 2,048, which bounds the scratch memory for one head to 128 KiB.
    pub fields: usize,
    /// Mongrel2's `request.relaxed`: `{`, `}` and `^` are allowed in a target. Default: no.
    pub relaxed: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 65_536,
            fields: 2_048,
            relaxed: false,
        }
    }
}

/// A whole request head whose framing is beyond doubt.
///
/// `F` is what the caller wants a field line to be: [`Field`], or any type made of a name and a value.
#[derive(Debug)]
pub struct Head<'b, 'f, F = Field<'b>> {
    /// A token of 1 to 32 bytes, as it came; never one of the names Mongrel2's protocol keeps for itself.
    pub method: &'b [u8],
    /// What is asked for.
    pub target: Target<'b>,
    /// 1.0 or 1.1.
    pub version: Version,
    /// The field lines in order of arrival, all of them.
    pub fields: &'f [F],
    /// Bytes of the buffer that the head takes up, with the empty lines around it; the body begins there.
    pub len: usize,
    /// How long the body is.
    pub framing: BodyFraming,
    /// Whether the client lets the connection live on after the response (RFC 9112 9.3).
    pub keep_alive: bool,
    /// What the client waits for before it sends the body.
    pub expect: Expect,
    /// The host to route by, as it came, with its port: the target's if it names one, else the Host line's. `None` only for
    /// HTTP/1.0; may be empty.
    pub host: Option<&'b [u8]>,
    /// The method is HEAD: the response has no body.
    pub head_request: bool,
}

/// What came of a look at the buffer.
#[derive(Debug)]
pub enum Parsed<R> {
    /// A head; this is what was made of it.
    Complete(R),
    /// Not whole yet; nothing in it is wrong so far.
    Partial,
    /// Never will be a request we take. Answer and close.
    Refused(Refusal),
}

/// Field lines for which a head gets by with a small array; most programs send fewer.
const FEW: usize = 16;
/// Field lines for which no memory is allocated; browsers send fewer.
const MANY: usize = 64;

/// Looks for a request head at the start of `buf`, and gives it to `use_head` when it is there.
///
/// `progress` remembers between calls how far a partial head was looked at: begin with a new one for every request and call
/// again with the same bytes and more behind them. After `Complete` it is as new; the caller then takes [`Head::len`] bytes off the
/// buffer. After `Refused` both are done with. `use_head` is called at most once, at once, so that nothing borrowed lives
/// longer than the call (across an await, say).
///
/// The grammar is Mongrel2's for methods' bounds and targets' characters (reference 3.4) and RFC 9110 and 9112 where they protect: see
/// [`super::framing`]. In short, refused are: control characters but the tab anywhere in values, anything but token characters in
/// names, space before the colon, folded lines, lone CR, CR LF mixed with lone LF, hosts that are none, and all framing that
/// two readers could read in two ways.
pub fn parse_head<'b, F, R>(
    progress: &mut Progress,
    buf: &'b [u8],
    limits: &Limits,
    use_head: impl FnOnce(Head<'b, '_, F>) -> R,
) -> Parsed<R>
where
    F: Copy + From<(&'b [u8], &'b [u8])>,
{
    let outline = match progress.advance(buf, limits) {
        Ok(Some(outline)) => outline,
        Ok(None) => return Parsed::Partial,
        Err(refusal) => return Parsed::Refused(refusal),
    };
    let blank = || F::from((b"", b""));
    // Only the store that is needed is made.
    let (mut few, mut many, mut any);
    let (raw, fields): (&mut [httparse::Header<'b>], &mut [F]) = if outline.lines <= FEW {
        few = ([httparse::EMPTY_HEADER; FEW], [blank(); FEW]);
        (&mut few.0, &mut few.1)
    } else if outline.lines <= MANY {
        many = ([httparse::EMPTY_HEADER; MANY], [blank(); MANY]);
        (&mut many.0, &mut many.1)
    } else {
        any = (
            vec![httparse::EMPTY_HEADER; outline.lines],
            vec![blank(); outline.lines],
        );
        (&mut any.0, &mut any.1)
    };
    let raw = match httparse::parse_headers(outline.fields, raw) {
        Ok(httparse::Status::Complete((len, raw))) if len == outline.fields.len() => raw,
        // Partial or another length would mean that two readers of line ends disagree: that is never a request.
        Ok(_) => return Parsed::Refused(Refusal::bad("malformed field line")),
        Err(error) => return Parsed::Refused(Refusal::bad(reason(error))),
    };

    let mut facts = Facts::default();
    let mut count = 0_usize;
    for (header, field) in raw.iter().zip(fields.iter_mut()) {
        let name = header.name.as_bytes();
        facts.note(name, header.value);
        *field = F::from((name, header.value));
        count = count.saturating_add(1);
    }
    let judged = Target::parse(outline.target, outline.method)
        .and_then(|target| Ok((target, facts.judge(outline.version)?)));
    let (target, judgement) = match judged {
        Ok(judged) => judged,
        Err(refusal) => return Parsed::Refused(refusal),
    };
    Parsed::Complete(use_head(Head {
        method: outline.method,
        host: target.authority.or(judgement.host),
        target,
        version: outline.version,
        fields: fields.get(..count).unwrap_or_default(),
        len: outline.len,
        framing: judgement.framing,
        keep_alive: judgement.keep_alive,
        expect: judgement.expect,
        head_request: outline.method == b"HEAD",
    }))
}

const fn reason(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "malformed field name",
        httparse::Error::HeaderValue => "malformed field value",
        httparse::Error::NewLine => "malformed line end",
        _ => "malformed field line",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::every_split;
    use super::*;

    /// Everything a head says, or the refusal, or nothing yet; and whether progress has begun.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Outcome {
        Head(Box<Seen>),
        Partial(bool),
        Refused(Refusal),
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Seen {
        method: String,
        uri: String,
        fields: Vec<(String, String)>,
        len: usize,
        rest: (BodyFraming, bool, Expect, Option<String>, Version),
    }

    fn text(bytes: &[u8]) -> String {
        bytes.iter().map(|&byte| char::from(byte)).collect()
    }

    fn run(pieces: &[&[u8]], limits: &Limits) -> Outcome {
        let mut progress = Progress::default();
        let mut buf = Vec::new();
        for piece in pieces {
            buf.extend_from_slice(piece);
            let parsed = parse_head(&mut progress, &buf, limits, |head: Head<'_, '_>| {
                assert_eq!(head.head_request, head.method == b"HEAD");
                Box::new(Seen {
                    method: text(head.method),
                    uri: text(&head.target.uri),
                    fields: head
                        .fields
                        .iter()
                        .map(|field| (text(field.name), text(field.value)))
                        .collect(),
                    len: head.len,
                    rest: (
                        head.framing,
                        head.keep_alive,
                        head.expect,
                        head.host.map(text),
                        head.version,
                    ),
                })
            });
            match parsed {
                Parsed::Complete(seen) => {
                    assert!(!progress.has_begun(), "as new for the next request");
                    return Outcome::Head(seen);
                }
                Parsed::Partial => {}
                Parsed::Refused(refusal) => return Outcome::Refused(refusal),
            }
        }
        Outcome::Partial(progress.has_begun())
    }

    fn whole(input: &[u8]) -> Outcome {
        let limits = Limits::default();
        let whole = run(&[input], &limits);
        every_split(input, |pieces| {
            assert_eq!(run(pieces, &limits), whole, "{input:?} cut {pieces:?}");
        });
        whole
    }

    #[track_caller]
    fn accept(input: &str) -> Seen {
        match whole(input.as_bytes()) {
            Outcome::Head(seen) => *seen,
            other => panic!("{input:?}: {other:?}"),
        }
    }

    #[track_caller]
    fn refuse(input: &[u8], status: u16) {
        match whole(input) {
            Outcome::Refused(refusal) if refusal.status == status => {}
            other => panic!("{:?}: {other:?}, not {status}", text(input)),
        }
    }

    #[test]
    fn a_head_says_what_stands_in_it() {
        let seen = accept(
            "POST /form?a=b HTTP/1.1\r\nHost: localhost:80\r\nX-E:\r\nx-e: \t two  \r\nContent-Length: 3\r\n\
             Expect: 100-Continue\r\nConnection: close\r\n\r\nabc",
        );
        assert_eq!(
            (seen.method.as_str(), seen.uri.as_str()),
            ("POST", "/form?a=b")
        );
        assert_eq!(seen.fields[1], ("X-E".into(), String::new()));
        assert_eq!(seen.fields[2], ("x-e".into(), "two".into()));
        assert_eq!(seen.fields.len(), 6);
        assert_eq!(
            seen.rest,
            (
                BodyFraming::Length(3),
                false,
                Expect::Continue,
                Some("localhost:80".into()),
                Version::Http11
            )
        );
    }

    #[test]
    fn a_partial_head_is_a_value() {
        for partial in [
            "",
            "\n\n\n\n\n\n\n\n",
            "\r\n",
            "\r",
            "G",
            "GET",
            "GET ",
            "GET /%4",
            "GET / HTTP/1.1\r",
            "GET / HTTP/1.1\r\nHost: a\r\n\r",
        ] {
            let begun = partial.trim_start() != "";
            assert_eq!(
                whole(partial.as_bytes()),
                Outcome::Partial(begun),
                "{partial:?}"
            );
        }
    }

    #[test]
    fn honest_heads_are_accepted() {
        for request in [
            "GET / HTTP/1.1\r\nHost:a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1]:16767\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "\r\n\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "M-SEARCH * HTTP/1.1\r\nHost: a\r\n\r\n"
                .replace('*', "/")
                .as_str(),
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\nHost: a\r\n\r\n",
            "get / HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /~a!$&'()*+,;=:@-._?/?#/? HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-U: \u{e9} \ttab \"\\\r\n\r\n",
            "GET http://[::1]/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nExpect: bogus\r\n\r\n",
        ] {
            accept(request);
        }
    }

    #[test]
    fn the_host_of_an_absolute_target_wins() {
        let seen = accept("GET http://one:81/x HTTP/1.1\r\nHost: two\r\n\r\n");
        assert_eq!(seen.rest.3.as_deref(), Some("one:81"));
        assert_eq!(seen.uri, "/x");
    }

    #[test]
    fn dishonest_heads_are_refused() {
        for (line, status) in [
            ("GET  / HTTP/1.1", 400),
            ("GET /  HTTP/1.1", 400),
            (" GET / HTTP/1.1", 400),
            ("GET\t/ HTTP/1.1", 400),
            ("GET / HTTP/1.1 ", 400),
            ("GET / http/1.1", 400),
            ("GET / HTTP/1.10", 400),
            ("GET / HTTP/1.2", 505),
            ("GET / HTTP/2.0", 505),
            ("GET /", 400),
            ("GET", 400),
            ("GET * HTTP/1.1", 400),
            ("GET abc HTTP/1.1", 400),
            ("CONNECT a:443 HTTP/1.1", 501),
            ("JSON / HTTP/1.1", 501),
            ("Xml / HTTP/1.1", 501),
            ("WEBSOCKET / HTTP/1.1", 501),
            ("WEBSOCKET_HANDSHAKE / HTTP/1.1", 501),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1", 501),
            ("G{T / HTTP/1.1", 400),
            ("GET /a{1}^x HTTP/1.1", 400),
            ("GET /a|b HTTP/1.1", 400),
            ("GET /?\"c\" HTTP/1.1", 400),
            ("GET /[x] HTTP/1.1", 400),
            ("GET /\u{e9} HTTP/1.1", 400),
            ("GET /%zz HTTP/1.1", 400),
            ("GET /%4 HTTP/1.1", 400),
            ("GET /\u{7f} HTTP/1.1", 400),
            ("GET / HTTP/1.1\n", 400),
            ("GET / HTTP/1.1\r\nHost: b", 400),
            ("GET / HTTP/1.1\r\n X: y", 400),
            ("GET / HTTP/1.1\r\nX : y", 400),
            ("GET / HTTP/1.1\r\nX: y\r\n fold", 400),
            ("GET / HTTP/1.1\r\nX: a\rb", 400),
            ("GET / HTTP/1.1\r\nX: a\0b", 400),
            ("GET / HTTP/1.1\r\nX: a\u{1}b", 400),
            ("GET / HTTP/1.1\r\nX: a\u{7f}b", 400),
            ("GET / HTTP/1.1\r\nXN", 400),
            ("GET / HTTP/1.1\r\n: a", 400),
            ("GET / HTTP/1.1\r\nX: a\nY: b", 400),
            ("GET / HTTP/1.1\r\n\r", 400),
        ] {
            let request: Vec<u8> = format!("{line}\r\nHost: a\r\n\r\n")
                .chars()
                .map(|c| u8::try_from(u32::from(c)).unwrap())
                .collect();
            refuse(&request, status);
        }
        refuse(b"GET / HTTP/1.1\r\n\r\n", 400);
        refuse(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400);
        refuse(b"GET / HTTP/1.1\nHost: a\n\r\n", 400);
        refuse(
            b"\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
        );
        refuse(b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400);
    }

    #[test]
    fn garbage_is_refused_before_it_is_whole() {
        refuse(b"\x16\x03\x01\x02\x00\x01", 400);
        refuse(b"\x00", 400);
        refuse(b"SSH-2.0-x\r\n", 400);
        refuse(b"a=1&b=2", 400);
        refuse(b"GET /\x00", 400);
        refuse(b"GET /%z", 400);
        refuse(b"\n\n\n\n\n\n\n\n\n", 400);
        refuse(b"GET / HTTQ", 400);
    }

    #[test]
    fn braces_are_for_the_relaxed() {
        let request = b"GET /a{1}^x?q={a} HTTP/1.1\r\nHost: a\r\n\r\n";
        let limits = Limits {
            relaxed: true,
            ..Limits::default()
        };
        assert!(matches!(run(&[request], &limits), Outcome::Head(_)));
        assert!(matches!(run(&[b"GET /a|b"], &limits), Outcome::Refused(_)));
    }

    #[test]
    fn heads_have_a_longest_length_however_they_come() {
        let limits = Limits {
            bytes: 100,
            fields: 3,
            relaxed: false,
        };
        for (request, status) in [
            (
                format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(100)),
                414,
            ),
            (
                format!(
                    "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
                    "a".repeat(100)
                ),
                431,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nX: y\r\nX: y\r\n\r\n".to_owned(),
                431,
            ),
            // What is wrong first counts.
            (
                format!("GET /\0{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(100)),
                400,
            ),
        ] {
            every_split(request.as_bytes(), |pieces| match run(pieces, &limits) {
                Outcome::Refused(refusal) => assert_eq!(refusal.status, status, "{request:?}"),
                other => panic!("{request:?}: {other:?}"),
            });
        }
        let fits = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(68));
        assert_eq!(fits.len(), 100);
        assert!(matches!(run(&[fits.as_bytes()], &limits), Outcome::Head(_)));
        assert!(matches!(
            run(&[fits.replacen("aa", "aaa", 1).as_bytes()], &limits),
            Outcome::Refused(_)
        ));
    }

    #[test]
    fn any_number_of_fields_within_the_bound_is_read() {
        for count in [1, 15, 16, 17, 63, 64, 65, 200, 2000] {
            let others = "X-Y: z\r\n".repeat(count - 1);
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{others}\r\n");
            match run(&[request.as_bytes()], &Limits::default()) {
                Outcome::Head(seen) => assert_eq!(seen.fields.len(), count),
                other => panic!("{count}: {other:?}"),
            }
        }
    }

    #[test]
    fn another_buffer_than_before_starts_over() {
        let mut progress = Progress::default();
        let limits = Limits::default();
        let whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(matches!(
            parse_head(&mut progress, &whole[..20], &limits, |_: Head<'_, '_>| ()),
            Parsed::Partial
        ));
        assert!(matches!(
            parse_head(&mut progress, &whole[..2], &limits, |_: Head<'_, '_>| ()),
            Parsed::Partial
        ));
        assert!(matches!(
            parse_head(&mut progress, whole, &limits, |_: Head<'_, '_>| ()),
            Parsed::Complete(())
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_bytes_are_safe_and_cuts_do_not_matter(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            whole(&bytes);
        }

        #[test]
        fn a_changed_request_is_safe_and_cuts_do_not_matter(
            changes in prop::collection::vec(
                (any::<prop::sample::Index>(), prop::sample::select(b"\r\n :/%#?*{[\0\tA1\xff,".to_vec())), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes =
                b"\r\nPOST http://a:1/p%41?q#f HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX:  y \r\n\r\n".to_vec();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            bytes.truncate(1 + cut.index(bytes.len() * 2));
            whole(&bytes);
        }
    }
}
