//! The Mongrel2 messages between a front and its handlers.
