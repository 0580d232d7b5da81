//! The loop of [`serve`](super::serve): what comes from the servers is sorted to the tasks that answer.
//!
//! It never waits for a client or for the service. What it holds is bounded: when too much waits for the service, nothing more is received,
//! and so waits at the server. A service may be waiting for just what is not received then, the rest of an upload: when nothing
//! ends for a while, receiving goes on, and requests are turned away with 503.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http_body::Body as HttpBody;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;
use tower_service::Service;

use super::body::Body;
use super::message::{Asked, to_http};
use super::reply::{self, Failed};
use super::upgrade::{self, FrameSource, Frames};
use super::{BoxError, Settings};
use crate::handler::{
    Bodies, BodyReader, Client, Connection, Event, Frame, ReplyError, Request, Upload,
};

/// Requests that wait here for the service. The next ones wait at the server, who can give them to others.
const WAITING_MAX: usize = 1024;

/// Bytes of their messages.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Requests of one client that wait for the one before: what HTTP calls pipelining. A client with more is cut off.
const PIPELINED_MAX: usize = 64;

/// Nothing is received for so long when too much waits and nothing ends.
const STALL: Duration = Duration::from_secs(1);

/// Answers of our own that are on their way. With more nothing is received: a server does not take them.
const REFUSALS_MAX: usize = 1024;

/// Messages that are taken at once.
const BATCH: usize = 64;

/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A request, and where its body is.
struct Work {
    asked: Arc<Asked>,
    source: Source,
}

enum Source {
    Body(BodyReader),
    Streamed(BodyReader),
    Upload(Box<Upload>),
    Handshake,
    /// No work for the service.
    Refused(StatusCode),
}

impl Work {
    fn new(request: Request, source: Source) -> Self {
        Self {
            asked: Arc::new(Asked::new(request)),
            source,
        }
    }

    fn bytes(&self) -> usize {
        self.asked.request.body.len()
    }
}

/// A client that has a task.
struct Open {
    id: Id,
    task: AbortHandle,
    asked: Arc<Asked>,
    frames: Option<Frames>,
    /// It is answered in the service's name.
    is_refusal: bool,
    /// What it wants next.
    behind: VecDeque<Work>,
}

/// How a task has ended.
struct Ended {
    client: Client,
    /// The client gets nothing more.
    is_cut: bool,
}

pub(super) struct Run<S> {
    connection: Connection,
    service: S,
    settings: Settings,
    slots: Arc<Semaphore>,
    tasks: JoinSet<Ended>,
    clients: HashMap<Client, Open>,
    /// For a slot. Never of a client that has a task.
    waiting: VecDeque<Work>,
    /// How many requests are in `waiting` and behind others, and the bytes of their messages.
    held: (usize, usize),
    refusals: usize,
    bodies: Bodies,
    /// Nothing has ended for long: what is received is turned away.
    sheds: bool,
    /// The end was asked for; open requests have until then.
    ends_by: Option<Instant>,
    /// The servers have pushed their last requests.
    is_drained: bool,
}

