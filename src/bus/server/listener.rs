//! Accepting: sockets are set up, counted and given a task each; refused peers are logged without flooding the log.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bind::IpcFile;
use super::driver::Driver;
use super::peer::{Asked, Origin, Peer, PeerId};
use super::{Options, Sink};
use crate::bus::outbox::{Outbox, Scratch};
use crate::bus::stream::Stream;
use crate::drain::Watch;
use crate::metrics::Name;
use crate::sys;
use crate::zmtp::{self, SocketType, Violation};

/// How long accepting rests when the process has no descriptor left: long enough not to spin, short enough not to be
/// noticed by peers that come back every 100 ms anyway.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// One line per address and minute about refused peers.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_mins(1);
/// Addresses remembered for that. With more in one minute the rest go unlogged; they are counted all the same.
const REFUSAL_LOG_ADDRESSES: usize = 1024;

/// A bound socket.
#[derive(Debug)]
pub(in crate::bus) enum Socket {
    Tcp(TcpListener),
    Ipc {
        listener: UnixListener,
        /// Removes the file when the socket goes.
        _file: IpcFile,
    },
}

/// What the tasks of one bound socket share.
pub(super) struct Server {
    role: SocketType,
    name: String,
    options: Options,
    protocol: Arc<zmtp::Options>,
    sink: Rc<dyn Sink>,
    peers: RefCell<BTreeMap<PeerId, Rc<Peer>>>,
    /// Those whose handshake is not done, by age.
    unfinished: RefCell<BTreeMap<PeerId, Rc<Peer>>>,
    buffer: Cell<BytesMut>,
    scratch: RefCell<Scratch>,
    refusals: RefCell<HashMap<Origin, Instant>>,
    accept_failed: Cell<Option<Instant>>,
    stopped: CancellationToken,
    /// Cancelled when the last task is gone.
    closed: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// Stops a running socket. Dropping it changes nothing: the socket goes on until told otherwise.
#[derive(Clone)]
pub struct Listening {
    server: Weak<Server>,
    stopped: CancellationToken,
    closed: CancellationToken,
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listening")
            .field("peers", &self.peer_count())
            .finish_non_exhaustive()
    }
}

impl Listening {
    /// Accepts no more and closes the listening socket, as draining does; peers stay.
    pub fn stop_accepting(&self) {
        self.stopped.cancel();
    }

    /// Accepts no more, and closes every peer in order: see [`Peer::close`].
    pub fn close(&self) {
        self.stop_accepting();
        if let Some(server) = self.server.upgrade() {
            let peers: Vec<_> = server.peers.borrow().values().cloned().collect();
            for peer in peers {
                peer.close();
            }
        }
    }

    /// Lets the peers be read again, after [`Sink::is_full`] has said no.
    pub fn read_on(&self) {
        if let Some(server) = self.server.upgrade() {
            for peer in server.peers.borrow().values() {
                peer.wake();
            }
        }
    }

    /// PUB: queues a message of one frame for every peer that wants what begins so. Who has no room for it does not get it, and is
    /// not told: what is published must bear that.
    pub fn publish(&self, message: &[u8]) {
        if let Some(server) = self.server.upgrade() {
            for peer in server.peers.borrow().values() {
                if peer.is_subscribed_to(message) {
                    // It has no room, or has just gone.
                    let _dropped = peer.send_frames(&[message], 0);
                }
            }
        }
    }

    /// Completes when accepting has ended and every connection is closed.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only waits.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Connections open now, unfinished handshakes and closing ones included.
    pub fn peer_count(&self) -> usize {
        self.server
            .upgrade()
            .map_or(0, |server| server.peers.borrow().len())
    }
}

impl Server {
    pub(super) fn new(
        role: SocketType,
        name: String,
        options: Options,
        topics: Vec<Vec<u8>>,
        sink: Rc<dyn Sink>,
    ) -> Self {
        let protocol = Arc::new(zmtp::Options {
            topics,
            ..options.protocol.clone()
        });
        Self {
            role,
            name,
            options,
            protocol,
            sink,
            peers: RefCell::default(),
            unfinished: RefCell::default(),
            buffer: Cell::default(),
            scratch: RefCell::default(),
            refusals: RefCell::default(),
            accept_failed: Cell::new(None),
            stopped: CancellationToken::new(),
            closed: CancellationToken::new(),
        }
    }

    /// Starts accepting.
    pub(super) fn start(self: Rc<Self>, socket: Socket, watch: &Watch) -> Listening {
        let listening = Listening {
            server: Rc::downgrade(&self),
            stopped: self.stopped.clone(),
            closed: self.closed.clone(),
        };
        let inner = watch.clone();
        watch.spawn_local(async move { self.accept(socket, inner).await });
        listening
    }

    pub(super) fn role(&self) -> SocketType {
        self.role
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn protocol(&self) -> &Arc<zmtp::Options> {
        &self.protocol
    }

    pub(super) fn sink(&self) -> Rc<dyn Sink> {
        Rc::clone(&self.sink)
    }

    pub(super) fn take_buffer(&self) -> BytesMut {
        self.buffer.take()
    }

    pub(super) fn give_buffer(&self, buffer: BytesMut) {
        self.buffer.set(buffer);
    }

    pub(super) fn scratch(&self) -> RefMut<'_, Scratch> {
        self.scratch.borrow_mut()
    }

    pub(super) fn handshake_done(&self, peer: PeerId) {
        self.unfinished.borrow_mut().remove(&peer);
    }

