//! The chunked transfer coding (RFC 9112 7.1), decoded as it arrives, in any pieces. It keeps no data, only where it is;
//! how large a body may be is the caller's affair. Extensions are read over, within bounds, and dropped; trailer fields too, unless
//! somebody asks for them.

use super::Refusal;
use super::fields::is_token_byte;

/// Most hexadecimal digits of a chunk size, leading zeros counted.
const DIGITS_MAX: u8 = 16;

/// Largest chunk: what fits a signed number, since no honest client has more and sums of it cannot overflow.
const CHUNK_MAX: u64 = i64::MAX as u64;

/// Most bytes of chunk extensions that are not outweighed by data: they are read for nothing, so they must not be what a body
/// is mostly made of.
const EXTENSIONS_MAX: u16 = 16 * 1024;

/// Most bytes of trailer fields.
const TRAILERS_MAX: u16 = 16 * 1024;

/// Where a chunked body is. 16 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoder {
    /// Bytes of data to come in this chunk.
    remaining: u64,
    /// Bytes read for nothing: extensions, later trailers.
    idle: u16,
    digits: u8,
    stage: Stage,
    lenient: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Size,
    SizeBlank,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataEnd,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastEnd,
    Done,
    Refused(Fault),
}

impl Stage {
    const fn is_trailer(self) -> bool {
        matches!(
            self,
            Self::TrailerStart
                | Self::TrailerName
                | Self::TrailerValue
                | Self::TrailerEnd
                | Self::LastEnd
        )
    }
}

/// What was wrong: a byte, where the text would be sixteen, in what every connection may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Blank,
    Extension,
    SizeEnd,
    DataEnd,
    Trailer,
    TrailerValue,
    TrailerEnd,
    LastEnd,
    NoSize,
    Size,
    LongSize,
    Large,
    Trailers,
    Extensions,
}

impl Fault {
    const fn reason(self) -> &'static str {
        match self {
            Self::Blank => "blank after a chunk size",
            Self::Extension => "control character in a chunk extension",
            Self::SizeEnd => "lone CR in a chunk size line",
            Self::DataEnd => "chunk data does not end where its size says",
            Self::Trailer => "malformed trailer field",
            Self::TrailerValue => "control character in a trailer field",
            Self::TrailerEnd => "lone CR in a trailer field",
            Self::LastEnd => "lone CR after the last chunk",
            Self::NoSize => "no chunk size",
            Self::Size => "chunk size is not a hexadecimal number",
            Self::LongSize => "chunk size too long",
            Self::Large => "chunk too large",
            Self::Trailers => "too many trailer fields",
            Self::Extensions => "too many chunk extensions",
        }
    }
}

/// How a call of [`Decoder::decode`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All input was used; the body goes on.
    More,
    /// The body is whole; what was not used belongs to the next request.
    Done,
    /// This is no chunked body. Answer and close: where it ends will never be known.
    Refused(Refusal),
}

/// What a call of [`Decoder::decode`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of the input that belong to the body, framing included.
    pub consumed: usize,
    /// Whether there is more to come.
    pub status: Status,
}

impl Decoder {
    /// For the bodies of clients: CR LF and nothing else ends a line, no blanks around sizes, no folded trailers.
    pub fn new() -> Self {
        Self::default()
    }

    /// For the responses of handlers, which are only followed, not judged: LF alone ends a line too, and blanks may follow
    /// a size, as some programs pad it.
    pub fn lenient() -> Self {
        Self {
            lenient: true,
            ..Self::default()
        }
    }

