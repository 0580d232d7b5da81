//! What an operator sees of a broker by the control port, and may have done.

use std::rc::{Rc, Weak};

use tokio::sync::mpsc;

use crate::broker::{Device, PoolState};
use crate::control::{Connection, Order, Pool, Subject, Table, Task};

/// Orders that are not carried out yet; one more is refused.
const ORDERS_MAX: usize = 8;

/// A broker, as its control port sees it.
pub(super) struct Desk {
    name: String,
    device: Weak<Device>,
    orders: mpsc::Sender<Order>,
}

impl Desk {
    /// A desk, and where what is asked for arrives.
    pub(super) fn new(name: String, device: &Rc<Device>) -> (Self, mpsc::Receiver<Order>) {
        let (orders, arrived) = mpsc::channel(ORDERS_MAX);
        let device = Rc::downgrade(device);
        let desk = Self {
            name,
            device,
            orders,
        };
        (desk, arrived)
    }
}

impl Subject for Desk {
    fn info(&self) -> Table {
        let mut info = Table::new(&["name", "pid", "servers", "listening", "pools", "open"]);
        let device = self.device.upgrade();
        let counts = device.map_or((0, 0, 0, 0), |device| {
            let servers = device.servers();
            let listening = servers.iter().filter(|server| server.listens).count();
            let pools = device.pools().len();
            (servers.len(), listening, pools, device.open())
        });
        let (servers, listening, pools, open) = counts;
        info.rows.push(vec![
            self.name.as_str().into(),
            std::process::id().into(),
            servers.into(),
            listening.into(),
            pools.into(),
            open.into(),
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

    fn pools(&self) -> Option<Vec<Pool>> {
        let all = self.device.upgrade()?.pools().into_iter();
        let pool = |state: PoolState| Pool {
            name: state.name,
            report: state.report,
        };
        Some(all.map(pool).collect())
    }

    fn routes(&self) -> Option<Table> {
        None
    }

    fn kill(&self, _id: u32) -> bool {
        false
    }

    fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }
}
