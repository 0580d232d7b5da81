//! Every server of a configuration, each in a process of its own, so that what one of them suffers is not the others'.
//!
//! The process that holds them passes signals on, puts the server's name before each line of their logs, and ends when they
//! have ended. When one does not start, none runs. It restarts nothing.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tracing::{error, info};

use super::super::signals::{STOP, Signals};
use super::outside::Above;
use super::systemd::{self, Manager};
use super::{READY, own_arguments, respawn, take_hangup};
use crate::config::{self, LoadError};
use crate::drain::{self, Watch};

/// A longer line of a log is shown in pieces, in bytes.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// Events that may wait; a member makes two in its life.
const EVENTS_MAX: usize = 64;

/// How long the tasks that watch members may take when all members have ended.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts every server and stays until all have ended.
pub(super) fn hold(path: Option<&Path>, above: Above) -> anyhow::Result<ExitCode> {
    let path = config::find(path)?;
    let servers = servers(&path)?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("start the runtime")?;
    runtime.block_on(stay(&servers, above))
}

/// Name and uuid of every server. A server with a mistake stands against all.
fn servers(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let reading = config::read(path)?;
    if reading.has_errors() {
        return Err(LoadError {
            diagnostics: reading.diagnostics,
        }
        .into());
    }
    let mut uuids = HashSet::new();
    let mut servers = Vec::new();
    for candidate in reading.candidates {
        let (name, uuid) = (candidate.name, candidate.uuid);
        if !uuids.insert(uuid.clone()) {
            bail!(
                "{}: two servers have the uuid {uuid:?}: only the first can be named",
                path.display()
            );
        }
        servers.push((if name.is_empty() { uuid.clone() } else { name }, uuid));
    }
    if servers.is_empty() {
        bail!("{}: there is no server in it", path.display());
    }
    Ok(servers)
}

/// What became of a member, by its index.
enum Event {
    Ready(usize),
    Ended(usize, std::io::Result<ExitStatus>),
}

struct Member {
    name: String,
    pid: Pid,
    /// Whether its pid is still its own.
    runs: Rc<Cell<bool>>,
    is_ready: bool,
}