    /// Decodes `input`, appending the data to `out`.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Decoded {
        self.decode_with(input, |data| out.extend_from_slice(data))
    }

    /// Decodes `input`, giving each run of data to `sink`; runs are never empty and never span chunks.
    pub fn decode_with(&mut self, input: &[u8], sink: impl FnMut(&[u8])) -> Decoded {
        self.decode_whole(input, sink, |_| {})
    }

    /// The same, and each byte of the trailer section (RFC 9112 7.1.2) to `trailer`: lines as they came, the empty one at
    /// their end too. There are at most some tens of KiB of them; [`super::fields::lines`] takes them apart.
    pub fn decode_whole(
        &mut self,
        input: &[u8],
        mut sink: impl FnMut(&[u8]),
        mut trailer: impl FnMut(u8),
    ) -> Decoded {
        let mut rest = input;
        let status = loop {
            match self.stage {
                Stage::Done => break Status::Done,
                Stage::Refused(fault) => break Status::Refused(Refusal::bad(fault.reason())),
                Stage::Data => {
                    let most = usize::try_from(self.remaining).unwrap_or(usize::MAX);
                    let (data, after) = rest.split_at_checked(most).unwrap_or((rest, &[]));
                    if data.is_empty() {
                        break Status::More;
                    }
                    sink(data);
                    rest = after;
                    self.remaining = self.remaining.saturating_sub(data.len() as u64);
                    self.idle = self
                        .idle
                        .saturating_sub(u16::try_from(data.len()).unwrap_or(u16::MAX));
                    if self.remaining == 0 {
                        self.stage = Stage::DataCr;
                    }
                }
                _ => {
                    let Some((&byte, after)) = rest.split_first() else {
                        break Status::More;
                    };
                    rest = after;
                    if self.stage.is_trailer() {
                        trailer(byte);
                    }
                    self.stage = self.next(byte);
                }
            }
        };
        Decoded {
            consumed: input.len().saturating_sub(rest.len()),
            status,
        }
    }

    fn next(&mut self, byte: u8) -> Stage {
        match self.stage {
            Stage::Size => self.size(byte),
            Stage::SizeBlank => match byte {
                b' ' | b'\t' => self.idle(Stage::SizeBlank),
                b';' => self.idle(Stage::Extension),
                // Blanks are allowed before an extension only (RFC 9112 7.1.1).
                b'\r' if self.lenient => Stage::SizeEnd,
                b'\n' if self.lenient => self.after_size(),
                _ => Stage::Refused(Fault::Blank),
            },
            Stage::Extension => match byte {
                b'\r' => Stage::SizeEnd,
                b'\n' if self.lenient => self.after_size(),
                _ if is_text(byte) => self.idle(Stage::Extension),
                _ => Stage::Refused(Fault::Extension),
            },
            Stage::SizeEnd => match byte {
                b'\n' => self.after_size(),
                _ => Stage::Refused(Fault::SizeEnd),
            },
            Stage::DataCr => match byte {
                b'\r' => Stage::DataEnd,
                b'\n' if self.lenient => self.new_size(),
                _ => Stage::Refused(Fault::DataEnd),
            },
            Stage::DataEnd => match byte {
                b'\n' => self.new_size(),
                _ => Stage::Refused(Fault::DataEnd),
            },
            Stage::TrailerStart => match byte {
                b'\r' => Stage::LastEnd,
                b'\n' if self.lenient => Stage::Done,
                _ if is_token_byte(byte) => self.idle(Stage::TrailerName),
                _ => Stage::Refused(Fault::Trailer),
            },
            Stage::TrailerName => match byte {
                b':' => self.idle(Stage::TrailerValue),
                _ if is_token_byte(byte) => self.idle(Stage::TrailerName),
                _ => Stage::Refused(Fault::Trailer),
            },
            Stage::TrailerValue => match byte {
                b'\r' => Stage::TrailerEnd,
                b'\n' if self.lenient => Stage::TrailerStart,
                _ if is_text(byte) => self.idle(Stage::TrailerValue),
                _ => Stage::Refused(Fault::TrailerValue),
            },
            Stage::TrailerEnd => match byte {
                b'\n' => Stage::TrailerStart,
                _ => Stage::Refused(Fault::TrailerEnd),
            },
            Stage::LastEnd => match byte {
                b'\n' => Stage::Done,
                _ => Stage::Refused(Fault::LastEnd),
            },
            stage @ (Stage::Data | Stage::Done | Stage::Refused(_)) => stage,
        }
    }

    fn size(&mut self, byte: u8) -> Stage {
        let digit = match byte {
            b'0'..=b'9' => byte & 0x0f,
            // `a` and `A` are 1 in their low four bits.
            b'a'..=b'f' | b'A'..=b'F' => (byte & 0x0f).saturating_add(9),
            _ if self.digits == 0 => return Stage::Refused(Fault::NoSize),
            b'\r' => return Stage::SizeEnd,
            b'\n' if self.lenient => return self.after_size(),
            b';' => return self.idle(Stage::Extension),
            b' ' | b'\t' => return self.idle(Stage::SizeBlank),
            _ => return Stage::Refused(Fault::Size),
        };
        if self.digits == DIGITS_MAX {
            return Stage::Refused(Fault::LongSize);
        }
        self.digits = self.digits.saturating_add(1);
        self.remaining = self.remaining.wrapping_shl(4) | u64::from(digit);
        if self.remaining > CHUNK_MAX {
            return Stage::Refused(Fault::Large);
        }
        Stage::Size
    }

    fn after_size(&mut self) -> Stage {
        if self.remaining > 0 {
            return Stage::Data;
        }
        self.idle = 0;
        Stage::TrailerStart
    }

    fn new_size(&mut self) -> Stage {
        self.digits = 0;
        Stage::Size
    }

    /// Counts a byte that is read for nothing.
    fn idle(&mut self, stage: Stage) -> Stage {
        let (most, fault) = match stage {
            Stage::TrailerName | Stage::TrailerValue => (TRAILERS_MAX, Fault::Trailers),
            _ => (EXTENSIONS_MAX, Fault::Extensions),
        };
        self.idle = self.idle.saturating_add(1);
        if self.idle > most {
            return Stage::Refused(fault);
        }
        stage
    }
}

