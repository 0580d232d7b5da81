//! ZeroMQ on tokio: the side that binds and the side that connects.
