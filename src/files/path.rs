//! What a request's path asks of a directory: decoded, checked, and where a client is sent for a directory without its slash.
//! Pure: it looks at no disk, so what symbolic links make of a path is decided in `disk`.

/// A place below the base of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The path below the base, decoded, the index file appended where the request ended in a slash; never a NUL, never more
    /// `..` than names before them. Empty: the base itself.
    pub(super) relative: Vec<u8>,
    /// The path ended in a slash: a directory is meant, and its index asked for.
    pub(super) directory: bool,
}

/// Reads the path of a request, as received, for a route whose prefix is `prefix`, and a directory with this index file.
///
/// As in Mongrel2 the prefix is cut by its length, what is left is percent-decoded, and a path that ends in a slash means the
/// index file. A prefix without its last slash is the directory without its slash (`/files` for the route `/files/`), and is
/// sent there; Mongrel2 answers 404. `None`: there can be no such file. Unlike Mongrel2, which cuts a path at a NUL, a NUL is
/// in no name; and a path that climbs above the base on its way is refused even where it comes back, since the answer would
/// tell what lies outside.
pub fn wanted(path: &[u8], prefix: &[u8], index: &str) -> Option<Wanted> {
    let Some(rest) = path.get(prefix.len()..) else {
        // `/us` finds the route `/users/`: only with its slash missing is it the directory.
        let (slash, before) = prefix.split_last()?;
        return (*slash == b'/' && before == path).then(|| Wanted {
            relative: Vec::new(),
            directory: false,
        });
    };
    let directory = path.ends_with(b"/");
    let mut relative = decode(rest)?;
    // An encoded slash does not end the path: Mongrel2 looks before it decodes.
    if directory {
        relative.extend_from_slice(index.as_bytes());
    }
    if climbs(&relative) {
        return None;
    }
    let start = relative.iter().take_while(|&&byte| byte == b'/').count();
    relative.drain(..start);
    Some(Wanted {
        relative,
        directory,
    })
}

/// Resolves percent-escapes; a `%` without two digits is itself. `None` when a NUL comes out.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() + 32);
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let mut value = byte;
        if byte == b'%'
            && let [high, low, after @ ..] = after
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            value = high * 16 + low;
            rest = after;
        }
        if value == 0 {
            return None;
        }
        decoded.push(value);
    }
    Some(decoded)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// Whether the path is above its beginning at any point.
fn climbs(relative: &[u8]) -> bool {
    let mut depth = 0_usize;
    for name in relative.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => match depth.checked_sub(1) {
                Some(above) => depth = above,
                None => return true,
            },
            _ => depth = depth.saturating_add(1),
        }
    }
    false
}

/// Where a directory that was asked for without its slash is: a reference without scheme and host, so that it holds behind
/// every name and balancer the client may have used. The query stays behind it.
///
/// It never begins with two slashes, nor with a slash and a backslash, which browsers read as one: that would name another
/// host. Bytes that have no place in a header value or a reference are escaped.
pub fn location(path: &[u8], query: Option<&[u8]>) -> Vec<u8> {
    let start = path.iter().take_while(|&&byte| byte == b'/').count();
    let rest = path.get(start..).unwrap_or_default();
    let mut location = Vec::with_capacity(rest.len() + query.map_or(0, <[u8]>::len) + 3);
    location.push(b'/');
    escape(rest, &mut location);
    if !rest.is_empty() {
        location.push(b'/');
    }
    if let Some(query) = query {
        location.push(b'?');
        escape(query, &mut location);
    }
    location
}

fn escape(text: &[u8], into: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text {
        if byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'"' | b'<' | b'>') {
            into.push(byte);
        } else {
            let digit = |value: u8| DIGITS.get(usize::from(value)).copied().unwrap_or(b'0');
            into.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(path: &str, prefix: &str, expect: Option<(&str, bool)>) {
        let wanted = wanted(path.as_bytes(), prefix.as_bytes(), "index.html");
        let seen = wanted
            .as_ref()
            .map(|wanted| (str::from_utf8(&wanted.relative).unwrap(), wanted.directory));
        assert_eq!(seen, expect, "{path} below {prefix}");
    }

    #[test]
    fn a_path_is_cut_by_the_prefix_and_decoded() {
        check("/dir/a%20b.txt", "/dir/", Some(("a b.txt", false)));
        check("/dir/sub/", "/dir/", Some(("sub/index.html", true)));
        check("/dir/", "/dir/", Some(("index.html", true)));
        check("/dir//", "/dir/", Some(("index.html", true)));
        check("/dirns/a.txt", "/dirns", Some(("a.txt", false)));
        check("/dir/100%", "/dir/", Some(("100%", false)));
        check("/dir/%zz%4", "/dir/", Some(("%zz%4", false)));
        let bytes = wanted(b"/dir/%e4", b"/dir/", "").unwrap();
        assert_eq!(bytes.relative, b"\xe4", "names need not be text");
    }

    #[test]
    fn a_directory_without_its_slash_is_the_directory() {
        check("/dirns", "/dirns", Some(("", false)));
        check("/dir", "/dir/", Some(("", false)));
        check("/di", "/dir/", None);
    }

    #[test]
    fn nothing_above_the_base_is_reached() {
        for path in [
            "/dir/..",
            "/dir/../secret",
            "/dir/%2e%2e/secret",
            "/dir/..%2fsecret",
            "/dir/sub/../../secret",
            "/dir/../dir/hello.txt",
            "/dir//../secret",
            "/dir/./../secret",
            "/dir/a/%2E./..//%2e%2e/secret",
        ] {
            check(path, "/dir/", None);
        }
        check(
            "/dir/sub/../hello.txt",
            "/dir/",
            Some(("sub/../hello.txt", false)),
        );
        check("/dir/..a/...", "/dir/", Some(("..a/...", false)));
    }

    #[test]
    fn a_nul_is_in_no_name() {
        check("/dir/hello.txt%00.html", "/dir/", None);
        check("/dir/%00", "/dir/", None);
    }

    #[test]
    fn the_redirect_never_names_another_host() {
        for (path, query, expect) in [
            ("/dir/sub", None, "/dir/sub/"),
            ("/dir/sub", Some("a=1"), "/dir/sub/?a=1"),
            ("/dir/sub", Some(""), "/dir/sub/?"),
            ("//evil.com/a", None, "/evil.com/a/"),
            ("///", None, "/"),
            ("/\\evil.com", None, "/%5Cevil.com/"),
            ("/a\r\nb", None, "/a%0D%0Ab/"),
        ] {
            let seen = location(path.as_bytes(), query.map(str::as_bytes));
            assert_eq!(String::from_utf8(seen).unwrap(), expect);
        }
    }

    proptest! {
        #[test]
        fn what_comes_out_stays_below_and_has_no_nul(path in prop::collection::vec(prop::sample::select(b"/.%02eEfFa\0".to_vec()), 0..40)) {
            let full = [b"/d/".as_slice(), &path].concat();
            if let Some(wanted) = wanted(&full, b"/d/", "i") {
                prop_assert!(!wanted.relative.contains(&0));
                prop_assert!(!wanted.relative.starts_with(b"/"));
                prop_assert!(!climbs(&wanted.relative));
            }
            let location = location(&full, None);
            prop_assert!(location.starts_with(b"/") && !location.starts_with(b"//"));
            prop_assert!(location.iter().all(u8::is_ascii_graphic));
        }
    }
}
