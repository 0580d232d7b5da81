//! A socket that binds although its kind connects: whoever connects is served as the server that it is. What the sockets do with
//! several of them is [`super::shared`]'s business.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::address;
use super::task::{self, Alive};
use crate::bus::server::{Listener, bind_now};
use crate::bus::stream::Stream;
use crate::endpoint::Endpoint;

/// Connections at once; further ones are closed without a word, so that they come back. Servers are few.
const PEERS_MAX: usize = 1024;

/// How long accepting rests when the process has no descriptor left: long enough not to spin, short enough not to be noticed.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Binds; gives the endpoint with its real address and port. Names are not looked up, as in libzmq.
pub(super) fn bind(endpoint: &Endpoint) -> io::Result<(Listener, Endpoint)> {
    bind_now(endpoint).map_err(|error| io::Error::other(error.cause().to_string()))
}

/// Accepts until the owner is gone. A connection that has begun lives on for as long as it has something to write.
pub(super) async fn accept(alive: Alive, listener: Listener, tasks: TaskTracker) {
    let Alive(core) = &alive;
    loop {
        let accepted = tokio::select! {
            biased;
            () = task::is_over(core) => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(endpoint = %core.endpoint, %error, "accepting");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let is_fit = match &stream {
            Stream::Tcp(stream) => address::set_up(stream).is_ok(),
            Stream::Unix(_) => true,
        };
        if !is_fit || core.with(|state| state.links.len() >= PEERS_MAX) {
            tracing::debug!(endpoint = %core.endpoint, "closed a new connection");
            continue;
        }
        let core = Arc::clone(core);
        tasks.spawn(async move {
            let (ended, _) = task::drive(&core, stream).await;
            tracing::debug!(endpoint = %core.endpoint, ?ended, "connection ended");
        });
    }
}