impl<S, B> Run<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: HttpBody + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(connection: Connection, service: S, settings: Settings) -> Self {
        Self {
            connection,
            service,
            slots: Arc::new(Semaphore::new(settings.concurrency)),
            settings,
            tasks: JoinSet::new(),
            clients: HashMap::new(),
            waiting: VecDeque::new(),
            held: (0, 0),
            refusals: 0,
            bodies: Bodies::new(),
            sheds: false,
            ends_by: None,
            is_drained: false,
        }
    }

    pub(super) async fn run(
        mut self,
        mut signal: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    ) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut receives = true;
        while receives || !self.waiting.is_empty() || !self.tasks.is_empty() {
            if self.is_drained && self.waiting.is_empty() && self.tasks.is_empty() {
                // Until now there might have been more to say of what was open.
                self.connection.shutdown();
            }
            let is_full = self.is_full();
            self.sheds &= is_full;
            let receives_now = receives && self.refusals < REFUSALS_MAX && (!is_full || self.sheds);
            let ends_by = self.ends_by;
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                    self.ended(ended);
                    while let Some(ended) = self.tasks.try_join_next_with_id() {
                        self.ended(ended);
                    }
                }
                permit = Arc::clone(&self.slots).acquire_owned(), if !self.waiting.is_empty() => {
                    if let (Ok(permit), Some(work)) = (permit, self.waiting.pop_front()) {
                        self.let_go(&work);
                        self.start(work, Some(permit));
                    }
                }
                count = self.connection.recv_many(&mut batch, BATCH), if receives_now => {
                    if count == 0 {
                        receives = false;
                        self.end();
                    }
                    for request in batch.drain(..) {
                        self.event(request.into_event());
                    }
                }
                () = async {
                    match &mut signal {
                        Some(signal) => signal.await,
                        None => std::future::pending().await,
                    }
                } => {
                    signal = None;
                    self.connection.drain();
                    self.end();
                }
                () = tokio::time::sleep(STALL), if is_full && !self.sheds => self.sheds = true,
                () = tokio::time::sleep_until(ends_by.unwrap_or_else(Instant::now)), if ends_by.is_some() => break,
            }
        }
        self.finish().await;
    }

    /// The end has begun, by whomever.
    fn end(&mut self) {
        if self.ends_by.is_some() {
            return;
        }
        let timeout = self.settings.graceful_timeout;
        // Far enough where there is no such moment.
        let never = Duration::from_hours(24 * 365);
        self.ends_by = Some(Instant::now() + timeout.min(never));
        for open in self.clients.values_mut() {
            // Which tells a WebSocket to go away.
            open.frames = None;
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Request(request) => {
                let body = request.body.clone().into();
                self.take(Work::new(request, Source::Body(body)));
            }
            Event::WebSocketHandshake(request) => self.take(Work::new(request, Source::Handshake)),
            Event::WebSocketFrame(frame) => self.frame(frame),
            Event::UploadPart(part) => {
                if let Some(body) = self.bodies.part(&part) {
                    let request = part.request().clone();
                    self.take(Work::new(request, Source::Streamed(body)));
                }
            }
            Event::UploadStarted(upload) if self.is_too_large(upload.declared_length()) => {
                self.refuse(upload.request().clone(), StatusCode::PAYLOAD_TOO_LARGE);
            }
            Event::UploadDone(upload) => {
                let request = upload.request().clone();
                self.take(Work::new(request, Source::Upload(Box::new(upload))));
            }
            Event::UploadRefused(request, fault) => {
                tracing::debug!(client = ?request.client(), %fault, "refused an upload");
                self.refuse(request, StatusCode::BAD_REQUEST);
            }
            Event::Disconnect(client) => {
                self.bodies.gone(&client);
                self.gone(&client);
            }
            Event::Drained => {
                self.is_drained = true;
                self.end();
            }
            // Credits are the connection's business; the others are no requests.
            _ => {}
        }
    }

    fn is_full(&self) -> bool {
        self.held.0 >= WAITING_MAX || self.held.1 >= WAITING_BYTES_MAX
    }

    fn is_too_large(&self, length: Option<u64>) -> bool {
        match (length, self.settings.body_max) {
            (Some(length), Some(max)) => length > max,
            _ => false,
        }
    }

    fn refuse(&mut self, request: Request, status: StatusCode) {
        self.take(Work::new(request, Source::Refused(status)));
    }

    fn take(&mut self, mut work: Work) {
        let length = match &work.source {
            Source::Body(body) | Source::Streamed(body) => body.remaining(),
            _ => None,
        };
        if self.is_too_large(length) {
            work.source = Source::Refused(StatusCode::PAYLOAD_TOO_LARGE);
        }
        let client = work.asked.request.client();
        if self.clients.contains_key(&client) {
            self.queue_behind(&client, work);
        } else if matches!(work.source, Source::Refused(_)) {
            self.start(work, None);
        } else if self.waiting.is_empty()
            && let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned()
        {
            self.start(work, Some(permit));
        } else if self.sheds && self.is_full() {
            work.source = Source::Refused(StatusCode::SERVICE_UNAVAILABLE);
            self.start(work, None);
        } else {
            self.hold(&work);
            self.waiting.push_back(work);
        }
    }

    fn queue_behind(&mut self, client: &Client, work: Work) {
        let Some(open) = self.clients.get_mut(client) else {
            return;
        };
        if open.behind.len() < PIPELINED_MAX {
            self.held.0 += 1;
            self.held.1 += work.bytes();
            open.behind.push_back(work);
        } else {
            tracing::debug!(
                ?client,
                "cut off a client that asks faster than it is answered"
            );
            self.cut(client);
        }
    }

    fn hold(&mut self, work: &Work) {
        self.held.0 += 1;
        self.held.1 += work.bytes();
    }

    fn let_go(&mut self, work: &Work) {
        self.held.0 -= 1;
        self.held.1 -= work.bytes();
    }

    fn start(&mut self, work: Work, permit: Option<OwnedSemaphorePermit>) {
        let client = work.asked.request.client();
        if self.clients.contains_key(&client) {
            // Two of its requests were waiting.
            self.queue_behind(&client, work);
            return;
        }
        self.start_with(client, work, permit, VecDeque::new());
    }

    fn start_with(
        &mut self,
        client: Client,
        work: Work,
        permit: Option<OwnedSemaphorePermit>,
        behind: VecDeque<Work>,
    ) {
        let asked = Arc::clone(&work.asked);
        let is_refusal = matches!(work.source, Source::Refused(_));
        self.refusals += usize::from(is_refusal);
        let (mut frames, mut source) = (None, None);
        if matches!(work.source, Source::Handshake) {
            let (sender, receiver) = upgrade::frames();
            source = Some(receiver);
            // At the end nothing is begun that has none of its own.
            frames = Some(sender).filter(|_| self.ends_by.is_none());
        }
        let service = self.service.clone();
        let body_max = self.settings.body_max;
        let ended = client.clone();
        let task = self.tasks.spawn(async move {
            let asked = Arc::clone(&work.asked);
            let is_cut = match answer(service, work, source, permit, body_max).await {
                Ok(()) => false,
                Err(failed) => sorry(&asked, failed).await,
            };
            Ended {
                client: ended,
                is_cut,
            }
        });
        let open = Open {
            id: task.id(),
            task,
            asked,
            frames,
            is_refusal,
            behind,
        };
        self.clients.insert(client, open);
    }

    fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, client, is_cut) = match ended {
            Ok((id, ended)) => (id, Some(ended.client), ended.is_cut),
            // It was aborted, and forgotten before.
            Err(error) if error.is_cancelled() => return,
            Err(error) => {
                let id = error.id();
                let client = self.clients.iter().find(|(_, open)| open.id == id);
                let client = client.map(|(client, _)| client.clone());
                tracing::error!(?client, "the service panicked");
                (id, client, true)
            }
        };
        let Some(client) = client else { return };
        if self.clients.get(&client).is_none_or(|open| open.id != id) {
            return;
        }
        let Some(mut open) = self.clients.remove(&client) else {
            return;
        };
        self.refusals -= usize::from(open.is_refusal);
        if is_cut && !open.asked.has_begun() {
            // A panic: nothing was said yet, and the client waits.
            let work = Work {
                asked: open.asked,
                source: Source::Refused(StatusCode::INTERNAL_SERVER_ERROR),
            };
            self.drop_all(open.behind);
            self.start(work, None);
        } else if is_cut {
            self.drop_all(open.behind);
        } else if let Some(next) = open.behind.pop_front() {
            self.let_go(&next);
            let permit = Arc::clone(&self.slots).try_acquire_owned().ok();
            if permit.is_some() || matches!(next.source, Source::Refused(_)) {
                self.start_with(client, next, permit, open.behind);
            } else {
                // In its turn: it has waited for long enough.
                for work in open.behind.drain(..).rev() {
                    self.waiting.push_front(work);
                }
                self.hold(&next);
                self.waiting.push_front(next);
            }
        }
    }

    /// Of a client that is gone or cut off.
    fn drop_all(&mut self, works: VecDeque<Work>) {
        for work in works {
            work.asked.give_up();
            self.let_go(&work);
        }
    }

    /// A client is gone, and what it has asked for with it.
    fn gone(&mut self, client: &Client) {
        if let Some(open) = self.clients.remove(client) {
            open.asked.give_up();
            open.task.abort();
            self.refusals -= usize::from(open.is_refusal);
            self.drop_all(open.behind);
        }
        if self.waiting.is_empty() {
            return;
        }
        let held = &mut self.held;
        self.waiting.retain(|work| {
            let stays = work.asked.request.client() != *client;
            if !stays {
                work.asked.give_up();
                held.0 -= 1;
                held.1 -= work.bytes();
            }
            stays
        });
    }

    fn cut(&mut self, client: &Client) {
        self.gone(client);
        client.cancel_when_possible();
    }

    fn frame(&mut self, frame: Frame) {
        let client = frame.client();
        match self.clients.get(&client) {
            Some(Open {
                frames: Some(frames),
                ..
            }) => {
                if !frames.push(frame) {
                    tracing::warn!(?client, "cut off a WebSocket whose messages nobody reads");
                    self.cut(&client);
                }
            }
            // It is being told to go.
            Some(_) => {}
            // Nobody here knows it, or any more: there is no use in its going on.
            None => client.cancel_when_possible(),
        }
    }

    /// Says the last words, and waits until they are written.
    async fn finish(mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let mut unanswered: Vec<Arc<Asked>> = Vec::new();
        for open in self.clients.into_values() {
            if !open.asked.has_begun() {
                unanswered.push(open.asked);
            }
            // Those behind wait for one that is cut, or closed behind its 503.
        }
        unanswered.extend(self.waiting.into_iter().map(|work| work.asked));
        if !unanswered.is_empty() {
            let count = unanswered.len();
            tracing::warn!(
                count,
                "time is up: answering the requests that are left with 503"
            );
        }
        let last_words = async {
            for asked in unanswered {
                if let Err(error) = reply::refuse(&asked, StatusCode::SERVICE_UNAVAILABLE).await {
                    tracing::debug!(%error, "saying that the time is up");
                }
            }
        };
        if tokio::time::timeout(LAST_WORDS, last_words).await.is_err() {
            tracing::warn!("a server does not take the last answers");
        }
        self.connection.finish().await;
    }
}

