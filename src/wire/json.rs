//! The JSON of header dicts: writing strings that are always valid, and reading what fronts send, valid or not.
//!
//! Mongrel2 copies control bytes and bytes that are not UTF-8 into its JSON as they came from the client, so reading
//! takes them; a string that is not UTF-8 is read as Latin-1, which is also how this side writes one. What is read is
//! a flat object of texts and lists of texts: this is not a general parser, and there is no recursion in it.

use std::mem;
use std::ops::Range;

use memchr::memchr2;

use super::DecodeErrorKind;
use super::request::{Headers, Span, Spans};

/// Appends `"text"`.
pub(super) fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    write_text(out, text);
    out.push(b'"');
}

/// Appends what stands between the quotes. Bytes that are not UTF-8 are written as Latin-1, the whole text.
pub(super) fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    if is_plain(text) {
        out.extend_from_slice(text);
    } else {
        write_escaped(out, text);
    }
}

/// Whether nothing has to be escaped or checked. Texts are mostly short, so this goes by words of eight bytes; the last
/// word overlaps the one before, as looking twice costs less than a loop over the remaining bytes.
fn is_plain(text: &[u8]) -> bool {
    let found = if let Some(last) = text.last_chunk() {
        let (words, _) = text.as_chunks();
        words
            .iter()
            .fold(odd_bits(*last), |found, word| found | odd_bits(*word))
    } else if let (Some([a, b, c, d]), Some([e, f, g, h])) = (text.first_chunk(), text.last_chunk())
    {
        odd_bits([*a, *b, *c, *d, *e, *f, *g, *h])
    } else {
        let mut word = [b' '; 8];
        word.iter_mut()
            .zip(text)
            .for_each(|(slot, byte)| *slot = *byte);
        odd_bits(word)
    };
    found == 0
}

/// Not 0 if one of the bytes is a control byte, `"`, `\`, or not ASCII: the usual arithmetic on all bytes of a word,
/// where a byte below `n` is one whose high bit is clear and becomes set when `n` is taken away.
fn odd_bits(word: [u8; 8]) -> u64 {
    let word = u64::from_le_bytes(word);
    (below(word, b' ') | word) & HIGH | marks(word)
}

/// Not 0 if one of the bytes is `"` or `\`; the lowest bit that is set is in the first of them.
fn marks(word: u64) -> u64 {
    let equal = |byte: u8| below(word ^ ONES.wrapping_mul(u64::from(byte)), 1);
    (equal(b'"') | equal(b'\\')) & HIGH
}

fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(ONES.wrapping_mul(u64::from(limit))) & !word
}

const ONES: u64 = u64::from_le_bytes([1; 8]);
const HIGH: u64 = u64::from_le_bytes([0x80; 8]);

/// Not rare: browsers put quotes in their `sec-ch-ua`, and validators have them.
fn write_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let latin1 = std::str::from_utf8(text).is_err();
    let odd = |byte: &u8| matches!(byte, ..b' ' | b'"' | b'\\') || (latin1 && *byte >= 0x80);
    let mut rest = text;
    while let Some((plain, [byte, behind @ ..])) = rest
        .iter()
        .position(odd)
        .and_then(|at| rest.split_at_checked(at))
    {
        out.extend_from_slice(plain);
        write_odd(out, *byte);
        rest = behind;
    }
    out.extend_from_slice(rest);
}

fn write_odd(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        ..b' ' => {
            let digit = |nibble: u8| {
                char::from_digit(u32::from(nibble), 16).map_or(b'0', |digit| digit as u8)
            };
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
        }
        _ => push_char(out, char::from(byte)),
    }
}

