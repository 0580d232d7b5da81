//! Integration tests: handler_library.
