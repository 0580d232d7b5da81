//! The signals of the system as something to await. What they mean is each command's own matter.

use std::future::poll_fn;
use std::task::Poll;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What asks a program to stop: ctrl-C, and what supervisors send.
pub(super) const STOP: [SignalKind; 2] = [SignalKind::interrupt(), SignalKind::terminate()];

/// Signals that were asked for; from then on they no longer end the process by themselves.
pub(super) struct Signals(Vec<(SignalKind, Signal)>);

impl Signals {
    /// Begins to take signals of these kinds.
    pub(super) fn of(kinds: impl IntoIterator<Item = SignalKind>) -> anyhow::Result<Self> {
        let streams = kinds
            .into_iter()
            .map(|kind| Ok((kind, signal(kind).context("listen for signals")?)));
        Ok(Self(streams.collect::<anyhow::Result<_>>()?))
    }

    /// The next signal. Several of one kind may become one.
    ///
    /// # Cancel safety
    ///
    /// Safe: a signal is taken only by a future that returns it.
    pub(super) async fn next(&mut self) -> SignalKind {
        poll_fn(|cx| {
            for (kind, stream) in &mut self.0 {
                if stream.poll_recv(cx).is_ready() {
                    return Poll::Ready(*kind);
                }
            }
            Poll::Pending
        })
        .await
    }
}
