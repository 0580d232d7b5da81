//! A task for each request, for handlers whose answers take their time: bounded, in order for each client, and ended when the client
//! leaves. It knows nothing of what is answered.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lurcher::drain::{self, Outcome, Watch};
use lurcher::handler::{
    Bodies, BodyReader, Client, Connection, Event, ReplyError, Request, UploadError,
};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, LocalSet};

use crate::handlers::departed::Departed;

/// Requests that wait for their turn, all together, before more are refused with 503. They cannot be left in the server: what
/// belongs to open ones (disconnects, credits, parts of bodies) comes behind them.
const WAITING_MAX: usize = 4_096;

/// Requests of one connection that wait for the one before. A Mongrel2 hands over all that a client pipelines; one that has sent more
/// is cut off.
const PIPELINED_MAX: usize = 64;

/// How long open exchanges may take at the end. The launcher has its own limit, which is the one that counts.
const END_MAX: Duration = Duration::from_hours(24);

/// The body of a request.
pub(crate) enum Body {
    /// It came with the request.
    Whole(Bytes),
    /// It comes in pieces.
    Pieces(BodyReader),
}

/// Answers every request with `answer`, at most `open_max` at a time, until the connection is stopped.
pub(crate) async fn each<F, R>(
    mut connection: Connection,
    open_max: usize,
    answer: F,
) -> Result<(), ReplyError>
where
    F: Fn(Request, Body) -> R + 'static,
    R: Future<Output = Result<(), ReplyError>> + 'static,
{
    connection.default_slots(open_max);
    let (signal, watch) = drain::channel();
    let exchanges = Exchanges {
        answer: Rc::new(answer),
        lines: Rc::default(),
        waiting: Rc::default(),
        departed: Rc::default(),
        slots: Arc::new(Semaphore::new(open_max)),
        watch,
    };
    // Answers need not be Send: everything here is one thread's.
    LocalSet::new()
        .run_until(run(connection, exchanges, signal))
        .await
}

async fn run<F, R>(
    mut connection: Connection,
    exchanges: Exchanges<F>,
    signal: drain::Signal,
) -> Result<(), ReplyError>
where
    F: Fn(Request, Body) -> R + 'static,
    R: Future<Output = Result<(), ReplyError>> + 'static,
{
    let mut bodies = Bodies::new();
    let mut signal = Some(signal);
    let mut ending: Option<Pin<Box<dyn Future<Output = Outcome>>>> = None;
    loop {
        let ended = async {
            match &mut ending {
                Some(ending) => drop(ending.await),
                None => pending().await,
            }
        };
        let request = tokio::select! {
            request = connection.recv() => request,
            () = ended => break,
        };
        let Some(request) = request else {
            break;
        };
        match request.into_event() {
            Event::Request(request) => {
                let body = Body::Whole(request.body.clone());
                exchanges.begin(request, body).await?;
            }
            Event::UploadDone(upload) => {
                let request = upload.request().clone();
                match upload.into_body().await {
                    Ok(body) => exchanges.begin(request, Body::Pieces(body)).await?,
                    Err(error) => lost(&request, &error).await?,
                }
            }
            Event::UploadPart(part) => {
                if let Some(body) = bodies.part(&part) {
                    let request = part.request().clone();
                    exchanges.begin(request, Body::Pieces(body)).await?;
                }
            }
            Event::UploadRefused(request, fault) => {
                let text = format!("Bad Request: {fault}\n");
                request.respond(400).close().send(text).await?;
            }
            Event::Disconnect(client) => {
                bodies.gone(&client);
                exchanges.gone(&client);
                exchanges.departed.borrow_mut().forget(&client);
            }
            Event::WebSocketHandshake(request) => {
                let text = "Bad Request: no WebSocket here\n";
                request.respond(400).close().send(text).await?;
            }
            // Nobody has accepted any, and a client that waits for an answer should not wait for ever.
            Event::Message(message) => connection.close(&message).await?,
            // No more requests; what is open still gets its parts and credits while it is waited for.
            Event::Drained => {
                ending = signal
                    .take()
                    .map(|signal| Box::pin(signal.finish(END_MAX)) as _);
            }
            _ => {}
        }
    }
    if let Some(signal) = signal {
        signal.finish(END_MAX).await;
    }
    connection.finish().await;
    Ok(())
}

