//! How long a request's body is, whether the connection lives on and what the client expects: everything that is read out of
//! the field lines to keep requests apart. It guesses nothing: what is ambiguous is refused, and the connection with it.

use super::fields::has_token;
use super::target::is_host;
use super::{Refusal, Version};

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyFraming {
    /// No body: the next byte belongs to the next request.
    #[default]
    None,
    /// Exactly so many bytes; may be 0.
    Length(u64),
    /// Chunks, to be read with [`super::chunked::Decoder`].
    Chunked,
}

/// What the `Expect` field asks for (RFC 9110 10.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expect {
    /// Nothing, or the request is HTTP/1.0, where it has no meaning.
    #[default]
    None,
    /// `100-continue` in any case: the client waits for a 100 before it sends the body.
    Continue,
    /// Something unknown: 417 on a handler route.
    Other,
}

/// The field values that matter here, collected in one walk over the fields.
#[derive(Debug, Default)]
pub(super) struct Facts<'b> {
    host: Once<'b>,
    content_length: Once<'b>,
    transfer_encoding: Once<'b>,
    expect: Expect,
    close: bool,
    keep_alive: bool,
}

/// A field that may come once.
#[derive(Debug, Default)]
enum Once<'b> {
    #[default]
    Absent,
    One(&'b [u8]),
    Many,
}

impl<'b> Once<'b> {
    fn put(&mut self, value: &'b [u8]) {
        *self = match self {
            Self::Absent => Self::One(value),
            Self::One(_) | Self::Many => Self::Many,
        };
    }
}

/// What the facts come to.
#[derive(Debug)]
pub(super) struct Judgement<'b> {
    pub(super) framing: BodyFraming,
    pub(super) keep_alive: bool,
    pub(super) expect: Expect,
    pub(super) host: Option<&'b [u8]>,
}

impl<'b> Facts<'b> {
    pub(super) fn note(&mut self, name: &[u8], value: &'b [u8]) {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host.put(value),
            6 if name.eq_ignore_ascii_case(b"expect") => {
                self.expect = match self.expect {
                    Expect::None if value.eq_ignore_ascii_case(b"100-continue") => Expect::Continue,
                    _ => Expect::Other,
                };
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.close |= has_token(value, b"close");
                self.keep_alive |= has_token(value, b"keep-alive");
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length.put(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.transfer_encoding.put(value);
            }
            _ => {}
        }
    }

    pub(super) fn judge(self, version: Version) -> Result<Judgement<'b>, Refusal> {
        let framing = self.framing(version)?;
        Ok(Judgement {
            framing,
            // RFC 9112 9.3, in its order: close wins; then the version; then HTTP/1.0 that asks for it.
            keep_alive: !self.close && (version == Version::Http11 || self.keep_alive),
            expect: match version {
                Version::Http10 if self.expect == Expect::Continue => Expect::None,
                _ => self.expect,
            },
            host: self.host(version)?,
        })
    }

    /// RFC 9112 6.3 as a list, in the order in which it is decided. Its cases 1, 2 and 8 are about responses.
    fn framing(&self, version: Version) -> Result<BodyFraming, Refusal> {
        use Once::{Absent, Many, One};
        match (&self.transfer_encoding, &self.content_length) {
            // 1. Both fields (RFC 9112 6.1, 6.3 case 3): somebody before us may have believed the other one.
            (One(_) | Many, One(_) | Many) => {
                Err(Refusal::bad("Content-Length beside Transfer-Encoding"))
            }
            // 2. A transfer coding in HTTP/1.0 (RFC 9112 6.1): its framing is faulty by definition.
            (One(_) | Many, Absent) if version == Version::Http10 => {
                Err(Refusal::bad("Transfer-Encoding in HTTP/1.0"))
            }
            // 3. Exactly `chunked`, in any case of letters (RFC 9112 7): chunks (6.3 case 4).
            (One(coding), Absent) if coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(BodyFraming::Chunked)
            }
            // 4. Chunked last, after a coding we do not know (RFC 9112 6.1): 501. Not when chunked is applied twice (7).
            (One(coding), Absent) if ends_in_one_chunked(coding) => {
                Err(Refusal::new(501, "transfer coding other than chunked"))
            }
            // 5. Any other coding, or several lines (6.3 case 4): the length cannot be known.
            (One(_) | Many, Absent) => Err(Refusal::bad("Transfer-Encoding is not chunked")),
            // 6. Several Content-Length lines, even equal ones (6.3 case 5; RFC 9110 8.6 lets us).
            (Absent, Many) => Err(Refusal::bad("more than one Content-Length")),
            // 7. Content-Length is digits and nothing else, lists like `5, 5` not taken (6.3 case 5).
            (Absent, One(text)) => decimal(text)
                .map(BodyFraming::Length)
                .ok_or(Refusal::bad("Content-Length is not a number")),
            // 8. Neither field: no body (6.3 case 7).
            (Absent, Absent) => Ok(BodyFraming::None),
        }
    }

    /// RFC 9112 3.2: one Host line in HTTP/1.1, at most one in HTTP/1.0, and it names a host.
    fn host(&self, version: Version) -> Result<Option<&'b [u8]>, Refusal> {
        match self.host {
            Once::Absent if version == Version::Http10 => Ok(None),
            Once::Absent => Err(Refusal::bad("HTTP/1.1 without Host")),
            Once::Many => Err(Refusal::bad("more than one Host")),
            Once::One(host) if is_host(host) => Ok(Some(host)),
            Once::One(_) => Err(Refusal::bad("Host is not a host")),
        }
    }
}

