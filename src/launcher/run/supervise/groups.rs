//! A handler whose applications are in several groups of processes (`--mount /api=api:app,group=api`). This process takes the requests from
//! the servers and gives each to the pool of its group, as a broker does it; each group is `lurcher run` with the same arguments, told
//! by its environment which group it is. So a group has all that a handler has: workers, reloads, rights, and its own end.

use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tracing::{error, info, warn};

use super::super::plan::Plan;
use super::super::rights::Rights;
use super::super::source::{PART_OF, Part};
use super::super::worker::end_of_stdin;
use super::feed::Directory;
use super::{Replan, ended, kinds, member};
use crate::broker::{Device, DeviceSettings, PoolSpec, Rules};
use crate::drain;
use crate::endpoint::Endpoint;
use crate::launcher::process::{Manager, PidFile};
use crate::launcher::signals::{STOP, Signals};
use crate::routing::Places;

/// How long requests wait for the first worker of a group: applications take their time to load.
const START_GRACE: Duration = Duration::from_secs(30);

/// A group that ends is started again after the first of these, twice as late each time, up to the second.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A group that has run for so long begins with the first pause again.
const STEADY: Duration = Duration::from_mins(1);

/// How often it is looked whether groups have workers, until all have.
const LOOK: Duration = Duration::from_millis(50);

/// What groups may take to end beyond what their workers may.
const END_GRACE: Duration = Duration::from_secs(3);

/// How long tasks may take at the end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs all groups until it is told to stop, or one does not start.
pub(in crate::launcher::run) fn main(
    plan: &Plan,
    replan: Replan<'_>,
    log: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("start the runtime")?;
    let work = async {
        if plan.check {
            check(plan, log).await
        } else {
            serve(plan, replan, log).await
        }
    };
    runtime
        .block_on(work)
        .with_context(|| format!("running `{}`", plan.name))
}

