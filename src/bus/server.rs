//! Sockets that bind and see their peers.
