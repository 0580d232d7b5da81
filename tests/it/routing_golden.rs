//! Integration tests: routing_golden.
