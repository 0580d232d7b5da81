//! A reload: the plan is made anew, and all workers are replaced by ones that follow it.

use anyhow::bail;
use tracing::{error, info};

use super::super::plan::Plan;
use super::super::rights::Rights;
use super::Supervisor;
use super::feed::Feeding;

impl Supervisor<'_> {
    /// Replaces all workers by ones that are started as things are now.
    pub(super) fn reload(&mut self, why: &str) {
        if self.is_ending() {
            return;
        }
        let name = &self.plan.name;
        match self.plan_anew() {
            Ok((plan, rights)) => {
                info!("handler {name}: workers are replaced: {why}");
                let before = std::mem::replace(&mut self.plan, plan);
                let rights = std::mem::replace(&mut self.rights, rights);
                self.crew.set_graceful_timeout(self.plan.graceful_timeout);
                if self.plan.workers != before.workers {
                    self.crew.scale(self.plan.workers);
                }
                self.previous.get_or_insert((before, rights));
                self.give_sockets();
                self.manager.reloading();
                self.is_rolling = true;
                // New ones come from what is loaded anew. The old one goes when its last child has gone.
                self.zygote = None;
                self.crew.roll();
            }
            Err(error) => error!("handler {name}: nothing is replaced: {error:#}"),
        }
    }

    fn plan_anew(&self) -> anyhow::Result<(Plan, Rights)> {
        let plan = (self.replan)().map_err(anyhow::Error::msg)?;
        let rights = Rights::find(plan.user.as_deref(), plan.group.as_deref())?;
        let fixed = |plan: &Plan| {
            (
                plan.control.clone(),
                plan.pid_file.clone(),
                plan.feed,
                plan.watch.clone(),
            )
        };
        if fixed(&plan) != fixed(&self.plan) {
            bail!(
                "the control port, the pid file, the feed and what is watched change with a new start only"
            );
        }
        let fed = |plan: &Plan| {
            (
                plan.servers.clone(),
                plan.ident.clone(),
                plan.concurrency,
                plan.access_log.clone(),
            )
        };
        if self.feeding.is_some() && fed(&plan) != fed(&self.plan) {
            bail!(
                "this process takes the requests for its workers, and then the servers, the ident, the concurrency and the access log change with a new start only"
            );
        }
        Ok((plan, rights))
    }

    /// The sockets of the feed are for whoever workers are now.
    pub(super) fn give_sockets(&self) {
        if let Some(Feeding { directory, .. }) = &self.feeding
            && let Err(error) = directory.give(&self.rights)
        {
            error!("give the workers' sockets to their user: {error}");
        }
    }
}
