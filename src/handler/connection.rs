//! Connecting, receiving and stopping. What is sent back is in [`super::replies`].

use std::future::poll_fn;
use std::ops::Deref;
use std::sync::Arc;
use std::task::{Context as Waker, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::broker::Introduction;
use super::flow::Receiving;
use super::names::{Found, Names};
use super::options::{ConnectError, Options};
use super::publisher::{Publisher, Way};
use super::replies::Replies;
use super::request::Request;
use super::source::{Incoming, Received, Source, tell_broken};
use super::upload::Announced;
use crate::bus::client::{self, Context};
use crate::endpoint::{Endpoint, Transport};
use crate::wire::request::{Kind, Notice};
use crate::wire::{self, ConnId, Protocol};

/// Requests taken out of a socket at once.
const BATCH_MAX: usize = 256;

/// How often the leaving of servers is looked at, beside what they send: for limits, and for the end of their lag.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A connection to one server or several, or to brokers: receives requests, and dereferences to [`Replies`] for the way back.
///
/// Needs a tokio runtime of any flavour with I/O and time enabled. Dropping it closes its sockets; when it and every
/// [`super::Client`], [`Request`] and [`Replies`] of it are gone, dropping the last blocks while unsent replies are written,
/// at most [`Options::linger`]: use [`Connection::finish`] where that matters.
#[derive(Debug)]
pub struct Connection {
    replies: Replies,
    sources: Vec<Source>,
    /// What all sockets have in common.
    bus: client::Options,
    names: Names,
    /// Addresses that were looked up, and nothing done about them yet.
    found: Option<Found>,
    /// What brokers are told.
    introduction: Introduction,
    /// The source whose turn is next.
    next: usize,
    /// Taken out of the sockets, not yet asked for.
    received: Received,
    /// The last batch did not empty its socket: others get a turn before the next.
    hasty: bool,
    stop: StopHandle,
    /// Whether anybody calls [`Connection::recv`].
    receiving: Arc<Receiving>,
    /// What says that all have pushed their last request, made once.
    announced: Option<Request>,
    told_drained: bool,
    malformed: u64,
    last_sender: Bytes,
    uploads: Announced,
    options: Options,
    /// Dropped after the sockets.
    context: Context,
}

/// Stops a [`Connection`] from elsewhere. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StopHandle {
    drain: CancellationToken,
    stop: CancellationToken,
}

impl StopHandle {
    /// As [`Connection::drain`]. Calling it again changes nothing.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// As [`Connection::shutdown`]. Calling it again changes nothing.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

/// A server of a [`Connection`].
#[derive(Debug, Clone)]
pub struct Server {
    send_spec: Endpoint,
    recv_spec: Endpoint,
    is_lurcher: bool,
}

impl Server {
    /// Whether it is a broker, with any number of servers behind it.
    pub fn is_broker(&self) -> bool {
        self.send_spec.is_broker()
    }

    /// Where its requests come from.
    pub fn send_spec(&self) -> &Endpoint {
        &self.send_spec
    }

    /// Where its replies go to.
    pub fn recv_spec(&self) -> &Endpoint {
        &self.recv_spec
    }

