//! Order between the two sides of a process: what a client has pipelined to a WSGI application and to an ASGI one, or to none, is
//! answered in the order in which it was asked. Each side sees to that for itself; here waits what would overtake the other one's.
//!
//! It is the receiving thread's own, but for [`left`], which tells it that a client has nothing open any more.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use lurcher::handler::{Client, Request, UploadFault};
use tokio::sync::Notify;

use crate::queue::Body;

/// Requests of one client that wait here. One with more is cut off, as it is where they wait for their own side.
const PIPELINED_MAX: usize = 64;

/// Requests that wait here, of all clients.
const WAITING_MAX: usize = 1024;

/// Whether anything waits: nobody is told otherwise.
static WAITS: AtomicBool = AtomicBool::new(false);

static LEFT: Notify = Notify::const_new();

/// A client has nothing open at one side any more. Called by both, after they have said so in their books.
pub(crate) fn left() {
    if WAITS.load(Ordering::Acquire) {
        LEFT.notify_one();
    }
}

/// Waits until one that waits may go.
///
/// # Cancel safety
///
/// Safe.
pub(crate) async fn changed() {
    LEFT.notified().await;
}

/// What is to be answered.
pub(crate) struct Parcel {
    pub(crate) request: Request,
    /// The number of its mount in the site, if it has one.
    pub(crate) mount: Option<usize>,
    pub(crate) what: What,
}

/// What comes with a request.
pub(crate) enum What {
    Body(Body),
    Handshake,
    Fault(UploadFault),
}

/// Who waits.
#[derive(Default)]
pub(crate) struct Turns {
    waiting: HashMap<Client, VecDeque<Parcel>>,
    count: usize,
}

impl Turns {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Has it wait, if it must not go yet, or another of its client waits already. It comes back if it need not.
    ///
    /// # Errors
    ///
    /// When too much waits: its client is to be cut off.
    pub(crate) fn take(
        &mut self,
        parcel: Parcel,
        may_go: impl FnOnce(&Parcel) -> bool,
    ) -> Result<Option<Parcel>, Client> {
        let client = parcel.request.client();
        let line = self.waiting.get(&client).map_or(0, VecDeque::len);
        if line == 0 && may_go(&parcel) {
            return Ok(Some(parcel));
        }
        if line >= PIPELINED_MAX || self.count >= WAITING_MAX {
            return Err(client);
        }
        self.waiting.entry(client).or_default().push_back(parcel);
        self.count += 1;
        WAITS.store(true, Ordering::Release);
        // What it waits for may have ended before anybody knew that it should be told.
        LEFT.notify_one();
        Ok(None)
    }

    /// The next one that may go.
    pub(crate) fn next(&mut self, may_go: impl Fn(&Parcel) -> bool) -> Option<Parcel> {
        let goes = |line: &VecDeque<Parcel>| line.front().is_some_and(&may_go);
        let (client, line) = self.waiting.iter_mut().find(|(_, line)| goes(line))?;
        let parcel = line.pop_front();
        if line.is_empty() {
            let client = client.clone();
            self.forget(&client);
        }
        self.count -= usize::from(parcel.is_some());
        parcel
    }

    /// A client is gone, and what it has asked for with it.
    pub(crate) fn gone(&mut self, client: &Client) {
        let line = self.waiting.get(client).map_or(0, VecDeque::len);
        self.count -= line;
        self.forget(client);
    }

    fn forget(&mut self, client: &Client) {
        self.waiting.remove(client);
        if self.waiting.is_empty() {
            WAITS.store(false, Ordering::Release);
        }
    }
}
