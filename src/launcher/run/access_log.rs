//! `--access-log`: a line for each request in a file or on standard output, written by a thread of its own. A disk that is slow
//! costs lines, and a word about it, never requests. What a line says is `handler`'s.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing::{error, warn};

use crate::handler::{Counts, Exchange, Observer};
use crate::wire::request::Request;

/// Lines that may wait for the disk. At 200 bytes each this is 3 MB.
const LINES_MAX: usize = 16_384;

/// How long the end may wait for what is not written yet.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The open log.
#[derive(Debug)]
pub(super) struct AccessLog {
    orders: SyncSender<Order>,
    lost: AtomicU64,
}

enum Order {
    Write(String),
    Reopen,
    /// Say when all before it is written.
    Flush(SyncSender<()>),
}

/// Where lines go: open, and not written to yet.
#[derive(Debug)]
pub(super) enum Sink {
    /// Standard output.
    Stdout,
    /// The file of that name.
    File(File, PathBuf),
}

impl Sink {
    /// Opens the file for appending, making it if need be; `-` is standard output.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        // Opened again by this path, wherever the process is then.
        let path = std::path::absolute(path)?;
        Ok(Self::File(open(&path)?, path))
    }

    /// The file that was opened, for another process.
    pub(super) fn into_descriptor(self) -> Option<OwnedFd> {
        match self {
            Self::Stdout => None,
            Self::File(file, _) => Some(file.into()),
        }
    }
}

impl AccessLog {
    /// Begins to write there.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub(super) fn start(sink: Sink) -> io::Result<Self> {
        let (orders, taken) = sync_channel(LINES_MAX);
        let writer = std::thread::Builder::new().name("access log".to_owned());
        writer.spawn(move || write(sink, &taken))?;
        Ok(Self {
            orders,
            lost: AtomicU64::new(0),
        })
    }

    /// Writes a line about a request.
    pub(super) fn write(&self, exchange: &Exchange) {
        let line = format!("{}\n", exchange.combined());
        if self.orders.try_send(Order::Write(line)).is_err() {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            if lost.is_power_of_two() {
                warn!("the access log is not written fast enough: {lost} lines are lost");
            }
        }
    }

    /// Opens the file of that name again: it was renamed.
    pub(super) fn reopen(&self) {
        // Full of lines, it is too slow already.
        let _ok = self.orders.try_send(Order::Reopen);
    }

    /// Waits until all is written, for a while.
    pub(super) fn flush(&self) {
        let (sender, done) = sync_channel(1);
        if self.orders.try_send(Order::Flush(sender)).is_ok() {
            let _ok = done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn write(mut sink: Sink, orders: &Receiver<Order>) {
    let mut failed = 0_u64;
    for order in orders {
        match order {
            Order::Write(line) => {
                // In one piece: other processes write there too.
                let written = match &mut sink {
                    Sink::Stdout => {
                        let mut stdout = io::stdout().lock();
                        stdout
                            .write_all(line.as_bytes())
                            .and_then(|()| stdout.flush())
                    }
                    Sink::File(file, _) => file.write_all(line.as_bytes()),
                };
                if let Err(error) = written {
                    failed += 1;
                    if failed.is_power_of_two() {
                        error!("write the access log: {error}");
                    }
                }
            }
            Order::Reopen => {
                if let Sink::File(file, path) = &mut sink {
                    match open(path) {
                        Ok(new) => *file = new,
                        Err(error) => error!("reopen the access log {}: {error}", path.display()),
                    }
                }
            }
            Order::Flush(done) => drop(done.send(())),
        }
    }
}

/// What a worker keeps of its requests: how many there are, and a line for each where that is wanted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) counts: Counts,
    pub(super) log: Option<AccessLog>,
}

impl Observer for Tally {
    fn wants_texts(&self) -> bool {
        self.log.is_some()
    }

    fn begun(&self, request: &Request) {
        Observer::begun(&self.counts, request);
    }

    fn ended(&self, exchange: &Exchange) {
        Observer::ended(&self.counts, exchange);
        if let Some(log) = &self.log {
            log.write(exchange);
        }
    }
}
