//! One server of a connection, or one broker: its sockets, and how it is left without losing what it has pushed.
//!
//! A Lurcher is asked for no more requests, and says when it has pushed its last one. Nothing can be said to a Mongrel2: its
//! connection is ended in our direction, which libzmq takes for its end, so that nothing more is written to it and what was written
//! can still be received. Who hears of what is received, and when the sockets are closed, is the connection's business.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::broker::{Given, Introduction, Link};
use super::publisher::{Publisher, Way};
use crate::bus::client::{self, Context, OpenError, Receiver};
use crate::endpoint::Endpoint;
use crate::wire::reply;

/// Messages taken at the end from a server that would not stop pushing.
const LAST_SWEEP_MAX: usize = 10_000;

/// A Mongrel2 is left when it has said nothing for so long: its libzmq looks for news of connections once in a millisecond at most
/// when it sends, and what it deals to ours in that time is lost. Requests come in bunches, so a moment of silence is a good one.
///
/// Measured: one of two handlers stopped 50 times under an unbroken 4,500 requests a second loses 38 to 47 requests in all, and 71 to
/// 76 when the socket is just closed. Where there are such moments, next to none.
const LULL: Duration = Duration::from_millis(5);

/// So long such a moment is waited for under unbroken load; then any moment is as good as another.
const LULL_WITHIN: Duration = Duration::from_secs(1);

/// What stands before a message to a server that subscribes to everything: it means nothing.
const ANY_SENDER: &[u8] = b"lurcher";

/// Where a server stands with us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its subscription is awaited before requests are taken, at the latest until then.
    Opening { until: Instant },
    /// It pushes requests.
    Serving,
    /// It shall push no more; waited for until then.
    Leaving {
        since: Instant,
        until: Instant,
        is_ended: bool,
    },
    /// It has pushed its last request.
    Drained,
}

/// A message that was received.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Where it came from.
    pub(super) server: Arc<Publisher>,
    pub(super) message: Bytes,
    /// What a broker calls the request.
    pub(super) given: Option<Given>,
}

/// What was received and not yet asked for.
pub(super) type Received = VecDeque<Incoming>;

#[derive(Debug)]
pub(super) struct Source {
    pub(super) send_spec: Endpoint,
    pub(super) server: Arc<Publisher>,
    /// None once it is closed, and for a broker.
    pub(super) receiver: Option<Receiver>,
    /// A broker, of which more may come.
    hears: bool,
    /// The host name that it was found by, as an index, and its address.
    pub(super) place: Option<(usize, IpAddr)>,
    /// Its address is not that of its name any more: it is left.
    pub(super) is_gone: bool,
    /// Connections lost of which the owner was told.
    losses: u64,
    bus: client::Options,
    token: String,
    stage: Stage,
    /// When something was last received.
    heard: Instant,
    /// The subscription on which the server was asked for no more requests: a new one means that it has to be asked again.
    asked_on: Option<u64>,
}

impl Source {
    /// Connects the way back, of which `publisher` makes what replies pass through; requests come when the server has subscribed, or
    /// after `patience`: see [`Source::try_open`]. `bus` is
    /// what all have in common.
    pub(super) fn connect(
        context: &Context,
        (send_spec, recv_spec): (&Endpoint, &Endpoint),
        bus: &client::Options,
        patience: Duration,
        publisher: impl FnOnce(Way) -> Publisher,
        introduction: &Introduction,
    ) -> Result<Self, OpenError> {
        if send_spec.is_broker() {
            let link = Link::connect(context, send_spec, bus, introduction.clone())?;
            return Ok(Self {
                send_spec: send_spec.clone(),
                server: Arc::new(publisher(Way::Broker(link))),
                receiver: None,
                hears: true,
                place: None,
                is_gone: false,
                losses: 0,
                bus: bus.clone(),
                token: String::new(),
                stage: Stage::Serving,
                heard: Instant::now(),
                asked_on: None,
            });
        }
        let mut bus = bus.clone();
        // Without randomness there is none, and the server pairs the sockets as it does those of others.
        let random = getrandom::u64().and_then(|high| Ok((high, getrandom::u64()?)));
        let token = random.map_or_else(
            |_| None,
            |(high, low)| Some(format!("{high:016x}{low:016x}")),
        );
        bus.token.clone_from(&token);
        let socket = client::Publisher::connect(context, recv_spec, &bus, patience)?;
        let server = Arc::new(publisher(Way::Server(socket)));
        Ok(Self {
            send_spec: send_spec.clone(),
            server,
            receiver: None,
            hears: false,
            place: None,
            is_gone: false,
            losses: 0,
            bus,
            token: token.unwrap_or_default(),
            stage: Stage::Opening {
                until: Instant::now() + patience,
            },
            heard: Instant::now(),
            asked_on: None,
        })
    }

    /// Connects the way of requests.
    pub(super) fn open(&mut self, context: &Context) -> Result<(), OpenError> {
        if self.server.link().is_some() {
            return Ok(());
        }
        self.receiver = Some(Receiver::connect(context, &self.send_spec, &self.bus)?);
        self.stage = Stage::Serving;
        Ok(())
    }

    /// Connects it if that was waited for and may be done now.
    pub(super) fn try_open(&mut self, context: &Context) -> Result<(), OpenError> {
        let Stage::Opening { until } = self.stage else {
            return Ok(());
        };
        if self.server.subscription().is_some() || Instant::now() >= until {
            return self.open(context);
        }
        Ok(())
    }

