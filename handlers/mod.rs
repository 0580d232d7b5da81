//! The built-in handlers, written against the public library only, as a stranger would.

mod chat;
mod demo_page;
mod departed;
mod echo;
mod exchanges;
mod fastcgi;
mod files;
mod http;
mod python;
mod respond;
mod ticker;

use lurcher::launcher::BuiltIn;

/// The table that `lurcher run` looks names up in.
pub(crate) const BUILT_IN: &[BuiltIn] = &[
    echo::BUILT_IN,
    http::BUILT_IN,
    python::BUILT_IN,
    respond::BUILT_IN,
    chat::BUILT_IN,
    files::BUILT_IN,
    fastcgi::BUILT_IN,
    ticker::BUILT_IN,
    demo_page::BUILT_IN,
];