async fn answer<S, B>(
    service: S,
    work: Work,
    frames: Option<FrameSource>,
    permit: Option<OwnedSemaphorePermit>,
    body_max: Option<u64>,
) -> Result<(), Failed>
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Send,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: HttpBody + Send,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let Work { asked, source } = work;
    let body = match source {
        Source::Refused(status) => return reply::refuse(&asked, status).await,
        Source::Handshake => {
            return match (frames, permit) {
                (Some(frames), Some(permit)) => {
                    upgrade::serve(service, &asked, frames, permit).await
                }
                _ => reply::refuse(&asked, StatusCode::SERVICE_UNAVAILABLE).await,
            };
        }
        Source::Body(reader) => Body::new(reader, body_max),
        Source::Streamed(reader) => Body::streamed(reader, body_max, Arc::clone(&asked)),
        Source::Upload(upload) => match upload.into_body().await {
            Ok(reader) if body_max.is_some_and(|max| reader.remaining() > Some(max)) => {
                return reply::refuse(&asked, StatusCode::PAYLOAD_TOO_LARGE).await;
            }
            Ok(reader) => Body::new(reader, body_max),
            Err(error) => return Err(Failed::Upload(error)),
        },
    };
    let request = match to_http(&asked, body) {
        Ok(request) => request,
        Err(why) => {
            tracing::debug!(client = ?asked.request.client(), %why, "refused a request");
            return reply::refuse(&asked, StatusCode::BAD_REQUEST).await;
        }
    };
    let response = call(service, request).await.map_err(Failed::Service)?;
    reply::send(&asked, response, false, permit).await
}

/// Calls the service when it is ready.
pub(super) async fn call<S, R>(mut service: S, request: http::Request<Body>) -> Result<R, BoxError>
where
    S: Service<http::Request<Body>, Response = R>,
    S::Error: Into<BoxError>,
{
    poll_fn(|cx| service.poll_ready(cx))
        .await
        .map_err(Into::into)?;
    service.call(request).await.map_err(Into::into)
}

/// Says 500 where nothing was said yet; whether the client has been cut off.
async fn sorry(asked: &Asked, failed: Failed) -> bool {
    let client = asked.request.client();
    if let Failed::Reply(ReplyError::Io(_) | ReplyError::ClientGone) = failed {
        // Not the service's fault, and nobody would hear more.
        tracing::debug!(?client, error = %failed, "could not answer");
        asked.give_up();
        return true;
    }
    tracing::error!(?client, error = %failed, "answering a request");
    if asked.has_begun() {
        return true;
    }
    if let Err(error) = reply::refuse(asked, StatusCode::INTERNAL_SERVER_ERROR).await {
        tracing::debug!(?client, %error, "could not answer");
        asked.give_up();
        return true;
    }
    false
}
