//! What several integration tests need: temporary directories, free addresses, raw HTTP clients, handler peers.
