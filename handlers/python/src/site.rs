//! Which application a request is for. Pure: knows paths, hosts and numbers, and nothing of Python.
//!
//! A host that is named goes before one that is meant by `*.`, of those the longer before the shorter, and those before any. Among the
//! places of a host the longest path has it, which ends where a segment does: `/blog` has `/blog` and `/blog/x`, not `/blogs`.
//! A host that is named has its own places only, and what is at any host where none of those fits.

use lurcher::handler::Request;

/// What an application speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interface {
    Wsgi,
    Asgi,
}

/// An application's place.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    /// The host, in small letters and without a port; `*.` before it means all below it; empty: any.
    pub(crate) host: String,
    /// The path below which it is, without a slash at the end; empty: all.
    pub(crate) path: String,
    /// Which of the applications it is.
    pub(crate) app: usize,
    pub(crate) interface: Interface,
}

impl Mount {
    /// How many bytes of a path, as the client sent it, are the mount's; none: it is not below it. A letter may be escaped, a slash may
    /// not: that is part of a segment.
    pub(crate) fn consumed(&self, path: &[u8]) -> Option<usize> {
        let mut at = 0;
        for wanted in self.path.bytes() {
            let (byte, length) = match path.get(at)? {
                b'%' => (escaped(path.get(at + 1..at + 3)?)?, 3),
                byte => (*byte, 1),
            };
            if byte != wanted || (length == 3 && byte == b'/') {
                return None;
            }
            at += length;
        }
        match path.get(at) {
            None | Some(b'/' | b'?') => Some(at),
            Some(_) => (self.path.is_empty()).then_some(at),
        }
    }

    /// How well it fits a host: the higher the better.
    fn fits(&self, host: &[u8]) -> Option<usize> {
        if self.host.is_empty() {
            return Some(0);
        }
        match self.host.strip_prefix('*') {
            Some(end) => (host.len() > end.len() && ends_with(host, end)).then_some(end.len()),
            None => host
                .eq_ignore_ascii_case(self.host.as_bytes())
                .then_some(usize::MAX),
        }
    }
}

fn ends_with(host: &[u8], end: &str) -> bool {
    host.len()
        .checked_sub(end.len())
        .and_then(|at| host.get(at..))
        .is_some_and(|rest| rest.eq_ignore_ascii_case(end.as_bytes()))
}

fn escaped(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    u8::from_str_radix(digits, 16)
        .ok()
        .filter(|_| !digits.starts_with('+'))
}

/// All applications of this process by their places.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    mounts: Vec<Mount>,
    /// There is one, and it has everything.
    is_whole: bool,
}

impl Site {
    pub(crate) fn new(mounts: Vec<Mount>) -> Self {
        let is_whole = match mounts.as_slice() {
            [one] => one.host.is_empty() && one.path.is_empty(),
            _ => false,
        };
        Self { mounts, is_whole }
    }

    pub(crate) fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Where a request belongs: the number of its mount.
    pub(crate) fn find(&self, request: &Request) -> Option<usize> {
        if self.is_whole {
            return Some(0);
        }
        let host = request.headers.first("host").unwrap_or_default();
        self.look_up(host, &request.path)
    }

    /// The same for a host, with or without a port, and a path as clients send it.
    pub(crate) fn look_up(&self, host: &[u8], path: &[u8]) -> Option<usize> {
        let host = without_port(host);
        let fitting = self.mounts.iter().enumerate().filter_map(|(at, mount)| {
            mount.consumed(path)?;
            Some((mount.fits(host)?, mount.path.len(), at))
        });
        // No two of them are at one place.
        let best = fitting.max_by_key(|(fits, length, _)| (*fits, *length))?;
        Some(best.2)
    }
}

/// The host of a Host header: its port is nobody's matter, nor a dot at its end.
fn without_port(host: &[u8]) -> &[u8] {
    let end = host
        .iter()
        .rposition(|byte| !byte.is_ascii_digit())
        .filter(|at| host.get(*at) == Some(&b':'));
    let name = end.and_then(|end| host.get(..end)).unwrap_or(host);
    name.strip_suffix(b".").unwrap_or(name)
}