    /// Whether it has said, with its subscription, that it is a Lurcher; false before it has subscribed. One may come in place of
    /// another while the connection lives.
    pub fn is_lurcher(&self) -> bool {
        self.is_lurcher
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
        let mut pairs = options.pairs()?;
        let names = Names::of(
            &mut pairs,
            Arc::clone(&options.lookup),
            options.lookup_interval,
        );
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
        let introduction = introduction(&options);
        let mut sources = Vec::with_capacity(pairs.len());
        for (send_spec, recv_spec) in &pairs {
            let specs = (send_spec, recv_spec);
            let publisher = passed(&options, &receiving);
            sources.push(Source::connect(
                &context,
                specs,
                &bus,
                patience,
                publisher,
                &introduction,
            )?);
        }
        let servers = sources.iter().map(|source| Arc::clone(&source.server));
        let mut connection = Self {
            replies: Replies::new(servers.collect()),
            sources,
            bus,
            names,
            found: None,
            introduction,
            next: 0,
            received: Received::new(),
            hasty: false,
            stop: StopHandle::default(),
            receiving,
            uploads: Announced::new(options.chroot.as_deref(), options.upload_store.as_deref()),
            announced: None,
            told_drained: false,
            malformed: 0,
            // No sender yet: what stands here must be one, and means nothing.
            last_sender: Bytes::from_static(b"-"),
            options,
            context,
        };
        connection.find_names(deadline).await;
        for Source { server, .. } in &connection.sources {
            if let Some(link) = server.link() {
                let welcomed = link.welcomed(deadline).await;
                let endpoint = server.endpoint();
                if !welcomed.map_err(|reason| refused(endpoint, reason))? {
                    tracing::warn!(broker = %endpoint, "broker has not answered yet, going on without");
                }
                continue;
            }
            let subscribed = server.subscribed(deadline).await;
            let fail = |source| ConnectError::Subscription {
                endpoint: server.endpoint().clone(),
                source,
            };
            if !subscribed.map_err(fail)? {
                tracing::warn!(endpoint = %server.endpoint(), "server has not subscribed to replies yet, going on without");
            }
        }
        for source in &mut connection.sources {
            source.open(&connection.context)?;
        }
        Ok(connection)
    }

    /// Connects to a broker that takes workers at `endpoint`, and to what `options` name beside it: the same as a spec that begins with
    /// `broker+`. There is one socket for both ways, so there is no recv spec.
    ///
    /// A broker gives each request to the worker with the least to do, as many at once as [`Options::slots`] says. Whatever else it has
    /// to know, it is told: which requests were taken by [`Connection::recv`] (another worker gets the others when this one is lost),
    /// which are done, that this process is alive, also while the program is busy, and that it wants no more
    /// ([`Connection::shutdown`], [`Connection::drain`]). A request is done when its response has ended, it has become a WebSocket, or its connection was
    /// closed.
    ///
    /// When the client of a request leaves, [`super::Event::Disconnect`] comes as from a server. When the connection to the broker is
    /// lost, it is made again, also to one that was started anew: what was received is still to be answered, and the
    /// answer is taken. Only clients that were sent a part of their response, of which something may be lost, are cut off, and
    /// [`super::Event::Disconnect`] tells of each.
    ///
    /// ```no_run
    /// use lurcher::handler::{Connection, Options};
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut options = Options::default();
    /// options.slots = Some(1);
    /// options.name = Some("shop-1".to_owned());
    /// let mut connection = Connection::to_broker("tcp://127.0.0.1:9000".parse()?, options).await?;
    /// while let Some(request) = connection.recv().await {
    ///     if !request.is_notice() {
    ///         request.respond(200).send("hello\n").await?;
    ///     }
    /// }
    /// connection.finish().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Connection::connect`], and [`ConnectError::Refused`] when the broker does not know the pool or for another reason wants no
    /// such worker; not when it is not there (yet).
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing was received yet.
    pub async fn to_broker(endpoint: Endpoint, mut options: Options) -> Result<Self, ConnectError> {
        options.send_specs.push(endpoint.as_broker());
        Self::connect(options).await
    }

    /// Changes how many requests brokers give at once ([`Options::slots`]); 0 is none for now. Servers are not told.
    pub fn set_slots(&mut self, slots: u32) {
        self.options.slots = Some(slots);
        self.introduction.slots = Some(slots);
        for link in self.sources.iter().filter_map(Source::link) {
            link.set_slots(slots);
        }
    }

    /// As [`Connection::set_slots`], unless [`Options::slots`] has said how many: for whoever serves with a bound of its own.
    pub fn default_slots(&mut self, slots: usize) {
        if self.options.slots.is_none() {
            self.set_slots(u32::try_from(slots).unwrap_or(u32::MAX));
        }
    }

