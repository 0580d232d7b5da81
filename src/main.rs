//! The `lurcher` program: the library's launcher with the built-in handlers.

#[path = "../handlers/mod.rs"]
mod handlers;

use std::process::ExitCode;

/// Messages come and go by the thousand, in all sizes, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lurcher::launcher::main(handlers::BUILT_IN)
}
