//! ZeroMQ on tokio, over our own ZMTP: the side that binds and sees its peers ([`server`]), and the side that connects ([`client`]).
//! It moves messages and knows nothing of what is in them.

/// The property by which a server's PUSH and SUB say in their READY that they are a Lurcher's. Its value is the version of what
/// Lurchers agree on beyond Mongrel2's protocol: `1`, or [`FEED`].
pub const SERVER_PROPERTY: &str = "X-Lurcher";

/// The value of [`SERVER_PROPERTY`] by which sockets say that they do what a Lurcher's do, and that what comes by them is another
/// server's, which may be a Mongrel2.
pub const FEED: &str = "feed";

/// The property by which the PULL and the XPUB of one handler say that they belong together: 32 hexadecimal digits.
pub const HANDLER_PROPERTY: &str = "X-Lurcher-Handler";

/// The property by which the PULL and the XPUB of a broker say that they are one: its name. Another process of that name takes over
/// what it had open.
pub const BROKER_PROPERTY: &str = "X-Lurcher-Broker";

pub mod client;
pub mod server;

mod outbox;
mod outgoing;
mod stream;
