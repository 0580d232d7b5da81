//! The handler library: take requests from a Mongrel2 or Lurcher server, and answer them whenever you like, in as many
//! pieces as you like, to one browser or to a hundred at once.
//!
//! A [`Connection`] receives [`Request`]s; its reply methods ([`Replies`], to which it dereferences) answer them. A
//! [`Client`] is a handle on one browser, cheap to clone, to send to from any task. Both protocols are understood (JSON and
//! tnetstring), several servers may be served at once, and lost servers are connected to again by libzmq.
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
//! What happens to replies is worth knowing. They wait while the server does not read (backpressure); they are dropped when
//! the server is gone, since its clients are gone with it. None is lost at the start: a connection waits for the server's
//! subscription before it takes the first request.
//!
//! WebSocket clients come as [`Event::WebSocketHandshake`], which [`Replies::reply_handshake`] accepts, and then as one
//! [`Event::WebSocketFrame`] for each message; [`Replies::reply_websocket`] sends to one of them, [`Replies::deliver_websocket`] to many.
//!
//! This part has whole replies, raw pieces and WebSocket. Streaming responses, uploads and tower services come on top.

mod connection;
mod control;
mod http;
mod names;
mod replies;
mod request;
mod source;
mod websocket;

pub use connection::{ConnectError, Connection, Options, Server, StopHandle};
pub use http::HttpError;
pub use names::Lookup;
pub use replies::{IDS_PER_MESSAGE, Replies, ReplyError};
pub use request::{Client, Event, Request};
pub use websocket::{CONTROL_BYTES_MAX, Frame};

pub use crate::websocket::Opcode;