/// `gzip, chunked`: chunked is the last coding and was not applied before.
pub(super) fn ends_in_one_chunked(codings: &[u8]) -> bool {
    let mut all = codings.rsplit(|&byte| byte == b',');
    let is_chunked =
        |coding: &[u8]| super::fields::trim_blanks(coding).eq_ignore_ascii_case(b"chunked");
    all.next().is_some_and(is_chunked) && !all.any(is_chunked)
}

/// One or more digits that fit (RFC 9110 8.6).
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| byte & 0x0f)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(
        version: Version,
        fields: &[(&'static str, &'static str)],
    ) -> Result<BodyFraming, u16> {
        let mut facts = Facts::default();
        facts.note(b"Host", b"a");
        for (name, value) in fields {
            facts.note(name.as_bytes(), value.as_bytes());
        }
        facts
            .judge(version)
            .map(|judgement| judgement.framing)
            .map_err(|refusal| refusal.status)
    }

    #[test]
    fn the_length_of_a_body_is_known_or_refused() {
        use BodyFraming::{Chunked, Length, None};
        use Version::{Http10, Http11};
        const CL: &str = "Content-Length";
        const TE: &str = "transfer-encoding";
        for (version, fields, expect) in [
            (Http11, &[][..], Ok(None)),
            (Http11, &[(CL, "0")], Ok(Length(0))),
            (Http11, &[(CL, "0005")], Ok(Length(5))),
            (Http10, &[(CL, "5")], Ok(Length(5))),
            (
                Http11,
                &[(CL, "18446744073709551615")],
                Ok(Length(u64::MAX)),
            ),
            (Http11, &[(CL, "18446744073709551616")], Err(400)),
            (Http11, &[(CL, "")], Err(400)),
            (Http11, &[(CL, "+5")], Err(400)),
            (Http11, &[(CL, "5 5")], Err(400)),
            (Http11, &[(CL, "5,5")], Err(400)),
            (Http11, &[(CL, "3x")], Err(400)),
            (Http11, &[(CL, "5"), (CL, "5")], Err(400)),
            (Http11, &[(TE, "Chunked")], Ok(Chunked)),
            (Http10, &[(TE, "chunked")], Err(400)),
            (Http11, &[(TE, "chunked"), (CL, "5")], Err(400)),
            (Http11, &[(CL, "5"), (TE, "x")], Err(400)),
            (Http11, &[(TE, "gzip, chunked")], Err(501)),
            (Http11, &[(TE, "gzip,Chunked ")], Err(501)),
            (Http11, &[(TE, "chunked, chunked")], Err(400)),
            (Http11, &[(TE, "chunked,")], Err(400)),
            (Http11, &[(TE, "chunked, gzip")], Err(400)),
            (Http11, &[(TE, "xchunked")], Err(400)),
            (Http11, &[(TE, "")], Err(400)),
            (Http11, &[(TE, "chunked"), (TE, "chunked")], Err(400)),
            (Http11, &[(TE, "gzip"), (TE, "chunked")], Err(400)),
        ] {
            assert_eq!(judge(version, fields), expect, "{version:?} {fields:?}");
        }
    }
}
