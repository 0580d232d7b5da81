//! Which application a request is for. Pure: knows paths, hosts and numbers, and nothing of Python.

use lurcher::handler::Request;
use lurcher::routing::{Place, Places};

/// What an application speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interface {
    Wsgi,
    Asgi,
}

/// An application's place.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    /// Where it is.
    pub(crate) place: Place,
    /// Which of the applications it is.
    pub(crate) app: usize,
    pub(crate) interface: Interface,
}

impl Mount {
    /// How many bytes of a path, as the client sent it, are the mount's; none: it is not below it.
    pub(crate) fn consumed(&self, path: &[u8]) -> Option<usize> {
        self.place.consumed(path)
    }
}

/// All applications of this process by their places.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    mounts: Vec<Mount>,
    places: Places,
}

impl Site {
    pub(crate) fn new(mounts: Vec<Mount>) -> Self {
        let places = mounts.iter().map(|mount| mount.place.clone());
        Self {
            places: Places::new(places.collect()),
            mounts,
        }
    }

    pub(crate) fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Where a request belongs: the number of its mount.
    pub(crate) fn find(&self, request: &Request) -> Option<usize> {
        if self.places.is_whole() {
            return Some(0);
        }
        let host = request.headers.first("host").unwrap_or_default();
        self.look_up(host, &request.path)
    }

    /// The same for a host, with or without a port, and a path as clients send it.
    pub(crate) fn look_up(&self, host: &[u8], path: &[u8]) -> Option<usize> {
        self.places.find(host, path)
    }
}
