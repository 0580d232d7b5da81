//! The processes of a server: the one that was typed, the one in the background, the one in a jail and its parent, and one
//! for each server of a database.
//!
//! A process never forks itself. It starts this same program anew (`respawn`), with the part to play in the environment and
//! a socket as standard input, so that no thread and no lock is ever copied and nothing of it is unsafe:
//!
//! * `jail` is the parent outside of a chroot: root, small, serving nobody; `inmate` the server inside;
//! * `daemon` goes into the background, and tells the shell whether the start has succeeded;
//! * `every` holds one process for each server of a configuration;
//! * `snapshot` is what they serve, `message` and `link` carry it into a jail;
//! * `outside` is all that a serving process has to do with those around it;
//! * `others` are servers that somebody has started before, and that are sent signals;
//! * `pid_file`, `systemd`, `plan`, `keys`, `stdio` are what they say.
//!
//! How requests are served is the front's; what is typed is `serve`'s.

mod daemon;
mod every;
mod inmate;
mod jail;
mod keys;
pub(super) mod link;
mod message;
mod others;
mod outside;
mod pid_file;
mod plan;
mod snapshot;
mod stdio;
mod systemd;
pub(super) mod title;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, anyhow};
use nix::sys::signal::{SigSet, Signal};
use tracing::warn;

pub(super) use others::{Running, Wish, user_name};
pub(super) use outside::Outside;
pub(super) use plan::Background;
pub(super) use snapshot::Snapshot;
pub(super) use stdio::output_to;

use crate::config::{self, Loaded, Selector};
pub(super) use pid_file::PidFile;
use plan::{Facts, Place, Plan};
use snapshot::Files;
pub(super) use systemd::Manager;

/// The variable that tells a process which part it plays.
pub(super) const PART: &str = "LURCHER_PART";

/// What is written to whoever waits for a process to be ready.
const READY: &[u8] = b"r";

/// Which process this is.
#[derive(Debug)]
enum Part {
    /// The one that somebody has started.
    Typed,
    /// The one in the background; the one that was typed waits at the socket.
    Daemon(UnixStream),
    /// One of several servers; the one that holds them all is at the socket.
    Member(UnixStream),
    /// The server in a jail; its parent is at the socket.
    Inmate(UnixStream),
}

impl Part {
    /// Looks into the environment.
    fn of_this_process() -> anyhow::Result<Part> {
        let Some(name) = std::env::var_os(PART) else {
            return Ok(Part::Typed);
        };
        let socket = || {
            let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
            stdio::Null::open()?.for_input()?;
            // Whoever has set the variable by hand has no socket there.
            let socket = UnixStream::from(socket);
            socket.peer_addr()?;
            std::io::Result::Ok(socket)
        };
        let socket =
            socket().with_context(|| format!("play the part {PART}={}", name.display()))?;
        Ok(match name.to_str() {
            Some("daemon") => Part::Daemon(socket),
            Some("member") => Part::Member(socket),
            Some("inmate") => Part::Inmate(socket),
            _ => return Err(anyhow!("{PART}={}: there is no such part", name.display())),
        })
    }
}

/// Leaves nothing to read on standard input, where a part had its socket.
pub(super) fn no_input() -> std::io::Result<()> {
    stdio::Null::open()?.for_input()
}

/// A command that starts this program anew to play a part, with a socket as its standard input, whose other end comes back.
fn respawn<I>(part: &str, arguments: I) -> anyhow::Result<(Command, UnixStream)>
where
    I: IntoIterator<Item = OsString>,
{
    let (ours, theirs) = UnixStream::pair().context("make a socket for a new process")?;
    // The file that this process was started from, even if another one has its name by now.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(
            std::env::args_os()
                .next()
                .unwrap_or_else(|| OsString::from("lurcher")),
        )
        .args(arguments)
        .env(PART, part)
        .stdin(OwnedFd::from(theirs));
    Ok((command, ours))
}

/// The arguments of this process.
fn own_arguments() -> impl Iterator<Item = OsString> {
    std::env::args_os().skip(1)
}

/// What a process that was started by [`respawn`] is called, instead of `exe`.
fn take_name() {
    // It is for people who look at a list of processes: without it they see another name.
    let _named = nix::sys::prctl::set_name(c"lurcher");
}

/// An exit status as this program's own: a signal is a failure.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// What is to be started.
#[derive(Debug)]
pub(super) struct Order {
    /// The configuration's file, where one was named.
    pub(super) config: Option<std::path::PathBuf>,
    /// Which server of it.
    pub(super) selector: Selector,
    /// All of them instead.
    pub(super) every: bool,
    /// Whether to go into the background.
    pub(super) background: Background,
}

/// A server that this process is to serve.
#[derive(Debug)]
pub(super) struct Ready {
    /// What to serve.
    pub(super) snapshot: Snapshot,
    /// Its TCP listener, where somebody else has bound it.
    pub(super) listener: Option<TcpListener>,
    /// Whom to tell, and to ask.
    pub(super) outside: Outside,
    /// Whether errors stay on stderr, and no error log is written: Mongrel2's test mode.
    pub(super) test_mode: bool,
}