fn push_char(out: &mut Vec<u8>, char: char) {
    out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Reads the object that stands there in the message; names and values are parts of it where they can be.
///
/// Values that are no strings (no front sends any) are read as their text, null as nothing. Objects, and lists in
/// lists, are refused.
pub(super) fn read_object(message: &[u8], place: Range<usize>) -> Result<Headers, DecodeErrorKind> {
    let object = message.get(place.clone()).unwrap_or_default();
    if let Some(headers) = read_plain(object, place.start) {
        return Ok(headers);
    }
    let mut reader = Reader {
        text: message.get(..place.end).unwrap_or_default(),
        start: place.start,
        at: place.start,
        utf8: std::str::from_utf8(object).is_ok(),
        message: message.len(),
        made: Vec::new(),
        headers: Headers::none(),
    };
    reader.expect(b'{')?;
    if reader.peek() != Some(b'}') {
        loop {
            let name = reader.string()?;
            reader.expect(b':')?;
            let values = reader.value()?;
            reader.headers.push(name, values);
            if !reader.more() {
                break;
            }
        }
    }
    reader.expect(b'}')?;
    match reader.peek() {
        None => Ok(reader.headers.with_made(reader.made)),
        Some(_) => Err(reader.fail()),
    }
}

/// Reads an object as fronts write it when all is ASCII, nothing is escaped, and no header came twice: strings alone, and nothing
/// between them. It goes from quote to quote, by words of eight bytes. None: it has to be looked at more closely.
fn read_plain(object: &[u8], start: usize) -> Option<Headers> {
    let (words, tail) = object.as_chunks();
    let mut last = [b' '; 8];
    last.iter_mut()
        .zip(tail)
        .for_each(|(slot, byte)| *slot = *byte);
    let mut plain = Plain {
        object,
        start,
        at: 0,
        open: None,
        name: None,
        headers: Headers::none(),
    };
    let mut others = 0;
    let mut base: usize = 0;
    for word in words.iter().chain([&last]) {
        let word = u64::from_le_bytes(*word);
        others |= word | below(word ^ ONES.wrapping_mul(u64::from(b'\\')), 1);
        let mut quotes = zeros(word ^ ONES.wrapping_mul(u64::from(b'"')));
        while quotes != 0 {
            plain.quote(base.checked_add(quotes.trailing_zeros() as usize / 8)?)?;
            quotes &= quotes.wrapping_sub(1);
        }
        base = base.checked_add(8)?;
    }
    let is_whole = others & HIGH == 0
        && plain.open.is_none()
        && plain.name.is_none()
        && object.get(plain.at..) == Some(b"}");
    is_whole.then_some(plain.headers)
}

/// The highest bit of each byte that is 0, and no other.
fn zeros(word: u64) -> u64 {
    !(((word & !HIGH).wrapping_add(!HIGH)) | word | !HIGH)
}

/// How far [`read_plain`] is.
struct Plain<'a> {
    object: &'a [u8],
    start: usize,
    /// Behind the string before.
    at: usize,
    /// Where the text of a string begins that has not ended.
    open: Option<usize>,
    /// A name whose value has not come.
    name: Option<Span>,
    headers: Headers,
}

impl Plain<'_> {
    /// There is a quote. None: it should not be there.
    fn quote(&mut self, at: usize) -> Option<()> {
        let Some(open) = self.open.take() else {
            let between = match self.name {
                Some(_) => b':',
                None if self.at == 0 => b'{',
                None => b',',
            };
            let is_next = at.checked_sub(1) == Some(self.at);
            self.open = at.checked_add(1);
            return (is_next && self.object.get(self.at) == Some(&between)).then_some(());
        };
        self.at = at.checked_add(1)?;
        let span = Span {
            start: self.start.checked_add(open)?,
            length: at.checked_sub(open)?,
        };
        match self.name.take() {
            Some(name) => self.headers.push(name, Spans::One(span)),
            None => self.name = Some(span),
        }
        Some(())
    }
}

/// A position in the text, which is the message to the end of the object; `utf8` says that all of the object is UTF-8, so that no
/// string needs checking.
struct Reader<'a> {
    text: &'a [u8],
    start: usize,
    at: usize,
    utf8: bool,
    /// How large the message is.
    message: usize,
    /// What does not stand in it; counted on behind it.
    made: Vec<u8>,
    headers: Headers,
}

impl<'a> Reader<'a> {
    fn fail(&self) -> DecodeErrorKind {
        self.fail_at(self.at)
    }

