//! One worker's process, as its supervisor sees it: how it is started, what it says, what it is told, how it ended.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::crew::Id;
use super::order::{MESSAGE_MAX, Message, Order, Word};
use crate::drain::Watch;
use crate::launcher::process::{PART, link, link::Link};
use crate::launcher::run::plan::App;
use crate::launcher::run::worker::WORKER;

/// A longer line of a worker is shown in pieces, in bytes.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// So many lines are kept as the last words of a worker, as long as they are not larger than so many bytes together.
const LAST_LINES: usize = 20;
const LAST_BYTES: usize = 8 << 10;

/// How long what a dead worker has written is waited for: a child of its own may hold the pipe.
const LAST_WORDS_TIME: Duration = Duration::from_millis(200);

/// A program of the user's own that has run for so long has started, where nothing better tells.
const RAN: Duration = Duration::from_secs(1);

/// Wishes that are not carried out yet.
const WISHES_MAX: usize = 8;

/// What has become of a worker.
#[derive(Debug)]
pub(super) enum News {
    /// It serves; of a program: it has run for a while.
    Ready,
    /// How it does.
    Counts { in_flight: u64, served: u64 },
    /// It has read this file.
    Read(PathBuf),
    /// It is gone, with these last words.
    Ended {
        status: io::Result<ExitStatus>,
        last_words: Vec<String>,
    },
}

/// What a supervisor wants of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// To finish and end.
    Drain,
    /// To open its access log again.
    Reopen,
    /// To end at once.
    Kill,
}

/// A worker's process.
#[derive(Debug)]
pub(super) struct Member {
    /// Its process id.
    pub(super) pid: u32,
    wishes: mpsc::Sender<Wish>,
}

impl Member {
    /// Asks it for something.
    pub(super) fn wish(&self, wish: Wish) {
        // One that has so many wishes open, or has ended, needs no other.
        let _ok = self.wishes.try_send(wish);
    }
}

/// The program that workers are: the one that this process was started from, by its path, so that a newer one that is put there
/// is what the next worker runs.
pub(super) fn program() -> io::Result<PathBuf> {
    let running = std::fs::metadata("/proc/self/exe")?;
    let is_it = |path: &Path| {
        let found = std::fs::metadata(path);
        found.is_ok_and(|found| (found.dev(), found.ino()) == (running.dev(), running.ino()))
    };
    let typed = std::env::args_os().next().unwrap_or_default();
    let typed = Path::new(&typed);
    let found = if typed.parent().is_some_and(|parent| parent != Path::new("")) {
        std::path::absolute(typed).ok().filter(|path| is_it(path))
    } else {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let mut paths = std::env::split_paths(&folders).map(|folder| folder.join(typed));
        paths.find(|path| is_it(path))
    };
    found.map_or_else(std::env::current_exe, Ok)
}

/// Starts a worker; what becomes of it goes to `news`.
pub(super) fn start(
    id: Id,
    order: &Order,
    program: &Path,
    log: Option<&str>,
    news: &mpsc::Sender<(Id, News)>,
    watch: &Watch,
) -> anyhow::Result<Member> {
    let number = order.number;
    let failed = || format!("start worker {number} with {}", program.display());
    let (ours, theirs) = UnixStream::pair().with_context(failed)?;
    let mut command = Command::new(program);
    command
        // It is for people who look at a list of processes.
        .arg0("lurcher")
        .args([
            OsStr::new("worker"),
            OsString::from(number.to_string()).as_ref(),
        ])
        .args(["of", &order.plan.name])
        .envs(order.plan.env.iter().map(|(name, value)| (name, value)))
        .env(PART, WORKER)
        // Whom the service manager listens to is the supervisor.
        .env_remove("NOTIFY_SOCKET")
        .stdin(OwnedFd::from(theirs))
        .stderr(Stdio::piped())
        // A terminal's ctrl-C is for the supervisor.
        .process_group(0)
        .kill_on_drop(true);
    if let Some(log) = log {
        command.env("LURCHER_LOG", log);
    }
    let mut child = command.spawn().with_context(failed)?;
    // Its end of the socket, which would otherwise stay open here.
    drop(command);
    let pid = child.id().with_context(failed)?;
    // Where it has ended already, its status says why.
    drop(link::send(&ours, &order.encode(), &[]));
    let link = Link::new(ours, MESSAGE_MAX).with_context(failed)?;
    let (wishes, wished) = mpsc::channel(WISHES_MAX);
    let attendant = Attendant {
        id,
        number,
        pid,
        is_program: matches!(order.plan.app, App::Exec { .. }),
        stderr: child.stderr.take().map(BufReader::new),
        child,
        link: Some(link),
        line: Vec::new(),
        last: Last::default(),
        news: news.clone(),
    };
    watch.spawn_local(attendant.attend(wished));
    Ok(Member { pid, wishes })
}

/// Who looks after a worker.
struct Attendant {
    id: Id,
    number: u32,
    pid: u32,
    /// Whether it is a program of the user's own, which says nothing.
    is_program: bool,
    child: Child,
    /// Closed by a program when it has begun.
    link: Option<Link>,
    stderr: Option<BufReader<ChildStderr>>,
    line: Vec<u8>,
    last: Last,
    news: mpsc::Sender<(Id, News)>,
}

