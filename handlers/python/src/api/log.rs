//! What the library has to say, given to Python's `logging`: warnings of a connection that was lost, of messages that are malformed.
//! In a worker of `lurcher run` none of this is done: its log is its supervisor's.
//!
//! Whoever says something may be the thread of the connections, which must never wait for the interpreter's lock: whoever has that may
//! be waiting for the thread. So a record is put into a bounded queue, and a thread of its own brings it to Python. What does
//! not fit is counted and not waited for.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyCFunction;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::errors::ConnectError_;

/// Records that wait for Python.
const RECORDS_MAX: usize = 1024;

/// A record's text is cut there.
const TEXT_MAX: usize = 4096;

/// How long the end of the interpreter waits for the last records.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Whether this process is a worker.
static IS_WORKER: AtomicBool = AtomicBool::new(false);

/// This process is a worker, whose log is not Python's.
pub(crate) fn leave_alone() {
    IS_WORKER.store(true, Ordering::Relaxed);
}

/// From a process to its children by fork: each that connects has a queue of its own, since no thread lives on in it. They are never
/// taken away, and there is no lock that could have been held at the fork.
static FIRST: OnceLock<Box<Bridge>> = OnceLock::new();

struct Bridge {
    process: u32,
    orders: SyncSender<Order>,
    lost: AtomicU64,
    next: OnceLock<Box<Bridge>>,
}

enum Order {
    Tell(Told),
    /// Say when all before it is told, and end.
    End(SyncSender<()>),
}

struct Told {
    level: Level,
    target: &'static str,
    text: String,
}

/// Begins to bring records to `logging`, once in each process.
///
/// # Errors
///
/// When no thread can be started.
pub(super) fn begin(py: Python<'_>) -> PyResult<()> {
    if IS_WORKER.load(Ordering::Relaxed) || own().is_some() {
        return Ok(());
    }
    // First, so that it is closed after this.
    py.import("logging")?;
    let (orders, taken) = sync_channel(RECORDS_MAX);
    let ending = Mutex::new(Some(orders.clone()));
    let process = std::process::id();
    let bridge = Bridge {
        process,
        orders,
        lost: AtomicU64::new(0),
        next: OnceLock::new(),
    };
    if !add(Box::new(bridge)) {
        return Ok(());
    }
    let thread = std::thread::Builder::new().name("lurcher-log".to_owned());
    thread.spawn(move || carry(&taken)).map_err(|error| {
        ConnectError_::new_err(format!("starting a thread for the log: {error}"))
    })?;
    let end = PyCFunction::new_closure(py, None, None, move |args, _| {
        let orders = ending.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A child by fork that ends has no such thread.
        if let Some(orders) = orders.filter(|_| std::process::id() == process) {
            args.py().detach(|| end(&orders));
        }
    })?;
    py.import("atexit")?.call_method1("register", (end,))?;
    // Somebody else's in this process stays.
    drop(tracing::subscriber::set_global_default(Ears));
    Ok(())
}

/// The last records are told while there is an interpreter.
fn end(orders: &SyncSender<Order>) {
    let (sender, done) = sync_channel(1);
    if orders.try_send(Order::End(sender)).is_ok() {
        // Whoever takes longer loses them.
        let _ok = done.recv_timeout(LAST_WORDS);
    }
}

/// Puts it behind the last one; false when this process has one already.
fn add(mut bridge: Box<Bridge>) -> bool {
    let mut place = &FIRST;
    loop {
        match place.set(bridge) {
            Ok(()) => return true,
            Err(back) => bridge = back,
        }
        match place.get() {
            Some(known) if known.process != bridge.process => place = &known.next,
            _ => return false,
        }
    }
}

/// This process's.
fn own() -> Option<&'static Bridge> {
    let process = std::process::id();
    let mut place = &FIRST;
    loop {
        let bridge = place.get()?;
        if bridge.process == process {
            return Some(bridge);
        }
        place = &bridge.next;
    }
}

/// Brings records to Python until the end.
fn carry(orders: &Receiver<Order>) {
    while let Ok(mut order) = orders.recv() {
        let told = Python::try_attach(|py| {
            loop {
                match order {
                    Order::Tell(told) => tell(py, &told),
                    Order::End(done) => return Some(done),
                }
                match orders.try_recv() {
                    Ok(next) => order = next,
                    Err(_) => break,
                }
            }
            let lost = own().map_or(0, |own| own.lost.swap(0, Ordering::Relaxed));
            if lost > 0 {
                let text = format!("{lost} records were lost: they came too fast");
                let (level, target) = (Level::WARN, "lurcher");
                tell(
                    py,
                    &Told {
                        level,
                        target,
                        text,
                    },
                );
            }
            None
        });
        match told {
            Some(None) => {}
            Some(Some(done)) => {
                let _ok = done.send(());
                return;
            }
            // There is no interpreter any more.
            None => return,
        }
    }
}

fn tell(py: Python<'_>, told: &Told) {
    let number = match told.level {
        Level::ERROR => 40,
        Level::WARN => 30,
        _ => 20,
    };
    let name = told.target.replace("::", ".");
    let told = py
        .import("logging")
        .and_then(|logging| logging.call_method1("getLogger", (name,)))
        .and_then(|logger| logger.call_method1("log", (number, "%s", &told.text)));
    if let Err(error) = told {
        // As Python does it with what is raised where nobody catches it.
        error.write_unraisable(py, None);
    }
}

/// Hears what the library says. Spans are nothing to it.
struct Ears;

impl Subscriber for Ears {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("lurcher")
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let Some(own) = own() else { return };
        let mut text = Text::default();
        event.record(&mut text);
        let mut text = text.message + &text.fields;
        let cut = (0..=TEXT_MAX.min(text.len())).rfind(|at| text.is_char_boundary(*at));
        text.truncate(cut.unwrap_or_default());
        let told = Told {
            level: *event.metadata().level(),
            target: event.metadata().target(),
            text,
        };
        if own.orders.try_send(Order::Tell(told)).is_err() {
            own.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event as one line of text.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        // Writing to a String does not fail.
        let _ok = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
