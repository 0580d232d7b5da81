//! A request head finds its target: host, route, and what the route asks of the request.
//!
//! Everything that is decided from the head alone is decided here, while the head is still borrowed from the read buffer;
//! what comes out owns what it needs.

use std::rc::Rc;

use super::Shard;
use super::access_log::Line;
use super::answer::Trouble;
use super::client::{Client, DOWNLOAD_CREDITS_TEXT};
use super::dir;
use super::local;
use super::message::{self, Context};
use super::proxy;
use super::site::{Handler, Target};
use crate::http1::{Asked, BodyFraming, Expect, Head, Version};
use crate::pool::Retry;
use crate::wire::request::Field;

/// What client headers may not be called: Mongrel2's uploads are announced to handlers under these names.
const RESERVED_PREFIX: &[u8] = b"x-mongrel2-";

/// A request for a handler, whose body may still be on its way.
pub(super) struct Accepted {
    pub(super) handler: Rc<Handler>,
    /// `PATH SP HEADERS` so far.
    pub(super) message: Vec<u8>,
    pub(super) framing: BodyFraming,
    pub(super) retry: Retry,
    /// What the response's end depends on.
    pub(super) asked: Asked,
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    pub(super) line: Option<Line>,
}

impl Accepted {
    /// The length of a body that is not chunked.
    pub(super) fn length(&self) -> usize {
        match self.framing {
            BodyFraming::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
            BodyFraming::None | BodyFraming::Chunked => 0,
        }
    }
}

/// What a head led to.
pub(super) enum Dispatched {
    /// A handler gets it. `wants_continue`: the client waits for a 100 before it sends the body.
    Accepted {
        accepted: Accepted,
        wants_continue: bool,
    },
    /// A response is made in this process.
    Local(Box<local::Request>),
    /// It is refused.
    Refused {
        trouble: Trouble,
        head_request: bool,
        line: Option<Line>,
    },
}

/// Decides about a head.
pub(super) fn dispatch(
    shard: &Shard,
    client: &Client,
    head: &Head<'_, '_, Field<'_>>,
) -> Dispatched {
    let site = shard.site();
    let host = site.host(head.host);
    let mut line = shard.access_log.borrow().is_some().then(|| Line {
        host: host.map_or_else(|| Rc::from(""), |host| Rc::clone(&host.name)),
        remote: client.addr,
        method: head.method.into(),
        path: head.target.path.into(),
        version: message::version(head.version),
    });
    let found = host.and_then(|host| host.routes.find(head.target.path));
    let trouble = match found {
        None | Some((_, Target::Dead)) => Trouble::NoRoute,
        Some((_, Target::Proxy(backend))) => {
            match proxy::begin(shard, client, head, backend, &mut line) {
                Ok(request) => return Dispatched::Local(Box::new(request)),
                Err(trouble) => trouble,
            }
        }
        Some((route, Target::Dir(directory))) => {
            return dir::serve(shard, head, route, directory, line);
        }
        Some((pattern, Target::Handler(handler))) => match refuse(shard, head) {
            Some(trouble) => trouble,
            None => return accept(shard, client, head, pattern, handler, line),
        },
    };
    Dispatched::Refused {
        trouble,
        head_request: head.head_request,
        line,
    }
}

/// What a handler's route refuses on sight of the head.
fn refuse(shard: &Shard, head: &Head<'_, '_, Field<'_>>) -> Option<Trouble> {
    if head.expect == Expect::Other {
        return Some(Trouble::Expectation);
    }
    match head.framing {
        BodyFraming::Length(length) if length > shard.limits().content_length as u64 => {
            Some(Trouble::TooLarge)
        }
        _ => None,
    }
}

fn accept(
    shard: &Shard,
    client: &Client,
    head: &Head<'_, '_, Field<'_>>,
    pattern: &str,
    handler: &Rc<Handler>,
    line: Option<Line>,
) -> Dispatched {
    let context = Context {
        protocol: handler.protocol,
        pattern,
        remote: client.addr.ip(),
        keep_forwarded_for: shard.limits().keep_forwarded_for,
        credits: (shard.limits().flow_control && !client.has_handler())
            .then_some(DOWNLOAD_CREDITS_TEXT),
        names_max: shard.limits().header_names_max,
        values_max: shard.limits().header_values_max,
    };
    let body = match head.framing {
        BodyFraming::Length(length) => usize::try_from(length).unwrap_or(0) + 16,
        BodyFraming::None | BodyFraming::Chunked => 16,
    };
    let message = if head.fields.iter().any(is_reserved) {
        let fields: Vec<Field<'_>> = head
            .fields
            .iter()
            .filter(|field| !is_reserved(field))
            .copied()
            .collect();
        message::encode(head, &fields, &context, body)
    } else {
        message::encode(head, head.fields, &context, body)
    };
    let accepted = Accepted {
        handler: Rc::clone(handler),
        message,
        framing: head.framing,
        retry: handler.retry(head.method),
        asked: if head.head_request {
            Asked::Head
        } else {
            Asked::Other
        },
        version: head.version,
        keep_alive: head.keep_alive,
        line,
    };
    let wants_continue = head.expect == Expect::Continue && head.version == Version::Http11;
    Dispatched::Accepted {
        accepted,
        wants_continue,
    }
}

fn is_reserved(field: &Field<'_>) -> bool {
    field
        .name
        .get(..RESERVED_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_PREFIX))
}
