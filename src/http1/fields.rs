//! Field lines: their type, and the few rules about lists of tokens that framing, keep-alive and proxying need (RFC 9110
//! 5.6, 7.6.1). It keeps no collection of fields; those who need one have their own.

/// A header line of a request: the name as the client wrote it and the value without white space around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// A token (RFC 9110 5.6.2), in any case.
    pub name: &'a [u8],
    /// Any bytes but control characters; a tab may be inside. Bytes from 0x80 are as they came.
    pub value: &'a [u8],
}

impl<'a> From<(&'a [u8], &'a [u8])> for Field<'a> {
    fn from((name, value): (&'a [u8], &'a [u8])) -> Self {
        Self { name, value }
    }
}

/// Whether a byte may be part of a token: a method, a field name (RFC 9110 5.6.2).
pub const fn is_token_byte(byte: u8) -> bool {
    matches!(byte,
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.'
        | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// The elements of a comma-separated list without the optional white space around them, empty ones left out (RFC 9110
/// 5.6.1.2). Quoted strings are not looked into: the lists it is used for have none.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(trim_blanks)
        .filter(|element| !element.is_empty())
}

/// The field lines of a trailer section whose form was checked already; what is no field line is left out.
pub fn lines(section: &[u8]) -> impl Iterator<Item = Field<'_>> {
    section.split(|&byte| byte == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (name, value) = line.split_at_checked(memchr::memchr(b':', line)?)?;
        let value = trim_blanks(value.get(1..)?);
        Some(Field { name, value })
    })
}

/// Whether a comma-separated list names this token; case does not matter.
pub fn has_token(value: &[u8], token: &[u8]) -> bool {
    // The usual value is one lone token.
    value.eq_ignore_ascii_case(token)
        || (value.len() > token.len()
            && list(value).any(|element| element.eq_ignore_ascii_case(token)))
}

/// Cuts spaces and tabs off both ends.
pub fn trim_blanks(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_in_lists_without_regard_to_case() {
        for (value, token, expect) in [
            ("close", "close", true),
            ("Close", "close", true),
            ("keep-alive, uPgrade", "upgrade", true),
            (" , ,\tclose ,", "close", true),
            ("closed", "close", false),
            ("not-close", "close", false),
            ("close;x", "close", false),
            ("", "close", false),
        ] {
            assert_eq!(
                has_token(value.as_bytes(), token.as_bytes()),
                expect,
                "{value:?}"
            );
        }
    }
}
