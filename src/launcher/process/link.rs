//! The socket between a jail and its parent, or a worker and its supervisor: whole messages, and descriptors beside them.
//!
//! It begins as a blocking one, before there is a runtime, and goes on as one of the runtime. Nothing is queued: a message
//! is written before the next one is made.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as Blocking;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::message::{self, Unexpected};
use crate::sys;

/// What is read at once.
const READ_BYTES: usize = 64 << 10;

/// Sends a message and, before it, these descriptors.
pub(in crate::launcher) fn send(
    socket: &Blocking,
    message: &[u8],
    with: &[BorrowedFd<'_>],
) -> io::Result<()> {
    sys::send_descriptors(socket.as_fd(), with)?;
    (&mut &*socket).write_all(message)
}

/// Receives a message of at most `max` bytes, and what was sent with it. Nothing that comes after it is read.
pub(in crate::launcher) fn receive(
    socket: &Blocking,
    max: usize,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let descriptors = sys::receive_descriptors(socket.as_fd())?;
    let mut bytes = Vec::new();
    // The length, up to its colon; then what it says, and the type.
    while bytes.last() != Some(&b':') {
        let mut byte = [0];
        (&mut &*socket).read_exact(&mut byte)?;
        bytes.extend_from_slice(&byte);
        if bytes.len() > 10 {
            return Err(unexpected(Unexpected("no length".to_owned())));
        }
    }
    let digits = String::from_utf8_lossy(&bytes);
    let length: usize = digits
        .trim_end_matches(':')
        .parse()
        .ok()
        .filter(|&length| length <= max)
        .ok_or_else(|| unexpected(Unexpected("a length that is too large".to_owned())))?;
    let head = bytes.len();
    bytes.resize(head + length + 1, 0);
    let rest = bytes.get_mut(head..).unwrap_or_default();
    (&mut &*socket).read_exact(rest)?;
    Ok((bytes, descriptors))
}

/// One end in a runtime.
#[derive(Debug)]
pub(in crate::launcher) struct Link {
    stream: UnixStream,
    read: Vec<u8>,
    max: usize,
}

impl Link {
    /// Goes on with a socket on which a number of whole messages have passed; `max` bounds what is received.
    pub(in crate::launcher) fn new(socket: Blocking, max: usize) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(socket)?,
            read: Vec::new(),
            max,
        })
    }

    /// Sends a message, without descriptors.
    ///
    /// # Cancel safety
    ///
    /// None: part of it may have been sent.
    pub(in crate::launcher) async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.stream.write_all(message).await
    }

    /// Sends a message and, before it, these descriptors.
    ///
    /// # Errors
    ///
    /// Also when the other side has not read what was sent before: it has to answer each of these.
    ///
    /// # Cancel safety
    ///
    /// None: part of it may have been sent.
    pub(in crate::launcher) async fn send_with(
        &mut self,
        message: &[u8],
        with: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        sys::send_descriptors(self.stream.as_fd(), with)?;
        self.send(message).await
    }

    /// The next message; `None` when the other side has gone.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was read is kept.
    pub(in crate::launcher) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(length) = message::whole(&self.read, self.max).map_err(unexpected)? {
                let rest = self.read.split_off(length);
                return Ok(Some(std::mem::replace(&mut self.read, rest)));
            }
            self.read.reserve(READ_BYTES);
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// A message that is none, as an error of the socket.
pub(super) fn unexpected(error: Unexpected) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::super::message::{OUT_OF_JAIL_MAX, OutOf};
    use super::*;

    #[tokio::test]
    async fn messages_pass_first_blocking_and_then_in_a_runtime() {
        let (one, other) = Blocking::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&one, &OutOf::Entered.encode(), &[file.as_fd()]).unwrap();
        (&mut &one).write_all(&OutOf::Read.encode()).unwrap();
        let (bytes, with) = receive(&other, OUT_OF_JAIL_MAX).unwrap();
        assert_eq!((OutOf::decode(&bytes), with.len()), (Ok(OutOf::Entered), 1));
        let mut one = Link::new(one, OUT_OF_JAIL_MAX).unwrap();
        let mut other = Link::new(other, OUT_OF_JAIL_MAX).unwrap();
        let two = [OutOf::Ready.encode(), OutOf::Stopping.encode()].concat();
        let (first, rest) = two.split_at(3);
        one.send(first).await.unwrap();
        assert_eq!(
            OutOf::decode(&other.next().await.unwrap().unwrap()),
            Ok(OutOf::Read)
        );
        one.send(rest).await.unwrap();
        for expected in [OutOf::Ready, OutOf::Stopping] {
            assert_eq!(
                OutOf::decode(&other.next().await.unwrap().unwrap()),
                Ok(expected)
            );
        }
        drop(one);
        assert_eq!(other.next().await.unwrap(), None);
    }

    #[test]
    fn a_message_that_is_too_large_is_not_read() {
        let (one, other) = Blocking::pair().unwrap();
        send(&one, b"2000:", &[]).unwrap();
        assert!(receive(&other, OUT_OF_JAIL_MAX).is_err());
        send(&one, b"00000000000000", &[]).unwrap();
        assert!(receive(&other, OUT_OF_JAIL_MAX).is_err());
    }
}
