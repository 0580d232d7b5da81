//! Sockets that connect, by libzmq.
