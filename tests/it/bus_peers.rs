//! Integration tests: bus_peers.
