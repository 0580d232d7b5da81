//! A request head finds its target: host, route, and what the route asks of the request.
//!
//! Everything that is decided from the head alone is decided here, while the head is still borrowed from the read buffer;
//! what comes out owns what it needs.

use std::rc::Rc;

use bytes::Bytes;

use super::Shard;
use super::access_log::Line;
use super::answer::Trouble;
use super::client::{Client, DOWNLOAD_CREDITS_TEXT};
use super::dir;
use super::local;
use super::message::{self, Context, Kind};
use super::message_socket::Message;
use super::origin::Origin;
use super::proxy;
use super::site::{Handler, Target};
use super::sticky;
use super::upgrade::{self, Upgrading};
use super::upload::{self, Plan, Way, file};
use crate::http1::{Asked, BodyFraming, Expect, Head, Version};
use crate::pool::Retry;
use crate::websocket::{self, Upgrade};
use crate::wire::request::Field;

/// What client headers may not be called: Mongrel2's uploads are announced to handlers under these names.
const RESERVED_PREFIX: &[u8] = b"x-mongrel2-";

/// Room behind the head of a message for the length of its body and the end.
const ROOM: usize = 16;

/// A request for a handler, whose body may still be on its way.
pub(super) struct Accepted {
    pub(super) handler: Rc<Handler>,
    /// `PATH SP HEADERS` so far.
    pub(super) message: Vec<u8>,
    pub(super) framing: BodyFraming,
    pub(super) retry: Retry,
    /// What it sticks by, where the head tells.
    pub(super) key: Option<u64>,
    /// What the response's end depends on.
    pub(super) asked: Asked,
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    pub(super) line: Option<Line>,
    /// It asks for WebSocket.
    pub(super) upgrade: Option<Box<Upgrading>>,
    /// The body is an upload: the message announces it.
    pub(super) upload: Option<Plan>,
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
    let limits = shard.limits();
    let origin = Origin::of(&limits, client, head.fields);
    let host = site.host(head.host);
    let mut line = shard.access_log.borrow().is_some().then(|| Line {
        host: host.map_or_else(|| Rc::from(""), |host| Rc::clone(&host.name)),
        remote: origin.remote,
        method: head.method.into(),
        path: head.target.path.into(),
        version: message::version(head.version),
    });
    let found = host
        .and_then(|host| host.routes.find(head.target.path))
        .map(|(pattern, route)| (pattern, route.taken()));
    let trouble = match found {
        None | Some((_, Target::Dead)) => Trouble::NoRoute,
        Some((_, Target::Proxy(backend))) => {
            match proxy::begin(shard, &origin, head, backend, &mut line) {
                Ok(request) => return Dispatched::Local(Box::new(request)),
                Err(trouble) => trouble,
            }
        }
        Some((route, Target::Dir(directory))) => {
            return dir::serve(shard, head, route, directory, line);
        }
        Some((pattern, Target::Handler(handler))) => match refuse(shard, head) {
            Some(trouble) => trouble,
            None => return accept(shard, client, origin, head, pattern, handler, line),
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
    let limits = shard.limits();
    match head.framing {
        BodyFraming::Length(length) if length > limits.content_length as u64 => {
            let allowed = limits.upload_bytes == 0 || length <= limits.upload_bytes;
            let taken = allowed && upload::way(&limits, head.framing).is_some();
            (!taken).then_some(Trouble::TooLarge)
        }
        _ => None,
    }
}

fn accept(
    shard: &Shard,
    client: &Client,
    origin: Origin<'_>,
    head: &Head<'_, '_, Field<'_>>,
    pattern: &str,
    handler: &Rc<Handler>,
    line: Option<Line>,
) -> Dispatched {
    let limits = shard.limits();
    let mut context = context(shard, client, origin, pattern, handler);
    let refused = |trouble, line| Dispatched::Refused {
        trouble,
        head_request: head.head_request,
        line,
    };
    let upgrade = match handshake(head, &mut context, limits.websocket.deflate) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return refused(Trouble::WebSocket(refusal), line),
    };
    let hides = |field: &Field<'_>| {
        is_reserved(field)
            || upgrade
                .as_ref()
                .is_some_and(|upgrade| upgrade.hides(field.name))
    };
    let way = match upgrade {
        Some(_) => None,
        None => upload::way(&limits, head.framing),
    };
    let name = match way {
        Some(Way::Store) => match file::name(limits.upload_store.as_deref().unwrap_or_default()) {
            Ok(name) => name,
            Err(error) => {
                tracing::error!("get a random number for the name of an upload: {error}");
                return refused(Trouble::NotStored, line);
            }
        },
        Some(Way::Stream) | None => String::new(),
    };
    let kept: Vec<Field<'_>>;
    let fields = if head.fields.iter().any(hides) {
        kept = head
            .fields
            .iter()
            .filter(|field| !hides(field))
            .copied()
            .collect();
        &kept[..]
    } else {
        head.fields
    };
    let (message, upload) = compose(head, fields, &context, way, name);
    let accepted = Accepted {
        handler: Rc::clone(handler),
        message,
        framing: head.framing,
        retry: handler.retry(head.method),
        key: sticky::of_head(handler, head),
        asked: if head.head_request {
            Asked::Head
        } else {
            Asked::Other
        },
        version: head.version,
        keep_alive: head.keep_alive,
        line,
        upgrade,
        upload,
    };
    let wants_continue = head.expect == Expect::Continue && head.version == Version::Http11;
    Dispatched::Accepted {
        accepted,
        wants_continue,
    }
}