    /// Whether it is to be looked at now and then: something waits for time or for what no descriptor tells.
    pub(super) fn is_unsettled(&self) -> bool {
        matches!(self.stage, Stage::Opening { .. } | Stage::Leaving { .. })
    }

    /// Whether a connection was lost since this was last asked.
    pub(super) fn was_lost(&mut self) -> bool {
        let losses = match self.server.link() {
            Some(link) => link.generation(),
            None => self.receiver.as_mut().map_or(0, Receiver::losses),
        };
        std::mem::replace(&mut self.losses, losses) != losses
    }

    /// Something was received.
    pub(super) fn note_heard(&mut self) {
        if self.stage != Stage::Serving {
            self.heard = Instant::now();
        }
    }

    /// Begins to leave the server; it is waited for until then. Changes nothing when that has begun before.
    pub(super) fn leave(&mut self, until: Instant) {
        if matches!(self.stage, Stage::Opening { .. } | Stage::Serving) {
            let since = Instant::now();
            self.heard = since;
            self.stage = Stage::Leaving {
                since,
                until,
                is_ended: false,
            };
        }
    }

    /// The server has said that it has pushed its last request.
    pub(super) fn note_drained(&mut self) {
        if matches!(self.stage, Stage::Leaving { .. }) {
            self.stage = Stage::Drained;
        }
    }

    pub(super) fn is_drained(&self) -> bool {
        self.stage == Stage::Drained
    }

    /// Does what can be done now about leaving; what is received by that goes to `received`. To be called whenever something was
    /// received or has changed, and now and then.
    pub(super) fn advance(&mut self, quiet_time: Duration, received: &mut Received) {
        if matches!(self.stage, Stage::Opening { .. } | Stage::Serving) {
            return;
        }
        if let Some(link) = self.server.link() {
            link.drain();
            if let Stage::Leaving { until, .. } = self.stage {
                if link.is_drained() {
                    self.stage = Stage::Drained;
                } else if Instant::now() >= until {
                    tracing::warn!(broker = %self.send_spec, "broker does not say that it gives no more requests: not waiting any longer");
                    self.stage = Stage::Drained;
                }
            }
            return;
        }
        let is_lurcher = self.server.is_lurcher();
        if is_lurcher {
            self.ask();
        }
        let Stage::Leaving {
            since,
            until,
            is_ended,
        } = &mut self.stage
        else {
            return;
        };
        let Some(receiver) = &mut self.receiver else {
            self.stage = Stage::Drained;
            return;
        };
        let now = Instant::now();
        let lulls =
            now.duration_since(self.heard) >= LULL || now.duration_since(*since) >= LULL_WITHIN;
        if !is_lurcher && !*is_ended && lulls {
            match receiver.end_sending() {
                Ok(ended) => *is_ended = ended,
                Err(error) => {
                    tracing::debug!(%error, requests = %self.send_spec, "ending a connection");
                }
            }
        }
        let (until, is_ended) = (*until, *is_ended);
        match receiver.is_connected() {
            // Nothing is on its way any more.
            Some(false) if is_lurcher => self.stage = Stage::Drained,
            Some(false) => {
                self.close(received);
                self.stage = Stage::Drained;
            }
            _ if now >= until => {
                tracing::warn!(requests = %self.send_spec, "server goes on pushing requests: not waiting any longer");
                self.stage = Stage::Drained;
            }
            // Neither can be done: it is taken at its silence.
            _ if !is_lurcher && !is_ended && now.duration_since(self.heard) >= quiet_time => {
                self.stage = Stage::Drained;
            }
            _ => {}
        }
    }

    /// Asks for no more requests, once for each subscription of the server.
    fn ask(&mut self) {
        let subscription = self.server.subscription();
        if self.token.is_empty() || subscription.is_none() || subscription == self.asked_on {
            return;
        }
        let topic = self.server.topic().filter(|topic| !topic.is_empty());
        let mut message = Vec::with_capacity(80);
        let sender = topic.as_deref().unwrap_or(ANY_SENDER);
        reply::encode_drain(sender, &self.token, &mut message);
        match self.server.send_now(message) {
            Ok(true) => self.asked_on = subscription,
            // It is behind with what was sent before.
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(%error, replies = %self.server.endpoint(), "asking for no more requests");
            }
        }
    }

    /// The broker, if it is one and more may come from it.
    pub(super) fn link(&self) -> Option<&Link> {
        self.server.link().filter(|_| self.hears)
    }

    /// Closes the socket for requests, and takes what is still in it.
    pub(super) fn close(&mut self, received: &mut Received) {
        if let Some(link) = self.link() {
            link.stop_receiving(&mut |taken| {
                received.push_back(Incoming {
                    server: Arc::clone(&self.server),
                    message: taken.message,
                    given: taken.given,
                });
            });
            self.hears = false;
        }
        let Some(mut receiver) = self.receiver.take() else {
            return;
        };
        for _ in 0..LAST_SWEEP_MAX {
            let Ok(Some(message)) = receiver.try_recv() else {
                break;
            };
            received.push_back(Incoming {
                server: Arc::clone(&self.server),
                message,
                given: None,
            });
        }
    }
}

/// The error of a socket whose runtime has ended; there is no other.
pub(super) fn tell_broken(error: &io::Error, endpoint: &Endpoint) {
    tracing::error!(%error, %endpoint, "socket is broken, closing it");
}