    /// Receives the next request or notice, from all servers in turn; `None` after [`Connection::shutdown`], when
    /// everything that had been pushed was returned. What cannot be decoded is logged and left out.
    ///
    /// # Cancel safety
    ///
    /// Safe: a request is taken only by a future that returns it.
    pub async fn recv(&mut self) -> Option<Request> {
        if !self.received.is_empty() {
            // A program that works on its thread without ever waiting would otherwise hold up what it has said.
            for source in &self.sources {
                source.server.write_overdue();
            }
        }
        loop {
            while let Some(incoming) = self.received.pop_front() {
                if let Some(request) = self.decode(incoming) {
                    return Some(request);
                }
            }
            if let Some(drained) = self.announced.take() {
                return Some(drained);
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
            && let Some(incoming) = self.received.pop_front()
        {
            if let Some(request) = self.decode(incoming) {
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

    /// Asks for no more requests. [`Connection::recv`] goes on, and yields [`super::Event::Drained`] once, when every server has
    /// pushed its last request (at the latest after [`Options::drain_timeout`]). What comes later belongs to earlier requests:
    /// disconnects, credits, parts of uploads, WebSocket frames for which the server has no other handler.
    ///
    /// A Lurcher says exactly when it has pushed its last request, and gives what it has to others. A Mongrel2 cannot be asked:
    /// the connection to it is ended, so that it writes nothing more, and what it had written is received. Then all else that it
    /// has to say goes to other handlers, as much of it does anyway, since it deals out everything in turn.
    ///
    /// A server that comes back meanwhile is asked again, and may push something before that: requests after
    /// [`super::Event::Drained`] are rare, and still to be answered.
    pub fn drain(&self) {
        self.stop.drain();
    }

    /// Begins to stop: as [`Connection::drain`], and when every server has pushed its last request, the sockets for requests are
    /// closed and [`Connection::recv`] returns `None`. Replies work until the connection is dropped.
    pub fn shutdown(&self) {
        self.stop.stop();
    }

    /// A handle that does [`Connection::shutdown`] from any task or thread.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// The servers, as they are known now.
    pub fn servers(&self) -> impl Iterator<Item = Server> {
        self.sources.iter().map(|source| Server {
            send_spec: source.send_spec.clone(),
            recv_spec: source.server.endpoint().clone(),
            is_lurcher: source.server.is_lurcher(),
        })
    }

    /// The way back by itself, to reply from other tasks.
    pub fn replies(&self) -> Replies {
        self.replies.clone()
    }

    /// Where the server's replies go to, for each server.
    pub fn recv_specs(&self) -> impl Iterator<Item = &Endpoint> {
        self.sources.iter().map(|source| source.server.endpoint())
    }

    /// Closes everything and waits until replies are written, at most [`Options::linger`]. What was received and not asked
    /// for is dropped: [`Connection::shutdown`] first.
    ///
    /// # Cancel safety
    ///
    /// Safe: the writing goes on in the background.
    pub async fn finish(self) {
        let context = self.context.clone();
        // After that time it is given up, as is what is queued.
        let settled = tokio::time::timeout(self.options.linger, self.replies.settle()).await;
        if settled.is_err() {
            tracing::warn!("a server does not take its last replies, they are dropped");
        }
        drop(self);
        context.close().await;
    }

    fn decode(&mut self, incoming: Incoming) -> Option<Request> {
        let Incoming {
            server,
            message,
            given,
        } = incoming;
        match wire::request::Request::decode(message) {
            Ok(message) if message.path == "@*" && message.kind() == Kind::Drained => {
                self.drained(&server);
                None
            }
            Ok(message) => {
                if let Some(link) = server.link() {
                    match given {
                        Some(given) if !link.begin(given, &message) => return None,
                        None if message.is_disconnect() => link.disconnected(&message),
                        _ => {}
                    }
                }
                if message.sender != self.last_sender || self.sources.len() > 1 {
                    self.learn(&message.sender, &server);
                }
                let kind = message.kind();
                server.received(&message, kind);
                let upload = self.uploads.look(&message, kind, &server);
                let is_http = kind == Kind::Http;
                Some(Request::new(message, server, upload, is_http))
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

    /// A server has pushed its last request.
    fn drained(&mut self, server: &Arc<Publisher>) {
        let source = self
            .sources
            .iter_mut()
            .find(|source| Arc::ptr_eq(&source.server, server));
        if let Some(source) = source {
            source.note_drained();
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
        if self.hasty {
            self.hasty = false;
            tokio::task::yield_now().await;
        }
        let StopHandle { drain, stop } = self.stop.clone();
        loop {
            if let Some(found) = self.found.take() {
                self.follow_names(&found);
            }
            self.settle_sources();
            if !self.received.is_empty() {
                return true;
            }
            let stops = stop.is_cancelled();
            let leaves = stops || drain.is_cancelled();
            if leaves {
                if self.has_ended(stops) {
                    return self.announced.is_some() || !self.received.is_empty();
                }
                if !self.received.is_empty() {
                    return true;
                }
            } else if self.sources.is_empty() && self.names.is_empty() {
                return false;
            }
            let unsettled = leaves || self.sources.iter().any(Source::is_unsettled);
            let look_again = tokio::time::sleep(LOOK_AGAIN);
            tokio::select! {
                // First the cheap look at the flags: a flood must not hide them.
                biased;
                () = drain.cancelled(), if !leaves => {}
                () = stop.cancelled(), if !stops => {}
                () = poll_fn(|cx| self.poll_refill(cx)) => {
                    if !self.received.is_empty() {
                        return true;
                    }
                }
                () = look_again, if unsettled => {}
            }
        }
    }

    /// Sees to the leaving of all servers; true when that is done and there is nothing to wait for any more.
    fn has_ended(&mut self, stops: bool) -> bool {
        let until = Instant::now() + self.options.drain_timeout;
        for source in &mut self.sources {
            source.leave(until);
            source.advance(self.options.quiet_time, &mut self.received);
        }
        if !self.received.is_empty() || !self.sources.iter().all(Source::is_drained) {
            return false;
        }
        if stops {
            for mut source in std::mem::take(&mut self.sources) {
                source.close(&mut self.received);
            }
            return true;
        }
        if !std::mem::replace(&mut self.told_drained, true)
            && let Some(server) = self.any_server()
        {
            let mut message = Vec::new();
            wire::request::encode_prefix(&self.last_sender, ConnId(0), &mut message);
            Notice::Drained.encode(Protocol::Json, &mut message);
            let message = wire::request::Request::decode(message.into());
            self.announced = message
                .ok()
                .map(|message| Request::new(message, server, None, false));
        }
        self.announced.is_some()
    }

    /// A server for a message that comes from none of them.
    fn any_server(&self) -> Option<Arc<Publisher>> {
        if let Some(source) = self.sources.first() {
            return Some(Arc::clone(&source.server));
        }
        // No name has an address: a socket that leads nowhere.
        let nowhere = Endpoint::from(Transport::Inproc {
            name: "nowhere".to_owned(),
        });
        let socket = client::Publisher::connect(&self.context, &nowhere, &self.bus, Duration::ZERO);
        let publisher = passed(&self.options, &self.receiving);
        socket
            .ok()
            .map(|socket| Arc::new(publisher(Way::Server(socket))))
    }

    /// Looks host names up for the first time, and connects to their servers; goes on without after a while.
    async fn find_names(&mut self, deadline: Instant) {
        if self.names.is_empty() {
            return;
        }
        let found = poll_fn(|cx| self.names.poll(cx));
        match tokio::time::timeout_at(deadline, found).await {
            Ok(found) => self.follow_names(&found),
            Err(_) => {
                tracing::warn!("host names of servers are not looked up yet, going on without");
            }
        }
    }

    /// Connects to addresses that are new, and begins to leave those that are gone.
    fn follow_names(&mut self, found: &Found) {
        let until = Instant::now() + self.options.drain_timeout;
        for (index, addresses) in found.iter().enumerate() {
            let Some(addresses) = addresses else {
                continue;
            };
            let mut missing = addresses.clone();
            for source in &mut self.sources {
                if let Some((name, address)) = source.place
                    && name == index
                    && !source.is_gone
                    && !missing.remove(&address)
                {
                    tracing::info!(requests = %source.send_spec, "address of a server is gone: leaving it");
                    source.is_gone = true;
                    source.leave(until);
                }
            }
            for address in missing {
                let Some((send_spec, recv_spec)) = self.names.specs(index, address) else {
                    continue;
                };
                let patience = self.options.subscription_timeout;
                let specs = (&send_spec, &recv_spec);
                let publisher = passed(&self.options, &self.receiving);
                let connected = Source::connect(
                    &self.context,
                    specs,
                    &self.bus,
                    patience,
                    publisher,
                    &self.introduction,
                );
                match connected {
                    Ok(mut source) => {
                        tracing::info!(requests = %send_spec, "address of a server: connecting");
                        source.place = Some((index, address));
                        self.replies.add(Arc::clone(&source.server));
                        self.sources.push(source);
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "connecting to an address of a name"
                        );
                    }
                }
            }
        }
    }

    /// Opens the sources that wait for that, and sees to those whose address is gone.
    fn settle_sources(&mut self) {
        let Self {
            sources,
            received,
            context,
            replies,
            options,
            ..
        } = self;
        for source in sources.iter_mut() {
            if let Err(error) = source.try_open(context) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "connecting to a server"
                );
                source.is_gone = true;
            }
            if source.is_gone {
                source.leave(Instant::now() + options.drain_timeout);
                source.advance(options.quiet_time, received);
                if source.is_drained() {
                    source.close(received);
                }
            }
        }
        sources.retain(|source| {
            let stays = !source.is_gone || !source.is_drained();
            if !stays {
                replies.remove(&source.server);
            }
            stays
        });
    }

    fn poll_refill(&mut self, cx: &mut Waker<'_>) -> Poll<()> {
        if let Poll::Ready(found) = self.names.poll(cx) {
            self.found = Some(found);
            return Poll::Ready(());
        }
        let Self {
            sources,
            received,
            next,
            names,
            ..
        } = self;
        let count = sources.len();
        for at in (0..count).map(|offset| (*next + offset) % count) {
            let Some(source) = sources.get_mut(at) else {
                continue;
            };
            let server = &source.server;
            if let Some(link) = source.link() {
                let polled = link.poll_recv_many(cx, BATCH_MAX, &mut |taken| {
                    received.push_back(Incoming {
                        server: Arc::clone(server),
                        message: taken.message,
                        given: taken.given,
                    });
                });
                if polled.is_pending() {
                    continue;
                }
                self.hasty = matches!(polled, Poll::Ready(BATCH_MAX..));
                if source.place.is_some() && source.was_lost() {
                    names.hurry();
                }
                *next = at + 1;
                return Poll::Ready(());
            }
            let Some(receiver) = &mut source.receiver else {
                continue;
            };
            let polled = receiver.poll_recv_many(cx, BATCH_MAX, &mut |message| {
                received.push_back(Incoming {
                    server: Arc::clone(server),
                    message,
                    given: None,
                });
            });
            let mut lost = false;
            match polled {
                Poll::Pending => continue,
                Poll::Ready(Ok(count)) => {
                    if count > 0
                        && let Err(error) = server.expect(self.options.subscription_timeout)
                    {
                        tell_broken(&error, server.endpoint());
                    }
                    self.hasty = !receiver.is_drained();
                    if count > 0 {
                        source.note_heard();
                    }
                    lost = source.place.is_some() && source.was_lost();
                }
                Poll::Ready(Err(error)) => {
                    tell_broken(&error, receiver.endpoint());
                    sources.remove(at);
                    self.hasty = true;
                }
            }
            if lost {
                names.hurry();
            }
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

/// Makes of a socket what replies pass through.
fn passed(options: &Options, receiving: &Arc<Receiving>) -> impl FnOnce(Way) -> Publisher + use<> {
    let (observer, receiving) = (options.observer.clone(), Arc::clone(receiving));
    |way| Publisher::new(way, observer, receiving)
}

/// What brokers are told, where there are any.
fn introduction(options: &Options) -> Introduction {
    let is_asked = options.send_specs.iter().any(Endpoint::is_broker);
    Introduction::new(
        options.name.as_deref().or((!is_asked).then_some("")),
        options.slots,
        options.weight,
        options.pool.as_deref(),
    )
}

fn refused(endpoint: &Endpoint, reason: String) -> ConnectError {
    ConnectError::Refused {
        endpoint: endpoint.clone(),
        reason,
    }
}

impl Deref for Connection {
    type Target = Replies;

    fn deref(&self) -> &Replies {
        &self.replies
    }
}
