//! Accepting clients: it never fails, and never takes more than there is room for.

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Shard;
use super::connection::Connection;
use super::stream::Stream;
use crate::metrics::Name;
use crate::sys;

/// Connections that the kernel keeps until they are accepted.
pub(super) const BACKLOG: u32 = 1024;

/// How long to wait when descriptors have run out: accepting again at once would only burn the processor.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until draining begins or another listener has taken over, and then those that wait already: the kernel has told them that they are connected. Then
/// the listener is closed.
pub(super) async fn accept(listener: TcpListener, superseded: CancellationToken, shard: Rc<Shard>) {
    tokio::select! {
        () = accept_until_draining(&listener, &shard) => {}
        () = superseded.cancelled() => {}
    }
    let end = tokio::time::Instant::now() + super::LAST_ACCEPT;
    while shard.registry.len() < shard.limits().connections_max
        && let Ok(Ok((stream, addr))) = tokio::time::timeout_at(end, listener.accept()).await
    {
        serve(&shard, stream, addr);
    }
}

async fn accept_until_draining(listener: &TcpListener, shard: &Rc<Shard>) {
    let watch = shard.watch.clone();
    let mut draining = std::pin::pin!(watch.draining());
    let mut complained = false;
    loop {
        while shard.registry.len() >= shard.limits().connections_max {
            if !complained {
                warn!(
                    connections = shard.registry.len(),
                    "connection limit reached: new clients wait"
                );
                complained = true;
            }
            tokio::select! {
                () = &mut draining => return,
                () = shard.registry.left.notified() => {}
            }
        }
        let accepted = tokio::select! {
            () = &mut draining => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, addr)) => serve(shard, stream, addr),
            Err(error) if sys::is_exhaustion(&error) => {
                if !complained {
                    warn!("accept: {error}: new clients wait");
                    complained = true;
                }
                tokio::select! {
                    () = &mut draining => return,
                    () = tokio::time::sleep(EXHAUSTED_PAUSE) => {}
                }
            }
            // Trouble of one connection that ended before it was accepted.
            Err(error) => debug!("accept: {error}"),
        }
    }
}

fn serve(shard: &Rc<Shard>, stream: TcpStream, addr: SocketAddr) {
    Name::ConnectionsAccepted.increment();
    if let Err(error) = shard.prepare(&stream) {
        debug!(client = %addr, "prepare connection: {error}");
        return;
    }
    let client = shard.admit(addr);
    client.fd.set(stream.as_raw_fd());
    shard.watch.track_local(Connection::new(
        Stream::Plain(stream),
        client,
        Rc::clone(shard),
    ));
}
