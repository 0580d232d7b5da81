//! What a pool and those behind it are to each other: what may be asked, who asks, why nobody answers, who reads replies.
//!
//! Words only. What is done with them stands in the pool.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Pool;
use crate::balancer;
pub use crate::balancer::Retry;
use crate::bus::server::PeerId;
use crate::wire::ConnId;
use crate::wire::worker::RequestId;

/// Why a request will not be answered by a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody is connected, or all are busy, and too many requests wait already.
    #[error("too many requests are waiting for a handler")]
    QueueFull,
    /// It has waited for as long as it may.
    #[error("no handler took the request in time")]
    WaitOver,
    /// Nobody is connected, and nobody has come in the time that is given to them.
    #[error("no handler is connected")]
    NoHandler,
    /// It was to be answered by a certain time, and cannot be any more.
    #[error("the handler did not answer in time")]
    DeadlineOver,
    /// The handler that had it is gone.
    #[error("the handler was lost while it had the request")]
    HandlerLost,
    /// Several handlers were lost while they had it: it is suspected to be the reason.
    #[error("several handlers were lost while they had the request")]
    Quarantined,
}

impl From<balancer::Failure> for Failure {
    fn from(failure: balancer::Failure) -> Self {
        match failure {
            balancer::Failure::QueueFull => Self::QueueFull,
            balancer::Failure::WaitOver => Self::WaitOver,
            balancer::Failure::NoWorker => Self::NoHandler,
            balancer::Failure::DeadlineOver => Self::DeadlineOver,
            balancer::Failure::WorkerLost => Self::HandlerLost,
            balancer::Failure::Quarantined => Self::Quarantined,
        }
    }
}

/// That no handler will answer, and when it may be worth asking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// The reason.
    pub why: Failure,
    /// After what time there may be room: how much waits, by how much is done in a second. None where that would say nothing.
    pub retry_after: Option<Duration>,
}

impl Refused {
    /// For this reason, whatever the time.
    pub fn now(why: Failure) -> Self {
        Self {
            why,
            retry_after: None,
        }
    }
}

impl From<balancer::Refusal> for Refused {
    fn from(refusal: balancer::Refusal) -> Self {
        Self {
            why: refusal.why.into(),
            retry_after: Some(refusal.retry_after),
        }
    }
}

/// What is to be done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Whether it may be handed to a second handler.
    pub retry: Retry,
    /// What it sticks by: requests with one key go to one worker, as long as that one is not busier than others.
    pub key: Option<u64>,
    /// When its answer is worth nothing any more.
    pub deadline: Option<Instant>,
}

impl From<Retry> for Ask {
    fn from(retry: Retry) -> Self {
        Self {
            retry,
            key: None,
            deadline: None,
        }
    }
}

/// Whom a message is about: `SENDER SP CONNID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The server that has the connection; none: that of the pool.
    pub sender: Option<Bytes>,
    /// The connection.
    pub id: ConnId,
}

impl From<ConnId> for Address {
    fn from(id: ConnId) -> Self {
        Self { sender: None, id }
    }
}

impl Address {
    pub(super) fn of(caller: &Rc<dyn Caller>) -> Self {
        Self {
            sender: caller.sender(),
            id: Rc::clone(caller).id(),
        }
    }
}

/// Who made a request. None of these may call back into the pool.
pub trait Caller {
    /// The id under which the request is handed over now.
    fn id(self: Rc<Self>) -> ConnId;

    /// The sender that stands before the id in its messages; none: that of the pool.
    fn sender(&self) -> Option<Bytes> {
        None
    }

    /// The id given before must not reach the caller any more: a handler that is given up may still answer under it.
    fn retire_id(&self);

    /// Whether something has come for the caller that it has not looked at yet: it may be the answer.
    fn has_mail(&self) -> bool;

    /// No handler will answer.
    fn failed(&self, refused: Refused);

    /// There may be room again for further messages of the request.
    fn resumed(&self) {}
}

/// Who reads the replies.
pub trait Replies {
    /// A message came from a reply socket, or from a worker that is one. Must not wait.
    fn reply(&self, pool: &Rc<Pool>, from: PeerId, message: Bytes);

    /// A worker that has just come has a request from before its connection, called so then, of the client at this address
    /// (`SENDER SP CONNID`), and may answer it. It takes one of the worker's slots until that is done with it, or
    /// [`Pool::free_held`] says that it does not.
    fn held(&self, pool: &Rc<Pool>, from: PeerId, id: RequestId, address: &Bytes) {
        let _ = (pool, from, id, address);
    }

    /// Whether there is no room for further messages: reply sockets are not read then, until [`Pool::hear`].
    fn is_full(&self) -> bool {
        false
    }
}
