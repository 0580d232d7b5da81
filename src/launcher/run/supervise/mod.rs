//! The process that was typed: it starts workers, watches them, replaces those that die, and passes on what it is asked for. It
//! serves nobody itself.
//!
//! * `crew` decides which workers there should be, `member` is one of their processes, `order` what the two say to each other;
//! * `feed` takes the requests from the servers where workers do not do so themselves;
//! * `groups` is the process above several of these, where applications are in groups;
//! * `zygote` is what workers are forked from, where they are, and `words` what they all say;
//! * `desk` is what an operator sees; `memory` and `watch` are reasons to replace workers, `reload` does it for all.
//!
//! How requests are served is the worker's; what was typed is `args`'s.

mod crew;
mod desk;
mod feed;
pub(super) mod groups;
mod member;
mod memory;
pub(super) mod order;
mod reload;
mod watch;
mod words;
mod zygote;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use nix::sys::signal::Signal;
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use self::crew::{Action, Crew, FAILURES_MAX, Id, Meaning, State};
use self::desk::{Board, Desk, Errand, Shown};
use self::feed::Feeding;
use self::member::{Member, News, Wish};
use self::order::Order;
use self::watch::Watcher;
use self::zygote::Zygote;
use super::plan::{App, Plan, WORKERS_MAX};
use super::rights::Rights;
use super::worker::end_of_stdin;
use crate::control;
use crate::drain::{self, Watch};
use crate::endpoint::{Endpoint, Transport};
use crate::launcher::process::{Manager, PidFile};
use crate::launcher::signals::{STOP, Signals};

/// News of workers that are not looked at yet: a few for each.
const NEWS_MAX: usize = 256;

/// How often the memory of workers is looked at.
const MEMORY_LOOK: Duration = Duration::from_secs(2);

/// How often it is looked how programs do in the feed: while one starts or ends, and otherwise.
const LOOK_BUSY: Duration = Duration::from_millis(50);
const LOOK_IDLE: Duration = Duration::from_secs(1);

/// A graceful timeout above this is the same as none, and clocks can still count with it.
const PATIENCE_MAX: Duration = Duration::from_hours(24 * 365);

/// What workers have at least for their end, whatever else has taken the time.
const LEAST_TIME: Duration = Duration::from_secs(1);

/// How long tasks may take at the end, when all workers have ended.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes the plan anew, from what may have changed since it was typed; the error says what is wrong with it.
pub(super) type Replan<'a> = &'a dyn Fn() -> Result<Plan, String>;

/// Supervises until it is told to stop, or workers do not start.
pub(super) fn main(plan: Plan, replan: Replan<'_>, log: Option<&str>) -> anyhow::Result<ExitCode> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("start the runtime")?;
    let name = plan.name.clone();
    runtime
        .block_on(supervise(plan, replan, log))
        .with_context(|| format!("running `{name}`"))
}

