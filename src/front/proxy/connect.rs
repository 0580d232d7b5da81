//! A backend's name becomes a connection: looked up without blocking, its addresses tried one after the other, the next one
//! when the one before has failed or is slow (RFC 8305, without its sorting: the system's resolver has sorted already).
//! There is no cache: the system has one, and connections are kept.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tracing::debug;

use crate::front::answer::Fault;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// How long an address may be silent before the next one is tried beside it (RFC 8305 8).
const HEAD_START: Duration = Duration::from_millis(250);

type Attempt = Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>;

/// Connects to the first address of a name that answers; `last` is the one that did the last time, and is tried first if the
/// name still has it.
///
/// # Cancel safety
///
/// Dropping it gives up every attempt.
pub(super) async fn connect(
    name: &str,
    port: u16,
    last: Option<SocketAddr>,
) -> Result<(TcpStream, SocketAddr), Fault> {
    let found = lookup_host((name, port)).await.map_err(|error| {
        debug!(name, %error, "backend's name not found");
        Fault::Unknown
    })?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(Fault::Unknown);
    }
    if let Some(known) = last.and_then(|last| addresses.iter().position(|a| *a == last)) {
        addresses[..=known].rotate_right(1);
    }
    let stream = race(addresses).await.map_err(|error| {
        debug!(name, port, %error, "backend not reached");
        Fault::Unreachable
    })?;
    let address = stream.peer_addr().map_err(|_| Fault::Unreachable)?;
    // Without it small requests wait for the acknowledgement of what went before; a socket that refuses is as good as gone.
    stream.set_nodelay(true).map_err(|_| Fault::Unreachable)?;
    Ok((stream, address))
}

async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut open: Vec<Attempt> = Vec::new();
    let mut why = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match waiting.next() {
            Some(address) => open.push(Box::pin(TcpStream::connect(address))),
            None if open.is_empty() => return Err(why),
            None => {}
        }
        tokio::select! {
            result = first(&mut open) => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => why = error,
            },
            () = tokio::time::sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
}

/// The first attempt that ends; it is taken off the list.
async fn first(open: &mut Vec<Attempt>) -> io::Result<TcpStream> {
    poll_fn(|cx| {
        for index in 0..open.len() {
            if let Poll::Ready(result) = open[index].as_mut().poll(cx) {
                drop(open.swap_remove(index));
                return Poll::Ready(result);
            }
        }
        Poll::Pending
    })
    .await
}
