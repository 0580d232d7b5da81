//! What receives: gives each request to the queue of its application. It never takes the interpreter's lock.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use lurcher::handler::{
    Bodies, Client, Connection, Event, Replies, ReplyError, Request, UploadFault,
};
use lurcher::launcher::{BuiltIn, Handler, Target, Values};
use tokio::runtime::Handle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::asgi::{Desk, Farewell, Incoming, Source};
use crate::engine::Engine;
use crate::queue::{Body, Full, Job, Queue};
use crate::site::{Interface, Site};
use crate::turns::{self, Parcel, Turns, What};
use crate::{options, wait, wsgi};

/// How long a worker has to stop where nobody says it.
const PATIENCE: Duration = Duration::from_secs(30);

/// So long before that time is up, streams hear that their clients are gone, tasks are cancelled, and what is left then is given up:
/// the rest is for lifespans. Of a short time it is a part.
const LAST_CALL: Duration = Duration::from_millis(1500);
const LAST_CANCEL: Duration = Duration::from_millis(1000);
const LAST_WAIT: Duration = Duration::from_millis(700);

/// How often it is looked which responses have become streams, while others wait for their places.
const LOOK: Duration = Duration::from_millis(100);

/// Requests that are received before it is looked again whether there is room for more.
const TURN: usize = 64;

/// Nothing is received for so long when too much waits and nothing ends.
const STALL: Duration = Duration::from_secs(1);

/// The answer to a request whose application has not answered when its worker ends. Without a body, so that it is one to HEAD too.
const TIME_IS_UP: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n";

/// What the receiving thread knows of the rest.
pub(crate) struct Inlet {
    pub(crate) site: Site,
    pub(crate) wsgi: Arc<Queue>,
    /// None: there are no ASGI applications.
    pub(crate) asgi: Option<Arc<Desk>>,
    /// Whether there are both, so that a client may have something open at each.
    pub(crate) is_mixed: bool,
    /// How many requests ASGI applications have at a time.
    pub(crate) concurrency: usize,
    /// How many requests are answered at a time.
    pub(crate) slots: usize,
    /// None: the thread drives the runtime alone.
    pub(crate) engine: Option<Arc<Engine>>,
}

/// Set once the applications are loaded, before the thread is started.
static INLET: OnceLock<Inlet> = OnceLock::new();

/// Stored uploads are given to applications when they begin.
static EARLY: AtomicBool = AtomicBool::new(false);

/// It was said that they cannot be.
static UNSURE: Once = Once::new();

const BUILT_IN: &[BuiltIn] = &[BuiltIn {
    name: options::NAME,
    about: "",
    targets: &[Target {
        scheme: "",
        form: "MODULE:NAME",
    }],
    options: options::OPTIONS,
    run,
}];

#[expect(clippy::unnecessary_wraps, reason = "the table wants it")]
fn run(values: &Values) -> Result<Handler, String> {
    if let Some(base) = values.get("sendfile-base") {
        wsgi::sendfile_below(base);
    }
    EARLY.store(values.is_said("early-uploads"), Ordering::Relaxed);
    let patience = values.graceful_timeout().unwrap_or(PATIENCE);
    Ok(Handler::draining(async move |connection| {
        #[expect(
            clippy::disallowed_methods,
            reason = "it is waited for here, and polled by whoever drives the runtime"
        )]
        let serving = tokio::spawn(serve(connection, patience)).await;
        serving.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Ok(()),
        })
    }))
}

/// Serves as the supervisor has ordered until it is told to stop and all is answered.
pub(crate) fn run_worker(inlet: Inlet) -> ExitCode {
    let engine = inlet.engine.clone();
    drop(INLET.set(inlet));
    let code = match &engine {
        Some(engine) => {
            let code = lurcher::launcher::worker_driven(BUILT_IN, |runtime, served| {
                engine.attend(runtime, served);
            });
            engine.give_up();
            code
        }
        None => lurcher::launcher::worker(BUILT_IN),
    };
    if let Some(inlet) = INLET.get() {
        inlet.wsgi.close();
        if let Some(asgi) = &inlet.asgi {
            asgi.inbox.push(Incoming::End);
        }
    }
    code
}

