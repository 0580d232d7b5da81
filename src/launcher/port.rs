//! The control port of `lurcher serve`: where it is, and what it governs. What it says is `control`'s.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::config::{Server, Settings};
use crate::control::{
    self, BoundFigures, BoundPort, Cell, Connection, INFO, Order, Pool, Subject, Table, Task,
};
use crate::endpoint::{Endpoint, Transport};
use crate::front::{self, Handle, Plan, State};

/// Orders that are not carried out yet; one more is refused.
const ORDERS_MAX: usize = 8;

/// Where a server's control port is: what the server names, else the setting. Paths stand as in the configuration.
///
/// # Errors
///
/// When that is no socket spec.
pub(super) fn address(server: &Server, settings: &Settings) -> anyhow::Result<Endpoint> {
    let text = if server.control_port.is_empty() {
        &settings.control_port
    } else {
        &server.control_port
    };
    text.parse()
        .with_context(|| format!("read the control port of {}, {text:?}", server.uuid))
}

/// The same with its path inside the server's chroot.
pub(super) fn inside_chroot(mut endpoint: Endpoint, chroot: &str) -> Endpoint {
    if let Transport::Ipc { path } = &mut endpoint.transport
        && !path.starts_with('@')
    {
        *path = front::inside_chroot(chroot, path)
            .to_string_lossy()
            .into_owned();
    }
    endpoint
}

