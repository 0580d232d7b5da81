//! Ends a worker that has got stuck (`--timeout`): a thread in which a request gets no further, or a loop that does not turn. The process
//! goes, since nobody can stop a thread from outside; its supervisor puts another in its place.
//!
//! It is a thread that never takes the interpreter's lock, which may be what a stuck one holds. Time in which the client is waited for,
//! who may be as slow as he likes, does not count; a piece of a response that is sent is progress.

use std::cell::OnceCell;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lurcher::handler::Request;

use crate::wait::Bell;

/// How often it looks, in parts of the timeout; not more often than the second, nor more rarely than the third.
const LOOKS: u32 = 8;
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// The one of this process, where there is one.
static DOG: OnceLock<Dog> = OnceLock::new();

struct Dog {
    begun: Instant,
    threads: Mutex<Vec<Arc<Thread>>>,
    /// Since when the loop has owed an answer, as [`Thread::since`].
    asked: AtomicU64,
    /// By what it is asked, where there is a loop.
    bell: Option<Bell>,
    /// Whether it is to turn: applications are started before it has requests, and ended after them, in as long as they need.
    turns: AtomicBool,
    /// What the loop has begun with last: the likeliest to hold it up.
    latest: Mutex<Asked>,
}

/// A thread that answers requests.
#[derive(Default)]
struct Thread {
    /// When it got further last, in milliseconds after the beginning and one more; 0: it need not.
    since: AtomicU64,
    request: Mutex<Asked>,
}

/// What is told of a request; of none there is no method. It is noted for each, so the room for it is kept.
#[derive(Default)]
struct Asked {
    method: Vec<u8>,
    path: Vec<u8>,
}

/// More of a path is not told.
const PATH_MAX: usize = 1024;

thread_local! {
    static THREAD: OnceCell<Arc<Thread>> = const { OnceCell::new() };
}

/// Begins to watch threads, and with `has_loop` a loop too, which waits for [`descriptor`] and answers by [`turned`].
///
/// # Errors
///
/// When no thread can be started, or descriptors have run out.
pub(crate) fn start(timeout: Duration, has_loop: bool) -> std::io::Result<()> {
    let bell = has_loop.then(Bell::new).transpose()?;
    let dog = DOG.get_or_init(|| Dog {
        begun: Instant::now(),
        threads: Mutex::default(),
        asked: AtomicU64::new(0),
        bell,
        turns: AtomicBool::new(false),
        latest: Mutex::default(),
    });
    let look = (timeout / LOOKS).clamp(LOOK_MIN, LOOK_MAX);
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || dog.watch(timeout, look))?;
    Ok(())
}

/// This thread begins with a request.
pub(crate) fn begin(request: &Request) {
    of_this_thread(|dog, thread| {
        locked(&thread.request).note(request);
        thread.since.store(dog.now(), Ordering::Relaxed);
    });
}

/// It has got further with it, or has waited for somebody else.
pub(crate) fn progress() {
    of_this_thread(|dog, thread| {
        if thread.since.load(Ordering::Relaxed) != 0 {
            thread.since.store(dog.now(), Ordering::Relaxed);
        }
    });
}

/// It waits for somebody else until [`resume`].
pub(crate) fn pause() {
    of_this_thread(|_, thread| thread.since.store(0, Ordering::Relaxed));
}

/// It does so no longer.
pub(crate) fn resume() {
    of_this_thread(|dog, thread| {
        if !locked(&thread.request).is_none() {
            thread.since.store(dog.now(), Ordering::Relaxed);
        }
    });
}

/// The request is answered.
pub(crate) fn end() {
    of_this_thread(|_, thread| {
        thread.since.store(0, Ordering::Relaxed);
        locked(&thread.request).clear();
    });
}

/// What becomes readable when the loop is asked whether it turns; none: nobody asks.
pub(crate) fn descriptor() -> Option<RawFd> {
    Some(DOG.get()?.bell.as_ref()?.descriptor())
}

/// The loop has turned: it has found the descriptor readable.
pub(crate) fn turned() {
    if let Some(dog) = DOG.get() {
        if let Some(bell) = &dog.bell {
            bell.silence();
        }
        dog.asked.store(0, Ordering::Relaxed);
    }
}

/// The loop serves from now on, or no longer.
pub(crate) fn loop_serves(turns: bool) {
    if let Some(dog) = DOG.get() {
        dog.turns.store(turns, Ordering::Relaxed);
        dog.asked.store(0, Ordering::Relaxed);
    }
}

/// The loop begins with a request.
pub(crate) fn loop_begins(request: &Request) {
    if let Some(dog) = DOG.get() {
        locked(&dog.latest).note(request);
    }
}

fn of_this_thread(act: impl FnOnce(&Dog, &Thread)) {
    let Some(dog) = DOG.get() else {
        return;
    };
    THREAD.with(|thread| {
        let thread = thread.get_or_init(|| {
            let thread = Arc::<Thread>::default();
            locked(&dog.threads).push(Arc::clone(&thread));
            thread
        });
        act(dog, thread);
    });
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Dog {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).map_or(u64::MAX, |now| now + 1)
    }

    fn watch(&self, timeout: Duration, look: Duration) {
        // Its end is the end of the process.
        loop {
            let before = Instant::now();
            std::thread::park_timeout(look);
            // What the whole process did not have, because it was stopped or starved, is nobody's fault.
            let lost = before.elapsed().saturating_sub(look);
            let allowed = timeout + lost;
            if let Some(what) = self.stuck(allowed) {
                end_process(&what, timeout);
            }
            if let Some(bell) = &self.bell
                && self.turns.load(Ordering::Relaxed)
                && self.asked.load(Ordering::Relaxed) == 0
            {
                self.asked.store(self.now(), Ordering::Relaxed);
                bell.ring();
            }
        }
    }

    /// What has been stuck for so long.
    fn stuck(&self, allowed: Duration) -> Option<String> {
        let now = self.now();
        let allowed = u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX);
        let is_over = |since: u64| since != 0 && now.saturating_sub(since) > allowed;
        if self.turns.load(Ordering::Relaxed) && is_over(self.asked.load(Ordering::Relaxed)) {
            let latest = locked(&self.latest);
            let what = if latest.is_none() {
                String::new()
            } else {
                format!(" (the last request that it began with was {latest})")
            };
            return Some(format!("the event loop stands still{what}"));
        }
        let threads = locked(&self.threads);
        let stuck = threads
            .iter()
            .find(|thread| is_over(thread.since.load(Ordering::Relaxed)))?;
        let asked = locked(&stuck.request);
        Some(format!("{asked} gets no further"))
    }
}

impl Asked {
    fn note(&mut self, request: &Request) {
        self.clear();
        self.method
            .extend_from_slice(request.method().unwrap_or_default());
        let path = request.path.get(..PATH_MAX).unwrap_or(&request.path);
        self.path.extend_from_slice(path);
    }

    fn clear(&mut self) {
        self.method.clear();
        self.path.clear();
    }

    fn is_none(&self) -> bool {
        self.method.is_empty() && self.path.is_empty()
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).escape_debug().to_string();
        write!(f, "{} {}", text(&self.method), text(&self.path))
    }
}

/// Says why, and goes in the way that has the interpreter say where all its threads are.
fn end_process(what: &str, timeout: Duration) -> ! {
    let seconds = timeout.as_secs_f64();
    eprintln!(
        "lurcher: {what} for {seconds} seconds (--timeout): this worker ends, and another takes its place; where its threads are:"
    );
    std::process::abort()
}
