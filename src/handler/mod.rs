//! The handler library: take requests from a Mongrel2 or Lurcher server, and answer them whenever you like, in as many
//! pieces as you like, to one browser or to a thousand at once.
//!
//! A [`Connection`] receives [`Request`]s; its reply methods ([`Replies`], to which it dereferences) answer them. A
//! [`Client`] is a handle on one browser, cheap to clone, to send to from any task. Both protocols are understood (JSON and
//! tnetstring), several servers may be served at once, and lost servers are connected to again.
//!
//! ```no_run
//! use lurcher::handler::{Connection, Options};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! // The server's `send_spec`; its `recv_spec` is one port down unless named.
//! let mut connection = Connection::connect(Options::to("tcp://127.0.0.1:9999")?).await?;
//! while let Some(request) = connection.recv().await {
//!     if request.is_disconnect() {
//!         continue;
//!     }
//!     connection.reply_http(&request, b"hello\n", 200, "OK", &[("Content-Type", "text/plain")]).await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Which way to write a handler
//!
//! | you have | use |
//! |---|---|
//! | an axum router, or any tower service | `serve` (feature `service`): three lines |
//! | requests to answer one by one, clients to write to later | [`Connection`] and [`Event`], below |
//! | a program without tokio | [`blocking::Connection`] |
//!
//! # Where to connect
//!
//! [`Options::to`] takes `send_spec`s as the server's configuration has them, several with commas between; `Options::from_config`
//! (feature `config`) reads them from that configuration, by route, host or ident, and brings the server's chroot along.
//!
//! # What comes
//!
//! [`Request::into_event`] tells messages apart by marks that no client can forge; a METHOD alone, which is all that a bare
//! [`Request`] shows, may be a client's invention.
//!
//! ```no_run
//! use lurcher::handler::{Connection, Event, ReplyError};
//!
//! # async fn run(mut connection: Connection) -> Result<(), ReplyError> {
//! while let Some(request) = connection.recv().await {
//!     match request.into_event() {
//!         Event::Request(request) => request.respond(200).header("Content-Type", "text/plain").send("hello\n").await?,
//!         // A large body that the server has stored in a file, which goes away with `upload`.
//!         Event::UploadDone(upload) => {
//!             let said = match upload.open().await {
//!                 Ok((_file, bytes)) => format!("{bytes} bytes\n"),
//!                 Err(error) => format!("{error}\n"),
//!             };
//!             upload.respond(200).send(said).await?;
//!         }
//!         // Somebody tries to have a file of this machine read and deleted.
//!         Event::UploadRefused(request, why) => request.respond(400).close().send(why.to_string()).await?,
//!         // Whoever keeps something for each client forgets it here.
//!         Event::Disconnect(_client) => {}
//!         _ => {}
//!     }
//! }
//! connection.finish().await;
//! # Ok(())
//! # }
//! ```
//!
//! - Requests are [`Event::Request`]; so are, by their method, HEAD and the rest.
//! - Large bodies come as the server is set up: stored ([`Event::UploadStarted`], [`Event::UploadDone`]: see [`Upload`], and
//!   [`Bodies::announced`] for whoever reads what is not complete) or in parts
//!   ([`Event::UploadPart`]: [`Bodies`] makes a [`BodyReader`] of them, which asks for more as it is read). Without either setting
//!   the server answers 413 by itself.
//! - WebSocket clients come as [`Event::WebSocketHandshake`], which [`Replies::reply_handshake`] accepts, and then as one
//!   [`Event::WebSocketFrame`] for each message; [`Replies::reply_websocket`] sends to one of them, [`Replies::answer_control`] does with
//!   pings and closes what has to be done.
//! - [`Event::Disconnect`] is the end of a client, [`Event::Message`] a message from a JSON or XML socket, [`Event::Credits`] what a client
//!   has taken, where the server counts that.
//!
//! # What goes back
//!
//! | to whom | whole responses | pieces | WebSocket |
//! |---|---|---|---|
//! | who asked | [`Replies::reply_http`], [`Replies::reply_json`], [`Request::respond`] | [`Respond::stream`], [`Replies::reply`] | [`Replies::reply_websocket`] |
//! | a client kept from before | | [`Client::send`] | [`Client::send_websocket`] |
//! | many of them | [`Replies::deliver_to_http`] | [`Replies::deliver_to`] | [`Replies::deliver_to_websocket`] |
//! | many, by ident and numbers, as in Mongrel2's own library | [`Replies::deliver_http`] | [`Replies::deliver`] | [`Replies::deliver_websocket`] |
//!
//! [`Request::respond`] writes responses that need more: one with repeated headers, or a body that comes piece by piece
//! ([`BodyWriter`]).
//!
//! What happens to replies is worth knowing. They wait while the server does not read (backpressure); they are dropped when
//! the server is gone, since its clients are gone with it. None is lost at the start: a connection waits for the server's
//! subscription before it takes the first request. A client that is gone is no error: a disconnect follows.
//!
//! # Stopping
//!
//! [`Connection::shutdown`], or a [`StopHandle`] from a signal handler: [`Connection::recv`] goes on returning what was pushed, and then
//! `None`; answer what is open, and [`Connection::finish`] waits until it is written. [`Connection::drain`] is the first half alone, for
//! handlers whose clients stay for long.
//!
//! # Cancellation
//!
//! Futures of this module may be dropped at any point, in `select!` for one: each says what has happened then. Receiving loses
//! nothing, and a message is sent whole or not at all.

mod arriving;
pub mod blocking;
mod body;
mod broker;
mod connection;
mod control;
mod deliver;
mod flow;
#[cfg(feature = "config")]
mod from_config;
mod http;
mod names;
mod observer;
mod options;
mod publisher;
mod replies;
mod request;
mod response;
#[cfg(feature = "service")]
mod serve;
mod source;
mod upload;
mod websocket;

pub use body::{BODY_WINDOW, Bodies, BodyError, BodyReader, Part};
pub use connection::{Connection, Server, StopHandle};
#[cfg(feature = "config")]
pub use from_config::{ConfigError, Selector};
pub use http::HttpError;
pub use names::Lookup;
pub use observer::{Counts, End, Exchange, Observer};
pub use options::{ConnectError, Options};
pub use replies::{IDS_PER_MESSAGE, Replies, ReplyError};
pub use request::{Client, Event, Request};
pub use response::{BodyWriter, Respond, Unsent};
#[cfg(feature = "service")]
pub use serve::{Body, CONCURRENCY, GRACEFUL_TIMEOUT, Origin, Serve, serve};
pub use upload::{Early, Upload, UploadError, UploadFault};
pub use websocket::{CONTROL_BYTES_MAX, Frame};

pub use crate::websocket::Opcode;