/// What is kept of a head that asks for WebSocket; its message is then a handshake.
fn handshake(
    head: &Head<'_, '_, Field<'_>>,
    context: &mut Context<'_>,
    deflates: bool,
) -> Result<Option<Box<Upgrading>>, websocket::Refusal> {
    match upgrade::look(head) {
        Upgrade::No => Ok(None),
        Upgrade::Yes(handshake) => {
            context.kind = Kind::Handshake;
            let upgrading = Upgrading::new(head, handshake, context, deflates);
            Ok(Some(Box::new(upgrading)))
        }
        Upgrade::Refused(refusal) => Err(refusal),
    }
}

/// Writes the message for a request, its body still to follow, or the one that announces an upload, and what is to be done then.
fn compose(
    head: &Head<'_, '_, Field<'_>>,
    fields: &[Field<'_>],
    context: &Context<'_>,
    way: Option<Way>,
    name: String,
) -> (Vec<u8>, Option<Plan>) {
    let Some(way) = way else {
        let body = match head.framing {
            BodyFraming::Length(length) => usize::try_from(length).unwrap_or(0),
            BodyFraming::None | BodyFraming::Chunked => 0,
        };
        let message = message::encode(head, fields, context, body + ROOM);
        return (message, None);
    };
    let with = |extra: &[(&'static str, &[u8])]| {
        let context = Context { extra, ..*context };
        message::encode(head, fields, &context, ROOM)
    };
    if way == Way::Stream {
        let path = head.target.path.into();
        return (
            with(&[("UPLOAD_STREAM", b"0")]),
            Some(Plan::Stream { path }),
        );
    }
    let keys = [
        ("x-mongrel2-upload-start", name.as_bytes()),
        ("x-mongrel2-upload-done", name.as_bytes()),
    ];
    let (mut start, mut done) = (with(&keys[..1]), with(&keys));
    upload::stream::end_with_body(&mut start, b"");
    upload::stream::end_with_body(&mut done, b"");
    (start, Some(Plan::Store { name, done }))
}

fn context<'a>(
    shard: &Shard,
    client: &Client,
    origin: Origin<'a>,
    pattern: &'a str,
    handler: &Handler,
) -> Context<'a> {
    let limits = shard.limits();
    Context {
        protocol: handler.protocol,
        pattern,
        origin,
        keep_forwarded_for: limits.keep_forwarded_for,
        credits: (limits.flow_control && !client.has_handler()).then_some(DOWNLOAD_CREDITS_TEXT),
        kind: Kind::Request,
        extra: &[],
        names_max: limits.header_names_max,
        values_max: limits.header_values_max,
    }
}

/// Who a message of a message socket is for.
pub(super) enum Addressed {
    /// A handler, and what it gets.
    Handler(Rc<Handler>, Bytes),
    /// No route.
    Nobody,
    /// A route that leads to no handler.
    NoHandler,
}

/// Finds the route of a message, which has no host: on the default one.
pub(super) fn message(shard: &Shard, client: &Client, message: &Message<'_>) -> Addressed {
    let site = shard.site();
    let found = site
        .host(None)
        .and_then(|host| host.routes.find(message.path))
        .map(|(pattern, route)| (pattern, route.taken()));
    match found {
        None | Some((_, Target::Dead)) => Addressed::Nobody,
        Some((pattern, Target::Handler(handler))) => {
            let origin = Origin::of_connection(client);
            let context = context(shard, client, origin, pattern, handler);
            let (path, method) = (message.path, message.method());
            let bytes = message::encode_message(path, method, message.body, &context);
            Addressed::Handler(Rc::clone(handler), bytes.into())
        }
        Some((_, Target::Dir(_) | Target::Proxy(_))) => Addressed::NoHandler,
    }
}

pub(super) fn is_reserved(field: &Field<'_>) -> bool {
    field
        .name
        .get(..RESERVED_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_PREFIX))
}
