//! What a request of a server tells a rule for sticky requests.

use std::borrow::Cow;

use bytes::Bytes;

use crate::sticky::Facts;
use crate::wire::request::Request;

/// A request and its message, whole.
pub(super) struct Known<'a> {
    pub(super) request: &'a Request,
    pub(super) message: &'a Bytes,
}

impl Facts for Known<'_> {
    fn sender(&self) -> &[u8] {
        &self.request.sender
    }

    fn id(&self) -> u32 {
        self.request.conn_id.0
    }

    fn path(&self) -> &[u8] {
        &self.request.path
    }

    fn header(&self, name: &str, nth: usize) -> Option<&[u8]> {
        // Servers write the names of what clients send in small letters.
        self.request.headers.all(name).get(nth)
    }

    fn message(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.message)
    }
}
