//! The process that workers are forked from (`--preload`), as the supervisor sees it: started like a worker, asked for one fork after
//! the other, and told by it how its children have ended, since nobody else hears that. It ends when nobody needs it.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::rc::Rc;

use anyhow::Context as _;
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};

use super::member;
use super::order::{MESSAGE_MAX, Message, Order};
use super::words::Words;
use crate::drain::Watch;
use crate::launcher::process::link::Link;

/// Forks that are not done yet. There are as many workers at most, and each waits for its own.
const FORKS_MAX: usize = 4096;

/// What is said with the descriptors of a worker that is to be forked.
const FORK: &[u8] = b"4:fork,";

/// What a worker that is to be forked gets.
pub(super) struct Fork {
    /// To the supervisor.
    pub(super) socket: OwnedFd,
    /// Its standard error.
    pub(super) stderr: OwnedFd,
    /// Its order, in a file of memory.
    pub(super) order: OwnedFd,
    /// The access log, open.
    pub(super) log: Option<OwnedFd>,
}

/// A worker that was forked.
pub(super) struct Born {
    /// Its process.
    pub(super) pid: u32,
    /// How it ends.
    pub(super) end: oneshot::Receiver<ExitStatus>,
}

/// See the module. Clones mean the same process.
#[derive(Clone)]
pub(super) struct Zygote {
    forks: mpsc::Sender<(Fork, oneshot::Sender<Born>)>,
    /// How it has ended, and its last words.
    fate: Rc<RefCell<(String, Vec<String>)>>,
}

impl Zygote {
    /// Starts it. Where it fails, so do all that are to be forked from it.
    ///
    /// # Errors
    ///
    /// When the process cannot be started.
    pub(super) fn start(
        order: &Order,
        program: &Path,
        log: Option<&str>,
        watch: &Watch,
    ) -> anyhow::Result<Self> {
        let (mut child, socket) = member::spawn(order, program, log, "zygote")?;
        let link = Link::new(socket, MESSAGE_MAX).context("talk with the zygote")?;
        let words = Words::new("zygote".to_owned(), child.stderr.take());
        let (forks, wanted) = mpsc::channel(FORKS_MAX);
        let fate = Rc::new(RefCell::new(Default::default()));
        let attendant = Attendant {
            child,
            link: Some(link),
            words,
            forking: VecDeque::new(),
            ends: HashMap::new(),
            fate: Rc::clone(&fate),
        };
        watch.spawn_local(attendant.attend(wanted));
        Ok(Self { forks, fate })
    }

    /// Whether it has ended, and another is needed.
    pub(super) fn is_gone(&self) -> bool {
        self.forks.is_closed()
    }

    /// Forks a worker.
    ///
    /// # Errors
    ///
    /// When the zygote has ended: how, and its last words.
    pub(super) async fn fork(&self, fork: Fork) -> Result<Born, (io::Error, Vec<String>)> {
        let (sender, born) = oneshot::channel();
        drop(self.forks.send((fork, sender)).await);
        born.await.map_err(|_| {
            let (how, words) = self.fate.borrow().clone();
            let why = format!("what workers are forked from ended: {how}");
            (io::Error::other(why), words)
        })
    }
}

/// A file of memory with an order in it.
///
/// # Errors
///
/// When memory or descriptors have run out.
pub(super) fn written(order: &Order) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("order", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&order.encode())?;
    file.rewind()?;
    Ok(file.into())
}

/// Who looks after it.
struct Attendant {
    child: Child,
    link: Option<Link>,
    words: Words,
    /// Forks that it was asked for.
    forking: VecDeque<oneshot::Sender<Born>>,
    /// Its children.
    ends: HashMap<i32, oneshot::Sender<ExitStatus>>,
    fate: Rc<RefCell<(String, Vec<String>)>>,
}

impl Attendant {
    async fn attend(mut self, mut wanted: mpsc::Receiver<(Fork, oneshot::Sender<Born>)>) {
        let (mut is_ready, mut is_needed) = (false, true);
        let status = loop {
            if !is_needed && self.ends.is_empty() && self.forking.is_empty() {
                // It ends when it finds its socket closed.
                self.link = None;
            }
            let message = async {
                match &mut self.link {
                    Some(link) => link.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                status = self.child.wait() => break status,
                message = message => match message {
                    Ok(Some(bytes)) => match Message::decode(&bytes) {
                        Some(Message::Ready) => is_ready = true,
                        Some(Message::Forked { pid }) => self.born(pid),
                        Some(Message::Ended { pid, status }) => {
                            if let Some(end) = self.ends.remove(&pid) {
                                // Its attendant may have given it up.
                                let _ok = end.send(ExitStatus::from_raw(status));
                            }
                        }
                        _ => {}
                    },
                    _ => self.link = None,
                },
                fork = wanted.recv(), if is_needed && is_ready => match fork {
                    Some((fork, born)) => self.ask(&fork, born).await,
                    None => is_needed = false,
                },
                () = self.words.show_next() => {}
            }
        };
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        *self.fate.borrow_mut() = (how, self.words.show_rest().await);
        // Whoever waits for a fork, or for the end of a child, hears of it now.
    }

    async fn ask(&mut self, fork: &Fork, born: oneshot::Sender<Born>) {
        let Some(link) = &mut self.link else { return };
        let Fork {
            socket,
            stderr,
            order,
            log,
        } = fork;
        let with = [Some(socket), Some(stderr), Some(order), log.as_ref()];
        let with: Vec<BorrowedFd<'_>> = with.into_iter().flatten().map(|fd| fd.as_fd()).collect();
        if link.send_with(FORK, &with).await.is_ok() {
            self.forking.push_back(born);
        }
    }

    fn born(&mut self, pid: i32) {
        let (sender, end) = oneshot::channel();
        self.ends.insert(pid, sender);
        let pid = u32::try_from(pid).unwrap_or_default();
        if let Some(born) = self.forking.pop_front() {
            // One who does not want it any more has closed its socket, by which it ends.
            drop(born.send(Born { pid, end }));
        }
    }
}
