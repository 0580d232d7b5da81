//! Another configuration for a front that runs: what is new is had first, then everything changes in one turn.
//!
//! Requests that are open, sockets and streams go on as they began, on the handlers that have them. A handler whose sockets
//! stay keeps its peers; one that is gone from the configuration ends what it has and is closed then.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tracing::{error, info};

use super::limits::Limits;
use super::tls::{Tls, TlsError};
use super::{
    BindError, Plan, Shard, bind_handler, clashes, listen, open_access_log, pool_settings,
};
use crate::config::{self, Handler};
use crate::pool::{BoundPool, Pool};

/// How long the new owner of a handler's address waits for the old one to have left it.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(1);
const HAND_OVER_PAUSE: Duration = Duration::from_millis(10);

/// What a reload did.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// What is different now, one line each; empty: nothing.
    pub changes: Vec<String>,
    /// What is different in the configuration and takes effect at the next start only.
    pub postponed: Vec<&'static str>,
}

/// Why the old configuration goes on.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Something new cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The front stops or has ended.
    #[error("the server is stopping")]
    Ended,
}

/// What was had for the new plan before anything was changed.
struct Prepared {
    listener: Option<(TcpListener, SocketAddr)>,
    /// Handlers that stay, with their pools.
    kept: Vec<(Arc<Handler>, Rc<Pool>)>,
    bound: Vec<(Arc<Handler>, BoundPool)>,
    /// Handlers that need an address that another has until it is retired.
    late: Vec<Arc<Handler>>,
}

impl Shard {
    pub(super) async fn reload(self: &Rc<Self>, plan: Plan) -> Result<Reloaded, ReloadError> {
        if self.is_draining() {
            return Err(ReloadError::Ended);
        }
        let old = self.plan.borrow().clone();
        let mut changes =
            config::changes((&old.config, old.server()), (&plan.config, plan.server()));
        if plan.use_ssl() && old.keys != plan.keys {
            changes.push("certificates".to_owned());
        }
        if changes.is_empty() {
            return Ok(Reloaded::default());
        }
        let mut prepared = self.prepare_plan(&old, &plan).await?;
        let access_log = if same_access_log(&old, &plan) {
            None
        } else {
            Some(open_access_log(plan.server(), plan.settings())?)
        };

        let tls = self.prepare_tls(&plan).await?;

        // Nothing can fail from here on but addresses that change hands.
        self.limits.replace(Rc::new(Limits::from(plan.settings())));
        // There may be room for more clients now.
        self.registry.left.notify_one();
        self.tls.replace(tls);
        if let Some(log) = access_log {
            // The old one writes what it has and ends by itself.
            self.access_log.replace(log);
        }
        for (handler, pool) in std::mem::take(&mut prepared.kept) {
            // One that was being retired may have left its addresses meanwhile.
            if pool.revive() {
                pool.reconfigure(pool_settings(plan.settings(), &handler));
                prepared.kept.push((handler, pool));
            } else {
                prepared.late.push(handler);
            }
        }
        let kept = prepared.kept.clone();
        let is_kept = |pool: &Rc<Pool>| kept.iter().any(|(_, kept)| Rc::ptr_eq(kept, pool));
        let mut gone = self.pools.replace(prepared.kept);
        gone.retain(|(_, pool)| !is_kept(pool));
        self.retiring
            .borrow_mut()
            .retain(|(_, pool)| !pool.is_closed() && !is_kept(pool));
        for (handler, bound) in prepared.bound {
            self.run_pool(handler, bound);
        }
        let postponed = postponed(&old, &plan);
        self.plan.replace(plan.clone());
        self.retire(gone);
        for handler in prepared.late {
            for (_, pool) in self
                .retiring
                .borrow()
                .iter()
                .filter(|(old, _)| old.same_sockets(&handler) || old.shares_a_socket(&handler))
            {
                pool.leave_addresses();
            }
            match bind_late(&plan, &handler).await {
                Ok(bound) => self.run_pool(handler, bound),
                Err(why) => error!("reload: {}: its routes answer 404", chain(&why)),
            }
        }
        self.rebuild_site();
        if let Some((listener, addr)) = prepared.listener {
            self.listen(listener, addr);
        }
        Ok(Reloaded { changes, postponed })
    }

    /// Reads the certificates of a plan, beside the shard.
    async fn prepare_tls(&self, plan: &Plan) -> Result<Option<Arc<Tls>>, BindError> {
        let (plan, before) = (plan.clone(), self.tls.borrow().clone());
        let made = tokio::task::spawn_blocking(move || plan.tls(before.as_deref())).await;
        Ok(made.unwrap_or(Err(TlsError::Lost))?)
    }

