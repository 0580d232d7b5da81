//! `lurcher run`.

use std::process::ExitCode;

/// A handler compiled into the program.
#[derive(Debug)]
pub struct BuiltIn {}

/// Arguments of `lurcher run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn main(_args: Args, _built_in: &'static [BuiltIn]) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
