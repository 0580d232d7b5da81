//! `lurcher serve`.

use std::process::ExitCode;

/// Arguments of `lurcher serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn main(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