    async fn prepare_plan(&self, old: &Plan, plan: &Plan) -> Result<Prepared, BindError> {
        let (server, settings) = (plan.server(), plan.settings());
        let wanted = SocketAddr::new(server.bind_addr, server.port);
        let listener = if wanted == SocketAddr::new(old.server().bind_addr, old.server().port) {
            None
        } else {
            Some(listen(wanted)?)
        };
        let mut prepared = Prepared {
            listener,
            kept: Vec::new(),
            bound: Vec::new(),
            late: Vec::new(),
        };
        let (pools, mut retiring) = (self.pools.borrow().clone(), self.retiring.borrow().clone());
        retiring.retain(|(_, pool)| !pool.is_closed());
        let mut accepted: Vec<Arc<Handler>> = Vec::new();
        for handler in server.handlers() {
            if clashes(accepted.iter(), &handler) {
                continue;
            }
            accepted.push(Arc::clone(&handler));
            // What its PUB sockets are subscribed to cannot change under them, nor where workers connect.
            let same = |(known, _): &&(Arc<Handler>, Rc<Pool>)| {
                known.same_sockets(&handler)
                    && known.recv_ident == handler.recv_ident
                    && known.workers == handler.workers
            };
            let known = pools.iter().chain(&retiring).find(same);
            let in_use = pools
                .iter()
                .chain(&retiring)
                .any(|(known, _)| known.same_sockets(&handler) || known.shares_a_socket(&handler));
            match known {
                Some((_, pool)) => prepared.kept.push((handler, Rc::clone(pool))),
                _ if in_use => prepared.late.push(handler),
                _ => {
                    let bound = bind_handler(server, settings, &handler).await?;
                    prepared.bound.push((handler, bound));
                }
            }
        }
        Ok(prepared)
    }

    /// Lets pools end what they have, for as long as a stopping server would wait.
    fn retire(self: &Rc<Self>, pools: Vec<(Arc<Handler>, Rc<Pool>)>) {
        let patience = self.limits().drain_timeout;
        for (handler, pool) in pools {
            pool.retire();
            self.retiring.borrow_mut().push((handler, Rc::clone(&pool)));
            let shard = Rc::clone(self);
            self.watch.spawn_local(async move {
                tokio::select! {
                    () = tokio::time::sleep(patience) => shard.end_retired(&pool, patience),
                    () = shard.watch.draining() => {}
                }
            });
        }
    }

    /// Closes a pool that is still being retired.
    fn end_retired(&self, pool: &Rc<Pool>, patience: Duration) {
        // It may have been in service again meanwhile.
        if pool.retired_for().is_none_or(|time| time < patience) {
            return;
        }
        let mut retiring = self.retiring.borrow_mut();
        let place = retiring
            .iter()
            .position(|(_, other)| Rc::ptr_eq(other, pool));
        if let Some((handler, _)) = place.map(|place| retiring.swap_remove(place))
            && !pool.is_closed()
        {
            info!(
                "handler {}: no route leads to it any more, and its time is up: closed",
                handler.send_ident
            );
            pool.close();
        }
    }
}

/// Binds a handler whose address is just being left.
async fn bind_late(plan: &Plan, handler: &Handler) -> Result<BoundPool, BindError> {
    let end = tokio::time::Instant::now() + HAND_OVER_TIMEOUT;
    loop {
        match bind_handler(plan.server(), plan.settings(), handler).await {
            Err(_) if tokio::time::Instant::now() < end => {
                tokio::time::sleep(HAND_OVER_PAUSE).await;
            }
            result => return result,
        }
    }
}

fn same_access_log(old: &Plan, new: &Plan) -> bool {
    old.server().access_log == new.server().access_log
        && old.server().chroot == new.server().chroot
        && old.settings().disable_access_logging == new.settings().disable_access_logging
}

/// What stays as it was until the next start.
fn postponed(old: &Plan, new: &Plan) -> Vec<&'static str> {
    let control_port = |plan: &Plan| {
        let named = plan.server().control_port.clone();
        if named.is_empty() {
            plan.settings().control_port.clone()
        } else {
            named
        }
    };
    let other_control_port = control_port(old) != control_port(new);
    let other_figures = old.settings().metrics_port != new.settings().metrics_port;
    let (old, new) = (old.server(), new.server());
    [
        ("chroot", old.chroot != new.chroot),
        ("pid_file", old.pid_file != new.pid_file),
        ("error_log", old.error_log != new.error_log),
        ("control_port", other_control_port),
        ("metrics_port", other_figures),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
