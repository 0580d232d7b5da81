//! FastCGI records (the specification of 1996, version 1), as the side that asks needs them: requests out, what comes back in.
//! Pure, and always request 1: a connection has one request at a time, since php-fpm and most others refuse more.
//!
//! A codec of our own, since a client crate would have to send a body while it receives the response, to give a request up in
//! the middle of it, and to hand records on as they come; those that are there write the whole body first.

use bytes::{Buf as _, Bytes, BytesMut};

/// Bytes of a record before its content.
const HEADER: usize = 8;

const VERSION: u8 = 1;

/// The id of the only request of a connection.
const REQUEST: u16 = 1;

/// Content of one record at the most: the largest length that needs no padding to be a multiple of eight.
const CONTENT_MAX: usize = 65_528;

const BEGIN_REQUEST: u8 = 1;
const ABORT_REQUEST: u8 = 2;
const END_REQUEST: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;

/// The role of an application that answers requests.
const RESPONDER: u8 = 1;

/// The connection is to stay open behind the response.
const KEEP_CONN: u8 = 1;

/// Lengths above this take four bytes in a name or value.
const SHORT_MAX: usize = 127;

/// Why a request ended, from its `FCGI_END_REQUEST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The application is done; its exit status.
    Complete(u32),
    /// It has no capacity for the request: none on this connection, or none at all.
    Refused,
    /// It does not answer requests (`FCGI_UNKNOWN_ROLE`), or gave a status that is not defined.
    Unable,
}

/// A record from the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// A piece of the response; an empty one ends the stream.
    Stdout(Bytes),
    /// A piece of what it has to complain about.
    Stderr(Bytes),
    /// The end of the request.
    End(End),
    /// Something else, which means nothing here.
    Other,
}

/// Bytes that are no FastCGI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a record of version {0}")]
    Version(u8),
    #[error("a record for request {0}, which was not made")]
    Request(u16),
    #[error("an end of {0} bytes")]
    End(usize),
}

/// Writes the beginning of a request: `FCGI_BEGIN_REQUEST` and all params.
pub(super) fn begin<'a>(
    keep: bool,
    params: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    out: &mut Vec<u8>,
) {
    header(BEGIN_REQUEST, 8, out);
    out.extend_from_slice(&[
        0,
        RESPONDER,
        if keep { KEEP_CONN } else { 0 },
        0,
        0,
        0,
        0,
        0,
    ]);
    let mut pairs = Vec::with_capacity(1024);
    for (name, value) in params {
        length(name.len(), &mut pairs);
        length(value.len(), &mut pairs);
        pairs.extend_from_slice(name);
        pairs.extend_from_slice(value);
    }
    // A pair may go over the end of a record.
    for content in pairs.chunks(CONTENT_MAX) {
        header(PARAMS, content.len(), out);
        out.extend_from_slice(content);
    }
    header(PARAMS, 0, out);
}

/// Writes a piece of the request's body; nothing for an empty one, which would end it.
pub(super) fn stdin(content: &[u8], out: &mut Vec<u8>) {
    for content in content.chunks(CONTENT_MAX) {
        header(STDIN, content.len(), out);
        out.extend_from_slice(content);
    }
}

/// Writes the end of the request's body.
pub(super) fn stdin_end(out: &mut Vec<u8>) {
    header(STDIN, 0, out);
}

/// `FCGI_ABORT_REQUEST`.
pub(super) fn abort() -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER);
    header(ABORT_REQUEST, 0, &mut out);
    out
}

fn header(kind: u8, content: usize, out: &mut Vec<u8>) {
    let content = u16::try_from(content).expect("at most CONTENT_MAX");
    let [[id, id_low], [long, short]] = [REQUEST, content].map(u16::to_be_bytes);
    out.extend_from_slice(&[VERSION, kind, id, id_low, long, short, 0, 0]);
}

fn length(length: usize, out: &mut Vec<u8>) {
    // The rest of a request's head is far below 2^31 bytes; what is not is cut off the params by its reader.
    match u8::try_from(length) {
        Ok(short) if length <= SHORT_MAX => out.push(short),
        _ => {
            let long = u32::try_from(length).unwrap_or(u32::MAX) | 1 << 31;
            out.extend_from_slice(&long.to_be_bytes());
        }
    }
}

/// Takes the next whole record off the front; `None` while there is none.
///
/// # Errors
///
/// When the bytes are no answer to our request: nothing behind them can be understood.
pub(super) fn next(bytes: &mut BytesMut) -> Result<Option<Record>, Malformed> {
    let Some(&[version, kind, id, id_low, long, short, padding, _]) = bytes.first_chunk::<HEADER>()
    else {
        return match bytes.first() {
            Some(&version) if version != VERSION => Err(Malformed::Version(version)),
            _ => Ok(None),
        };
    };
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let id = u16::from_be_bytes([id, id_low]);
    // Management records have the id 0.
    if id != REQUEST && id != 0 {
        return Err(Malformed::Request(id));
    }
    let content = usize::from(u16::from_be_bytes([long, short]));
    let whole = HEADER + content + usize::from(padding);
    if bytes.len() < whole {
        // The rest of it comes in few reads.
        bytes.reserve(whole - bytes.len());
        return Ok(None);
    }
    let mut record = bytes.split_to(whole).freeze();
    record.advance(HEADER);
    record.truncate(content);
    Ok(Some(match kind {
        STDOUT if id == REQUEST => Record::Stdout(record),
        STDERR if id == REQUEST => Record::Stderr(record),
        END_REQUEST if id == REQUEST => Record::End(end(&record)?),
        _ => Record::Other,
    }))
}