    pub(super) fn forget(&self, peer: PeerId) {
        self.handshake_done(peer);
        self.peers.borrow_mut().remove(&peer);
    }

    /// Counts and, now and then, logs a peer that is closed because of what it sent.
    pub(super) fn refuse(&self, origin: Origin, why: &Violation) {
        Name::PeersRefused.increment();
        if self.may_log(origin) {
            tracing::warn!(socket = %self.name, %origin, "peer refused: {why}");
        } else {
            tracing::debug!(socket = %self.name, %origin, "peer refused: {why}");
        }
    }

    fn may_log(&self, origin: Origin) -> bool {
        let now = Instant::now();
        let mut refusals = self.refusals.borrow_mut();
        if refusals
            .get(&origin)
            .is_some_and(|last| now.duration_since(*last) < REFUSAL_LOG_INTERVAL)
        {
            return false;
        }
        if refusals.len() >= REFUSAL_LOG_ADDRESSES {
            refusals.retain(|_, last| now.duration_since(*last) < REFUSAL_LOG_INTERVAL);
            if refusals.len() >= REFUSAL_LOG_ADDRESSES {
                return false;
            }
        }
        refusals.insert(origin, now);
        true
    }

    async fn accept(self: Rc<Self>, socket: Socket, watch: Watch) {
        loop {
            let accepted = tokio::select! {
                // First, so that nobody is accepted after the end of accepting.
                biased;
                () = watch.draining() => break,
                () = self.stopped.cancelled() => break,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, origin)) => self.admit(stream, origin, &watch),
                Err(error) if sys::is_exhaustion(&error) => {
                    self.log_exhausted(&error);
                    tokio::select! {
                        () = watch.draining() => {}
                        () = self.stopped.cancelled() => {}
                        () = tokio::time::sleep(ACCEPT_BACKOFF) => {}
                    }
                }
                // The connection was gone before it was accepted: nothing to do with the listener.
                Err(error) => tracing::debug!(socket = %self.name, %error, "accepting"),
            }
        }
    }

    fn admit(self: &Rc<Self>, stream: Stream, origin: Origin, watch: &Watch) {
        if self.peers.borrow().len() >= self.options.peers_max {
            // Without a word, so that it comes back.
            Name::PeersRefused.increment();
            if self.may_log(origin) {
                tracing::warn!(socket = %self.name, %origin, limit = self.options.peers_max, "peer refused: too many peers");
            }
            return;
        }
        if let Err(error) = self.set_up(&stream) {
            tracing::debug!(socket = %self.name, %origin, %error, "setting up an accepted connection");
            return;
        }
        let id = super::next_peer_id();
        let outbox = Outbox::new(
            self.options.queue_messages_max,
            self.options.queue_bytes_max,
        );
        let peer = Rc::new(Peer::new(id, origin, outbox));
        self.peers.borrow_mut().insert(id, Rc::clone(&peer));
        let oldest = {
            let mut unfinished = self.unfinished.borrow_mut();
            unfinished.insert(id, Rc::clone(&peer));
            if unfinished.len() > self.options.handshakes_max {
                unfinished.pop_first()
            } else {
                None
            }
        };
        if let Some((_, oldest)) = oldest {
            oldest.ask(Asked::Drop);
        }
        watch.spawn_local(Driver::new(stream, peer, Rc::clone(self)).run());
    }

    fn set_up(&self, stream: &Stream) -> io::Result<()> {
        let socket = match stream {
            Stream::Tcp(stream) => SockRef::from(stream),
            Stream::Unix(stream) => SockRef::from(stream),
        };
        let hands_out = matches!(self.role, SocketType::Push | SocketType::Router);
        if hands_out && self.options.send_buffer_bytes > 0 {
            socket.set_send_buffer_size(self.options.send_buffer_bytes)?;
        }
        if let Stream::Tcp(_) = stream {
            socket.set_tcp_nodelay(true)?;
            if hands_out && self.options.unsent_bytes_max > 0 {
                socket.set_tcp_notsent_lowat(self.options.unsent_bytes_max)?;
            }
            if !self.options.keepalive_idle.is_zero() {
                let keepalive = TcpKeepalive::new()
                    .with_time(self.options.keepalive_idle)
                    .with_interval(self.options.keepalive_interval)
                    .with_retries(self.options.keepalive_probes);
                socket.set_tcp_keepalive(&keepalive)?;
            }
        }
        Ok(())
    }

    fn log_exhausted(&self, error: &io::Error) {
        let now = Instant::now();
        let recent = self
            .accept_failed
            .get()
            .is_some_and(|last| now.duration_since(last) < REFUSAL_LOG_INTERVAL);
        if !recent {
            self.accept_failed.set(Some(now));
            tracing::error!(socket = %self.name, %error, "cannot accept peers");
        }
    }
}

impl Socket {
    pub(in crate::bus) async fn accept(&self) -> io::Result<(Stream, Origin)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address): (TcpStream, _) = listener.accept().await?;
                Ok((
                    Stream::Tcp(stream),
                    Origin::Address(address.ip().to_canonical()),
                ))
            }
            Self::Ipc { listener, .. } => {
                let (stream, _): (UnixStream, _) = listener.accept().await?;
                let pid = stream
                    .peer_cred()?
                    .pid()
                    .and_then(|pid| u32::try_from(pid).ok());
                // 0 is how the kernel shows a process of another pid namespace.
                let origin = pid
                    .filter(|pid| *pid != 0)
                    .map_or(Origin::Unknown, Origin::Process);
                Ok((Stream::Unix(stream), origin))
            }
        }
    }
}
