//! ZeroMQ on tokio: the side that binds and the side that connects.

pub mod client;
pub mod server;