fn end(content: &[u8]) -> Result<End, Malformed> {
    let Some(&[a, b, c, d, protocol, ..]) = content.first_chunk::<8>() else {
        return Err(Malformed::End(content.len()));
    };
    Ok(match protocol {
        0 => End::Complete(u32::from_be_bytes([a, b, c, d])),
        // FCGI_CANT_MPX_CONN, FCGI_OVERLOADED
        1 | 2 => End::Refused,
        _ => End::Unable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as an application would write it.
    fn record(kind: u8, id: u8, content: &[u8], padding: u8) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        let mut out = vec![1, kind, 0, id, length[0], length[1], padding, 0];
        out.extend_from_slice(content);
        out.extend(std::iter::repeat_n(0xff, padding.into()));
        out
    }

    fn all(bytes: &[u8], step: usize) -> (Vec<Record>, Option<Malformed>) {
        let (mut buffer, mut records) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            loop {
                match next(&mut buffer) {
                    Ok(Some(record)) => records.push(record),
                    Ok(None) => break,
                    Err(error) => return (records, Some(error)),
                }
            }
        }
        (records, None)
    }

    #[test]
    fn records_are_the_same_at_every_cut() {
        let bytes = [
            record(STDOUT, 1, b"Status: 200\r\n", 3),
            record(9, 0, b"whatever", 0),
            record(STDERR, 1, b"notice", 2),
            record(STDOUT, 1, &[b'x'; 3000], 0),
            record(STDOUT, 1, b"", 8),
            record(END_REQUEST, 1, &[0, 0, 1, 3, 0, 0, 0, 0], 0),
        ]
        .concat();
        let expect = [
            Record::Stdout("Status: 200\r\n".into()),
            Record::Other,
            Record::Stderr("notice".into()),
            Record::Stdout(vec![b'x'; 3000].into()),
            Record::Stdout(Bytes::new()),
            Record::End(End::Complete(259)),
        ];
        for step in (1..40).chain([bytes.len()]) {
            assert_eq!(all(&bytes, step), (expect.to_vec(), None), "{step}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(all(&bytes[..cut], bytes.len()).1, None, "{cut}");
        }
    }

    #[test]
    fn what_is_no_record_is_told_at_once() {
        let http = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        assert_eq!(all(http, 1), (vec![], Some(Malformed::Version(b'H'))));
        let other = record(STDOUT, 2, b"x", 0);
        assert_eq!(all(&other, 99).1, Some(Malformed::Request(2)));
        let short = record(END_REQUEST, 1, b"1234567", 0);
        assert_eq!(all(&short, 99).1, Some(Malformed::End(7)));
    }

    #[test]
    fn the_end_says_why() {
        for (protocol, expect) in [
            (0, End::Complete(0)),
            (1, End::Refused),
            (2, End::Refused),
            (3, End::Unable),
            (77, End::Unable),
        ] {
            let bytes = record(END_REQUEST, 1, &[0, 0, 0, 0, protocol, 0, 0, 0], 0);
            assert_eq!(all(&bytes, 99), (vec![Record::End(expect)], None));
        }
    }

    #[test]
    fn a_request_is_what_the_specification_says() {
        let mut out = Vec::new();
        let long = [b'v'; 200];
        begin(true, [(&b"A"[..], &b"bc"[..]), (b"LONG", &long)], &mut out);
        stdin(b"body", &mut out);
        stdin_end(&mut out);
        let pairs = [&[1, 2][..], b"Abc", &[4, 0x80, 0, 0, 200], b"LONG", &long].concat();
        let expect = [
            record(BEGIN_REQUEST, 1, &[0, 1, 1, 0, 0, 0, 0, 0], 0),
            record(PARAMS, 1, &pairs, 0),
            record(PARAMS, 1, b"", 0),
            record(STDIN, 1, b"body", 0),
            record(STDIN, 1, b"", 0),
        ]
        .concat();
        assert_eq!(out, expect);
        assert_eq!(abort(), record(ABORT_REQUEST, 1, b"", 0));
    }

    #[test]
    fn long_params_and_bodies_take_several_records() {
        let long = vec![b'v'; 150_000];
        let mut out = Vec::new();
        begin(false, [(&b"A"[..], &long[..])], &mut out);
        stdin(&long, &mut out);
        stdin(b"", &mut out);
        let (mut kinds, mut sizes) = (Vec::new(), [0; 6]);
        let mut rest = &out[..];
        while let Some((head, after)) = rest.split_first_chunk::<HEADER>() {
            let size = usize::from(u16::from_be_bytes([head[4], head[5]]));
            kinds.push(head[1]);
            sizes[usize::from(head[1])] += size;
            rest = &after[size..];
        }
        assert_eq!(kinds, [1, 4, 4, 4, 4, 5, 5, 5]);
        assert_eq!(sizes, [0, 8, 0, 0, 150_006, 150_000]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(0_u8..8, 0..200), step in 1_usize..20) {
            let (records, error) = all(&bytes, step);
            let (whole, same) = all(&bytes, bytes.len().max(1));
            proptest::prop_assert_eq!(records, whole);
            proptest::prop_assert_eq!(error, same);
        }
    }
}
