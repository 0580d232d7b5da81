//! ZeroMQ's wire protocol as a pure codec.
