//! The access log: one tnetstring list per request, as Mongrel2 writes it.
//!
//! `[host, remote address, remote port, time, method, path, version, status, size]`, and a line feed. Unlike Mongrel2's, a
//! line is written when the response has ended and has its true status and the bytes of its body. A thread of its own
//! does the writing: a disk that is slow costs lines (they are counted), never requests.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

use crate::metrics::Name;
use crate::tnetstring::Value;

/// Lines that may wait for the disk. At 150 bytes each this is 10 MB at most.
const LINES_MAX: usize = 65_536;

/// How long the end of the front may wait for the writer.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known of a request when it is dispatched, kept until its line is written.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) host: std::rc::Rc<str>,
    pub(super) remote: std::net::SocketAddr,
    pub(super) method: Box<[u8]>,
    pub(super) path: Box<[u8]>,
    pub(super) version: &'static str,
}

/// The open log.
#[derive(Debug)]
pub struct AccessLog {
    /// `None` once the log is finished.
    orders: RefCell<Option<SyncSender<Order>>>,
    reopen: Arc<AtomicBool>,
    /// Disconnected when the writer has ended.
    ended: Receiver<()>,
}

enum Order {
    Write(Vec<u8>),
    /// Look whether the file is to be opened again.
    Reopen,
}

impl AccessLog {
    /// Opens the file for appending, making it if need be, and starts the writer.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or the thread not be started.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let (sender, receiver) = sync_channel(LINES_MAX);
        let path = path.to_owned();
        let reopen = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&reopen);
        let (end, ended) = mpsc::channel();
        // Ends, and drops its end of the channel, when the sender is dropped.
        let _writer = std::thread::Builder::new()
            .name("access log".into())
            .spawn(move || {
                let _end = end;
                write_lines(&receiver, &path, &asked, BufWriter::new(file));
            })?;
        Ok(Self {
            orders: RefCell::new(Some(sender)),
            reopen,
            ended,
        })
    }

    /// Opens the file of that name again: it was renamed.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
        // Only to wake the writer: with a full queue it is awake, or stuck in a disk that we must not wait for.
        if let Some(orders) = &*self.orders.borrow() {
            drop(orders.try_send(Order::Reopen));
        }
    }

    /// Waits until every line is on its way to the disk, but not for a disk that is stuck. Later lines are lost.
    pub(super) fn finish(&self) {
        self.orders.take();
        // Nothing is ever sent: what is waited for is the writer's end.
        let _ended_in_time = self.ended.recv_timeout(FINISH_TIMEOUT);
    }

    pub(super) fn write(&self, line: &Line, status: u16, size: u64) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seconds = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let address = line.remote.ip().to_string();
        let list = Value::List(vec![
            Value::Bytes(line.host.as_bytes()),
            Value::Bytes(address.as_bytes()),
            Value::Integer(i64::from(line.remote.port())),
            Value::Integer(seconds),
            Value::Bytes(&line.method),
            Value::Bytes(&line.path),
            Value::Bytes(line.version.as_bytes()),
            Value::Integer(i64::from(status)),
            Value::Integer(i64::try_from(size).unwrap_or(i64::MAX)),
        ]);
        let mut bytes = Vec::with_capacity(160);
        list.encode(&mut bytes);
        bytes.push(b'\n');
        if let Some(orders) = &*self.orders.borrow()
            && let Err(TrySendError::Full(_)) = orders.try_send(Order::Write(bytes))
        {
            Name::AccessLinesDropped.increment();
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn write_lines(
    orders: &Receiver<Order>,
    path: &Path,
    reopen: &AtomicBool,
    mut file: BufWriter<File>,
) {
    loop {
        // Lines go out together while more are waiting, and at once when none is.
        let order = match orders.try_recv() {
            Ok(order) => order,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                complain(path, file.flush());
                match orders.recv() {
                    Ok(order) => order,
                    Err(_) => break,
                }
            }
        };
        if reopen.swap(false, Ordering::Acquire) {
            complain(path, file.flush());
            match open(path) {
                Ok(new) => file = BufWriter::new(new),
                Err(error) => tracing::error!("reopen access log {}: {error}", path.display()),
            }
        }
        match order {
            Order::Write(line) => complain(path, file.write_all(&line)),
            Order::Reopen => {}
        }
    }
    complain(path, file.flush());
}

fn complain(path: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!("write access log {}: {error}", path.display());
    }
}
