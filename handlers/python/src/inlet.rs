//! What receives: gives each request to the queue of its application. It never takes the interpreter's lock.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use lurcher::handler::{Bodies, Connection, Event, ReplyError, Request, UploadFault};
use lurcher::launcher::{BuiltIn, Handler, Target, Values};
use tokio::runtime::Handle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::asgi::{Desk, Farewell, Incoming, Source, Work};
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
    let mut bodies = Bodies::new();
    let mut turns = Turns::default();
    let mut drained = false;
    let mut last_words = VecDeque::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sheds = false;
    loop {
        let is_full = inlet.asgi.as_ref().is_some_and(|asgi| asgi.is_full());
        sheds &= is_full;
        let has_waiting = inlet.asgi.as_ref().is_some_and(|asgi| asgi.has_waiting());
        let next = last_words.front().map_or_else(Instant::now, |(at, _)| *at);
        let request = tokio::select! {
            // What is open gets its credits and the parts of its bodies until then.
            () = inlet.idle(), if drained && turns.is_empty() => break,
            () = turns::changed(), if !turns.is_empty() => {
                while let Some(parcel) = turns.next(|parcel| inlet.may_go(parcel)) {
                    inlet.give(parcel).await?;
                }
                if drained && turns.is_empty() {
                    inlet.wsgi.close();
                }
                continue;
            }
            () = tokio::time::sleep_until(next), if !last_words.is_empty() => {
                let Some((_, Some(farewell))) = last_words.pop_front() else {
                    inlet.give_up().await?;
                    connection.finish().await;
                    return Ok(());
                };
                wsgi::leave();
                // Those who wait for more of a body hear that there will be none.
                bodies = Bodies::new();
                if let Some(asgi) = &inlet.asgi {
                    asgi.end(farewell);
                }
                continue;
            }
            _ = look.tick(), if has_waiting => {
                if let Some(asgi) = &inlet.asgi {
                    asgi.look();
                }
                continue;
            }
            request = connection.recv(), if !is_full || sheds => request,
            () = tokio::time::sleep(STALL), if is_full && !sheds => {
                sheds = true;
                continue;
            }
        };
        let Some(request) = request else {
            break;
        };
        match request.into_event() {
            Event::Request(request) if sheds => inlet.shed(&request).await?,
            Event::Request(request) => {
                let body = What::Body(Body::Whole);
                inlet.take(&mut turns, request, body).await?;
            }
            Event::UploadPart(part) => {
                if let Some(body) = bodies.part(&part) {
                    let body = What::Body(Body::Pieces(body));
                    inlet.take(&mut turns, part.request().clone(), body).await?;
                }
            }
            Event::UploadStarted(upload) if EARLY.load(Ordering::Relaxed) && !sheds => {
                if let Some(body) = bodies.announced(&upload) {
                    // Nobody else is to begin with it when this process dies.
                    upload.act().await?;
                    let body = What::Body(Body::Pieces(body));
                    inlet
                        .take(&mut turns, upload.request().clone(), body)
                        .await?;
                } else if upload.declared_length().is_some() {
                    UNSURE.call_once(|| {
                        tracing::warn!(
                            "--early-uploads: waiting for uploads to be complete, since it is not sure that the server has made up their names: see --upload-store; of a broker it never is"
                        );
                    });
                }
            }
            // It is being answered since it began.
            Event::UploadDone(upload) if bodies.done(&upload) => {}
            Event::UploadDone(upload) => {
                let request = upload.request().clone();
                let body = What::Body(Body::Stored(upload));
                inlet.take(&mut turns, request, body).await?;
            }
            Event::UploadRefused(request, fault) => {
                // Whatever was on its way is not any more.
                bodies.gone(&request.client());
                inlet.take(&mut turns, request, What::Fault(fault)).await?;
            }
            Event::Disconnect(client) => {
                bodies.gone(&client);
                turns.gone(&client);
                inlet.wsgi.gone(&client);
                if let Some(asgi) = &inlet.asgi {
                    asgi.gone(&client);
                }
            }
            Event::WebSocketHandshake(request) => {
                inlet.take(&mut turns, request, What::Handshake).await?;
            }
            Event::WebSocketFrame(frame) => match &inlet.asgi {
                Some(asgi) => asgi.frame(frame),
                // Nobody has accepted any.
                None => frame.client().cancel().await?,
            },
            // Nobody listens, and a client that waits for an answer should not wait for ever.
            Event::Message(message) => connection.replies().close(&message).await?,
            Event::Drained => {
                drained = true;
                if turns.is_empty() {
                    inlet.wsgi.close();
                }
                if let Some(asgi) = &inlet.asgi {
                    asgi.stop();
                }
                last_words = time_table(patience);
            }
            _ => {}
        }
    }
    // Whose parts can no longer come must not wait for them.
    drop(bodies);
    inlet.wsgi.close();
    inlet.wsgi.idle().await;
    connection.finish().await;
    Ok(())
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

