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
