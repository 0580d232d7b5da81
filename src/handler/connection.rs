//! Connecting, receiving and stopping. What is sent back is in [`super::replies`].

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context as Waker, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::flow::Receiving;
use super::observer::Observer;
use super::publisher::Publisher;
use super::replies::Replies;
use super::request::Request;
use super::upload::Announced;
use crate::bus::client::{self, Context, OpenError, Receiver};
use crate::endpoint::{Endpoint, EndpointError};
use crate::wire;

/// Requests taken out of a socket at once.
const BATCH_MAX: usize = 256;

/// Messages taken at the end from a server that would not stop pushing.
const LAST_SWEEP_MAX: usize = 10_000;

/// Where to connect, and how. Specs are named from the server's side, as in its configuration.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Where servers push requests from: the `send_spec` of each.
    pub send_specs: Vec<Endpoint>,
    /// Where servers take replies: the `recv_spec` of each, in the order of `send_specs`. Default: empty, which means the
    /// send spec with its port one down.
    pub recv_specs: Vec<Endpoint>,
    /// The handler's own ident: the identity of its sockets where a spec names none. Servers do not care. Default: none.
    pub ident: Option<String>,
    /// Requests that libzmq keeps received and unread per server before the server must wait. Default: 1,000.
    pub requests_received_max: u16,
    /// Replies that libzmq keeps unsent per server before sending waits. Default: 1,000.
    pub replies_queued_max: u16,
    /// The largest message taken, in bytes; libzmq cuts a server that sends a larger one off *for good*, so leave it well
    /// above the server's own limit. Default: 1 GiB.
    pub message_bytes_max: u64,
    /// How long a server's subscription is waited for, before the first request and after a restart of the server; then
    /// replies are dropped until it subscribes. Default: 1 s.
    pub subscription_timeout: Duration,
    /// When stopping: a server that has pushed nothing for so long has nothing more in flight. Default: 100 ms.
    pub quiet_time: Duration,
    /// When stopping: the longest time to go on receiving from servers that do not become quiet. What they push after that
    /// is lost, since nothing can to ask a PUSH socket to stop. Default: 5 s.
    pub drain_timeout: Duration,
    /// How long unsent replies are kept trying at the end. Default: 5 s.
    pub linger: Duration,
    /// Who is told of each request that begins and ends. Default: nobody.
    pub observer: Option<Arc<dyn Observer>>,
    /// The directory that the servers are locked into (`chroot` in their configuration): names of uploads are below it. Default:
    /// none; then relative names are below this process's working directory.
    pub chroot: Option<PathBuf>,
    /// The servers' setting `upload.temp_store` (`/var/up/body.XXXXXX`): then no upload with a name of another form is believed, and
    /// one of that form also when another handler has heard of its beginning, as happens where a Mongrel2 deals to several.
    /// Default: none; then an upload is believed only where this connection was told of its beginning, since the name alone proves
    /// nothing.
    pub upload_store: Option<PathBuf>,
}

impl Options {
    /// The defaults, for servers with these send specs.
    pub fn new(send_specs: impl IntoIterator<Item = Endpoint>) -> Self {
        let bus = client::Options::default();
        Self {
            send_specs: send_specs.into_iter().collect(),
            recv_specs: Vec::new(),
            ident: None,
            requests_received_max: bus.received_max,
            replies_queued_max: bus.queued_max,
            message_bytes_max: bus.message_bytes_max,
            subscription_timeout: Duration::from_secs(1),
            quiet_time: Duration::from_millis(100),
            drain_timeout: Duration::from_secs(5),
            linger: bus.linger,
            observer: None,
            chroot: None,
            upload_store: None,
        }
    }

    /// The defaults, for one send spec or several with commas between them.
    ///
    /// # Errors
    ///
    /// When one of them is no spec.
    pub fn to(send_specs: &str) -> Result<Self, EndpointError> {
        let specs: Result<Vec<Endpoint>, _> = send_specs.split(',').map(str::parse).collect();
        Ok(Self::new(specs?))
    }

