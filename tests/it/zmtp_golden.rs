//! Integration tests: zmtp_golden.
