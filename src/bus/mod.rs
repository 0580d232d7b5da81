//! ZeroMQ on tokio: the side that binds and sees its peers ([`server`], over our own ZMTP), and the side that connects
//! ([`client`], by libzmq). It moves messages and knows nothing of what is in them.

pub mod client;
pub mod server;
