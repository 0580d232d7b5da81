//! The built-in handlers, written against the public library only, as a stranger would.

mod echo;
mod respond;

use lurcher::launcher::BuiltIn;

/// The table that `lurcher run` looks names up in.
pub(crate) const BUILT_IN: &[BuiltIn] = &[echo::BUILT_IN, respond::BUILT_IN];
