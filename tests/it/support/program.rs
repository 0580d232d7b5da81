//! Child processes: started, listened to line by line, stopped politely, killed when a test panics.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::client::{Asked, Client};

/// How long the last lines of a program that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running program whose standard error (and output) is read into lines.
pub(crate) struct Program {
    child: Child,
    name: String,
    lines: Arc<Lines>,
}

#[derive(Default)]
struct Lines {
    read: Mutex<Vec<String>>,
    more: Condvar,
    /// How many outputs have not ended.
    open: AtomicUsize,
}

impl Program {
    /// Starts `command`; both its outputs end in the same list of lines.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_with_stdin(command, Stdio::null())
    }

    /// The same with a standard input.
    pub(crate) fn start_with_stdin(command: &mut Command, stdin: impl Into<Stdio>) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        let lines = Arc::new(Lines::default());
        lines.open.store(2, Ordering::Release);
        let stderr = child.stderr.take().expect("piped");
        let stdout = child.stdout.take().expect("piped");
        for stream in [
            Box::new(stderr) as Box<dyn std::io::Read + Send>,
            Box::new(stdout),
        ] {
            let lines = Arc::clone(&lines);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    lines.read.lock().unwrap().push(text);
                    lines.more.notify_all();
                    line.clear();
                }
                lines.open.fetch_sub(1, Ordering::Release);
                lines.more.notify_all();
            });
        }
        Self { child, name, lines }
    }

    /// The program under test with these arguments, in this working directory.
    pub(crate) fn lurcher(arguments: &[&str], directory: &Path) -> Self {
        Self::start(
            Command::new(env!("CARGO_BIN_EXE_lurcher"))
                .args(arguments)
                .current_dir(directory),
        )
    }

    /// Mongrel2 itself on a database; `None`, with a printed line, when it is not installed.
    pub(crate) fn mongrel2(database: &Path, uuid: &str, directory: &Path) -> Option<Self> {
        if Command::new("mongrel2")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            println!("skipped: mongrel2 is not installed (Debian: mongrel2-core)");
            return None;
        }
        Some(Self::start(
            Command::new("mongrel2")
                .arg(database)
                .arg(uuid)
                .current_dir(directory),
        ))
    }

    /// The first `listening on http://ADDR` (or https) address this program prints.
    pub(crate) fn listening(&mut self) -> SocketAddr {
        self.line("listening on http://ADDR", |line| {
            let address = line.split_once("listening on http")?.1;
            let address = address.trim_start_matches('s').strip_prefix("://")?;
            address.split([' ', '/']).next()?.parse().ok()
        })
    }

    /// Waits until Mongrel2 answers there. Its socket takes connections half a second before anything reads them.
    pub(crate) fn answering(&mut self, address: SocketAddr) {
        self.answering_over(address, &|client| Ok(client));
    }

    /// As [`Program::answering`], with what turns a client into one that is understood there.
    pub(crate) fn answering_over(
        &mut self,
        address: SocketAddr,
        secure: &dyn Fn(Client) -> std::io::Result<Client>,
    ) {
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(
                self.alive(),
                "{self}\nended before it listened on {address}"
            );
            assert!(Instant::now() < end, "{self}\ndoes not answer on {address}");
            if let Ok(mut client) = Client::try_connect(address).and_then(secure) {
                // No request at all: refused by the server itself, whatever its routes.
                if client.send(b"?\r\n\r\n").is_ok()
                    && client.try_answer(Asked::Other, PATIENCE).is_some()
                {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for a line that `choose` finds something in.
    pub(crate) fn line<T>(&mut self, what: &str, choose: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let (mut seen, mut ended) = (0, false);
        loop {
            {
                let mut lines = self.lines.read.lock().unwrap();
                while let Some(line) = lines.get(seen) {
                    if let Some(found) = choose(line) {
                        return found;
                    }
                    seen += 1;
                }
                lines = self
                    .lines
                    .more
                    .wait_timeout(lines, Duration::from_millis(50))
                    .unwrap()
                    .0;
                drop(lines);
            }
            // Its last words may have come since they were looked at.
            assert!(!ended, "{self}\nended before it printed {what}");
            ended = !self.alive() && self.lines.open.load(Ordering::Acquire) == 0;
            assert!(Instant::now() < end, "{self}\ndid not print {what}");
        }
    }

    /// Everything it has printed so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.read.lock().unwrap().clone()
    }

    /// Waits until it prints something more, at most so long.
    pub(crate) fn wait_for_lines(&self, wait: Duration) {
        let lines = self.lines.read.lock().unwrap();
        drop(self.lines.more.wait_timeout(lines, wait).unwrap());
    }

    /// Waits until so many lines have said this.
    pub(crate) fn said(&mut self, text: &str, times: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            let lines = self.lines.read.lock().unwrap();
            if lines.iter().filter(|line| line.contains(text)).count() >= times {
                return;
            }
            drop(
                self.lines
                    .more
                    .wait_timeout(lines, Duration::from_millis(50))
                    .unwrap(),
            );
            assert!(
                Instant::now() < end,
                "{self}\ndid not say {text:?} {times} times"
            );
        }
    }

    /// Whether the process still runs.
    pub(crate) fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, then waits for the end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended()
    }

    /// Sends a signal by name. Through the shell: the tests hold no unsafe code.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -{signal} {}", self.id()))
            .status();
        assert!(
            sent.is_ok_and(|status| status.success()),
            "kill -{signal} {}",
            self.id()
        );
    }

    /// SIGKILL, and reaps the process.
    pub(crate) fn kill(&mut self) {
        // The process may be gone already; either way it is reaped.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Waits for the process to end by itself, and for its last words.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE * 4;
        loop {
            if let Some(status) = self.child.try_wait().expect("waiting for a child") {
                self.read_to_end();
                return status;
            }
            assert!(Instant::now() < end, "{self}\ndoes not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What was printed before the end may not have been read yet. Whoever it has started may keep the outputs open and is not waited for.
    fn read_to_end(&self) {
        let end = Instant::now() + LAST_WORDS;
        let mut lines = self.lines.read.lock().unwrap();
        while self.lines.open.load(Ordering::Acquire) > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            // It is told without the lock, so that one word may be missed.
            let wait = left.min(Duration::from_millis(10));
            lines = self.lines.more.wait_timeout(lines, wait).unwrap().0;
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines.read.lock().unwrap();
        write!(f, "{} printed {} lines:", self.name, lines.len())?;
        lines
            .iter()
            .rev()
            .take(40)
            .rev()
            .try_for_each(|line| write!(f, "\n    {line}"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}
