//! What a balancer is told once: bounds, times and policies, each with its default and the reason for it.
//!
//! Numbers only. Where they come from (a column, an option of the command line) and how they are written is for others.

use std::time::Duration;

/// The rules of one pool. The default is meant for a broker in front of workers that say how many slots they have;
/// [`Rules::for_front`] for the handlers of a front's route.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Requests in flight at a worker that does not say how many it can do at once; `None`: no wall.
    pub slots: Option<u32>,
    /// Most requests that a worker holds beyond its slots so that it need not wait for the next one. Two keep workers busy
    /// that answer within a hop; more would be bound to a worker earlier than needed.
    pub prefetch_max: u32,
    /// Most requests that wait.
    pub queue_max: usize,
    /// Most requests that wait for each slot of the workers that are there, if all say how many they have: what is behind
    /// that many would not be answered in good time. `None`: only [`Rules::queue_max`] counts.
    pub queue_per_slot: Option<u32>,
    /// Most bytes of requests that wait.
    pub queue_bytes_max: usize,
    /// Longest time that a request waits for a worker.
    pub wait_max: Duration,
    /// Longest time that a request waits while no worker is there at all: as long as a deploy may take.
    pub start_grace: Duration,
    /// How often a request may be begun by a worker: the first time, and again where its worker dies and it is safe.
    pub attempts_max: u8,
    /// Share of the last ten seconds' requests that may be begun a second time, besides a small number that always may; `None`: all.
    /// Without a bound a crash would double the load of those that are left.
    pub retry_budget: Option<f64>,
    /// A request that was begun by so many workers that died, or may have been, is not given to a further one; zero: however many.
    pub quarantine_after: u8,
    /// Whether and when a worker that is much slower than the others gets nothing for a time.
    pub outlier: Option<Outlier>,
    /// How long a silent worker is waited for before it is taken for dead.
    pub suspect_grace: Duration,
    /// Whether requests with a key go to the worker of that key.
    pub sticky: Option<Sticky>,
    /// Whether a request is refused at once when it would probably not be begun within its deadline.
    pub shed_late: bool,
    /// Which of the requests that wait is next.
    pub order: Order,
    /// Which of several equally busy workers is next.
    pub tie: Tie,
    /// Time in which a worker that has just come is brought up to its full share; zero: at once.
    pub slow_start: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            slots: Some(1),
            prefetch_max: 2,
            queue_max: 4096,
            queue_per_slot: Some(4),
            queue_bytes_max: 64 << 20,
            wait_max: Duration::from_secs(5),
            start_grace: Duration::from_secs(5),
            attempts_max: 2,
            retry_budget: Some(0.2),
            quarantine_after: 2,
            outlier: None,
            suspect_grace: Duration::from_secs(3),
            sticky: None,
            shed_late: true,
            order: Order::Fifo,
            tie: Tie::LongestIdle,
            slow_start: Duration::ZERO,
        }
    }
}

impl Rules {
    /// The rules of a front's own handlers, which say nothing of themselves: no wall, a long and patient queue, nothing shed
    /// before its time, every safe request tried twice.
    pub fn for_front() -> Self {
        Self {
            slots: None,
            queue_per_slot: None,
            wait_max: Duration::from_secs(30),
            start_grace: Duration::from_secs(30),
            retry_budget: None,
            shed_late: false,
            ..Self::default()
        }
    }
}

/// When a worker is left out because it is slow: its 99th percentile against that of the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outlier {
    /// So many times slower than the median worker.
    pub factor: f64,
    /// And slower by so much at least: among answers within microseconds a factor means nothing.
    pub excess: Duration,
    /// Answers that a worker must have given before it is judged.
    pub samples_min: u32,
    /// How often the workers are compared.
    pub interval: Duration,
    /// For how long it gets nothing, the first time; each further time once more of it, up to ten times.
    pub ejection: Duration,
    /// Panic guard: at most this share of the workers is left out at once.
    pub share_max: f64,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            factor: 5.0,
            excess: Duration::from_millis(50),
            samples_min: 100,
            interval: Duration::from_secs(5),
            ejection: Duration::from_secs(30),
            share_max: 0.3,
        }
    }
}

/// How much a key binds its requests to one worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sticky {
    /// A worker takes requests by their key up to so many times the mean in flight; then the next best of that key does.
    /// Below one it counts as one.
    pub bound: f64,
    /// Wait so long for the one worker of the key, however busy it is, before another will do; `None`: do not wait.
    pub strict: Option<Duration>,
}

impl Default for Sticky {
    fn default() -> Self {
        Self {
            bound: 1.25,
            strict: None,
        }
    }
}

/// Which of the requests that wait is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The oldest.
    Fifo,
    /// The oldest; but while the oldest has waited longer than `target` for some time, the youngest: then some are answered in time
    /// and not all too late.
    AdaptiveLifo {
        /// A wait that is well.
        target: Duration,
    },
}

/// Which of several equally busy workers is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    /// The one that has been idle for longest: fair.
    LongestIdle,
    /// The one that was busy last: warm caches, and others may sleep.
    MostRecent,
}
