//! What several integration tests need: addresses, programs, raw HTTP clients, handler peers, recorded configurations.
//!
//! Nothing here judges; it only starts, sends, waits and hands back. Every wait has an end and says what it waited for.

pub(crate) mod client;
pub(crate) mod dealer;
pub(crate) mod exposition;
pub(crate) mod front;
pub(crate) mod golden;
pub(crate) mod handler;
pub(crate) mod peer;
pub(crate) mod program;
pub(crate) mod servers;
pub(crate) mod tls;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a test waits for something that must happen. Long, because machines are loaded; never reached when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A directory of its own for one test, gone with the value.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("lurcher-it-")
        .tempdir()
        .expect("a temporary directory")
}

/// A port nobody listens on now.
///
/// For servers that cannot bind port 0 (Mongrel2, fixed handler specs). Ports are taken in turn from below the range
/// the kernel gives to outgoing connections, so neither another test of this process nor a client socket takes it
/// meanwhile.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let seed = std::process::id().wrapping_mul(61);
    for _ in 0..10_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(20_000 + seed.wrapping_add(step) % 12_000).expect("below 32768");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 32000");
}
