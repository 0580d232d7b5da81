//! What an operator sees of the workers by the control port, and may have done.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::crew::Id;
use super::memory::resident;
use crate::control::{Connection, Order, Subject, Table, Task};

/// Orders that are not carried out yet; one more is refused.
const ERRANDS_MAX: usize = 8;

/// What an operator may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errand {
    /// What any control port knows.
    Order(Order),
    /// So many workers from now on.
    Scale(u32),
}

/// A worker as it is shown.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) number: u32,
    pub(super) pid: u32,
    pub(super) state: &'static str,
    pub(super) in_flight: u64,
    pub(super) served: u64,
    pub(super) started: Instant,
}

/// What is shown; the supervisor keeps it as it is.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) workers: BTreeMap<Id, Shown>,
    pub(super) wanted: u32,
    pub(super) feed: &'static str,
}

/// The supervisor, as its control port sees it.
pub(super) struct Desk {
    name: String,
    servers: String,
    board: Rc<RefCell<Board>>,
    errands: mpsc::Sender<Errand>,
}

impl Desk {
    /// A desk, and where what is asked for arrives.
    pub(super) fn new(
        name: String,
        servers: String,
        board: Rc<RefCell<Board>>,
    ) -> (Self, mpsc::Receiver<Errand>) {
        let (errands, arrived) = mpsc::channel(ERRANDS_MAX);
        let desk = Self {
            name,
            servers,
            board,
            errands,
        };
        (desk, arrived)
    }
}

impl Subject for Desk {
    fn info(&self) -> Table {
        let board = self.board.borrow();
        let mut info = Table::new(&["name", "pid", "servers", "feed", "workers"]);
        info.rows.push(vec![
            self.name.as_str().into(),
            std::process::id().into(),
            self.servers.as_str().into(),
            board.feed.into(),
            board.wanted.into(),
        ]);
        info
    }

    fn uuid(&self) -> String {
        self.name.clone()
    }

    fn tasks(&self) -> Vec<Task> {
        Vec::new()
    }

    fn connections(&self) -> Vec<Connection> {
        Vec::new()
    }

    fn handlers(&self) -> Option<Table> {
        None
    }

    fn routes(&self) -> Option<Table> {
        None
    }

    fn workers(&self) -> Option<Table> {
        let mut table = Table::new(&[
            "worker",
            "pid",
            "state",
            "in_flight",
            "served",
            "age_s",
            "memory_kib",
        ]);
        let board = self.board.borrow();
        let mut workers: Vec<_> = board.workers.values().collect();
        workers.sort_by_key(|worker| worker.number);
        table.rows = workers
            .into_iter()
            .map(|worker| {
                vec![
                    worker.number.into(),
                    worker.pid.into(),
                    worker.state.into(),
                    worker.in_flight.into(),
                    worker.served.into(),
                    worker.started.elapsed().as_secs().into(),
                    (resident(worker.pid).unwrap_or_default() / 1024).into(),
                ]
            })
            .collect();
        Some(table)
    }

    fn scale(&self, count: u32) -> bool {
        self.errands.try_send(Errand::Scale(count)).is_ok()
    }

    fn kill(&self, _id: u32) -> bool {
        false
    }

    fn order(&self, order: Order) -> bool {
        self.errands.try_send(Errand::Order(order)).is_ok()
    }
}
