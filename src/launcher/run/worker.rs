//! The process that serves: one handler, its connection, and the way to stop both. It is the one that was typed (`--workers 0`), or
//! a worker: this program started anew, with its order on a socket in place of standard input. A worker whose order is a program of
//! the user's own becomes that program.

use std::convert::Infallible;
use std::io::{Read as _, Seek as _, Write as _, stdin};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, parent_id};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{MsgFlags, send};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::access_log::{AccessLog, Sink, Tally};
use super::patience::Patience;
use super::plan::{App, Plan};
use super::supervise::order::{Message, ORDER_MAX, Order, Word};
use super::{BuiltIn, Drive, Handler, Leaving, Program, Serving, Work, beginning, rights, zygote};
use crate::endpoint::Endpoint;
use crate::handler::{Connection, Counts, Options, Server};
use crate::launcher::process::{PART, link, no_input, title};
use crate::launcher::signals::{STOP, Signals};
use crate::sys;
use crate::wire::worker::NAME_BYTES_MAX;

/// The part that a worker plays, in [`PART`].
pub(super) const WORKER: &str = "worker";

/// The order that was passed on: the number of a file.
const ORDER: &str = "LURCHER_ORDER";

/// The same of an access log that is open, and its path.
const ACCESS_LOG: &str = "LURCHER_ACCESS_LOG_FD";
const ACCESS_LOG_PATH: &str = "LURCHER_ACCESS_LOG_PATH";

/// How long a worker goes on whose supervisor has gone: that one was killed, and somebody wants to start anew.
const ORPHAN_TIME: Duration = Duration::from_secs(2);

/// How often the supervisor is told how it goes, where there is something new.
const REPORTS: Duration = Duration::from_millis(250);

/// Files that are told of at once. Nobody edits more.
const READ_MAX: usize = 10_000;

/// Words of the supervisor that are not obeyed yet.
const WORDS_MAX: usize = 8;

/// Whether this process is a worker.
pub(in crate::launcher) fn is_worker() -> bool {
    std::env::var_os(PART).is_some_and(|part| part == WORKER)
}

/// Does what the supervisor orders.
pub(in crate::launcher) fn obey(built_in: &'static [BuiltIn]) -> anyhow::Result<ExitCode> {
    let socket = supervisor()?;
    let (bytes, _) = link::receive(&socket, ORDER_MAX).context("take the order")?;
    let order = Order::decode(&bytes, built_in).map_err(|why| anyhow!("read the order: {why}"))?;
    let plan = &order.plan;
    // Opened with the rights of the supervisor, and where that one is.
    let log = match (&plan.app, &plan.access_log) {
        (App::BuiltIn { .. }, Some(path)) => Some(open_log(path)?),
        _ => None,
    };
    rights::settle(plan.chdir.as_deref(), plan.umask)?;
    order.rights.take().context("give up root's rights")?;
    match &plan.app {
        App::BuiltIn {
            program: Some(program),
            ..
        } => become_handler(program, &bytes, log.as_ref(), socket),
        App::BuiltIn {
            handler, values, ..
        } => match (handler.run)(values).map_err(anyhow::Error::msg)?.0 {
            Work::Several(_) => bail!("read the order: a worker is of one group"),
            Work::Become(program) => become_handler(&program, &bytes, log.as_ref(), socket),
            Work::Serve(serve, leaving) => {
                let threads = plan.threads;
                serve_here(
                    plan,
                    (serve, leaving),
                    threads,
                    log,
                    Some((socket, order.number)),
                    None,
                )
            }
        },
        App::Exec { .. } => become_program(&order),
    }
}

/// The socket to the supervisor, from its place.
pub(super) fn supervisor() -> anyhow::Result<UnixStream> {
    let socket = || {
        let socket = UnixStream::from(stdin().as_fd().try_clone_to_owned()?);
        // Whoever has set the variable by hand has no socket there.
        socket.peer_addr()?;
        no_input()?;
        std::io::Result::Ok(socket)
    };
    socket().with_context(|| format!("play the part {PART}={WORKER}"))
}

