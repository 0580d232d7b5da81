//! Which application a request is for. Pure: knows paths, hosts and numbers, and nothing of Python.

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
    /// The path below which it is, without a slash at the end; empty: all.
    pub(crate) path: String,
    /// Which of the applications it is.
    pub(crate) app: usize,
    pub(crate) interface: Interface,
}

/// All applications of this process by their places.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    mounts: Vec<Mount>,
}

impl Site {
    pub(crate) fn new(mounts: Vec<Mount>) -> Self {
        Self { mounts }
    }

    pub(crate) fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Where a request belongs: the number of its mount.
    pub(crate) fn find(&self, _request: &Request) -> Option<usize> {
        (!self.mounts.is_empty()).then_some(0)
    }
}
