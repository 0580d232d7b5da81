//! The handler library.