/// Anything but control characters; tabs are text.
const fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::every_split;
    use super::*;

    /// The data, the bytes used and how it ended, for one way to cut.
    fn run(mut decoder: Decoder, pieces: &[&[u8]]) -> (Vec<u8>, usize, Status) {
        let (mut out, mut used, mut status) = (Vec::new(), 0, Status::More);
        for piece in pieces {
            let decoded = decoder.decode(piece, &mut out);
            used += decoded.consumed;
            status = decoded.status;
            if status != Status::More {
                break;
            }
            assert_eq!(decoded.consumed, piece.len());
        }
        (out, used, status)
    }

    #[track_caller]
    fn check(input: &str, expect: Result<(&str, &str), bool>) {
        let whole = run(Decoder::new(), &[input.as_bytes()]);
        every_split(input.as_bytes(), |pieces| {
            assert_eq!(
                run(Decoder::new(), pieces),
                whole,
                "{input:?} cut {pieces:?}"
            );
        });
        let (data, used, status) = whole;
        match (expect, status) {
            (Ok((body, rest)), Status::Done) => {
                assert_eq!(
                    (data.as_slice(), &input.as_bytes()[used..]),
                    (body.as_bytes(), rest.as_bytes())
                );
            }
            (Err(true), Status::Refused(_)) | (Err(false), Status::More) => {}
            _ => panic!("{input:?}: {status:?}"),
        }
    }

    #[test]
    fn chunks_become_a_body() {
        check("0\r\n\r\n", Ok(("", "")));
        check("5\r\nhello\r\n0\r\n\r\nGET /", Ok(("hello", "GET /")));
        check(
            "A\r\n0123456789\r\n3\r\nabc\r\n000\r\n\r\n",
            Ok(("0123456789abc", "")),
        );
        check("5;a=b;c=\"d e\"\r\nhello\r\n0;x\r\n\r\n", Ok(("hello", "")));
        check("5 \t;a\r\nhello\r\n0\r\n\r\n", Ok(("hello", "")));
        check(
            "3\r\nabc\r\n0\r\nX-T: 1\r\nY:\r\n\r\nrest",
            Ok(("abc", "rest")),
        );
        check("5\r\nhel", Err(false));
        check("5\r\nhello\r\n0\r\n", Err(false));
    }

    #[test]
    fn what_is_not_exactly_chunked_is_refused() {
        for bad in [
            "g\r\n",
            "\r\n",
            "0x5\r\n",
            "+5\r\n",
            "-5\r\n",
            " 5\r\n",
            "5 \r\n",
            "5\t\r\n",
            "5\n",
            "5\r\r",
            "5_0\r\n",
            "5\r\nhello\n",
            "5\r\nhelloXX",
            "5\r\nhello\rX",
            "5;\n",
            "5;a\rb",
            "5;\0",
            ";a\r\n",
            "8000000000000000\r\n",
            "ffffffffffffffff\r\n",
            "00000000000000005\r\n",
            "0\n",
            "0\r\n\n",
            "0\r\n\rX",
            "0\r\nX\r\n",
            "0\r\n: x\r\n",
            "0\r\nX : y\r\n",
            "0\r\nX: y\r\n z\r\n",
            "0\r\nX: \0\r\n",
            "0\r\nX: y\n",
            "0\r\nX: y\r\r",
        ] {
            check(bad, Err(true));
        }
    }

    #[test]
    fn extensions_and_trailers_have_bounds() {
        for long in [
            format!("1;{}\r\n", "x".repeat(20_000)),
            format!("0\r\nX: {}\r\n", "x".repeat(20_000)),
        ] {
            let whole = run(Decoder::new(), &[long.as_bytes()]);
            assert!(matches!(whole.2, Status::Refused(_)));
            assert_eq!(
                run(
                    Decoder::new(),
                    &long.as_bytes().chunks(1).collect::<Vec<_>>()
                ),
                whole
            );
        }
        // Signed chunks of big uploads are fine: data outweighs them.
        let signed = format!("1000;sig={}\r\n{}\r\n", "f".repeat(100), "d".repeat(4096));
        let mut decoder = Decoder::new();
        let mut bytes = 0;
        for _ in 0..1000 {
            let decoded = decoder.decode_with(signed.as_bytes(), |data| bytes += data.len());
            assert_eq!(decoded.status, Status::More);
        }
        assert_eq!(bytes, 4096 * 1000);
    }

    #[test]
    fn a_lenient_decoder_takes_lf_and_padding() {
        let body = b"5  \nhello\n0\nX: y\n\nrest";
        every_split(body, |pieces| {
            let (data, used, status) = run(Decoder::lenient(), pieces);
            assert_eq!(
                (data.as_slice(), status),
                (b"hello".as_slice(), Status::Done)
            );
            assert_eq!(&body[used..], b"rest");
        });
    }

    #[test]
    fn trailer_lines_come_as_they_are_however_they_are_cut() {
        let body = b"3\r\nabc\r\n0\r\nX-T:  1 \r\nY:\r\n\r\nrest";
        every_split(body, |pieces| {
            let (mut decoder, mut trailers) = (Decoder::new(), Vec::new());
            for piece in pieces {
                decoder.decode_whole(piece, |_| {}, |byte| trailers.push(byte));
            }
            assert_eq!(trailers, b"X-T:  1 \r\nY:\r\n\r\n");
            let lines: Vec<_> = crate::http1::fields::lines(&trailers)
                .map(|field| (field.name, field.value))
                .collect();
            assert_eq!(lines, [(&b"X-T"[..], &b"1"[..]), (&b"Y"[..], &b""[..])]);
        });
    }

    #[test]
    fn a_decoder_is_small() {
        assert!(size_of::<Decoder>() <= 16);
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            cut in 1_usize..30,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\nnext");
            let pieces: Vec<_> = wire.chunks(cut).collect();
            let (data, used, status) = run(Decoder::new(), &pieces);
            prop_assert_eq!(status, Status::Done);
            prop_assert_eq!(data, chunks.concat());
            prop_assert_eq!(used, wire.len() - 4);
        }

        #[test]
        fn any_bytes_are_safe_and_cuts_do_not_matter(
            bytes in prop::collection::vec(prop::sample::select(b"015fF;:\r\n \tXx\0\xff".to_vec()), 0..60),
        ) {
            for decoder in [Decoder::new(), Decoder::lenient()] {
                let whole = run(decoder.clone(), &[&bytes]);
                every_split(&bytes, |pieces| assert_eq!(run(decoder.clone(), pieces), whole));
            }
        }
    }
}
