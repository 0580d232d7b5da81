//! The `lurcher` program: the library's launcher with the built-in handlers.

#[path = "../handlers/mod.rs"]
mod handlers;

use std::process::ExitCode;

/// Messages are allocated by one thread and freed by another, libzmq's and ours, over which the system's allocator makes them quarrel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lurcher::launcher::main(handlers::BUILT_IN)
}
