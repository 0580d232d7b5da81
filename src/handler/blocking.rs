//! The same for programs without tokio: every call waits until it is done.
//!
//! ```no_run
//! use lurcher::handler::blocking::Connection;
//! use lurcher::handler::Options;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let connection = Connection::connect(Options::to("tcp://127.0.0.1:9999")?)?;
//! for request in &connection {
//!     if request.is_disconnect() {
//!         continue;
//!     }
//!     connection.reply_http(&request, b"hello\n", 200, "OK", &[("Content-Type", "text/plain")])?;
//! }
//! connection.finish();
//! # Ok(())
//! # }
//! ```
//!
//! A [`Connection`] is cheap to clone, and all of its methods may be called from any thread at the same time: as many threads as
//! should work at once receive from clones of it, and each request goes to one of them. Nothing is received ahead of those calls,
//! so nothing lies about that a thread would lose.
//!
//! What has no blocking form of its own is waited for with [`Connection::block_on`].

#![expect(
    clippy::disallowed_types,
    reason = "threads take turns at waiting for the next request: the lock is held while one of them waits"
)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use super::connection::{self, StopHandle};
use super::options::{ConnectError, Options};
use super::replies::{Replies, ReplyError};
use super::request::{Client, Request};
use super::websocket::Frame;
use crate::websocket::Opcode;
use crate::wire::ConnId;

/// A connection to one server or several, as [`super::Connection`], whose calls wait. One thread of its own looks after the
/// sockets.
///
/// # Panics
///
/// Its methods panic in async code, whose thread they would hold up: use [`super::Connection`] there.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

struct Shared {
    connection: Mutex<Option<connection::Connection>>,
    replies: Replies,
    stop: StopHandle,
    /// Always there but in `drop`.
    runtime: Option<Runtime>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        let Some(connection) = self.connection.get_mut().take() else {
            // Nothing runs in it but what readiness wakes.
            runtime.shutdown_background();
            return;
        };
        // Dropped and not finished: replies that are still to be written are waited for all the same. On a thread, since this may be
        // async code, where waiting for a runtime is not allowed.
        let finishing = std::thread::Builder::new()
            .name("handler-end".to_owned())
            .spawn(move || {
                runtime.block_on(connection.finish());
                runtime.shutdown_background();
            });
        if let Ok(finishing) = finishing
            && finishing.join().is_err()
        {
            tracing::debug!("closing a connection");
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("blocking::Connection")
            .field("replies", &self.0.replies)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// As [`super::Connection::connect`]: returns when the servers have subscribed to replies, or
    /// [`Options::subscription_timeout`] has passed.
    ///
    /// # Errors
    ///
    /// As there, and [`ConnectError::Runtime`].
    pub fn connect(options: Options) -> Result<Self, ConnectError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("handler-io")
            .enable_all()
            .build()
            .map_err(ConnectError::Runtime)?;
        let connection = runtime.block_on(connection::Connection::connect(options))?;
        Ok(Self(Arc::new(Shared {
            replies: connection.replies(),
            stop: connection.stop_handle(),
            connection: Mutex::new(Some(connection)),
            runtime: Some(runtime),
        })))
    }

    /// Connects to the handler's place in a configuration: [`Options::from_config`], then [`Connection::connect`].
    ///
    /// # Errors
    ///
    /// As both.
    #[cfg(feature = "config")]
    pub fn from_config(
        configuration: impl AsRef<std::path::Path>,
        selector: &super::Selector,
    ) -> Result<Self, super::ConfigError> {
        Ok(Self::connect(Options::from_config(
            configuration,
            selector,
        )?)?)
    }

    /// Receives the next request or notice, as [`super::Connection::recv`]; `None` at the end, after [`Connection::shutdown`]. Of
    /// several threads that call this, each gets another one, and all the `None`.
    pub fn recv(&self) -> Option<Request> {
        self.block_on(self.receive())
    }

    /// As [`Connection::recv`], waiting so long at most.
    ///
    /// # Errors
    ///
    /// [`TimedOut`]: then nothing was taken, and nothing is lost.
    pub fn recv_timeout(&self, wait: Duration) -> Result<Option<Request>, TimedOut> {
        let received = async { tokio::time::timeout(wait, self.receive()).await };
        self.block_on(received).map_err(|_| TimedOut(()))
    }

    async fn receive(&self) -> Option<Request> {
        self.0.connection.lock().await.as_mut()?.recv().await
    }

