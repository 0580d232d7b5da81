//! Directories behind routes: a request's head becomes a question to `files`, and what comes of it a response made in this
//! process. What is in memory is answered at once, without a task; the rest by a task that ends with the exchange.
//!
//! What a directory serves, and what the conditions of a request mean, is not decided here.

use std::rc::Rc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::Shard;
use super::access_log::Line;
use super::answer::Trouble;
use super::dispatch::Dispatched;
use super::local::{Part, Request, ResponseHead, Sink, Source};
use crate::config::{self, Mimetypes};
use crate::drain::Watch;
use crate::files::{Body, Directory, Files, Outcome, Place, Quest, Reply, Types, Wish};
use crate::http1::{Expect, Head, Version};
use crate::routing;
use crate::wire::request::Field;

/// Blocks of a file that wait for the connection, or are being read for it: one, beside the one that is written.
const BLOCKS_AHEAD: usize = 1;

/// The types of a configuration.
struct ConfiguredTypes(Mimetypes);

impl Types for ConfiguredTypes {
    fn of_path(&self, path: &str) -> Option<&str> {
        self.0.of_path(path)
    }
}

/// The types of a configuration, for all its directories.
pub(super) fn types(mimetypes: &Mimetypes) -> Rc<dyn Types> {
    Rc::new(ConfiguredTypes(mimetypes.clone()))
}

/// A directory as configured, below the chroot of its server.
pub(super) fn directory(
    files: &Files,
    chroot: &str,
    dir: &config::Dir,
    types: &Rc<dyn Types>,
) -> Rc<Directory> {
    files.directory(
        super::inside_chroot(chroot, &dir.base),
        &dir.index_file,
        &dir.default_ctype,
        Rc::clone(types),
        Duration::from_secs(u64::from(dir.cache_ttl)),
    )
}

/// Answers a request for a directory, found by the route of this text.
pub(super) fn serve(
    shard: &Shard,
    head: &Head<'_, '_, Field<'_>>,
    route: &str,
    directory: &Rc<Directory>,
    line: Option<Line>,
) -> Dispatched {
    if !matches!(head.method, b"GET" | b"HEAD") {
        return Dispatched::Refused {
            trouble: Trouble::MethodNotAllowed,
            head_request: false,
            line,
        };
    }
    let mut wish = Wish::new(head.head_request);
    for field in head.fields {
        wish.note(field.name, field.value);
    }
    let place = Place {
        path: head.target.path,
        query: head.target.query,
        prefix: routing::split(route).0.as_bytes(),
    };
    let source = match shard.files.ask(directory, place, wish) {
        Outcome::Ready(Reply {
            status,
            lines,
            length,
            body: Body::Whole(body),
        }) => Source::Ready(Some((response_head(status, lines, length), body))),
        Outcome::Ready(reply) => task(&shard.watch, |parts| send(reply, parts)),
        Outcome::Seek(quest) => {
            let files = Rc::clone(&shard.files);
            task(&shard.watch, |parts| seek(files, *quest, parts))
        }
    };
    Dispatched::Local(Box::new(Request {
        source,
        sink: Sink::Drop,
        framing: head.framing,
        // As in Mongrel2, other expectations are passed over.
        wants_continue: head.expect == Expect::Continue && head.version == Version::Http11,
        is_head: head.head_request,
        version: head.version,
        keep_alive: head.keep_alive,
        line,
    }))
}

fn response_head(status: u16, lines: Vec<u8>, length: Option<u64>) -> ResponseHead {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    ResponseHead {
        lines,
        ..ResponseHead::new(status, length)
    }
}

fn task<F>(watch: &Watch, make: impl FnOnce(mpsc::Sender<Part>) -> F) -> Source
where
    F: Future<Output = ()> + 'static,
{
    let (sender, parts) = mpsc::channel(BLOCKS_AHEAD);
    Source::Task {
        parts,
        _task: AbortOnDropHandle::new(watch.spawn_local(make(sender))),
    }
}

async fn seek(files: Rc<Files>, quest: Quest, parts: mpsc::Sender<Part>) {
    send(files.seek(quest).await, parts).await;
}

/// Gives a reply to the connection. When that is gone, so is the reason to go on; a file that cannot be read to its promised
/// end leaves the response without one, which the client sees.
async fn send(reply: Reply, parts: mpsc::Sender<Part>) {
    let head = response_head(reply.status, reply.lines, reply.length);
    if parts.send(Part::Head(head)).await.is_err() {
        return;
    }
    match reply.body {
        Body::Whole(body) => drop(parts.send(Part::Data(body)).await),
        // A block is read when there is room for it: a slow client has few.
        Body::Stream(mut reader) => loop {
            let Ok(room) = parts.reserve().await else {
                return;
            };
            match reader.next().await {
                Ok(Some(block)) => room.send(Part::Data(block)),
                Ok(None) => break,
                Err(error) => {
                    debug!("file cut short: {error}");
                    return;
                }
            }
        },
    }
    // The connection may have what it wants already.
    drop(parts.send(Part::End).await);
}
