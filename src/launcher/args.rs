//! What was typed: the command line as clap reads it, without any look at files or the system.

use clap::{Parser, Subcommand};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "lurcher",
    version,
    about,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub(super) struct Cli {
    /// What is logged to stderr: error, warn, info, debug, trace, or directives as `lurcher::bus=debug` [default: info]
    #[arg(long, global = true, value_name = "LEVEL", env = "LURCHER_LOG")]
    pub(super) log: Option<String>,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the HTTP front of a Mongrel2 configuration
    Serve(super::serve::Args),
    /// Run a handler, built in or your own, and keep its processes
    Run(super::run::Args),
    /// Stand between servers and workers, and give each request to the least busy worker
    Broker(super::broker::Args),
    /// Load, check, show and match configurations: m2sh's work
    Config(super::config::Args),
    /// Ask a running server, or have it do something, by its control port
    Control(super::control::Args),
    /// Say how a running server does, or a `lurcher run`
    Status(super::control::StatusArgs),
    /// Say whether a server runs; the exit status tells too
    Running(super::control::Server),
    /// Have a running server reopen its logs and read its configuration again
    Reload(super::control::Server),
    /// Have a running server finish what is open and end; a second time: end at once
    Stop(super::control::Server),
    /// Start a front with handlers, to look at
    Demo(super::demo::Args),
}