    /// What comes, until the end. So is a reference to the connection in a `for` loop.
    pub fn iter(&self) -> Requests<'_> {
        Requests(self)
    }

    /// Begins to stop, as [`super::Connection::shutdown`]: what servers have pushed is received still, and then comes `None`.
    pub fn shutdown(&self) {
        self.0.stop.stop();
    }

    /// A handle that does [`Connection::shutdown`], for a signal handler's thread.
    pub fn stop_handle(&self) -> StopHandle {
        self.0.stop.clone()
    }

    /// The way back in its async form, for use with [`Connection::block_on`].
    pub fn replies(&self) -> &Replies {
        &self.0.replies
    }

    /// Waits until replies are written, at most [`Options::linger`], and closes. While other clones are there it only drops this
    /// one.
    pub fn finish(self) {
        if let Some(shared) = Arc::into_inner(self.0) {
            // Out of the way of the sockets' end.
            let Some(runtime) = &shared.runtime else {
                return;
            };
            let connection = runtime.block_on(async { shared.connection.lock().await.take() });
            if let Some(connection) = connection {
                runtime.block_on(connection.finish());
            }
        }
    }

    /// Waits for anything of the library that is async: what a [`Client`] does, a [`super::Respond`], an upload.
    ///
    /// ```no_run
    /// # fn run(connection: &lurcher::handler::blocking::Connection, request: &lurcher::handler::Request) -> Result<(), lurcher::handler::ReplyError> {
    /// connection.block_on(request.respond(404).header("X-Why", "gone").send("nothing here\n"))
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// In async code.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let runtime = self.0.runtime.as_ref();
        runtime.expect("it is taken in drop only").block_on(future)
    }
}

/// The answers. Each does what the one of that name in [`Replies`] does, with its errors, and returns when the message is on its way:
/// at once, but while the server does not read.
impl Connection {
    /// As [`Replies::reply`].
    pub fn reply(&self, request: &Request, data: impl AsRef<[u8]>) -> Result<(), ReplyError> {
        self.block_on(self.0.replies.reply(request, data))
    }

    /// As [`Replies::reply_http`].
    pub fn reply_http(
        &self,
        request: &Request,
        body: impl AsRef<[u8]>,
        code: u16,
        status: &str,
        headers: &[(&str, &str)],
    ) -> Result<(), ReplyError> {
        self.block_on(
            self.0
                .replies
                .reply_http(request, body, code, status, headers),
        )
    }

    /// As [`Replies::reply_json`].
    pub fn reply_json<T: Serialize + ?Sized>(
        &self,
        request: &Request,
        value: &T,
    ) -> Result<(), ReplyError> {
        self.block_on(self.0.replies.reply_json(request, value))
    }

    /// As [`Replies::reply_handshake`].
    pub fn reply_handshake(
        &self,
        request: &Request,
        protocol: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<(), ReplyError> {
        self.block_on(self.0.replies.reply_handshake(request, protocol, headers))
    }

    /// As [`Replies::reply_websocket`].
    pub fn reply_websocket(
        &self,
        request: &Request,
        payload: impl AsRef<[u8]>,
        opcode: Opcode,
    ) -> Result<(), ReplyError> {
        self.block_on(self.0.replies.reply_websocket(request, payload, opcode))
    }

    /// As [`Replies::answer_control`].
    pub fn answer_control(&self, frame: &Frame) -> Result<bool, ReplyError> {
        self.block_on(self.0.replies.answer_control(frame))
    }

    /// As [`Replies::close`].
    pub fn close(&self, request: &Request) -> Result<(), ReplyError> {
        self.block_on(self.0.replies.close(request))
    }

    /// As [`Client::send`].
    pub fn send(&self, client: &Client, data: impl AsRef<[u8]>) -> Result<(), ReplyError> {
        self.block_on(client.send(data))
    }

    /// As [`Replies::deliver`].
    pub fn deliver(
        &self,
        sender: impl AsRef<[u8]>,
        ids: &[ConnId],
        data: impl AsRef<[u8]>,
    ) -> Result<(), ReplyError> {
        self.block_on(self.0.replies.deliver(sender, ids, data))
    }

    /// As [`Replies::deliver_to`].
    pub fn deliver_to<'a>(
        &self,
        clients: impl IntoIterator<Item = &'a Client>,
        data: impl AsRef<[u8]>,
    ) -> Result<(), ReplyError> {
        self.block_on(self.0.replies.deliver_to(clients, data))
    }

    /// As [`Replies::deliver_to_websocket`].
    pub fn deliver_to_websocket<'a>(
        &self,
        clients: impl IntoIterator<Item = &'a Client>,
        payload: impl AsRef<[u8]>,
        opcode: Opcode,
    ) -> Result<(), ReplyError> {
        self.block_on(
            self.0
                .replies
                .deliver_to_websocket(clients, payload, opcode),
        )
    }
}

/// Nothing came in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing was received in time")]
pub struct TimedOut(());

/// The requests of a [`Connection`], until it has ended.
#[derive(Debug)]
pub struct Requests<'a>(&'a Connection);

impl Iterator for Requests<'_> {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        self.0.recv()
    }
}

impl<'a> IntoIterator for &'a Connection {
    type Item = Request;
    type IntoIter = Requests<'a>;

    fn into_iter(self) -> Requests<'a> {
        Requests(self)
    }
}