/// Becomes a program that has the handler in it and takes the order from a file that it finds open, and the log, if there is
/// one, from another.
fn become_handler(
    program: &Program,
    order: &[u8],
    log: Option<&Sink>,
    socket: UnixStream,
) -> anyhow::Result<ExitCode> {
    let file = || {
        let file = memfd_create("order", MFdFlags::empty())?;
        let mut file = std::fs::File::from(file);
        file.write_all(order)?;
        file.rewind()?;
        std::io::Result::Ok(file)
    };
    let file = file().context("pass the order on")?;
    let mut command = Command::new(&program.path);
    command
        .args(&program.arguments)
        .env(ORDER, file.as_raw_fd().to_string())
        .env(beginning::TITLE, own_title())
        .stdin(OwnedFd::from(socket));
    if let Some(Sink::File(log, path)) = log {
        sys::inherit(log.as_fd()).context("pass the access log on")?;
        command.env(ACCESS_LOG, log.as_raw_fd().to_string());
        command.env(ACCESS_LOG_PATH, path);
    }
    // It comes back only where it fails.
    let error = command.exec();
    Err(anyhow::Error::new(error).context(format!("start {}", program.path.display())))
}

/// What this process is called in a list of processes: its supervisor has put it there.
fn own_title() -> String {
    let arguments = std::env::args_os();
    let words: Vec<_> = arguments
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}

/// Does what the supervisor has ordered the program that this one was before: its rights and its place are taken already.
pub(in crate::launcher) fn obey_further(
    built_in: &'static [BuiltIn],
    drive: Option<Drive<'_>>,
) -> anyhow::Result<ExitCode> {
    let socket = beginning::end();
    let (socket, bytes, passed) = if let Some(passed) = zygote::passed() {
        (passed.socket, passed.order, Some(passed.log))
    } else {
        let socket = socket.map_or_else(supervisor, Ok)?;
        let mut bytes = Vec::new();
        let mut file = inherited(ORDER)?.context("no order was passed on")?;
        file.read_to_end(&mut bytes).context("take the order")?;
        (socket, bytes, None)
    };
    let order = Order::decode(&bytes, built_in).map_err(|why| anyhow!("read the order: {why}"))?;
    let plan = &order.plan;
    let App::BuiltIn {
        handler, values, ..
    } = &plan.app
    else {
        bail!("read the order: it is for a program of the user's own");
    };
    title::show(&format!("lurcher worker {} of {}", order.number, plan.name));
    let log = match passed {
        Some(log) => log,
        None => inherited(ACCESS_LOG)?,
    };
    let path = match &plan.access_log {
        Some(path) if path.is_absolute() => Some(path.clone()),
        _ => std::env::var_os(ACCESS_LOG_PATH).map(PathBuf::from),
    };
    let log = match (log, path) {
        (Some(file), Some(path)) => Some(Sink::File(file, path)),
        _ => plan.access_log.is_some().then_some(Sink::Stdout),
    };
    let Work::Serve(serve, leaving) = (handler.run)(values).map_err(anyhow::Error::msg)?.0 else {
        bail!("{} does not serve here", handler.name);
    };
    // What serves there has threads of its own.
    let supervisor = Some((socket, order.number));
    serve_here(plan, (serve, leaving), 1, log, supervisor, drive)
}

/// A file that was open when this program began, by the variable with its number.
fn inherited(variable: &str) -> anyhow::Result<Option<std::fs::File>> {
    let Some(number) = std::env::var_os(variable) else {
        return Ok(None);
    };
    let opened = number.to_str().and_then(|number| number.parse().ok());
    let opened = opened.and_then(|number: i32| sys::inherited(number).ok());
    let file = opened.with_context(|| format!("read {variable}"))?;
    Ok(Some(file.into()))
}

