//! The `lurcher` program: the library's launcher with the built-in handlers.

#[path = "../handlers/mod.rs"]
mod handlers;

use std::process::ExitCode;

fn main() -> ExitCode {
    lurcher::launcher::main(handlers::BUILT_IN)
}