/// Carries an order out: in this process, by `serve`, or by others that it starts and waits for. It is called before
/// anything else: nothing is open yet, and there is no thread and no runtime.
///
/// # Errors
///
/// When the start fails here. When it fails in a process that was started for it, that process has said why, and the exit
/// code tells.
pub(super) fn carry_out(
    order: &Order,
    serve: impl FnOnce(Ready) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    hold_hangup()?;
    let part = Part::of_this_process()?;
    if !matches!(part, Part::Typed) {
        take_name();
    }
    let part = match part {
        Part::Inmate(socket) => {
            // Its parent has gone, and knows why.
            return inmate::enter(socket)?.map_or(Ok(ExitCode::FAILURE), serve);
        }
        other => other,
    };
    if matches!(part, Part::Daemon(_)) {
        daemon::detach_from_terminal()?;
    }
    if order.every {
        // Sockets that were passed are left as they are, for the members.
        return match part {
            Part::Typed if order.background == Background::Yes => daemon::start(),
            part => every::hold(order.config.as_deref(), above(part)?),
        };
    }
    let mut listeners = systemd::listeners(matches!(part, Part::Member(_)));
    let loaded = config::load(order.config.as_deref(), &order.selector)?;
    let plan = plan(&loaded, order.background);
    if plan.daemon && matches!(part, Part::Typed) {
        return daemon::start();
    }
    let above = above(part)?;
    let server = &loaded.config.servers[loaded.server];
    let passed = systemd::matching(
        &mut listeners,
        SocketAddr::new(server.bind_addr, server.port),
    );
    // What was passed for nobody is closed, and not left to fill up.
    if !listeners.is_empty() {
        warn!(
            "{} passed sockets are for other addresses than {}'s",
            listeners.len(),
            server.uuid
        );
    }
    drop(listeners);
    start(loaded, plan.place, passed, above, serve)
}

fn plan(loaded: &Loaded, background: Background) -> Plan {
    let facts = Facts {
        is_root: is_root(),
        is_held: systemd::is_held(),
        daemonize: loaded.config.settings.daemonize,
        background,
    };
    Plan::new(&loaded.config.servers[loaded.server], facts)
}

/// Whether this process may do what only root may.
pub(super) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether a server that is started by the name `mongrel2` stays in the foreground.
pub(super) fn stays_in_foreground(loaded: &Loaded) -> bool {
    !plan(loaded, Background::AsConfigured).daemon
}

/// Starts one server in this process, or a jail for it.
fn start(
    loaded: Loaded,
    place: Place,
    passed: Option<TcpListener>,
    above: outside::Above,
    serve: impl FnOnce(Ready) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let server = &loaded.config.servers[loaded.server];
    let pid_path = place.pid_file(server);
    let chroot = server.chroot.clone();
    let files = Files::new(loaded, place);
    if place == Place::Jail {
        return jail::hold(files, pid_path, passed, above);
    }
    let snapshot = files.first()?;
    raise_open_files(snapshot.settings().max_fd as u64);
    if place == Place::Test {
        warn!(
            "chroot {chroot} is set, and this is not root: test mode, nobody is locked in, and errors are told here only"
        );
    }
    let _pid_file = match &pid_path {
        Some(path) => Some(PidFile::create(path)?),
        None => None,
    };
    serve(Ready {
        snapshot,
        listener: passed,
        outside: Outside::of_files(files, above, Manager::from_environment()),
        test_mode: place == Place::Test,
    })
}

/// Lets a SIGHUP wait until somebody listens to it, which would end this process else: who rotates logs may send one as
/// soon as there is a pid file. A process that is started meanwhile begins the same way.
fn hold_hangup() -> anyhow::Result<()> {
    let held = SigSet::from(Signal::SIGHUP).thread_block();
    held.context("let SIGHUP wait")
}

/// Takes the SIGHUP that has waited, if there was one. To be called when it is listened to.
pub(super) fn take_hangup() -> anyhow::Result<()> {
    let taken = SigSet::from(Signal::SIGHUP).thread_unblock();
    taken.context("take SIGHUP")
}

/// Who waits for this process, and is told when it is ready.
fn above(part: Part) -> anyhow::Result<outside::Above> {
    Ok(match part {
        Part::Typed => outside::Above::Nobody,
        Part::Daemon(socket) => outside::Above::Starter {
            socket,
            // Opened now: who is asked to leave the terminal may have lost sight of /dev by then.
            null: stdio::Null::open().context("open /dev/null")?,
        },
        Part::Member(socket) => outside::Above::Holder(socket),
        Part::Inmate(_) => unreachable!("it has gone into its jail"),
    })
}

/// Mongrel2 sets the limit to `superpoll.max_fd`; here it is raised to that, and never lowered.
fn raise_open_files(wanted: u64) {
    match crate::sys::raise_open_files(wanted) {
        Ok(limit) if limit.soft < wanted => {
            warn!(
                "superpoll.max_fd is {wanted}, but this process may open {} files only",
                limit.soft
            );
        }
        Ok(_) => {}
        Err(error) => warn!("raise the limit on open files to {wanted}: {error}"),
    }
}

/// Tells whoever waits at the socket that this process is ready. That nobody does is no harm.
fn tell_ready(mut socket: &UnixStream) {
    drop(socket.write_all(READY));
}

/// The last part of the path by which the program was called.
pub(super) fn called(program: &OsStr) -> &OsStr {
    std::path::Path::new(program).file_name().unwrap_or(program)
}
