//! The program's own log: on stderr, and in a server's error log once that is known.
//!
//! The error log has Mongrel2's form, `Fri, 20 Nov 2026 09:24:32 GMT [INFO] (src/file.rs:12) text`, and its levels: 0 error,
//! 1 warn, 2 info, 3 debug.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt as stderr_log};

use super::process::output_to;

/// Installs the log. `directives` is what `--log` or `LURCHER_LOG` said; the default is `info`.
pub(super) fn install(directives: Option<&str>) {
    let filter = EnvFilter::builder().parse_lossy(directives.unwrap_or("info"));
    let stderr = stderr_log::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_filter(filter)
        .with_filter(dynamic_filter_fn(|_, _| {
            !LEFT_STDERR.load(Ordering::Relaxed)
        }));
    tracing_subscriber::registry()
        .with(stderr)
        .with(ErrorLog)
        .init();
}

/// The open error log of the process.
static FILE: Mutex<Option<(PathBuf, File)>> = Mutex::new(None);

/// How much goes into it: 0 nothing yet, 1 errors, up to 4 with debug.
static VERBOSITY: AtomicUsize = AtomicUsize::new(0);

/// Begins to write the log into this file too, down to one of Mongrel2's levels.
///
/// # Errors
///
/// When the file cannot be opened.
pub(super) fn open_error_log(path: &Path, level: i64) -> io::Result<()> {
    let file = open(path)?;
    if let Ok(mut slot) = FILE.lock() {
        *slot = Some((path.to_owned(), file));
    }
    set_verbosity(level);
    Ok(())
}

/// Writes into the error log down to another of Mongrel2's levels from now on, if there is one.
pub(super) fn set_level(level: i64) {
    if FILE.lock().is_ok_and(|slot| slot.is_some()) {
        set_verbosity(level);
    }
}

fn set_verbosity(level: i64) {
    VERBOSITY.store(
        usize::try_from(level.clamp(0, 3)).unwrap_or(2) + 1,
        Ordering::Relaxed,
    );
}

/// Whether nobody reads stderr any more.
static LEFT_STDERR: AtomicBool = AtomicBool::new(false);

/// Logs into the error log alone from now on, and lets what else is written to stdout and stderr go there too: a last word
/// of the runtime is not lost. Without an error log it changes nothing.
///
/// # Errors
///
/// When the system does not let it be so.
pub(super) fn leave_stderr() -> io::Result<()> {
    let Ok(slot) = FILE.lock() else { return Ok(()) };
    if let Some((_, file)) = slot.as_ref() {
        output_to(file)?;
        LEFT_STDERR.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Opens the file of that name again: it was renamed.
pub(super) fn reopen_error_log() {
    let Ok(mut slot) = FILE.lock() else { return };
    let Some((path, file)) = slot.as_mut() else {
        return;
    };
    let result = open(path).and_then(|new| {
        if LEFT_STDERR.load(Ordering::Relaxed) {
            output_to(&new)?;
        }
        *file = new;
        Ok(())
    });
    let path = path.clone();
    drop(slot);
    if let Err(error) = result {
        tracing::error!("reopen error log {}: {error}", path.display());
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Writes events into [`FILE`].
struct ErrorLog;

impl<S: Subscriber> Layer<S> for ErrorLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let (rank, name) = match *metadata.level() {
            Level::ERROR => (1, "ERROR"),
            Level::WARN => (2, "WARN"),
            Level::INFO => (3, "INFO"),
            Level::DEBUG => (4, "DEBUG"),
            Level::TRACE => return,
        };
        if rank > VERBOSITY.load(Ordering::Relaxed) || !metadata.target().starts_with("lurcher") {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let date = httpdate::fmt_http_date(SystemTime::now());
        let (file, line) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
        let line = format!(
            "{date} [{name}] ({file}:{line}) {}{}\n",
            text.message, text.fields
        );
        if let Ok(mut slot) = FILE.lock()
            && let Some((_, file)) = slot.as_mut()
        {
            // A log that cannot be written must not take the server down; stderr has the line too.
            drop(file.write_all(line.as_bytes()));
        }
    }
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