async fn supervise(plan: Plan, replan: Replan<'_>, log: Option<&str>) -> anyhow::Result<ExitCode> {
    // First of all: who reads the pid file may send a signal.
    let mut signals = Signals::of(kinds())?;
    let mut stdin = plan.stop_on_eof.then(end_of_stdin);
    let rights = Rights::find(plan.user.as_deref(), plan.group.as_deref())?;
    let mut watcher = watcher(&plan)?;
    let _pid_file = plan.pid_file.as_deref().map(PidFile::create).transpose()?;
    let (port_signal, port_watch) = drain::channel();
    let board = Rc::new(RefCell::new(Board::default()));
    let mut errands = open_port(&plan, &board, &port_watch).await?;
    let (signal, watch) = drain::channel();
    let (news, mut heard) = mpsc::channel(NEWS_MAX);
    // A signal to stop that comes meanwhile is taken when this is done.
    let feeding = feed::begin(&plan, &rights, &watch).await?;
    let is_program = matches!(plan.app, App::Exec { .. });
    if is_program && feeding.is_none() {
        tell_what_nobody_counts(&plan);
    }
    let mut supervisor = Supervisor {
        is_program,
        zygote: None,
        feeding,
        next_look: Instant::now(),
        leaving: BTreeMap::new(),
        closing: None,
        stop_by: None,
        crew: Crew::new(plan.workers, plan.graceful_timeout),
        previous: None,
        plan,
        rights,
        replan,
        program: member::program().context("find this program")?,
        log,
        members: BTreeMap::new(),
        board,
        manager: Manager::from_environment(),
        told: false,
        is_rolling: false,
        failure: None,
        news,
        watch,
    };
    let mut look = interval(MEMORY_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        supervisor.step();
        if supervisor.crew.is_stopping() && supervisor.crew.is_empty() {
            break;
        }
        let wake = supervisor.wake();
        let wake = async {
            match wake {
                Some(when) => sleep_until(when.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            kind = signals.next() => supervisor.signal(kind),
            Some((id, news)) = heard.recv() => match (news, &mut watcher) {
                (News::Read(path), Some(watcher)) => watcher.add_read(&path),
                (news, _) => supervisor.hear(id, news),
            },
            Some(errand) = errands.recv() => supervisor.run(errand),
            () = ended(&mut stdin) => supervisor.stop(),
            path = changed(&mut watcher) => {
                supervisor.reload(&format!("{} has changed", path.display()));
            }
            _ = look.tick() => supervisor.look(),
            () = closed(&mut supervisor.closing) => supervisor.end(),
            () = wake => {}
        }
    }
    // What it has said last is written, and its directory goes behind it.
    let _directory = match supervisor.feeding.take() {
        Some(Feeding {
            feed,
            log,
            directory,
        }) => {
            // Somebody in a hurry has not let it finish otherwise.
            if let Some(feed) = Rc::into_inner(feed) {
                feed.stop(Duration::ZERO).await;
            }
            if let Some(log) = log {
                log.flush();
            }
            Some(directory)
        }
        None => None,
    };
    // Nobody needs it any more, and its end is waited for.
    drop(supervisor.zygote.take());
    signal.finish(FINISH_TIMEOUT).await;
    port_signal.finish(FINISH_TIMEOUT).await;
    let name = &supervisor.plan.name;
    if let Some(why) = supervisor.failure {
        return Err(anyhow!(why));
    }
    info!("handler {name}: stopped");
    Ok(ExitCode::SUCCESS)
}

/// The signals that mean something. The terminal sends the last two only to programs in the background that read from it, and this
/// one does not.
fn kinds() -> impl Iterator<Item = SignalKind> {
    let others = [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ];
    STOP.into_iter()
        .chain(others.map(|signal| SignalKind::from_raw(signal as i32)))
}

/// A program that takes its requests by itself tells nobody of them.
fn tell_what_nobody_counts(plan: &Plan) {
    let name = &plan.name;
    for (option, is_given) in [
        ("--max-requests", plan.max_requests.is_some()),
        ("--access-log", plan.access_log.is_some()),
    ] {
        if is_given {
            warn!(
                "handler {name}: {option} does nothing: its programs take their requests by themselves, and nobody counts them"
            );
        }
    }
}

/// Waits until nothing is open any more that came before the end was wished for.
async fn closed(closing: &mut Option<oneshot::Receiver<()>>) {
    match closing {
        // It is the end of the sender that tells.
        Some(closed) => drop(closed.await),
        None => std::future::pending().await,
    }
}

fn watcher(plan: &Plan) -> anyhow::Result<Option<Watcher>> {
    plan.reload.then(|| Watcher::new(&plan.watch)).transpose()
}

/// Waits for a change of what is watched, if anything is.
async fn changed(watcher: &mut Option<Watcher>) -> PathBuf {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of standard input, once.
async fn ended(stdin: &mut Option<oneshot::Receiver<()>>) {
    match stdin {
        // It is the end of the sender that tells.
        Some(end) => drop(end.await),
        None => std::future::pending().await,
    }
    *stdin = None;
}

/// Opens the control port: where the plan says; else beside the pid file, or in the user's folder for such things, where only that
/// user finds it. An address that was not asked for need not be had.
async fn open_port(
    plan: &Plan,
    board: &Rc<RefCell<Board>>,
    watch: &Watch,
) -> anyhow::Result<mpsc::Receiver<Errand>> {
    let servers: Vec<_> = plan
        .servers
        .iter()
        .map(|(send, _)| send.to_string())
        .collect();
    let (desk, errands) = Desk::new(plan.name.clone(), servers.join(","), Rc::clone(board));
    let (endpoint, is_asked) = match (
        &plan.control,
        usual_port(plan.pid_file.as_deref(), &plan.name),
    ) {
        (Some(endpoint), _) => (endpoint.clone(), true),
        (None, Some(endpoint)) => (endpoint, false),
        (None, None) => {
            // The desk goes, and its errands with it: nobody waits for them then.
            return Ok(errands);
        }
    };
    match control::bind(&endpoint)
        .await
        .context("open the control port")
    {
        Ok(port) => {
            debug!("control port at {}", port.endpoint());
            port.run(Rc::new(desk), watch);
        }
        Err(error) if is_asked => return Err(error),
        Err(error) => info!("running without a control port; name one with --control: {error:#}"),
    }
    Ok(errands)
}

/// Where a program by that name has its control port when nobody says otherwise.
pub(in crate::launcher) fn usual_port(pid_file: Option<&Path>, name: &str) -> Option<Endpoint> {
    let path = if let Some(file) = pid_file {
        let mut path = std::path::absolute(file).ok()?.into_os_string();
        path.push(".control");
        path
    } else {
        let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty())?;
        let letter = |c: char| if c.is_alphanumeric() { c } else { '-' };
        let name: String = name.chars().map(letter).collect();
        let path = Path::new(&folder).join(format!("lurcher-{name}.control"));
        path.into_os_string()
    };
    let endpoint = format!("ipc://{}", path.to_str()?)
        .parse::<Endpoint>()
        .ok()?;
    // What the system takes for the path of a socket (unix(7)).
    matches!(&endpoint.transport, Transport::Ipc { path } if path.len() < 108).then_some(endpoint)
}

/// A worker and what is known of it.
struct Worker {
    member: Member,
    /// After so many requests it is replaced.
    requests_max: Option<u64>,
}

struct Supervisor<'a> {
    plan: Plan,
    /// What was in force before a reload that is not done yet.
    previous: Option<(Plan, Rights)>,
    rights: Rights,
    replan: Replan<'a>,
    program: PathBuf,
    log: Option<&'a str>,
    crew: Crew,
    members: BTreeMap<Id, Worker>,
    board: Rc<RefCell<Board>>,
    manager: Manager,
    /// What workers do is a program of the user's own.
    is_program: bool,
    /// What workers are forked from, where they are.
    zygote: Option<Zygote>,
    /// Where this process takes the requests.
    feeding: Option<Feeding>,
    /// When it is looked again how programs do in the feed.
    next_look: Instant,
    /// Programs that get no new requests, and are told to end when they have nothing open, or at this time.
    leaving: BTreeMap<Id, Instant>,
    /// The feed takes no more requests, and this process ends when those that it has are answered.
    closing: Option<oneshot::Receiver<()>>,
    /// When that is to be over.
    stop_by: Option<Instant>,
    /// Whether somebody knows that all workers run.
    told: bool,
    is_rolling: bool,
    /// Why this program's end will be no success.
    failure: Option<String>,
    news: mpsc::Sender<(Id, News)>,
    watch: Watch,
}

impl Supervisor<'_> {
    /// Does what is to be done, and shows how things are.
    fn step(&mut self) {
        self.look_at_programs();
        loop {
            let actions = self.crew.step(Instant::now());
            if actions.is_empty() {
                break;
            }
            for action in actions {
                match action {
                    Action::Start(id, number) => self.start(id, number),
                    Action::Drain(id) => self.drain(id),
                    Action::Kill(id) => self.kill(id),
                }
            }
        }
        if self.crew.is_settled() && !self.crew.is_stopping() {
            if !self.told {
                self.told = true;
                self.manager.ready();
            }
            if std::mem::take(&mut self.is_rolling) {
                self.previous = None;
                info!("handler {}: all workers are replaced", self.plan.name);
                self.manager.ready();
            }
        }
        let mut board = self.board.borrow_mut();
        board.wanted = self.crew.wanted();
        board.feed = if self.feeding.is_some() {
            "supervisor"
        } else {
            "direct"
        };
        board.workers.retain(|id, _| self.crew.state(*id).is_some());
        for (id, shown) in &mut board.workers {
            shown.state = self.crew.state(*id).map_or("", State::name);
        }
    }

    fn start(&mut self, id: Id, number: u32) {
        let mut plan = self.plan.clone();
        if let Some(Feeding { feed, .. }) = &self.feeding {
            plan.servers = feed.specs();
        }
        let order = Order {
            plan,
            number,
            rights: self.rights.clone(),
            supervisor: std::process::id(),
        };
        let started = if order.plan.forks() {
            self.fork(id, order)
        } else {
            member::start(id, &order, &self.program, self.log, &self.news, &self.watch)
        };
        match started {
            Ok(member) => {
                debug!("worker {number} is process {}", member.pid);
                let shown = Shown {
                    number,
                    pid: member.pid,
                    state: State::Starting.name(),
                    in_flight: 0,
                    served: 0,
                    started: Instant::now(),
                };
                self.board.borrow_mut().workers.insert(id, shown);
                let requests_max = self.plan.max_requests.map(|(requests, jitter)| {
                    // Without chance there is no harm but that all of them are replaced together.
                    let chance = getrandom::u64().unwrap_or_default();
                    requests.saturating_add(
                        jitter.checked_add(1).map_or(chance, |range| chance % range),
                    )
                });
                self.members.insert(
                    id,
                    Worker {
                        member,
                        requests_max,
                    },
                );
            }
            Err(error) => self.gone(id, &format!("worker {number}"), &format!("{error:#}"), &[]),
        }
    }

    /// Has a worker forked from the zygote, which is started where there is none.
    fn fork(&mut self, id: Id, mut order: Order) -> anyhow::Result<Member> {
        // It is opened here, and opened again from another folder.
        if let Some(path) = order.plan.access_log.as_mut()
            && path.as_os_str() != "-"
        {
            *path = std::path::absolute(&*path).context("find the access log")?;
        }
        let zygote = match self.zygote.take().filter(|zygote| !zygote.is_gone()) {
            Some(zygote) => zygote,
            None => Zygote::start(&order, &self.program, self.log, &self.watch)?,
        };
        let member = member::fork(id, &order, &zygote, &self.news, &self.watch);
        self.zygote = Some(zygote);
        member
    }

    /// Has a worker finish what it has. A program that the feed has given something to gets nothing new first, and is told to end
    /// when it has answered.
    fn drain(&mut self, id: Id) {
        let worker = self.members.get(&id).filter(|_| self.is_program);
        match (&self.feeding, worker) {
            (Some(Feeding { feed, .. }), Some(worker)) => {
                feed.drain_worker(worker.member.pid);
                // A stream need not end: it is told in time to end it by itself.
                let until = Instant::now() + self.patience() / 2;
                self.leaving.insert(id, until);
                self.next_look = Instant::now();
            }
            _ => self.wish(id, Wish::Drain),
        }
    }

    /// Looks how programs do, which do not tell it themselves.
    fn look_at_programs(&mut self) {
        let now = Instant::now();
        let Some(Feeding { feed, .. }) = self.feeding.as_ref().filter(|_| self.is_program) else {
            return;
        };
        if now < self.next_look {
            return;
        }
        let feed = Rc::clone(feed);
        let mut is_busy = !self.leaving.is_empty();
        let workers: Vec<_> = self
            .members
            .iter()
            .map(|(id, worker)| (*id, worker.member.pid))
            .collect();
        for (id, pid) in workers {
            let counts = feed.counts(pid);
            let in_flight = u64::from(counts.open) + u64::from(counts.attached);
            let served = counts.served;
            self.hear(id, News::Counts { in_flight, served });
            match self.crew.state(id) {
                Some(State::Starting) if counts.connected > 0 => self.is_ready(id),
                Some(State::Starting) => is_busy = true,
                _ => {}
            }
            if self
                .leaving
                .get(&id)
                .is_some_and(|until| in_flight == 0 || now >= *until)
            {
                self.leaving.remove(&id);
                self.wish(id, Wish::Drain);
            }
        }
        self.next_look = now + if is_busy { LOOK_BUSY } else { LOOK_IDLE };
    }

    /// When there is something to do though nothing has happened.
    fn wake(&self) -> Option<Instant> {
        let look = (self.feeding.is_some() && self.is_program).then_some(self.next_look);
        self.crew.wake().into_iter().chain(look).min()
    }

    fn wish(&self, id: Id, wish: Wish) {
        if let Some(worker) = self.members.get(&id) {
            worker.member.wish(wish);
        }
    }

    /// Ends a worker whose time is up, or who was told so.
    fn kill(&mut self, id: Id) {
        let Some(Shown {
            number, pid, state, ..
        }) = self.shown(id)
        else {
            return;
        };
        warn!("worker {number} (process {pid}) is killed: {state} for too long, or told so twice");
        if self.crew.is_stopping() && self.failure.is_none() {
            let name = &self.plan.name;
            let patience = self.plan.graceful_timeout.as_secs();
            self.failure = Some(format!(
                "stopping `{name}` at once: not done after {patience} seconds, or told so twice"
            ));
        }
        self.wish(id, Wish::Kill);
    }

    fn shown(&self, id: Id) -> Option<Shown> {
        self.board.borrow().workers.get(&id).cloned()
    }

    fn hear(&mut self, id: Id, news: News) {
        match news {
            // The feed knows better of programs.
            News::Ready if self.is_program && self.feeding.is_some() => {}
            News::Ready => self.is_ready(id),
            News::Born(pid) => {
                if let Some(worker) = self.members.get_mut(&id) {
                    worker.member.pid = pid;
                }
                if let Some(shown) = self.board.borrow_mut().workers.get_mut(&id) {
                    shown.pid = pid;
                }
            }
            News::Counts { in_flight, served } => {
                if let Some(shown) = self.board.borrow_mut().workers.get_mut(&id) {
                    (shown.in_flight, shown.served) = (in_flight, served);
                }
                let max = self.members.get(&id).and_then(|worker| worker.requests_max);
                if max.is_some_and(|max| served >= max) {
                    self.retire(id, &format!("had {served} requests"));
                }
            }
            // For who watches files.
            News::Read(_) => {}
            News::Ended { status, last_words } => {
                let how = match status {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                };
                self.ended(id, &how, &last_words);
            }
        }
    }

    fn is_ready(&mut self, id: Id) {
        if self.crew.ready(id, Instant::now())
            && let Some(Shown { number, pid, .. }) = self.shown(id)
        {
            info!("worker {number} (process {pid}) is ready");
        }
    }

    fn ended(&mut self, id: Id, how: &str, last_words: &[String]) {
        if let Some(Shown { number, pid, .. }) = self.shown(id) {
            let who = format!("worker {number} (process {pid})");
            self.gone(id, &who, how, last_words);
        }
    }

    /// A worker has ended, or could not be started.
    fn gone(&mut self, id: Id, who: &str, how: &str, last_words: &[String]) {
        self.members.remove(&id);
        self.leaving.remove(&id);
        self.board.borrow_mut().workers.remove(&id);
        if let Some(Feeding { feed, .. }) = &self.feeding {
            feed.forget_ended();
        }
        let pause = |pause: Duration| pause.as_millis();
        match self.crew.ended(id, Instant::now()) {
            Meaning::Asked => debug!("{who} has ended: {how}"),
            Meaning::Died(time) => {
                error!(
                    "{who} died: {how}; another takes its place in {} ms",
                    pause(time)
                );
            }
            Meaning::Failed(time) => {
                error!(
                    "{who} does not start: {how}; tried again in {} ms",
                    pause(time)
                );
            }
            Meaning::RollGivenUp => {
                error!(
                    "{who} does not start: {how}; {FAILURES_MAX} in a row did not: the old workers stay"
                );
                if let Some((plan, rights)) = self.previous.take() {
                    (self.plan, self.rights) = (plan, rights);
                    self.give_sockets();
                }
                self.is_rolling = false;
                self.manager.ready();
            }
            Meaning::CrashLoop => {
                let mut why = format!(
                    "{FAILURES_MAX} workers in a row ended before they were ready, the last with: {how}"
                );
                if !last_words.is_empty() {
                    why.push_str("; its last words:");
                }
                for line in last_words {
                    why.push_str("\n    ");
                    why.push_str(line);
                }
                self.failure = Some(why);
            }
        }
    }

    fn retire(&mut self, id: Id, why: &str) {
        if self.crew.retire(id)
            && let Some(Shown { number, pid, .. }) = self.shown(id)
        {
            info!("worker {number} (process {pid}) {why}: it is replaced");
        }
    }

    /// Looks at the memory of workers.
    fn look(&mut self) {
        let Some(max) = self.plan.max_memory else {
            return;
        };
        let workers: Vec<_> = self
            .members
            .iter()
            .map(|(id, worker)| (*id, worker.member.pid))
            .collect();
        for (id, pid) in workers {
            let Some(bytes) = memory::resident(pid).filter(|bytes| *bytes > max) else {
                continue;
            };
            // What replaces it will be as large.
            let is_idle = self.shown(id).is_some_and(|shown| shown.served == 0);
            let note = if is_idle {
                " before any request, so --max-memory is too little"
            } else {
                ""
            };
            self.retire(id, &format!("has {} KiB of memory{note}", bytes / 1024));
        }
    }

    fn signal(&mut self, kind: SignalKind) {
        let is = |signal: Signal| kind.as_raw_value() == signal as i32;
        if STOP.contains(&kind) {
            self.stop();
        } else if is(Signal::SIGHUP) {
            self.reload("a signal came");
        } else if is(Signal::SIGUSR1) {
            self.members
                .values()
                .for_each(|worker| worker.member.wish(Wish::Reopen));
            if let Some(Feeding { log: Some(log), .. }) = &self.feeding {
                log.reopen();
            }
        } else if is(Signal::SIGTTIN) {
            self.scale(self.crew.wanted().saturating_add(1));
        } else if is(Signal::SIGTTOU) {
            self.scale(self.crew.wanted().saturating_sub(1));
        }
    }

    fn run(&mut self, errand: Errand) {
        match errand {
            Errand::Order(control::Order::Reload) => self.reload("an operator asks for it"),
            Errand::Order(control::Order::Stop | control::Order::Terminate) => self.stop(),
            Errand::Scale(count) => self.scale(count),
        }
    }

    fn scale(&mut self, wanted: u32) {
        let now = self.crew.scale(wanted);
        info!(
            "handler {}: workers from now on: {now} (of 1 to {WORKERS_MAX})",
            self.plan.name
        );
    }

    /// Ends: politely the first time, at once the second.
    fn stop(&mut self) {
        if self.is_ending() {
            self.crew.stop_at_once();
            return;
        }
        info!("handler {}: stopping", self.plan.name);
        self.manager.stopping();
        let Some(Feeding { feed, .. }) = &self.feeding else {
            self.crew.stop();
            return;
        };
        // Workers answer what servers have sent until now; the end of this task says that they have.
        let (sender, closed) = oneshot::channel::<()>();
        let feed = Rc::clone(feed);
        let patience = self.patience();
        let until = tokio::time::Instant::now() + patience;
        self.stop_by = Instant::now().checked_add(patience);
        self.watch.spawn_local(async move {
            feed.quiesce().await;
            feed.idle(until).await;
            drop(sender);
        });
        self.closing = Some(closed);
    }

    /// The feed has nothing more for workers: they end too, in the time that is left.
    fn end(&mut self) {
        self.closing = None;
        let left = self
            .stop_by
            .map(|by| by.saturating_duration_since(Instant::now()));
        self.crew
            .set_graceful_timeout(left.unwrap_or_default().max(LEAST_TIME));
        self.crew.stop();
    }

    /// How long what is open may take.
    fn patience(&self) -> Duration {
        self.plan.graceful_timeout.min(PATIENCE_MAX)
    }

    fn is_ending(&self) -> bool {
        self.closing.is_some() || self.crew.is_stopping()
    }
}
