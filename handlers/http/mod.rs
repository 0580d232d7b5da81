//! A bridge to any HTTP server, so that an app in any framework becomes a handler: each request goes to the server, and its response
//! comes back piece by piece.
//!
//! * `backend`: where the server is, and connecting to it
//! * `forward`: which fields of a request and of a response go on
//! * `body`: a request's body on its way
//! * `exchange`: one request and its response
//! * `websocket`: one WebSocket, through to the server and back
//! * `desk`: what is open, what waits, which connections are kept
//!
//! It does not rewrite paths (a prefix aside), speak TLS or HTTP/2 to the server, compress, store or choose among servers.

mod backend;
mod body;
mod desk;
mod exchange;
mod fault;
mod forward;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use lurcher::handler::{Bodies, Connection, Event, Replies, ReplyError, Request};
use lurcher::launcher::{BuiltIn, Handler, Opt, Target, Values};

use backend::{Address, Backend};
use body::{Given, Job};
use desk::{Desk, Ended, Refused, Workers};

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: "http",
    about: "Pass every request on to an HTTP server, and its response back

Requests and responses are streamed, connections to the server are kept, WebSocket is passed through. The server gets the client's \
Host and path; X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host tell where the request comes from.

An app that listens on a port, one on a socket in a file that knows itself by another name, and one that takes its time:
  lurcher run http://127.0.0.1:3000 tcp://127.0.0.1:9999
  lurcher run unix:/run/app.sock tcp://127.0.0.1:9999 --host-header app.internal
  lurcher run http://127.0.0.1:8080/reports tcp://127.0.0.1:9999 --timeout 600 --concurrency 32",
    targets: &[
        Target { scheme: "http", form: "http://HOST:PORT[/PREFIX]" },
        Target { scheme: "unix", form: "unix:/PATH" },
    ],
    options: &[
        Opt { name: "host-header", value: "HOST", help: "Host for all requests [default: as the client has it]", repeat: false },
        Opt {
            name: "connect-timeout",
            value: "SECONDS",
            help: "How long connecting to the server may take; then 504 [default: 5]",
            repeat: false,
        },
        Opt {
            name: "timeout",
            value: "SECONDS",
            help: "How long the server may be silent while a request is open; then 504, or the end of what has begun; 0: as long as it likes [default: 60]",
            repeat: false,
        },
        Opt {
            name: "forwarded",
            value: "replace|keep",
            help: "What becomes of X-Forwarded-For, -Proto, -Host and Forwarded of clients: replaced by the truth, or passed on as they are [default: replace]",
            repeat: false,
        },
    ],
    run: |values| {
        let settings = Settings::new(values)?;
        Ok(Handler::draining(|connection| serve(connection, settings)))
    },
};

/// Requests that are open at the server at once, where `--concurrency` does not say: what most servers take without settings of
/// their own, and well below the usual 1,024 descriptors.
const CONCURRENCY: u32 = 512;

/// Requests taken from the front at once.
const BATCH_MAX: usize = 64;

/// Idle connections are looked through so often.
const SWEEP_TIME: Duration = Duration::from_secs(5);

/// What was asked for.
struct Settings {
    address: Address,
    context: forward::Context,
    connect_timeout: Duration,
    timeout: Option<Duration>,
    concurrency: u32,
}

impl Settings {
    fn new(values: &Values) -> Result<Self, String> {
        let (address, prefix) = Address::parse(values.target())?;
        let host = values.get("host-header").map(HeaderValue::from_str);
        let host = host.transpose().map_err(|_| "--host-header is no host")?;
        let connect_timeout = seconds(values, "connect-timeout", 5)?;
        let timeout = seconds(values, "timeout", 60)?;
        Ok(Self {
            context: forward::Context {
                host,
                authority: address.authority(),
                prefix,
                keep_forwarded: match values.get("forwarded") {
                    None | Some("replace") => false,
                    Some("keep") => true,
                    Some(_) => return Err("--forwarded is neither `replace` nor `keep`".to_owned()),
                },
            },
            address,
            connect_timeout: connect_timeout.ok_or("--connect-timeout is 0")?,
            timeout,
            concurrency: values.concurrency().unwrap_or(CONCURRENCY),
        })
    }
}

