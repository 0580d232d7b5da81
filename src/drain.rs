//! Shutdown in two steps, and the only way to spawn a task.
//!
//! [`channel`] gives a [`Signal`], kept by whoever decides, and a [`Watch`], cloned to everybody else. *Draining* asks
//! for a polite end: nothing new is begun, what is open is finished. *Aborted* means that the deadline has passed or
//! somebody asked twice: tasks are dropped where they stand. Every task is spawned through a `Watch`, so that the end
//! of a program can wait for all of them and say how many it had to cut.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// Makes a connected pair of signal and watch.
pub fn channel() -> (Signal, Watch) {
    let watch = Watch {
        draining: CancellationToken::new(),
        aborted: CancellationToken::new(),
        tasks: TaskTracker::new(),
    };
    (
        Signal {
            watch: watch.clone(),
        },
        watch,
    )
}

/// The right to begin the end. There is one, and it is not `Clone`: who holds it decides.
#[derive(Debug)]
pub struct Signal {
    watch: Watch,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every task came to its own end.
    Clean,
    /// So many tasks were still running when the time was up, and were dropped.
    Aborted {
        /// Number of tasks that were cut.
        tasks: usize,
    },
}

impl Signal {
    /// Begins draining. Calling it again changes nothing.
    pub fn drain(&self) {
        self.watch.draining.cancel();
    }

    /// Aborts at once what still runs; implies [`Signal::drain`].
    pub fn abort(&self) {
        self.drain();
        self.watch.aborted.cancel();
    }

    /// Drains, waits for every task at most `grace`, and aborts the rest.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the program draining, without a deadline.
    pub async fn finish(self, grace: Duration) -> Outcome {
        self.drain();
        self.watch.tasks.close();
        let mut waited = std::pin::pin!(self.watch.tasks.wait());
        tokio::select! {
            () = &mut waited => return Outcome::Clean,
            () = self.watch.aborted.cancelled() => {}
            () = tokio::time::sleep(grace) => {}
        }
        let tasks = self.watch.tasks.len();
        self.watch.aborted.cancel();
        waited.await;
        if tasks == 0 {
            Outcome::Clean
        } else {
            Outcome::Aborted { tasks }
        }
    }
}

/// Sees the signal, and spawns tasks that it ends. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watch {
    draining: CancellationToken,
    aborted: CancellationToken,
    tasks: TaskTracker,
}

impl Watch {
    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Completes when draining begins.
    ///
    /// # Cancel safety
    ///
    /// Safe: the state is kept in the signal.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.draining.cancelled()
    }

    /// Completes when what is left is to be dropped.
    ///
    /// # Cancel safety
    ///
    /// Safe: the state is kept in the signal.
    pub fn aborted(&self) -> WaitForCancellationFuture<'_> {
        self.aborted.cancelled()
    }

    /// Number of tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Spawns a task that is dropped on abort and waited for when draining. It must see to its own end when
    /// [`Watch::draining`] completes.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(
            self.tasks
                .track_future(self.aborted.clone().run_until_cancelled_owned(future)),
        )
    }

    /// The same for futures of a single-threaded shard. Needs a `tokio::runtime::LocalRuntime` or `LocalSet` around it.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn_local<F>(&self, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        tokio::task::spawn_local(
            self.tasks
                .track_future(self.aborted.clone().run_until_cancelled_owned(future)),
        )
    }

    /// Like [`Watch::spawn_local`], but an abort does not drop the future: it must see to that itself. For tasks of which
    /// there are so many that each should not wait for the signal on its own, as a front's connections.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn track_local<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        tokio::task::spawn_local(self.tasks.track_future(future))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_by_itself_is_a_clean_end() {
        let (signal, watch) = channel();
        let inner = watch.clone();
        watch.spawn(async move { inner.draining().await });
        assert_eq!(signal.finish(Duration::from_secs(30)).await, Outcome::Clean);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_cut_at_the_deadline_and_counted() {
        let (signal, watch) = channel();
        watch.spawn(std::future::pending::<()>());
        assert_eq!(
            signal.finish(Duration::from_secs(1)).await,
            Outcome::Aborted { tasks: 1 }
        );
        assert_eq!(watch.tasks(), 0);
    }
}