/// Has each group look at what it would serve.
async fn check(plan: &Plan, log: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for number in 0..plan.groups.len() {
        let nowhere = "broker+ipc:///nowhere".parse().context("name a broker")?;
        let status = start(plan, number, &nowhere, log)?.wait().await;
        if !status.context("wait for a group")?.success() {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

async fn serve(plan: &Plan, replan: Replan<'_>, log: Option<&str>) -> anyhow::Result<ExitCode> {
    if plan.has_broker() {
        bail!("groups of processes are for servers: with a broker, run each group by itself");
    }
    // First of all: who reads the pid file may send a signal.
    let mut signals = Signals::of(kinds())?;
    let mut stdin = plan.stop_on_eof.then(end_of_stdin);
    let rights = Rights::find(plan.user.as_deref(), plan.group.as_deref())?;
    let _pid_file = plan.pid_file.as_deref().map(PidFile::create).transpose()?;
    let directory = Directory::make().context("make a directory for the workers' sockets")?;
    let (signal, watch) = drain::channel();
    let brokers = plan.groups.iter().map(|group| {
        let path = directory.path.join(&group.name);
        let spec = format!("ipc://{}", path.display());
        spec.parse::<Endpoint>().context("name a group's socket")
    });
    let brokers = brokers.collect::<anyhow::Result<Vec<_>>>()?;
    let device = begin(plan, &brokers, &watch).await?;
    directory
        .give(&rights)
        .context("give the workers' sockets to their user")?;
    let manager = Manager::from_environment();
    let (tell, mut heard) = mpsc::channel(plan.groups.len().max(1) * 4);
    let mut crew = Groups {
        plan,
        log,
        brokers,
        members: plan.groups.iter().map(|_| Member::default()).collect(),
        tell,
    };
    for number in 0..plan.groups.len() {
        crew.start(number, &watch)?;
    }
    let mut failure = None;
    let mut is_ready = false;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while failure.is_none() {
        tokio::select! {
            kind = signals.next() => if STOP.contains(&kind) {
                break;
            } else {
                crew.pass_on(kind.as_raw_value(), replan);
            },
            () = ended(&mut stdin) => break,
            Some(news) = heard.recv() => failure = crew.hear(news, &watch),
            _ = look.tick(), if !is_ready => {
                let pools = device.pools();
                for (member, pool) in crew.members.iter_mut().zip(&pools) {
                    member.served |= !pool.report.workers.is_empty();
                }
                is_ready = crew.members.iter().all(|member| member.served);
                if is_ready {
                    info!("handler {}: all groups have workers", plan.name);
                    manager.ready();
                }
            }
        }
    }
    info!("handler {}: stopping", plan.name);
    manager.stopping();
    let deadline = Instant::now() + plan.graceful_timeout.min(super::PATIENCE_MAX);
    if failure.is_none() {
        let finished = async {
            device.quiesce().await;
            device.idle(deadline).await;
        };
        tokio::select! {
            () = finished => {}
            () = again(&mut signals) => warn!("asked again: ending at once"),
        }
    }
    crew.end(&mut heard, deadline + END_GRACE).await;
    device.stop(Duration::ZERO).await;
    signal.finish(FINISH_TIMEOUT).await;
    if let Some(why) = failure {
        return Err(anyhow!(why));
    }
    info!("handler {}: stopped", plan.name);
    Ok(ExitCode::SUCCESS)
}

/// Waits until it is told to stop once more.
async fn again(signals: &mut Signals) {
    while !STOP.contains(&signals.next().await) {}
}

/// Takes the requests, and waits for workers.
async fn begin(plan: &Plan, brokers: &[Endpoint], watch: &drain::Watch) -> anyhow::Result<Device> {
    let pools: Vec<_> = plan
        .groups
        .iter()
        .zip(brokers)
        .map(|(group, broker)| PoolSpec {
            name: group.name.clone(),
            route: None,
            workers: Some(broker.clone()),
            plain: None,
            pings: None,
        })
        .collect();
    let mut numbers = Vec::new();
    let mut places = Vec::new();
    for (number, group) in plan.groups.iter().enumerate() {
        for place in &group.places {
            numbers.push(u16::try_from(number).context("count the groups")?);
            places.push(place.clone());
        }
    }
    let mut settings = DeviceSettings::default();
    settings.towards.ident.clone_from(&plan.ident);
    settings.choice = Some((Places::new(places), numbers));
    let rules = Rules {
        start_grace: START_GRACE,
        ..Rules::default()
    };
    let device = Device::start(&plan.servers, &pools, &rules, settings, watch).await;
    for (send, recv) in &plan.servers {
        info!(
            "handler {}: takes the requests for its groups from {send}, replies to {recv}",
            plan.name
        );
    }
    device.context("take requests from the servers")
}

/// Starts a group.
fn start(
    plan: &Plan,
    number: usize,
    broker: &Endpoint,
    log: Option<&str>,
) -> anyhow::Result<Child> {
    let group = plan
        .groups
        .get(number)
        .context("there is no such group any more")?;
    let part = Part {
        group: group.name.clone(),
        broker: broker.clone(),
        control: control(plan, &group.name),
        options: group.options.clone(),
    };
    let program = member::program().context("find this program")?;
    let mut command = Command::new(&program);
    command
        .arg0("lurcher")
        .args(std::env::args_os().skip(1))
        .env(PART_OF, part.text())
        // Whom the service manager listens to is this process.
        .env_remove("NOTIFY_SOCKET")
        // Its end is the end of the group, however this process ends.
        .stdin(Stdio::piped())
        // A terminal's ctrl-C is for this process.
        .process_group(0)
        .kill_on_drop(true);
    if let Some(log) = log {
        command.env("LURCHER_LOG", log);
    }
    let started = command.spawn();
    started.with_context(|| format!("start the group {} with {}", group.name, program.display()))
}

/// Where a group is asked for its status: beside where this process would be.
fn control(plan: &Plan, group: &str) -> Option<String> {
    let usual = || super::usual_port(plan.pid_file.as_deref(), &plan.name);
    let endpoint = plan.control.clone().or_else(usual)?.to_string();
    // Addresses of machines have no names beside them.
    endpoint
        .starts_with("ipc://")
        .then(|| format!("{endpoint}.{group}"))
}

/// A group's process.
#[derive(Default)]
struct Member {
    pid: Option<u32>,
    started: Option<Instant>,
    /// How many times it has ended without having been steady.
    falls: u32,
    /// It has had workers.
    served: bool,
    /// Its standard input, whose end tells it to stop.
    stdin: Option<tokio::process::ChildStdin>,
}

/// What becomes of groups, by their numbers.
enum News {
    Ended(usize, std::io::Result<ExitStatus>),
    Again(usize),
}

struct Groups<'a> {
    plan: &'a Plan,
    log: Option<&'a str>,
    brokers: Vec<Endpoint>,
    members: Vec<Member>,
    tell: mpsc::Sender<News>,
}

impl Groups<'_> {
    fn start(&mut self, number: usize, watch: &drain::Watch) -> anyhow::Result<()> {
        let (Some(member), Some(broker)) = (self.members.get_mut(number), self.brokers.get(number))
        else {
            return Ok(());
        };
        let mut child = start(self.plan, number, broker, self.log)?;
        member.pid = child.id();
        member.started = Some(Instant::now());
        member.stdin = child.stdin.take();
        let tell = self.tell.clone();
        watch.spawn_local(async move {
            let status = child.wait().await;
            // It is listened to until all have ended.
            drop(tell.send(News::Ended(number, status)).await);
        });
        Ok(())
    }

    /// Hears what has become of a group; gives back why all end with it.
    fn hear(&mut self, news: News, watch: &drain::Watch) -> Option<String> {
        let (number, status) = match news {
            News::Again(number) => {
                let started = self.start(number, watch);
                return started.err().map(|error| format!("{error:#}"));
            }
            News::Ended(number, status) => (number, status),
        };
        let name = self.plan.groups.get(number).map(|group| &group.name);
        let (name, member) = (name?, self.members.get_mut(number)?);
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        (member.pid, member.stdin) = (None, None);
        if !member.served {
            return Some(format!("the group {name} does not start: {how}"));
        }
        let was_steady = member.started.is_some_and(|when| when.elapsed() > STEADY);
        member.falls = if was_steady { 0 } else { member.falls + 1 };
        let pause = PAUSE_MIN * 2_u32.saturating_pow(member.falls.min(8));
        let pause = pause.min(PAUSE_MAX);
        error!(
            "the group {name} has ended: {how}; it is started again in {} s",
            pause.as_secs()
        );
        let tell = self.tell.clone();
        watch.spawn_local(async move {
            sleep(pause).await;
            // Nobody listens at the end.
            drop(tell.send(News::Again(number)).await);
        });
        None
    }

    /// Passes a signal on to all groups, which know what it means. What groups there are stays as it was.
    fn pass_on(&self, signal: i32, replan: Replan<'_>) {
        if signal == Signal::SIGHUP as i32 {
            match replan() {
                Ok(plan) if plan.groups == self.plan.groups => {}
                Ok(_) => warn!(
                    "handler {}: its groups and their places change with a new start only",
                    self.plan.name
                ),
                Err(why) => {
                    error!("handler {}: nothing is replaced: {why}", self.plan.name);
                    return;
                }
            }
        }
        if let Ok(signal) = Signal::try_from(signal) {
            self.signal(signal);
        }
    }

    fn signal(&self, signal: Signal) {
        for pid in self.members.iter().filter_map(|member| member.pid) {
            if let Ok(pid) = i32::try_from(pid) {
                // It has ended already otherwise.
                let _ok = kill(Pid::from_raw(pid), signal);
            }
        }
    }

    /// Has all groups end, at the latest then.
    async fn end(&mut self, heard: &mut mpsc::Receiver<News>, deadline: Instant) {
        for member in &mut self.members {
            member.stdin = None;
        }
        let mut running = self.members.iter().filter(|m| m.pid.is_some()).count();
        while running > 0 {
            match timeout_at(deadline, heard.recv()).await {
                Ok(Some(News::Ended(number, _))) => {
                    if let Some(member) = self.members.get_mut(number) {
                        member.pid = None;
                    }
                    running -= 1;
                }
                Ok(Some(News::Again(_))) => {}
                Ok(None) => return,
                Err(_) => {
                    warn!("groups are killed that have not ended");
                    self.signal(Signal::SIGKILL);
                    return;
                }
            }
        }
    }
}
