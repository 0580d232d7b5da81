//! Where standard input, output and error of a process in the background go.

use std::fs::File;
use std::io;

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// A file that swallows everything, opened as long as there is a `/dev`.
#[derive(Debug)]
pub(super) struct Null(File);

impl Null {
    pub(super) fn open() -> io::Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/null")?;
        Ok(Self(file))
    }

    /// Nothing is read any more.
    pub(super) fn for_input(&self) -> io::Result<()> {
        Ok(dup2_stdin(&self.0)?)
    }

    /// Nothing of what is written arrives.
    pub(super) fn for_output(&self) -> io::Result<()> {
        dup2_stdout(&self.0)?;
        Ok(dup2_stderr(&self.0)?)
    }
}

/// Nothing of what is written arrives, in a process whose standard input is such a file already: in a jail there is no other.
pub(super) fn silence() -> io::Result<()> {
    let input = io::stdin();
    dup2_stdout(&input)?;
    Ok(dup2_stderr(&input)?)
}

/// What is written goes to the end of this file: a last word of the runtime is then not lost.
pub(in crate::launcher) fn output_to(file: &File) -> io::Result<()> {
    dup2_stdout(file)?;
    Ok(dup2_stderr(file)?)
}
