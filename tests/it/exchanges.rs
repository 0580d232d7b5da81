//! Integration tests: exchanges.
