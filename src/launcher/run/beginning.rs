//! A worker that has become another program and has not begun to serve: what that one loads may take its time, and nobody who wants
//! its end should wait for it. It has no requests yet, so its end is sudden. Whoever serves listens by himself ([`super::worker`]).

use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{MsgFlags, recv};

use super::supervise::order::Word;
use super::{worker, zygote};
use crate::launcher::process::title;

/// What a list of processes is to show of a worker that becomes another program.
pub(super) const TITLE: &str = "LURCHER_TITLE";

/// Words that may have come meanwhile. One of each kind is enough.
const WORDS_MAX: usize = 64;

/// How often it is looked again, in milliseconds, when there are words that are for later.
const LOOK_AGAIN: u8 = 100;

/// The one who listens meanwhile.
static BEGINNING: Mutex<Option<Beginning>> = Mutex::new(None);

struct Beginning {
    socket: UnixStream,
    /// Closed when it has ended.
    loads: PipeWriter,
    listener: JoinHandle<()>,
}

/// Shows in the list of processes what this one is, if that is known already.
pub(in crate::launcher) fn name() {
    let Ok(text) = std::env::var(TITLE) else {
        return;
    };
    // Of one that was forked it is its parent's; its number is in its order, which is read later.
    if zygote::socket().is_some() {
        title::show(&text.replacen(" zygote ", " worker ", 1));
    } else {
        title::show(&text);
    }
}

/// Listens to the supervisor until [`end`], in a thread. What else was on standard input's place is nothing from now on.
pub(in crate::launcher) fn begin() -> anyhow::Result<()> {
    let socket = match zygote::socket() {
        Some(socket) => socket.context("listen to the supervisor")?,
        None => worker::supervisor()?,
    };
    let begin = || {
        let listened = socket.try_clone()?;
        let (loads, writer) = io::pipe()?;
        let listener = std::thread::Builder::new().name("supervisor".to_owned());
        let listener = listener.spawn(move || listen(&listened, &loads))?;
        io::Result::Ok((writer, listener))
    };
    let (loads, listener) = begin().context("listen to the supervisor")?;
    let beginning = Beginning {
        socket,
        loads,
        listener,
    };
    *BEGINNING.lock().unwrap_or_else(PoisonError::into_inner) = Some(beginning);
    Ok(())
}

/// All is loaded: the socket is somebody else's to listen to. None: nobody has begun here.
pub(super) fn end() -> Option<UnixStream> {
    let beginning = BEGINNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Beginning {
        socket,
        loads,
        listener,
    } = beginning?;
    drop(loads);
    // It has not panicked, and would have nothing to say.
    let _ok = listener.join();
    Some(socket)
}

/// Looks at what comes, and leaves it there for whoever serves.
fn listen(socket: &UnixStream, loads: &PipeReader) {
    let mut words = [0; WORDS_MAX];
    loop {
        let mut ready = [
            PollFd::new(loads.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let has_loaded = |ready: &PollFd<'_>| ready.revents().is_some_and(|it| !it.is_empty());
        if ready.first().is_some_and(has_loaded) {
            return;
        }
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(socket.as_raw_fd(), &mut words, flags) {
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            // Nobody is left to begin for.
            Ok(0) | Err(_) => leave("its supervisor has gone"),
            Ok(count) => {
                let words = words.get(..count).unwrap_or_default();
                if words.contains(&Word::Drain.byte()) {
                    leave("it was told to stop");
                }
            }
        }
        // What is there is for later, and keeps the socket readable.
        let mut ready = [PollFd::new(loads.as_fd(), PollFlags::POLLIN)];
        let _ok = poll(&mut ready, PollTimeout::from(LOOK_AGAIN));
    }
}

fn leave(why: &str) {
    let words = "while its application was loading or starting: it ends at once";
    // No log is installed yet.
    drop(writeln!(io::stderr(), "lurcher: {why} {words}"));
    let _ok = raise(Signal::SIGKILL);
}
