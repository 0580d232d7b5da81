//! Which of a file's forms a client gets: as it is, or one of the compressed neighbours that lie beside it (RFC 9110 12.5.3).
//! Pure. Nothing is ever compressed here.

/// A form in which a file may be stored. In order of preference among those a client likes equally.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// `.br` (RFC 7932).
    Brotli,
    /// `.zst` (RFC 8878).
    Zstd,
    /// `.gz` (RFC 1952).
    Gzip,
    /// The file itself.
    Identity,
}

/// Number of codings.
pub(super) const CODINGS: usize = 4;

impl Coding {
    /// All of them, in order of preference.
    pub const ALL: [Self; CODINGS] = [Self::Brotli, Self::Zstd, Self::Gzip, Self::Identity];

    /// What is appended to the name of the file.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
            Self::Identity => "",
        }
    }

    /// The name in `Content-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Identity => "identity",
        }
    }

    pub(super) const fn place(self) -> usize {
        self as usize
    }
}

/// How much a client likes each coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acceptable {
    /// Twice the weight in thousandths, so that there is room for "if nothing else is there" below the least.
    ranks: [u16; CODINGS],
}

/// The file itself, where the client says nothing of it.
const LAST_CHOICE: u16 = 1;

impl Acceptable {
    /// Reads `Accept-Encoding`. Without it only the file itself is acceptable; what cannot be read counts as not said.
    pub fn parse(value: Option<&[u8]>) -> Self {
        let mut said: [Option<u16>; CODINGS] = [None; CODINGS];
        let mut others = None;
        for element in value.unwrap_or_default().split(|&byte| byte == b',') {
            let mut words = element.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
            let name = words.next().unwrap_or_default();
            let Some(rank) = weight(words) else { continue };
            if name == b"*" {
                others = Some(rank);
            }
            let known = Coding::ALL.iter().find(|coding| {
                name.eq_ignore_ascii_case(coding.name().as_bytes())
                    || (**coding == Coding::Gzip && name.eq_ignore_ascii_case(b"x-gzip"))
            });
            if let Some(slot) = known.and_then(|coding| said.get_mut(coding.place())) {
                *slot = Some(rank);
            }
        }
        let rank = |coding: Coding| {
            let said = said.get(coding.place()).copied().flatten();
            match coding {
                Coding::Identity if others == Some(0) => said.unwrap_or(0),
                Coding::Identity => said.unwrap_or(LAST_CHOICE),
                _ => said.or(others).unwrap_or(0),
            }
        };
        Self {
            ranks: Coding::ALL.map(rank),
        }
    }

    /// The best of the forms that are there. The file itself when the client wants none of them: it may, and that is kinder
    /// than a 406.
    pub fn best(self, has: impl Fn(Coding) -> bool) -> Coding {
        let mut best = (0, Coding::Identity);
        for (coding, rank) in Coding::ALL.into_iter().zip(self.ranks) {
            if rank > best.0 && has(coding) {
                best = (rank, coding);
            }
        }
        best.1
    }
}

/// Twice the thousandths of `q=`; `None` when it is malformed. Other parameters are passed over.
fn weight<'a>(parameters: impl Iterator<Item = &'a [u8]>) -> Option<u16> {
    let mut rank = 2_000;
    for parameter in parameters {
        let Some(value) = parameter
            .strip_prefix(b"q=")
            .or_else(|| parameter.strip_prefix(b"Q="))
        else {
            continue;
        };
        let (whole, fraction) = match value {
            [whole] => (whole, b"".as_slice()),
            [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (whole, fraction),
            _ => return None,
        };
        let mut thousandths = match whole {
            b'0' => 0_u16,
            b'1' => 1_000,
            _ => return None,
        };
        let mut unit = 100;
        for digit in fraction {
            if !digit.is_ascii_digit() {
                return None;
            }
            thousandths += u16::from(digit - b'0') * unit;
            unit /= 10;
        }
        if thousandths > 1_000 {
            return None;
        }
        rank = thousandths * 2;
    }
    Some(rank)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_best_form_that_is_there_is_taken() {
        let all = ["br", "zstd", "gzip"];
        for (accept, there, expect) in [
            (None, &all[..], "identity"),
            (Some(""), &all, "identity"),
            (Some("gzip, deflate, br, zstd"), &all, "br"),
            (Some("gzip, deflate, br, zstd"), &["gzip"], "gzip"),
            (Some("gzip, deflate, br, zstd"), &[], "identity"),
            (Some("gzip;q=1.0, br;q=0.5"), &all, "gzip"),
            (Some("GZIP"), &all, "gzip"),
            (Some("x-gzip"), &all, "gzip"),
            (Some("gzip;q=0"), &all, "identity"),
            (Some("gzip;q=0.001"), &all, "gzip"),
            (Some("gzip ; q=0.5 , identity"), &all, "identity"),
            (Some("identity;q=0.5, gzip;q=0.5"), &all, "gzip"),
            (Some("*"), &all, "br"),
            (Some("*, br;q=0"), &all, "zstd"),
            (Some("*;q=0"), &all, "identity"),
            (Some("identity;q=0, gzip"), &[], "identity"),
            (Some("gzip;q=2, br;q=x, zstd;q=0.1234"), &all, "identity"),
            (Some("deflate, compress"), &all, "identity"),
            (Some(",,;q=1,"), &all, "identity"),
        ] {
            let best = Acceptable::parse(accept.map(str::as_bytes))
                .best(|coding| coding == Coding::Identity || there.contains(&coding.name()));
            assert_eq!(best.name(), expect, "{accept:?} of {there:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_safe(value in prop::collection::vec(any::<u8>(), 0..60)) {
            Acceptable::parse(Some(&value)).best(|_| true);
        }
    }
}
