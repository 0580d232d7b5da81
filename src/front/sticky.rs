//! The key of a request by its route's rule ([`crate::sticky`]): out of the head while it is there, or out of the message and the id
//! that it goes out with. Which worker a key leads to is the pool's matter.

use std::borrow::Cow;
use std::rc::Rc;

use super::client::Client;
use super::site::Handler;
use crate::http1::Head;
use crate::pool::Caller;
use crate::sticky::{Facts, SEARCH_BYTES_MAX};
use crate::wire::ConnId;
use crate::wire::request::{self, Field};

/// The key as far as a head tells it: rules that need more have none yet.
pub(super) fn of_head(handler: &Handler, head: &Head<'_, '_, Field<'_>>) -> Option<u64> {
    let rule = handler.sticky.as_ref()?;
    rule.needs_only_a_head().then(|| rule.of(&OfHead(head)))?
}

/// The key by rules that need more than the head. `message` is everything behind `SENDER SP CONNID SP`.
pub(super) fn of_message(handler: &Handler, client: &Rc<Client>, message: &[u8]) -> Option<u64> {
    let rule = handler.sticky.as_ref()?;
    if rule.needs_only_a_head() {
        return None;
    }
    let settings = handler.pool.settings();
    rule.of(&OfMessage {
        sender: &settings.sender,
        id: Rc::clone(client).id(),
        message,
    })
}

struct OfHead<'h>(&'h Head<'h, 'h, Field<'h>>);

impl Facts for OfHead<'_> {
    fn sender(&self) -> &[u8] {
        b""
    }

    fn id(&self) -> u32 {
        0
    }

    fn path(&self) -> &[u8] {
        self.0.target.path
    }

    fn header(&self, name: &str, nth: usize) -> Option<&[u8]> {
        let named = |field: &&Field<'_>| field.name.eq_ignore_ascii_case(name.as_bytes());
        let mut fields = self.0.fields.iter().filter(named);
        fields.nth(nth).map(|field| field.value)
    }

    fn message(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(b"")
    }
}

struct OfMessage<'m> {
    sender: &'m [u8],
    id: ConnId,
    message: &'m [u8],
}

impl Facts for OfMessage<'_> {
    fn sender(&self) -> &[u8] {
        self.sender
    }

    fn id(&self) -> u32 {
        self.id.0
    }

    fn path(&self) -> &[u8] {
        b""
    }

    fn header(&self, _: &str, _: usize) -> Option<&[u8]> {
        None
    }

    fn message(&self) -> Cow<'_, [u8]> {
        let mut all = Vec::new();
        request::encode_prefix(self.sender, self.id, &mut all);
        let seen = self.message.get(..SEARCH_BYTES_MAX);
        all.extend_from_slice(seen.unwrap_or(self.message));
        all.into()
    }
}