    /// Whether specs come in pairs, as [`Connection::connect`] needs them.
    ///
    /// # Errors
    ///
    /// [`ConnectError::RecvSpec`] and [`ConnectError::Count`].
    pub fn check(&self) -> Result<(), ConnectError> {
        self.pairs().map(drop)
    }

    /// The servers as (`send_spec`, `recv_spec`); recv specs are inferred where none are given.
    ///
    /// # Errors
    ///
    /// As [`Options::check`].
    pub fn pairs(&self) -> Result<Vec<(Endpoint, Endpoint)>, ConnectError> {
        let send = self.send_specs.iter().cloned();
        let recv: Vec<Endpoint> = if self.recv_specs.is_empty() {
            let inferred = self.send_specs.iter().map(|spec| {
                spec.one_port_down().ok_or_else(|| ConnectError::RecvSpec {
                    send_spec: spec.clone(),
                })
            });
            inferred.collect::<Result<_, _>>()?
        } else {
            self.recv_specs.clone()
        };
        if self.send_specs.is_empty() || self.send_specs.len() != recv.len() {
            return Err(ConnectError::Count {
                send: self.send_specs.len(),
                recv: recv.len(),
            });
        }
        Ok(send.zip(recv).collect())
    }
}

/// Why a connection was not made. A server that is not there (yet) is no reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A recv spec cannot be inferred from a send spec that has no port.
    #[error("{send_spec} has no port that its recv spec could be one below: name the recv spec")]
    RecvSpec {
        /// The send spec.
        send_spec: Endpoint,
    },
    /// Specs come in pairs.
    #[error("{send} send specs do not go with {recv} recv specs")]
    Count {
        /// Number of send specs.
        send: usize,
        /// Number of recv specs.
        recv: usize,
    },
    /// A socket could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A socket broke while the subscription was awaited.
    #[error("waiting for {endpoint} to subscribe to replies")]
    Subscription {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A connection to one server or several: receives requests, and dereferences to [`Replies`] for the way back.
///
/// Needs a tokio runtime of any flavour with I/O and time enabled. Dropping it closes its sockets; when it and every
/// [`super::Client`], [`Request`] and [`Replies`] of it are gone, dropping the last blocks while unsent replies are written,
/// at most [`Options::linger`]: use [`Connection::finish`] where that matters.
#[derive(Debug)]
pub struct Connection {
    replies: Replies,
    sources: Vec<Source>,
    /// The source whose turn is next.
    next: usize,
    /// Taken out of the sockets, not yet asked for.
    received: VecDeque<(Arc<Publisher>, Bytes)>,
    /// The last batch did not empty its socket: others get a turn before the next.
    hasty: bool,
    stop: StopHandle,
    /// Whether anybody calls [`Connection::recv`].
    receiving: Arc<Receiving>,
    /// Stopping since; the latest moment to receive anything.
    stops_by: Option<Instant>,
    malformed: u64,
    last_sender: Bytes,
    uploads: Announced,
    options: Options,
    /// Dropped after the sockets.
    context: Context,
}

#[derive(Debug)]
struct Source {
    receiver: Receiver,
    server: Arc<Publisher>,
}

/// Stops a [`Connection`] from elsewhere. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StopHandle(CancellationToken);

impl StopHandle {
    /// As [`Connection::shutdown`]. Calling it again changes nothing.
    pub fn stop(&self) {
        self.0.cancel();
    }
}

impl Connection {
    /// Connects: first the way back, then, when the servers have subscribed (or [`Options::subscription_timeout`] has
    /// passed, with a warning), the way of requests, so that no reply is lost for being early. Servers that are not there
    /// are connected to when they come.
    ///
    /// # Errors
    ///
    /// When specs are of no use; never because nobody is there.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing was received yet.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        let pairs = options.pairs()?;
        let mut bus = client::Options::default();
        bus.identity.clone_from(&options.ident);
        bus.received_max = options.requests_received_max;
        bus.queued_max = options.replies_queued_max;
        bus.message_bytes_max = options.message_bytes_max;
        bus.linger = options.linger;
        let context = Context::new();
        let patience = options.subscription_timeout;
        let deadline = Instant::now() + patience;
        let receiving = Arc::new(Receiving::default());
        let mut servers = Vec::with_capacity(pairs.len());
        for (_, recv_spec) in &pairs {
            let socket = client::Publisher::connect(&context, recv_spec, &bus, patience)?;
            servers.push(Arc::new(Publisher::new(
                socket,
                options.observer.clone(),
                Arc::clone(&receiving),
            )));
        }
        for server in &servers {
            let subscribed = server.subscribed(deadline).await;
            let fail = |source| ConnectError::Subscription {
                endpoint: server.endpoint().clone(),
                source,
            };
            if !subscribed.map_err(fail)? {
                tracing::warn!(endpoint = %server.endpoint(), "server has not subscribed to replies yet, going on without");
            }
        }
        let mut sources = Vec::with_capacity(pairs.len());
        for ((send_spec, _), server) in pairs.iter().zip(&servers) {
            let receiver = Receiver::connect(&context, send_spec, &bus)?;
            sources.push(Source {
                receiver,
                server: Arc::clone(server),
            });
        }
        Ok(Self {
            replies: Replies::new(servers),
            sources,
            next: 0,
            received: VecDeque::new(),
            hasty: false,
            stop: StopHandle::default(),
            receiving,
            stops_by: None,
            malformed: 0,
            last_sender: Bytes::new(),
            uploads: Announced::new(options.chroot.as_deref(), options.upload_store.as_deref()),
            options,
            context,
        })
    }

    /// Receives the next request or notice, from all servers in turn; `None` after [`Connection::shutdown`], when
    /// everything that had been pushed was returned. What cannot be decoded is logged and left out.
    ///
    /// # Cancel safety
    ///
    /// Safe: a request is taken only by a future that returns it.
    pub async fn recv(&mut self) -> Option<Request> {
        loop {
            while let Some((server, message)) = self.received.pop_front() {
                if let Some(request) = self.decode(server, message) {
                    return Some(request);
                }
            }
            let receiving = Arc::clone(&self.receiving);
            let _receives = receiving.begin();
            if !self.refill().await {
                receiving.end();
                return None;
            }
        }
    }

    /// Receives at least one request and what else is there, at most `max`, into `requests`; returns how many, 0 where
    /// [`Connection::recv`] would return `None` (or when `max` is 0).
    ///
    /// # Cancel safety
    ///
    /// Safe: requests are added only by a call that completes.
    pub async fn recv_many(&mut self, requests: &mut Vec<Request>, max: usize) -> usize {
        if max == 0 {
            return 0;
        }
        let Some(first) = self.recv().await else {
            return 0;
        };
        requests.push(first);
        let mut count = 1;
        while count < max
            && let Some((server, message)) = self.received.pop_front()
        {
            if let Some(request) = self.decode(server, message) {
                requests.push(request);
                count += 1;
            }
        }
        count
    }

    /// Changes [`Options::subscription_timeout`] for what comes.
    pub fn set_subscription_timeout(&mut self, timeout: Duration) {
        self.options.subscription_timeout = timeout;
    }

    /// Begins to stop: [`Connection::recv`] goes on returning what servers have pushed until they have been quiet for
    /// [`Options::quiet_time`] (at the latest after [`Options::drain_timeout`]), then closes the sockets for requests and
    /// returns `None`. Replies work until the connection is dropped.
    ///
    /// A server with no other handler holds new requests back until one comes. One with others goes on dealing to all until
    /// the sockets are closed, and Mongrel2 discards what it dealt to a closed one: let it be quiet if you can.
    pub fn shutdown(&self) {
        self.stop.stop();
    }

    /// A handle that does [`Connection::shutdown`] from any task or thread.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// The way back by itself, to reply from other tasks.
    pub fn replies(&self) -> Replies {
        self.replies.clone()
    }

    /// Where the server's replies go to, for each server.
    pub fn recv_specs(&self) -> impl Iterator<Item = &Endpoint> {
        self.replies
            .servers()
            .iter()
            .map(|server| server.endpoint())
    }

    /// Closes everything and waits until replies are written, at most [`Options::linger`]. What was received and not asked
    /// for is dropped: [`Connection::shutdown`] first.
    ///
    /// # Cancel safety
    ///
    /// Safe: the writing goes on in the background.
    pub async fn finish(self) {
        let context = self.context.clone();
        drop(self);
        context.close().await;
    }

    fn decode(&mut self, server: Arc<Publisher>, message: Bytes) -> Option<Request> {
        match wire::request::Request::decode(message) {
            Ok(message) => {
                if message.sender != self.last_sender || self.sources.len() > 1 {
                    self.learn(&message.sender, &server);
                }
                server.received(&message);
                let upload = self.uploads.look(&message, Arc::as_ptr(&server) as usize);
                Some(Request::new(message, server, upload))
            }
            Err(error) => {
                self.malformed += 1;
                // A server that sends rubbish sends much of it: the log gets the 1st, 2nd, 4th, 8th, ….
                if self.malformed.is_power_of_two() {
                    let count = self.malformed;
                    tracing::warn!(%error, count, replies = %server.endpoint(), "dropped a malformed message from a server");
                }
                None
            }
        }
    }

    fn learn(&mut self, sender: &Bytes, server: &Arc<Publisher>) {
        if self.replies.learn(sender, server) && server.would_pass(sender) == Some(false) {
            tracing::warn!(
                sender = %sender.escape_ascii(), replies = %server.endpoint(),
                "the server's recv_ident does not match its send_ident: replies will not reach it"
            );
        }
        if *sender != self.last_sender {
            self.last_sender = Bytes::copy_from_slice(sender);
        }
    }

    /// Waits for messages; false when there will be none any more. Takes nothing unless it completes.
    async fn refill(&mut self) -> bool {
        if self.sources.is_empty() {
            return false;
        }
        if self.hasty {
            self.hasty = false;
            tokio::task::yield_now().await;
        }
        if self.stops_by.is_none() {
            let stop = self.stop.0.clone();
            tokio::select! {
                // First the cheap look at the flag: a flood must not hide it.
                biased;
                () = stop.cancelled() => {}
                () = poll_fn(|cx| self.poll_refill(cx)) => return true,
            }
        }
        let now = Instant::now();
        let stops_by = *self
            .stops_by
            .get_or_insert(now + self.options.drain_timeout);
        if now < stops_by {
            let quiet_by = stops_by.min(now + self.options.quiet_time);
            if tokio::time::timeout_at(quiet_by, poll_fn(|cx| self.poll_refill(cx)))
                .await
                .is_ok()
            {
                return true;
            }
        } else {
            tracing::warn!("servers go on pushing requests: closing all the same");
        }
        for mut source in std::mem::take(&mut self.sources) {
            for _ in 0..LAST_SWEEP_MAX {
                let Ok(Some(message)) = source.receiver.try_recv() else {
                    break;
                };
                self.received
                    .push_back((Arc::clone(&source.server), message));
            }
        }
        !self.received.is_empty()
    }

    fn poll_refill(&mut self, cx: &mut Waker<'_>) -> Poll<()> {
        let Self {
            sources,
            received,
            next,
            ..
        } = self;
        let count = sources.len();
        for at in (0..count).map(|offset| (*next + offset) % count) {
            let Some(Source { receiver, server }) = sources.get_mut(at) else {
                continue;
            };
            let polled = receiver.poll_recv_many(cx, BATCH_MAX, &mut |message| {
                received.push_back((Arc::clone(server), message));
            });
            match polled {
                Poll::Pending => continue,
                Poll::Ready(Ok(_)) => {
                    if let Err(error) = server.expect(self.options.subscription_timeout) {
                        tracing::error!(%error, replies = %server.endpoint(), "socket for replies is broken");
                    }
                }
                Poll::Ready(Err(error)) => {
                    // libzmq has no such errors for a socket that is used as it should be.
                    tracing::error!(%error, requests = %receiver.endpoint(), "socket for requests is broken, closing it");
                    sources.remove(at);
                    self.hasty = true;
                    return Poll::Ready(());
                }
            }
            self.hasty = !receiver.is_drained();
            *next = at + 1;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Writers that are left wait for nothing that can come.
        self.receiving.end();
    }
}

impl Deref for Connection {
    type Target = Replies;

    fn deref(&self) -> &Replies {
        &self.replies
    }
}
