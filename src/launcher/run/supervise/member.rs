//! One worker's process, as its supervisor sees it: how it is started, what it says, what it is told, how it ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::crew::Id;
use super::order::{MESSAGE_MAX, Message, Order, Word};
use super::words::Words;
use super::zygote::{self, Born, Fork, Zygote};
use crate::drain::Watch;
use crate::launcher::process::{PART, link, link::Link};
use crate::launcher::run::access_log::Sink;
use crate::launcher::run::plan::App;
use crate::launcher::run::source::PART_OF;
use crate::launcher::run::worker::WORKER;

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
    /// It was forked, as this process.
    Born(u32),
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
    /// Its process id; 0 while it is not forked yet.
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
    let (mut child, socket) = spawn(order, program, log, &format!("worker {number}"))?;
    let failed = || format!("start worker {number} with {}", program.display());
    let pid = child.id().with_context(failed)?;
    let link = Link::new(socket, MESSAGE_MAX).with_context(failed)?;
    let (wishes, wished) = mpsc::channel(WISHES_MAX);
    let attendant = Attendant {
        id,
        pid,
        is_program: matches!(order.plan.app, App::Exec { .. }),
        words: Words::new(order.plan.worker(number), child.stderr.take()),
        process: Process::Child(child),
        link: Some(link),
        news: news.clone(),
    };
    watch.spawn_local(attendant.attend(wished));
    Ok(Member { pid, wishes })
}

/// Starts a worker by having it forked; what becomes of it goes to `news`.
pub(super) fn fork(
    id: Id,
    order: &Order,
    zygote: &Zygote,
    news: &mpsc::Sender<(Id, News)>,
    watch: &Watch,
) -> anyhow::Result<Member> {
    let number = order.number;
    let failed = || format!("fork worker {number}");
    let (ours, theirs) = UnixStream::pair().with_context(failed)?;
    let (stderr, writer) = io::pipe().with_context(failed)?;
    let stderr = pipe::Receiver::from_owned_fd(stderr.into()).with_context(failed)?;
    // Opened with the rights of this process, as workers that are started do it.
    let log = match &order.plan.access_log {
        Some(path) if path.as_os_str() != "-" => Some(Sink::open(path).with_context(failed)?),
        _ => None,
    };
    let fork = Fork {
        socket: theirs.into(),
        stderr: writer.into(),
        order: zygote::written(order).with_context(failed)?,
        log: log.and_then(Sink::into_descriptor),
    };
    let link = Link::new(ours, MESSAGE_MAX).with_context(failed)?;
    let words = Words::new(order.plan.worker(number), Some(stderr));
    let (wishes, mut wished) = mpsc::channel(WISHES_MAX);
    let (zygote, news) = (zygote.clone(), news.clone());
    watch.spawn_local(async move {
        let born = tokio::select! {
            born = zygote.fork(fork) => born,
            // What is forked all the same finds nobody at the other end, and ends.
            () = unwanted(&mut wished) => {
                let why = io::Error::other("it was not wanted any more before it was forked");
                Err((why, Vec::new()))
            }
        };
        let Born { pid, end } = match born {
            Ok(born) => born,
            Err((error, last_words)) => {
                let status = Err(error);
                let ended = News::Ended { status, last_words };
                // The supervisor listens as long as there is a worker.
                drop(news.send((id, ended)).await);
                return;
            }
        };
        let attendant = Attendant {
            id,
            pid,
            is_program: false,
            process: Process::Forked(end),
            link: Some(link),
            words,
            news,
        };
        attendant.tell(News::Born(pid)).await;
        attendant.attend(wished).await;
    });
    Ok(Member { pid: 0, wishes })
}

/// Waits until a worker is told to end.
async fn unwanted(wishes: &mut mpsc::Receiver<Wish>) {
    while wishes.recv().await.is_some_and(|wish| wish == Wish::Reopen) {}
}

/// Starts this program anew with an order; what it says is to be read. The socket is to it.
pub(super) fn spawn(
    order: &Order,
    program: &Path,
    log: Option<&str>,
    who: &str,
) -> anyhow::Result<(Child, UnixStream)> {
    let failed = || format!("start {who} with {}", program.display());
    let (ours, theirs) = UnixStream::pair().with_context(failed)?;
    let mut command = Command::new(program);
    command
        // It is for people who look at a list of processes.
        .arg0("lurcher")
        .args(who.split(' '))
        .args(["of", &order.plan.name])
        .envs(order.plan.env.iter().map(|(name, value)| (name, value)))
        .env(PART, WORKER)
        // Whom the service manager listens to is the supervisor.
        .env_remove("NOTIFY_SOCKET")
        // That it is one of several groups is the supervisor's matter.
        .env_remove(PART_OF)
        .stdin(OwnedFd::from(theirs))
        .stderr(Stdio::piped())
        // A terminal's ctrl-C is for the supervisor.
        .process_group(0)
        .kill_on_drop(true);
    if let Some(log) = log {
        command.env("LURCHER_LOG", log);
    }
    let child = command.spawn().with_context(failed)?;
    // Its end of the socket, which would otherwise stay open here.
    drop(command);
    // Where it has ended already, its status says why.
    drop(link::send(&ours, &order.encode(), &[]));
    Ok((child, ours))
}

/// How the end of a worker is learned.
enum Process {
    Child(Child),
    /// From the zygote, which stays as long as it has children.
    Forked(oneshot::Receiver<ExitStatus>),
}

impl Process {
    /// Waits for its end.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    async fn wait(&mut self) -> io::Result<ExitStatus> {
        match self {
            Self::Child(child) => child.wait().await,
            Self::Forked(end) => {
                let end = end.await;
                end.map_err(|_| io::Error::other("what it was forked from has ended"))
            }
        }
    }
}

/// Who looks after a worker.
struct Attendant {
    id: Id,
    pid: u32,
    /// Whether it is a program of the user's own, which says nothing.
    is_program: bool,
    process: Process,
    /// Closed by a program when it has begun.
    link: Option<Link>,
    words: Words,
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
                status = self.process.wait() => break status,
                message = message => if let Ok(Some(bytes)) = message {
                    match Message::decode(&bytes) {
                        Some(Message::Ready) => self.tell(News::Ready).await,
                        Some(Message::Counts { in_flight, served }) => {
                            self.tell(News::Counts { in_flight, served }).await;
                        }
                        Some(Message::Read(path)) => {
                            self.tell(News::Read(path.to_owned())).await;
                        }
                        // Of a zygote, or of another version.
                        Some(Message::Forked { .. } | Message::Ended { .. }) | None => {}
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
                () = self.words.show_next() => {}
            }
        };
        if self.is_program {
            // What it has started and not waited for goes with it. Its group has its number for as long as there is anybody in it.
            self.signal(Signal::SIGKILL);
        }
        let (id, news) = (self.id, self.news);
        let last_words = self.words.show_rest().await;
        let ended = News::Ended { status, last_words };
        // The supervisor listens as long as there is a worker.
        drop(news.send((id, ended)).await);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_by_its_path() {
        let found = program().unwrap();
        let is = |path: &Path| std::fs::canonicalize(path).unwrap();
        assert_eq!(is(&found), is(Path::new("/proc/self/exe")));
        assert!(found.is_absolute());
    }
}
