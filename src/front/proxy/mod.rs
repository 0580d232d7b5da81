//! Requests that are passed on to another HTTP server, and its responses that are passed back.
//!
//! * [`forward`]: which fields of a request and of a response go on, and which are made here;
//! * [`backend`](Backend): the connections to one server: those that are kept for the next request, and how many there may be;
//! * [`connect`]: a name becomes a connection;
//! * [`socket`]: what lies under the HTTP library;
//! * [`body`]: the request's body on its way, and when a backend counts as silent;
//! * [`exchange`]: one request and its response: sent, tried again where that is safe, relayed part by part;
//! * [`tunnel`]: bytes both ways after a backend has switched the protocol.
//!
//! The framing on each side is made anew from what was understood of the other one, so that no request or response can hide
//! in another. Paths are not rewritten, nothing is stored, and no backend is chosen among several: a route names one, and its
//! name may have several addresses.

mod backend;
mod body;
mod connect;
mod exchange;
mod forward;
mod socket;
mod tunnel;

use std::rc::Rc;

use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tokio_util::task::AbortOnDropHandle;

use super::Shard;
use super::access_log::Line;
use super::answer::Trouble;
use super::local::{PARTS_MAX, Request, Sink, Source};
use super::origin::Origin;
use crate::http1::{Expect, Head, Version};
use crate::wire::request::Field;

pub(super) use backend::{Backend, Backends};
use exchange::Exchange;
use forward::{Context, Outbound};

/// Largest head of a backend's response, in bytes, and trailers behind its body: as large as what clients may send.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Most field lines of a backend's response.
const FIELDS_MAX: usize = 512;

/// Begins to pass a request on; the response comes in the parts of what is returned.
///
/// # Errors
///
/// When no backend could be sent this request.
pub(super) fn begin(
    shard: &Shard,
    origin: &Origin<'_>,
    head: &Head<'_, '_, Field<'_>>,
    backend: &Rc<Backend>,
    line: &mut Option<Line>,
) -> Result<Request, Trouble> {
    let limits = shard.limits();
    let Outbound {
        head: outbound,
        framing,
        upgrade,
    } = forward::request(
        head,
        &Context {
            client: origin.remote.ip(),
            keep_forwarded: limits.keep_forwarded_for,
            scheme: origin.scheme(),
            authority: backend.authority(),
        },
    )?;
    let (to_client, parts) = mpsc::channel(PARTS_MAX);
    let (to_backend, body) = mpsc::channel(PARTS_MAX);
    let expects = head.expect == Expect::Continue && head.version == Version::Http11;
    let exchange = Exchange {
        backend: Rc::clone(backend),
        watch: shard.watch.clone(),
        limits: limits.proxy,
        parts: to_client,
        framing,
        upgrade,
        expects,
        // A client takes trailer fields when it says so (RFC 9110 6.5.1).
        trailers: head.version == Version::Http11
            && outbound.headers.contains_key(http::header::TE),
    };
    let task = shard.watch.spawn_local(exchange.run(outbound, body));
    Ok(Request {
        source: Source::Task {
            parts,
            _task: AbortOnDropHandle::new(task),
        },
        sink: Sink::Maker {
            sender: PollSender::new(to_backend),
            passes_continue: true,
            may_switch: upgrade,
        },
        framing,
        wants_continue: expects,
        is_head: head.head_request,
        version: head.version,
        keep_alive: head.keep_alive,
        line: line.take(),
    })
}