async fn stay(servers: &[(String, String)], mut above: Above) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::of(STOP.into_iter().chain([
        SignalKind::hangup(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ]))?;
    let manager = Manager::from_environment();
    let (signal, watch) = drain::channel();
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let mut members = Vec::new();
    for (name, uuid) in servers {
        let index = members.len();
        members.push(start(index, name, uuid, &sender, &watch)?);
    }
    drop(sender);
    take_hangup()?;
    let (mut failed, mut stopping, mut told, mut held) = (false, false, false, true);
    while members.iter().any(|member| member.runs.get()) {
        tokio::select! {
            kind = signals.next() => {
                if STOP.contains(&kind) {
                    stopping = true;
                    manager.stopping();
                }
                let reloads = told && !stopping && kind == SignalKind::hangup();
                if reloads {
                    manager.reloading();
                }
                pass_on(&members, kind);
                // What becomes of it each of them tells its own log.
                if reloads {
                    manager.ready();
                }
            }
            () = above.gone(), if held => {
                (held, stopping) = (false, true);
                pass_on(&members, SignalKind::terminate());
            }
            event = events.recv() => match event {
                Some(Event::Ready(index)) => members[index].is_ready = true,
                Some(Event::Ended(index, status)) => {
                    let member = &members[index];
                    let fine = status.as_ref().is_ok_and(ExitStatus::success);
                    let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                    failed |= !fine;
                    if !told && !stopping {
                        error!("server {} does not start: {how}: all are ended", member.name);
                        (failed, stopping) = (true, true);
                        pass_on(&members, SignalKind::terminate());
                    } else if !fine {
                        let others = if stopping { "" } else { ": the others go on" };
                        error!("server {} ended: {how}{others}", member.name);
                    }
                }
                // Every member has ended.
                None => break,
            },
        }
        if !told && !stopping && members.iter().all(|member| member.is_ready) {
            told = true;
            info!("{} servers run", members.len());
            above.ready().context("go into the background")?;
            manager.ready();
        }
    }
    // The last words of those that have ended may still be on their way.
    signal.finish(FINISH_TIMEOUT).await;
    while let Ok(event) = events.try_recv() {
        failed |= matches!(event, Event::Ended(_, status) if !status.as_ref().is_ok_and(ExitStatus::success));
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn pass_on(members: &[Member], kind: SignalKind) {
    let Ok(signal) = Signal::try_from(kind.as_raw_value()) else {
        return;
    };
    for member in members.iter().filter(|member| member.runs.get()) {
        if let Err(error) = kill(member.pid, signal) {
            error!("pass {signal} on to server {}: {error}", member.name);
        }
    }
}

fn start(
    index: usize,
    name: &str,
    uuid: &str,
    events: &mpsc::Sender<Event>,
    watch: &Watch,
) -> anyhow::Result<Member> {
    // What was typed, for one server instead of all.
    let arguments = own_arguments()
        .filter(|argument| {
            !["--every", "--daemon", "--foreground"]
                .iter()
                .any(|option| argument == option)
        })
        .chain([OsString::from(format!("--server={uuid}"))]);
    let (command, socket) = respawn("member", arguments)?;
    let mut command = Command::from(command);
    command
        // Nothing is written there, and whoever reads this process's output must not wait for theirs.
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Who is told is who holds them; and a terminal's ctrl-C comes by it.
        .env_remove("NOTIFY_SOCKET");
    if !systemd::has_listeners() {
        // What this process did not get it cannot leave to others, who would take their own descriptors for it.
        command.env_remove(systemd::LISTENERS);
    }
    command.process_group(0).kill_on_drop(true);
    let failed = || format!("start a process for server {name}");
    let child = command.spawn().with_context(failed)?;
    drop(command);
    socket.set_nonblocking(true).with_context(failed)?;
    let socket = UnixStream::from_std(socket).with_context(failed)?;
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .with_context(failed)?;
    let runs = Rc::new(Cell::new(true));
    let member = Member {
        name: name.to_owned(),
        pid: Pid::from_raw(pid),
        runs: Rc::clone(&runs),
        is_ready: false,
    };
    watch.spawn_local(live(
        index,
        name.to_owned(),
        child,
        socket,
        runs,
        events.clone(),
    ));
    Ok(member)
}

/// A member's life, as seen by who holds it.
async fn live(
    index: usize,
    name: String,
    mut child: Child,
    mut socket: UnixStream,
    runs: Rc<Cell<bool>>,
    events: mpsc::Sender<Event>,
) {
    let stderr = child.stderr.take();
    let ready = async {
        let mut word = [0; READY.len()];
        if socket.read_exact(&mut word).await.is_ok() {
            // Nobody listens any more only when all is over.
            drop(events.send(Event::Ready(index)).await);
        }
    };
    let shown = async {
        if let Some(stderr) = stderr {
            show(&name, BufReader::new(stderr)).await;
        }
    };
    let life = async {
        let status = child.wait().await;
        runs.set(false);
        status
    };
    let ((), (), status) = tokio::join!(ready, shown, life);
    // The socket's end is ours to the members: it is closed after theirs only.
    drop(socket);
    drop(events.send(Event::Ended(index, status)).await);
}

async fn show(name: &str, mut lines: BufReader<tokio::process::ChildStderr>) {
    let mut line = Vec::new();
    while (&mut lines)
        .take(LINE_BYTES_MAX)
        .read_until(b'\n', &mut line)
        .await
        .is_ok_and(|read| read > 0)
    {
        let mut text = format!("{name}: ").into_bytes();
        text.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(&line));
        text.push(b'\n');
        // Nobody may read it; the member has a log of its own.
        drop(std::io::stderr().lock().write_all(&text));
        line.clear();
    }
}