    fn fail_at(&self, at: usize) -> DecodeErrorKind {
        DecodeErrorKind::Json {
            at: at.saturating_sub(self.start),
        }
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    /// The next byte that is no white space; stays before it.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at) {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.skip(1),
                byte => return byte.copied(),
            }
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), DecodeErrorKind> {
        if self.peek() != Some(byte) {
            return Err(self.fail());
        }
        self.skip(1);
        Ok(())
    }

    /// Takes a comma, if there is one.
    fn more(&mut self) -> bool {
        let comma = self.peek() == Some(b',');
        if comma {
            self.skip(1);
        }
        comma
    }

    fn value(&mut self) -> Result<Spans, DecodeErrorKind> {
        if self.peek() != Some(b'[') {
            return Ok(Spans::One(self.text()?));
        }
        self.skip(1);
        let mut values = Vec::new();
        if self.peek() != Some(b']') {
            loop {
                values.push(self.text()?);
                if !self.more() {
                    break;
                }
            }
        }
        self.expect(b']')?;
        Ok(Spans::Many(values.into()))
    }

    /// A string, or the text of a number or of one of the three words.
    fn text(&mut self) -> Result<Span, DecodeErrorKind> {
        if self.peek() == Some(b'"') {
            return self.string();
        }
        let rest = self.rest();
        let length = rest
            .iter()
            .take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
            .count();
        let word = rest.get(..length).unwrap_or_default();
        let known = match word.first() {
            Some(b'-' | b'0'..=b'9') => word
                .iter()
                .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte)),
            _ => matches!(word, b"true" | b"false" | b"null"),
        };
        if !known {
            return Err(self.fail());
        }
        let start = self.at;
        self.skip(length);
        let length = if word == b"null" { 0 } else { length };
        Ok(Span { start, length })
    }

    fn string(&mut self) -> Result<Span, DecodeErrorKind> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            let Some(found) = find_mark(self.rest()) else {
                return Err(self.fail());
            };
            self.skip(found);
            if self.text.get(self.at) == Some(&b'"') {
                break;
            }
            escaped = true;
            self.skip(2);
        }
        let length = self.at.saturating_sub(start);
        self.skip(1);
        if escaped || !self.utf8 {
            return self.rewritten(start, length, escaped);
        }
        Ok(Span { start, length })
    }

    /// A string that may have to be written anew.
    #[cold]
    fn rewritten(
        &mut self,
        start: usize,
        length: usize,
        escaped: bool,
    ) -> Result<Span, DecodeErrorKind> {
        let raw = self.text.get(start..).unwrap_or_default();
        let raw = raw.get(..length).unwrap_or_default();
        let latin1 = !self.utf8 && std::str::from_utf8(raw).is_err();
        if !escaped && !latin1 {
            return Ok(Span { start, length });
        }
        let text = unescape(raw, latin1).ok_or_else(|| self.fail_at(start))?;
        let start = self.message.saturating_add(self.made.len());
        self.made.extend_from_slice(&text);
        Ok(Span {
            start,
            length: text.len(),
        })
    }
}

/// In so many words of eight bytes a short text is looked through.
const WORDS: usize = 4;

/// Where the first quote or backslash is. Texts are mostly short, so this begins by words of eight bytes.
fn find_mark(text: &[u8]) -> Option<usize> {
    let (words, _) = text.as_chunks();
    let mut looked: usize = 0;
    for word in words.iter().take(WORDS) {
        let marks = marks(u64::from_le_bytes(*word));
        if marks != 0 {
            return looked.checked_add(marks.trailing_zeros() as usize / 8);
        }
        looked = looked.saturating_add(word.len());
    }
    memchr2(b'"', b'\\', text.get(looked..)?)?.checked_add(looked)
}

/// The text that `raw`, what is between two quotes, stands for.
#[cold]
fn unescape(raw: &[u8], latin1: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [byte, behind @ ..] = rest {
        rest = behind;
        match byte {
            b'\\' => {
                let (&escape, behind) = rest.split_first()?;
                rest = behind;
                match escape {
                    b'"' | b'\\' | b'/' => out.push(escape),
                    b'b' => out.push(8),
                    b'f' => out.push(12),
                    b'n' => out.push(b'\n'),
                    b'r' => out.push(b'\r'),
                    b't' => out.push(b'\t'),
                    b'u' => push_char(&mut out, unescape_char(&mut rest)?),
                    _ => return None,
                }
            }
            0x80.. if latin1 => push_char(&mut out, char::from(*byte)),
            _ => out.push(*byte),
        }
    }
    Some(out)
}

