//! The access log: one tnetstring list per request, as Mongrel2 writes it.
//!
//! `[host, remote address, remote port, time, method, path, version, status, size]`, and a line feed. Unlike Mongrel2's, a
//! line is written when the response has ended and has its true status and the bytes of its body. A thread of its own
//! does the writing: a disk that is slow costs lines (they are counted), never requests.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::metrics::Name;
use crate::tnetstring::Value;

/// Lines that may wait for the disk. At 150 bytes each this is 10 MB at most.
const LINES_MAX: usize = 65_536;

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
    lines: Option<SyncSender<Order>>,
    writer: Option<JoinHandle<()>>,
}

enum Order {
    Write(Vec<u8>),
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
        let writer = std::thread::Builder::new()
            .name("access log".into())
            .spawn(move || write_lines(&receiver, &path, BufWriter::new(file)))?;
        Ok(Self {
            lines: Some(sender),
            writer: Some(writer),
        })
    }

    /// Opens the file of that name again: it was renamed.
    pub fn reopen(&self) {
        if let Some(lines) = &self.lines {
            // A full queue is no reason to lose the order; the writer is alive as long as we are.
            drop(lines.send(Order::Reopen));
        }
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
        if let Some(lines) = &self.lines
            && let Err(TrySendError::Full(_)) = lines.try_send(Order::Write(bytes))
        {
            Name::AccessLinesDropped.increment();
        }
    }
}

impl Drop for AccessLog {
    /// Waits until every line is on its way to the disk.
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            drop(writer.join());
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn write_lines(orders: &Receiver<Order>, path: &Path, mut file: BufWriter<File>) {
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
        match order {
            Order::Write(line) => complain(path, file.write_all(&line)),
            Order::Reopen => {
                complain(path, file.flush());
                match open(path) {
                    Ok(new) => file = BufWriter::new(new),
                    Err(error) => tracing::error!("reopen access log {}: {error}", path.display()),
                }
            }
        }
    }
    complain(path, file.flush());
}

fn complain(path: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!("write access log {}: {error}", path.display());
    }
}
