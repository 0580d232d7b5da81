//! Integration tests: http1_suite.