/// Becomes the user's program. Its socket to the supervisor closes when that has happened.
fn become_program(order: &Order) -> anyhow::Result<ExitCode> {
    let App::Exec { program, arguments } = &order.plan.app else {
        bail!("a built-in handler is no program");
    };
    // It knows nothing of supervisors, so the system sees to its end. Asked for after all changes of rights, which undo it.
    set_pdeathsig(Signal::SIGKILL).context("ask to end with the supervisor")?;
    if parent_id() != order.supervisor {
        return Ok(ExitCode::FAILURE);
    }
    let (send, recv) = specs(&order.plan);
    let specs = |specs: &[Endpoint]| specs.iter().map(shown).collect::<Vec<_>>().join(",");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_remove(PART)
        .env("LURCHER_SEND_SPEC", specs(&send))
        .env("LURCHER_RECV_SPEC", specs(&recv))
        .env("LURCHER_WORKER", order.number.to_string());
    let plan = &order.plan;
    let brokers = [
        ("LURCHER_WORKER_NAME", Some(worker_name(plan, order.number))),
        ("LURCHER_SLOTS", slots(plan).map(|slots| slots.to_string())),
        ("LURCHER_POOL", plan.pool.clone()),
        ("LURCHER_WEIGHT", Some(plan.weight.to_string())),
    ];
    for (variable, value) in brokers {
        match value.filter(|_| plan.has_broker()) {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
    match &order.plan.ident {
        Some(ident) => command.env("LURCHER_IDENT", ident),
        None => command.env_remove("LURCHER_IDENT"),
    };
    // It comes back only where it fails.
    let error = command.exec();
    Err(anyhow::Error::new(error).context(format!("start {}", program.display())))
}

/// The send specs of a plan, and the recv specs of those that have one.
fn specs(plan: &Plan) -> (Vec<Endpoint>, Vec<Endpoint>) {
    let (send, mut recv): (Vec<_>, Vec<_>) = plan.servers.iter().cloned().unzip();
    recv.retain(|spec| !spec.is_broker());
    (send, recv)
}

/// How many requests a worker takes from a broker at once.
fn slots(plan: &Plan) -> Option<u32> {
    plan.slots.or(plan.concurrency)
}

/// What brokers call a worker: the same after it was replaced, and another's on no machine.
fn worker_name(plan: &Plan, number: u32) -> String {
    let name = format!("{}-{}-{number}", sys::host_name(), plan.name);
    // Its end is what tells workers apart.
    let from = name.len().saturating_sub(NAME_BYTES_MAX);
    let from = (from..name.len()).find(|at| name.is_char_boundary(*at));
    name.get(from.unwrap_or(0)..).unwrap_or_default().to_owned()
}

/// Loads what would be served, as a worker would: only another program can say more than that it can be read.
pub(super) fn check(plan: &Plan) -> anyhow::Result<ExitCode> {
    let App::BuiltIn {
        program: Some(program),
        ..
    } = &plan.app
    else {
        return Ok(ExitCode::SUCCESS);
    };
    let rights = rights::Rights::find(plan.user.as_deref(), plan.group.as_deref())?;
    rights::settle(plan.chdir.as_deref(), plan.umask)?;
    rights.take().context("give up root's rights")?;
    // It comes back only where it fails.
    let error = Command::new(&program.path)
        .args(&program.arguments)
        .envs(plan.env.iter().map(|(name, value)| (name, value)))
        .exec();
    Err(anyhow::Error::new(error).context(format!("start {}", program.path.display())))
}

/// Serves in the process that was typed.
pub(super) fn main(plan: &Plan) -> anyhow::Result<ExitCode> {
    let App::BuiltIn {
        handler, values, ..
    } = &plan.app
    else {
        bail!(
            "running {}: a program of its own needs a supervisor",
            plan.name
        );
    };
    let Work::Serve(serve, leaving) = (handler.run)(values).map_err(anyhow::Error::msg)?.0 else {
        bail!("running {}: it needs a supervisor", plan.name);
    };
    let log = plan.access_log.as_deref().map(open_log).transpose()?;
    serve_here(plan, (serve, leaving), plan.threads, log, None, None)
}

fn open_log(path: &Path) -> anyhow::Result<Sink> {
    Sink::open(path).with_context(|| format!("open the access log {}", path.display()))
}

/// What serves, and how it is asked to stop.
type Served = (Box<dyn FnOnce(Connection) -> Serving>, Leaving);

fn serve_here(
    plan: &Plan,
    serving: Served,
    threads: u32,
    log: Option<Sink>,
    supervisor: Option<(UnixStream, u32)>,
    drive: Option<Drive<'_>>,
) -> anyhow::Result<ExitCode> {
    let log = log.map(AccessLog::start).transpose();
    let log = log.context("write the access log")?;
    let (supervisor, number) = supervisor.unzip();
    let (send, recv) = specs(plan);
    let mut options = Options::new(send);
    options.recv_specs = recv;
    options.slots = slots(plan);
    options.pool.clone_from(&plan.pool);
    options.weight = plan.weight;
    options.name = Some(worker_name(plan, number.unwrap_or_default()));
    options.ident.clone_from(&plan.ident);
    options.chroot.clone_from(&plan.chroot);
    options.upload_store.clone_from(&plan.upload_store);
    let tally = Arc::new(Tally {
        log,
        ..Tally::default()
    });
    if tally.log.is_some() || supervisor.is_some() {
        options.observer = Some(Arc::<Tally>::clone(&tally));
    }
    let mut runtime = if threads > 1 {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = runtime
        .worker_threads(threads.max(1) as usize)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let serve = serve(plan, options, serving, &tally, supervisor);
    let result = if let Some(drive) = drive {
        let mut result = None;
        let runtime = Arc::new(runtime);
        {
            let served = pin!(async { result = Some(serve.await) });
            drive(Arc::clone(&runtime), served);
        }
        match Arc::try_unwrap(runtime) {
            Ok(runtime) => runtime.shutdown_background(),
            // A thread that hangs still has it: it ends with the process.
            Err(held) => std::mem::forget(held),
        }
        result.unwrap_or_else(|| Err(anyhow!("it was not driven to its end")))
    } else {
        let result = runtime.block_on(serve);
        // What is left when a handler was given up must not hold the end up.
        runtime.shutdown_background();
        result
    };
    if let Some(log) = &tally.log {
        log.flush();
    }
    result
}

/// Serves until it is asked to stop, then until all is answered, the time is up or it is asked again.
async fn serve(
    plan: &Plan,
    options: Options,
    (handler, leaving): Served,
    tally: &Arc<Tally>,
    supervisor: Option<UnixStream>,
) -> anyhow::Result<ExitCode> {
    let name = &plan.name;
    let above = supervisor
        .map(|socket| Above::new(socket, Arc::clone(tally)))
        .transpose()
        .context("listen to the supervisor")?;
    // A worker has the time that its supervisor gives it.
    let graceful_timeout = match above {
        Some(_) => Duration::MAX,
        None => plan.graceful_timeout,
    };
    let (mut stop, above) = Stop::new(plan.stop_on_eof, above)?;
    let send_specs = list(options.send_specs.iter());
    let connection = tokio::select! {
        connection = Connection::connect(options) => connection.with_context(|| format!("running `{name}`"))?,
        () = stop.next() => return Ok(ExitCode::SUCCESS),
    };
    let servers: Vec<_> = connection
        .servers()
        .filter(|server| !server.is_broker())
        .collect();
    if servers.is_empty() {
        tracing::info!("handler {name}: connected to {send_specs}");
    } else {
        let replies = list(servers.iter().map(Server::recv_spec));
        tracing::info!("handler {name}: connected to {send_specs}, replies to {replies}");
    }
    let handle = connection.stop_handle();
    let mut serving = handler(connection);
    tell(above.as_ref(), &Message::Ready);
    let mut reports = pin!(report(above.as_ref(), &tally.counts));
    tokio::select! {
        result = &mut serving => {
            result.with_context(|| format!("running `{name}`"))?;
            return Ok(ExitCode::SUCCESS);
        }
        () = stop.next() => {}
        never = &mut reports => match never {},
    }
    tracing::info!("handler {name}: stopping");
    Handler::ask_to_stop(leaving, &handle);
    let why = tokio::select! {
        never = &mut reports => match never {},
        result = &mut serving => {
            result.with_context(|| format!("stopping `{name}`"))?;
            tracing::info!("handler {name}: stopped");
            return Ok(ExitCode::SUCCESS);
        }
        () = tokio::time::sleep(graceful_timeout) => format!("not done after {} seconds", graceful_timeout.as_secs()),
        () = stop.next() => "told so twice".to_owned(),
    };
    // Dropping the connection would wait for replies that the server does not take; the system closes its sockets.
    std::mem::forget(serving);
    bail!("stopping `{name}` at once: {why}");
}

/// A worker's supervisor: what it says, and the way to tell it something.
struct Above {
    words: mpsc::Receiver<()>,
    socket: UnixStream,
}

impl Above {
    /// Listens in a thread of its own: even a handler that blocks the runtime ends when its supervisor has gone.
    fn new(socket: UnixStream, tally: Arc<Tally>) -> std::io::Result<Self> {
        let (sender, words) = mpsc::channel(WORDS_MAX);
        let mut listened = socket.try_clone()?;
        std::thread::Builder::new()
            .name("supervisor".to_owned())
            .spawn(move || {
                let mut byte = [0];
                while listened.read_exact(&mut byte).is_ok() {
                    match byte.first().copied().and_then(Word::of) {
                        Some(Word::Reopen) => {
                            if let Some(log) = &tally.log {
                                log.reopen();
                            }
                        }
                        Some(Word::Drain) => {
                            // Nobody listens when all is over.
                            let _ok = sender.blocking_send(());
                        }
                        None => {}
                    }
                }
                // Nobody is left to be served for.
                drop(sender);
                let (_kept, never) = std::sync::mpsc::channel::<()>();
                let _ok = never.recv_timeout(ORPHAN_TIME);
                let _ok = raise(Signal::SIGKILL);
            })?;
        Ok(Self { words, socket })
    }
}

/// Tells the supervisor how it goes, now and then, for ever; how it goes tells this process how to wait.
async fn report(supervisor: Option<&UnixStream>, counts: &Counts) -> Infallible {
    if supervisor.is_none() {
        return std::future::pending().await;
    }
    let mut told = (0, 0);
    let mut files = Vec::new();
    let mut patience = Patience::default();
    let mut look = tokio::time::interval(REPORTS);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        files.append(&mut READ.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(path) = files.pop() {
            if !tell(supervisor, &Message::Read(&path)) {
                // The supervisor has much to do. It is told the next time.
                files.push(path);
                break;
            }
        }
        let (in_flight, served) = (counts.open(), counts.served());
        patience.look(served);
        if told != (in_flight, served) {
            told = (in_flight, served);
            tell(supervisor, &Message::Counts { in_flight, served });
        }
    }
}

/// Tells the supervisor something. What it has no room for it is not told: it has stopped to listen, and the next message says
/// the same, or it is told again where this returns false.
fn tell(supervisor: Option<&UnixStream>, message: &Message<'_>) -> bool {
    let Some(socket) = supervisor else {
        return true;
    };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(socket.as_raw_fd(), &message.encode(), flags).is_ok()
}

/// Files that were read, and that the supervisor was not told of.
static READ: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Tells the supervisor, in time, that these files were read.
pub(in crate::launcher) fn reads(files: impl IntoIterator<Item = PathBuf>) {
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    read.extend(files);
    read.truncate(READ_MAX);
}

/// What asks a handler to stop: SIGINT, SIGTERM, its supervisor and, where that was asked for, the end of standard input.
struct Stop {
    signals: Signals,
    stdin: Option<oneshot::Receiver<()>>,
    words: Option<mpsc::Receiver<()>>,
}

impl Stop {
    fn new(on_eof: bool, above: Option<Above>) -> anyhow::Result<(Self, Option<UnixStream>)> {
        let (words, socket) = above.map(|above| (above.words, above.socket)).unzip();
        let stop = Self {
            signals: Signals::of(STOP)?,
            stdin: on_eof.then(end_of_stdin),
            words,
        };
        Ok((stop, socket))
    }

    /// The next reason to stop; standard input ends once, and so does a supervisor.
    async fn next(&mut self) {
        let stdin = async {
            match &mut self.stdin {
                // It is the end of the sender that tells.
                Some(end) => drop(end.await),
                None => std::future::pending().await,
            }
        };
        let words = async {
            match &mut self.words {
                Some(words) => words.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.signals.next() => {}
            () = stdin => self.stdin = None,
            word = words => if word.is_none() {
                self.words = None;
            }
        }
    }
}

/// Reads standard input to its end. In a thread of its own, since a read from it cannot be cancelled; the process does
/// not wait for that thread.
pub(in crate::launcher) fn end_of_stdin() -> oneshot::Receiver<()> {
    let (sender, end) = oneshot::channel();
    std::thread::spawn(move || {
        // An input that cannot be read has ended too.
        drop(std::io::copy(&mut stdin().lock(), &mut std::io::sink()));
        drop(sender);
    });
    end
}

/// A spec as libzmq knows it, or marked as a broker's.
fn shown(spec: &Endpoint) -> String {
    if spec.is_broker() {
        spec.spec()
    } else {
        spec.to_string()
    }
}

fn list<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> String {
    endpoints.map(shown).collect::<Vec<_>>().join(", ")
}
