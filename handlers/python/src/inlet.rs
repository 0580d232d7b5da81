//! The thread that receives: gives each request to the queue of its application. It never takes the interpreter's lock.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use lurcher::handler::{Bodies, Connection, Event, ReplyError, Request, UploadFault};
use lurcher::launcher::{BuiltIn, Handler, Target, Values};

use crate::queue::{Body, Full, Job, Queue};
use crate::site::{Interface, Site};
use crate::{options, wait, wsgi};

/// What the receiving thread knows of the rest.
pub(crate) struct Inlet {
    pub(crate) site: Site,
    pub(crate) wsgi: Arc<Queue>,
    /// How many requests are answered at a time.
    pub(crate) slots: usize,
}

/// Set once the applications are loaded, before the thread is started.
static INLET: OnceLock<Inlet> = OnceLock::new();

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

fn run(values: &Values) -> Result<Handler, String> {
    if let Some(base) = values.get("sendfile-base") {
        wsgi::sendfile_below(base);
    }
    Ok(Handler::draining(serve))
}

/// Serves as the supervisor has ordered until it is told to stop and all is answered.
pub(crate) fn run_worker(inlet: Inlet) -> ExitCode {
    drop(INLET.set(inlet));
    let code = lurcher::launcher::worker(BUILT_IN);
    if let Some(inlet) = INLET.get() {
        inlet.wsgi.close();
    }
    code
}

async fn serve(mut connection: Connection) -> Result<(), ReplyError> {
    let Some(inlet) = INLET.get() else {
        return Ok(());
    };
    wait::on_this_runtime();
    connection.default_slots(inlet.slots);
    let mut bodies = Bodies::new();
    let mut drained = false;
    loop {
        let request = tokio::select! {
            request = connection.recv() => request,
            // What is open gets its credits and the parts of its bodies until then.
            () = inlet.wsgi.idle(), if drained => break,
        };
        let Some(request) = request else {
            break;
        };
        match request.into_event() {
            Event::Request(request) => inlet.push(request, Body::Whole).await?,
            Event::UploadPart(part) => {
                if let Some(body) = bodies.part(&part) {
                    let body = Body::Pieces(body);
                    inlet.push(part.request().clone(), body).await?;
                }
            }
            Event::UploadDone(upload) => {
                let request = upload.request().clone();
                inlet.push(request, Body::Stored(upload)).await?;
            }
            Event::UploadRefused(request, fault) => refuse(&request, fault).await?,
            Event::Disconnect(client) => {
                bodies.gone(&client);
                inlet.wsgi.gone(&client);
            }
            Event::WebSocketHandshake(request) => {
                let text = "Bad Request: no WebSocket here\n";
                request.respond(400).close().send(text).await?;
            }
            // Nobody has accepted any, and a client that waits for an answer should not wait for ever.
            Event::Message(message) => connection.replies().close(&message).await?,
            Event::Drained => {
                drained = true;
                inlet.wsgi.close();
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

async fn refuse(request: &Request, fault: UploadFault) -> Result<(), ReplyError> {
    let text = format!("Bad Request: {fault}\n");
    request.respond(400).close().send(text).await
}

impl Inlet {
    async fn push(&self, request: Request, body: Body) -> Result<(), ReplyError> {
        let mount = self.site.find(&request);
        let interface = mount.and_then(|mount| self.site.mounts().get(mount));
        let (Some(mount), Some(found)) = (mount, interface) else {
            let respond = request.respond(404).header("Content-Type", "text/plain");
            return respond.send("Not Found: no application is here\n").await;
        };
        if found.interface != Interface::Wsgi {
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