/// A time in seconds, `None` for 0.
fn seconds(values: &Values, name: &str, default: u64) -> Result<Option<Duration>, String> {
    let number = match values.get(name).map(str::parse::<u32>) {
        None => default,
        Some(Ok(number)) => number.into(),
        Some(Err(_)) => return Err(format!("--{name} is no number of seconds")),
    };
    Ok((number > 0).then(|| Duration::from_secs(number)))
}

/// What all exchanges share.
struct Bridge {
    context: forward::Context,
    timeout: Option<Duration>,
    backend: Backend,
    desk: Desk,
    replies: Replies,
}

async fn serve(mut connection: Connection, settings: Settings) -> Result<(), ReplyError> {
    connection.default_slots(settings.concurrency as usize);
    let bridge = Arc::new(Bridge {
        context: settings.context,
        timeout: settings.timeout,
        backend: Backend::new(settings.address, settings.connect_timeout),
        desk: Desk::new(settings.concurrency as usize),
        replies: connection.replies(),
    });
    let mut workers = Workers::new();
    let mut bodies = Bodies::new();
    let mut sweeps = tokio::time::interval(SWEEP_TIME);
    let mut requests = Vec::with_capacity(BATCH_MAX);
    loop {
        tokio::select! {
            count = connection.recv_many(&mut requests, BATCH_MAX) => {
                if count == 0 {
                    break;
                }
                for request in requests.drain(..) {
                    take(&bridge, request, &mut bodies, &mut workers).await?;
                }
            }
            Some(ended) = workers.join_next_with_id() => note(&bridge, ended).await?,
            _ = sweeps.tick() => bridge.desk.sweep(),
        }
        // Drained: what is open gets its response, and what belongs to it still comes; what waits gets its turn.
        if bridge.desk.is_stopping() && workers.is_empty() {
            break;
        }
    }
    bridge.desk.stop();
    while let Some(ended) = workers.join_next_with_id().await {
        note(&bridge, ended).await?;
    }
    drop(bridge);
    connection.finish().await;
    Ok(())
}

/// Deals with one message from a server.
async fn take(
    bridge: &Arc<Bridge>,
    request: Request,
    bodies: &mut Bodies,
    workers: &mut Workers,
) -> Result<(), ReplyError> {
    match request.into_event() {
        Event::Request(request) => give(bridge, request.into(), workers).await?,
        Event::UploadDone(upload) => give(bridge, upload.into(), workers).await?,
        Event::UploadPart(part) => {
            if let Some(reader) = bodies.part(&part) {
                let job = Job {
                    request: part.request().clone(),
                    body: Given::Parts(Box::new(reader)),
                };
                give(bridge, job, workers).await?;
            }
        }
        Event::UploadRefused(request, fault) => {
            let answer = request.respond(400).header("Content-Type", "text/plain");
            answer.close().send(fault.to_string()).await?;
        }
        Event::WebSocketHandshake(request) => {
            if let Err(Refused::Ahead(client)) = bridge.desk.open(bridge, request, workers) {
                client.cancel().await?;
            }
        }
        Event::WebSocketFrame(frame) => {
            if let Err(frame) = bridge.desk.pass(frame) {
                websocket::refuse(&frame).await?;
            }
        }
        Event::Disconnect(client) => {
            bodies.gone(&client);
            bridge.desk.cancel(&client, bridge, workers);
        }
        Event::Drained => bridge.desk.stop(),
        // Backends know nothing of message sockets.
        Event::Message(message) => message.client().close().await?,
        _ => {}
    }
    Ok(())
}

/// Gives a request to a worker, or refuses it when too many wait.
async fn give(bridge: &Arc<Bridge>, job: Job, workers: &mut Workers) -> Result<(), ReplyError> {
    match bridge.desk.give(bridge, job, workers) {
        Ok(()) => Ok(()),
        Err(Refused::Ahead(client)) => client.cancel().await,
        Err(Refused::Waiting(job)) => {
            let answer = job.request.respond(503).close();
            let answer = answer.header("Content-Type", "text/plain");
            answer.send("Too many requests wait for the backend").await
        }
    }
}

/// A worker has ended: at its own wish, given up since its client is gone, or by a mistake of ours, which costs one request.
async fn note(bridge: &Bridge, ended: Ended) -> Result<(), ReplyError> {
    match ended {
        Ok((_, result)) => result,
        Err(error) => match bridge.desk.lost(error.id()) {
            Some(client) => {
                tracing::error!(%error, "passing a request on");
                client.cancel().await
            }
            None => Ok(()),
        },
    }
}