impl Attendant {
    async fn attend(mut self, mut wishes: mpsc::Receiver<Wish>) {
        let mut ran = None;
        let status = loop {
            let message = async {
                match &mut self.link {
                    Some(link) => link.next().await,
                    None => std::future::pending().await,
                }
            };
            let has_run = async {
                match ran {
                    Some(when) => sleep_until(when).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                status = self.child.wait() => break status,
                message = message => if let Ok(Some(bytes)) = message {
                    match Message::decode(&bytes) {
                        Some(Message::Ready) => self.tell(News::Ready).await,
                        Some(Message::Counts { in_flight, served }) => {
                            self.tell(News::Counts { in_flight, served }).await;
                        }
                        Some(Message::Read(path)) => {
                            self.tell(News::Read(path.to_owned())).await;
                        }
                        None => {}
                    }
                } else {
                    // Its end; a program that has begun has closed it, and one that could not begin ends now.
                    self.link = None;
                    ran = self.is_program.then(|| Instant::now() + RAN);
                },
                () = has_run => {
                    ran = None;
                    self.tell(News::Ready).await;
                }
                Some(wish) = wishes.recv() => self.carry_out(wish).await,
                read = read_line(&mut self.stderr, &mut self.line) => self.show(read),
            }
        };
        if self.is_program {
            // What it has started and not waited for goes with it. Its group has its number for as long as there is anybody in it.
            self.signal(Signal::SIGKILL);
        }
        let rest = async {
            while self.stderr.is_some() {
                let read = read_line(&mut self.stderr, &mut self.line).await;
                self.show(read);
            }
        };
        drop(timeout(LAST_WORDS_TIME, rest).await);
        let last_words = self.last.lines.into();
        let ended = News::Ended { status, last_words };
        // The supervisor listens as long as there is a worker.
        drop(self.news.send((self.id, ended)).await);
    }

    async fn tell(&self, news: News) {
        // As above.
        drop(self.news.send((self.id, news)).await);
    }

    async fn carry_out(&mut self, wish: Wish) {
        match (wish, &mut self.link) {
            (Wish::Kill, _) => self.signal(Signal::SIGKILL),
            (Wish::Drain, _) if self.is_program => self.signal(Signal::SIGTERM),
            (Wish::Drain, Some(link)) => drop(link.send(&[Word::Drain.byte()]).await),
            (Wish::Reopen, Some(link)) => drop(link.send(&[Word::Reopen.byte()]).await),
            _ => {}
        }
    }

    /// To it and all that it has started.
    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.pid) {
            // It has ended already otherwise.
            let _ok = killpg(Pid::from_raw(pid), signal);
        }
    }

    /// Passes a line on to this process's own stderr.
    fn show(&mut self, read: bool) {
        if self.line.is_empty() {
            if !read {
                self.stderr = None;
            }
            return;
        }
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        let mut text = format!("worker {}: ", self.number).into_bytes();
        text.extend_from_slice(line);
        self.last.keep(line);
        text.push(b'\n');
        // Nobody may read it.
        drop(io::stderr().lock().write_all(&text));
        self.line.clear();
    }
}

/// Reads to the end of a line, or a piece of a long one; false at the end of all.
///
/// # Cancel safety
///
/// Safe: what was read is in `line`.
async fn read_line(stderr: &mut Option<BufReader<ChildStderr>>, line: &mut Vec<u8>) -> bool {
    let Some(stderr) = stderr else {
        return std::future::pending().await;
    };
    let room = LINE_BYTES_MAX.saturating_sub(line.len() as u64);
    let read = stderr.take(room).read_until(b'\n', line).await;
    read.is_ok_and(|read| read > 0)
}

/// What was said last.
#[derive(Default)]
struct Last {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Last {
    fn keep(&mut self, line: &[u8]) {
        let line = line.get(..line.len().min(LAST_BYTES)).unwrap_or_default();
        let line = String::from_utf8_lossy(line).into_owned();
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > LAST_LINES || (self.bytes > LAST_BYTES && self.lines.len() > 1) {
            let gone = self.lines.pop_front();
            self.bytes -= gone.map_or(0, |line| line.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_bounded() {
        let mut last = Last::default();
        for at in 0..1000 {
            last.keep(format!("line {at}").as_bytes());
        }
        assert_eq!(last.lines.len(), LAST_LINES);
        assert_eq!(last.lines.back().map(String::as_str), Some("line 999"));
        last.keep(&vec![b'x'; 1 << 20]);
        assert_eq!((last.lines.len(), last.bytes), (1, LAST_BYTES));
        last.keep(b"\xff");
        last.keep(b"end");
        assert_eq!(last.lines.back().map(String::as_str), Some("end"));
        assert!(last.bytes <= LAST_BYTES);
    }

    #[test]
    fn the_program_is_found_by_its_path() {
        let found = program().unwrap();
        let is = |path: &Path| std::fs::canonicalize(path).unwrap();
        assert_eq!(is(&found), is(Path::new("/proc/self/exe")));
        assert!(found.is_absolute());
    }
}
