//! The tnetstring codec.