async fn refuse(request: &Request, fault: UploadFault) -> Result<(), ReplyError> {
    let text = format!("Bad Request: {fault}\n");
    request.respond(400).close().send(text).await
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

    async fn shed(&self, request: &Request) -> Result<(), ReplyError> {
        let respond = request.respond(503).header("Content-Type", "text/plain");
        let respond = respond.header("Retry-After", "1").close();
        respond.send("Service Unavailable\n").await
    }

    /// Gives it to its application, in its turn.
    async fn take(
        &self,
        turns: &mut Turns,
        request: Request,
        what: What,
    ) -> Result<(), ReplyError> {
        let parcel = Parcel {
            mount: self.site.find(&request),
            request,
            what,
        };
        match turns.take(parcel, |parcel| self.may_go(parcel)) {
            Ok(Some(parcel)) => self.give(parcel).await,
            Ok(None) => Ok(()),
            Err(client) => {
                turns.gone(&client);
                self.wsgi.gone(&client);
                if let Some(asgi) = &self.asgi {
                    asgi.gone(&client);
                }
                client.cancel().await
            }
        }
    }

    fn interface(&self, mount: Option<usize>) -> Option<Interface> {
        Some(self.site.mounts().get(mount?)?.interface)
    }

    /// Whether it overtakes nothing of the same client that is at another side: what is at the same one waits there.
    fn may_go(&self, parcel: &Parcel) -> bool {
        let interface = self.interface(parcel.mount);
        let side = match parcel.what {
            What::Body(_) => interface,
            What::Handshake => interface.filter(|interface| *interface == Interface::Asgi),
            What::Fault(_) => None,
        };
        if side.is_some() && !self.is_mixed {
            return true;
        }
        let client = parcel.request.client();
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

    async fn give(&self, parcel: Parcel) -> Result<(), ReplyError> {
        let Parcel {
            request,
            mount,
            what,
        } = parcel;
        match what {
            What::Body(body) => self.push(request, mount, body).await,
            What::Handshake => self.handshake(request, mount).await,
            What::Fault(fault) => refuse(&request, fault).await,
        }
    }

    async fn handshake(&self, request: Request, mount: Option<usize>) -> Result<(), ReplyError> {
        match (mount, self.interface(mount), &self.asgi) {
            (Some(mount), Some(Interface::Asgi), Some(asgi)) => {
                asgi.take(Work {
                    request,
                    mount,
                    source: Source::Handshake,
                });
                Ok(())
            }
            _ => {
                let text = "Bad Request: no WebSocket here\n";
                request.respond(400).close().send(text).await
            }
        }
    }

    async fn push(
        &self,
        request: Request,
        mount: Option<usize>,
        body: Body,
    ) -> Result<(), ReplyError> {
        let (Some(mount), Some(interface)) = (mount, self.interface(mount)) else {
            let respond = request.respond(404).header("Content-Type", "text/plain");
            return respond.send("Not Found: no application is here\n").await;
        };
        if let (Interface::Asgi, Some(asgi)) = (interface, &self.asgi) {
            let source = match body {
                Body::Whole => Source::Whole,
                Body::Pieces(reader) => Source::Pieces(reader),
                Body::Stored(upload) => Source::Stored(upload),
            };
            asgi.take(Work {
                request,
                mount,
                source,
            });
            return Ok(());
        }
        match self.wsgi.push(Job::new(request, mount, body)) {
            Ok(()) => Ok(()),
            Err(Full::Sorry(job)) => {
                let text = "Service Unavailable: too many requests wait for this application\n";
                let respond = job.request.respond(503).header("Retry-After", "1").close();
                respond
                    .header("Content-Type", "text/plain")
                    .send(text)
                    .await
            }
            Err(Full::Cut(client)) => {
                self.wsgi.gone(&client);
                client.cancel().await
            }
        }
    }
}