/// Binds the control port of a server.
///
/// One that the server itself names must be had. The address that all servers of a configuration share cannot be had by each:
/// the first has it, and the others run without.
///
/// # Errors
///
/// When an address that the server names cannot be bound.
pub(super) async fn bind(
    server: &Server,
    settings: &Settings,
) -> anyhow::Result<Option<BoundPort>> {
    match bind_at_address(server, settings).await {
        Ok(port) => Ok(Some(port)),
        Err(error) if server.control_port.is_empty() => {
            warn!(
                "the server runs without a control port; name another with control_port: {error:#}"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Binds where figures are told, if the settings name an address. All servers of a configuration share it: the first has it, and the
/// others run without.
///
/// # Errors
///
/// When what the settings name is no address with a port.
pub(super) async fn bind_figures(settings: &Settings) -> anyhow::Result<Option<BoundFigures>> {
    let Some(text) = &settings.metrics_port else {
        return Ok(None);
    };
    let address = text.parse().with_context(|| {
        format!("read the setting metrics_port, {text:?}: it takes an address with a port, as 127.0.0.1:9127")
    })?;
    match control::bind_figures(address).await {
        Ok(figures) => Ok(Some(figures)),
        Err(error) => {
            warn!("the server runs without figures at {address}: {error}");
            Ok(None)
        }
    }
}

async fn bind_at_address(server: &Server, settings: &Settings) -> anyhow::Result<BoundPort> {
    // Inside a jail paths are what they say; without root's rights a chroot is left out of account here, as in Mongrel2.
    let endpoint = address(server, settings)?;
    if let Transport::Ipc { path } = &endpoint.transport
        && !path.starts_with('@')
    {
        make_directory(Path::new(path)).with_context(|| format!("make room for {endpoint}"))?;
    }
    control::bind(&endpoint)
        .await
        .context("open the control port")
}

/// Makes the directory of a socket's file if it is not there: a fresh site has none, and needs no other step.
fn make_directory(path: &Path) -> io::Result<()> {
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    if directory.as_os_str().is_empty() || directory.exists() {
        return Ok(());
    }
    fs::create_dir(directory)?;
    info!(
        "made directory {} for the control port",
        directory.display()
    );
    Ok(())
}

/// The way of orders from the control port to whoever carries them out.
pub(super) fn orders() -> (mpsc::Sender<Order>, mpsc::Receiver<Order>) {
    mpsc::channel(ORDERS_MAX)
}

/// A front as its control port sees it.
pub(super) struct Governed {
    plan: Plan,
    /// The front does not know of a jail that it is in.
    chroot: String,
    front: Handle,
    orders: mpsc::Sender<Order>,
}

impl Governed {
    /// The front that was started with this plan, in a server with this chroot.
    pub(super) fn new(
        plan: Plan,
        chroot: String,
        front: Handle,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        Self {
            plan,
            chroot,
            front,
            orders,
        }
    }

    /// What is served now, or was last.
    fn plan(&self) -> Plan {
        self.front.plan().unwrap_or_else(|| self.plan.clone())
    }
}

impl Subject for Governed {
    fn info(&self) -> Table {
        let plan = self.plan();
        let server = plan.server();
        let port = self.front.addr().map_or(server.port, |addr| addr.port());
        let mut info = Table::new(INFO);
        info.rows.push(vec![
            i64::from(port).into(),
            server.bind_addr.to_string().into(),
            server.uuid.as_str().into(),
            self.chroot.as_str().into(),
            server.access_log.as_str().into(),
            server.error_log.as_str().into(),
            server.pid_file.as_str().into(),
            server.default_host().name.as_str().into(),
        ]);
        info
    }

    fn uuid(&self) -> String {
        self.plan().server().uuid.clone()
    }

    fn tasks(&self) -> Vec<Task> {
        let task = |name, state, status| Task {
            name,
            state,
            status,
        };
        let server = match self.front.state() {
            State::Serving => "idle",
            State::Draining => "exiting",
        };
        let mut tasks = vec![task("SERVER", "read fd", server)];
        tasks.extend(
            self.front
                .handlers()
                .iter()
                .map(|_| task("Handler_task", "read handler", "idle")),
        );
        tasks.push(task("control", "read handler", "running"));
        tasks.push(task("ticker", "", "idle"));
        tasks.extend(
            self.front
                .connections()
                .iter()
                .map(|connection| match connection.kind {
                    0 => task("", "read fd", "idle"),
                    _ => task("HTTP", "read fd", "idle"),
                }),
        );
        tasks
    }

    fn connections(&self) -> Vec<Connection> {
        let seconds = |ago: Duration| u32::try_from(ago.as_secs()).unwrap_or(u32::MAX);
        self.front
            .connections()
            .iter()
            .map(|connection| Connection {
                id: connection.id,
                fd: connection.fd,
                kind: connection.kind,
                last_ping: seconds(connection.last_ping),
                last_read: seconds(connection.last_read),
                last_write: seconds(connection.last_write),
                bytes_read: connection.bytes_read,
                bytes_written: connection.bytes_written,
            })
            .collect()
    }

    fn handlers(&self) -> Option<Table> {
        let mut table = Table::new(&[
            "ident",
            "send_spec",
            "recv_spec",
            "waiting",
            "waiting_bytes",
            "reply_sockets",
            "peer",
            "state",
            "open",
            "attached",
            "queued",
            "queued_bytes",
            "stuck_ms",
        ]);
        for handlers in self.front.handlers() {
            let report = handlers.report;
            let [send, recv] = match &report.endpoints.plain {
                Some((send, recv)) => [send.to_string(), recv.to_string()],
                None => [String::new(), String::new()],
            };
            let of_all: Vec<Cell> = vec![
                handlers.ident.into(),
                send.into(),
                recv.into(),
                report.waiting.into(),
                report.waiting_bytes.into(),
                report.voices.into(),
            ];
            let mut of_each: Vec<Vec<Cell>> = report
                .workers
                .iter()
                .map(|peer| {
                    let stuck = peer.stuck.unwrap_or_default().as_millis();
                    vec![
                        peer.origin.to_string().into(),
                        peer.state.into(),
                        peer.open.into(),
                        peer.attached.into(),
                        peer.queued.into(),
                        peer.queued_bytes.into(),
                        u64::try_from(stuck).unwrap_or(u64::MAX).into(),
                    ]
                })
                .collect();
            if of_each.is_empty() {
                let nobody = [0_i64; 5].map(Cell::from);
                of_each.push(
                    ["".into(), "absent".into()]
                        .into_iter()
                        .chain(nobody)
                        .collect(),
                );
            }
            let rows = of_each.into_iter();
            table
                .rows
                .extend(rows.map(|peer| of_all.iter().cloned().chain(peer).collect()));
        }
        Some(table)
    }

    fn pools(&self) -> Option<Vec<Pool>> {
        let all = self.front.handlers().into_iter();
        let pool = |handlers: front::Handlers| Pool {
            name: handlers.report.endpoints.to_string(),
            report: handlers.report,
        };
        Some(all.map(pool).collect())
    }

    fn routes(&self) -> Option<Table> {
        let mut table = Table::new(&["host", "matching", "path", "kind", "target", "requests"]);
        table.rows = self
            .front
            .routes()
            .into_iter()
            .map(|route| {
                vec![
                    route.host.into(),
                    route.matching.into(),
                    route.path.into(),
                    route.kind.into(),
                    route.target.into(),
                    route.requests.into(),
                ]
            })
            .collect();
        Some(table)
    }

    fn kill(&self, id: u32) -> bool {
        self.front.kill(id)
    }

    fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }
}
