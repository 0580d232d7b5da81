//! Serving with a tower service: requests of a server become `http::Request`s, and what the service makes of them is sent back.
//!
//! Routing, sessions, compression and all else is the service's business; so is WebSocket beyond passing bytes. Messages from JSON and
//! XML sockets are no requests, and are left out.

mod body;
mod message;
mod reply;
mod run;
mod upgrade;

use std::error::Error;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::time::Duration;

use http_body::Body as HttpBody;
use tower_service::Service;

pub use body::Body;
pub use message::Origin;

use super::Connection;
use run::Run;

/// Whatever went wrong in a service.
type BoxError = Box<dyn Error + Send + Sync>;

/// Requests that a service has at once unless [`Serve::concurrency`] says otherwise: more than it can do anything about at the same
/// time, few enough that what they hold in memory stays small.
pub const CONCURRENCY: usize = 1024;

/// How long open requests have at the end, unless [`Serve::graceful_timeout`] says otherwise.
pub const GRACEFUL_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers every request of the connection with a tower service, such as an axum `Router`, until the connection is stopped
/// ([`Connection::stop_handle`], [`Serve::graceful_shutdown`]). Await what it returns.
///
/// ```
/// use axum::{Router, routing::get};
/// use lurcher::handler::{Connection, Options, serve};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let app = Router::new().route("/", get(async || "hello\n"));
/// let connection = Connection::connect(Options::to("tcp://127.0.0.1:9999")?).await?;
/// serve(connection, app).await;
/// # Ok(())
/// # }
/// ```
///
/// - The service is cloned for each request, which runs as a task of its own on the current runtime, of any flavour. Readiness
///   (`poll_ready`) is waited for.
/// - Bodies stream both ways. Uploads come as bodies, however the server passes them on ([`Body`]). Each frame of a response's body is
///   sent at once, so that server-sent events work; a body whose length is known (`size_hint`) has a `Content-Length`.
/// - A service that fails or panics is answered for with 500. When the head has left already, the client's connection is cut.
/// - When a client goes, its response is dropped, be it the service's future or the body.
/// - Where a request comes from is told by the extension [`Origin`].
/// - WebSocket works by upgrade, as with hyper's server: axum's `WebSocketUpgrade` needs nothing else. All frames of a client have to
///   come to the process that has accepted it, so behind a Mongrel2, which deals them out in turn, let it be the only one.
/// - Requests of one client are answered one after another, as they came: a Mongrel2 passes pipelined ones on at once.
pub fn serve<S>(connection: Connection, service: S) -> Serve<S> {
    Serve {
        connection,
        service,
        settings: Settings {
            concurrency: CONCURRENCY,
            body_max: None,
            graceful_timeout: GRACEFUL_TIMEOUT,
        },
        signal: None,
    }
}

/// What [`serve`] is to do, and a future: awaiting it serves.
///
/// # Cancel safety
///
/// Dropped early, requests that are open are dropped with it, and their clients are cut off. End it by [`Serve::graceful_shutdown`], or by
/// the connection's stop handle.
#[must_use = "nothing is served before it is awaited"]
pub struct Serve<S> {
    connection: Connection,
    service: S,
    settings: Settings,
    signal: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

#[derive(Debug, Clone)]
struct Settings {
    concurrency: usize,
    body_max: Option<u64>,
    graceful_timeout: Duration,
}

impl<S> fmt::Debug for Serve<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("connection", &self.connection)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<S> Serve<S> {
    /// So many requests at once, at least one; default: [`CONCURRENCY`]. Those beyond wait here, a few, then at the server.
    ///
    /// A response that has gone on for a second, and a WebSocket, counts no more: streams are not work.
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.settings.concurrency = requests.clamp(1, tokio::sync::Semaphore::MAX_PERMITS);
        self
    }

    /// The largest body that a request may have, in bytes. A longer one is answered 413 when its length is known; else reading it
    /// fails. Default: whatever the server lets through.
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.settings.body_max = Some(bytes);
        self
    }

    /// Stops when this future ends: no further request is taken, and those that are open are finished, for at most
    /// [`Serve::graceful_timeout`].
    ///
    /// WebSocket clients are told to go away (1001) at once. A request that was taken and not answered when the time is up gets 503, and a body
    /// that is not at its end is cut.
    pub fn graceful_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.signal = Some(Box::pin(signal));
        self
    }

    /// How long open requests have at the end. Default: [`GRACEFUL_TIMEOUT`].
    pub fn graceful_timeout(mut self, timeout: Duration) -> Self {
        self.settings.graceful_timeout = timeout;
        self
    }
}

impl<S, B> IntoFuture for Serve<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: HttpBody + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Output = ();
    type IntoFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self {
            mut connection,
            service,
            settings,
            signal,
        } = self;
        connection.default_slots(settings.concurrency);
        Box::pin(Run::new(connection, service, settings).run(signal))
    }
}