/// The character of `XXXX` or, for a pair of surrogates, `XXXX\uXXXX`; a lone surrogate is U+FFFD.
fn unescape_char(rest: &mut &[u8]) -> Option<char> {
    let first = hex4(rest)?;
    if !(0xd800..0xdc00).contains(&first) {
        return Some(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    let before = *rest;
    if let Some(mut behind) = rest.strip_prefix(b"\\u") {
        let second = hex4(&mut behind)?;
        if (0xdc00..0xe000).contains(&second) {
            *rest = behind;
            let code = 0x1_0000 | ((first & 0x3ff) << 10) | (second & 0x3ff);
            return Some(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }
    *rest = before;
    Some(char::REPLACEMENT_CHARACTER)
}

fn hex4(rest: &mut &[u8]) -> Option<u32> {
    let (digits, behind) = mem::take(rest).split_at_checked(4)?;
    *rest = behind;
    digits.iter().try_fold(0, |code, &digit| {
        Some((code << 4) | char::from(digit).to_digit(16)?)
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn written(text: &[u8]) -> String {
        let mut out = Vec::new();
        write_string(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    fn parsed(text: impl AsRef<[u8]>) -> Result<Headers, DecodeErrorKind> {
        Headers::from_json(Bytes::copy_from_slice(text.as_ref()))
    }

    /// What the string in `{"k":STRING}` says.
    fn read(string: impl AsRef<[u8]>) -> Result<Bytes, DecodeErrorKind> {
        let members = parsed([b"{\"k\":", string.as_ref(), b"}"].concat())?;
        let [("k", values)] = &shown(&members)[..] else {
            panic!("{members:?}")
        };
        let [value] = values[..] else {
            panic!("{members:?}")
        };
        Ok(Bytes::copy_from_slice(value))
    }

    /// Names with their values.
    fn shown(headers: &Headers) -> Vec<(&str, Vec<&[u8]>)> {
        let text = |name| std::str::from_utf8(name).unwrap();
        let all = headers.iter();
        all.map(|(name, values)| (text(name), values.iter().collect()))
            .collect()
    }

    #[test]
    fn strings_are_written_as_valid_json() {
        assert_eq!(written(b""), r#""""#);
        assert_eq!(written(b"plain / text \x7f"), "\"plain / text \x7f\"");
        assert_eq!(written(br#"a"b\c"#), r#""a\"b\\c""#);
        assert_eq!(
            written(b"\t\r\n\x00\x01\x1f"),
            r#""\t\r\n\u0000\u0001\u001f""#
        );
        assert_eq!(written("é ü 🦊".as_bytes()), r#""é ü 🦊""#);
        assert_eq!(
            written(b"caf\xe9 \"\xff\""),
            r#""café \"ÿ\"""#,
            "not UTF-8, so Latin-1"
        );
        assert_eq!(
            written(b"\xc3\xa9 \xe9"),
            r#""Ã© é""#,
            "the whole text, not parts of it"
        );
    }

    #[test]
    fn an_odd_byte_is_found_wherever_it_is() {
        for length in 0..40 {
            assert!(is_plain(&vec![b'a'; length]), "{length}");
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let mut text = vec![b'a'; length];
                    text[at] = byte;
                    let plain = (b' '..0x80).contains(&byte) && byte != b'"' && byte != b'\\';
                    assert_eq!(is_plain(&text), plain, "{byte:#04x} at {at} of {length}");
                }
            }
        }
    }

    #[test]
    fn escapes_are_read() {
        assert_eq!(
            read(r#""\"\\\/\b\f\n\r\t""#).unwrap(),
            &b"\"\\/\x08\x0c\n\r\t"[..]
        );
        assert_eq!(read(r#""\u00e9\u20AC\ud83e\udd8a""#).unwrap(), "é€🦊");
        assert_eq!(read(r#""\ud83e\u0041""#).unwrap(), "\u{fffd}A");
        assert_eq!(read(r#""\udd8a\ud83ex""#).unwrap(), "\u{fffd}\u{fffd}x");
        for bad in [
            r#""\x""#,
            r#""\u12""#,
            r#""\u+123""#,
            r#""\u12g4""#,
            r#""\ud83e\u12""#,
            r#""\"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn raw_control_bytes_and_bad_utf8_are_read() {
        assert_eq!(read(b"\"a\tb\x01\r\n\"").unwrap(), &b"a\tb\x01\r\n"[..]);
        assert_eq!(read(b"\"caf\xe9\"").unwrap(), "café");
        assert_eq!(read(b"\"\xc3\xa9\"").unwrap(), "é");
        assert_eq!(read(b"\"\\\"\xe9\\n\"").unwrap(), "\"é\n");
    }

    #[test]
    fn lists_and_plain_values_are_read_as_texts() {
        let members =
            parsed(br#" { "a" : [ "1" , 2,true ] , "b":[], "c":-1.5e+3, "d":null,"a":"x" } "#);
        let expected: [(&str, &[&str]); 5] = [
            ("a", &["1", "2", "true"]),
            ("b", &[]),
            ("c", &["-1.5e+3"]),
            ("d", &[""]),
            ("a", &["x"]),
        ];
        let expected = expected.map(|(name, values)| {
            let values = values.iter().map(|value| value.as_bytes()).collect();
            (name, values)
        });
        assert_eq!(shown(&members.unwrap()), expected);
        assert!(parsed("{}").unwrap().is_empty());
    }

    #[test]
    fn a_mark_is_found_wherever_it_is() {
        for length in 0..80 {
            assert_eq!(find_mark(&vec![b'a'; length]), None, "{length}");
            for at in 0..length {
                for mark in [b'"', b'\\'] {
                    let mut text = vec![b'a'; length];
                    text[at..].fill(b'#');
                    text[at] = mark;
                    assert_eq!(find_mark(&text), Some(at), "{mark} at {at} of {length}");
                    text[at..].fill(mark);
                    assert_eq!(find_mark(&text), Some(at), "{mark} from {at} of {length}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_flat_object_is_refused_with_its_place() {
        for (bad, at) in [
            ("", 0),
            ("x", 0),
            ("[]", 0),
            ("{", 1),
            ("{}}", 2),
            (r#"{"a"}"#, 4),
            (r#"{"a":}"#, 5),
            (r#"{"a":1,}"#, 7),
            (r#"{"a":{}}"#, 5),
            (r#"{"a":[[]]}"#, 6),
            (r#"{"a":nul}"#, 5),
            (r#"{"a":"b}"#, 6),
            (r#"{"a":"\z"}"#, 6),
            ("{a:1}", 1),
            (r#"{"a":1 "b":2}"#, 7),
        ] {
            assert_eq!(parsed(bad), Err(DecodeErrorKind::Json { at }), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn reading_undoes_writing(text in any::<String>()) {
            let string = written(text.as_bytes());
            prop_assert_eq!(read(&string).unwrap(), text.as_bytes());
            prop_assert_eq!(serde_json::from_str::<String>(&string).unwrap(), text);
        }

        #[test]
        fn any_bytes_are_written_as_json(text in proptest::collection::vec(any::<u8>(), 0..80)) {
            let string = written(&text);
            let value: String = serde_json::from_str(&string).unwrap();
            prop_assert_eq!(read(&string).unwrap(), value.as_bytes());
        }

        #[test]
        fn objects_are_read_as_a_json_library_reads_them(
            object in proptest::collection::btree_map(any::<String>(), proptest::collection::vec(any::<String>(), 0..4), 0..6),
            pretty: bool,
        ) {
            let text = if pretty { serde_json::to_vec_pretty(&object) } else { serde_json::to_vec(&object) };
            let read = parsed(text.unwrap()).unwrap();
            let expected: Vec<(&str, Vec<&[u8]>)> = object
                .iter()
                .map(|(name, values)| (name.as_str(), values.iter().map(String::as_bytes).collect()))
                .collect();
            prop_assert_eq!(shown(&read), expected);
        }

        #[test]
        fn an_object_of_texts_is_read_the_same_in_either_way(
            object in proptest::collection::btree_map("[a-z\"\\\\ ]{0,9}|\\PC{0,9}", "[a-z:,{}\"\\\\ ]{0,40}|\\PC{0,40}", 0..6),
            cut in 0_usize..200,
        ) {
            let tight = serde_json::to_vec(&object).unwrap();
            let loose = serde_json::to_vec_pretty(&object).unwrap();
            let (one, other) = (parsed(tight.clone()).unwrap(), parsed(loose).unwrap());
            prop_assert_eq!(shown(&one), shown(&other));
            // A part of it is none.
            if cut < tight.len() {
                prop_assert!(parsed(tight.get(..cut).unwrap()).is_err());
            }
        }

        #[test]
        fn hostile_text_never_panics(text in "\\{?([\"\\\\u:,\\[\\]{}a1é \\x00]|\"a\":|\"b\",|\\\\ud83e){0,30}") {
            drop(parsed(text));
        }
    }
}