/// The server has stored a body, and it cannot be read here.
async fn lost(request: &Request, error: &UploadError) -> Result<(), ReplyError> {
    tracing::error!(%error, "an upload cannot be read");
    let text = "Internal Server Error: the upload cannot be read\n";
    request.respond(500).send(text).await
}

/// Those that are open.
struct Exchanges<F> {
    answer: Rc<F>,
    lines: Rc<RefCell<HashMap<Client, Line>>>,
    /// Requests in lines or waiting for a slot.
    waiting: Rc<Cell<usize>>,
    departed: Rc<RefCell<Departed>>,
    slots: Arc<Semaphore>,
    watch: Watch,
}

/// The requests of one connection.
struct Line {
    waiting: VecDeque<(Request, Body)>,
    task: JoinHandle<Option<()>>,
}

impl<F, R> Exchanges<F>
where
    F: Fn(Request, Body) -> R + 'static,
    R: Future<Output = Result<(), ReplyError>> + 'static,
{
    async fn begin(&self, request: Request, body: Body) -> Result<(), ReplyError> {
        let client = request.client();
        if self.departed.borrow_mut().has(&client) {
            return client.cancel().await;
        }
        let is_dead = |line: &Line| line.task.is_finished();
        if self.lines.borrow().get(&client).is_some_and(is_dead) {
            // It panicked: nothing would come of waiting behind it.
            self.gone(&client);
        }
        let in_line = self
            .lines
            .borrow()
            .get(&client)
            .map(|line| line.waiting.len());
        let full = self.waiting.get() >= WAITING_MAX;
        match in_line {
            None if full => {
                let text = "Service Unavailable: too many requests wait for this handler\n";
                let respond = request.respond(503).header("Retry-After", "1").close();
                return respond.send(text).await;
            }
            // An answer now would be taken for that of the request before.
            Some(ahead) if full || ahead >= PIPELINED_MAX => {
                self.gone(&client);
                self.departed.borrow_mut().add(&client);
                return client.cancel().await;
            }
            Some(_) => {
                self.waiting.update(|waiting| waiting + 1);
                if let Some(line) = self.lines.borrow_mut().get_mut(&client) {
                    line.waiting.push_back((request, body));
                }
            }
            None => {
                self.waiting.update(|waiting| waiting + 1);
                let task = self
                    .watch
                    .spawn_local(self.work(client.clone(), request, body));
                let waiting = VecDeque::new();
                self.lines
                    .borrow_mut()
                    .insert(client, Line { waiting, task });
            }
        }
        Ok(())
    }

    /// Answers one request, and those of the same connection that have come meanwhile.
    fn work(
        &self,
        client: Client,
        request: Request,
        body: Body,
    ) -> impl Future<Output = ()> + 'static {
        let (answer, lines) = (Rc::clone(&self.answer), Rc::clone(&self.lines));
        let slots = Arc::clone(&self.slots);
        let mut turn = Some(Waits::new(&self.waiting));
        let waiting = Rc::clone(&self.waiting);
        let mut next = Some((request, body));
        async move {
            while let Some((request, body)) = next.take() {
                // It is never closed.
                let slot = slots.acquire().await;
                drop(turn.take());
                match answer(request, body).await {
                    Ok(()) => {}
                    Err(ReplyError::ClientGone) => tracing::debug!(?client, "left"),
                    Err(error) => {
                        tracing::warn!(?client, "answering: {error}");
                        // It would wait for an answer that does not come.
                        drop(client.cancel().await);
                    }
                }
                drop(slot);
                let mut lines = lines.borrow_mut();
                let line = lines.get_mut(&client);
                next = line.and_then(|line| line.waiting.pop_front());
                match next {
                    Some(_) => turn = Some(Waits(Rc::clone(&waiting))),
                    None => drop(lines.remove(&client)),
                }
            }
        }
    }

    /// Ends what is done for a client.
    fn gone(&self, client: &Client) {
        if let Some(line) = self.lines.borrow_mut().remove(client) {
            line.task.abort();
            let fewer = line.waiting.len();
            self.waiting.update(|waiting| waiting.saturating_sub(fewer));
        }
    }
}

/// A request that waits for a slot, as far as the count goes.
struct Waits(Rc<Cell<usize>>);

impl Waits {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        Self(Rc::clone(count))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.update(|waiting| waiting.saturating_sub(1));
    }
}
