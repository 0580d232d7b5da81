//! A backend's name becomes a connection: looked up without blocking, its addresses tried one after the other, the next one
//! when the one before has failed or is slow (RFC 8305, without its sorting: the system's resolver has sorted already).
//! There is no cache: the system has one, and connections are kept.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tracing::debug;

use crate::front::answer::Fault;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// How long an address may be silent before the next one is tried beside it (RFC 8305 8).
const HEAD_START: Duration = Duration::from_millis(250);

/// Lookups of one backend's name that may be under way. Each takes a thread until the resolver gives up, whether somebody still
/// waits for it or not: one that hangs must not take all there are, files are read by the same.
pub(super) const LOOKUPS_MAX: usize = 4;

type Attempt<T> = Pin<Box<dyn Future<Output = io::Result<T>>>>;

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
    lookups: &Arc<Semaphore>,
) -> Result<(TcpStream, SocketAddr), Fault> {
    let found = lookup(name, port, lookups).await.map_err(|error| {
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
    let stream = race(addresses, TcpStream::connect).await.map_err(|error| {
        debug!(name, port, %error, "backend not reached");
        Fault::Unreachable
    })?;
    let address = stream.peer_addr().map_err(|_| Fault::Unreachable)?;
    // Without it small requests wait for the acknowledgement of what went before; a socket that refuses is as good as gone.
    stream.set_nodelay(true).map_err(|_| Fault::Unreachable)?;
    Ok((stream, address))
}

/// The addresses of a name, in the resolver's order.
async fn lookup(name: &str, port: u16, lookups: &Arc<Semaphore>) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let name = name.to_owned();
    blocking(lookups, move || {
        let found = (name.as_str(), port).to_socket_addrs()?;
        Ok(found.take(ADDRESSES_MAX * 4).collect())
    })
    .await
}

/// Runs something that blocks on a thread for that, when its turn comes; the turn lasts as long as it blocks, even when nobody
/// waits for it any more.
async fn blocking<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // It is never closed.
    let turn = Arc::clone(turns).acquire_owned().await;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    done.await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The first connection that one of the addresses gives, or why the last of them gave none.
async fn race<T, F>(addresses: Vec<SocketAddr>, attempt: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>> + 'static,
{
    let mut waiting = addresses.into_iter();
    let mut open: Vec<Attempt<T>> = Vec::new();
    let mut why = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match waiting.next() {
            Some(address) => open.push(Box::pin(attempt(address))),
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
async fn first<T>(open: &mut Vec<Attempt<T>>) -> io::Result<T> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What an address does: its last number is the time it takes in milliseconds, its port whether it answers (1), refuses (0)
    /// or is silent.
    async fn act(address: SocketAddr) -> io::Result<SocketAddr> {
        let SocketAddr::V4(v4) = address else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let [_, _, _, wait] = v4.ip().octets();
        tokio::time::sleep(Duration::from_millis(wait.into())).await;
        match address.port() {
            1 => Ok(address),
            0 => Err(io::ErrorKind::ConnectionRefused.into()),
            _ => std::future::pending().await,
        }
    }

    /// Which of these addresses gives the connection, and after how many milliseconds.
    async fn run(addresses: &[([u8; 4], u16)]) -> (Result<SocketAddr, io::ErrorKind>, u128) {
        let began = tokio::time::Instant::now();
        let addresses = addresses.iter().map(|&address| address.into()).collect();
        let result = race(addresses, act).await;
        (
            result.map_err(|error| error.kind()),
            began.elapsed().as_millis(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_address_is_tried_at_once_when_one_refuses() {
        let live = ([10, 0, 0, 5], 1);
        let (address, time) = run(&[([10, 0, 0, 7], 0), ([10, 0, 1, 0], 0), live]).await;
        assert_eq!((address, time), (Ok(live.into()), 12));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_holds_the_next_one_up_for_its_head_start_only() {
        let live = ([10, 0, 0, 5], 1);
        let (address, time) = run(&[([10, 0, 0, 0], 2), live]).await;
        assert_eq!((address, time), (Ok(live.into()), 255));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_address_may_still_win() {
        let slow = ([10, 0, 0, 252], 1);
        let (address, _) = run(&[slow, ([10, 0, 0, 9], 1)]).await;
        assert_eq!(address, Ok(slow.into()));
    }

    #[tokio::test(start_paused = true)]
    async fn all_of_them_must_refuse_before_it_is_given_up() {
        let (result, time) = run(&[([10, 0, 0, 1], 0), ([10, 0, 0, 2], 0)]).await;
        assert_eq!((result, time), (Err(io::ErrorKind::ConnectionRefused), 3));
        assert!(run(&[]).await.0.is_err());
    }

    #[tokio::test]
    async fn an_address_is_a_name_too() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let lookups = Arc::new(Semaphore::new(0));
        let (_, connected) = connect("127.0.0.1", address.port(), None, &lookups)
            .await
            .unwrap();
        assert_eq!(connected, address);
    }

    #[tokio::test]
    async fn lookups_that_hang_keep_their_turns_when_nobody_waits_for_them() {
        let turns = Arc::new(Semaphore::new(2));
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = Arc::new(std::sync::Mutex::new(hang));
        for _ in 0..5 {
            let hang = Arc::clone(&hang);
            let hangs = blocking(&turns, move || {
                hang.lock().unwrap().recv().unwrap_or_default();
                Ok(())
            });
            let given_up = tokio::time::timeout(Duration::from_millis(20), hangs).await;
            assert!(given_up.is_err());
        }
        assert_eq!(turns.available_permits(), 0, "two threads and no more");
        drop(release);
        blocking(&turns, || Ok(())).await.unwrap();
    }
}
