//! The program's own log on stderr.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Installs the log. `directives` is what `--log` or `LURCHER_LOG` said; the default is `info`.
pub(super) fn install(directives: Option<&str>) {
    let filter = EnvFilter::builder().parse_lossy(directives.unwrap_or("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