async fn serve(mut connection: Connection, patience: Duration) -> Result<(), ReplyError> {
    let Some(inlet) = INLET.get() else {
        return Ok(());
    };
    wait::on_this_runtime();
    connection.default_slots(inlet.slots);
    if let Some(asgi) = &inlet.asgi {
        asgi.begin(Handle::current(), connection.replies(), inlet.concurrency);
    }
    let mut serving = Serving {
        inlet,
        replies: connection.replies(),
        patience,
        bodies: Bodies::new(),
        turns: Turns::default(),
        sheds: false,
        drained: false,
        last_words: VecDeque::new(),
    };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut requests = Vec::with_capacity(TURN);
    loop {
        let is_full = inlet.asgi.as_ref().is_some_and(|asgi| asgi.is_full());
        serving.sheds &= is_full;
        let has_waiting = inlet.asgi.as_ref().is_some_and(|asgi| asgi.has_waiting());
        let Serving {
            sheds,
            drained,
            turns,
            ..
        } = &serving;
        let (sheds, is_over) = (*sheds, *drained && turns.is_empty());
        let next = serving.last_words.front().map(|(at, _)| *at);
        let count = tokio::select! {
            // What is open gets its credits and the parts of its bodies until then.
            () = inlet.idle(), if is_over => break,
            () = turns::changed(), if !turns.is_empty() => {
                serving.go_on().await?;
                continue;
            }
            () = until(next), if next.is_some() => {
                if serving.say_last().await? {
                    continue;
                }
                connection.finish().await;
                return Ok(());
            }
            _ = look.tick(), if has_waiting => {
                if let Some(asgi) = &inlet.asgi {
                    asgi.look();
                }
                continue;
            }
            count = connection.recv_many(&mut requests, TURN), if !is_full || sheds => count,
            () = tokio::time::sleep(STALL), if is_full && !sheds => {
                serving.sheds = true;
                continue;
            }
        };
        if count == 0 {
            break;
        }
        for request in requests.drain(..) {
            serving.receive(request.into_event()).await?;
        }
    }
    // Whose parts can no longer come must not wait for them.
    drop(serving);
    inlet.wsgi.close();
    inlet.wsgi.idle().await;
    connection.finish().await;
    Ok(())
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// What the receiving thread knows while it serves.
struct Serving {
    inlet: &'static Inlet,
    replies: Replies,
    patience: Duration,
    bodies: Bodies,
    turns: Turns,
    /// What comes is turned away.
    sheds: bool,
    drained: bool,
    last_words: VecDeque<(Instant, Option<Farewell>)>,
}

impl Serving {
    async fn receive(&mut self, event: Event) -> Result<(), ReplyError> {
        let inlet = self.inlet;
        let what = match event {
            Event::Request(request) if self.sheds => {
                return Last::Shed(request).say().await;
            }
            Event::Request(request) => Some((request, What::Body(Body::Whole))),
            Event::UploadPart(part) => self.bodies.part(&part).map(|body| {
                let body = What::Body(Body::Pieces(Box::new(body)));
                (part.request().clone(), body)
            }),
            Event::UploadStarted(upload) if EARLY.load(Ordering::Relaxed) && !self.sheds => {
                let body = self.bodies.announced(&upload);
                if body.is_some() {
                    // Nobody else is to begin with it when this process dies.
                    upload.act().await?;
                } else if upload.declared_length().is_some() {
                    UNSURE.call_once(|| {
                        tracing::warn!(
                            "--early-uploads: waiting for uploads to be complete, since it is not sure that the server has made up their names: see --upload-store; of a broker it never is"
                        );
                    });
                }
                body.map(|body| {
                    let body = What::Body(Body::Pieces(Box::new(body)));
                    (upload.request().clone(), body)
                })
            }
            // It is being answered since it began.
            Event::UploadDone(upload) if self.bodies.done(&upload) => None,
            Event::UploadDone(upload) => {
                let request = upload.request().clone();
                Some((request, What::Body(Body::Stored(Box::new(upload)))))
            }
            Event::UploadRefused(request, fault) => {
                // Whatever was on its way is not any more.
                self.bodies.gone(&request.client());
                Some((request, What::Fault(fault)))
            }
            Event::WebSocketHandshake(request) => Some((request, What::Handshake)),
            event => return self.note(event).await,
        };
        let Some((request, what)) = what else {
            return Ok(());
        };
        match inlet.take(&mut self.turns, request, what) {
            Ok(()) => Ok(()),
            Err(last) => last.say().await,
        }
    }

    /// Takes note of what is no request.
    async fn note(&mut self, event: Event) -> Result<(), ReplyError> {
        let inlet = self.inlet;
        match event {
            Event::Disconnect(client) => {
                self.bodies.gone(&client);
                self.turns.gone(&client);
                inlet.wsgi.gone(&client);
                if let Some(asgi) = &inlet.asgi {
                    asgi.gone(&client);
                }
            }
            Event::WebSocketFrame(frame) => match &inlet.asgi {
                Some(asgi) => asgi.frame(frame),
                // Nobody has accepted any.
                None => frame.client().cancel().await?,
            },
            // Nobody listens, and a client that waits for an answer should not wait for ever.
            Event::Message(message) => self.replies.close(&message).await?,
            Event::Drained => {
                self.drained = true;
                if self.turns.is_empty() {
                    inlet.wsgi.close();
                }
                if let Some(asgi) = &inlet.asgi {
                    asgi.stop();
                }
                self.last_words = time_table(self.patience);
            }
            _ => {}
        }
        Ok(())
    }

    /// Gives to their applications those that may go now.
    async fn go_on(&mut self) -> Result<(), ReplyError> {
        let inlet = self.inlet;
        let may_go = |parcel: &Parcel| inlet.may_go(&parcel.request, parcel.mount, &parcel.what);
        while let Some(parcel) = self.turns.next(may_go) {
            if let Err(last) = inlet.give(parcel.request, parcel.mount, parcel.what) {
                last.say().await?;
            }
        }
        if self.drained && self.turns.is_empty() {
            inlet.wsgi.close();
        }
        Ok(())
    }

    /// Does what is due before the time is up; false when it is.
    async fn say_last(&mut self) -> Result<bool, ReplyError> {
        let inlet = self.inlet;
        let Some((_, Some(farewell))) = self.last_words.pop_front() else {
            inlet.give_up().await?;
            return Ok(false);
        };
        wsgi::leave();
        // Those who wait for more of a body hear that there will be none.
        self.bodies = Bodies::new();
        if let Some(asgi) = &inlet.asgi {
            asgi.end(farewell);
        }
        Ok(true)
    }
}

/// When what does not end by itself is asked to, and how; at last it is given up, in time for the last words.
fn time_table(patience: Duration) -> VecDeque<(Instant, Option<Farewell>)> {
    let now = Instant::now();
    let steps = [
        (LAST_CALL, Some(Farewell::Now)),
        (LAST_CANCEL, Some(Farewell::AtOnce)),
        (LAST_WAIT, None),
    ];
    let table = steps.into_iter().filter_map(|(before, farewell)| {
        let before = before.min(patience.mul_f64(before.as_secs_f64() / 2.0));
        let at = now.checked_add(patience.saturating_sub(before))?;
        Some((at, farewell))
    });
    table.collect()
}

/// What is said to a client whose request reaches no application.
enum Last {
    Refuse(Request, UploadFault),
    NoWebSocket(Request),
    NotFound(Request),
    /// Too much waits.
    Shed(Request),
    Sorry(Request),
    Cut(Client),
}

impl Last {
    async fn say(self) -> Result<(), ReplyError> {
        let (request, code, text) = match self {
            Self::Cut(client) => return client.cancel().await,
            Self::Refuse(request, fault) => (request, 400, format!("Bad Request: {fault}\n")),
            Self::NoWebSocket(request) => {
                (request, 400, "Bad Request: no WebSocket here\n".to_owned())
            }
            Self::NotFound(request) => (
                request,
                404,
                "Not Found: no application is here\n".to_owned(),
            ),
            Self::Shed(request) => (request, 503, "Service Unavailable\n".to_owned()),
            Self::Sorry(request) => {
                let text = "Service Unavailable: too many requests wait for this application\n";
                (request, 503, text.to_owned())
            }
        };
        let mut respond = request.respond(code).header("Content-Type", "text/plain");
        if code == 503 {
            respond = respond.header("Retry-After", "1");
        }
        // One that has found no application may ask another.
        if code != 404 {
            respond = respond.close();
        }
        respond.send(text).await
    }
}

impl Inlet {
    /// Waits until nothing is open.
    async fn idle(&self) {
        self.wsgi.idle().await;
        if let Some(asgi) = &self.asgi {
            asgi.idle().await;
        }
    }

    /// Answers for WSGI applications that have not in all the time there was. Their threads cannot be stopped: they end with the process.
    async fn give_up(&self) -> Result<(), ReplyError> {
        let clients = self.wsgi.give_up();
        if !clients.is_empty() {
            let count = clients.len();
            tracing::warn!(
                count,
                "time is up: answering the requests that are left with 503"
            );
        }
        for client in clients {
            client.send(TIME_IS_UP).await?;
            client.close().await?;
        }
        Ok(())
    }

    /// Gives it to its application, in its turn.
    fn take(&self, turns: &mut Turns, request: Request, what: What) -> Result<(), Box<Last>> {
        let mount = self.site.find(&request);
        if turns.is_empty() && self.may_go(&request, mount, &what) {
            return self.give(request, mount, what);
        }
        let parcel = Parcel {
            request,
            mount,
            what,
        };
        let may_go = |parcel: &Parcel| self.may_go(&parcel.request, parcel.mount, &parcel.what);
        match turns.take(parcel, may_go) {
            Ok(Some(parcel)) => self.give(parcel.request, parcel.mount, parcel.what),
            Ok(None) => Ok(()),
            Err(client) => {
                turns.gone(&client);
                self.wsgi.gone(&client);
                if let Some(asgi) = &self.asgi {
                    asgi.gone(&client);
                }
                Err(Box::new(Last::Cut(client)))
            }
        }
    }

    fn interface(&self, mount: Option<usize>) -> Option<Interface> {
        Some(self.site.mounts().get(mount?)?.interface)
    }

    /// Whether it overtakes nothing of the same client that is at another side: what is at the same one waits there.
    fn may_go(&self, request: &Request, mount: Option<usize>, what: &What) -> bool {
        let interface = self.interface(mount);
        let side = match what {
            What::Body(_) => interface,
            What::Handshake => interface.filter(|interface| *interface == Interface::Asgi),
            What::Fault(_) => None,
        };
        if side.is_some() && !self.is_mixed {
            return true;
        }
        let client = request.client();
        let is_at = |other| match other {
            Interface::Wsgi => self.wsgi.has(&client),
            Interface::Asgi => self.asgi.as_ref().is_some_and(|asgi| asgi.has(&client)),
        };
        match side {
            Some(Interface::Wsgi) => !is_at(Interface::Asgi),
            Some(Interface::Asgi) => !is_at(Interface::Wsgi),
            // Answered here, and at once.
            None => !is_at(Interface::Wsgi) && !is_at(Interface::Asgi),
        }
    }

    fn give(&self, request: Request, mount: Option<usize>, what: What) -> Result<(), Box<Last>> {
        let mount = mount.and_then(|mount| Some((mount, self.interface(Some(mount))?)));
        let last = match (what, mount, &self.asgi) {
            (What::Fault(fault), ..) => Last::Refuse(request, fault),
            (What::Handshake, Some((mount, Interface::Asgi)), Some(asgi)) => {
                asgi.take(request, mount, Source::Handshake);
                return Ok(());
            }
            (What::Handshake, ..) => Last::NoWebSocket(request),
            (What::Body(body), Some((mount, Interface::Asgi)), Some(asgi)) => {
                let source = match body {
                    Body::Whole => Source::Whole,
                    Body::Pieces(reader) => Source::Pieces(reader),
                    Body::Stored(upload) => Source::Stored(upload),
                };
                asgi.take(request, mount, source);
                return Ok(());
            }
            (What::Body(body), Some((mount, _)), _) => {
                match self.wsgi.push(Job::new(request, mount, body)) {
                    Ok(()) => return Ok(()),
                    Err(Full::Sorry(job)) => Last::Sorry(job.request),
                    Err(Full::Cut(client)) => {
                        self.wsgi.gone(&client);
                        Last::Cut(client)
                    }
                }
            }
            (What::Body(_), None, _) => Last::NotFound(request),
        };
        Err(Box::new(last))
    }
}
