//! Whether a connecting socket is connected, as libzmq's monitor tells it.
//!
//! libzmq hides connections from its sockets, and two things need them all the same: an XPUB whose subscription counts for one
//! connection only, and a PULL that is to be emptied before it is closed. What they make of it is their business.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Context, is_again};

/// What has become of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// There is one, on this descriptor, which is libzmq's and may be closed at any time. Its handshake is not done yet.
    Up(RawFd),
    /// It has ended. All that came on it can be received already.
    Down,
}

/// The socket through which libzmq tells.
pub(super) struct Monitor(zmq::Socket);

impl Monitor {
    /// Makes libzmq tell of connections made and lost by this socket. What it tells must be read: libzmq keeps a thousand events
    /// and then waits.
    pub(super) fn of(context: &Context, socket: &zmq::Socket) -> zmq::Result<Self> {
        static MONITORS: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "inproc://monitor-{}",
            MONITORS.fetch_add(1, Ordering::Relaxed)
        );
        let events = zmq::SocketEvent::CONNECTED as i32 | zmq::SocketEvent::DISCONNECTED as i32;
        socket.monitor(&name, events)?;
        let monitor = context.0.socket(zmq::PAIR)?;
        monitor.set_linger(0)?;
        monitor.connect(&name)?;
        Ok(Self(monitor))
    }

    /// The socket, for its descriptor.
    pub(super) fn socket(&self) -> &zmq::Socket {
        &self.0
    }

    /// The next change that was not told yet.
    pub(super) fn next(&self) -> io::Result<Option<Change>> {
        loop {
            let frames = match self.0.recv_multipart(zmq::DONTWAIT) {
                Ok(frames) => frames,
                Err(zmq::Error::EINTR) => continue,
                Err(error) if is_again(error) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            // Two bytes of event and four of its value.
            let Some(&[first, second, value @ ..]) =
                frames.first().and_then(|frame| frame.first_chunk::<6>())
            else {
                continue;
            };
            let event = u16::from_ne_bytes([first, second]);
            return Ok(Some(if event == zmq::SocketEvent::CONNECTED as u16 {
                Change::Up(RawFd::from_ne_bytes(value))
            } else {
                Change::Down
            }));
        }
    }
}
