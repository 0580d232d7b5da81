//! Who drives the worker's runtime. It knows nothing of Python and of requests.
//!
//! A thread that answers one request after another drives the runtime itself wherever it has nothing to do: it reads the next
//! requests and writes its answers without another thread, whom to wake costs more than all that. While it works, the attendant, which
//! is a thread of its own, looks after sockets and clocks, but not before the work has gone on for a moment.
//!
//! An event loop cannot wait in here. It watches the descriptor of the runtime's epoll, which is readable when there is something to
//! do, and gives the runtime a turn then; so it is while one request follows the other. When it is quiet the attendant drives.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::runtime::Runtime;

/// So long nobody drives before the attendant does: longer than quick requests take, and short beside what people notice.
const TICK: Duration = Duration::from_millis(3);

/// For so many of these the other thread must have been driving alone until the attendant sleeps, to be woken when it leaves.
const QUIET_TICKS: u32 = 7;

/// What is due in one [`Engine::turn`]: what was to be written, and then what has come.
const ROUNDS: u32 = 2;

/// The runtime, and who drives it.
#[derive(Default)]
pub(crate) struct Engine {
    state: Mutex<State>,
    /// The runtime is there, or will not be.
    changed: Condvar,
    /// Wakes the attendant from sleep.
    left: Condvar,
    /// The runtime's epoll, where it was found.
    epoll: OnceLock<RawFd>,
}

#[derive(Default)]
struct State {
    /// Kept to the end of the process: its epoll may still be watched.
    runtime: Option<Arc<Runtime>>,
    is_over: bool,
    /// The other thread drives.
    is_driven: bool,
    /// How often it has come and gone.
    turns: u64,
    attendant: Attendant,
    /// What the attendant has to poll was woken.
    is_woken: bool,
    /// Ends the attendant's driving.
    release: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Attendant {
    /// It looks at every tick.
    #[default]
    Looks,
    Sleeps,
    Drives,
}

impl Engine {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Waits for a future and drives the runtime meanwhile; none when there is no runtime any more, or never was.
    pub(crate) fn drive<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let runtime = self.come(false)?;
        let done = runtime.block_on(future);
        self.go();
        Some(done)
    }

    /// Does what is due, without waiting; false when the attendant drives, and does it anyway.
    pub(crate) fn turn(&self) -> bool {
        let Some(runtime) = self.come(true) else {
            return false;
        };
        let mut rounds = ROUNDS;
        runtime.block_on(poll_fn(|cx| {
            if rounds == 0 {
                return Poll::Ready(());
            }
            rounds -= 1;
            // Called again when all tasks have run, and the sockets were looked at.
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        self.go();
        true
    }

    /// Has the attendant stop driving, because turns will follow from here on. What is to be watched for them; none: it is not known,
    /// and the attendant goes on.
    pub(crate) fn claim(&self) -> Option<RawFd> {
        let epoll = self.epoll.get().copied()?;
        self.come(false)?;
        let mut state = self.lock();
        while state.attendant == Attendant::Drives {
            state = wait(&self.changed, state);
        }
        drop(state);
        self.go();
        Some(epoll)
    }

    /// The other thread drives from here on; not if it wants to be `alone` and the attendant drives.
    fn come(&self, alone: bool) -> Option<Arc<Runtime>> {
        let mut state = self.lock();
        if alone && state.attendant == Attendant::Drives {
            return None;
        }
        while state.runtime.is_none() && !state.is_over {
            state = wait(&self.changed, state);
        }
        let runtime = state.runtime.clone().filter(|_| !state.is_over)?;
        state.is_driven = true;
        state.turns += 1;
        let release = state.release.take();
        drop(state);
        if let Some(release) = release {
            release.wake();
        }
        Some(runtime)
    }

    fn go(&self) {
        let mut state = self.lock();
        state.is_driven = false;
        state.turns += 1;
        if state.attendant == Attendant::Sleeps {
            drop(state);
            self.left.notify_one();
        }
    }

    /// The attendant: sees to it that somebody drives, until this is done.
    pub(crate) fn attend(
        self: &Arc<Self>,
        runtime: Arc<Runtime>,
        mut served: Pin<&mut dyn Future<Output = ()>>,
    ) {
        match epoll_of(&runtime) {
            Ok(epoll) => drop(self.epoll.set(epoll)),
            Err(error) => tracing::debug!(%error, "looking for the runtime's epoll"),
        }
        {
            let mut state = self.lock();
            state.runtime = Some(Arc::clone(&runtime));
            state.is_woken = true;
        }
        self.changed.notify_all();
        let waker = Waker::from(Arc::new(Call(Arc::clone(self))));
        let mut cx = Context::from_waker(&waker);
        let (mut seen, mut quiet) = (0, 0);
        loop {
            let mut state = self.lock();
            if std::mem::take(&mut state.is_woken) {
                drop(state);
                // In the runtime, and whoever drives it, for this is polled here only.
                let polled =
                    runtime.block_on(poll_fn(|_| Poll::Ready(served.as_mut().poll(&mut cx))));
                if polled.is_ready() {
                    break;
                }
                continue;
            }
            let is_still = std::mem::replace(&mut seen, state.turns) == state.turns;
            quiet = if is_still && state.is_driven {
                quiet + 1
            } else {
                0
            };
            if is_still && !state.is_driven {
                state.attendant = Attendant::Drives;
                drop(state);
                runtime.block_on(poll_fn(|cx| self.poll_released(cx)));
                let mut state = self.lock();
                state.attendant = Attendant::Looks;
                state.release = None;
                seen = state.turns;
                drop(state);
                self.changed.notify_all();
            } else if quiet >= QUIET_TICKS {
                state.attendant = Attendant::Sleeps;
                state = wait(&self.left, state);
                state.attendant = Attendant::Looks;
            } else {
                let looked = self.left.wait_timeout(state, TICK);
                drop(looked.unwrap_or_else(PoisonError::into_inner));
            }
        }
        self.give_up();
    }

    /// There is nothing to drive any more, or never was.
    pub(crate) fn give_up(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    fn poll_released(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.is_driven || state.is_woken {
            return Poll::Ready(());
        }
        state.release = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait<'a>(changed: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    changed.wait(state).unwrap_or_else(PoisonError::into_inner)
}

/// Calls the attendant, wherever it is.
struct Call(Arc<Engine>);

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Self(engine) = &**self;
        let mut state = engine.lock();
        state.is_woken = true;
        let release = state.release.take();
        let sleeps = state.attendant == Attendant::Sleeps;
        drop(state);
        if let Some(release) = release {
            release.wake();
        } else if sleeps {
            engine.left.notify_one();
        }
    }
}

/// The descriptor of a runtime's epoll: the one on which the runtime watches what it was told to watch just now.
fn epoll_of(runtime: &Runtime) -> io::Result<RawFd> {
    let _entered = runtime.enter();
    let (_sender, watched) = pipe::pipe()?;
    let number = watched.as_raw_fd().to_string();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let entry = entry?;
        // Others come and go meanwhile.
        let Ok(text) = fs::read_to_string(entry.path()) else {
            continue;
        };
        // Of an epoll there is a line for each descriptor that it watches (proc(5)).
        let mut targets = text.lines().filter_map(|line| {
            let mut words = line.strip_prefix("tfd:")?.split_ascii_whitespace();
            words.next()
        });
        if targets.any(|target| target == number) {
            let found = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            return found.ok_or_else(|| io::ErrorKind::InvalidData.into());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
